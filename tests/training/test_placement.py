"""Placement does not affect results: devices, batches, loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, same

from plasticity.agents import PPO
from plasticity.interventions import ShrinkPerturb, chain
from plasticity.networks import Network
from plasticity.probes import DeadUnits, Probes, WeightNorm
from plasticity.shifts import Permute, Shifts
from plasticity.training import Run, Schedule
from plasticity.training import trainer as trainer_module
from plasticity.training.placement import Placement
from plasticity.training.run import seeds_of, stack
from plasticity.training.trainer import JaxTrainer

SEEDS = (3, 0, 5)  # which two devices cannot share out evenly


def run_of(seed):
    """A short run, in float64 below, where rounding and a fault can be distinguished."""
    return Run(
        env=Toy(),
        shift=Shifts.of(Permute()),
        intervention=chain(ShrinkPerturb()),
        network=Network(hidden=(8, 6)),
        agent=PPO(num_envs=4, num_steps=10, minibatch_size=20, num_epochs=2, adam_eps=1e-4),
        probes=Probes.of(DeadUnits(), WeightNorm()),
        schedule=Schedule(rounds=2, updates_per_round=3, eval_episodes=4, probe_batch_size=16),
        seed=seed,
    )


def train(seeds, num_devices, mode):
    """All outputs over a shift, of each seed and of the padding."""
    with jax.enable_x64(True):
        placement = Placement(tuple(jax.local_devices()[:num_devices]), mode)
        trainer = JaxTrainer(stack([run_of(seed) for seed in seeds]), placement=placement)
        outputs = [trainer.train_updates(3), trainer.run_probes(["dead_units"]), trainer.evaluate()]
        trainer.start_round()
        outputs += [
            trainer.train_updates(1),
            trainer.train_updates(2),
            trainer.run_probes(["weight_norm", "dead_units"]),
        ]
        used = {leaf.sharding.num_devices for leaf in jax.tree.leaves(trainer.state)}
        assert used == {num_devices}
        # Copies: what a device's memory is viewed as may be overwritten.
        return jax.tree.map(np.array, jax.device_get((trainer.state, *outputs)))


def of_run(outcome, i):
    """The outputs of the i-th run of a stack."""
    return jax.tree.map(lambda x: x[i], outcome)


@pytest.fixture(scope="module")
def loop():
    """The seeds one after another, on one device."""
    return train(SEEDS, 1, "loop")


@pytest.mark.slow
def test_two_devices_equal_one(loop):
    """Would catch runs that end up in another's row, or that a device computes otherwise."""
    shared_out = train(SEEDS, 2, "loop")
    assert {len(leaf) for leaf in jax.tree.leaves(loop)} == {3}
    assert {len(leaf) for leaf in jax.tree.leaves(shared_out)} == {4}
    for i in range(len(SEEDS)):
        same(of_run(shared_out, i), of_run(loop, i))
    same(of_run(shared_out, 3), of_run(loop, 2))  # the last, repeated


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(SEEDS)))
def test_loop_equals_the_run_alone(loop, i):
    """Would catch a loop whose program is another one for each length."""
    same(of_run(train(SEEDS[i : i + 1], 1, "loop"), 0), of_run(loop, i))


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_batch_equals_loop_up_to_rounding(loop, num_devices):
    """Would catch randomness or data that runs of a batch share."""
    batch = train(SEEDS, num_devices, "batch")
    for i in range(len(SEEDS)):
        same(of_run(batch, i), of_run(loop, i), rtol=1e-6, atol=1e-9)
    params = batch[0].train_state.params
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
    kernel = params["policy"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-3  # or else all would agree


@pytest.mark.slow
def test_evaluation_does_not_depend_on_its_parts(monkeypatch):
    """Would catch steps lost between two parts, signals unseen, or an evaluation for ever."""
    checks = []
    with jax.enable_x64(True):
        placement = Placement(tuple(jax.local_devices()[:1]), "loop")
        runs = stack([run_of(seed) for seed in SEEDS])
        trainer = JaxTrainer(runs, None, placement, lambda: checks.append(1))
        whole = trainer.evaluate()
        assert not checks
        monkeypatch.setattr(trainer_module, "_EVAL_STEPS_PER_CALL", 1)
        same(whole, trainer.evaluate())
        assert checks
        steps = len(checks)
        runs = runs.replace(schedule=runs.schedule.replace(eval_max_steps=steps))
        with pytest.warns(UserWarning, match=f"eval_max_steps={steps}, and counts"):
            JaxTrainer(runs, placement=placement).evaluate()


def test_put_pads_with_the_last_run():
    """Would catch a stack that loses runs, or is filled up where it need not be."""
    runs = stack([run_of(seed) for seed in SEEDS])
    one, two = (Placement(tuple(jax.local_devices()[:n]), "loop") for n in (1, 2))
    assert seeds_of(one.put(runs)) == [3, 0, 5]
    assert seeds_of(two.put(runs)) == [3, 0, 5, 5]
    even = jax.tree.map(lambda x: x[:2], runs)
    assert seeds_of(two.put(even)) == [3, 0]
    shards = two.put(runs).seed.addressable_shards
    assert {s.device: np.asarray(s.data).tolist() for s in shards} == dict(
        zip(two.devices, ([3, 0], [5, 5]), strict=True)
    )


def test_of_uses_no_more_devices_than_runs():
    """Would catch a device that computes nothing but a repeated run."""
    devices = tuple(jax.local_devices())
    assert len(devices) == 2
    assert [Placement.of(n).devices for n in (1, 2, 5)] == [devices[:1], devices, devices]


def test_stacked_numbers_are_typed_as_in_a_run_alone():
    """Would catch numbers that lose their weak types, and promote what they are multiplied by."""
    runs = [run_of(seed).replace(shift=Shifts()) for seed in SEEDS]
    for stacked, *alone in zip(*map(jax.tree.leaves, (stack(runs), *runs)), strict=True):
        arrays = [jnp.asarray(number) for number in alone]
        assert (stacked.dtype, stacked.weak_type) == (arrays[0].dtype, arrays[0].weak_type)
        np.testing.assert_array_equal(stacked, arrays)
