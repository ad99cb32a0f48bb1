"""Fused runs: those of other shifts and methods in one program, each as in one of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import RUN, Toy, same
from hydra import compose, initialize_config_dir

import plasticity as pl
from plasticity import results
from plasticity.cli.command import CONFIG, CONFIGS, runs_of
from plasticity.training import loop
from plasticity.training.fusion import acts_between_updates, fuse, fusion_key
from plasticity.training.placement import Placement
from plasticity.training.run import stack
from plasticity.training.sweep import describe_plan, plan, train_groups
from plasticity.training.train import Job, train_jobs

SHIFTS = ([pl.Permute()], [pl.Window()], [pl.Expand()], [pl.Permute(), pl.Window()], [])
METHODS = ([], [pl.ResetAll()], [pl.ShrinkPerturb()], [pl.ResetLayers(every=2)])
BASE = RUN.replace(
    env=pl.Gather(levels=3, episode_steps=10),
    probes=pl.Probes.of(pl.WeightNorm()),
    schedule=RUN.schedule.replace(rounds=3, updates_per_round=3),
)


def make_job(shifts, methods, folder):
    """A job of two seeds, of which the second has a coefficient of its own where there is one."""
    other = [
        part.replace(shrink=0.9) if isinstance(part, pl.ShrinkPerturb) else part for part in methods
    ]
    runs = [
        BASE.replace(shift=pl.Shifts.of(*shifts), intervention=pl.chain(*parts), seed=seed)
        for seed, parts in enumerate((methods, other))
    ]
    return Job(tuple(runs), folder, {"name": folder.name})


class Levelled(Toy):
    """The same environment with levels: where an episode starts."""

    @property
    def num_levels(self):
        return 3

    def reset(self, task, key):
        level = jax.random.fold_in(jax.random.key(0), task.levels.draw(key))
        return super().reset(task, level)


TOY = BASE.replace(env=Levelled(), schedule=BASE.schedule.replace(updates_per_round=1))


def second_round(run):
    """The parameters after the first update of the second round."""
    state, _ = loop.train_updates(run, loop.start_round(run, loop.init(run)), 1)
    return state.train_state.params


def make_jobs(root):
    return [
        make_job(shifts, methods, root / f"{i}_{j}")
        for i, shifts in enumerate(SHIFTS)
        for j, methods in enumerate(METHODS)
    ]


@pytest.mark.slow
def test_fused_jobs_equal_each_job_alone_to_the_bit(tmp_path, exact):
    """Would catch another run's shift, method, coefficient, random numbers or labels."""
    jobs = make_jobs(tmp_path / "fused")
    groups = plan(jobs, tmp_path / "fused")
    assert [line.split(":")[0] for line in describe_plan(jobs, groups)] == [
        "20 jobs",
        "  [1/2] gather permute | permute+window warm_start | reset_all | shrink_perturb | "
        "reset_layers",
        "  [2/2] gather window | expand | none warm_start | reset_all | shrink_perturb | "
        "reset_layers",
        "  programs differ in transformations",
    ]
    assert train_groups(groups, tmp_path / "fused", progress=False) == {}
    for shift, method in ((1, 2), (2, 3), (3, 1)):
        alone = make_job(SHIFTS[shift], METHODS[method], tmp_path / f"alone/{shift}_{method}")
        train_jobs([alone])
        fused = tmp_path / f"fused/{shift}_{method}"
        pd.testing.assert_frame_equal(
            results.load(fused), results.load(alone.folder), check_exact=True
        )
        jax.tree.map(
            np.testing.assert_array_equal, pl.load_params(fused), pl.load_params(alone.folder)
        )
    tables = [results.load(job.folder) for job in jobs]
    norms = {tuple(table[table.metric == "weight_norm"].value) for table in tables}
    assert len(norms) == len(jobs)  # no two jobs computed the same


