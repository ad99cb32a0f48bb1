"""Juliani & Ash (2024), "A Study of Plasticity Loss in On-Policy Deep Reinforcement Learning".

Its figures and tables, from a results table of its methods under its shifts. What it claims is in
`claims.py`.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from plasticity.results.claims import BASELINE, CONTROL, DEAD_UNITS, TEST, TRAIN
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
    """
    pair = frame["intervention"].isin([BASELINE, CONTROL])
    yield Drawn(
        "2_warm_start",
        warm_start_figure(frame),
        frame[pair & frame["metric"].isin([*RETURNS, "episodes"]) & (frame["layer"] == "all")],
    )
    points = _points(frame)
    yield Drawn("3_correlations", correlation_figure(points, METRICS, RETURNS), points)
    last = pd.concat(
        [final(frame, metric).assign(metric=metric) for metric in RETURNS], ignore_index=True
    )
    yield Drawn("4_intervals", intervals_figure(last), last)
    for number, names in (("5", RETURNS), ("A", METRICS)):
        for name in names:
            metric, _, layer = name.partition("/")
            of = (frame, metric, layer or "all")
            yield Drawn(f"{number}_rounds_{metric}", rounds_figure(*of), end_of_rounds(*of))
    train = last[last["metric"] == TRAIN]
    low, high = train["score"].min(), train["score"].max()
    profiles = performance_profiles(train, np.linspace(low, high, 41))
    yield Drawn(
        "A_profiles",
        profiles_figure(profiles, "Change of the train return since round 1"),
        profiles,
    )


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table of the study, by name; without those that a part of a study is not enough for.

    Args:
      frame: a results table of the study.

    Warns:
      UserWarning: a table is left out.
    """
    found: dict[str, pd.DataFrame] = {}
    points = _points(frame)
    for metric in RETURNS:
        last = final(frame, metric)
        makers: dict[str, Callable[[], pd.DataFrame]] = {
            # As the paper has them: changes averaged over all rounds, seeds unpaired.
            "t_tests": partial(t_tests, scores(frame, metric), CONTROL),
            "paired_vs_reset_all": partial(paired_tests, last, CONTROL),
            "paired_vs_warm_start": partial(paired_tests, last, BASELINE),
            "interquartile_means": partial(aggregates, last),
            "improvement_over_warm_start": partial(probability_of_improvement, last),
            "correlations": partial(correlations, points, metric, METRICS),
            "linear_model": partial(linear_model, points, metric, METRICS),
        }
        for name, make in makers.items():
            try:
                found[f"{name}_{metric}"] = make()
            except ResultsError as error:
                warnings.warn(f"{name}_{metric}: left out, {error}", stacklevel=2)
    return found


def final(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The study's normalised return at the end of the last round, for each seed."""
    return scores(frame, metric, rounds=[int(frame["round"].max())])


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    points = metric_points(frame, RETURNS[0], METRICS)
    test = metric_points(frame, RETURNS[1], [])
    return points.merge(test, on=["env", "shift", "intervention"])
