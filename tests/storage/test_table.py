"""Tests of the results table and its file format."""

from pathlib import Path

import pandas as pd
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

    def half_written(_: pd.DataFrame, target: Path, **options: object) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", half_written)
    with pytest.raises(OSError, match="no space"):
        results.write(frame, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
