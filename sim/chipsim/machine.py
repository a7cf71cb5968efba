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
from sim.cost.program import Compute, Program, Talk, Wait, program
from sim.cost.step import Costs, Exchange, Work
from sim.hardware.topology import Message, adding_phases
from sim.results.rows import Traffic
from sim.units import Seconds

Waiting = Generator[simpy.Event, Any, Any]
DRAWN_AT_ONCE = 4096
FREE = attrgetter("free")


@dataclass(frozen=True)
class ChipException:
    """A chip that is not as the others: at `speed` times their speed, or another chip."""

    number: int
    speed: float = 1.0
    costs: Costs | None = None  # of the layout as if all its chips were of this other kind


@dataclass(frozen=True)
class Irregular:
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
class Inbox:
    """What a chip has still to be sent before its next phase."""

    left: int
    full: Event


@dataclass(eq=False)
class Conversation:
    """A collective of one group: who sends what, and the meeting that is going on."""

    outboxes: Outboxes
    meeting: "Meeting | None" = None
    runs: int = 0
    nbytes: float = 0.0  # over all runs


class Meeting:
    """One run of a collective.  It is over when every chip has come and every message has arrived."""

    __slots__ = ("conversation", "env", "inboxes", "left", "over")

    def __init__(self, env: simpy.Environment, conversation: Conversation) -> None:
        outboxes = conversation.outboxes
        self.env, self.conversation = env, conversation
        self.left = outboxes.messages + len(outboxes.bundles)
        self.over = Event(env)
        self.inboxes: dict[tuple[int, int], Inbox] = {}

    def done(self, many: int = 1) -> None:
        """Chips have come, or messages arrived."""
        self.left -= many
        if not self.left:
            self.conversation.meeting = None
            self.conversation.runs += 1
            self.over.succeed()

    def inbox(self, phase: int, chip: int) -> Inbox:
        key = (phase, chip)
        if key not in self.inboxes:
            expected = self.conversation.outboxes.expected[phase][chip]
            inbox = self.inboxes[key] = Inbox(expected, Event(self.env))
            if not expected:
                inbox.full.succeed()
        return self.inboxes[key]

    def delivery(self, phase: int, targets: Sequence[int]) -> Callable[[object], None]:
        """What happens when messages of a phase reach these chips.  After the last phase nobody waits for his own."""
        if phase == len(self.conversation.outboxes.expected) - 1:
            return lambda _: self.done(len(targets))

        def deliver(_: object) -> None:
            for target in targets:
                inbox = self.inbox(phase, target)
                inbox.left -= 1
                if not inbox.left:
                    inbox.full.succeed()
            self.done(len(targets))

        return deliver


class Transit:
    """A message on a way of several cables: takes each when its head arrives there."""

    __slots__ = ("arrived", "env", "label", "legs", "nbytes", "owner")

    def __init__(
        self,
        env: simpy.Environment,
        legs: tuple[Onward, ...],
        nbytes: float,
        owner: object,
        label: str,
        arrived: Callable[[object], None],
    ) -> None:
        self.env, self.legs, self.nbytes, self.owner, self.label, self.arrived = (
            env,
            legs,
            nbytes,
            owner,
            label,
            arrived,
        )

    def __call__(self, _: object) -> None:
        (cable, latency, per_byte), *rest = self.legs
        now, hold = self.env.now, self.nbytes * per_byte
        start = cable.take(now, hold, self.owner, self.label)
        if rest:
            self.legs = tuple(rest)
            Timeout(self.env, start - now + latency).callbacks.append(self)
        else:
            Timeout(self.env, start - now + latency + hold).callbacks.append(self.arrived)


class Talking(NamedTuple):
    """A collective as a stage's chips execute it: one conversation for each rank."""

    label: str
    conversations: Sequence[Conversation]
    nbytes: float  # as many as the link would carry at full efficiency in the same time
    latency: Seconds  # before each phase
    reduction: Seconds  # before each phase that adds


Script = Sequence[Sequence[Compute | Wait | Talking]]  # by stage


@dataclass(eq=False, slots=True)
class Passage:
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
    waiting: deque[Passage] = field(default_factory=deque)
    at_work: int = 0


