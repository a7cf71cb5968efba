"""What a million output tokens cost by the price of a card: systems of the first kind of card that is paid for, against others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from plots import style
from sim.records import Saved

ALONE, LOADED = "one user", "this load"


def draw(saved: Saved) -> Figure:
    """Dashed: one user alone; solid: the run's load.  Circles: a token costs as much; diamonds: what a card does cost."""
    systems = {name: s for name, s in saved.summary["systems"].items() if "economics" in s and "lone_request" in s}
    cards = swept(saved.summary)
    colours = style.colours(saved.summary["systems"])
    figure = style.figure(8.0, 5.2)
    axis = figure.subplots()
    dearest = max(systems[name]["economics"]["card_usd"] for name in cards)
    prices = np.geomspace(min(100.0, dearest / 10), 2 * dearest, 200)
    for name, system in systems.items():
        for load, (usd, speed) in loads(system).items():
            line = "-" if load == LOADED else "--"
            flat, slope = at(system, usd) if name in cards else (usd, 0.0)
            label = f"{name}, {load}: {style.number(speed)} token/s for a user"
            axis.plot(prices, flat + slope * prices, line, color=colours[name], label=label)
            if name in cards:
                axis.plot(system["economics"]["card_usd"], usd, "D", color=colours[name], ms=5)
                continue
            for other in cards:
                for price in (crossing(systems[other], theirs, usd) for theirs, _ in loads(systems[other]).values()):
                    if prices[0] <= price <= prices[-1]:
                        axis.plot(price, usd, "o", mfc="white", mec="black", ms=6)
                        axis.annotate(usd_of(price), (price, usd), (4, -11), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel=f"price of a card ({', '.join(cards)}), $", ylabel="$ per million output tokens")
    ticks = [tick for tick in (10, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 1e6, 3e6) if prices[0] <= tick <= prices[-1]]
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    style.plain_log(axis.yaxis)
    axis.minorticks_off()
    style.legend(axis, columns=2)
    style.title(figure, finding(cards, systems), key_rows=len(systems))
    style.footnote(figure, saved.summary)
    return figure


def swept(summary: Mapping[str, Any]) -> list[str]:
    """The systems whose cards are paid for, of the same chip as the first of them."""
    paid = {name: s["chip"] for name, s in summary["systems"].items() if "chip" in s and s.get("economics", {}).get("card_usd")}
    return [name for name, chip in paid.items() if chip == next(iter(paid.values()))]


def loads(system: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """$ per million tokens, and the tokens a second that a user gets: alone on the system all the time, and in the run."""
    usd, speed = system["economics"]["usd_per_mtok"], 1000 / system["lone_request"]["tpot_ms"]
    told = {ALONE: (usd * system["output_throughput"] / speed, speed)}
    if system["median_tpot_ms"]:
        told[LOADED] = usd, 1000 / system["median_tpot_ms"]
    return told


def at(system: Mapping[str, Any], usd: float) -> tuple[float, float]:
    """Of `usd` per million tokens: what would be left if cards were free, and what each dollar of a card's price adds."""
    economics = system["economics"]
    cards = usd * economics["usd_per_mtok_by_cause"]["chips"] / economics["usd_per_mtok"]
    return usd - cards, cards / economics["card_usd"]


def crossing(system: Mapping[str, Any], usd: float, other: float) -> float:
    """The card's price at which a token costs as much as the other's; negative where it would not if cards were free."""
    flat, slope = at(system, usd)
    return (other - flat) / slope


def finding(cards: list[str], systems: Mapping[str, Mapping[str, Any]]) -> str:
    """The card price at which the cheapest of them under load costs as much as each other system, under load and alone."""
    best = min(cards, key=lambda name: float(systems[name]["economics"]["usd_per_mtok"]))
    mine, parts = loads(systems[best]), []
    for name, system in systems.items():
        for load, (usd, speed) in loads(system).items() if name not in cards and LOADED in mine else ():
            price = crossing(systems[best], mine[LOADED][0], usd)
            told = f"at {usd_of(price)} a card" if price > 0 else "not even with cards for nothing"
            parts.append(f"{name} with {load} ({style.number(speed)}) {told}")
    if not parts:
        return f"{best}: {usd_of(systems[best]['economics']['usd_per_mtok'])} a million tokens"
    return f"A token of {best} ({style.number(mine[LOADED][1])} token/s for a user) costs as much as one of {', of '.join(parts)}"


def usd_of(value: float) -> str:
    return f"${style.number(value)}"
