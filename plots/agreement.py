"""Simulated over measured times, log-log, by chip. Fitted points and test points are apart."""

from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from plots import style
from plots.looks import Appearance, system_colours
from sim.results.labels import percent_text
from sim.results.validation_summary import PointRow

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "d", "p")


class TimedPoint(NamedTuple):
    """A point with both times [ms], the error between them [%], its chip and maker."""

    measured: float
    simulated: float
    error_pct: float
    status: str
    chip: str
    vendor: str


def draw(rows: Iterable[PointRow]) -> Figure:
    """Draw one panel of points that engines were not fitted to, and one of points that they were.

    Each chip has a mark of its own, in a shade of the colour of its maker.
    Left out: bounds that hold, because they have no error to show.
    """
    kinds = {"not fitted to": ("tested", "assumed"), "fitted to": ("fitted",)}
    scored = [status for statuses in kinds.values() for status in statuses]
    points = [
        TimedPoint(
            row.measured, row.simulated, row.error_pct, row.status, row.chip, row.vendor or ""
        )
        for row in rows
        if row.status in scored and not (row.bounds and row.bounds.bound == "kept")
        if row.measured is not None and row.simulated is not None and row.error_pct is not None
    ]
    chips = sorted({point.chip for point in points})
    makers = {point.chip: point.vendor for point in points}
    drawn = [Appearance(chip, None, makers[chip], chip) for chip in chips]
    colours = dict(zip(chips, system_colours(drawn), strict=True))
    panels = {
        label: of for label, of in kinds.items() if any(point.status in of for point in points)
    } or {"fitted to": ()}
    figure = style.figure(1.5 + 4.0 * len(panels), 5.4)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    times = [time for point in points for time in (point.measured, point.simulated)]
    low, high = (0.6 * min(times), 1.6 * max(times)) if times else (0.1, 10.0)
    for axis, (label, statuses) in zip(axes, panels.items(), strict=True):
        shown = [point for point in points if point.status in statuses]
        axis.plot([low, high], [low, high], color="#555555", lw=0.8)
        axis.fill_between(
            [low, high], [0.8 * low, 0.8 * high], [1.25 * low, 1.25 * high], color="#eeeeee", lw=0
        )
        for place, chip in enumerate(chips):
            of_chip = [point for point in shown if point.chip == chip]
            axis.plot(
                [point.measured for point in of_chip],
                [point.simulated for point in of_chip],
                ls="",
                marker=MARKS[place % len(MARKS)],
                ms=4,
                mfc="none",
                mec=colours[chip],
                label=chip,
            )
        errors = [abs(point.error_pct) for point in shown if point.status != "assumed"]
        middle = f"median error {median(errors):.1f} %" if errors else "none"
        assumed = len(shown) - len(errors)
        also = (
            f"\nalso drawn: {assumed} with numbers taken over from a neighbour" if assumed else ""
        )
        axis.set(
            xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="measured, ms"
        )
        axis.set_title(
            f"{len(errors):,} times that engines were {label}: {middle}{also}",
            fontsize=9,
            loc="left",
        )
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(LogLocator(numticks=6))
            ticks.set_minor_locator(NullLocator())
            style.plain_ticks(ticks)
    axes[0].set_ylabel("simulated, ms")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
    )
    style.title(figure, finding(points))
    return figure


def finding(points: Sequence[TimedPoint]) -> str:
    """Return the title: the errors of the points that no engine was fitted to."""
    tested = [point for point in points if point.status == "tested"]
    errors = [abs(point.error_pct) for point in tested]
    if not errors:
        return "Nothing here tests the simulator: engines were fitted to all of it"
    near = mean(1 / 1.25 <= 1 + point.error_pct / 100 <= 1.25 for point in tested)
    half = f"Half of {len(errors):,} times that no engine was fitted to"
    return f"{half} are within {median(errors):.1f} %, {percent_text(near)} within the grey band"
