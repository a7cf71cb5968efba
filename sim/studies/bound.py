"""A bound of a system's goodput from the slowest stage and the SLO: an estimate, not a proof.

    load_bound(scenario, members)  # request/s, or users of a closed loop

The bound assumes steps without gaps, requests of mean length, and no waiting. If the users of a
closed loop send equal requests whose prompts fit in one step, no simulated load is higher.
The bound takes a fraction of a second, and a capacity many seconds. So searches begin with it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from sim.cost.energy import Tally
from sim.cost.work import Work, decodes_at
from sim.planning.deployment import Deployment
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.units import Seconds
from sim.workload.arrivals import Workload
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


@dataclass(frozen=True)
class Loop:
    """A closed loop: the pause of a user between an answer and the next request.

    in_step: all users send equal requests, so that all prompts may be computed together.
    """

    pause: Seconds
    in_step: bool = False


def loop_of(workload: Workload) -> Loop | None:
    """Return the closed loop of a workload; None for another kind of load."""
    return None if workload.pause is None else Loop(workload.pause, workload.in_step)


def load_bound(scenario: Scenario, members: Mapping[str, Member]) -> float:
    """Return an estimate of the load that a system takes within the SLO, summed over members."""
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    prompt, output, loop = workload.mean_prompt, workload.mean_output, loop_of(workload)
    return sum(
        member.copies
        * goodput_bound(
            member.deployment, prompt, output, slo, loop, cached_prefix(scenario, name, member)
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
    loop: Loop | None = None,
    cached: float = 0.0,
) -> float:
    """Return the load of `load_point`; 0 if no load is within the SLO."""
    point = load_point(deployment, prompt, output, slo, loop, cached)
    return point.load if point else 0.0


def load_point(
    deployment: Deployment,
    prompt: float,
    output: float,
    slo: SLO,
    loop: Loop | None = None,
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

    With a closed loop, the result is its users.  They are the rate times the time between two
    requests of a user (Little's law): first token, answer and pause.  At the largest k the first
    token comes as late as the SLO allows.  At a smaller k no request waits.
    Left out: users that wait, if no limit of the SLO includes waiting.
    If all users may be in step (`Loop.in_step`), their prompts come together, in groups that fill
    the token budget, or as large as the SLO's TTFT allows.  Other steps have no prompts, and an
    answer waits only for the prompts of other groups.
    """
    paces = _Paces(deployment, prompt, output, cached, slo)
    if not deployment.limits.max_concurrent(math.ceil(prompt + output)):
        return None
    best: tuple[float, float, Work] | None = None  # load and request/s of a replica, its step
    for together in (False, True) if paces.may_be_in_step(loop) else (False,):
        most, allows = paces.most(together), partial(paces.allows, together)
        precision = 0.0 if together else 0.02  # users in step are a bound, not an estimate
        for k in filter(allows, decode_counts(most, allows, precision)):
            pace = paces.pace(together, k)
            rate = load = k / paces.steps / pace.time
            if loop is not None:
                answer = paces.steps * deployment.layout.mean_tokens * pace.tpot
                wait = _allowed_wait(slo, answer) if k == most else 0.0
                load *= max(wait, paces.alone, pace.first) + answer + loop.pause
            if best is None or load > best[0]:
                best = load, rate, pace.work
    if best is None:
        return None
    load, rate, work = best
    decoded, read = rate * paces.steps, rate * paces.computed
    tally = work_of_a_second(deployment, work, decoded, read, (prompt, cached))
    replicas = deployment.layout.plan.replicas
    return LoadPoint(replicas * load, replicas * rate, tally.scaled(replicas))


class _Pace(NamedTuple):
    """The pace of requests with k of them in each micro-batch.

    time: in which k requests advance by a step, on the slowest stage [s]. work: of a step.
    first: time to the first token if the prompts of all users come together; else 0 [s].
    """

    time: Seconds
    work: Work
    tpot: Seconds
    first: Seconds = 0.0


