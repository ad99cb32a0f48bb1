"""Interventions on the architecture: what normalises a layer's preactivations, or its weights."""

import jax.numpy as jnp

from plasticity.interventions.base import Array, Intervention
from plasticity.networks import Network, Params, map_hidden


class LayerNorm(Intervention):
    """Layer normalisation before each hidden activation (Ba et al. 2016; Lyle et al. 2023)."""

    def network(self, network: Network) -> Network:
        return network.replace(norm="layer_norm")


class RMSNorm(Intervention):
    """Divides by the root mean square before each hidden activation (Zhang & Sennrich 2019).

    g x / sqrt(mean(x^2) + 1e-5) with one learnt scale g, at first 1, for each unit: layer
    normalisation without centring and offset, here with the same epsilon as that.
    """

    def network(self, network: Network) -> Network:
        return network.replace(norm="rms_norm")


class WeightNormalization(Intervention):
    """Learns the length and the direction of each unit's weights apart (Salimans & Kingma 2016).

    The network computes with w = g v / ||v||, where v are the weights into a unit of a hidden
    layer, its column of "kernel", and g its entry in "scale"; both are trained, biases are as
    they were, and the heads are left alone. g begins as ||v||, so that nothing is different at
    first; the paper's initialisation from data is not used. A unit without weights keeps none
    until the gradient gives it some.

    Methods that redraw a unit redraw its g as well. Those that change weights alone change
    their directions: when some of a unit's weights are set to zero, the others grow.
    """

    def add_params(self, params: Params, key: Array) -> Params:
        def with_scale(layer: Params) -> Params:
            return {**layer, "scale": _lengths(layer["kernel"])}

        return map_hidden(with_scale, params)

    def effective_params(self, params: Params) -> Params:
        def normalized(layer: Params) -> Params:
            rest = {name: leaf for name, leaf in layer.items() if name != "scale"}
            kernel = layer["kernel"]
            return {**rest, "kernel": kernel * (layer["scale"] / _lengths(kernel))}

        return map_hidden(normalized, params)


def _lengths(kernel: Array) -> Array:
    """The 2-norm of the weights into each unit, and 1 where all of them are 0. [units]."""
    squares = jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1)))
    return jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
