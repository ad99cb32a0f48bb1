"""The study: its verdicts on tables whose answers are known, its figures by what they draw."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hydra import compose, initialize_config_dir
from matplotlib.colors import to_hex

from experiments.juliani_ash_2024 import claims
from experiments.juliani_ash_2024.figures import RETURNS, figures, metrics_of, returns, tables
from experiments.juliani_ash_2024.pack import pack
from experiments.juliani_ash_2024.reproduce import SIZES, main, markdown
from experiments.juliani_ash_2024.size import write_sizes
from experiments.juliani_ash_2024.tune import rank_settings, write_choice
from plasticity import results
from plasticity.cli.command import CONFIG, CONFIGS

pytestmark = pytest.mark.slow

METHODS = (
    "warm_start",
    "reset_all",
    "reset_final",
    "plasticity_injection",
    "shrink_perturb",
    "soft_shrink_perturb",
    "regenerative_l2",
    "l2_norm",
    "layer_norm",
    "crelu",
    "redo",
    "soft_shrink_perturb+layer_norm",
    "regenerative_l2+layer_norm",
)
CURES = {*METHODS[4:9], "reset_all", *METHODS[-2:]}
CORRELATED = {*METHODS[:8], "redo"}
METRICS = (
    "policy_entropy",
    "weight_rms",
    "update_size",
    "gradient_norm",
    "rollout_inactive_fraction/hidden_1",
)
SHIFTS = ("permute", "window", "expand")
ROUNDS = 5


def fall(name, shift, metric):
    """What a method loses in each round, in a world in which the paper is right."""
    if metric == "eval_test_return" and name == "layer_norm" and shift == "window":
        return 0.3
    if name == "crelu":
        return 0.0 if shift == "permute" else 0.3
    return 0.0 if name in CURES else 0.3


def study(fall=fall, seeds=4, tied=0.5):
    """A results table of the whole study, of which every return falls as `fall` says.

    All metrics rise by `tied` times what the train return has lost.
    """
    rng = np.random.default_rng(0)
    rows = []
    for shift in SHIFTS:
        for name in METHODS:
            for seed in range(seeds):
                for r in range(1, ROUNDS + 1):
                    noise = rng.normal(0, 0.01, 2 + len(METRICS))
                    lost = [fall(name, shift, metric) * (r - 1) for metric in RETURNS]
                    values = [2 - x for x in lost] + [1 + tied * lost[0]] * len(METRICS)
                    for metric, value in zip((*RETURNS, *METRICS), values + noise, strict=True):
                        metric, _, layer = metric.partition("/")
                        rows.append((name, shift, seed, r, metric, layer or "all", value))
    columns = ["intervention", "shift", "seed", "round", "metric", "layer", "value"]
    frame = pd.DataFrame(rows, columns=columns)
    return results.validate(
        frame.assign(
            run=frame["shift"] + "-" + frame["intervention"],
            env="gather",
            update=10 * frame["round"],
            env_steps=640 * frame["round"],
        )
    )


def in_coinrun(frame):
    """The same results, of CoinRun and its deeper network."""
    return frame.assign(env="CoinrunEasy-v0", layer=frame["layer"].replace("hidden_1", "hidden_4"))


def montezuma(seeds=4, updates=100, **earned):
    """A results table of Montezuma's Revenge, in which nothing is earned but in the second half.

    An episode ends in every second update, of a seed's own, and earns what is said of its method.
    """
    rng, rows = np.random.default_rng(0), []
    for name, value in earned.items():
        for seed in range(seeds):
            for update in range(1 + seed % 2, updates + 1, 2):
                got = (value + rng.normal(0, 0.01)) * (update > updates / 2) * (value > 0)
                for metric, value_of in (("train_return", got), ("intrinsic_return", 5 / update)):
                    rows.append((name, seed, update, metric, value_of))
                rows.append((name, seed, update, "episodes", 1 + update % 3))
    frame = pd.DataFrame(rows, columns=["intervention", "seed", "update", "metric", "value"])
    return results.validate(
        frame.assign(
            run=frame["intervention"],
            env="MontezumaRevenge-v5",
            shift="none",
            round=1,
            layer="all",
            env_steps=4096 * frame["update"],
        )
    )


STUDY = study()
COINRUN = in_coinrun(STUDY)
MONTEZUMA = montezuma(warm_start=1, regenerative_l2=2, soft_shrink_perturb=3)


@pytest.fixture(scope="module")
def judged():
    """The claims and effects of a world in which the paper is right."""
    return claims.evaluate_claims(STUDY)


def verdicts(frame):
    return claims.evaluate_claims(frame)[0].set_index("name")["verdict"].to_dict()


def test_where_the_paper_is_right_every_claim_holds(judged):
    """Would catch a sign that is turned, and parts that are never judged."""
    found = judged[0].set_index("name")["verdict"].to_dict()
    assert found == {f"C{i}": "holds" for i in range(1, 7)} | {"C7": "not run"}


def rises(name, *what):
    """A world in which the baseline learns better in each round, and nothing is lost."""
    return -0.3 if name == "warm_start" else 0.0


def test_where_it_is_wrong_claims_fail():
    """Would catch a verdict that cannot be anything else."""
    gaining = verdicts(study(rises))
    assert gaining["C1"] == "fails"
    # What is not lost cannot be cured, and moves with nothing.
    assert {gaining[f"C{i}"] for i in range(2, 7)} == {"undecided"}

    def cures_or_not(name, shift, metric):
        if name in ("reset_final", "crelu"):
            return 0.0
        return 0.6 if name in ("l2_norm", claims.BEST) else fall(name, shift, metric)

    wrong = verdicts(study(cures_or_not, tied=-0.5))
    assert wrong == {"C1": "holds", "C7": "not run"} | {f"C{i}": "fails" for i in range(2, 7)}


def test_layer_norm_need_not_be_harmful_to_be_inconsistent():
    """Would catch a first half of C5 that holds only where layer_norm does harm."""

    def consistent(name, shift, metric):
        return 0.0 if name == "layer_norm" else fall(name, shift, metric)

    judged, effects = claims.evaluate_claims(study(consistent))
    assert judged.set_index("name").loc["C5", "verdict"] == "fails"
    of = effects[effects["what"] == "test: half of the gap - gain of layer_norm"]
    assert list(of["verdict"]) == ["fails"] * 3


def test_where_the_control_falls_nothing_is_decidable():
    """Would catch a size too small for its task that makes claims fail, or hold."""

    def harder(name, shift, metric):
        return 0.9 if name == "reset_all" and shift == "expand" else fall(name, shift, metric)

    judged, effects = claims.evaluate_claims(study(harder))
    found = judged.set_index("name")["verdict"]
    assert {found[f"C{i}"] for i in (1, 2, 4, 5)} == {"not decidable at this size"}
    # Two shifts are enough for C3, and for C6, which is about no shift.
    assert found["C3"] == found["C6"] == "holds"
    of = effects[effects["shift"] == "expand"]
    assert set(of["verdict"]) == {"not decidable at this size"}
    assert of[["p_holds", "p_fails"]].isna().all(axis=None)
    points = effects[effects["claim"] == "C6"]
    assert set(points["shift"]) == {"permute, window"}
    assert set(points["seeds"]) == {2 * len(CORRELATED)}
    # What fails elsewhere fails all the same.
    fails = verdicts(study(lambda *what: 0.0 if what[0] == "reset_final" else harder(*what)))
    assert fails["C2"] == "fails"
    everywhere = verdicts(study(lambda *what: 0.3 - fall(*what)))
    assert {everywhere[f"C{i}"] for i in range(1, 7)} == {"not decidable at this size"}


def test_an_effect_that_fails_is_corrected_for_their_number():
    """Would catch a claim that fails by chance since it has many effects."""

    def of(count, name="C4"):
        others = [claims.Effect(name, "window", "x", 0, -1, 1, 0.01, 1, 4)] * (count - 1)
        failing = claims.Effect(name, "permute", "x", -1, -2, -0.1, 1, 0.02, 4)
        return claims._with_verdicts(name, [failing, *others])[0]

    assert (of(1).verdict, of(2).verdict, of(3).verdict) == ("fails", "fails", "undecided")
    assert of(3).p_fails == pytest.approx(0.06)


def test_one_seed_or_mere_noise_decides_nothing():
    of_seeds = verdicts(study(seeds=1))
    assert {of_seeds[f"C{i}"] for i in range(1, 7)} == {"undecided"}
    few = claims.evaluate_claims(STUDY[STUDY["round"] <= claims.LAST])[0]
    assert set(few["verdict"]) == {"not run"}
    assert set(few["here"][:-1]) == {"3 rounds: expected more than 3"}
    noise = verdicts(study(lambda *what: 0.0, seeds=3))
    assert "holds" not in {noise[name] for name in ("C1", "C2", "C4")}


def test_effects_and_intervals_are_students(judged):
    parts = judged[1]
    part = parts[(parts["claim"] == "C1") & (parts["shift"] == "window")].iloc[1]
    assert part["what"] == "reset_all - warm_start"
    train = STUDY[(STUDY["metric"] == "train_return") & (STUDY["shift"] == "window")]
    wide = train.pivot(index="seed", columns=["intervention", "round"], values="value")
    change = {
        name: (wide[name][[3, 4, 5]].mean(axis=1) - wide[name][1])
        for name in ("reset_all", "warm_start")
    }
    d = change["reset_all"] - change["warm_start"]
    reach = 3.182446 * d.std(ddof=1) / 2  # t of 3 degrees of freedom; the root of 4 seeds
    assert part["effect"] == pytest.approx(d.mean())
    assert part["low"] == pytest.approx(d.mean() - reach)
    assert part["high"] == pytest.approx(d.mean() + reach)
    assert part["p_holds"] == pytest.approx(scipy.stats.ttest_1samp(d, 0).pvalue)
    assert part["p_fails"] == 1
    # The power of the test at the detectable effect, by the noncentral t-distribution.
    shift = part["detectable"] / (d.std(ddof=1) / 2)
    power = scipy.stats.nct.sf(3.182446, 3, shift) + scipy.stats.nct.cdf(-3.182446, 3, shift)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_a_verdict_by_the_returns_themselves_is_given_beside_it(capsys):
    """Would catch a method whose first round is poor, and that cures for that reason alone."""
    poor = (STUDY["intervention"] == "l2_norm") & (STUDY["metric"] == "train_return")
    frame = STUDY.assign(value=STUDY["value"] - poor)
    judged, effects = claims.evaluate_claims(frame)
    judged = judged.set_index("name")
    assert tuple(judged.loc["C4", ["verdict", "by_value"]]) == ("holds", "fails")
    assert tuple(judged.loc["C1", ["verdict", "by_value"]]) == ("holds", "holds")
    differ = effects[effects["verdict"] != effects["by_value"]]
    assert set(differ["what"]) == {"gain of l2_norm - half of the gap"}
    assert "by the returns: fails" in markdown(frame)[0]


def test_a_seed_that_diverged_leaves_its_parts_undecided():
    """Would catch verdicts on those seeds alone that a method did not ruin."""
    ruined = (STUDY["intervention"] == "redo") | (STUDY["intervention"] == "l2_norm")
    ruined &= (STUDY["seed"] == 1) & (STUDY["round"] > 2)
    frame = STUDY.assign(value=STUDY["value"].mask(ruined))
    with pytest.warns(UserWarning, match="diverged"):
        judged, parts = claims.evaluate_claims(frame)
    judged = judged.set_index("name")
    assert judged.loc["C4", "verdict"] == "undecided"
    assert judged.loc["C1", "verdict"] == "holds"
    of = parts[parts["what"].str.contains("l2_norm") & (parts["shift"] == "window")]
    assert "1 seeds without a value" in of["what"].iloc[0]
    # What can be drawn is drawn all the same.
    few = frame[frame["intervention"].isin([*METHODS[:2], "redo"]) & (frame["shift"] == "window")]
    with pytest.warns(UserWarning, match="A_profiles: left out, .*has no score"):
        names = [one.name for one in figures(few)]
    assert "4_intervals" in names
    assert "A_profiles" not in names


def test_correlations_are_over_methods_that_leave_the_network_alone(judged):
    """Would catch crelu's dead units, half by construction, among those of other networks."""
    parts = judged[1]
    points = parts[parts["claim"] == "C6"]
    assert (points["effect"] > 0.99).all()
    assert set(points["seeds"]) == {3 * len(CORRELATED)}
    others = ~STUDY["intervention"].isin(CORRELATED) & ~STUDY["metric"].isin(RETURNS)
    assert others.any()
    wild = STUDY.assign(value=STUDY["value"].mask(others, -9.0 * STUDY["round"]))
    found = claims.evaluate_claims(wild)[1]
    pd.testing.assert_frame_equal(found[found["claim"] == "C6"], points)


