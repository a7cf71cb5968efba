"""What users ask for: when requests come and how long they are.  One seed, named streams: every system meets the same."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from sim.files import OfKind, Shorthand, Value
from sim.units import Count, RequestsPerSecond, Seconds, Tokens

STREAMS = ("arrivals", "prompts", "outputs")  # append only: a stream's place is its seed


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests by column: arrival in s (nan: when a user is free), prompt and output in tokens.

    `users` is None where arrivals are given, else how many users ask in a closed loop.
    """

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    users: int | None = None


class Spread(Value):
    """Mean and sigma of a lognormal: sigma is the standard deviation of the logarithm (beyond 10, floats cannot tell lengths)."""

    mean: Tokens
    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class Length(Value):
    """Tokens of a prompt or an output: fixed, drawn evenly from a to b, or lognormal (rounded up to whole tokens)."""

    fixed: Tokens | None = None
    uniform: tuple[Tokens, Tokens] | None = None
    lognormal: Spread | None = None

    @model_validator(mode="after")
    def _one(self) -> "Length":
        if sum(shape is not None for shape in (self.fixed, self.uniform, self.lognormal)) != 1:
            raise ValueError("a length is one of '512 token', {uniform: [a, b]}, {lognormal: {mean: a, sigma: x}}")
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform from {self.uniform[0]} to {self.uniform[1]} token is empty")
        return self

    @property
    def mean(self) -> float:
        if self.uniform:
            return sum(self.uniform) / 2
        return float(self.lognormal.mean if self.lognormal else self.fixed or 0)

    def draw(self, stream: np.random.Generator, n: int) -> np.ndarray:
        """n lengths.  The lognormal has the given mean before rounding: mu = ln(mean) - sigma^2/2."""
        if self.uniform:
            return stream.integers(self.uniform[0], self.uniform[1], n, endpoint=True)
        if self.lognormal:
            sigma = self.lognormal.sigma
            return np.ceil(stream.lognormal(np.log(self.lognormal.mean) - sigma**2 / 2, sigma, n)).astype(np.int64)
        return np.full(n, self.fixed, np.int64)


def _fixed(given: object) -> object:
    return given if isinstance(given, dict | Length) else {"fixed": given}


LengthField = Annotated[Length, Shorthand(_fixed, {"type": "string", "description": "tokens, as in '512 token'"})]


class Workload(Value, ABC):
    """Requests to come: how many, how long, and (by kind) when."""

    requests: Count
    prompt: LengthField
    output: LengthField

    @abstractmethod
    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Arrival times in s, ascending; nan where a user decides."""

    def draw(self, seed: int) -> Requests:
        """The requests of one seed."""
        seeds = np.random.SeedSequence(seed).spawn(len(STREAMS))
        arrivals, prompts, outputs = (np.random.default_rng(s) for s in seeds)
        users = getattr(self, "users", None)
        n = self.requests
        return Requests(self.arrivals(arrivals), self.prompt.draw(prompts, n), self.output.draw(outputs, n), users)


class Poisson(Workload):
    """An open loop: requests come at `rate`, whatever the system does; the gaps are exponential."""

    rate: RequestsPerSecond

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        return np.cumsum(stream.exponential(1 / self.rate, self.requests))


class Closed(Workload):
    """A closed loop: `users` ask one request each, and the next one `think` after the answer."""

    users: Count
    think: Seconds = 0.0

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        return np.full(self.requests, np.nan)


KINDS: dict[str, type[Workload]] = {"poisson": Poisson, "closed": Closed}
WorkloadField = Annotated[Workload, OfKind(KINDS, Workload)]