@dataclass(frozen=True)
class _Paces:
    """The paces of a deployment at equal requests. cached: tokens of a prompt."""

    deployment: Deployment
    prompt: float
    output: float
    cached: float
    slo: SLO

    @cached_property
    def steps(self) -> float:
        """The steps of a request."""
        return max(1.0, (self.output - 1) / self.deployment.layout.mean_tokens)

    @cached_property
    def computed(self) -> float:
        """The tokens of a prompt that are computed."""
        return max(1.0, self.prompt - self.cached)

    @cached_property
    def needed(self) -> float:
        """The tokens that the steps of a request compute."""
        return self.computed + self.deployment.limits.width * self.steps

    @cached_property
    def in_flight(self) -> int:
        """The micro-batches in flight."""
        return self.deployment.limits.fill or self.deployment.limits.micro_batches

    @cached_property
    def alone(self) -> Seconds:
        """The time to the first token of an unloaded request."""
        return first_token(self.deployment, self.prompt, self.cached)

    def may_be_in_step(self, loop: Loop | None) -> bool:
        """Return whether all users may be in step. With drafts, requests take unlike steps."""
        return loop is not None and loop.in_step and self.deployment.limits.width == 1

    def most(self, together: bool) -> int:
        """Return the most sequences of a micro-batch."""
        limits = self.deployment.limits
        concurrent = limits.max_concurrent(math.ceil(self.prompt + self.output)) or 0
        needed = 1.0 if together else self.needed / self.steps
        return max(1, min(concurrent // self.in_flight, int(limits.token_budget / needed)))

    def allows(self, together: bool, k: int) -> bool:
        """Return whether the SLO allows the TPOT with k sequences in each micro-batch."""
        return self.slo.allows_tpot(self.pace(together, k).tpot)

    def pace(self, together: bool, k: int) -> _Pace:
        """Return the pace with k sequences in each micro-batch."""
        return self.together(k) if together else self.mixed(k)

    def mixed(self, k: int) -> _Pace:
        """Return the pace if each step has the prompts that replace the requests which end."""
        passes = max(1.0, k * self.needed / self.steps / self.deployment.limits.token_budget)
        chunk = 0 if passes > 1 and k == 1 else round(k * self.computed / self.steps)
        work = self._step(k, chunk)
        time, tpot = paced_step(self.deployment, work)
        return _Pace(time * passes, work, tpot)

    def together(self, k: int) -> _Pace:
        """Return the pace if the prompts of all users come together, in as few groups as possible.

        Prompts of more than one step share their steps with decodes of other groups.
        """
        work = self._step(k, 0)
        time, tpot = paced_step(self.deployment, work)
        tokens, budget = k * self.computed, self.deployment.limits.token_budget
        groups = min(k, max(1, math.ceil(tokens / budget)))
        decodes = k - -(-k // groups)  # of other groups, beside the prompts of one
        chunk = min(max(1, budget - decodes), max(1, round(tokens)))
        costs = self.deployment.costs
        longer = costs.pass_times(self._step(decodes, chunk))[0]
        if decodes:
            longer -= costs.pass_times(self._step(decodes, 0))[0]
        seconds = tokens / chunk * longer
        first = self.in_flight * seconds
        groups = min(k, max(groups, int(first / (self.slo.ttft or math.inf))))
        between = first * (1 - 1 / groups)
        tpot += between / (self.steps * self.deployment.layout.mean_tokens)
        return _Pace(time + seconds / self.steps, work, tpot, first - between)

    def _step(self, k: int, chunk: int) -> Work:
        context = self.prompt + self.output / 2
        return mean_step(self.deployment, k, context, chunk, self.prompt, self.cached)


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


def decode_counts(most: int, within: Callable[[int], bool], precision: float = 0.02) -> list[int]:
    """Return the numbers of sequences to try: powers of the root of 2, and `most`.

    within: whether a number is within the SLO. Larger ones are not if it is not.  The largest one
    that is within it is also tried, to `precision`.
    """
    counts = {min(most, round(2 ** (n / 2))) for n in range(2 * most.bit_length() + 2)}
    refused = next((k for k in sorted(counts) if not within(k)), None)
    if refused is None:
        return sorted(counts)
    allowed = max((k for k in counts if k < refused), default=1)
    while refused - allowed > max(1, int(precision * refused)):
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
    time, unloaded = deployment.costs.pass_times(
        mean_step(deployment, 0, 0.0, chunk, prompt, cached)
    )
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
    limits, (time, unloaded) = deployment.limits, deployment.costs.pass_times(work)
    turn = (limits.fill or limits.micro_batches) * time
    return time, max(turn, unloaded) / deployment.layout.mean_tokens


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