def test_returns_are_not_changes():
    """Would catch a poor first round that counts as a gain."""
    poor = (STUDY["intervention"] == "l2_norm") & (STUDY["round"] == 1)
    frame = STUDY.assign(value=STUDY["value"].mask(poor, 0.0))
    found = returns(frame).set_index(["shift", "intervention"])
    own = found.loc[("window", "l2_norm")]
    assert own["value"] == pytest.approx(2, abs=0.02)
    assert own["first"] == 0
    assert own["gain"] == pytest.approx(0.3 * 3, abs=0.03)
    assert own["gain_low"] < own["gain"] < own["gain_high"]
    assert np.isnan(found.loc[("window", "warm_start"), "gain"])


def test_what_is_missing_is_named():
    judged = claims.evaluate_claims(STUDY[STUDY["intervention"] != "crelu"])[0].set_index("name")
    assert judged.loc["C3", "verdict"] == "not run"
    assert "intervention crelu: not in the table" in judged.loc["C3", "here"]
    assert judged.loc["C4", "verdict"] == "holds"
    judged = claims.evaluate_claims(STUDY[STUDY["intervention"] != "warm_start"])[0].set_index(
        "name"
    )
    assert "intervention warm_start: not in the table" in judged.loc["C1", "here"]
    judged = claims.evaluate_claims(STUDY[STUDY["shift"] != "expand"])[0].set_index("name")
    assert "shift expand: not in the table" in judged.loc["C1", "here"]
    with pytest.raises(results.ResultsError, match="gridworld: expected one env, not gather, oth"):
        claims.evaluate_claims(results.concat([STUDY, STUDY.assign(env="other")]))
    with pytest.raises(results.ResultsError, match="no rows"):
        claims.evaluate_claims(results.empty())


