"""Probes of the norm and direction of the features, in each hidden layer.

The features of an observation are all activations of a layer as one vector. "all" is the mean
over the hidden layers.
"""

from collections.abc import Callable

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View

__all__ = ["FeatureCosine", "FeatureNorm"]


class FeatureNorm(Probe):
    """The 2-norm of a layer's features, the mean over the batch (cf. Moalla et al. 2024)."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_layers(view, lambda x: jnp.mean(jnp.linalg.norm(x, axis=-1)))


class FeatureCosine(Probe):
    """The mean cosine between the features of two different observations of the batch.

    It is 1 if all features of a layer have the same direction. Features are not centered, so it is
    never negative in a ReLU layer. Observations whose features are all zero are left out; it is 0
    if fewer than two are left.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_layers(view, _mean_cosine)


def _mean_cosine(x: Array) -> Array:
    """Computes the mean cosine of two different rows of [B, units]."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    directions = x / jnp.where(norm == 0, 1.0, norm)
    count = jnp.sum(norm != 0)
    # The sum over all pairs, minus those of a row and itself, whose cosine is 1.
    off_diagonal = jnp.sum(jnp.square(jnp.sum(directions, axis=0))) - count
    return jnp.where(count > 1, off_diagonal / jnp.maximum(count * (count - 1.0), 1.0), 0.0)


def _map_layers(view: View, measure: Callable[[Array], Array]) -> dict[str, Array]:
    """Measures the features [B, units] of each hidden layer, and takes the mean over layers."""
    layers = {name: measure(x.reshape(len(x), -1)) for name, x in view.output.activations.items()}
    return {**layers, "all": jnp.mean(jnp.stack(list(layers.values())))} if layers else {}
