"""What a million output tokens cost by the price of a card: systems of the first kind of card that is paid for, against others."""

import numpy as np
from matplotlib.figure import Figure

from plots import style
from sim.economics.break_even import (
    LOADED,
    PricedSystems,
    break_even_points,
    priced_card_systems,
)
from sim.results.saving import Saved


def draw(saved: Saved) -> Figure:
    """Dashed: one user alone; solid: the run's load.  Circles: a token costs as much; diamonds: what a card does cost."""
    systems = saved.summary.priced_systems
    priced = priced_card_systems(systems)
    colours = style.colours(saved.summary.systems)
    figure = style.figure(8.0, 5.2)
    axis = figure.subplots()
    dearest = max(systems[name].card_usd for name in priced)
    prices = np.geomspace(min(100.0, dearest / 10), 2 * dearest, 200)
    for name, system in systems.items():
        for load, (usd, speed) in system.price_and_speed().items():
            line = "-" if load == LOADED else "--"
            flat, slope = system.split_token_price(usd) if name in priced else (usd, 0.0)
            label = f"{name}, {load}: {style.number(speed)} token/s for a user"
            axis.plot(prices, flat + slope * prices, line, color=colours[name], label=label)
            if name in priced:
                axis.plot(system.card_usd, usd, "D", color=colours[name], ms=5)
                continue
            for other in priced:
                for price in (
                    systems[other].break_even_card_price(theirs, usd)
                    for theirs, _ in systems[other].price_and_speed().values()
                ):
                    if prices[0] <= price <= prices[-1]:
                        axis.plot(price, usd, "o", mfc="white", mec="black", ms=6)
                        axis.annotate(
                            usd_of(price),
                            (price, usd),
                            (4, -11),
                            textcoords="offset points",
                            fontsize=8,
                        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=f"price of a card ({', '.join(priced)}), $",
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
    style.legend(axis, columns=2)
    style.title(figure, finding(systems), key_rows=len(systems))
    style.footnote(figure, saved.summary)
    return figure


def finding(systems: PricedSystems) -> str:
    """The card price at which the cheapest of them under load costs as much as each other system, under load and alone."""
    best, found = break_even_points(systems)
    if not found:
        return f"{best}: {usd_of(systems[best].usd_per_mtok)} a million tokens"
    parts = []
    for each in found:
        told = (
            f"at {usd_of(each.price)} a card"
            if each.price > 0
            else "not even with cards for nothing"
        )
        parts.append(f"{each.other} with {each.load} ({style.number(each.speed)}) {told}")
    speed = style.number(systems[best].price_and_speed()[LOADED][1])
    return f"A token of {best} ({speed} token/s for a user) costs as much as one of {', of '.join(parts)}"


def usd_of(value: float) -> str:
    return f"${style.number(value)}"
