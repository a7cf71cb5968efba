"""The plan of a system: degrees of parallelism and precisions, as written and as resolved."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sim.hardware.chip import Precision
from sim.inputs.errors import UserError, error_at_path
from sim.inputs.fields import Shorthand
from sim.inputs.values import Value
from sim.model.blocks import Block, Matrix, NumberFormat
from sim.model.quantization import FP8_BLOCKS, MXFP4, NVFP4
from sim.model.transformer import Model
from sim.units import Count, brief

# A replica takes 5 to 160 kB of memory, because its queue and pipeline are simulated.
MOST_REPLICAS = 10_000
PrecisionField = Annotated[
    Precision,
    Field(strict=False),
    WithJsonSchema({"type": "string", "enum": [precision.value for precision in Precision]}),
]
# Formats in which each block of numbers has a scale.
SCALED_FORMATS = {"fp8-block": FP8_BLOCKS, "mxfp4": MXFP4, "nvfp4": NVFP4}


class WeightFormat(StrEnum):
    """A format in which a plan stores weights: a precision, or numbers with block scales.

    A block has one scale: 128 x 128 numbers (`fp8-block`), 32 (`mxfp4`) or 16 (`nvfp4`).
    Left out: scales of the other formats.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    FP8_BLOCK = "fp8-block"
    INT8 = "int8"
    FP4 = "fp4"
    INT4 = "int4"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"

    @property
    def stored(self) -> NumberFormat:
        """The precision of a number, and its bits with its part of the scale."""
        if self.value in SCALED_FORMATS:
            return SCALED_FORMATS[self.value]
        return NumberFormat(self.value, 8 * Precision(self.value).bytes)


def format_name(stored: NumberFormat) -> str:
    """Return the name of a format, such as nvfp4; of one without a name its precision."""
    return next((name.value for name in WeightFormat if name.stored == stored), stored.precision)


WeightFormatField = Annotated[
    WeightFormat,
    Field(strict=False),
    WithJsonSchema({"type": "string", "enum": [name.value for name in WeightFormat]}),
]
DEGREES = ("tensor", "attention_data", "expert", "pipeline", "replicas")


class PlanError(UserError):
    """A model that does not fit the chips with its plan."""


