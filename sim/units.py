"""Quantities at the door: '80 TB/s' in files, plain floats in SI base units in code.

The annotations say a value's unit and sign (`bandwidth: BytesPerSecond`).  A text is matched by one pattern first (a number,
a space, a unit), so that Pint reads nothing but the unit, once per spelling.  A number without a unit is an error in a file
and fine in code.
"""

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

if TYPE_CHECKING:
    import pint

QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?) +([A-Za-zµμ]+(?:[*/][A-Za-zµμ]+)*)"
)
MAX_TEXT = 60  # characters; what is longer is no quantity, and would keep the pattern and Pint busy
MIN_SIZE, MAX_SIZE = (
    1e-30,
    1e30,
)  # in SI units; beyond, sums and products leave what floats can hold
MAX_COUNT = 1_000_000_000  # chips, tokens, requests; beyond, numpy's integers overflow

# Decimal prefixes and binary ones, for every unit; bytes, bits and the countable things have no fractions.
DEFINITIONS = """
kilo- = 1e3 = k-
mega- = 1e6 = M-
giga- = 1e9 = G-
tera- = 1e12 = T-
peta- = 1e15 = P-
exa- = 1e18 = E-
milli- = 1e-3 = m-
micro- = 1e-6 = µ- = μ- = u-
nano- = 1e-9 = n-
pico- = 1e-12 = p-
kibi- = 1024 = Ki-
mebi- = 1048576 = Mi-
gibi- = 1073741824 = Gi-
tebi- = 1099511627776 = Ti-
second = [time] = s
minute = 60 * second = min
hour = 3600 * second = h
day = 86400 * second
month = 2628000 * second
year = 31536000 * second
hertz = 1 / second = Hz
byte = [data] = B
bit = byte / 8 = b
flop = [operation] = FLOP
op = flop = OP
joule = [energy] = J
watt = joule / second = W
watt_hour = 3600 * joule = Wh
token = [token]
request = [request]
failure = [failure]
usd = [money] = USD
"""
WHOLE = ("byte", "bit", "flop", "op", "token", "request", "failure")
FRACTIONS = ("milli", "micro", "nano", "pico")


class UnitError(ValueError):
    """A text that is not a quantity of the dimension that is due."""


@cache
def _registry() -> "pint.UnitRegistry[Any]":
    import pint  # 0.2 s: only where a file is read

    registry: pint.UnitRegistry[Any] = pint.UnitRegistry(None)
    registry.load_definitions(DEFINITIONS.strip().splitlines())
    return registry


@cache
def factor(spelling: str, unit: str) -> float:
    """How many `unit` one `spelling` is: factor('TB/s', 'B/s') is 1e12.

    Raises: UnitError where the spelling is unknown or has another dimension.
    """
    import pint

    registry = _registry()
    try:
        for name in re.split(r"[*/]", spelling):
            for prefix, root, _ in registry.parse_unit_name(name):
                if prefix in FRACTIONS and root in WHOLE:
                    raise UnitError(f"{spelling!r}: there is no {name}")
        return float(registry.Quantity(1.0, registry.parse_units(spelling)).to(unit).magnitude)
    except (pint.PintError, AttributeError) as error:
        raise UnitError(f"{spelling!r} is not a unit of {unit}") from error


def parse(text: str, unit: str) -> float:
    """The value of '80 TB/s' in `unit`.

    Raises: UnitError where it is no quantity, one of another dimension, or too small or large for any machine.
    """
    match = QUANTITY.fullmatch(text.strip()) if len(text) <= MAX_TEXT else None
    if match is None:
        raise UnitError(f"{brief(text)!r} is not a quantity in {unit}")
    try:
        value = float(match[1]) * factor(match[2], unit)
    except UnitError as error:
        raise UnitError(f"{text!r} is not a quantity in {unit}") from error
    zero = not re.search("[1-9]", re.split("[eE]", match[1])[0])
    if not zero and not MIN_SIZE <= abs(value) <= MAX_SIZE:
        raise UnitError(
            f"{text!r} is too {'small' if abs(value) < 1 else 'large'} a quantity in {unit}"
        )
    return value


def brief(text: str) -> str:
    """A text short enough for an error."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def format_quantity(value: float, unit: str) -> str:
    """A value for people, with a decimal prefix: show(9.2e12, 'B/s') is '9.2 TB/s'."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    if (
        value == 0
        or abs(value) >= 1
        or unit.partition("/")[0] in ("B", "FLOP", "token", "request", "failure")
    ):
        return f"{value:.4g} {unit}"
    prefix, size = next(
        (p for p in (("m", 1e-3), ("u", 1e-6), ("n", 1e-9)) if abs(value) >= p[1]), ("p", 1e-12)
    )
    return f"{value / size:.4g} {prefix}{unit}"


class Unit:
    """Marks a field as a quantity and reads it; in a file (a validation context is given) a bare number is an error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^{QUANTITY.pattern}$",
            "description": f"a quantity in {self.name}",
        }

    def read(self, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            try:
                number = parse(value, self.name)
            except UnitError as error:
                raise PydanticCustomError("quantity", "{reason}", {"reason": str(error)}) from error
            return int(number) if self.name == "token" and number.is_integer() else number
        if not info.context:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            reason = f"{value} has no unit; write it in {self.name}, as in '{value} {self.name}'"
            raise PydanticCustomError("quantity", "{reason}", {"reason": reason})
        raise PydanticCustomError("due", "it must be a quantity in {unit}", {"unit": self.name})


POSITIVE, NOT_NEGATIVE = Field(gt=0, allow_inf_nan=False), Field(ge=0, allow_inf_nan=False)

Seconds = Annotated[float, NOT_NEGATIVE, Unit("s")]
Hertz = Annotated[float, POSITIVE, Unit("Hz")]
Bytes = Annotated[float, NOT_NEGATIVE, Unit("B")]
BytesPerSecond = Annotated[float, POSITIVE, Unit("B/s")]
Flop = Annotated[float, NOT_NEGATIVE, Unit("FLOP")]
FlopPerSecond = Annotated[float, POSITIVE, Unit("FLOP/s")]
Joules = Annotated[float, NOT_NEGATIVE, Unit("J")]
Watts = Annotated[float, NOT_NEGATIVE, Unit("W")]
JoulesPerByte = Annotated[float, NOT_NEGATIVE, Unit("J/B")]
JoulesPerFlop = Annotated[float, NOT_NEGATIVE, Unit("J/FLOP")]
Dollars = Annotated[float, NOT_NEGATIVE, Unit("USD")]
DollarsPerSecond = Annotated[float, NOT_NEGATIVE, Unit("USD/s")]
DollarsPerJoule = Annotated[float, NOT_NEGATIVE, Unit("USD/J")]
Tokens = Annotated[int, Field(ge=1, le=MAX_COUNT), Unit("token")]
RequestsPerSecond = Annotated[float, POSITIVE, Unit("request/s")]
FailuresPerSecond = Annotated[float, POSITIVE, Unit("failure/s")]
TokensPerSecond = Annotated[float, POSITIVE, Unit("token/s")]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]

HOUR: Seconds = 3600.0
DAY: Seconds = 24 * HOUR
YEAR: Seconds = 365 * DAY
