"""What every intervention that the command line knows must stand, whatever it does.

Twenty updates and a shift in a toy environment: stacked over seeds and coefficients against each
run alone, next to a neighbor that diverges, and with each kind of network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, Tug, same

from plasticity.agents import PPO, RND, Trajectory
from plasticity.cli.methods import methods
from plasticity.interventions import Context, Intervention, chain
from plasticity.networks import Network
from plasticity.shifts import Permute, Shifts
from plasticity.struct import SettingError, fields
from plasticity.training import Run, Schedule, check_run, loop, train
from plasticity.training.placement import Placement
from plasticity.training.run import stack

METHODS = {method.name: method.kind for method in methods("intervention")}
UPDATES = 20
# Coefficients with which a method is sure to act, and to act differently, within a short life;
# for the others the default and half of it. Whole numbers, which are intervals, are 3 and 2.
TWO_VALUES = {
    "continual_backprop": {"replacement_rate": (0.1, 0.05), "decay": (0.9, 0.5)},
    "self_normalized_resets": {"threshold": (0.5, 0.3)},
    "regrama": {"tau": (0.6, 0.4)},
    "redo": {"tau": (0.6, 0.4)},
}


def two_of(name):
    """The method with two different values for each coefficient."""
    kind = METHODS[name]
    one, other = {}, {}
    for field, declared in fields(kind):
        if declared.metadata.get("static") or "range" not in declared.metadata:
            continue
        whole = declared.metadata["range"].kind is int
        half = (3, 2) if whole else (declared.default, declared.default / 2)
        one[field], other[field] = TWO_VALUES.get(name, {}).get(field, half)
    return kind(**one), kind(**other)


AGENT = PPO(
    num_envs=4,
    num_steps=10,
    minibatch_size=20,
    num_epochs=2,
    learning_rate=3e-3,
    adam_eps=1e-4,  # which keeps Adam from making large steps of rounding errors
)
SMALL = Network(hidden=(8, 6))
TOY = Toy()


class Scene(Tug):
    """The same in a picture."""

    @property
    def observation_shape(self):
        return (6, 6, 2)

    def observe(self, task, state):
        return jnp.broadcast_to(state.wanted, (6, 6, 2))


def run_of(intervention, seed=0, network=SMALL, env=TOY):
    """A short life with that intervention."""
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
    """As in conftest, but after each test: there are programs enough in each."""
    yield
    jax.clear_caches()


def train_all(runs, mode):
    """Trains runs as one batch, or each of them alone, one after another."""
    placement = Placement((jax.local_devices()[0],), mode)
    return jax.device_get(placement.map_runs(train_one)(stack(runs)))


def train_update(run, state):
    """Makes one update: as `loop.train_updates`, which takes longer to trace."""
    state, trajectory, _ = loop.rollout(run, state)
    return loop.update(run, state, trajectory)[0]


def train_one(run):
    """Returns parameters at the end, the intervention's state, and when the run diverged."""

    def one(i, state):
        shifted = loop.start_round(run, state)
        state = jax.tree.map(lambda a, b: jnp.where(i == UPDATES // 2, a, b), shifted, state)
        return train_update(run, state)

    state = jax.lax.fori_loop(0, UPDATES, one, loop.init(run))
    return state.train_state.params, state.intervention, state.diverged


@pytest.mark.parametrize("name", METHODS)
def test_stacked_runs_equal_each_run_alone(name):
    """Would catch a coefficient that is not batched, state that runs share, or NaN that spreads."""
    one, other = (chain(method) for method in two_of(name))
    with jax.enable_x64(True):
        runs = [run_of(one), run_of(other, seed=1), run_of(other)]
        together, alone = (train_all(runs, mode) for mode in ("batch", "loop"))
        diverging = runs[1].replace(agent=runs[1].agent.replace(learning_rate=1e30))
        beside = train_all([runs[0], diverging, runs[2]], "batch")
    params, _, diverged = together
    same(params, alone[0], rtol=1e-6, atol=1e-9)
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
    run = run_of(chain(METHODS[name]()), network=network, env=Scene())
    runs = stack([run.replace(intrinsic=RND(network=Network(hidden=(4, 4, 4))))])

    @jax.vmap
    def train_and_shift(run, state):
        return loop.start_round(run, train_update(run, state))

    before = jax.eval_shape(jax.vmap(loop.init), runs)
    after = jax.eval_shape(train_and_shift, runs, before)
    assert after.train_state == before.train_state
    assert after.intervention == before.intervention


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
def test_needs_policy_is_set_where_the_predictor_will_not_do(name):
    """Would catch a method that lacks the flag, or one that has it for nothing.

    RND never calls `loss`: a method that overrides it would have no effect there.
    """
    kind = METHODS[name]
    accepted = kind.loss is Intervention.loss and traces_on_predictor(kind())
    assert kind.needs_policy != accepted
    run = run_of(chain(), network=SMALL)
    run = run.replace(intrinsic=RND(network=Network(hidden=(8, 6, 4)), intervention=chain(kind())))
    if accepted:
        check_run(run)
    else:
        with pytest.raises(SettingError, match=rf"intrinsic\.intervention\.{name}"):
            check_run(run)


def test_needs_policy_of_the_methods_refused_so_far():
    """Would catch a change of what the predictor's configuration accepts."""
    assert {name for name, kind in METHODS.items() if kind.needs_policy} == {
        "churn_reduction",
        "continual_backprop",
        "infer",
        "parseval",
        "plasticity_injection",
        "proximal_features",
        "redo",
        "regrama",
        "self_normalized_resets",
    }


class Mistaken(Intervention):
    """A user's method with a mistake in it."""

    def after_step(self, state, train_state, step, context):
        return state, undefined_name(train_state)  # noqa: F821


@pytest.mark.parametrize("on_predictor", [False, True])
def test_mistakes_in_a_users_method_are_raised_as_they_are(tmp_path, on_predictor):
    """Would catch an error of the user's code that is taken for a setting out of range."""
    run = run_of(chain() if on_predictor else chain(Mistaken()))
    if on_predictor:
        network = Network(hidden=(4, 4, 4))
        run = run.replace(intrinsic=RND(network=network, intervention=chain(Mistaken())))
    with pytest.raises(NameError, match="undefined_name") as error:
        train([run], tmp_path, progress=False)
    assert error.traceback[-1].path.name == "test_all_methods.py"
    assert error.traceback[-1].name == "after_step"
