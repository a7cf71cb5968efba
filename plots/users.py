"""Speed of a user, and time to the first token, over the number of users."""

from collections.abc import Callable
from itertools import takewhile

from matplotlib.figure import Figure

from plots import claims, series, style
from plots.series import Series
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

FLAT = 0.9  # share of the speed with the fewest users; down to it the speed counts as flat


def draw(swept: Swept) -> Figure:
    """Draw median requests. Dotted: the number of users whose tokens keep a pipeline busy."""
    lines = series.series(swept, "users")
    figure = style.figure(8.5, 4.2)
    speed, first = figure.subplots(1, 2)
    texts = 0
    for line in lines:
        users = line.values("users")
        series.plot(speed, line, users, line.speeds, line.hollow)
        series.plot(first, line, users, line.values("median_ttft_ms"), line.hollow)
        busy = busy_from(line)
        if busy and 1.5 <= busy <= max(users):  # from two users on, as the text prints it
            for axis in (speed, first):
                axis.axvline(busy, color=line.colour, ls=":", lw=1.2)
            first.annotate(
                f"{busy:.0f} users keep {line.label} busy",
                (1, 0),  # at the right end: beside the line it could leave the axes
                (-2, 4 + 11 * texts),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=line.colour,
                bbox={"fc": "white", "ec": "none", "pad": 1},
            )
            texts += 1
    speed.set(ylabel="output tokens per second of one user", ylim=(0, None))
    first.set(ylabel="time to first token, ms", yscale="log")
    style.plain_log(first.yaxis)
    for axis in (speed, first):
        axis.set(xlabel="users, each with one request at a time", xscale="log")
        style.plain_log(axis.xaxis)
    style.title(figure, finding(lines), style.keyed(figure, series.marked_key(lines)))
    series.sweep_footnote(figure, swept)
    return figure


def flat_until(line: Series) -> float:
    """Return the most users up to which the speed is at least 90 % of that of the fewest.

    The system keeps up with all of these numbers of users.
    """
    speeds = line.speeds
    points = zip(line.values("users"), speeds, line.steady, strict=True)
    held = takewhile(lambda point: point[2] and point[1] >= FLAT * speeds[0], points)
    return [users for users, *_ in held][-1]


def busy_from(line: Series) -> float | None:
    """Return the number of users whose requests need all beats of a pipeline.

    An unloaded request takes T seconds and n beats, one for each token of its prompt and answer:
    T / (n beat) users. None if the engine has no beat. None also if parts of prompts are cached,
    because an unloaded request finds nothing in the cache.
    """
    if not line.knows("beat.us") or line.values("cached_tokens")[0]:
        return None
    requests = line.values("completed")[0]
    prompt, output = (
        line.values(f"total_{kind}_tokens")[0] / requests for kind in ("input", "output")
    )
    ttft, tpot = (line.values(f"lone_request.{kind}_ms")[0] for kind in ("ttft", "tpot"))
    beats = (prompt + output) / line.values("beat.tokens")[0]
    return 1000 * (ttft + (output - 1) * tpot) / (beats * line.values("beat.us")[0])


def finding(lines: list[Series]) -> str:
    """Return the title: the fastest system's speed for the fewest users, and where it falls.

    The title also has the TTFT with the most users that the systems it names keep up with.
    """
    if not lines:
        return "No system served a request"
    able = [line for line in lines if line.steady[0]]
    if not able:
        return "No system keeps up with the fewest users"
    best = max(able, key=lambda line: line.speeds[0])
    fewest = best.values("users")[0]
    fewest_users = "a single user" if fewest == 1 else f"each of {fewest:,.0f} users"
    others = claims.multiples_of(best.label, {line.label: line.speeds[0] for line in able})
    named = [best, *[line for line in able if line.chips != best.chips][:1]]
    most = max(set.intersection(*[set(_waits(line)) for line in named]), default=None)
    held = _beside(named, lambda line: _users(flat_until(line)))
    wait = most and _beside(named, lambda line: style.duration(_waits(line)[most]))
    return claims.joined(
        f"{best.label}: {trimmed_number(best.speeds[0])} token/s for {fewest_users}"
        + (f", {others}" if others else ""),
        f"within 10 % of that up to {held}",
        f"with {most:,.0f} a first token takes {wait}" if most else "",
    )


def _users(number: float) -> str:
    """Return '1 user', '36 users'."""
    return f"{number:,.0f} user{'s' if round(number) != 1 else ''}"


def _waits(line: Series) -> dict[float, float]:
    """Return the median TTFT [ms] by the number of users, where the system keeps up."""
    points = zip(line.values("users"), line.values("median_ttft_ms"), line.steady, strict=True)
    return {users: wait for users, wait, steady in points if steady}


def _beside(named: list[Series], value: Callable[[Series], str]) -> str:
    """Return '9.69 s (8 H100: 0.277 s)': the best system, and another one if there is one."""
    best, *others = named
    return value(best) + "".join(f" ({other.label}: {value(other)})" for other in others)
