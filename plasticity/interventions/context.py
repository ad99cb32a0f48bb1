"""The arguments of the hooks of interventions.

Shapes: B transitions of a rollout, M transitions of a minibatch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.networks import Output, Params

Array = jax.Array


class TrainState(NamedTuple):
    """The trained parameters, and the optimizer's state for them."""

    params: Params
    opt_state: optax.OptState


class Batch(NamedTuple):
    """Transitions that an agent learns from, each array [B, ...].

    Advantages are not normalized: PPO does so in each minibatch. If the network has a memory, a
    sample is a sequence of T steps: arrays are [N, T, ...], and `observation` is `Sequences`, which
    is indexed as an array is.
    """

    observation: Any  # Array, or Sequences
    action: Array
    log_prob: Array  # of the action, under the policy that took it
    value: Array  # estimated when the action was taken
    advantage: Array
    target: Array  # for the value: the lambda-return
    intrinsic_target: Array | None = None  # for the intrinsic value, where there is one


class Rollout(NamedTuple):
    """The transitions of an update, and the parameters that collected them."""

    batch: Batch  # [B, ...]
    params: Params


class GradientStep(NamedTuple):
    """The gradient step that has just been made."""

    gradients: Params  # of the whole loss of the minibatch, before clipping
    prev_params: Params  # before the step
    # [M, ...] of each hidden layer, under `prev_params`; [M * T, ...] of sequences.
    activations: dict[str, Array]
    # Metric -> layer -> [], under `prev_params`: those of `Agent.loss`, without added terms.
    metrics: dict[str, dict[str, Array]]
    aux: Any = ()  # what the method's own `loss` returned beside its term


def _keep(params: Params) -> Params:
    return params


class Context(NamedTuple):
    """Tools that every hook may use.

    Attributes:
      key: randomness for this call of this hook.
      round: the current round, 0 for the first; int32 [].
      update: agent updates completed before this one; int32 [].
      init_params: draws parameters from their initial distribution, with a key.
      apply: computes the network's output from trained parameters and observations [M, ...]; or
        from `Steps` or `Sequences`, if it has a memory, which is empty otherwise; of an encoder
        also from `Tokens`, see `Output.tokens`.
      effective_params: computes the parameters that the network uses from the trained ones.
      optimizer: the update rule, with the changes of all interventions.
      precision: that of the run. `apply` computes at it; networks of your own do so by
        `plasticity.networks.at_precision`.
      project: projects trained parameters as the network does: see `BaseNetwork.project`. It is
        called after every hook that changes them.
    """

    key: Array
    round: Array
    update: Array
    init_params: Callable[[Array], Params]
    apply: Callable[[Params, Any], Output]
    effective_params: Callable[[Params], Params]
    optimizer: optax.GradientTransformation
    precision: str = "float32"
    project: Callable[[Params], Params] = _keep


def reset_moments(train_state: TrainState, mask: Params, context: Context) -> optax.OptState:
    """Returns the optimizer's state with the moments of some parameters set to 0.

    Adam's count goes on, for it is one of all parameters. Its bias corrections are near 1 late in a
    round, so that the first step of a parameter whose moments were cleared is
    (1 - b1) / sqrt(1 - b2) learning rates long, 3.2 for the usual b1 = 0.9 and b2 = 0.999, and not
    one as in a new optimizer. Under a constant gradient steps grow to 6.6 learning rates.

    Args:
      train_state: parameters and optimizer.
      mask: which parameters: a tree like them, of bool arrays that broadcast against them.
      context: for the optimizer.
    """

    def reset(moment: Array, reset_here: Array) -> Array:
        return jnp.where(reset_here, jnp.zeros_like(moment), moment)

    return optax.tree.map_params(context.optimizer, reset, train_state.opt_state, mask)
