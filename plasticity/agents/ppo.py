"""Proximal policy optimization (Schulman et al. 2017), to be read from top to bottom.

Shapes: T steps of a rollout, N environments, B = T * N transitions, M transitions of a minibatch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.agents.base import (
    Agent,
    Carry,
    Input,
    IntrinsicRewards,
    Metrics,
    Trajectory,
    scan_gradient_steps,
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
from plasticity.scan import scan
from plasticity.struct import SettingError, field, static_field

Array = jax.Array


class PPO(Agent):
    """Proximal policy optimization. Defaults are those of Juliani & Ash (2024) in the gridworld.

    Attributes:
      num_envs: number of environments stepped in parallel (N).
      num_steps: steps of each environment between two updates (T).
      minibatch_size: transitions of a gradient step (M); an incomplete last one is dropped. For a
        network with memory they are those of whole sequences, in equal shares of all environments:
        it must be a divisor of `num_envs`, times `num_steps`.
      num_epochs: passes over a rollout.
      learning_rate: Adam's step size.
      adam_b1: decay of Adam's first moment.
      adam_b2: decay of Adam's second moment.
      adam_eps: Adam's epsilon.
      clip_eps: clipping range of the probability ratio.
      ent_coef: weight of the entropy bonus.
      vf_coef: weight of the squared value error, which is not halved; or of the cross-entropy of
        a categorical value.
      gamma: discount factor.
      gae_lambda: decay of generalized advantage estimation.
      max_grad_norm: global norm that gradients are clipped to.
      target_kl: `approx_kl` of an epoch's last minibatch above which an update ends with that
        epoch, as in CleanRL (see `scan_epochs`); all epochs are made if not given.
      vf_clip_eps: clipping range of the value around that of the rollout; not clipped if not given.
        CleanRL's `clip_vloss` takes that of the ratio: `'agent.vf_clip_eps=${agent.clip_eps}'`.
        Categorical values cannot be clipped.
      lr_schedule: how the learning rate falls to 0, "linear" or "cosine"; constant if not given.
        It is counted in gradient steps made since the optimizer's state was last reset: since the
        last shift, unless `reset_optimizer` is off.
      lr_decay_updates: the updates after which the learning rate is 0, those of the warm-up
        included: `'agent.lr_decay_updates=${schedule.updates_per_round}'`.
      lr_warmup_updates: updates in which the learning rate rises from 0, counted likewise: from
        each shift on.
      reset_optimizer: see `Agent`.
      normalize_observations: see `Agent`.
      normalize_rewards: see `Agent`.
      reset_statistics: see `Agent`.
    """

    num_envs: int = static_field(11, ge=1)
    num_steps: int = static_field(100, ge=1)
    minibatch_size: int = static_field(64, ge=2)
    num_epochs: int = static_field(3, ge=1)
    learning_rate: float = field(5e-4, gt=0)
    adam_b1: float = field(0.9, ge=0, lt=1)
    adam_b2: float = field(0.999, ge=0, lt=1)
    adam_eps: float = field(1e-8, gt=0)
    clip_eps: float = field(0.2, gt=0)
    ent_coef: float = field(0.02, ge=0)
    vf_coef: float = field(0.5, ge=0)
    gamma: float = field(0.99, ge=0, le=1)
    gae_lambda: float = field(0.95, ge=0, le=1)
    max_grad_norm: float = field(0.5, gt=0)
    target_kl: float | None = field(None, gt=0)
    vf_clip_eps: float | None = field(None, gt=0)
    lr_schedule: str | None = static_field(None, kind=str, choices=("linear", "cosine"))
    lr_decay_updates: int | None = static_field(None, kind=int, ge=1)
    lr_warmup_updates: int | None = static_field(None, kind=int, ge=1)

    @property
    def steps_per_update(self) -> int:
        """Gradient steps of an update."""
        return self.num_epochs * (self.batch_size // self.minibatch_size)

    def check(self) -> None:
        warmup, decay = self.lr_warmup_updates, self.lr_decay_updates
        if (self.lr_schedule is None) != (decay is None):
            raise SettingError(
                "agent.lr_decay_updates",
                decay,
                "must be the updates in which the learning rate falls to 0, such as "
                "schedule.updates_per_round, where agent.lr_schedule is set, and not set otherwise",
            )
        if decay is not None and warmup is not None and warmup >= decay:
            raise SettingError(
                "agent.lr_warmup_updates", warmup, f"must be less than lr_decay_updates={decay}"
            )
        if self.minibatch_size > self.batch_size:
            raise SettingError(
                "agent.minibatch_size",
                self.minibatch_size,
                f"must be at most agent.num_envs * agent.num_steps = {self.batch_size}",
            )

    def check_sequences(self) -> None:
        sequences, rest = divmod(self.minibatch_size, self.num_steps)
        if rest or self.num_envs % sequences:
            sizes = [
                n * self.num_steps for n in range(1, self.num_envs + 1) if not self.num_envs % n
            ]
            raise SettingError(
                "agent.minibatch_size",
                self.minibatch_size,
                "must be that of whole sequences, in equal shares of all environments, for a "
                f"network with memory: one of {', '.join(map(str, sizes))} where "
                f"agent.num_envs={self.num_envs} and agent.num_steps={self.num_steps}",
            )

    def check_categorical_value(self) -> None:
        if self.vf_clip_eps is not None:
            raise SettingError(
                "agent.vf_clip_eps",
                self.vf_clip_eps,
                "must not be set where the value is categorical, as by network.value_head",
            )

    def optimizer(self, key: Array) -> Optimizer:
        adam = Adam(self.adam_b1, self.adam_b2, self.adam_eps)
        learning_rate = make_schedule(
            self.learning_rate,
            self.lr_schedule,
            (self.lr_warmup_updates or 0) * self.steps_per_update,
            (self.lr_decay_updates or 0) * self.steps_per_update,
        )
        return clipped_adam(adam, learning_rate, self.max_grad_norm, key)

    def make_batch(
        self, trajectory: Trajectory, intrinsic: IntrinsicRewards | None = None
    ) -> Batch:
        return gae_batch(trajectory, self.gamma, self.gae_lambda, intrinsic)

    def minibatches(self, key: Array, num_samples: int | None = None) -> Array:
        num_samples = num_samples or self.batch_size
        size = self.minibatch_size * num_samples // self.batch_size  # in samples
        order = jax.vmap(lambda key: jax.random.permutation(key, num_samples))(
            jax.random.split(key, self.num_epochs)
        )
        num_minibatches = self.batch_size // self.minibatch_size
        return order[:, : num_minibatches * size].reshape(-1, size)

    def prepare_advantages(self, batch: Batch) -> Batch:
        return normalize_advantages(batch)

    def loss_terms(self, output: Output, batch: Batch) -> "LossTerms":
        """Returns the terms of the loss of each transition, [M]."""
        ratio = jnp.exp(output.policy.log_prob(batch.action) - batch.log_prob)
        clipped = jnp.clip(ratio, 1 - self.clip_eps, 1 + self.clip_eps)
        return LossTerms(
            policy=-jnp.minimum(ratio * batch.advantage, clipped * batch.advantage),
            value=value_loss(output, batch, self.vf_clip_eps),
            entropy=output.policy.entropy(),
        )

    def per_sample_loss(self, output: Output, batch: Batch) -> Array:
        return self.loss_terms(output, batch).weighted_sum(self.vf_coef, self.ent_coef)

    def loss(self, output: Output, minibatch: Batch) -> tuple[Array, Metrics]:
        terms = self.loss_terms(output, self.prepare_advantages(minibatch))
        means = LossTerms(*map(jnp.mean, terms))
        log_ratio = output.policy.log_prob(minibatch.action) - minibatch.log_prob
        ratio = jnp.exp(log_ratio)
        metrics = {
            "policy_loss": means.policy,
            "value_loss": means.value,
            "policy_entropy": means.entropy,
            "approx_kl": jnp.mean(ratio - 1 - log_ratio),  # the k3 estimator
            "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > self.clip_eps),
        }
        loss = means.weighted_sum(self.vf_coef, self.ent_coef)
        return loss, {name: {"all": metric} for name, metric in metrics.items()}

    def update(
        self,
        interventions: Interventions,
        state: State,
        train_state: TrainState,
        rollout: Rollout,
        context: Context,
    ) -> tuple[State, TrainState, Metrics]:
        """Makes a gradient step on each minibatch of each epoch. See `update_on_minibatches`."""
        scan_steps: Callable[..., Any] = scan_gradient_steps
        if self.target_kl is not None:
            scan_steps = partial(scan_epochs, self.num_epochs, self.target_kl)
        return update_on_minibatches(
            self, interventions, state, train_state, rollout, context, scan_steps
        )


class LossTerms(NamedTuple):
    """The terms of an actor-critic loss: of each transition [M], or their means []."""

    policy: Array
    value: Array  # the sum over both value heads, where there are two
    entropy: Array

    def weighted_sum(self, vf_coef: Array | float, ent_coef: Array | float) -> Array:
        """Returns policy + vf_coef * value - ent_coef * entropy."""
        return self.policy + vf_coef * self.value - ent_coef * self.entropy


def scan_epochs(
    num_epochs: int,
    target_kl: Array | float,
    step: Callable[[Carry, Input], tuple[Carry, Metrics]],
    init: Carry,
    inputs: Input,
) -> tuple[Carry, Metrics]:
    """Makes gradient steps until the policy has moved too far by the end of an epoch.

    As CleanRL does: no step is made after an epoch whose last minibatch had an `approx_kl` above
    the target. (Stable-Baselines3 compares every minibatch with 1.5 times the target, and does not
    make that minibatch's step either.)

    Args:
      num_epochs: epochs, which have equally many steps.
      target_kl: the target.
      step: see `scan_gradient_steps`; its metrics have `approx_kl`.
      init: see `scan_gradient_steps`.
      inputs: see `scan_gradient_steps`.

    Returns:
      What the last step made has changed; and the mean of each metric over the steps made, with
      their number as `gradient_steps`.
    """
    num_steps = len(jax.tree.leaves(inputs)[0])
    ends_epoch = (jnp.arange(num_steps) + 1) % (num_steps // num_epochs) == 0

    def step_unless_stopped(
        carry: tuple[Carry, Array], inputs: tuple[Input, Array]
    ) -> tuple[tuple[Carry, Array], Metrics]:
        (inner, stopped), (step_inputs, is_end) = carry, inputs
        shapes = jax.eval_shape(step, inner, step_inputs)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        inner, metrics = jax.lax.cond(
            stopped, lambda: (inner, zeros), lambda: step(inner, step_inputs)
        )
        exceeds = is_end & (metrics["approx_kl"]["all"] > target_kl)
        made = {"gradient_steps": {"all": jnp.where(stopped, 0.0, 1.0)}}
        return (inner, stopped | exceeds), {**metrics, **made}

    (carry, _), means = scan_gradient_steps(
        step_unless_stopped, (init, jnp.zeros((), bool)), (inputs, ends_epoch)
    )
    made = means.pop("gradient_steps")["all"]  # as a fraction
    metrics = jax.tree.map(lambda mean: mean / made, means)
    return carry, {**metrics, "gradient_steps": {"all": made * num_steps}}


def make_schedule(
    learning_rate: Array | float, shape: str | None, warmup_steps: int, decay_steps: int
) -> Array | float | optax.Schedule:
    """Returns the learning rate as a function of the gradient step, or as it is if it is constant.

    It rises linearly from 0, and then falls to 0.

    Args:
      learning_rate: the learning rate after the warm-up.
      shape: how it falls, "linear" or "cosine"; it stays if None.
      warmup_steps: gradient steps of the warm-up.
      decay_steps: gradient steps after which it is 0, those of the warm-up included.
    """
    if shape is None and not warmup_steps:
        return learning_rate
    schedules: dict[str | None, optax.Schedule] = {None: optax.constant_schedule(learning_rate)}
    if shape is not None:
        steps = decay_steps - warmup_steps
        schedules["linear"] = optax.linear_schedule(learning_rate, 0.0, steps)
        schedules["cosine"] = optax.cosine_decay_schedule(learning_rate, steps)
    if not warmup_steps:
        return schedules[shape]
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedules[shape]], [warmup_steps])


def clipped_adam(
    adam: Adam,
    learning_rate: Array | float | optax.Schedule,
    max_grad_norm: Array | float,
    key: Array,
) -> Optimizer:
    """Returns clipping by global norm, then Adam."""
    return Optimizer(
        gradient=(optax.clip_by_global_norm(max_grad_norm),),
        direction=(optax.scale_by_adam(*adam),),
        step=(optax.scale_by_learning_rate(learning_rate),),
        key=key,
        adam=adam,
    )


def gae_batch(
    trajectory: Trajectory,
    gamma: Array | float,
    gae_lambda: Array | float,
    intrinsic: IntrinsicRewards | None = None,
) -> Batch:
    """Turns a rollout [T, N, ...] into samples, with GAE advantages and lambda-returns.

    With intrinsic rewards the advantage is the weighted sum of both kinds (Burda et al. 2018).
    Intrinsic returns are not episodic: they are accumulated across the ends of episodes.

    Args:
      trajectory: the rollout.
      gamma: discount factor.
      gae_lambda: decay of the estimator.
      intrinsic: intrinsic rewards of the rollout, if there are any.
    """
    advantage = gae(trajectory, gamma, gae_lambda)
    batch = Batch(
        observation=trajectory.observation,
        action=trajectory.action,
        log_prob=trajectory.log_prob,
        value=trajectory.value,
        advantage=advantage,
        target=advantage + trajectory.value,
    )
    if intrinsic is not None:
        delta = intrinsic.reward + intrinsic.gamma * intrinsic.next_value - intrinsic.value
        intrinsic_advantage = gae_scan(delta, jnp.ones(delta.shape), intrinsic.gamma * gae_lambda)
        batch = batch._replace(
            advantage=intrinsic.ext_coef * advantage + intrinsic.int_coef * intrinsic_advantage,
            intrinsic_target=intrinsic_advantage + intrinsic.value,
        )
    return trajectory.as_samples(batch)


def gae(trajectory: Trajectory, gamma: Array | float, gae_lambda: Array | float) -> Array:
    """Computes generalized advantage estimates, [T, N] (Schulman et al. 2016).

    The bootstrap value is 0 where an episode terminated, and the value of the state reached where
    it was truncated. The sum of TD errors is reset in both cases.

    Args:
      trajectory: the rollout.
      gamma: discount factor.
      gae_lambda: decay of the estimator.
    """
    bootstrap_value = jnp.where(trajectory.terminated, 0.0, trajectory.next_value)
    delta = trajectory.reward + gamma * bootstrap_value - trajectory.value
    return gae_scan(delta, trajectory.not_done, gamma * gae_lambda)


def gae_scan(delta: Array, not_done: Array, decay: Array | float) -> Array:
    """Computes the discounted reverse cumulative sum of TD errors, reset at episode ends. [T, N].

    Args:
      delta: TD errors, [T, N].
      not_done: whether the next step belongs to the same episode, bool [T, N].
      decay: discount of one step, gamma * lambda.
    """

    def step(advantage: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, not_done = inputs
        advantage = delta + decay * not_done * advantage
        return advantage, advantage

    _, advantages = scan(
        step, jnp.zeros_like(delta[0]), (delta, not_done), gpu_unroll=10, reverse=True
    )
    return advantages


def normalize_advantages(batch: Batch) -> Batch:
    """Normalizes advantages to mean 0 and (unbiased) standard deviation 1, as PyTorch's std."""
    advantage = batch.advantage - jnp.mean(batch.advantage)
    return batch._replace(advantage=advantage / (jnp.std(batch.advantage, ddof=1) + 1e-8))


def value_loss(output: Output, batch: Batch, clip_eps: Array | float | None = None) -> Array:
    """Returns the loss of the value of each transition, summed over value heads. [M].

    It is the squared error, or the cross-entropy of a categorical value (`Output.value_loss`).

    Args:
      output: the network's output.
      batch: the transitions.
      clip_eps: if given, the squared error is the larger one of the value and of the value clipped
        to this distance from that of the rollout. The intrinsic value is not clipped, as in
        CleanRL.
    """
    loss = output.value_loss(batch.target)
    if clip_eps is not None:
        clipped = batch.value + jnp.clip(output.value - batch.value, -clip_eps, clip_eps)
        loss = jnp.maximum(loss, jnp.square(clipped - batch.target))
    if batch.intrinsic_target is not None and output.intrinsic_value is not None:
        loss += jnp.square(output.intrinsic_value - batch.intrinsic_target)
    return loss
