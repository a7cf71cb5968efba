"""Workloads whose arrivals are random, listed one by one, or follow answers."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from sim.inputs.values import Value
from sim.units import MAX_COUNT, Count, RequestsPerSecond, Seconds, Tokens, Unit
from sim.workload.request_kinds import (
    KindsField,
    RequestLengths,
    WithLengths,
    check_shares,
    draw_kinds,
    draw_lengths,
    mean_length,
)
from sim.workload.requests import RequestBatch, random_streams
from sim.workload.slo import SLO
from sim.workload.think import Think, ThinkField


class Workload(Value, ABC):
    """Requests to come. A plan must have room for a mean request to fit.

    A search of capacity varies the load of workloads with a `load_kind`. A user's own kind
    defines `load_kind` and `scaled` to be searched, and optionally `size`.
    """

    # The unit of the load: requests per second, or users of a closed loop. None: it has no load.
    load_kind: ClassVar[Literal["rate", "users"] | None] = None
    # Recorded requests cannot be drawn at another load. A search stretches their times instead.
    is_recorded: ClassVar[bool] = False
    # Why there is no load to vary, for errors.
    no_load: ClassVar[str] = "its load is not known"

    @property
    def size(self) -> int:
        """The number of requests, at least; 0 if it is not known before a draw."""
        return 0

    @property
    def pause(self) -> Seconds | None:
        """The time between an answer and the user's next request; None without a closed loop."""
        return None

    @property
    def in_step(self) -> bool:
        """Whether all users send equal requests together, again and again."""
        return False

    @property
    def chained(self) -> bool:
        """Whether requests follow answers to earlier requests, as the turns of a session do."""
        return False

    @property
    def turns_of_load(self) -> float:
        """The mean number of requests in a session; 1 without sessions."""
        return 1.0

    @property
    def lifetime(self) -> Seconds:
        """The mean time for which a session pauses between its turns; 0 without sessions."""
        return 0.0

    def scaled(self, load: float, requests: int) -> "Workload":
        """Return the same workload at another load, with another number of requests.

        Recorded requests stay the same: the caller stretches their times.
        Raises: TypeError if the workload has no load.
        """
        if self.is_recorded:
            return self
        raise TypeError(f"workload {self.noun()} has no load to vary")

    @property
    def slos(self) -> dict[str, SLO | None]:
        """The SLO of each kind of requests, by name; empty without kinds."""
        return {}

    @property
    def most_in_flight(self) -> int | None:
        """The requests in flight at most, whatever the load; None without such a limit."""
        return None

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
        """Return the requests of one seed; all systems get the same."""


class PrefixedWorkload(Workload):
    """A workload whose prompts may all begin with the same tokens, such as a system prompt.

    `shared_prefix` adds to `prompt`, as `--random-prefix-len` of `vllm bench serve` and
    `--shared-system-prompt-length` of AIPerf do. Prompts are longer by it under all systems; those
    with `prefix_caching` compute its full blocks once, and again after they are evicted.
    """

    shared_prefix: Annotated[int, Field(ge=0, le=MAX_COUNT), Unit("token")] = Field(
        default=0,
        description="Tokens, the same ones, at the beginning of every prompt; they add to `prompt` "
        "[token].",
    )


class RandomWorkload(PrefixedWorkload, WithLengths):
    """A number of requests whose lengths do not depend on their arrivals.

    With `kinds`, each request is of one kind, which has its own lengths and SLO.
    """

    requests: Count = Field(description="Number of requests.")
    kinds: KindsField | None = Field(
        default=None,
        description="Kinds of requests by name, each with share, lengths and SLO; instead of "
        "`prompt`, `output` and `lengths`.",
    )

    @model_validator(mode="after")
    def _described(self) -> "RandomWorkload":
        if self.kinds is None:
            if self.lengths_error:
                raise ValueError(self.lengths_error)
            return self
        check_shares(self.kinds)
        for key in WithLengths.model_fields:
            if getattr(self, key) is not None:
                raise ValueError(f"got {key} and kinds; expected one of them; try {key} in a kind")
        return self

    @property
    def size(self) -> int:
        """The number of requests."""
        return self.requests

    @property
    def slos(self) -> dict[str, SLO | None]:
        """The SLO of each kind; None for that of the scenario."""
        return {name: kind.slo for name, kind in (self.kinds or {}).items()}

    @property
    def mean_prompt(self) -> float:
        """Tokens of a mean prompt."""
        if self.kinds:
            return self.shared_prefix + mean_length(self.kinds, "prompt")
        return self.shared_prefix + self._lengths.prompt.mean

    @property
    def mean_output(self) -> float:
        """Tokens of a mean output."""
        return mean_length(self.kinds, "output") if self.kinds else self._lengths.output.mean

    @property
    def _lengths(self) -> RequestLengths:
        lengths = self.own_lengths
        assert lengths
        return lengths

    @abstractmethod
    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Return float[request], s, ascending; nan if an answer decides the arrival."""

    def draw(self, seed: int) -> RequestBatch:
        """Return the requests of one seed."""
        arrivals, prompts, outputs, _, thinks, kinds = random_streams(seed)
        n, of = self.requests, None
        if self.kinds:
            of = draw_kinds(self.kinds, kinds, n)
            prompt = draw_lengths(self.kinds, "prompt", prompts, of)
            output = draw_lengths(self.kinds, "output", outputs, of)
        else:
            lengths = self._lengths
            prompt, output = lengths.prompt.draw(prompts, n), lengths.output.draw(outputs, n)
        return RequestBatch(
            self.arrivals(arrivals),
            self.shared_prefix + prompt,
            output,
            getattr(self, "users", None),
            think=self.pauses(thinks),
            shared_prefix=self.shared_prefix,
            most_in_flight=self.most_in_flight,
            kind=of,
            kinds=self.slos,
        )

    def pauses(self, stream: np.random.Generator) -> np.ndarray | None:
        """Return float[request], s, the pause after each answer; None if all have `pause`."""
        return None


class _OpenLoop(RandomWorkload):
    """A workload whose requests come at `rate`, whatever the system does.

    With `max_concurrent`, a request beyond the limit is sent after the next answer ends.
    Its latencies count from then, as in `vllm bench serve --max-concurrency`.
    """

    load_kind = "rate"
    rate: RequestsPerSecond = Field(description="Mean rate of arrivals [request/s].")
    max_concurrent: Count | None = Field(
        default=None,
        description="Most requests in flight; others wait to be sent; default: no limit.",
    )

    @property
    def most_in_flight(self) -> int | None:
        """The requests in flight at most; None without a limit."""
        return self.max_concurrent

    def scaled(self, load: float, requests: int) -> Workload:
        """Return the same workload at another rate, with another number of requests."""
        return self.model_copy(update={"rate": load, "requests": requests})


class Poisson(_OpenLoop):
    """An open loop with exponential gaps: requests come at `rate`, whatever the system does."""

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Return float[request], s, with gaps of mean 1/rate."""
        return np.cumsum(stream.exponential(1 / self.rate, self.requests))


