"""Tests of statistics on a table whose answers are known."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from results_helpers import (
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
from plasticity.results.statistics import find_baseline, intervention_order


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("layer_norm", ["warm_start"], "warm_start"),
        ("layer_norm", ["warm_start lr=0.1"], None),
        ("layer_norm lr=0.1", ["warm_start", "warm_start lr=0.1"], "warm_start lr=0.1"),
        ("layer_norm lr=0.1", ["warm_start", "warm_start lr=0.2"], "warm_start"),
        ("layer_norm lr=0.1", ["warm_start lr=0.2", "reset_all lr=0.1"], None),
        ("sp lr=0.1 shrink=0.5", ["warm_start lr=0.1", "warm_start lr=0.2"], "warm_start lr=0.1"),
        ("warm_start lr=0.1", ["warm_start", "warm_start lr=0.1"], None),
        ("warm_start", ["warm_start"], None),
    ],
)
def test_the_baseline_has_the_same_settings(
    name: str, names: list[str], expected: str | None
) -> None:
    assert find_baseline(name, [*names, name]) == expected


def test_interventions_are_in_order_of_their_settings() -> None:
    names = [
        "warm_start lr=1e-05",
        "warm_start lr=0.001",
        "reset_all",
        "layer_norm+redo",
        "shrink_perturb",
        "shrink_perturb shrink=0.5",
        "shrink_perturb shrink=10",
        "shrink_perturb shrink=auto",
    ]
    one = fabricate(names=("warm_start",), seeds=(0,))[:1]
    assert (
        intervention_order(results.concat([one.assign(intervention=name) for name in names[::-1]]))
        == names
    )


def test_by_round_takes_the_mean_or_the_last_row_of_a_round(frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1, random_state=0)
    for how, offset in (("mean", 0.0), ("last", 0.25)):
        values = results.by_round(shuffled, "train_return", how=how)
        assert len(values) == len(NAMES) * len(SEEDS) * len(ROUNDS)
        for row in values.itertuples():
            assert row.value == pytest.approx(level(row.intervention, row.seed, row.round) + offset)


def test_the_return_of_a_round_is_the_mean_over_its_episodes(frame: pd.DataFrame) -> None:
    def above(table_: pd.DataFrame, metric: str = "train_return", how: str = "mean") -> set[float]:
        values = results.by_round(table_, metric, how=how)
        levels = [level(row.intervention, row.seed, row.round) for row in values.itertuples()]
        return set((values["value"] - levels).round(9))

    # Of 4 episodes, 1 is in the half that is 0.25 below and 3 are in that which is above.
    counted = with_episodes(frame, 1, 3).sample(frac=1, random_state=0)
    assert above(counted) == {0.125}
    assert above(counted, how="last") == {0.25}
    assert above(counted, "dead_units") == above(frame) == {0.0}
    # No episode ended in the first half: it has a count and no return.
    none = with_episodes(frame, 0, 3)
    none = none[(none["metric"] != "train_return") | (none["update"] % 10 != 5)]
    assert above(none) == {0.25}
    # One run of a table without counts beside those that have them.
    old = counted["run"].eq("warm_start-0") & counted["metric"].eq("episodes")
    assert above(counted[~old]) == {0.0, 0.125}


def test_a_round_of_a_seed_that_diverged_is_nan(frame: pd.DataFrame) -> None:
    for table_ in (frame, with_episodes(frame, 1, 3)):
        # In round 3 after its first row, so that only a part of that round has values.
        lost = diverge(table_, "warm_start", 1, 28)
        for how in ("mean", "last"):
            for metric in ("train_return", "dead_units"):
                values = results.by_round(lost, metric, how=how)
                missing = values[values["value"].isna()]
                assert len(values) == len(NAMES) * len(SEEDS) * len(ROUNDS)
                assert list(missing["run"]) == ["warm_start-1"] * 2
                assert list(missing["round"]) == [3, 4]


def test_divergences_are_where_the_rows_say_or_values_end(frame: pd.DataFrame) -> None:
    lost = diverge(frame, "warm_start", 1, 28)
    for table_, update in ((lost, 28), (lost[lost["metric"] != "diverged"], 30)):
        (row,) = results.divergences(table_).to_dict("records")
        assert row == {
            "run": "warm_start-1",
            "env": "cartpole",
            "shift": "permute",
            "intervention": "warm_start",
            "seed": 1,
            "round": 3,
            "update": update,
        }
    assert results.divergences(frame).empty
    assert results.divergences(results.empty()).empty


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"metric": "train_retrun"}, "metric train_retrun.*dead_units"),
        ({"metric": "dead_units", "layer": "hidden_9"}, "layer hidden_9.*all"),
        ({"metric": "dead_units", "how": "median"}, "how='median': expected one of mean, last"),
    ],
)
def test_by_round_names_what_there_is(
    frame: pd.DataFrame, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(results.ResultsError, match=message):
        results.by_round(frame, **asked)


def test_bootstrap_agrees_with_normal_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mean, low, high = results.bootstrap_mean(values, confidence=0.9)
    half = scipy.stats.norm.ppf(0.95) * values.std() / np.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.06 * half)
    assert results.bootstrap_mean(values, confidence=0.9) == (mean, low, high)


def test_bootstrap_of_two_values_spans_them() -> None:
    # Both draws are the same value a quarter of the time, far more than 2.5 %.
    assert results.bootstrap_mean([1.0, 3.0]) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (np.nan, np.nan, np.nan)),
        ([2.0], (2.0, np.nan, np.nan)),
        ([np.nan, 2.0], (2.0, np.nan, np.nan)),
        ([2.0, 2.0, 2.0], (2.0, 2.0, 2.0)),
        ([1.0, np.inf], (np.inf, np.nan, np.nan)),
    ],
)
def test_bootstrap_of_too_few_or_equal_values_is_silent(
    values: list[float], expected: tuple[float, float, float]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_equal(results.bootstrap_mean(values), expected)


def test_difference_is_paired_where_the_seeds_are_the_same(frame: pd.DataFrame) -> None:
    # shrink_perturb exceeds warm_start by 1.5 (1 + seed) (round - 1): over rounds 3 and 4 that is
    # 3.75, 7.5 and 11.25, so that no paired resample has a mean outside of these.
    paired = results.difference(frame, "train_return", "shrink_perturb", "warm_start", (3, 4))
    by_hand = results.bootstrap_mean([3.75, 7.5, 11.25])
    np.testing.assert_allclose(paired, by_hand)

    # A constant added to one seed of both cancels within pairs, and only there.
    noisy = frame.assign(value=frame["value"] + 100.0 * (frame["seed"] == 1))
    same = results.difference(noisy, "train_return", "shrink_perturb", "warm_start", (3, 4))
    np.testing.assert_allclose(same, by_hand)
    fewer = noisy[(noisy["intervention"] != "warm_start") | (noisy["seed"] != 2)]
    unpaired = results.difference(fewer, "train_return", "shrink_perturb", "warm_start", 4)
    means = [
        np.mean([level(name, s, 4) for s in seeds]) + 100 / len(seeds)
        for name, seeds in (("shrink_perturb", SEEDS), ("warm_start", (0, 1)))
    ]
    assert unpaired.mean == pytest.approx(means[0] - means[1])
    assert unpaired.high - unpaired.low > 50


def test_difference_says_what_it_cannot_compare(frame: pd.DataFrame) -> None:
    two = results.concat([frame, frame.assign(env="gather")])
    for table_, name, rounds, message in (
        (two, "warm_start", 4, "2 conditions"),
        (frame, "cold_start", 4, "intervention cold_start: not in the table.*warm_start"),
        (frame, "warm_start", (4, 9), r"rounds asked for \(4, 9\)"),
    ):
        with pytest.raises(results.ResultsError, match=message):
            results.difference(table_, "train_return", "shrink_perturb", name, rounds)


def test_difference_leaves_out_seeds_that_diverged_and_says_so(frame: pd.DataFrame) -> None:
    def compared(table_: pd.DataFrame, *rounds: int) -> results.Interval:
        return results.difference(table_, "train_return", "shrink_perturb", "warm_start", rounds)

    lost = diverge(frame, "shrink_perturb", 1, 28)
    other = frame[frame["intervention"] == "warm_start"].assign(intervention="l2_norm", run="x")
    lost = results.concat([lost, diverge(other, "l2_norm", 0, 1)])  # Not compared, so not named.
    assert notes_of(lambda: compared(lost, 1, 2)) == []
    assert compared(lost, 1, 2).mean == pytest.approx(1.5)  # 0.75, 1.5 and 2.25
    assert notes_of(lambda: compared(lost, 3, 4)) == [
        "diverged, and left out from that round on: shrink_perturb seed 1 at update 28"
    ]
    with pytest.warns(UserWarning, match="diverged"):
        np.testing.assert_allclose(compared(lost, 3, 4), (7.5, 3.75, 11.25))  # without 7.5

    lost = diverge(diverge(lost, "shrink_perturb", 2, 40), "warm_start", 0, 5)
    assert notes_of(lambda: compared(lost, 4)) == [
        "diverged, and left out from that round on: shrink_perturb seed 1 at update 28, "
        "seed 2 at update 40; warm_start seed 0 at update 5"
    ]
    with pytest.warns(UserWarning, match="diverged"):  # Neither has a seed of the other's.
        assert np.isnan(compared(lost, 4)).all()
    lost = diverge(lost, "shrink_perturb", 0, 20)
    with pytest.raises(
        results.ResultsError, match=r"asked for \(4\); expected rounds within 1 to 3"
    ):
        compared(lost, 4)
    none = diverge(frame[frame["seed"] == 0], "warm_start", 0, 1)
    with pytest.raises(results.ResultsError, match="all diverged"):
        compared(none, 4)


def test_runs_that_share_a_seed_count_once(frame: pd.DataFrame) -> None:
    twice = results.concat([frame, frame.assign(run=frame["run"] + "-again")])

    def again() -> results.Interval:
        return results.difference(twice, "train_return", "shrink_perturb", "warm_start", 4)

    with pytest.warns(UserWarning, match="seed 0 is in 2 runs"):
        averaged = again()
    once = results.difference(frame, "train_return", "shrink_perturb", "warm_start", 4)
    np.testing.assert_allclose(averaged, once)
    for call in (again, lambda: results.summary(twice), lambda: results.overview(twice)):
        notes = notes_of(call)
        assert [note.split(":")[0] for note in notes] == ["shrink_perturb", "warm_start"]


def test_summary_by_hand(frame: pd.DataFrame) -> None:
    summary = results.summary(frame, last=2)
    assert list(summary["intervention"]) == ["warm_start", "shrink_perturb"]
    assert (summary["seeds"] == 3).all()
    warm = summary.iloc[0]
    # Seeds lose 2 (1 + seed) times 2.5, the mean of 2 and 3 rounds after the first.
    losses = [5.0, 10.0, 15.0]
    assert warm["return_first"] == pytest.approx(11.0)
    assert warm["return_last"] == pytest.approx(1.0)
    np.testing.assert_allclose(
        warm[["loss", "loss_low", "loss_high"]].astype(float), results.bootstrap_mean(losses)
    )
    assert warm["dead_units_first"] == pytest.approx(11.0)
    assert warm["dead_units_last"] == pytest.approx(-1.0)
    assert (summary["diverged"] == 0).all()
    assert warm[["gain", "gain_low", "gain_high"]].isna().all()
    np.testing.assert_allclose(
        summary.loc[1, ["gain", "gain_low", "gain_high"]].astype(float),
        results.difference(frame, "train_return", "shrink_perturb", "warm_start", (3, 4)),
    )


def test_summary_without_seeds_that_diverged(frame: pd.DataFrame) -> None:
    lost = diverge(frame, "shrink_perturb", 1, 28)
    assert notes_of(lambda: results.summary(lost)) == []
    row = results.summary(lost, last=2).iloc[1]
    assert (row["seeds"], row["rounds"], row["diverged"]) == (3, 4, 1)
    assert row["return_first"] == pytest.approx(11.0)
    # Without seed 1 from round 3 on: 8.75 and 8.25 are left, which lost 1.25 and 3.75.
    assert row["return_last"] == pytest.approx(8.5)
    np.testing.assert_allclose(
        row[["loss", "loss_low", "loss_high"]].astype(float), (2.5, 1.25, 3.75)
    )
    np.testing.assert_allclose(
        row[["gain", "gain_low", "gain_high"]].astype(float), (7.5, 3.75, 11.25)
    )
    assert row["dead_units_last"] == pytest.approx((8.5 + 7.5) / 2)

    for seed in (0, 2):
        lost = diverge(lost, "shrink_perturb", seed, 5 + 10 * seed)
    row = results.summary(lost, last=2).iloc[1]
    assert row["diverged"] == 3
    assert row["return_first"] == pytest.approx(11.5)  # without seed 0
    assert row[["return_last", "loss", "gain", "dead_units_last"]].isna().all()


def test_summary_has_a_gain_only_over_rounds_of_warm_start(frame: pd.DataFrame) -> None:
    warm = frame["intervention"] == "warm_start"
    for part in (frame[~warm], frame[~warm | (frame["round"] < 4)]):
        assert results.summary(part, last=1)["gain"].isna().all()
    other_shift = results.concat([frame[warm], frame[~warm].assign(shift="other")])
    assert results.summary(other_shift)["gain"].isna().all()
    # Other seeds than its own: not paired. 8.5, 8 and 7.5 less 4.
    one = frame[~warm | (frame["seed"] == 0)]
    assert results.summary(one, last=1).loc[1, "gain"] == pytest.approx(4.0)


def test_a_round_in_which_no_episode_ended_is_passed_over(frame: pd.DataFrame) -> None:
    silent = (frame["metric"] == "train_return") & (frame["round"] == 3) & (frame["seed"] == 0)
    row = results.summary(frame[~silent], last=2).iloc[0]
    assert row["return_last"] == pytest.approx((4.0 + 1.0 - 3.0) / 3)  # 4 in place of 5
    assert row["diverged"] == 0


def test_summary_of_what_is_missing_or_unfinished(frame: pd.DataFrame) -> None:
    incomplete = frame[(frame["metric"] != "effective_rank")]
    behind = (incomplete["seed"] == 2) & (incomplete["round"] > 3)
    summary = results.summary(incomplete[~behind], last=1)
    assert (summary["rounds"] == 3).all()
    assert summary[["effective_rank_first", "effective_rank_last"]].isna().all(axis=None)
    assert summary.loc[0, "return_last"] == pytest.approx(
        np.mean([level("warm_start", seed, 3) for seed in SEEDS])
    )
    settings = results.summary(results.concat([frame, frame.assign(shift="other")]))
    assert list(settings["shift"]) == ["other", "other", "permute", "permute"]
    assert results.summary(results.empty()).empty
