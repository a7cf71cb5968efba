"""What the software on a chip loses: a few named numbers, each with the points it was fitted to.

A chip's file holds datasheet facts and an engine's file calibration, so that a result can say which part of it is which.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sim.hardware.chip import BYTES_OF, Chip
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
    """How long the host takes to launch the kernels of a layer: in a step of decodes alone, and in one with a prompt."""

    decode: Seconds
    prefill: Seconds


class EngineFit(Value):
    """What `sramsim calibrate` may move, and within which bounds ('a, b': two that share a number); what it last found.

    The points are this engine's among those of the catalogue's measurements that may be fitted to.
    """

    bounds: dict[str, tuple[str | float, str | float]]
    found: str = ""


class Engine(Sourced):
    """One version of an inference engine.

        multiply    = max(compute time / compute_efficiency, read time / memory_efficiency), by the bits of the weights
        attention   = the same with its own two efficiencies
        collective  = for each phase collective_latency + n * collective_latency_per_chip, at collective_efficiency of the link
        step        = the layers + layers * layer_overhead + step_overhead + sequences * sequence_overhead,
                      the sequences being those of the fullest rank of attention data parallelism

    experts     = as a multiply, with moe_memory_efficiency where it is given, and moe_layer_overhead for a layer of them;
                  with moe_skew s, expert i is drawn with a probability proportional to i^-s

    overlap     = the part of dispatch and combine that a second micro-batch hides behind the experts' computing, at most as long as
                  that takes, where the fullest rank has two tokens to split.  Left out: that halves read the weights twice

    eager       = with `layer_launch`, a stage takes at least as long as the host takes to launch its layers
    kv_reads    = `query-heads`: decode reads the KV cache once for each query head, not once for those that share it

    beat        = with `tokens_per_beat` b, a stage of a compiled pipeline takes b tokens at once: a prompt enters in pieces of b
                  tokens, a micro-batch holds at most b sequences, and as many micro-batches are in flight as requests need

    collectives = the ways of an all-reduce that the engine has; all that the topology offers where none is named; the fastest

    At chip fidelity: whatever a chip computes takes a lognormal factor of mean 1 and sigma `jitter`; with `network: scheduled`
    transfers start at times computed beforehand, as a compiler sets them, and do not wait for each other.

    Measurements: `request_overhead` is what client, HTTP and tokenizer added to a TTFT where the engine was measured, by host.
    Others have others: it counts in validations alone, and a scenario's system gives its own.

    Scheduling: `policy` and `admission` are what it does where a system does not say, `max_sequences` (that run at once) and
    `token_budget` (tokens of a step) the limits it is started with by default.  With `limits_per: rank` these two, and a system's
    own, hold for each rank of attention data parallelism, as vLLM's and TensorRT-LLM's settings do; else for the replica.
    In a pipeline there is one scheduler, as in vLLM: `max_sequences` bounds what runs in all its micro-batches together, as
    max_num_seqs does, and `token_budget` each step of each micro-batch, as max_num_batched_tokens does.
    Left out: ranks that are not evenly filled; what is limited is the sum over ranks.

    `points` are the chips on which it was measured, as in the catalogue's tables; `sramsim calibrate` adds those of its points.

    Memory: `memory_fraction` of a chip is used, and `reserve` of that is taken by the engine itself.
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
        """Return what a speed on this chip is, where it is not one of an engine that was measured there."""
        if self.source and all(
            text.startswith(("assumed", "by definition")) for text in self.source.values()
        ):
            return SPEED_OF_LIGHT
        return None if chip.id in self.points and not chip.changed else EXTRAPOLATED

    def efficiencies(self, precision: str) -> tuple[float, float]:
        """Compute and memory efficiency for weights of this precision.  Raises: ValueError where the engine has none."""
        bits = f"{8 * BYTES_OF[precision]:.0f}"
        if bits not in self.memory_efficiency or bits not in self.compute_efficiency:
            has = ", ".join(sorted(self.memory_efficiency.keys() & self.compute_efficiency.keys()))
            raise ValueError(
                f"engine {self.id} has no efficiencies for {bits}-bit weights ({precision}); it has {has}"
            )
        return self.compute_efficiency[bits], self.memory_efficiency[bits]


EngineField = Annotated[Engine, FromCatalogue("engines", Engine)]
