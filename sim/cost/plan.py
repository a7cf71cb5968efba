"""How a model is laid on chips: degrees, precisions, stages, bytes, and whether it fits.  Arithmetic only."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sim.hardware.chip import Chip, Memory, Precision
from sim.hardware.engine import Engine
from sim.hardware.topology import Topology
from sim.inputs.errors import UserError, error_at_path
from sim.inputs.fields import Shorthand
from sim.inputs.values import Value
from sim.model.blocks import Attention, Block
from sim.model.transformer import Model
from sim.units import Bytes, Count, brief

MOST_REPLICAS = 10_000  # of a system; each takes 5 to 160 kB of memory, and its own queue and pipeline are simulated
PrecisionField = Annotated[
    Precision,
    Field(strict=False),
    WithJsonSchema({"type": "string", "enum": [precision.value for precision in Precision]}),
]
DEGREES = ("tensor", "attention_data", "expert", "pipeline", "replicas")
What = Literal["weights", "attention", "activations", "hidden", "dispatch", "kv", "head"]


class PlanError(UserError):
    """The model does not fit the chips as the plan lays it."""


class Plan(Value):
    """Degrees of parallelism and precisions.

    `tensor` x `attention_data` chips make a stage. Routed experts are dealt to `expert` shards of
    it. The chips of a shard split what the shard holds of each expert.
    Hidden states have 16 bits also if `activations` are narrower: INT8, FP8 and FP4 are formats of
    a multiply's operands, and sums need more. Results of experts come back as `hidden`.
    Latent attention counts as one KV head. With `kv_split: sequence` attention's results need one
    more all-reduce.

    With `search: capacity` plans are bounded first, and the few best simulated. Each precision of
    the list `kv` is tried.
    """

    tensor: Count = Field(default=1, description="Chips over which each layer of a stage is split.")
    attention_data: Count = Field(
        default=1,
        description="Ranks of attention data parallelism in a stage; each attends for its own "
        "sequences.",
    )
    expert: Count | None = Field(
        default=None,
        description="Shards of the routed experts in a stage; default: one, or every chip with "
        "attention data parallelism.",
    )
    pipeline: Count | None = Field(
        default=None, description="Number of pipeline stages; default: as many as the chips make."
    )
    replicas: Count = Field(default=1, description="Copies of the model, each on its own chips.")
    weights: PrecisionField | None = Field(
        default=None, description="Precision of the weights; default: that of the model's config."
    )
    attention: PrecisionField | None = Field(
        default=None,
        description="Precision of attention's weights; default: that of `weights`, unless the "
        "config keeps its own.",
    )
    activations: PrecisionField | None = Field(
        default=None,
        description="Precision of what is multiplied by weights; default: that of the model's "
        "config.",
    )
    hidden: PrecisionField | None = Field(
        default=None,
        description="Precision of hidden states between chips; default: that of `activations`, at "
        "least 16 bits.",
    )
    dispatch: PrecisionField | None = Field(
        default=None,
        description="Precision of tokens on their way to experts, with attention data "
        "parallelism; default: that of `hidden`.",
    )
    kv: PrecisionField | tuple[PrecisionField, ...] | None = Field(
        default=None,
        description="Precision of the KV cache, or a list with `search: capacity`; default: that "
        "of the model's config.",
    )
    head: PrecisionField | None = Field(
        default=None,
        description="Precision of the embedding and the output head; default: that of the model's "
        "config.",
    )
    balance: Literal["time", "memory"] = Field(
        default="time",
        description="Aim of the cut into stages: the time of the slowest stage, or memory left "
        "for KV cache.",
    )
    slots: Count | None = Field(
        default=None,
        description="Micro-batches in flight; default: one for each stage, or as needed with "
        "`tokens_per_beat`.",
    )
    kv_split: Literal["heads", "sequence"] = Field(
        default="heads",
        description="If `tensor` exceeds the KV heads: each chip holds a whole head's cache, or "
        "part of the sequence.",
    )
    weights_in: str | None = Field(
        default=None,
        description="Memory of the chip that holds the weights; default: the first with enough "
        "room.",
    )
    kv_in: str | None = Field(
        default=None,
        description="Memory of the chip that holds the KV cache; default: the first with enough "
        "room.",
    )
    search: Literal["speed", "chips", "capacity"] | None = Field(
        default=None,
        description="Search for the degrees: lowest single-request latency, fewest chips, or "
        "highest load within the `slo`.",
    )

    @field_validator("kv", mode="before")
    @classmethod
    def _known_precisions(cls, kv: object) -> object:
        """A list is read here, since an error of the union would speak of a single precision."""
        if isinstance(kv, tuple) and not (kv and all(each in tuple(Precision) for each in kv)):
            raise ValueError(
                f"got {_listed(kv)}; expected precisions of {', '.join(Precision)}; try [fp16, fp8]"
            )
        return tuple(map(str, kv)) if isinstance(kv, tuple) else kv

    @model_validator(mode="after")
    def _given_or_searched(self) -> "Plan":
        if self.search != "capacity":
            if isinstance(self.kv, tuple):
                hint = f"try kv: {self.kv[0]}, or search: capacity, which tries each"
                raise error_at_path(
                    ("kv",), self.kv, f"got {_listed(self.kv)}; expected one precision; {hint}"
                )
            return self
        degrees = (*DEGREES, "slots")
        given = [
            key
            for key in degrees
            if key in self.model_fields_set and getattr(self, key) is not None
        ]
        if given:
            reason = f"got {getattr(self, given[0])}; expected no degrees with search: capacity, which finds them"
            raise error_at_path(
                (given[0],),
                getattr(self, given[0]),
                f"{reason}; try leaving {', '.join(given)} out",
            )
        return self

    def resolved(self, chips: int, model: Model) -> "Plan":
        """The plan with its defaults filled in for so many chips.

        Raises: ValueError where the degrees do not make `chips`, or deal out what the model does not have.
        """
        each = self.stage_size * self.replicas
        pipeline = self.pipeline or max(1, chips // each)
        product = each * pipeline
        if product != chips:
            others = (
                ("attention_data", self.attention_data),
                ("pipeline", pipeline),
                ("replicas", self.replicas),
            )
            degrees = f"tensor {self.tensor}" + "".join(
                f" x {name} {n}" for name, n in others if n > 1 or name == "pipeline"
            )
            hint = (
                f"; leave pipeline out for {chips // each}"
                if self.pipeline and chips % each == 0
                else ""
            )
            raise ValueError(f"{degrees} is {product} chips, and the system has {chips}{hint}")
        if pipeline > len(model.blocks):
            raise ValueError(
                f"pipeline {pipeline}: {model.id} has only {len(model.blocks)} blocks to cut between"
            )
        routed = any(block.experts for block in model.blocks)
        expert = self.expert or (self.stage_size if routed and self.attention_data > 1 else 1)
        if expert > 1 and not routed:
            raise ValueError(f"expert {expert}: {model.id} has no experts")
        if self.stage_size % expert:
            raise ValueError(
                f"expert {expert} does not divide the {self.stage_size} chips of a stage"
            )
        quantized, keeps_attention = model.quantization
        weights = self.weights or quantized
        activations = self.activations or model.precision
        sixteen = model.precision if Precision(model.precision).bytes == 2 else "bf16"
        hidden = self.hidden or (activations if Precision(activations).bytes >= 2 else sixteen)
        return self.model_copy(
            update={
                "pipeline": pipeline,
                "expert": expert,
                "weights": weights,
                "attention": self.attention
                or (model.precision if keeps_attention and not self.weights else weights),
                "activations": activations,
                "hidden": hidden,
                "dispatch": self.dispatch or hidden,
                "kv": self.kv or model.precision,
                "head": self.head or model.precision,
            }
        )

    @property
    def stage_size(self) -> int:
        """Chips of a stage."""
        return self.tensor * self.attention_data

    # What follows is for resolved plans.

    @property
    def pipeline_depth(self) -> int:
        """Pipeline stages."""
        return self.pipeline or 1

    @property
    def expert_tensor(self) -> int:
        """Chips that share one shard of the experts."""
        return self.stage_size // (self.expert or 1)

    def given(self, what: What) -> str:
        """The precision of one of them."""
        precision: str | None = getattr(self, what)
        assert precision is not None, "the plan is not resolved"
        return precision

    def width(self, what: What) -> float:
        """Bytes of one number of it."""
        return Precision(self.given(what)).bytes

    def ranked(self, tokens: int) -> int:
        """Return the tokens, or sequences, of the fullest rank of attention data parallelism."""
        return -(-tokens // self.attention_data)

    def precision(self, block: Block) -> str:
        """The precision of a block's weights."""
        if block.kind in ("embedding", "head"):
            return self.given("head")
        return self.given("attention" if block.kind == "attention" else "weights")


