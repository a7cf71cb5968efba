"""Decisions of a replica's scheduler, without actions: who is admitted.  The serving loop asks and acts.

A policy is called when something has changed (an arrival, a finished request), and what it returns stands until the next time.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sim.units import Seconds


@dataclass(eq=False, slots=True)
class Job:
    """A request being served.  Identity, not content: two requests of equal lengths are two jobs."""

    id: int
    arrival: Seconds
    prompt: int
    output: int
    kv: int  # what it needs of the KV cache at its end, in tokens
    prefilled: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output together: the last token sampled is never attended to, but engines reserve it."""
        return self.prompt + self.output


@dataclass(eq=False, slots=True)
class Room:
    """What a replica has to give: KV cache in tokens, and places for sequences."""

    kv_tokens: int
    sequences: int
    kv_used: int = 0
    sequences_used: int = 0
    kv_peak: int = 0

    def holds(self, job: Job) -> bool:
        """Whether the job fits beside what is there."""
        return self.kv_used + job.kv <= self.kv_tokens and self.sequences_used < self.sequences

    def take(self, job: Job) -> None:
        self.kv_used += job.kv
        self.sequences_used += 1
        self.kv_peak = max(self.kv_peak, self.kv_used)

    def give_back(self, job: Job) -> None:
        self.kv_used -= job.kv
        self.sequences_used -= 1


Admission = Callable[[Collection[Job], Room], bool]


def first_come_first_served(waiting: Collection[Job], room: Room) -> bool:
    """Whether the oldest waiting job is admitted: when its prompt and its whole output have room (no preemption needed)."""
    return bool(waiting) and room.holds(next(iter(waiting)))
