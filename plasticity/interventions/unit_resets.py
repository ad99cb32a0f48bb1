"""Interventions that reset single units: those that are dormant, useless or without gradient.

Units of a network's recurrent layers are left alone: they have gates, and are their own inputs.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

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
from plasticity.networks import Params, at, connections, value_heads
from plasticity.struct import field, static_field

__all__ = [
    "CalibratedPartialResets",
    "ContinualBackprop",
    "ReDo",
    "ReDoStudy",
    "ReGraMa",
    "SelfNormalizedResets",
]

T = TypeVar("T")


class ReDo(Intervention):
    """Reinitializes dormant units at a fixed interval (Sokar et al. 2023).

    A unit is dormant if its mean absolute activation over the rollout is at most `tau` times the
    mean of this quantity over its layer. The incoming weights of dormant units are reinitialized,
    including biases and normalization. Their outgoing weights are set to zero, so that the new
    weights do not affect later layers at first. The optimizer's moments of all these are set to
    zero; Adam's count goes on, so that their first step is up to 3.2 learning rates long (see
    `reset_moments`). If the activation function has several outputs per preactivation, as
    concatenated ReLU does, they belong to one unit. All layers are evaluated before any is changed.

    The `redo` of Juliani & Ash (2024) is another algorithm: see `ReDoStudy`.

    Attributes:
      tau: the threshold.
      every: updates of the agent between two resets.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    tau: float = field(0.025, ge=0)
    every: int = field(10, kind=int, ge=1)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        observation = rollout.batch.observation
        due = (context.update + 1) % self.every == 0

        def recycle_dormant() -> TrainState:
            dormant = {}
            output = context.apply(train_state.params, observation)
            for layer, x in _hidden(output.activations, train_state.params).items():
                activity = _by_unit(jnp.mean(jnp.abs(_rows(x)), axis=0), train_state.params, layer)
                activity = activity.mean(axis=0)
                dormant[layer] = activity <= self.tau * jnp.mean(activity)
            return recycle(train_state, dormant, context)

        return state, jax.lax.cond(due, recycle_dormant, lambda: train_state)


