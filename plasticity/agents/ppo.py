"""Proximal policy optimisation (Schulman et al. 2017), to be read from top to bottom.

Shapes: T steps of a rollout, N environments, B = T * N transitions, M a minibatch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.interventions import Batch, Context, Interventions, Learner, Optimizer
from plasticity.interventions.base import Adam, State
from plasticity.networks import Output, Params, norms, root_mean_squares
from plasticity.spec import Spec, setting, static

Array = jax.Array
Metrics = dict[str, dict[str, Array]]  # metric -> layer ("all" for the aggregate) -> scalar


class PPO(Spec):
    """The agent's hyperparameters; the defaults are those of the study's gridworld.

    Attributes:
      num_envs: environments stepped side by side (N).
      num_steps: steps of each of them between two updates (T).
      minibatch_size: transitions a gradient step; an incomplete last minibatch is dropped.
      num_epochs: passes over a rollout.
      learning_rate, adam_b1, adam_b2, adam_eps: of Adam.
      clip: how far the probability ratio may leave 1 before its gradient is cut.
      entropy: the weight of the entropy bonus.
      value: the weight of the value's squared error (not halved, not clipped).
      gamma, gae_lambda: discount, and decay of the advantage's trace.
      max_grad_norm: the global norm to which gradients are clipped.
      reset_optimizer: whether the optimiser's state is created anew at every shift, as in the
        study, where that is part of every method, the baseline included.
      normalize_observations: whether the network sees each entry of an observation less its mean
        and over its deviation so far in the lifetime, cut to [-10, 10].
      normalize_rewards: whether it learns from rewards over the deviation of their discounted
        sums so far, cut to [-10, 10]. What is reported as earned is not scaled.
      reset_statistics: whether both begin anew at every shift, as the optimiser does. If not, they
        are a past that every method has, `reset_all` included.
    """

    num_envs: int = static(11, ge=1)
    num_steps: int = static(100, ge=1)
    minibatch_size: int = static(64, ge=2)
    num_epochs: int = static(3, ge=1)
    learning_rate: float = setting(5e-4, gt=0)
    adam_b1: float = setting(0.9, ge=0, lt=1)
    adam_b2: float = setting(0.999, ge=0, lt=1)
    adam_eps: float = setting(1e-8, gt=0)
    clip: float = setting(0.2, gt=0)
    entropy: float = setting(0.02, ge=0)
    value: float = setting(0.5, ge=0)
    gamma: float = setting(0.99, ge=0, le=1)
    gae_lambda: float = setting(0.95, ge=0, le=1)
    max_grad_norm: float = setting(0.5, gt=0)
    reset_optimizer: bool = static(True)
    normalize_observations: bool = static(False)
    normalize_rewards: bool = static(False)
    reset_statistics: bool = static(False)

    @property
    def batch_size(self) -> int:
        """Transitions an update (B)."""
        return self.num_envs * self.num_steps


class Intrinsic(NamedTuple):
    """What curiosity earned in a rollout, and what PPO is to make of it."""

    reward: Array  # [T, N]
    value: Array  # [T, N]
    next_value: Array  # [T, N], of the next observation, though it be of the next episode
    gamma: Array | float  # the discount of these rewards
    weight: Array | float  # of their advantages
    extrinsic_weight: Array | float  # of the advantages of the environment's own rewards


class Trajectory(NamedTuple):
    """What a rollout hands to PPO. Arrays are [T, N, ...]."""

    observation: Array
    action: Array
    log_prob: Array  # of the action, under the policy that took it
    value: Array
    next_value: Array  # of the state that the step led to, an episode's last one included
    reward: Array
    terminated: Array  # the episode is over: the next state is worth nothing
    truncated: Array  # the episode was cut off: the next state is worth its value
    following: Array | None = None  # [N, ...]: the observation that comes after the last step
    intrinsic_value: Array | None = None  # where the network has such a head


def optimizer(ppo: PPO, key: Array) -> Optimizer:
    """Clipping by global norm, Adam, the learning rate; `key` is for what draws noise."""
    adam = Adam(ppo.adam_b1, ppo.adam_b2, ppo.adam_eps)
    return Optimizer(
        gradient=(optax.clip_by_global_norm(ppo.max_grad_norm),),
        direction=(optax.scale_by_adam(*adam),),
        step=(optax.scale_by_learning_rate(ppo.learning_rate),),
        key=key,
        adam=adam,
    )


def gae(trajectory: Trajectory, gamma: Array | float, gae_lambda: Array | float) -> Array:
    """Generalised advantage estimates [T, N] (Schulman et al. 2016).

    A state that an episode terminates in is worth nothing, one that it is cut off in is worth
    its value; in both cases the trace stops: the next step belongs to another episode.
    """
    worth = jnp.where(trajectory.terminated, 0.0, trajectory.next_value)
    delta = trajectory.reward + gamma * worth - trajectory.value
    return traced(delta, ~(trajectory.terminated | trajectory.truncated), gamma * gae_lambda)


def traced(delta: Array, goes_on: Array, decay: Array | float) -> Array:
    """What temporal differences [T, N] add up to, from the last backwards. [T, N].

    Args:
      delta: the differences.
      goes_on: whether the next step's belong to the same trace, bool [T, N].
      decay: of the trace, a step.
    """

    def back(advantage: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, goes_on = step
        advantage = delta + decay * goes_on * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, goes_on), reverse=True)
    return advantages


class Terms(NamedTuple):
    """What PPO's loss is made of: of each transition [B], or their means []."""

    policy: Array
    value: Array  # of both values, where there are two
    entropy: Array

    def total(self, ppo: PPO) -> Array:
        """The loss."""
        return self.policy + ppo.value * self.value - ppo.entropy * self.entropy


