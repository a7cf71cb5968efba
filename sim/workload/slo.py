"""Latency limits of requests: the SLO of a scenario, or of one kind of requests.

>>> PRESETS["llama2-70b"].limits
{'ttft': 2.0, 'tpot': 0.2}
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from sim.inputs.fields import preset_shorthand
from sim.inputs.values import Value
from sim.units import Seconds

LIMITS = ("ttft", "tpot", "e2el")


class SLO(Value):
    """Limits for a request. A request is good if it meets all of them."""

    ttft: Seconds | None = Field(
        default=None, description="Longest time to first token [s]; default: no limit."
    )
    tpot: Seconds | None = Field(
        default=None, description="Longest time per output token [s]; default: no limit."
    )
    e2el: Seconds | None = Field(
        default=None, description="Longest end-to-end latency [s]; default: no limit."
    )
    percentile: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Percent of the requests that must meet all limits; default: 90 for "
        "`capacity`, and not judged by `run`.",
    )

    @property
    def share(self) -> float:
        """The share of the requests that must be within all limits."""
        return 0.9 if self.percentile is None else self.percentile / 100

    @property
    def limits(self) -> dict[str, Seconds]:
        """The limits by name [s]."""
        return {name: limit for name in LIMITS if (limit := getattr(self, name)) is not None}

    def allows_tpot(self, tpot: Seconds) -> bool:
        """Return whether a TPOT is within the limit, if there is one."""
        return self.tpot is None or tpot <= self.tpot


def _mlperf(ttft: Seconds, tpot: Seconds) -> SLO:
    """Return limits for 99 % of the requests. MLPerf allows 1 % to miss each limit alone."""
    return SLO(ttft=ttft, tpot=tpot, percentile=99)


# p99 TTFT and TPOT of MLPerf Inference's server and interactive scenarios.
# Source: mlcommons/inference_policies, inference_rules.adoc, v5.0 and v5.1.
PRESETS = {
    "llama2-70b": _mlperf(2.0, 0.2),
    "llama2-70b-interactive": _mlperf(0.45, 0.04),
    "mixtral-8x7b": _mlperf(2.0, 0.2),
    "llama3.1-405b": _mlperf(6.0, 0.175),
    "llama3.1-405b-interactive": _mlperf(4.5, 0.08),
    "llama3.1-8b": _mlperf(2.0, 0.1),
    "llama3.1-8b-interactive": _mlperf(0.5, 0.03),
    "deepseek-r1": _mlperf(2.0, 0.08),
    "deepseek-r1-interactive": _mlperf(1.5, 0.015),
}
SLOField = Annotated[SLO, preset_shorthand(PRESETS, "an SLO preset")]


def shortest_limits(kinds: Mapping[str, SLO | None], slo: SLO | None) -> SLO | None:
    """Return the shortest of each limit over all kinds of requests; None without an SLO.

    Estimates use it, so that they are not too optimistic.
    kinds: the SLO of each; None stands for `slo`, that of the scenario.
    """
    slos = [of for own in kinds.values() if (of := own or slo)]
    if not slos:
        return None if kinds else slo
    limits = {
        name: min((of.limits[name] for of in slos if name in of.limits), default=None)
        for name in LIMITS
    }
    return SLO(**limits, percentile=slo.percentile if slo else None)
