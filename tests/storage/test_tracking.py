"""Rows that go to TensorBoard and to Weights & Biases: each once, whatever stops the run."""

import json
import struct
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import RUN

import plasticity as pl
from plasticity.config import trackers_from
from plasticity.storage.signals import SignalGuard
from plasticity.storage.tracking import TensorBoard, Tracker, WeightsAndBiases
from plasticity.struct import SettingError

RUNS = [RUN.replace(seed=seed) for seed in (3, 5)]


def train(folder, *trackers, runs=RUNS):
    """As a user would, without a display."""
    return pl.train(runs, folder, trackers=trackers, progress=False)


def tag_of(row):
    """What a row's metric is called outside."""
    return row.metric if row.layer == "all" else f"{row.metric}/{row.layer}"


def values_of(frame, seed):
    """(tag, environment steps) -> value, of what the table says of a seed."""
    return {
        (
            row.metric if row.layer == "all" else f"{row.metric}/{row.layer}",
            row.env_steps,
        ): row.value
        for row in frame[frame.seed == seed].itertuples()
    }


def events_of(folder):
    """All scalars in a folder of event files, as TensorBoard reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [
        (tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]


@pytest.fixture
def stopped(monkeypatch):
    """Has training killed at its seventh stop, in the second round, without a word."""
    real = SignalGuard.check
    passed = []

    def check(self):
        passed.append(self)
        if len(passed) == 7:
            raise MemoryError("killed")
        real(self)

    monkeypatch.setattr(SignalGuard, "check", check)


@pytest.mark.slow
def test_tensorboard_logs_each_row_once(tmp_path, stopped):
    """Would catch rows lost at a kill, and rows shown twice where the run went on."""
    pytest.importorskip("tensorboardX", reason="the extra tracking")
    run = tmp_path / "run"
    with pytest.raises(MemoryError):
        train(run, TensorBoard())
    frame = train(run, TensorBoard())
    for seed in (3, 5):
        events = events_of(run / "tensorboard" / f"seed_{seed}")
        wanted = values_of(frame, seed)
        assert len(events) == len(wanted) > 50
        for tag, step, value in events:
            assert value == pytest.approx(wanted[tag, step], rel=1e-6)


def records_of(path):
    """The records of W&B's own file: LevelDB's log format, after seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.mark.slow
def test_wandb_logs_all_rows_of_each_seed(tmp_path, monkeypatch):
    """Would catch seeds mixed up, a metric that is left out, and an id that changes."""
    pytest.importorskip("wandb", reason="the extra tracking")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    folder = tmp_path / "run"
    frame = train(folder, WeightsAndBiases(project="ours", mode="offline"))
    ids = set()
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        records = list(records_of(path))
        (run,) = (record.run for record in records if record.HasField("run"))
        config = {one.key: json.loads(one.value_json) for one in run.config.update}
        assert run.project == "ours"
        assert run.run_group == "run"
        assert config["schedule"]["updates_per_round"] == RUNS[0].schedule.updates_per_round
        seed = config["seed"]
        assert run.display_name == f"run seed {seed}"
        logged = {}
        for record in records:
            if record.HasField("history"):
                moment = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                assert moment["update"] * RUNS[0].agent.batch_size == moment["env_steps"]
                logged |= {(tag, moment["env_steps"]): value for tag, value in moment.items()}
        wanted = values_of(frame, seed)
        assert wanted == {at: logged[at] for at in wanted}
        ids.add((seed, run.run_id))
    assert {seed for seed, _ in ids} == {3, 5}
    assert len({one for _, one in ids}) == 2


class Service(Tracker):
    """Fails at the second call."""

    package = "json"

    def start(self, info, update):
        calls = []

        def log(rows):
            calls.append(rows)
            if len(calls) == 2:
                raise OSError("no\nroute")

        return SimpleNamespace(log=log, close=lambda finished: calls.append(None))


@pytest.mark.slow
def test_tracker_that_fails_is_dropped_with_one_warning(tmp_path):
    """Would catch a run that is lost because a service is."""
    with pytest.warns(UserWarning, match=r"Service no longer logs .*run: no route$") as warned:
        frame = train(tmp_path / "run", Service(), runs=RUNS[:1])
    assert len(warned) == 1
    pd.testing.assert_frame_equal(frame, train(tmp_path / "other" / "run", runs=RUNS[:1]))


def test_trackers_are_checked_before_anything_is_written(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="share a seed cannot be tracked"):
        pl.train(RUNS[:1] * 2, tmp_path / "run", names=["a", "b"], trackers=[TensorBoard()])
    assert not (tmp_path / "run").exists()
    target = "plasticity.storage.tracking.WeightsAndBiases"
    with pytest.raises(SettingError, match=r"^tracking.wandb.mode='maybe': must be one of auto"):
        trackers_from({"tracking": {"wandb": {"_target_": target, "mode": "maybe"}}})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingError, match=r"needs the package wandb: pip install"):
        trackers_from({"tracking": {"wandb": {"_target_": target}}})
    assert trackers_from({"tracking": {}}) == ()
