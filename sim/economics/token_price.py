"""The price of a token: a year's cost of a system over the tokens that it serves.

>>> ServedTokens(tokens=1e6, requests=500, elapsed=100.0).requests
500
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sim.economics.owner_costs import Capex, Economics, annual_costs, usd_per_mtok
from sim.units import Seconds, Watts


@dataclass(frozen=True, kw_only=True)
class TokenPrice:
    """The cost of the tokens of a run, USD.

    provisioned_power_w: W. usd_per_mtok: for a million output tokens.
    usd_per_request: None if no request finished.
    """

    card_usd: float
    capital_usd: float
    provisioned_power_w: float
    usd_per_year: float
    usd_per_mtok: float
    usd_per_mtok_by_cause: Mapping[str, float]
    usd_per_request: float | None = None


class ServedTokens(NamedTuple):
    """The output tokens and finished requests of a run, and its duration [s]."""

    tokens: float
    requests: int
    elapsed: Seconds


def token_price(
    economics: Economics,
    has: Capex,
    drawn: Watts | None,
    served: ServedTokens,
    availability: float = 1.0,
) -> TokenPrice | None:
    """Return USD per million output tokens, by cause, and USD per request.

    drawn: as in `annual_costs`.  availability: used if `economics` has none.
    None if the system never works, or the cost of a year is unknown.
    """
    tokens, requests, elapsed = served
    paid = annual_costs(economics, has, drawn)
    if paid is None:
        return None
    shares = economics.utilisation, economics.availability or availability
    if not math.prod(shares):
        return None
    by_cause = {cause: usd_per_mtok(usd, tokens / elapsed, *shares) for cause, usd in paid.items()}
    total = sum(by_cause.values())
    return TokenPrice(
        card_usd=has.chips / has.cards,
        capital_usd=has.capital,
        provisioned_power_w=has.power,
        usd_per_year=sum(paid.values()),
        usd_per_mtok=total,
        usd_per_mtok_by_cause=by_cause,
        usd_per_request=total * tokens / 1e6 / requests if requests else None,
    )
