"""The numbers of an engine's file that a fit may change, with their ranges and units.

free_number(Document(path), "layer_overhead", ("0 us", "200 us")).start  # 20.0
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.inputs.document import Document
from sim.inputs.errors import UserError
from sim.units import QUANTITY


@dataclass(frozen=True, slots=True)
class FreeNumber:
    """A number that a fit may change, before or after it, in the unit of the file.

    keys: keys of the file that share the number.
    error: its standard error; nan before the fit.
    """

    keys: tuple[str, ...]
    low: float
    high: float
    unit: str
    start: float
    value: float
    error: float

    def vagueness(self) -> float:
        """Return the standard error as a part of the range."""
        return self.error / (self.high - self.low)

    def written(self, value: float) -> str:
        """Return a value with three significant digits and the unit."""
        return f"{float(f'{value:.3g}'):g}{' ' if self.unit else ''}{self.unit}"


def free_number(
    document: Document, keys: str, bounds: tuple[str | float, str | float]
) -> FreeNumber:
    """Return a number that may change, from an entry of `fit.bounds` in an engine's file.

    Raises: UserError if the file has no such number, or the bounds do not fit to it.
    """
    parts = tuple(key.strip() for key in keys.split(","))
    where = f"{document.shown}: fit.bounds.{parts[0]}"
    value: Any = document.data
    for key in parts[0].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"{where}: got a key that is not in the file; expected one of its keys")
        value = value[key]
    try:
        (low, low_unit), (high, high_unit), (start, unit) = (
            _split_quantity(bounds[0]),
            _split_quantity(bounds[1]),
            _split_quantity(value),
        )
    except ValueError:
        raise UserError(
            f"{where}: got {bounds[0]}, {bounds[1]} for {value}; expected numbers"
        ) from None
    if not unit == low_unit == high_unit:
        units = " and ".join(dict.fromkeys(part or "none" for part in (low_unit, high_unit)))
        raise UserError(
            f"{where}: got bounds in {units}; expected {unit or 'no unit'}, the number's own"
        )
    if not low < high:
        raise UserError(
            f"{where}: got {bounds[0]} to {bounds[1]}; expected a lower bound below the upper one"
        )
    return FreeNumber(parts, low, high, unit, start, start, math.nan)


def _split_quantity(text: str | float) -> tuple[float, str]:
    """Return a number and its unit.  Raises: ValueError if it does not begin with a number."""
    match = QUANTITY.fullmatch(str(text))
    return (float(match[1]), match[2]) if match else (float(str(text)), "")


def set_number(document: Document, number: FreeNumber, value: float) -> None:
    """Set all keys of a number in the document to a value."""
    for key in number.keys:
        document.set(f"{key}={value:.9f}{' ' if number.unit else ''}{number.unit}")
