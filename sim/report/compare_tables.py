"""The tables of `sramsim compare`.

>>> compared_keys()[:2]
('verdict', 'completed')
"""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from sim.report.titled_tables import titled_table
from sim.results.labels import format_number
from sim.results.statistics import LATENCIES, statistic_key

if TYPE_CHECKING:
    from sim.studies.benchmark import BenchmarkComparison
    from sim.studies.compare import RunComparison, ValueChange


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


def change_tables(comparison: "RunComparison") -> RenderableType:
    """Return the tables of `sramsim compare`: changes of inputs, and of metrics."""
    parts: list[RenderableType] = []
    for run in comparison.runs:
        changes = run.changes
        title = f"{run.folder} against {comparison.base}"
        inputs = titled_table(f"{title}: inputs", [])
        for column in (comparison.base, run.folder):
            inputs.add_column(column, overflow="fold")
        for key, pair in changes.inputs.items():
            inputs.add_row(key, *("-" if value is None else str(value) for value in pair))
        metrics_table = titled_table(
            f"{title}: metrics", [comparison.base, run.folder, "change", "%"]
        )
        for name, metrics in changes.systems.items():
            for key in compared_keys():
                if key in metrics:
                    metrics_table.add_row(f"{name}: {key}", *_change(metrics[key]))
            metrics_table.add_section()
        parts += [inputs if changes.inputs else Text(f"{title}: the same inputs."), Text()]
        parts += [
            metrics_table if metrics_table.rows else Text(f"{title}: the same metrics."),
            Text(),
        ]
        for label, names in (
            (comparison.base, changes.only_in_base),
            (run.folder, changes.only_here),
        ):
            parts += [Text(f"Only in {label}: {', '.join(names)}."), Text()] if names else []
    return Group(*parts[:-1])


def benchmark_tables(comparison: "BenchmarkComparison") -> RenderableType:
    """Return the tables of `sramsim compare` for a run and a measured benchmark."""
    settings = ", ".join(f"{key} {value}" for key, value in comparison.settings.items())
    parts: list[RenderableType] = [Text(f"{comparison.benchmark}: {settings}"), Text()]
    for name, metrics in comparison.systems.items():
        table = titled_table(
            f"{comparison.run}, {name}, against {comparison.benchmark}",
            ["measured", "simulated", "error, %"],
        )
        for key, metric in metrics.items():
            table.add_row(
                key,
                format_number(metric.measured),
                format_number(metric.simulated),
                "" if metric.error_pct is None else f"{metric.error_pct:+.1f}",
            )
        parts += [table, Text()]
    for name, keys in comparison.unlike.items():
        parts.append(
            Text(
                f"{name}: not the same requests ({', '.join(keys)} differ). To replay the measured"
                " ones, save the benchmark with --save-detailed and use it as"
                " workload: {kind: trace, path: ...}."
            )
        )
    return Group(*(parts if comparison.unlike else parts[:-1]))


def _change(metric: "ValueChange") -> tuple[str, ...]:
    by, part = metric.difference, metric.percent
    sign = "+" if by and by > 0 else ""
    return (
        _value_text(metric.was),
        _value_text(metric.now),
        "" if by is None else sign + format_number(by),
        "" if part is None else f"{part:+.1f}",
    )


def _value_text(value: object) -> str:
    """Return a number as a person writes it, '-' for None, and other values as they are."""
    return format_number(value) if isinstance(value, int | float | None) else str(value)
