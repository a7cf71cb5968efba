"""The tables of `sramsim run --all`, made from a run's summary without simulation.

>>> from sim.results.saving import load_result
>>> run_tables(load_result(folder).summary)  # doctest: +SKIP
"""

import math
from collections.abc import Callable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.economics.owner_costs import CostEstimate, EconomicTerms
from sim.report.findings import notes, verdict_text
from sim.report.identity_rows import (
    WEIGHT_BANDWIDTHS,
    beat_rows,
    cost_rows,
    identity_rows,
    loading_row,
    plain_cells,
)
from sim.report.ordering_text import order_lines
from sim.report.titled_tables import add_section, titled_table
from sim.results.labels import (
    format_number,
    percent_text,
    published_speed,
    system_label,
    system_labels,
)
from sim.results.statistics import (
    LATENCIES,
    AvailabilityMetrics,
    FaultMetrics,
    Latency,
    Metrics,
    ReplayMetrics,
    TraceMetrics,
)
from sim.results.summary import RunSummary, SystemSummary
from sim.results.system_identity import SpeedPoint
from sim.results.verdict import NOT_STEADY
from sim.units import format_quantity

COLOURS = {
    "STABLE": "green",
    "BACKLOGGED": "yellow",
    "OVERLOADED": "red",
    "REFUSED": "red",
    "TOO SHORT": "yellow",
}


def comparison(summary: RunSummary, file: str = "") -> RenderableType:
    """Return the output of `sramsim run --all`: tables and sentences.

    file: the scenario's name or path, for a command to try.
    """
    parts = [part for table in run_tables(summary) for part in (table, Text())]
    return Group(*parts, *map(Text, [*notes(summary, file), *order_lines(summary)]))


def run_tables(summary: RunSummary) -> list[Table]:
    """Return the tables of costs over the years, of systems, and of a trace's own server.

    Left out: the costs if no prices are known, and the server if the trace has no answers.
    """
    shown = [systems_table(summary)]
    if summary.estimate and summary.economics:
        labels = system_labels(summary.identities)
        estimate = {labels[name]: cost for name, cost in summary.estimate.items()}
        shown.insert(0, estimate_table(summary.scenario, summary.economics, estimate))
    if summary.measured:
        shown.append(trace_table(summary.measured, summary.systems))
    return shown


# Counts that have a row if one is not zero.
COUNT_ROWS: dict[str, Callable[[Metrics], int]] = {
    "cancelled at the deadline": lambda metrics: metrics.cancelled,
    "preemptions": lambda metrics: metrics.preemptions,
    "failed with their replica": lambda metrics: metrics.failed,
    "started again after a failure": lambda metrics: metrics.retried,
    "  of these on another replica": lambda metrics: metrics.moved,
    "tokens cached": lambda metrics: metrics.cached_tokens,
}


def systems_table(summary: RunSummary) -> Table:
    """Return a table with a column for each system: identity, metrics, single-request times."""
    labels = system_labels(summary.identities).values()
    table = titled_table(f"{summary.scenario}, seed {summary.seed}", labels)
    systems = list(summary.systems.values())
    identity_rows(table, summary.identities.values(), [s.fidelity for s in systems])
    table.add_section()
    _metric_rows(table, systems)
    for label, cells in cost_rows([s.costs for s in systems]):
        table.add_row(label, *cells)
    _network_rows(table, systems)
    table.add_section()
    _unloaded_rows(table, systems)
    _availability_rows(table, systems)
    add_section(table, REPLAYS, [s.metrics.link_errors for s in systems])
    return table


def _metric_rows(table: Table, systems: Sequence[SystemSummary]) -> None:
    """Add the verdict, counts, latencies and throughputs."""
    metrics = [s.metrics for s in systems]
    table.add_row("verdict", *(Text(verdict_text(m), style=COLOURS[m.verdict]) for m in metrics))
    table.add_row("completed / refused", *(f"{m.completed} / {m.refused}" for m in metrics))
    for label, count in COUNT_ROWS.items():
        if any(map(count, metrics)):
            table.add_row(label, *(format_number(count(m)) for m in metrics))
    speeds = (marked_unsteady(m, format_number(m.user_speed)) for m in metrics)
    table.add_row("token/s of a user (median)", *speeds)
    for name, latency in LATENCIES.items():
        cells = (marked_unsteady(m, shown_statistics(m, name, latency)) for m in metrics)
        table.add_row(f"{latency.label} {' / '.join(latency.shown)}, ms", *cells)
        if any(m.ci95_mean(name) is not None for m in metrics):
            cells = (marked_unsteady(m, mean_interval(m, name)) for m in metrics)
            table.add_row("  mean and its 95 % interval", *cells)
    throughputs = (format_number(m.output_throughput) for m in metrics)
    table.add_row("output token/s, all users", *throughputs)
    if any(m.goodput for m in metrics):
        goodputs = (format_number(m.request_goodput) for m in metrics)
        table.add_row("good request/s (within SLO)", *goodputs)
    shares = ("-" if m.fitted_share is None else percent_text(m.fitted_share) for m in metrics)
    table.add_row("fitted share of a token", *shares)


