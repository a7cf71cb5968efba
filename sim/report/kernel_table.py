"""The tables of `sramsim validate kernels`: errors by kernel, chip, backend and shape."""

from collections import Counter
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.titled_tables import left_titled_table, titled_table
from sim.results.labels import format_number
from sim.results.validation_summary import ErrorStatistics, ValidationSummary

# Each kind of kernel is a column. All of them together are too wide for a terminal.
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")

ErrorsByMetric = Mapping[str, ErrorStatistics]


def kernel_table(title: str, summary: ValidationSummary) -> RenderableType:
    """Return the errors of a set of kernels by group, and why some rows are not simulated."""
    groups = summary.groups or {}
    shapes = {name: errors for name, errors in groups.items() if name.startswith("shape ")}
    pairs = {
        name: errors
        for name, errors in groups.items()
        if name not in shapes and name not in ("fitted", "assumed", "tested")
    }
    collectives = [name for name in summary.metrics if name in _COLLECTIVES]
    computing = [name for name in summary.metrics if name not in _COLLECTIVES]
    reasons = Counter(
        (row.status, row.reason)
        for row in summary.points
        if row.status in ("listed", "not expressed")
    )
    lines = [Text(f"{status}: {count} rows: {why}") for (status, why), count in reasons.items()]
    known = f"error of the time of {summary.expressed} of {summary.total} kernels"
    return Group(
        _errors(f"{title}: {known}", {"all": summary.metrics}),
        Text(),
        *(
            part
            for names in (computing, collectives)
            if names
            for part in (_medians("median |error| by chip and backend, %", pairs, names), Text())
        ),
        _errors("by shape", shapes),
        Text(),
        *lines,
    )


def _errors(title: str, groups: Mapping[str, ErrorsByMetric]) -> Table:
    table = left_titled_table(title, pad_edge=True)
    for column in ("rows", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("n", "median |error|, %", "mean |error|, %", "bias, %"):
        table.add_column(column, justify="right")
    for group, metrics in groups.items():
        for name, errors in metrics.items():
            sizes = (errors.median_ape, errors.mape, errors.bias)
            shown = group.removeprefix("shape ")
            table.add_row(shown, name, str(errors.n), *map(format_number, sizes))
    return table


def _medians(title: str, groups: Mapping[str, ErrorsByMetric], metrics: list[str]) -> Table:
    """Return the median error of each kind of kernel, a row for each group that has one."""
    table = titled_table(title, [name.replace("_", " ") for name in metrics])
    for group, errors in groups.items():
        if not any(name in errors for name in metrics):
            continue
        cells = (errors[name].median_ape if name in errors else None for name in metrics)
        table.add_row(group, *("" if cell is None else format_number(cell) for cell in cells))
    return table
