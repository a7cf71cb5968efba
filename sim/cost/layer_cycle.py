"""The times of micro-batches that take turns on two pools in one layer, and what binds them.

    >>> from sim.cost.terms import weighted_sum
    >>> times = LayerTimes(2.0, 1.0, 3.0, 1.0, 1.0, 1.0)
    >>> weighted_sum(times, critical_times(times, 3).cycle)
    9.0

A layer takes as long as its slowest pool or link needs for all micro-batches, or as long as one
micro-batch that never waits, whichever is longer.
"""

from typing import NamedTuple

from sim.cost.attention import FOREVER
from sim.units import Seconds


class LayerTimes(NamedTuple):
    """The times of one micro-batch in one layer [s], or how often each of them counts.

    out, back: times of its messages, with the latency.
    out_busy, back_busy: times for which the messages keep the links busy.
    ffn: time for which it keeps the FFN pool busy.
    overlapped: time of its exchanges in the FFN pool while the chips compute another one.
    """

    attention: float = 0.0
    out: float = 0.0
    ffn: float = 0.0
    back: float = 0.0
    out_busy: float = 0.0
    back_busy: float = 0.0
    overlapped: float = 0.0

    @property
    def serial(self) -> Seconds:
        """The time of a micro-batch that waits for no other one."""
        return self.attention + self.out + self.ffn + self.overlapped + self.back

    def slowest(self, resources: tuple[str, ...]) -> str:
        """Return which pool or link one micro-batch keeps busy for the longest time."""
        return max(resources, key=lambda name: float(getattr(self, name)))


# The pools and links. Each takes one micro-batch at a time.
POOLS_AND_LINKS = ("attention", "ffn", "out_busy", "back_busy")
# The pools and links that a layer shares with the next one, if that is on another FFN stage.
BETWEEN_STAGES = ("attention", "out_busy", "back_busy")
ONCE = LayerTimes(1.0, 1.0, 1.0, 1.0, overlapped=1.0)


class Critical(NamedTuple):
    """The times on the critical path: how often each counts in a cycle of a layer, and in the fill.

    The fill is before the first cycle.

    binds: the pool or link that never waits; 'latency' if all of them wait.
    """

    cycle: LayerTimes
    fill: LayerTimes
    binds: str


def critical_times(
    times: LayerTimes, micro_batches: int, resources: tuple[str, ...] = POOLS_AND_LINKS
) -> Critical:
    """Return the times that make up the cycle of a layer and the fill.

    With m micro-batches, b = the slowest pool or link, S = attention + out + ffn + overlapped +
    back:
    cycle = max(m b, S), and L equal layers take L cycle + fill, with fill = (m - 1) b + S - cycle.
    This is exact for a flow shop that every job passes L times, first come, first served.
    Where the next layer is on another FFN stage, b leaves the FFN pool out (BETWEEN_STAGES).
    This is exact for two micro-batches; more may overtake each other's layers, and take less.
    """
    m, slowest = micro_batches, times.slowest(resources)
    once = LayerTimes(**{slowest: 1.0})
    if m * getattr(times, slowest) > times.serial:
        fill = LayerTimes(*(all_ - one for all_, one in zip(ONCE, once, strict=True)))
        return Critical(LayerTimes(**{slowest: float(m)}), fill, slowest)
    return Critical(ONCE, LayerTimes(**{slowest: m - 1.0}), "latency")


def steps_until_other(
    times: LayerTimes,
    growth: Seconds,
    micro_batches: int,
    resources: tuple[str, ...] = POOLS_AND_LINKS,
) -> int:
    """Return for how many steps the same pool or link binds, while attention grows."""
    other = max(getattr(times, name) for name in resources if name != "attention")
    lead = times.attention - other
    steps = [FOREVER if lead >= 0 else 1 + int(-lead / growth)]
    ahead = micro_batches * max(times.attention, other) - times.serial
    slope = (micro_batches - 1 if lead >= 0 else -1) * growth
    if ahead * slope < 0:
        steps.append(1 + int(abs(ahead / slope)))
    return min(steps)
