"""When a resetting method acts: at shifts, every few updates, or when a probe crosses a threshold.

`Triggered` calls a method's hooks at the moments of a `Trigger`, in place of the method's own:

    Triggered(ProbeThreshold(DormantUnits(), 0.3), ResetFinal())
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.interventions import (
    Batch,
    Context,
    GradientStep,
    Intervention,
    Rollout,
    TrainState,
)
from plasticity.interventions.base import GRADIENT_STEP_HOOKS, State, overrides
from plasticity.networks import Params, without_memory
from plasticity.probes import Probe, View
from plasticity.struct import SettingError, Struct, field, static_field

__all__ = ["AtShifts", "EveryUpdates", "ProbeThreshold", "Trigger", "Triggered"]

Array = jax.Array


class Trigger(Struct):
    """Base class of triggers: says after each update and at each shift whether a method acts."""

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns the trigger's state at the beginning of a run: any pytree of arrays."""
        return ()

    @abstractmethod
    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, Array]:
        """Returns the state after an update of the agent, and whether the method acts. bool []."""
        raise NotImplementedError

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, Array]:
        """Returns the state after a shift, and whether the method acts. bool []."""
        return state, jnp.zeros((), bool)


class AtShifts(Trigger):
    """Acts at every shift."""

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, Array]:
        return state, jnp.zeros((), bool)

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, Array]:
        return state, jnp.ones((), bool)


class EveryUpdates(Trigger):
    """Acts at a fixed interval, whatever the shifts.

    Attributes:
      every: updates of the agent between two actions.
    """

    every: int = field(200, kind=int, ge=1)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, Array]:
        return state, (context.update + 1) % self.every == 0


class ThresholdState(NamedTuple):
    """The state of `ProbeThreshold`."""

    is_beyond: Array  # bool []: at the last measurement
    round_params: Params
    initial_params: Params


class ProbeThreshold(Trigger):
    """Acts when a probe crosses a threshold, and again only after it has come back.

    The probe is measured at a fixed interval on observations drawn from the rollout, not on the
    probe batch, which a method does not have. If it is beyond the threshold at the first
    measurement, that counts as a crossing. NaN is not beyond it.

    Attributes:
      probe: what is measured; one that does not need the agent's loss.
      threshold: the threshold for the probe's value.
      layer: the layer that is compared, or "all".
      direction: "above" to act when the value exceeds the threshold, "below" when it falls under.
      check_every: updates of the agent between two measurements.
      size: observations that are measured on, drawn with replacement.
    """

    probe: Probe
    threshold: float = field()
    layer: str = static_field("all")
    direction: str = static_field("above", choices=("above", "below"))
    check_every: int = field(10, kind=int, ge=1)
    size: int = static_field(256, ge=1)

    def init(self, train_state: TrainState, context: Context) -> State:
        return ThresholdState(jnp.zeros((), bool), train_state.params, train_state.params)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, Array]:
        due = (context.update + 1) % self.check_every == 0

        def measure() -> Array:
            value = self._measure(state, train_state.params, rollout, context)
            above = self.direction == "above"
            return value > self.threshold if above else value < self.threshold

        is_beyond = jax.lax.cond(due, measure, lambda: state.is_beyond)
        return state._replace(is_beyond=is_beyond), is_beyond & ~state.is_beyond

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, Array]:
        return state._replace(round_params=train_state.params), jnp.zeros((), bool)

    def _measure(
        self, state: ThresholdState, params: Params, rollout: Rollout, context: Context
    ) -> Array:
        sample_key, probe_key = jax.random.split(context.key)
        observation = without_memory(rollout.batch.observation)
        indices = jax.random.randint(sample_key, (self.size,), 0, len(observation))

        def per_sample_loss(params: Params, batch: Batch) -> Array:
            raise self._error("probe", self.probe, "must not need the agent's loss")

        measured = self.probe(
            View(
                params=params,
                prev_params=rollout.params,
                round_params=state.round_params,
                initial_params=state.initial_params,
                observation=observation[indices],
                key=probe_key,
                apply=context.apply,
                effective_params=context.effective_params,
                init_params=context.init_params,
                per_sample_loss=per_sample_loss,
                compute_batch=lambda: rollout.batch,
                project=context.project,
            )
        )
        if self.layer not in measured:
            there = ", ".join(measured) or "none"
            raise self._error("layer", self.layer, f"must be one that is measured: {there}")
        return measured[self.layer]

    def _error(self, name: str, value: Any, allowed: str) -> SettingError:
        shown = value if isinstance(value, str) else type(value).__name__
        return SettingError(f"trigger.{name}", shown, allowed)


