"""The deployment of a model with a drafter on other chips, one for each replica.

deploy_with_drafter(model, drafter, DraftExchange(link, micro_batches=2), lengths).drafter.fit.fits
"""

from dataclasses import dataclass, replace

from sim.cost.draft_link import DraftExchange
from sim.cost.layout import Layout, fit
from sim.cost.remote_draft import RemoteDraftCosts
from sim.cost.step import Costs
from sim.hardware.engine import default_limits
from sim.inputs.errors import error_at_path, errors_below
from sim.planning.deployment import (
    Deployment,
    DeploymentParts,
    LimitOverrides,
    PoolDeployment,
    deploy,
    limited_ranks,
)
from sim.planning.search import PlanSteps

DRAFTER_PATH = ("speculate", "draft", "system")  # keys of a system above those of its drafter


@dataclass(frozen=True)
class DrafterDeployment:
    """A drafter on chips of its own.

    room: tokens of KV cache that each replica holds.
    sequences: most running sequences of a replica, a limit of the engine; None without one.
    """

    pool: PoolDeployment
    room: int
    sequences: int | None = None

    def beside(self, deployed: Deployment, overrides: LimitOverrides) -> Deployment:
        """Return the deployment of a model with this drafter. Its costs must have both.

        overrides: the limits that the user gives the model.
        Raises: ValueError if the drafter holds or runs less, or has another number of replicas.
        """
        own, fitted = self.pool.layout.plan.replicas, self.pool.fit
        if (replicas := deployed.layout.plan.replicas) != own:
            reason = f"got {own}; expected {replicas}, a drafter for each replica of the model; "
            path = (*DRAFTER_PATH, "plan", "replicas")
            raise error_at_path(path, own, f"{reason}try {replicas}")
        kv_tokens, sequences = overrides.kv_tokens, overrides.max_sequences
        if fitted.fits and kv_tokens and kv_tokens > self.room:
            reason = f"got {kv_tokens} token; expected at most {self.room} token, which the "
            reason += f"drafter holds; try {self.room} token"
            raise error_at_path(("kv_tokens",), kv_tokens, reason)
        limits, most = deployed.limits, self.sequences or deployed.limits.sequences
        ranks = limited_ranks(deployed.layout.engine, deployed.layout.plan)
        if sequences and sequences * ranks > most:
            reason = f"got {sequences}; expected at most {most // ranks}, since the drafter's "
            reason += f"engine {self.pool.layout.engine.id} runs {most}; try {most // ranks}"
            raise error_at_path(("max_sequences",), sequences, reason)
        return replace(
            deployed,
            fit=replace(deployed.fit, fits=deployed.fit.fits and fitted.fits),
            limits=replace(
                limits,
                kv_tokens=min(limits.kv_tokens, self.room),
                sequences=min(limits.sequences, most),
            ),
            drafter=self.pool,
        )


def deploy_drafter(
    drafter: tuple[DeploymentParts, LimitOverrides], drafts: int, lengths: tuple[float, float]
) -> DrafterDeployment:
    """Return the deployment of a drafter on other chips. drafts: of each sequence in a step.

    lengths: tokens of a mean request, and of its prompt.
    Raises: ValueError at a key of `speculate.draft.system` if parts contradict each other.
    """
    parts, overrides = drafter
    tokens = lengths[0] + drafts
    with errors_below(*DRAFTER_PATH):
        _require_simulated(parts)
        laid = deploy(parts, tokens, lengths[1], overrides)
        layout = _drafting_layout(laid.layout, 1 + drafts)
    fitted = fit(layout, tokens)
    room = laid.limits.kv_tokens if overrides.kv_tokens else fitted.kv_tokens
    most = default_limits(parts.engine, parts.chip)[0]
    sequences = most and most * limited_ranks(parts.engine, layout.plan)
    return DrafterDeployment(PoolDeployment(layout, fitted), room, sequences)


def deploy_with_drafter(
    model: tuple[DeploymentParts, LimitOverrides],
    drafter: tuple[DeploymentParts, LimitOverrides],
    exchange: DraftExchange,
    lengths: tuple[float, float],
) -> Deployment:
    """Return the deployment of a model, and of its drafter on other chips.

    lengths: tokens of a mean request, and of its prompt.
    A search finds the plan of the model, with as many replicas as the drafter has.
    Both keep the KV cache of all sequences, so the smaller room limits them, and so does the
    smaller `max_sequences` of both engines.

    Raises: ValueError at a key of the model or of `speculate.draft.system` if parts contradict each
    other.
    """
    parts, overrides = model
    assert parts.speculation
    _require_whole_steps(parts)
    one_batch = parts.plan.model_copy(update={"slots": 1})
    drafting = deploy_drafter(drafter, parts.speculation.tokens, lengths)
    layout = drafting.pool.layout
    steps = PlanSteps(
        lambda own: RemoteDraftCosts(Costs(own), layout, exchange), layout.plan.replicas
    )
    deployed = deploy(replace(parts, plan=one_batch), *lengths, overrides, steps)
    return drafting.beside(deployed, overrides)


def add_drafter(
    deployed: Deployment,
    drafter: tuple[DeploymentParts, LimitOverrides],
    exchange: DraftExchange,
    lengths: tuple[float, float],
    overrides: LimitOverrides,
) -> Deployment:
    """Return a deployment of attention and FFN pools with a drafter on other chips.

    overrides: the limits that the user gives the attention pool.
    Raises: ValueError at a key of the attention pool if parts contradict each other.
    """
    drafting = deploy_drafter(drafter, deployed.layout.width - 1, lengths)
    costs = RemoteDraftCosts(deployed.costs, drafting.pool.layout, exchange)
    return replace(drafting.beside(deployed, overrides), costs=costs)


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
    """Raise ValueError unless the model makes whole steps, without beats."""
    engine, plan = parts.engine, parts.plan
    if engine.tokens_per_beat:
        reason = f"got {engine.id}, which has tokens_per_beat; expected an engine without it, as "
        reason += "its beats cannot wait for drafts from other chips; try engine: vllm"
        raise error_at_path(("engine",), engine.id, reason)
    if plan.slots not in (None, 1):
        reason = f"got {plan.slots}; expected 1 with a drafter on other chips; try "
        raise error_at_path(("plan", "slots"), plan.slots, f"{reason}speculate.draft.groups: 2")


def _require_simulated(parts: DeploymentParts) -> None:
    """Raise ValueError for a search of the drafter's degrees, or for micro-batches of its own."""
    if search := parts.plan.search:
        reason = (
            f"got {search}; expected degrees of a drafter on other chips, since a search finds "
        )
        reason += "the plan of the model alone; "
        raise error_at_path(("plan", "search"), search, f"{reason}try plan: {{tensor: 8}}")
    if (slots := parts.plan.slots) is not None:
        reason = f"got {slots}; expected none, since a drafter has the micro-batches of its model; "
        raise error_at_path(("plan", "slots"), slots, f"{reason}try speculate.draft.groups: 2")
