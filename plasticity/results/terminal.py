"""The summary of results as a table in the terminal."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plasticity.results.statistics import PROBES, SETTING


def print_summary(summary_frame: pd.DataFrame, console: Console | None = None) -> None:
    """Prints what `summary` returns, a table for each env and shift.

    Where the console is too narrow for all columns, the return and the networks' metrics are in
    two tables, one below the other.

    Args:
      summary_frame: as `summary` returns it.
      console: where to print; the terminal if not given.
    """
    out = console or Console()
    for (env, shift), rows in summary_frame.groupby(SETTING):
        # What all rows share needs no column.
        counts = [name for name in ("seeds", "rounds") if len(rows[name].unique()) > 1]
        shared = [
            _count(rows[name].iloc[0], name) for name in ("seeds", "rounds") if name not in counts
        ]
        out.print(", ".join([f"{env}, shift: {shift}", *shared]), style="bold", markup=False)
        tables = [_table(rows, counts, ("return", *PROBES), out)]
        unlimited = out.options.update(max_width=10_000)
        if out.measure(tables[0], options=unlimited).maximum > out.width:
            tables = [_table(rows, counts, ("return",), out), _table(rows, [], PROBES, out)]
        for table in tables:
            out.print(table)
            out.print()
    out.print("First -> last, means over seeds; loss = first - last return, 95 % interval.")


def _table(
    rows: pd.DataFrame, counts: Sequence[str], metrics: Sequence[str], console: Console
) -> Table:
    """A table of counts, and first and last values of the metrics; the return's has the loss."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("intervention", overflow="fold")
    heads = [name.replace("_", "\n") for name in metrics]
    if "return" in metrics:
        heads.insert(1, "loss")
    for head in (*counts, *heads):
        table.add_column(head, justify="right", no_wrap=True)
    arrow = "->" if console.options.ascii_only else "→"
    for row in rows.to_dict("records"):
        cells = [row["intervention"], *(str(row[name]) for name in counts)]
        for metric in metrics:
            first, last = _numbers(row[f"{metric}_first"], row[f"{metric}_last"])
            cells.append(f"{first} {arrow} {last}")
            if metric == "return":
                mean, low, high = _numbers(row["loss"], row["loss_low"], row["loss_high"])
                cells.append(f"{mean} [{low}, {high}]")
        table.add_row(*map(escape, cells))
    return table


def _count(number: int, name: str) -> str:
    """`4 seeds`, `1 seed`."""
    return f"{number} {name if number != 1 else name.removesuffix('s')}"


def _numbers(*values: float) -> list[str]:
    """Values of one quantity as text, with as many decimals as suit the largest of them."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest >= 1e5:
        return [f"{value:.2e}" for value in values]
    decimals = 2 if largest < 10 else 1 if largest < 100 else 0
    return [f"{value:.{decimals}f}" for value in values]
