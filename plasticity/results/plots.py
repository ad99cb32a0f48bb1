"""Figures of results: one line for each intervention, a band over seeds, and every seed.

Where a seed diverges its line ends, mean and band go on over the other seeds, and the legend and
a warning tell.

The functions draw into the axes given, or into a new figure, and return what they drew into.
Nothing is shown, and no figure stays registered with pyplot, so that a loop over many leaks none.
"""

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plasticity.results.statistics import (
    REFERENCES,
    RETURN,
    bin_by_steps,
    bootstrap_mean,
    by_round,
    divergence_notes,
    divergences,
    kind_of,
    one_setting,
    order,
    over_seeds,
    select,
    shared_seeds,
    warn_of,
)
from plasticity.storage.table import ResultsError, replacing

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
        "episodes": "Episodes that ended",
        "policy_loss": "Policy loss",
        "value_loss": "Value loss",
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
        "feature_norm": "Feature norm (L2)",
        "feature_cosine": "Feature cosine",
    }
)

# A band is drawn for every point of a line, at a precision beyond what print can show.
BAND_RESAMPLES = 2_000

# Into how many equal stretches a learning curve cuts training.
STRETCHES = 40

# The panels of the overview beside the return, those that the table has, and where they go.
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
    """How an intervention is drawn: told apart by colour, and without it too."""

    color: str
    linestyle: str | tuple[float, tuple[float, ...]]
    marker: str


# Okabe & Ito (2008, "Color Universal Design"), without yellow, which is faint on white paper,
# and with black and grey kept for the references.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 1.2)), (0, (1, 1)))
_MARKERS = ("o", "^", "D", "v", "P", "X")
_SLOTS = tuple(
    LineStyle(color, dash, _MARKERS[(i + turn) % len(_MARKERS)])
    for turn, dash in enumerate(_DASHES)
    for i, color in enumerate(_COLORS)
)

# The styles that never change: those of the study's methods. Add to these to fix the style of
# one's own intervention.
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
}


def line_styles(interventions: Iterable[str]) -> dict[str, LineStyle]:
    """A style for each intervention, all of them different up to 18 besides the references.

    Those in `STYLES` have theirs, and the references do so whatever settings their names carry,
    where several of one kind differ by their markers. Any other has one that its name decides, so
    that it is the same in every figure, unless another in this figure has that one already.
    """
    names = sorted(set(interventions))
    styles = {name: STYLES[name] for name in names if name in STYLES}
    for kind in REFERENCES:
        for i, name in enumerate(name for name in names if kind_of(name) == kind):
            markers = (STYLES[kind].marker, *_MARKERS)
            styles[name] = STYLES[kind]._replace(marker=markers[i % len(markers)])
    for name in names:
        if name not in styles:
            start = zlib.crc32(name.encode()) % len(_COLORS)
            turned = [
                _SLOTS[turn + (start + i) % len(_COLORS)]
                for turn in range(0, len(_SLOTS), len(_COLORS))
                for i in range(len(_COLORS))
            ]
            taken = set(styles.values())
            styles[name] = next((slot for slot in turned if slot not in taken), turned[0])
    return styles


def lines_by_round(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    how: str = "mean",
    *,
    confidence: float = 0.95,
    seeds: bool = True,
) -> Axes:
    """Draws a metric by round: mean over seeds, bootstrap interval, and each seed.

    Args:
      frame: a results table of one env and shift.
      metric: what to draw.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: where to draw; in a new figure, which has a legend too, if not given.
      how: a round's value, the `"mean"` or the `"last"` of its rows.
      confidence: of the band, see `bootstrap_mean`. A single seed has no band.
      seeds: whether to draw each seed, as a thin line.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks the metric or layer.
    """
    one_setting(frame)
    values = by_round(frame, metric, layer, how)
    warn_of([*shared_seeds(frame), *divergence_notes(frame)])
    with plt.rc_context(STYLE):
        axes = new_figure((6.0, 4.4)).add_subplot() if ax is None else ax
        _draw(axes, frame, values, "round", confidence, seeds)
        _finish_rounds(axes, metric, layer)
        if ax is None:
            _legend(axes, frame, confidence, seeds)
    return axes


