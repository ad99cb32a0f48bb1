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


def value_heads(params: Params) -> tuple[str, ...]:
    """The heads that value something: the value's, and that of an intrinsic one."""
    return tuple(name for name in ("value", "intrinsic_value") if name in params)


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
    """What leads into the units of a hidden layer, and out of them: paths in a parameter tree.

    A unit is an entry of a fully connected layer or a channel of a convolutional one. With
    residual blocks a channel of the stream is one: all that is added to it leads into it.
    """

    incoming: tuple[tuple[str, ...], ...]  # whose last axis counts the units, before widening
    # Kernels whose last axis but one counts the activations, several times over where those of an
    # image have been flattened, or the units where it takes the stream itself.
    outgoing: tuple[tuple[str, ...], ...]


def depth_of(torso: Params) -> int:
    """How many hidden layers a torso has; residual blocks belong to the layer before."""
    return 1 + max(layer_index(name) for name in torso)


def layer_index(name: str) -> int:
    """The number of the hidden layer that an entry of a torso belongs to."""
    return int(name.split("_")[1])


def connections(params: Params) -> dict[str, Connections]:
    """The connections of each hidden layer, under the names of its activations.

    Every kernel in the entry of a following layer leads out, those that a method has added there
    included.
    """
    found = {}
    shared, values = "value_torso" not in params, value_heads(params)
    for torso, prefix, heads in (
        ("torso", "", ("policy", *values) if shared else ("policy",)),
        ("value_torso", "value_", values),
    ):
        layers = params.get(torso, {})
        for name in layers:
            if not name.startswith("hidden_") or name.endswith("_out"):
                continue
            written, read = _around(name, layers)
            last = layer_index(name) == depth_of(layers) - 1 and not name.endswith("_in")
            own = [entry for linear in written for entry in (linear, _norm_of(linear))]
            entries = [(torso, entry) for entry in read] + [(head,) for head in heads if last]
            found[prefix + name] = Connections(
                incoming=tuple(
                    (torso, entry, leaf)
                    for entry in own
                    if entry in layers
                    for leaf in layers[entry]
                ),
                outgoing=tuple(kernel for entry in entries for kernel in _kernels(params, entry)),
            )
    return found


def _around(name: str, layers: Params) -> tuple[list[str], list[str]]:
    """The linear layers that make a hidden layer of a torso, and those in it that read it."""
    if name.endswith("_in"):
        return [name], [name.removesuffix("in") + "out"]
    blocks = [entry for entry in layers if entry.startswith(f"{name}_")]
    following = f"hidden_{layer_index(name) + 1}"
    return (
        [*(entry for entry in blocks if entry.endswith("_out")), name],
        [
            *(entry for entry in blocks if entry.endswith("_in")),
            *([following] if following in layers else []),
        ],
    )


def _norm_of(linear: str) -> str:
    return linear.replace("hidden_", "norm_")


def _kernels(params: Params, entry: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The paths of all kernels in an entry of a parameter tree, at any depth."""
    part = at(params, entry)
    if not isinstance(part, dict):
        return [entry] if entry[-1] == "kernel" else []
    return [path for name in part for path in _kernels(params, (*entry, name))]
