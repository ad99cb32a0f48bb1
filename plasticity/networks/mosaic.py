"""The Mosaic encoder: a policy of attention over tokens, whose pieces are settings."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.activations import Activation, get_activation
from plasticity.networks.actor_critic import ActorCriticNetwork
from plasticity.networks.attention import (
    AttentionLayer,
    alibi_bias,
    attend,
    attention_path,
    attention_weights,
    layer_norm,
)
from plasticity.networks.base import TokenPrediction
from plasticity.networks.initializers import uniform
from plasticity.networks.tokens import Tokenizer, Tokens, repeat_valid, unpad
from plasticity.networks.torso import NORMS, Dense
from plasticity.struct import SettingError, static_field

__all__ = ["Mosaic"]

Array = jax.Array


class EncoderLayers(NamedTuple):
    """The layers of an encoder on a batch, by name: see `Output`.

    A hidden layer of a block has a row for each token. Behind the valid tokens these are repeated
    in turn, so that padding does not count.
    """

    activations: dict[str, Array]  # [B, T, units] in blocks, [B, units] of the last
    preactivations: dict[str, Array]
    attention: dict[str, AttentionLayer]
    tokens: TokenPrediction | None = None  # where the encoder predicts the features of its tokens


class Pieces(NamedTuple):
    """How an encoder computes; see `Mosaic` for each."""

    positions: str
    gated: bool
    unpadding: bool
    fused_attention: bool
    low_precision_norm: bool
    norm_order: str
    pooling: str


class LinearParams(NamedTuple):
    """The parameters of a linear layer."""

    kernel: Array  # [inputs, features]
    bias: Array | None  # [features]


class Linear(nn.Module):
    """A linear layer that returns its parameters, which are drawn as those of `Dense`."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> LinearParams:
        bound = 1 / math.sqrt(inputs)
        kernel = self.param("kernel", uniform, (inputs, self.features), bound)
        bias = self.param("bias", uniform, (self.features,), bound) if self.use_bias else None
        return LinearParams(kernel, bias)


class BlockNorm(nn.Module):
    """A layer norm with learned scale and bias."""

    low_precision: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", lambda _: jnp.ones(x.shape[-1]))
        bias = self.param("bias", lambda _: jnp.zeros(x.shape[-1]))
        return layer_norm(x, scale, bias, self.low_precision)


class Embedding(nn.Module):
    """A table of vectors, drawn from U(-1/sqrt(width), 1/sqrt(width))."""

    size: int
    width: int

    @nn.compact
    def __call__(self) -> Array:
        bound = 1 / math.sqrt(self.width)
        return self.param("embedding", uniform, (self.size, self.width), bound)


