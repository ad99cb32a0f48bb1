"""Interventions that bring single units back to life."""

from collections.abc import Mapping
from typing import NamedTuple

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
from plasticity.networks import Params, at, connections
from plasticity.struct import field, static_field


class ReDo(Intervention):
    """Recycles dormant units at an interval (Sokar et al. 2023).

    A unit is dormant if its mean absolute activation over the rollout is at most `tau` times the
    mean of that over its layer. What leads into it is drawn anew, norms and biases included;
    what leads out of it becomes zero, so that nothing changes downstream at first; the
    optimiser's moments of all these are cleared. Where the activation widens, as concatenated
    ReLU does, a unit is all that comes of one input. All layers are judged before any is changed.

    Attributes:
      tau: the threshold.
      every: PPO updates from one recycling to the next.
    """

    tau: float = field(0.025, ge=0)
    every: int = field(10, kind=int, ge=1)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        observations = rollout.batch.observation
        due = (context.update + 1) % self.every == 0

        def recycled() -> TrainState:
            dormant = {}
            for layer, x in context.apply(train_state.params, observations).activations.items():
                activity = _by_unit(jnp.mean(jnp.abs(_rows(x)), axis=0), train_state.params, layer)
                activity = activity.mean(axis=0)
                dormant[layer] = activity <= self.tau * jnp.mean(activity)
            return recycle(train_state, dormant, context)

        return state, jax.lax.cond(due, recycled, lambda: train_state)


class Usefulness(NamedTuple):
    """What continual backpropagation knows of a hidden layer."""

    age: Array  # int32 [units]: gradient steps since each was drawn
    utility: Array  # [units]: the running contribution, not corrected for its start at zero
    owed: Array  # []: units to replace, of which less than one is carried on


