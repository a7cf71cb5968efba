"""Levels of topologies in each other: meshes, tori, hierarchies."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from itertools import chain, groupby, pairwise, zip_longest
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from sim.hardware.topology.base import (
    Algorithm,
    Channel,
    Copies,
    Hop,
    Link,
    Message,
    Operation,
    Phase,
    Segment,
    Topology,
    TopologyField,
    chain_gather,
    everyone_to_everyone,
    mirrored,
    side_by_side,
)
from sim.hardware.topology.flat import Line, Ring
from sim.units import Bytes, Count, Seconds

# Of a whole group: a level's topology, the places that are taken in it, how far apart the chips of neighbouring places are.
Level = tuple[Topology, range, int]


class Nested(Topology, ABC):
    """Levels in each other: at each level a chip is joined to those that have its own place in the sister blocks.

    Chips are numbered from the innermost level outwards.  A message corrects its place level by level, from inside.
    Collectives go level by level, too.
    """

    @abstractmethod
    def parts(self) -> tuple[Topology, ...]:
        """The topology of each level, from inside to outside, with its `chips`."""

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        way: list[Hop] = []
        stride = 1
        for level, part in enumerate(self.parts()):
            here, there = (chip // stride % (part.chips or 1) for chip in (a, b))
            first = a - here * stride  # the chip at place 0 of this level
            for hop in part.route(here, there):
                i, j = (
                    first + end * stride if isinstance(end, int) else f"{level}.{first}.{end}"
                    for end in hop
                )
                way.append((i, j))
            a = first + there * stride
            stride *= part.chips or 1
        return tuple(way)

    def way(self, a: int, b: int) -> tuple[Segment, ...]:
        """As each level's topology has it, a level's cables named as in the route."""
        segments: list[Segment] = []
        stride = 1
        for level, part in enumerate(self.parts()):
            here, there = (chip // stride % (part.chips or 1) for chip in (a, b))
            first = a - here * stride
            for segment in part.way(here, there):
                i, j = (
                    first + end * stride if isinstance(end, int) else f"{level}.{first}.{end}"
                    for end in segment.hop
                )
                segments.append(segment._replace(hop=(i, j)))
            a = first + there * stride
            stride *= part.chips or 1
        return tuple(segments)

    def link_of(self, hop: Hop) -> Link:
        """A hop to or from a switch says its level by name; one between chips by the place that changes."""
        stride = 1
        for level, part in enumerate(self.parts()):
            names = [end.split(".", 2) for end in hop if isinstance(end, str)]
            i, j = (
                end // stride % (part.chips or 1) if isinstance(end, int) else end.split(".", 2)[2]
                for end in hop
            )
            if names[0][0] == str(level) if names else i != j:
                return part.link_of((i, j))
            stride *= part.chips or 1
        raise ValueError(f"the {self.noun()} has no link from {hop[0]} to {hop[1]}")

    def equivalence_key(self, group: range) -> Hashable:
        return tuple((*places, detour) for _, places, detour in self._levels(group))

    def pair(self, group: range) -> Channel:
        """Over all levels, one after the other."""
        lanes = [
            part.pair(places)
            for part, blocks, _ in self._levels(group)
            for places in blocks
            if len(places) > 1
        ]
        return Channel(
            sum(channel.latency for channel in lanes),
            min((channel.bandwidth for channel in lanes), default=float("inf")),
        )

    def _levels(self, group: range) -> Iterator[tuple[Topology, list[range], Seconds]]:
        """Level by level: its topology, the places that the group's blocks take in it, and what is added to its latency.

        Where blocks take different places, a chip may have no sister in the next block: its message goes a way inside first,
        charged with the longest one.  Left out: that way's bandwidth.
        """
        detour = 0.0
        for part in self.parts():
            n = part.chips or 1
            blocks = range(group[0] // n, group[-1] // n + 1)
            ends = dict.fromkeys([blocks[0], *blocks[1:2], blocks[-1]])  # all between are full
            places = [
                range(max(group[0] - b * n, 0), min(group[-1] - b * n, n - 1) + 1) for b in ends
            ]
            yield part, places, detour
            if any(each != places[0] for each in places):
                detour += max(part.channel(0, i).latency for i in range(n))
            group = blocks

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Reduce-scatter from inside outwards, all-reduce at the outermost level of the group, all-gather back inwards.

        A block with fewer chips than others decides: each of them has the most to exchange.
        """
        *inner, (outer, blocks, detour) = self._spanned(group)
        time = 0.0
        for part, places, more in inner:
            time += 2 * max(
                part.all_gather(each, nbytes, latency + more, efficiency) for each in places
            )
            nbytes /= min(map(len, places))
        if not inner and not detour:
            return outer.all_reduces(max(blocks, key=len), nbytes, latency, efficiency)
        offered = [outer.all_reduces(each, nbytes, latency + detour, efficiency) for each in blocks]
        common = [way for way in offered[0] if all(way in ways for ways in offered)]
        return {("hierarchical", *way): time + max(ways[way] for ways in offered) for way in common}

    def _spanned(self, group: range) -> list[tuple[Topology, list[range], Seconds]]:
        """The levels at which the group has more than one chip; the innermost for a group of one."""
        levels = list(self._levels(group))
        return [level for level in levels if any(len(each) > 1 for each in level[1])] or levels[:1]

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Each chip's share at the outermost level first, what has come together at the innermost last."""
        time = 0.0
        for part, places, more in self._spanned(group):
            time += max(
                part.all_gather(each, nbytes, latency + more, efficiency) for each in places
            )
            nbytes /= min(map(len, places))
        return time

    def all_to_all(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        copies: Copies = (),
    ) -> Seconds:
        """To the right block, from there to the right place inside: all levels at once, then what came last is handed on."""
        levels = self._spanned(group)

        def level(number: int, nbytes: Bytes) -> Seconds:
            part, places, more = levels[number]
            return max(part.all_to_all(each, nbytes, latency + more, efficiency) for each in places)

        times = copies or (1.0,) * len(levels)
        handed_on = sum(level(number, 0.0) for number in range(len(levels) - 1))
        return max(level(number, nbytes * each) for number, each in enumerate(times)) + handed_on

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        """As the innermost level does it where both stages lie in one of its blocks; else each message for itself."""
        part = self.parts()[0]
        n, block = part.chips or 1, group[0] // (part.chips or 1)
        if (group[-1] + len(group)) // n != block:
            return super().shift(group, nbytes)
        return part.shift(range(group[0] - block * n, group[-1] - block * n + 1), nbytes)

    def messages(
        self, operation: Operation, group: range, way: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Level by level, as the closed forms go, all blocks side by side.

        A group whose blocks take different places has no sisters to go by.  Its chips make one chain.
        """
        if not self._whole(group):
            return self._astride(operation, group)
        levels = self._strides(group)
        if operation == "all_to_all":
            times = [float(each) for each in way] or [1.0] * len(levels)
            stream = [
                self._at_level(group, operation, level, share)
                for level, share in zip(levels, times, strict=True)
            ]
            at_once = tuple(tuple(chain(*phases)) for phases in zip_longest(*stream, fillvalue=()))
            handed_on = [self._at_level(group, operation, level, 0.0) for level in levels[-2::-1]]
            return (*at_once, *chain(*handed_on))
        *inner, outer = levels
        gathers, share = self._gathers(group, inner)
        if operation == "all_gather":
            return (*self._at_level(group, operation, outer, share), *gathers)
        ring = tuple(each for each in way if isinstance(each, str))
        last = self._at_level(group, operation, outer, share, ring if not inner else ring[1:])
        return (*mirrored(gathers), *last, *gathers)

    def _gathers(
        self, group: range, levels: Sequence[Level], share: float = 1.0
    ) -> tuple[tuple[Phase, ...], float]:
        """Return the all-gathers of some levels, the last of them first, and the share of the bytes that remains outside."""
        phases: tuple[Phase, ...] = ()
        for level in levels:
            phases = (*self._at_level(group, "all_gather", level, share), *phases)
            share /= len(level[1])
        return phases, share

    def _at_level(
        self, group: range, operation: Operation, level: Level, share: float, way: Algorithm = ()
    ) -> tuple[Phase, ...]:
        """Return what one level's places send, sent by all chips of the group that stand in those places."""
        part, places, stride = level
        starts = [
            chip - places[0] * stride
            for chip in group
            if chip // stride % (part.chips or 1) == places[0]
        ]
        return tuple(
            tuple(
                Message(
                    start + m.source * stride, start + m.target * stride, m.share * share, m.pace
                )
                for m in phase
                for start in starts
            )
            for phase in part.messages(operation, places, way)
        )

    @staticmethod
    def _astride(operation: Operation, chips: Sequence[int]) -> tuple[Phase, ...]:
        """Return the messages of a group without levels of its own: along a chain, or from each chip to each."""
        if operation == "all_to_all":
            return (everyone_to_everyone(chips, 1 / len(chips)),)
        gather = chain_gather(chips)
        return gather if operation == "all_gather" else (*mirrored(gather), *gather)

    def _whole(self, group: range) -> bool:
        """Whether the group's blocks take the same places at every level."""
        return all(each == places[0] for _, places, _ in self._levels(group) for each in places)

    def _strides(self, group: range) -> list[Level]:
        """The levels that a whole group spans."""
        levels, stride = [], 1
        for part, places, _ in self._levels(group):
            levels.append((part, places[0], stride))
            stride *= part.chips or 1
        return [level for level in levels if len(level[1]) > 1] or levels[:1]

    def uncontended(self, group: range) -> frozenset[Operation]:
        """What all its levels run so, where its blocks take the same places."""
        if not self._whole(group):
            return frozenset()
        levels = self._strides(group)
        each = [part.uncontended(places) for part, places, _ in levels]
        phases = max(len(part.messages("all_to_all", places)) for part, places, _ in levels)
        return frozenset.intersection(*each) - ({"all_to_all"} if phases > 1 else set())


class Mesh(Nested):
    """A grid: a line in each dimension.  The last of `dims` is the innermost: chips 0 and 1 differ in it.

    Collectives use all dimensions and both directions at once: each of D parts of the bytes takes the D dimensions in an order
    of its own.  An all-reduce of n chips takes 2(n-1)/n of the bytes over the 2D links of a chip, where the dimensions are equal
    and closed.  Unequal ones take up to 1.6 times as long, and one order alone is taken where that is faster.

    A group that is no block of the grid makes a chain, row after row, back and forth.  Its all-to-all is estimated dimension by
    dimension.
    """

    link: Link
    dims: Annotated[tuple[Count, ...], Field(min_length=1)]
    wraps: ClassVar[bool] = False

    def parts(self) -> tuple[Topology, ...]:
        dimension = Ring if self.wraps else Line
        return tuple(dimension(link=self.link, chips=n) for n in reversed(self.dims))

    def sized(self, chips: int) -> Self:
        """As many chips as `dims` says."""
        joined = math.prod(self.dims)
        if (self.chips or joined) != joined:
            raise ValueError(
                f"the {self.noun()} has dims of {joined} chips, and is said to join {self.chips}"
            )
        return super(Nested, self.model_copy(update={"chips": joined})).sized(chips)

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        return {("ring",): 2 * self.all_gather(group, nbytes, latency, efficiency)}

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time of the schedule's phases, each as long as its busiest link."""
        channel, steps = self._schedule(group)[1:]
        channel = channel.with_software(latency, efficiency)
        return sum(channel.time(nbytes * share) for share in steps)

    def all_to_all(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        copies: Copies = (),
    ) -> Seconds:
        """Each part of the bytes takes the dimensions in an order of its own: what is longest at a time counts."""
        if not self._whole(group):
            spanned = self._spanned(group)
            return sum(
                max(part.all_to_all(each, nbytes, latency, efficiency) for each in places)
                for part, places, _ in spanned
            )
        levels = self._strides(group)
        return len(levels) * max(
            part.all_to_all(places, nbytes / len(levels), latency, efficiency)
            for part, places, _ in levels
        )

    def messages(
        self, operation: Operation, group: range, way: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        if operation == "all_to_all" and self._whole(group):
            orders = rotations(self._strides(group))
            parts = [
                [self._at_level(group, operation, level, 1 / len(orders)) for level in order]
                for order in orders
            ]
            return side_by_side([[phase for phases in part for phase in phases] for part in parts])
        if operation == "all_to_all":
            return self._astride(operation, group)
        gather = self._schedule(group)[0]
        return gather if operation == "all_gather" else (*mirrored(gather), *gather)

    @cached_property
    def _schedules(
        self,
    ) -> dict[tuple[int | None, range], tuple[tuple[Phase, ...], Channel, tuple[float, ...]]]:
        return {}

    def _schedule(self, group: range) -> tuple[tuple[Phase, ...], Channel, tuple[float, ...]]:
        """Return an all-gather's messages, the slowest lane that one of them takes, and the busiest link's share by phase."""
        key = self.chips, group
        if key not in self._schedules:
            if self._whole(group):
                orders = rotations(self._strides(group))
                parts = [self._gathers(group, order, 1 / len(orders))[0] for order in orders]
                choices = [
                    side_by_side(parts),
                    *(self._gathers(group, order)[0] for order in orders),
                ]
                gather = min(choices, key=lambda phases: sum(busiest(phases)))
                channel = Channel(self.link.latency, self.link.bandwidth)
            else:
                chips = self._chain(group)
                gather = chain_gather(chips)
                lanes = [self.channel(a, b) for a, b in pairwise(chips)]
                channel = Channel(
                    max(each.latency for each in lanes), min(each.bandwidth for each in lanes)
                )
            self._schedules[key] = gather, channel, tuple(busiest(gather))
        return self._schedules[key]

    def _chain(self, group: range) -> list[int]:
        """Return the chips row by row, every other row backwards, so that the row that is not full begins at its first place."""
        rows = [list(chips) for _, chips in groupby(group, key=lambda chip: chip // self.dims[-1])]
        full = len(rows[-1]) == self.dims[-1]
        return [
            chip
            for i, row in enumerate(rows)
            for chip in (row if (i if full else len(rows) - 1 - i) % 2 == 0 else reversed(row))
        ]

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Not an all-to-all.  Of a group that is no block of the grid, only what has a chain of neighbours.

        Where dimensions are unequal and some are open, chips at an end may be ahead of their phases' busiest link.
        """
        if self._whole(group):
            levels = self._strides(group)
            lengths = {len(places) for _, places, _ in levels}
            closed = {self.wraps and len(places) == part.chips for part, places, _ in levels}
            exact = (
                len(lengths) == 1 or closed == {True} or (closed == {False} and len(levels) == 2)
            )
        else:
            exact = all(self.hops(a, b) == 1 for a, b in pairwise(self._chain(group)))
        return frozenset(("all_reduce", "all_gather")) if exact else frozenset()


def rotations(levels: Sequence[Level]) -> list[list[Level]]:
    """Return as many orders of the levels as there are, with another level first in each."""
    return [[*levels[i:], *levels[:i]] for i in range(len(levels))]


def busiest(phases: Sequence[Phase]) -> list[float]:
    """Return the share of the bytes on the busiest link of each phase, where messages go to neighbours."""
    shares = []
    for phase in phases:
        load: defaultdict[tuple[int, int], float] = defaultdict(float)
        for message in phase:
            load[message.source, message.target] += message.share
        shares.append(max(load.values()))
    return shares


class Torus(Mesh):
    """A grid whose ends are joined: a ring in each dimension."""

    wraps: ClassVar[bool] = True


class Hierarchical(Nested):
    """Any topology in any other: nodes joined inside by a switch and to each other by a network, racks, clusters.

    `levels` go from inside to outside, each with its `chips`: those of a node, then nodes, then racks; the outermost may leave
    it open.  Every chip has cables of its own at each level, as GPUs have a network card each.  Left out: cables that the chips
    of a node share; give each chip its part of the bandwidth.
    """

    levels: Annotated[tuple[TopologyField, ...], Field(min_length=1)]

    def blocks(self, group: range) -> tuple[int, ...]:
        strides = [
            math.prod(part.chips or 1 for part in self.parts()[:level])
            for level in range(len(self.levels))
        ]
        counts = [group[-1] // stride - group[0] // stride + 1 for stride in strides]
        spanned = [n for n, outside in zip(counts, (*counts[1:], 1), strict=True) if n > outside]
        return tuple(spanned) or (1,)

    @model_validator(mode="after")
    def _inner_levels_have_sizes(self) -> Self:
        for i, level in enumerate(self.levels[:-1]):
            if level.chips is None:
                raise ValueError(
                    f"level {i}, a {level.noun()}, must say its chips; only the outermost may leave them open"
                )
            level.sized(level.chips)
        return self

    @property
    def _inside(self) -> int:
        """Chips of a block of the outermost level."""
        return math.prod(level.chips or 1 for level in self.levels[:-1])

    def parts(self) -> tuple[Topology, ...]:
        return (
            *self.levels[:-1],
            self.levels[-1].sized(math.ceil((self.chips or 1) / self._inside)),
        )

    def sized(self, chips: int) -> Self:
        """Whole blocks of the outermost level, as many as are needed or as it says."""
        outer, asked = self.levels[-1], self.chips or chips
        blocks = outer.chips or outer.limit
        if blocks and asked > blocks * self._inside:
            raise ValueError(
                f"the {self.noun()} joins {blocks * self._inside} chips at most, and {asked} are asked for"
            )
        joined = self._inside * (outer.sized(math.ceil(asked / self._inside)).chips or 1)
        return super(Nested, self.model_copy(update={"chips": joined})).sized(chips)
