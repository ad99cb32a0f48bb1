"""Interventions that hold the weights near zero or near where they began."""

import jax
import jax.numpy as jnp
import optax

from plasticity.interventions.base import Array, Context, Intervention, Learner, Optimizer, State
from plasticity.networks import Params
from plasticity.spec import setting


class RegenerativeL2(Intervention):
    """Adds coefficient * ||theta - theta_0||_2 to the loss: the norm itself, not its square.

    One norm over all parameters together, towards those that the lifetime began with, as in
    the code of Juliani & Ash (2024); Kumar et al. (2023) published the square.

    Attributes:
      coefficient: the weight of the norm in the loss.
    """

    coefficient: float = setting(0.01, ge=0)

    def init(self, learner: Learner, context: Context) -> State:
        return learner.params

    def loss(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * _norm(optax.tree.sub(params, state))


class RegenerativeW2(Intervention):
    """Adds coefficient * ||sort(theta) - sort(theta_0)||_2 to the loss, each tensor sorted.

    The entries of a tensor may trade places for nothing: what is held is their distribution, in
    the Wasserstein metric. One norm over all parameters together, not squared, as in the code
    of Juliani & Ash (2024).

    Attributes:
      coefficient: the weight of the norm in the loss.
    """

    coefficient: float = setting(0.01, ge=0)

    def init(self, learner: Learner, context: Context) -> State:
        return jax.tree.map(_sorted, learner.params)

    def loss(self, state: State, params: Params, context: Context) -> Array:
        return self.coefficient * _norm(optax.tree.sub(jax.tree.map(_sorted, params), state))


class L2Norm(Intervention):
    """AdamW's decoupled decay: theta <- theta - learning_rate * decay * theta at every step.

    Loshchilov & Hutter (2019).

    Attributes:
      decay: the weight decay.
    """

    decay: float = setting(1e-3, ge=0)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        decay = optax.add_decayed_weights(self.decay)
        return optimizer._replace(direction=(*optimizer.direction, decay))


def _sorted(tensor: Array) -> Array:
    return jnp.sort(tensor.reshape(-1))


def _norm(tree: Params) -> Array:
    """The 2-norm of all entries together, with gradient 0 where all of them are 0."""
    squared = optax.tree.norm(tree, squared=True)
    moved = squared > 0
    return jnp.where(moved, jnp.sqrt(jnp.where(moved, squared, 1.0)), 0.0)
