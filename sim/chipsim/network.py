"""The cables of one replica at chip fidelity, each of which serves one message at a time.

This module has no clock and no SimPy.  A cable stores until when it is taken, and the machine
calls `take` when the head of a message arrives.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.hardware.topology import Algorithm, Copies, Hop, Message, Operation, Segment, Topology
from sim.inputs.errors import UserError
from sim.units import Seconds

TOLERANCE = 1e-9  # largest difference of the clock and a time computed beforehand [s]


class ScheduleError(UserError):
    """A schedule, made beforehand, that the machine cannot keep."""


class CableUse(NamedTuple):
    """A message on a cable, with start, end and label, for timelines."""

    start: Seconds
    end: Seconds
    label: str


@dataclass(eq=False, slots=True)
class Cable:
    """One direction of one cable, or a chip's share of several.

    Messages take it first come first served, each as a whole.
    free: when the last message leaves it [s].
    owner: the collective or step whose message has it, or had it last.
    waited: total time that messages of other owners waited [s].
    uses: recorded messages; None if they are not recorded.
    """

    name: str
    scheduled: bool = False
    free: Seconds = 0.0
    owner: object = None
    waited: Seconds = 0.0
    uses: list[CableUse] | None = None

    def take(self, now: Seconds, hold: Seconds, owner: object, label: str) -> Seconds:
        """Take the cable for `hold` and return when the message starts [s].

        It starts immediately, or when the cable is free.
        `waited` leaves out the wait for messages of the same owner, which is the owner's order.
        Raises: ScheduleError if a message waits for another owner in a scheduled network.
        """
        start = now
        if self.free > now:
            start = self.free
            if self.owner is not owner and start - now > TOLERANCE:
                if self.scheduled:
                    raise ScheduleError(
                        f"schedule: {label} clashes on the link {self.name}: it is due at "
                        f"{1e6 * now:.3f} us, and the link is taken until {1e6 * start:.3f} us"
                    )
                self.waited += start - now
        self.free, self.owner = start + hold, owner
        if self.uses is not None:
            self.uses.append(CableUse(start, self.free, label))
        return start


class PathSegment(NamedTuple):
    """A segment of a message's path.

    per_byte: time for each byte of the collective on the slowest segment so far [s/B], because
    of cut-through.
    """

    cable: Cable
    latency: Seconds
    per_byte: float


class Bundle(NamedTuple):
    """Messages of a collective that a chip sends together over several cables.

    per_byte: time that one message takes its cable for each byte of the collective [s/B].
    length: messages on each cable, one behind the other.
    onward: for each message, the segments after its first cable; empty if no message has any.
    targets: of each message. Messages on one cable are neighbours.
    """

    cables: tuple[Cable, ...]
    latency: Seconds
    per_byte: float
    length: int
    onward: tuple[tuple[PathSegment, ...], ...]
    targets: tuple[int, ...]

    def singly(self) -> Iterator["Bundle"]:
        """Yield the messages of each cable as a bundle."""
        for number, cable in enumerate(self.cables):
            own = slice(number * self.length, (number + 1) * self.length)
            yield self._replace(cables=(cable,), onward=self.onward[own], targets=self.targets[own])


@dataclass(eq=False, slots=True)
class Outboxes:
    """The messages of a collective of one group.

    bundles: those that each chip sends, by phase.
    expected: number of messages for each chip, by phase.
    """

    bundles: dict[int, list[list[Bundle]]]
    expected: list[dict[int, int]]


class LinkException(NamedTuple):
    """A link with `speed` times its bandwidth in both directions; 0 is a dead link."""

    hop: Hop
    speed: float


@dataclass(eq=False)
class Network:
    """The cables of one replica, each created on its first use."""

    topology: Topology
    scheduled: bool = False
    exceptions: Sequence[LinkException] = ()
    recording: bool = False
    cables: dict[Hop, Cable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.speeds: dict[Hop, float] = {}
        for (a, b), speed in self.exceptions:
            self.speeds |= {(a, b): speed, (b, a): speed}
        self._paths: dict[tuple[int, int], list[tuple[Segment, float]]] = {}

    def cable(self, hop: Hop) -> Cable:
        """Return the cable of a hop."""
        if hop not in self.cables:
            self.cables[hop] = Cable(
                link_name(hop), self.scheduled, uses=[] if self.recording else None
            )
        return self.cables[hop]

    def path(self, a: int, b: int) -> list[tuple[Segment, float]]:
        """Return the segments from a to b, each with its share of the bandwidth.

        The path avoids dead links.
        Raises: UserError if there is no other path.
        """
        if (a, b) not in self._paths:
            self._paths[a, b] = self._living_path(a, b)
        return self._paths[a, b]

    def _living_path(self, a: int, b: int) -> list[tuple[Segment, float]]:
        """Return a new result of `path`, which keeps it for other collectives."""
        speeds, segments = self.speeds, []
        if not speeds:
            return [(segment, 1.0) for segment in self.topology.segments(a, b)]
        for i, j in self._detour(a, b):
            route = self.topology.route(i, j)
            slowest = min((speeds.get(hop, 1.0) for hop in route), default=1.0)
            segments += [
                (segment, speeds.get(segment.hop, 1.0) if segment.hop in route else slowest)
                for segment in self.topology.segments(i, j)
            ]
        return segments

    def _detour(self, a: int, b: int) -> list[tuple[int, int]]:
        """Return the pairs of chips on the path from a to b with the least latency (Dijkstra).

        Without a dead link this is the pair (a, b).  Paths with equal latency are chosen by chip
        number, so that results are deterministic; SciPy's routine does not promise an order.
        """

        def alive(i: int, j: int) -> bool:
            return all(self.speeds.get(hop, 1.0) > 0 for hop in self.topology.route(i, j))

        if alive(a, b):
            return [(a, b)]
        chips = range(self.topology.chips or 0)
        reached: dict[int, int] = {}
        heap = [(0.0, a, a)]
        while heap:
            latency, chip, before = heapq.heappop(heap)
            if chip in reached:
                continue
            reached[chip] = before
            if chip == b:
                pieces = [(reached[b], b)]
                while pieces[0][0] != a:
                    pieces.insert(0, (reached[pieces[0][0]], pieces[0][0]))
                return pieces
            for other in chips:
                if other not in reached and alive(chip, other):
                    heapq.heappush(
                        heap, (latency + self.topology.channel(chip, other).latency, other, chip)
                    )
        dead = ", ".join(
            link_name(hop) for hop in self.topology.route(a, b) if self.speeds.get(hop, 1.0) == 0
        )
        raise UserError(
            f"exceptions: got {dead} dead; expected a path from chip {a} to chip {b}, and no other"
            " chip leads around it; try a speed above 0"
        )

    def outboxes(
        self, operation: Operation, group: range, algorithm: Algorithm | Copies
    ) -> Outboxes:
        """Return the messages of a collective with the cables that they take."""
        phases = self.topology.messages(operation, group, algorithm)
        sent: dict[int, list[list[Message]]] = {chip: [[] for _ in phases] for chip in group}
        for number, phase in enumerate(phases):
            for message in phase:
                sent[message.source][number].append(message)
        last = len(phases) - 1
        bundles = {
            chip: [self._bundles(messages, n == last) for n, messages in enumerate(some)]
            for chip, some in sent.items()
        }
        expected = [
            dict(Counter([*group, *(message.target for message in phase)])) for phase in phases
        ]
        return Outboxes(bundles, expected)

    def _bundles(self, messages: Iterable[Message], last: bool) -> list[Bundle]:
        """Return the bundles that one chip sends in a phase.

        Messages on one cable form a train if other cables follow. They also do in the last phase,
        where chips wait only for the barrier. Otherwise the arrival of each message counts.
        Messages with one cable on their path leave before those with several.
        """
        paths = sorted(
            ((self.segments(message), message.target) for message in messages),
            key=lambda path: len(path[0]) > 1,
        )
        trains: defaultdict[tuple[PathSegment, bool, int], list[int]] = defaultdict(list)
        for number, (segments, _) in enumerate(paths):
            continues = len(segments) > 1
            place = 0 if continues or last else number
            trains[segments[0], continues, place].append(number)
        alike: defaultdict[tuple[Seconds, float, int, bool, int], list[list[int]]] = defaultdict(
            list
        )
        before: Counter[Cable] = Counter()  # trains on the same cable
        for (first, continues, _), train in trains.items():
            cable, latency, per_byte = first
            alike[latency, per_byte, len(train), continues, before[cable]].append(train)
            before[cable] += 1
        bundles = []
        for (latency, per_byte, length, continues, _), equal in alike.items():
            cables = tuple(paths[train[0]][0][0].cable for train in equal)
            sent = [paths[number] for train in equal for number in train]
            onward = tuple(segments[1:] for segments, _ in sent) if continues else ()
            targets = tuple(target for _, target in sent)
            bundles.append(Bundle(cables, latency, per_byte, length, onward, targets))
        return bundles

    def segments(self, message: Message) -> tuple[PathSegment, ...]:
        """Return the path of a message, with its times on the cables."""
        slowest, segments = 0.0, []
        for segment, speed in self.path(message.source, message.target):
            slowest = max(slowest, message.share / ((message.pace or segment.bandwidth) * speed))
            segments.append(PathSegment(self.cable(segment.hop), segment.latency, slowest))
        return tuple(segments)


def link_name(hop: Hop) -> str:
    """Return the name of a hop: '3 -> 9', '3 -> switch', 'bus'."""
    return f"{hop[0]} -> {hop[1]}" if hop[0] != hop[1] else str(hop[0])
