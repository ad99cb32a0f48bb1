"""Settings: ranges and errors, leaves and structure, names of parts."""

import math

import jax
import numpy as np
import pytest

from plasticity.agents import PPO
from plasticity.envs.cartpole import CartPole
from plasticity.envs.gather import Gather
from plasticity.interventions import Intervention, Interventions, L2Norm, LayerNorm, chain
from plasticity.networks import Network
from plasticity.probes import Probes
from plasticity.shifts import Expand, Permute, Shifts, Window
from plasticity.struct import (
    Range,
    SettingError,
    Struct,
    check,
    field,
    fields,
    locate,
    snake_case,
    static_field,
)
from plasticity.training.run import Run, Schedule, check_run


class Damp(Intervention):
    """A method as a user would write it: no registration, no decorator."""

    strength: float = field(0.5, ge=0, le=1)
    every: int = static_field(3, ge=1)


class Nest(Struct):
    """Settings that hold others."""

    inner: Damp = Damp()
    count: int = field(2, kind=int, ge=0, lt=5)


REFUSED = [
    (Run(Gather(), agent=PPO(learning_rate=0.0)), "agent.learning_rate=0.0: ", "> 0"),
    (Run(Gather(), agent=PPO(clip_eps=math.nan)), "agent.clip_eps=nan: ", "a finite number"),
    (Run(Gather(), agent=PPO(clip_eps=math.inf)), "agent.clip_eps=inf: ", "a finite number"),
    (Run(Gather(), agent=PPO(gamma=1.5)), "agent.gamma=1.5: ", ">= 0 and <= 1"),
    (Run(Gather(), agent=PPO(gamma=True)), "agent.gamma=True: ", "a finite number"),
    (Run(Gather(), agent=PPO(gamma="0.9")), "agent.gamma='0.9': ", "a finite number"),
    (Run(Gather(), agent=PPO(adam_b1=1.0)), "agent.adam_b1=1.0: ", "< 1"),
    (Run(Gather(), agent=PPO(num_envs=2.0)), "agent.num_envs=2.0: ", "a whole number >= 1"),
    (Run(Gather(), agent=PPO(num_envs=True)), "agent.num_envs=True: ", "a whole number"),
    (Run(Gather(levels=0)), "env.levels=0: ", "a whole number >= 1"),
    (Run(Gather(), network=Network(hidden=(8, 0))), "network.hidden=(8, 0): ", ">= 1"),
    (Run(Gather(), network=Network(norm="batch")), "network.norm='batch': ", "none, layer_norm"),
    (Run(Gather(), seed=-1), "seed=-1: ", ">= 0"),
    (
        Run(Gather(), intervention=chain(LayerNorm(), L2Norm(decay=-1))),
        "intervention.l2_norm.decay=-1.0: ",
        ">= 0",
    ),
]


@pytest.mark.parametrize(("run", "begins", "allows"), REFUSED)
def test_check_names_key_value_and_what_is_allowed(run, begins, allows):
    """Would catch a bad value that passes, or a message that does not help to mend it."""
    with pytest.raises(SettingError) as caught:
        check(run)
    message = str(caught.value)
    assert message.startswith(begins)
    assert allows in message.removeprefix(begins)
    assert "\n" not in message
    assert caught.value.key == begins.split("=")[0]


@pytest.mark.parametrize("learning_rate", [1, 1.0, 1e-300])
def test_check_accepts_values_in_range(learning_rate):
    """Would catch a bound that is off by its own edge, or whole numbers refused for floats."""
    check(Run(Gather(), agent=PPO(learning_rate=learning_rate, gamma=1, gae_lambda=0)))


@pytest.mark.parametrize(
    ("value", "inside"),
    [(0, True), (4, True), (5, False), (-1, False), (2.0, False), (False, False), (None, False)],
)
def test_range_of_whole_numbers(value, inside):
    """Would catch an open bound taken for a closed one, or a bool taken for a number."""
    assert (value in Range(int, ge=0, lt=5)) == inside


