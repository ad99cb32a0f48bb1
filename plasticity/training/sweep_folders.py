"""Where the jobs of a sweep are: found by what they are, and not by their number."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plasticity.storage.run_dir import CHECKPOINTS, ROUNDS, flatten_config, read_config
from plasticity.storage.table import CONFIG
from plasticity.struct import SettingError
from plasticity.training.train import Job

_SEED = "seed"


class NumberedJob(NamedTuple):
    """A job of a sweep.

    Attributes:
      job: the job, in the folder of its number.
      folder_of: the folder that it would have with another number.
    """

    job: Job
    folder_of: Callable[[int], Path]


class _Held(NamedTuple):
    """What a folder holds: a seed, or a list of them, of some configuration for so many rounds."""

    folder: Path
    key: str
    seed: Any
    rounds: Any

    @property
    def checkpoint_kept(self) -> bool:
        return (self.folder / CHECKPOINTS).is_dir()

    def is_part_of(self, job: Job) -> bool:
        """Returns whether it is the job of some seeds, or can become it with more rounds."""
        if self.key != _key(job.config):
            return False
        rounds = flatten_config(job.config).get(ROUNDS)
        if self.rounds == rounds:
            return True
        in_place = self.folder == job.folder and self.seed == job.config.get(_SEED)
        return _is_fewer(self.rounds, rounds) and (in_place or self.checkpoint_kept)

    @property
    def seeds(self) -> set[Any]:
        return set(self.seed if isinstance(self.seed, list) else [self.seed])


def find_folders(
    jobs: Sequence[NumberedJob], sweep_dir: Path, first_free: int
) -> list[tuple[Job, ...]]:
    """Returns the jobs in the folders that hold them, and new ones in folders of their own.

    So a sweep can be given another value of a setting, which changes the numbers of its jobs. Of a
    job with a list of seeds, those that are held are found, and the others become a new job.

    Where the folder of a job's number holds something else, a new job gets the next number that is
    free; but only if others of these jobs are held, or else it is another sweep's folder, and the
    job keeps its number to be refused.

    Args:
      jobs: the jobs of a sweep.
      sweep_dir: the folder that their folders are in, which need not exist.
      first_free: a number that none of the jobs has, nor any larger one.

    Returns:
      For each of the jobs the jobs that it is divided into, mostly itself.

    Raises:
      SettingError: a job has some of the seeds of a folder, but not all.
    """
    found: list[tuple[Job, ...]] = [()] * len(jobs)
    missing: dict[int, Job] = {}
    taken: set[Path] = set()
    for number, (job, _) in enumerate(jobs):
        own = _read(job.folder)
        if own and own.is_part_of(job) and own.seed == job.config.get(_SEED):
            found[number] = (job,)
            taken.add(job.folder)
        else:
            missing[number] = job
    held: dict[str, list[_Held]] = {}
    if missing:
        for path in sorted(sweep_dir.rglob(CONFIG)):
            if path.parent not in taken and (content := _read(path.parent)):
                held.setdefault(content.key, []).append(content)
    for number, job in missing.items():
        alike = [one for one in held.get(_key(job.config), []) if one.folder not in taken]
        alike = [one for one in alike if one.is_part_of(job)]
        parts, rest = _divide(job, alike)
        found[number] = tuple(parts)
        taken |= {part.folder for part in parts}
        missing[number] = rest
    extends = bool(taken)
    for number, rest in missing.items():
        if not rest.runs:
            continue
        folder, folder_of = rest.folder, jobs[number].folder_of
        if extends and (folder in taken or (folder / CONFIG).exists()):
            for other in map(folder_of, itertools.count(first_free)):
                if other == folder or (other not in taken and not other.exists()):
                    folder = other
                    break
        found[number] += (rest._replace(folder=folder),)
        taken.add(folder)
    return found


def _divide(job: Job, held: Sequence[_Held]) -> tuple[list[Job], Job]:
    """Divides a job into those that folders hold, and the one of the seeds that remain."""
    runs = {run.seed: run for run in job.runs}
    parts = []
    for one in sorted(held, key=lambda one: -len(one.seeds)):
        common = one.seeds & runs.keys()
        if common and common != one.seeds:
            raise SettingError(
                _SEED,
                job.config.get(_SEED),
                f"must have all seeds of {one.folder}, or none: it holds {one.seed}",
            )
        if common:
            seeds = one.seed if isinstance(one.seed, list) else [one.seed]
            config = {**job.config, _SEED: one.seed}
            parts.append(Job(tuple(runs.pop(seed) for seed in seeds), one.folder, config))
    if not parts:
        return [], job
    rest = {**job.config, _SEED: list(runs)}
    return parts, job._replace(runs=tuple(runs.values()), config=rest)


def _read(folder: Path) -> _Held | None:
    """Returns what a folder holds; None if there is nothing to read."""
    if not (folder / CONFIG).is_file():
        return None
    try:
        config = read_config(folder / CONFIG)
    except SettingError:
        return None
    rounds = flatten_config(config).get(ROUNDS)
    return _Held(folder, _key(config), config.get(_SEED), rounds)


def _is_fewer(rounds: Any, others: Any) -> bool:
    return isinstance(rounds, int) and isinstance(others, int) and rounds < others


def _key(config: Mapping[str, Any]) -> str:
    """Returns what tells a configuration from others, but for its seeds and rounds."""
    settings = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in flatten_config(config).items()
        if key not in (_SEED, ROUNDS) and value is not None
    }
    return json.dumps(settings, sort_keys=True, default=str)
