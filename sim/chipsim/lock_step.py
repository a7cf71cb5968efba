"""One event for the equal waits of many chips, which begin and end together.

>>> env = simpy.Environment()
>>> waits = LockStep(env)
>>> waits.timeout(1.0) is waits.timeout(1.0)
True
"""

import simpy
from simpy.events import Timeout

from sim.units import Seconds


class LockStep:
    """The latest wait of a group of chips, whose event is shared by all chips that begin it now.

    With an event for each chip, a simulation would take longer.
    """

    __slots__ = ("began", "env", "event", "seconds")

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self.began, self.seconds = env, -1.0, 0.0
        self.event: Timeout

    def timeout(self, seconds: Seconds) -> Timeout:
        """Return the event that ends a wait from now on."""
        now = self.env.now
        # A wait of 0 s may end at the instant of its beginning. Its event then has no callbacks.
        if now != self.began or seconds != self.seconds or self.event.callbacks is None:
            self.began, self.seconds = now, seconds
            self.event = Timeout(self.env, seconds)
        return self.event
