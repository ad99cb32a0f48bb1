"""The figures and tables of Juliani & Ash (2024).

"A Study of Plasticity Loss in On-Policy Deep Reinforcement Learning": from a results table of its
methods, under its shifts in the gridworld and in CoinRun, and over time in Montezuma's Revenge. Its
claims are in `claims.py`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.juliani_ash_2024.claims import (
    LAST,
    TENTHS,
    TEST,
    TRAIN,
    dead_units,
    return_in_tenth,
)
from experiments.juliani_ash_2024.parts import (
    BASELINE,
    CONTROL,
    CORRELATED,
    SHIFTS,
    StudyPart,
    split_by_part,
)
from plasticity.results import (
    CONDITION,
    LEARNING_CURVE_BINS,
    ResultsError,
    aggregates,
    baseline_figure,
    bin_by_steps,
    correlation_figure,
    correlations,
    end_of_rounds,
    intervals_figure,
    intervention_order,
    iqm_over_time,
    learning_figure,
    linear_model,
    metric_points,
    paired_tests,
    performance_profiles,
    probability_of_improvement,
    profiles_figure,
    rounds_figure,
    sample_efficiency_figure,
    scores,
    t_interval,
    t_tests,
    transfer_metrics,
    within_round,
    within_round_figure,
)

RETURNS = (TRAIN, TEST)
INTRINSIC = "intrinsic_return"  # of Random Network Distillation (RND)

# The columns of the figures by round.
GROUPS = {
    "At shifts": ("reset_final", "plasticity_injection", "shrink_perturb"),
    "While learning": ("soft_shrink_perturb", "regenerative_l2", "l2_norm", "redo", "redo_study"),
    "Architecture": ("layer_norm", "crelu"),
    "Both": ("soft_shrink_perturb+layer_norm", "regenerative_l2+layer_norm"),
}

T = TypeVar("T")
Makers = dict[str, Callable[[], T]]


class StudyFigure(NamedTuple):
    """A figure of the study.

    Attributes:
      name: the name of its files.
      figure: the figure.
      data: the values that it shows.
    """

    name: str
    figure: Figure
    data: pd.DataFrame


class Numbers(NamedTuple):
    """Prefixes of the figures' names: their numbers in the paper, and A for its appendix."""

    baseline: str = "2"
    correlations: str = "3"
    intervals: str = "4"
    rounds: str = "5"
    appendix: str = "A"


# CoinRun's are one figure in the paper.
NUMBERS = {StudyPart.GRIDWORLD: Numbers(), StudyPart.COINRUN: Numbers("6", "6", "6", "6", "6")}


