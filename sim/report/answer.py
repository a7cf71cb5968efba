"""The answer of a run in one sentence, and its conditions: requests, SLO, share of capacity.

>>> times_text(2.163), times_text(1.0004)
('2.2 times as soon', 'as soon')
"""

from collections.abc import Mapping

from sim.report.identity_rows import hardware, marked_changed
from sim.results.labels import format_number, labelled, percent_text, speed_label, system_label
from sim.results.statistics import KindMetrics
from sim.results.summary import OfferedLoad, RunSummary, SystemSummary, TokenLengths
from sim.results.system_identity import Identity
from sim.units import format_quantity

LEVEL = 1.005  # two times within this ratio are equal in a sentence
AS_SOON = "as soon"
_Systems = Mapping[str, SystemSummary]


def answer_sentence(summary: RunSummary) -> str:
    """Return the fastest system for a user, by how much, at which cost and under which load.

    Left out as the fastest: systems that are not STABLE.
    """
    systems = {name: s for name, s in summary.systems.items() if s.metrics.completed}
    names = {name: labelled(name, s.identity) for name, s in summary.systems.items()}
    stable = {name: s for name, s in systems.items() if s.metrics.verdict == "STABLE"}
    others = [
        f"{names[name]} is {s.metrics.verdict}"
        for name, s in summary.systems.items()
        if name not in stable
    ]
    if not stable:
        return f"No system is STABLE under this load: {', '.join(others)}."
    text = _single(stable, names) if len(stable) == 1 else _fastest_of(stable, names)
    text += _at_cost_and_load(summary, stable)
    return "; ".join([text, *others]) + "."


def _by_time(systems: _Systems, latency: str) -> list[str]:
    """Return the systems in the order of a median latency, the shortest first."""
    return sorted(systems, key=lambda name: systems[name].metrics.latency(latency).median or 0.0)


def _single(stable: _Systems, names: Mapping[str, str]) -> str:
    """Return the times of the only system that is STABLE."""
    ((name, system),) = stable.items()
    metrics = system.metrics
    head = names[name] if len(names) == 1 else f"Only {names[name]} is STABLE under this load"
    first, last = (format_number(of.median) for of in (metrics.ttft, metrics.e2el))
    return f"{head}: the first token comes after {first} ms, the whole answer after {last} ms"


def _fastest_of(stable: _Systems, names: Mapping[str, str]) -> str:
    """Return the fastest of several systems on the first and on the last token."""
    first, first_next, last, last_next = _leaders(stable)
    sooner = _times(stable, "ttft", first, first_next)
    earlier = _times(stable, "e2el", last, last_next)
    if first == last and {sooner, earlier} == {AS_SOON}:
        return (
            f"No system is ahead for a user: the first and the last token come {AS_SOON} from "
            f"{names[first]} as from {names[last_next]}"
        )
    if first == last:
        from_next = "" if first_next == last_next else f" as from {names[first_next]}"
        return (
            f"{names[first]} is fastest for a user: the first token comes {sooner}{from_next} and "
            f"the whole answer {earlier} as from {names[last_next]}"
        )
    from_first = "" if last_next == first else f" as from {names[last_next]}"
    return (
        f"A user gets the first token soonest from {names[first]} ({sooner} as from "
        f"{names[first_next]}), the whole answer from {names[last]} ({earlier}{from_first})"
    )


def _leaders(stable: _Systems) -> tuple[str, str, str, str]:
    """Return the fastest and the next system on the first token, and those on the last token.

    A system that is fastest on the last token is also fastest on the first if it is level there.
    """
    last, last_next, *_ = _by_time(stable, "e2el")
    first, *others = _by_time(stable, "ttft")
    if _times(stable, "ttft", first, last) == AS_SOON:
        others = [name for name in (first, *others) if name != last]
        first = last
    return first, others[0], last, last_next


def _times(systems: _Systems, latency: str, best: str, other: str) -> str:
    """Return how much sooner the best system is than another: '2.2 times as soon'."""
    mine, theirs = (systems[name].metrics.latency(latency).median for name in (best, other))
    return times_text(theirs / mine if mine and theirs else 1.0)


def times_text(ratio: float) -> str:
    """Return a ratio of times in words."""
    if ratio < LEVEL:
        return AS_SOON
    return f"{short_ratio(ratio)} times as soon"


def short_ratio(ratio: float) -> str:
    """Return a ratio of 1 or more with two digits, near 1 with three: '1.04', '9.0', '296'."""
    return f"{ratio:.2f}" if ratio < 1.145 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def _at_cost_and_load(summary: RunSummary, stable: _Systems) -> str:
    """Return price and load of the system that is fastest on the last token; '' if unknown.

    The price is that of a token over the one of the next system, or of the fastest on the first.
    """
    last, clauses = _by_time(stable, "e2el")[0], []
    if len(stable) > 1:
        first, _, last, last_next = _leaders(stable)
        other = stable[first if first != last else last_next]
        pairs = zip(token_usd(stable[last]), token_usd(other), strict=True)
        here, full = (_multiple(mine, theirs) for mine, theirs in pairs)
        if_full = f" ({full} if always full)" if full else ""
        if here:
            the = "" if here == "the same" else " of the" if here.startswith("1/") else " the"
            clauses.append(f"{here}{the} price of a token{if_full}")
    if share := capacity_share(summary.load, stable[last]):
        clauses.append(f"{share} of its capacity")
    text = f", at {' and '.join(clauses)}" if clauses else ""
    users = summary.load and summary.load.users
    return f"{text}, with {_counted(users, 'user')}" if users else text


