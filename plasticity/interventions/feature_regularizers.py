"""Interventions that hold what the network computes near what it, or another of it, computed.

Each needs outputs of a second network and says what they cost. What is added to the loss is in
the gradient that is clipped and that Adam rescales; no optimiser state is touched.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plasticity.interventions.base import (
    Array,
    Batch,
    Context,
    GradientStep,
    Intervention,
    Rollout,
    State,
    TrainState,
)
from plasticity.networks import Output, Params, connections
from plasticity.networks.initializers import uniform
from plasticity.struct import field, static_field


class InFeR(Intervention):
    """Regresses auxiliary heads to a multiple of their initial outputs (Lyle et al. 2022).

    `heads` linear outputs g of the last hidden layer's activations are trained along with the
    network, and coefficient * sum over heads of (g(x; theta) - scale * g(x; theta_0))^2, a mean
    over the minibatch, is added to the loss. theta_0 are the parameters, those of the heads
    included, that the lifetime began with. The heads are drawn like any linear layer, are
    "infer" among the parameters, and begin anew where a method redraws the heads. What clears the
    weights out of a unit leaves those into these heads alone. With a torso for policy and value
    each, they are on the policy's.

    The paper has it on value-based agents for Atari, and its defaults are here: at the beginning
    the term may well be larger than PPO's whole loss, and clipping the gradient then leaves little
    of that. Costs a forward pass of the initial network at every gradient step.

    Attributes:
      coefficient: the weight of the term, alpha in the paper.
      scale: what the initial outputs are multiplied by, beta in the paper.
      heads: how many.
    """

    coefficient: float = field(0.1, ge=0)
    scale: float = field(100.0, ge=0)
    heads: int = static_field(10, ge=1)

    def add_params(self, params: Params, key: Array) -> Params:
        features = params["policy"]["kernel"].shape[0]
        kernel_key, bias_key = jax.random.split(key)
        bound = features**-0.5
        own = {
            "kernel": uniform(kernel_key, (features, self.heads), bound),
            "bias": uniform(bias_key, (self.heads,), bound),
        }
        return {**params, "infer": own}

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array:
        layer = _last_layer(params)

        def outputs(activations: dict[str, Array], params: Params) -> Array:
            heads = params["infer"]
            return activations[layer] @ heads["kernel"] + heads["bias"]

        initial = context.apply(state, minibatch.observation)
        target = self.scale * outputs(initial.activations, state)
        error = outputs(output.activations, params) - target
        return self.coefficient * jnp.mean(jnp.sum(jnp.square(error), axis=-1))


class ProximalFeatures(Intervention):
    """Holds preactivations near those of the network that made the rollout (Moalla et al. 2024).

    Proximal feature optimisation (PFO) adds coefficient * (z - z_old)^2 to the loss, a mean over
    the minibatch and over units as in the authors' code. z are what the activation functions take,
    norms included, and z_old the same under the parameters that the rollout was made with. Over
    all layers it is one mean of all their units together. With a torso for policy and value each,
    only the policy's is held, as in the authors' configurations; a shared one is held for both.

    Costs a forward pass of the old network at every gradient step.

    Attributes:
      coefficient: the weight of the term; the authors take 1 for the last layer and 10 for all on
        Atari, and on MuJoCo 1 with tanh and 10 with ReLU.
      layers: the "last" hidden layer, or "all" of them.
    """

    coefficient: float = field(1.0, ge=0)
    layers: str = static_field("last", choices=("last", "all"))

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array:
        old = context.apply(rollout.params, minibatch.observation)
        names = [name for name in connections(params) if name in params["torso"]]
        if self.layers == "last":
            names = [_last_layer(params)]
        now = output.preactivations
        change = [(now[name] - old.preactivations[name]).reshape(-1) for name in names]
        return self.coefficient * jnp.mean(jnp.square(jnp.concatenate(change)))


class Churn(NamedTuple):
    """The network that a step is not to change away from the training data."""

    params: Params  # one gradient step before
    known: Array  # bool []: whether there has been a step since the beginning of the round


class ChurnReduction(Intervention):
    """Limits how a gradient step changes the policy on other data (Tang & Berseth 2024).

    CHAIN, and C-CHAIN (Tang et al. 2025) in its continual form: adds
    coefficient * KL(pi_before || pi) + value * (V - V_before)^2 to the loss, means over a
    reference batch. "before" is the network one gradient step ago, across updates (also where a
    method has changed the network after one) but not across shifts: the first step of a round
    has no term. The reference batch has the minibatch's size
    and is drawn from the whole rollout, independently of the minibatch; here with replacement.

    The authors' code for discrete actions has the cross-entropy in place of the KL divergence:
    as pi_before is constant, the gradient is the same. Their coefficient is 1e4 times the ratio
    of the policy loss to that term over the last updates; here it is fixed. As for PPO in their
    code, the value takes no part by default.

    Costs a forward pass of the old network, and a forward and backward pass of the present one,
    on the reference batch at every gradient step: it nearly doubles an update.

    Attributes:
      coefficient: the weight of the policy's term; the default is what the authors' coefficient
        begins at on ProcGen.
      value: the weight of the value's term.
    """

    coefficient: float = field(10.0, ge=0)
    value: float = field(0.0, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return Churn(train_state.params, jnp.zeros((), bool))

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array:
        everything, size = rollout.batch.observation, len(minibatch.observation)
        reference = everything[jax.random.randint(context.key, (size,), 0, len(everything))]
        before, now = (context.apply(either, reference) for either in (state.params, params))
        kl = before.policy.kl_divergence(now.policy)
        churn = self.coefficient * kl + self.value * jnp.square(now.value - before.value)
        return jnp.where(state.known, jnp.mean(churn), 0.0)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        return Churn(step.prev_params, jnp.ones((), bool)), train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state._replace(known=jnp.zeros((), bool)), train_state


def _last_layer(params: Params) -> str:
    """The name of the hidden layer that the policy's head is on."""
    (name,) = (
        name
        for name, layer in connections(params).items()
        if ("policy", "kernel") in layer.outgoing
    )
    return name
