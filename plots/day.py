"""Users' view of failing replicas: TTFT and good requests over time, with shaded outages."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from plots import style
from sim.results.labels import trimmed_number
from sim.results.metrics import SLO, limits_met_in_columns
from sim.results.saving import Saved
from sim.results.summary import SystemSummary

SPANS = 60  # spans of time in a run; the figure has one point for each


def draw(saved: Saved) -> Figure:
    """Draw TTFT above, and good requests per second below.

    TTFT: median and 99th percentile of the requests that arrived in each span of time.
    Good requests: those that finished in the span and meet the SLO. Without an SLO all are good.
    """
    systems = saved.summary.systems
    colours, dashes = style.colours(systems), style.lines(systems)
    figure = style.figure(7.5, 4.8)
    first, good = figure.subplots(2, 1, sharex=True)
    keys = []
    for name in systems:
        colour, dash = colours[name], dashes[name]
        middles, median, p99, rate = latency_over_time(saved, name)
        first.plot(middles, 1000 * median, lw=1.8, color=colour, ls=dash)
        first.plot(middles, 1000 * p99, lw=0.8, color=colour, ls=dash)
        good.plot(middles, rate, lw=1.4, color=colour, ls=dash)
        keys.append(Line2D([], [], label=name, lw=1.8, color=colour, ls=dash))
    for axis in (first, good):
        shade_outages(axis, systems)
        axis.set_xlim(0, end_of(saved))
    first.set(yscale="log", ylabel="TTFT, median and p99, ms")
    style.plain_log(first.yaxis)
    good.set(ylabel="good requests per second", xlabel="time, s", ylim=(0, None))
    style.title(figure, finding(saved), style.keyed(figure, keys))
    style.run_footnote(
        figure,
        saved.summary,
        "grey: a replica is down; thin: p99; a request counts when it came (TTFT), or ended (good)",
    )
    return figure


def shade_outages(axis: Axes, systems: Mapping[str, SystemSummary]) -> None:
    """Shade the outages of all systems. An outage that several systems share is shaded once."""
    for start, end in {
        (start, end) for system in systems.values() for start, end in system.outages or ()
    }:
        axis.axvspan(start, end, color="#888888", alpha=0.2, lw=0)


def end_of(saved: Saved) -> float:
    """Return the arrival of the last request [s]."""
    return float(saved.requests["arrival"].to_numpy().max())


def latency_over_time(saved: Saved, system: str) -> tuple[NDArray[np.float64], ...]:
    """Return four arrays, each `float[span]`.

    They are the middles of the spans [s], median and 99th percentile of TTFT [s], and good requests
    per second. TTFT is nan in a span without an arrival.
    """
    rows = saved.requests.filter(saved.requests["system"] == system)
    edges = np.linspace(0, end_of(saved), SPANS + 1)
    rows = rows.filter(rows["outcome"] == "finished")
    arrival, first, last = (
        rows[key].to_numpy() for key in ("arrival", "first_token", "last_token")
    )
    span = np.clip(np.searchsorted(edges, arrival, side="right") - 1, 0, SPANS - 1)
    samples = [(first - arrival)[span == number] for number in range(SPANS)]
    median, p99 = (
        np.array([np.percentile(sample, q) if len(sample) else np.nan for sample in samples])
        for q in (50, 99)
    )
    limits = limits_met_in_columns(
        SLO(**(saved.summary.slo or {})),
        arrival,
        first,
        last,
        rows["output_tokens"].to_numpy(),
    )
    good = np.all([np.ones(len(rows), bool), *limits.values()], axis=0)
    counts = np.histogram(last[good], edges)[0]
    return (edges[1:] + edges[:-1]) / 2, median, p99, counts / np.diff(edges)


def finding(saved: Saved) -> str:
    """Return the title: the longest TTFT, and the number of restarted requests, by system."""
    rows = saved.requests.filter(saved.requests["outcome"] == "finished")
    waits = []
    for name, system in saved.summary.systems.items():
        own = rows.filter(rows["system"] == name)
        if len(own):
            longest = trimmed_number((own["first_token"] - own["arrival"]).to_numpy().max())
            waits.append(f"{name} {longest} s ({system.metrics.retried} restarted)")
    starts = [
        start for system in saved.summary.systems.values() for start, _ in system.outages or ()
    ]
    fails = (
        "A replica fails"
        if min(starts) < end_of(saved)
        else "A replica fails after the last request came"
    )
    longest_waits = ", ".join(waits) or "no request was served"
    return f"{fails}; the longest wait for a first token: {longest_waits}"
