"""Kernels of an engine as they were timed alone: scenarios/kernels.

    >>> kernel = MultiplyKernel(fixed="3 us", memory_efficiency=0.8, compute_efficiency=0.7)
    >>> kernel.compute_efficiency
    0.7

Chips of one generation run the same kernels, so a file has numbers by generation and precision.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from sim.inputs.fields import FromCatalogue
from sim.inputs.values import Sourced, Value
from sim.units import Count, Fraction, Seconds

SIXTEEN = "bf16"  # every generation has this kernel
FP8_BLOCK = "fp8_block"  # scales of 128 x 128 weights, and of 128 inputs of a token
# A kernel that a generation lacks, and the kernel that stands in for it.  Assumed.
STAND_INS = {
    FP8_BLOCK: "fp8",
    "fp8": SIXTEEN,
    "int8": SIXTEEN,
    "fp4": "fp8",
    "fp4_fp8": "fp8",
    "fp4_bf16": SIXTEEN,
    "fp8_products": "fp8",
}
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# A share of the 16-bit peak. Products of 8 bits may reach twice the peak.
PeakShare = Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)]


class MultiplyKernel(Value):
    """The losses of one kind of multiply.

    Time: fixed + longer + exposed x shorter, of reading and computing.
    Reading: max(bytes / (memory_efficiency x bandwidth), inputs x per_input).
    Computing: FLOPs / (compute_efficiency x peak).
    `exposed` is one share for all multiplies of a file.

    A tile of outputs walks all inputs, one after the other. A narrow matrix has few tiles, so this
    walk takes longer than its bytes.
    Left out: the time of the last, partly filled wave of tiles.
    """

    fixed: Seconds = Field(
        description="Time of a multiply of any size: start, and quantizing of its inputs [s]."
    )
    memory_efficiency: Fraction = Field(description="Share of the memory bandwidth, 0 to 1.")
    compute_efficiency: Fraction = Field(description="Share of the peak rate, 0 to 1.")
    per_input: Seconds = Field(
        default=0.0, description="Time in which a tile walks one input (row of the weights) [s]."
    )
    in_steps: bool = Field(
        default=False,
        description="Whether both shares hold for whole steps; the engine's factors and "
        "`exposed` then do not count.",
    )


class ExpertKernel(Value):
    """The losses of one kernel for both multiplies of a layer's routed experts.

    Time: fixed + max(bytes / (memory_efficiency x bandwidth), FLOPs / (compute_efficiency x peak))
    + (passes x own + passes_of_all x all) x 16-bit hidden state / bandwidth.
    own: pairs of a token and an expert on the chip. all: pairs in the step, if the chip has all
    tokens.
    Before the multiplies hidden states are sorted by expert, and behind them the outputs of a
    token's experts are summed. Such kernels only move bytes. Tensor parallelism does not share
    them: each chip has outputs of the whole hidden size.
    FLOPs are counted for `more_tokens` more tokens of each expert that is reached: a tile is
    computed as a whole, and a popular expert makes others wait.
    Weights are padded with zeros to whole tiles, and the zeros are read and computed as well. On 8
    chips gpt-oss has 360 inner columns for each chip, and a kernel with tiles of 256 takes 512.
    Left out: the memory that padding takes.
    """

    fixed: Seconds = Field(
        description="Fixed time: sorting tokens by expert, start, and quantizing [s]."
    )
    memory_efficiency: Fraction = Field(description="Share of the memory bandwidth, 0 to 1.")
    compute_efficiency: Fraction = Field(description="Share of the peak rate, 0 to 1.")
    more_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="Tokens that partly filled tiles compute for each expert, in addition to its "
        "own.",
    )
    passes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="How often the hidden state of each token and own expert is moved, beside the "
        "multiplies.",
    )
    passes_of_all: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="How often the hidden state of each token and expert is moved, also for other "
        "chips' experts.",
    )
    hidden_tile: Count = Field(
        default=1, description="The hidden size is padded to a multiple of this."
    )
    inner_tile: Count = Field(
        default=1,
        description="The inner columns of an expert on a chip are padded to a multiple of this.",
    )

    def padding(self, inner: int, hidden: int) -> float:
        """Return how many times the weights grow by padding."""
        grown = -(-inner // self.inner_tile) * self.inner_tile
        grown *= -(-hidden // self.hidden_tile) * self.hidden_tile
        return grown / (inner * hidden)


class DecodeKernel(Value):
    """The losses of attention of decodes.

    Time: fixed + max(bytes / (memory_efficiency x bandwidth), FLOPs / (compute_efficiency x peak)).
    """

    fixed: Seconds = Field(description="Fixed time, for any context [s].")
    memory_efficiency: Fraction = Field(
        description="Share of the memory bandwidth at which the KV cache is read, 0 to 1."
    )
    compute_efficiency: PeakShare | None = Field(
        default=None,
        description="Share of the 16-bit peak rate, up to 2 in 8 bits; default: that of prompts.",
    )


class PrefillKernel(Value):
    """The losses of attention of prompts.

    Time: fixed + FLOPs / (compute_efficiency x peak). FLOPs are counted for `more_positions` more
    positions of each token, because tiles are computed as wholes and have a start and an end.
    So a long prompt comes nearer to `compute_efficiency` than a short one.
    """

    fixed: Seconds = Field(description="Fixed time, for any prompt [s].")
    compute_efficiency: PeakShare = Field(
        description="Share of the 16-bit peak rate that long prompts reach, up to 2 in 8 bits."
    )
    more_positions: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="Positions that are computed for each token, in addition to those that it "
        "attends to.",
    )


class AttentionKernels(Value):
    """The attention of one generation of chips."""

    decode: dict[str, DecodeKernel] = Field(
        description="Kernels of decodes by precision of the KV cache: bf16, fp8."
    )
    prefill: dict[str, PrefillKernel] = Field(
        description="Kernels of prompts by precision of the KV cache: bf16, fp8, fp8_products "
        "(8-bit products too)."
    )

    @model_validator(mode="after")
    def _sixteen(self) -> Self:
        for name in ("decode", "prefill"):
            if SIXTEEN not in getattr(self, name):
                raise ValueError(f"{name}: expected at least {SIXTEEN}")
        return self


class CollectiveKernel(Value):
    """The latency of the software before each phase of a collective."""

    latency: Seconds = Field(description="Latency of a phase [s].")
    latency_per_chip: Seconds = Field(description="Latency for each chip of the group [s].")


class NamedKernel(NamedTuple):
    """A kernel, and its key in the file, such as 'multiplies.hopper.fp8'.

    fixed: its fixed time, or that of the 16-bit kernel; fixed_key: of the kernel that has it.
    exposed: the file's; 0 if the kernel's shares hold for whole steps.
    """

    key: str
    kernel: MultiplyKernel
    fixed: Seconds
    fixed_key: str
    exposed: float


class Kernels(Sourced):
    """The kernels of one engine or library, by generation of the chip, and by precision.

    A generation without experts, attention or collectives takes those of `otherwise`.
    """

    otherwise: str = Field(
        description="Generation whose numbers count on a chip of any other one; assumed there."
    )
    exposed: Share = Field(
        default=0.0,
        description="Share of the shorter of a multiply's reading and computing that the longer "
        "one does not hide, 0 to 1.",
    )
    multiplies: dict[str, dict[str, MultiplyKernel]] = Field(
        default={},
        description="Kernels by generation and precision: bf16, fp8, fp8_block (with block "
        "scales), int8, fp4.",
    )
    experts: dict[str, dict[str, ExpertKernel]] = Field(
        default={},
        description="Kernels of routed experts by generation and precision: also fp4_fp8, "
        "fp4_bf16 (4-bit weights by wider activations).",
    )
    attention: dict[str, AttentionKernels] = Field(
        default={}, description="Kernels of attention by generation."
    )
    latent_attention: dict[str, AttentionKernels] = Field(
        default={},
        description="Kernels of latent attention by generation; default: those of attention.",
    )
    collectives: dict[str, CollectiveKernel] = Field(
        default={}, description="Latencies of collectives by generation."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("multiplies", "experts", "attention", "latent_attention", "collectives"):
            table: Mapping[str, object] = getattr(self, name)
            if table and self.otherwise not in table:
                raise ValueError(
                    f"otherwise: got {self.otherwise}; expected one of {', '.join(table)}, which"
                    f" have {name}"
                )
        for generation, kernels in self.multiplies.items():
            if SIXTEEN not in kernels:
                raise ValueError(
                    f"multiplies.{generation}: got {', '.join(kernels) or 'nothing'};"
                    f" expected at least {SIXTEEN}"
                )
        return self

    def on(self, table: Mapping[str, object], generation: str) -> str:
        """Return the generation whose entry of a table counts on a chip; '' for an empty table."""
        return generation if generation in table else self.otherwise if table else ""

    def expert(self, generation: str, precision: str) -> tuple[str, ExpertKernel] | None:
        """Return the experts' kernel with its key, or the one that stands in; None without any."""
        generation = self.on(self.experts, generation)
        known = self.experts.get(generation, {})
        while precision not in known and precision in STAND_INS:
            precision = STAND_INS[precision]
        if precision not in known:
            return None
        return f"experts.{generation}.{precision}", known[precision]

    def attending(self, generation: str, latent: bool) -> tuple[str, AttentionKernels] | None:
        """Return the attention of a generation with its key; None if the file has none."""
        name = "latent_attention" if latent and self.latent_attention else "attention"
        table: dict[str, AttentionKernels] = getattr(self, name)
        generation = self.on(table, generation)
        return (f"{name}.{generation}", table[generation]) if generation else None

    def multiply(self, generation: str, precision: str, fused: bool = False) -> NamedKernel | None:
        """Return the kernel for a generation and a precision, or the one that stands in for it.

        fused: another kernel quantizes the inputs, so the fixed time is that of 16 bits.
        None: the file has no multiplies.
        """
        if not self.multiplies:
            return None
        generation = self.on(self.multiplies, generation)
        known = self.multiplies[generation]
        while precision not in known:
            precision = STAND_INS.get(precision, SIXTEEN)
        timed = SIXTEEN if fused else precision
        keys = [f"multiplies.{generation}.{name}" for name in (precision, timed)]
        exposed = 0.0 if known[precision].in_steps else self.exposed
        return NamedKernel(keys[0], known[precision], known[timed].fixed, keys[1], exposed)


def expert_precision(weights: str, bits: float, activations: str) -> str:
    """Return the precision by which a file has the kernel of routed experts.

    bits: of a weight with its scales.
    """
    if weights not in ("fp4", "int4"):
        return kernel_precision(weights, bits, activations)
    if activations in ("fp4", "int4"):
        return "fp4"
    return "fp4_fp8" if activations in ("fp8", "int8") else "fp4_bf16"


def kernel_precision(weights: str, bits: float, activations: str) -> str:
    """Return the precision by which a file has the kernel of a multiply.

    bits: of a weight with its scales. With 16-bit activations the weights are widened first.
    """
    if activations in ("fp32", "bf16", "fp16"):
        return SIXTEEN
    if weights == "fp8" and bits > 8:
        return FP8_BLOCK
    return {"int4": "int8"}.get(weights, weights)


KernelsField = Annotated[Kernels, FromCatalogue("kernels", Kernels)]
