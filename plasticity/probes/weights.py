"""Probes of the parameters: how large they are, and how far from where they began.

Layers are all that have parameters, heads and norms included; "all" takes them together.
"""

import optax

from plasticity.networks import norms, root_mean_squares
from plasticity.probes.base import Array, Probe, View


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
