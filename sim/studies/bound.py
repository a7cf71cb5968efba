"""A bound of a system's goodput from the slowest stage and the SLO: an estimate, not a proof.

    load_bound(scenario, members)  # request/s, or users of a closed loop

It assumes steps without gaps, requests of mean length, and no waiting. It takes a fraction of a
second, and a capacity takes many seconds. So searches begin with the bound.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sim.cost.energy import Tally
from sim.cost.work import Work, decodes_at
from sim.planning.deployment import Deployment
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.units import Seconds
from sim.workload.slo import SLO

SIMULATED = 5  # plans of a search, the best of each shape first
# Plans below this share of the highest bound are not simulated. Bounds are not farther off.
NEAR_BOUND = 0.75

T = TypeVar("T")


@dataclass(frozen=True)
class LoadPoint:
    """The highest load of a deployment within the SLO, by the bound, over all replicas.

    load: request/s, or users of a closed loop. rate: request/s in both cases.
    tally: the work of one second.
    """

    load: float
    rate: float
    tally: Tally


def load_bound(scenario: Scenario, members: Mapping[str, Member]) -> float:
    """Return an estimate of the load that a system takes within the SLO, summed over members."""
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    prompt, output, think = workload.mean_prompt, workload.mean_output, workload.pause
    return sum(
        member.copies
        * goodput_bound(
            member.deployment, prompt, output, slo, think, cached_prefix(scenario, name, member)
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
    prompt: float,
    output: float,
    slo: SLO,
    think: Seconds | None = None,
    cached: float = 0.0,
) -> float:
    """Return the load of `load_point`; 0 if no load is within the SLO."""
    point = load_point(deployment, prompt, output, slo, think, cached)
    return point.load if point else 0.0


def load_point(
    deployment: Deployment,
    prompt: float,
    output: float,
    slo: SLO,
    think: Seconds | None = None,
    cached: float = 0.0,
) -> LoadPoint | None:
    """Return an estimate of the request/s of all replicas, without gaps at the slowest stage.

    prompt, output: mean tokens of a request.  None if no load is within the SLO.
    cached: tokens of the prompt that are in the cache, and are not computed.
    A micro-batch has k sequences and the prompt tokens that replace those which end:
    c = k (prompt - cached) / (output - 1).  A step takes the time t of the slowest stage, and
    k / (output - 1) requests end with it.  The rate is k / (output - 1) / t for the best k.
    With speculation, output - 1 is divided by the mean tokens of a step, and each sequence takes
    `width` tokens of the budget.
    The KV cache, the engine's limits and the SLO's TPOT limit k.  If k + c exceeds the token budget
    even for k = 1, the tokens take several steps.

    With a pause `think`, the result is users of a closed loop.  They are the rate times the time
    between two requests of a user (Little's law): first token, answer and pause.  At the largest k
    the first token comes as late as the SLO allows.  At a smaller k no request waits.
    """
    limits, replicas = deployment.limits, deployment.layout.plan.replicas
    width, mean = limits.width, deployment.layout.mean_tokens
    steps, context = max(1.0, (output - 1) / mean), prompt + output / 2
    concurrent = limits.max_concurrent(math.ceil(prompt + output))
    if not concurrent:
        return None
    in_flight = limits.fill or limits.micro_batches
    computed = max(1.0, prompt - cached)
    needed = computed + width * steps  # tokens that the steps of a request compute
    most = max(1, min(concurrent // in_flight, int(limits.token_budget * steps / needed)))

    def step_of(k: int) -> tuple[float, Work, Seconds, Seconds]:
        """Return how many steps k + c tokens take, one of them, its time, and the TPOT."""
        passes = max(1.0, k * needed / steps / limits.token_budget)
        chunk = 0 if passes > 1 and k == 1 else round(k * computed / steps)
        work = mean_step(deployment, k, context, chunk, prompt, cached)
        return passes, work, *paced_step(deployment, work)

    best: tuple[float, float, Work] | None = None  # load and request/s of a replica, its step
    for k in decode_counts(most, lambda k: slo.allows_tpot(step_of(k)[3])):
        passes, work, time, tpot = step_of(k)
        if slo.allows_tpot(tpot):
            rate = load = k / steps / (time * passes)
            if think is not None:
                answer = steps * mean * tpot
                wait = _allowed_wait(slo, answer) if k == most else 0.0
                load *= max(wait, first_token(deployment, prompt, cached)) + answer + think
            if best is None or load > best[0]:
                best = load, rate, work
    if best is None:
        return None
    load, rate, work = best
    tally = work_of_a_second(deployment, work, rate * steps, rate * computed, (prompt, cached))
    return LoadPoint(replicas * load, replicas * rate, tally.scaled(replicas))


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


def decode_counts(most: int, within: Callable[[int], bool]) -> list[int]:
    """Return the numbers of sequences to try: powers of the root of 2, and `most`.

    within: whether a number is within the SLO. Larger ones are not if it is not.  The largest one
    that is within it is also tried, to 2 %.
    """
    counts = {min(most, round(2 ** (n / 2))) for n in range(2 * most.bit_length() + 2)}
    refused = next((k for k in sorted(counts) if not within(k)), None)
    if refused is None:
        return sorted(counts)
    allowed = max((k for k in counts if k < refused), default=1)
    while refused - allowed > max(1, refused // 50):
        middle = (allowed + refused) // 2
        allowed, refused = (middle, refused) if within(middle) else (allowed, middle)
    return sorted({*counts, allowed})


def _allowed_wait(slo: SLO, answer: Seconds) -> Seconds:
    """Return how late the first token may come within the SLO.

    answer: time from the first token to the last.
    """
    waits = [slo.ttft, slo.e2el and max(0.0, slo.e2el - answer)]
    return min((limit for limit in waits if limit is not None), default=0.0)


def first_token(deployment: Deployment, prompt: float, cached: float = 0.0) -> Seconds:
    """Return an estimate of the TTFT of an unloaded request.

    Its chunks enter one after another, and the last one passes all stages.
    """
    computed = max(1.0, prompt - cached)
    chunk = min(deployment.limits.prompt_budget, max(1, round(computed)))
    time, unloaded = step_times(deployment, mean_step(deployment, 0, 0.0, chunk, prompt, cached))
    return (math.ceil(computed / chunk) - 1) * time + unloaded


def mean_step(
    deployment: Deployment,
    decodes: int,
    context: float,
    chunk: int,
    prompt: float,
    cached: float = 0.0,
) -> Work:
    """Return the work of a step.

    decodes: sequences that decode, each at `context` positions. chunk: prompt tokens of the step.
    cached: tokens at the start of each prompt that are not computed.
    """
    window = deployment.limits.window or math.inf
    work = decodes_at(decodes, context, deployment.limits.window, deployment.limits.width)
    if chunk:
        middle = (prompt + cached) / 2  # position of a mean computed token
        work.prompt_tokens, work.chunks, work.cached = (
            chunk,
            max(
                1,
                round(chunk / max(1.0, prompt - cached)),
                -(-chunk // deployment.limits.prompt_budget),
            ),
            chunk + middle,
        )
        work.rank_prompt = -(-chunk // min(work.chunks, deployment.limits.ranks))
        work.attended, work.windowed_attended = chunk * middle, chunk * min(middle, window)
        work.windowed_cached = min(work.cached, chunk + window)
    return work


def paced_step(deployment: Deployment, work: Work) -> tuple[Seconds, Seconds]:
    """Return the time of a step on the slowest stage, and the TPOT of its sequences.

    The micro-batches in flight take turns on that stage, or wait for a pass through all of them.
    """
    limits, (time, unloaded) = deployment.limits, step_times(deployment, work)
    turn = (limits.fill or limits.micro_batches) * time
    return time, max(turn, unloaded) / deployment.layout.mean_tokens


def step_times(deployment: Deployment, work: Work) -> tuple[Seconds, Seconds]:
    """Return the time of a step on the slowest stage, and through all stages."""
    costs = deployment.costs
    stages = costs.step(work).time
    hops = costs.hops(costs.ranked(work)).sum()
    return float(stages.max()), float(stages.sum() + hops) + costs.back


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
