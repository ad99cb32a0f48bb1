"""Operators of neural networks on int8 and int32 arrays, without floating-point arithmetic.

An operator takes quantized numbers, and says by which real number its result is to be multiplied.
Linear operators take int8 and return int32 accumulators. All others take int32 of at most 15 bits
(|q| <= 16383), as `requantize` returns them: the accumulators, not their 8-bit roundings, from
which neither GELU nor LayerNorm can be computed well. No intermediate result exceeds int32. Real
parameters, such as a scale, enter as dyadic numbers that were computed beforehand.

GELU and the exponential are the polynomials of Kim et al. (2021, "I-BERT"); the fixed-point
arithmetic around them is another: it does not depend on the scale.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.integer.arithmetic import (
    MAX_BITS,
    Dyadic,
    dyadic,
    integer_sqrt,
    quantized_max,
    requantize,
    rounding_shift,
)

__all__ = [
    "GELU_FRACTION_BITS",
    "MAX_INPUTS",
    "MAX_NORM_SIZE",
    "NORM_FRACTION_BITS",
    "SOFTMAX_FRACTION_BITS",
    "TANH_FRACTION_BITS",
    "attention_scores",
    "attention_sum",
    "convolution",
    "exp_negative",
    "gelu",
    "gelu_argument",
    "layer_norm",
    "linear",
    "masked_mean",
    "max_pool",
    "min_norm_scale",
    "norm_epsilon",
    "norm_fraction_bits",
    "relu",
    "residual_argument",
    "residual_sum",
    "rms_norm",
    "softmax",
    "softmax_argument",
    "tanh",
    "tanh_argument",
]

Array = jax.Array

MAX_INPUTS = 2**16  # of a linear layer or convolution
MAX_NORM_SIZE = 2**16 - 1  # numbers that are normalized together
MAX_BIAS = 2**30

GELU_FRACTION_BITS = 14
TANH_FRACTION_BITS = 14
NORM_FRACTION_BITS = 15
SOFTMAX_FRACTION_BITS = 15

# erf(u) ~ sign(u) (1 + _ERF_A (min(|u|, -_ERF_B) + _ERF_B)^2), in units of 2^-13.
_ERF_A, _ERF_B = -0.2888, -1.769
_ERF_BITS = 13
# exp(-r) ~ _EXP_A (_EXP_B - r)^2 + _EXP_C on [0, ln 2), with r in units of 2^-10.
_EXP_A, _EXP_B, _EXP_C = 0.3585, 1.353, 0.344
_EXP_ARGUMENT_BITS, _EXP_BITS = 10, 14
_RESIDUAL_BITS = 6


def linear(x: Array, kernel: Array, bias: Array) -> Array:
    """Computes x @ kernel + bias with int32 accumulators.

    Exact. The result is to be multiplied by the scale of x times that of the kernel, which may have
    one scale for each output. With |x|, |kernel| <= 127, at most 2^16 inputs and |bias| <= 2^30,
    its magnitude is at most 127^2 2^16 + 2^30 < 2^31.

    Args:
      x: int8 [..., inputs], without -128.
      kernel: int8 [inputs, outputs], without -128.
      bias: int32 [outputs], in units of the result.
    """
    product = jax.lax.dot_general(
        x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32
    )
    return product + bias


def convolution(x: Array, kernel: Array, bias: Array, stride: int, padding: int) -> Array:
    """Computes a 2-D convolution, channels last, with int32 accumulators.

    Exact, with the bounds of `linear`, where k * k * C is the number of inputs.

    Args:
      x: int8 [B, H, W, C], without -128.
      kernel: int8 [k, k, C, D], without -128.
      bias: int32 [D], in units of the result.
      stride: stride along both axes.
      padding: zeros on each side.
    """
    product = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.int32,
    )
    return product + bias


def relu(x: Array) -> Array:
    """Computes max(x, 0). Exact; the scale is that of x."""
    return jnp.maximum(x, 0)


def gelu_argument(scale: np.ndarray | float) -> Dyadic:
    """Returns the dyadic number with which `gelu` computes erf's argument, from the scale of x."""
    return dyadic(np.asarray(scale, np.float64) / math.sqrt(2) * 2**_ERF_BITS)


