"""The answers of every system's costs, whatever chips it is made of: `SystemCosts`.

A step's time begins with `rows`, its contributions. `step` and `line` are fast sums of them for the
serving loop, which the laws hold to the rows. The functions here follow from these answers.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

from sim.cost.energy import Tally
from sim.cost.layout import Layout
from sim.cost.rows import StepRows
from sim.cost.terms import HOPS, TIME, Array, Row, by_term
from sim.cost.work import Work
from sim.units import Bytes, Seconds


class Step(NamedTuple):
    """The next step on each stage.

    time: float[stage] [s].
    growth: float[stage], what each further identical step adds as the KV cache grows [s].
    holds: identical steps for which this growth holds.
    """

    time: Array
    growth: Array | float
    holds: int


class SystemCosts(Protocol):
    """The cost of a system's steps.

    `Costs` has it for a model on stages, and `AttentionFfnCosts` for one on two pools of chips.
    `RemoteDraftCosts` has it for either of these with a drafter on other chips.

    layout: of the model on its own chips, or of its attention pool.
    stages: as the scheduler sees them. Pools are one, and so is a model with its remote drafter.
    back: time of a sampled token from the last stage to the first [s].
    """

    layout: Layout
    stages: int
    back: Seconds

    @property
    def model(self) -> "SystemCosts":
        """The costs without a drafter on other chips; without one the same costs."""

    def on(self, layout: Layout) -> "SystemCosts":
        """Return the costs with another layout of the model. Pools and drafter stay the same."""

    def step(self, work: Work) -> Step:
        """Return the next step on each stage."""

    def line(self, work: Work) -> tuple[Seconds, Seconds, int]:
        """Return time, growth and holds of `step` for a single stage, in plain floats."""

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield all contributions to a step except the hops between its stages."""

    def hops(self, ranked: int) -> Array:
        """Return float[stage]: seconds from each stage's predecessor to it; 0 for the first.

        ranked: tokens of the fullest rank.
        """

    def link_bytes(self, tokens: int) -> Bytes:
        """Return the bytes of a step, each counted on every cable that it crosses.

        Left out: messages of a drafter.
        """

    def spread(self, tally: Tally) -> list[tuple[StepRows, Tally]]:
        """Return the rows of each group of equal chips, with its part of a tally.

        The first group has the layout. Its `between` has the bytes between the groups.
        """


def step_terms(costs: SystemCosts, work: Work) -> Array:
    """Return float[stage, time or fitted, term]: the step by cause [s].

    Hops stand with the stage that they lead to.
    """
    table = by_term(costs.rows(work), costs.stages)
    table[:, TIME, HOPS] += costs.hops(costs.layout.ranked(work))
    return table


def token_terms(costs: SystemCosts, work: Work) -> Array:
    """Return float[time or fitted, term]: a step through all stages and back, by cause [s]."""
    table: Array = step_terms(costs, work).sum(axis=0)
    table[TIME, HOPS] += costs.back
    return table


def step_latency(costs: SystemCosts, work: Work) -> Seconds:
    """Return the time of a step through all stages, and of its tokens back to the first one."""
    return float(step_terms(costs, work)[:, TIME].sum()) + costs.back


def expected_costs(costs: SystemCosts) -> SystemCosts:
    """Return costs that take no draws of experts, but have the expected loads of shards."""
    if costs.layout.expert_seed is None:
        return costs
    return costs.on(replace(costs.layout, expert_seed=None))


def leave_times(costs: SystemCosts, work: Work) -> tuple[Seconds, Seconds]:
    """Return how long a step takes on the slowest stage, and until it leaves the last one."""
    stages = costs.step(work).time
    hops = costs.hops(costs.layout.ranked(work))
    return float(stages.max()), float(stages.sum() + hops.sum())


def pass_times(costs: SystemCosts, work: Work) -> tuple[Seconds, Seconds]:
    """Return the time of a step on the slowest stage, and of one pass through all stages.

    The pass ends when the sampled tokens are back at the first stage.
    """
    slowest, leave = leave_times(costs, work)
    return slowest, leave + costs.back
