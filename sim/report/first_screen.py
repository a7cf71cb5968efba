"""The first screen of `sramsim run`: question, conditions, the key rows, the answer, next commands.

first_screen(result.summary, scenario.question, "mine.yaml", width=80)
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.report.answer import (
    answer_sentence,
    capacity_share,
    condition_lines,
    opening_question,
    short_ratio,
    token_joules,
    token_usd,
)
from sim.report.findings import conditions_of_numbers, estimated_collectives, judgement, notes
from sim.report.html_table import as_html
from sim.report.ordering_text import order_lines
from sim.report.tables import COLOURS, percent, run_tables, trace_table
from sim.results.labels import format_number, percent_text, system_label, system_labels
from sim.results.statistics import Metrics
from sim.results.summary import RunSummary, SystemSummary
from sim.results.verdict import NOT_STEADY

HEADING = 14  # columns of a heading before its words wrap
GAP = 2  # columns between cells: one of padding, one of the box


@dataclass(frozen=True)
class KeyRow:
    """A row of the first screen: its label and a cell for each system."""

    label: str
    cells: tuple[Text, ...]


def first_screen(summary: RunSummary, question: str, file: str, width: int) -> RenderableType:
    """Return the default output of `sramsim run`, no line of which exceeds the width.

    file: the scenario's name or path, for commands to try.
    """
    parts: list[RenderableType] = [Text(opening_question(question)), Text()] if question else []
    parts += [Text(line) for line in condition_lines(summary)]
    rows, labels = key_rows(summary), list(system_labels(summary.identities).values())
    for first, last in blocks(rows, labels, width):
        parts += [Text(), key_table(rows, labels, first, last)]
    parts.append(Text())
    if summary.measured:
        names = list(summary.systems)
        for pair in (names[first : first + 2] for first in range(0, len(names), 2)):
            systems = {name: summary.systems[name] for name in pair}
            parts += [trace_table(summary.measured, systems), Text()]
    parts += map(Text, [*remarks(summary), *order_lines(summary), answer_sentence(summary)])
    return Group(*parts, *map(Text, next_commands(summary, file)))


def first_screen_html(summary: RunSummary, question: str) -> str:
    """Return the first screen as HTML, for a notebook; all rows and notes unfold below it."""
    rows, labels = key_rows(summary), list(system_labels(summary.identities).values())
    head = [question] if question else []
    above = "".join(f"<p>{escape(line)}</p>" for line in [*head, answer_sentence(summary)])
    lines = [*condition_lines(summary), *remarks(summary), *order_lines(summary)]
    below = "".join(f"<p>{escape(line)}</p>" for line in lines)
    every = "".join(map(as_html, run_tables(summary)))
    every += "".join(f"<p>{escape(note)}</p>" for note in notes(summary))
    table = as_html(key_table(rows, labels, 0, len(labels)))
    return f"{above}{table}{below}<details><summary>All rows</summary>{every}</details>"


def key_rows(summary: RunSummary) -> list[KeyRow]:
    """Return the rows that answer most questions. A row without any value is left out."""
    systems = list(summary.systems.values())
    verdicts = [s.metrics.verdict for s in systems]
    rows = []
    if set(verdicts) != {"STABLE"}:
        rows.append(KeyRow("verdict", tuple(Text(v, style=COLOURS[v]) for v in verdicts)))
    values: dict[str, Callable[[SystemSummary], float | None]] = {
        "tokens/s of a user": lambda s: s.metrics.user_speed,
        "first token, median ms": lambda s: s.metrics.ttft.median,
        "whole answer, median ms": lambda s: s.metrics.e2el.median,
        "tokens/s of all users": lambda s: s.metrics.output_throughput,
    }
    for label, value in values.items():
        pairs = zip(systems, ratios([value(system) for system in systems]), strict=True)
        rows.append(KeyRow(label, tuple(_starred(s.metrics, cell) for s, cell in pairs)))
    attained = (attainment_text(s.metrics.attainment) for s in systems)
    rows.append(KeyRow("requests within SLO", tuple(map(Text, attained))))
    rows += [
        KeyRow(f"  of {kind}", tuple(Text(_kind_attainment(s.metrics, kind)) for s in systems))
        for kind in systems[0].metrics.kinds or {}
    ]
    loads = (capacity_share(summary.load, s) or "-" for s in systems)
    rows.append(KeyRow("load / capacity", tuple(map(Text, loads))))
    if summary.estimate:
        bought = [summary.estimate.get(name) for name in summary.systems]
        for label, usd in (("to buy, $", "capex_usd"), ("to run, $", "opex_usd")):
            rows.append(KeyRow(label, ratios([getattr(cost, usd, None) for cost in bought])))
    for label, costs in (("$ per Mtok", token_usd), ("J per token", token_joules)):
        here, full = zip(*map(costs, systems), strict=True)
        rows += [KeyRow(label, ratios(here)), KeyRow("  if always full", ratios(full))]
    known = [s.metrics.availability for s in systems]
    works = (f"{percent(a, a.availability)} %" if a else "-" for a in known)
    rows.append(KeyRow("availability", tuple(map(Text, works))))
    fitted = (s.metrics.fitted_share for s in systems)
    shares = ("-" if share is None else percent_text(share) for share in fitted)
    rows.append(KeyRow("fitted share", tuple(map(Text, shares))))
    return [row for row in rows if any(cell.plain != "-" for cell in row.cells)]


def _starred(metrics: Metrics, cell: Text) -> Text:
    """Return a cell with a star if the system has no steady state."""
    starred = metrics.verdict in NOT_STEADY and cell.plain != "-"
    return Text(f"{cell.plain} *", style="red") if starred else cell


def _kind_attainment(metrics: Metrics, kind: str) -> str:
    """Return the share of a kind's requests within its SLO."""
    of_kind = (metrics.kinds or {}).get(kind)
    return attainment_text(of_kind.attainment if of_kind else None)


