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
from plasticity.networks import Categorical, Output, Params, connections, layer_index
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


class CoefficientState(NamedTuple):
    """The coefficient of churn reduction where it follows the losses, and what it is made of."""

    value: Array  # []
    sums: Array  # [2]: policy loss and churn loss, over the gradient steps of the update under way
    steps: Array  # []: how many these are
    means: Array  # [window, 2]: of the last updates of the round, 0 where there are fewer
    updates: Array  # int32 []: of the round, so far


class ChurnState(NamedTuple):
    """The reference parameters of churn reduction, and its coefficient if that is not fixed."""

    params: Params  # before the last gradient step
    valid: Array  # bool []: whether there has been a step since the beginning of the round
    coefficient: CoefficientState | tuple[()] = ()


class ChurnReduction(Intervention):
    """Penalizes changes of the policy on data outside the minibatch (Tang & Berseth 2024).

    CHAIN, in its continual form C-CHAIN (Tang et al. 2025): adds
    coefficient * KL(pi_before || pi) + value * (V - V_before)^2 to the loss, averaged over a
    reference batch. "before" is the network before the last gradient step. This may be a step of
    the previous update, also if a method has changed the network since, but not of the previous
    round: the first step of a round has no such term. The reference batch has the size of a
    minibatch and is drawn from the whole rollout, independently of the minibatch, with replacement;
    it is one of whole sequences if the network has a memory. By default there is no value term, as
    in the authors' code for PPO.

    The authors adapt the coefficient, as here if `target` is given. After an update it becomes
    target * |policy loss| / (churn loss + 1e-8), at least `min_coefficient`. Both losses are means
    over the gradient steps of an update, the absolute value is taken of that, and the ratio is that
    of the means over the last `window` updates of the round. At each shift it begins anew. The
    churn loss is, for discrete actions, the cross-entropy of pi_before and pi, as in their loss:
    its gradient is that of the KL divergence, but it is larger by the entropy of pi_before, hence
    their target of 1e4. For continuous actions it is the divergence, where the authors have the
    squared difference of the means; the weighted term does not depend on the scale of either.

    Their settings differ between benchmarks, see `docs/suites.md`. Their code for Gym Control
    includes the entropy bonus in the policy loss, those for ProcGen and DMC do not, as here; that
    for DMC takes the losses of an update's last minibatch.

    Costs a forward pass of the old network, and a forward and backward pass of the current one, on
    the reference batch at every gradient step: an update takes nearly twice as long.

    Attributes:
      coefficient: the weight of the policy term, or the first one of each round if `target` is
        given; the default is the authors' first one on ProcGen.
      value: the weight of the value term.
      target: the weighted churn loss as a multiple of the policy loss; 1e4 in the authors' code for
        discrete actions, 0.05 for continuous ones. The coefficient is fixed if not given.
      warmup: updates at the beginning of a round that are made with the first coefficient.
      window: updates over which losses are averaged.
      min_coefficient: the least coefficient that follows from the losses.
    """

    needs_policy: ClassVar[bool] = True

    coefficient: float = field(10.0, ge=0)
    value: float = field(0.0, ge=0)
    target: float | None = field(None, gt=0)
    warmup: int = field(11, kind=int, ge=1)
    window: int = static_field(50, ge=1)
    min_coefficient: float = field(1.0, ge=0)

    @property
    def needs_metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Intervention`."""
        return () if self.target is None else ("policy_loss",)

    def init(self, train_state: TrainState, context: Context) -> State:
        return ChurnState(train_state.params, jnp.zeros((), bool), self._init_coefficient())

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array | tuple[Array, Array]:
        observation, size = rollout.batch.observation, len(minibatch.observation)
        reference = observation[jax.random.randint(context.key, (size,), 0, len(observation))]
        before, after = (context.apply(x, reference) for x in (state.params, params))
        kl = before.policy.kl_divergence(after.policy)
        coefficient = self.coefficient if self.target is None else state.coefficient.value
        churn = coefficient * kl + self.value * jnp.square(after.value - before.value)
        term = jnp.where(state.valid, jnp.mean(churn), 0.0)
        if self.target is None:
            return term
        if isinstance(before.policy, Categorical):
            kl += before.policy.entropy()  # now the cross-entropy
        return term, jnp.where(state.valid, jnp.mean(kl), 0.0)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        new = ChurnState(step.prev_params, jnp.ones((), bool))
        if self.target is None:
            return new, train_state
        losses = jnp.stack([step.metrics["policy_loss"]["all"], step.aux])
        coefficient = state.coefficient._replace(
            sums=state.coefficient.sums + losses, steps=state.coefficient.steps + 1
        )
        return new._replace(coefficient=coefficient), train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        if self.target is None:
            return state, train_state
        value, sums, steps, means, updates = state.coefficient
        means = means.at[updates % self.window].set(jnp.abs(sums / steps))
        updates += 1
        policy_loss, churn = jnp.sum(means, axis=0) / jnp.minimum(updates, self.window)
        adapted = jnp.maximum(self.target * policy_loss / (churn + 1e-8), self.min_coefficient)
        value = jnp.where(updates >= self.warmup, adapted, value)
        zero = jnp.zeros_like
        coefficient = CoefficientState(value, zero(sums), zero(steps), means, updates)
        return state._replace(coefficient=coefficient), train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        valid, coefficient = jnp.zeros((), bool), self._init_coefficient()
        return state._replace(valid=valid, coefficient=coefficient), train_state

    def _init_coefficient(self) -> CoefficientState | tuple[()]:
        if self.target is None:
            return ()
        return CoefficientState(
            value=jnp.asarray(self.coefficient, float),
            sums=jnp.zeros(2),
            steps=jnp.zeros(()),
            means=jnp.zeros((self.window, 2)),
            updates=jnp.zeros((), jnp.int32),
        )


def _last_layer(params: Params) -> str:
    """Returns the name of the policy's last hidden layer."""
    return max((name for name in connections(params) if name in params["torso"]), key=layer_index)
