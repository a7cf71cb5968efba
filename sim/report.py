"""A result for people: tables on a terminal.  Builds what the command line prints; prints nothing itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.files import UserError
from sim.program import Talk
from sim.units import show

if TYPE_CHECKING:
    from sim.calibrate import Calibrated
    from sim.messages import Row
    from sim.planner import Deployment
    from sim.program import Instruction, Program
    from sim.topology import Topology
    from sim.validate import Compared
    from sim.validate import Table as Validation


COLOURS = {"STABLE": "green", "BACKLOGGED": "yellow", "OVERLOADED": "red"}


def number(value: float | None, digits: int = 3) -> str:
    """A number as a person writes it, '-' for none."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 10**digits else f"{value:.{digits}g}"
    return f"{value:#.{digits}g}" if value else "0"


def titled(title: str, columns: list[str]) -> Table:
    """A table whose first column names and whose others are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def identity(table: Table, systems: Mapping[str, Mapping[str, Any]]) -> None:
    """What a result names: chips, engine, precisions, plan; of a fleet its members, which have columns of their own."""
    each = list(systems.values())
    table.add_row("model", *(s["model"] for s in each))
    table.add_row("chips", *(hardware(s) for s in each))
    table.add_row("engine", *of_plain(each, lambda s: s["engine"]))
    kinds = ("weights", "activations", "kv", "head")
    table.add_row("weights/act./KV/head", *of_plain(each, lambda s: "/".join(s["precision"][kind] for kind in kinds)))
    table.add_row("tensor x pipeline x replicas", *of_plain(each, lambda s: degrees(s["plan"])))
    plain = [s for s in each if not is_fleet(s)]
    if any(s["plan"]["attention_data"] > 1 or s["plan"]["expert"] > 1 for s in plain):
        cells = of_plain(each, lambda s: f"{s['plan']['attention_data']} / {s['plan']['expert']}")
        table.add_row("attention data / expert", *cells)
    if any(map(by_chip, each)):
        table.add_row("fidelity", *(s["fidelity"] for s in each))
    if any(len(s["memories"]) > 1 for s in plain):
        table.add_row("weights in / KV in", *of_plain(each, lambda s: f"{s['memory']['weights']} / {s['memory']['kv']}"))


def is_fleet(system: Mapping[str, Any]) -> bool:
    return "members" in system


def of_plain(systems: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """A row of what only a plain system has, '-' for fleets."""
    return ["-" if is_fleet(system) else cell(system) for system in systems]


def hardware(system: Mapping[str, Any]) -> str:
    """'576 x groq-lpu-v1', of a fleet '1 lpu + 4 h100x8'."""
    if is_fleet(system):
        return " + ".join(f"{member['copies']} {name}" for name, member in system["members"].items())
    return f"{system['chips']} x {system['chip']}"


def degrees(plan: Mapping[str, Any]) -> str:
    return " x ".join(str(plan[key]) for key in ("tensor", "pipeline", "replicas"))


def comparison(summary: Mapping[str, Any]) -> RenderableType:
    """The table of `sramsim run`, and what it comes to in a sentence."""
    systems = summary["systems"]
    table = titled(f"{summary['scenario']}, seed {summary['seed']}", list(systems))
    identity(table, systems)
    table.add_section()
    each = list(systems.values())
    table.add_row("verdict", *(Text(s["verdict"], style=COLOURS[s["verdict"]]) for s in each))
    table.add_row("completed / refused", *(f"{s['completed']} / {s['refused']}" for s in each))
    for key, label in (
        ("cancelled", "cancelled at the deadline"),
        ("preemptions", "preemptions"),
        ("cached_tokens", "tokens cached"),
    ):
        if any(s.get(key) for s in each):
            table.add_row(label, *(number(s[key]) for s in each))
    table.add_row("token/s of a user (median)", *(marked(s, number(speed(s))) for s in each))
    for name, label in (("ttft", "TTFT"), ("tpot", "TPOT"), ("itl", "ITL"), ("e2el", "E2E latency")):
        pairs = (f"{number(s[f'median_{name}_ms'])} / {number(s[f'p99_{name}_ms'])}" for s in each)
        table.add_row(f"{label} median / p99, ms", *(marked(s, pair) for s, pair in zip(each, pairs, strict=True)))
        if any(s.get(f"ci95_mean_{name}_ms") is not None for s in each):
            table.add_row("  mean and its 95 % interval", *(marked(s, interval(s, name)) for s in each))
    table.add_row("output token/s, all users", *(number(s["output_throughput"]) for s in each))
    if any("request_goodput" in s for s in each):
        table.add_row("good request/s (within SLO)", *(number(s.get("request_goodput")) for s in each))
    table.add_row("fitted share of a token", *of_plain(each, lambda s: f"{s['fitted_share']:.0%}"))
    if any(map(by_chip, each)):
        networks = [s.get("network", {}) for s in each]
        table.add_row("messages between chips", *(number(n.get("messages")) for n in networks))
        table.add_row("  waited for other messages, ms", *(number(n.get("waited_ms")) for n in networks))
        table.add_row("TPOT over a lone one's in closed form", *of_plain(each, over_closed_form))
    table.add_section()
    table.add_row("token/s of a lone user", *of_plain(each, lambda s: number(1000 / s["lone_request"]["tpot_ms"])))
    if any(s.get("published") for s in each):
        table.add_row("published token/s of a user", *of_plain(each, lambda s: speeds_of(s["published"])))
    for label, rate in WEIGHT_BANDWIDTHS.items():
        table.add_row(f"weights: {label}", *("-" if is_fleet(s) else show(rate(s), "B/s") for s in each))
    noted = [f"Of the trace: {summary['note']}."] if "note" in summary else []
    if any("measured" in s for s in each):
        spans = {name: s["measured"] for name, s in systems.items()}
        told = ", ".join(f"{name} from {number(span['from'])} to {number(span['to'])} s" for name, span in spans.items())
        noted.append(f"Counted: {told}; ITL and verdict of the whole run.")
    beside = [against(summary["measured"], systems), Text()] if "measured" in summary else []
    return Group(table, Text(), *beside, *(Text(line) for line in [*noted, *findings(systems)]))


def against(measured: Mapping[str, float], systems: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """What the trace's own server did beside each system."""
    table = titled("as measured where the trace was taken, and simulated", ["measured", *systems])
    for name in ("ttft", "tpot"):
        for statistic in ("mean", "median", "p90"):
            was = measured.get(key := f"{statistic}_{name}_ms")
            if was:
                times = [s.get(key) for s in systems.values()]
                cells = (f"{number(is_)} ({100 * math.log(is_ / was):+.1f} %)" if is_ else "-" for is_ in times)
                table.add_row(f"{name.upper()} {statistic}, ms", number(was), *cells)
    return table


