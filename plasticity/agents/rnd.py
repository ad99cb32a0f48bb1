"""Random network distillation (Burda et al. 2018): what cannot be predicted yet is worth seeing.

A target network, drawn once, says something of each observation; a predictor is trained to say
the same. How far it is off is what an observation earns: much where little like it has been seen.

Shapes: T steps of a rollout, N environments, M a minibatch.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from plasticity.agents import ppo
from plasticity.agents.moments import Moments, Returns, moments, returns
from plasticity.agents.ppo import PPO, Intrinsic, Metrics, Trajectory
from plasticity.interventions import Context, Interventions, Learner
from plasticity.networks import Network, Output, Params
from plasticity.networks.torso import Dense, Torso
from plasticity.spec import Spec, setting, static

Array = jax.Array


class RND(Spec):
    """The hyperparameters of curiosity; the defaults are those of Burda et al. (2018).

    Readings: rewards are computed when a rollout is done, and the statistics that scale them and
    what is seen include that rollout, so that none is needed beforehand (there, a random agent's
    steps come first). The predictor has an optimiser of its own, with the agent's coefficients
    and clipping; there, one Adam has the parameters of both. Weights are drawn as the agent's are.

    Attributes:
      weight: of the advantages of what is intrinsic.
      extrinsic_weight: of those of the environment's own rewards.
      gamma: the discount of intrinsic rewards, which know no episodes.
      share: how much of each minibatch the predictor is trained on. In the paper as much as 32
        environments are worth, however many there are; there each transition is taken by a coin.
      features: how many numbers the target says of an observation.
      channels: of what the agent sees, how many of the last channels predictor and target see, as
        the newest of Atari's stacked frames; 0 for all.
      limit: entries of what they see are cut to [-limit, limit] deviations.
      network: of the predictor, before the layer that says `features`. The target has the last
        two of its hidden layers fewer.
      intervention: interventions on the predictor, beside those on the agent. Only those that
        treat all parameters alike, without units, activations or heads.
    """

    weight: float = setting(1.0, ge=0)
    extrinsic_weight: float = setting(2.0, ge=0)
    gamma: float = setting(0.99, ge=0, le=1)
    share: float = static(0.25, gt=0, le=1)
    features: int = static(512, ge=1)
    channels: int = static(0, ge=0)
    limit: float = setting(5.0, gt=0)
    network: Network = Network(hidden=(256, 256, 256))
    intervention: Interventions = Interventions()


class Curiosity(NamedTuple):
    """All of it that changes, and the target."""

    predictor: Learner
    intervention: Any  # the state of the predictor's interventions
    target: Params
    seen: Moments  # [*shape], of the observations
    earned: Returns  # of the intrinsic rewards


class Described(nn.Module):
    """A torso, where there is one, and a linear layer `features` on what it comes to."""

    torso: Torso
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x, [B, *shape]. Returns [B, features]."""
        return Dense(self.features, name="features")(self.torso(x)[0])


def context_of(
    rnd: RND, agent: PPO, shape: tuple[int, ...], optimizer_key: Array, context: Context
) -> Context:
    """What the hooks of the predictor's interventions may use.

    Args:
      rnd: the hyperparameters.
      agent: the agent's.
      shape: of what the agent sees.
      optimizer_key: for what draws noise in the update rule, of this round.
      context: the agent's, with a key for what is to come.
    """
    shape = seen_shape(rnd, shape)
    predictor = _predictor(rnd, shape)

    def fresh(key: Array) -> Params:
        params = predictor.init(key, jnp.zeros((1, *shape)))["params"]
        return rnd.intervention.extend(params, jax.random.fold_in(key, 0))

    def apply(params: Params, observation: Array) -> Output:
        raise TypeError("the predictor is no policy")

    optimizer = ppo.optimizer(agent, optimizer_key)
    return context._replace(
        fresh=fresh,
        apply=apply,
        effective=rnd.intervention.effective,
        optimizer=rnd.intervention.optimizer(optimizer).build(),
    )


