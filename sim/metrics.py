"""TTFT, TPOT, ITL, E2E latency, throughput, goodput and the verdict, from rows.  Names and definitions are vLLM's."""

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticCustomError

from sim.files import Shorthand, Value, nearest
from sim.records import Rows
from sim.units import Seconds

Verdict = Literal["STABLE", "BACKLOGGED", "OVERLOADED"]
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")


class SLO(Value):
    """Limits that a request must meet, all of them, to count as good."""

    ttft: Seconds | None = None
    tpot: Seconds | None = None
    e2el: Seconds | None = None


# p99 TTFT and TPOT of MLPerf Inference's server and interactive scenarios.
# Source: mlcommons/inference_policies, inference_rules.adoc, v5.0 and v5.1.
PRESETS = {
    "llama2-70b": SLO(ttft=2.0, tpot=0.2),
    "llama2-70b-interactive": SLO(ttft=0.45, tpot=0.04),
    "mixtral-8x7b": SLO(ttft=2.0, tpot=0.2),
    "llama3.1-405b": SLO(ttft=6.0, tpot=0.175),
    "llama3.1-405b-interactive": SLO(ttft=4.5, tpot=0.08),
    "llama3.1-8b": SLO(ttft=2.0, tpot=0.1),
    "llama3.1-8b-interactive": SLO(ttft=0.5, tpot=0.03),
    "deepseek-r1": SLO(ttft=2.0, tpot=0.08),
    "deepseek-r1-interactive": SLO(ttft=1.5, tpot=0.015),
}


def _preset(given: object) -> object:
    if isinstance(given, str):
        if given not in PRESETS:
            hint = f"did you mean {near}?" if (near := nearest(given, PRESETS)) else f"there are {', '.join(PRESETS)}"
            raise PydanticCustomError("quantity", "{reason}", {"reason": f"'{given}' is not an SLO preset; {hint}"})
        return PRESETS[given]
    return given


SLOField = Annotated[SLO, Shorthand(_preset, {"enum": list(PRESETS)})]


def latencies(rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Seconds of each finished request: ttft, e2el, and tpot where it has two tokens or more."""
    done = rows.finished
    ttft = (rows.first_token - rows.arrival)[done]
    e2el = (rows.last_token - rows.arrival)[done]
    output = rows.requests.output[done]
    tpot = ((e2el - ttft)[output > 1]) / (output[output > 1] - 1)
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def summary(rows: Rows, slo: SLO | None = None) -> dict[str, float | int | str | None]:
    """The metrics of one system under the names of vLLM's benchmark, times in ms; None where nothing was measured.

    `duration` runs from the first arrival to the last token; throughputs are over it.
    """
    done = rows.finished
    duration = float(np.nanmax(rows.last_token) - np.nanmin(rows.arrival)) if done.any() else 0.0
    prompt, output = int(rows.requests.prompt[done].sum()), int(rows.requests.output[done].sum())
    result: dict[str, float | int | str | None] = {
        "verdict": verdict(rows),
        "completed": int(done.sum()),
        "refused": int((~done).sum()),
        "duration": duration,
        "total_input_tokens": prompt,
        "total_output_tokens": output,
    }
    for name, value in (
        ("request_throughput", int(done.sum())),
        ("output_throughput", output),
        ("total_token_throughput", prompt + output),
        *((("request_goodput", good(rows, slo)),) if slo else ()),
    ):
        result[name] = value / duration if duration > 0 else None
    times = latencies(rows)
    for name in ("ttft", "tpot", "itl", "e2el"):
        for statistic in STATISTICS:
            number = of_gaps(rows, statistic) if name == "itl" else of_sample(times[name], statistic)
            result[f"{statistic}_{name}_ms"] = None if math.isnan(number) else 1000 * number
    return result


def of_sample(sample: NDArray[np.float64], statistic: str) -> Seconds:
    """mean, median, std or a percentile of a sample; nan of an empty one."""
    if not len(sample):
        return math.nan
    match statistic:
        case "mean":
            return float(sample.mean())
        case "std":
            return float(sample.std())
        case "median":
            return float(np.median(sample))
    return float(np.percentile(sample, float(statistic[1:])))


def of_gaps(rows: Rows, statistic: str) -> Seconds:
    """The same of the gaps between tokens, percentiles to the width of a bin."""
    match statistic:
        case "mean":
            return rows.gaps.mean
        case "std":
            return rows.gaps.std
        case "median":
            return rows.gaps.percentile(50)
    return rows.gaps.percentile(float(statistic[1:]))


def good(rows: Rows, slo: SLO) -> int:
    """How many requests meet all limits."""
    done = rows.finished
    output = rows.requests.output[done]
    ttft = (rows.first_token - rows.arrival)[done]
    e2el = (rows.last_token - rows.arrival)[done]
    tpot = (e2el - ttft) / np.maximum(output - 1, 1)
    ok = np.ones(len(output), dtype=bool)
    for value, limit in ((ttft, slo.ttft), (tpot, slo.tpot), (e2el, slo.e2el)):
        if limit is not None:
            ok &= value <= limit
    return int(ok.sum())


def verdict(rows: Rows) -> Verdict:
    """Whether the system keeps up with what it is offered.

    OVERLOADED: over the second half of the arrivals the number of requests that wait for their first token grows, by more than
    a tenth of what arrives and by more than three standard deviations of that count; a longer run would wait longer.  (Not the
    number in the system: that one grows in every run not much longer than a request.)
    BACKLOGGED: it keeps up or is too short to tell, but more than a tenth of the requests waited for admission longer than
    they were then served.
    STABLE: neither.  Refused requests are not waited for, and not counted.
    """
    done = rows.finished
    arrival, admitted, first, last = (x[done] for x in (rows.arrival, rows.admitted, rows.first_token, rows.last_token))
    if not len(arrival):
        return "STABLE"
    if rows.requests.users is None:
        order = np.sort(arrival)
        middle, end = order[len(order) // 2], order[-1]
        arrived = int((arrival > middle).sum())
        growth = arrived - int(((first > middle) & (first <= end)).sum())
        if growth > 0.1 * arrived and growth > 3 * math.sqrt(arrived):
            return "OVERLOADED"
    waited = admitted - arrival
    return "BACKLOGGED" if (waited > last - admitted).mean() > 0.1 else "STABLE"
