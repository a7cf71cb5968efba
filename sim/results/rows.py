"""The rows that leave a run: one request each, a numpy column for each thing known of them."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.cost.energy import Tally
from sim.results.histogram import Gaps
from sim.units import Seconds
from sim.workload.requests import RequestBatch

if TYPE_CHECKING:
    import polars

FINISHED, REFUSED, CANCELLED, FAILED = "finished", "refused", "cancelled", "failed"
NUMBERED = re.compile(r"^\d+ tokens exceed")  # reasons that differ from request to request

# The columns of requests.parquet: type and meaning.
COLUMNS = {
    "system": "text: the system's name in the scenario",
    "id": "integer: the request's number, the same in all systems",
    "replica": "integer: the replica that served it, -1 where none did",
    "member": "text: the system that this replica is a copy of: in a fleet one of its members; empty where none served it",
    "outcome": "text: finished, refused, cancelled at its deadline, or failed with its replica",
    "reason": "text: why it was not finished, else empty",
    "arrival": "s: when the user sent it",
    "admitted": "s: when it got its room",
    "first_token": "s: when its first token was ready",
    "last_token": "s: when its last token was ready",
    "prompt_tokens": "integer: tokens of the prompt",
    "output_tokens": "integer: tokens of the output",
    "cached_tokens": "integer: tokens of the prompt that the prefix cache had",
    "preemptions": "integer: how often it lost its room and was computed again",
    "retries": "integer: how often its replica failed, and it began anew",
    "moved": "true or false: it began anew on another replica",
}


@dataclass(frozen=True, eq=False)
class Traffic:
    """What each link carried at chip fidelity: messages, seconds taken, seconds that messages waited for those of others.

    Waiting behind messages of one's own collective is not counted: that is the collective's order.
    """

    links: dict[str, tuple[int, Seconds, Seconds]]

    @classmethod
    def summed(cls, lives: "Iterable[Traffic]") -> "Traffic":
        """What the same links carried one after the other."""
        links: dict[str, tuple[int, Seconds, Seconds]] = {}
        for each in lives:
            for name, (messages, busy, waited) in each.links.items():
                before = links.get(name, (0, 0.0, 0.0))
                links[name] = before[0] + messages, before[1] + busy, before[2] + waited
        return cls(links)

    @property
    def messages(self) -> int:
        return sum(messages for messages, _, _ in self.links.values())

    @property
    def waited(self) -> Seconds:
        return sum(waited for _, _, waited in self.links.values())

    def most_waited(self, most: int = 5) -> list[tuple[str, int, Seconds, Seconds]]:
        """The links that messages waited for longest: name, messages, seconds taken, seconds waited."""
        waited = [(name, *use) for name, use in self.links.items() if use[2] > 0]
        return sorted(waited, key=lambda link: (-link[3], link[0]))[:most]


@dataclass(frozen=True, eq=False)
class Span:
    """A part of a run: from when to when [s], what the stages of each replica did in it, and for how long each was busy [s]."""

    start: Seconds
    end: Seconds
    tallies: list[Tally]
    busy: list[NDArray[np.float64]]


@dataclass(eq=False)
class Rows:
    """One system's requests, a numpy column for each thing known of them, and what its stages did."""

    requests: RequestBatch
    gaps: Gaps = field(default_factory=Gaps)
    systems: list[str] = field(default_factory=list)  # by replica: the one that it is a copy of
    busy: list[NDArray[np.float64]] = field(default_factory=list)  # s, by replica and stage
    kv_peak: list[int] = field(default_factory=list)  # tokens, by replica: the most that it held
    kv_tokens: list[int] = field(default_factory=list)  # tokens, by replica: what it has room for
    tallies: list[Tally] = field(default_factory=list)  # by replica: what passed through its stages
    replays: list[int] = field(default_factory=list)  # by replica: steps that were made again
    traffic: dict[int, Traffic] = field(
        default_factory=dict
    )  # of the replicas at chip fidelity, by number
    worked_until: Seconds = -math.inf  # when the last step was over
    span: Span | None = None  # the part of the run that `measure` counts

    def __post_init__(self) -> None:
        n = len(self.requests.arrival)
        self.arrival = self.requests.arrival.astype(float).copy()
        self.admitted = np.full(n, np.nan)
        self.first_token = np.full(n, np.nan)
        self.last_token: NDArray[np.float64] = np.full(n, np.nan)
        self.ended: NDArray[np.float64] = np.full(
            n, np.nan
        )  # finished, refused, cancelled or failed
        self.replica = np.full(n, -1)
        self.turned_away = np.zeros(n, bool)  # refused because the queue was full
        self.cancelled = np.zeros(n, bool)
        self.cached = np.zeros(n, np.int64)
        self.preemptions = np.zeros(n, np.int64)
        self.retries = np.zeros(n, np.int64)
        self.moved = np.zeros(n, bool)
        self.failed = np.zeros(n, bool)
        self.reason = [""] * n

    @property
    def finished(self) -> NDArray[np.bool_]:
        return np.isfinite(self.last_token)

    @property
    def end(self) -> Seconds:
        """When the last request ended, however it ended, and the last step was over; -inf where none did."""
        return float(
            max(
                self.worked_until,
                np.fmax(self.last_token, self.ended).max(initial=-math.inf, where=self.has_ended),
            )
        )

    @property
    def has_ended(self) -> NDArray[np.bool_]:
        return np.isfinite(self.last_token) | np.isfinite(self.ended)

    @property
    def elapsed(self) -> Seconds:
        """The time that the run lasts: from the first arrival to its end; 0 where no request ended."""
        return self.end - float(np.nanmin(self.arrival)) if self.has_ended.any() else 0.0

    @property
    def unfinished(self) -> dict[str, int]:
        """How many requests were not finished for each reason, the most frequent first."""
        reasons = (NUMBERED.sub("more tokens than", reason) for reason in self.reason if reason)
        return dict(sorted(Counter(reasons).items(), key=lambda each: (-each[1], each[0])))

    def expire(self, number: int, deadline: Seconds) -> None:
        """A request's deadline has passed."""
        self.cancelled[number] = True
        self.reason[number] = f"not finished {deadline:g} s after it was sent"

    def table(self, system: str) -> "polars.DataFrame":
        """The columns of requests.parquet."""
        import polars

        n = len(self.arrival)
        unfinished = np.where(self.cancelled, CANCELLED, np.where(self.failed, FAILED, REFUSED))
        return polars.DataFrame(
            {
                "system": [system] * n,
                "id": np.arange(n),
                "replica": self.replica,
                "member": np.array([*self.systems, ""])[self.replica].tolist(),
                "outcome": np.where(self.finished, FINISHED, unfinished).tolist(),
                "reason": self.reason,
                "arrival": self.arrival,
                "admitted": self.admitted,
                "first_token": self.first_token,
                "last_token": self.last_token,
                "prompt_tokens": self.requests.prompt,
                "output_tokens": self.requests.output,
                "cached_tokens": self.cached,
                "preemptions": self.preemptions,
                "retries": self.retries,
                "moved": self.moved,
            }
        )


def answered(requests: RequestBatch) -> Rows:
    """The rows of a trace's own answers."""
    assert requests.answered
    rows = Rows(requests)
    rows.admitted, (rows.first_token, rows.last_token) = rows.arrival.copy(), requests.answered
    return rows
