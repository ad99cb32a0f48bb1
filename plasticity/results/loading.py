"""Loads the results tables of runs, and labels runs by the settings in which they differ."""

import contextlib
import glob
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from plasticity.renamed import rename_config, rename_key
from plasticity.results.arguments import checked, frame_with
from plasticity.storage.run_dir import CHECKPOINTS, FIGURES, INTEGER, PARAMS
from plasticity.storage.table import (
    CONFIG,
    DTYPES,
    META,
    TABLE,
    ResultsError,
    concat,
    read,
    sort_rows,
)

__all__ = ["label_by_config", "load", "swept_keys"]

# Keys that differ between the runs of one setting, and the key that names a class.
_NOT_SETTINGS = ("seed", "out")
_TARGET = "_target_"

_EXPECTED = f"a run's folder with {TABLE}, a folder of such, a .parquet file, or a glob of these"


@checked()
def load(*where: str | Path, config: Sequence[str] = ()) -> pd.DataFrame:
    """Loads the tables of runs, finished or not, and concatenates them.

    A run is named after its folder, relative to the common parent of all folders loaded: just the
    folder's name if there is one run or all are siblings. A file that holds several runs keeps
    their names, prefixed with its own path if other files are loaded too.

    Args:
      *where: run folders, folders of run folders at any depth, Parquet files, or globs of these
        (`**` included). Links to folders are followed. A run found twice is loaded once.
      config: dotted keys to read from each run's `config.yaml`, one column each, such as
        `"agent.learning_rate"`. A run without the key has a missing value; a list or mapping is
        given as text. Folders written under former names of settings are read under the present
        ones. To compare the settings of a sweep, see `swept_keys` and `label_by_config`.

    Returns:
      The columns of `COLUMNS`, then those of `config`, under present names; sorted as by
      `sort_rows`, rows of the same update in the order in which they were written.

    Warns:
      UserWarning: within a folder or glob something is left out: a run with a config but no table,
        a link to nothing, a hidden folder of runs, or a Parquet file that is no run's; a table has
        no rows where others do; or a key of `config` is a former name.

    Raises:
      ResultsError: a path does not exist or holds no run, a table cannot be read or lacks columns,
        or a config cannot be read.
    """
    keys = []
    for key in config:
        keys.append(rename_key(key))
        if keys[-1] != key:
            warnings.warn(
                f"{key} is now called {keys[-1]}; the old name works until 0.3", stacklevel=3
            )
    keys = list(dict.fromkeys(keys))
    if clash := [key for key in keys if key in DTYPES]:
        raise ResultsError(f"config key {clash[0]}: the table has a column of this name")
    sources, left_out = _find_all(where)
    for path, reason in left_out.items():
        warnings.warn(f"{path}: left out, for it {reason}", stacklevel=3)
    parent = os.path.commonpath([source.path.parent for source in sources])
    frames = []
    for source in sources:
        name = source.path.relative_to(parent).as_posix()
        frames.append(_name_runs(read(source.table), name, len(sources) == 1))
    for source, frame in zip(sources, frames, strict=True):
        if frame.empty and any(len(other) for other in frames):
            warnings.warn(f"{source.table}: has no rows", stacklevel=3)
    table = concat(frames)
    for key, values in _read_keys(sources, keys).items():
        # One value per run, in a type that holds them all, repeated over the run's rows.
        lengths = [len(frame) for frame in frames]
        table[key] = pd.Series(values).repeat(lengths).reset_index(drop=True)
    return sort_rows(table)


@checked()
def swept_keys(*where: str | Path) -> list[str]:
    """Returns the configuration keys in which runs differ, such as those of a sweep.

    Args:
      *where: as in `load`.

    Returns:
      Dotted keys of the numbers, strings and lists in the runs' `config.yaml` that have two or more
      different values among the runs that have them, in the order of the configs and under present
      names. `seed` and `out` are not included, for they are no settings, nor is the class of a
      component (`_target_`).

    Raises:
      ResultsError: a path does not exist or holds no run, or a config cannot be read.
    """
    values: dict[tuple[str, ...], list[Any]] = {}
    ranks: dict[tuple[str, ...], int] = {}
    for source in _find_all(where)[0]:
        with _read_config(source) as config:
            nodes = list(_walk(OmegaConf.to_container(config)))
        for key, value in nodes:
            ranks.setdefault(key, len(ranks))
            distinct = values.setdefault(key, [])
            if not isinstance(value, Mapping) and value not in distinct:
                distinct.append(value)
    keys = [
        key
        for key, distinct in values.items()
        if len(distinct) > 1 and key[0] not in _NOT_SETTINGS and key[-1] != _TARGET
    ]
    # By where each prefix of a key first occurred, so that keys that only some configs have are
    # next to their siblings.
    keys.sort(key=lambda key: [ranks[key[:end]] for end in range(1, len(key) + 1)])
    return [".".join(key) for key in keys]


