"""Interventions that penalize the distance of the network's outputs or features to a reference.

The reference is the output of an earlier or initial network; each method documents the cost of
computing it. The terms are part of the loss: their gradient is clipped and rescaled by Adam. The
optimizer's state is not changed.
"""

from typing import ClassVar, NamedTuple

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
from plasticity.networks import Output, Params, connections, layer_index
from plasticity.networks.initializers import uniform
from plasticity.struct import field, static_field

__all__ = ["ChurnReduction", "InFeR", "KLPenalty", "ProximalFeatures"]


class InFeR(Intervention):
    """Regresses auxiliary heads to a multiple of their initial outputs (Lyle et al. 2022).

    The network gets auxiliary linear heads g on what the policy's head reads, which are trained
    with it: the last hidden layer, the recurrent layer after it, or the features of a torso of
    residual blocks such as SimBa's.
    The loss gets the term coefficient * sum over heads of (g(x; theta) - scale * g(x; theta_0))^2,
    averaged over the minibatch. theta_0 are all parameters at the beginning of the run, including
    these heads. The heads are initialized like any linear layer, are the entry "infer" of the
    parameters, and are reinitialized by methods that reinitialize the heads. Methods that zero the
    outgoing weights of a unit do not change its weights into these heads. If policy and value have
    separate torsos, the heads are on the policy's.

    The paper uses it with value-based agents on Atari, and the defaults are the paper's. Early in
    training, the term may be larger than PPO's whole loss; gradient clipping then leaves little of
    PPO's gradient. Costs a forward pass of the initial network at every gradient step.

    Attributes:
      coefficient: the weight of the term, alpha in the paper.
      scale: the factor of the initial outputs, beta in the paper.
      heads: the number of heads.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    coefficient: float = field(0.1, ge=0)
    scale: float = field(100.0, ge=0)
    heads: int = static_field(10, ge=1)

    def add_params(self, params: Params, key: Array) -> Params:
        features = params["policy"]["kernel"].shape[0]
        kernel_key, bias_key = jax.random.split(key)
        bound = features**-0.5
        infer = {
            "kernel": uniform(kernel_key, (features, self.heads), bound),
            "bias": uniform(bias_key, (self.heads,), bound),
        }
        return {**params, "infer": infer}

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
        read = [name for name in ("memory", "features") if name in output.activations]
        layer = read[0] if read else _last_layer(params)

        def outputs(activations: dict[str, Array], params: Params) -> Array:
            heads = params["infer"]
            return activations[layer] @ heads["kernel"] + heads["bias"]

        initial = context.apply(state, minibatch.observation)
        target = self.scale * outputs(initial.activations, state)
        error = outputs(output.activations, params) - target
        return self.coefficient * jnp.mean(jnp.sum(jnp.square(error), axis=-1))


class ProximalFeatures(Intervention):
    """Penalizes changes of preactivations since the rollout was collected (Moalla et al. 2024).

    Proximal feature optimization (PFO) adds coefficient * (z - z_old)^2 to the loss, averaged over
    the minibatch and units, as in the authors' code. z are the inputs of the activation functions,
    after normalization, and z_old the same under the parameters that collected the rollout. With
    all layers, the mean is over the units of all of them. If policy and value have separate torsos,
    only the policy's is regularized, as in the authors' configurations; a shared torso is
    regularized for both. Recurrent layers have no such preactivations.

    Costs a forward pass of the old network at every gradient step.

    Attributes:
      coefficient: the weight of the term; the authors use 1 for the last layer and 10 for all on
        Atari, and on MuJoCo 1 with tanh and 10 with ReLU.
      layers: the "last" hidden layer, or "all" of them.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

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
        new = output.preactivations
        change = [(new[name] - old.preactivations[name]).reshape(-1) for name in names]
        return self.coefficient * jnp.mean(jnp.square(jnp.concatenate(change)))