def gelu(x: Array, argument: Dyadic) -> Array:
    """Computes GELU, x (1 + erf(x / sqrt(2))) / 2, with a polynomial for erf (Kim et al. 2021).

    erf(u) ~ sign(u) (1 - 0.2888 (min(|u|, 1.769) - 1.769)^2), where u = x / sqrt(2) is computed in
    units of 2^-13 at every scale of x. It is 1 for all |u| >= 1.769, so that clipping u to 15 bits
    changes nothing. The error is at most 0.0185 at every scale. Magnitudes: the square is below
    2^28, the products below 2^29 and 2^28.

    Args:
      x: int32, |x| <= 16383.
      argument: `gelu_argument` of the scale of x.

    Returns:
      int32, |result| <= 2^28, to be multiplied by the scale of x and by 2^-GELU_FRACTION_BITS.
    """
    one, limit = 1 << _ERF_BITS, round(-_ERF_B * 2**_ERF_BITS)
    u = requantize(jnp.abs(x), argument, MAX_BITS)
    square = rounding_shift(jnp.square(jnp.minimum(u, limit) - limit), _ERF_BITS)
    erf = one - rounding_shift(square * round(-_ERF_A * 2**14), 14)
    return x * (one + jnp.sign(x) * erf)


def tanh_argument(scale: np.ndarray | float) -> Dyadic:
    """Returns the dyadic number with which `tanh` computes 2 |x|, from the scale of x."""
    return dyadic(2 * np.asarray(scale, np.float64) * 2**_EXP_ARGUMENT_BITS)


def tanh(x: Array, argument: Dyadic) -> Array:
    """Computes the hyperbolic tangent, sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|).

    The error is at most 0.003 at every scale. Magnitudes: (1 - e) 2^14 in units of 2^-14 is at most
    2^28.

    Args:
      x: int32, |x| <= 16383.
      argument: `tanh_argument` of the scale of x.

    Returns:
      int32, to be multiplied by 2^-TANH_FRACTION_BITS.
    """
    one = 1 << _EXP_BITS
    e = jnp.minimum(exp_negative(requantize(jnp.abs(x), argument, MAX_BITS)), one)
    magnitude = jax.lax.div((one - e) << TANH_FRACTION_BITS, one + e)
    return jnp.sign(x) * magnitude


def exp_negative(x: Array) -> Array:
    """Computes exp(-x) for x >= 0, by a polynomial between 0 and ln 2 (Kim et al. 2021).

    With x = z ln 2 + r and 0 <= r < ln 2 it is (0.3585 (1.353 - r)^2 + 0.344) 2^-z. The error is at
    most 0.003; 2^-z is a shift, by 23 at most. Magnitudes: the square is below 2^21, the product
    below 2^29.

    Args:
      x: int32 from 0 to 16383, in units of 2^-10: up to 16.

    Returns:
      int32 in units of 2^-14, at most 16390.
    """
    ln2 = round(math.log(2) * 2**_EXP_ARGUMENT_BITS)
    halvings = jax.lax.div(x, jnp.int32(ln2))
    base = round(_EXP_B * 2**_EXP_ARGUMENT_BITS) - (x - halvings * ln2)
    square = rounding_shift(jnp.square(base), 2 * _EXP_ARGUMENT_BITS - _EXP_BITS)
    polynomial = rounding_shift(square * round(_EXP_A * 2**14), 14) + round(_EXP_C * 2**_EXP_BITS)
    return polynomial >> halvings


def softmax_argument(scale: np.ndarray | float) -> Dyadic:
    """Returns the dyadic number with which `softmax` scales differences, from the scale of x."""
    return dyadic(np.asarray(scale, np.float64) * 2**_EXP_ARGUMENT_BITS)


