"""Trains stacked runs, with JAX or host environments behind one interface.

Every array of a stack has a leading axis of runs, [S, ...].
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from plasticity.agents import Metrics
from plasticity.envs.host import HostEnv
from plasticity.training import loop
from plasticity.training.host_rollout import HostWorker, run_interleaved
from plasticity.training.placement import Placement
from plasticity.training.run import Run, seeds_of
from plasticity.training.state import MetricSums, RunState


class Trainer(Protocol):
    """Stacked runs under way.

    What the methods return is [S, ...], or longer: what follows the first S is padding.
    """

    resumable_mid_round: ClassVar[bool]  # or else only from the end of a round

    @property
    def state(self) -> RunState:
        """The state of the runs."""

    def start_round(self) -> None:
        """Takes the runs over the boundary to the next round."""

    def train_updates(self, num_updates: int) -> MetricSums:
        """Trains the runs for so many updates."""

    def evaluate(self) -> Metrics:
        """Evaluates the runs on the task of the round."""

    def run_probes(self, probes: Collection[str]) -> Metrics:
        """Runs the probes of these names."""

    def close(self) -> None:
        """Closes the environments."""


def make_trainer(runs: Run, state: RunState | None = None) -> Trainer:
    """Returns the trainer of stacked runs, from a state or from the beginning."""
    return (HostTrainer if isinstance(runs.env, HostEnv) else JaxTrainer)(runs, state)


class JaxTrainer:
    """Trains stacked runs in JAX environments: an interval of updates is one program.

    Args:
      runs: the stack, [S].
      state: the state to continue from; the beginning if not given.
      placement: how they are computed; the fastest way if not given.
    """

    resumable_mid_round: ClassVar[bool] = True

    def __init__(
        self, runs: Run, state: RunState | None = None, placement: Placement | None = None
    ) -> None:
        self._placement = placement or Placement.of(len(seeds_of(runs)))
        self._runs = self._placement.put(runs)
        if state is None:
            self.state: RunState = self._compiled(loop.init)(self._runs)
        else:
            self.state = self._placement.put(state)
        self._sample_probe_batch()

    def start_round(self) -> None:
        self.state = self._compiled(loop.start_round, donate=1)(self._runs, self.state)
        self._sample_probe_batch()

    def train_updates(self, num_updates: int) -> MetricSums:
        train_updates = self._compiled(loop.train_updates, shared=1, donate=1)
        self.state, sums = train_updates(self._runs, self.state, num_updates)
        return sums

    def evaluate(self) -> Metrics:
        return self._compiled(loop.evaluate)(self._runs, self.state)

    def run_probes(self, probes: Collection[str]) -> Metrics:
        runs = self._runs.replace(probes=self._runs.probes.only(probes))
        return self._compiled(loop.run_probes)(runs, self.state, self._probe_batch)

    def close(self) -> None:
        pass

    def _sample_probe_batch(self) -> None:
        self._probe_batch = self._compiled(loop.probe_batch)(self._runs, self.state)

    def _compiled(self, function: Callable[..., Any], **options: int) -> Callable[..., Any]:
        return self._placement.map_runs(function, **options)


class HostTrainer:
    """Trains stacked runs in host environments: a rollout there, then an update on the device.

    Several runs are divided between two workers, each on a device of its own where there are two.
    While one waits for its device, for actions or for an update, the other's environments are
    stepped. Results do not depend on that.

    Args:
      runs: the stack, [S].
      state: the state at the end of a round to continue from; the beginning if not given.
    """

    resumable_mid_round: ClassVar[bool] = False  # the state of an episode cannot be saved

    def __init__(self, runs: Run, state: RunState | None = None) -> None:
        num_runs, devices = len(seeds_of(runs)), jax.local_devices()
        half = -(-num_runs // 2)
        shares = [slice(0, half), slice(half, num_runs)][: min(num_runs, 2)]
        self._workers = [
            HostWorker(_slice(runs, share), None if state is None else _slice(state, share), device)
            for share, device in zip(shares, itertools.cycle(devices))
        ]

    @property
    def state(self) -> RunState:
        return _concatenate([worker.state for worker in self._workers])

    def start_round(self) -> None:
        for worker in self._workers:
            worker.start_round()

    def train_updates(self, num_updates: int) -> MetricSums:
        return _concatenate(
            run_interleaved([worker.train_updates(num_updates) for worker in self._workers])
        )

    def evaluate(self) -> Metrics:
        return _concatenate(run_interleaved([worker.evaluate() for worker in self._workers]))

    def run_probes(self, probes: Collection[str]) -> Metrics:
        return _concatenate(
            run_interleaved([worker.run_probes(probes) for worker in self._workers])
        )

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _slice(tree: Any, share: slice) -> Any:
    """Returns some runs of a stack."""
    return jax.tree.map(lambda x: x[share], tree)


def _concatenate(parts: Sequence[Any]) -> Any:
    """Concatenates stacks into one, on the host."""
    return jax.tree.map(lambda *each: np.concatenate([np.asarray(x) for x in each]), *parts)
