"""The rows of a run: numpy columns with one value for each request.

>>> COLUMNS["first_token"]
's: when its first token was ready'
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.energy import Tally
from sim.results.histogram import Gaps
from sim.units import Bytes, Seconds
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
    "member": "text: the system or fleet member that this replica is a copy of; empty where none "
    "served it",
    "outcome": "text: finished, refused, cancelled at its deadline, or failed with its replica",
    "reason": "text: why it was not finished, else empty",
    "arrival": "s: when the user sent it",
    "admitted": "s: when it got its room",
    "first_token": "s: when its first token was ready",
    "last_token": "s: when its last token was ready",
    "prompt_tokens": "integer: tokens of the prompt",
    "output_tokens": "integer: tokens of the output",
    "cached_tokens": "integer: tokens of the prompt that the prefix cache had when it was first "
    "admitted, on its last replica",
    "preemptions": "integer: how often it lost its room and was computed again",
    "retries": "integer: how often it began again because its replica failed",
    "moved": "true or false: it began again on another replica",
}
# The further column of a workload with kinds of requests.
KIND_COLUMNS = {"kind": "text: its kind among the workload's `kinds`"}
# Further columns of a run in which a system speculates; null where a request was not finished, and
# for systems without speculation.
DRAFT_COLUMNS = {
    "steps": "integer: steps in which it decoded, after its first token",
    "accepted": "integer: drafts that became tokens of its output",
}
# The further columns of a run with prefill and decode pools. `replica` is then the decode replica.
TRANSFER_COLUMNS = {
    "prefill_replica": "integer: the replica that computed its prompt, -1 where none did",
    "transfer_start": "s: when its KV cache began to travel, without what left during the prefill",
    "transfer_end": "s: when its KV cache had travelled",
    "handed_over": "s: when the decode replica's scheduler had it, after the hand-over",
    "decode_start": "s: when a micro-batch of the decode replica, or its beat, took it",
}


@dataclass(frozen=True, eq=False)
class Traffic:
    """The use of each link at chip fidelity: messages, time busy [s], time waited [s].

    Messages wait for messages of other collectives.
    Left out: waiting for messages of the same collective, which is part of its order.
    """

    links: dict[str, tuple[int, Seconds, Seconds]]

    @classmethod
    def summed(cls, lives: "Iterable[Traffic]") -> "Traffic":
        """Return the total use of the same links in several lives of a replica."""
        links: dict[str, tuple[int, Seconds, Seconds]] = {}
        for life in lives:
            for name, (messages, busy, waited) in life.links.items():
                before = links.get(name, (0, 0.0, 0.0))
                links[name] = before[0] + messages, before[1] + busy, before[2] + waited
        return cls(links)

    @property
    def messages(self) -> int:
        """The messages of all links."""
        return sum(messages for messages, _, _ in self.links.values())

    @property
    def waited(self) -> Seconds:
        """The time that messages waited, summed over links."""
        return sum(waited for _, _, waited in self.links.values())

    def most_waited(self) -> list[tuple[str, int, Seconds, Seconds]]:
        """Return the five links that waited longest: name, messages, time busy and waited [s]."""
        waited = [(name, *use) for name, use in self.links.items() if use[2] > 0]
        return sorted(waited, key=lambda link: (-link[3], link[0]))[:5]


class Transfers:
    """The transfers of prompts between pools.

    prefill_replica: int[request], -1 before any. start, end, handed_over, decode_start:
        float[request] [s], nan if never.
    sent: float[request], bytes that it sent, also before a failure [B].
    busy: time in use of each replica's links [s].
    """

    def __init__(self, requests: int, busy: list[Seconds]) -> None:
        self.prefill_replica = np.full(requests, -1)
        self.start = np.full(requests, np.nan)
        self.end = np.full(requests, np.nan)
        self.handed_over = np.full(requests, np.nan)
        self.decode_start = np.full(requests, np.nan)
        self.sent = np.zeros(requests)
        self.busy = busy

    @property
    def nbytes(self) -> Bytes:
        """The bytes of all transfers."""
        return float(self.sent.sum())

    def add(self, number: int, times: tuple[Seconds, Seconds], nbytes: Bytes) -> None:
        """Add the transfer of a request: its start and end [s], and its bytes."""
        self.start[number], self.end[number] = times
        self.sent[number] += nbytes

    def forget(self, number: int) -> None:
        """Forget the times of a transfer, because a replica has failed. Its bytes count."""
        for times in (self.start, self.end, self.handed_over, self.decode_start):
            times[number] = np.nan

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of `TRANSFER_COLUMNS`."""
        times = self.start, self.end, self.handed_over, self.decode_start
        values = self.prefill_replica, *times
        return dict(zip(TRANSFER_COLUMNS, values, strict=True))


@dataclass(frozen=True, eq=False)
class Span:
    """A part of a run: its start and end [s], and the work of each replica in it.

    tallies: by replica. busy: by replica, float[stage] [s].
    """

    start: Seconds
    end: Seconds
    tallies: list[Tally]
    busy: list[NDArray[np.float64]]


