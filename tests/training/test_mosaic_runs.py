"""Training with the Mosaic encoder: from the command line to the table, under every method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plasticity as pl
from plasticity.interventions import chain
from plasticity.networks import Mosaic
from plasticity.struct import SettingError
from plasticity.training import check_run, loop

pytestmark = pytest.mark.slow

OBJECTS = pl.Gather(levels=3, episode_steps=10, observation="objects")
MOSAIC = Mosaic(width=8, depth=1, heads=2, mlp_width=6)
LINE = (
    "env=gather_objects network=mosaic network.width=8 network.depth=1 network.heads=2 "
    "network.mlp_width=6 schedule=smoke agent.num_envs=2 agent.num_steps=20 agent.num_epochs=1 "
    "env.levels=3 env.episode_steps=10 schedule.eval_episodes=0 schedule.updates_per_round=2 "
    "schedule.probe_batch_size=16 'seed=[0,1]' figures=none out=out"
)


def test_mosaic_trains_from_the_command_line_to_the_table(shell, tmp_path):
    """Would catch a shift, probe or table that knows no tokens, and a stack that is no stack."""
    probes = (
        "probes=[weight_norm,linearized_units,deviation_from_isometry,dormant_units,"
        "attention_entropy,token_rank,closed_gates,masked_modeling_loss,quantization_error]"
    )
    methods = "'intervention=[masked_modeling,shrink_perturb]'"
    shifts = "'shift=[permute,permute_features]'"
    assert shell(f"{LINE} agent.minibatch_size=20 {shifts} {methods} {probes}") == 0
    table = pl.results.read(tmp_path / "out/metrics.parquet")
    assert set(table.seed) == {0, 1}
    assert set(table["round"]) == {1, 2}
    assert np.isfinite(table.value).all()
    norms = set(table.layer[table.metric == "weight_norm"])
    assert {f"attention_0_{part}" for part in ("query", "key", "value", "output")} < norms
    for metric, layers in (
        ("attention_entropy", {"attention_0", "all"}),
        ("token_rank", {"attention_0", "all"}),
        ("closed_gates", {"hidden_0", "all"}),
        ("masked_modeling_loss", {"all"}),
        ("dormant_units", {"hidden_0", "hidden_1", "all"}),
        ("quantization_error", {"hidden_0", "hidden_1", "policy", "value", "all"}),
    ):
        assert set(table.layer[table.metric == metric]) == layers


def traced(run):
    """Traces the beginning of a run, an update and a shift. Its parameters before and after."""

    def begin_and_train(run):
        before = loop.init(run)
        state, trajectory, _ = loop.rollout(run, before)
        after = loop.start_round(run, loop.update(run, state, trajectory)[0])
        return [state.train_state.params for state in (before, after)]

    check_run(run)
    return jax.eval_shape(begin_and_train, jax.tree.map(jnp.asarray, run))


def test_mosaic_trains_by_a2c_on_vectors_and_images():
    """Would catch an encoder that knows objects alone, or PPO alone."""
    agent = pl.A2C(num_envs=2, num_steps=5)
    for env, patch, features in ((pl.CartPole(), 8, 8), (pl.Gather(), 11, 365)):
        run = pl.Run(env=env, network=MOSAIC.replace(patch=patch), agent=agent)
        before, after = traced(run)
        assert before == after
        assert before["torso"]["embedding_0"]["kernel"].shape == (features, 8)


def test_methods_of_units_and_layers_act_on_an_encoder():
    """Would catch a method that fails on attention layers, or on units with two kernels."""
    acting = (
        pl.ReDo(),
        pl.ReDoStudy(),
        pl.ReGraMa(),
        pl.ContinualBackprop(),
        pl.SelfNormalizedResets(),
        pl.Parseval(),
        pl.SpectralRegularization(),
        pl.WeightNormalization(),
        pl.LayerNorm(),
        pl.NormalizeAndProject(),
        pl.WeightClipping(),
        pl.InFeR(),
        pl.ProximalFeatures(layers="all"),
        pl.ResetLayers(last=3),
        pl.ShrinkPerturb(),
        pl.PlasticityInjection(),
        pl.FIRE(),
        pl.CalibratedPartialResets(),
        pl.SelectiveWeightReinitialization(),
        pl.EWC(),
    )
    agent = pl.PPO(num_envs=2, num_steps=6, minibatch_size=6, num_epochs=1)
    run = pl.Run(env=OBJECTS, network=MOSAIC, agent=agent)
    before, after = traced(run.replace(intervention=chain(*acting)))
    assert after == before
    for method in (pl.CReLU(), pl.FourierFeatures()):
        with pytest.raises(SettingError, match=r"network\.gated=True: must be false"):
            check_run(run.replace(intervention=chain(method)))
