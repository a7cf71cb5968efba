"""How chips are joined: routes, hops, and the closed forms of what they say to each other.

Chips are numbered from 0; a group is a range of them (the chips of one stage).  A message costs the latency of each hop and
its bytes once, at the narrowest link (cut-through).  Software's share of a collective is given by the caller as a latency for
each phase and the part of the bandwidth it reaches; topologies know cables, not engines.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from itertools import combinations, pairwise
from typing import Annotated, NamedTuple, Self

from sim.files import Value, of_kind
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

    def all_reduce(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Every chip of the group ends with the sum of all: the faster of one-shot and two-shot."""
        lane = self.pair(group).under(latency, efficiency)
        return min(one_shot_all_reduce(len(group), nbytes, lane), two_shot_all_reduce(len(group), nbytes, lane))

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Every chip of the group ends with all `nbytes`, of which each held its share."""
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

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        n = self.chips or max(a, b) + 1
        step = 1 if (b - a) % n <= (a - b) % n else -1
        at, way = a, []
        while at != b:
            way.append((at, (at + step) % n))
            at = (at + step) % n
        return tuple(way)

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Lane:
        """Neighbours: a ring's collectives speak to nobody else."""
        return Lane(self.link.latency, self.link.bandwidth)

    def all_reduce(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Ring all-reduce: 2(n-1) steps of an n-th of the bytes."""
        return self._rounds(2, group, nbytes, latency, efficiency)

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Ring all-gather: n-1 steps of an n-th of the bytes."""
        return self._rounds(1, group, nbytes, latency, efficiency)

    def _rounds(self, rounds: int, group: range, nbytes: Bytes, latency: Seconds, efficiency: float) -> Seconds:
        """n-1 steps a round.  A group that is only a part of the ring closes its circle over several links, once a round."""
        n = len(group)
        if n == 1:
            return 0.0
        step = self.pair(group).under(latency, efficiency).time(nbytes / n)
        way_back = (self.hops(group[-1], group[0]) - 1) * self.link.latency
        return rounds * ((n - 1) * step + way_back)


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
        pairs = [(a * self.node + i, b * self.node + i) for a, b in combinations(sizes, 2) for i in range(min(3, self.node))]
        bandwidth = min(self.global_link.bandwidth, self._outside() / max(1, len(sizes) - 1))
        return list(sizes.values()), Lane(max((self.lane(a, b).latency for a, b in pairs), default=0.0), bandwidth)

    def all_reduce(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Inside a node as everywhere; over several: reduce-scatter inside, all-reduce between, all-gather inside.

        The node with the fewest chips of the group decides: each of them has the most to exchange.
        """
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_reduce(group, nbytes, latency, efficiency)
        lane, outside, share = self.pair(group).under(latency, efficiency), between.under(latency, efficiency), nbytes / min(sizes)
        inside = 2 * max(all_to_all_gather(size, nbytes, lane) for size in sizes)
        return inside + min(one_shot_all_reduce(len(sizes), share, outside), two_shot_all_reduce(len(sizes), share, outside))

    def all_gather(self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0) -> Seconds:
        """Over several nodes: each chip takes in its share of what the other nodes hold, then all-gather inside."""
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_gather(group, nbytes, latency, efficiency)
        taken = nbytes * (1 / min(sizes) - 1 / len(group)) / (len(sizes) - 1)
        inside = max(all_to_all_gather(size, nbytes, self.pair(group).under(latency, efficiency)) for size in sizes)
        return between.under(latency, efficiency).time(taken) + inside


KINDS: dict[str, type[Topology]] = {"fully-connected": FullyConnected, "switch": Switch, "ring": Ring, "dragonfly": Dragonfly}
TopologyField = Annotated[Topology, of_kind(KINDS, Topology)]
