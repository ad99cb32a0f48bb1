"""An actor-critic network whose operators are integers from observation to action.

Operators are pytrees of int8 and int32 arrays and functions of batches. Linear layers, norms, sums
and attention scores return int32 of 15 bits; activation functions, and whatever else a linear layer
or a product reads, int8 (`quantized_max` of the policy's bits). Tokens are int8 [B, T, 3 + F]: a
flag, 1 for a token and 0 for padding; row and column; and features.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from plasticity.integer import operators
from plasticity.integer.arithmetic import MAX_BITS, Dyadic, quantized_max, requantize
from plasticity.networks.tokens import take_tokens, valid_indices

__all__ = [
    "GELU",
    "AddPositions",
    "AttentionScores",
    "AttentionSum",
    "AttentionWeights",
    "Gate",
    "IntegerConv",
    "IntegerDense",
    "IntegerNorm",
    "IntegerPolicy",
    "MaxPool",
    "MeanToken",
    "ObjectTokens",
    "Operator",
    "PrependSummary",
    "ReLU",
    "ResidualSum",
    "Round",
    "SelectTokens",
    "SummaryToken",
    "Tanh",
    "run_operators",
]

Array = Any  # jax.Array, or np.ndarray on the host


class IntegerDense(struct.PyTreeNode):
    """A linear layer over the last axes of its input, as many as its kernel has before the last."""

    kernel: Array  # int8 [*inputs, outputs]
    bias: Array  # int32 [outputs]
    rescale: Dyadic  # [outputs]

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, ..., outputs] from int8 [B, ..., *inputs]."""
        kernel = self.kernel.reshape(-1, self.kernel.shape[-1])
        leading = x.shape[: x.ndim - self.kernel.ndim + 1]
        product = operators.linear(x.reshape(*leading, len(kernel)), kernel, self.bias)
        return requantize(product, self.rescale, MAX_BITS)


class IntegerConv(struct.PyTreeNode):
    """A convolution, channels last."""

    kernel: Array  # int8 [k, k, C, D]
    bias: Array  # int32 [D]
    rescale: Dyadic  # [D]
    stride: int = struct.field(pytree_node=False)
    padding: int = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, H', W', D] from int8 [B, H, W, C]."""
        product = operators.convolution(x, self.kernel, self.bias, self.stride, self.padding)
        return requantize(product, self.rescale, MAX_BITS)


class MaxPool(struct.PyTreeNode):
    """The largest of 3 x 3 numbers at every second place, as in IMPALA's network."""

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, H', W', C] from int32 [B, H, W, C]."""
        return operators.max_pool(x)


class IntegerNorm(struct.PyTreeNode):
    """Layer norm or RMSNorm over the last axes, with a scale and a bias by channel."""

    epsilon: Array  # int32 []
    rescale: Dyadic  # [channels]: the norm's scale
    bias: Array  # int32 [channels]
    center: bool = struct.field(pytree_node=False)
    num_axes: int = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, ..., channels] from the same."""
        norm = operators.layer_norm if self.center else operators.rms_norm
        normalized = norm(x, self.epsilon, tuple(range(-self.num_axes, 0)))
        bound = quantized_max(MAX_BITS)
        return jnp.clip(requantize(normalized, self.rescale, MAX_BITS) + self.bias, -bound, bound)


class ReLU(struct.PyTreeNode):
    """ReLU."""

    rescale: Dyadic
    bits: int = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int8 from int32."""
        return requantize(operators.relu(x), self.rescale, self.bits)


class GELU(struct.PyTreeNode):
    """GELU."""

    argument: Dyadic
    rescale: Dyadic
    bits: int = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int8 from int32."""
        return requantize(operators.gelu(x, self.argument), self.rescale, self.bits)


class Tanh(struct.PyTreeNode):
    """The hyperbolic tangent."""

    argument: Dyadic
    rescale: Dyadic
    bits: int = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int8 from int32."""
        return requantize(operators.tanh(x, self.argument), self.rescale, self.bits)


class Round(struct.PyTreeNode):
    """Rounds 15 bits to few, where a linear layer or a product reads them."""

    rescale: Dyadic
    bits: int = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int8 from int32."""
        return requantize(x, self.rescale, self.bits)


