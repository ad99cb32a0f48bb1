"""The figures of a study: several shifts side by side, every method of it.

Each function takes a data frame and returns a figure. What it shows, as numbers, is what
`values_by_round`, `scores` or `metric_points` gave it, or rows of the results table.
"""

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plasticity.results.comparisons import correlations
from plasticity.results.plots import (
    METRIC_NAMES,
    STYLE,
    count_seeds,
    curve,
    finish,
    learning_curve,
    line_styles,
    lines_by_round,
    new_figure,
    readable,
)
from plasticity.results.statistics import REFERENCES, SHIFTS, bootstrap_mean, order
from plasticity.storage.table import ResultsError

# Methods that share a column where all are shown by round. Any other has a column of its own kind.
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "At shifts": ("reset_final", "plasticity_injection", "shrink_perturb"),
        "While learning": ("soft_shrink_perturb", "regenerative_l2", "l2_norm", "redo"),
        "Architecture": ("layer_norm", "crelu"),
        "Both": ("soft_shrink_perturb+layer_norm", "regenerative_l2+layer_norm"),
    }
)


def warm_start_figure(frame: pd.DataFrame) -> Figure:
    """The baseline against the upper control: train and test return, by update and by round.

    Args:
      frame: a results table of one env and any number of shifts, which are its columns. The test
        return is left out where the table has none.

    Returns:
      The figure, with every seed as a thin line.

    Raises:
      ResultsError: neither `warm_start` nor `reset_all` is there.
    """
    pair = frame[frame["intervention"].isin(REFERENCES)]
    if pair.empty:
        raise ResultsError(f"none of {', '.join(REFERENCES)} is in the table")
    known = [m for m in ("train_return", "eval_test_return") if (pair["metric"] == m).any()]
    shifts = shifts_of(pair)
    rows = [(metric, by) for by in ("update", "round") for metric in known]
    with plt.rc_context(STYLE):
        figure = new_figure((3.3 * len(shifts) + 0.4, 2.1 * len(rows) + 0.9))
        axes = figure.subplots(len(rows), len(shifts), squeeze=False, sharey="row")
        for (metric, by), line in zip(rows, axes, strict=True):
            for shift, ax in zip(shifts, line, strict=True):
                part = pair[pair["shift"] == shift]
                if by == "update":
                    curve(part, metric, ax=ax)
                else:
                    lines_by_round(part, metric, ax=ax, how="last")
                    ax.set_xlabel("Round (its end)")
        _title_columns(axes, shifts)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title=_of_bands(pair),
        )
    return figure


def correlation_figure(
    points: pd.DataFrame, metrics: Sequence[str], targets: Sequence[str] = ("train_return",)
) -> Figure:
    """How the change of each metric goes with that of each return, over shifts and methods.

    Args:
      points: a row for each shift and intervention, as `metric_points` gives them, with columns
        for all metrics and targets.
      metrics: the columns of panels.
      targets: the rows of panels.

    Returns:
      The figure: a point for each method and shift, the shifts by their markers, and the
      least-squares line with its R squared and p, in bold if that is below 0.05 when corrected for
      the number of metrics.
    """
    names = order(points)
    styles, shifts = line_styles(names), shifts_of(points)
    # Colours come again with other dashes; without lines, they do as rings.
    faces = {
        name: style.color if style.linestyle == "-" or name in REFERENCES else "none"
        for name, style in styles.items()
    }
    marks = dict(zip(shifts, "osD^vPX", strict=False))
    with plt.rc_context(STYLE):
        figure = new_figure((2.3 * len(metrics) + 0.4, 2.4 * len(targets) + 1.5))
        axes = figure.subplots(len(targets), len(metrics), squeeze=False, sharex="col")
        for target, line in zip(targets, axes, strict=True):
            table = correlations(points, target, metrics).set_index("metric")
            for metric, ax in zip(metrics, line, strict=True):
                for (shift, name), some in points.groupby(["shift", "intervention"]):
                    ax.plot(
                        some[metric],
                        some[target],
                        marks.get(shift, "o"),
                        color=styles[name].color,
                        markerfacecolor=faces[name],
                        markersize=4.5,
                        label=f"_{name} {shift}",
                    )
                found = table.loc[metric]
                x = np.array([points[metric].min(), points[metric].max()])
                ax.plot(x, found["intercept"] + found["slope"] * x, "--", color="#555555", lw=1)
                p = f"p = {found['p']:.3f}" if found["p"] >= 0.001 else "p < 0.001"
                ax.set_title(
                    f"R² = {found['r_squared']:.2f}, {p}" if found["p"] >= 0 else "too few points",
                    fontweight="bold" if found["p_corrected"] < 0.05 else "normal",
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


def intervals_figure(scores: pd.DataFrame) -> Figure:
    """What every method comes to: a mean, its 95 % bootstrap interval, and every seed.

    Args:
      scores: as `scores` gives them, with a column `metric` besides, whose values are the rows of
        panels; the columns are shifts.

    Returns:
      The figure, with lines at zero and at the mean of the upper control.
    """
    names = order(scores)
    styles, shifts, metrics = line_styles(names), shifts_of(scores), list(scores["metric"].unique())
    height = 0.22 * len(names) + 0.6
    with plt.rc_context(STYLE):
        figure = new_figure((2.6 * len(shifts) + 1.8, height * len(metrics) + 0.5))
        axes = figure.subplots(len(metrics), len(shifts), squeeze=False, sharey=True, sharex="row")
        for metric, line in zip(metrics, axes, strict=True):
            for shift, ax in zip(shifts, line, strict=True):
                here = scores[(scores["metric"] == metric) & (scores["shift"] == shift)]
                ax.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0, label="_zero")
                control = here.loc[here["intervention"] == REFERENCES[1], "score"].mean()
                if np.isfinite(control):
                    ax.axvline(control, color="#858585", lw=0.8, ls=":", zorder=0, label="_control")
                for place, name in enumerate(names):
                    own = here.loc[here["intervention"] == name, "score"].dropna()
                    if own.empty:
                        continue
                    mean, low, high = bootstrap_mean(own)
                    color = styles[name].color
                    seeds = np.full(len(own), place)
                    ax.plot(own, seeds, "|", color=color, alpha=0.45, ms=6, label=f"_{name} seeds")
                    ax.plot([low, high], [place, place], color=color, lw=3, alpha=0.5)
                    ax.plot(mean, place, styles[name].marker, color=color, mec="white", ms=6)
                ax.set_yticks(range(len(names)), [readable(name) for name in names])
                finish(ax)
                ax.set_xlabel(f"Change of {_name(metric).lower()}")
        axes[0, 0].invert_yaxis()  # Shared by all.
        _title_columns(axes, shifts)
        seeds_of = count_seeds(scores.dropna())
        figure.suptitle(
            f"Mean (marker), 95 % bootstrap interval (bar), {seeds_of} (ticks); dotted: reset all",
            fontsize=9,
            fontweight="normal",
        )
    return figure


