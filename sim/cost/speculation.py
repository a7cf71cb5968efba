"""Speculation: a drafter proposes tokens, and the model verifies all of them in one step.

>>> geometric_acceptance(0.5, 3)
(0.5, 0.25, 0.125)
"""

from dataclasses import dataclass, replace

from pydantic import Field

from sim.cost.plan import (
    ChosenWeights,
    PrecisionField,
    ResolvedPlan,
    WeightFormatField,
    chosen_weights,
)
from sim.hardware.chip import Precision
from sim.hardware.engine import Engine
from sim.inputs.values import Value
from sim.model.transformer import Model
from sim.units import Count


def geometric_acceptance(chance: float, tokens: int) -> tuple[float, ...]:
    """Return the probabilities that the first 1, 2, ... drafts are accepted: `chance` ** i.

    Each draft is accepted with the same chance, if those before it are.
    Source: Leviathan et al., arXiv 2211.17192, section 3.1.
    """
    return tuple(chance**place for place in range(1, tokens + 1))


class DraftPlan(Value):
    """Precisions and tensor parallelism of the drafter; the others are those of the system."""

    tensor: Count | None = Field(
        default=None,
        description="Chips of the last stage over which each layer of the drafter is split; "
        "default: those of the plan.",
    )
    weights: WeightFormatField | None = Field(
        default=None, description="Format of the drafter's weights; default: that of the plan."
    )
    activations: PrecisionField | None = Field(
        default=None,
        description="Precision of what the drafter's weights are multiplied by; default: that of "
        "the plan.",
    )
    kv: PrecisionField | None = Field(
        default=None, description="Precision of the drafter's KV cache; default: that of the plan."
    )
    head: WeightFormatField | None = Field(
        default=None,
        description="Format of the drafter's embedding and head; default: that of the plan.",
    )

    def on(self, plan: ResolvedPlan, model: Model) -> ResolvedPlan:
        """Return the plan of the drafter on a stage of the system's plan."""
        routed = any(block.experts for block in model.blocks)
        own, of_model = chosen_weights(self.weights, self.weights, self.head), plan.chosen
        chosen = ChosenWeights(
            mlp=own.mlp or of_model.mlp,
            attention=own.attention or of_model.attention,
            head=own.head or of_model.head,
        )
        return replace(
            plan,
            tensor=self.tensor or plan.tensor,
            expert=plan.expert if routed and not self.tensor else 1,
            pipeline=1,
            weights=Precision(own.mlp.precision) if own.mlp else plan.weights,
            attention=Precision(own.attention.precision) if own.attention else plan.attention,
            activations=self.activations or plan.activations,
            kv=self.kv or plan.kv,
            head=Precision(own.head.precision) if own.head else plan.head,
            chosen=chosen,
        )


@dataclass(frozen=True)
class Speculation:
    """The drafts of each step, and the drafter.

    tokens: drafts that a step verifies. acceptance: by place, from 1 to `tokens`, the probability
    that all drafts up to there are accepted.
    layer: whether the drafter is a layer that uses the embedding and the head of its model.
    apart: whether the drafter is on other chips, with a layout of its own.
    """

    method: str
    tokens: int
    acceptance: tuple[float, ...]
    model: Model
    layer: bool
    plan: DraftPlan
    apart: bool = False

    @property
    def mean_tokens(self) -> float:
        """The mean tokens of a step: one, and the accepted drafts."""
        return 1.0 + sum(self.acceptance)

    def engine(self, engine: Engine) -> Engine:
        """Return the engine of a pass of the drafter. A step's overhead is the target's."""
        overheads = {"step_overhead": 0.0, "sequence_overhead": engine.draft_sequence_overhead}
        return engine.model_copy(update=overheads)
