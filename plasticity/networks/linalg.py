"""Workarounds for matrix decompositions on CPUs."""

import jax
import jax.numpy as jnp

__all__ = ["sequence_after"]

Array = jax.Array


def sequence_after(x: Array, earlier: Array) -> Array:
    """Returns `x` unchanged, but makes it depend on `earlier`.

    Use it on the operands of matrix decompositions that do not depend on each other, so that they
    run one after the other. In JAX up to 0.11.1 each LAPACK call blocks a CPU thread until work
    that is queued behind it is done: as many concurrent calls as there are threads deadlock.
    """
    # Always zero, which the compiler does not know.
    return x + (earlier.reshape(-1)[0] > jnp.inf).astype(x.dtype)
