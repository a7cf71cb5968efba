"""Pauses of users between an answer and their next request."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.inputs.fields import Shorthand
from sim.inputs.values import Value
from sim.units import Seconds
from sim.workload.lengths import as_fixed, require_one


class Pauses(Value):
    """The mean and sigma of a lognormal pause."""

    mean: Annotated[Seconds, Field(gt=0)] = Field(description="Mean of the pause [s].")
    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = Field(
        description="Standard deviation of the logarithm."
    )


class Think(Value):
    """Seconds between an answer and the next request: fixed, exponential, or lognormal."""

    fixed: Seconds | None = Field(
        default=None, description="One pause for all requests [s]; the short form."
    )
    exponential: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None, description="Mean of an exponential (memoryless) distribution [s]."
    )
    lognormal: Pauses | None = Field(
        default=None, description="Lognormal distribution of the pause."
    )

    @model_validator(mode="after")
    def _one(self) -> "Think":
        examples = "'10 s', {exponential: mean}, {lognormal: {mean: a, sigma: x}}"
        require_one(self, Think.model_fields, examples)
        return self

    @property
    def mean(self) -> Seconds:
        """The mean pause [s]."""
        return self.lognormal.mean if self.lognormal else self.exponential or self.fixed or 0.0

    @property
    def varies(self) -> bool:
        """Whether pauses differ."""
        return self.fixed is None

    def draw(self, stream: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Return float[n], s.

        A lognormal has the given mean: mu = ln(mean) - sigma^2/2.
        """
        if self.lognormal:
            sigma = self.lognormal.sigma
            return stream.lognormal(np.log(self.lognormal.mean) - sigma**2 / 2, sigma, n)
        if self.exponential:
            return stream.exponential(self.exponential, n)
        return np.full(n, self.fixed)


ThinkField = Annotated[
    Think, Shorthand(as_fixed, {"type": "string", "description": "a quantity in s"})
]
