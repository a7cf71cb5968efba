"""Results for people: tables on a terminal.  Builds what the command line prints; prints nothing itself."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.cost.program import CollectiveOp
from sim.inputs.files import UserError
from sim.report.identity_rows import (
    beat_rows,
    changes,
    cost_rows,
    identity_rows,
    loading_row,
    titled,
)
from sim.report.tables import COLOURS
from sim.results.encoding import decode_summary
from sim.results.labels import format_number
from sim.results.plan_summary import ChipMemory, PlannedSystem, PlanSummary, TriedPlan
from sim.results.statistics import LATENCIES, statistic_key
from sim.results.summary import TokenCosts
from sim.results.system_identity import PlanDegrees, UnloadedRequest, read_identity
from sim.units import format_quantity

if TYPE_CHECKING:
    from sim.cost.program import Instruction, Program
    from sim.hardware.topology import Topology
    from sim.planning.deployment import Deployment
    from sim.validation.calibrate import Calibrated
    from sim.validation.messages import Row
    from sim.validation.validate import Compared
    from sim.validation.validate import Table as Validation


def capacities(summary: Mapping[str, Any]) -> RenderableType:
    """The table of `sramsim capacity`, from what `capacity --json` prints."""
    systems = summary["systems"]
    identities = {name: read_identity(system) for name, system in systems.items()}
    limits = ", ".join(
        f"{name.removesuffix('_ms').upper()} {ms:g} ms" for name, ms in summary["slo"].items()
    )
    table = titled(
        f"{summary['scenario']}, seed {summary['seed']}: the most that each system takes",
        list(systems),
    )
    identity_rows(table, identities.values())
    table.add_section()
    each = list(systems.values())
    what, label = ("users", "users") if "max_goodput_users" in each[0] else ("rate", "request/s")
    table.add_row(
        f"highest goodput, {label}", *(format_number(s[f"max_goodput_{what}"]) for s in each)
    )
    table.add_row(
        "  for each chip", *(format_number(s[f"max_goodput_{what}_per_chip"]) for s in each)
    )
    if any("time_scale" in s for s in each):
        table.add_row("  time_scale of the trace", *(format_number(s["time_scale"]) for s in each))
    table.add_row(
        "attainment there",
        *(f"{s['attainment']:.1%}" if s["attainment"] is not None else "-" for s in each),
    )
    table.add_row(
        "output token/s, all users", *(format_number(s["output_throughput"]) for s in each)
    )
    for cost, cells in cost_rows([decode_summary(TokenCosts, s) for s in each]):
        table.add_row(cost, *cells)
    table.add_row("what binds", *(s["binds"] or "-" for s in each))
    above = [s["above"] for s in each]
    table.add_row(f"just above, {label}", *(format_number(a["load"]) if a else "-" for a in above))
    table.add_row("  attainment", *(f"{a['attainment']:.1%}" if a else "-" for a in above))
    table.add_row(
        "  verdict", *(Text(a["verdict"], style=COLOURS[a["verdict"]]) if a else "-" for a in above)
    )
    table.add_row("trials, of requests", *(f"{s['trials']}, {s['requests']:,}" for s in each))
    if any("best" in s for s in each):
        table.add_section()
        _best_plans(table, [s.get("best") for s in each], what, label)
    lines = [
        *changes(identities),
        f"Within {limits} are to be {100 * summary['attainment']:g} % of the requests.",
    ]
    lines += [f"{name}: {s['reason']}." for name, s in systems.items() if s["reason"]]
    return Group(table, Text(), *map(Text, lines))


def _best_plans(
    table: Table, best: Sequence[Mapping[str, Any] | None], what: str, label: str
) -> None:
    """Add what `capacity --plans` found for each system."""
    plans = [decode_summary(PlanDegrees, b["plan"]) if b else None for b in best]
    table.add_row(
        "best plan, tensor x pipeline x replicas", *(plan.text if plan else "-" for plan in plans)
    )
    if any(plan and plan.attention_data > 1 for plan in plans):
        table.add_row(
            "  attention data / expert",
            *(f"{plan.attention_data} / {plan.expert}" if plan else "-" for plan in plans),
        )
    table.add_row(
        f"  highest goodput, {label}",
        *(format_number(b[f"max_goodput_{what}"]) if b else "-" for b in best),
    )
    table.add_row(
        "  plans that fit / simulated",
        *(f"{b['considered']} / {b['simulated']}" if b else "-" for b in best),
    )


# What the fullest chip holds, in the table of `plan`.
CHIP_PARTS: dict[str, Callable[[ChipMemory], float]] = {
    "weights": lambda held: held.weights,
    "KV of one request": lambda held: held.kv,
    "activations": lambda held: held.activations,
    "reserve": lambda held: held.reserve,
    "usable capacity": lambda held: held.capacity,
}


def planning(summary: PlanSummary) -> RenderableType:
    """Return the table of `sramsim plan`."""
    systems = list(summary.systems.values())
    identities = {name: system.identity for name, system in summary.systems.items()}
    table = titled(f"{summary.scenario}: what each system holds", list(identities))
    identity_rows(table, identities.values())
    table.add_section()
    fits = (Text("yes", "green") if s.fits else Text("no", "red") for s in systems)
    table.add_row("fits", *fits)

    def row(label: str, cell: Callable[[PlannedSystem], str]) -> None:
        table.add_row(label, *(cell(s.plain) if s.plain else "-" for s in systems))

    row("fewest chips that would do", lambda s: format_number(s.minimum_chips))
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
    lines = changes(identities)
    lines += [
        _tried(name, s.plain.tried)
        for name, s in summary.systems.items()
        if s.plain and s.plain.tried
    ]
    note = (
        "Admission is decided by the fullest stage; 'all memory' is what the chips could hold "
        "together. Terms are of a mean token's time."
    )
    return Group(table, Text(), *map(Text, lines), Text(note, style="dim"))


def _unloaded_rows(table: Table, requests: Sequence[UnloadedRequest | None]) -> None:
    """Add the times of a single request on each system, and those of a token by cause."""
    ttft = (format_number(r.ttft_ms) if r else "-" for r in requests)
    table.add_row("lone request: TTFT, ms", *ttft)
    tpot = (format_number(r.tpot_ms) if r else "-" for r in requests)
    table.add_row("lone request: TPOT, ms", *tpot)
    for term in next((r.terms_ms for r in requests if r), {}):
        times = (format_number(r.terms_ms[term]) if r else "-" for r in requests)
        table.add_row(f"  {term}", *times)
    shares = (f"{r.fitted_share:.0%}" if r else "-" for r in requests)
    table.add_row("fitted share of a token", *shares)


def _tried(name: str, tried: Sequence[TriedPlan]) -> str:
    """Return how many plans the search tried, and the five best that fit."""
    fit = [plan for plan in tried if plan.fits]
    best = ", ".join(
        f"{plan.tensor} x {plan.attention_data} x {plan.pipeline} x {plan.replicas} "
        + (f"({format_number(1000 * plan.tpot)} ms)" if plan.tpot else f"({plan.chips} chips)")
        for plan in fit[:5]
    )
    text = f"{name}: {len(tried)} plans tried, {len(fit)} fit"
    return (
        f"{text}; the best, as tensor x attention data x pipeline x replicas: {best}"
        if fit
        else text
    )


def listing(
    system: str, deployment: "Deployment", steps: "Program", chip: int | None
) -> RenderableType:
    """The table of `sramsim trace --program`: each stage's instructions, stages that do the same told once; or one chip's part."""
    plan, topology = deployment.layout.plan, deployment.layout.topology
    if chip is not None and chip >= plan.stage_size * plan.pipeline_depth:
        raise UserError(
            f"--chip {chip}: a replica has {plan.stage_size * plan.pipeline_depth} chips, from 0"
        )
    title = f"{system}: one decode step on {plan.pipeline_depth} stages of {plan.stage_size} chips"
    table = Table(
        title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False
    )
    for column, right in (
        ("stages", False),
        ("each chip", False),
        ("us", True),
        ("bytes", True),
        ("messages", True),
        ("how", False),
    ):
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "how")
    shown: dict[tuple[object, ...], list[int]] = {}
    for stage, instructions in enumerate(steps.stages):
        if chip is None or chip // plan.stage_size == stage:
            alike = tuple(
                line[1:] for line in (_instruction(each, topology) for each in instructions)
            )
            shown.setdefault(alike, []).append(stage)
    for stages in shown.values():
        table.add_section()
        where = _ranges(stages)
        for each in steps.stages[stages[0]]:
            table.add_row(where, *_instruction(each, topology))
            where = ""
        if stages[0] < plan.pipeline_depth - 1:
            time = deployment.costs.hops(1)[stages[0] + 1]
            table.add_row(
                "",
                "send a slice to the next stage",
                format_number(1e6 * time),
                format_number(steps.slice_bytes),
                "1",
                "own place",
            )
        elif plan.pipeline_depth > 1:
            back = format_number(1e6 * deployment.costs.back)
            table.add_row(
                "",
                "send the sampled token back",
                back,
                format_number(steps.token_bytes),
                "1",
                "from the first chip",
            )
    parts: list[RenderableType] = [table]
    if chip is not None:
        parts += [
            Text(),
            *(Text(line) for line in _sent(chip, steps.stages[chip // plan.stage_size], topology)),
        ]
    note = "Times are those of the closed forms; layers are named as in the first of stages that are alike."
    return Group(*parts, Text(), Text(note, style="dim"))


def _instruction(each: "Instruction", topology: "Topology") -> tuple[str, str, str, str, str]:
    """What, microseconds, bytes of the whole collective, messages of the group, by which way."""
    if not isinstance(each, CollectiveOp):
        return each.label, format_number(1e6 * each.seconds), "", "", ""
    exchange = each.exchange
    group = exchange.groups[0]
    messages = sum(map(len, topology.messages(exchange.operation, group, exchange.ways[0])))
    how = " ".join(each for each in exchange.ways[0] if isinstance(each, str)) or exchange.operation
    if exchange.operation not in topology.uncontended(group):
        how += ", in its own way"
    several = f"{len(exchange.groups)} x " if len(exchange.groups) > 1 else ""
    return (
        each.label,
        format_number(1e6 * exchange.time),
        format_number(exchange.nbytes),
        f"{several}{messages:,}",
        how,
    )


def _sent(chip: int, instructions: "Sequence[Instruction]", topology: "Topology") -> list[str]:
    """What one chip sends in each of its collectives, phase by phase."""
    lines = []
    for each in instructions:
        if not isinstance(each, CollectiveOp):
            continue
        exchange = each.exchange
        group, way = next(
            each for each in zip(exchange.groups, exchange.ways, strict=True) if chip in each[0]
        )
        for phase, messages in enumerate(topology.messages(exchange.operation, group, way), 1):
            sent = [message for message in messages if message.source == chip]
            told = (
                ", ".join(
                    f"{m.target} ({format_number(m.share * exchange.nbytes)} B)" for m in sent[:8]
                )
                or "nothing"
            )
            more = f" and {len(sent) - 8} more" if len(sent) > 8 else ""
            lines.append(f"{each.label}, phase {phase}: chip {chip} sends to {told}{more}")
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """'0, 2-5, 7'."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))


