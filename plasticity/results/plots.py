"""Plots of results: a mean line for each intervention, a confidence band, and every seed.

The line of a seed that diverges ends there; mean and band continue over the other seeds. The legend
and a warning report it.

The functions draw into the axes given, or into a new figure, and return the axes or figure. No
figure is displayed or stays registered with pyplot, so that drawing many does not leak memory.
"""

import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from plasticity.results.arguments import checked, each
from plasticity.results.curves import compute_iqm_over_time, rounds_of_parts, within_round
from plasticity.results.statistics import (
    REFERENCES,
    RETURN,
    base_name,
    bin_by_steps,
    bootstrap_mean,
    by_round,
    divergences,
    intervention_order,
    over_seeds,
    select,
    single_condition,
    warn_about_seeds,
)
from plasticity.results.transfer import past_returns
from plasticity.storage.table import ResultsError, concat, replacing
from plasticity.struct import Range

__all__ = [
    "LEARNING_CURVE_BINS",
    "METRIC_NAMES",
    "STYLE",
    "STYLES",
    "LineStyle",
    "curve",
    "iqm_curve",
    "learning_curve",
    "line_styles",
    "lines_by_round",
    "overview",
    "past_returns_figure",
    "save",
    "side_by_side",
    "within_round_figure",
]

STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.dpi": 110,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.xmargin": 0.03,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "plasticity",
}

METRIC_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "train_return": "Train return per episode",
        "eval_train_return": "Eval return, train task",
        "eval_test_return": "Eval return, test task",
        "eval_past_return": "Eval return, tasks of earlier rounds",
        "episodes": "Episodes that ended",
        "policy_loss": "Policy loss",
        "value_loss": "Value loss",
        "squared_error": "Squared error",
        "policy_entropy": "Policy entropy (nats)",
        "approx_kl": "Approximate KL (nats)",
        "clip_fraction": "Clipped (fraction)",
        "explained_variance": "Explained variance",
        "gradient_norm": "Gradient norm (L2)",  # before clipping
        "update_size": "Update size (RMS)",
        "dead_units": "Dead units (fraction)",
        "dormant_units": "Dormant units (fraction)",
        "inactive_fraction": "Inactive (fraction)",
        "weight_norm": "Weight norm (L2)",
        "weight_rms": "Weight RMS",
        "distance_from_init": "Distance from init (L2)",
        "effective_rank": "Effective rank",
        "stable_rank": "Stable rank",
        "srank": "Srank",
        "approximate_rank": "Approximate rank",
        "feature_rank": "Feature rank",
        "rollout_inactive_fraction": "Inactive on rollouts (fraction)",
        "saturated_units": "Saturated units (fraction)",
        "saturated_fraction": "Saturated (fraction)",
        "gradient_dormant_units": "Gradient-dormant units (fraction)",
        "distance_from_round_start": "Distance from round start (L2)",
        "spectral_norm": "Spectral norm",
        "gradient_cosine": "Gradient cosine",
        "gradient_covariance_rank": "Gradient covariance rank",
        "policy_kl": "Policy KL of an update (nats)",
        "policy_churn": "Policy churn (fraction)",
        "value_churn": "Value churn (RMS)",
        "critic_error": "Critic error (RMS)",
        "hessian_eigenvalue": "Top Hessian eigenvalue",
        "ntk_rank": "NTK rank",
        "trainability": "Loss on random targets",
        "capacity": "Loss on a random policy, or value",
        "feature_norm": "Feature norm (L2)",
        "feature_cosine": "Feature cosine",
        "linearized_units": "Linearized units (fraction)",
        "dormant_overlap": "Overlap of dormant units",
        "deviation_from_isometry": "Deviation from isometry",
        "ntk_condition_number": "NTK condition number",
        "ratio_beyond_clip": "Ratios beyond the clip (fraction)",
        "attention_entropy": "Attention entropy (nats)",
        "token_rank": "Effective rank of tokens",
        "closed_gates": "Closed gates (fraction)",
        "masked_modeling_loss": "Loss on masked tokens (MSE)",
        "gradient_steps": "Gradient steps of an update",
        "quantization_error": "Quantization error, 8 bits",
        "quantization_error_4bit": "Quantization error, 4 bits",
    }
)

# Fewer than the default: a band has an interval at every point, and plots show few digits.
BAND_RESAMPLES = 2_000

