"""The cables of one replica as messages find them at chip fidelity: each serves one message at a time.

No clock of its own and no SimPy: a cable knows until when it is taken, and the machine asks it when a message's head is there.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.hardware.topology import Algorithm, Copies, Hop, Message, Operation, Segment, Topology
from sim.inputs.errors import UserError
from sim.units import Seconds

TOLERANCE = 1e-9  # s; how far a time computed beforehand and the clock may differ


class ScheduleError(UserError):
    """A schedule made beforehand that the machine cannot keep."""


class Use(NamedTuple):
    """A message on a cable: from when to when, and what it was."""

    start: Seconds
    end: Seconds
    label: str


@dataclass(eq=False, slots=True)
class Cable:
    """One direction of one cable, or a chip's share of several.  Messages take it first come first served, each as a whole."""

    name: str
    scheduled: bool = False
    free: Seconds = 0.0
    owner: object = None  # the collective, or the passage, whose message has it or had it last
    waited: Seconds = 0.0
    uses: list[Use] | None = None  # where they are to be remembered

    def take(self, now: Seconds, hold: Seconds, owner: object, label: str) -> Seconds:
        """When the message whose head is here goes on: at once, or when the cable is free; it holds the cable for `hold`.

        Waiting for messages of the same owner is the owner's own order, and is not counted.  In a scheduled network there is no
        other.  Raises: ScheduleError where messages of two owners clash there.
        """
        start = now
        if self.free > now:
            start = self.free
            if self.owner is not owner and start - now > TOLERANCE:
                if self.scheduled:
                    raise ScheduleError(
                        f"schedule: {label} clashes on the link {self.name}: it is due at {1e6 * now:.3f} us, "
                        f"and the link is taken until {1e6 * start:.3f} us"
                    )
                self.waited += start - now
        self.free, self.owner = start + hold, owner
        if self.uses is not None:
            self.uses.append(Use(start, self.free, label))
        return start


class Onward(NamedTuple):
    """A later leg of a message's way.  Seconds for each of the collective's bytes: the slowest so far counts (cut-through)."""

    cable: Cable
    latency: Seconds
    per_byte: float


class Bundle(NamedTuple):
    """Messages of a collective that a chip sends alike: over several cables at once, `length` one behind the other on each."""

    cables: tuple[Cable, ...]
    latency: Seconds
    per_byte: float  # seconds for each byte of the collective that one message takes its cable
    length: int
    onward: tuple[Onward, ...]  # the way after that; only a message by itself has such
    targets: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Outboxes:
    """A collective of one group, message by message: for each chip what it sends in each phase, and how much it is sent."""

    bundles: dict[int, list[list[Bundle]]]
    expected: list[dict[int, int]]
    messages: int


class LinkException(NamedTuple):
    """A link that is not as the topology says: at `speed` times its bandwidth, dead where that is 0.  Both directions."""

    hop: Hop
    speed: float


@dataclass(eq=False)
class Network:
    """The cables of one replica, made when they are first used."""

    topology: Topology
    scheduled: bool = False
    exceptions: Sequence[LinkException] = ()
    recording: bool = False
    cables: dict[Hop, Cable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.speeds: dict[Hop, float] = {}
        for (a, b), speed in self.exceptions:
            self.speeds |= {(a, b): speed, (b, a): speed}
        self._ways: dict[tuple[int, int], list[tuple[Segment, float]]] = {}

    def cable(self, hop: Hop) -> Cable:
        if hop not in self.cables:
            self.cables[hop] = Cable(
                link_name(hop), self.scheduled, uses=[] if self.recording else None
            )
        return self.cables[hop]

    def way(self, a: int, b: int) -> list[tuple[Segment, float]]:
        """What a message from a to b takes, and what part of its bandwidth each leg has; round the links that are dead.

        Raises: UserError where there is no way round.
        """
        speeds = self.speeds
        if not speeds:
            return [(segment, 1.0) for segment in self.topology.segments(a, b)]
        if (a, b) not in self._ways:
            segments: list[tuple[Segment, float]] = []
            for i, j in self._round(a, b):
                route = self.topology.route(i, j)
                slowest = min((speeds.get(hop, 1.0) for hop in route), default=1.0)
                segments += [
                    (segment, speeds.get(segment.hop, 1.0) if segment.hop in route else slowest)
                    for segment in self.topology.segments(i, j)
                ]
            self._ways[a, b] = segments
        return self._ways[a, b]

    def _round(self, a: int, b: int) -> list[tuple[int, int]]:
        """From a to b in one piece, or from chip to chip round dead links: the way with the least latency (Dijkstra)."""

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
            f"no way from chip {a} to chip {b}: {dead} is dead, and no other chip leads round it"
        )

    def outboxes(self, operation: Operation, group: range, way: Algorithm | Copies) -> Outboxes:
        """A collective's messages with the cables they take."""
        phases = self.topology.messages(operation, group, way)
        sent: dict[int, list[list[Message]]] = {chip: [[] for _ in phases] for chip in group}
        for number, phase in enumerate(phases):
            for message in phase:
                sent[message.source][number].append(message)
        last = len(phases) - 1
        bundles = {
            chip: [self._bundles(each, n == last) for n, each in enumerate(some)]
            for chip, some in sent.items()
        }
        expected = [
            dict.fromkeys(group, 0) | Counter(message.target for message in phase)
            for phase in phases
        ]
        return Outboxes(bundles, expected, sum(map(len, phases)))

    def _bundles(self, messages: Iterable[Message], last: bool) -> list[Bundle]:
        """What one chip sends in a phase.

        In the last phase nobody waits for one message rather than another, so those on one cable go as a train; before, each
        tells when it has come.
        """
        trains: defaultdict[tuple[Cable, Seconds, float, int], list[int]] = defaultdict(list)
        single = []
        for number, message in enumerate(messages):
            (cable, latency, per_byte), *onward = self.per_byte(message)
            if onward:
                segments = tuple(Onward(*segment) for segment in onward)
                single.append(Bundle((cable,), latency, per_byte, 1, segments, (message.target,)))
            else:
                trains[cable, latency, per_byte, 0 if last else number].append(message.target)
        alike: defaultdict[tuple[Seconds, float, int, int], list[tuple[Cable, list[int]]]] = (
            defaultdict(list)
        )
        before: Counter[Cable] = Counter()  # trains on the same cable
        for (cable, latency, per_byte, _), targets in trains.items():
            alike[latency, per_byte, len(targets), before[cable]].append((cable, targets))
            before[cable] += 1
        together = []
        for (latency, per_byte, length, _), sends in alike.items():
            cables = tuple(cable for cable, _ in sends)
            together.append(
                Bundle(
                    cables,
                    latency,
                    per_byte,
                    length,
                    (),
                    tuple(t for _, targets in sends for t in targets),
                )
            )
        return together + single

    def per_byte(self, message: Message) -> list[tuple[Cable, Seconds, float]]:
        """A message's way: cables, latencies, seconds for each byte of its collective at the narrowest cable so far."""
        slowest, segments = 0.0, []
        for segment, speed in self.way(message.source, message.target):
            slowest = max(slowest, message.share / ((message.pace or segment.bandwidth) * speed))
            segments.append((self.cable(segment.hop), segment.latency, slowest))
        return segments


def link_name(hop: Hop) -> str:
    """'3 -> 9', '3 -> switch', 'bus'."""
    return f"{hop[0]} -> {hop[1]}" if hop[0] != hop[1] else str(hop[0])
