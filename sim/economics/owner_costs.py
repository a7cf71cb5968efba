"""What a system costs to buy and to run, and what that comes to for a token.  Formulas first, then what files say of prices.

Prices are of one date and place and vary widely: each has a source or a range, and where none is known nothing is computed.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from sim.cost.energy import around
from sim.hardware.chip import Chip
from sim.inputs.errors import nearest_name
from sim.inputs.fields import Shorthand
from sim.inputs.values import Value
from sim.units import (
    YEAR,
    Count,
    Dollars,
    DollarsPerJoule,
    DollarsPerSecond,
    Fraction,
    Joules,
    Seconds,
    TokensPerSecond,
    Watts,
    conversion_factor,
)

CostShare = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

# What a kW costs a month where power, cooling and space are rented.
# Sources: CBRE, North America Data Center Trends H2 2024: $184 on average, $150-250 by place; Jia Yangqing's estimate, 2024.
HOSTING = {"us-colocation": "184 USD/kW/month", "jia-2024": "200 USD/kW/month"}
# US Energy Information Administration, industrial customers, about 2024.
ELECTRICITY = {"us-industrial": "0.083 USD/kWh"}


def capital_recovery(interest: float, years: float) -> float:
    """CRF = r(1+r)^y / ((1+r)^y - 1): the part of a loan that each year's equal payment is; 1/y without interest."""
    return interest / -math.expm1(-years * math.log1p(interest)) if interest else 1 / years


def annual_capital(capital: Dollars, residual: Dollars, interest: float, years: float) -> Dollars:
    """(capital - residual) * CRF + residual * r: what is worn out is paid off, the rest only costs interest."""
    return (capital - residual) * capital_recovery(interest, years) + residual * interest


def usd_per_mtok(
    annual: Dollars,
    throughput: TokensPerSecond,
    utilisation: float = 1.0,
    availability: float = 1.0,
) -> Dollars:
    """A year's cost over the million tokens of a year, of which the system works a part.

    Of a year's rent this is InferenceX's usd_per_gpu_hour / (tok_s_per_gpu * 3600 / 1e6).
    """
    return annual / (throughput * YEAR * utilisation * availability) * 1e6


def joules_per_token(
    power: Watts, throughput: TokensPerSecond, utilisation: float = 1.0, pue: float = 1.0
) -> Joules:
    """Power over tokens, idle time counted.  InferenceX's figure is that of its all-in power, with neither."""
    return power * pue / (throughput * utilisation)


def _preset(known: Mapping[str, str], what: str) -> Shorthand:
    def read(given: object) -> object:
        if not isinstance(given, str) or given[:1] in "0123456789.+-":
            return given
        if given not in known:
            hint = (
                f"did you mean {near}?"
                if (near := nearest_name(given, known))
                else f"there are {', '.join(known)}"
            )
            raise PydanticCustomError(
                "quantity", "{reason}", {"reason": f"'{given}' is not a known {what}; {hint}"}
            )
        return known[given]

    return Shorthand(read, {"enum": list(known)})


class OwnerCosts(Value):
    """What one system's owner pays, where it is not what the chip's file says.

    chip    = `card` for each of the `chips` that are bought (else those that serve, and spares of `faults`), drawing `card_power`
    server  = `server` and `server_power` for each chip: its part of what stands around it
    whole   = `capital` and `power` of all of it, instead
    rent    = for a chip, instead of buying and hosting it

    Powers are what hosting is paid for; electricity is paid for what the run drew.
    """

    chips: Count | None = None
    card: Dollars | None = None
    card_power: Watts | None = None
    server: Dollars | None = None
    server_power: Watts | None = None
    capital: Dollars | None = None
    power: Watts | None = None
    rent: DollarsPerSecond | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "OwnerCosts":
        bought = [
            key
            for key in type(self).model_fields
            if key not in ("rent", "chips") and getattr(self, key) is not None
        ]
        if self.rent is not None and bought:
            raise ValueError(f"rent: is instead of buying; leave {', '.join(bought)} out")
        for whole, parts in (
            ("capital", ("card", "server")),
            ("power", ("card_power", "server_power")),
        ):
            given = [key for key in parts if getattr(self, key) is not None]
            if getattr(self, whole) is not None and given:
                raise ValueError(f"{whole}: is of the whole system; leave {', '.join(given)} out")
        return self


