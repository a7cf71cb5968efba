"""Steps that a link spoils and that are made again: how often that happens, as drawn in a run and in closed form."""

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from sim.cost.energy import Tally, step_link_bytes
from sim.cost.step import Costs
from sim.inputs.values import Sourced
from sim.units import Seconds

MOST_SPOILT = 0.9  # of the largest steps: beyond it a run would hardly end


class LinkErrors(Sourced):
    """How often a bit arrives wrong beyond what the link's code corrects, and what becomes of the step that it was part of.

    Each bit of a message is at risk on each cable that it crosses, independently of others.  Who receives it knows; when the step
    is over it is made again from the first stage on, `restart` later, as often as it takes.  Its tokens come with the last time.

    Left out: what else was in flight, which goes on; bits that cables carry beside messages; errors that nobody notices.
    """

    bit_error_rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    restart: Seconds = 0.0

    def chance(self, costs: Costs, tokens: int) -> float:
        """That a step of so many tokens is spoilt: 1 - (1 - bit_error_rate)^(8 bytes x cables)."""
        return -math.expm1(8 * step_link_bytes(costs, tokens) * math.log1p(-self.bit_error_rate))

    def require_bearable(self, costs: Costs) -> None:
        """Raises: ValueError where hardly any of the largest steps would come through."""
        tokens = costs.layout.token_budget
        if (chance := self.chance(costs, tokens)) > MOST_SPOILT:
            often = f"{100 * chance:.4g} % of the steps of {tokens} tokens"
            raise ValueError(
                f"link_errors: at a bit error rate of {self.bit_error_rate:g} links spoil {often}"
            )


class LinkErrorSampler:
    """Draws which steps of a replica links spoil."""

    def __init__(self, errors: LinkErrors, costs: Costs, rng: np.random.Generator) -> None:
        self.errors, self.costs, self.rng = errors, costs, rng
        self.chances: dict[int, float] = {}

    def __call__(self, tokens: int) -> bool:
        if tokens not in self.chances:
            self.chances[tokens] = self.errors.chance(self.costs, tokens)
        return bool(self.rng.random() < self.chances[tokens])


def expected_retries(errors: LinkErrors, costs: Costs, tally: Tally) -> float:
    """How many of the steps that were made, replays among them, links spoil: the sum of their chances."""
    return sum(steps * errors.chance(costs, tokens) for tokens, steps in tally.batch_steps.items())
