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
    """The latest wait of a group of chips. A chip that begins an equal one now shares its event."""

    __slots__ = ("began", "env", "event", "seconds")

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self.began, self.seconds = env, -1.0, 0.0
        self.event: Timeout

    def timeout(self, seconds: Seconds) -> Timeout:
        """Return the end of a wait that begins now."""
        now = self.env.now
        if now != self.began or seconds != self.seconds or self.event.callbacks is None:
            self.began, self.seconds = now, seconds
            self.event = Timeout(self.env, seconds)
        return self.event
