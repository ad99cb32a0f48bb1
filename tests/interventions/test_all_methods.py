"""Tests of every intervention of the command line, whatever it does.

Twenty updates and a shift in a toy environment: runs stacked over seeds and coefficients against
each run among copies of itself, beside a run that diverges, and with another kind of network.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, Tug, same

from plasticity.agents import PPO, RND, Trajectory
from plasticity.cli.methods import methods
from plasticity.interventions import Context, Intervention, chain
from plasticity.networks import BaseNetwork, Categorical, Mosaic, Network, Output
from plasticity.shifts import Permute, Shifts
from plasticity.struct import SettingError, fields
from plasticity.training import Run, Schedule, check_run, loop, train
from plasticity.training.run import stack

pytestmark = pytest.mark.slow

METHODS = {method.name: method.kind for method in methods("intervention")}
UPDATES = 20
# Coefficients with which a method is sure to act, and to act differently, within a short run; for
# other methods they are the default and half of it. Integers, which are intervals, are 3 and 2.
TWO_VALUES = {
    "freeze": {"after": (1, 0)},
    "churn_reduction": {"target": (50.0, 20.0)},
    "continual_backprop": {"replacement_rate": (0.1, 0.05), "decay": (0.9, 0.5)},
    "self_normalized_resets": {"threshold": (0.5, 0.3)},
    "regrama": {"tau": (0.6, 0.4)},
    "redo": {"tau": (0.6, 0.4)},
    "redo_study": {"tau": (0.6, 0.4)},
}


def make_two(name):
    """The method with two different values of each coefficient."""
    cls = METHODS[name]
    one, other = {}, {}
    for field, declared in fields(cls):
        if declared.metadata.get("static") or "range" not in declared.metadata:
            continue
        if field in TWO_VALUES.get(name, {}):
            values = TWO_VALUES[name][field]
        else:
            is_int = declared.metadata["range"].kind is int
            values = (3, 2) if is_int else (declared.default, declared.default / 2)
        one[field], other[field] = values
    return cls(**one), cls(**other)


AGENT = PPO(
    num_envs=4,
    num_steps=10,
    minibatch_size=20,
    num_epochs=2,
    learning_rate=3e-3,
    adam_eps=1e-4,  # so that Adam does not make large steps of rounding errors
)
# Compiles in half the time. Sums may be in another order: here nothing must be equal to the bit.
QUICK = {"xla_cpu_use_fusion_emitters": False}
SMALL = Network(hidden=(8, 6))
# For methods that not every network can have.
ENCODER = Mosaic(width=4, depth=1, heads=1, mlp_width=4, low_precision_norm=False, patch=3)
ENCODER_METHODS = {"masked_modeling"}
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
def test_runs_in_a_stack_are_independent(name):
    """Would catch a coefficient that is not batched, state that runs share, or NaN that spreads.

    A stack of copies of one run takes the same program as the stack of all: that a program of one
    run gives the same is tested once for the mechanism, in tests/training.
    """
    one, other = (chain(method) for method in make_two(name))
    network = ENCODER if name in ENCODER_METHODS else SMALL
    with jax.enable_x64(True):
        runs = [make_run(*args, network=network) for args in ((one,), (other, 1), (other,))]
        train_stack = jax.jit(jax.vmap(train_one), compiler_options=QUICK)
        together = jax.device_get(train_stack(stack(runs)))
        for i, run in enumerate(runs):
            copies = jax.device_get(train_stack(stack([run] * len(runs))))
            of_stack, of_copies = (jax.tree.map(lambda x, i=i: x[i], y) for y in (together, copies))
            same(of_stack[0], of_copies[0], rtol=1e-6, atol=1e-9)
        diverging = runs[1].replace(agent=runs[1].agent.replace(learning_rate=1e30))
        beside = jax.device_get(train_stack(stack([runs[0], diverging, runs[2]])))
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
def test_methods_trace_on_another_kind_of_network(name):
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
    if name in ENCODER_METHODS:
        network = ENCODER.replace(shared=False, gated=False, activation="crelu", norm="layer_norm")
    run = make_run(chain(METHODS[name]()), network=network, env=Scene())
    run = run.replace(intrinsic=RND(network=Network(hidden=(4, 4, 4))))

    def begin_and_train(run):
        before = loop.init(run)
        after = loop.start_round(run, one_update(run, before))
        return [(state.train_state.params, state.intervention) for state in (before, after)]

    before, after = jax.eval_shape(begin_and_train, jax.tree.map(jnp.asarray, run))
    assert after == before


def traces_on_predictor(method):
    """Whether all hooks that RND calls trace on its predictor, where there is no policy."""
    rnd = RND(network=Network(hidden=(8, 6, 4)), embedding_dim=4, intervention=chain(method))
    shape = (6,)

    def train(key):
        zero = jnp.zeros((), jnp.int32)
        context = Context(key, zero, zero, None, None, None, None)
        context = rnd.make_context(AGENT, shape, key, context)
        steps = jnp.zeros((AGENT.num_steps, AGENT.num_envs))
        obs = jnp.zeros((*steps.shape, *shape))
        trajectory = Trajectory(obs, *[steps] * 7, last_obs=obs[0])
        state = rnd.init(AGENT, shape, context)
        # Without a rollout: its transitions and its parameters are the policy's.
        state, _ = rnd.update(AGENT, state, trajectory, None, context)
        return rnd.on_shift(AGENT, state, context)

    try:
        jax.eval_shape(train, jax.random.key(0))
    except (AttributeError, LookupError, TypeError):
        return False
    return True


@pytest.mark.parametrize("name", METHODS)
def test_methods_without_needs_policy_work_on_the_predictor(name):
    """Would catch a method that lacks the flag: one whose hooks fail there, or a `loss`.

    RND never calls `loss`: a method that overrides it would have no effect there.
    """
    cls = METHODS[name]
    accepted = not cls.needs_policy
    if accepted:
        assert cls.loss is Intervention.loss
        assert traces_on_predictor(cls())
    run = make_run(chain(), network=SMALL)
    run = run.replace(intrinsic=RND(network=Network(hidden=(8, 6, 4)), intervention=chain(cls())))
    if accepted:
        check_run(run)
    else:
        with pytest.raises(SettingError, match=rf"intrinsic\.intervention\.{name}"):
            check_run(run)


def test_needs_policy_refuses_the_known_methods():
    """Would catch a change of what the predictor's configuration accepts."""
    assert {name for name, cls in METHODS.items() if cls.needs_policy} == {
        "calibrated_partial_resets",
        "churn_reduction",
        "continual_backprop",
        "ewc",
        "freeze",
        "infer",
        "kl_penalty",
        "masked_modeling",
        "parseval",
        "plasticity_injection",
        "proximal_features",
        "redo",
        "redo_study",
        "regrama",
        "sam",
        "self_normalized_resets",
    }


