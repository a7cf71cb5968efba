"""Nested topologies: levels of topologies in each other, such as nodes in racks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from typing import Annotated, Self

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
    everyone_to_everyone,
)
from sim.hardware.topology.flat import chain_gather, mirrored
from sim.units import Bytes, Seconds, longest

# A level of a whole group: its topology, the places that the group takes in it, and the distance
# between the numbers of chips at neighbouring places.
Level = tuple[Topology, range, int]


class Nested(Topology, ABC):
    """Levels in each other: a chip is joined to the chips at its own place in other blocks.

    Chips are numbered from the innermost level outwards.
    A message corrects its place level by level, from inside. Collectives go level by level, too.
    """

    @abstractmethod
    def parts(self) -> tuple[Topology, ...]:
        """Return the topology of each level, from inside to outside, with its `chips`."""

    @cached_property
    def _parts(self) -> tuple[Topology, ...]:
        """The `parts`, kept because each route of a message needs them."""
        return self.parts()

    @property
    def takes_arrays(self) -> bool:
        return super().takes_arrays and all(part.takes_arrays for part in self._parts)

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        """Return the hops, level by level from inside; a level's switches carry its number."""
        hops: list[Hop] = []
        stride = 1
        for level, part in enumerate(self._parts):
            chips = part.chips or 1
            here, there = a // stride % chips, b // stride % chips
            if here != there:
                first = a - here * stride  # the chip at place 0 of this level
                for hop in part.route(here, there):
                    i, j = (
                        first + end * stride if isinstance(end, int) else f"{level}.{first}.{end}"
                        for end in hop
                    )
                    hops.append((i, j))
                a = first + there * stride
            stride *= chips
        return tuple(hops)

    def segments(self, a: int, b: int) -> tuple[Segment, ...]:
        """Return the segments of each level's topology, with its cables named as in the route."""
        segments: list[Segment] = []
        stride = 1
        for level, part in enumerate(self._parts):
            here, there = (chip // stride % (part.chips or 1) for chip in (a, b))
            first = a - here * stride
            for segment in part.segments(here, there):
                i, j = (
                    first + end * stride if isinstance(end, int) else f"{level}.{first}.{end}"
                    for end in segment.hop
                )
                segments.append(segment._replace(hop=(i, j)))
            a = first + there * stride
            stride *= part.chips or 1
        return tuple(segments)

    def link_of(self, hop: Hop) -> Link:
        """Return the cable of a hop.

        The name of a switch has its level. Between chips, the level is the place that changes.
        Raises: ValueError if no level has such a hop.
        """
        stride = 1
        for level, part in enumerate(self._parts):
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
        """Return the channel over all levels: the sum of latencies, the least bandwidth."""
        channels = [
            part.pair(places)
            for part, blocks, _ in self._levels(group)
            for places in blocks
            if len(places) > 1
        ]
        return Channel(
            sum(channel.latency for channel in channels),
            min((channel.bandwidth for channel in channels), default=float("inf")),
        )

    def _levels(self, group: range) -> Iterator[tuple[Topology, list[range], Seconds]]:
        """Yield each level: its topology, the places of the group's blocks, and extra latency [s].

        If blocks take different places, a chip may have no counterpart in the next block. Its
        message first takes a detour inside, which counts as the longest one.
        Left out: the bandwidth of the detour.
        """
        detour = 0.0
        for part in self._parts:
            n = part.chips or 1
            blocks = range(group[0] // n, group[-1] // n + 1)
            ends = dict.fromkeys([blocks[0], *blocks[1:2], blocks[-1]])  # the others are full
            places = [
                range(max(group[0] - b * n, 0), min(group[-1] - b * n, n - 1) + 1) for b in ends
            ]
            yield part, places, detour
            if any(block != places[0] for block in places):
                detour += max(part.channel(0, i).latency for i in range(n))
            group = blocks

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Return the time of an all-reduce, by the algorithm of the outermost level.

        Reduce-scatter from inside outwards, all-reduce at the outermost level, all-gather inwards.
        A block with fewer chips than others is slowest, as its chips exchange the most.
        """
        *inner, (outer, blocks, detour) = self._spanned(group)
        time = 0.0
        for part, places, more in inner:
            time += 2 * longest(
                part.all_gather(block, nbytes, latency + more, efficiency) for block in places
            )
            nbytes = nbytes / min(map(len, places))  # an array must not change in place
        if not inner and not detour:
            return outer.all_reduces(max(blocks, key=len), nbytes, latency, efficiency)
        by_block = [
            outer.all_reduces(block, nbytes, latency + detour, efficiency) for block in blocks
        ]
        common = [name for name in by_block[0] if all(name in times for times in by_block)]
        return {
            ("hierarchical", *name): time + longest(times[name] for times in by_block)
            for name in common
        }

    def _spanned(self, group: range) -> list[tuple[Topology, list[range], Seconds]]:
        """Return the levels at which the group has several chips; the innermost for one chip."""
        levels = list(self._levels(group))
        several = [level for level in levels if any(len(block) > 1 for block in level[1])]
        return several or levels[:1]

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time of an all-gather at each level, the outermost first.

        The innermost level is last, with all bytes gathered so far.
        """
        time = 0.0
        for part, places, more in self._spanned(group):
            time += longest(
                part.all_gather(block, nbytes, latency + more, efficiency) for block in places
            )
            nbytes = nbytes / min(map(len, places))  # an array must not change in place
        return time

    def all_to_all(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        copies: Copies = (),
    ) -> Seconds:
        """Return the time to the right block, and from there to the right place inside.

        All levels send at the same time; then each inner level passes on what arrived last.
        """
        levels = self._spanned(group)

        def level(number: int, nbytes: Bytes) -> Seconds:
            part, places, more = levels[number]
            return longest(
                part.all_to_all(block, nbytes, latency + more, efficiency) for block in places
            )

        copies = copies or (1.0,) * len(levels)
        passed_on = sum(level(number, 0.0) for number in range(len(levels) - 1))
        return longest(level(number, nbytes * n) for number, n in enumerate(copies)) + passed_on

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        """Return the time from stage to stage.

        If both stages are in one innermost block, that level's topology decides.
        Otherwise each message counts for itself.
        """
        part = self._parts[0]
        n, block = part.chips or 1, group[0] // (part.chips or 1)
        if (group[-1] + len(group)) // n != block:
            return super().shift(group, nbytes)
        return part.shift(range(group[0] - block * n, group[-1] - block * n + 1), nbytes)

    def messages(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Return the messages level by level, like the closed forms, of all blocks together.

        If the blocks of a group take different places, its chips form one chain instead.
        """
        if not self._whole(group):
            return chain_messages(operation, group)
        levels = self._strides(group)
        if operation == "all_to_all":
            copies = [float(n) for n in algorithm] or [1.0] * len(levels)
            by_level = [
                level_messages(group, operation, level, share)
                for level, share in zip(levels, copies, strict=True)
            ]
            together = tuple(
                tuple(chain(*phases)) for phases in zip_longest(*by_level, fillvalue=())
            )
            passed_on = [level_messages(group, operation, level, 0.0) for level in levels[-2::-1]]
            return (*together, *chain(*passed_on))
        *inner, outer = levels
        gathers, share = level_gathers(group, inner)
        if operation == "all_gather":
            return (*level_messages(group, operation, outer, share), *gathers)
        names = tuple(name for name in algorithm if isinstance(name, str))
        last = level_messages(group, operation, outer, share, names if not inner else names[1:])
        return (*mirrored(gathers), *last, *gathers)

    def _whole(self, group: range) -> bool:
        """Return whether the group's blocks take the same places at every level."""
        return all(block == places[0] for _, places, _ in self._levels(group) for block in places)

    def _strides(self, group: range) -> list[Level]:
        """Return the levels that a whole group spans."""
        levels, stride = [], 1
        for part, places, _ in self._levels(group):
            levels.append((part, places[0], stride))
            stride *= part.chips or 1
        return [level for level in levels if len(level[1]) > 1] or levels[:1]

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return the collectives that are uncontended at all levels.

        A group whose blocks take different places has none.
        """
        if not self._whole(group):
            return frozenset()
        levels = self._strides(group)
        by_level = [part.uncontended(places) for part, places, _ in levels]
        phases = max(len(part.messages("all_to_all", places)) for part, places, _ in levels)
        return frozenset.intersection(*by_level) - ({"all_to_all"} if phases > 1 else set())


def level_messages(
    group: range, operation: Operation, level: Level, share: float, names: Algorithm = ()
) -> tuple[Phase, ...]:
    """Return one level's messages, sent by all chips of the group at its places."""
    part, places, stride = level
    starts = [
        chip - places[0] * stride
        for chip in group
        if chip // stride % (part.chips or 1) == places[0]
    ]
    return tuple(
        tuple(
            Message(start + m.source * stride, start + m.target * stride, m.share * share, m.pace)
            for m in phase
            for start in starts
        )
        for phase in part.messages(operation, places, names)
    )


def level_gathers(
    group: range, levels: Sequence[Level], share: float = 1.0
) -> tuple[tuple[Phase, ...], float]:
    """Return the all-gathers of some levels, the last level first.

    Also return the share of the bytes that remains for the levels outside.
    """
    phases: tuple[Phase, ...] = ()
    for level in levels:
        phases = (*level_messages(group, "all_gather", level, share), *phases)
        share /= len(level[1])
    return phases, share


def chain_messages(operation: Operation, chips: Sequence[int]) -> tuple[Phase, ...]:
    """Return the messages of a group without whole blocks.

    They go along a chain; in an all-to-all, from each chip to each other chip.
    """
    if operation == "all_to_all":
        return (everyone_to_everyone(chips, 1 / len(chips)),)
    gather = chain_gather(chips)
    return gather if operation == "all_gather" else (*mirrored(gather), *gather)


class Hierarchical(Nested):
    """Any topology in any other: a switch inside nodes, a network between them, racks, clusters.

    Levels are, for example, chips of a node, then nodes, then racks.
    Every chip has cables of its own at each level, as GPUs have a network card each.
    Left out: cables that the chips of a node share. Give each chip its part of the bandwidth.
    """

    levels: Annotated[tuple[TopologyField, ...], Field(min_length=1)] = Field(
        description="Topologies from inside to outside, each with its `chips`; the outermost may "
        "leave it open."
    )

    def blocks(self, group: range) -> tuple[int, ...]:
        """Return how many chips, nodes, racks and so on a group has, as far as it has several."""
        strides = [
            math.prod(part.chips or 1 for part in self._parts[:level])
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
                    f"levels.{i}: got a {level.noun()} without chips; expected chips in all but"
                    " the outermost level"
                )
            level.sized(level.chips)
        return self

    @property
    def _inside(self) -> int:
        """The chips of one block of the outermost level."""
        return math.prod(level.chips or 1 for level in self.levels[:-1])

    def parts(self) -> tuple[Topology, ...]:
        return (
            *self.levels[:-1],
            self.levels[-1].sized(math.ceil((self.chips or 1) / self._inside)),
        )

    @property
    def most_chips(self) -> int | None:
        """The chips of its file, or those of all blocks of the outermost level."""
        blocks = self.levels[-1].most_chips
        return self.chips or (blocks and blocks * self._inside) or self.limit

    def sized(self, chips: int) -> Self:
        """Return the topology with whole blocks of the outermost level, as many as needed.

        Raises: ValueError if that is beyond the outermost level's chips or limit.
        """
        outer, wanted = self.levels[-1], self.chips or chips
        blocks = outer.chips or outer.limit
        if blocks and wanted > blocks * self._inside:
            raise ValueError(
                f"{self.noun()}: got {wanted} chips; expected at most {blocks * self._inside}"
            )
        joined = self._inside * (outer.sized(math.ceil(wanted / self._inside)).chips or 1)

        return super(Nested, self.model_copy(update={"chips": joined})).sized(chips)
