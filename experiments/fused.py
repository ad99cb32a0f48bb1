"""Jobs that train together: those of equal structure as one program, in groups that fit memory."""

import json
import math
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import jax
import pandas as pd

from experiments.cli import Keeping, is_users, one_line
from plasticity import results
from plasticity.envs.base import CompiledEnv
from plasticity.results import table
from plasticity.training import Job, Progress, is_finished, train_jobs
from plasticity.training.arrangement import Arrangement
from plasticity.training.folder import CHECKPOINTS
from plasticity.training.lives import stack
from plasticity.training.memory import available, memory_of

STACKS = ".stacks"  # in a sweep's folder: what groups under way can be gone on with
_JOBS = "jobs.json"


class Group(NamedTuple):
    """Jobs that train as one program.

    Attributes:
      jobs: the jobs.
      place: where its checkpoints go; in the job's own folder if None.
    """

    jobs: tuple[Job, ...]
    place: Path | None = None

    @property
    def agents(self) -> int:
        """How many train."""
        return sum(len(job.runs) for job in self.jobs)

    @property
    def name(self) -> str:
        """What they have in common."""
        run = self.jobs[0].runs[0]
        return f"{run.env.name} {run.shift.name} {run.intervention.name}"

    @property
    def steps(self) -> int:
        """Environment steps of all of them together."""
        run = self.jobs[0].runs[0]
        return self.agents * run.schedule.rounds * run.schedule.updates * run.agent.batch_size

    @property
    def memory(self) -> int | None:
        """Bytes that it takes, estimated; None where environments live on the host."""
        run = self.jobs[0].runs[0]
        if not isinstance(run.env, CompiledEnv):
            return None
        return memory_of(run).of(self.agents, _at_once(self.agents))


def plan(
    jobs: Sequence[Job], sweep: Path, agents: int | None = None, here: bool = True
) -> list[Group]:
    """The groups in which unfinished jobs train.

    A group that has been under way stays as it is, for its checkpoints are of all its jobs; so
    does a job that has been trained alone.

    Args:
      jobs: of which some may be finished.
      sweep: the folder that theirs are in.
      agents: at most so many in a group. A job is not divided.
      here: whether they train on this machine, so that a group must fit in its memory.
    """
    groups = list(_under_way(jobs, sweep))
    taken = {job.folder for group in groups for job in group.jobs}
    stackable: dict[object, list[Job]] = {}
    for job in jobs:
        if job.folder in taken or is_finished(job):
            continue
        run = job.runs[0]
        alone = not isinstance(run.env, CompiledEnv) or (job.folder / CHECKPOINTS).exists()
        stackable.setdefault(job.folder if alone else jax.tree.structure(run), []).append(job)
    for alike in stackable.values():
        total = sum(len(job.runs) for job in alike)
        fitting = _fitting(alike[0], agents) if here else agents or total
        share = math.ceil(total / math.ceil(total / fitting))
        chunk: list[Job] = []
        for job in alike:
            if chunk and sum(len(one.runs) for one in chunk) + len(job.runs) > share:
                groups.append(_group(chunk, sweep))
                chunk = []
            chunk.append(job)
        groups.append(_group(chunk, sweep))
    return groups


def train_all(
    jobs: Sequence[Job],
    sweep: str | Path | None = None,
    agents: int | None = None,
    keeping: Keeping = Keeping(),  # noqa: B008
    elsewhere: Callable[[Sequence[Group]], Mapping[Path, Exception]] | None = None,
) -> list[float | Exception]:
    """Trains jobs, those of equal structure together, and draws a figure of each.

    Args:
      jobs: the jobs; those that are finished are left alone.
      sweep: the folder that theirs are in; if not given there is one job, which is no sweep.
      agents: see `plan`.
      keeping: what is kept while they train.
      elsewhere: has groups trained by other processes, and returns what went wrong, by the
        job's folder. If not given, they are trained one after the other in this process.

    Returns:
      The mean return over the lifetime of each job, or what it failed with.

    Raises:
      SettingError: a folder holds something else.
      KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    here = elsewhere is None
    _tidy(jobs, Path(sweep or "."))
    groups = plan(jobs, Path(sweep or "."), agents, here)
    if sweep is not None:
        _show(jobs, groups, here)
    try:
        failed = _train_here(groups, sweep, keeping) if elsewhere is None else elsewhere(groups)
    except KeyboardInterrupt:
        where = sweep or jobs[0].folder
        print(f"interrupted; the same command goes on with what is in {where}", file=sys.stderr)
        raise
    outcomes = [failed.get(job.folder) or _mean_return(job) for job in jobs]
    if failed and sweep is not None:
        print(f"{len(failed)} of {len(jobs)} jobs failed:", file=sys.stderr)
        for folder, why in failed.items():
            print(f"  {folder}: {one_line(why)}", file=sys.stderr)
    return outcomes


def _train_here(
    groups: Sequence[Group], sweep: str | Path | None, keeping: Keeping
) -> dict[Path, Exception]:
    """Trains groups, and returns what went wrong, by the job's folder."""
    failed: dict[Path, Exception] = {}
    began = time.monotonic()
    for number, group in enumerate(groups, 1):
        title = group.name if sweep is None else f"[{number}/{len(groups)}] {group.name}"
        try:
            _train(group, title, keeping)
        except Exception as error:
            if not is_users(error):
                traceback.print_exc()
            failed |= {job.folder: error for job in group.jobs}
        if later := groups[number:]:
            pace = sum(one.steps for one in groups[:number]) / (time.monotonic() - began)
            left = timedelta(seconds=round(sum(one.steps for one in later) / pace))
            print(f"{_count(len(later), 'program')} to go, about {left}", file=sys.stderr)
    return failed


