"""Workloads whose arrivals are random, listed one by one, or follow answers."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from sim.inputs.values import Value
from sim.units import MAX_COUNT, Count, RequestsPerSecond, Seconds, Tokens, Unit
from sim.workload.lengths import LengthField
from sim.workload.requests import RequestBatch, random_streams


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

    def scaled(self, load: float, requests: int) -> "Workload":
        """Return the same workload at another load, with another number of requests.

        Recorded requests stay the same: the caller stretches their times.
        Raises: TypeError if the workload has no load.
        """
        if self.is_recorded:
            return self
        raise TypeError(f"workload {self.noun()} has no load to vary")

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


class RandomWorkload(PrefixedWorkload):
    """A number of requests whose lengths do not depend on their arrivals."""

    requests: Count = Field(description="Number of requests.")
    prompt: LengthField = Field(description="Length of prompts, without `shared_prefix` [token].")
    output: LengthField = Field(description="Length of outputs [token].")

    @property
    def size(self) -> int:
        """The number of requests."""
        return self.requests

    @property
    def mean_prompt(self) -> float:
        """Tokens of a mean prompt."""
        return self.shared_prefix + self.prompt.mean

    @property
    def mean_output(self) -> float:
        """Tokens of a mean output."""
        return self.output.mean

    @abstractmethod
    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Return float[request], s, ascending; nan if an answer decides the arrival."""

    def draw(self, seed: int) -> RequestBatch:
        """Return the requests of one seed."""
        arrivals, prompts, outputs, *_ = random_streams(seed)
        return RequestBatch(
            self.arrivals(arrivals),
            self.shared_prefix + self.prompt.draw(prompts, self.requests),
            self.output.draw(outputs, self.requests),
            getattr(self, "users", None),
            shared_prefix=self.shared_prefix,
        )


class _OpenLoop(RandomWorkload):
    """A workload whose requests come at `rate`, whatever the system does."""

    load_kind = "rate"

    def scaled(self, load: float, requests: int) -> Workload:
        """Return the same workload at another rate, with another number of requests."""
        return self.model_copy(update={"rate": load, "requests": requests})


class Poisson(_OpenLoop):
    """An open loop with exponential gaps: requests come at `rate`, whatever the system does."""

    rate: RequestsPerSecond = Field(description="Mean rate of arrivals [request/s].")

    def arrivals(self, stream: np.random.Generator) -> np.ndarray:
        """Return float[request], s, with gaps of mean 1/rate."""
        return np.cumsum(stream.exponential(1 / self.rate, self.requests))


class Gamma(_OpenLoop):
    """An open loop in bursts, with gamma gaps of shape `burstiness`.

    Name and meaning are vLLM's (`vllm bench serve --burstiness`).
    """

    rate: RequestsPerSecond = Field(description="Mean rate of arrivals [request/s].")
    burstiness: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = Field(
        description="Shape of the gaps: 1 is Poisson, less comes in bursts, more is more even."
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
    think: Seconds = Field(
        default=0.0, description="Time between an answer and the user's next request [s]."
    )

    @classmethod
    def noun(cls) -> str:
        """Return the kind as scenarios write it."""
        return "closed"

    @property
    def pause(self) -> Seconds:
        """The time between an answer and the user's next request."""
        return self.think

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
            raise ValueError("list at least one request")
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
