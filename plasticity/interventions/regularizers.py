"""Interventions that hold the weights near zero or near where they began."""

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
        squared = optax.tree.norm(optax.tree.sub(params, state), squared=True)
        # The norm's gradient is undefined where nothing has moved yet; there it is taken as 0.
        moved = squared > 0
        return self.coefficient * jnp.where(moved, jnp.sqrt(jnp.where(moved, squared, 1.0)), 0.0)


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
