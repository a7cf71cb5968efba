"""The process in front of an engine, which accepts requests and sends tokens one after the other.

>>> front_end = FrontEnd(FrontEndTimes(0.5, prompt_token=0.0, token=0.0), tokens=lambda: 0.0)
>>> [front_end.delay(now, prompt=9) for now in (0.0, 0.0, 0.75)]
[0.5, 1.0, 0.75]
"""

from collections.abc import Callable
from typing import NamedTuple

from sim.units import Seconds


class FrontEndTimes(NamedTuple):
    """The times for which a request and each of its tokens keep the process busy [s]."""

    request: Seconds
    prompt_token: Seconds
    token: Seconds


class FrontEnd:
    """The queue of work of a process in front of an engine.

    Tokens that wait delay the first token of a request as much as its last one.  So the whole
    delay is counted before the request reaches the engine.
    Left out: steps. Between two arrivals, tokens come at equal intervals.

    tokens: returns the tokens that the engine has made so far.
    """

    def __init__(self, times: FrontEndTimes, tokens: Callable[[], float]) -> None:
        self.times, self.tokens = times, tokens
        self.backlog = self.at = 0.0  # work that waits, at a time [s]
        self.made = 0.0  # tokens until that time

    def delay(self, now: Seconds, prompt: int) -> Seconds:
        """Return how long a request that arrives now takes to reach the engine.

        The front end first does the work that came before the request, and then the request's own.
        prompt: its tokens.
        """
        made = self.tokens()
        passed = now - self.at
        self.backlog = max(0.0, self.backlog + self.times.token * (made - self.made) - passed)
        self.at, self.made = now, made
        self.backlog += self.times.request + prompt * self.times.prompt_token
        return self.backlog
