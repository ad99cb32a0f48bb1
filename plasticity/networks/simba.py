"""SimBa and SimBaV2: torsos of residual blocks for vectors, made for scaling up."""

import math
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.activations import Activation, get_activation
from plasticity.networks.actor_critic import ActorCriticNetwork
from plasticity.networks.base import Params
from plasticity.networks.initializers import he_normal, orthogonal, redraw_kernels, uniform
from plasticity.networks.param_tree import value_heads
from plasticity.networks.torso import NORMS, Dense, Layers, Linear
from plasticity.struct import SettingError, static_field

__all__ = ["SimBa", "SimBaV2"]

Array = jax.Array

_TORSOS = ("torso", "value_torso")


class BlockSizes(NamedTuple):
    """The sizes of a torso of residual blocks."""

    width: int  # of the residual stream
    depth: int  # the number of blocks
    hidden: int  # units of a block's hidden layer, after the activation


class SimBaTorso(nn.Module):
    """A linear layer, residual blocks x + MLP(LayerNorm(x)), and a final layer norm.

    Entries are `embedding_0`; in block i `down_<i>_norm`, the hidden layer `hidden_<i>`, and
    `down_<i>`, which writes to the stream; and `features_<last>_norm`.
    """

    sizes: BlockSizes
    activation: Activation
    norm: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Layers]:
        """Computes the features of observations, [B, *shape] -> [B, width]."""
        layers = Layers({}, {})
        width, depth, hidden = self.sizes
        x = Dense(width, name="embedding_0")(x.reshape(len(x), -1))
        for i in range(depth):
            name = f"hidden_{i}"
            inner = _layer_norm(f"down_{i}_norm", x)
            inner = Dense(hidden // self.activation.widening, name=name)(inner)
            if (norm := NORMS[self.norm]) is not None:
                inner = norm(f"norm_{i}", (-1,))(inner)
            layers.preactivations[name] = inner
            inner = layers.activations[name] = self.activation.build(f"activation_{i}")(inner)
            x = x + Dense(width, name=f"down_{i}")(inner)
        x = layers.activations["features"] = _layer_norm(f"features_{depth - 1}_norm", x)
        return x, layers


class SimBaV2Torso(nn.Module):
    """Residual blocks on the unit sphere: see `SimBaV2`.

    Entries are `embedding_0` with `embedding_0_scaler`; and in block i `hidden_<i>` with
    `scaler_<i>`, `down_<i>`, which writes to the stream, and `alpha_<i>`, the learned rate of the
    interpolation.
    """

    sizes: BlockSizes
    activation: Activation
    input_shift: float

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Layers]:
        """Computes the features of observations, [B, *shape] -> [B, width], each of length 1."""
        layers = Layers({}, {})
        width, depth, hidden = self.sizes
        scale = math.sqrt(2 / width)
        x = x.reshape(len(x), -1).astype(jnp.result_type(x, float))
        shift = jnp.full((len(x), 1), self.input_shift, x.dtype)
        x = l2_normalize(jnp.concatenate([x, shift], axis=-1))
        x = Scaler(scale, name="embedding_0_scaler")(Kernel(width, name="embedding_0")(x))
        x = l2_normalize(x)
        for i in range(depth):
            name = f"hidden_{i}"
            inner = Kernel(hidden // self.activation.widening, name=name)(x)
            inner = Scaler(scale * math.sqrt(width / hidden), name=f"scaler_{i}")(inner)
            layers.preactivations[name] = inner
            inner = layers.activations[name] = self.activation.build(f"activation_{i}")(inner)
            # So that there is a direction where all units are 0.
            written = l2_normalize(Kernel(width, name=f"down_{i}")(inner + 1e-8))
            alpha = Scaler(1 / math.sqrt(width), 1 / (depth + 1), name=f"alpha_{i}")
            x = l2_normalize(x + alpha(written - x))
        layers.activations["features"] = x
        return x, layers


class Kernel(nn.Module):
    """A linear layer without bias."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        return x @ self.param("kernel", uniform, shape, 1 / math.sqrt(x.shape[-1]))


class Scaler(nn.Module):
    """A trained factor of each unit. A parameter of `scale` stands for the factor `initial`.

    Adam changes parameters by the learning rate, so that a small scale makes factors learn fast.
    """

    scale: float
    initial: float | None = None  # `scale`, if not given

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", lambda _: jnp.full(x.shape[-1], self.scale, float))
        return scale * (1.0 if self.initial is None else self.initial / self.scale) * x


def linear_on_sphere(module: nn.Module, x: Array, features: int) -> Array:
    """Computes SimBaV2's head, W2 (s * (W1 x)) + b, with parameters of a module.

    W1 is the entry `input`, and W2 and b are `kernel` and `bias`, as in other heads.
    """
    inputs = x.shape[-1]
    x = Kernel(inputs, name="input")(x) * module.param("scale", lambda _: jnp.ones(inputs))
    kernel = module.param("kernel", uniform, (inputs, features), 1 / math.sqrt(inputs))
    return x @ kernel + module.param("bias", lambda _: jnp.zeros(features))


def l2_normalize(x: Array, axis: int = -1) -> Array:
    """Divides by the 2-norm along an axis, but at least by 1e-8."""
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))


class _ResidualNetwork(ActorCriticNetwork):
    """What both have in common."""

    width: int = static_field(128, ge=1, kw_only=True)
    depth: int = static_field(2, ge=1, le=100, kw_only=True)
    expansion: int = static_field(4, ge=1, kw_only=True)
    activation: str = static_field("relu", kw_only=True)

    def _blocks(self) -> tuple[BlockSizes, Activation]:
        """Returns sizes and activation. Raises `SettingError` if they do not go together."""
        activation, hidden = get_activation(self.activation), self.expansion * self.width
        if hidden % activation.widening:
            raise SettingError(
                "network.width",
                self.width,
                f"times expansion must be a multiple of {activation.widening} for the activation "
                f"{self.activation}",
            )
        return BlockSizes(self.width, self.depth, hidden), activation


class SimBa(_ResidualNetwork):
    """SimBa's torso: residual blocks with layer norm, of vectors (Lee et al. 2024).

    x <- x + W2 relu(W1 LayerNorm(x)) in each block, between a linear layer of the observation and a
    final layer norm, as in the authors' code. There observations are normalized by running
    statistics: `agent.normalize_observations=true`. Kernels of blocks are drawn from He's normal
    distribution and the first is orthogonal, as there; those of the heads are orthogonal with
    CleanRL's gains for PPO, 0.01 for the policy and 1 for values (the authors' SAC has 1). Their
    actor has a width of 128 and one block, their critic 512 and two.

    Units are those of the hidden layers within the blocks. `Output.activations` also has the
    features that the heads read, as "features".

    All attributes of `ActorCriticNetwork` can be set as well.

    Attributes:
      width: the width of the residual stream.
      depth: the number of blocks.
      expansion: the width of a block's hidden layer, in widths of the stream.
      activation: the activation function of hidden layers, as for `Network`.
      norm: the normalization of preactivations of hidden layers, as for `Network`; beside the layer
        norms that are SimBa's own.
    """

    norm: str = static_field("none", choices=lambda: tuple(NORMS))

    def torso(self, observation_shape: tuple[int, ...], name: str | None = None) -> SimBaTorso:
        """Builds the torso. Raises `SettingError` if sizes do not go together."""
        return SimBaTorso(*self._blocks(), self.norm, name=name)

    def initialize(self, params: Params, key: Array) -> Params:
        def draw(path: tuple[str, ...], key: Array, kernel: Array, after: Array) -> Array:
            if path[0] in _TORSOS and path[1].startswith(("hidden_", "down_")):
                return he_normal(key, kernel, after)
            return (0.01 if path[0] == "policy" else 1.0) * orthogonal(key, kernel, after)

        return redraw_kernels(params, key, draw)


class SimBaV2(_ResidualNetwork):
    """SimBaV2's torso: features and weights on the unit sphere (Lee et al. 2025).

    With n(x) = x / ||x||, the observation with a constant appended is h = n(s * (W n([o, c]))), and
    a block computes h <- n(h + a * (n(W2 (relu(s * (W1 h)) + 1e-8)) - h)). Heads are
    W2 (s * (W1 h)) + b. s and a are trained factors of each unit. All W are orthogonal at first,
    and their columns, the weights of a unit, are divided by their length then, after every
    gradient step, and after whatever else changes parameters. Recurrent layers are not.

    That is the authors' code, whose actor and critic have the sizes of SimBa's. There observations
    are normalized by running statistics, rewards are scaled, and the value is categorical with 101
    bins from -5 to 5: `agent.normalize_observations=true agent.normalize_rewards=true
    network.value_head=two_hot 'network.value_range=[-5,5]'`. (Its loss is that of distributional
    temporal differences, which PPO does not have.) The learning rate falls linearly to half of
    itself, and the policy's standard deviations are computed by the network; both are left out.

    Units are those of the hidden layers within the blocks, and have no biases.

    All attributes of `ActorCriticNetwork` can be set as well.

    Attributes:
      width: the width of the residual stream.
      depth: the number of blocks.
      expansion: the width of a block's hidden layer, in widths of the stream.
      activation: the activation function of hidden layers, as for `Network`.
      input_shift: the constant c.
    """

    head_linear: ClassVar[Linear] = staticmethod(linear_on_sphere)

    input_shift: float = static_field(3.0, gt=0)

    def torso(self, observation_shape: tuple[int, ...], name: str | None = None) -> SimBaV2Torso:
        """Builds the torso. Raises `SettingError` if sizes do not go together."""
        return SimBaV2Torso(*self._blocks(), self.input_shift, name=name)

    def initialize(self, params: Params, key: Array) -> Params:
        return self.project(redraw_kernels(params, key, lambda path, *args: orthogonal(*args)))

    def project(self, params: Params) -> Params:
        def with_unit_kernel(layer: Params) -> Params:
            if "kernel" not in layer:
                return layer
            inner = {"input": with_unit_kernel(layer["input"])} if "input" in layer else {}
            return {**layer, **inner, "kernel": l2_normalize(layer["kernel"], axis=0)}

        torsos = {
            torso: {name: with_unit_kernel(layer) for name, layer in params[torso].items()}
            for torso in _TORSOS
            if torso in params
        }
        heads = {name: with_unit_kernel(params[name]) for name in ("policy", *value_heads(params))}
        return {**params, **torsos, **heads}


def _layer_norm(name: str, x: Array) -> Array:
    """Computes layer norm as Flax does by default, but with a two-pass variance."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, param_dtype=float, name=name)(x)
