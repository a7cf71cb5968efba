"""Waits of chips in lock step, which begin and end together: one event for all of them.

>>> env = simpy.Environment()
>>> waits = LockStep(env)
>>> waits.timeout(1.0) is waits.timeout(1.0)
True
"""

import simpy
from simpy.events import Timeout

from sim.units import Seconds


class LockStep:
    """The waits that begin now, by their seconds. Equal ones share an event."""

    __slots__ = ("began", "env", "events")

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self.began = env, -1.0
        self.events: dict[Seconds, Timeout] = {}

    def timeout(self, seconds: Seconds) -> Timeout:
        """Return the end of a wait that begins now."""
        now = self.env.now
        if now != self.began:
            self.began, self.events = now, {}
        event = self.events.get(seconds)
        if event is None or event.callbacks is None:
            event = self.events[seconds] = Timeout(self.env, seconds)
        return event
