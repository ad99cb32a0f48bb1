"""Probes of hidden units: which of them still answer to anything.

A unit is an entry of a fully connected layer, or a channel of a convolutional one. "all" pools
the units of every hidden layer.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from plasticity.networks import connections
from plasticity.probes.base import Array, Batch, Probe, View
from plasticity.struct import field, static_field


class DeadUnits(Probe):
    """The fraction of units that are zero on the whole batch."""

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_activations(view.output.activations, lambda x: jnp.all(x == 0, axis=0))


class DormantUnits(Probe):
    """The fraction of tau-dormant units (Sokar et al. 2023).

    A unit is tau-dormant if its mean absolute activation over the batch is at most `tau` times
    the mean of that over its layer.

    Attributes:
      tau: the threshold.
    """

    tau: float = field(0.025, ge=0, le=1)

    def __call__(self, view: View) -> dict[str, Array]:
        def dormant(x: Array) -> Array:
            activity = jnp.mean(jnp.abs(x), axis=0)
            return activity <= self.tau * jnp.mean(activity)

        return _of_activations(view.output.activations, dormant)


class InactiveFraction(Probe):
    """The mean over batch and units of how often an activation is zero.

    Juliani & Ash (2024) report that of the last hidden layer as "dead units".
    """

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_activations(view.output.activations, lambda x: jnp.mean(x == 0, axis=0))


class RolloutInactiveFraction(Probe):
    """How often an activation is zero, over transitions met by the policy.

    Juliani & Ash (2024) report that of the last hidden layer, over the minibatches of an update,
    as "dead units". The observations of `InactiveFraction` stay the same all round long; these
    move with the policy.
    """

    def __call__(self, view: View) -> dict[str, Array]:
        activations = view.apply(view.params, view.batch.observation).activations
        return _of_activations(activations, lambda x: jnp.mean(x == 0, axis=0))


class SaturatedUnits(Probe):
    """The fraction of units that are near -1 or 1 on the whole batch: tanh's dead units.

    A unit is saturated if its absolute activation always exceeds `threshold`. A layer with an
    activation beyond 1 is not bounded as tanh is, and has no saturated units.

    Attributes:
      threshold: the absolute activation; at 0.99 tanh's slope is 0.02.
    """

    threshold: float = field(0.99, ge=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_activations(
            view.output.activations, lambda x: jnp.all(_saturated(x, self.threshold), axis=0)
        )


class SaturatedFraction(Probe):
    """The mean over batch and units of how often an activation is near -1 or 1.

    Juliani & Ash (2024) report that of the last hidden layer as "dead units" of tanh networks. A
    layer with an activation beyond 1 is not bounded as tanh is, and counts as 0.

    Attributes:
      threshold: the absolute activation that is exceeded.
    """

    threshold: float = field(0.99, ge=0, lt=1)

    def __call__(self, view: View) -> dict[str, Array]:
        return _of_activations(
            view.output.activations, lambda x: jnp.mean(_saturated(x, self.threshold), axis=0)
        )


class GradientDormantUnits(Probe):
    """The fraction of units that hardly get a gradient: GraMa's measure (Liu et al. 2025).

    A unit is dormant if the mean over transitions of |d loss / d z| is at most `tau` times the
    mean of that over its layer, with z what its activation function takes and the loss PPO's. The
    paper's equation has the activation in place of z, where a dead unit would still get a
    gradient; its code has the incoming weights. All units of a layer without gradient are dormant.

    The gradient is that of the layer's last bias, one transition at a time. A norm that has no
    bias, as RMSNorm, comes after it: there z is what the norm takes.

    Attributes:
      tau: the threshold.
      size: how many transitions of a rollout; all, if it has fewer.
    """

    tau: float = field(0.01, ge=0, le=1)
    size: int = static_field(512, ge=1)

    def __call__(self, view: View) -> dict[str, Array]:
        params = flatten_dict(view.params)
        paths = {
            name: last[-1]
            for name, layer in connections(view.params).items()
            if (last := [path for path in layer.incoming if path[-1] == "bias"])
        }

        def loss(biases: dict[str, Array], transition: Batch) -> Array:
            changed = {path: biases[name] for name, path in paths.items()}
            batch = jax.tree.map(lambda x: x[None], transition)
            return view.per_sample_loss(unflatten_dict({**params, **changed}), batch)[0]

        def dormant(gradients: Array) -> Array:
            size = jnp.mean(jnp.abs(gradients), axis=0)
            return size <= self.tau * jnp.mean(size)

        biases = {name: params[path] for name, path in paths.items()}
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(biases, view.sample(self.size))
        return _pooled({name: dormant(x) for name, x in gradients.items()})


def _saturated(x: Array, threshold: Array | float) -> Array:
    """Which activations of a layer are near their bounds, if those are -1 and 1."""
    size = jnp.abs(x)
    return (size > threshold) & (jnp.max(size) <= 1)


def _of_activations(
    activations: Mapping[str, Array], of_units: Callable[[Array], Array]
) -> dict[str, Array]:
    """The mean of a measure of units, [B, units] -> [units], by layer and over all units."""
    return _pooled({name: of_units(x.reshape(-1, x.shape[-1])) for name, x in activations.items()})


def _pooled(units: Mapping[str, Array]) -> dict[str, Array]:
    """The mean of each layer's units [units], and of all units."""
    numbers = {name: x.astype(jnp.float32) for name, x in units.items()}
    return {name: jnp.mean(x) for name, x in numbers.items()} | {
        "all": jnp.mean(jnp.concatenate(list(numbers.values())))
    }