class ResidualSum(struct.PyTreeNode):
    """The sum of two arrays at scales of their own."""

    x_scale: Dyadic
    y_scale: Dyadic

    def __call__(self, x: Array, y: Array) -> Array:
        """Computes int32 from two of int32."""
        return operators.residual_sum(x, y, self.x_scale, self.y_scale, MAX_BITS)


class Gate(struct.PyTreeNode):
    """The product of a gated linear unit."""

    rescale: Dyadic
    bits: int = struct.field(pytree_node=False)

    def __call__(self, x: Array, y: Array) -> Array:
        """Computes int8 from two of int8."""
        return requantize(x.astype(jnp.int32) * y, self.rescale, self.bits)


class ObjectTokens(struct.PyTreeNode):
    """Tokens of observations that are sets of objects, with their coordinates as features.

    A coordinate of place p of n is 2 p / (n - 1) - 1; 0 for padding.
    """

    rescale: Dyadic  # [2]: of 2 p - (n - 1)
    last: Array  # int32 [2]: n - 1 of rows and of columns
    bits: int = struct.field(pytree_node=False)
    size: int = struct.field(pytree_node=False)  # of tokens to keep; 0 for all

    def __call__(self, x: Array) -> Array:
        """Computes int8 [B, size, 3 + F + 2] from int8 [B, T, 3 + F]."""
        valid = x[..., 0] > 0
        if self.size:
            index, valid = valid_indices(valid, self.size)
            x = take_tokens(x, index)
        doubled = 2 * x[..., 1:3].astype(jnp.int32) - self.last
        coordinates = requantize(doubled, self.rescale, self.bits)
        joined = jnp.concatenate([x, coordinates], axis=-1)
        return jnp.where(valid[..., None], joined, jnp.int8(0))


class SelectTokens(struct.PyTreeNode):
    """Tokens of a vector, a sequence or an image: entries of the observation, and constants."""

    index: Array  # int32 [T, 3 + F]: of an entry of the flat observation; -1 for a constant
    constant: Array  # int8 [T, 3 + F]

    def __call__(self, x: Array) -> Array:
        """Computes int8 [B, T, 3 + F] from int8 [B, ...]."""
        entries = jnp.take(x.reshape(len(x), -1), self.index, axis=1, mode="clip")
        return jnp.where(self.index < 0, self.constant, entries)


class AddPositions(struct.PyTreeNode):
    """The sum of tokens and of vectors that belong to their cells of a grid."""

    table: Array  # int8 [cells, width]
    x_scale: Dyadic
    y_scale: Dyadic
    columns: int = struct.field(pytree_node=False)  # of the grid

    def __call__(self, x: Array, tokens: Array) -> Array:
        """Computes int32 [B, T, width] from the same and the tokens."""
        row, column = (tokens[..., i].astype(jnp.int32) for i in (1, 2))
        cell = jnp.clip(row * self.columns + column, 0, len(self.table) - 1)
        place = jnp.asarray(self.table)[cell]
        return operators.residual_sum(x, place, self.x_scale, self.y_scale, MAX_BITS)


class PrependSummary(struct.PyTreeNode):
    """Puts a vector in front of tokens."""

    summary: Array  # int32 [width]
    rescale: Dyadic

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, 1 + T, width] from int32 [B, T, width]."""
        x = requantize(x, self.rescale, MAX_BITS)
        summary = jnp.broadcast_to(self.summary, (len(x), 1, x.shape[-1]))
        return jnp.concatenate([summary, x], axis=1)


class AttentionScores(struct.PyTreeNode):
    """Q K^T / sqrt(d), minus the head's slope times the Manhattan distance of two tokens.

    A summary token in front is at no distance from any other.
    """

    rescale: Dyadic
    slopes: Dyadic | None  # [heads, 1, 1]: in units of the result; None for no bias
    heads: int = struct.field(pytree_node=False)

    def __call__(self, query: Array, key: Array, tokens: Array) -> Array:
        """Computes int32 [B, heads, T, T] from int8 [B, T, width] twice, and the tokens."""
        query, key = (_split_heads(x, self.heads) for x in (query, key))
        scores = requantize(operators.attention_scores(query, key), self.rescale, MAX_BITS)
        if self.slopes is None:
            return scores
        position = tokens[..., 1:3].astype(jnp.int32)
        distance = jnp.abs(position[:, :, None] - position[:, None]).sum(-1, dtype=jnp.int32)
        extra = query.shape[1] - tokens.shape[1]
        distance = jnp.pad(distance, ((0, 0), (extra, 0), (extra, 0)))[:, None]
        bound = quantized_max(MAX_BITS)
        return jnp.clip(scores - requantize(distance, self.slopes, MAX_BITS), -bound, bound)


class AttentionWeights(struct.PyTreeNode):
    """Softmax of attention scores over keys that are valid, as a summary token always is."""

    argument: Dyadic

    def __call__(self, scores: Array, tokens: Array) -> Array:
        """Computes int32 [B, heads, T, T] from the same and the tokens."""
        extra = scores.shape[-1] - tokens.shape[1]
        valid = jnp.pad(tokens[..., 0] > 0, ((0, 0), (extra, 0)), constant_values=True)
        return operators.softmax(scores, self.argument, valid[:, None, None])


class AttentionSum(struct.PyTreeNode):
    """The sum of values by attention weights."""

    rescale: Dyadic
    bits: int = struct.field(pytree_node=False)

    def __call__(self, weights: Array, value: Array) -> Array:
        """Computes int8 [B, T, width] from int32 [B, heads, T, T] and int8 [B, T, width]."""
        product = operators.attention_sum(weights, _split_heads(value, weights.shape[1]))
        return requantize(product.reshape(value.shape), self.rescale, self.bits)


class SummaryToken(struct.PyTreeNode):
    """The first token."""

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, width] from int32 [B, T, width]."""
        return x[:, 0]


