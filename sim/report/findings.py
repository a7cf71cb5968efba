"""Findings of a run in sentences, made from its summary without simulation.

>>> ratio(7.14), ratio(1.04)
('7.1', '1.040')
"""

from collections.abc import Mapping

from sim.economics.break_even import ALONE, LOADED, break_even_points, priced_card_systems
from sim.report.identity_rows import WEIGHT_BANDWIDTHS, changed_numbers
from sim.results.labels import format_number, labelled, percent_text, system_label, system_labels
from sim.results.statistics import Metrics
from sim.results.summary import RunSummary, SystemSummary
from sim.results.system_identity import SystemIdentity
from sim.results.verdict import KEEPS_UP

VARIABLE = ("poisson", "gamma", "trace", "closed")  # workloads whose load `capacity` varies
# A system whose chips work less of their time gets a pointer to J and $ at capacity.
BUSY = 0.2

Systems = Mapping[str, SystemSummary]


def notes(summary: RunSummary, file: str = "") -> list[str]:
    """Return the lines below the tables: what was left out, what was counted, and the findings.

    file: words that name the scenario in a command to try, with its `--set` options.
    """
    lines = conditions_of_numbers(summary)
    if summary.estimate:
        lines.append(
            "The ratios of what systems cost say nothing of tokens: they compare as if all systems "
            "were equally fast."
        )
        lines += token_cost_findings(summary)
    plain = [identity for s in summary.systems.values() if (identity := s.identity.plain)]
    if any(point.paced for identity in plain for point in identity.published):
        lines.append("(paced): the service throttled this speed; the hardware is at least as fast.")
    return lines + mostly_idle(summary, file) + findings(summary.systems)


def conditions_of_numbers(summary: RunSummary) -> list[str]:
    """Return changed numbers, the parts of a trace that were left out, and the part that counts."""
    lines, labels = changed_numbers(summary.identities), system_labels(summary.identities)
    if summary.note:
        lines.append(f"Trace: {summary.note}.")
    spans = {name: span for name, s in summary.systems.items() if (span := s.metrics.measured)}
    if spans:
        counted = {
            name: f"from {format_number(span.start)} to {format_number(span.end)} s"
            for name, span in spans.items()
        }
        parts = [f"{labels[name]} {part}" for name, part in counted.items()]
        if len(spans) > 1 and len(set(counted.values())) == 1:
            parts = [f"all systems {min(counted.values())}"]
        lines.append(f"Counted: {', '.join(parts)}; ITL and verdict of the whole run.")
    return lines


def mostly_idle(summary: RunSummary, file: str) -> list[str]:
    """Return the command for J and $ at capacity, if a system is mostly idle.

    Left out: workloads whose load `capacity` cannot vary, and scenarios without an SLO.
    """
    known = [s.costs for s in summary.systems.values() if s.costs.energy or s.costs.economics]
    shares = [costs.busy_share for costs in known if costs.busy_share is not None]
    if summary.slo is None or summary.workload not in VARIABLE or min(shares, default=1.0) >= BUSY:
        return []
    return [f"J and $ at capacity: sramsim capacity {file or summary.scenario}"]


def token_cost_findings(summary: RunSummary) -> list[str]:
    """Return what a token costs over the others', and the card prices at which costs are equal."""
    priced = summary.priced_systems
    mine = priced_card_systems(priced)
    costs = {name: system.price_and_speed() for name, system in priced.items()}
    if (
        not mine
        or len(mine) == len(costs)
        or any(LOADED not in by_load for by_load in costs.values())
    ):
        return []
    lines, labels = [], system_labels(summary.identities)
    for name in (name for name in costs if name not in mine):
        for one in mine:
            alone, loaded = (
                ratio(costs[one][load][0] / costs[name][load][0]) for load in (ALONE, LOADED)
            )
            lines.append(
                f"A token of {labels[one]} costs {alone} times one of {labels[name]} with one user "
                f"each, {loaded} times under this load."
            )
    best, points = break_even_points(priced)
    speed = format_number(costs[best][LOADED][1])
    for point in points:
        at = (
            f"at ${format_number(point.price)} a card"
            if point.price > 0
            else "at no price of a card"
        )
        user = f"{format_number(point.speed)} token/s for a user"
        lines.append(
            f"A token of {labels[best]} under this load ({speed} token/s for a user) costs as "
            f"much as one of {labels[point.other]} with {point.load} ({user}) {at}."
        )
    return lines


def verdict_text(metrics: Metrics) -> str:
    """Return the verdict, with a remark if requests come in bursts: 'STABLE, with bursts'."""
    bursts = any(hint.kind == "bursts" for hint in metrics.hints)
    return metrics.verdict + (", with bursts" if bursts else "")


def _user_speeds(systems: Systems) -> dict[str, float]:
    """Return the tokens/s of the median user, of the systems that gave one two tokens."""
    return {name: speed for name, s in systems.items() if (speed := s.metrics.user_speed)}


def _fastest(systems: Systems) -> list[str]:
    """Return the fastest system for a user over each other one; nothing without two tokens."""
    speeds = _user_speeds(systems)
    if not speeds:
        return []
    best = max(speeds, key=lambda name: speeds[name])
    names = {name: labelled(name, systems[name].identity) for name in speeds}
    others = ", ".join(
        f"{ratio(speeds[best] / speed)} times that of {names[name]}"
        for name, speed in speeds.items()
        if name != best
    )
    head = f"{names[best]}: {format_number(speeds[best])} token/s for a user"
    return [f"{head}, {others}." if others else f"{head}."]


