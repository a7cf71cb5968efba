"""Engines: what software loses on a chip, in a few named numbers fitted to measured points.

A chip's file has datasheet facts, and an engine's file has calibration. So a result can state
which part comes from which.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sim.hardware.chip import Chip, Precision
from sim.hardware.topology import AllReduce
from sim.inputs.fields import FromCatalogue
from sim.inputs.values import Sourced, Value
from sim.units import Bytes, Count, Fraction, Seconds, Tokens

SPEED_OF_LIGHT = "speed of light, no engine known"  # no number of the engine was fitted to anything
EXTRAPOLATED = "extrapolated"  # the engine was measured on other chips
NetworkMode = Literal["dynamic", "scheduled"]
Sigma = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Launch(Value):
    """The time in which the host launches the kernels of one layer."""

    decode: Seconds  # in a step with decodes only
    prefill: Seconds  # in a step with a prompt


class EngineFit(Value):
    """The numbers that `sramsim calibrate` may change, with their bounds, and its last result.

    A key 'a, b' stands for two numbers that are equal.
    The points are this engine's points in the catalogue's measurements that may be fitted to.
    """

    bounds: dict[str, tuple[str | float, str | float]]
    found: str = ""


class Engine(Sourced):
    """One version of an inference engine.

    Time of a multiply: max(compute time / compute_efficiency, read time / memory_efficiency),
    with efficiencies by the bits of the weights. Attention has two efficiencies of its own.
    Time of a collective: for n chips, each phase has a latency of `collective_latency + n *
    collective_latency_per_chip`, and `collective_efficiency` of the link's bandwidth.
    Time of a step: the layers, `layers * layer_overhead`, `step_overhead`, and `sequences *
    sequence_overhead` with the sequences of the fullest rank of attention data parallelism.

    Experts: as a multiply, with `moe_memory_efficiency` if it is set, and `moe_layer_overhead` for
    each of their layers. With `moe_skew` s, expert i has a probability proportional to i^-s.
    `overlap`: the part of dispatch and combine that a second micro-batch hides behind the experts'
    computing. It needs two tokens on the fullest rank, and hides at most the computing time.
    Left out: that halves read the weights twice.

    `layer_launch` (eager mode): a stage takes at least the time in which the host launches it.
    `kv_reads: query-heads`: decode reads the KV cache once for each query head, instead of once for
    all query heads that share it.
    `tokens_per_beat` b: a stage of a compiled pipeline takes b tokens at once. A prompt enters in
    pieces of b tokens, and a micro-batch holds at most b sequences. As many micro-batches are in
    flight as the requests need.
    `collectives`: the all-reduce algorithms of the engine; the fastest is used. An empty list means
    all algorithms of the topology.

    At chip fidelity, each computation takes a lognormal factor of mean 1 and sigma `jitter`.
    With `network: scheduled`, transfers start at times computed in advance, as a compiler sets
    them, and do not wait for each other.

    `request_overhead`: what client, HTTP and tokenizer added to a measured TTFT, by host. It counts
    in validations only; a scenario's system has its own.

    `policy` and `admission` are the defaults of a system. `max_sequences` (that run at once) and
    `token_budget` (tokens of a step) are the engine's default limits. With `limits_per: rank` both
    limits, and a system's own, hold for each rank of attention data parallelism, as in vLLM and
    TensorRT-LLM; otherwise for the replica. A pipeline has one scheduler, as in vLLM.
    `max_sequences` bounds all its micro-batches together, like max_num_seqs. `token_budget` bounds
    each step of each micro-batch, like max_num_batched_tokens.
    Left out: ranks that are filled unevenly; the limit is the sum over ranks.

    `points`: the chips on which the engine was measured, as in the catalogue's tables. `sramsim
    calibrate` adds the chips of its points.
    Memory: the engine uses `memory_fraction` of a chip's memory, and takes `reserve` of it itself.
    """

    memory_efficiency: dict[str, Fraction]
    compute_efficiency: dict[str, Fraction]
    attention_memory_efficiency: Fraction
    attention_compute_efficiency: Fraction
    layer_overhead: Seconds
    step_overhead: Seconds
    sequence_overhead: Seconds
    collective_latency: Seconds
    collective_latency_per_chip: Seconds
    collective_efficiency: Fraction
    collectives: tuple[AllReduce, ...] = ()
    overlap: Share = 0.0
    request_overhead: Mapping[str, Seconds] = {}
    memory_fraction: Fraction
    reserve: Bytes
    jitter: Sigma | None = None
    network: NetworkMode = "dynamic"
    layer_launch: Launch | None = None
    tokens_per_beat: Tokens | None = None
    kv_reads: Literal["kv-heads", "query-heads"] = "kv-heads"
    policy: Literal["continuous", "prefill-first", "static"] = "continuous"
    admission: Literal["reserve", "prompt"] = "reserve"
    max_sequences: Count | None = None
    token_budget: Tokens | None = None
    limits_per: Literal["rank", "replica"] = "rank"
    moe_layer_overhead: Seconds | None = None
    moe_memory_efficiency: Fraction | None = None
    moe_skew: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    points: tuple[str, ...] = ()
    fit: EngineFit | None = None

    def speed_label(self, chip: Chip) -> str | None:
        """Return the label of a speed on this chip; None if the engine was measured on it."""
        if self.source and all(
            text.startswith(("assumed", "by definition")) for text in self.source.values()
        ):
            return SPEED_OF_LIGHT
        return None if chip.id in self.points and not chip.changed else EXTRAPOLATED

    def efficiencies(self, precision: str) -> tuple[float, float]:
        """Return the compute and the memory efficiency for weights of this precision.

        Raises: ValueError if the engine has none.
        """
        bits = f"{8 * Precision(precision).bytes:.0f}"
        if bits not in self.memory_efficiency or bits not in self.compute_efficiency:
            has = ", ".join(sorted(self.memory_efficiency.keys() & self.compute_efficiency.keys()))
            raise ValueError(
                f"engine {self.id} has no efficiencies for {bits}-bit weights ({precision});"
                f" it has {has}"
            )
        return self.compute_efficiency[bits], self.memory_efficiency[bits]


EngineField = Annotated[Engine, FromCatalogue("engines", Engine)]
