"""Random network distillation against an independent reading of it in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same

from plasticity import PPO, RND, Network, Permute, Run, Schedule, Shifts, chain, results
from plasticity.agents.intrinsic import rnd
from plasticity.agents import ppo, 
from plasticity.agents.ppo import Intrinsic, Trajectory
from plasticity.interventions import (
    L2Norm,
    LayerNorm,
    ReDo,
    RegenerativeL2,
    ResetAll,
    SoftShrinkPerturb,
)
from plasticity.probes import CriticError, Probes
from plasticity.struct import SettingError
from plasticity.training import check_run, loop

STEPS, ENVS, SEEN = 5, 3, 6
AGENT = PPO(num_envs=ENVS, num_steps=STEPS, minibatch_size=5, num_epochs=2, learning_rate=1e-2)
CURIOUS = RND(
    share=1.0, features=4, limit=1.5, gamma=0.9, network=Network(hidden=(8, 7, 6)), channels=2
)


def run_of(curious=CURIOUS, **changes):
    """A short curious life."""
    return Run(
        env=Toy(),
        network=Network(hidden=(8,)),
        agent=AGENT,
        rnd=curious,
        schedule=Schedule(rounds=2, updates=3, probe_batch=16, eval_episodes=2),
    ).replace(**changes)


def tools_of(run, key=0):
    """The predictor's context."""
    zero = jnp.zeros((), jnp.int32)
    context = loop.make_context(run, zero, zero)._replace(key=jax.random.key(key))
    return rnd.make_context(run.rnd, run.agent, run.env.observation_shape, jax.random.key(5), context)


def started(run):
    """Curiosity at the beginning, and the predictor's context."""
    tools = tools_of(run)
    return rnd.start(run.rnd, run.agent, run.env.observation_shape, tools), tools


def trajectory_of(seed):
    """A rollout as far as curiosity looks at it."""
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
        following=jnp.asarray(draw.normal(2.0, 3.0, size=(ENVS, SEEN)).astype(np.float32)),
        intrinsic_value=jnp.asarray(draw.normal(size=(STEPS, ENVS)).astype(np.float32)),
    )


def said(params, x):
    """What a network of ReLU layers says, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = params["torso"]
    for name in sorted(layers):
        x = np.maximum(x @ layers[name]["kernel"] + layers[name]["bias"], 0)
    return x @ params["features"]["kernel"] + params["features"]["bias"]


def test_judged_as_published():
    """Would catch a reward for the wrong observation, sums that end with an episode, scales of a
    batch alone, channels from the wrong side, or statistics that a rollout is not part of."""
    curiosity, tools = started(run_of())

    @jax.jit
    def evaluate_claims(curiosity, met):
        curiosity, found, metrics = rnd.meet(CURIOUS, curiosity, met, tools)
        earned = rnd.evaluate_claims(CURIOUS, curiosity, met, found, jnp.arange(3.0))
        return curiosity, earned, metrics

    met, every, sums = [], [], np.zeros(ENVS)
    for seed in range(2):
        trajectory = trajectory_of(seed)
        curiosity, intrinsic, metrics = evaluate_claims(curiosity, trajectory)
        coming = np.concatenate([trajectory.observation[1:], trajectory.following[None]])[..., -2:]
        met.append(coming.reshape(-1, 2))
        known = np.concatenate(met)
        x = np.clip((coming - known.mean(axis=0)) / known.std(axis=0), -1.5, 1.5)
        novelty = np.mean(
            (said(curiosity.predictor.params, x) - said(curiosity.target, x)) ** 2, -1
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


def test_both_kinds_of_advantages():
    """Would catch weights exchanged, one discount for both, or novelty that ends with episodes."""
    draw = np.random.default_rng(3)
    trajectory = trajectory_of(0)._replace(
        reward=jnp.asarray(draw.normal(size=(STEPS, ENVS)).astype(np.float32)),
        value=jnp.asarray(draw.normal(size=(STEPS, ENVS)).astype(np.float32)),
    )
    earned = Intrinsic(*draw.normal(size=(3, STEPS, ENVS)).astype(np.float32), 0.8, 3.0, 0.5)
    plain = ppo.make_batch(AGENT, trajectory)
    both = ppo.make_batch(AGENT, trajectory, earned)
    own = np.zeros((STEPS + 1, ENVS))
    for t in reversed(range(STEPS)):
        delta = earned.reward[t] + 0.8 * earned.next_value[t] - earned.value[t]
        own[t] = delta + 0.8 * AGENT.gae_lambda * own[t + 1]
    own = own[:-1].reshape(-1)
    same(both.advantage, 0.5 * np.asarray(plain.advantage) + 3.0 * own, rtol=1e-4, atol=1e-5)
    same(both.target, plain.target)
    same(both.intrinsic_target, own + earned.value.reshape(-1), rtol=1e-4, atol=1e-5)


def test_both_values_are_learnt():
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


def test_a_probe_takes_the_statistics_as_they_are():
    """Would catch a rollout that is counted twice when it is looked at after its update."""
    run = run_of(probes=Probes.of(CriticError()))

    @jax.jit
    def look(run):
        state, trajectory, _ = loop.rollout(run, loop.init(run))
        state, _ = loop.update(run, state, trajectory)
        tools = tools_of(run)
        found = rnd.novelty(run.rnd, state.curiosity, trajectory, tools)
        value = loop.policy(run, state)(trajectory.following).intrinsic_value
        earned = rnd.evaluate_claims(run.rnd, state.curiosity, trajectory, found, value)
        known = ppo.make_batch(run.agent, trajectory, earned)
        seen = jnp.zeros((4, SEEN))
        return loop.run_probes(run, state, seen, trajectory), known, state

    measured, known, state = look(run)
    value = loop.policy(run, state)(known.observation).value
    error = np.sqrt(np.mean(np.square(value - known.target)))
    assert float(measured["critic_error"]["all"]) == pytest.approx(float(error), rel=1e-4)
    assert float(state.curiosity.seen.weight) == pytest.approx(STEPS * ENVS, abs=0.01)


def test_predictor_learns_the_target():
    """Would catch a target that moves, a predictor that does not, or the share's wrong side."""
    curiosity, tools = started(run_of())
    seen = trajectory_of(0)

    def learn(of, share):
        return rnd.learn(CURIOUS.replace(share=share), AGENT, of, seen, tools)

    learn = jax.jit(learn, static_argnums=1)
    first = None
    after = curiosity
    for _ in range(150):
        after, metrics = learn(after, 1.0)
        first = first or float(metrics["predictor_loss"]["all"])
    assert float(metrics["predictor_loss"]["all"]) < first / 20
    same(after.target, curiosity.target)
    # A mean over those of a minibatch that are trained on, and not over all.
    part = float(learn(curiosity, 0.5)[1]["predictor_loss"]["all"])
    assert first / 2 < part < 2 * first
    assert part != first


