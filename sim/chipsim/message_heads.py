"""Messages on paths of several cables.

The head of a message is its first byte. A message takes the next cable of its path when its head
arrives there (virtual cut-through). When it takes the last one, its arrival is known.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import simpy
from simpy.events import Timeout

from sim.chipsim.network import PathSegment
from sim.units import Seconds

Arrived = Callable[[Seconds], None]  # called with the time of an arrival [s]


@dataclass(eq=False, slots=True)
class Shipment:
    """The messages of one run of a collective, or of a step between two stages.

    They wait for each other in their own order, which is no contention.
    nbytes: of the collective, or of each message. label: for timelines.
    """

    nbytes: float
    label: str


# The segments that are left of a message's path, its shipment, and what to call when it arrives.
MessageHead = tuple[Sequence[PathSegment], Shipment, Arrived]


class MessageHeads:
    """The heads of messages under way. Those that reach a cable at one instant share an event.

    With an event for each head, a simulation would take longer.
    by_time: heads by the instant at which they reach their next cable [s].
    """

    __slots__ = ("by_time", "env")

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.by_time: dict[Seconds, list[MessageHead]] = {}

    def forward(self, heads: Iterable[MessageHead]) -> None:
        """Take the next cable for each message, whose head has reached it."""
        now = self.env.now
        for segments, shipment, arrived in heads:
            cable, latency, per_byte = segments[0]
            hold = shipment.nbytes * per_byte
            passed = cable.take(now, hold, shipment, shipment.label) + latency
            if len(segments) == 1:
                arrived(passed + hold)
            else:
                self.forward_at(passed, (segments[1:], shipment, arrived))

    def forward_at(self, time: Seconds, head: MessageHead) -> None:
        """Take the next cable for a message at a time from now on, when its head reaches it."""
        if time in self.by_time:
            self.by_time[time].append(head)
        else:
            self.by_time[time] = [head]
            timeout = Timeout(self.env, time - self.env.now)
            timeout.callbacks.append(lambda _: self.forward(self.by_time.pop(time)))
