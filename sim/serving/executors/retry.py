"""Steps that fail from link errors are repeated."""

from functools import partial

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.reliability.link_errors import LinkErrorSampler
from sim.results.histogram import Gaps
from sim.results.rows import Traffic
from sim.serving.event_order import CallAfter
from sim.serving.executors.executor import BatchStep, Executor
from sim.units import Seconds


class RetryExecutor(Executor):
    """An executor that repeats failed steps, from the first stage, on another executor.

    executor: the other one, which takes each attempt through the stages.
    inner: by batch step under way, the batch step that is sent to the other executor.
    retried: batch steps under way of which at least one attempt is over.
    """

    def __init__(
        self,
        env: simpy.Environment,
        executor: Executor,
        error_sampler: LinkErrorSampler,
        gaps: Gaps,
    ) -> None:
        self.env, self.executor, self.error_sampler = env, executor, error_sampler
        self.gaps, self.tally = gaps, executor.tally
        self.inner: dict[BatchStep, BatchStep] = {}
        self.retried: set[BatchStep] = set()

    def send(self, batch_step: BatchStep) -> None:
        inner = BatchStep(
            partial(self.back, batch_step),
            batch_step.work,
            last=batch_step.last,
            counted=False,
            clock_error=batch_step.clock_error,
        )
        self.inner[batch_step] = inner
        self.executor.send(inner)

    def back(self, batch_step: BatchStep, attempt: BatchStep, leave: Seconds) -> None:
        """Repeat a failed step after the restart time; complete the others."""
        if self.error_sampler(batch_step.work.tokens):
            self.replays += 1
            self.retried.add(batch_step)
            restart = self.error_sampler.errors.restart
            CallAfter(self.env, restart, lambda _: self.executor.send(attempt))
            return
        del self.inner[batch_step]
        self.retried.discard(batch_step)
        self.complete(batch_step, attempt, leave)

    def abort(self) -> None:
        self.executor.abort()

    def steps_made(self, batch_step: BatchStep) -> float:
        """Return the steps made. A step that is being repeated counts whole."""
        if batch_step in self.retried:
            return 1.0
        inner = self.inner.get(batch_step)
        return self.executor.steps_made(inner) if inner else 0.0

    def stop(self) -> None:
        self.executor.stop()
        super().stop()

    @property
    def free_at(self) -> Seconds:
        return self.executor.free_at

    @property
    def traffic(self) -> Traffic | None:
        return self.executor.traffic

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.executor.busy
