"""Rollouts in JAX environments: no transition lost, repeated or put in the wrong episode."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_helpers import (
    ENVS,
    ROLLOUTS,
    STEPS,
    is_truncated,
    length_of,
    return_of,
    reward_of,
    value_of,
)
from scipy import stats

from plasticity.agents import Trajectory
from plasticity.envs.base import CompiledEnv, Step
from plasticity.networks import Categorical, Output
from plasticity.struct import static_field
from plasticity.training import rollout


class CountingState(NamedTuple):
    """An episode under way."""

    episode: jax.Array
    step: jax.Array


class Counting(CompiledEnv):
    """Counts, in episodes of `least` to `least + 3` steps."""

    least: int = static_field(1)

    @property
    def name(self):
        return "counting"

    @property
    def observation_shape(self):
        return (2,)

    @property
    def num_actions(self):
        return 3

    @property
    def truncates(self):
        return True

    @property
    def min_episode_steps(self):
        return self.least

    def reset(self, task, key):
        return CountingState(jax.random.randint(key, (), 0, 2**20), jnp.int32(0))

    def observe(self, task, state):
        return jnp.stack([state.episode, state.step]).astype(jnp.float32)

    def step(self, task, state, action, key):
        reached = state._replace(step=state.step + 1)
        ended = reached.step >= length_of(state.episode, self.least)
        truncated = is_truncated(state.episode)
        reward = reward_of(state.episode, state.step).astype(jnp.float32)
        return Step(reached, reward, ended & ~truncated, ended & truncated)


def policy(observation, memory):
    """Prefers actions by the step, and values as `value_of` does.

    The step is that of its memory, which must be that of the observation.
    """
    observation = observation.at[:, 1].set(memory)
    logits = jnp.stack([memory, jnp.zeros(len(observation)), -memory], -1)
    return Output(Categorical(logits), value_of(observation), {}, {}, memory=memory + 1)


class Rollouts(NamedTuple):
    """Several rollouts in a row, joined: [T, N, ...]."""

    trajectory: Trajectory
    last_obs: np.ndarray  # the observation after the last step [N, 2]
    count: np.ndarray  # episodes ended in each rollout
    returns: np.ndarray


@pytest.fixture(scope="module", params=[1, 3])
def streams(request):
    """The environment, and five rollouts of it in a row."""
    env = Counting(request.param)
    task = env.task(jnp.int32(0))

    @jax.jit
    def several(key):
        def one(envs, key):
            envs, trajectory, episodes = rollout.rollout(env, task, policy, envs, STEPS, key)
            return envs, (trajectory, episodes)

        envs = rollout.reset(env, task, ENVS, jax.random.fold_in(key, 99), jnp.zeros(ENVS))
        envs, (trajectory, episodes) = jax.lax.scan(one, envs, jax.random.split(key, ROLLOUTS))
        return rollout.observe(env, task, envs.state), trajectory, episodes

    last_obs, trajectory, episodes = jax.device_get(several(jax.random.key(3)))
    joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory)
    return env, Rollouts(joined, last_obs, episodes.num_episodes, episodes.return_sum)


def follow_one(trajectory, last_obs, n, least):
    """Checks environment `n` step by step. The episodes that ended: (row, episode)."""
    seen = np.concatenate([trajectory.observation[:, n], last_obs[None, n]]).astype(int)
    ended = []
    for t, (episode, step) in enumerate(seen[:-1]):
        over = step + 1 == length_of(episode, least)
        assert trajectory.terminated[t, n] == (over and not is_truncated(episode))
        assert trajectory.truncated[t, n] == (over and is_truncated(episode))
        assert trajectory.reward[t, n] == reward_of(episode, step)
        if over:
            ended.append((t, episode))
            assert seen[t + 1, 1] == 0
            assert seen[t + 1, 0] != episode
        else:
            assert tuple(seen[t + 1]) == (episode, step + 1)
    return ended


def test_rollout_loses_and_repeats_no_transition(streams):
    """Would catch a step skipped or repeated, also across rollouts, or an episode met twice."""
    env, told = streams
    assert np.all(told.trajectory.observation[0, :, 1] == 0)
    begun = []
    for n in range(ENVS):
        follow_one(told.trajectory, told.last_obs, n, env.least)
        rows = told.trajectory.observation[:, n]
        begun += rows[rows[:, 1] == 0, 0].tolist()
    assert len(set(begun)) == len(begun)


def test_rollout_counts_episodes_where_they_end(streams):
    """Would catch returns that restart with a rollout, or run on into the next episode."""
    env, told = streams
    count, returns = np.zeros((2, ROLLOUTS))
    for n in range(ENVS):
        for row, episode in follow_one(told.trajectory, told.last_obs, n, env.least):
            count[row // STEPS] += 1
            returns[row // STEPS] += return_of(episode, env.least)
    assert count.min() > 0
    assert np.array_equal(told.count, count)
    assert np.array_equal(told.returns, returns)


def test_rollout_next_values_are_of_the_same_episode(streams):
    """Would catch a bootstrap from the next episode's first state, or one row off.

    As would be a memory that goes on into the next episode, or is lost between two rollouts.
    """
    _, told = streams
    seen = told.trajectory.observation
    assert np.array_equal(told.trajectory.value, value_of(seen))
    reached = value_of(seen) + 1  # the same episode, one step on
    matters = ~told.trajectory.terminated
    assert np.array_equal(told.trajectory.next_value[matters], reached[matters])
    last_rows = told.trajectory.truncated[STEPS - 1 :: STEPS]
    assert last_rows.any()
    assert not last_rows.all()  # both ends of a rollout were met


def test_rollout_actions_follow_the_policy(streams):
    """Would catch log-probabilities of another action or policy, or actions drawn wrongly."""
    _, told = streams
    step = told.trajectory.observation[..., 1].astype(float)
    logits = np.stack([step, 0 * step, -step], -1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_probs, told.trajectory.action[..., None], -1)[..., 0]
    np.testing.assert_allclose(told.trajectory.log_prob, taken, rtol=1e-5, atol=1e-6)
    for at in range(3):
        actions = told.trajectory.action[step == at]
        if len(actions):
            p = np.exp([at, 0, -at]) / np.exp([at, 0, -at]).sum()
            counts = np.bincount(actions, minlength=3)
            assert stats.chisquare(counts, len(actions) * p).pvalue > 1e-3


@pytest.mark.parametrize("least", [1, 3])
def test_evaluation_returns_whole_first_episodes(least):
    """Would catch rewards after an episode's end, the last step's left out, or two times a step."""
    env = Counting(least)
    task = env.task(jnp.int32(0))
    key = jax.random.key(8)
    start = rollout.start_evaluation(env, task, 200, key, jnp.zeros(200))
    goes_on = jax.jit(
        lambda start, steps: rollout.continue_evaluation(env, task, policy, start, steps, key)
    )
    earned = goes_on(start, 1000).episode_return
    possible = {return_of(e, least) for e in range(28)}  # 4 lengths, 7 rewards
    assert set(np.asarray(earned).tolist()) == possible
    first = rollout.reset(env, task, 200, jax.random.split(key)[0]).state.episode
    assert earned.tolist() == [return_of(int(e), least) for e in first]
    part = goes_on(start, 2)
    assert (int(part.step), bool(part.done.all())) == (2, False)
    ended = np.array([length_of(int(e), least) <= 2 for e in first])
    assert part.done.tolist() == ended.tolist()
    assert set(part.memory.tolist()) == {2}  # or an evaluation forgets
    np.testing.assert_array_equal(part.episode_return[ended], earned[ended])
    np.testing.assert_array_equal(goes_on(part, 1000).episode_return, earned)


def test_sample_draws_without_replacement():
    """Would catch a probe batch of first states alone, or of one observation many times."""
    env = Counting(1)
    task = env.task(jnp.int32(0))
    batch = np.asarray(jax.jit(lambda key: rollout.sample(env, task, 100, key))(jax.random.key(0)))
    assert batch.shape == (100, 2)
    assert len({tuple(row) for row in batch}) == 100
    assert set(batch[:, 1]) == {0, 1, 2, 3}
    assert all(step < length_of(int(episode)) for episode, step in batch)
