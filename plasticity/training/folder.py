"""A run's folder: what is in it, and what its `meta.json` says of how it came about."""

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
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from omegaconf import OmegaConf

from plasticity.results import table
from plasticity.spec import SettingError
from plasticity.training.lives import seeds_of
from plasticity.training.recorder import Recorder
from plasticity.training.run import Run

PARAMS = "params"
_PACKAGES = ("plasticity", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "minigrid")


def check_free(path: Path) -> None:
    """Raises `SettingError` if the folder cannot be made or written, or holds a run already."""
    whole = path.absolute()
    there = next(place for place in (whole, *whole.parents) if place.exists())
    if not there.is_dir():
        raise SettingError("folder", str(path), f"must be a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingError("folder", str(path), f"must be writable, but {there} is not")
    for name in (table.META, table.CONFIG, table.TABLE, PARAMS):
        if (path / name).exists():
            raise SettingError("folder", str(path), f"must not hold a run already; has {name}")


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
    """The folder of a run under way. Leaving the block writes how the run ended.

    Args:
      path: the folder, which must not hold a run.
      runs: the stack of runs, [S].
      config: what goes into `config.yaml`.
    """

    def __init__(self, path: Path, runs: Run, config: Mapping[str, Any]) -> None:
        self._path = path
        self._config = config
        self._meta = {
            "seeds": seeds_of(runs),
            "updates": runs.schedule.rounds * runs.schedule.updates,
            "env_steps": runs.schedule.rounds * runs.schedule.updates * runs.agent.batch_size,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": [str(device.device_kind) for device in jax.devices()],
            "platform": jax.default_backend(),
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": {"python": platform.python_version()}
            | {name: _version(name) for name in _PACKAGES},
            "commit": _commit(),
        }

    def __enter__(self) -> Self:
        check_free(self._path)
        self._clock = time.perf_counter()
        self._describe("running")
        with table.replacing(self._path / table.CONFIG) as temporary:
            OmegaConf.save(OmegaConf.create(dict(self._config)), temporary)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._describe("finished")
        else:
            self._describe("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def write_table(self, recorder: Recorder) -> None:
        """Replaces the table by what has been recorded so far."""
        table.write(recorder.frame(), self._path / table.TABLE)

    def write_params(self, params: Any) -> None:
        """Writes the final parameters."""
        with ocp.StandardCheckpointer() as checkpointer:
            # As host arrays: the file must not remember a device that the reader may lack.
            checkpointer.save((self._path / PARAMS).resolve(), jax.device_get(params))

    def _describe(self, status: str) -> None:
        took = round(time.perf_counter() - self._clock, 1)
        with table.replacing(self._path / table.META) as temporary:
            described = {"status": status, "wall_seconds": took, **self._meta}
            temporary.write_text(json.dumps(described, indent=2) + "\n")


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
