"""Interventions that bring single units back to life."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from plasticity.interventions.base import Array, Context, Intervention, Learner, State, cleared
from plasticity.networks import Params, connections
from plasticity.spec import setting


class ReDo(Intervention):
    """Recycles dormant units at an interval (Sokar et al. 2023).

    A unit is dormant if its mean absolute activation over the rollout is at most `tau` times the
    mean of that over its layer. What leads into it is drawn anew, norms and biases included;
    what leads out of it becomes zero, so that nothing changes downstream at first; the
    optimiser's moments of all these are cleared. Where the activation widens, as concatenated
    ReLU does, a unit is all that comes of one input. All layers are judged before any is changed.

    Attributes:
      tau: the threshold.
      every: PPO updates from one recycling to the next.
    """

    tau: float = setting(0.025, ge=0)
    every: int = setting(10, kind=int, ge=1)

    def after_update(
        self, state: State, learner: Learner, context: Context
    ) -> tuple[State, Learner]:
        assert context.rollout is not None
        due = (context.update + 1) % self.every == 0
        activations = context.apply(learner.params, context.rollout.observation).activations
        dormant = {}
        for layer, x in activations.items():
            units = units_of(learner.params, layer)
            activity = jnp.mean(jnp.abs(x), axis=0).reshape(-1, units).mean(axis=0)
            dormant[layer] = due & (activity <= self.tau * jnp.mean(activity))
        return state, recycle(learner, dormant, context)


def units_of(params: Params, layer: str) -> int:
    """How many units a hidden layer has: the outputs of its linear part."""
    return int(_at(params, connections(params)[layer].incoming[0]).shape[-1])


def recycle(learner: Learner, chosen: Mapping[str, Array], context: Context) -> Learner:
    """Draws anew what leads into the units chosen and clears what leads out, moments included.

    Args:
      learner: before.
      chosen: for each hidden layer which units, bool [units].
      context: for fresh parameters, and the optimiser.

    Returns:
      The learner after; a weight from one unit chosen to another is zero.
    """
    paths = connections(learner.params)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), learner.params)
    incoming = outgoing = nothing
    for layer, mask in chosen.items():
        for path in paths[layer].incoming:
            incoming = _set(incoming, path, jnp.broadcast_to(mask, _at(nothing, path).shape))
        for path in paths[layer].outgoing:
            shape = _at(nothing, path).shape
            rows = jnp.tile(mask, shape[0] // mask.size)[:, None]
            outgoing = _set(outgoing, path, jnp.broadcast_to(rows, shape))

    def of_weight(old: Array, fresh: Array, redraw: Array, clear: Array) -> Array:
        return jnp.where(clear, 0.0, jnp.where(redraw, fresh, old))

    fresh = context.fresh(context.key)
    params = jax.tree.map(of_weight, learner.params, fresh, incoming, outgoing)
    touched = jax.tree.map(jnp.logical_or, incoming, outgoing)
    return Learner(params, cleared(learner, touched, context))


def _at(tree: Params, path: tuple[str, ...]) -> Array:
    for name in path:
        tree = tree[name]
    return tree


def _set(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    """`tree` with another leaf at `path`."""
    name, *rest = path
    return {**tree, name: _set(tree[name], tuple(rest), leaf) if rest else leaf}
