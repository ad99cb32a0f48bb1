"""A run directory: its files, and what `meta.json` says of how they were made."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
from omegaconf import OmegaConf

from plasticity.agents.normalization import RunningMeanStd
from plasticity.renamed import rename_config
from plasticity.storage import table
from plasticity.storage.errors import writing
from plasticity.storage.user_code import digest_user_code
from plasticity.struct import SettingError

PARAMS = "params"
OBS_STATS = "obs_stats.npz"
CHECKPOINTS = "checkpoints"
FIGURES = "figures"
INTEGER = "integer"
ROUNDS = "schedule.rounds"
_PACKAGES = (
    *("plasticity-rl", "jax", "jaxlib", "flax", "optax", "numpy"),
    *(
        "gymnasium",
        "minigrid",
        "gymnax",
        "navix",
        "craftax",
        "continual-foragax",
        "envpool",
        "metaworld",
    ),
)


class RunInfo(NamedTuple):
    """The runs of one run directory, as far as storage needs to know them.

    Attributes:
      folder: the directory.
      config: the content of `config.yaml`, in plain containers.
      seeds: the seed of each run.
      updates: updates of each run, from beginning to end.
      batch_size: environment steps of an update of one run.
    """

    folder: Path
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    updates: int
    batch_size: int


def check_folder(folder: object, key: str = "folder") -> None:
    """Raises `SettingError`, naming `key`, if something cannot be the path of a folder."""
    allowed = "must be a folder"
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise SettingError(key, folder, allowed)
    try:
        Path(folder).expanduser().exists()
    except (OSError, RuntimeError) as error:  # as of a name that is too long, or no such user
        raise SettingError(key, str(folder), f"{allowed} ({error})") from error


def is_finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Returns whether a run directory holds the runs of a configuration, finished.

    Args:
      folder: the directory, which need not exist.
      config: the configuration, in plain containers.

    Raises:
      SettingError: the directory cannot be created or written, or holds anything else than these
        runs, finished or not.
    """
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
    held = flatten_config(read_config(folder / table.CONFIG))
    wanted = flatten_config(config)
    longer = _is_longer(folder, held, wanted)
    if longer:
        held = {**held, ROUNDS: wanted[ROUNDS]}
    for key, value in wanted.items():
        # A setting that is not set may be newer than the folder.
        if held.get(key) != value or (key not in held and value is not None):
            has = f"{key}={held[key]!r}" if key in held else f"no {key}"
            raise SettingError("folder", str(folder), f"must hold no other run; has one with {has}")
    if more := {key for key, value in held.items() if value is not None} - wanted.keys():
        raise SettingError("folder", str(folder), f"must hold no other run; has {min(more)}")
    meta = read_meta(folder)
    if not meta and (folder / table.META).exists():
        # Whether it is finished is not known, and its results could be lost.
        raise SettingError(
            "folder",
            str(folder),
            f"must have a {table.META} that can be read: remove it to train these runs again, or "
            "to resume them from a checkpoint",
        )
    _warn_of_other_code(folder, meta, config)
    return meta.get("status") == "finished" and not longer


