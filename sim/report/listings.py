"""Tables of `validate`, `sensitivity`, `calibrate`, `catalog` and `show`. They print nothing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.titled_tables import left_titled_table, titled_table
from sim.results.labels import format_number, percent_text
from sim.results.sensitivity_summary import RequestMetrics, SensitivitySummary
from sim.units import format_quantity

if TYPE_CHECKING:
    from sim.results.sources import EntrySources, ListedEntry
    from sim.validation.agreement import PointComparison, ValidationReport
    from sim.validation.calibrate import Calibration
    from sim.validation.messages import MessageComparison


def agreement_tables(table: "ValidationReport") -> RenderableType:
    """Return the tables of `sramsim validate` for one set of points.

    They are the errors by status, metric, chip and engine, the worst points, kept and broken
    bounds, and the points that are not expressed or not scored.
    """
    parts: list[RenderableType] = [_error_table(table), Text()]
    if table.of_replies:
        parts += [Text(_fitted_to_replies(table)), Text()]
    if table.worst:
        parts += [*_worst_points(table), Text()]
    if any(table.bounds.values()):
        parts += [*_bounds(table), Text()]
    missing = _lines_by_reason(
        (row.reason, row.point.id) for row in table.rows if row.status == "not expressed"
    )
    if missing:
        parts += [Text("not expressed:", "bold"), *missing, Text()]
    if listed := [row for row in table.rows if row.status == "listed"]:
        parts += [Text("listed, not scored:", "bold"), *map(Text, _unscored_lines(listed)), Text()]
    return Group(*parts)


def _error_table(table: "ValidationReport") -> Table:
    """Return the errors of each group and metric: of all points, and by chip and engine."""
    errors = left_titled_table(
        f"{table.name}: error of the time, simulated / measured - 1", pad_edge=True
    )
    for column in ("points", "metric", "of"):
        errors.add_column(column, no_wrap=True)
    for column in ("n", "median |error|, %", "mean |error|, %", "bias, %"):
        errors.add_column(column, justify="right")
    for group, rows in table.groups.items():
        errors.add_section()
        for metric in sorted({row.metric for row in rows}):
            of_metric = [row for row in rows if row.metric == metric]
            errors.add_row(group, metric, "all", *_error_cells(of_metric), style="bold")
            for kind in ("chip", "engine"):
                _add_errors_by(errors, kind, of_metric)
    return errors


def _add_errors_by(errors: Table, kind: str, rows: Sequence["PointComparison"]) -> None:
    """Add a row for each chip or engine, if there are two or more."""
    by_name: dict[str, list[PointComparison]] = {}
    for row in rows:
        by_name.setdefault(getattr(row, kind), []).append(row)
    for name in sorted(by_name) if len(by_name) > 1 else ():
        errors.add_row("", "", name, *_error_cells(by_name[name]))


def _worst_points(table: "ValidationReport") -> list[RenderableType]:
    """Return a table of the points with the largest errors, and a line with each reason."""
    worst = left_titled_table("the ten farthest of those that count", pad_edge=True)
    names = ("point", "model", "chip", "engine", "metric")
    for column in (*names, "measured, ms", "simulated, ms", "error, %"):
        worst.add_column(column, justify="right" if "," in column else "left", no_wrap=True)
    reasons = []
    for row in table.worst:
        worst.add_row(
            row.point.id,
            *(row.model, row.chip, row.engine, row.metric),
            format_number(row.measured_ms),
            format_number(row.simulated_ms),
            f"{row.error_pct:+.0f}",
        )
        reasons.append(f"{row.point.id}: {row.reason or 'no reason is known'}")
    return [worst, Text(), *(Text(f"  {line}") for line in dict.fromkeys(reasons))]


def _bounds(table: "ValidationReport") -> list[RenderableType]:
    """Return the numbers of kept and broken bounds, with their points."""
    bounds = table.bounds
    counts = f"bounds: {len(bounds['kept'])} kept, {len(bounds['broken'])} broken"
    head = f"{counts}; a broken bound counts as an error above, a kept one does not count"
    lines: list[RenderableType] = [Text(head, "bold")]
    for kind, rows in bounds.items():
        lines += _lines_by_reason(((row.point.bound, row.point.id) for row in rows), f" {kind}")
    return lines


def _lines_by_reason(reasons: Iterable[tuple[str, str]], kind: str = "") -> list[Text]:
    """Return a line for each reason: its number of points of a kind, and the ids of five."""
    points: dict[str, dict[str, None]] = {}
    for reason, name in reasons:
        points.setdefault(reason, {})[name] = None
    lines = []
    for reason, names in points.items():
        shown = ", ".join(list(names)[:5]) + (
            f" and {len(names) - 5} more" if len(names) > 5 else ""
        )
        lines.append(Text(f"  {len(names)}{kind}: {reason} ({shown})"))
    return lines


def _fitted_to_replies(table: "ValidationReport") -> str:
    """Return a sentence on the scored replies, with the numbers that were fitted to them."""
    names = table.fitted_numbers
    fitted = (
        f"{len(names)} numbers were fitted to them: {', '.join(names)}"
        if names
        else "no number was fitted to them"
    )
    return f"{len(table.headline)} floors are scored; {fitted}."


def _unscored_lines(rows: Sequence["PointComparison"]) -> list[str]:
    """Return lines on points that are not scored.

    Points with times have a line of their own. Others share a line for each reason.
    """
    lines: list[str] = []
    without: dict[str, list[str]] = {}
    for row in rows:
        if row.measured_ms is None:
            without.setdefault(row.reason, []).append(f"{row.point.id} {row.metric}")
        else:
            times = f"measured {format_number(row.measured_ms)} ms, "
            times += f"simulated {format_number(row.simulated_ms)} ms"
            lines.append(f"  {row.point.id} {row.metric}: {times}: {row.reason}")
    return lines + [f"  {reason}: {', '.join(names)}" for reason, names in without.items()]


def _error_cells(rows: Sequence["PointComparison"]) -> tuple[str, str, str, str]:
    """Return number, median and mean absolute error, and bias of rows [%]."""
    from sim.validation.agreement import error_statistics

    errors = error_statistics(rows)
    return (
        str(errors.n),
        f"{errors.median_ape:.1f}",
        f"{errors.mape:.1f}",
        f"{errors.bias:+.1f}",
    )


# Metrics of `sramsim sensitivity`: the label of each field.
SENSITIVE_METRICS = {
    "tpot_ms": "TPOT, ms",
    "ttft_ms": "TTFT, ms",
    "joules_per_token": "J/token",
    "usd_per_mtok": "$/Mtok",
}
NEGLIGIBLE = 1e-3  # a smaller relative change of a metric has no row


def sensitivity_tables(summary: SensitivitySummary) -> RenderableType:
    """Return the tables of `sramsim sensitivity`, one for each system.

    Rows are the numbers that change speed or cost, then the band of all.
    """
    parts: list[RenderableType] = []
    for name, system in summary.systems.items():
        known = [key for key in SENSITIVE_METRICS if getattr(system.base, key) is not None]
        base = metric_values(system.base, known)
        table = titled_table(
            f"{summary.scenario}, {name}: {summary.requests}",
            ["is", *(SENSITIVE_METRICS[key] for key in known)],
        )
        table.add_column("source", overflow="fold", min_width=32)
        table.add_row("as the files say", "", *map(format_number, base), "")
        table.add_section()
        still = []
        for swing in system.swings:
            ends = [metric_values(end, known) if end else None for end in (swing.low, swing.high)]
            if all(end and _nearly_equal(end, base) for end in ends):
                still.append(swing.key)
                continue
            for text, end, first in zip(swing.ends, ends, (True, False), strict=True):
                cells = map(format_number, end) if end else ["does not fit"] * len(known)
                table.add_row(
                    swing.key if first else "", text, *cells, swing.source if first else ""
                )
        table.add_section()
        bands = (" to ".join(map(format_number, getattr(system.bands, key))) for key in known)
        table.add_row("all together", "", *bands, "if independent: deviations added in squares")
        parts += [table, Text()]
        if still:
            parts += [
                Text(
                    f"Without effect on {summary.requests}, to {percent_text(NEGLIGIBLE, 1)}: "
                    f"{', '.join(still)}.",
                    style="dim",
                ),
                Text(),
            ]
    return Group(*parts)


def metric_values(metrics: RequestMetrics, names: Iterable[str]) -> list[float]:
    """Return the values of some metrics that are known."""
    return [getattr(metrics, name) for name in names]


def _nearly_equal(values: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether two lists of metrics differ by a negligible part at most."""
    pairs = zip(values, others, strict=True)
    return all(math.isclose(*pair, rel_tol=NEGLIGIBLE) for pair in pairs)


