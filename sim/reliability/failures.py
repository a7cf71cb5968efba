"""Failures of chips, nodes, racks and links over months: availability simulated on SimPy, and its closed forms.

A system is down while fewer parts are good than it needs, and while a spare is taken in its place: SRAM is volatile, so the
weights are loaded again.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import simpy
from pydantic import Field

from sim.inputs.values import Sourced, Value
from sim.units import HOUR, YEAR, Count, FailuresPerSecond, Fraction, Seconds, format_quantity

FailureProcess = Generator[simpy.Event, Any, None]
WARM_UP_LIVES = 5  # relaxation times, or swaps
MOST_LIVES = 1e7  # of parts, over all samples: some minutes
ROUNDED = 1e-9  # what is left of an availability of nothing


class Failures(Value):
    """How often a part at work fails: a rate, and Weibull's shape: 1 (exponential) has no memory, below 1 the young ones die."""

    rate: FailuresPerSecond
    shape: Annotated[float, Field(ge=0.1, le=100)] = 1.0

    @property
    def scale(self) -> Seconds:
        """Weibull's scale at which the mean life is 1/rate: 1 / (rate Γ(1 + 1/shape))."""
        return 1 / (self.rate * math.gamma(1 + 1 / self.shape))

    def life(self, rng: np.random.Generator) -> Seconds:
        """Of a new part."""
        return float(self.scale * rng.weibull(self.shape))

    def rest(self, rng: np.random.Generator) -> Seconds:
        """What is left of the life of a part that was put in long ago.

        A moment falls into a life with a chance in proportion to its length, and anywhere in it: U x, with x distributed as
        x f(x), so that (x/scale)^shape is Gamma(1 + 1/shape).  Source: Feller, "An Introduction to Probability Theory", II, XI.4.
        """
        return float(self.scale * rng.gamma(1 + 1 / self.shape) ** (1 / self.shape) * rng.random())


class Faults(Sourced):
    """What of a system fails, each part independently of the others, and what stands by.

    A node is out when it fails itself or one of its chips does, until it is repaired.  The system needs all nodes that its chips
    fill, every rack and every link.  Spares are nodes that idle, cost and fail as the others do: `spares` for the system, or for
    each rack of `nodes_per_rack` nodes at work.  A swap takes `detection` (until the failure is noticed and the spare is in its
    place) and the loading of the weights.  `crews` repair one part at a time each; where it is left out nobody waits for one.
    Repairs are exponential with the mean `repair`.  Of a system with replicas each has spares, crews, racks and links of its own,
    and the availability is that of one: the share of them that work.

    Parts are `new` when the horizon begins, or `settled`: as old as parts are that have long been replaced one by one.  Every
    `model_swap_every` another model's weights are loaded, as many bytes.  `samples` systems are simulated, each over the `horizon`.

    Left out: running on without a rack or round a dead link; failures while a part is in repair; common causes.
    """

    chip: Failures | None = None
    node: Failures | None = None
    rack: Failures | None = None
    link: Failures | None = None
    chips_per_node: Count = 1
    nodes_per_rack: Count | None = None
    links: Count | None = None
    spares: Annotated[int, Field(ge=0, le=10_000)] = 0
    spares_per: Literal["system", "rack"] = "system"
    crews: Count | None = None
    repair: Annotated[Seconds, Field(gt=0)]
    detection: Seconds
    age: Literal["settled", "new"] = "settled"
    model_swap_every: Annotated[Seconds, Field(gt=0)] | None = None
    horizon: Annotated[Seconds, Field(gt=0)]
    samples: Annotated[int, Field(ge=2, le=100_000)]


@dataclass(frozen=True)
class Group:
    """Parts that stand in for each other: how many are needed, how many more there are, and what each one has that fails.

    `causes` holds a cause for each thing in a part that fails on its own: of a node itself and each of its chips.
    """

    needed: int
    spares: int
    causes: tuple[Failures, ...]

    @property
    def parts(self) -> int:
        return self.needed + self.spares

    @property
    def rate(self) -> FailuresPerSecond:
        """Of one part."""
        return sum(cause.rate for cause in self.causes)


@dataclass(frozen=True)
class ClosedForm:
    """The closed form: the probability that enough parts are good, times those of no swap of a part and of no swap of the model."""

    parts: Fraction
    swaps: Fraction
    models: Fraction

    @property
    def availability(self) -> Fraction:
        return self.parts * self.swaps * self.models


