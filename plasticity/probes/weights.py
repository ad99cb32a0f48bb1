"""Probes of the parameters: their norm, and their distance from earlier ones.

Layers are all those with parameters, including heads and norms. "all" takes them together.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from plasticity.networks import by_layer, norms, root_mean_squares, singular_values
from plasticity.probes.base import Array, Probe, View

__all__ = [
    "DeviationFromIsometry",
    "DistanceFromInit",
    "DistanceFromRoundStart",
    "SpectralNorm",
    "WeightNorm",
    "WeightRMS",
]


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
        kernels = _kernels(view)
        layers = {
            name: view.run_serialized(singular_values, kernel.reshape(-1, kernel.shape[-1]))[0]
            for name, kernel in kernels.items()
        }
        return {**layers, "all": jnp.max(jnp.stack(list(layers.values())))} if layers else {}


class DeviationFromIsometry(Probe):
    """The squared Frobenius norm of W'W - I for each kernel W; "all" is the sum (Han et al. 2026).

    It is 0 if all singular values are 1. Of W'W and WW', it is the smaller matrix, since the larger
    one cannot be the identity. Kernels are those that the network computes with. A convolution has
    a matrix [inputs, outputs] at each position of its kernel, over which the norms are summed, as
    `FIRE` treats them; FIRE's own scale by sqrt(outputs / inputs) makes matrices that are not
    square deviate again.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        def deviation(kernel: Array) -> Array:
            w = kernel.reshape(-1, *kernel.shape[-2:])
            inputs, outputs = kernel.shape[-2:]
            products = "pio,pij->poj" if outputs <= inputs else "pio,pjo->pij"
            return jnp.sum(jnp.square(jnp.einsum(products, w, w) - jnp.eye(min(inputs, outputs))))

        layers = {name: deviation(kernel) for name, kernel in _kernels(view).items()}
        return {**layers, "all": jnp.sum(jnp.stack(list(layers.values())))} if layers else {}


def _kernels(view: View) -> dict[str, Array]:
    """Returns the kernel of each layer that has one, as the network computes with it."""
    return {
        name: layer["kernel"]
        for name, layer in by_layer(view.effective_params(view.params)).items()
        if isinstance(layer, Mapping) and "kernel" in layer
    }
