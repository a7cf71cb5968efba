"""Attention and FFN pools at chip fidelity: micro-batches take turns on the chips of both pools.

In every layer a micro-batch is computed by the attention pool, crosses to the FFN pool, is computed
by the stage that has the layer, and crosses back. Nothing else decides when a visit begins. The
chips of a stage take turns in the order in which their inputs are complete. The first chip of a
stage to end a visit does not wait for the others, unless a collective joins them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, Timeout

from sim.chipsim.collectives import BoundCollective, SimProcess, Transport
from sim.chipsim.exceptions import NO_IRREGULARITIES, Irregularities
from sim.chipsim.machine import MachineFactory, TimelineSlice, jitter_factors
from sim.chipsim.network import Cable, Network
from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.collectives import Collectives
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.program import CollectiveOp, ComputeOp
from sim.cost.visit_program import LayerOps, PoolOps, VisitProgram, visit_program
from sim.cost.work import Work
from sim.results.rows import Traffic
from sim.units import Seconds

VisitScript = Sequence[ComputeOp | BoundCollective]
Done = Callable[[int], None]  # called by each chip that ends a visit, with its number
BothIrregularities = tuple[Irregularities, Irregularities]  # of the attention and the FFN pool


class PoolVisit(NamedTuple):
    """The work of a stage's chips on one micro-batch in one layer. label: for timelines."""

    script: VisitScript
    done: Done
    label: str = ""


