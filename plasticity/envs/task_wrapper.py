"""A compiled environment as its task shows it to the agent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, CompiledEnv, State, Step, Task


class TaskWrapperState(NamedTuple):
    """An episode under way. What the task does not ask for is None."""

    inner: State
    last: Array | None  # int32 [], or float32 [A]: the environment's action of the step before
    noise: Array | None  # float32 [*observation_shape]: standard normal, on what is seen now


class TaskWrapper(CompiledEnv):
    """An environment behind its task: what is seen, which action is which, what is earned.

    What happens *in* it, its levels and its dynamics, the environment reads from the task itself.

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
        key, _, noise_key = _keys(task, key)
        numbers = (self.num_actions,) if self.continuous_actions else ()
        last = None
        if task.sticky is not None:
            last = jnp.zeros(numbers, float if self.continuous_actions else jnp.int32)
        return TaskWrapperState(self.env.reset(task, key), last, self._noise(task, noise_key))

    def observe(self, task: Task, state: TaskWrapperState) -> Array:
        seen = self.env.observe(task, state.inner)
        return task.view(seen) if state.noise is None else task.view(seen, state.noise)

    def step(self, task: Task, state: TaskWrapperState, action: Array, key: Array) -> Step:
        key, sticky_key, noise_key = _keys(task, key)
        last = None
        if task.actions is not None:
            if self.continuous_actions:
                action = jnp.zeros_like(action).at[task.actions].set(action)
            else:
                action = task.actions[action]
        if task.sticky is not None:
            assert state.last is not None
            again = jax.random.bernoulli(sticky_key, task.sticky)
            last = action = jnp.where(again, state.last, action)
        step = self.env.step(task, state.inner, action, key)
        reward = step.reward if task.reward is None else step.reward * task.reward
        following = TaskWrapperState(step.state, last, self._noise(task, noise_key))
        return step._replace(state=following, reward=reward)

    def _noise(self, task: Task, key: Array) -> Array | None:
        return None if task.noise is None else jax.random.normal(key, self.observation_shape)


def _keys(task: Task, key: Array) -> tuple[Array, Array, Array]:
    """Keys for the environment, for sticky actions and for noise, where the task has those."""
    if task.sticky is None and task.noise is None:
        return key, key, key
    env_key, sticky_key, noise_key = jax.random.split(key, 3)
    return env_key, sticky_key, noise_key
