"""Collectives and single messages on SimPy, over the cables of one replica.

A collective ends for all its chips when its last message arrives.  Before that each chip
continues as soon as its own messages arrive.
A message takes the next cable of its path when its head arrives there (virtual cut-through).  When
it takes the last one, its arrival is known.  Chips wait for the last arrival (`LastArrival`).
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import simpy

from sim.chipsim.arrivals import LastArrival
from sim.chipsim.lock_step import LockStep
from sim.chipsim.network import Bundle, Cable, Network, Outboxes, PathSegment
from sim.cost.collectives import Exchange
from sim.hardware.topology import Message, adding_phases
from sim.results.rows import Traffic
from sim.units import Seconds

SimProcess = Generator[simpy.Event, Any, Any]
Arrived = Callable[[Seconds], None]  # called with the time of an arrival [s]
_FREE = attrgetter("free")


@dataclass(eq=False, slots=True)
class Shipment:
    """The messages of one run of a collective, or of a step between two stages.

    They wait for each other in their own order, which is no contention.
    nbytes: of the collective, or of each message. label: for timelines.
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

    delays: the wait of each chip before each phase [s].
    over: every chip has sent all its messages, and those of the last phase have arrived.
    pending: for each phase but the last, the messages that each chip still expects.
    """

    __slots__ = ("delays", "last", "over", "pending", "shipment")

    def __init__(
        self,
        env: simpy.Environment,
        outboxes: Outboxes,
        shipment: Shipment,
        delays: Sequence[Seconds],
    ) -> None:
        *before, final = outboxes.expected or [{}]
        self.shipment, self.delays, self.last = shipment, delays, len(before)
        self.over = LastArrival(env, len(outboxes.bundles) + sum(final.values()))
        self.pending = [
            {chip: LastArrival(env, messages) for chip, messages in expected.items() if messages}
            for expected in before
        ]

    def arrive(self, phase: int, targets: Sequence[int], time: Seconds) -> None:
        """Count messages of a phase that arrive at chips at a time.

        After the last phase no chip waits for its own messages, only for the barrier.
        """
        if phase == self.last:
            self.over.arrives_at(time, len(targets))
            return
        pending = self.pending[phase]
        for target in targets:
            pending[target].arrives_at(time)


@dataclass(eq=False, slots=True)
class Path:
    """The way of single messages from one chip to another, with their number and their bytes."""

    segments: Sequence[PathSegment]
    messages: int = 0
    nbytes: float = 0.0


class Transit:
    """A message on a path of several cables, which takes each when its head arrives there.

    arrived: called with the time of its arrival, as soon as that is known.
    """

    __slots__ = ("arrived", "segments", "shipment", "taken", "waits")

    def __init__(
        self,
        waits: LockStep,
        segments: Sequence[PathSegment],
        shipment: Shipment,
        arrived: Arrived,
    ) -> None:
        self.waits, self.segments, self.shipment, self.arrived = waits, segments, shipment, arrived
        self.taken = 0  # cables

    def take_next(self, _: object = None) -> None:
        """Take the next cable: the head is there."""
        shipment, now = self.shipment, self.waits.env.now
        cable, latency, per_byte = self.segments[self.taken]
        hold = shipment.nbytes * per_byte
        start = cable.take(now, hold, shipment, shipment.label)
        self.taken += 1
        if self.taken < len(self.segments):
            self.waits.timeout(start - now + latency).callbacks.append(self.take_next)
        else:
            self.arrived(start + latency + hold)


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

    def send(self, source: int, target: int, shipment: Shipment, arrived: Arrived) -> None:
        """Send a single message from chip to chip.

        arrived: called with the time of its arrival, as soon as that is known.
        """
        path = self.paths.get((source, target))
        if path is None:
            segments = self.network.segments(Message(source, target, 1.0))
            path = self.paths[source, target] = Path(segments)
        path.messages += 1
        path.nbytes += shipment.nbytes
        Transit(self.waits, path.segments, shipment, arrived).take_next()

    def execute(self, chip: int, step: BoundCollective, rank: int) -> SimProcess:
        """Execute a chip's part in a collective of a rank.

        In each phase the chip sends its messages and waits for its own.  Then it waits for the
        barrier.
        """
        env, runs, recording = self.env, step.collective_runs, self.network.recording
        collective_run = runs[rank if len(runs) > 1 else 0]
        barrier = collective_run.barrier
        if barrier is None or not barrier.over.missing:
            barrier = self.begin(collective_run, step)
        shipment, last = barrier.shipment, barrier.last
        phases = collective_run.outboxes.bundles[chip]
        for phase, (bundles, delay) in enumerate(zip(phases, barrier.delays, strict=True)):
            if delay:
                yield self.waits.timeout(delay)
            now = env.now
            for bundle in bundles:
                cables, latency, per_byte, length, path, targets = bundle
                if path:
                    arrived = partial(barrier.arrive, phase, targets)
                    Transit(self.waits, path, shipment, arrived).take_next()
                    continue
                free = max(map(_FREE, cables)) <= now
                start = now if free else _start_behind(cables, shipment)
                if recording or start is None:
                    _send_singly(bundle, barrier, phase, now)
                    continue
                until = start + shipment.nbytes * per_byte * length
                for cable in cables:
                    cable.free, cable.owner = until, shipment
                barrier.arrive(phase, targets, until + latency)
            if phase < last and chip in barrier.pending[phase]:
                yield barrier.pending[phase][chip]
        barrier.over.arrives_at(env.now)
        yield barrier.over

    def begin(self, collective_run: CollectiveRun, step: BoundCollective) -> Barrier:
        """Begin a run of a collective, and return its barrier."""
        outboxes = collective_run.outboxes
        phases = len(outboxes.expected)
        adding = adding_phases(phases)
        delays = [step.latency + step.reduction * (phase < adding) for phase in range(phases)]
        shipment = Shipment(step.nbytes, step.label)
        barrier = collective_run.barrier = Barrier(self.env, outboxes, shipment, delays)
        collective_run.runs += 1
        collective_run.nbytes += step.nbytes
        return barrier

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
                for segment in bundle.path:
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


def _send_singly(bundle: Bundle, barrier: Barrier, phase: int, now: Seconds) -> None:
    """Send the messages of a bundle one by one, each on its cable when that is free."""
    shipment, length = barrier.shipment, bundle.length
    hold = shipment.nbytes * bundle.per_byte * length
    for number, cable in enumerate(bundle.cables):
        targets = bundle.targets[number * length : (number + 1) * length]
        start = cable.take(now, hold, shipment, shipment.label)
        barrier.arrive(phase, targets, start + hold + bundle.latency)
