"""Equal replicas in a closed loop of equal requests: one is simulated, and stands for all.

    served(scenario, name, members, requests)  # the rows of all replicas

The users of each replica send, wait and pause together. So the router returns to each replica as
many requests as end there, and all replicas make the same steps.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sim.results.rows import Rows
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.policy import least_loaded
from sim.workload.requests import RequestBatch


def alike(scenario: Scenario, name: str, members: Mapping[str, Member]) -> int:
    """Return the number of replicas of a system that make the same steps; 1 if they may differ.

    They make the same steps if the same number of users is at each.
    """
    system = scenario.systems[name]
    if not isinstance(system, System) or not scenario.workload.in_step:
        return 1
    luck = system.speculate or system.link_errors or system.exceptions or system.outages
    if luck or scenario.by_chip(name) or system.routing != "expected":
        return 1
    # A request that is refused or cancelled ends before the others of its replica.
    turned_away = system.max_waiting is not None or system.deadline is not None
    if turned_away or system.router is not least_loaded:
        return 1
    return members[name].replicas


def served(
    scenario: Scenario, name: str, members: Mapping[str, Member], requests: RequestBatch
) -> Rows:
    """Return the rows of requests on a system. One of equal replicas is simulated.

    Requests of one moment are numbered replica by replica.
    Left out: the counts of gaps between tokens, which are those of one replica.
    """
    times, users = alike(scenario, name, members), requests.users or 0
    if times == 1 or not users or users % times or len(requests.prompt) % times:
        return serve_requests(scenario, name, members, requests)
    deployment = members[name].deployment
    layout = replace(deployment.layout, plan=replace(deployment.layout.plan, replicas=1))
    part = replace(requests.first(len(requests.prompt) // times), users=users // times)
    one = {name: Member(replace(deployment, layout=layout))}
    return repeated(serve_requests(scenario, name, one, part), requests, times)


def repeated(rows: Rows, requests: RequestBatch, times: int) -> Rows:
    """Return the rows of several replicas, each of which does what one replica did.

    requests: those of all replicas.
    """
    values: dict[str, object] = {
        column: np.repeat(value, times)
        for column, value in vars(rows).items()
        if isinstance(value, np.ndarray)
    }
    numbers = np.tile(np.arange(times), len(rows.arrival))
    values["replica"] = np.where(rows.replica.repeat(times) < 0, -1, numbers)
    values["reason"] = [reason for reason in rows.reason for _ in range(times)]
    for key in ("systems", "busy", "kv_peak", "kv_tokens", "tallies", "replays"):
        values[key] = getattr(rows, key) * times
    if span := rows.span:
        values["span"] = replace(span, tallies=span.tallies * times, busy=span.busy * times)
    whole = Rows(requests, gaps=rows.gaps, worked_until=rows.worked_until)
    vars(whole).update(values)
    return whole