def _is_longer(folder: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Returns whether wanted runs are those held with more rounds, and can go on from there.

    Nothing in a round depends on how many follow. Raises `SettingError` if the checkpoint that
    this takes is not there.
    """
    had, wants = held.get(ROUNDS), wanted.get(ROUNDS)
    if not (isinstance(had, int) and isinstance(wants, int) and had < wants):
        return False
    others = [
        {key: value for key, value in flat.items() if key != ROUNDS and value is not None}
        for flat in (held, wanted)
    ]
    if others[0] != others[1]:
        return False
    if not any(path.name.isdigit() for path in (folder / CHECKPOINTS).glob("*")):
        raise SettingError(
            ROUNDS,
            wants,
            f"must be {had}, as in {folder}: its last checkpoint, from which it could go on, was "
            "not kept; see keep_checkpoint",
        )
    return True


def _warn_of_other_code(folder: Path, meta: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Warns of a user's own code that is not what it was when the run trained."""
    present, trained = digest_user_code(config), meta.get("code")
    for name, digest in (trained if isinstance(trained, dict) else {}).items():
        if present.get(name, digest) != digest:
            warnings.warn(
                f"{folder}: was trained with another version of the file of {name}; another folder "
                "gives the results of the present one",
                stacklevel=2,
            )


def read_config(path: Path) -> dict[str, Any]:
    """Returns the content of a `config.yaml` under present names, in plain containers.

    Raises:
      SettingError: it cannot be read.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except Exception:  # one of many kinds of YAML's and OmegaConf's
        config = None
    if not isinstance(config, dict):
        raise SettingError("folder", str(path.parent), f"must hold no other run; has {path.name}")
    return rename_config({str(key): value for key, value in config.items()})


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a configuration by dotted key; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_config(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns the content of `meta.json`; empty if it is missing or cannot be read."""
    try:
        meta = json.loads((folder / table.META).read_text())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def load_params(path: str | Path) -> Any:
    """Loads the final parameters of a run directory; every array has a leading axis of seeds.

    Raises:
      ResultsError: there are none.
    """
    try:
        check_folder(path, "path")
    except SettingError as error:
        raise table.ResultsError(str(error)) from error
    params = (Path(path) / PARAMS).resolve()
    if not params.is_dir():
        raise table.ResultsError(f"{params}: does not exist; expected final parameters")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(params)


def load_obs_stats(path: str | Path) -> RunningMeanStd:
    """Loads the statistics by which the networks of a run directory see observations normalized.

    They are those of the end of the runs, [S, *observation_shape] with an axis of seeds.

    Raises:
      ResultsError: there are none, or they cannot be read.
    """
    stats = Path(path) / OBS_STATS
    try:
        with np.load(stats) as file:
            return RunningMeanStd(*(file[name] for name in RunningMeanStd._fields))
    except FileNotFoundError as error:
        message = f"{stats}: does not exist; expected the statistics of observations"
        raise table.ResultsError(message) from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        message = f"{stats}: cannot be read; expected the statistics of observations"
        raise table.ResultsError(message) from error


class RunDir:
    """A run directory whose runs are training. Leaving the block writes how that ended.

    Args:
      info: the runs.
      trained_together: number of runs that train in the same program.
      update: updates that have been completed already.
      keep_checkpoint: whether the last checkpoint is kept.
      timing: returns the seconds of the parts of the training so far.
    """

    def __init__(
        self,
        info: RunInfo,
        trained_together: int,
        update: int = 0,
        keep_checkpoint: bool = False,
        timing: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._info, self._timing = info, timing
        self._meta: dict[str, Any] = {
            "seeds": list(info.seeds),
            "updates": info.updates,
            "env_steps": info.updates * info.batch_size,
            "trained_together": trained_together,
            **({"checkpoint_kept": True} if keep_checkpoint else {}),
            "versions": {"python": platform.python_version(), **versions()},
            "commit": _commit(),
            "code": digest_user_code(info.config),
        }
        self._session = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_update": update,
            "device": sorted({str(device.device_kind) for device in jax.local_devices()}),
            "platform": jax.default_backend(),
            "machine": f"{platform.system()} {platform.machine()}",
        }

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        earlier = read_meta(self._info.folder)
        self._earlier = earlier.get("sessions", [])
        if self._session["from_update"]:  # the code of a run is that with which it began
            self._meta["code"] = {**self._meta["code"], **earlier.get("code", {})}
        remove_temporary_files(self._info.folder)
        with table.replacing(self._info.folder / table.CONFIG) as temporary:
            OmegaConf.save(OmegaConf.create(dict(self._info.config)), temporary)
        self._write_meta("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._write_meta("finished")
            return
        with contextlib.suppress(OSError):  # which is likely what `error` says
            self._write_meta("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def write_table(self, frame: pd.DataFrame) -> None:
        """Replaces the results table."""
        table.write(frame, self._info.folder / table.TABLE)

    def write_params(self, params: Any) -> None:
        """Writes the final parameters, as host arrays: a reader may lack the device."""
        with writing(self._info.folder / PARAMS), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((self._info.folder / PARAMS).resolve(), params, force=True)

    def write_obs_stats(self, stats: RunningMeanStd) -> None:
        """Writes the final statistics of observations, as host arrays."""
        path = self._info.folder / OBS_STATS
        with table.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **stats._asdict())

    def _write_meta(self, status: str) -> None:
        session = {
            **self._session,
            "wall_seconds": round(time.perf_counter() - self._start, 1),
            "seconds": dict(self._timing()),
        }
        meta = {"status": status, **self._meta, "sessions": [*self._earlier, session]}
        with table.replacing(self._info.folder / table.META) as temporary:
            temporary.write_text(json.dumps(meta, indent=2) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed at the very end leaves beside finished runs."""
    if not read_meta(folder).get("checkpoint_kept"):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    remove_temporary_files(folder)


def remove_temporary_files(folder: Path) -> None:
    """Removes what a process that was killed while it wrote to a run directory leaves there.

    No other process may be writing there.
    """
    for path in (*folder.glob(".*.tmp"), *(folder / FIGURES).glob(".*.tmp")):
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{PARAMS}.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def versions() -> dict[str, str | None]:
    """Returns the versions of the packages that a run depends on; None for those not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the source, with "+" if it was changed since; None if unknown."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        describe = [*git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
