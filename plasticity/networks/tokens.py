"""Tokens: how observations become sets or sequences of feature vectors with positions.

An environment of objects observes an array of a `TokenShape`. Other observations become tokens
within the network: a vector one token an entry, an image one token a patch.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.struct import SettingError

__all__ = ["TokenShape", "Tokenizer", "Tokens", "join_tokens", "unpad"]

Array = jax.Array

_VALID, _POSITION, _FEATURES = 0, slice(1, 3), slice(3, None)
_MOST_ENTRIES = 256  # of a vector: attention takes the square of that


class TokenShape(tuple[int, ...]):
    """The shape [capacity, 3 + features] of an observation that is a set of object tokens.

    Its columns are a flag, 1 for a token and 0 for padding; the token's row and column in a grid;
    and its features, which are 0 for padding. To all that handles observations as arrays it is a
    plain tuple, but it is unequal to one.

    Attributes:
      grid: the numbers of rows and columns that positions lie in.
      max_tokens: the largest number of tokens that can be valid at once.
    """

    grid: tuple[int, int]
    max_tokens: int

    def __new__(
        cls, capacity: int, features: int, grid: tuple[int, int], max_tokens: int
    ) -> "TokenShape":
        shape = super().__new__(cls, (capacity, 3 + features))
        shape.grid, shape.max_tokens = grid, min(max_tokens, capacity)
        return shape

    @property
    def features(self) -> int:
        """The number of features of a token."""
        return self[1] - 3

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self[0], self.features, self.grid, self.max_tokens

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenShape):
            return False
        return self.__getnewargs__() == other.__getnewargs__()

    def __ne__(self, other: object) -> bool:  # a tuple has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self.__getnewargs__())


class Tokens(NamedTuple):
    """The tokens of B observations. Features and positions of padding are 0."""

    features: Array  # [B, T, F]
    position: Array  # [B, T, 2]: row and column; (i, 0) in a sequence
    valid: Array  # bool [B, T]
    masked: Array | None = None  # bool [B, T]: which have a mask for features, if any


def join_tokens(valid: Any, position: Any, features: Any) -> Any:
    """Returns tokens as one array of a `TokenShape`, of JAX or of NumPy. float32 [T, 3 + F].

    Args:
      valid: which are no padding, bool [T].
      position: row and column, [T, 2], of padding too.
      features: [T, F].
    """
    xp = valid.__array_namespace__()
    features = xp.where(valid[:, None], features, 0)
    columns = (valid[:, None], xp.asarray(position), features)
    return xp.concatenate([column.astype(xp.float32) for column in columns], axis=1)


def permute_positions(observation: Array, permutation: Array) -> Array:
    """Puts what is at place permutation[i] of a grid at place i. float32 [T, 3 + F].

    For observations in which each place of the grid has a slot, valid or not.
    """
    return observation[permutation].at[:, _POSITION].set(observation[:, _POSITION])


def permute_features(observation: Array, permutation: Array) -> Array:
    """Permutes the features of all tokens of an observation. float32 [T, 3 + F]."""
    return observation.at[:, _FEATURES].set(observation[:, _FEATURES][:, permutation])


@dataclass(frozen=True)  # Flax makes plain tuples of what a tuple holds
class Tokenizer:
    """Makes tokens of observations of one shape.

    Attributes:
      shape: the shape of one observation: a `TokenShape`; [n] or [n, k], a sequence of n tokens; or
        [height, width, channels], an image.
      patch: the height and width of the patches of an image.
    """

    shape: tuple[int, ...]
    patch: int = 1

    def check(self) -> None:
        """Raises `SettingError` if observations of that shape have no tokens."""
        shape = tuple(self.shape)
        if len(shape) == 1 and shape[0] > _MOST_ENTRIES:
            raise SettingError(
                "network._target_",
                "Mosaic",
                f"takes vectors of at most {_MOST_ENTRIES} entries, one token each; an observation "
                f"has {shape[0]}",
            )
        if len(shape) == 3 and (shape[0] % self.patch or shape[1] % self.patch):
            raise SettingError(
                "network.patch",
                self.patch,
                f"must divide the height and width of an image; observations have shape {shape}",
            )
        if len(shape) not in (1, 2, 3):
            raise SettingError(
                "network._target_", "Mosaic", f"has no tokens for observations of shape {shape}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """The numbers of rows and columns that positions lie in."""
        if isinstance(self.shape, TokenShape):
            return self.shape.grid
        if len(self.shape) == 3:
            return self.shape[0] // self.patch, self.shape[1] // self.patch
        return self.shape[0], 1

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens of an observation."""
        return self.shape.max_tokens if isinstance(self.shape, TokenShape) else math.prod(self.grid)

    @property
    def num_features(self) -> int:
        """The number of features of a token (F)."""
        if isinstance(self.shape, TokenShape):
            return self.shape.features
        if len(self.shape) == 3:
            return self.patch * self.patch * self.shape[2]
        return self.shape[1] if len(self.shape) == 2 else 1

    @property
    def capacity(self) -> int:
        """The number of tokens of an observation, padding included."""
        return self.shape[0] if isinstance(self.shape, TokenShape) else math.prod(self.grid)

    def __call__(self, observation: Array) -> Tokens:
        """Returns the tokens of observations, [B, *shape].

        Features are an object's, a row, a vector's entry or the pixels of a patch. They do not say
        where the token is: see `inputs`.
        """
        if isinstance(self.shape, TokenShape):
            return _object_tokens(observation)
        if len(self.shape) == 3:
            return self._sequence(_patches(observation, self.patch))
        return self._sequence(observation if len(self.shape) == 2 else observation[..., None])

    def inputs(self, tokens: Tokens) -> Array:
        """Returns what an encoder embeds of tokens: features, and where each is. [B, T, inputs].

        For objects and patches it is the features and the coordinates, from -1 to 1; for an entry
        of a vector its value times its one-hot index, and the index itself; for a row the row.
        """
        features = tokens.features
        if len(self.shape) == 2 and not isinstance(self.shape, TokenShape):
            return features
        if len(self.shape) == 1:
            place = self._one_hot_index(tokens)
            features = features * place
        else:
            place = self._coordinates(tokens)
        return jnp.concatenate([features, place], axis=-1)

    def _sequence(self, features: Array) -> Tokens:
        """Returns tokens that are all valid, in the order of the grid's cells."""
        rows, columns = np.divmod(np.arange(math.prod(self.grid)), self.grid[1])
        position = jnp.asarray(np.stack([rows, columns], -1), features.dtype)
        shape = features.shape[:2]
        return Tokens(features, jnp.broadcast_to(position, (*shape, 2)), jnp.ones(shape, bool))

    def _one_hot_index(self, tokens: Tokens) -> Array:
        """Returns the one-hot indices of a vector's entries; 0 for padding. [B, T, n]."""
        is_entry = tokens.position[..., :1] == jnp.arange(self.shape[0])
        return (is_entry & tokens.valid[..., None]).astype(tokens.features.dtype)

    def _coordinates(self, tokens: Tokens) -> Array:
        """Returns positions scaled to [-1, 1]; 0 for padding. [B, T, 2]."""
        last = jnp.asarray([max(size - 1, 1) for size in self.grid], tokens.position.dtype)
        return jnp.where(tokens.valid[..., None], 2 * tokens.position / last - 1, 0)


