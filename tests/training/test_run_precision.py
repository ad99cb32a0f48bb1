"""The setting `precision`: what it changes of a run, and what it does not."""

import jax
import numpy as np
import pytest
from counting_helpers import host_run
from helpers import Toy, products, same

import plasticity as pl
from plasticity.config import from_config
from plasticity.interventions import Parseval, chain
from plasticity.networks import Network
from plasticity.probes import CriticError, EffectiveRank, HessianEigenvalue, NTKRank, Probes
from plasticity.struct import SettingError, to_config
from plasticity.training import loop
from plasticity.training.fusion import fusion_key
from plasticity.training.placement import Placement
from plasticity.training.run import stack
from plasticity.training.train import _fingerprint
from plasticity.training.trainer import HostTrainer

RUN = pl.Run(
    env=Toy(),
    intervention=chain(Parseval()),
    network=Network(hidden=(8, 6)),
    agent=pl.PPO(num_envs=4, num_steps=10, minibatch_size=20),
    schedule=pl.Schedule(probe_batch_size=16),
    probes=Probes.of(CriticError(), EffectiveRank(), HessianEigenvalue(), NTKRank()),
)
BF16 = RUN.replace(precision="bf16")


def program(function, run, *shared, extra=()):
    """The program of a stack of one run, as it is traced.

    `extra` computes further arguments from the run and its state.
    """
    runs = stack([run])
    states = jax.eval_shape(jax.vmap(loop.init), runs)
    args = [jax.eval_shape(jax.vmap(one), runs, states) for one in extra]
    placement = Placement(tuple(jax.local_devices()[:1]), "batch")
    compiled = placement.map_runs(function, len(shared))
    return compiled.trace(runs, states, *args, *shared).jaxpr.jaxpr


def test_precision_is_that_of_the_networks_products_alone():
    """Would catch a setting without effect, or an intervention's products rounded with it."""
    full = (frozenset({"float32"}), jax.lax.Precision.HIGHEST)
    rounded = {
        "float32": full,
        "tf32": (frozenset({"float32"}), jax.lax.Precision.DEFAULT),
        "bf16": (frozenset({"bfloat16"}), jax.lax.Precision.HIGHEST),
    }
    for precision, expected in rounded.items():
        run = RUN.replace(precision=precision)
        assert products(program(loop.train_updates, run, 1)) == {full, expected}
    plain = BF16.replace(intervention=chain())
    assert products(program(loop.train_updates, plain, 1)) == {rounded["bf16"]}


def test_probes_are_the_same_program_at_every_precision():
    """Would catch a rank, a gradient or a rollout of a probe in the precision of training."""
    programs = [program(loop.run_probes, run, extra=(loop.probe_batch,)) for run in (RUN, BF16)]
    assert str(programs[0]) == str(programs[1])
    kinds = products(programs[0])
    assert {precision for _, precision in kinds} == {jax.lax.Precision.HIGHEST}
    assert {dtype for dtypes, _ in kinds for dtype in dtypes} == {"float32", "float64"}


def test_probes_of_host_environments_are_the_same_at_every_precision():
    """Would catch transitions for a probe that are collected in the precision of training."""
    measured = []
    for precision in ("float32", "bf16"):
        run = host_run(3).replace(probes=Probes.of(CriticError()), precision=precision)
        trainer = HostTrainer(stack([run]))
        measured.append(jax.device_get(trainer.run_probes(["critic_error"])))
        trainer.close()
    assert np.isfinite(measured[0]["critic_error"]["all"]).all()
    same(*measured)


def test_runs_of_another_precision_are_other_runs():
    """Would catch a fused sweep, or a resumed run, that is trained in another's precision."""
    assert len({fusion_key(run) for run in (RUN, BF16)}) == 2
    assert len({_fingerprint([run]) for run in (RUN, BF16)}) == 2
    with pytest.raises(ValueError, match="2 different structures"):
        stack([RUN, BF16])


def test_precision_is_read_from_a_configuration():
    """Would catch a name that is ignored, or a run folder without one that is refused."""
    config = to_config(BF16)
    del config["_target_"]
    assert from_config(config) == [BF16]
    with pytest.raises(SettingError, match="precision='half': must be one of float32, tf32, bf16"):
        from_config({**config, "precision": "half"})
    del config["precision"]
    assert from_config(config) == [RUN]
