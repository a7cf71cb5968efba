"""Simulations of measured points: the same requests, served by the same system.

simulate(point)  # {'tpot': ..., 'itl': ..., 'ttft': ...}, in seconds
"""

import math
from collections import deque
from dataclasses import replace
from functools import lru_cache
from statistics import mean

import numpy as np

from sim.cost.plan import PlanError
from sim.cost.system_costs import SystemCosts
from sim.hardware.engine import Engine
from sim.planning.deployment import Deployment
from sim.planning.single_request import time_single_request
from sim.results.metrics import latencies, output_between
from sim.scenario.layout import deploy_fitting, deploy_members
from sim.scenario.pools import Pools
from sim.scenario.replicas import Member, pool_transfer, serve_requests
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.front_end import FrontEndTimes
from sim.units import Seconds
from sim.validation.points import MeasuredPoint
from sim.workload.arrivals import ClosedLoop
from sim.workload.lengths import Length, LengthField

LOOP_ROUNDS = 10  # requests of each user of a closed loop, as in the serving measurements
MANY_USERS, SHORT_ROUNDS = 50, 3  # of pools: rounds that are simulated with more users than this
FULL_ROUNDS = 5  # the same if it is measured from its second round on
# Tokens of a reply that are simulated at most: its beat and TPOT hardly depend on more.
REPLY_PROMPT, REPLY_OUTPUT = 512, 64
PREFILL_BUSY = "prefill_busy"  # of pools, among the times: a share, see `pooled_times`
HOST_KEYS = ("layer_launch", "block_kernels")  # of an engine; a host may replace them
_LAST_COSTS: deque[SystemCosts] = deque(maxlen=16)


def simulate(point: MeasuredPoint) -> dict[str, Seconds]:
    """Return the simulated time of each metric of a point, as it was measured.

    A TTFT includes what client, HTTP and tokenizer of the point's host add.
    Raises: PlanError if the system does not fit, or cannot be laid out.
    """
    assert point.system is not None
    times = serve_point(point)
    if "ttft" in times:
        times["ttft"] += host_overhead(point.system.engine, point)
    return times


def serve_point(point: MeasuredPoint) -> dict[str, Seconds]:
    """Return the times of a point's requests, served by its system.

    `alone`: one request.
    `batch`: all requests at time 0; the last one counts.
    `users`: a closed loop; means over its requests.
    `full`: a closed loop with as many users as fit; see `_full_loop_times`.
    `reply`: single requests; see `reply_times`.
    Left out: what the host adds to a TTFT (`host_overhead`).
    Raises: PlanError if the system does not fit, or cannot be laid out.
    """
    assert point.system is not None
    point, front_end = _on_its_host(point, point.system)
    scenario = point_scenario(point, max(1, point.users))
    if point.pools:
        return pooled_times(point, scenario)
    deployment = sharing_costs(deploy_fitting(scenario, "measured"))
    limits = deployment.limits
    tokens = point.prompt + point.output
    if limits.kv_tokens_needed(tokens) > limits.kv_tokens:
        raise PlanError(f"{tokens} tokens exceed the KV room of {limits.kv_tokens}")
    # The point was measured, so it ran, even beyond the context that the model was trained for.
    deployment = replace(deployment, limits=replace(limits, context=max(limits.context, tokens)))
    if point.pattern == "alone":
        single = scenario.unloaded(deployment)
        return {"tpot": single.tpot, "itl": single.tpot, "ttft": single.ttft}
    if point.pattern == "full":
        return _full_loop_times(point, deployment)
    if point.pattern == "reply":
        return reply_times(point, deployment)
    rows = serve_requests(
        scenario,
        "measured",
        {"measured": Member(deployment)},
        scenario.workload.draw(0),
        front_end=front_end if point.pattern == "users" else None,
    )
    times = {name: float(values.mean()) for name, values in latencies(rows).items() if len(values)}
    if point.pattern == "users":
        return times | ({"itl": times["tpot"]} if "tpot" in times else {})
    first, last = float(np.nanmax(rows.first_token)), float(np.nanmax(rows.last_token))
    whole = last if point.prefill else (last - first) * point.output / (point.output - 1)
    return times | {"ttft": first, "e2el": whole}


def sharing_costs(deployment: Deployment) -> Deployment:
    """Return a deployment with the costs of an equal layout, if one of the last ones had them.

    The points of one configuration differ in their users alone.  Costs keep the times of each
    number of tokens, which most of these points need.
    """
    for costs in _LAST_COSTS:
        if costs.layout == deployment.layout:
            return replace(deployment, costs=costs)
    _LAST_COSTS.append(deployment.costs)
    return deployment


