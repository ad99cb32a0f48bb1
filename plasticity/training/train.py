"""Trains runs through all rounds: when to measure, what to keep, where to resume.

No arithmetic happens here beyond dividing sums by counts.
"""

import contextlib
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from plasticity.agents import Metrics
from plasticity.agents.normalization import RunningMeanStd
from plasticity.networks import Params
from plasticity.storage import run_dir
from plasticity.storage.checkpoints import CheckpointManager, flatten
from plasticity.storage.errors import StorageError
from plasticity.storage.progress import Progress
from plasticity.storage.recorder import Recorder
from plasticity.storage.run_dir import CHECKPOINTS, RunDir, RunInfo
from plasticity.storage.signals import SignalGuard
from plasticity.storage.tracking import Tracker, Tracking
from plasticity.struct import to_config
from plasticity.training import loop
from plasticity.training.fusion import fuse
from plasticity.training.initial_params import load_initial_params
from plasticity.training.run import Run, Schedule, seeds_of, stack
from plasticity.training.state import EpisodeStats, MetricSums, RunState
from plasticity.training.timing import Timing
from plasticity.training.trainer import make_trainer

__all__ = ["CHECKPOINT_MINUTES", "Job", "train_in_memory", "train_jobs"]

CHECKPOINT_MINUTES = 10.0


class Job(NamedTuple):
    """Runs whose results go into one run directory.

    Attributes:
      runs: runs that differ in numbers only, such as seeds.
      folder: the run directory.
      config: the content of its `config.yaml`, in plain containers.
      names: the table's `run` column, for each run; the folder's name if empty.
    """

    runs: tuple[Run, ...]
    folder: Path
    config: Mapping[str, Any]
    names: tuple[str, ...] = ()

    @property
    def info(self) -> RunInfo:
        """The runs, as far as storage needs to know them."""
        schedule = self.runs[0].schedule
        return RunInfo(
            folder=self.folder,
            config=self.config,
            seeds=tuple(run.seed for run in self.runs),
            updates=schedule.rounds * schedule.updates_per_round,
            batch_size=self.runs[0].agent.batch_size,
        )

    def with_absolute_paths(self) -> "Job":
        """Returns the job as a process in another working directory can train it."""
        runs = tuple(
            run if run.init_from is None else run.replace(init_from=str(_absolute(run.init_from)))
            for run in self.runs
        )
        return self._replace(runs=runs, folder=self.folder.absolute())

    def is_finished(self) -> bool:
        """Returns whether the run directory holds the job, finished.

        Raises:
          SettingError: see `plasticity.storage.run_dir.is_finished`.
        """
        return run_dir.is_finished(self.folder, self.config)


class Checkpoint(NamedTuple):
    """The state of stacked runs, as host arrays [S, ...]."""

    state: RunState
    pending: MetricSums  # since training metrics were last logged


def train_in_memory(
    runs: Sequence[Run], names: Sequence[str], progress: Progress | None = None
) -> pd.DataFrame:
    """Trains runs as one program, writes nothing, and returns their results table.

    The runs must have passed `check_run`.

    Args:
      runs: runs of equal `fusion_key`.
      names: the table's `run` column, for each run.
      progress: the progress display; nothing is shown if not given.

    Raises:
      KeyboardInterrupt: as in `plasticity.train`.
    """
    fused = fuse(runs)
    stacked, recorder = stack(fused), make_recorder(runs, names)
    _train_rounds(
        stacked,
        recorder,
        progress or make_progress(stacked, shown=False),
        initial_params=load_initial_params(fused),
    )
    return recorder.frame()


