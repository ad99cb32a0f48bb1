"""Juliani & Ash (2024), "A Study of Plasticity Loss in On-Policy Deep Reinforcement Learning".

Its figures and tables, from a results table of its methods under its shifts. What it claims is in
`claims.py`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from plasticity.results.claims import BASELINE, CONTROL, DEAD_UNITS, LAST, TEST, TRAIN
from plasticity.results.comparisons import (
    aggregates,
    correlations,
    end_of_rounds,
    linear_model,
    metric_points,
    paired_tests,
    performance_profiles,
    probability_of_improvement,
    scores,
    t_tests,
)
from plasticity.results.figures import (
    correlation_figure,
    intervals_figure,
    profiles_figure,
    rounds_figure,
    warm_start_figure,
)
from plasticity.results.statistics import SETTING, order, student
from plasticity.results.table import ResultsError

RETURNS = (TRAIN, TEST)
# The paper's policy entropy, weight magnitude, weight difference, gradient norm and dead units.
METRICS = ("policy_entropy", "weight_rms", "update_size", "gradient_norm", DEAD_UNITS)


class Drawn(NamedTuple):
    """A figure of the study.

    Attributes:
      name: of its files.
      figure: the figure.
      data: what it shows.
    """

    name: str
    figure: Figure
    data: pd.DataFrame


def figures(frame: pd.DataFrame) -> Iterator[Drawn]:
    """Every figure of the study that results can show, named by its number in the paper.

    Args:
      frame: a results table of the study.

    Warns:
      UserWarning: a figure is left out, for a part of a study is not enough for it.
    """
    pair = frame["intervention"].isin([BASELINE, CONTROL])
    earned = frame["metric"].isin([*RETURNS, "episodes"]) & (frame["layer"] == "all")

    def warm_start() -> tuple[Figure, pd.DataFrame]:
        return warm_start_figure(frame), frame[pair & earned]

    def correlation() -> tuple[Figure, pd.DataFrame]:
        points = _points(frame)
        return correlation_figure(points, METRICS, RETURNS), points

    def intervals() -> tuple[Figure, pd.DataFrame]:
        last = pd.concat(
            [final(frame, metric).assign(metric=metric) for metric in RETURNS], ignore_index=True
        )
        return intervals_figure(last), last

    def rounds(name: str) -> tuple[Figure, pd.DataFrame]:
        metric, _, layer = name.partition("/")
        of = (frame, metric, layer or "all")
        return rounds_figure(*of), end_of_rounds(*of)

    def profiles() -> tuple[Figure, pd.DataFrame]:
        last = final(frame, TRAIN)
        thresholds = np.linspace(last["score"].min(), last["score"].max(), 41)
        found = performance_profiles(last, thresholds)
        return profiles_figure(found, "Change of the train return since round 1"), found

    makers: dict[str, Callable[[], tuple[Figure, pd.DataFrame]]] = {
        "2_warm_start": warm_start,
        "3_correlations": correlation,
        "4_intervals": intervals,
    }
    for number, names in (("5", RETURNS), ("A", METRICS)):
        for name in names:
            makers[f"{number}_rounds_{name.partition('/')[0]}"] = partial(rounds, name)
    makers["A_profiles"] = profiles
    for name, (figure, data) in _possible(makers):
        yield Drawn(name, figure, data)


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table of the study, by name.

    Args:
      frame: a results table of the study.

    Warns:
      UserWarning: a table is left out, for a part of a study is not enough for it.
    """
    points = cache(partial(_points, frame))
    makers = [_makers(frame, metric, points) for metric in RETURNS]
    return dict(_possible({name: make for each in makers for name, make in each.items()}))


def _makers(
    frame: pd.DataFrame, metric: str, points: Callable[[], pd.DataFrame]
) -> dict[str, Callable[[], pd.DataFrame]]:
    """What makes the tables of a return; `points` are those of all its metrics."""
    last = cache(partial(final, frame, metric))
    each: dict[str, Callable[[], pd.DataFrame]] = {
        "returns": lambda: returns(frame, metric),
        # As the paper has them: changes averaged over all rounds, seeds unpaired.
        "t_tests": lambda: t_tests(scores(frame, metric), CONTROL),
        "paired_vs_reset_all": lambda: paired_tests(last(), CONTROL),
        "paired_vs_warm_start": lambda: paired_tests(last(), BASELINE),
        "interquartile_means": lambda: aggregates(last()),
        "improvement_over_warm_start": lambda: probability_of_improvement(last()),
        "correlations": lambda: correlations(points(), metric, METRICS),
        "linear_model": lambda: linear_model(points(), metric, METRICS),
    }
    return {f"{name}_{metric}": make for name, make in each.items()}


def returns(frame: pd.DataFrame, metric: str = TRAIN) -> pd.DataFrame:
    """What methods come to, as it is, and not as a change since the first round.

    A method with a poor first round gains by its change alone; here it does not.

    Args:
      frame: a results table of the study.
      metric: a return.

    Returns:
      A row for each env, shift and intervention: seeds; value, low and high, the mean over the
      ends of the last three rounds with Student's 95 % interval; first, the mean at the end of
      the first; and gain, gain_low and gain_high, by how much value exceeds that of `warm_start`,
      paired by seed.
    """
    rows = []
    for keys, some in frame.groupby(SETTING, sort=False):
        rounds = sorted(some["round"].unique())
        ends = scores(some, metric, rounds=rounds[-LAST:], normalized=False)
        first = scores(some, metric, rounds=rounds[:1], normalized=False)
        wide = ends.pivot(index="seed", columns="intervention", values="score")
        for name in order(some):
            begun = first.loc[first["intervention"] == name, "score"].mean()
            gain = (
                student(wide[name] - wide[BASELINE])
                if BASELINE in wide and name != BASELINE
                else (np.nan, np.nan, np.nan)
            )
            count = int(wide[name].count())
            rows.append((*keys, name, count, *student(wide[name]), begun, *gain))
    columns = ["seeds", "value", "low", "high", "first", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=[*SETTING, "intervention", *columns])


def final(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The study's normalised return at the end of the last round, for each seed."""
    return scores(frame, metric, rounds=[int(frame["round"].max())])


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    points = metric_points(frame, RETURNS[0], METRICS)
    test = metric_points(frame, RETURNS[1], [])
    return points.merge(test, on=["env", "shift", "intervention"])


T = TypeVar("T")


def _possible(makers: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
    """What can be made of results, by name, with a warning of what cannot."""
    for name, make in makers.items():
        try:
            yield name, make()
        except ResultsError as error:
            warnings.warn(f"{name}: left out, {error}", stacklevel=3)
