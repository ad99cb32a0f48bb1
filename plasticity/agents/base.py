"""The agent interface: from a rollout to updated parameters.

Shapes: T steps of a rollout, N environments, B = T * N transitions, M transitions of a minibatch.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from plasticity.interventions import (
    Batch,
    Context,
    GradientStep,
    Interventions,
    Optimizer,
    Rollout,
    TrainState,
)
from plasticity.interventions.base import State
from plasticity.networks import Memory, Output, Params, Sequences, norms, root_mean_squares
from plasticity.scan import scan
from plasticity.struct import Struct, field, static_field

Array = jax.Array
Carry = TypeVar("Carry")
Input = TypeVar("Input")
Metrics = dict[str, dict[str, Array]]  # metric -> layer ("all" for the aggregate) -> scalar


class Trajectory(NamedTuple):
    """A rollout, as the environments give it. Arrays are [T, N, ...].

    `terminated` marks the last step of an episode that ended: the bootstrap value is 0.
    `truncated` marks the last step of an episode that was cut off: it is bootstrapped from
    `next_value`, the value of the state reached.
    """

    observation: Array
    action: Array
    log_prob: Array  # of the action, under the policy that took it
    value: Array
    next_value: Array  # of the state reached, also where it was an episode's last
    reward: Array
    terminated: Array  # bool
    truncated: Array  # bool
    last_obs: Array  # [N, ...]: the observation after the last step
    intrinsic_value: Array | None = None  # where the network has such a head
    memory: Memory = ()  # [N, ...]: the network's before the first step; () without memory
    last_memory: Memory = ()  # [N, ...]: before the step that would follow the last

    @property
    def not_done(self) -> Array:
        """Whether the next step belongs to the same episode. bool [T, N]."""
        return ~(self.terminated | self.truncated)

    def as_samples(self, batch: Batch) -> Batch:
        """Turns steps [T, N, ...] into the samples of a batch.

        They are transitions, [B, ...]; or sequences, [N, T, ...], if the network has a memory.

        Args:
          batch: arrays [T, N, ...] of the rollout.
        """
        if not jax.tree.leaves(self.memory):
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        samples = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch)
        inputs = Sequences(samples.observation, self.memory, self.not_done.T)
        return samples._replace(observation=inputs)


class IntrinsicRewards(NamedTuple):
    """Intrinsic rewards of a rollout, and how the agent weights them."""

    reward: Array  # [T, N]
    value: Array  # [T, N]
    next_value: Array  # [T, N]: of the next observation, also across episodes
    gamma: Array | float  # the discount of intrinsic rewards
    int_coef: Array | float  # the weight of intrinsic advantages
    ext_coef: Array | float  # the weight of extrinsic advantages


class Agent(Struct):
    """Base class of agents: hyperparameters, and pure methods that learn from a rollout.

    Write `optimizer`, `make_batch`, `per_sample_loss` and `update`; `gradient_step` makes one step
    with all hooks of the interventions. `plasticity/agents/a2c.py` is a short example.

    A batch is of B samples: of transitions, or of N sequences of T steps if the network has a
    memory. An array of M samples is then [M, T, ...].

    A subclass of an agent that has a `loss` of its own may not override `per_sample_loss` alone,
    for probes would then differentiate another loss than the one that is trained.
    The training loop collects rollouts, normalizes observations and rewards, and resets the
    optimizer and the statistics at shifts.

    Attributes:
      num_envs: number of environments stepped in parallel (N).
      num_steps: steps of each environment between two updates (T).
      gamma: discount factor.
      reset_optimizer: whether the optimizer's state is reset at every shift. Juliani & Ash (2024)
        do so under every method, the baseline included.
      normalize_observations: whether the network sees observations normalized by their running
        mean and standard deviation, clipped to [-10, 10].
      normalize_rewards: whether the agent learns from rewards divided by the running standard
        deviation of their discounted sum, clipped to [-10, 10]. Returns are reported unscaled.
      reset_statistics: whether both running statistics are reset at every shift. If not, they
        carry information over shifts under every method, `reset_all` included.
    """

    num_envs: int = static_field(11, ge=1)
    num_steps: int = static_field(100, ge=1)
    gamma: float = field(0.99, ge=0, le=1)
    reset_optimizer: bool = static_field(True)
    normalize_observations: bool = static_field(False)
    normalize_rewards: bool = static_field(False)
    reset_statistics: bool = static_field(False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        if "per_sample_loss" in own and "loss" not in own and cls.loss is not Agent.loss:
            raise TypeError(
                f"{cls.__name__} overrides per_sample_loss, which its base's loss does not use: "
                "override loss_terms, or loss as well"
            )

    @property
    def batch_size(self) -> int:
        """Transitions of an update (B)."""
        return self.num_envs * self.num_steps

    def check(self) -> None:
        """Raises `SettingError` if hyperparameters do not go together."""

    def check_sequences(self) -> None:
        """Raises `SettingError` if it cannot learn from sequences, as of networks with memory."""

    def check_categorical_value(self) -> None:
        """Raises `SettingError` if it cannot learn categorical values (`CategoricalValue`)."""

    @abstractmethod
    def optimizer(self, key: Array) -> Optimizer:
        """Returns the update rule, before interventions change it.

        Args:
          key: randomness for update rules that draw noise.
        """
        raise NotImplementedError

    @abstractmethod
    def make_batch(
        self, trajectory: Trajectory, intrinsic: IntrinsicRewards | None = None
    ) -> Batch:
        """Computes advantages and value targets of a rollout, and turns it into samples.

        For the latter see `Trajectory.as_samples`.

        Args:
          trajectory: the rollout, [T, N, ...], with rewards as the agent learns from them.
          intrinsic: intrinsic rewards of the rollout, if there are any.
        """
        raise NotImplementedError

    @abstractmethod
    def per_sample_loss(self, output: Output, batch: Batch) -> Array:
        """Returns the loss of each transition, [M]. Probes differentiate it.

        Args:
          output: the network's output on the observations of `batch`.
          batch: [M, ...], with advantages as the loss uses them.
        """
        raise NotImplementedError

    def prepare_advantages(self, batch: Batch) -> Batch:
        """Returns the batch with advantages as `per_sample_loss` takes them."""
        return batch

    def loss(self, output: Output, minibatch: Batch) -> tuple[Array, Metrics]:
        """Returns the loss of a minibatch, a scalar, and metrics.

        Args:
          output: the network's output on the observations of the minibatch.
          minibatch: [M, ...], with advantages as `make_batch` computed them.
        """
        loss = jnp.mean(self.per_sample_loss(output, self.prepare_advantages(minibatch)))
        return loss, {"loss": {"all": loss}}

    def minibatches(self, key: Array, num_samples: int | None = None) -> Array:
        """Returns the indices of each gradient step's samples, int32 [steps, M].

        One step on the whole batch, unless overridden. A predictor of intrinsic rewards takes as
        many steps as the agent, on transitions.

        Args:
          key: randomness for the order.
          num_samples: the samples of the batch: N sequences, or by default B transitions.
        """
        return jnp.arange(num_samples or self.batch_size)[None]

    @abstractmethod
    def update(
        self,
        interventions: Interventions,
        state: State,
        train_state: TrainState,
        rollout: Rollout,
        context: Context,
    ) -> tuple[State, TrainState, Metrics]:
        """Learns from a rollout.

        Args:
          interventions: the interventions whose hooks act: see `gradient_step` and `end_update`.
          state: the interventions' state before the update.
          train_state: parameters and optimizer before the update.
          rollout: the transitions, and the parameters that collected them.
          context: tools for the hooks, and the randomness of this update.

        Returns:
          The interventions' state and the train state after the update, and metrics.
          `gradient_norm` and `update_size` must be among the latter, each with an entry "all": a
          run in which one of them is not finite has diverged.
        """
        raise NotImplementedError


def gradient_step(
    agent: Agent,
    interventions: Interventions,
    state: State,
    train_state: TrainState,
    minibatch: Batch,
    rollout: Rollout,
    context: Context,
) -> tuple[State, TrainState, Metrics]:
    """Makes one gradient step on a minibatch, with the loss terms and hooks of interventions.

    Args:
      agent: the agent, for its loss.
      interventions: the interventions whose hooks act.
      state: the interventions' state before the step.
      train_state: parameters and optimizer before the step.
      minibatch: the transitions, [M, ...].
      rollout: the rollout that they are of.
      context: tools for the hooks, and the randomness of this step.

    Returns:
      The interventions' state and the train state after the step; and metrics, with
      `gradient_norm` before clipping.
    """
    loss_key, step_key = jax.random.split(context.key)

    def objective(params: Params) -> tuple[Array, tuple[Output, Metrics, Any]]:
        output = context.apply(params, minibatch.observation)
        loss, metrics = agent.loss(output, minibatch)
        added, aux = interventions.loss(
            state, params, output, minibatch, rollout, context._replace(key=loss_key)
        )
        return loss + added, (output, metrics, aux)

    compute = interventions.gradient(jax.grad(objective, has_aux=True))
    gradients, (output, metrics, aux) = compute(train_state.params)
    step = GradientStep(gradients, train_state.params, output.activations, metrics, aux)
    state, train_state = interventions.after_step(
        state,
        apply_gradients(train_state, gradients, context.optimizer),
        step,
        context._replace(key=step_key),
    )
    train_state = train_state._replace(params=context.project(train_state.params))
    return state, train_state, {**metrics, "gradient_norm": norms(gradients)}


def scan_gradient_steps(
    step: Callable[[Carry, Input], tuple[Carry, Metrics]], init: Carry, inputs: Input
) -> tuple[Carry, Metrics]:
    """Makes gradient steps one after another.

    Args:
      step: makes one step: from what it changes, and its own inputs, to what it has changed and
        metrics.
      init: what the first step changes.
      inputs: the inputs of each step, [steps, ...].

    Returns:
      What the last step has changed, and the mean of each metric over the steps.
    """

    def step_stacked(carry: Carry, inputs: Input) -> tuple[Carry, _StackedMetrics]:
        carry, metrics = step(carry, inputs)
        scalars, structure = jax.tree.flatten(metrics)
        return carry, _StackedMetrics(jnp.stack(scalars), structure)

    carry, stacked = scan(step_stacked, init, inputs, gpu_unroll=3)
    return carry, jax.tree.unflatten(stacked.structure, list(jnp.mean(stacked.values, axis=0)))


@flax.struct.dataclass
class _StackedMetrics:
    """Metrics in one array, which a GPU writes with one kernel and not with one for each."""

    values: Array  # [K], or [steps, K]
    structure: Any = flax.struct.field(pytree_node=False)


def end_update(
    interventions: Interventions,
    state: State,
    train_state: TrainState,
    rollout: Rollout,
    context: Context,
) -> tuple[State, TrainState, Metrics]:
    """Calls `after_update`, and measures what the whole update changed.

    Args:
      interventions: the interventions whose hooks act.
      state: the interventions' state after the last gradient step.
      train_state: parameters and optimizer then.
      rollout: the rollout that was learned from.
      context: tools for the hooks, and the randomness of this moment.

    Returns:
      The interventions' state and the train state, and metrics: `update_size`, the root mean
      square of the change of the parameters, and `explained_variance` of the rollout's values.
    """
    state, train_state = interventions.after_update(state, train_state, rollout, context)
    train_state = train_state._replace(params=context.project(train_state.params))
    change = optax.tree.sub(train_state.params, rollout.params)
    explained = explained_variance(rollout.batch.value, rollout.batch.target)
    metrics = {"update_size": root_mean_squares(change), "explained_variance": {"all": explained}}
    return state, train_state, metrics


def update_on_minibatches(
    agent: Agent,
    interventions: Interventions,
    state: State,
    train_state: TrainState,
    rollout: Rollout,
    context: Context,
    scan_steps: Callable[..., Any] = scan_gradient_steps,
) -> tuple[State, TrainState, Metrics]:
    """Makes a gradient step on each of an agent's minibatches, in order, and ends the update.

    Args:
      agent: the agent, for its minibatches and its loss.
      interventions: see `Agent.update`, as for all following.
      state: the interventions' state.
      train_state: parameters and optimizer.
      rollout: the transitions.
      context: tools for the hooks, and the randomness of this update.
      scan_steps: makes the steps; see `scan_gradient_steps`.

    Returns:
      See `Agent.update`. Metrics are means over gradient steps, those of `end_update` apart.
    """
    order_key, steps_key, end_key = jax.random.split(context.key, 3)

    def step(
        carry: tuple[State, TrainState], inputs: tuple[Array, Array]
    ) -> tuple[tuple[State, TrainState], Metrics]:
        indices, key = inputs
        minibatch = jax.tree.map(lambda x: x[indices], rollout.batch)
        state, train_state, metrics = gradient_step(
            agent, interventions, *carry, minibatch, rollout, context._replace(key=key)
        )
        return (state, train_state), metrics

    minibatches = agent.minibatches(order_key, len(rollout.batch.action))
    keys = jax.random.split(steps_key, len(minibatches))
    (state, train_state), metrics = scan_steps(step, (state, train_state), (minibatches, keys))
    state, train_state, update_metrics = end_update(
        interventions, state, train_state, rollout, context._replace(key=end_key)
    )
    return state, train_state, {**metrics, **update_metrics}


def apply_gradients(
    train_state: TrainState, gradients: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """Makes one step of the optimizer."""
    updates, opt_state = optimizer.update(gradients, train_state.opt_state, train_state.params)
    return TrainState(optax.apply_updates(train_state.params, updates), opt_state)


def explained_variance(value: Array, target: Array) -> Array:
    """Returns 1 - Var(target - value) / Var(target); NaN where all targets are equal. []."""
    variance = jnp.var(target)
    unexplained = jnp.var(target - value) / jnp.where(variance == 0, 1.0, variance)
    return jnp.where(variance == 0, jnp.nan, 1 - unexplained)
