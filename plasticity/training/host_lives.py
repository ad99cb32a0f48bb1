"""Lifetimes whose environments live on the host.

Only the rollout is made here: PPO's update, the hooks and the probes are those of `lifetime`.
Every array has a leading axis of runs, [S, ...].
"""

import itertools
from collections.abc import Callable, Collection
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents.ppo import Metrics, Trajectory, log_prob_of
from plasticity.envs.base import Task
from plasticity.envs.host import HostEnv, HostEnvs, HostStep
from plasticity.training import lifetime
from plasticity.training.arrangement import Arrangement
from plasticity.training.lifetime import RunState, Stream, Sums, key_for
from plasticity.training.lives import seeds_of, with_probes
from plasticity.training.rollout import Episodes
from plasticity.training.run import Run

Array = jax.Array


def draws(runs: Run, stream: Stream, count: int = 0) -> list[np.random.Generator]:
    """The host's generator of each run for the `count`-th use of a stream. [S]."""
    # Trailing zeros would not count: NumPy fills a short seed up with them.
    return [np.random.default_rng([seed, stream, count, 1]) for seed in seeds_of(runs)]


class Crew:
    """S x n environments on the host: n for each of S runs, arrays being [S, n, ...].

    Each run draws the levels of its episodes from its own task with its own generator, so that
    it meets the same ones whatever it is stacked with.
    """

    def __init__(self, runs: Run, num_envs: int) -> None:
        self._runs = runs
        self._shape = (len(seeds_of(runs)), num_envs)
        assert isinstance(runs.env, HostEnv)
        self._envs: HostEnvs = runs.env.make(self._shape[0] * num_envs)

    def begin(self, task: Task, stream: Stream, count: int) -> np.ndarray:
        """Begins an episode of `task` in every environment. Observations [S, n, ...]."""
        self._levels = [
            (int(first), int(size))
            for first, size in np.stack([task.levels.first, task.levels.size], axis=1)
        ]
        self._draws = draws(self._runs, stream, count)
        return self._follow(np.ones(self._shape, bool))

    def step(self, actions: np.ndarray | Array) -> tuple[HostStep, np.ndarray]:
        """One step of each, by actions [S, n], and what each shows to act on next [S, n, ...].

        Where an episode ended that is the first observation of the next.
        """
        step = HostStep(*map(self._apart, self._envs.step(np.asarray(actions).reshape(-1))))
        return step, self._follow(step.ended) if step.ended.any() else step.observation

    def close(self) -> None:
        """Frees what the environments hold."""
        self._envs.close()

    def _follow(self, ended: np.ndarray) -> np.ndarray:
        """Begins the next episode wherever `ended` [S, n]. Observations [S, n, ...]."""
        levels = np.zeros(self._shape, np.int64)
        for row, mask, (first, size), draw in zip(
            levels, ended, self._levels, self._draws, strict=True
        ):
            row[mask] = first + draw.integers(size, size=np.count_nonzero(mask))
        return self._apart(self._envs.reset(levels.reshape(-1), ended.reshape(-1)))

    def _apart(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(*self._shape, *array.shape[1:])


class Act(NamedTuple):
    """What a policy did in n environments."""

    seen: Array  # what it saw, [n, *observation_shape]
    action: Array  # [n]
    log_prob: Array  # [n]
    value: Array  # [n]


def _act(run: Run, state: RunState, observation: Array, stream: Array, step: Array) -> Act:
    seen = jax.vmap(state.task.view)(observation)
    output = lifetime.policy(run, state)(seen)
    key = jax.random.fold_in(key_for(run, stream, state.update), step)
    action = jax.random.categorical(key, output.logits)
    return Act(seen, action, log_prob_of(output.logits, action), output.value)


def _improve(
    run: Run, state: RunState, trajectory: Trajectory, following: Array, last: Array | None
) -> tuple[RunState, Metrics, Trajectory]:
    """`lifetime.improve`, after the values that the host could not know are filled in.

    Args:
      run: the run.
      state: its state.
      trajectory: [T, N, ...], `next_value` not yet filled in.
      following: what the environments show after the last step, [N, ...], not yet viewed.
      last: [T, N, ...], where an episode was cut off its last observation, not yet viewed;
        None if none was.

    Returns:
      State and metrics after the update, and the trajectory, filled in.
    """
    policy, view = lifetime.policy(run, state), jax.vmap(state.task.view)
    next_value = jnp.concatenate([trajectory.value[1:], policy(view(following)).value[None]])
    if last is not None:
        value = policy(view(last.reshape(-1, *last.shape[2:]))).value.reshape(next_value.shape)
        next_value = jnp.where(trajectory.truncated, value, next_value)
    trajectory = trajectory._replace(next_value=next_value)
    return *lifetime.improve(run, state, trajectory), trajectory


def _look(run: Run, state: RunState, observations: Array) -> Array:
    return jax.vmap(state.task.view)(observations)


class HostLives:
    """Lifetimes in environments on the host: a rollout there, then an update on the device.

    Args:
      runs: the stack, [S].
      state: where they stand, at the end of a round; at the beginning if not given.
      arrangement: how they are computed, on one device; the fastest way if not given.
    """

    restarts_anywhere: ClassVar[bool] = False  # what happens in an episode cannot be saved

    def __init__(
        self, runs: Run, state: RunState | None = None, arrangement: Arrangement | None = None
    ) -> None:
        self._arrangement = arrangement or Arrangement.of(1)
        self._runs = self._arrangement.place(runs)
        self._trajectory: Trajectory | None = None  # of the last update
        self._crew = Crew(runs, runs.agent.num_envs)
        self._examiners = Crew(runs, runs.schedule.eval_episodes)
        if state is None:
            self.state: RunState = self._compiled(lifetime.begin)(self._runs)
            self._begin_round()
        else:
            self.state = self._arrangement.place(state)

    def next_round(self) -> None:
        self.state = self._compiled(lifetime.next_round, donate=1)(self._runs, self.state)
        self._begin_round()

    def advance(self, num_updates: int) -> Sums:
        total: Sums | None = None
        for _ in range(num_updates):
            sums = self._one_update()
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        assert total is not None
        return total

    def evaluate(self) -> Metrics:
        return {
            "eval_train_return": {"all": self._examine(self.state.task, 0)},
            "eval_test_return": {"all": self._examine(self.state.task.held_out(), 1)},
        }

    def measure(self, probes: Collection[str]) -> Metrics:
        assert self._trajectory is not None
        runs = with_probes(self._runs, probes)
        return self._compiled(lifetime.measure)(
            runs, self.state, self._probe_batch, self._trajectory
        )

    def close(self) -> None:
        self._crew.close()
        self._examiners.close()

    def _begin_round(self) -> None:
        task, round = self.state.task, int(self.state.round[0])
        self._probe_batch = self._compiled(_look)(self._runs, self.state, self._sample(task))
        self._observation = self._crew.begin(task, Stream.ENVS, round)
        self._earned = np.zeros(self._observation.shape[:2], np.float32)

    def _one_update(self) -> Sums:
        num_steps, earned = self._runs.agent.num_steps, self._earned
        count, returns = np.zeros((2, len(earned)), np.float32)
        rows, last, cut_off = [], [], False
        for t in range(num_steps):
            done = self._act(self._observation, Stream.ROLLOUT, t)
            step, self._observation = self._crew.step(done.action)
            rows.append(
                Trajectory(
                    observation=done.seen,
                    action=done.action,
                    log_prob=done.log_prob,
                    value=done.value,
                    next_value=done.value,  # filled in by `improve`
                    reward=jnp.asarray(step.reward),
                    terminated=jnp.asarray(step.terminated),
                    truncated=jnp.asarray(step.truncated),
                )
            )
            last.append(step.observation)
            cut_off |= bool(step.truncated.any())
            earned += step.reward
            count += step.ended.sum(axis=1)
            returns += (earned * step.ended).sum(axis=1)
            earned[step.ended] = 0.0
        trajectory = jax.tree.map(lambda *steps: jnp.stack(steps, axis=1), *rows)
        self.state, metrics, self._trajectory = self._compiled(_improve, donate=1)(
            self._runs,
            self.state,
            trajectory,
            self._observation,
            np.stack(last, axis=1) if cut_off else None,
        )
        return Sums(
            jnp.ones(len(earned)), metrics, Episodes(jnp.asarray(count), jnp.asarray(returns))
        )

    def _act(self, observation: np.ndarray, stream: Stream, step: int) -> Act:
        act = self._compiled(_act, shared=2)
        return act(self._runs, self.state, observation, stream, step)

    def _compiled(self, function: Callable[..., Any], **how: int) -> Callable[..., Any]:
        return self._arrangement.over_runs(function, **how)

    def _examine(self, task: Task, part: int) -> Array:
        """Mean returns of `eval_episodes` whole episodes of `task`. [S]."""
        update = int(self.state.update[0])
        observation = self._examiners.begin(task, Stream.EVALUATION, 2 * update + part)
        earned = np.zeros(observation.shape[:2], np.float32)
        under_way = np.ones(earned.shape, bool)
        for t in itertools.count():
            done = self._act(observation, Stream.EVALUATION, 2 * t + part)
            step, observation = self._examiners.step(done.action)
            earned += step.reward * under_way
            under_way &= ~step.ended
            if not under_way.any():
                return jnp.mean(jnp.asarray(earned), axis=1)
        raise AssertionError

    def _sample(self, task: Task) -> np.ndarray:
        """Observations met under uniformly random actions. [S, probe_batch, ...]."""
        size = self._runs.schedule.probe_batch
        draw_each = draws(self._runs, Stream.PROBE_ACTIONS)
        observation = self._examiners.begin(task, Stream.PROBE, 0)
        num_envs, met = observation.shape[1], []
        for _ in range(max(128, -(-size // num_envs))):
            met.append(observation)
            actions = [
                draw.integers(self._runs.env.num_actions, size=num_envs) for draw in draw_each
            ]
            _, observation = self._examiners.step(np.stack(actions))
        seen = np.concatenate(met, axis=1)
        return np.stack(
            [
                one[draw.choice(len(one), size, replace=False)]
                for one, draw in zip(seen, draw_each, strict=True)
            ]
        )
