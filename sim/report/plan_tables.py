"""The tables of `sramsim plan` and `sramsim capacity`.

>>> from sim import plan, read
>>> plan_table(plan(read("fleet")).summary([4096]))  # doctest: +SKIP
"""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.identity_rows import (
    beat_rows,
    changed_numbers,
    cost_rows,
    identity_rows,
    loading_row,
)
from sim.report.tables import COLOURS
from sim.report.titled_tables import add_section, titled_table
from sim.results.capacity_summary import BestPlanSummary, CapacitySummary
from sim.results.labels import format_number, percent_text, system_labels
from sim.results.plan_summary import (
    ChipMemory,
    LayerCycle,
    PlannedSystem,
    PlanSummary,
    SpeculationGain,
    TriedPlan,
)
from sim.results.system_identity import UnloadedRequest
from sim.units import format_quantity


def _limits_text(slo: Mapping[str, float]) -> str:
    """Return limits by name [ms] as a text."""
    return ", ".join(f"{name.removesuffix('_ms').upper()} {ms:g} ms" for name, ms in slo.items())


def capacity_table(summary: CapacitySummary) -> RenderableType:
    """Return the table of `sramsim capacity`."""
    results, identities = list(summary.systems.values()), summary.identities
    labels = system_labels(identities)
    limits = _limits_text(summary.slo)
    table = titled_table(
        f"{summary.scenario}, seed {summary.seed}: the most that each system takes",
        labels.values(),
    )
    identity_rows(table, identities.values())
    table.add_section()
    unit = results[0].most.unit
    table.add_row(f"highest goodput, {unit}", *(format_number(s.most.load) for s in results))
    table.add_row("  for each chip", *(format_number(s.most.load_per_chip) for s in results))
    scales = [s.trace.time_scale for s in results if s.trace]
    if scales:
        table.add_row("  time_scale of the trace", *map(format_number, scales))
    table.add_row(
        "attainment there",
        *("-" if s.attainment is None else percent_text(s.attainment, 1) for s in results),
    )
    for kind in summary.kinds or {}:
        attained = ((s.kinds or {}).get(kind) for s in results)
        table.add_row(f"  of {kind}", *("-" if a is None else percent_text(a, 1) for a in attained))
    if any(s.sessions for s in results):
        table.add_row("sessions/s", *(format_number(s.sessions) for s in results))
    table.add_row(
        "output token/s, all users", *(format_number(s.output_throughput) for s in results)
    )
    for cost, cells in cost_rows([s.costs for s in results]):
        table.add_row(cost, *cells)
    table.add_row("what binds", *(s.binds or "-" for s in results))
    above = [s.above for s in results]
    table.add_row(f"just above, {unit}", *(format_number(a.load) if a else "-" for a in above))
    table.add_row("  attainment", *(percent_text(a.attainment, 1) if a else "-" for a in above))
    table.add_row(
        "  verdict", *(Text(a.verdict, style=COLOURS[a.verdict]) if a else "-" for a in above)
    )
    table.add_row("trials, of requests", *(f"{s.trials}, {s.requests:,}" for s in results))
    if any(s.best for s in results):
        table.add_section()
        _best_plans(table, [s.best for s in results], unit)
    lines = [
        *changed_numbers(identities),
        f"{100 * summary.attainment:g} % of the requests must meet {limits}.",
    ]
    if summary.kinds:
        kinds = (f"{name}: {_limits_text(slo) or 'none'}" for name, slo in summary.kinds.items())
        share = f"{100 * summary.attainment:g} % of each kind, or its percentile,"
        lines[-1] = f"{share} must meet its limits ({'; '.join(kinds)})."
    lines += [f"{labels[name]}: {s.reason}." for name, s in summary.systems.items() if s.reason]
    return Group(table, Text(), *map(Text, lines))


def _best_plans(table: Table, best: Sequence[BestPlanSummary | None], unit: str) -> None:
    """Add the best plan that `capacity --plans` found for each system."""
    plans = [b.plan if b else None for b in best]
    table.add_row(
        "best plan, tensor x pipeline x replicas", *(plan.text if plan else "-" for plan in plans)
    )
    if any(plan and plan.attention_data > 1 for plan in plans):
        table.add_row(
            "  attention data / expert",
            *(f"{plan.attention_data} / {plan.expert}" if plan else "-" for plan in plans),
        )
    if any(b and b.ffn for b in best):
        table.add_row("  FFN pool", *(b.ffn.text if b and b.ffn else "-" for b in best))
        turns = (str(b.ffn.micro_batches) if b and b.ffn else "-" for b in best)
        table.add_row("  micro-batches in turns", *turns)
    table.add_row(
        f"  highest goodput, {unit}", *(format_number(b.most.load) if b else "-" for b in best)
    )
    table.add_row(
        "  plans that fit / simulated",
        *(f"{b.considered} / {b.simulated}" if b else "-" for b in best),
    )


# Rows of `plan` for the contents of the fullest chip.
CHIP_PARTS: dict[str, Callable[[ChipMemory], float]] = {
    "weights": lambda held: held.weights,
    "KV of one request": lambda held: held.kv,
    "activations": lambda held: held.activations,
    "reserve": lambda held: held.reserve,
    "usable capacity": lambda held: held.capacity,
}


