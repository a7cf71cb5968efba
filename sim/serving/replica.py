"""One replica: requests come in, and its micro-batches go through an executor.

The scheduler decides the work of a step, and the executor computes its time. A replica passes
steps from one to the other, in the order that `event_order` explains.
"""

import math
from functools import partial

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.energy import Tally
from sim.serving.admission import Admission
from sim.serving.event_order import CallAfter, CallUrgently, call_at, is_instant_over
from sim.serving.executors.executor import Executor
from sim.serving.kv_cache import KVCache
from sim.serving.micro_batch import MicroBatch
from sim.serving.replica_config import ReplicaWiring
from sim.serving.request import Request
from sim.serving.scheduler import Scheduler
from sim.units import Seconds


class Replica:
    """One copy of the model: its requests, its scheduler, and its executor.

    in_transit: requests that were routed to it and are still on their way.
    alone: whether there is one micro-batch.
    scheduling_requested: whether idle micro-batches will take prompts at this instant.
    up: False after a failure. Another object then takes its place.
    """

    admission_class: type[Admission] = Admission

    def __init__(self, wiring: ReplicaWiring, executor: Executor) -> None:
        config, rows = wiring.config, wiring.rows
        self.env, self.executor, self.rows = wiring.env, executor, rows
        self.system, self.overhead = config.system, config.overhead
        self.limits, self.policies = config.limits, config.policies
        self.reserve, self.alone = config.policies.reserve, config.limits.micro_batches == 1
        self.ahead = config.policies.ahead and self.alone
        self.admission = self.admission_class(wiring)
        self.prefilling = self.admission.prefilling
        batches = [
            MicroBatch(self.back, window=self.limits.window, width=self.limits.width)
            for _ in range(self.limits.micro_batches)
        ]
        self.scheduler = Scheduler(self.admission, batches, executor.tally, rows)
        if not self.reserve and not self.alone:
            executor.take_kv_from(self.admission.kv_cache)
        self.scheduling_requested = False
        self.in_transit = 0
        self.up = True

    # The router reads these.

    @property
    def unfinished(self) -> int:
        """Requests that were routed to it and have not ended."""
        return len(self.admission.requests) + self.in_transit

    @property
    def kv_cache(self) -> KVCache:
        """The KV cache, with the prefixes that it keeps."""
        return self.admission.kv_cache

    # Requests come, and may be cancelled.

    def submit(self, request: Request) -> None:
        """Accept a request, or refuse it if it can never fit, is late, or the queue is full."""
        admission, deadline = self.admission, self.policies.deadline
        if deadline is not None and request.arrival + deadline <= self.env.now:
            self.rows.expire(request.id, deadline)
            admission.on_end(request, self.env.now)
            return
        if reason := admission.never_fits(request):
            admission.refuse(request, reason)
            return
        self.executor.complete_silent()
        if self.policies.max_waiting is not None and admission.is_full(request):
            self.rows.turned_away[request.id] = True
            admission.refuse(request, f"the queue of {self.policies.max_waiting} is full")
            return
        admission.accept(request, late=self.ahead and self.scheduler.in_flight > 0)
        if deadline is not None:
            call_at(self.env, request.arrival + deadline, lambda _: self.cancel(request))
        self.on_submit()

    def on_submit(self) -> None:
        """Admit requests after the queue has changed, and let micro-batches take their prompts."""
        if (not self.reserve or self.admission.late) and self.scheduler.in_flight:
            # Free KV is known only after the step, and late requests are queued then: end it early.
            self.executor.interrupt()
            return
        self.admission.admit()
        if self.prefilling:
            if self.scheduler.idle and is_instant_over(self.env):
                self.run_scheduler()
            else:
                self.request_scheduling()

    def cancel(self, request: Request) -> None:
        """Cancel a request at its deadline: immediately if it waits, else after the next step."""
        if request.ended:
            return
        request.cancelled = True
        self.executor.complete_silent()
        if request.queued:
            self.admission.unqueue(request)
            # It may have blocked requests behind it that fit.
            self.on_submit()
        elif batch := self.scheduler.batch_of(request):
            self.executor.interrupt_step(batch)
        else:
            self.executor.interrupt()

    # Micro-batches get work, are sent, and return.

    @property
    def has_place(self) -> bool:
        """Whether an idle micro-batch may take prompts."""
        scheduler = self.scheduler
        return bool(scheduler.idle) and scheduler.in_flight < scheduler.allowed

    def request_scheduling(self, interrupt: bool = True) -> None:
        """Let micro-batches take the waiting prompts.

        Idle ones take them after all that arrives at this instant. Without idle ones the next
        micro-batch to return takes them. interrupt: whether to end its steps for that.
        """
        if not self.has_place:
            if interrupt:
                self.executor.interrupt(self.steady_prompt())
        elif not self.scheduling_requested:
            self.scheduling_requested = True
            CallAfter(self.env, 0.0, self.run_scheduler)

    def steady_prompt(self) -> Request | None:
        """Return the prompt that the executor may compute by itself; None if there is none."""
        if not (self.executor.computes_prompts and self.scheduler.fast_path):
            return None
        request = self.prefilling[0]
        return None if request.cancelled or request.is_prefilled else request

    def run_scheduler(self, _: simpy.Event | None = None) -> None:
        """Let idle micro-batches take the waiting prompts."""
        self.scheduling_requested = True
        executor = self.executor
        executor.complete_silent()  # or those that returned without an event count as in flight
        while self.prefilling and self.has_place:
            if request := self.steady_prompt():
                most = self.scheduler.allowed - self.scheduler.in_flight
                executor.assign_prefill_chunks(request, self.scheduler.idle, most, self.resume)
                if not self.has_place:
                    break
            batch = self.scheduler.idle.popleft()
            batch.clock_error = 0.0
            if not self.start_step(batch):
                if self.prefilling:  # unless the last prompt was preempted for want of room
                    executor.interrupt(self.steady_prompt())  # its place may be beside decodes
                self.scheduling_requested = False
                return
        self.scheduling_requested = False
        if self.prefilling:
            self.request_scheduling()

    def start_step(self, batch: MicroBatch) -> bool:
        """Schedule a step and send it, or make the micro-batch idle. Return whether it was sent."""
        sent = self.scheduler.schedule_step(batch)
        if batch.preempted:
            if not sent and self.scheduler.in_flight == 1:
                # Its last sequence was preempted, and no other micro-batch will return and admit.
                self.admission.admit()
                sent = self.scheduler.schedule_step(batch)
            if batch.preempted and not self.alone:
                # A waiting request may fit now. The next micro-batch to return admits it.
                self.executor.interrupt()
        if not sent:
            self.scheduler.idle.append(batch)
            if self.prefilling and self.limits.fill is not None:
                # Too many may be in flight for a prompt that waits. The next to return takes it.
                self.request_scheduling()
            return False
        # A policy that refuses prompts now refuses them until something changes. But another
        # micro-batch may take them.
        if self.prefilling:
            interrupt = batch.work.prompt_tokens > 0 or not self.alone
            self.request_scheduling(interrupt)
        self.executor.send(batch)
        return True

    def resume(self, batch: MicroBatch, _: simpy.Event | None = None) -> None:
        """Start a step after arrivals whose admission `on_submit` left to the end of a step."""
        if not self.reserve:
            self.admission.admit()
        self.start_next(batch)

    def start_next(self, batch: MicroBatch) -> None:
        """Start the step after one that is over, and then queue the requests that wait for it."""
        self.start_step(batch)
        if self.admission.late:
            self.admission.queue_late()
            self.on_submit()

    def back(self, batch: MicroBatch, leave: Seconds) -> None:
        """Process the outputs of a micro-batch that returns, and start its next step.

        leave: when it left the last stage [s].
        """
        if not self.up:
            # The replica failed while the step was under way.
            return
        decodes = batch.work.decodes
        if not self.reserve and self.alone:
            # KV was taken for the planned steps, of which some were not made.
            unmade = batch.kv_steps - batch.steps
            self.admission.kv_cache.grow(-batch.kv_growth * unmade if decodes else 0)
        if not decodes:
            batch.skip()
        elif batch.skipped_since:
            batch.count_skipped(self.rows.gaps, leave)
        batch.last = leave
        ended = bool(decodes or batch.prefilled) and self.scheduler.process_outputs(batch, leave)
        if not self.reserve:
            self.admission.admit()
        if ended and not is_instant_over(self.env):
            CallUrgently(self.env, 0.0, partial(self.resume, batch))
        else:
            self.start_next(batch)

    # The work so far, and the end by a failure.

    def so_far(self) -> tuple[Tally, NDArray[np.float64]]:
        """Return the work up to now, running requests included, and the working times.

        The times are float[stage], s.
        """
        tally = self.executor.tally_so_far()
        for batch in self.scheduler.batches:
            steps = self.executor.steps_so_far(batch) if batch.finish_steps else 0
            if self.limits.width > 1:
                tally.decode_steps += steps
            for last, _, request in batch.finish_steps:
                batch.add_decoded(tally, request, batch.steps_made(last, request) + steps)
        return tally, self.executor.busy_so_far()

    def tokens_so_far(self) -> float:
        """Return the tokens of answers up to now, running requests included, as in `so_far`."""
        tokens = self.executor.logits_so_far()
        for batch in self.scheduler.batches:
            if batch.running:
                tokens += batch.decoded_steps + batch.running * self.executor.steps_so_far(batch)
        return tokens

    def fail(self) -> list[Request]:
        """Stop for good, and return the requests that are lost.

        Their decoded tokens count, because they took energy. So does the part of a step under way.
        """
        self.up = False
        self.executor.abort()
        for batch in self.scheduler.batches:
            made = self.executor.steps_made(batch) if batch.work.decodes else 0
            if made and not self.reserve and self.alone:
                # KV was taken for the planned steps, of which some are not made.
                unmade = batch.kv_steps - math.ceil(made)
                self.admission.kv_cache.grow(-batch.kv_growth * unmade)
            if self.limits.width > 1:
                self.executor.tally.decode_steps += made
            for last, _, request in batch.finish_steps:
                steps = batch.steps_made(last, request) + made
                batch.add_decoded(self.executor.tally, request, steps)
        return self.admission.lose_all()
