"""A fast initializer, for methods that draw weights at every gradient step."""

import jax
import jax.numpy as jnp

__all__ = ["uniform"]

Array = jax.Array


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
