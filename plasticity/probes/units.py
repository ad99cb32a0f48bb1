"""Probes of hidden units: which of them still answer to anything.

A unit is an entry of a fully connected layer, or a channel of a convolutional one. "all" pools
the units of every hidden layer.
"""

from collections.abc import Callable

import jax.numpy as jnp

from plasticity.probes.base import Array, Probe, View
from plasticity.spec import setting


class DeadUnits(Probe):
    """The fraction of units that are zero on the whole batch."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _pooled(view, lambda x: jnp.all(x == 0, axis=0))


class DormantUnits(Probe):
    """The fraction of tau-dormant units (Sokar et al. 2023).

    A unit is tau-dormant if its mean absolute activation over the batch is at most `tau` times
    the mean of that over its layer.

    Attributes:
      tau: the threshold.
    """

    tau: float = setting(0.025, ge=0, le=1)

    def __call__(self, view: View) -> dict[str, Array]:
        def dormant(x: Array) -> Array:
            activity = jnp.mean(jnp.abs(x), axis=0)
            return activity <= self.tau * jnp.mean(activity)

        return _pooled(view, dormant)


class InactiveFraction(Probe):
    """The mean over batch and units of how often an activation is zero.

    Juliani & Ash (2024) report that of the last hidden layer as "dead units".
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _pooled(view, lambda x: jnp.mean(x == 0, axis=0))


def _pooled(view: View, of_units: Callable[[Array], Array]) -> dict[str, Array]:
    """The mean of a measure of units, [B, units] -> [units], by layer and over all units."""
    units = {
        name: of_units(x.reshape(-1, x.shape[-1])).astype(jnp.float32)
        for name, x in view.output.activations.items()
    }
    return {name: jnp.mean(x) for name, x in units.items()} | {
        "all": jnp.mean(jnp.concatenate(list(units.values())))
    }
