"""How micro-batches pass through the stages of a replica: what a step takes, and when it is over.

A replica offers a number of identical steps; what it passes through makes as many of them as it can tell beforehand, and says when
they are over.  `Steps` makes one at a time and is the plain reference, `Leap` and `Pipelined` are the same and fast, `Chips` lets a
`Machine` of chips take each, and `Replayed` has `Steps` or `Chips` make those again that a link has spoilt.

Clocks are compensated: what the clock of a run rounds away when a passage returns (`lost`) is part of its next wait.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Timeout

from sim.chipsim.collectives import SimProcess
from sim.chipsim.machine import ChipStep, Machine
from sim.cost.energy import Tally, summed
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.reliability.link_errors import LinkErrorSampler
from sim.results.histogram import Gaps
from sim.results.rows import Traffic
from sim.serving.policy import Request
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class BatchStep:
    """What one micro-batch takes through the stages: a token for each of its sequences, and pieces of prompts."""

    over: Callable[
        [Any, Seconds], None
    ]  # called when its last step is back, with the time at which that left the last stage
    work: Work = field(default_factory=Work)
    steps: int = (
        1  # for how many it may go on so, as nothing changes; when it is over, how many it made
    )
    prefilled: list[Request] = field(default_factory=list)  # whose prompts end with it
    last: Seconds = 0.0  # when its micro-batch last left the last stage
    counted: bool = (
        True  # the gaps before its tokens are from passage to passage; else who sent it counts them
    )
    no_output: bool = False  # its micro-batch has nothing to do when it is back, but for prompts that may have come
    clock_error: Seconds = (
        0.0  # the exact time is so much later than the clock: when it enters, and when it is back
    )


class Executor:
    """What a replica's passages go through, and are tallied.  One that takes a step at a time has nothing to cut, deal, settle or
    close.

    When its replica fails, a step under way counts as far as its stages have got: by their seconds at work, over all it takes.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.interrupted: dict[
            BatchStep, float
        ] = {}  # steps of the passages that an outage interrupted

    gaps: Gaps
    replays = 0  # steps that were made again

    @property
    def traffic(self) -> Traffic | None:
        """What each link carried, where that is known."""
        return None

    @property
    def busy(self) -> NDArray[np.float64]:
        """Seconds that each stage was at work."""
        raise NotImplementedError

    def send(self, batch_step: BatchStep) -> None:
        """It joins the first stage's queue now.  `steps` is what it will have made when it is over."""
        raise NotImplementedError

    def interrupt(self, request: Request | None = None) -> None:
        """Somebody waits for a micro-batch: who is back next is over, however many steps it might have gone on.

        Where it is but the prompt of `job` that waits, those that are back may take pieces of it that fill the token budget, all
        but the last piece, and go on.
        """

    def assign_prefill_chunks(
        self, request: Request, idle: deque[Any], most: int, start_step: Callable[[Any], object]
    ) -> None:
        """Micro-batches without sequences, at most so many, may take such pieces too.  They are taken from `idle` and put back
        there, or `turn` is called where there is more to do."""

    def complete_silent(self) -> None:
        """Who is back with nothing to tell, so that no event was made of it, is over."""

    def flush(self) -> None:
        """The run is over: what was counted apart is booked."""

    def abort(self) -> None:
        """Book everything up to now, since the replica fails: of a step under way the part that was made, and no gap."""
        raise NotImplementedError

    def steps_made(self, batch_step: BatchStep) -> float:
        """Return the steps that an interrupted passage made, its last one in part; 0 where it was not under way."""
        return self.interrupted.get(batch_step, 0.0)

    def tally_so_far(self) -> Tally:
        """Return what was tallied up to now.  A step under way counts whole, but where it can be told how far it is."""
        return summed([self.tally])

    def busy_so_far(self) -> NDArray[np.float64]:
        """Return the seconds that each stage was at work, as `tally_so_far` counts the steps under way."""
        return self.busy.copy()

    def steps_so_far(self, batch_step: BatchStep) -> int:
        """Return how many decode steps of a passage under way `tally_so_far` counts."""
        return 1 if batch_step.work.decodes else 0

    @property
    def free_at(self) -> Seconds:
        """When the last step that was taken in is over."""
        return -math.inf

    def stop(self) -> None:
        """The replica has failed and all is booked: what is under way goes to its end, and nothing of it is counted."""
        self.gaps, self.tally = Gaps(), Tally()


