"""The plain reference: one event for each step."""

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.system_costs import SystemCosts
from sim.results.histogram import Gaps
from sim.serving.event_order import CallAtReturn
from sim.serving.executors.executor import BatchStep, Executor, unworked_seconds
from sim.units import Seconds


class Pipeline:
    """Stages in a row, each of which serves steps first come, first served.

    free: float[stage], when each stage is free, counted from `clock` [s].
    busy: float[stage], its working time so far [s].
    """

    def __init__(self, stages: int) -> None:
        self.clock = 0.0
        self.free: NDArray[np.float64] = np.zeros(stages)
        self.busy: NDArray[np.float64] = np.zeros(stages)

    def enter(
        self,
        now: Seconds,
        hops: NDArray[np.float64],
        times: NDArray[np.float64],
        clock_error: Seconds = 0.0,
    ) -> Seconds:
        """Return the time from a step's entry to the end of its last stage.

        now, clock_error: the step enters at `now + clock_error` [s].
        hops: float[stage], on the way to each stage [s]. times: float[stage], in it [s].

        start[s] = max(leave[s-1] + hops[s], free[s]) and leave[s] = start[s] + times[s] are solved
        by one scan. T is the running sum of hops and times. Then leave - T is the running maximum
        of free - (T - times), counted from the entry.
        """
        free = self.free - (now - self.clock + clock_error)
        free[0] = max(free[0], 0.0)
        total = np.cumsum(hops + times)
        leave = total + np.maximum.accumulate(free - (total - times))
        self.clock, self.free = now, leave + clock_error
        self.busy += times
        return float(leave[-1])


class StepwiseExecutor(Executor):
    """An executor that computes a step's way through the stages and waits for its return."""

    def __init__(self, env: simpy.Environment, costs: SystemCosts, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.costs, self.gaps, self.pipeline = env, costs, gaps, Pipeline(costs.stages)
        # For each batch step, when it leaves each stage and its times there. float[stage], s.
        self.under_way: dict[BatchStep, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def send(self, batch_step: BatchStep) -> None:
        work, now, clock_error = batch_step.work, self.env.now, batch_step.clock_error
        self.count(work, 1)
        times, hops = self.costs.step(work).time, self.costs.hops(self.costs.layout.ranked(work))
        delay = self.pipeline.enter(now, hops, times, clock_error)
        self.under_way[batch_step] = now + self.pipeline.free, times
        wait = clock_error + delay + self.costs.back

        def back(_: simpy.Event) -> None:
            del self.under_way[batch_step]
            if work.decodes and batch_step.counted:
                # The step entered when the tokens before it were back, so this is their gap.
                self.gaps.add(delay + self.costs.back, work.decodes)
            batch_step.steps, batch_step.clock_error = 1, wait - (self.env.now - now)
            # Without a way back this is exactly the clock. A closed-loop user can then send the
            # next request at this instant.
            batch_step.over(batch_step, now + (clock_error + delay))

        CallAtReturn(self.env, wait, back)

    def abort(self) -> None:
        for batch_step, (leave, times) in self.under_way.items():
            unmade = unworked_seconds(leave, times, self.env.now)
            self.pipeline.busy -= unmade
            part = float(unmade.sum() / times.sum())
            self.tally.add(batch_step.work, -part)
            self.interrupted[batch_step] = 1 - part

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.pipeline.busy

    @property
    def free_at(self) -> Seconds:
        return self.pipeline.clock + float(self.pipeline.free.max())