@dataclass(frozen=True, slots=True)
class PlanSearch:
    """How a plan was found by `search: capacity`: the plans that fit, those that were simulated, and the load that it takes."""

    considered: int
    simulated: int
    load: float  # request/s, or users of a closed loop


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive blocks, from `first` to `last`, and what the fullest chip of the stage holds of them.

    A token's KV cache takes `kv_per_token` for ever and `windowed_per_token` until the window has passed it.
    """

    first: int
    last: int
    weights: Bytes
    kv_per_token: Bytes
    windowed_per_token: Bytes

    def kv(self, tokens: float, window: int | None) -> Bytes:
        """KV cache of one sequence."""
        return tokens * self.kv_per_token + min(tokens, window or tokens) * self.windowed_per_token


@dataclass(frozen=True)
class Layout:
    """One replica: a model laid on chips by a plan whose defaults are filled in.  Stages are cut by the planner."""

    model: Model
    chip: Chip
    topology: Topology
    engine: Engine
    plan: Plan
    token_budget: int
    memory_fraction: float
    bounds: tuple[int, ...] = ()  # the first block of each stage

    def stage(self, first: int, last: int) -> Stage:
        """The stage that blocks first..last would make."""
        plan, blocks = self.plan, self.model.blocks[first : last + 1]
        weights = sum(self.weights(block) for block in blocks)
        if self.model.tied and len(blocks) == len(self.model.blocks):  # one table serves both ends
            weights -= self.weights(blocks[0])
        attentions = [block.attention for block in blocks if block.attention]
        whole = sum(self.kv_width(a) for a in attentions if not a.window)
        windowed = sum(self.kv_width(a) for a in attentions if a.window)
        return Stage(first, last, weights, whole * plan.width("kv"), windowed * plan.width("kv"))

    def kv_width(self, attention: Attention) -> float:
        """Numbers that a token adds to the cache of one layer, on the fullest chip."""
        plan = self.plan
        return attention.kv_width(plan.tensor) / self.kv_parts(attention)

    def kv_parts(self, attention: Attention) -> int:
        """Over how many chips the sequence of one KV head, or of a latent, is split."""
        if self.plan.kv_split == "heads":
            return 1
        return max(1, self.plan.tensor // (1 if attention.latent else attention.kv_heads))

    def weights(self, block: Block) -> Bytes:
        """Bytes of a block on the fullest chip of its stage."""
        plan = self.plan
        return (
            block.parameters(plan.tensor, plan.expert or 1, plan.expert_tensor)
            * Precision(plan.precision(block)).bytes
        )

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        ends = (*self.bounds[1:], len(self.model.blocks))
        return tuple(
            self.stage(first, end - 1) for first, end in zip(self.bounds, ends, strict=True)
        )

    @property
    def weights_memory(self) -> Memory:
        """Where the weights are read from, in a plan that names it."""
        assert self.plan.weights_in
        return self.chip.memory[self.plan.weights_in]

    @property
    def kv_memory(self) -> Memory:
        """Where the KV cache and the activations are, in a plan that names it."""
        assert self.plan.kv_in
        return self.chip.memory[self.plan.kv_in]

    @property
    def apart(self) -> bool:
        """Whether weights and KV cache live in different memories."""
        return self.plan.weights_in != self.plan.kv_in

    @property
    def usable(self) -> Bytes:
        """Bytes of the KV cache's memory that the engine may fill."""
        return self.kv_memory.capacity * self.memory_fraction

    @cached_property
    def activations(self) -> Bytes:
        """Activations of the largest step: a rank's share of `token_budget` through the widest matrix multiply, in and out."""
        plan = self.plan
        widest = max(
            sum(matrix.share(plan.tensor))
            for block in dict.fromkeys(self.model.blocks)
            for matrix in block.matrices
        )
        return (
            math.ceil(self.token_budget / plan.attention_data) * widest * plan.width("activations")
        )

    def room(self, stage: Stage) -> Bytes:
        """Bytes that a chip of the stage has left for KV cache; negative where its weights do not fit."""
        if self.apart and stage.weights > self.weights_memory.capacity:
            return self.weights_memory.capacity - stage.weights
        return (
            self.usable
            - self.engine.reserve
            - self.activations
            - (0.0 if self.apart else stage.weights)
        )


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Whether a layout fits, and what its fullest chip holds, one request of `request_tokens` counted in."""

    fits: bool
    weights: Bytes
    kv: Bytes
    activations: Bytes
    reserve: Bytes
    capacity: Bytes
    kv_tokens: (
        int  # that the fullest stage has room for, over all sequences, before any window is full
    )

    apart: bool = False  # weights live in another memory than the one whose capacity this is

    @property
    def needed(self) -> Bytes:
        return (0.0 if self.apart else self.weights) + self.kv + self.activations + self.reserve


def sequences(layout: Layout, tokens: int) -> tuple[int, int]:
    """How many sequences of `tokens` fit: by the fullest stage, and if all the chips' memory were one."""
    plan, window = layout.plan, layout.model.window
    each = [(layout.room(stage), stage.kv(tokens, window)) for stage in layout.stages]
    fullest = min((max(0, math.floor(room / kv)) for room, kv in each if kv), default=0)
    together = sum(room for room, _ in each) / sum(kv for _, kv in each)
    return plan.attention_data * fullest, max(0, math.floor(plan.attention_data * together))


