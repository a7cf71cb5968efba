"""The sizes of a compiled pipeline's steps, with their times, link errors and drawn experts."""

import numpy as np
from numpy.typing import NDArray

from sim.cost.attention import FOREVER
from sim.cost.energy import Tally
from sim.cost.experts import MOST_TOGETHER, DrawnLoad
from sim.cost.step import Costs
from sim.reliability.link_errors import LinkErrorSampler
from sim.serving import kernel


class KernelRows:
    """The arrays `rows` and `made` of the compiled code, with a row for each size of steps.

    A size is a number of tokens, and those of the fullest rank. A row is added when its size first
    comes up. Where experts are drawn, further rows hold the bodies of drawn loads.

    The compiled code makes the steps of a row until one fails from link errors, or until no draw of
    experts is left. Then the executor calls `good_steps`.

    full: the size of steps that fill the token budget on one rank.
    random: whether steps may fail from link errors, or have drawn experts.
    stages: the numbers of the stages that the compiled code visits.
    size_of: by row. body_of: rows of bodies, by size and drawn load. used: rows in use.
    bodies: by row of a body, float[stage] [s].
    counted: by row, the steps that were counted for link errors and draws.
    """

    def __init__(
        self,
        costs: Costs,
        stages: list[int],
        slots: int,
        budget: int,
        errors: LinkErrorSampler | None,
    ) -> None:
        self.costs, self.full, self.errors, self.stages = costs, (budget, budget), errors, stages
        self.ahead = MOST_TOGETHER if costs.sampled else 0
        self.random = errors is not None or costs.sampled is not None
        self.rows: NDArray[np.float64] = np.zeros((1 + slots, 2, len(stages)))
        columns = kernel.DRAWN + self.ahead if self.random else kernel.STOP
        self.made: NDArray[np.int64] = np.zeros((1 + slots, columns), np.int64)
        self.row_of: dict[tuple[int, int], int] = {}
        self.size_of: dict[int, tuple[int, int]] = {}
        self.body_of: dict[tuple[int, int], dict[DrawnLoad, int]] = {}
        self.bodies: dict[int, NDArray[np.float64]] = {}
        self.counted: dict[int, int] = {}
        self.used = 1

    def row(self, size: tuple[int, int]) -> int:
        """Return the row of a size, added if it is new."""
        if size not in self.row_of:
            # Stages are left out only for steps of one token, which all have the size `full`.
            assert size == self.full or len(self.stages) == self.costs.stages
            row = kernel.FULL if size == self.full else self.new_row()
            self.row_of[size], self.size_of[row], self.counted[row] = row, size, 0
            if not self.ahead:
                self.set_times(row, self.costs.body(*size), size)
            if self.random:
                self.look_ahead(row)
        return self.row_of[size]

    def set_times(self, row: int, body: NDArray[np.float64], size: tuple[int, int]) -> None:
        """Set when a step starts and ends at each visited stage. body: float[stage] [s]."""
        ends = np.cumsum(self.costs.hops(size[1]) + body)
        self.rows[row] = (ends - body)[self.stages], ends[self.stages]
        self.bodies[row] = body

    def new_row(self) -> int:
        """Return the number of a row that is not in use yet."""
        row = self.used
        self.used += 1
        if row == len(self.rows):
            self.rows = np.concatenate((self.rows, np.zeros_like(self.rows)))
            self.made = np.concatenate((self.made, np.zeros_like(self.made)))
        return row

    def body_rows(self, size: tuple[int, int], draws: list[DrawnLoad]) -> list[int]:
        """Return the rows that hold the bodies of steps of one size, for some drawn loads."""
        known = self.body_of.setdefault(size, {})
        for load in set(draws).difference(known):
            known[load] = row = self.new_row()
            self.set_times(row, self.costs.body_with(*size, load), size)
        return [known[load] for load in draws]

    def good_steps(self, row: int) -> int:
        """Return how many steps of a row may be made before one that fails, or is not drawn yet."""
        if not self.random:
            return FOREVER
        made, stop = self.made[row, : kernel.DRAWN].tolist()
        return self.look_ahead(row) if made >= stop else int(stop - made)

    def look_ahead(self, row: int) -> int:
        """Return how many coming steps of a row are good, after drawing their experts."""
        self.count(row)
        size, made = self.size_of[row], self.counted[row]
        good = self.errors.good_steps(size) if self.errors else FOREVER
        if self.costs.sampled:
            bodies = self.body_rows(size, self.costs.sampled.coming(size))
            places = np.arange(made, made + len(bodies)) % self.ahead
            self.made[row, kernel.DRAWN + places] = bodies
            good = min(good, len(bodies))
        self.made[row, kernel.STOP] = made + good
        return good

    def count(self, row: int) -> None:
        """Count the steps that a row has made, for link errors and draws."""
        size, made = self.size_of[row], int(self.made[row, kernel.MADE])
        if steps := made - self.counted[row]:
            if self.errors:
                self.errors.count(size, steps)
            if self.costs.sampled:
                self.costs.sampled.take(size, steps)
        self.counted[row] = made

    def count_all(self) -> None:
        """Count the steps of all rows, for an executor that comes after this one."""
        if self.random:
            for row in self.size_of:
                self.count(row)

    def add_to(self, tally: Tally) -> None:
        """Add the steps that the compiled code made to a tally."""
        for (tokens, _), row in self.row_of.items():
            tally.batch_steps[tokens] += int(self.made[row, kernel.MADE])

    @property
    def busy(self) -> NDArray[np.float64]:
        """The time that each stage has worked on the bodies of steps. float[stage], s."""
        busy = np.zeros(self.costs.stages)
        for row, body in self.bodies.items():
            busy += int(self.made[row, kernel.MADE]) * body
        return busy
