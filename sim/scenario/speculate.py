"""`speculate` of a system: a drafter proposes tokens, and the model verifies them in one step."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

from sim.cost.acceptance import AcceptanceField
from sim.cost.draft_link import DraftExchange, DraftLink
from sim.cost.layer_transfer import rising
from sim.cost.speculation import DraftPlan, Speculation, geometric_acceptance
from sim.inputs.errors import error_at_path, errors_below
from sim.inputs.values import Value
from sim.model.draft_layer import draft_layer
from sim.model.transformer import Model, ModelField
from sim.reliability.failures import Faults
from sim.scenario.placement import Placement
from sim.serving.replica_config import Outage
from sim.units import Fraction, brief

PRECISIONS = ("weights", "activations", "kv", "head")  # keys of a drafter's plan
MOST_DRAFTS = 64  # of a step; the trees of EAGLE-2 have about as many


class DraftSystem(Placement):
    """Chips of a drafter that are not those of the model, with their engine and plan.

    Each replica of the model has a replica of the drafter (`plan.replicas`). While its drafter is
    down, a replica of the model makes no step, and keeps its sequences. Both run all sequences, so
    the smaller `max_sequences` of both engines limits them. Only the model has a scheduler, so
    `policy` and `admission` of the drafter's engine have no effect.
    Left out: chip fidelity.
    """

    faults: Faults | None = Field(
        default=None,
        description="Parts that fail over months; the availability is then simulated as well.",
    )
    outages: tuple[Outage, ...] = Field(
        default=(), description="Times in the run at which replicas of the drafter are down."
    )
    _name: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _sequences_wait(self) -> "DraftSystem":
        for number, outage in enumerate(self.outages):
            if outage.requests == "fail":
                reason = "got fail; expected retry for a drafter, since the model keeps its "
                reason += "requests; try leaving requests out"
                raise error_at_path(("outages", number, "requests"), "fail", reason)
        return self

    @property
    def name(self) -> str | None:
        """The system whose chips these are; None for chips of their own."""
        return self._name

    def named(self, name: str) -> "DraftSystem":
        """Return the same chips as those of another system."""
        chips = self.model_copy()
        chips._name = name
        return chips


def _name_or_chips(value: object, info: ValidationInfo) -> object:
    """Return the chips for a mapping; a name as it is.

    Without this choice an error would list the problems of both.
    """
    if isinstance(value, Mapping):
        return DraftSystem.model_validate(value, context=info.context)
    return value


class Draft(Value):
    """The drafter: a model of its own, or changes of the layer that drafts.

    With `system` a model drafts on other chips. They hold its weights and its KV cache of all
    sequences, so the smaller room of both limits the sequences. Both compute prompts at the same
    time. With `groups: 1` the model waits for drafts, and the drafter for the model. With
    `groups: 2` the drafter works for one half of the sequences while the model verifies the drafts
    of the other half. A model on several stages has no other micro-batches than these groups.
    """

    model: ModelField | None = Field(
        default=None, description="Model that drafts, with `method: draft`."
    )
    plan: DraftPlan = Field(
        default=DraftPlan(),
        description="Precisions and tensor parallelism of the drafter on the chips of the model.",
    )
    system: Annotated[str | DraftSystem, BeforeValidator(_name_or_chips)] | None = Field(
        default=None,
        description="Other chips that draft: a system's name, or a mapping; default: those of the "
        "last stage.",
    )
    transfer: DraftLink | None = Field(
        default=None, description="Link between a replica and its drafter, with `system`."
    )
    groups: Annotated[int, Field(ge=1, le=2)] = Field(
        default=1, description="Micro-batches that take turns, with `system`: 1 or 2."
    )

    @model_validator(mode="after")
    def _apart_or_not(self) -> "Draft":
        if self.system is None:
            for key in sorted(self.model_fields_set & {"transfer", "groups"}):
                reason = f"got {key} without system; expected a drafter on other chips; "
                raise error_at_path((key,), key, f"{reason}try system: {{chip: ..., chips: 8}}")
        elif self.transfer is None:
            reason = "got a drafter on other chips without transfer; expected the link to it; "
            reason += "try transfer: {bandwidth: 50 GB/s, latency: 5 us}"
            raise error_at_path(("system",), self.system, reason)
        elif "plan" in self.model_fields_set:
            reason = "got a plan; expected none with system, which has its own; try system.plan"
            raise error_at_path(("plan",), self.plan, reason)
        return self

    @property
    def exchange(self) -> DraftExchange:
        """The link to the drafter, and the groups. There must be a `system`."""
        assert self.transfer
        return DraftExchange(self.transfer, self.groups)


class AcceptanceRange(Value):
    """The lowest and the highest acceptance of drafts, where none is published."""

    acceptance: Annotated[tuple[Fraction, Fraction] | None, AfterValidator(rising)] = Field(
        default=None,
        description="Lowest and highest chance that a draft is accepted; default: none.",
    )


class Speculate(Value):
    """Drafts of each step, which the model verifies together.

    A step verifies `tokens` drafts of each sequence. It yields one token, and the drafts up to the
    first that is rejected. `mtp`: a layer like the last one of the model. `eagle`: the same with a
    dense MLP. `draft`: a model of its own. A drafter is on the chips of the last stage, or with
    `draft.system` on other ones.

    Left out: trees of drafts; numbers of drafts that depend on load.
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
    range: AcceptanceRange = Field(
        default=AcceptanceRange(),
        description="Range of `acceptance` if it is one number, for `sensitivity` and `order_by`.",
    )

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
        if self.range.acceptance and not isinstance(acceptance, float):
            reason = "got a range of several numbers; expected an acceptance that is one number; "
            reason += "try acceptance: 0.7"
            raise error_at_path(("range", "acceptance"), acceptance, reason)
        if self.method == "draft" and self.draft.model is None:
            reason = "got method draft without a model; expected a draft model; "
            reason += "try draft: {model: llama-3.2-1b}"
            raise error_at_path(("draft",), self.draft, reason)
        if self.method != "draft" and self.draft.model:
            reason = f"got {self.draft.model.id} with method {self.method}, whose drafter is a "
            reason += "layer of the model; expected no model; try method: draft"
            raise error_at_path(("draft", "model"), self.draft.model.id, reason)
        if self.method != "draft" and self.draft.system:
            reason = f"got system with method {self.method}, whose drafter needs hidden states of "
            reason += "the model; expected no system; try method: draft"
            raise error_at_path(("draft", "system"), self.draft.system, reason)
        return self

    @property
    def local(self) -> "Speculate":
        """These drafts from a drafter on the chips of the model, in its own precisions."""
        if not isinstance(chips := self.draft.system, DraftSystem):
            return self
        own = {key: getattr(chips.plan, key) for key in PRECISIONS}
        draft = Draft(model=self.draft.model, plan=DraftPlan(**own))
        return self.model_copy(update={"draft": draft})

    def speculation(self, model: Model) -> Speculation | None:
        """Return the speculation for a model; None without drafts.

        Raises: ValueError if the drafter is larger than the model, or has another window or
        vocabulary.
        Source: vLLM, verify_equal_vocab_size_if_draft_model, for vocabularies.
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
        if self.draft.model and drafter.parameters > model.parameters:
            own, most = (of.parameters / 1e9 for of in (drafter, model))
            reason = f"got {drafter.id} with {own:.3g} billion parameters; expected at most the "
            reason += f"{most:.3g} of {model.id}; try a smaller draft model"
            raise error_at_path(("speculate", "draft", "model"), drafter.id, reason)
        if drafter.vocab_size != model.vocab_size:
            reason = f"got {drafter.id} with a vocabulary of {drafter.vocab_size:,} tokens; "
            reason += f"expected that of {model.id}, {model.vocab_size:,}; try another draft model"
            raise error_at_path(("speculate", "draft", "model"), drafter.id, reason)
        return Speculation(
            self.method,
            self.tokens,
            acceptance[: self.tokens],
            drafter,
            self.draft.model is None,
            self.draft.plan,
            apart=self.draft.system is not None,
        )
