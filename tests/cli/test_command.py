"""The whole path from the command line to the figure, and what a user may get wrong on it."""

import errno
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from helpers import ROOT, TINY, write_examples
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

import plasticity as pl
from plasticity import load_params, results
from plasticity.cli import report
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.command import (
    CONFIG,
    CONFIGS,
    build_job,
    one_line,
    runs_of,
    set_up,
    train_options,
)
from plasticity.storage.run_dir import RunDir


@pytest.mark.slow
def test_sweep_writes_tables_and_a_figure_that_load_as_one_frame(shell, tmp_path, capsys):
    """A sweep of chains and seeds: every job has its own folder, and all load as one frame."""
    line = f"-m {TINY} 'intervention=warm_start,[layer_norm,soft_shrink_perturb]' 'seed=[3,5]'"
    line += " schedule.eval_episodes=2 probes=default figures=all"
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


@pytest.mark.slow
def test_train_takes_user_classes_by_import_path(shell, tmp_path):
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


AGENTS = """
import jax.numpy as jnp
import plasticity as pl
from plasticity.agents.a2c import A2C
from plasticity.agents.base import Agent, end_update, gradient_step
from plasticity.agents.ppo import clipped_adam, gae_batch


class Frozen(pl.PPO):
    def loss(self, output, minibatch):
        loss, metrics = super().loss(output, minibatch)
        return 0 * loss, metrics


class Reinforce(Agent):
    gae_lambda: float = pl.field(1.0, ge=0, le=1)
    learning_rate: float = pl.field(1e-3, gt=0)

    def optimizer(self, key):
        return A2C(learning_rate=self.learning_rate).optimizer(key)

    def make_batch(self, trajectory, intrinsic=None):
        return gae_batch(trajectory, self.gamma, self.gae_lambda)

    def per_sample_loss(self, output, batch):
        value_loss = jnp.square(output.value - batch.target)
        return value_loss - batch.advantage * output.policy.log_prob(batch.action)

    def update(self, interventions, state, train_state, rollout, context):
        state, train_state, metrics = gradient_step(
            self, interventions, state, train_state, rollout.batch, rollout, context
        )
        state, train_state, changes = end_update(
            interventions, state, train_state, rollout, context
        )
        return state, train_state, {**metrics, **changes}


class Broken(pl.PPO):
    def loss(self, output, minibatch):
        raise OSError("of the user's own loss")
"""
WITHOUT_AGENT = TINY.replace("agent.minibatch_size=20", "").replace("agent.", "+agent.")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        f"'~agent' +agent._target_=my_agents.Reinforce {WITHOUT_AGENT}",
        f"--config-dir mine agent=reinforce {WITHOUT_AGENT.replace('+agent', '++agent')}",
    ],
)
def test_train_takes_a_user_agent(shell, tmp_path, choice):
    """Would catch an agent that only the package can add, inline or as an option in a file."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    (tmp_path / "mine/agent").mkdir(parents=True)
    (tmp_path / "mine/agent/reinforce.yaml").write_text("_target_: my_agents.Reinforce\n")
    assert shell(f"{choice} out=own") == 0
    frame = results.load("own")
    assert frame[frame.metric == "update_size"].value.min() > 0
    assert "_target_: my_agents.Reinforce" in (tmp_path / "own/config.yaml").read_text()


@pytest.mark.slow
def test_train_uses_the_overridden_loss_of_a_ppo_subclass(shell, tmp_path):
    """Would catch a subclass that is accepted while PPO's own loss is used."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    assert shell(f"{TINY} agent._target_=my_agents.Frozen out=own") == 0
    frame = results.load("own")
    assert (frame[frame.metric == "gradient_norm"].value == 0).all()


