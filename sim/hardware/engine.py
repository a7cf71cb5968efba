"""Engines: what software loses on a chip, in a few named numbers fitted to measured points.

A chip's file has datasheet facts, and an engine's file has calibration. So a result can state
which part comes from which.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sim.hardware.chip import Chip, Precision
from sim.hardware.kernels import (
    FP8_BLOCK,
    Kernels,
    KernelsField,
    NamedKernel,
    Share,
    kernel_precision,
)
from sim.hardware.topology import AllReduce
from sim.inputs.errors import error_at_path
from sim.inputs.fields import FromCatalogue
from sim.inputs.values import Sourced, Value
from sim.units import Bytes, Count, Fraction, Seconds, Tokens

SPEED_OF_LIGHT = "speed of light, no engine known"  # no number of the engine was fitted to anything
EXTRAPOLATED = "extrapolated"  # the engine was measured on other chips
NetworkMode = Literal["dynamic", "scheduled"]
Sigma = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# A step may reach somewhat more than kernels that were timed alone: one starts while another ends.
Efficiency = Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)]

KERNEL_KEYS = ("kernels", "block_kernels", "dispatch_kernels")
# Numbers that an engine's file has itself, or leaves to this part of its kernels' file.
PAIRS = {
    "attention": ("attention_memory_efficiency", "attention_compute_efficiency"),
    "collectives": ("collective_latency", "collective_latency_per_chip"),
}


class Launch(Value):
    """The time in which the host prepares a step and launches the kernels of its layers."""

    decode: Seconds = Field(description="Time of a layer in a step with decodes only [s].")
    prefill: Seconds = Field(description="Time of a layer in a step with a prompt [s].")
    sequence: Seconds = Field(
        default=0.0, description="Time for each decoding sequence of the fullest rank [s]."
    )
    graphs: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Tokens up to which steps run from CUDA graphs, for which the host needs no "
        "time.",
    )


class Host(Value):
    """A host on which an engine was measured, and the client that sent the requests.

    One process takes requests in and passes tokens on. Its time for a request passes before the
    engine has the request, and delays others.
    """

    request: Seconds = Field(
        default=0.0,
        description="Time that client, HTTP and tokenizer add to a TTFT beyond the busy times [s].",
    )
    prompt_token: Seconds = Field(
        default=0.0,
        description="Time that client, HTTP and tokenizer add for each prompt token beyond the "
        "busy times [s].",
    )
    layer_launch: Launch | None = Field(
        default=None, description="In place of the engine's `layer_launch`; default: the engine's."
    )
    block_kernels: KernelsField | None = Field(
        default=None,
        description="In place of the engine's `block_kernels`; default: the engine's.",
    )
    busy_request: Seconds = Field(
        default=0.0, description="Time that a request keeps the front end busy [s]."
    )
    busy_prompt_token: Seconds = Field(
        default=0.0, description="Time that each prompt token keeps the front end busy [s]."
    )
    busy_token: Seconds = Field(
        default=0.0, description="Time that each token of an answer keeps the front end busy [s]."
    )


class SmallChip(Value):
    """The default limits of an engine on chips with little memory."""

    below: Bytes = Field(description="Memory of a chip below which these limits hold [B].")
    max_sequences: Count = Field(description="Most running sequences on such chips.")
    token_budget: Tokens = Field(
        description="Most tokens of a step of a micro-batch on such chips."
    )


class EngineFit(Value):
    """The numbers that `sramsim calibrate` may change, with their bounds, and its last result.

    The points are this engine's points in the catalogue's measurements that may be fitted to, and
    those of the engines in `points_of`, as if this engine had run them.
    """

    bounds: dict[str, tuple[str | float, str | float]] = Field(
        description="Lowest and highest value of each number; a key 'a, b' stands for two equal "
        "numbers."
    )
    points_of: tuple[str, ...] = Field(
        default=(), description="Other engines whose points of the catalogue count, too."
    )
    found: str = Field(default="", description="Result of the last calibration, in words.")


class EngineSpeed(Sourced):
    """The losses of an inference engine: efficiencies, overheads and hosts.

    `Engine` has the formulas.
    """

    kernels: KernelsField | None = Field(
        default=None,
        description="Multiplies as they were timed alone; default: a multiply has no fixed time.",
    )
    block_kernels: KernelsField | None = Field(
        default=None,
        description="Kernels of experts and latent attention, timed alone; default of each: that "
        "of `kernels`.",
    )
    quantizing: Literal["fused", "blocks-apart", "apart"] = Field(
        default="apart",
        description="Kernel that quantizes inputs: the one before, one of their own, or their own "
        "for scales of blocks.",
    )
    memory_efficiency: dict[str, Efficiency] = Field(
        description="Share of the memory bandwidth that multiplies reach, by bits of the weights; "
        "with `kernels`, of what their kernel reaches."
    )
    compute_efficiency: dict[str, Efficiency] = Field(
        description="Share of the peak rate that multiplies reach, by bits of the weights; "
        "with `kernels`, of what their kernel reaches."
    )
    exposed: Share | None = Field(
        default=None,
        description="Share of a multiply's shorter time that the longer one does not hide; "
        "default: that of `kernels`, or 0.",
    )
    attention_memory_efficiency: Fraction | None = Field(
        default=None,
        description="Share of the memory bandwidth that attention reaches, 0 to 1, except with "
        "latent kernels; default: that of `kernels`.",
    )
    attention_compute_efficiency: Fraction | None = Field(
        default=None,
        description="Share of the peak rate that attention reaches, 0 to 1, except with latent "
        "kernels; default: that of `kernels`.",
    )
    elementwise_efficiency: Fraction | None = Field(
        default=None,
        description="Share of the memory bandwidth that norms and activation functions reach, 0 to "
        "1; default: they take no time.",
    )
    layer_overhead: Seconds = Field(description="Extra time of each layer in a step [s].")
    step_overhead: Seconds = Field(description="Extra time of each step [s].")
    sequence_overhead: Seconds = Field(
        description="Extra time of a step for each sequence of the fullest attention rank [s]."
    )
    draft_sequence_overhead: Seconds = Field(
        default=0.0,
        description="With speculation, extra time of each draft for each sequence of the fullest "
        "attention rank [s].",
    )
    collective_latency: Seconds | None = Field(
        default=None,
        description="Software's latency of each phase of a collective [s]; default: that of "
        "`kernels`.",
    )
    collective_latency_per_chip: Seconds | None = Field(
        default=None,
        description="Software's latency of each phase for each chip of the group [s]; default: "
        "that of `kernels`.",
    )
    dispatch_kernels: KernelsField | None = Field(
        default=None,
        description="Timed collectives that take tokens to their experts and back; default: "
        "those of other collectives.",
    )
    collective_efficiency: Fraction = Field(
        description="Share of the link's bandwidth that collectives reach, 0 to 1."
    )
    collectives: tuple[AllReduce, ...] = Field(
        default=(),
        description="All-reduce algorithms of the engine, of which the fastest is used; empty: "
        "all of the topology.",
    )
    handover: Seconds = Field(
        default=0.0,
        description="Default of `transfer.handover` where this engine decodes: time between a KV "
        "transfer and the first decode step [s].",
    )
    overlap: Share = Field(
        default=0.0,
        description="Share of dispatch and combine, or of an FFN pool's collectives, that runs "
        "while another micro-batch computes, 0 to 1.",
    )
    hosts: Mapping[str, Host] = Field(
        default={},
        description="Hosts on which the engine was measured, and their clients; for validations "
        "only.",
    )
    memory_fraction: Fraction = Field(
        description="Share of a chip's memory that the engine uses, 0 to 1."
    )
    reserve: Bytes = Field(description="Memory of a chip that the engine takes itself [B].")
    jitter: Sigma | None = Field(
        default=None,
        description="Sigma of the lognormal factor, of mean 1, on computing times at chip "
        "fidelity; default: 0.",
    )
    network: NetworkMode = Field(
        default="dynamic",
        description="At chip fidelity: transfers wait for each other, or start at times that a "
        "compiler computed.",
    )
    layer_launch: Launch | None = Field(
        default=None,
        description="Time in which the host prepares a step and launches its layers; default: the "
        "host never limits.",
    )

    @model_validator(mode="after")
    def _efficiencies_are_shares(self) -> Self:
        for name in () if self.kernels else ("memory_efficiency", "compute_efficiency"):
            for bits, share in getattr(self, name).items():
                if share > 1:
                    reason = f"got {share:g}; expected at most 1 without kernels"
                    raise error_at_path((name, bits), share, reason)
        return self

    @model_validator(mode="after")
    def _own_or_of_kernels(self) -> Self:
        for part, names in PAIRS.items():
            missing = [name for name in names if getattr(self, name) is None]
            if missing and not (len(missing) == 2 and getattr(self.kernels, part, None)):
                reason = f"got no {missing[0]}; expected both {' and '.join(names)}, or neither "
                raise error_at_path((missing[0],), None, f"{reason}and `kernels` with {part}")
        if (dispatch := self.dispatch_kernels) and not dispatch.collectives:
            reason = f"got {dispatch.id}; expected kernels with collectives; try nccl"
            raise error_at_path(("dispatch_kernels",), dispatch.id, reason)
        return self

    def source_of(self, path: str) -> str | None:
        """Return the source of a number, also of one of the kernels' file; None without one."""
        part, _, rest = path.partition(".")
        kernels: Kernels | None = getattr(self, part) if part in KERNEL_KEYS and rest else None
        return kernels.source_of(rest) if kernels else super().source_of(path)

    def kernel(
        self, chip: Chip, weights: tuple[str, float], activations: str
    ) -> NamedKernel | None:
        """Return the kernel of a multiply on a chip; None if the engine's file names no kernels.

        weights: their precision, and the bits of one with its scales.
        """
        if self.kernels is None:
            return None
        precision = kernel_precision(*weights, activations)
        apart = {"fused": False, "blocks-apart": precision == FP8_BLOCK, "apart": True}
        return self.kernels.multiply(chip.generation, precision, not apart[self.quantizing])

    def kernels_of(self, part: str) -> tuple[str, Kernels | None]:
        """Return the key and the kernels of a part: `experts` or `latent_attention`."""
        key = "block_kernels" if getattr(self.block_kernels, part, None) else "kernels"
        return key, getattr(self, key)

    def efficiencies(self, precision: str, name: str = "") -> tuple[float, float]:
        """Return the compute and the memory efficiency for weights; errors name their format.

        Raises: ValueError if the engine has none.
        """
        bits = f"{8 * Precision(precision).bytes:.0f}"
        has = self.memory_efficiency.keys() & self.compute_efficiency.keys()
        if bits not in has:
            raise ValueError(
                f"engine {self.id}: got {bits}-bit weights ({name or precision}); expected"
                f" {' or '.join(sorted(has, key=int))}, as in its efficiencies; try another format"
            )
        return self.compute_efficiency[bits], self.memory_efficiency[bits]


