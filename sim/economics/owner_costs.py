"""The cost of a system: to buy, to run, and per output token.

Formulas come first, then the values from files.  Prices vary widely by date and place.
Each price has a source or a range.  Without a known price nothing is computed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from sim.cost.energy import server_watts
from sim.hardware.chip import Chip
from sim.inputs.errors import error_at_path
from sim.inputs.fields import preset_shorthand
from sim.inputs.values import Value
from sim.units import (
    YEAR,
    Count,
    Dollars,
    DollarsPerJoule,
    DollarsPerSecond,
    Fraction,
    Joules,
    TokensPerSecond,
    Watts,
    conversion_factor,
)

CostShare = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

# Price of a kW for a month if power, cooling and space are rented.
# Sources: CBRE, North America Data Center Trends H2 2024: $184 on average, $150-250 by place;
# Jia Yangqing's estimate, 2024.
HOSTING = {"us-colocation": "184 USD/kW/month", "jia-2024": "200 USD/kW/month"}
# US Energy Information Administration, industrial customers, about 2024.
ELECTRICITY = {"us-industrial": "0.083 USD/kWh"}


def capital_recovery(interest: float, years: float) -> float:
    """Return the share of a loan that each year's equal payment is.

    CRF = r(1+r)^y / ((1+r)^y - 1), and 1/y without interest.
    """
    return interest / -math.expm1(-years * math.log1p(interest)) if interest else 1 / years


def annual_capital(capital: Dollars, residual: Dollars, interest: float, years: float) -> Dollars:
    """Return the yearly cost of the capital, (capital - residual) * CRF + residual * r.

    The owner pays off the lost value.  The residual value costs only interest.
    """
    return (capital - residual) * capital_recovery(interest, years) + residual * interest


def usd_per_mtok(
    annual_costs: Dollars,
    throughput: TokensPerSecond,
    utilisation: float = 1.0,
    availability: float = 1.0,
) -> Dollars:
    """Return a year's cost divided by the million tokens of that year.

    The system works during the share `utilisation * availability` of the year.
    For a year's rent this is InferenceX's usd_per_gpu_hour / (tok_s_per_gpu * 3600 / 1e6).
    """
    return annual_costs / (throughput * YEAR * utilisation * availability) * 1e6


def joules_per_token(power: Watts, throughput: TokensPerSecond) -> Joules:
    """Return power divided by throughput, idle time included. InferenceX takes all-in power."""
    return power / throughput


@dataclass(frozen=True, kw_only=True)
class EconomicTerms:
    """The terms of payment: years, shares of the capital, PUE, shares of the time, USD.

    hosting_usd_per_kw_month: None if electricity is paid for. Then the next field is not None.
    """

    years: float
    interest: float = 0.0
    residual: float = 0.0
    maintenance: float = 0.0
    pue: float
    utilisation: float = 1.0
    availability: float | None = None
    hosting_usd_per_kw_month: float | None
    electricity_usd_per_kwh: float | None


@dataclass(frozen=True)
class CostEstimate:
    """The cost of a system over the years, independent of what it serves [USD]."""

    capex_usd: float
    opex_usd: float
    total_usd: float


class OwnerCosts(Value):
    """Costs of one system that differ from its chip's file.

    Hosting is paid for these powers.  Electricity is paid for the energy of the run.
    """

    chips: Count | None = Field(
        default=None,
        description="Chips bought; default: those that serve, and the spares of `faults`.",
    )
    card: Dollars | None = Field(
        default=None,
        description="Price of one chip's card [USD]; default: that of the chip's file.",
    )
    card_power: Watts | None = Field(
        default=None,
        description="Maximum power of one chip's card [W]; default: that of the chip's file.",
    )
    server: Dollars | None = Field(
        default=None,
        description="Price of one chip's share of the server [USD]; default: that of the chip's "
        "file.",
    )
    server_power: Watts | None = Field(
        default=None,
        description="Maximum power of one chip's share of the server [W]; default: that of the "
        "chip's file.",
    )
    capital: Dollars | None = Field(
        default=None, description="Price of the whole system [USD], instead of `card` and `server`."
    )
    power: Watts | None = Field(
        default=None,
        description="Maximum power of the whole system [W], instead of `card_power` and "
        "`server_power`.",
    )
    rent: DollarsPerSecond | None = Field(
        default=None, description="Rent of one chip [USD/s], instead of buying and hosting it."
    )

    @model_validator(mode="after")
    def _one_way(self) -> "OwnerCosts":
        bought = [
            key
            for key in type(self).model_fields
            if key not in ("rent", "chips") and getattr(self, key) is not None
        ]
        if self.rent is not None and bought:
            reason = f"got rent and {bought[0]}; expected rent instead of a purchase"
            hint = f"try leaving {', '.join(bought)} out"
            raise error_at_path(("rent",), self.rent, f"{reason}; {hint}")
        for whole, parts in (
            ("capital", ("card", "server")),
            ("power", ("card_power", "server_power")),
        ):
            extra = [key for key in parts if getattr(self, key) is not None]
            if getattr(self, whole) is not None and extra:
                reason = f"got {whole} and {extra[0]}; expected one value for the whole system"
                hint = f"try leaving {', '.join(extra)} out"
                raise error_at_path((whole,), getattr(self, whole), f"{reason}; {hint}")
        return self


HostingField = Annotated[
    DollarsPerJoule, preset_shorthand(HOSTING, "a known hosting", or_quantity=True)
]
ElectricityField = Annotated[
    DollarsPerJoule, preset_shorthand(ELECTRICITY, "a known price of electricity", or_quantity=True)
]


class Economics(Value):
    """Rules for the cost of all systems of a scenario.

    year    = (capital - residual) * CRF(interest, years) + residual * interest
              + maintenance * capital + power
    power   = the maximum power, at `hosting` for each kW and month; with `electricity`:
              the power in the run, times the PUE (assumed: the middle of 1.1-1.5)
    $/Mtok  = year / (output tokens per second of the run, times utilisation and availability)

    `years` is assumed: 3 in Jia's estimate, and hyperscalers depreciate servers in 5 to 6.
    The system has the run's load during all of the utilised time.
    """

    years: Annotated[float, Field(gt=0, le=100)] = Field(
        default=4.0,
        description="Term over which the capital is paid off, years; the default is assumed.",
    )
    interest: CostShare = Field(
        default=0.0, description="Interest of the capital for a year, 0 to 1."
    )
    residual: CostShare = Field(
        default=0.0, description="Share of the capital that remains at the end of the term, 0 to 1."
    )
    maintenance: CostShare = Field(
        default=0.0,
        description="Share of the capital that is spent on maintenance each year, 0 to 1.",
    )
    hosting: HostingField | None = Field(
        default=None,
        description="Price of the maximum power, or a preset [USD/J]; default: `us-colocation`.",
    )
    electricity: ElectricityField | None = Field(
        default=None,
        description="Price of the run's energy times `pue`, or a preset [USD/J]; replaces hosting.",
    )
    pue: Annotated[float, Field(ge=1, le=10)] = Field(
        default=1.3,
        description="Power usage effectiveness, a factor on the run's energy; the default is "
        "assumed.",
    )
    utilisation: Fraction = Field(
        default=1.0, description="Share of a year at the load of the run, 0 to 1."
    )
    availability: Fraction | None = Field(
        default=None,
        description="Share of a year in which the system works, 0 to 1; default: that of "
        "`faults`, or 1.",
    )
    systems: Mapping[str, OwnerCosts] = Field(
        default={},
        description="Costs of one system that differ from its chip's file, by the system's name.",
    )

    @model_validator(mode="after")
    def _one_price_of_power(self) -> "Economics":
        if self.hosting is not None and self.electricity is not None:
            reason = (
                "got electricity and hosting; expected one of hosting and electricity, because "
                "hosting includes electricity; try leaving hosting out"
            )
            raise error_at_path(("electricity",), self.electricity, reason)
        return self

    @property
    def rate(self) -> DollarsPerJoule:
        """The price of hosting; by default the average of US colocation."""
        number, _, unit = HOSTING["us-colocation"].partition(" ")
        return (
            float(number) * conversion_factor(unit, "USD/J")
            if self.hosting is None
            else self.hosting
        )

    @property
    def terms(self) -> EconomicTerms:
        """The assumptions in USD, kW, months and kWh."""
        hosting = self.rate / conversion_factor("USD/kW/month", "USD/J")
        electricity = None
        if self.electricity is not None:
            electricity = self.electricity / conversion_factor("USD/kWh", "USD/J")
        return EconomicTerms(
            years=self.years,
            interest=self.interest,
            residual=self.residual,
            maintenance=self.maintenance,
            pue=self.pue,
            utilisation=self.utilisation,
            availability=self.availability,
            hosting_usd_per_kw_month=hosting if electricity is None else None,
            electricity_usd_per_kwh=electricity,
        )


class Capex(NamedTuple):
    """The purchase of a system: cards, prices of chips and servers, maximum power; or its rent."""

    cards: int
    chips: Dollars
    servers: Dollars
    power: Watts
    rent: DollarsPerSecond = 0.0

    @property
    def capital(self) -> Dollars:
        """The purchase price of chips and servers."""
        return self.chips + self.servers

    def times(self, copies: int) -> "Capex":
        """Return the purchase of `copies` of the system."""
        return Capex(
            copies * self.cards,
            copies * self.chips,
            copies * self.servers,
            copies * self.power,
            copies * self.rent,
        )


def host_power(chip: Chip, own: OwnerCosts) -> Watts:
    """Return the power of a chip's share of the server."""
    return server_watts(chip) if own.server_power is None else own.server_power


