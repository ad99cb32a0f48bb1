"""Groups of a sweep as jobs of a cluster: the same results in the same places."""

import json
import os
import signal
import subprocess
import threading
import time

import pandas as pd
import pytest
from helpers import ROOT, SMALL, tables
from hydra import compose, initialize_config_dir

from plasticity import results
from plasticity.cli.command import CONFIG, CONFIGS
from plasticity.training import sweep

pytestmark = pytest.mark.slow

LINE = f"-m {SMALL} intervention=warm_start,l2_norm seed=0,1"


def inner(**settings):
    """The override by which each group is a job of `helpers.InTurn`."""
    given = "".join(f", {key}: {value}" for key, value in settings.items())
    return f"'+hydra.launcher.inner={{_target_: helpers.InTurn{given}}}'"


def test_each_group_is_a_job_that_trains_it_as_here(shell, tmp_path, capsys):
    """Would catch jobs that mix up groups, or write to another place than is read."""
    assert shell(f"{LINE} out=here") == 0
    capsys.readouterr()
    assert shell(f"{LINE} out=there {inner()}") == 0
    out = capsys.readouterr().out
    assert "4 jobs: 2 programs to train" in out
    assert "each a job of InTurn" in out
    here, there = tables(tmp_path / "here"), tables(tmp_path / "there")
    assert here.keys() == there.keys()
    for name, frame in here.items():
        pd.testing.assert_frame_equal(frame, there[name])
    assert not (tmp_path / "there" / sweep.GROUPS_DIR).exists()

    assert shell(f"{LINE} out=there {inner(lost=0)}") == 0  # all is done: no job is asked for


def test_programs_train_in_processes_with_a_share_of_the_memory(shell, tmp_path):
    """Would catch processes that write to another place, or reserve all of a GPU's memory."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib")
    settings = "schedule.rounds=1 schedule.eval_episodes=0 intervention=warm_start,l2_norm"
    assert shell(f"-m {SMALL} {settings} out=sweep hydra/launcher=fused_joblib") == 0
    assert tables(tmp_path / "sweep").keys() == {"0_warm_start", "1_l2_norm"}
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(CONFIG, ["hydra/launcher=fused_joblib"], return_hydra_config=True)
    assert config.hydra.job.env_set.XLA_PYTHON_CLIENT_MEM_FRACTION == "0.450"


def test_what_a_job_loses_is_told_and_goes_on_by_the_same_command(shell, tmp_path, capsys):
    """One line on what is missing, the others' results kept; and no traceback."""
    assert shell(f"{LINE} out=sweep {inner(lost=1)}") == 2
    error = capsys.readouterr().err
    assert "2 of 4 jobs failed" in error
    assert "sweep/2_l2_norm: is waited for no longer, as RuntimeError: Job 7" in error
    assert "its log" not in error
    assert "Traceback" not in error
    assert set(results.load(tmp_path / "sweep").intervention) == {"warm_start"}
    assert shell(f"{LINE} out=sweep {inner()}") == 0
    assert "2 finished already" in capsys.readouterr().out
    assert len(tables(tmp_path / "sweep")) == 4


def test_what_goes_wrong_in_a_job_comes_back_by_folder(shell, tmp_path, capsys, monkeypatch):
    """Would catch failures in a job that are taken for success, or given to its neighbours."""

    def failing(jobs, *args, **kwargs):
        if jobs[0].runs[0].intervention.name == "warm_start":
            raise OSError("no space left")
        return real(jobs, *args, **kwargs)

    real = sweep.train_jobs
    monkeypatch.setattr(sweep, "train_jobs", failing)
    assert shell(f"{LINE} out=sweep {inner()}") == 2
    error = capsys.readouterr().err
    assert "sweep/0_warm_start: no space left" in error
    assert "sweep/2_l2_norm" not in error
    assert set(results.load(tmp_path / "sweep").intervention) == {"l2_norm"}


@pytest.mark.parametrize("name", ["joblib", "slurm", "ray"])
def test_a_launcher_that_is_not_installed_is_one_line(shell, capsys, name, monkeypatch):
    from hydra.core.config_store import ConfigStore

    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    for there in ("joblib.yaml", "submitit_slurm.yaml", "ray.yaml"):
        monkeypatch.delitem(launchers, there, raising=False)
    assert shell(f"{LINE} hydra/launcher=fused_{name}") == 2
    assert capsys.readouterr().err == (
        f"error: hydra/launcher: needs the extra: pip install 'plasticity-rl[{name}]'\n"
    )


def test_a_job_that_its_scheduler_warns_is_requeued_and_goes_on(shell, tmp_path, monkeypatch):
    """submitit for real, with its own stand-in for SLURM: a warning in the middle of training."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm")
    folder = tmp_path / "sweep"

    def warn_once_trained():
        while not (folder / "0_warm_start/metrics.parquet").exists():
            time.sleep(0.05)
        (controller,) = (path.name for path in (folder / ".submitit").glob("[0-9]*"))
        tasks = subprocess.run(["pgrep", "-P", controller], capture_output=True, text=True)
        os.kill(int(tasks.stdout), signal.SIGUSR2)

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    threading.Thread(target=warn_once_trained, daemon=True).start()
    line = (
        f"-m {SMALL} seed=0,1 schedule.rounds=30 schedule.updates_per_round=8 out={folder} "
        "+hydra/launcher@hydra.launcher.inner=submitit_local"
    )
    assert shell(line) == 0
    for name in ("0_warm_start", "1_warm_start"):
        meta = json.loads((folder / name / "meta.json").read_text())
        assert meta["status"] == "finished"
        first, second = (session["from_update"] for session in meta["sessions"])
        assert first == 0 < second
        frame = results.read(folder / name / "metrics.parquet")
        assert not frame.duplicated(["update", "metric", "layer"]).any()
        logged = frame[frame.metric == "policy_loss"]["update"]
        assert list(logged) == list(range(2, 30 * 8 + 1, 2))