@pytest.mark.parametrize(
    ("earned", "verdict", "here"),
    [
        ({"regenerative_l2": 2, "soft_shrink_perturb": 3}, "holds", "none: 2 holds"),
        ({"regenerative_l2": 2, "soft_shrink_perturb": 0.5}, "fails", "none: 1 holds, 1 fails"),
        ({"regenerative_l2": 2, "soft_shrink_perturb": 1}, "undecided", "1 holds, 1 undecided"),
        ({"regenerative_l2": 2}, "not run", "intervention soft_shrink_perturb: not in the table"),
    ],
)
def test_in_montezuma_both_methods_must_earn_more(earned, verdict, here):
    """Would catch a sign that is turned, and a verdict on one method of two."""
    judged = claims.evaluate_claims(montezuma(warm_start=1, **earned))[0].set_index("name")
    assert judged.loc["C7", "verdict"] == verdict
    assert here in judged.loc["C7", "here"]
    assert set(judged.loc["C1":"C6", "here"]) == {"needs an env that shifts"}


def test_where_nothing_was_earned_nothing_is_judged():
    """Would catch a tie that is told as if something had been measured."""
    none = montezuma(warm_start=0, regenerative_l2=0, soft_shrink_perturb=0)
    judged, parts = claims.evaluate_claims(none)
    assert judged.iloc[0]["verdict"] == "undecided"
    assert judged.iloc[0]["here"] == "none: 2 undecided; no return was found"
    assert list(parts["seeds"]) == [0, 0]
    # Once is enough to say no such thing; at the end they are level.
    once = none.assign(value=none["value"].mask(none.index == none.index[0], 1.0))
    judged, parts = claims.evaluate_claims(once)
    assert judged.iloc[0]["here"] == "none: 2 undecided"
    assert list(parts["effect"]) == [0, 0]
    # What is no Montezuma says nothing about it.
    other = claims.evaluate_claims(MONTEZUMA.assign(env="cartpole"))[0]
    assert other.iloc[0]["here"] == "needs Montezuma's Revenge"


