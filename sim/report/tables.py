"""A result's summary as the table of `run`, and what it comes to in sentences.  Pure functions of the summary; no simulation."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from sim.economics.break_even import (
    ALONE,
    LOADED,
    break_even_points,
    price_and_speed,
    priced_card_systems,
    priced_systems,
)
from sim.results.labels import format_number, labelled, published_speed, speed_label
from sim.results.verdict import KEEPS_UP
from sim.units import format_quantity

PARTS = (
    "cluster.chip",
    "cluster",
    "chip",
    "engine",
    "model",
    "exceptions",
)  # of a system, which may change them
COLOURS = {
    "STABLE": "green",
    "BACKLOGGED": "yellow",
    "OVERLOADED": "red",
    "REFUSED": "red",
    "TOO SHORT": "yellow",
}
VARIABLE = ("poisson", "gamma", "trace", "closed")  # workloads whose load `capacity` varies
BUSY = 0.2  # of its chips' time a system works at least, for its J and $ to stand without a pointer to those at capacity
NOT_STEADY = ("OVERLOADED", "REFUSED")  # whose statistics get a star


def titled(title: str, columns: list[str]) -> Table:
    """A table whose first column names and whose others are aligned to the right."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def identity_line(table: Table, systems: Mapping[str, Mapping[str, Any]]) -> None:
    """What a result names: chips, engine, precisions, plan; of a fleet its members, which have columns of their own."""
    each = list(systems.values())
    table.add_row("model", *(marked_changed(s, s["model"], "model") for s in each))
    table.add_row("chips", *(hardware(s) for s in each))
    table.add_row("engine", *of_plain(each, lambda s: marked_changed(s, s["engine"], "engine")))
    kinds = ("weights", "activations", "kv", "head")
    table.add_row(
        "weights/act./KV/head",
        *of_plain(each, lambda s: "/".join(s["precision"][kind] for kind in kinds)),
    )
    table.add_row("tensor x pipeline x replicas", *of_plain(each, lambda s: degrees(s["plan"])))
    plain = [s for s in each if not is_fleet(s)]
    if any("search" in s for s in plain):
        table.add_row("  found by search", *of_plain(each, found_by_search))
    if any(s["plan"]["attention_data"] > 1 or s["plan"]["expert"] > 1 for s in plain):
        cells = of_plain(each, lambda s: f"{s['plan']['attention_data']} / {s['plan']['expert']}")
        table.add_row("attention data / expert", *cells)
    if any(map(speed_label, each)):
        table.add_row("its speeds are", *(speed_label(s) or "-" for s in each))
    if any(map(by_chip, each)):
        table.add_row("fidelity", *(s["fidelity"] for s in each))
    if any(len(s["memories"]) > 1 for s in plain):
        table.add_row(
            "weights in / KV in",
            *of_plain(each, lambda s: f"{s['memory']['weights']} / {s['memory']['kv']}"),
        )


def found_by_search(system: Mapping[str, Any]) -> str:
    """Return how the plan was found: 'capacity: 5 of 13 simulated', or '-' where the scenario gives it."""
    search = system.get("search")
    return (
        f"{search['by']}: {search['simulated']} of {search['considered']} simulated"
        if search
        else "-"
    )


def is_fleet(system: Mapping[str, Any]) -> bool:
    return "members" in system


def of_plain(
    systems: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], str]
) -> list[str]:
    """A row of what only a plain system has, '-' for fleets."""
    return ["-" if is_fleet(system) else cell(system) for system in systems]


def hardware(system: Mapping[str, Any]) -> str:
    """'576 x groq-lpu-v1', of a fleet '1 lpu + 4 h100x8'."""
    if is_fleet(system):
        return " + ".join(
            f"{member['copies']} {name}" for name, member in system["members"].items()
        )
    return marked_changed(
        system, f"{system['chips']} x {system['chip']}", "chip", "cluster", "exceptions"
    )


def marked_changed(system: Mapping[str, Any], text: str, *parts: str) -> str:
    """Return a cell that names an entry, with a mark where the system changes a number of it: 'groq-lpu-v1†'."""
    return text + "†" * any(
        key.startswith(tuple(f"{part}." for part in parts)) for key in system.get("changed", {})
    )