def findings(systems: Systems) -> list[str]:
    """Return the fastest system over the others, and remarks on verdicts and links."""
    lines = []
    speeds = _user_speeds(systems)
    if len(speeds) > 1:
        lines += _fastest(systems)
        lines += bandwidth_claims(systems, speeds)
    labels = {name: system_label(name, s.identity) for name, s in systems.items()}
    lines += [f"{labels[name]}: {member_shares(s)}." for name, s in systems.items() if s.members]
    for name, system in systems.items():
        lines += estimated_collectives(name, system)
        lines += judgement(labels[name], system.metrics)
        lines += _waits(labels[name], system)
    return lines


def estimated_collectives(name: str, system: SystemSummary) -> list[str]:
    """Return the collectives whose times are estimates, of plain systems at stage fidelity."""
    fidelities = {member: of.fidelity for member, of in system.members.items()}
    return [
        f"{system_label(part, identity)}: {identity.contended}."
        for part, identity in system.identity.parts(name).items()
        if identity.contended and fidelities.get(part, system.fidelity) != "chip"
    ]


def _waits(label: str, system: SystemSummary) -> list[str]:
    """Return the link that messages waited for longest."""
    network = system.network
    if not network or not network.links_waited_for:
        return []
    link = network.links_waited_for[0]
    return [
        f"{label}: messages waited most for the link {link.link}: {format_number(link.waited_ms)} "
        f"of {format_number(network.waited_ms)} ms, for {link.messages:,} messages."
    ]


def judgement(label: str, metrics: Metrics) -> list[str]:
    """Return the meaning of a verdict, reasons of unfinished requests, and hints."""
    lines = []
    share = metrics.served_share
    served = f"{100 * share:.3g} %" if share is not None else "less"
    match metrics.verdict:
        case "OVERLOADED":
            lines.append(
                f"* {label} is overloaded: it serves {served} of what it is offered. The rest "
                "waits longer and longer, or is turned away. Latencies depend on the run's length."
            )
        case "REFUSED":
            lines.append(
                f"* {label} did not finish half of the requests or more; its latencies are those "
                "of the others."
            )
        case "TOO SHORT":
            why = (
                f"it serves {served} of what it is offered while requests come"
                if share is None or share < KEEPS_UP
                else "more requests arrive than leave, up to the last arrival"
            )
            lines.append(
                f"{label}: the run is too short to tell whether it keeps up: {why}; ask for more "
                "requests."
            )
        case "BACKLOGGED":
            lines.append(
                f"{label} is backlogged: more than a tenth of its requests waited longer than they "
                "were served."
            )
    lines += [
        f"{label}: {part.requests:,} requests unanswered: {part.reason}."
        for part in metrics.unfinished
    ]
    return lines + [f"{label}: {hint.text}." for hint in metrics.hints]


def member_shares(fleet: SystemSummary) -> str:
    """Return each member's share of the requests of a fleet, and its latencies."""
    parts, completed = [], fleet.metrics.completed
    for name, member in fleet.members.items():
        served = member.served
        if not served:
            continue
        part = percent_text(served.completed / completed) if completed else "none"
        times = f"median TTFT {format_number(served.ttft.median)} ms, "
        times += f"TPOT {format_number(served.tpot.median)} ms"
        text = f"{system_label(name, member.identity)} served {part} of the requests"
        parts.append(f"{text} ({times})" if served.completed else text)
    return ", ".join(parts)


def ratio(value: float) -> str:
    """Return '7.1'; near 1 with more digits, so that it does not read 1.0."""
    return f"{value:.3f}" if value < 1.15 else f"{value:.1f}"


def bandwidth_claims(systems: Systems, speeds: Mapping[str, float]) -> list[str]:
    """Return the ratio of a claimed bandwidth of the first system to that of each other chip.

    The ratio is counted by each of `WEIGHT_BANDWIDTHS`.
    Left out: fleets, and makers that count as a matrix-vector multiply does.
    """
    plain = {name: part for name, s in systems.items() if (part := s.identity.plain)}
    if not plain:
        return []
    first, *rest = plain
    claimed = plain[first].weight_bandwidth
    if claimed.claimed <= 1.01 * claimed.chip:
        return []
    lines = []
    for name in rest:
        if plain[name].chip == plain[first].chip:
            continue
        pair = f"{system_label(first, plain[first])} over {system_label(name, plain[name])}"
        lines.append(_bandwidths(pair, plain[first], plain[name]))
        times = [systems[one].unloaded for one in (name, first)]
        unloaded = times[0].tpot_ms / times[1].tpot_ms if times[0] and times[1] else float("nan")
        busy = (
            f", {speeds[first] / speeds[name]:.1f} under this load"
            if {first, name} <= speeds.keys()
            else ""
        )
        lines.append(f"Speed of a user, {pair}: {unloaded:.1f} unloaded{busy}.")
    return lines


def _bandwidths(pair: str, one: SystemIdentity, other: SystemIdentity) -> str:
    quotients = {label: rate(one) / rate(other) for label, rate in WEIGHT_BANDWIDTHS.items()}
    ratios = (
        f"{f'{value:,.1f}' if value >= 1 else format_number(value)} ({label})"
        for label, value in quotients.items()
    )
    return f"Speed of reading weights, {pair}: {', '.join(ratios)}."
