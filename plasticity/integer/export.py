"""Export of integer policies: a StableHLO artifact, and weights and scales as a NumPy file."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from plasticity.integer.conversion import Conversion
from plasticity.integer.operators import norm_fraction_bits
from plasticity.integer.policy import Operator

__all__ = ["export_stablehlo", "policy_arrays"]

Array = jax.Array


def policy_arrays(conversion: Conversion, observation_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the weights and scales of a policy's greedy actions by name, for `np.savez`.

    `plasticity/integer/numpy_reader.py`, which needs NumPy alone, computes actions from them.

    Args:
      conversion: the integer policy, not stacked.
      observation_shape: the shape of one observation.

    Returns:
      `observation_scale` (float32), `bits`, `logits_scale` (float32) and the names of `operators`
      in order; and of each its kind `<name>.operator` and its integers. Dyadic numbers are pairs of
      multiplier and shift, [2, ...].
    """
    operators = (*conversion.policy.torso, conversion.policy.policy)
    floats = (*conversion.torso, conversion.heads[0])
    names = [f"{number}_{operator.layer}_{operator.kind}" for number, operator in enumerate(floats)]
    arrays: dict[str, Any] = {
        "observation_scale": np.float32(conversion.scales.observation),
        "logits_scale": np.float32(conversion.scales.policy),
        "bits": np.int32(conversion.bits),
        "operators": np.array(names),
    }
    shape: tuple[int, ...] = (1, *observation_shape)
    for name, operator, kind in zip(names, operators, (x.kind for x in floats), strict=True):
        arrays[f"{name}.operator"] = np.array(kind)
        if kind in ("layer_norm", "rms_norm"):
            size = int(np.prod(shape[1:]))
            fraction_bits = norm_fraction_bits(size, kind == "layer_norm")
            arrays[f"{name}.fraction_bits"] = np.int32(fraction_bits)
        arrays |= {f"{name}.{key}": value for key, value in _fields(operator).items()}
        shape = jax.eval_shape(operator, jax.ShapeDtypeStruct(shape, jnp.int8)).shape
    return arrays


def _fields(operator: Operator) -> Mapping[str, Any]:
    """Returns the fields of an operator as arrays."""
    return {
        name: np.stack(value) if isinstance(value, tuple) else np.asarray(value)
        for name, value in vars(operator).items()
        if name != "center"
    }


def export_stablehlo(
    conversion: Conversion, observation_shape: tuple[int, ...], batch_size: int = 1
) -> jax.export.Exported:
    """Exports the function from int8 observations [B, ...] to greedy actions int32 [B].

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