class KLPenalty(Intervention):
    """Penalizes the KL divergence from the policy of the rollout (Schulman et al. 2017).

    Adds beta * KL(pi_old || pi) to the loss, averaged over the minibatch, where pi_old is the
    policy that collected the rollout. If `adaptive`, the divergence d over the whole rollout is
    measured after every update: beta is halved if d < target / 1.5, and doubled if
    d > 1.5 * target. It is used in the next update and goes on over shifts.

    In the paper, the penalty replaces the clipping of the ratio: `agent.clip_eps=1e9` turns that
    off for PPO. The divergence is that of the two distributions, not an estimate from the actions
    taken. Costs a forward pass of the old network at every gradient step, and two passes over the
    rollout after an update if adaptive.

    Attributes:
      coefficient: beta, or its initial value if adaptive, which the paper says hardly matters.
      target: the divergence of an update; the paper's best is 0.01, of 0.003, 0.01 and 0.03.
      adaptive: whether beta is adapted.
    """

    needs_policy: ClassVar[bool] = True

    coefficient: float = field(1.0, ge=0)
    target: float = field(0.01, gt=0)
    adaptive: bool = static_field(True)

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns beta."""
        return jnp.asarray(self.coefficient, float)

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
        return state * jnp.mean(old.policy.kl_divergence(output.policy))

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        if not self.adaptive:
            return state, train_state
        old, new = (
            context.apply(params, rollout.batch.observation)
            for params in (rollout.params, train_state.params)
        )
        kl = jnp.mean(old.policy.kl_divergence(new.policy))
        factor = jnp.where(kl > 1.5 * self.target, 2.0, jnp.where(kl < self.target / 1.5, 0.5, 1.0))
        return state * factor, train_state


class ChurnState(NamedTuple):
    """The reference parameters of churn reduction."""

    params: Params  # before the last gradient step
    valid: Array  # bool []: whether there has been a step since the beginning of the round


class ChurnReduction(Intervention):
    """Penalizes changes of the policy on data outside the minibatch (Tang & Berseth 2024).

    CHAIN, in its continual form C-CHAIN (Tang et al. 2025): adds
    coefficient * KL(pi_before || pi) + value * (V - V_before)^2 to the loss, averaged over a
    reference batch. "before" is the network before the last gradient step. This may be a step of
    the previous update, also if a method has changed the network since, but not of the previous
    round: the first step of a round has no such term. The reference batch has the size of a
    minibatch and is drawn from the whole rollout, independently of the minibatch, with replacement;
    it is one of whole sequences if the network has a memory.

    For discrete actions, the authors' code has the cross-entropy instead of the KL divergence.
    Since pi_before is constant, the gradient is the same. Their coefficient is 1e4 times the ratio
    of the policy loss to the KL term over the last updates; here it is fixed. By default there is
    no value term, as in their code for PPO.

    Costs a forward pass of the old network, and a forward and backward pass of the current one, on
    the reference batch at every gradient step: an update takes nearly twice as long.

    Attributes:
      coefficient: the weight of the policy term; the default is the initial value of the
        authors' coefficient on ProcGen.
      value: the weight of the value term.
    """

    needs_policy: ClassVar[bool] = True

    coefficient: float = field(10.0, ge=0)
    value: float = field(0.0, ge=0)

    def init(self, train_state: TrainState, context: Context) -> State:
        return ChurnState(train_state.params, jnp.zeros((), bool))

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array:
        observation, size = rollout.batch.observation, len(minibatch.observation)
        reference = observation[jax.random.randint(context.key, (size,), 0, len(observation))]
        before, after = (context.apply(x, reference) for x in (state.params, params))
        kl = before.policy.kl_divergence(after.policy)
        churn = self.coefficient * kl + self.value * jnp.square(after.value - before.value)
        return jnp.where(state.valid, jnp.mean(churn), 0.0)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        return ChurnState(step.prev_params, jnp.ones((), bool)), train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state._replace(valid=jnp.zeros((), bool)), train_state


def _last_layer(params: Params) -> str:
    """Returns the name of the policy's last hidden layer."""
    return max((name for name in connections(params) if name in params["torso"]), key=layer_index)
