"""One event for the last of several arrivals.

>>> env = simpy.Environment()
>>> both = LastArrival(env, 2)
>>> both.arrives_at(3.0)
>>> both.arrives_at(2.0)
>>> env.run(both)
>>> env.now
3.0
"""

import simpy
from simpy.events import Event

from sim.units import Seconds


class LastArrival(Event):
    """The last of several arrivals, whose times are known in advance.

    The time of an arrival is known as soon as its message takes its last cable. With an event for
    each arrival, a simulation would take longer.

    missing: arrivals whose times are not known yet.
    latest: the latest of the known times [s].
    """

    def __init__(self, env: simpy.Environment, missing: int) -> None:
        super().__init__(env)
        self.missing, self.latest = missing, env.now

    def arrives_at(self, time: Seconds, messages: int = 1) -> None:
        """Count messages that arrive at a time from now on."""
        if time > self.latest:
            self.latest = time
        self.missing -= messages
        if not self.missing:
            # SimPy's `succeed` has no delay, and processes may wait for this event already.
            self._ok, self._value = True, None
            self.env.schedule(self, delay=self.latest - self.env.now)
