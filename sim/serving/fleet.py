"""The replicas of a run behind one router: their requests, failures and work."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.cost.energy import Tally, summed
from sim.results.rows import Rows, Span, Traffic
from sim.serving.event_order import CallUrgently, call_at
from sim.serving.executors.choice import executor_for
from sim.serving.policy import Router, ring
from sim.serving.policy_checks import checked_router
from sim.serving.replica import Replica
from sim.serving.replica_config import Outage, ReplicaConfig, ReplicaWiring
from sim.serving.request import Request
from sim.serving.ring import RingReplica
from sim.units import Seconds


class ReplicaRecord(NamedTuple):
    """The work of a replica until it failed, or the run was over.

    busy: float[stage], s. replays: steps that were repeated. kv_peak: tokens.
    traffic: bytes of each link; None unless links are simulated.
    worked_until: when its last step ended; -inf without one [s].
    """

    tally: Tally
    busy: NDArray[np.float64]
    replays: int
    kv_peak: int
    traffic: Traffic | None
    worked_until: Seconds

    @classmethod
    def by(cls, replica: Replica, failed: Seconds = math.inf) -> "ReplicaRecord":
        """Return the record of a replica. failed: when its steps under way ended [s]."""
        executor = replica.executor
        return cls(
            executor.tally,
            executor.busy.copy(),
            executor.replays,
            math.ceil(replica.admission.kv_cache.kv_peak),
            executor.traffic,
            min(executor.free_at, failed),
        )


class Mark(NamedTuple):
    """The work of each replica up to a time: its tally, and float[stage], the working times [s]."""

    at: Seconds
    works: list[tuple[Tally, NDArray[np.float64]]]


def between(start: Mark, end: Mark) -> Span:
    """Return the work from one mark to the other.

    A stage is busy for that time at most: only a part of the steps under way at a mark counts.
    """
    length, tallies, seconds = end.at - start.at, [], []
    for (before, was_busy), (after, is_busy) in zip(start.works, end.works, strict=True):
        busy = is_busy - was_busy
        part = min(1.0, length / most) if (most := float(busy.max())) > 0 else 1.0
        tallies.append(after.since(before).scaled(part))
        seconds.append(part * busy)
    return Span(start.at, end.at, tallies, seconds)


class RequestSource(Protocol):
    """The sender of requests, which also records their ends."""

    def request(self, number: int, arrival: Seconds) -> Request:
        """Return a request as it was sent. After a failure it begins again."""

    def on_end(self, request: Request, at: Seconds) -> None:
        """Record that a request has ended."""


class ServingFleet:
    """The replicas as they are now, and the records of those that failed.

    failed: by replica, a record for each failure. held: requests that wait while none is up.
    after_repair: by replica, what to call when another one has replaced it.
    overhead: the smallest of all replicas [s]; it has passed when a request is routed.
    """

    def __init__(
        self,
        env: simpy.Environment,
        rows: Rows,
        configs: Sequence[ReplicaConfig],
        router: Router,
        source: RequestSource,
        leap: bool,
    ) -> None:
        self.env, self.rows, self.configs, self.source, self.leap = env, rows, configs, source, leap
        self.router = checked_router(router)
        self.overhead = min(config.overhead for config in configs)
        deadlines = [config.policies.deadline for config in configs]
        known = [deadline for deadline in deadlines if deadline is not None]
        # A request that is held is given up after the longest deadline of any replica.
        self.patience = max(known) if len(known) == len(deadlines) else None
        self.replicas = [self.build(number) for number in range(len(configs))]
        self.failing = any(config.outages or config.pool_outages for config in configs)
        self.failed: list[list[ReplicaRecord]] = [[] for _ in configs]
        self.held: deque[Request] = deque()
        self.after_repair: dict[int, Callable[[], None]] = {}

    def build(self, number: int) -> Replica:
        """Return an empty replica with its executor."""
        config = self.configs[number]
        wiring = ReplicaWiring(self.env, number, config, self.rows, self.source.on_end)
        if config.policies.batching is ring:
            return RingReplica(wiring)
        # Where no answer decides when a request is sent, nothing that returns at one replica
        # changes another.
        independent = self.rows.requests.is_open_loop
        executor = executor_for(self.env, config, self.rows.gaps, self.leap, independent)
        return Replica(wiring, executor)

    # Requests are routed.

    def send(self, request: Request) -> None:
        """Route a request to a replica, or hold it if none is up."""
        replicas = self.replicas
        up = [replica for replica in replicas if replica.up] if self.failing else replicas
        if not up:
            self.hold(request)
            return
        replica = up[self.router(up, request) if len(up) > 1 else 0]
        if replica.overhead == self.overhead:
            replica.submit(request)
        else:
            replica.in_transit += 1
            hand_over = partial(self.hand_over, replica, request)
            CallUrgently(self.env, replica.overhead - self.overhead, hand_over)

    def hand_over(self, replica: Replica, request: Request, _: simpy.Event) -> None:
        """Submit a request that was on its way. If the replica has failed, route it again."""
        replica.in_transit -= 1
        if replica.up:
            replica.submit(request)
        else:
            self.send(request)

    def hold(self, request: Request) -> None:
        """Keep a request until a replica is up, or its deadline passes."""
        self.held.append(request)
        if (patience := self.patience) is not None:
            until = request.arrival + patience
            call_at(self.env, until, lambda _: self.give_up(request, patience))

    def give_up(self, request: Request, deadline: Seconds) -> None:
        """Cancel a request whose deadline passes while no replica is up."""
        if request in self.held:
            self.held.remove(request)
            self.rows.expire(request.id, deadline)
            self.source.on_end(request, self.env.now)

    # Replicas fail.

    def down(self, number: int, outage: Outage) -> None:
        """Let a replica fail. Its requests begin again, or fail."""
        replica = self.replicas[number]
        lost = replica.fail()
        self.failed[number].append(ReplicaRecord.by(replica, self.env.now))
        replica.executor.stop()
        for request in lost:
            self.lose(request, outage)

    def lose(self, request: Request, outage: Outage) -> None:
        """Let a request whose replica has failed begin again, or fail."""
        rows = self.rows
        rows.admitted[request.id] = rows.first_token[request.id] = math.nan
        rows.cached[request.id] = 0
        if outage.requests == "fail":
            rows.failed[request.id], rows.reason[request.id] = True, "its replica failed"
            self.source.on_end(request, self.env.now)
        else:
            rows.retries[request.id] += 1
            self.send_again(self.source.request(request.id, request.arrival))

    def up_again(self, number: int, _: Outage) -> None:
        """Replace a failed replica by an empty one, which has its weights loaded."""
        self.replicas[number] = self.build(number)
        if number in self.after_repair:
            self.after_repair[number]()
        while self.held:
            self.send_again(self.held.popleft())

    def send_again(self, request: Request) -> None:
        """Send a request as one of several arrivals of this instant.

        The replica that gets the first one then waits for the others before it schedules.
        """
        CallUrgently(self.env, 0.0, lambda _: self.send(request))

    # The work that was done.

    def mark(self) -> Mark:
        """Return the work of each replica up to now, before and after its failures."""
        works = []
        for before, replica in zip(self.failed, self.replicas, strict=True):
            lives = [(record.tally, record.busy) for record in before]
            if replica.up:
                lives.append(replica.so_far())
            tallies, busy = zip(*lives, strict=True)
            tally = summed(tallies) if len(tallies) > 1 else tallies[0]
            works.append((tally, np.sum(busy, axis=0)))
        return Mark(self.env.now, works)

    def tokens_made(self) -> float:
        """Return the tokens of answers that the replicas have made up to now, as in `mark`."""
        lost = sum(record.tally.logits for before in self.failed for record in before)
        return lost + sum(replica.tokens_so_far() for replica in self.replicas if replica.up)

    def book(self) -> None:
        """Write the work of each replica, before and after its failures, to the rows."""
        rows, replicas = self.rows, self.replicas
        for replica in replicas:
            replica.executor.flush()
        done = [
            [*before, ReplicaRecord.by(replica)]
            for before, replica in zip(self.failed, replicas, strict=True)
        ]
        rows.systems = [replica.system for replica in replicas]
        rows.kv_tokens = [replica.limits.kv_tokens for replica in replicas]
        rows.tallies = [summed(life.tally for life in lives) for lives in done]
        rows.busy = [np.sum([life.busy for life in lives], axis=0) for lives in done]
        rows.replays = [sum(life.replays for life in lives) for lives in done]
        rows.kv_peak = [max(life.kv_peak for life in lives) for lives in done]
        carried = [[life.traffic for life in lives if life.traffic] for lives in done]
        rows.traffic = {
            number: Traffic.summed(lives) for number, lives in enumerate(carried) if lives
        }
        rows.worked_until = max(life.worked_until for lives in done for life in lives)
