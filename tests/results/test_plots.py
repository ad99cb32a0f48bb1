"""Tests of plots by what they draw."""

import warnings
from pathlib import Path

import matplotlib.collections
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from results_helpers import (
    METRICS,
    NAMES,
    ROUNDS,
    SEEDS,
    diverge,
    fabricate,
    level,
    notes_of,
    with_episodes,
)

from plasticity import results
from plasticity.cli.methods import methods
from plasticity.results.statistics import REFERENCES


def drawn(ax: Axes, label: str) -> np.ndarray:
    """The points of the line with this label, shape [points, 2]."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_xydata())


def test_lines_by_round_draws_means_bands_and_every_seed(frame: pd.DataFrame) -> None:
    ax = results.lines_by_round(frame, "train_return")
    for name in NAMES:
        by_seed = np.array([[level(name, s, r) for r in ROUNDS] for s in SEEDS])
        mean = drawn(ax, name.replace("_", " "))
        np.testing.assert_allclose(mean, np.stack([ROUNDS, by_seed.mean(0)], axis=1))
        for seed, values in zip(SEEDS, by_seed, strict=True):
            np.testing.assert_allclose(drawn(ax, f"_{name} seed {seed}")[:, 1], values)
        (band,) = [c for c in ax.collections if c.get_label() == f"_{name} band"]
        assert isinstance(band, matplotlib.collections.PolyCollection)
        vertices = np.asarray(band.get_paths()[0].vertices)
        for column, round_ in enumerate(ROUNDS):
            _, low, high = results.bootstrap_mean(by_seed[:, column], resamples=2000)
            edges = vertices[vertices[:, 0] == round_, 1]
            assert (edges.min(), edges.max()) == pytest.approx((low, high))
    assert len(ax.lines) == len(NAMES) * (1 + len(SEEDS))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Round", "Train return per episode")
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_lines_by_round_draws_into_given_axes_and_without_seeds(frame: pd.DataFrame) -> None:
    ax = Figure().subplots()
    assert results.lines_by_round(frame, "dead_units", ax=ax, how="last", seeds=False) is ax
    assert len(ax.lines) == len(NAMES)
    assert drawn(ax, "warm start")[0, 1] == pytest.approx(11.25)
    assert not ax.figure.legends


def test_a_single_seed_has_a_line_and_no_band() -> None:
    ax = results.lines_by_round(fabricate(seeds=(0,)), "train_return")
    assert len(drawn(ax, "warm start")) == len(ROUNDS)
    assert not any(len(band.get_paths()) for band in ax.collections)
    assert ax.figure.legends[0].get_title().get_text() == "1 seed"


def test_curve_draws_updates_and_shifts(frame: pd.DataFrame) -> None:
    ax = results.curve(frame, "train_return")
    x, y = drawn(ax, "warm start").T
    np.testing.assert_array_equal(x, np.arange(5, 45, 5))
    assert y[:2] == pytest.approx([10.75, 11.25])
    shifts = [line for line in ax.lines if line.get_label() == "_shift"]
    assert [np.asarray(line.get_xdata())[0] for line in shifts] == [10, 20, 30]


def test_figures_tell_which_seeds_diverged_and_end_their_lines(frame: pd.DataFrame) -> None:
    lost = diverge(with_episodes(frame, 1, 1), "warm_start", 1, 28)
    for seed in SEEDS:
        lost = diverge(lost, "shrink_perturb", seed, 1)
    calls = (
        lambda: results.lines_by_round(lost, "train_return"),
        lambda: results.curve(lost, "train_return"),
        lambda: results.overview(lost),
    )
    for call in calls:
        (note,) = notes_of(call)
        assert "warm_start seed 1 at update 28" in note
        assert "\n" not in note
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ax, by_update, figure = (call() for call in calls)

    label = "warm start (1 of 3 diverged)"
    np.testing.assert_array_equal(drawn(ax, "_warm_start seed 1")[:, 0], (1, 2))
    # Seeds 0 and 2 in round 4: 4 and -6.
    np.testing.assert_allclose(drawn(ax, label), [[1, 11], [2, 7], [3, 3], [4, -1]])
    assert drawn(by_update, "_warm_start seed 1")[-1, 0] == 25
    assert drawn(by_update, label)[-1] == pytest.approx((40, -0.75))
    assert not len(drawn(ax, "shrink perturb (3 of 3 diverged)"))
    for legend in (ax.figure.legends[0], by_update.figure.legends[0], figure.legends[0]):
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts == [label, "shrink perturb (3 of 3 diverged)"]


def test_a_legend_of_long_names_stays_within_the_figure() -> None:
    one = fabricate(names=("warm_start",))
    names = [f"layer_norm+soft_shrink_perturb_{i}" for i in range(6)]
    many = results.concat([one.assign(intervention=name, run=name) for name in names])
    for figure in (results.overview(many), results.lines_by_round(many, "dead_units").figure):
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.count_contains(box.corners()) == 4


def test_every_metric_of_training_has_a_name() -> None:
    learning = "policy_loss value_loss policy_entropy approx_kl clip_fraction explained_variance"
    learning += " squared_error"
    sizes = "gradient_norm update_size gradient_steps"
    returns = "train_return eval_train_return eval_test_return eval_past_return episodes"
    expected = " ".join((learning, sizes, returns)).split()
    probes = [method.name for method in methods("probes")]
    presets = ["quantization_error_4bit"]
    assert set(results.METRIC_NAMES) == {*expected, *probes, *presets}


def test_styles_are_stable_and_distinct() -> None:
    baseline = results.line_styles(["warm_start"])["warm_start"]
    assert baseline.linestyle != "-"
    assert results.line_styles(["mine", "warm_start"])["warm_start"] == baseline
    assert results.line_styles(["mine"]) == {
        "mine": results.line_styles(["warm_start", "reset_all", "mine"])["mine"]
    }
    rates = [f"warm_start learning_rate={rate}" for rate in (0.001, 0.01)]
    styles = results.line_styles([*rates, "shrink_perturb shrink=0.1", "shrink_perturb shrink=0.5"])
    assert styles[rates[0]] == baseline
    assert styles[rates[1]]._replace(marker=baseline.marker) == baseline
    assert len(set(styles.values())) == len(styles)
    others = 18 + len(REFERENCES) - len(results.STYLES)
    many = results.line_styles([*results.STYLES, *(f"method_{i}" for i in range(others))])
    assert len(set(many.values())) == len(many)


@pytest.mark.parametrize(
    "more", [(), ("gradient_norm",), ("gradient_norm", "eval_test_return", "policy_loss")]
)
def test_overview_has_a_panel_for_each_metric_and_nothing_overlaps(more: tuple[str, ...]) -> None:
    figure = results.overview(fabricate(metrics=METRICS + more))
    expected = {results.METRIC_NAMES[name] for name in METRICS + more if name != "policy_loss"}
    assert {ax.get_ylabel() for ax in figure.axes} == expected
    title = figure.get_suptitle()
    assert all(part in title for part in ("cartpole", "permute", "3 seeds"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["warm start", "shrink perturb"]
    assert "95 % bootstrap interval" in legend.get_title().get_text()
    assert {to_hex(drawn_line.get_color()) for ax in figure.axes for drawn_line in ax.lines} == {
        style.color.lower() for style in results.line_styles(NAMES).values()
    }

    figure.draw_without_rendering()
    boxes = [box for ax in figure.axes if (box := ax.get_tightbbox()) is not None]
    boxes.append(legend.get_window_extent())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)


def test_overview_draws_one_setting(frame: pd.DataFrame) -> None:
    with pytest.raises(results.ResultsError, match="cartpole, permute; gather, permute"):
        results.overview(results.concat([frame, frame.assign(env="gather")]))
    with pytest.raises(results.ResultsError, match="metric train_return"):
        results.overview(frame[frame["metric"] != "train_return"])


def test_saved_figures_are_reproducible(tmp_path: Path, frame: pd.DataFrame) -> None:
    paths = [
        results.save(results.lines_by_round(frame, "dead_units"), tmp_path / name)
        for name in ("rate_0.1", "again")
    ]
    assert [path.name for path in paths[0]] == ["rate_0.1.png", "rate_0.1.svg"]
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_side_by_side_leaves_out_what_a_table_lacks(frame: pd.DataFrame) -> None:
    """Would catch a metric of one network that is drawn in the column of another."""
    other = frame[frame["metric"] != "dead_units"].assign(value=lambda rows: rows["value"] + 1)
    figure = results.side_by_side({"a": frame, "b": other}, ["train_return", "dead_units"])
    left, right, below, empty = figure.axes
    assert [ax.get_title() for ax in (left, right)] == ["a", "b"]
    assert left.get_ylim() == right.get_ylim()
    assert below.lines
    assert not empty.lines
    assert not empty.axison
    labels = [ax.get_ylabel() for ax in figure.axes]
    swapped = results.side_by_side({"b": other, "a": frame}, ["train_return", "dead_units"])
    assert [ax.get_ylabel() for ax in swapped.axes][:2] == labels[:2]
    assert swapped.axes[3].get_ylabel() == labels[2] != ""
    with pytest.raises(results.ResultsError, match="metric srank"):
        results.side_by_side({"a": frame}, ["srank"])
