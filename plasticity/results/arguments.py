"""Checks the arguments of the public functions of `plasticity.results`.

Parameters of one name have the same meaning in all of these functions, and so the same rule.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from statsmodels.stats.multitest import multitest_methods_names

from plasticity.storage.table import COLUMNS, ResultsError
from plasticity.struct import Range, brief

P = ParamSpec("P")
R = TypeVar("R")

Rule = Callable[[Any], str | None]  # returns what is expected where a value breaks the rule

_TEXT = ("run", "env", "shift", "intervention", "metric", "layer", "variant")  # columns of strings


def frame_with(columns: Sequence[str], *, rows: bool = True, unique: Sequence[str] = ()) -> Rule:
    """Returns the rule of data frames.

    Args:
      columns: the columns that they must have; numbers, unless they are known to hold strings.
      rows: whether they must have any.
      unique: columns, in all of which no two rows may be equal.
    """

    def rule(value: object) -> str | None:
        if not isinstance(value, pd.DataFrame):
            return f"expected a data frame with columns {', '.join(columns) or 'for each metric'}"
        if missing := [name for name in columns if name not in value.columns]:
            return f"lacks columns {', '.join(missing)}; expected {', '.join(columns)}"
        if rows and value.empty:
            return "no rows; expected one or more"
        for name in columns if len(value) else ():
            if name not in _TEXT and not pd.api.types.is_numeric_dtype(value[name]):
                return f"column {name} is {value[name].dtype}; expected numbers"
        if unique and value.duplicated(list(unique)).any():
            return f"expected one row for each {', '.join(unique)}"
        return None

    return rule


def within(allowed: Range) -> Rule:
    """Returns the rule of values in a range."""
    return lambda value: None if value in allowed else f"expected {allowed}"


def each(allowed: Range, least: int = 0) -> Rule:
    """Returns the rule of collections of values in a range.

    Args:
      allowed: the range.
      least: the least number of values.
    """

    def rule(value: Any) -> str | None:
        other = str | bytes | Mapping | pd.DataFrame
        listed = isinstance(value, Collection) and not isinstance(value, other)
        if listed and len(value) >= least and all(element in allowed for element in value):
            return None
        return f"expected a list of {least} or more, each {allowed}"

    return rule


def either(*rules: Rule) -> Rule:
    """Returns the rule of values that one of several rules allows."""

    def rule(value: object) -> str | None:
        expected = [expected for rule in rules if (expected := rule(value))]
        if len(expected) < len(rules):
            return None
        return expected[0] + "".join(f" or {one.removeprefix('expected ')}" for one in expected[1:])

    return rule


def _numbers(value: object) -> str | None:
    try:
        np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return "expected numbers"
    return "expected numbers" if value is None else None


def _function(value: object) -> str | None:
    return None if callable(value) else "expected a function"


def _path(value: object) -> str | None:
    is_path = isinstance(value, str | Path) and str(value) and "\0" not in str(value)
    return None if is_path else "expected a path"


def _groups(value: object) -> str | None:
    known = isinstance(value, Mapping) and not any(map(_names, value.values()))
    return None if known else "expected lists of names by title"


def _frames(value: object) -> str | None:
    rule = frame_with(COLUMNS)
    known = isinstance(value, Mapping) and value and not any(map(rule, value.values()))
    return None if known else "expected results tables by title"


_name = within(Range(str))
_names = each(Range(str))
_count = within(Range(int, ge=1, le=1_000_000))
_SEED = ("env", "shift", "intervention", "seed")
_BOUNDS = ("", "_low", "_high")

RULES: Mapping[str, Rule] = {
    "against": _name,
    "ax": within(Range(Axes)),
    "baseline": _name,
    "bins_per_round": _count,
    "chain": _names,
    "confidence": within(Range(float, gt=0, lt=1)),
    "config": _names,
    "control": _name,
    "correction": within(Range(str, choices=tuple(multitest_methods_names))),
    "first": _count,
    "figure": either(within(Range(Figure)), within(Range(Axes))),
    "frame": frame_with(COLUMNS),
    "frames": _frames,
    "groups": _groups,
    "how": within(Range(str, choices=("mean", "last"))),
    "intervention": _name,
    "interventions": _names,
    "keys": _names,
    "last": _count,
    "layer": _name,
    "metric": _name,
    "metrics": _names,
    "normalized": within(Range(bool)),
    "num_bins": _count,
    "path": _path,
    "path_without_suffix": _path,
    "points": frame_with(("shift", "intervention")),
    "profiles": frame_with(("intervention", "threshold", "value", "low", "high")),
    "references": _names,
    "resamples": _count,
    "rounds": either(within(Range(int, ge=1)), each(Range(int, ge=1), 1)),
    "score": _name,
    "scores": frame_with((*_SEED, "score"), unique=_SEED),
    "seed": within(Range(int, ge=0)),
    "seeds": within(Range(bool)),
    "shifts": each(Range(str), 1),
    "statistic": _function,
    "summary_frame": frame_with(
        (
            *("env", "shift", "intervention", "seeds", "rounds", "diverged"),
            *("return_first", "return_last"),
            *(f"{name}{bound}" for name in ("loss", "gain") for bound in _BOUNDS),
        ),
        rows=False,
    ),
    "target": _name,
    "targets": each(Range(str), 1),
    "thresholds": each(Range(float), 1),
    "values": _numbers,
    "variants": frame_with(("variant", "pieces", "training_seconds"), unique=("variant",)),
    "where": _path,
}


def checked(**rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function so that it checks its arguments before anything else.

    An argument that is the default is not checked. Iterators are made tuples.

    Args:
      **rules: the rules of parameters that have others than those in `RULES`.

    Raises:
      ResultsError: from the function, where an argument breaks the rule of its name: one line with
        the name, the value and what is expected.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = {name: rules.get(name, RULES.get(name)) for name in signature.parameters}

        @functools.wraps(function)
        def checking(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                rule, parameter = own[name], signature.parameters[name]
                if rule is None or value is parameter.default:
                    continue
                if isinstance(value, Iterator):
                    value = bound.arguments[name] = tuple(value)
                several = parameter.kind is parameter.VAR_POSITIONAL
                for one in value if several else (value,):
                    if expected := rule(one):
                        _refuse(name, one, expected)
            return function(*bound.args, **bound.kwargs)

        return checking

    return decorate


def check_known(name: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raises `ResultsError` for the first of the values of an argument that a table lacks."""
    known = list(known)
    for value in values:
        if value not in known:
            expected = ", ".join(sorted(map(str, known))) or "none, there are none"
            _refuse(name, value, f"not in the table; expected one of: {expected}")


def _refuse(name: str, value: object, expected: str) -> None:
    given = "" if isinstance(value, pd.DataFrame) else f"={brief(value)}"
    raise ResultsError(f"{name}{given}: {expected}")
