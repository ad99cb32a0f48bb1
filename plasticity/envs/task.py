"""Tasks: what a domain shift may change, and how a task transforms observation, action and reward.

The transformations are written once, for JAX arrays and for NumPy arrays.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.networks.tokens import permute_features, permute_positions
from plasticity.struct import Range, SettingError

__all__ = ["Levels", "Task"]

Array = jax.Array
AnyArray = Any  # jax.Array in compiled programs, np.ndarray on the host

# Seed s owns the 20 000 level ids from s * 20 000 on: the first half for training, the second
# held out, so that no seed is tested on a level that any seed is trained on.
LEVELS_PER_SEED = 10_000
HELD_OUT = LEVELS_PER_SEED
MAX_SEED = 2**31 // (2 * LEVELS_PER_SEED) - 1


_LEVEL_IDS = Range(int, ge=0, lt=(MAX_SEED + 1) * 2 * LEVELS_PER_SEED)


def check_level_id(level_id: object) -> None:
    """Raises `SettingError` if a number is the id of no level of any seed."""
    if level_id not in _LEVEL_IDS:
        raise SettingError("level_id", level_id, f"must be {_LEVEL_IDS}")


class Levels(NamedTuple):
    """A set of levels: the ids `first, first + 1, ..., first + size - 1`."""

    first: Array | int  # int32 []
    size: Array | int  # int32 []
    step: Array | int  # int32 []: the size in the first round

    def draw(self, key: Array) -> Array:
        """Draws an id of the set, uniformly. int32 []."""
        return self.first + jax.random.randint(key, (), 0, self.size)


class Task(NamedTuple):
    """A distribution of episodes: everything that a domain shift may change.

    A field that no shift of a run changes is None, or absent from `dynamics`, and costs nothing.
    """

    levels: Levels
    dynamics: dict[str, Array]  # parameters of the environment that a shift sets, by name
    # float32 [*observation_shape], or broadcast to it: multiplies observations
    gain: Array | None = None
    bias: Array | None = None  # float32 [*observation_shape]: is added to them after that
    noise: Array | None = None  # float32 []: standard deviation of the noise on every entry
    # int32 [D]: entry i of the transformed observation is entry permutation[i] of the original; or
    # [g * g], of the blocks of an image; or [T], of the places of object tokens.
    permutation: Array | None = None
    # int32 [A]: action i of the agent is the environment's action_permutation[i]; or entry i of a
    # continuous action.
    action_permutation: Array | None = None
    sticky_prob: Array | None = None  # float32 []: probability of repeating the last action
    reward_scale: Array | None = None  # float32 []: multiplies rewards
    action_gain: Array | None = None  # float32 [A]: multiplies continuous actions
    # float32 [D]: the share of a reward that is paid after 0, 1, ... steps
    reward_kernel: Array | None = None
    # int32 [F]: feature i of a transformed token is feature feature_permutation[i] of the original.
    feature_permutation: Array | None = None

    def transform_obs(self, observation: Array, noise: Array | None = None) -> Array:
        """Returns one observation as the agent sees it, in the same shape.

        Args:
          observation: the environment's observation.
          noise: standard normal draws of the same shape; no noise is added if not given.
        """
        if self.gain is not None:
            observation = observation * self.gain
        if self.bias is not None:
            observation = observation + self.bias
        if self.noise is not None and noise is not None:
            observation = observation + self.noise * noise
        if self.permutation is not None:
            observation = permute_obs(observation, self.permutation)
        if self.feature_permutation is not None:
            observation = permute_features(observation, self.feature_permutation)
        return observation

    def transform_action(self, action: AnyArray, continuous: bool) -> AnyArray:
        """Returns the environment's action for the agent's, in the same shape.

        Args:
          action: int [...], or float [..., A] where actions are continuous.
          continuous: whether they are.
        """
        if self.action_permutation is not None:
            action = (
                action[..., self.action_permutation.argsort()]
                if continuous
                else self.action_permutation[action]
            )
        if self.action_gain is not None:  # of actuators, whose range is [-1, 1]
            action = action.clip(-1, 1) * self.action_gain
        return action

    def repeat_action(self, action: AnyArray, last_action: AnyArray, uniform: AnyArray) -> AnyArray:
        """Returns the last action with probability `sticky_prob`, and the action otherwise.

        Args:
          action: the environment's action, [...], or [..., A] where actions are continuous.
          last_action: that of the step before, in the same shape.
          uniform: draws from [0, 1), [...].
        """
        if self.sticky_prob is None:
            return action
        repeat = uniform < self.sticky_prob
        where = np.where if isinstance(action, np.ndarray) else jnp.where
        return where(expand_dims_like(repeat, action), last_action, action)

    def transform_reward(self, reward: AnyArray) -> AnyArray:
        """Returns the agent's reward for the environment's, in the same shape."""
        return reward if self.reward_scale is None else reward * self.reward_scale

    def delay_reward(
        self, pending: AnyArray, reward: AnyArray, done: AnyArray
    ) -> tuple[AnyArray, AnyArray]:
        """Returns the reward that is paid now [...], and what is paid in the next steps [..., D].

        All that is pending is paid at the end of an episode.

        Args:
          pending: what earlier rewards of the episode pay from now on, [..., D].
          reward: the reward of this step, [...].
          done: whether the episode ends with it, [...].
        """
        xp = np if isinstance(reward, np.ndarray) else jnp
        due = pending + reward[..., None] * self.reward_kernel
        paid = xp.where(done, due.sum(-1), due[..., 0])
        later = xp.concatenate([due[..., 1:], xp.zeros_like(due[..., :1])], -1)
        later = xp.where(done[..., None], 0.0, later)
        return paid.astype(reward.dtype), later.astype(pending.dtype)

    def held_out(self) -> "Task":
        """Returns the same task on equally many levels that training never draws."""
        return self._replace(levels=self.levels._replace(first=self.levels.first + HELD_OUT))


def permute_obs(observation: Array, permutation: Array) -> Array:
    """Permutes the entries of an observation, the blocks of an image, or the places of tokens.

    Args:
      observation: in its shape.
      permutation: the entry that comes to each place, [D]; or the block that comes to each of the
        g * g places of a grid, row by row, [g * g]; or the token that comes to each place, [T].
    """
    if len(permutation) == observation.size:
        return observation.reshape(-1)[permutation].reshape(observation.shape)
    if observation.ndim == 2:
        return permute_positions(observation, permutation)
    grid = math.isqrt(len(permutation))
    height, width, channels = observation.shape
    rows, columns = height // grid, width // grid
    blocks = observation.reshape(grid, rows, grid, columns, channels).swapaxes(1, 2)
    blocks = blocks.reshape(grid * grid, rows, columns, channels)[permutation]
    blocks = blocks.reshape(grid, grid, rows, columns, channels).swapaxes(1, 2)
    return blocks.reshape(observation.shape)


def expand_dims_like(flags: AnyArray, values: AnyArray) -> AnyArray:
    """Appends axes of size 1 to flags [...], to broadcast against values [..., *]."""
    return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))