class ChipPool:
    """The chips of a pool, each of which is a process that executes visits.

    rank: chips that take part in a collective together.
    slices: recorded activities of chips; None if they are not recorded.
    """

    def __init__(
        self,
        env: simpy.Environment,
        collectives: Collectives,
        irregular: Irregularities,
        seed: Sequence[int],
        recording: bool,
    ) -> None:
        layout = collectives.layout
        self.env, self.jitter, self.seed = env, irregular.jitter, seed
        self.rank, self.size = layout.plan.tensor, layout.plan.stage_size
        self.stages = len(layout.stages)
        network = Network(layout.topology, False, irregular.links, recording)
        self.transport = Transport(env, network)
        self.slices: list[TimelineSlice] | None = [] if recording else None
        # The event of each stage's next visit. The value is the visit, and the event after it.
        self.coming = [Event(env) for _ in range(self.stages)]
        speeds = {exception.number: exception.speed for exception in irregular.chips}
        for number in range(self.chips):
            first = self.coming[number // self.size]
            env.process(self.chip(number, first, 1 / speeds.get(number, 1.0)))

    @property
    def chips(self) -> int:
        """The chips of all stages."""
        return self.size * self.stages

    def members(self, stage: int) -> range:
        """Return the chips of a stage."""
        return range(stage * self.size, (stage + 1) * self.size)

    def enter(self, stage: int, visit: PoolVisit) -> None:
        """Add a visit to the queue of a stage, whose chips have its input."""
        event, after = self.coming[stage], Event(self.env)
        self.coming[stage] = after
        event.succeed((visit, after))

    def bind(self, operations: PoolOps) -> VisitScript:
        """Return operations with their collectives bound to runs."""
        return [
            self.transport.bind(op.label, op.exchange) if isinstance(op, CollectiveOp) else op
            for op in operations
        ]

    def chip(self, number: int, coming: Event, slowness: float) -> SimProcess:
        """Run a chip: it waits for its next visit, and executes the script.

        coming: the event of its first visit. slowness: factor on its computing times.
        """
        rank, jitter = number % self.size // self.rank, self.jitter
        factors = jitter_factors(jitter, [*self.seed, number]) if jitter else repeat(1.0)
        while True:
            visit, coming = yield coming
            for op in visit.script:
                start, computing = self.env.now, isinstance(op, ComputeOp)
                if isinstance(op, ComputeOp):
                    yield self.transport.waits.timeout(op.seconds * slowness * next(factors))
                else:
                    yield self.transport.join(number, op, rank)
                if self.slices is not None:
                    label, kind = visit.label + op.label, "compute" if computing else "exchange"
                    self.slices.append(TimelineSlice(number, start, self.env.now, label, kind))
            visit.done(number)


class UsedLink(NamedTuple):
    """A link with the messages that it has carried, and the time for which they kept it busy."""

    cable: Cable
    holds: list[Seconds]

    def take(self, now: Seconds, hold: Seconds, owner: object) -> Seconds:
        """Take the link for a message, and return when it is free again [s]."""
        self.holds.append(hold)
        return self.cable.take(now, hold, owner, "hidden states") + hold


class Links:
    """The links from one pool to the other: one at each chip, or one for all chips.

    The network between them carries all that they send and receive.
    """

    def __init__(
        self,
        env: simpy.Environment,
        name: str,
        chips: tuple[int, int],
        transfer: LayerTransfer,
        recording: bool,
    ) -> None:
        self.env, self.latency = env, transfer.latency
        self.shared = transfer.per == "system"
        senders, receivers = (0, 0) if self.shared else chips

        def link(name: str) -> UsedLink:
            return UsedLink(Cable(name, uses=[] if recording else None), [])

        self.out = [link(f"{name}, from chip {n}") for n in range(senders)]
        self.into = [link(f"{name}, to chip {n}") for n in range(receivers)]
        self.whole = link(name)

    @property
    def traffic(self) -> dict[str, tuple[int, Seconds, Seconds]]:
        """Messages, time busy [s] and time waited [s] of each link."""
        uses = [self.whole] if self.shared else [*self.out, *self.into]
        return {
            use.cable.name: (len(use.holds), math.fsum(use.holds), use.cable.waited) for use in uses
        }


class HiddenStates:
    """The hidden states of a micro-batch on their way to the other pool.

    Each chip sends its part as soon as it has it. The receivers begin together, when the last byte
    has come and the latency has passed.

    sending, receiving: time for which the part of a chip keeps its link busy [s].
    missing: chips that have not sent their parts. last_byte: when it leaves the links [s].
    """

    __slots__ = ("arrived", "last_byte", "links", "missing", "receivers", "receiving", "sending")

    def __init__(
        self,
        links: Links,
        senders: int,
        receivers: range,
        seconds: tuple[Seconds, Seconds],
        arrived: Callable[[Event], None],
    ) -> None:
        self.links, self.missing, self.receivers, self.arrived = links, senders, receivers, arrived
        self.sending, self.receiving = seconds
        self.last_byte = -1.0
        if links.shared:
            self.sending, self.receivers = self.sending / senders, range(0)

    def send(self, chip: int) -> None:
        """Send the part of a chip. The receivers' links are taken with the first part."""
        links, now = self.links, self.links.env.now
        if self.last_byte < 0:
            ends = (links.into[n].take(now, self.receiving, self) for n in self.receivers)
            self.last_byte = max(ends, default=now)
        link = links.whole if links.shared else links.out[chip]
        self.last_byte = max(self.last_byte, link.take(now, self.sending, self))
        self.missing -= 1
        if not self.missing:
            delay = self.last_byte - now + links.latency
            Timeout(links.env, delay).callbacks.append(self.arrived)


@dataclass(eq=False, slots=True)
class StepOfVisits:
    """A step on both pools.

    scripts: of each layer on both pools, bound to collectives.
    back: the step is over; the value is that time [s].
    missing: chips or micro-batches that are not ready for what comes next.
    """

    program: VisitProgram
    scripts: list[tuple[VisitScript, VisitScript]]
    back: Event
    began: Seconds
    missing: int = 0
    worked: Seconds = 0.0


class AttentionFfnMachine:
    """A replica on an attention pool and an FFN pool, chip by chip.

    It makes one step at a time. The embedding of all tokens comes before the first layer, and the
    head after the last micro-batch.
    Left out: times of a schedule made in advance, and the host's launches of layers.
    """

    def __init__(
        self,
        env: simpy.Environment,
        costs: AttentionFfnCosts,
        irregular: BothIrregularities = (NO_IRREGULARITIES, NO_IRREGULARITIES),
        seed: Sequence[int] = (),
        recording: bool = False,
    ) -> None:
        self.env, self.costs = env, costs
        own, other = costs.attention.collectives, costs.ffn.rows.collectives
        self.attention = ChipPool(env, own, irregular[0], [*seed, 0], recording)
        self.ffn = ChipPool(env, other, irregular[1], [*seed, 1], recording)
        chips, transfer = (self.attention.chips, self.ffn.chips), costs.transfer
        self.out = Links(env, "attention to FFN", chips, transfer, recording)
        self.back = Links(env, "FFN to attention", chips[::-1], transfer, recording)
        self.left: list[Seconds] = []
        self.busy: NDArray[np.float64] = np.zeros(1)  # the attention pool is one stage
        self.current: StepOfVisits | None = None

    def start(self, work: Work) -> StepOfVisits:
        """Start a step, when the step before is over."""
        program = visit_program(self.costs, work)
        bound = {id(layer): self.bind(layer) for layer in program.layers}
        scripts = [bound[id(layer)] for layer in program.layers]
        step = self.current = StepOfVisits(program, scripts, Event(self.env), self.env.now)
        self.once(step, program.opening, lambda: self.first_visits(step))
        return step

    def bind(self, layer: LayerOps) -> tuple[VisitScript, VisitScript]:
        """Return what the chips of both pools execute in a layer."""
        return self.attention.bind(layer.attention), self.ffn.bind(layer.ffn)

    def once(self, step: StepOfVisits, operations: PoolOps, then: Callable[[], None]) -> None:
        """Execute operations on the attention pool, and call `then` when all its chips are done."""
        step.missing = self.attention.chips

        def done(_: int) -> None:
            step.missing -= 1
            if not step.missing:
                then()

        self.attention.enter(0, PoolVisit(self.attention.bind(operations), done))

    def first_visits(self, step: StepOfVisits) -> None:
        """Let all micro-batches begin the first layer."""
        step.missing = step.program.micro_batches
        for batch in range(step.missing):
            self.attend(step, batch, 0)

    def attend(self, step: StepOfVisits, batch: int, layer: int, _: Event | None = None) -> None:
        """Add a micro-batch to the queue of the attention pool, unless a pool has failed since."""
        if step is not self.current:
            return
        ops = step.program.layers[layer]
        seconds = ops.links.attention_out, ops.links.ffn_out
        receivers = self.ffn.members(ops.stage)
        arrived, script = partial(self.feed, step, batch, layer), step.scripts[layer][0]
        message = HiddenStates(self.out, self.attention.size, receivers, seconds, arrived)
        self.attention.enter(0, PoolVisit(script, message.send, visit_label(batch, layer)))

    def feed(self, step: StepOfVisits, batch: int, layer: int, _: Event) -> None:
        """Add a micro-batch to the queue of the FFN stage that has the layer, as `attend` does."""
        if step is not self.current:
            return
        ops, receivers = step.program.layers[layer], self.attention.members(0)
        seconds = ops.links.ffn_back, ops.links.attention_back
        more, script = layer + 1 < len(step.program.layers), step.scripts[layer][1]
        arrived = partial(self.returned, step)
        if more:
            arrived = partial(self.attend, step, batch, layer + 1)
        message = HiddenStates(self.back, self.ffn.size, receivers, seconds, arrived)
        done = (
            partial(self.delayed, ops.overlapped, message.send) if ops.overlapped else message.send
        )
        self.ffn.enter(ops.stage, PoolVisit(script, done, visit_label(batch, layer)))

    def delayed(self, delay: Seconds, done: Done, chip: int) -> None:
        """Report the end of a chip's visit after its last exchange."""
        Timeout(self.env, delay).callbacks.append(lambda _: done(chip))

    def returned(self, step: StepOfVisits, _: Event) -> None:
        """Count a micro-batch that has passed all layers; after the last one comes the head."""
        step.missing -= 1
        if not step.missing:
            self.once(step, step.program.closing, lambda: self.complete(step))

    def complete(self, step: StepOfVisits) -> None:
        """Complete a step, unless a pool has failed since."""
        if step is not self.current:
            return
        self.count_work(step)
        self.current = None
        self.left.append(self.env.now)
        step.back.succeed(self.env.now)

    def count_work(self, step: StepOfVisits) -> None:
        """Add the time since the step began."""
        step.worked = self.env.now - step.began
        self.busy[0] += step.worked

    def abort(self) -> None:
        """Count the work on the step under way until now, because a pool fails. It ends here."""
        if self.current:
            self.count_work(self.current)
            self.current = None

    @property
    def traffic(self) -> Traffic:
        """The traffic of the links inside both pools and between them."""
        pools = {"attention": self.attention, "FFN": self.ffn}
        inside = {
            f"{name}: {link}": use
            for name, pool in pools.items()
            for link, use in pool.transport.traffic.links.items()
        }
        return Traffic(inside | self.out.traffic | self.back.traffic)


def visit_label(batch: int, layer: int) -> str:
    """Return the beginning of a label in timelines, which count micro-batches from 1."""
    return f"layer {layer}, micro-batch {batch + 1}: "


def visit_factory(
    costs: AttentionFfnCosts,
    irregular: BothIrregularities,
    seed: Sequence[int],
    recording: bool = False,
    first: int = 0,
) -> MachineFactory:
    """Return a factory of equal machines. first: number of the first replica in its fleet."""

    def make(env: simpy.Environment, replica: int) -> AttentionFfnMachine:
        return AttentionFfnMachine(env, costs, irregular, [*seed, first + replica], recording)

    return make
