"""How micro-batches pass through the stages of a replica: what a step takes, and when it is over.

A replica offers a number of identical steps; what it passes through makes as many of them as it can tell beforehand, and says when
they are over.  `Steps` makes one at a time and is the plain reference, `Leap` and `Pipelined` are the same and fast, `Chips` lets a
`Machine` of chips take each.

Clocks are compensated: what the clock of a run rounds away when a passage returns (`lost`) is part of its next wait.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Timeout

from sim.cost import Costs, Work
from sim.machine import Machine, Waiting
from sim.policy import Job
from sim.records import Gaps
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class Passage:
    """What one micro-batch takes through the stages: a token for each of its sequences, and pieces of prompts."""

    work: Work
    steps: int  # for how many it may go on so, as nothing changes
    prefilled: tuple[Job, ...] | list[Job]  # whose prompts end with it
    over: Callable[["Passage", Seconds], None]  # called when its last step is back, with the time at which that left the last stage
    last: Seconds = 0.0  # when its micro-batch last left the last stage
    lost: Seconds = 0.0  # the exact time is so much later than the clock: when it enters, and when it is back


class Passing(Protocol):
    """What a replica's passages go through."""

    @property
    def busy(self) -> NDArray[np.float64]:
        """Seconds that each stage was at work."""

    def send(self, passage: Passage) -> None:
        """It joins the first stage's queue now.  `steps` is what it will have made when it is over."""

    def cut(self) -> None:
        """Somebody waits for a micro-batch: who is back next is over, however many steps it might have gone on."""

    def settle(self) -> None:
        """Who is back with nothing to tell, so that no event was made of it, is over."""

    def close(self) -> None:
        """The run is over: what was counted apart is booked."""


class Pipeline:
    """When each stage is free again.  A passage takes its turn at every stage, first come first served."""

    def __init__(self, stages: int) -> None:
        self.clock = 0.0
        self.free: NDArray[np.float64] = np.zeros(stages)  # counted from the clock
        self.busy: NDArray[np.float64] = np.zeros(stages)

    def enter(self, now: Seconds, hops: NDArray[np.float64], times: NDArray[np.float64], lost: Seconds = 0.0) -> Seconds:
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


class Steps:
    """A replica's stages, each a server by itself: what a passage takes is computed, its return is waited for."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        self.env, self.costs, self.gaps, self.pipeline = env, costs, gaps, Pipeline(costs.stages)

    def send(self, passage: Passage) -> None:
        work, now, lost = passage.work, self.env.now, passage.lost
        delay = self.pipeline.enter(now, self.costs.hops(work.tokens), self.costs.step(work).time, lost)
        wait = lost + delay + self.costs.back
        if work.decodes:  # it entered when its last tokens were back
            self.gaps.add(delay + self.costs.back, work.decodes)

        def back(_: simpy.Event) -> None:
            passage.steps, passage.lost = 1, wait - (self.env.now - now)
            # With no way back that is exactly the clock, and who was answered may ask at once.
            passage.over(passage, now + (lost + delay))

        Timeout(self.env, wait).callbacks.append(back)

    def cut(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.pipeline.busy


class Leap:
    """One stage and one micro-batch: the steps in which nothing changes are an arithmetic series, and one event."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        self.env, self.costs, self.gaps = env, costs, gaps
        self.worked = 0.0
        self.start = self.time = self.growth = self.seconds = 0.0  # of the passage: its steps take `seconds` from the start
        self.passage: Passage | None = None
        self.alarm: simpy.Event | None = None  # one that was set before is stale

    def send(self, passage: Passage) -> None:
        self.passage, self.start = passage, self.env.now
        self.time, self.growth, holds = self.costs.line(passage.work)
        if passage.steps > holds:
            passage.steps = holds
        self.seconds = self.until(passage.steps)
        self.alarm = alarm = Timeout(self.env, self.seconds)
        alarm.callbacks.append(self.back)

    def until(self, steps: int) -> Seconds:
        """Seconds from the clock's start until so many steps are over."""
        assert self.passage is not None
        return self.passage.lost + steps * self.time + steps * (steps - 1) // 2 * self.growth

    def cut(self) -> None:
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
        self.passage = None
        self.worked += self.seconds - passage.lost
        if passage.work.decodes:
            self.gaps.add_linear(self.time, self.growth, passage.steps, passage.work.decodes)
        now = self.env.now
        passage.lost = self.seconds - (now - self.start)
        passage.over(passage, now)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def busy(self) -> NDArray[np.float64]:
        return np.array([self.worked])


