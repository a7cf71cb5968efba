"""Users against tokens per second of each: flat until the pipeline fills."""

from typing import Any

from matplotlib.figure import Figure

from plots import series, style
from plots.series import Series
from sim.sweep import Swept

FLAT = 0.9  # of the speed of the fewest users: so long it counts as flat


def draw(swept: Swept) -> Figure:
    """Median requests.  Dotted: as many users as a replica has micro-batches in flight, one for each stage."""
    lines = series.series(swept, "users")
    figure = style.figure(7.0, 4.2)
    axis = figure.subplots()
    for each in lines:
        users, speeds = each.values("users"), each.speeds
        series.plot(axis, each, users, speeds, [False] * len(users))
        stages = each.values("stages")[0]
        if stages and 1 < stages <= max(users):
            axis.axvline(stages, color=each.colour, ls=":", lw=1.2)
            place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "top", "color": each.colour}
            transform = axis.get_xaxis_transform()
            axis.annotate(f"{stages:.0f} stages", (stages, 1), (3, 0), xycoords=transform, **place)
    axis.set(xlabel="users, each with one request at a time", ylabel="output tokens per second of one user", xscale="log")
    axis.set_ylim(0, None)
    style.plain_log(axis.xaxis)
    style.title(figure, finding(lines), style.keyed(figure, series.key(lines)))
    style.footnote(figure, series.footnote(swept))
    return figure


def flat_until(each: Series) -> float:
    """The most users for whom, and for all fewer, the speed is 90 % of that of the fewest."""
    users, speeds = each.values("users"), each.speeds
    slow = (i for i, value in enumerate(speeds) if value < FLAT * speeds[0])
    return users[next(slow, len(users)) - 1]


def finding(lines: list[Series]) -> str:
    """How much faster one user is than on the others, and until how many users a speed holds."""
    if not lines:
        return "No system served a request"
    best = max(lines, key=lambda each: each.speeds[0])
    fewest = best.values("users")[0]
    who = "a lone user" if fewest == 1 else f"each of {fewest:,.0f} users"
    others = "".join(f", {style.times(best.speeds[0] / e.speeds[0])} that of {e.label}" for e in lines if e is not best)
    held = ", ".join(f"{flat_until(e):,.0f} users on {e.label}" for e in [best, *(e for e in lines if e is not best)])
    return f"{best.label}: {who} gets {style.number(best.speeds[0])} token/s{others}; within 10% of that until {held}"
