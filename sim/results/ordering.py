"""The order of systems by the cost or time of a token, with bands: a part of `run --json`.

>>> Hinge(key="a: power.idle", value="2", ends=("1", "4"), at="4", pair=("x", "y")).at
'4'
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from sim.results.encoding import Key

OrderKey = Literal["joules", "usd", "tpot"]


@dataclass(frozen=True, kw_only=True)
class OrderedSystem:
    """The tokens of a system for equal joules, dollars or time, relative to the first system.

    ratio: with the numbers as they are.
    band: lowest and highest ratio, if all uncertain numbers are independent.
    """

    ratio: float
    band: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """A number that alone reverses the order of two neighbours.

    key: file and key, such as 'rubin-r200: power.idle'. value, ends: as written.
    at: the end at which it reverses them. pair: the two systems, the better one first.
    basis: 'assumed' or 'fitted'; '' for a published source, or a number of the scenario.
    """

    key: str
    value: str
    ends: Annotated[tuple[str, str], Key("range")]
    at: str
    pair: tuple[str, str]
    basis: str = ""


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """The systems by their tokens for equal joules, dollars or time, the best first.

    swappable: pairs of neighbours that may be swapped within their band.
    depends_on: the numbers that alone swap such a pair.
    left_out: systems whose joules or dollars are not known.
    """

    by: OrderKey
    systems: Mapping[str, OrderedSystem]
    swappable: tuple[tuple[str, str], ...]
    depends_on: tuple[Hinge, ...]
    left_out: tuple[str, ...] = ()