def curve(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    *,
    confidence: float = 0.95,
    seeds: bool = True,
) -> Axes:
    """Draws a metric by PPO update, as `lines_by_round` does, with a dotted line at each shift.

    A shift is taken to happen after the last update logged in a round.

    Args:
      frame: a results table of one env and shift.
      metric: what to draw.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: where to draw; in a new figure, which has a legend too, if not given.
      confidence: of the band, see `bootstrap_mean`.
      seeds: whether to draw each seed, as a thin line.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks the metric or layer.
    """
    one_setting(frame)
    values = select(frame, metric, layer)
    warn_of([*shared_seeds(frame), *divergence_notes(frame)])
    with plt.rc_context(STYLE):
        axes = new_figure((9.0, 4.4)).add_subplot() if ax is None else ax
        for interpolation in frame.groupby("round")["update"].max().sort_index().iloc[:-1]:
            axes.axvline(
                interpolation,
                color="#BBBBBB",
                linewidth=0.8,
                linestyle=":",
                zorder=0,
                label="_shift",
            )
        _draw(axes, frame, values, "update", confidence, seeds)
        axes.set(xlabel="PPO updates", ylabel=_label(metric, layer))
        finish(axes)
        if ax is None:
            _legend(axes, frame, confidence, seeds)
    return axes


def learning_curve(
    frame: pd.DataFrame,
    metric: str,
    layer: str = "all",
    ax: Axes | None = None,
    *,
    confidence: float = 0.95,
    seeds: bool = True,
) -> Axes:
    """Draws a metric by environment step, as `lines_by_round` does, of lives that nothing divides.

    Training is cut into 40 equal stretches, and a point is what `bin_by_steps` makes of one:
    episodes of different seeds do not end at the same updates. Where none of a seed's ended, mean
    and band are over the others.

    Args:
      frame: a results table of one env and shift.
      metric: what to draw.
      layer: `"all"` for the aggregate over layers, or the name of one.
      ax: where to draw; in a new figure, which has a legend too, if not given.
      confidence: of the band, see `bootstrap_mean`.
      seeds: whether to draw each seed, as a thin line.

    Returns:
      The axes.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or lacks the metric or layer.
    """
    one_setting(frame)
    values = bin_by_steps(frame, metric, STRETCHES, layer)
    warn_of([*shared_seeds(frame), *divergence_notes(frame)])
    with plt.rc_context(STYLE):
        axes = new_figure((6.0, 4.4)).add_subplot() if ax is None else ax
        _draw(axes, frame, values, "env_steps", confidence, seeds)
        axes.set(xlabel="Environment steps", ylabel=_label(metric, layer))
        finish(axes)
        if ax is None:
            _legend(axes, frame, confidence, seeds)
    return axes


def overview(frame: pd.DataFrame) -> Figure:
    """The figure of an experiment: training return by round, and what goes with its loss.

    A large panel of the training return, and a small one of each metric of `PANELS` that the
    table has, with one legend. The title names env and shift, the seeds, and what is drawn.

    Args:
      frame: a results table of one env and shift.

    Returns:
      The figure; a notebook displays it.

    Warns:
      UserWarning: seeds diverged, or runs share a seed.

    Raises:
      ResultsError: the table holds several envs or shifts, or no training return.
    """
    env, shift = one_setting(frame)
    select(frame, RETURN)
    warn_of([*shared_seeds(frame), *divergence_notes(frame)])
    known = set(frame.loc[frame["layer"] == "all", "metric"])
    metrics = [RETURN, *(name for name in PANELS if name in known)]
    mosaic, size = LAYOUTS[len(metrics) - 1]
    with plt.rc_context(STYLE):
        figure = new_figure(size)
        panels = figure.subplot_mosaic(mosaic)
        for letter, metric in zip(sorted(panels), metrics, strict=True):
            ax = panels[letter]
            _draw(ax, frame, by_round(frame, metric), "round")
            _finish_rounds(ax, metric)
            if letter != "A":
                for line in ax.lines:
                    line.set(linewidth=0.75 * line.get_linewidth(), markersize=3.2)
            place = ax.get_subplotspec()
            if letter != "A" and place is not None and not place.is_last_row():
                ax.set_xlabel("")
        figure.align_ylabels()
        figure.suptitle(f"{readable(env)}, shift: {readable(shift)}, {count_seeds(frame)}")
        _legend(panels["A"], frame)
    return figure


