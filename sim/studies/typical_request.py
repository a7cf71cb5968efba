"""The lengths of requests that an estimate of capacity needs, each with its own kind of mean.

typical_request(scenario).context  # tokens
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.scenario.scenario import Scenario
from sim.workload.requests import RequestBatch
from sim.workload.slo import LIMITS, SLO

DRAWN = 2000  # fewest requests of which the means are taken
SAMPLE = 500  # requests that stand for all in a closed form


@dataclass(frozen=True, eq=False, slots=True)
class RequestSample:
    """Some requests that stand for all, in order of their prompts: float[request] each.

    prompt, output: tokens. ttft, tpot, e2el: limits of their SLO, or inf [s].
    kind: int[request]. shares: of each kind, the share that must be within its SLO.
    """

    prompt: NDArray[np.float64]
    output: NDArray[np.float64]
    ttft: NDArray[np.float64]
    tpot: NDArray[np.float64]
    e2el: NDArray[np.float64]
    kind: NDArray[np.int64]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TypicalRequest:
    """Lengths of requests [tokens].

    prompt, output: means over requests.
    context: positions of a decoding sequence, mean over steps.
    held: prompt and output of a request in the KV cache, mean over time.
    short_output: the output with which the transfer of a mean prompt adds as much to TPOT as in the
        worst request that must meet the SLO, which has a long prompt or a short answer.
    late_output: output of the longest answer that must meet the SLO.
    sample: some of the requests; None if all are equal.
    Long answers are in more steps than short ones. So means over steps and over time weight each
    request by its output.
    Source: the inspection paradox of renewal theory (Feller, volume 2).
    """

    prompt: float
    output: float
    context: float
    held: float
    short_output: float
    late_output: float
    sample: RequestSample | None = field(default=None, compare=False, repr=False)


def equal_requests(prompt: float, output: float) -> TypicalRequest:
    """Return the lengths of requests that are all equal."""
    return TypicalRequest(prompt, output, prompt + output / 2, prompt + output, output, output)


def typical_request(scenario: Scenario) -> TypicalRequest:
    """Return the lengths of a scenario's requests, from those that a trial of `capacity` draws.

    Left out: in `held`, the time in the KV cache before the first token.
    """
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    if workload.load_kind is not None:
        workload = workload.scaled(1.0, max(workload.size, DRAWN))
    drawn = workload.draw(scenario.seed)
    prompt, output = drawn.prompt, drawn.output
    last = math.ceil(slo.share * len(output)) - 1  # in ascending order, the last within the SLO
    # A transfer adds to TPOT in proportion to the prompt, and is spread over the gaps between
    # output tokens. One output token has no gap, and no TPOT.
    per_gap = (output > 1) * prompt / np.maximum(output - 1, 1)
    limiting = float(np.sort(per_gap)[last])
    return TypicalRequest(
        prompt=workload.mean_prompt,
        output=workload.mean_output,
        context=float(np.average(prompt + output / 2, weights=output)),
        held=float(np.average(prompt + output, weights=output)),
        short_output=1 + (workload.mean_prompt / limiting if limiting else 0.0),
        late_output=float(np.sort(output)[last]),
        sample=_sample(drawn, scenario.slo or SLO()),
    )


def _sample(drawn: RequestBatch, slo: SLO) -> RequestSample | None:
    """Return a sample of requests; None if all are equal. slo: of kinds without their own."""
    if np.ptp(drawn.prompt) == np.ptp(drawn.output) == 0:
        return None
    order, most = np.argsort(drawn.prompt, kind="stable"), min(len(drawn.prompt), SAMPLE)
    chosen = order[((np.arange(most) + 0.5) * len(order) / most).astype(int)]
    slos = [own or slo for own in drawn.kinds.values()] or [slo]
    kind = np.zeros(most, np.int64) if drawn.kind is None else drawn.kind[chosen]
    limits = {key: np.array([of.limits.get(key, math.inf) for of in slos])[kind] for key in LIMITS}
    return RequestSample(
        prompt=drawn.prompt[chosen].astype(float),
        output=drawn.output[chosen].astype(float),
        kind=kind,
        shares=tuple((of if of.percentile is not None else slo).share for of in slos),
        **limits,
    )