def weights_only_chips(layout: Layout) -> int:
    """How many chips the weights would fill to the brim if they could be dealt out by the byte: no plan needs fewer."""
    plan = layout.plan
    nbytes = sum(
        block.parameters() * Precision(plan.precision(block)).bytes for block in layout.model.blocks
    )
    return math.ceil(nbytes / layout.weights_memory.capacity)


def most_kv_tokens(layout: Layout) -> int:
    """Return the tokens of KV cache that fill the fullest chip's memory beside its weights, whatever the engine keeps for itself.

    More is impossible.  A server may have more than `fit` has: `memory_fraction` and `reserve` are estimates.
    """
    full = layout.kv_memory.capacity
    rooms = [
        (full - (0.0 if layout.apart else stage.weights), stage.kv(1, None))
        for stage in layout.stages
    ]
    return layout.plan.attention_data * max(
        0, min((math.floor(room / kv) for room, kv in rooms if kv), default=0)
    )


def fit(layout: Layout, request_tokens: float) -> MemoryFit:
    """Whether every chip holds its weights, activations, reserve and the KV cache of one request."""
    stages, window = layout.stages, layout.model.window
    full = min(stages, key=lambda stage: layout.room(stage) - stage.kv(request_tokens, window))
    rooms = [(layout.room(stage), stage.kv(1, None)) for stage in stages]
    tokens = min((math.floor(room / kv) for room, kv in rooms if kv), default=0)
    return MemoryFit(
        fits=all(layout.room(stage) >= stage.kv(request_tokens, window) for stage in stages),
        weights=full.weights,
        kv=full.kv(request_tokens, window),
        activations=layout.activations,
        reserve=layout.engine.reserve,
        capacity=layout.usable,
        kv_tokens=max(0, tokens) * layout.plan.attention_data,
        apart=layout.apart,
    )


def _listed(values: tuple[object, ...]) -> str:
    return f"[{brief(', '.join(map(str, values)))}]"


def _auto(given: object) -> object:
    if isinstance(given, str) and given != "auto":
        raise PydanticCustomError(
            "quantity", "{reason}", {"reason": f"'{given}' is not a plan; write auto, or a mapping"}
        )
    return {"search": "speed"} if given == "auto" else given


PlanField = Annotated[Plan, Shorthand(_auto, {"const": "auto"})]