class ReDoStudy(Intervention):
    """Reinitializes dormant units as the published code of the study does (Juliani & Ash 2024).

    That code cites Sokar et al. (2023), but differs from their algorithm, `ReDo`, in all of this:

    - Activations are divided by the layer's mean within each observation (of an image: at each of
      its positions), not by its mean over all. A unit is dormant if its mean of that is at most
      `tau`. If the whole layer is zero for one observation, none of its units is.
    - The observations are those of the update's last minibatch. Their activations are taken under
      the parameters before its gradient step here, and after it there.
    - Only kernels change. The biases of recycled units are kept, and so are all of the optimizer's
      moments.
    - Outgoing weights are set to zero in the next layer of the same kind and in the policy's head,
      and kept in the value's, and from a convolution into a dense layer. A weight between two
      recycled units is redrawn.
    - It acts after the updates number `every` + 1, 2 `every` + 1, ... of the run.
    - Layers that are normalized, or whose activation function widens them (concatenated ReLU), are
      left alone. There no activation other than ReLU is found; here scores take any as it is.

    Attributes:
      tau: the threshold.
      every: updates of the agent between two resets.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    tau: float = field(0.025, ge=0)
    every: int = field(10, kind=int, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns the scores of each unit on the last minibatch; before it none is dormant."""
        return for_each_layer(train_state.params, lambda units: jnp.full(units, jnp.inf))

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        scores = {}
        for layer, x in _hidden(step.activations, train_state.params).items():
            is_normalized = any(
                path[-2].startswith("norm_")
                for path in connections(train_state.params)[layer].incoming
            )
            if is_normalized or x.shape[-1] != units_of(train_state.params, layer):
                scores[layer] = state[layer]
                continue
            mean = jnp.mean(x, axis=-1, keepdims=True)
            share = jnp.where(mean == 0, jnp.inf, x / jnp.where(mean == 0, 1.0, mean))
            scores[layer] = jnp.mean(_rows(share), axis=0)
        return scores, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        params = train_state.params
        due = (context.update > 0) & (context.update % self.every == 0)

        def recycle_dormant() -> Params:
            redrawn = cleared = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params)
            for layer, (incoming, outgoing) in connections(params).items():
                dormant = state[layer] <= self.tau
                kernels = [path for path in incoming if path[-1] == "kernel"]
                for path in kernels:
                    mask = jnp.broadcast_to(dormant, at(params, path).shape)
                    redrawn = _set(redrawn, path, mask)
                for path in outgoing:
                    shape = at(params, path).shape
                    is_value = path[0] in value_heads(params)
                    if is_value or len(shape) != at(params, kernels[0]).ndim:
                        continue
                    rows = jnp.tile(dormant, shape[-2] // dormant.size)[:, None]
                    cleared = _set(cleared, path, jnp.broadcast_to(rows, shape))

            def select(old: Array, fresh: Array, redraw: Array, clear: Array) -> Array:
                return jnp.where(redraw, fresh, jnp.where(clear, 0.0, old))

            fresh = context.init_params(context.key)
            return jax.tree.map(select, params, fresh, redrawn, cleared)

        params = jax.lax.cond(due, recycle_dormant, lambda: params)
        return state, train_state._replace(params=params)


class UnitUtility(NamedTuple):
    """The state of continual backpropagation for a hidden layer."""

    age: Array  # int32 [units]: gradient steps since each was drawn
    utility: Array  # [units]: the running average, before bias correction
    num_to_replace: Array  # []: the accumulated number, of which the fraction is carried over


class ContinualBackprop(Intervention):
    """Reinitializes a small fraction of the mature units at every step, the least useful first.

    Continual backpropagation (Dohare et al. 2021), in the form of Dohare et al. (2024). After a
    gradient step, with h the activations on its minibatch and w the weights after it, a unit's
    utility is

      u <- decay * u + (1 - decay) * mean|h| * sum|w_out|

    with bias correction 1 / (1 - decay^age). Units older than `maturity` are mature. At each step,
    `replacement_rate` times the number of mature units of a layer is added to an accumulator, and
    its integer part is the number of units to replace. The incoming weights of a replaced unit are
    reinitialized, including biases and normalization (the published code sets the bias to zero).
    Its outgoing weights are set to zero. The optimizer's moments of all these are set to zero (the
    published PPO keeps them), and so are the unit's utility and age. In a torso shared by policy
    and value, w_out includes the weights into both heads. If the activation function has several
    outputs per unit, the utility is the sum over them.

    Differences from the published code: it has no accumulator, and replaces a fractional unit with
    that probability; and a weight between two replaced units is zero here and reinitialized there.
    The 2021 paper adds the mean activation to the bias of the next layer; this is left out, since
    it has no effect in the published code. The defaults are those of the published PPO, which also
    used weight decay: see `L2`.

    Ages count gradient steps: in a run of fewer than `maturity` gradient steps, the method does
    nothing. Units that another method reinitializes keep their age and utility. In a single run, a
    network is drawn only in steps that replace a unit; in stacked runs, in every step, which costs
    more.

    Attributes:
      replacement_rate: the fraction of the mature units replaced at each step.
      maturity: the gradient steps during which a new unit is not replaced.
      decay: the decay of the running utility. With 0 it is the instantaneous utility of the last
        minibatch, the variant that the 2024 paper compares in its extended data.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    replacement_rate: float = field(1e-4, ge=0, le=1)
    maturity: int = field(10_000, kind=int, ge=0)
    decay: float = field(0.99, ge=0, lt=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        def new(units: int) -> UnitUtility:
            return UnitUtility(jnp.zeros(units, jnp.int32), jnp.zeros(units), jnp.zeros(()))

        return for_each_layer(train_state.params, new)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        new_state, replaced = {}, {}
        effective = context.effective_params(train_state.params)
        for layer, x in _hidden(step.activations, train_state.params).items():
            age = state[layer].age + 1
            activity = jnp.mean(jnp.abs(_rows(x)), axis=0)
            product = activity * _outgoing_magnitudes(effective, layer, len(activity))
            contribution = _by_unit(product, train_state.params, layer).sum(axis=0)
            utility = self.decay * state[layer].utility + (1 - self.decay) * contribution
            mature = age > self.maturity
            number = state[layer].num_to_replace + self.replacement_rate * jnp.sum(mature)
            order = jnp.where(mature, utility / (1 - self.decay**age), jnp.inf)
            rank = jnp.argsort(jnp.argsort(order))  # ties: the first unit goes first
            chosen = replaced[layer] = mature & (rank < jnp.floor(number))
            new_state[layer] = UnitUtility(
                age=jnp.where(chosen, 0, age),
                utility=jnp.where(chosen, 0.0, utility),
                num_to_replace=number - jnp.floor(number),
            )
        return new_state, recycle(train_state, replaced, context)


class FiringHistory(NamedTuple):
    """The state of self-normalized resets for a hidden layer."""

    silent_steps: Array  # int32 [units]: gradient steps since each last fired
    counts: Array  # int32 [units, bins]: the number of past inter-firing times in each bin


# Edges of the bins: every length up to 7, then four bins per octave, the last one open.
_BIN_START = np.unique([0, *np.round(np.geomspace(1, 2**16, 4 * 16 + 1))]).astype(np.int32)
_BIN_END = np.append(_BIN_START[1:], np.iinfo(np.int32).max)


class SelfNormalizedResets(Intervention):
    """Reinitializes units that have been silent unusually long, compared with their own history.

    Self-normalized resets (Farias & Jozefiak 2025). The inter-firing time of a unit is the number
    of silent steps between two firings. Let A be the unit's past inter-firing times and a the
    current one; the unit is reset when P(A >= a) <= threshold. Time is counted in gradient steps,
    as in the published code: a unit fires if any of its activations on the minibatch is positive,
    and a unit that fires twice in a row has an inter-firing time of 0. Up to a fraction `threshold`
    of the inter-firing times of a healthy unit also end in a reset, whatever their length. A unit
    that has always fired is reset when it does not fire for the first time. With activation
    functions that are rarely or never negative on a whole minibatch (concatenated ReLU, sines and
    cosines, tanh), few or no units are reset.

    P is estimated as (1 + #{A >= a}) / (1 + #A): the current time is part of the sample, as in a
    rank test. A unit therefore needs 1 / threshold - 1 past inter-firing times before it can be
    reset, and a unit that has never fired is not reset. (The published code waits for a fixed time
    in that case. It recomputes the percentile at long intervals, over times other than 0.) The past
    times are kept as a histogram. A time a falls into a bin whose width is at most a / 4, and is
    rounded down to the start of the bin, so that a reset may be late but never early. Times of
    65,536 steps and more share one bin. A reset ends an inter-firing time, which is counted like
    any other. The history is kept after a reset, also after one by another method.

    The incoming weights of the unit are reinitialized, including biases and normalization; its
    outgoing weights are set to zero, and so are the optimizer's moments of all these. In a single
    run, a network is drawn only in steps that reset a unit; in stacked runs, in every step, which
    costs more.

    Attributes:
      threshold: the probability below which a unit has been silent for too long.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    threshold: float = field(0.01, ge=0, lt=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        def new(units: int) -> FiringHistory:
            counts = jnp.zeros((units, len(_BIN_START)), jnp.int32)
            return FiringHistory(jnp.zeros(units, jnp.int32), counts)

        return for_each_layer(train_state.params, new)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        new_state, reset = {}, {}
        for layer, x in _hidden(step.activations, train_state.params).items():
            fires = _by_unit(jnp.any(_rows(x) > 0, axis=0), train_state.params, layer).any(axis=0)
            silent_steps = state[layer].silent_steps + ~fires
            counts = state[layer].counts
            at_least_as_long = silent_steps[:, None] < _BIN_END
            num_longer = jnp.sum(jnp.where(at_least_as_long, counts, 0), axis=1)
            probability = (1 + num_longer) / (1 + jnp.sum(counts, axis=1))
            chosen = reset[layer] = ~fires & (probability <= self.threshold)
            ends = fires | chosen
            counted = ends[:, None] & at_least_as_long & (silent_steps[:, None] >= _BIN_START)
            new_state[layer] = FiringHistory(jnp.where(ends, 0, silent_steps), counts + counted)
        return new_state, recycle(train_state, reset, context)


class ReGraMa(Intervention):
    """Reinitializes units with little gradient at a fixed interval (Liu et al. 2025).

    A unit is inactive if the mean of |dL/dw| over its incoming weights is at most `tau` times the
    mean of this quantity over its layer. L is the whole loss of a minibatch, including the terms of
    other methods, and its gradient is taken before clipping. Absolute values are averaged over the
    minibatches of the update after which units are reset. Biases and normalization are not
    included. If a layer has no gradient at all, all its units are inactive. The published code is
    reported to use the incoming weights as well; the paper's equation has the gradient with respect
    to the activation instead, which need not be 0 for a dead unit.

    The incoming weights of an inactive unit are reinitialized, including biases and normalization.
    Its outgoing weights are set to zero, as in ReDo and as the paper is reported to say; the
    published code is reported to keep them. The optimizer's moments of changed weights are set to
    zero. The default interval is that of `ReDo` here, not the paper's.

    Attributes:
      tau: the threshold.
      every: updates of the agent between two resets.
      clear_outgoing: whether outgoing weights are set to zero.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    tau: float = field(0.01, ge=0)
    every: int = field(10, kind=int, ge=1)
    clear_outgoing: bool = static_field(True)

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns zeros: |dL/dw| of each unit, summed over minibatches; the ratio needs no mean."""
        return for_each_layer(train_state.params, jnp.zeros)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        return {
            layer: total + _gradient_magnitudes(step.gradients, layer)
            for layer, total in state.items()
        }, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        inactive = {
            layer: due & (total <= self.tau * jnp.mean(total)) for layer, total in state.items()
        }
        train_state = recycle(train_state, inactive, context, outgoing=self.clear_outgoing)
        return jax.tree.map(jnp.zeros_like, state), train_state


class CalibratedPartialResets(Intervention):
    """Moves the weights of units with little gradient partway to new ones (McCutcheon et al. 2026).

    Calibrated partial resets (CPR). The score of a unit is the mean of |dL/dw| over its incoming
    weights, divided by the mean of this quantity over its layer (plus 1e-8), and its utility is a
    running average u <- decay * u + (1 - decay) * score, which is 1 at first. L is the whole loss
    of a minibatch, and its gradient is taken before clipping. At a fixed interval each unit is
    reset by the share r = rate * min(2 sigmoid(sharpness * (threshold - u)), 1): its incoming
    weights become (1 - r) w + r w_new, with newly drawn w_new, and then its outgoing ones
    (1 - r) w, layer by layer from the first. Utilities begin at 1 again.

    As in the authors' code, biases and norms are kept, and so are all of the optimizer's moments.
    It draws new weights from a distribution that is set apart; here they are drawn as the network's
    are at the beginning. It acts after every 1000 gradient steps; here the interval is counted in
    updates of the agent, of which 20 are 1020 gradient steps with the study's settings. In a torso
    shared by policy and value, the weights into both heads are outgoing.

    Attributes:
      rate: the largest share that a unit is reset by.
      sharpness: how sharply the share falls with the utility.
      threshold: the utility up to which the share is the largest.
      decay: the decay of the running utility.
      every: updates of the agent between two resets.
    """

    needs_policy: ClassVar[bool] = True
    needs_units: ClassVar[bool] = True

    rate: float = field(0.015, ge=0, le=1)
    sharpness: float = field(16.0, ge=0)
    threshold: float = field(1.0, ge=0)
    decay: float = field(0.99, ge=0, lt=1)
    every: int = field(20, kind=int, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns the utility of each unit, by layer."""
        return for_each_layer(train_state.params, jnp.ones)

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        utilities = {}
        for layer, utility in state.items():
            magnitudes = _gradient_magnitudes(step.gradients, layer)
            score = magnitudes / (jnp.mean(magnitudes) + 1e-8)
            utilities[layer] = self.decay * utility + (1 - self.decay) * score
        return utilities, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0

        def reset() -> tuple[State, TrainState]:
            fresh, params = context.init_params(context.key), train_state.params
            for layer, (incoming, outgoing) in connections(params).items():
                below = self.sharpness * (self.threshold - state[layer])
                share = self.rate * jnp.minimum(2 * jax.nn.sigmoid(below), 1.0)
                for path in incoming:
                    if path[-1] == "kernel":
                        kernel = at(params, path)
                        kernel += share * (at(fresh, path) - kernel)
                        params = _set(params, path, kernel)
                for path in outgoing:
                    kernel = at(params, path)
                    rows = jnp.tile(share, kernel.shape[-2] // share.size)[:, None]
                    params = _set(params, path, (1 - rows) * kernel)
            return jax.tree.map(jnp.ones_like, state), train_state._replace(params=params)

        return jax.lax.cond(due, reset, lambda: (state, train_state))


def units_of(params: Params, layer: str) -> int:
    """Returns the number of units of a hidden layer: the outputs of its linear part."""
    return int(at(params, connections(params)[layer].incoming[0]).shape[-1])


def for_each_layer(params: Params, new: Callable[[int], T]) -> dict[str, T]:
    """Returns `new(units)` for the number of units of each hidden layer, by its name."""
    return {layer: new(units_of(params, layer)) for layer in connections(params)}


def recycle(
    train_state: TrainState, chosen: Mapping[str, Array], context: Context, *, outgoing: bool = True
) -> TrainState:
    """Reinitializes incoming and zeroes outgoing weights of the chosen units, and their moments.

    Adam's count goes on, which makes the first steps after it longer: see `reset_moments`.

    A single run computes nothing if no unit is chosen. In stacked runs (`vmap`) the condition
    becomes a selection between two results: each call draws a network.

    Args:
      train_state: parameters and optimizer before.
      chosen: for each hidden layer which units, bool [units].
      context: for newly drawn parameters, and the optimizer.
      outgoing: whether to set outgoing weights to zero; if not, they and their moments are kept.

    Returns:
      The train state after. If `outgoing`, a weight from one chosen unit to another is zero.
    """
    paths = connections(train_state.params)

    def changed() -> TrainState:
        no_mask = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), train_state.params)
        redrawn = cleared = no_mask
        for layer, units in chosen.items():
            for path in paths[layer].incoming:
                redrawn = _set(redrawn, path, jnp.broadcast_to(units, at(no_mask, path).shape))
            for path in paths[layer].outgoing if outgoing else ():
                shape = at(no_mask, path).shape
                rows = jnp.tile(units, shape[-2] // units.size)[:, None]
                cleared = _set(cleared, path, jnp.broadcast_to(rows, shape))

        def select(old: Array, fresh: Array, redraw: Array, clear: Array) -> Array:
            return jnp.where(clear, 0.0, jnp.where(redraw, fresh, old))

        fresh = context.init_params(context.key)
        params = jax.tree.map(select, train_state.params, fresh, redrawn, cleared)
        mask = jax.tree.map(jnp.logical_or, redrawn, cleared)
        return TrainState(params, reset_moments(train_state, mask, context))

    any_chosen = jnp.any(jnp.concatenate(list(chosen.values())))
    return jax.lax.cond(any_chosen, changed, lambda: train_state)


def _hidden(activations: dict[str, Array], params: Params) -> dict[str, Array]:
    """Returns the activations of hidden layers alone: those of recurrent layers are left out."""
    hidden = connections(params)
    return {layer: x for layer, x in activations.items() if layer in hidden}


def _by_unit(x: Array, params: Params, layer: str) -> Array:
    """Reshapes values per activation of a layer to values per unit, [widening, units]."""
    return x.reshape(-1, units_of(params, layer))


def _outgoing_magnitudes(params: Params, layer: str, activations: int) -> Array:
    """Sums the absolute outgoing weights of each of a layer's activations. [activations]."""
    total = jnp.zeros(activations)
    for path in connections(params)[layer].outgoing:
        weights = jnp.moveaxis(jnp.abs(at(params, path)), -2, -1)
        sums = jnp.sum(weights.reshape(-1, weights.shape[-1]), axis=0)
        # A kernel on the stream of residual blocks has one row for several activations.
        total += jnp.tile(sums, -(-activations // len(sums))).reshape(-1, activations).sum(axis=0)
    return total


def _gradient_magnitudes(gradients: Params, layer: str) -> Array:
    """Averages |gradient| over the incoming kernels of each of a layer's units. [units]."""
    kernels = [
        _rows(at(gradients, path))
        for path in connections(gradients)[layer].incoming
        if path[-1] == "kernel"
    ]
    return jnp.mean(jnp.abs(jnp.concatenate(kernels)), axis=0)


def _rows(x: Array) -> Array:
    """Reshapes [..., units] to [rows, units]: positions of an image count like observations."""
    return x.reshape(-1, x.shape[-1])


def _set(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    """Returns `tree` with another leaf at `path`."""
    name, *rest = path
    return {**tree, name: _set(tree[name], tuple(rest), leaf) if rest else leaf}
