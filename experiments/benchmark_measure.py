"""Measurements of `experiments.benchmark`: the speed of training, and the roofline above it.

The roofline is an upper bound on steps per second: the operations and bytes that a step needs at
least, counted, at the peak rates of the device, measured in the same process.
"""

import contextlib
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.cli.command import runs_of
from plasticity.envs import Gymnasium, HostEnvs, HostStep, Task
from plasticity.envs.base import CompiledEnv
from plasticity.envs.host import HostVecEnv
from plasticity.networks import Params, by_layer
from plasticity.rng import Stream
from plasticity.struct import fields
from plasticity.training import Job, Run, loop
from plasticity.training.host_rollout import make_rngs
from plasticity.training.memory_estimate import available
from plasticity.training.placement import Placement
from plasticity.training.run import build_network, stack
from plasticity.training.sweep import Group
from plasticity.training.trainer import HostTrainer, JaxTrainer

REPEATS = 5  # stretches, of which the median counts
_LARGE = 2**26  # floats in all: more than caches hold
_TRIES = 100  # short ones, so that in some nothing else runs
_PASSES = 16  # at a time, in a loop whose length XLA knows

Array = jax.Array


def timed(work: Callable[[], Any]) -> float:
    """Returns the seconds until everything that `work` returns is computed."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def ratio(work: Callable[[int], Any], baseline: Callable[[int], Any], seconds: float) -> float:
    """Measures the time of `work` over that of `baseline`, in alternating stretches.

    Args:
      work: does the work a given number of times.
      baseline: does what it is compared with a given number of times.
      seconds: about how long to measure for.
    """

    def stretch(of: Callable[[int], Any]) -> int:
        of(1)
        return max(1, round(seconds / 2 / REPEATS / timed(lambda: of(1))))

    n, m = stretch(work), stretch(baseline)
    return statistics.median(
        (timed(lambda: work(n)) / n) / (timed(lambda: baseline(m)) / m) for _ in range(REPEATS)
    )


def start_trainer(run: Run, agents: int) -> JaxTrainer:
    """Returns a trainer of runs with the seeds 0, 1, ..., compiled and one update old."""
    trainer = JaxTrainer(stack([run.replace(seed=seed) for seed in range(agents)]))
    trainer.train_updates(1)
    return trainer


# The roofline


class Work(NamedTuple):
    """The work of one environment step, training included; or of a device in a second."""

    operations: float  # of floating point
    bytes: float  # to and from memory

    def per_second(self, rates: "Work") -> float:
        """Returns the steps per second that a device with these peak rates cannot exceed."""
        return min(rates.operations / self.operations, rates.bytes / self.bytes)


def count_work(run: Run) -> Work:
    """Counts the least work of one environment step of a run, its share of the update included.

    Operations are those of matrix products and convolutions, a multiplication and an addition
    each: forward in the rollout, forward for the values that are bootstrapped, forward and
    backward for each transition in each epoch. There is no gradient with respect to an observation.

    Bytes: for each gradient step parameters, gradient and Adam's two moments, all read and
    written; the parameters read for each step of the rollout; each observation written once, and
    read in each epoch. Activations need not leave a cache; scalars of a transition are not counted.

    Environment, shuffling and what is done element by element are left out, as is all that an
    intervention adds to the update.
    """
    assert isinstance(run.env, CompiledEnv)
    agent, params = run.agent, _params(run)
    sizes = {name: math.prod(product) for name, product in _products(run).items()}
    everything = sum(sizes.values())
    seeing = sum(size for name, size in sizes.items() if name.endswith("hidden_0"))
    shared = "value_torso" not in params
    valuing = sum(
        size
        for name, size in sizes.items()
        if (name != "policy" if shared else name.startswith("value"))
    )
    steps, minibatch_size = _minibatches(run)
    learnt = steps * minibatch_size
    bootstrapped = agent.num_envs + agent.batch_size * run.env.truncates
    backward = everything + (everything - seeing)  # for the weights; for what they are applied to
    operations = 2 * (
        agent.batch_size * everything + bootstrapped * valuing + learnt * (everything + backward)
    )
    parameters, observation = _bytes(params), 4 * math.prod(run.env.observation_shape)
    moved = (
        steps * 8 * parameters
        + agent.num_steps * parameters
        + (agent.batch_size + learnt) * observation
    )
    return Work(operations / agent.batch_size, moved / agent.batch_size)


def measure_peak_rates(run: Run, agents: int, seconds: float) -> Work:
    """Measures the peak rates of all devices together, for matrices and arrays of a run's sizes.

    Operations are those of products of a minibatch with the largest layer's weights, and back,
    batched or one after another as training computes this number of agents. Bytes are those of
    additions to arrays as large as the training state, or larger than a cache, whichever is faster.
    The fastest of many short stretches counts, since interruptions are not the device's limit.
    """
    params, devices = _params(run), len(jax.local_devices())
    shares = max(agents, devices)  # a single agent would leave devices idle
    shape = max((product[1:] for product in _products(run).values()), key=math.prod)
    rows = jax.random.normal(jax.random.key(0), (shares, _minibatches(run)[1], shape[0]))
    # Orthonormal, so that however many products neither grow nor vanish.
    weights = jax.nn.initializers.orthogonal()(jax.random.key(1), shape)
    weights = jnp.broadcast_to(weights, (shares, *shape))
    products = _rate(_back_and_forth, rows, weights, seconds=seconds)
    operations = products * 4 * _minibatches(run)[1] * math.prod(shape)
    moved = [
        _rate(_add, array, seconds=seconds) * 2 * 4 * array.shape[1]
        for array in (
            jnp.zeros((shares, _bytes(params))),  # with gradient and moments, 4 bytes each
            jnp.zeros((devices, _LARGE // devices)),
        )
    ]
    return Work(operations, max(moved))


def _rate(function: Callable[..., Array], *stacked: Array, seconds: float) -> float:
    """Measures how often all devices compute `function` per second, for arrays stacked by run."""
    placement = Placement.of(len(stacked[0]))
    arrays = placement.put(stacked)
    repeat = placement.map_runs(function, shared=1)
    jax.block_until_ready(repeat(*arrays, 1))
    times = 1
    while (took := timed(partial(repeat, *arrays, times))) < seconds / _TRIES:
        times *= 2
    tries = max(REPEATS, round(seconds / took))
    best = min(timed(partial(repeat, *arrays, times)) for _ in range(tries))
    return len(arrays[0]) * times * _PASSES / best


def _back_and_forth(rows: Array, weights: Array, times: int) -> Array:
    return _repeated(lambda rows: (rows @ weights) @ weights.T, rows, times)


def _add(array: Array, times: int) -> Array:
    return _repeated(lambda array: array + 1, array, times)


def _repeated(function: Callable[[Array], Array], array: Array, times: int) -> Array:
    def once(_: Any, array: Array) -> Array:
        return jax.lax.optimization_barrier(function(array))  # or passes might be fused

    def some(_: Any, array: Array) -> Array:
        return jax.lax.fori_loop(0, _PASSES, once, array)

    return jax.lax.fori_loop(0, times, some, array)


def _minibatches(run: Run) -> tuple[int, int]:
    """Returns the number of gradient steps of an update, and of transitions in each."""
    steps, size = jax.eval_shape(run.agent.minibatches, jax.random.key(0)).shape
    return steps, size


def _params(run: Run) -> Any:
    """Returns the shapes of a run's parameters."""
    return jax.eval_shape(loop.init, run).train_state.params