def train_jobs(
    jobs: Sequence[Job],
    checkpoint_dir: Path | None = None,
    *,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    keep_checkpoint: bool = False,
    trackers: Sequence[Tracker] = (),
    progress: Progress | None = None,
) -> None:
    """Trains jobs as one program, or resumes them: their runs must be of equal `fusion_key`.

    Each folder ends as if its job had been trained alone. The jobs must have passed `check_run`
    and `Job.is_finished`.

    Args:
      jobs: the jobs.
      checkpoint_dir: where checkpoints of all jobs together go; in the folder of the first if not
        given.
      checkpoint_minutes: as in `plasticity.train`.
      keep_checkpoint: as in `plasticity.train`.
      trackers: as in `plasticity.train`.
      progress: the progress display; nothing is shown if not given.

    Raises:
      SettingError: there is a checkpoint of other versions or other runs.
      KeyboardInterrupt: as in `plasticity.train`.
    """
    runs = [run for job in jobs for run in job.runs]
    fused = fuse(runs)
    stacked = stack(fused)
    recorder = make_recorder(runs, [name for job in jobs for name in _names(job)])
    ends = list(itertools.accumulate(len(job.runs) for job in jobs))
    shares = [slice(end - len(job.runs), end) for job, end in zip(jobs, ends, strict=True)]
    infos = [job.info for job in jobs]
    timing = Timing()
    with contextlib.ExitStack() as exits:
        checkpoints = exits.enter_context(
            CheckpointManager(
                checkpoint_dir or jobs[0].folder / CHECKPOINTS,
                _fingerprint(runs),
                keep=keep_checkpoint and checkpoint_dir is None,
            )
        )
        checkpoint = _restore(checkpoints, stacked, recorder)
        initial_params = load_initial_params(fused) if checkpoint is None else None
        update = 0 if checkpoint is None else int(checkpoint.state.update[0])
        run_dirs = [
            exits.enter_context(RunDir(info, ends[-1], update, keep_checkpoint, timing.summary))
            for info in infos
        ]
        tracking = exits.enter_context(
            Tracking(trackers, infos, lambda i, after: recorder.frame(shares[i], after), update)
        )

        def write_tables() -> None:
            for folder, share in zip(run_dirs, shares, strict=True):
                folder.write_table(recorder.frame(share))
            tracking.flush(recorder.update, force=True)

        last = [checkpoint]  # the last one, of all jobs together

        def save_checkpoint(checkpoint: Checkpoint) -> None:
            write_tables()
            _save(checkpoints, checkpoint, recorder)
            last[0] = checkpoint

        try:
            params, obs_stats = _train_rounds(
                stacked,
                recorder,
                progress or make_progress(stacked, shown=False),
                save_checkpoint,
                checkpoint_minutes,
                checkpoint,
                on_record=lambda: tracking.flush(recorder.update),
                initial_params=initial_params,
                timing=timing,
            )
        except KeyboardInterrupt:
            try:
                write_tables()
            except StorageError as error:  # which must not hide the interrupt
                warnings.warn(str(error), stacklevel=2)
            raise
        write_tables()
        for folder, share in zip(run_dirs, shares, strict=True):
            if obs_stats is not None:
                folder.write_obs_stats(jax.tree.map(lambda x, own=share: x[own], obs_stats))
            folder.write_params(jax.tree.map(lambda x, own=share: x[own], params))
        if keep_checkpoint and checkpoint_dir is not None and last[0] is not None:
            # The job goes on alone, if at all.
            for job, share in zip(jobs, shares, strict=True):
                place = job.folder / CHECKPOINTS
                with CheckpointManager(place, _fingerprint(job.runs), keep=True) as manager:
                    _save(manager, last[0], recorder, share)


def _names(job: Job) -> Sequence[str]:
    return job.names or [job.folder.resolve().name] * len(job.runs)


def make_recorder(runs: Sequence[Run], names: Sequence[str]) -> Recorder:
    """Returns an empty recorder for runs that train together.

    Args:
      runs: the runs, [S].
      names: the table's `run` column, for each run.
    """
    schedule, batch_size = runs[0].schedule, runs[0].agent.batch_size
    return Recorder(run_labels(runs, names), schedule.updates_per_round, batch_size)


def run_labels(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, str | int]]:
    """Returns the columns of a results table that identify each run, [S]."""
    return [
        {
            "run": name,
            "env": run.env.name,
            "shift": run.shift.name,
            "intervention": run.intervention.name,
            "seed": int(run.seed),
        }
        for name, run in zip(names, runs, strict=True)
    ]


def make_progress(runs: Run, title: str = "", shown: bool = True) -> Progress:
    """Returns the progress display of stacked runs."""
    return Progress(
        title or f"{runs.env.name} {runs.shift.name} {runs.intervention.name}",
        rounds=runs.schedule.rounds,
        updates=runs.schedule.rounds * runs.schedule.updates_per_round,
        steps_per_update=len(seeds_of(runs)) * runs.agent.batch_size,
        shown=shown,
    )