def rounds_figure(frame: pd.DataFrame, metric: str, layer: str = "all") -> Figure:
    """A metric at the end of each round for every method, a column for each of `FAMILIES`.

    Args:
      frame: a results table of one env; its shifts are the rows.
      metric: which.
      layer: `"all"` for the aggregate over layers, or the name of one.

    Returns:
      The figure; the two references are in every panel.

    Raises:
      ResultsError: the table lacks the metric or layer.
    """
    shifts, names = shifts_of(frame), order(frame)
    families = [(title, [n for n in some if n in names]) for title, some in FAMILIES.items()]
    known = {*REFERENCES, *(name for some in FAMILIES.values() for name in some)}
    families.append(("Others", [name for name in names if name not in known]))
    shown = [(title, some) for title, some in families if some] or [("", [])]
    with plt.rc_context(STYLE):
        figure = new_figure((2.5 * len(shown) + 0.5, 2.2 * len(shifts) + 1.3))
        axes = figure.subplots(len(shifts), len(shown), squeeze=False, sharey="row", sharex=True)
        legend: dict[str, Line2D] = {}
        for shift, line in zip(shifts, axes, strict=True):
            for (title, some), ax in zip(shown, line, strict=True):
                wanted = (frame["shift"] == shift) & frame["intervention"].isin(
                    [*REFERENCES, *some]
                )
                lines_by_round(frame[wanted], metric, layer, ax=ax, how="last")
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
            title=_of_bands(frame),
        )
    return figure


def learning_figure(frame: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Learning curves: metrics by environment step, a panel for each, every method in it.

    Args:
      frame: a results table of one env and shift.
      metrics: which.

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
            title=_of_bands(frame),
        )
    return figure


def profiles_figure(profiles: pd.DataFrame, score: str = "Score") -> Figure:
    """Performance profiles: the share of runs above each score, with bootstrap bands.

    Args:
      profiles: as `performance_profiles` gives them.
      score: what the score is, for the axis.

    Returns:
      The figure.
    """
    names = order(profiles)
    styles = line_styles(names)
    with plt.rc_context(STYLE):
        figure = new_figure((7, 4.8))
        ax: Axes = figure.add_subplot()
        for name in names:
            own = profiles[profiles["intervention"] == name]
            style = styles[name]
            x = own["threshold"]
            ax.fill_between(
                x, own["low"], own["high"], color=style.color, alpha=0.07, lw=0, label=f"_{name}"
            )
            ax.plot(
                x,
                own["value"],
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
    """Levels of a gridworld, as pictures.

    Args:
      levels: of each, walls [H, W] and objects [H, W]: 1 a gem, -1 a pit.
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


def shifts_of(frame: pd.DataFrame) -> list[str]:
    """The shifts of a table: those of the study first and in its order, then any other."""
    found = set(frame["shift"].unique())
    return [*(s for s in SHIFTS if s in found), *sorted(found.difference(SHIFTS))]


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


def _of_bands(frame: pd.DataFrame) -> str:
    return (
        f"Mean over {count_seeds(frame)}, with 95 % bootstrap interval (band) and each seed (thin)"
    )
