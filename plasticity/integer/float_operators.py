"""The operators of trained networks one by one, as a conversion to integers replaces them."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plasticity.networks import (
    ACTIVATIONS,
    NORMS,
    BaseNetwork,
    Mosaic,
    Network,
    Params,
    alibi_bias,
    alibi_slopes,
    convolve,
    layer_norm,
)
from plasticity.networks.tokens import Tokenizer, TokenShape, unpad

__all__ = ["FloatOperator", "FloatPolicy", "separate_operators"]

Array = jax.Array


class FloatOperator(NamedTuple):
    """An operator of a trained network.

    Attributes:
      layer: the layer that it belongs to, named as in `Output.activations`.
      kind: a name of `plasticity.integer.conversion.CONVERTERS`, as linear or layer_norm.
      apply: computes it on batches.
      inputs: which results are its arguments: 0 the observation, i that of the i-th operator.
      params: its parameters, as host arrays.
      settings: what an integer operator needs to know besides.
    """

    layer: str
    kind: str
    apply: Callable[..., Array]
    inputs: tuple[int, ...]
    params: Mapping[str, np.ndarray] = {}
    settings: Mapping[str, Any] = {}


class FloatPolicy(NamedTuple):
    """The operators of a trained network, and which of them is the head of the policy.

    That of the value is the last. See `IntegerPolicy`.
    """

    operators: tuple[FloatOperator, ...]
    policy: int


def separate_operators(
    network: BaseNetwork, params: Params, observation_shape: tuple[int, ...]
) -> FloatPolicy:
    """Separates a network into its operators.

    Args:
      network: a `Network` or a `Mosaic`.
      params: its parameters, as host arrays.
      observation_shape: the shape of one observation.
    """
    add_torso = _add_encoder if isinstance(network, Mosaic) else _add_torso
    builder = _Builder(network, observation_shape)
    features = value_features = add_torso(builder, params["torso"])
    policy = builder.linear("policy", params["policy"], features)
    if "value_torso" in params:
        builder.prefix = "value_"
        value_features = add_torso(builder, params["value_torso"])
        builder.prefix = ""
    builder.linear("value", params["value"], value_features)
    return FloatPolicy(tuple(builder.operators), policy)


class _Builder:
    """Collects operators. Each method adds one, and returns the number of its result.

    Attributes:
      network: the network.
      observation_shape: the shape of one observation.
      operators: the operators so far.
      prefix: what the names of layers begin with.
    """

    def __init__(self, network: Any, observation_shape: tuple[int, ...]) -> None:
        self.network = network
        self.observation_shape = observation_shape
        self.operators: list[FloatOperator] = []
        self.prefix = ""
        self._shapes: list[tuple[int, ...]] = [(1, *observation_shape)]

    def add(
        self,
        layer: str,
        kind: str,
        apply: Callable[..., Array],
        *inputs: int,
        params: Mapping[str, Any] = {},
        **settings: Any,
    ) -> int:
        arguments = [jax.ShapeDtypeStruct(self._shapes[i], jnp.float32) for i in inputs]
        self._shapes.append(jax.eval_shape(apply, *arguments).shape)
        self.operators.append(
            FloatOperator(self.prefix + layer, kind, apply, inputs, params, settings)
        )
        return len(self.operators)

    def linear(self, layer: str, params: Params, x: int, axes: int | None = None) -> int:
        """Adds a linear layer over the last axes of its input, all but the first if not given."""
        shape = self._shapes[x]
        inputs = shape[1 if axes is None else len(shape) - axes :]
        kernel = params["kernel"].reshape(*inputs, -1)
        bias = params.get("bias", np.zeros(kernel.shape[-1], np.float32))

        def apply(x: Array) -> Array:
            return jnp.tensordot(x, kernel, len(inputs)) + bias

        return self.add(layer, "linear", apply, x, params={"kernel": kernel, "bias": bias})

    def convolution(self, layer: str, params: Params, x: int, stride: int, padding: int) -> int:
        def apply(x: Array) -> Array:
            return convolve(x, params["kernel"], stride, padding) + params["bias"]

        return self.add(
            layer, "convolution", apply, x, params=params, stride=stride, padding=padding
        )

    def round(self, layer: str, x: int) -> int:
        return self.add(layer, "round", lambda x: x, x)

    def sum(self, layer: str, x: int, y: int) -> int:
        return self.add(layer, "residual_sum", jnp.add, x, y)

    def activate(self, layer: str, torso: Params, x: int, axes: int | None = None) -> int:
        """Adds the norm of a hidden layer, if there is one, and its activation function.

        The norm is over the last axes, all but the first if not given.
        """
        kind, axes = self.network.norm, axes or len(self._shapes[x]) - 1
        build = NORMS[kind]
        if build is not None:
            params = torso[f"norm_{layer.removeprefix('hidden_')}"]
            module = build(layer, range(-axes, 0))

            def norm(x: Array) -> Array:
                y: Any = module.apply({"params": params}, x)
                return y

            x = self.add(layer, kind, norm, x, params=params, num_axes=axes)
        activation: Any = ACTIVATIONS[self.network.activation].apply
        return self.add(layer, self.network.activation, activation, x)


def _add_torso(builder: _Builder, torso: Params) -> int:
    """Adds the operators of a `Torso`."""
    network: Network = builder.network
    convolutions = network.torso(builder.observation_shape).convolutions
    x = 0
    for i, size in enumerate(convolutions):
        name = f"hidden_{i}"
        x = builder.convolution(name, torso[name], x, size.stride, size.padding)
        if not network.blocks:
            x = builder.activate(name, torso, x)
            continue
        x = builder.add(name, "max_pool", lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"), x)
        last_written = name
        for block in range(network.blocks):
            block_in, block_out = f"{name}_{block}_in", f"{name}_{block}_out"
            y = builder.activate(last_written, torso, x)
            y = builder.convolution(block_in, torso[block_in], y, 1, 1)
            y = builder.activate(block_in, torso, y)
            y = builder.convolution(block_out, torso[block_out], y, 1, 1)
            x, last_written = builder.sum(block_out, x, y), block_out
        if i == len(convolutions) - 1:
            x = builder.activate(last_written, torso, x)
        else:  # the next convolution reads the sum itself
            x = builder.round(last_written, x)
    for i in range(len(convolutions), len(convolutions) + len(network.hidden)):
        name = f"hidden_{i}"
        x = builder.activate(name, torso, builder.linear(name, torso[name], x))
    return x


def _add_encoder(builder: _Builder, torso: Params) -> int:
    """Adds the operators of an `Encoder`, without those of fused or unpadded computation."""
    network: Mosaic = builder.network
    heads = network.heads

    def linear(layer: str, x: int) -> int:
        return builder.linear(layer, torso[layer], x, axes=1)

    def norm(layer: str, x: int, order: str | None = None) -> int:
        if order not in (None, network.norm_order):
            return x
        params = torso[f"{layer}_norm"]

        def apply(x: Array) -> Array:
            return layer_norm(x, params["scale"], params["bias"], network.low_precision_norm)

        return builder.add(f"{layer}_norm", "layer_norm", apply, x, params=params, num_axes=1)

    def rounded_linear(layer: str, x: int) -> int:
        return builder.round(layer, linear(layer, x))

    tokens = _add_tokens(builder)
    embedding = torso["embedding_0"]
    kernel = np.pad(embedding["kernel"], ((3, 0), (0, 0)))  # of features alone
    x = builder.linear("embedding_0", {**embedding, "kernel": kernel}, tokens, axes=1)
    x = _add_places(builder, torso, x, tokens)
    x = norm("embedding_0", x)
    for i in range(network.depth):
        name, down = f"attention_{i}", f"down_{i}"
        y = builder.round(name, norm(name, x, "pre"))
        query, key, value = (
            rounded_linear(f"{name}_{part}", y) for part in ("query", "key", "value")
        )
        has_bias = network.positions == "alibi"
        scores = partial(_scores, heads=heads, has_bias=has_bias)
        slopes = {"slopes": alibi_slopes(heads)} if has_bias else {}
        y = builder.add(
            name, "attention_scores", scores, query, key, tokens, params=slopes, heads=heads
        )
        weights = builder.add(name, "softmax", _weights, y, tokens)
        y = builder.add(name, "attention_sum", _attention_sum, weights, value)
        x = norm(name, builder.sum(name, x, linear(f"{name}_output", y)), "post")
        y = builder.round(down, norm(down, x, "pre"))
        z = builder.activate(f"hidden_{i}", torso, linear(f"hidden_{i}", y), axes=1)
        if network.gated:
            up = rounded_linear(f"up_{i}", y)
            z = builder.add(f"up_{i}", "gate", jnp.multiply, z, up)
        x = norm(down, builder.sum(down, x, linear(down, z)), "post")
    x = norm(f"pooling_{network.depth}", x, "pre")
    name = f"hidden_{network.depth}"
    if network.pooling == "summary":
        x = builder.add(name, "summary_token", lambda x: x[:, 0], x)
    else:
        x = builder.add(name, "mean_token", _mean_token, x, tokens)
    return builder.activate(name, torso, linear(name, builder.round(name, x)), axes=1)


def _add_tokens(builder: _Builder) -> int:
    """Adds the tokens of observations: flag, row, column and features. [B, T, 3 + F].

    Valid tokens of objects are moved together where the network does so.
    """
    network: Mosaic = builder.network
    tokenizer = Tokenizer(builder.observation_shape, network.patch)
    are_objects = isinstance(builder.observation_shape, TokenShape)
    size = tokenizer.max_tokens if are_objects and network.unpadding else 0

    def apply(observation: Array) -> Array:
        tokens = tokenizer(observation)
        if size:
            tokens = unpad(tokens, size)
        valid, features = tokens.valid[..., None].astype(jnp.float32), tokenizer.inputs(tokens)
        return jnp.concatenate([valid, tokens.position, features], axis=-1)

    kind = "object_tokens" if are_objects else "select_tokens"
    return builder.add("tokens", kind, apply, 0, size=size, grid=tokenizer.grid)


def _add_places(builder: _Builder, torso: Params, x: int, tokens: int) -> int:
    """Adds vectors of places and the summary token, where the encoder has them."""
    network: Mosaic = builder.network
    if network.positions == "learned":
        table = torso["position_0"]["embedding"]
        columns = Tokenizer(builder.observation_shape, network.patch).grid[1]

        def add_positions(x: Array, tokens: Array) -> Array:
            cell = tokens[..., 1:3].astype(jnp.int32) @ jnp.asarray([columns, 1], jnp.int32)
            return x + jnp.asarray(table)[cell]

        params = {"table": table}
        x = builder.add(
            "position_0", "add_positions", add_positions, x, tokens, params=params, columns=columns
        )
    if network.pooling == "summary":
        summary = torso["summary_0"]["embedding"]

        def prepend(x: Array) -> Array:
            first = jnp.broadcast_to(summary, (len(x), 1, x.shape[-1]))
            return jnp.concatenate([first, x], axis=1)

        params = {"summary": summary[0]}
        x = builder.add("summary_0", "prepend_summary", prepend, x, params=params)
    return x


def _split_heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)


def _scores(query: Array, key: Array, tokens: Array, heads: int, has_bias: bool) -> Array:
    query, key = (_split_heads(x, heads) for x in (query, key))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    if not has_bias:
        return scores
    extra = (query.shape[1] - tokens.shape[1], 0)
    return scores + jnp.pad(alibi_bias(tokens[..., 1:3], heads), ((0, 0), (0, 0), extra, extra))


def _weights(scores: Array, tokens: Array) -> Array:
    extra = scores.shape[-1] - tokens.shape[1]
    valid = jnp.pad(tokens[..., 0] > 0.5, ((0, 0), (extra, 0)), constant_values=True)
    scores = jnp.where(valid[:, None, None], scores, jnp.finfo(scores.dtype).min)
    return jnp.where(valid[:, None, None], jax.nn.softmax(scores, axis=-1), 0)


def _attention_sum(weights: Array, value: Array) -> Array:
    split = _split_heads(value, weights.shape[1])
    return jnp.einsum("bhqk,bkhd->bqhd", weights, split).reshape(value.shape)


def _mean_token(x: Array, tokens: Array) -> Array:
    valid = tokens[..., :1] > 0.5
    count = jnp.maximum(jnp.sum(valid, axis=1), 1)
    return jnp.sum(jnp.where(valid, x, 0), axis=1) / count
