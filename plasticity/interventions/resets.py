"""Interventions that reset weights, in whole or in part, or the optimizer's state."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from plasticity.interventions.base import (
    Array,
    Context,
    GradientStep,
    Intervention,
    Rollout,
    State,
    TrainState,
    reset_moments,
)
from plasticity.networks import Params, depth_of, layer_index
from plasticity.struct import field, static_field

__all__ = [
    "Freeze",
    "HareTortoise",
    "ResetAll",
    "ResetFinal",
    "ResetLayers",
    "ResetOptimizer",
    "ShrinkPerturb",
    "SoftShrinkPerturb",
]


class ResetAll(Intervention):
    """Reinitializes every parameter at each shift: the control with a fresh network in each round.

    The optimizer's state is reset as well. Running statistics of observations and rewards, if the
    agent has them, are kept unless `agent.reset_statistics=true`. The predictor of an intrinsic
    reward is kept too, unless this method is also in `intrinsic.intervention`.
    """

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        params = context.init_params(context.key)
        return state, TrainState(params, context.optimizer.init(params))


class Freeze(Intervention):
    """Stops learning after some rounds while acting goes on: the control of a frozen learner.

    The parameters after each update are those before it, so that the agent acts in later rounds as
    it did at the end of the last one that it learned in. What another method does at a shift is
    kept, as are running statistics of observations, which go on. Gradients are still computed and
    measured.

    Attributes:
      after: the number of rounds to learn in; with 0 the agent is never trained.
    """

    needs_policy: ClassVar[bool] = True  # the parameters that collected the rollout

    after: int = field(1, kind=int, ge=0)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        frozen = context.round >= self.after
        params = jax.tree.map(
            lambda before, after: jnp.where(frozen, before, after),
            rollout.params,
            train_state.params,
        )
        return state, train_state._replace(params=params)


class ResetFinal(Intervention):
    """Reinitializes the policy and value heads at each shift (Nikishin et al. 2022).

    Heads that another method has added are reinitialized as well. The heads' moments are set to
    zero; the torso's moments and Adam's step count are kept. The paper resets at a fixed interval:
    see `ResetLayers`.
    """

    needs_units: ClassVar[bool] = True  # all that is in no torso counts as a head
    needs_heads: ClassVar[bool] = True

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state, _redraw(train_state, last_layers(train_state.params, 1), True, context)


class ResetLayers(Intervention):
    """Reinitializes the last layers at a fixed interval, not at shifts (Nikishin et al. 2022).

    All heads together count as one layer, the last. The layer before it is the last hidden layer
    (of each torso, if there are two), with its normalization and the parameters of its activation.
    Moments of reinitialized parameters are set to zero; other moments and Adam's step count are
    kept. The paper's agents relearn from their replay buffers; PPO has none, and must relearn from
    the next rollouts.

    Attributes:
      last: the number of layers; all, if the network has fewer.
      every: updates of the agent between two resets. 200 updates are about 2e5 environment steps
        with the study's settings, the interval at which the authors reset the whole of SAC.
    """

    needs_units: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    last: int = static_field(1, ge=1)
    every: int = field(200, kind=int, ge=1)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        return state, _redraw(train_state, last_layers(train_state.params, self.last), due, context)


class ResetOptimizer(Intervention):
    """Resets the whole optimizer state, moments and Adam's count (Asadi et al. 2023).

    It resets at every shift and, if `every` is set, at a fixed interval. No parameter is changed.
    The paper resets whenever the target network changes; the equivalent for PPO is a new rollout.
    At a shift, the optimizer is reset under every method, unless `agent.reset_optimizer=false`;
    without an interval, this method therefore equals `warm_start`. After a reset, Adam's first step
    is about the learning rate for every weight, whatever its gradient. The whole state is reset,
    including the step count that seeds the noise of other methods.

    Attributes:
      every: updates of the agent between two resets; 0 to reset at shifts only.
    """

    every: int = field(0, kind=int, ge=0)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (self.every > 0) & ((context.update + 1) % jnp.maximum(self.every, 1) == 0)
        initial = context.optimizer.init(train_state.params)
        opt_state = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), initial, train_state.opt_state
        )
        return state, train_state._replace(opt_state=opt_state)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state, train_state._replace(opt_state=context.optimizer.init(train_state.params))


class HareTortoise(Intervention):
    """Sets the weights to their moving average at a fixed interval (Lee et al. 2024).

    The trained network is the hare, its moving average the tortoise. After every gradient step,
    tortoise <- decay * tortoise + (1 - decay) * hare; the tortoise starts as a copy of the hare. At
    a fixed interval, the hare's weights are set to the tortoise's. This happens after an update,
    so that a rollout is always learned from by the network that collected it. The hare collects the
    rollouts, because PPO is on-policy. Adam's moments are kept, as in the authors' code.

    Nothing happens at a shift: the tortoise is kept, as in the authors' code, and partly restores
    weights that another method has reset there.

    Attributes:
      decay: the decay of the average per gradient step.
      every: updates of the agent between two resets of the hare. If these are far fewer than
        1 / (1 - decay) gradient steps, the hare stays near its previous weights and only learns
        more slowly. The default is about that many, at the study's 51 gradient steps per update.
    """

    decay: float = field(0.999, ge=0, le=1)
    every: int = field(20, kind=int, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        return train_state.params

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        tortoise = jax.tree.map(
            lambda slow, fast: slow + (1 - self.decay) * (fast - slow), state, train_state.params
        )
        return tortoise, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        params = jax.tree.map(
            lambda slow, fast: jnp.where(due, slow, fast), state, train_state.params
        )
        return state, train_state._replace(params=params)


class ShrinkPerturb(Intervention):
    """Shrinks all weights and adds newly drawn, scaled ones at each shift (Ash & Adams 2020).

    theta <- shrink * theta + perturb * theta_new, with theta_new drawn from the initial
    distribution. The optimizer's moments are kept.

    Attributes:
      shrink: the factor of the current parameters.
      perturb: the factor of the newly drawn parameters.
    """

    shrink: float = field(0.5, ge=0, le=1)
    perturb: float = field(0.5, ge=0, le=1)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        fresh = context.init_params(context.key)
        params = jax.tree.map(
            lambda old, new: self.shrink * old + self.perturb * new, train_state.params, fresh
        )
        return state, train_state._replace(params=params)


class SoftShrinkPerturb(Intervention):
    """Shrinks and perturbs all weights slightly after every gradient step (Juliani & Ash 2024).

    theta <- (1 - rate) * theta + rate * theta_new, with a new network drawn from the initial
    distribution for each step. The optimizer's moments are kept.

    Attributes:
      rate: the fraction of the newly drawn parameters.
    """

    rate: float = field(1e-6, ge=0, le=1)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        fresh = context.init_params(context.key)
        # Not (1 - rate) * old: a rate of 1e-6 would be 1 % off in float32.
        params = jax.tree.map(
            lambda old, new: old + self.rate * (new - old), train_state.params, fresh
        )
        return state, train_state._replace(params=params)


def last_layers(params: Params, last: int) -> Params:
    """Returns which parameters belong to the last layers: a tree like `params`, of bools.

    Args:
      params: the parameters.
      last: how many layers; the heads together are the last one.
    """

    def fill(part: Params, value: bool) -> Params:
        return jax.tree.map(lambda _: value, part)

    def mask_torso(torso: Params) -> Params:
        first = depth_of(torso) + 1 - last
        return {name: fill(layer, layer_index(name) >= first) for name, layer in torso.items()}

    return {
        name: mask_torso(part) if name in ("torso", "value_torso") else fill(part, last > 0)
        for name, part in params.items()
    }


def _redraw(
    train_state: TrainState, mask: Params, due: Array | bool, context: Context
) -> TrainState:
    """Reinitializes the parameters that `mask` marks and resets their moments, if `due`."""
    mask = jax.tree.map(lambda marked: marked & jnp.asarray(due), mask)
    fresh = context.init_params(context.key)
    params = jax.tree.map(jnp.where, mask, fresh, train_state.params)
    return TrainState(params, reset_moments(train_state, mask, context))