class Engine(EngineSpeed):
    """One version of an inference engine.

    Time of a multiply: max(compute time / compute_efficiency, read time / memory_efficiency),
    with efficiencies by the bits of the weights, and `exposed` of the shorter time. With `kernels`
    they multiply the kernel's, to at most 1. The kernel adds a fixed time. Attention has its own.
    Time of a collective: for n chips, each phase has a latency of `collective_latency + n *
    collective_latency_per_chip`, and `collective_efficiency` of the link's bandwidth, unless the
    topology's file says what collectives reach.
    Time of a step: the layers, `layers * layer_overhead`, `step_overhead`, and `sequences *
    sequence_overhead` with the sequences of the fullest rank of attention data parallelism.
    Experts: as a multiply, with `moe_layer_overhead` for each of their layers. An engine without
    `moe_memory_efficiency` takes the times of their kernel, if there is one. Then
    `moe_layer_overhead` replaces half of `layer_overhead`. Latent attention has its kernel, too.
    `overlap`: messages of one half of a step (in an FFN pool: of a micro-batch) run while the other
    is computed. It needs two tokens on the fullest rank, and hides at most the computing time.
    Left out: that the halves of a step read the weights twice.
    `tokens_per_beat` b: a prompt enters in chunks of b tokens, and a micro-batch holds at most b
    sequences. As many micro-batches are in flight as the requests need.
    `limits_per: rank` is as in vLLM and TensorRT-LLM, and also holds for a system's own limits.
    A pipeline has one scheduler, as in vLLM.
    Each attention rank has an equal share of a step's tokens, and a prompt is on one rank.
    Left out: sequences that fill the ranks unevenly; their limit is the sum over ranks.
    """

    tokens_per_beat: Tokens | None = Field(
        default=None,
        description="Tokens that a stage of a compiled pipeline takes together; default: no "
        "compiled pipeline.",
    )
    kv_reads: Literal["kv-heads", "query-heads"] = Field(
        default="kv-heads",
        description="Decode reads the KV cache once for each KV head, or for each query head.",
    )
    policy: Literal["continuous", "prefill-first", "static", "ring"] = Field(
        default="continuous",
        description="Default of a system: the rule for the next work of a micro-batch.",
    )
    admission: Literal["reserve", "prompt"] = Field(
        default="reserve",
        description="Default of a system: KV cache reserved on admission, for the whole output or "
        "the prompt.",
    )
    max_sequences: Count | None = Field(
        default=None,
        description="Most running sequences, in all micro-batches; default: 256 in each, "
        "or what fills the pipeline.",
    )
    token_budget: Tokens | None = Field(
        default=None,
        description="Most tokens of a step of a micro-batch, like max_num_batched_tokens; "
        "default: the chip's.",
    )
    small_chip: SmallChip | None = Field(
        default=None, description="Other default limits on chips with little memory; default: none."
    )
    limits_per: Literal["rank", "replica"] = Field(
        default="rank",
        description="Whether both limits hold for each rank of attention data parallelism, or for "
        "the replica.",
    )
    kv_block: Tokens = Field(
        default=16,
        description="With `prefix_caching`, tokens of a block of the KV cache; requests share full "
        "blocks.",
    )
    moe_layer_overhead: Seconds | None = Field(
        default=None, description="Extra time of each layer with experts [s]; default: none."
    )
    moe_memory_efficiency: Fraction | None = Field(
        default=None,
        description="Share of the memory bandwidth that experts' multiplies reach, 0 to 1; "
        "default: that of `kernels`, or `memory_efficiency`.",
    )
    moe_skew: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Exponent s of the experts' popularity, which is proportional to i^-s for "
        "expert i; default: 0.",
    )
    points: tuple[str, ...] = Field(
        default=(),
        description="Chips on which the engine was measured; `sramsim calibrate` adds those of "
        "its points.",
    )
    fit: EngineFit | None = Field(
        default=None, description="Numbers that `sramsim calibrate` may change; default: none."
    )

    def speed_label(self, chip: Chip) -> str | None:
        """Return the label of a speed on this chip; None if the engine was measured on it."""
        if self.source and all(
            text.startswith(("assumed", "by definition")) for text in self.source.values()
        ):
            return SPEED_OF_LIGHT
        return None if chip.id in self.points and not chip.changed else EXTRAPOLATED


EngineField = Annotated[Engine, FromCatalogue("engines", Engine)]


def default_limits(engine: Engine, chip: Chip) -> tuple[int | None, int | None]:
    """Return the default limits of an engine on a chip: `max_sequences` and `token_budget`."""
    small = engine.small_chip
    memory = next(memory for memory in chip.memory.values() if "kv" in memory.holds)
    if small and memory.capacity < small.below:
        return small.max_sequences, small.token_budget
    return engine.max_sequences, engine.token_budget
