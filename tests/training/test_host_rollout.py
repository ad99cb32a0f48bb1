"""Rollouts in host environments: no transition lost, repeated or put in the wrong episode."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import pytest
from counting_helpers import host_run, is_truncated, length_of, return_of, reward_of
from helpers import same

from plasticity.agents import Trajectory
from plasticity.envs.base import Task
from plasticity.envs.host import HostVecEnv
from plasticity.probes import CriticError, Probes, WeightNorm
from plasticity.training import host_rollout, loop, rollout
from plasticity.training.run import stack
from plasticity.training.state import EpisodeStats
from plasticity.training.trainer import HostTrainer


class HostRollout(NamedTuple):
    """One rollout of stacked runs in host environments, [S, T, N, ...]."""

    trajectory: Trajectory
    last_obs: np.ndarray  # the environments' own observation after it
    params: dict  # of the policy that made it
    task: Task
    episodes: EpisodeStats

    def raw(self, s):
        """Run s's trajectory with the environments' own observations: no permutation, no scale."""
        one = jax.tree.map(lambda x: x[s], self.trajectory)
        back = np.argsort(self.task.permutation[s])
        return one._replace(observation=one.observation[..., back] * 2**10)


@pytest.fixture(scope="module")
def host():
    """Collects the rollouts of stacked seeds: `update` returns its trajectory among the metrics."""
    patch = pytest.MonkeyPatch()
    real = loop.update

    def update(run, state, trajectory):
        state, metrics = real(run, state, trajectory)
        return state, {**metrics, "trajectory": trajectory}

    patch.setattr(loop, "update", update)
    # A function of its own, so that no program is used that was compiled without the patch.
    patch.setattr(host_rollout, "_update", partial(host_rollout._update))

    def collect(seeds):
        trainer = HostTrainer(stack([host_run(seed) for seed in seeds]))
        rollouts = []
        for i in range(3):
            if i == 2:
                trainer.start_round()
            params, task = jax.device_get((trainer.state.train_state.params, trainer.state.task))
            _, metrics, episodes = jax.device_get(trainer.train_updates(1))
            last_obs = np.concatenate([worker._observation for worker in trainer._workers])
            rollouts.append(HostRollout(metrics["trajectory"], last_obs, params, task, episodes))
        trainer.close()
        return rollouts

    yield collect
    patch.undo()


@pytest.fixture(scope="module")
def pair(host):
    """Seeds 2 and 5 together."""
    return host([2, 5])


@pytest.mark.parametrize("s", [0, 1])
def test_host_rollout_loses_and_repeats_no_transition(pair, s):
    """Would catch an autoreset's lost step, levels of another task, or a wrong count."""
    for i, told in enumerate(pair):
        trajectory, last_obs = told.raw(s), told.last_obs[s] * 2**10
        first = (2, 5)[s] * 20_000 + (8 if i == 2 else 0)
        assert set(np.unique(trajectory.observation[..., 0])) <= set(range(first, first + 8))
        ended = [e for n in range(3) for _, e in follow_host(trajectory, last_obs, n)]
        assert told.episodes.num_episodes[s] == len(ended)
        assert told.episodes.return_sum[s] == sum(map(return_of, ended))
    # The second rollout goes on where the first one stopped; after a shift all begin anew.
    assert np.array_equal(pair[1].raw(s).observation[0], pair[0].last_obs[s] * 2**10)
    assert np.all(pair[2].raw(s).observation[0, :, 1] == 0)


def follow_host(trajectory, last_obs, n):
    """As `follow_one`, but that a level may be drawn twice in a row."""
    seen = np.concatenate([trajectory.observation[:, n], last_obs[None, n]]).astype(int)
    ended = []
    for t, (episode, step) in enumerate(seen[:-1]):
        over = step + 1 == length_of(episode)
        assert trajectory.terminated[t, n] == (over and not is_truncated(episode))
        assert trajectory.truncated[t, n] == (over and is_truncated(episode))
        assert trajectory.reward[t, n] == reward_of(episode, step)
        assert seen[t + 1, 1] == (0 if over else step + 1)
        if over:
            ended.append((t, episode))
        else:
            assert seen[t + 1, 0] == episode
    return ended


def value_by_hand(params, observation):
    """The value that a network gives of what an agent sees."""
    hidden, head = params["torso"]["hidden_0"], params["value"]
    features = np.maximum(observation @ hidden["kernel"] + hidden["bias"], 0)
    return (features @ head["kernel"] + head["bias"])[..., 0]


@pytest.mark.parametrize("s", [0, 1])
def test_host_rollout_next_values_are_of_the_same_episode(pair, s):
    """Would catch a bootstrap from the next episode's first state at a cut-off."""
    num_truncated = 0
    for told in pair:
        trajectory = jax.tree.map(lambda x: x[s], told.trajectory)
        value = partial(value_by_hand, jax.tree.map(lambda x: x[s], told.params))
        np.testing.assert_allclose(
            trajectory.value, value(trajectory.observation), rtol=1e-4, atol=1e-5
        )
        reached = told.raw(s).observation + np.array([0, 1])  # the same episode, one step on
        known = value(reached[..., told.task.permutation[s]] * 2**-10)
        matters = ~trajectory.terminated
        np.testing.assert_allclose(
            trajectory.next_value[matters], known[matters], rtol=1e-4, atol=1e-5
        )
        num_truncated += trajectory.truncated.sum()
    assert num_truncated > 3


