"""How chips are joined: routes, hops, and the closed forms of what they say to each other.

Chips are numbered from 0; a group is a range of them (the chips of one stage).  A message costs the latency of each hop and
its bytes once, at the narrowest link (cut-through).  Software's share of a collective is given by the caller as a latency for
each phase and the part of the bandwidth it reaches; topologies know cables, not engines.

One level: fully-connected, switch, line, ring.  Levels of these in each other: mesh and torus (a line or a ring in each
dimension), hierarchical (any in any: nodes, racks, clusters).  And Groq's dragonfly.  A wafer is one chip here: wafers are
joined by a line, a ring or fully; whoever wants its cores apart describes them as the chips of a mesh.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import combinations, pairwise, product
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sim.files import OfKind, Value
from sim.units import Bytes, BytesPerSecond, Count, JoulesPerByte, Seconds


class Link(Value):
    """One direction of one cable."""

    latency: Seconds
    bandwidth: BytesPerSecond
    energy: JoulesPerByte | None = None


class Lane(NamedTuple):
    """What a message between two chips finds: the latency of its way and the bandwidth it gets."""

    latency: Seconds
    bandwidth: float  # B/s

    def time(self, nbytes: Bytes) -> Seconds:
        return self.latency + nbytes / self.bandwidth

    def under(self, latency: Seconds, efficiency: float) -> "Lane":
        """The lane as software finds it: later by `latency`, at `efficiency` of the bandwidth."""
        return Lane(self.latency + latency, self.bandwidth * efficiency)


AllReduce = Literal["one-shot", "two-shot", "ring", "hierarchical"]
Hop = tuple[int | str, int | str]  # from, to: a chip's number, or the name of a switch


def one_shot_all_reduce(n: int, nbytes: Bytes, lane: Lane) -> Seconds:
    """Everyone sends everything to everyone at once: one phase.  Left out: the time of the additions."""
    return lane.time(nbytes) if n > 1 else 0.0


def two_shot_all_reduce(n: int, nbytes: Bytes, lane: Lane) -> Seconds:
    """Reduce-scatter, then all-gather: two phases of an n-th of the bytes to each peer.  Left out: the additions."""
    return 2 * lane.time(nbytes / n) if n > 1 else 0.0


def all_to_all_gather(n: int, nbytes: Bytes, lane: Lane) -> Seconds:
    """Everyone sends its n-th of the result to everyone: one phase."""
    return lane.time(nbytes / n) if n > 1 else 0.0


class Topology(Value, ABC):
    """A way of joining chips.

    `chips` is the number of chips joined: the replica's own unless the file says otherwise.  `limit` is the most it can join.
    """

    chips: Count | None = None
    limit: Count | None = None

    @abstractmethod
    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        """The hops from chip a to chip b, none where they are one."""

    @abstractmethod
    def link_of(self, hop: Hop) -> Link:
        """The cable that a hop runs over."""

    @abstractmethod
    def pair(self, group: range) -> Lane:
        """What each pair of a group finds while all its pairs talk at once."""

    def sized(self, chips: int) -> Self:
        """The topology joining `chips` chips, or as many more as the file says.  Raises: ValueError where it cannot."""
        joined = self.chips or chips
        if joined > (self.limit or joined):
            raise ValueError(f"the {self.noun()} joins {self.limit} chips at most, and {joined} are asked for")
        if chips > joined:
            raise ValueError(f"the {self.noun()} joins {joined} chips, and a replica has {chips}")
        return self.model_copy(update={"chips": joined})

    def hops(self, a: int, b: int) -> int:
        return len(self.route(a, b))

    def lane(self, a: int, b: int) -> Lane:
        """What one message finds on the way from a to b, alone."""
        links = [self.link_of(hop) for hop in self.route(a, b)]
        return Lane(sum(link.latency for link in links), min((link.bandwidth for link in links), default=float("inf")))

    def send(self, a: int, b: int, nbytes: Bytes) -> Seconds:
        """Point to point: a latency for each hop, the bytes once."""
        return self.lane(a, b).time(nbytes)

    def all_reduce(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0, allowed: Collection[AllReduce] = ()
    ) -> Seconds:
        """Every chip of the group ends with the sum of all: by the fastest way that is allowed; any, where none is named.

        Raises: ValueError where the topology has none of those that are allowed.
        """
        offered = self.all_reduces(group, nbytes, latency, efficiency)
        times = [time for way, time in offered.items() if way in allowed or not allowed]
        if not times:
            asked, has = " or ".join(allowed), ", ".join(offered)
            raise ValueError(f"the {self.noun()} has no {asked} all-reduce for this group; it has {has}")
        return min(times)

    def all_reduces(self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> dict[AllReduce, Seconds]:
        """How long an all-reduce takes in each of the ways that the topology offers to the group."""
        lane = self.pair(group).under(latency, efficiency)
        return {
            "one-shot": one_shot_all_reduce(len(group), nbytes, lane),
            "two-shot": two_shot_all_reduce(len(group), nbytes, lane),
        }

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Every chip of the group ends with all `nbytes`, of which each held its share."""
        return all_to_all_gather(len(group), nbytes, self.pair(group).under(latency, efficiency))

    def all_to_all(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Every chip of the group sends `nbytes`, an even share of them to each chip: one phase."""
        return all_to_all_gather(len(group), nbytes, self.pair(group).under(latency, efficiency))


class FullyConnected(Topology):
    """A link of its own for every pair."""

    link: Link

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, b),) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Lane:
        return Lane(self.link.latency, self.link.bandwidth)


class Switch(Topology):
    """Each chip on one cable to a switch that never blocks: two hops, and a chip's peers share its cable."""

    link: Link

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, "switch"), ("switch", b)) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Lane:
        return Lane(2 * self.link.latency, self.link.bandwidth / max(1, len(group) - 1))