def test_what_is_earned_is_the_mean_over_the_episodes_of_the_last_tenth():
    """Would catch a mean over rows, over all of training, or of seeds that are not paired."""
    parts = claims.evaluate_claims(MONTEZUMA)[1].set_index("what")
    late = MONTEZUMA[MONTEZUMA["update"] > 90]
    wide = late.pivot(index=["intervention", "seed", "update"], columns="metric", values="value")
    weighted = (wide["train_return"] * wide["episodes"]).groupby(["intervention", "seed"]).sum()
    own = weighted / wide["episodes"].groupby(["intervention", "seed"]).sum()
    d = own["regenerative_l2"] - own["warm_start"]
    part = parts.loc["regenerative_l2 - warm_start"]
    assert part["effect"] == pytest.approx(d.mean())
    assert part["low"] == pytest.approx(d.mean() - 3.182446 * d.std(ddof=1) / 2)
    found = tables(MONTEZUMA)
    table = found["returns_train_return"].set_index("intervention")
    assert table.loc["regenerative_l2", "value"] == pytest.approx(own["regenerative_l2"].mean())
    assert table.loc["regenerative_l2", "gain"] == pytest.approx(d.mean())
    assert table.loc["regenerative_l2", "first"] == 0
    paired = found["paired_vs_warm_start_train_return"]
    assert set(paired["intervention"]) == {"regenerative_l2", "soft_shrink_perturb"}


def test_a_seed_of_which_no_episode_ended_leaves_its_part_undecided():
    lost = (MONTEZUMA["intervention"] == "regenerative_l2") & (MONTEZUMA["update"] > 90)
    parts = claims.evaluate_claims(MONTEZUMA[~(lost & (MONTEZUMA["seed"] == 2))])[1]
    assert list(parts["verdict"]) == ["undecided", "holds"]
    assert "1 seeds without a value" in parts["what"].iloc[0]
    assert list(claims.evaluate_claims(MONTEZUMA[~lost])[1]["seeds"]) == [0, 4]
    assert list(tables(MONTEZUMA[~lost])["returns_train_return"]["seeds"]) == [4, 0, 4]


