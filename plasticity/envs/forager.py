"""Forager's grids whose rewards drift, by Foragax, in JAX."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from plasticity.envs.base import (
    Array,
    State,
    Step,
    Task,
    import_optional,
    level_key,
    to_32_bits,
    without_x64,
)
from plasticity.envs.gymnax import LeveledGymnax, as_arrays
from plasticity.struct import Range, SettingError, static_field, thaw

__all__ = ["Forager"]

_IDS = (
    "ForagaxNeverEndingRelearning-v1",
    "ForagaxUnendingTasks-v1",
    "ForagaxTwoBiomeLarge-v1",
)
_LEVEL_SEED = 2_6050_1131 % 2**31  # of the key of all levels, which no run's seed can equal
_NEVER = 2**31 - 1


class Forager(LeveledGymnax):
    """A grid of Forager (Tang et al. 2026), whose objects' rewards change with a clock.

    A level is the first placement of objects; where they grow again is drawn in each episode. The
    problem has no end. A time limit truncates episodes here, so that there are returns, and sets
    the clock back to the task's.

    Attributes:
      id: `ForagaxNeverEndingRelearning-v1`, whose rewards are square waves of the clock,
        `ForagaxUnendingTasks-v1`, where they are Fourier series and each eaten field grows other
        ones, or `ForagaxTwoBiomeLarge-v1`, where they are constant.
      levels: the size of a level set.
      episode_steps: the time limit; 0 for none, with which rewards drift by Forager's clock alone.
      kwargs: arguments of `foragax.registry.make`, such as `aperture_size`, `observation_type` and
        `period`. Hints are left out.
    """

    id: str = static_field(_IDS[0], choices=_IDS)
    episode_steps: int = static_field(1000, ge=0)
    kwargs: Mapping[str, Any] = static_field(FrozenDict(), kind=Mapping)

    @property
    def dynamics(self) -> Mapping[str, Range]:
        return {"clock": Range(float, ge=0)}  # at the beginning of an episode, in steps

    @property
    def min_episode_steps(self) -> int:
        return self.episode_steps or _NEVER

    @property
    def truncates(self) -> bool:
        return self.episode_steps > 0

    @without_x64
    def reset(self, task: Task, key: Array) -> State:
        env, params = self._made
        world_key = level_key(_LEVEL_SEED, task.levels.draw(key))
        state = env.reset_env(world_key, params)[1]
        if "clock" in task.dynamics:
            clock = jnp.round(task.dynamics["clock"]).astype(jnp.int32)
            state = state.replace(offset=state.offset + clock)
        return as_arrays(state)

    @without_x64
    def observe(self, task: Task, state: State) -> Array:
        env, params = self._made
        return jnp.asarray(env.get_obs(state, params), jnp.float32)

    @without_x64
    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        env, params = self._made
        _, state, reward, _, _ = env.step_env(key, state, to_32_bits(action), params)
        done = state.time >= self.episode_steps if self.truncates else jnp.zeros((), bool)
        return Step(
            state=as_arrays(state),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.zeros((), bool),
            truncated=done,
        )

    @property
    def _made(self) -> tuple[Any, Any]:
        """Foragax's environment, and its parameters."""
        return _make(self.id, self.kwargs)


@functools.cache
@without_x64
def _make(id: str, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns Foragax's environment and its parameters.

    Raises:
      SettingError: there are no such arguments.
    """
    registry = import_optional("foragax.registry", extra="forager")
    with jax.ensure_compile_time_eval():  # or its constants would be tracers
        try:
            env = registry.make(id, **{**thaw(kwargs), "return_hint": False})
        except (TypeError, ValueError) as error:
            allowed = f"must be arguments of {id} ({error})"
            raise SettingError("env.kwargs", thaw(kwargs), allowed) from error
        env.is_terminated = env.is_terminal  # as gymnax 1.0 calls what Foragax 0.58 defines
        return env, env.default_params