# The number of bins of a learning curve.
LEARNING_CURVE_BINS = 40

# The panels of the overview beside the return, where the table has them, and their layouts.
PANELS = ("dead_units", "weight_norm", "effective_rank", "gradient_norm", "eval_test_return")
LAYOUTS: Mapping[int, tuple[str, tuple[float, float]]] = MappingProxyType(
    {
        0: ("A", (6.0, 4.2)),
        1: ("AAB", (9.0, 3.8)),
        2: ("AAB;AAC", (9.0, 5.2)),
        3: ("AAA;AAA;BCD", (9.0, 6.8)),
        4: ("AABC;AADE", (11.0, 5.2)),
        5: ("AAB;AAC;DEF", (9.0, 7.0)),
    }
)


class LineStyle(NamedTuple):
    """The line style of an intervention, distinct in color, and in print without color."""

    color: str
    linestyle: str | tuple[float, tuple[float, ...]]
    marker: str


# Okabe & Ito (2008, "Color Universal Design"), without yellow, which is faint on white paper;
# black and gray are reserved for the references.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 1.2)), (0, (1, 1)))
_MARKERS = ("o", "^", "D", "v", "P", "X")
_SLOTS = tuple(
    LineStyle(color, dash, _MARKERS[(i + row) % len(_MARKERS)])
    for row, dash in enumerate(_DASHES)
    for i, color in enumerate(_COLORS)
)

# The first rounds and the last, overlaid.
PART_STYLES: Mapping[str, LineStyle] = MappingProxyType(
    {
        "first": LineStyle("#6E6E6E", (0, (4, 1.5)), ""),
        "last": LineStyle(_COLORS[1], "-", ""),
    }
)

# Fixed styles by intervention. Add to these to fix the style of your own intervention.
STYLES: dict[str, LineStyle] = {
    "warm_start": LineStyle("#222222", (0, (4, 1.5)), "s"),
    "reset_all": LineStyle("#858585", (0, (6, 1.5, 1, 1.5)), "d"),
    "shrink_perturb": _SLOTS[0],
    "layer_norm": _SLOTS[1],
    "regenerative_l2": _SLOTS[2],
    "soft_shrink_perturb": _SLOTS[3],
    "l2_norm": _SLOTS[4],
    "reset_final": _SLOTS[5],
    "soft_shrink_perturb+layer_norm": _SLOTS[6],
    "regenerative_l2+layer_norm": _SLOTS[7],
    "plasticity_injection": _SLOTS[8],
    "crelu": _SLOTS[9],
    "redo": _SLOTS[10],
    "redo_study": _SLOTS[11],
}


@checked()
def line_styles(
    interventions: Iterable[str], references: Sequence[str] = REFERENCES
) -> dict[str, LineStyle]:
    """Assigns a line style to each intervention, distinct for up to 18 besides the references.

    An intervention in `STYLES` has that style. A reference in `STYLES` has it whatever settings its
    name has; several with different settings differ in their markers. The style of any other
    intervention is determined by a hash of its name, so that it is the same in every figure, unless
    it is already taken in this one.

    Args:
      interventions: the names.
      references: base names of the references; by default `warm_start` and `reset_all`.
    """
    names = sorted(set(interventions))
    styles = {name: STYLES[name] for name in names if name in STYLES}
    for reference in references:
        if reference not in STYLES:
            continue
        for i, name in enumerate(name for name in names if base_name(name) == reference):
            markers = (STYLES[reference].marker, *_MARKERS)
            styles[name] = STYLES[reference]._replace(marker=markers[i % len(markers)])
    for name in names:
        if name not in styles:
            start = zlib.crc32(name.encode()) % len(_COLORS)
            candidates = [
                _SLOTS[row + (start + i) % len(_COLORS)]
                for row in range(0, len(_SLOTS), len(_COLORS))
                for i in range(len(_COLORS))
            ]
            taken = set(styles.values())
            styles[name] = next((slot for slot in candidates if slot not in taken), candidates[0])
    return styles


def marker_face(style: LineStyle) -> str:
    """Returns the face color of a style's markers in scatter plots.

    Colors recur with other dashes: markers without lines are then distinguished by being hollow.
    """
    return style.color if style.linestyle == "-" or style.color not in _COLORS else "none"


