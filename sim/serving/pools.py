"""Prefill and decode pools: a request is prefilled on one replica, and decoded on another one.

1. A prefill replica serves the request as one of a single output token, which is its first token.
2. A decode replica admits it: its KV cache has room for the prompt, and as policies want, for the
   output.
3. The KV cache of the prompt travels. The prefill replica holds it until then.
4. After the hand-over, a micro-batch of the decode replica takes the sequence.

A request of one output token ends after the first of these.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import simpy

from sim.cost.kv_transfer import prompt_kv_bytes
from sim.results.rows import Rows, Transfers
from sim.serving.admission import Admission
from sim.serving.event_order import call_after
from sim.serving.executors.choice import executor_for
from sim.serving.fleet import RequestSource, ServingFleet
from sim.serving.policy import Request, Router
from sim.serving.policy_checks import checked_router
from sim.serving.replica import Replica
from sim.serving.replica_config import ReplicaConfig
from sim.serving.transfer import KVLinks, PoolConfig, share_left
from sim.units import Seconds


class PrefillAdmission(Admission):
    """The requests of a prefill replica.

    on_admitted, on_prefilled: called with a request that is admitted, or whose prompt is computed.
    """

    on_admitted: Callable[[Request], None]
    on_prefilled: Callable[[Request, Seconds], None]

    def begin(self, request: Request, preempted: bool) -> None:
        super().begin(request, preempted)
        self.on_admitted(request)

    def end(self, request: Request, leave: Seconds) -> None:
        self.on_prefilled(request, leave)

    def finish(self, request: Request, leave: Seconds) -> None:
        """End a request that has all its tokens."""
        super().end(request, leave)

    def hold(self, request: Request) -> None:
        """Keep the KV cache of a computed prompt. Its place among the sequences becomes free."""
        self.kv_cache.sequences_used -= 1
        del self.requests[request.id]

    def release(self, request: Request) -> None:
        """Free the KV cache of a prompt that has travelled."""
        self.kv_cache.sequences_used += 1  # `give_back` frees the place again
        self.kv_cache.give_back(request)


class DecodeAdmission(Admission):
    """The requests of a decode replica.

    An admitted request holds KV cache, and takes a place among the sequences when its prompt has
    come and one is free. No request is admitted while all places are taken, as in vLLM.
    ready: requests whose prompts have come, and that wait for a place.
    on_admitted: called with a request that has room for its prompt.
    Source: vLLM 0.11, vllm/v1/core/sched/scheduler.py, WAITING_FOR_REMOTE_KVS.
    """

    on_admitted: Callable[[Request], None]

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        config: ReplicaConfig,
        rows: Rows,
        on_end: Callable[[Request, Seconds], None],
    ) -> None:
        super().__init__(env, number, config, rows, on_end)
        self.ready: deque[Request] = deque()

    def record_replica(self, request: Request) -> None:
        self.rows.replica[request.id] = self.number

    def begin(self, request: Request, preempted: bool) -> None:
        if preempted:  # it is computed again here
            super().begin(request, preempted)
            return
        self.kv_cache.sequences_used -= 1
        self.on_admitted(request)

    def receive(self, request: Request, answered: Seconds) -> None:
        """Let a request whose prompt has come wait for a place.

        answered: when its first token was ready [s].
        """
        request.prefilled, request.joined = request.prompt, answered
        self.ready.append(request)
        self.give_places()

    def give_places(self) -> None:
        """Let ready requests wait for a micro-batch, as far as places are free."""
        while self.ready and self.kv_cache.sequences_used < self.kv_cache.sequences:
            self.kv_cache.sequences_used += 1
            self.prefilling.append(self.ready.popleft())

    def end(self, request: Request, leave: Seconds) -> None:
        super().end(request, leave)
        self.give_places()

    def requeue(self, request: Request, generated: int) -> None:
        super().requeue(request, generated)
        self.give_places()


class PrefillReplica(Replica):
    """A replica that computes prompts, and holds their KV cache until it has travelled."""

    admission_class = PrefillAdmission
    admission: PrefillAdmission


class DecodeReplica(Replica):
    """A replica that decodes sequences whose prompts another replica has computed."""

    admission_class = DecodeAdmission
    admission: DecodeAdmission


@dataclass(eq=False, slots=True)
class Journey:
    """A request on its way between the pools.

    source, target: replicas. prompt: the request as its prefill replica serves it.
    computed_at: when its first token was ready [s]. reserved_at: when the target reserved room for
        it [s]. Both are nan before.
    """

    request: Request
    source: PrefillReplica
    prompt: Request
    target: DecodeReplica | None = None
    computed_at: Seconds = math.nan
    reserved_at: Seconds = math.nan


class PooledFleet(ServingFleet):
    """A prefill pool and a decode pool behind one router, and the links between them.

    journeys: the requests that are not received yet, by number.
    The router of each pool is that of its replicas' policies.
    With overlap, a decode replica reserves room when the prefill replica admits the request.
    """

    def __init__(
        self,
        env: simpy.Environment,
        rows: Rows,
        configs: Sequence[ReplicaConfig],
        pools: PoolConfig,
        source: RequestSource,
        leap: bool,
    ) -> None:
        self.pools, self.journeys = pools, dict[int, Journey]()
        super().__init__(env, rows, configs, configs[0].policies.router, source, leap)
        self.prefill = [r for r in self.replicas if isinstance(r, PrefillReplica)]
        self.decode = [r for r in self.replicas if isinstance(r, DecodeReplica)]
        self.decode_router: Router = checked_router(configs[-1].policies.router)
        self.overhead = configs[0].overhead
        self.links = KVLinks(pools.transfer, configs)
        rows.transfers = Transfers(len(rows.arrival), self.links.busy)

    def build(self, number: int) -> Replica:
        """Return an empty replica of its pool."""
        config = self.configs[number]
        executor = executor_for(self.env, config, self.rows.gaps, self.leap)
        parts = self.env, number, config, executor, self.rows
        if number < self.pools.prefill:
            prefill = PrefillReplica(*parts, self.on_prompt_ended)
            prefill.admission.on_admitted = self.on_prompt_admitted
            prefill.admission.on_prefilled = self.on_prefilled
            return prefill
        decode = DecodeReplica(*parts, self.source.on_end)
        decode.admission.on_admitted = self.on_room
        return decode

    def send(self, request: Request) -> None:
        """Route a request to a prefill replica, or refuse it if no decode replica can hold it."""
        prompt, router = request, self.router
        if request.output > 1:
            admission = self.decode[0].admission
            if reason := admission.never_fits(replace(request)):
                admission.refuse(request, reason)
                return
            prompt = replace(request, output=1)
        pool = self.prefill
        replica = pool[router(pool, prompt) if len(pool) > 1 else 0]
        if request.output > 1:
            self.journeys[request.id] = Journey(request, replica, prompt)
        assert self.rows.transfers
        self.rows.transfers.prefill_replica[request.id] = replica.admission.number
        replica.submit(prompt)

    def on_prompt_admitted(self, prompt: Request) -> None:
        """Ask for room for a request while its prompt is computed, if its parts leave early."""
        journey = self.journeys.get(prompt.id)
        if journey and self.pools.transfer.overlap != "none":
            self.reserve(journey)

    def on_prefilled(self, prompt: Request, leave: Seconds) -> None:
        """Hold the KV cache of a computed prompt; end a request that needs no other token."""
        journey = self.journeys.get(prompt.id)
        if journey is None:
            replica = self.prefill[self.rows.replica[prompt.id]]
            replica.admission.finish(prompt, leave)
            return
        journey.source.admission.hold(prompt)
        journey.computed_at = leave
        if journey.target is None:
            self.reserve(journey)
        elif not math.isnan(journey.reserved_at):
            self.start(journey)

    def on_prompt_ended(self, prompt: Request, at: Seconds) -> None:
        """End a request that a prefill replica refuses, or that needs one token only."""
        self.journeys.pop(prompt.id, None)
        self.source.on_end(prompt, at)

    def reserve(self, journey: Journey) -> None:
        """Route a request to a decode replica, which admits it when it has room."""
        pool, request = self.decode, journey.request
        target = pool[self.decode_router(pool, request) if len(pool) > 1 else 0]
        journey.target = target
        target.submit(request)

    def on_room(self, request: Request) -> None:
        """Start the transfer of a request that has room, if its prompt is computed."""
        journey = self.journeys[request.id]
        journey.reserved_at = self.env.now
        if not math.isnan(journey.computed_at):
            self.start(journey)

    def start(self, journey: Journey) -> None:
        """Start the transfer of what has not left during the prefill, of a prompt that is computed.

        Blocks in the decode replica's prefix cache do not travel.
        """
        rows, now, request = self.rows, self.env.now, journey.request
        source, target = journey.source, journey.target
        assert target
        assert rows.transfers
        ends = source.admission.number, target.admission.number
        config, transfer = self.configs[ends[0]], self.pools.transfer
        layout = config.costs.layout
        nbytes = prompt_kv_bytes(layout, request.prompt - request.prefilled)
        computed = request.prompt - int(rows.cached[request.id])
        before = max(0.0, journey.computed_at - journey.reserved_at)
        whole = nbytes / self.links.rate(*ends)
        left = share_left(transfer, config, computed, whole, before) if before else 1.0
        start, end = self.links.send(now, ends, left * nbytes)
        end += transfer.latency
        rows.transfers.add(request.id, (start, end), nbytes)
        call_after(self.env, end - now, lambda _: self.arrive(journey))

    def arrive(self, journey: Journey) -> None:
        """Free the prefill replica's room for a prompt that has travelled, and hand it over."""
        source, target, request = journey.source, journey.target, journey.request
        assert target
        del self.journeys[request.id]
        source.executor.complete_silent()
        source.admission.release(journey.prompt)
        source.on_submit()

        def receive(_: simpy.Event | None = None) -> None:
            target.executor.complete_silent()
            target.admission.receive(request, journey.computed_at)
            target.on_submit()

        if handover := self.pools.transfer.handover:
            call_after(self.env, handover, receive)
        else:
            receive()
