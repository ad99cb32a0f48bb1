"""What matrix decompositions need on a CPU."""

import jax
import jax.numpy as jnp

Array = jax.Array


def after(x: Array, earlier: Array) -> Array:
    """`x` as it is, but not before `earlier` is there.

    For the operands of decompositions that do not depend on each other: the LAPACK calls of JAX
    up to 0.11.1 have the CPU's threads wait for work that is queued behind them, and as many
    calls at a time as there are threads wait for ever.
    """
    # Always zero, which the compiler does not know.
    return x + (earlier.reshape(-1)[0] > jnp.inf).astype(x.dtype)