@dataclass(frozen=True)
class Availability:
    """The share of time that a system works, of each sample, and how often it was down."""

    samples: tuple[float, ...]
    outages_per_second: float
    swap: Seconds
    mtbf: Seconds
    without_spares: Fraction
    model_swaps: Fraction  # the share of time that they take
    closed: ClosedForm | None

    @property
    def mean(self) -> float:
        return float(np.mean(self.samples))

    @property
    def standard_error(self) -> float:
        return float(np.std(self.samples, ddof=1)) / math.sqrt(len(self.samples))

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean, by Student's t."""
        from scipy.stats import t

        return float(t.ppf(0.975, len(self.samples) - 1)) * self.standard_error

    def metrics(self) -> dict[str, Any]:
        """What a result tells of it; `p5` is what one sample in twenty falls below."""
        closed = self.closed
        return {
            "availability": self.mean,
            "ci95_availability": self.half_width,
            "p5_availability": float(np.percentile(self.samples, 5)),
            "closed_form_availability": closed and closed.availability,
            "closed_form_availability_without_swaps": closed and closed.parts,
            "series_availability": self.without_spares,
            "mtbf_h": self.mtbf / HOUR,
            "swap_s": self.swap,
            "lost_to_model_swaps": self.model_swaps,
            "outages_per_year": self.outages_per_second * YEAR,
        }


def groups(faults: Faults, chips: int) -> list[Group]:
    """The parts of a system whose model needs so many chips.

    Raises: ValueError where chips do not fill nodes, or a key is missing that another one needs.
    """
    if chips % faults.chips_per_node:
        raise ValueError(f"faults: {chips} chips are no whole nodes of {faults.chips_per_node}")
    if not (faults.chip or faults.node or faults.rack or faults.link):
        raise ValueError("faults: nothing fails; give chip, node, rack or link a rate")
    if faults.nodes_per_rack is None and (faults.rack or faults.spares_per == "rack"):
        raise ValueError("faults: racks are counted by nodes_per_rack, and it is missing")
    if bool(faults.link) != bool(faults.links):
        raise ValueError(
            "faults: link and links go together: how often one fails, and how many there are"
        )
    nodes = chips // faults.chips_per_node
    full, rest = divmod(nodes, faults.nodes_per_rack or nodes)
    racks = [faults.nodes_per_rack or nodes] * full + [rest] * (rest > 0)
    causes = ((faults.node,) if faults.node else ()) + (
        (faults.chip,) * faults.chips_per_node if faults.chip else ()
    )
    found = [
        Group(needed, faults.spares, causes)
        for needed in (racks if faults.spares_per == "rack" else [nodes])
    ]
    found += [Group(len(racks), 0, (faults.rack,))] if faults.rack else []
    found += [Group(faults.links, 0, (faults.link,))] if faults.link and faults.links else []
    if faults.spares and not causes:
        raise ValueError("faults: spares are nodes; give chip or node a rate")
    return [group for group in found if group.causes]


def standing_by(faults: Faults | None, chips: int) -> int:
    """Chips of the spare nodes of a system whose model needs so many.  Raises: ValueError as `groups` does."""
    spares = sum(group.spares for group in groups(faults, chips)) if faults and faults.spares else 0
    return spares * faults.chips_per_node if faults else 0


def require_sound(faults: Faults, chips: int, load: Seconds | None) -> None:
    """Raises: ValueError where parts cannot be counted, are too many to simulate, or a model cannot be loaded in time."""
    parts = groups(faults, chips)
    start = warm_up(faults, parts, faults.detection + (load or 0.0))
    lives = sum(group.parts * (1 + (start + faults.horizon) * group.rate) for group in parts)
    if faults.samples * lives > MOST_LIVES:
        raise ValueError(
            f"faults: {faults.samples} samples are {faults.samples * lives:,.0f} lives of parts to simulate, and {MOST_LIVES:,.0f} "
            "are the most; shorten the horizon, or take fewer samples"
        )
    if every := faults.model_swap_every:
        if load is None:
            raise ValueError(
                "faults: model_swap_every: the chip's file has no host_link, by which weights are loaded"
            )
        if load >= every:
            raise ValueError(
                f"faults: model_swap_every: a model takes {format_quantity(load, 's')} to load, longer than it stays"
            )


# Closed forms.


def mtbf(parts: Sequence[Group]) -> Seconds:
    """Mean time between failures of the parts at work: 1 / (sum of needed x rate)."""
    return 1 / sum(group.needed * group.rate for group in parts)


def series(between: Seconds, repair: Seconds) -> Fraction:
    """Availability without spares, where nothing fails while the system is down: MTBF / (MTBF + MTTR)."""
    return between / (between + repair)


