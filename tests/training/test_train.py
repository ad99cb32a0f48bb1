"""Training from the host: what is due when, what the table says, and that it can be repeated."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from counting_helpers import HOST_ID, RecordingEnvs, host_run
from helpers import RUN
from omegaconf import OmegaConf

import plasticity as pl
from plasticity import results
from plasticity.envs.host import Gymnasium
from plasticity.storage.tracking import TensorBoard
from plasticity.training import sweep
from plasticity.training.train import measurement_updates


@pytest.fixture(scope="module")
def frame():
    """Two seeds, trained stacked."""
    return pl.train([RUN, RUN.replace(seed=1)], progress=False)


def values(frame, metric, seed=0):
    """The updates and the values of a metric's aggregate."""
    rows = frame[(frame.metric == metric) & (frame.layer == "all") & (frame.seed == seed)]
    return list(rows["update"]), list(rows["value"])


def test_measurement_updates_are_multiples_of_each_interval_and_the_end():
    """Would catch an interval that is missed, or a round that ends early."""
    schedule = pl.Schedule(updates_per_round=10, log_every=4, eval_every=5, probe_every=0)
    run = RUN.replace(
        schedule=schedule, probes=pl.Probes.of(pl.DeadUnits(), pl.WeightNorm(every=7))
    )
    assert list(measurement_updates(run)) == [4, 5, 7, 8, 10]


def test_each_metric_is_logged_when_it_is_due(frame):
    """Training metrics cover whole log intervals whatever else stops in between."""
    assert values(frame, "gradient_norm")[0] == [2, 4, 6, 8, 10, 12]
    assert values(frame, "dead_units")[0] == [3, 6, 9, 12]
    assert values(frame, "eval_test_return")[0] == [6, 12]
    assert values(frame, "episodes")[1] == [8.0] * 6  # 2 updates x 2 environments x 2 episodes
    assert set(frame.loc[frame["update"] > 6, "round"]) == {2}


def test_probes_do_not_affect_training(frame):
    """Would catch probes or evaluations that draw from the training's randomness."""
    seldom = dataclasses.replace(RUN.schedule, log_every=6, probe_every=0, eval_episodes=0)
    alone = pl.train([RUN.replace(schedule=seldom), RUN.replace(schedule=seldom, seed=1)])
    ends = [
        part[part["update"].isin([6, 12]) & (part.metric == "weight_norm")]["value"].to_numpy()
        for part in (frame, alone)
    ]
    np.testing.assert_array_equal(*ends)
    assert not alone["metric"].str.startswith("eval").any()


def test_train_same_seed_same_run(frame):
    """Bit for bit, in the same program."""
    again = pl.train([RUN, RUN.replace(seed=1)], progress=False)
    pd.testing.assert_frame_equal(frame, again)
    assert values(frame, "gradient_norm", 0)[1] != values(frame, "gradient_norm", 1)[1]


def test_stacked_equals_alone_up_to_rounding(frame):
    """Would catch a stack whose runs share randomness or see each other's data."""
    alone = pl.train(RUN.replace(seed=1), progress=False)
    one, other = (values(part, "gradient_norm", 1)[1][0] for part in (frame, alone))
    assert one == pytest.approx(other, rel=1e-3)


def test_train_marks_a_diverged_run_alone():
    """NaN from then on for everything, and the update at which it began."""
    wild = RUN.replace(seed=1, agent=RUN.agent.replace(learning_rate=1e30))
    frame = pl.train([RUN, wild], progress=False)
    assert values(frame, "diverged", 0) == ([], [])
    updates, at = values(frame, "diverged", 1)
    assert updates == at
    assert len(at) == 1
    after = frame[(frame.seed == 1) & (frame["update"] > at[0])]
    assert after.value.isna().all()
    assert {"dead_units", "train_return"} <= set(after.metric)
    assert frame[frame.seed == 0].value.notna().all()


class Broken(RecordingEnvs):
    """Gives a reward of NaN in its fourth step of one environment, the first of an episode."""

    def step(self, actions):
        step = super().step(actions)
        if len(self.actions) == 4:
            step.reward[1] = np.nan
        return step