def test_claims_are_judged_for_each_env():
    """Would catch results of two envs in one verdict."""
    here = in_coinrun(study(rises))
    judged, parts = claims.evaluate_claims(results.concat([MONTEZUMA, here, STUDY]))
    assert list(judged["env"]) == ["gather"] * 6 + ["CoinrunEasy-v0"] * 6 + ["MontezumaRevenge-v5"]
    found = judged.set_index(["env", "name"])["verdict"]
    assert set(found["gather"]) == {"holds"}
    assert found["CoinrunEasy-v0", "C1"] == "fails"
    assert found["MontezumaRevenge-v5", "C7"] == "holds"
    for env, frame in (("gather", STUDY), ("CoinrunEasy-v0", here)):
        own = claims.evaluate_claims(frame)[1]
        pd.testing.assert_frame_equal(parts[parts["env"] == env].reset_index(drop=True), own)


def test_dead_units_are_those_of_the_last_hidden_layer():
    rows = STUDY[STUDY["layer"] == "hidden_1"]
    names = ("hidden_9", "hidden_10", "value_hidden_11", "hidden_0_0_in", "all")
    deep = results.concat([STUDY, *(rows.assign(layer=name) for name in names)])
    assert metrics_of(deep)[-1] == "rollout_inactive_fraction/hidden_10"
    assert metrics_of(COINRUN)[-1] == "rollout_inactive_fraction/hidden_4"
    assert metrics_of(MONTEZUMA)[-1] == "rollout_inactive_fraction"


@pytest.fixture(scope="module")
def drawn():
    return {one.name: one for one in figures(STUDY)}


def test_every_figure_is_drawn(drawn):
    names = ["2_warm_start", "3_correlations", "4_intervals"]
    names += [f"5_rounds_{metric}" for metric in RETURNS]
    names += [*(f"A_rounds_{metric.split('/')[0]}" for metric in METRICS), "A_profiles"]
    names += ["A_sample_efficiency", *(f"A_within_round_{shift}" for shift in SHIFTS)]
    assert list(drawn) == names
    assert all(len(one.data) for one in drawn.values())


def test_each_env_has_its_figures(drawn):
    """Would catch figures of one env in place of another's, and seeds of two in one panel."""
    few = COINRUN[COINRUN["intervention"].isin(METHODS[:3])].assign(value=COINRUN["value"] + 1)
    both = {one.name: one for one in figures(results.concat([MONTEZUMA, few]))}
    assert list(both) == [
        "6_warm_start",
        "6_correlations",
        "6_intervals",
        *(f"6_rounds_{metric.split('/')[0]}" for metric in (*RETURNS, *METRICS)),
        "6_profiles",
        "6_sample_efficiency",
        *(f"6_within_round_{shift}" for shift in SHIFTS),
        "7_learning",
    ]
    assert set(both["6_intervals"].data["env"]) == {"CoinrunEasy-v0"}
    ends = both["6_rounds_train_return"].data
    own = drawn["5_rounds_train_return"].data
    own = own[own["intervention"].isin(METHODS[:3])]
    np.testing.assert_allclose(ends["value"], own["value"] + 1)


def test_the_learning_curves_show_both_returns_of_every_method_and_seed():
    (one,) = figures(MONTEZUMA)
    extrinsic, intrinsic = one.figure.axes
    assert "intrinsic" in intrinsic.get_ylabel().lower()
    for ax in one.figure.axes:
        named = {line.get_label(): line for line in ax.lines}
        assert len(named) == 3 * (1 + 4)
        assert {"warm start", "_warm_start seed 3"} <= set(named)
    (mean,) = (line for line in extrinsic.lines if line.get_label() == "soft shrink perturb")
    assert mean.get_xdata()[-1] == 100 * 4096
    np.testing.assert_allclose(mean.get_ydata(), np.repeat([0, 3], 20), atol=0.02)
    data = one.data[one.data["metric"] == "train_return"]
    assert len(data) == 3 * 4 * 40
    # Without RND there is one return.
    plain = MONTEZUMA[MONTEZUMA["metric"] != "intrinsic_return"]
    assert len(next(figures(plain)).figure.axes) == 1


def test_the_warm_start_figure_shows_both_returns_by_update_and_round(drawn):
    axes = np.array(drawn["2_warm_start"].figure.axes).reshape(4, 3)
    assert [ax.get_title() for ax in axes[0]] == ["Permute", "Window", "Expand"]
    for line in axes:
        for ax in line:
            shown = {line.get_label() for line in ax.lines if not line.get_label().startswith("_")}
            assert shown == {"warm start", "reset all"}
    # The mean over seeds, at the ends of rounds.
    (mean,) = (line for line in axes[2, 0].lines if line.get_label() == "warm start")
    rows = STUDY[
        (STUDY["shift"] == "permute")
        & (STUDY["metric"] == "train_return")
        & (STUDY["intervention"] == "warm_start")
    ]
    np.testing.assert_allclose(mean.get_ydata(), rows.groupby("round")["value"].mean())
    assert len([line for line in axes[0, 0].lines if line.get_label() == "_shift"]) == ROUNDS - 1