def births_and_deaths(n: int, rate: FailuresPerSecond, repair: Seconds, crews: int) -> np.ndarray:
    """The long-run probability that 0 … n of n parts are out: p(j+1) / p(j) = (n-j) rate repair / min(j+1, crews).

    Parts fail independently, whether at work, idle or in a system that is down; with n crews it is the binomial distribution of
    rate repair / (1 + rate repair), whatever the distributions of lives and repairs.  With fewer crews both are exponential.
    """
    ratios = [(n - j) * rate * repair / min(j + 1, crews) for j in range(n)]
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def enough(alike: Sequence[Group], repair: Seconds, crews: int | None) -> float:
    """The probability that every group of parts of one kind has as many as it needs.

    sum over j of p(j out) x (ways to take j with no more than `spares` of each group) / (ways to take j): parts are alike and crews
    ask in order of failure, so that every set of j parts is as likely as any other.
    """
    n = sum(group.parts for group in alike)
    out = births_and_deaths(n, alike[0].rate, repair, min(crews or n, n))
    ways = [1]  # to take j parts, as integers: they are beyond what floats hold
    for group in alike:
        one = [math.comb(group.parts, j) for j in range(group.spares + 1)]
        ways = [
            sum(ways[i] * one[j - i] for i in range(len(ways)) if 0 <= j - i < len(one))
            for j in range(len(ways) + len(one) - 1)
        ]
    return float(sum(out[j] * (ways[j] / math.comb(n, j)) for j in range(len(ways))))


def closed_form(
    parts: Sequence[Group], repair: Seconds, swap: Seconds, crews: int | None, model_swaps: float
) -> ClosedForm | None:
    """P(enough parts) x exp(-(sum of needed x rate) x swap) x (1 - the share of time that model swaps take); None where kinds of
    parts wait for the same few crews.

    The system works if it had enough parts a swap ago and none of those at work has failed since; they fail at one rate, however
    many spares are out.  For Weibull lives the first factor holds and the second is approximate.  Both are of settled parts.
    """
    kinds: dict[tuple[Failures, ...], list[Group]] = {}
    for group in parts:
        kinds.setdefault(group.causes, []).append(group)
    if crews is not None and crews < sum(group.parts for group in parts) and len(kinds) > 1:
        return None
    good = math.prod(enough(alike, repair, crews) for alike in kinds.values())
    return ClosedForm(good, math.exp(-swap / mtbf(parts)), 1 - model_swaps)


# The simulation.


class Outages:
    """When a system is down: from a failure until no place is empty and the last swap is over, and while it loads a model."""

    def __init__(self, swap: Seconds) -> None:
        self.swap = swap
        self.empty = 0  # places of parts at work
        self.ready = 0.0
        self.began: list[Seconds] = []
        self.ended: list[Seconds] = []
        self.failed: list[bool] = []  # whether it began with a failure

    def lost(self, now: Seconds, replaced: bool) -> None:
        """A part at work has failed: a spare takes its place, or nobody."""
        self.down(now, self.swap, failed=True)
        self.empty += not replaced

    def down(self, now: Seconds, lasts: Seconds, failed: bool) -> None:
        """It is down for so long at least."""
        if not self.empty and now >= self.ready:
            if self.began:
                self.ended.append(self.ready)
            self.began.append(now)
            self.failed.append(failed)
        self.ready = max(self.ready, now + lasts)

    def found(self, now: Seconds) -> None:
        """A repaired part takes an empty place."""
        self.empty -= 1
        self.ready = max(self.ready, now + self.swap)

    def between(self, start: Seconds, end: Seconds) -> tuple[Seconds, int]:
        """Time down between two moments, and how many outages began with a failure; `end` is now."""
        last = [end if self.empty else self.ready] if self.began else []
        began, ended = np.array(self.began), np.array([*self.ended, *last])
        down = np.clip(ended, start, end) - np.clip(began, start, end)
        return float(down.sum()), int((began >= start)[np.array(self.failed, bool)].sum())


class Shelf:
    """The parts of a group: those that stand by, and how many places are empty."""

    def __init__(self) -> None:
        self.idle: list[FailingPart] = []
        self.empty = 0


