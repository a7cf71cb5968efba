"""Serving on SimPy: requests arrive, a router deals them out to replicas, replicas fail and come back."""

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Timeout

from sim.chipsim.machine import MachineFactory
from sim.cost.energy import Tally, summed
from sim.cost.step import Costs
from sim.results.rows import Rows, Span, Traffic
from sim.serving.executors import (
    ChipExecutor,
    CompiledPipelineExecutor,
    Executor,
    FastForwardExecutor,
    RetryExecutor,
    StepwiseExecutor,
)
from sim.serving.policy import (
    DEFAULT,
    ROUTERS,
    Policies,
    Request,
    Router,
    SchedulerLimits,
    checked_router,
    ring,
)
from sim.serving.replica import Outage, Replica, ReplicaConfig, UrgentTimeout
from sim.serving.ring import RingReplica
from sim.units import Seconds
from sim.workload.requests import RequestBatch

ServiceProcess = Generator[simpy.Event, Any, Any]


class ReplicaRecord(NamedTuple):
    """What a replica did until it failed, or the run was over."""

    tally: Tally
    busy: NDArray[np.float64]
    replays: int
    kv_peak: int
    traffic: Traffic | None

    @classmethod
    def by(cls, replica: Replica) -> "ReplicaRecord":
        executor = replica.executor
        return cls(
            executor.tally,
            executor.busy.copy(),
            executor.replays,
            replica.kv_cache.kv_peak,
            executor.traffic,
        )


class Mark(NamedTuple):
    """What each replica did up to a moment: its tally, and the seconds that each of its stages was busy."""

    at: Seconds
    works: list[tuple[Tally, NDArray[np.float64]]]


def between(start: Mark, end: Mark) -> Span:
    """Return what was done from one mark to the other.

    A stage is busy for all that time at most: of steps that are under way at a mark only a part belongs to it.
    """
    length, tallies, seconds = end.at - start.at, [], []
    for (before, was_busy), (after, is_busy) in zip(start.works, end.works, strict=True):
        busy = is_busy - was_busy
        part = min(1.0, length / most) if (most := float(busy.max())) > 0 else 1.0
        tallies.append(after.since(before).times(part))
        seconds.append(part * busy)
    return Span(start.at, end.at, tallies, seconds)


def serve(
    requests: RequestBatch,
    costs: Costs,
    limits: SchedulerLimits,
    replicas: int = 1,
    overhead: Seconds = 0.0,
    think: Seconds = 0.0,
    policies: Policies = DEFAULT,
    machine: MachineFactory | None = None,
    leap: bool = True,
) -> Rows:
    """Serves all requests on replicas that are alike, as `serve_fleet` does on any."""
    setups = [
        ReplicaConfig(costs, limits, policies, overhead, machine, number=number)
        for number in range(replicas)
    ]
    return serve_fleet(requests, setups, policies.router, think, leap)


def serve_fleet(
    requests: RequestBatch,
    setups: Sequence[ReplicaConfig],
    router: Router,
    think: Seconds = 0.0,
    leap: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    counted: tuple[Seconds, Seconds | None] | None = None,
) -> Rows:
    """Serves all requests on a replica for each of the setups, and returns their rows.

    The router deals a request out when the smallest overhead of all replicas has passed; what more the replica has that gets it,
    passes then.  `think` is a user's pause between an answer and the next request, in a closed loop.  With `leap`, steps in which
    nothing changes are computed at once; without, one by one.  `counted` is a part of the run [s] whose work is kept apart in
    `Rows.span`; without an end it is over when the last request is sent.
    """
    service = Service(requests, setups, router, think, leap, progress)
    if counted:
        service.count(*counted)
    return service.run()


