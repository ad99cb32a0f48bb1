"""Statistics over time, against closed forms and rliable's own answer."""

import numpy as np
import pandas as pd
import pytest
from results_helpers import IQM, LEFT, diverge, fabricate, with_episodes

from plasticity import results

SHIFTS = ("permute", "window", "expand")


def at_one_time(values: np.ndarray) -> pd.DataFrame:
    """A results table of one round and row, from values [seeds, shifts]."""
    rows = [
        (shift, "gather", shift, "mine", seed, 1, 10, 640, "train_return", "all", values[seed, i])
        for i, shift in enumerate(SHIFTS[: values.shape[1]])
        for seed in range(len(values))
    ]
    return results.validate(pd.DataFrame(rows, columns=results.COLUMNS))


def test_the_iqm_is_over_seeds_and_shifts_as_rliable_has_it() -> None:
    """Would catch a mean of each shift's IQM, and a time at the beginning of its bin."""
    (row,) = results.iqm_over_time(at_one_time(LEFT), "train_return").itertuples()
    assert row.value == pytest.approx(IQM, abs=1e-6)
    assert (row.round, row.env_steps, row.seeds) == (1, 640, LEFT.size)
    assert row.low < row.value < row.high


def test_the_bootstrap_is_stratified_by_shift() -> None:
    """Would catch seeds of one shift drawn in place of another's, as by one bootstrap of all.

    Each shift has equal values, so that a stratified resample is the sample itself.
    """
    values = np.repeat([[0.0, 1.0]], 4, axis=0)
    (row,) = results.iqm_over_time(at_one_time(values), "train_return").itertuples()
    assert (row.value, row.low, row.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("confidence", "high"), [(0.95, 1.0), (0.9, 2 / 3)])
def test_the_interval_has_the_quantiles_of_the_binomial(confidence: float, high: float) -> None:
    """Of three values 0, 0 and 1 a resample's IQM is their mean: a third of a Binomial(3, 1/3).

    It is 0 with probability 8/27, and 1 with 1/27, which is between 2.5 % and 5 %.
    """
    frame = at_one_time(np.array([[0.0], [0.0], [1.0]]))
    (row,) = results.iqm_over_time(
        frame, "train_return", confidence=confidence, resamples=20_000
    ).itertuples()
    assert (row.value, row.low, row.high) == pytest.approx((1 / 3, 0.0, high))


def test_no_bin_of_a_curve_contains_a_shift_and_seeds_that_diverged_are_left_out() -> None:
    """Would catch bins that average the end of a round with the beginning of the next."""
    frame = fabricate(names=("warm_start",))
    curve = results.iqm_over_time(frame, "train_return", bins_per_round=2)
    assert list(curve["round"]) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert list(curve["env_steps"]) == [64 * update for update in range(5, 45, 5)]
    # Of three seeds the IQM is the mean: 11 - 4 (round - 1), and 0.25 below or above it.
    np.testing.assert_allclose(curve["value"], [10.75, 11.25, 6.75, 7.25, 2.75, 3.25, -1.25, -0.75])
    whole = results.iqm_over_time(frame, "train_return", bins_per_round=1)
    np.testing.assert_allclose(whole["value"], [11, 7, 3, -1])

    lost = diverge(frame, "warm_start", 1, 28)
    with pytest.warns(UserWarning, match="seed 1 at update 28"):
        curve = results.iqm_over_time(lost, "train_return", bins_per_round=2)
    assert list(curve["seeds"]) == [3] * 5 + [2] * 3
    # Seeds 0 and 2 in round 4: 4 and -6.
    assert curve["value"].iloc[-1] == pytest.approx(-0.75)


def test_within_round_averages_the_first_rounds_and_the_last_at_each_update() -> None:
    """Would catch updates counted from the beginning of training, and rounds of all runs mixed."""
    frame = with_episodes(fabricate(), 1, 3)
    early = (frame["seed"] != 2) | (frame["intervention"] != "warm_start") | (frame["round"] < 4)
    values = results.within_round(frame[early], "train_return", first=1, last=2)
    # One run has three rounds only, so that the last two are rounds 2 and 3.
    seed = values[(values["intervention"] == "warm_start") & (values["seed"] == 1)]
    assert list(seed["part"]) == ["first", "first", "last", "last"]
    assert list(seed["update"]) == [5, 10, 5, 10]
    # 11, and the mean of 11 - 4 and 11 - 8.
    np.testing.assert_allclose(seed["value"], [10.75, 11.25, 4.75, 5.25])
    overlapping = results.within_round(frame, "train_return", first=3, last=3)
    last = overlapping[overlapping["part"] == "last"]
    np.testing.assert_allclose(
        last.query("intervention == 'warm_start' and seed == 0").value, [3.75, 4.25]
    )
    with pytest.raises(results.ResultsError, match=r"first=4: expected fewer than the 4 rounds"):
        results.within_round(frame, "train_return", first=4)


def test_figures_over_time_draw_these_values() -> None:
    """Would catch a line through a shift, and first rounds in the place of the last."""
    frame = fabricate()
    ax = results.iqm_curve(frame, "train_return", bins_per_round=2)
    (line,) = [line for line in ax.lines if line.get_label() == "warm start"]
    y = np.asarray(line.get_ydata())
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(y)), [2, 5, 8, 11])
    np.testing.assert_allclose(y[:5], [10.75, 11.25, np.nan, 6.75, 7.25])
    figure = results.within_round_figure(frame, last=1)
    assert [ax.get_title() for ax in figure.axes] == ["warm start", "shrink perturb"]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["round 1"], [10.75, 11.25])
    np.testing.assert_allclose(lines["round 4"], [-1.25, -0.75])
    assert len(lines) == 2 + 2 * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["round 1", "round 4"]
