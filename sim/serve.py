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

from sim.cost import Costs
from sim.energy import Tally, summed
from sim.machine import Machines
from sim.passing import Chips, Leap, Passing, Pipelined, Replayed, Steps
from sim.policy import DEFAULT, Job, Limits, Policies, Router
from sim.records import Rows, Traffic
from sim.replica import Due, Outage, Replica, Setup
from sim.units import Seconds
from sim.workload import Requests

Waiting = Generator[simpy.Event, Any, Any]


class Done(NamedTuple):
    """What a replica did until it failed, or the run was over."""

    tally: Tally
    busy: NDArray[np.float64]
    replays: int
    kv_peak: int
    traffic: Traffic | None

    @classmethod
    def by(cls, replica: Replica) -> "Done":
        passing = replica.passing
        return cls(passing.tally, passing.busy.copy(), passing.replays, replica.room.kv_peak, passing.traffic)


def serve(
    requests: Requests,
    costs: Costs,
    limits: Limits,
    replicas: int = 1,
    overhead: Seconds = 0.0,
    think: Seconds = 0.0,
    policies: Policies = DEFAULT,
    machine: Machines | None = None,
    leap: bool = True,
) -> Rows:
    """Serves all requests on replicas that are alike, as `serve_fleet` does on any."""
    setups = [Setup(costs, limits, policies, overhead, machine, number=number) for number in range(replicas)]
    return serve_fleet(requests, setups, policies.router, think, leap)


