"""The Mosaic encoder: a policy of attention over tokens, whose pieces are settings."""

import math
from collections.abc import Callable
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
from plasticity.networks.torso import NORMS, Dense, linear
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


class BlockOutput(NamedTuple):
    """What a block computes of the first S of T tokens."""

    x: Array  # [B, S, width]
    hidden: tuple[Array, Array]  # activations and preactivations of its MLP, [B, S, units]
    weights: Array  # [B, heads, S, T]: of each query, over keys


def _unbiased(module: nn.Module, x: Array, features: int) -> Array:
    """Computes a linear layer without bias, whose kernel is drawn as that of `linear`."""
    bound = 1 / math.sqrt(x.shape[-1])
    return x @ module.param("kernel", uniform, (x.shape[-1], features), bound)


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
        """Returns how a platform computes attention of the first block: see `attention_path`.

        In the last block a summary token alone attends, whose path is never cuDNN's.
        """
        size, heads = self.width // self.heads, self.heads
        queries = 1 if self.depth == 1 and self._has_summary else self.num_tokens
        query = jax.ShapeDtypeStruct((1, queries, heads, size), dtype)
        key = jax.ShapeDtypeStruct((1, self.num_tokens, heads, size), dtype)
        return attention_path(query, key, self.pieces.fused_attention, platform)

    @nn.compact
    def __call__(self, observation: Array | Tokens) -> tuple[Array, EncoderLayers]:
        """Computes the features of observations, [B, *shape] -> [B, width].

        In place of observations it takes tokens, such as those of an earlier output with some of
        their features masked.
        """
        layers = EncoderLayers({}, {}, {})
        tokens = observation if isinstance(observation, Tokens) else self._tokens(observation)
        x, bias, valid = self._embed(tokens)
        pooled = x
        for i in range(self.depth):
            block = self._block(i)
            output = block(x, bias, valid, x.shape[1])
            # The heads read the summary alone: where nothing reads the other tokens of the last
            # block, as in training, the compiler leaves them out.
            is_last = i == self.depth - 1
            pooled = block(x, bias, valid, 1).x if is_last and self._has_summary else output.x
            x = output.x
            for outputs, rows in zip(layers[:2], output.hidden, strict=True):
                outputs[f"hidden_{i}"] = repeat_valid(rows, valid)
            layers.attention[f"attention_{i}"] = AttentionLayer(
                weights=jnp.where(valid[:, None, :, None], output.weights, 0),
                tokens=jnp.where(valid[..., None], x, 0),
                valid=valid,
            )
        if self.pieces.norm_order == "pre":
            norm = self._norm(f"pooling_{self.depth}_norm")
            x, pooled = norm(x), norm(pooled)
        if self.masked_modeling:
            rows = x[:, -tokens.valid.shape[1] :]  # without a summary
            features = Dense(self.tokenizer.num_features, name=f"prediction_{self.depth}")(rows)
            layers = layers._replace(tokens=TokenPrediction(tokens, features))
        name = f"hidden_{self.depth}"
        x = Dense(self.width // self.activation.widening, name=name)(self._pool(pooled, valid))
        x, layers.preactivations[name] = self._activation(self.depth)(x)
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
        return self._norm("embedding_0_norm")(x), bias, valid

    def _block(self, i: int) -> Callable[[Array, Array | None, Array, int], BlockOutput]:
        """Builds a block, which computes the first `count` tokens of x [B, T, width] from all."""
        attention = self._attention(f"attention_{i}")
        mlp = self._mlp(i)
        norms = self._norm(f"attention_{i}_norm"), self._norm(f"down_{i}_norm")
        is_pre = self.pieces.norm_order == "pre"
        before, after = (norms, _NO_NORMS) if is_pre else (_NO_NORMS, norms)

        def block(x: Array, bias: Array | None, valid: Array, count: int) -> BlockOutput:
            attended, weights = attention(before[0](x), bias, valid, count)
            x = after[0](x[:, :count] + attended)
            transformed, hidden = mlp(before[1](x))
            return BlockOutput(after[1](x + transformed), hidden, weights)

        return block

    def _attention(self, name: str) -> Callable[..., tuple[Array, Array]]:
        """Builds an attention layer, which returns what it adds to tokens, and its weights."""
        parts = ("query", "key", "value", "output")
        to_query, to_key, to_value, output = (
            Dense(self.width, name=f"{name}_{part}") for part in parts
        )

        def attention(
            x: Array, bias: Array | None, valid: Array, count: int
        ) -> tuple[Array, Array]:
            products = to_query(x[:, :count]), to_key(x), to_value(x)
            query, key, value = (
                product.reshape(*product.shape[:2], self.heads, self.width // self.heads)
                for product in products
            )
            bias = None if bias is None else bias[:, :, :count]
            attended = attend(query, key, value, bias, valid, self.pieces.fused_attention)
            # Computed only where they are read, as by probes.
            weights = attention_weights(query, key, bias, valid)
            return output(attended.reshape(*attended.shape[:2], self.width)), weights

        return attention

    def _mlp(self, i: int) -> Callable[[Array], tuple[Array, tuple[Array, Array]]]:
        """Builds a block's MLP.

        It returns what it adds to tokens, and its activations and preactivations.
        """
        units, gated = self.mlp_width // self.activation.widening, self.pieces.gated
        hidden = Dense(units, _unbiased if gated else linear, name=f"hidden_{i}")
        up = Dense(units, _unbiased, name=f"up_{i}") if gated else None
        activation, down = self._activation(i), Dense(self.width, name=f"down_{i}")

        def mlp(x: Array) -> tuple[Array, tuple[Array, Array]]:
            activations, preactivations = activation(hidden(x))
            if up is not None:
                activations = activations * up(x)
            return down(activations), (activations, preactivations)

        return mlp

    def _activation(self, i: int) -> Callable[[Array], tuple[Array, Array]]:
        """Builds an activation, which returns activations and preactivations, after its norm."""
        build_norm = NORMS[self.norm]
        norm = _identity if build_norm is None else build_norm(f"norm_{i}", (-1,))
        activation = self.activation.build(f"activation_{i}")

        def activate(x: Array) -> tuple[Array, Array]:
            x = norm(x)
            return activation(x), x

        return activate

    def _norm(self, name: str) -> BlockNorm:
        return BlockNorm(self.pieces.low_precision_norm, name=name)

    @property
    def _has_summary(self) -> bool:
        return self.pieces.pooling == "summary"

    def _pool(self, x: Array, valid: Array) -> Array:
        """Returns the summary token, or the mean of valid tokens. [B, width]."""
        if self._has_summary:
            return x[:, 0]
        count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1).astype(x.dtype)
        return jnp.sum(jnp.where(valid[..., None], x, 0), axis=1) / count


def _identity(x: Array) -> Array:
    return x


_NO_NORMS = (_identity, _identity)


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

        It is that of the first block. In the last one a summary token alone attends, without cuDNN.

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
