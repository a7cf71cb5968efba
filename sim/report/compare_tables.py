"""The tables of `sramsim compare`.

>>> compared_keys()[:2]
('verdict', 'completed')
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sim.report.identity_rows import titled_table
from sim.results.labels import format_number
from sim.results.statistics import LATENCIES, statistic_key


def compared_keys() -> tuple[str, ...]:
    """Return the metrics that `compare` shows; --json has the rest."""
    counts = ("verdict", "completed", "refused", "cancelled", "preemptions")
    rates = ("output_throughput", "request_goodput")
    latencies = (
        statistic_key(statistic, name)
        for name, latency in LATENCIES.items()
        for statistic in latency.shown
    )
    unloaded = ("lone_request.ttft_ms", "lone_request.tpot_ms", "fitted_share")
    return (*counts, *rates, *latencies, *unloaded)


def change_tables(comparison: Mapping[str, Any]) -> RenderableType:
    """Return the tables of `sramsim compare`: changes of inputs, and of metrics."""
    parts: list[RenderableType] = []
    for run in comparison["runs"]:
        title = f"{run['folder']} against {comparison['base']}"
        inputs = titled_table(f"{title}: inputs", [])
        for column in (comparison["base"], run["folder"]):
            inputs.add_column(column, overflow="fold")
        for key, pair in run["inputs"].items():
            inputs.add_row(key, *("-" if value is None else str(value) for value in pair))
        metrics_table = titled_table(
            f"{title}: metrics", [comparison["base"], run["folder"], "change", "%"]
        )
        for name, metrics in run["systems"].items():
            for key in compared_keys():
                if key in metrics:
                    metrics_table.add_row(f"{name}: {key}", *_change(metrics[key]))
            metrics_table.add_section()
        parts += [inputs if run["inputs"] else Text(f"{title}: the same inputs."), Text()]
        parts += [
            metrics_table if metrics_table.rows else Text(f"{title}: the same metrics."),
            Text(),
        ]
        for label, names in (
            (comparison["base"], run["only_in_base"]),
            (run["folder"], run["only_here"]),
        ):
            parts += [Text(f"Only in {label}: {', '.join(names)}."), Text()] if names else []
    return Group(*parts[:-1])


def _change(metric: Mapping[str, Any]) -> tuple[str, ...]:
    was, now = (
        value if isinstance(value, str) else format_number(value)
        for value in (metric["base"], metric["is"])
    )
    by, part = metric["change"], metric["change_pct"]
    sign = "+" if by and by > 0 else ""
    return (
        was,
        now,
        "" if by is None else sign + format_number(by),
        "" if part is None else f"{part:+.1f}",
    )
