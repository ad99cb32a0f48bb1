"""The interface of environments."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.task import HELD_OUT, LEVELS_PER_SEED, Levels, Task
from plasticity.struct import Range, SettingError, Struct

__all__ = ["CompiledEnv", "Env", "Levels", "Step", "Task"]

Array = jax.Array
State = Any  # an environment's own pytree


class Env(Struct):
    """An environment. `CompiledEnv` and `HostEnv` define how its episodes are run."""

    @property
    def name(self) -> str:
        """The environment's name in the results table."""
        raise NotImplementedError

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        raise NotImplementedError

    @property
    def num_actions(self) -> int:
        """The number of discrete actions, or the size of a continuous action."""
        raise NotImplementedError

    @property
    def continuous_actions(self) -> bool:
        """Whether an action is a vector [num_actions], which environments clip to [-1, 1]."""
        return False

    @property
    def num_levels(self) -> int | Array | None:
        """The size of a level set; None where episodes are not drawn from levels."""
        return None

    @property
    def dynamics(self) -> Mapping[str, Range]:
        """The parameters of the dynamics that a task may set, with their allowed values."""
        return {}

    @property
    def supports_midround_change(self) -> bool:
        """Whether levels and dynamics can change while episodes are in progress."""
        return True

    def check(self) -> None:
        """Raises `SettingError` if there is no such environment, or it cannot be used."""

    def task(self, seed: Array | int) -> Task:
        """Returns the task before any shift."""
        size = jnp.asarray(1 if self.num_levels is None else self.num_levels, jnp.int32)
        levels = Levels(jnp.asarray(seed, jnp.int32) * (LEVELS_PER_SEED + HELD_OUT), size, size)
        return Task(levels, dynamics={})


class Step(NamedTuple):
    """One step of an environment.

    `terminated` ends an episode in a terminal state, whose value is 0. `truncated` cuts it off:
    later rewards are estimated by the value of the state that was reached.
    """

    state: State
    reward: Array  # float32 []
    terminated: Array  # bool []
    truncated: Array  # bool []


class CompiledEnv(Env):
    """A JAX environment: pure functions of (task, state), batched by `vmap`."""

    @property
    def min_episode_steps(self) -> int:
        """A lower bound on the length of an episode. Bounds the number of resets in a rollout."""
        return 1

    @property
    def truncates(self) -> bool:
        """Whether `step` may return `truncated`. Rollouts are faster if it never does."""
        return True

    def reset(self, task: Task, key: Array) -> State:
        """Returns the first state of an episode of `task`."""
        raise NotImplementedError

    def observe(self, task: Task, state: State) -> Array:
        """Returns the observation of `state`, before `task.transform_obs`.

        float32 [*observation_shape].
        """
        raise NotImplementedError

    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        """Makes one step. The result is ignored where the episode has ended already."""
        raise NotImplementedError


def import_optional(package: str, extra: str = "envs") -> Any:
    """Imports a package of one of this project's extras, which only some environments need.

    Raises:
      SettingError: the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SettingError(
            "env", package, f"must be installed: pip install 'plasticity-rl[{extra}]' ({error})"
        ) from error