def not_worked(
    leave: NDArray[np.float64], times: NDArray[np.float64], now: Seconds
) -> NDArray[np.float64]:
    """Return how long each stage works on a step after `now`; the step leaves each stage at `leave` and takes `times` there."""
    return np.minimum(np.maximum(leave - now, 0.0), times)


def attended_positions(old: int, new: int, window: int | None) -> int:
    """Positions that `new` tokens after `old` ones attend to, each to itself and those before it, at most a window of them."""
    free = new if window is None else min(new, max(0, window - old))
    return free * old + free * (free + 1) // 2 + (new - free) * (window or 0)


class Pipeline:
    """When each stage is free again.  A passage takes its turn at every stage, first come first served."""

    def __init__(self, stages: int) -> None:
        self.clock = 0.0
        self.free: NDArray[np.float64] = np.zeros(stages)  # counted from the clock
        self.busy: NDArray[np.float64] = np.zeros(stages)

    def enter(
        self,
        now: Seconds,
        hops: NDArray[np.float64],
        times: NDArray[np.float64],
        clock_error: Seconds = 0.0,
    ) -> Seconds:
        """Seconds until a passage that joins the first stage's queue at now + lost leaves the last one.

        start[s] = max(leave[s-1] + hops[s], free[s]) and leave[s] = start[s] + times[s], solved by one scan: with T the
        running sum of hops and times, leave - T is the running maximum of free - (T - times), counted from its entry.
        """
        free = self.free - (now - self.clock + clock_error)
        free[0] = max(free[0], 0.0)
        total = np.cumsum(hops + times)
        leave = total + np.maximum.accumulate(free - (total - times))
        self.clock, self.free = now, leave + clock_error
        self.busy += times
        return float(leave[-1])


