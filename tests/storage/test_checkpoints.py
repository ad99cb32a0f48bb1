"""Runs that are interrupted anywhere and resumed: results are as if they had not been.

Each is compared with an undisturbed run: its table row for row, its parameters to the bit.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import runpy
import shlex
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
from helpers import RUN, TINY

import plasticity as pl
from plasticity import results
from plasticity.cli.command import command
from plasticity.cli.train import job
from plasticity.envs.host import Gymnasium
from plasticity.storage import checkpoints
from plasticity.storage.checkpoints import CheckpointManager
from plasticity.storage.signals import SignalGuard
from plasticity.training import loop

# Due after updates 3, 4 and 6 of a round: a log interval is under way at two of these stops.
LONGER = RUN.replace(schedule=RUN.schedule.replace(rounds=3, log_every=4))
RUNS = [LONGER.replace(seed=seed) for seed in range(3)]
HOST_RUN = LONGER.replace(env=Gymnasium(id="CartPole-v1"), probes=pl.Probes.of(pl.WeightNorm()))


def train(folder, runs=RUNS, **options):
    """As a user would, without a display."""
    return pl.train(runs, folder, progress=False, **options)


def meta_of(folder):
    """What `meta.json` says."""
    return json.loads((folder / "meta.json").read_text())


def is_as_undisturbed(folder, undisturbed):
    """Asserts that a folder holds a finished run, the same as the other folder's."""
    pd.testing.assert_frame_equal(results.load(folder), results.load(undisturbed))
    ours, theirs = (pl.load_params(path) for path in (folder, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert {path.name for path in folder.iterdir()} - {"figures"} == {
        "config.yaml",
        "meta.json",
        "metrics.parquet",
        "params",
    }
    meta, as_they = meta_of(folder), meta_of(undisturbed)
    assert meta.pop("status") == "finished"
    assert len(meta.pop("sessions")) >= len(as_they.pop("sessions"))
    del as_they["status"]
    assert meta == as_they


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the stack that nothing stopped; others have the same name."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(folder)
    return folder


@pytest.fixture
def stop_every(monkeypatch):
    """Makes training stop as by Ctrl-C at every so many stops, counted over all sessions.

    The signal comes one stop earlier, or else too late for a checkpoint.
    """
    passed = 0

    def begin(every, in_time=True):
        def check(self):
            nonlocal passed
            passed += 1
            due = in_time and passed % every == every - 1
            self.pending_signal = signal.SIGINT if due else None
            if passed % every == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(SignalGuard, "check", check)

    return begin


def sessions_until_done(folder, runs=RUNS):
    """Trains until nothing interrupts any more. Returns the update that each session began at."""
    for _ in range(20):
        try:
            frame = train(folder, runs)
        except KeyboardInterrupt:
            assert meta_of(folder)["status"] == "interrupted"
            assert (folder / "checkpoints").is_dir()
        else:
            pd.testing.assert_frame_equal(frame, results.load(folder))
            return [session["from_update"] for session in meta_of(folder)["sessions"]]
    raise AssertionError("does not end")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "in_time", "began"),
    [
        (2, True, [0, 4, 9, 12, 16]),
        (4, False, [0, 6, 12]),  # where it was stopped there was no checkpoint: updates 9 and 15
    ],
)
def test_resume_again_and_again_equals_undisturbed(
    tmp_path, undisturbed, stop_every, every, in_time, began
):
    """Would catch sums of a log interval that are lost, rows doubled, a round begun twice."""
    stop_every(every, in_time)
    assert sessions_until_done(tmp_path / "run") == began
    is_as_undisturbed(tmp_path / "run", undisturbed)


