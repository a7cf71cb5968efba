"""The contract of executors, which take the steps of a replica's scheduler through the stages."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.attention import FOREVER
from sim.cost.energy import Tally, summed
from sim.cost.system_costs import SystemCosts
from sim.cost.work import Work
from sim.reliability.link_errors import LinkErrorSampler
from sim.results.histogram import Gaps
from sim.results.rows import Traffic
from sim.serving.kv_cache import KVCache
from sim.serving.request import Request
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class BatchStep:
    """One micro-batch on its way through the stages, for one step or for several identical ones.

    over: called when the last step is back, with the time at which it left the last stage [s].
    steps: when sent, the steps for which nothing changes; when over, the steps that were made.
    prefilled: requests whose prompts end with the step.
    last: when the micro-batch last left the last stage [s].
    counted: whether the executor counts the gaps before the step's tokens. Otherwise the
        scheduler does, because sequences were left out of earlier steps.
    fails: whether it fails from link errors, so that the scheduler does not see its return.
    no_output: whether the step has no token to return. Its micro-batch is then free for prompts.
    kv_growth: tokens of KV cache that each step takes; a multiple of 1 / `KV_PARTS`.
    clock_error: rounding error carried forward: exact time minus `env.now`, at entry and at
        return [s]. Without it the clock of a long run would drift.
    """

    over: Callable[[Any, Seconds], None]
    work: Work = field(default_factory=Work)
    steps: int = 1
    prefilled: list[Request] = field(default_factory=list)
    last: Seconds = 0.0
    counted: bool = True
    fails: bool = False
    no_output: bool = False
    kv_growth: float = 0
    clock_error: Seconds = 0.0


class Executor:
    """An executor takes batch steps through the stages of one replica, and tallies them.

    The scheduler calls `send` for a micro-batch. The executor makes as many of its identical steps
    as it can predict, and calls `over`. The scheduler calls `interrupt` when a request waits. The
    next micro-batch to return is then over after the step under way. An executor that makes one
    step at a time needs none of the other methods, which do nothing here.

    computes_prompts: whether it computes chunks of a waiting prompt by itself.

    An outage interrupts the steps under way (`abort`). A part of such a step counts: the seconds
    that its stages have worked, divided by all its seconds.
    """

    gaps: Gaps
    costs: SystemCosts
    errors: LinkErrorSampler | None = None
    computes_prompts = False

    def __init__(self) -> None:
        self.tally = Tally()
        # The steps made of each batch step that an outage interrupted, the last one in part.
        self.interrupted: dict[BatchStep, float] = {}

    @property
    def traffic(self) -> Traffic | None:
        """The bytes that each link carried; None unless the executor simulates links."""
        return None

    @property
    def replays(self) -> int:
        """The steps that failed from link errors."""
        return 0

    @property
    def busy(self) -> NDArray[np.float64]:
        """The working time of each stage. float[stage], s."""
        raise NotImplementedError

    def send(self, batch_step: BatchStep) -> None:
        """Add a batch step to the queue of the first stage, now."""
        raise NotImplementedError

    def interrupt(self, request: Request | None = None) -> None:
        """Make the next micro-batch to return over, however many steps it has left.

        request: the only prompt that waits, if the executor may compute it by itself. Returning
        micro-batches then take chunks that fill the token budget and continue. The last chunk
        is left to the scheduler.
        """

    def interrupt_step(self, batch_step: BatchStep) -> None:
        """Make one batch step over after the step under way, because its sequences change."""
        self.interrupt()

    def end_before(self, time: Seconds) -> None:
        """Make only the steps that end before a time, but at least one."""

    def good_steps(self, work: Work) -> int:
        """Return how many steps of this work can be made before one fails from link errors."""
        return self.errors.good_steps(self.costs.layout.step_size(work)) if self.errors else FOREVER

    def count(self, work: Work, steps: int) -> None:
        """Count identical steps that are made, or sent one by one."""
        self.tally.add(work, steps)
        if self.errors:
            self.errors.count(self.costs.layout.step_size(work), steps)

    def complete(self, batch_step: BatchStep, attempt: BatchStep, leave: Seconds) -> None:
        """Complete a batch step whose steps another executor has made, as `attempt`.

        Gaps that the other executor counted (`attempt.counted`) are not counted again.
        """
        if batch_step.work.decodes and batch_step.counted and not attempt.counted:
            self.gaps.add(leave - batch_step.last, batch_step.work.decodes)
        batch_step.steps, batch_step.clock_error = attempt.steps, attempt.clock_error
        batch_step.over(batch_step, leave)

    def take_kv_from(self, kv_cache: KVCache) -> None:
        """Take the KV of all steps after a batch step's first one from this cache.

        A batch step is over when the cache has no room for its next tokens.
        """

    def assign_prefill_chunks(
        self, request: Request, idle: deque[Any], most: int, start_step: Callable[[Any], object]
    ) -> None:
        """Give full chunks of a prompt to idle micro-batches, but not the last chunk.

        idle: micro-batches without sequences. Chosen ones are removed, and put back later.
        most: micro-batches that may be chosen.
        start_step: called with a chosen micro-batch that returns and has to be scheduled.
        """

    def complete_silent(self) -> None:
        """Complete the batch steps that returned without an event of their own."""

    def flush(self) -> None:
        """Add all separate counts to `tally` and `gaps` at the end of the run."""

    def abort(self) -> None:
        """Book all work up to now, because the replica fails. Steps under way count in part.

        Their tokens are lost, so the gaps before them are not counted.
        """
        raise NotImplementedError

    def steps_made(self, batch_step: BatchStep) -> float:
        """Return the steps of an interrupted batch step, the last one in part; 0 for others."""
        return self.interrupted.get(batch_step, 0.0)

    def tally_so_far(self) -> Tally:
        """Return the tally up to now. A step under way counts whole unless its part is known."""
        return summed([self.tally])

    def logits_so_far(self) -> float:
        """Return the logits of `tally_so_far`."""
        return self.tally_so_far().logits

    def busy_so_far(self) -> NDArray[np.float64]:
        """Return the working time of each stage, with steps under way as in `tally_so_far`.

        The result is float[stage], s.
        """
        return self.busy.copy()

    def steps_so_far(self, batch_step: BatchStep) -> int:
        """Return the decode steps of a batch step under way that `tally_so_far` counts."""
        return 1 if batch_step.work.decodes else 0

    @property
    def free_at(self) -> Seconds:
        """The time at which the last accepted step is over; -inf without one."""
        return -math.inf

    def stop(self) -> None:
        """Stop counting, because the replica failed: its steps under way still return."""
        self.gaps, self.tally = Gaps(), Tally()


def unworked_seconds(
    leave: NDArray[np.float64], times: NDArray[np.float64], now: Seconds
) -> NDArray[np.float64]:
    """Return how long each stage works on a step after `now`. float[stage], s.

    leave: float[stage], when the step leaves each stage. times: float[stage], its time there.
    """
    return np.minimum(np.maximum(leave - now, 0.0), times)
