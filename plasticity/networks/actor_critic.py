"""The default network: a torso that policy and value share, or one each, and a linear head each."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.activations import get_activation
from plasticity.networks.base import BaseNetwork, Output, Params
from plasticity.networks.distributions import Categorical, Distribution, Gaussian
from plasticity.networks.initializers import draw_orthogonal
from plasticity.networks.memory import Inputs, Memory, Sequences, Steps, without_memory
from plasticity.networks.recurrent import CELLS, Recurrent
from plasticity.networks.torso import NORMS, Convolution, Dense, Linear, Torso, linear
from plasticity.networks.values import VALUE_DISTRIBUTIONS, Bins, CategoricalValue
from plasticity.struct import SettingError, static_field

__all__ = ["ActorCritic", "ActorCriticNetwork", "Network", "ValueHead"]

Array = jax.Array


class ValueHead(NamedTuple):
    """The kind of a value head that is categorical."""

    distribution: type[CategoricalValue]
    bins: Bins


class ActorCritic(nn.Module):
    """A torso with the heads `policy` and `value`; or a torso for each of the two.

    The layers of the value's torso are called `value_hidden_0` and so on. If actions are
    continuous, the policy's entry holds the log standard deviations too, initially 0. If asked
    for, there is a second value head, `intrinsic_value`.

    With memory there is a recurrent layer between a torso and its heads: `memory`, and
    `value_memory` after the value's torso.

    The head `value` computes the value, or the logits of a categorical one. An intrinsic value is
    always a number.
    """

    torso: nn.Module
    value_torso: nn.Module | None
    num_actions: int
    continuous: bool = False
    intrinsic: bool = False
    memory: Recurrent | None = None
    value_head: ValueHead | None = None
    head_linear: Linear = linear

    @nn.compact
    def __call__(self, inputs: Inputs) -> Output:
        """Computes policy and value of a batch of observations, [B, *observation_shape].

        With memory they are the first of episodes; or `inputs` are steps or sequences.
        """
        observation = without_memory(inputs)
        features, layers = self.torso(observation)
        # By the name of the recurrent layer that follows, if the network has a memory.
        torsos = {"memory": features}
        if self.value_torso is not None:
            value_features, value_layers = self.value_torso(observation)
            torsos["value_memory"] = value_features
            for outputs, value_outputs in zip(layers, value_layers, strict=True):
                if isinstance(outputs, dict):  # layers by name
                    outputs |= {f"value_{name}": x for name, x in value_outputs.items()}
        memory: Memory = ()
        if self.memory is not None:
            torsos, memory = self._recur(self.memory, torsos, inputs)
            rows = {name: x.reshape(-1, x.shape[-1]) for name, x in torsos.items()}
            layers.activations.update(rows)
        features = torsos["memory"]
        value_features = torsos.get("value_memory", features)
        policy = Head(self.num_actions, self.continuous, self.head_linear, name="policy")(features)
        value, distribution = self._value(value_features)
        intrinsic = self._dense(1, "intrinsic_value") if self.intrinsic else None
        return Output(
            policy=policy,
            value=value,
            **layers._asdict(),
            intrinsic_value=None if intrinsic is None else intrinsic(value_features)[..., 0],
            memory=memory,
            value_distribution=distribution,
        )

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, self.head_linear, name=name)

    def _value(self, features: Array) -> tuple[Array, CategoricalValue | None]:
        """Computes the value, and the distribution of which it is the mean if it is categorical."""
        if self.value_head is None:
            return self._dense(1, "value")(features)[..., 0], None
        kind, bins = self.value_head
        logits = self._dense(bins.number, "value")(features)
        # A mean over bins in bfloat16 would be off by as much as a bin.
        distribution = kind(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), bins)
        return distribution.mean, distribution

    def _recur(
        self, kind: Recurrent, torsos: dict[str, Array], inputs: Inputs
    ) -> tuple[dict[str, Array], dict[str, Memory]]:
        """Computes the recurrent layer after each torso.

        Args:
          kind: the layer.
          torsos: the features of each torso [n, features], or [n * T, features] of sequences, by
            the name of the layer.
          inputs: the inputs of the network.

        Returns:
          The outputs of the layers, [n, units] or [n, T, units], and their memory after that.
        """
        outputs, memory = {}, {}
        for name, features in torsos.items():
            not_done = inputs.not_done if isinstance(inputs, Sequences) else None
            before = inputs.memory[name] if isinstance(inputs, Steps | Sequences) else None
            if not_done is not None:
                features = features.reshape(*not_done.shape, -1)
            outputs[name], memory[name] = kind.build(name)(features, before, not_done)
        return outputs, memory


class Head(nn.Module):
    """A linear layer that computes a policy's logits; or its means, with log standard deviations.

    The log standard deviations are initially 0 and are treated like other parameters: methods that
    redraw, shrink or penalize weights do so with these.
    """

    num_actions: int
    continuous: bool
    linear: Linear = linear

    @nn.compact
    def __call__(self, x: Array) -> Distribution:
        outputs = self.linear(self, x, self.num_actions)
        if not self.continuous:
            return Categorical(outputs)
        return Gaussian(outputs, self.param("log_std", nn.initializers.zeros, (self.num_actions,)))


class ActorCriticNetwork(BaseNetwork):
    """Base class of networks of torsos and heads: a subclass defines `torso`.

    Attributes:
      shared: whether policy and value share a torso, or have one each.
      memory: a recurrent layer between torso and heads, of each torso: `gru` or `lstm`. None if not
        given.
      memory_size: the units of the recurrent layer.
      value_head: `scalar`, a number; or a categorical value, which is trained by cross-entropy:
        `two_hot` or `hl_gauss` (see `TwoHot` and `HLGauss`).
      value_bins: the number of bins of a categorical value.
      value_range: the least and the largest return that a categorical value can be. Targets
        beyond it count as its ends.
      value_sigma: the standard deviation of `hl_gauss`, in widths of a bin.
      head_linear: computes the linear layer of each head.
    """

    head_linear: ClassVar[Linear] = staticmethod(linear)

    shared: bool = static_field(True, kw_only=True)
    memory: str | None = static_field(None, kind=str, choices=lambda: tuple(CELLS), kw_only=True)
    memory_size: int = static_field(128, ge=1, kw_only=True)
    value_head: str = static_field("scalar", choices=("scalar", *VALUE_DISTRIBUTIONS), kw_only=True)
    value_bins: int = static_field(101, ge=2, kw_only=True)
    value_range: tuple[float, float] = static_field((-10.0, 10.0), least=2, most=2, kw_only=True)
    value_sigma: float = static_field(0.75, gt=0, kw_only=True)

    @abstractmethod
    def torso(self, observation_shape: tuple[int, ...], name: str | None = None) -> nn.Module:
        """Builds the module of the layers before the heads. Raises as `build` does.

        It maps observations [B, *observation_shape] to features [B, units] and `Layers`.
        """
        raise NotImplementedError

    def build(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        continuous: bool = False,
        intrinsic: bool = False,
    ) -> ActorCritic:
        """Builds the Flax module.

        Args:
          observation_shape: the shape of one observation.
          num_actions: number of discrete actions, or dimensions of a continuous one.
          continuous: whether actions are continuous.
          intrinsic: whether there is a second value head.

        Raises:
          SettingError: the description does not suit the observations, or sizes do not go together.
        """
        torso, value_torso = (
            self.torso(observation_shape, name) for name in ("torso", "value_torso")
        )
        return ActorCritic(
            torso,
            None if self.shared else value_torso,
            num_actions,
            continuous,
            intrinsic,
            self._recurrent(),
            self._value_head(),
            type(self).head_linear,
        )

    def initial_memory(self, batch_size: int) -> Memory:
        if (recurrent := self._recurrent()) is None:
            return ()
        names = ("memory",) if self.shared else ("memory", "value_memory")
        return {name: recurrent.empty(batch_size) for name in names}

    def _recurrent(self) -> Recurrent | None:
        return None if self.memory is None else Recurrent(self.memory, self.memory_size)

    def _value_head(self) -> ValueHead | None:
        if self.value_head == "scalar":
            return None
        low, high = self.value_range
        if not low < high:
            raise SettingError(
                "network.value_range", self.value_range, "must be two numbers in ascending order"
            )
        bins = Bins(self.value_bins, low, high, self.value_sigma)
        return ValueHead(VALUE_DISTRIBUTIONS[self.value_head], bins)


class Network(ActorCriticNetwork):
    """A multilayer perceptron or a convolutional network with linear heads.

    Attributes:
      hidden: width of each fully connected layer.
      activation: activation function after each hidden layer: a name in `ACTIVATIONS`, or an
        import path of a function or a Flax module class (see `get_activation`).
      norm: normalization of each layer before its activation: a name in `NORMS`.
      channels: channels of each convolution before the fully connected layers; none if
        observations are not images.
      kernel: kernel size of each convolution, or of all.
      stride: stride of each convolution, or of all.
      padding: zeros on each side for each convolution, or for all.
      blocks: residual blocks after each convolution, as in IMPALA's network (Espeholt et al. 2018).
      init: "orthogonal" draws weights as CleanRL does (see `draw_orthogonal`), also where a method
        draws new ones. If not given, they are uniform, as PyTorch's default.
    """

    hidden: tuple[int, ...] = static_field((256, 256), ge=1, least=1, most=100)
    activation: str = static_field("relu")
    norm: str = static_field("none", choices=lambda: tuple(NORMS))
    channels: tuple[int, ...] = static_field((), kind=int, ge=1, most=100)
    kernel: tuple[int, ...] = static_field((4,), ge=1, least=1)
    stride: tuple[int, ...] = static_field((2,), ge=1, least=1)
    padding: tuple[int, ...] = static_field((1,), ge=0, least=1)
    blocks: int = static_field(0, ge=0, le=100)
    init: str | None = static_field(None, kind=str, choices=("orthogonal",))

    def initialize(self, params: Params, key: Array) -> Params:
        return params if self.init is None else draw_orthogonal(params, key)

    def torso(self, observation_shape: tuple[int, ...], name: str | None = None) -> Torso:
        """Builds the module of the layers before the heads.

        Args:
          observation_shape: the shape of one observation.
          name: of the module.

        Raises:
          SettingError: there is no such activation, it does not divide a width, or images are too
            small for the convolutions.
        """
        activation = get_activation(self.activation)
        for field, widths in (("hidden", self.hidden), ("channels", self.channels)):
            if any(units % activation.widening for units in widths):
                raise SettingError(
                    f"network.{field}",
                    widths,
                    f"each must be a multiple of {activation.widening} for the activation "
                    f"{self.activation}",
                )
        convolutions = self._convolutions(observation_shape)
        return Torso(convolutions, self.blocks, self.hidden, activation, self.norm, name=name)

    def _convolutions(self, observation_shape: tuple[int, ...]) -> tuple[Convolution, ...]:
        sizes = []
        for name in ("kernel", "stride", "padding"):
            values = getattr(self, name)
            if len(values) not in (1, len(self.channels)) and self.channels:
                raise SettingError(
                    f"network.{name}", values, f"must be one, or {len(self.channels)} as channels"
                )
            sizes.append(values * len(self.channels) if len(values) == 1 else values)
        convolutions = tuple(map(Convolution, self.channels, *sizes))
        if convolutions and len(observation_shape) != 3:
            raise SettingError(
                "network.channels",
                self.channels,
                f"must be [] where observations are no images but of shape {observation_shape}",
            )
        for size in observation_shape[:2] if convolutions else ():
            for convolution in convolutions:
                size = convolution.output_size(size)
                if size < 1:
                    raise SettingError(
                        "network.channels",
                        self.channels,
                        f"must leave something of an image of shape {observation_shape}",
                    )
                size = -(-size // 2) if self.blocks else size
        return convolutions