def test_interrupted_table_is_the_beginning_of_the_whole(tmp_path, undisturbed, stop_every):
    """Would catch a table that lags behind, or rows of what has not been trained."""
    stop_every(4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    whole = results.load(undisturbed)
    so_far = whole[whole["update"] <= 9].reset_index(drop=True)
    pd.testing.assert_frame_equal(results.load(tmp_path / "run"), so_far, check_categorical=False)


@pytest.fixture
def interrupted(tmp_path, stop_every, monkeypatch):
    """The folder of a run stopped after update 4, which nothing will stop again."""
    with monkeypatch.context():
        stop_every(2)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    monkeypatch.undo()
    return tmp_path / "run"


def files_of(folder):
    """When each file in it was written, but for the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.stat().st_mtime_ns for path in files}


def test_resume_refuses_other_versions(interrupted, undisturbed, monkeypatch):
    """Would catch a run that goes on with another JAX, and is like no run of either."""
    before = files_of(interrupted)
    real = checkpoints.versions()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "versions", lambda: {**real, "jax": "0.0.1"})
        with pytest.raises(pl.SettingError) as refused:
            train(interrupted)
    told = str(refused.value)
    assert f"must be of jax 0.0.1, but is of {real['jax']}" in told
    assert str(interrupted) in told
    assert "\n" not in told
    assert files_of(interrupted) == before
    train(interrupted)
    is_as_undisturbed(interrupted, undisturbed)


def test_resume_refuses_other_runs(interrupted):
    """Would catch two studies in one folder, told apart by no `config.yaml` of one's own."""
    before = files_of(interrupted)
    with pytest.raises(pl.SettingError, match="must hold no other run; has one with seed="):
        train(interrupted, RUNS[:2])
    (interrupted / "config.yaml").write_text("mine: 1\n")
    with pytest.raises(pl.SettingError, match="must be of these runs"):
        train(interrupted, RUNS[:2], config={"mine": 1})
    changed = {path for path, at in files_of(interrupted).items() if before[path] != at}
    assert changed == {interrupted / "config.yaml"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"update": 0.0}, r"must have float32\[3\] at update, but has int32\[3\]"),
        ({"round_params": None}, r"must have nothing at round_params\..*, but has float32\["),
        ({"intervention": {"more": jnp.zeros(2)}}, r"float32\[3, 2\] at .*more, but has nothing"),
    ],
)
def test_resume_refuses_another_structure(interrupted, monkeypatch, changed, message):
    """Would catch a state that a later version of the program lays out anew, filled by guess."""
    real = loop.init
    changed = {
        name: x if x is None else jax.tree.map(jnp.asarray, x) for name, x in changed.items()
    }
    monkeypatch.setattr(loop, "init", lambda run: real(run)._replace(**changed))
    with pytest.raises(pl.SettingError, match=message) as refused:
        train(interrupted)
    assert "\n" not in str(refused.value)


def test_checkpoint_folder_is_for_one_process(interrupted, undisturbed):
    """Would catch two processes that write checkpoints over each other's."""
    with CheckpointManager(interrupted / "checkpoints", ""):
        before = files_of(interrupted)
        for _ in range(2):  # being refused must not open the lock
            with pytest.raises(pl.SettingError, match="must not be in use; another process"):
                train(interrupted)
        assert files_of(interrupted) == before
    train(interrupted)
    is_as_undisturbed(interrupted, undisturbed)


FULL = 'RESOURCE_EXHAUSTED: Error writing "a/0.0" in OCDBT database; more\nand more'


@pytest.mark.parametrize("at", ["save", "wait_until_finished"])
@pytest.mark.parametrize("error", [ValueError(FULL), PermissionError(13, "Permission denied")])
def test_full_disk_is_one_line_and_loses_nothing(tmp_path, undisturbed, monkeypatch, at, error):
    """Would catch a traceback, or a good checkpoint that is given up for one that failed.

    Orbax tells of it when it begins to write, or when it is waited for.
    """
    real, folder = getattr(ocp.CheckpointManager, at), tmp_path / "run"
    waited = 0

    def fail(self, *args, **kwargs):
        nonlocal waited
        waited += at == "wait_until_finished" and self.latest_step() == 12
        if waited == 1 or (at == "save" and args[0] == 12):
            left = self.directory / "12.orbax-checkpoint-tmp"
            if waited:
                real(self)
                (self.directory / "12").rename(left)
            else:
                left.mkdir()
            raise error
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, at, fail)
        with pytest.raises(OSError, match="a checkpoint cannot be written") as told:
            train(folder)
    line = str(told.value)
    assert line.startswith(str(folder / "checkpoints"))
    assert "\n" not in line
    assert "RESOURCE_EXHAUSTED" in line or "Permission denied" in line
    assert "more" not in line
    assert meta_of(folder)["status"] == "failed"
    assert not list(folder.rglob("*.orbax-checkpoint-tmp"))
    train(folder)
    assert [session["from_update"] for session in meta_of(folder)["sessions"]] == [0, 6]
    is_as_undisturbed(folder, undisturbed)


