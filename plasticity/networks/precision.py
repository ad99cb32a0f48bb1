"""The precision in which networks are computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["PRECISIONS", "at_precision"]

Array = jax.Array

PRECISIONS = ("float32", "tf32", "bf16")


def at_precision(apply: Callable[..., Any], precision: str) -> Callable[[Any, Any], Any]:
    """Returns `apply`, computed at a precision together with its derivatives.

    Parameters, their gradients and outputs are float32 at every precision.

      - float32: products of float32 numbers, on every platform.
      - tf32: products of numbers rounded to TensorFloat-32 (10 bits of mantissa), summed in
        float32, on NVIDIA's GPUs since Ampere, where that is JAX's default. Elsewhere float32.
      - bf16: the network is computed in bfloat16 (7 bits of mantissa), as Flax's modules are with
        `dtype=bfloat16` and `param_dtype=float32`. Products are summed in float32.

    Args:
      apply: a function of a tree with parameters and of a tree of inputs, as the `apply` of a
        Flax module.
      precision: a name in `PRECISIONS`.
    """
    # JAX's "tensorfloat32" is no more than a request: XLA's products for an H100 are then float32.
    products = "default" if precision == "tf32" else "float32"

    def apply_at_precision(params: Any, x: Any) -> Any:
        with jax.default_matmul_precision(products):
            if precision != "bf16":
                return apply(params, x)
            output = apply(_cast(params, jnp.bfloat16), _cast(x, jnp.bfloat16))
            return _cast(output, jnp.result_type(float))

    return apply_at_precision


def _cast(tree: Any, dtype: Any) -> Any:
    """Converts all floating-point arrays of a tree."""

    def cast(x: Array) -> Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
