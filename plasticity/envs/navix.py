"""MiniGrid's tasks in JAX, by Navix."""

import functools
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import minigrid  # noqa: F401  registers MiniGrid's tasks

from plasticity.envs.base import (
    Array,
    CompiledEnv,
    Step,
    Task,
    import_optional,
    level_key,
    to_32_bits,
    without_x64,
)
from plasticity.envs.minigrid_tokens import symbolic_tokens, token_shape
from plasticity.struct import SettingError, field, static_field

__all__ = ["Navix"]

_LEVEL_SEED = 7_1020_8042 % 2**31  # of the key of all levels, which no run's seed can equal
_PRNG_IMPL = "threefry2x32"
_SCALE = 0.1  # MiniGrid's indices of objects, colors and states go up to 10


class NavixState(NamedTuple):
    """The state of an episode."""

    inner: Any  # Navix's own state, as `_compress` returns it
    steps: Array  # int32 []


class Navix(CompiledEnv):
    """A MiniGrid task by Navix, fully observed.

    Observations are the object, color and state of each cell, times 0.1; or object tokens.

    A level is the layout, and everything that is drawn during the episode. As in MiniGrid the
    reward at the goal is 1 - 0.9 * (steps taken / time limit), and the time limit truncates
    episodes; Navix's own reward is 1.

    Attributes:
      id: MiniGrid's name of the task, such as `MiniGrid-DoorKey-5x5-v0`.
      levels: the size of a level set.
      episode_steps: the time limit; 0 for MiniGrid's, or Navix's where MiniGrid has no such
        task.
      observation: `grid`; or `objects`, a token for each cell that is not empty, with object, color
        and state, one-hot. There is a slot for each cell.
    """

    id: str = static_field(kind=str)
    levels: int = field(1000, kind=int, ge=1)
    episode_steps: int = static_field(0, ge=0)
    observation: str = static_field("grid", choices=("grid", "objects"))

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        env = _make(self.id)
        if self.observation == "objects":
            return token_shape(env.height, env.width)
        return (env.height, env.width, 3)

    @property
    def num_actions(self) -> int:
        return len(_make(self.id).action_set)

    @property
    def num_levels(self) -> int | Array:
        return self.levels

    def check(self) -> None:
        _make(self.id)

    @without_x64
    def reset(self, task: Task, key: Array) -> NavixState:
        level = task.levels.draw(key)
        key = level_key(_LEVEL_SEED, level)
        return NavixState(_compress(_make(self.id).reset(key).state), jnp.zeros((), jnp.int32))

    @without_x64
    def observe(self, task: Task, state: NavixState) -> Array:
        symbolic = import_optional("navix").observations.symbolic(state.inner)
        if self.observation == "objects":
            return symbolic_tokens(symbolic)
        return symbolic.astype(jnp.float32) * _SCALE

    @without_x64
    def step(self, task: Task, state: NavixState, action: Array, key: Array) -> Step:
        env, steps = _make(self.id), state.steps + 1
        time_limit = self.episode_steps or _time_limit(self.id)
        before = state.inner.replace(key=jax.random.wrap_key_data(state.inner.key, impl=_PRNG_IMPL))
        action = to_32_bits(action)
        inner = env.transitions_fn(before, action, env.action_set)
        reward = jnp.asarray(env.reward_fn(before, action, inner), jnp.float32)
        terminated = jnp.asarray(env.termination_fn(before, action, inner), bool)
        return Step(
            state=NavixState(_compress(inner), steps),
            reward=jnp.where(reward > 0, reward * (1 - 0.9 * steps / time_limit), reward),
            terminated=terminated,
            truncated=~terminated & (steps >= time_limit),
        )


def _compress(state: Any) -> Any:
    """Returns Navix's state without its sprites, and with its key as plain numbers."""
    return state.replace(cache=None, key=jax.random.key_data(state.key))


@functools.cache
@without_x64
def _make(id: str) -> Any:
    """Returns Navix's environment.

    Raises:
      SettingError: Navix has no such environment.
    """
    navix = import_optional("navix")
    ids = [name.replace("Navix-", "MiniGrid-") for name in navix.registry()]
    if id not in ids:
        raise SettingError("env.id", id, f"must be one of {', '.join(sorted(ids))}")
    with jax.ensure_compile_time_eval():  # or its constants would be tracers
        return navix.make(id.replace("MiniGrid-", "Navix-"))


@functools.cache
def _time_limit(id: str) -> int:
    """Returns MiniGrid's time limit of an episode, or Navix's."""
    if id not in gymnasium.registry:
        return int(_make(id).max_steps)
    env: Any = gymnasium.make(id)
    env.close()
    return int(env.unwrapped.max_steps)
