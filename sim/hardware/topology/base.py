"""The parts of every topology: routes, times in closed form, and the messages behind them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import cached_property, reduce
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator

from sim.inputs.fields import OfKind
from sim.inputs.values import Value
from sim.units import Bytes, BytesPerSecond, Count, Fraction, JoulesPerByte, Seconds


class Link(Value):
    """One direction of one cable."""

    latency: Seconds = Field(description="Latency of one hop [s].")
    bandwidth: BytesPerSecond = Field(description="Bandwidth of one direction of one cable [B/s].")
    energy: JoulesPerByte | None = Field(
        default=None,
        description="Energy of sending over the cable [J/B], for people; `power.link` counts.",
    )


class Channel(NamedTuple):
    """The latency and the bandwidth between two chips, as one message gets them."""

    latency: Seconds
    bandwidth: float  # B/s

    def time(self, nbytes: Bytes) -> Seconds:
        """Return the time of one message."""
        return self.latency + nbytes / self.bandwidth

    def with_software(self, latency: Seconds, efficiency: float) -> "Channel":
        """Return the channel with software's latency added, at `efficiency` of the bandwidth."""
        return Channel(self.latency + latency, self.bandwidth * efficiency)


AllReduce = Literal["one-shot", "two-shot", "ring", "hierarchical"]
# The algorithm of an all-reduce. After "hierarchical" comes the algorithm of the outermost level.
Algorithm = tuple[AllReduce, ...]
# How often each level carries the bytes of an all-to-all, from inside to outside.
Copies = tuple[float, ...]
Operation = Literal["all_reduce", "all_gather", "all_to_all"]
OPERATIONS: frozenset[Operation] = frozenset(("all_reduce", "all_gather", "all_to_all"))
Hop = tuple[int | str, int | str]  # from, to: a chip's number, or the name of a switch


class Segment(NamedTuple):
    """A part of a path, for one message at a time: a cable, or a chip's share of several."""

    hop: Hop
    latency: Seconds
    bandwidth: float  # B/s


class Message(NamedTuple):
    """One message of a collective, with `share` of its bytes.

    `pace` [B/s] is the bandwidth that the topology allots; None: the bandwidth of the cables.
    """

    source: int
    target: int
    share: float
    pace: float | None = None


# A chip sends its messages of a phase after it has received all messages of the phase before.
Phase = tuple[Message, ...]


def everyone_to_everyone(members: Sequence[int], share: float) -> Phase:
    """Return a message from each chip to each other chip.

    In turn k chip i sends to chip i + k, so that no chip receives two messages at the same time.
    """
    n = len(members)
    return tuple(
        Message(members[i], members[(i + turn) % n], share)
        for turn in range(1, n)
        for i in range(n)
    )


def side_by_side(columns: Sequence[Sequence[Phase]]) -> tuple[Phase, ...]:
    """Return the phases of several parts of a group that work at the same time."""
    return tuple(
        tuple(message for phase in phases for message in phase)
        for phases in zip(*columns, strict=True)
    )


def adding_phases(phases: int) -> int:
    """Return how many phases of an all-reduce add: the first half, with the one in the middle.

    The other phases only distribute the sum.
    """
    return (phases + 1) // 2


def one_shot_all_reduce(n: int, nbytes: Bytes, channel: Channel) -> Seconds:
    """Return the time of a one-phase all-reduce: every chip sends everything to every other chip.

    Left out: the additions, which are the topology's `reduction`.
    """
    return channel.time(nbytes) if n > 1 else 0.0


def two_shot_all_reduce(n: int, nbytes: Bytes, channel: Channel) -> Seconds:
    """Return the time of a reduce-scatter and an all-gather, each with an n-th of the bytes a peer.

    Left out: the additions, which are the topology's `reduction`.
    """
    return 2 * channel.time(nbytes / n) if n > 1 else 0.0


def all_to_all_gather(n: int, nbytes: Bytes, channel: Channel) -> Seconds:
    """Return the time of one phase in which every chip sends an n-th of the bytes to each other."""
    return channel.time(nbytes / n) if n > 1 else 0.0


