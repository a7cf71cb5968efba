"""Distribution of TTFT, TPOT and end-to-end latency over the requests, by system."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from plots import style
from sim.results.labels import trimmed_number
from sim.results.saving import Saved
from sim.results.summary import SystemSummary

CDF_PANELS = (
    ("ttft", "time to first token, ms"),
    ("tpot", "time per output token, ms"),
    ("e2el", "end-to-end latency, ms"),
)


def draw(saved: Saved) -> Figure:
    """Draw one panel for each latency, on logarithmic axes."""
    systems = saved.summary.systems
    colours, dashes = style.colours(systems), style.lines(systems)
    figure = style.figure(8.5, 3.9)
    axes = figure.subplots(1, 3, sharey=True)
    for name in systems:
        values = user_latencies(saved, name)
        for axis, (metric, label) in zip(axes, CDF_PANELS, strict=True):
            sample = np.sort(values[metric])
            if len(sample):
                steps = np.arange(1, len(sample) + 1) / len(sample)
                axis.step(
                    np.r_[sample[0], sample],
                    np.r_[0, steps],
                    where="post",
                    color=colours[name],
                    ls=dashes[name],
                    lw=1.8,
                    label=name,
                )
            axis.set(xscale="log", xlabel=label)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes:
        low, high = axis.get_xlim()
        if high / low < 40:  # few decades: label some steps between too
            axis.xaxis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:g}" if str(value)[0] in "235" else "")
            )
    axes[0].set_ylabel("share of requests")
    style.legend(axes[0])
    style.title(figure, finding(systems), key_rows=1 + (len(systems) > 5))
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
    """Return the title: the earliest median first token, and the earliest median answer."""
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    for name, system in systems.items():
        ttft, e2el = system.metrics.ttft.median, system.metrics.e2el.median
        if ttft is not None and e2el is not None:
            begin[name], end[name] = ttft, e2el
    if not begin:
        return "No request was served"
    first, last, slowest = (
        min(begin, key=begin.__getitem__),
        min(end, key=end.__getitem__),
        max(end, key=end.__getitem__),
    )
    begins, ends = trimmed_number(begin[first]), trimmed_number(end[last])
    text = (
        f"Median first token: {first} after {begins} ms.  "
        f"Median whole answer: {last} after {ends} ms"
    )
    return text + (
        f", {style.times(end[slowest] / end[last])} faster than {slowest}"
        if slowest != last
        else ""
    )
