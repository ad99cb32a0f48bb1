"""A JAX environment with its task's transformations of observations, actions and rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, CompiledEnv, State, Step, Task

__all__ = ["TaskWrapper"]


class TaskWrapperState(NamedTuple):
    """The state of an episode. Fields that the task has no use for are None."""

    inner: State  # the environment's own state
    last_action: Array | None  # int32 [], or float32 [A]: the environment's last action
    noise: Array | None  # float32 [*observation_shape]: standard normal, for the observation
    pending: Array | None = None  # float32 [D]: what earlier rewards pay from the next step on


class TaskWrapper(CompiledEnv):
    """Wraps an environment to transform its observations, actions and rewards by the task.

    The environment itself reads levels and dynamics from the task.

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
        last_action = None
        if task.sticky_prob is not None:
            shape = (self.num_actions,) if self.continuous_actions else ()
            last_action = jnp.zeros(shape, float if self.continuous_actions else jnp.int32)
        pending = None if task.reward_kernel is None else jnp.zeros_like(task.reward_kernel)
        return TaskWrapperState(
            self.env.reset(task, key), last_action, self._draw_noise(task, noise_key), pending
        )

    def observe(self, task: Task, state: TaskWrapperState) -> Array:
        return task.transform_obs(self.env.observe(task, state.inner), state.noise)

    def step(self, task: Task, state: TaskWrapperState, action: Array, key: Array) -> Step:
        key, sticky_key, noise_key = _split_key(task, key)
        action, last_action = task.transform_action(action, self.continuous_actions), None
        if task.sticky_prob is not None:
            uniform = jax.random.uniform(sticky_key, dtype=task.sticky_prob.dtype)
            last_action = action = task.repeat_action(action, state.last_action, uniform)
        step = self.env.step(task, state.inner, action, key)
        reward, pending = task.transform_reward(step.reward), None
        if task.reward_kernel is not None:
            done = step.terminated | step.truncated
            reward, pending = task.delay_reward(state.pending, reward, done)
        next_state = TaskWrapperState(
            step.state, last_action, self._draw_noise(task, noise_key), pending
        )
        return step._replace(state=next_state, reward=reward)

    def _draw_noise(self, task: Task, key: Array) -> Array | None:
        return None if task.noise is None else jax.random.normal(key, self.observation_shape)


def _split_key(task: Task, key: Array) -> tuple[Array, Array, Array]:
    """Returns keys for the environment, sticky actions and noise, if the task needs them."""
    if task.sticky_prob is None and task.noise is None:
        return key, key, key
    env_key, sticky_key, noise_key = jax.random.split(key, 3)
    return env_key, sticky_key, noise_key