class Encoder(nn.Module):
    """An encoder of tokens, and a hidden layer on the pooled result.

    Entries of block i are `attention_<i>_query`, `_key`, `_value`, `_output` and `_norm`; the
    hidden layer `hidden_<i>`, of a GLU the half that is activated, with `up_<i>`, the other half;
    `down_<i>`, which writes to the tokens; and `down_<i>_norm`. The last hidden layer is that on
    the pooled result, BERT's pooler.

    With masked modeling, `mask_0` is added to tokens whose features are masked, and the linear
    layer `prediction_<depth>` predicts the features of each token.

    Attributes:
      tokenizer: makes tokens of observations.
      width: the width of a token.
      depth: the number of blocks.
      heads: the number of heads.
      mlp_width: the number of units of a block's hidden layer.
      activation: the activation function of hidden layers.
      norm: the normalization of preactivations, a name in `NORMS`.
      pieces: how it computes.
      masked_modeling: whether it predicts the features of its tokens.
    """

    tokenizer: Tokenizer
    width: int
    depth: int
    heads: int
    mlp_width: int
    activation: Activation
    norm: str
    pieces: Pieces
    masked_modeling: bool = False

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are computed for an observation, with summary and padding."""
        if not self.pieces.unpadding:
            return self.tokenizer.capacity + self._has_summary
        size = self.tokenizer.max_tokens + self._has_summary
        return size + size % 2  # even, as cuDNN's attention wants

    def attention_path(self, dtype: Any, platform: str) -> str:
        """Returns how a platform computes attention in a type; see `attention_path`."""
        shape = (1, self.num_tokens, self.heads, self.width // self.heads)
        query = jax.ShapeDtypeStruct(shape, dtype)
        return attention_path(query, query, self.pieces.fused_attention, platform)

    @nn.compact
    def __call__(self, observation: Array | Tokens) -> tuple[Array, EncoderLayers]:
        """Computes the features of observations, [B, *shape] -> [B, width].

        In place of observations it takes tokens, such as those of an earlier output with some of
        their features masked.
        """
        pieces = self.pieces
        layers = EncoderLayers({}, {}, {})
        tokens = observation if isinstance(observation, Tokens) else self._tokens(observation)
        x, bias, valid = self._embed(tokens)
        for i in range(self.depth):
            name = f"attention_{i}"
            attended, weights = self._attend(name, self._before(name, x), bias, valid)
            x = self._after(name, x + attended)
            transformed, hidden = self._transform(i, self._before(f"down_{i}", x))
            x = self._after(f"down_{i}", x + transformed)
            for outputs, rows in zip(layers[:2], hidden, strict=True):
                outputs[f"hidden_{i}"] = repeat_valid(rows, valid)
            layers.attention[name] = AttentionLayer(
                weights=jnp.where(valid[:, None, :, None], weights, 0),
                tokens=jnp.where(valid[..., None], x, 0),
                valid=valid,
            )
        if pieces.norm_order == "pre":
            x = self._normalize(f"pooling_{self.depth}_norm", x)
        if self.masked_modeling:
            rows = x[:, -tokens.valid.shape[1] :]  # without a summary
            features = Dense(self.tokenizer.num_features, name=f"prediction_{self.depth}")(rows)
            layers = layers._replace(tokens=TokenPrediction(tokens, features))
        name = f"hidden_{self.depth}"
        x = Dense(self.width // self.activation.widening, name=name)(self._pool(x, valid))
        x, layers.preactivations[name] = self._activate(self.depth, x)
        layers.activations[name] = x
        return x, layers

    def _tokens(self, observation: Array) -> Tokens:
        """Returns the tokens of observations, without most of the padding if it is left out."""
        tokens = self.tokenizer(observation)
        if not self.pieces.unpadding:
            return tokens
        return unpad(tokens, self.num_tokens - self._has_summary)

    def _embed(self, tokens: Tokens) -> tuple[Array, Array | None, Array]:
        """Returns tokens [B, T, width], the bias of attention, and which tokens are valid.

        A summary token is the first, valid, and at no distance from any other.
        """
        pieces = self.pieces
        x = Dense(self.width, name="embedding_0")(self.tokenizer.inputs(tokens))
        if self.masked_modeling:
            mask = Embedding(1, self.width, name="mask_0")()
            if tokens.masked is not None:
                x = x + jnp.where(tokens.masked[..., None], mask, 0)
        if pieces.positions == "learned":
            rows, columns = self.tokenizer.grid
            table = Embedding(rows * columns, self.width, name="position_0")()
            cell = tokens.position.astype(jnp.int32) @ jnp.asarray([columns, 1], jnp.int32)
            x = x + table[cell]
        valid = tokens.valid
        bias = alibi_bias(tokens.position, self.heads) if pieces.positions == "alibi" else None
        if self._has_summary:
            summary = Embedding(1, self.width, name="summary_0")()
            x = jnp.concatenate([jnp.broadcast_to(summary, (len(x), 1, self.width)), x], axis=1)
            valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
            if bias is not None:
                bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0), (1, 0)))
        return self._normalize("embedding_0_norm", x), bias, valid

    def _attend(self, name: str, x: Array, bias: Array | None, valid: Array) -> tuple[Array, Array]:
        """Returns what attention adds to tokens [B, T, width], and its weights."""
        names = [f"{name}_{part}" for part in ("query", "key", "value")]
        products = self._products(x, names, self.width)
        query, key, value = (
            product.reshape(*x.shape[:2], self.heads, self.width // self.heads)
            for product in products
        )
        attended = attend(query, key, value, bias, valid, self.pieces.fused_attention)
        # Computed only where they are read, as by probes.
        weights = attention_weights(query, key, bias, valid)
        return Dense(self.width, name=f"{name}_output")(attended.reshape(x.shape)), weights

    def _transform(self, i: int, x: Array) -> tuple[Array, tuple[Array, Array]]:
        """Returns what a block's MLP adds to tokens, and its activations and preactivations."""
        units = self.mlp_width // self.activation.widening
        if self.pieces.gated:
            gate, up = self._products(x, [f"hidden_{i}", f"up_{i}"], units, use_bias=False)
            activations, preactivations = self._activate(i, gate)
            activations = activations * up
        else:
            activations, preactivations = self._activate(i, Dense(units, name=f"hidden_{i}")(x))
        down = Dense(self.width, name=f"down_{i}")(activations)
        return down, (activations, preactivations)

    def _products(
        self, x: Array, names: Sequence[str], features: int, use_bias: bool = True
    ) -> list[Array]:
        """Computes several linear layers of one input as one product."""
        linear = [Linear(features, use_bias, name=name)(x.shape[-1]) for name in names]
        product = x @ jnp.concatenate([layer.kernel for layer in linear], axis=1)
        biases = [layer.bias for layer in linear if layer.bias is not None]
        if biases:
            product = product + jnp.concatenate(biases)
        return jnp.split(product, len(names), axis=-1)

    def _activate(self, i: int, x: Array) -> tuple[Array, Array]:
        """Returns activations and preactivations of a hidden layer, after its norm."""
        if (norm := NORMS[self.norm]) is not None:
            x = norm(f"norm_{i}", (-1,))(x)
        return self.activation.build(f"activation_{i}")(x), x

    def _normalize(self, name: str, x: Array) -> Array:
        return BlockNorm(self.pieces.low_precision_norm, name=name)(x)

    def _before(self, name: str, x: Array) -> Array:
        return self._normalize(f"{name}_norm", x) if self.pieces.norm_order == "pre" else x

    def _after(self, name: str, x: Array) -> Array:
        return self._normalize(f"{name}_norm", x) if self.pieces.norm_order == "post" else x

    @property
    def _has_summary(self) -> bool:
        return self.pieces.pooling == "summary"

    def _pool(self, x: Array, valid: Array) -> Array:
        """Returns the summary token, or the mean of valid tokens. [B, width]."""
        if self._has_summary:
            return x[:, 0]
        count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1).astype(x.dtype)
        return jnp.sum(jnp.where(valid[..., None], x, 0), axis=1) / count


