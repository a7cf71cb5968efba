"""The replicas of prefill and decode pools, with the KV cache and places that requests hold.

A prefill replica holds the KV cache of a computed prompt until it has travelled. A decode replica
holds room for a prompt from its admission on, and a place among its sequences from its arrival on.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from functools import partial

from sim.serving.admission import Admission
from sim.serving.event_order import CallAfter
from sim.serving.replica import Replica
from sim.serving.replica_config import ReplicaWiring
from sim.serving.request import Request
from sim.serving.ring import ROUNDING, Entered, RingReplica
from sim.units import Seconds


class PrefillAdmission(Admission):
    """The requests of a prefill replica.

    on_admitted: called with a request that is admitted.
    on_prefilled: called with this object, a request whose prompt is computed, and the time.
    withdrawn: numbers of requests that have ended elsewhere, and leave without a record.
    """

    on_admitted: Callable[[Request], None]
    on_prefilled: Callable[["PrefillAdmission", Request, Seconds], None]

    def __init__(self, wiring: ReplicaWiring) -> None:
        super().__init__(wiring)
        self.withdrawn: set[int] = set()

    def record_replica(self, request: Request) -> None:
        """Record that this replica computes a prompt, and keep the number of a decode replica."""
        rows, number, transfers = self.rows, request.id, self.rows.transfers
        assert transfers
        before = transfers.prefill_replica[number]
        rows.moved[number] |= before not in (-1, self.number)
        if rows.replica[number] == before:
            rows.replica[number] = self.number
        transfers.prefill_replica[number] = self.number

    def begin(self, request: Request, preempted: bool) -> None:
        super().begin(request, preempted)
        self.on_admitted(request)

    def end(self, request: Request, leave: Seconds) -> None:
        self.on_prefilled(self, request, leave)

    def finish(self, request: Request, leave: Seconds) -> None:
        """End a request that has all its tokens, or that is cancelled."""
        super().end(request, leave)

    def leave(self, request: Request, at: Seconds) -> None:
        if request.id in self.withdrawn:
            self.withdrawn.remove(request.id)
            self.forget(request)
        else:
            super().leave(request, at)

    def lose_all(self) -> list[Request]:
        # A withdrawn request has ended elsewhere, so it must not begin again.
        return [request for request in super().lose_all() if request.id not in self.withdrawn]

    def hold(self, request: Request) -> None:
        """Keep the KV cache of a computed prompt. Its place among the sequences becomes free."""
        self.kv_cache.free_place(request)
        self.forget(request)

    def release(self, request: Request) -> None:
        """Free the KV cache of a prompt that is held."""
        self.kv_cache.take_place(request)  # `give_back` frees the place again
        self.kv_cache.give_back(request)


class DecodeAdmission(Admission):
    """The requests of a decode replica.

    An admitted request holds KV cache. It takes a place among the sequences when its prompt has
    arrived and a place is free. No request is admitted while all places are taken, as in vLLM.
    coming: admitted requests whose prompts have not arrived, by number, in order of admission.
    ready: requests whose prompts have arrived, and that wait for a place.
    on_admitted: called with a request that has room for its prompt.
    Source: vLLM 0.11, vllm/v1/core/sched/scheduler.py, WAITING_FOR_REMOTE_KVS.
    """

    on_admitted: Callable[[Request], None]

    def __init__(self, wiring: ReplicaWiring) -> None:
        super().__init__(wiring)
        self.coming: dict[int, Request] = {}
        self.ready: deque[Request] = deque()

    def record_replica(self, request: Request) -> None:
        rows, number, transfers = self.rows, request.id, self.rows.transfers
        assert transfers
        prefill = transfers.prefill_replica[number]
        rows.moved[number] |= rows.replica[number] not in (prefill, self.number)
        rows.replica[number] = self.number

    def begin(self, request: Request, preempted: bool) -> None:
        if preempted:  # it is computed again here
            super().begin(request, preempted)
            return
        self.kv_cache.await_prompt(request)
        self.coming[request.id] = request
        self.on_admitted(request)

    def receive(self, request: Request, answered: Seconds) -> None:
        """Let a request whose prompt has arrived wait for a place.

        answered: when its first token was ready [s].
        """
        del self.coming[request.id]
        request.prefilled, request.joined = request.prompt, answered
        self.ready.append(request)
        self.give_places()

    def give_places(self) -> None:
        """Give the free places to ready requests, which then wait for a micro-batch."""
        while self.ready and self.kv_cache.sequences_used < self.kv_cache.sequences:
            self.kv_cache.sequences_used += 1
            self.prefilling.append(self.ready.popleft())

    def has_no_place(self, request: Request) -> bool:
        """Return whether a request holds KV cache without a place among the sequences."""
        return request.id in self.coming or request in self.ready

    def free_room(self, request: Request) -> None:
        """Free the KV cache of a request without a place.

        Requests that expected to reuse blocks of its prompt then wait for their own blocks.
        """
        if self.coming.pop(request.id, None):
            for other, cached in self.kv_cache.uncomputed(request, self.coming.values()):
                other.prefilled = cached
        else:
            self.ready.remove(request)
        self.kv_cache.sequences_used += 1  # `give_back` frees the place again
        self.kv_cache.give_back(request)

    def withdraw(self, request: Request) -> None:
        """Forget a request whose prompt will not arrive."""
        if request.queued:
            # The request may come back before this entry is popped. Heapq cannot order equal
            # entries.
            self.waiting = [entry for entry in self.waiting if entry[-1] is not request]
            heapq.heapify(self.waiting)
            self.queued -= 1
        else:
            self.free_room(request)
        self.forget(request)

    def end(self, request: Request, leave: Seconds) -> None:
        super().end(request, leave)
        self.give_places()

    def requeue(self, request: Request, decoded: int, steps: int) -> None:
        super().requeue(request, decoded, steps)
        self.give_places()


class PrefillReplica(Replica):
    """A replica that computes prompts, and holds their KV cache until it has travelled."""

    admission_class = PrefillAdmission
    admission: PrefillAdmission

    def release(self, prompt: Request) -> None:
        """Free the KV cache of a prompt that is held, unless the replica has failed since."""
        if self.up:
            self.executor.complete_silent()
            self.admission.release(prompt)
            self.on_submit()

    def withdraw(self, prompt: Request) -> None:
        """Drop a prompt whose request has ended elsewhere: immediately, or after the next step.

        A step of this replica may be the caller. So another event at this instant frees
        the room.
        """
        if prompt.ended:
            CallAfter(self.env, 0.0, lambda _: self.release(prompt))
        else:
            prompt.cancelled = True
            self.admission.withdrawn.add(prompt.id)
            CallAfter(self.env, 0.0, lambda _: self.cancel(prompt))


class RingPrefillReplica(PrefillReplica, RingReplica):
    """A prefill replica whose prompts take the beats of a compiled pipeline in order."""


class DecodeReplica(Replica):
    """A replica that decodes sequences whose prompts another replica has computed."""

    admission_class = DecodeAdmission
    admission: DecodeAdmission

    def receive(self, request: Request, answered: Seconds) -> None:
        """Accept a request whose prompt has arrived, unless it has ended since.

        answered: when its first token was ready [s].
        """
        if not request.ended:
            assert self.rows.transfers
            self.rows.transfers.handed_over[request.id] = self.env.now
            self.executor.complete_silent()
            self.admission.receive(request, answered)
            self.on_submit()

    def withdraw(self, request: Request) -> None:
        """Forget a request whose prompt will not arrive, and admit others."""
        self.executor.complete_silent()
        self.admission.withdraw(request)
        self.on_submit()

    def cancel(self, request: Request) -> None:
        """Cancel a request at its deadline. Without a place it ends immediately."""
        if request.ended:
            return
        self.executor.complete_silent()
        if not self.admission.has_no_place(request):
            super().cancel(request)
            return
        request.cancelled = True
        self.admission.free_room(request)
        self.admission.leave(request, self.env.now)
        self.on_submit()


class RingDecodeReplica(DecodeReplica, RingReplica):
    """A decode replica whose sequences keep a beat of a compiled pipeline.

    A sequence takes the first free beat after its prompt has arrived, and then one in each lap.
    """

    def schedule_request(self, request: Request) -> None:
        """Find the beat of a received sequence, and wait for its last token."""
        env, rows, (beat, unloaded, lap) = self.env, self.rows, self.schedule
        now, later = env.now, request.output - 2  # laps after its first token here
        beats = self.ring.enter(math.ceil(now / beat - ROUNDING), 1)
        if later:
            self.ring.hold(beats[1], later)
        self.beats[request.id] = beats
        assert rows.transfers
        rows.transfers.decode_start[request.id] = max(now, beats[1] * beat)
        rows.gaps.add(beats[1] * beat + unloaded - request.joined, 1)
        self.counter.received += 1
        leave = (beats[1] + later * lap) * beat + unloaded
        CallAfter(env, leave - now, partial(self.answered, request, leave))

    def entered(self, request: Request, beats: tuple[int, int], begun: float) -> Entered:
        if begun <= beats[1]:
            return request.prompt, 0, 0
        laps = (begun - 1 - beats[1]) // self.schedule.lap
        return request.prompt, 0, 1 + int(min(request.output - 2, laps))
