"""Comparisons over shifts, against closed forms, textbook equations and rliable's own answers."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from results_helpers import IQM, LEFT
from statsmodels.stats.multitest import multipletests

from plasticity import results
from plasticity.results.comparisons import holm

RIGHT = np.array(
    [
        [0.711631, 1.342513, 0.171465],
        [1.666463, -0.365195, 0.65151],
        [1.20347, 0.394012, -0.443499],
        [-0.621725, -0.157726, 0.520195],
        [-0.709618, 0.090824, 0.140775],
    ]
)
# What rliable 1.2's `probability_of_improvement(LEFT, RIGHT)` gives.
IMPROVEMENT = 0.26666666666666666


def scored(**matrices):
    """Scores from a matrix [seeds, shifts] for each intervention."""
    rows = [
        ("gather", shift, name, seed, matrix[seed, i])
        for name, matrix in matrices.items()
        for i, shift in enumerate(("permute", "window", "expand")[: matrix.shape[1]])
        for seed in range(len(matrix))
    ]
    return pd.DataFrame(rows, columns=["env", "shift", "intervention", "seed", "score"])


def table(value, names=("warm_start", "mine"), shifts=("permute",), seeds=3, rounds=4):
    """A results table whose `train_return` at the end of a round is `value(...)`."""
    rows = [
        (
            f"{shift}-{name}",
            "gather",
            shift,
            name,
            seed,
            r,
            10 * r - back,
            0,
            "train_return",
            "all",
            v,
        )
        for shift in shifts
        for name in names
        for seed in range(seeds)
        for r in range(1, rounds + 1)
        # The row in the middle of a round must not count.
        for back, v in ((5, 99.0), (0, value(shift, name, seed, r)))
    ]
    return results.validate(pd.DataFrame(rows, columns=results.COLUMNS))


def test_changes_are_taken_from_the_end_of_the_first_round():
    frame = table(lambda shift, name, seed, r: 10 * seed + r**2)
    ends = results.end_of_rounds(frame, "train_return")
    assert (ends["value"] == 10 * ends["seed"] + ends["round"] ** 2).all()
    assert (ends["change"] == ends["round"] ** 2 - 1).all()
    last = results.scores(frame, "train_return", rounds=[4])
    assert (last["score"] == 15).all()
    assert len(last) == 6
    # Over all rounds, the first with its zero among them, as the study averages.
    assert (results.scores(frame, "train_return")["score"] == (0 + 3 + 8 + 15) / 4).all()
    own = results.scores(frame, "train_return", rounds=[2, 3], normalized=False)
    assert (own["score"] == 10 * own["seed"] + 6.5).all()
    with pytest.raises(results.ResultsError, match="rounds 9: no seed"):
        results.scores(frame, "train_return", rounds=[9])


def test_a_diverged_seed_has_no_score():
    frame = table(lambda shift, name, seed, r: np.nan if seed == 1 and r > 2 else r)
    with pytest.warns(UserWarning, match="diverged"):
        result = results.scores(frame, "train_return").set_index("seed")["score"]
    assert result[1].isna().all()
    assert (result[[0, 2]] == 1.5).all()


def test_t_tests_are_students_equation():
    scores = scored(reset_all=LEFT, mine=RIGHT)
    tests = results.t_tests(scores)
    assert list(tests["intervention"]) == ["mine"] * 3
    for i, row in enumerate(tests.itertuples()):
        a, b = RIGHT[:, i], LEFT[:, i]
        pooled = (np.sum((a - a.mean()) ** 2) + np.sum((b - b.mean()) ** 2)) / (len(a) + len(b) - 2)
        t = (a.mean() - b.mean()) / np.sqrt(pooled * (1 / len(a) + 1 / len(b)))
        assert row.t == pytest.approx(t)
        assert row.df == 9
        assert row.p == pytest.approx(2 * scipy.stats.t.sf(abs(t), 9))
        assert row.difference == pytest.approx(a.mean() - b.mean())
    with pytest.raises(results.ResultsError, match="intervention none: not in the table"):
        results.t_tests(scores, "none")
    with pytest.raises(results.ResultsError, match="nothing but reset_all"):
        results.paired_tests(scores[scores["intervention"] == "reset_all"])


def test_holm_is_that_of_statsmodels():
    """Would catch a step that is left out, and values put back in another order."""
    p = np.random.default_rng(0).random(20) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_paired_tests_are_of_differences_and_holm_steps_down():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(6, 1))
    methods = {f"m{i}": base + rng.normal(0.2 * i, 0.1, size=(6, 1)) for i in range(4)}
    tests = results.paired_tests(scored(reset_all=base, **methods)).set_index("intervention")
    for name, matrix in methods.items():
        d = (matrix - base)[:, 0]
        t = d.mean() / (d.std(ddof=1) / np.sqrt(6))
        assert tests.loc[name, "t"] == pytest.approx(t)
        assert tests.loc[name, "p"] == pytest.approx(2 * scipy.stats.t.sf(abs(t), 5))
        # An interval without zero is a p below 0.05, and the other way round.
        half_width = 2.570582 * d.std(ddof=1) / np.sqrt(6)
        assert tests.loc[name, "low"] == pytest.approx(d.mean() - half_width)
        assert tests.loc[name, "high"] == pytest.approx(d.mean() + half_width)
    raw = tests["p"].sort_values()
    adjusted = np.maximum.accumulate([min(1, p * (4 - i)) for i, p in enumerate(raw)])
    np.testing.assert_allclose(tests.loc[raw.index, "p_corrected"], adjusted)


def test_pairs_are_those_seeds_that_both_have():
    scores = scored(reset_all=LEFT[:, :1], mine=RIGHT[:, :1])
    (row,) = results.paired_tests(scores).itertuples()
    assert row.seeds == 5
    assert row.difference == pytest.approx(np.mean(RIGHT[:, 0] - LEFT[:5, 0]))
    (alone,) = results.paired_tests(scores[scores["seed"] == 0]).itertuples()
    assert alone.seeds == 1
    assert np.isnan([alone.low, alone.t, alone.p, alone.p_corrected]).all()
    (equal,) = results.paired_tests(
        scored(reset_all=np.round(LEFT[:, :1]), mine=np.round(LEFT[:, :1]) + 1)
    ).itertuples()
    assert equal.difference == pytest.approx(1)
    assert np.isnan([equal.t, equal.p, equal.p_corrected]).all()


def test_aggregates_are_rliables():
    scores = scored(mine=LEFT)
    (row,) = results.aggregates(scores).itertuples()
    assert row.value == pytest.approx(IQM)
    assert (row.seeds, row.shifts) == (6, 3)
    assert row.low < row.value < row.high
    mean = results.aggregates(scores, np.mean)
    # The bootstrap's standard error of a mean is in closed form; a seed keeps its shifts.
    error = np.sqrt(LEFT.mean(axis=1).var() / 6)
    assert mean["high"][0] - mean["low"][0] == pytest.approx(2 * 1.96 * error, rel=0.04)
    lacking = scores[~((scores["seed"] == 2) & (scores["shift"] == "window"))]
    with pytest.raises(results.ResultsError, match="mine: seed 2 has no score under window"):
        results.aggregates(lacking)
    # A shift that another method has is lacking, too.
    more = pd.concat([scores, scored(other=RIGHT[:, :1])])
    with pytest.raises(results.ResultsError, match="other: seed 0 has no score under expand"):
        results.probability_of_improvement(more, "mine")
    with pytest.raises(results.ResultsError, match="of one env"):
        results.aggregates(pd.concat([scores, scores.assign(env="other")]))


def test_probability_of_improvement_is_rliables():
    scores = scored(mine=LEFT, warm_start=RIGHT)
    (row,) = results.probability_of_improvement(scores).itertuples()
    assert row.intervention == "mine"
    assert row.value == pytest.approx(IMPROVEMENT)
    assert 0 <= row.low < row.value < row.high <= 1
    # Two with the same seeds keep their pairs: who is ahead by a hair with each seed stays so.
    same = results.probability_of_improvement(scored(mine=LEFT + 1e-3, warm_start=LEFT))
    assert same.loc[0, "low"] > 0.5
    ties = results.probability_of_improvement(scored(mine=LEFT * 0, warm_start=RIGHT * 0))
    assert tuple(ties.loc[0, ["value", "low", "high"]]) == (0.5, 0.5, 0.5)


def test_profiles_count_runs_above():
    profiles = results.performance_profiles(scored(mine=LEFT), [-3.0, 0.0, 3.0])
    np.testing.assert_allclose(profiles["value"], [1, np.mean(LEFT > 0), 0])
    assert (profiles["low"] <= profiles["value"]).all()
    assert (profiles["value"] <= profiles["high"]).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_the_interquartile_mean_is_within_the_quartiles(values):
    middle = results.interquartile_mean(np.array(values))
    cut = len(values) // 4
    trimmed = sorted(values)[cut : len(values) - cut]
    assert middle == pytest.approx(np.mean(trimmed), rel=1e-9, abs=1e-6)


def test_correlation_and_model_find_what_made_the_points():
    rng = np.random.default_rng(1)
    points = pd.DataFrame(rng.normal(size=(30, 3)), columns=["a", "b", "flat"]).assign(flat=1.0)
    points["ret"] = 2 - 3 * points["a"] + 0.1 * rng.normal(size=30)
    result = results.correlations(points, "ret", ["a", "b", "flat"]).set_index("metric")
    x, y = points["a"], points["ret"]
    r = np.sum((x - x.mean()) * (y - y.mean())) / (29 * x.std() * y.std())
    assert result.loc["a", "r"] == pytest.approx(r)
    assert result.loc["a", "r_squared"] == pytest.approx(r**2)
    assert result.loc["a", "slope"] == pytest.approx(-3, abs=0.1)
    assert result.loc["b", "p_corrected"] == pytest.approx(result.loc["b", "p"])
    assert result.loc["flat", ["r", "p", "p_corrected"]].isna().all()

    model = results.linear_model(points, "ret", ["a", "b"]).set_index("term")
    z = [(points[m] - points[m].mean()) / points[m].std() for m in ("a", "b")]
    design = np.column_stack([np.ones(30), *z])
    solution, (squares,), *_ = np.linalg.lstsq(design, y, rcond=None)
    np.testing.assert_allclose(model["coefficient"], solution)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * squares / (30 - 3))
    np.testing.assert_allclose(model["standard_error"], errors)
    assert (model.loc["a", "low"] < solution[1]) & (solution[1] < model.loc["a", "high"])
    with pytest.raises(results.ResultsError, match="flat: does not vary"):
        results.linear_model(points, "ret", ["a", "flat"])
    with pytest.raises(results.ResultsError, match="3 points: expected more"):
        results.linear_model(points[:3], "ret", ["a", "b"])


def test_points_are_means_of_changes_over_rounds_and_seeds():
    frame = table(
        lambda shift, name, seed, r: seed + (2.0 if name == "mine" else -1.0) * (r - 1),
        shifts=("permute", "window"),
    )
    frame = results.concat([frame, frame.assign(metric="weight", layer="hidden_0")])
    points = results.metric_points(frame, "train_return", ["weight/hidden_0"])
    assert len(points) == 4
    expected = points["intervention"].map({"mine": 3.0, "warm_start": -1.5})
    assert (points["train_return"] == expected).all()
    assert (points["weight/hidden_0"] == expected).all()
