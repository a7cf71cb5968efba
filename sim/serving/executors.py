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

from sim.chipsim.machine import Machine, Waiting
from sim.chipsim.machine import Passage as StepOfChips
from sim.cost.energy import Tally, summed
from sim.cost.step import Costs, Work
from sim.reliability.link_errors import Spoils
from sim.results.rows import Gaps, Traffic
from sim.serving.policy import Job
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class Passage:
    """What one micro-batch takes through the stages: a token for each of its sequences, and pieces of prompts."""

    over: Callable[
        [Any, Seconds], None
    ]  # called when its last step is back, with the time at which that left the last stage
    work: Work = field(default_factory=Work)
    steps: int = (
        1  # for how many it may go on so, as nothing changes; when it is over, how many it made
    )
    prefilled: list[Job] = field(default_factory=list)  # whose prompts end with it
    last: Seconds = 0.0  # when its micro-batch last left the last stage
    counted: bool = (
        True  # the gaps before its tokens are from passage to passage; else who sent it counts them
    )
    silent: bool = False  # its micro-batch has nothing to do when it is back, but for prompts that may have come
    lost: Seconds = (
        0.0  # the exact time is so much later than the clock: when it enters, and when it is back
    )


class Passing:
    """What a replica's passages go through, and are tallied.  One that takes a step at a time has nothing to cut, deal, settle or
    close.

    When its replica fails, a step under way counts as far as its stages have got: by their seconds at work, over all it takes.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.interrupted: dict[
            Passage, float
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

    def send(self, passage: Passage) -> None:
        """It joins the first stage's queue now.  `steps` is what it will have made when it is over."""
        raise NotImplementedError

    def cut(self, job: Job | None = None) -> None:
        """Somebody waits for a micro-batch: who is back next is over, however many steps it might have gone on.

        Where it is but the prompt of `job` that waits, those that are back may take pieces of it that fill the token budget, all
        but the last piece, and go on.
        """

    def deal(self, job: Job, idle: deque[Any], most: int, turn: Callable[[Any], object]) -> None:
        """Micro-batches without sequences, at most so many, may take such pieces too.  They are taken from `idle` and put back
        there, or `turn` is called where there is more to do."""

    def settle(self) -> None:
        """Who is back with nothing to tell, so that no event was made of it, is over."""

    def close(self) -> None:
        """The run is over: what was counted apart is booked."""

    def interrupt(self) -> None:
        """Book everything up to now, since the replica fails: of a step under way the part that was made, and no gap."""
        raise NotImplementedError

    def steps_made(self, passage: Passage) -> float:
        """Return the steps that an interrupted passage made, its last one in part; 0 where it was not under way."""
        return self.interrupted.get(passage, 0.0)

    def tally_so_far(self) -> Tally:
        """Return what was tallied up to now.  A step under way counts whole, but where it can be told how far it is."""
        return summed([self.tally])

    def busy_so_far(self) -> NDArray[np.float64]:
        """Return the seconds that each stage was at work, as `tally_so_far` counts the steps under way."""
        return self.busy.copy()

    def steps_so_far(self, passage: Passage) -> int:
        """Return how many decode steps of a passage under way `tally_so_far` counts."""
        return 1 if passage.work.decodes else 0

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


def seen(old: int, new: int, window: int | None) -> int:
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
        lost: Seconds = 0.0,
    ) -> Seconds:
        """Seconds until a passage that joins the first stage's queue at now + lost leaves the last one.

        start[s] = max(leave[s-1] + hops[s], free[s]) and leave[s] = start[s] + times[s], solved by one scan: with T the
        running sum of hops and times, leave - T is the running maximum of free - (T - times), counted from its entry.
        """
        free = self.free - (now - self.clock + lost)
        free[0] = max(free[0], 0.0)
        total = np.cumsum(hops + times)
        leave = total + np.maximum.accumulate(free - (total - times))
        self.clock, self.free = now, leave + lost
        self.busy += times
        return float(leave[-1])


