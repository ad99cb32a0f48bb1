"""Integer operators against int64 arithmetic in NumPy, and against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from plasticity.integer import numpy_reader, operators
from plasticity.integer.arithmetic import (
    dyadic,
    integer_sqrt,
    quantize,
    quantized_max,
    requantize,
)

RNG = np.random.default_rng(0)
WIDE = np.arange(-16383, 16384)
SCALES = 10.0 ** np.arange(-7, 4)


def int32(x):
    return jnp.asarray(x, jnp.int32)


def int64(pair):
    return tuple(np.asarray(part, np.int64) for part in pair)


def test_integer_sqrt_is_exact():
    """Would catch a start below the root, too few iterations, or the last step upwards.

    Between two squares the floor is constant, and Newton's iterates grow with n: next to every
    square is where it would go wrong first.
    """
    roots = np.arange(1, 46341)
    n = np.concatenate([roots**2 - 1, roots**2, roots**2 + 2 * roots, [0, 2**31 - 1]])
    n = np.unique(np.concatenate([n, RNG.integers(0, 2**31, 10**5)]))
    n = n[n < 2**31]
    assert [math.isqrt(x) for x in n.tolist()] == jax.jit(integer_sqrt)(int32(n)).tolist()


@pytest.mark.parametrize("bits", [2, 8, 15])
def test_requantize_equals_int64(bits):
    """Would catch an overflow of the limbs, truncation for floor, or a product clipped too soon."""
    x = RNG.integers(-(2**31), 2**31, 40_000)
    x[::2] >>= RNG.integers(0, 31, x[::2].size)
    x[:4] = -(2**31), 2**31 - 1, 0, -1
    values = np.exp2(RNG.uniform(-48, 20, x.size)) * RNG.choice([-1, 1], x.size)
    values[4] = 0.0
    scale = dyadic(values)
    assert scale.shift.min() == 1
    assert scale.shift.max() == 46
    result = np.asarray(jax.jit(requantize, static_argnums=2)(int32(x), scale, bits))
    assert result.dtype == (np.int8 if bits <= 8 else np.int32)
    np.testing.assert_array_equal(result, numpy_reader.requantize(x, int64(scale), bits))
    bound = quantized_max(bits)
    np.testing.assert_allclose(result, np.clip(x * values, -bound, bound), atol=0.5 + bound / 2**15)


def test_quantize_defines_a_scale_of_zero():
    """Would catch 0 / 0 in a layer that has died, and -128, which has no negative."""
    zero = quantize(jnp.array([0.0, 3.0, -jnp.inf]), 0.0, 8)
    np.testing.assert_array_equal(zero, [0, 0, 0])
    assert quantize(jnp.array([-9.0, 9.0, 0.26]), 0.01, 8).tolist() == [-127, 127, 26]


def test_accumulators_do_not_overflow_at_their_bounds():
    """Would catch a sum in int8, or a bound on inputs that int32 does not hold."""
    x = np.full((1, operators.MAX_INPUTS), 127, np.int8)
    bias = np.array([2**30, -(2**30)], np.int32)
    kernel = np.stack([x[0], -x[0]], 1)
    expected = x.astype(np.int64) @ kernel.astype(np.int64) + bias
    assert abs(expected).max() < 2**31
    np.testing.assert_array_equal(operators.linear(x, kernel, bias), expected)
    image, size = x.reshape(1, 16, 16, 256), (16, 16, 256, 2)
    result = operators.convolution(image, kernel.reshape(size), bias, 1, 0)
    np.testing.assert_array_equal(result.reshape(1, 2), expected)


def test_gelu_tanh_and_softmax_have_their_errors_at_every_scale():
    """Would catch a polynomial that is right at one scale only, as with a fixed shift."""
    x = RNG.integers(-16383, 16384, (50, 16))
    x[0], x[1, 1:] = -16383, -16383
    gelu, tanh, softmax = map(jax.jit, (operators.gelu, operators.tanh, operators.softmax))
    for scale in SCALES:
        real = WIDE * scale
        result = gelu(int32(WIDE), operators.gelu_argument(scale))
        assert abs(np.asarray(result)).max() <= 2**28
        unit = scale * 2.0**-operators.GELU_FRACTION_BITS
        exact = real * (1 + erf(real / math.sqrt(2))) / 2
        np.testing.assert_allclose(result * np.float64(unit), exact, rtol=0, atol=0.0185)
        result = tanh(int32(WIDE), operators.tanh_argument(scale))
        np.testing.assert_allclose(result / 2.0**14, np.tanh(real), rtol=0, atol=0.003)
        e = np.exp((x - x.max(-1, keepdims=True)) * scale)
        result = softmax(int32(x), operators.softmax_argument(scale)) / 2.0**15
        np.testing.assert_allclose(result, e / e.sum(-1, keepdims=True), rtol=0, atol=0.005)
        np.testing.assert_allclose(result.sum(-1), 1, rtol=0, atol=16 / 2**15)


def rows_of(size):
    """Rows to normalize: ordinary, tiny, with an outlier, at both bounds, constant."""
    rows = RNG.normal(size=(6, size)) * np.array([3000, 20, 100, 0, 0, 0])[:, None]
    rows[2, 0] = 16383
    rows[3] = 16383 * np.where(np.arange(size) % 2, 1, -1)
    rows[4, 0], rows[5] = 16383, -16383
    return np.clip(np.round(rows), -16383, 16383).astype(np.int64)


@pytest.mark.parametrize("size", [2, 64, 2048, operators.MAX_NORM_SIZE])
def test_norms_equal_int64_and_are_near_float64(size):
    """Would catch an overflow of the sum of squares, the mean rounded, or epsilon left out."""
    x = rows_of(size)
    for center, norm in ((True, operators.layer_norm), (False, operators.rms_norm)):
        compute = jax.jit(norm)
        fraction_bits = operators.norm_fraction_bits(size, center)
        for scale in (operators.min_norm_scale(size, 1e-5), 1e-3, 1.0, 100.0):
            epsilon = operators.norm_epsilon(scale, size, 1e-5, center)
            result = np.asarray(compute(int32(x), jnp.int32(epsilon)))
            shifted = (size * x - x.sum(-1, keepdims=True) if center else x) << fraction_bits
            assert abs(shifted).max() + 2**15 < 2**31
            expected = numpy_reader.divide_by_norm(shifted, np.int64(epsilon), (1,))
            np.testing.assert_array_equal(result, expected)
            real = x * scale
            real = real - real.mean(-1, keepdims=True) if center else real
            exact = real / np.sqrt((real**2).mean(-1, keepdims=True) + 1e-5)
            error = abs(result * math.sqrt(size) / 2**15 - exact).max(-1)
            assert (error <= abs(exact).max(-1) / 2**13 + math.sqrt(size) / 2**15).all()
            spread = exact.max(-1) - exact.min(-1)
            assert (error <= 0.01 * spread)[spread > 1].all()
            if center:
                assert (result[5] == 0).all()  # no variance


def test_norm_of_zeros_is_zero():
    """Would catch a division by zero: no variance and no epsilon."""
    for norm in (operators.layer_norm, operators.rms_norm):
        assert norm(jnp.zeros((1, 3), jnp.int32), jnp.int32(0)).tolist() == [[0, 0, 0]]


def test_residual_sum_has_half_a_unit_of_error():
    """Would catch addition at the wrong scale, or two roundings to 8 bits."""
    x, y = RNG.integers(-127, 128, (2, 4000))
    for x_scale, y_scale in ((1.0, 1.0), (0.3, 1e-3), (1e-4, 0.7)):
        scales = [operators.residual_argument(scale, 1.0) for scale in (x_scale, y_scale)]
        result = np.asarray(operators.residual_sum(jnp.int8(x), jnp.int8(y), *scales, 8))
        exact = np.clip(x * x_scale + y * y_scale, -127, 127)
        np.testing.assert_allclose(result, exact, rtol=0, atol=0.5 + 1 / 64 + 127 / 2**15)


@pytest.mark.parametrize("tokens", [1, 2**16])
def test_attention_does_not_overflow_at_its_bounds(tokens):
    """Would catch weights that add up to more than int32 holds, or a mean of 16 bits too many."""
    x = np.full((1, tokens, 1), 16383, np.int64)
    valid = np.ones((1, tokens), bool)
    for sign in (1, -1):
        assert operators.masked_mean(int32(sign * x), valid).tolist() == [[sign * 16383]]
    scores = RNG.integers(-3, 4, (1, 1, 1, tokens))
    weights = operators.softmax(int32(scores), operators.softmax_argument(0.1))
    value = np.full((1, tokens, 1, 1), -127, np.int8)
    expected = -127 * np.asarray(weights, np.int64).sum()
    assert abs(expected) <= 127 * (2**15 + tokens / 2)
    assert operators.attention_sum(weights, value).tolist() == [[[[expected]]]]


def test_masked_softmax_and_mean_leave_padding_out():
    """Would catch weight on padding, also where it is larger, and 0 / 0 without a token."""
    x = int32([[5, 300, -20], [5, 300, -20]])
    valid = np.array([[True, False, True], [False, False, False]])
    argument = operators.softmax_argument(0.01)
    weights = operators.softmax(x, argument, valid)
    alone = operators.softmax(x[:1, ::2], argument)
    assert weights.tolist() == [[alone[0, 0].item(), 0, alone[0, 1].item()], [0, 0, 0]]
    assert operators.masked_mean(x[..., None], valid).tolist() == [[-7], [0]]  # -7.5 upwards


def test_residual_sum_of_15_bits_has_a_unit_of_error():
    """Would catch the scale of sums of 8 bits."""
    x, y = RNG.integers(-8000, 8001, (2, 4000))
    scales = [operators.residual_argument(scale, 1.0, 15) for scale in (1.0, 0.03)]
    result = operators.residual_sum(int32(x), int32(y), *scales, 15)
    exact = x + 0.03 * y
    np.testing.assert_allclose(result, exact, rtol=0, atol=1 + 8240 / 2**15)


def test_operators_can_be_mapped_over_a_stack():
    """Would catch an operator that takes a batch's axes for granted."""
    x = int32(rows_of(8)).reshape(2, 3, 8)
    argument = jax.tree.map(lambda part: jnp.stack([part] * 2), operators.gelu_argument(1e-3))
    stacked = jax.vmap(operators.gelu)(x, argument)
    np.testing.assert_array_equal(stacked, operators.gelu(x, operators.gelu_argument(1e-3)))
    mapped = jax.vmap(lambda row: operators.layer_norm(row, jnp.int32(5)))(x)
    np.testing.assert_array_equal(mapped, operators.layer_norm(x, jnp.int32(5)))
