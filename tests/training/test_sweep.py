"""Sweeps whose jobs train together: the plan, equality with the jobs alone, failures, resuming."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import SMALL, tables
from omegaconf import OmegaConf

import plasticity as pl
from plasticity import results
from plasticity.storage.errors import StorageError
from plasticity.storage.signals import SignalGuard
from plasticity.training import Job, loop, memory_estimate, sweep
from plasticity.training.memory_estimate import Memory, memory_of
from plasticity.training.placement import Placement
from plasticity.training.run import stack

TWO = "'intervention=regenerative_l2,l2_norm' 'agent.ent_coef=0.0,0.03' seed=0,1,2"


def config_of(folder):
    """A job's configuration, in plain containers."""
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))


@pytest.fixture
def programs(monkeypatch):
    """The jobs of each program that is trained."""
    trained = []
    real = sweep.train_jobs

    def counted(jobs, *args, **kwargs):
        trained.append([job.folder.name for job in jobs])
        return real(jobs, *args, **kwargs)

    monkeypatch.setattr(sweep, "train_jobs", counted)
    return trained


@pytest.mark.slow
def test_sweep_of_12_runs_is_two_programs_and_equals_the_runs_alone(
    shell, tmp_path, programs, capsys
):
    """Would catch coefficients or rows that end with another job of the same program."""
    with jax.enable_x64():
        assert shell(f"-m {SMALL} {TWO} out=sweep") == 0
        out = capsys.readouterr().out
        assert "12 jobs: 2 programs to train" in out
        assert "[2/2] void permute l2_norm: 6 jobs, 6 agents, about" in out
        assert [len(jobs) for jobs in programs] == [6, 6]
        together = tables(tmp_path / "sweep")
        assert len(together) == 12
        assert not (tmp_path / "sweep" / sweep.GROUPS_DIR).exists()

        for name, frame in together.items():
            folder = tmp_path / "sweep" / name
            meta = json.loads((folder / "meta.json").read_text())
            assert meta["status"] == "finished"
            assert meta["trained_together"] == 6
            (run,) = pl.from_config(config_of(folder))
            alone = pl.train(run, names=[name], progress=False)
            pd.testing.assert_frame_equal(frame, alone, rtol=1e-9)

    # Each coefficient and seed counts: no two jobs are alike.
    ends = {tuple(frame[frame.metric == "gradient_norm"].value) for frame in together.values()}
    assert len(ends) == 12

    # Nothing is trained again, and the same is reported.
    programs.clear()
    assert shell(f"-m {SMALL} {TWO} out=sweep") == 0
    assert "12 jobs: 0 programs to train, 12 finished already" in capsys.readouterr().out
    assert programs == []


@pytest.mark.slow
def test_sweep_interrupted_resumes_in_the_same_groups(
    shell, tmp_path, programs, capsys, monkeypatch
):
    """Would catch rows lost or doubled, a group made anew, and another job's shift or method."""
    line = f"-m {SMALL} seed=0,1 intervention=warm_start,reset_all"
    assert shell(f"{line} out=whole") == 0
    checks = []

    def stop_at_the_third(self):
        checks.append(self)
        self.pending_signal = signal.SIGINT if len(checks) == 2 else None
        if len(checks) == 3:
            raise KeyboardInterrupt

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(SignalGuard, "check", stop_at_the_third)
        assert shell(f"{line} out=sweep hydra.launcher.agents=2") == 130
    assert "the same command resumes from sweep" in capsys.readouterr().err
    under_way = programs[-1]
    assert under_way == ["0_warm_start", "1_reset_all"]
    meta = json.loads((tmp_path / "sweep" / under_way[0] / "meta.json").read_text())
    assert meta["status"] == "interrupted"
    assert results.load(tmp_path / "sweep")["update"].max() >= 2  # it can be read meanwhile

    programs.clear()
    assert shell(f"{line} out=sweep") == 0  # though more would fit into a program now
    assert programs[0] == under_way
    assert sorted(map(len, programs)) == [2, 2]
    whole, parts = tables(tmp_path / "whole"), tables(tmp_path / "sweep")
    assert whole.keys() == parts.keys()
    for name, frame in whole.items():
        pd.testing.assert_frame_equal(frame, parts[name])
        one, other = (pl.load_params(tmp_path / out / name) for out in ("whole", "sweep"))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not (tmp_path / "sweep" / sweep.GROUPS_DIR).exists()


