"""Serving on SimPy: arrivals, replicas, micro-batches, and the stages they pass through.

A replica has some micro-batches in flight, each a process of its own: it picks what it advances (that is fixed when it joins
the first stage's queue), passes through the stages first come first served, and comes back with a token for each sequence.
At stage fidelity the turns of a passage are computed at once and its return is waited for: one event for each passage.  At chip
fidelity the `machine` takes it through.

Ties are decided so: arrivals come before passages that return at the same instant; a micro-batch that returns picks before
those that its return made room for, and these go in the order of the queue.
"""

import heapq
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import simpy
from simpy.events import URGENT, Timeout

from sim.cost import Costs, Work
from sim.machine import Machines
from sim.passing import Chips, Leap, Passage, Passing, Pipelined, Steps
from sim.policy import Admission, Job, Room, first_come_first_served
from sim.records import Rows
from sim.units import Seconds
from sim.workload import Requests

Waiting = Generator[simpy.Event, Any, Any]


class Due(simpy.Event):
    """A timeout that is handled before everything else due at its instant."""

    def __init__(self, env: simpy.Environment, delay: Seconds) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, URGENT, delay)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica may do: micro-batches in flight, tokens of a step, sequences, KV cache, the model's context.

    `windowed_share` is the part of a token's KV cache that lies in layers with a window, on the stage where it is smallest.
    """

    slots: int
    token_budget: int
    sequences: int
    kv_tokens: int
    context: int
    window: int | None = None
    windowed_share: float = 0.0

    def claim(self, tokens: int) -> int:
        """KV cache that a sequence of so many tokens needs, in tokens that no window shortens: on the stage that saves least."""
        saved = self.windowed_share * max(0, tokens - self.window) if self.window else 0.0
        return tokens - int(saved)


@dataclass(eq=False, slots=True)
class MicroBatch:
    """Sequences that decode together.  They are counted, not visited: a heap knows at which step the next one ends."""

    running: int = 0
    context: int = 0  # positions that the next tokens attend to, over all sequences
    step: int = 0
    last: Seconds = 0.0  # when it last left the pipeline
    lost: Seconds = 0.0  # what the clock rounded away when it was back
    ends: list[tuple[int, int, Job]] = field(default_factory=list)
    windowed: int = 0  # the same as `context`, as layers with a window see it
    growing: int = 0  # sequences that no window cuts yet
    fills: list[int] = field(default_factory=list)  # the steps at which windows begin to cut


class Replica:
    """One copy of the model: a queue, a pipeline, and the micro-batches in flight."""

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        passing: Passing,
        limits: Limits,
        rows: Rows,
        finished: Callable[[Job, Seconds], None],
        admits: Admission = first_come_first_served,
    ) -> None:
        self.env, self.number, self.passing, self.limits, self.rows = env, number, passing, limits, rows
        self.finished, self.admits = finished, admits
        self.room = Room(limits.kv_tokens, limits.sequences)
        self.waiting: deque[Job] = deque()
        self.prefilling: deque[Job] = deque()
        self.idle = deque(MicroBatch() for _ in range(limits.slots))
        self.roused = False
        self.unfinished = 0

    def submit(self, job: Job) -> None:
        """Takes a request in, or refuses it where it could never fit."""
        self.rows.arrival[job.id] = job.arrival
        if job.tokens > self.limits.context:
            self.rows.reason[job.id] = f"{job.tokens} tokens exceed the model's context of {self.limits.context}"
        elif job.kv > self.limits.kv_tokens:
            self.rows.reason[job.id] = f"{job.kv} tokens exceed the KV room of {self.limits.kv_tokens}"
        else:
            self.rows.replica[job.id] = self.number
            self.unfinished += 1
            self.passing.settle()
            self.waiting.append(job)
            self.admit()
            self.rouse()
            return
        self.finished(job, job.arrival)

    def admit(self) -> None:
        while self.waiting and self.admits(self.waiting, self.room):
            job = self.waiting.popleft()
            self.room.take(job)
            self.rows.admitted[job.id] = self.env.now
            self.prefilling.append(job)

    def rouse(self) -> None:
        """Somebody is to work on the prompts, if there are any: idle micro-batches, after all that arrives at this instant; else
        whoever is back next."""
        if self.prefilling:
            if not self.idle:
                self.passing.cut()
            elif not self.roused:
                self.roused = True
                Timeout(self.env, 0.0).callbacks.append(self.wake)

    def wake(self, _: simpy.Event) -> None:
        self.roused = False
        while self.prefilling and self.idle:
            batch = self.idle.popleft()
            batch.lost = 0.0
            self.turn(batch)

    def turn(self, batch: MicroBatch) -> None:
        """A micro-batch picks what it advances, and goes; it is idle where there is nothing."""
        passage = self.pick(batch)
        if passage is None:
            self.idle.append(batch)
        else:
            self.rouse()
            self.passing.send(passage)

    def back(self, batch: MicroBatch, passage: Passage, leave: Seconds) -> None:
        """A micro-batch is back, with a token for each of its sequences from every step, and picks again."""
        batch.last, batch.lost = leave, passage.lost
        told = passage.prefilled or passage.work.decodes
        ended = self.land(batch, passage, leave) if told else False
        if ended and self.env.peek() <= self.env.now:
            Due(self.env, 0.0).callbacks.append(lambda _: self.turn(batch))  # who was answered may ask at once, and comes first
        else:
            self.turn(batch)

    def pick(self, batch: MicroBatch) -> Passage | None:
        """A token for every sequence of the batch, and pieces of the oldest prompts up to the token budget.

        Without prompts it goes on so until a sequence ends, or a window begins to cut.  The pieces of one prompt may ride with
        several micro-batches at once: stages serve them in order.
        """
        if not batch.running and not self.prefilling:
            return None
        room = self.limits.token_budget - batch.running
        tokens = chunks = attended = cached = windowed_attended = windowed_cached = 0
        window = self.limits.window
        prefilled = []
        while self.prefilling and tokens < room:
            job = self.prefilling[0]
            piece = min(job.prompt - job.prefilled, room - tokens)
            attended += seen(job.prefilled, piece, None)
            job.prefilled += piece
            cached += job.prefilled
            if window:
                windowed_attended += seen(job.prefilled - piece, piece, window)
                windowed_cached += min(job.prefilled, window + piece)
            tokens += piece
            chunks += 1
            if job.prefilled == job.prompt:
                prefilled.append(self.prefilling.popleft())
        logits = batch.running + len(prefilled)
        work = Work(batch.running, batch.context, tokens, chunks, attended, cached, logits)
        if window:
            far = {"windowed_attended": windowed_attended, "windowed_cached": windowed_cached}
            work = replace(work, windowed_context=batch.windowed, growing=batch.growing, **far)
        steps = 1
        if not tokens:
            steps = min(batch.ends[0][0], batch.fills[0]) - batch.step if batch.fills else batch.ends[0][0] - batch.step
        return Passage(work, steps, prefilled, partial(self.back, batch), batch.last, batch.lost)

    def land(self, batch: MicroBatch, passage: Passage, leave: Seconds) -> bool:
        """Books the tokens of a passage, ends the sequences whose last token it was, lets new ones in; says if any ended."""
        before = self.unfinished
        if passage.work.decodes:
            batch.step += passage.steps
            batch.context += batch.running * passage.steps
            batch.windowed += batch.growing * passage.steps
            while batch.fills and batch.fills[0] <= batch.step:
                heapq.heappop(batch.fills)
                batch.growing -= 1
            while batch.ends and batch.ends[0][0] <= batch.step:
                job = heapq.heappop(batch.ends)[2]
                batch.running -= 1
                batch.context -= job.tokens
                self.leave_window(batch, job)
                self.end(job, leave)
        for job in passage.prefilled:
            self.rows.first_token[job.id] = leave
            if job.output == 1:
                self.end(job, leave)
            else:
                batch.running += 1
                batch.context += job.prompt + 1
                self.join_window(batch, job)
                heapq.heappush(batch.ends, (batch.step + job.output - 1, job.id, job))
        self.admit()
        return self.unfinished < before

    def join_window(self, batch: MicroBatch, job: Job) -> None:
        """Counts a sequence as layers with a window see it: it grows until its end or until the window is full."""
        if window := self.limits.window:
            batch.windowed += min(job.prompt + 1, window)
            if job.prompt + 1 < window:
                batch.growing += 1
                if job.tokens > window:
                    heapq.heappush(batch.fills, batch.step + window - job.prompt - 1)

    def leave_window(self, batch: MicroBatch, job: Job) -> None:
        if window := self.limits.window:
            batch.windowed -= min(job.tokens, window)
            if job.prompt + 1 < window and job.tokens <= window:
                batch.growing -= 1

    def end(self, job: Job, leave: Seconds) -> None:
        self.rows.last_token[job.id] = leave
        self.room.give_back(job)
        self.unfinished -= 1
        self.finished(job, leave)


def seen(old: int, new: int, window: int | None) -> int:
    """Positions that `new` tokens after `old` ones attend to, each to itself and those before it, at most a window of them."""
    free = new if window is None else min(new, max(0, window - old))
    return free * old + free * (free + 1) // 2 + (new - free) * (window or 0)


def least_loaded(replicas: Sequence[Replica]) -> Replica:
    """The replica with the fewest unfinished requests; of equals, the first."""
    return min(replicas, key=lambda replica: replica.unfinished)


def serve(
    requests: Requests,
    costs: Costs,
    limits: Limits,
    replicas: int = 1,
    overhead: Seconds = 0.0,
    think: Seconds = 0.0,
    machine: Machines | None = None,
    leap: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """Serves all requests and returns their rows.

    `overhead` is what a request spends before the scheduler sees it (client, HTTP, tokenizer); `think` a user's pause between
    an answer and the next request, in a closed loop.  `machine` makes the chips of each replica, where every chip is to be a
    process; else stages are computed.  With `leap`, steps in which nothing changes are computed at once; without, one by one.
    """
    env = simpy.Environment()
    rows = Rows(requests)
    total = len(requests.arrival)
    left = deque(range(total))
    ended = 0

    def submit(number: int, arrival: Seconds) -> None:
        prompt, output = int(requests.prompt[number]), int(requests.output[number])
        least_loaded(fleet).submit(Job(number, arrival, prompt, output, limits.claim(prompt + output)))

    def open_loop() -> Waiting:
        for number, arrival in enumerate(requests.arrival.tolist()):
            while arrival + overhead > env.now:  # one wait may end a rounding early
                yield Due(env, arrival + overhead - env.now)
            submit(number, arrival)

    def ask(after: Seconds) -> Waiting:
        """A user's next request, sent at `after`."""
        while after + overhead > env.now:
            yield Due(env, after + overhead - env.now)
        if left:
            submit(left.popleft(), after)

    def finished(job: Job, at: Seconds) -> None:
        nonlocal ended
        ended += 1
        progress(ended, total)
        if requests.users is not None and left:
            env.process(ask(at + think))

    by_chip = [machine(env, number) for number in range(replicas)] if machine else []
    passing: list[Passing] = []
    for number in range(replicas):
        if machine:
            passing.append(Chips(env, by_chip[number], rows.gaps))
        elif leap and limits.slots == costs.stages == 1:
            passing.append(Leap(env, costs, rows.gaps))
        elif leap and costs.stages > 1:
            passing.append(Pipelined(env, costs, rows.gaps, limits.slots))
        else:
            passing.append(Steps(env, costs, rows.gaps))
    fleet = [Replica(env, number, each, limits, rows, finished) for number, each in enumerate(passing)]
    if requests.users is None:
        env.process(open_loop())
    else:
        for _ in range(min(requests.users, total)):
            env.process(ask(0.0))
    env.run()
    for each in passing:
        each.close()
    rows.busy = [each.busy for each in passing]
    rows.traffic = [each.traffic for each in by_chip]
    rows.kv_peak = max(replica.room.kv_peak for replica in fleet)
    rows.kv_tokens = limits.kv_tokens
    assert ended == total, "a request was lost"
    return rows
