"""Steps with drawn experts in one event, for a replica of one stage and one micro-batch."""

from bisect import bisect_left

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.step import Costs
from sim.cost.work import Work
from sim.results.histogram import Gaps
from sim.serving.event_order import CallAtReturn
from sim.serving.executors.executor import BatchStep
from sim.serving.executors.fast_forward import FastForwardExecutor
from sim.units import Seconds


class DrawnStepsExecutor(FastForwardExecutor):
    """A `FastForwardExecutor` for steps whose times differ, because their experts are drawn.

    seconds: float[step], s. ends: time from the start of the first step to the end of each [s].
    """

    costs: Costs

    def __init__(self, env: simpy.Environment, costs: Costs, gaps: Gaps) -> None:
        super().__init__(env, costs, gaps)
        self.seconds: NDArray[np.float64] = np.zeros(0)
        self.ends: list[Seconds] = []

    def send(self, batch_step: BatchStep) -> None:
        self.batch_step, self.start = batch_step, self.env.now
        self.clock_error = batch_step.clock_error
        self.seconds = seconds = self.costs.drawn_steps(batch_step.work, batch_step.steps)
        batch_step.steps, self.ends = len(seconds), seconds.cumsum().tolist()
        self.duration = self.duration_of(batch_step.steps)
        self.timeout = CallAtReturn(self.env, self.duration, self.back)

    def duration_of(self, steps: int) -> Seconds:
        return self.clock_error + (self.ends[steps - 1] if steps else 0.0)

    def seconds_of(self, step: int) -> Seconds:
        return float(self.seconds[step])

    def steps_to(self, time: Seconds) -> int:
        assert self.batch_step
        made = range(1, self.batch_step.steps)
        return 1 + bisect_left(made, time, key=lambda steps: self.start + self.duration_of(steps))

    def count(self, work: Work, steps: int) -> None:
        super().count(work, steps)
        assert self.costs.sampled
        self.costs.sampled.take(self.costs.layout.step_size(work), steps)

    def count_gaps(self, batch_step: BatchStep, steps: int) -> None:
        decodes = batch_step.work.decodes
        if steps and decodes and batch_step.counted:
            self.gaps.add_each(self.seconds[:steps], decodes)
