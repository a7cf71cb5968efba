"""Levels of topologies in each other: meshes, tori, hierarchies."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from sim.topology.base import AllReduce, Hop, Lane, Leg, Link, Message, Operation, Phase, Topology, TopologyField, Way
from sim.topology.flat import Line, Ring
from sim.units import Bytes, Count, Seconds


class Nested(Topology, ABC):
    """Levels in each other: at each level a chip is joined to those that have its own place in the sister blocks.

    Chips are numbered from the innermost level outwards.  A message corrects its place level by level, from inside.
    Collectives go level by level too.  Left out: working at all levels at once.
    """

    across: ClassVar[AllReduce]  # what an all-reduce over several levels is called

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
                i, j = (first + end * stride if isinstance(end, int) else f"{level}.{first}.{end}" for end in hop)
                way.append((i, j))
            a = first + there * stride
            stride *= part.chips or 1
        return tuple(way)

    def way(self, a: int, b: int) -> tuple[Leg, ...]:
        """As each level's topology has it, a level's cables named as in the route."""
        legs: list[Leg] = []
        stride = 1
        for level, part in enumerate(self.parts()):
            here, there = (chip // stride % (part.chips or 1) for chip in (a, b))
            first = a - here * stride
            for leg in part.way(here, there):
                i, j = (first + end * stride if isinstance(end, int) else f"{level}.{first}.{end}" for end in leg.hop)
                legs.append(leg._replace(hop=(i, j)))
            a = first + there * stride
            stride *= part.chips or 1
        return tuple(legs)

    def link_of(self, hop: Hop) -> Link:
        """A hop to or from a switch says its level by name; one between chips by the place that changes."""
        stride = 1
        for level, part in enumerate(self.parts()):
            names = [end.split(".", 2) for end in hop if isinstance(end, str)]
            i, j = (end // stride % (part.chips or 1) if isinstance(end, int) else end.split(".", 2)[2] for end in hop)
            if names[0][0] == str(level) if names else i != j:
                return part.link_of((i, j))
            stride *= part.chips or 1
        raise ValueError(f"the {self.noun()} has no link from {hop[0]} to {hop[1]}")

    def likeness(self, group: range) -> Hashable:
        return tuple((*places, detour) for _, places, detour in self._levels(group))

    def pair(self, group: range) -> Lane:
        """Over all levels, one after the other."""
        lanes = [part.pair(places) for part, blocks, _ in self._levels(group) for places in blocks if len(places) > 1]
        return Lane(sum(lane.latency for lane in lanes), min((lane.bandwidth for lane in lanes), default=float("inf")))

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
            places = [range(max(group[0] - b * n, 0), min(group[-1] - b * n, n - 1) + 1) for b in ends]
            yield part, places, detour
            if any(each != places[0] for each in places):
                detour += max(part.lane(0, i).latency for i in range(n))
            group = blocks

    def all_reduces(self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> dict[Way, Seconds]:
        """Reduce-scatter from inside outwards, all-reduce at the outermost level of the group, all-gather back inwards.

        A block with fewer chips than others decides: each of them has the most to exchange.
        """
        *inner, (outer, blocks, detour) = self._spanned(group)
        time = 0.0
        for part, places, more in inner:
            time += 2 * max(part.all_gather(each, nbytes, latency + more, efficiency) for each in places)
            nbytes /= min(map(len, places))
        if not inner and not detour:
            return outer.all_reduces(max(blocks, key=len), nbytes, latency, efficiency)
        offered = [outer.all_reduces(each, nbytes, latency + detour, efficiency) for each in blocks]
        common = [way for way in offered[0] if all(way in ways for ways in offered)]
        return {(self.across, *way): time + max(ways[way] for ways in offered) for way in common}

    def _spanned(self, group: range) -> list[tuple[Topology, list[range], Seconds]]:
        """The levels at which the group has more than one chip; the innermost for a group of one."""
        levels = list(self._levels(group))
        return [level for level in levels if any(len(each) > 1 for each in level[1])] or levels[:1]

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Each chip's share at the outermost level first, what has come together at the innermost last."""
        time = 0.0
        for part, places, more in self._spanned(group):
            time += max(part.all_gather(each, nbytes, latency + more, efficiency) for each in places)
            nbytes /= min(map(len, places))
        return time

    def all_to_all(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Level by level: first to the right place inside, from there to the right block, everything once at each level."""
        return sum(
            max(part.all_to_all(each, nbytes, latency + more, efficiency) for each in places)
            for part, places, more in self._spanned(group)
        )

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        """As the innermost level does it where both stages lie in one of its blocks; else each message for itself."""
        part = self.parts()[0]
        n, block = part.chips or 1, group[0] // (part.chips or 1)
        if (group[-1] + len(group)) // n != block:
            return super().shift(group, nbytes)
        return part.shift(range(group[0] - block * n, group[-1] - block * n + 1), nbytes)

    def messages(self, operation: Operation, group: range, way: Way = ()) -> tuple[Phase, ...]:
        """Level by level, as the closed forms go, all blocks side by side.

        A group whose blocks take different places has no sisters to go by: it makes one ring of all its chips.
        """
        if not self._whole(group):
            n = len(group)
            step = tuple(Message(chip, group[(i + 1) % n], 1 / n) for i, chip in enumerate(group))
            return (step,) * ((n - 1) * (2 if operation == "all_reduce" else 1))
        inner: list[tuple[Phase, ...]] = []
        share = 1.0
        levels = self._strides(group)
        for part, places, stride in levels:
            last = stride == levels[-1][2]
            outermost = way if len(levels) == 1 else way[1:]
            asked: Operation = operation if last or operation == "all_to_all" else "all_gather"
            phases = part.messages(asked, places, outermost if last else ())
            inner.append(self._sisters(phases, group, part.chips or 1, places[0], stride, share))
            if operation != "all_to_all":
                share /= len(places)
        match operation:
            case "all_to_all":
                order = inner
            case "all_gather":
                order = inner[::-1]
            case "all_reduce":
                order = [*inner, *inner[-2::-1]]
        return tuple(phase for phases in order for phase in phases)

    def _whole(self, group: range) -> bool:
        """Whether the group's blocks take the same places at every level."""
        return all(each == places[0] for _, places, _ in self._levels(group) for each in places)

    def _strides(self, group: range) -> list[tuple[Topology, range, int]]:
        """The levels that a whole group spans: topology, places taken, and how far apart chips of neighbouring places are."""
        levels, stride = [], 1
        for part, places, _ in self._levels(group):
            levels.append((part, places[0], stride))
            stride *= part.chips or 1
        return [level for level in levels if len(level[1]) > 1] or levels[:1]

    @staticmethod
    def _sisters(phases: tuple[Phase, ...], group: range, n: int, first: int, stride: int, share: float) -> tuple[Phase, ...]:
        """What one level's places say, said by all chips of the group that stand in those places."""
        starts = [chip - first * stride for chip in group if chip // stride % n == first]
        return tuple(
            tuple(
                Message(start + m.source * stride, start + m.target * stride, m.share * share, m.pace)
                for m in phase
                for start in starts
            )
            for phase in phases
        )

    def uncontended(self, group: range) -> frozenset[Operation]:
        """What all its levels run so, where its blocks take the same places."""
        if not self._whole(group):
            return frozenset()
        each = [part.uncontended(places) for part, places, _ in self._strides(group)]
        return frozenset.intersection(*each)


class Mesh(Nested):
    """A grid: a line in each dimension.  The last of `dims` is the innermost: chips 0 and 1 differ in it."""

    link: Link
    dims: Annotated[tuple[Count, ...], Field(min_length=1)]
    across: ClassVar[AllReduce] = "ring"
    dimension: ClassVar[type[Ring]] = Line

    def parts(self) -> tuple[Topology, ...]:
        return tuple(self.dimension(link=self.link, chips=n) for n in reversed(self.dims))

    def sized(self, chips: int) -> Self:
        """As many chips as `dims` says."""
        joined = math.prod(self.dims)
        if (self.chips or joined) != joined:
            raise ValueError(f"the {self.noun()} has dims of {joined} chips, and is said to join {self.chips}")
        return super(Nested, self.model_copy(update={"chips": joined})).sized(chips)


class Torus(Mesh):
    """A grid whose ends are joined: a ring in each dimension."""

    dimension: ClassVar[type[Ring]] = Ring


class Hierarchical(Nested):
    """Any topology in any other: nodes joined inside by a switch and to each other by a network, racks, clusters.

    `levels` go from inside to outside, each with its `chips`: those of a node, then nodes, then racks; the outermost may leave
    it open.  Every chip has cables of its own at each level, as GPUs have a network card each.  Left out: cables that the chips
    of a node share; give each chip its part of the bandwidth.
    """

    levels: Annotated[tuple[TopologyField, ...], Field(min_length=1)]
    across: ClassVar[AllReduce] = "hierarchical"

    @model_validator(mode="after")
    def _inner_levels_have_sizes(self) -> Self:
        for i, level in enumerate(self.levels[:-1]):
            if level.chips is None:
                raise ValueError(f"level {i}, a {level.noun()}, must say its chips; only the outermost may leave them open")
            level.sized(level.chips)
        return self

    @property
    def _inside(self) -> int:
        """Chips of a block of the outermost level."""
        return math.prod(level.chips or 1 for level in self.levels[:-1])

    def parts(self) -> tuple[Topology, ...]:
        return (*self.levels[:-1], self.levels[-1].sized(math.ceil((self.chips or 1) / self._inside)))

    def sized(self, chips: int) -> Self:
        """Whole blocks of the outermost level, as many as are needed or as it says."""
        outer, asked = self.levels[-1], self.chips or chips
        blocks = outer.chips or outer.limit
        if blocks and asked > blocks * self._inside:
            raise ValueError(f"the {self.noun()} joins {blocks * self._inside} chips at most, and {asked} are asked for")
        joined = self._inside * (outer.sized(math.ceil(asked / self._inside)).chips or 1)
        return super(Nested, self.model_copy(update={"chips": joined})).sized(chips)
