"""Plasticity injection: fresh weights beside the learnt ones, without a change of the output."""

from functools import partial

import jax
import jax.numpy as jnp

from plasticity.interventions.base import (
    Array,
    Context,
    GradientStep,
    Intervention,
    State,
    TrainState,
    reset_moments,
)
from plasticity.interventions.resets import last_layers
from plasticity.networks import Params, value_heads
from plasticity.struct import static_field

_LEAVES = ("kernel", "bias")


class PlasticityInjection(Intervention):
    """Adds fresh heads less a frozen copy of them at each shift (Nikishin et al. 2023).

    A head computes old + (new - copy) from then on: the output is as before, and the copy never
    learns. Each later injection first makes one old head of the three. Acts on the two linear
    heads, at every shift, as in the code of Juliani & Ash (2024); the paper injects once, into
    all that follows the encoder, and freezes the old head. With linear heads and Adam the paper's
    form is that of a baseline whose heads' moments begin anew.

    `new` and `copy` are in the head's entry of the parameters, zero and without a gradient until
    the first injection; norms and clipping count what is in the entry. What is frozen is put
    back after every gradient step, whatever a penalty, a decay or noise has done to it. The
    study's code detaches the copy's output, so that its torso learns through old + new; here, as
    in the paper, it learns through the whole head. At an injection the heads' moments begin at
    zero; Adam's count, and the torso's moments, are left as they are.

    Attributes:
      freeze: whether the old head stops learning at the first injection, as in the paper. If
        not, as in the study's code, old and new both learn, and the head moves twice as fast.
    """

    freeze: bool = static_field(False)

    def add_params(self, params: Params, key: Array) -> Params:
        def with_room(head: Params) -> Params:
            return {**head, "new": _zeros(head), "copy": _zeros(head)}

        return {**params, **{name: with_room(params[name]) for name in _heads(params)}}

    def effective_params(self, params: Params) -> Params:
        return {**params, **{name: self._whole(params[name]) for name in _heads(params)}}

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        params = dict(train_state.params)
        for name in _heads(params):
            before, after = step.prev_params[name], params[name]
            injected = _injected(before)
            new = jax.tree.map(partial(jnp.where, injected), after["new"], before["new"])
            params[name] = {**after, "new": new, "copy": before["copy"]}
            if self.freeze:
                params[name] |= {
                    leaf: jnp.where(injected, before[leaf], after[leaf]) for leaf in _LEAVES
                }
        return state, train_state._replace(params=params)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        fresh = context.init_params(context.key)
        params = dict(train_state.params)
        for name in _heads(params):
            drawn = {leaf: fresh[name][leaf] for leaf in _zeros(fresh[name])}
            params[name] = {**self._whole(params[name]), "new": drawn, "copy": drawn}
        return state, TrainState(
            params, reset_moments(train_state, last_layers(params, 1), context)
        )

    def _whole(self, head: Params) -> Params:
        """The head in one, what is frozen without a gradient."""
        rest = {name: leaf for name, leaf in head.items() if name not in ("new", "copy")}
        new, copy = head["new"], jax.lax.stop_gradient(head["copy"])
        injected = _injected(head)

        def whole(old: Array, new: Array, copy: Array) -> Array:
            new = jnp.where(injected, new, jax.lax.stop_gradient(new))
            if self.freeze:
                old = jnp.where(injected, jax.lax.stop_gradient(old), old)
            return old + (new - copy)  # in this order nothing is rounded right after an injection

        return {**rest, **{name: whole(head[name], new[name], copy[name]) for name in new}}


def _heads(params: Params) -> tuple[str, ...]:
    return ("policy", *value_heads(params))


def _zeros(head: Params) -> Params:
    return {name: jnp.zeros_like(head[name]) for name in _LEAVES}


def _injected(head: Params) -> Array:
    """Whether there has been an injection: until then the copy is zero. bool []."""
    return jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in head["copy"].values()]))
