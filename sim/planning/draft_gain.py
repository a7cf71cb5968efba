"""The gain of speculation for a single request: the cost of a step, and its mean tokens."""

from dataclasses import dataclass, replace

from sim.cost.system_costs import SystemCosts, step_latency
from sim.cost.work import decodes_at
from sim.planning.deployment import Deployment
from sim.units import Seconds

HALVINGS = 60  # of the interval of chances in which the break-even lies


@dataclass(frozen=True, slots=True)
class DraftGain:
    """The unloaded step of a system with drafts, in steps without drafts.

    verify: verification of all drafts. draft: making them. A step takes the sum.
    break_even: the chance of each draft, if those before it are accepted, from which drafts pay;
    None if they never do.
    """

    tokens: float
    verify: float
    draft: float
    break_even: float | None

    @property
    def step(self) -> float:
        """The time of a step."""
        return self.verify + self.draft

    @property
    def speedup(self) -> float:
        """How many times as fast tokens are as without drafts."""
        return self.tokens / self.step


def draft_gain(deployment: Deployment, context: float) -> DraftGain | None:
    """Return what speculation gains at a context; None without speculation."""
    layout = deployment.layout
    if layout.speculation is None:
        return None
    width, model = layout.width, deployment.costs.model
    verifying = replace(layout, speculation=replace(layout.speculation, apart=True))
    without = _seconds(model.on(replace(layout, speculation=None)), context, 1)
    verify = _seconds(model.on(verifying), context, width)
    whole = _seconds(deployment.costs, context, width)
    return DraftGain(
        tokens=layout.mean_tokens,
        verify=verify / without,
        draft=(whole - verify) / without,
        break_even=break_even_chance(whole / without, width - 1),
    )


def break_even_chance(step: float, drafts: int) -> float | None:
    """Return the chance a at which 1 + a + a^2 + ... + a^drafts = step; None above 1.

    step: its cost, in steps without drafts.
    """
    if step > drafts + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        chance = (low + high) / 2
        enough = sum(chance**place for place in range(drafts + 1)) >= step
        low, high = (low, chance) if enough else (chance, high)
    return high


def _seconds(costs: SystemCosts, context: float, width: int) -> Seconds:
    """Return the time of a step of one sequence through all stages."""
    work = decodes_at(1, context, costs.layout.model.window, width)
    return step_latency(costs, work)
