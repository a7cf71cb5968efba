"""The deployment of an attention pool with the FFN pool that serves it in every layer.

deploy_with_ffn(attention, ffn, sharing, request_tokens).ffn.fit.fits
"""

from dataclasses import dataclass, replace

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.layout import Layout, fit
from sim.hardware.engine import Engine
from sim.inputs.errors import error_at_path, errors_below
from sim.model.pool_parts import model_part
from sim.planning.deployment import (
    Deployment,
    DeploymentParts,
    LimitOverrides,
    PoolDeployment,
    deploy,
    uncut_layout,
)
from sim.planning.memories import with_memories
from sim.planning.search import sized_layout


@dataclass(frozen=True)
class PoolSharing:
    """The number of micro-batches that take turns on two pools, and the links between the pools."""

    micro_batches: int
    transfer: LayerTransfer


def deploy_with_ffn(
    attention: DeploymentParts,
    ffn: DeploymentParts,
    sharing: PoolSharing,
    lengths: tuple[float, float],
    overrides: tuple[LimitOverrides, LimitOverrides] = (LimitOverrides(), LimitOverrides()),
) -> Deployment:
    """Return the deployment of attention on the chips of one pool, and of MLPs on another pool.

    lengths: tokens of a mean request, and of its prompt.
    overrides: for the attention pool, and for the FFN pool.
    The scheduler's limits and the KV cache are those of the attention pool.

    Raises: ValueError at a key of `attention` or `ffn` if parts contradict each other.
    """
    with errors_below("attention"):
        deployed = deploy_attention(attention, lengths, overrides[0])
    with errors_below("ffn"):
        tokens = -(-deployed.layout.token_budget // sharing.micro_batches)
        whole = replace(ffn, model=attention.model)
        layout = ffn_layout(whole, replace(overrides[1], token_budget=tokens))
        costs = AttentionFfnCosts(deployed.layout, layout, sharing.transfer, sharing.micro_batches)
    fitted = fit(layout, lengths[0])
    return replace(
        deployed,
        fit=replace(deployed.fit, fits=deployed.fit.fits and fitted.fits),
        costs=costs,
        ffn=PoolDeployment(layout, fitted),
    )


def deploy_attention(
    parts: DeploymentParts, lengths: tuple[float, float], overrides: LimitOverrides
) -> Deployment:
    """Return the deployment of an attention pool alone, as if its MLPs took no time.

    Without `attention_data` the pool has as many ranks as its chips make.
    Raises: ValueError at a key if the parts contradict each other.
    """
    if "attention_data" not in parts.plan.model_fields_set:
        ranks = max(1, parts.chips // parts.plan.tensor)
        parts = replace(parts, plan=parts.plan.model_copy(update={"attention_data": ranks}))
    _require_one_stage(parts)
    part = model_part(parts.model, "attention")
    return deploy(replace(parts, model=part), *lengths, overrides)


def _require_one_stage(parts: DeploymentParts) -> None:
    """Raise ValueError unless the attention pool is one stage without beats or layer launches."""
    plan = parts.plan
    for key in ("tokens_per_beat", "layer_launch"):
        _require_none(parts.engine, key, "attention works for whole micro-batches")
    if plan.stage_size != parts.chips:
        reason = f"got tensor {plan.tensor} x attention_data {plan.attention_data}; expected "
        reason += f"{parts.chips} chips, since the attention pool is one stage; "
        reason += f"try attention_data: {max(1, parts.chips // plan.tensor)}"
        raise error_at_path(("plan",), plan, reason)


def _require_none(engine: Engine, key: str, why: str) -> None:
    """Raise ValueError if an engine has a key that a pool does not simulate."""
    if getattr(engine, key):
        reason = f"got {engine.id}, which has {key}; expected an engine without it, since {why}; "
        raise error_at_path(("engine",), engine.id, f"{reason}try engine: vllm")


def ffn_layout(parts: DeploymentParts, overrides: LimitOverrides) -> Layout:
    """Return the layout of an FFN pool. All stages have equal numbers of layers.

    parts: with the whole model. Without `tensor`, a stage has a chip for each expert shard.
    """
    _require_none(parts.engine, "layer_launch", "launches of visits are not simulated")
    parts = replace(parts, model=model_part(parts.model, "ffn"))
    plan = parts.plan
    if plan.expert and "tensor" not in plan.model_fields_set:
        plan = plan.model_copy(update={"tensor": plan.expert})
    resolved = plan.resolved(parts.chips, parts.model)
    bare = sized_layout(uncut_layout(parts, overrides, resolved))
    layers, stages = len(parts.model.blocks), resolved.pipeline
    bounds = tuple(layers * stage // stages for stage in range(stages))
    return replace(with_memories(bare, 1.0), bounds=bounds)
