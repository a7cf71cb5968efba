"""At which price of a card a token costs as much as another system's.  Pure functions of a run's summary; no simulation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

ALONE, LOADED = "one user", "this load"


class Crossing(NamedTuple):
    """Where a token of `best`, under the run's load, costs as much as one of another system: the cards' price, negative where it
    would not if they were free; and the tokens a second that a user of the other gets."""

    other: str
    load: str
    speed: float
    price: float


def cards(summary: Mapping[str, Any]) -> list[str]:
    """The systems whose cards are paid for, of the same chip as the first of them."""
    paid = {
        name: s["chip"]
        for name, s in summary["systems"].items()
        if "chip" in s and s.get("economics", {}).get("card_usd")
    }
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
    of_cards = usd * economics["usd_per_mtok_by_cause"]["chips"] / economics["usd_per_mtok"]
    return usd - of_cards, of_cards / economics["card_usd"]


def crossing(system: Mapping[str, Any], usd: float, other: float) -> float:
    """The card's price at which a token costs as much as the other's; negative where it would not if cards were free."""
    return break_even(*at(system, usd), other)


def break_even(flat: float, slope: float, other: float) -> float:
    """(other - flat) / slope, of the $ that a token costs with cards for nothing and those that each dollar of a card adds."""
    return (other - flat) / slope


def crossings(summary: Mapping[str, Any]) -> tuple[str, list[Crossing]]:
    """The system with priced cards whose token is the cheapest, and where it meets those of other chips, alone and in the run."""
    systems, mine = comparable(summary), cards(summary)
    best = min(mine, key=lambda name: float(systems[name]["economics"]["usd_per_mtok"]))
    own = loads(systems[best])
    return best, [
        Crossing(name, load, speed, crossing(systems[best], own[LOADED][0], usd))
        for name, system in systems.items()
        for load, (usd, speed) in (
            loads(system).items() if name not in mine and LOADED in own else ()
        )
    ]


def comparable(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The systems whose tokens have a price, and are not for nothing."""
    systems = summary["systems"].items()
    return {
        name: s
        for name, s in systems
        if "lone_request" in s and s.get("economics", {}).get("usd_per_mtok")
    }