def agreement(table: "Validation") -> RenderableType:
    """The tables of `sramsim validate` for one set: errors by status, metric, chip and engine; the worst; what is not expressed."""
    parts: list[RenderableType] = []
    title = f"{table.name}: ln(simulated / measured) of the time"
    errors = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    for column in ("points", "metric", "of"):
        errors.add_column(column, no_wrap=True)
    for column in ("n", "median |error|, %", "mean |error|, %", "bias, %"):
        errors.add_column(column, justify="right")
    for group, rows in table.groups.items():
        errors.add_section()
        for metric in sorted({row.metric for row in rows}):
            of_metric = [row for row in rows if row.metric == metric]
            errors.add_row(group, metric, "all", *told(of_metric), style="bold")
            for kind in ("chip", "engine"):
                names = sorted({row.as_json()[kind] for row in of_metric})
                for name in names if len(names) > 1 else ():
                    errors.add_row(
                        "",
                        "",
                        name,
                        *told([row for row in of_metric if row.as_json()[kind] == name]),
                    )
    parts += [errors, Text()]
    if table.of_replies:
        parts += [Text(fitted_to_replies(table)), Text()]
    if table.worst:
        worst = Table(
            title="the ten farthest of those that count",
            title_justify="left",
            title_style="bold",
            show_edge=False,
        )
        for column in (
            "point",
            "model",
            "chip",
            "engine",
            "metric",
            "measured, ms",
            "simulated, ms",
            "error, %",
        ):
            worst.add_column(column, justify="right" if "," in column else "left", no_wrap=True)
        reasons = []
        for each in (row.as_json() for row in table.worst):
            cells = (each[key] for key in ("point_id", "model", "chip", "engine", "metric"))
            worst.add_row(
                *cells,
                format_number(each["measured"]),
                format_number(each["simulated"]),
                f"{each['error_pct']:+.0f}",
            )
            reasons.append(f"{each['point_id']}: {each['reason'] or 'no reason is known'}")
        parts += [worst, Text(), *(Text(f"  {line}") for line in dict.fromkeys(reasons)), Text()]
    bounds = table.bounds
    if any(bounds.values()):
        counts = f"bounds: {len(bounds['kept'])} kept, {len(bounds['broken'])} broken"
        parts.append(
            Text(
                f"{counts}; a broken bound counts as an error above, a kept one does not count",
                "bold",
            )
        )
        for kind, rows in bounds.items():
            parts += by_reason(((row.point.bound, row.point.id) for row in rows), f" {kind}")
        parts.append(Text())
    missing = by_reason(
        (row.reason, row.point.id) for row in table.rows if row.status == "not expressed"
    )
    if missing:
        parts += [Text("not expressed:", "bold"), *missing, Text()]
    if listed := [row for row in table.rows if row.status == "listed"]:
        parts += [Text("listed, not scored:", "bold"), *map(Text, not_scored(listed)), Text()]
    return Group(*parts)