class ContinualBackprop(Intervention):
    """Replaces a small share of the mature units at every step, the least useful first.

    Dohare et al. (2021), in the form of Dohare et al. (2024). After a gradient step, with h the
    activations of its minibatch and w the weights after it, a unit's utility is

      u <- decay * u + (1 - decay) * mean|h| * sum|w_out|

    corrected as 1 / (1 - decay^age), and those older than `maturity` may be replaced. Each layer
    adds `replacement_rate` times their number to what it owes, and replaces as many as there are
    whole ones in that. What leads into a unit replaced is drawn anew, norms and biases included
    (the published code has zero for the bias); what leads out of it becomes zero; the
    optimiser's moments of all these are cleared (those of the published PPO are not); utility and
    age begin again at zero. A torso that policy and value share has w_out in both heads; where the
    activation widens, a unit's utility is the sum over what comes of it.

    The mean activation is not handed on to the next layer's bias, which the 2021 paper has and the
    published code leaves without effect. Nor does that carry on what a layer owes: it replaces one
    unit with that probability. A weight between two units replaced is zero here and drawn anew
    there. The defaults are those of its PPO, which had weight decay beside it: see `L2`. Ages are
    gradient steps: in a life of fewer than `maturity` nothing happens at all. What another method
    redraws keeps its age and utility. A single run draws a network in the steps that replace a
    unit; stacked runs draw one in every step, as `recycle` says, and so cost more.

    Attributes:
      replacement_rate: the share of the mature units replaced at each step.
      maturity: the gradient steps for which a new unit is safe.
      decay: of the running utility.
    """

    replacement_rate: float = field(1e-4, ge=0, le=1)
    maturity: int = field(10_000, kind=int, ge=0)
    decay: float = field(0.99, ge=0, lt=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        def new(units: int) -> Usefulness:
            return Usefulness(jnp.zeros(units, jnp.int32), jnp.zeros(units), jnp.zeros(()))

        return {
            layer: new(units_of(train_state.params, layer))
            for layer in connections(train_state.params)
        }

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        after, replaced = {}, {}
        effective = context.effective_params(train_state.params)
        for layer, x in step.activations.items():
            age = state[layer].age + 1
            size = jnp.mean(jnp.abs(_rows(x)), axis=0)
            contribution = size * _outgoing(effective, layer, len(size))
            now = _by_unit(contribution, train_state.params, layer).sum(axis=0)
            utility = self.decay * state[layer].utility + (1 - self.decay) * now
            mature = age > self.maturity
            owed = state[layer].owed + self.replacement_rate * jnp.sum(mature)
            order = jnp.where(mature, utility / (1 - self.decay**age), jnp.inf)
            rank = jnp.argsort(jnp.argsort(order))  # of equal ones the first goes first
            chosen = replaced[layer] = mature & (rank < jnp.floor(owed))
            after[layer] = Usefulness(
                age=jnp.where(chosen, 0, age),
                utility=jnp.where(chosen, 0.0, utility),
                owed=owed - jnp.floor(owed),
            )
        return after, recycle(train_state, replaced, context)


class Firing(NamedTuple):
    """What self-normalised resets know of a hidden layer."""

    silent: Array  # int32 [units]: gradient steps since each last fired
    counts: Array  # int32 [units, bins]: how many silences there were of each length


# The shortest silence of each bin: every length to 7, then four to an octave, the last one open.
_SHORTEST = np.unique([0, *np.round(np.geomspace(1, 2**16, 4 * 16 + 1))]).astype(np.int32)
_SHORTEST_OF_NEXT = np.append(_SHORTEST[1:], np.iinfo(np.int32).max)


class SelfNormalizedResets(Intervention):
    """Resets a unit that is silent for longer than its own past explains.

    Farias & Jozefiak (2025). A silence is the time between two firings of a unit. With A those of
    its past and a the one under way, it is reset when P(A >= a) <= threshold. The clock is the
    gradient step, as in the published code: a unit fires if any activation of the minibatch is
    positive, and one that fires twice running has been silent for 0 steps. Of the silences of a
    unit that is well, so long or short, up to a share of `threshold` end in a reset all the same;
    one that has always fired is reset when it first fails to. Where activations are seldom or
    never all negative (concatenated ReLU, sines and cosines, tanh), little or nothing is reset.

    P is (1 + #{A >= a}) / (1 + #A), the silence under way being counted as one of its kind, as in
    a rank test: a unit must have known 1 / threshold - 1 silences before it can be reset, and
    one that never fired is left alone. (The published code waits for a fixed time there; it takes
    the percentile anew at long intervals, of silences other than 0.) The past is a histogram:
    a falls into a bin, at most a quarter as wide as it is long, and counts as that bin's
    beginning, so that a reset may come late but never early; 65,536 steps and more are one bin.
    A reset ends a silence, which is entered like another; the rest of the past is kept, also
    where another method redraws the unit.

    What leads into the unit is drawn anew, norms and biases included; what leads out of it
    becomes zero; the optimiser's moments of all these are cleared. A single run draws a network
    in the steps that reset a unit; stacked runs draw one in every step, as `recycle` says, and so
    cost more.

    Attributes:
      threshold: the probability at which a silence is too long.
    """

    threshold: float = field(0.01, ge=0, lt=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        def new(units: int) -> Firing:
            counts = jnp.zeros((units, len(_SHORTEST)), jnp.int32)
            return Firing(jnp.zeros(units, jnp.int32), counts)

        return {
            layer: new(units_of(train_state.params, layer))
            for layer in connections(train_state.params)
        }

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        after, reset = {}, {}
        for layer, x in step.activations.items():
            fires = _by_unit(jnp.any(_rows(x) > 0, axis=0), train_state.params, layer).any(axis=0)
            silent = state[layer].silent + ~fires
            counts = state[layer].counts
            as_long = silent[:, None] < _SHORTEST_OF_NEXT
            longer = jnp.sum(jnp.where(as_long, counts, 0), axis=1)
            probability = (1 + longer) / (1 + jnp.sum(counts, axis=1))
            chosen = reset[layer] = ~fires & (probability <= self.threshold)
            ends = fires | chosen
            entered = ends[:, None] & as_long & (silent[:, None] >= _SHORTEST)
            after[layer] = Firing(jnp.where(ends, 0, silent), counts + entered)
        return after, recycle(train_state, reset, context)


class ReGraMa(Intervention):
    """Resets units that hardly get a gradient, at an interval (Liu et al. 2025).

    A unit is inactive if the mean over its incoming weights of |dL/dw| is at most `tau` times the
    mean of that over its layer. L is the whole loss of a minibatch, what other methods add
    included, its gradient before clipping; its absolute value is averaged over the minibatches of
    the update after which the units are judged. These weights are what the published code is
    reported to measure; the paper's equation has the unit's activation in their place, whose
    gradient need not vanish where the unit is dead. Biases and norms do not count. All units of a
    layer without gradient are inactive.

    What leads into an inactive unit is drawn anew, norms and biases included, and what leads out
    of it becomes zero, as in ReDo and as the paper is reported to say; the published code is
    reported to leave the latter alone. The optimiser's moments of what changes are cleared. The
    interval is that of ReDo here, not the paper's.

    Attributes:
      tau: the threshold.
      every: PPO updates from one reset to the next.
      clear_outgoing: whether what leads out becomes zero.
    """

    tau: float = field(0.01, ge=0)
    every: int = field(10, kind=int, ge=1)
    clear_outgoing: bool = static_field(True)

    def init(self, train_state: TrainState, context: Context) -> State:
        """The sum over the minibatches of this update; the ratio needs no mean."""
        return {
            layer: jnp.zeros(units_of(train_state.params, layer))
            for layer in connections(train_state.params)
        }

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:

        def of_units(layer: str) -> Array:
            kernels = [
                _rows(at(step.gradients, path))
                for path in connections(train_state.params)[layer].incoming
                if path[-1] == "kernel"
            ]
            return jnp.mean(jnp.abs(jnp.concatenate(kernels)), axis=0)

        return {layer: total + of_units(layer) for layer, total in state.items()}, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        due = (context.update + 1) % self.every == 0
        inactive = {
            layer: due & (size <= self.tau * jnp.mean(size)) for layer, size in state.items()
        }
        train_state = recycle(train_state, inactive, context, outgoing=self.clear_outgoing)
        return jax.tree.map(jnp.zeros_like, state), train_state


def units_of(params: Params, layer: str) -> int:
    """How many units a hidden layer has: the outputs of its linear part."""
    return int(at(params, connections(params)[layer].incoming[0]).shape[-1])


def recycle(
    train_state: TrainState, chosen: Mapping[str, Array], context: Context, *, outgoing: bool = True
) -> TrainState:
    """Draws anew what leads into the units chosen and clears what leads out, moments included.

    A single run does nothing where no unit is chosen. In stacked runs (`vmap`) the condition
    becomes a choice between two results: each call draws a network.

    Args:
      train_state: parameters and optimizer before.
      chosen: for each hidden layer which units, bool [units].
      context: for fresh parameters, and the optimiser.
      outgoing: whether to clear what leads out; if not, it stays as it is, moments included.

    Returns:
      The train state after; where `outgoing`, a weight from one unit chosen to another is zero.
    """
    paths = connections(train_state.params)

    def recycled() -> TrainState:
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), train_state.params)
        redrawn = cut = nothing
        for layer, mask in chosen.items():
            for path in paths[layer].incoming:
                redrawn = _set(redrawn, path, jnp.broadcast_to(mask, at(nothing, path).shape))
            for path in paths[layer].outgoing if outgoing else ():
                shape = at(nothing, path).shape
                rows = jnp.tile(mask, shape[-2] // mask.size)[:, None]
                cut = _set(cut, path, jnp.broadcast_to(rows, shape))

        def of_weight(old: Array, fresh: Array, redraw: Array, clear: Array) -> Array:
            return jnp.where(clear, 0.0, jnp.where(redraw, fresh, old))

        fresh = context.init_params(context.key)
        params = jax.tree.map(of_weight, train_state.params, fresh, redrawn, cut)
        touched = jax.tree.map(jnp.logical_or, redrawn, cut)
        return TrainState(params, reset_moments(train_state, touched, context))

    any_chosen = jnp.any(jnp.concatenate(list(chosen.values())))
    return jax.lax.cond(any_chosen, recycled, lambda: train_state)


def _by_unit(activations: Array, params: Params, layer: str) -> Array:
    """A layer's activations [activations] as those of each unit: [widening, units]."""
    return activations.reshape(-1, units_of(params, layer))


def _outgoing(params: Params, layer: str, activations: int) -> Array:
    """The sum of the absolute weights out of each of a layer's activations. [activations]."""
    total = jnp.zeros(activations)
    for path in connections(params)[layer].outgoing:
        weights = jnp.moveaxis(jnp.abs(at(params, path)), -2, -1)
        sums = jnp.sum(weights.reshape(-1, weights.shape[-1]), axis=0)
        # One that takes the stream of residual blocks takes what several activations are made of.
        total += jnp.tile(sums, -(-activations // len(sums))).reshape(-1, activations).sum(axis=0)
    return total


def _rows(x: Array) -> Array:
    """[..., units] as [rows, units]: an image's positions count like a batch's observations."""
    return x.reshape(-1, x.shape[-1])


def _set(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    """`tree` with another leaf at `path`."""
    name, *rest = path
    return {**tree, name: _set(tree[name], tuple(rest), leaf) if rest else leaf}
