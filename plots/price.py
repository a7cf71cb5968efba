"""The card price at which a token costs as much as that of another system.

It is drawn under the same load, and at the same speed of a user.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import series, style
from plots.looks import LINES, LineStyle
from plots.series import Series
from sim.economics.break_even import break_even
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

USD, CARDS, CARD = (
    "economics.usd_per_mtok",
    "economics.usd_per_mtok_by_cause.chips",
    "economics.card_usd",
)


class Against(NamedTuple):
    """A system with priced cards, and the plans of other chips that it is compared with."""

    mine: Series
    others: tuple[Series, ...]
    dashes: LineStyle

    @property
    def label(self) -> str:
        """The text of the key."""
        return f"{self.mine.label} against {' or '.join(line.label for line in self.others)}"

    def price(self, at: int, usd: float) -> float:
        """Return the card price at which a token of the point `at` costs `usd` per million [$].

        It is negative if the token costs more even with cards for nothing.
        """
        total, cards, card = (self.mine.values(key)[at] for key in (USD, CARDS, CARD))
        return break_even(total - cards, cards / card, usd)

    def loaded(self, x: str) -> dict[float, tuple[float, bool]]:
        """Return the card price [$], and whether users wait for room, by load.

        Left out: loads at which only one side has a point.
        """
        theirs: dict[float, float] = {}
        for other in self.others:
            for load, usd in zip(other.values(x), other.values(USD), strict=True):
                theirs[load] = min(usd, theirs.get(load, usd))
        return {
            load: (self.price(at, theirs[load]), waits(self.mine)[at])
            for at, load in enumerate(self.mine.values(x))
            if load in theirs
        }

    def fast(self) -> dict[float, float]:
        """Return the card price [$] at which the cheapest points of both sides cost as much.

        It is by the speed that a user must get at least [token/s].
        Left out: speeds that only one side reaches.
        """
        prices = {}
        fastest = {speed for line in (self.mine, *self.others) for speed in speeds(line)}
        for speed in sorted({0.0, *fastest}):
            ours = enough(self.mine, speed)
            usd = [line.values(USD)[i] for line in self.others for i in enough(line, speed)]
            if ours and usd:
                prices[speed] = max(self.price(at, min(usd)) for at in ours)
        return prices


def draw(swept: Swept) -> Figure:
    """Draw card prices: left under the same load, right over the speed that a user must get.

    Right: only points at which no request waits for room count. Only the priced cards reach the
    shaded speeds.
    """
    x, pairs = series.load(swept), against(swept)
    figure = style.figure(10.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for row, pair in enumerate(pairs):
        points = {load: point for load, point in pair.loaded(x).items() if point[0] > 0}
        prices, hollow = (
            [price for price, _ in points.values()],
            [waiting for _, waiting in points.values()],
        )
        line = replace(pair.mine, look=replace(pair.mine.look, dashes=pair.dashes))
        series.plot(left, line, list(points), prices, hollow)
        never = [load for load in pair.loaded(x) if load not in points]
        left.plot(
            never,
            [0.03 + 0.035 * row] * len(never),
            ls="",
            marker="x",
            color=pair.mine.colour,
            transform=left.get_xaxis_transform(),
        )
        steps = pair.fast()
        right.step(
            list(steps),
            [price if price > 0 else float("nan") for price in steps.values()],
            where="pre",
            lw=1.8,
            color=line.colour,
            ls=pair.dashes,
        )
    for axis in (left, right):
        axis.set(yscale="log")
        cards_cost(axis, pairs)
    left.set(xscale="log", ylabel=f"price of a card{_kind(pairs)}, $")
    left.set_xlabel(
        "users, each with one request at a time" if x == "users" else "requests per second"
    )
    right.set_xlabel("output tokens per second that a user must get")
    if pairs:
        style.plain_log(left.xaxis)
        style.plain_log(left.yaxis)
        shade_unmatched_speeds(right, pairs)
    handles: list[Artist] = [
        Line2D(
            [],
            [],
            color=pair.mine.colour,
            ls=pair.dashes,
            lw=1.8,
            marker=pair.mine.look.marker,
            ms=4.5,
            label=pair.label,
        )
        for pair in pairs
    ]
    for label, marker, face in (
        ("hollow: users wait for room, or too short to tell", "o", "white"),
        ("a token costs more even with cards for nothing", "x", None),
    ):
        handles.append(
            Line2D([], [], color="#555555", ls="", ms=4.5, label=label, marker=marker, mfc=face)
        )
    style.title(figure, finding(pairs, x), style.keyed(figure, handles))
    series.sweep_footnote(figure, swept, "speed of a user: 1/TPOT of the median request")
    return figure


def against(swept: Swept) -> list[Against]:
    """Return each system with the first kind of priced card, against all plans of other chips."""
    lines = [
        line
        for line in series.series(swept, series.load(swept))
        if line.knows(USD) and line.knows(CARD)
    ]
    kinds = [line.chips[0] for line in lines if line.values(CARD)[0]]
    mine = [line for line in lines if line.values(CARD)[0] and line.chips[0] == kinds[0]]
    others: dict[tuple[str, int], list[Series]] = {}
    for line in lines:
        if kinds and line.chips[0] != kinds[0]:
            others.setdefault(line.chips, []).append(line)
    return [
        Against(line, tuple(plans), LINES[(place + len(others) * own) % len(LINES)])
        for own, line in enumerate(mine)
        for place, plans in enumerate(others.values())
    ]


def waits(line: Series) -> list[bool]:
    """Return whether requests wait for room, at each point.

    There the speed of a user is no measure of the time to its first token.
    """
    return [verdict != "STABLE" for verdict in line.table["verdict"]]


def speeds(line: Series) -> list[float]:
    """Return the speed of a user at each point where no request waits [token/s]."""
    return [speed for speed, waiting in zip(line.speeds, waits(line), strict=True) if not waiting]


def enough(line: Series, speed: float) -> list[int]:
    """Return the points at which a user gets at least `speed` and does not wait."""
    return [
        i
        for i, (own, waiting) in enumerate(zip(line.speeds, waits(line), strict=True))
        if own >= speed and not waiting
    ]


def named(pairs: Sequence[Against]) -> str:
    """Return the labels of the systems with priced cards."""
    return ", ".join(dict.fromkeys(pair.mine.label for pair in pairs))


def _kind(pairs: Sequence[Against]) -> str:
    """Return ' (groq-lpu-v1)', the kind of the priced cards; '' without any."""
    return f" ({pairs[0].mine.chips[0]})" if pairs else ""


def cards_cost(axis: Axes, pairs: Sequence[Against]) -> None:
    """Draw a line at the price that the cards have."""
    for price in {pair.mine.values(CARD)[0]: None for pair in pairs}:
        axis.axhline(price, color="#555555", lw=1.0)
        axis.annotate(
            f"a card costs ${price:,.0f}",
            (0, price),
            (3, 2),
            xycoords=axis.get_yaxis_transform(),
            textcoords="offset points",
            fontsize=8,
        )


def shade_unmatched_speeds(axis: Axes, pairs: Sequence[Against]) -> None:
    """Shade the speeds that only the priced cards reach."""
    others = max(max(speeds(line), default=0.0) for pair in pairs for line in pair.others)
    ours = max(max(speeds(pair.mine), default=0.0) for pair in pairs)
    if ours > others > 0:
        axis.axvspan(others, ours, color="#eeeeee", zorder=0)
        text = "only " + named(pairs) if len(named(pairs)) < 20 else "only the priced cards"
        axis.annotate(
            text,
            ((others + ours) / 2, 0.02),
            xycoords=axis.get_xaxis_transform(),
            ha="center",
            fontsize=8,
        )
    axis.set_xlim(0, 1.02 * max(ours, others) or 1)


def finding(pairs: Sequence[Against], x: str) -> str:
    """Return the title: the highest card price under one load, and the speed that is worth it.

    Beyond that speed the cards are worth their price. Each system counts against the other chips
    that are hardest to beat.
    """
    candidates = []
    for mine in {pair.mine.label: pair.mine for pair in pairs}.values():
        own = [pair for pair in pairs if pair.mine is mine]
        if ceilings := [(*ceiling, pair) for pair in own if (ceiling := highest_price(pair, x))]:
            candidates.append(
                (*min(ceilings, key=lambda ceiling: ceiling[0]), max(map(worth, own)))
            )
    if not candidates:
        return "No cards are priced against another chip"
    price, load, pair, speed = max(candidates, key=lambda candidate: candidate[0])
    unit = "users" if x == "users" else "request/s"
    text = (
        f"A token of {pair.mine.label} costs more under the same load even with cards for nothing"
    )
    if price > 0:
        text = (
            f"Under the same load a card of {pair.mine.label} may cost ${trimmed_number(price)} "
            f"at most ({trimmed_number(load)} {unit})"
        )
    if speed < max(speeds(pair.mine), default=0.0):
        card = trimmed_number(pair.mine.values(CARD)[0])
        text += (
            f"; at ${card} a card its token is the cheapest only where a user must get more than "
            f"{trimmed_number(speed)} token/s"
        )
    return text


def highest_price(pair: Against, x: str) -> tuple[float, float] | None:
    """Return the highest card price under one load [$], and that load. None if requests wait."""
    return max(
        ((price, load) for load, (price, waiting) in pair.loaded(x).items() if not waiting),
        default=None,
    )


def worth(pair: Against) -> float:
    """Return the speed of a user beyond which the priced cards have the cheaper token [token/s].

    The cards have their real price. Beyond that speed the other chips may also be too slow.
    """
    dearer = [speed for speed, price in pair.fast().items() if price < pair.mine.values(CARD)[0]]
    return max(dearer, default=0.0)
