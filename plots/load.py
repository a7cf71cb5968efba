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
            rates, full = each.values("rate"), each.overloaded
            end = full.index(True) + 1 if True in full else len(rates)
            for statistic, looks in STATISTICS.items():
                y = each.values(f"{statistic}_{metric}_ms")[:end]
                series.plot(axis, each, rates[:end], y, each.hollow[:end], **looks)
        axis.set(xlabel="requests per second", ylabel=label, yscale="log", xlim=(0, None))
        style.plain_log(axis.yaxis)
    handles = [
        *series.key(lines),
        Line2D([], [], color="#555555", lw=1.0, label="thin: 99th percentile"),
    ]
    if any(True in each.hollow for each in lines):
        handles.append(series.hollow())
    style.title(figure, finding(lines), style.keyed(figure, handles))
    series.footnote(figure, swept)
    return figure


def finding(lines: list[Series]) -> str:
    """Where each system is full, and who is how much quicker to begin at the highest rate that several keep up with."""
    if not lines:
        return "No system served a request"
    told: list[str] = []
    for each in lines:
        rates, full = each.values("rate"), each.overloaded
        unit = "" if told else " request/s"
        if True in full:
            verb = "" if told and " from " in told[-1] else "is full "
            told.append(f"{each.label} {verb}from {style.number(rates[full.index(True)])}{unit}")
        else:
            told.append(f"{each.label} keeps up with {style.number(rates[-1])}{unit}")
    text = ", ".join(told)
    # Of plans of the same chips the quickest counts at each rate.
    kept: dict[tuple[str, int], dict[float, tuple[float, str]]] = {}
    for each in lines:
        plans = kept.setdefault(each.chips, {})
        columns = (each.values("rate"), each.values("p99_ttft_ms"), each.overloaded)
        for rate, wait, overloaded in zip(*columns, strict=True):
            if not overloaded:
                plans[rate] = min((wait, each.label), plans.get(rate, (wait, each.label)))
    common = set.intersection(*map(set, kept.values())) if len(kept) > 1 else set()
    if common:
        rate = max(common)
        waits = sorted(each[rate] for each in kept.values())
        (best, quick), (worst, slow) = waits[0], waits[-1]
        ratio = style.times(worst / best)
        text += f"; at {style.number(rate)} request/s the p99 TTFT of {quick} is {ratio} shorter than that of {slow}"
    return text
