"""The work of one row in a table of timed kernels: a multiply, experts, attention, or a collective.

    kernel_work(row).seconds(engine, chip)  # with the losses of the engine's kernels

A kernel runs alone on one chip, and a collective alone on several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from sim.cost.attention import AttentionCore, attention_core, seconds_at
from sim.cost.collectives import software_latency
from sim.cost.experts import expected_shard
from sim.cost.layout import Layout
from sim.cost.multiplies import Multiply, multiply_alone, routed_multiplies, shaped_multiply
from sim.cost.plan import Plan, ResolvedPlan
from sim.hardware.chip import Chip, Precision
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.names import find_entry
from sim.model.blocks import Attention, Experts, Latent, NumberFormat
from sim.model.quantization import FP8_BLOCKS, MXFP4, NVFP4
from sim.model.transformer import Model
from sim.units import Seconds
from sim.validation.points import cell_number
from sim.validation.systems import InexpressibleError

TableRow = Mapping[str, str]
# The format of stored weights, and the precision of activations, for each dtype of a table.
FORMATS = {
    "bf16": (NumberFormat("bf16", 16), Precision.BF16),
    "fp8": (NumberFormat("fp8", 8), Precision.FP8),
    "fp8_block": (FP8_BLOCKS, Precision.FP8),
    "sq": (NumberFormat("int8", 8), Precision.INT8),
    "nvfp4": (NVFP4, Precision.FP4),
    "w4a16_mxfp4": (MXFP4, Precision.BF16),
    "w4a8_mxfp4_mxfp8": (MXFP4, Precision.FP8),
}
FEW_TOKENS = 64  # multiplies and experts with more tokens count as prompts: `gemm_prefill`
# DeepSeek-V3's latent attention. All rows of latent attention have it, so tables do not repeat it.
LATENT = Latent(rank=512, rope=64, nope=128, value=128)
# The skew that is nearest to `power_law_1.2`: the mean error of experts' times is 13.2 % at 0.8,
# and 13.5 to 15 % at 0.6 and 1. It describes how rows were drawn, not how models choose experts.
ROW_SKEW = 0.8
EVEN = "balanced"  # routing of a row, in which every expert has equally many tokens
LINK_SHARE = 0.8  # of the bandwidth, where a topology's file does not give the share of collectives
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "all_gather",  # the same messages, the other way
    "alltoall": "all_to_all",
}


class BareTimes(NamedTuple):
    """The times of a kernel without losses [s].

    unit: added to `compute` by one more token of each expert, or one more position of each token.
    moved: of one pass over the hidden states of the chip's experts, and of all experts.
    """

    compute: Seconds
    memory: Seconds
    unit: Seconds
    moved: tuple[Seconds, Seconds] = (0.0, 0.0)


class KernelWork(Protocol):
    """The work of one kernel."""

    @property
    def metric(self) -> str:
        """The metric of its errors: such as 'gemm' up to 64 tokens, and 'gemm_prefill' beyond."""
        ...

    @property
    def part(self) -> str:
        """The key of its numbers in a file of kernels."""
        ...

    @property
    def form(self) -> str:
        """The shape in words, without numbers of tokens."""
        ...

    def seconds(self, engine: Engine, chip: Chip) -> Seconds:
        """Return the time.  Raises: ValueError if the chip cannot compute it."""
        ...


@dataclass(frozen=True, slots=True)
class MultiplyWork:
    """A multiply of `tokens` rows with a matrix of `shape`, inputs by outputs."""

    shape: tuple[int, int]
    tokens: int
    stored: NumberFormat
    activations: Precision
    part = "multiplies"

    @property
    def metric(self) -> str:
        """`gemm`, or `gemm_prefill` beyond 64 tokens."""
        return "gemm" if self.tokens <= FEW_TOKENS else "gemm_prefill"

    @property
    def form(self) -> str:
        """Inputs and outputs."""
        return f"{self.shape[0]} to {self.shape[1]}"

    def multiply(self, engine: Engine, chip: Chip) -> Multiply:
        """Return the multiply with the engine's losses.  Raises: ValueError as `seconds`."""
        return shaped_multiply(engine, chip, self.shape, self.stored, self.activations)

    def seconds(self, engine: Engine, chip: Chip) -> Seconds:
        """Return its time."""
        multiply = self.multiply(engine, chip)
        return multiply.fixed + multiply_alone(chip, multiply, self.tokens).seconds


