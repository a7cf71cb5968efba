"""Chips: what one accelerator holds, computes and reads.  Values only: no clock, no SimPy, no software losses.

A chip is a YAML file.  Code appears where behaviour differs, as a kind of `Compute`; a user adds one as a class of their own
and names it in the file as `kind: my_chips:MyCompute`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import model_validator

from sim.hardware.topology import TopologyField
from sim.inputs.fields import FromCatalogue, OfKind
from sim.inputs.values import Sourced, Value
from sim.units import (
    Bytes,
    BytesPerSecond,
    Count,
    Dollars,
    Flop,
    FlopPerSecond,
    Hertz,
    JoulesPerByte,
    JoulesPerFlop,
    Seconds,
    Watts,
    format_quantity,
)

# Bytes of one number, and which precisions can carry it in a matrix multiply: those that lose nothing of it; bf16 and fp16
# stand in for one another, since engines cast the one to the other.
BYTES_OF = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5}
CARRIERS = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("int8", "fp16", "bf16", "fp32"),
    "fp4": ("fp4", "fp8", "fp16", "bf16", "fp32"),
    "int4": ("int4", "int8", "fp8", "fp16", "bf16", "fp32"),
}


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Op:
    """What one block asks of one chip in one step: the multiplies, and the bytes that must be read for them.

    `matrices` are the (rows, columns) of the weight matrices that lie on this chip; attention has none.  Everything but
    `flops` and `kv` is the same in each further identical step, and those two grow linearly.
    """

    tokens: float  # an expert may get a part of one, in expectation
    flops: Flop
    weights: Bytes
    kv: Bytes
    activations: Bytes
    precisions: tuple[str, str]
    matrices: tuple[tuple[int, int], ...] = ()


class Memory(Value):
    """One memory of a chip.  SRAM, HBM and DRAM differ only in these numbers, and so does a host's memory behind PCIe.

    `holds` says what lives in it where a plan does not say; a plan may name any memory for weights and for KV cache.
    """

    capacity: Bytes
    bandwidth: BytesPerSecond
    energy: JoulesPerByte | None = None
    holds: tuple[Literal["weights", "kv"], ...] = ("weights", "kv")


class Power(Value):
    """What a chip draws: its limit, what it draws at work, and of what that is made.

    `idle` whatever it does, `flop` for each FLOP at its fastest precision, `link` for each byte and cable; reading is the memory's.
    """

    maximum: Watts
    typical: Watts | None = None
    idle: Watts | None = None
    flop: JoulesPerFlop | None = None
    link: JoulesPerByte | None = None


class Server(Value):
    """What stands around so many chips: hosts, fans, and their part of racks and network, less the chips themselves.

    It draws `power`, and is provided with `maximum`, where that is more.
    """

    chips: Count
    power: Watts
    maximum: Watts | None = None
    price: Dollars


class Compute(Value, ABC):
    """How fast a chip multiplies.  A kind answers how long an Op computes and how long its operands take to arrive.

    The rates are dense peaks, by precision.  `bf16` needs no entry beside `fp16`.
    """

    fp32: FlopPerSecond | None = None
    bf16: FlopPerSecond | None = None
    fp16: FlopPerSecond | None = None
    fp8: FlopPerSecond | None = None
    int8: FlopPerSecond | None = None
    fp4: FlopPerSecond | None = None
    int4: FlopPerSecond | None = None

    @abstractmethod
    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        """Seconds of computing and seconds of reading; the two overlap, so the longer one counts.

        Each must be linear in `op.flops` and `op.kv` while the rest of the Op stands: the simulator leaps over steps on it.
        """

    def token_budget(self, precisions: tuple[str, str]) -> int | None:
        """Tokens of a step when neither scenario nor engine limits them: vLLM's default.  None: what suits the pipeline best."""
        return 2048

    @property
    def fastest(self) -> FlopPerSecond:
        """The highest of the rates."""
        return max(getattr(self, name) or 0.0 for name in BYTES_OF)

    def peak(self, *operands: str) -> FlopPerSecond:
        """The rate of a multiply: that of an operand's own precision if it carries the other one too, the wider of the two.

        Where the chip lacks that, they are stored in their own widths and computed in the fastest precision that carries both.

        Raises: ValueError where the chip computes in none of them.
        """
        if operands not in self._peaks:
            self._peaks[operands] = self._peak(operands)
        return self._peaks[operands]

    @cached_property
    def _peaks(self) -> dict[tuple[str, ...], FlopPerSecond]:
        return {}

    def _peak(self, operands: tuple[str, ...]) -> FlopPerSecond:
        own: list[FlopPerSecond] = [
            rate
            for name in operands
            if (rate := getattr(self, name)) and all(name in CARRIERS[other] for other in operands)
        ]
        if own:
            return max(own)
        rates: dict[str, FlopPerSecond] = {
            name: rate for name in BYTES_OF if (rate := getattr(self, name))
        }
        fitting = {
            name: rate
            for name, rate in rates.items()
            if all(name in CARRIERS[operand] for operand in operands)
        }
        if fitting:
            return max(fitting.values())
        raise ValueError(
            f"the chip does not multiply {' by '.join(operands)}; it computes in {', '.join(rates) or 'no precision'}"
        )


