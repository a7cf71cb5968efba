"""Collectives and single messages on SimPy, over the cables of one replica.

A collective ends for all its chips when its last message arrives.  Before that each chip
continues as soon as its own messages arrive.
A message whose path is one cable is one event, else one event for each cable.  It takes the next
cable when its head arrives there (virtual cut-through). Messages in lock step share events.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
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
class PendingMessages:
    """The messages that a chip still expects before its next phase."""

    left: int
    full: Event


@dataclass(eq=False)
class CollectiveRun:
    """A collective of one group: its messages, and the barrier of the run that is under way."""

    outboxes: Outboxes
    barrier: "Barrier | None" = None
    runs: int = 0
    nbytes: float = 0.0  # over all runs


class Barrier:
    """A barrier of one run of a collective.

    It opens when every chip has joined and every message has arrived.
    """

    __slots__ = ("collective_run", "env", "left", "over", "pending_messages")

    def __init__(self, env: simpy.Environment, collective_run: CollectiveRun) -> None:
        outboxes = collective_run.outboxes
        self.env, self.collective_run = env, collective_run
        self.left = outboxes.messages + len(outboxes.bundles)
        self.over = Event(env)
        # The keys are chips, in a mapping for each phase.
        self.pending_messages: list[dict[int, PendingMessages]] = [{} for _ in outboxes.expected]

    def done(self, many: int = 1) -> None:
        """Count chips that joined or messages that arrived."""
        self.left -= many
        if not self.left:
            self.collective_run.barrier = None
            self.collective_run.runs += 1
            self.over.succeed()

    def pending(self, phase: int, chip: int) -> PendingMessages:
        """Return the messages of a phase that a chip still expects."""
        of_chips = self.pending_messages[phase]
        if chip not in of_chips:
            expected = self.collective_run.outboxes.expected[phase][chip]
            of_chips[chip] = PendingMessages(expected, Event(self.env))
            if not expected:
                of_chips[chip].full.succeed()
        return of_chips[chip]

    def delivery(self, phase: int, targets: Sequence[int]) -> Callable[[object], None]:
        """Return the callback for the arrival of messages of a phase at chips.

        After the last phase no chip waits for its own messages, only for the barrier.
        """
        if phase == len(self.collective_run.outboxes.expected) - 1:
            return lambda _: self.done(len(targets))

        of_chips = self.pending_messages[phase]

        def deliver(_: object) -> None:
            for target in targets:
                pending = of_chips.get(target) or self.pending(phase, target)
                pending.left -= 1
                if not pending.left:
                    pending.full.succeed()
            self.done(len(targets))

        return deliver


class Shipment(NamedTuple):
    """A message or a collective under way: bytes, owner of its cables, and label for timelines."""

    nbytes: float
    owner: object
    label: str


class Transit:
    """A message on a path of several cables, which takes each when its head arrives there."""

    __slots__ = ("arrived", "segments", "shipment", "waits")

    def __init__(
        self,
        waits: LockStep,
        segments: tuple[Onward, ...],
        shipment: Shipment,
        arrived: Callable[[object], None],
    ) -> None:
        self.waits, self.segments, self.shipment, self.arrived = waits, segments, shipment, arrived

    def __call__(self, _: object) -> None:
        """Take the next cable: the head is there."""
        (cable, latency, per_byte), *rest = self.segments
        nbytes, owner, label = self.shipment
        now, hold = self.waits.env.now, nbytes * per_byte
        start = cable.take(now, hold, owner, label)
        if rest:
            self.segments = tuple(rest)
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
        self.paths: dict[tuple[int, int], tuple[Onward, ...]] = {}
        self.sent: dict[tuple[int, int], tuple[int, float]] = {}  # single messages and their bytes

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
        key = (source, target)
        if key not in self.paths:
            self.paths[key] = tuple(
                Onward(*segment) for segment in self.network.per_byte(Message(source, target, 1.0))
            )
            self.sent[key] = (0, 0.0)
        messages, total = self.sent[key]
        self.sent[key] = messages + 1, total + shipment.nbytes
        Transit(self.waits, self.paths[key], shipment, arrived)(None)

    def execute(self, chip: int, step: BoundCollective, rank: int) -> SimProcess:
        """Execute a chip's part in a collective of a rank.

        In each phase the chip sends its messages and waits for its own.  Then it waits for the
        barrier.
        """
        env, nbytes, label = self.env, step.nbytes, step.label
        runs = step.collective_runs
        collective_run = runs[rank if len(runs) > 1 else 0]
        barrier = collective_run.barrier
        if barrier is None:
            barrier = collective_run.barrier = Barrier(env, collective_run)
            collective_run.nbytes += nbytes
        phases = collective_run.outboxes.bundles[chip]
        shipment = Shipment(nbytes, barrier, label)
        recording = self.network.recording
        for number, bundles in enumerate(phases):
            if delay := step.latency + step.reduction * (number < adding_phases(len(phases))):
                yield self.waits.timeout(delay)
            now = env.now
            for bundle in bundles:
                start = (
                    now if max(map(_FREE, bundle.cables)) <= now else _start_behind(bundle, barrier)
                )
                if bundle.onward or recording or start is None:
                    self._send_singly(bundle, barrier, number, shipment)
                    continue
                until = start + nbytes * bundle.per_byte * bundle.length
                for cable in bundle.cables:
                    cable.free, cable.owner = until, barrier
                # One event for messages that leave together and arrive together.
                arrival = self.waits.timeout(until - now + bundle.latency)
                arrival.callbacks.append(barrier.delivery(number, bundle.targets))
            if number < len(phases) - 1:
                yield barrier.pending(number, chip).full
        over = barrier.over
        barrier.done()
        yield over

    def _send_singly(
        self, bundle: Bundle, barrier: Barrier, phase: int, shipment: Shipment
    ) -> None:
        """Send the messages of a bundle one by one, each on its cable when that is free."""
        nbytes, _, label = shipment
        hold, now, length = nbytes * bundle.per_byte * bundle.length, self.env.now, bundle.length
        for number, cable in enumerate(bundle.cables):
            targets = bundle.targets[number * length : (number + 1) * length]
            arrived = barrier.delivery(phase, targets)
            delay = cable.take(now, hold, barrier, label) - now + bundle.latency
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

        for path, (messages, nbytes) in self.sent.items():
            for segment in self.paths[path]:
                carried(segment.cable, messages, nbytes * segment.per_byte)
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


def _start_behind(bundle: Bundle, barrier: Barrier) -> Seconds | None:
    """Return when a bundle can start behind messages of its own collective.

    None if its cables become free at different times, or another collective has one.
    """
    free = bundle.cables[0].free
    return (
        free
        if all(cable.free == free and cable.owner is barrier for cable in bundle.cables)
        else None
    )