def test_train_raises_the_error_of_a_user_class(shell, tmp_path, capsys):
    """Would catch a user's own mistake that is reported without the line it is in."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    (tmp_path / "my_envs.py").write_text("import no_such_package\n")
    with pytest.raises(OSError, match="of the user's own loss") as caught:
        shell(f"{TINY} agent._target_=my_agents.Broken out=own")
    assert caught.traceback[-1].path.name == "my_agents.py"
    capsys.readouterr()
    assert shell("env._target_=my_envs.Env out=other") == 1
    error = capsys.readouterr().err
    assert "error:" not in error
    assert error.startswith("Traceback")
    assert "my_envs.py" in error
    assert error.endswith("ModuleNotFoundError: No module named 'no_such_package'\n")


@pytest.mark.slow
def test_sweep_prints_the_error_of_a_user_class_once(shell, tmp_path, capsys):
    """Would catch a traceback that is printed by the sweep and by Hydra."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    assert shell(f"-m {TINY} agent._target_=my_agents.Broken out=own") == 1
    error = capsys.readouterr().err
    assert error.count("OSError: of the user's own loss") == 1
    assert "1 of 1 jobs failed:\n  own/0_warm_start: of the user's own loss\n" in error


def test_an_error_that_cannot_be_explained_is_shown(monkeypatch):
    """Would catch the error of an explanation in place of what it should explain."""

    def fail(*_):
        raise HydraException("Could not load 'env/mine'")

    monkeypatch.setattr("plasticity.cli.command._known_beside", fail)
    text = "Could not override 'env.nope'.\nTo append to your config use +env.nope=1"
    assert one_line(HydraException(text)) == text.replace("\n", "; ")


