"""The scheduler of a replica, in vLLM's words: what each micro-batch computes next.

It decides, and computes no times. `schedule_step` chooses the work of a micro-batch's next step,
which is fixed from then on. `process_outputs` books the tokens of a step that is over. `preempt`
takes sequences out where the KV cache has no room for their next tokens.
"""

import math
from collections import deque
from typing import NamedTuple

from sim.cost.energy import Tally
from sim.cost.work import Work
from sim.inputs.errors import UserError
from sim.results.rows import Rows
from sim.serving.admission import Admission
from sim.serving.micro_batch import MicroBatch
from sim.serving.policy import BatchDecision, BatchState, continuous, is_steady
from sim.serving.policy_checks import checked_batching, policy_name
from sim.serving.prompt_chunks import take_chunks
from sim.serving.rank_wait import steps_until_prompts
from sim.serving.received import add_received
from sim.serving.request import Request
from sim.serving.step_draws import kv_per_step
from sim.units import Seconds


class QueueView(NamedTuple):
    """The queue of a replica, as a batching policy sees it."""

    scheduler: "Scheduler"
    batch: MicroBatch

    def __repr__(self) -> str:
        return f"<kv_free={self.kv_free}, age={self.age:g}, slack={self.slack:g}>"

    @property
    def kv_free(self) -> int:
        return int(self.scheduler.admission.kv_cache.kv_free)

    @property
    def age(self) -> Seconds:
        now = self.scheduler.admission.env.now
        return now - min(self.scheduler.admission.arrivals(), default=now)

    @property
    def slack(self) -> Seconds:
        deadline = self.scheduler.policies.deadline
        running = [request.arrival for _, _, request in self.batch.finish_steps]
        oldest = min([*self.scheduler.admission.arrivals(), *running], default=None)
        if deadline is None or oldest is None:
            return math.inf
        return oldest + deadline - self.scheduler.admission.env.now


