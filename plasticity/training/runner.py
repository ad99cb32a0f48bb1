"""Trains runs from the host: the schedule, progress, the table.

No arithmetic of the study happens here beyond dividing sums by counts.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from plasticity.agents import Metrics
from plasticity.envs.host import HostEnv
from plasticity.networks import Params
from plasticity.results import table
from plasticity.spec import TARGET, describe
from plasticity.training.folder import RunFolder, check_free
from plasticity.training.host_lives import HostLives
from plasticity.training.interrupts import Interrupts
from plasticity.training.lifetime import Sums
from plasticity.training.lives import CompiledLives, Lives, seeds_of, stack
from plasticity.training.progress import Progress
from plasticity.training.recorder import Recorder
from plasticity.training.run import Run, check_run


def train(
    runs: Run | Sequence[Run],
    folder: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Trains runs of equal structure as one program, and returns their results table.

    Args:
      runs: one run, or several that differ in numbers only, such as seeds.
      folder: where results go; nothing is written if it is not given. The table is there from
        the end of the first round on, complete to that round.
      config: what `config.yaml` in the folder holds; the runs' own settings if not given.
      names: what the table's `run` column says of each; the folder's name, or the
        intervention's, if not given. Runs that share a seed need names of their own.
      progress: whether to show progress on standard error.

    Returns:
      The table, as `plasticity.results.load(folder)` gives it.

    Raises:
      SettingError: a setting cannot be used, or the folder holds a run already. Nothing has
        been compiled or written then.
      ValueError: the runs are not of equal structure, there are none, or two share name and
        seed.
      KeyboardInterrupt: after Ctrl-C or SIGTERM, once the stretch of updates under way is done;
        what was measured until then is in the folder.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    for run in runs:
        check_run(run)
    path = None if folder is None else Path(folder)
    if path is not None:
        check_free(path)
    stacked = stack(runs)
    if names is not None and len(names) != len(runs):
        raise ValueError(f"{len(names)} names for {len(runs)} runs")
    names = names or [path.resolve().name if path else stacked.intervention.name] * len(runs)
    if len({(name, run.seed) for name, run in zip(names, runs, strict=True)}) < len(runs):
        raise ValueError("runs that share a seed must have names of their own: see `names`")
    recorder = Recorder(stacked, names)
    if path is None:
        _live(stacked, recorder, progress)
    else:
        settings = describe(runs[0], runs)
        del settings[TARGET]
        with RunFolder(path, stacked, config or settings) as files:
            try:
                keep = partial(files.write_table, recorder)
                files.write_params(_live(stacked, recorder, progress, keep))
            finally:
                files.write_table(recorder)
    return table.ordered(recorder.frame())


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
    progress: bool,
    at_round_end: Callable[[], None] = lambda: None,
) -> Params:
    """Takes a stack of runs through its rounds and returns the final parameters."""
    schedule, intervals = runs.schedule, intervals_of(runs).items()

    def is_due(every: int, stop: int) -> bool:
        return stop == schedule.updates or (every > 0 and stop % every == 0)

    bar = Progress(
        title=f"{runs.env.name} {runs.shift.name} {runs.intervention.name}",
        rounds=schedule.rounds,
        updates=schedule.rounds * schedule.updates,
        steps_an_update=len(seeds_of(runs)) * runs.agent.batch_size,
        shown=progress,
    )
    # Signals are held back first: programs are compiled as soon as lives begin.
    with Interrupts() as interrupts, contextlib.closing(_begin(runs)) as lives, bar:
        for round in range(1, schedule.rounds + 1):
            if round > 1:
                lives.next_round()
            last, pending = 0, None
            for stop in stops(runs):
                sums = lives.advance(stop - last)
                pending = sums if pending is None else jax.tree.map(jnp.add, pending, sums)
                last = stop
                metrics: Metrics = {}
                if is_due(schedule.log_every, stop):
                    metrics |= means(pending)
                    pending = None
                if is_due(schedule.eval_every, stop):
                    metrics |= lives.evaluate()
                probes = [name for name, every in intervals if is_due(every, stop)]
                if probes:
                    metrics |= lives.measure(probes)
                update = (round - 1) * schedule.updates + stop
                recorder.add(round, update, jax.device_get(metrics), lives.state.diverged)
                bar.show(round, update, metrics.get("train_return"), stop == schedule.updates)
                interrupts.check()
            at_round_end()
    return lives.state.learner.params


def _begin(runs: Run) -> Lives:
    return HostLives(runs) if isinstance(runs.env, HostEnv) else CompiledLives(runs)
