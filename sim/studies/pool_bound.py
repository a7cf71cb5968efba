"""A bound of the goodput of prefill and decode pools: that of the pool that binds.

    pools_point(scenario, members).load  # request/s, or users of a closed loop

As `sim.studies.bound` it assumes steps without gaps, requests of mean length, and no waiting.
Left out: transfers, the hand-over, and the KV cache that the prefill pool holds meanwhile.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.cost.energy import Tally
from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.work import Work
from sim.planning.deployment import Deployment
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.studies.bound import (
    cached_prefix,
    decode_counts,
    first_token,
    mean_step,
    paced_step,
)
from sim.units import RequestsPerSecond, Seconds
from sim.workload.slo import SLO


@dataclass(frozen=True)
class PoolPoint:
    """The highest rate of one pool, and what a request costs it there.

    rate: request/s of all its replicas. tally: the work of one request.
    seconds: of the phase in a request's life [s].
    """

    rate: RequestsPerSecond
    tally: Tally
    seconds: float


@dataclass(frozen=True)
class PoolsPoint:
    """The highest load of both pools within the SLO, by the bound.

    load: request/s, or users of a closed loop. rate: request/s in both cases.
    rates: request/s by member. tallies: the work of one second, by member.
    """

    load: float
    rate: RequestsPerSecond
    rates: dict[str, RequestsPerSecond]
    tallies: dict[str, Tally]


def pools_point(scenario: Scenario, members: Mapping[str, Member]) -> PoolsPoint | None:
    """Return the load at which one of the pools is full; None if no load is within the SLO.

    In a closed loop the users are the rate times TTFT, answer and pause (Little's law).
    """
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    prompt, output = workload.mean_prompt, workload.mean_output
    cached = {name: cached_prefix(scenario, name, member) for name, member in members.items()}
    resident = next(cached[name] for name, member in members.items() if member.pool == "decode")
    points: dict[str, PoolPoint] = {}
    for name, member in members.items():
        if member.pool == "prefill":
            point = prefill_point(member.deployment, prompt, slo, cached[name], resident)
        else:
            point = decode_point(member.deployment, prompt, output, slo)
        if point is None:
            return None
        points[name] = point
    rates = {name: members[name].replicas * point.rate for name, point in points.items()}
    load = rate = min(rates.values())
    if workload.pause is not None:
        load *= sum(point.seconds for point in points.values()) + workload.pause
    tallies = {name: point.tally.scaled(rate) for name, point in points.items()}
    return PoolsPoint(load, rate, rates, tallies)


def prefill_point(
    deployment: Deployment, prompt: float, slo: SLO, cached: int, resident: int
) -> PoolPoint | None:
    """Return the highest rate of a prefill replica; None if no prompt meets the SLO's TTFT.

    A step has one prompt or a part of it, or as many prompts as fill the token budget.
    cached: tokens of a prompt that are not computed. resident: tokens of a prompt that the decode
    replica has, so that they do not travel.
    """
    best: PoolPoint | None = None
    computed = max(1.0, prompt - cached)
    budget, alone = deployment.limits.token_budget, first_token(deployment, prompt, cached)
    for chunk in {min(budget, max(1, round(computed))), budget}:
        work = mean_step(deployment, 0, 0.0, chunk, prompt, cached)
        time, passing = deployment.costs.pass_times(work)
        seconds = max(alone, passing)
        rate = chunk / computed / time
        if (slo.ttft is None or seconds <= slo.ttft) and (best is None or rate > best.rate):
            tally, steps = Tally(), computed / chunk
            tally.batch_steps[chunk] += steps
            tally.add_chunks(work, steps)
            tally.steps_without_sampling = max(0.0, steps - 1)
            tally.logits = 1
            tally.sent = prompt_kv_bytes(deployment.layout, round(prompt) - resident)
            best = PoolPoint(rate, tally, seconds)
    return best


def decode_point(
    deployment: Deployment, prompt: float, output: float, slo: SLO
) -> PoolPoint | None:
    """Return the highest rate of a decode replica; None if no step meets the SLO's TPOT.

    With speculation a step yields several tokens, as in `sim.studies.bound.load_point`.
    """
    width, mean, limits = deployment.limits.width, deployment.layout.mean_tokens, deployment.limits
    steps, context = max(1.0, (output - 1) / mean), prompt + output / 2
    concurrent = limits.max_concurrent(math.ceil(prompt + output))
    in_flight = limits.fill or limits.micro_batches
    best: PoolPoint | None = None
    most = min(concurrent // in_flight, limits.token_budget // width) if concurrent else 0

    def step_of(k: int) -> tuple[Work, Seconds, Seconds]:
        work = mean_step(deployment, k, context, 0, prompt)
        return work, *paced_step(deployment, work)

    counts = decode_counts(max(1, most), lambda k: slo.allows_tpot(step_of(k)[2]))
    for k in counts if concurrent else ():
        work, time, tpot = step_of(k)
        rate = k / steps / time
        if slo.allows_tpot(tpot) and (best is None or rate > best.rate):
            tally = Tally()
            tally.batch_steps[k * width] += steps / k
            tally.context = steps * work.context / k
            tally.windowed_context = steps * work.windowed_context / k
            tally.logits = steps  # the decodes bring their drafts
            if width > 1:
                tally.decode_steps, tally.decodes = steps / k, steps
            best = PoolPoint(rate, tally, steps * mean * tpot)
    return best
