"""Interventions that begin something anew: weights, wholly or by a share, or the optimiser."""

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


class ResetAll(Intervention):
    """Draws every parameter anew at each shift: the upper control, with no past at all.

    The optimiser's state begins anew as well. Running statistics of what is seen and earned, where
    an agent has them, go on unless `agent.reset_statistics` is on, and so does a predictor unless
    this is among `rnd.intervention` too.
    """

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        params = context.init_params(context.key)
        return state, TrainState(params, context.optimizer.init(params))


class ResetFinal(Intervention):
    """Draws the policy's and the value's heads anew at each shift (Nikishin et al. 2022).

    Those that a method has added are drawn as well. Their moments are cleared; the torso's, and
    Adam's count, are left as they are. The paper resets at an interval: see `ResetLayers`.
    """

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state, _redrawn(train_state, last_layers(train_state.params, 1), True, context)


class ResetLayers(Intervention):
    """Draws the last layers anew at an interval, whatever the task does (Nikishin et al. 2022).

    The heads together are the last layer; then comes the last hidden layer, of each torso where
    there are two, with what normalises and follows it, and so on. The moments of what is drawn
    anew are cleared; the others' are kept, and so is Adam's count. The paper's agents learn
    again from their replay buffers; PPO has none, and has to begin with the next rollout.

    Attributes:
      last: how many layers; if there are no more than that, all.
      every: PPO updates from one reset to the next. 200 are at the study's setting about the 2e5
        environment steps after which the authors' SAC is reset as a whole.
    """

    last: int = static_field(1, ge=1)
    every: int = field(200, kind=int, ge=1)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        return state, _redrawn(
            train_state, last_layers(train_state.params, self.last), due, context
        )


class ResetOptimizer(Intervention):
    """Begins the optimiser's whole state anew, moments and Adam's count (Asadi et al. 2023).

    At every shift, and at an interval if there is one; no parameter is touched. The paper does so
    whenever the target network changes; for PPO the like of that is a new rollout. At a shift the
    trainer does it anyway, under every method, unless `agent.reset_optimizer` is off: without an
    interval this is then `warm_start`. Adam's first step after it is about the learning rate for
    every weight, whatever its gradient. All that an optimiser keeps begins anew, the key of one
    that draws noise included.

    Attributes:
      every: PPO updates from one reset to the next; 0 for shifts alone.
    """

    every: int = field(0, kind=int, ge=0)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (self.every > 0) & ((context.update + 1) % jnp.maximum(self.every, 1) == 0)
        anew = context.optimizer.init(train_state.params)
        opt_state = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), anew, train_state.opt_state
        )
        return state, train_state._replace(opt_state=opt_state)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        return state, train_state._replace(opt_state=context.optimizer.init(train_state.params))


class HareTortoise(Intervention):
    """Sets the network back to the moving average of its weights now and then (Lee et al. 2024).

    After every gradient step tortoise <- decay * tortoise + (1 - decay) * hare, where the hare is
    the network that learns; the tortoise begins as its copy. At an interval the hare takes the
    tortoise's weights, after the update, so that what learns from a rollout has made it. The hare
    acts, as PPO is on-policy. Its moments are left as they are, as in the authors' code.

    Nothing happens at a shift: the tortoise carries on, as in the authors' code, and brings back
    some of what another method has reset there.

    Attributes:
      decay: of the average, a gradient step.
      every: PPO updates from one return to the next. If these are far fewer than 1 / (1 - decay)
        gradient steps, the hare is held near where it was and merely slowed; the default are as
        many as that at the study's 51 steps an update.
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
    """theta <- shrink * theta + perturb * theta_fresh at each shift (Ash & Adams 2020).

    The optimiser's moments are left as they are.

    Attributes:
      shrink: what is kept of the parameters.
      perturb: the share of a draw from the initial distribution that is added.
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
    """theta <- (1 - rate) * theta + rate * theta_fresh after every gradient step.

    A fresh network is drawn for each step (Juliani & Ash 2024). The optimiser's moments are
    left as they are.

    Attributes:
      rate: the share of the fresh network.
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
    """Which parameters belong to the last layers: a tree like them of bools.

    Args:
      params: the parameters.
      last: how many layers; the heads together are the last one.
    """

    def all_of(part: Params, chosen: bool) -> Params:
        return jax.tree.map(lambda _: chosen, part)

    def of_torso(torso: Params) -> Params:
        first = depth_of(torso) + 1 - last
        return {name: all_of(layer, layer_index(name) >= first) for name, layer in torso.items()}

    return {
        name: of_torso(part) if name in ("torso", "value_torso") else all_of(part, last > 0)
        for name, part in params.items()
    }


def _redrawn(
    train_state: TrainState, chosen: Params, due: Array | bool, context: Context
) -> TrainState:
    """The learner with the parameters chosen drawn anew, if that is due, and their moments 0."""
    touched = jax.tree.map(lambda choice: choice & jnp.asarray(due), chosen)
    fresh = context.init_params(context.key)
    params = jax.tree.map(jnp.where, touched, fresh, train_state.params)
    return TrainState(params, reset_moments(train_state, touched, context))
