"""Tests of the results table and its file format."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results_helpers import (
    fabricate,
)

from plasticity import results


@pytest.fixture
def frame() -> pd.DataFrame:
    return fabricate()


def test_the_table_has_its_columns_in_order_and_of_their_types(frame: pd.DataFrame) -> None:
    shuffled = frame[list(reversed(results.COLUMNS))].astype({"seed": "int32", "value": "float32"})
    for made in (
        results.empty(),
        results.validate(shuffled),
        results.concat([results.empty(), frame]),
    ):
        assert tuple(made.columns) == results.COLUMNS
        assert {name: str(dtype) for name, dtype in made.dtypes.items()} == dict(results.DTYPES)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.parquet"
    results.write(frame, path)
    before = path.read_bytes()

    with pytest.raises(results.ResultsError, match="lacks columns value"):
        results.write(frame.drop(columns="value"), path)

    def half_written(_: pa.Table, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(OSError, match="no space"):
        results.write(frame, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tables_are_written_and_read_by_path_and_without_threads(
    tmp_path: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a thread that frees a buffer of Python's while the interpreter ends: status 134.

    Equal in contents and types to what pandas reads; "=" in a folder's name is no partition.
    """
    path = tmp_path / "seed=0" / "metrics.parquet"
    opened, threads = [], []

    class ByPath(pq.ParquetFile):
        def __init__(self, source: object, **options: object) -> None:
            opened.append(source)
            super().__init__(source, **options)

        def read(self, **options: object) -> pa.Table:
            threads.append(options["use_threads"])
            return super().read(**options)

    real = pq.write_table
    monkeypatch.setattr(pq, "ParquetFile", ByPath)
    monkeypatch.setattr(
        pq, "write_table", lambda content, where: (opened.append(where), real(content, where))
    )
    results.write(frame, path)
    loaded = results.read(path)
    assert [isinstance(place, str | Path) for place in opened] == [True, True]
    assert threads == [False]
    pd.testing.assert_frame_equal(loaded, frame)
    with path.open("rb") as file:
        pd.testing.assert_frame_equal(loaded, pd.read_parquet(file))
