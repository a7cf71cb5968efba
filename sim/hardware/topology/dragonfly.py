"""Groq's fabric: a dragonfly of nodes and racks."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable
from functools import cached_property
from itertools import combinations, pairwise, permutations, product

from pydantic import Field

from sim.hardware.topology.base import (
    OPERATIONS,
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
from sim.units import Bytes, BytesPerSecond, Count, Seconds, longest


class Dragonfly(Topology):
    """Groq's fabric: fully connected nodes, with global cables between nodes and between racks.

    Up to `direct` chips, every two nodes share a cable: at most 3 hops.
    With more chips, every two nodes of a rack and every two racks share a cable: at most 5 hops.

    Assumed: the cables of a node are spread evenly over its chips.
    Assumed: a cable between nodes ends on the chip that holds the cable between racks. The
    published 5 hops need this, but some chips then have more than their 4 cables.
    Assumed: traffic between nodes spreads over all cables, so that each chip has its published
    share of the bandwidth. The last rack counts as full.
    Source: Abts et al., "A Software-defined Tensor Streaming Multiprocessor", ISCA 2022.
    """

    link: Link = Field(description="Link between two chips of a node.")
    global_link: Link = Field(description="Cable between nodes or between racks.")
    node: Count = Field(description="Chips of a node.")
    rack: Count = Field(description="Nodes of a rack.")
    direct: Count = Field(description="Most chips with which every two nodes share a cable.")
    limit: Count = Field(description="Largest number of chips that it joins.")
    direct_bandwidth: BytesPerSecond = Field(
        description="Bandwidth of a chip to other nodes, up to `direct` chips [B/s]."
    )
    global_bandwidth: BytesPerSecond = Field(
        description="Bandwidth of a chip to other nodes, beyond `direct` chips [B/s]."
    )

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        here, there = a // self.node, b // self.node
        rack_here, rack_there = here // self.rack, there // self.rack
        chips: tuple[int, ...]
        if here == there:
            chips = (a, b)
        elif (self.chips or 0) <= self.direct:
            nodes = math.ceil(self.direct / self.node)
            chips = (
                a,
                _holder(self.node, here, there, nodes),
                _holder(self.node, there, here, nodes),
                b,
            )
        elif rack_here == rack_there:
            leave = _holder(self.node, here, there, self.rack)
            enter = _holder(self.node, there, here, self.rack)
            chips = (a, leave, enter, b)
        else:
            leave = self._gateway(rack_here, rack_there)
            enter = self._gateway(rack_there, rack_here)
            up, down = self._to_gateway(a, leave), reversed(self._to_gateway(b, enter))
            chips = (a, *up, leave, enter, *down, b)
        return tuple((i, j) for i, j in pairwise(chips) if i != j)

    def _gateway(self, here: int, there: int) -> int:
        """Return the chip of rack `here` that holds the cable to rack `there`."""
        racks = math.ceil(self.limit / (self.rack * self.node))
        index = there - (there > here)
        return here * self.rack * self.node + index * self.rack * self.node // max(1, racks - 1)

    def _to_gateway(self, chip: int, gateway: int) -> tuple[int, ...]:
        """Return the chips by which a message leaves a chip's node for the gateway's node."""
        node, other = chip // self.node, gateway // self.node
        return () if node == other else (_holder(self.node, node, other, self.rack),)

    def link_of(self, hop: Hop) -> Link:
        a, b = hop
        assert isinstance(a, int)
        assert isinstance(b, int)
        return self.link if a // self.node == b // self.node else self.global_link

    def segments(self, a: int, b: int) -> tuple[Segment, ...]:
        """Return the segments of a message from a to b.

        Between nodes it is one segment, with the latency of the route. Its bandwidth is the chip's
        share of all cables for its messages to that node.
        """
        if a // self.node == b // self.node:
            return super().segments(a, b)
        return (Segment((a, f"node {b // self.node}"), *self.channel(a, b)),)

    def channel(self, a: int, b: int) -> Channel:
        here, there = a // self.node, b // self.node
        if here == there:
            return super().channel(a, b)
        leave, enter, _, latency = self._gates(here, there)
        latency += self.link.latency * ((a != leave) + (b != enter))
        return Channel(latency, min(self.global_link.bandwidth, self._outside()))

    def hops(self, a: int, b: int) -> int:
        """Return the number of hops of the route, without the route itself."""
        if a // self.node == b // self.node:
            return int(a != b)
        leave, enter, between, _ = self._gates(a // self.node, b // self.node)
        return (a != leave) + between + (b != enter)

    @cached_property
    def _known(self) -> dict[tuple[int | None, int, int], tuple[int, int, int, Seconds]]:
        return {}

    def _gates(self, here: int, there: int) -> tuple[int, int, int, Seconds]:
        """Return the chips by which messages leave and enter two nodes, the hops and the latency.

        The result is kept, because it is the same for many pairs of chips.
        """
        key = (self.chips, here, there)
        if key not in self._known:
            hops = self.route(here * self.node, there * self.node)
            chips = [hops[0][0], *(end for _, end in hops)]
            leave = max((i for i, chip in enumerate(chips) if int(chip) // self.node == here))
            enter = min((i for i, chip in enumerate(chips) if int(chip) // self.node == there))
            latency = sum(self.link_of(hop).latency for hop in hops[leave:enter])
            self._known[key] = int(chips[leave]), int(chips[enter]), enter - leave, latency
        return self._known[key]

    def _outside(self) -> float:
        """Return what a chip can send to other nodes [B/s]."""
        return self.direct_bandwidth if (self.chips or 0) <= self.direct else self.global_bandwidth

    def pair(self, group: range) -> Channel:
        """Return the channel inside a node. `all_reduces` handles groups over several nodes."""
        return Channel(self.link.latency, self.link.bandwidth)

    def equivalence_key(self, group: range) -> Hashable:
        sizes, between = self._parts(group)
        return tuple(sizes), between

    @cached_property
    def _split(self) -> dict[tuple[int | None, range], tuple[list[int], Channel]]:
        return {}

    def _parts(self, group: range) -> tuple[list[int], Channel]:
        """Return `_parts_of`, kept, because a run needs it for every number of tokens."""
        key = (self.chips, group)
        if key not in self._split:
            self._split[key] = _parts_of(self, group)
        return self._split[key]

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Return the time of an all-reduce, by algorithm.

        Over several nodes: reduce-scatter inside, all-reduce between, all-gather inside.
        The node with the fewest chips of the group is slowest, as its chips exchange the most.
        """
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_reduces(group, nbytes, latency, efficiency)
        channel, outside, share = (
            self.pair(group).with_software(latency, efficiency),
            between.with_software(latency, efficiency),
            nbytes / min(sizes),
        )
        inside = 2 * longest(all_to_all_gather(size, nbytes, channel) for size in sizes)
        return {
            ("hierarchical", "one-shot"): inside + one_shot_all_reduce(len(sizes), share, outside),
            ("hierarchical", "two-shot"): inside + two_shot_all_reduce(len(sizes), share, outside),
        }

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time of an all-gather.

        Over several nodes, each chip first receives its share of the other nodes' bytes.
        Then follows an all-gather inside each node.
        """
        sizes, between = self._parts(group)
        if len(sizes) == 1:
            return super().all_gather(group, nbytes, latency, efficiency)
        taken = nbytes * (1 / min(sizes) - 1 / len(group)) / (len(sizes) - 1)
        inside = longest(
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
        """Return the time of an all-to-all: the longer of the bytes between nodes and inside.

        Left out: one copy per node, passed on inside. It takes a second phase, which costs more for
        the few tokens of a beat.
        """
        sizes, between = self._parts(group)
        inside = self.pair(group).with_software(latency, efficiency).time(nbytes / len(group))
        if len(sizes) == 1:
            return inside if len(group) > 1 else 0.0
        outside = Channel(between.latency, self._outside()).with_software(latency, efficiency)
        return longest((inside, outside.time(nbytes * (1 - min(sizes) / len(group)))))

    def messages(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Return the messages inside the nodes and between them, in the order of the closed forms.

        Between nodes a chip sends to the chips whose part of the data overlaps its own.
        If the nodes have equally many chips of the group, that is the chip at its own place.
        """
        nodes = list(_by_node(group, self.node).values())
        if len(nodes) == 1:
            return super().messages(operation, group, algorithm)
        per_node = self._outside() / (len(nodes) - 1)  # B/s
        if operation == "all_to_all":
            return (_everyone(nodes, 1 / len(group), per_node),)
        pace = min(self.global_link.bandwidth, per_node)
        inside = side_by_side([(everyone_to_everyone(node, 1 / len(node)),) for node in nodes])
        if operation == "all_gather":
            return (*_between(nodes, 1 / len(group), pace, gather=True), *inside)
        parts = 1.0 if algorithm[-1] == "one-shot" else 1 / len(nodes)
        return (*inside, *_between(nodes, parts, pace) * (1 if parts == 1 else 2), *inside)

    def cables_crossed(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> float:
        """Return the cables that a byte of a collective crosses, over all of its messages.

        An all-to-all is counted by pairs of nodes, because its messages may be millions.
        """
        if operation != "all_to_all":
            return super().cables_crossed(operation, group, algorithm)
        members = _by_node(group, self.node)
        hops = sum(len(chips) * (len(chips) - 1) for chips in members.values())
        for (a, here), (b, there) in permutations(members.items(), 2):
            leave, enter, between, _ = self._gates(a, b)
            hops += len(here) * len(there) * (between + 2)
            hops -= len(there) * (leave in here) + len(here) * (enter in there)
        return hops / len(group)

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return all collectives, if the nodes have equally many chips of the group.

        Over several nodes all-to-all is left out. A chip that holds a cable to another node is one
        hop nearer, so the last message of a queue may arrive before the closed form's time, which
        is that of the farthest chip.
        """
        sizes, _ = self._parts(group)
        if len(set(sizes)) > 1:
            return frozenset()
        return OPERATIONS - ({"all_to_all"} if len(sizes) > 1 else set())


def _by_node(group: range, node: int) -> dict[int, list[int]]:
    """Return the chips of a group by their node. node: chips of a node."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for chip in group:
        members[chip // node].append(chip)
    return members


def _parts_of(of: Dragonfly, group: range) -> tuple[list[int], Channel]:
    """Return int[node], the group's chips, and the slowest channel while all nodes communicate.

    Chips at equal places of two nodes communicate. Among three such pairs, at least one holds
    no cable of its route and takes all the hops.
    """
    sizes = Counter(chip // of.node for chip in group)
    racks = {node // of.rack for node in sizes}
    # The largest number of global cables on any route.
    cables = 3 if len(racks) > 1 and (of.chips or 0) > of.direct else 1
    longest = (2 * of.link.latency + cables * of.global_link.latency) * (1 - 1e-9)
    latency = 0.0
    for (a, b), i in product(combinations(sizes, 2), range(min(3, of.node))):
        latency = max(latency, of.channel(a * of.node + i, b * of.node + i).latency)
        if latency >= longest:  # else thousands of nodes would take all their pairs
            break
    bandwidth = min(of.global_link.bandwidth, of._outside() / max(1, len(sizes) - 1))
    return list(sizes.values()), Channel(latency, bandwidth)


def _holder(node: int, here: int, there: int, peers: int) -> int:
    """Return the chip of node `here` that holds the cable to node `there`.

    node: chips of a node. peers: nodes that are all joined to each other.
    """
    index = there % peers - (there % peers > here % peers)
    return here * node + index * node // max(1, peers - 1)


def _between(
    nodes: list[list[int]], share: float, pace: float, gather: bool = False
) -> tuple[Phase, ...]:
    """Return one phase of messages to every other node.

    A chip sends the part of its data that belongs to the other chip. In a gather it sends all.
    """
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


def _everyone(nodes: list[list[int]], share: float, pace: float) -> Phase:
    """Return a message from each chip to each other chip, node by node."""
    inside = [message for node in nodes for message in everyone_to_everyone(node, share)]
    outside = [
        Message(a, b, share, pace)
        for here, there in permutations(nodes, 2)
        for a, b in product(here, there)
    ]
    return (*inside, *outside)
