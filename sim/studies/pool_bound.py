"""A bound of the goodput of prefill and decode pools: that of the pool, or the links, that bind.

    pools_point(scenario, members).load  # request/s, or users of a closed loop

As `sim.studies.bound` it assumes steps without gaps, and prompts of mean length.
Left out: transfers that wait for one of their two links while the other is free.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sim.cost.energy import Tally
from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.system_costs import pass_times
from sim.cost.work import Work
from sim.planning.deployment import Deployment
from sim.scenario.replicas import Member, pool_transfer
from sim.scenario.scenario import Scenario
from sim.serving.transfer import Transfer, early_parts, link_count, link_rate, share_left
from sim.studies.bound import cached_prefix
from sim.studies.late_requests import LateRequests, first_tokens
from sim.studies.loop_users import waiting_users
from sim.studies.paces import (
    Loop,
    Paces,
    decode_counts,
    first_token,
    loop_of,
    mean_step,
    paced_step,
)
from sim.studies.typical_request import TypicalRequest, typical_request
from sim.units import Bytes, RequestsPerSecond, Seconds
from sim.workload.slo import SLO


@dataclass(frozen=True)
class PromptPoint:
    """The highest rate of a prefill replica.

    rate: request/s. seconds: time to the first token, unloaded [s]. tally: the work of one request.
    """

    rate: RequestsPerSecond
    seconds: Seconds
    tally: Tally


class LinkPoint(NamedTuple):
    """The links between the pools.

    rate: request/s over all links. seconds: from a first token to the first decode step, if no
    transfer waits [s].
    """

    rate: RequestsPerSecond
    seconds: Seconds


class DecodePoint(NamedTuple):
    """The pace of a decode replica. work: of a step of each micro-batch.

    rate: request/s. answer: from the first decode step to the last token [s].
    """

    work: Work
    rate: RequestsPerSecond
    answer: Seconds


@dataclass(frozen=True)
class PoolsPoint:
    """The highest load of both pools within the SLO, by the bound.

    load: request/s, or users of a closed loop. rate: request/s in both cases.
    rates: request/s by member. tallies: the work of one second, by member.
    endless: whether any number of further users would only wait, and miss no limit.
    """

    load: float
    rate: RequestsPerSecond
    rates: dict[str, RequestsPerSecond]
    tallies: dict[str, Tally]
    endless: bool = False


def pools_point(scenario: Scenario, members: Mapping[str, Member]) -> PoolsPoint | None:
    """Return the load at which a pool or the links are full; None if no load is within the SLO.

    The decode replicas have as many sequences as they need for this rate, and no more.
    In a closed loop the users are the rate times TTFT, transfer, answer and pause (Little's law).
    Users also wait for what is full, as long as the SLO allows. They wait for a first token in the
    prefill pool, and after it for the links or the decode pool. Users that wait after it keep their
    room in the prefill pool. When that is full, others wait for a first token.
    """
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    (first, prefill), (second, decode) = members.items()
    cached = {name: cached_prefix(scenario, name, member) for name, member in members.items()}
    request = typical_request(scenario)
    prompt = request.prompt
    prompts = prefill_point(prefill.deployment, prompt, slo, cached[first], cached[second])
    if prompts is None:
        return None
    transfer = pool_transfer(scenario, first.removesuffix(".prefill"))
    links = link_point(transfer, (prefill, decode), prompt - cached[first], prompts.tally.sent)
    paces = _DecodePaces(decode.deployment, request, links.seconds, prompts.seconds, slo)
    best = paces.best()
    if best is None:
        return None
    rates = {first: prefill.replicas * prompts.rate, second: decode.replicas * best.rate}
    rate = min(*rates.values(), links.rate)
    loop = loop_of(workload)
    if loop is not None:  # a user is away from the prefill pool for the answer and the pause
        loop = Loop(links.seconds + paces.at(rate / decode.replicas).answer + loop.pause)
    alone = Paces(prefill.deployment, request, cached[first], slo, loop)
    rate, most_users = _rate_in_time(prefill.replicas, alone, rate)
    if not rate:
        return None
    load, pace = rate, paces.at(rate / decode.replicas)
    endless = False
    if workload.pause is not None:
        answer = links.seconds + pace.answer
        wait = (slo.ttft or math.inf) - prompts.seconds  # for a first token
        if rate < rates[first]:  # the links or the decode pool bind: users wait after it
            held = prefill.replicas * prefill.deployment.limits.max_concurrent(round(prompt))
            longest = max(0.0, held / rate - links.seconds)  # a longer wait fills the prefill pool
            wait = _wait_twice(wait, paces.spare_wait(pace), longest)
            if rate != links.rate and not paces.full(best):
                wait = 0.0  # the SLO alone limits the decode pool, which has room for all users
        late = links.seconds + paces.late_answer(pace)
        wait = max(0.0, min(wait, (slo.e2el or math.inf) - prompts.seconds - late))
        endless = wait == math.inf
        if endless:
            wait = 0.0
        served = rate * (prompts.seconds + answer)
        if workload.in_step and decode.deployment.limits.width == 1:
            load = served + rate * (wait + workload.pause)
        else:
            load = served + waiting_users(rate * (wait + workload.pause), slo.share)
        load = min(load, most_users)
    tallies = {first: prompts.tally.scaled(rate), second: paces.tally(pace).scaled(rate)}
    return PoolsPoint(load, rate, rates, tallies, endless)


def _wait_twice(before: Seconds, after: Seconds, longest: Seconds) -> Seconds:
    """Return how long users wait if the links or the decode pool bind.

    before, after: how long they may wait for a first token, and after it. longest: wait after it
    until the prefill pool is full. Only then do users wait for a first token.
    """
    return after if after <= longest else before + longest


def _rate_in_time(
    replicas: int, paces: Paces, rate: RequestsPerSecond
) -> tuple[RequestsPerSecond, float]:
    """Return the highest rate at which enough first tokens are in time, and its users.

    Return 0 if too few are even alone. Users are inf if `rate` is not too high.
    paces: of a replica of the prefill pool.
    """
    if paces.request.sample is None:
        return rate, math.inf
    most = LateRequests(paces, first_tokens(paces.request.sample)).most(rate / replicas)
    if most is None:
        return 0.0, 0.0
    if replicas * most.rate >= rate:
        return rate, math.inf
    return replicas * most.rate, replicas * most.users


def link_point(
    transfer: Transfer, pools: tuple[Member, Member], computed: float, sent: Bytes
) -> LinkPoint:
    """Return what the links between the pools take. A transfer uses one of each pool.

    computed: tokens of a prompt that the prefill pool computes. sent: bytes of a request.
    """
    prefill = pools[0].deployment
    plans = [pool.deployment.layout.plan for pool in pools]
    whole = sent / min(link_rate(transfer, plan) for plan in plans)
    tokens = max(1, round(computed))
    parts = early_parts(transfer, prefill.costs, prefill.limits, tokens, math.inf)
    counts = [
        pool.replicas * link_count(transfer, plan) for pool, plan in zip(pools, plans, strict=True)
    ]
    links = min(counts) if transfer.per != "flow" else math.inf
    left = whole * share_left(parts, whole)  # after the first token
    seconds = left + transfer.latency + (transfer.handover or 0.0)
    return LinkPoint(links / whole if whole else math.inf, seconds)


def prefill_point(
    deployment: Deployment, prompt: float, slo: SLO, cached: int, resident: int
) -> PromptPoint | None:
    """Return the highest rate of a prefill replica; None if no prompt meets the SLO's TTFT.

    A step has one prompt or a part of it, or as many prompts as fill the token budget.
    cached: tokens of a prompt that are not computed. resident: tokens of a prompt that the decode
    replica has, so that they do not travel.
    """
    best: PromptPoint | None = None
    computed = max(1.0, prompt - cached)
    budget, alone = deployment.limits.token_budget, first_token(deployment, prompt, cached)
    for chunk in {min(budget, max(1, round(computed))), budget}:
        work = mean_step(deployment, 0, 0.0, chunk, prompt, cached)
        seconds = max(alone, pass_times(deployment.costs, work)[1])
        rate = chunk / computed / paced_step(deployment, work, deployment.limits.spread)[0]
        if (slo.ttft is None or seconds <= slo.ttft) and (best is None or rate > best.rate):
            tally, steps = Tally(), computed / chunk
            tally.batch_steps[chunk] += steps
            tally.add_chunks(work, steps)
            tally.steps_without_sampling = max(0.0, steps - 1)
            tally.logits = 1
            tally.sent = prompt_kv_bytes(deployment.layout, round(prompt) - resident)
            best = PromptPoint(rate, seconds, tally)
    return best


@dataclass(frozen=True)
class _DecodePaces:
    """The paces of a decode replica.

    transfer: from a first token to the first decode step [s]. first: time to the first token [s].
    With speculation a step yields several tokens, as in `sim.studies.bound.load_point`.
    """

    deployment: Deployment
    request: TypicalRequest
    transfer: Seconds
    first: Seconds
    slo: SLO

    @property
    def steps(self) -> float:
        """The steps of a request."""
        return max(1.0, (self.request.output - 1) / self.deployment.layout.mean_tokens)

    @property
    def tokens(self) -> float:
        """The tokens of a request that the decode pool generates."""
        return self.steps * self.deployment.layout.mean_tokens

    @property
    def concurrent(self) -> int:
        """The most sequences of a replica."""
        return self.deployment.limits.max_concurrent(math.ceil(self.request.held))

    @property
    def in_flight(self) -> int:
        """The micro-batches that hold sequences."""
        return min(self.deployment.limits.spread, max(1, self.concurrent))

    @property
    def most(self) -> int:
        """The most sequences of a micro-batch; 0 if the KV cache holds no request.

        If sequences do not spread evenly, some micro-batches have one more.
        """
        return min(-(-self.concurrent // self.in_flight), self.widest)

    @property
    def widest(self) -> int:
        """The sequences of a micro-batch that the token budget allows."""
        return max(1, self.deployment.limits.token_budget // self.deployment.limits.width)

    def pace(self, sequences: int) -> DecodePoint:
        """Return the pace with some sequences in each micro-batch."""
        prompt, context = self.request.prompt, self.request.context
        work = mean_step(self.deployment, sequences, context, 0, prompt)
        time, tpot = paced_step(self.deployment, work, self.in_flight)
        mean = min(sequences, self.concurrent / self.in_flight)
        return DecodePoint(work, mean / self.steps / time, self.tokens * tpot)

    def allows(self, sequences: int) -> bool:
        """Return whether the SLO allows TPOT, which includes the transfer, and E2EL."""
        pace = self.pace(sequences)
        late = self.first + self.transfer + self.late_answer(pace)
        return late <= (self.slo.e2el or math.inf) and self.spare_wait(pace) >= 0

    def late_answer(self, pace: DecodePoint) -> Seconds:
        """Return the time that the longest answer within the SLO takes from its first decode step.

        It is `TypicalRequest.late_output`.
        """
        return self._decoded(self.request.late_output) / self.tokens * pace.answer

    def spare_wait(self, pace: DecodePoint) -> Seconds:
        """Return how long a request may wait after its first token within the SLO's TPOT.

        Negative if the SLO is missed without a wait. Transfer and wait add most to the TPOT of a
        short answer (`TypicalRequest.short_output`).
        """
        if self.slo.tpot is None:
            return math.inf
        tokens = self._decoded(self.request.short_output)
        return tokens * (self.slo.tpot - pace.answer / self.tokens) - self.transfer

    def _decoded(self, output: float) -> float:
        """Return the tokens of an output that the decode pool generates; at least one step's."""
        return max(self.deployment.layout.mean_tokens, output - 1)

    def best(self) -> DecodePoint | None:
        """Return the pace with the highest rate; None if none is within the SLO."""
        counts = decode_counts(self.most, self.allows) if self.most else []
        paces = [self.pace(n) for n in counts if self.allows(n)]
        return max(paces, key=lambda pace: pace.rate, default=None)

    def full(self, pace: DecodePoint) -> bool:
        """Return whether a replica holds no more sequences than at this pace."""
        return pace.work.decodes == self.most

    def at(self, rate: RequestsPerSecond) -> DecodePoint:
        """Return the pace with the fewest sequences that reaches a rate."""
        counts = range(1, self.most)
        return self.pace(1 + bisect_left(counts, rate, key=lambda n: self.pace(n).rate))

    def tally(self, pace: DecodePoint) -> Tally:
        """Return the work of a request at a pace."""
        tally, (work, steps) = Tally(), (pace.work, self.steps)
        tally.batch_steps[work.tokens] += steps / work.decodes
        tally.context = steps * work.context / work.decodes
        tally.windowed_context = steps * work.windowed_context / work.decodes
        tally.logits = steps  # the decodes bring their drafts
        if work.width > 1:
            tally.decode_steps, tally.decodes = steps / work.decodes, steps
        return tally
