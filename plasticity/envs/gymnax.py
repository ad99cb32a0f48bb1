"""Gymnax's environments by name: MinAtar's games, classic control and others, compiled."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, CompiledEnv, Step, Task, optional
from plasticity.struct import SettingError, static_field


class GymnaxState(NamedTuple):
    """An episode under way."""

    inner: Any  # Gymnax's own state
    seen: Array  # float32 [*observation_shape]: some observations take a key or the last action


class Gymnax(CompiledEnv):
    """An environment of Gymnax. Its time limit cuts episodes off.

    Where its actions are numbers, -1 and 1 stand for the least and the largest.

    Its autoreset is gone round: each episode is begun by whoever runs it.

    Attributes:
      id: as registered with Gymnax, such as `Breakout-MinAtar`.
    """

    id: str = static_field(kind=str)

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        env, params = _made(self.id)
        shape = jax.eval_shape(env.reset_env, jax.random.key(0), params)[0].shape
        return tuple(shape)

    @property
    def num_actions(self) -> int:
        actions = _actions(self.id)
        return int(math.prod(actions.shape) if self.continuous_actions else actions.n)

    @property
    def continuous_actions(self) -> bool:
        return not hasattr(_actions(self.id), "n")

    def check(self) -> None:
        actions = _actions(self.id)
        if self.continuous_actions and not hasattr(actions, "low"):
            raise SettingError(
                "env.id", self.id, f"must have discrete actions or numbers, not {actions}"
            )

    def reset(self, task: Task, key: Array) -> GymnaxState:
        env, params = _made(self.id)
        seen, inner = env.reset_env(key, params)
        return GymnaxState(inner, jnp.asarray(seen, jnp.float32))

    def observe(self, task: Task, state: GymnaxState) -> Array:
        return state.seen

    def step(self, task: Task, state: GymnaxState, action: Array, key: Array) -> Step:
        env, params = _made(self.id)
        if self.continuous_actions:
            space = _actions(self.id)
            low, high = jnp.asarray(space.low), jnp.asarray(space.high)
            action = low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low)
        seen, inner, reward, terminated, _ = env.step_env(key, state.inner, action, params)
        terminated = jnp.asarray(terminated, bool)
        return Step(
            state=GymnaxState(inner, jnp.asarray(seen, jnp.float32)),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=~terminated & env.is_truncated(inner, params),
        )


def _actions(id: str) -> Any:
    """The space of actions."""
    env, params = _made(id)
    return env.action_space(params)


@functools.cache
def _made(id: str) -> tuple[Any, Any]:
    """The environment and its parameters."""
    gymnax = optional("gymnax")
    if id not in gymnax.registered_envs:
        known = ", ".join(gymnax.registered_envs)
        raise SettingError("env.id", id, f"must be one of {known}")
    with jax.ensure_compile_time_eval():  # or its constants belong to what is traced just now
        env, params = gymnax.make(id)
    return env, params
