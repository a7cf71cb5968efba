"""Collectives and single messages on SimPy, over the cables of one replica.

A collective ends for all its chips when its last message arrives.  Before that each chip
continues as soon as its own messages arrive.
A message whose path is one cable is one event, else one event for each cable.  It takes the next
cable when its head arrives there (virtual cut-through). Messages in lock step share events.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import simpy
from simpy.events import Event

from sim.chipsim.lock_step import LockStep
from sim.chipsim.network import Bundle, Cable, Network, Onward, Outboxes
from sim.cost.collectives import Exchange
from sim.hardware.topology import Message, adding_phases
from sim.results.rows import Traffic
from sim.units import Seconds

SimProcess = Generator[simpy.Event, Any, Any]
_FREE = attrgetter("free")


@dataclass(eq=False, slots=True)
class Shipment:
    """What a step sends to the next stage, or what one run of a collective sends.

    Its own messages wait for each other in its own order, which is no contention.
    label: for timelines.
    """

    nbytes: float
    label: str


@dataclass(eq=False)
class CollectiveRun:
    """A collective of one group: its messages, and the barrier of the run that is under way."""

    outboxes: Outboxes
    barrier: "Barrier | None" = None
    runs: int = 0
    nbytes: float = 0.0  # over all runs


class Barrier:
    """A barrier of one run of a collective.

    It opens when every chip has sent its messages and all messages have arrived.
    delays: the wait of each chip before each phase [s].
    left: chips that have not sent all their messages, and arrivals that are under way.
    missing: for each phase but the last, the messages that each chip still expects.
    waiting: for each of these phases, the chips that wait, with the events that let them go on.
    """

    __slots__ = (
        "collective_run", "delays", "left", "missing", "over", "shipment", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        env: simpy.Environment,
        collective_run: CollectiveRun,
        shipment: Shipment,
        delays: Sequence[Seconds],
    ) -> None:
        outboxes = collective_run.outboxes
        self.collective_run, self.shipment, self.delays = collective_run, shipment, delays
        self.left = len(outboxes.bundles)
        self.over = Event(env)
        self.missing = [dict(expected) for expected in outboxes.expected[:-1]]
        self.waiting: list[dict[int, Event]] = [{} for _ in self.missing]

    def count(self, _: object = None) -> None:
        """Count a chip that has sent its messages, or an arrival; the last one opens it."""
        self.left -= 1
        if not self.left:
            self.collective_run.barrier = None
            self.collective_run.runs += 1
            self.over.succeed()

    def arrival(self, phase: int, targets: Sequence[int]) -> Callable[[object], None]:
        """Count messages that leave now, and return the callback for their arrival at chips.

        After the last phase no chip waits for its own messages, only for the barrier.
        """
        self.left += 1
        return self.count if phase == len(self.missing) else partial(self.arrive, phase, targets)

    def arrive(self, phase: int, targets: Sequence[int], _: object) -> None:
        """Count messages that arrive together. A chip goes on after the last one of its phase."""
        missing, waiting = self.missing[phase], self.waiting[phase]
        for target in targets:
            missing[target] -= 1
            if not missing[target] and target in waiting:
                waiting[target].succeed()
        self.count()


@dataclass(eq=False, slots=True)
class Path:
    """The way of single messages from one chip to another, with their number and their bytes."""

    segments: Sequence[Onward]
    messages: int = 0
    nbytes: float = 0.0


class Transit:
    """A message on a path of several cables, which takes each when its head arrives there."""

    __slots__ = ("arrived", "segments", "shipment", "taken", "waits")

    def __init__(
        self,
        waits: LockStep,
        segments: Sequence[Onward],
        shipment: Shipment,
        arrived: Callable[[object], None],
    ) -> None:
        self.waits, self.segments, self.shipment, self.arrived = waits, segments, shipment, arrived
        self.taken = 0  # cables

    def __call__(self, _: object) -> None:
        """Take the next cable: the head is there."""
        shipment, now = self.shipment, self.waits.env.now
        cable, latency, per_byte = self.segments[self.taken]
        hold = shipment.nbytes * per_byte
        start = cable.take(now, hold, shipment, shipment.label)
        self.taken += 1
        if self.taken < len(self.segments):
            self.waits.timeout(start - now + latency).callbacks.append(self)
        else:
            self.waits.timeout(start - now + latency + hold).callbacks.append(self.arrived)


class BoundCollective(NamedTuple):
    """A collective as a stage's chips execute it, with one run for each rank.

    nbytes: bytes that the link would carry at full efficiency in the same time.
    latency: before each phase [s].  reduction: before each phase that adds [s].
    """

    label: str
    collective_runs: Sequence[CollectiveRun]
    nbytes: float
    latency: Seconds
    reduction: Seconds


class Transport:
    """The transport of a replica: sends single messages, executes collectives, counts traffic."""

    def __init__(self, env: simpy.Environment, network: Network) -> None:
        self.env, self.network, self.waits = env, network, LockStep(env)
        self.collective_runs: dict[tuple[object, ...], list[CollectiveRun]] = {}
        self.paths: dict[tuple[int, int], Path] = {}

    def bind(self, label: str, exchange: Exchange) -> BoundCollective:
        """Return a collective with the runs of its ranks."""
        key = (exchange.operation, exchange.groups, exchange.algorithms)
        if key not in self.collective_runs:
            self.collective_runs[key] = [
                CollectiveRun(self.network.outboxes(exchange.operation, group, algorithm))
                for group, algorithm in zip(exchange.groups, exchange.algorithms, strict=True)
            ]
        nbytes = exchange.nbytes / exchange.efficiency
        adds = exchange.operation == "all_reduce"
        reduction = self.network.topology.reduction if adds else 0.0
        return BoundCollective(
            label, self.collective_runs[key], nbytes, exchange.latency, reduction
        )

    def send(
        self, source: int, target: int, shipment: Shipment, arrived: Callable[[object], None]
    ) -> None:
        """Send a single message from chip to chip, and call `arrived` when it is there."""
        path = self.paths.get((source, target))
        if path is None:
            segments = self.network.per_byte(Message(source, target, 1.0))
            path = self.paths[source, target] = Path([Onward(*segment) for segment in segments])
        path.messages += 1
        path.nbytes += shipment.nbytes
        Transit(self.waits, path.segments, shipment, arrived)(None)

    def execute(self, chip: int, step: BoundCollective, rank: int) -> SimProcess:
        """Execute a chip's part in a collective of a rank.

        In each phase the chip sends its messages and waits for its own.  Then it waits for the
        barrier.
        """
        env, runs, timeout = self.env, step.collective_runs, self.waits.timeout
        collective_run = runs[rank if len(runs) > 1 else 0]
        barrier = collective_run.barrier or self.begin(collective_run, step)
        shipment, recording = barrier.shipment, self.network.recording
        phases = collective_run.outboxes.bundles[chip]
        for phase, (bundles, delay) in enumerate(zip(phases, barrier.delays, strict=True)):
            if delay:
                yield timeout(delay)
            now = env.now
            for bundle in bundles:
                cables, latency, per_byte, length, onward, targets = bundle
                free = max(map(_FREE, cables)) <= now
                start = now if free else _start_behind(cables, shipment)
                if onward or recording or start is None:
                    self._send_singly(bundle, barrier, phase)
                    continue
                until = start + shipment.nbytes * per_byte * length
                for cable in cables:
                    cable.free, cable.owner = until, shipment
                # One event for messages that leave together and arrive together.
                arrival = timeout(until - now + latency)
                arrival.callbacks.append(barrier.arrival(phase, targets))
            if phase < len(barrier.missing) and barrier.missing[phase][chip]:
                event = barrier.waiting[phase][chip] = Event(env)
                yield event
        barrier.count()
        yield barrier.over

    def begin(self, collective_run: CollectiveRun, step: BoundCollective) -> Barrier:
        """Begin a run of a collective, and return its barrier."""
        phases = len(collective_run.outboxes.expected)
        adding = adding_phases(phases)
        delays = [step.latency + step.reduction * (phase < adding) for phase in range(phases)]
        shipment = Shipment(step.nbytes, step.label)
        collective_run.barrier = Barrier(self.env, collective_run, shipment, delays)
        collective_run.nbytes += step.nbytes
        return collective_run.barrier

    def _send_singly(self, bundle: Bundle, barrier: Barrier, phase: int) -> None:
        """Send the messages of a bundle one by one, each on its cable when that is free."""
        shipment, now, length = barrier.shipment, self.env.now, bundle.length
        hold = shipment.nbytes * bundle.per_byte * length
        for number, cable in enumerate(bundle.cables):
            targets = bundle.targets[number * length : (number + 1) * length]
            arrived = barrier.arrival(phase, targets)
            delay = cable.take(now, hold, shipment, shipment.label) - now + bundle.latency
            if bundle.onward:
                arrived = Transit(self.waits, bundle.onward, shipment, arrived)
            else:
                delay += hold
            self.waits.timeout(delay).callbacks.append(arrived)

    @property
    def traffic(self) -> Traffic:
        """The messages of each link, its busy time and the time that messages waited for it."""
        links = {cable: [0, 0.0] for cable in self.network.cables.values()}

        def carried(cable: Cable, messages: int, seconds: Seconds) -> None:
            links[cable][0] += messages
            links[cable][1] += seconds

        for path in self.paths.values():
            for segment in path.segments:
                carried(segment.cable, path.messages, path.nbytes * segment.per_byte)
        for collective_run in (run for ranks in self.collective_runs.values() for run in ranks):
            runs, nbytes = collective_run.runs, collective_run.nbytes
            for bundle in (
                b
                for phases in collective_run.outboxes.bundles.values()
                for phase in phases
                for b in phase
            ):
                for cable in bundle.cables:
                    carried(cable, runs * bundle.length, nbytes * bundle.per_byte * bundle.length)
                for segment in bundle.onward:
                    carried(segment.cable, runs, nbytes * segment.per_byte)
        return Traffic(
            {cable.name: (int(n), seconds, cable.waited) for cable, (n, seconds) in links.items()}
        )


def _start_behind(cables: Sequence[Cable], shipment: Shipment) -> Seconds | None:
    """Return when messages can start on some cables behind others of their own collective.

    None if the cables become free at different times, or another collective has one.
    """
    free = cables[0].free
    alike = all(cable.free == free and cable.owner is shipment for cable in cables)
    return free if alike else None
