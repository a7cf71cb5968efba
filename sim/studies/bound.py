"""A bound of a system's goodput from the slowest stage and the SLO: an estimate, not a proof.

    load_bound(scenario, members)  # request/s, or users of a closed loop

The bound assumes steps without gaps. If all requests are equal, none waits in an open loop. No
simulated load is higher if all users of a closed loop send equal requests whose prompts fit in one
step.
The bound takes a fraction of a second, and a simulated capacity takes many. So searches begin
with the bound.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sim.cost.energy import Tally
from sim.cost.work import Work
from sim.planning.deployment import Deployment
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.studies.late_requests import LateRequests
from sim.studies.loop_users import served_users, waiting_users
from sim.studies.paces import Loop, Pace, Paces, loop_of, mean_step
from sim.studies.typical_request import TypicalRequest, typical_request
from sim.units import Seconds
from sim.workload.slo import SLO

SIMULATED = 5  # plans of a search, the best of each shape first
# Plans below this share of the highest bound are not simulated. In `fleet` the best plan of 32 H100
# has 0.68 of it, as the bounds of more replicas are farther off.
NEAR_BOUND = 0.65

T = TypeVar("T")


@dataclass(frozen=True)
class LoadPoint:
    """The highest load of a deployment within the SLO, by the bound, over all replicas.

    load: request/s, or users of a closed loop. rate: request/s in both cases.
    tally: the work of one second.
    endless: whether any number of further users would only wait, and miss no limit.
    """

    load: float
    rate: float
    tally: Tally
    endless: bool = False


def load_bound(scenario: Scenario, members: Mapping[str, Member]) -> float:
    """Return an estimate of the load that a system takes within the SLO, summed over members."""
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    request, loop = typical_request(scenario), loop_of(workload)
    return sum(
        member.copies
        * goodput_bound(
            member.deployment, request, slo, loop, cached_prefix(scenario, name, member)
        )
        for name, member in members.items()
    )


def cached_prefix(scenario: Scenario, name: str, member: Member) -> int:
    """Return the tokens of each prompt that a member finds in its cache: full blocks.

    Left out: what a session's earlier turns leave in the cache.
    """
    if not scenario.plain(name).prefix_caching:
        return 0
    shared, block = (
        getattr(scenario.workload, "shared_prefix", 0),
        member.deployment.limits.kv_block,
    )
    return shared // block * block


def goodput_bound(
    deployment: Deployment,
    request: TypicalRequest,
    slo: SLO,
    loop: Loop | None = None,
    cached: float = 0.0,
) -> float:
    """Return the load of `load_point`; 0 if no load is within the SLO."""
    point = load_point(deployment, request, slo, loop, cached)
    return point.load if point else 0.0


def load_point(
    deployment: Deployment,
    request: TypicalRequest,
    slo: SLO,
    loop: Loop | None = None,
    cached: float = 0.0,
) -> LoadPoint | None:
    """Return an estimate of the request/s of all replicas, without gaps at the slowest stage.

    Return None if no load is within the SLO.
    request: lengths of the requests.
    cached: tokens of the prompt that are in the cache, and are not computed.
    A micro-batch has k sequences and the prompt tokens that replace those which end:
    c = k (prompt - cached) / (output - 1).  A step takes the time t of the slowest stage, and
    k / (output - 1) requests end with it.  The rate is k / (output - 1) / t for the best k.
    With speculation, output - 1 is divided by the mean tokens of a step, and each sequence takes
    `width` tokens of the budget.
    The KV cache, the engine's limits, and TPOT and E2EL of the SLO limit k.  If k + c exceeds the
    token budget even for k = 1, the tokens take several steps.
    If lengths differ, long answers are in more steps and keep their room for longer, and a late
    answer must be within the E2EL (`TypicalRequest`).

    With a closed loop, the result is its users.  They are the rate times the time between two
    requests of a user (Little's law): first token, answer and pause.  At the largest k the first
    token comes as late as the SLO allows.  At a smaller k no request waits.
    If all users may be in step (`Loop.in_step`), their prompts come together, in groups that fill
    the token budget, or as large as the SLO's TTFT allows.  Other steps have no prompts, and an
    answer waits only for the prompts of other groups.  All users also pause together.
    If requests or pauses differ, the number of users at a replica varies. The mean is then so low
    that the SLO's share of the requests is served in time (`sim.studies.loop_users`).
    If lengths differ, prompts also wait for one another and delay answers. The rate is then so low
    that enough requests of each kind are in time (`sim.studies.late_requests`).
    Left out: users that wait, if no limit of the SLO includes waiting (`endless`); batches that
    differ in length.
    """
    paces = Paces(deployment, request, cached, slo, loop)
    if not deployment.limits.max_concurrent(math.ceil(request.prompt + request.output)):
        return None
    best = _best_pace(paces)
    if best is None:
        return None
    load, rate, work, full = best
    if request.sample:
        late = LateRequests(paces, request.sample).most(rate)
        if late is None:
            return None
        if late.rate < rate:
            load, rate = min(load, late.users) if loop else late.rate, late.rate
            work, full = paces.pace(False, late.sequences).work, False
    decoded, read = rate * paces.steps, rate * paces.computed
    tally = work_of_a_second(deployment, work, decoded, read, (request.prompt, cached))
    replicas = deployment.layout.plan.replicas
    endless = loop is not None and full and not (slo.ttft or slo.e2el)
    return LoadPoint(replicas * load, replicas * rate, tally.scaled(replicas), endless)


def _best_pace(paces: Paces) -> tuple[float, float, Work, bool] | None:
    """Return the highest load of a replica, its request/s and step, and whether others would wait.

    None if no pace is within the SLO.
    """
    slo, loop = paces.slo, paces.loop
    best: tuple[float, float, Work, bool] | None = None
    for pace, k, most in paces.choices():
        rate = load = k / paces.steps / pace.time
        step = pace.work
        if loop is not None:
            first, answer = paces.phases(pace)
            pausing = pace.in_step and loop.pause > 0
            wait = 0.0
            if k == most and not pausing:
                wait = _allowed_wait(slo, paces.late_answer(pace))
            if pausing:  # all together, so a pause adds no users and lowers the rate
                load *= first + answer
                rate = load / (first + answer + loop.pause)
            elif paces.in_step:
                load *= max(wait, first) + answer + loop.pause
            else:
                load, rate, step = _unlike_users(paces, pace, k, wait)
            # Users out of step come back into step, unless some of them wait for room.
            if not (pace.in_step or (best and best[3])) and paces.stay_in_step(load):
                continue
        if best is None or load > best[0]:
            best = load, rate, step, k == most
    return best


def near_best(
    ordered: list[tuple[float, T]], shape: Callable[[T], object]
) -> list[tuple[float, T]]:
    """Return the few plans near the highest bound that a search simulates, the highest first.

    ordered: bounds and plans, the highest bound first.
    Bounds of one shape err alike. With the highest bounds alone, one shape could take all places,
    and a better plan of another shape would not be simulated. So the best of each shape come first.
    """
    near = [pair for pair in ordered if pair[0] >= NEAR_BOUND * ordered[0][0]]
    shapes = [shape(plan) for _, plan in near]
    first = [pair for n, pair in enumerate(near) if shapes.index(shapes[n]) == n]
    others = [pair for n, pair in enumerate(near) if shapes.index(shapes[n]) != n]
    return sorted((first + others)[:SIMULATED], key=lambda pair: -pair[0])


def _allowed_wait(slo: SLO, answer: Seconds) -> Seconds:
    """Return how late the first token may come within the SLO.

    answer: time from the first token to the last.
    """
    waits = [slo.ttft, slo.e2el and max(0.0, slo.e2el - answer)]
    return min((limit for limit in waits if limit is not None), default=0.0)


def _unlike_users(paces: Paces, pace: Pace, k: int, wait: Seconds) -> tuple[float, float, Work]:
    """Return the users and request/s of a replica if requests or pauses differ, and its mean step.

    The larger one of two estimates: all micro-batches are full and the other users wait or pause,
    or micro-batches have fewer sequences on average, and are rarely fuller than the SLO allows.
    pace: with k sequences in each micro-batch, the most that the SLO allows.
    wait: how late the first token may come if users wait for room.
    """
    assert paces.loop is not None
    share, pause = paces.slo.share, paces.loop.pause
    rate, (first, answer) = k / paces.steps / pace.time, paces.phases(pace)
    served = rate * (first + answer)
    waiting = waiting_users(rate * (max(0.0, wait - first) + pause), share)
    always_full = served + waiting, rate, pace.work
    fewer = max(1, round(k * served_users(served, rate * pause, share) / served))
    pace = paces.pace(False, fewer)
    rate, (first, answer) = fewer / paces.steps / pace.time, paces.phases(pace)
    rarely_full = rate * (first + answer + pause), rate, pace.work
    return max(always_full, rarely_full, key=lambda point: point[0])


def work_of_a_second(
    deployment: Deployment, step: Work, decoded: float, read: float, prompt: tuple[float, float]
) -> Tally:
    """Return the work of a second on one replica.

    step: the step at the highest load. decoded: decodes in a second, each of a step's width.
    read: prompt tokens in a second. They have steps of their own if `step` has none of them.
    prompt: tokens of a prompt, and those of them that are cached.
    """
    computed = max(1.0, prompt[0] - prompt[1])
    tally, steps = Tally(), decoded / step.decodes
    tally.batch_steps[step.tokens] += steps
    tally.context += steps * step.context
    tally.windowed_context += steps * step.windowed_context
    tally.logits += decoded + read / computed  # the decodes bring their drafts
    if step.width > 1:
        tally.decode_steps += steps
        tally.decodes += decoded
    if step.prompt_tokens:
        tally.add_chunks(step, steps)
        return tally
    chunk = min(deployment.limits.token_budget, max(1, round(computed)))
    work = mean_step(deployment, 0, 0.0, chunk, *prompt)
    tally.batch_steps[chunk] += read / chunk
    tally.add_chunks(work, read / chunk)
    tally.steps_without_sampling -= read / max(computed, chunk)  # the last chunk of each prompt
    return tally
