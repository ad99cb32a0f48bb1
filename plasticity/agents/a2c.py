"""Advantage actor-critic (Mnih et al. 2016), synchronous: the shortest agent there is."""

import jax
import jax.numpy as jnp

from plasticity.agents.base import (
    Agent,
    IntrinsicRewards,
    Metrics,
    Trajectory,
    end_update,
    gradient_step,
)
from plasticity.agents.ppo import (
    LossTerms,
    clipped_adam,
    gae_batch,
    normalize_advantages,
    value_loss,
)
from plasticity.interventions import (
    Adam,
    Batch,
    Context,
    Interventions,
    Optimizer,
    Rollout,
    TrainState,
)
from plasticity.interventions.base import State
from plasticity.networks import Output
from plasticity.struct import field, static_field

Array = jax.Array


class A2C(Agent):
    """Advantage actor-critic: one gradient step on each rollout (Mnih et al. 2016).

    With Adam in place of the paper's RMSProp, so that every intervention on Adam applies, and with
    generalized advantage estimation, of which `gae_lambda=1` gives the paper's n-step returns.
    Equal to PPO with one epoch and one minibatch (Huang et al. 2022), but for the normalization of
    advantages, which is off by default.

    Attributes:
      learning_rate: Adam's step size.
      adam_eps: Adam's epsilon.
      ent_coef: weight of the entropy bonus.
      vf_coef: weight of the squared value error, or of the cross-entropy of a categorical value.
      gae_lambda: decay of generalized advantage estimation.
      max_grad_norm: global norm that gradients are clipped to.
      normalize_advantages: whether advantages are normalized over the rollout.
    """

    num_steps: int = static_field(20, ge=1)
    learning_rate: float = field(7e-4, gt=0)
    adam_eps: float = field(1e-5, gt=0)
    ent_coef: float = field(0.01, ge=0)
    vf_coef: float = field(0.5, ge=0)
    gae_lambda: float = field(1.0, ge=0, le=1)
    max_grad_norm: float = field(0.5, gt=0)
    normalize_advantages: bool = static_field(False)

    def optimizer(self, key: Array) -> Optimizer:
        return clipped_adam(Adam(eps=self.adam_eps), self.learning_rate, self.max_grad_norm, key)

    def make_batch(
        self, trajectory: Trajectory, intrinsic: IntrinsicRewards | None = None
    ) -> Batch:
        return gae_batch(trajectory, self.gamma, self.gae_lambda, intrinsic)

    def prepare_advantages(self, batch: Batch) -> Batch:
        return normalize_advantages(batch) if self.normalize_advantages else batch

    def loss_terms(self, output: Output, batch: Batch) -> LossTerms:
        """Returns the terms of the loss of each transition, [M]."""
        policy = -output.policy.log_prob(batch.action) * batch.advantage
        return LossTerms(policy, value_loss(output, batch), output.policy.entropy())

    def per_sample_loss(self, output: Output, batch: Batch) -> Array:
        return self.loss_terms(output, batch).weighted_sum(self.vf_coef, self.ent_coef)

    def loss(self, output: Output, minibatch: Batch) -> tuple[Array, Metrics]:
        terms = self.loss_terms(output, self.prepare_advantages(minibatch))
        means = LossTerms(*map(jnp.mean, terms))
        metrics = {
            "policy_loss": {"all": means.policy},
            "value_loss": {"all": means.value},
            "policy_entropy": {"all": means.entropy},
        }
        return means.weighted_sum(self.vf_coef, self.ent_coef), metrics

    def update(
        self,
        interventions: Interventions,
        state: State,
        train_state: TrainState,
        rollout: Rollout,
        context: Context,
    ) -> tuple[State, TrainState, Metrics]:
        step_key, end_key = jax.random.split(context.key)
        state, train_state, metrics = gradient_step(
            self,
            interventions,
            state,
            train_state,
            rollout.batch,
            rollout,
            context._replace(key=step_key),
        )
        state, train_state, update_metrics = end_update(
            interventions, state, train_state, rollout, context._replace(key=end_key)
        )
        return state, train_state, metrics | update_metrics
