"""Packed results of a study, from which it goes on.

A study of several days is made on several machines: each job is packed when it is finished, into a
folder of its own with a small table and its provenance (see `pack`), and what is packed already is
not trained again.
"""

import functools
import json
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.juliani_ash_2024.pack import PROVENANCE, RUN_KEYS, pack_folders
from plasticity import results
from plasticity.config import from_config
from plasticity.renamed import rename_config
from plasticity.storage.errors import writing
from plasticity.storage.run_dir import check_folder, flatten_config, versions
from plasticity.struct import SettingError, to_config
from plasticity.training import Job
from plasticity.training.run import Run

_ROOT = Path(__file__).parents[2]
_SOURCE = "plasticity"  # what results depend on, of all that a commit has
_RENAMED = {"plasticity": "plasticity-rl"}  # packages


class PackedJob(NamedTuple):
    """A packed job, as far as it must be known to go on from it.

    Attributes:
      name: its name in the provenance.
      run: its first run.
      seeds: its seeds.
      origin: what may make a difference beside the settings: versions of packages, the device, and
        the commit.
    """

    name: str
    run: Run
    seeds: tuple[int, ...]
    origin: Mapping[str, str]

    @property
    def condition(self) -> tuple[str, str, str]:
        """The env, shift and intervention in the results table."""
        return self.run.env.name, self.run.shift.name, self.run.intervention.name


def check_packed_folder(folder: Path) -> None:
    """Raises `SettingError` if something cannot be the folder of packed results."""
    check_folder(str(folder), "--from")
    if folder.exists() and not folder.is_dir():
        raise SettingError(
            "--from", str(folder), "must be a folder of packed results, or a new one"
        )


def read_packed(folder: Path) -> list[PackedJob]:
    """Reads what the packed jobs in a folder are, at any depth; none if it does not exist.

    Hidden folders are left out, as `results.load` does: a process that was killed may leave them.

    Raises:
      SettingError: it is a file.
      ResultsError: a provenance cannot be read, or a table has none.
    """
    check_packed_folder(folder)
    for path in _find(folder, "*.parquet"):
        if not (path.parent / PROVENANCE).is_file():
            raise results.ResultsError(
                f"{path}: has no {PROVENANCE} beside it; expected results that were packed"
            )
    return [job for path in _find(folder, PROVENANCE) for job in _read(path)]


def not_packed(jobs: Sequence[Job], packed: Sequence[PackedJob], folder: Path) -> list[Job]:
    """Returns the jobs without the seeds that are packed; those of which none is left out.

    A job that is under way in its folder is left as it is, for a part of it cannot be resumed.

    Args:
      jobs: jobs of a study.
      packed: the packed jobs.
      folder: the folder that it is in, for messages.

    Raises:
      SettingError: a packed job of the same env, shift and intervention has other settings.
    """
    rest = []
    for job in jobs:
        seeds = _packed_seeds(job, packed, folder)
        runs = tuple(run for run in job.runs if run.seed not in seeds)
        if runs == job.runs or (runs and job.folder.exists()):
            rest.append(job)
        elif runs:
            config = {**job.config, "seed": [run.seed for run in runs]}
            rest.append(job._replace(runs=runs, config=config))
    return rest


def pack_jobs(jobs: Iterable[Job], folder: Path) -> None:
    """Packs those of the jobs that are finished, but for the seeds that are packed already.

    Each gets a folder of its own, which is there as a whole or not at all.

    Args:
      jobs: jobs, finished or not.
      folder: the folder of packed results.

    Raises:
      SettingError: see `not_packed`.
      StorageError: it cannot be written.
    """
    packed = read_packed(folder)
    for job in jobs:
        missing = {run.seed for run in job.runs} - _packed_seeds(job, packed, folder)
        if not missing or not job.is_finished():
            continue
        run, seeds = job.runs[0], sorted(missing)
        parts = (run.env.name, run.shift.name, run.intervention.name, _ranges(seeds))
        name = "_".join(parts).replace("/", "_")
        temporary = folder / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        pack_folders([job.folder], temporary, seeds=seeds)
        with writing(folder / name):
            temporary.replace(folder / name)


