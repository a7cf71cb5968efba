"""Rows of a step's cost: seconds on each stage by cause, with and without the engine's losses."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.model.blocks import Block, Mixer
from sim.units import Seconds, longest, shortest

TERMS = ("weights", "kv", "activations", "compute", "collectives", "hops", "overhead")
WEIGHTS, KV, ACTIVATIONS, COMPUTE, COLLECTIVES, HOPS, OVERHEAD = range(len(TERMS))
# Rows of a table of terms: all seconds, and those of them that engine `ideal` would not need.
TIME, FITTED = 0, 1

Array = NDArray[np.float64]

Shares = tuple[tuple[int, float], ...]  # of a time, by term; they add up to 1

Resource = Literal["memory", "compute", "link", "host", "software"]


class Cause(NamedTuple):
    """A part of a row's time, and the numbers that make it: amount / (chips x rate x efficiency).

        >>> Cause("weights", "memory", 8e9, "B", 8, 1e12, 0.5).seconds
        0.002

    what: what it is for, such as 'weights' or 'one-shot all-reduce'.
    amount: over all `chips` that work at the same time; seconds if there is no rate.
    unit: of the amount: B, FLOP or s.
    rate: of one chip, without the engine's losses; efficiency: the engine's.
    keys: of the numbers, such as 'engine.layer_overhead' and 'chip.compute.int8'.
    """

    what: str
    resource: Resource
    amount: float
    unit: str
    chips: int = 1
    rate: float | None = None
    efficiency: float = 1.0
    keys: tuple[str, ...] = ()

    @property
    def seconds(self) -> Seconds:
        """The time."""
        if self.rate is None:
            return self.amount
        return self.amount / (self.chips * self.rate * self.efficiency)


class Row(NamedTuple):
    """One contribution to the time of a step.

    part: the block, or the kind of mixer, that it belongs to; None: the stage.
    repeats: float[stage], how often each stage has it.
    seconds, ideal: time of one, with and without the engine's losses [s]; arrays where the numbers
    of tokens are.
    shares: returns the parts of the time by term. causes: returns the numbers behind `seconds`.
    Both are called only to explain a time, which is then one number and no array.
    """

    part: Block | Mixer | None
    repeats: Array
    seconds: Seconds
    ideal: Seconds
    shares: Callable[[], Shares]
    causes: Callable[[], tuple[Cause, ...]]


def _whole(term: int) -> Shares:
    return ((term, 1.0),)


# The shares of rows that belong to one term. Rows are pickled for other processes, and lambdas
# cannot be.
IS_ACTIVATIONS, IS_OVERHEAD = partial(_whole, ACTIVATIONS), partial(_whole, OVERHEAD)
IS_COLLECTIVE, IS_HOP = partial(_whole, COLLECTIVES), partial(_whole, HOPS)


def by_term(rows: Iterable[Row], stages: int) -> Array:
    """Return float[stage, time or fitted, term]: the seconds of rows by cause [s]."""
    table = np.zeros((stages, 2, len(TERMS)))
    for row in rows:
        time, ideal = row.repeats * row.seconds, row.repeats * row.ideal
        for term, share in row.shares():
            table[:, TIME, term] += share * time
            table[:, FITTED, term] += share * (time - ideal)
    return table


def weighted_sum(times: Iterable[Seconds], counts: Iterable[float]) -> Seconds:
    """Return the sum of the times, each as often as it counts."""
    return sum(time * count for time, count in zip(times, counts, strict=True))


class RowSums:
    """A cache of sums of rows, by number of tokens.

    rows: yields the rows for a number of tokens, which may be an array, and for further arguments.
    """

    def __init__(self, stages: int, rows: Callable[..., Iterator[Row]]) -> None:
        self.stages, self.rows = stages, rows
        self._kept: dict[tuple[Any, ...], Array] = {}

    def at(self, number: int, together: int, *others: Any) -> Array:
        """Return float[stage]: the sum of the rows of a number of tokens [s].

        together: how many numbers are computed at the same time, of which this is one.
        """
        place = (number - 1) % together
        key = number - place, *others
        if key not in self._kept:
            numbers = key[0] + np.arange(together) if together > 1 else number
            self._kept[key] = np.atleast_2d(self._sum(self.rows(numbers, *others)))
        seconds: Array = self._kept[key][place]
        return seconds

    def _sum(self, rows: Iterator[Row]) -> Array:
        """Return float[stage]; for arrays of numbers of tokens, float[number, stage] [s]."""
        if self.stages == 1:  # plain floats are ten times as fast as arrays of one number
            seconds = 0.0
            for row in rows:
                seconds += row.repeats.item() * row.seconds
            return np.array([seconds]).T
        total = np.zeros(self.stages)
        for row in rows:
            total = total + np.multiply.outer(row.seconds, row.repeats)
        return total


class Sides(NamedTuple):
    """The two sides of a roofline [s], with the engine's losses and without.

    exposed: share of the shorter side that the longer one does not hide. Nothing is computed before
    the first tile is read, and nothing is read while the last one is computed.
    Times may be arrays.
    """

    compute: Seconds
    memory: Seconds
    ideal_compute: Seconds
    ideal_memory: Seconds
    exposed: float = 0.0

    @property
    def seconds(self) -> Seconds:
        """The time: the longer side, and what it does not hide of the shorter one."""
        return self.longer + self.unhidden

    @property
    def longer(self) -> Seconds:
        """The longer side."""
        return longest((self.compute, self.memory))

    @property
    def unhidden(self) -> Seconds:
        """The part of the shorter side that the longer one does not hide."""
        return self.exposed * shortest((self.compute, self.memory)) if self.exposed else 0.0

    @property
    def ideal(self) -> Seconds:
        """The longer side without the engine's losses."""
        return longest((self.ideal_compute, self.ideal_memory))
