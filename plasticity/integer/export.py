"""Export of integer policies: a StableHLO artifact, and weights and scales as a NumPy file."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from plasticity.integer.conversion import Conversion
from plasticity.integer.operators import norm_fraction_bits
from plasticity.integer.policy import IntegerNorm, Operator, run_operators

__all__ = ["export_stablehlo", "policy_arrays"]

Array = jax.Array


def policy_arrays(conversion: Conversion, observation_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the weights and scales of a policy's greedy actions by name, for `np.savez`.

    `plasticity/integer/numpy_reader.py`, which needs NumPy alone, computes actions from them.

    Args:
      conversion: the integer policy, not stacked.
      observation_shape: the shape of one observation.

    Returns:
      The quantizer's `offset`, `scale` and `bound` (float32); `continuous`; `policy_scale`
      (float32), the scale of the policy's head; the names of `operators` in order; and of each its
      kind `<name>.operator`, which results it reads (`<name>.inputs`), and its integers. Dyadic
      numbers are pairs of multiplier and shift, [2, ...].
    """
    policy = conversion.policy
    floats = conversion.operators[: policy.policy]
    names = [f"{number}_{operator.layer}_{operator.kind}" for number, operator in enumerate(floats)]
    arrays: dict[str, Any] = {
        **{name: np.asarray(value) for name, value in vars(conversion.quantizer).items()},
        "continuous": np.bool_(policy.continuous),
        "policy_scale": np.float32(conversion.policy_scale),
        "operators": np.array(names),
    }
    observation = jax.ShapeDtypeStruct((1, *observation_shape), jnp.int8)
    results = jax.eval_shape(partial(run_operators, policy.operators, policy.inputs), observation)
    for name, operator, integers in zip(names, floats, policy.operators, strict=False):
        arrays[f"{name}.operator"] = np.array(operator.kind)
        arrays[f"{name}.inputs"] = np.array(operator.inputs)
        if isinstance(integers, IntegerNorm):
            shape = results[operator.inputs[0]].shape
            size = math.prod(shape[-integers.num_axes :])
            arrays[f"{name}.fraction_bits"] = np.int32(norm_fraction_bits(size, integers.center))
        arrays |= {f"{name}.{key}": value for key, value in _fields(integers).items()}
    return arrays


def _fields(operator: Operator) -> Mapping[str, Any]:
    """Returns the fields of an operator as arrays."""
    return {
        name: np.stack(value) if isinstance(value, tuple) else np.asarray(value)
        for name, value in vars(operator).items()
        if value is not None
    }


def export_stablehlo(
    conversion: Conversion, observation_shape: tuple[int, ...], batch_size: int = 1
) -> jax.export.Exported:
    """Exports `IntegerPolicy.act`, from int8 observations [B, ...] to greedy actions.

    The weights are constants of it. `mlir_module_serialized` of the result is StableHLO's portable
    bytecode, which compilers of other projects read; `call` computes it in JAX.

    Args:
      conversion: the integer policy.
      observation_shape: the shape of one observation.
      batch_size: the number of observations (B).
    """
    observation = jax.ShapeDtypeStruct((batch_size, *observation_shape), jnp.int8)
    function = jax.jit(conversion.policy.act)
    # For one platform: with several, their number would be one more argument.
    return jax.export.export(function, platforms=["cpu"])(observation)
