"""Probes of the features' size and directions, in each hidden layer.

The features of an observation are all activations of a layer together. "all" is the mean over
the hidden layers.
"""

from collections.abc import Callable

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View


class FeatureNorm(Probe):
    """The 2-norm of a layer's features, the mean over the batch (cf. Moalla et al. 2024)."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_layers(view, lambda x: jnp.mean(jnp.linalg.norm(x, axis=-1)))


class FeatureCosine(Probe):
    """The mean cosine between the features of two different observations of the batch.

    1 where a layer tells observations apart by length alone. Features are not centred, so those
    of a ReLU layer are never below 0. Features of zero, which have no direction, take no part; 0
    where fewer than two are left.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_layers(view, _mean_cosine)


def _mean_cosine(x: Array) -> Array:
    """The mean cosine of two different rows of [B, units]."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    directions = x / jnp.where(norm == 0, 1.0, norm)
    count = jnp.sum(norm != 0)
    # All pairs, with those of a row and itself, whose cosine is 1, taken away.
    others = jnp.sum(jnp.square(jnp.sum(directions, axis=0))) - count
    return jnp.where(count > 1, others / jnp.maximum(count * (count - 1.0), 1.0), 0.0)


def _of_layers(view: View, of_features: Callable[[Array], Array]) -> dict[str, Array]:
    layers = {
        name: of_features(x.reshape(len(x), -1)) for name, x in view.output.activations.items()
    }
    return {**layers, "all": jnp.mean(jnp.stack(list(layers.values())))}
