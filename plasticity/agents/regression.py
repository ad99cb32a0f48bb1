"""Online regression: a supervised learner in the form of an agent."""

import jax
import jax.numpy as jnp
import optax

from plasticity.agents.base import (
    Agent,
    IntrinsicRewards,
    Metrics,
    Trajectory,
    update_on_minibatches,
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
from plasticity.struct import SettingError, field, static_field

Array = jax.Array


class OnlineRegression(Agent):
    """Predicts rewards by the value, with one gradient step for each example, in order.

    The learner of the supervised problems of Dohare et al. (2024): the loss of an example is the
    squared error, and is measured before the step, as `squared_error`. The policy is not trained.
    An update has `num_envs` * `num_steps` examples. Interventions that act after updates act after
    that many steps; `maturity` and the like count single steps.

    Attributes:
      num_envs: see `Agent`.
      num_steps: see `Agent`; 1 where an episode is one example.
      learning_rate: the step size.
      rule: the update rule: "sgd" without momentum, or "adam".
      reset_optimizer: see `Agent`.
      normalize_observations: see `Agent`.
      normalize_rewards: see `Agent`.
      reset_statistics: see `Agent`.
    """

    num_envs: int = static_field(100, ge=1)
    num_steps: int = static_field(1, ge=1)
    learning_rate: float = field(0.01, gt=0)
    rule: str = static_field("sgd", choices=("sgd", "adam"))
    reset_optimizer: bool = static_field(False)

    def optimizer(self, key: Array) -> Optimizer:
        direction, adam = optax.identity(), None
        if self.rule == "adam":
            adam = Adam()
            direction = optax.scale_by_adam(*adam)
        step = optax.scale_by_learning_rate(self.learning_rate)
        return Optimizer(gradient=(), direction=(direction,), step=(step,), key=key, adam=adam)

    def make_batch(
        self, trajectory: Trajectory, intrinsic: IntrinsicRewards | None = None
    ) -> Batch:
        reward = trajectory.reward
        if intrinsic is not None:
            reward = intrinsic.ext_coef * reward + intrinsic.int_coef * intrinsic.reward
        batch = Batch(
            observation=trajectory.observation,
            action=trajectory.action,
            log_prob=trajectory.log_prob,
            value=trajectory.value,
            advantage=reward - trajectory.value,
            target=reward,
        )
        return trajectory.as_samples(batch)

    def per_sample_loss(self, output: Output, batch: Batch) -> Array:
        return jnp.square(output.value - batch.target)

    def loss(self, output: Output, minibatch: Batch) -> tuple[Array, Metrics]:
        loss = jnp.mean(self.per_sample_loss(output, minibatch))
        return loss, {"squared_error": {"all": loss}}

    def check_sequences(self) -> None:
        raise SettingError("agent", "regression", "must be another for a network with memory")

    def check_categorical_value(self) -> None:
        raise SettingError("agent", "regression", "must be another for a categorical value")

    def minibatches(self, key: Array, num_samples: int | None = None) -> Array:
        return jnp.arange(num_samples or self.batch_size)[:, None]

    def update(
        self,
        interventions: Interventions,
        state: State,
        train_state: TrainState,
        rollout: Rollout,
        context: Context,
    ) -> tuple[State, TrainState, Metrics]:
        """Makes a gradient step on each example. See `update_on_minibatches`."""
        return update_on_minibatches(self, interventions, state, train_state, rollout, context)
