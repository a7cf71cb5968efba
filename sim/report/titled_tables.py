"""Tables of Rich with their title on the left.

>>> titled_table("fleet, seed 0", ["lpu", "h100"]).columns[1].justify
'right'
"""

from collections.abc import Iterable

from rich.table import Table


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
