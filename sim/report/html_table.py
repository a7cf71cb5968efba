"""A table as HTML, for the page and for notebooks."""

from html import escape

from rich.table import Column, Table
from rich.text import Text


def as_html(table: Table) -> str:
    """Return a table as HTML without style.

    The class of a coloured cell is its colour. A section becomes a tbody.
    """
    heads = (f"<th{_aligned(column)}>{_cell(column.header)}</th>" for column in table.columns)
    rows, body = zip(*(column.cells for column in table.columns), strict=True), ""
    for cells, row in zip(rows, table.rows, strict=True):
        name, *values = cells
        data = "".join(
            f"<td{_aligned(column)}>{_cell(value)}</td>"
            for column, value in zip(table.columns[1:], values, strict=True)
        )
        body += f'<tr><th scope="row">{_cell(name)}</th>{data}</tr>' + (
            "</tbody><tbody>" if row.end_section else ""
        )
    title = f"<caption>{_cell(table.title)}</caption>" if table.title else ""
    return f"<table>{title}<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"


def _aligned(column: Column) -> str:
    return ' style="text-align: right"' if column.justify == "right" else ""


def _cell(cell: object) -> str:
    """Return the escaped text of a cell, because names come from files."""
    style = str(cell.style) if isinstance(cell, Text) else ""
    text = escape(cell.plain if isinstance(cell, Text) else str(cell))
    return f'<span class="{escape(style)}">{text}</span>' if style else text