def system_capex(chip: Chip, chips: int, own: OwnerCosts) -> Capex | None:
    """Return the price and maximum power of chips and their share of servers.

    None if no price or no power is known.
    Left out: the server if the chip's file has none.
    """
    chips = own.chips or chips
    if own.rent is not None:
        return Capex(chips, 0.0, 0.0, 0.0, chips * own.rent)
    of_chip = maximum_power(chip, own)
    power = own.power if own.power is not None or of_chip is None else chips * of_chip
    if own.capital is not None:
        return None if power is None else Capex(chips, 0.0, own.capital, power)
    prices = card_and_server(chip, own)
    if prices is None or power is None:
        return None
    return Capex(chips, chips * prices[0], chips * prices[1], power)


def maximum_power(chip: Chip, own: OwnerCosts) -> Watts | None:
    """Return the maximum power of a chip and its share of the server; None if it is unknown."""
    card = (
        own.card_power if own.card_power is not None else chip.power.maximum if chip.power else None
    )
    most = (chip.server.maximum or chip.server.power) / chip.server.chips if chip.server else 0.0
    server = most if own.server_power is None else own.server_power
    return None if card is None else card + server


def card_and_server(chip: Chip, own: OwnerCosts) -> tuple[Dollars, Dollars] | None:
    """Return the price of a chip, and of its share of the server; None if none is known.

    Left out: the server if the chip's file has none.
    """
    card = own.card if own.card is not None else chip.price
    part = chip.server.price / chip.server.chips if chip.server else 0.0
    return None if card is None else (card, own.server if own.server is not None else part)


def annual_costs(
    economics: Economics, has: Capex, drawn: Watts | None
) -> dict[str, Dollars] | None:
    """Return a year's cost by cause.

    drawn: mean power in the run of the chips and servers that are not rented; None if unknown.
    None if electricity is paid for and its power is unknown.
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


def lifetime_costs(economics: Economics, has: Capex) -> CostEstimate:
    """Return capex, opex and their sum over `economics.years`: a back-of-the-envelope estimate.

    Power is the maximum power, with the PUE if electricity is paid for.
    Left out: served tokens.
    """
    paid = annual_costs(economics, has, has.power) or {}
    bought = economics.years * (paid.get("chips", 0.0) + paid.get("servers", 0.0))
    total = economics.years * sum(paid.values())
    return CostEstimate(capex_usd=bought, opex_usd=total - bought, total_usd=total)
