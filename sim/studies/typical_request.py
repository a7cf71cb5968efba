"""The lengths of requests that an estimate of capacity needs, each with its own kind of mean.

typical_request(scenario).context  # tokens
"""

import math
from dataclasses import dataclass

import numpy as np

from sim.scenario.scenario import Scenario
from sim.workload.slo import SLO

DRAWN = 2000  # fewest requests of which the means are taken


@dataclass(frozen=True, slots=True)
class TypicalRequest:
    """Lengths of requests [tokens].

    prompt, output: means over requests.
    context: positions of a decoding sequence, mean over steps.
    held: prompt and output of a request in the KV cache, mean over time.
    short_output: the output with which the transfer of a mean prompt adds as much to TPOT as in the
        worst request that must meet the SLO, which has a long prompt or a short answer.
    late_output: output of the longest answer that must meet the SLO.
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
    )
