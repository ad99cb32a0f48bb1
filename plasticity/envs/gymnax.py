"""Gymnax's environments, in JAX: MinAtar's games, classic control and others."""

import dataclasses
import functools
import importlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from plasticity.envs.base import (
    Array,
    CompiledEnv,
    Step,
    Task,
    import_optional,
    scale_action,
    to_32_bits,
    without_x64,
)
from plasticity.struct import SettingError, field, static_field, thaw

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
      id: the id registered with Gymnax, such as `Breakout-MinAtar`; `module:id` imports the module
        first, which may register it.
      kwargs: arguments of `gymnax.make`.
      params: parameters of the environment that differ from Gymnax's, such as `gravity`.
    """

    id: str = static_field(kind=str)
    kwargs: Mapping[str, Any] = static_field(FrozenDict(), kind=Mapping)
    params: Mapping[str, Any] = static_field(FrozenDict(), kind=Mapping)

    @property
    def name(self) -> str:
        return self.id.rpartition(":")[2]

    @property
    @without_x64
    def observation_shape(self) -> tuple[int, ...]:
        env, params = self._made
        shape = jax.eval_shape(env.reset_env, jax.random.key(0), params)[0].shape
        return tuple(shape)

    @property
    def num_actions(self) -> int:
        space = self._action_space
        return int(math.prod(space.shape) if self.continuous_actions else space.n)

    @property
    def continuous_actions(self) -> bool:
        return not hasattr(self._action_space, "n")

    def check(self) -> None:
        actions = self._action_space
        if self.continuous_actions and not hasattr(actions, "low"):
            raise SettingError(
                "env.id", self.id, f"must have discrete actions or bounded ones, not {actions}"
            )

    @without_x64
    def reset(self, task: Task, key: Array) -> GymnaxState:
        env, params = self._made
        observation, inner = env.reset_env(key, params)
        return GymnaxState(as_arrays(inner), jnp.asarray(observation, jnp.float32))

    def observe(self, task: Task, state: GymnaxState) -> Array:
        return state.observation

    @without_x64
    def step(self, task: Task, state: GymnaxState, action: Array, key: Array) -> Step:
        env, params = self._made
        action = to_32_bits(action)
        if self.continuous_actions:
            space = self._action_space
            action = scale_action(action, jnp.asarray(space.low), jnp.asarray(space.high))
        observation, inner, reward, terminated, _ = env.step_env(key, state.inner, action, params)
        terminated = jnp.asarray(terminated, bool)
        return Step(
            state=GymnaxState(as_arrays(inner), jnp.asarray(observation, jnp.float32)),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=~terminated & env.is_truncated(inner, params),
        )

    @property
    def _made(self) -> tuple[Any, Any]:
        """Gymnax's environment, and its parameters."""
        return _make(self.id, self.kwargs, self.params)

    @property
    def _action_space(self) -> Any:
        env, params = self._made
        return env.action_space(params)


class LeveledGymnax(CompiledEnv):
    """An environment with gymnax's interface, whose levels are what a reset draws.

    Attributes:
      id: the environment's id.
      levels: the size of a level set.
    """

    id: str = static_field(kind=str)
    levels: int = field(1000, kind=int, ge=1)

    @property
    def name(self) -> str:
        return self.id

    @property
    @without_x64
    def observation_shape(self) -> tuple[int, ...]:
        env, params = self._made
        return tuple(env.observation_space(params).shape)

    @property
    def num_actions(self) -> int:
        return int(self._made[0].num_actions)

    @property
    def num_levels(self) -> int | Array:
        return self.levels

    def check(self) -> None:
        _ = self._made

    @property
    @abstractmethod
    def _made(self) -> tuple[Any, Any]:
        """The environment, and its parameters."""
        raise NotImplementedError


def as_arrays(state: Any) -> Any:
    """Returns a state without plain numbers, which would have 64 bits in JAX's 64-bit mode."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), state)


def replace_params(params: Any, changes: Mapping[str, Any], name: str) -> Any:
    """Returns an environment's parameters with some of them changed.

    Args:
      params: a Flax dataclass.
      changes: numbers by name.
      name: the environment's name.

    Raises:
      SettingError: there is no such parameter, or a value is not a number.
    """
    for key, value in changes.items():
        if not hasattr(params, key):
            names = ", ".join(one.name for one in dataclasses.fields(params)) or "none"
            allowed = f"no such parameter of {name}; there are {names}"
            raise SettingError(f"env.params.{key}", value, allowed)
        if not isinstance(value, int | float):
            raise SettingError(f"env.params.{key}", value, "must be a number")
    return params.replace(**changes)


@functools.cache
@without_x64
def _make(id: str, kwargs: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the environment and its parameters.

    Raises:
      SettingError: Gymnax has no such environment, or it has no such arguments or parameters.
    """
    gymnax = import_optional("gymnax")
    module, _, name = id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise SettingError("env.id", id, f"must begin with a module ({error})") from error
    if name not in gymnax.registered_envs:
        ids = ", ".join(gymnax.registered_envs)
        raise SettingError("env.id", id, f"must be one of {ids}")
    with jax.ensure_compile_time_eval():  # or its constants would be tracers
        try:
            env, params = gymnax.make(name, **thaw(kwargs))
        except TypeError as error:
            allowed = f"must be arguments of {name} ({error})"
            raise SettingError("env.kwargs", thaw(kwargs), allowed) from error
        return env, replace_params(params, changes, name)