def by_reason(reasons: Iterable[tuple[str, str]], kind: str = "") -> list[Text]:
    """Return a line for each reason, with its number of points (of a kind) and the first five of their ids."""
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


def fitted_to_replies(table: "Validation") -> str:
    """How many numbers were fitted to the replies that are scored."""
    names = table.fitted_numbers
    fitted = (
        f"{len(names)} numbers were fitted to them: {', '.join(names)}"
        if names
        else "no number was fitted to them"
    )
    return f"{len(table.headline)} floors are scored; {fitted}."


def not_scored(rows: Sequence["Compared"]) -> list[str]:
    """Lines of floors that are no error: those with times one by one, the others by their reason."""
    lines: list[str] = []
    without: dict[str, list[str]] = {}
    for row in rows:
        each = row.as_json()
        if each["measured"] is None:
            without.setdefault(row.reason, []).append(f"{row.point.id} {row.metric}")
        else:
            times = f"measured {format_number(each['measured'])} ms, simulated {format_number(each['simulated'])} ms"
            lines.append(f"  {row.point.id} {row.metric}: {times}: {row.reason}")
    return lines + [f"  {reason}: {', '.join(names)}" for reason, names in without.items()]


def told(rows: Sequence["Compared"]) -> tuple[str, str, str, str]:
    from sim.validation.validate import statistics

    found = statistics(rows)
    return (
        str(found["n"]),
        f"{found['median_ape']:.1f}",
        f"{found['mape']:.1f}",
        f"{found['bias']:+.1f}",
    )


