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
from typing import Annotated, Literal

import numpy as np
import simpy
from numpy.typing import NDArray
from pydantic import Field
from simpy.events import URGENT, Timeout

from sim.chipsim.machine import Machines
from sim.cost.energy import Tally
from sim.cost.step import Costs, Work
from sim.inputs.files import UserError, Value
from sim.reliability.link_errors import Spoils
from sim.results.rows import Rows
from sim.serving.executors import Passage, Passing, seen
from sim.serving.policy import DEFAULT, Job, Limits, Load, Policies, Prefixes, Room, continuous
from sim.units import Seconds
from sim.workload.traces import BLOCK


class Due(simpy.Event):
    """A timeout that is handled before everything else due at its instant."""

    def __init__(self, env: simpy.Environment, delay: Seconds) -> None:
        self.env, self.callbacks, self._ok, self._value = env, [], True, None
        env.schedule(self, URGENT, delay)


@dataclass(eq=False, slots=True)
class MicroBatch(Passage):
    """Sequences that decode together, and their passage.  They are counted, not visited: a heap knows at which step the next one
    ends."""

    running: int = 0
    context: int = 0  # positions that the next tokens attend to, over all sequences
    step: int = 0
    ends: list[tuple[int, int, Job]] = field(default_factory=list)
    windowed: int = 0  # the same as `context`, as layers with a window see it
    growing: int = 0  # sequences that no window cuts yet
    fills: list[int] = field(default_factory=list)  # the steps at which windows begin to cut
    begun: bool = False  # it has decoded since it was last empty
    stalled: list[tuple[int, Seconds]] = field(
        default_factory=list
    )  # sequences that were left out, and their last tokens' time
    planned: int = 1  # the steps that its passage may go on for, of which it may make fewer


class Outage(Value):
    """A replica is down from `at` on for so long: until its failure is noticed, a spare is in place, and the weights are loaded.

    What it holds is lost.  Its requests begin anew from their prompts on another replica, or on the first that is up again where
    there is none (`retry`); or they `fail`.
    """

    at: Seconds
    lasts: Annotated[Seconds, Field(gt=0)]
    replica: Annotated[int, Field(ge=0)] = 0
    requests: Literal["retry", "fail"] = "retry"


@dataclass(frozen=True, slots=True)
class Setup:
    """What one replica is.  All but their numbers is shared among replicas that are alike.

    `overhead` is what a request spends before the scheduler sees it (client, HTTP, tokenizer).  `machine` makes its chips, where
    every chip is to be a process; else stages are computed.
    """

    costs: Costs
    limits: Limits
    policies: Policies = DEFAULT
    overhead: Seconds = 0.0
    machine: Machines | None = None
    system: str = ""  # whose copy it is, and its number among those
    number: int = 0
    outages: tuple[Outage, ...] = ()
    spoils: Spoils | None = None  # draws which steps are made again; steps are then made one by one