class MeanToken(struct.PyTreeNode):
    """The mean of valid tokens."""

    def __call__(self, x: Array, tokens: Array) -> Array:
        """Computes int32 [B, width] from int32 [B, T, width] and the tokens."""
        return operators.masked_mean(x, tokens[..., 0] > 0)


Operator = (
    IntegerDense
    | IntegerConv
    | MaxPool
    | IntegerNorm
    | ReLU
    | GELU
    | Tanh
    | Round
    | ResidualSum
    | Gate
    | ObjectTokens
    | SelectTokens
    | AddPositions
    | PrependSummary
    | AttentionScores
    | AttentionWeights
    | AttentionSum
    | SummaryToken
    | MeanToken
)


def _split_heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)


def run_operators(
    operators: Sequence[Callable[..., Array]], inputs: Sequence[Sequence[int]], observation: Array
) -> list[Array]:
    """Applies operators in turn. Returns the observation, and the result of each.

    Args:
      operators: the operators.
      inputs: of each, which of the results before it are its arguments; 0 is the observation.
      observation: a batch of observations.
    """
    results = [observation]
    for operator, numbers in zip(operators, inputs, strict=True):
        results.append(operator(*(results[number] for number in numbers)))
    return results


class IntegerPolicy(struct.PyTreeNode):
    """A policy and its value in integers.

    Attributes:
      operators: the operators in order: of the policy with its head, then those that the value has
        of its own, with its head.
      inputs: of each operator, which of the results before it are its arguments: 0 is the
        observation, and i the result of the i-th operator, from 1.
      policy: the number of the policy's head. Its greedy action takes the operators up to that.
      continuous: whether the policy's head computes the mean of a continuous action, not logits.
    """

    operators: tuple[Operator, ...]
    inputs: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
    policy: int = struct.field(pytree_node=False)
    continuous: bool = struct.field(pytree_node=False)

    def __call__(self, observation: Array) -> tuple[Array, Array]:
        """Computes the policy's head int32 [B, A] and values int32 [B] from int8 observations.

        Both are in units of scales of their own, see `Conversion`.
        """
        results = run_operators(self.operators, self.inputs, observation)
        return results[self.policy], results[-1][:, 0]

    def act(self, observation: Array) -> Array:
        """Returns the greedy actions of int8 observations [B, ...].

        Discrete ones are int32 [B]. Continuous ones are the means, int32 [B, A], in units of the
        scale of the policy's head.
        """
        needed = slice(0, self.policy)
        outputs = run_operators(self.operators[needed], self.inputs[needed], observation)[-1]
        return outputs if self.continuous else jnp.argmax(outputs, axis=-1).astype(jnp.int32)


def count_bytes(policy: IntegerPolicy, bits: int) -> int:
    """Counts the bytes of a policy's arrays, with kernels packed to `bits` bits a weight."""
    return sum(
        -(-x.size * bits // 8) if x.dtype == jnp.int8 else x.size * x.dtype.itemsize
        for x in jax.tree.leaves(policy)
    )
