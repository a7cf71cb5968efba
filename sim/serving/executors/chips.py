"""Steps at chip fidelity: every chip and link is simulated."""

import math

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.chipsim.collectives import SimProcess
from sim.chipsim.machine import ChipMachine, MachineStep
from sim.cost.system_costs import expected_costs
from sim.results.histogram import Gaps
from sim.results.rows import Traffic
from sim.serving.executors.executor import BatchStep, Executor
from sim.units import Seconds


class ChipExecutor(Executor):
    """An executor that passes each step to a machine of chips, whose time cannot be predicted."""

    def __init__(self, env: simpy.Environment, machine: ChipMachine, gaps: Gaps) -> None:
        super().__init__()
        self.env, self.machine, self.gaps, self.costs = env, machine, gaps, machine.costs
        self.under_way: dict[BatchStep, MachineStep] = {}

    def send(self, batch_step: BatchStep) -> None:
        self.count(batch_step.work, 1)
        self.env.process(self.run(batch_step))

    def run(self, batch_step: BatchStep) -> SimProcess:
        """Take one step through the chips, and complete it."""
        step = self.under_way[batch_step] = self.machine.start(batch_step.work)
        leave = yield step.back
        del self.under_way[batch_step]
        if batch_step.work.decodes and batch_step.counted:
            self.gaps.add(leave - batch_step.last, batch_step.work.decodes)
        batch_step.steps = 1
        batch_step.over(batch_step, leave)

    def abort(self) -> None:
        """Book the steps under way in part: the seconds worked, divided by those of equal chips."""
        self.machine.abort()
        whole = expected_costs(self.costs)
        for batch_step, step in self.under_way.items():
            part = min(1.0, step.worked / float(whole.step(batch_step.work).time.sum()))
            self.tally.add(batch_step.work, part - 1)
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
