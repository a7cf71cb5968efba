"""Collectives and single messages on SimPy, over the cables of one replica.

A collective ends for all its chips when its last message arrives (`LastArrival`).  A chip sends its
messages of a phase as soon as it has received those of the phase before.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import simpy
from simpy.events import Event

from sim.chipsim.arrivals import LastArrival
from sim.chipsim.lock_step import LockStep
from sim.chipsim.message_heads import Arrived, MessageHeads, Shipment
from sim.chipsim.network import Bundle, Cable, Network, Outboxes, PathSegment
from sim.cost.collectives import Exchange
from sim.hardware.topology import Message, adding_phases
from sim.results.rows import Traffic
from sim.units import Seconds

SimProcess = Generator[simpy.Event, Any, Any]
_FREE = attrgetter("free")


@dataclass(eq=False)
class CollectiveRun:
    """A collective of one group: its messages, and the barrier of the run that is under way."""

    outboxes: Outboxes
    barrier: "Barrier | None" = None
    runs: int = 0
    nbytes: float = 0.0  # over all runs


class Barrier:
    """One run of a collective, which ends for all its chips together.

    delays: the wait of each chip before each phase [s].
    over: every chip has sent all its messages, and those of the last phase have arrived.
    missing: by phase and chip, what the chip still needs before the next phase: the messages to it,
    and its own sending.
    latest: by phase and chip, the latest known time of these [s].
    """

    __slots__ = (
        "delays",
        "heads",
        "last",
        "latest",
        "missing",
        "outboxes",
        "over",
        "shipment",
        "waits",
    )

    def __init__(
        self,
        waits: LockStep,
        heads: MessageHeads,
        outboxes: Outboxes,
        shipment: Shipment,
        delays: Sequence[Seconds],
    ) -> None:
        *before, final = outboxes.expected or [{}]
        self.waits, self.heads = waits, heads
        self.outboxes, self.shipment, self.delays = outboxes, shipment, delays
        self.last, self.missing = len(before), [expected.copy() for expected in before]
        self.latest = [dict.fromkeys(expected, 0.0) for expected in before]
        self.over = LastArrival(waits.env, sum(final.values()))

    def join(self, chip: int) -> Event:
        """Begin a chip's part, and return the event at which the run ends."""
        if self.delays[0]:
            self.send_after(self.delays[0], chip, 0)
        else:
            self.send(chip, 0)
        return self.over

    def send_after(self, seconds: Seconds, chip: int, phase: int) -> None:
        """Send the messages of a chip in a phase some time from now."""
        self.waits.timeout(seconds).callbacks.append(partial(self.send, chip, phase))

    def send(self, chip: int, phase: int, _: Event | None = None) -> None:
        """Send the messages of a chip in a phase."""
        for bundle in self.outboxes.bundles[chip][phase]:
            self.send_bundle(phase, bundle)
        self.arrive(phase, (chip,), self.waits.env.now)

    def send_bundle(self, phase: int, bundle: Bundle) -> None:
        """Send the messages of a bundle, together if its cables allow that, else cable by cable.

        Cables that record their uses are taken one by one, since `Cable.take` records them.
        """
        cables, latency, per_byte, length, onward, targets = bundle
        shipment, now = self.shipment, self.waits.env.now
        hold = shipment.nbytes * per_byte
        if len(cables) > 1:
            start = now if max(map(_FREE, cables)) <= now else _start_behind(cables, shipment)
            if start is None or cables[0].uses is not None:
                for single in bundle.singly():
                    self.send_bundle(phase, single)
                return
            until = start + hold * length
            for cable in cables:
                cable.free, cable.owner = until, shipment
        else:
            start = cables[0].take(now, hold * length, shipment, shipment.label)
        if not onward:
            self.arrive(phase, targets, start + hold * length + latency)
        for number, segments in enumerate(onward):
            passed, arrived = start + hold * (number % length) + latency, self.over.arrives_at
            if phase < self.last:
                arrived = partial(self.arrive, phase, targets[number : number + 1])
            self.heads.forward_at(passed, (segments, shipment, arrived))

    def arrive(self, phase: int, targets: Sequence[int], time: Seconds) -> None:
        """Count messages of a phase that arrive at chips at a time [s].

        A chip that has all messages of a phase sends those of the next one.
        After the last phase no chip waits for its own messages, only for the end of the run.
        """
        if phase == self.last:
            self.over.arrives_at(time, len(targets))
            return
        missing, latest = self.missing[phase], self.latest[phase]
        for chip in targets:
            if time > latest[chip]:
                latest[chip] = time
            missing[chip] -= 1
            if not missing[chip]:
                wait = latest[chip] - self.waits.env.now + self.delays[phase + 1]
                self.send_after(wait, chip, phase + 1)


@dataclass(eq=False, slots=True)
class Path:
    """The way of single messages from one chip to another, with their number and their bytes."""

    segments: Sequence[PathSegment]
    messages: int = 0
    nbytes: float = 0.0


class BoundCollective(NamedTuple):
    """A collective as a stage's chips execute it, with one run for each rank.

    nbytes: bytes that the link would carry at full efficiency in the same time.
    latency: before each phase [s].  reduction: before each phase that adds [s].
    adds_always: whether the second half of the phases adds as well.
    """

    label: str
    collective_runs: Sequence[CollectiveRun]
    nbytes: float
    latency: Seconds
    reduction: Seconds
    adds_always: bool = False


class Transport:
    """The transport of a replica: sends single messages, executes collectives, counts traffic."""

    def __init__(self, env: simpy.Environment, network: Network) -> None:
        self.env, self.network, self.waits = env, network, LockStep(env)
        self.heads = MessageHeads(env)
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
        adds = exchange.adds or exchange.operation == "all_reduce"
        reduction = self.network.topology.reduction if adds else 0.0
        return BoundCollective(
            label,
            self.collective_runs[key],
            nbytes,
            exchange.latency,
            reduction,
            exchange.adds,
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
        self.heads.forward([(path.segments, shipment, arrived)])

    def join(self, chip: int, step: BoundCollective, rank: int) -> Event:
        """Begin a chip's part in a collective of a rank, and return the event at which it ends."""
        runs = step.collective_runs
        collective_run = runs[rank if len(runs) > 1 else 0]
        barrier = collective_run.barrier
        if barrier is None or not barrier.over.missing:
            barrier = self.begin(collective_run, step)
        return barrier.join(chip)

    def begin(self, collective_run: CollectiveRun, step: BoundCollective) -> Barrier:
        """Begin a run of a collective, and return its barrier."""
        outboxes = collective_run.outboxes
        phases = len(outboxes.expected)
        adding = phases if step.adds_always else adding_phases(phases)
        delays = [step.latency + step.reduction * (phase < adding) for phase in range(phases)]
        shipment = Shipment(step.nbytes, step.label)
        barrier = collective_run.barrier = Barrier(
            self.waits, self.heads, outboxes, shipment, delays
        )
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
                for segment in chain.from_iterable(bundle.onward):
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
