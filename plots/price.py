"""What a card may cost for a token to cost as much as another system's: under the same load, and where a user is as fast."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import series, style
from plots.series import Series
from sim.economics.break_even import break_even
from sim.studies.sweep import Swept

USD, CARDS, CARD = (
    "economics.usd_per_mtok",
    "economics.usd_per_mtok_by_cause.chips",
    "economics.card_usd",
)


class Against(NamedTuple):
    """A system whose cards are priced against the cheapest plan of other chips, each under rising load."""

    mine: Series
    others: tuple[Series, ...]
    dashes: str

    @property
    def label(self) -> str:
        return f"{self.mine.label} against {' or '.join(each.label for each in self.others)}"

    def price(self, at: int, usd: float) -> float:
        """The card's price at which a token of my point costs so much; negative where it costs more with cards for nothing."""
        total, cards, card = (self.mine.values(key)[at] for key in (USD, CARDS, CARD))
        return break_even(total - cards, cards / card, usd)

    def loaded(self, x: str) -> dict[float, tuple[float, bool]]:
        """By load, where both have a point: the price, and whether my users wait for room."""
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
        """By the speed that a user must get at least: the price at which the cheapest points of both cost as much."""
        found = {}
        fastest = {speed for each in (self.mine, *self.others) for speed in speeds(each)}
        for speed in sorted({0.0, *fastest}):
            ours = enough(self.mine, speed)
            usd = [each.values(USD)[i] for each in self.others for i in enough(each, speed)]
            if ours and usd:
                found[speed] = max(self.price(at, min(usd)) for at in ours)
        return found


def draw(swept: Swept) -> Figure:
    """Draw prices of cards: left under the same load, right by the speed that a user must get at least.

    Only points at which no request waits for room count on the right.  Shaded: only the cards that are priced are as fast.
    """
    x, pairs = series.load(swept), against(swept)
    figure = style.figure(10.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for row, pair in enumerate(pairs):
        looks = {"color": pair.mine.colour, "ls": pair.dashes}
        points = {load: told for load, told in pair.loaded(x).items() if told[0] > 0}
        prices, hollow = (
            [price for price, _ in points.values()],
            [waiting for _, waiting in points.values()],
        )
        series.plot(left, pair.mine, list(points), prices, hollow, **looks)
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
            **looks,
        )
    for axis in (left, right):
        axis.set(yscale="log")
        cards_cost(axis, pairs)
    left.set(xscale="log", ylabel=f"price of a card of {named(pairs)}, $")
    left.set_xlabel(
        "users, each with one request at a time" if x == "users" else "requests per second"
    )
    right.set_xlabel("output tokens per second that a user must get")
    if pairs:
        style.plain_log(left.xaxis)
        style.plain_log(left.yaxis)
        shade(right, pairs)
    handles: list[Artist] = [
        Line2D(
            [],
            [],
            color=pair.mine.colour,
            ls=pair.dashes,
            lw=1.8,
            marker=pair.mine.marker,
            ms=4.5,
            label=pair.label,
        )
        for pair in pairs
    ]
    marks: dict[str, dict[str, Any]] = {
        "hollow: users wait for room, or too short to tell": {"marker": "o", "mfc": "white"},
        "a token costs more even with cards for nothing": {"marker": "x"},
    }
    handles += [
        Line2D([], [], color="#555555", ls="", ms=4.5, label=label, **mark)
        for label, mark in marks.items()
    ]
    style.title(figure, finding(pairs, x), style.keyed(figure, handles))
    series.footnote(figure, swept, "speed of a user: 1/TPOT of the median request")
    return figure