def unpad(tokens: Tokens, size: int) -> Tokens:
    """Moves the valid tokens of each observation to the front, in order, and cuts to `size`.

    With a size that valid tokens never exceed, nothing is lost.

    Args:
      tokens: the tokens of B observations, [B, T, ...].
      size: the number of tokens to keep.

    Returns:
      Tokens [B, size, ...].
    """
    index, valid = valid_indices(tokens.valid, size)
    features, position = (
        jnp.where(valid[..., None], take_tokens(x, index), 0)
        for x in (tokens.features, tokens.position)
    )
    return Tokens(features, position, valid)


def valid_indices(valid: Array, size: int) -> tuple[Array, Array]:
    """Returns the index of the first, second, ... valid token of each observation.

    Args:
      valid: bool [B, T].
      size: how many indices.

    Returns:
      Indices, int32 [B, size], 0 where there are no more; and where there are, bool [B, size].
    """
    # The k-th valid token comes after all places up to which fewer are valid: cheaper than a sort.
    num_valid = jnp.cumsum(valid, axis=1)
    index = jnp.sum(num_valid[:, None, :] <= jnp.arange(size)[:, None], axis=-1, dtype=jnp.int32)
    found = index < valid.shape[1]
    return jnp.where(found, index, 0), found


def take_tokens(x: Array, index: Array) -> Array:
    """Returns the tokens of some indices. [B, n, ...] for x [B, T, ...] and index [B, n]."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


def repeat_valid(x: Array, valid: Array) -> Array:
    """Returns x [B, T, ...] with the valid tokens in front, and repeated in turn behind them.

    So statistics over all rows are those of valid tokens, each counted about equally often.
    """
    length = x.shape[1]
    index, _ = valid_indices(valid, length)
    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    turn = jnp.arange(length) % count
    return take_tokens(x, jnp.take_along_axis(index, turn, axis=1))


def _object_tokens(observation: Array) -> Tokens:
    valid = observation[..., _VALID] > 0.5
    features, position = (
        jnp.where(valid[..., None], observation[..., columns], 0)
        for columns in (_FEATURES, _POSITION)
    )
    return Tokens(features, position, valid)


def _patches(image: Array, size: int) -> Array:
    """Cuts images [B, H, W, C] into patches, row by row. [B, H * W / size^2, size * size * C]."""
    batch, height, width, channels = image.shape
    cut = image.reshape(batch, height // size, size, width // size, size, channels)
    return cut.swapaxes(2, 3).reshape(batch, -1, size * size * channels)
