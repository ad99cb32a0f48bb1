"""The results table: one row for each metric, layer and moment at which it was logged.

A metric without a value at some moment has no row there. A run that diverged, which is to say
that a gradient was not finite, has one row `diverged`, whose value and update are the update at
which it did, and from then on NaN for the value of every metric.

Everything measured by every run lives in one long tidy table, so that results of any number of
runs concatenate, and every question about them is a filter and a group-by. A run's folder holds
it as `metrics.parquet`, next to `config.yaml` (resolved), `meta.json`, `figures/` and `params/`.
"""

import contextlib
import glob
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from omegaconf import OmegaConf

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

CONFIG = "config.yaml"
META = "meta.json"
TABLE = "metrics.parquet"

# What differs between the runs of one setting, and what names the class of a part.
_NO_SETTINGS = ("seed", "out")
_CLASS = "_target_"

_A_RUN = f"a run's folder with {TABLE}, a folder of such, a .parquet file, or a glob of these"


class ResultsError(ValueError):
    """Results that cannot be used: one line with the place and what is expected there."""


def empty() -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in DTYPES.items()})


def validate(frame: pd.DataFrame, where: object = "table") -> pd.DataFrame:
    """The frame with the columns in order and of their types, then any others it has.

    Args:
      frame: at least the columns of `COLUMNS`.
      where: what to call the frame in an error.

    Raises:
      ResultsError: columns are missing, or one holds values not of its type.
    """
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise ResultsError(f"{where}: lacks columns {', '.join(missing)}; expected a results table")
    others = [name for name in frame.columns if name not in DTYPES]
    columns = {}
    for name, dtype in DTYPES.items():
        try:
            columns[name] = frame[name].astype(dtype)
        except (ValueError, TypeError) as error:
            raise ResultsError(
                f"{where}: column {name} is {frame[name].dtype}; expected {dtype}"
            ) from error
    return pd.DataFrame({**columns, **{name: frame[name] for name in others}})


