"""The command `pretrain`: from the command line to runs that begin with the encoder."""

import jax
import numpy as np
import pytest
from helpers import Toy, Twins, same

from plasticity import results
from plasticity.agents import PPO
from plasticity.cli.pretrain import job, load_policies
from plasticity.config import from_config
from plasticity.networks import Mosaic, Network
from plasticity.storage import run_dir
from plasticity.struct import SettingError
from plasticity.training import Run, check_run, load_params, loop, pretraining
from plasticity.training.initial_params import load_initial_params
from plasticity.training.pretraining import Pretraining, check_pretraining, pretrain
from plasticity.training.run import stack

LINE = (
    "env._target_=helpers.Twins ~env.levels ~env.reward ~env.episode_steps ~env.pixels "
    "~env.observation shift=none network.width=8 network.depth=1 network.heads=2 "
    "network.mlp_width=8 network.low_precision_norm=false pretraining.steps=400 "
    "pretraining.batch_size=32 pretraining.learning_rate=0.02 pretraining.num_observations=64 "
    "pretraining.collect_every=50 pretraining.log_every=150 'seed=[3,1]' out=out"
)
SMALL = Mosaic(width=8, depth=1, heads=2, mlp_width=8, low_precision_norm=False)


@pytest.mark.slow
def test_pretrain_makes_the_start_of_runs(shell, tmp_path, capsys):
    """Would catch an encoder that learns nothing, that no run can begin with, or of another seed.

    Predicting the mean would leave 1.4. Where a twin is seen, nothing need be left.
    """
    assert shell(LINE, job) == 0
    assert "held out" in capsys.readouterr().err
    frame = results.read(tmp_path / "out/metrics.parquet")
    assert set(frame.metric) == {"masked_modeling_loss", "pretraining_loss"}
    held_out = frame[frame.metric == "masked_modeling_loss"]
    assert list(held_out["update"]) == [150, 300, 400] * 2
    assert (held_out.value[held_out["update"] == 400] < 0.6).all()
    config = run_dir.read_config(tmp_path / "out/config.yaml")
    settings = config.pop("pretraining")
    assert settings["steps"] == 400
    runs = from_config({**config, "seed": [1, 3], "init_from": str(tmp_path / "out")})
    begun = load_initial_params(runs)
    same(begun, jax.tree.map(lambda x: x[::-1], load_params(tmp_path / "out")))
    drawn = jax.jit(jax.vmap(loop.init))(stack(runs)).train_state.params
    for name in ("policy", "value"):
        same(begun[name], drawn[name])
    same(begun["torso"]["hidden_1"], drawn["torso"]["hidden_1"])
    for name in ("embedding_0", "attention_0_query", "down_0"):
        assert np.abs(begun["torso"][name]["kernel"] - drawn["torso"][name]["kernel"]).max() > 0.01
    # The same seeds in another order take the same program.
    swapped = pretrain(runs, Pretraining(**settings))
    same(swapped, begun)
    assert shell(LINE, job) == 0
    assert "nothing to pretrain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pretraining.steps=0", "pretraining.steps=0: must be a whole number >= 1"),
        ("pretraining.batch_size=2000000000", "pretraining.batch_size=2000000000: must be smaller"),
        ("+pretraining.stps=1", "pretraining.stps=1: no such setting; there are steps, "),
        ("pretraining.policy=nowhere", "pretraining.policy='nowhere': must be the folder of a"),
        ("agent.normalize_observations=true", "agent.normalize_observations=True: must be false"),
    ],
)
def test_pretrain_refuses_in_one_line_and_writes_nothing(change, message, shell, tmp_path, capsys):
    """Would catch a traceback, a line of Hydra's, or a folder without an encoder."""
    assert shell(f"{LINE} {change}", job) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def policy_run(env, **changes):
    """A run whose policy takes action 2 whatever it sees, and its parameters."""
    run = Run(env=env, network=Network(hidden=(4,)), **changes)
    shapes = jax.eval_shape(loop.init, run).train_state.params
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params["policy"]["bias"] = np.array([0.0, 0.0, 50.0], np.float32)
    return run, params


def test_observations_are_those_of_the_policy_given():
    """Would catch a policy that is loaded and not followed: an action pushes its number up."""
    run, settings = Run(env=Toy(), network=SMALL), Pretraining(num_observations=2000)
    collect = jax.jit(pretraining._collect)
    follows = np.asarray(collect(run, *policy_run(Toy()), settings, 0)).mean(0)
    assert follows[2] > 1
    assert np.abs(np.delete(follows, 2)).max() < 0.2


def test_held_out_observations_are_of_held_out_levels(monkeypatch, tiny_run):
    """Would catch an evaluation on what was learned from."""
    levels = []
    monkeypatch.setattr(
        pretraining.rollouts, "sample", lambda env, task, *_: levels.append(task.levels)
    )
    run = tiny_run()
    pretraining._collect(run, Pretraining(), 0)
    pretraining._collect_held_out(run, Pretraining())
    assert int(levels[0].first) + int(levels[0].size) <= int(levels[1].first)


def test_policies_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    """Would catch a policy of other observations, or of another seed, that acts all the same."""
    run = Run(env=Toy(), network=SMALL)
    for other, message in (
        (policy_run(Twins()), r"pretraining\.policy='there': must be of a run with env\.obs"),
        (policy_run(Toy(), agent=PPO(normalize_observations=True)), "must not normalize"),
    ):
        with pytest.raises(SettingError, match=message):
            check_pretraining([run], Pretraining(policy="there"), [other])
    check_run(run)
    check_pretraining([run], Pretraining(policy="there"), [policy_run(Toy())])
    monkeypatch.setattr(
        "plasticity.cli.pretrain.load_finished_runs",
        lambda folder: [(*policy_run(Toy(), seed=4), None)],
    )
    with pytest.raises(SettingError, match=r"must hold a run of seed 0; has \[4\]"):
        load_policies(str(tmp_path), [run])
    with pytest.raises(SettingError, match="must be an encoder of tokens"):
        check_pretraining([run.replace(network=Network())], Pretraining())
