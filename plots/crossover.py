"""Cost of a million output tokens over the price of a card.

The systems with the first kind of card that has a price are compared with all others.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import claims, style
from plots.looks import system_looks
from sim.economics.break_even import (
    LOADED,
    PricedSystems,
    break_even_points,
    priced_card_systems,
)
from sim.results.labels import trimmed_number
from sim.results.saving import Saved

NEAR = 1.5  # labels of prices with a smaller ratio would overlap


def draw(saved: Saved) -> Figure:
    """Draw the cost for one user (dashed) and under the run's load (solid).

    Circles: a token costs as much as the cheapest token of other chips.
    """
    systems = saved.summary.priced_systems
    priced = priced_card_systems(systems)
    looks = system_looks(saved.summary.identities)
    verdicts = {name: s.metrics.verdict for name, s in saved.summary.systems.items()}
    figure = style.figure(8.0, 5.2)
    axis = figure.subplots()
    dearest = max(systems[name].card_usd for name in priced)
    prices = np.geomspace(min(100.0, dearest / 10), 2 * dearest, 200)
    for place, (name, system) in enumerate(systems.items()):
        for load, (usd, speed) in system.price_and_speed().items():
            line = "-" if load == LOADED else "--"
            behind = load == LOADED and verdicts[name] in claims.BEHIND
            star = "*" if behind else ""
            flat, slope = system.split_token_price(usd) if name in priced else (usd, 0.0)
            axis.plot(
                prices,
                flat + slope * prices,
                line,
                color=looks[name].colour,
                marker=looks[name].marker,
                markevery=(5 + 5 * place, 40),
                ms=4.5,
                label=f"{looks[name].label}, {load}{star}: {trimmed_number(speed)} token/s",
            )
    for price in {systems[name].card_usd: None for name in priced}:
        axis.axvline(price, color="#555555", lw=1.0)
        axis.annotate(
            f"a card costs {usd_of(price)}",
            (price, 1),
            (-4, -2),
            xycoords=axis.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=8,
            ha="right",
            va="top",
        )
    mark_crossings(axis, systems, priced, (prices[0], prices[-1]))
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=f"price of a card ({systems[priced[0]].chip}), $",
        ylabel="$ per million output tokens",
    )
    ticks = [
        tick
        for tick in (10, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 1e6, 3e6)
        if prices[0] <= tick <= prices[-1]
    ]
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    style.plain_log(axis.yaxis)
    axis.minorticks_off()
    labels = {name: look.label for name, look in looks.items()}
    rows = style.keyed(figure, axis.get_legend_handles_labels()[0])
    style.title(figure, finding(systems, labels), rows)
    late = set(verdicts.values()) & set(claims.BEHIND)
    note = "* the system does not keep up with this load"
    style.run_footnote(figure, saved.summary, *([note] if late else []))
    return figure


def mark_crossings(
    axis: Axes, systems: PricedSystems, priced: Sequence[str], span: tuple[float, float]
) -> None:
    """Draw a circle where a token costs as much as the cheapest token of other chips.

    There is one such cost for one user, and one under the run's load.
    """
    cheapest: dict[str, float] = {}
    for name in (name for name in systems if name not in priced):
        for load, (usd, _) in systems[name].price_and_speed().items():
            cheapest[load] = min(usd, cheapest.get(load, usd))
    for usd in cheapest.values():
        crossings = [
            systems[name].break_even_card_price(own, usd)
            for name in priced
            for own, _ in systems[name].price_and_speed().values()
        ]
        shown = sorted(price for price in crossings if span[0] <= price <= span[1])
        for i, price in enumerate(shown):
            after = i > 0 and price < NEAR * shown[i - 1]
            before = i + 1 < len(shown) and shown[i + 1] < NEAR * price
            # Labels of near circles would overlap. So the first label stands on the left, the
            # last on the right, and others above.
            place, side = ((0, 6), "center") if after and before else ((4, -12), "left")
            if before and not after:
                place, side = (-4, -12), "right"
            axis.plot(price, usd, "o", mfc="white", mec="black", ms=7, zorder=4)
            axis.annotate(
                usd_of(price),
                (price, usd),
                place,
                textcoords="offset points",
                fontsize=8,
                ha=side,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )


def finding(systems: PricedSystems, labels: Mapping[str, str]) -> str:
    """Return the title: the card price at which the cheapest tokens of both kinds cost as much.

    It is the price of the system with the cheapest tokens under load, for each load of the others.
    """
    best, crossings = break_even_points(systems)
    if not crossings:
        return f"{labels[best]}: {usd_of(systems[best].usd_per_mtok)} a million tokens"
    hardest = {
        load: min((p for p in crossings if p.load == load), key=lambda p: p.price)
        for load in dict.fromkeys(point.load for point in crossings)
    }
    mine = labels[best]
    if all(point.price <= 0 for point in hardest.values()):
        others = claims.listed(list(dict.fromkeys(labels[p.other] for p in hardest.values())))
        return f"A token of {mine} costs more than one of {others}, even with cards for nothing"
    clauses = []
    for point in sorted(hardest.values(), key=lambda point: point.price <= 0):
        other = f"one of {labels[point.other]} with {point.load}"
        if point.price > 0:
            clauses.append(f"costs as much as {other} at {usd_of(point.price)} a card")
        else:
            clauses.append(f"always costs more than {other}")
    return f"A token of {mine} {'; it '.join(clauses)}"


def usd_of(value: float) -> str:
    """Return '$17,160'."""
    return f"${trimmed_number(value)}"
