"""Messages on paths of several cables.

A message takes the next cable of its path when its head arrives there (virtual cut-through). When
it takes the last one, its arrival is known.
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


MessageHead = tuple[
    Sequence[PathSegment], Shipment, Arrived
]  # of a message, with the segments to come


class Heads:
    """The heads of messages under way. Those that reach a cable at one instant share an event.

    With an event for each head, a simulation would take longer.
    due: heads by the instant at which they reach their next cable [s].
    """

    __slots__ = ("due", "env")

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.due: dict[Seconds, list[MessageHead]] = {}

    def forward(self, heads: Iterable[MessageHead]) -> None:
        """Take the next cable of each message, whose head is there."""
        now = self.env.now
        for segments, shipment, arrived in heads:
            cable, latency, per_byte = segments[0]
            hold = shipment.nbytes * per_byte
            there = cable.take(now, hold, shipment, shipment.label) + latency
            if len(segments) == 1:
                arrived(there + hold)
            else:
                self.forward_at(there, (segments[1:], shipment, arrived))

    def forward_at(self, time: Seconds, head: MessageHead) -> None:
        """Take the next cable of a message at a time from now on, when its head is there."""
        if time in self.due:
            self.due[time].append(head)
        else:
            self.due[time] = [head]
            there = Timeout(self.env, time - self.env.now)
            there.callbacks.append(lambda _: self.forward(self.due.pop(time)))