def test_the_interval_figure_places_every_method(drawn):
    one = drawn["4_intervals"]
    axes = np.array(one.figure.axes).reshape(2, 3)
    names = [label.get_text() for label in axes[0, 0].get_yticklabels()]
    assert len(names) == len(METHODS)
    assert names[:2] == ["warm start", "reset all"]
    data = one.data[(one.data["metric"] == "train_return") & (one.data["shift"] == "window")]
    for place, name in enumerate(names):
        own = data[data["intervention"] == name.replace(" + ", "+").replace(" ", "_")]["score"]
        at = [line for line in axes[0, 1].lines if np.all(np.asarray(line.get_ydata()) == place)]
        seeds, bar, mean = (np.atleast_1d(line.get_xdata()) for line in at)
        np.testing.assert_allclose(seeds, own)
        assert mean[0] == pytest.approx(own.mean())
        assert bar[0] <= mean[0] <= bar[1]


def test_the_round_figures_have_references_everywhere_and_each_method_once(drawn):
    axes = np.array(drawn["5_rounds_train_return"].figure.axes).reshape(3, 4)
    for line in axes:
        shown = [
            [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
            for ax in line
        ]
        assert all({"warm start", "reset all"} <= set(some) for some in shown)
        others = [n for some in shown for n in some if n not in ("warm start", "reset all")]
        assert len(others) == len(set(others)) == len(METHODS) - 2


def test_the_correlation_figure_has_a_point_for_each_method_and_shift(drawn):
    one = drawn["3_correlations"]
    axes = np.array(one.figure.axes).reshape(len(RETURNS), len(METRICS))
    for target, line in zip(RETURNS, axes, strict=True):
        for metric, ax in zip(METRICS, line, strict=True):
            *points, fit = ax.lines
            assert len(points) == 3 * len(CORRELATED)
            found = {(p.get_xdata().item(), p.get_ydata().item()) for p in points}
            assert found == set(zip(one.data[metric], one.data[target], strict=True))
            slope, intercept = np.polyfit(one.data[metric], one.data[target], 1)
            np.testing.assert_allclose(
                fit.get_ydata(), intercept + slope * fit.get_xdata(), atol=1e-9
            )
            assert "R² = " in ax.get_title()
    few = STUDY[STUDY["intervention"].isin(METHODS[:2]) & (STUDY["shift"] == "window")]
    axes = next(one for one in figures(few) if one.name == "3_correlations").figure.axes
    assert {ax.get_title() for ax in axes} == {"too few points"}


def test_no_two_methods_look_alike(drawn):
    styles = results.line_styles(METHODS)
    assert len(set(styles.values())) == len(METHODS)
    points = drawn["3_correlations"].figure.axes[0].lines[:-1]
    looks = {
        (to_hex(p.get_color()), p.get_markerfacecolor() == "none", p.get_marker()) for p in points
    }
    assert len(looks) == 3 * len(CORRELATED)


def test_the_tables_are_complete():
    found = tables(STUDY)
    assert len(found["t_tests_train_return"]) == 3 * (len(METHODS) - 1)
    assert set(found["paired_vs_warm_start_eval_test_return"]["intervention"]) == {
        *METHODS[1:],
    }
    assert len(found["interquartile_means_train_return"]) == len(METHODS)
    assert list(found["linear_model_train_return"]["term"]) == ["const", *METRICS]


@pytest.mark.filterwarnings("default")
def test_one_command_trains_draws_and_judges(shell, tmp_path, capsys, monkeypatch):
    """Of two methods under one shift: the path is the same, and a part is enough to look at."""
    size = "schedule.updates_per_round=2 agent.num_envs=4 agent.minibatch_size=100"
    size += " network.hidden=[8,8]"
    line = f"smoke {size} shift=permute intervention=warm_start,reset_all out=out"
    assert shell(line, entry=main) == 0
    told = capsys.readouterr()
    assert "2 jobs: 1 program to train" in told.out
    assert "linear_model_train_return: left out, 2 points" in told.err
    folder = tmp_path / "out"
    assert set(results.load(folder)["intervention"]) == {"warm_start", "reset_all"}
    for name in ("1_levels", "2_warm_start", "3_correlations", "4_intervals", "A_profiles"):
        for suffix in (".png", ".svg", ".csv"):
            assert (folder / "figures" / f"{name}{suffix}").stat().st_size > 0
    judged = pd.read_csv(folder / "tables/claims.csv")
    assert list(judged["name"]) == [f"C{i}" for i in range(1, 8)]
    assert set(judged["verdict"]) <= {"not run", "undecided"}

    # Packed, it says the same, and where it came from.
    pack([folder], tmp_path / "packed")
    packed = results.load(tmp_path / "packed")
    pd.testing.assert_frame_equal(
        claims.evaluate_claims(packed)[1], claims.evaluate_claims(results.load(folder))[1]
    )
    provenance = json.loads((tmp_path / "packed/provenance.json").read_text())
    assert set(provenance["runs"]) == {"out/0_warm_start", "out/1_reset_all"}
    assert provenance["config"]["schedule"]["updates_per_round"] == 2
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(results.ResultsError, match="another run of this method and seed"):
        pack([folder, tmp_path / "again"], tmp_path / "packed")
    shutil.rmtree(tmp_path / "again/0_warm_start")
    meta = tmp_path / "again/1_reset_all/meta.json"
    meta.write_text(meta.read_text().replace('"finished"', '"interrupted"'))
    with pytest.raises(results.ResultsError, match="again: holds no finished run"):
        pack([tmp_path / "again"], tmp_path / "packed")

    for words, told in {
        "smal": "must be a folder of results, or one of coinrun_paper, ",
        "small --markdown": "must be a folder",
        "out seed=[0]": "must be folders, too; overrides go with a size",
    }.items():
        assert shell(words, entry=main) == 2
        assert told in capsys.readouterr().err

    # The folder alone is enough to do it again, and nothing is trained.
    before = (folder / "tables/t_tests_train_return.csv").read_text()
    shutil.rmtree(folder / "tables")
    monkeypatch.setattr(results, "save", lambda figure, path: None)  # drawn above
    assert shell("out", entry=main) == 0
    assert "to train" not in capsys.readouterr().out
    assert (folder / "tables/t_tests_train_return.csv").read_text() == before


@pytest.mark.filterwarnings("default")
def test_folders_of_several_envs_are_judged_together(shell, tmp_path, capsys, monkeypatch):
    drawn, save = ("1_levels", "4_intervals", "6_intervals", "7_learning"), results.save
    monkeypatch.setattr(
        results, "save", lambda figure, path: save(figure, path) if path.name in drawn else None
    )
    few = STUDY["intervention"].isin(METHODS[:2]) & (STUDY["shift"] == "window")
    each = {"gather": STUDY[few], "coinrun": in_coinrun(STUDY[few]), "montezuma": MONTEZUMA}
    for name, frame in each.items():
        results.write(frame, tmp_path / name / "metrics.parquet")
    assert shell("gather montezuma coinrun", entry=main) == 0
    told = capsys.readouterr().out
    places = [told.index(env) for env in ("gather", "CoinrunEasy-v0", "MontezumaRevenge-v5")]
    assert places == sorted(places)
    folder = tmp_path / "gather"
    for name in drawn:
        assert (folder / f"figures/{name}.png").stat().st_size > 0
    judged = pd.read_csv(folder / "tables/claims.csv")
    assert len(judged) == 13
    for env in ("gather", "CoinrunEasy-v0", "MontezumaRevenge-v5"):
        assert set(pd.read_csv(folder / f"tables/{env}/returns_train_return.csv")["env"]) == {env}
    assert not (tmp_path / "coinrun/figures").exists()

    assert shell("montezuma --markdown", entry=main) == 0
    assert "#" not in capsys.readouterr().out
    told = markdown(results.concat([each["montezuma"], each["coinrun"]]))
    assert [text for text in told if text.startswith("#")] == [
        "### CoinrunEasy-v0",
        "### MontezumaRevenge-v5",
    ]
    assert "| `regenerative_l2` | 2.0" in told[-2]
    assert markdown(each["coinrun"])[0].count("| C7 |") == 1


def test_what_is_packed_has_the_whole_learning_curves(tmp_path):
    """Would catch rows that are dropped for they are not at the end of a round."""
    for name in ("warm_start", "regenerative_l2", "soft_shrink_perturb"):
        folder = tmp_path / "from" / name
        own = MONTEZUMA[MONTEZUMA["intervention"] == name]
        results.write(own, folder / "metrics.parquet")
        (folder / "config.yaml").write_text(f"{{seed: 0, shift: {{}}, intervention: {name}}}")
        session = {"wall_seconds": 1.0, "device": ["cpu"], "machine": "here"}
        meta = {"status": "finished", "commit": "c", "sessions": [session], "versions": {}}
        (folder / "meta.json").write_text(json.dumps(meta | {"trained_together": 4}))
    pack([tmp_path / "from"], tmp_path / "to")
    packed = results.load(tmp_path / "to")
    assert len(packed) == len(MONTEZUMA)
    assert list(claims.evaluate_claims(packed)[1]["verdict"]) == ["holds", "holds"]


@pytest.mark.parametrize("size", SIZES)
def test_each_size_names_what_there_is(size):
    """Would catch a method, a shift or a key that was renamed."""
    env = size.partition("_")[0] if "_" in size else "gather"
    # Those whose results come with the repository began with whole observations.
    from_start = size not in ("small", "coinrun_small")
    if not (CONFIGS / f"env/{env}.yaml").exists():
        pytest.skip(f"needs env={env}")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        swept = compose(CONFIG, [f"experiment=reproduce/{size}"], return_hydra_config=True)
        params = swept.hydra.sweeper.params
        assert swept.out == f"outputs/reproduce/{size}"
        for shift in params.shift.split(","):
            config = compose(
                CONFIG,
                [
                    f"experiment=reproduce/{size}",
                    f"shift={shift}",
                    f"intervention=[{params.intervention.replace('[', '').replace(']', '')}]",
                ],
            )
            assert config.shift.get("permute", {}).get("from_start", False) == (
                from_start and shift.startswith("permute")
            )
            assert list(config.shift) == [name for name in [shift.split("_")[0]] if name != "none"]
            assert {"warm_start", "soft_shrink_perturb"} <= {"warm_start", *config.intervention}
            # The gridworld's is 1e-4 in the study, CoinRun's 0.01; 1e-5 was chosen at medium.
            regenerative = config.intervention.get("regenerative_l2")
            images = "paper" in size and env != "gather"
            expected = {"medium": 1e-5}.get(size, 0.01 if images else 1e-4)
            assert regenerative is None or regenerative.coefficient == expected


def test_the_choice_of_a_search_is_the_highest_end_of_round_return(tmp_path, capsys):
    for i, (rate, shape) in enumerate({0.1: [9, 1, 1], 0.2: [0, 3, 3], 0.3: [0, 2, 2]}.items()):
        frame = STUDY[(STUDY["intervention"] == "l2_norm") & (STUDY["round"] <= 3)]
        frame = frame[(frame["metric"] == "train_return") & (frame["shift"] == "permute")]
        folder = Path(tmp_path) / f"{i}_l2_norm"
        results.write(
            frame.assign(value=frame["round"].map(dict(enumerate(shape, 1)))),
            folder / "metrics.parquet",
        )
        (folder / "config.yaml").write_text(f"intervention:\n  l2_norm:\n    decay: {rate}\n")
    found = rank_settings(tmp_path)
    # The first round does not count, nor does a fall from it.
    assert list(found["intervention.l2_norm.decay"]) == [0.2, 0.3, 0.1]
    assert list(found["value"]) == [3, 2, 1]
    write_choice(tmp_path)
    assert "chosen: intervention.l2_norm.decay=0.2" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "choice.csv"), found, check_dtype=False)
    ruined = STUDY[(STUDY["metric"] == "train_return") & (STUDY["intervention"] == "l2_norm")]
    ruined = ruined[(ruined["shift"] == "permute") & (ruined["round"] <= 3)]
    results.write(
        ruined.assign(value=np.where(ruined["seed"] == 0, np.nan, 9.0)),
        tmp_path / "1_l2_norm/metrics.parquet",
    )
    with pytest.warns(UserWarning, match="diverged"):
        assert list(rank_settings(tmp_path)["intervention.l2_norm.decay"]) == [0.3, 0.1, 0.2]
    shutil.rmtree(tmp_path / "1_l2_norm")
    shutil.rmtree(tmp_path / "2_l2_norm")
    with pytest.raises(results.ResultsError, match="no setting varies"):
        rank_settings(tmp_path)