@checked()
def lines_by_round(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    how: str = "mean",
    *,
    confidence: float = 0.95,
    seeds: bool = True,
    references: Sequence[str] = REFERENCES,
) -> Axes:
    """Plots a metric by round: mean over seeds, bootstrap interval, and each seed.

    Args:
      frame: a results table of one env and shift.
      metric: the metric to plot.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: the axes to draw into; a new figure with a legend if not given.
      how: the value of a round: `"mean"` or `"last"` of its rows.
      confidence: of the band, see `bootstrap_mean`. A single seed has no band.
      seeds: whether to draw each seed, as a thin line.
      references: interventions drawn on top of the others, in their style of `STYLES` whatever
        settings their names have; by default `warm_start` and `reset_all`.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks the metric or layer.
    """
    single_condition(frame)
    values = by_round(frame, metric, layer, how)
    warn_about_seeds(frame)
    with plt.rc_context(STYLE):
        axes = new_figure((6.0, 4.4)).add_subplot() if ax is None else ax
        _draw(axes, frame, values, "round", confidence, seeds, references)
        _finish_rounds(axes, metric, layer)
        if ax is None:
            _legend(axes, frame, confidence, seeds)
    return axes


@checked()
def curve(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    *,
    confidence: float = 0.95,
    seeds: bool = True,
    references: Sequence[str] = REFERENCES,
) -> Axes:
    """Plots a metric by update, like `lines_by_round`, with a dotted vertical line at each shift.

    A shift is assumed to happen after the last update logged in a round.

    Args:
      frame: a results table of one env and shift.
      metric: the metric to plot.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: the axes to draw into; a new figure with a legend if not given.
      confidence: of the band, see `bootstrap_mean`.
      seeds: whether to draw each seed, as a thin line.
      references: interventions drawn on top of the others, in their style of `STYLES` whatever
        settings their names have; by default `warm_start` and `reset_all`.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks the metric or layer.
    """
    single_condition(frame)
    values = select(frame, metric, layer)
    warn_about_seeds(frame)
    with plt.rc_context(STYLE):
        axes = new_figure((9.0, 4.4)).add_subplot() if ax is None else ax
        for update in frame.groupby("round")["update"].max().sort_index().iloc[:-1]:
            axes.axvline(update, color="#BBBBBB", lw=0.8, ls=":", zorder=0, label="_shift")
        _draw(axes, frame, values, "update", confidence, seeds, references)
        axes.set(xlabel="PPO updates", ylabel=_label(metric, layer))
        finish(axes)
        if ax is None:
            _legend(axes, frame, confidence, seeds)
    return axes


@checked()
def learning_curve(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    *,
    confidence: float = 0.95,
    seeds: bool = True,
    references: Sequence[str] = REFERENCES,
) -> Axes:
    """Plots a metric by environment step, like `lines_by_round`, for training without rounds.

    Training is divided into 40 equal bins by `bin_by_steps`, for episodes of different seeds do not
    end at the same updates. A seed without an episode that ended in a bin is left out there.

    Args:
      frame: a results table of one env and shift.
      metric: the metric to plot.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: the axes to draw into; a new figure with a legend if not given.
      confidence: of the band, see `bootstrap_mean`.
      seeds: whether to draw each seed, as a thin line.
      references: interventions drawn on top of the others, in their style of `STYLES` whatever
        settings their names have; by default `warm_start` and `reset_all`.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks the metric or layer.
    """
    single_condition(frame)
    values = bin_by_steps(frame, metric, LEARNING_CURVE_BINS, layer)
    warn_about_seeds(frame)
    with plt.rc_context(STYLE):
        axes = new_figure((6.0, 4.4)).add_subplot() if ax is None else ax
        _draw(axes, frame, values, "env_steps", confidence, seeds, references)
        axes.set(xlabel="Environment steps", ylabel=_label(metric, layer))
        finish(axes)
        if ax is None:
            _legend(axes, frame, confidence, seeds)
    return axes