class Steps(Passing):
    """A replica's stages, each a server by itself: what a passage takes is computed, its return is waited for."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.costs, self.gaps, self.pipeline = env, costs, gaps, Pipeline(costs.stages)
        # Of each passage when it leaves each stage, and its times there [s].
        self.under_way: dict[Passage, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def send(self, passage: Passage) -> None:
        work, now, lost = passage.work, self.env.now, passage.lost
        self.tally.add(work, 1)
        times = self.costs.step(work).time
        delay = self.pipeline.enter(now, self.costs.hops(work.tokens), times, lost)
        self.under_way[passage] = now + self.pipeline.free, times
        wait = lost + delay + self.costs.back

        def back(_: simpy.Event) -> None:
            del self.under_way[passage]
            if work.decodes and passage.counted:  # it entered when its last tokens were back
                self.gaps.add(delay + self.costs.back, work.decodes)
            passage.steps, passage.lost = 1, wait - (self.env.now - now)
            # With no way back that is exactly the clock, and who was answered may ask at once.
            passage.over(passage, now + (lost + delay))

        Timeout(self.env, wait).callbacks.append(back)

    def interrupt(self) -> None:
        for passage, (leave, times) in self.under_way.items():
            unmade = not_worked(leave, times, self.env.now)
            self.pipeline.busy -= unmade
            part = float(unmade.sum() / times.sum())
            self.tally.take_back(passage.work, part)
            self.interrupted[passage] = 1 - part

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.pipeline.busy

    @property
    def free_at(self) -> Seconds:
        return self.pipeline.clock + float(self.pipeline.free.max())


class Leap(Passing):
    """One stage and one micro-batch: the steps in which nothing changes are an arithmetic series, and one event."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.costs, self.gaps = env, costs, gaps
        self.worked = 0.0
        self.start = self.lost = self.time = self.growth = 0.0  # of the passage
        self.seconds = 0.0  # from the clock's start until its steps are over
        self.passage: Passage | None = None
        self.alarm: simpy.Event | None = None  # one that was set before is stale

    def send(self, passage: Passage) -> None:
        self.passage, self.start, self.lost = passage, self.env.now, passage.lost
        self.time, self.growth, holds = self.costs.line(passage.work)
        if passage.steps > holds:
            passage.steps = holds
        self.seconds = self.until(passage.steps)
        self.alarm = alarm = Timeout(self.env, self.seconds)
        alarm.callbacks.append(self.back)

    def until(self, steps: int) -> Seconds:
        """Seconds from the clock's start until so many steps are over."""
        return self.lost + steps * self.time + steps * (steps - 1) // 2 * self.growth

    def cut(self, job: Job | None = None) -> None:
        """The step under way is the last: the first one that ends now or later."""
        passage, now, start = self.passage, self.env.now, self.start
        if passage is None or passage.steps == 1:
            return
        passed = now - start
        slope = self.time - self.growth / 2
        steps = int(2 * passed / (slope + math.sqrt(slope * slope + 2 * self.growth * passed)))
        steps = min(max(steps, 1), passage.steps)
        while steps > 1 and start + self.until(steps - 1) >= now:  # the formula rounds
            steps -= 1
        while steps < passage.steps and start + self.until(steps) < now:
            steps += 1
        if steps < passage.steps:
            passage.steps, self.seconds = steps, self.until(steps)
            self.alarm = alarm = Timeout(self.env, max(0.0, self.seconds - passed))
            alarm.callbacks.append(self.back)

    def back(self, alarm: simpy.Event) -> None:
        passage = self.passage
        if alarm is not self.alarm or passage is None:
            return
        self.book(passage)
        now = self.env.now
        passage.lost = self.seconds - (now - self.start)
        passage.over(passage, now)

    def book(self, passage: Passage) -> None:
        self.passage = None
        self.worked += self.seconds - self.lost
        self.tally.add(passage.work, passage.steps)
        if passage.work.decodes and passage.counted:
            self.gaps.add_linear(self.time, self.growth, passage.steps, passage.work.decodes)

    def interrupt(self) -> None:
        self.cut()
        if (passage := self.passage) is None:
            return
        self.passage, work, whole = (
            None,
            passage.work,
            passage.steps - 1,
        )  # the step under way is the last one
        before, seconds = self.until(whole), self.time + whole * self.growth
        worked = min(max(self.env.now - self.start - before, 0.0), seconds)
        self.worked += before - self.lost + worked
        self.tally.add(work, passage.steps)
        self.tally.take_back(work, 1 - worked / seconds)
        if whole and work.decodes and passage.counted:
            self.gaps.add_linear(self.time, self.growth, whole, work.decodes)
        self.interrupted[passage] = whole + worked / seconds

    def tally_so_far(self) -> Tally:
        tally = summed([self.tally])
        if self.passage:
            share = self.share
            under_way = Tally()
            under_way.add(self.passage.work, self.passage.steps)
            tally = summed([tally, under_way.times(share)])
        return tally

    def busy_so_far(self) -> NDArray[np.float64]:
        return np.array([self.worked + (self.env.now - self.start if self.passage else 0.0)])

    def steps_so_far(self, passage: Passage) -> int:
        return (
            round(self.share * passage.steps)
            if passage is self.passage and passage.work.decodes
            else 0
        )

    @property
    def share(self) -> float:
        """The part of the time of the passage under way that has passed."""
        return min(1.0, (self.env.now - self.start) / self.seconds)

    @property
    def busy(self) -> NDArray[np.float64]:
        return np.array([self.worked])


