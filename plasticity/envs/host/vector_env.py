"""The interface of host environments, and a vector environment that stacks several runs."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from plasticity.envs.base import Env, Task
from plasticity.envs.task import expand_dims_like

__all__ = ["HostEnv", "HostEnvs", "HostStep", "HostVecEnv"]

T = TypeVar("T")


class HostStep(NamedTuple):
    """One step of n environments, before any reset."""

    observation: np.ndarray  # float32 [n, *observation_shape]; where an episode ended, its last
    reward: np.ndarray  # float32 [n]
    terminated: np.ndarray  # bool [n]
    truncated: np.ndarray  # bool [n]
    score: np.ndarray | None = None  # float32 [n]: the reward before clipping, if it is clipped

    @property
    def done(self) -> np.ndarray:
        """Whether an episode ended, terminated or truncated. bool [n]."""
        return self.terminated | self.truncated

    @property
    def unclipped_reward(self) -> np.ndarray:
        """The reward that returns in the results table are sums of. float32 [n]."""
        return self.reward if self.score is None else self.score


class HostEnvs(Protocol):
    """The n environments of one run."""

    def set_task(self, task: Task) -> None:
        """Sets the task of all episodes that start from now on. Its leaves are NumPy arrays."""

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Starts an episode of the task wherever `mask` is true.

        All randomness is drawn from `rng`. If `rng` is not the generator of the previous call, all
        environments must be reset: later steps depend on that generator and the actions alone.

        Returns:
          The observations of all environments, [n, *observation_shape].
        """

    def step(self, actions: np.ndarray) -> HostStep:
        """Makes one step in each environment. Those that end must be reset before the next step."""

    def close(self) -> None:
        """Closes the environments."""


class HostEnv(Env):
    """An environment whose episodes are run by `HostEnvs`, outside of compiled programs."""

    def make(self, num_envs: int) -> HostEnvs:
        """Makes `num_envs` environments for one run. A task must be set before the first reset."""
        raise NotImplementedError


class HostVecEnv:
    """S x n host environments, n for each of S runs, under their tasks. Arrays are [S, n, ...].

    Each run has its own task and random generator, so that its episodes do not depend on the runs
    that it is stacked with.

    Args:
      env: the environments' settings, stacked: every leaf [S].
      num_runs: the number of runs (S).
      num_envs: the number of environments of each (n).
    """

    def __init__(self, env: HostEnv, num_runs: int, num_envs: int) -> None:
        self._shape = (num_runs, num_envs)
        self._envs: list[HostEnvs] = [unstack(env, s).make(num_envs) for s in range(num_runs)]
        self._continuous = env.continuous_actions
        shape = (env.num_actions,) if self._continuous else ()
        self._no_action = np.zeros((*self._shape, *shape), np.float32 if shape else np.int64)

    def reset(self, task: Task, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Starts an episode of `task` in every environment. Returns observations [S, n, ...].

        Args:
          task: the tasks of the runs, [S, ...], on the host.
          rngs: a generator for each run, used until the next call.
        """
        self._rngs = rngs
        self._last_action = self._no_action
        self.set_task(task)
        mask = np.ones(self._shape[1], bool)
        return np.stack([envs.reset(mask, rng) for envs, rng in zip(self._envs, rngs, strict=True)])

    def set_task(self, task: Task) -> None:
        """Sets the task of all later steps and episodes, [S, ...], on the host."""
        self._tasks = [unstack(task, s) for s in range(self._shape[0])]
        for envs, run_task in zip(self._envs, self._tasks, strict=True):
            envs.set_task(run_task)

    def step(self, actions: np.ndarray | jax.Array) -> tuple[HostStep, np.ndarray]:
        """Makes one step in each environment, and starts a new episode wherever one ended.

        Args:
          actions: [S, n]; or [S, n, A] where they are continuous.

        Returns:
          The step, and the observations to act on next [S, n, ...].
        """
        executed = self._transform_actions(np.asarray(actions))
        steps = []
        for envs, task, run_actions in zip(self._envs, self._tasks, executed, strict=True):
            step = envs.step(run_actions)
            score = None if step.score is None else task.transform_reward(step.score)
            steps.append(step._replace(reward=task.transform_reward(step.reward), score=score))
        step = jax.tree.map(lambda *arrays: np.stack(arrays), *steps)
        return step, self._reset_done(step) if step.done.any() else step.observation

    def close(self) -> None:
        """Closes the environments."""
        for envs in self._envs:
            envs.close()

    def _reset_done(self, step: HostStep) -> np.ndarray:
        done = step.done
        self._last_action = np.where(
            expand_dims_like(done, self._last_action), self._no_action, self._last_action
        )
        return np.stack(
            [
                envs.reset(mask, rng) if mask.any() else observation
                for envs, mask, rng, observation in zip(
                    self._envs, done, self._rngs, step.observation, strict=True
                )
            ]
        )

    def _transform_actions(self, actions: np.ndarray) -> np.ndarray:
        """Returns the actions that the environments execute, [S, n, ...]."""
        sticky = self._tasks[0].sticky_prob is not None
        actions = np.stack(
            [
                task.transform_action(
                    actions[s],
                    continuous=self._continuous,
                    last_action=self._last_action[s],
                    uniform=self._rngs[s].random(self._shape[1]) if sticky else None,
                )
                for s, task in enumerate(self._tasks)
            ]
        )
        if sticky:
            self._last_action = actions
        return actions


def unstack(stack: T, s: int) -> T:
    """Returns run `s` of a stack, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[s], stack)
