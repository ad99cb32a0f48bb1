"""Plasticity injection: adds newly drawn weights without changing the network's output."""

from functools import partial
from typing import ClassVar

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

__all__ = ["PlasticityInjection"]

_LEAVES = ("kernel", "bias")


class PlasticityInjection(Intervention):
    """Adds new heads minus a frozen copy of them at each shift (Nikishin et al. 2023).

    After the injection, a head computes old + (new - copy), where `copy` equals `new` at first and
    is never trained, so the injection does not change the output. A later injection first merges
    the three into one old head. The method acts on the linear heads, at every shift, as in the code
    of Juliani & Ash (2024). The paper injects once, into everything after the encoder, and freezes
    the old head. With linear heads and Adam, the paper's form is equivalent to a baseline that
    resets the moments of its heads.

    `new` and `copy` are parameters in the entry of the head. Until the first injection they are
    zero and have no gradient; weight norms and gradient clipping include them. Frozen parameters
    are restored after every gradient step, so that penalties, weight decay and noise do not change
    them. The study's code detaches the output of the copy, so that the torso is trained through old
    + new; here, as in the paper, it is trained through the whole head. At an injection, the moments
    of the heads are set to zero. Adam's step count and the torso's moments are kept.

    Attributes:
      freeze: whether the old head is frozen from the first injection on, as in the paper. If not,
        both old and new are trained, and the head changes twice as fast, as in the study's code.
    """

    needs_policy: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    freeze: bool = static_field(False)

    def add_params(self, params: Params, key: Array) -> Params:
        def with_new_and_copy(head: Params) -> Params:
            return {**head, "new": _zeros(head), "copy": _zeros(head)}

        return {**params, **{name: with_new_and_copy(params[name]) for name in _heads(params)}}

    def effective_params(self, params: Params) -> Params:
        return {**params, **{name: self._merge(params[name]) for name in _heads(params)}}

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
            params[name] = {**self._merge(params[name]), "new": drawn, "copy": drawn}
        return state, TrainState(
            params, reset_moments(train_state, last_layers(params, 1), context)
        )

    def _merge(self, head: Params) -> Params:
        """Merges old, new and copy into one head; no gradient flows into the frozen ones."""
        others = {name: leaf for name, leaf in head.items() if name not in ("new", "copy")}
        new, copy = head["new"], jax.lax.stop_gradient(head["copy"])
        injected = _injected(head)

        def merge(old: Array, new: Array, copy: Array) -> Array:
            new = jnp.where(injected, new, jax.lax.stop_gradient(new))
            if self.freeze:
                old = jnp.where(injected, jax.lax.stop_gradient(old), old)
            return old + (new - copy)  # in this order: exactly old right after an injection

        return {**others, **{name: merge(head[name], new[name], copy[name]) for name in new}}


def _heads(params: Params) -> tuple[str, ...]:
    return ("policy", *value_heads(params))


def _zeros(head: Params) -> Params:
    return {name: jnp.zeros_like(head[name]) for name in _LEAVES}


def _injected(head: Params) -> Array:
    """Returns whether there has been an injection: until then the copy is zero. bool []."""
    return jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in head["copy"].values()]))