def changes(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each part of a system that is not as its entry says, with the numbers that the scenario changes."""
    lines: dict[str, str] = {}
    plain = {
        name: system
        for each, of in systems.items()
        for name, system in of.get("members", {each: of}).items()
    }
    for name, system in plain.items():
        for key, change in system.get("changed", {}).items():
            part = next(part for part in PARTS if key.startswith(f"{part}."))
            kind = part.rpartition(".")[2]
            head = f"† {name}: {' '.join(filter(None, (kind, system.get(kind))))} with"
            was = "new" if change["from"] is None else f"instead of {change['from']}"
            lines[head] = (
                f"{lines[head]}," if head in lines else head
            ) + f" {key.removeprefix(f'{part}.')} {change['to']} ({was})"
    return [f"{line}." for line in lines.values()]


def degrees(plan: Mapping[str, Any]) -> str:
    return " x ".join(str(plan[key]) for key in ("tensor", "pipeline", "replicas"))


def comparison(summary: Mapping[str, Any], file: str = "") -> RenderableType:
    """What `sramsim run` prints: its tables, and what they come to in sentences.  `file` is the scenario's name or path."""
    told = [each for table in tables(summary) for each in (table, Text())]
    return Group(*told, *map(Text, notes(summary, file)))


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """What the systems cost before any token, where that is asked; the systems side by side; what a trace's own server did."""
    before = [envelope(summary)] if "estimate" in summary else []
    beside = [against(summary["measured"], summary["systems"])] if "measured" in summary else []
    return [*before, compared(summary), *beside]


def notes(summary: Mapping[str, Any], file: str = "") -> list[str]:
    """What stands below the tables: what was left out, what was counted, and the findings."""
    systems = summary["systems"]
    noted = changes(systems) + ([f"Of the trace: {summary['note']}."] if "note" in summary else [])
    if "estimate" in summary:
        noted.append(
            "The ratios of what systems cost say nothing of tokens: they compare as if all systems were equally fast."
        )
        noted += tokens_cost(summary)
    if any("measured" in s for s in systems.values()):
        spans = {name: s["measured"] for name, s in systems.items()}
        told = ", ".join(
            f"{name} from {format_number(span['from'])} to {format_number(span['to'])} s"
            for name, span in spans.items()
        )
        noted.append(f"Counted: {told}; ITL and verdict of the whole run.")
    if any(point.get("paced") for s in systems.values() for point in s.get("published", ())):
        noted.append("(paced): the service throttled this speed; the hardware is at least as fast.")
    return noted + mostly_idle(summary, file) + findings(systems)


def mostly_idle(summary: Mapping[str, Any], file: str) -> list[str]:
    """Return where J and $ of a busier system are found, if a system is mostly idle and `capacity` can load it."""
    shares = [
        s["busy_share"] for s in summary["systems"].values() if "energy" in s or "economics" in s
    ]
    if (
        "slo_s" not in summary
        or summary["workload"] not in VARIABLE
        or min(shares, default=1.0) >= BUSY
    ):
        return []
    return [f"J and $ at capacity: sramsim capacity {file or summary['scenario']}"]


def tokens_cost(summary: Mapping[str, Any]) -> list[str]:
    """By the token: what it costs over the others', and what a card may cost for the cheapest one to cost as much."""
    mine = priced_card_systems(summary)
    costs = {name: price_and_speed(s) for name, s in priced_systems(summary).items()}
    if not mine or len(mine) == len(costs) or any(LOADED not in each for each in costs.values()):
        return []
    lines = []
    for name in (name for name in costs if name not in mine):
        for one in mine:
            alone, loaded = (
                ratio(costs[one][load][0] / costs[name][load][0]) for load in (ALONE, LOADED)
            )
            lines.append(
                f"A token of {one} costs {alone} times one of {name} with one user each, {loaded} times under this load."
            )
    best, found = break_even_points(summary)
    speed = format_number(costs[best][LOADED][1])
    for each in found:
        at = (
            f"at ${format_number(each.price)} a card" if each.price > 0 else "at no price of a card"
        )
        other = f"{each.other} with {each.load} ({format_number(each.speed)} token/s for a user)"
        lines.append(
            f"A token of {best} under this load ({speed} token/s for a user) costs as much as one of {other} {at}."
        )
    return lines


def compared(summary: Mapping[str, Any]) -> Table:
    """A column for each system: what it is, what its users got, what a lone one would get."""
    systems = summary["systems"]
    table = titled(f"{summary['scenario']}, seed {summary['seed']}", list(systems))
    identity_line(table, systems)
    table.add_section()
    each = list(systems.values())
    table.add_row("verdict", *(Text(judged(s), style=COLOURS[s["verdict"]]) for s in each))
    table.add_row("completed / refused", *(f"{s['completed']} / {s['refused']}" for s in each))
    for key, label in (
        ("cancelled", "cancelled at the deadline"),
        ("preemptions", "preemptions"),
        ("failed", "failed with their replica"),
        ("retried", "begun anew after a failure"),
        ("moved", "  of these on another replica"),
        ("cached_tokens", "tokens cached"),
    ):
        if any(s.get(key) for s in each):
            table.add_row(label, *(format_number(s[key]) for s in each))
    table.add_row("token/s of a user (median)", *(marked(s, format_number(speed(s))) for s in each))
    for name, label in (
        ("ttft", "TTFT"),
        ("tpot", "TPOT"),
        ("itl", "ITL"),
        ("e2el", "E2E latency"),
    ):
        pairs = (
            f"{format_number(s[f'median_{name}_ms'])} / {format_number(s[f'p99_{name}_ms'])}"
            for s in each
        )
        table.add_row(
            f"{label} median / p99, ms",
            *(marked(s, pair) for s, pair in zip(each, pairs, strict=True)),
        )
        if any(s.get(f"ci95_mean_{name}_ms") is not None for s in each):
            table.add_row(
                "  mean and its 95 % interval", *(marked(s, interval(s, name)) for s in each)
            )
    table.add_row(
        "output token/s, all users", *(format_number(s["output_throughput"]) for s in each)
    )
    if any("request_goodput" in s for s in each):
        table.add_row(
            "good request/s (within SLO)", *(format_number(s.get("request_goodput")) for s in each)
        )
    table.add_row("fitted share of a token", *of_plain(each, lambda s: f"{s['fitted_share']:.0%}"))
    for label, cells in costs(each):
        table.add_row(label, *cells)
    if any(map(by_chip, each)):
        networks = [s.get("network", {}) for s in each]
        table.add_row(
            "messages between chips", *(format_number(n.get("messages")) for n in networks)
        )
        table.add_row(
            "  waited for other messages, ms",
            *(format_number(n.get("waited_ms")) for n in networks),
        )
        table.add_row("TPOT over a lone one's in closed form", *of_plain(each, over_closed_form))
    table.add_section()
    table.add_row(
        "token/s of a lone user",
        *of_plain(each, lambda s: format_number(1000 / s["lone_request"]["tpot_ms"])),
    )
    if any(s.get("published") for s in each):
        table.add_row(
            "published token/s of a user", *of_plain(each, lambda s: speeds_of(s["published"]))
        )
    for label, rate in WEIGHT_BANDWIDTHS.items():
        table.add_row(
            f"weights: {label}",
            *("-" if is_fleet(s) else format_quantity(rate(s), "B/s") for s in each),
        )
    beats(table, each)
    loading(table, each)
    if any("availability" in s for s in each):
        table.add_section()
        reliability_notes(table, each)
    if any("replays" in s for s in each):
        table.add_section()
        for label, cell in REPLAYS.items():
            table.add_row(label, *(cell(s) if "replays" in s else "-" for s in each))
    return table


def costs(systems: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield a row for each number that is known of what a token took and cost, and the busy share that it holds for."""
    for key, rows in PER_TOKEN.items():
        if any(key in s for s in systems):
            for label, cell in rows.items():
                yield label, [cell(s[key]) if key in s else "-" for s in systems]
    if any(key in s for s in systems for key in PER_TOKEN):
        yield (
            "chips busy, % of their time",
            [format_number(100 * s["busy_share"]) if "busy_share" in s else "-" for s in systems],
        )


# What a token of the run took and cost, where that is known.
PER_TOKEN: dict[str, dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "energy": {
        "J for an output token": lambda energy: format_number(energy["joules_per_token"]),
        "  idle / work / server / PUE": lambda energy: " / ".join(
            map(format_number, causes(energy["joules_per_token_by_cause"]))
        ),
        "mean power, kW": lambda energy: format_number(energy["mean_power_w"] / 1000),
    },
    "economics": {
        "$ for a million output tokens": lambda economics: format_number(economics["usd_per_mtok"]),
        "$ for a request": lambda economics: format_number(economics["usd_per_request"]),
    },
}

# Steps that links spoil.
REPLAYS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "steps made again after a link error": lambda s: format_number(s["replays"]),
    "  expected of as many steps": lambda s: format_number(s["expected_replays"]),
    "  a day, at this load": lambda s: format_number(s["replays_per_day"]),
    "  of all steps, %": lambda s: format_number(100 * s["replayed_share"]),
}


def causes(joules: Mapping[str, float]) -> tuple[float, float, float, float]:
    """What idling chips took, their work (computing, reading, sending), what stands around them, the PUE."""
    return (
        joules["idle"],
        joules["compute"] + joules["memory"] + joules["links"],
        joules["server"],
        joules["pue"],
    )


def envelope(summary: Mapping[str, Any]) -> Table:
    """The estimate before any token: what each system costs over the years, and the first as a multiple of each other one."""
    told, terms = summary["estimate"], summary["economics"]
    hosting, electricity = terms["hosting_usd_per_kw_month"], terms["electricity_usd_per_kwh"]
    power = (
        f"${format_number(hosting)} a kW and month"
        if electricity is None
        else f"${electricity:g} a kWh, PUE {terms['pue']:g}"
    )
    first, *others = told
    ratios = [f"{first} / {name}" for name in others]
    table = titled(
        f"{summary['scenario']}: over {terms['years']:g} years, at {power}", [*told, *ratios]
    )
    for key, label in (
        ("capex_usd", "capex, $"),
        ("opex_usd", "opex, $"),
        ("total_usd", "total, $"),
    ):
        cells = (
            f"{told[first][key] / told[name][key]:.2f}" if told[name][key] else "-"
            for name in others
        )
        table.add_row(label, *(f"{each[key]:,.0f}" for each in told.values()), *cells)
    return table


def beats(table: Table, systems: Sequence[Mapping[str, Any]]) -> None:
    """Add how long compiled pipelines take for what enters at once, and the tokens a second that this allows a replica."""
    told = [s.get("beat") for s in systems]
    if any(told):
        table.add_row(
            "beat of the pipeline, us",
            *(
                f"{format_number(b['us'])} for {b['tokens']} token" + "s" * (b["tokens"] > 1)
                if b
                else "-"
                for b in told
            ),
        )
        table.add_row(
            "  most token/s, prompts counted",
            *(format_number(b["max_token_throughput"]) if b else "-" for b in told),
        )


def loading(table: Table, systems: Sequence[Mapping[str, Any]]) -> None:
    """How long the weights take from the hosts, where a chip's file gives the link."""
    times = [s.get("load_s") for s in systems]
    if any(times):
        table.add_row(
            "weights from the hosts",
            *(format_quantity(time, "s") if time else "-" for time in times),
        )


def reliability_notes(table: Table, systems: Sequence[Mapping[str, Any]]) -> None:
    """The share of time that a system works, and what it gives over all time."""

    def row(label: str, cell: Callable[[Mapping[str, Any]], str], needs: str = "mtbf_h") -> None:
        table.add_row(label, *(cell(s) if needs in s else "-" for s in systems))

    within = "availability"  # a fleet has nothing else of these
    row(
        "availability, % and its 95 % interval",
        lambda s: f"{percent(s, within)} ± {percent(s, 'ci95_availability')}",
        within,
    )
    row("  in closed form, %", lambda s: percent(s, "closed_form_availability"))
    row(
        "  if swaps took no time, %", lambda s: percent(s, "closed_form_availability_without_swaps")
    )
    row("  one horizon in twenty is below, %", lambda s: percent(s, "p5_availability"))
    row("  without spares, MTBF/(MTBF+MTTR), %", lambda s: percent(s, "series_availability"))
    row("MTBF of the parts at work, h", lambda s: format_number(s["mtbf_h"]))
    row("swap of a part", lambda s: format_quantity(s["swap_s"], "s"))
    if any(s.get("lost_to_model_swaps") for s in systems):
        row(
            "  lost to swaps of the model, %",
            lambda s: format_number(100 * s["lost_to_model_swaps"]),
        )
    row("outages a year", lambda s: format_number(s["outages_per_year"]))
    row(
        "output token/s, outages counted",
        lambda s: format_number(s["availability"] * s["output_throughput"]),
        within,
    )


def percent(system: Mapping[str, Any], key: str) -> str:
    """An availability in %, '-' for none, to the digit that its interval leaves certain."""
    digits = max(1, 1 - math.floor(math.log10(100 * system["ci95_availability"] or 1)))
    return "-" if system[key] is None else f"{100 * system[key]:.{digits}f}"


def as_html(table: Table) -> str:
    """A table for a page or a notebook, without style: a cell in colour has its name as class, a section is a tbody."""
    heads = (f"<th{_aligned(column)}>{_cell(column.header)}</th>" for column in table.columns)
    rows, body = zip(*(column.cells for column in table.columns), strict=True), ""
    for cells, row in zip(rows, table.rows, strict=True):
        name, *values = cells
        told = "".join(
            f"<td{_aligned(column)}>{_cell(v)}</td>"
            for column, v in zip(table.columns[1:], values, strict=True)
        )
        body += f'<tr><th scope="row">{_cell(name)}</th>{told}</tr>' + (
            "</tbody><tbody>" if row.end_section else ""
        )
    title = f"<caption>{_cell(table.title)}</caption>" if table.title else ""
    return f"<table>{title}<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"


def _aligned(column: Column) -> str:
    return ' style="text-align: right"' if column.justify == "right" else ""


def _cell(cell: object) -> str:
    """Escaped: names come from files."""
    style = str(cell.style) if isinstance(cell, Text) else ""
    text = escape(cell.plain if isinstance(cell, Text) else str(cell))
    return f'<span class="{escape(style)}">{text}</span>' if style else text


def against(measured: Mapping[str, float], systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the trace's own server did beside each system."""
    table = titled("as measured where the trace was taken, and simulated", ["measured", *systems])
    for name in ("ttft", "tpot"):
        for statistic in ("mean", "median", "p90"):
            was = measured.get(key := f"{statistic}_{name}_ms")
            if was:
                times = [s.get(key) for s in systems.values()]
                cells = (
                    f"{format_number(is_)} ({100 * math.log(is_ / was):+.1f} %)" if is_ else "-"
                    for is_ in times
                )
                table.add_row(f"{name.upper()} {statistic}, ms", format_number(was), *cells)
    return table


def marked(system: Mapping[str, Any], value: str) -> Text:
    """Return a statistic; of a system without a steady state in red, with a star that leads to the line below the table."""
    return (
        Text(f"{value} *", style="red")
        if system["verdict"] in NOT_STEADY and any(map(str.isdigit, value))
        else Text(value)
    )


def judged(system: Mapping[str, Any]) -> str:
    """Return the verdict, and beside it that requests come in bursts: 'STABLE, with bursts'."""
    bursts = any(hint["kind"] == "bursts" for hint in system.get("hints", ()))
    return str(system["verdict"]) + (", with bursts" if bursts else "")


def interval(system: Mapping[str, Any], name: str) -> str:
    """'12.3 ± 0.4', or the mean alone where there is no interval."""
    half, mean = system[f"ci95_mean_{name}_ms"], format_number(system[f"mean_{name}_ms"])
    return mean if half is None else f"{mean} ± {format_number(half, 2)}"


def by_chip(system: Mapping[str, Any]) -> bool:
    return bool(system.get("fidelity") == "chip")


def over_closed_form(system: Mapping[str, Any]) -> str:
    """What chips and links that are not alike, contention and other users add to a token's time."""
    tpot = system["median_tpot_ms"]
    return f"{tpot / system['lone_request']['tpot_ms']:.3f}" if by_chip(system) and tpot else "-"


def speeds_of(points: Sequence[Mapping[str, Any]]) -> str:
    """What was published for the same model on as many of the same chips, with the same engine and as wide weights."""
    return (
        ", ".join(
            map(
                published_speed, sorted(points, key=lambda point: float(point["tokens_per_second"]))
            )
        )
        or "-"
    )


# How fast weights can be read, as it may be counted.  A token passes the stages one after the other, so one stage at a time
# works for it; all chips together work only where the pipeline is full.
WEIGHT_BANDWIDTHS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "a chip, as its maker counts": lambda s: float(s["weight_bandwidth"]["claimed"]),
    "a chip, by a matrix-vector multiply": lambda s: float(s["weight_bandwidth"]["chip"]),
    "a stage, for one token": lambda s: (
        float(s["weight_bandwidth"]["chip"])
        * s["chips"]
        / s["plan"]["pipeline"]
        / s["plan"]["replicas"]
    ),
    "all chips, with a full pipeline": lambda s: float(s["weight_bandwidth"]["chip"]) * s["chips"],
}


def speed(system: Mapping[str, Any]) -> float | None:
    """Output tokens a second that the median user gets: 1/TPOT."""
    tpot = system["median_tpot_ms"]
    return 1000 / tpot if tpot else None


def verdict(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison in a sentence: who is fastest for a user, and whether every system keeps up with this load."""
    fastest = next(iter(_fastest(systems)), "No system gave a user two tokens.")
    behind = [f"{name} is {judged(s)}" for name, s in systems.items() if judged(s) != "STABLE"]
    every = "every system" if len(systems) > 1 else next(iter(systems))
    return f"{fastest.removesuffix('.')}; under this load {' and '.join(behind) or f'{every} is STABLE'}."


def _fastest(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the fastest system gives a user, against each other one; nothing where no user got two tokens."""
    speeds = {name: s for name, system in systems.items() if (s := speed(system))}
    if not speeds:
        return []
    best = max(speeds, key=lambda name: speeds[name])
    others = ", ".join(
        f"{ratio(speeds[best] / s)} times that of {labelled(name, systems[name])}"
        for name, s in speeds.items()
        if name != best
    )
    return [
        f"{labelled(best, systems[best])} gives a user {format_number(speeds[best])} token/s"
        + (f": {others}." if others else ".")
    ]


def findings(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the comparison comes to: the fastest system against each other one, and warnings where a verdict is not STABLE."""
    lines = []
    speeds = {name: s for name, system in systems.items() if (s := speed(system))}
    if len(speeds) > 1:
        lines += _fastest(systems)
        lines += claims({name: s for name, s in systems.items() if not is_fleet(s)}, speeds)
    for name, system in systems.items():
        lines += [f"{name}: {shares(system)}."] if is_fleet(system) else []
    for name, system in systems.items():
        for member, told in system.get("members", {name: system}).items():
            lines += (
                [f"{member}: {told['contended']}."]
                if told.get("contended") and not by_chip(told)
                else []
            )
        lines += judgement(name, system)
        for link in system.get("network", {}).get("links_waited_for", [])[:1]:
            whole = format_number(system["network"]["waited_ms"])
            lines.append(
                f"{name}: messages waited most for the link {link['link']}: {format_number(link['waited_ms'])} of {whole} ms, "
                f"for {link['messages']:,} messages."
            )
    return lines


def judgement(name: str, system: Mapping[str, Any]) -> list[str]:
    """Return what the verdict of a system means, why requests were not finished, and how to read its numbers."""
    lines = []
    served = f"{100 * share:.3g} %" if (share := system.get("served_share")) is not None else "less"
    match system["verdict"]:
        case "OVERLOADED":
            lines.append(
                f"* {name} is overloaded: it serves {served} of what it is offered, its backlog grows, and its latencies are "
                "those of this run's length only."
            )
        case "REFUSED":
            lines.append(
                f"* {name} did not finish half of the requests or more; its latencies are those of the others."
            )
        case "TOO SHORT":
            lacks = f"it serves {served} of what it is offered while requests come"
            why = (
                lacks
                if share is None or share < KEEPS_UP
                else "more requests arrive than leave, up to the last arrival"
            )
            lines.append(
                f"{name}: the run is too short to tell whether it keeps up: {why}; ask for more requests."
            )
        case "BACKLOGGED":
            lines.append(
                f"{name} is backlogged: more than a tenth of its requests waited longer than they were served."
            )
    lines += [
        f"{name}: {each['requests']:,} requests unanswered: {each['reason']}."
        for each in system.get("unfinished", ())
    ]
    return lines + [f"{name}: {hint['text']}." for hint in system.get("hints", ())]


def shares(fleet: Mapping[str, Any]) -> str:
    """What each member of a fleet served, and how fast."""
    told = []
    for name, member in fleet["members"].items():
        part = f"{member['completed'] / fleet['completed']:.0%}" if fleet["completed"] else "none"
        times = (
            f"{label} {format_number(member[f'median_{key}_ms'])} ms"
            for key, label in (("ttft", "TTFT"), ("tpot", "TPOT"))
        )
        told.append(
            f"{name} served {part} of the requests"
            + (f" (median {', '.join(times)})" if member["completed"] else "")
        )
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
        ratios = (
            f"{rate(systems[first]) / rate(systems[name]):,.1f} ({label})"
            for label, rate in WEIGHT_BANDWIDTHS.items()
        )
        lines.append(f"Reading weights, {first} over {name}: {', '.join(ratios)}.")
        lone = systems[name]["lone_request"]["tpot_ms"] / systems[first]["lone_request"]["tpot_ms"]
        busy = (
            f", {speeds[first] / speeds[name]:.1f} under this load"
            if {first, name} <= speeds.keys()
            else ""
        )
        lines.append(f"Speed of a user, {first} over {name}: {lone:.1f} alone{busy}.")
    return lines
