"""Random network distillation (Burda et al. 2018).

A predictor is trained to match the output of a fixed random target network on the observations
met. Its error is the intrinsic reward: large where few similar observations have been met.

Shapes: T steps of a rollout, N environments, M transitions of a minibatch.
"""

import math
from typing import Any, ClassVar, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from plasticity.agents.base import (
    Agent,
    IntrinsicRewards,
    Metrics,
    Trajectory,
    apply_gradients,
    scan_gradient_steps,
)
from plasticity.agents.intrinsic.base import IntrinsicModule, Policy
from plasticity.agents.normalization import RewardScaler, RunningMeanStd
from plasticity.interventions import Context, GradientStep, Interventions, Rollout, TrainState
from plasticity.networks import Network, Output, Params, at_precision
from plasticity.networks.torso import Dense, Layers, Torso
from plasticity.struct import SettingError, field, static_field

Array = jax.Array


class RNDState(NamedTuple):
    """The state of random network distillation. The target never changes."""

    predictor: TrainState
    intervention: Any  # the state of the predictor's interventions
    target: Params
    obs_stats: RunningMeanStd  # [*shape]
    reward_stats: RewardScaler


class EmbeddingNet(nn.Module):
    """A torso and a linear layer `features` on its output."""

    torso: Torso
    embedding_dim: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Layers]:
        """Returns the embedding [B, embedding_dim], and the layers of the torso.

        Args:
          x: normalized observations, [B, *shape].
        """
        features, layers = self.torso(x)
        return Dense(self.embedding_dim, name="features")(features), layers


