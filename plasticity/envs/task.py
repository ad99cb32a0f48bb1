"""Tasks: everything that a domain shift may change, and its effect on an environment's interface.

`Task.transform_obs`, `transform_action` and `transform_reward` are written for JAX and for NumPy
arrays. `plasticity.envs.task_wrapper` applies them to JAX environments and
`plasticity.envs.host.vector_env` to host environments.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Levels", "Task"]

Array = jax.Array

# Seed s owns the 20,000 level ids from s * 20,000 on: the first half for training, the second held
# out, so that no level that any seed trains on is one that any seed is tested on.
LEVELS_PER_SEED = 10_000
HELD_OUT = LEVELS_PER_SEED
MAX_SEED = 2**31 // (2 * LEVELS_PER_SEED) - 1


class Levels(NamedTuple):
    """A level set: the ids `first, first + 1, ..., first + size - 1`."""

    first: Array | int  # int32 []
    size: Array | int  # int32 []
    initial_size: Array | int  # int32 []: the size in the first round

    def draw(self, key: Array) -> Array:
        """Draws one id of the set, uniformly. int32 []."""
        return self.first + jax.random.randint(key, (), 0, self.size)


class Task(NamedTuple):
    """A distribution of episodes: everything that a domain shift may change.

    Fields that no shift of a run changes are None, or missing from `dynamics`, and cost nothing.
    """

    levels: Levels
    dynamics: dict[str, Array]  # values that shifts set, by the environment's names of them
    gain: Array | None = None  # float32 [*observation_shape]: multiplies the observation
    bias: Array | None = None  # float32 [*observation_shape]: is added after the gain
    noise: Array | None = None  # float32 []: the standard deviation of noise on every entry
    # int32 [D]: entry i of the result is entry permutation[i]; or [g * g], of blocks of an image.
    permutation: Array | None = None
    # int32 [A]: action (or entry) i of the agent is action_permutation[i] of the environment.
    action_permutation: Array | None = None
    sticky_prob: Array | None = None  # float32 []: the probability of repeating the last action
    reward_scale: Array | None = None  # float32 []: multiplies rewards

    def transform_obs(self, observation: Array, noise: Array | float = 0.0) -> Array:
        """Returns one observation as the agent receives it, in the same shape.

        Args:
          observation: the environment's observation.
          noise: draws of a standard normal distribution, of the same shape.
        """
        if self.gain is not None:
            observation = observation * self.gain
        if self.bias is not None:
            observation = observation + self.bias
        if self.noise is not None:
            observation = observation + self.noise * noise
        if self.permutation is not None:
            observation = permute_obs(observation, self.permutation)
        return observation

    def transform_action(
        self,
        action: Any,
        *,
        continuous: bool,
        last_action: Any = None,
        uniform: Any = None,
    ) -> Any:
        """Returns the action that the environment executes.

        Args:
          action: the agent's action: [...] if discrete, [..., A] if continuous.
          continuous: whether actions are continuous.
          last_action: what the environment executed in the step before, of the same shape; read
            only if `sticky_prob` is set.
          uniform: draws from [0, 1), [...]; read only if `sticky_prob` is set.
        """
        if self.action_permutation is not None:
            permutation = _namespace(action).asarray(self.action_permutation)
            action = action[..., permutation.argsort()] if continuous else permutation[action]
        if self.sticky_prob is not None:
            repeat = expand_dims_like(uniform < self.sticky_prob, action)
            action = _namespace(repeat, last_action, action).where(repeat, last_action, action)
        return action

    def transform_reward(self, reward: Any) -> Any:
        """Returns the environment's reward as the agent receives it."""
        return reward if self.reward_scale is None else reward * self.reward_scale

    def held_out(self) -> "Task":
        """Returns the same task on equally many levels that training never draws."""
        return self._replace(levels=self.levels._replace(first=self.levels.first + HELD_OUT))


def permute_obs(observation: Array, permutation: Array) -> Array:
    """Permutes the entries of an observation, or the equal blocks of an image.

    Args:
      observation: the observation, in its shape.
      permutation: the entry that comes to each place, [D]; or the block that comes to each of the
        g * g places of a grid, row by row, [g * g].
    """
    if len(permutation) == observation.size:
        return observation.reshape(-1)[permutation].reshape(observation.shape)
    grid = math.isqrt(len(permutation))
    height, width, channels = observation.shape
    rows, columns = height // grid, width // grid
    blocks = observation.reshape(grid, rows, grid, columns, channels).swapaxes(1, 2)
    blocks = blocks.reshape(grid * grid, rows, columns, channels)[permutation]
    blocks = blocks.reshape(grid, grid, rows, columns, channels).swapaxes(1, 2)
    return blocks.reshape(observation.shape)


def scale_action(action: Any, low: Any, high: Any) -> Any:
    """Clips a continuous action to [-1, 1] and scales it to the box [low, high].

    Args:
      action: [..., A].
      low: the lower bounds, [A] or a scalar.
      high: the upper bounds.
    """
    return low + (action.clip(-1, 1) + 1) / 2 * (high - low)


def expand_dims_like(flags: Any, values: Any) -> Any:
    """Appends axes of size 1 to flags [...], to broadcast against values [..., *shape]."""
    return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))


def _namespace(*arrays: Any) -> Any:
    """Returns `jax.numpy` if any of the arrays is a JAX array, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