class FailingPart:
    """Something that is at work or stands by, fails, and is repaired, again and again.

    What has failed in it is new after the repair; the rest of it has aged as long as the part was on.
    """

    def __init__(
        self, causes: Sequence[Failures], left: Sequence[Seconds], shelf: Shelf, at_work: bool
    ) -> None:
        self.causes, self.left = causes, np.array(left)  # of the life of each
        self.shelf, self.at_work = shelf, at_work
        if not at_work:
            shelf.idle.append(self)

    def life(
        self,
        env: simpy.Environment,
        outages: Outages,
        crews: simpy.Resource,
        repair: Seconds,
        rng: np.random.Generator,
    ) -> FailureProcess:
        left = self.left
        while True:
            first = int(left.argmin())
            lasted = float(left[first])
            yield env.timeout(lasted)
            left -= lasted
            left[first] = self.causes[first].life(rng)
            self.fail(env.now, outages)
            with crews.request() as turn:
                yield turn
                yield env.timeout(rng.exponential(repair))
            self.come_back(env.now, outages)

    def fail(self, now: Seconds, outages: Outages) -> None:
        shelf = self.shelf
        if not self.at_work:
            shelf.idle.remove(self)
            return
        self.at_work = False
        if shelf.idle:
            shelf.idle.pop().at_work = True
            outages.lost(now, replaced=True)
        else:
            shelf.empty += 1
            outages.lost(now, replaced=False)

    def come_back(self, now: Seconds, outages: Outages) -> None:
        shelf = self.shelf
        if shelf.empty:
            shelf.empty -= 1
            self.at_work = True
            outages.found(now)
        else:
            shelf.idle.append(self)


def load_models(
    env: simpy.Environment, outages: Outages, every: Seconds, load: Seconds, first: Seconds
) -> FailureProcess:
    """Swaps the model again and again."""
    yield env.timeout(first)
    while True:
        outages.down(env.now, load, failed=False)
        yield env.timeout(every)


def sample(
    faults: Faults, parts: Sequence[Group], load: Seconds, rng: np.random.Generator
) -> tuple[float, int]:
    """One life of a system: its availability over the horizon, where parts are settled after the warm-up, and its outages."""
    env, outages, repair, horizon = (
        simpy.Environment(),
        Outages(faults.detection + load),
        faults.repair,
        faults.horizon,
    )
    crews = faults.crews or sum(group.parts for group in parts)
    turns, settled = simpy.Resource(env, capacity=crews), faults.age == "settled"
    if every := faults.model_swap_every:
        env.process(load_models(env, outages, every, load, every * rng.random()))
    for group in parts:
        shelf = Shelf()
        for number in range(group.parts):
            left = [cause.rest(rng) if settled else cause.life(rng) for cause in group.causes]
            env.process(
                FailingPart(group.causes, left, shelf, number < group.needed).life(
                    env, outages, turns, repair, rng
                )
            )
    start = warm_up(faults, parts, outages.swap)
    env.run(until=start + horizon)
    down, count = outages.between(start, start + horizon)
    up = 1 - down / horizon
    return up if up > ROUNDED else 0.0, count


def warm_up(faults: Faults, parts: Sequence[Group], swap: Seconds) -> Seconds:
    """Until as many parts are in repair, and as many swaps on, as usual; nothing where the horizon begins with new parts."""
    crews = faults.crews or sum(group.parts for group in parts)
    return (
        WARM_UP_LIVES * max(relaxation(parts, faults.repair, crews), swap)
        if faults.age == "settled"
        else 0.0
    )


def relaxation(parts: Sequence[Group], repair: Seconds, crews: int) -> Seconds:
    """How fast a system forgets that it began new: repair / (1 - sqrt(load))^2, as a queue of that load does.

    Load: parts x rate x repair / crews, at the most 0.8, for beyond it parts that are out do not fail.
    Source: Morse, "Queues, Inventories and Maintenance", 1958, of M/M/1.
    """
    load = sum(group.parts * group.rate for group in parts) * repair / crews
    return repair / (1 - math.sqrt(min(load, 0.8))) ** 2


def availability(faults: Faults, chips: int, load: Seconds, seed: Sequence[int]) -> Availability:
    """The availability of a system whose model needs so many chips and loads in `load`, simulated and in closed form.

    Raises: ValueError where the parts cannot be counted.
    """
    parts, swap = groups(faults, chips), faults.detection + load
    model_swaps = load / faults.model_swap_every if faults.model_swap_every else 0.0
    rng = np.random.default_rng(seed)
    runs = [sample(faults, parts, load, rng) for _ in range(faults.samples)]
    shares, counts = zip(*runs, strict=True)
    often = sum(counts) / len(runs) / faults.horizon
    closed = (
        closed_form(parts, faults.repair, swap, faults.crews, model_swaps)
        if faults.age == "settled"
        else None
    )
    return Availability(
        shares, often, swap, mtbf(parts), series(mtbf(parts), faults.repair), model_swaps, closed
    )
