"""Steps that fail from link errors and are repeated: sampled in a run, and in closed form."""

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from sim.cost.energy import Tally
from sim.cost.step import Costs
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
    undetected errors.
    """

    bit_error_rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        description="Probability that a bit fails on a cable and the link's code does not correct "
        "it."
    )
    restart: Seconds = Field(
        default=0.0, description="Time between the end of a failed step and its repeat [s]."
    )

    def step_error_probability(self, costs: Costs, tokens: int) -> float:
        """Return the error probability of a step: 1 - (1 - bit_error_rate)^(8 bytes x cables).

        tokens: tokens of the step.
        """
        return -math.expm1(
            8 * costs.collectives.link_bytes(tokens) * math.log1p(-self.bit_error_rate)
        )

    def require_finite_retries(self, costs: Costs) -> None:
        """Check that a run can end.

        Raises: ValueError if more than `MAX_ERROR_PROBABILITY` of the largest steps fail.
        """
        tokens = costs.layout.token_budget
        probability = self.step_error_probability(costs, tokens)
        if probability > MAX_ERROR_PROBABILITY:
            half = math.log(2) / (
                8 * costs.collectives.link_bytes(tokens)
            )  # half of these steps fail
            reason = (
                f"got {self.bit_error_rate:g}, at which {100 * probability:.4g} % of the steps of "
                f"{tokens} token fail; expected at most {100 * MAX_ERROR_PROBABILITY:g} %; "
                f"try {half:.1g}"
            )
            raise error_at_path(("link_errors", "bit_error_rate"), self.bit_error_rate, reason)


class LinkErrorSampler:
    """A sampler of the steps of a replica that fail from link errors."""

    def __init__(self, errors: LinkErrors, costs: Costs, rng: np.random.Generator) -> None:
        self.errors, self.costs, self.rng = errors, costs, rng
        self.probabilities: dict[int, float] = {}  # by tokens of the step

    def __call__(self, tokens: int) -> bool:
        """Return whether the next step, of `tokens` tokens, fails."""
        if tokens not in self.probabilities:
            self.probabilities[tokens] = self.errors.step_error_probability(self.costs, tokens)
        return bool(self.rng.random() < self.probabilities[tokens])


def expected_retries(errors: LinkErrors, costs: Costs, tally: Tally) -> float:
    """Return the expected number of failed steps: the sum of the steps' error probabilities.

    tally: all steps of a run, repeats included.
    """
    return sum(
        steps * errors.step_error_probability(costs, tokens)
        for tokens, steps in tally.batch_steps.items()
    )
