"""Errors of writing results and checkpoints."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class StorageError(OSError):
    """Results or checkpoints cannot be written: one line with the path and the reason."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes to `path`, into a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