class Gamma(_OpenLoop):
    """An open loop in bursts, with gamma gaps of shape `burstiness`.

    Name and meaning are vLLM's (`vllm bench serve --burstiness`).
    """

    burstiness: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = Field(
        description="Shape of the gaps: 1 for Poisson arrivals, below 1 for bursts, above 1 for "
        "even gaps."
    )

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Return float[request], s, with gaps of mean 1/rate and variance 1/(burstiness rate^2)."""
        scale = 1 / (self.rate * self.burstiness)
        return np.cumsum(stream.gamma(self.burstiness, scale, self.requests))


class ClosedLoop(RandomWorkload):
    """A closed loop: each of `users` sends its next request `think` after the answer.

    Request i belongs to user i modulo `users`, whose requests come in order in every system.
    After its own a user sends those that others have not sent yet.
    """

    load_kind = "users"
    users: Count = Field(description="Number of users, each with one request at a time.")
    think: ThinkField = Field(
        default=Think(fixed=0.0),
        description="Time between an answer and the user's next request [s].",
    )

    @classmethod
    def noun(cls) -> str:
        """Return the kind as scenarios write it."""
        return "closed"

    @property
    def pause(self) -> Seconds:
        """The mean time between an answer and the user's next request."""
        return self.think.mean

    @property
    def in_step(self) -> bool:
        """Whether all users send equal requests together, again and again."""
        if self.kinds or self.think.varies:
            return False
        return self._lengths.prompt.fixed is not None and self._lengths.output.fixed is not None

    def pauses(self, stream: np.random.Generator) -> np.ndarray | None:
        """Return float[request], s, the pause after each answer; None if it is fixed."""
        return self.think.draw(stream, self.requests) if self.think.varies else None

    def scaled(self, load: float, requests: int) -> Workload:
        """Return the same workload with another number of users and of requests."""
        return self.model_copy(update={"users": round(load), "requests": requests})

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Return float[request] of nan: an answer decides each arrival."""
        return np.full(self.requests, np.nan)


class ListedRequest(Value):
    """One request: arrival, lengths and priority."""

    arrival: Seconds = Field(description="Arrival, from the start of the run [s].")
    prompt: Tokens = Field(description="Length of the prompt, without `shared_prefix` [token].")
    output: Tokens = Field(description="Length of the output [token].")
    priority: Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)] = Field(
        default=0, description="Priority for `order: priority`; the smaller number goes first."
    )


class Listed(PrefixedWorkload):
    """Requests one by one.

    They are numbered by arrival; requests that arrive together keep their order.
    """

    no_load = "its requests are listed one by one"
    requests: tuple[ListedRequest, ...] = Field(description="The requests, in any order.")

    @field_validator("requests")
    @classmethod
    def _some(cls, requests: tuple[ListedRequest, ...]) -> tuple[ListedRequest, ...]:
        if not requests:
            raise ValueError("got an empty list; expected one request or more")
        return requests

    @property
    def mean_prompt(self) -> float:
        """Tokens of a mean prompt."""
        prompts = sum(request.prompt for request in self.requests)
        return self.shared_prefix + prompts / len(self.requests)

    @property
    def mean_output(self) -> float:
        """Tokens of a mean output."""
        return sum(request.output for request in self.requests) / len(self.requests)

    def draw(self, seed: int) -> RequestBatch:
        """Return the requests, which are the same for every seed."""
        ordered = sorted(self.requests, key=lambda request: request.arrival)
        prompt, output, priority = (
            np.array([getattr(request, key) for request in ordered], np.int64)
            for key in ("prompt", "output", "priority")
        )
        arrival = np.array([request.arrival for request in ordered], float)
        return RequestBatch(
            arrival,
            self.shared_prefix + prompt,
            output,
            priority=priority if priority.any() else None,
            shared_prefix=self.shared_prefix,
        )