def test_a_size_decides_where_the_control_holds_its_level(tmp_path, capsys):
    """Would catch a rule that looks at the baseline, at one round or at the wrong size."""
    # Of the control, in rounds 1 to 5: the last three have 96 % and 94 % of the first in the mean.
    shapes = {(10, 20): [2, 1, 2.2, 1.9, 1.66], (4, 10): [2, 3, 1.9, 1.9, 1.84]}
    for (levels, updates), shape in shapes.items():
        for name in ("warm_start", "reset_all"):
            rows = STUDY[(STUDY["shift"] == "expand") & (STUDY["intervention"] == name)]
            rows = rows[rows["metric"] == "train_return"]
            values = rows["round"].map(dict(enumerate(shape, 1))) * (name == "reset_all")
            folder = tmp_path / f"{levels}_{name}"
            results.write(rows.assign(value=values), folder / "metrics.parquet")
            config = {"env": {"levels": levels}, "schedule": {"updates_per_round": updates}}
            (folder / "config.yaml").write_text(json.dumps(config))
    write_sizes(tmp_path)
    assert "chosen: 10 levels, 20 updates a round" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "sizes.csv").set_index("env.levels")
    assert dict(found["decides"]) == {10: True, 4: False}
    np.testing.assert_allclose(found.loc[[10, 4], "kept"], [0.96, 0.94])
    assert (tmp_path / "sizes.png").exists()
    shutil.rmtree(tmp_path / "4_warm_start")
    with pytest.raises(results.ResultsError, match="warm_start: no run of 4 levels"):
        write_sizes(tmp_path)