def attainment_text(share: float | None) -> str:
    """Return '99.4 %'; '100 %' only if every request is within the SLO."""
    if share is None:
        return "-"
    return percent_text(share if share == 1 else min(share, 0.999), 1).replace(".0 %", " %")


def ratios(values: Sequence[float | None]) -> tuple[Text, ...]:
    """Return values with their ratio to the first one: '307', '34.2 (1/9.0)', '83.6 (2.4x)'."""
    first, *others = values
    cells = [format_number(first)]
    for value in others:
        ratio = value / first if value and first else None
        text = "" if ratio is None else f" ({ratio_text(ratio)})"
        cells.append(format_number(value) + text)
    return tuple(map(Text, cells))


def ratio_text(ratio: float) -> str:
    """Return '2.4x', or '1/9.0' for a ratio below 1."""
    return f"{short_ratio(ratio)}x" if ratio > 0.995 else f"1/{short_ratio(1 / ratio)}"


def blocks(rows: Sequence[KeyRow], labels: Sequence[str], width: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last column but one of tables that fit the width.

    A block has one system at least.
    """
    names = max(cell_len(row.label) for row in rows)
    first, used = 0, names
    for number in range(len(labels)):
        own = GAP + column_width(rows, labels, number)
        if number > first and used + own > width:
            yield first, number
            first, used = number, names
        used += own
    yield first, len(labels)


def column_width(rows: Iterable[KeyRow], labels: Sequence[str], number: int) -> int:
    """Return the width of a system's column: its widest cell or line of its heading."""
    cells = max(cell_len(row.cells[number].plain) for row in rows)
    return max(cells, *map(cell_len, heading(labels[number], cells).split("\n")))


def heading(label: str, cells: int) -> str:
    """Return a label in lines no wider than the cells below it, or than `HEADING`."""
    return "\n".join(textwrap.wrap(label, max(HEADING, cells)))


def key_table(rows: Sequence[KeyRow], labels: Sequence[str], first: int, last: int) -> Table:
    """Return the table of the systems from number `first` to before `last`."""
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
        header_style="bold",
    )
    table.add_column("(ratio to the first)" if len(labels) > 1 else "", no_wrap=True)
    for number in range(first, last):
        cells = max(cell_len(row.cells[number].plain) for row in rows)
        table.add_column(heading(labels[number], cells), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.label, *row.cells[first:last])
    return table


def remarks(summary: RunSummary) -> list[str]:
    """Return conditions, estimates, verdicts that are not STABLE, and SLOs that are missed."""
    lines = conditions_of_numbers(summary)
    for name, system in summary.systems.items():
        lines += estimated_collectives(name, system)
        metrics = system.metrics
        label = system_label(name, system.identity)
        if metrics.verdict != "STABLE" or metrics.unfinished:
            lines += judgement(label, metrics)
        if system.no_capacity:
            lines.append(f"{label}: {system.no_capacity}.")
        judged = {"": (summary.slo_percentile, metrics.attainment)}
        for kind, of in (metrics.kinds or {}).items():
            judged[f"{kind} "] = of.slo_percentile, of.attainment
        for kind, (percentile, share) in judged.items():
            if percentile and share is not None and share < percentile / 100:
                within = f"{attainment_text(share)} of the {kind}requests are within the SLO"
                lines.append(f"{label}: {within}; expected {percentile:g} %.")
    return lines


def next_commands(summary: RunSummary, file: str) -> list[str]:
    """Return the commands to try next."""
    name = file or summary.scenario
    commands = {
        f"sramsim run {name} --all": "every row",
        f"sramsim explain {name}": "where the time goes",
    }
    if any(system.at_capacity for system in summary.systems.values()):
        commands[f"sramsim capacity {name}"] = "capacity, simulated"
    commands[f"sramsim run {name} --out out && sramsim report out"] = "one page"
    width = max(len(command) for command in list(commands)[:-1])
    return [f"  {command:<{width}}  # {what}" for command, what in commands.items()]
