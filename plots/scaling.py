"""Strong scaling: TPOT of a single request over the number of chips, and its bound."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import series, style
from plots.series import Series
from sim.studies.sweep import Swept


def draw(swept: Swept) -> Figure:
    """Draw TPOT, and dotted the time to read the weights.

    That bound is a token's weights divided by the bandwidth of the chips of one stage. Only they
    read at the same time.
    """
    lines = [
        line
        for line in series.series(swept, "chips")
        if None not in line.values("lone_request.tpot_ms")
    ]
    figure = style.figure(7.0, 4.4)
    axis = figure.subplots()
    for line in lines:
        chips, times = line.values("chips"), line.values("lone_request.tpot_ms")
        series.plot(axis, line, chips, times, [False] * len(chips))
        axis.plot(chips, line.values("bound_tpot_ms"), color=line.colour, ls=":", lw=1.2)
        for place, time, tensor in zip(chips, times, line.values("plan.tensor"), strict=True):
            axis.annotate(
                f"{tensor:.0f}",
                (place, time),
                (0, 6),
                textcoords="offset points",
                fontsize=8,
                ha="center",
            )
    axis.set(
        xlabel="chips (the numbers: tensor degree)",
        ylabel="time per output token of a single request, ms",
    )
    axis.set(xscale="log", yscale="log")
    axis.margins(y=0.1)
    style.plain_log(axis.xaxis)
    style.plain_log(axis.yaxis)
    bound = Line2D([], [], color="#555555", ls=":", lw=1.2, label="bound: reading the weights")
    style.title(figure, finding(lines), style.keyed(figure, [*series.key(lines), bound]))
    series.sweep_footnote(figure, swept)
    return figure


def finding(lines: list[Series]) -> str:
    """Return the title: the gain from more chips, and the ratio of the best TPOT to the bound."""
    clauses = []
    for line in lines:
        chips, times, bound = (
            line.values(key) for key in ("chips", "lone_request.tpot_ms", "bound_tpot_ms")
        )
        if len(chips) > 1:
            best = times.index(min(times))
            gain = f"{style.times(times[0] / times[best])} faster on {chips[best]:,.0f}"
            gain = gain if best else f"no faster on {chips[-1]:,.0f}"
            ratio = style.times(times[best] / bound[best])
            clauses.append(f"{line.label}: {gain} chips than on {chips[0]:,.0f}, {ratio} the bound")
    return "; ".join(clauses) or "No system ran on several numbers of chips"
