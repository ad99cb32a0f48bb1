"""Probes of the parameters: their norm, and their distance from earlier ones.

Layers are all those with parameters, including heads and norms. "all" takes them together.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from plasticity.networks import by_layer, norms, root_mean_squares, singular_values
from plasticity.probes.base import Array, Probe, View

__all__ = ["DistanceFromInit", "DistanceFromRoundStart", "SpectralNorm", "WeightNorm", "WeightRMS"]


class WeightNorm(Probe):
    """The 2-norm of the parameters."""

    def __call__(self, view: View) -> dict[str, Array]:
        return norms(view.params)


class WeightRMS(Probe):
    """The root mean square of the parameters: the study's "weight magnitude"."""

    def __call__(self, view: View) -> dict[str, Array]:
        return root_mean_squares(view.params)


class DistanceFromInit(Probe):
    """The 2-norm of the parameters minus those at the beginning of the run."""

    def __call__(self, view: View) -> dict[str, Array]:
        return norms(optax.tree.sub(view.params, view.initial_params))


class DistanceFromRoundStart(Probe):
    """The 2-norm of the parameters minus those at the beginning of the round.

    Changes that interventions make at the boundary of two rounds are not included.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return norms(optax.tree.sub(view.params, view.round_params))


class SpectralNorm(Probe):
    """The largest singular value of each kernel; "all" is the largest of them.

    Kernels are those that the network computes with. Each is a matrix with one row for each input
    (and position, if there are several: as in Miyato et al. (2018), which is not the norm of the
    convolution).
    """

    def __call__(self, view: View) -> dict[str, Array]:
        kernels = {
            name: layer["kernel"]
            for name, layer in by_layer(view.effective_params(view.params)).items()
            if isinstance(layer, Mapping) and "kernel" in layer
        }
        layers = {
            name: view.run_serialized(singular_values, kernel.reshape(-1, kernel.shape[-1]))[0]
            for name, kernel in kernels.items()
        }
        return {**layers, "all": jnp.max(jnp.stack(list(layers.values())))} if layers else {}