@checked()
def iqm_curve(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    *,
    bins_per_round: int | None = None,
    confidence: float = 0.95,
    references: Sequence[str] = REFERENCES,
) -> Axes:
    """Plots the interquartile mean of a metric by environment step: a sample-efficiency curve.

    Bands are stratified bootstrap intervals, and dotted vertical lines are shifts: see
    `iqm_over_time`.

    Args:
      frame: a results table of one env, and one shift or several.
      metric: the metric to plot.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: the axes to draw into; a new figure with a legend if not given.
      bins_per_round: as in `iqm_over_time`.
      confidence: the nominal pointwise coverage of the band. A single seed has no band.
      references: interventions drawn on top of the others, in their style of `STYLES` whatever
        settings their names have; by default `warm_start` and `reset_all`.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs, or lacks the metric or layer.
    """
    table = compute_iqm_over_time(frame, metric, layer, bins_per_round, confidence)
    warn_about_seeds(frame)
    styles, labels = line_styles(frame["intervention"].unique(), references), _labels(frame)
    with plt.rc_context(STYLE):
        axes = new_figure((9.0, 4.4)).add_subplot() if ax is None else ax
        for steps in frame.groupby("round")["env_steps"].max().sort_index().iloc[:-1]:
            axes.axvline(steps, color="#BBBBBB", lw=0.8, ls=":", zorder=0, label="_shift")
        for depth, name in enumerate(intervention_order(table, references)):
            # A gap at each shift, and a marker before it.
            rounds = [rows for _, rows in table[table["intervention"] == name].groupby("round")]
            line = pd.concat([rows.reindex([*rows.index, -1]) for rows in rounds])
            _draw_line(
                axes,
                line["env_steps"],
                line[["value", "low", "high"]].to_numpy().T,
                styles[name],
                labels[name],
                f"_{name} band",
                depth,
                markers=np.cumsum([len(rows) + 1 for rows in rounds]) - 2,
            )
        axes.set(xlabel="Environment steps", ylabel=f"IQM of {_label(metric, layer).lower()}")
        finish(axes)
        if ax is None:
            count = frame["shift"].nunique()
            statistic = "Interquartile mean" + f" of {count} shifts" * (count > 1)
            _legend(axes, frame, confidence, seeds=False, statistic=statistic)
    return axes


