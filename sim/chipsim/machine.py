"""Service at chip fidelity: every chip is a SimPy process that executes its program.

A step goes from stage to stage.  The chips of a stage start it together, when each has its slice
of the input and the stage has finished the step before.  They compute, each at its own speed, and
take part in collectives (`collectives`).
In a `scheduled` network the times of the program are known beforehand.  A chip that is late, or a
link that another collective or step has taken, is an error of the schedule.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, Timeout

from sim.chipsim.arrivals import LastArrival
from sim.chipsim.collectives import BoundCollective, SimProcess, Transport
from sim.chipsim.exceptions import NO_IRREGULARITIES, ChipException, Irregularities
from sim.chipsim.message_heads import Shipment
from sim.chipsim.network import TOLERANCE, Network, ScheduleError
from sim.cost.program import CollectiveOp, ComputeOp, Program, WaitOp, program
from sim.cost.step import Costs
from sim.cost.system_costs import SystemCosts
from sim.cost.work import Work
from sim.results.rows import Traffic
from sim.units import Seconds

JITTER_BATCH = 256  # factors of a chip sampled together, for speed


class MachineStep(Protocol):
    """A step of a micro-batch on the chips of a machine.

    back: the step is over; the value is when it left the last stage [s].
    worked: time that chips have worked on it [s].
    """

    @property
    def back(self) -> Event: ...

    @property
    def worked(self) -> Seconds: ...


class ChipMachine(Protocol):
    """A replica, chip by chip, as an executor sees it.

    left: when each step left the last stage [s].
    busy: float[stage], its working time [s].
    """

    left: list[Seconds]
    busy: NDArray[np.float64]

    @property
    def costs(self) -> SystemCosts:
        """The costs of usual chips."""

    @property
    def traffic(self) -> Traffic:
        """The traffic of the links."""

    def start(self, work: Work) -> MachineStep:
        """Add a step to the queue of the first stage."""

    def abort(self) -> None:
        """Count the work on the steps under way until now, because the replica fails."""


MachineFactory = Callable[[simpy.Environment, int], ChipMachine]  # makes the machine of a replica


class TimelineSlice(NamedTuple):
    """An activity of a chip in a timeline."""

    chip: int
    start: Seconds
    end: Seconds
    label: str
    kind: str  # compute, exchange


Script = Sequence[Sequence[ComputeOp | WaitOp | BoundCollective]]  # by stage


@dataclass(eq=False, slots=True)
class ChipStep:
    """A step of a micro-batch on its way through the stages.

    scripts: by kind of chip.
    back: the sampled token is at the first chip; the value is when it left the last stage [s].
    inputs: of each stage after the first, the arrival of all slices of its input.
    began: start on its current stage [s].
    worked: time on all stages that it has left [s].
    """

    scripts: Sequence[Script]
    hidden_states: Shipment
    token: Shipment
    back: Event
    inputs: list[LastArrival] = field(default_factory=list)
    began: Seconds = 0.0
    worked: Seconds = 0.0

    def is_back(self, left: Seconds) -> None:
        """Trigger `back`."""
        self.back.succeed(left)


@dataclass(eq=False)
class StageOfChips:
    """The chips of a stage, and the steps that wait for them.

    current: the step that they work on; None while they wait.
    """

    number: int
    coming: Event  # the next step starts; its value is that step
    current: ChipStep | None = None
    waiting: deque[ChipStep] = field(default_factory=deque)
    at_work: int = 0  # chips that have not finished the current step


class Machine:
    """A replica, chip by chip."""

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        irregular: Irregularities = NO_IRREGULARITIES,
        seed: Sequence[int] = (),
        recording: bool = False,
    ) -> None:
        layout = costs.layout
        self.env, self.costs, self.irregular, self.seed = env, costs, irregular, seed
        self.stage_size, self.tensor = layout.plan.stage_size, layout.plan.tensor
        self.network = Network(layout.topology, irregular.scheduled, irregular.links, recording)
        self.transport = Transport(env, self.network)
        self.busy: NDArray[np.float64] = np.zeros(costs.stages)  # float[stage], s
        self.stages = [StageOfChips(number, Event(env)) for number in range(costs.stages)]
        self.recording = recording
        self.slices: list[TimelineSlice] = []
        self.left: list[Seconds] = []  # when each step left the last stage
        own = {exception.number: exception for exception in irregular.chips}
        self.kinds: list[Costs] = list(
            dict.fromkeys(
                [costs, *(exception.costs for exception in own.values() if exception.costs)]
            )
        )
        for number in range(self.stage_size * costs.stages):
            exception = own.get(number, ChipException(number))
            env.process(
                self.chip(number, self.kinds.index(exception.costs or costs), 1 / exception.speed)
            )

    def start(self, work: Work) -> ChipStep:
        """Add a step to the queue of the first stage."""
        programs = [program(costs, work) for costs in self.kinds]
        first = programs[0]
        chip_step = ChipStep(
            [self.script(steps) for steps in programs],
            Shipment(first.slice_bytes, "hidden states"),
            Shipment(first.token_bytes, "token"),
            Event(self.env),
        )
        for stage in self.stages[1:]:
            slices = LastArrival(self.env, self.stage_size)
            slices.callbacks.append(partial(self.enter, chip_step, stage))
            chip_step.inputs.append(slices)
        self.enter(chip_step, self.stages[0])
        return chip_step

    def abort(self) -> None:
        """Count the work on the steps under way until now, because the replica fails."""
        for stage in self.stages:
            if stage.current:
                self.count_work(stage.current, stage)

    def script(self, program: Program) -> Script:
        """Return the program with its collectives bound to runs."""
        return [
            [
                self.transport.bind(instruction.label, instruction.exchange)
                if isinstance(instruction, CollectiveOp)
                else instruction
                for instruction in instructions
            ]
            for instructions in program.stages
        ]

    # Stages.

    def enter(self, chip_step: ChipStep, stage: StageOfChips, _: object = None) -> None:
        """Add a step to the stage's queue: its input is there."""
        stage.waiting.append(chip_step)
        if not stage.at_work:
            self.begin(stage)

    def begin(self, stage: StageOfChips) -> None:
        """Start the next step of the queue on all chips of the stage."""
        chip_step = stage.waiting.popleft()
        chip_step.began, stage.current = self.env.now, chip_step
        stage.at_work = self.stage_size
        coming, stage.coming = stage.coming, Event(self.env)
        coming.succeed(chip_step)

    def leave(self, chip: int, chip_step: ChipStep, stage: StageOfChips) -> None:
        """Finish a chip's part of a step, and send its slice to the next stage.

        The last chip of the stage starts the next step.
        """
        last = stage.number == len(self.stages) - 1
        if not last:
            arrived = chip_step.inputs[stage.number].arrives_at
            self.transport.send(chip, chip + self.stage_size, chip_step.hidden_states, arrived)
        stage.at_work -= 1
        if stage.at_work:
            return
        self.count_work(chip_step, stage)
        stage.current = None
        if last:
            self.left.append(self.env.now)
            now = self.env.now
            if stage.number:
                token, source = LastArrival(self.env, 1), self.costs.collectives.last
                token.callbacks.append(lambda _: chip_step.is_back(now))
                self.transport.send(source, 0, chip_step.token, token.arrives_at)
            else:
                chip_step.is_back(now)
        if stage.waiting:
            self.begin(stage)

    def count_work(self, chip_step: ChipStep, stage: StageOfChips) -> None:
        """Add the time since the step began on the stage."""
        seconds = self.env.now - chip_step.began
        self.busy[stage.number] += seconds
        chip_step.worked += seconds

    # Chips.

    def chip(self, number: int, kind: int, slowness: float) -> SimProcess:
        """Run a chip: it waits for a step, executes its program, and sends its slice.

        slowness: factor on its computing times.
        """
        env, transport, scheduled = self.env, self.transport, self.irregular.scheduled
        stage, timeout = self.stages[number // self.stage_size], self.transport.waits.timeout
        rank, jitter = number % self.stage_size // self.tensor, self.irregular.jitter
        factors = jitter_factors(jitter, [*self.seed, number]) if jitter else repeat(1.0)
        coming = stage.coming
        while True:
            chip_step: ChipStep = yield coming
            coming = stage.coming
            start = due = chip_step.began
            for step in chip_step.scripts[kind][stage.number]:
                if isinstance(step, ComputeOp):
                    due += step.seconds
                    yield timeout(step.seconds * slowness * next(factors))
                elif isinstance(step, BoundCollective):
                    if scheduled:
                        yield from self.wait_until(due, number, step.label)
                    yield transport.join(number, step, rank)
                    due = env.now
                else:
                    launched = chip_step.began + step.seconds
                    due = max(due, launched)
                    if launched > env.now:
                        yield Timeout(env, launched - env.now)
                if self.recording:
                    kind_of = "exchange" if isinstance(step, BoundCollective) else "compute"
                    self.slices.append(TimelineSlice(number, start, env.now, step.label, kind_of))
                    start = env.now
            if scheduled:
                yield from self.wait_until(due, number, "hidden states")
            self.leave(number, chip_step, stage)

    def wait_until(self, due: Seconds, chip: int, label: str) -> SimProcess:
        """Wait for a time of the schedule.  Raises: ScheduleError if it has passed."""
        early = due - self.env.now
        if early < -TOLERANCE:
            raise ScheduleError(
                f"schedule: chip {chip} is {-1e6 * early:.3f} us late for {label}, "
                f"due at {1e6 * due:.3f} us"
            )
        if early > 0:
            yield Timeout(self.env, early)

    @property
    def traffic(self) -> Traffic:
        """The traffic of the links."""
        return self.transport.traffic


def jitter_factors(sigma: float, seed: Sequence[int]) -> Iterator[float]:
    """Yield factors on the computing times of a chip, without end: lognormal, of mean 1."""
    stream = np.random.default_rng(seed)
    while True:
        yield from stream.lognormal(-(sigma**2) / 2, sigma, JITTER_BATCH).tolist()


def machine_factory(
    costs: Costs,
    replicas: Sequence[Irregularities],
    seed: Sequence[int],
    recording: bool = False,
    first: int = 0,
) -> MachineFactory:
    """Return a factory of machines, one for each replica.

    Each chip has a random stream of its own, so a slower system meets the same jitter.
    first: number of the first replica in its fleet, which tells the fleet's streams apart.
    """

    def make(env: simpy.Environment, replica: int) -> Machine:
        return Machine(env, costs, replicas[replica], [*seed, first + replica], recording)

    return make


def collecting_factory(factory: MachineFactory, made: list[ChipMachine]) -> MachineFactory:
    """Return a factory of the same machines, which appends each to `made`."""

    def make(env: simpy.Environment, replica: int) -> ChipMachine:
        made.append(factory(env, replica))
        return made[-1]

    return make
