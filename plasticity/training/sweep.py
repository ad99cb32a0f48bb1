"""Trains many jobs in few programs: those that can be fused, in groups that fit memory."""

import contextlib
import hashlib
import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd

from plasticity.envs.base import CompiledEnv
from plasticity.storage import run_dir, table
from plasticity.storage.run_dir import CHECKPOINTS, check_folder, read_meta
from plasticity.storage.tracking import Tracker
from plasticity.struct import TARGET, Range, SettingError, check, check_kind, to_config
from plasticity.training.fusion import FusionKey, fuse, fusion_key
from plasticity.training.initial_params import load_initial_params
from plasticity.training.memory_estimate import available, check_memory, memory_of
from plasticity.training.placement import Placement
from plasticity.training.run import Run, check_run, stack
from plasticity.training.train import (
    CHECKPOINT_MINUTES,
    Job,
    make_progress,
    train_in_memory,
    train_jobs,
)

GROUPS_DIR = ".groups"  # in a sweep's folder: the checkpoints of groups that are training
_JOBS = "jobs.json"


class Grouping(NamedTuple):
    """How jobs are grouped into programs.

    Attributes:
      max_agents: the largest number of runs in a program; as many as fit in memory if not given.
        A job is not divided.
      exact: whether jobs train together only where that gives bitwise the same results as alone;
        if not given, on CPUs. See `fusion_key`.
    """

    max_agents: int | None = None
    exact: bool | None = None


class TrainOptions(NamedTuple):
    """What is kept of jobs while they train.

    Attributes:
      checkpoint_minutes: as in `plasticity.train`.
      keep_checkpoint: as in `plasticity.train`.
      trackers: as in `plasticity.train`.
    """

    checkpoint_minutes: float = CHECKPOINT_MINUTES
    keep_checkpoint: bool = False
    trackers: tuple[Tracker, ...] = ()

    def check(self) -> None:
        """Raises `SettingError` if one cannot be used, or a tracker's package is missing."""
        minutes, allowed = self.checkpoint_minutes, Range(float, ge=0)
        if minutes not in allowed:
            raise SettingError("checkpoint_minutes", minutes, f"must be {allowed}")
        if not isinstance(self.keep_checkpoint, bool):
            raise SettingError("keep_checkpoint", self.keep_checkpoint, "must be true or false")
        _check_list(self.trackers, "trackers", "must be a list of trackers")
        for number, tracker in enumerate(self.trackers):
            key = f"trackers[{number}]"
            check_kind(tracker, Tracker, key)
            check(tracker, key)
            tracker.check(key)


