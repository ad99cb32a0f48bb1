"""Norms and structure of parameter trees, layer by layer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.networks.base import Params

__all__ = [
    "MEMORIES",
    "Connections",
    "at",
    "attention_kernels",
    "by_layer",
    "connections",
    "depth_of",
    "layer_index",
    "map_hidden",
    "norms",
    "root_mean_squares",
    "value_heads",
]

Array = jax.Array

MEMORIES = ("memory", "value_memory")  # the recurrent layers, which follow the two torsos


def by_layer(params: Params) -> dict[str, Params]:
    """Returns the entries of a parameter tree by layer: torsos first, then heads and others.

    The linear layers of a recurrent one are `memory_input` and `memory_recurrent`.
    """
    rest = dict(params)
    torso, value_torso = rest.pop("torso", {}), rest.pop("value_torso", {})
    memories = {name: rest.pop(name) for name in MEMORIES if name in rest}
    return {
        **torso,
        **{f"value_{name}": layer for name, layer in value_torso.items()},
        **{
            f"{memory}_{name}": layer
            for memory, layers in memories.items()
            for name, layer in layers.items()
        },
        **rest,
    }


def map_hidden(function: Callable[[Params], Params], params: Params) -> Params:
    """Applies a function to the entry of every hidden linear layer, in each torso."""

    def map_torso(torso: Params) -> Params:
        return {
            name: function(layer) if name.startswith("hidden_") else layer
            for name, layer in torso.items()
        }

    return {
        name: map_torso(entry) if name in ("torso", "value_torso") else entry
        for name, entry in params.items()
    }


def value_heads(params: Params) -> tuple[str, ...]:
    """Returns the names of the value heads: the value, and the intrinsic value if there is one."""
    return tuple(name for name in ("value", "intrinsic_value") if name in params)


def at(params: Params, path: tuple[str, ...]) -> Params:
    """Returns the entry at a path of a parameter tree."""
    for name in path:
        params = params[name]
    return params


def norms(params: Params) -> dict[str, Array]:
    """Computes the 2-norm of each layer, and of all parameters together as "all"."""
    squares = {
        name: optax.tree.norm(layer, squared=True) for name, layer in by_layer(params).items()
    }
    squares["all"] = sum(squares.values())
    return {name: jnp.sqrt(square) for name, square in squares.items()}


def root_mean_squares(params: Params) -> dict[str, Array]:
    """Computes the root mean square of each layer's parameters, and of all together as "all"."""
    sizes = {name: optax.tree.size(layer) for name, layer in by_layer(params).items()}
    sizes["all"] = sum(sizes.values())
    return {name: norm / jnp.sqrt(sizes[name]) for name, norm in norms(params).items()}


class Connections(NamedTuple):
    """The incoming and outgoing weights of a hidden layer's units, as paths in a parameter tree.

    A unit is an entry of a fully connected layer or a channel of a convolutional one. Entries of a
    recurrent layer, which have gates and are their own inputs, do not count as such. With
    residual blocks it is a channel of the residual stream: the weights of everything that is added
    to the stream are incoming. In a block with a layer `down_<i>`, of an encoder or of SimBa, it is
    a hidden unit of the block's MLP or GLU; of a GLU the weights of both halves are incoming.
    """

    # The last axis is the units, before the activation widens.
    incoming: tuple[tuple[str, ...], ...]
    # Kernels. The last axis but one is the activations, repeated for each position of an image
    # that has been flattened; or the units, if the kernel reads the residual stream.
    outgoing: tuple[tuple[str, ...], ...]


def depth_of(torso: Params) -> int:
    """Returns the number of hidden layers of a torso; residual blocks count to their layer."""
    return 1 + max(layer_index(name) for name in torso)


def layer_index(name: str) -> int:
    """Returns the index of the hidden layer that an entry of a torso belongs to."""
    return int(name.split("_")[1])


def connections(params: Params) -> dict[str, Connections]:
    """Returns the connections of each hidden layer, by the name of its activations.

    Every kernel in the entry of a following layer is outgoing, including those that a method has
    added there.
    """
    result = {}
    shared, values = "value_torso" not in params, value_heads(params)
    for torso, prefix, memory, heads in (
        ("torso", "", "memory", ("policy", *values) if shared else ("policy",)),
        ("value_torso", "value_", "value_memory", values),
    ):
        layers = params.get(torso, {})
        for name in layers:
            if not name.startswith("hidden_") or name.endswith("_out"):
                continue
            writers, readers = _neighbors(name, layers)
            is_inner = name.endswith("_in") or readers == [name.replace("hidden", "down")]
            is_last = layer_index(name) == depth_of(layers) - 1 and not is_inner
            pairs = [entry for writer in writers for entry in (writer, *_scales_of(writer))]
            incoming = list(dict.fromkeys(pairs))
            outgoing: list[tuple[str, ...]] = [(torso, entry) for entry in readers]
            if is_last and memory in params:
                outgoing.append((memory, "input"))
            elif is_last:
                outgoing += [(head,) for head in heads if head in params]
            result[prefix + name] = Connections(
                incoming=tuple(
                    (torso, entry, leaf)
                    for entry in incoming
                    if entry in layers
                    for leaf in layers[entry]
                ),
                outgoing=tuple(kernel for entry in outgoing for kernel in _kernels(params, entry)),
            )
    return result


def attention_kernels(params: Params) -> list[tuple[str, ...]]:
    """Returns the paths of the kernels of blocks that write no hidden layer.

    They are those of queries, keys, values and outputs of attention, and those of `down_<i>`.
    """
    return [
        (torso, name, "kernel")
        for torso in ("torso", "value_torso")
        for name, layer in params.get(torso, {}).items()
        if name.startswith(("attention_", "down_")) and "kernel" in layer
    ]


def _neighbors(name: str, layers: Params) -> tuple[list[str], list[str]]:
    """Returns the linear layers of a torso that write a hidden layer, and those that read it."""
    if name.endswith("_in"):
        return [name], [name.removesuffix("in") + "out"]
    up, down = (name.replace("hidden", part) for part in ("up", "down"))
    if down in layers:  # which writes to the stream
        return [name, *([up] if up in layers else [])], [down]
    blocks = [entry for entry in layers if entry.startswith(f"{name}_")]
    following = f"hidden_{layer_index(name) + 1}"
    return (
        [*(entry for entry in blocks if entry.endswith("_out")), name],
        [
            *(entry for entry in blocks if entry.endswith("_in")),
            *([following] if following in layers else []),
        ],
    )


def _scales_of(linear_name: str) -> list[str]:
    """Returns the names of the norm and of the scaler that may follow a linear layer."""
    return [linear_name.replace("hidden_", prefix) for prefix in ("norm_", "scaler_")]


def _kernels(params: Params, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Returns the paths of all kernels in the entry at a path, at any depth."""
    entry = at(params, path)
    if not isinstance(entry, dict):
        return [path] if path[-1] == "kernel" else []
    return [kernel for name in entry for kernel in _kernels(params, (*path, name))]