def softmax(x: Array, argument: Dyadic, valid: Array | None = None) -> Array:
    """Computes softmax along the last axis, exp(x - max) / sum(exp(x - max)), of valid entries.

    The error of a probability is at most 0.005. exp(-16) and less is exp(-16). Magnitudes: with at
    most 2^16 entries the sum is below 2^31, a numerator is below 2^30.

    Args:
      x: int32 [..., n], |x| <= 16383, n <= 2^16.
      argument: `softmax_argument` of the scale of x.
      valid: which entries count, bool, broadcast against x; all if not given. The others' result is
        0, and so is that of all where none is valid.

    Returns:
      int32 from 0 to 2^15, to be multiplied by 2^-SOFTMAX_FRACTION_BITS.
    """
    counted = x if valid is None else jnp.where(valid, x, -quantized_max(MAX_BITS))
    difference = jnp.max(counted, axis=-1, keepdims=True) - counted
    e = exp_negative(requantize(difference, argument, MAX_BITS))
    e = e if valid is None else jnp.where(valid, e, 0)
    total = jnp.maximum(jnp.sum(e, axis=-1, keepdims=True, dtype=jnp.int32), 1)
    return jax.lax.div((e << SOFTMAX_FRACTION_BITS) + total // 2, jnp.broadcast_to(total, e.shape))


def norm_fraction_bits(size: int, center: bool) -> int:
    """Returns the bits that a norm appends to numbers before it divides them by their norm.

    With them they have at most 30 bits, or 31 where the mean of 2^15 numbers or more is subtracted.

    Args:
      size: how many numbers are normalized together.
      center: whether the mean is subtracted, as in `layer_norm`.
    """
    return max(15 - (size - 1).bit_length(), 0) if center else 15


def norm_epsilon(scale: float, size: int, epsilon: float, center: bool) -> int:
    """Returns epsilon as the norms take it: a number whose square is added to a sum of squares.

    It is sqrt(size * epsilon) in units of the numbers whose squares are added, at most 2^30: the
    scale of x must be at least `min_norm_scale`.

    Args:
      scale: the scale of x.
      size: how many numbers are normalized together.
      epsilon: what is added to the variance, or to the mean square.
      center: whether the mean is subtracted, as in `layer_norm`.
    """
    unit = (scale / size if center else scale) * 2.0 ** -norm_fraction_bits(size, center)
    return min(round(math.sqrt(size * epsilon) / unit), 2**30) if unit else 0


def min_norm_scale(size: int, epsilon: float) -> float:
    """Returns the smallest scale of x for which a norm has its epsilon exactly.

    With it, 15 bits reach to half the square root of size * epsilon.
    """
    return math.sqrt(size * epsilon) * 2.0**-14


def layer_norm(x: Array, epsilon: Array, axis: tuple[int, ...] = (-1,)) -> Array:
    """Computes (x - mean) / sqrt(variance + epsilon), divided by the square root of the size.

    With n numbers in `axis`, d = n x - sum(x) is exact; |d| <= 2 (2^16 - 1) 16383 < 2^31 - 2^15. It
    is shifted so that the largest has 15 bits; the sum of squares is exact from there, and its
    root has 15 bits. So the error does not depend on the scale of x. Of the normalized numbers
    y = sqrt(n) result it is at most 2^-13 max|y| + sqrt(n) 2^-15, which is less than 0.5 % of their
    range unless epsilon exceeds the variance. Where all x are equal, the result is 0.

    Args:
      x: int32, |x| <= 16383.
      epsilon: int32 [], see `norm_epsilon`.
      axis: the axes to normalize over, at most 2^16 - 1 numbers.

    Returns:
      int32, |result| <= 2^15, to be multiplied by sqrt(n) 2^-NORM_FRACTION_BITS.
    """
    size = math.prod(x.shape[i] for i in axis)
    total = jnp.sum(x, axis=axis, keepdims=True, dtype=jnp.int32)
    deviation = size * x - total
    return _divide_by_norm(deviation << norm_fraction_bits(size, True), epsilon, axis)


def rms_norm(x: Array, epsilon: Array, axis: tuple[int, ...] = (-1,)) -> Array:
    """Computes x / sqrt(mean(x^2) + epsilon), divided by the square root of the size.

    As `layer_norm`, without subtracting the mean. Where all x are 0, the result is 0.
    """
    size = math.prod(x.shape[i] for i in axis)
    return _divide_by_norm(x << norm_fraction_bits(size, False), epsilon, axis)


def _divide_by_norm(x: Array, epsilon: Array, axis: tuple[int, ...]) -> Array:
    """Computes x / sqrt(sum(x^2) + epsilon^2) in units of 2^-15.

    x and epsilon are shifted so that the larger has 15 bits, for the sum; x alone is, for the
    product. Magnitudes: |y| < 2^15 and y^2 <= 2^30 - 2^16 + 1. The upper 15 bits of up to 2^16
    squares add up to less than 2^31, and so do the lower ones. sum = 4^e m, where
    2^29 <= m < 2^31 and -15 <= e <= 8, so that 23170 <= sqrt(m) < 46341, and y * (2^30 / sqrt(m))
    is below 2^15 * 46342 < 1.52e9, which leaves 2^29 for rounding.
    """
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    own_shift = jnp.maximum(_bit_length(largest) - 15, 0)
    shift = jnp.maximum(_bit_length(jnp.maximum(largest, epsilon)) - 15, 0)
    squares = jnp.square(_shift_to_16_bits(x, shift))
    extra_square = jnp.square(epsilon >> shift)

    def total(part: Array, extra_part: Array) -> Array:
        return jnp.sum(part, axis=axis, keepdims=True, dtype=jnp.int32) + extra_part

    low = total(squares & 0x7FFF, extra_square & 0x7FFF)
    high = total(squares >> 15, extra_square >> 15) + (low >> 15)
    mantissa, exponent = _normalize(high, low & 0x7FFF)
    reciprocal = jax.lax.div(jnp.int32(1 << 30), jnp.maximum(integer_sqrt(mantissa), 1))
    down = jnp.minimum(exponent + 15 + shift - own_shift, 30)
    return rounding_shift(_shift_to_16_bits(x, own_shift) * reciprocal, down)


def _shift_to_16_bits(x: Array, shift: Array) -> Array:
    bound = quantized_max(16)
    return jnp.clip(rounding_shift(x, shift), -bound, bound)


def _normalize(high: Array, low: Array) -> tuple[Array, Array]:
    """Returns (m, e) with high 2^15 + low ~ 4^e m and 2^29 <= m < 2^31; (0, -15) for 0."""
    bits = jnp.where(high > 0, 15 + _bit_length(high), _bit_length(low))
    exponent = (bits - 30) >> 1  # the ceiling of (bits - 31) / 2
    shift = 2 * exponent
    left = ((high << 15) | low) << jnp.maximum(-shift, 0)
    middle = (high << jnp.clip(15 - shift, 0, 15)) | (low >> jnp.clip(shift, 0, 15))
    right = high >> jnp.maximum(shift - 15, 0)
    mantissa = jnp.where(shift <= 0, left, jnp.where(shift <= 15, middle, right))
    return mantissa, exponent


def _bit_length(x: Array) -> Array:
    return 32 - jax.lax.clz(x)


def attention_scores(query: Array, key: Array) -> Array:
    """Computes the products of queries and keys, Q K^T, with int32 accumulators.

    Exact. The result is to be multiplied by the scales of both. With at most 2^16 entries a head,
    its magnitude is at most 127^2 2^16 < 2^30.

    Args:
      query: int8 [B, S, heads, d], without -128.
      key: int8 [B, T, heads, d], without -128.

    Returns:
      int32 [B, heads, S, T].
    """
    return jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.int32)


