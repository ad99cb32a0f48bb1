"""The protocol of host environments, and their vectorization over runs."""

import warnings
from abc import abstractmethod
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

    observation: np.ndarray  # float32 [n, *observation_shape]: the last one where an episode ended
    reward: np.ndarray  # float32 [n]
    terminated: np.ndarray  # bool [n]
    truncated: np.ndarray  # bool [n]
    score: np.ndarray | None = None  # float32 [n]: summed to returns, where it is not the reward

    @property
    def done(self) -> np.ndarray:
        """Whether an episode ended, terminated or truncated. bool [n]."""
        return self.terminated | self.truncated

    @property
    def counted(self) -> np.ndarray:
        """The score of the step: returns in the results table are its sums. float32 [n]."""
        return self.reward if self.score is None else self.score


class HostEnvs(Protocol):
    """The n environments of one run."""

    def set_task(self, task: Task) -> None:
        """Sets the task, of NumPy arrays, of episodes that start from now on."""

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Starts an episode of the task wherever `mask`. Returns all observations, [n, ...].

        All randomness is drawn from `rng`. A call with another generator than the last call's must
        reset all environments: everything after it depends on that generator and the actions only.
        """

    def step(self, actions: np.ndarray) -> HostStep:
        """Makes one step in each. One whose episode has ended must be reset before the next."""

    def close(self) -> None:
        """Closes the environments."""


class HostEnv(Env):
    """An environment on the host, outside of compiled programs: `HostEnvs` run its episodes."""

    @abstractmethod
    def make(self, num_envs: int) -> HostEnvs:
        """Makes `num_envs` environments for one run. A task must be set before the first reset."""
        raise NotImplementedError


class HostVecEnv:
    """S x n host environments, n for each of S runs, with their tasks. Arrays are [S, n, ...].

    The environments of each run have their own task and generator, so that a run's episodes do not
    depend on the runs it is stacked with. Warns of the first reward or observation of a run that is
    not finite.

    Args:
      env: the environments' settings, stacked: every leaf [S].
      num_runs: the number of runs (S).
      num_envs: the number of environments of each (n).
    """

    def __init__(self, env: HostEnv, num_runs: int, num_envs: int) -> None:
        self._num_envs = num_envs
        self._continuous = env.continuous_actions
        self._name = env.name
        self._envs: list[HostEnvs] = []
        try:
            for s in range(num_runs):
                self._envs.append(unstack(env, s).make(num_envs))
        except BaseException:
            self.close()
            raise
        shape = (env.num_actions,) if self._continuous else ()
        dtype = np.float32 if self._continuous else np.int64
        self._episode_steps = np.zeros((num_runs, num_envs), np.int64)
        self._not_finite: set[int] = set()  # the runs that were warned of
        self._no_action = np.zeros((num_envs, *shape), dtype)

    def reset(self, task: Task, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Starts an episode of `task` in every environment. Returns observations [S, n, ...].

        Args:
          task: the tasks of the runs, [S, ...], on the host.
          rngs: a generator for each run, used until the next call.
        """
        self._rngs = rngs
        self._last_actions = [self._no_action] * len(self._envs)
        self.set_task(task)
        kernels = [task.reward_kernel for task in self._tasks]
        self._pending = [
            np.zeros((self._num_envs, 0 if kernel is None else len(kernel)), np.float32)
            for kernel in kernels
        ]
        self._episode_steps[:] = 0
        mask = np.ones(self._num_envs, bool)
        observations = [envs.reset(mask, rng) for envs, rng in zip(self._envs, rngs, strict=True)]
        for s, observation in enumerate(observations):
            self._check_finite(s, "an observation", observation)
        return np.stack(observations)

    def set_task(self, task: Task) -> None:
        """Sets the tasks of the next steps and episodes, [S, ...], on the host."""
        self._tasks = [unstack(task, s) for s in range(len(self._envs))]
        for envs, run_task in zip(self._envs, self._tasks, strict=True):
            envs.set_task(run_task)

    def step(self, actions: np.ndarray | jax.Array) -> tuple[HostStep, np.ndarray]:
        """Makes one step of each, and starts a new episode wherever one ended.

        Args:
          actions: [S, n]; or [S, n, A] where they are continuous.

        Returns:
          The step, and the observations to act on next [S, n, ...].
        """
        steps = [self._step_run(s, action) for s, action in enumerate(np.asarray(actions))]
        step: HostStep = jax.tree.map(lambda *arrays: np.stack(arrays), *steps)
        return step, self._reset_done(step) if step.done.any() else step.observation

    def close(self) -> None:
        """Closes the environments."""
        for envs in self._envs:
            try:
                envs.close()
            except Exception as error:  # which must not hide the error that ended the training
                warnings.warn(f"{self._name}: cannot be closed: {error!r}", stacklevel=2)

    def _step_run(self, s: int, action: np.ndarray) -> HostStep:
        """Makes one step of the environments of run `s`, under its task."""
        task = self._tasks[s]
        action = task.transform_action(action, self._continuous)
        if task.sticky_prob is not None:
            uniform = self._rngs[s].random(self._num_envs)
            action = task.repeat_action(action, self._last_actions[s], uniform)
            self._last_actions[s] = action
        step = self._envs[s].step(action)
        self._episode_steps[s] += 1
        self._check_finite(s, "a reward", step.reward)
        self._check_finite(s, "an observation", step.observation)
        reward = task.transform_reward(step.reward)
        if task.reward_kernel is not None:
            reward, self._pending[s] = task.delay_reward(self._pending[s], reward, step.done)
        return step._replace(
            reward=reward,
            score=None if step.score is None else task.transform_reward(step.score),
        )

    def _reset_done(self, step: HostStep) -> np.ndarray:
        """Starts an episode wherever one ended. Returns observations [S, n, ...]."""
        observations = list(step.observation)
        for s, done in enumerate(step.done):
            if done.any():
                observations[s] = self._envs[s].reset(done, self._rngs[s])
                self._episode_steps[s, done] = 0
                self._check_finite(s, "an observation", observations[s])
                last_action = self._last_actions[s]
                self._last_actions[s] = np.where(
                    expand_dims_like(done, last_action), self._no_action, last_action
                )
        return np.stack(observations)

    def _check_finite(self, s: int, what: str, values: np.ndarray) -> None:
        """Warns once for run `s` if what its environments gave, [n, ...], is not finite."""
        finite = np.isfinite(values)
        if finite.all() or s in self._not_finite:
            return
        self._not_finite.add(s)
        number = int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
        warnings.warn(
            f"{self._name}: the simulator gave {what} that is not finite, in environment {number} "
            f"of {self._num_envs}, step {self._episode_steps[s, number]} of its episode",
            stacklevel=1,
        )


def unstack(stack: T, s: int) -> T:
    """Returns run `s` of a stack, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[s], stack)
