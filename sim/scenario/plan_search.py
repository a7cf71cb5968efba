"""How `search: capacity` found the plan of a system."""

from dataclasses import dataclass

from sim.cost.plan import ResolvedPlan


@dataclass(frozen=True, slots=True)
class RivalPlan:
    """The best plan of one ordinary system, which two pools are compared with.

    load: the highest load [request/s], or users of a closed loop; 0 if no load is met.
    """

    chip: str
    chips: int
    plan: ResolvedPlan
    load: float


@dataclass(frozen=True, slots=True)
class PlanSearch:
    """How `search: capacity` found a plan.

    considered, simulated: the number of plans that fit, and of those that were simulated.
    load: the highest load [request/s], or users of a closed loop.
    rival: of a search for attention and FFN pools, one system within the same limits; None if the
    model does not fit it.
    """

    considered: int
    simulated: int
    load: float
    rival: RivalPlan | None = None
