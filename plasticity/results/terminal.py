"""Prints the summary of results as tables in the terminal."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plasticity.results.arguments import checked
from plasticity.results.statistics import BASELINE, CONDITION

__all__ = ["print_summary"]


@checked()
def print_summary(
    summary_frame: pd.DataFrame, console: Console | None = None, *, baseline: str = BASELINE
) -> None:
    """Prints the result of `summary`, a table for each env and shift.

    If the console is too narrow for all columns, they are split over several tables, one below the
    other. Columns without any value, such as gains without a baseline or probes that were
    not run, are left out.

    Args:
      summary_frame: as returned by `summary`.
      console: where to print; the terminal if not given.
      baseline: the intervention that gains are relative to; by default `warm_start`.
    """
    out = console or Console()
    summarized = [
        name.removesuffix("_first")
        for name in summary_frame.columns
        if name.endswith("_first") and name != "return_first"
    ]
    heads = {"gain": f"vs {baseline}"}
    for (env, shift), rows in summary_frame.groupby(CONDITION):
        metrics = tuple(
            name
            for name in summarized
            if rows[[f"{name}_first", f"{name}_last"]].notna().any(axis=None)
        )
        # The columns of each table: the first layout is used of which all tables fit, or the last.
        layouts = (
            (("return", "loss", "gain", *metrics),),
            (("return", "loss", "gain"), metrics),
            (("return", "loss"), ("gain",), metrics),
        )
        # Counts that all rows share are in the title.
        counts = [name for name in ("seeds", "rounds") if len(rows[name].unique()) > 1]
        shared = [
            _count(rows[name].iloc[0], name) for name in ("seeds", "rounds") if name not in counts
        ]
        if rows["diverged"].any():
            counts.append("diverged")
        out.print(", ".join([f"{env}, shift: {shift}", *shared]), style="bold", markup=False)
        for layout in layouts:
            tables = [
                _table(rows, counts if "return" in columns else (), columns, heads, out)
                for columns in layout
                if columns
            ]
            if all(_fits(table, out) for table in tables):
                break
        for table in tables:
            out.print(table)
            out.print()
    out.print("First -> last, means over seeds; loss = first - last return, 95 % interval.")
    if summary_frame["gain"].notna().any():
        out.print(f"{heads['gain']}: last return - its return in the same rounds, 95 % interval.")
    if summary_frame["diverged"].any():
        out.print("Seeds that diverged are left out from the round in which they did.")


def _table(
    rows: pd.DataFrame,
    counts: Sequence[str],
    columns: Sequence[str],
    heads: Mapping[str, str],
    console: Console,
) -> Table:
    """Builds a table of counts, and of those of the columns that any row has."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown = [name for name in columns if name != "gain" or rows["gain"].notna().any()]
    table.add_column("intervention", overflow="fold")
    for name in (*counts, *shown):
        head = heads.get(name, name).replace("_", "\n")
        table.add_column(head, justify="right", no_wrap=True)
    arrow = "->" if console.options.ascii_only else "→"
    for row in rows.to_dict("records"):
        cells = [row["intervention"], *(str(row[name]) for name in counts)]
        cells += [_cell(row, name, arrow) for name in shown]
        table.add_row(*map(escape, cells))
    return table


def _cell(row: dict[str, float], name: str, arrow: str) -> str:
    """Formats `0.10 → 0.42`, or `+0.31 [+0.12, +0.50]` for a value with an interval."""
    if f"{name}_first" in row:
        return f" {arrow} ".join(_numbers(row[f"{name}_first"], row[f"{name}_last"]))
    interval = row[name], row[f"{name}_low"], row[f"{name}_high"]
    mean, low, high = _numbers(*interval, sign="+" if name == "gain" else "")
    return mean if math.isnan(row[f"{name}_low"]) else f"{mean} [{low}, {high}]"


def _fits(table: Table, console: Console) -> bool:
    """Returns whether the console is wide enough to show the table unfolded."""
    unlimited = console.options.update(max_width=10_000)
    return console.measure(table, options=unlimited).maximum <= console.width


def _count(number: int, name: str) -> str:
    """Formats `4 seeds` or `1 seed`."""
    return f"{number} {name if number != 1 else name.removesuffix('s')}"


def _numbers(*values: float, sign: str = "") -> list[str]:
    """Formats values with a number of decimals that suits the largest; NaN as `-`."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    decimals = 2 if largest < 10 else 1 if largest < 100 else 0
    form = f"{sign}.2e" if largest >= 1e5 else f"{sign}.{decimals}f"
    return ["-" if math.isnan(value) else f"{value:{form}}" for value in values]
