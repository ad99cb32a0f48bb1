"""Random network distillation against an independent reading of it in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same

from plasticity import PPO, RND, Network, Permute, Run, Schedule, Shifts, chain, results
from plasticity.agents import IntrinsicRewards, Trajectory
from plasticity.interventions import (
    L2Norm,
    LayerNorm,
    ReDo,
    RegenerativeL2,
    ResetAll,
    Rollout,
    SoftShrinkPerturb,
)
from plasticity.networks import Output
from plasticity.probes import CriticError, Probes
from plasticity.struct import SettingError
from plasticity.training import check_run, loop

STEPS, ENVS, SEEN = 5, 3, 6
AGENT = PPO(num_envs=ENVS, num_steps=STEPS, minibatch_size=5, num_epochs=2, learning_rate=1e-2)
MODULE = RND(
    update_proportion=1.0,
    embedding_dim=4,
    obs_clip=1.5,
    gamma=0.9,
    network=Network(hidden=(8, 7, 6)),
    channels=2,
)


def run_of(intrinsic=MODULE, **changes):
    """A short run with an intrinsic reward."""
    return Run(
        env=Toy(),
        network=Network(hidden=(8,)),
        agent=AGENT,
        intrinsic=intrinsic,
        schedule=Schedule(rounds=2, updates_per_round=3, probe_batch_size=16, eval_episodes=2),
    ).replace(**changes)


def context_of(run, key=0):
    """The predictor's context."""
    zero = jnp.zeros((), jnp.int32)
    context = loop.make_context(run, zero, zero)._replace(key=jax.random.key(key))
    return run.intrinsic.make_context(
        run.agent, run.env.observation_shape, jax.random.key(5), context
    )


def initial(run):
    """The state at the beginning, and the predictor's context."""
    context = context_of(run)
    return run.intrinsic.init(run.agent, run.env.observation_shape, context), context


def trajectory_of(seed):
    """A rollout, as far as an intrinsic reward depends on it."""
    draw = np.random.default_rng(seed)
    seen = draw.normal(2.0, 3.0, size=(STEPS, ENVS, SEEN)).astype(np.float32)
    return Trajectory(
        observation=jnp.asarray(seen),
        action=jnp.zeros((STEPS, ENVS), int),
        log_prob=jnp.zeros((STEPS, ENVS)),
        value=jnp.zeros((STEPS, ENVS)),
        next_value=jnp.zeros((STEPS, ENVS)),
        reward=jnp.zeros((STEPS, ENVS)),
        terminated=jnp.asarray(draw.random((STEPS, ENVS)) < 0.3),
        truncated=jnp.zeros((STEPS, ENVS), bool),
        last_obs=jnp.asarray(draw.normal(2.0, 3.0, size=(ENVS, SEEN)).astype(np.float32)),
        intrinsic_value=jnp.asarray(draw.normal(size=(STEPS, ENVS)).astype(np.float32)),
    )


