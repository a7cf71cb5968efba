"""One replica on SimPy: a queue, admission, and micro-batches in flight that pick what they advance.

Each picks (what it advances is fixed when it joins the first stage's queue), passes through the stages first come first served, and
comes back with a token for each sequence.  At stage fidelity the turns of a passage are computed at once and its return is waited
for: one event for each passage.  At chip fidelity the `machine` takes it through.

Ties are decided so: arrivals come before passages that return at the same instant; a micro-batch that returns picks before
those that its return made room for, and these go in the order of the queue.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray
from pydantic import Field
from simpy.events import URGENT, Timeout

from sim.chipsim.machine import MachineFactory
from sim.cost.energy import Tally
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.inputs.errors import UserError
from sim.inputs.values import Value
from sim.reliability.link_errors import LinkErrorSampler
from sim.results.rows import Rows
from sim.serving.executors import BatchStep, Executor, attended_positions
from sim.serving.policy import (
    BATCHINGS,
    DEFAULT,
    ORDERS,
    BatchState,
    KVCache,
    Policies,
    PrefixCache,
    Request,
    SchedulerLimits,
    checked_batching,
    checked_order,
    continuous,
)
from sim.units import Seconds
from sim.workload.requests import HASH_BLOCK


class UrgentTimeout(simpy.Event):
    """A timeout that is handled before everything else due at its instant."""

    def __init__(self, env: simpy.Environment, delay: Seconds) -> None:
        self.env, self.callbacks, self._ok, self._value = env, [], True, None
        env.schedule(self, URGENT, delay)


@dataclass(eq=False, slots=True)
class MicroBatch(BatchStep):
    """Sequences that decode together, and their passage.  They are counted, not visited: a heap knows at which step the next one
    ends."""

    running: int = 0
    context: int = 0  # positions that the next tokens attend to, over all sequences
    step: int = 0
    finish_steps: list[tuple[int, int, Request]] = field(default_factory=list)
    windowed: int = 0  # the same as `context`, as layers with a window see it
    growing: int = 0  # sequences that no window cuts yet
    window_full_steps: list[int] = field(
        default_factory=list
    )  # the steps at which windows begin to cut
    begun: bool = False  # it has decoded since it was last empty
    skipped_since: list[tuple[int, Seconds]] = field(
        default_factory=list
    )  # sequences that were left out, and their last tokens' time
    planned: int = 1  # the steps that its passage may go on for, of which it may make fewer


class Outage(Value):
    """A time in which a replica is down. What it holds is lost.

    With `requests: retry` its requests begin again from their prompts on another replica. Without
    another replica they wait for the first that is up again.
    """

    at: Seconds = Field(description="Start of the outage [s].")
    lasts: Annotated[Seconds, Field(gt=0)] = Field(
        description="Time until the spare is in place and the weights are loaded, detection "
        "included [s]."
    )
    replica: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Number of the replica, from 0."
    )
    requests: Literal["retry", "fail"] = Field(
        default="retry",
        description="Fate of its requests: begin again on another replica, or fail.",
    )


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """What one replica is.  All but their numbers is shared among replicas that are alike.

    `overhead` is what a request spends before the scheduler sees it (client, HTTP, tokenizer).  `machine` makes its chips, where
    every chip is to be a process; else stages are computed.
    """

    costs: Costs
    limits: SchedulerLimits
    policies: Policies = DEFAULT
    overhead: Seconds = 0.0
    machine: MachineFactory | None = None
    system: str = ""  # whose copy it is, and its number among those
    number: int = 0
    outages: tuple[Outage, ...] = ()
    error_sampler: LinkErrorSampler | None = (
        None  # draws which steps are made again; steps are then made one by one
    )
    request_tokens: float = 1.0  # of a mean request, for the beat of a ring


class QueueView(NamedTuple):
    """The queue of a replica, as a batching policy sees it."""

    replica: "Replica"
    batch: MicroBatch

    def __repr__(self) -> str:
        return f"<kv_free={self.kv_free}, age={self.age:g}, slack={self.slack:g}>"

    @property
    def kv_free(self) -> int:
        return self.replica.kv_cache.kv_free

    @property
    def age(self) -> Seconds:
        return self.replica.env.now - min(self._arrivals(), default=self.replica.env.now)

    @property
    def slack(self) -> Seconds:
        deadline = self.replica.policies.deadline
        held = [request.arrival for _, _, request in self.batch.finish_steps]
        oldest = min([*self._arrivals(), *held], default=None)
        if deadline is None or oldest is None:
            return math.inf
        return oldest + deadline - self.replica.env.now

    def _arrivals(self) -> list[Seconds]:
        queue = [*self.replica.prefilling, *(request for *_, request in self.replica.waiting)]
        return [request.arrival for request in queue if not request.cancelled]


class Replica:
    """One copy of the model: a queue, a pipeline, and the micro-batches in flight."""

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        setup: ReplicaConfig,
        executor: Executor,
        rows: Rows,
        finished: Callable[[Request, Seconds], None],
    ) -> None:
        self.env, self.number, self.executor, self.rows, self.finished = (
            env,
            number,
            executor,
            rows,
            finished,
        )
        self.system, self.overhead = setup.system, setup.overhead
        self.limits, self.policies = limits, policies = setup.limits, setup.policies
        self.kv_cache = KVCache(limits.kv_tokens, limits.sequences)
        self.prefixes = PrefixCache() if policies.prefix_caching else None
        # The oldest prompt fills whoever is back, so that what passes may deal it out by itself.
        self.fast_path = (
            policies.batching is continuous and policies.reserve and policies.deadline is None
        )
        self.built_in = policies.batching in BATCHINGS.values()
        self.batching = policies.batching if self.built_in else checked_batching(policies.batching)
        own_order = policies.order not in ORDERS.values()
        self.order = checked_order(policies.order) if own_order else policies.order
        self.size = policies.size or max(1, limits.sequences // limits.micro_batches)
        self.waiting: list[tuple[float, int, Request]] = []  # a heap, by the order's key
        self.queued = 0  # of these, those that are not cancelled
        self.prefilling: deque[Request] = deque()
        self.batches = [MicroBatch(self.back) for _ in range(limits.micro_batches)]
        self.idle = deque(self.batches)
        self.decoding = 0  # micro-batches that hold sequences
        # How many micro-batches may be in flight while prompts wait: see `resize`.
        self.allowed = limits.micro_batches if limits.fill is None else limits.fill
        self.scheduling_requested = False
        self.unfinished = 0
        self.requests: dict[int, Request] = {}  # unfinished ones that it was given
        self.up = True

    # A request comes, is admitted, and ends.

    def submit(self, request: Request) -> None:
        """Takes a request in, or refuses it where it could never fit, or the queue is full."""
        policies, tokens = self.policies, request.tokens
        if policies.deadline is not None and request.arrival + policies.deadline <= self.env.now:
            self.rows.expire(request.id, policies.deadline)
            self.finished(request, self.env.now)
            return
        request.kv = self.limits.kv_tokens_needed(tokens)
        if tokens > self.limits.context:
            self.rows.reason[request.id] = (
                f"{tokens} tokens exceed the model's context of {self.limits.context}"
            )
        elif request.kv > self.limits.kv_tokens:
            self.rows.reason[request.id] = (
                f"{request.kv} tokens exceed the KV room of {self.limits.kv_tokens}"
            )
        else:
            if not policies.reserve:
                request.kv = self.limits.kv_tokens_needed(request.prompt)
            self.executor.complete_silent()
            most = policies.max_waiting
            if (
                most is None
                or self.queued < most
                or (not self.queued and self.kv_cache.holds(request.kv))
            ):
                if self.rows.replica[request.id] not in (-1, self.number):
                    self.rows.moved[request.id] = True
                self.rows.replica[request.id] = self.number
                self.unfinished += 1
                self.requests[request.id] = request
                self.queue(request, self.order(request))
                if policies.deadline is not None:
                    wait = max(0.0, request.arrival + policies.deadline - self.env.now)
                    Timeout(self.env, wait).callbacks.append(lambda _: self.cancel(request))
                self.on_submit()
                return
            self.rows.turned_away[request.id] = True
            self.rows.reason[request.id] = f"the queue of {most} is full"
        self.finished(
            request, max(request.arrival, self.env.now - self.overhead)
        )  # later where its replica failed

    def on_submit(self) -> None:
        """Somebody has come: who is admitted, and who works on the prompts?"""
        if not self.policies.reserve and len(self.idle) < self.limits.micro_batches:
            self.executor.interrupt()  # what room there is, is known when the step under way is over
            return
        self.admit()
        if self.prefilling and self.idle and self.env.peek() > self.env.now:
            self.run_scheduler()  # nothing else arrives at this instant
        else:
            self.request_scheduling()

    def queue(self, request: Request, key: float) -> None:
        request.queued = True
        self.queued += 1
        heapq.heappush(self.waiting, (key, request.id, request))

    def admit(self) -> None:
        """Whoever is next, while there is room."""
        while self.waiting:
            request = self.waiting[0][2]
            if not request.cancelled:
                # Who was preempted (and so answered, which is not nan) waits for room to its end, or would be so again at once.
                again = request.answered == request.answered
                if not self.kv_cache.holds(
                    request.kv if not again else self.limits.kv_tokens_needed(request.tokens)
                ):
                    return
                request.queued = False
                self.queued -= 1
                self.kv_cache.take(request)
                if not again:
                    self.rows.admitted[request.id] = self.env.now
                if self.prefixes:
                    self.reuse(request, self.prefixes)
                self.prefilling.append(request)
            heapq.heappop(self.waiting)

    def reuse(self, request: Request, prefixes: PrefixCache) -> None:
        """Blocks of the prompt that the prefix cache has need not be computed; its last token always is."""
        request.prefilled = min(HASH_BLOCK * prefixes.cached(request.hash_ids), request.prompt - 1)
        self.rows.cached[request.id] += request.prefilled
        prefixes.shrink(self.kv_cache.kv_free)

    def cancel(self, request: Request) -> None:
        """A request's deadline has passed: it is out at once where it waits, else when the step under way is over."""
        if request.ended:
            return
        request.cancelled = True
        if request.queued:
            self.queued -= 1
            self.leave(request, self.env.now)
            self.on_submit()  # it may have stood before others
        else:
            self.executor.interrupt()

    def end(self, request: Request, leave: Seconds) -> None:
        """A request that was admitted ends, finished or cancelled."""
        if not request.cancelled:
            self.rows.last_token[request.id] = leave
        self.free(request)
        self.leave(request, leave)

    def free(self, request: Request) -> None:
        """Its room is given back."""
        self.kv_cache.give_back(request)
        if self.prefixes and request.kept:
            request.kept = False
            self.prefixes.release(request.hash_ids)
            self.prefixes.shrink(self.kv_cache.kv_free)

    def leave(self, request: Request, at: Seconds) -> None:
        request.ended = True
        if request.cancelled:
            assert self.policies.deadline is not None
            self.rows.expire(request.id, self.policies.deadline)
        self.unfinished -= 1
        del self.requests[request.id]
        self.finished(request, at)

    def so_far(self) -> tuple[Tally, NDArray[np.float64]]:
        """Return what the stages did up to now, running requests counted, and the seconds that each was busy."""
        executor = self.executor
        tally = executor.tally_so_far()
        for batch in self.batches:
            for last, _, request in batch.finish_steps:
                decoded = request.output - 1 - (last - batch.step) + executor.steps_so_far(batch)
                self.count_decoded(tally, request, decoded)
        return tally, executor.busy_so_far()

    def fail(self) -> list[Request]:
        """It is down for good, with what it held; says whose requests are lost.

        What they decoded took its joules all the same, and so did the part of a step that was made.
        """
        self.up = False
        self.executor.abort()
        for batch in self.batches:
            made = self.executor.steps_made(batch) if batch.work.decodes else 0
            for last, _, request in batch.finish_steps:
                self.record_decoded_tokens(request, request.output - 1 - (last - batch.step) + made)
        self.waiting.clear()
        self.prefilling.clear()
        unfinished = list(self.requests.values())
        self.requests.clear()
        for request in unfinished:
            request.ended = True
        return unfinished

    # Micro-batches pick, go, and come back.

    def request_scheduling(self, interrupt: bool = True) -> None:
        """Somebody is to work on the prompts, if there are any: idle micro-batches, after all that arrives at this instant; else
        whoever is back next."""
        if self.prefilling:
            if not self.idle or self.in_flight >= self.allowed:
                if interrupt:
                    self.executor.interrupt(self.prefilling[0] if self.fast_path else None)
            elif not self.scheduling_requested:
                self.scheduling_requested = True
                Timeout(self.env, 0.0).callbacks.append(self.run_scheduler)

    @property
    def in_flight(self) -> int:
        """Micro-batches that are in the pipeline or its queue."""
        return self.limits.micro_batches - len(self.idle)

    def resize(self, batch: MicroBatch, sequences: int) -> None:
        """Set how many sequences a micro-batch holds, and so how many micro-batches may be in flight while prompts wait.

        These are as many as fill the pipeline, and at least one beside those that decode.  More pieces of prompts would only
        queue at the first stage, and every decode behind them.
        """
        self.decoding += bool(sequences) - bool(batch.running)
        batch.running = sequences
        if self.limits.fill is not None:
            self.allowed = max(self.limits.fill, self.decoding + 1)

    def run_scheduler(self, _: simpy.Event | None = None) -> None:
        self.scheduling_requested = True
        executor = self.executor
        executor.complete_silent()  # a micro-batch that is back without an event would count as in flight
        while self.prefilling and self.idle and self.in_flight < self.allowed:
            if self.fast_path:
                executor.assign_prefill_chunks(
                    self.prefilling[0], self.idle, self.allowed - self.in_flight, self.start_step
                )
            if self.idle and self.in_flight < self.allowed:
                batch = self.idle.popleft()
                batch.clock_error = 0.0
                if not self.start_step(batch):
                    self.scheduling_requested = False
                    return
        self.scheduling_requested = False
        if self.prefilling:
            self.request_scheduling()

    def start_step(self, batch: MicroBatch) -> bool:
        """A micro-batch picks what it advances, and goes; it is idle where there is nothing.  Says whether it went."""
        if not self.schedule_step(batch):
            self.idle.append(batch)
            if self.limits.fill is not None:
                self.request_scheduling()  # too many are in flight for a prompt that waits; the next one to be back takes it on
            return False
        if self.prefilling:
            # What a policy refuses now, it refuses until something changes; but another micro-batch may take it.
            self.request_scheduling(
                interrupt=batch.work.prompt_tokens > 0 or self.limits.micro_batches > 1
            )
        self.executor.send(batch)
        return True

    def start_step_at(self, batch: MicroBatch, _: simpy.Event) -> None:
        if not self.policies.reserve:
            self.admit()  # who has asked at once, and was told to wait for the end of this step
        self.start_step(batch)

    def back(self, batch: MicroBatch, leave: Seconds) -> None:
        """A micro-batch is back, with a token for each of its sequences from every step, and picks again."""
        if not self.up:
            return  # it was under way when its replica failed
        decodes = batch.work.decodes
        if not self.policies.reserve:
            self.kv_cache.grow(-decodes * (batch.planned - batch.steps))  # steps that were not made
        if not decodes:
            if others := batch.running - sum(n for n, _ in batch.skipped_since):
                batch.skipped_since.append((others, batch.last))
        elif batch.skipped_since:
            for sequences, since in batch.skipped_since:
                self.rows.gaps.add(leave - since, sequences)
            batch.skipped_since.clear()
        batch.last = leave
        ended = self.process_outputs(batch, leave) if decodes or batch.prefilled else False
        if not self.policies.reserve:
            self.admit()
        if ended and self.env.peek() <= self.env.now:
            again = UrgentTimeout(self.env, 0.0)
            again.callbacks.append(
                partial(self.start_step_at, batch)
            )  # who was answered may ask at once, and comes first
        else:
            self.start_step(batch)

    def schedule_step(self, batch: MicroBatch) -> bool:
        """What the batching policy chooses: a token for every sequence of the batch, and pieces of the oldest prompts.

        Without prompts it goes on so until a sequence ends, a window begins to cut, or the KV cache is full.  The pieces of one
        prompt may ride with several micro-batches at once: stages serve them in order.  Says whether there is anything.
        """
        if self.prefilling and self.prefilling[0].cancelled:
            while self.prefilling and self.prefilling[0].cancelled:
                self.end(self.prefilling.popleft(), self.env.now)
            self.admit()  # whoever waited for their room
        preempted = not self.policies.reserve and self.preempt(batch)
        running = batch.running
        if not running and (not self.prefilling or self.in_flight > self.allowed):
            return False
        decodes, chunk_tokens, joining, places = True, 0, 0, 0
        if self.prefilling or not self.fast_path:  # else there is nothing to choose
            places = self.places(batch)
            # A full micro-batch sees no prompts: a policy that prefers them would neither decode nor take one.
            prompts = len(self.prefilling) if places > 0 or self.fast_path else 0
            budget, queue = self.limits.token_budget, QueueView(self, batch)
            state = BatchState(running, batch.begun, prompts, budget, self.size, queue)
            decodes, chunk_tokens, joining = self.batching(state)
            chunk_tokens = chunk_tokens if prompts else 0
        batch.work = work = Work()
        if decodes and running:
            work.decodes = work.logits = running
            work.context, work.windowed_context, work.growing = (
                batch.context,
                batch.windowed,
                batch.growing,
            )
        batch.prefilled = (
            self.prefill(work, chunk_tokens, min(joining, places)) if self.prefilling else []
        )
        if not work.decodes and not work.prompt_tokens:
            if running or len(self.idle) == self.limits.micro_batches - 1:
                raise UserError(
                    f"policy: for {state} it chose neither to decode nor any of the prompts, and would for ever"
                )
            return False
        one = (
            work.prompt_tokens or batch.skipped_since or preempted
        )  # whoever waits may have room after that one
        batch.planned = batch.steps = 1 if one else self.steps(batch)
        if work.decodes:
            batch.begun = True
            if not self.policies.reserve:
                self.kv_cache.kv_used += running * batch.steps
        batch.counted = not batch.skipped_since
        batch.no_output = self.fast_path and not (running or batch.prefilled)
        return True

    def places(self, batch: MicroBatch) -> int:
        """Return how many more sequences a micro-batch may take: up to an even share of those admitted.

        Of a share with a remainder, only so many micro-batches hold one more.  Without this, requests that come together pack
        into one micro-batch, and the stages wait for it in turn.
        """
        share, more = divmod(self.kv_cache.sequences_used, self.limits.micro_batches)
        if more and (
            not share
            or sum(each.running > share for each in self.batches if each is not batch) < more
        ):
            share += 1
        return (
            share if self.policies.size is None else min(share, self.policies.size)
        ) - batch.running

    def prefill(self, work: Work, kv_cache: int, joining: int) -> list[Request]:
        """Add pieces of the oldest prompts, as many tokens as there is room for, and return whose prompts end.

        At most `joining` prompts end.  Of the next one its last token is left to a micro-batch that has room for the sequence.
        """
        window = self.limits.window
        prefilled: list[Request] = []
        while self.prefilling and work.prompt_tokens < kv_cache:
            request = self.prefilling[0]
            left = request.prompt - request.prefilled - (len(prefilled) >= joining)
            if not left:
                break
            piece = min(left, kv_cache - work.prompt_tokens)
            work.attended += attended_positions(request.prefilled, piece, None)
            if window:
                work.windowed_attended += attended_positions(request.prefilled, piece, window)
                work.windowed_cached += min(request.prefilled + piece, window + piece)
            request.prefilled += piece
            work.cached += request.prefilled
            work.prompt_tokens += piece
            work.chunks += 1
            if request.prefilled == request.prompt:
                prefilled.append(self.prefilling.popleft())
        work.logits += len(prefilled)
        return prefilled

    def steps(self, batch: MicroBatch) -> int:
        """For how many steps nothing changes."""
        if self.limits.micro_batches > 1 and (
            self.policies.deadline is not None or not self.policies.reserve
        ):
            return 1  # only the first to be back can be stopped, and room taken for later steps would be missed elsewhere
        steps = batch.finish_steps[0][0] - batch.step
        if batch.window_full_steps:
            steps = min(steps, batch.window_full_steps[0] - batch.step)
        if not self.policies.reserve:
            steps = min(steps, max(1, self.kv_cache.kv_free // batch.running))
        return steps

    def process_outputs(self, batch: MicroBatch, leave: Seconds) -> bool:
        """Books the tokens of a passage, ends the sequences whose last token it was, lets new ones in; says if any ended."""
        before = self.unfinished
        if batch.work.decodes:
            batch.step += batch.steps
            batch.context += batch.running * batch.steps
            batch.windowed += batch.growing * batch.steps
            while batch.window_full_steps and batch.window_full_steps[0] <= batch.step:
                heapq.heappop(batch.window_full_steps)
                batch.growing -= 1
            while batch.finish_steps and batch.finish_steps[0][0] <= batch.step:
                request = heapq.heappop(batch.finish_steps)[2]
                tokens = request.tokens
                self.resize(batch, batch.running - 1)
                batch.context -= tokens
                if self.limits.window:
                    self.leave_window(batch, self.limits.window, tokens, request)
                if not self.policies.reserve:
                    request.kv += request.output - 1
                self.record_decoded_tokens(request, request.output - 1)
                self.end(request, leave)
            if self.policies.deadline is not None:
                for end in [each for each in batch.finish_steps if each[2].cancelled]:
                    self.remove(batch, end)
                    self.end(end[2], leave)
        for request in batch.prefilled:
            self.join(batch, request, leave)
        if not batch.running:
            batch.begun = False
        self.admit()
        return self.unfinished < before

    def join(self, batch: MicroBatch, request: Request, leave: Seconds) -> None:
        """A prompt is done: its first token is there, or the next one of a request that was preempted."""
        if request.cancelled:
            self.end(request, leave)
            return
        if self.prefixes and request.hash_ids:
            request.kept = True
            self.prefixes.hold(request.hash_ids)
        if request.answered != request.answered:
            self.rows.first_token[request.id] = leave
        else:
            self.rows.gaps.add(leave - request.answered, 1)
        if request.output == 1:
            self.end(request, leave)
            return
        if batch.skipped_since:
            batch.skipped_since.append((1, leave))
        request.joined = leave
        self.resize(batch, batch.running + 1)
        batch.context += request.prompt + 1
        if self.limits.window:
            self.join_window(batch, self.limits.window, request)
        heapq.heappush(batch.finish_steps, (batch.step + request.output - 1, request.id, request))

    def preempt(self, batch: MicroBatch) -> bool:
        """Where the KV cache has no room for a token of each sequence, the youngest give theirs back, to be computed again.

        Says if any did.
        """
        before = batch.running
        while batch.running and self.kv_cache.kv_free < batch.running:
            end = max(
                batch.finish_steps, key=lambda each: (self.rows.admitted[each[2].id], each[1])
            )
            request, generated = end[2], self.remove(batch, end)
            if request.cancelled:
                self.end(request, self.env.now)
                continue
            self.free(request)
            self.rows.preemptions[request.id] += 1
            request.prompt, request.output, request.prefilled = (
                request.prompt + generated,
                request.output - generated,
                0,
            )
            request.kv = self.limits.kv_tokens_needed(request.prompt)
            self.queue(request, -math.inf)
        if not batch.running:
            batch.begun = False
        return batch.running < before

    def remove(self, batch: MicroBatch, end: tuple[int, int, Request]) -> int:
        """Takes a sequence out of a micro-batch before its end; says how many tokens it has got."""
        last, _, request = end
        batch.finish_steps.remove(end)
        heapq.heapify(batch.finish_steps)
        decoded = request.output - 1 - (last - batch.step)
        self.record_decoded_tokens(request, decoded)
        self.resize(batch, batch.running - 1)
        batch.context -= request.prompt + 1 + decoded
        if self.limits.window:
            self.leave_window(
                batch,
                self.limits.window,
                request.prompt + 1 + decoded,
                request,
                last - request.output + 1,
            )
        if not self.policies.reserve:
            request.kv += decoded
        request.answered = batch.last
        if batch.skipped_since:  # it waits since its last token, with others
            request.answered = batch.skipped_since[0][1] if decoded else request.joined
            place = next(
                i for i, (_, since) in enumerate(batch.skipped_since) if since == request.answered
            )
            sequences, since = batch.skipped_since[place]
            batch.skipped_since[place : place + 1] = (
                [(sequences - 1, since)] if sequences > 1 else []
            )
        return 1 + decoded

    def record_decoded_tokens(self, request: Request, decoded: float) -> None:
        """A sequence leaves its micro-batch: how many tokens it decoded since its prompt ended, and what they attended to."""
        self.count_decoded(self.executor.tally, request, decoded)

    def count_decoded(self, tally: Tally, request: Request, decoded: float) -> None:
        """Add so many decoded tokens of a sequence to a tally."""
        whole, window = int(decoded), self.limits.window
        tally.logits += decoded
        tally.context += attended_positions(request.prompt, whole, None)
        if window:
            tally.windowed_context += attended_positions(request.prompt, whole, window)
        if part := decoded - whole:  # of the step that an outage interrupted
            context = request.prompt + whole + 1
            tally.context += part * context
            tally.windowed_context += part * min(context, window or context)

    @staticmethod
    def join_window(batch: MicroBatch, window: int, request: Request) -> None:
        """Counts a sequence as layers with a window see it: it grows until its end or until the window is full."""
        batch.windowed += min(request.prompt + 1, window)
        if request.prompt + 1 < window:
            batch.growing += 1
            if request.tokens > window:
                heapq.heappush(batch.window_full_steps, batch.step + window - request.prompt - 1)

    @staticmethod
    def leave_window(
        batch: MicroBatch, window: int, context: int, request: Request, joined: int | None = None
    ) -> None:
        """It leaves with so much context; before its end, `joined` says at which step it came."""
        batch.windowed -= min(context, window)
        if (
            request.prompt + 1 < window
            and context <= window
            and not (context == window and request.tokens > window)
        ):
            batch.growing -= 1
            if joined is not None and request.tokens > window:
                batch.window_full_steps.remove(joined + window - request.prompt - 1)
                heapq.heapify(batch.window_full_steps)