@dataclass(eq=False)
class Rows:
    """The requests of one system as numpy columns, and the work of its stages.

    arrival, admitted, first_token, last_token, ended: float[request] [s], nan if never.
    ended: when a request finished, or was refused, cancelled or failed.
    replica: int[request], -1 if no replica served the request.
    steps: int[request], decode steps; None without speculation.
    turned_away: bool[request], refused because the queue was full.
    """

    requests: RequestBatch
    gaps: Gaps = field(default_factory=Gaps)
    systems: list[str] = field(default_factory=list)  # by replica: the system it is a copy of
    busy: list[NDArray[np.float64]] = field(default_factory=list)  # s, by replica and stage
    kv_peak: list[int] = field(default_factory=list)  # tokens, by replica: peak use
    kv_tokens: list[int] = field(default_factory=list)  # tokens, by replica: KV cache
    tallies: list[Tally] = field(default_factory=list)  # by replica: work of its stages
    replays: list[int] = field(default_factory=list)  # by replica: repeated steps
    traffic: dict[int, Traffic] = field(default_factory=dict)  # by replica at chip fidelity
    worked_until: Seconds = -math.inf  # when the last step ended
    span: Span | None = None  # the part of the run that `measure` counts
    steps: NDArray[np.int64] | None = None
    transfers: Transfers | None = None  # of prefill and decode pools

    def __post_init__(self) -> None:
        n = len(self.requests.arrival)
        self.arrival = self.requests.arrival.astype(float).copy()
        self.admitted = np.full(n, np.nan)
        self.first_token = np.full(n, np.nan)
        self.last_token: NDArray[np.float64] = np.full(n, np.nan)
        self.ended: NDArray[np.float64] = np.full(n, np.nan)
        self.replica = np.full(n, -1)
        self.turned_away = np.zeros(n, bool)
        self.cancelled = np.zeros(n, bool)
        self.cached = np.zeros(n, np.int64)
        self.preemptions = np.zeros(n, np.int64)
        self.retries = np.zeros(n, np.int64)
        self.moved = np.zeros(n, bool)
        self.failed = np.zeros(n, bool)
        self.reason = [""] * n

    @property
    def finished(self) -> NDArray[np.bool_]:
        """bool[request]: got its last token."""
        return np.isfinite(self.last_token)

    @property
    def end(self) -> Seconds:
        """The end of the last request, however it ended, or of the last step; -inf without any."""
        return float(
            max(
                self.worked_until,
                np.fmax(self.last_token, self.ended).max(initial=-math.inf, where=self.has_ended),
            )
        )

    @property
    def has_ended(self) -> NDArray[np.bool_]:
        """bool[request]: finished, refused, cancelled or failed."""
        return np.isfinite(self.last_token) | np.isfinite(self.ended)

    @property
    def elapsed(self) -> Seconds:
        """The time from the first arrival to the end of the run; 0 if no request ended."""
        return self.end - float(np.nanmin(self.arrival)) if self.has_ended.any() else 0.0

    @property
    def unfinished(self) -> dict[str, int]:
        """The numbers of unfinished requests by reason, the most frequent reason first."""
        reasons = (NUMBERED.sub("more tokens than", reason) for reason in self.reason if reason)
        return dict(sorted(Counter(reasons).items(), key=lambda count: (-count[1], count[0])))

    def served_by(self, replicas: list[int]) -> NDArray[np.bool_]:
        """Return bool[request]: one of these replicas computed its prompt or its output."""
        served = np.isin(self.replica, replicas)
        if self.transfers:
            served |= np.isin(self.transfers.prefill_replica, replicas)
        return served

    def expire(self, number: int, deadline: Seconds) -> None:
        """Cancel a request whose deadline has passed."""
        self.cancelled[number] = True
        self.reason[number] = f"not finished {deadline:g} s after it was sent"

    def table(self, system: str) -> "polars.DataFrame":
        """Return the rows with the columns of requests.parquet."""
        import polars

        n = len(self.arrival)
        unfinished = np.where(self.cancelled, CANCELLED, np.where(self.failed, FAILED, REFUSED))
        table = polars.DataFrame(
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
            | self._kind_column()
            | (self.transfers.columns() if self.transfers else {})
        )
        if self.steps is None:
            return table
        counts = (self.steps, self.requests.output - 1 - self.steps)
        drafted = polars.DataFrame(dict(zip(DRAFT_COLUMNS, counts, strict=True)))
        finished = polars.Series(self.finished)
        drafted = drafted.select(
            polars.when(finished).then(polars.col(name)).alias(name) for name in DRAFT_COLUMNS
        )
        return table.hstack(drafted)

    def _kind_column(self) -> dict[str, list[str]]:
        """Return the column of `KIND_COLUMNS`; nothing without kinds."""
        if self.requests.kind is None:
            return {}
        return {"kind": np.array(list(self.requests.kinds))[self.requests.kind].tolist()}


def rows_of_answers(requests: RequestBatch) -> Rows:
    """Return the rows of the answers that a trace records."""
    assert requests.answered
    rows = Rows(requests)
    rows.arrival, rows.first_token, rows.last_token = requests.answered
    rows.admitted = rows.arrival.copy()
    return rows
