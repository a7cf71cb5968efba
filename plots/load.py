"""Latency against load: median and 99th percentile of TTFT and TPOT over the rate of requests, up to where a system is full."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import series, style
from plots.series import Series
from sim.studies.sweep import Swept

PANELS = (("ttft", "time to first token, ms"), ("tpot", "time per output token, ms"))
STATISTICS: dict[str, dict[str, float]] = {"median": {}, "p99": {"lw": 1.0}}


def draw(swept: Swept) -> Figure:
    """Thick lines are medians, thin ones 99th percentiles.  Beyond its first overloaded rate a system is not drawn: there the
    numbers say more of the run's length than of the system."""
    lines = series.series(swept, "rate")
    figure = style.figure(8.5, 4.2)
    for axis, (metric, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for each in lines:
            rates, hollow = each.values("rate"), each.overloaded
            end = hollow.index(True) + 1 if True in hollow else len(rates)
            for statistic, looks in STATISTICS.items():
                y = each.values(f"{statistic}_{metric}_ms")[:end]
                series.plot(axis, each, rates[:end], y, hollow[:end], **looks)
        axis.set(xlabel="requests per second", ylabel=label, yscale="log", xlim=(0, None))
        style.plain_log(axis.yaxis)
    handles = [
        *series.key(lines),
        Line2D([], [], color="#555555", lw=1.0, label="thin: 99th percentile"),
    ]
    if any(True in each.overloaded for each in lines):
        handles.append(series.hollow())
    style.title(figure, finding(lines), style.keyed(figure, handles))
    series.footnote(figure, swept)
    return figure


def finding(lines: list[Series]) -> str:
    """Where each system is full, and who is how much quicker to begin at the highest rate that several keep up with."""
    if not lines:
        return "No system served a request"
    told = []
    for each in lines:
        rates, hollow = each.values("rate"), each.overloaded
        full = (
            f"is full from {style.number(rates[hollow.index(True)])} request/s"
            if True in hollow
            else ""
        )
        told.append(f"{each.label} {full or f'keeps up with {style.number(rates[-1])} request/s'}")
    text = "; ".join(told)
    kept = [
        {
            x: y
            for x, y, full in zip(
                e.values("rate"), e.values("p99_ttft_ms"), e.overloaded, strict=True
            )
            if not full
        }
        for e in lines
    ]
    common = set.intersection(*map(set, kept)) if len(kept) > 1 else set()
    if common:
        rate = max(common)
        values = [each[rate] for each in kept]
        best, worst = min(values), max(values)
        quick, slow = lines[values.index(best)].label, lines[values.index(worst)].label
        ratio = style.times(worst / best)
        text += f"; at {style.number(rate)} request/s the p99 TTFT of {quick} is {ratio} shorter than that of {slow}"
    return text