def normalized(batch: Batch) -> Batch:
    """The batch with advantages of mean 0 and standard deviation 1 (a sample's, as PyTorch's)."""
    advantage = batch.advantage - jnp.mean(batch.advantage)
    return batch._replace(advantage=advantage / (jnp.std(batch.advantage, ddof=1) + 1e-8))


def terms(ppo: PPO, output: Output, batch: Batch) -> Terms:
    """The terms of PPO's loss, transition by transition; advantages are taken as they are."""
    ratio = jnp.exp(output.policy.log_prob(batch.action) - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - ppo.clip, 1 + ppo.clip)
    value = jnp.square(output.value - batch.target)
    if batch.intrinsic_target is not None:
        assert output.intrinsic_value is not None
        value += jnp.square(output.intrinsic_value - batch.intrinsic_target)
    return Terms(
        policy=-jnp.minimum(ratio * batch.advantage, clipped * batch.advantage),
        value=value,
        entropy=output.policy.entropy(),
    )


def loss(ppo: PPO, output: Output, batch: Batch) -> tuple[Array, Metrics]:
    """PPO's loss of a minibatch whose network output is `output`: a scalar, and its terms."""
    each = terms(ppo, output, normalized(batch))
    means = Terms(*map(jnp.mean, each))
    log_ratio = output.policy.log_prob(batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    metrics = {
        "policy_loss": means.policy,
        "value_loss": means.value,
        "policy_entropy": means.entropy,
        "approx_kl": jnp.mean(ratio - 1 - log_ratio),  # the k3 estimator
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > ppo.clip),
    }
    return means.total(ppo), {name: {"all": metric} for name, metric in metrics.items()}


def transitions(ppo: PPO, trajectory: Trajectory, intrinsic: Intrinsic | None = None) -> Batch:
    """All that a rollout [T, N, ...] has to learn from, [T * N, ...].

    With curiosity the advantages are the weighted sum of both kinds (Burda et al. 2018). Those of
    what is intrinsic know no episodes: what is found in the next one is worth as much.
    """
    advantage = gae(trajectory, ppo.gamma, ppo.gae_lambda)
    batch = Batch(
        observation=trajectory.observation,
        action=trajectory.action,
        log_prob=trajectory.log_prob,
        advantage=advantage,
        target=advantage + trajectory.value,
    )
    if intrinsic is not None:
        delta = intrinsic.reward + intrinsic.gamma * intrinsic.next_value - intrinsic.value
        own = traced(delta, jnp.ones(delta.shape), intrinsic.gamma * ppo.gae_lambda)
        batch = batch._replace(
            advantage=intrinsic.extrinsic_weight * advantage + intrinsic.weight * own,
            intrinsic_target=own + intrinsic.value,
        )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def explained_variance(value: Array, target: Array) -> Array:
    """1 - Var(target - value) / Var(target): 1 for a perfect critic, 0 for a constant one."""
    variance = jnp.var(target)
    share = jnp.var(target - value) / jnp.where(variance == 0, 1.0, variance)
    return jnp.where(variance == 0, jnp.nan, 1 - share)


