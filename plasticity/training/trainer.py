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
from plasticity.networks import Params
from plasticity.training import loop
from plasticity.training.host_rollout import HostWorker, Waiting, run_interleaved
from plasticity.training.placement import Placement
from plasticity.training.rollout import warn_of_cut_off_episodes
from plasticity.training.run import Run, seeds_of
from plasticity.training.state import MetricSums, RunState

_EVAL_STEPS_PER_CALL = 500


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
        """Evaluates the runs on the task of the round.

        Warns if episodes were cut off by `schedule.eval_max_steps`.
        """

    def run_probes(self, probes: Collection[str]) -> Metrics:
        """Runs the probes of these names."""

    def close(self) -> None:
        """Closes the environments."""


def make_trainer(
    runs: Run,
    state: RunState | None = None,
    check_signals: Callable[[], None] = lambda: None,
    params: Params | None = None,
) -> Trainer:
    """Returns the trainer of stacked runs.

    Args:
      runs: the stack, [S].
      state: the state to continue from; the beginning if not given.
      check_signals: called in all loops on the host; what it raises stops the trainer.
      params: the initial parameters, [S, ...]; drawn at random if not given.
    """
    if isinstance(runs.env, HostEnv):
        return HostTrainer(runs, state, check_signals, params)
    return JaxTrainer(runs, state, check_signals=check_signals, params=params)


class JaxTrainer:
    """Trains stacked runs in JAX environments: an interval of updates is one program.

    Args:
      runs: the stack, [S].
      state: the state to continue from; the beginning if not given.
      placement: how they are computed; the fastest way if not given.
      check_signals: see `make_trainer`.
      params: see `make_trainer`.
    """

    resumable_mid_round: ClassVar[bool] = True

    def __init__(
        self,
        runs: Run,
        state: RunState | None = None,
        placement: Placement | None = None,
        check_signals: Callable[[], None] = lambda: None,
        params: Params | None = None,
    ) -> None:
        self._check_signals = check_signals
        self._placement = placement or Placement.of(len(seeds_of(runs)))
        self._runs = self._placement.put(runs)
        if state is None:
            given = [] if params is None else [self._placement.put(params)]
            self.state: RunState = self._compiled(loop.init)(self._runs, *given)
        else:
            self.state = self._placement.put(state)
        self._sample_probe_batch()
        # A probe that cannot be traced is known before the first update.
        jax.eval_shape(self._compiled(loop.run_probes), self._runs, self.state, self._probe_batch)

    def start_round(self) -> None:
        self.state = self._compiled(loop.start_round, donate=1)(self._runs, self.state)
        self._sample_probe_batch()

    def train_updates(self, num_updates: int) -> MetricSums:
        train_updates = self._compiled(loop.train_updates, shared=1, donate=1)
        self.state, sums = train_updates(self._runs, self.state, num_updates)
        return sums

    def evaluate(self) -> Metrics:
        # In parts, between which signals are looked at: a compiled loop hears none.
        evaluations = self._compiled(loop.start_evaluation)(self._runs, self.state)
        max_steps = self._runs.schedule.eval_max_steps
        for step in itertools.count(_EVAL_STEPS_PER_CALL, _EVAL_STEPS_PER_CALL):
            evaluations, metrics = self._compiled(loop.continue_evaluation, shared=1, donate=2)(
                self._runs, self.state, evaluations, min(step, max_steps)
            )
            if all(np.all(evaluation.done) for evaluation in evaluations.values()):
                break
            if step >= max_steps:
                warn_of_cut_off_episodes(self._runs.env.name, max_steps)
                break
            self._check_signals()
        return metrics

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
      check_signals: see `make_trainer`.
      params: see `make_trainer`.
    """

    resumable_mid_round: ClassVar[bool] = False  # the state of an episode cannot be saved

    def __init__(
        self,
        runs: Run,
        state: RunState | None = None,
        check_signals: Callable[[], None] = lambda: None,
        params: Params | None = None,
    ) -> None:
        self._check_signals = check_signals
        num_runs, devices = len(seeds_of(runs)), jax.local_devices()
        half = -(-num_runs // 2)
        shares = [slice(0, half), slice(half, num_runs)][: min(num_runs, 2)]
        self._workers: list[HostWorker] = []
        try:
            for share, device in zip(shares, itertools.cycle(devices)):
                # A slice of None is None.
                share_state, share_params = _slice(state, share), _slice(params, share)
                self._workers.append(
                    HostWorker(
                        _slice(runs, share), share_state, device, check_signals, share_params
                    )
                )
        except BaseException:
            self.close()
            raise

    @property
    def state(self) -> RunState:
        return _concatenate([worker.state for worker in self._workers])

    def start_round(self) -> None:
        for worker in self._workers:
            worker.start_round()

    def train_updates(self, num_updates: int) -> MetricSums:
        return self._run([worker.train_updates(num_updates) for worker in self._workers])

    def evaluate(self) -> Metrics:
        return self._run([worker.evaluate() for worker in self._workers])

    def run_probes(self, probes: Collection[str]) -> Metrics:
        return self._run([worker.run_probes(probes) for worker in self._workers])

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _run(self, tasks: Sequence[Waiting[Any]]) -> Any:
        """Runs a task of each worker. Returns the results, concatenated."""
        return _concatenate(run_interleaved(tasks, self._check_signals))


def _slice(tree: Any, share: slice) -> Any:
    """Returns some runs of a stack."""
    return jax.tree.map(lambda x: x[share], tree)


def _concatenate(parts: Sequence[Any]) -> Any:
    """Concatenates stacks into one, on the host."""
    return jax.tree.map(lambda *each: np.concatenate([np.asarray(x) for x in each]), *parts)
