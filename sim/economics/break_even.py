"""The card price at which a token costs as much as on another system.

    >>> break_even(flat=2.0, slope=1e-3, other=10.0)
    8000.0

Pure functions of the token prices of a run, without simulation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

ALONE, LOADED = "one user", "this load"


@dataclass(frozen=True)
class PricedSystem:
    """A plain system whose token price is known and more than zero.

    card_usd: USD per card; 0 if its cards are not paid for.
    usd_per_mtok, cards_usd_per_mtok: USD per million output tokens of the run, and for cards.
    throughput: output tokens per second of the run.
    speed_alone, speed_loaded: output tokens per second of one user, alone and in the run; None if
        the run has no median TPOT.
    """

    chip: str
    card_usd: float
    usd_per_mtok: float
    cards_usd_per_mtok: float
    throughput: float
    speed_alone: float
    speed_loaded: float | None

    def price_and_speed(self) -> dict[str, tuple[float, float]]:
        """Return USD per million tokens, and tokens per second of one user, by load.

        `ALONE`: one user is on the system all the time.  `LOADED`: the load of the run.
        Left out: `LOADED` if the run has no median TPOT.
        """
        alone = self.usd_per_mtok * self.throughput / self.speed_alone
        by_load = {ALONE: (alone, self.speed_alone)}
        if self.speed_loaded:
            by_load[LOADED] = self.usd_per_mtok, self.speed_loaded
        return by_load

    def split_token_price(self, usd: float) -> tuple[float, float]:
        """Return the part of a token price without cards, and what each USD of a card adds.

        usd: USD per million tokens.
        """
        of_cards = usd * self.cards_usd_per_mtok / self.usd_per_mtok
        return usd - of_cards, of_cards / self.card_usd

    def break_even_card_price(self, usd: float, other: float) -> float:
        """Return the card price at which a token costs as much as the other system's [USD].

        usd, other: USD per million tokens of this and of the other system.
        The price is negative if the token costs more even with free cards.
        """
        return break_even(*self.split_token_price(usd), other)


PricedSystems = Mapping[str, PricedSystem]


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


def priced_card_systems(systems: PricedSystems) -> list[str]:
    """Return the systems whose cards have a price, with the same chip as the first of them."""
    chip_of = {name: system.chip for name, system in systems.items() if system.card_usd}
    return [name for name, chip in chip_of.items() if chip == next(iter(chip_of.values()))]


def break_even(flat: float, slope: float, other: float) -> float:
    """Return (other - flat) / slope, the card price at which two token prices are equal [USD].

    flat: token price with free cards.  slope: what each USD of a card's price adds to it.
    """
    return (other - flat) / slope


def break_even_points(systems: PricedSystems) -> tuple[str, list[BreakEvenPoint]]:
    """Return the cheapest system with priced cards, and its break-even with every other chip.

    The cheapest system has the lowest price per token.  Each other system has up to two points:
    one user alone, and the load of the run.
    """
    mine = priced_card_systems(systems)
    best = min(mine, key=lambda name: systems[name].usd_per_mtok)
    own = systems[best].price_and_speed()
    return best, [
        BreakEvenPoint(name, load, speed, systems[best].break_even_card_price(own[LOADED][0], usd))
        for name, system in systems.items()
        for load, (usd, speed) in (
            system.price_and_speed().items() if name not in mine and LOADED in own else ()
        )
    ]