def start(rnd: RND, agent: PPO, shape: tuple[int, ...], context: Context) -> Curiosity:
    """Before anything has been seen.

    Args:
      rnd: the hyperparameters.
      agent: the agent's.
      shape: of what the agent sees.
      context: of `context_of`.
    """
    target_key, predictor_key, key = jax.random.split(context.key, 3)
    shape = seen_shape(rnd, shape)
    params = context.fresh(predictor_key)
    predictor = Learner(params, context.optimizer.init(params))
    return Curiosity(
        predictor=predictor,
        intervention=rnd.intervention.init(predictor, context._replace(key=key)),
        target=_target(rnd, shape).init(target_key, jnp.zeros((1, *shape)))["params"],
        seen=moments(shape),
        earned=returns(agent.num_envs),
    )


def meet(
    rnd: RND, curiosity: Curiosity, trajectory: Trajectory, context: Context
) -> tuple[Curiosity, Array, Metrics]:
    """Takes a rollout into the statistics.

    Args:
      rnd: the hyperparameters.
      curiosity: before the rollout.
      trajectory: the rollout, [T, N, ...].
      context: of `context_of`.

    Returns:
      Curiosity after it, its `novelty`, and metrics: `novelty`, the mean of that;
      `intrinsic_reward`, the same over the deviation of its discounted sums; and
      `intrinsic_return`, the mean of those sums after the last step over their deviation.
    """
    coming = _coming(rnd, trajectory)
    seen = curiosity.seen.including(coming.reshape(-1, *coming.shape[2:]))
    curiosity = curiosity._replace(seen=seen)
    found = novelty(rnd, curiosity, trajectory, context)
    earned = curiosity.earned.including(found, jnp.ones(found.shape, bool), rnd.gamma)
    metrics = {
        "novelty": jnp.mean(found),
        "intrinsic_reward": jnp.mean(found) / earned.scale,
        "intrinsic_return": jnp.mean(earned.sums) / earned.scale,
    }
    return curiosity._replace(earned=earned), found, _named(metrics)


def novelty(rnd: RND, curiosity: Curiosity, trajectory: Trajectory, context: Context) -> Array:
    """The predictor's mean squared errors, [T, N], on what each step of a rollout led to.

    That may be the first observation of the next episode.

    Args:
      rnd: the hyperparameters.
      curiosity: as it is.
      trajectory: the rollout, [T, N, ...].
      context: of `context_of`.
    """
    params = curiosity.predictor.params
    # Step by step, for the activations of a whole rollout of images are large.
    return jax.lax.map(
        lambda x: _errors(rnd, curiosity, params, x, context), _coming(rnd, trajectory)
    )


def judge(
    rnd: RND,
    curiosity: Curiosity,
    trajectory: Trajectory,
    found: Array,
    following_value: Array,
) -> Intrinsic:
    """What a rollout earned by what was seen in it.

    Args:
      rnd: the hyperparameters.
      curiosity: as it is.
      trajectory: the rollout, [T, N, ...], with intrinsic values.
      found: its `novelty`, [T, N].
      following_value: the intrinsic value of `trajectory.following`, [N].
    """
    assert trajectory.intrinsic_value is not None
    return Intrinsic(
        reward=found / curiosity.earned.scale,
        value=trajectory.intrinsic_value,
        next_value=jnp.concatenate([trajectory.intrinsic_value[1:], following_value[None]]),
        gamma=rnd.gamma,
        weight=rnd.weight,
        extrinsic_weight=rnd.extrinsic_weight,
    )