def warn_of_origins(packed: Sequence[PackedJob], to_train: int, folder: Path) -> None:
    """Warns of jobs that were not trained with the versions, device and source of the others.

    Args:
      packed: the packed jobs.
      to_train: how many runs are to be trained, with what there is here; if none are, packed jobs
        are compared with one another.
      folder: the folder that they are in.
    """
    if not packed:
        return
    expected = present_origin() if to_train else packed[0].origin
    differing: dict[str, list[str]] = {}
    for job in packed:
        found = [
            f"{name} {value} ({'here' if to_train else 'others'} {expected[name]})"
            for name, value in job.origin.items()
            if expected.get(name, value) != value and not _same_source(name, value)
        ]
        if found:
            differing.setdefault(", ".join(found), []).append(job.name)
    for differences, names in differing.items():
        warnings.warn(
            f"{folder}: {len(names)} of {len(packed)} packed jobs are of other versions, from "
            f"{names[0]} on: {differences}; results of both are in the figures and claims",
            stacklevel=2,
        )


def present_origin() -> dict[str, str]:
    """Returns what there is here of what `PackedJob.origin` has."""
    devices = sorted({str(device.device_kind) for device in jax.local_devices()})
    present = {"python": platform.python_version(), **versions()}
    return _origin(present, devices, _git("rev-parse", "--short=12", "HEAD"))


def _find(folder: Path, pattern: str) -> list[Path]:
    """Finds the files of a pattern that are in no hidden folder, sorted."""
    found = sorted(folder.rglob(pattern))
    return [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _read(path: Path) -> list[PackedJob]:
    """Reads the packed jobs of one provenance."""
    try:
        provenance = json.loads(path.read_text())
        jobs = []
        for name, own in provenance["runs"].items():
            about = {**provenance, **own}
            config = {**provenance["config"], **{key: own[key] for key in RUN_KEYS}}
            runs = from_config(rename_config(config, warn=False))
            origin = _origin(about["versions"], about["device"], about["commit"])
            seeds = tuple(int(run.seed) for run in runs)
            jobs.append(PackedJob(name, runs[0], seeds, origin))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
        raise results.ResultsError(
            f"{path}: cannot be read ({reason}); expected the provenance of packed results"
        ) from error
    return jobs


def _packed_seeds(job: Job, packed: Sequence[PackedJob], folder: Path) -> set[int]:
    """Returns the seeds of a job's settings that are packed.

    Raises:
      SettingError: a packed job of the same env, shift and intervention has other settings.
    """
    run = job.runs[0]
    condition = (run.env.name, run.shift.name, run.intervention.name)
    seeds: set[int] = set()
    for one in packed:
        if one.condition != condition:
            continue
        held, wanted = _settings(one.run), _settings(run)
        for key in sorted(held.keys() | wanted.keys()):
            if held.get(key) != wanted.get(key):
                raise SettingError(
                    key,
                    wanted.get(key),
                    f"must be {held.get(key)}, as in {one.name} of {folder}: results of one method "
                    "have the same settings",
                )
        seeds.update(one.seeds)
    return seeds


def _settings(run: Run) -> dict[str, Any]:
    """Returns all settings of a run but its seed, by dotted key."""
    return {
        key: float(value) if type(value) is int else value
        for key, value in flatten_config(to_config(run)).items()
        if key != "seed"
    }


def _origin(
    versions: Mapping[str, str | None], devices: Iterable[str], commit: str | None
) -> dict[str, str]:
    known = {_RENAMED.get(name, name): version for name, version in versions.items() if version}
    origin = {**known, "device": ", ".join(devices)}
    return origin if commit is None else {**origin, "source": commit}


def _same_source(name: str, commit: str) -> bool:
    """Returns whether the package's source is the same as in a commit; commits differ in more."""
    return name == "source" and not commit.endswith("+") and _git_same(commit)


@functools.cache
def _git_same(commit: str) -> bool:
    return _git("diff", "--name-only", commit, "--", _SOURCE) == ""


def _git(*arguments: str) -> str | None:
    """Returns what a git command prints; None if it fails."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _ranges(seeds: Sequence[int]) -> str:
    """Formats seeds in order: `0-5_8`."""
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    return "_".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)
