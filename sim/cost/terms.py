"""Rows of a step's cost: seconds on each stage by cause, with and without the engine's losses."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.model.blocks import Block, Mixer
from sim.units import Seconds

if TYPE_CHECKING:
    from sim.cost.causes import Cause

TERMS = ("weights", "kv", "activations", "compute", "collectives", "hops", "overhead")
WEIGHTS, KV, ACTIVATIONS, COMPUTE, COLLECTIVES, HOPS, OVERHEAD = range(len(TERMS))
# Rows of a table of terms: all seconds, and those of them that engine `ideal` would not need.
TIME, FITTED = 0, 1

Array = NDArray[np.float64]


class Row(NamedTuple):
    """One contribution to the time of a step.

    part: the block, or the kind of mixer, that it belongs to; None: the stage.
    repeats: float[stage], how often each stage has it.
    seconds, ideal: time of one, with and without the engine's losses [s].
    shares: the parts of the time by term; they add up to 1.
    causes: returns the numbers behind `seconds`; called only to explain a time.
    """

    part: Block | Mixer | None
    repeats: Array
    seconds: Seconds
    ideal: Seconds
    shares: tuple[tuple[int, float], ...]
    causes: "Callable[[], tuple[Cause, ...]]"


def by_term(rows: Iterable[Row], stages: int) -> Array:
    """Return float[stage, time or fitted, term]: the seconds of rows by cause [s]."""
    table = np.zeros((stages, 2, len(TERMS)))
    for row in rows:
        time, ideal = row.repeats * row.seconds, row.repeats * row.ideal
        for term, share in row.shares:
            table[:, TIME, term] += share * time
            table[:, FITTED, term] += share * (time - ideal)
    return table


class Sides(NamedTuple):
    """The two sides of a roofline [s], with the engine's losses and without."""

    compute: Seconds
    memory: Seconds
    ideal_compute: Seconds
    ideal_memory: Seconds

    @property
    def seconds(self) -> Seconds:
        """The longer side, because both run at the same time."""
        return max(self.compute, self.memory)

    @property
    def ideal(self) -> Seconds:
        """The longer side without the engine's losses."""
        return max(self.ideal_compute, self.ideal_memory)