class TopologyKeys(Value):
    """The keys that every topology has."""

    chips: Count | None = Field(
        default=None, description="Number of chips joined; default: those of the replica."
    )
    limit: Count | None = Field(
        default=None, description="Largest number of chips that it joins; default: no limit."
    )
    reduction: Seconds = Field(
        default=0.0,
        description="Extra time of each phase of a sum that adds: chips read, add and write "
        "what they received [s].",
    )
    collective_efficiency: Fraction | dict[str, Fraction] | None = Field(
        default=None,
        description="Share of the links' bandwidth that collectives reach, 0 to 1, also by chips "
        "of the group; default: the engine's.",
    )

    @field_validator("collective_efficiency")
    @classmethod
    def _by_chips(cls, shares: float | dict[str, float] | None) -> float | dict[str, float] | None:
        if isinstance(shares, dict) and not (shares and all(map(str.isdecimal, shares))):
            got = ", ".join(shares) or "nothing"
            raise ValueError(f"got {got}; expected numbers of chips, as {{2: 0.6, 8: 0.5}}")
        return shares

    def collectives_reach(self, chips: int) -> float | None:
        """Return the share of the bandwidth that collectives of so many chips reach.

        A group between two listed sizes has the share of the larger one, and one beyond all
        sizes that of the largest. None: the topology's file does not say.
        """
        shares = self.collective_efficiency
        if not isinstance(shares, dict):
            return shares
        sizes = sorted(map(int, shares))
        return shares[str(next((size for size in sizes if size >= chips), sizes[-1]))]