@checked()
def within_round_figure(
    frame: pd.DataFrame,
    metric: str = RETURN,
    layer: str = "all",
    *,
    first: int = 1,
    last: int = 3,
    confidence: float = 0.95,
    references: Sequence[str] = REFERENCES,
) -> Figure:
    """Plots a metric within a round, first rounds and last rounds overlaid: see `within_round`.

    There is a panel for each intervention. Where the last rounds (in color) stay below the first
    (in gray), later tasks are learned more slowly or less far.

    Args:
      frame: a results table of one env and shift.
      metric: the metric to plot; by default the train return.
      layer: `"all"` for the aggregate over layers, or the name of one.
      first: the number of first rounds to average over.
      last: the number of last rounds to average over.
      confidence: of the bands, see `bootstrap_mean`.
      references: interventions whose panels come first; by default `warm_start` and `reset_all`.

    Returns:
      The figure, with every seed as a thin line.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, lacks the metric or layer, or has no
        more rounds than `first`.
    """
    env, shift = single_condition(frame)
    values = within_round(frame, metric, layer, first=first, last=last)
    warn_about_seeds(frame)
    names = intervention_order(values, references)
    labels, rounds = _labels(frame), rounds_of_parts(frame, first, last)
    columns = min(5, len(names)) if len(names) != 6 else 3
    rows = -(-len(names) // columns)
    with plt.rc_context(STYLE):
        figure = new_figure((max(2.1 * columns + 0.5, 5.0), 1.75 * rows + 1.1))
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for name, ax in zip(names, axes.flat, strict=False):
            for part, style in PART_STYLES.items():
                of_part = (values["intervention"] == name) & (values["part"] == part)
                matrix = over_seeds(values[of_part], "update")
                _draw_seeds(ax, matrix, style, f"{name} {part}")
                _draw_mean(ax, matrix, style, confidence, _rounds(*rounds[part]), f"{name} {part}")
            ax.set_title(textwrap.fill(labels[name], 26))
            finish(ax)
        for ax in axes.flat[len(names) :]:
            ax.remove()
        for ax in axes.flat[: len(names)][-columns:]:  # the lowest of each column
            ax.set_xlabel("Updates since the shift")
            ax.tick_params(labelbottom=True)
        for ax in axes[:, 0]:
            ax.set_ylabel(_label(metric, layer))
        figure.suptitle(f"{readable(env)}, shift: {readable(shift)}, {count_seeds(frame)}")
        _legend(axes[0, 0], frame, confidence)
    return figure


@checked()
def overview(frame: pd.DataFrame, references: Sequence[str] = REFERENCES) -> Figure:
    """Plots an experiment: the training return by round, and metrics of plasticity beside it.

    There is a large panel for the training return, and a small one for each of dead units, weight
    norm, effective rank, gradient norm and test return that the table has, with one legend. The
    title names env, shift and the number of seeds.

    Args:
      frame: a results table of one env and shift.
      references: interventions drawn on top of the others, in their style of `STYLES` whatever
        settings their names have; by default `warm_start` and `reset_all`.

    Returns:
      The figure, which notebooks display.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or no training return.
    """
    env, shift = single_condition(frame)
    select(frame, RETURN)
    warn_about_seeds(frame)
    known = set(frame.loc[frame["layer"] == "all", "metric"])
    metrics = [RETURN, *(name for name in PANELS if name in known)]
    mosaic, size = LAYOUTS[len(metrics) - 1]
    with plt.rc_context(STYLE):
        figure = new_figure(size)
        panels = figure.subplot_mosaic(mosaic)
        for letter, metric in zip(sorted(panels), metrics, strict=True):
            ax = panels[letter]
            _draw(ax, frame, by_round(frame, metric), "round", references=references)
            _finish_rounds(ax, metric)
            if letter != "A":
                for line in ax.lines:
                    line.set(linewidth=0.75 * line.get_linewidth(), markersize=3.2)
            spec = ax.get_subplotspec()
            if letter != "A" and spec is not None and not spec.is_last_row():
                ax.set_xlabel("")
        figure.align_ylabels()
        figure.suptitle(f"{readable(env)}, shift: {readable(shift)}, {count_seeds(frame)}")
        _legend(panels["A"], frame)
    return figure


@checked(metrics=each(Range(str), 1))
def side_by_side(
    frames: Mapping[str, pd.DataFrame],
    metrics: Sequence[str] = (RETURN,),
    references: Sequence[str] = REFERENCES,
) -> Figure:
    """Plots several experiments beside each other by round, as of several networks.

    Args:
      frames: a results table of one env and shift for each column, by its title.
      metrics: a row of panels each, which share an axis where it is a return; a panel is left out
        where its table has no such metric.
      references: as in `overview`.

    Returns:
      The figure.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: a table holds several envs or shifts, or none has one of the metrics.
    """
    every = concat(frames.values())
    known = {name: set(frame["metric"]) for name, frame in frames.items()}
    with plt.rc_context(STYLE):
        figure = new_figure((3.6 * len(frames) + 0.6, 2.0 * len(metrics) + 0.9))
        panels = figure.subplots(len(metrics), len(frames), squeeze=False)
        for row, metric in zip(panels, metrics, strict=True):
            select(every, metric)
            first = None
            for ax, (title, frame) in zip(row, frames.items(), strict=True):
                if metric not in known[title]:
                    ax.set_axis_off()
                    continue
                lines_by_round(frame, metric, ax=ax, references=references)
                if metric == metrics[0]:
                    ax.set_title(title)
                if first is None:
                    first = ax
                    continue
                ax.set_ylabel("")
                if metric.endswith("return"):
                    ax.sharey(first)
        for column in panels.T:
            for ax in [ax for ax in column if ax.axison][:-1]:
                ax.set_xlabel("")
        figure.align_ylabels()
        _legend(panels[0, 0], every)
    return figure


@checked()
def past_returns_figure(frame: pd.DataFrame, references: Sequence[str] = REFERENCES) -> Figure:
    """Plots the return on each round's task at the ends of it and of later rounds, as a heat map.

    There is a panel for each intervention, with a row for each round that ended with evaluations on
    earlier tasks and a column for each task: see `past_returns`. A column that fades from the
    diagonal down is forgotten.

    Args:
      frame: a results table of one env and shift, of runs with `schedule.eval_past_every`.
      references: interventions whose panels come first; by default `warm_start` and `reset_all`.

    Returns:
      The figure, of means over seeds.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or no evaluations on earlier tasks.
    """
    env, shift = single_condition(frame)
    values = past_returns(frame)
    warn_about_seeds(frame)
    # Of rounds that ended without these evaluations there is the diagonal alone.
    whole = values.loc[values["task"] < values["round"], "round"].unique()
    values = values[values["round"].isin([1, *whole])]
    names, labels = intervention_order(values, references), _labels(frame)
    rounds, tasks = sorted(values["round"].unique()), range(1, int(values["round"].max()) + 1)
    means = values.groupby(["intervention", "round", "task"])["value"].mean().unstack("task")
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    width = np.clip(0.34 * len(tasks) + 0.7, 2.0, 4.2)
    height = np.clip(0.27 * len(rounds) + 0.8, 1.6, 3.6)
    with plt.rc_context(STYLE):
        figure = new_figure((float(width * columns + 1.2), float(height * rows + 0.7)))
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for name, ax in zip(names, axes.flat, strict=False):
            matrix = means.loc[name].reindex(index=rounds, columns=tasks).to_numpy()
            image = ax.imshow(matrix, cmap="viridis", vmin=low, vmax=high, aspect="auto")
            for row, column in np.argwhere(~np.isnan(matrix)) if len(tasks) <= 10 else ():
                value = matrix[row, column]
                dark = value < low + 0.6 * (high - low)
                color = "white" if dark else "black"
                ax.text(
                    column,
                    row,
                    f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}",
                    ha="center",
                    va="center",
                    color=color,
                    size=6,
                )
            ax.set_title(textwrap.fill(labels[name], 26))
            every = -(-len(tasks) // 10)
            ax.set_xticks(range(0, len(tasks), every), tasks[::every])
            ax.set_yticks(range(0, len(rounds), every), rounds[::every])
            ax.tick_params(labelsize=8, width=0.8, length=3, color="#222222")
        for ax in axes.flat[len(names) :]:
            ax.remove()
        for ax in axes.flat[: len(names)][-columns:]:  # the lowest of each column
            ax.set_xlabel("Task of round")
            ax.tick_params(labelbottom=True)
        for ax in axes[:, 0]:
            ax.set_ylabel("After round")
        label = "Mean eval return"
        figure.colorbar(image, ax=list(axes.flat[: len(names)]), label=label)
        figure.suptitle(f"{readable(env)}, shift: {readable(shift)}, {count_seeds(frame)}")
    return figure


@checked()
def save(figure: Figure | Axes, path_without_suffix: str | Path) -> tuple[Path, Path]:
    """Saves a figure as PNG (200 dots per inch) and as SVG, each written atomically.

    Output is reproducible: the files contain no date and no random identifiers.

    Args:
      figure: the figure, or axes of it.
      path_without_suffix: such as `figures/overview`; its folder is created if necessary.

    Returns:
      The two paths.
    """
    whole = _figure(figure) if isinstance(figure, Axes) else figure
    base = Path(path_without_suffix)
    # Not `with_suffix`, which would replace the end of `rate_0.1`.
    paths = base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.svg")
    with plt.rc_context(STYLE):
        with replacing(paths[0]) as temporary:
            whole.savefig(temporary, format="png", dpi=200)
        with replacing(paths[1]) as temporary:
            whole.savefig(temporary, format="svg", metadata={"Date": None})
    return paths


def _draw(
    ax: Axes,
    frame: pd.DataFrame,
    values: pd.DataFrame,
    at: str,
    confidence: float = 0.95,
    seeds: bool = True,
    references: Sequence[str] = REFERENCES,
) -> None:
    """Draws lines, bands and seeds of all interventions, against the column `at` of the values."""
    styles, labels = line_styles(frame["intervention"].unique(), references), _labels(frame)
    # The references are drawn above the others.
    for depth, name in enumerate(intervention_order(values, references)):
        style = styles[name]
        matrix = over_seeds(values[values["intervention"] == name], at)
        if seeds:
            _draw_seeds(ax, matrix, style, name)
        _draw_mean(ax, matrix, style, confidence, labels[name], name, depth)


def _draw_seeds(ax: Axes, matrix: pd.DataFrame, style: LineStyle, name: str) -> None:
    """Draws a thin line for each seed, a row of a matrix whose columns are times."""
    # Lines are fainter the more seeds there are, so that together they stay in the background.
    alpha = float(np.clip(1.6 / len(matrix), 0.12, 0.45))
    for seed, row in matrix.iterrows():
        points = row.dropna()
        ax.plot(
            points.index,
            points,
            color=style.color,
            linewidth=0.7,
            alpha=alpha,
            zorder=2,
            label=f"_{name} seed {seed}",
        )


def _draw_mean(
    ax: Axes,
    matrix: pd.DataFrame,
    style: LineStyle,
    confidence: float,
    label: str,
    name: str,
    depth: int = 0,
) -> None:
    """Draws the mean over the rows of a matrix whose columns are times, with its interval."""
    matrix = matrix.dropna(axis="columns", how="all")
    intervals = [bootstrap_mean(matrix[time], confidence, BAND_RESAMPLES) for time in matrix]
    times, bounds = matrix.columns, np.reshape(intervals, (-1, 3)).T
    _draw_line(ax, times, bounds, style, label, f"_{name} band", depth)


def _draw_line(
    ax: Axes,
    times: ArrayLike,
    intervals: np.ndarray,
    style: LineStyle,
    label: str,
    band_label: str,
    depth: int = 0,
    markers: ArrayLike | None = None,
) -> None:
    """Draws a line with a band.

    Args:
      ax: the axes.
      times: [T].
      intervals: values, and the lower and upper bounds of the band, [3, T].
      style: the style of the line.
      label: the label of the line.
      band_label: the label of the band.
      depth: lines of greater depth are drawn below the others.
      markers: the indices of the points that have a marker; some 12 of all if not given.
    """
    times, (values, low, high) = np.asarray(times), intervals
    markevery = max(1, len(times) // 12) if markers is None else list(np.asarray(markers))
    ax.fill_between(
        times, low, high, color=style.color, alpha=0.15, linewidth=0, zorder=1, label=band_label
    )
    ax.plot(
        times,
        values,
        color=style.color,
        linestyle=style.linestyle,
        marker=style.marker,
        markevery=markevery,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4 - depth / 100,
        label=label,
    )


def new_figure(size: tuple[float, float]) -> Figure:
    """Creates a figure that a notebook displays only as the value of a cell.

    It is created by pyplot, which registers the notebook's display hooks, and then closed there.
    """
    figure = plt.figure(figsize=size)
    plt.close(figure)
    return figure


def _figure(ax: Axes) -> Figure:
    """Returns the root figure of axes, also if they are in a subfigure."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ResultsError("the axes were removed from their figure; expected axes of a figure")
    return figure


def finish(ax: Axes) -> None:
    """Sets ticks and grid, which would otherwise be taken from the style in force when drawing."""
    ax.tick_params(labelsize=8, width=0.8, length=3, color="#222222")
    ax.grid(True, axis="y", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)


def _finish_rounds(ax: Axes, metric: str, layer: str = "all") -> None:
    """Labels and finishes the axes of a metric by round."""
    ax.set(xlabel="Round", ylabel=_label(metric, layer))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    finish(ax)


def _legend(
    ax: Axes,
    frame: pd.DataFrame,
    confidence: float = 0.95,
    seeds: bool = True,
    statistic: str = "Mean",
) -> None:
    """Adds a legend below all axes of the figure; its title explains lines and bands."""
    title = count = count_seeds(frame)
    if count != "1 seed":
        title = f"{statistic} over {count}, with {100 * confidence:g} % bootstrap interval (band)"
        title += " and each seed (thin)" if seeds else ""
    handles, labels = ax.get_legend_handles_labels()
    figure = _figure(ax)
    # The approximate width of an entry in inches: the line and its margins, and the letters.
    entry = 0.6 + 0.06 * max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """Returns the legend's label of each intervention: `warm start (1 of 4 diverged)`."""
    seeds = frame.groupby("intervention")["seed"].nunique()
    diverged = divergences(frame).groupby("intervention")["seed"].nunique()
    notes = {name: f" ({count} of {seeds[name]} diverged)" for name, count in diverged.items()}
    return {name: readable(name) + notes.get(name, "") for name in seeds.index}


def _rounds(first: int, last: int) -> str:
    """Formats a range of rounds: `round 1`, `rounds 8 to 10`."""
    return f"round {first}" if first == last else f"rounds {first} to {last}"


def _label(metric: str, layer: str) -> str:
    """Returns the axis label of a metric, with its unit."""
    name = METRIC_NAMES.get(metric, readable(metric).capitalize())
    return name if layer == "all" else f"{name}, {readable(layer)}"


def readable(name: str) -> str:
    """Formats `layer_norm+l2_norm` as `layer norm + l2 norm`, and leaves settings as they are."""
    base, space, settings = name.partition(" ")
    return base.replace("_", " ").replace("+", " + ") + space + settings


def count_seeds(frame: pd.DataFrame) -> str:
    """Formats the number of seeds: `4 seeds`, or `3 to 4 seeds` if interventions differ."""
    counts = frame.groupby("intervention")["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' * (high > 1)}"
