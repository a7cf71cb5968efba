"""Steps that stop while a pool is down, and begin again when it works."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.energy import Tally
from sim.cost.system_costs import SystemCosts
from sim.results.histogram import Gaps
from sim.results.rows import Traffic
from sim.serving.executors.executor import BatchStep, Executor
from sim.serving.executors.fast_forward import FastForwardExecutor
from sim.serving.executors.outer import OuterExecutor
from sim.serving.executors.stepwise import StepwiseExecutor
from sim.units import Seconds


class PausingExecutor(OuterExecutor):
    """An executor that can stop for some time, and can change its costs.

    A step under way then begins again, because its partial results are lost. Its sequences keep
    their KV cache. The part that was made counts as work.

    make: makes the executor that takes steps through the stages.
    times: when failures and repairs come, ascending [s]. Steps that are made in one event end
        before the next of these times, so at most one step is under way then.
    attempts: by batch step under way, the batch step that is sent to that executor.
    paused: whether an FFN pool or a drafter is down.
    """

    def __init__(
        self,
        env: simpy.Environment,
        make: Callable[[SystemCosts, Tally], Executor],
        costs: SystemCosts,
        gaps: Gaps,
        times: Sequence[Seconds],
    ) -> None:
        super().__init__()
        self.env, self.make, self.costs, self.gaps = env, make, costs, gaps
        self.times = times
        self.attempts: dict[BatchStep, BatchStep] = {}
        self.paused = False
        self.executor = self.begin()
        self.ended: list[Executor] = []

    def begin(self) -> Executor:
        """Return a new executor, which adds to the same tally."""
        return self.make(self.costs, self.tally)

    def use(self, costs: SystemCosts) -> None:
        """Use other costs, from the next step on."""
        assert isinstance(self.executor, StepwiseExecutor | FastForwardExecutor)
        self.costs = self.executor.costs = costs

    def pause(self) -> None:
        """Stop all steps until `resume`."""
        self.paused = True
        self.executor.abort()
        self.ended.append(self.executor)
        self.executor.stop()
        self.executor = self.begin()

    def resume(self) -> None:
        """Begin the steps under way again."""
        self.paused = False
        for batch_step in list(self.attempts):
            self.attempt(batch_step)

    def send(self, batch_step: BatchStep) -> None:
        self.attempts[batch_step] = batch_step
        if not self.paused:
            self.attempt(batch_step, batch_step.steps)

    def attempt(self, batch_step: BatchStep, steps: int = 1) -> None:
        """Send a batch step to the executor, which makes `steps` of it at most."""
        over = partial(self.back, batch_step, self.executor)
        counted = batch_step.counted and steps > 1
        attempt = BatchStep(over, batch_step.work, steps, last=batch_step.last, counted=counted)
        attempt.clock_error, batch_step.clock_error = batch_step.clock_error, 0.0
        self.attempts[batch_step] = attempt
        self.executor.send(attempt)
        coming = bisect_left(self.times, self.env.now)
        if coming < len(self.times):
            self.executor.end_before(self.times[coming])

    def back(
        self, batch_step: BatchStep, executor: Executor, attempt: BatchStep, leave: Seconds
    ) -> None:
        """Complete a step, unless it was stopped and has begun again."""
        if executor is not self.executor:
            return
        del self.attempts[batch_step]
        self.complete(batch_step, attempt, leave)

    def steps_made(self, batch_step: BatchStep) -> float:
        attempt = self.attempts.get(batch_step)
        return self.executor.steps_made(attempt) if attempt else 0.0

    def steps_so_far(self, batch_step: BatchStep) -> int:
        attempt = self.attempts.get(batch_step)
        return self.executor.steps_so_far(attempt) if attempt and not self.paused else 0

    def busy_so_far(self) -> NDArray[np.float64]:
        return self.busy - self.executor.busy + self.executor.busy_so_far()

    @property
    def replays(self) -> int:
        return sum(life.replays for life in (*self.ended, self.executor))

    @property
    def traffic(self) -> Traffic | None:
        lives = [life.traffic for life in (*self.ended, self.executor) if life.traffic]
        return Traffic.summed(lives) if lives else None

    @property
    def busy(self) -> NDArray[np.float64]:
        total: NDArray[np.float64] = np.sum(
            [life.busy for life in (*self.ended, self.executor)], axis=0
        )
        return total