def metrics_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Returns the paper's metrics: names, or `metric/layer` for one layer.

    Policy entropy, weight magnitude, weight difference, gradient norm and dead units.

    Args:
      frame: a results table of one env.
    """
    return "policy_entropy", "weight_rms", "update_size", "gradient_norm", dead_units(frame)


def figures(frame: pd.DataFrame) -> Iterator[StudyFigure]:
    """Draws every figure of the study that results allow, named by its number in the paper.

    Args:
      frame: a results table of the study, of one env or several.

    Warns:
      UserWarning: a figure is left out because the results do not suffice for it.

    Raises:
      ResultsError: several envs are of the same part of the study, or there are no rows.
    """
    for part, rows in split_by_part(frame).items():
        makers = _over_time(rows) if part is StudyPart.CURVES else _by_round(rows, NUMBERS[part])
        for name, (figure, data) in _possible(makers):
            yield StudyFigure(name, figure, data)


def _over_time(frame: pd.DataFrame) -> Makers[tuple[Figure, pd.DataFrame]]:
    """Returns the maker of the figure of an env without shifts."""
    metrics = [TRAIN, INTRINSIC] if (frame["metric"] == INTRINSIC).any() else [TRAIN]

    def learning() -> tuple[Figure, pd.DataFrame]:
        curves = [
            bin_by_steps(frame, one, LEARNING_CURVE_BINS).assign(metric=one) for one in metrics
        ]
        return learning_figure(frame, metrics), pd.concat(curves, ignore_index=True)

    return {"7_learning": learning}


def _by_round(frame: pd.DataFrame, numbers: Numbers) -> Makers[tuple[Figure, pd.DataFrame]]:
    """Returns the makers of the figures of an env with shifts."""
    metrics, shifts = metrics_of(frame), order_shifts(frame)
    pair = frame["intervention"].isin([BASELINE, CONTROL])
    returned = frame["metric"].isin([*RETURNS, "episodes"]) & (frame["layer"] == "all")

    def baseline() -> tuple[Figure, pd.DataFrame]:
        figure = baseline_figure(frame, BASELINE, CONTROL, shifts=shifts)
        return figure, frame[pair & returned]

    def correlation() -> tuple[Figure, pd.DataFrame]:
        points = _points(frame)
        return correlation_figure(points, metrics, RETURNS, shifts=shifts), points

    def intervals() -> tuple[Figure, pd.DataFrame]:
        last = pd.concat(
            [final(frame, metric).assign(metric=metric) for metric in RETURNS], ignore_index=True
        )
        return intervals_figure(last, shifts=shifts), last

    def rounds(name: str) -> tuple[Figure, pd.DataFrame]:
        metric, _, layer = name.partition("/")
        arguments = (frame, metric, layer or "all")
        figure = rounds_figure(*arguments, groups=GROUPS, shifts=shifts)
        return figure, end_of_rounds(*arguments)

    def profiles() -> tuple[Figure, pd.DataFrame]:
        last = final(frame, TRAIN)
        thresholds = np.linspace(last["score"].min(), last["score"].max(), 41)
        data = performance_profiles(last, thresholds)
        return profiles_figure(data, "Change of the train return since round 1"), data

    def sample_efficiency() -> tuple[Figure, pd.DataFrame]:
        data = [
            iqm_over_time(frame[frame["shift"] == shift], TRAIN).assign(shift=shift)
            for shift in shifts
        ]
        figure = sample_efficiency_figure(frame, groups=GROUPS, shifts=shifts)
        return figure, pd.concat(data, ignore_index=True)

    def in_rounds(shift: str) -> tuple[Figure, pd.DataFrame]:
        rows = frame[frame["shift"] == shift]
        return within_round_figure(rows, last=LAST), within_round(rows, TRAIN, last=LAST)

    makers: Makers[tuple[Figure, pd.DataFrame]] = {
        f"{numbers.baseline}_{BASELINE}": baseline,
        f"{numbers.correlations}_correlations": correlation,
        f"{numbers.intervals}_intervals": intervals,
    }
    for number, names in ((numbers.rounds, RETURNS), (numbers.appendix, metrics)):
        for name in names:
            makers[f"{number}_rounds_{name.partition('/')[0]}"] = partial(rounds, name)
    makers[f"{numbers.appendix}_profiles"] = profiles
    makers[f"{numbers.appendix}_sample_efficiency"] = sample_efficiency
    for shift in shifts:
        makers[f"{numbers.appendix}_within_round_{shift}"] = partial(in_rounds, shift)
    return makers


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Computes every table of the study, by name.

    Args:
      frame: a results table of the study, of one env.

    Warns:
      UserWarning: a table is left out because the results do not suffice for it.

    Raises:
      ResultsError: there are several envs, or no rows.
    """
    if _part_of(frame) is StudyPart.CURVES:
        return dict(
            _possible(
                {
                    f"returns_{TRAIN}": lambda: returns(frame),
                    f"paired_vs_{BASELINE}_{TRAIN}": lambda: paired_tests(
                        return_in_tenth(frame), BASELINE
                    ),
                }
            )
        )
    points = cache(partial(_points, frame))
    makers: Makers[pd.DataFrame] = {"transfer": lambda: transfer_metrics(frame)}
    for metric in RETURNS:
        makers |= _table_makers(frame, metric, points)
    return dict(_possible(makers))


def _part_of(frame: pd.DataFrame) -> StudyPart:
    """Returns the part of the study that a table of one env belongs to."""
    if len(parts := list(split_by_part(frame))) > 1:
        envs = ", ".join(sorted(frame["env"].unique()))
        raise ResultsError(f"tables are of one env, not {envs}; select one")
    return parts[0]