def train(
    runs: Run | Iterable[Run],
    folder: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    keep_checkpoint: bool = False,
    trackers: Sequence[Tracker] = (),
    exact: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Trains runs of any structures, and returns their results table.

    Runs that differ in numbers only train together, as one program, and so do runs that differ in
    their shifts, or in interventions that act between updates alone. Called again with the same
    folder it resumes from the last checkpoint there, whatever ended the process, with the same
    table and parameters; finished runs are not trained again.

    Args:
      runs: one run, or several.
      folder: the run directory for results and checkpoints; nothing is written if not given. Runs
        of several structures get a run directory each in it, named like `0_layer_norm`.
      config: the content of `config.yaml` in the folder, for runs of one structure; the runs' own
        settings if not given.
      names: the table's `run` column, for each run; the run directory's name, or the
        intervention's, if not given. Runs that share a seed and a structure need names.
      checkpoint_minutes: minutes between two checkpoints, besides those at the ends of rounds; 0
        for these alone. Host environments resume from the end of a round only.
      keep_checkpoint: whether the last checkpoint is kept when the runs are finished, so that the
        same runs with more rounds go on from there. Results are as if they had had these from the
        beginning.
      trackers: experiment trackers; only where there is a folder.
      exact: whether runs train together only where that gives bitwise the same results as alone;
        if not given, on CPUs. Otherwise results may differ by rounding.
      progress: whether to show the plan, where there are several structures, and progress on
        standard error.

    Returns:
      The table, as `plasticity.results.load(folder)` gives it.

    Raises:
      SettingError: a setting or an argument cannot be used, the folder holds anything else, or its
        checkpoint is of other versions. Nothing has been compiled or written then.
      ValueError: there are no runs, two of one structure share name and seed, or a seed where
        there are trackers; or `config` is given for runs of several structures.
      KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR2, once the current interval of updates
        is complete and, where possible, a checkpoint of it is written.
    """
    if not isinstance(runs, Iterable) and not isinstance(runs, Run):
        raise SettingError("runs", runs, "must be a Run, or a list of them")
    runs = (runs,) if isinstance(runs, Run) else tuple(runs)
    if not runs:
        raise ValueError("there are no runs")
    for number, run in enumerate(runs):
        check_kind(run, Run, f"runs[{number}]")
        check_run(run)
    if names is not None:
        _check_names(names, len(runs))
    if folder is not None:
        check_folder(folder)
    if config is not None and not (isinstance(config, Mapping) and _is_plain(config)):
        raise SettingError("config", config, "must hold settings by name, in plain containers")
    TrainOptions(checkpoint_minutes, keep_checkpoint, trackers).check()  # type: ignore[arg-type]
    if trackers and folder is None:
        raise SettingError("trackers", trackers, "must not be given without a folder")
    if exact is not None and not isinstance(exact, bool):
        raise SettingError("exact", exact, "must be True, False or None")
    jobs = _make_jobs(runs, folder, config, names)
    for job in jobs:
        if trackers and len({run.seed for run in job.runs}) < len(job.runs):
            raise ValueError("runs that share a seed cannot be tracked in one folder")
        if folder is None or read_meta(job.folder).get("status") != "finished":
            check_memory(job.runs)
            load_initial_params(job.runs)  # refuses what cannot be used
    if folder is None:
        groups = [Group(tuple(some)) for some in _divide(jobs, partial(_key, exact=exact))]
    else:
        remove_leftovers(jobs, Path(folder))
        groups = plan(jobs, Path(folder), Grouping(exact=exact))
    several = len(jobs) > 1
    if progress and several:
        print(*describe_plan(jobs, groups, exact=exact), sep="\n", file=sys.stderr)
    elif progress and not groups:
        print(f"nothing to train: {folder} is finished", file=sys.stderr)
    if folder is None:
        frames = list(_train_in_memory(groups, several, progress))
    else:
        options = TrainOptions(checkpoint_minutes, keep_checkpoint, tuple(trackers))
        train_groups(
            groups, Path(folder), options, numbered=several, progress=progress, on_error=_raise
        )
        remove_groups_dir(Path(folder))
        frames = [table.read(job.folder / table.TABLE) for job in jobs]
    return table.sort_rows(table.concat(frames))


class Group(NamedTuple):
    """Jobs that train as one program.

    Attributes:
      jobs: the jobs.
      checkpoint_dir: where its checkpoints go; in the job's own folder if None.
    """

    jobs: tuple[Job, ...]
    checkpoint_dir: Path | None = None

    @property
    def agents(self) -> int:
        """Number of runs."""
        return sum(len(job.runs) for job in self.jobs)

    @property
    def name(self) -> str:
        """The environments, shifts and interventions of the jobs, in short."""
        runs = [job.runs[0] for job in self.jobs]
        columns = (
            [run.env.name for run in runs],
            [run.shift.name for run in runs],
            [run.intervention.name for run in runs],
        )
        return " ".join(" | ".join(dict.fromkeys(column)) for column in columns)

    @property
    def env_steps(self) -> int:
        """Environment steps of all runs together."""
        return sum(
            len(job.info.seeds) * job.info.updates * job.info.batch_size for job in self.jobs
        )

    @property
    def memory(self) -> int | None:
        """Estimated memory in bytes; None where environments live on the host."""
        run = fuse([job.runs[0] for job in self.jobs])[0]
        if not isinstance(run.env, CompiledEnv):
            return None
        return memory_of(run).of(self.agents, _at_once(self.agents))


def plan(
    jobs: Sequence[Job],
    sweep_dir: Path,
    grouping: Grouping = Grouping(),  # noqa: B008
    local: bool = True,
) -> list[Group]:
    """Groups the unfinished jobs: those of equal `fusion_key`, as far as memory permits.

    A group that has a checkpoint stays as it is, for that is of all its jobs; so does a job that
    has been trained alone.

    Args:
      jobs: jobs, of which some may be finished.
      sweep_dir: the folder that their folders are in.
      grouping: how they are grouped.
      local: whether they train on this machine, so that a group must fit in its memory.
    """
    groups = list(_resumable(jobs, sweep_dir))
    taken = {job.folder for group in groups for job in group.jobs}

    def key(job: Job) -> Hashable:
        return job.folder if (job.folder / CHECKPOINTS).exists() else _key(job, grouping.exact)

    missing = [job for job in jobs if job.folder not in taken and not job.is_finished()]
    for some in _divide(missing, key, grouping.max_agents, local):
        groups.append(_group(some, sweep_dir))
    return groups


def describe_plan(
    jobs: Sequence[Job], groups: Sequence[Group], local: bool = True, exact: bool | None = None
) -> Iterator[str]:
    """Yields lines that say what will be trained, and with how much memory of this machine.

    Args:
      jobs: jobs, of which some may be finished.
      groups: what `plan` returns of them.
      local: whether they train on this machine.
      exact: see `fusion_key`.
    """
    finished = len(jobs) - sum(len(group.jobs) for group in groups)
    yield f"{count(len(jobs), 'job')}: {count(len(groups), 'program')} to train" + (
        f", {finished} finished already" * (finished > 0)
        + f"; one after another on {_devices()}" * (local and len(groups) > 1)
    )
    for number, group in enumerate(groups, 1):
        memory = group.memory if local else None
        yield (
            f"  [{number}/{len(groups)}] {group.name}: {count(len(group.jobs), 'job')}, "
            f"{count(group.agents, 'agent')}"
        ) + (f", about {math.ceil(memory / 1e6):,} MB" if memory is not None else "")
    if reasons := _differences(groups, exact):
        yield f"  programs differ in {', '.join(reasons)}"


def train_groups(
    groups: Sequence[Group],
    sweep_dir: Path,
    options: TrainOptions = TrainOptions(),  # noqa: B008
    *,
    numbered: bool = True,
    progress: bool = True,
    on_trained: Callable[[Group], None] = lambda group: None,
    on_error: Callable[[Exception], None] = lambda error: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[Path, Exception]:
    """Trains groups in order, and goes on with the next one where one fails.

    Args:
      groups: the groups.
      sweep_dir: the folder that the jobs' folders are in.
      options: what is kept while they train.
      numbered: whether progress shows the number of the group.
      progress: whether progress is shown.
      on_trained: called with each group that has been trained.
      on_error: called with each error.
      say: gets a line with the remaining time after each group but the last.

    Returns:
      The error of each job that failed, by its folder.
    """
    failed: dict[Path, Exception] = {}
    began = time.monotonic()
    for number, group in enumerate(groups, 1):
        title = f"[{number}/{len(groups)}] {group.name}" if numbered else group.name
        try:
            if group.checkpoint_dir is not None:
                with table.replacing(group.checkpoint_dir / _JOBS) as temporary:
                    temporary.write_text(json.dumps([_id(job, sweep_dir) for job in group.jobs]))
            runs = stack(fuse([run for job in group.jobs for run in job.runs]))
            train_jobs(
                group.jobs,
                group.checkpoint_dir,
                **options._asdict(),
                progress=make_progress(runs, title, progress),
            )
            on_trained(group)
        except Exception as error:
            on_error(error)
            failed |= {job.folder: error for job in group.jobs}
        if later := groups[number:]:
            # A process can map the programs of some thirty groups. They stay in the disk cache.
            jax.clear_caches()
            pace = sum(one.env_steps for one in groups[:number]) / (time.monotonic() - began)
            remaining = sum(one.env_steps for one in later) / pace
            say(f"{count(len(later), 'program')} to go, about {_duration(remaining)}")
    return failed


def remove_leftovers(jobs: Sequence[Job], sweep_dir: Path) -> None:
    """Removes what a process killed at the very end may leave of finished jobs, as checkpoints."""
    finished = {_id(job, sweep_dir) for job in jobs if job.is_finished()}
    for job in jobs:
        if _id(job, sweep_dir) in finished:
            run_dir.remove_leftovers(job.folder)
    for folder, ids in _listed_groups(sweep_dir):
        if set(ids) <= finished:
            shutil.rmtree(folder, ignore_errors=True)


def remove_groups_dir(sweep_dir: Path) -> None:
    """Removes the folder of groups' checkpoints, unless there are some to resume from."""
    with contextlib.suppress(OSError):
        (sweep_dir / GROUPS_DIR).rmdir()


def count(number: int, noun: str) -> str:
    """Returns `1 job`, `2 jobs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _make_jobs(
    runs: Sequence[Run],
    folder: str | Path | None,
    config: Mapping[str, Any] | None,
    names: Sequence[str] | None,
) -> list[Job]:
    """Makes a job of all runs of each structure."""
    by_structure: dict[Any, list[int]] = {}
    for number, run in enumerate(runs):
        by_structure.setdefault(jax.tree.structure(run), []).append(number)
    if len(by_structure) > 1 and config is not None:
        raise ValueError(f"one config for runs of {len(by_structure)} structures")
    jobs = []
    for number, indices in enumerate(by_structure.values()):
        some = tuple(runs[i] for i in indices)
        method = some[0].intervention.name
        place = Path(folder or "") / (f"{number}_{method}" if len(by_structure) > 1 else "")
        name = method if folder is None else place.resolve().name
        labels = tuple(name if names is None else names[i] for i in indices)
        if len({(label, run.seed) for label, run in zip(labels, some, strict=True)}) < len(some):
            raise ValueError("runs that share a seed must have names of their own: see `names`")
        jobs.append(Job(some, place, config or _config_of(some), labels))
    return jobs


def _config_of(runs: Sequence[Run]) -> Mapping[str, Any]:
    config = to_config(runs[0], runs)
    del config[TARGET]
    return config


def _train_in_memory(
    groups: Sequence[Group], numbered: bool, progress: bool
) -> Iterator[pd.DataFrame]:
    """Trains groups without writing anything. Yields the results table of each."""
    for number, group in enumerate(groups, 1):
        runs = [run for job in group.jobs for run in job.runs]
        names = [name for job in group.jobs for name in job.names]
        title = f"[{number}/{len(groups)}] {group.name}" if numbered else group.name
        yield train_in_memory(runs, names, make_progress(stack(fuse(runs)), title, progress))


def _raise(error: Exception) -> None:
    raise error


def _check_names(names: Sequence[str], num_runs: int) -> None:
    """Raises `SettingError` unless there is a name for each run."""
    _check_list(names, "names", "must be a list of names")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise SettingError(f"names[{number}]", name, "must be a name")
    if len(names) != num_runs:
        raise SettingError("names", names, f"must be as many as there are runs, {num_runs}")


def _check_list(value: object, key: str, allowed: str) -> None:
    """Raises `SettingError` unless a value is a sequence, and no string."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise SettingError(key, value, allowed)


def _is_plain(node: object) -> bool:
    """Returns whether a configuration is made of plain containers, numbers and strings alone."""
    if isinstance(node, Mapping):
        return all(isinstance(name, str) for name in node) and all(map(_is_plain, node.values()))
    if isinstance(node, list | tuple):
        return all(map(_is_plain, node))
    return node is None or isinstance(node, bool | int | float | str)


def _id(job: Job, sweep_dir: Path) -> str:
    """Returns the job's folder relative to the sweep's, which tells it from all other jobs."""
    folder, root = job.folder.absolute(), sweep_dir.absolute()
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.as_posix()


def _devices() -> str:
    """Returns the devices of this machine, as `1 GPU`."""
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    return count(len(devices), "CPU core" if on_cpu else devices[0].platform.upper())


def _differences(groups: Sequence[Group], exact: bool | None) -> list[str]:
    """Returns why groups do not train as one program, in words."""
    runs = [group.jobs[0].runs[0] for group in groups]
    compiled = [run for run in runs if isinstance(run.env, CompiledEnv)]
    keys = [fusion_key(run, exact) for run in compiled]
    reasons = [
        name.replace("_", " ")
        for name, values in zip(FusionKey._fields, zip(*keys, strict=True), strict=False)
        if len(set(values)) > 1
    ]
    if len(set(keys)) < len(keys):
        reasons.append("jobs, for memory or a checkpoint keeps them apart")
    if len(compiled) < len(runs) and len(runs) > 1:
        reasons.append("jobs, for environments on the host train alone")
    return reasons


def _resumable(jobs: Sequence[Job], sweep_dir: Path) -> Iterator[Group]:
    """Yields the groups that have checkpoints, all of whose jobs are among those given."""
    by_id = {_id(job, sweep_dir): job for job in jobs}
    for folder, ids in _listed_groups(sweep_dir):
        if set(ids) <= by_id.keys():
            yield Group(tuple(by_id[one] for one in ids), folder)


def _listed_groups(sweep_dir: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields the checkpoint folder of each group that has begun, and the ids of its jobs."""
    for listed in sorted((sweep_dir / GROUPS_DIR).glob(f"*/{_JOBS}")):
        try:
            ids = json.loads(listed.read_text())
        except (OSError, ValueError):
            ids = None
        if isinstance(ids, list) and ids and all(isinstance(one, str) for one in ids):
            yield listed.parent, ids
        else:
            warnings.warn(
                f"{listed}: cannot be read; its jobs are resumed only if they make the same group",
                stacklevel=1,
            )


def _key(job: Job, exact: bool | None) -> Hashable:
    """Returns what jobs must have in common to train as one program."""
    run = job.runs[0]
    return fusion_key(run, exact) if isinstance(run.env, CompiledEnv) else job.folder


def _divide(
    jobs: Sequence[Job],
    key: Callable[[Job], Hashable],
    max_agents: int | None = None,
    local: bool = True,
) -> Iterator[list[Job]]:
    """Yields jobs of equal key, at most as many as `plan` says."""
    by_key: dict[Hashable, list[Job]] = {}
    for job in jobs:
        by_key.setdefault(key(job), []).append(job)
    for fusable in by_key.values():
        if local:
            check_memory(max((job.runs for job in fusable), key=len))
        if len(fusable) == 1:
            yield fusable
            continue
        total = sum(len(job.runs) for job in fusable)
        fitting = _fitting(fusable, max_agents) if local else max_agents or total
        share = math.ceil(total / math.ceil(total / fitting))
        chunk: list[Job] = []
        for job in fusable:
            if chunk and sum(len(one.runs) for one in chunk) + len(job.runs) > share:
                yield chunk
                chunk = []
            chunk.append(job)
        yield chunk


def _group(jobs: Sequence[Job], sweep_dir: Path) -> Group:
    if len(jobs) == 1:
        return Group(tuple(jobs))
    first = _id(jobs[0], sweep_dir)
    digest = hashlib.sha256(first.encode()).hexdigest()[:8]
    return Group(tuple(jobs), sweep_dir / GROUPS_DIR / f"{jobs[0].folder.name}-{digest}")


def _fitting(jobs: Sequence[Job], max_agents: int | None) -> int:
    """Returns how many agents like those of the jobs go into one group."""
    run = fuse([job.runs[0] for job in jobs])[0]
    if not isinstance(run.env, CompiledEnv):
        return len(jobs[0].runs)
    memory, room = memory_of(run), available()
    fitting = 1
    while fitting < (max_agents or 2**16) and memory.of(2 * fitting, _at_once(2 * fitting)) <= room:
        fitting *= 2
    return min(fitting, max_agents or fitting)


def _at_once(agents: int) -> int:
    """Returns how many of so many agents a device of this machine computes at the same time."""
    placement = Placement.of(agents)
    on_cpu = placement.mode == "loop"
    devices = len(placement.devices)
    return devices if on_cpu else math.ceil(agents / devices)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