# What `sramsim sensitivity` shows: keys of a system and of its swings, and the key of the band of all numbers together.
MOVED = {
    "tpot_ms": ("TPOT, ms", "tpot_band_ms"),
    "ttft_ms": ("TTFT, ms", "ttft_band_ms"),
    "joules_per_token": ("J/token", "joules_per_token_band"),
    "usd_per_mtok": ("$/Mtok", "usd_per_mtok_band"),
}
NOTHING = 1e-3  # a part of a metric that is not worth a row


def swings(scenario: str, systems: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """The table of `sramsim sensitivity`: the numbers that move what a lone user gets or pays, and the band of all together."""
    parts: list[RenderableType] = []
    for name, system in systems.items():
        keys = [key for key in MOVED if key in system]
        table = titled(
            f"{scenario}, {name}: a lone request", ["is", *(MOVED[key][0] for key in keys)]
        )
        table.add_column("source", overflow="fold", min_width=32)
        table.add_row("as the files say", "", *(format_number(system[key]) for key in keys), "")
        table.add_section()
        still = []
        for swing in system["swings"]:
            ends = [swing[end] for end in ("low", "high")]
            if all(
                end and all(math.isclose(end[key], system[key], rel_tol=NOTHING) for key in keys)
                for end in ends
            ):
                still.append(swing["key"])
                continue
            for text, end in zip(swing["range"], ends, strict=True):
                cells = [format_number(end[key]) if end else "does not fit" for key in keys]
                first = text == swing["range"][0]
                table.add_row(
                    swing["key"] if first else "",
                    str(text),
                    *cells,
                    swing["source"] if first else "",
                )
        table.add_section()
        bands = (" to ".join(format_number(each) for each in system[MOVED[key][1]]) for key in keys)
        table.add_row("all together", "", *bands, "if independent: deviations added in squares")
        parts += [table, Text()]
        if still:
            parts += [
                Text(
                    f"Without effect on a lone request, to {NOTHING:.1%}: {', '.join(still)}.",
                    style="dim",
                ),
                Text(),
            ]
    return Group(*parts)


def calibrated(fit: "Calibrated") -> RenderableType:
    """The table of `sramsim calibrate`."""
    table = titled(
        f"{fit.engine}: {fit.degrees} number{'s' * (fit.degrees > 1)} fitted to {fit.data}", []
    )
    for column in ("was", "is", "standard error", "between"):
        table.add_column(column, justify="right")
    for each in (*fit.moved, *fit.unidentifiable):
        kept = each in fit.unidentifiable
        between = f"{each.written(each.low)} and {each.written(each.high)}"
        found = (
            ("not identifiable", "-")
            if kept
            else (each.written(each.value), each.written(each.error))
        )
        table.add_row(", ".join(each.keys), each.written(each.start), *found, between)
    from sim.validation.calibrate import TTFT_WEIGHT

    line = (
        f"root mean square error {100 * fit.error:.1f} %, leave-one-out {100 * fit.left_out:.1f} %"
    )
    return Group(
        table, Text(), Text(f"{line} (a TTFT beside a TPOT counts {TTFT_WEIGHT:g} of it).")
    )


def validated(
    title: str, rows: Sequence["Row"], medians: Mapping[str, tuple[float, int]]
) -> RenderableType:
    """The table of `sramsim validate`: every row, then why some are far off, why some are not simulated, and the sum of it all."""
    table = Table(
        title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False
    )
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
    for head, told in (("far off", lines), ("not simulated", missing)):
        if told:
            parts += [Text(f"{head}:", "bold"), *(Text(f"  {line}") for line in told), Text()]
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


def changed(found: Mapping[str, Any]) -> RenderableType:
    """The tables of `sramsim compare`: what went in otherwise, what came out otherwise."""
    parts: list[RenderableType] = []
    for run in found["runs"]:
        title = f"{run['folder']} against {found['base']}"
        given = titled(f"{title}: inputs", [])
        for column in (found["base"], run["folder"]):
            given.add_column(column, overflow="fold")
        for key, pair in run["inputs"].items():
            given.add_row(key, *("-" if value is None else str(value) for value in pair))
        came = titled(f"{title}: metrics", [found["base"], run["folder"], "change", "%"])
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


def entries(kind: str, titles: Mapping[str, str]) -> RenderableType:
    """One folder of the catalogue: names and what they are."""
    table = Table(
        "name",
        "what",
        title=kind,
        title_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=False,
    )
    for name, title in titles.items():
        table.add_row(name, title)
    return table if titles else Text(f"{kind}: none yet")


def sourced(title: str, facts: list[tuple[str, str, str]], note: str = "") -> RenderableType:
    """Every number of a catalogue entry with where it comes from."""
    table = titled(title, [])
    table.add_column("value", no_wrap=True)
    table.add_column("source", overflow="fold")
    for key, value, source in facts:
        table.add_row(
            key,
            value,
            Text(
                source,
                style="yellow" if source.startswith(("assumed", "fitted", "no source")) else "",
            ),
        )
    return Group(table, Text(), Text(note)) if note else table
