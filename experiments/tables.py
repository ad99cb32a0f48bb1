"""Tables in Markdown, and tables on the terminal that can be pasted into it."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table


def markdown_table(*columns: str, title: str) -> Table:
    """Returns an empty table, all columns but the first aligned to the right."""
    width = max(map(len, title.splitlines()))
    table = Table(*columns, title=title, min_width=width, box=box.MARKDOWN)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def print_table(table: Table) -> None:
    """Prints a table, whole where the terminal is too narrow for it."""
    whole = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, whole)).print(table)


def methods_table(
    table: pd.DataFrame, column: str, titles: Mapping[Any, str], cell: Callable[[Any], str]
) -> str:
    """Formats a Markdown table with a row for each intervention, in order of appearance.

    Args:
      table: has the column `intervention`.
      column: the column whose values are the columns of the Markdown table.
      titles: the title of each of these values, in order.
      cell: formats a row of `table`, a named tuple. Missing cells are empty.
    """
    lines = [f"| | {' | '.join(titles.values())} |", "| --- " * (len(titles) + 1) + "|"]
    for name, rows in table.groupby("intervention", sort=False):
        cells = {getattr(row, column): cell(row) for row in rows.itertuples()}
        lines.append(f"| `{name}` | {' | '.join(cells.get(key, '') for key in titles)} |")
    return "\n".join(lines)
