"""Users against tokens per second of each, and against the wait for the first token."""

from typing import Any

from matplotlib.figure import Figure

from plots import series, style
from plots.series import Series
from sim.studies.sweep import Swept

FLAT = 0.9  # of the speed of the fewest users: so long it counts as flat


def draw(swept: Swept) -> Figure:
    """Median requests.  Dotted: how many requests fill the pipeline of a replica."""
    lines = series.series(swept, "users")
    figure = style.figure(8.5, 4.2)
    speed, first = figure.subplots(1, 2)
    for each in lines:
        users = each.values("users")
        series.plot(speed, each, users, each.speeds, [False] * len(users))
        series.plot(first, each, users, each.values("median_ttft_ms"), [False] * len(users))
        fill = each.values("fill")[0]
        if fill and 1 < fill <= max(users):
            place: dict[str, Any] = {
                "textcoords": "offset points",
                "fontsize": 8,
                "va": "top",
                "color": each.colour,
            }
            for axis in (speed, first):
                axis.axvline(fill, color=each.colour, ls=":", lw=1.2)
            speed.annotate(
                f"{fill:.0f} fill it",
                (fill, 1),
                (3, 0),
                xycoords=speed.get_xaxis_transform(),
                **place,
            )
    speed.set(ylabel="output tokens per second of one user", ylim=(0, None))
    first.set(ylabel="time to first token, ms", yscale="log")
    style.plain_log(first.yaxis)
    for axis in (speed, first):
        axis.set(xlabel="users, each with one request at a time", xscale="log")
        style.plain_log(axis.xaxis)
    style.title(figure, finding(lines), style.keyed(figure, series.key(lines)))
    series.footnote(figure, swept)
    return figure


def flat_until(each: Series) -> float:
    """The most users for whom, and for all fewer, the speed is 90 % of that of the fewest."""
    users, speeds = each.values("users"), each.speeds
    slow = (i for i, value in enumerate(speeds) if value < FLAT * speeds[0])
    return users[next(slow, len(users)) - 1]


def finding(lines: list[Series]) -> str:
    """How much faster one user is than on the others, until how many users a speed holds, and the wait that this then hides."""
    if not lines:
        return "No system served a request"
    best = max(lines, key=lambda each: each.speeds[0])
    fewest = best.values("users")[0]
    who = "a single user" if fewest == 1 else f"each of {fewest:,.0f} users"
    others = "".join(
        f", {style.times(best.speeds[0] / e.speeds[0])} that of {e.label}"
        for e in lines
        if e is not best
    )
    held = ", ".join(
        f"{flat_until(e):,.0f} users on {e.label}"
        for e in [best, *(e for e in lines if e is not best)]
    )
    ordered = [best, *(each for each in lines if each is not best)]
    waits = ", ".join(
        f"{style.number(each.values('median_ttft_ms')[-1] / 1000)} s on {each.label}"
        for each in ordered
    )
    wait = f"; a first token then takes {waits} with {best.values('users')[-1]:,.0f} users"
    return f"{best.label}: {who} gets {style.number(best.speeds[0])} token/s{others}; within 10% of that until {held}{wait}"
