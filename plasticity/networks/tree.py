"""Measures of parameter trees, layer by layer and in all."""

from collections.abc import Callable
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


def map_hidden(change: Callable[[Params], Params], params: Params) -> Params:
    """The tree with the entry of every hidden linear layer changed, in each torso."""

    def changed(torso: Params) -> Params:
        return {
            name: change(layer) if name.startswith("hidden_") else layer
            for name, layer in torso.items()
        }

    return {
        name: changed(part) if name in ("torso", "value_torso") else part
        for name, part in params.items()
    }


def at(params: Params, path: tuple[str, ...]) -> Params:
    """What is at a path of a parameter tree."""
    for name in path:
        params = params[name]
    return params


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
    """The connections of each hidden layer, under the names of its activations.

    Every kernel in the entry of a following layer leads out, those that a method has added there
    included.
    """
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
            kernels = [kernel for entry in following for kernel in _kernels(params, entry)]
            found[f"{prefix}hidden_{i}"] = Connections(
                incoming=tuple((torso, name, leaf) for name in own for leaf in layers[name]),
                outgoing=tuple(kernels),
            )
    return found


def _kernels(params: Params, entry: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths of all kernels in an entry of a parameter tree, at any depth."""
    part = at(params, entry)
    if not isinstance(part, dict):
        return [entry] if entry[-1] == "kernel" else []
    return [path for name in part for path in _kernels(params, (*entry, name))]
