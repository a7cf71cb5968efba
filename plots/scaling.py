"""Strong scaling: a lone request's time per token against the number of chips, with the bound of reading the weights."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import series, style
from plots.series import Series
from sim.studies.sweep import Swept


def draw(swept: Swept) -> Figure:
    """The bound: a token's weights over the bandwidth of the chips that read at the same time, those of one stage."""
    lines = [
        each
        for each in series.series(swept, "chips")
        if None not in each.values("lone_request.tpot_ms")
    ]
    figure = style.figure(7.0, 4.4)
    axis = figure.subplots()
    for each in lines:
        chips, times = each.values("chips"), each.values("lone_request.tpot_ms")
        series.plot(axis, each, chips, times, [False] * len(chips))
        axis.plot(chips, each.values("bound_tpot_ms"), color=each.colour, ls=":", lw=1.2)
        for place, time, tensor in zip(chips, times, each.values("plan.tensor"), strict=True):
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
        ylabel="time per output token of a lone request, ms",
    )
    axis.set(xscale="log", yscale="log")
    axis.margins(y=0.1)
    style.plain_log(axis.xaxis)
    style.plain_log(axis.yaxis)
    bound = Line2D([], [], color="#555555", ls=":", lw=1.2, label="bound: reading the weights")
    style.title(figure, finding(lines), style.keyed(figure, [*series.key(lines), bound]))
    series.footnote(figure, swept)
    return figure


def finding(lines: list[Series]) -> str:
    """What more chips gain, and how far from the bound that ends."""
    told = []
    for each in lines:
        chips, times, bound = (
            each.values(key) for key in ("chips", "lone_request.tpot_ms", "bound_tpot_ms")
        )
        if len(chips) > 1:
            best = times.index(min(times))
            gain = f"{style.times(times[0] / times[best])} faster on {chips[best]:,.0f} chips than on {chips[0]:,.0f}"
            gain = gain if best else f"no faster on {chips[-1]:,.0f} chips than on {chips[0]:,.0f}"
            told.append(
                f"{each.label}: {gain}, where it takes {style.times(times[best] / bound[best])} the bound"
            )
    return "; ".join(told) or "No system ran on several numbers of chips"
