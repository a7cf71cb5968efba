"""Meshes and tori: a line or a ring in each dimension."""

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby, pairwise
from typing import Annotated, ClassVar, Self

from pydantic import Field

from sim.hardware.topology.base import (
    Algorithm,
    Channel,
    Copies,
    Link,
    Operation,
    Phase,
    Topology,
    side_by_side,
)
from sim.hardware.topology.flat import Line, Ring, chain_gather, mirrored
from sim.hardware.topology.nested import (
    Level,
    Nested,
    chain_messages,
    level_gathers,
    level_messages,
)
from sim.units import Bytes, Count, Seconds, longest


class Mesh(Nested):
    """A grid: a line in each dimension.

    Collectives use all dimensions and both directions at the same time. Each of D parts of the
    bytes takes the D dimensions in another order. If the dimensions are equal and closed, an
    all-reduce of n chips sends 2(n-1)/n of the bytes over the 2D links of a chip. Unequal
    dimensions take up to 1.6 times as long; a single order is used if it is faster.

    A group that is no block of the grid forms a chain, row by row, back and forth.
    Its all-to-all is an estimate, dimension by dimension.
    """

    link: Link = Field(description="Link between neighbours.")
    dims: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        description="Chips in each dimension; the last is the innermost, in which chips 0 and 1 "
        "differ."
    )
    wraps: ClassVar[bool] = False

    def parts(self) -> tuple[Topology, ...]:
        dimension = Ring if self.wraps else Line
        return tuple(dimension(link=self.link, chips=n) for n in reversed(self.dims))

    @property
    def most_chips(self) -> int | None:
        """The chips of its dims."""
        return math.prod(self.dims)

    def sized(self, chips: int) -> Self:
        """Return the topology with as many chips as `dims` has.

        Raises: ValueError if `chips` of the file is another number, or a replica has more.
        """
        joined = math.prod(self.dims)
        if (self.chips or joined) != joined:
            raise ValueError(
                f"{self.noun()}: got chips {self.chips}; expected {joined}, the product of dims"
            )
        return super(Nested, self.model_copy(update={"chips": joined})).sized(chips)

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        return {("ring",): 2 * self.all_gather(group, nbytes, latency, efficiency)}

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time of the schedule's phases; each takes the time of its busiest link."""
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
        """Return the time in which each part of the bytes takes the dimensions in another order.

        The parts move at the same time, so the slowest dimension counts at each turn.
        """
        if not self._whole(group):
            spanned = self._spanned(group)
            return sum(
                longest(part.all_to_all(block, nbytes, latency, efficiency) for block in places)
                for part, places, _ in spanned
            )
        levels = self._strides(group)
        return len(levels) * longest(
            part.all_to_all(places, nbytes / len(levels), latency, efficiency)
            for part, places, _ in levels
        )

    def messages(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Return the messages of a collective, phase by phase, in all orders of the dimensions."""
        if operation == "all_to_all" and self._whole(group):
            orders = _rotations(self._strides(group))
            parts = [
                [level_messages(group, operation, level, 1 / len(orders)) for level in order]
                for order in orders
            ]
            return side_by_side([[phase for phases in part for phase in phases] for part in parts])
        if operation == "all_to_all":
            return chain_messages(operation, group)
        gather = self._schedule(group)[0]
        return gather if operation == "all_gather" else (*mirrored(gather), *gather)

    @cached_property
    def _schedules(
        self,
    ) -> dict[tuple[int | None, range], tuple[tuple[Phase, ...], Channel, tuple[float, ...]]]:
        return {}

    def _schedule(self, group: range) -> tuple[tuple[Phase, ...], Channel, tuple[float, ...]]:
        """Return an all-gather: its messages, their slowest channel, and float[phase].

        The array has the share of the bytes on the busiest link.
        """
        key = self.chips, group
        if key not in self._schedules:
            if self._whole(group):
                orders = _rotations(self._strides(group))
                parts = [level_gathers(group, order, 1 / len(orders))[0] for order in orders]
                single_orders = (level_gathers(group, order)[0] for order in orders)
                choices = [side_by_side(parts), *single_orders]
                gather = min(choices, key=lambda phases: sum(_busiest_links(phases)))
                channel = Channel(self.link.latency, self.link.bandwidth)
            else:
                chips = self._chain(group)
                gather = chain_gather(chips)
                hops = [self.channel(a, b) for a, b in pairwise(chips)]
                channel = Channel(
                    max(hop.latency for hop in hops), min(hop.bandwidth for hop in hops)
                )
            self._schedules[key] = gather, channel, tuple(_busiest_links(gather))
        return self._schedules[key]

    def _chain(self, group: range) -> list[int]:
        """Return the chips row by row, with every other row backwards.

        A last row that is not full starts at its first place.
        """
        rows = [list(chips) for _, chips in groupby(group, key=lambda chip: chip // self.dims[-1])]
        full = len(rows[-1]) == self.dims[-1]
        return [
            chip
            for i, row in enumerate(rows)
            for chip in (row if (i if full else len(rows) - 1 - i) % 2 == 0 else reversed(row))
        ]

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return all-reduce and all-gather, if all chips keep up with their phase's busiest link.

        With unequal dimensions, some of them open, chips at an end may be ahead of that link.
        A group that is no block of the grid must form a chain of neighbours.
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


def _rotations(levels: Sequence[Level]) -> list[list[Level]]:
    """Return one order of the levels for each level, in which it is first."""
    return [[*levels[i:], *levels[:i]] for i in range(len(levels))]


def _busiest_links(phases: Sequence[Phase]) -> list[float]:
    """Return float[phase]: the share of the bytes on the busiest link.

    All messages go to neighbours.
    """
    shares = []
    for phase in phases:
        load: defaultdict[tuple[int, int], float] = defaultdict(float)
        for message in phase:
            load[message.source, message.target] += message.share
        shares.append(max(load.values()))
    return shares


class Torus(Mesh):
    """A torus: a grid with joined ends, so a ring in each dimension."""

    wraps: ClassVar[bool] = True