def test_check_prefixes_keys_of_nested_settings():
    """Would catch settings of nested specs that nobody checks."""
    with pytest.raises(SettingError, match=r"^top\.inner\.strength=2\.0: must be .*<= 1$"):
        check(Nest(inner=Damp(strength=2)), "top")
    with pytest.raises(SettingError, match=r"^count=5: must be a whole number >= 0 and < 5$"):
        check(Nest(count=5))


@pytest.mark.parametrize(
    ("run", "key", "says"),
    [
        (
            Run(Gather(), agent=PPO(num_envs=2, num_steps=3, minibatch_size=7)),
            "agent.minibatch_size",
            "= 6",
        ),
        (Run(CartPole(), shift=Shifts.of(Window())), "shift", "cartpole has none"),
        (
            Run(Gather(levels=1001), shift=Shifts.of(Expand()), schedule=Schedule(rounds=10)),
            "env.levels",
            "needs 10010 levels",
        ),
        (
            Run(
                Gather(levels=200),
                shift=Shifts.of(Window(), Expand()),
                schedule=Schedule(rounds=10),
            ),
            "env.levels",
            "needs 11000 levels",
        ),
        (Run(Gather(levels=10_001)), "env.levels", "10000"),
    ],
)
def test_check_run_refuses_settings_that_do_not_fit_together(run, key, says):
    """Would catch a run that trains on another seed's levels or drops its whole rollout."""
    with pytest.raises(SettingError) as caught:
        check_run(run)
    assert caught.value.key == key
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("run", "key"),
    [
        (Run(Gather(), agent=5), "agent"),
        (Run(None), "env"),
        (Run(Gather(), network=Network(hidden=8)), "network.hidden"),
        (Run(Gather(), network=Network(hidden="88")), "network.hidden"),
        (Run(Gather(), shift=Shifts.of(Window(), Window())), "shift"),
    ],
)
def test_check_refuses_the_wrong_type(run, key):
    """Would catch a run that breaks, or drops a part of the same name, long after it began."""
    with pytest.raises(SettingError) as caught:
        check(run)
    assert caught.value.key == key


def test_check_run_accepts_all_levels_of_a_seed():
    """Would catch a limit that is off by one."""
    schedule = Schedule(rounds=10)
    check_run(Run(Gather(levels=1000), shift=Shifts.of(Permute(), Window()), schedule=schedule))
    check_run(Run(Gather(levels=10_000), shift=Shifts.of(Permute()), schedule=schedule))


def test_struct_converts_lists_and_numpy_scalars():
    """Would catch lists and NumPy's numbers in a structure that must hash and compare."""
    network = Network(hidden=[np.int64(8), 4])
    assert network == Network(hidden=(8, 4))
    assert hash(jax.tree.structure(network)) == hash(jax.tree.structure(Network(hidden=(8, 4))))
    whole = PPO(learning_rate=1, num_envs=np.int32(4))
    check(whole)
    assert [type(x) for x in (whole.learning_rate, whole.num_envs)] == [float, int]


def test_subclass_of_struct_is_a_pytree():
    """Would catch coefficients that are no leaves, or structure that is one."""
    damp = Damp(strength=0.25, every=7)
    leaves, structure = jax.tree.flatten(damp)
    assert leaves == [0.25]
    assert jax.tree.unflatten(structure, [0.75]) == Damp(strength=0.75, every=7)
    assert structure != jax.tree.structure(Damp(every=8))
    assert float(jax.jit(lambda d: d.strength * d.every)(damp)) == 1.75
    assert [name for name, _ in fields(damp)] == ["strength", "every"]


def test_struct_is_frozen_and_replace_copies():
    """Would catch a setting changed in place, behind the back of whoever shares the run."""
    nest = Nest()
    changed = nest.replace(inner=nest.inner.replace(strength=0.1))
    assert (nest.inner.strength, changed.inner.strength) == (0.5, 0.1)
    assert changed.count == nest.count
    with pytest.raises(AttributeError):
        nest.count = 3
    with pytest.raises(TypeError):
        nest.replace(unknown=1)


