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
    """The waits that begin now, by their seconds. Chips that wait equally long share an event.

    With an event for each chip, a simulation would take longer.
    """

    __slots__ = ("began", "env", "events")

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self.began = env, -1.0
        self.events: dict[Seconds, Timeout] = {}

    def timeout(self, seconds: Seconds) -> Timeout:
        """Return the event that ends a wait from now on."""
        now = self.env.now
        if now != self.began:
            self.began, self.events = now, {}
        # A wait of 0 s may end at the instant of its beginning. Its event then has no callbacks.
        event = self.events.get(seconds)
        if event is None or event.callbacks is None:
            event = self.events[seconds] = Timeout(self.env, seconds)
        return event
