"""Tests of every intervention of the command line, whatever it does.

Twenty updates and a shift in a toy environment: runs stacked over seeds and coefficients against
each run alone, beside a run that diverges, and with another kind of network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, Tug, same

from plasticity.agents import PPO, RND, Trajectory
from plasticity.cli.methods import methods
from plasticity.interventions import Intervention, Rollout, chain
from plasticity.networks import Network
from plasticity.shifts import Permute, Shifts
from plasticity.struct import fields
from plasticity.training import Run, Schedule, loop
from plasticity.training.run import stack

METHODS = {method.name: method.kind for method in methods("intervention")}
UPDATES = 20
# Coefficients with which a method is sure to act, and to act differently, within a short run; for
# other methods they are the default and half of it. Integers, which are intervals, are 3 and 2.
TWO_VALUES = {
    "continual_backprop": {"replacement_rate": (0.1, 0.05), "decay": (0.9, 0.5)},
    "self_normalized_resets": {"threshold": (0.5, 0.3)},
    "regrama": {"tau": (0.6, 0.4)},
    "redo": {"tau": (0.6, 0.4)},
}


def make_two(name):
    """The method with two different values of each coefficient."""
    kind = METHODS[name]
    one, other = {}, {}
    for field, declared in fields(kind):
        if declared.metadata.get("static") or "range" not in declared.metadata:
            continue
        is_int = declared.metadata["range"].kind is int
        values = (3, 2) if is_int else (declared.default, declared.default / 2)
        one[field], other[field] = TWO_VALUES.get(name, {}).get(field, values)
    return kind(**one), kind(**other)


AGENT = PPO(
    num_envs=4,
    num_steps=10,
    minibatch_size=20,
    num_epochs=2,
    learning_rate=3e-3,
    adam_eps=1e-4,  # so that Adam does not make large steps of rounding errors
)
SMALL = Network(hidden=(8, 6))
TOY = Toy()


class Scene(Tug):
    """The same environment with images as observations."""

    @property
    def observation_shape(self):
        return (6, 6, 2)

    def observe(self, task, state):
        return jnp.broadcast_to(state.wanted, (6, 6, 2))


def make_run(intervention, seed=0, network=SMALL, env=TOY):
    """A short run with that intervention."""
    return Run(
        env=env,
        shift=Shifts.of(Permute()),
        intervention=intervention,
        network=network,
        agent=AGENT,
        schedule=Schedule(rounds=2, updates_per_round=UPDATES // 2),
        seed=seed,
    )


@pytest.fixture(autouse=True)
def _forget_programs():
    """As in conftest, but after each test: programs of every method would be too many."""
    yield
    jax.clear_caches()


def train_one(run):
    """Returns parameters, the intervention's state and the update of divergence at the end."""

    def step(i, state):
        shifted = loop.start_round(run, state)
        state = jax.tree.map(lambda a, b: jnp.where(i == UPDATES // 2, a, b), shifted, state)
        return one_update(run, state)

    state = jax.lax.fori_loop(0, UPDATES, step, loop.init(run))
    return state.train_state.params, state.intervention, state.diverged


def one_update(run, state):
    state, trajectory, _ = loop.rollout(run, state)
    return loop.update(run, state, trajectory)[0]


@pytest.mark.parametrize("name", METHODS)
def test_method_is_the_same_stacked_alone_and_beside_a_run_that_diverges(name):
    """Would catch a coefficient that is not batched, state that runs share, or NaN that spreads."""
    one, other = (chain(method) for method in make_two(name))
    with jax.enable_x64(True):
        runs = [make_run(one), make_run(other, seed=1), make_run(other)]
        train_stack, train_alone = jax.jit(jax.vmap(train_one)), jax.jit(train_one)
        together = jax.device_get(train_stack(stack(runs)))
        for i, run in enumerate(runs):
            # As arrays, like those of a stack, so that all runs share a program.
            alone = jax.device_get(train_alone(jax.tree.map(jnp.asarray, run)))
            of_stack = jax.tree.map(lambda x, i=i: x[i], together)
            same(of_stack[0], alone[0], rtol=1e-6, atol=1e-9)
        assert train_alone._cache_size() == 1
        wild = runs[1].replace(agent=runs[1].agent.replace(learning_rate=1e30))
        beside = jax.device_get(train_stack(stack([runs[0], wild, runs[2]])))
        assert train_stack._cache_size() == 1
    params, _, diverged = together
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
    assert not diverged.any()
    for i in (0, 2):
        same(*(jax.tree.map(lambda x, i=i: x[i], outcome) for outcome in (beside, together)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    differ = [np.abs(leaf[0] - leaf[2]).max() for leaf in jax.tree.leaves(params)]
    # Of one seed: they differ if the coefficients do, all of which the method must have read.
    assert (max(differ) > 1e-6) == (one != other)


@pytest.mark.parametrize("name", METHODS)
def test_method_works_with_another_kind_of_network(name):
    """Would catch a method that knows one torso, one activation a unit, no norm or no image.

    Or that knows logits alone, or one value.
    """
    network = Network(
        hidden=(6,),
        shared=False,
        activation="crelu",
        norm="layer_norm",
        channels=(4,),
        kernel=(3,),
        stride=(1,),
        blocks=1,
    )
    run = make_run(chain(METHODS[name]()), network=network, env=Scene())
    run = run.replace(intrinsic=RND(network=Network(hidden=(4, 4, 4))))

    def begin_and_train(run):
        before = loop.init(run)
        after = loop.start_round(run, one_update(run, before))
        return [(state.train_state.params, state.intervention) for state in (before, after)]

    before, after = jax.eval_shape(jax.vmap(begin_and_train), stack([run]))
    assert after == before


def trace_on_predictor(method):
    """Traces every hook of RND's predictor under a method, which no policy is given to."""
    module = RND(network=Network(hidden=(4, 4, 4)), intervention=chain(method))
    shape = TOY.observation_shape
    run = make_run(chain(method), network=SMALL)

    def train(key):
        # The policy's own network is built without the method.
        context = loop.make_context(run.replace(intervention=chain()), *[jnp.int32(0)] * 2)
        context = module.make_context(AGENT, shape, key, context._replace(key=key))
        values = jnp.zeros((AGENT.num_steps, AGENT.num_envs))
        observation = jnp.zeros((*values.shape, *shape))
        trajectory = Trajectory(*[values] * 9)._replace(
            observation=observation, last_obs=observation[0]
        )
        state = module.observe(module.init(AGENT, shape, context), trajectory)
        state, _ = module.update(AGENT, state, trajectory, Rollout(None, None), context)
        return module.on_shift(AGENT, state, context)

    jax.eval_shape(train, jax.random.key(0))


@pytest.mark.parametrize("name", METHODS)
def test_method_needs_policy_if_its_hooks_do(name):
    """Would catch a method without the flag that fails in a predictor, or one refused in vain."""
    cls = METHODS[name]
    try:
        trace_on_predictor(cls())
        fails = False
    except (AttributeError, LookupError, TypeError):
        fails = True
    # The loss of a predictor has no output or transitions to give to `Intervention.loss`.
    assert cls.needs_policy == (fails or cls.loss is not Intervention.loss)


def test_methods_that_need_policy():
    """Would catch a change of the methods that RND's predictor refuses."""
    assert sorted(name for name, cls in METHODS.items() if cls.needs_policy) == [
        "churn_reduction",
        "continual_backprop",
        "infer",
        "parseval",
        "plasticity_injection",
        "proximal_features",
        "redo",
        "regrama",
        "self_normalized_resets",
    ]
