"""Closed forms of the availability of a system with spares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.reliability.failures import Failures, PartGroup
from sim.units import FailuresPerSecond, Fraction, Seconds


@dataclass(frozen=True)
class ClosedFormAvailability:
    """The availability in closed form, as a product of three probabilities.

    parts: enough parts are good.  swaps: no part is being swapped.
    models: no model is being swapped.
    """

    parts: Fraction
    swaps: Fraction
    models: Fraction

    @property
    def availability(self) -> Fraction:
        """The product of the three probabilities."""
        return self.parts * self.swaps * self.models


def mtbf(groups: Sequence[PartGroup]) -> Seconds:
    """Return the mean time between failures of the parts at work: 1 / (sum of needed x rate)."""
    return 1 / sum(group.needed * group.rate for group in groups)


def series_availability(between: Seconds, repair: Seconds) -> Fraction:
    """Return the availability without spares: MTBF / (MTBF + MTTR).

    Left out: failures while the system is down.
    """
    return between / (between + repair)


def failed_parts_distribution(
    n: int, rate: FailuresPerSecond, repair: Seconds, crews: int
) -> np.ndarray:
    """Return the long-run probabilities that 0 … n of n parts are out, float[n + 1].

    p(j+1) / p(j) = (n-j) rate repair / min(j+1, crews).
    Parts fail independently, whether at work, idle or in a system that is down.
    With n crews this is the binomial distribution of rate repair / (1 + rate repair).
    It then holds for all distributions of lives and repairs.
    With fewer crews, lives and repairs are exponential.
    """
    ratios = [(n - j) * rate * repair / min(j + 1, crews) for j in range(n)]
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def enough_parts(alike: Sequence[PartGroup], repair: Seconds, crews: int | None) -> float:
    """Return the probability that every group of parts of one kind has as many as it needs.

    sum over j of p(j out) x ways(j) / (ways to take j parts of all).
    ways(j): ways to take j parts, with no more than `spares` of each group.
    Parts are alike, and crews repair in order of failure.  Therefore all sets of j parts are
    equally likely.
    """
    n = sum(group.parts for group in alike)
    out = failed_parts_distribution(n, alike[0].rate, repair, min(crews or n, n))
    ways = [1]  # integers, because floats would overflow
    for group in alike:
        one = [math.comb(group.parts, j) for j in range(group.spares + 1)]
        ways = [
            sum(ways[i] * one[j - i] for i in range(len(ways)) if 0 <= j - i < len(one))
            for j in range(len(ways) + len(one) - 1)
        ]
    return float(sum(out[j] * (ways[j] / math.comb(n, j)) for j in range(len(ways))))


def closed_form_availability(
    groups: Sequence[PartGroup],
    repair: Seconds,
    swap: Seconds,
    crews: int | None,
    model_swaps: float,
) -> ClosedFormAvailability | None:
    """Return P(enough parts) x exp(-(sum of needed x rate) x swap) x (1 - model_swaps).

    model_swaps: share of time of model swaps.
    The system works if two conditions hold.  It had enough parts a swap ago, and no part at work
    failed since.  Parts at work fail at one rate for every number of spares that are out.
    With Weibull lives the first factor holds, and the second one is approximate.
    Both are for settled parts.
    None if parts of several kinds wait for the same few crews.
    """
    kinds: dict[tuple[Failures, ...], list[PartGroup]] = {}
    for group in groups:
        kinds.setdefault(group.causes, []).append(group)
    if crews is not None and crews < sum(group.parts for group in groups) and len(kinds) > 1:
        return None
    good = math.prod(enough_parts(alike, repair, crews) for alike in kinds.values())
    return ClosedFormAvailability(good, math.exp(-swap / mtbf(groups)), 1 - model_swaps)
