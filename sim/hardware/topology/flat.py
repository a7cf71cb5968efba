"""Chips joined at one level: fully, by a switch, by a bus, in a ring or a line."""

import math
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import ClassVar, Self

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
    everyone_to_everyone,
)
from sim.units import Bytes, Seconds


def mirrored(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Return the reduce-scatter that reverses an all-gather: the last phase first, backwards."""
    return tuple(
        tuple(m._replace(source=m.target, target=m.source) for m in phase)
        for phase in reversed(phases)
    )


def chain_gather(chips: Sequence[int]) -> tuple[Phase, ...]:
    """Return the all-gather along a chain of n chips, in n-1 phases.

    In each phase a chip passes on what it received last, in both directions.
    """
    n = len(chips)
    return tuple(
        (
            *(Message(chips[i], chips[i + 1], 1 / n) for i in range(phase, n - 1)),
            *(Message(chips[i], chips[i - 1], 1 / n) for i in range(1, n - phase)),
        )
        for phase in range(n - 1)
    )


class Unlinked(Topology):
    """A chip without links to others, as a card that is sold alone; a replica is one chip."""

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ()

    def link_of(self, hop: Hop) -> Link:
        raise KeyError(hop)

    def pair(self, group: range) -> Channel:
        return Channel(0.0, math.inf)

    def sized(self, chips: int) -> Self:
        """Return the topology of one chip.

        Raises: ValueError for several chips.
        """
        if chips > 1:
            raise ValueError(
                f"the chip's file has no topology: got a replica of {chips} chips; expected 1;"
                " try a topology for the system"
            )
        return super().sized(chips)


class FullyConnected(Topology):
    """A topology with one link for every pair of chips."""

    link: Link = Field(description="Link of each pair of chips.")

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, b),) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Channel:
        return Channel(self.link.latency, self.link.bandwidth)

    def equivalence_key(self, group: range) -> Hashable:
        return None

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return all collectives."""
        return OPERATIONS


class Switch(Topology):
    """A switch that never blocks, with one cable to each chip.

    A message takes two hops. Messages to and from several peers share a chip's cable.
    """

    link: Link = Field(description="Link between a chip and the switch; a message takes two hops.")

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, "switch"), ("switch", b)) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def pair(self, group: range) -> Channel:
        return Channel(2 * self.link.latency, self.link.bandwidth / max(1, len(group) - 1))

    def equivalence_key(self, group: range) -> Hashable:
        return None

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return all collectives."""
        return OPERATIONS


class Bus(Topology):
    """One medium that all chips share, one message at a time.

    For example, cards that reach each other through a host's memory or PCIe root.
    """

    link: Link = Field(description="Medium that all chips share; a message takes one hop.")

    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        return ((a, "bus"), ("bus", b)) if a != b else ()

    def link_of(self, hop: Hop) -> Link:
        return self.link

    def segments(self, a: int, b: int) -> tuple[Segment, ...]:
        """Return one segment: a message enters and leaves the bus as a whole."""
        return (Segment(("bus", "bus"), self.link.latency, self.link.bandwidth),) if a != b else ()

    def pair(self, group: range) -> Channel:
        """Return the channel of each pair while the group shares the bus.

        Left out: messages of other groups.
        """
        return Channel(
            self.link.latency, self.link.bandwidth / max(1, len(group) * (len(group) - 1))
        )

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        return Channel(self.link.latency, self.link.bandwidth).time(len(group) * nbytes)

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return all collectives; without all-reduce for more than two chips.

        A second phase starts while messages of the first still have the bus, so a two-shot
        all-reduce is faster than its closed form.
        """
        return OPERATIONS - ({"all_reduce"} if len(group) > 2 else set())


class Ring(Topology):
    """A ring: each chip has a link in both directions to two neighbours.

    Messages take the shorter direction.
    """

    link: Link = Field(description="Link between neighbours.")
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
        """Return the channel between neighbours; a ring's collectives use no other pair."""
        return Channel(self.link.latency, self.link.bandwidth)

    def _closed(self, group: range) -> bool:
        """Return whether the group is the whole ring, so that both directions reach each chip."""
        return self.wraps and len(group) == self.chips and len(group) > 2

    def steps(self, group: range) -> tuple[float, ...]:
        """Return float[phase]: the share of the bytes on a link, per direction, in an all-gather.

        A whole ring of n chips takes n/2 phases of an n-th. For an even n, the opposite chip gets
        one half from each side. A part of a ring, or of a line, is a chain: n-1 phases.
        """
        n = len(group)
        if not self._closed(group):
            return (1 / n,) * (n - 1)
        return (1 / n,) * ((n - 1) // 2) + (0.5 / n,) * (1 - n % 2)

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Return the time of a reduce-scatter and an all-gather, each in both directions.

        Together they send 2(n-1)/n of the bytes over the two links of a chip.
        """
        return {("ring",): 2 * self.all_gather(group, nbytes, latency, efficiency)}

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time of phases in which each chip passes on what it received, both ways."""
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
        """Return the time of the busiest link while each of n chips sends an n-th to each other.

        In a whole ring each link carries 1 + 2 + ... + n/2 messages in one direction.
        In a part of a ring, the middle link carries n^2/4 messages.
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
        """Return the time in which all slices go in one direction, one after the other.

        The last chip's link carries all of them, each as soon as it arrives.
        """
        channel, n = (
            Channel(self.link.latency, self.link.bandwidth),
            self.hops(group[0], group[0] + len(group)),
        )
        return channel.time(nbytes) + (n - 1) * max(self.link.latency, nbytes / self.link.bandwidth)

    def messages(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Return messages to both neighbours, phase by phase.

        An all-reduce first runs the gather backwards, and adds.
        """
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
        """Return all collectives but the all-to-all, whose messages meet on the links."""
        return frozenset(("all_reduce", "all_gather"))


class Line(Ring):
    """A line: a ring without one of its links, also called a daisy chain."""

    wraps: ClassVar[bool] = False