class Topology(TopologyKeys, ABC):
    """A way of joining chips."""

    @abstractmethod
    def route(self, a: int, b: int) -> tuple[Hop, ...]:
        """Return the hops from chip a to chip b; none if they are the same chip."""

    @abstractmethod
    def link_of(self, hop: Hop) -> Link:
        """Return the cable of a hop."""

    @abstractmethod
    def pair(self, group: range) -> Channel:
        """Return the channel of each pair of a group while all pairs communicate."""

    @property
    def takes_arrays(self) -> bool:
        """Whether times of collectives also take arrays of bytes. A user's own kind may not."""
        return type(self) in TOPOLOGY_KINDS.values()

    @property
    def most_chips(self) -> int | None:
        """The largest number of chips that it joins; None without a limit."""
        return self.chips or self.limit

    def sized(self, chips: int) -> Self:
        """Return the topology with `chips` chips, or with the larger number of its file.

        Raises: ValueError if that is beyond the limit, or the file has fewer than `chips`.
        """
        joined = self.chips or chips
        if joined > (self.limit or joined):
            raise ValueError(
                f"{self.noun()}: got {joined} chips; expected at most {self.limit}, its limit"
            )
        if chips > joined:
            raise ValueError(
                f"{self.noun()}: got a replica of {chips} chips; expected at most {joined}"
            )
        return self.model_copy(update={"chips": joined})

    def hops(self, a: int, b: int) -> int:
        """Return the number of hops from chip a to chip b."""
        return len(self.route(a, b))

    def channel(self, a: int, b: int) -> Channel:
        """Return the channel of a single message from a to b, without other traffic."""
        segments = self.segments(a, b)
        return Channel(
            sum(segment.latency for segment in segments),
            min((segment.bandwidth for segment in segments), default=math.inf),
        )

    def send(self, a: int, b: int, nbytes: Bytes) -> Seconds:
        """Return the time of one message: a latency for each hop, the bytes once."""
        return self.channel(a, b).time(nbytes)

    def segments(self, a: int, b: int) -> tuple[Segment, ...]:
        """Return the segments of a message from a to b, in order: the cables of its route."""
        links = ((hop, self.link_of(hop)) for hop in self.route(a, b))
        return tuple(Segment(hop, link.latency, link.bandwidth) for hop, link in links)

    def shift(self, group: range, nbytes: Bytes) -> Seconds:
        """Return the time from stage to stage.

        Each chip sends `nbytes` to the chip at the same place of the next stage, all together.
        Left out, unless a topology overrides it: cables that several of these messages share.
        """
        if (self.chips, group) not in self._shifts:
            self._shifts[self.chips, group] = tuple(
                {self.channel(chip, chip + len(group)) for chip in group}
            )
        return max(channel.time(nbytes) for channel in self._shifts[self.chips, group])

    @cached_property
    def _shifts(self) -> dict[tuple[int | None, range], tuple[Channel, ...]]:
        """The channels from a stage to the next, by (chips joined, group)."""
        return {}

    def equivalence_key(self, group: range) -> Hashable:
        """Return what the times of a group's collectives depend on, as well as its size.

        Groups of equal size and equal key take equal times.
        """
        return group

    def all_reduce(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time of the fastest all-reduce."""
        return self.fastest(group, nbytes, latency, efficiency)[0]

    def fastest(
        self,
        group: range,
        nbytes: Bytes,
        latency: Seconds = 0.0,
        efficiency: float = 1.0,
        allowed: Collection[AllReduce] = (),
    ) -> tuple[Seconds, Algorithm]:
        """Return the time until every chip has the sum, and the algorithm that is fastest.

        An empty `allowed` allows every algorithm.
        nbytes: may be an array; the algorithm is then the fastest for all of them, or ().
        Raises: ValueError if the topology has none of the allowed algorithms.
        """
        offered = self.with_additions(group, self.all_reduces(group, nbytes, latency, efficiency))
        times = {way: offered[way] for way in offered if way[0] in allowed or not allowed}
        if not times:
            expected = " or ".join(allowed)
            has = ", ".join(dict.fromkeys(algorithm[0] for algorithm in offered))
            raise ValueError(
                f"collectives: got {expected}; expected {has}, the all-reduce that the"
                f" {self.noun()} has for this group; try leaving collectives out"
            )
        fastest: Seconds = reduce(np.minimum, times.values())
        chosen = (way for way, time in times.items() if np.all(time == fastest))
        return fastest, min(chosen, default=())

    def with_additions(
        self, group: range, times: Mapping[Algorithm, Seconds]
    ) -> dict[Algorithm, Seconds]:
        """Return the times of `all_reduces`, with those of its additions."""
        return {
            way: time + self._additions("all_reduce", group, way) for way, time in times.items()
        }

    def reduce_scatter(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time until every chip has its share of the sum: a gather backwards."""
        gathered = self.all_gather(group, nbytes, latency, efficiency)
        return gathered + self._additions("all_gather", group)

    def _additions(self, operation: Operation, group: range, way: Algorithm = ()) -> Seconds:
        """Return the time of the additions of an all-reduce, or of an all-gather the other way.

        The second half of the phases of an all-reduce has none.
        """
        if not self.reduction or len(group) == 1:
            return 0.0
        # Equal groups have equally many phases, and their messages may be thousands.
        key = self.chips, len(group), self.equivalence_key(group), operation, way
        if key not in self._adding:
            phases = len(self.messages(operation, group, way))
            self._adding[key] = adding_phases(phases) if operation == "all_reduce" else phases
        return self.reduction * self._adding[key]

    @cached_property
    def _adding(self) -> dict[tuple[int | None, int, Hashable, Operation, Algorithm], int]:
        """The phases that add, by (chips joined, chips and key of the group, collective)."""
        return {}

    def all_reduces(
        self, group: range, nbytes: Bytes, latency: Seconds, efficiency: float
    ) -> dict[Algorithm, Seconds]:
        """Return the time of an all-reduce, by algorithm that the topology has for the group."""
        channel = self.pair(group).with_software(latency, efficiency)
        return {
            ("one-shot",): one_shot_all_reduce(len(group), nbytes, channel),
            ("two-shot",): two_shot_all_reduce(len(group), nbytes, channel),
        }

    def all_gather(
        self, group: range, nbytes: Bytes, latency: Seconds = 0.0, efficiency: float = 1.0
    ) -> Seconds:
        """Return the time until every chip has all `nbytes`, of which each chip held its share."""
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
        """Return the time in which every chip sends `nbytes`, an equal share to each, in one phase.

        Level i of a hierarchy carries `copies[i]` times the bytes. Below 1 it carries data for
        several chips of a node only once.
        """
        return all_to_all_gather(
            len(group), nbytes, self.pair(group).with_software(latency, efficiency)
        )

    def blocks(self, group: range) -> tuple[int, ...]:
        """Return how many chips a group has; in a hierarchy also how many nodes, racks and so on.

        Left out: levels of which the group has only one block.
        """
        return (len(group),)

    def messages(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> tuple[Phase, ...]:
        """Return the messages behind the closed form of a collective, phase by phase.

        `algorithm` belongs to an all-reduce. For an all-to-all it has the copies at each level.
        """
        if algorithm == ("one-shot",):
            return (everyone_to_everyone(group, 1.0),)
        part = everyone_to_everyone(group, 1 / len(group))
        return (part, part) if operation == "all_reduce" else (part,)

    def cables_crossed(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies = ()
    ) -> float:
        """Return the cables that a byte of a collective crosses, over all of its messages."""
        return sum(
            message.share * self.hops(message.source, message.target)
            for phase in self.messages(operation, group, algorithm)
            for message in phase
        )

    def uncontended(self, group: range) -> frozenset[Operation]:
        """Return the collectives whose messages meet on a cable only as their closed form says.

        For these, both fidelities give the same time. A topology promises none unless it overrides
        this, because its routes may differ from those that its closed forms assume.
        """
        return frozenset()


TOPOLOGY_KINDS: dict[str, type[Topology]] = {}
TopologyField = Annotated[Topology, OfKind(TOPOLOGY_KINDS, Topology)]
