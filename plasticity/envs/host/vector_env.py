"""The protocol of host environments, and a stack of them behind their tasks."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from plasticity.envs.base import Env, Task

T = TypeVar("T")


class HostStep(NamedTuple):
    """One step of n environments, before any reset."""

    observation: np.ndarray  # float32 [n, *observation_shape]; where an episode ended, its last
    reward: np.ndarray  # float32 [n]
    terminated: np.ndarray  # bool [n]
    truncated: np.ndarray  # bool [n]
    score: np.ndarray | None = None  # float32 [n]: what returns sum, where it is not the reward

    @property
    def done(self) -> np.ndarray:
        """Whether an episode is over, terminated or truncated. bool [n]."""
        return self.terminated | self.truncated

    @property
    def counted(self) -> np.ndarray:
        """What the returns in the results table are sums of. float32 [n]."""
        return self.reward if self.score is None else self.score


class HostEnvs(Protocol):
    """The n environments of one run."""

    def set_task(self, task: Task) -> None:
        """Makes the episodes that start from now on those of a task, of NumPy arrays."""

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Starts an episode of the task wherever `mask`. Returns all observations, [n, ...].

        Its randomness is drawn from `rng`. With another generator than the time before all
        environments must be reset: what follows depends on that generator and the actions alone.
        """

    def step(self, actions: np.ndarray) -> HostStep:
        """Makes one step of each. One whose episode has ended must be reset before the next."""

    def close(self) -> None:
        """Closes the environments."""


class HostEnv(Env):
    """An environment whose episodes are run by `HostEnvs`, outside of any compiled program."""

    def make(self, num_envs: int) -> HostEnvs:
        """Makes `num_envs` environments for one run. A task must be set before the first reset."""
        raise NotImplementedError


class HostVecEnv:
    """S x n host environments, n for each of S runs, behind their tasks. Arrays are [S, n, ...].

    The environments of each run have its own task and generator, so that a run meets the same
    episodes whatever it is stacked with.

    Args:
      env: the environments' settings, stacked: every leaf [S].
      num_runs: the number of runs (S).
      num_envs: the number of environments of each (n).
    """

    def __init__(self, env: HostEnv, num_runs: int, num_envs: int) -> None:
        self._shape = (num_runs, num_envs)
        self._envs: list[HostEnvs] = [unstack(env, s).make(num_envs) for s in range(num_runs)]
        shape = (env.num_actions,) if env.continuous_actions else ()
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
        everywhere = np.ones(self._shape[1], bool)
        return np.stack(
            [envs.reset(everywhere, rng) for envs, rng in zip(self._envs, rngs, strict=True)]
        )

    def set_task(self, task: Task) -> None:
        """Makes the next steps and episodes those of another task, [S, ...], on the host."""
        self._task = task
        for s, envs in enumerate(self._envs):
            envs.set_task(unstack(task, s))

    def step(self, actions: np.ndarray | jax.Array) -> tuple[HostStep, np.ndarray]:
        """Makes one step of each, and starts a new episode wherever one ended.

        Args:
          actions: [S, n]; or [S, n, A] where they are continuous.

        Returns:
          The step, and the observations to act on next [S, n, ...].
        """
        transformed = self._transform(np.asarray(actions))
        steps = [envs.step(own) for envs, own in zip(self._envs, transformed, strict=True)]
        step: HostStep = jax.tree.map(lambda *arrays: np.stack(arrays), *steps)
        if self._task.reward is not None:
            scale = np.asarray(self._task.reward)[:, None]
            score = None if step.score is None else step.score * scale
            step = step._replace(reward=step.reward * scale, score=score)
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

    def _transform(self, actions: np.ndarray) -> np.ndarray:
        """Returns the environments' actions for those of the agent, under the task."""
        task = self._task
        if task.actions is not None:
            order = np.asarray(task.actions)
            if actions.ndim > 2:  # entry i is the environment's entry order[i]
                back = np.argsort(order, axis=1)[:, None]
                actions = np.take_along_axis(actions, back, axis=2)
            else:
                actions = np.take_along_axis(order, actions, axis=1)
        if task.sticky is not None:
            drawn = np.stack([rng.random(self._shape[1]) for rng in self._rngs])
            repeat = drawn < np.asarray(task.sticky)[:, None]
            self._last_action = actions = np.where(
                expand_dims_like(repeat, actions), self._last_action, actions
            )
        return actions


def unstack(stack: T, s: int) -> T:
    """Returns run `s` of a stack, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[s], stack)


def expand_dims_like(flags: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Appends axes of size 1 to flags [S, n], to broadcast against values [S, n, ...]."""
    return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))
