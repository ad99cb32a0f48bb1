"""The probe of what is lost when the network is computed with few bits."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from plasticity.integer import compute_scale, dequantize, quantize, relative_error
from plasticity.probes.base import Array, Probe, View
from plasticity.struct import static_field

__all__ = ["QuantizationError"]


class QuantizationError(Probe):
    """The relative error of each layer's outputs when weights and activations have few bits.

    Quantization is simulated (Jacob et al. 2018): kernels are rounded with a scale for each output
    channel, and the inputs of every layer with one scale, which is the largest magnitude over the
    probe batch. Outliers among weights or activations make the error of all others larger. It is
    ||y' - y|| / ||y||, where y are the layer's activations over the probe batch, or the outputs of
    a head, those of the policy centered, and y' the same in the network with all layers quantized.
    It is 0 where both are 0. "all" is the mean over layers and heads.

    Attributes:
      bits: of weights and activations.
    """

    bits: int = static_field(8, ge=2, le=8)

    def __call__(self, view: View) -> dict[str, Array]:
        with nn.intercept_methods(self._quantize_linear):
            quantized = view.apply(view.params, view.observation)
        pairs = {
            name: (quantized.activations[name], activations)
            for name, activations in view.output.activations.items()
        }
        pairs["policy"] = quantized.policy.centered_logits, view.output.policy.centered_logits
        pairs["value"] = quantized.value, view.output.value
        errors = {name: relative_error(*pair) for name, pair in pairs.items()}
        return {**errors, "all": jnp.mean(jnp.stack(list(errors.values())))}

    def _quantize_linear(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Computes a module that has a kernel with quantized kernel and input, others as they are.

        A copy of the module, which is no part of another, is not intercepted again.
        """
        module = context.module
        if not module.path or not module.has_variable("params", "kernel"):
            return call(*args, **kwargs)
        params = dict(module.variables["params"])
        kernel = params["kernel"]
        params["kernel"] = self._round(kernel, tuple(range(kernel.ndim - 1)))
        copy = module.clone(parent=None)
        return copy.apply({"params": params}, self._round(args[0]), *args[1:], **kwargs)

    def _round(self, x: Array, axis: tuple[int, ...] | None = None) -> Array:
        scale = compute_scale(x, self.bits, axis)
        return dequantize(quantize(x, scale, self.bits), scale)
