"""Probes of hidden units: which are still active, and which still get gradients.

A unit is an entry of a fully connected layer, or a channel of a convolutional one. "all" pools
the units of all hidden layers.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from plasticity.interventions.context import Batch
from plasticity.networks import connections
from plasticity.probes.base import Array, Probe, View
from plasticity.struct import field, static_field

__all__ = [
    "DeadUnits",
    "DormantOverlap",
    "DormantUnits",
    "GradientDormantUnits",
    "InactiveFraction",
    "LinearizedUnits",
    "RolloutInactiveFraction",
    "SaturatedFraction",
    "SaturatedUnits",
]


class DeadUnits(Probe):
    """The fraction of units whose activation is zero on the whole batch."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_units(view.output.activations, lambda x: jnp.all(x == 0, axis=0))


class DormantUnits(Probe):
    """The fraction of tau-dormant units (Sokar et al. 2023).

    A unit is tau-dormant if its mean absolute activation over the batch is at most `tau` times
    the mean of that over its layer.

    Attributes:
      tau: the threshold.
    """

    tau: float = field(0.025, ge=0, le=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_units(view.output.activations, lambda x: _is_dormant(x, self.tau))


class DormantOverlap(Probe):
    """How many units are dormant that were so before: an overlap coefficient (Sokar et al. 2023).

    With X the units that are tau-dormant now (see `DormantUnits`) and Y those that are so under
    earlier parameters, on the same probe batch, it is |X and Y| / min(|X|, |Y|); 0 if either set is
    empty. "all" takes the units of all layers as one set. Near 1, dormant units stay dormant. With
    `tau=0` it is the overlap of dead units.

    Attributes:
      tau: the threshold.
      since: the earlier parameters: "round" for those at its beginning, "run", or "update" for
        those before the last update.
    """

    tau: float = field(0.025, ge=0, le=1)
    since: str = static_field("round", choices=("round", "run", "update"))

    def __call__(self, view: View) -> dict[str, Array]:
        earlier = {
            "round": view.round_params,
            "run": view.initial_params,
            "update": view.prev_params,
        }[self.since]
        before, now = (
            {
                name: _is_dormant(x.reshape(-1, x.shape[-1]), self.tau)
                for name, x in activations.items()
            }
            for activations in (
                view.apply(earlier, view.observation).activations,
                view.output.activations,
            )
        )

        def overlap(before: Array, now: Array) -> Array:
            smaller = jnp.minimum(jnp.sum(before), jnp.sum(now))
            return jnp.sum(before & now) / jnp.maximum(smaller, 1)

        if not now:
            return {}
        pooled = (jnp.concatenate(list(units.values())) for units in (before, now))
        return {name: overlap(before[name], now[name]) for name in now} | {"all": overlap(*pooled)}


class LinearizedUnits(Probe):
    """The fraction of units that are always on: linear on the whole batch (Lyle et al. 2024).

    A unit is always on if its preactivation, the input of the activation function, is positive for
    all observations. With ReLU and its kind it is then a linear function of its input, and of no
    use to bend one; dead units, which are linear too, are counted by `DeadUnits`.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_units(view.output.preactivations, lambda x: jnp.all(x > 0, axis=0))


class InactiveFraction(Probe):
    """The fraction of activations that are zero, over batch and units.

    Juliani & Ash (2024) report that of the last hidden layer as "dead units".
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_units(view.output.activations, lambda x: jnp.mean(x == 0, axis=0))


class RolloutInactiveFraction(Probe):
    """The fraction of activations that are zero, over the observations of a rollout.

    Juliani & Ash (2024) report that of the last hidden layer, over the minibatches of an update,
    as "dead units". The observations of `InactiveFraction` are fixed during a round; these change
    with the policy.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        activations = view.apply(view.params, view.batch.observation).activations
        return _map_units(activations, lambda x: jnp.mean(x == 0, axis=0))


class SaturatedUnits(Probe):
    """The fraction of units that are near -1 or 1 on the whole batch: the dead units of tanh.

    A unit is saturated if its absolute activation always exceeds `threshold`. A layer with any
    activation beyond 1 is not bounded as tanh is, and has no saturated units.

    Attributes:
      threshold: the absolute activation; at 0.99 tanh's slope is 0.02.
    """

    threshold: float = field(0.99, ge=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_units(
            view.output.activations, lambda x: jnp.all(_is_saturated(x, self.threshold), axis=0)
        )


class SaturatedFraction(Probe):
    """The fraction of activations that are near -1 or 1, over batch and units.

    Juliani & Ash (2024) report that of the last hidden layer as "dead units" of tanh networks. A
    layer with any activation beyond 1 is not bounded as tanh is, and counts as 0.

    Attributes:
      threshold: the absolute activation, which must be exceeded.
    """

    threshold: float = field(0.99, ge=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _map_units(
            view.output.activations, lambda x: jnp.mean(_is_saturated(x, self.threshold), axis=0)
        )


class GradientDormantUnits(Probe):
    """The fraction of units with little gradient, by the GraMa criterion (Liu et al. 2025).

    A unit is dormant if the mean over transitions of |d loss / d z| is at most `tau` times the
    mean of that over its layer, where z is the input of its activation function and the loss is
    the agent's. The paper's equation has the activation in place of z, for which a dead unit would
    still have a gradient; its code has the incoming weights. All units of a layer without gradient
    are dormant.

    The gradient is computed as that of the layer's last bias, one transition at a time. A norm
    without bias, such as RMSNorm, comes after that bias: there z is the input of the norm.

    Attributes:
      tau: the threshold.
      size: number of transitions of a rollout; all, if it has fewer.
    """

    tau: float = field(0.01, ge=0, le=1)
    size: int = static_field(512, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        params = flatten_dict(view.params)
        paths = {
            name: bias_paths[-1]
            for name, layer in connections(view.params).items()
            if (bias_paths := [path for path in layer.incoming if path[-1] == "bias"])
        }

        def loss(biases: dict[str, Array], transition: Batch) -> Array:
            changes = {path: biases[name] for name, path in paths.items()}
            batch = jax.tree.map(lambda x: x[None], transition)
            return view.per_sample_loss(unflatten_dict({**params, **changes}), batch)[0]

        def is_dormant(gradients: Array) -> Array:
            magnitude = jnp.mean(jnp.abs(gradients), axis=0)
            return magnitude <= self.tau * jnp.mean(magnitude)

        biases = {name: params[path] for name, path in paths.items()}
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(biases, view.sample(self.size))
        return _pool({name: is_dormant(x) for name, x in gradients.items()})


def _is_dormant(x: Array, tau: Array | float) -> Array:
    """Returns which units of a layer, [B, units], are tau-dormant. bool [units]."""
    activity = jnp.mean(jnp.abs(x), axis=0)
    return activity <= tau * jnp.mean(activity)


def _is_saturated(x: Array, threshold: Array | float) -> Array:
    """Returns which activations of a layer are near -1 or 1, if those are its bounds."""
    magnitude = jnp.abs(x)
    return (magnitude > threshold) & (jnp.max(magnitude) <= 1)


def _map_units(
    activations: Mapping[str, Array], measure: Callable[[Array], Array]
) -> dict[str, Array]:
    """Averages a measure of units, [B, units] -> [units], by layer and over all units."""
    return _pool({name: measure(x.reshape(-1, x.shape[-1])) for name, x in activations.items()})


def _pool(units: Mapping[str, Array]) -> dict[str, Array]:
    """Computes the mean over each layer's units [units], and over all units as "all"."""
    if not units:
        return {}
    numbers = {name: x.astype(jnp.float32) for name, x in units.items()}
    return {name: jnp.mean(x) for name, x in numbers.items()} | {
        "all": jnp.mean(jnp.concatenate(list(numbers.values())))
    }