def save(figure: Figure | Axes, path_without_suffix: str | Path) -> tuple[Path, Path]:
    """Writes a figure as PNG (200 dots per inch) and as SVG; each file appears whole.

    The same figure makes the same files whenever it is saved: no date, no random names.

    Args:
      figure: the figure, or axes of it.
      path_without_suffix: such as `figures/overview`; its folder is created if need be.

    Returns:
      The two paths.
    """
    whole = _figure(figure) if isinstance(figure, Axes) else figure
    base = Path(path_without_suffix)
    # Not `with_suffix`, which takes the end of `rate_0.1` for one.
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
) -> None:
    """Draws lines, bands and seeds of all interventions in values of frame, by the column `at`."""
    styles, labels = line_styles(order(frame)), _labels(frame)
    for depth, name in enumerate(order(values)):  # The references above the others.
        style = styles[name]
        matrix = over_seeds(values[values["intervention"] == name], at)
        # The more seeds, the fainter each, so that together they stay in the background.
        faint = float(np.clip(1.6 / len(matrix), 0.12, 0.45))
        for seed, row in matrix.iterrows() if seeds else ():
            present = row.dropna()
            ax.plot(
                present.index,
                present,
                color=style.color,
                linewidth=0.7,
                alpha=faint,
                zorder=2,
                label=f"_{name} seed {seed}",
            )
        matrix = matrix.dropna(axis="columns", how="all")
        intervals = [bootstrap_mean(matrix[x], confidence, BAND_RESAMPLES) for x in matrix]
        mean, low, high = np.reshape(intervals, (-1, 3)).T
        ax.fill_between(
            matrix.columns,
            low,
            high,
            color=style.color,
            alpha=0.15,
            linewidth=0,
            zorder=1,
            label=f"_{name} band",
        )
        ax.plot(
            matrix.columns,
            mean,
            color=style.color,
            linestyle=style.linestyle,
            marker=style.marker,
            markevery=max(1, len(mean) // 12),
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=4 - depth / 100,
            label=labels[name],
        )


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure that a notebook displays when it is a cell's value, and only then.

    Through pyplot, which is what teaches the notebook to display figures, and then let go of.
    """
    figure = plt.figure(figsize=size)
    plt.close(figure)
    return figure


def _figure(ax: Axes) -> Figure:
    """The figure of axes, whole even where they are in a part of it."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ResultsError("the axes were removed from their figure; expected axes of a figure")
    return figure


def finish(ax: Axes) -> None:
    """Fixes what matplotlib would otherwise look up when it draws, outside of the style."""
    ax.tick_params(labelsize=8, width=0.8, length=3, color="#222222")
    ax.grid(True, axis="y", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)


def _finish_rounds(ax: Axes, metric: str, layer: str = "all") -> None:
    """Names the axes of a metric by round, and finishes them."""
    ax.set(xlabel="Round", ylabel=_label(metric, layer))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    finish(ax)


def _legend(ax: Axes, frame: pd.DataFrame, confidence: float = 0.95, seeds: bool = True) -> None:
    """Adds the legend of the axes below all axes of the figure, titled with what is drawn."""
    title = count = count_seeds(frame)
    if count != "1 seed":
        title = f"Mean over {count}, with {100 * confidence:g} % bootstrap interval (band)"
        title += " and each seed (thin)" if seeds else ""
    handles, labels = ax.get_legend_handles_labels()
    figure = _figure(ax)
    # About what an entry takes, in inches: the line and gaps around it, and the letters.
    entry = 0.6 + 0.06 * max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """What the legend calls each intervention: `warm start (1 of 4 diverged)`."""
    seeds = frame.groupby("intervention")["seed"].nunique()
    diverged = divergences(frame).groupby("intervention")["seed"].nunique()
    notes = {name: f" ({count} of {seeds[name]} diverged)" for name, count in diverged.items()}
    return {name: readable(name) + notes.get(name, "") for name in seeds.index}


def _label(metric: str, layer: str) -> str:
    """The name of a metric, with its unit, for an axis."""
    name = METRIC_NAMES.get(metric, readable(metric).capitalize())
    return name if layer == "all" else f"{name}, {readable(layer)}"


def readable(name: str) -> str:
    """`layer_norm+l2_norm` -> `layer norm + l2 norm`; settings after it stay as they are."""
    kind, space, settings = name.partition(" ")
    return kind.replace("_", " ").replace("+", " + ") + space + settings


def count_seeds(frame: pd.DataFrame) -> str:
    """`4 seeds`, or `3 to 4 seeds` where interventions differ."""
    counts = frame.groupby("intervention")["seed"].nunique()
    few, many = int(counts.min()), int(counts.max())
    return f"{few} to {many} seeds" if few < many else f"{many} seed{'s' * (many > 1)}"