class Machine:
    """One replica, chip by chip."""

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        irregular: Irregular = Irregular(),
        stream: np.random.Generator | None = None,
        recording: bool = False,
    ) -> None:
        layout = costs.layout
        self.env, self.costs, self.irregular, self.stream = env, costs, irregular, stream
        self.group, self.tensor = layout.plan.group, layout.plan.tensor
        self.network = Network(layout.topology, irregular.scheduled, irregular.links, recording)
        self.busy: NDArray[np.float64] = np.zeros(costs.stages)
        self.stages = [StageOfChips(number, Event(env)) for number in range(costs.stages)]
        self.recording = recording
        self.slices: list[Slice] = []
        self.left: list[Seconds] = []  # when each passage left the last stage
        self.conversations: dict[tuple[object, ...], list[Conversation]] = {}
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

    def passage(self, work: Work) -> Waiting:
        """A step through all stages; gives the time at which it left the last one, when its token is back at the first."""
        return (yield self.start(work).back)

    def start(self, work: Work) -> Passage:
        """Send a step into the first stage's queue."""
        programs = [program(costs, work) for costs in self.kinds]
        first = programs[0]
        missing = [self.group] * len(self.stages)
        passage = Passage(
            [self.script(each) for each in programs],
            first.slice_bytes,
            first.token_bytes,
            Event(self.env),
            missing,
        )
        self.enter(passage, self.stages[0])
        return passage

    def interrupt(self, passages: Iterable[Passage]) -> None:
        """Count what the stages have worked on their passages up to now."""
        for passage in passages:
            if passage.stage:
                self.count_work(passage, passage.stage)

    def script(self, program: Program) -> Script:
        """The program with its conversations looked up."""
        return [
            [
                self.talking(each.label, each.exchange) if isinstance(each, Talk) else each
                for each in instructions
            ]
            for instructions in program.stages
        ]

    def talking(self, label: str, exchange: Exchange) -> Talking:
        key = (exchange.operation, exchange.groups, exchange.ways)
        if key not in self.conversations:
            ranks = zip(exchange.groups, exchange.ways, strict=True)
            made = [
                Conversation(self.network.outboxes(exchange.operation, group, way))
                for group, way in ranks
            ]
            self.conversations[key] = made
        nbytes = exchange.nbytes / exchange.efficiency
        reduction = (
            self.costs.layout.topology.reduction if exchange.operation == "all_reduce" else 0.0
        )
        return Talking(label, self.conversations[key], nbytes, exchange.latency, reduction)

    # A stage's turn.

    def enter(self, passage: Passage, stage: StageOfChips) -> None:
        """The passage joins the stage's queue."""
        stage.waiting.append(passage)
        if not stage.at_work:
            self.begin(stage)

    def begin(self, stage: StageOfChips) -> None:
        passage = stage.waiting.popleft()
        passage.began, passage.stage = self.env.now, stage
        stage.at_work = self.group
        turn, stage.turn = stage.turn, Event(self.env)
        turn.succeed(passage)

    def leave(self, chip: int, passage: Passage, stage: StageOfChips) -> None:
        """A chip has done its part: its slice goes on, and the last one makes room for the next passage."""
        last = stage.number == len(self.stages) - 1
        if not last:
            came = partial(self.slice_came, passage, stage.number + 1)
            self.send(chip, chip + self.group, passage.slice_bytes, passage, "hidden states", came)
        stage.at_work -= 1
        if stage.at_work:
            return
        self.count_work(passage, stage)
        passage.stage = None
        if last:
            self.left.append(self.env.now)
            now = self.env.now
            if stage.number:
                self.send(
                    self.costs.last,
                    0,
                    passage.token_bytes,
                    passage,
                    "token",
                    lambda _: passage.is_back(now),
                )
            else:
                passage.is_back(now)
        if stage.waiting:
            self.begin(stage)

    def count_work(self, passage: Passage, stage: StageOfChips) -> None:
        seconds = self.env.now - passage.began
        self.busy[stage.number] += seconds
        passage.worked += seconds

    def slice_came(self, passage: Passage, number: int, _: object) -> None:
        passage.missing[number] -= 1
        if not passage.missing[number]:
            self.enter(passage, self.stages[number])

    def send(
        self,
        a: int,
        b: int,
        nbytes: float,
        owner: Passage,
        label: str,
        arrived: Callable[[object], None],
    ) -> None:
        """A single message from chip to chip."""
        if (a, b) not in self.ways:
            self.ways[a, b] = tuple(
                Onward(*leg) for leg in self.network.per_byte(Message(a, b, 1.0))
            )
            self.sent[a, b] = (0, 0.0)
        messages, total = self.sent[a, b]
        self.sent[a, b] = messages + 1, total + nbytes
        Transit(self.env, self.ways[a, b], nbytes, owner, label, arrived)(None)

    # The chips.

    def chip(self, number: int, kind: int, slowness: float) -> Waiting:
        """The life of a chip: it waits for its stage's turn, executes its program, hands on its slice."""
        env, stage, place = self.env, self.stages[number // self.group], number % self.group
        rank = place // self.tensor
        turn = stage.turn
        while True:
            passage: Passage = yield turn
            turn = stage.turn
            due = passage.began
            for step in passage.scripts[kind][stage.number]:
                start = env.now
                if isinstance(step, Compute):
                    due += step.seconds
                    yield Timeout(
                        env,
                        step.seconds * slowness * (self.jitter() if self.irregular.jitter else 1.0),
                    )
                elif isinstance(step, Wait):
                    launched = passage.began + step.seconds
                    due = max(due, launched)
                    if launched > env.now:
                        yield Timeout(env, launched - env.now)
                else:
                    if self.irregular.scheduled:
                        yield from self.keep(due, number, step.label)
                    conversation = step.conversations[rank if len(step.conversations) > 1 else 0]
                    yield from self.talk(number, step, conversation)
                    due = env.now
                if self.recording:
                    kind_of = "exchange" if isinstance(step, Talking) else "compute"
                    self.slices.append(Slice(number, start, env.now, step.label, kind_of))
            if self.irregular.scheduled:
                yield from self.keep(due, number, "hidden states")
            self.leave(number, passage, stage)

    def talk(self, chip: int, step: Talking, conversation: Conversation) -> Waiting:
        """A chip's part in a collective: phase by phase it sends its messages and waits for its own; then for all others."""
        env, nbytes, label = self.env, step.nbytes, step.label
        meeting = conversation.meeting
        if meeting is None:
            meeting = conversation.meeting = Meeting(env, conversation)
            conversation.nbytes += nbytes
        phases = conversation.outboxes.bundles[chip]
        for number, bundles in enumerate(phases):
            if delay := step.latency + step.reduction * (number < adding_phases(len(phases))):
                yield Timeout(env, delay)
            now = env.now
            for bundle in bundles:
                start = (
                    now if max(map(FREE, bundle.cables)) <= now else self.behind(bundle, meeting)
                )
                if bundle.onward or self.recording or start is None:
                    self.one_by_one(bundle, meeting, number, nbytes, label)
                    continue
                until = start + nbytes * bundle.per_byte * bundle.length
                for cable in bundle.cables:
                    cable.free, cable.owner = until, meeting
                # What is sent at once and arrives at once is one event.
                Timeout(env, until - now + bundle.latency).callbacks.append(
                    meeting.delivery(number, bundle.targets)
                )
            if number < len(phases) - 1:
                yield meeting.inbox(number, chip).full
        over = meeting.over
        meeting.done()
        yield over

    @staticmethod
    def behind(bundle: Bundle, meeting: Meeting) -> Seconds | None:
        """When a bundle can start that goes behind messages of its own collective; None where its cables differ."""
        free = bundle.cables[0].free
        return (
            free
            if all(cable.free == free and cable.owner is meeting for cable in bundle.cables)
            else None
        )

    def one_by_one(
        self, bundle: Bundle, meeting: Meeting, phase: int, nbytes: float, label: str
    ) -> None:
        """The messages of a bundle, each cable's in its turn."""
        hold, now, length = nbytes * bundle.per_byte * bundle.length, self.env.now, bundle.length
        for number, cable in enumerate(bundle.cables):
            targets = bundle.targets[number * length : (number + 1) * length]
            there: Callable[[object], None] = meeting.delivery(phase, targets)
            delay = cable.take(now, hold, meeting, label) - now + bundle.latency
            if bundle.onward:
                Timeout(self.env, delay).callbacks.append(
                    Transit(self.env, bundle.onward, nbytes, meeting, label, there)
                )
            else:
                Timeout(self.env, delay + hold).callbacks.append(there)

    def keep(self, due: Seconds, chip: int, label: str) -> Waiting:
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
            for leg in self.ways[way]:
                carried(leg.cable, messages, nbytes * leg.per_byte)
        for conversation in (each for ranks in self.conversations.values() for each in ranks):
            runs, nbytes = conversation.runs, conversation.nbytes
            for bundle in (
                b
                for phases in conversation.outboxes.bundles.values()
                for phase in phases
                for b in phase
            ):
                for cable in bundle.cables:
                    carried(cable, runs * bundle.length, nbytes * bundle.per_byte * bundle.length)
                for leg in bundle.onward:
                    carried(leg.cable, runs, nbytes * leg.per_byte)
        return Traffic(
            {cable.name: (int(n), seconds, cable.waited) for cable, (n, seconds) in links.items()}
        )


def machines(
    costs: Costs, replicas: Sequence[Irregular], seed: Sequence[int], recording: bool = False
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
