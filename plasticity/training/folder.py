"""A run's folder: what is in it, and what its `meta.json` says of how it came about."""

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
import pandas as pd
from omegaconf import OmegaConf

from plasticity.results import table
from plasticity.spec import SettingError
from plasticity.training.run import Run

PARAMS = "params"
CHECKPOINTS = "checkpoints"
_PACKAGES = (
    *("plasticity", "jax", "jaxlib", "flax", "optax", "numpy"),
    *("gymnasium", "minigrid", "gymnax", "navix", "envpool"),
)


class Job(NamedTuple):
    """Runs whose results go into one folder.

    Attributes:
      runs: that differ in numbers only, such as seeds.
      folder: where their results go.
      config: what `config.yaml` says of them, in plain containers.
    """

    runs: tuple[Run, ...]
    folder: Path
    config: Mapping[str, Any]


def is_finished(job: Job) -> bool:
    """Whether the job's folder holds it already, finished.

    Raises:
      SettingError: the folder cannot be made or written, or holds anything else than this job,
        finished or under way.
    """
    folder = job.folder
    whole = folder.absolute()
    there = next(place for place in (whole, *whole.parents) if place.exists())
    if not there.is_dir():
        raise SettingError("folder", str(folder), f"must be a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingError("folder", str(folder), f"must be writable, but {there} is not")
    if not (folder / table.CONFIG).exists():
        for name in (table.META, table.TABLE, PARAMS):
            if (folder / name).exists():
                raise SettingError("folder", str(folder), f"must hold no other run; has {name}")
        return False
    held = _flat(_read_config(folder / table.CONFIG))
    for key, value in _flat(job.config).items():
        if key not in held or held[key] != value:
            has = f"{key}={held[key]!r}" if key in held else f"no {key}"
            raise SettingError("folder", str(folder), f"must hold no other run; has one with {has}")
    if more := held.keys() - _flat(job.config).keys():
        raise SettingError("folder", str(folder), f"must hold no other run; has {min(more)}")
    return read_meta(folder).get("status") == "finished"


def read_meta(folder: Path) -> dict[str, Any]:
    """What `meta.json` in a run's folder says; empty if it is not there or cannot be read."""
    try:
        meta = json.loads((folder / table.META).read_text())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def load_params(path: str | Path) -> Any:
    """The final parameters of a run's folder; every array has a leading axis of its seeds.

    Raises:
      ResultsError: there are none.
    """
    params = (Path(path) / PARAMS).resolve()
    if not params.is_dir():
        raise table.ResultsError(f"{params}: does not exist; expected final parameters")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(params)


class RunFolder:
    """The folder of a job under way. Leaving the block writes how that ended.

    Args:
      job: the job, new or unfinished.
      together: how many runs train in its program, those of other jobs included.
      update: PPO updates that have been completed already.
    """

    def __init__(self, job: Job, together: int, update: int = 0) -> None:
        self._job = job
        run = job.runs[0]
        updates = run.schedule.rounds * run.schedule.updates
        self._meta = {
            "seeds": [run.seed for run in job.runs],
            "updates": updates,
            "env_steps": updates * run.agent.batch_size,
            "trained_together": together,
            "versions": {"python": platform.python_version(), **versions()},
            "commit": _commit(),
        }
        self._session = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_update": update,
            "device": sorted({str(device.device_kind) for device in jax.local_devices()}),
            "platform": jax.default_backend(),
            "machine": f"{platform.system()} {platform.machine()}",
        }

    def __enter__(self) -> Self:
        self._clock = time.perf_counter()
        self._earlier = read_meta(self._job.folder).get("sessions", [])
        with table.replacing(self._job.folder / table.CONFIG) as temporary:
            OmegaConf.save(OmegaConf.create(dict(self._job.config)), temporary)
        self._describe("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._describe("finished")
            return
        with contextlib.suppress(OSError):  # which is likely what `error` says
            self._describe("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def write_table(self, frame: pd.DataFrame) -> None:
        """Replaces the table."""
        table.write(frame, self._job.folder / table.TABLE)

    def write_params(self, params: Any) -> None:
        """Writes the final parameters, as host arrays: a reader may lack the device."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((self._job.folder / PARAMS).resolve(), params, force=True)

    def _describe(self, status: str) -> None:
        session = {**self._session, "wall_seconds": round(time.perf_counter() - self._clock, 1)}
        described = {"status": status, **self._meta, "sessions": [*self._earlier, session]}
        with table.replacing(self._job.folder / table.META) as temporary:
            temporary.write_text(json.dumps(described, indent=2) + "\n")


def versions() -> dict[str, str | None]:
    """The versions of the packages that a run depends on."""
    return {name: _version(name) for name in _PACKAGES}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except Exception:  # of YAML's and OmegaConf's many kinds
        config = None
    if not isinstance(config, dict):
        raise SettingError("folder", str(path.parent), f"must hold no other run; has {path.name}")
    return {str(key): value for key, value in config.items()}


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a configuration by their dotted keys; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source that runs, with "+" if it was changed since; None if unknown."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        described = [*git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        answer = subprocess.run(described, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
