"""The time of a single request on an otherwise idle system."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.cost.system_costs import token_terms
from sim.cost.terms import FITTED, TERMS, TIME, Array
from sim.cost.work import Work
from sim.planning.deployment import Deployment
from sim.serving.prompt_chunks import add_chunk
from sim.serving.service import serve
from sim.serving.step_draws import StepDraws
from sim.units import Seconds
from sim.workload.requests import RequestBatch


@dataclass(frozen=True, slots=True)
class SingleRequest:
    """The unloaded TTFT and TPOT of a request, and a mean token's time by cause [s].

    fitted: the part of each term that is fitted.
    """

    ttft: Seconds
    tpot: Seconds
    terms: dict[str, Seconds]
    fitted: dict[str, Seconds]

    @property
    def fitted_share(self) -> float:
        """The share of a token's time that engine `ideal` would not need."""
        return sum(self.fitted.values()) / sum(self.terms.values())


def time_single_request(deployment: Deployment, prompt: int, output: int) -> SingleRequest:
    """Return the unloaded TTFT and TPOT of a request, and its mean decode step by cause.

    prompt, output: tokens.  The request is served like any other, by the same scheduler.
    Left out: the limits on KV cache and context.
    """
    costs, output = deployment.costs, max(2, output)  # a single token has no TPOT
    work = mean_decode(deployment, prompt, output)
    limits = replace(deployment.limits, context=prompt + output)
    limits = replace(limits, kv_tokens=limits.kv_tokens_needed(prompt + output))
    draws = mean_draws(deployment)
    rows = serve(
        RequestBatch(np.zeros(1), np.array([prompt]), np.array([output])),
        costs,
        limits,
        leap=costs.stages == 1,
        draws=draws,
    )
    steps = draws.steps(0, output - 1) if draws else output - 1
    tokens = deployment.layout.mean_tokens  # of a step
    table = token_terms(costs, work) / tokens
    return SingleRequest(
        ttft=float(rows.first_token[0]),
        tpot=float(rows.last_token[0] - rows.first_token[0]) / steps / tokens,
        terms=dict(zip(TERMS, table[TIME].tolist(), strict=True)),
        fitted=dict(zip(TERMS, table[FITTED].tolist(), strict=True)),
    )


def mean_draws(deployment: Deployment) -> StepDraws | None:
    """Return draws that give each request its mean number of steps; None without speculation."""
    of = deployment.layout.speculation
    return StepDraws(of.acceptance, seed=None) if of else None


def mean_decode(deployment: Deployment, prompt: int, output: int) -> Work:
    """Return the mean decode step of a single request, which has the mean time of all.

    With speculation each step adds the same number of tokens to the context.
    Times are linear in the context, except where the other side of a roofline begins to bind.
    """
    window, draws = deployment.limits.window, mean_draws(deployment)
    steps = draws.steps(0, output - 1) if draws else output - 1
    contexts = [prompt + 1 + step * (output - 1) / steps for step in range(steps)]
    mean, windowed = (
        sum(min(c, w) for c in contexts) / len(contexts) for w in (math.inf, window or math.inf)
    )
    width = deployment.limits.width
    return Work(decodes=1, context=mean, logits=width, windowed_context=windowed, width=width)


class PathStep(NamedTuple):
    """A step on the way to a token: float[stage], how often its stages and its hops count."""

    work: Work
    stages: Array
    hops: Array


def first_token_path(deployment: Deployment, prompt: int) -> list[PathStep]:
    """Return the steps whose times make up the unloaded TTFT.

    The first chunk of the prompt passes the stages up to the slowest one.  All chunks pass that
    stage one after another, and the last ones pass the stages behind it.
    Left out: prompts so long that the slowest stage changes on the way.
    """
    costs, limits = deployment.costs, deployment.limits
    budget = min(limits.prompt_budget, prompt)
    starts = list(range(0, prompt, budget))
    chunks = [_chunk(start, min(budget, prompt - start), limits.window) for start in starts]
    *others, last = chunks
    last.logits = 1
    whole = np.ones(costs.stages)
    if not others:
        return [PathStep(last, whole, whole)]
    works = chunks[0], _mean(others), others[-1], last
    first, middle, full, final = (costs.step(work).time for work in works)
    hop, last_hop = costs.hops(budget), costs.hops(last.tokens)
    # The way is longest if it turns from the first chunk to all at stage `here`, and from the
    # last full chunk to the last one, which may be smaller, at stage `there`.
    passed = np.cumsum(full + hop)
    ends = np.append((final + last_hop)[::-1].cumsum()[::-1][1:], 0.0)
    until = np.cumsum(first + hop) - first + len(others) * middle - passed
    best = np.maximum.accumulate(until)
    there = int(np.argmax(best + passed + final + ends))
    here = int(np.argmax(until[: there + 1]))
    stage = np.arange(costs.stages)
    between = (here < stage) & (stage <= there)
    nowhere = np.zeros(costs.stages)
    return [
        PathStep(chunks[0], _counts(stage < here), _counts(stage <= here)),
        PathStep(works[1], len(others) * _counts(stage == here), nowhere),
        PathStep(others[-1], _counts(between), _counts(between)),
        PathStep(last, _counts(stage >= there), _counts(stage > there)),
    ]


def _counts(stages: NDArray[np.bool_]) -> Array:
    return stages.astype(float)


def _chunk(start: int, tokens: int, window: int | None) -> Work:
    work = Work()
    add_chunk(work, start, tokens, window)
    return work


def _mean(works: Sequence[Work]) -> Work:
    """Return the mean of chunks with equal numbers of tokens."""
    sums = ("attended", "cached", "windowed_attended", "windowed_cached")
    means = {name: sum(getattr(work, name) for work in works) / len(works) for name in sums}
    return replace(works[0], **means)