def serve_fleet(
    requests: Requests,
    setups: Sequence[Setup],
    router: Router,
    think: Seconds = 0.0,
    leap: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """Serves all requests on a replica for each of the setups, and returns their rows.

    The router deals a request out when the smallest overhead of all replicas has passed; what more the replica has that gets it,
    passes then.  `think` is a user's pause between an answer and the next request, in a closed loop.  With `leap`, steps in which
    nothing changes are computed at once; without, one by one.
    """
    env = simpy.Environment()
    rows = Rows(requests)
    total = len(requests.arrival)
    left = deque(range(total))
    prompts, outputs = requests.prompt.tolist(), requests.output.tolist()
    ended = 0
    ids, priority = requests.hash_ids, requests.priority
    overhead = min(setup.overhead for setup in setups)
    deadlines = {setup.policies.deadline for setup in setups}
    patience = None if None in deadlines else max(each for each in deadlines if each)  # the longest of any replica
    next_turns: dict[int, list[int]] = {}
    if requests.after is not None:
        for number, before in enumerate(requests.after.tolist()):
            next_turns.setdefault(before, []).append(number)

    def submit(number: int, arrival: Seconds) -> None:
        send(job_of(number, arrival))

    def job_of(number: int, arrival: Seconds) -> Job:
        job = Job(number, arrival, prompts[number], outputs[number], 0)
        if ids:
            job.hash_ids = ids[number]
        if priority is not None:
            job.priority = int(priority[number])
        return job

    def send(job: Job) -> None:
        up = [replica for replica in fleet if replica.up] if failing else fleet
        if not up:
            held.append(job)
            if patience is not None:
                Timeout(env, max(0.0, job.arrival + patience - env.now)).callbacks.append(lambda _: give_up(job, patience))
            return
        replica = up[router(up, job) if len(up) > 1 else 0]
        if replica.overhead == overhead:
            replica.submit(job)
        else:
            replica.unfinished += 1  # on its way there
            Due(env, replica.overhead - overhead).callbacks.append(partial(hand_over, replica, job))

    def give_up(job: Job, deadline: Seconds) -> None:
        """Its deadline passes while no replica is up."""
        if job in held:
            held.remove(job)
            rows.expire(job.id, deadline)
            finished(job, env.now)

    def again(job: Job) -> None:
        """Sends it at this instant, as one of several arrivals: whoever takes the first one sees that more come."""
        Due(env, 0.0).callbacks.append(lambda _: send(job))

    def hand_over(replica: Replica, job: Job, _: simpy.Event) -> None:
        replica.unfinished -= 1
        if replica.up:
            replica.submit(job)
        else:
            send(job)

    # Those whose arrival is nan come when an answer decides.
    arrivals = ((number, at) for number, at in enumerate(requests.arrival.tolist()) if at == at)

    coming = next(arrivals, None)

    def expect() -> None:
        """Waits for the next arrival of an open loop."""
        if coming is not None:
            Due(env, max(0.0, coming[1] + overhead - env.now)).callbacks.append(arrive)

    def arrive(_: simpy.Event) -> None:
        """It is there, and the one after it is waited for first: who looks sees if that is."""
        nonlocal coming
        assert coming is not None
        number, arrival = coming
        if arrival + overhead > env.now:  # the wait ended a rounding early
            expect()
        else:
            coming = next(arrivals, None)
            expect()
            submit(number, arrival)

    def ask(number: int | None, after: Seconds) -> Waiting:
        """A user's next request, sent at `after`."""
        while after + overhead > env.now:
            yield Due(env, after + overhead - env.now)
        if number is not None or left:
            number = left.popleft() if number is None else number
            rows.arrival[number] = after
            submit(number, after)

    def finished(job: Job, at: Seconds) -> None:
        nonlocal ended
        ended += 1
        progress(ended, total)
        if requests.users is not None and left:
            env.process(ask(None, at + think))
        for number in next_turns.get(job.id, ()):
            if rows.reason[job.id]:
                rows.arrival[number], rows.reason[number] = at, "the turn before it was not answered"
                finished(Job(number, at, 0, 0, 0), at)
            else:
                assert requests.think is not None
                env.process(ask(number, at + float(requests.think[number])))

    def down(number: int, outage: Outage, _: simpy.Event) -> None:
        """A replica fails: what it held is lost, and its requests begin anew or fail."""
        replica, now = fleet[number], env.now
        lost = replica.fail()
        failed[number].append(Done.by(replica))
        replica.passing.stop()
        for job in lost:
            rows.admitted[job.id] = rows.first_token[job.id] = math.nan
            if outage.requests == "fail":
                rows.failed[job.id], rows.reason[job.id] = True, "its replica failed"
                finished(job, now)
            else:
                rows.retries[job.id] += 1
                again(job_of(job.id, job.arrival))

    def up_again(number: int, _: simpy.Event) -> None:
        """It has a spare in its place and the weights, and is empty."""
        fleet[number] = build(number)
        while held:
            again(held.popleft())

    def build(number: int) -> Replica:
        setup = setups[number]
        costs, slots, spoils = setup.costs, setup.limits.slots, setup.spoils
        passing: Passing
        if setup.machine:
            passing = Chips(env, setup.machine(env, setup.number), rows.gaps)
        elif leap and not spoils and slots == costs.stages == 1:
            passing = Leap(env, costs, rows.gaps)
        elif leap and not spoils and costs.stages > 1 and not costs.launch:  # the kernel knows no host
            passing = Pipelined(env, costs, rows.gaps, slots, setup.limits.token_budget)
        else:
            passing = Steps(env, costs, rows.gaps)
        if spoils:
            passing = Replayed(env, passing, spoils, rows.gaps)
        return Replica(env, number, setup, passing, rows, finished)

    fleet = [build(number) for number in range(len(setups))]
    held: deque[Job] = deque()  # while no replica is up
    failed: list[list[Done]] = [[] for _ in setups]  # by replicas that are no more
    failing = any(setup.outages for setup in setups)
    for number, setup in enumerate(setups):
        for outage in sorted(setup.outages, key=lambda each: each.at):  # who is up again as it fails again is up first
            Due(env, outage.at).callbacks.append(partial(down, number, outage))
            Due(env, outage.at + outage.lasts).callbacks.append(partial(up_again, number))
    if requests.users is None:
        expect()
    else:
        for _ in range(min(requests.users, total)):
            env.process(ask(None, 0.0))
    env.run()
    for replica in fleet:
        replica.passing.close()
    rows.systems = [replica.system for replica in fleet]
    done = [[*before, Done.by(replica)] for before, replica in zip(failed, fleet, strict=True)]
    rows.tallies = [summed(each.tally for each in lives) for lives in done]
    rows.busy = [np.sum([each.busy for each in lives], axis=0) for lives in done]
    rows.replays = [sum(each.replays for each in lives) for lives in done]
    rows.kv_peak = [max(each.kv_peak for each in lives) for lives in done]
    carried = [[each.traffic for each in lives if each.traffic] for lives in done]
    rows.traffic = {number: Traffic.summed(lives) for number, lives in enumerate(carried) if lives}
    rows.kv_tokens = [replica.limits.kv_tokens for replica in fleet]
    assert ended == total, "a request was lost"
    return rows
