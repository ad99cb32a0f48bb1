"""A JAX environment whose observations, actions and rewards its task transforms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, CompiledEnv, State, Step, Task

__all__ = ["TaskWrapper", "TaskWrapperState"]


class TaskWrapperState(NamedTuple):
    """The state of an episode. Fields that the task does not use are None."""

    inner: State
    last_action: Array | None  # int32 [] or float32 [A]: executed by the environment one step ago
    noise: Array | None  # float32 [*observation_shape]: standard normal, for this observation


class TaskWrapper(CompiledEnv):
    """Applies the task's transformations of observations, actions and rewards to an environment.

    Levels and dynamics are read from the task by the environment itself.

    Attributes:
      env: the environment.
    """

    env: CompiledEnv

    @property
    def name(self) -> str:
        return self.env.name

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.env.observation_shape

    @property
    def num_actions(self) -> int:
        return self.env.num_actions

    @property
    def continuous_actions(self) -> bool:
        return self.env.continuous_actions

    @property
    def num_levels(self) -> int | Array | None:
        return self.env.num_levels

    @property
    def min_episode_steps(self) -> int:
        return self.env.min_episode_steps

    @property
    def truncates(self) -> bool:
        return self.env.truncates

    def reset(self, task: Task, key: Array) -> TaskWrapperState:
        key, _, noise_key = _split_key(task, key)
        action_shape = (self.num_actions,) if self.continuous_actions else ()
        last_action = None
        if task.sticky_prob is not None:
            last_action = jnp.zeros(action_shape, float if self.continuous_actions else jnp.int32)
        return TaskWrapperState(
            self.env.reset(task, key), last_action, self._draw_noise(task, noise_key)
        )

    def observe(self, task: Task, state: TaskWrapperState) -> Array:
        observation = self.env.observe(task, state.inner)
        if state.noise is None:
            return task.transform_obs(observation)
        return task.transform_obs(observation, state.noise)

    def step(self, task: Task, state: TaskWrapperState, action: Array, key: Array) -> Step:
        key, sticky_key, noise_key = _split_key(task, key)
        sticky = task.sticky_prob is not None
        action = task.transform_action(
            action,
            continuous=self.continuous_actions,
            last_action=state.last_action,
            uniform=jax.random.uniform(sticky_key, dtype=jnp.float32) if sticky else None,
        )
        step = self.env.step(task, state.inner, action, key)
        next_state = TaskWrapperState(
            step.state, action if sticky else None, self._draw_noise(task, noise_key)
        )
        return step._replace(state=next_state, reward=task.transform_reward(step.reward))

    def _draw_noise(self, task: Task, key: Array) -> Array | None:
        return None if task.noise is None else jax.random.normal(key, self.observation_shape)


def _split_key(task: Task, key: Array) -> tuple[Array, Array, Array]:
    """Returns keys for the environment, for sticky actions and for noise, if the task has those."""
    if task.sticky_prob is None and task.noise is None:
        return key, key, key
    env_key, sticky_key, noise_key = jax.random.split(key, 3)
    return env_key, sticky_key, noise_key