def test_train_reports_a_storage_error_in_one_line(shell, capsys, monkeypatch):
    """Would catch a full disk that is reported as a fault of the program."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("plasticity.storage.table.os.fsync", full)
    assert shell(f"{TINY} out=run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert error.endswith("run/config.yaml: cannot be written: No space left on device")


@pytest.mark.parametrize("where", ["--config-dir mine", "'hydra.searchpath=[file://mine]'"])
def test_train_knows_the_keys_of_a_user_option(shell, tmp_path, capsys, where):
    """Would catch options of --config-dir that are unknown when an error is explained."""
    (tmp_path / "mine/env").mkdir(parents=True)
    (tmp_path / "mine/env/room.yaml").write_text("_target_: plasticity.envs.CartPole\nsize: 1\n")
    for line, expected in {
        "env=room env.nope=1": "env.nope=1: no such key; env has _target_, size",
        "env=rom": "env=rom: must be one of ant, atari,",
        "shift=[permute,foo] env=room": "shift=foo: must be one of actuator_damage,",
    }.items():
        assert shell(f"{where} {line} out=new") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {expected}")
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_sweep_composes_each_job_once(shell, monkeypatch):
    """Would catch jobs that are built for the check before the sweep, and again to train."""
    built = []

    def counted(config, folder):
        built.append(folder.name)
        return build_job(config, folder)

    monkeypatch.setattr("plasticity.cli.command.build_job", counted)
    assert shell(f"-m {TINY} seed=0,1 out=sweep") == 0
    assert built == ["0_warm_start", "1_warm_start"]
    assert not list(Path("sweep").rglob("figures"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("intervention=foo", "intervention=foo: must be one of"),
        ("shift=[permute,foo]", "shift=foo: must be one of actuator_damage,"),
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
        ("agent._target_=pathlib.Path", "agent._target_='pathlib.Path': must be a kind of Agent\n"),
        ("agent._target_=plasticity.Agent", "must be a kind of Agent, not the base class itself"),
        (
            "+intervention.x._target_=plasticity.Intervention",
            "must be a kind of Intervention, not the base class itself",
        ),
        ("+probes.x._target_=plasticity.Probe", "must be a kind of Probe, not the base class"),
        ("+shift.x._target_=plasticity.Shift", "must be a kind of Shift, not the base class"),
        ("env._target_=plasticity.Env", "must be a kind of Env, not the base class itself"),
        ("~env", "env=None: must be given"),
        ("~env +env.levels=3", "env._target_=None: must be the import path of a kind of Env"),
        ("+agent.foo=3", "agent.foo=3: no such setting"),
        ("env=minigrid env.id=Nope-v0", "env.id='Nope-v0': must be registered"),
        ("env=minigrid env.wrappers=[]", "must have observations in a Box"),
        ("env=gymnasium env.id=Blackjack-v1", "must have observations in a Box"),
        ("-m agent.learning_rate=0.1,-3", "agent.learning_rate=-3.0: must be"),
        ("out=occupied", "folder='occupied': must hold no other run; has one with no"),
        ("agent.clip_eps=(", "Error parsing override 'agent.clip_eps=('; extraneous input"),
        ("agent.clip_eps=[", "Error parsing override 'agent.clip_eps=['; no viable alternative"),
        ("'agent.clip_eps=${x}'", "agent.clip_eps='${x}': must refer to what there is"),
        ("agent=5", "agent=5: must be one of a2c, burda"),
        ("env=null", "env=null: must be one of ant, atari"),
        ("probes=[5]", "probes=[5]: must be one of"),
        ("~agent", "agent=None: must be given"),
        ("~seed", "seed=None: must be a seed"),
        ("seed=[[1]]", "seed=[[1]]: must be a seed, or a list of them"),
        ("'+intervention.x={_target_: 5}'", "intervention.x._target_=5: must be an import path"),
        ("env=minigrid env.wrappers=[os.path.join]", "env.wrappers='os.path.join': must wrap"),
        ("+foo=3", "foo=3: no such setting; there are env, shift"),
        ("out=occupied/config.yaml/x", "occupied/config.yaml is a file"),
        ("out=null", "out=None: must be a folder"),
        ("hydra.run.dir=", "hydra.run.dir='': must be a folder"),
        ("-m hydra.launcher=null", "hydra.launcher"),
        (
            "-m hydra.launcher.foo=1",
            "hydra.launcher.foo=1: no such key; hydra.launcher has _target_",
        ),
        (
            "intervention=[redo,redo]",
            "intervention=['redo', 'redo']: must not hold an option twice",
        ),
        (
            "+shift.x._target_=plasticity.shifts.ValueSchedule",
            "ValueSchedule': must be a class that defines with_value, not a base class",
        ),
        ("-m '+lr=0.1,-3' 'agent.learning_rate=${lr}'", "agent.learning_rate=-3.0: must be"),
        ("figures=some", "figures='some': must be one of none, last, all"),
        ("checkpoint_minutes=-1", "checkpoint_minutes=-1: must be a finite number >= 0"),
        ("schedule.rounds=999999999999", "schedule.rounds=999999999999: must be at most 2147"),
        ("network.hidden=[2000000000]", "network.hidden=(2000000000,): must be smaller: at lea"),
        ("-m schedule.eval_episodes=9,2000000000", "schedule.eval_episodes=2000000000: must be s"),
        ("-m 'seed=range(0,0)'", "sweep=[]: must have at least one job"),
        ("intervention=crelu network.hidden=[64,5]", "network.hidden=(64, 5): each must be a mul"),
    ],
)
def test_train_refuses_an_unusable_setting_in_one_line(shell, tmp_path, capsys, line, said):
    """It names key, value and what is allowed; nothing is written or touched."""
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied/config.yaml").write_text("kept")
    assert shell(line if "out=" in line else f"{line} out=new") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]
    assert (tmp_path / "occupied/config.yaml").read_text() == "kept"


@pytest.mark.slow
def test_ctrl_c_keeps_results_and_says_where_they_are(tmp_path):
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


def test_paper_presets_equal_the_defaults_of_their_classes():
    """The command line and Python must not have different defaults."""
    (run,) = runs_of("network=paper", "agent=paper")
    for part in (run.network, run.agent, run.env):
        assert part == type(part)()


def test_config_holds_the_defaults_of_a_users_class_and_meta_its_code(tmp_path, monkeypatch):
    """Would catch an old table that is given for a run whose class has changed since."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "my_edit.py"
    source = "from plasticity import Intervention, field\nclass Scale(Intervention):\n"

    def job(body):
        sys.modules.pop("my_edit", None)
        module.write_text(source + body)
        importlib.invalidate_caches()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(CONFIG, ["+intervention.scale={_target_: my_edit.Scale}"])
        return build_job(config, tmp_path / "run")

    before = job("    factor: float = field(1.0, ge=0)\n")
    assert before.config["intervention"]["scale"] == {"_target_": "my_edit.Scale", "factor": 1.0}
    with RunDir(before.info, 1):
        pass
    assert before.is_finished()
    with pytest.raises(pl.SettingError, match=r"has one with intervention\.scale\.factor=1\.0"):
        job("    factor: float = field(0.25, ge=0)\n").is_finished()
    edited = job("    factor: float = field(1.0, ge=0)\n\n    def on_shift(self, *args): ...\n")
    with pytest.warns(UserWarning, match=r"another version of the file of my_edit\.Scale"):
        assert edited.is_finished()


