"""Interventions that normalize the preactivations or the weights of the hidden layers."""

from typing import ClassVar

import jax.numpy as jnp

from plasticity.interventions.base import Array, Intervention
from plasticity.networks import BaseNetwork, Params, map_hidden

__all__ = ["LayerNorm", "RMSNorm", "WeightNormalization"]


class LayerNorm(Intervention):
    """Applies layer norm before each hidden activation (Ba et al. 2016; Lyle et al. 2023)."""

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(norm="layer_norm")


class RMSNorm(Intervention):
    """Divides by the root mean square before each hidden activation (Zhang & Sennrich 2019).

    Computes g x / sqrt(mean(x^2) + 1e-5) with a trained scale g for each unit, initially 1. This
    is layer normalization without centering and offset, with the same epsilon.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(norm="rms_norm")


class WeightNormalization(Intervention):
    """Trains length and direction of each unit's weights separately (Salimans & Kingma 2016).

    The network computes with w = g v / ||v||, where v are the incoming weights of a unit of a
    hidden layer (a column of "kernel") and g is the unit's entry in "scale". Both are trained.
    Biases and heads are unchanged. g starts as ||v||, so the initial network computes the same as
    without the method; the paper's data-dependent initialization is not used. A unit whose weights
    are all zero keeps them at zero until a gradient step changes them.

    Methods that reinitialize a unit reinitialize its g as well. Methods that change weights only
    change the direction v / ||v||: if some weights of a unit are set to zero, the others grow.
    """

    needs_units: ClassVar[bool] = True

    def add_params(self, params: Params, key: Array) -> Params:
        def with_scale(layer: Params) -> Params:
            return {**layer, "scale": _lengths(layer["kernel"])}

        return map_hidden(with_scale, params)

    def effective_params(self, params: Params) -> Params:
        def normalized(layer: Params) -> Params:
            others = {name: leaf for name, leaf in layer.items() if name != "scale"}
            kernel = layer["kernel"]
            return {**others, "kernel": kernel * (layer["scale"] / _lengths(kernel))}

        return map_hidden(normalized, params)


def _lengths(kernel: Array) -> Array:
    """Returns the 2-norm of each unit's incoming weights, [units]; 1 where all of them are 0."""
    squares = jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1)))
    return jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