class Unnamed(BaseNetwork):
    """A network of a user, with none of the names by which layers are found."""

    def build(self, observation_shape, num_actions, continuous=False, intrinsic=False):
        return UnnamedModule(num_actions)


class UnnamedModule(nn.Module):
    """Its module."""

    num_actions: int

    @nn.compact
    def __call__(self, observation):
        x = nn.Dense(1 + self.num_actions)(observation.reshape(len(observation), -1))
        return Output(Categorical(x[:, 1:]), x[:, 0], {}, {})


# What each method raised, or left undone, on such a network.
NEEDS = {
    "calibrated_partial_resets": "hidden",
    "continual_backprop": "hidden",
    "infer": "hidden.*policy",
    "parseval": "hidden",
    "plasticity_injection": "policy",
    "proximal_features": "hidden.*policy",
    "redo": "hidden",
    "regrama": "hidden",
    "reset_final": "hidden.*policy",
    "reset_layers": "hidden.*policy",
    "self_normalized_resets": "hidden",
    "weight_normalization": "hidden",
}


@pytest.mark.parametrize("name", NEEDS)
def test_methods_are_refused_without_the_layers_that_they_need(name):
    """Would catch a KeyError from inside a compilation, or a method that silently does nothing."""
    run = make_run(chain(METHODS[name]()), network=Unnamed())
    says = rf"^intervention\.{name}=.*needs .*{NEEDS[name]}.* but Unnamed has Dense_0"
    with pytest.raises(SettingError, match=says):
        check_run(run)
    check_run(run.replace(network=SMALL))


class Mistaken(Intervention):
    """A method of a user, with a mistake in it."""

    def after_step(self, state, train_state, step, context):
        return state, undefined_name(train_state)  # noqa: F821


@pytest.mark.parametrize("on_predictor", [False, True])
def test_train_raises_errors_of_a_users_method_unchanged(tmp_path, on_predictor):
    """Would catch an error of the user's code that is taken for a setting out of range."""
    run = make_run(chain() if on_predictor else chain(Mistaken()))
    if on_predictor:
        network = Network(hidden=(4, 4, 4))
        run = run.replace(intrinsic=RND(network=network, intervention=chain(Mistaken())))
    with pytest.raises(NameError, match="undefined_name") as error:
        train([run], tmp_path, progress=False)
    assert error.traceback[-1].path.name == "test_all_methods.py"
    assert error.traceback[-1].name == "after_step"
