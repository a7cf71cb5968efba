"""A request while it is served."""

import math
from dataclasses import dataclass

from sim.units import Seconds
from sim.workload.requests import Content


@dataclass(eq=False, slots=True)
class Request:
    """A request being served. Requests are compared by identity, not by their fields.

    After a preemption its generated tokens are a part of its prompt.

    kv: tokens of the KV cache that it holds, or needs to be admitted.
    prefilled: tokens whose K and V are cached or computed. priority: smaller goes first.
    content: identity of its tokens, if prefixes are cached.
    answered: when its last token before a preemption was ready [s]; nan before the first one.
    joined: when its prompt was computed [s]; nan before.
    steps: in which it decodes the tokens after its first one; set when it is accepted.
    rate: mean tokens that it decodes in a step; 1 without speculation.
    queued: whether it waits to be admitted.
    rank: the attention rank that holds its sequence; set when it is admitted.
    """

    id: int
    arrival: Seconds
    prompt: int
    output: int
    kv: int
    prefilled: int = 0
    priority: int = 0
    content: Content = ()
    answered: Seconds = math.nan
    joined: Seconds = math.nan
    steps: int = 0
    rate: float = 1
    queued: bool = True
    cancelled: bool = False
    ended: bool = False
    rank: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output tokens. The last one is never attended to, but engines reserve it."""
        return self.prompt + self.output

    @property
    def is_prefilled(self) -> bool:
        """Whether K and V of the whole prompt are there: another replica has computed them."""
        return self.prefilled == self.prompt

    def prompt_alone(self) -> "Request":
        """Return a request of the same prompt and one output token, before it is accepted."""
        kv, prefilled = self.kv, self.prefilled
        return Request(
            self.id, self.arrival, self.prompt, 1, kv, prefilled, self.priority, self.content
        )
