"""Trains stacked runs, with JAX or host environments behind one interface.

Every array of a stack has a leading axis of runs, [S, ...].
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from plasticity.agents import Metrics
from plasticity.envs.base import Task
from plasticity.envs.host import HostEnv
from plasticity.networks import Params
from plasticity.training import loop
from plasticity.training.host_rollout import HostWorker, Waiting, run_interleaved
from plasticity.training.past_tasks import PastTasks, past_metrics
from plasticity.training.placement import Placement
from plasticity.training.rollout import Evaluation, warn_of_cut_off_episodes
from plasticity.training.run import Run, seeds_of
from plasticity.training.state import MetricSums, RunState

_EVAL_STEPS_PER_CALL = 500

Evaluations = dict[str, Evaluation]  # by the metric's name


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

    def evaluate_past(self, num_rounds: int) -> Metrics:
        """Evaluates the runs on the tasks of the first rounds, so many."""

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
        self._past_tasks = PastTasks(self._runs, self._placement)
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
        continue_evaluation = self._compiled(loop.continue_evaluation, shared=1, donate=2)
        return self._run_episodes(
            self._compiled(loop.start_evaluation)(self._runs, self.state),
            partial(continue_evaluation, self._runs, self.state),
        )

    def evaluate_past(self, num_rounds: int) -> Metrics:
        start = self._compiled(loop.start_past_evaluation, shared=1)
        continue_evaluation = self._compiled(loop.continue_past_evaluation, shared=2, donate=3)
        returns = []
        for round, task in enumerate(self._past_tasks.first(num_rounds)):
            evaluations = start(self._runs, self.state, task, round)

            def go_on(
                evaluations: Evaluations, max_steps: int, task: Task = task, round: int = round
            ) -> tuple[Evaluations, Metrics]:
                return continue_evaluation(
                    self._runs, self.state, task, evaluations, round, max_steps
                )

            returns.append(self._run_episodes(evaluations, go_on)[loop.PAST_RETURN]["all"])
        return past_metrics(returns)

    def _run_episodes(
        self,
        evaluations: Evaluations,
        continue_evaluation: Callable[[Evaluations, int], tuple[Evaluations, Metrics]],
    ) -> Metrics:
        """Runs the episodes of evaluations to their ends, and returns their mean returns."""
        # In parts, between which signals are looked at: a compiled loop hears none.
        max_steps = self._runs.schedule.eval_max_steps
        for step in itertools.count(_EVAL_STEPS_PER_CALL, _EVAL_STEPS_PER_CALL):
            evaluations, metrics = continue_evaluation(evaluations, min(step, max_steps))
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

    def evaluate_past(self, num_rounds: int) -> Metrics:
        return self._run([worker.evaluate_past(num_rounds) for worker in self._workers])

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
