"""Where a stack is computed, and how, is no part of the results: devices, batches, loops."""

import jax
import numpy as np
import pytest
from helpers import Toy, same

from plasticity.agents import PPO
from plasticity.interventions import ShrinkPerturb, chain
from plasticity.networks import Network
from plasticity.probes import DeadUnits, Probes, WeightNorm
from plasticity.shifts import Permute, Shifts
from plasticity.training import Run, Schedule
from plasticity.training.placement import Placement
from plasticity.training.trainer import JaxTrainer, seeds_of, stack

SEEDS = (3, 0, 5)  # which two devices cannot share out evenly


def run_of(seed):
    """A life in float64, so that rounding and a fault can be told apart."""
    return Run(
        env=Toy(),
        shift=Shifts.of(Permute()),
        intervention=chain(ShrinkPerturb()),
        network=Network(hidden=(8, 6)),
        agent=PPO(num_envs=4, num_steps=10, minibatch_size=20, num_epochs=2, adam_eps=1e-4),
        probes=Probes.of(DeadUnits(), WeightNorm()),
        schedule=Schedule(rounds=2, updates=3, eval_episodes=4, probe_batch=16),
        seed=seed,
    )


def live(seeds, num_devices, each):
    """All that lives over a shift tell: of each seed, and of what fills the last share up."""
    with jax.enable_x64(True):
        placement = Placement(tuple(jax.local_devices()[:num_devices]), each)
        trainer = JaxTrainer(stack([run_of(seed) for seed in seeds]), placement=placement)
        told = [trainer.advance(3), trainer.measure(["dead_units"]), trainer.evaluate()]
        trainer.next_round()
        told += [
            trainer.advance(1),
            trainer.advance(2),
            trainer.measure(["weight_norm", "dead_units"]),
        ]
        used = {leaf.sharding.num_devices for leaf in jax.tree.leaves(trainer.state)}
        assert used == {num_devices}
        # Copies: what a device's memory is viewed as may be overwritten.
        return jax.tree.map(np.array, jax.device_get((trainer.state, *told)))


def of_run(outcome, i):
    """What became of the i-th run of a stack."""
    return jax.tree.map(lambda x: x[i], outcome)


@pytest.fixture(scope="module")
def loop():
    """The seeds one after the other, on one device."""
    return live(SEEDS, 1, "loop")


def test_two_devices_are_as_one(loop):
    """Would catch runs that end up in another's row, or that a device computes otherwise."""
    shared_out = live(SEEDS, 2, "loop")
    assert {len(leaf) for leaf in jax.tree.leaves(loop)} == {3}
    assert {len(leaf) for leaf in jax.tree.leaves(shared_out)} == {4}
    for i in range(len(SEEDS)):
        same(of_run(shared_out, i), of_run(loop, i))
    same(of_run(shared_out, 3), of_run(loop, 2))  # the last, repeated


@pytest.mark.parametrize("i", range(len(SEEDS)))
def test_a_run_in_a_loop_is_the_run_alone(loop, i):
    """Would catch a loop whose program is another one for each length."""
    same(of_run(live(SEEDS[i : i + 1], 1, "loop"), 0), of_run(loop, i))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_batch_is_the_loop_up_to_rounding(loop, num_devices):
    """Would catch randomness or data that runs of a batch share."""
    batch = live(SEEDS, num_devices, "batch")
    for i in range(len(SEEDS)):
        same(of_run(batch, i), of_run(loop, i), rtol=1e-6, atol=1e-9)
    params = batch[0].train_state.params
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
    kernel = params["policy"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-3  # or else all would agree


def test_the_last_run_fills_the_shares_up():
    """Would catch a stack that loses runs, or is filled up where it need not be."""
    runs = stack([run_of(seed) for seed in SEEDS])
    one, two = (Placement(tuple(jax.local_devices()[:n]), "loop") for n in (1, 2))
    assert seeds_of(one.place(runs)) == [3, 0, 5]
    assert seeds_of(two.place(runs)) == [3, 0, 5, 5]
    even = jax.tree.map(lambda x: x[:2], runs)
    assert seeds_of(two.place(even)) == [3, 0]
    shards = two.place(runs).seed.addressable_shards
    assert {s.device: np.asarray(s.data).tolist() for s in shards} == dict(
        zip(two.devices, ([3, 0], [5, 5]), strict=True)
    )


def test_the_default_uses_no_more_devices_than_runs():
    """Would catch a device that computes nothing but a repeated run."""
    devices = tuple(jax.local_devices())
    assert len(devices) == 2
    assert [Placement.of(n).devices for n in (1, 2, 5)] == [devices[:1], devices, devices]