@pytest.mark.slow
def test_sweep_lists_failed_jobs_and_finishes_the_others(shell, tmp_path, capsys):
    """One line each on what failed; a sweep's results can be read all the same."""
    line = f"-m {SMALL} intervention=l2_norm,warm_start seed=0,1 out=sweep"
    real = sweep.train_jobs

    def failing(jobs, *args, **kwargs):
        if jobs[0].runs[0].intervention.name == "l2_norm":
            raise StorageError("sweep: no space left")
        real(jobs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train_jobs", failing)
        assert shell(line) == 2
    error = capsys.readouterr().err
    assert "2 of 4 jobs failed" in error
    assert error.count("no space left") >= 2
    assert set(results.load(tmp_path / "sweep").intervention) == {"warm_start"}


@pytest.mark.slow
def test_sweep_in_batches_groups_each_batch(shell, tmp_path, programs):
    """Batches of a sweep do not take each other's folders; each makes groups of its own."""
    line = f"-m {SMALL} seed=0,1 intervention=warm_start,l2_norm out=sweep"
    assert shell(f"{line} hydra.sweeper.max_batch_size=2") == 0
    assert len(tables(tmp_path / "sweep")) == 4
    assert [len(jobs) for jobs in programs] == [1, 1, 1, 1]


def job(number, run, **changes):
    """A job of one run, never trained."""
    run = run.replace(**changes)
    return Job((run,), Path(f"nowhere/{number}"), {"seed": run.seed})


def test_plan_makes_equal_groups_that_fit_memory(tiny_run, tmp_path, monkeypatch):
    """Would catch a group that is larger than memory, or a job in two groups or none."""
    run = tiny_run()
    need = memory_of(run)
    jobs = [job(i, run, seed=i) for i in range(10)]
    assert [len(group.jobs) for group in sweep.plan(jobs, tmp_path)] == [10]
    assert [len(group.jobs) for group in sweep.plan(jobs, tmp_path, sweep.Grouping(4))] == [4, 4, 2]
    monkeypatch.setattr(sweep, "available", lambda: need.of(4, 4))
    groups = sweep.plan(jobs, tmp_path)
    assert [one.folder for group in groups for one in group.jobs] == [one.folder for one in jobs]
    assert all(group.memory <= need.of(4, 4) for group in groups)
    other = tiny_run(network=pl.Network(hidden=(4,)))
    mixed = sweep.plan([*jobs, job(10, other)], tmp_path)
    assert [len(group.jobs) for group in mixed][-1] == 1


def nested_jobs(sweep_dir, tiny_run):
    """Jobs in `a/0`, `a/1`, `b/0` and `b/1` of a sweep's folder, never trained."""
    return [
        Job((tiny_run(seed=seed),), sweep_dir / method / str(seed), {"seed": seed})
        for method in "ab"
        for seed in range(2)
    ]


def test_plan_tells_groups_of_folders_with_equal_names_apart(tiny_run, tmp_path):
    """Would catch two groups with one place for checkpoints, or one that resumes the other's."""
    jobs = nested_jobs(tmp_path, tiny_run)
    first, second = sweep.plan(jobs, tmp_path, sweep.Grouping(2))
    assert [group.jobs for group in (first, second)] == [tuple(jobs[:2]), tuple(jobs[2:])]
    assert first.checkpoint_dir != second.checkpoint_dir
    second.checkpoint_dir.mkdir(parents=True)
    (second.checkpoint_dir / "jobs.json").write_text('["b/0", "b/1"]')
    assert sweep.plan(jobs, tmp_path, sweep.Grouping(1))[0] == second


def test_remove_leftovers_tells_folders_with_equal_names_apart(tiny_run, tmp_path):
    """Would catch a finished job that removes the checkpoints of another of the same name."""
    jobs = nested_jobs(tmp_path, tiny_run)
    groups = sweep.plan(jobs, tmp_path, sweep.Grouping(2))
    for name, group in zip("ab", groups, strict=True):
        group.checkpoint_dir.mkdir(parents=True)
        (group.checkpoint_dir / "jobs.json").write_text(f'["{name}/0", "{name}/1"]')
    for job in jobs:
        (job.folder / "checkpoints").mkdir(parents=True)
    for job in jobs[:2]:
        (job.folder / "config.yaml").write_text(json.dumps(dict(job.config)))
        (job.folder / "meta.json").write_text('{"status": "finished"}')
    damaged = tmp_path / ".groups/c/jobs.json"
    damaged.parent.mkdir()
    damaged.write_text('["a/0')
    with pytest.warns(UserWarning, match=r"c/jobs\.json: cannot be read"):
        sweep.remove_leftovers(jobs, tmp_path)
    kept = [(job.folder / "checkpoints").exists() for job in jobs]
    assert kept == [False, False, True, True]
    assert [group.checkpoint_dir.exists() for group in groups] == [False, True]


@pytest.mark.slow
def test_memory_of_is_about_what_the_compiler_allocates(tiny_run):
    """Would catch an estimate by which a group does not fit, or a device stays half empty."""
    run = tiny_run(env=pl.Gather(), network=pl.Network(hidden=(64, 64)))
    runs = stack([run.replace(seed=seed) for seed in range(8)])
    how = Placement((jax.local_devices()[0],), "batch")
    state = jax.eval_shape(how.map_runs(loop.init), runs)
    steps = jax.ShapeDtypeStruct((), "int32")
    needs = [
        how.map_runs(function, shared=len(shared), donate=donate)
        .lower(runs, state, *shared)
        .compile()
        .memory_analysis()
        for function, shared, donate in (
            (loop.train_updates, (steps,), 1),
            (loop.probe_batch, (), None),
        )
    ]
    held = needs[0].argument_size_in_bytes
    most = held + max(one.temp_size_in_bytes for one in needs)
    assert 0.7 < memory_of(run).of(8, 8) / most < 1.3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env.pixels", 10**6),
        ("network.hidden", (2**31 - 1,)),
        ("network.hidden", (10**6, 10**6)),
        ("agent.num_steps", 5 * 10**8),
        ("agent.num_epochs", 10**9),
        ("schedule.probe_batch_size", 2**31 - 1),
        ("schedule.eval_episodes", 2**31 - 1),
        ("intrinsic.embedding_dim", 10**9),
        ("intrinsic.network.hidden", (10**6, 10**6, 10**6)),
    ],
)
def test_what_no_memory_holds_is_refused_before_anything_is_compiled(
    key, value, tiny_run, monkeypatch
):
    """Would catch hours of swapping, a killed process, or another setting named."""
    monkeypatch.setattr(memory_estimate, "_total", lambda: 10**11)
    monkeypatch.setattr(sweep, "train_in_memory", lambda *args, **kwargs: pytest.fail("trains"))
    run = tiny_run(intrinsic=pl.RND())

    def changed(struct, path):
        name, *rest = path
        return struct.replace(**{name: changed(getattr(struct, name), rest) if rest else value})

    with pytest.raises(pl.SettingError, match=r"must be smaller: .* GB") as caught:
        pl.train(changed(run, key.split(".")))
    assert caught.value.key == key


