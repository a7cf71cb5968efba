"""Repeats of steps that fail from link errors."""

from functools import partial

import simpy

from sim.reliability.link_errors import LinkErrorSampler
from sim.results.histogram import Gaps
from sim.serving.event_order import CallAfter
from sim.serving.executors.executor import BatchStep, Executor
from sim.serving.executors.outer import OuterExecutor
from sim.units import Seconds


class RetryExecutor(OuterExecutor):
    """An executor that repeats failed steps, from the first stage, on another executor.

    The other executor makes the good steps before one that fails, many in one event if it can. The
    step that fails is sent alone.

    attempts: by batch step that has failed or will fail, the batch step that is sent instead.
    retried: batch steps of which at least one attempt is over.
    """

    def __init__(
        self, env: simpy.Environment, executor: Executor, errors: LinkErrorSampler, gaps: Gaps
    ) -> None:
        self.env, self.executor, self.restart = env, executor, errors.errors.restart
        self.gaps, self.tally, executor.errors = gaps, executor.tally, errors
        self.attempts: dict[BatchStep, BatchStep] = {}
        self.retried: set[BatchStep] = set()
        self.failures = 0

    def send(self, batch_step: BatchStep) -> None:
        if good := self.executor.good_steps(batch_step.work):
            batch_step.steps = min(batch_step.steps, good)
            self.executor.send(batch_step)
            return
        attempt = BatchStep(
            partial(self.failed, batch_step),
            batch_step.work,
            last=batch_step.last,
            counted=False,
            fails=True,
            clock_error=batch_step.clock_error,
        )
        self.attempts[batch_step] = attempt
        self.executor.send(attempt)

    def failed(self, batch_step: BatchStep, attempt: BatchStep, _: Seconds) -> None:
        """Repeat a failed step after the restart time."""
        self.failures += 1
        self.retried.add(batch_step)
        CallAfter(self.env, self.restart, partial(self.repeat, batch_step, attempt))

    def repeat(self, batch_step: BatchStep, attempt: BatchStep, _: simpy.Event) -> None:
        """Make a failed step again, unless the replica has failed since."""
        if batch_step in self.attempts:
            if self.executor.good_steps(attempt.work):
                attempt.over, attempt.fails = partial(self.succeeded, batch_step), False
            self.executor.send(attempt)

    def succeeded(self, batch_step: BatchStep, attempt: BatchStep, leave: Seconds) -> None:
        """Complete a step that was repeated, unless the replica has failed since."""
        if self.attempts.pop(batch_step, None):
            self.retried.remove(batch_step)
            self.complete(batch_step, attempt, leave)

    def steps_made(self, batch_step: BatchStep) -> float:
        """Return the steps made. A step that is being repeated counts whole."""
        if batch_step in self.retried:
            return 1.0
        return self.executor.steps_made(self.attempts.get(batch_step, batch_step))

    def steps_so_far(self, batch_step: BatchStep) -> int:
        if batch_step in self.attempts:
            return super().steps_so_far(batch_step)
        return self.executor.steps_so_far(batch_step)

    def stop(self) -> None:
        self.attempts.clear()
        super().stop()

    @property
    def replays(self) -> int:
        return self.failures
