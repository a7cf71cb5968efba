"""One run: requests arrive, a router assigns them to replicas, and each gets a row of results."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
import simpy

from sim.chipsim.machine import MachineFactory
from sim.cost.system_costs import SystemCosts
from sim.results.rows import Rows
from sim.serving.event_order import CallUrgently
from sim.serving.fleet import Mark, ServingFleet, between
from sim.serving.front_end import FrontEnd, FrontEndTimes
from sim.serving.limits import SchedulerLimits
from sim.serving.outages import schedule_failures
from sim.serving.policy import DEFAULT, Policies, Router
from sim.serving.pools import PooledFleet
from sim.serving.replica_config import ReplicaConfig
from sim.serving.request import Request
from sim.serving.step_draws import StepDraws
from sim.serving.transfer import PoolConfig
from sim.serving.users import ClosedLoopUsers
from sim.units import Seconds
from sim.workload.requests import RequestBatch

ServiceProcess = Generator[simpy.Event, Any, Any]
ProgressCallback = Callable[[int, int], None]


class ServiceOptions(TypedDict, total=False):
    """How a run is made.

    think: a user's pause between an answer and the next request, in a closed loop whose requests
        have no pauses of their own; 0 [s].
    leap: whether to make the steps in which nothing changes in one event; True. Results are equal.
    progress: called with the number of ended requests and of all.
    counted: start and end of the part of the run whose work is kept in `Rows.span` [s]. Without
        an end it is over when the last request is sent. None keeps nothing.
    front_end: the process that requests of a closed loop wait for; None without waiting.
    pools: the prefill and decode pools of the replicas; None without pools. Each pool then has the
        router of its policies.
    """

    think: Seconds
    leap: bool
    progress: ProgressCallback
    counted: tuple[Seconds, Seconds | None] | None
    front_end: FrontEndTimes | None
    pools: PoolConfig | None


class ServeOptions(TypedDict, total=False):
    """How a run of equal replicas is made, as in `ServiceOptions` and `ReplicaConfig`."""

    think: Seconds
    leap: bool
    overhead: Seconds
    machine: MachineFactory | None
    draws: StepDraws | None


def serve(
    requests: RequestBatch,
    costs: SystemCosts,
    limits: SchedulerLimits,
    replicas: int = 1,
    policies: Policies = DEFAULT,
    **options: Unpack[ServeOptions],
) -> Rows:
    """Serve all requests on equal replicas, and return their rows."""
    overhead, machine = options.get("overhead", 0.0), options.get("machine")
    configs = [
        ReplicaConfig(
            costs, limits, policies, overhead, machine, number=number, draws=options.get("draws")
        )
        for number in range(replicas)
    ]
    think, leap = options.get("think", 0.0), options.get("leap", True)
    return serve_fleet(requests, configs, policies.router, think=think, leap=leap)


def serve_fleet(
    requests: RequestBatch,
    configs: Sequence[ReplicaConfig],
    router: Router,
    **options: Unpack[ServiceOptions],
) -> Rows:
    """Serve all requests on one replica for each configuration, and return their rows.

    A request is routed when the smallest overhead of all replicas has passed. After that, the rest
    of its replica's overhead passes.
    """
    return Service(requests, configs, router, **options).run()


class Service:
    """One run: the requests as they come and end.

    arrivals: the open-loop requests to come, as (number, arrival). coming: the next one.
    users: the users of a closed loop.
    next_turns: by request, the turns of its session that follow it.
    unsent: requests that have come while too many were in flight. in_flight: those of arrivals.
    marks: the bounds of the counted part of the run.
    """

    def __init__(
        self,
        requests: RequestBatch,
        configs: Sequence[ReplicaConfig],
        router: Router,
        **options: Unpack[ServiceOptions],
    ) -> None:
        self.env, self.rows, self.requests = simpy.Environment(), Rows(requests), requests
        if any(config.draws for config in configs):
            self.rows.steps = np.zeros(len(requests.prompt), np.int64)
        self.caching = any(config.policies.prefix_caching for config in configs)
        self.think = options.get("think", 0.0)
        self.progress = options.get("progress")
        # Views: lists of a million numbers would take tens of MB.
        self.prompts, self.outputs = requests.prompt.data, requests.output.data
        # An arrival is nan if an answer decides it.
        self.arrivals = (
            (number, at) for number, at in enumerate(requests.arrival.data) if at == at
        )
        self.coming = next(self.arrivals, None)
        self.users = ClosedLoopUsers(requests.users or 0, len(self.prompts))
        self.next_turns: dict[int, list[int]] = {}
        if requests.after is not None:
            for number, before in enumerate(requests.after.tolist()):
                self.next_turns.setdefault(before, []).append(number)
        self.arrived = self.ended = self.in_flight = 0
        self.unsent: deque[int] = deque()
        leap = options.get("leap", True)
        pools = options.get("pools")
        self.fleet = (
            PooledFleet(self.env, self.rows, configs, pools, self, leap)
            if pools
            else ServingFleet(self.env, self.rows, configs, router, self, leap)
        )
        self.marks: list[Mark] = []
        self.counts_to_the_last = False
        times = options.get("front_end")
        self.front_end = FrontEnd(times, self.fleet.tokens_made) if times else None
        if counted := options.get("counted"):
            self.count_span(*counted)

    def run(self) -> Rows:
        """Run until all requests have ended, and return their rows."""
        schedule_failures(self.fleet)
        if self.requests.users is None:
            self.schedule_arrival()
        else:
            for user in range(min(self.requests.users, len(self.prompts))):
                self.env.process(self.send_next_of(user, 0.0))
        self.env.run()
        assert self.ended == len(self.prompts), "a request was lost"
        self.fleet.book()
        if len(self.marks) == 2:
            self.rows.span = between(*sorted(self.marks, key=lambda mark: mark.at))
        return self.rows

    # A part of the run is counted.

    def count_span(self, start: Seconds, end: Seconds | None) -> None:
        """Count the part of the run from start to end; without an end, to the last arrival."""
        CallUrgently(self.env, start, self.mark)
        if end is None:
            self.counts_to_the_last = True
        else:
            CallUrgently(self.env, end, self.mark)

    def count_arrival(self) -> None:
        """Count an arrival, and end the part that lasts to the last one."""
        self.arrived += 1
        if self.counts_to_the_last and self.arrived == len(self.prompts):
            self.mark()

    def mark(self, _: simpy.Event | None = None) -> None:
        """Keep what each replica did up to now."""
        self.marks.append(self.fleet.mark())

    # Requests come.

    def schedule_arrival(self) -> None:
        """Wait for the next arrival of an open loop."""
        if self.coming is not None:
            wait = max(0.0, self.coming[1] + self.fleet.overhead - self.env.now)
            CallUrgently(self.env, wait, self.arrive)

    def arrive(self, _: simpy.Event) -> None:
        """Send a request that arrives. The next arrival is scheduled before that.

        So a replica sees whether more requests arrive at this instant.
        """
        assert self.coming is not None
        number, arrival = self.coming
        if arrival + self.fleet.overhead > self.env.now:
            # The wait ended a rounding error early.
            self.schedule_arrival()
        else:
            self.coming = next(self.arrivals, None)
            self.schedule_arrival()
            most = self.requests.most_in_flight
            if most is not None and self.in_flight >= most:
                self.unsent.append(number)
                return
            self.in_flight += 1
            self.count_arrival()
            self.fleet.send(self.request(number, arrival))

    def send_turn(self, number: int, at: Seconds) -> ServiceProcess:
        """Send a request that waited for an answer at a time [s]."""
        yield from self.wait_until(at + self.fleet.overhead)
        self.send_follow_up(number, at)

    def send_next_of(self, user: int, at: Seconds) -> ServiceProcess:
        """Send the next request of a user of a closed loop at a time [s], if one is left."""
        yield from self.wait_until(at + self.fleet.overhead)
        if (number := self.users.next_request(user)) is not None:
            if self.front_end:
                delay = self.front_end.delay(self.env.now, self.prompts[number])
                yield from self.wait_until(self.env.now + delay)
            self.send_follow_up(number, at)

    def wait_until(self, at: Seconds) -> ServiceProcess:
        """Wait until the clock has reached a time. A single wait may end a rounding error early."""
        while at > self.env.now:
            yield CallUrgently(self.env, at - self.env.now)

    def send_follow_up(self, number: int, at: Seconds) -> None:
        """Send a request that follows an answer, now, with the arrival `at` [s]."""
        self.rows.arrival[number] = at
        self.count_arrival()
        self.fleet.send(self.request(number, at))

    def request(self, number: int, arrival: Seconds) -> Request:
        """Return a request as it is sent."""
        priority = self.requests.priority
        request = Request(number, arrival, self.prompts[number], self.outputs[number], 0)
        if self.caching:
            request.content = self.requests.content(number)
        if priority is not None:
            request.priority = int(priority[number])
        return request

    def on_end(self, request: Request, at: Seconds) -> None:
        """Record that a request has ended, and send the requests that wait for its answer."""
        rows, requests = self.rows, self.requests
        self.ended += 1
        rows.ended[request.id] = at
        if self.progress:
            self.progress(self.ended, len(self.prompts))
        if requests.users is not None and self.users.left:
            user = self.users.sender(request.id)
            think = self.think if requests.think is None else float(requests.think[request.id])
            self.env.process(self.send_next_of(user, at + think))
        self.in_flight -= 1
        if self.unsent:
            self.in_flight += 1  # before it is sent, or an arrival could take its place
            number = self.unsent.popleft()
            came = float(requests.arrival[number])
            self.env.process(self.send_turn(number, max(at, came)))
        for number in self.next_turns.get(request.id, ()):
            if rows.reason[request.id]:
                self.skip_turn(number, at)
            else:
                assert requests.think is not None
                send = at + float(requests.think[number])
                if requests.gap is not None:
                    send = max(send, request.arrival + float(requests.gap[number]))
                self.env.process(self.send_turn(number, send))

    def skip_turn(self, number: int, at: Seconds) -> None:
        """End a turn of a session whose turn before it was not answered."""
        self.rows.arrival[number] = at
        self.rows.reason[number] = "the turn before it was not answered"
        self.count_arrival()
        self.on_end(Request(number, at, 0, 0, 0), at)