def _products(run: Run) -> dict[str, tuple[int, int, int]]:
    """Returns the size of each layer's product for one observation: rows, inputs and units.

    A convolution has a row for each position.
    """
    params, shape = _params(run), run.env.observation_shape
    network = build_network(run)

    def capture(params: Params) -> Any:
        observations = jnp.zeros((1, *shape))
        effective = {"params": run.intervention.effective_params(params)}
        return network.apply(effective, observations, capture_intermediates=True)[1][
            "intermediates"
        ]

    outputs = by_layer(jax.eval_shape(capture, params))
    rows = {
        name: math.prod(layer["__call__"][0].shape[1:-1])
        for name, layer in outputs.items()
        if isinstance(layer, dict) and "__call__" in layer and "hidden_" in name
    }
    return {
        name: (rows.get(name, 1), math.prod(kernel.shape[:-1]), kernel.shape[-1])
        for name, layer in by_layer(params).items()
        if (kernel := layer.get("kernel")) is not None
    }


def _bytes(tree: Any) -> int:
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


# Training


class Speed(NamedTuple):
    """The measurements of agents that train together.

    Attributes:
      steps: environment steps per second of all agents, training included, probes not.
      compiling: seconds to compile the training program.
      probes: the time of the probes at their interval over that of the training between.
      memory: the peak memory of a device in bytes; on a CPU that of the process.
      of_one: the time of an update over that of one agent alone.
      step: the least work of an environment step.
      rates: the peak rates of the devices, per second.
    """

    steps: float
    compiling: float
    probes: float
    memory: int
    of_one: float
    step: Work
    rates: Work


def measure(preset: str, agents: int, seconds: float) -> Speed:
    """Measures agents of a preset that train together, with the seeds 0, 1, ...

    Args:
      preset: the experiment.
      agents: number of agents.
      seconds: about how long to measure for, for each number.
    """
    run = runs_of(f"experiment={preset}")[0]
    return Speed(
        **_trained(run, agents, seconds),
        step=count_work(run),
        rates=measure_peak_rates(run, agents, seconds / 3),
    )