class Pipelined(Passing):
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
        self.sums[kernel.RETURN], self.sums[kernel.PIECE] = costs.back, costs.sequence_overhead
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
        self.passages: list[Passage | None] = [None] * slots
        self.unused = list(range(slots))
        self.lent: list[
            Any
        ] = []  # idle micro-batches that take pieces of prompts, and where they belong
        self.idle: deque[Any] = deque()
        self.turn: Callable[[Any], object] = self.idle.append
        self.job: Job | None = None  # whose prompt waits
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

    def send(self, passage: Passage) -> None:
        work, slot = passage.work, self.unused.pop()
        tokens, decodes = work.tokens, work.decodes
        body, sampling, attention, growth, holds = self.costs.parts(work)
        if self.costs.sampled:  # no two steps take the same
            row = 1 + slot
            self.rows[row] = body, self.costs.hops(tokens)
            self.tally.passages[tokens] += 1
        else:
            row = self.row(tokens)
        if work.prompt_tokens:
            self.tally.pieces(work)
        self.line(self.budget - decodes)
        self.passages[slot] = passage
        numbers = min(passage.steps, holds), decodes * passage.counted, int(passage.silent), row
        of_kinds = sampling, tuple(attention), tuple(growth)
        self.kernel.join(
            slot,
            self.env.now,
            passage.lost,
            numbers,
            *of_kinds,
            self.stages,
            self.rows,
            self.made,
            *self.state,
        )
        if self.asleep:
            self.wait(self.kernel.head(self.batches, self.counts, self.ring))

    def deal(self, job: Job, idle: deque[Any], most: int, turn: Callable[[Any], object]) -> None:
        pieces = min(len(idle), most, (job.prompt - job.prefilled - 1) // self.budget)
        if pieces <= 0 or self.costs.sampled:
            return
        self.idle, self.turn = idle, turn
        self.lent += [idle.popleft() for _ in range(pieces)]
        slots, self.unused = self.unused[-pieces:], self.unused[:-pieces]
        for slot in slots:
            self.passages[slot] = None
        self.row(self.budget)
        self.line(self.budget)
        self.ask(job)
        self.kernel.deal(
            self.env.now, np.array(slots), self.stages, self.rows, self.made, *self.state
        )
        job.prefilled += pieces * self.budget
        self.ask(None)
        if self.asleep:
            self.wait(self.kernel.head(self.batches, self.counts, self.ring))

    def cut(self, job: Job | None = None) -> None:
        if job is None or self.costs.sampled:
            self.left = self.ring[self.kernel.LEFT] = -1
        else:
            self.row(self.budget)
            self.ask(job)

    def ask(self, job: Job | None) -> None:
        """The prompt that waits, if any."""
        kernel = self.kernel
        self.job, self.left = job, 0
        if job:
            self.left, self.ring[kernel.OLD] = job.prompt - job.prefilled, job.prefilled
        self.ring[kernel.LEFT] = self.left

    def wait(self, head: tuple[float, int, int, bool, float, float, int, int]) -> None:
        self.asleep, self.head = False, head
        Timeout(self.env, max(0.0, head[0] - self.env.now)).callbacks.append(self.alarm)

    def alarm(self, _: simpy.Event) -> None:
        """The first of the ring is back: it is over, or enters again with all those that are back before the next event."""
        kernel, now, ring = self.kernel, self.env.now, self.ring
        back, slot, done, last, leave, lost = self.head[:6]
        passage = self.passages[slot]
        if self.job:  # the replica may have taken pieces of it since
            self.ask(self.job)
        room = self.budget - (passage.work.decodes if passage else 0)
        if self.left < 0 or 0 < self.left <= room or (last and not (self.left and passage is None)):
            self.settle()
            self.ask(None)
            ring[kernel.HEAD] = (ring[kernel.HEAD] + 1) % len(self.passages)
            ring[kernel.LENGTH] -= 1
            self.over(slot, done, min(leave, now), lost + (back - now))
        head = kernel.advance(now, self.env.peek(), self.stages, self.rows, self.made, *self.state)
        if self.job:
            self.job.prefilled = head[6]
            self.left = self.job.prompt - head[6]
        if head[7]:
            self.wait(head)
        else:
            self.asleep = True

    def over(self, slot: int, done: int, leave: Seconds, lost: Seconds) -> None:
        passage = self.passages[slot]
        self.unused.append(slot)
        if passage:
            passage.steps, passage.lost = done, lost
            passage.over(passage, leave)
        else:
            batch = self.lent.pop()
            batch.last, batch.lost = leave, lost
            self.turn(batch)

    def settle(self) -> None:
        kernel = self.kernel
        if gone := int(self.ring[kernel.GONES]):
            self.ring[kernel.GONES] = 0
            slots = self.counts[:gone, kernel.GONE].tolist()
            if self.left:
                self.ask(None)
            dealt = [slot for slot in slots if self.passages[slot] is None]
            sent = [slot for slot in slots if self.passages[slot]]  # over() may use the others anew
            self.unused += dealt
            self.idle += [self.lent.pop() for _ in dealt]
            for slot in sent:
                self.over(slot, 1, 0.0, 0.0)

    def tally_so_far(self) -> Tally:
        tally = summed([self.tally])
        self.add_compiled(tally)
        return tally

    def steps_so_far(self, passage: Passage) -> int:
        slots = (
            i for i, each in enumerate(self.passages) if each is passage and i not in self.unused
        )
        slot = next(slots, None)
        return (
            int(self.counts[slot, self.kernel.DONE])
            if slot is not None and passage.work.decodes
            else 0
        )

    @property
    def free_at(self) -> Seconds:
        return float(self.sums[self.kernel.CLOCK] + self.stages[self.kernel.FREE].max())

    def close(self) -> None:
        kernel = self.kernel
        self.add_compiled(self.tally)
        bins = self.ring[kernel.FIRST_BIN :]
        used = np.flatnonzero(bins)
        self.gaps.join(
            dict(zip((used + kernel.LEAST).tolist(), bins[used].tolist(), strict=True)),
            *self.sums[[kernel.TOTAL, kernel.SQUARES]].tolist(),
        )

    def add_compiled(self, tally: Tally) -> None:
        """Add what the compiled code counted."""
        for tokens, row in self.row_of.items():
            tally.passages[tokens] += int(self.made[row])
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
        tally.blind += int(self.ring[self.kernel.BLIND])

    def interrupt(self) -> None:
        kernel, ring, tally, stages = self.kernel, self.ring, self.tally, self.costs.stages
        for slot in np.roll(self.counts[:, kernel.ORDER], -ring[kernel.HEAD])[
            : ring[kernel.LENGTH]
        ].tolist():
            track, passage = self.tracks[slot], self.passages[slot]
            leave, times = track[kernel.PLACE + 1 :].reshape(2, stages)
            unmade = not_worked(leave, times, self.env.now)
            self.stages[kernel.BUSY] -= unmade
            part = float(unmade.sum() / times.sum())
            piece, old = int(track[kernel.TAKEN]), int(track[kernel.BEFORE])
            if passage and not piece:
                tally.take_back(passage.work, part)
            else:
                tally.take_back(
                    self.piece(piece, old, passage.work.decodes if passage else 0), part
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
            if passage:
                self.interrupted[passage] = int(self.counts[slot, kernel.DONE]) - part
        self.close()

    def piece(self, tokens: int, old: int, decodes: int) -> Work:
        """A step with a piece of a prompt, of which `old` tokens were done before; its decodes are counted elsewhere."""
        window = self.costs.layout.model.window or 0
        work = Work(
            decodes,
            prompt_tokens=tokens,
            attended=seen(old, tokens, None),
            cached=old + tokens,
            logits=decodes,
        )
        if window:
            work.windowed_attended, work.windowed_cached = (
                seen(old, tokens, window),
                min(old, window) + tokens,
            )
        return work

    @property
    def busy(self) -> NDArray[np.float64]:
        busy: NDArray[np.float64] = self.stages[self.kernel.BUSY]
        return busy


class Chips(Passing):
    """A machine of chips takes each passage; what it takes is not known beforehand."""

    def __init__(self, env: simpy.Environment, machine: Machine, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.machine, self.gaps = env, machine, gaps
        self.under_way: dict[Passage, StepOfChips] = {}

    def send(self, passage: Passage) -> None:
        self.env.process(self.through(passage))

    def through(self, passage: Passage) -> Waiting:
        self.tally.add(passage.work, 1)
        step = self.under_way[passage] = self.machine.start(passage.work)
        leave = yield step.back
        del self.under_way[passage]
        if passage.work.decodes and passage.counted:
            self.gaps.add(leave - passage.last, passage.work.decodes)
        passage.steps = 1
        passage.over(passage, leave)

    def interrupt(self) -> None:
        """What the whole step takes is computed as for chips that are alike."""
        self.machine.interrupt(self.under_way.values())
        for passage, step in self.under_way.items():
            part = min(1.0, step.worked / float(self.machine.costs.step(passage.work).time.sum()))
            self.tally.take_back(passage.work, 1 - part)
            self.interrupted[passage] = part

    @property
    def free_at(self) -> Seconds:
        return self.machine.left[-1] if self.machine.left else -math.inf

    @property
    def traffic(self) -> Traffic:
        return self.machine.traffic

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.machine.busy


class Replayed(Passing):
    """A step that a link has spoilt is made again when it is over, from the first stage on."""

    def __init__(
        self, env: simpy.Environment, through: Passing, spoils: Spoils, gaps: Gaps
    ) -> None:
        self.env, self.through, self.spoils, self.gaps, self.tally = (
            env,
            through,
            spoils,
            gaps,
            through.tally,
        )
        self.inner: dict[Passage, Passage] = {}
        self.spoilt: set[Passage] = set()  # those under way that were made once at least

    def send(self, passage: Passage) -> None:
        once = partial(self.back, passage)
        inner = Passage(once, passage.work, last=passage.last, counted=False, lost=passage.lost)
        self.inner[passage] = inner
        self.through.send(inner)

    def back(self, passage: Passage, passed: Passage, leave: Seconds) -> None:
        if self.spoils(passage.work.tokens):
            self.replays += 1
            self.spoilt.add(passage)
            Timeout(self.env, self.spoils.errors.restart).callbacks.append(
                lambda _: self.through.send(passed)
            )
            return
        del self.inner[passage]
        self.spoilt.discard(passage)
        if passage.work.decodes and passage.counted:
            self.gaps.add(leave - passage.last, passage.work.decodes)
        passage.steps, passage.lost = 1, passed.lost
        passage.over(passage, leave)

    def interrupt(self) -> None:
        self.through.interrupt()

    def steps_made(self, passage: Passage) -> float:
        if passage in self.spoilt:
            return 1.0
        inner = self.inner.get(passage)
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
