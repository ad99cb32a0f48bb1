"""Juliani & Ash (2024), "A Study of Plasticity Loss in On-Policy Deep Reinforcement Learning".

Its figures and tables, from a results table of its methods: under its shifts in the gridworld and
in CoinRun, and over time in Montezuma's Revenge. What it claims is in `claims.py`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.juliani_ash_2024.claims import (
    BASELINE,
    CONTROL,
    LAST,
    TENTHS,
    TEST,
    TRAIN,
    dead_units,
    earned,
)
from experiments.juliani_ash_2024.parts import Kind, by_kind
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
from plasticity.results.plots import STRETCHES
from plasticity.results.shift_plots import (
    correlation_figure,
    intervals_figure,
    learning_figure,
    profiles_figure,
    rounds_figure,
    warm_start_figure,
)
from plasticity.results.statistics import SETTING, bin_by_steps, order, t_interval
from plasticity.storage.table import ResultsError

RETURNS = (TRAIN, TEST)
INTRINSIC = "intrinsic_return"  # what Random Network Distillation pays

T = TypeVar("T")
Makers = dict[str, Callable[[], T]]


class StudyFigure(NamedTuple):
    """A figure of the study.

    Attributes:
      name: of its files.
      figure: the figure.
      data: what it shows.
    """

    name: str
    figure: Figure
    data: pd.DataFrame


class Numbers(NamedTuple):
    """What names of figures begin with: their numbers in the paper, and A for its appendix."""

    warm_start: str = "2"
    correlations: str = "3"
    intervals: str = "4"
    rounds: str = "5"
    appendix: str = "A"


# Those of CoinRun are one figure of the paper's.
NUMBERS = {Kind.GRIDWORLD: Numbers(), Kind.COINRUN: Numbers("6", "6", "6", "6", "6")}


def metrics_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """The paper's metrics: names, or `metric/layer` for a layer of one.

    Policy entropy, weight magnitude, weight difference, gradient norm and dead units.

    Args:
      frame: a results table of one env.
    """
    return "policy_entropy", "weight_rms", "update_size", "gradient_norm", dead_units(frame)


def figures(frame: pd.DataFrame) -> Iterator[StudyFigure]:
    """Every figure of the study that results can show, named by its number in the paper.

    Args:
      frame: a results table of the study, of one env or several.

    Warns:
      UserWarning: a figure is left out, for a part of a study is not enough for it.

    Raises:
      ResultsError: there are several envs of a kind, or no rows.
    """
    for kind, rows in by_kind(frame).items():
        makers = _over_time(rows) if kind is Kind.CURVES else _by_round(rows, NUMBERS[kind])
        for name, (figure, data) in _possible(makers):
            yield StudyFigure(name, figure, data)


def _over_time(frame: pd.DataFrame) -> Makers[tuple[Figure, pd.DataFrame]]:
    """What makes the figure of an env that does not shift; the intrinsic return if there is one."""
    metrics = [TRAIN, INTRINSIC] if (frame["metric"] == INTRINSIC).any() else [TRAIN]

    def learning() -> tuple[Figure, pd.DataFrame]:
        curves = [bin_by_steps(frame, one, STRETCHES).assign(metric=one) for one in metrics]
        return learning_figure(frame, metrics), pd.concat(curves, ignore_index=True)

    return {"7_learning": learning}


def _by_round(frame: pd.DataFrame, numbers: Numbers) -> Makers[tuple[Figure, pd.DataFrame]]:
    """What makes the figures of an env that shifts."""
    metrics = metrics_of(frame)
    pair = frame["intervention"].isin([BASELINE, CONTROL])
    returned = frame["metric"].isin([*RETURNS, "episodes"]) & (frame["layer"] == "all")

    def warm_start() -> tuple[Figure, pd.DataFrame]:
        return warm_start_figure(frame), frame[pair & returned]

    def correlation() -> tuple[Figure, pd.DataFrame]:
        points = _points(frame)
        return correlation_figure(points, metrics, RETURNS), points

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

    makers: Makers[tuple[Figure, pd.DataFrame]] = {
        f"{numbers.warm_start}_warm_start": warm_start,
        f"{numbers.correlations}_correlations": correlation,
        f"{numbers.intervals}_intervals": intervals,
    }
    for number, names in ((numbers.rounds, RETURNS), (numbers.appendix, metrics)):
        for name in names:
            makers[f"{number}_rounds_{name.partition('/')[0]}"] = partial(rounds, name)
    makers[f"{numbers.appendix}_profiles"] = profiles
    return makers


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table of the study, by name.

    Args:
      frame: a results table of the study, of one env.

    Warns:
      UserWarning: a table is left out, for a part of a study is not enough for it.

    Raises:
      ResultsError: there are several envs, or no rows.
    """
    if _kind_of(frame) is Kind.CURVES:
        return dict(
            _possible(
                {
                    f"returns_{TRAIN}": lambda: returns(frame),
                    f"paired_vs_{BASELINE}_{TRAIN}": lambda: paired_tests(earned(frame), BASELINE),
                }
            )
        )
    points = cache(partial(_points, frame))
    makers = [_makers(frame, metric, points) for metric in RETURNS]
    return dict(_possible({name: make for each in makers for name, make in each.items()}))


