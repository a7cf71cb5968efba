"""What every way of joining chips answers: routes, times in closed form, and the messages that the closed forms stand for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self

from sim.inputs.fields import OfKind
from sim.inputs.values import Value
from sim.units import Bytes, BytesPerSecond, Count, JoulesPerByte, Seconds


class Link(Value):
    """One direction of one cable."""

    latency: Seconds
    bandwidth: BytesPerSecond
    energy: JoulesPerByte | None = None


class Channel(NamedTuple):
    """What a message between two chips finds: the latency of its way and the bandwidth it gets."""

    latency: Seconds
    bandwidth: float  # B/s

    def time(self, nbytes: Bytes) -> Seconds:
        return self.latency + nbytes / self.bandwidth

    def with_software(self, latency: Seconds, efficiency: float) -> "Channel":
        """The lane as software finds it: later by `latency`, at `efficiency` of the bandwidth."""
        return Channel(self.latency + latency, self.bandwidth * efficiency)


AllReduce = Literal["one-shot", "two-shot", "ring", "hierarchical"]
Algorithm = tuple[
    AllReduce, ...
]  # of an all-reduce; one that goes by levels says after "hierarchical" what it does at the last
Copies = tuple[
    float, ...
]  # of an all-to-all: how often each level, from inside to outside, carries its bytes
Operation = Literal["all_reduce", "all_gather", "all_to_all"]
Hop = tuple[int | str, int | str]  # from, to: a chip's number, or the name of a switch


class Segment(NamedTuple):
    """A piece of a message's way that one message has for itself at a time: a cable, or a chip's share of several."""

    hop: Hop
    latency: Seconds
    bandwidth: float  # B/s


class Message(NamedTuple):
    """One message of a collective: `share` of its bytes, at `pace` B/s where the topology allots one, else as the cables go."""

    source: int
    target: int
    share: float
    pace: float | None = None


Phase = tuple[
    Message, ...
]  # a chip sends its messages of a phase when all those of the phase before have reached it


def everyone_to_everyone(members: Sequence[int], share: float, pace: float | None = None) -> Phase:
    """A message from each to each.  In turn k the i-th sends to the i+k-th: nobody is sent two at once."""
    n = len(members)
    return tuple(
        Message(members[i], members[(i + turn) % n], share, pace)
        for turn in range(1, n)
        for i in range(n)
    )


def side_by_side(columns: Sequence[Sequence[Phase]]) -> tuple[Phase, ...]:
    """The phases of several parts of a group that work at once."""
    return tuple(
        tuple(message for phase in phases for message in phase)
        for phases in zip(*columns, strict=True)
    )


def mirrored(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Return the reduce-scatter that undoes an all-gather: its messages backwards, the last phase first."""
    return tuple(
        tuple(m._replace(source=m.target, target=m.source) for m in phase)
        for phase in reversed(phases)
    )


def chain_gather(chips: Sequence[int]) -> tuple[Phase, ...]:
    """Return the all-gather along a chain: in n-1 phases each chip passes on, both ways, what it has last received."""
    n = len(chips)
    return tuple(
        (
            *(Message(chips[i], chips[i + 1], 1 / n) for i in range(phase, n - 1)),
            *(Message(chips[i], chips[i - 1], 1 / n) for i in range(1, n - phase)),
        )
        for phase in range(n - 1)
    )


def adding_phases(phases: int) -> int:
    """Return how many phases of an all-reduce add: the first half, and the one in the middle; the others only distribute."""
    return (phases + 1) // 2


def one_shot_all_reduce(n: int, nbytes: Bytes, channel: Channel) -> Seconds:
    """Everyone sends everything to everyone at once: one phase.  The additions are the topology's `reduction`."""
    return channel.time(nbytes) if n > 1 else 0.0


def two_shot_all_reduce(n: int, nbytes: Bytes, channel: Channel) -> Seconds:
    """Reduce-scatter, then all-gather: two phases of an n-th of the bytes to each peer."""
    return 2 * channel.time(nbytes / n) if n > 1 else 0.0


def all_to_all_gather(n: int, nbytes: Bytes, channel: Channel) -> Seconds:
    """Everyone sends its n-th of the result to everyone: one phase."""
    return channel.time(nbytes / n) if n > 1 else 0.0