def plan_table(summary: PlanSummary) -> RenderableType:
    """Return the table of `sramsim plan`."""
    systems = list(summary.systems.values())
    identities = {name: system.identity for name, system in summary.systems.items()}
    labels = system_labels(identities)
    table = titled_table(f"{summary.scenario}: what each system holds", labels.values())
    identity_rows(table, identities.values())
    table.add_section()
    fits = (Text("yes", "green") if s.fits else Text("no", "red") for s in systems)
    table.add_row("fits", *fits)

    def row(label: str, cell: Callable[[PlannedSystem], str]) -> None:
        table.add_row(label, *(cell(s.plain) if s.plain else "-" for s in systems))

    row("fewest chips that are enough", lambda s: format_number(s.minimum_chips))
    row("chips that the weights alone fill", lambda s: format_number(s.weights_only_chips))
    for label, held in CHIP_PARTS.items():
        cells = (
            format_quantity(held(s.plain.bytes_per_chip), "B") if s.plain else "-" for s in systems
        )
        table.add_row(f"fullest chip: {label}", *cells)
    plain = [system for s in systems if (system := s.plain)]
    for length in plain[0].max_sequences if plain else ():
        counts = [s.plain.max_sequences[length] if s.plain else None for s in systems]
        cells = (f"{c.fullest_stage} (all memory: {c.all_memory})" if c else "-" for c in counts)
        table.add_row(f"sequences of {length} tokens", *cells)
    beat_rows(table, list(identities.values()))
    loading_row(table, list(identities.values()))
    table.add_section()
    _unloaded_rows(table, [s.plain.unloaded if s.plain else None for s in systems])
    add_section(table, DRAFT_ROWS, [s.plain.draft_gain if s.plain else None for s in systems])
    add_section(table, CYCLE_ROWS, [s.plain.layer_cycle if s.plain else None for s in systems])
    lines = changed_numbers(identities)
    lines += [
        _tried(labels[name], s.plain.tried)
        for name, s in summary.systems.items()
        if s.plain and s.plain.tried
    ]
    note = (
        "Admission is decided by the fullest stage; 'all memory' is what the chips could hold "
        "together. Terms are of a mean token's time."
    )
    return Group(table, Text(), *map(Text, lines), Text(note, style="dim"))


def _unloaded_rows(table: Table, requests: Sequence[UnloadedRequest | None]) -> None:
    """Add the times of a single request on each system, and of a token by cause."""
    ttft = (format_number(r.ttft_ms) if r else "-" for r in requests)
    table.add_row("single request: TTFT, ms", *ttft)
    tpot = (format_number(r.tpot_ms) if r else "-" for r in requests)
    table.add_row("single request: TPOT, ms", *tpot)
    for term in next((r.terms_ms for r in requests if r), {}):
        times = (format_number(r.terms_ms[term]) if r else "-" for r in requests)
        table.add_row(f"  {term}", *times)
    shares = (percent_text(r.fitted_share) if r else "-" for r in requests)
    table.add_row("fitted share of a token", *shares)


# Costs and gains of drafts for a single request.
DRAFT_ROWS: dict[str, Callable[[SpeculationGain], str]] = {
    "step without drafts = 1: verification": lambda gain: f"{gain.verify:.3f}",
    "  drafting": lambda gain: f"{gain.draft:.3f}",
    "  tokens of a step": lambda gain: f"{gain.tokens_per_step:.3f}",
    "  times as fast as without drafts": lambda gain: format_number(gain.speedup),
    "  chance of a draft from which they pay": lambda gain: (
        "none" if gain.break_even is None else format_number(gain.break_even)
    ),
}


# The times of a layer of a full step on an attention pool and an FFN pool.
CYCLE_ROWS: dict[str, Callable[[LayerCycle], str]] = {
    "a layer of a full step, us": lambda cycle: format_number(cycle.cycle_us),
    "  sequences, in micro-batches": lambda c: f"{c.sequences:,} in {c.micro_batches}",
    "  attention of one, us": lambda cycle: format_number(cycle.attention_us),
    "  out / back, us": lambda c: f"{format_number(c.out_us)} / {format_number(c.back_us)}",
    "  FFN of one, us": lambda c: (
        format_number(c.ffn_us)
        + (f" + {format_number(c.overlapped_us)} overlapped" if c.overlapped_us else "")
    ),
    "  what binds": lambda cycle: {"out_busy": "links", "back_busy": "links"}.get(
        cycle.binds, cycle.binds
    ),
}


def _tried(label: str, tried: Sequence[TriedPlan]) -> str:
    """Return how many plans the search tried, and the five best that fit."""
    fit = [plan for plan in tried if plan.fits]
    best = ", ".join(
        f"{plan.tensor} x {plan.attention_data} x {plan.pipeline} x {plan.replicas} "
        + (f"({format_number(1000 * plan.tpot)} ms)" if plan.tpot else f"({plan.chips} chips)")
        for plan in fit[:5]
    )
    text = f"{label}: {len(tried)} plans tried, {len(fit)} fit"
    return (
        f"{text}; the best, as tensor x attention data x pipeline x replicas: {best}"
        if fit
        else text
    )