def capacities(summary: Mapping[str, Any]) -> RenderableType:
    """The table of `sramsim capacity`."""
    systems = summary["systems"]
    limits = ", ".join(f"{name.removesuffix('_ms').upper()} {ms:g} ms" for name, ms in summary["slo"].items())
    table = titled(f"{summary['scenario']}, seed {summary['seed']}: the most that each system takes", list(systems))
    identity(table, systems)
    table.add_section()
    each = list(systems.values())
    what, label = ("users", "users") if "max_goodput_users" in each[0] else ("rate", "request/s")
    table.add_row(f"highest goodput, {label}", *(number(s[f"max_goodput_{what}"]) for s in each))
    table.add_row("  for each chip", *(number(s[f"max_goodput_{what}_per_chip"]) for s in each))
    if any("time_scale" in s for s in each):
        table.add_row("  time_scale of the trace", *(number(s["time_scale"]) for s in each))
    table.add_row("attainment there", *(f"{s['attainment']:.1%}" if s["attainment"] is not None else "-" for s in each))
    table.add_row("output token/s, all users", *(number(s["output_throughput"]) for s in each))
    table.add_row("what binds", *(s["binds"] or "-" for s in each))
    above = [s["above"] for s in each]
    table.add_row(f"just above, {label}", *(number(a["load"]) if a else "-" for a in above))
    table.add_row("  attainment", *(f"{a['attainment']:.1%}" if a else "-" for a in above))
    table.add_row("  verdict", *(Text(a["verdict"], style=COLOURS[a["verdict"]]) if a else "-" for a in above))
    table.add_row("trials, of requests", *(f"{s['trials']}, {s['requests']:,}" for s in each))
    lines = [f"Within {limits} are to be {100 * summary['attainment']:g} % of the requests."]
    lines += [f"{name}: {s['reason']}." for name, s in systems.items() if s["reason"]]
    return Group(table, Text(), *map(Text, lines))


def marked(system: Mapping[str, Any], value: str) -> Text:
    """A statistic as it may be read: of an overloaded system in red, with a star that leads to the line below the table."""
    return Text(f"{value} *", style="red") if system["verdict"] == "OVERLOADED" and value != "-" else Text(value)


