"""What users ask for: when requests come and how long they are.  One seed, named streams: every system meets the same."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from sim.inputs.errors import ScenarioError
from sim.inputs.fields import OfKind, Shorthand
from sim.inputs.files import existing, shorten
from sim.inputs.values import Text, Value
from sim.units import MAX_COUNT, Count, RequestsPerSecond, Seconds, Tokens
from sim.workload import traces

STREAMS = (
    "arrivals",
    "prompts",
    "outputs",
    "turns",
    "thinks",
)  # append only: a stream's place is its seed


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """Requests by column: arrival in s, prompt and output in tokens.  Arrivals that are given ascend.

    An arrival is nan where an answer decides it.  In a closed loop (`users` ask, and the next one comes when a user is free)
    all are.  In sessions, request i with `after[i]` >= 0 is sent `think[i]` seconds after request `after[i]` is answered; one
    with `after[i]` = -1 has its arrival.  `after[i]` is less than i.

    `priority`: whose is smaller goes first (vLLM's meaning).  `hash_ids`: the blocks of each prompt, one id for each 512 tokens
    begun; prompts begin alike as far as their ids agree.  `answered`: when each got its first and last token
    where the trace was taken.  `note` says what of a trace was left out or cut.
    """

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    users: int | None = None
    after: np.ndarray | None = None
    think: np.ndarray | None = None
    priority: np.ndarray | None = None
    hash_ids: list[tuple[int, ...]] | None = None
    answered: tuple[np.ndarray, np.ndarray] | None = None
    note: str = ""


def one_of(value: Value, shapes: Iterable[str], what: str) -> None:
    """Raises: ValueError unless exactly one of the fields is given."""
    if sum(getattr(value, shape) is not None for shape in shapes) != 1:
        raise ValueError(what)


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
        one_of(
            self,
            Length.model_fields,
            "a length is one of '512 token', {uniform: [a, b]}, {lognormal: {mean: a, sigma: x}}",
        )
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
            return np.ceil(
                stream.lognormal(np.log(self.lognormal.mean) - sigma**2 / 2, sigma, n)
            ).astype(np.int64)
        return np.full(n, self.fixed, np.int64)


class Turns(Value):
    """Turns of a session: fixed, drawn evenly from a to b, or geometric (however many there were, as many more are to come)."""

    fixed: Count | None = None
    uniform: tuple[Count, Count] | None = None
    geometric: Annotated[float, Field(ge=1, le=MAX_COUNT)] | None = None  # the mean

    @model_validator(mode="after")
    def _one(self) -> "Turns":
        one_of(self, Turns.model_fields, "turns are one of 5, {uniform: [a, b]}, {geometric: mean}")
        if self.uniform and self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform from {self.uniform[0]} to {self.uniform[1]} turns is empty")
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
        if self.uniform:
            return stream.integers(self.uniform[0], self.uniform[1], n, endpoint=True)
        if self.geometric:
            return stream.geometric(1 / self.geometric, n).astype(np.int64)
        return np.full(n, self.fixed, np.int64)


class Pauses(Value):
    """Mean and sigma of a lognormal pause: sigma is the standard deviation of the logarithm."""

    mean: Annotated[Seconds, Field(gt=0)]
    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class Think(Value):
    """Seconds between an answer and the next turn: fixed, or lognormal."""

    fixed: Seconds | None = None
    lognormal: Pauses | None = None

    @model_validator(mode="after")
    def _one(self) -> "Think":
        one_of(self, Think.model_fields, "think is one of '10 s', {lognormal: {mean: a, sigma: x}}")
        return self

    def draw(self, stream: np.random.Generator, n: int) -> NDArray[np.float64]:
        """n pauses, of the given mean: mu = ln(mean) - sigma^2/2."""
        if self.lognormal:
            sigma = self.lognormal.sigma
            return stream.lognormal(np.log(self.lognormal.mean) - sigma**2 / 2, sigma, n)
        return np.full(n, self.fixed)


def _fixed(given: object) -> object:
    return given if isinstance(given, dict | Value) else {"fixed": given}


LengthField = Annotated[
    Length, Shorthand(_fixed, {"type": "string", "description": "tokens, as in '512 token'"})
]
TurnsField = Annotated[Turns, Shorthand(_fixed, {"type": "integer"})]
ThinkField = Annotated[
    Think, Shorthand(_fixed, {"type": "string", "description": "a quantity in s"})
]


def streams(seed: int) -> list[np.random.Generator]:
    """A stream of random numbers for each name in STREAMS: what is drawn from one leaves the others."""
    return [
        np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(len(STREAMS))
    ]


class Workload(Value, ABC):
    """Requests to come.  A plan must have room for a mean one to fit."""

    @property
    @abstractmethod
    def mean_prompt(self) -> float:
        """Tokens of a mean prompt."""

    @property
    @abstractmethod
    def mean_output(self) -> float:
        """Tokens of a mean output."""

    @abstractmethod
    def draw(self, seed: int) -> RequestBatch:
        """The requests of one seed."""


class RandomWorkload(Workload):
    """So many requests, whose lengths do not depend on when they come."""

    requests: Count
    prompt: LengthField
    output: LengthField

    @property
    def mean_prompt(self) -> float:
        return self.prompt.mean

    @property
    def mean_output(self) -> float:
        return self.output.mean

    @abstractmethod
    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Arrival times in s, ascending; nan where a user decides."""

    def draw(self, seed: int) -> RequestBatch:
        arrivals, prompts, outputs, *_ = streams(seed)
        users = getattr(self, "users", None)
        n = self.requests
        return RequestBatch(
            self.arrivals(arrivals),
            self.prompt.draw(prompts, n),
            self.output.draw(outputs, n),
            users,
        )


class Poisson(RandomWorkload):
    """An open loop: requests come at `rate`, whatever the system does; the gaps are exponential."""

    rate: RequestsPerSecond

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        return np.cumsum(stream.exponential(1 / self.rate, self.requests))


class Gamma(RandomWorkload):
    """An open loop in bursts: the gaps are gamma, of shape `burstiness`: 1 is Poisson, less comes in bursts, more is evener.

    The name and its meaning are vLLM's (`vllm bench serve --burstiness`).
    """

    rate: RequestsPerSecond
    burstiness: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Gaps of mean 1/rate and of variance 1/(burstiness rate^2)."""
        return np.cumsum(
            stream.gamma(self.burstiness, 1 / (self.rate * self.burstiness), self.requests)
        )


class ClosedLoop(RandomWorkload):
    """A closed loop: `users` ask one request each, and the next one `think` after the answer."""

    users: Count
    think: Seconds = 0.0

    @classmethod
    def noun(cls) -> str:
        """Return the kind as scenarios write it."""
        return "closed"

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        return np.full(self.requests, np.nan)


class ListedRequest(Value):
    """One request: when it comes, how long it is, and (smaller goes first) its priority."""

    arrival: Seconds
    prompt: Tokens
    output: Tokens
    priority: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)] = 0


class Listed(Workload):
    """Requests one by one, in any order; they are numbered by arrival, ties as they stand."""

    requests: tuple[ListedRequest, ...]

    @field_validator("requests")
    @classmethod
    def _some(cls, requests: tuple[ListedRequest, ...]) -> tuple[ListedRequest, ...]:
        if not requests:
            raise ValueError("list at least one request")
        return requests

    @property
    def mean_prompt(self) -> float:
        return sum(each.prompt for each in self.requests) / len(self.requests)

    @property
    def mean_output(self) -> float:
        return sum(each.output for each in self.requests) / len(self.requests)

    def draw(self, seed: int) -> RequestBatch:
        """The same for every seed."""
        ordered = sorted(self.requests, key=lambda each: each.arrival)
        lengths = (
            np.array([getattr(each, key) for each in ordered], np.int64)
            for key in ("prompt", "output", "priority")
        )
        prompt, output, priority = lengths
        arrival = np.array([each.arrival for each in ordered], float)
        return RequestBatch(arrival, prompt, output, priority=priority if priority.any() else None)


class Sessions(Workload):
    """Conversations: sessions start at `rate` (Poisson), and each turn is sent `think` after the answer to the one before.

    `prompt` is what the user adds in a turn; the prompt of the request is the whole conversation so far, answers and all, and
    that.  Requests are numbered session by session.  Left out: a system prompt that all share.
    """

    sessions: Count
    rate: RequestsPerSecond
    turns: TurnsField
    think: ThinkField
    prompt: LengthField
    output: LengthField

    @property
    def mean_prompt(self) -> float:
        """Of all requests: a mean one is turn number (E[n^2] + E[n]) / 2 E[n] of its session."""
        mean, square = self.turns.moments
        turn = (square + mean) / (2 * mean)
        return turn * self.prompt.mean + (turn - 1) * self.output.mean

    @property
    def mean_output(self) -> float:
        return self.output.mean

    def draw(self, seed: int) -> RequestBatch:
        arrivals, prompts, outputs, turns, thinks = streams(seed)
        counts = self.turns.draw(turns, self.sessions)
        n = int(counts.sum())
        first = np.cumsum(counts) - counts  # the number of each session's first turn
        added, output = self.prompt.draw(prompts, n), self.output.draw(outputs, n)
        before = np.cumsum(added + output) - (
            added + output
        )  # said before each turn, in all sessions
        arrival, think = np.full(n, np.nan), self.think.draw(thinks, n)
        arrival[first] = np.cumsum(arrivals.exponential(1 / self.rate, self.sessions))
        after = np.arange(n) - 1
        after[first], think[first] = -1, 0.0
        prompt = added + before - np.repeat(before[first], counts)
        ids = self._blocks(prompt.tolist(), np.repeat(np.arange(self.sessions), counts).tolist())
        return RequestBatch(arrival, prompt, output, after=after, think=think, hash_ids=ids)

    @staticmethod
    def _blocks(prompts: list[int], sessions: list[int]) -> list[tuple[int, ...]]:
        """One id for each 512 tokens begun: a session's full blocks are the same in all its turns, what is begun is each turn's."""
        most = max(prompts) // traces.BLOCK + 1
        ids = []
        for turn, (prompt, session) in enumerate(zip(prompts, sessions, strict=True)):
            full = range(session * most, session * most + prompt // traces.BLOCK)
            ids.append((*full, -1 - turn) if prompt % traces.BLOCK else tuple(full))
        return ids


def _beside(given: object) -> object:
    """A path, relative to the folder of the file that names it."""
    if isinstance(given, Text):
        return existing(given.folder / given, f"{given.where}: {given}")
    return Path(given) if isinstance(given, str) else given


PathField = Annotated[
    Path,
    BeforeValidator(_beside),
    WithJsonSchema({"type": "string", "description": "a file's path, relative to this file"}),
]
SYNTHETIC: dict[str, type[Workload]] = {"gamma": Gamma, "poisson": Poisson}


class Trace(Workload):
    """Requests as they were recorded at `path`; where no path is given, `synthetic` ones that stand for them.

    Formats, told by content: CSV of Azure, BurstGPT and Vidur, JSON lines of Mooncake, and vLLM's benchmark result.  Of either,
    those from `start` to before `end` (s since the first request of the trace) are taken, and of these the first `requests`;
    their times count from `start`, times `time_scale` (0.5: twice the load).  A prompt longer than `max_prompt`, or an output
    longer than `max_output`, is cut to it.
    """

    path: PathField | None = None
    synthetic: Annotated[Workload, OfKind(SYNTHETIC, Workload)] | None = None
    time_scale: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = 1.0
    start: Seconds = 0.0
    end: Seconds | None = None
    requests: Count | None = None
    max_prompt: Tokens | None = None
    max_output: Tokens | None = None

    @model_validator(mode="after")
    def _one(self) -> "Trace":
        if self.path is None and self.synthetic is None:
            raise ValueError("a trace has a path, or a synthetic workload that stands for it")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"from start {self.start:g} s to end {self.end:g} s is no time")
        return self

    @cached_property
    def recorded(self) -> RequestBatch | None:
        """What the file holds, cut as asked; read once."""
        if self.path is None:
            return None
        columns = traces.read_trace(self.path)
        whole = RequestBatch(
            columns.arrival,
            columns.prompt,
            columns.output,
            hash_ids=columns.hash_ids,
            answered=columns.answered,
        )
        return self._cut(
            whole, [f"failed requests left out: {columns.failed}"] if columns.failed else []
        )

    @property
    def mean_prompt(self) -> float:
        return self._mean("prompt", self.max_prompt)

    @property
    def mean_output(self) -> float:
        return self._mean("output", self.max_output)

    def _mean(self, column: str, most: int | None) -> float:
        """Of what was recorded; of a synthetic workload the mean before it is cut, which is at least as much."""
        if self.recorded:
            return float(getattr(self.recorded, column).mean())
        mean: float = getattr(self.synthetic, f"mean_{column}")
        return min(mean, most or mean)

    def draw(self, seed: int) -> RequestBatch:
        """What was recorded, the same for every seed; else synthetic ones."""
        if self.recorded:
            return self.recorded
        assert self.synthetic
        return self._cut(self.synthetic.draw(seed), [])

    def _cut(self, whole: RequestBatch, notes: list[str]) -> RequestBatch:
        """The window, time scale and caps.  Raises: ScenarioError where nothing is left."""
        from_, to = np.searchsorted(
            whole.arrival, [self.start, np.inf if self.end is None else self.end]
        )
        part = slice(from_, min(to, from_ + (self.requests or len(whole.arrival))))
        arrival, prompt, output = (
            column[part] for column in (whole.arrival, whole.prompt, whole.output)
        )
        ids = whole.hash_ids[part] if whole.hash_ids else None
        if not len(arrival):
            of = shorten(self.path) if self.path else "workload"
            raise ScenarioError(
                f"{of}: no request comes from start to end; the last one comes after {whole.arrival[-1]:g} s"
            )
        for name, column, most in (
            ("prompts", prompt, self.max_prompt),
            ("outputs", output, self.max_output),
        ):
            if most and (longer := int((column > most).sum())):
                notes = [*notes, f"{name} cut to {most} token: {longer}"]
        if self.max_prompt:
            prompt, blocks = (
                np.minimum(prompt, self.max_prompt),
                -(-self.max_prompt // traces.BLOCK),
            )
            ids = [each[:blocks] for each in ids] if ids else None
        output = np.minimum(output, self.max_output) if self.max_output else output
        times = (arrival - self.start) * self.time_scale
        answered = None  # of other requests than these, where anything but their number was changed
        if whole.answered and self.time_scale == 1 and not self.max_prompt and not self.max_output:
            answered = whole.answered[0][part] - self.start, whole.answered[1][part] - self.start
        return replace(
            whole,
            arrival=times,
            prompt=prompt,
            output=output,
            hash_ids=ids,
            answered=answered,
            note="; ".join(notes),
        )


WORKLOAD_KINDS: dict[str, type[Workload]] = {
    "closed": ClosedLoop,
    "gamma": Gamma,
    "listed": Listed,
    "poisson": Poisson,
    "sessions": Sessions,
    "trace": Trace,
}
VARIED = (ClosedLoop, Gamma, Poisson, Trace)  # those whose load a search of capacity may vary
WorkloadField = Annotated[Workload, OfKind(WORKLOAD_KINDS, Workload)]
