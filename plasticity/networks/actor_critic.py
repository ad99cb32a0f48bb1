"""The agent's network: a torso that policy and value share, and a linear head for each."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from plasticity.networks.activations import ACTIVATIONS
from plasticity.networks.initial import uniform
from plasticity.spec import SettingError, Spec, static

Array = jax.Array
Params = Any  # {"torso": {layer: ...}, "policy": ..., "value": ...}


NORMS: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    # PyTorch's LayerNorm: two-pass variance, epsilon 1e-5, scale and bias learnt.
    "layer_norm": lambda name: nn.LayerNorm(
        epsilon=1e-5, use_fast_variance=False, param_dtype=float, name=name
    ),
    # The same without centring: x / sqrt(mean(x^2) + 1e-5) and a scale.
    "rms_norm": lambda name: nn.RMSNorm(epsilon=1e-5, param_dtype=float, name=name),
}


class Output(NamedTuple):
    """What the network says of a batch of observations."""

    logits: Array  # [B, A]
    value: Array  # [B]
    activations: dict[str, Array]  # of each hidden layer by name: [B, units]
    preactivations: dict[str, Array]  # what the activation functions take, norms included


class Layers(NamedTuple):
    """What the hidden layers of a torso came to, by name."""

    activations: dict[str, Array]
    preactivations: dict[str, Array]


class Dense(nn.Module):
    """A linear layer, weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        bound = 1 / math.sqrt(x.shape[-1])
        kernel = self.param("kernel", uniform, (x.shape[-1], self.features), bound)
        bias = self.param("bias", uniform, (self.features,), bound)
        return x @ kernel + bias


class MLP(nn.Module):
    """Hidden layers on the flattened observation: linear, norm, activation.

    Attributes:
      hidden: the width of each after its activation. Where that widens, the linear layer is
        narrower, so that the next one's input keeps its size.
      activation: a name in `ACTIVATIONS`.
      norm: a name in `NORMS`.
    """

    hidden: tuple[int, ...]
    activation: str
    norm: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Layers]:
        x = x.reshape(x.shape[0], -1)
        layers = Layers({}, {})
        activation = ACTIVATIONS[self.activation]
        for i, units in enumerate(self.hidden):
            x = Dense(units // activation.widening, name=f"hidden_{i}")(x)
            if (norm := NORMS[self.norm]) is not None:
                x = norm(name=f"norm_{i}")(x)
            layers.preactivations[f"hidden_{i}"] = x
            x = layers.activations[f"hidden_{i}"] = activation.named(f"activation_{i}")(x)
        return x, layers


class ActorCritic(nn.Module):
    """A torso, then the heads `policy` and `value`; or a torso for each of the two.

    The layers of the value's own torso are called `value_hidden_0` and so on.
    """

    torso: nn.Module
    value_torso: nn.Module | None
    num_actions: int

    @nn.compact
    def __call__(self, observation: Array) -> Output:
        """Args: observation, [B, *shape]."""
        features, layers = self.torso(observation)
        value_features = features
        if self.value_torso is not None:
            value_features, own = self.value_torso(observation)
            for all_of_them, its in zip(layers, own, strict=True):
                all_of_them |= {f"value_{name}": x for name, x in its.items()}
        return Output(
            logits=Dense(self.num_actions, name="policy")(features),
            value=Dense(1, name="value")(value_features)[:, 0],
            **layers._asdict(),
        )


class Network(Spec):
    """The description that interventions may change before a network is built from it.

    Attributes:
      hidden: the width of each hidden layer.
      activation: the nonlinearity after each of them.
      norm: what normalises each layer before its activation.
      shared: whether policy and value share a torso, or have one each.
    """

    hidden: tuple[int, ...] = static((256, 256), ge=1, least=1)
    activation: str = static("relu", choices=lambda: tuple(ACTIVATIONS))
    norm: str = static("none", choices=lambda: tuple(NORMS))
    shared: bool = static(True)

    def build(self, num_actions: int) -> ActorCritic:
        """The Flax module of this description.

        Raises:
          SettingError: a width cannot be had with this activation.
        """
        widening = ACTIVATIONS[self.activation].widening
        if any(units % widening for units in self.hidden):
            raise SettingError(
                "network.hidden",
                self.hidden,
                f"each must be a multiple of {widening} for the activation {self.activation}",
            )
        torso, value_torso = (
            MLP(self.hidden, self.activation, self.norm, name=name)
            for name in ("torso", "value_torso")
        )
        return ActorCritic(torso, None if self.shared else value_torso, num_actions)