def _trained(run: Run, agents: int, seconds: float) -> dict[str, Any]:
    """Measures the fields of a `Speed` that need training, and frees its memory."""
    trainer = JaxTrainer(stack([run.replace(seed=seed) for seed in range(agents)]))
    compiled = timed(lambda: trainer.train_updates(1))
    once = timed(lambda: trainer.train_updates(1))
    stretch = max(1, round(seconds / REPEATS / once))
    an_update = statistics.median(
        timed(lambda: trainer.train_updates(stretch)) / stretch for _ in range(REPEATS)
    )
    trainer.run_probes(run.probes.names)
    probed = [timed(lambda: trainer.run_probes(run.probes.names)) for _ in range(REPEATS)]
    every = run.schedule.probe_every or run.schedule.updates_per_round
    memory = _peak()  # before anything else is computed in this process
    return {
        "steps": agents * run.agent.batch_size / an_update,
        "compiling": compiled - once,
        "probes": statistics.median(probed) / (every * an_update),
        "memory": memory,
        "of_one": 1.0
        if agents == 1
        else ratio(trainer.train_updates, start_trainer(run, 1).train_updates, seconds),
    }


def _peak() -> int:
    """Returns the peak memory of one device so far, in bytes; on a CPU that of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(each["peak_bytes_in_use"] for each in stats)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident


def max_agents(preset: str) -> int:
    """Estimates how many agents of a preset fit in memory together: a power of two."""
    run = runs_of(f"experiment={preset}")[0]
    room = available()

    def fits(agents: int) -> bool:
        memory = Group((Job((run,) * agents, Path(), {}),)).memory
        return memory is not None and memory <= room

    agents = 1
    while fits(2 * agents) and agents < 2**16:
        agents *= 2
    return agents


# Environments on the host


class HostSpeed(NamedTuple):
    """The measurements of one agent in environments on the host.

    Attributes:
      alone: environment steps per second with random actions and no training.
      steps: environment steps per second, training included.
      environments: the share of the environments in the time of training.
      policy: the share of the policy that acts in them, transfers included.
      update: the share of the rest, which is PPO's update.
    """

    alone: float
    steps: float
    environments: float
    policy: float
    update: float


class _TimedEnvs:
    """`HostEnvs` with a stopwatch.

    Attributes:
      spent: seconds spent in the environments.
      between: seconds from each return of the environments to the next step.
    """

    def __init__(self, envs: HostEnvs) -> None:
        self._envs = envs
        self.spent = self._left = 0.0
        self.between: list[float] = []

    def set_task(self, task: Task) -> None:
        self._envs.set_task(task)

    def reset(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        with self._timed():
            return self._envs.reset(mask, rng)

    def step(self, actions: np.ndarray) -> HostStep:
        self.between.append(time.perf_counter() - self._left)
        with self._timed():
            return self._envs.step(actions)

    def close(self) -> None:
        self._envs.close()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._left = time.perf_counter()
        self.spent += self._left - began


class _TimedGymnasium(Gymnasium):
    """The environment of `Gymnasium`, timed."""

    made: ClassVar[list[_TimedEnvs]] = []  # all of them, in order

    def make(self, num_envs: int) -> HostEnvs:  # type: ignore[override]
        self.made.append(_TimedEnvs(super().make(num_envs)))
        return self.made[-1]


def measure_host(preset: str, seconds: float) -> HostSpeed:
    """Measures one agent of a preset whose environments live on the host."""
    run = runs_of(f"experiment={preset}")[0]
    env = _TimedGymnasium(**{name: getattr(run.env, name) for name, _ in fields(run.env)})
    runs, size = stack([run.replace(env=env)]), run.agent.batch_size
    trainer = HostTrainer(runs)
    clock = env.made[0]  # of those that it trains in
    vec_env = HostVecEnv(jax.tree.map(lambda x: np.asarray(x)[None], env), 1, run.agent.num_envs)
    vec_env.reset(trainer.state.task, make_rngs(runs, Stream.ENVS))
    draw = np.random.default_rng(0)

    def act(times: int) -> None:
        shape = (times * run.agent.num_steps, 1, run.agent.num_envs)
        for actions in draw.integers(env.num_actions, size=shape):
            vec_env.step(actions)

    alone = statistics.median(_stretches(act, seconds))
    trainer.train_updates(3)  # compiles
    clock.spent = 0.0
    clock.between.clear()
    began = time.perf_counter()
    trained = statistics.median(_stretches(trainer.train_updates, seconds))
    whole = time.perf_counter() - began
    # What passes before a step is the policy's; but before the first of a rollout the update's too.
    policy = statistics.median(clock.between) * len(clock.between)
    trainer.close()
    vec_env.close()
    return HostSpeed(
        alone=size / alone,
        steps=size / trained,
        environments=clock.spent / whole,
        policy=policy / whole,
        update=1 - (clock.spent + policy) / whole,
    )


def _stretches(work: Callable[[int], Any], seconds: float) -> list[float]:
    """Measures the seconds that the work takes once, in stretches of `seconds` in total."""
    times = max(1, round(seconds / REPEATS / timed(lambda: work(1))))
    return [timed(lambda: work(times)) / times for _ in range(REPEATS)]
