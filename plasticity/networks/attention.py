"""The parts of an attention encoder, each of which MosaicBERT replaces or keeps of BERT's.

Read from the published code of MosaicBERT (Portes et al. 2023): mosaicml/examples, benchmarks/bert.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.networks.linalg import sequence_after

__all__ = [
    "AttentionLayer",
    "alibi_bias",
    "alibi_slopes",
    "attend",
    "attention_weights",
    "layer_norm",
]

Array = jax.Array

_EPSILON = 1e-5


class AttentionLayer(NamedTuple):
    """An attention layer on a batch, for probes. Rows of padding are 0."""

    weights: Array  # [B, heads, T, T]: of each query, over keys
    tokens: Array  # [B, T, width]: after the layer's block
    valid: Array  # bool [B, T]: which tokens are no padding


def alibi_slopes(heads: int) -> np.ndarray:
    """Returns the slope of each head (Press et al. 2022). float64 [heads].

    They are 2^(-8 i / H), i = 1..H, for H a power of two. For other numbers, those of the power of
    two below are followed by every second one of twice that.
    """
    power = 2 ** int(math.log2(heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    if power < heads:
        between = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1))[::2]
        slopes = np.concatenate([slopes, between[: heads - power]])
    return slopes


def alibi_bias(position: Array, heads: int) -> Array:
    """Computes attention with linear biases, symmetric as in an encoder. [B, heads, T, T].

    The bias of two tokens is minus the head's slope times their Manhattan distance, which is
    |i - j| for positions (i, 0).

    Args:
      position: [B, T, 2].
      heads: the number of heads.
    """
    distance = jnp.sum(jnp.abs(position[:, :, None] - position[:, None]), axis=-1)
    return -jnp.asarray(alibi_slopes(heads), distance.dtype)[:, None, None] * distance[:, None]


def attention_weights(query: Array, key: Array, bias: Array | None, valid: Array) -> Array:
    """Computes softmax(Q K^T / sqrt(d) + bias) over valid keys. [B, heads, T, T].

    It is computed in float32 at least.

    Args:
      query: [B, S, heads, d].
      key: [B, T, heads, d].
      bias: [B, heads, S, T], if there is one.
      valid: which keys are no padding, bool [B, T].
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype)
    scores = scores / math.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias.astype(dtype)
    scores = jnp.where(valid[:, None, None], scores, jnp.finfo(dtype).min)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    query: Array, key: Array, value: Array, bias: Array | None, valid: Array, fused: bool
) -> Array:
    """Computes multi-head attention. [B, T, heads, d].

    Args:
      query: [B, S, heads, d].
      key: [B, T, heads, d].
      value: [B, T, heads, d].
      bias: [B, heads, S, T], if there is one. It is not differentiated.
      valid: which keys are no padding, bool [B, T].
      fused: whether to call `jax.nn.dot_product_attention`, on a GPU by cuDNN where that can.
    """
    if bias is not None:
        bias = jax.lax.stop_gradient(bias).astype(query.dtype)
    path = attention_path(query, key, fused)
    if path == "plain":
        weights = attention_weights(query, key, bias, valid).astype(query.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    mask = valid[:, None, None]
    if path == "xla":
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, implementation="xla"
        )
    # Under vmap cuDNN refuses a bias or a mask that a stack shares: one of both that is not.
    finite = jnp.zeros((), query.dtype) if bias is None else bias
    masked = jnp.where(mask, finite, jnp.finfo(query.dtype).min)
    shape = (len(query), query.shape[2], query.shape[1], key.shape[1])
    masked = jax.lax.stop_gradient(sequence_after(jnp.broadcast_to(masked, shape), query))
    return jax.nn.dot_product_attention(query, key, value, bias=masked, implementation="cudnn")


def attention_path(
    query: Array | jax.ShapeDtypeStruct,
    key: Array | jax.ShapeDtypeStruct,
    fused: bool,
    platform: str | None = None,
) -> Literal["cudnn", "xla", "plain"]:
    """Returns how attention is computed: fused by cuDNN, by JAX's function on XLA, or written out.

    cuDNN's takes bf16 or float16, heads whose size is a multiple of 8 and at most 128, and even
    numbers of tokens where there is a bias. Float64 is written out: JAX's function rounds it.

    Args:
      query: [B, S, heads, d].
      key: [B, T, heads, d].
      fused: whether to fuse where possible.
      platform: that of JAX's default device, if not given.
    """
    if not fused or query.dtype == jnp.float64:
        return "plain"
    is_gpu = (platform or jax.default_backend()) == "gpu"
    size, lengths = query.shape[-1], (query.shape[1], key.shape[1])
    is_half = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = size % 8 == 0 and size <= 128 and not any(length % 2 for length in lengths)
    return "cudnn" if is_gpu and is_half and fits else "xla"


def layer_norm(x: Array, scale: Array, bias: Array, low_precision: bool) -> Array:
    """Computes layer norm over the last axis, with epsilon 1e-5, in the type of `x`.

    Mean and variance are computed in float32 at least, in two passes.

    Args:
      x: [..., n].
      scale: [n].
      bias: [n].
      low_precision: whether input, scale, bias and output are rounded to bf16, as in MosaicBERT.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dtype = jnp.bfloat16 if low_precision else wide
    inputs = x.astype(dtype).astype(wide)
    centered = inputs - jnp.mean(inputs, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normalized = (centered * jax.lax.rsqrt(variance + _EPSILON)).astype(dtype)
    return (normalized * scale.astype(dtype) + bias.astype(dtype)).astype(x.dtype)
