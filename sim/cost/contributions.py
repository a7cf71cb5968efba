"""A step's time as lines that can be printed: each with its amount, rate and file keys.

    merged(contributions(costs, work, *np.ones((2, costs.stages))))

The lines are `Costs.rows` and the hops. Their seconds add up to `step_terms`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sim.cost.causes import DRAFTER
from sim.cost.collectives import Collectives
from sim.cost.system_costs import SystemCosts
from sim.cost.terms import HOPS, KV, OVERHEAD, TERMS, Array, Cause, Resource, Row
from sim.cost.work import Work
from sim.model.blocks import Block
from sim.units import Seconds


@dataclass(frozen=True, slots=True)
class Contribution:
    """A line of an explanation: seconds = amount / (chips x rate x efficiency).

    term: of `TERMS`.  part: such as 'attention'.  what: such as 'weights read'.
    count: how often it occurs on the token's way.
    amount, unit: over all occurrences, in B, FLOP or s.  rate: None for seconds.
    ideal: seconds without the engine's losses.
    keys: of the numbers, such as 'engine.layer_overhead'; empty for those of the topology.
    """

    term: str
    part: str
    what: str
    resource: Resource
    count: float
    amount: float
    unit: str
    seconds: Seconds
    ideal: Seconds
    chips: int = 1
    rate: float | None = None
    efficiency: float = 1.0
    keys: tuple[str, ...] = ()


def contributions(
    costs: SystemCosts, work: Work, weights: Array, hop_weights: Array
) -> Iterator[Contribution]:
    """Yield the lines of a step, and of the hops to its stages.

    weights, hop_weights: float[stage], how often a stage, and the hop to it, counts.
    Left out: the way back of the sampled token (`way_back`).
    """
    for row in costs.rows(work):
        yield from _of_row(row, float((row.repeats * weights).sum()))
    ranked = costs.layout.ranked(work)
    hops, latency = costs.hops(ranked), costs.hops(0)
    count = float(hop_weights[1:].sum())
    waited = float((latency * hop_weights).sum())
    sent = float((hops * hop_weights).sum()) - waited
    yield _seconds(HOPS, "hops", "latency", "link", count, waited)
    if sent > 0:
        nbytes = count * Collectives(costs.layout).slice_bytes(ranked)
        line = _seconds(HOPS, "hops", "slice sent by each chip", "link", count, sent)
        yield replace(line, amount=nbytes, unit="B", rate=nbytes / sent)


def way_back(costs: SystemCosts, count: float = 1.0) -> Contribution:
    """Return the line of the sampled token's way from the last chip to the first stage."""
    return _seconds(HOPS, "hops", "sampled token back", "link", count, count * costs.back)


def merged(lines: Iterable[Contribution]) -> list[Contribution]:
    """Return the lines with equal ones added up, the longest first.  Empty lines are left out."""
    sums: dict[tuple[object, ...], Contribution] = {}
    for line in lines:
        # The rate of messages is a mean over groups of chips that lie differently.
        rate = None if line.resource == "link" else line.rate
        key = line.term, line.part, line.what, line.chips, rate, line.efficiency, line.keys
        other = sums.get(key)
        sums[key] = line if other is None else _added(other, line)
    return sorted((line for line in sums.values() if line.seconds), key=lambda c: -c.seconds)


def _added(one: Contribution, other: Contribution) -> Contribution:
    """Return the sum of two lines, at the mean rate."""
    amount, seconds = one.amount + other.amount, one.seconds + other.seconds
    mean = one.rate and seconds and amount / (one.chips * one.efficiency * seconds)
    return replace(
        one,
        count=one.count + other.count,
        amount=amount,
        rate=one.rate if one.rate == other.rate else mean,
        seconds=seconds,
        ideal=one.ideal + other.ideal,
    )


def _of_row(row: Row, count: float) -> Iterator[Contribution]:
    """Yield the lines of a row that occurs `count` times: one for each term and cause."""
    total = row.seconds
    for cause in row.causes() if count else ():
        for term, share in row.shares():
            times = count * share
            yield Contribution(
                term=TERMS[term],
                part=_part(row, term),
                what=_what(cause, term) if share < 1 else cause.what,
                resource=cause.resource,
                count=count,
                amount=times * cause.amount,
                unit=cause.unit,
                seconds=times * cause.seconds,
                ideal=times * cause.seconds * (row.ideal / total if total else 0.0),
                chips=cause.chips,
                rate=cause.rate,
                efficiency=cause.efficiency,
                keys=cause.keys,
            )


def _what(cause: Cause, term: int) -> str:
    """Return what a part of a cause is for: 'activations read', also of a drafter."""
    if TERMS[term] != "activations":
        return cause.what
    owner = f"{DRAFTER}: " if cause.what.startswith(DRAFTER) else ""
    return f"{owner}activations read"


def _part(row: Row, term: int) -> str:
    if isinstance(row.part, Block):
        return "experts" if row.part.experts else row.part.kind
    if row.part is None:
        return {HOPS: "pools", OVERHEAD: "host"}.get(term, "stage")
    return row.part.cache if term == KV else row.part.name


def _seconds(
    term: int, part: str, what: str, resource: Resource, count: float, seconds: Seconds
) -> Contribution:
    """Return a line that is stated in seconds, without losses of the engine."""
    return Contribution(TERMS[term], part, what, resource, count, seconds, "s", seconds, seconds)