def minibatches(ppo: PPO, key: Array) -> Array:
    """Which transitions of a rollout each gradient step takes, all epochs after one another.

    int32 [steps, M].
    """
    num_minibatches = ppo.batch_size // ppo.minibatch_size
    order = jax.vmap(lambda key: jax.random.permutation(key, ppo.batch_size))(
        jax.random.split(key, ppo.num_epochs)
    )
    return order[:, : num_minibatches * ppo.minibatch_size].reshape(-1, ppo.minibatch_size)


def stepped(learner: Learner, gradient: Params, context: Context) -> Learner:
    """What learns, after a step of its optimiser."""
    updates, opt_state = context.optimizer.update(gradient, learner.opt_state, learner.params)
    return Learner(optax.apply_updates(learner.params, updates), opt_state)


def update(
    ppo: PPO,
    interventions: Interventions,
    context: Context,
    learner: Learner,
    state: State,
    trajectory: Trajectory,
    intrinsic: Intrinsic | None = None,
) -> tuple[Learner, State, Metrics]:
    """One PPO update from one rollout, with the interventions' hooks where they belong.

    Args:
      ppo: the hyperparameters.
      interventions: whose hooks act.
      context: the tools that hooks may use, and the randomness of this update.
      learner: parameters and optimiser before the update.
      state: the interventions' state before the update.
      trajectory: the rollout, [T, N, ...].
      intrinsic: what curiosity earned in it, where there is any.

    Returns:
      Learner and state after the update, and the update's metrics: means over its minibatches,
      gradient norms being those before clipping; `update_size`, the root mean square of the
      change in the parameters; and `explained_variance`, of the rollout's values.
    """
    shuffle_key, steps_key, end_key = jax.random.split(context.key, 3)
    data = transitions(ppo, trajectory, intrinsic)
    context = context._replace(rollout=data, rollout_params=learner.params)

    def objective(
        params: Params, state: State, batch: Batch, seen: Context
    ) -> tuple[Array, tuple[Output, Metrics]]:
        output = seen.apply(params, batch.observation)
        total, metrics = loss(ppo, output, batch)
        extra = interventions.loss(state, params, seen._replace(output=output))
        return total + extra, (output, metrics)

    def gradient_step(
        carry: tuple[Learner, State], step: tuple[Array, Array]
    ) -> tuple[tuple[Learner, State], Metrics]:
        (learner, state), (indices, key) = carry, step
        loss_key, step_key = jax.random.split(key)
        batch = jax.tree.map(lambda x: x[indices], data)
        seen = context._replace(key=loss_key, minibatch=batch)
        gradient, (output, metrics) = jax.grad(objective, has_aux=True)(
            learner.params, state, batch, seen
        )
        after = seen._replace(
            key=step_key, output=output, gradient=gradient, previous=learner.params
        )
        state, learner = interventions.after_step(state, stepped(learner, gradient, context), after)
        return (learner, state), {**metrics, "gradient_norm": norms(gradient)}

    order = minibatches(ppo, shuffle_key)
    (learner, state), metrics = jax.lax.scan(
        gradient_step, (learner, state), (order, jax.random.split(steps_key, len(order)))
    )
    state, learner = interventions.after_update(state, learner, context._replace(key=end_key))
    change = optax.tree.sub(learner.params, context.rollout_params)
    explained = explained_variance(trajectory.value.reshape(-1), data.target)
    return (
        learner,
        state,
        {
            **jax.tree.map(jnp.mean, metrics),
            "update_size": root_mean_squares(change),
            "explained_variance": {"all": explained},
        },
    )
