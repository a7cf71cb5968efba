"""Many steps of a pipeline in one event, compiled by Numba.

Only `choice` imports this module, and only for a pipeline: Numba takes long to import.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.energy import Tally, summed
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.results.histogram import Gaps
from sim.serving import kernel
from sim.serving.event_order import CallAtReturn, next_event_time
from sim.serving.executors.executor import BatchStep, Executor, unworked_seconds
from sim.serving.executors.kernel_state import Head, KernelState
from sim.serving.kv_cache import KVCache
from sim.serving.replica_config import ReplicaConfig
from sim.serving.request import Request
from sim.units import Seconds


class CompiledPipelineExecutor(Executor):
    """A `StepwiseExecutor` that makes the steps of several micro-batches in one event.

    Until the run's next event nothing but returns of micro-batches can happen. So the compiled code
    makes all their steps up to that time. One timeout waits for the next return that needs a
    decision.

    The compiled code also computes chunks of a waiting prompt that fill the token budget. They need
    no decision, because they return no token and their time follows from the prompt. With several
    attention ranks no prompt fills the budget, and the scheduler deals the prompts to the ranks.

    A step that fails from link errors needs a decision, and is sent alone (`RetryExecutor`).

    independent: whether nothing that returns at another replica changes this one.
    Left out: hosts that launch layers (`Costs.launch`).
    """

    costs: Costs
    computes_prompts = True

    def __init__(
        self, env: simpy.Environment, config: ReplicaConfig, gaps: Gaps, independent: bool = False
    ) -> None:
        super().__init__()
        costs, limits, errors = config.costs, config.limits, config.error_sampler
        assert isinstance(costs, Costs)
        self.env, self.costs, self.gaps, self.budget = env, costs, gaps, limits.token_budget
        self.width, self.independent = limits.width, independent
        slots = limits.micro_batches
        self.state = KernelState(costs, slots, limits, bool(config.outages), errors)
        # The batch step of each slot; None for a micro-batch with a chunk of a prompt alone.
        self.batch_steps: list[BatchStep | None] = [None] * slots
        self.unused = list(range(slots))
        # Idle micro-batches that have chunks of prompts, and where they return to.
        self.lent: list[Any] = []
        self.idle: deque[Any] = deque()
        self.start_step: Callable[[Any], object] = self.idle.append
        # The waiting prompt, and its tokens left; -1 if the next return needs a decision anyway.
        self.request: Request | None = None
        self.prompt_left = 0
        self.next: Head | None = None  # the return that is waited for; None while idle
        self.kv_cache: KVCache | None = None  # that decodes take room from
        self.unworked = np.zeros(costs.stages)  # of steps that an outage interrupted [s]

    def send(self, batch_step: BatchStep) -> None:
        work, slot = batch_step.work, self.unused.pop()
        parts, row = self.costs.parts(work), self.state.table.row(self.costs.layout.step_size(work))
        if work.prompt_tokens:
            self.tally.add_chunks(work, 1)
        self.state.add_chunk(self.budget - work.decodes * work.width)
        self.batch_steps[slot] = batch_step
        steps, counted = min(batch_step.steps, parts.holds), work.decodes * batch_step.counted
        numbers = steps, counted, int(batch_step.no_output), row
        if self.kv_cache:
            self.state.set_kv_growth(slot, batch_step.kv_growth)
        self.state.join(slot, self.env.now, batch_step.clock_error, numbers, parts)
        self.wait_if_idle()

    def assign_prefill_chunks(
        self, request: Request, idle: deque[Any], most: int, start_step: Callable[[Any], object]
    ) -> None:
        chunks = min(len(idle), most, (request.prompt - request.prefilled - 1) // self.budget)
        if chunks > 0:
            row = self.state.table.row((self.budget, self.budget))
            chunks = min(chunks, self.state.table.good_steps(row))
        if chunks <= 0:
            return
        self.idle, self.start_step = idle, start_step
        self.lent += [idle.popleft() for _ in range(chunks)]
        slots, self.unused = self.unused[-chunks:], self.unused[:-chunks]
        for slot in slots:
            self.batch_steps[slot] = None
        needs_decision = self.prompt_left < 0
        self.prepare_chunks(request)
        self.state.add_chunk(self.budget)
        self.state.assign_chunks(self.env.now, slots)
        request.prefilled += chunks * self.budget
        self.set_prompt(None)
        if needs_decision:
            self.interrupt()
        self.wait_if_idle()

    def interrupt(self, request: Request | None = None) -> None:
        if request is None:
            self.request, self.prompt_left = None, -1
            self.state.set_prompt(self.prompt_left)
        elif self.prompt_left >= 0:
            # Otherwise the next return needs a decision anyway, which must not be forgotten.
            self.prepare_chunks(request)

    def interrupt_step(self, batch_step: BatchStep) -> None:
        if (slot := self.slot_of(batch_step)) is not None:
            self.state.end_after_this(slot)
            if self.next and self.next.slot == slot:
                self.next = self.next._replace(last=True)

    def slot_of(self, batch_step: BatchStep) -> int | None:
        """Return the slot of a batch step; None if it is not under way."""
        for slot, sent in enumerate(self.batch_steps):
            if sent is batch_step and slot not in self.unused:
                return slot
        return None

    def take_kv_from(self, kv_cache: KVCache) -> None:
        self.kv_cache = kv_cache

    def prepare_chunks(self, request: Request) -> None:
        """Let returning micro-batches take full chunks of a prompt."""
        self.state.table.row((self.budget, self.budget))
        self.set_prompt(request)

    def set_prompt(self, request: Request | None) -> None:
        """Set the waiting prompt, or none."""
        self.request, self.prompt_left = request, 0
        if request:
            self.prompt_left = request.prompt - request.prefilled
            self.state.set_prompt(self.prompt_left, request.prefilled)
        else:
            self.state.set_prompt(0)

    def wait_if_idle(self) -> None:
        """Wait for the first return, if no return is waited for."""
        if self.next is None:
            self.wait(self.state.head())

    def wait(self, head: Head) -> None:
        """Wait for a return."""
        self.next = head
        CallAtReturn(self.env, max(0.0, head.back - self.env.now), self.on_return)

    def on_return(self, _: simpy.Event) -> None:
        """Complete the micro-batch that returns, or let it continue. Then advance the others."""
        head, now = self.next, self.env.now
        if head is None:  # the replica has failed since
            return
        batch_step = self.batch_steps[head.slot]
        if self.request:
            # The scheduler may have computed chunks of the prompt since.
            self.set_prompt(self.request)
        work = batch_step.work if batch_step else Work()
        left, room = self.prompt_left, self.budget - work.decodes * work.width
        continues = head.last and left and batch_step is None
        needs_decision = left < 0 or 0 < left <= room or (head.last and not continues)
        needs_decision = needs_decision or self.lacks_kv(head, batch_step)
        if needs_decision or self.state.fails(head, left and room):
            if not (batch_step and batch_step.fails):
                self.complete_silent()
                self.set_prompt(None)
            self.state.pop_head()
            clock_error = head.clock_error + (head.back - now)
            self.over(head.slot, head.steps, min(head.leave, now), clock_error)
        head = self.advance()
        if self.request:
            self.request.prefilled = head.prefilled
            self.prompt_left = self.request.prompt - head.prefilled
        if head.in_flight:
            self.wait(head)
        else:
            self.next = None

    def lacks_kv(self, head: Head, batch_step: BatchStep | None) -> bool:
        """Return whether the KV cache has no room for the next tokens of a batch step."""
        if self.kv_cache is None or batch_step is None or head.last:
            return False
        return self.kv_cache.kv_free < batch_step.kv_growth

    def advance(self) -> Head:
        """Make the steps up to the next event, and take their KV."""
        now, until = self.env.now, next_event_time(self.env, self.independent)
        if self.kv_cache is None:
            return self.state.advance(now, until)
        free = self.kv_cache.kv_free
        self.state.set_room(free)
        head = self.state.advance(now, until)
        self.kv_cache.grow(free - self.state.room)
        return head

    def over(self, slot: int, steps: int, leave: Seconds, clock_error: Seconds) -> None:
        """Return a micro-batch to the scheduler."""
        batch_step = self.batch_steps[slot]
        self.unused.append(slot)
        if batch_step:
            batch_step.steps, batch_step.clock_error = steps, clock_error
            batch_step.over(batch_step, leave)
        else:
            batch = self.lent.pop()
            batch.last, batch.clock_error = leave, clock_error
            self.start_step(batch)

    def good_steps(self, work: Work) -> int:
        return self.state.table.good_steps(self.state.table.row(self.costs.layout.step_size(work)))

    def complete_silent(self) -> None:
        slots = self.state.take_silent()
        if not slots:
            return
        if self.prompt_left > 0:
            self.set_prompt(None)
        # `over` may use slots again, so they are sorted out first.
        lent = [slot for slot in slots if self.batch_steps[slot] is None]
        sent = [slot for slot in slots if self.batch_steps[slot]]
        self.unused += lent
        self.idle += [self.lent.pop() for _ in lent]
        for slot in sent:
            self.over(slot, 1, 0.0, 0.0)

    def tally_so_far(self) -> Tally:
        tally = summed([self.tally])
        self.state.add_to(tally)
        return tally

    def steps_so_far(self, batch_step: BatchStep) -> int:
        slot = self.slot_of(batch_step)
        if slot is None or not batch_step.work.decodes:
            return 0
        return int(self.state.counts[slot, kernel.DONE])

    def flush(self) -> None:
        self.state.add_to(self.tally)
        self.state.add_gaps_to(self.gaps)

    def abort(self) -> None:
        state, stages = self.state, self.costs.stages
        for slot in state.slots_under_way():
            track, batch_step = state.tracks[slot], self.batch_steps[slot]
            leave, times = track[kernel.STAGE_TIMES :].reshape(2, stages)
            unmade = unworked_seconds(leave, times, self.env.now)
            self.unworked += unmade
            part = float(unmade.sum() / times.sum())
            self.tally.add(self.state.work_of(slot, batch_step), -part)
            state.take_back_gap(slot)
            if batch_step:
                self.interrupted[batch_step] = int(state.counts[slot, kernel.DONE]) - part
        state.table.count_all()
        self.flush()

    def stop(self) -> None:
        super().stop()
        self.next = None

    @property
    def free_at(self) -> Seconds:
        return self.state.free_at

    @property
    def busy(self) -> NDArray[np.float64]:
        return self.state.busy - self.unworked
