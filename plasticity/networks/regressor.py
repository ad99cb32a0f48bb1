"""A network that predicts a number: hidden layers and a linear value head, without a policy."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.activations import get_activation
from plasticity.networks.base import BaseNetwork, Output, Params
from plasticity.networks.distributions import Categorical
from plasticity.networks.initializers import uniform
from plasticity.networks.torso import NORMS, Dense, Torso
from plasticity.struct import SettingError, static_field

__all__ = ["Regressor"]

Array = jax.Array

_GAINS = {"tanh": 5 / 3}  # of PyTorch's initializers; that of ReLU for all others


class RegressorModule(nn.Module):
    """A torso with the head `value`. The policy is uniform and has no parameters."""

    torso: nn.Module
    num_actions: int

    @nn.compact
    def __call__(self, observation: Array) -> Output:
        """Computes the value of a batch of observations, [B, *observation_shape]."""
        features, layers = self.torso(observation)
        return Output(
            policy=Categorical(jnp.zeros((len(observation), self.num_actions))),
            value=Dense(1, name="value")(features)[:, 0],
            **layers._asdict(),
        )


class Regressor(BaseNetwork):
    """A multilayer perceptron that predicts a number, for `agent=regression`.

    Kernels are drawn from Kaiming's uniform distribution and biases are 0, as in the published code
    of Dohare et al. (2024).

    Attributes:
      hidden: width of each hidden layer; none for a linear learner.
      activation: see `Network`.
      norm: see `Network`.
    """

    hidden: tuple[int, ...] = static_field((5,), ge=1, most=100)
    activation: str = static_field("relu")
    norm: str = static_field("none", choices=lambda: tuple(NORMS))

    def build(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        continuous: bool = False,
        intrinsic: bool = False,
    ) -> RegressorModule:
        """Builds the Flax module. See `BaseNetwork.build`.

        Raises:
          SettingError: actions are continuous, there is an intrinsic reward, there is no such
            activation, or it does not divide a width.
        """
        for refused, key in ((continuous, "env"), (intrinsic, "intrinsic")):
            if refused:
                raise SettingError(
                    key, key, "must be regression" if key == "env" else "must be none"
                )
        activation = get_activation(self.activation)
        if any(units % activation.widening for units in self.hidden):
            raise SettingError(
                "network.hidden",
                self.hidden,
                f"each must be a multiple of {activation.widening} for the activation "
                f"{self.activation}",
            )
        torso = Torso((), 0, self.hidden, activation, self.norm, name="torso")
        return RegressorModule(torso, num_actions)

    def initialize(self, params: Params, key: Array) -> Params:
        gain = _GAINS.get(self.activation, math.sqrt(2))

        def redraw(layer: Params, gain: float, key: Array) -> Params:
            kernel = layer["kernel"]
            bound = gain * math.sqrt(3 / kernel.shape[0])
            drawn = uniform(key, kernel.shape, bound)
            return {**layer, "kernel": drawn, "bias": jnp.zeros_like(layer["bias"])}

        redrawn = {"value": redraw(params["value"], 1.0, jax.random.fold_in(key, 0))}
        if "torso" in params:
            torso = dict(params["torso"])
            for i in range(len(self.hidden)):
                name = f"hidden_{i}"
                torso[name] = redraw(torso[name], gain, jax.random.fold_in(key, i + 1))
            redrawn["torso"] = torso
        return {**params, **redrawn}
