"""Forgetting and transfer, against numbers computed by hand from their definitions."""

import numpy as np
import pandas as pd
import pytest
from results_helpers import diverge, fabricate, with_past_returns

from plasticity import results

# Returns after each of four rounds on the tasks of rounds 1 to 4, of seed 0; other seeds have more
# of everything by their number.
MATRIX = np.array([[4, 0, 0, 0], [3, 6, 0, 0], [2, 6, 8, 0], [1, 3, 10, 9]], float)


def returns(name: str, seed: int, round_: int, task: int) -> float:
    return MATRIX[round_ - 1, task - 1] + seed


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """A method that loses, and the control, which has a return of 20 in all rounds."""
    one = fabricate(names=("warm_start",), metrics=("train_return",))
    control = one.assign(intervention="reset_all", run="reset_all", value=20.0)
    return with_past_returns(results.concat([one, control]), returns)


def test_past_returns_have_the_rounds_own_task_on_the_diagonal(frame: pd.DataFrame) -> None:
    """Would catch rounds and tasks that are exchanged, and tasks sorted as text."""
    values = results.past_returns(frame).query("intervention == 'warm_start' and seed == 2")
    matrix = values.pivot(index="round", columns="task", values="value").to_numpy()
    np.testing.assert_array_equal(matrix[np.tril_indices(4)], (MATRIX + 2)[np.tril_indices(4)])
    assert np.isnan(matrix[np.triu_indices(4, 1)]).all()


def test_metrics_are_those_of_continual_world(frame: pd.DataFrame) -> None:
    """Would catch a mean without the last task, or forgetting since the highest return."""
    warm, control = (
        results.transfer_metrics(frame).sort_values("intervention", ascending=False).itertuples()
    )
    assert (warm.seeds, warm.rounds) == (3, 4)
    # The last row is 1, 3, 10, 9 and the diagonal 4, 6, 8, 9; seeds add 0, 1 and 2 to both.
    assert warm.average_performance == pytest.approx(23 / 4 + 1)
    assert (warm.average_performance_low, warm.average_performance_high) == (23 / 4, 23 / 4 + 2)
    assert warm.forgetting == pytest.approx((3 + 3 - 2 + 0) / 4)
    assert warm.backward_transfer == pytest.approx(-(3 + 3 - 2) / 3)
    # Of rounds with returns 10 + s - 2 (1 + s) (r - 1), the mean is 7 - 2 s; the control's is 20.
    assert warm.forward_transfer == pytest.approx(-15)
    assert (warm.forward_transfer_low, warm.forward_transfer_high) == (-17, -13)
    assert warm.relative_forward_transfer == pytest.approx(-15 / 20)
    assert np.isnan(control.forward_transfer)
    assert control.forgetting == warm.forgetting
    of_highest = results.transfer_metrics(frame, max_return=25.0)
    assert of_highest.query(
        "intervention == 'warm_start'"
    ).forward_transfer.item() == pytest.approx(-3)


def test_normalized_forgetting_is_that_of_meal(frame: pd.DataFrame) -> None:
    """Would catch weights of the wrong end, and gains that make up for losses."""
    table = results.transfer_metrics(frame[frame["seed"] == 0])
    weights = np.exp([0.0, -1.0, -2.0])
    first = np.average([1 / 4, 2 / 4, 3 / 4], weights=weights)
    second = np.average([0, 3 / 6], weights=weights[[0, 2]])
    assert table["normalized_forgetting"][0] == pytest.approx((first + second + 0) / 3)


def test_evaluations_of_some_rounds_suffice() -> None:
    """Would catch a last round without evaluations on earlier tasks, taken for the last of all."""
    frame = fabricate(names=("warm_start",), metrics=("train_return",))
    frame = with_past_returns(frame, returns, every=3)
    (row,) = results.transfer_metrics(frame).itertuples()
    assert row.rounds == 3
    assert row.average_performance == pytest.approx((2 + 6 + 8) / 3 + 1)
    assert np.isnan(row.forward_transfer)  # there is no control
    with pytest.raises(results.ResultsError, match="eval_past_return: not in the table"):
        results.past_returns(fabricate())


def test_a_seed_that_diverged_is_left_out(frame: pd.DataFrame) -> None:
    """Would catch a mean over the rounds before."""
    with pytest.warns(UserWarning, match="seed 1 at update 28"):
        table = results.transfer_metrics(diverge(frame, "warm_start", 1, 28))
    warm = table.set_index("intervention").loc["warm_start"]
    assert warm["average_performance"] == pytest.approx(23 / 4 + 1)  # of seeds 0 and 2
    assert warm["average_performance_low"] == 23 / 4
    assert warm["forward_transfer"] == pytest.approx(-15)


def test_the_heat_map_shows_means_over_seeds(frame: pd.DataFrame) -> None:
    """Would catch a map on its side, and scales that differ between methods."""
    figure = results.past_returns_figure(frame)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in panels] == ["warm start", "reset all"]
    for ax in panels:
        shown = np.ma.filled(ax.images[0].get_array(), np.nan)
        np.testing.assert_array_equal(shown[np.tril_indices(4)], (MATRIX + 1)[np.tril_indices(4)])
        assert ax.images[0].get_clim() == (2, 11)
        assert {text.get_text() for text in ax.texts} >= {"10", "3.00", "11"}


def test_aged_against_fresh_is_paired_by_seed_and_architecture(frame: pd.DataFrame) -> None:
    """Would catch the first round, the sign, the mean of a round, or the control of another net."""
    norm = frame[frame["intervention"] == "warm_start"].assign(intervention="layer_norm")
    own = norm.assign(intervention="layer_norm+reset_all", value=15.0)
    table = results.aged_against_fresh(results.concat([frame, norm, own]))
    assert list(zip(table["intervention"], table["control"], table["round"], strict=True)) == [
        (name, control, round_)
        for name, control in (("warm_start", "reset_all"), ("layer_norm", "layer_norm+reset_all"))
        for round_ in (2, 3, 4)
    ]
    # At the end of round 2 seeds have 10 + s - 2 (1 + s) + 0.25: 8.25, 7.25 and 6.25.
    first, other = table[table["round"] == 2].itertuples()
    assert (first.seeds, first.aged, first.fresh) == (3, 7.25, 20)
    assert (first.lost, first.lost_low, first.lost_high) == (12.75, 11.75, 13.75)
    assert other.lost == 7.75
    mean = results.aged_against_fresh(frame, how="mean").query("round == 2")
    assert mean["lost"].item() == pytest.approx(13)
    with pytest.warns(UserWarning, match="seed 1 at update 28"):
        left = results.aged_against_fresh(diverge(frame, "warm_start", 1, 28))
    assert list(left["seeds"]) == [3, 2, 2]
    with pytest.raises(results.ResultsError, match="control='reset_final': not in the table"):
        results.aged_against_fresh(frame, control="reset_final")
