"""Figures of experiments with several shifts, side by side.

Each function takes a data frame and returns a figure: a results table, or the values returned by
`scores`, `metric_points` or `performance_profiles`.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plasticity.results.arguments import check_known, checked, each, frame_with
from plasticity.results.comparisons import correlations
from plasticity.results.plots import (
    METRIC_NAMES,
    STYLE,
    count_seeds,
    curve,
    finish,
    iqm_curve,
    learning_curve,
    line_styles,
    lines_by_round,
    marker_face,
    new_figure,
    readable,
)
from plasticity.results.statistics import (
    BASELINE,
    CONTROL,
    REFERENCES,
    bootstrap_mean,
    intervention_order,
)
from plasticity.storage.table import ResultsError
from plasticity.struct import Range

__all__ = [
    "baseline_figure",
    "correlation_figure",
    "intervals_figure",
    "learning_figure",
    "levels_figure",
    "profiles_figure",
    "rounds_figure",
    "sample_efficiency_figure",
]


@checked()
def baseline_figure(
    frame: pd.DataFrame,
    baseline: str = BASELINE,
    control: str = CONTROL,
    *,
    shifts: Sequence[str] | None = None,
) -> Figure:
    """Plots the baseline and the upper control: train and test return, by update and by round.

    Args:
      frame: a results table of one env. The test return is left out if the table has none.
      baseline: the name of the baseline; by default `warm_start`, that of runs without
        interventions.
      control: the name of the upper control; by default `reset_all`.
      shifts: the columns of panels; all shifts, sorted, if not given.

    Returns:
      The figure, with every seed as a thin line.

    Raises:
      ResultsError: the table has neither of the two.
    """
    references = (baseline, control)
    pair = frame[frame["intervention"].isin(references)]
    if pair.empty:
        raise ResultsError(f"none of {', '.join(references)} is in the table")
    known = [m for m in ("train_return", "eval_test_return") if (pair["metric"] == m).any()]
    shifts = [shift for shift in _shifts(frame, shifts) if (pair["shift"] == shift).any()]
    rows = [(metric, by) for by in ("update", "round") for metric in known]
    with plt.rc_context(STYLE):
        figure = new_figure((3.3 * len(shifts) + 0.4, 2.1 * len(rows) + 0.9))
        axes = figure.subplots(len(rows), len(shifts), squeeze=False, sharey="row")
        for (metric, by), line in zip(rows, axes, strict=True):
            for shift, ax in zip(shifts, line, strict=True):
                part = pair[pair["shift"] == shift]
                if by == "update":
                    curve(part, metric, ax=ax, references=references)
                else:
                    lines_by_round(part, metric, ax=ax, how="last", references=references)
                    ax.set_xlabel("Round (its end)")
        _title_columns(axes, shifts)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title=_legend_title(pair),
        )
    return figure


@checked(metrics=each(Range(str), 1))
def correlation_figure(
    points: pd.DataFrame,
    metrics: Sequence[str],
    targets: Sequence[str] = ("train_return",),
    *,
    shifts: Sequence[str] | None = None,
    references: Sequence[str] = REFERENCES,
) -> Figure:
    """Plots the change of each return against the change of each metric, with correlations.

    Args:
      points: a row for each shift and intervention, as returned by `metric_points`, with columns
        for all metrics and targets.
      metrics: the columns of panels.
      targets: the rows of panels.
      shifts: in the order of their markers; all, sorted, if not given.
      references: interventions that come first in the legend; by default `warm_start` and
        `reset_all`.

    Returns:
      The figure: a point for each intervention and shift, with a marker for each shift, and the
      least-squares line with its R squared and p, in bold if the latter is below 0.05 when
      corrected for the number of metrics.
    """
    names, shifts = intervention_order(points, references), _shifts(points, shifts)
    styles = line_styles(names, references)
    faces = {name: marker_face(style) for name, style in styles.items()}
    marks = dict(zip(shifts, "osD^vPX", strict=False))
    with plt.rc_context(STYLE):
        figure = new_figure((2.3 * len(metrics) + 0.4, 2.4 * len(targets) + 1.5))
        axes = figure.subplots(len(targets), len(metrics), squeeze=False, sharex="col")
        for target, line in zip(targets, axes, strict=True):
            table = correlations(points, target, metrics).set_index("metric")
            for metric, ax in zip(metrics, line, strict=True):
                for (shift, name), point in points.groupby(["shift", "intervention"]):
                    ax.plot(
                        point[metric],
                        point[target],
                        marks.get(shift, "o"),
                        color=styles[name].color,
                        markerfacecolor=faces[name],
                        markersize=4.5,
                        label=f"_{name} {shift}",
                    )
                fit = table.loc[metric]
                x = np.array([points[metric].min(), points[metric].max()])
                ax.plot(x, fit["intercept"] + fit["slope"] * x, "--", color="#555555", lw=1)
                p = f"p = {fit['p']:.3f}" if fit["p"] >= 0.001 else "p < 0.001"
                ax.set_title(
                    f"R² = {fit['r_squared']:.2f}, {p}" if fit["p"] >= 0 else "too few points",
                    fontweight="bold" if fit["p_corrected"] < 0.05 else "normal",
                )
                finish(ax)
                if target == targets[-1]:
                    ax.set_xlabel(f"Change of\n{textwrap.fill(_name(metric), 24)}")
            line[0].set_ylabel(f"Change of\n{_name(target)}")
        figure.legend(
            handles=[
                Line2D(
                    [],
                    [],
                    linestyle="",
                    marker="o",
                    color=styles[name].color,
                    markerfacecolor=faces[name],
                    label=readable(name),
                )
                for name in names
            ],
            loc="outside lower center",
            ncols=min(5, len(metrics)),
        )
        figure.legend(
            handles=[
                Line2D([], [], linestyle="", marker=marks[s], color="#555555", label=readable(s))
                for s in shifts
                if s in marks
            ],
            loc="outside upper center",
            ncols=len(shifts),
        )
    return figure


@checked(scores=frame_with(("env", "shift", "intervention", "seed", "metric", "score")))
def intervals_figure(
    scores: pd.DataFrame,
    *,
    shifts: Sequence[str] | None = None,
    baseline: str = BASELINE,
    control: str = CONTROL,
) -> Figure:
    """Plots the score of every intervention: mean, 95 % bootstrap interval, and every seed.

    Args:
      scores: as returned by `scores`, with a column `metric` besides, whose values are the rows of
        panels.
      shifts: the columns of panels; all shifts, sorted, if not given.
      baseline: the intervention in the first line; by default `warm_start`.
      control: the upper control, in the second line; by default `reset_all`.

    Returns:
      The figure, with vertical lines at zero and at the mean of the control.
    """
    references = (baseline, control)
    names, shifts = intervention_order(scores, references), _shifts(scores, shifts)
    styles, metrics = line_styles(names, references), list(scores["metric"].unique())
    height = 0.22 * len(names) + 0.6
    with plt.rc_context(STYLE):
        figure = new_figure((2.6 * len(shifts) + 1.8, height * len(metrics) + 0.5))
        axes = figure.subplots(len(metrics), len(shifts), squeeze=False, sharey=True, sharex="row")
        for metric, line in zip(metrics, axes, strict=True):
            for shift, ax in zip(shifts, line, strict=True):
                panel = scores[(scores["metric"] == metric) & (scores["shift"] == shift)]
                ax.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0, label="_zero")
                level = panel.loc[panel["intervention"] == control, "score"].mean()
                if np.isfinite(level):
                    ax.axvline(level, color="#858585", lw=0.8, ls=":", zorder=0, label="_control")
                for y, name in enumerate(names):
                    values = panel.loc[panel["intervention"] == name, "score"].dropna()
                    if values.empty:
                        continue
                    mean, low, high = bootstrap_mean(values)
                    color = styles[name].color
                    ys = np.full(len(values), y)
                    ax.plot(values, ys, "|", color=color, alpha=0.45, ms=6, label=f"_{name} seeds")
                    ax.plot([low, high], [y, y], color=color, lw=3, alpha=0.5)
                    ax.plot(mean, y, styles[name].marker, color=color, mec="white", ms=6)
                ax.set_yticks(range(len(names)), [readable(name) for name in names])
                finish(ax)
                ax.set_xlabel(f"Change of {_name(metric).lower()}")
        axes[0, 0].invert_yaxis()  # Shared by all.
        _title_columns(axes, shifts)
        seeds = count_seeds(scores.dropna())
        figure.suptitle(
            f"Mean (marker), 95 % bootstrap interval (bar), {seeds} (ticks); "
            f"dotted: {readable(control)}",
            fontsize=9,
            fontweight="normal",
        )
    return figure


@checked()
def rounds_figure(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    shifts: Sequence[str] | None = None,
    references: Sequence[str] = REFERENCES,
) -> Figure:
    """Plots a metric at the end of each round for every intervention.

    Args:
      frame: a results table of one env.
      metric: the metric to plot.
      layer: `"all"` for the aggregate over layers, or the name of one.
      groups: the columns of panels: the interventions of each, by its title. Interventions in no
        group have a column of their own; without groups all are in one column.
      shifts: the rows of panels; all shifts, sorted, if not given.
      references: interventions that are in every panel; by default `warm_start` and `reset_all`.

    Returns:
      The figure.

    Raises:
      ResultsError: the table lacks the metric or layer.
    """

    def draw(rows: pd.DataFrame, ax: Axes) -> None:
        lines_by_round(rows, metric, layer, ax=ax, how="last", references=references)

    return _grid(frame, draw, groups, shifts, references, (2.5, 2.2), _legend_title(frame))


@checked()
def sample_efficiency_figure(
    frame: pd.DataFrame,
    metric: str = "train_return",
    layer: str = "all",
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    shifts: Sequence[str] | None = None,
    references: Sequence[str] = REFERENCES,
) -> Figure:
    """Plots the interquartile mean of a metric by environment step: see `iqm_curve`.

    Args:
      frame: a results table of one env.
      metric: the metric to plot; by default the train return.
      layer: `"all"` for the aggregate over layers, or the name of one.
      groups: the columns of panels: the interventions of each, by its title. Interventions in no
        group have a column of their own; without groups all are in one column.
      shifts: the rows of panels; all shifts, sorted, if not given.
      references: interventions that are in every panel; by default `warm_start` and `reset_all`.

    Returns:
      The figure.

    Raises:
      ResultsError: the table lacks the metric or layer.
    """

    def draw(rows: pd.DataFrame, ax: Axes) -> None:
        iqm_curve(rows, metric, layer, ax=ax, references=references)

    size = (3.4, 2.2) if groups else (7.0, 2.6)
    title = f"Interquartile mean over {count_seeds(frame)}, with 95 % bootstrap interval (band)"
    return _grid(frame, draw, groups, shifts, references, size, title)


@checked(metrics=each(Range(str), 1))
def learning_figure(frame: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Plots learning curves of every intervention: a panel for each metric, by environment step.

    Args:
      frame: a results table of one env and shift.
      metrics: the panels.

    Returns:
      The figure, with every seed as a thin line.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks a metric.
    """
    with plt.rc_context(STYLE):
        figure = new_figure((4.6 * len(metrics) + 0.4, 4.2))
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for metric, ax in zip(metrics, axes, strict=True):
            learning_curve(frame, metric, ax=ax)
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            title=_legend_title(frame),
        )
    return figure