def test_out_is_in_the_home_and_of_one_process():
    """Would catch a folder named "~", and two runs of one second that want the same folder."""
    dirs = []
    for overrides in (["out='~/x'"], [], []):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(CONFIG, overrides, return_hydra_config=True)
        dirs.append((config.hydra.run.dir, config.hydra.sweep.dir))
    assert dirs[0] == (str(Path.home() / "x"),) * 2
    assert dirs[1] != dirs[2]


def test_set_up_needs_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    set_up()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize 'cuda'")])
def test_a_missing_device_is_one_line(shell, capsys, monkeypatch, error):
    """Would catch a traceback, or an `error:` with nothing behind it."""

    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert shell(f"{TINY} out=out") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: JAX_PLATFORMS='cuda': must be available: ")
    assert len(told.splitlines()) == 1
    assert not Path("out").exists()


def test_settings_may_refer_to_each_other_and_to_variables_of_the_users():
    """Would catch `${out}` that is lost, and a mistyped key that passes for a variable."""
    (run,) = runs_of("+lr=0.003", "agent.learning_rate=${lr}", "agent.ent_coef=${agent.vf_coef}")
    assert run.agent.learning_rate == 0.003
    assert run.agent.ent_coef == run.agent.vf_coef
    with pytest.raises(pl.SettingError, match=r"lr=0\.003: no such setting"):
        runs_of("+lr=0.003")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(CONFIG, ["tracking=[wandb]", "tracking.wandb.group=${out}", "out=here"])
    assert train_options(config).trackers[0].group == "here"


@pytest.mark.slow
def test_out_may_use_hydras_own_resolvers(shell, tmp_path):
    assert shell(f"{TINY} 'out=${{hydra:runtime.cwd}}/${{hydra:runtime.choices.env}}'") == 0
    assert len(results.load(tmp_path / "gather"))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        *(
            (f"hydra.launcher.agents={value}", f"hydra.launcher.agents={value!r}: must be a whole")
            for value in (-1, 0, 1.5)
        ),
        ("hydra.launcher.agents=abc", "hydra.launcher.agents='abc': must be a whole number"),
        ("hydra.launcher.exact=maybe", "hydra.launcher.exact='maybe': must be true or false"),
        ("hydra.launcher.inner=5", "hydra.launcher.inner=5: must be the settings of a launcher"),
        (
            "'hydra.launcher.inner={_target_: pathlib.Path}'",
            "hydra.launcher.inner._target_='pathlib.Path': must be the class of a launcher",
        ),
        ("hydra.sweep.subdir=same", "hydra.sweep.subdir='out/same': must differ between jobs"),
    ],
)
def test_a_sweep_refuses_a_launcher_that_cannot_be(shell, capsys, word, told):
    """Would catch a sweep that begins, and jobs that write into one folder."""
    assert shell(f"-m {TINY} seed=0,1 out=out {word}") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("error: ")] == errors
    assert errors[0].startswith(f"error: {told}")
    assert not list(Path("out").glob("*/*"))


def test_a_sweep_without_a_finished_episode_has_been_trained(tmp_path):
    """Would catch a sweep that trained all its jobs and fails whenever it is run again."""
    results.write(results.empty(), tmp_path / "job/metrics.parquet")
    with pytest.warns(UserWarning, match="no report"):
        SweepCallback().conclude(tmp_path)