class Scheduler:
    """The micro-batches of a replica, and the choice of their work.

    idle: micro-batches that are not under way.
    decoding: micro-batches that hold sequences; counted only if `limits.fill` is a number.
    size: the most sequences of a micro-batch, as policies see it.
    allowed: micro-batches that may be in flight while prompts wait, see `update_allowed`.
    alone: whether there is one micro-batch.
    steady: whether every sequence decodes, and prompts fill the budget.
    is_default: whether the policy is the default one. A user's steady policy is called, as a check.
    fast_path: whether the oldest prompt fills every returning micro-batch, so that the executor
        can compute its chunks without the scheduler.
    tally: the executor's. Sequences that leave add their tokens to it.
    """

    def __init__(
        self, admission: Admission, batches: list[MicroBatch], tally: Tally, rows: Rows
    ) -> None:
        self.admission, self.batches, self.tally, self.rows = admission, batches, tally, rows
        self.limits, self.policies = limits, policies = admission.limits, admission.policies
        self.prefilling, self.alone = admission.prefilling, limits.micro_batches == 1
        prompts_wait = policies.wait or policies.rank_wait or policies.receive_every > 1
        self.steady = is_steady(policies.batching) and not prompts_wait
        self.reserve, self.fast_path = policies.reserve, self.steady and limits.ranks == 1
        self.batching = checked_batching(policies.batching)
        self.is_default = self.steady and policies.batching is continuous
        self.size = policies.size or max(1, limits.sequences // limits.micro_batches)
        self.width, self.idle, self.decoding = limits.width, deque(batches), 0
        self.allowed = limits.micro_batches if limits.fill is None else limits.fill

    @property
    def in_flight(self) -> int:
        """Micro-batches in the pipeline or its queue."""
        return self.limits.micro_batches - len(self.idle)

    def update_allowed(self, batch: MicroBatch, before: int) -> None:
        """Count the micro-batches that hold sequences, and limit those in flight.

        before: sequences that the micro-batch held before it changed.
        While prompts wait, as many may be in flight as fill the pipeline, or one more than decode,
        whichever is more. More chunks of prompts would queue, and delay every decode behind them.
        """
        fill = self.limits.fill
        if fill is not None:
            self.decoding += bool(batch.running) - bool(before)
            self.allowed = max(fill, self.decoding + 1)

    def schedule_step(self, batch: MicroBatch) -> bool:
        """Choose the work of a micro-batch's next step, and return whether there is any.

        Without prompts the step repeats until a sequence ends, or a window or the KV cache is full.
        Several micro-batches may have chunks of one prompt: stages serve them in order.

        Raises: UserError if the policy chooses no work, and nothing can change that.
        """
        prefilling = self.prefilling
        if prefilling and (prefilling[0].cancelled or prefilling[0].is_prefilled):
            self.join_received(batch)
        batch.preempted = preempted = not self.reserve and self.preempt(batch)
        running, batch.prefilled = batch.running, []
        if not running and (not prefilling or self.in_flight > self.allowed):
            return False
        decodes, chunk_tokens, ends = True, 0, 0
        if prefilling or not self.steady:
            decodes, chunk_tokens, ends = self.decide(batch)
        batch.work = work = batch.decode_work() if decodes and running else Work()
        if chunk_tokens > 0:
            batch.prefilled = take_chunks(prefilling, work, chunk_tokens, ends, self.limits)
            self.admission.kv_cache.count_prompts(prefilling)
            batch.received = batch.step + bool(work.decodes)
        if not work.decodes and not work.prompt_tokens:
            if running or self.in_flight == 1:
                prompts = len(self.prefilling) if self.places(batch) > 0 else 0
                raise UserError(
                    f"policy {policy_name(self.policies.batching)}: got no work for "
                    f"{self.state_of(batch, prompts)}; expected decodes or prompt tokens, because "
                    "nothing else is under way; "
                    "try BatchDecision(True, state.budget - state.running, state.budget)"
                )
            return False
        # After a preemption a waiting request may fit. It is admitted at the end of this step.
        single = work.prompt_tokens or batch.skipped_since or preempted
        batch.steps = 1 if single else self.steps_until_change(batch)
        if work.decodes:
            batch.begun = True
            if not self.reserve:
                self.take_kv(batch)
        batch.counted = not batch.skipped_since
        batch.no_output = self.fast_path and not (running or batch.prefilled)
        return True

    def take_kv(self, batch: MicroBatch) -> None:
        """Take the KV of a batch step's tokens.

        With one micro-batch that is the KV of all planned steps. The peak is known at their end.
        """
        kv_cache, batch.kv_growth = self.admission.kv_cache, batch.kv_needed
        batch.kv_steps = batch.steps if self.alone else 1
        if self.alone:
            kv_cache.kv_used += batch.kv_growth * batch.kv_steps
        else:
            kv_cache.grow(batch.kv_growth)

    def decide(self, batch: MicroBatch) -> BatchDecision:
        """Return the policy's decision, with the prompts that may end limited to the places."""
        places, prompts = self.places(batch), len(self.prefilling)
        if self.is_default:
            room = self.limits.token_budget - batch.running * self.width
            return BatchDecision(True, room, places)
        if delay := steps_until_prompts(self.admission, batch):
            prompts = 0
        decodes, chunk_tokens, ends = self.batching(self.state_of(batch, prompts))
        if prompts and places <= 0 and not decodes:
            # A full micro-batch can end no prompt. A policy that puts prompts first would neither
            # decode nor end a prompt. So it decides as if there were no prompts.
            prompts = 0
            decodes, chunk_tokens, ends = self.batching(self.state_of(batch, prompts))
        if self.width > 1:  # a policy counts one token for each sequence
            used = batch.running * self.width if decodes else 0
            chunk_tokens = min(chunk_tokens, max(0, self.limits.token_budget - used))
        if (wait := self.policies.wait) and not (delay and self.prefilling):
            chosen = self.prefilling if decodes and chunk_tokens > 0 else ()
            waiting = sum(request.prompt - request.prefilled for request in chosen)
            if batch.holds(wait, waiting, self.limits.token_budget):
                chunk_tokens = 0
        return BatchDecision(decodes, chunk_tokens if prompts else 0, min(ends, places))

    def state_of(self, batch: MicroBatch, prompts: int) -> BatchState:
        """Return the state of a micro-batch and its queue, as a policy sees it."""
        budget, queue = self.limits.token_budget, QueueView(self, batch)
        return BatchState(batch.running, batch.begun, prompts, budget, self.size, queue)

    def places(self, batch: MicroBatch) -> int:
        """Return how many more sequences a micro-batch may take."""
        return free_places(batch, self.batches, self.admission)

    def steps_until_change(self, batch: MicroBatch) -> int:
        """Return the steps for which nothing changes."""
        steps = batch.steps_until_change()
        if self.prefilling and (delay := steps_until_prompts(self.admission, batch)):
            steps = min(steps, delay)
        elif (held := batch.held_since) is not None and (wait := self.policies.wait):
            # If another micro-batch takes the prompts, the wait is over.
            steps = min(steps, held + wait.steps - batch.step if self.alone else 1)
        # With several micro-batches the executor takes KV step by step, so that others find it.
        if not self.reserve and self.alone:
            # Without a queue, the KV of steps to come would refuse requests that fit now.
            free = self.admission.kv_cache.kv_free if self.policies.max_waiting != 0 else 0
            steps = min(steps, max(1, int(free // batch.kv_needed)))
        return steps

    def process_outputs(self, batch: MicroBatch, leave: Seconds) -> bool:
        """Book the tokens of a step, and admit requests. Return whether a request ended."""
        admission, running = self.admission, batch.running
        before = len(admission.requests)
        if batch.work.decodes:
            for request in batch.advance(self.tally):
                if not self.reserve:
                    self.keep_kv(request, request.output - 1, request.steps)
                request.prefilled = request.tokens - 1  # nothing attends to the last token
                batch.add_decoded(self.tally, request, request.steps)
                admission.end(request, leave)
            if self.policies.deadline is not None or admission.lost:
                for finish in batch.cancelled():
                    self.remove(batch, finish)
                    admission.end(finish[2], leave)
        for request in batch.prefilled:
            self.join(batch, request, leave)
        if running != batch.running and self.limits.fill is not None:
            self.update_allowed(batch, running)
        if not batch.running:
            batch.begun = False
        if admission.waiting:
            admission.admit()
        return len(admission.requests) < before

    def join(self, batch: MicroBatch, request: Request, leave: Seconds) -> None:
        """Add a sequence to a micro-batch: its prompt is computed and a first token is ready.

        For a preempted request it is the next token.
        """
        if request.cancelled:
            self.admission.end(request, leave)
            return
        if math.isnan(request.answered):
            self.rows.first_token[request.id] = leave
        else:
            self.rows.gaps.add(leave - request.answered, 1)
        if request.output == 1:
            self.admission.end(request, leave)
        else:
            batch.join(request, leave)

    def join_received(self, batch: MicroBatch) -> None:
        """Add sequences whose prompts another replica has computed to a micro-batch."""
        joined = add_received(self.admission, batch, self.places)
        self.update_allowed(batch, batch.running - joined)

    def preempt(self, batch: MicroBatch) -> bool:
        """Preempt the youngest sequences until the KV cache has room for a token of the others.

        Return whether there were any. Their tokens are computed again later.
        If none is left, received sequences take the free places: nothing else may be under way.
        """
        before, admitted = batch.running, self.rows.admitted
        while batch.running and self.admission.kv_cache.kv_free < batch.kv_needed:
            finish = max(batch.finish_steps, key=lambda finish: (admitted[finish[2].id], finish[1]))
            request, (decoded, steps) = finish[2], self.remove(batch, finish)
            if request.cancelled:
                self.admission.end(request, self.admission.env.now)
            else:
                self.admission.requeue(request, decoded, steps)
        self.update_allowed(batch, before)
        if not batch.running:
            batch.begun = False
        preempted = batch.running < before
        if preempted and not batch.running and self.prefilling and self.prefilling[0].is_prefilled:
            self.join_received(batch)
            self.preempt(batch)
        return preempted

    def batch_of(self, request: Request) -> MicroBatch | None:
        """Return the micro-batch that holds a request's sequence; None without one."""
        held = (b for b in self.batches if any(r is request for _, _, r in b.finish_steps))
        return next(held, None)

    def keep_kv(self, request: Request, decoded: int, steps: int) -> None:
        """Let a request hold the KV of its decoded tokens, in place of what its steps took."""
        request.kv += decoded
        if self.width > 1:
            self.admission.kv_cache.grow(decoded - steps * kv_per_step(request.rate))

    def remove(self, batch: MicroBatch, finish: tuple[int, int, Request]) -> tuple[int, int]:
        """Remove a sequence before its end, and return the tokens and the steps that it decoded."""
        request, steps = finish[2], batch.remove(finish)
        batch.add_decoded(self.tally, request, steps)
        decoded = int(request.rate * steps)
        if not self.reserve:
            self.keep_kv(request, decoded, steps)
        request.prefilled = request.prompt + decoded
        return decoded, steps


def free_places(batch: MicroBatch, batches: list[MicroBatch], admission: Admission) -> int:
    """Return how many more sequences a micro-batch may take: an even share of all admitted.

    With a remainder r, r of the `SchedulerLimits.spread` micro-batches hold one more. Otherwise
    requests that come together would pack into one, and the stages would wait for it.
    An empty micro-batch has no place while enough others hold sequences: one more would lengthen
    the lap of all, though others have room in their beats.
    """
    limits, admitted = admission.limits, admission.kv_cache.sequences_used
    most = admission.policies.size or limits.batch_sequences
    if most == 1:
        return 1 - batch.running  # whatever the others hold, which takes long to count
    if not batch.running and limits.fill is not None:
        holding = sum(bool(other.running or other.prefilled) for other in batches)
        if holding - bool(batch.prefilled) >= max(limits.spread, -(-admitted // most)):
            return 0
    share, more = divmod(admitted, limits.spread)
    others = (other.running for other in batches if other is not batch)
    if more and (not share or sum(running > share for running in others) < more):
        share += 1
    return min(share, most) - batch.running
