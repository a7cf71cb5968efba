"""The card price at which a token costs as much as on another system.

Pure functions of a run's summary, without simulation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

ALONE, LOADED = "one user", "this load"


class BreakEvenPoint(NamedTuple):
    """A card price at which the cheapest system and another one have equal token costs.

    The cheapest system serves the run's load.
    other: the other system.
    load: `ALONE` or `LOADED`, the load of the other system.
    speed: output tokens per second of one user of the other system.
    price: USD per card; negative if the token costs more even with free cards.
    """

    other: str
    load: str
    speed: float
    price: float


def priced_card_systems(summary: Mapping[str, Any]) -> list[str]:
    """Return the systems whose cards have a price, with the same chip as the first of them."""
    chip_of = {
        name: s["chip"]
        for name, s in summary["systems"].items()
        if "chip" in s and s.get("economics", {}).get("card_usd")
    }
    return [name for name, chip in chip_of.items() if chip == next(iter(chip_of.values()))]


def price_and_speed(system: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return USD per million tokens, and tokens per second of one user, by load.

    `ALONE`: one user is on the system all the time.  `LOADED`: the load of the run.
    Left out: `LOADED` if the run has no median TPOT.
    """
    usd, speed = system["economics"]["usd_per_mtok"], 1000 / system["lone_request"]["tpot_ms"]
    by_load = {ALONE: (usd * system["output_throughput"] / speed, speed)}
    if system["median_tpot_ms"]:
        by_load[LOADED] = usd, 1000 / system["median_tpot_ms"]
    return by_load


def split_token_price(system: Mapping[str, Any], usd: float) -> tuple[float, float]:
    """Return the part of a token price without cards, and what each USD of a card's price adds.

    usd: USD per million tokens.
    """
    economics = system["economics"]
    of_cards = usd * economics["usd_per_mtok_by_cause"]["chips"] / economics["usd_per_mtok"]
    return usd - of_cards, of_cards / economics["card_usd"]


def break_even_card_price(system: Mapping[str, Any], usd: float, other: float) -> float:
    """Return the card price at which a token costs as much as the other system's [USD].

    usd, other: USD per million tokens of this and of the other system.
    The price is negative if the token costs more even with free cards.
    """
    return break_even(*split_token_price(system, usd), other)


def break_even(flat: float, slope: float, other: float) -> float:
    """Return (other - flat) / slope, the card price at which two token prices are equal [USD].

    flat: token price with free cards.  slope: what each USD of a card's price adds to it.
    """
    return (other - flat) / slope


def break_even_points(summary: Mapping[str, Any]) -> tuple[str, list[BreakEvenPoint]]:
    """Return the cheapest system with priced cards, and its break-even with every other chip.

    The cheapest system has the lowest price per token.  Each other system has up to two points:
    one user alone, and the load of the run.
    """
    systems, mine = priced_systems(summary), priced_card_systems(summary)
    best = min(mine, key=lambda name: float(systems[name]["economics"]["usd_per_mtok"]))
    own = price_and_speed(systems[best])
    return best, [
        BreakEvenPoint(name, load, speed, break_even_card_price(systems[best], own[LOADED][0], usd))
        for name, system in systems.items()
        for load, (usd, speed) in (
            price_and_speed(system).items() if name not in mine and LOADED in own else ()
        )
    ]


def priced_systems(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the systems whose token price is known and more than zero."""
    systems = summary["systems"].items()
    return {
        name: s
        for name, s in systems
        if "lone_request" in s and s.get("economics", {}).get("usd_per_mtok")
    }
