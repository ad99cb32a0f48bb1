"""Checkpoints: what it takes to resume a training as if it had never stopped."""

import contextlib
import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args

from plasticity.storage.errors import StorageError, writing
from plasticity.storage.run_dir import versions
from plasticity.struct import SettingError

try:
    import fcntl
except ImportError as error:
    message = "plasticity needs Linux or macOS; on Windows it runs in WSL 2"
    raise ImportError(message) from error

_LOCK = "lock"
_TEMPORARY = "*.orbax-checkpoint-tmp"
_DIGESTS = "digests.json"  # in a checkpoint: of each of its files
_WRITTEN_LATER = ("_CHECKPOINT_METADATA",)  # times, which nothing here depends on
# What mounts without locks answer: Lustre without `-o flock`, NFS without its lock daemon.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class CheckpointManager:
    """The checkpoints of one training, in a folder that one process at a time may use.

    They are written in the background, and a new one is there as a whole or not at all. The one
    before it is kept, for the case that the newest is damaged. When the block ends without an error
    the training is complete, and the folder is removed, unless it is to be kept.

    Args:
      folder: where; created if it does not exist.
      fingerprint: identifies what is trained; a checkpoint with another one is refused.
      keep: whether the last checkpoint is kept when the training is complete.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: bool = False) -> None:
        self._folder = folder.resolve()
        self._fingerprint = fingerprint
        self._keep = keep
        self._versions = versions()

    def __enter__(self) -> Self:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{self._folder}: its file system has no locks, so that nothing keeps another "
                    "process from training in the same folder",
                    stacklevel=2,
                )
            else:
                self._lock.close()
                raise SettingError(
                    "folder", str(self._folder), "must not be in use; another process trains in it"
                ) from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                # Otherwise a folder that cannot be created keeps the process alive for minutes.
                create_directories_asynchronously=False,
                post_finalization_callback=self._write_digests,
            ),
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
            # A checkpoint that is being written would be lost with the process.
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                try:
                    self._wait()
                except StorageError as failure:  # which must not hide the interrupt
                    warnings.warn(str(failure), stacklevel=2)
            elif kind is None and self._keep:
                self._wait()
        finally:
            # An error is being raised already, or the training is complete.
            with contextlib.suppress(Exception):
                self._manager.close()
            if kind is None and not self._keep:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()

    def save(self, step: int, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Writes a checkpoint in the background, after waiting for the last one.

        Args:
          step: its number, larger than those before.
          arrays: nested dicts of arrays, none of them empty.
          about: anything else, as JSON.

        Raises:
          StorageError: it, or the last one, cannot be written. What was there before still is.
        """
        self._wait()
        described = {"versions": self._versions, "runs": self._fingerprint, **about}
        with self._writing():
            self._manager.save(
                step,
                args=args.Composite(
                    arrays=args.PyTreeSave(dict(arrays)), about=args.JsonSave(described)
                ),
            )

    def restore(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the arrays of the newest checkpoint and what is `about` it; None without one.

        Raises:
          SettingError: it is of other runs or versions.

        Warns:
          UserWarning: a checkpoint is damaged. It is set aside, and the one before it is used.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for number, step in enumerate(steps):
            try:
                # First of all: threads of TensorStore print tracebacks where a file is damaged.
                _check_digests(self._folder / str(step))
                return self._restore_step(step)
            except (SettingError, MemoryError):
                raise
            except Exception as error:  # one of many kinds of Orbax's and TensorStore's
                reason = f"{str(error) or type(error).__name__}".splitlines()[0][:150]
                older = steps[number + 1 :]
                goes_on = f"resuming from that of update {older[0]}" if older else "beginning anew"
                warnings.warn(
                    f"{self._folder / str(step)}: a damaged checkpoint, which is set aside: "
                    f"{reason}; {goes_on}",
                    stacklevel=2,
                )
                self._set_aside(step)
        return None

    def _restore_step(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the arrays of a checkpoint and what is `about` it.

        Raises:
          SettingError: it is of other runs or versions.
          Exception: it is damaged.
        """
        about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore())).about
        for name, version in self._versions.items():
            had = about["versions"].get(name)
            if had != version and had is not None:  # a package that was missing had no effect
                raise SettingError(
                    "checkpoint",
                    str(self._folder),
                    f"must be of {name} {version}, but is of {had}: install that, or begin anew",
                )
        if about["runs"] != self._fingerprint:
            raise SettingError("checkpoint", str(self._folder), "must be of these runs")
        restored = self._manager.restore(step, args=args.Composite(arrays=args.PyTreeRestore()))
        return restored.arrays, about

    def _write_digests(self) -> None:
        """Adds digests to the checkpoint that has been written, and has no final name yet."""
        for checkpoint in self._folder.glob(_TEMPORARY):
            (checkpoint / _DIGESTS).write_text(json.dumps(_file_digests(checkpoint)))

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that a new one can have its number."""
        aside = self._folder / f"damaged_{step}"
        shutil.rmtree(aside, ignore_errors=True)
        with writing(self._folder):
            (self._folder / str(step)).rename(aside)
        self._manager.reload()

    def unflatten(self, arrays: Mapping[str, np.ndarray], template: Any) -> Any:
        """Returns the tree that `flatten` made `arrays` of.

        Args:
          arrays: by path.
          template: a tree of the same structure, of anything with a shape and dtype.

        Raises:
          SettingError: they are not those of such a tree.
        """
        try:
            return unflatten(arrays, template)
        except ValueError as error:
            raise SettingError("checkpoint", str(self._folder), f"must have {error}") from error

    def _wait(self) -> None:
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax raises where a disk is full, or missing, into a StorageError."""
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            for part in self._folder.glob(_TEMPORARY):
                shutil.rmtree(part, ignore_errors=True)  # Orbax would leave it there
            reason = str(error).split("; ")[0].splitlines()[0]
            message = f"{self._folder}: a checkpoint cannot be written: {reason}"
            raise StorageError(message) from error


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree by path, without empty ones, which Orbax cannot write."""
    return {_name(path): x for path, x in jax.tree.leaves_with_path(tree) if x.size}


def unflatten(arrays: Mapping[str, np.ndarray], template: Any) -> Any:
    """Returns the tree that `flatten` made `arrays` of.

    Args:
      arrays: by path.
      template: a tree of the same structure, of anything with a shape and dtype.

    Raises:
      ValueError: they are not those of such a tree. The message says what is needed where.
    """
    leaves = flatten(template)
    for path in sorted(leaves.keys() | arrays.keys()):
        has, needs = (
            f"{x.dtype}{list(x.shape)}" if x is not None else "nothing"
            for x in (arrays.get(path), leaves.get(path))
        )
        if has != needs:
            raise ValueError(f"{needs} at {path}, but has {has}")
    return jax.tree.map_with_path(
        lambda path, x: arrays.get(_name(path), np.zeros(x.shape, x.dtype)), template
    )


def _file_digests(checkpoint: Path) -> dict[str, str]:
    """Returns a digest of each file of a checkpoint, by path."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name not in (_DIGESTS, *_WRITTEN_LATER):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
            digests[path.relative_to(checkpoint).as_posix()] = digest
    return digests


def _check_digests(checkpoint: Path) -> None:
    """Raises `ValueError` if files of a checkpoint are missing or changed.

    Those of earlier versions have no digests.
    """
    if (checkpoint / _DIGESTS).exists():
        digests = _file_digests(checkpoint)
        for name, written in json.loads((checkpoint / _DIGESTS).read_text()).items():
            if name not in digests:
                raise ValueError(f"{name} is missing")
            if digests[name] != written:
                raise ValueError(f"{name} is not as it was written")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
