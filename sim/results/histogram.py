"""A histogram of the gaps between tokens. Its memory does not grow with the number of tokens.

>>> gaps = Gaps()
>>> gaps.add(0.01, 3)
>>> gaps.count
3
"""

import math
from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from sim.units import Seconds

BINS_PER_DECADE = 500  # a bin is 0.46 % wide


def bin_of(gap: Seconds) -> int:
    """Return the number of the bin of a gap; a gap of zero has a bin of its own."""
    return math.floor(math.log10(gap) * BINS_PER_DECADE) if gap > 0 else -(10**6)


class Gaps:
    """A histogram of inter-token gaps in logarithmic bins.

    Sums of the gaps and of their squares make mean and standard deviation exact.
    bins: gaps by number of the bin. total: s. squares: s^2.
    """

    def __init__(self) -> None:
        self.bins: defaultdict[int, int] = defaultdict(int)
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, gap: Seconds, times: int) -> None:
        """Add `times` gaps of one length."""
        self.bins[bin_of(gap)] += times
        self.count += times
        self.total += times * gap
        self.squares += times * gap * gap

    def add_each(self, gaps: NDArray[np.float64], times: int) -> None:
        """Add each gap `times` times. gaps: float[step], positive, s."""
        bins = np.floor(np.log10(gaps) * BINS_PER_DECADE).astype(np.int64).tolist()
        counts = {place: times * count for place, count in Counter(bins).items()}
        self.join(counts, times * float(gaps.sum()), times * float((gaps * gaps).sum()))

    def add_linear(self, gap: Seconds, growth: Seconds, steps: int, times: int) -> None:
        """Add `times` gaps of each of `steps` lengths; each length is `growth` more than the last.

        The lengths are split at the edges of the bins. `growth` is positive [s].
        """
        if steps == 1:
            self.add(gap, times)
            return
        done, place, last = 0, bin_of(gap), bin_of(gap + (steps - 1) * growth)
        while place != last:
            end = max(
                done + 1,
                min(steps, math.ceil((10 ** ((place + 1) / BINS_PER_DECADE) - gap) / growth)),
            )
            while end < steps and bin_of(gap + end * growth) <= place:  # the edge rounds
                end += 1
            while end > done + 1 and bin_of(gap + (end - 1) * growth) > place:
                end -= 1
            self.bins[place] += times * (end - done)
            done, place = end, bin_of(gap + end * growth)
        self.bins[place] += times * (steps - done)
        pairs = steps * (steps - 1)
        self.count += times * steps
        self.total += times * (steps * gap + growth * pairs / 2)
        self.squares += times * (
            steps * gap * gap + gap * growth * pairs + growth * growth * pairs * (2 * steps - 1) / 6
        )

    def join(self, bins: dict[int, int], total: Seconds, squares: float) -> None:
        """Add the gaps of another histogram: its bins, total and squares."""
        for place, times in bins.items():
            self.bins[place] += times
            self.count += times
        self.total += total
        self.squares += squares

    @property
    def mean(self) -> Seconds:
        """The mean gap; nan without gaps."""
        return self.total / self.count if self.count else math.nan

    @property
    def std(self) -> Seconds:
        """The standard deviation of the gaps; nan without gaps."""
        return (
            math.sqrt(max(0.0, self.squares / self.count - self.mean**2))
            if self.count
            else math.nan
        )

    def percentile(self, q: float) -> Seconds:
        """Return the gap that q percent of the gaps stay below; nan without gaps.

        The result is the geometric middle of a bin, so it is exact to the width of a bin.
        """
        wanted, seen = q / 100 * self.count, 0
        for place in sorted(self.bins):
            seen += self.bins[place]
            if seen >= wanted:
                return 10 ** ((place + 0.5) / BINS_PER_DECADE) if place > -(10**6) else 0.0
        return math.nan
