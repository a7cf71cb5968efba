"""The tables of `sramsim compare`.

>>> compared_keys()[:2]
('verdict', 'completed')
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sim.report.identity_rows import (
    titled_table,
)
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


def change_tables(found: Mapping[str, Any]) -> RenderableType:
    """The tables of `sramsim compare`: what went in otherwise, what came out otherwise."""
    parts: list[RenderableType] = []
    for run in found["runs"]:
        title = f"{run['folder']} against {found['base']}"
        given = titled_table(f"{title}: inputs", [])
        for column in (found["base"], run["folder"]):
            given.add_column(column, overflow="fold")
        for key, pair in run["inputs"].items():
            given.add_row(key, *("-" if value is None else str(value) for value in pair))
        came = titled_table(f"{title}: metrics", [found["base"], run["folder"], "change", "%"])
        for name, metrics in run["systems"].items():
            for key in compared_keys():
                if key in metrics:
                    came.add_row(f"{name}: {key}", *_change(metrics[key]))
            came.add_section()
        parts += [given if run["inputs"] else Text(f"{title}: the same inputs."), Text()]
        parts += [came if came.rows else Text(f"{title}: the same metrics."), Text()]
        for label, names in (
            (found["base"], run["only_in_base"]),
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