def embedding(params, x):
    """The output of a network of ReLU layers, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = params["torso"]
    for name in sorted(layers):
        x = np.maximum(x @ layers[name]["kernel"] + layers[name]["bias"], 0)
    return x @ params["features"]["kernel"] + params["features"]["bias"]


def test_intrinsic_reward_equals_numpy():
    """Would catch a reward for the wrong observation, sums that end with an episode, scales of a
    batch alone, channels from the wrong side, or statistics that a rollout is not part of."""
    state, context = initial(run_of())

    def policy(observation, memory):
        return Output(None, None, {}, {}, intrinsic_value=jnp.arange(3.0))

    @jax.jit
    def rewards_of(state, trajectory):
        state = MODULE.observe(state, trajectory)
        bonus = MODULE.bonus(state, trajectory, context)
        state, metrics = MODULE.scale(state, bonus)
        return state, MODULE.make_intrinsic(state, trajectory, bonus, policy), metrics

    met, every, sums = [], [], np.zeros(ENVS)
    for seed in range(2):
        trajectory = trajectory_of(seed)
        state, intrinsic, metrics = rewards_of(state, trajectory)
        next_obs = np.concatenate([trajectory.observation[1:], trajectory.last_obs[None]])[..., -2:]
        met.append(next_obs.reshape(-1, 2))
        known = np.concatenate(met)
        x = np.clip((next_obs - known.mean(axis=0)) / known.std(axis=0), -1.5, 1.5)
        novelty = np.mean(
            (embedding(state.predictor.params, x) - embedding(state.target, x)) ** 2, -1
        )
        for row in novelty:
            sums = 0.9 * sums + row
            every.append(sums.copy())
        scale = np.std(every)
        np.testing.assert_allclose(intrinsic.reward, novelty / scale, rtol=5e-3)
        assert float(metrics["novelty"]["all"]) == pytest.approx(novelty.mean(), rel=2e-3)
        assert float(metrics["intrinsic_return"]["all"]) == pytest.approx(
            sums.mean() / scale, rel=5e-3
        )
        value = np.asarray(trajectory.intrinsic_value)
        np.testing.assert_array_equal(intrinsic.value, value)
        np.testing.assert_array_equal(intrinsic.next_value[-1], np.arange(3.0))
        np.testing.assert_array_equal(intrinsic.next_value[:-1], value[1:])


def test_make_batch_weights_both_advantages():
    """Would catch weights exchanged, one discount for both, or novelty that ends with episodes."""
    draw = np.random.default_rng(3)
    trajectory = trajectory_of(0)._replace(
        reward=jnp.asarray(draw.normal(size=(STEPS, ENVS)).astype(np.float32)),
        value=jnp.asarray(draw.normal(size=(STEPS, ENVS)).astype(np.float32)),
    )
    earned = IntrinsicRewards(*draw.normal(size=(3, STEPS, ENVS)).astype(np.float32), 0.8, 3.0, 0.5)
    plain = AGENT.make_batch(trajectory)
    both = AGENT.make_batch(trajectory, earned)
    own = np.zeros((STEPS + 1, ENVS))
    for t in reversed(range(STEPS)):
        delta = earned.reward[t] + 0.8 * earned.next_value[t] - earned.value[t]
        own[t] = delta + 0.8 * AGENT.gae_lambda * own[t + 1]
    own = own[:-1].reshape(-1)
    same(both.advantage, 0.5 * np.asarray(plain.advantage) + 3.0 * own, rtol=1e-4, atol=1e-5)
    same(both.target, plain.target)
    same(both.intrinsic_target, own + earned.value.reshape(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_update_trains_both_value_heads():
    """Would catch a second value without a loss, or one that is trained on the first's target."""
    run = run_of()
    state = jax.jit(lambda run: loop.train_updates(run, loop.init(run), 2)[0])(run)
    state, trajectory, _ = jax.jit(loop.rollout)(run, state)
    assert trajectory.intrinsic_value.shape == (STEPS, ENVS)
    assert not np.allclose(trajectory.intrinsic_value, trajectory.value)
    after, _ = jax.jit(loop.update)(run, state, trajectory)
    for head in ("value", "intrinsic_value"):
        kernels = (of.train_state.params[head]["kernel"] for of in (state, after))
        assert not np.allclose(*kernels)


@pytest.mark.slow
def test_probes_do_not_update_the_statistics():
    """Would catch a rollout that is counted twice when probes use it after its update."""
    run = run_of(probes=Probes.of(CriticError()))

    @jax.jit
    def look(run):
        state, trajectory, _ = loop.rollout(run, loop.init(run))
        state, _ = loop.update(run, state, trajectory)
        bonus = run.intrinsic.bonus(state.intrinsic, trajectory, context_of(run))
        policy = loop.policy(run, state)
        earned = run.intrinsic.make_intrinsic(state.intrinsic, trajectory, bonus, policy)
        known = run.agent.make_batch(trajectory, earned)
        seen = jnp.zeros((4, SEEN))
        return loop.run_probes(run, state, seen, trajectory), known, state

    measured, known, state = look(run)
    value = loop.policy(run, state)(known.observation).value
    error = np.sqrt(np.mean(np.square(value - known.target)))
    assert float(measured["critic_error"]["all"]) == pytest.approx(float(error), rel=1e-4)
    assert float(state.intrinsic.obs_stats.num_samples) == pytest.approx(STEPS * ENVS, abs=0.01)