def attention_sum(weights: Array, value: Array) -> Array:
    """Computes the sum of values by the weights of `softmax`, with int32 accumulators.

    Exact. The result is to be multiplied by the scale of the values and by
    2^-SOFTMAX_FRACTION_BITS. The weights of a query add up to at most 2^15 + T / 2, each being
    rounded: the magnitude is at most 127 (2^15 + 2^15) < 2^23 for T <= 2^16.

    Args:
      weights: int32 [B, heads, S, T], as `softmax` returns them.
      value: int8 [B, T, heads, d], without -128.

    Returns:
      int32 [B, S, heads, d].
    """
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value.astype(jnp.int32))


def masked_mean(x: Array, valid: Array) -> Array:
    """Computes the mean of valid tokens, floor(sum / count + 1/2); 0 where none is valid.

    The scale is that of x. Magnitudes: twice the sum of 2^16 tokens is at most 2^17 16383, and with
    their number below 2^31.

    Args:
      x: int32 [B, T, units], |x| <= 16383, T <= 2^16.
      valid: bool [B, T].

    Returns:
      int32 [B, units].
    """
    total = jnp.sum(jnp.where(valid[..., None], x, 0), axis=1, dtype=jnp.int32)
    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True, dtype=jnp.int32), 1)
    return jnp.floor_divide(2 * total + count, 2 * count)


def max_pool(x: Array) -> Array:
    """Computes the largest of 3 x 3 numbers at every second place, padded as by "SAME". Exact.

    Args:
      x: int32 [B, H, W, C].

    Returns:
      int32 [B, ceil(H / 2), ceil(W / 2), C].
    """
    smallest = jnp.int32(jnp.iinfo(jnp.int32).min)
    return jax.lax.reduce_window(x, smallest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def residual_argument(scale: float, output_scale: float, bits: int = 8) -> Dyadic:
    """Returns the dyadic number with which `residual_sum` scales an input."""
    return dyadic(scale / output_scale * 2 ** _residual_bits(bits) if output_scale else 0.0)


def residual_sum(x: Array, y: Array, x_scale: Dyadic, y_scale: Dyadic, bits: int) -> Array:
    """Computes x + y, at scales of their own, and requantizes the sum to `bits` bits.

    Up to 8 bits both are brought to 1/64 of the scale of the result, added, and rounded: the error
    is at most 1/2 + 1/64 + 2^-15 (|x| + |y|) of a unit, where |x| and |y| are below 255 of them.
    With 15 bits they are brought to the scale of the result: the error is at most
    1 + 2^-15 (|x| + |y|) of a unit, where |x| and |y| have 15 bits in it.

    Args:
      x: int8 or int32.
      y: likewise, of a shape that broadcasts.
      x_scale: `residual_argument` of the scale of x and that of the result.
      y_scale: likewise of y.
      bits: of the result, at most 8, or 15.
    """
    total = requantize(x, x_scale, MAX_BITS) + requantize(y, y_scale, MAX_BITS)
    bound = quantized_max(bits)
    total = jnp.clip(rounding_shift(total, _residual_bits(bits)), -bound, bound)
    return total.astype(jnp.int8 if bits <= 8 else jnp.int32)


def _residual_bits(bits: int) -> int:
    """Returns the bits by which the terms of a residual sum are finer than its result."""
    return _RESIDUAL_BITS if bits <= 8 else 0