class Economics(Value):
    """How systems are paid for.  The years are assumed: between Jia's 3 and the 5 to 6 that hyperscalers write servers off in.

    year    = (capital - residual) * CRF(interest, years) + residual * interest + maintenance * capital + power
    power   = the most that it may draw, at `hosting` for each kW and month; or, with `electricity`, what it drew in the run, times
              the PUE (assumed: the middle of 1.1-1.5)
    $/Mtok  = year / (the run's output tokens a second, utilisation and availability of a year)

    `residual` and `maintenance` (a year) are shares of the capital.  The run's load is that of all the time that is utilised.
    Where `availability` is left out it is that of the system's `faults`, or 1.
    """

    years: Annotated[float, Field(gt=0, le=100)] = 4.0
    interest: CostShare = 0.0
    residual: CostShare = 0.0
    maintenance: CostShare = 0.0
    hosting: Annotated[DollarsPerJoule, _preset(HOSTING, "hosting")] | None = None
    electricity: Annotated[DollarsPerJoule, _preset(ELECTRICITY, "price of electricity")] | None = (
        None
    )
    pue: Annotated[float, Field(ge=1, le=10)] = 1.3
    utilisation: Fraction = 1.0
    availability: Fraction | None = None
    systems: Mapping[str, OwnerCosts] = {}

    @model_validator(mode="after")
    def _one_price_of_power(self) -> "Economics":
        if self.hosting is not None and self.electricity is not None:
            raise ValueError(
                "hosting has the electricity in it; give one of hosting and electricity"
            )
        return self

    @property
    def rate(self) -> DollarsPerJoule:
        """Of hosting: where nothing is said, the average of US colocation."""
        number, _, unit = HOSTING["us-colocation"].partition(" ")
        return (
            float(number) * conversion_factor(unit, "USD/J")
            if self.hosting is None
            else self.hosting
        )

    def as_json(self) -> dict[str, float | None]:
        """What it assumes, in USD, kW, months and kWh."""
        paid = self.electricity is not None
        return {
            **{
                key: getattr(self, key)
                for key in (
                    "years",
                    "interest",
                    "residual",
                    "maintenance",
                    "pue",
                    "utilisation",
                    "availability",
                )
            },
            "hosting_usd_per_kw_month": None
            if paid
            else self.rate / conversion_factor("USD/kW/month", "USD/J"),
            "electricity_usd_per_kwh": None
            if self.electricity is None
            else self.electricity / conversion_factor("USD/kWh", "USD/J"),
        }


class Capex(NamedTuple):
    """What a system is worth, of how many cards, and the most that it draws; or what it is rented for."""

    cards: int
    chips: Dollars
    servers: Dollars
    power: Watts
    rent: DollarsPerSecond = 0.0

    @property
    def capital(self) -> Dollars:
        return self.chips + self.servers

    def times(self, copies: int) -> "Capex":
        """So many of it."""
        return Capex(
            copies * self.cards,
            copies * self.chips,
            copies * self.servers,
            copies * self.power,
            copies * self.rent,
        )


def beside(chip: Chip, own: OwnerCosts) -> Watts:
    """What stands around a chip draws."""
    return around(chip) if own.server_power is None else own.server_power


def owned(chip: Chip, chips: int, own: OwnerCosts) -> Capex | None:
    """What so many chips and their part of servers cost and draw at most; None where no price or no power is known.

    Left out: the server where the chip's file has none.
    """
    chips = own.chips or chips
    if own.rent is not None:
        return Capex(chips, 0.0, 0.0, 0.0, chips * own.rent)
    card_power = (
        own.card_power if own.card_power is not None else chip.power.maximum if chip.power else None
    )
    most = (chip.server.maximum or chip.server.power) / chip.server.chips if chip.server else 0.0
    server_power = most if own.server_power is None else own.server_power
    power = (
        own.power
        if own.power is not None or card_power is None
        else chips * (card_power + server_power)
    )
    if own.capital is not None:
        return None if power is None else Capex(chips, 0.0, own.capital, power)
    card = own.card if own.card is not None else chip.price
    if card is None or power is None:
        return None
    part = chip.server.price / chip.server.chips if chip.server else 0.0
    return Capex(
        chips, chips * card, chips * (own.server if own.server is not None else part), power
    )


def annual(economics: Economics, has: Capex, drawn: Watts | None) -> dict[str, Dollars] | None:
    """A year's cost by cause; `drawn` is the power that those chips and servers had in the run that are not rented.

    None where electricity is paid for and nobody knows how much.
    """
    rented = {"rent": has.rent * YEAR} if has.rent else {}
    if rented and not has.power:
        return rented
    if economics.electricity is not None:
        if drawn is None:
            return None
        power = drawn * economics.pue * YEAR * economics.electricity
    else:
        power = has.power * YEAR * economics.rate

    def capital(value: Dollars) -> Dollars:
        return annual_capital(
            value, economics.residual * value, economics.interest, economics.years
        )

    return {
        "chips": capital(has.chips),
        "servers": capital(has.servers),
        "power": power,
        "maintenance": economics.maintenance * has.capital,
        **rented,
    }


def token_price(
    economics: Economics,
    has: Capex,
    drawn: Watts | None,
    tokens: float,
    requests: int,
    elapsed: Seconds,
    availability: float = 1.0,
) -> dict[str, Any] | None:
    """Dollars for a million output tokens, by cause, and for a request, of a run that gave so many in that time.

    `availability` counts where the economics have none.  None where nothing works, or the cost of a year is not known.
    """
    paid = annual(economics, has, drawn)
    if paid is None:
        return None
    shares = economics.utilisation, economics.availability or availability
    if not math.prod(shares):
        return None
    by_cause = {cause: usd_per_mtok(usd, tokens / elapsed, *shares) for cause, usd in paid.items()}
    total = sum(by_cause.values())
    return {
        "card_usd": has.chips / has.cards,
        "capital_usd": has.capital,
        "provisioned_power_w": has.power,
        "usd_per_year": sum(paid.values()),
        "usd_per_mtok": total,
        "usd_per_mtok_by_cause": by_cause,
        "usd_per_request": total * tokens / 1e6 / requests if requests else None,
    }


def over_years(economics: Economics, has: Capex) -> dict[str, Dollars]:
    """What is bought, what the years then cost, and both: the estimate on the back of an envelope, before any token.

    Power is the most that may be drawn, with the PUE where electricity is paid for.
    """
    paid = annual(economics, has, has.power) or {}
    bought = economics.years * (paid.get("chips", 0.0) + paid.get("servers", 0.0))
    total = economics.years * sum(paid.values())
    return {"capex_usd": bought, "opex_usd": total - bought, "total_usd": total}
