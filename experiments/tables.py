"""Tables on the terminal that can be pasted into Markdown, and in CSV files."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from plasticity.storage.table import replacing


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


def write_csv(data: pd.DataFrame, path: Path) -> None:
    """Writes a data frame without its index, as a whole or not at all."""
    with replacing(path) as temporary:
        data.to_csv(temporary, index=False)
