"""Slowly-Changing Regression: the problem, its learner, and what is made of the results."""

import jax
import numpy as np
import pandas as pd
import pytest

import plasticity as pl
from experiments import regression
from plasticity.envs.regression import compute_target
from plasticity.training import loop

ENV = pl.SlowlyChangingRegression()


def make_run(**changes):
    """Two updates of 40 examples in each of two rounds."""
    return pl.Run(
        env=ENV,
        shift=pl.Shifts.of(pl.FlipBits()),
        network=pl.Regressor(),
        agent=pl.OnlineRegression(num_envs=40),
        schedule=pl.Schedule(rounds=2, updates_per_round=2, eval_episodes=0, probe_batch_size=16),
    ).replace(**changes)


def test_the_target_is_that_of_threshold_units():
    """Would catch a threshold of another sign, or a target network that a shift changes."""
    task = jax.tree.map(np.asarray, ENV.task(3).dynamics)
    weights, thresholds = task["target_weights"], task["target_thresholds"]
    assert set(np.unique(weights)) == {-1, 1} == set(np.unique(task["target_outputs"]))
    keys = jax.random.split(jax.random.key(0), 200)
    inputs = np.asarray(jax.vmap(lambda key: ENV.reset(ENV.task(3), key))(keys))
    assert np.ptp(inputs[:, :15], axis=0).max() == 0 < np.ptp(inputs[:, 15:], axis=0).min()
    # Before the bias, which `task` moves to the thresholds: 0.7 * 21 - S > weights @ input + bias.
    for bias in (-1, 1):
        negative = (weights == -1).sum(0) + bias / 2
        units = np.isclose(thresholds, 0.7 * 21 - negative - bias)
        assert 20 < units.sum() < 80
    active = (inputs[:, :, None] * weights).sum(1) > thresholds
    expected = active @ task["target_outputs"] + task["target_offset"]
    targets = jax.vmap(lambda x: compute_target(ENV.task(3), x))(inputs)
    np.testing.assert_array_equal(targets, expected)
    assert np.std(expected) > 0.3


@pytest.mark.parametrize("redraw", [True, False])
def test_flip_bits_changes_slow_bits_alone(redraw):
    """Would catch a shift that flips other than one bit where it should, or the target."""
    shift, task = pl.FlipBits(redraw=redraw), ENV.task(0)
    changed = [shift(task, 1, jax.random.key(i)) for i in range(30)]
    flips = [int(np.sum(t.dynamics["slow_bits"] != task.dynamics["slow_bits"])) for t in changed]
    assert (set(flips) == {1}) != redraw
    assert not redraw or 5 < np.mean(flips) < 10
    np.testing.assert_array_equal(changed[0].dynamics["target_weights"],
                                  task.dynamics["target_weights"])  # fmt: skip
    with pytest.raises(pl.SettingError, match="needs env=regression"):
        shift.check(pl.CartPole())


def test_an_update_is_gradient_descent_on_each_example():
    """Would catch a shuffled order, a step on more than one example, or an error after the step."""
    run = make_run()
    state = loop.init(run)
    params = jax.tree.map(np.asarray, state.train_state.params)
    state, trajectory, _ = loop.rollout(run, state)
    state, metrics = loop.update(run, state, trajectory)
    w, b = (params["torso"]["hidden_0"][name] for name in ("kernel", "bias"))
    v, c = params["value"]["kernel"][:, 0], params["value"]["bias"][0]
    assert not b.any()
    assert c == 0
    assert abs(w).max() <= np.sqrt(6 / 20)
    assert abs(v).max() <= np.sqrt(3 / 5)
    errors = []
    for x, y in zip(trajectory.observation[0], trajectory.reward[0], strict=True):
        x, y = np.asarray(x, np.float64), float(y)
        before = x @ w + b
        hidden = np.maximum(before, 0)
        error = hidden @ v + c - y
        errors.append(error**2)
        at_hidden = 2 * error * v * (before > 0)
        v, c = v - 0.01 * 2 * error * hidden, c - 0.01 * 2 * error
        w, b = w - 0.01 * np.outer(x, at_hidden), b - 0.01 * at_hidden
    np.testing.assert_allclose(metrics["squared_error"]["all"], np.mean(errors), rtol=1e-4)
    trained = state.train_state.params
    np.testing.assert_allclose(trained["torso"]["hidden_0"]["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(trained["value"]["kernel"][:, 0], v, atol=1e-5)


@pytest.mark.slow
def test_interventions_act_on_a_supervised_learner(tmp_path, capsys):
    """Would catch hooks that need a policy, and results that cannot be evaluated."""
    methods = pl.chain(pl.ContinualBackprop(replacement_rate=0.05, maturity=5), pl.L2(), pl.ReDo())
    sweep = tmp_path / "sweep"
    pl.train(make_run(intervention=methods), folder=sweep / "0")
    frame = regression.load(sweep)
    errors = frame[frame["metric"] == "squared_error"].set_index("round")["value"]
    assert errors.between(1e-3, 100).all()
    assert errors.index.to_list() == [1, 2]
    regression.evaluate(frame, tmp_path)
    regression.pack(sweep, tmp_path / "packed")
    assert (tmp_path / "figures/squared_error.png").is_file()
    packed = regression.errors_by_method(regression.load(tmp_path / "packed"))
    pd.testing.assert_frame_equal(packed, regression.errors_by_method(frame))
    assert regression.markdown(packed) in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"network": pl.Regressor(hidden=())},
        {"agent": pl.OnlineRegression(rule="adam"), "intervention": pl.chain(pl.TRAC())},
    ],
    ids=["linear", "adam"],
)
def test_other_learners_can_be_trained(changes):
    """Would catch a network without hidden layers, or an update rule, that has no gradient step."""
    run = make_run(**changes)
    jax.eval_shape(lambda: loop.train_updates(run, loop.init(run), 2))


def test_errors_by_method_compares_the_first_rounds_with_the_last():
    """Would catch means over other rounds, and a diverged seed that counts as a good one."""
    rounds = np.arange(1, 31)
    rows = [
        {"run": f"{seed}", "env": "e", "shift": "s", "intervention": "warm_start", "seed": seed,
         "round": r, "update": r, "env_steps": r, "metric": "squared_error", "layer": "all",
         "value": np.nan if seed == 2 and r > 5 else r + seed}
        for seed in range(3) for r in rounds
    ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(**{regression.STEP_SIZE: 0.01})
    (row,) = regression.errors_by_method(frame).itertuples()
    assert (row.first, row.last, row.rise, row.seeds) == (6.0, 26.0, 20.0, 3)


def test_a_regressor_refuses_what_it_cannot_learn():
    with pytest.raises(pl.SettingError, match="network"):
        pl.Regressor(hidden=(5,), activation="crelu").build((20,), 1)
    with pytest.raises(pl.SettingError, match=r"env\.slow_bits=21: must be at most"):
        pl.SlowlyChangingRegression(slow_bits=21).check()
