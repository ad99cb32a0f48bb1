"""Interventions that project the weights onto a set after every gradient step."""

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
from plasticity.networks import BaseNetwork, Params, map_hidden
from plasticity.struct import field

__all__ = ["NormalizeAndProject", "WeightClipping"]

_TORSOS = ("torso", "value_torso")


class NormalizeAndProject(Intervention):
    """Adds layer norm and rescales hidden weights to their initial norm (Lyle et al. 2024).

    Normalize-and-Project (NaP): after every gradient step, W <- W ||W_0|| / ||W|| for the kernel of
    each hidden layer, where W_0 is the kernel at the beginning of the run and the norms are
    Frobenius norms. The output of a normalized layer does not depend on the norm of W, so the
    projection only keeps the effective learning rate constant.

    Hidden layers have no biases, because the offset of the normalization makes them redundant. With
    a normalization without offset, such as RMSNorm, biases are kept and are projected together with
    the kernel. The scale and offset of a normalization are rescaled to their joint initial norm in
    the same way; the paper does so for homogeneous activations such as ReLU, and uses a penalty
    for others. The heads are not projected.

    A network that already has another norm, such as RMSNorm earlier in the chain, keeps it. The
    optimizer's moments are kept, and so is the learning rate, which the paper anneals in its Atari
    experiments. Weights that another method reinitializes at a shift are projected at the next
    step.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        norm = getattr(network, "norm", "none")
        return network if norm != "none" else network.replace(norm="layer_norm")

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
            zeros = jnp.zeros_like(layer["kernel"], shape=layer["kernel"].shape[-1:])
            return {"bias": zeros, **layer}

        return map_hidden(with_bias, params)

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns the initial norm of each hidden layer and of each normalization."""
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
                name: _rescale(params[torso][name], target) for name, target in targets.items()
            }
        return state, train_state._replace(params=params)


class WeightClipping(Intervention):
    """Clips weights and biases to `kappa` times their initial bound (Elsayed et al. 2024).

    After every gradient step w <- min(max(w, -kappa s), kappa s) with s = 1 / sqrt(fan_in), for
    kernel and bias of every linear layer, heads included. s is the bound of the uniform
    distribution that this network's weights are drawn from. Scales and offsets of normalizations
    are not clipped. The optimizer's moments are kept.

    Attributes:
      kappa: the bound, in units of the initial distribution's bound; the default is the authors'
        for PPO.
    """

    kappa: float = field(3.0, gt=0)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        return state, train_state._replace(params=self._clip(train_state.params))

    def _clip(self, params: Params) -> Params:
        """Clips every linear layer of a tree: every entry that has a kernel."""
        if not isinstance(params, dict):
            return params
        params = {name: self._clip(part) for name, part in params.items()}
        if "kernel" in params:
            bound = self.kappa / math.sqrt(math.prod(params["kernel"].shape[:-1]))
            for name in ("kernel", "bias"):
                if name in params:
                    params[name] = jnp.clip(params[name], -bound, bound)
        return params


def _without_bias(layer: Params) -> Params:
    return {name: leaf for name, leaf in layer.items() if name != "bias"}


def _rescale(tree: Params, target: Array) -> Params:
    """Rescales a tree to a target norm. A tree of zeros is unchanged."""
    norm = optax.tree.norm(tree)
    return optax.tree.scale(target / jnp.where(norm > 0, norm, 1.0), tree)
