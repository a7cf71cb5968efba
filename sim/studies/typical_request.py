"""The lengths of a workload's requests, as a step and the limits of an SLO see them.

typical_request(scenario).context  # tokens
"""

import math
from dataclasses import dataclass

import numpy as np

from sim.scenario.scenario import Scenario
from sim.workload.slo import SLO

DRAWN = 2000  # requests, of which the means are taken


@dataclass(frozen=True, slots=True)
class TypicalRequest:
    """Lengths of requests [tokens].

    prompt, output: means over requests.
    context: positions of a decoding sequence, mean over steps.
    held: prompt and output of a request in the KV cache, mean over time.
    short_output: output with which a mean transfer of KV cache adds as much to TPOT as to the last
        request that must meet the SLO.
    late_output: output of the longest answer that must meet the SLO.
    Long answers are in more steps than short ones. So means over steps and over time weight each
    request by its output.  Source: the inspection paradox of renewal theory (Feller, volume 2).
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

    Left out: the time that a request spends in the KV cache for its prompt.
    """
    workload, slo = scenario.workload, scenario.tightest_slo or SLO()
    if workload.load_kind is not None:
        workload = workload.scaled(1.0, max(workload.size, DRAWN))
    drawn = workload.draw(scenario.seed)
    prompt, output = drawn.prompt, drawn.output
    last = math.ceil(slo.share * len(output)) - 1  # the last request that must meet the SLO
    # Prompt tokens for each gap between output tokens. One output token has no gap, and no TPOT.
    burden = float(np.sort((output > 1) * prompt / np.maximum(output - 1, 1))[last])
    return TypicalRequest(
        workload.mean_prompt,
        workload.mean_output,
        float(np.average(prompt + output / 2, weights=output)),
        float(np.average(prompt + output, weights=output)),
        1 + (workload.mean_prompt / burden if burden else 0.0),
        float(np.sort(output)[last]),
    )