class StepwiseExecutor(Executor):
    """A replica's stages, each a server by itself: what a passage takes is computed, its return is waited for."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.costs, self.gaps, self.pipeline = env, costs, gaps, Pipeline(costs.stages)
        # Of each passage when it leaves each stage, and its times there [s].
        self.under_way: dict[BatchStep, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def send(self, batch_step: BatchStep) -> None:
        work, now, clock_error = batch_step.work, self.env.now, batch_step.clock_error
        self.tally.add(work, 1)
        times = self.costs.step(work).time
        delay = self.pipeline.enter(now, self.costs.hops(work.tokens), times, clock_error)
        self.under_way[batch_step] = now + self.pipeline.free, times
        wait = clock_error + delay + self.costs.back

        def back(_: simpy.Event) -> None:
            del self.under_way[batch_step]
            if work.decodes and batch_step.counted:  # it entered when its last tokens were back
                self.gaps.add(delay + self.costs.back, work.decodes)
            batch_step.steps, batch_step.clock_error = 1, wait - (self.env.now - now)
            # With no way back that is exactly the clock, and who was answered may ask at once.
            batch_step.over(batch_step, now + (clock_error + delay))

        Timeout(self.env, wait).callbacks.append(back)

    def abort(self) -> None:
        for batch_step, (leave, times) in self.under_way.items():
            unmade = not_worked(leave, times, self.env.now)
            self.pipeline.busy -= unmade
            part = float(unmade.sum() / times.sum())
            self.tally.take_back(batch_step.work, part)
            self.interrupted[batch_step] = 1 - part

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.pipeline.busy

    @property
    def free_at(self) -> Seconds:
        return self.pipeline.clock + float(self.pipeline.free.max())


class FastForwardExecutor(Executor):
    """One stage and one micro-batch: the steps in which nothing changes are an arithmetic series, and one event."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.costs, self.gaps = env, costs, gaps
        self.worked = 0.0
        self.start = self.clock_error = self.time = self.growth = 0.0  # of the passage
        self.seconds = 0.0  # from the clock's start until its steps are over
        self.batch_step: BatchStep | None = None
        self.alarm: simpy.Event | None = None  # one that was set before is stale

    def send(self, batch_step: BatchStep) -> None:
        self.batch_step, self.start, self.clock_error = (
            batch_step,
            self.env.now,
            batch_step.clock_error,
        )
        self.time, self.growth, holds = self.costs.line(batch_step.work)
        if batch_step.steps > holds:
            batch_step.steps = holds
        self.seconds = self.until(batch_step.steps)
        self.alarm = alarm = Timeout(self.env, self.seconds)
        alarm.callbacks.append(self.back)

    def until(self, steps: int) -> Seconds:
        """Seconds from the clock's start until so many steps are over."""
        return self.clock_error + steps * self.time + steps * (steps - 1) // 2 * self.growth

    def interrupt(self, request: Request | None = None) -> None:
        """The step under way is the last: the first one that ends now or later."""
        batch_step, now, start = self.batch_step, self.env.now, self.start
        if batch_step is None or batch_step.steps == 1:
            return
        passed = now - start
        slope = self.time - self.growth / 2
        steps = int(2 * passed / (slope + math.sqrt(slope * slope + 2 * self.growth * passed)))
        steps = min(max(steps, 1), batch_step.steps)
        while steps > 1 and start + self.until(steps - 1) >= now:  # the formula rounds
            steps -= 1
        while steps < batch_step.steps and start + self.until(steps) < now:
            steps += 1
        if steps < batch_step.steps:
            batch_step.steps, self.seconds = steps, self.until(steps)
            self.alarm = alarm = Timeout(self.env, max(0.0, self.seconds - passed))
            alarm.callbacks.append(self.back)

    def back(self, alarm: simpy.Event) -> None:
        batch_step = self.batch_step
        if alarm is not self.alarm or batch_step is None:
            return
        self.book(batch_step)
        now = self.env.now
        batch_step.clock_error = self.seconds - (now - self.start)
        batch_step.over(batch_step, now)

    def book(self, batch_step: BatchStep) -> None:
        self.batch_step = None
        self.worked += self.seconds - self.clock_error
        self.tally.add(batch_step.work, batch_step.steps)
        if batch_step.work.decodes and batch_step.counted:
            self.gaps.add_linear(self.time, self.growth, batch_step.steps, batch_step.work.decodes)

    def abort(self) -> None:
        self.interrupt()
        if (batch_step := self.batch_step) is None:
            return
        self.batch_step, work, whole = (
            None,
            batch_step.work,
            batch_step.steps - 1,
        )  # the step under way is the last one
        before, seconds = self.until(whole), self.time + whole * self.growth
        worked = min(max(self.env.now - self.start - before, 0.0), seconds)
        self.worked += before - self.clock_error + worked
        self.tally.add(work, batch_step.steps)
        self.tally.take_back(work, 1 - worked / seconds)
        if whole and work.decodes and batch_step.counted:
            self.gaps.add_linear(self.time, self.growth, whole, work.decodes)
        self.interrupted[batch_step] = whole + worked / seconds

    def tally_so_far(self) -> Tally:
        tally = summed([self.tally])
        if self.batch_step:
            share = self.share
            under_way = Tally()
            under_way.add(self.batch_step.work, self.batch_step.steps)
            tally = summed([tally, under_way.times(share)])
        return tally

    def busy_so_far(self) -> NDArray[np.float64]:
        return np.array([self.worked + (self.env.now - self.start if self.batch_step else 0.0)])

    def steps_so_far(self, batch_step: BatchStep) -> int:
        return (
            round(self.share * batch_step.steps)
            if batch_step is self.batch_step and batch_step.work.decodes
            else 0
        )

    @property
    def share(self) -> float:
        """The part of the time of the passage under way that has passed."""
        return min(1.0, (self.env.now - self.start) / self.seconds)

    @property
    def busy(self) -> NDArray[np.float64]:
        return np.array([self.worked])