def test_what_is_known_is_novel_no_more():
    """Would catch a life in which the predictor is not trained, or a shift that forgets it."""
    run = run_of(shift=Shifts.of(Permute()))

    def live(run):
        state, first = loop.train_updates(run, loop.init(run), 1)
        state, _ = loop.train_updates(run, state, 60)
        state, last = loop.train_updates(run, state, 1)
        return state, loop.start_round(run, state), first.metrics, last.metrics

    before, after, first, last = jax.jit(live)(run)
    assert last["novelty"]["all"] < first["novelty"]["all"] / 3
    same(after.curiosity.predictor.params, before.curiosity.predictor.params)
    same(after.curiosity.seen, before.curiosity.seen)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(after.curiosity.predictor.opt_state))


def test_interventions_act_on_the_predictor_by_choice():
    """Would catch those on the agent acting on the predictor, or those on it being left out."""

    def live(run):
        state = loop.train_updates(run, loop.init(run), 1)[0]
        return loop.start_round(run, state).curiosity

    def of(agents, predictors):
        curious = CURIOUS.replace(intervention=chain(*predictors))
        return jax.jit(live)(run_of(curious, intervention=chain(*agents)))

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
    ("curious", "says"),
    [
        (CURIOUS.replace(channels=7), "rnd.channels=7: must be at most the 6"),
        (
            CURIOUS.replace(network=Network(hidden=(8, 8))),
            "must have two layers or more, three without",
        ),
        (
            CURIOUS.replace(intervention=chain(ReDo())),
            "rnd.intervention='redo': must be of methods",
        ),
        (CURIOUS.replace(weight=-1.0), "rnd.weight=-1.0"),
        (CURIOUS.replace(network=Network((8, 8, 8), shared=False)), "rnd.network.shared=False"),
        (CURIOUS.replace(network=Network(channels=(4,))), "rnd.network.channels"),
    ],
)
def test_what_cannot_be_is_refused(curious, says):
    """Would catch bad settings that come to light when something has been compiled."""
    with pytest.raises(SettingError, match=says.replace("(", r"\(")):
        check_run(run_of(curious))


def test_from_a_configuration(shell, tmp_path):
    """Would catch the command line without curiosity, or without its table's metrics."""
    line = "experiment=smoke rnd=small +intervention@rnd.intervention=soft_shrink_perturb out=o"
    assert shell(line) == 0
    frame = results.load("o")
    assert {"novelty", "intrinsic_reward", "intrinsic_return", "predictor_loss"} <= set(
        frame["metric"]
    )
    config = (tmp_path / "o" / "config.yaml").read_text()
    assert "plasticity.agents.RND" in config
    assert "rate: 1.0e-06" in config or "rate: 1e-06" in config
