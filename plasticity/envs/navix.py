"""MiniGrid's tasks, compiled by Navix."""

import functools
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import minigrid  # noqa: F401  registers MiniGrid's tasks

from plasticity.envs.base import Array, CompiledEnv, Step, Task, optional
from plasticity.struct import SettingError, field, static_field

_LEVELS = 7_1020_8042 % 2**31  # the root of all levels' keys, apart from those of seeds
_GENERATOR = "threefry2x32"
_SCALE = 0.1  # MiniGrid's numbers of things, colours and states go up to 10


class NavixState(NamedTuple):
    """An episode under way."""

    inner: Any  # Navix's own state, as `_kept` has it
    steps: Array  # int32 []


class Navix(CompiledEnv):
    """A task of MiniGrid's, seen whole: the thing, colour and state in each cell, times 0.1.

    A level is the layout, and all that is drawn during the episode. As in MiniGrid what is earned
    at the goal is 1 - 0.9 * (steps taken / time limit), and the time limit cuts episodes off;
    Navix itself pays 1.

    Attributes:
      id: MiniGrid's name of the task: `MiniGrid-DoorKey-5x5-v0`.
      levels: the size of a level set.
      episode_steps: the time limit; 0 for MiniGrid's own, or Navix's where MiniGrid has no such
        task.
    """

    id: str = static_field(kind=str)
    levels: int = field(1000, kind=int, ge=1)
    episode_steps: int = static_field(0, ge=0)

    @property
    def name(self) -> str:
        return self.id

    @property
    def observation_shape(self) -> tuple[int, ...]:
        env = _made(self.id)
        return (env.height, env.width, 3)

    @property
    def num_actions(self) -> int:
        return len(_made(self.id).action_set)

    @property
    def num_levels(self) -> int | Array:
        return self.levels

    def check(self) -> None:
        _made(self.id)

    def reset(self, task: Task, key: Array) -> NavixState:
        level = task.levels.draw(key)
        key = jax.random.fold_in(jax.random.key(_LEVELS, impl=_GENERATOR), level)
        return NavixState(_kept(_made(self.id).reset(key).state), jnp.zeros((), jnp.int32))

    def observe(self, task: Task, state: NavixState) -> Array:
        return optional("navix").observations.symbolic(state.inner).astype(jnp.float32) * _SCALE

    def step(self, task: Task, state: NavixState, action: Array, key: Array) -> Step:
        env, steps = _made(self.id), state.steps + 1
        limit = self.episode_steps or _limit(self.id)
        before = state.inner.replace(key=jax.random.wrap_key_data(state.inner.key, impl=_GENERATOR))
        inner = env.transitions_fn(before, action, env.action_set)
        reward = jnp.asarray(env.reward_fn(before, action, inner), jnp.float32)
        terminated = jnp.asarray(env.termination_fn(before, action, inner), bool)
        return Step(
            state=NavixState(_kept(inner), steps),
            reward=jnp.where(reward > 0, reward * (1 - 0.9 * steps / limit), reward),
            terminated=terminated,
            truncated=~terminated & (steps >= limit),
        )


def _kept(state: Any) -> Any:
    """Navix's state as it is kept between two steps: its key as numbers, no sprites."""
    return state.replace(cache=None, key=jax.random.key_data(state.key))


@functools.cache
def _made(id: str) -> Any:
    """Navix's environment."""
    navix = optional("navix")
    known = [name.replace("Navix-", "MiniGrid-") for name in navix.registry()]
    if id not in known:
        raise SettingError("env.id", id, f"must be one of {', '.join(sorted(known))}")
    with jax.ensure_compile_time_eval():  # or its constants belong to what is traced just now
        return navix.make(id.replace("MiniGrid-", "Navix-"))


@functools.cache
def _limit(id: str) -> int:
    """How many steps an episode may take."""
    if id not in gymnasium.registry:
        return int(_made(id).max_steps)
    env: Any = gymnasium.make(id)
    env.close()
    return int(env.unwrapped.max_steps)
