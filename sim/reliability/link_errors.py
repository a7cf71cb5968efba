"""Steps that fail from link errors and are repeated: sampled in a run, and in closed form."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from sim.cost.attention import FOREVER
from sim.cost.energy import Tally
from sim.cost.system_costs import SystemCosts
from sim.inputs.errors import error_at_path
from sim.inputs.values import Sourced
from sim.units import Seconds

MAX_ERROR_PROBABILITY = 0.9  # of the largest step; above it a run would hardly end


class LinkErrors(Sourced):
    """The rate of bit errors that the link's code does not correct, and the cost of a repeat.

    Each bit of a message may fail on each cable that it crosses, independently of others.
    The receiver detects the error.  After the step it is repeated from the first stage, until it
    succeeds.  Its tokens come with the last repeat.

    Left out: other steps in flight, which continue; bits on cables that belong to no message;
    undetected errors; a drafter's messages, because all drafts are verified.
    """

    bit_error_rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        description="Probability that a bit fails on a cable and the link's code does not correct "
        "it."
    )
    restart: Seconds = Field(
        default=0.0, description="Time between the end of a failed step and its repeat [s]."
    )

    def step_error_probability(self, costs: SystemCosts, tokens: int) -> float:
        """Return the error probability of a step: 1 - (1 - bit_error_rate)^(8 bytes x cables).

        tokens: tokens of the step.
        """
        return -math.expm1(8 * costs.link_bytes(tokens) * math.log1p(-self.bit_error_rate))

    def require_finite_retries(self, costs: SystemCosts) -> None:
        """Check that a run can end.

        Raises: ValueError if more than `MAX_ERROR_PROBABILITY` of the largest steps fail.
        """
        tokens = costs.layout.token_budget
        probability = self.step_error_probability(costs, tokens)
        if probability > MAX_ERROR_PROBABILITY:
            half = math.log(2) / (8 * costs.link_bytes(tokens))  # half of these steps fail
            reason = (
                f"got {self.bit_error_rate:g}, at which {100 * probability:.4g} % of the steps of "
                f"{tokens} token fail; expected at most {100 * MAX_ERROR_PROBABILITY:g} %; "
                f"try {half:.1g}"
            )
            raise error_at_path(("link_errors", "bit_error_rate"), self.bit_error_rate, reason)


class LinkErrorSampler:
    """The steps of a replica that fail from link errors.

    Steps fail independently of each other. So the number of steps of one size before the next one
    that fails has a geometric distribution. One draw decides about all of them.
    Steps of one size have a random stream, so the n-th of them meets equal luck in equal systems.
    A size is the tokens of a step, and those of its fullest rank.

    seed: of all streams. good: by size, the steps before the next one that fails.
    """

    def __init__(self, errors: LinkErrors, costs: SystemCosts, seed: Sequence[int]) -> None:
        self.errors, self.costs, self.seed = errors, costs, seed
        self.streams: dict[tuple[int, int], tuple[np.random.Generator, float]] = {}
        self.good: dict[tuple[int, int], int] = {}

    def good_steps(self, size: tuple[int, int]) -> int:
        """Return the number of coming steps of a size before one that fails."""
        if size not in self.good:
            if size not in self.streams:
                probability = self.errors.step_error_probability(self.costs, size[0])
                self.streams[size] = np.random.default_rng([*self.seed, *size]), probability
            stream, probability = self.streams[size]
            self.good[size] = int(stream.geometric(probability)) - 1 if probability else FOREVER
        return self.good[size]

    def count(self, size: tuple[int, int], steps: int) -> None:
        """Count steps that are made: good ones, and perhaps the one that fails after them."""
        self.good[size] = left = self.good_steps(size) - steps
        if left < 0:
            assert left == -1, "steps after one that fails need another draw"
            del self.good[size]


def expected_retries(errors: LinkErrors, costs: SystemCosts, tally: Tally) -> float:
    """Return the expected number of failed steps: the sum of the steps' error probabilities.

    tally: all steps of a run, repeats included.
    """
    return sum(
        steps * errors.step_error_probability(costs, tokens)
        for tokens, steps in tally.batch_steps.items()
    )
