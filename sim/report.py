"""A result for people: tables on a terminal.  Builds what the command line prints; prints nothing itself."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.units import show


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
    """What a result names: chips, engine, precisions, plan."""
    each = list(systems.values())
    table.add_row("model", *(s["model"] for s in each))
    table.add_row("chips", *(f"{s['chips']} x {s['chip']}" for s in each))
    table.add_row("engine", *(s["engine"] for s in each))
    table.add_row("weights/act./KV/head", *("/".join(s["precision"].values()) for s in each))
    table.add_row(
        "tensor x pipeline x replicas", *(" x ".join(str(s["plan"][k]) for k in ("tensor", "pipeline", "replicas")) for s in each)
    )


def comparison(summary: Mapping[str, Any]) -> RenderableType:
    """The table of `sramsim run`, and what it comes to in a sentence."""
    systems = summary["systems"]
    table = titled(f"{summary['scenario']}, seed {summary['seed']}", list(systems))
    identity(table, systems)
    table.add_section()
    each = list(systems.values())
    colour = {"STABLE": "green", "BACKLOGGED": "yellow", "OVERLOADED": "red"}
    table.add_row("verdict", *(Text(s["verdict"], style=colour[s["verdict"]]) for s in each))
    table.add_row("completed / refused", *(f"{s['completed']} / {s['refused']}" for s in each))
    table.add_row("token/s of a user (median)", *(number(speed(s)) for s in each))
    for name, label in (("ttft", "TTFT"), ("tpot", "TPOT"), ("itl", "ITL"), ("e2el", "E2E latency")):
        pairs = (f"{number(s[f'median_{name}_ms'])} / {number(s[f'p99_{name}_ms'])}" for s in each)
        table.add_row(f"{label} median / p99, ms", *pairs)
    table.add_row("output token/s, all users", *(number(s["output_throughput"]) for s in each))
    if any("request_goodput" in s for s in each):
        table.add_row("good request/s (within SLO)", *(number(s.get("request_goodput")) for s in each))
    table.add_row("fitted share of a token", *(f"{s['fitted_share']:.0%}" for s in each))
    return Group(table, Text(), *(Text(line) for line in findings(systems)))


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
        others = ", ".join(f"{speeds[best] / s:.1f} times that of {name}" for name, s in speeds.items() if name != best)
        lines.append(f"{best} gives a user {speeds[best]:.0f} token/s: {others}.")
    for name, system in systems.items():
        if system["verdict"] == "OVERLOADED":
            lines.append(f"{name} is overloaded: its backlog grows, and its latencies are those of this run's length only.")
        elif system["verdict"] == "BACKLOGGED":
            lines.append(f"{name} is backlogged: more than a tenth of its requests waited longer than they were served.")
        if system["refused"]:
            lines.append(f"{name} refused {system['refused']} requests that could never fit; requests.parquet says why.")
    return lines


def planning(summary: Mapping[str, Any]) -> RenderableType:
    """The table of `sramsim plan`."""
    systems = summary["systems"]
    table = titled(f"{summary['scenario']}: what each system holds", list(systems))
    identity(table, systems)
    table.add_section()
    each = list(systems.values())
    table.add_row("fits", *(Text("yes", "green") if s["fits"] else Text("no", "red") for s in each))
    table.add_row("fewest chips that would do", *(number(s["minimum_chips"]) for s in each))
    for part in ("weights", "kv", "activations", "reserve", "capacity"):
        label = {"kv": "KV of one request", "capacity": "usable capacity"}.get(part, part)
        table.add_row(f"fullest chip: {label}", *(show(s["bytes_per_chip"][part], "B") for s in each))
    for length in each[0]["max_sequences"]:
        counts = [s["max_sequences"][length] for s in each]
        table.add_row(f"sequences of {length} tokens", *(f"{c['fullest_stage']} (all memory: {c['all_memory']})" for c in counts))
    table.add_section()
    lone = [s["lone_request"] for s in each]
    table.add_row("lone request: TTFT, ms", *(number(r["ttft_ms"]) if r else "-" for r in lone))
    table.add_row("lone request: TPOT, ms", *(number(r["tpot_ms"]) if r else "-" for r in lone))
    for term in next((r["terms_ms"] for r in lone if r), {}):
        table.add_row(f"  {term}", *(number(r["terms_ms"][term]) if r else "-" for r in lone))
    table.add_row("fitted share of a token", *(f"{r['fitted_share']:.0%}" if r else "-" for r in lone))
    note = (
        "Admission is decided by the fullest stage; 'all memory' is what the chips could hold together. "
        "Terms are of a mean token's time."
    )
    return Group(table, Text(), Text(note, style="dim"))


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