class Replica:
    """One copy of the model: a queue, a pipeline, and the micro-batches in flight."""

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        setup: Setup,
        passing: Passing,
        rows: Rows,
        finished: Callable[[Job, Seconds], None],
    ) -> None:
        self.env, self.number, self.passing, self.rows, self.finished = (
            env,
            number,
            passing,
            rows,
            finished,
        )
        self.system, self.overhead = setup.system, setup.overhead
        self.limits, self.policies = limits, policies = setup.limits, setup.policies
        self.room = Room(limits.kv_tokens, limits.sequences)
        self.prefixes = Prefixes() if policies.prefix_caching else None
        # The oldest prompt fills whoever is back, so that what passes may deal it out by itself.
        self.plain = (
            policies.batching is continuous and policies.reserve and policies.deadline is None
        )
        self.size = policies.size or max(1, limits.sequences // limits.slots)
        self.waiting: list[tuple[float, int, Job]] = []  # a heap, by the order's key
        self.queued = 0  # of these, those that are not cancelled
        self.prefilling: deque[Job] = deque()
        self.batches = [MicroBatch(self.back) for _ in range(limits.slots)]
        self.idle = deque(self.batches)
        self.decoding = 0  # micro-batches that hold sequences
        # How many micro-batches may be in flight while prompts wait: see `resize`.
        self.allowed = limits.slots if limits.fill is None else limits.fill
        self.roused = False
        self.unfinished = 0
        self.jobs: dict[int, Job] = {}  # unfinished ones that it was given
        self.up = True

    # A request comes, is admitted, and ends.

    def submit(self, job: Job) -> None:
        """Takes a request in, or refuses it where it could never fit, or the queue is full."""
        policies, tokens = self.policies, job.tokens
        if policies.deadline is not None and job.arrival + policies.deadline <= self.env.now:
            self.rows.expire(job.id, policies.deadline)
            self.finished(job, self.env.now)
            return
        job.kv = self.limits.claim(tokens)
        if tokens > self.limits.context:
            self.rows.reason[job.id] = (
                f"{tokens} tokens exceed the model's context of {self.limits.context}"
            )
        elif job.kv > self.limits.kv_tokens:
            self.rows.reason[job.id] = (
                f"{job.kv} tokens exceed the KV room of {self.limits.kv_tokens}"
            )
        else:
            if not policies.reserve:
                job.kv = self.limits.claim(job.prompt)
            self.passing.settle()
            most = policies.max_waiting
            if most is None or self.queued < most or (not self.queued and self.room.holds(job.kv)):
                self.rows.moved[job.id] |= self.rows.replica[job.id] not in (-1, self.number)
                self.rows.replica[job.id] = self.number
                self.unfinished += 1
                self.jobs[job.id] = job
                self.queue(job, policies.order(job))
                if policies.deadline is not None:
                    wait = max(0.0, job.arrival + policies.deadline - self.env.now)
                    Timeout(self.env, wait).callbacks.append(lambda _: self.cancel(job))
                self.look()
                return
            self.rows.turned_away[job.id] = True
            self.rows.reason[job.id] = f"the queue of {most} is full"
        self.finished(
            job, max(job.arrival, self.env.now - self.overhead)
        )  # later where its replica failed

    def look(self) -> None:
        """Somebody has come: who is admitted, and who works on the prompts?"""
        if not self.policies.reserve and len(self.idle) < self.limits.slots:
            self.passing.cut()  # what room there is, is known when the step under way is over
            return
        self.admit()
        if self.prefilling and self.idle and self.env.peek() > self.env.now:
            self.wake()  # nothing else arrives at this instant
        else:
            self.rouse()

    def queue(self, job: Job, key: float) -> None:
        job.queued = True
        self.queued += 1
        heapq.heappush(self.waiting, (key, job.id, job))

    def admit(self) -> None:
        """Whoever is next, while there is room."""
        while self.waiting:
            job = self.waiting[0][2]
            if not job.cancelled:
                # Who was preempted (and so answered, which is not nan) waits for room to its end, or would be so again at once.
                again = job.answered == job.answered
                if not self.room.holds(job.kv if not again else self.limits.claim(job.tokens)):
                    return
                job.queued = False
                self.queued -= 1
                self.room.take(job)
                if not again:
                    self.rows.admitted[job.id] = self.env.now
                if self.prefixes:
                    self.reuse(job, self.prefixes)
                self.prefilling.append(job)
            heapq.heappop(self.waiting)

    def reuse(self, job: Job, prefixes: Prefixes) -> None:
        """Blocks of the prompt that the prefix cache has need not be computed; its last token always is."""
        job.prefilled = min(BLOCK * prefixes.cached(job.hash_ids), job.prompt - 1)
        self.rows.cached[job.id] += job.prefilled
        prefixes.shrink(self.room.kv_free)

    def cancel(self, job: Job) -> None:
        """A request's deadline has passed: it is out at once where it waits, else when the step under way is over."""
        if job.ended:
            return
        job.cancelled = True
        if job.queued:
            self.queued -= 1
            self.leave(job, self.env.now)
            self.look()  # it may have stood before others
        else:
            self.passing.cut()

    def end(self, job: Job, leave: Seconds) -> None:
        """A request that was admitted ends, finished or cancelled."""
        if not job.cancelled:
            self.rows.last_token[job.id] = leave
        self.free(job)
        self.leave(job, leave)

    def free(self, job: Job) -> None:
        """Its room is given back."""
        self.room.give_back(job)
        if self.prefixes and job.kept:
            job.kept = False
            self.prefixes.release(job.hash_ids)
            self.prefixes.shrink(self.room.kv_free)

    def leave(self, job: Job, at: Seconds) -> None:
        job.ended = True
        if job.cancelled:
            assert self.policies.deadline is not None
            self.rows.expire(job.id, self.policies.deadline)
        self.unfinished -= 1
        del self.jobs[job.id]
        self.finished(job, at)

    def so_far(self) -> tuple[Tally, NDArray[np.float64]]:
        """Return what the stages did up to now, running requests counted, and the seconds that each was busy."""
        passing = self.passing
        tally = passing.tally_so_far()
        for batch in self.batches:
            for last, _, job in batch.ends:
                decoded = job.output - 1 - (last - batch.step) + passing.steps_so_far(batch)
                self.count_decoded(tally, job, decoded)
        return tally, passing.busy_so_far()

    def fail(self) -> list[Job]:
        """It is down for good, with what it held; says whose requests are lost.

        What they decoded took its joules all the same, and so did the part of a step that was made.
        """
        self.up = False
        self.passing.interrupt()
        for batch in self.batches:
            made = self.passing.steps_made(batch) if batch.work.decodes else 0
            for last, _, job in batch.ends:
                self.tell(job, job.output - 1 - (last - batch.step) + made)
        self.waiting.clear()
        self.prefilling.clear()
        lost = list(self.jobs.values())
        self.jobs.clear()
        for job in lost:
            job.ended = True
        return lost

    # Micro-batches pick, go, and come back.

    def rouse(self, cut: bool = True) -> None:
        """Somebody is to work on the prompts, if there are any: idle micro-batches, after all that arrives at this instant; else
        whoever is back next."""
        if self.prefilling:
            if not self.idle or self.in_flight >= self.allowed:
                if cut:
                    self.passing.cut(self.prefilling[0] if self.plain else None)
            elif not self.roused:
                self.roused = True
                Timeout(self.env, 0.0).callbacks.append(self.wake)

    @property
    def in_flight(self) -> int:
        """Micro-batches that are in the pipeline or its queue."""
        return self.limits.slots - len(self.idle)

    def resize(self, batch: MicroBatch, sequences: int) -> None:
        """Set how many sequences a micro-batch holds, and so how many micro-batches may be in flight while prompts wait.

        These are as many as fill the pipeline, and at least one beside those that decode.  More pieces of prompts would only
        queue at the first stage, and every decode behind them.
        """
        self.decoding += bool(sequences) - bool(batch.running)
        batch.running = sequences
        if self.limits.fill is not None:
            self.allowed = max(self.limits.fill, self.decoding + 1)

    def wake(self, _: simpy.Event | None = None) -> None:
        self.roused = True
        passing = self.passing
        passing.settle()  # a micro-batch that is back without an event would count as in flight
        while self.prefilling and self.idle and self.in_flight < self.allowed:
            if self.plain:
                passing.deal(
                    self.prefilling[0], self.idle, self.allowed - self.in_flight, self.turn
                )
            if self.idle and self.in_flight < self.allowed:
                batch = self.idle.popleft()
                batch.lost = 0.0
                if not self.turn(batch):
                    self.roused = False
                    return
        self.roused = False
        if self.prefilling:
            self.rouse()

    def turn(self, batch: MicroBatch) -> bool:
        """A micro-batch picks what it advances, and goes; it is idle where there is nothing.  Says whether it went."""
        if not self.pick(batch):
            self.idle.append(batch)
            if self.limits.fill is not None:
                self.rouse()  # too many are in flight for a prompt that waits; the next one to be back takes it on
            return False
        if self.prefilling:
            # What a policy refuses now, it refuses until something changes; but another micro-batch may take it.
            self.rouse(cut=batch.work.prompt_tokens > 0 or self.limits.slots > 1)
        self.passing.send(batch)
        return True

    def turn_at(self, batch: MicroBatch, _: simpy.Event) -> None:
        if not self.policies.reserve:
            self.admit()  # who has asked at once, and was told to wait for the end of this step
        self.turn(batch)

    def back(self, batch: MicroBatch, leave: Seconds) -> None:
        """A micro-batch is back, with a token for each of its sequences from every step, and picks again."""
        if not self.up:
            return  # it was under way when its replica failed
        decodes = batch.work.decodes
        if not self.policies.reserve:
            self.room.grow(-decodes * (batch.planned - batch.steps))  # steps that were not made
        if not decodes:
            if others := batch.running - sum(n for n, _ in batch.stalled):
                batch.stalled.append((others, batch.last))
        elif batch.stalled:
            for sequences, since in batch.stalled:
                self.rows.gaps.add(leave - since, sequences)
            batch.stalled.clear()
        batch.last = leave
        ended = self.land(batch, leave) if decodes or batch.prefilled else False
        if not self.policies.reserve:
            self.admit()
        if ended and self.env.peek() <= self.env.now:
            again = Due(self.env, 0.0)
            again.callbacks.append(
                partial(self.turn_at, batch)
            )  # who was answered may ask at once, and comes first
        else:
            self.turn(batch)

    def pick(self, batch: MicroBatch) -> bool:
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
        decodes, room, joining, places = True, 0, 0, 0
        if self.prefilling or not self.plain:  # else there is nothing to choose
            places = self.places(batch)
            # A full micro-batch sees no prompts: a policy that prefers them would neither decode nor take one.
            prompts = len(self.prefilling) if places > 0 or self.plain else 0
            load = Load(running, batch.begun, prompts, self.limits.token_budget, self.size)
            decodes, room, joining = self.policies.batching(load)
            room = room if prompts else 0
        batch.work = work = Work()
        if decodes and running:
            work.decodes = work.logits = running
            work.context, work.windowed_context, work.growing = (
                batch.context,
                batch.windowed,
                batch.growing,
            )
        batch.prefilled = self.prefill(work, room, min(joining, places)) if self.prefilling else []
        if not work.decodes and not work.prompt_tokens:
            if running or len(self.idle) == self.limits.slots - 1:
                raise UserError(
                    f"policy: for {load} it chose neither to decode nor any of the prompts, and would for ever"
                )
            return False
        one = (
            work.prompt_tokens or batch.stalled or preempted
        )  # whoever waits may have room after that one
        batch.planned = batch.steps = 1 if one else self.steps(batch)
        if work.decodes:
            batch.begun = True
            if not self.policies.reserve:
                self.room.kv_used += running * batch.steps
        batch.counted = not batch.stalled
        batch.silent = self.plain and not (running or batch.prefilled)
        return True

    def places(self, batch: MicroBatch) -> int:
        """Return how many more sequences a micro-batch may take: up to an even share of those admitted.

        Of a share with a remainder, only so many micro-batches hold one more.  Without this, requests that come together pack
        into one micro-batch, and the stages wait for it in turn.
        """
        share, more = divmod(self.room.sequences_used, self.limits.slots)
        if more and (
            not share
            or sum(each.running > share for each in self.batches if each is not batch) < more
        ):
            share += 1
        return (
            share if self.policies.size is None else min(share, self.policies.size)
        ) - batch.running

    def prefill(self, work: Work, room: int, joining: int) -> list[Job]:
        """Add pieces of the oldest prompts, as many tokens as there is room for, and return whose prompts end.

        At most `joining` prompts end.  Of the next one its last token is left to a micro-batch that has room for the sequence.
        """
        window = self.limits.window
        prefilled: list[Job] = []
        while self.prefilling and work.prompt_tokens < room:
            job = self.prefilling[0]
            left = job.prompt - job.prefilled - (len(prefilled) >= joining)
            if not left:
                break
            piece = min(left, room - work.prompt_tokens)
            work.attended += seen(job.prefilled, piece, None)
            if window:
                work.windowed_attended += seen(job.prefilled, piece, window)
                work.windowed_cached += min(job.prefilled + piece, window + piece)
            job.prefilled += piece
            work.cached += job.prefilled
            work.prompt_tokens += piece
            work.chunks += 1
            if job.prefilled == job.prompt:
                prefilled.append(self.prefilling.popleft())
        work.logits += len(prefilled)
        return prefilled

    def steps(self, batch: MicroBatch) -> int:
        """For how many steps nothing changes."""
        if self.limits.slots > 1 and (
            self.policies.deadline is not None or not self.policies.reserve
        ):
            return 1  # only the first to be back can be stopped, and room taken for later steps would be missed elsewhere
        steps = batch.ends[0][0] - batch.step
        if batch.fills:
            steps = min(steps, batch.fills[0] - batch.step)
        if not self.policies.reserve:
            steps = min(steps, max(1, self.room.kv_free // batch.running))
        return steps

    def land(self, batch: MicroBatch, leave: Seconds) -> bool:
        """Books the tokens of a passage, ends the sequences whose last token it was, lets new ones in; says if any ended."""
        before = self.unfinished
        if batch.work.decodes:
            batch.step += batch.steps
            batch.context += batch.running * batch.steps
            batch.windowed += batch.growing * batch.steps
            while batch.fills and batch.fills[0] <= batch.step:
                heapq.heappop(batch.fills)
                batch.growing -= 1
            while batch.ends and batch.ends[0][0] <= batch.step:
                job = heapq.heappop(batch.ends)[2]
                tokens = job.tokens
                self.resize(batch, batch.running - 1)
                batch.context -= tokens
                if self.limits.window:
                    self.leave_window(batch, self.limits.window, tokens, job)
                if not self.policies.reserve:
                    job.kv += job.output - 1
                self.tell(job, job.output - 1)
                self.end(job, leave)
            if self.policies.deadline is not None:
                for end in [each for each in batch.ends if each[2].cancelled]:
                    self.remove(batch, end)
                    self.end(end[2], leave)
        for job in batch.prefilled:
            self.join(batch, job, leave)
        if not batch.running:
            batch.begun = False
        self.admit()
        return self.unfinished < before

    def join(self, batch: MicroBatch, job: Job, leave: Seconds) -> None:
        """A prompt is done: its first token is there, or the next one of a request that was preempted."""
        if job.cancelled:
            self.end(job, leave)
            return
        if self.prefixes and job.hash_ids:
            job.kept = True
            self.prefixes.hold(job.hash_ids)
        if job.answered != job.answered:
            self.rows.first_token[job.id] = leave
        else:
            self.rows.gaps.add(leave - job.answered, 1)
        if job.output == 1:
            self.end(job, leave)
            return
        if batch.stalled:
            batch.stalled.append((1, leave))
        job.joined = leave
        self.resize(batch, batch.running + 1)
        batch.context += job.prompt + 1
        if self.limits.window:
            self.join_window(batch, self.limits.window, job)
        heapq.heappush(batch.ends, (batch.step + job.output - 1, job.id, job))

    def preempt(self, batch: MicroBatch) -> bool:
        """Where the KV cache has no room for a token of each sequence, the youngest give theirs back, to be computed again.

        Says if any did.
        """
        before = batch.running
        while batch.running and self.room.kv_free < batch.running:
            end = max(batch.ends, key=lambda each: (self.rows.admitted[each[2].id], each[1]))
            job, generated = end[2], self.remove(batch, end)
            if job.cancelled:
                self.end(job, self.env.now)
                continue
            self.free(job)
            self.rows.preemptions[job.id] += 1
            job.prompt, job.output, job.prefilled = (
                job.prompt + generated,
                job.output - generated,
                0,
            )
            job.kv = self.limits.claim(job.prompt)
            self.queue(job, -math.inf)
        if not batch.running:
            batch.begun = False
        return batch.running < before

    def remove(self, batch: MicroBatch, end: tuple[int, int, Job]) -> int:
        """Takes a sequence out of a micro-batch before its end; says how many tokens it has got."""
        last, _, job = end
        batch.ends.remove(end)
        heapq.heapify(batch.ends)
        decoded = job.output - 1 - (last - batch.step)
        self.tell(job, decoded)
        self.resize(batch, batch.running - 1)
        batch.context -= job.prompt + 1 + decoded
        if self.limits.window:
            self.leave_window(
                batch, self.limits.window, job.prompt + 1 + decoded, job, last - job.output + 1
            )
        if not self.policies.reserve:
            job.kv += decoded
        job.answered = batch.last
        if batch.stalled:  # it waits since its last token, with others
            job.answered = batch.stalled[0][1] if decoded else job.joined
            place = next(i for i, (_, since) in enumerate(batch.stalled) if since == job.answered)
            sequences, since = batch.stalled[place]
            batch.stalled[place : place + 1] = [(sequences - 1, since)] if sequences > 1 else []
        return 1 + decoded

    def tell(self, job: Job, decoded: float) -> None:
        """A sequence leaves its micro-batch: how many tokens it decoded since its prompt ended, and what they attended to."""
        self.count_decoded(self.passing.tally, job, decoded)

    def count_decoded(self, tally: Tally, job: Job, decoded: float) -> None:
        """Add so many decoded tokens of a sequence to a tally."""
        whole, window = int(decoded), self.limits.window
        tally.logits += decoded
        tally.context += seen(job.prompt, whole, None)
        if window:
            tally.windowed_context += seen(job.prompt, whole, window)
        if part := decoded - whole:  # of the step that an outage interrupted
            context = job.prompt + whole + 1
            tally.context += part * context
            tally.windowed_context += part * min(context, window or context)

    @staticmethod
    def join_window(batch: MicroBatch, window: int, job: Job) -> None:
        """Counts a sequence as layers with a window see it: it grows until its end or until the window is full."""
        batch.windowed += min(job.prompt + 1, window)
        if job.prompt + 1 < window:
            batch.growing += 1
            if job.tokens > window:
                heapq.heappush(batch.fills, batch.step + window - job.prompt - 1)

    @staticmethod
    def leave_window(
        batch: MicroBatch, window: int, context: int, job: Job, joined: int | None = None
    ) -> None:
        """It leaves with so much context; before its end, `joined` says at which step it came."""
        batch.windowed -= min(context, window)
        if (
            job.prompt + 1 < window
            and context <= window
            and not (context == window and job.tokens > window)
        ):
            batch.growing -= 1
            if joined is not None and job.tokens > window:
                batch.fills.remove(joined + window - job.prompt - 1)
                heapq.heapify(batch.fills)
