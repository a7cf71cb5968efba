"""Latency over load: median and 99th percentile of TTFT and TPOT over the request rate.

A line ends where its system is full.
"""

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
    """
    if not lines:
        return "No system served a request"
    clauses: list[str] = []
    for line in lines:
        rates, full = line.values("rate"), line.overloaded
        unit = "" if clauses else " request/s"
        if True in full:
            verb = "" if clauses and " from " in clauses[-1] else "is full "
            clauses.append(
                f"{line.label} {verb}from {trimmed_number(rates[full.index(True)])}{unit}"
            )
        else:
            clauses.append(f"{line.label} keeps up with {trimmed_number(rates[-1])}{unit}")
    text = ", ".join(clauses)
    # Among plans of the same chips, only the quickest counts at each rate.
    kept: dict[tuple[str, int], dict[float, tuple[float, str]]] = {}
    for line in lines:
        plans = kept.setdefault(line.chips, {})
        columns = (line.values("rate"), line.values("p99_ttft_ms"), line.overloaded)
        for rate, wait, overloaded in zip(*columns, strict=True):
            if not overloaded:
                plans[rate] = min((wait, line.label), plans.get(rate, (wait, line.label)))
    common = set.intersection(*map(set, kept.values())) if len(kept) > 1 else set()
    if common:
        rate = max(common)
        waits = sorted(line[rate] for line in kept.values())
        (best, quick), (worst, slow) = waits[0], waits[-1]
        ratio = style.times(worst / best)
        text += (
            f"; at {trimmed_number(rate)} request/s the p99 TTFT of {quick} is {ratio} shorter "
            f"than that of {slow}"
        )
    return text
