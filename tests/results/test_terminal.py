"""Tests of the printed summary."""

import io

import pandas as pd
import pytest
from results_helpers import (
    NAMES,
    diverge,
)
from rich.console import Console

from plasticity import results


@pytest.mark.parametrize("width", [80, 100])
def test_the_summary_fits_the_terminal(frame: pd.DataFrame, width: int) -> None:
    long = frame.replace({"intervention": {"shrink_perturb": "layer_norm+soft_shrink_perturb"}})
    for table in (frame, long):
        text = io.StringIO()
        results.print_summary(results.summary(table, last=2), Console(file=text, width=width))
        lines = text.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        (row,) = [line for line in lines if "warm_start" in line and "[" in line]
        assert "11.00 → 1.00" in row or "11.0 → 1.0" in row
        assert "10.0 [5.0, 15.0]" in row
        assert any("-1.0" in line for line in lines)
        assert any("+7.5 [+3.8, +11.2]" in line for line in lines)
        assert not any("diverged" in line for line in lines)


def printed(frame: pd.DataFrame, width: int) -> list[str]:
    text = io.StringIO()
    results.print_summary(results.summary(frame, last=2), Console(file=text, width=width))
    return text.getvalue().splitlines()


def test_a_table_of_100_columns_has_return_loss_gain_and_what_diverged(frame: pd.DataFrame) -> None:
    name = "soft_shrink_perturb_"
    lost = diverge(frame, "shrink_perturb", 1, 28).replace({"intervention": {NAMES[1]: name}})
    lines = printed(lost, 100)
    assert max(map(len, lines)) <= 100
    (row,) = [line.split() for line in lines if name in line and "[" in line]
    assert " ".join(row) == f"{name} 1 11.0 → 8.5 2.50 [1.25, 3.75] +7.5 [+3.8, +11.2]"
    (warm,) = [line.split() for line in lines if "warm_start" in line and "[" in line]
    assert " ".join(warm) == "warm_start 0 11.0 → 1.0 10.0 [5.0, 15.0] -"
    assert "left out from the round in which they did" in lines[-1]

    narrow = printed(lost, 80)
    assert max(map(len, narrow)) <= 80
    assert sum(name in line for line in narrow) == 3  # Three tables, no name folded.


def test_what_no_row_has_takes_no_place(frame: pd.DataFrame) -> None:
    one = frame[(frame["intervention"] == "warm_start") & (frame["seed"] == 0)]
    lines = printed(one, 100)
    assert not any(word in line for line in lines for word in ("vs", "diverged", "nan"))
    assert any("10.00 → 5.00" in line or "10.0 → 5.0" in line for line in lines)


def test_a_probe_that_was_not_run_takes_no_place(frame: pd.DataFrame) -> None:
    """Would catch a column of `- → -`, as where one environment of two has a probe."""
    first = frame[frame["metric"] != "dead_units"].assign(env="first")
    lines = printed(results.concat([first, frame.assign(env="second")]), 200)
    (start,) = [number for number, line in enumerate(lines) if line.startswith("second")]
    assert not any("dead" in line or "- → -" in line for line in lines[:start])
    assert any("dead" in line for line in lines[start:])