class Ring(Topology):
    """Each chip joined to two neighbours, both ways at once; messages take the shorter way round."""

    link: Link
    wraps: ClassVar[bool] = True

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        n = self.chips or max(a, b) + 1
        ahead, behind = (b - a) % n, (a - b) % n
        onwards = ahead <= behind if self.wraps else a < b
        step, hops = (1, ahead) if onwards else (-1, behind)
        return tuple(pairwise((a + step * i) % n for i in range(hops + 1)))

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Lane:
        """Neighbours: a ring's collectives speak to nobody else."""
        return Lane(self.link.latency, self.link.bandwidth)

    def all_reduces(self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> dict[AllReduce, Seconds]:
        """Ring all-reduce: 2(n-1) steps of an n-th of the bytes.  Left out: the other direction, which could take a half."""
        return {"ring": self._rounds(2, group, nbytes, latency, efficiency)}

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Ring all-gather: n-1 steps of an n-th of the bytes."""
        return self._rounds(1, group, nbytes, latency, efficiency)

    def all_to_all(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Each of n chips sends an n-th to each other, all at once: the busiest link decides.

        Over a whole ring each link carries 1 + 2 + ... + n/2 messages onwards, in the middle of a part of it n^2/4.
        """
        n = len(group)
        if n == 1:
            return 0.0
        far = min(n - 1, (self.chips or 2 * n) // 2) if self.wraps else n - 1
        messages = far * (far + 1) / 2 if self.wraps and n == self.chips else (n // 2) * (n - n // 2)
        return Lane(far * self.link.latency, self.link.bandwidth).under(latency, efficiency).time(nbytes * messages / n)

    def _rounds(self, rounds: int, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> Seconds:
        """n-1 steps a round.  A group that is only a part of the ring closes its circle over several links, once a round."""
        n = len(group)
        if n == 1:
            return 0.0
        step = self.pair(group).under(latency, efficiency).time(nbytes / n)
        way_back = (self.hops(group[-1], group[0]) - 1) * self.link.latency
        return rounds * ((n - 1) * step + way_back)


class Line(Ring):
    """A ring cut open: a daisy chain.  Its collectives are the ring's, closed over all its links backwards."""

    wraps: ClassVar[bool] = False


class Dragonfly(Topology):
    """Groq's fabric: nodes fully connected inside, nodes joined by global cables, directly while they are few, else by racks.

    Up to `direct` chips every two nodes share a cable: at most 3 hops.  Beyond, the nodes of a rack are joined so, and every
    two racks: at most 5 hops.  A chip reaches other nodes at `direct_bandwidth`, beyond `direct` chips at `global_bandwidth`.

    Assumed: which chip of a node holds which cable (spread evenly), and that a cable between nodes ends on the chip that
    goes on between racks, without which the published 5 hops could not hold (some chips get more than their 4 cables so).
    Traffic between nodes is taken to spread over all cables, so that each chip has its published share of the bandwidth, and
    racks are taken as whole, also the last one.
    Source: Abts et al., "A Software-defined Tensor Streaming Multiprocessor", ISCA 2022.
    """

    link: Link
    global_link: Link
    node: Count
    rack: Count  # nodes
    direct: Count  # chips
    limit: Count
    direct_bandwidth: BytesPerSecond
    global_bandwidth: BytesPerSecond

    def _holder(self, here: int, there: int, peers: int) -> int:
        """The chip of node `here` that holds the cable to node `there`, of `peers` nodes all joined to each other."""
        index = there % peers - (there % peers > here % peers)
        return here * self.node + index * self.node // max(1, peers - 1)

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        here, there = a // self.node, b // self.node
        rack_here, rack_there = here // self.rack, there // self.rack
        way: tuple[int, ...]
        if here == there:
            way = (a, b)
        elif (self.chips or 0) <= self.direct:
            nodes = math.ceil(self.direct / self.node)
            way = (a, self._holder(here, there, nodes), self._holder(there, here, nodes), b)
        elif rack_here == rack_there:
            way = (a, self._holder(here, there, self.rack), self._holder(there, here, self.rack), b)
        else:
            leave, enter = self._gateway(rack_here, rack_there), self._gateway(rack_there, rack_here)
            way = (a, *self._to_gateway(a, leave), leave, enter, *reversed(self._to_gateway(b, enter)), b)
        return tuple((i, j) for i, j in pairwise(way) if i != j)

    def _gateway(self, here: int, there: int) -> int:
        """The chip of rack `here` that holds the cable to rack `there`."""
        racks = math.ceil(self.limit / (self.rack * self.node))
        index = there - (there > here)
        return here * self.rack * self.node + index * self.rack * self.node // max(1, racks - 1)

    def _to_gateway(self, chip: int, gateway: int) -> tuple[int, ...]:
        node, other = chip // self.node, gateway // self.node
        return () if node == other else (self._holder(node, other, self.rack),)

    def link_of(self, hop: Hop) -> Link:
        a, b = hop
        assert isinstance(a, int)
        assert isinstance(b, int)
        return self.link if a // self.node == b // self.node else self.global_link

    def _outside(self) -> float:
        """What a chip may send beyond its node, in B/s."""
        return self.direct_bandwidth if (self.chips or 0) <= self.direct else self.global_bandwidth

    def pair(self, group: range) -> Lane:
        """Inside a node; groups over several nodes go by stages, see all_reduce."""
        return Lane(self.link.latency, self.link.bandwidth)

    def _parts(self, group: range) -> tuple[list[int], Lane]:
        """How many chips of a group each of its nodes has, and the slowest lane between two nodes while all of them talk.

        The same chips of two nodes talk; of three such pairs at least one holds no cable on its way and makes all the hops.
        """
        sizes = Counter(chip // self.node for chip in group)
        racks = {node // self.rack for node in sizes}
        cables = 3 if len(racks) > 1 and (self.chips or 0) > self.direct else 1  # the most global ones of any way
        longest = (2 * self.link.latency + cables * self.global_link.latency) * (1 - 1e-9)
        latency = 0.0
        for (a, b), i in product(combinations(sizes, 2), range(min(3, self.node))):
            latency = max(latency, self.lane(a * self.node + i, b * self.node + i).latency)
            if latency >= longest:  # none is longer: thousands of nodes need no look at every two
                break
        bandwidth = min(self.global_link.bandwidth, self._outside() / max(1, len(sizes) - 1))
        return list(sizes.values()), Lane(latency, bandwidth)

    def all_reduces(self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> dict[AllReduce, Seconds]:
        """Inside a node as everywhere; over several: reduce-scatter inside, all-reduce between, all-gather inside.

        The node with the fewest chips of the group decides: each of them has the most to exchange.
        """
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_reduces(group, nbytes, latency, efficiency)
        lane, outside, share = self.pair(group).under(latency, efficiency), between.under(latency, efficiency), nbytes / min(sizes)
        inside = 2 * max(all_to_all_gather(size, nbytes, lane) for size in sizes)
        between_nodes = min(one_shot_all_reduce(len(sizes), share, outside), two_shot_all_reduce(len(sizes), share, outside))
        return {"hierarchical": inside + between_nodes}

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Over several nodes: each chip takes in its share of what the other nodes hold, then all-gather inside."""
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_gather(group, nbytes, latency, efficiency)
        taken = nbytes * (1 / min(sizes) - 1 / len(group)) / (len(sizes) - 1)
        inside = max(all_to_all_gather(size, nbytes, self.pair(group).under(latency, efficiency)) for size in sizes)
        return between.under(latency, efficiency).time(taken) + inside

    def all_to_all(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Over several nodes: what leaves the node passes what a chip may send outside; the rest goes beside it."""
        sizes, between = self._parts(group)
        inside = self.pair(group).under(latency, efficiency).time(nbytes / len(group))
        if len(sizes) == 1:
            return inside if len(group) > 1 else 0.0
        outside = Lane(between.latency, self._outside()).under(latency, efficiency)
        return max(inside, outside.time(nbytes * (1 - min(sizes) / len(group))))


KINDS: dict[str, type[Topology]] = {}
TopologyField = Annotated[Topology, OfKind(KINDS, Topology)]


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

    def all_reduces(self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> dict[AllReduce, Seconds]:
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
        return {self.across: time + max(outer.all_reduce(each, nbytes, latency + detour, efficiency) for each in blocks)}

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


KINDS |= {
    "fully-connected": FullyConnected,
    "switch": Switch,
    "ring": Ring,
    "line": Line,
    "mesh": Mesh,
    "torus": Torus,
    "hierarchical": Hierarchical,
    "dragonfly": Dragonfly,
}
