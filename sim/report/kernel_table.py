"""The table of `sramsim validate kernels`: errors by chip and backend."""

from collections import Counter

from rich.console import Group, RenderableType
from rich.text import Text

from sim.report.titled_tables import left_titled_table
from sim.results.labels import format_number
from sim.results.validation_summary import ValidationSummary


def kernel_table(title: str, summary: ValidationSummary) -> RenderableType:
    """Return the errors of a set of kernels by group, and why some rows are not simulated."""
    table = left_titled_table(
        f"{title}: error of the time of {summary.expressed} of {summary.total} kernels",
        pad_edge=True,
    )
    for column in ("rows", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("n", "median |error|, %", "mean |error|, %", "bias, %"):
        table.add_column(column, justify="right")
    for group, metrics in {"all": summary.metrics, **(summary.groups or {})}.items():
        for name, errors in metrics.items():
            sizes = (errors.median_ape, errors.mape, errors.bias)
            table.add_row(group, name, str(errors.n), *map(format_number, sizes))
    reasons = Counter(
        (row.status, row.reason)
        for row in summary.points
        if row.status in ("listed", "not expressed")
    )
    lines = [Text(f"{status}: {count} rows: {why}") for (status, why), count in reasons.items()]
    return Group(table, Text(), *lines)
