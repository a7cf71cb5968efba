"""Users against tokens per second of each, and against the wait for the first token."""

from collections.abc import Callable

from matplotlib.figure import Figure

from plots import series, style
from plots.series import Series
from sim.studies.sweep import Swept

FLAT = 0.9  # of the speed of the fewest users: so long it counts as flat


def draw(swept: Swept) -> Figure:
    """Draw median requests.  Dotted: the users whose tokens keep a pipeline busy."""
    lines = series.series(swept, "users")
    figure = style.figure(8.5, 4.2)
    speed, first = figure.subplots(1, 2)
    for each in lines:
        users = each.values("users")
        series.plot(speed, each, users, each.speeds, each.hollow)
        series.plot(first, each, users, each.values("median_ttft_ms"), each.hollow)
        busy = busy_from(each)
        if busy and 1 < busy <= max(users):
            for axis in (speed, first):
                axis.axvline(busy, color=each.colour, ls=":", lw=1.2)
            first.annotate(
                f"{busy:.0f} users keep {each.label} busy",
                (busy, 0),
                (4, 4),
                xycoords=first.get_xaxis_transform(),
                textcoords="offset points",
                fontsize=8,
                color=each.colour,
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


def busy_from(each: Series) -> float | None:
    """Return the users whose requests, prompts included, need all beats of a pipeline; None where the engine has no beat.

    A request alone takes T seconds and n beats, one for each token of its prompt and answer: T / (n beat) users.
    """
    if not each.knows("beat.us"):
        return None
    requests = each.values("completed")[0]
    prompt, output = (
        each.values(f"total_{kind}_tokens")[0] / requests for kind in ("input", "output")
    )
    ttft, tpot = (each.values(f"lone_request.{kind}_ms")[0] for kind in ("ttft", "tpot"))
    beats = (prompt + output) / each.values("beat.tokens")[0]
    return 1000 * (ttft + (output - 1) * tpot) / (beats * each.values("beat.us")[0])


def finding(lines: list[Series]) -> str:
    """The fastest system's speed for the fewest users, until how many it holds, and the first token's wait with the most."""
    if not lines:
        return "No system served a request"
    best = max(lines, key=lambda each: each.speeds[0])
    others = [each for each in lines if each is not best]
    fewest, most = best.values("users")[0], best.values("users")[-1]
    who = "a single user" if fewest == 1 else f"each of {fewest:,.0f} users"
    faster = "".join(
        f", {style.times(best.speeds[0] / each.speeds[0])} {each.label}" for each in others
    )
    held = _beside(best, others, lambda each: f"{flat_until(each):,.0f} users")
    wait = _beside(
        best, others, lambda each: f"{style.number(each.values('median_ttft_ms')[-1] / 1000)} s"
    )
    return (
        f"{best.label}: {style.number(best.speeds[0])} token/s for {who}{faster}, within 10% of that until "
        f"{held}; with {most:,.0f} a first token takes {wait}"
    )


def _beside(best: Series, others: list[Series], told: Callable[[Series], str]) -> str:
    """'9.69 s (h100x8: 0.277 s)'."""
    rest = ", ".join(f"{each.label}: {told(each)}" for each in others)
    return told(best) + (f" ({rest})" if rest else "")
