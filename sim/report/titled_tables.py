"""Tables of Rich with their title on the left.

>>> titled_table("fleet, seed 0", ["lpu", "h100"]).columns[1].justify
'right'
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.table import Table

ColumnValue = TypeVar("ColumnValue")


def left_titled_table(title: str, columns: Iterable[str] = (), pad_edge: bool = False) -> Table:
    """Return a table without a frame. pad_edge: whether its first column begins with a space."""
    return Table(
        *columns,
        title=title,
        title_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=pad_edge,
    )


def titled_table(title: str, columns: Iterable[str]) -> Table:
    """Return a table whose first column has names, and whose others are aligned to the right."""
    table = left_titled_table(title)
    table.header_style = "bold"
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def add_section(
    table: Table,
    rows: Mapping[str, Callable[[ColumnValue], str]],
    values: Sequence[ColumnValue | None],
) -> None:
    """Add a section with a row for each label and a value for each column; none without values."""
    if any(values):
        table.add_section()
        for label, cell in rows.items():
            table.add_row(label, *(cell(value) if value else "-" for value in values))
