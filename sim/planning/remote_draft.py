"""The deployment of a model with a drafter on other chips, one for each replica.

deploy_with_drafter(model, drafter, DraftExchange(link, micro_batches=2), lengths).drafter.fit.fits
"""

from dataclasses import dataclass, replace
from functools import partial

from sim.cost.draft_link import DraftLink
from sim.cost.layout import Layout, fit
from sim.cost.remote_draft import RemoteDraftCosts
from sim.inputs.errors import error_at_path, errors_below
from sim.planning.deployment import (
    Deployment,
    DeploymentParts,
    LimitOverrides,
    PoolDeployment,
    deploy,
)
from sim.planning.search import PlanSteps


@dataclass(frozen=True)
class DraftExchange:
    """The link to a drafter on other chips, and the number of micro-batches that take turns."""

    link: DraftLink
    micro_batches: int = 1


def deploy_with_drafter(
    model: tuple[DeploymentParts, LimitOverrides],
    drafter: tuple[DeploymentParts, LimitOverrides],
    exchange: DraftExchange,
    lengths: tuple[float, float],
) -> Deployment:
    """Return the deployment of a model, and of its drafter on other chips.

    lengths: tokens of a mean request, and of its prompt.
    A search finds the plan of the model, with as many replicas as the drafter has.
    Both keep the KV cache of all sequences, so the smaller room limits them.

    Raises: ValueError at a key of the model or of `speculate.draft.system` if parts contradict each
    other.
    """
    (parts, overrides), (drafting, draft_overrides) = model, drafter
    assert parts.speculation
    _require_whole_steps(parts)
    one_batch = parts.plan.model_copy(update={"slots": 1})
    tokens = lengths[0] + parts.speculation.tokens
    with errors_below("speculate", "draft", "system"):
        _require_no_search(drafting)
        _require_no_launches(drafting)
        laid = deploy(drafting, tokens, lengths[1], draft_overrides)
        layout = _drafting_layout(laid.layout, 1 + parts.speculation.tokens)
    replicas = layout.plan.replicas
    costs_of = partial(
        RemoteDraftCosts,
        drafter=layout,
        link=exchange.link,
        micro_batches=exchange.micro_batches,
    )
    steps = PlanSteps(costs_of, replicas)
    deployed = deploy(replace(parts, plan=one_batch), *lengths, overrides, steps)
    if (own := deployed.layout.plan.replicas) != replicas:
        reason = f"got {replicas}; expected {own}, a drafter for each replica of the model; "
        path = ("speculate", "draft", "system", "plan", "replicas")
        raise error_at_path(path, replicas, f"{reason}try {own}")
    fitted = fit(layout, tokens)
    room = laid.limits.kv_tokens if draft_overrides.kv_tokens else fitted.kv_tokens
    if fitted.fits and (most := overrides.kv_tokens) and most > room:
        reason = f"got {most} token; expected at most {room} token, which the drafter holds; "
        raise error_at_path(("kv_tokens",), most, f"{reason}try {room} token")
    limits = deployed.limits
    return replace(
        deployed,
        fit=replace(deployed.fit, fits=deployed.fit.fits and fitted.fits),
        limits=replace(limits, kv_tokens=min(limits.kv_tokens, room)),
        drafter=PoolDeployment(layout, fitted),
    )


def _drafting_layout(layout: Layout, width: int) -> Layout:
    """Return the layout of a drafter, whose passes take `width` tokens of each sequence.

    A compiled program takes them together, as that of the model does.
    """
    if beat := layout.engine.tokens_per_beat:
        return replace(layout, token_budget=width * beat)
    if layout.token_budget < width:
        budget = layout.token_budget
        reason = f"got {budget} token; expected at least {width}, the tokens of a sequence in a "
        raise error_at_path(("token_budget",), budget, f"{reason}pass; try {width} token")
    return layout


def _require_whole_steps(parts: DeploymentParts) -> None:
    """Raise ValueError unless the model makes whole steps, without beats or layer launches."""
    _require_no_launches(parts)
    engine, plan = parts.engine, parts.plan
    if engine.tokens_per_beat:
        reason = f"got {engine.id}, which has tokens_per_beat; expected an engine without it, as "
        reason += "its beats cannot wait for drafts from other chips; try engine: vllm"
        raise error_at_path(("engine",), engine.id, reason)
    if plan.slots not in (None, 1):
        reason = f"got {plan.slots}; expected 1 with a drafter on other chips; try "
        raise error_at_path(("plan", "slots"), plan.slots, f"{reason}speculate.draft.groups: 2")


def _require_no_search(parts: DeploymentParts) -> None:
    """Raise ValueError for a search of the drafter's degrees: only those of the model are found."""
    if search := parts.plan.search:
        reason = (
            f"got {search}; expected degrees of a drafter on other chips, since a search finds "
        )
        reason += "the plan of the model alone; "
        raise error_at_path(("plan", "search"), search, f"{reason}try plan: {{tensor: 8}}")


def _require_no_launches(parts: DeploymentParts) -> None:
    """Raise ValueError for an engine whose host launches layers."""
    if parts.engine.layer_launch:
        reason = f"got {parts.engine.id}, which has layer_launch; expected an engine without it, "
        reason += "since such launches are not simulated with drafts; try engine: vllm"
        raise error_at_path(("engine",), parts.engine.id, reason)
