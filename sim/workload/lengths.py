"""Lengths of prompts and outputs: fixed, uniform or lognormal."""

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from sim.inputs.fields import Shorthand
from sim.inputs.values import Value
from sim.units import Tokens


def require_one(value: Value, fields: Iterable[str], examples: str) -> None:
    """Check that exactly one of the fields is set.

    examples: what the file may have, for the error.
    Raises: ValueError otherwise.
    """
    present = [field for field in fields if getattr(value, field) is not None]
    if len(present) != 1:
        raise ValueError(
            f"got {' and '.join(present) or 'none'}; expected one; try one of {examples}"
        )


def check_order(lowest: int, highest: int, unit: str) -> None:
    """Check that a uniform distribution names its lowest number first.

    Raises: ValueError otherwise.
    """
    if lowest > highest:
        got = f"uniform: got {lowest} to {highest}{unit}; expected the lowest number first"
        raise ValueError(f"{got}; try [{highest}{unit}, {lowest}{unit}]")


class Spread(Value):
    """The mean and sigma of a lognormal length.

    Beyond a sigma of 10, floats cannot tell lengths apart.
    """

    mean: Tokens = Field(description="Mean before rounding up [token].")
    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = Field(
        description="Standard deviation of the logarithm."
    )


class Length(Value):
    """Tokens of a prompt or an output: fixed, uniform from a to b, or lognormal (rounded up)."""

    fixed: Tokens | None = Field(
        default=None, description="One length for all [token]; the short form."
    )
    uniform: tuple[Tokens, Tokens] | None = Field(
        default=None, description="Lowest and highest length of a uniform distribution [token]."
    )
    lognormal: Spread | None = Field(
        default=None, description="Lognormal distribution, rounded up to whole tokens."
    )

    @model_validator(mode="after")
    def _one(self) -> "Length":
        examples = "'512 token', {uniform: [a, b]}, {lognormal: {mean: a, sigma: x}}"
        require_one(self, Length.model_fields, examples)
        if self.uniform:
            check_order(*self.uniform, " token")
        return self

    @property
    def mean(self) -> float:
        """The mean before rounding [tokens]."""
        if self.uniform:
            return sum(self.uniform) / 2
        return float(self.lognormal.mean if self.lognormal else self.fixed or 0)

    def draw(self, stream: np.random.Generator, n: int) -> np.ndarray:
        """Return int[n], tokens.

        A lognormal has the given mean before rounding: mu = ln(mean) - sigma^2/2.
        """
        if self.uniform:
            return stream.integers(self.uniform[0], self.uniform[1], n, endpoint=True)
        if self.lognormal:
            sigma = self.lognormal.sigma
            mu = np.log(self.lognormal.mean) - sigma**2 / 2
            return np.ceil(stream.lognormal(mu, sigma, n)).astype(np.int64)
        return np.full(n, self.fixed, np.int64)


def as_fixed(value: object) -> object:
    """Return a short form as the mapping that it stands for."""
    return value if isinstance(value, dict | Value) else {"fixed": value}


LengthField = Annotated[
    Length, Shorthand(as_fixed, {"type": "string", "description": "tokens, as in '512 token'"})
]