def interval(system: Mapping[str, Any], name: str) -> str:
    """'12.3 ± 0.4', or the mean alone where there is no interval."""
    half, mean = system[f"ci95_mean_{name}_ms"], number(system[f"mean_{name}_ms"])
    return mean if half is None else f"{mean} ± {number(half, 2)}"


def by_chip(system: Mapping[str, Any]) -> bool:
    return bool(system.get("fidelity") == "chip")


def over_closed_form(system: Mapping[str, Any]) -> str:
    """What chips and links that are not alike, contention and other users add to a token's time."""
    tpot = system["median_tpot_ms"]
    return f"{tpot / system['lone_request']['tpot_ms']:.3f}" if by_chip(system) and tpot else "-"


def speeds_of(points: Sequence[Mapping[str, Any]]) -> str:
    """What was published for the same model on as many of the same chips, whatever the engine and the precision."""
    return ", ".join(number(speed) for speed in sorted(point["tokens_per_second"] for point in points)) or "-"


# How fast weights can be read, as it may be counted.  A token passes the stages one after the other, so one stage at a time
# works for it; all chips together work only where the pipeline is full.
WEIGHT_BANDWIDTHS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "a chip, as its maker counts": lambda s: float(s["weight_bandwidth"]["claimed"]),
    "a chip, by a matrix-vector multiply": lambda s: float(s["weight_bandwidth"]["chip"]),
    "a stage, for one token": lambda s: (
        float(s["weight_bandwidth"]["chip"]) * s["chips"] / s["plan"]["pipeline"] / s["plan"]["replicas"]
    ),
    "all chips, with a full pipeline": lambda s: float(s["weight_bandwidth"]["chip"]) * s["chips"],
}


def speed(system: Mapping[str, Any]) -> float | None:
    """Output tokens a second that the median user gets: 1/TPOT."""
    tpot = system["median_tpot_ms"]
    return 1000 / tpot if tpot else None


