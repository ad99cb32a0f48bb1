"""The results table: one row for each metric, layer and time at which it was logged.

All measurements of all runs are in one long (tidy) table, so that the results of any number of runs
concatenate, and every question about them is a filter and a group-by. A run's folder holds its
table as `metrics.parquet`, next to `config.yaml` (resolved), `meta.json`, `figures/` and `params/`.

A metric without a value at some time has no row there. A run that diverged, that is, one with a
gradient that was not finite, has one row `diverged`, whose value and update are the update at which
it did, and from then on NaN for the value of every metric.
"""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plasticity.storage.errors import writing

__all__ = [
    "COLUMNS",
    "CONFIG",
    "DTYPES",
    "META",
    "TABLE",
    "ResultsError",
    "concat",
    "empty",
    "read",
    "replacing",
    "sort_rows",
    "validate",
    "write",
    "write_csv",
]

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "run": "str",
        "env": "str",
        "shift": "str",
        "intervention": "str",
        "seed": "int64",
        "round": "int64",
        "update": "int64",
        "env_steps": "int64",
        "metric": "str",
        "layer": "str",
        "value": "float64",
    }
)
COLUMNS: tuple[str, ...] = tuple(DTYPES)

# The files of a run's folder.
CONFIG = "config.yaml"
META = "meta.json"
TABLE = "metrics.parquet"


class ResultsError(ValueError):
    """Unusable results: a one-line message with the place and what is expected there."""


def empty() -> pd.DataFrame:
    """Returns a results table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in DTYPES.items()})


def validate(frame: pd.DataFrame, where: object = "table") -> pd.DataFrame:
    """Returns the frame with the table's columns first, in order and converted to their types.

    Any other columns follow, unchanged.

    Args:
      frame: has at least the columns of `COLUMNS`.
      where: what an error message calls the frame.

    Raises:
      ResultsError: columns are missing, or a column cannot be converted to its type.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ResultsError(f"{where}: is {type(frame).__name__}; expected a results table")
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise ResultsError(f"{where}: lacks columns {', '.join(missing)}; expected a results table")
    extra = [name for name in frame.columns if name not in DTYPES]
    columns = {}
    for name, dtype in DTYPES.items():
        try:
            columns[name] = frame[name].astype(dtype)
        except (ValueError, TypeError) as error:
            raise ResultsError(
                f"{where}: column {name} is {frame[name].dtype}; expected {dtype}"
            ) from error
    return pd.DataFrame({**columns, **{name: frame[name] for name in extra}})


def concat(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Concatenates tables in the order given. Without any rows, returns an empty table."""
    if isinstance(frames, str | pd.DataFrame) or not isinstance(frames, Iterable):
        raise ResultsError(f"frames: is {type(frames).__name__}; expected a list of results tables")
    nonempty = [
        validate(frame) for frame in frames if not (isinstance(frame, pd.DataFrame) and frame.empty)
    ]
    return pd.concat(nonempty, ignore_index=True) if nonempty else empty()


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Sorts rows by run, env, shift, intervention, seed and update, as `results.load` does.

    The sort is stable: rows that agree in all of these keep their order.

    Raises:
      ResultsError: the frame is not a results table.
    """
    frame = validate(frame)
    by = ["run", "env", "shift", "intervention", "seed", "update"]
    return frame.sort_values(by, kind="stable", ignore_index=True)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, which replaces `path` if the block ends without an error.

    The replacement is atomic: a reader sees the old file or the new one, never a part of one, even
    after a crash. The temporary file is in the folder of `path`, which is created if it does not
    exist.

    Raises:
      StorageError: it cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # which must not hide the error of the block
                temporary.unlink(missing_ok=True)


def write_csv(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a data frame without its index, as a whole or not at all."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)


def write(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a results table as Parquet, atomically.

    Raises:
      ResultsError: the frame is not a results table, or `path` no path. A file there is left as it
        was.
    """
    _check_path(path)
    checked = validate(frame, path)
    # By path and without threads, as it is read: one that frees a buffer of Python's while the
    # interpreter ends would abort the process.
    with replacing(path) as temporary:
        content = pa.Table.from_pandas(checked, preserve_index=False, nthreads=1)
        pq.write_table(content, str(temporary))


def read(path: str | Path) -> pd.DataFrame:
    """Reads the results table in one Parquet file.

    Raises:
      ResultsError: the file is not readable as Parquet, or holds no results table.
    """
    _check_path(path)
    try:
        if Path(path).exists() and not Path(path).is_file():  # opening a pipe would wait for ever
            raise ResultsError(f"{path}: is no file; expected a Parquet file")
        # As one file: "=" in a folder's name is no partition of the table. By path, and without
        # threads, which could outlive the interpreter with a file of Python's in their hands.
        with pq.ParquetFile(path) as file:
            frame = file.read(use_threads=False).to_pandas(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(f"{path}: cannot be read; expected a Parquet file") from error
    return validate(frame, path)


def _check_path(path: object) -> None:
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise ResultsError(f"path={path!r}: expected a path")
