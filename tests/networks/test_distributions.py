"""Distributions against SciPy's, and agents with continuous actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import Tug, same

from plasticity import PPO, Gymnax, Network, Permute, PermuteActions, Run, Schedule, Shifts
from plasticity.agents.normalization import RewardScaler, RunningMeanStd
from plasticity.envs.base import Levels, Task
from plasticity.envs.task_wrapper import TaskWrapper
from plasticity.networks import Categorical, Gaussian
from plasticity.shifts import StickyActions
from plasticity.training import loop

RNG = np.random.default_rng(0)
MEAN, OTHER = RNG.normal(size=(2, 5, 3)).astype(np.float32)
LOG_STD, LOG_OTHER = np.array([[0.3, -0.7, 0.0], [0.1, 0.2, -0.4]], np.float32)
GAUSSIAN = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))


def test_gaussian_log_prob_and_entropy_match_scipy():
    """Would catch a variance for a deviation, a mean over numbers, or bits for nats."""
    normal = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    action = RNG.normal(size=(5, 3)).astype(np.float32)
    log_prob = normal.logpdf(action).sum(axis=-1)
    np.testing.assert_allclose(GAUSSIAN.log_prob(action), log_prob, rtol=1e-5)
    np.testing.assert_allclose(GAUSSIAN.entropy(), normal.entropy().sum(axis=-1), rtol=1e-5)


def test_gaussian_act_has_mean_and_deviation():
    """Would catch a deviation left out, or one number's taken for another's."""
    noise = Gaussian.noise(jax.random.key(0), (100_000, 3))
    drawn = np.asarray(Gaussian(jnp.asarray(MEAN[:1]), jnp.asarray(LOG_STD)).act(noise))
    np.testing.assert_allclose(drawn.mean(axis=0), MEAN[0], atol=0.02)
    np.testing.assert_allclose(drawn.std(axis=0), np.exp(LOG_STD), rtol=0.02)


def test_gaussian_kl_divergence():
    """Would catch the other direction: the mean of log p - log q over draws from p."""
    other = Gaussian(jnp.asarray(OTHER), jnp.asarray(LOG_OTHER))
    drawn = GAUSSIAN.act(Gaussian.noise(jax.random.key(1), (200_000, 5, 3)))
    expected = np.mean(GAUSSIAN.log_prob(drawn) - other.log_prob(drawn), axis=0)
    np.testing.assert_allclose(GAUSSIAN.kl_divergence(other), expected, rtol=0.03)
    np.testing.assert_allclose(GAUSSIAN.kl_divergence(GAUSSIAN), 0, atol=1e-6)


def test_greedy_action_differs():
    """Would catch deviations of the wrong policy, or all numbers asked for in place of one."""
    wide = Gaussian(jnp.zeros((2, 2)), jnp.log(jnp.array([1.0, 2.0])))
    moved = wide._replace(mean=jnp.array([[0.0, 1.9], [0.0, 2.1]]))
    assert moved.greedy_action_differs(wide).tolist() == [False, True]
    one, other = Categorical(jnp.array([[1.0, 2.0]])), Categorical(jnp.array([[3.0, 2.0]]))
    assert one.greedy_action_differs(other).tolist() == [True]


def test_categorical_act_has_softmax_frequencies():
    """Would catch noise of another kind: frequencies against the softmax."""
    logits = jnp.array([0.0, 1.0, -1.0])
    drawn = Categorical(logits).act(Categorical.noise(jax.random.key(0), (100_000, 3)))
    share = np.bincount(np.asarray(drawn), minlength=3) / 100_000
    np.testing.assert_allclose(share, jax.nn.softmax(logits), atol=0.01)


def test_running_mean_std_merges_batches():
    """Would catch a wrong merge: against NumPy's of everything at once."""
    batches = [RNG.normal(3.0, 2.0, size=(size, 4)).astype(np.float32) for size in (5, 1, 30)]
    samples = np.concatenate(batches)
    estimate = RunningMeanStd.init((4,))
    for batch in batches:
        estimate = estimate.update(jnp.asarray(batch))
    np.testing.assert_allclose(estimate.mean, samples.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(estimate.variance, samples.var(axis=0), rtol=1e-3)
    scaled = np.asarray(estimate.normalize(samples, 1.5))
    inner = np.abs(samples - samples.mean(axis=0)) < 1.4 * samples.std(axis=0)
    unscaled = (samples - samples.mean(axis=0)) / samples.std(axis=0)
    np.testing.assert_allclose(scaled[inner], unscaled[inner], atol=2e-3)
    assert np.abs(scaled).max() <= 1.5


def test_reward_scaler_discounts_within_episodes():
    """Would catch a sum that passes an episode's end, forgets a rollout, or runs backwards."""
    reward = RNG.normal(size=(2, 6, 3)).astype(np.float32)
    ends = RNG.random((2, 6, 3)) < 0.3
    sums, returns = np.zeros(3), []
    for step_reward, step_ends in zip(reward.reshape(12, 3), ends.reshape(12, 3), strict=True):
        sums = 0.9 * sums + step_reward
        returns.append(sums.copy())
        sums[step_ends] = 0
    estimate = RewardScaler.init(3)
    for rollout, ended in zip(reward, ends, strict=True):
        estimate = estimate.update(jnp.asarray(rollout), jnp.asarray(~ended), 0.9)
    np.testing.assert_allclose(estimate.scale, np.std(returns), rtol=1e-3)
    np.testing.assert_allclose(estimate.sums, sums, atol=1e-5)


def run_of(**changes):
    """Makes a short run in Tug."""
    run = Run(
        env=Tug(),
        network=Network(hidden=(16,), activation="tanh"),
        agent=PPO(
            num_envs=8,
            num_steps=20,
            minibatch_size=40,
            num_epochs=4,
            learning_rate=1e-2,
            ent_coef=0.0,
            normalize_observations=True,
            normalize_rewards=True,
        ),
        schedule=Schedule(rounds=1, updates_per_round=40, eval_episodes=8),
    )
    return run.replace(**changes)


@pytest.mark.slow
def test_ppo_learns_continuous_actions():
    """Would catch a density, a sample or a gradient of the wrong sign."""
    run = run_of()

    def evaluate(run, state):
        evaluations = loop.start_evaluation(run, state)
        return loop.continue_evaluation(run, state, evaluations, 100)[1]

    def train(run):
        state = loop.init(run)
        before = evaluate(run, state)
        state, sums = loop.train_updates(run, state, 60)
        return before, evaluate(run, state), state, sums

    before, after, state, sums = jax.jit(train)(run)
    before, after = (float(of["eval_train_return"]["all"]) for of in (before, after))
    # The best is 0; to say nothing comes to -3.3.
    assert before < -4
    assert after > -1.5
    # Tug shows numbers around 100, with the deviation of a uniform one.
    np.testing.assert_allclose(state.obs_stats.mean, 100, atol=1)
    np.testing.assert_allclose(np.sqrt(state.obs_stats.variance), 20 / np.sqrt(12), rtol=0.1)
    assert float(sums.episodes.return_sum / sums.episodes.num_episodes) < after


@pytest.mark.slow
def test_reward_normalization_does_not_change_reported_returns():
    """Would catch what is reported as earned being scaled, or what is learnt from not being."""
    plain, scaled = (
        run_of(agent=run_of().agent.replace(normalize_rewards=on)) for on in (False, True)
    )

    def first(run):
        return loop.train_updates(run, loop.init(run), 1)[1]

    one, other = (jax.jit(first)(run) for run in (plain, scaled))
    same(one.episodes, other.episodes)
    ratio = one.metrics["value_loss"]["all"] / other.metrics["value_loss"]["all"]
    assert float(ratio) > 3  # a value of Tug's rewards is some -5 at first


@pytest.mark.parametrize("shifts", [(PermuteActions(),), (StickyActions(values=(1.0,)),)])
def test_shifts_of_continuous_actions(shifts):
    """Would catch numbers taken for an index, or part of an action being repeated."""
    env, (shift,) = TaskWrapper(Tug()), shifts
    task = shift.begin(Task(Levels(0, 1, 1), {}), Tug(), jax.random.key(0))
    if task.action_permutation is not None:
        task = task._replace(action_permutation=jnp.array([1, 0]))
    state = env.reset(task, jax.random.key(1))
    wanted = np.asarray(state.inner.wanted)
    action = jnp.array([0.5, -0.25])
    applied = np.array([-0.25, 0.5]) if task.action_permutation is not None else np.zeros(2)
    reward = env.step(task, state, action, jax.random.key(2)).reward
    np.testing.assert_allclose(reward, -np.sum((applied - wanted) ** 2), rtol=1e-5)


def test_gymnax_scales_continuous_actions():
    """Would catch bounds left out: Pendulum's torque is twice what the agent says."""
    pytest.importorskip("gymnax")
    env = Gymnax(id="Pendulum-v1")
    assert (env.num_actions, env.continuous_actions) == (1, True)
    task = env.task(0)
    state = env.reset(task, jax.random.key(0))
    steps = [env.step(task, state, jnp.array([x]), jax.random.key(1)) for x in (0.5, 1.0, 7.0)]
    assert [float(step.state.inner.last_u) for step in steps] == [1.0, 2.0, 2.0]


def test_permute_actions_of_continuous_actions_has_task(tiny_run):
    """Would catch a shift that does not go with actions that are numbers."""
    run = run_of(shift=Shifts.of(Permute(), PermuteActions()), schedule=Schedule(2, 1))
    state = jax.eval_shape(lambda run: loop.start_round(run, loop.init(run)), run)
    assert state.task.action_permutation.shape == (2,)


@pytest.mark.parametrize("reset", [False, True])
def test_normalizers_at_a_boundary(reset):
    """Would catch sums that continue in new episodes, or statistics that are not reset."""
    run = run_of(shift=Shifts.of(Permute()), schedule=Schedule(2, 2))
    run = run.replace(agent=run.agent.replace(reset_statistics=reset, num_steps=18))

    @jax.jit
    def train(run):
        state = loop.train_updates(run, loop.init(run), 2)[0]
        return loop.init(run), state, loop.start_round(run, state)

    initial, before, after = train(run)
    assert np.all(before.reward_stats.sums != 0)
    same(after.reward_stats.sums, np.zeros(8))
    expected = initial if reset else before
    same(after.obs_stats, expected.obs_stats)
    same(after.reward_stats.stats, expected.reward_stats.stats)
