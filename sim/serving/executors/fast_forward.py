"""Many identical steps in one event, for a replica of one stage and one micro-batch."""

import math

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.energy import Tally, summed
from sim.cost.system_costs import SystemCosts
from sim.results.histogram import Gaps
from sim.serving.event_order import CallAtReturn
from sim.serving.executors.executor import BatchStep, Executor
from sim.serving.request import Request
from sim.units import Seconds


class FastForwardExecutor(Executor):
    """An executor that makes many identical steps in one event, for one stage and micro-batch.

    The KV cache grows equally in each step, so step times form an arithmetic series.
    Then n steps take `n * first_step + n * (n - 1) / 2 * growth`, as with `StepwiseExecutor`.
    Left out: pipelines (`CompiledPipelineExecutor`) and link errors (`RetryExecutor`).
    """

    def __init__(self, env: simpy.Environment, costs: SystemCosts, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.costs, self.gaps = env, costs, gaps
        self.worked = 0.0  # by steps that are over [s]
        self.worked_until = -math.inf  # when the last of them was over [s]
        self.batch_step: BatchStep | None = None  # None while idle
        self.start = 0.0  # when `batch_step` started [s]
        self.clock_error = 0.0  # exact time minus `env.now` at the start [s]
        self.first_step = self.growth = 0.0  # first step; added by each further step [s]
        self.duration = 0.0  # from `start` to the end of the last step [s]
        # `back` ignores every other timeout, because SimPy cannot cancel one. After `interrupt`
        # two are pending, and the batch step would complete twice. None after `abort`.
        self.timeout: simpy.Event | None = None

    def send(self, batch_step: BatchStep) -> None:
        self.batch_step, self.start = batch_step, self.env.now
        self.clock_error, steps = batch_step.clock_error, batch_step.steps
        self.first_step, self.growth, holds = self.costs.line(batch_step.work)
        if steps > holds:
            batch_step.steps = steps = holds
        self.duration = self.duration_of(steps)
        self.timeout = CallAtReturn(self.env, self.duration, self.back)

    def duration_of(self, steps: int) -> Seconds:
        """Return the time from `start` to the end of step number `steps`."""
        return self.clock_error + steps * self.first_step + steps * (steps - 1) // 2 * self.growth

    def interrupt(self, request: Request | None = None) -> None:
        """Make the step under way the last: the first step that ends now or later."""
        if self.batch_step and self.batch_step.steps > 1:
            self.shorten(self.steps_to(self.env.now))

    def end_before(self, time: Seconds) -> None:
        if self.batch_step and self.start + self.duration >= time:
            self.shorten(max(1, self.steps_to(time) - 1))

    def steps_to(self, time: Seconds) -> int:
        """Return the number of the first step that ends at a time or later, or of the last one."""
        assert self.batch_step
        start, most, passed = self.start, self.batch_step.steps, max(0.0, time - self.start)
        slope = self.first_step - self.growth / 2
        # The root of `duration_of` is rounded. Two loops correct it by comparing with the clock.
        steps = int(2 * passed / (slope + math.sqrt(slope * slope + 2 * self.growth * passed)))
        steps = min(max(steps, 1), most)
        while steps > 1 and start + self.duration_of(steps - 1) >= time:
            steps -= 1
        while steps < most and start + self.duration_of(steps) < time:
            steps += 1
        return steps

    def shorten(self, steps: int) -> None:
        """Make only `steps` steps, if the batch step has more."""
        assert self.batch_step
        if steps < self.batch_step.steps:
            self.batch_step.steps, self.duration = steps, self.duration_of(steps)
            passed = self.env.now - self.start
            self.timeout = CallAtReturn(self.env, max(0.0, self.duration - passed), self.back)

    def back(self, timeout: simpy.Event) -> None:
        """Complete the batch step, unless the timeout is stale."""
        if timeout is not self.timeout:
            return
        batch_step = self.batch_step
        assert batch_step
        work, steps, now = batch_step.work, batch_step.steps, self.env.now
        self.batch_step, self.worked_until = None, now
        self.worked += self.duration - self.clock_error
        self.count(work, steps)
        self.count_gaps(batch_step, steps)
        batch_step.clock_error = self.duration - (now - self.start)
        batch_step.over(batch_step, now)

    def seconds_of(self, step: int) -> Seconds:
        """Return the time of a step, counted from 0."""
        return self.first_step + step * self.growth

    def count_gaps(self, batch_step: BatchStep, steps: int) -> None:
        """Count the gaps before the tokens of the first `steps` steps."""
        decodes = batch_step.work.decodes
        if steps and decodes and batch_step.counted:
            self.gaps.add_linear(self.first_step, self.growth, steps, decodes)

    def abort(self) -> None:
        self.interrupt()
        if (batch_step := self.batch_step) is None:
            return
        # After `interrupt` the step under way is the last one.
        self.batch_step, self.timeout, self.worked_until = None, None, self.env.now
        work, whole = batch_step.work, batch_step.steps - 1
        before, seconds = self.duration_of(whole), self.seconds_of(whole)
        worked = min(max(self.env.now - self.start - before, 0.0), seconds)
        self.worked += before - self.clock_error + worked
        self.count(work, batch_step.steps)
        self.tally.add(work, worked / seconds - 1)
        self.count_gaps(batch_step, whole)
        self.interrupted[batch_step] = whole + worked / seconds

    def tally_so_far(self) -> Tally:
        tally = summed([self.tally])
        self._add_under_way(tally)
        return tally

    def logits_so_far(self) -> float:
        tally = Tally(
            logits=self.tally.logits
        )  # a front end needs them for each request, so other fields are left out
        self._add_under_way(tally)
        return tally.logits

    def _add_under_way(self, tally: Tally) -> None:
        """Add the part of the batch step under way that has passed to a tally."""
        if self.batch_step:
            tally.add(self.batch_step.work, self.share * self.batch_step.steps)

    def busy_so_far(self) -> NDArray[np.float64]:
        return np.array([self.worked + (self.env.now - self.start if self.batch_step else 0.0)])

    def steps_so_far(self, batch_step: BatchStep) -> int:
        if batch_step is not self.batch_step or not batch_step.work.decodes:
            return 0
        return round(self.share * batch_step.steps)

    @property
    def share(self) -> float:
        """The part of the duration of the batch step under way that has passed."""
        return min(1.0, (self.env.now - self.start) / self.duration)

    @property
    def free_at(self) -> Seconds:
        return self.worked_until

    @property
    def busy(self) -> NDArray[np.float64]:
        return np.array([self.worked])