def _multiple(mine: float | None, other: float | None) -> str:
    """Return '37 times', '1/2.3' or 'the same' for two prices; '' if one is unknown."""
    if not mine or not other:
        return ""
    if max(mine / other, other / mine) < LEVEL:
        return "the same"
    return (
        f"{short_ratio(mine / other)} times" if mine > other else f"1/{short_ratio(other / mine)}"
    )


def token_usd(system: SystemSummary) -> tuple[float | None, float | None]:
    """Return the $ of a million output tokens under this load, and if the system is always full."""
    here, full = system.costs.economics, system.costs_at_capacity.economics
    return here.usd_per_mtok if here else None, full.usd_per_mtok if full else None


def token_joules(system: SystemSummary) -> tuple[float | None, float | None]:
    """Return the J of an output token under this load, and if the system is always full."""
    here, full = system.costs.energy, system.costs_at_capacity.energy
    return here.joules_per_token if here else None, full.joules_per_token if full else None


def capacity_share(load: OfferedLoad | None, system: SystemSummary) -> str:
    """Return the load over the system's estimated capacity: '<1 %', 'about 3 %'; '' if unknown.

    The digits are few, because the capacity is an estimate.
    """
    full = system.at_capacity
    if not (full and load and load.varied):
        return ""
    share = load.varied / full.load
    return "<1 %" if share < 0.01 else f"about {percent_text(share)}"


def opening_question(comment: str) -> str:
    """Return the first question of a scenario's opening comment, or else its first sentence."""
    for mark in ("?", "."):
        first, end, _ = f"{comment} ".partition(f"{mark} ")
        if end:
            return first + mark
    return comment


def condition_lines(summary: RunSummary) -> list[str]:
    """Return the conditions of a run: what each system is, the requests, the SLO."""
    identities = summary.identities
    models = {identity.model for identity in identities.values()}
    lines = [
        f"{system_label(name, identity)}: {description(identity, len(models) > 1)}"
        for name, identity in identities.items()
    ]
    if summary.load:
        model = f"{next(iter(models))}: " if len(models) == 1 else ""
        lines.append(f"{model}{requests_text(summary.load, summary.workload)}.")
    kinds = next(iter(summary.systems.values())).metrics.kinds
    return [*lines, kinds_line(kinds) if kinds else slo_line(summary)]


def kinds_line(kinds: Mapping[str, KindMetrics]) -> str:
    """Return the share of each kind of requests, and its limits."""
    total = sum(kind.requests for kind in kinds.values())
    parts = [
        f"{name} {percent_text(kind.requests / total)}"
        f" ({_limits(kind.slo, kind.slo_percentile) if kind.slo else 'no SLO'})"
        for name, kind in kinds.items()
    ]
    return f"Kinds of requests: {', '.join(parts)}."


def description(identity: Identity, with_model: bool) -> str:
    """Return chips, engine, precision and plan of a system, or the members of a fleet."""
    plain, model = identity.plain, [marked_changed(identity, identity.model, "model")] * with_model
    if plain is None:
        return ", ".join([*model, hardware(identity)])
    engine = marked_changed(plain, plain.hardware[1], "engine")
    parts = [hardware(identity), *model, engine, plain.weights]
    return ", ".join([*parts, plain.degrees, *filter(None, [speed_label(identity)])])


def requests_text(load: OfferedLoad, kind: str | None) -> str:
    """Return number, arrivals and lengths of the requests."""
    count = _counted(load.requests, "request")
    if load.users is not None:
        text = f"{count} of {_counted(load.users, 'user')}"
    elif load.sessions is not None:
        text = f"{count} in {_counted(load.sessions, 'session')}"
        text += f", {load.rate:.4g} new ones/s" if load.rate else ""
    else:
        text = f"{count} at {load.rate:.3g}/s" if load.rate else count
    head = f"{text} ({kind})" if kind else text
    shared = f" ({load.shared_prefix:,} of them shared by all)" if load.shared_prefix else ""
    prompt, output = _lengths(load.prompt, "prompt"), _lengths(load.output, "output")
    return f"{head}, {prompt}{shared} + {output} tokens"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _lengths(tokens: TokenLengths, kind: str) -> str:
    """Return '512 prompt', or '80-4,096 prompt (mean 512)' if lengths differ."""
    if tokens.least == tokens.most:
        return f"{tokens.most:,} {kind}"
    return f"{tokens.least:,}-{tokens.most:,} {kind} (mean {tokens.mean:,.0f})"


def slo_line(summary: RunSummary) -> str:
    """Return the limits of the SLO."""
    if summary.slo is None:
        return "No slo in the scenario: attainment and capacity are not defined."
    return f"SLO: {_limits(summary.slo, summary.slo_percentile)}."


def _limits(slo: Mapping[str, float], percentile: float | None) -> str:
    """Return the limits, and the percent of the requests that must meet them."""
    share = f" for {percentile:g} % of the requests" if percentile else ""
    limits = (f"{name.upper()} {format_quantity(limit, 's')}" for name, limit in slo.items())
    return ", ".join(limits) + share