def shown_statistics(metrics: Metrics, name: str, latency: Latency) -> str:
    """Return the statistics of a latency that tables show: '43.1 / 66.5'."""
    statistics = metrics.latency(name)
    return " / ".join(format_number(statistics[statistic]) for statistic in latency.shown)


def _network_rows(table: Table, systems: Sequence[SystemSummary]) -> None:
    if any(s.by_chip for s in systems):
        networks = [s.network for s in systems]
        messages = (format_number(n.messages) if n else "-" for n in networks)
        table.add_row("messages between chips", *messages)
        waits = (format_number(n.waited_ms) if n else "-" for n in networks)
        table.add_row("  waited for other messages, ms", *waits)
        ratios = (over_closed_form(s) for s in systems)
        table.add_row("TPOT over unloaded closed form", *ratios)


def _unloaded_rows(table: Table, systems: Sequence[SystemSummary]) -> None:
    """Add the speed of a single request, published speeds, and bandwidths of the weights."""
    identities = [s.identity for s in systems]
    speeds = (format_number(1000 / s.unloaded.tpot_ms) if s.unloaded else "-" for s in systems)
    table.add_row("token/s of a user (unloaded)", *speeds)
    if any(s.plain and s.plain.published for s in identities):
        published = plain_cells(identities, lambda s: published_speeds_text(s.published))
        table.add_row("published token/s of a user", *published)
    for label, rate in WEIGHT_BANDWIDTHS.items():
        rates = [format_quantity(rate(s.plain), "B/s") if s.plain else "-" for s in identities]
        table.add_row(f"weights: {label}", *rates)
    beat_rows(table, identities)
    loading_row(table, identities)


# Rows for steps that are repeated after link errors.
REPLAYS: dict[str, Callable[[ReplayMetrics], str]] = {
    "steps repeated after a link error": lambda replays: format_number(replays.replays),
    "  expected for as many steps": lambda replays: format_number(replays.expected_replays),
    "  a day, at this load": lambda replays: format_number(replays.replays_per_day),
    "  of all steps, %": lambda replays: format_number(100 * replays.replayed_share),
}


def estimate_table(
    scenario: str, terms: EconomicTerms, estimate: Mapping[str, CostEstimate]
) -> Table:
    """Return the cost of each system over the years, before any token [USD].

    estimate: by label.  The last columns are the first system as a multiple of each other one.
    """
    power = (
        f"${format_number(terms.hosting_usd_per_kw_month)} a kW and month"
        if terms.electricity_usd_per_kwh is None
        else f"${terms.electricity_usd_per_kwh:g} a kWh, PUE {terms.pue:g}"
    )
    first, *others = estimate
    title = f"{scenario}: over {terms.years:g} years, at {power}"
    table = titled_table(title, [*estimate, *(f"{first} / {name}" for name in others)])
    rows: dict[str, Callable[[CostEstimate], float]] = {
        "capex, $": lambda cost: cost.capex_usd,
        "opex, $": lambda cost: cost.opex_usd,
        "total, $": lambda cost: cost.total_usd,
    }
    for label, usd in rows.items():
        one, *rest = map(usd, estimate.values())
        ratios = (f"{one / other:.2f}" if other else "-" for other in rest)
        table.add_row(label, *(f"{cost:,.0f}" for cost in (one, *rest)), *ratios)
    return table


