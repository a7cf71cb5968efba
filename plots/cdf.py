"""Distribution of TTFT, TPOT and end-to-end latency over the requests, by system."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plots import claims, style
from plots.looks import system_looks
from sim.results.saving import Saved
from sim.results.summary import SystemSummary

CDF_PANELS = (
    ("ttft", "time to first token, ms"),
    ("tpot", "time per output token, ms"),
    ("e2el", "end-to-end latency, ms"),
)


def draw(saved: Saved) -> Figure:
    """Draw one panel for each latency, on logarithmic axes."""
    systems, looks = saved.summary.systems, system_looks(saved.summary.identities)
    figure = style.figure(8.5, 3.9)
    axes = figure.subplots(1, 3, sharey=True)
    for name, look in looks.items():
        values = user_latencies(saved, name)
        for axis, (metric, label) in zip(axes, CDF_PANELS, strict=True):
            sample = np.sort(values[metric])
            if len(sample):
                steps = np.arange(1, len(sample) + 1) / len(sample)
                axis.step(
                    np.r_[sample[0], sample],
                    np.r_[0, steps],
                    where="post",
                    lw=1.8,
                    **look.stroke,
                )
            axis.set(xscale="log", xlabel=label)
    for axis in axes:
        style.plain_log(axis.xaxis, dense=40)  # a narrow panel
    axes[0].set_ylabel("share of requests")
    keys = [look.line_entry() for look in looks.values()]
    style.title(figure, finding(systems), style.keyed(figure, keys))
    style.run_footnote(figure, saved.summary)
    return figure


def user_latencies(saved: Saved, system: str) -> dict[str, NDArray[np.float64]]:
    """Return TTFT, TPOT and E2E latency, `float[request]` of the finished requests [ms].

    Left out: the TPOT of requests with a single output token.
    """
    rows = saved.requests
    rows = rows.filter((rows["system"] == system) & (rows["outcome"] == "finished"))
    arrival, first, last = (
        rows[column].to_numpy() for column in ("arrival", "first_token", "last_token")
    )
    output = rows["output_tokens"].to_numpy()
    several = output > 1
    tpot = (last - first)[several] / (output[several] - 1)
    return {"ttft": 1000 * (first - arrival), "tpot": 1000 * tpot, "e2el": 1000 * (last - arrival)}


def finding(systems: Mapping[str, SystemSummary]) -> str:
    """Return the title: the earliest median first token, and the earliest median answer.

    Only systems that keep up are compared.
    """
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    for label, system in claims.keeping_up(systems).items():
        ttft, e2el = system.metrics.ttft.median, system.metrics.e2el.median
        if ttft is not None and e2el is not None:
            begin[label], end[label] = ttft, e2el
    late = claims.behind(systems)
    if not begin:
        return f"No system keeps up with the load; {late}" if late else "No request was served"
    first, last = min(begin, key=begin.__getitem__), min(end, key=end.__getitem__)
    others = claims.multiples_of(last, {label: 1 / time for label, time in end.items()})
    return claims.joined(
        f"Median first token: {first} after {style.duration(begin[first])}",
        f"median whole answer: {last} after {style.duration(end[last])}"
        + (f", {others} sooner" if others else ""),
        late,
    )