def _table_makers(
    frame: pd.DataFrame, metric: str, points: Callable[[], pd.DataFrame]
) -> Makers[pd.DataFrame]:
    """Returns the makers of the tables of a return; `points` computes those of all metrics."""
    metrics = metrics_of(frame)
    last = cache(partial(final, frame, metric))
    makers: Makers[pd.DataFrame] = {
        "returns": lambda: returns(frame, metric),
        # As in the paper: changes averaged over all rounds, seeds unpaired.
        "t_tests": lambda: t_tests(scores(frame, metric), CONTROL),
        "paired_vs_reset_all": lambda: paired_tests(last(), CONTROL),
        "paired_vs_warm_start": lambda: paired_tests(last(), BASELINE),
        "interquartile_means": lambda: aggregates(last()),
        "improvement_over_warm_start": lambda: probability_of_improvement(last()),
        "correlations": lambda: correlations(points(), metric, metrics),
        "linear_model": lambda: linear_model(points(), metric, metrics),
    }
    return {f"{name}_{metric}": make for name, make in makers.items()}


def returns(frame: pd.DataFrame, metric: str = TRAIN) -> pd.DataFrame:
    """Computes the returns of methods, not normalized by the first round.

    A poor first round raises a method's normalized return; it does not raise this one. Without
    shifts, the last tenth of training is used in place of the last three rounds, and the first
    tenth in place of the first round.

    Args:
      frame: a results table of the study.
      metric: a return.

    Returns:
      A row for each env, shift and intervention: seeds; value, low and high, the mean over the
      ends of the last three rounds with its 95 % t-interval; first, the mean at the end of
      the first; and gain, gain_low and gain_high, value minus that of `warm_start`, paired by
      seed.
    """
    rows = []
    for keys, group in frame.groupby(CONDITION, sort=False):
        rounds = sorted(group["round"].unique())
        if _part_of(group) is StudyPart.CURVES:
            first, ends = (return_in_tenth(group, metric, tenth) for tenth in (1, TENTHS))
        else:
            ends = scores(group, metric, rounds=rounds[-LAST:], normalized=False)
            first = scores(group, metric, rounds=rounds[:1], normalized=False)
        names = intervention_order(group)
        wide = ends.pivot(index="seed", columns="intervention", values="score")
        wide = wide.reindex(columns=names)
        for name in names:
            first_mean = first.loc[first["intervention"] == name, "score"].mean()
            gain = (
                t_interval(wide[name] - wide[BASELINE])
                if BASELINE in wide and name != BASELINE
                else (np.nan, np.nan, np.nan)
            )
            count = int(wide[name].count())
            rows.append((*keys, name, count, *t_interval(wide[name]), first_mean, *gain))
    columns = ["seeds", "value", "low", "high", "first", "gain", "gain_low", "gain_high"]
    return pd.DataFrame(rows, columns=[*CONDITION, "intervention", *columns])


def final(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Computes the normalized return at the end of the last round, for each seed."""
    return scores(frame, metric, rounds=[int(frame["round"].max())])


def order_shifts(frame: pd.DataFrame) -> list[str]:
    """Returns the shifts of a table: the study's in the paper's order, then any others."""
    known = set(frame["shift"].unique())
    return [*(shift for shift in SHIFTS if shift in known), *sorted(known.difference(SHIFTS))]


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """Computes the points of the correlations, of the methods that the paper has in them.

    Raises:
      ResultsError: there are none, or a metric is not in the table.
    """
    metrics = metrics_of(frame)
    frame = frame[frame["intervention"].isin(CORRELATED)]
    if frame.empty:
        raise ResultsError(f"no points; expected one of {', '.join(CORRELATED)}")
    points = metric_points(frame, RETURNS[0], metrics)
    test = metric_points(frame, RETURNS[1], [])
    return points.merge(test, on=["env", "shift", "intervention"])


def _possible(makers: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
    """Makes everything that results allow, by name, with a warning of what they do not."""
    for name, make in makers.items():
        try:
            yield name, make()
        except ResultsError as error:
            warnings.warn(f"{name}: left out, {error}", stacklevel=3)
