"""The agent's network: a torso that policy and value share, and a linear head for each."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from plasticity.networks.activations import ACTIVATIONS
from plasticity.networks.distributions import Categorical, Gaussian, Policy
from plasticity.networks.torso import NORMS, Convolution, Dense, Torso, linear
from plasticity.struct import SettingError, Struct, static_field

Array = jax.Array
Params = Any  # {"torso": {layer: ...}, "policy": ..., "value": ...}


class Output(NamedTuple):
    """What the network says of a batch of observations."""

    policy: Policy  # [B]
    value: Array  # [B]
    activations: dict[str, Array]  # of each hidden layer by name: [B, units] or [B, H, W, channels]
    preactivations: dict[str, Array]  # what the activation functions take, norms included
    intrinsic_value: Array | None = None  # [B]: of what curiosity earns, where there is such a head


class ActorCritic(nn.Module):
    """A torso, then the heads `policy` and `value`; or a torso for each of the two.

    The layers of the value's own torso are called `value_hidden_0` and so on. Where actions are
    numbers, the logarithms of their standard deviations are in the policy's entry, 0 at first.
    A second value, `intrinsic_value`, is a head beside the first.
    """

    torso: nn.Module
    value_torso: nn.Module | None
    num_actions: int
    continuous: bool = False
    intrinsic: bool = False

    @nn.compact
    def __call__(self, observation: Array) -> Output:
        """Args: observation, [B, *shape]."""
        features, layers = self.torso(observation)
        value_features = features
        if self.value_torso is not None:
            value_features, own = self.value_torso(observation)
            for all_of_them, its in zip(layers, own, strict=True):
                all_of_them |= {f"value_{name}": x for name, x in its.items()}
        intrinsic = Dense(1, name="intrinsic_value") if self.intrinsic else None
        return Output(
            policy=Head(self.num_actions, self.continuous, name="policy")(features),
            value=Dense(1, name="value")(value_features)[:, 0],
            **layers._asdict(),
            intrinsic_value=None if intrinsic is None else intrinsic(value_features)[:, 0],
        )


class Head(nn.Module):
    """A linear layer for a policy's logits; or for means, with deviations beside it.

    The deviations' logarithms begin at 0 and are parameters like others: what draws weights anew,
    shrinks or penalises them does so with these.
    """

    num_actions: int
    continuous: bool

    @nn.compact
    def __call__(self, x: Array) -> Policy:
        said = linear(self, x, self.num_actions)
        if not self.continuous:
            return Categorical(said)
        return Gaussian(said, self.param("log_std", nn.initializers.zeros, (self.num_actions,)))


class Network(Struct):
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

    hidden: tuple[int, ...] = static_field((256, 256), ge=1, least=1)
    activation: str = static_field("relu", choices=lambda: tuple(ACTIVATIONS))
    norm: str = static_field("none", choices=lambda: tuple(NORMS))
    shared: bool = static_field(True)
    channels: tuple[int, ...] = static_field((), kind=int, ge=1)
    kernel: tuple[int, ...] = static_field((4,), ge=1, least=1)
    stride: tuple[int, ...] = static_field((2,), ge=1, least=1)
    padding: tuple[int, ...] = static_field((1,), ge=0, least=1)
    blocks: int = static_field(0, ge=0)

    def build(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        continuous: bool = False,
        intrinsic: bool = False,
    ) -> ActorCritic:
        """The Flax module of this description.

        Args:
          observation_shape: of one observation.
          num_actions: how many discrete actions there are, or how many numbers an action is.
          continuous: whether an action is numbers.
          intrinsic: whether there is a second value.

        Raises:
          SettingError: a width cannot be had with this activation, or there is no image that is
            large enough for the convolutions.
        """
        torso, value_torso = (
            self.torso(observation_shape, name) for name in ("torso", "value_torso")
        )
        return ActorCritic(
            torso, None if self.shared else value_torso, num_actions, continuous, intrinsic
        )

    def torso(self, observation_shape: tuple[int, ...], name: str | None = None) -> Torso:
        """The module of what comes before the heads. Raises as `build` does."""
        widening = ACTIVATIONS[self.activation].widening
        for field, widths in (("hidden", self.hidden), ("channels", self.channels)):
            if any(units % widening for units in widths):
                raise SettingError(
                    f"network.{field}",
                    widths,
                    f"each must be a multiple of {widening} for the activation {self.activation}",
                )
        convolutions = self._convolutions(observation_shape)
        return Torso(convolutions, self.blocks, self.hidden, self.activation, self.norm, name=name)

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
                size = convolution.output_size(size)
                if size < 1:
                    raise SettingError(
                        "network.channels",
                        self.channels,
                        f"must leave something of an image of shape {observation_shape}",
                    )
                size = -(-size // 2) if self.blocks else size
        return convolutions