@dataclass(frozen=True, slots=True)
class ExpertWork:
    """The experts of one rank, of `shards` ranks, in a layer that `tokens` tokens pass.

    inner: columns of an expert on this chip.
    """

    experts: Experts
    shards: int
    hidden: int
    inner: int
    tokens: int
    even: bool
    stored: NumberFormat
    activations: Precision
    part = "experts"

    @property
    def metric(self) -> str:
        """`moe`, or `moe_prefill` beyond 64 tokens."""
        return "moe" if self.tokens <= FEW_TOKENS else "moe_prefill"

    @property
    def form(self) -> str:
        """The number of experts, and the rows and columns of each."""
        ranks = f" on {self.shards} ranks" if self.shards > 1 else ""
        return f"{self.experts.count} experts of {self.hidden} x {self.inner}{ranks}"

    def reached(self) -> tuple[float, float]:
        """Return the experts that the fullest rank reaches, and the tokens of each of them."""
        if not self.even:
            return expected_shard(self.experts, ROW_SKEW, self.tokens, self.shards)
        chosen = self.tokens * self.experts.per_token / self.shards
        reached = min(self.experts.count / self.shards, chosen)
        return reached, chosen / reached

    def seconds(self, engine: Engine, chip: Chip) -> Seconds:
        """Return the time of both multiplies of all experts."""
        bandwidth = chip.memory[chip.homes[0]].bandwidth
        reached, tokens = self.reached()
        return sum(
            multiply.fixed
            + reached * multiply_alone(chip, multiply, tokens).seconds
            + sum(n * moved for n, moved in zip(self._pairs(), multiply.moved, strict=True))
            / bandwidth
            for multiply in self._multiplies(engine, chip)
        )

    def bare(self, engine: Engine, chip: Chip) -> BareTimes:
        """Return the times of reading and computing all experts, padded as the engine pads them.

        engine: without other losses.
        """
        reached, tokens = self.reached()
        sides = [multiply_alone(chip, m, tokens) for m in self._multiplies(engine, chip)]
        compute = reached * sum(side.compute for side in sides)
        memory = reached * sum(side.memory for side in sides)
        state = self.hidden * Precision.BF16.bytes / chip.memory[chip.homes[0]].bandwidth
        own, every = self._pairs()
        return BareTimes(compute, memory, compute / tokens, (own * state, every * state))

    def _pairs(self) -> tuple[float, float]:
        """Return the pairs of a token and an expert: on the fullest rank, and of all tokens."""
        reached, tokens = self.reached()
        return reached * tokens, self.tokens * self.experts.per_token

    def _multiplies(self, engine: Engine, chip: Chip) -> tuple[Multiply, ...]:
        shapes = (self.hidden, 2 * self.inner), (self.inner, self.hidden)
        matrices = [(shape, self.stored) for shape in shapes]
        return routed_multiplies(engine, chip, matrices, self.activations, 1)


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """The attention of a layer for `sequences`, each with `new` tokens at the end of `context`."""

    shape: Attention
    sequences: int
    new: int
    context: int
    decode: bool
    kv: Precision
    activations: Precision

    @property
    def metric(self) -> str:
        """`attention_decode`, `mla_prefill` and so on."""
        kind = "mla" if self.shape.latent else "attention"
        return f"{kind}_{'decode' if self.decode else 'prefill'}"

    @property
    def part(self) -> str:
        """`attention`, or `latent_attention`."""
        return "latent_attention" if self.shape.latent else "attention"

    @property
    def form(self) -> str:
        """The heads."""
        shape = self.shape
        if shape.latent:
            return f"{shape.heads} heads of latents"
        window = f", window {shape.window}" if shape.window else ""
        return f"{shape.heads} and {shape.kv_heads} heads of {shape.head_size}{window}"

    def seconds(self, engine: Engine, chip: Chip) -> Seconds:
        """Return its time."""
        core, positions = self._core(engine, chip), self._positions()
        return max(seconds_at(time, *positions) for time in (core.compute, core.memory))

    def bare(self, engine: Engine, chip: Chip) -> BareTimes:
        """Return the times of reading the KV cache and of computing."""
        core, positions = self._core(engine, chip), self._positions()
        return BareTimes(
            seconds_at(core.ideal_compute, *positions),
            seconds_at(core.ideal_memory, *positions),
            self.sequences * self.new * core.ideal_compute[1],
        )

    def _core(self, engine: Engine, chip: Chip) -> AttentionCore:
        layout = _one_chip(engine, chip, self.kv, self.activations)
        tokens = self.sequences * self.new
        return attention_core(layout, self.shape, (tokens, tokens), self.decode)

    def _positions(self) -> tuple[float, float]:
        """Return the positions that are attended to, and those that are read."""
        window, earlier = self.shape.window or self.context, self.context - self.new
        whole = max(0, self.context - max(window, earlier))  # tokens that see the whole window
        partly = self.new - whole
        attended = whole * window + partly * earlier + partly * (partly + 1) / 2
        cached = min(self.context, window) if self.decode else self.context
        return self.sequences * attended, self.sequences * cached


