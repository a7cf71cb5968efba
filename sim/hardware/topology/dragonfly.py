"""Groq's fabric: a dragonfly of nodes and racks."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable
from functools import cached_property
from itertools import combinations, pairwise, permutations, product

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
    all_to_all_gather,
    everyone_to_everyone,
    one_shot_all_reduce,
    side_by_side,
    two_shot_all_reduce,
)
from sim.units import Bytes, BytesPerSecond, Count, Seconds


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
            leave, enter = (
                self._gateway(rack_here, rack_there),
                self._gateway(rack_there, rack_here),
            )
            way = (
                a,
                *self._to_gateway(a, leave),
                leave,
                enter,
                *reversed(self._to_gateway(b, enter)),
                b,
            )
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

    def way(self, a: int, b: int) -> tuple[Segment, ...]:
        """Between nodes: a share of all cables that the chip has for what it sends to that node, as long as the route."""
        if a // self.node == b // self.node:
            return super().way(a, b)
        leave, enter, latency = self._gates(a // self.node, b // self.node)
        latency += self.link.latency * ((a != leave) + (b != enter))
        return (
            Segment(
                (a, f"node {b // self.node}"),
                latency,
                min(self.global_link.bandwidth, self._outside()),
            ),
        )

    @cached_property
    def _known(self) -> dict[tuple[int | None, int, int], tuple[int, int, Seconds]]:
        return {}

    def _gates(self, here: int, there: int) -> tuple[int, int, Seconds]:
        """The chips by which messages leave and enter two nodes, and the latency between them.  Many chips ask the same."""
        key = (self.chips, here, there)
        if key not in self._known:
            hops = self.route(here * self.node, there * self.node)
            chips = [hops[0][0], *(end for _, end in hops)]
            leave = max((i for i, chip in enumerate(chips) if int(chip) // self.node == here))
            enter = min((i for i, chip in enumerate(chips) if int(chip) // self.node == there))
            latency = sum(self.link_of(hop).latency for hop in hops[leave:enter])
            self._known[key] = int(chips[leave]), int(chips[enter]), latency
        return self._known[key]

    def _outside(self) -> float:
        """What a chip may send beyond its node, in B/s."""
        return self.direct_bandwidth if (self.chips or 0) <= self.direct else self.global_bandwidth

    def pair(self, group: range) -> Channel:
        """Inside a node; groups over several nodes go by stages, see all_reduce."""
        return Channel(self.link.latency, self.link.bandwidth)

    def equivalence_key(self, group: range) -> Hashable:
        sizes, between = self._parts(group)
        return tuple(sizes), between

    @cached_property
    def _split(self) -> dict[tuple[int | None, range], tuple[list[int], Channel]]:
        return {}

    def _parts(self, group: range) -> tuple[list[int], Channel]:
        """What `_parts_of` says; it is asked for each number of tokens anew."""
        key = (self.chips, group)
        if key not in self._split:
            self._split[key] = self._parts_of(group)
        return self._split[key]

    def _parts_of(self, group: range) -> tuple[list[int], Channel]:
        """How many chips of a group each of its nodes has, and the slowest lane between two nodes while all of them talk.

        The same chips of two nodes talk; of three such pairs at least one holds no cable on its way and makes all the hops.
        """
        sizes = Counter(chip // self.node for chip in group)
        racks = {node // self.rack for node in sizes}
        cables = (
            3 if len(racks) > 1 and (self.chips or 0) > self.direct else 1
        )  # the most global ones of any way
        longest = (2 * self.link.latency + cables * self.global_link.latency) * (1 - 1e-9)
        latency = 0.0
        for (a, b), i in product(combinations(sizes, 2), range(min(3, self.node))):
            latency = max(latency, self.channel(a * self.node + i, b * self.node + i).latency)
            if latency >= longest:  # none is longer: thousands of nodes need no look at every two
                break
        bandwidth = min(self.global_link.bandwidth, self._outside() / max(1, len(sizes) - 1))
        return list(sizes.values()), Channel(latency, bandwidth)

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Inside a node as everywhere; over several: reduce-scatter inside, all-reduce between, all-gather inside.

        The node with the fewest chips of the group decides: each of them has the most to exchange.
        """
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_reduces(group, nbytes, latency, efficiency)
        channel, outside, share = (
            self.pair(group).with_software(latency, efficiency),
            between.with_software(latency, efficiency),
            nbytes / min(sizes),
        )
        inside = 2 * max(all_to_all_gather(size, nbytes, channel) for size in sizes)
        return {
            ("hierarchical", "one-shot"): inside + one_shot_all_reduce(len(sizes), share, outside),
            ("hierarchical", "two-shot"): inside + two_shot_all_reduce(len(sizes), share, outside),
        }

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Over several nodes: each chip takes in its share of what the other nodes hold, then all-gather inside."""
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_gather(group, nbytes, latency, efficiency)
        taken = nbytes * (1 / min(sizes) - 1 / len(group)) / (len(sizes) - 1)
        inside = max(
            all_to_all_gather(size, nbytes, self.pair(group).with_software(latency, efficiency))
            for size in sizes
        )
        return between.with_software(latency, efficiency).time(taken) + inside

    def all_to_all(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        copies: Copies = (),
    ) -> Seconds:
        """Over several nodes: what leaves the node passes what a chip may send outside; the rest goes beside it.

        Left out: one copy for a node, handed on inside.  It takes a second phase, which costs the few tokens of a beat more.
        """
        sizes, between = self._parts(group)
        inside = self.pair(group).with_software(latency, efficiency).time(nbytes / len(group))
        if len(sizes) == 1:
            return inside if len(group) > 1 else 0.0
        outside = Channel(between.latency, self._outside()).with_software(latency, efficiency)
        return max(inside, outside.time(nbytes * (1 - min(sizes) / len(group))))

    def messages(
        self, operation: Operation, group: range, way: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Inside the nodes and between them, as the closed forms go.

        Between nodes a chip speaks to those whose part of the data overlaps its own: where the nodes have equally many chips of
        the group, to its own place there.
        """
        members: defaultdict[int, list[int]] = defaultdict(list)
        for chip in group:
            members[chip // self.node].append(chip)
        nodes = list(members.values())
        if len(nodes) == 1:
            return super().messages(operation, group, way)
        each = self._outside() / (len(nodes) - 1)
        if operation == "all_to_all":
            return (self._everyone(nodes, 1 / len(group), each),)
        pace = min(self.global_link.bandwidth, each)
        inside = side_by_side([(everyone_to_everyone(node, 1 / len(node)),) for node in nodes])
        if operation == "all_gather":
            return (*self._between(nodes, 1 / len(group), pace, gather=True), *inside)
        parts = 1.0 if way[-1] == "one-shot" else 1 / len(nodes)
        return (*inside, *self._between(nodes, parts, pace) * (1 if parts == 1 else 2), *inside)

    @staticmethod
    def _between(
        nodes: list[list[int]], share: float, pace: float, gather: bool = False
    ) -> tuple[Phase, ...]:
        """To every other node: the part of what a chip holds that the other one cares for; in a gather, all that it holds."""
        phase = []
        for here, there in permutations(nodes, 2):
            if gather:
                phase += [
                    Message(chip, there[place % len(there)], share, pace)
                    for place, chip in enumerate(here)
                ]
                continue
            for (i, a), (j, b) in product(enumerate(here), enumerate(there)):
                common = min((i + 1) / len(here), (j + 1) / len(there)) - max(
                    i / len(here), j / len(there)
                )
                if common > 1e-12:
                    phase.append(Message(a, b, common * share, pace))
        return (tuple(phase),)

    def _everyone(self, nodes: list[list[int]], share: float, pace: float) -> Phase:
        """From everyone to everyone, node after node."""
        inside = [message for node in nodes for message in everyone_to_everyone(node, share)]
        outside = [
            Message(a, b, share, pace)
            for here, there in permutations(nodes, 2)
            for a, b in product(here, there)
        ]
        return (*inside, *outside)

    def uncontended(self, group: range) -> frozenset[Operation]:
        """All, where its nodes have equally many chips of the group; over several nodes, all but all-to-all.

        A chip that holds a cable to another node is a hop nearer, so the last message of a queue may arrive before the time that
        the closed form has for the farthest one.
        """
        sizes, _ = self._parts(group)
        if len(set(sizes)) > 1:
            return frozenset()
        return super().uncontended(group) - ({"all_to_all"} if len(sizes) > 1 else set())
