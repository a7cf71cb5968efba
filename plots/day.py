"""Users' view of failing replicas: TTFT and good requests over time, with shaded outages."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plots import claims, style
from plots.looks import system_looks
from sim.results.attainment import limits_met_in_columns
from sim.results.labels import system_label
from sim.results.saving import Saved
from sim.results.summary import SystemSummary
from sim.workload.slo import LIMITS

if TYPE_CHECKING:
    import polars

SPANS = 60  # spans of time in a run; the figure has one point for each


def draw(saved: Saved) -> Figure:
    """Draw TTFT above, and good requests per second below.

    TTFT: median and 99th percentile of the requests that arrived in each span of time.
    Good requests: those that finished in the span and meet the SLO. Without an SLO all are good.
    """
    systems = saved.summary.systems
    size, unit = style.time_axis(end_of(saved))
    figure = style.figure(7.5, 4.8)
    first, good = figure.subplots(2, 1, sharex=True)
    keys: list[Artist] = []
    for name, look in system_looks(saved.summary.identities).items():
        middles, median, p99, rate = latency_over_time(saved, name)
        first.plot(middles / size, 1000 * median, lw=1.8, **look.stroke)
        first.plot(middles / size, 1000 * p99, lw=0.8, **look.stroke)
        good.plot(middles / size, rate, lw=1.4, **look.stroke)
        keys.append(look.line_entry())
    for axis in (first, good):
        shade_outages(axis, systems, size)
        axis.set_xlim(0, end_of(saved) / size)
    first.set(yscale="log", ylabel="TTFT, median and p99, ms")
    style.plain_log(first.yaxis)
    good.set(ylabel="good requests per second", xlabel=f"time, {unit}", ylim=(0, None))
    style.title(figure, finding(saved), style.keyed(figure, keys))
    style.run_footnote(
        figure,
        saved.summary,
        "grey: a replica is down; thin: p99; a request counts when it came (TTFT), or ended (good)",
    )
    return figure


def shade_outages(axis: Axes, systems: Mapping[str, SystemSummary], size: float) -> None:
    """Shade the outages of all systems. An outage that several systems share is shaded once.

    size: of the axis's unit [s].
    """
    for start, end in {
        (start, end) for system in systems.values() for start, end in system.outages or ()
    }:
        axis.axvspan(start / size, end / size, color="#888888", alpha=0.2, lw=0)


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
        _limits(saved, system, rows),
        arrival,
        first,
        last,
        rows["output_tokens"].to_numpy(),
    )
    good = np.all([np.ones(len(rows), bool), *limits.values()], axis=0)
    counts = np.histogram(last[good], edges)[0]
    return (edges[1:] + edges[:-1]) / 2, median, p99, counts / np.diff(edges)


def _limits(
    saved: Saved, system: str, rows: "polars.DataFrame"
) -> dict[str, float | NDArray[np.float64]]:
    """Return each limit of the SLO [s]: one for all rows, or float[row] if there are kinds."""
    kinds = saved.summary.systems[system].metrics.kinds
    if not kinds:
        return {**(saved.summary.slo or {})}
    return {
        limit: np.array([(kinds[kind].slo or {}).get(limit, np.inf) for kind in rows["kind"]])
        for limit in LIMITS
    }


def finding(saved: Saved) -> str:
    """Return the title: the longest TTFT, and the restarted requests, of two systems at most."""
    rows = saved.requests.filter(saved.requests["outcome"] == "finished")
    waits = {}
    for name, system in saved.summary.systems.items():
        own = rows.filter(rows["system"] == name)
        if len(own):
            label = system_label(name, system.identity)
            longest = 1000 * (own["first_token"] - own["arrival"]).to_numpy().max()
            waits[label] = (longest, system.metrics.retried)
    starts = [
        start for system in saved.summary.systems.values() for start, _ in system.outages or ()
    ]
    fails = (
        "A replica fails"
        if min(starts) < end_of(saved)
        else "A replica fails after the last request came"
    )
    if not waits:
        return f"{fails}; no request was served"
    order = sorted(waits, key=lambda label: waits[label][0])
    shown = order if len(order) <= claims.NAMED else [order[-1], order[0]]
    texts = (
        f"{label} {style.duration(waits[label][0])} ({waits[label][1]} restarted)"
        for label in shown
    )
    return f"{fails}; longest wait for a first token: {', '.join(texts)}"
