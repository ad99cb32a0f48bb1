"""Estimates the memory of stacked runs before anything is compiled."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.training import loop
from plasticity.training.rollout import sample_shape
from plasticity.training.run import Run

_SHARE = 0.8  # of free memory: the estimate is not exact, and other programs run


class Memory(NamedTuple):
    """The memory of a run, in bytes."""

    standing: int  # its state, as long as its stack trains
    working: int  # while it is computed

    def of(self, runs: int, at_once: int) -> int:
        """Returns the memory of `runs` runs, of which `at_once` are computed at the same time."""
        return runs * self.standing + at_once * self.working


def memory_of(run: Run) -> Memory:
    """Estimates the memory of one run of a stack in a JAX environment.

    The parts are counted from shapes. The number of copies of each that exist at once was fitted
    to what XLA allocates for the presets.
    """
    zero = jnp.zeros((), jnp.int32)
    observation = jax.ShapeDtypeStruct(
        (run.schedule.probe_batch_size, *run.env.observation_shape), jnp.float32
    )
    state = jax.eval_shape(loop.init, run)
    _, trajectory, _ = jax.eval_shape(loop.rollout, run, state)
    apply = loop.make_context(run, zero, zero).apply
    activations = jax.eval_shape(apply, state.train_state.params, observation).activations
    updating = 2 * _bytes(trajectory) + 4 * _bytes(state.train_state.params)
    if jax.tree.leaves(state.intrinsic):  # and the next observations, once more
        updating += 4 * _bytes(state.intrinsic) + _bytes(trajectory.observation)
    num_sampled = math.prod(sample_shape(run.schedule.probe_batch_size))
    sampling = 5 * num_sampled * _bytes(observation) // run.schedule.probe_batch_size // 4
    probing = 4 * _bytes(activations)
    return Memory(standing=_bytes(state), working=max(updating, sampling, probing))


def available() -> int:
    """Returns the memory that a stack may take: most of what is free on one of the devices."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    table = Path("/proc/meminfo")
    if not table.exists():
        return 4 * 2**30
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    return int(_SHARE * 1024 * int(lines["MemAvailable"].split()[0]))


def _bytes(tree: Any) -> int:
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
