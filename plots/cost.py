"""Dollars and joules of tokens over the load, with the range of the card's price as a band."""

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import claims, series, style
from plots.price import CARD, CARDS, USD
from plots.series import Series
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

LEAST, MOST = "least_card_usd", "most_card_usd"
JOULES = "energy.joules_per_token"


def draw(swept: Swept) -> Figure:
    """Draw dollars per million output tokens on the left, and joules per token on the right.

    The band is the token price from the least to the most that a card may cost, by the `range` of
    its chip's file. Other uncertain numbers are left out.
    """
    x = series.load(swept)
    lines = [line for line in series.series(swept, x) if line.knows(USD) or line.knows(JOULES)]
    figure = style.figure(9.5, 4.4)
    usd, joules = figure.subplots(1, 2)
    bands = False
    for line in lines:
        loads = line.values(x)
        if line.knows(USD):
            series.plot(usd, line, loads, line.values(USD), line.hollow)
            if band := price_band(line):
                usd.fill_between(loads, *band, color=line.colour, alpha=0.18, lw=0)
                bands = True
        if line.knows(JOULES):
            series.plot(joules, line, loads, line.values(JOULES), line.hollow)
    usd.set_ylabel("$ per million output tokens")
    joules.set_ylabel("J for an output token")
    for axis in (usd, joules):
        label = "users, each with one request at a time" if x == "users" else "requests per second"
        axis.set(xlabel=label, xscale="log", yscale="log")
        if lines:
            style.plain_log(axis.xaxis)
            style.plain_log(axis.yaxis)
    handles: list[Artist] = [*series.key(lines)]
    if bands:
        handles.append(Patch(color="#555555", alpha=0.18, label="band: range of the card's price"))
    if any(True in line.hollow for line in lines):
        handles.append(series.hollow())
    style.title(figure, finding(lines, x), style.keyed(figure, handles))
    series.sweep_footnote(figure, swept)
    return figure


def price_band(line: Series) -> tuple[list[float], list[float]] | None:
    """Return the least and the most USD per million tokens, at each point of a line.

    None if the chip's file has no range for its price, or the scenario has a price of its own.
    """
    if not all(line.knows(key) for key in (LEAST, MOST, CARD, CARDS)) or not line.values(CARD)[0]:
        return None
    columns = (line.values(key) for key in (USD, CARDS, CARD, LEAST, MOST))
    ends = [
        (usd + cards * (least / card - 1), usd + cards * (most / card - 1))
        for usd, cards, card, least, most in zip(*columns, strict=True)
    ]
    return [low for low, _ in ends], [high for _, high in ends]


def finding(lines: Sequence[Series], x: str) -> str:
    """Return the title: the cheapest token of each kind of chips that keeps up, and its load."""
    cheapest: dict[tuple[str, int], tuple[float, float, Series]] = {}
    for line in (line for line in lines if line.knows(USD)):
        points = zip(line.values(USD), line.values(x), line.steady, strict=True)
        for usd, load, steady in points:
            if steady and usd < cheapest.get(line.chips, (float("inf"),))[0]:
                cheapest[line.chips] = usd, load, line
    if not cheapest:
        return "What a token costs is not known of these systems"
    unit = "users" if x == "users" else "request/s"
    parts = [
        f"{line.label} ${trimmed_number(usd)} at {trimmed_number(load)} {unit}"
        for usd, load, line in sorted(cheapest.values(), key=lambda value: value[0])
    ]
    return claims.joined(f"Cheapest million tokens: {parts[0]}", *parts[1:])
