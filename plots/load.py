"""Latency over load: median and 99th percentile of TTFT and TPOT over the request rate.

A line ends where its system is full.
"""

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import series, style
from plots.series import Series
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

LOAD_PANELS = (("ttft", "time to first token, ms"), ("tpot", "time per output token, ms"))
LINE_WIDTHS = {"median": 1.8, "p99": 1.0}  # width of the line


def draw(swept: Swept) -> Figure:
    """Draw medians as thick lines and 99th percentiles as thin ones.

    Left out: rates beyond the first overloaded one. There the numbers depend on the run's length.
    """
    lines = series.series(swept, "rate")
    figure = style.figure(8.5, 4.2)
    for axis, (metric, label) in zip(figure.subplots(1, 2), LOAD_PANELS, strict=True):
        for line in lines:
            rates, full = line.values("rate"), line.overloaded
            end = full.index(True) + 1 if True in full else len(rates)
            for statistic, width in LINE_WIDTHS.items():
                y = line.values(f"{statistic}_{metric}_ms")[:end]
                series.plot(axis, line, rates[:end], y, line.hollow[:end], width)
        axis.set(xlabel="requests per second", ylabel=label, yscale="log", xlim=(0, None))
        style.plain_log(axis.yaxis)
    handles = [
        *series.key(lines),
        Line2D([], [], color="#555555", lw=1.0, label="thin: 99th percentile"),
    ]
    if any(True in line.hollow for line in lines):
        handles.append(series.hollow())
    style.title(figure, finding(lines), style.keyed(figure, handles))
    series.sweep_footnote(figure, swept)
    return figure


def finding(lines: list[Series]) -> str:
    """Return the title: the rate at which each system is full, and the ratio of the TTFTs.

    The ratio is of the 99th percentiles at the highest rate that all kinds of chips keep up with.
    Among plans of the same chips, only the one that is full last counts.
    """
    if not lines:
        return "No system served a request"
    best: dict[tuple[str, int], Series] = {}
    for line in lines:
        best[line.chips] = max(best.get(line.chips, line), line, key=full_from)
    clauses = []
    for line in sorted(best.values(), key=full_from, reverse=True):
        full, last = full_from(line), line.values("rate")[-1]
        state = f"full from {trimmed_number(full)}"
        if full > last:
            state = f"not full at {trimmed_number(last)}"
        clauses.append(f"{line.label}: {state} request/s")
    # Among plans of the same chips, only the quickest counts at each rate.
    kept: dict[tuple[str, int], dict[float, tuple[float, str]]] = {}
    for line in lines:
        plans = kept.setdefault(line.chips, {})
        columns = (line.values("rate"), line.values("p99_ttft_ms"), line.steady)
        for rate, wait, steady in zip(*columns, strict=True):
            if steady:
                plans[rate] = min((wait, line.label), plans.get(rate, (wait, line.label)))
    common = set.intersection(*map(set, kept.values())) if len(kept) > 1 else set()
    text = ", ".join(clauses)
    if common:
        rate = max(common)
        waits = sorted(line[rate] for line in kept.values())
        (shortest, quick), (longest, slow) = waits[0], waits[-1]
        text += (
            f"; at {trimmed_number(rate)} the p99 TTFT of {quick} is "
            f"{style.times(longest / shortest)} shorter than that of {slow}"
        )
    return text


def full_from(line: Series) -> float:
    """Return the first rate at which a system is overloaded; inf if there is none."""
    full = line.overloaded
    return line.values("rate")[full.index(True)] if True in full else math.inf
