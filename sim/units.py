"""Quantities with units in files ('80 TB/s') are plain floats in SI base units in code.

The annotation of a field states its unit and sign (`bandwidth: BytesPerSecond`).
One pattern splits a text into number and unit, so that Pint parses each unit only once.
Data sheets write rates as TOPS and TFLOPS; these are TOP/s and TFLOP/s.
A number without a unit is an error in a file and correct in code.
"""

import math
import re
from collections.abc import Iterable
from functools import cache, reduce
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

if TYPE_CHECKING:
    import pint

QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?) *"
    r"([A-Za-zµμ]+(?:[*/][A-Za-zµμ]+)*)"
)
MAX_TEXT = 60  # characters; a longer text is no quantity, and slow to match and to parse
# In SI units. Beyond these bounds, sums and products overflow or underflow floats.
MIN_SIZE, MAX_SIZE = (1e-30, 1e30)
MAX_COUNT = 1_000_000_000  # chips, tokens, requests; beyond, numpy's integers overflow

# Every unit takes decimal and binary prefixes. Countable units have no fractions.
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
flop_rate = flop / second = FLOPS
op_rate = op / second = OPS
joule = [energy] = J
watt = joule / second = W
watt_hour = 3600 * joule = Wh
token = [token]
request = [request]
failure = [failure]
usd = [money] = USD
"""
WHOLE = ("byte", "bit", "flop", "op", "token", "request", "failure")
# Units of fields in files, one for each dimension.
SI_UNITS = (
    *("token", "request/s", "s", "B", "B/s", "FLOP", "FLOP/s", "W", "J", "J/B", "J/FLOP", "USD"),
    *("USD/s", "USD/J", "failure/s", "token/s", "Hz"),
)
FRACTIONS = ("milli", "micro", "nano", "pico")


class UnitError(ValueError):
    """A text that is not a quantity of the expected dimension."""


@cache
def _registry() -> "pint.UnitRegistry[Any]":
    import pint  # takes 0.2 s, so only when a file is read

    registry: pint.UnitRegistry[Any] = pint.UnitRegistry(None)
    registry.load_definitions(DEFINITIONS.strip().splitlines())
    return registry


@cache
def conversion_factor(spelling: str, unit: str) -> float:
    """Return the value of one `spelling` in `unit`: 1e12 for 'TB/s' in 'B/s'.

    Raises: UnitError if the spelling is unknown or has another dimension.
    """
    import pint

    registry = _registry()
    try:
        for name in re.split(r"[*/]", spelling):
            for prefix, root, _ in registry.parse_unit_name(name):
                if prefix in FRACTIONS and root in WHOLE:
                    raise UnitError(f"got {spelling!r}; expected whole {root}s, without {prefix}")
        return float(registry.Quantity(1.0, registry.parse_units(spelling)).to(unit).magnitude)
    except (pint.PintError, AttributeError) as error:
        raise UnitError(f"got {spelling!r}; expected a unit of {unit}") from error


def parse_quantity(text: str, unit: str) -> float:
    """Return the value of '80 TB/s' in `unit`.

    Raises: UnitError if the text is no quantity, has another dimension, or is beyond any machine.
    """
    match = QUANTITY.fullmatch(text.strip()) if len(text) <= MAX_TEXT else None
    expected = f"got {brief(text)!r}; expected a quantity in {unit}"
    if match is None:
        raise UnitError(expected)
    try:
        value = float(match[1]) * conversion_factor(match[2], unit)
    except UnitError as error:
        raise UnitError(expected) from error
    zero = not re.search("[1-9]", re.split("[eE]", match[1])[0])
    if not zero and not MIN_SIZE <= abs(value) <= MAX_SIZE:
        bound = f"at least {MIN_SIZE:g}" if abs(value) < 1 else f"at most {MAX_SIZE:g}"
        raise UnitError(f"{expected}, {bound} {unit}")
    return value


def si_quantity(text: str) -> tuple[float, str] | None:
    """Return the value and the SI unit of '500 MB': (5e8, 'B'). None if the text is no quantity."""
    for unit in SI_UNITS:
        try:
            return parse_quantity(text, unit), unit
        except UnitError:
            continue
    return None


def brief(text: str) -> str:
    """Return a text cut to a length that suits an error."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def format_quantity(value: float, unit: str) -> str:
    """Return a value with a decimal prefix: '9.2 TB/s' for 9.2e12 and 'B/s'."""
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


def value_error(reason: str) -> PydanticCustomError:
    """Return the error of a field's value; the document adds the line and the key."""
    return PydanticCustomError("quantity", "{reason}", {"reason": reason})


class Unit:
    """A mark for a field that is a quantity with this unit.

    In a file (with a validation context) a number without a unit is an error.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, list[dict[str, str]]]:
        form = {
            "type": "string",
            "pattern": f"^{QUANTITY.pattern}$",
            "description": f"a quantity in {self.name}",
        }
        return {"allOf": [form]}  # the description of a key would replace that of its form

    def read(self, value: object, info: ValidationInfo) -> object:
        """Return a text's value in this unit, and any other value as it is.

        Raises: PydanticCustomError if a text is no such quantity, or a file has no text here.
        """
        if isinstance(value, str):
            try:
                number = parse_quantity(value, self.name)
            except UnitError as error:
                raise value_error(str(error)) from error
            return int(number) if self.name == "token" and number.is_integer() else number
        if not info.context:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            reason = f"got {value} without a unit; try '{value} {self.name}'"
            raise value_error(reason)
        raise PydanticCustomError("unit", "expected a quantity in {unit}", {"unit": self.name})


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


def longest(times: Iterable[Seconds]) -> Seconds:
    """Return the longest of some times, elementwise where they are arrays."""
    return reduce(np.maximum, times)


def shortest(times: Iterable[Seconds]) -> Seconds:
    """Return the shortest of some times, elementwise where they are arrays."""
    return reduce(np.minimum, times)