def calibration_table(fit: "Calibration") -> RenderableType:
    """Return the table of `sramsim calibrate`."""
    table = titled_table(
        f"{fit.engine}: {fit.degrees} number{'s' * (fit.degrees > 1)} fitted to {fit.data}", []
    )
    for column in ("was", "is", "standard error", "between"):
        table.add_column(column, justify="right", no_wrap=True)
    for number in (*fit.moved, *fit.unidentifiable):
        kept = number in fit.unidentifiable
        between = f"{number.written(number.low)} and {number.written(number.high)}"
        fitted = (
            ("assumed", "not identified")
            if kept
            else (number.written(number.value), number.written(number.error))
        )
        table.add_row(",\n".join(number.keys), number.written(number.start), *fitted, between)
    from sim.validation.calibrate import TTFT_WEIGHT

    counted = f"of 100 ln(simulated / measured); a TTFT beside a TPOT counts {TTFT_WEIGHT:g} of it"
    return Group(table, Text(), Text(f"{fit.errors} ({counted})."))


def message_table(
    title: str, rows: Sequence["MessageComparison"], medians: Mapping[str, tuple[float, int]]
) -> RenderableType:
    """Return the table of `sramsim validate` for messages: measured and simulated times.

    Below are reasons of large errors, reasons of rows without simulation, and the median error.
    """
    table = left_titled_table(title)
    table.add_column("id", no_wrap=True)
    for column, width in (("system", 15), ("operation", 24), ("devices", 7), ("bytes", 10)):
        table.add_column(column, no_wrap=True, max_width=width, overflow="ellipsis")
    for column in ("measured", "simulated", "error, %"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("status", no_wrap=True)
    for row in rows:
        error = (
            Text("-")
            if row.error is None
            else Text(f"{100 * row.error:+.0f}", "yellow" if row.far else "")
        )
        unit = f" {row.unit}"
        simulated = "-" if row.simulated is None else format_number(row.simulated) + unit
        cells = (
            row.id,
            row.system,
            row.operation,
            row.devices,
            row.bytes,
            format_number(row.measured) + unit,
            simulated,
        )
        table.add_row(*cells, error, row.status or "-")
    lines = [
        f"{row.id}: {100 * row.error:+.0f} %: {row.reason or 'no reason is known'}"
        for row in rows
        if row.error and row.far
    ]
    missing = [f"{row.id}: {row.reason}" for row in rows if row.simulated is None]
    parts: list[RenderableType] = [table, Text()]
    for head, reasons in (("far off", lines), ("not simulated", missing)):
        if reasons:
            parts += [
                Text(f"{head}:", "bold"),
                *(Text(f"  {line}") for line in reasons),
                Text(),
            ]
    middle, count = medians["tested"]
    shares = ", ".join(
        f"{100 * medians[kind][0]:.1f} % of {medians[kind][1]} {kind}"
        for kind in ("free", "fitted")
        if kind in medians
    )
    echoed = medians.get("given", (0.0, 0))[1]
    left = f"not counted: {echoed} that were given, {len(missing)} not simulated"
    return Group(
        *parts,
        Text(
            f"median absolute error {100 * middle:.1f} % of {count} rows ({shares}); {left}", "bold"
        ),
    )


def catalogue_table(kind: str, entries: Sequence["ListedEntry"]) -> RenderableType:
    """Return one folder of the catalogue: names and titles, of chips their memories too."""
    memories = any(entry.memory for entry in entries)
    table = left_titled_table(kind, ("name",))
    for column in ("memory", "capacity", "bandwidth") if memories else ():
        table.add_column(column, no_wrap=True, justify="left" if column == "memory" else "right")
    table.add_column("what")
    for entry in entries:
        parts = entry.memory or {}
        cells = (
            "\n".join(parts),
            "\n".join(format_quantity(part.capacity, "B") for part in parts.values()),
            "\n".join(format_quantity(part.bandwidth, "B/s") for part in parts.values()),
        )
        table.add_row(entry.name, *(cells if memories else ()), entry.title)
    return table if entries else Text(f"{kind}: none yet")


def entry_table(entry: "EntrySources") -> RenderableType:
    """Return every number of a catalogue entry with its source."""
    table = titled_table(entry.title, [])
    table.add_column("value", no_wrap=True)
    table.add_column("source", overflow="fold")
    for key, value, source in entry.facts:
        table.add_row(
            key,
            value,
            Text(
                source,
                style="yellow" if source.startswith(("assumed", "fitted", "no source")) else "",
            ),
        )
    return Group(table, Text(), Text(entry.note)) if entry.note else table