def test_predictor_learns_the_target():
    """Would catch a target that moves, a predictor that does not, or the share's wrong side."""
    state, context = initial(run_of())
    trajectory = trajectory_of(0)
    rollout = Rollout(AGENT.make_batch(trajectory), ())

    def learn(state, proportion):
        module = MODULE.replace(update_proportion=proportion)
        return module.update(AGENT, state, trajectory, rollout, context)

    learn = jax.jit(learn, static_argnums=1)
    first = None
    after = state
    for _ in range(150):
        after, metrics = learn(after, 1.0)
        first = first or float(metrics["predictor_loss"]["all"])
    assert float(metrics["predictor_loss"]["all"]) < first / 20
    same(after.target, state.target)
    # A mean over those of a minibatch that are trained on, and not over all.
    part = float(learn(state, 0.5)[1]["predictor_loss"]["all"])
    assert first / 2 < part < 2 * first
    assert part != first


@pytest.mark.slow
def test_bonus_falls_with_training_and_survives_a_shift():
    """Would catch a run in which the predictor is not trained, or a shift that forgets it."""
    run = run_of(shift=Shifts.of(Permute()))

    def train(run):
        state, first = loop.train_updates(run, loop.init(run), 1)
        state, _ = loop.train_updates(run, state, 60)
        state, last = loop.train_updates(run, state, 1)
        return state, loop.start_round(run, state), first.metrics, last.metrics

    before, after, first, last = jax.jit(train)(run)
    assert last["novelty"]["all"] < first["novelty"]["all"] / 3
    same(after.intrinsic.predictor.params, before.intrinsic.predictor.params)
    same(after.intrinsic.obs_stats, before.intrinsic.obs_stats)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(after.intrinsic.predictor.opt_state))


@pytest.mark.slow
def test_predictor_has_interventions_of_its_own():
    """Would catch those on the agent acting on the predictor, or those on it being left out."""

    def train(run):
        state = loop.train_updates(run, loop.init(run), 1)[0]
        return loop.start_round(run, state).intrinsic

    def of(agents, predictors):
        intrinsic = MODULE.replace(intervention=chain(*predictors))
        return jax.jit(train)(run_of(intrinsic, intervention=chain(*agents)))

    plain = of([], [])
    same(of([ResetAll(), SoftShrinkPerturb(rate=0.5)], []), plain)
    every = (RegenerativeL2(coefficient=0.1), L2Norm(decay=0.1), SoftShrinkPerturb(rate=1e-3))
    acted = [of([], [part]) for part in (*every, ResetAll(), LayerNorm())]
    for one in acted:
        same(one.target, plain.target)
    kernels = [one.predictor.params["torso"]["hidden_1"]["kernel"] for one in (plain, *acted)]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == len(kernels)
    assert "norm_1" in acted[-1].predictor.params["torso"]


@pytest.mark.parametrize(
    ("intrinsic", "message"),
    [
        (MODULE.replace(channels=7), "intrinsic.channels=7: must be at most 6"),
        (
            MODULE.replace(network=Network(hidden=(8, 8))),
            "must have two layers or more, three without",
        ),
        (
            MODULE.replace(intervention=chain(ReDo())),
            "intrinsic.intervention.redo='ReDo': must be a method",
        ),
        (MODULE.replace(int_coef=-1.0), "intrinsic.int_coef=-1.0"),
        (
            MODULE.replace(network=Network((8, 8, 8), shared=False)),
            "intrinsic.network.shared=False",
        ),
        (MODULE.replace(network=Network(channels=(4,))), "intrinsic.network.channels"),
    ],
)
def test_check_run_refuses(intrinsic, message):
    """Would catch bad settings that come to light when something has been compiled."""
    with pytest.raises(SettingError, match=message.replace("(", r"\(")):
        check_run(run_of(intrinsic))


@pytest.mark.slow
def test_command_line(shell, tmp_path):
    """Would catch a command line without an intrinsic reward, or a table without its metrics."""
    method = "+intervention@intrinsic.intervention=soft_shrink_perturb"
    line = f"experiment=smoke intrinsic=rnd {method} out=o"
    assert shell(line) == 0
    frame = results.load("o")
    assert {"novelty", "intrinsic_reward", "intrinsic_return", "predictor_loss"} <= set(
        frame["metric"]
    )
    config = (tmp_path / "o" / "config.yaml").read_text()
    assert "plasticity.agents.RND" in config
    assert "rate: 1.0e-06" in config or "rate: 1e-06" in config
