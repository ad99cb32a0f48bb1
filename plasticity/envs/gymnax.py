"""Gymnax's environments, in JAX: MinAtar's games, classic control and others."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, CompiledEnv, Step, Task, import_optional, scale_action
from plasticity.struct import SettingError, static_field

__all__ = ["Gymnax"]


class GymnaxState(NamedTuple):
    """The state of an episode."""

    inner: Any  # Gymnax's own state
    # float32 [*observation_shape]. Kept, as some observations depend on a key or the last action.
    observation: Array


class Gymnax(CompiledEnv):
    """An environment of gymnax, by its id.

    Its time limit truncates episodes; its autoreset is not used.

    Where actions are continuous, the agent's [-1, 1] is scaled to their bounds.

    Attributes:
      id: the id registered with Gymnax, such as `Breakout-MinAtar`.
    """

    id: str = static_field(kind=str)

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        env, params = _make(self.id)
        shape = jax.eval_shape(env.reset_env, jax.random.key(0), params)[0].shape
        return tuple(shape)

    @property
    def num_actions(self) -> int:
        space = _action_space(self.id)
        return int(math.prod(space.shape) if self.continuous_actions else space.n)

    @property
    def continuous_actions(self) -> bool:
        return not hasattr(_action_space(self.id), "n")

    def check(self) -> None:
        actions = _action_space(self.id)
        if self.continuous_actions and not hasattr(actions, "low"):
            raise SettingError(
                "env.id", self.id, f"must have discrete actions or bounded ones, not {actions}"
            )

    def reset(self, task: Task, key: Array) -> GymnaxState:
        env, params = _make(self.id)
        observation, inner = env.reset_env(key, params)
        return GymnaxState(inner, jnp.asarray(observation, jnp.float32))

    def observe(self, task: Task, state: GymnaxState) -> Array:
        return state.observation

    def step(self, task: Task, state: GymnaxState, action: Array, key: Array) -> Step:
        env, params = _make(self.id)
        if self.continuous_actions:
            space = _action_space(self.id)
            action = scale_action(action, jnp.asarray(space.low), jnp.asarray(space.high))
        observation, inner, reward, terminated, _ = env.step_env(key, state.inner, action, params)
        terminated = jnp.asarray(terminated, bool)
        return Step(
            state=GymnaxState(inner, jnp.asarray(observation, jnp.float32)),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=~terminated & env.is_truncated(inner, params),
        )


def _action_space(id: str) -> Any:
    env, params = _make(id)
    return env.action_space(params)


@functools.cache
def _make(id: str) -> tuple[Any, Any]:
    """Returns the environment and its parameters.

    Raises:
      SettingError: Gymnax has no such environment.
    """
    gymnax = import_optional("gymnax")
    if id not in gymnax.registered_envs:
        ids = ", ".join(gymnax.registered_envs)
        raise SettingError("env.id", id, f"must be one of {ids}")
    with jax.ensure_compile_time_eval():  # or its constants would be tracers
        env, params = gymnax.make(id)
    return env, params
