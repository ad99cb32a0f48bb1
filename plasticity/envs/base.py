"""The protocol of environments."""

import functools
import importlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp

from plasticity.envs.task import HELD_OUT, LEVELS_PER_SEED, AnyArray, Levels, Task
from plasticity.struct import Range, SettingError, Struct

__all__ = ["CompiledEnv", "Env", "Levels", "Step", "Task"]

Array = jax.Array
F = TypeVar("F", bound=Callable[..., Any])
State = Any  # an environment's own pytree


class Env(Struct):
    """An environment. `CompiledEnv` and `HostEnv` define how its episodes are run."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The environment's name in the results table."""
        raise NotImplementedError

    @property
    @abstractmethod
    def observation_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        raise NotImplementedError

    @property
    @abstractmethod
    def num_actions(self) -> int:
        """The number of discrete actions; or the dimension of a continuous one."""
        raise NotImplementedError

    @property
    def continuous_actions(self) -> bool:
        """Whether an action is a vector [num_actions]; the environment clips it to [-1, 1]."""
        return False

    @property
    def num_levels(self) -> int | Array | None:
        """The size of a level set; None where episodes are not drawn from levels."""
        return None

    @property
    def dynamics(self) -> Mapping[str, Range]:
        """The parameters of its dynamics that a task may set, by name, and their ranges."""
        return {}

    @property
    def supports_midround_change(self) -> bool:
        """Whether levels and dynamics can change while episodes are running."""
        return True

    def check(self) -> None:
        """Raises `SettingError` if there is no such environment, or it cannot be used."""

    def task(self, seed: Array | int) -> Task:
        """Returns the task of the first round, before any shift."""
        size = jnp.asarray(1 if self.num_levels is None else self.num_levels, jnp.int32)
        levels = Levels(jnp.asarray(seed, jnp.int32) * (LEVELS_PER_SEED + HELD_OUT), size, size)
        return Task(levels, dynamics={})


class Step(NamedTuple):
    """The result of one step of an environment.

    `terminated` ends an episode in a terminal state, whose value is 0. `truncated` cuts it off: the
    return after it is estimated by the value of the state that was reached.
    """

    state: State
    reward: Array  # float32 []
    terminated: Array  # bool []
    truncated: Array  # bool []


class CompiledEnv(Env):
    """A JAX environment: pure functions of (task, state) for one environment, to be vmapped."""

    @property
    def min_episode_steps(self) -> int:
        """A lower bound on an episode's length, which bounds the resets in a rollout."""
        return 1

    @property
    def truncates(self) -> bool:
        """Whether `step` may return `truncated`. False saves time where it never does."""
        return True

    @abstractmethod
    def reset(self, task: Task, key: Array) -> State:
        """Returns the first state of an episode of `task`."""
        raise NotImplementedError

    @abstractmethod
    def observe(self, task: Task, state: State) -> Array:
        """Returns the observation before `task.transform_obs`. float32 [*observation_shape]."""
        raise NotImplementedError

    @abstractmethod
    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        """Makes one step. The result for a state whose episode has ended is ignored."""
        raise NotImplementedError


def without_x64(method: F) -> F:
    """Decorates what calls a package whose types do not agree in JAX's 64-bit mode.

    The mode is off within the call. Actions and states in the arguments must have 32 bits.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(False):
            return method(*args, **kwargs)

    return cast(F, call)


def level_key(seed: int, level: Array | int) -> Array:
    """Returns the key of a level, the same for every run and every default of JAX's.

    Args:
      seed: that of all levels of a kind of environment, which no run's seed can equal.
      level: the level's id.
    """
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), level)


def to_32_bits(action: Array) -> Array:
    """Returns an action as float32 or int32, which it is already outside of the 64-bit mode."""
    return action.astype(jnp.float32 if jnp.issubdtype(action.dtype, jnp.floating) else jnp.int32)


def scale_action(action: AnyArray, low: AnyArray, high: AnyArray) -> AnyArray:
    """Clips continuous actions to [-1, 1] and scales them to the box [low, high].

    Args:
      action: JAX or NumPy array, [..., *shape of the box].
      low: the lower bounds.
      high: the upper bounds.
    """
    return low + (action.clip(-1, 1) + 1) / 2 * (high - low)


def import_optional(package: str, extra: str = "envs") -> Any:
    """Imports a package that only some environments need.

    Args:
      package: its import name.
      extra: this project's extra that installs it.

    Raises:
      SettingError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SettingError(
            "env", package, f"must be installed: pip install 'plasticity-rl[{extra}]' ({error})"
        ) from error
