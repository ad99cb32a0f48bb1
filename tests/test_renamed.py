"""Old names of settings: on the command line, in configurations, and in run folders that exist."""

import copy
import json
import warnings

import pytest
from helpers import RUN
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import plasticity as pl
from plasticity import renamed
from plasticity.cli.command import CONFIG, CONFIGS, build_job, runs_of
from plasticity.storage.run_dir import is_finished
from plasticity.struct import TARGET, to_config

# Under which options each old key exists, and another value than that of its default.
CHOICES = ("shift=offset", "intrinsic=rnd")
VALUES = {
    "agent.clip": 0.3,
    "agent.entropy": 0.125,
    "agent.value": 0.25,
    "intrinsic.weight": 0.75,
    "intrinsic.extrinsic_weight": 1.5,
    "intrinsic.share": 0.5,
    "intrinsic.features": 32,
    "intrinsic.limit": 4.0,
    "schedule.updates": 7,
    "schedule.shift_over": 3,
    "schedule.probe_batch": 31,
    "shift.offset.reach": 0.5,
}
RUN_WITH_ALL = RUN.replace(intrinsic=pl.RND(), shift=pl.Shifts.of(pl.Offset()))


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch):
    monkeypatch.setattr(renamed, "_WARNED", {})


def old_spellings(key):
    """The old names of a key: `rnd.weight` and `intrinsic.weight`, once it has been renamed."""
    return [key, key.replace("intrinsic.", "rnd.")] if key.startswith("intrinsic.") else [key]


def value_of(run, key):
    """The value of a dotted key of a run."""
    config = to_config(run)
    for name in key.split("."):
        config = config[name]
    return config


def nested(key, value):
    """The mapping that holds a value under a dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def moved(config, new, old):
    """A copy of a configuration with the value under one dotted key moved to another."""
    config = copy.deepcopy(config)
    *path, name = new.split(".")
    node = config
    for part in path:
        node = node[part]
    value = node.pop(name)
    *path, name = old.split(".")
    node = config
    for part in path:
        node = node.setdefault(part, {})
    node[name] = value
    return config


def test_every_old_key_is_tested():
    """Would catch a renamed key without a test."""
    assert {*VALUES, "rnd"} == set(renamed.KEYS)


@pytest.mark.parametrize("key", VALUES)
def test_old_key_works_as_an_override(key):
    """Would catch an old key that is refused, or ignored, on the command line."""
    for old in old_spellings(key):
        with pytest.warns(UserWarning, match="is now called") as caught:
            (run,) = runs_of(*CHOICES, f"{old}={VALUES[key]}")
        assert value_of(run, renamed.KEYS[key]) == VALUES[key]
        assert [str(one.message) for one in caught] == [
            f"{old} is now called {renamed.KEYS[key]}; the old name works until 0.3"
        ]


@pytest.mark.parametrize("key", VALUES)
def test_old_key_works_in_a_configuration(key):
    """Would catch an old key that `from_config` does not accept."""
    config = to_config(RUN_WITH_ALL)
    del config[TARGET]
    with pytest.warns(UserWarning, match=f"{key} is now called {renamed.KEYS[key]}"):
        (run,) = pl.from_config(moved(config, renamed.KEYS[key], key))
    assert run == RUN_WITH_ALL


class Mine(pl.PPO):
    """An agent as a user would write it."""

    warmth: float = pl.field(1.0)


def test_old_key_works_for_a_class_of_the_user_that_inherits_the_field():
    """Would catch an inherited setting that is refused under the name it had."""
    config = to_config(RUN)
    del config[TARGET]
    config["agent"] = {TARGET: f"{__name__}.Mine", "entropy": 0.125, "warmth": 2.0}
    with pytest.warns(UserWarning, match=r"agent\.entropy is now called agent\.ent_coef"):
        (run,) = pl.from_config(config)
    assert (run.agent.ent_coef, run.agent.warmth) == (0.125, 2.0)


@pytest.mark.parametrize("key", VALUES)
def test_old_key_works_in_a_user_file(key, tmp_path):
    """Would catch an old key whose value loses to the new key's default."""
    GlobalHydra.instance().clear()
    (tmp_path / "experiment").mkdir()
    for old in old_spellings(key):
        text = OmegaConf.to_yaml(nested(old, VALUES[key]))
        (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}")
        overrides = [*CHOICES, "experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(CONFIG, overrides)
        with pytest.warns(UserWarning, match="is now called"):
            (run,) = build_job(config, tmp_path / "run").runs
        assert value_of(run, renamed.KEYS[key]) == VALUES[key]


def test_run_dir_with_old_names_is_finished(tmp_path):
    """Would catch a finished run that is refused, or trained again, under its new names."""
    config = to_config(RUN_WITH_ALL)
    del config[TARGET]
    old = config
    for key in VALUES:
        old = moved(old, renamed.KEYS[key], key)
    old = moved(old, "intrinsic", "rnd")
    old["rnd"][TARGET] = "plasticity.agents.rnd.RND"
    (tmp_path / "config.yaml").write_text(json.dumps(old))
    (tmp_path / "meta.json").write_text('{"status": "finished"}')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert is_finished(tmp_path, config)
        assert is_finished(tmp_path, config)
        with pytest.raises(pl.SettingError, match=r"has one with agent.clip_eps=0.2"):
            is_finished(tmp_path, {**config, "agent": {**config["agent"], "clip_eps": 0.1}})
    messages = [str(one.message) for one in caught]
    assert sorted(message.partition(" ")[0] for message in messages) == sorted([*VALUES, "rnd"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *renamed.OPTIONS.items(),
        ("rnd=null,small", "intrinsic=none,rnd"),
        ("agent=small,rnd", "agent=small,burda"),
        ("+experiment@x=small", "+experiment@x=small"),
        ("intervention=[l2,redo]", "intervention=[l2,redo]"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is now called")
def test_rename_override_renames_options(old, new):
    """Would catch an option that is not renamed, alone or in a sweep."""
    assert renamed.rename_override(old) == new


def test_train_warns_of_each_old_name_in_one_line(shell, monkeypatch, capsys):
    """Would catch a warning for each job, or one with its place in the source."""
    monkeypatch.setattr(warnings, "filters", [])
    line = "-m rnd=small agent.clip=0.3 schedule.updates=0 seed=0,1 out=new"
    assert shell(line) == 2
    assert capsys.readouterr().err.splitlines() == [
        "warning: rnd=small is now called intrinsic=rnd; the old name works until 0.3",
        "warning: agent.clip is now called agent.clip_eps; the old name works until 0.3",
        "warning: schedule.updates is now called schedule.updates_per_round; "
        "the old name works until 0.3",
        "error: schedule.updates_per_round=0: must be a whole number >= 1",
    ]
