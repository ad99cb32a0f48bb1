"""Craftax and Craftax-Classic, in JAX."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
from plasticity.envs.gymnax import LeveledGymnax, as_arrays, replace_params
from plasticity.struct import static_field

__all__ = ["Craftax"]

_IDS = ("Craftax-Classic-Symbolic-v1", "Craftax-Symbolic-v1")
_LEVEL_SEED = 2_0240_2168 % 2**31  # of the key of all levels, which no run's seed can equal
# No zombie is near at the beginning, and one hit is not enough: 1,536 episodes of the random policy
# lasted 33 steps or more in the classic game, and 512 lasted 35 or more in the other.
_MIN_EPISODE_STEPS = 32


class Craftax(LeveledGymnax):
    """Craftax or Craftax-Classic (Matthews et al. 2024) with symbolic observations.

    A level is a world; what creatures do is drawn in each episode. An episode ends with the
    player's death, or the boss's; the time limit truncates it. A reward is paid for each
    achievement when it is first unlocked, and 0.1 for each change of health.

    A world costs as much as 40 to 100 steps. A rollout of T steps therefore generates no more than
    1 + (T - 1) // 32 for each environment. Should more episodes begin there, the last world is
    played again, as under Craftax's optimistic resets.

    Attributes:
      id: `Craftax-Classic-Symbolic-v1`, or `Craftax-Symbolic-v1` for the whole game.
      levels: the size of a level set.
      episode_steps: the time limit; 0 for Craftax's (10,000 in the classic game, 100,000).
      params: parameters of the game that differ from Craftax's, such as `day_length`.
    """

    id: str = static_field(_IDS[0], choices=_IDS)
    episode_steps: int = static_field(0, ge=0)
    params: Mapping[str, Any] = static_field(FrozenDict(), kind=Mapping)

    @property
    def min_episode_steps(self) -> int:
        return min(_MIN_EPISODE_STEPS, self._time_limit)

    @without_x64
    def reset(self, task: Task, key: Array) -> State:
        env, params = self._made
        world_key = level_key(_LEVEL_SEED, task.levels.draw(key))
        return _compress(env.reset_env(world_key, params)[1])

    @without_x64
    def observe(self, task: Task, state: State) -> Array:
        return jnp.asarray(self._made[0].get_obs(state), jnp.float32)

    @without_x64
    def step(self, task: Task, state: State, action: Array, key: Array) -> Step:
        env, params = self._made
        # Craftax makes no difference between death and the time limit.
        unlimited = params.replace(max_timesteps=np.iinfo(np.int32).max)
        _, state, reward, terminated, _ = env.step_env(key, state, to_32_bits(action), unlimited)
        return Step(
            state=_compress(state),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=~terminated & (state.timestep >= self._time_limit),
        )

    @property
    def _made(self) -> tuple[Any, Any]:
        """Craftax's environment, and its parameters."""
        return _make(self.id, self.params)

    @property
    def _time_limit(self) -> int:
        return self.episode_steps or int(self._made[1].max_timesteps)


def _compress(state: Any) -> Any:
    """Returns Craftax's state without its key, which only images read."""
    return as_arrays(state.replace(state_rng=None))


@functools.cache
@without_x64
def _make(id: str, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns Craftax's environment and its parameters.

    Raises:
      SettingError: there are no such parameters.
    """
    with jax.ensure_compile_time_eval():  # or its constants would be tracers
        craftax_env = import_optional("craftax.craftax_env", extra="craftax")
        env = craftax_env.make_craftax_env_from_name(id, auto_reset=False)
        return env, replace_params(env.default_params, changes, id)
