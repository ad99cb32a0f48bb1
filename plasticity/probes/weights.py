"""Probes of the parameters: how large they are, and how far from where they began.

Layers are all that have parameters, heads and norms included; "all" takes them together.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from plasticity.networks import by_layer, norms, root_mean_squares
from plasticity.probes.base import Array, Probe, View, singular_values


class WeightNorm(Probe):
    """The 2-norm of the parameters."""

    def __call__(self, view: View) -> dict[str, Array]:
        return norms(view.params)


class WeightRMS(Probe):
    """The root mean square of the parameters: the study's "weight magnitude"."""

    def __call__(self, view: View) -> dict[str, Array]:
        return root_mean_squares(view.params)


class DistanceFromInit(Probe):
    """The 2-norm of the parameters' way from those that the lifetime began with."""

    def __call__(self, view: View) -> dict[str, Array]:
        return norms(optax.tree.sub(view.params, view.initial_params))


class DistanceFromRoundStart(Probe):
    """The 2-norm of the parameters' way from those that the round began with.

    What an intervention does at the boundary is over by then, and no part of it.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return norms(optax.tree.sub(view.params, view.round_params))


class SpectralNorm(Probe):
    """The largest singular value of each kernel; "all" is the largest of them.

    Kernels as the network computes with them, with one row for each input (and position, if there
    are several: as Miyato et al. (2018) have it, which is not the norm of the convolution).
    """

    def __call__(self, view: View) -> dict[str, Array]:
        kernels = {
            name: layer["kernel"]
            for name, layer in by_layer(view.effective_params(view.params)).items()
            if isinstance(layer, Mapping) and "kernel" in layer
        }
        largest = {
            name: view.run_serialized(singular_values, kernel.reshape(-1, kernel.shape[-1]))[0]
            for name, kernel in kernels.items()
        }
        return {**largest, "all": jnp.max(jnp.stack(list(largest.values())))}
