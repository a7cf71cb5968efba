"""Serving at chip level, on SimPy: every chip a process that executes its program, every link a resource.

A passage goes from stage to stage.  The chips of a stage begin it together, when each has its slice of the input and the passage
before has left; they compute, each at its own pace, and talk: a collective is over for all its chips when its last message has
arrived.  In between each goes on as its own messages come.

A message is one event where its way is one cable, else one for each: the next cable is taken when the head arrives there
(virtual cut-through).  In a `scheduled` network the program's times are known beforehand, and a chip that is late, or a link that
another collective or passage has taken, is an error of the schedule.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, Timeout

from sim.chipsim.network import (
    TOLERANCE,
    Bundle,
    Cable,
    LinkException,
    Network,
    Onward,
    Outboxes,
    ScheduleError,
)
from sim.cost.program import CollectiveOp, ComputeOp, Program, WaitOp, program
from sim.cost.step import Costs, Exchange, Work
from sim.hardware.topology import Message, adding_phases
from sim.results.rows import Traffic
from sim.units import Seconds

SimProcess = Generator[simpy.Event, Any, Any]
DRAWN_AT_ONCE = 4096
FREE = attrgetter("free")


@dataclass(frozen=True)
class ChipException:
    """A chip that is not as the others: at `speed` times their speed, or another chip."""

    number: int
    speed: float = 1.0
    costs: Costs | None = None  # of the layout as if all its chips were of this other kind


@dataclass(frozen=True)
class Irregularities:
    """What a machine has that no closed form knows."""

    chips: tuple[ChipException, ...] = ()
    links: tuple[LinkException, ...] = ()
    scheduled: bool = False
    jitter: float = 0.0  # sigma of the lognormal factor, of mean 1, on whatever a chip computes


Machines = Callable[[simpy.Environment, int], "Machine"]  # what makes the machine of a replica


class Slice(NamedTuple):
    """What a chip did, for a timeline."""

    chip: int
    start: Seconds
    end: Seconds
    label: str
    kind: str  # compute, exchange


@dataclass(eq=False, slots=True)
class PendingMessages:
    """What a chip has still to be sent before its next phase."""

    left: int
    full: Event


@dataclass(eq=False)
class CollectiveRun:
    """A collective of one group: who sends what, and the meeting that is going on."""

    outboxes: Outboxes
    barrier: "Barrier | None" = None
    runs: int = 0
    nbytes: float = 0.0  # over all runs


class Barrier:
    """One run of a collective.  It is over when every chip has come and every message has arrived."""

    __slots__ = ("collective_run", "env", "left", "over", "pending_messages")

    def __init__(self, env: simpy.Environment, collective_run: CollectiveRun) -> None:
        outboxes = collective_run.outboxes
        self.env, self.collective_run = env, collective_run
        self.left = outboxes.messages + len(outboxes.bundles)
        self.over = Event(env)
        self.pending_messages: dict[tuple[int, int], PendingMessages] = {}

    def done(self, many: int = 1) -> None:
        """Chips have come, or messages arrived."""
        self.left -= many
        if not self.left:
            self.collective_run.barrier = None
            self.collective_run.runs += 1
            self.over.succeed()

    def pending(self, phase: int, chip: int) -> PendingMessages:
        key = (phase, chip)
        if key not in self.pending_messages:
            expected = self.collective_run.outboxes.expected[phase][chip]
            pending = self.pending_messages[key] = PendingMessages(expected, Event(self.env))
            if not expected:
                pending.full.succeed()
        return self.pending_messages[key]

    def delivery(self, phase: int, targets: Sequence[int]) -> Callable[[object], None]:
        """What happens when messages of a phase reach these chips.  After the last phase nobody waits for his own."""
        if phase == len(self.collective_run.outboxes.expected) - 1:
            return lambda _: self.done(len(targets))

        def deliver(_: object) -> None:
            for target in targets:
                pending = self.pending(phase, target)
                pending.left -= 1
                if not pending.left:
                    pending.full.succeed()
            self.done(len(targets))

        return deliver


class Transit:
    """A message on a way of several cables: takes each when its head arrives there."""

    __slots__ = ("arrived", "env", "label", "nbytes", "owner", "segments")

    def __init__(
        self,
        env: simpy.Environment,
        segments: tuple[Onward, ...],
        nbytes: float,
        owner: object,
        label: str,
        arrived: Callable[[object], None],
    ) -> None:
        self.env, self.segments, self.nbytes, self.owner, self.label, self.arrived = (
            env,
            segments,
            nbytes,
            owner,
            label,
            arrived,
        )

    def __call__(self, _: object) -> None:
        (cable, latency, per_byte), *rest = self.segments
        now, hold = self.env.now, self.nbytes * per_byte
        start = cable.take(now, hold, self.owner, self.label)
        if rest:
            self.segments = tuple(rest)
            Timeout(self.env, start - now + latency).callbacks.append(self)
        else:
            Timeout(self.env, start - now + latency + hold).callbacks.append(self.arrived)


class BoundCollective(NamedTuple):
    """A collective as a stage's chips execute it: one conversation for each rank."""

    label: str
    collective_runs: Sequence[CollectiveRun]
    nbytes: float  # as many as the link would carry at full efficiency in the same time
    latency: Seconds  # before each phase
    reduction: Seconds  # before each phase that adds


