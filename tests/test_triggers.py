"""When a triggered method acts, moment by moment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same
from intervention_helpers import step_of

import plasticity as pl
from plasticity.interventions import Batch, Intervention, Rollout, TrainState
from plasticity.training import check_run, loop

OBS = jnp.asarray(np.random.default_rng(0).normal(size=(20, 6)), jnp.float32)


class Level(pl.Probe):
    """The first bias of the policy, which tests set."""

    def __call__(self, view):
        return {"all": view.params["policy"]["bias"][0], "policy": jnp.float32(3)}


class Count(Intervention):
    """Counts the calls of its hooks, and adds 100 to a bias of the value at each action."""

    def init(self, train_state, context):
        return {"step": 0, "update": 0, "shift": 0}

    def after_step(self, state, train_state, step, context):
        return {**state, "step": state["step"] + 1}, train_state

    def after_update(self, state, train_state, rollout, context):
        return {**state, "update": state["update"] + 1}, self._mark(train_state)

    def on_shift(self, state, train_state, context):
        return {**state, "shift": state["shift"] + 1}, self._mark(train_state)

    def _mark(self, train_state):
        return train_state._replace(params=jax.tree.map(lambda x: x + 100, train_state.params))


def drive(trigger, method, context, moments):
    """The numbers of calls of the method's hooks after each moment: a level, or a shift."""
    part = pl.Triggered(trigger, method)
    params = context.init_params(jax.random.key(3))
    state, counts = part.init(TrainState(params, ()), context), []

    def at_level(level):
        policy = {**params["policy"], "bias": jnp.full(3, level, jnp.float32)}
        return TrainState({**params, "policy": policy}, ())

    @jax.jit
    def after_update(state, train_state, update):
        state, _ = part.after_step(state, train_state, step_of(), context)
        rollout = Rollout(Batch(OBS, *[jnp.zeros(20)] * 5), params)
        return part.after_update(state, train_state, rollout, context._replace(update=update))

    update = 0
    for moment in moments:
        before = (state.method["update"], state.method["shift"])
        if moment == "shift":
            train_state = at_level(0)
            state, after = part.on_shift(state, train_state, context)
        else:
            train_state = at_level(moment)
            state, after = after_update(state, train_state, jnp.int32(update))
            update += 1
        counts.append((int(state.method["update"]), int(state.method["shift"])))
        calls = sum(counts[-1]) - int(sum(before))
        same(after.params, jax.tree.map(lambda x, n=calls: x + 100 * n, train_state.params), 1e-5)
    assert state.method["step"] == update
    return counts


def test_every_updates_acts_at_its_interval(context):
    """Would catch an interval that a shift begins anew, an action too many, or one hook of two."""
    counts = drive(pl.EveryUpdates(3), Count(), context, [0, 0, "shift", 0, 0, 0, 0])
    assert counts == [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (1, 1), (2, 2)]


def test_at_shifts_acts_at_once_and_after_the_next_update(context):
    """Would catch a method that needs a rollout and never acts, or acts twice."""
    counts = drive(pl.AtShifts(), Count(), context, [0, "shift", 0, 0, "shift", 0])
    assert counts == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("direction", "levels"), [("above", (0, 1)), ("below", (1, 0))])
def test_probe_threshold_acts_at_crossings(context, direction, levels):
    """Would catch an action at every measurement beyond, the other side, or one between two."""
    near, beyond = levels
    trigger = pl.ProbeThreshold(Level(), 0.5, direction=direction, check_every=2)
    # Measured at every second moment; what lies between is not seen.
    moments = [beyond, near, near, beyond, near, beyond, beyond, near, near, beyond]
    acts = [0, 0, 0, 1, 1, 1, 1, 1, 1, 2]
    counts = drive(trigger, Count(), context, moments)
    assert counts == [(n, n) for n in acts]


def test_probe_threshold_takes_a_layer_and_refuses_what_it_cannot_measure(context):
    """Would catch "all" for every layer, or an error from inside a compilation."""
    trigger = pl.ProbeThreshold(Level(), 2.0, layer="policy", check_every=1)
    assert drive(trigger, Count(), context, [0, 0]) == [(1, 1), (1, 1)]
    with pytest.raises(pl.SettingError, match=r"trigger\.layer='torso': .* all, policy"):
        drive(trigger.replace(layer="torso"), Count(), context, [0])
    with pytest.raises(pl.SettingError, match=r"trigger\.probe='HessianEigenvalue': .* loss"):
        drive(pl.ProbeThreshold(pl.HessianEigenvalue(), 1.0), Count(), context, [0])


CONFIG = {
    "env": {"_target_": "helpers.Toy"},
    "network": {"hidden": [8, 6]},
    "agent": {"num_envs": 4, "num_steps": 10, "minibatch_size": 20, "num_epochs": 2},
    "schedule": {},
    "seed": 0,
}


def triggered(**method):
    """A configuration of a method that acts when units are dormant."""
    trigger = {
        "_target_": "plasticity.ProbeThreshold",
        "probe": {"_target_": "plasticity.DormantUnits", "tau": 0.1},
        "threshold": 0.25,
    }
    part = {"_target_": "plasticity.Triggered", "trigger": trigger, "method": method}
    return {**CONFIG, "intervention": {"resets": part}}


def test_triggered_is_configured_by_name_and_trained():
    """Would catch nested settings that are not built, or a state of another kind afterwards."""
    (run,) = pl.from_config(triggered(_target_="plasticity.ReDo", every=1))
    assert isinstance(run.env, Toy)
    (part,) = run.intervention.parts
    assert part.trigger.probe == pl.DormantUnits(tau=0.1)
    assert part.needs_units

    def begin_and_train(run):
        before = loop.init(run)
        state, trajectory, _ = loop.rollout(run, before)
        after = loop.start_round(run, loop.update(run, state, trajectory)[0])
        return [(state.train_state.params, state.intervention) for state in (before, after)]

    before, after = jax.eval_shape(begin_and_train, jax.tree.map(jnp.asarray, run))
    assert before == after


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"_target_": "plasticity.ReDo"}, r"intervention\.resets\.method\.every=10"),
        ({"_target_": "plasticity.L2Init"}, r"intervention\.resets\.method='L2Init'.*penalty"),
        ({"_target_": "plasticity.LayerNorm"}, r"intervention\.resets\.method='LayerNorm'"),
        ({}, r"intervention\.resets\.method='Intervention'"),
    ],
)
def test_triggered_refuses_methods_that_it_cannot_trigger(method, named):
    """Would catch a method that acts never, always, or at two clocks at once."""
    with pytest.raises(pl.SettingError, match=named):
        pl.from_config(triggered(**method))


def test_triggered_names_layers_that_are_missing():
    """Would catch needs of the method that the wrapper hides."""
    (run,) = pl.from_config(triggered(_target_="plasticity.ResetFinal"))
    check_run(run)
    assert run.intervention.parts[0].needs_heads
    assert not pl.Triggered(pl.AtShifts(), pl.ShrinkPerturb()).needs_units
