"""Estimates the memory of stacked runs before anything is compiled."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plasticity.struct import SettingError, Struct, fields
from plasticity.training import loop
from plasticity.training.rollout import sample_shape
from plasticity.training.run import Run
from plasticity.training.state import RunState

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
    state = _init(run)
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


def check_memory(runs: Sequence[Run]) -> None:
    """Raises `SettingError` if runs cannot be in the memory of this machine together.

    Only what one setting needs at the very least is counted, of all of the memory: a run that is
    accepted may still be too large.

    Args:
      runs: runs of one structure that train as one program, in JAX or host environments.
    """
    run, room = runs[0], _total()
    agent, schedule = run.agent, run.schedule
    observation = 4 * math.prod(run.env.observation_shape)
    needs = {"env": observation}
    if observation <= room:  # or tracing could fail
        state = _init(run)
        needs["intrinsic"] = _bytes(state.intrinsic)
        needs["network"] = _bytes(state._replace(envs=(), intrinsic=()))
        place = _bytes(state.envs) // agent.num_envs + observation  # of one environment
        larger = "num_envs" if agent.num_envs > agent.num_steps else "num_steps"
        needs[f"agent.{larger}"] = agent.batch_size * observation + agent.num_envs * place
        # The order of the transitions in each epoch, or however an agent makes minibatches.
        order = jax.eval_shape(agent.minibatches, jax.random.key(0))
        needs["agent.num_epochs" if hasattr(agent, "num_epochs") else "agent"] = _bytes(order)
        needs["schedule.probe_batch_size"] = schedule.probe_batch_size * observation
        needs["schedule.eval_episodes"] = schedule.eval_episodes * place
        needs["seed"] = len(runs) * _bytes(state)
    for key, need in needs.items():
        if need > room:
            check_bytes(*_culprit(key, runs), need)


def check_bytes(key: str, value: object, need: int) -> None:
    """Raises `SettingError` if a setting needs more bytes than this machine has memory."""
    if need > (room := _total()):
        raise SettingError(
            key,
            value,
            f"must be smaller: at least {need / 1e9:,.1f} GB are needed, and this machine has "
            f"{room / 1e9:,.1f} GB of memory",
        )


def _culprit(key: str, runs: Sequence[Run]) -> tuple[str, object]:
    """Returns the key and the value that an error about a part of the memory names."""
    if key == "seed":
        return key, [run.seed for run in runs]
    group, _, name = key.partition(".")
    struct = getattr(runs[0], group)
    if name:
        return key, getattr(struct, name)
    # Of a group: its largest number, which may be nested.
    numbers = list(_numbers(struct, group))
    if not numbers:
        return key, type(struct).__name__
    _, key, value = max(numbers, key=lambda entry: entry[0])
    return key, value


def _numbers(struct: Struct, key: str) -> Iterator[tuple[int, str, object]]:
    """Yields the whole numbers in settings, at any depth: the largest of a list, key and value."""
    for name, _ in fields(struct):
        value = getattr(struct, name)
        if isinstance(value, Struct):
            yield from _numbers(value, f"{key}.{name}")
            continue
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if type(x) is int]
        if numbers:
            yield max(numbers), f"{key}.{name}", value


@functools.lru_cache(maxsize=64)
def _init(run: Run) -> RunState:
    """Returns the shapes of the state of a run."""
    return jax.eval_shape(loop.init, run)


def _total() -> float:
    """Returns the memory of all devices of this machine; infinity if it is not known."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return len(devices) * int(stats["bytes_limit"])
    try:
        physical: float = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        physical = math.inf
    return min(physical, _cgroup_limit())


def _cgroup_limit(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self")) -> float:
    """Returns the memory that this process's control groups allow it; infinity if any.

    Containers and schedulers set it, and a process that exceeds it is killed.

    Args:
      root: where control groups are mounted.
      proc: the folder of the process in `/proc`.
    """
    try:
        lines = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except OSError:
        return math.inf
    limits = [math.inf]
    for _, controllers, path in lines:
        if controllers == "":  # version 2
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):  # version 1
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = Path(path.strip("/"))
        for folder in (place, *place.parents):
            with contextlib.suppress(OSError, ValueError):  # a container sees its own part only
                limits.append(int((top / folder / name).read_text()))  # or "max"
    return min(limits)


def available() -> int:
    """Returns the memory that a stack may take: most of what is free on one of the devices."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    table = Path("/proc/meminfo")
    if not table.exists():
        return 4 * 2**30
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    return int(_SHARE * min(free, _cgroup_limit()))


def _bytes(tree: Any) -> int:
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
