"""The requests of a replica: those that wait, those that are admitted, and their KV cache."""

import heapq
import math
from collections import deque
from collections.abc import Callable

from sim.serving.kv_cache import KVCache
from sim.serving.policy_checks import checked_order
from sim.serving.replica_config import ReplicaWiring
from sim.serving.request import Request
from sim.units import Seconds


class Admission:
    """A queue of requests, and the KV cache that admits them, without micro-batches.

    waiting: a heap of (key of the order, arrival, id, request). In a closed loop and in sessions
        a request may come after one with a larger id. Cancelled requests stay until they are first.
    late: requests that came after the next step was chosen (`Policies.ahead`). They wait, but enter
        the queue only when that step begins.
    queued: waiting requests that are not cancelled, late ones included.
    prefilling: admitted requests whose prompts are not computed to their end, oldest first.
    requests: all unfinished requests, by id.
    lost: by id, what happens to requests whose rank has failed, when their step is over.
    """

    def __init__(self, wiring: ReplicaWiring) -> None:
        self.env, self.number, config, self.rows, self.on_end = wiring
        self.limits, self.policies, self.overhead = config.limits, config.policies, config.overhead
        self.kv_cache = KVCache(config.limits, config.policies.prefix_caching)
        self.order, self.draws = checked_order(config.policies.order), config.draws
        self.waiting: list[tuple[float, Seconds, int, Request]] = []
        self.late: list[Request] = []
        self.queued = 0
        self.prefilling: deque[Request] = deque()
        self.requests: dict[int, Request] = {}
        self.lost: dict[int, Callable[[Request], None]] = {}

    # A request comes.

    def never_fits(self, request: Request) -> str:
        """Set the KV that a request needs. Return why it can never be served; "" if it can."""
        tokens, limits = request.tokens, self.limits
        request.kv = limits.kv_tokens_needed(tokens)
        if tokens > limits.context:
            return f"{tokens} tokens exceed the model's context of {limits.context}"
        if request.kv > limits.kv_tokens:
            return f"{request.kv} tokens exceed the KV room of {limits.kv_tokens}"
        if not self.policies.reserve:
            request.kv = limits.kv_tokens_needed(request.prompt)
        return ""

    def is_full(self, request: Request) -> bool:
        """Return whether a limited queue has no place for a request that does not fit now."""
        assert self.policies.max_waiting is not None
        if self.queued < self.policies.max_waiting:
            return False
        return bool(self.queued) or not self.kv_cache.fits(request, request.kv)

    def refuse(self, request: Request, reason: str) -> None:
        """End a request that is not accepted. After a failure it may come later than sent."""
        self.rows.reason[request.id] = reason
        self.on_end(request, max(request.arrival, self.env.now - self.overhead))

    def accept(self, request: Request, late: bool = False) -> None:
        """Add a request to the queue, and to the unfinished requests.

        late: whether it enters the queue only when the next step begins (`queue_late`).
        """
        self.record_replica(request)
        rows, number = self.rows, request.id
        self.requests[number] = request
        request.steps = request.output - 1
        if rows.steps is not None:
            if self.draws and request.steps:
                request.steps = self.draws.steps(number, request.output - 1)
                request.rate = (request.output - 1) / request.steps
            rows.steps[number] = request.steps
        if late:
            self.queued += 1
            request.queued = True
            self.late.append(request)
        else:
            self.queue(request, self.order(request))

    def queue_late(self) -> None:
        """Move late requests to the queue, because a step has begun."""
        for request in self.late:
            if not request.ended:  # a cancelled request has ended, and is no longer counted
                self.queued -= 1  # `queue` counts it again
                self.queue(request, self.order(request))
        self.late.clear()

    def record_replica(self, request: Request) -> None:
        """Record that this replica serves a request, which another one may have served before."""
        rows, number = self.rows, request.id
        before = rows.replica.item(number)
        if before != self.number:
            if before != -1:
                rows.moved[number] = True
            rows.replica[number] = self.number

    def queue(self, request: Request, key: float) -> None:
        """Add a request to the queue. The smallest key is first."""
        request.queued = True
        self.queued += 1
        heapq.heappush(self.waiting, (key, request.arrival, request.id, request))

    def unqueue(self, request: Request) -> None:
        """End a cancelled request that waits."""
        self.queued -= 1
        self.leave(request, self.env.now)

    # A request is admitted, and ends.

    def admit(self) -> None:
        """Move waiting requests to prefill, in queue order, until the next one does not fit."""
        while self.waiting:
            request = self.waiting[0][-1]
            if not request.cancelled:
                # The time of the last token is nan before the first preemption.
                preempted = not math.isnan(request.answered)
                kv_tokens = request.kv
                if preempted:
                    # Require KV for the whole output. With KV for the prompt alone, the next step
                    # could preempt the request again and waste a whole prefill.
                    kv_tokens = self.limits.kv_tokens_needed(request.tokens)
                if not self.kv_cache.fits(request, kv_tokens):
                    return
                request.queued = False
                self.queued -= 1
                request.prefilled = self.kv_cache.take(request)
                self.begin(request, preempted)
            heapq.heappop(self.waiting)

    def begin(self, request: Request, preempted: bool) -> None:
        """Let an admitted request wait for a micro-batch that computes its prompt."""
        if not preempted:
            # After a preemption it finds its own blocks, which save no first computing.
            self.rows.cached[request.id] = request.prefilled
            self.rows.admitted[request.id] = self.env.now
        self.prefilling.append(request)

    def drop_cancelled_prompts(self) -> None:
        """End cancelled requests whose prompts are next, and admit others."""
        if not (self.prefilling and self.prefilling[0].cancelled):
            return
        while self.prefilling and self.prefilling[0].cancelled:
            ended = self.prefilling.popleft()
            for request, cached in self.kv_cache.uncomputed(ended, self.prefilling):
                request.prefilled = cached
                if math.isnan(request.answered):
                    self.rows.cached[request.id] = cached
            self.end(ended, self.env.now)
        self.kv_cache.count_prompts(self.prefilling)
        self.admit()

    def requeue(self, request: Request, decoded: int, steps: int) -> None:
        """Put a preempted request first in the queue. Its generated tokens become prompt.

        decoded: tokens that it decoded, in so many steps. The next token comes with its prompt.
        With speculation, its tokens of a step remain as they were drawn.
        """
        self.kv_cache.give_back(request)
        self.rows.preemptions[request.id] += 1
        generated, planned = 1 + decoded, request.steps
        request.prompt, request.output = request.prompt + generated, request.output - generated
        request.steps = request.output - 1
        if self.draws and self.rows.steps is not None:
            request.steps = math.ceil(request.steps / request.rate)
            request.rate = (request.output - 1) / request.steps if request.steps else 1.0
            self.rows.steps[request.id] += steps + 1 + request.steps - planned
        request.prefilled = 0
        request.kv = self.limits.kv_tokens_needed(request.prompt)
        self.queue(request, -math.inf)

    def end(self, request: Request, leave: Seconds) -> None:
        """End an admitted request, finished or cancelled."""
        if not request.cancelled:
            self.rows.last_token[request.id] = leave
        self.kv_cache.give_back(request)
        self.leave(request, leave)

    def leave(self, request: Request, at: Seconds) -> None:
        """Record that a request has ended."""
        self.forget(request)
        if self.lost and (lost := self.lost.pop(request.id, None)):
            lost(request)
            return
        if request.cancelled:
            assert self.policies.deadline is not None
            self.rows.expire(request.id, self.policies.deadline)
        self.on_end(request, at)

    def forget(self, request: Request) -> None:
        """Remove a request without a record of its end."""
        request.ended = True
        del self.requests[request.id]

    def admitted(self) -> list[Request]:
        """Return the requests that hold KV cache and are not cancelled, by number."""
        own = (request for request in self.requests.values() if not request.queued)
        return sorted((r for r in own if not r.cancelled), key=lambda request: request.id)

    def lose(self, request: Request, lost: Callable[[Request], None]) -> None:
        """Cancel an admitted request whose rank has failed, and call `lost` when it has left."""
        request.cancelled, self.lost[request.id] = True, lost

    def lose_all(self) -> list[Request]:
        """Return all unfinished requests, and forget them, because the replica fails."""
        self.waiting.clear()
        self.late.clear()
        self.prefilling.clear()
        lost = list(self.requests.values())
        self.requests.clear()
        for request in lost:
            request.ended = True
        return lost

    def arrivals(self) -> list[Seconds]:
        """Return the arrivals of the requests that wait or prefill [s]."""
        requests = [*self.prefilling, *(request for *_, request in self.waiting)]
        return [request.arrival for request in requests if not request.cancelled]
