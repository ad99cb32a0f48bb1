"""Matrix decompositions that suit CPUs and GPUs."""

import jax
import jax.numpy as jnp

__all__ = ["sequence_after", "singular_values"]

Array = jax.Array


def singular_values(matrix: Array) -> Array:
    """Computes the singular values of a matrix [m, n], in descending order. [min(m, n)].

    They are the square roots of the eigenvalues of the Gram matrix, computed in float64: the error
    of a singular value is below 1e-7 times the largest one, which an SVD in float32 does not reach.
    On a GPU a batch of matrices is decomposed by one call, while JAX's SVD decomposes one matrix
    after another. On a CPU this is faster than an SVD in float32 as well: see docs/speed.md.

    Args:
      matrix: the matrix. If any entry is not finite, all singular values are NaN.
    """
    rows, columns = matrix.shape
    with jax.enable_x64():
        x = matrix.astype(jnp.float64)
        gram = x.T @ x if columns <= rows else x @ x.T
        # What a solver does with NaN depends on the platform.
        finite = jnp.isfinite(jnp.trace(gram))
        squares = jnp.linalg.eigvalsh(jnp.where(finite, gram, 0.0))[::-1]
        # Rounding may make some negative.
        sigma = jnp.sqrt(jnp.where(finite, jnp.maximum(squares, 0.0), jnp.nan))
        return sigma.astype(matrix.dtype)


def sequence_after(x: Array, earlier: Array) -> Array:
    """Returns `x` unchanged, but makes it depend on `earlier`.

    Use it on the operands of matrix decompositions that do not depend on each other, so that they
    run one after the other. In JAX up to 0.11.1 each LAPACK call blocks a CPU thread until work
    that is queued behind it is done: as many concurrent calls as there are threads deadlock.
    """
    # Always zero, which the compiler does not know.
    return x + (earlier.reshape(-1)[0] > jnp.inf).astype(x.dtype)
