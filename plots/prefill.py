"""Prompt time over prompt tokens, log-log: replies as dots, the simulated deployment as a line."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import style
from plots.looks import MAKER_COLOURS, OTHER_MAKERS
from sim.results.labels import trimmed_number
from sim.studies.prefill import Prefill

PANELS_IN_A_ROW = 3


def draw(prefills: Sequence[Prefill]) -> Figure:
    """Draw a panel for each deployment. All panels share their axes."""
    columns = max(1, min(PANELS_IN_A_ROW, len(prefills)))
    rows = max(1, math.ceil(len(prefills) / columns))
    figure = style.figure(1.0 + 2.9 * columns, 1.4 + 2.2 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, prefill in zip(axes, prefills, strict=False):
        tokens, seconds = zip(*prefill.measured, strict=True)
        colour = MAKER_COLOURS.get(prefill.vendor, OTHER_MAKERS[0])
        axis.plot(
            tokens, [1000 * s for s in seconds], ls="", marker="o", ms=4, mfc="none", mec=colour
        )
        tokens, seconds = zip(*prefill.simulated, strict=True)
        axis.plot(tokens, [1000 * s for s in seconds], color="black", lw=1.4)
        model, _, chips = prefill.label.partition(": ")
        axis.set_title(f"{model}\n{chips}", fontsize=9, loc="left")
        axis.set(xscale="log", yscale="log")
    for axis in figure.axes[len(prefills) :]:
        axis.set_visible(False)
    for place, axis in enumerate(figure.axes[: len(prefills)]):
        style.plain_log(axis.xaxis)
        style.plain_log(axis.yaxis)
        if place + columns >= len(prefills):  # nothing is drawn below
            axis.set_xlabel("new tokens of the prompt")
            axis.tick_params(labelbottom=True)
    figure.supylabel("prompt time, ms", fontsize=10)
    dots = Line2D(
        [],
        [],
        ls="",
        marker="o",
        ms=4,
        mfc="none",
        mec="#555555",
        label="one reply, measured by the server",
    )
    line = Line2D([], [], color="black", lw=1.4, label="simulated, unloaded")
    figure.legend(handles=[dots, line], loc="outside lower center", ncols=2, fontsize=9)
    style.title(figure, finding(prefills))
    return figure


def finding(prefills: Sequence[Prefill]) -> str:
    """Return the title: the prompt time per token of the fastest tenth, measured and simulated."""
    if not prefills:
        return "No deployment has enough replies for a beat"
    measured, simulated = [], []
    for prefill in prefills:
        rates = sorted(seconds / tokens for tokens, seconds in prefill.measured)
        measured.append(1e6 * rates[len(rates) // 10])
        (first, start), (last, end) = prefill.simulated[0], prefill.simulated[-1]
        simulated.append(1e6 * ((end - start) / (last - first) if last > first else start / first))
    providers = " and ".join(dict.fromkeys(prefill.provider for prefill in prefills))
    return (
        f"Prompt time grows with the prompt's tokens: the fastest replies of {providers} take "
        f"{span(measured)} us a token, simulated chips {span(simulated)}"
    )


def span(values: Sequence[float]) -> str:
    """Return '49 to 64', or one number, to two digits."""
    low, high = (trimmed_number(float(f"{value:.2g}")) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
