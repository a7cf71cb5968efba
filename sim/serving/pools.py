"""Prefill and decode pools: a request is prefilled on one replica, and decoded on another one.

1. A prefill replica serves the request as one of a single output token, which is its first token.
2. A decode replica admits it when its KV cache has room for the prompt, and for the output if its
   policies reserve that.
3. The KV cache of the prompt travels. The prefill replica holds it until then.
4. After the hand-over, a micro-batch of the decode replica takes the sequence.

A request of one output token ends after the first of these.

A request begins again if the replica with its only KV cache fails. If its decode replica fails
before the hand-over begins, its prompt travels to another one.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import simpy

from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.system_costs import expected_costs
from sim.results.rows import Rows, Transfers
from sim.serving.event_order import CallAfter, call_at
from sim.serving.executors.choice import executor_for
from sim.serving.fleet import RequestSource, ServingFleet
from sim.serving.policy import Router, ring
from sim.serving.policy_checks import checked_router
from sim.serving.pool_replicas import (
    DecodeReplica,
    PrefillAdmission,
    PrefillReplica,
    RingDecodeReplica,
    RingPrefillReplica,
)
from sim.serving.replica import Replica
from sim.serving.replica_config import Outage, ReplicaConfig, ReplicaWiring
from sim.serving.request import Request
from sim.serving.transfer import Interval, KVLinks, PoolConfig, chunk_times, early_parts
from sim.units import Seconds


@dataclass(eq=False, slots=True)
class Journey:
    """A request on its way between the pools.

    source, target: replicas. prompt: the request as its prefill replica serves it.
    computed_at: when its first token was ready [s]. reserved_at: when the target reserved room for
        it [s]. Both are nan before.
    sent: when its transfer uses the links, as `KVLinks.send` returns it; None before.
    """

    request: Request
    source: PrefillReplica
    prompt: Request
    target: DecodeReplica | None = None
    computed_at: Seconds = math.nan
    reserved_at: Seconds = math.nan
    sent: list[Interval] | None = None

    @property
    def ends(self) -> tuple[int, int]:
        """The numbers of the replicas between which it travels."""
        assert self.target
        return self.source.admission.number, self.target.admission.number


class PooledFleet(ServingFleet):
    """A prefill pool and a decode pool behind one router, and the links between them.

    journeys: the requests that are not received yet, by number.
    stranded: the journeys that wait while no decode replica is up.
    The router and the deadline of each pool are those of its replicas' policies. The deadline of
    the prefill pool is for the first token, and that of the decode pool for the last one.
    With overlap, a decode replica reserves room when the prefill replica admits the request.
    Left out: if a transfer is broken off, those booked after it do not begin earlier.
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
        self.stranded: deque[Journey] = deque()
        super().__init__(env, rows, configs, configs[0].policies.router, source, leap)
        self.decode_router: Router = checked_router(configs[-1].policies.router)
        self.overhead = configs[0].overhead
        self.patience = configs[0].policies.deadline
        # All prefill replicas have this layout.
        self.prompt_costs = expected_costs(configs[0].costs)
        longest_prefill = 0.0
        if pools.transfer.overlap != "none":
            longest = int(rows.requests.prompt.max())
            longest_prefill = chunk_times(self.prompt_costs, configs[0].limits, longest)[-1]
        self.links = KVLinks(pools.transfer, configs, longest_prefill)
        self.kv_bytes = cache(partial(prompt_kv_bytes, self.prompt_costs.layout))
        rows.transfers = Transfers(len(rows.arrival), self.links.busy)
        self.find_pools()

    def build(self, number: int) -> Replica:
        """Return an empty replica of its pool."""
        config, prefills = self.configs[number], number < self.pools.prefill
        on_end = self.on_prompt_ended if prefills else self.on_request_ended
        wiring = ReplicaWiring(self.env, number, config, self.rows, on_end)
        if config.policies.batching is ring:
            if prefills:
                return self.connected(RingPrefillReplica(wiring))
            return self.receiving(RingDecodeReplica(wiring))
        executor = executor_for(self.env, config, self.rows.gaps, self.leap)
        if prefills:
            return self.connected(PrefillReplica(wiring, executor))
        return self.receiving(DecodeReplica(wiring, executor))

    def receiving(self, replica: DecodeReplica) -> DecodeReplica:
        """Return a decode replica that reports when it has room for a prompt."""
        replica.admission.on_admitted = self.on_room
        return replica

    def connected(self, replica: PrefillReplica) -> PrefillReplica:
        """Return a prefill replica that reports what happens to its prompts."""
        replica.admission.on_admitted = self.on_prompt_admitted
        replica.admission.on_prefilled = self.on_prefilled
        return replica

    def find_pools(self) -> None:
        """List the replicas of each pool that are up."""
        up = [replica for replica in self.replicas if replica.up]
        self.prefill = [replica for replica in up if isinstance(replica, PrefillReplica)]
        self.decode = [replica for replica in up if isinstance(replica, DecodeReplica)]

    # A request is routed to both pools, and travels.

    def send(self, request: Request) -> None:
        """Route a request to a prefill replica, or refuse it if no decode replica can hold it."""
        prompt, router, pool = request, self.router, self.prefill
        if request.output > 1:
            admission, prompt = self.replicas[-1].admission, request.prompt_alone()
            if reason := admission.never_fits(request):
                admission.refuse(request, reason)
                return
        if not pool:
            self.hold(request)
            return
        replica = pool[router(pool, prompt) if len(pool) > 1 else 0]
        if request.output > 1:
            self.journeys[request.id] = Journey(request, replica, prompt)
        replica.submit(prompt)

    def on_prompt_admitted(self, prompt: Request) -> None:
        """Request room while a prompt is computed, if its parts are sent early."""
        journey = self.journeys.get(prompt.id)
        if journey and self.pools.transfer.overlap != "none":
            self.reserve(journey)

    def on_prefilled(self, admission: PrefillAdmission, prompt: Request, leave: Seconds) -> None:
        """Hold the KV cache of a computed prompt; end a request that needs no other token."""
        journey = self.journeys.get(prompt.id)
        if journey is None or prompt.cancelled:
            admission.finish(prompt, leave)
            return
        admission.hold(prompt)
        journey.computed_at = leave
        if not math.isnan(journey.reserved_at):
            self.start(journey)
        elif journey.target is None and journey not in self.stranded:
            self.reserve(journey)

    def reserve(self, journey: Journey) -> None:
        """Route a request to a decode replica, which admits it when it has room."""
        pool, request = self.decode, journey.request
        if not pool:
            self.strand(journey)
            return
        journey.target = target = pool[self.decode_router(pool, request) if len(pool) > 1 else 0]
        target.submit(request)

    def on_room(self, request: Request) -> None:
        """Start the transfer of a request that has room, if its prompt is computed."""
        journey = self.journeys[request.id]
        journey.reserved_at = self.env.now
        if not math.isnan(journey.computed_at):
            self.start(journey)

    def start(self, journey: Journey) -> None:
        """Start the transfer of a computed prompt, some parts of which left during the prefill.

        Its recorded start is that of the use of links after the prefill.
        Blocks in the decode replica's prefix cache do not travel.
        """
        rows, now, request = self.rows, self.env.now, journey.request
        assert rows.transfers
        ends = journey.ends
        config, transfer = self.configs[ends[0]], self.pools.transfer
        nbytes = self.kv_bytes(request.prompt - request.prefilled)
        computed = request.prompt - int(rows.cached[request.id])
        before = journey.computed_at - journey.reserved_at
        parts = early_parts(transfer, self.prompt_costs, config.limits, computed, before)
        journey.sent = self.links.send(now, ends, nbytes, parts)
        begins_after = [begin for begin, end in journey.sent if end >= now]
        start, end = max(now, begins_after[0]), journey.sent[-1][1] + transfer.latency
        rows.transfers.add(request.id, (start, end), nbytes)
        journey.source.executor.tally.sent += nbytes
        CallAfter(self.env, end - now, lambda _: self.arrive(journey, request))

    def arrive(self, journey: Journey, request: Request) -> None:
        """Free the prefill replica's room for a prompt that has travelled, and hand it over.

        If a replica has failed since, the journey has another request, or was removed.
        """
        target, handover = journey.target, self.pools.transfer.handover
        if self.journeys.get(request.id) is not journey or journey.request is not request:
            return
        assert target
        del self.journeys[request.id]
        journey.source.release(journey.prompt)
        if handover:
            CallAfter(self.env, handover, lambda _: target.receive(request, journey.computed_at))
        else:
            target.receive(request, journey.computed_at)

    # A request ends in one of the pools.

    def on_prompt_ended(self, prompt: Request, at: Seconds) -> None:
        """End a request in its prefill replica: refused, cancelled, or of one token only."""
        if (journey := self.forget(prompt)) and journey.target:
            journey.target.withdraw(journey.request)
        self.source.on_end(prompt, at)

    def on_request_ended(self, request: Request, at: Seconds) -> None:
        """End a request in its decode replica, and drop its prompt if that has not arrived."""
        if journey := self.forget(request):
            journey.source.withdraw(journey.prompt)
        self.source.on_end(request, at)

    def forget(self, request: Request) -> Journey | None:
        """Remove the journey of a request, and return it; None if there is none."""
        if journey := self.journeys.pop(request.id, None):
            self.break_off(journey)
            if journey in self.stranded:
                self.stranded.remove(journey)
        return journey

    def break_off(self, journey: Journey) -> None:
        """Free the links of a journey that is on its way."""
        if journey.sent:
            self.links.break_off(self.env.now, journey.ends, journey.sent)
            journey.sent = None

    # Replicas fail.

    def strand(self, journey: Journey) -> None:
        """Keep a journey until a decode replica is up, or the deadline there passes."""
        self.stranded.append(journey)
        request, deadline = journey.request, self.configs[-1].policies.deadline
        if deadline is not None:
            until = request.arrival + deadline
            call_at(self.env, until, lambda _: self.give_up_stranded(journey, deadline))

    def give_up_stranded(self, journey: Journey, deadline: Seconds) -> None:
        """Cancel a request whose deadline passes while no decode replica is up."""
        if journey in self.stranded:
            self.rows.expire(journey.request.id, deadline)
            self.on_request_ended(journey.request, self.env.now)

    def down(self, number: int, outage: Outage) -> None:
        """Let a replica fail, with the requests that it serves, and the prompts that it holds."""
        self.replicas[number].up = False
        self.find_pools()
        super().down(number, outage)
        for journey in list(self.journeys.values()):
            if journey.source is self.replicas[number]:
                self.lose(journey.prompt, outage)

    def lose(self, request: Request, outage: Outage) -> None:
        """Let a request begin again, or fail. A prompt that is held elsewhere travels again."""
        assert self.rows.transfers
        self.rows.transfers.forget(request.id)
        journey = self.journeys.get(request.id)
        if journey and journey.request is request and outage.requests == "retry":
            self.rows.retries[request.id] += 1
            self.break_off(journey)
            journey.request = self.source.request(request.id, request.arrival)
            journey.target, journey.reserved_at = None, math.nan
            self.reserve(journey)
            return
        if journey := self.forget(request):
            if journey.request is request:
                journey.source.withdraw(journey.prompt)
            elif journey.target:
                journey.target.withdraw(journey.request)
        super().lose(request, outage)

    def up_again(self, number: int, outage: Outage) -> None:
        """Replace a failed replica by an empty one, and send it what waits for its pool."""
        super().up_again(number, outage)
        self.find_pools()
        if self.decode:
            waiting, self.stranded = self.stranded, deque()
            for journey in waiting:
                self.reserve(journey)