class TriggeredState(NamedTuple):
    """The state of `Triggered`."""

    trigger: State
    method: State
    is_pending: Array  # bool []: whether the method acts after the next update


class Triggered(Intervention):
    """Lets a resetting method act when a trigger says so, in place of its own moments.

    A method acts through `on_shift`, as `ResetFinal` or `ShrinkPerturb`, or through `after_update`,
    as `ReDo` or `ResetLayers`, which have an interval of their own: set it to 1, so that they act
    whenever they are called. When the trigger fires after an update, both hooks are called, in this
    order: `after_update`, `on_shift`. When it fires at a shift, `on_shift` is called there, and a
    method that has an `after_update` acts after the next update, for it needs a rollout. They are
    not called at any other time. The method's `init` and `after_step` are called as ever: what it
    accumulates goes on from one action to the next. Methods that act all the time, by a loss or an
    architecture, are refused.

    Attributes:
      trigger: when the method acts.
      method: what acts.
    """

    needs_policy: ClassVar[bool] = True

    trigger: Trigger
    method: Intervention

    @property
    def needs_units(self) -> bool:  # type: ignore[override]
        """See `Intervention`."""
        return self.method.needs_units

    @property
    def needs_heads(self) -> bool:  # type: ignore[override]
        """See `Intervention`."""
        return self.method.needs_heads

    def check(self) -> None:
        always = [hook for hook in GRADIENT_STEP_HOOKS if overrides(self.method, hook)]
        acts = any(overrides(self.method, hook) for hook in ("after_update", "on_shift"))
        if always or not acts:
            raise SettingError(
                "method",
                type(self.method).__name__,
                "must be a method that acts after updates or at shifts alone"
                + (f"; this one overrides {', '.join(always)}" if always else ""),
            )
        interval = getattr(self.method, "every", 1)
        if interval != 1 and overrides(self.method, "after_update"):
            raise SettingError("method.every", interval, "must be 1, for the trigger says when")

    def init(self, train_state: TrainState, context: Context) -> State:
        trigger_context, method_context = _split(context)
        return TriggeredState(
            self.trigger.init(train_state, trigger_context),
            self.method.init(train_state, method_context),
            jnp.zeros((), bool),
        )

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        method_state, train_state = self.method.after_step(state.method, train_state, step, context)
        return state._replace(method=method_state), train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        trigger_context, method_context = _split(context)
        trigger, fires = self.trigger.after_update(
            state.trigger, train_state, rollout, trigger_context
        )

        def act() -> tuple[State, TrainState]:
            update_context, shift_context = _split(method_context)
            method_state, changed = self.method.after_update(
                state.method, train_state, rollout, update_context
            )
            # A pending action has had its `on_shift` at the shift.
            return jax.lax.cond(
                fires,
                lambda: self.method.on_shift(method_state, changed, shift_context),
                lambda: (method_state, changed),
            )

        method_state, train_state = jax.lax.cond(
            fires | state.is_pending, act, lambda: (state.method, train_state)
        )
        return TriggeredState(trigger, method_state, jnp.zeros((), bool)), train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        trigger_context, method_context = _split(context)
        trigger, fires = self.trigger.on_shift(state.trigger, train_state, trigger_context)
        method_state, train_state = jax.lax.cond(
            fires,
            lambda: self.method.on_shift(state.method, train_state, method_context),
            lambda: (state.method, train_state),
        )
        return TriggeredState(trigger, method_state, state.is_pending | fires), train_state


def _split(context: Context) -> tuple[Context, Context]:
    """Returns two contexts with different keys."""
    first, second = jax.random.split(context.key)
    return context._replace(key=first), context._replace(key=second)