class Roofline(Compute):
    """Peak FLOP/s and memory bandwidth: FLOPs/peak against bytes/bandwidth.

    Source: Williams, Waterman, Patterson, "Roofline", CACM 2009.
    """

    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        return op.flops / self.peak(*op.precisions), (
            op.weights + op.kv + op.activations
        ) / memory.bandwidth


class TensorStreaming(Compute):
    """A matrix unit whose weights pass a load path of given width before each use (Groq's TSP).

    Weights stand in SRAM, but no multiply reads them there: `planes` hold a tile of `tile` x `tile` each, and the tiles are
    loaded at `weight_load`, or as fast as the memory gives them.  Matrices are padded to whole tiles.  K and V are stationary
    operands too and pass the same path (`kv_path: load`), unless they stream past as activations do, at the memory's pace.

    Left out: padding of K and V to tiles; the reading of activations, which SRAM does beside the load path.
    Source: Abts et al., "Think Fast", ISCA 2020, sections II and III.
    """

    clock: Hertz
    planes: Count
    tile: Count
    weight_load: BytesPerSecond
    kv_path: Literal["load", "stream"] = "load"

    @model_validator(mode="after")
    def _rates_are_the_planes(self) -> "TensorStreaming":
        """Each plane multiplies a vector by its tile in a cycle: rates, clock, planes and tile say the same thing twice."""
        planes = 2 * self.planes * self.tile**2 * self.clock
        if abs(self.fastest - planes) > 0.05 * planes:
            raise ValueError(
                f"the fastest rate is {format_quantity(self.fastest, 'FLOP/s')}, and {self.planes} planes "
                f"of {self.tile} x {self.tile} at "
                f"{format_quantity(self.clock, 'Hz')} make {format_quantity(planes, 'FLOP/s')}"
            )
        return self

    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        peak, path = self.peak(*op.precisions), min(self.weight_load, memory.bandwidth)
        tiles = sum(
            math.ceil(rows / self.tile) * math.ceil(columns / self.tile)
            for rows, columns in op.matrices
        )
        if not tiles:
            return op.flops / peak, (op.weights + op.kv) / (
                path if self.kv_path == "load" else memory.bandwidth
            )
        padded = tiles * self.tile**2
        return 2 * padded * op.tokens / peak, (padded * BYTES_OF[op.precisions[0]] + op.kv) / path

    def token_budget(self, precisions: tuple[str, str]) -> int | None:
        """None: stages serve first come first served, so a large piece of a prompt holds up every micro-batch behind it."""
        return None


COMPUTE_KINDS: dict[str, type[Compute]] = {
    "roofline": Roofline,
    "tensor-streaming": TensorStreaming,
}


class Chip(Sourced):
    """One accelerator: its memory, how it computes, how it is linked to others of its kind, what it draws."""

    vendor: str = ""
    memory: dict[str, Memory]
    compute: Annotated[Compute, OfKind(COMPUTE_KINDS, Compute)]
    topology: TopologyField
    power: Power | None = None
    price: Dollars | None = None
    server: Server | None = None
    host_link: BytesPerSecond | None = None  # from its host, one way: by it the weights come
    claimed_bandwidth: BytesPerSecond | None = (
        None  # what its maker calls its memory bandwidth, where that is another number
    )

    @model_validator(mode="after")
    def _some_memory(self) -> "Chip":
        if not any({"weights", "kv"} <= set(memory.holds) for memory in self.memory.values()):
            raise ValueError("a chip has at least one memory that holds both weights and KV cache")
        return self

    def weight_bandwidth(self, memory: Memory, precision: str) -> BytesPerSecond:
        """What a large matrix-vector multiply makes of a memory: the bytes of its weights over the time that it takes."""
        side = 32_000  # whole tiles of any usual size
        nbytes = side * side * BYTES_OF[precision]
        op = Op(1, 2.0 * side * side, nbytes, 0.0, 0.0, (precision, precision), ((side, side),))
        return nbytes / max(self.compute.times(op, memory))

    @property
    def homes(self) -> tuple[str, ...]:
        """The memories that weights and KV cache may share, as the file orders them: the fastest first."""
        return tuple(
            name for name, memory in self.memory.items() if {"weights", "kv"} <= set(memory.holds)
        )


ChipField = Annotated[Chip, FromCatalogue("chips", Chip)]


class Cluster(Sourced):
    """So many chips of one kind, joined as they are sold; without a topology of its own, as the chip's file says."""

    chip: ChipField
    chips: Count
    topology: TopologyField | None = None


ClusterField = Annotated[Cluster, FromCatalogue("clusters", Cluster)]