class Plan(Value):
    """Degrees of parallelism and precisions.

    `tensor` x `attention_data` chips make a stage. Routed experts are dealt to `expert` shards of
    the stage. The chips of a shard split each of its experts.
    Hidden states have 16 bits also if `activations` are narrower: INT8, FP8 and FP4 are formats of
    a multiply's operands, and sums need more. Results of experts come back as `hidden`.
    Latent attention counts as one KV head. With `kv_split: sequence` attention's results need one
    more all-reduce.

    With `search: capacity` plans are estimated first, and the few best simulated. Each precision of
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
    weights: WeightFormatField | None = Field(
        default=None,
        description="Format of all weights but embedding and head; only fp8-block, mxfp4 and nvfp4 "
        "have scales. Default: the checkpoint's.",
    )
    attention: WeightFormatField | None = Field(
        default=None,
        description="Format of attention's weights; default: that of `weights`, or as the "
        "model's config stores them.",
    )
    activations: PrecisionField | None = Field(
        default=None,
        description="Precision of what is multiplied by weights; default: that of the model's "
        "checkpoint.",
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
        "of the model's checkpoint.",
    )
    head: WeightFormatField | None = Field(
        default=None,
        description="Format of embedding and output head; default: as the config stores them, "
        "32 bits with `weights` as 16.",
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
        """Check a list here, because an error of the union would name only single precisions."""
        if isinstance(kv, tuple) and not (kv and all(name in tuple(Precision) for name in kv)):
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
        extra = [
            key
            for key in degrees
            if key in self.model_fields_set and getattr(self, key) is not None
        ]
        if extra:
            value = getattr(self, extra[0])
            reason = f"got {value}; expected no degrees with search: capacity, which finds them"
            raise error_at_path((extra[0],), value, f"{reason}; try leaving {', '.join(extra)} out")
        return self

    @property
    def stage_size(self) -> int:
        """Chips of a stage."""
        return self.tensor * self.attention_data

    def resolved(self, chips: int, model: Model) -> "ResolvedPlan":
        """Return the plan with its defaults filled in for `chips` chips.

        Raises: ValueError if the degrees do not make `chips`, or split what the model lacks.
        """
        pipeline = self._stages(chips, model)
        routed = any(block.experts for block in model.blocks)
        expert = self.expert or (self.stage_size if routed and self.attention_data > 1 else 1)
        if expert > 1 and not routed:
            reason = f"got {expert}; expected 1, since {model.id} has no experts"
            raise error_at_path(("plan", "expert"), expert, f"{reason}; try leaving expert out")
        if self.stage_size % expert:
            reason = f"got {expert}; expected a divisor of the {self.stage_size} chips of a stage"
            raise error_at_path(("plan", "expert"), expert, f"{reason}; try {self.stage_size}")
        own, checkpoint = Precision(model.precision), model.quantization
        sixteen = own if own.bytes == 2 else Precision.BF16
        head = self.head
        if own.bytes > sixteen.bytes and self.weights and self.weights != own.value:
            # Engines serve a file of 32 bits at 16, unless they are told to keep 32.
            own, head = sixteen, self.head or WeightFormat(sixteen)
        activations = self.activations or Precision(checkpoint.activations or own)
        hidden = self.hidden or (activations if activations.bytes >= 2 else sixteen)
        chosen = chosen_weights(self.weights, self.attention or self.weights, head)
        stored = {
            part: Precision((chosen_format or model.main_format(part)).precision)
            for part, chosen_format in chosen._asdict().items()
        }
        assert not isinstance(self.kv, tuple), "a search takes one precision at a time"
        return ResolvedPlan(
            tensor=self.tensor,
            attention_data=self.attention_data,
            expert=expert,
            pipeline=pipeline,
            replicas=self.replicas,
            weights=stored["mlp"],
            attention=stored["attention"],
            activations=activations,
            hidden=hidden,
            dispatch=self.dispatch or hidden,
            kv=Precision(self.kv or checkpoint.kv or own),  # `candidate_plans` copies names
            head=stored["head"],
            chosen=chosen,
            balance=self.balance,
            slots=self.slots,
            kv_split=self.kv_split,
            weights_in=self.weights_in,
            kv_in=self.kv_in,
        )

    def _stages(self, chips: int, model: Model) -> int:
        """Return the pipeline stages that make `chips` chips."""
        size = self.stage_size * self.replicas
        pipeline = self.pipeline or max(1, chips // size)
        if size * pipeline != chips:
            others = {"attention_data": self.attention_data, "pipeline": pipeline}
            others["replicas"] = self.replicas
            degrees = f"tensor {self.tensor}" + "".join(
                f" x {name} {n}" for name, n in others.items() if n > 1 or name == "pipeline"
            )
            hint = f"try chips: {size * pipeline}"
            if self.pipeline and chips % size == 0:
                hint = f"leave pipeline out for {chips // size}"
            reason = f"got {degrees} = {size * pipeline} chips; expected {chips}; {hint}"
            raise error_at_path(("plan",), self, reason)
        if pipeline > len(model.blocks):
            reason = (
                f"got pipeline {pipeline}; expected at most {len(model.blocks)}, since {model.id} "
                f"has only {len(model.blocks)} blocks to cut between; try a larger tensor"
            )
            raise error_at_path(("plan",), self, reason)
        return pipeline


class ChosenWeights(NamedTuple):
    """The formats of weights that a plan chooses; None: as the checkpoint stores them."""

    mlp: NumberFormat | None
    attention: NumberFormat | None
    head: NumberFormat | None


def chosen_weights(
    mlp: WeightFormat | None, attention: WeightFormat | None, head: WeightFormat | None
) -> ChosenWeights:
    """Return the formats that a plan's keys name; None stays None."""
    return ChosenWeights(
        mlp=mlp.stored if mlp else None,
        attention=attention.stored if attention else None,
        head=head.stored if head else None,
    )


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """A plan for a number of chips: every degree and every precision has a value.

    The fields are the keys of `Plan`.
    weights, attention, head: precisions of most of the MLPs', attention's and tables' weights.
    chosen: the formats of weights that the plan chooses; `stored` has that of each matrix.
    slots: None for the default, which depends on the engine.
    weights_in, kv_in: None until the memories are chosen.
    """

    tensor: int
    attention_data: int
    expert: int
    pipeline: int
    replicas: int
    weights: Precision
    attention: Precision
    activations: Precision
    hidden: Precision
    dispatch: Precision
    kv: Precision
    head: Precision
    chosen: ChosenWeights
    balance: Literal["time", "memory"]
    slots: int | None
    kv_split: Literal["heads", "sequence"]
    weights_in: str | None
    kv_in: str | None

    @property
    def format_names(self) -> dict[str, str]:
        """The formats of `weights`, `attention` and `head`; where none is chosen, precisions."""
        parts = {"weights": self.weights, "attention": self.attention, "head": self.head}
        return {
            part: format_name(chosen) if chosen else precision.value
            for (part, precision), chosen in zip(parts.items(), self.chosen, strict=True)
        }

    @property
    def stage_size(self) -> int:
        """Chips of a stage."""
        return self.tensor * self.attention_data

    @property
    def replica_size(self) -> int:
        """Chips of a replica."""
        return self.stage_size * self.pipeline

    @property
    def chips(self) -> int:
        """Chips of all replicas."""
        return self.replica_size * self.replicas

    @property
    def expert_tensor(self) -> int:
        """Chips that share one shard of the experts."""
        return self.stage_size // self.expert

    def ranked(self, tokens: int) -> int:
        """Return the tokens, or sequences, of the fullest rank of attention data parallelism."""
        return -(-tokens // self.attention_data)

    def stored(self, block: Block, matrix: Matrix) -> NumberFormat:
        """Return the format of a matrix of a block: the plan's, or else the checkpoint's."""
        chosen = self.chosen.mlp
        if block.kind in ("attention", "recurrent"):
            chosen = self.chosen.attention
        elif block.kind != "mlp":
            chosen = self.chosen.head
        return chosen or matrix.stored

    def vector_bytes(self, block: Block) -> float:
        """Return the bytes of each number of a block's norms and biases."""
        matrices = block.matrices or (block.experts.matrices if block.experts else ())
        return Precision(self.stored(block, matrices[0]).precision).bytes


def _listed(values: tuple[object, ...]) -> str:
    return f"[{brief(', '.join(map(str, values)))}]"


def _auto(value: object) -> object:
    if isinstance(value, str) and value != "auto":
        raise PydanticCustomError(
            "quantity",
            "{reason}",
            {"reason": f"got '{value}'; expected auto or a mapping; try plan: auto"},
        )
    return {"search": "speed"} if value == "auto" else value


PlanField = Annotated[Plan, Shorthand(_auto, {"const": "auto"})]