def _kind_of(frame: pd.DataFrame) -> Kind:
    """What kind of env the only one of a table is."""
    if len(kinds := list(by_kind(frame))) > 1:
        envs = ", ".join(sorted(frame["env"].unique()))
        raise ResultsError(f"tables are of one env, not {envs}; select one")
    return kinds[0]


def _makers(
    frame: pd.DataFrame, metric: str, points: Callable[[], pd.DataFrame]
) -> Makers[pd.DataFrame]:
    """What makes the tables of a return; `points` are those of all its metrics."""
    metrics = metrics_of(frame)
    last = cache(partial(final, frame, metric))
    each: dict[str, Callable[[], pd.DataFrame]] = {
        "returns": lambda: returns(frame, metric),
        # As the paper has them: changes averaged over all rounds, seeds unpaired.
        "t_tests": lambda: t_tests(scores(frame, metric), CONTROL),
        "paired_vs_reset_all": lambda: paired_tests(last(), CONTROL),
        "paired_vs_warm_start": lambda: paired_tests(last(), BASELINE),
        "interquartile_means": lambda: aggregates(last()),
        "improvement_over_warm_start": lambda: probability_of_improvement(last()),
        "correlations": lambda: correlations(points(), metric, metrics),
        "linear_model": lambda: linear_model(points(), metric, metrics),
    }
    return {f"{name}_{metric}": make for name, make in each.items()}


def returns(frame: pd.DataFrame, metric: str = TRAIN) -> pd.DataFrame:
    """What methods come to, as it is, and not as a change since the first round.

    A method with a poor first round gains by its change alone; here it does not. Where nothing
    shifts, the last tenth of training stands for the last three rounds, and the first for the
    first.

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
        if _kind_of(some) is Kind.CURVES:
            first, ends = (earned(some, metric, tenth) for tenth in (1, TENTHS))
        else:
            ends = scores(some, metric, rounds=rounds[-LAST:], normalized=False)
            first = scores(some, metric, rounds=rounds[:1], normalized=False)
        names = order(some)
        wide = ends.pivot(index="seed", columns="intervention", values="score")
        wide = wide.reindex(columns=names)
        for name in names:
            begun = first.loc[first["intervention"] == name, "score"].mean()
            gain = (
                t_interval(wide[name] - wide[BASELINE])
                if BASELINE in wide and name != BASELINE
                else (np.nan, np.nan, np.nan)
            )
            count = int(wide[name].count())
            rows.append((*keys, name, count, *t_interval(wide[name]), begun, *gain))
    columns = ["seeds", "value", "low", "high", "first", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=[*SETTING, "intervention", *columns])


def final(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The study's normalised return at the end of the last round, for each seed."""
    return scores(frame, metric, rounds=[int(frame["round"].max())])


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    points = metric_points(frame, RETURNS[0], metrics_of(frame))
    test = metric_points(frame, RETURNS[1], [])
    return points.merge(test, on=["env", "shift", "intervention"])


def _possible(makers: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
    """What can be made of results, by name, with a warning of what cannot."""
    for name, make in makers.items():
        try:
            yield name, make()
        except ResultsError as error:
            warnings.warn(f"{name}: left out, {error}", stacklevel=3)