@checked()
def profiles_figure(profiles: pd.DataFrame, score: str = "Score") -> Figure:
    """Plots performance profiles: the fraction of runs above each score, with bootstrap bands.

    Args:
      profiles: as returned by `performance_profiles`.
      score: the label of the score's axis.

    Returns:
      The figure.
    """
    names = intervention_order(profiles)
    styles = line_styles(names)
    with plt.rc_context(STYLE):
        figure = new_figure((7, 4.8))
        ax: Axes = figure.add_subplot()
        for name in names:
            profile = profiles[profiles["intervention"] == name]
            style = styles[name]
            x = profile["threshold"]
            ax.fill_between(
                x,
                profile["low"],
                profile["high"],
                color=style.color,
                alpha=0.07,
                lw=0,
                label=f"_{name}",
            )
            ax.plot(
                x,
                profile["value"],
                color=style.color,
                linestyle=style.linestyle,
                marker=style.marker,
                markevery=max(1, len(x) // 8),
                label=readable(name),
            )
        ax.set(xlabel=score, ylabel="Share of runs above it", ylim=(-0.02, 1.02))
        finish(ax)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def levels_figure(
    levels: Sequence[tuple[np.ndarray, np.ndarray]], start: tuple[int, int]
) -> Figure:
    """Draws levels of a gridworld.

    Args:
      levels: walls [H, W] and objects [H, W] of each level; objects are 1 (gem), -1 (pit) or 0.
      start: row and column of the agent.

    Returns:
      The figure.
    """
    with plt.rc_context(STYLE):
        figure = new_figure((1.7 * len(levels) + 0.2, 2.2))
        for (walls, objects), ax in zip(
            levels, figure.subplots(1, len(levels), squeeze=False)[0], strict=True
        ):
            ax.imshow(np.asarray(walls), cmap="Greys", vmin=0, vmax=1.6)
            for sign, marker, color in ((1, "D", "#009E73"), (-1, "X", "#D55E00")):
                rows, columns = np.nonzero(np.sign(np.asarray(objects)) == sign)
                ax.plot(columns, rows, marker, color=color, ms=4.5, ls="")
            ax.plot(start[1], start[0], "o", color="#0072B2", ms=5.5)
            ax.set(xticks=[], yticks=[])
        figure.legend(
            handles=[
                Line2D([], [], ls="", marker=marker, color=color, label=label)
                for marker, color, label in (
                    ("o", "#0072B2", "agent"),
                    ("D", "#009E73", "gem"),
                    ("X", "#D55E00", "pit"),
                )
            ],
            loc="outside lower center",
            ncols=3,
        )
    return figure


def _grid(
    frame: pd.DataFrame,
    draw: Callable[[pd.DataFrame, Axes], None],
    groups: Mapping[str, Sequence[str]] | None,
    shifts: Sequence[str] | None,
    references: Sequence[str],
    panel_size: tuple[float, float],
    legend_title: str,
) -> Figure:
    """Draws a panel for each shift, by row, and group of interventions, by column.

    Args:
      frame: a results table of one env.
      draw: draws the rows of one panel into its axes.
      groups: as in `rounds_figure`.
      shifts: as in `rounds_figure`.
      references: as in `rounds_figure`.
      panel_size: width and height in inches.
      legend_title: the title of the legend.
    """
    shifts, names = _shifts(frame, shifts), intervention_order(frame, references)
    groups = groups or {}
    columns = [(title, [n for n in group if n in names]) for title, group in groups.items()]
    grouped = {*references, *(name for group in groups.values() for name in group)}
    rest = [name for name in names if name not in grouped]
    columns.append(("Others" if groups else "", rest))
    columns = [(title, group) for title, group in columns if group] or [("", [])]
    width, height = panel_size
    with plt.rc_context(STYLE):
        figure = new_figure((width * len(columns) + 0.5, height * len(shifts) + 1.3))
        axes = figure.subplots(len(shifts), len(columns), squeeze=False, sharey="row", sharex=True)
        legend: dict[str, Line2D] = {}
        for shift, line in zip(shifts, axes, strict=True):
            for (title, group), ax in zip(columns, line, strict=True):
                panel = frame["intervention"].isin([*references, *group])
                panel &= frame["shift"] == shift
                draw(frame[panel], ax)
                handles, labels = ax.get_legend_handles_labels()
                legend |= dict(zip(labels, handles, strict=True))
                if ax is not line[0]:
                    ax.set_ylabel("")
                if shift != shifts[-1]:
                    ax.set_xlabel("")
                if shift == shifts[0]:
                    ax.set_title(title)
            line[0].set_ylabel(f"{readable(shift).capitalize()}\n{line[0].get_ylabel()}")
        figure.legend(
            list(legend.values()),
            list(legend),
            loc="outside lower center",
            ncols=min(5, len(legend)),
            title=legend_title,
        )
    return figure


def _shifts(frame: pd.DataFrame, shifts: Sequence[str] | None) -> list[str]:
    """Returns the shifts given, or all those of a table, sorted.

    Raises:
      ResultsError: the table lacks one of them.
    """
    known = set(frame["shift"].unique())
    if shifts is None:
        return sorted(known)
    check_known("shifts", shifts, known)
    return list(shifts)


def _name(metric: str) -> str:
    name, _, layer = metric.partition("/")
    return METRIC_NAMES.get(name, readable(name).capitalize()) + (
        f", {readable(layer)}" if layer else ""
    )


def _title_columns(axes: np.ndarray, shifts: Sequence[str]) -> None:
    for shift, ax in zip(shifts, axes[0], strict=True):
        ax.set_title(readable(shift).capitalize(), fontweight="bold")
    for line in axes[:, 1:]:
        for ax in line:
            ax.set_ylabel("")


def _legend_title(frame: pd.DataFrame) -> str:
    return (
        f"Mean over {count_seeds(frame)}, with 95 % bootstrap interval (band) and each seed (thin)"
    )