def findings(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the comparison comes to: the fastest system against each other one, and warnings where a verdict is not STABLE."""
    lines = []
    speeds = {name: s for name, system in systems.items() if (s := speed(system))}
    if len(speeds) > 1:
        best = max(speeds, key=lambda name: speeds[name])
        others = ", ".join(f"{ratio(speeds[best] / s)} times that of {name}" for name, s in speeds.items() if name != best)
        lines.append(f"{best} gives a user {number(speeds[best])} token/s: {others}.")
        lines += claims({name: s for name, s in systems.items() if not is_fleet(s)}, speeds)
    for name, system in systems.items():
        lines += [f"{name}: {shares(system)}."] if is_fleet(system) else []
    for name, system in systems.items():
        if system["verdict"] == "OVERLOADED":
            lines.append(f"* {name} is overloaded: its backlog grows, and its latencies are those of this run's length only.")
        elif system["verdict"] == "BACKLOGGED":
            lines.append(f"{name} is backlogged: more than a tenth of its requests waited longer than they were served.")
        for link in system.get("network", {}).get("links_waited_for", [])[:1]:
            whole = number(system["network"]["waited_ms"])
            lines.append(
                f"{name}: messages waited most for the link {link['link']}: {number(link['waited_ms'])} of {whole} ms, "
                f"for {link['messages']:,} messages."
            )
        if system["refused"]:
            lines.append(f"{name} refused {system['refused']} requests that could never fit; requests.parquet says why.")
    return lines


def shares(fleet: Mapping[str, Any]) -> str:
    """What each member of a fleet served, and how fast."""
    told = []
    for name, member in fleet["members"].items():
        part = f"{member['completed'] / fleet['completed']:.0%}" if fleet["completed"] else "none"
        times = (f"{label} {number(member[f'median_{key}_ms'])} ms" for key, label in (("ttft", "TTFT"), ("tpot", "TPOT")))
        told.append(f"{name} served {part} of the requests" + (f" (median {', '.join(times)})" if member["completed"] else ""))
    return ", ".join(told)


def ratio(value: float) -> str:
    """'7.1'; near 1 with the digits that tell it from 1."""
    return f"{value:.3f}" if value < 1.15 else f"{value:.1f}"


def claims(systems: Mapping[str, Mapping[str, Any]], speeds: Mapping[str, float]) -> list[str]:
    """Where the first system's maker claims a bandwidth: what becomes of it, by each way to count, against the others."""
    first, *rest = systems
    claimed = systems[first]["weight_bandwidth"]
    lines = []
    for name in rest if claimed["claimed"] > 1.01 * claimed["chip"] else ():
        if systems[name]["chip"] == systems[first]["chip"]:
            continue
        ratios = (f"{rate(systems[first]) / rate(systems[name]):,.1f} ({label})" for label, rate in WEIGHT_BANDWIDTHS.items())
        lines.append(f"Reading weights, {first} over {name}: {', '.join(ratios)}.")
        lone = systems[name]["lone_request"]["tpot_ms"] / systems[first]["lone_request"]["tpot_ms"]
        busy = f", {speeds[first] / speeds[name]:.1f} under this load" if {first, name} <= speeds.keys() else ""
        lines.append(f"Speed of a user, {first} over {name}: {lone:.1f} alone{busy}.")
    return lines


def planning(summary: Mapping[str, Any]) -> RenderableType:
    """The table of `sramsim plan`."""
    systems = summary["systems"]
    table = titled(f"{summary['scenario']}: what each system holds", list(systems))
    identity(table, systems)
    table.add_section()
    each = list(systems.values())
    table.add_row("fits", *(Text("yes", "green") if s["fits"] else Text("no", "red") for s in each))
    table.add_row("fewest chips that would do", *of_plain(each, lambda s: number(s["minimum_chips"])))
    table.add_row("chips that the weights alone fill", *of_plain(each, lambda s: number(s["weights_only_chips"])))
    for part in ("weights", "kv", "activations", "reserve", "capacity"):
        label = {"kv": "KV of one request", "capacity": "usable capacity"}.get(part, part)
        table.add_row(f"fullest chip: {label}", *("-" if is_fleet(s) else show(s["bytes_per_chip"][part], "B") for s in each))
    for length in next(s["max_sequences"] for s in each if not is_fleet(s)):
        counts = [s["max_sequences"][length] if not is_fleet(s) else None for s in each]
        cells = (f"{c['fullest_stage']} (all memory: {c['all_memory']})" if c else "-" for c in counts)
        table.add_row(f"sequences of {length} tokens", *cells)
    table.add_section()
    lines: list[Text] = []
    lone = [s.get("lone_request") for s in each]
    table.add_row("lone request: TTFT, ms", *(number(r["ttft_ms"]) if r else "-" for r in lone))
    table.add_row("lone request: TPOT, ms", *(number(r["tpot_ms"]) if r else "-" for r in lone))
    for term in next((r["terms_ms"] for r in lone if r), {}):
        table.add_row(f"  {term}", *(number(r["terms_ms"][term]) if r else "-" for r in lone))
    table.add_row("fitted share of a token", *(f"{r['fitted_share']:.0%}" if r else "-" for r in lone))
    for name, system in systems.items():
        if tried := system.get("tried"):
            fit = [t for t in tried if t["fits"]]
            best = (
                f"{t['tensor']} x {t['attention_data']} x {t['pipeline']} x {t['replicas']} ({number(1000 * t['tpot'])} ms)"
                for t in fit[:5]
            )
            told = f"; the best, as tensor x attention data x pipeline x replicas: {', '.join(best)}" if fit else ""
            lines.append(Text(f"{name}: {len(tried)} plans tried, {len(fit)} fit{told}"))
    note = (
        "Admission is decided by the fullest stage; 'all memory' is what the chips could hold together. "
        "Terms are of a mean token's time."
    )
    return Group(table, Text(), *lines, Text(note, style="dim"))


def listing(system: str, deployment: "Deployment", steps: "Program", chip: int | None) -> RenderableType:
    """The table of `sramsim trace --program`: each stage's instructions, stages that do the same told once; or one chip's part."""
    plan, topology = deployment.layout.plan, deployment.layout.topology
    if chip is not None and chip >= plan.group * plan.depth:
        raise UserError(f"--chip {chip}: a replica has {plan.group * plan.depth} chips, from 0")
    title = f"{system}: one decode step on {plan.depth} stages of {plan.group} chips"
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
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
        if chip is None or chip // plan.group == stage:
            alike = tuple(line[1:] for line in (_instruction(each, topology) for each in instructions))
            shown.setdefault(alike, []).append(stage)
    for stages in shown.values():
        table.add_section()
        where = _ranges(stages)
        for each in steps.stages[stages[0]]:
            table.add_row(where, *_instruction(each, topology))
            where = ""
        if stages[0] < plan.depth - 1:
            time = deployment.costs.hops(1)[stages[0] + 1]
            table.add_row("", "send a slice to the next stage", number(1e6 * time), number(steps.slice_bytes), "1", "own place")
        elif plan.depth > 1:
            back = number(1e6 * deployment.costs.back)
            table.add_row("", "send the sampled token back", back, number(steps.token_bytes), "1", "from the first chip")
    parts: list[RenderableType] = [table]
    if chip is not None:
        parts += [Text(), *(Text(line) for line in _sent(chip, steps.stages[chip // plan.group], topology))]
    note = "Times are those of the closed forms; layers are named as in the first of stages that are alike."
    return Group(*parts, Text(), Text(note, style="dim"))


def _instruction(each: "Instruction", topology: "Topology") -> tuple[str, str, str, str, str]:
    """What, microseconds, bytes of the whole collective, messages of the group, by which way."""
    if not isinstance(each, Talk):
        return each.label, number(1e6 * each.seconds), "", "", ""
    exchange = each.exchange
    group = exchange.groups[0]
    messages = sum(map(len, topology.messages(exchange.operation, group, exchange.ways[0])))
    how = " ".join(exchange.ways[0]) or exchange.operation
    if exchange.operation not in topology.uncontended(group):
        how += ", in its own way"
    several = f"{len(exchange.groups)} x " if len(exchange.groups) > 1 else ""
    return each.label, number(1e6 * exchange.time), number(exchange.nbytes), f"{several}{messages:,}", how


def _sent(chip: int, instructions: "Sequence[Instruction]", topology: "Topology") -> list[str]:
    """What one chip sends in each of its collectives, phase by phase."""
    lines = []
    for each in instructions:
        if not isinstance(each, Talk):
            continue
        exchange = each.exchange
        group, way = next(each for each in zip(exchange.groups, exchange.ways, strict=True) if chip in each[0])
        for phase, messages in enumerate(topology.messages(exchange.operation, group, way), 1):
            sent = [message for message in messages if message.source == chip]
            told = ", ".join(f"{m.target} ({number(m.share * exchange.nbytes)} B)" for m in sent[:8]) or "nothing"
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
                    errors.add_row("", "", name, *told([row for row in of_metric if row.as_json()[kind] == name]))
    parts += [errors, Text()]
    if table.worst:
        worst = Table(title="the ten farthest of those that count", title_justify="left", title_style="bold", show_edge=False)
        for column in ("point", "model", "chip", "engine", "metric", "measured, ms", "simulated, ms", "error, %"):
            worst.add_column(column, justify="right" if "," in column else "left", no_wrap=True)
        reasons = []
        for each in (row.as_json() for row in table.worst):
            cells = (each[key] for key in ("point_id", "model", "chip", "engine", "metric"))
            worst.add_row(*cells, number(each["measured"]), number(each["simulated"]), f"{each['error_pct']:+.0f}")
            reasons.append(f"{each['point_id']}: {each['reason'] or 'no reason is known'}")
        parts += [worst, Text(), *(Text(f"  {line}") for line in dict.fromkeys(reasons)), Text()]
    missing: dict[str, list[str]] = {}
    for row in table.rows:
        if row.error is None:
            missing.setdefault(row.reason, []).append(row.point.id)
    if missing:
        parts.append(Text("not expressed:", "bold"))
        for reason, ids in missing.items():
            unique = list(dict.fromkeys(ids))
            shown = ", ".join(unique[:5]) + (f" and {len(unique) - 5} more" if len(unique) > 5 else "")
            parts.append(Text(f"  {len(unique)}: {reason} ({shown})"))
        parts.append(Text())
    return Group(*parts)


def told(rows: Sequence["Compared"]) -> tuple[str, str, str, str]:
    from sim.validate import statistics

    found = statistics(rows)
    return str(found["n"]), f"{found['median_ape']:.1f}", f"{found['mape']:.1f}", f"{found['bias']:+.1f}"


def swings(scenario: str, systems: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """The table of `sramsim sensitivity`: the numbers that move a system's TPOT or TTFT, and the band of all together."""
    parts: list[RenderableType] = []
    for name, system in systems.items():
        table = titled(f"{scenario}, {name}: a lone request", ["is", "TPOT, ms", "TTFT, ms"])
        table.add_column("source", overflow="fold")
        table.add_row("as the files say", "", number(system["tpot_ms"]), number(system["ttft_ms"]), "")
        table.add_section()
        still = []
        for swing in system["swings"]:
            ends = [swing[end] for end in ("low", "high")]
            if all(end and all(math.isclose(end[key], system[key]) for key in ("tpot_ms", "ttft_ms")) for end in ends):
                still.append(swing["key"])
                continue
            for text, end in zip(swing["range"], ends, strict=True):
                times = [number(end[key]) if end else "does not fit" for key in ("tpot_ms", "ttft_ms")]
                first = text == swing["range"][0]
                table.add_row(swing["key"] if first else "", str(text), *times, swing["source"] if first else "")
        table.add_section()
        bands = (" to ".join(number(each) for each in system[key]) for key in ("tpot_band_ms", "ttft_band_ms"))
        table.add_row("all together", "", *bands, "if independent: deviations added in squares")
        parts += [table, Text()]
        if still:
            parts += [Text(f"Without effect on a lone request: {', '.join(still)}.", style="dim"), Text()]
    return Group(*parts)


def calibrated(fit: "Calibrated") -> RenderableType:
    """The table of `sramsim calibrate`."""
    table = titled(f"{fit.engine}: {fit.degrees} numbers fitted to {len(fit.points)} points of {', '.join(fit.tables)}", [])
    for column in ("was", "is", "standard error", "between"):
        table.add_column(column, justify="right")
    for each in (*fit.moved, *fit.unidentifiable):
        kept = each in fit.unidentifiable
        between = f"{each.written(each.low)} and {each.written(each.high)}"
        found = ("not identifiable", "-") if kept else (each.written(each.value), each.written(each.error))
        table.add_row(", ".join(each.keys), each.written(each.start), *found, between)
    from sim.calibrate import TTFT_WEIGHT

    line = f"root mean square error {100 * fit.error:.1f} %, leave-one-out {100 * fit.left_out:.1f} %"
    return Group(table, Text(), Text(f"{line} (a TTFT beside a TPOT counts {TTFT_WEIGHT:g} of it)."))


def validated(title: str, rows: Sequence["Row"], medians: Mapping[str, tuple[float, int]]) -> RenderableType:
    """The table of `sramsim validate`: every row, then why some are far off, why some are not simulated, and the sum of it all."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for column, width in (("system", 15), ("operation", 24), ("devices", 7), ("bytes", 10)):
        table.add_column(column, no_wrap=True, max_width=width, overflow="ellipsis")
    for column in ("measured", "simulated", "error, %"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("status", no_wrap=True)
    for row in rows:
        error = Text("-") if row.error is None else Text(f"{100 * row.error:+.0f}", "yellow" if row.far else "")
        unit = f" {row.unit}"
        simulated = "-" if row.simulated is None else number(row.simulated) + unit
        cells = (row.id, row.system, row.operation, row.devices, row.bytes, number(row.measured) + unit, simulated)
        table.add_row(*cells, error, row.status or "-")
    lines = [f"{row.id}: {100 * row.error:+.0f} %: {row.reason or 'no reason is known'}" for row in rows if row.error and row.far]
    missing = [f"{row.id}: {row.reason}" for row in rows if row.simulated is None]
    parts: list[RenderableType] = [table, Text()]
    for head, told in (("far off", lines), ("not simulated", missing)):
        if told:
            parts += [Text(f"{head}:", "bold"), *(Text(f"  {line}") for line in told), Text()]
    middle, count = medians["tested"]
    shares = ", ".join(
        f"{100 * medians[kind][0]:.1f} % of {medians[kind][1]} {kind}" for kind in ("free", "fitted") if kind in medians
    )
    echoed = medians.get("given", (0.0, 0))[1]
    left = f"not counted: {echoed} that were given, {len(missing)} not simulated"
    return Group(*parts, Text(f"median absolute error {100 * middle:.1f} % of {count} rows ({shares}); {left}", "bold"))


def entries(kind: str, titles: Mapping[str, str]) -> RenderableType:
    """One folder of the catalogue: names and what they are."""
    table = Table("name", "what", title=kind, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name, title in titles.items():
        table.add_row(name, title)
    return table if titles else Text(f"{kind}: none yet")


def sourced(title: str, facts: list[tuple[str, str, str]], note: str = "") -> RenderableType:
    """Every number of a catalogue entry with where it comes from."""
    table = titled(title, [])
    table.add_column("value", no_wrap=True)
    table.add_column("source", overflow="fold")
    for key, value, source in facts:
        table.add_row(key, value, Text(source, style="yellow" if source.startswith(("assumed", "fitted", "no source")) else ""))
    return Group(table, Text(), Text(note)) if note else table