Script = Sequence[Sequence[ComputeOp | WaitOp | BoundCollective]]  # by stage


@dataclass(eq=False, slots=True)
class ChipStep:
    """What one micro-batch takes through the stages."""

    scripts: Sequence[Script]  # by kind of chip
    slice_bytes: float
    token_bytes: float
    back: Event  # that the sampled token has reached the first chip; its value is when it left the last
    missing: list[int]  # slices of the input that each stage still waits for
    began: Seconds = 0.0  # on the stage where it is
    stage: "StageOfChips | None" = None  # that works on it
    worked: Seconds = 0.0  # of all stages, up to the last one that it left

    def is_back(self, left: Seconds) -> None:
        self.back.succeed(left)


@dataclass(eq=False)
class StageOfChips:
    """The chips of a stage: what they work on, and what waits for them."""

    number: int
    turn: Event
    waiting: deque[ChipStep] = field(default_factory=deque)
    at_work: int = 0


class Machine:
    """One replica, chip by chip."""

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        irregular: Irregularities = Irregularities(),
        stream: np.random.Generator | None = None,
        recording: bool = False,
    ) -> None:
        layout = costs.layout
        self.env, self.costs, self.irregular, self.stream = env, costs, irregular, stream
        self.group, self.tensor = layout.plan.stage_size, layout.plan.tensor
        self.network = Network(layout.topology, irregular.scheduled, irregular.links, recording)
        self.busy: NDArray[np.float64] = np.zeros(costs.stages)
        self.stages = [StageOfChips(number, Event(env)) for number in range(costs.stages)]
        self.recording = recording
        self.slices: list[Slice] = []
        self.left: list[Seconds] = []  # when each passage left the last stage
        self.collective_runs: dict[tuple[object, ...], list[CollectiveRun]] = {}
        self.ways: dict[tuple[int, int], tuple[Onward, ...]] = {}
        self.sent: dict[tuple[int, int], tuple[int, float]] = {}  # single messages and their bytes
        self.jitters: list[float] = []
        own = {each.number: each for each in irregular.chips}
        self.kinds: list[Costs] = list(
            dict.fromkeys([costs, *(each.costs for each in own.values() if each.costs)])
        )
        for number in range(self.group * costs.stages):
            exception = own.get(number, ChipException(number))
            env.process(
                self.chip(number, self.kinds.index(exception.costs or costs), 1 / exception.speed)
            )

    def run_step(self, work: Work) -> SimProcess:
        """A step through all stages; gives the time at which it left the last one, when its token is back at the first."""
        return (yield self.start(work).back)

    def start(self, work: Work) -> ChipStep:
        """Send a step into the first stage's queue."""
        programs = [program(costs, work) for costs in self.kinds]
        first = programs[0]
        missing = [self.group] * len(self.stages)
        chip_step = ChipStep(
            [self.script(each) for each in programs],
            first.slice_bytes,
            first.token_bytes,
            Event(self.env),
            missing,
        )
        self.enter(chip_step, self.stages[0])
        return chip_step

    def abort(self, chip_steps: Iterable[ChipStep]) -> None:
        """Count what the stages have worked on their passages up to now."""
        for chip_step in chip_steps:
            if chip_step.stage:
                self.count_work(chip_step, chip_step.stage)

    def script(self, program: Program) -> Script:
        """The program with its conversations looked up."""
        return [
            [
                self.talking(each.label, each.exchange) if isinstance(each, CollectiveOp) else each
                for each in instructions
            ]
            for instructions in program.stages
        ]

    def talking(self, label: str, exchange: Exchange) -> BoundCollective:
        key = (exchange.operation, exchange.groups, exchange.ways)
        if key not in self.collective_runs:
            ranks = zip(exchange.groups, exchange.ways, strict=True)
            made = [
                CollectiveRun(self.network.outboxes(exchange.operation, group, way))
                for group, way in ranks
            ]
            self.collective_runs[key] = made
        nbytes = exchange.nbytes / exchange.efficiency
        reduction = (
            self.costs.layout.topology.reduction if exchange.operation == "all_reduce" else 0.0
        )
        return BoundCollective(
            label, self.collective_runs[key], nbytes, exchange.latency, reduction
        )

    # A stage's turn.

    def enter(self, chip_step: ChipStep, stage: StageOfChips) -> None:
        """The passage joins the stage's queue."""
        stage.waiting.append(chip_step)
        if not stage.at_work:
            self.begin(stage)

    def begin(self, stage: StageOfChips) -> None:
        chip_step = stage.waiting.popleft()
        chip_step.began, chip_step.stage = self.env.now, stage
        stage.at_work = self.group
        turn, stage.turn = stage.turn, Event(self.env)
        turn.succeed(chip_step)

    def leave(self, chip: int, chip_step: ChipStep, stage: StageOfChips) -> None:
        """A chip has done its part: its slice goes on, and the last one makes room for the next passage."""
        last = stage.number == len(self.stages) - 1
        if not last:
            came = partial(self.slice_came, chip_step, stage.number + 1)
            self.send(
                chip, chip + self.group, chip_step.slice_bytes, chip_step, "hidden states", came
            )
        stage.at_work -= 1
        if stage.at_work:
            return
        self.count_work(chip_step, stage)
        chip_step.stage = None
        if last:
            self.left.append(self.env.now)
            now = self.env.now
            if stage.number:
                self.send(
                    self.costs.last,
                    0,
                    chip_step.token_bytes,
                    chip_step,
                    "token",
                    lambda _: chip_step.is_back(now),
                )
            else:
                chip_step.is_back(now)
        if stage.waiting:
            self.begin(stage)

    def count_work(self, chip_step: ChipStep, stage: StageOfChips) -> None:
        seconds = self.env.now - chip_step.began
        self.busy[stage.number] += seconds
        chip_step.worked += seconds

    def slice_came(self, chip_step: ChipStep, number: int, _: object) -> None:
        chip_step.missing[number] -= 1
        if not chip_step.missing[number]:
            self.enter(chip_step, self.stages[number])

    def send(
        self,
        a: int,
        b: int,
        nbytes: float,
        owner: ChipStep,
        label: str,
        arrived: Callable[[object], None],
    ) -> None:
        """A single message from chip to chip."""
        if (a, b) not in self.ways:
            self.ways[a, b] = tuple(
                Onward(*segment) for segment in self.network.per_byte(Message(a, b, 1.0))
            )
            self.sent[a, b] = (0, 0.0)
        messages, total = self.sent[a, b]
        self.sent[a, b] = messages + 1, total + nbytes
        Transit(self.env, self.ways[a, b], nbytes, owner, label, arrived)(None)

    # The chips.

    def chip(self, number: int, kind: int, slowness: float) -> SimProcess:
        """The life of a chip: it waits for its stage's turn, executes its program, hands on its slice."""
        env, stage, place = self.env, self.stages[number // self.group], number % self.group
        rank = place // self.tensor
        turn = stage.turn
        while True:
            chip_step: ChipStep = yield turn
            turn = stage.turn
            due = chip_step.began
            for step in chip_step.scripts[kind][stage.number]:
                start = env.now
                if isinstance(step, ComputeOp):
                    due += step.seconds
                    yield Timeout(
                        env,
                        step.seconds * slowness * (self.jitter() if self.irregular.jitter else 1.0),
                    )
                elif isinstance(step, WaitOp):
                    launched = chip_step.began + step.seconds
                    due = max(due, launched)
                    if launched > env.now:
                        yield Timeout(env, launched - env.now)
                else:
                    if self.irregular.scheduled:
                        yield from self.keep(due, number, step.label)
                    collective_run = step.collective_runs[
                        rank if len(step.collective_runs) > 1 else 0
                    ]
                    yield from self.talk(number, step, collective_run)
                    due = env.now
                if self.recording:
                    kind_of = "exchange" if isinstance(step, BoundCollective) else "compute"
                    self.slices.append(Slice(number, start, env.now, step.label, kind_of))
            if self.irregular.scheduled:
                yield from self.keep(due, number, "hidden states")
            self.leave(number, chip_step, stage)

    def talk(self, chip: int, step: BoundCollective, collective_run: CollectiveRun) -> SimProcess:
        """A chip's part in a collective: phase by phase it sends its messages and waits for its own; then for all others."""
        env, nbytes, label = self.env, step.nbytes, step.label
        barrier = collective_run.barrier
        if barrier is None:
            barrier = collective_run.barrier = Barrier(env, collective_run)
            collective_run.nbytes += nbytes
        phases = collective_run.outboxes.bundles[chip]
        for number, bundles in enumerate(phases):
            if delay := step.latency + step.reduction * (number < adding_phases(len(phases))):
                yield Timeout(env, delay)
            now = env.now
            for bundle in bundles:
                start = (
                    now if max(map(FREE, bundle.cables)) <= now else self.behind(bundle, barrier)
                )
                if bundle.onward or self.recording or start is None:
                    self.one_by_one(bundle, barrier, number, nbytes, label)
                    continue
                until = start + nbytes * bundle.per_byte * bundle.length
                for cable in bundle.cables:
                    cable.free, cable.owner = until, barrier
                # What is sent at once and arrives at once is one event.
                Timeout(env, until - now + bundle.latency).callbacks.append(
                    barrier.delivery(number, bundle.targets)
                )
            if number < len(phases) - 1:
                yield barrier.pending(number, chip).full
        over = barrier.over
        barrier.done()
        yield over

    @staticmethod
    def behind(bundle: Bundle, barrier: Barrier) -> Seconds | None:
        """When a bundle can start that goes behind messages of its own collective; None where its cables differ."""
        free = bundle.cables[0].free
        return (
            free
            if all(cable.free == free and cable.owner is barrier for cable in bundle.cables)
            else None
        )

    def one_by_one(
        self, bundle: Bundle, barrier: Barrier, phase: int, nbytes: float, label: str
    ) -> None:
        """The messages of a bundle, each cable's in its turn."""
        hold, now, length = nbytes * bundle.per_byte * bundle.length, self.env.now, bundle.length
        for number, cable in enumerate(bundle.cables):
            targets = bundle.targets[number * length : (number + 1) * length]
            there: Callable[[object], None] = barrier.delivery(phase, targets)
            delay = cable.take(now, hold, barrier, label) - now + bundle.latency
            if bundle.onward:
                Timeout(self.env, delay).callbacks.append(
                    Transit(self.env, bundle.onward, nbytes, barrier, label, there)
                )
            else:
                Timeout(self.env, delay + hold).callbacks.append(there)

    def keep(self, due: Seconds, chip: int, label: str) -> SimProcess:
        """Waits for a time computed beforehand.  Raises: ScheduleError where it has passed."""
        early = due - self.env.now
        if early < -TOLERANCE:
            raise ScheduleError(
                f"schedule: chip {chip} is {-1e6 * early:.3f} us late for {label}, due at {1e6 * due:.3f} us"
            )
        if early > 0:
            yield Timeout(self.env, early)

    def jitter(self) -> float:
        """The next factor on a computing time: lognormal, of mean 1."""
        if not self.jitters:
            sigma = self.irregular.jitter
            assert self.stream is not None
            self.jitters = self.stream.lognormal(-(sigma**2) / 2, sigma, DRAWN_AT_ONCE)[
                ::-1
            ].tolist()
        return self.jitters.pop()

    @property
    def traffic(self) -> Traffic:
        """What the links carried."""
        links = {cable: [0, 0.0] for cable in self.network.cables.values()}

        def carried(cable: Cable, messages: int, seconds: Seconds) -> None:
            links[cable][0] += messages
            links[cable][1] += seconds

        for way, (messages, nbytes) in self.sent.items():
            for segment in self.ways[way]:
                carried(segment.cable, messages, nbytes * segment.per_byte)
        for collective_run in (each for ranks in self.collective_runs.values() for each in ranks):
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


def machines(
    costs: Costs, replicas: Sequence[Irregularities], seed: Sequence[int], recording: bool = False
) -> Machines:
    """A machine for each replica, each with a stream of its own for what is drawn."""

    def make(env: simpy.Environment, replica: int) -> Machine:
        return Machine(
            env, costs, replicas[replica], np.random.default_rng([*seed, replica]), recording
        )

    return make


def kept(machines: Machines, made: list[Machine]) -> Machines:
    """Return what makes the same machines, and appends each to `made`."""

    def make(env: simpy.Environment, replica: int) -> Machine:
        made.append(machines(env, replica))
        return made[-1]

    return make