class Service:
    """One run: what comes and when, the replicas as they are now, and what became of those that failed."""

    def __init__(
        self,
        requests: RequestBatch,
        setups: Sequence[ReplicaConfig],
        router: Router,
        think: Seconds,
        leap: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        self.env, self.rows = simpy.Environment(), Rows(requests)
        self.requests, self.setups = requests, setups
        self.router = router if router in ROUTERS.values() else checked_router(router)
        self.think, self.leap, self.progress = think, leap, progress
        self.prompts, self.outputs = requests.prompt.tolist(), requests.output.tolist()
        # Those whose arrival is nan come when an answer decides.
        self.arrivals = (
            (number, at) for number, at in enumerate(requests.arrival.tolist()) if at == at
        )
        self.coming = next(self.arrivals, None)
        self.left = deque(range(len(self.prompts)))  # that no user has asked yet
        self.next_turns: dict[int, list[int]] = {}
        if requests.after is not None:
            for number, before in enumerate(requests.after.tolist()):
                self.next_turns.setdefault(before, []).append(number)
        self.ended = 0
        self.overhead = min(setup.overhead for setup in setups)
        deadlines = {setup.policies.deadline for setup in setups}
        self.patience = (
            None if None in deadlines else max(each for each in deadlines if each)
        )  # the longest of any replica
        self.fleet = [self.build(number) for number in range(len(setups))]
        self.failing = any(setup.outages for setup in setups)
        self.failed: list[list[ReplicaRecord]] = [
            [] for _ in setups
        ]  # by replicas that are no more
        self.held: deque[Request] = deque()  # while no replica is up
        self.arrived = 0
        self.marks: list[Mark] = []  # where the part that is counted begins and ends
        self.counts_to_the_last = False

    def build(self, number: int) -> Replica:
        """A replica that is empty, with what its passages go through."""
        env, setup, gaps = self.env, self.setups[number], self.rows.gaps
        if setup.policies.batching is ring:
            return RingReplica(env, number, setup, self.rows, self.finished)
        costs, slots, leap = (
            setup.costs,
            setup.limits.micro_batches,
            self.leap and not setup.error_sampler,
        )
        executor: Executor
        if setup.machine:
            executor = ChipExecutor(env, setup.machine(env, setup.number), gaps)
        elif leap and slots == costs.stages == 1:
            executor = FastForwardExecutor(env, costs, gaps)
        elif leap and costs.stages > 1 and not costs.launch:  # the kernel knows no host
            executor = CompiledPipelineExecutor(
                env,
                costs,
                gaps,
                slots,
                setup.limits.token_budget,
                interruptible=bool(setup.outages),
            )
        else:
            executor = StepwiseExecutor(env, costs, gaps)
        if setup.error_sampler:
            executor = RetryExecutor(env, executor, setup.error_sampler, gaps)
        return Replica(env, number, setup, executor, self.rows, self.finished)

    def run(self) -> Rows:
        env, requests = self.env, self.requests
        for number, setup in enumerate(self.setups):
            for outage in sorted(
                setup.outages, key=lambda each: each.at
            ):  # who is up again as it fails again is up first
                UrgentTimeout(env, outage.at).callbacks.append(partial(self.down, number, outage))
                UrgentTimeout(env, outage.at + outage.lasts).callbacks.append(
                    partial(self.up_again, number)
                )
        if requests.users is None:
            self.expect()
        else:
            for _ in range(min(requests.users, len(self.left))):
                env.process(self.ask(None, 0.0))
        env.run()
        assert self.ended == len(self.prompts), "a request was lost"
        self.book()
        return self.rows

    def book(self) -> None:
        """What all lives of each replica did together."""
        rows = self.rows
        for replica in self.fleet:
            replica.executor.flush()
        done = [
            [*before, ReplicaRecord.by(replica)]
            for before, replica in zip(self.failed, self.fleet, strict=True)
        ]
        rows.systems = [replica.system for replica in self.fleet]
        rows.kv_tokens = [replica.limits.kv_tokens for replica in self.fleet]
        rows.tallies = [summed(each.tally for each in lives) for lives in done]
        rows.busy = [np.sum([each.busy for each in lives], axis=0) for lives in done]
        rows.replays = [sum(each.replays for each in lives) for lives in done]
        rows.kv_peak = [max(each.kv_peak for each in lives) for lives in done]
        carried = [[each.traffic for each in lives if each.traffic] for lives in done]
        rows.traffic = {
            number: Traffic.summed(lives) for number, lives in enumerate(carried) if lives
        }
        rows.worked_until = max(replica.executor.free_at for replica in self.fleet)
        if len(self.marks) == 2:
            rows.span = between(*sorted(self.marks, key=lambda mark: mark.at))

    # A part of the run is counted.

    def count(self, start: Seconds, end: Seconds | None) -> None:
        """Mark the part of the run that is counted: from start to end, or until the last request is sent."""
        UrgentTimeout(self.env, start).callbacks.append(self.mark)
        if end is None:
            self.counts_to_the_last = True
        else:
            UrgentTimeout(self.env, end).callbacks.append(self.mark)

    def see_arrival(self) -> None:
        """Count an arrival, and end the part that lasts to the last one."""
        self.arrived += 1
        if self.counts_to_the_last and self.arrived == len(self.prompts):
            self.mark()

    def mark(self, _: simpy.Event | None = None) -> None:
        """Keep what each replica did up to now, in all its lives."""
        works = []
        for before, replica in zip(self.failed, self.fleet, strict=True):
            lives = [(each.tally, each.busy) for each in before] + (
                [replica.so_far()] if replica.up else []
            )
            tallies, busy = zip(*lives, strict=True)
            works.append((summed(tallies), np.sum(busy, axis=0)))
        self.marks.append(Mark(self.env.now, works))

    # Requests come.

    def expect(self) -> None:
        """Waits for the next arrival of an open loop."""
        if self.coming is not None:
            UrgentTimeout(
                self.env, max(0.0, self.coming[1] + self.overhead - self.env.now)
            ).callbacks.append(self.arrive)

    def arrive(self, _: simpy.Event) -> None:
        """It is there, and the one after it is waited for first: who looks sees if that is."""
        assert self.coming is not None
        number, arrival = self.coming
        if arrival + self.overhead > self.env.now:  # the wait ended a rounding early
            self.expect()
        else:
            self.coming = next(self.arrivals, None)
            self.expect()
            self.see_arrival()
            self.send(self.request(number, arrival))

    def ask(self, number: int | None, after: Seconds) -> ServiceProcess:
        """A user's next request, sent at `after`."""
        while after + self.overhead > self.env.now:
            yield UrgentTimeout(self.env, after + self.overhead - self.env.now)
        if number is not None or self.left:
            number = self.left.popleft() if number is None else number
            self.rows.arrival[number] = after
            self.see_arrival()
            self.send(self.request(number, after))

    def request(self, number: int, arrival: Seconds) -> Request:
        ids, priority = self.requests.hash_ids, self.requests.priority
        request = Request(number, arrival, self.prompts[number], self.outputs[number], 0)
        if ids:
            request.hash_ids = ids[number]
        if priority is not None:
            request.priority = int(priority[number])
        return request

    def send(self, request: Request) -> None:
        """Deals it out to a replica; where none is up, it is held."""
        env = self.env
        up = [replica for replica in self.fleet if replica.up] if self.failing else self.fleet
        if not up:
            self.held.append(request)
            if (patience := self.patience) is not None:
                Timeout(env, max(0.0, request.arrival + patience - env.now)).callbacks.append(
                    lambda _: self.give_up(request, patience)
                )
            return
        replica = up[self.router(up, request) if len(up) > 1 else 0]
        if replica.overhead == self.overhead:
            replica.submit(request)
        else:
            replica.unfinished += 1  # on its way there
            UrgentTimeout(env, replica.overhead - self.overhead).callbacks.append(
                partial(self.hand_over, replica, request)
            )

    def hand_over(self, replica: Replica, request: Request, _: simpy.Event) -> None:
        replica.unfinished -= 1
        if replica.up:
            replica.submit(request)
        else:
            self.send(request)

    def finished(self, request: Request, at: Seconds) -> None:
        """A request has ended, and may be what the next one waits for."""
        rows, requests = self.rows, self.requests
        self.ended += 1
        rows.ended[request.id] = at
        self.progress(self.ended, len(self.prompts))
        if requests.users is not None and self.left:
            self.env.process(self.ask(None, at + self.think))
        for number in self.next_turns.get(request.id, ()):
            if rows.reason[request.id]:
                rows.arrival[number], rows.reason[number] = (
                    at,
                    "the turn before it was not answered",
                )
                self.see_arrival()
                self.finished(Request(number, at, 0, 0, 0), at)
            else:
                assert requests.think is not None
                self.env.process(self.ask(number, at + float(requests.think[number])))

    # Replicas fail.

    def down(self, number: int, outage: Outage, _: simpy.Event) -> None:
        """A replica fails: what it held is lost, and its requests begin anew or fail."""
        replica, rows = self.fleet[number], self.rows
        unfinished = replica.fail()
        self.failed[number].append(ReplicaRecord.by(replica))
        replica.executor.stop()
        for request in unfinished:
            rows.admitted[request.id] = rows.first_token[request.id] = math.nan
            if outage.requests == "fail":
                rows.failed[request.id], rows.reason[request.id] = True, "its replica failed"
                self.finished(request, self.env.now)
            else:
                rows.retries[request.id] += 1
                self.again(self.request(request.id, request.arrival))

    def up_again(self, number: int, _: simpy.Event) -> None:
        """It has a spare in its place and the weights, and is empty."""
        self.fleet[number] = self.build(number)
        while self.held:
            self.again(self.held.popleft())

    def again(self, request: Request) -> None:
        """Sends it at this instant, as one of several arrivals: whoever takes the first one sees that more come."""
        UrgentTimeout(self.env, 0.0).callbacks.append(lambda _: self.send(request))

    def give_up(self, request: Request, deadline: Seconds) -> None:
        """Its deadline passes while no replica is up."""
        if request in self.held:
            self.held.remove(request)
            self.rows.expire(request.id, deadline)
            self.finished(request, self.env.now)