@checked(frame=frame_with(("intervention",), rows=False))
def label_by_config(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Appends settings to the names of interventions: `shrink_perturb shrink=0.1`.

    ```python
    keys = results.swept_keys("outputs/sweep")
    frame = results.label_by_config(results.load("outputs/sweep", config=keys), keys)
    ```

    Args:
      frame: a results table with a column for each of the keys.
      keys: dotted keys. The label of a setting is the last part of its key, or as many of the last
        parts as are needed to distinguish it from the other keys.

    Returns:
      The table, with each name in column `intervention` followed by the settings that its run has,
      in the order of the keys; no setting contains a space.

    Raises:
      ResultsError: the table lacks a column.
    """
    if missing := [key for key in keys if key not in frame.columns]:
        raise ResultsError(f"config key {missing[0]}: not in the table; load it with config=keys")
    names = frame["intervention"].astype("object")
    for key, label in zip(keys, _short_labels(keys), strict=True):
        codes, values = pd.factorize(frame[key])
        # A missing value has the code -1, which indexes the last entry.
        suffixes = np.array([*(f" {label}={_format(value)}" for value in values), ""], dtype=object)
        names = names + suffixes[codes]
    return frame.assign(intervention=names.astype(DTYPES["intervention"]))


class _Source(NamedTuple):
    """A table to load.

    Attributes:
      table: the Parquet file.
      path: what the run is named after: its folder, or a Parquet file outside of a run's folder.
    """

    table: Path
    path: Path


class _Found(NamedTuple):
    """What there is at some place.

    Attributes:
      sources: the tables.
      without_table: the folders of runs that have none.
      passed_over: anything else that is not loaded, and why.
    """

    sources: list[_Source]
    without_table: list[Path]
    passed_over: dict[Path, str]


def _find_all(where: Sequence[str | Path]) -> tuple[list[_Source], dict[Path, str]]:
    """Finds the tables at all places, each once and at least one, and what is left out, and why."""
    sources: dict[str, _Source] = {}
    left_out: dict[Path, str] = {}
    for path in where:
        found = _find(path)
        left_out |= dict.fromkeys(found.without_table, f"holds a config but no {TABLE}")
        left_out |= found.passed_over
        for source in found.sources:
            sources.setdefault(os.path.realpath(source.table), source)
    if not sources:
        raise ResultsError(f"nothing to load; expected {_EXPECTED}")
    # What is left out of a folder may be another place, or at one.
    left_out = {
        path: why for path, why in left_out.items() if os.path.realpath(path) not in sources
    }
    return list(sources.values()), left_out


def _find(where: str | Path) -> _Found:
    """Finds what is at a path or glob, sorted by path, with at least one table."""
    try:
        path = Path(os.path.abspath(Path(where).expanduser()))
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # as of a name that is too long, or no such user
        raise ResultsError(f"{where}: cannot be read ({error}); expected {_EXPECTED}") from error
    found, visited = _Found([], [], {}), set[str]()
    if exists:  # Before globbing: Hydra names folders such as `seed=[0,1]`.
        _search(path, found, visited)
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        matches.sort(key=os.path.islink)  # last, as in `_search`
        if not matches:
            raise ResultsError(f"{where}: does not exist; expected {_EXPECTED}")
        for match in matches:
            _search(Path(match), found, visited)
    if not found.sources:
        if exists and found.without_table == [path]:
            raise ResultsError(f"{where}: holds a config but no {TABLE}; expected {_EXPECTED}")
        number = len(found.without_table)
        also = f" but {number} without {TABLE}" if number else ""
        for path, reason in list(found.passed_over.items())[:1]:
            also += f" ({path.name} {reason})"
        raise ResultsError(f"{where}: holds no run{also}; expected {_EXPECTED}")
    return found


def _search(path: Path, found: _Found, visited: set[str]) -> None:
    """Adds to `found` what is at or under a path.

    Args:
      path: a file or folder.
      found: what has been found.
      visited: the real paths of folders that have been searched, which are not searched again.
    """
    if path.is_file():
        if path.suffix == ".parquet":
            found.sources.append(_Source(path, path.parent if path.name == TABLE else path))
        return
    if not path.is_dir() or (real := os.path.realpath(path)) in visited:  # as a pipe
        return
    visited.add(real)
    has_table = (path / TABLE).is_file()
    if has_table:
        found.sources.append(_Source(path / TABLE, path))
    before = len(found.sources) + len(found.without_table)
    # Links are followed last, so that runs are named after the folders that they are in.
    for child in sorted(_children(path), key=Path.is_symlink):
        if has_table and child.name in (CHECKPOINTS, PARAMS, FIGURES, INTEGER):
            continue
        if child.is_symlink() and not child.exists():
            found.passed_over[child] = "is a link to nothing"
        elif child.is_dir():
            if not child.name.startswith("."):
                _search(child, found, visited)
            elif any(child.glob(TABLE)) or any(child.glob(f"*/{TABLE}")):
                found.passed_over[child] = "is hidden"
        elif child.suffix == ".parquet" and child.name != TABLE and not child.name.startswith("."):
            found.passed_over[child] = "is no run's table; it can be loaded by its name"
    is_run = (path / CONFIG).is_file() or (path / META).is_file()
    # A config above other runs belongs to their sweep.
    if is_run and not has_table and len(found.sources) + len(found.without_table) == before:
        found.without_table.append(path)


def _children(folder: Path) -> list[Path]:
    """Lists a folder, sorted."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ResultsError(f"{folder}: cannot be read ({error.strerror})") from error


def _name_runs(frame: pd.DataFrame, name: str, only_source: bool) -> pd.DataFrame:
    """Returns a table with its run or runs renamed so that names are unique across files."""
    if len(frame["run"].unique()) <= 1:
        return frame.assign(run=pd.Series(name, index=frame.index, dtype=DTYPES["run"]))
    return frame if only_source else frame.assign(run=name + "/" + frame["run"])


def _read_keys(sources: Sequence[_Source], keys: Sequence[str]) -> dict[str, list[Any]]:
    """Reads the value of each key in the config of each source, None where there is none."""
    columns: dict[str, list[Any]] = {key: [] for key in keys}
    for source in sources if keys else ():
        with _read_config(source) as config:
            for key in keys:
                value = OmegaConf.select(config, key)
                is_scalar = value is None or isinstance(value, bool | int | float | str)
                columns[key].append(value if is_scalar else str(value))
    return columns


@contextlib.contextmanager
def _read_config(source: _Source) -> Iterator[Any]:
    """Yields the config next to a table, under present names; empty if there is none.

    An error while reading it, or in the block, becomes a ResultsError that names the file.
    """
    path = source.table.parent / CONFIG
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        yield OmegaConf.create(rename_config(content, warn=False))
    except Exception as error:  # YAML and OmegaConf raise many types.
        raise ResultsError(f"{path}: cannot be read; expected a resolved config") from error


def _walk(config: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the key, as a tuple of its parts, and the value of every node of a mapping."""
    for name, value in config.items():
        key = (*prefix, str(name))
        yield key, value
        if isinstance(value, Mapping):
            yield from _walk(value, key)


def _short_labels(keys: Sequence[str]) -> list[str]:
    """Returns each key's last part, or as many of its last parts as make it unique."""
    split = [key.split(".") for key in keys]
    return [
        next(
            ".".join(key[-count:])
            for count in range(1, len(key) + 1)
            if count == len(key) or [other[-count:] for other in split].count(key[-count:]) == 1
        )
        for key in split
    ]


def _format(value: Any) -> str:
    """Formats a value without spaces; whole floats as integers, for missing values make floats."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return "".join(str(int(value) if is_whole else value).split())