class Mosaic(ActorCriticNetwork):
    """An attention encoder over tokens, of MosaicBERT's pieces (Portes et al. 2023).

    Tokens are objects (`env.observation=objects`), the entries of a vector, or patches of an image.
    With all pieces turned the other way it is BERT's block (Devlin et al. 2019): learned positions,
    an MLP, padding, plain attention, and layer norm in full precision.

    In the published code attention pads tokens again, and only the rest is saved. Here the valid
    tokens of each observation are moved together, to as many as an observation can have: attention
    is saved as well, none can be lost, and no two observations share a row. A GLU's hidden layer is
    as wide as an MLP's, as in the published code, and has half again as many weights. The heads
    read the pooled result through a hidden layer, as in BERT's pooler.

    Dropout is left out. Policy and value share the encoder, unless `shared` is false.

    All attributes of `ActorCriticNetwork` can be set as well. Its torso is an encoder.

    Attributes:
      width: the width of a token.
      depth: the number of blocks.
      heads: the number of heads, which divides the width.
      mlp_width: the number of units of a block's hidden layer.
      activation: the activation function of hidden layers, as for `Network`.
      norm: the normalization of preactivations of hidden layers, as for `Network`.
      positions: `alibi`, biases of attention by distance (Press et al. 2022), in a grid the
        Manhattan distance; `learned`, a vector for each place; or `none`.
      gated: whether hidden layers are gated linear units (Shazeer 2020), or those of an MLP.
      unpadding: whether the network computes valid tokens alone.
      fused_attention: whether attention is `jax.nn.dot_product_attention`, on a GPU cuDNN's where
        that can be, or written out.
      low_precision_norm: whether block norms round to bf16 around float32 sums.
      norm_order: `post`, as in BERT: the sum of a residual connection is normalized; or `pre`: its
        input is.
      pooling: `summary`, a learned token that attends to all others; or `mean`, of valid tokens.
      patch: the height and width of an image's patches.
      masked_modeling: whether the policy's encoder has a mask token, and predicts the features of
        tokens, as `plasticity.networks.masked_modeling_loss` needs. `MaskedModeling` sets it.
    """

    width: int = static_field(64, ge=1)
    depth: int = static_field(2, ge=1, le=100)
    heads: int = static_field(4, ge=1)
    mlp_width: int = static_field(128, ge=1)
    activation: str = static_field("gelu")
    norm: str = static_field("none", choices=lambda: tuple(NORMS))
    positions: str = static_field("alibi", choices=("alibi", "learned", "none"))
    gated: bool = static_field(True)
    unpadding: bool = static_field(True)
    fused_attention: bool = static_field(True)
    low_precision_norm: bool = static_field(True)
    norm_order: str = static_field("post", choices=("post", "pre"))
    pooling: str = static_field("summary", choices=("summary", "mean"))
    patch: int = static_field(8, ge=1)
    masked_modeling: bool = static_field(False)

    def torso(self, observation_shape: tuple[int, ...], name: str | None = None) -> Encoder:
        """Builds the encoder.

        Args:
          observation_shape: the shape of one observation.
          name: of the module.

        Raises:
          SettingError: observations have no tokens, or widths do not fit.
        """
        tokenizer, activation = Tokenizer(observation_shape, self.patch), self._activation()
        tokenizer.check()
        if self.width % self.heads:
            raise SettingError(
                "network.heads", self.heads, f"must divide network.width={self.width}"
            )
        pieces = Pieces(*(getattr(self, field) for field in Pieces._fields))
        return Encoder(
            tokenizer,
            self.width,
            self.depth,
            self.heads,
            self.mlp_width,
            activation,
            self.norm,
            pieces,
            masked_modeling=self.masked_modeling and name == "torso",
            name=name,
        )

    def attention_path(
        self, observation_shape: tuple[int, ...], precision: str, platform: str
    ) -> str:
        """Returns how a platform computes attention at a precision: `cudnn`, `xla` or `plain`.

        Args:
          observation_shape: the shape of one observation.
          precision: that of the run.
          platform: a name of JAX's, such as `cpu` or `gpu`.
        """
        dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
        return self.torso(observation_shape).attention_path(dtype, platform)

    def _activation(self) -> Activation:
        activation = get_activation(self.activation)
        if self.gated and activation.widening > 1:
            raise SettingError(
                "network.gated",
                True,
                f"must be false for the activation {self.activation}, whose outputs are more than "
                "a unit's one",
            )
        for field in ("width", "mlp_width"):
            if getattr(self, field) % activation.widening:
                raise SettingError(
                    f"network.{field}",
                    getattr(self, field),
                    f"must be a multiple of {activation.widening} for the activation "
                    f"{self.activation}",
                )
        return activation
