"""The time of a single request on an otherwise idle system."""

import math
from dataclasses import dataclass, replace

import numpy as np

from sim.cost.terms import FITTED, HOPS, TERMS, TIME
from sim.cost.work import Work
from sim.planning.deployment import Deployment
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
    limits = replace(deployment.limits, context=prompt + output)
    limits = replace(limits, kv_tokens=limits.kv_tokens_needed(prompt + output))
    of = deployment.layout.speculation
    draws = StepDraws(of.acceptance, seed=None) if of else None
    rows = serve(
        RequestBatch(np.zeros(1), np.array([prompt]), np.array([output])),
        costs,
        limits,
        leap=costs.stages == 1,
        draws=draws,
    )
    steps = draws.steps(0, output - 1) if draws else output - 1
    tokens = deployment.layout.mean_tokens  # of a step
    contexts = range(prompt + 1, prompt + output)
    window = deployment.limits.window
    mean, windowed = (
        sum(min(c, w) for c in contexts) / len(contexts) for w in (math.inf, window or math.inf)
    )
    width = limits.width
    work = Work(decodes=1, context=mean, logits=width, windowed_context=windowed, width=width)
    table = costs.terms(work).sum(axis=0)
    table[TIME, HOPS] += costs.back
    table /= tokens
    return SingleRequest(
        ttft=float(rows.first_token[0]),
        tpot=float(rows.last_token[0] - rows.first_token[0]) / steps / tokens,
        terms=dict(zip(TERMS, table[TIME].tolist(), strict=True)),
        fitted=dict(zip(TERMS, table[FITTED].tolist(), strict=True)),
    )