def test_a_round_begins_equally_in_a_program_of_any_runs(optimized):
    """Would catch arithmetic of a method that the compiler merges with a draw in some programs."""
    methods = [pl.chain(), pl.chain(pl.ResetAll()), pl.chain(pl.ShrinkPerturb())]
    runs = [BASE.replace(intervention=method, seed=3) for method in methods]
    placement = Placement((jax.local_devices()[0],), "loop")

    def second_start(runs):
        stacked = stack(fuse(runs))
        states = placement.map_runs(loop.init)(stacked)
        states = placement.map_runs(loop.start_round)(stacked, states)
        return placement.map_runs(loop.start_round)(stacked, states).train_state.params

    fused = jax.tree.map(lambda x: x[2], second_start(runs))
    for run in second_start([runs[2]]), second_start([runs[2]] * 3):
        jax.tree.map(np.testing.assert_array_equal, fused, jax.tree.map(lambda x: x[-1], run))


@pytest.mark.slow
def test_all_shifts_in_one_program_equal_each_alone_up_to_rounding():
    """Would catch a transformation that is not neutral for the runs that do not have it."""
    shifts = [
        [pl.Permute(), pl.PermuteActions()],
        [pl.Window(), pl.RewardScale()],
        [pl.Offset()],
        [pl.Expand(), pl.Periodic("reward_scale", "square")],
        [pl.PartialView()],
    ]
    with jax.enable_x64():
        runs = [TOY.replace(shift=pl.Shifts.of(*parts)) for parts in shifts]
        assert len({fusion_key(run, exact=False) for run in runs}) == 1
        fused = jax.jit(jax.vmap(second_round))(stack(fuse(runs)))
        for i, run in enumerate(runs[:2]):
            alone = jax.jit(second_round)(jax.tree.map(jnp.asarray, run))
            same(jax.tree.map(lambda x, i=i: x[i], fused), alone, rtol=1e-9, atol=1e-9)


def test_runs_of_equal_structure_stay_as_they_are():
    """Would catch a program that changes, and no longer equals its golden results."""
    runs = [BASE.replace(seed=seed) for seed in range(3)]
    assert fuse(runs) == tuple(runs)


@pytest.mark.parametrize("parts", [[pl.Noise()], [pl.StickyActions()], [pl.Dynamics()]])
def test_shifts_that_draw_other_random_numbers_stay_apart(parts):
    """Would catch a run whose episodes change because of what is trained beside it."""
    run = BASE.replace(shift=pl.Shifts.of(*parts))
    plain = BASE.replace(shift=pl.Shifts.of(pl.Permute()))
    assert len({fusion_key(one, exact=False) for one in (run, plain)}) == 2


def test_what_acts_between_updates_alone_is_read_from_its_hooks():
    class AtShifts(pl.Intervention):
        def on_shift(self, state, train_state, context):
            return state, train_state

    class WithState(AtShifts):
        def init(self, train_state, context):
            return train_state.params

    class UsesRollouts(AtShifts):
        needs_policy = True

        def after_update(self, state, train_state, rollout, context):
            return state, train_state

    assert [acts_between_updates(method()) for method in (AtShifts, WithState, UsesRollouts)] == [
        True,
        False,
        False,
    ]


def test_position_in_a_chain_matters():
    """Would catch methods fused at another position, where they draw other random numbers."""
    norm, reset = pl.LayerNorm(), pl.ResetAll()
    keys = [
        fusion_key(BASE.replace(intervention=pl.chain(*parts)))
        for parts in ([norm], [norm, reset], [norm, pl.ShrinkPerturb()], [reset, norm])
    ]
    assert len(set(keys[:3])) == 1
    assert len(set(keys)) == 2


@pytest.mark.slow
def test_the_study_is_ten_programs_or_twenty_exact_ones():
    """Would catch a method or a shift that needs a program of its own for no reason."""
    size = "experiment=reproduce/small"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        params = compose(CONFIG, [size], return_hydra_config=True).hydra.sweeper.params
    methods = re.split(r",\s*(?![^[]*\])", params.intervention)
    assert len(methods) == 13
    keys = set()
    for method in methods:
        run = runs_of(size, "shift=permute", f"intervention={method}")[0]
        for shift in (pl.Permute(), pl.Window(), pl.Expand()):
            keys |= {
                (exact, fusion_key(run.replace(shift=pl.Shifts.of(shift)), exact))
                for exact in (True, False)
            }
    assert sum(exact for exact, _ in keys) == 20
    assert sum(not exact for exact, _ in keys) == 10
