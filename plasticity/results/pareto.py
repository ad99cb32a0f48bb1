"""Speed against quality: what the variants of a network gain in time, and keep in return."""

import itertools
from collections.abc import Sequence

import matplotlib.ticker
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plasticity.results.arguments import checked, frame_with
from plasticity.results.comparisons import scores
from plasticity.results.plots import (
    STYLE,
    count_seeds,
    finish,
    line_styles,
    marker_face,
    new_figure,
    readable,
)
from plasticity.results.statistics import RETURN, Interval, single_condition, t_interval
from plasticity.storage.table import ResultsError

__all__ = ["pareto_figure", "pareto_scores", "pareto_table"]

_LOSS = "loss"
_SECONDS = "training_seconds"
_LABELS = {RETURN: "Train return at the end of rounds", _LOSS: "Loss of plasticity, return"}


@checked(frame=frame_with(("run",)))
def pareto_scores(frame: pd.DataFrame, last: int = 3) -> pd.DataFrame:
    """Computes the quality of each variant and seed, and its loss of plasticity.

    Args:
      frame: a results table of one env and shift, in which each run is a variant.
      last: the number of last rounds to average over; fewer if there are not so many after the
        first.

    Returns:
      A row for each variant and seed, with the columns variant, seed, train_return (the return at
      the ends of the last rounds) and loss (that at the end of the first round minus that). Seeds
      that diverged are NaN.

    Raises:
      ResultsError: there are several envs or shifts, or fewer than two rounds.
    """
    single_condition(frame)
    reached = int(frame.groupby(["run", "seed"])["round"].max().min())
    if reached < 2:
        raise ResultsError(f"rounds: {reached} reached by all runs; expected 2 or more for a loss")
    rounds = list(range(max(2, reached - last + 1), reached + 1))
    variants = frame.assign(intervention=frame["run"])
    quality, change = (
        scores(variants, RETURN, rounds=rounds, normalized=normalized)
        for normalized in (False, True)
    )
    columns = {"variant": quality["intervention"], "seed": quality["seed"]}
    columns |= {RETURN: quality["score"], _LOSS: -change["score"]}
    return pd.DataFrame(columns)


@checked()
def pareto_table(
    frame: pd.DataFrame, variants: pd.DataFrame, last: int = 3, confidence: float = 0.95
) -> pd.DataFrame:
    """Computes a row for each variant: its time, its quality and its loss of plasticity.

    Args:
      frame: as in `pareto_scores`.
      variants: a row for each variant, with its name, its number of pieces, and the seconds of its
        training in column training_seconds.
      last: as in `pareto_scores`.
      confidence: of the t-intervals over seeds.

    Returns:
      The columns of `variants`; speedup, the time of the variant with the fewest pieces over its
      own; then train_return and loss, each with _low and _high.

    Raises:
      ResultsError: see `pareto_scores`; or a variant has no time.
    """
    values = pareto_scores(frame, last)
    _check_times(values, variants)
    slowest = variants.loc[variants["pieces"].idxmin(), _SECONDS]
    rows = []
    for name in variants["variant"]:
        seeds = values[values["variant"] == name]
        row: dict[str, float] = {}
        for column in (RETURN, _LOSS):
            interval = t_interval(seeds[column], confidence)
            row |= {column: interval.mean}
            row |= {f"{column}_low": interval.low, f"{column}_high": interval.high}
        rows.append(row)
    table = variants.reset_index(drop=True).assign(speedup=slowest / variants[_SECONDS].to_numpy())
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


@checked()
def pareto_figure(
    frame: pd.DataFrame,
    variants: pd.DataFrame,
    chain: Sequence[str] = (),
    last: int = 3,
    confidence: float = 0.95,
) -> Figure:
    """Plots return, and loss of plasticity, against the wall clock of training.

    Each variant has its mean over seeds with a t-interval, and a point for every seed. Up and left
    is better of the return, down and left of the loss.

    Args:
      frame: as in `pareto_scores`.
      variants: as in `pareto_table`.
      chain: variants that are joined by a line, in this order: those in which pieces are switched
        on one after another.
      last: as in `pareto_scores`.
      confidence: of the intervals.

    Raises:
      ResultsError: see `pareto_table`.
    """
    values = pareto_scores(frame, last)
    _check_times(values, variants)
    seconds = variants.set_index("variant")[_SECONDS]
    styles = line_styles(list(seconds.index), ())
    with plt.rc_context(STYLE):
        figure = new_figure((9.0, 4.6))
        for axes, column in zip(figure.subplots(1, 2), (RETURN, _LOSS), strict=True):
            means = {}
            for name, x in seconds.items():
                seeds = values.loc[values["variant"] == name, column].dropna()
                interval, style = t_interval(seeds, confidence), styles[str(name)]
                means[name] = (x, interval.mean)
                face = marker_face(style)
                axes.plot(
                    [x] * len(seeds),
                    seeds,
                    "o",
                    color=style.color,
                    markersize=3.5,
                    markerfacecolor="white",
                    zorder=3,
                )
                axes.errorbar(
                    *means[name],
                    yerr=_error(interval),
                    color=style.color,
                    marker=style.marker,
                    markerfacecolor=face,
                    linestyle="",
                    capsize=2.5,
                    label=readable(str(name)),
                )
            for before, after in itertools.pairwise(name for name in chain if name in means):
                points = zip(means[before], means[after], strict=True)
                axes.plot(*points, color="#B0B0B0", linewidth=0.9, zorder=0)
            axes.set(xlabel="Wall clock of training (s)", ylabel=_LABELS[column])
            axes.set_xscale("log")
            _label_seconds(axes)
            finish(axes)
        handles, labels = axes.get_legend_handles_labels()
        seeds = count_seeds(values.rename(columns={"variant": "intervention"}))
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=4,
            title=f"Mean over {seeds}, with {100 * confidence:g} % t-interval, and each seed",
        )
    return figure


def _check_times(values: pd.DataFrame, variants: pd.DataFrame) -> None:
    """Raises `ResultsError` if variants of the two tables differ."""
    measured, timed = set(values["variant"]), set(variants["variant"])
    if measured != timed:
        name = min(measured ^ timed)
        missing = "time" if name in measured else "return"
        raise ResultsError(f"variant {name}: has no {missing}; expected both of each variant")


def _error(interval: Interval) -> list[list[float]]:
    """Returns the lengths of an error bar, 0 where there is no interval."""
    ends = interval.mean - interval.low, interval.high - interval.mean
    return [[0.0 if pd.isna(end) else end] for end in ends]


def _label_seconds(axes: Axes) -> None:
    """Labels a logarithmic axis of less than a decade or two by plain numbers."""
    low, high = axes.get_xlim()
    if high < 10 * low:
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    else:
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