class CompiledPipelineExecutor(Executor):
    """`Steps` compiled, several at once: until the next event of the run nothing can happen but returns, so the micro-batches that
    have steps left are taken through the stages up to there, and one alarm is set for who is back first.

    So are pieces of a prompt that fill the token budget: nothing is told of them, and what they take follows from the prompt.
    """

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        gaps: Gaps,
        slots: int,
        token_budget: int,
        interruptible: bool = False,
    ) -> None:
        from sim.serving import kernel  # Numba takes its time

        super().__init__()
        self.env, self.costs, self.gaps, self.kernel, self.budget = (
            env,
            costs,
            gaps,
            kernel,
            token_budget,
        )
        stages, kinds = costs.stages, len(costs.layers)
        self.stages = np.zeros((kernel.LAYERS + kinds, stages))
        self.stages[kernel.LAYERS :] = np.array(costs.layers).reshape(-1, stages)
        self.rows = np.zeros(
            (1 + slots, 2, stages)
        )  # grows with the numbers of tokens that come up
        self.made = np.zeros(1 + slots, np.int64)  # how many steps of each
        self.row_of: dict[int, int] = {}
        self.lines: NDArray[np.float64] = np.zeros((token_budget + 1, kinds, 7))
        self.known = bytearray(token_budget + 1)
        self.read = np.zeros((kinds, 2))
        self.batches, self.counts = (
            np.zeros((slots, kernel.SECONDS + 2 * kinds)),
            np.zeros((slots, 7), np.int64),
        )
        self.ring, self.sums = np.zeros(kernel.FIRST_BIN + kernel.BINS, np.int64), np.zeros(6)
        self.ring[kernel.BUDGET], self.ring[kernel.RANKS] = (
            token_budget,
            costs.layout.plan.attention_data,
        )
        self.sums[kernel.RETURN], self.sums[kernel.PIECE] = (
            costs.back,
            costs.layout.engine.sequence_overhead,
        )
        self.tracks = np.zeros((slots if interruptible else 0, kernel.PLACE + 1 + 2 * stages))
        self.state = (
            self.lines,
            self.read,
            self.batches,
            self.counts,
            self.ring,
            self.sums,
            self.tracks,
        )
        self.batch_steps: list[BatchStep | None] = [None] * slots
        self.unused = list(range(slots))
        self.lent: list[
            Any
        ] = []  # idle micro-batches that take pieces of prompts, and where they belong
        self.idle: deque[Any] = deque()
        self.start_step: Callable[[Any], object] = self.idle.append
        self.request: Request | None = None  # whose prompt waits
        self.left = 0  # of it; -1 where the replica is to be asked whatever is left
        self.head: tuple[float, int, int, bool, float, float, int, int] = (
            0.0,
            0,
            0,
            False,
            0.0,
            0.0,
            0,
            0,
        )
        self.asleep = True

    def row(self, tokens: int) -> int:
        """Where the kernel finds what so many tokens take."""
        if tokens not in self.row_of:
            row = self.row_of[tokens] = (
                self.kernel.FULL if tokens == self.budget else 1 + len(self.row_of)
            )
            if row >= len(self.rows):
                self.rows = np.concatenate((self.rows, np.zeros_like(self.rows)))
                self.made = np.concatenate((self.made, np.zeros_like(self.made)))
            self.rows[row] = self.costs.body(tokens), self.costs.hops(tokens)
        return self.row_of[tokens]

    def line(self, piece: int) -> None:
        """The kernel is to know what the attention of such pieces takes."""
        if piece > 0 and not self.known[piece]:
            self.known[piece] = True
            self.lines[piece] = self.costs.piece_lines(piece)

    def send(self, batch_step: BatchStep) -> None:
        work, slot = batch_step.work, self.unused.pop()
        tokens, decodes = work.tokens, work.decodes
        body, sampling, attention, growth, holds = self.costs.parts(work)
        if self.costs.sampled:  # no two steps take the same
            row = 1 + slot
            self.rows[row] = body, self.costs.hops(tokens)
            self.tally.batch_steps[tokens] += 1
        else:
            row = self.row(tokens)
        if work.prompt_tokens:
            self.tally.pieces(work)
        self.line(self.budget - decodes)
        self.batch_steps[slot] = batch_step
        numbers = (
            min(batch_step.steps, holds),
            decodes * batch_step.counted,
            int(batch_step.no_output),
            row,
        )
        of_kinds = sampling, tuple(attention), tuple(growth)
        self.kernel.join(
            slot,
            self.env.now,
            batch_step.clock_error,
            numbers,
            *of_kinds,
            self.stages,
            self.rows,
            self.made,
            *self.state,
        )
        if self.asleep:
            self.wait(self.kernel.head(self.batches, self.counts, self.ring))

    def assign_prefill_chunks(
        self, request: Request, idle: deque[Any], most: int, start_step: Callable[[Any], object]
    ) -> None:
        pieces = min(len(idle), most, (request.prompt - request.prefilled - 1) // self.budget)
        if pieces <= 0 or self.costs.sampled:
            return
        self.idle, self.start_step = idle, start_step
        self.lent += [idle.popleft() for _ in range(pieces)]
        slots, self.unused = self.unused[-pieces:], self.unused[:-pieces]
        for slot in slots:
            self.batch_steps[slot] = None
        self.row(self.budget)
        self.line(self.budget)
        self.ask(request)
        self.kernel.assign_prefill_chunks(
            self.env.now, np.array(slots), self.stages, self.rows, self.made, *self.state
        )
        request.prefilled += pieces * self.budget
        self.ask(None)
        if self.asleep:
            self.wait(self.kernel.head(self.batches, self.counts, self.ring))

    def interrupt(self, request: Request | None = None) -> None:
        if request is None or self.costs.sampled:
            self.left = self.ring[self.kernel.LEFT] = -1
        else:
            self.row(self.budget)
            self.ask(request)

    def ask(self, request: Request | None) -> None:
        """The prompt that waits, if any."""
        kernel = self.kernel
        self.request, self.left = request, 0
        if request:
            self.left, self.ring[kernel.OLD] = request.prompt - request.prefilled, request.prefilled
        self.ring[kernel.LEFT] = self.left

    def wait(self, head: tuple[float, int, int, bool, float, float, int, int]) -> None:
        self.asleep, self.head = False, head
        Timeout(self.env, max(0.0, head[0] - self.env.now)).callbacks.append(self.alarm)

    def alarm(self, _: simpy.Event) -> None:
        """The first of the ring is back: it is over, or enters again with all those that are back before the next event."""
        kernel, now, ring = self.kernel, self.env.now, self.ring
        back, slot, done, last, leave, clock_error = self.head[:6]
        batch_step = self.batch_steps[slot]
        if self.request:  # the replica may have taken pieces of it since
            self.ask(self.request)
        room = self.budget - (batch_step.work.decodes if batch_step else 0)
        if (
            self.left < 0
            or 0 < self.left <= room
            or (last and not (self.left and batch_step is None))
        ):
            self.complete_silent()
            self.ask(None)
            ring[kernel.HEAD] = (ring[kernel.HEAD] + 1) % len(self.batch_steps)
            ring[kernel.LENGTH] -= 1
            self.over(slot, done, min(leave, now), clock_error + (back - now))
        head = kernel.advance(now, self.env.peek(), self.stages, self.rows, self.made, *self.state)
        if self.request:
            self.request.prefilled = head[6]
            self.left = self.request.prompt - head[6]
        if head[7]:
            self.wait(head)
        else:
            self.asleep = True

    def over(self, slot: int, done: int, leave: Seconds, clock_error: Seconds) -> None:
        batch_step = self.batch_steps[slot]
        self.unused.append(slot)
        if batch_step:
            batch_step.steps, batch_step.clock_error = done, clock_error
            batch_step.over(batch_step, leave)
        else:
            batch = self.lent.pop()
            batch.last, batch.clock_error = leave, clock_error
            self.start_step(batch)

    def complete_silent(self) -> None:
        kernel = self.kernel
        if gone := int(self.ring[kernel.GONES]):
            self.ring[kernel.GONES] = 0
            slots = self.counts[:gone, kernel.GONE].tolist()
            if self.left:
                self.ask(None)
            dealt = [slot for slot in slots if self.batch_steps[slot] is None]
            sent = [
                slot for slot in slots if self.batch_steps[slot]
            ]  # over() may use the others anew
            self.unused += dealt
            self.idle += [self.lent.pop() for _ in dealt]
            for slot in sent:
                self.over(slot, 1, 0.0, 0.0)

    def tally_so_far(self) -> Tally:
        tally = summed([self.tally])
        self.add_compiled(tally)
        return tally

    def steps_so_far(self, batch_step: BatchStep) -> int:
        slots = (
            i
            for i, each in enumerate(self.batch_steps)
            if each is batch_step and i not in self.unused
        )
        slot = next(slots, None)
        return (
            int(self.counts[slot, self.kernel.DONE])
            if slot is not None and batch_step.work.decodes
            else 0
        )

    @property
    def free_at(self) -> Seconds:
        return float(self.sums[self.kernel.CLOCK] + self.stages[self.kernel.FREE].max())

    def flush(self) -> None:
        kernel = self.kernel
        self.add_compiled(self.tally)
        bins = self.ring[kernel.FIRST_BIN :]
        used = np.flatnonzero(bins)
        self.gaps.join(
            dict(zip((used + kernel.LOWEST_BIN).tolist(), bins[used].tolist(), strict=True)),
            *self.sums[[kernel.TOTAL, kernel.SQUARES]].tolist(),
        )

    def add_compiled(self, tally: Tally) -> None:
        """Add what the compiled code counted."""
        for tokens, row in self.row_of.items():
            tally.batch_steps[tokens] += int(self.made[row])
        read = {
            shape.window is not None: sums
            for shape, sums in zip(self.costs.shapes, self.read.tolist(), strict=True)
        }
        for windowed, (attended, cached) in read.items():
            if windowed:
                tally.windowed_attended += attended
                tally.windowed_cached += cached
            else:
                tally.attended += attended
                tally.cached += cached
        tally.steps_without_sampling += int(self.ring[self.kernel.STEPS_WITHOUT_SAMPLING])

    def abort(self) -> None:
        kernel, ring, tally, stages = self.kernel, self.ring, self.tally, self.costs.stages
        for slot in np.roll(self.counts[:, kernel.ORDER], -ring[kernel.HEAD])[
            : ring[kernel.LENGTH]
        ].tolist():
            track, batch_step = self.tracks[slot], self.batch_steps[slot]
            leave, times = track[kernel.PLACE + 1 :].reshape(2, stages)
            unmade = not_worked(leave, times, self.env.now)
            self.stages[kernel.BUSY] -= unmade
            part = float(unmade.sum() / times.sum())
            piece, old = int(track[kernel.TAKEN]), int(track[kernel.BEFORE])
            if batch_step and not piece:
                tally.take_back(batch_step.work, part)
            else:
                tally.take_back(
                    self.piece(piece, old, batch_step.work.decodes if batch_step else 0), part
                )
            decodes = int(self.counts[slot, kernel.DECODES])
            if decodes:  # its tokens do not come
                gap = float(track[kernel.GAP])
                ring[kernel.FIRST_BIN + int(track[kernel.PLACE])] -= decodes
                self.sums[[kernel.COUNT, kernel.TOTAL, kernel.SQUARES]] -= (
                    decodes,
                    decodes * gap,
                    decodes * gap * gap,
                )
            if batch_step:
                self.interrupted[batch_step] = int(self.counts[slot, kernel.DONE]) - part
        self.flush()

    def piece(self, tokens: int, old: int, decodes: int) -> Work:
        """A step with a piece of a prompt, of which `old` tokens were done before; its decodes are counted elsewhere."""
        window = self.costs.layout.model.window or 0
        work = Work(
            decodes,
            prompt_tokens=tokens,
            attended=attended_positions(old, tokens, None),
            cached=old + tokens,
            logits=decodes,
        )
        if window:
            work.windowed_attended, work.windowed_cached = (
                attended_positions(old, tokens, window),
                min(old, window) + tokens,
            )
        return work

    @property
    def busy(self) -> NDArray[np.float64]:
        busy: NDArray[np.float64] = self.stages[self.kernel.BUSY]
        return busy


class ChipExecutor(Executor):
    """A machine of chips takes each passage; what it takes is not known beforehand."""

    def __init__(self, env: simpy.Environment, machine: Machine, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.machine, self.gaps = env, machine, gaps
        self.under_way: dict[BatchStep, ChipStep] = {}

    def send(self, batch_step: BatchStep) -> None:
        self.env.process(self.through(batch_step))

    def through(self, batch_step: BatchStep) -> SimProcess:
        self.tally.add(batch_step.work, 1)
        step = self.under_way[batch_step] = self.machine.start(batch_step.work)
        leave = yield step.back
        del self.under_way[batch_step]
        if batch_step.work.decodes and batch_step.counted:
            self.gaps.add(leave - batch_step.last, batch_step.work.decodes)
        batch_step.steps = 1
        batch_step.over(batch_step, leave)

    def abort(self) -> None:
        """What the whole step takes is computed as for chips that are alike."""
        self.machine.abort(self.under_way.values())
        for batch_step, step in self.under_way.items():
            part = min(
                1.0, step.worked / float(self.machine.costs.step(batch_step.work).time.sum())
            )
            self.tally.take_back(batch_step.work, 1 - part)
            self.interrupted[batch_step] = part

    @property
    def free_at(self) -> Seconds:
        return self.machine.left[-1] if self.machine.left else -math.inf

    @property
    def traffic(self) -> Traffic:
        return self.machine.traffic

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.machine.busy


class RetryExecutor(Executor):
    """A step that a link has spoilt is made again when it is over, from the first stage on."""

    def __init__(
        self, env: simpy.Environment, through: Executor, error_sampler: LinkErrorSampler, gaps: Gaps
    ) -> None:
        self.env, self.through, self.error_sampler, self.gaps, self.tally = (
            env,
            through,
            error_sampler,
            gaps,
            through.tally,
        )
        self.inner: dict[BatchStep, BatchStep] = {}
        self.retried: set[BatchStep] = set()  # those under way that were made once at least

    def send(self, batch_step: BatchStep) -> None:
        once = partial(self.back, batch_step)
        inner = BatchStep(
            once,
            batch_step.work,
            last=batch_step.last,
            counted=False,
            clock_error=batch_step.clock_error,
        )
        self.inner[batch_step] = inner
        self.through.send(inner)

    def back(self, batch_step: BatchStep, passed: BatchStep, leave: Seconds) -> None:
        if self.error_sampler(batch_step.work.tokens):
            self.replays += 1
            self.retried.add(batch_step)
            Timeout(self.env, self.error_sampler.errors.restart).callbacks.append(
                lambda _: self.through.send(passed)
            )
            return
        del self.inner[batch_step]
        self.retried.discard(batch_step)
        if batch_step.work.decodes and batch_step.counted:
            self.gaps.add(leave - batch_step.last, batch_step.work.decodes)
        batch_step.steps, batch_step.clock_error = 1, passed.clock_error
        batch_step.over(batch_step, leave)

    def abort(self) -> None:
        self.through.abort()

    def steps_made(self, batch_step: BatchStep) -> float:
        if batch_step in self.retried:
            return 1.0
        inner = self.inner.get(batch_step)
        return self.through.steps_made(inner) if inner else 0.0

    def stop(self) -> None:
        self.through.stop()
        super().stop()

    @property
    def free_at(self) -> Seconds:
        return self.through.free_at

    @property
    def traffic(self) -> Traffic | None:
        return self.through.traffic

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.through.busy
