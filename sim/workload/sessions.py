"""Conversations: sessions of several turns, each sent some time after the answer before it."""

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.inputs.fields import Shorthand
from sim.inputs.values import Value
from sim.units import MAX_COUNT, Count, RequestsPerSecond, Seconds
from sim.workload.arrivals import PrefixedWorkload
from sim.workload.lengths import LengthField, as_fixed, check_order, require_one
from sim.workload.requests import RequestBatch, random_streams
from sim.workload.think import ThinkField


class Turns(Value):
    """Turns of a session: fixed, uniform from a to b, or geometric (memoryless)."""

    fixed: Count | None = Field(
        default=None, description="One number of turns for all sessions; the short form."
    )
    uniform: tuple[Count, Count] | None = Field(
        default=None, description="Lowest and highest number of a uniform distribution."
    )
    geometric: Annotated[float, Field(ge=1, le=MAX_COUNT)] | None = Field(
        default=None, description="Mean of a geometric (memoryless) distribution, turns."
    )

    @model_validator(mode="after")
    def _one(self) -> "Turns":
        require_one(self, Turns.model_fields, "5, {uniform: [a, b]}, {geometric: mean}")
        if self.uniform:
            check_order(*self.uniform, "")
        return self

    @property
    def moments(self) -> tuple[float, float]:
        """The means of the number of turns and of its square."""
        if self.uniform:
            mean, n = sum(self.uniform) / 2, self.uniform[1] - self.uniform[0] + 1
            return mean, mean**2 + (n**2 - 1) / 12
        if self.geometric:
            return self.geometric, self.geometric * (2 * self.geometric - 1)
        mean = float(self.fixed or 0)
        return mean, mean**2

    def draw(self, stream: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Return int[n], turns."""
        if self.uniform:
            return stream.integers(self.uniform[0], self.uniform[1], n, endpoint=True)
        if self.geometric:
            return stream.geometric(1 / self.geometric, n).astype(np.int64)
        return np.full(n, self.fixed, np.int64)


TurnsField = Annotated[Turns, Shorthand(as_fixed, {"type": "integer"})]


class Sessions(PrefixedWorkload):
    """Conversations: sessions start at `rate` (Poisson), and turns follow `think` after answers.

    The prompt of a request is the whole conversation so far with its answers, and the user's new
    text. Requests are numbered session by session.
    """

    load_kind = "rate"
    sessions: Count = Field(description="Number of sessions.")
    rate: RequestsPerSecond = Field(
        description="Mean rate at which sessions start [request/s]; starts are Poisson."
    )
    turns: TurnsField = Field(description="Number of turns of a session.")
    think: ThinkField = Field(description="Pause between an answer and the next turn [s].")
    prompt: LengthField = Field(
        description="Length of the user's new text in a turn, without the conversation before it "
        "[token]."
    )
    output: LengthField = Field(description="Length of an answer [token].")

    @property
    def size(self) -> int:
        """The mean number of requests."""
        return int(self.sessions * self.turns_of_load)

    @property
    def chained(self) -> bool:
        """Whether turns follow answers: they do."""
        return True

    @property
    def turns_of_load(self) -> float:
        """The mean number of requests in a session."""
        return self.turns.moments[0]

    @property
    def lifetime(self) -> Seconds:
        """The mean time for which a session pauses between its turns."""
        return (self.turns_of_load - 1) * self.think.mean

    def scaled(self, load: float, requests: int) -> "Sessions":
        """Return the same workload at another rate of requests, with another number of them."""
        turns = self.turns_of_load
        sessions = max(2, math.ceil(requests / turns))
        return self.model_copy(update={"rate": load / turns, "sessions": sessions})

    @property
    def mean_prompt(self) -> float:
        """Tokens of a mean prompt; a mean request is turn (E[n^2] + E[n]) / 2 E[n] of a session."""
        mean, square = self.turns.moments
        turn = (square + mean) / (2 * mean)
        conversation = turn * self.prompt.mean + (turn - 1) * self.output.mean
        return self.shared_prefix + conversation

    @property
    def mean_output(self) -> float:
        """Tokens of a mean output."""
        return self.output.mean

    def draw(self, seed: int) -> RequestBatch:
        """Return the requests of one seed."""
        arrivals, prompts, outputs, turns, thinks, *_ = random_streams(seed)
        counts = self.turns.draw(turns, self.sessions)
        n = int(counts.sum())
        first = np.cumsum(counts) - counts  # the number of each session's first turn
        added, output = self.prompt.draw(prompts, n), self.output.draw(outputs, n)
        # Tokens before each turn, in all sessions.
        before = np.cumsum(added + output) - (added + output)
        arrival, think = np.full(n, np.nan), self.think.draw(thinks, n)
        arrival[first] = np.cumsum(arrivals.exponential(1 / self.rate, self.sessions))
        after = np.arange(n) - 1
        after[first], think[first] = -1, 0.0
        prompt = self.shared_prefix + added + before - np.repeat(before[first], counts)
        numbers = np.repeat(np.arange(self.sessions), counts)
        return RequestBatch(
            arrival,
            prompt,
            output,
            after=after,
            think=think,
            sessions=numbers,
            shared_prefix=self.shared_prefix,
        )
