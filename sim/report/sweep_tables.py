"""The table that `sramsim plot` prints for a sweep: a row for each point and system.

>>> METRICS["output_throughput"]
'output token/s'
"""

from collections.abc import Sequence

from rich.table import Table

from sim.report.titled_tables import left_titled_table
from sim.results.labels import format_number
from sim.studies.sweep import Swept

# Columns of a sweep's table, and their headings. The others are in table.csv.
METRICS = {
    "median_ttft_ms": "TTFT, ms",
    "median_tpot_ms": "TPOT, ms",
    "output_throughput": "output token/s",
    "energy.joules_per_token": "J a token",
    "economics.usd_per_mtok": "$ a million",
}


def point_table(swept: Swept, metrics: Sequence[str] = ()) -> Table:
    """Return the values, the system, the verdict and the medians of each row, or its error.

    metrics: columns to show instead of those in `METRICS`.
    """
    rows, keys = swept.table, swept.summary.keys
    shown = {name: METRICS.get(name, name) for name in metrics or METRICS if name in rows.columns}
    table = left_titled_table(f"{swept.summary.scenario}: {', '.join(keys)}")
    for heading in (*(key.rpartition(".")[2] for key in keys), "system"):
        table.add_column(heading)
    for heading in ("verdict", *shown.values()):
        table.add_column(heading, justify="right")
    for row in rows.iter_rows(named=True):
        label = row.get("label") or row["system"]
        values = ["-" if row[key] is None else str(row[key]) for key in keys]
        if row["error"]:
            table.add_row(*values, label, "error", row["error"])
            continue
        cells = [format_number(row[name]) for name in shown]
        table.add_row(*values, label, row["verdict"], *cells)
    return table
