"""Checkpoints of a stack of runs: all that it takes to go on as if it had never stopped."""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args

from plasticity.spec import SettingError, describe
from plasticity.training import lifetime
from plasticity.training.folder import versions
from plasticity.training.lifetime import RunState, Sums
from plasticity.training.lives import stack
from plasticity.training.recorder import Recorder
from plasticity.training.rollout import Episodes
from plasticity.training.run import Run

_LOCK = "lock"


class Standing(NamedTuple):
    """Where a stack of runs stands, as host arrays [S, ...]."""

    state: RunState
    pending: Sums  # since the training metrics were last logged


class Checkpoints:
    """The checkpoints of a stack, in a folder that one process at a time may use.

    They are written in the background, and a new one is there as a whole or not at all. The one
    before it is kept. When the block ends without an error the runs are done, and the folder goes.

    Args:
      folder: where; made if it does not exist.
      runs: that make the stack.
    """

    def __init__(self, folder: Path, runs: Sequence[Run]) -> None:
        self._folder = folder.resolve()
        self._runs = runs
        described = json.dumps([describe(run) for run in runs], sort_keys=True)
        self._versions = versions()
        self._fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise SettingError(
                "folder", str(self._folder), "must not be in use; another process trains in it"
            ) from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            cleanup_tmp_directories=True,
            # Or else a folder that cannot be made keeps the process from ending for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # A checkpoint under way would be lost with the process.
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._wait()
        finally:
            # An error is being raised already, or the runs are done and nobody needs it.
            with contextlib.suppress(Exception):
                self._manager.close()
            if kind is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()

    def save(self, standing: Standing, recorder: Recorder) -> None:
        """Writes a checkpoint in the background, once the one before is there.

        Raises:
          OSError: it, or the one before, cannot be written. What was there before still is.
        """
        self._wait()
        records, metrics = recorder.saved()
        arrays = {
            "state": _flat(standing.state),
            "updates": standing.pending.updates,
            "metrics": standing.pending.metrics,
            "episodes": standing.pending.episodes._asdict(),
            "records": {name: array for name, array in records.items() if array.size},
        }
        with self._writing():
            self._manager.save(
                int(standing.state.update[0]),
                args=args.Composite(
                    arrays=args.PyTreeSave(arrays),
                    about=args.JsonSave(
                        {
                            "versions": self._versions,
                            "runs": self._fingerprint,
                            "metrics": metrics,
                        }
                    ),
                ),
            )

    def restore(self, recorder: Recorder) -> Standing | None:
        """Where the newest checkpoint stands, its records handed to the recorder; None without.

        Raises:
          SettingError: it is of other runs or versions.
        """
        update = self._manager.latest_step()
        if update is None:
            return None
        about = self._manager.restore(update, args=args.Composite(about=args.JsonRestore())).about
        self._check(about)
        arrays = self._manager.restore(
            update, args=args.Composite(arrays=args.PyTreeRestore())
        ).arrays
        recorder.restore(arrays["records"], about["metrics"])
        return Standing(
            state=self._filled(arrays["state"]),
            pending=Sums(arrays["updates"], arrays["metrics"], Episodes(**arrays["episodes"])),
        )

    def _check(self, about: Any) -> None:
        for name, version in self._versions.items():
            had = about["versions"].get(name)
            if had != version and had is not None:  # what was not there has made nothing of it
                raise SettingError(
                    "checkpoint",
                    str(self._folder),
                    f"must be of {name} {version}, but is of {had}: install that, or begin anew",
                )
        if about["runs"] != self._fingerprint:
            raise SettingError("checkpoint", str(self._folder), "must be of these runs")

    def _filled(self, arrays: dict[str, np.ndarray]) -> RunState:
        """The state made of arrays, which lack those without elements.

        Raises:
          SettingError: they are not those of a state of the runs.
        """
        begun = jax.eval_shape(jax.vmap(lifetime.begin), stack(self._runs))
        shapes = _flat(begun)
        for name in shapes.keys() | arrays.keys():
            has, needs = (
                f"{x.dtype}{list(x.shape)}" if x is not None else "nothing"
                for x in (arrays.get(name), shapes.get(name))
            )
            if has != needs:
                raise SettingError(
                    "checkpoint", str(self._folder), f"must have {needs} at {name}, but has {has}"
                )
        return jax.tree.map_with_path(
            lambda path, x: arrays.get(_name(path), np.zeros(x.shape, x.dtype)), begun
        )

    def _wait(self) -> None:
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax raises where a disk is full, or not there, into an OSError."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            for part in self._folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(part, ignore_errors=True)  # Orbax would leave it there
            told = str(error).split("; ")[0].splitlines()[0]
            raise OSError(f"{self._folder}: a checkpoint cannot be written: {told}") from error


def _flat(state: RunState) -> dict[str, Any]:
    """The arrays of a state by name, but for those without elements, which Orbax cannot write."""
    return {_name(path): x for path, x in jax.tree.leaves_with_path(state) if x.size}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
