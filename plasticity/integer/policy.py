"""An actor-critic network whose operators are integers from observation to action.

Operators are pytrees of int8 and int32 arrays and functions of a batch. A linear layer and a norm
return int32 of 15 bits, an activation function int8 (`quantized_max` of the policy's bits).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from plasticity.integer import operators
from plasticity.integer.arithmetic import MAX_BITS, Dyadic, quantized_max, requantize

__all__ = [
    "GELU",
    "IntegerConv",
    "IntegerDense",
    "IntegerNorm",
    "IntegerPolicy",
    "Operator",
    "ReLU",
    "Tanh",
    "apply_operators",
]

Array = Any  # jax.Array, or np.ndarray on the host


class IntegerDense(struct.PyTreeNode):
    """A linear layer, which flattens its inputs."""

    kernel: Array  # int8 [inputs, outputs]
    bias: Array  # int32 [outputs]
    rescale: Dyadic  # [outputs]

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, outputs] from int8 [B, ...]."""
        product = operators.linear(x.reshape(x.shape[0], -1), self.kernel, self.bias)
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


class IntegerNorm(struct.PyTreeNode):
    """Layer norm or RMSNorm over all axes but the first, with a scale and a bias by channel."""

    epsilon: Array  # int32 []
    rescale: Dyadic  # [channels]: the norm's scale
    bias: Array  # int32 [channels]
    center: bool = struct.field(pytree_node=False)

    def __call__(self, x: Array) -> Array:
        """Computes int32 [B, ..., channels] from the same."""
        norm = operators.layer_norm if self.center else operators.rms_norm
        normalized = norm(x, self.epsilon, tuple(range(1, x.ndim)))
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


Operator = IntegerDense | IntegerConv | IntegerNorm | ReLU | GELU | Tanh


def apply_operators(operators: tuple[Operator, ...], x: Array) -> Array:
    """Applies operators one after the other."""
    for operator in operators:
        x = operator(x)
    return x


class IntegerPolicy(struct.PyTreeNode):
    """A policy and its value in integers.

    Attributes:
      torso: the hidden layers of the policy, and of the value if they share a torso.
      policy: the head of the policy.
      value_torso: the hidden layers of the value; None if it shares the policy's.
      value: the head of the value.
    """

    torso: tuple[Operator, ...]
    policy: IntegerDense
    value_torso: tuple[Operator, ...] | None
    value: IntegerDense

    def __call__(self, observation: Array) -> tuple[Array, Array]:
        """Computes logits int32 [B, A] and values int32 [B] from int8 observations [B, ...].

        Both are in units of scales of their own, see `Scales`.
        """
        features = value_features = apply_operators(self.torso, observation)
        if self.value_torso is not None:
            value_features = apply_operators(self.value_torso, observation)
        return self.policy(features), self.value(value_features)[:, 0]

    def act(self, observation: Array) -> Array:
        """Returns the greedy actions of int8 observations. int32 [B]."""
        logits = self.policy(apply_operators(self.torso, observation))
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def count_bytes(policy: IntegerPolicy, bits: int) -> int:
    """Counts the bytes of a policy's arrays, with kernels packed to `bits` bits a weight."""
    return sum(
        -(-x.size * bits // 8) if x.dtype == jnp.int8 else x.size * x.dtype.itemsize
        for x in jax.tree.leaves(policy)
    )