@pytest.mark.slow
def test_a_simulators_nan_is_not_the_agents(monkeypatch):
    """Would catch a broken simulator reported as an agent that diverged, or as nothing."""
    made = []

    def make(self, num_envs):
        made.append(num_envs)
        return (Broken if len(made) == 1 else RecordingEnvs)(num_envs)

    monkeypatch.setattr(Gymnasium, "make", make)
    schedule = host_run().schedule.replace(rounds=1, updates_per_round=2, eval_episodes=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = pl.train([host_run(s).replace(schedule=schedule) for s in (4, 5)], progress=False)
    told = [str(warning.message) for warning in caught]
    assert [text.partition(": the simulator")[2] for text in told if "simulator" in text] == [
        " gave a reward that is not finite, in environment 1 of 3, step 1 of its episode",
        ", and not the agent, gave rewards or observations that are not finite, in update 1 "
        "(steps 1 to 27); the run is lost from there on",
    ]
    assert any(text.startswith(f"{HOST_ID}, seed 4: ") for text in told)
    diverged = frame[frame["metric"] == "diverged"]
    assert diverged[["seed", "value"]].values.tolist() == [[4, 1]]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("checkpoint_minutes", value) for value in (-1, float("nan"), "5", None, True)),
        *(("names", value) for value in ("ab", ["a"], ["a", 1], ["a", ""], 5)),
        *(("config", value) for value in (5, "x", [1], {"a": object()})),
        *(("trackers", value) for value in (5, "wandb", [5], [TensorBoard], [TensorBoard()])),
        *(("folder", value) for value in (5, "", "a\0b", ["x"], "x" * 5000)),
        *(("exact", value) for value in (1, "no")),
        *(("runs", value) for value in (None, 5, "x", [RUN, 5], [pl.Run])),
    ],
)
def test_train_refuses_an_argument_in_one_line(argument, value, monkeypatch):
    """Would catch what the command line refuses, and Python's interface let through."""
    monkeypatch.setattr(sweep, "train_in_memory", lambda *args, **kwargs: pytest.fail("trains"))
    arguments = {"runs": [RUN, RUN.replace(seed=1)], argument: value}
    with pytest.raises(pl.SettingError, match=rf"^{argument}(\[\d\])?=") as caught:
        pl.train(**arguments)
    assert "\n" not in str(caught.value)


def test_train_refuses_indistinguishable_runs():
    """Two rows of one run, seed and moment would be averaged unseen."""
    other = RUN.replace(agent=RUN.agent.replace(learning_rate=1e-3))
    with pytest.raises(ValueError, match="names of their own"):
        pl.train([RUN, other])
    frame = pl.train([RUN, other], names=["low", "high"], progress=False)
    assert set(frame.run) == {"low", "high"}
    with pytest.raises(ValueError, match="no runs"):
        pl.train([])


def test_train_writes_what_it_returns(tmp_path):
    """The table, and parameters that a reader without the device can load."""
    frame = pl.train(RUN, tmp_path / "run", config={"a": 1}, progress=False)
    pd.testing.assert_frame_equal(results.load(tmp_path / "run"), frame)
    assert isinstance(pl.load_params(tmp_path / "run")["value"]["bias"], np.ndarray)
    assert OmegaConf.load(tmp_path / "run/config.yaml") == {"a": 1}


def test_train_refuses_a_folder_with_another_run(tmp_path):
    """Would catch a finished run that is trained anew, or another that takes its place."""
    first = pl.train(RUN, tmp_path / "run", config={"a": 1, "b": {"c": [1, 2]}}, progress=False)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = pl.train(RUN, tmp_path / "run", config={"a": 1, "b": {"c": (1, 2)}}, progress=False)
    pd.testing.assert_frame_equal(first, again)
    for config, message in [
        ({"a": 2, "b": {"c": [1, 2]}}, "has one with a=1"),
        ({"a": 1, "b": {"c": [1, 3]}}, r"has one with b\.c=\[1, 2\]"),
        ({"a": 1, "b": {"c": [1, 2]}, "d": 3}, "has one with no d"),
        ({"a": 1}, r"has b\.c"),
        (None, "has one with no env"),
    ]:
        with pytest.raises(pl.SettingError, match=f"must hold no other run; {message}"):
            pl.train(RUN, tmp_path / "run", config=config, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_config_can_be_read_back(tmp_path):
    """Would catch a setting, a class or an order that `config.yaml` does not tell."""
    chain = pl.chain(pl.ReDo(every=3), pl.SoftShrinkPerturb(1e-4))
    runs = [RUN.replace(intervention=chain, seed=seed) for seed in (4, 2)]
    pl.train(runs, tmp_path / "run", progress=False)
    described = OmegaConf.to_container(OmegaConf.load(tmp_path / "run/config.yaml"))
    assert described["seed"] == [4, 2]
    assert pl.from_config(described) == runs


@pytest.mark.slow
def test_train_groups_runs_of_several_structures(tmp_path, capfd):
    """Would catch runs of different networks that are refused, mixed up, or not resumed."""
    wide = RUN.replace(network=pl.Network(hidden=(4,)), intervention=pl.chain(pl.LayerNorm()))
    reset = RUN.replace(intervention=pl.chain(pl.ResetAll()))
    runs = [RUN, wide, RUN.replace(seed=1), reset]
    frame = pl.train(runs, tmp_path / "runs", progress=False)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "0_warm_start",
        "1_layer_norm",
        "2_reset_all",
    ]
    pd.testing.assert_frame_equal(frame, results.load(tmp_path / "runs"))
    names = ["0_warm_start", "1_layer_norm", "0_warm_start", "2_reset_all"]
    pd.testing.assert_frame_equal(frame, pl.train(runs, names=names))
    plan = capfd.readouterr().err
    assert "[1/2] gather permute warm_start | reset_all: 2 jobs, 3 agents" in plan
    assert values(frame, "gradient_norm", 1) == values(
        pl.train([RUN, RUN.replace(seed=1)], progress=False), "gradient_norm", 1
    )
    again = pl.train(runs, tmp_path / "runs", names=None, progress=True)
    pd.testing.assert_frame_equal(frame, again)
    assert "3 jobs: 0 programs to train, 3 finished already" in capfd.readouterr().err
    with pytest.raises(ValueError, match="one config for runs of 3 structures"):
        pl.train(runs, tmp_path / "other", config={"a": 1})
