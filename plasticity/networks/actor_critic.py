"""The agent's network: a torso that policy and value share, and a linear head for each."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from plasticity.networks.activations import ACTIVATIONS
from plasticity.networks.torso import NORMS, Convolution, Dense, Torso
from plasticity.spec import SettingError, Spec, static

Array = jax.Array
Params = Any  # {"torso": {layer: ...}, "policy": ..., "value": ...}


class Output(NamedTuple):
    """What the network says of a batch of observations."""

    logits: Array  # [B, A]
    value: Array  # [B]
    activations: dict[str, Array]  # of each hidden layer by name: [B, units] or [B, H, W, channels]
    preactivations: dict[str, Array]  # what the activation functions take, norms included


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
      hidden: the width of each fully connected layer.
      activation: the nonlinearity after each hidden layer.
      norm: what normalises each layer before its activation.
      shared: whether policy and value share a torso, or have one each.
      channels: of each convolution before them; none where observations are not images.
      kernel: how long and wide each convolution is, or all of them are.
      stride: of each of them, or of all.
      padding: zeros on each side, for each of them or for all.
      blocks: residual blocks after each of them, as in IMPALA's network (Espeholt et al. 2018).
    """

    hidden: tuple[int, ...] = static((256, 256), ge=1, least=1)
    activation: str = static("relu", choices=lambda: tuple(ACTIVATIONS))
    norm: str = static("none", choices=lambda: tuple(NORMS))
    shared: bool = static(True)
    channels: tuple[int, ...] = static((), kind=int, ge=1)
    kernel: tuple[int, ...] = static((4,), ge=1, least=1)
    stride: tuple[int, ...] = static((2,), ge=1, least=1)
    padding: tuple[int, ...] = static((1,), ge=0, least=1)
    blocks: int = static(0, ge=0)

    def build(self, observation_shape: tuple[int, ...], num_actions: int) -> ActorCritic:
        """The Flax module of this description.

        Raises:
          SettingError: a width cannot be had with this activation, or there is no image that is
            large enough for the convolutions.
        """
        widening = ACTIVATIONS[self.activation].widening
        for name, widths in (("hidden", self.hidden), ("channels", self.channels)):
            if any(units % widening for units in widths):
                raise SettingError(
                    f"network.{name}",
                    widths,
                    f"each must be a multiple of {widening} for the activation {self.activation}",
                )
        convolutions = self._convolutions(observation_shape)
        torso, value_torso = (
            Torso(convolutions, self.blocks, self.hidden, self.activation, self.norm, name=name)
            for name in ("torso", "value_torso")
        )
        return ActorCritic(torso, None if self.shared else value_torso, num_actions)

    def _convolutions(self, observation_shape: tuple[int, ...]) -> tuple[Convolution, ...]:
        sizes = []
        for name in ("kernel", "stride", "padding"):
            given = getattr(self, name)
            if len(given) not in (1, len(self.channels)) and self.channels:
                raise SettingError(
                    f"network.{name}", given, f"must be one, or {len(self.channels)} as channels"
                )
            sizes.append(given * len(self.channels) if len(given) == 1 else given)
        convolutions = tuple(map(Convolution, self.channels, *sizes))
        if convolutions and len(observation_shape) != 3:
            raise SettingError(
                "network.channels",
                self.channels,
                f"must be [] where observations are no images but of shape {observation_shape}",
            )
        for size in observation_shape[:2] if convolutions else ():
            for convolution in convolutions:
                size = convolution.reaches(size)
                if size < 1:
                    raise SettingError(
                        "network.channels",
                        self.channels,
                        f"must leave something of an image of shape {observation_shape}",
                    )
                size = -(-size // 2) if self.blocks else size
        return convolutions
