"""Chips joined at one level: fully, by a switch, by a bus, in a ring or a line."""

from collections.abc import Hashable
from itertools import pairwise
from typing import ClassVar

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
    chain_gather,
    everyone_to_everyone,
    mirrored,
)
from sim.units import Bytes, Seconds


class FullyConnected(Topology):
    """A link of its own for every pair."""

    link: Link

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, b),) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Channel:
        return Channel(self.link.latency, self.link.bandwidth)

    def equivalence_key(self, group: range) -> Hashable:
        return None


class Switch(Topology):
    """Each chip on one cable to a switch that never blocks: two hops, and a chip's peers share its cable."""

    link: Link

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, "switch"), ("switch", b)) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Channel:
        return Channel(2 * self.link.latency, self.link.bandwidth / max(1, len(group) - 1))

    def equivalence_key(self, group: range) -> Hashable:
        return None


class Bus(Topology):
    """One medium that all chips share, a message at a time: cards that reach each other through a host's memory or PCIe root."""

    link: Link

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, "bus"), ("bus", b)) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def way(self, a: int, b: int) -> tuple[Segment, ...]:
        """On to the bus and off it again is one thing."""
        return (Segment(("bus", "bus"), self.link.latency, self.link.bandwidth),) if a != b else ()

    def pair(self, group: range) -> Channel:
        """While the group has the bus for itself.  Left out: what other groups have to say."""
        return Channel(
            self.link.latency, self.link.bandwidth / max(1, len(group) * (len(group) - 1))
        )

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        return Channel(self.link.latency, self.link.bandwidth).time(len(group) * nbytes)

    def uncontended(self, group: range) -> frozenset[Operation]:
        """A second phase begins while messages of the first still have the bus: a two-shot all-reduce is quicker than it says."""
        return super().uncontended(group) - ({"all_reduce"} if len(group) > 2 else set())


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

    def pair(self, group: range) -> Channel:
        """Neighbours: a ring's collectives speak to nobody else."""
        return Channel(self.link.latency, self.link.bandwidth)

    def _closed(self, group: range) -> bool:
        """Whether the group is a whole ring, so that both ways round lead to each chip."""
        return self.wraps and len(group) == self.chips and len(group) > 2

    def steps(self, group: range) -> tuple[float, ...]:
        """Return the share of the bytes that a link carries, each way, in each phase of an all-gather.

        A whole ring of n chips takes n/2 phases of an n-th.  Where n is even, the chip opposite gets a half from each side.
        A part of a ring, or of a line, is a chain: n-1 phases.
        """
        n = len(group)
        if not self._closed(group):
            return (1 / n,) * (n - 1)
        return (1 / n,) * ((n - 1) // 2) + (0.5 / n,) * (1 - n % 2)

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Reduce-scatter, then all-gather, both directions at once: 2(n-1)/n of the bytes over the two links of a chip."""
        return {("ring",): 2 * self.all_gather(group, nbytes, latency, efficiency)}

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Each chip passes on, both ways, what it has last received."""
        channel = self.pair(group).with_software(latency, efficiency)
        return sum(channel.time(nbytes * share) for share in self.steps(group))

    def all_to_all(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        copies: Copies = (),
    ) -> Seconds:
        """Each of n chips sends an n-th to each other, all at once: the busiest link decides.

        Over a whole ring each link carries 1 + 2 + ... + n/2 messages onwards, in the middle of a part of it n^2/4.
        """
        n = len(group)
        if n == 1:
            return 0.0
        far = min(n - 1, (self.chips or 2 * n) // 2) if self.wraps else n - 1
        messages = (
            far * (far + 1) / 2 if self.wraps and n == self.chips else (n // 2) * (n - n // 2)
        )
        return (
            Channel(far * self.link.latency, self.link.bandwidth)
            .with_software(latency, efficiency)
            .time(nbytes * messages / n)
        )

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        """All slices go the same way, one behind the other: the last chip's link carries them all, each as soon as it is there."""
        channel, n = (
            Channel(self.link.latency, self.link.bandwidth),
            self.hops(group[0], group[0] + len(group)),
        )
        return channel.time(nbytes) + (n - 1) * max(self.link.latency, nbytes / self.link.bandwidth)

    def messages(
        self, operation: Operation, group: range, way: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """To both neighbours, phase by phase; an all-reduce gathers backwards first, adding."""
        n = len(group)
        if operation == "all_to_all":
            return (everyone_to_everyone(group, 1 / n),)
        gather = chain_gather(group)
        if self._closed(group):
            gather = tuple(
                tuple(
                    Message(group[i], group[(i + onward) % n], share)
                    for onward in (1, -1)
                    for i in range(n)
                )
                for share in self.steps(group)
            )
        return gather if operation == "all_gather" else (*mirrored(gather), *gather)

    def uncontended(self, group: range) -> frozenset[Operation]:
        return frozenset(("all_reduce", "all_gather"))


class Line(Ring):
    """A ring cut open: a daisy chain."""

    wraps: ClassVar[bool] = False