def _train(group: Group, title: str, keeping: Keeping) -> None:
    if group.place is not None:
        with table.replacing(group.place / _JOBS) as temporary:
            temporary.write_text(json.dumps([job.folder.name for job in group.jobs]))
    runs = stack([run for job in group.jobs for run in job.runs])
    train_jobs(
        group.jobs,
        group.place,
        **keeping._asdict(),
        progress=Progress.of(title, runs),
    )
    # A process can map the programs of some thirty groups. They are still in the cache on disk.
    jax.clear_caches()
    for job in group.jobs:
        try:
            figure = results.overview(results.load(job.folder))
        except results.ResultsError as error:  # as when no episode has ended
            warnings.warn(f"{job.folder}: no figure: {error}", stacklevel=1)
        else:
            results.save(figure, job.folder / "figures/overview")


def _tidy(jobs: Sequence[Job], sweep: Path) -> None:
    """Removes checkpoints of finished jobs, which a process killed at the very end may leave."""
    finished = {job.folder.name for job in jobs if is_finished(job)}
    for job in jobs:
        if job.folder.name in finished:
            shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)
    for listed in (sweep / STACKS).glob(f"*/{_JOBS}"):
        if set(json.loads(listed.read_text())) <= finished:
            shutil.rmtree(listed.parent, ignore_errors=True)


def _under_way(jobs: Sequence[Job], sweep: Path) -> Iterator[Group]:
    """The groups that have checkpoints, of which `_tidy` has left those with unfinished jobs."""
    by_name = {job.folder.name: job for job in jobs}
    for listed in sorted((sweep / STACKS).glob(f"*/{_JOBS}")):
        names = json.loads(listed.read_text())
        if not set(names) <= by_name.keys():
            continue
        yield Group(tuple(by_name[name] for name in names), listed.parent)


def _group(jobs: Sequence[Job], sweep: Path) -> Group:
    if len(jobs) == 1:
        return Group(tuple(jobs))
    return Group(tuple(jobs), sweep / STACKS / jobs[0].folder.name)


def _fitting(job: Job, agents: int | None) -> int:
    """How many agents like those of a job go into one group."""
    run = job.runs[0]
    if not isinstance(run.env, CompiledEnv):
        return len(job.runs)
    memory, room = memory_of(run), available()
    fitting = 1
    while fitting < (agents or 2**16) and memory.of(2 * fitting, _at_once(2 * fitting)) <= room:
        fitting *= 2
    return min(fitting, agents or fitting)


def _at_once(agents: int) -> int:
    """How many of so many agents this machine computes at the same time, on one device."""
    arrangement = Arrangement.of(agents)
    share = math.ceil(agents / len(arrangement.devices))
    on_cpu = arrangement.each == "loop"
    return len(arrangement.devices) if on_cpu else share


def _show(jobs: Sequence[Job], groups: Sequence[Group], here: bool) -> None:
    """Says what will be trained, and how; what memory it takes, if it takes this machine's."""
    finished = len(jobs) - sum(len(group.jobs) for group in groups)
    print(
        f"{_count(len(jobs), 'job')}: {_count(len(groups), 'program')} to train"
        + f", {finished} finished already" * (finished > 0)
    )
    for number, group in enumerate(groups, 1):
        memory = group.memory if here else None
        print(
            f"  [{number}/{len(groups)}] {group.name}: {_count(len(group.jobs), 'job')}, "
            f"{_count(group.agents, 'agent')}"
            + (f", about {math.ceil(memory / 1e6):,} MB" if memory is not None else ""),
            flush=True,
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _mean_return(job: Job) -> float:
    """The mean over a job's updates and seeds of the mean return of the episodes that ended."""
    frame: pd.DataFrame = results.load(job.folder)
    return float(frame.loc[frame["metric"] == "train_return", "value"].mean())