def test_failure_of_the_last_checkpoint_does_not_matter(tmp_path, undisturbed, monkeypatch):
    """Would catch a finished run that ends in an error about what nobody needs any more."""
    real = ocp.CheckpointManager.wait_until_finished

    def fail(self):
        real(self)
        if self.latest_step() == 18:
            raise ValueError(FULL)

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
    train(tmp_path / "run")
    is_as_undisturbed(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_host_environments_resume_from_the_end_of_a_round(tmp_path, stop_every):
    """Would catch a checkpoint in the middle of episodes that nothing can restore."""
    runs = [HOST_RUN.replace(seed=seed) for seed in (1, 0)]
    train(tmp_path / "undisturbed/run", runs)
    stop_every(4)
    assert sessions_until_done(tmp_path / "run", runs) == [0, 6, 12]
    is_as_undisturbed(tmp_path / "run", tmp_path / "undisturbed/run")


def train_line(line, errors):
    """Runs a command line of `train` as a process of its own, with standard error in a file."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.argv = ["train", *shlex.split(line)]
    command(job)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a process that trains three seeds, with a checkpoint at almost every stop."""
    # Forks each process from one that has imported everything, and has no threads yet.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["plasticity.cli.train"])
    errors = tmp_path_factory.mktemp("processes") / "stderr"

    def begin(folder):
        line = (
            f"{TINY} schedule.rounds=12 schedule.updates_per_round=20 schedule.log_every=8 "
            f"'seed=[0,1,2]' checkpoint_minutes=0.0005 out={folder}"
        )
        errors.write_text("")
        process = processes.Process(target=train_line, args=(line, errors))
        process.start()
        return process

    def end(process, status, timeout):
        process.join(timeout)
        assert process.exitcode == status, errors.read_text()
        return errors.read_text()

    return begin, end


def until(there: Path, process):
    """Waits for a file of a process that is under way."""
    while not there.exists():
        assert process.is_alive()
        time.sleep(0.01)


def until_written(table: Path, times: int, process):
    """Waits until a table has been written so many times by a process that is under way."""
    written_at = None
    for _ in range(times):
        while (now := table.stat().st_mtime_ns if table.exists() else None) == written_at:
            assert process.is_alive()
            time.sleep(0.002)
        written_at = now


@pytest.mark.slow
def test_killed_again_and_again_equals_undisturbed(tmp_path, start):
    """Would catch files that a kill leaves half written, and all that only a real end shows.

    The first end is by SIGTERM, the others by SIGKILL, each after a few writes of the table.
    """
    undisturbed, folder = tmp_path / "undisturbed/run", tmp_path / "run"
    begin, end = start
    end(begin(undisturbed), 0, timeout=300)

    process = begin(folder)
    until(folder / "metrics.parquet", process)
    process.terminate()
    assert "Traceback" not in end(process, 130, timeout=100)
    assert meta_of(folder)["status"] == "interrupted"

    draw = random.Random(0)
    for _ in range(5):
        process = begin(folder)
        # Of some 36 writes in all, so that it lasts for all; the table of the last one counts.
        until_written(folder / "metrics.parquet", draw.randrange(1, 5), process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        end(process, -signal.SIGKILL, timeout=100)
    end(begin(folder), 0, timeout=300)
    began = [session["from_update"] for session in meta_of(folder)["sessions"]]
    assert began == sorted(began)
    assert len({update for update in began if update > 0}) >= 2
    is_as_undisturbed(folder, undisturbed)


# What a full disk, a killed copy or a failing disk leave of the newest checkpoint.
DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "flipped": lambda path: flip_bit(path),
}


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def saved(step):
    return {"state": {"x": np.arange(64.0) + step}, "updates": np.full(2, step)}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2, as an interrupted training leaves it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "two"
    with contextlib.suppress(KeyboardInterrupt), CheckpointManager(folder, "runs") as manager:
        manager.save(1, saved(1), {"metrics": [["return", "all"]]})
        manager.save(2, saved(2), {"metrics": [["return", "all"]]})
        raise KeyboardInterrupt
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "part", ["about/metadata", "arrays/d", "arrays/ocdbt.process_0/d", "digests.json"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path, two_checkpoints, damage, part, capfd
):
    """Would catch a traceback, numbers that nobody computed, and a training that saves no more."""
    folder = shutil.copytree(two_checkpoints, tmp_path / "copy")
    path = folder / "2" / part
    for file in [path] if path.is_file() else list(path.iterdir()):
        DAMAGES[damage](file)
    with contextlib.suppress(KeyboardInterrupt), CheckpointManager(folder, "runs") as manager:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            arrays, about = manager.restore()
        # Without its digests it is as it was.
        step = 2 if (part, damage) == ("digests.json", "missing") else 1
        jax.tree.map(np.testing.assert_array_equal, arrays, saved(step))
        assert about["metrics"] == [["return", "all"]]
        lines = [str(one.message) for one in caught]
        assert len(lines) == (step == 1)
        for line in lines:
            assert line.startswith(f"{folder / '2'}: a damaged checkpoint, which is set aside: ")
            assert line.endswith("; resuming from that of update 1")
        manager.save(2 if lines else 3, saved(2), {})
        raise KeyboardInterrupt
    assert (folder / "2").is_dir()
    assert capfd.readouterr().err == ""


def test_without_a_whole_checkpoint_training_begins_anew(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints, tmp_path / "copy")
    for step in (1, 2):
        (tmp_path / f"copy/{step}/about/metadata").write_text("{")
    damaged = pytest.warns(UserWarning, match="a damaged checkpoint")
    with CheckpointManager(tmp_path / "copy", "runs") as manager, damaged:
        assert manager.restore() is None


def test_a_finished_run_is_tidied_and_is_not_lost_with_its_meta(tmp_path, undisturbed, capsys):
    """Would catch files that a kill at the very end leaves for ever, and results overwritten."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for leftover in (".meta.json.1.tmp", "figures/.overview.png.2.tmp", "checkpoints/6/about/x"):
        (folder / leftover).parent.mkdir(parents=True, exist_ok=True)
        (folder / leftover).touch()
    (folder / "params.orbax-checkpoint-tmp").mkdir()
    pl.train(RUNS, folder)
    assert f"nothing to train: {folder} is finished" in capsys.readouterr().err
    (folder / "figures").rmdir()
    is_as_undisturbed(folder, undisturbed)
    (folder / "meta.json").write_text('{"status": "fin')
    before = files_of(folder)
    with pytest.raises(
        pl.SettingError, match=r"must have a meta\.json that can be read: remove it"
    ):
        train(folder)
    assert files_of(folder) == before


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    """Would catch a cluster's mount on which nothing can train, and a lock that is not heeded."""

    def fail_with(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(checkpoints.fcntl, "flock", flock)

    fail_with(errno.ENOSYS)
    with pytest.warns(UserWarning, match="has no locks"), CheckpointManager(tmp_path / "a", "runs"):
        pass
    fail_with(errno.EWOULDBLOCK)
    with pytest.raises(pl.SettingError, match="another process trains in it"):
        CheckpointManager(tmp_path / "a", "runs").__enter__()


def test_systems_without_locks_at_all_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match="needs Linux or macOS"):
        runpy.run_path(checkpoints.__file__)


@pytest.mark.slow
def test_a_run_is_made_longer_as_if_it_had_always_been(tmp_path, undisturbed):
    """Would catch a round or its shift that is left out or done twice where the run went on."""
    folder = tmp_path / "run"
    shorter = [run.replace(schedule=run.schedule.replace(rounds=1)) for run in RUNS]
    train(folder, shorter, keep_checkpoint=True)
    train(folder, shorter, keep_checkpoint=True)  # leaves the checkpoint there
    train(folder)
    assert [session["from_update"] for session in meta_of(folder)["sessions"]] == [0, 6]
    is_as_undisturbed(folder, undisturbed)
    with pytest.raises(pl.SettingError, match=r"^schedule\.rounds=4: must be 3, as in .* not kept"):
        train(folder, [run.replace(schedule=run.schedule.replace(rounds=4)) for run in RUNS])
    with pytest.raises(pl.SettingError, match=r"has one with schedule\.rounds=3"):
        train(folder, shorter)