@dataclass(frozen=True, slots=True)
class CollectiveWork:
    """A collective of `chips` chips, with `nbytes` on each."""

    operation: str
    chips: int
    nbytes: float
    part = "collectives"

    @property
    def metric(self) -> str:
        """The operation."""
        return self.operation

    @property
    def form(self) -> str:
        """The number of chips."""
        return f"{self.chips} chips"

    def seconds(self, engine: Engine, chip: Chip) -> Seconds:
        """Return its time."""
        topology = chip.topology.sized(self.chips)
        share = topology.collectives_reach(self.chips) or LINK_SHARE
        latency = software_latency(engine, chip, self.chips)
        collective = getattr(topology, COLLECTIVES[self.operation])
        seconds: Seconds = collective(range(self.chips), self.nbytes, latency, share)
        return seconds


def kernel_work(row: TableRow) -> KernelWork:
    """Return the work of a row.

    Raises: InexpressibleError if there is no such work, ValueError for a wrong cell.
    """
    op = row["op"]
    if op in COLLECTIVES:
        if row.get("kernel", "").endswith("eager"):
            raise InexpressibleError(f"{op}: the host's launch was measured, too")
        return CollectiveWork(op, _whole(row, "chips"), _whole(row, "bytes"))
    if op not in WORKS:
        raise InexpressibleError(f"no model of single kernels of {op}")
    if row["dtype"] not in FORMATS:
        raise InexpressibleError(f"no number format {row['dtype']}")
    return WORKS[op](row)


def _multiply(row: TableRow) -> MultiplyWork:
    shape = _whole(row, "k"), _whole(row, "n")
    return MultiplyWork(shape, _whole(row, "m"), *FORMATS[row["dtype"]])


def _experts(row: TableRow) -> ExpertWork:
    experts = Experts(_whole(row, "experts"), _whole(row, "topk"), ())
    inner = -(-_whole(row, "inter") // _whole(row, "moe_tp"))
    return ExpertWork(
        experts,
        _whole(row, "moe_ep"),
        _whole(row, "hidden"),
        inner,
        _whole(row, "m"),
        row.get("distribution") == EVEN,
        *FORMATS[row["dtype"]],
    )


def _attention(row: TableRow) -> AttentionWork:
    kind, _, phase = row["op"].partition("_")
    heads = _whole(row, "heads")
    if kind == "mla":
        shape = Attention(heads, heads, 0, latent=LATENT)
    else:
        window = _whole(row, "window") if row.get("window") else None
        shape = Attention(heads, _whole(row, "kv_heads"), _whole(row, "head_size"), window)
    cached = row.get("kv_dtype") or row["dtype"]
    if cached not in ("bf16", "fp8"):
        raise InexpressibleError(f"no KV cache in {cached}")
    return AttentionWork(
        shape,
        _whole(row, "batch"),
        _whole(row, "length"),
        _whole(row, "context"),
        phase == "decode",
        Precision(cached),
        FORMATS[row["dtype"]][1],
    )


WORKS: dict[str, Callable[[TableRow], KernelWork]] = {
    "gemm": _multiply,
    "moe": _experts,
    "attention_decode": _attention,
    "attention_prefill": _attention,
    "mla_decode": _attention,
    "mla_prefill": _attention,
}


def _whole(row: TableRow, key: str) -> int:
    number: int = cell_number({key: row.get(key) or ""}, key, int)
    return number


def _one_chip(engine: Engine, chip: Chip, kv: Precision, activations: Precision) -> Layout:
    """Return a layout on one chip for attention, which reads its chip, engine and plan only."""
    plan, model = _plan(kv, activations, chip.homes[0])
    return Layout(model, chip, chip.topology, engine, plan, 1, 1.0)


@lru_cache(maxsize=64)
def _plan(kv: Precision, activations: Precision, home: str) -> tuple[ResolvedPlan, Model]:
    """Return the plan of one chip, and a model that does not affect the times."""
    model = read_value(find_entry("llama-3.1-8b", "models"), Model)
    plan = Plan(kv=kv, activations=activations, weights_in=home, kv_in=home)
    return plan.resolved(1, model), model
