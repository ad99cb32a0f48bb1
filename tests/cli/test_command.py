"""The whole path from the command line to the figure, and what a user may get wrong on it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, write_examples

from plasticity import load_params, results
from plasticity.cli import report
from plasticity.cli.command import runs_of


def test_a_sweep_ends_in_tables_a_figure_and_one_frame(shell, tmp_path, capsys):
    """A sweep of chains and seeds: every job has its own folder, and all load as one frame."""
    line = f"-m {TINY} 'intervention=warm_start,[layer_norm,soft_shrink_perturb]' 'seed=[3,5]'"
    assert shell(f"{line} out=sweep") == 0

    frame = results.load("sweep")
    assert list(frame.columns[:11]) == list(results.COLUMNS)
    assert set(frame.intervention) == {"warm_start", "layer_norm+soft_shrink_perturb"}
    assert set(frame.seed) == {3, 5}
    assert frame.run.nunique() == 2
    assert set(frame["round"]) == {1, 2}
    assert frame["update"].max() == 8
    assert (frame.env_steps == frame["update"] * 40).all()
    shown = set(frame.metric)
    assert {"train_return", "eval_train_return", "eval_test_return"} <= shown
    assert {"dead_units", "dormant_units", "inactive_fraction", "effective_rank"} <= shown
    assert {"weight_norm", "weight_rms", "distance_from_init"} <= shown
    assert {"update_size", "gradient_norm", "policy_entropy"} <= shown
    layers = set(frame[frame.metric == "gradient_norm"].layer)
    assert layers == {"all", "hidden_0", "hidden_1", "norm_0", "norm_1", "policy", "value"}

    assert (tmp_path / "sweep/figures/overview.png").stat().st_size > 10_000
    assert "layer_norm+soft_shrink_perturb" in capsys.readouterr().out
    for job in (path.parent for path in (tmp_path / "sweep").rglob("metrics.parquet")):
        meta = json.loads((job / "meta.json").read_text())
        assert meta["status"] == "finished"
        assert meta["seeds"] == [3, 5]
        assert [session["from_update"] for session in meta["sessions"]] == [0]
        assert {"jax", "flax", "optax", "python"} <= set(meta["versions"])
        assert load_params(job)["policy"]["kernel"].shape == (2, 8, 4)
        assert (job / "figures/overview.svg").exists()

    # The same command once more finds all done: nothing but figures is written again.
    files = [path for path in (tmp_path / "sweep").glob("*/**/*") if path.is_file()]
    kept = {p: p.stat().st_mtime_ns for p in files if p.parent.name != "figures"}
    assert {"metrics.parquet", "meta.json", "config.yaml"} <= {path.name for path in kept}
    assert any("params" in path.parts for path in kept)
    assert shell(f"{line} out=sweep") == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}

    assert shell("sweep --last 1", entry=report.main) == 0
    assert shell("nowhere", entry=report.main) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_classes_of_ones_own_work_by_their_import_paths(shell, tmp_path):
    """README's examples: nothing of the package is edited, and coefficients reach the numbers."""
    write_examples(tmp_path)
    own = "'+intervention.jitter={_target_: my_interventions.Jitter, scale: %s}'"
    probe = "'+probes.largest_bias={_target_: my_probes.LargestBias, every: 1}'"
    for scale in (0, 100):
        assert shell(f"{TINY} {own % scale} {probe} 'shift=[]' out=own{scale}") == 0
    frame = results.load("own0")
    assert set(frame["shift"]) == {"none"}
    assert set(frame.intervention) == {"jitter"}
    biases = [results.load(f"own{scale}").query("metric == 'largest_bias'") for scale in (0, 100)]
    assert list(biases[0]["update"]) == list(range(1, frame["update"].max() + 1))
    assert biases[0].value.max() < 1
    assert biases[1].value.min() > 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("intervention=foo", "intervention=foo: must be one of"),
        ("shift=[permute,foo]", "shift=foo: must be one of dynamics, expand"),
        ("agent.lr=3", "agent.lr=3: no such key; agent has _target_, num_envs"),
        ("-m sead=1,2", "sead=1: no such key; there are seed"),
        ("intervention=l2_norm intervention.l2_norm.decay=-1", "decay=-1.0: must be a finite"),
        ("agent.ent_coef=nan", "agent.ent_coef=nan: must be a finite number >= 0"),
        ("agent.clip_eps=abc", "agent.clip_eps='abc': must be a finite number > 0"),
        ("schedule.rounds=0", "schedule.rounds=0: must be a whole number >= 1"),
        ("agent.minibatch_size=9999", "agent.minibatch_size=9999: must be at most"),
        ("env.levels=10001", "env.levels=10001: needs 10001 levels"),
        ("env.levels=0", "env.levels=0: must be a whole number >= 1"),
        ("shift=window env.levels=5000", "env.levels=5000: needs 50000 levels"),
        ("env=cartpole shift=window", "shift='window': needs an environment with levels"),
        ("probes.dormant_units.tau=1.5", "probes.dormant_units.tau=1.5: must be"),
        (
            "network.hidden=[64,0]",
            "network.hidden=(64, 0): must be a list, each a whole number >= 1",
        ),
        ("network.activation=foo", "network.activation='foo': must be one of relu"),
        ("seed=-1", "seed=-1: must be a whole number >= 0"),
        ("seed=[1,1]", "seed=[1, 1]: must be a seed, or a list of different ones"),
        ("intervention=[crelu,tanh]", "crelu+tanh': crelu and tanh both set activation"),
        ("intervention=[kron,upgd]", "intervention='UPGD': must have Adam, which another"),
        ("intervention=[adam_rel,kron]", "intervention='AdamRel': must have Adam, which another"),
        (
            "intervention=infer '+intervention.more={_target_: plasticity.interventions.InFeR}'",
            "intervention='infer+more': must not have a method that adds parameters twice",
        ),
        ("+intervention.x._target_=no.Such", "intervention.x._target_='no.Such': must be an"),
        ("+intervention.x._target_=pathlib.Path", "must be a kind of Intervention"),
        ("+agent.foo=3", "agent.foo=3: no such setting"),
        ("env=minigrid env.id=Nope-v0", "env.id='Nope-v0': must be registered"),
        ("env=minigrid env.wrappers=[]", "must have observations in a Box"),
        ("env=gymnasium env.id=Blackjack-v1", "must have observations in a Box"),
        ("-m agent.learning_rate=0.1,-3", "agent.learning_rate=-3.0: must be"),
        ("out=occupied", "folder='occupied': must hold no other run; has one with no"),
        ("agent.clip_eps=(", "error"),
        ("agent=5", "Config group override must be a string"),
        ("~agent", "agent=None: must be given"),
        ("~seed", "seed=None: must be a seed"),
        ("seed=[[1]]", "seed=[[1]]: must be a seed, or a list of them"),
        ("'+intervention.x={_target_: 5}'", "intervention.x._target_=5: must be an import path"),
        ("env=minigrid env.wrappers=[os.path.join]", "env.wrappers='os.path.join': must wrap"),
        ("+foo=3", "foo=3: no such setting; there are env, shift"),
        ("out=occupied/config.yaml/x", "occupied/config.yaml is a file"),
        ("out=null", "out=None: must be a folder"),
        ("-m 'seed=range(0,0)'", "sweep=[]: must have at least one job"),
        ("intervention=crelu network.hidden=[64,5]", "network.hidden=(64, 5): each must be a mul"),
    ],
)
def test_what_cannot_be_used_is_one_line(shell, tmp_path, capsys, line, said):
    """It names key, value and what is allowed; nothing is written or touched."""
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied/config.yaml").write_text("kept")
    assert shell(line if "out=" in line else f"{line} out=new") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]
    assert (tmp_path / "occupied/config.yaml").read_text() == "kept"


def test_ctrl_c_keeps_what_was_finished_and_says_where(tmp_path):
    """A real process, interrupted in a later round: its rows are there, and its status."""
    arguments = shlex.split(
        f"{TINY} schedule.rounds=100000 schedule.updates_per_round=20 out={tmp_path}/run"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "plasticity.cli.train", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    table = tmp_path / "run" / "metrics.parquet"
    deadline = time.monotonic() + 120
    while not table.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    said = f"interrupted; the same command resumes from {tmp_path}/run"
    assert error.strip().splitlines()[-1] == said
    assert "Traceback" not in error
    meta = json.loads((tmp_path / "run/meta.json").read_text())
    assert (meta["status"], len(meta["sessions"])) == ("interrupted", 1)
    assert results.load(tmp_path / "run")["round"].max() >= 1


def test_presets_of_the_paper_agree_with_their_classes():
    """The command line and Python must not have different defaults."""
    (run,) = runs_of("network=paper", "agent=paper")
    for part in (run.network, run.agent, run.env):
        assert part == type(part)()
