"""How much memory a stack of runs takes, before anything is compiled."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.envs.base import CompiledEnv
from plasticity.training import loop
from plasticity.training.rollout import sample_shape
from plasticity.training.run import Run

_SHARE = 0.8  # of what there is: an estimate is not exact, nor is a machine one's own


class Memory(NamedTuple):
    """Bytes that a run takes."""

    standing: int  # for as long as its stack is trained
    working: int  # while it is computed

    def of(self, runs: int, at_once: int) -> int:
        """Bytes of so many runs, of which so many are computed at once."""
        return runs * self.standing + at_once * self.working


def memory_of(run: Run) -> Memory:
    """An estimate for one run of a stack in a compiled environment.

    The parts are counted from shapes. How many copies of each are held at once was fitted to
    what XLA allocates for the presets.
    """
    assert isinstance(run.env, CompiledEnv)
    zero = jnp.zeros((), jnp.int32)
    seen = jax.ShapeDtypeStruct(
        (run.schedule.probe_batch_size, *run.env.observation_shape), jnp.float32
    )
    state = jax.eval_shape(loop.init, run)
    _, trajectory, _ = jax.eval_shape(loop.rollout, run, state)
    apply = loop.make_context(run, zero, zero).apply
    activations = jax.eval_shape(apply, state.train_state.params, seen).activations
    updating = 2 * _bytes(trajectory) + 4 * _bytes(state.train_state.params)
    if jax.tree.leaves(state.intrinsic):  # and the next observations, once more
        updating += 4 * _bytes(state.intrinsic) + _bytes(trajectory.observation)
    met = math.prod(
        sample_shape(run.schedule.probe_batch_size)
    )  # of which the probe batch is drawn
    sampling = 5 * met * _bytes(seen) // run.schedule.probe_batch_size // 4
    probing = 4 * _bytes(activations)
    return Memory(standing=_bytes(state), working=max(updating, sampling, probing))


def available() -> int:
    """Bytes that a stack may take: a good part of what is free on one of the devices."""
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