class RND(IntrinsicModule):
    """Rewards the prediction error of a random target network (Burda et al. 2018).

    Differences from the paper: rewards are computed when a rollout is complete, and the statistics
    that normalize them and the observations include that rollout, so that none is needed
    beforehand (the paper begins with steps of a random agent). The predictor has an optimizer of
    its own, with the agent's coefficients and clipping; the paper has one Adam for all parameters.
    Weights are drawn as the agent's are.

    Attributes:
      int_coef: weight of the intrinsic advantages.
      ext_coef: weight of the extrinsic advantages.
      gamma: discount of intrinsic rewards, which are not episodic.
      update_proportion: share of each minibatch that the predictor is trained on. The paper takes
        each transition at random, on average as many as 32 environments give.
      embedding_dim: size of the target's output.
      channels: number of last channels of an observation that predictor and target see, as the
        newest of Atari's stacked frames; 0 for all.
      obs_clip: normalized observations are clipped to [-obs_clip, obs_clip].
      network: of the predictor, before its last linear layer. The target has the last two hidden
        layers fewer.
      intervention: interventions on the predictor, beside those on the agent. Methods that need
        the policy (`Intervention.needs_policy`) are refused.
    """

    value_head: ClassVar[bool] = True

    int_coef: float = field(1.0, ge=0)
    ext_coef: float = field(2.0, ge=0)
    gamma: float = field(0.99, ge=0, le=1)
    update_proportion: float = static_field(0.25, gt=0, le=1)
    embedding_dim: int = static_field(512, ge=1)
    channels: int = static_field(0, ge=0)
    obs_clip: float = field(5.0, gt=0)
    network: Network = Network(hidden=(256, 256, 256))
    intervention: Interventions = Interventions()

    def check(self, agent: Agent, observation_shape: tuple[int, ...]) -> None:
        hidden, channels = self.network.hidden, observation_shape[-1]
        if self.channels > channels:
            raise SettingError(
                "intrinsic.channels",
                self.channels,
                f"must be at most {channels}, the channels of an observation",
            )
        if not self.network.shared:
            raise SettingError("intrinsic.network.shared", False, "must be true: it has one torso")
        if self.network.memory is not None:
            raise SettingError(
                "intrinsic.network.memory", self.network.memory, "must not be set: it has none"
            )
        if self.network.value_head != "scalar":
            raise SettingError(
                "intrinsic.network.value_head",
                self.network.value_head,
                "must be scalar: it has no value",
            )
        if len(hidden) < (2 if self.network.channels else 3):
            raise SettingError(
                "intrinsic.network.hidden",
                hidden,
                "must have two layers or more, three without convolutions: the target has two less",
            )
        for name, part in zip(self.intervention.names, self.intervention.parts, strict=True):
            if part.needs_policy:
                raise SettingError(
                    f"intrinsic.intervention.{name}",
                    type(part).__name__,
                    "must be a method that treats all parameters alike; this one needs the "
                    "policy's units, heads or transitions",
                )
        try:
            self.intervention.check()
            self._predictor(observation_shape)
        except SettingError as error:
            raise error.within("intrinsic") from error

    def make_context(
        self,
        agent: Agent,
        observation_shape: tuple[int, ...],
        optimizer_key: Array,
        context: Context,
    ) -> Context:
        shape = self.input_shape(observation_shape)
        predictor = self._predictor(observation_shape)

        def init_params(key: Array) -> Params:
            params = self.network.initialize(
                predictor.init(key, jnp.zeros((1, *shape)))["params"], jax.random.fold_in(key, 1)
            )
            return self.intervention.add_params(params, jax.random.fold_in(key, 0))

        def apply(params: Params, observation: Array) -> Output:
            raise TypeError("RND's predictor is no policy: set `needs_policy` on the intervention")

        return context._replace(
            init_params=init_params,
            apply=apply,
            effective_params=self.intervention.effective_params,
            optimizer=self.intervention.optimizer(agent.optimizer(optimizer_key)).build(),
        )

    def init(self, agent: Agent, observation_shape: tuple[int, ...], context: Context) -> RNDState:
        target_key, predictor_key, key = jax.random.split(context.key, 3)
        shape = self.input_shape(observation_shape)
        params = context.init_params(predictor_key)
        predictor = TrainState(params, context.optimizer.init(params))
        target = self._target(observation_shape).init(target_key, jnp.zeros((1, *shape)))["params"]
        return RNDState(
            predictor=predictor,
            intervention=self.intervention.init(predictor, context._replace(key=key)),
            target=self.network.initialize(target, jax.random.fold_in(target_key, 1)),
            obs_stats=RunningMeanStd.init(shape),
            reward_stats=RewardScaler.init(agent.num_envs),
        )

    def observe(self, state: RNDState, trajectory: Trajectory) -> RNDState:
        next_obs = self._next_obs(trajectory)
        obs_stats = state.obs_stats.update(next_obs.reshape(-1, *next_obs.shape[2:]))
        return state._replace(obs_stats=obs_stats)

    def bonus(self, state: RNDState, trajectory: Trajectory, context: Context) -> Array:
        """Returns the predictor's mean squared error on the next observation of each step, [T, N].

        That may be the first observation of the next episode.
        """
        params, shape = state.predictor.params, trajectory.observation.shape[2:]
        # One step at a time, for the activations of a whole rollout of images are large.
        return jax.lax.map(
            lambda x: self._errors(state, params, x, shape, context)[0], self._next_obs(trajectory)
        )

    def scale(self, state: RNDState, bonus: Array) -> tuple[RNDState, Metrics]:
        """Merges the bonus of a rollout into the scale of rewards.

        Returns:
          The state, and metrics: `novelty`, the mean bonus; `intrinsic_reward`, the same divided
          by the scale; and `intrinsic_return`, the mean discounted sum so far divided by the scale.
        """
        reward_stats = state.reward_stats.update(bonus, jnp.ones(bonus.shape, bool), self.gamma)
        metrics = {
            "novelty": jnp.mean(bonus),
            "intrinsic_reward": jnp.mean(bonus) / reward_stats.scale,
            "intrinsic_return": jnp.mean(reward_stats.sums) / reward_stats.scale,
        }
        return state._replace(reward_stats=reward_stats), _aggregate(metrics)

    def make_intrinsic(
        self, state: RNDState, trajectory: Trajectory, bonus: Array, policy: Policy
    ) -> IntrinsicRewards:
        value: Any = trajectory.intrinsic_value
        last_output = policy(trajectory.last_obs, trajectory.last_memory)
        last_value: Any = last_output.intrinsic_value
        return IntrinsicRewards(
            reward=bonus / state.reward_stats.scale,
            value=value,
            next_value=jnp.concatenate([value[1:], last_value[None]]),
            gamma=self.gamma,
            int_coef=self.int_coef,
            ext_coef=self.ext_coef,
        )

    def update(
        self,
        agent: Agent,
        state: RNDState,
        trajectory: Trajectory,
        rollout: Rollout,
        context: Context,
    ) -> tuple[RNDState, Metrics]:
        """Trains the predictor on a rollout, in as many gradient steps as the agent takes.

        Returns:
          The state, and metrics, means over gradient steps: `predictor_loss`, and
          `predictor_gradient_norm` before clipping.
        """
        shape = trajectory.observation.shape[2:]
        next_obs = self._next_obs(trajectory)
        next_obs = next_obs.reshape(-1, *next_obs.shape[2:])
        shuffle_key, steps_key, end_key = jax.random.split(context.key, 3)

        def objective(
            params: Params, hook_state: Any, batch: Array, key: Array
        ) -> tuple[Array, dict[str, Array]]:
            errors, layers = self._errors(state, params, batch, shape, context)
            penalty = self.intervention.penalty(hook_state, params, context._replace(key=key))
            return jnp.mean(errors) + penalty, layers.activations

        def step(
            carry: tuple[TrainState, Any], inputs: tuple[Array, Array]
        ) -> tuple[tuple[TrainState, Any], Metrics]:
            (predictor, hook_state), (indices, key) = carry, inputs
            loss_key, step_key = jax.random.split(key)
            (loss, activations), gradients = jax.value_and_grad(objective, has_aux=True)(
                predictor.params, hook_state, next_obs[indices], loss_key
            )
            loss_metrics = {"predictor_loss": {"all": loss}}
            gradient_step = GradientStep(gradients, predictor.params, activations, loss_metrics)
            hook_state, predictor = self.intervention.after_step(
                hook_state,
                apply_gradients(predictor, gradients, context.optimizer),
                gradient_step,
                context._replace(key=step_key),
            )
            norm = optax.tree.norm(gradients)
            metrics = {"predictor_loss": loss, "predictor_gradient_norm": norm}
            return (predictor, hook_state), _aggregate(metrics)

        minibatches = agent.minibatches(shuffle_key)
        size = math.ceil(self.update_proportion * minibatches.shape[1])
        keys = jax.random.split(steps_key, len(minibatches))
        (predictor, hook_state), metrics = scan_gradient_steps(
            step, (state.predictor, state.intervention), (minibatches[:, :size], keys)
        )
        hook_state, predictor = self.intervention.after_update(
            hook_state, predictor, rollout, context._replace(key=end_key)
        )
        state = state._replace(predictor=predictor, intervention=hook_state)
        return state, metrics

    def on_shift(self, agent: Agent, state: RNDState, context: Context) -> RNDState:
        """Treats the predictor as the agent: its interventions act, its optimizer is reset.

        The running statistics are kept.
        """
        hook_state, predictor = self.intervention.on_shift(
            state.intervention, state.predictor, context
        )
        if agent.reset_optimizer:
            predictor = predictor._replace(opt_state=context.optimizer.init(predictor.params))
        return state._replace(predictor=predictor, intervention=hook_state)

    def input_shape(self, observation_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of what predictor and target see of one observation."""
        return (*observation_shape[:-1], self.channels) if self.channels else observation_shape

    def _next_obs(self, trajectory: Trajectory) -> Array:
        """Returns the observation after each step, as predictor and target see it. [T, N, ...]."""
        next_obs = jnp.concatenate([trajectory.observation[1:], trajectory.last_obs[None]])
        return next_obs[..., -self.channels :] if self.channels else next_obs

    def _predictor(self, observation_shape: tuple[int, ...]) -> EmbeddingNet:
        network = cast(Network, self.intervention.network(self.network))  # with other fields
        return EmbeddingNet(network.torso(self.input_shape(observation_shape)), self.embedding_dim)

    def _target(self, observation_shape: tuple[int, ...]) -> EmbeddingNet:
        """Returns the target network, which no intervention changes."""
        network = self.network.replace(hidden=self.network.hidden[:-2])
        return EmbeddingNet(network.torso(self.input_shape(observation_shape)), self.embedding_dim)

    def _errors(
        self,
        state: RNDState,
        params: Params,
        observation: Array,
        observation_shape: tuple[int, ...],
        context: Context,
    ) -> tuple[Array, Layers]:
        """Returns the predictor's mean squared errors [B], and the layers of its torso."""
        x = state.obs_stats.normalize(observation, self.obs_clip)
        target, predictor = (
            at_precision(module.apply, context.precision)
            for module in (self._target(observation_shape), self._predictor(observation_shape))
        )
        targets = target({"params": state.target}, x)[0]
        predicted, layers = predictor({"params": context.effective_params(params)}, x)
        return jnp.mean(jnp.square(predicted - targets), axis=-1), layers


def _aggregate(metrics: dict[str, Array]) -> Metrics:
    return {name: {"all": metric} for name, metric in metrics.items()}