class Topology(Value, ABC):
    """A way of joining chips.

    `chips` is the number of chips joined: the replica's own unless the file says otherwise.  `limit` is the most it can join.
    `reduction` is what a phase of an all-reduce that adds takes beyond its messages: chips read, add and write what they received.
    """

    chips: Count | None = None
    limit: Count | None = None
    reduction: Seconds = 0.0

    @abstractmethod
    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        """The hops from chip a to chip b, none where they are one."""

    @abstractmethod
    def link_of(self, hop: Hop) -> Link:
        """The cable that a hop runs over."""

    @abstractmethod
    def pair(self, group: range) -> Channel:
        """What each pair of a group finds while all its pairs talk at once."""

    def sized(self, chips: int) -> Self:
        """The topology joining `chips` chips, or as many more as the file says.  Raises: ValueError where it cannot."""
        joined = self.chips or chips
        if joined > (self.limit or joined):
            raise ValueError(
                f"the {self.noun()} joins {self.limit} chips at most, and {joined} are asked for"
            )
        if chips > joined:
            raise ValueError(f"the {self.noun()} joins {joined} chips, and a replica has {chips}")
        return self.model_copy(update={"chips": joined})

    def hops(self, a: int, b: int) -> int:
        return len(self.route(a, b))

    def channel(self, a: int, b: int) -> Channel:
        """What one message finds on the way from a to b, alone."""
        segments = self.way(a, b)
        return Channel(
            sum(segment.latency for segment in segments),
            min((segment.bandwidth for segment in segments), default=math.inf),
        )

    def send(self, a: int, b: int, nbytes: Bytes) -> Seconds:
        """Point to point: a latency for each hop, the bytes once."""
        return self.channel(a, b).time(nbytes)

    def way(self, a: int, b: int) -> tuple[Segment, ...]:
        """What a message from a to b takes one after the other: the cables of its route."""
        links = ((hop, self.link_of(hop)) for hop in self.route(a, b))
        return tuple(Segment(hop, link.latency, link.bandwidth) for hop, link in links)

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        """From stage to stage: each chip of the group sends `nbytes` to its place in the next one, all at once.

        Left out, but where a topology says otherwise: cables that several of these messages share.
        """
        if (self.chips, group) not in self._shifts:
            self._shifts[self.chips, group] = tuple(
                {self.channel(chip, chip + len(group)) for chip in group}
            )
        return max(channel.time(nbytes) for channel in self._shifts[self.chips, group])

    @cached_property
    def _shifts(self) -> dict[tuple[int | None, range], tuple[Channel, ...]]:
        """The lanes from a stage to the next one, by the joined chips (copies share it) and the stage's."""
        return {}

    def equivalence_key(self, group: range) -> Hashable:
        """What a group's collectives depend on beside its size: they take as long in groups that are alike in it."""
        return group

    def all_reduce(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        allowed: Collection[AllReduce] = (),
    ) -> Seconds:
        """Every chip of the group ends with the sum of all: by the fastest way that is allowed; any, where none is named.

        Raises: ValueError where the topology has none of those that are allowed.
        """
        return self.fastest(group, nbytes, latency, efficiency, allowed)[0]

    def fastest(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds,
        efficiency: float,
        allowed: Collection[AllReduce] = (),
    ) -> tuple[Seconds, Algorithm]:
        """The time of an all-reduce and the way that it goes.  Raises: as `all_reduce`."""
        offered = self.all_reduces(group, nbytes, latency, efficiency)
        times = [
            (time + self._additions(group, way), way)
            for way, time in offered.items()
            if way[0] in allowed or not allowed
        ]
        if not times:
            asked, has = " or ".join(allowed), ", ".join(dict.fromkeys(way[0] for way in offered))
            raise ValueError(
                f"the {self.noun()} has no {asked} all-reduce for this group; it has {has}"
            )
        return min(times)

    def _additions(self, group: range, way: Algorithm) -> Seconds:
        """Return what the additions of an all-reduce take: those of the first half of its phases; the others only distribute."""
        if not self.reduction or len(group) == 1:
            return 0.0
        key = self.chips, group, way
        if key not in self._adding:
            self._adding[key] = adding_phases(len(self.messages("all_reduce", group, way)))
        return self.reduction * self._adding[key]

    @cached_property
    def _adding(self) -> dict[tuple[int | None, range, Algorithm], int]:
        return {}

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """How long an all-reduce takes in each of the ways that the topology offers to the group."""
        channel = self.pair(group).with_software(latency, efficiency)
        return {
            ("one-shot",): one_shot_all_reduce(len(group), nbytes, channel),
            ("two-shot",): two_shot_all_reduce(len(group), nbytes, channel),
        }

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Every chip of the group ends with all `nbytes`, of which each held its share."""
        return all_to_all_gather(
            len(group), nbytes, self.pair(group).with_software(latency, efficiency)
        )

    def all_to_all(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        copies: Copies = (),
    ) -> Seconds:
        """Every chip of the group sends `nbytes`, an even share of them to each chip: one phase.

        A hierarchy's levels each carry `copies` times as much.  What goes to several chips of a node goes there once.
        """
        return all_to_all_gather(
            len(group), nbytes, self.pair(group).with_software(latency, efficiency)
        )

    def blocks(self, group: range) -> tuple[int, ...]:
        """How many chips a group has, and in a hierarchy how many nodes, racks and so on, as far as it has several."""
        return (len(group),)

    def messages(
        self, operation: Operation, group: range, way: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """What the closed form of a collective stands for, message by message.

        `way` is that of an all-reduce.  Of an all-to-all it has the copies at each level.
        """
        if way == ("one-shot",):
            return (everyone_to_everyone(group, 1.0),)
        part = everyone_to_everyone(group, 1 / len(group))
        return (part, part) if operation == "all_reduce" else (part,)

    def uncontended(self, group: range) -> frozenset[Operation]:
        """The collectives whose messages do not meet on a cable but as their closed form says: there the two agree."""
        return frozenset(("all_reduce", "all_gather", "all_to_all"))


TOPOLOGY_KINDS: dict[str, type[Topology]] = {}
TopologyField = Annotated[Topology, OfKind(TOPOLOGY_KINDS, Topology)]
