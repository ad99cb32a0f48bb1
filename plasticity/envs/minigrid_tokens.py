"""Object tokens of MiniGrid's tasks, for JAX and for host environments."""

from typing import Any

import numpy as np

from plasticity.networks.tokens import TokenShape, join_tokens

_SIZES = (11, 6, 4)  # kinds of objects, colors and states; a state is a door's, or a direction
_FIRST_THING = 2  # MiniGrid's index 0 is an unseen cell, 1 an empty one


def token_shape(height: int, width: int) -> TokenShape:
    """Returns the shape of the object tokens of a grid, with a slot for each cell."""
    cells = height * width
    return TokenShape(cells, sum(_SIZES), (height, width), max_tokens=cells)


def symbolic_tokens(symbolic: Any) -> Any:
    """Returns a token for each cell that is not empty, with object, color and state, one-hot.

    Args:
      symbolic: MiniGrid's indices of objects, colors and states, [H, W, 3], of NumPy or JAX.

    Returns:
      float32 [H * W, 24], in the same kind of array.
    """
    xp, (height, width, _) = symbolic.__array_namespace__(), symbolic.shape
    position = np.stack(np.divmod(np.arange(height * width), width), axis=-1)
    columns = zip(symbolic.reshape(-1, 3).T, _SIZES, strict=True)
    one_hot = [column[:, None] == np.arange(size) for column, size in columns]
    valid = symbolic[..., 0].reshape(-1) >= _FIRST_THING
    return join_tokens(valid, position, xp.concatenate(one_hot, axis=-1))