def test_chain_names_parts_after_their_class():
    """Would catch names that do not follow the parts."""
    parts = chain(LayerNorm(), Damp(), L2Norm())
    assert parts.names == ("layer_norm", "damp", "l2_norm")
    assert [type(part).__name__ for part in parts.parts] == ["LayerNorm", "Damp", "L2Norm"]
    assert parts.name == "layer_norm+damp+l2_norm"
    assert (Interventions().name, Shifts().name) == ("warm_start", "none")
    assert Shifts.of(Permute(), Window()).name == "permute+window"
    assert len(jax.tree.leaves(parts)) == 2


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("SoftShrinkPerturb", "soft_shrink_perturb"),
        ("L2Norm", "l2_norm"),
        ("RegenerativeL2", "regenerative_l2"),
        ("WeightRMS", "weight_rms"),
        ("RMSNorm", "rms_norm"),
        ("PPO", "ppo"),
    ],
)
def test_snake_case(name, snake):
    """Would catch names on the command line that differ from the documented ones."""
    assert snake_case(name) == snake


def test_locate_imports_or_names_the_key():
    """Would catch a traceback instead of a line for a mistyped import path."""
    assert locate("math.pi", "x") == math.pi
    for path in ("math.nothing", "no_such_module_at_all.Name", "nodots"):
        with pytest.raises(SettingError, match=rf"^some\.key='{path}': must be an import path"):
            locate(path, "some.key")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: chain(LayerNorm), r"parts\[0\]=.*Intervention.* not a class, as LayerNorm\(\)"),
        (lambda: chain(LayerNorm(), Permute()), r"parts\[1\]=Permute.*of the kind Intervention"),
        (lambda: chain(chain(LayerNorm())), r"parts\[0\]=.*of the kind Intervention"),
        (lambda: Shifts.of(LayerNorm()), r"parts\[0\]=LayerNorm\(\): must be of the kind Shift"),
        (lambda: Probes.of("dead_units"), r"parts\[0\]='dead_units': .*of the kind Probe"),
        (lambda: check(Shifts((Permute(),), ())), "different name for each part"),
        (lambda: check(Shifts(Permute(), "permute")), r"parts=Permute.*: must be a list"),
        (lambda: check(Run(Gather), "run"), r"run\.env=.*an object and not a class, as Gather"),
    ],
)
def test_chains_refuse_what_is_no_part(make, says):
    """Would catch a class in place of an object, which broke inside a compilation."""
    with pytest.raises(SettingError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level_id", [-1, 2**31, 10**12, 1.5, math.nan, "7", None, True])
def test_gather_refuses_what_is_no_level(level_id):
    """Would catch a level that no seed owns, or an error of JAX's."""
    with pytest.raises(SettingError, match=r"^level_id=.*: must be a whole number >= 0"):
        Gather().level(level_id)


@pytest.mark.parametrize(
    ("rounds", "updates", "key"),
    [
        (10**12, 1, "schedule.rounds"),
        (2**31 - 1, 2, "schedule.rounds"),
        (2**16, 2**16, "schedule.updates_per_round"),
        (2, 2**31 - 1, "schedule.updates_per_round"),
    ],
)
def test_check_run_refuses_more_updates_than_int32_counts(rounds, updates, key):
    """Would catch a run whose counter of updates wraps around, or a check that counts to it."""
    schedule = Schedule(rounds=rounds, updates_per_round=updates)
    with pytest.raises(SettingError, match=str(2**31 - 1)) as caught:
        check_run(Run(Gather(), schedule=schedule))
    assert caught.value.key == key


def test_check_run_stops_counting_levels():
    """Would catch a check that walks through a billion rounds."""
    schedule = Schedule(rounds=10**9, updates_per_round=2)
    with pytest.raises(SettingError, match="or more"):
        check_run(Run(Gather(), shift=Shifts.of(Window()), schedule=schedule))