def against(swept: Swept) -> list[Against]:
    """The systems of the first kind of card that is paid for, each against all plans of the same other chips."""
    lines = [
        each
        for each in series.series(swept, series.load(swept))
        if each.knows(USD) and each.knows(CARD)
    ]
    kinds = [each.chips[0] for each in lines if each.values(CARD)[0]]
    mine = [each for each in lines if each.values(CARD)[0] and each.chips[0] == kinds[0]]
    others: dict[tuple[str, int], list[Series]] = {}
    for each in lines:
        if kinds and each.chips[0] != kinds[0]:
            others.setdefault(each.chips, []).append(each)
    return [
        Against(each, tuple(plans), style.LINES[(place + len(others) * own) % len(style.LINES)])
        for own, each in enumerate(mine)
        for place, plans in enumerate(others.values())
    ]


def waits(each: Series) -> list[bool]:
    """Where requests queue for room, a user's speed says nothing of how long its first token takes."""
    return [verdict != "STABLE" for verdict in each.table["verdict"]]


def speeds(each: Series) -> list[float]:
    """Of its points at which nobody waits."""
    return [speed for speed, waiting in zip(each.speeds, waits(each), strict=True) if not waiting]


def enough(each: Series, speed: float) -> list[int]:
    """Its points at which a user is so fast and does not wait."""
    return [
        i
        for i, (own, waiting) in enumerate(zip(each.speeds, waits(each), strict=True))
        if own >= speed and not waiting
    ]


def named(pairs: Sequence[Against]) -> str:
    return ", ".join(dict.fromkeys(pair.mine.label for pair in pairs))


def cards_cost(axis: Axes, pairs: Sequence[Against]) -> None:
    """What the cards do cost."""
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


def shade(axis: Axes, pairs: Sequence[Against]) -> None:
    """The speeds that only the priced cards reach."""
    others = max(max(speeds(each), default=0.0) for pair in pairs for each in pair.others)
    ours = max(max(speeds(pair.mine), default=0.0) for pair in pairs)
    if ours > others > 0:
        axis.axvspan(others, ours, color="#eeeeee", zorder=0)
        text = "only " + named(pairs) if len(named(pairs)) < 20 else "only these"
        axis.annotate(
            text,
            ((others + ours) / 2, 0.02),
            xycoords=axis.get_xaxis_transform(),
            ha="center",
            fontsize=8,
        )
    axis.set_xlim(0, 1.02 * max(ours, others) or 1)


def finding(pairs: Sequence[Against], x: str) -> str:
    """What the best of the cards may cost under the same load, and from which speed of a user on they are worth their price, each
    against whichever other system is hardest to beat."""
    told = []
    for mine in {pair.mine.label: pair.mine for pair in pairs}.values():
        own = [pair for pair in pairs if pair.mine is mine]
        if ceilings := [(*ceiling, pair) for pair in own if (ceiling := most(pair, x))]:
            told.append((*min(ceilings, key=lambda each: each[0]), max(map(worth, own))))
    if not told:
        return "No cards are priced against another chip"
    price, load, pair, speed = max(told, key=lambda each: each[0])
    unit = "users" if x == "users" else "request/s"
    text = (
        f"A token of {pair.mine.label} costs more under the same load even with cards for nothing"
    )
    if price > 0:
        text = (
            f"Under the same load a card of {pair.mine.label} may cost ${style.number(price)} at most "
            f"({style.number(load)} {unit})"
        )
    if speed < max(speeds(pair.mine), default=0.0):
        card = style.number(pair.mine.values(CARD)[0])
        text += f"; at ${card} a card its token is the cheapest only where a user must get more than {style.number(speed)} token/s"
    return text


def most(pair: Against, x: str) -> tuple[float, float] | None:
    """The highest price under one load, and that load, of those under which nobody waits."""
    return max(
        ((price, load) for load, (price, waiting) in pair.loaded(x).items() if not waiting),
        default=None,
    )


def worth(pair: Against) -> float:
    """The speed beyond which a token of mine is the cheaper one, at what the cards do cost; or the other is not as fast."""
    dearer = [speed for speed, price in pair.fast().items() if price < pair.mine.values(CARD)[0]]
    return max(dearer, default=0.0)
