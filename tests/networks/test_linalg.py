"""Matrix decompositions, against NumPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.networks import singular_values
from plasticity.networks.linalg import sequence_after
from plasticity.probes.ranks import effective_rank, num_leading, stable_rank


def test_singular_values_give_the_ranks_of_an_svd_in_float64():
    """Would catch squares in float32, in which ranks of deficient matrices are those of noise."""
    rng = np.random.default_rng(0)
    full = np.maximum(rng.normal(size=(96, 48)), 0)
    deficient = np.outer(np.ones(96), rng.normal(size=48))
    matrices = {
        "full": full,
        "one direction": deficient,
        "three directions": rng.normal(size=(96, 3)) @ rng.normal(size=(3, 48)),
        "decaying": rng.normal(size=(96, 48)) * 0.7 ** np.arange(48),
        "dead units": full * (rng.random(48) < 0.1),
        "tiny": 1e-30 * full,
        "tiny, one direction": 1e-30 * deficient,
        "large": 1e30 * full,
        "zero": 0 * full,
    }
    stack = np.stack(list(matrices.values())).astype(np.float32)
    batch = jax.jit(jax.vmap(singular_values))(stack)
    wide = jax.jit(jax.vmap(singular_values))(stack.swapaxes(1, 2))
    ranks = jax.vmap(lambda sigma: (effective_rank(sigma), stable_rank(sigma)))(batch)
    leading = jax.vmap(lambda sigma: num_leading(sigma, 0.99))(batch)
    assert batch.dtype == jnp.float32
    np.testing.assert_array_equal(batch, jnp.sort(batch)[:, ::-1])
    for i, (name, matrix) in enumerate(zip(matrices, stack, strict=True)):
        sigma = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        for got in (batch[i], wide[i]):
            np.testing.assert_allclose(got, sigma, rtol=1e-6, atol=1e-7 * sigma[0], err_msg=name)
        if name == "zero":
            continue
        p = sigma / sigma.sum()
        expected = [np.exp(-np.sum(p * np.log(np.where(p > 0, p, 1)))), np.sum(sigma**2)]
        expected[1] /= sigma[0] ** 2
        assert [float(rank[i]) for rank in ranks] == pytest.approx(expected, rel=1e-4), name
        assert leading[i] == 1 + np.sum(np.cumsum(sigma)[:-1] < 0.99 * sigma.sum()), name


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_singular_values_of_what_is_not_finite_are_nan(value):
    """Would catch a divergence that a probe hides, or one matrix that spoils its batch."""
    stack = np.ones((2, 4, 3), np.float32)
    stack[0, 1, 1] = value
    sigma = jax.jit(jax.vmap(singular_values))(stack)
    assert np.all(np.isnan(sigma[0]))
    np.testing.assert_allclose(sigma[1], [np.sqrt(12), 0, 0], atol=1e-6)


def test_sequence_after_depends_on_earlier_and_changes_nothing():
    """Would catch an operand that changes with what it waits for, or a wait optimized away."""
    x = jnp.arange(6.0).reshape(2, 3)
    compiled = jax.jit(sequence_after).lower(x, x).compile()
    for earlier_value in (1.0, np.inf, -np.inf, np.nan):
        np.testing.assert_array_equal(compiled(x, jnp.full((2, 3), earlier_value)), x)
    assert "parameter(1)" in compiled.as_text()
    assert "compare" in compiled.as_text()
