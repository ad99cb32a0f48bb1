"""Tables on the terminal that can be pasted into Markdown."""

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