def test_many_seeds_are_refused_by_their_memory(tiny_run, monkeypatch):
    """Would catch a stack of which only each run alone fits."""
    runs = [tiny_run(seed=seed) for seed in range(50)]
    monkeypatch.setattr(memory_estimate, "_total", lambda: 10**6)
    memory_estimate.check_memory(runs[:1])
    with pytest.raises(pl.SettingError, match=r"^seed=\[0, 1, .*1,? ?.*must be smaller"):
        memory_estimate.check_memory(runs)


def test_memory_adds_state_and_work():
    """By hand."""
    assert Memory(standing=3, working=10).of(5, 2) == 35
    assert 0 < memory_estimate.available() < 2**50


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/job/step", {"job/memory.max": "3000", "job/step/memory.max": "max"}, 3000),
        ("0::/", {"memory.max": "5000"}, 5000),  # in a container
        ("4:cpu,memory:/x", {"memory/x/memory.limit_in_bytes": "7000"}, 7000),
        ("4:cpu:/x", {"memory/x/memory.limit_in_bytes": "7000"}, float("inf")),
    ],
)
def test_memory_is_limited_by_control_groups(line, files, limit, tmp_path):
    """Would catch groups as large as the machine in a container that is killed for it."""
    (tmp_path / "cgroup").write_text(line + "\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert memory_estimate._cgroup_limit(tmp_path / "fs", tmp_path) == limit
    assert memory_estimate._cgroup_limit(tmp_path, tmp_path / "nowhere") == float("inf")
