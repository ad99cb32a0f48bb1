"""The summary of results as a table in the terminal."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plasticity.results.statistics import BASELINE, PROBES, SETTING

# The columns of each table: those of the first of these of which all tables fit, or the last.
LAYOUTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("return", "loss", "gain", *PROBES),),
    (("return", "loss", "gain"), PROBES),
    (("return", "loss"), ("gain",), PROBES),
)
HEADS = {"gain": f"vs {BASELINE}"}


def print_summary(summary_frame: pd.DataFrame, console: Console | None = None) -> None:
    """Prints what `summary` returns, a table for each env and shift.

    Where the console is too narrow for all columns, they are in several tables, one below the
    other. What no row has is left out: a gain, seeds that diverged.

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
        if rows["diverged"].any():
            counts.append("diverged")
        out.print(", ".join([f"{env}, shift: {shift}", *shared]), style="bold", markup=False)
        for layout in LAYOUTS:
            tables = [
                _table(rows, counts if "return" in columns else (), columns, out)
                for columns in layout
            ]
            if all(_fits(table, out) for table in tables):
                break
        for table in tables:
            out.print(table)
            out.print()
    out.print("First -> last, means over seeds; loss = first - last return, 95 % interval.")
    if summary_frame["gain"].notna().any():
        out.print(f"{HEADS['gain']}: last return - its return in the same rounds, 95 % interval.")
    if summary_frame["diverged"].any():
        out.print("Seeds that diverged are left out from the round in which they did.")


def _table(
    rows: pd.DataFrame, counts: Sequence[str], columns: Sequence[str], console: Console
) -> Table:
    """A table of counts, and of those of the columns of `LAYOUTS` that any row has."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown = [name for name in columns if name != "gain" or rows["gain"].notna().any()]
    table.add_column("intervention", overflow="fold")
    for name in (*counts, *shown):
        head = HEADS.get(name, name).replace("_", "\n")
        table.add_column(head, justify="right", no_wrap=True)
    arrow = "->" if console.options.ascii_only else "→"
    for row in rows.to_dict("records"):
        cells = [row["intervention"], *(str(row[name]) for name in counts)]
        cells += [_cell(row, name, arrow) for name in shown]
        table.add_row(*map(escape, cells))
    return table


def _cell(row: dict[str, float], name: str, arrow: str) -> str:
    """`0.10 → 0.42`, or `+0.31 [+0.12, +0.50]` for what has an interval."""
    if f"{name}_first" in row:
        return f" {arrow} ".join(_numbers(row[f"{name}_first"], row[f"{name}_last"]))
    interval = row[name], row[f"{name}_low"], row[f"{name}_high"]
    mean, low, high = _numbers(*interval, sign="+" if name == "gain" else "")
    return mean if math.isnan(row[f"{name}_low"]) else f"{mean} [{low}, {high}]"


def _fits(table: Table, console: Console) -> bool:
    """Whether the console is wide enough to show the table unfolded."""
    unlimited = console.options.update(max_width=10_000)
    return console.measure(table, options=unlimited).maximum <= console.width


def _count(number: int, name: str) -> str:
    """`4 seeds`, `1 seed`."""
    return f"{number} {name if number != 1 else name.removesuffix('s')}"


def _numbers(*values: float, sign: str = "") -> list[str]:
    """Values of one quantity as text, with as many decimals as suit the largest; `-` for NaN."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    decimals = 2 if largest < 10 else 1 if largest < 100 else 0
    form = f"{sign}.2e" if largest >= 1e5 else f"{sign}.{decimals}f"
    return ["-" if math.isnan(value) else f"{value:{form}}" for value in values]
