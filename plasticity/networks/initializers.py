"""Initializers: a fast one, for methods that draw at every gradient step, and published ones."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from plasticity.networks.base import Params
from plasticity.networks.linalg import sequence_after
from plasticity.networks.param_tree import MEMORIES, value_heads

__all__ = ["draw_orthogonal", "he_normal", "orthogonal", "redraw_kernels", "uniform"]

Array = jax.Array
# From the path of the layer, a key, the old kernel and the kernel drawn before.
DrawKernel = Callable[[tuple[str, ...], Array, Array, Array], Array]


# Flax traces an initializer at every use of its parameter: so it is traced once for each shape.
@partial(jax.jit, static_argnames=("shape", "bound"), inline=True)
def uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    """Draws independent numbers from U(-bound, bound), in steps of 2**-23 * bound. [*shape].

    Interventions such as soft shrink and perturb draw a whole network at every gradient step,
    where JAX's own generator costs as much as the step itself. Here JAX's generator only expands
    the key to 64 bits. A counter then goes through two rounds of a multiply and xor-shift hash;
    one half of the 64 bits is added before the first round, the other is mixed in before the
    second.
    """
    offset, salt = jax.random.bits(key, (2,), jnp.uint32)
    size = 1
    for length in shape:
        size *= length
    h = jax.lax.iota(jnp.uint32, size) * jnp.uint32(0x9E3779B9) + offset
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15) ^ salt) * jnp.uint32(0x846CA68B)
    h = h ^ (h >> 16)
    # The 24 highest bits, each value the middle of its cell, so that the mean is exactly 0.
    centered = (h >> 8).astype(jnp.int32) - (1 << 23)
    return ((centered.astype(float) + 0.5) * (bound * 2.0**-23)).reshape(shape)


def draw_orthogonal(params: Params, key: Array) -> Params:
    """Redraws all kernels as orthogonal matrices and sets their biases to 0, as CleanRL's PPO does.

    The gain is 0.01 for the policy's head, 1 for the value heads and recurrent layers, and sqrt(2)
    for all other layers. A kernel is a matrix [inputs of a unit, units], that of a convolution too:
    the columns are orthogonal, or the rows if there are fewer of them. Parameters of other names
    are kept.

    Args:
      params: newly drawn parameters.
      key: randomness.
    """
    gains = {"policy": 0.01} | dict.fromkeys((*value_heads(params), *MEMORIES), 1.0)

    def draw(path: tuple[str, ...], key: Array, kernel: Array, after: Array) -> Array:
        return gains.get(path[0], math.sqrt(2)) * orthogonal(key, kernel, after)

    return redraw_kernels(params, key, draw)


def redraw_kernels(params: Params, key: Array, draw: DrawKernel) -> Params:
    """Redraws all kernels and sets their biases to 0. Parameters of other names are kept.

    Args:
      params: newly drawn parameters.
      key: randomness.
      draw: draws a kernel, given the path of its layer, a key, the old kernel, and the kernel drawn
        before it, after which it is to be computed: see `sequence_after`.
    """
    last = jnp.zeros(())  # decompositions run one after the other

    def redraw(entry: Params, path: tuple[str, ...], key: Array) -> Params:
        nonlocal last
        redrawn = {}
        for i, (name, leaf) in enumerate(sorted(entry.items())):
            leaf_key = jax.random.fold_in(key, i)
            if isinstance(leaf, dict):
                redrawn[name] = redraw(leaf, (*path, name), leaf_key)
            elif name == "kernel":
                redrawn[name] = last = draw(path, leaf_key, leaf, last)
            elif name == "bias" and "kernel" in entry:
                redrawn[name] = jnp.zeros_like(leaf)
            else:
                redrawn[name] = leaf
        return redrawn

    return {
        name: redraw(entry, (name,), jax.random.fold_in(key, i))
        for i, (name, entry) in enumerate(sorted(params.items()))
    }


def orthogonal(key: Array, kernel: Array, after: Array) -> Array:
    """Draws a matrix [prod(shape[:-1]), shape[-1]] with orthonormal columns, or rows. [*shape].

    Args:
      key: randomness.
      kernel: for the shape and the dtype.
      after: what is computed before: see `sequence_after`.
    """
    rows, columns = math.prod(kernel.shape[:-1]), kernel.shape[-1]
    normal = jax.random.normal(key, (max(rows, columns), min(rows, columns)), kernel.dtype)
    q, r = jnp.linalg.qr(sequence_after(normal, after))
    q *= jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(kernel.dtype)  # so that it is uniform
    return (q if rows >= columns else q.T).reshape(kernel.shape)


def he_normal(key: Array, kernel: Array, after: Array) -> Array:
    """Draws a kernel from He's truncated normal distribution, as Flax does: see `orthogonal`."""
    draw = jax.nn.initializers.he_normal()
    return sequence_after(draw(key, kernel.shape, kernel.dtype), after)