def learn(
    rnd: RND, agent: PPO, curiosity: Curiosity, trajectory: Trajectory, context: Context
) -> tuple[Curiosity, Metrics]:
    """Trains the predictor on what it judged, in as many epochs and minibatches as the agent.

    Args:
      rnd: the hyperparameters.
      agent: the agent's.
      curiosity: with the rollout in its statistics.
      trajectory: the rollout, [T, N, ...].
      context: of `context_of`.

    Returns:
      Curiosity after it, and metrics, means over minibatches: `predictor_loss`, and
      `predictor_gradient_norm`, which is before clipping.
    """
    seen = _coming(rnd, trajectory)
    seen = seen.reshape(-1, *seen.shape[2:])
    shuffle_key, steps_key, end_key = jax.random.split(context.key, 3)

    def objective(params: Params, state: Any, batch: Array, key: Array) -> Array:
        error = jnp.mean(_errors(rnd, curiosity, params, batch, context))
        return error + rnd.intervention.loss(state, params, context._replace(key=key))

    def gradient_step(
        carry: tuple[Learner, Any], step: tuple[Array, Array]
    ) -> tuple[tuple[Learner, Any], Metrics]:
        (learner, state), (indices, key) = carry, step
        loss_key, step_key = jax.random.split(key)
        loss, gradient = jax.value_and_grad(objective)(
            learner.params, state, seen[indices], loss_key
        )
        after = context._replace(key=step_key, gradient=gradient, previous=learner.params)
        state, learner = rnd.intervention.after_step(
            state, ppo.stepped(learner, gradient, context), after
        )
        norm = optax.tree.norm(gradient)
        return (learner, state), _named({"predictor_loss": loss, "predictor_gradient_norm": norm})

    size = math.ceil(rnd.share * agent.minibatch_size)
    order = ppo.minibatches(agent, shuffle_key)[:, :size]
    (predictor, state), metrics = jax.lax.scan(
        gradient_step,
        (curiosity.predictor, curiosity.intervention),
        (order, jax.random.split(steps_key, len(order))),
    )
    end = context._replace(key=end_key)
    state, predictor = rnd.intervention.after_update(state, predictor, end)
    after = curiosity._replace(predictor=predictor, intervention=state)
    return after, jax.tree.map(jnp.mean, metrics)


def shift(rnd: RND, agent: PPO, curiosity: Curiosity, context: Context) -> Curiosity:
    """At the boundary of two rounds the predictor is treated as the agent is.

    Its interventions act, and its optimiser begins anew where the agent's does. What has been
    seen stays known.
    """
    state, predictor = rnd.intervention.on_shift(
        curiosity.intervention, curiosity.predictor, context
    )
    if agent.reset_optimizer:
        predictor = predictor._replace(opt_state=context.optimizer.init(predictor.params))
    return curiosity._replace(predictor=predictor, intervention=state)


def seen_shape(rnd: RND, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what predictor and target see of an observation."""
    return (*shape[:-1], rnd.channels) if rnd.channels else shape


def _coming(rnd: RND, trajectory: Trajectory) -> Array:
    """What each step of a rollout led to, as far as it is looked at. [T, N, ...]."""
    assert trajectory.following is not None
    coming = jnp.concatenate([trajectory.observation[1:], trajectory.following[None]])
    return coming[..., -rnd.channels :] if rnd.channels else coming


def _predictor(rnd: RND, shape: tuple[int, ...]) -> Described:
    return Described(rnd.intervention.network(rnd.network).torso(shape), rnd.features)


def _target(rnd: RND, shape: tuple[int, ...]) -> Described:
    """The target, which no intervention changes."""
    return Described(rnd.network.replace(hidden=rnd.network.hidden[:-2]).torso(shape), rnd.features)


def _errors(rnd: RND, curiosity: Curiosity, params: Params, seen: Array, context: Context) -> Array:
    """The predictor's mean squared error on each of some observations [B, *shape]. [B]."""
    x, shape = curiosity.seen.normalized(seen, rnd.limit), seen.shape[1:]
    told: Any = _target(rnd, shape).apply({"params": curiosity.target}, x)
    predicted: Any = _predictor(rnd, shape).apply({"params": context.effective(params)}, x)
    return jnp.mean(jnp.square(predicted - told), axis=-1)


def _named(metrics: dict[str, Array]) -> Metrics:
    return {name: {"all": metric} for name, metric in metrics.items()}
