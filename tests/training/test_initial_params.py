"""Runs that begin with the final parameters of other runs: `init_from`."""

import re
import shutil

import jax
import numpy as np
import pytest
from helpers import RUN

import plasticity as pl
from plasticity.envs.host import Gymnasium
from plasticity.storage.run_dir import RunDir
from plasticity.struct import to_config
from plasticity.training import loop
from plasticity.training.initial_params import load_initial_params
from plasticity.training.run import stack
from plasticity.training.train import Job
from plasticity.training.trainer import make_trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a finished run of seeds 3 and 1, whose parameters are numbers of their own."""
    folder = tmp_path_factory.mktemp("source") / "run"
    runs = tuple(RUN.replace(seed=seed) for seed in (3, 1))
    params = jax.vmap(loop.init)(stack(runs)).train_state.params
    params = jax.tree.map(lambda x: np.stack([x[0] + 1, x[1] + 2]), params)
    with RunDir(Job(runs, folder, {}).info, 2) as run_dir:
        run_dir.write_params(params)
    return folder, params


def begin_from(folder, *seeds, **changes):
    return [RUN.replace(init_from=folder, seed=seed, **changes) for seed in seeds]


def test_each_seed_begins_with_the_parameters_of_the_same_seed(source):
    """Would catch parameters of another seed, stale moments, and regularizers to a fresh draw."""
    folder, params = source
    runs = begin_from(folder, 1, 3)
    loaded = load_initial_params(runs)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(lambda x: x[::-1], params))
    state = make_trainer(stack(runs), params=loaded).state
    for begun in (state.train_state.params, state.initial_params, state.round_params):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:2], y), begun, loaded)
    fresh = make_trainer(stack([run.replace(init_from=None) for run in runs])).state
    for ours, theirs in (
        (state.train_state.opt_state, fresh.train_state.opt_state),
        (state.task, fresh.task),
        (state.envs, fresh.envs),
    ):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_host_environments_begin_so_too():
    """Would catch a share of the runs that begins with the parameters of another share."""
    env = Gymnasium(id="CartPole-v1")
    runs = stack([RUN.replace(env=env, seed=seed) for seed in (3, 1)])
    like = jax.vmap(loop.init)(runs).train_state.params
    given = jax.tree.map(lambda x: np.asarray(x) + 1, like)
    trainer = make_trainer(runs, params=given)
    trainer.close()
    jax.tree.map(np.testing.assert_array_equal, trainer.state.train_state.params, given)


@pytest.mark.parametrize(
    ("seed", "changes", "message"),
    [
        (0, {}, "must hold a run of seed 0; has [3, 1]"),
        (1, {"network": pl.Network(hidden=(9,))}, "must hold a run of the same network: "),
        (1, {"init_from": "nowhere"}, "init_from='nowhere': must be the folder of a finished run"),
    ],
)
def test_other_parameters_are_refused_in_one_line(source, tmp_path, seed, changes, message):
    """Would catch a run that begins with parameters cut, filled, or drawn at random instead."""
    (run,) = begin_from(source[0], seed)
    with pytest.raises(pl.SettingError, match=re.escape(message)) as refused:
        pl.train(run.replace(**changes), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_or_damaged_is_refused(source, tmp_path):
    folder = shutil.copytree(source[0], tmp_path / "copy")
    (folder / "params/_METADATA").unlink()
    with pytest.raises(pl.SettingError, match="must hold parameters that can be read"):
        load_initial_params(begin_from(folder, 1))


def test_a_run_that_has_begun_needs_its_source_no_more(source, tmp_path):
    """Would catch a finished run that cannot be looked at, and a source that is not recorded."""
    copy = shutil.copytree(source[0], tmp_path / "copy")
    (run,) = begin_from(copy, 1)
    config = {name: value for name, value in to_config(run).items() if name != "_target_"}
    with RunDir(Job((run,), tmp_path / "run", config).info, 1) as run_dir:
        run_dir.write_table(pl.results.empty())
    shutil.rmtree(copy)
    assert pl.train(run, tmp_path / "run", progress=False).empty
    with pytest.raises(pl.SettingError, match="has one with init_from="):
        pl.train(run.replace(init_from=None), tmp_path / "run")