def concat(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One table of the rows of all, in the order given. No tables make an empty one."""
    filled = [validate(frame) for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else empty()


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by run, env, shift, intervention, seed and update, as `load` gives them.

    Rows that agree in all of these stay in the order in which they are.
    """
    by = ["run", "env", "shift", "intervention", "seed", "update"]
    return frame.sort_values(by, kind="stable", ignore_index=True)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends without an error.

    A reader sees the old file or the new one, never a part of one, even after a crash. The
    temporary file is in the folder of `path`, which is created if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a table as Parquet, atomically.

    Raises:
      ResultsError: the frame is no results table. The file at `path`, if any, is left alone.
    """
    checked = validate(frame, path)
    with replacing(path) as temporary:
        checked.to_parquet(temporary, index=False)


def read(path: str | Path) -> pd.DataFrame:
    """Reads one Parquet file, as `write` leaves it.

    Raises:
      ResultsError: Parquet cannot read it, or it holds no results table.
    """
    try:
        # By handle, so that "=" in a folder's name is not taken for a partition of the table.
        with Path(path).open("rb") as file:
            frame = pd.read_parquet(file, engine="pyarrow")
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(f"{path}: cannot be read; expected a Parquet file") from error
    return validate(frame, path)


def load(*where: str | Path, config: Sequence[str] = ()) -> pd.DataFrame:
    """Loads the tables of runs, finished or not, into one.

    A run is named after its folder, relative to the parent that all those loaded have in
    common: just the folder's name where there is one run or all are siblings. A file that holds
    several runs already keeps their names, after its own where other files are loaded too.

    Args:
      *where: run folders, folders of run folders at any depth, Parquet files, or globs of these
        (`**` included). A run found twice is loaded once. Hidden folders are not searched.
      config: dotted keys to read from each run's `config.yaml`, one column each, such as
        `"agent.learning_rate"`. A run without the key has a missing value; a list or mapping is
        given as text. To compare settings of a sweep, see `swept_keys` and `label_by_config`.

    Returns:
      The columns of `COLUMNS`, then those of `config`; sorted as `sort_rows` does, rows of the same
      update in the order in which they were written.

    Warns:
      UserWarning: a run within a folder or glob holds a config but no table, and is left out.

    Raises:
      ResultsError: nothing is there, no run is there, a table cannot be read or lacks columns,
        or a config cannot be read.
    """
    if clash := [key for key in config if key in DTYPES]:
        raise ResultsError(f"config key {clash[0]}: the table has a column of this name")
    found, halves = _found(where)
    for half in halves:
        warnings.warn(f"{half}: left out, for it holds a config but no {TABLE}", stacklevel=2)
    parent = os.path.commonpath([source.path.parent for source in found])
    frames = [
        _named(read(source.table), source.path.relative_to(parent).as_posix(), len(found) == 1)
        for source in found
    ]
    table = concat(frames)
    for key, values in _config(found, config).items():
        # One value a run, in the type that suits them all, then repeated over the run's rows.
        lengths = [len(frame) for frame in frames]
        table[key] = pd.Series(values).repeat(lengths).reset_index(drop=True)
    return sort_rows(table)


def swept_keys(*where: str | Path) -> list[str]:
    """The settings in which runs differ, as the values of a sweep do.

    Args:
      *where: as in `load`.

    Returns:
      Dotted keys of the numbers, texts and lists in the runs' `config.yaml` that have two or
      more different values among the runs that have them, in the order of the configs. Not
      `seed` and `out`, which tell no settings apart, nor which class a part is of (`_target_`).

    Raises:
      ResultsError: nothing is there, no run is there, or a config cannot be read.
    """
    values: dict[tuple[str, ...], list[Any]] = {}
    ranks: dict[tuple[str, ...], int] = {}
    for source in _found(where)[0]:
        with _config_of(source) as settings:
            nodes = list(_nodes(OmegaConf.to_container(settings)))
        for key, value in nodes:
            ranks.setdefault(key, len(ranks))
            known = values.setdefault(key, [])
            if not isinstance(value, Mapping) and value not in known:
                known.append(value)
    keys = [
        key
        for key, known in values.items()
        if len(known) > 1 and key[0] not in _NO_SETTINGS and key[-1] != _CLASS
    ]
    # By where each part of a key first came, so that what only some configs have is next to its
    # like.
    keys.sort(key=lambda key: [ranks[key[:end]] for end in range(1, len(key) + 1)])
    return [".".join(key) for key in keys]


def label_by_config(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The table with settings in the names of interventions: `shrink_perturb shrink=0.1`.

    ```python
    keys = results.varying("outputs/sweep")
    frame = results.tell_apart(results.load("outputs/sweep", config=keys), keys)
    ```

    Args:
      frame: a results table with a column for each of the keys.
      keys: dotted keys. A setting is called by the last part of its key, or by as many of the
        last parts as tell it from the other keys.

    Returns:
      The table, its column `intervention` followed by those of the settings that a run has, in
      the order of the keys; no setting contains a space.

    Raises:
      ResultsError: the table lacks a column.
    """
    if missing := [key for key in keys if key not in frame.columns]:
        raise ResultsError(f"config key {missing[0]}: not in the table; load it with config=keys")
    names = frame["intervention"].astype("object")
    for key, label in zip(keys, _short(keys), strict=True):
        codes, values = pd.factorize(frame[key])
        # A missing value has the code -1, which is the last.
        texts = np.array([*(f" {label}={_text(value)}" for value in values), ""], dtype=object)
        names = names + texts[codes]
    return frame.assign(intervention=names.astype(DTYPES["intervention"]))


class _Source(NamedTuple):
    """A table to load.

    Attributes:
      table: the Parquet file.
      path: what names the run: its folder, or a file that is not a run folder's own.
    """

    table: Path
    path: Path


def _found(where: Sequence[str | Path]) -> tuple[list[_Source], list[Path]]:
    """The tables at all places, each once and at least one, and the runs that have none."""
    found: dict[str, _Source] = {}
    halves: list[Path] = []
    for place in where:
        sources, without = _sources(place)
        halves += without
        for source in sources:
            found.setdefault(os.path.realpath(source.table), source)
    if not found:
        raise ResultsError(f"nothing to load; expected {_A_RUN}")
    return list(found.values()), list(dict.fromkeys(halves))


def _sources(place: str | Path) -> tuple[list[_Source], list[Path]]:
    """The tables at a path or glob, in order of path and at least one; and runs without."""
    path = Path(os.path.abspath(Path(place).expanduser()))
    if path.exists():  # First, for Hydra writes folders such as `seed=[0,1]`.
        sources, halves = _search(path)
        direct = halves == [path]
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise ResultsError(f"{place}: does not exist; expected {_A_RUN}")
        searched = [_search(Path(match)) for match in matches]
        sources = [source for some, _ in searched for source in some]
        halves = [half for _, some in searched for half in some]
        direct = False
    if not sources:
        if direct:
            raise ResultsError(f"{place}: holds a config but no {TABLE}; expected {_A_RUN}")
        also = f" but {len(halves)} without {TABLE}" if halves else ""
        raise ResultsError(f"{place}: holds no run{also}; expected {_A_RUN}")
    return sources, halves


def _search(path: Path) -> tuple[list[_Source], list[Path]]:
    """The tables at or under a path, and the folders of runs that have none."""
    if path.is_file():
        if path.suffix != ".parquet":
            return [], []
        return [_Source(path, path.parent if path.name == TABLE else path)], []
    if (path / TABLE).is_file():
        return [_Source(path / TABLE, path)], []
    sources: list[_Source] = []
    halves: list[Path] = []
    for child in sorted(path.iterdir()):
        # A link would be walked twice, or for ever; a hidden folder is another tool's own.
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            some, half = _search(child)
            sources += some
            halves += half
    is_run = (path / CONFIG).is_file() or (path / META).is_file()
    # A config above other runs is the sweep's own.
    return sources, [path] if is_run and not sources and not halves else halves


def _named(frame: pd.DataFrame, name: str, alone: bool) -> pd.DataFrame:
    """The table with its run, or runs, named so that no other file has the same name."""
    if len(frame["run"].unique()) <= 1:
        return frame.assign(run=pd.Series(name, index=frame.index, dtype=DTYPES["run"]))
    return frame if alone else frame.assign(run=name + "/" + frame["run"])


def _config(sources: Sequence[_Source], keys: Sequence[str]) -> dict[str, list[Any]]:
    """The value of each key in the config of each source, None where there is none."""
    columns: dict[str, list[Any]] = {key: [] for key in keys}
    for source in sources if keys else ():
        with _config_of(source) as settings:
            for key in keys:
                value = OmegaConf.select(settings, key)
                scalar = value is None or isinstance(value, bool | int | float | str)
                columns[key].append(value if scalar else str(value))
    return columns


@contextlib.contextmanager
def _config_of(source: _Source) -> Iterator[Any]:
    """The config next to a table, empty where there is none; an error names the file."""
    path = source.table.parent / CONFIG
    try:
        yield OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    except Exception as error:  # Of YAML's and OmegaConf's many kinds.
        raise ResultsError(f"{path}: cannot be read; expected a resolved config") from error


def _nodes(settings: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The key, in parts, and the value of everything in a mapping, at any depth."""
    for name, value in settings.items():
        key = (*above, str(name))
        yield key, value
        if isinstance(value, Mapping):
            yield from _nodes(value, key)


def _short(keys: Sequence[str]) -> list[str]:
    """Each key's last part, or as many of its last parts as no other key has."""
    split = [key.split(".") for key in keys]
    return [
        next(
            ".".join(key[-count:])
            for count in range(1, len(key) + 1)
            if count == len(key) or [other[-count:] for other in split].count(key[-count:]) == 1
        )
        for key in split
    ]


def _text(value: Any) -> str:
    """A value as text without spaces; whole numbers so, even where missing ones made them float."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return "".join(str(int(value) if whole else value).split())