FaultCell = Callable[[AvailabilityMetrics, FaultMetrics], str]
# Availability rows that only plain systems have; model swaps only if they take time.
FAULT_ROWS: dict[str, FaultCell] = {
    "  in closed form, %": lambda a, f: percent(a, f.closed_form_availability),
    "  if swaps took no time, %": lambda a, f: percent(a, f.closed_form_availability_without_swaps),
    "  one horizon in twenty is below, %": lambda a, f: percent(a, f.p5_availability),
    "  without spares, MTBF/(MTBF+MTTR), %": lambda a, f: percent(a, f.series_availability),
    "MTBF of the parts at work, h": lambda a, f: format_number(f.mtbf_h),
    "swap of a part": lambda a, f: "-" if f.swap_s is None else format_quantity(f.swap_s, "s"),
}
MODEL_SWAP_ROWS: dict[str, FaultCell] = {
    "  lost to swaps of the model, %": lambda a, f: format_number(100 * f.lost_to_model_swaps)
}
OUTAGE_ROWS: dict[str, FaultCell] = {
    "outages a year": lambda a, f: format_number(f.outages_per_year)
}


def _availability_rows(table: Table, systems: Sequence[SystemSummary]) -> None:
    """Add the share of time that a system works, and its throughput with outages counted."""
    metrics = [s.metrics for s in systems]
    if not any(m.availability for m in metrics):
        return
    table.add_section()

    known = [m.availability for m in metrics]
    intervals = (
        f"{percent(a, a.availability)} ± {percent(a, a.ci95_availability)}" if a else "-"
        for a in known
    )
    table.add_row("availability, % and its 95 % interval", *intervals)
    rows = FAULT_ROWS
    if any(a and a.faults and a.faults.lost_to_model_swaps for a in known):
        rows = rows | MODEL_SWAP_ROWS
    for label, cell in (rows | OUTAGE_ROWS).items():
        table.add_row(label, *(cell(a, a.faults) if a and a.faults else "-" for a in known))
    cells = (
        format_number(m.availability.availability * m.output_throughput)
        if m.availability and m.output_throughput is not None
        else "-"
        for m in metrics
    )
    table.add_row("output token/s, outages counted", *cells)


def percent(availability: AvailabilityMetrics, share: float | None) -> str:
    """Return a share of time in %, with the digits that its interval allows; '-' for None."""
    certain = 100 * availability.ci95_availability or 1
    digits = max(1, 1 - math.floor(math.log10(certain)))
    return "-" if share is None else f"{100 * share:.{digits}f}"


def trace_table(measured: TraceMetrics, systems: Mapping[str, SystemSummary]) -> Table:
    """Return the latencies of the trace's own server next to those of each system."""
    labels = (system_label(name, s.identity) for name, s in systems.items())
    title = "as measured where the trace was taken, and simulated (error in %)"
    table = titled_table(title, ["measured", *labels])
    times = {"ttft": measured.ttft, "tpot": measured.tpot, "e2el": measured.e2el}
    for name, of_trace in times.items():
        for statistic in ("mean", "median", "p90"):
            was = of_trace[statistic]
            if was:
                simulated = (s.metrics.latency(name)[statistic] for s in systems.values())
                cells = (
                    f"{format_number(time)} ({100 * (time / was - 1):+.1f} %)" if time else "-"
                    for time in simulated
                )
                label = f"{LATENCIES[name].label} {statistic}, ms"
                table.add_row(label, format_number(was), *cells)
    return table


def marked_unsteady(metrics: Metrics, value: str) -> Text:
    """Return a statistic as text; red and with a star if the system has no steady state."""
    if metrics.verdict in NOT_STEADY and any(map(str.isdigit, value)):
        return Text(f"{value} *", style="red")
    return Text(value)


def mean_interval(metrics: Metrics, name: str) -> str:
    """Return '12.3 ± 0.4', or only the mean without an interval."""
    half, mean = metrics.ci95_mean(name), format_number(metrics.latency(name).mean)
    return mean if half is None else f"{mean} ± {format_number(half, 2)}"


def over_closed_form(system: SystemSummary) -> str:
    """Return the median TPOT over that of a single request in closed form.

    The ratio shows the effect of unlike chips and links, contention and other users.
    """
    tpot = system.metrics.tpot.median
    if not (system.by_chip and tpot and system.unloaded):
        return "-"
    return f"{tpot / system.unloaded.tpot_ms:.3f}"


def published_speeds_text(points: Sequence[SpeedPoint]) -> str:
    """Return the published speeds of the same model, chips, engine and width of weights."""
    ordered = sorted(points, key=lambda point: point.tokens_per_second)
    return ", ".join(map(published_speed, ordered)) or "-"
