"""`speculate` of a system: a drafter proposes tokens, and the model verifies them in one step."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.cost.acceptance import AcceptanceField
from sim.cost.speculation import DraftPlan, Speculation, geometric_acceptance
from sim.inputs.errors import error_at_path, errors_below
from sim.inputs.values import Value
from sim.model.draft_layer import draft_layer
from sim.model.transformer import Model, ModelField
from sim.units import brief

MOST_DRAFTS = 64  # of a step; the trees of EAGLE-2 have about as many


class Draft(Value):
    """The drafter: a model of its own, or changes of the layer that drafts."""

    model: ModelField | None = Field(
        default=None, description="Model that drafts, with `method: draft`."
    )
    plan: DraftPlan = Field(
        default=DraftPlan(), description="Precisions and tensor parallelism of the drafter."
    )


class Speculate(Value):
    """Drafts of each step, which the model verifies together.

    A step verifies `tokens` drafts of each sequence. It yields one token, and the drafts up to the
    first that is rejected. A drafter is on the chips of the last stage. `mtp`: a layer like the
    last one of the model. `eagle`: the same with a dense MLP. `draft`: a model of its own.

    Left out: trees of drafts; numbers of drafts that depend on load; a drafter on other chips.
    """

    method: Literal["mtp", "eagle", "draft"] = Field(
        description="Drafter: a layer for multi-token prediction, one of EAGLE, or a draft model."
    )
    tokens: Annotated[int, Field(ge=0, le=MOST_DRAFTS)] = Field(
        description="Drafts of each sequence in a step; 0: no speculation."
    )
    acceptance: AcceptanceField = Field(
        description="Chances that the first 1, 2, 3 drafts are accepted; one number; or a curve's "
        "name."
    )
    sampling: Literal["sampled", "expected"] = Field(
        default="sampled",
        description="Accepted drafts of each step: drawn from each request's own stream, or "
        "their mean.",
    )
    draft: Draft = Field(default=Draft(), description="The drafter.")

    @model_validator(mode="after")
    def _consistent(self) -> "Speculate":
        acceptance, tokens = self.acceptance, self.tokens
        if isinstance(acceptance, tuple):
            text = f"got {brief(str(list(acceptance)))}"
            if len(acceptance) < tokens:
                reason = f"{text}; expected {tokens} numbers, one for each draft; "
                reason += f"try tokens: {len(acceptance)}"
                raise error_at_path(("acceptance",), acceptance, reason)
            if list(acceptance) != sorted(acceptance, reverse=True):
                reason = f"{text}; expected numbers that do not increase, since each is the "
                reason += f"chance of all drafts so far; try {sorted(acceptance, reverse=True)}"
                raise error_at_path(("acceptance",), acceptance, reason)
        if self.method == "draft" and self.draft.model is None:
            reason = "got method draft without a model; expected a draft model; "
            reason += "try draft: {model: llama-3.2-1b}"
            raise error_at_path(("draft",), self.draft, reason)
        if self.method != "draft" and self.draft.model:
            reason = f"got {self.draft.model.id} with method {self.method}, whose drafter is a "
            reason += "layer of the model; expected no model; try method: draft"
            raise error_at_path(("draft", "model"), self.draft.model.id, reason)
        return self

    def speculation(self, model: Model) -> Speculation | None:
        """Return the speculation for a model; None without drafts.

        Raises: ValueError if the drafter has another window than the model.
        """
        if not self.tokens:
            return None
        acceptance = self.acceptance
        if not isinstance(acceptance, tuple):
            acceptance = geometric_acceptance(acceptance, self.tokens)
        with errors_below("speculate", "method"):
            drafter = self.draft.model or draft_layer(model, self.method)
        if drafter.window and drafter.window != model.window:
            window = f"{model.window}" if model.window else "none"
            reason = f"got {drafter.id} with a window of {drafter.window} positions; expected "
            reason += f"that of {model.id}, {window}; try another draft model"
            raise error_at_path(("speculate", "draft", "model"), drafter.id, reason)
        return Speculation(
            self.method,
            self.tokens,
            acceptance[: self.tokens],
            drafter,
            self.draft.model is None,
            self.draft.plan,
        )
