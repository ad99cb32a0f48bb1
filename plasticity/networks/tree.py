"""Measures of parameter trees, layer by layer and in all."""

import jax
import jax.numpy as jnp
import optax

from plasticity.networks.actor_critic import Params

Array = jax.Array


def by_layer(params: Params) -> dict[str, Params]:
    """The parts of a parameter tree by layer: those of the torsos, then the heads."""
    value_torso = params.get("value_torso", {})
    return {
        **params["torso"],
        **{f"value_{name}": layer for name, layer in value_torso.items()},
        "policy": params["policy"],
        "value": params["value"],
    }


def norms(params: Params) -> dict[str, Array]:
    """The 2-norm of each layer, and of all together."""
    squares = {
        name: optax.tree.norm(layer, squared=True) for name, layer in by_layer(params).items()
    }
    squares["all"] = sum(squares.values())
    return {name: jnp.sqrt(square) for name, square in squares.items()}


def root_mean_squares(params: Params) -> dict[str, Array]:
    """The root mean square of each layer's entries, and of all together."""
    sizes = {name: optax.tree.size(layer) for name, layer in by_layer(params).items()}
    sizes["all"] = sum(sizes.values())
    return {name: norm / jnp.sqrt(sizes[name]) for name, norm in norms(params).items()}
