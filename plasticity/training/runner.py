"""Trains runs from the host: the schedule, progress, the table.

No arithmetic of the study happens here beyond dividing sums by counts.
"""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from plasticity.agents import Metrics
from plasticity.envs.host import HostEnv
from plasticity.networks import Params
from plasticity.results import table
from plasticity.spec import TARGET, describe
from plasticity.training.checkpoints import Checkpoints, Standing
from plasticity.training.folder import CHECKPOINTS, Job, RunFolder, is_finished
from plasticity.training.host_lives import HostLives
from plasticity.training.interrupts import Interrupts
from plasticity.training.lifetime import Sums
from plasticity.training.lives import CompiledLives, Lives, seeds_of, stack
from plasticity.training.progress import Progress
from plasticity.training.recorder import Recorder
from plasticity.training.run import Run, check_run
from plasticity.training.tracking import Tracker, Tracking

CHECKPOINT_MINUTES = 10.0


def train(
    runs: Run | Sequence[Run],
    folder: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    trackers: Sequence[Tracker] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Trains runs of equal structure as one program, and returns their results table.

    Called again with the same folder it goes on from the last checkpoint there, whatever ended
    it, and comes to the same table and parameters; what is finished is not trained again.

    Args:
      runs: one run, or several that differ in numbers only, such as seeds.
      folder: where results and checkpoints go; nothing is written if it is not given.
      config: what `config.yaml` in the folder holds; the runs' own settings if not given.
      names: what the table's `run` column says of each; the folder's name, or the
        intervention's, if not given. Runs that share a seed need names of their own.
      checkpoint_minutes: minutes between two checkpoints, besides those at the ends of rounds;
        0 for these alone. Environments on the host can go on from the end of a round only.
      trackers: who follows the rows besides; only where there is a folder.
      progress: whether to show progress on standard error.

    Returns:
      The table, as `plasticity.results.load(folder)` gives it.

    Raises:
      SettingError: a setting cannot be used, the folder holds anything else, or its checkpoint
        is of other versions. Nothing has been compiled or written then.
      ValueError: the runs are not of equal structure, there are none, two share name and seed,
        or a seed where there are trackers.
      KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR2, once the stretch of updates under way
        is done and, where it can be, a checkpoint of it is written.
    """
    runs = (runs,) if isinstance(runs, Run) else tuple(runs)
    for run in runs:
        check_run(run)
    stacked = stack(runs)
    if names is not None and len(names) != len(runs):
        raise ValueError(f"{len(names)} names for {len(runs)} runs")
    own_name = stacked.intervention.name if folder is None else Path(folder).resolve().name
    names = names or [own_name] * len(runs)
    if len({(name, run.seed) for name, run in zip(names, runs, strict=True)}) < len(runs):
        raise ValueError("runs that share a seed must have names of their own: see `names`")
    if trackers and len({run.seed for run in runs}) < len(runs):
        raise ValueError("runs that share a seed cannot be tracked in one folder")
    if folder is None:
        recorder = Recorder(stacked, names)
        _live(stacked, recorder, _progress(stacked, progress))
        return recorder.frame()
    if config is None:
        config = describe(runs[0], runs)
        del config[TARGET]
    job = Job(runs, Path(folder), config)
    if is_finished(job):
        # A process that was killed at the very end may have left them.
        shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)
    else:
        train_jobs(
            [job],
            names=names,
            checkpoint_minutes=checkpoint_minutes,
            trackers=trackers,
            progress=_progress(stacked, progress),
        )
    return table.ordered(table.read(job.folder / table.TABLE))


def train_jobs(
    jobs: Sequence[Job],
    checkpoints: Path | None = None,
    *,
    names: Sequence[str] | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    trackers: Sequence[Tracker] = (),
    progress: Progress | None = None,
) -> None:
    """Trains jobs whose runs are of equal structure as one program, from where they stand.

    Each folder ends as if its job had been trained alone. The jobs must have passed
    `check_run` and `is_finished`.

    Args:
      jobs: the jobs.
      checkpoints: where to keep what all of them can go on from until they are done; in the
        folder of the first if not given.
      names: of each run in the tables; that of its job's folder if not given.
      checkpoint_minutes: as in `train`.
      trackers: who follows the rows besides.
      progress: what is shown; nothing if not given.

    Raises:
      SettingError: there is a checkpoint of other versions or other runs.
      KeyboardInterrupt: as in `train`.
    """
    runs = [run for job in jobs for run in job.runs]
    stacked = stack(runs)
    names = names or [job.folder.resolve().name for job in jobs for _ in job.runs]
    recorder = Recorder(stacked, names)
    ends = list(itertools.accumulate(len(job.runs) for job in jobs))
    shares = [slice(end - len(job.runs), end) for job, end in zip(jobs, ends, strict=True)]
    place = checkpoints or jobs[0].folder / CHECKPOINTS
    with contextlib.ExitStack() as exits:
        kept = exits.enter_context(Checkpoints(place, runs))
        standing = kept.restore(recorder)
        update = 0 if standing is None else int(standing.state.update[0])
        folders = [exits.enter_context(RunFolder(job, ends[-1], update)) for job in jobs]

        tracking = exits.enter_context(
            Tracking(trackers, jobs, lambda i, after: recorder.frame(shares[i], after), update)
        )

        def write() -> None:
            for folder, share in zip(folders, shares, strict=True):
                folder.write_table(recorder.frame(share))
            tracking.feed(recorder.update, now=True)

        def keep(standing: Standing) -> None:
            write()
            kept.save(standing, recorder)

        progress = progress or _progress(stacked, shown=False)
        try:
            params = _live(
                stacked,
                recorder,
                progress,
                keep,
                checkpoint_minutes,
                standing,
                recorded=lambda: tracking.feed(recorder.update),
            )
        except KeyboardInterrupt:
            write()
            raise
        write()
        for folder, share in zip(folders, shares, strict=True):
            folder.write_params(jax.tree.map(lambda x, own=share: x[own], params))


def intervals_of(run: Run) -> dict[str, int]:
    """The updates between two measurements by each probe; 0 for the ends of rounds alone."""
    return {
        name: probe.every or run.schedule.probe_every
        for name, probe in zip(run.probes.names, run.probes.parts, strict=True)
    }


def stops(run: Run) -> list[int]:
    """The updates of a round after which something is due; the last is the round's end."""
    schedule = run.schedule
    intervals = {schedule.log_every, schedule.eval_every, *intervals_of(run).values()}
    due = {u for every in intervals if every for u in range(every, schedule.updates, every)}
    return [*sorted(due), schedule.updates]


def means(sums: Sums) -> Metrics:
    """What a stretch of training came to: means over its updates, and over its episodes.

    `train_return` is NaN if no episode ended; `episodes` is how many did.
    """
    sums = jax.device_get(sums)
    with np.errstate(invalid="ignore"):
        train_return = sums.episodes.returns / sums.episodes.ended
    per_update = jax.tree.map(lambda total: total / sums.updates, sums.metrics)
    return {
        **per_update,
        "train_return": {"all": train_return},
        "episodes": {"all": sums.episodes.ended},
    }


def _live(
    runs: Run,
    recorder: Recorder,
    progress: Progress,
    keep: Callable[[Standing], None] = lambda standing: None,
    checkpoint_minutes: float = 0,
    standing: Standing | None = None,
    recorded: Callable[[], None] = lambda: None,
) -> Params:
    """Takes a stack of runs through its rounds, or the rest of them.

    Args:
      runs: the stack, [S].
      recorder: of what is measured.
      progress: what is shown.
      keep: called with where the runs stand, at the ends of rounds and at intervals.
      checkpoint_minutes: the interval; 0 for none.
      standing: where the runs stand; at the beginning if not given.
      recorded: called whenever something has been.

    Returns:
      The final parameters, as host arrays [S, ...].
    """
    schedule, intervals = runs.schedule, intervals_of(runs).items()
    num_runs = len(seeds_of(runs))

    def is_due(every: int, stop: int) -> bool:
        return stop == schedule.updates or (every > 0 and stop % every == 0)

    def on_host(stacked: Any) -> Any:
        # Copies, for what is computed on next is given its memory.
        return jax.tree.map(lambda x: np.array(x)[:num_runs], stacked)

    # Signals are held back first: programs are compiled as soon as lives begin.
    with (
        Interrupts() as interrupts,
        contextlib.closing(_begin(runs, standing)) as lives,
        progress,
    ):
        done = int(lives.state.update[0])
        pending = None if standing is None else standing.pending
        kept_at = time.monotonic()
        for round in range(done // schedule.updates + 1, schedule.rounds + 1):
            last = max(done - (round - 1) * schedule.updates, 0)
            if round > 1 and last == 0:
                lives.next_round()
            for stop in stops(runs):
                if stop <= last:
                    continue
                sums = on_host(lives.advance(stop - last))
                pending = sums if pending is None else jax.tree.map(np.add, pending, sums)
                last = stop
                metrics: Metrics = {}
                if is_due(schedule.log_every, stop):
                    metrics |= means(pending)
                    pending = jax.tree.map(np.zeros_like, pending)
                if is_due(schedule.eval_every, stop):
                    metrics |= lives.evaluate()
                probes = [name for name, every in intervals if is_due(every, stop)]
                if probes:
                    metrics |= lives.measure(probes)
                update = (round - 1) * schedule.updates + stop
                recorder.add(update, jax.device_get(metrics), lives.state.diverged)
                recorded()
                progress.show(round, update, metrics.get("train_return"), stop == schedule.updates)
                waited = time.monotonic() - kept_at
                wanted = interrupts.noted is not None or waited > 60 * checkpoint_minutes > 0
                if stop == schedule.updates or (wanted and lives.restarts_anywhere):
                    keep(Standing(on_host(lives.state), pending))
                    kept_at = time.monotonic()
                interrupts.check()
        return on_host(lives.state.learner.params)


def _begin(runs: Run, standing: Standing | None) -> Lives:
    kind = HostLives if isinstance(runs.env, HostEnv) else CompiledLives
    return kind(runs, None if standing is None else standing.state)


def _progress(runs: Run, shown: bool) -> Progress:
    return Progress.of(f"{runs.env.name} {runs.shift.name} {runs.intervention.name}", runs, shown)