def probe_intervals(run: Run) -> dict[str, int]:
    """Returns the updates between two measurements of each probe; 0 for ends of rounds alone."""
    return {
        name: probe.every or run.schedule.probe_every
        for name, probe in zip(run.probes.names, run.probes.parts, strict=True)
    }


def measurement_updates(run: Run) -> Iterator[int]:
    """Yields the updates of a round after which anything is measured; the last is its end."""
    schedule = run.schedule
    update, end = 0, schedule.updates_per_round
    eval_every = schedule.eval_every if schedule.eval_episodes else 0
    intervals = {schedule.log_every, eval_every, *probe_intervals(run).values()} - {0}
    while update < end:
        update = min(end, *(every * (update // every + 1) for every in intervals))
        yield update


def is_past_evaluation_due(schedule: Schedule, round: int) -> bool:
    """Returns whether a round, 1 for the first, ends with evaluations on earlier rounds' tasks."""
    every = schedule.eval_past_every
    return round > 1 and every > 0 and round % every == 0


def mean_metrics(sums: MetricSums) -> Metrics:
    """Returns training metrics: means over updates, and over the episodes that ended.

    `train_return` is NaN if no episode ended; `episodes` is how many did.
    """
    sums = jax.device_get(sums)
    with np.errstate(invalid="ignore"):
        train_return = sums.episodes.return_sum / sums.episodes.num_episodes
    per_update = jax.tree.map(lambda total: total / sums.updates, sums.metrics)
    return {
        **per_update,
        "train_return": {"all": train_return},
        "episodes": {"all": sums.episodes.num_episodes},
    }


def warn_of_simulators(runs: Run, env_not_finite: np.ndarray, reported: set[int]) -> None:
    """Warns of runs that diverge since their environments returned what is not finite.

    Args:
      runs: the stack, [S].
      env_not_finite: the update at which that was the case, or 0, [S] or longer.
      reported: the runs that were warned of, to which those of now are added.
    """
    batch_size = runs.agent.batch_size
    for number, seed in enumerate(seeds_of(runs)):
        update = int(env_not_finite[number])
        if update and number not in reported:
            reported.add(number)
            warnings.warn(
                f"{runs.env.name}, seed {seed}: the simulator, and not the agent, gave rewards or "
                f"observations that are not finite, in update {update} (steps "
                f"{(update - 1) * batch_size + 1} to {update * batch_size}); the run is lost from "
                "there on",
                stacklevel=1,
            )


def _train_rounds(
    runs: Run,
    recorder: Recorder,
    progress: Progress,
    save_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
    checkpoint_minutes: float = 0,
    checkpoint: Checkpoint | None = None,
    on_record: Callable[[], None] = lambda: None,
    initial_params: Params | None = None,
    timing: Timing | None = None,
) -> tuple[Params, RunningMeanStd | None]:
    """Trains stacked runs through all rounds, or through those that remain.

    Args:
      runs: the stack, [S].
      recorder: records what is measured.
      progress: the progress display.
      save_checkpoint: called at the ends of rounds and at intervals.
      checkpoint_minutes: the interval; 0 for none.
      checkpoint: the checkpoint to resume from; the beginning if not given.
      on_record: called after each record.
      initial_params: the parameters to begin with, [S, ...]; drawn at random if not given.
      timing: measures the time of everything.

    Returns:
      The final parameters, and the statistics of observations if they are normalized, as host
      arrays [S, ...].
    """
    schedule, intervals = runs.schedule, probe_intervals(runs).items()
    timing = timing or Timing()
    end_of_round = schedule.updates_per_round
    num_runs = len(seeds_of(runs))

    def is_due(every: int, stop: int) -> bool:
        return stop == end_of_round or (every > 0 and stop % every == 0)

    def on_host(stacked: Any) -> Any:
        # Copies, since the memory of the state is donated to the next computation.
        return jax.tree.map(lambda x: np.array(x)[:num_runs], stacked)

    # Signals are held back first: programs are compiled as soon as the trainer is made.
    with (
        SignalGuard() as signals,
        contextlib.closing(
            make_trainer(
                runs, checkpoint and checkpoint.state, signals.check_overdue, initial_params
            )
        ) as trainer,
        progress,
    ):
        done = int(trainer.state.update[0])
        pending = checkpoint and checkpoint.pending
        reported: set[int] = set()
        saved_at = time.monotonic()
        for round in range(done // end_of_round + 1, schedule.rounds + 1):
            last = max(done - (round - 1) * end_of_round, 0)
            if round > 1 and last == 0:
                with timing.measure("round_starts"):
                    trainer.start_round()
                    jax.block_until_ready(trainer.state)
            for stop in measurement_updates(runs):
                if stop <= last:
                    continue
                with timing.measure_updates(stop - last):
                    sums = on_host(trainer.train_updates(stop - last))
                pending = sums if pending is None else jax.tree.map(np.add, pending, sums)
                last = stop
                metrics: Metrics = {}
                if is_due(schedule.log_every, stop):
                    metrics |= mean_metrics(pending)
                    pending = jax.tree.map(np.zeros_like, pending)
                if schedule.eval_episodes and is_due(schedule.eval_every, stop):
                    with timing.measure("evaluation"):
                        metrics |= jax.block_until_ready(trainer.evaluate())
                if stop == end_of_round and is_past_evaluation_due(schedule, round):
                    with timing.measure("past_evaluation"):
                        metrics |= jax.block_until_ready(trainer.evaluate_past(round - 1))
                probes = [name for name, every in intervals if is_due(every, stop)]
                if probes:
                    with timing.measure("probes"):
                        metrics |= jax.block_until_ready(trainer.run_probes(probes))
                update = (round - 1) * end_of_round + stop
                state = trainer.state
                recorder.add(update, jax.device_get(metrics), state.diverged)
                warn_of_simulators(runs, np.asarray(state.env_not_finite), reported)
                on_record()
                progress.show(round, update, metrics.get("train_return"), stop == end_of_round)
                interval_over = time.monotonic() - saved_at > 60 * checkpoint_minutes > 0
                wanted = signals.pending_signal is not None or interval_over
                if stop == end_of_round or (wanted and trainer.resumable_mid_round):
                    save_checkpoint(Checkpoint(on_host(trainer.state), pending))
                    saved_at = time.monotonic()
                signals.check()
        return on_host((trainer.state.train_state.params, trainer.state.obs_stats))


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _fingerprint(runs: Sequence[Run]) -> str:
    """Identifies runs by their settings, but for two that `config.yaml` has.

    These are the place of their initial parameters, which may be relative or absolute, and the
    number of rounds, which may become larger.
    """
    configs = [to_config(run) for run in runs]
    for config in configs:
        del config["init_from"], config["schedule"]["rounds"]
    settings = json.dumps(configs, sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()


def _save(
    checkpoints: CheckpointManager,
    checkpoint: Checkpoint,
    recorder: Recorder,
    which: slice = slice(None),
) -> None:
    """Saves a checkpoint of some of the runs, or of all."""
    records, metrics = recorder.saved(which)
    checkpoint = jax.tree.map(lambda x: x[which], checkpoint)
    arrays = {
        "state": flatten(checkpoint.state),
        "updates": checkpoint.pending.updates,
        "metrics": checkpoint.pending.metrics,
        "episodes": checkpoint.pending.episodes._asdict(),
        "records": {name: array for name, array in records.items() if array.size},
    }
    checkpoints.save(int(checkpoint.state.update[0]), arrays, {"metrics": metrics})


def _restore(checkpoints: CheckpointManager, runs: Run, recorder: Recorder) -> Checkpoint | None:
    """Returns the newest checkpoint of stacked runs, and gives its records to the recorder."""
    restored = checkpoints.restore()
    if restored is None:
        return None
    arrays, about = restored
    template = jax.eval_shape(jax.vmap(loop.init), runs)
    state = checkpoints.unflatten(arrays["state"], template)
    recorder.restore(arrays["records"], about["metrics"])
    episodes = EpisodeStats(**arrays["episodes"])
    return Checkpoint(state, MetricSums(arrays["updates"], arrays["metrics"], episodes))
