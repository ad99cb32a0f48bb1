"""The command `integer` on a finished run's folder, and what it refuses."""

import jax
import numpy as np
import pytest
from helpers import RUN, Tug

import plasticity as pl
from plasticity import results
from plasticity.agents import PPO
from plasticity.cli.integer import _main, load_finished_runs
from plasticity.integer import convert, numpy_reader
from plasticity.storage.run_dir import RunDir
from plasticity.struct import TARGET, to_config
from plasticity.training import loop
from plasticity.training.integer_evaluation import calibration_batch, evaluate_in_integers
from plasticity.training.run import stack
from plasticity.training.train import Job


def save_finished(folder, params, run=RUN):
    """Writes the folder of a finished run of seeds 3 and 1."""
    runs = tuple(run.replace(seed=seed) for seed in (3, 1))
    with RunDir(Job(runs, folder, config_of(run, [3, 1])).info, 2) as run_dir:
        run_dir.write_params(params)


def config_of(run, seeds):
    return {name: value for name, value in to_config(run).items() if name != TARGET} | {
        "seed": seeds
    }


@pytest.fixture(scope="module")
def params():
    runs = stack([RUN.replace(seed=seed) for seed in (3, 1)])
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(loop.init))(runs).train_state.params)


@pytest.mark.slow
def test_integer_reports_and_exports_every_seed(params, shell, tmp_path, capsys):
    """Would catch seeds mixed up, a file of another policy, or other episodes for the float one."""
    folder = tmp_path / "run"
    save_finished(folder, params)
    assert shell(f"{folder} --bits 6 --out {tmp_path}/out --episodes 3", _main) == 0
    frame = results.read(tmp_path / "out" / "integer.parquet")
    assert sorted(set(frame["seed"])) == [1, 3]
    assert set(frame["bits"]) == {6}
    returns = frame[frame["metric"].isin(["eval_train_return", "eval_test_return"])]
    assert len(returns) == 2 * 2 * 2 * 2
    assert (returns["low"] <= returns["high"]).all()
    sizes = frame[frame["metric"] == "size_bytes"].set_index(["seed", "policy"])["value"]
    weights, biases = 363 * 8 + 8 * 8 + 8 * 4 + 8, 8 + 8 + 4 + 1
    assert sizes[3, "float"] == 4 * (weights + biases)
    rescaling = 3 * 4 * biases + 2 * 2 * 4  # bias, multiplier and shift of units; of activations
    assert sizes[3, "integer"] == weights * 6 // 8 + rescaling
    for number, seed in enumerate((3, 1)):
        run = RUN.replace(seed=seed)
        observation = np.asarray(calibration_batch(run)[1])
        own = jax.tree.map(lambda x, i=number: np.asarray(x)[i], params)
        conversion = convert(run.network, own, observation, 6)
        actions = numpy_reader.act(
            numpy_reader.load(tmp_path / f"out/policy_{seed}.npz"), observation
        )
        expected = conversion.policy.act(conversion.quantize(observation))
        np.testing.assert_array_equal(actions, expected)
        artifact = (tmp_path / f"out/policy_{seed}.stablehlo").read_bytes()
        assert b"StableHLO" in artifact[:20]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "integer.parquet", "integer.png", "integer.svg", "numpy_reader.py",
        "policy_1.npz", "policy_1.stablehlo", "policy_3.npz", "policy_3.stablehlo",
    }  # fmt: skip
    assert "greedy actions that agree" in capsys.readouterr().out


@pytest.mark.slow
def test_continuous_actions_and_normalized_observations(tmp_path):
    """Would catch statistics that are not kept, or are not those that the policy acts with."""
    run = pl.Run(
        env=Tug(),
        network=pl.Network(hidden=(8,), activation="tanh"),
        agent=PPO(num_envs=4, num_steps=20, minibatch_size=20, normalize_observations=True),
        schedule=pl.Schedule(rounds=1, updates_per_round=3, probe_batch_size=64),
    )
    pl.train(run, tmp_path, progress=False)
    ((run, params, stats),) = load_finished_runs(tmp_path)
    np.testing.assert_allclose(stats.mean, [100, 100], atol=2)
    evaluation = evaluate_in_integers(run, params, 8, 20, stats)
    assert evaluation.action_agreement is None
    assert evaluation.action_error < 0.02
    returns = [evaluation.returns["eval_train_return", "greedy", p] for p in ("float", "integer")]
    np.testing.assert_allclose(*returns, rtol=0.03)
    observation = np.asarray(calibration_batch(run)[1])
    mean = evaluation.conversion.policy.act(evaluation.conversion.quantize(observation))
    policy = loop.make_context(run, 0, 0, stats).apply(params, observation).policy
    np.testing.assert_allclose(mean * evaluation.conversion.policy_scale, policy.mean, atol=0.05)


def nan(params):
    return {**params, "value": {**params["value"], "bias": np.full((2, 1), np.nan, np.float32)}}


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (None, "nowhere", "nowhere: is no folder"),
        (None, ".", "holds no config.yaml"),
        ({}, "run --bits 9", "bits=9: must be a whole number"),
        ({}, "run --episodes 1", "episodes=1"),
        ({}, "run --out run/config.yaml", "out='run/config.yaml': must be a folder"),
        ({"change": nan}, "run", "params.value.bias"),
        (
            {"run": RUN.replace(network=pl.Network(activation="fourier"))},
            "run",
            "network.activation",
        ),
        (
            {"run": RUN.replace(agent=PPO(normalize_observations=True))},
            "run",
            "obs_stats.npz: does not exist",
        ),
    ],
)
def test_integer_refuses_in_one_line_and_writes_nothing(
    make, arguments, message, params, shell, tmp_path, capsys
):
    """Would catch a traceback, half a folder, or a policy that is not the one that was trained."""
    if make is not None:
        change = make.pop("change", lambda params: params)
        save_finished(tmp_path / "run", change(params), **make)
    before = sorted(tmp_path.rglob("*"))
    assert shell(arguments, _main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_integer_refuses_runs_without_parameters(shell, tmp_path, capsys):
    """Would catch a run that was interrupted taken for one that is finished."""
    runs = (RUN,)
    with RunDir(Job(runs, tmp_path / "run", config_of(RUN, 0)).info, 1):
        pass
    assert shell("run", _main) == 2
    assert "expected final parameters" in capsys.readouterr().err
    (tmp_path / "run" / "meta.json").write_text('{"status": "running"}')
    assert shell("run", _main) == 2
    assert "its run is running; expected a finished one" in capsys.readouterr().err