def test_host_rollout_does_not_depend_on_the_stack(host, pair):
    """Would catch levels or actions drawn from a generator that runs share, or no seed at all."""
    for together, alone, again in zip(pair, host([5]), host([2, 5]), strict=True):
        for name in ("observation", "action", "reward"):
            told = getattr(together.trajectory, name)
            np.testing.assert_array_equal(getattr(alone.trajectory, name)[0], told[1])
            np.testing.assert_array_equal(getattr(again.trajectory, name), told)
    levels = pair[0].raw(0).observation[..., 0], pair[0].raw(1).observation[..., 0]
    assert not np.array_equal(levels[0] - 40_000, levels[1] - 100_000)


class Awaited:
    """Something that is there after it was asked for so many times."""

    def __init__(self, times):
        self._times = times

    def is_ready(self):
        self._times -= 1
        return self._times < 0


def test_run_interleaved_resumes_the_ready_one():
    """Would catch a team that is waited for while another one could go on, or an answer lost."""
    told = []

    def task(name, *delays):
        for i, times in enumerate(delays):
            yield Awaited(times)
            told.append(f"{name}{i}")
        return name

    assert host_rollout.run_interleaved([task("a", 2, 0), task("b", 0, 0, 0)]) == ["a", "b"]
    assert told == ["b0", "b1", "a0", "b2", "a1"]
    assert host_rollout.run_interleaved([task("c", 9), task("d", 9)]) == ["c", "d"]  # all must wait
    assert told[5:] == ["c0", "d0"]


def test_host_evaluation_and_probe_batch(host):
    """Would catch evaluations on the wrong set, of parts of episodes, or probes that differ."""
    run = host_run(4)
    trainer = HostTrainer(stack([run, host_run(6)]))
    levels = [range(seed * 20_000, seed * 20_000 + 8) for seed in (4, 6)]
    told = jax.device_get(trainer.evaluate())
    for metric, shift in (("eval_train_return", 0), ("eval_test_return", 10_000)):
        for s in range(2):
            possible = [return_of(level + shift) for level in levels[s]]
            sums = {0}
            for _ in range(4):
                sums = {a + b for a in sums for b in possible}
            assert told[metric]["all"][s] * 4 in sums
    batch = np.concatenate([worker._probe_batch for worker in trainer._workers]) * 2**10
    assert batch.shape == (2, 64, 2)
    for s in range(2):
        assert set(np.unique(batch[s, :, 0])) == set(levels[s])
        assert set(np.unique(batch[s, :, 1])) == {0, 1, 2, 3}
    trainer.close()


@pytest.mark.parametrize("eval_max_steps", [2, 3, 4])
def test_host_evaluation_is_cut_off(eval_max_steps):
    """Would catch an evaluation without an end, or one step too many; or a warning for nothing."""
    schedule = host_run().schedule.replace(eval_max_steps=eval_max_steps)
    trainer = HostTrainer(stack([host_run(4).replace(schedule=schedule)]))
    rollout.warn_of_cut_off_episodes.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told = jax.device_get(trainer.evaluate())
    trainer.close()
    cut_off = [str(warning.message) for warning in caught]
    assert len(cut_off) == (eval_max_steps < 4)  # the longest episodes have 4 steps
    assert all(f"eval_max_steps={eval_max_steps}, and counts" in text for text in cut_off)
    possible, sums = set(), {0}
    for episode in range(80_000, 80_008):
        steps = range(min(length_of(episode), eval_max_steps))
        possible.add(sum(reward_of(episode, step) for step in steps))
    for _ in range(4):
        sums = {a + b for a in sums for b in possible}
    assert told["eval_train_return"]["all"][0] * 4 in sums


def test_host_trainer_stops_within_its_loops():
    """Would catch a signal that waits for a loop to end, or environments left open by an error."""
    closed, calls = [], []

    def check_signals():
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostVecEnv, "close", lambda self: closed.append(self))
        stop_at = 5  # of the 128 steps that sample a probe batch
        with pytest.raises(KeyboardInterrupt):
            HostTrainer(stack([host_run(4)]), check_signals=check_signals)
        assert len(closed) == 2
    stop_at = None
    trainer = HostTrainer(stack([host_run(4)]), check_signals=check_signals)
    for loop_of in (partial(trainer.train_updates, 1), trainer.evaluate):
        stop_at = len(calls) + 2
        with pytest.raises(KeyboardInterrupt):
            loop_of()
    trainer.close()


def test_host_probes_collect_a_rollout_only_if_they_need_one():
    """Would catch a probe's rollout that steps the training's environments, or a needless one."""
    run = host_run(3).replace(probes=Probes.of(CriticError(), WeightNorm()))
    params = []
    for probes in (["weight_norm"], ["critic_error", "weight_norm"]):
        trainer = HostTrainer(stack([run]))
        trainer.train_updates(1)
        measured = trainer.run_probes(probes)
        assert set(measured) == set(probes)
        assert np.isfinite(jax.device_get(measured[probes[0]]["all"])).all()
        assert (trainer._workers[0]._probe_envs is None) == (probes == ["weight_norm"])
        trainer.train_updates(1)
        params.append(jax.device_get(trainer.state.train_state.params))
        trainer.close()
    same(*params)