def pooled_times(point: MeasuredPoint, scenario: Scenario) -> dict[str, Seconds]:
    """Return the mean times of requests that one pool prefills and another one decodes.

    `kv_transfer`: the time of a prompt's KV cache on the links.
    `PREFILL_BUSY`: not a time, but the share of it in which a prefill replica computes, in the mean
    and until the last prompt is computed.
    The client's first token comes from the decode pool, as in vLLM, SGLang and TensorRT-LLM.
    So its TTFT holds the hand-over and a decode step, and its TPOT does not.
    With many users few rounds are simulated, and each but the first counts for several.
    Raises: PlanError if a pool does not fit, or has no room for a request.
    """
    members = deploy_members(scenario, "measured")
    tokens, transfer = point.prompt + point.output, pool_transfer(scenario, "measured")
    for name, member in members.items():
        limits = member.deployment.limits
        if limits.kv_tokens_needed(tokens) > limits.kv_tokens:
            raise PlanError(f"{name}: {tokens} tokens exceed the KV room of {limits.kv_tokens}")
        limits = replace(limits, context=max(limits.context, tokens))
        deployment = replace(sharing_costs(member.deployment), limits=limits)
        members[name] = replace(member, deployment=deployment)
    rows = serve_requests(scenario, "measured", members, scenario.workload.draw(0))
    moved, prefills = rows.transfers, members["measured.prefill"].replicas
    assert moved
    computing = mean(float(stages.max()) for stages in rows.busy[:prefills])
    prefill_busy = computing / float(np.nanmax(rows.first_token))
    received = moved.end + (transfer.handover or 0.0)
    decoding, decoded = rows.last_token - received, rows.requests.output - 1
    steps = decoded if rows.steps is None else rows.steps
    times = {
        "ttft": received + decoding / steps - rows.arrival,
        "tpot": decoding / decoded,
        "kv_transfer": moved.end - moved.start,
    }
    round_of = np.arange(len(rows.arrival)) // point.users
    weights = np.where(round_of == 0, 1.0, (LOOP_ROUNDS - 1) / max(1, round_of[-1]))
    done = rows.finished
    return {PREFILL_BUSY: prefill_busy} | {
        metric: float(np.average(values[done], weights=weights[done]))
        for metric, values in times.items()
    }


def host_overhead(engine: Engine, point: MeasuredPoint) -> Seconds:
    """Return what client, HTTP and tokenizer add to the TTFT of a point on its host.

    It is 0 if the point's `host` is empty, because the engine alone was timed. On a host that the
    engine's file does not have, it is the mean of those that the file has.
    Left out: the front end's busy time, if `serve_point` simulates the front end.
    """
    known = engine.hosts
    hosts = [known[point.host]] if point.host in known else list(known.values())
    if not point.host or not hosts:
        return 0.0
    prompt = _length(point.prompt, point.spread).mean
    seconds = mean(host.request + prompt * host.prompt_token for host in hosts)
    simulates_front_end = point.pattern == "users" and not point.pools and point.host in known
    if simulates_front_end:
        return seconds
    return seconds + mean(host.busy_request + prompt * host.busy_prompt_token for host in hosts)


def _on_its_host(
    point: MeasuredPoint, system: System
) -> tuple[MeasuredPoint, FrontEndTimes | None]:
    """Return a point with its host's launches and kernels, and the host's front end."""
    host = system.engine.hosts.get(point.host)
    if host is None:
        return point, None
    own = {key: value for key in HOST_KEYS if (value := getattr(host, key))}
    if own:
        engine = system.engine.model_copy(update=own)
        point = replace(point, system=system.model_copy(update={"engine": engine}))
    busy = FrontEndTimes(host.busy_request, host.busy_prompt_token, host.busy_token)
    return point, busy if any(busy) else None


def _full_loop_times(point: MeasuredPoint, deployment: Deployment) -> dict[str, Seconds]:
    """Return the time of a token in a closed loop with as many users as fit.

    Counted from the second round to the last arrival (Little's law).  The makespan of a short run
    would count the end, where the system empties.
    """
    limits = deployment.limits
    users = point.users or min(
        limits.kv_tokens // limits.kv_tokens_needed(point.prompt + point.output), limits.sequences
    )
    scenario = point_scenario(point, users, FULL_ROUNDS)
    rows = serve_requests(
        scenario, "measured", {"measured": Member(deployment)}, scenario.workload.draw(0)
    )
    begin, end = float(np.sort(rows.last_token)[users]), float(np.nanmax(rows.arrival))
    return {"throughput": (end - begin) / output_between(rows, begin, end, None)[2]}


def reply_times(point: MeasuredPoint, deployment: Deployment) -> dict[str, Seconds]:
    """Return the unloaded times of a service's reply that are compared with its floors.

    `beat`: what each prompt token after the first adds to the TTFT.  In a pipeline that takes one
    token for each beat, it is the beat.
    """
    prompt, output = min(point.prompt, REPLY_PROMPT), min(point.output, REPLY_OUTPUT)
    unloaded = time_single_request(deployment, prompt, output)
    times = {"tpot": unloaded.tpot, "beat": prompt_time(deployment, prompt) / (prompt - 1)}
    if "ttft" in point.measured:
        times["ttft"] = time_single_request(deployment, point.prompt, 2).ttft
    return times


def prompt_time(deployment: Deployment, prompt: int) -> Seconds:
    """Return the TTFT of a prompt minus the TTFT of a prompt of one token."""
    return (
        time_single_request(deployment, prompt, 2).ttft - time_single_request(deployment, 1, 2).ttft
    )


def point_scenario(point: MeasuredPoint, users: int, rounds: int | None = None) -> Scenario:
    """Return the scenario of a point: users in a closed loop, with some requests for each.

    rounds: requests of each user; None means what the point's pattern needs.
    """
    assert point.system is not None
    assert point.system.model is not None
    if rounds is None and point.pools and users > MANY_USERS:
        rounds = SHORT_ROUNDS
    rounds = rounds or (LOOP_ROUNDS if point.pattern == "users" else 1)
    prompt, output = _length(point.prompt, point.spread), _length(point.output, point.spread)
    workload = ClosedLoop(users=users, requests=users * rounds, prompt=prompt, output=output)
    system: System | Pools = point.system
    if of := point.pools:
        system = Pools(prefill=of.prefill, decode=point.system, transfer=of.transfer)
    return Scenario(
        id=point.id, model=point.system.model, workload=workload, systems={"measured": system}
    )


@lru_cache(maxsize=1024)
def _length(tokens: int, spread: bool) -> LengthField:
    """Return a length of `tokens`, or a uniform one from 80 to 100 % of them."""
    return Length(uniform=(math.ceil(0.8 * tokens), tokens)) if spread else Length(fixed=tokens)
