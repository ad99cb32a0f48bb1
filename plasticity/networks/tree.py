"""Measures of parameter trees, layer by layer and in all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.networks.actor_critic import Params

Array = jax.Array


def by_layer(params: Params) -> dict[str, Params]:
    """The parts of a parameter tree by layer: those of the torsos, then the heads and others."""
    rest = dict(params)
    torso, value_torso = rest.pop("torso"), rest.pop("value_torso", {})
    return {
        **torso,
        **{f"value_{name}": layer for name, layer in value_torso.items()},
        **rest,
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


class Connections(NamedTuple):
    """What leads into the units of a hidden layer, and out of them: paths in a parameter tree."""

    incoming: tuple[tuple[str, ...], ...]  # whose last axis counts the units, before widening
    outgoing: tuple[tuple[str, ...], ...]  # whose first axis counts the activations


def connections(params: Params) -> dict[str, Connections]:
    """The connections of each hidden layer, under the names of its activations."""
    found = {}
    shared = "value_torso" not in params
    for torso, prefix, heads in (
        ("torso", "", ("policy", "value") if shared else ("policy",)),
        ("value_torso", "value_", ("value",)),
    ):
        layers = params.get(torso, {})
        depth = sum(name.startswith("hidden_") for name in layers)
        for i in range(depth):
            own = [name for name in (f"hidden_{i}", f"norm_{i}") if name in layers]
            last = i == depth - 1
            following = [(head,) for head in heads] if last else [(torso, f"hidden_{i + 1}")]
            found[f"{prefix}hidden_{i}"] = Connections(
                incoming=tuple((torso, name, leaf) for name in own for leaf in layers[name]),
                outgoing=tuple((*path, "kernel") for path in following),
            )
    return found
