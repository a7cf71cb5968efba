"""The requests of a workload as arrays, and the streams of random numbers that make them."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from sim.workload.slo import SLO

# Tokens of a prompt for which one of its `hash_ids` stands, as in Mooncake's traces.
HASH_BLOCK = 512
ENDLESS = 2**62
# The identity of a request's tokens: parts with a key and an end [token]. Two requests are equal as
# far as their parts are. The last part is endless, because it also has the answer.
Content = tuple[tuple[Hashable, int], ...]
# The place of a stream is its seed, so new names go to the end.
STREAMS = ("arrivals", "prompts", "outputs", "turns", "thinks", "kinds")


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """All requests of a workload, by column.

    arrival: float[request], s, ascending. nan if an answer decides it: in a closed loop for all.
    prompt, output: int[request], tokens.
    users: of a closed loop. A user's next request follows the answer; None for an open loop.
    after, think: int[request] and float[request], of sessions. Request i follows `think[i]` seconds
    after the answer to request `after[i]`, which is less than i; -1: it has an arrival.
    gap: float[request], s, of sessions: request i is sent at least so long after request `after[i]`
    was sent. None: no such times are recorded.
    In a closed loop, `think[i]` is the pause after the answer to request i; None if all are equal.
    most_in_flight: requests sent and not ended, at most. Further ones wait unsent, in order.
    kind, kinds: int[request], and the names of kinds with their own SLO (None: the scenario's).
    priority: int[request]. The smaller number goes first, as in vLLM.
    hash_ids: the blocks of each prompt, one id for each `hash_block` tokens, the last one perhaps
    partial. Two prompts are equal as far as their ids agree.
    sessions: int[request]. A request's prompt begins with all prompts and answers of its session.
    shared_prefix: tokens with which every prompt begins.
    answered: float[request] each, s: recorded times of sending, of the first and of the last token.
    note: a trace's format, and what of it was left out or cut.
    """

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    users: int | None = None
    after: np.ndarray | None = None
    think: np.ndarray | None = None
    gap: np.ndarray | None = None
    priority: np.ndarray | None = None
    hash_ids: list[tuple[int, ...]] | None = None
    hash_block: int = HASH_BLOCK
    sessions: np.ndarray | None = None
    shared_prefix: int = 0
    answered: tuple[np.ndarray, ...] | None = None
    note: str = ""
    most_in_flight: int | None = None
    kind: np.ndarray | None = None
    kinds: Mapping[str, SLO | None] = field(default_factory=dict)

    def first(self, n: int) -> "RequestBatch":
        """Return the first n requests by number."""
        columns: dict[str, Any] = {
            column.name: value[:n]
            for column in fields(self)
            if isinstance(value := getattr(self, column.name), np.ndarray | list)
        }
        answered = tuple(times[:n] for times in self.answered) if self.answered else None
        return replace(self, answered=answered, **columns)

    @property
    def is_open_loop(self) -> bool:
        """Whether no answer decides when a request is sent."""
        return self.users is None and self.after is None and self.most_in_flight is None

    @property
    def has_prefixes(self) -> bool:
        """Whether prompts have beginnings in common."""
        return bool(self.hash_ids or self.shared_prefix) or self.sessions is not None

    def content(self, number: int) -> Content:
        """Return the identity of the tokens of a request, for prefix caching."""
        last = (("request", number), ENDLESS)
        prompt = int(self.prompt[number])
        if self.hash_ids:
            ends = range(self.hash_block, prompt + self.hash_block, self.hash_block)
            ids = zip(self.hash_ids[number], ends, strict=False)
            return *((key, min(end, prompt)) for key, end in ids), last
        if self.sessions is not None:
            last = (("session", int(self.sessions[number])), ENDLESS)
        if self.shared_prefix:
            return ("shared prefix", min(self.shared_prefix, prompt)), last
        return (last,)


def random_streams(seed: int) -> list[np.random.Generator]:
    """Return one generator for each name in STREAMS; draws from one do not change the others."""
    seeds = np.random.SeedSequence(seed).spawn(len(STREAMS))
    return [np.random.default_rng(stream_seed) for stream_seed in seeds]


def stream_seed(seed: int, purpose: str, *numbers: int) -> list[int]:
    """Return the seed of a stream of draws that belong to no request, such as a link's errors.

    numbers: of what draws, such as a replica and a chip.
    A system's name is not part of it, so equal systems meet equal luck.
    """
    return [seed, *purpose.encode(), *numbers]
