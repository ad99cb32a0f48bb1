"""Interventions that put the weights back into a set after every gradient step."""

import math

import jax.numpy as jnp
import optax

from plasticity.interventions.base import (
    Array,
    Context,
    GradientStep,
    Intervention,
    State,
    TrainState,
)
from plasticity.networks import Network, Params, map_hidden
from plasticity.struct import field

_TORSOS = ("torso", "value_torso")


class NormalizeAndProject(Intervention):
    """Layer normalisation, and hidden weights put back to their initial norm (Lyle et al. 2024).

    After every gradient step W <- W ||W_0|| / ||W|| for the kernel of each hidden layer, with
    W_0 the lifetime's first one and Frobenius norms. A normalised layer computes the same with
    W at any norm, so this holds the rate at which it learns and nothing else. Hidden layers have
    no biases, which the normalisation's offset makes redundant (where there is none, as with
    RMSNorm, they stay and are projected along with the kernel); its scale and offset together
    are put back to their common norm in the same way, the paper's reading for homogeneous
    activations such as ReLU (for others it has a penalty instead). The heads are free.

    A network that has another norm already, such as RMSNorm before it in the chain, keeps that.
    The optimiser's moments stay as they are, and so does the learning rate, which the paper
    anneals in its Atari experiments. What a shift has redrawn is projected at the next step.
    """

    def network(self, network: Network) -> Network:
        return network if network.norm != "none" else network.replace(norm="layer_norm")

    def add_params(self, params: Params, key: Array) -> Params:
        def without_biases(torso: Params) -> Params:
            offset = {
                name.replace("norm_", "hidden_")
                for name, layer in torso.items()
                if name.startswith("norm_") and "bias" in layer
            }
            return {
                name: _without_bias(layer) if name in offset else layer
                for name, layer in torso.items()
            }

        torsos = {name: without_biases(params[name]) for name in _TORSOS if name in params}
        return {**params, **torsos}

    def effective_params(self, params: Params) -> Params:
        def with_bias(layer: Params) -> Params:
            none = jnp.zeros_like(layer["kernel"], shape=layer["kernel"].shape[-1:])
            return {"bias": none, **layer}

        return map_hidden(with_bias, params)

    def init(self, train_state: TrainState, context: Context) -> State:
        """The norm of what each hidden layer has, and each of their normalisations."""
        return {
            torso: {
                name: optax.tree.norm(layer)
                for name, layer in train_state.params[torso].items()
                if name.startswith(("hidden_", "norm_"))
            }
            for torso in _TORSOS
            if torso in train_state.params
        }

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        params = dict(train_state.params)
        for torso, targets in state.items():
            params[torso] = params[torso] | {
                name: _of_norm(params[torso][name], target) for name, target in targets.items()
            }
        return state, train_state._replace(params=params)


class WeightClipping(Intervention):
    """Clips weights and biases to `kappa` times their initial bound (Elsayed et al. 2024).

    After every gradient step w <- min(max(w, -kappa s), kappa s) with s = 1 / sqrt(fan_in), for
    kernel and bias of every linear layer, heads included. That is the bound of the uniform
    distribution that this network's weights are drawn from. Scales and offsets of normalisations
    are exempt, and the optimiser's moments stay as they are.

    Attributes:
      kappa: the bound, in units of that of the initial distribution; the authors' for PPO.
    """

    kappa: float = field(3.0, gt=0)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        return state, train_state._replace(params=self._clipped(train_state.params))

    def _clipped(self, params: Params) -> Params:
        """The tree with every linear layer in it clipped: whatever has a kernel."""
        if not isinstance(params, dict):
            return params
        params = {name: self._clipped(part) for name, part in params.items()}
        if "kernel" in params:
            bound = self.kappa / math.sqrt(math.prod(params["kernel"].shape[:-1]))
            for name in ("kernel", "bias"):
                if name in params:
                    params[name] = jnp.clip(params[name], -bound, bound)
        return params


def _without_bias(layer: Params) -> Params:
    return {name: leaf for name, leaf in layer.items() if name != "bias"}


def _of_norm(tree: Params, target: Array) -> Params:
    """The tree at another norm; one of zeros as it is."""
    norm = optax.tree.norm(tree)
    return optax.tree.scale(target / jnp.where(norm > 0, norm, 1.0), tree)
