"""Quantization, requantization by dyadic numbers, and the integer square root.

Quantization is symmetric: a real number x is held as q = round(x / scale), and there is no zero
point. With `bits` bits, |q| <= 2^(bits - 1) - 1. Up to 8 bits q is int8, otherwise int32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "MAX_BITS",
    "Dyadic",
    "compute_scale",
    "dequantize",
    "dyadic",
    "integer_sqrt",
    "quantize",
    "quantized_max",
    "relative_error",
    "requantize",
    "rounding_shift",
]

Array = jax.Array
AnyArray = Any  # jax.Array, or np.ndarray on the host

MAX_BITS = 15  # of what `requantize` returns
_MAX_SHIFT = 46
_MULTIPLIER_BITS = 15


class Dyadic(NamedTuple):
    """A real number as multiplier * 2^-shift.

    Attributes:
      multiplier: int32, with |multiplier| < 2^15.
      shift: int32 in [1, 46].
    """

    multiplier: AnyArray
    shift: AnyArray


def quantized_max(bits: int) -> int:
    """Returns the largest quantized number of some bits: 127 of 8, 1 of 2."""
    return 2 ** (bits - 1) - 1


def compute_scale(x: Array, bits: int, axis: int | tuple[int, ...] | None = None) -> Array:
    """Computes the scale max|x| / (2^(bits - 1) - 1) over some axes, which are kept with size 1.

    It is 0 where all of x is.
    """
    return jnp.max(jnp.abs(x), axis=axis, keepdims=True) / quantized_max(bits)


def quantize(x: Array, scale: Array | float, bits: int) -> Array:
    """Quantizes real numbers: round(x / scale), half to even, clipped. 0 where the scale is 0."""
    bound = quantized_max(bits)
    safe_scale = jnp.where(scale == 0, jnp.inf, scale)
    rounded = jnp.clip(jnp.round(x / safe_scale), -bound, bound)
    return rounded.astype(_dtype(bits))


def dequantize(q: Array, scale: Array | float) -> Array:
    """Returns the real numbers that quantized ones stand for, q * scale. float32."""
    return q.astype(jnp.float32) * scale


def relative_error(x: Array, reference: Array) -> Array:
    """Computes ||x - reference|| / ||reference||, and ||x|| where the reference is 0. []."""
    norm = jnp.linalg.norm(reference.ravel())
    return jnp.linalg.norm((x - reference).ravel()) / jnp.where(norm == 0, 1.0, norm)


def dyadic(value: np.ndarray | float) -> Dyadic:
    """Returns the dyadic numbers nearest to real ones, on the host.

    The relative error is at most 2^-15 for magnitudes from 2^-32 to 2^14. A smaller number has an
    error of at most 2^-47, and a larger one becomes 2^14: `requantize` then gives the same as with
    the number itself.

    Args:
      value: finite numbers of any shape and sign.
    """
    fraction, exponent = np.frexp(np.asarray(value, np.float64))
    multiplier = np.round(np.ldexp(fraction, _MULTIPLIER_BITS))
    carry = np.abs(multiplier) == 2**_MULTIPLIER_BITS
    multiplier = np.where(carry, multiplier / 2, multiplier)
    shift = _MULTIPLIER_BITS - exponent - carry
    small, large = shift > _MAX_SHIFT, shift < 1
    multiplier = np.where(small, np.round(np.ldexp(value, _MAX_SHIFT)), multiplier)
    multiplier = np.where(large, np.sign(value) * (2**_MULTIPLIER_BITS - 1), multiplier)
    return Dyadic(multiplier.astype(np.int32), np.clip(shift, 1, _MAX_SHIFT).astype(np.int32))


def requantize(x: Array, scale: Dyadic, bits: int) -> Array:
    """Computes floor(x * multiplier / 2^shift + 1/2), clipped to `bits` bits.

    `scale` stands for the scale of x over that of the result. In real numbers the error is at most
    1/2 + 2^-15 |result|, and what lies beyond the largest quantized number is clipped.

    The product has up to 46 bits, and is computed in two limbs. With x = 2^16 h + l, where
    |h| <= 2^15 and 0 <= l < 2^16, the magnitudes of h * multiplier and l * multiplier are below
    2^30 and 2^31. Where shift > 16, the low 16 bits of the product do not change the result:
    floor((2^16 H + L) / 2^(16 + t)) = floor(H / 2^t), and |H| + 2^(t - 1) <= 2^30 + 2^15 + 2^29.
    Where shift <= 16, the multiplier is at least 2^14 (or 0), so that |x| >= 2^16 gives at least
    2^14, which is clipped anyway: x is clipped to 2^16 - 1 first, and the product plus 2^15 is
    below 2^31.

    Args:
      x: int32, of any value.
      scale: as `dyadic` returns it, broadcast against x.
      bits: from 2 to 15.

    Returns:
      int8 up to 8 bits, otherwise int32.
    """
    multiplier, shift = (jnp.asarray(part, jnp.int32) for part in scale)
    x = x.astype(jnp.int32)
    low = (x & 0xFFFF) * multiplier
    high = (x >> 16) * multiplier + (low >> 16)
    large_shift = rounding_shift(high, jnp.maximum(shift - 16, 1))
    clipped = jnp.clip(x, -0xFFFF, 0xFFFF)
    small_shift = rounding_shift(clipped * multiplier, jnp.minimum(shift, 16))
    result = jnp.where(shift > 16, large_shift, small_shift)
    bound = quantized_max(bits)
    return jnp.clip(result, -bound, bound).astype(_dtype(bits))


def rounding_shift(x: Array, shift: Array | int) -> Array:
    """Computes floor(x / 2^shift + 1/2) of int32 for shifts from 0 to 30.

    |x| + 2^(shift - 1) must be below 2^31.
    """
    shift = jnp.asarray(shift, jnp.int32)
    return (x + ((1 << shift) >> 1)) >> shift


def integer_sqrt(n: Array) -> Array:
    """Computes floor(sqrt(n)) exactly, for all int32 from 0 to 2^31 - 1.

    Newton's iteration x <- (x + n // x) // 2 from x = 2^ceil(b / 2), where n has b bits. At first
    sqrt(n) < x <= 2 sqrt(n). A relative error e becomes at most e^2 / (2 (1 + e)): 1, then 1/4,
    1/40, 3.1e-4, 4.7e-8, which is 0.003 of the largest root. No iterate is below floor(sqrt(n)),
    so the fourth is that or one more; the fifth, if it is smaller, is the root. No intermediate
    exceeds 2^17.
    """
    n = n.astype(jnp.int32)
    bits = 32 - jax.lax.clz(n)
    x = jnp.left_shift(1, (bits + 1) // 2)
    for _ in range(5):
        x = jnp.minimum(x, (x + jax.lax.div(n, x)) // 2)
    return jnp.where(n == 0, 0, x)


def _dtype(bits: int) -> Any:
    return jnp.int8 if bits <= 8 else jnp.int32