class Pipelined:
    """`Steps` compiled, several at once: until the next event of the run nothing can happen but returns, so the micro-batches that
    have steps left are taken through the stages up to there, and one alarm is set for who is back first."""

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps, slots: int) -> None:
        from sim import kernel  # Numba takes its time

        self.env, self.costs, self.gaps, self.kernel = env, costs, gaps, kernel
        stages = costs.stages
        self.layers = np.array(costs.layers).reshape(-1, stages)
        self.stage = np.zeros((2, stages))  # free and busy
        self.ring, self.sums, self.bins = np.zeros(3, np.int64), np.zeros(5), np.zeros(kernel.BINS, np.int64)
        self.order, self.gone = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self.sums[kernel.RETURN] = costs.back
        hops, times, growths = np.zeros((slots, stages)), np.zeros((slots, stages)), np.zeros((slots, stages))
        each, counts = np.zeros((slots, 3)), np.zeros((slots, 4), np.int64)
        lists = self.ring, self.order, self.gone, self.sums, self.bins
        self.state = (self.stage, hops, times, growths, each, counts, *lists)
        self.passages: list[Passage | None] = [None] * slots
        self.unused = list(range(slots))
        self.head = (0.0, 0, 0, False, 0.0, 0.0)
        self.asleep, self.wanted = True, False

    def send(self, passage: Passage) -> None:
        work, slot = passage.work, self.unused.pop()
        parts = self.costs.parts(work)
        self.passages[slot] = passage
        steps, silent = min(passage.steps, parts.holds), not (work.decodes or passage.prefilled)
        contents = (
            parts.body,
            parts.sampling,
            self.layers,
            tuple(parts.attention),
            tuple(parts.growth),
            self.costs.hops(work.tokens),
        )
        now = self.env.now
        head = self.kernel.join(slot, now, passage.lost, steps, work.decodes, silent, *contents, *self.state)
        if self.asleep:
            self.wait(head)

    def wait(self, head: tuple[float, int, int, bool, float, float]) -> None:
        self.asleep, self.head = False, head
        Timeout(self.env, max(0.0, head[0] - self.env.now)).callbacks.append(self.alarm)

    def cut(self) -> None:
        self.wanted = True

    def alarm(self, _: simpy.Event) -> None:
        """The first of the ring is back: it is over, or enters again with all those that are back before the next event."""
        kernel, now, ring = self.kernel, self.env.now, self.ring
        back, slot, done, last, leave, lost = self.head
        if self.wanted or last:
            self.settle()
            self.wanted = False
            ring[kernel.HEAD] = (ring[kernel.HEAD] + 1) % len(self.order)
            ring[kernel.LENGTH] -= 1
            self.over(slot, done, min(leave, now), lost + (back - now))
        head = kernel.advance(now, now if self.wanted else self.env.peek(), *self.state)
        if ring[kernel.LENGTH]:
            self.wait(head)
        else:
            self.asleep = True

    def over(self, slot: int, done: int, leave: Seconds, lost: Seconds) -> None:
        passage = self.passages[slot]
        assert passage is not None
        self.unused.append(slot)
        passage.steps, passage.lost = done, lost
        passage.over(passage, leave)

    def settle(self) -> None:
        if gone := int(self.ring[self.kernel.GONE]):
            self.ring[self.kernel.GONE] = 0
            for slot in self.gone[:gone].tolist():
                self.over(slot, 1, 0.0, 0.0)

    def close(self) -> None:
        kernel = self.kernel
        used = np.flatnonzero(self.bins)
        bins = zip((used + kernel.LEAST).tolist(), self.bins[used].tolist(), strict=True)
        self.gaps.join(dict(bins), *self.sums[[kernel.TOTAL, kernel.SQUARES]].tolist())

    @property
    def busy(self) -> NDArray[np.float64]:
        busy: NDArray[np.float64] = self.stage[1]
        return busy


class Chips:
    """A machine of chips takes each passage; what it takes is not known beforehand."""

    def __init__(self, env: simpy.Environment, machine: Machine, gaps: Gaps) -> None:
        self.env, self.machine, self.gaps = env, machine, gaps

    def send(self, passage: Passage) -> None:
        self.env.process(self.through(passage))

    def through(self, passage: Passage) -> Waiting:
        leave = yield from self.machine.passage(passage.work)
        if passage.work.decodes:
            self.gaps.add(leave - passage.last, passage.work.decodes)
        passage.steps = 1
        passage.over(passage, leave)

    def cut(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.machine.busy
