"""The error for a model that does not fit on its chips, with the fewest chips that would do.

>>> require_fit(deployment)  # doctest: +SKIP
"""

from sim.cost.layout import MemoryFit
from sim.cost.plan import DEGREES, PlanError, ResolvedPlan
from sim.planning.deployment import Deployment, PoolDeployment
from sim.planning.search import smallest_plan
from sim.units import format_quantity

ALWAYS_IN_HINT = ("tensor", "pipeline")  # also if they are 1


def require_fit(deployment: Deployment) -> None:
    """Raise PlanError if the model does not fit, with the fewest chips on which it would."""
    fit, layout = deployment.fit, deployment.layout
    if fit.fits:
        return
    if (drafter := deployment.drafter) and not drafter.fit.fits:
        layout = drafter.layout
        raise PlanError(
            f"{layout.model.id} on {drafter.chips} {layout.chip.id} that draft does not fit: the "
            f"fullest chip {_needs(drafter.fit)}; try more chips in speculate.draft.system"
        )
    if deployment.ffn:
        raise PlanError(_pools_do_not_fit(deployment, deployment.ffn))
    plan = smallest_plan(deployment.space)
    if plan is None:
        hint = f"no number of them would do with the topology of {layout.chip.id}"
    else:
        hint = f"{plan.chips} chips would do ({_degrees_text(plan)})"
    needs = _needs(fit)
    if layout.apart and fit.weights > layout.weights_memory.capacity:
        home, has = layout.plan.weights_in, format_quantity(layout.weights_memory.capacity, "B")
        needs = f"needs {format_quantity(fit.weights, 'B')} for weights in its {home} and has {has}"
    raise PlanError(
        f"{layout.model.id} on {deployment.chips} {layout.chip.id} does not fit: "
        f"the fullest chip {needs}; {hint}"
    )


def _degrees_text(plan: ResolvedPlan) -> str:
    """Return 'tensor 3, attention_data 2, expert 6, pipeline 4': keys of a scenario's plan."""
    degrees = {key: getattr(plan, key) for key in DEGREES}
    return ", ".join(f"{key} {n}" for key, n in degrees.items() if n > 1 or key in ALWAYS_IN_HINT)


def _needs(fit: MemoryFit) -> str:
    return (
        f"needs {format_quantity(fit.needed, 'B')} ({format_quantity(fit.weights, 'B')} weights) "
        f"and has {format_quantity(fit.capacity, 'B')}"
    )


def _pools_do_not_fit(deployment: Deployment, ffn: PoolDeployment) -> str:
    """Return which of two pools the model does not fit, and by how much."""
    pool, fit, layout = "attention", deployment.fit, deployment.layout
    chips, hint = deployment.own_chips, "try a larger attention.plan.tensor"
    if not ffn.fit.fits:
        pool, fit, layout, chips = "ffn", ffn.fit, ffn.layout, ffn.chips
        hint = "try more ffn.chips"
    return (
        f"{layout.model.id} on {chips} {layout.chip.id} of the {pool} pool does not fit: the "
        f"fullest chip {_needs(fit)}; {hint}"
    )
