"""Domain shifts: what they change, what they leave alone, and what they depend on."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.envs.gather import Gather
from plasticity.interventions import ResetAll, SoftShrinkPerturb, chain
from plasticity.shifts import Expand, Permute, Shifts, Window
from plasticity.training.lifetime import Stream, key_for

ENV = Gather(levels=7)
ROUNDS = 10


def tasks(shifts, seed=3):
    """The tasks of ten rounds under `shifts`, on the host."""
    run_key = jax.random.key(seed)
    task, step = ENV.task(seed), jax.jit(shifts)
    out = [task]
    for round_ in range(1, ROUNDS):
        out.append(step(out[-1], jnp.int32(round_), jax.random.fold_in(run_key, round_)))
    return jax.device_get(out)


def ids(task):
    """The set of level ids of a task."""
    return set(range(task.levels.first, task.levels.first + task.levels.size))


def test_permute_composes_fresh_permutations():
    """Would catch entries lost or doubled, a permutation used twice, or levels that move."""
    seen = [task.permutation for task in tasks(Shifts.of(Permute()))]
    assert np.array_equal(seen[0], np.arange(363))
    for permutation in seen:
        assert np.array_equal(np.sort(permutation), np.arange(363))
    # Where entry j of the last round's view went; one of 363 stays at home on average.
    moves = [np.argsort(old)[new] for old, new in pairwise(seen)]
    assert len({move.tobytes() for move in moves}) == ROUNDS - 1
    assert max(np.sum(move == np.arange(363)) for move in moves) < 8
    assert all(ids(task) == ids(tasks(Shifts())[0]) for task in tasks(Shifts.of(Permute())))


def test_view_composes_with_what_the_agent_saw():
    """Would catch the permutation applied the wrong way round, or to the wrong axis."""
    observation = np.arange(363, dtype=np.float32).reshape(11, 11, 3)
    task = ENV.task(0)._replace(permutation=jnp.roll(jnp.arange(363), 1))
    seen = np.asarray(task.view(jnp.asarray(observation)))
    assert seen.shape == (11, 11, 3)
    assert np.array_equal(seen.reshape(-1), np.roll(np.arange(363), 1))


def test_windows_are_disjoint_and_adjacent():
    """Would catch levels met again in a later round."""
    windows = [ids(task) for task in tasks(Shifts.of(Window()))]
    assert all(len(window) == 7 for window in windows)
    assert set.union(*windows) == set(range(60_000, 60_000 + 7 * ROUNDS))


def test_expand_grows_linearly_and_keeps_old_levels():
    """Would catch growth that doubles, or a window in disguise."""
    sets = [ids(task) for task in tasks(Shifts.of(Expand()))]
    assert [len(levels) for levels in sets] == [7 * (i + 1) for i in range(ROUNDS)]
    assert all(old < new for old, new in pairwise(sets))


def test_shifts_compose():
    """Would catch a part that undoes another, or that is handed another's key."""
    both = tasks(Shifts.of(Permute(), Window()))
    windows, permuted = tasks(Shifts.of(Window())), tasks(Shifts.of(Permute()))
    for task, window, permutation in zip(both, windows, permuted, strict=True):
        assert ids(task) == ids(window)
        assert np.array_equal(task.permutation, permutation.permutation)
    twice = tasks(Shifts.of(Permute(), Permute()))[1].permutation
    assert not np.array_equal(twice, permuted[1].permutation)


def test_none_changes_nothing():
    """Would catch a control that shifts."""
    first, *later = tasks(Shifts())
    for task in later:
        jax.tree.map(np.testing.assert_array_equal, first, task)


@pytest.mark.parametrize("shift", [Permute(), Window(), Expand()])
def test_held_out_levels_are_never_trained_on(shift):
    """Would catch a test set that a later round trains on, of this seed or of its neighbours."""
    rounds = tasks(Shifts.of(shift))
    trained = set.union(*(ids(task) for s in (2, 3, 4, 103) for task in tasks(Shifts.of(shift), s)))
    for task in rounds:
        held_out = task.held_out()
        assert len(ids(held_out)) == len(ids(task))
        assert not trained & ids(held_out)
        assert np.array_equal(held_out.permutation, task.permutation)


def test_the_seed_alone_makes_the_shift(tiny_run):
    """Would catch a shift's key that depends on the intervention, or not on the seed or round."""
    key_of = lambda run, count: tuple(  # noqa: E731
        np.asarray(jax.random.key_data(key_for(run, Stream.SHIFT, count)))
    )
    methods = chain(ResetAll()), chain(SoftShrinkPerturb())
    runs = [tiny_run(seed=1, intervention=method) for method in methods]
    assert key_of(runs[0], 1) == key_of(runs[1], 1)
    others = [key_of(tiny_run(seed=s), c) for s in (1, 2) for c in (1, 2)]
    assert len(set(others)) == 4
