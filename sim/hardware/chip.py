"""Chips: what one accelerator holds, computes and reads, without any software losses.

A chip is a YAML file. Code is needed only for different behaviour, as a kind of `Compute`.
A user's own kind is a class that the file names as `kind: my_chips:MyCompute`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from sim.hardware.power import Power, Server
from sim.hardware.topology import TopologyField, Unlinked
from sim.inputs.errors import error_at_path
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
    Seconds,
    format_quantity,
)


class Precision(StrEnum):
    """A format of numbers, by the name that files use, with the bytes of one number."""

    bytes: float

    def __new__(cls, name: str, nbytes: float = 0.0) -> Self:
        self = str.__new__(cls, name)
        self._value_, self.bytes = name, nbytes
        return self

    FP32 = "fp32", 4.0
    BF16 = "bf16", 2.0
    FP16 = "fp16", 2.0
    FP8 = "fp8", 1.0
    INT8 = "int8", 1.0
    FP4 = "fp4", 0.5
    INT4 = "int4", 0.5


# The precisions that can carry another one in a matrix multiply, because they lose nothing of it.
# bf16 and fp16 stand in for each other, since engines cast one to the other.
CARRIERS = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("int8", "fp16", "bf16", "fp32"),
    "fp4": ("fp4", "fp8", "fp16", "bf16", "fp32"),
    "int4": ("int4", "int8", "fp8", "fp16", "bf16", "fp32"),
}


@dataclass(slots=True)  # a frozen one takes three times as long to make
class Op:
    """The work of one block on one chip in one step: multiplies, and the bytes read for them.

    `matrices` are the (rows, columns) of the weight matrices on this chip; attention has none.
    In each further identical step `flops` and `kv` grow linearly. The rest stays the same.
    """

    tokens: float  # an expert may get a fraction of a token, in expectation
    flops: Flop
    weights: Bytes
    kv: Bytes
    activations: Bytes
    precisions: tuple[str, str]
    matrices: tuple[tuple[int, int], ...] = ()


class Memory(Value):
    """One memory of a chip: SRAM, HBM, DRAM, or a host's memory behind PCIe.

    These differ only in their numbers. A plan may name any memory for weights and for KV cache.
    """

    capacity: Bytes = Field(description="Capacity that software can use [B].")
    bandwidth: BytesPerSecond = Field(description="Peak bandwidth of one chip [B/s].")
    energy: JoulesPerByte | None = Field(default=None, description="Energy of reading [J/B].")
    holds: tuple[Literal["weights", "kv"], ...] = Field(
        default=("weights", "kv"),
        description="Data that a plan places there by default; empty: none, unless a plan "
        "names this memory.",
    )


# Bytes of KV cache, not whole numbers of any block, so that rounding up shows as well.
_PROBE_SCALES = (777.7, 7.777e6, 7.777e10)


class Quotient(NamedTuple):
    """A time as amount / rate.

    key: of the rate in the chip's file; `memory` stands for the memory that is read.
    """

    amount: float
    unit: Literal["FLOP", "B"]
    rate: float
    key: str

    @property
    def seconds(self) -> Seconds:
        """The time."""
        return self.amount / self.rate


_RATE = "Dense peak rate at this precision [FLOP/s]; default: that of the next wider one."
Rate = Annotated[FlopPerSecond | None, Field(description=_RATE)]
_GENERATION = "Key of an engine's `kernels`, such as hopper; default: that of the kernels' file."
_JOINED = "How chips of this kind are joined; default: not at all."


class Compute(Value, ABC):
    """How fast a chip multiplies: the time to compute an Op, and the time to read its operands.

    The rates are dense peaks, by precision. `fp16` also serves for `bf16`.
    """

    fp32: Rate = None
    bf16: Rate = None
    fp16: Rate = None
    fp8: Rate = None
    int8: Rate = None
    fp4: Rate = None
    int4: Rate = None

    @abstractmethod
    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        """Return the time to compute and the time to read; they overlap, so the longer one counts.

        Both must be linear in `op.flops` and `op.kv` while the rest of the Op stays the same. The
        simulator relies on this when it makes many steps in one event.
        """

    @property
    def takes_arrays(self) -> bool:
        """Whether `times` also takes an Op for arrays of tokens. A user's own kind may not."""
        return type(self) in COMPUTE_KINDS.values()

    def quotients(self, op: Op, memory: Memory) -> tuple[Quotient, Quotient] | None:
        """Return both times with their amounts and rates; None: this kind has no such form."""
        return None

    def token_budget(self, precisions: tuple[str, str]) -> int | None:
        """Return the tokens of a step if neither scenario nor engine limits them.

        2048 is vLLM's default. None: the number that suits the pipeline best.
        """
        return 2048

    def nonlinearity(self, memory: Memory) -> str:
        """Return why `times` is not linear, with its numbers; '' if it is linear.

        The probe takes three equally spaced sizes at three scales, for a matrix and for attention.
        Left out: kinks between the scales.
        """
        name = next((name for name in Precision if getattr(self, name)), "fp16")
        for matrices in (((4096, 4096),), ()):
            for scale in _PROBE_SCALES:
                ops = [
                    Op(1.0, 64.0 * n * scale, 1e6, n * scale, 1e4, (name, name), matrices)
                    for n in (1, 2, 3)
                ]
                times = [self.times(op, memory) for op in ops]
                for part, side in enumerate(("computing", "reading")):
                    first, second, third = (pair[part] for pair in times)
                    if abs(third - 2 * second + first) > 1e-9 * max(first, second, third):
                        sizes = ", ".join(f"{op.flops:.4g} FLOP and {op.kv:.4g} B" for op in ops)
                        return (
                            f"got {side} times of {first:.4g}, {second:.4g} and {third:.4g} s"
                            f" for {sizes} of KV cache; expected times linear in both"
                        )
        return ""

    @property
    def fastest(self) -> FlopPerSecond:
        """The highest of the rates."""
        return max(getattr(self, name) or 0.0 for name in Precision)

    def peak(self, *operands: str) -> FlopPerSecond:
        """Return the rate of a multiply of operands with these precisions.

        It is the rate of an operand's own precision, if that carries the other operand too.
        Otherwise operands are stored in their own widths, and computed in the fastest precision
        that carries both.

        Raises: ValueError if the chip computes in none of them.
        """
        return self._keyed_peak(operands)[0]

    def computed(self, op: Op, flops: Flop) -> Quotient:
        """Return the time of some FLOPs of an operation, at the peak of its precisions."""
        return Quotient(flops, "FLOP", *self._keyed_peak(op.precisions))

    def _keyed_peak(self, operands: tuple[str, ...]) -> tuple[FlopPerSecond, str]:
        """Return `peak` and its key in the chip's file. Every multiply asks for them."""
        if operands not in self._peaks:
            self._peaks[operands] = self._find_peak(operands)
        return self._peaks[operands]

    @cached_property
    def _peaks(self) -> dict[tuple[str, ...], tuple[FlopPerSecond, str]]:
        return {}

    def _find_peak(self, operands: tuple[str, ...]) -> tuple[FlopPerSecond, str]:
        rates: dict[str, FlopPerSecond] = {
            name: rate for name in Precision if (rate := getattr(self, name))
        }
        carrying = [
            name for name in rates if all(name in CARRIERS[operand] for operand in operands)
        ]
        own = [name for name in operands if name in carrying]
        if not carrying:
            raise ValueError(
                f"got a product of {' by '.join(operands)}; expected one for a chip that computes"
                f" in {', '.join(rates) or 'no precision'}; try other weights or activations"
            )
        peak = max(rates[name] for name in own or carrying)
        return peak, next(f"compute.{name}" for name, rate in rates.items() if rate == peak)


class Roofline(Compute):
    """Peak FLOP/s and memory bandwidth: the longer of FLOPs/peak and bytes/bandwidth.

    Source: Williams, Waterman, Patterson, "Roofline", CACM 2009.
    """

    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        nbytes = op.weights + op.kv + op.activations
        return op.flops / self.peak(*op.precisions), nbytes / memory.bandwidth

    def quotients(self, op: Op, memory: Memory) -> tuple[Quotient, Quotient]:
        nbytes = op.weights + op.kv + op.activations
        reading = Quotient(nbytes, "B", memory.bandwidth, "memory.bandwidth")
        return self.computed(op, op.flops), reading


class TensorStreaming(Compute):
    """A matrix unit whose weights pass a load path before each use (Groq's TSP).

    Weights are in SRAM, but a multiply reads them from planes, each with one tile.
    Matrices are padded to whole tiles. With `kv_path: load` K and V are stationary operands too.
    With `kv_path: stream` they stream past the planes at the memory's bandwidth.

    Left out: padding of K and V to tiles.
    Left out: the reading of activations, which SRAM does in parallel with the load path.
    Source: Abts et al., "Think Fast", ISCA 2020, sections II and III.
    """

    clock: Hertz = Field(description="Clock rate of the matrix unit [Hz].")
    planes: Count = Field(description="Number of planes, each with one tile of weights.")
    tile: Count = Field(description="Rows, and columns, of a tile.")
    weight_load: BytesPerSecond = Field(
        description="Rate at which tiles are loaded [B/s]; the memory's bandwidth counts if that "
        "is less."
    )
    kv_path: Literal["load", "stream"] = Field(
        default="load",
        description="Way of K and V: through the load path as weights do, or past the planes as "
        "activations do.",
    )

    @model_validator(mode="after")
    def _rates_are_the_planes(self) -> "TensorStreaming":
        """Check that the rates agree with the planes: one vector times its tile in each cycle."""
        planes = 2 * self.planes * self.tile**2 * self.clock
        if abs(self.fastest - planes) > 0.05 * planes:
            raise ValueError(
                f"got {format_quantity(self.fastest, 'FLOP/s')} as the fastest rate; expected"
                f" {format_quantity(planes, 'FLOP/s')}, as {self.planes} planes of"
                f" {self.tile} x {self.tile} at {format_quantity(self.clock, 'Hz')} make"
            )
        return self

    def times(self, op: Op, memory: Memory) -> tuple[Seconds, Seconds]:
        computing, reading = self.quotients(op, memory)
        return computing.seconds, reading.seconds

    def quotients(self, op: Op, memory: Memory) -> tuple[Quotient, Quotient]:
        """Return both times; a multiply computes and reads whole tiles."""
        path, key = self.weight_load, "compute.weight_load"
        tiles = sum(
            math.ceil(rows / self.tile) * math.ceil(columns / self.tile)
            for rows, columns in op.matrices
        )
        if memory.bandwidth < path or not (tiles or self.kv_path == "load"):
            path, key = memory.bandwidth, "memory.bandwidth"
        if not tiles:
            return self.computed(op, op.flops), Quotient(op.weights + op.kv, "B", path, key)
        padded, weights = tiles * self.tile**2, sum(math.prod(shape) for shape in op.matrices)
        nbytes = padded * (op.weights / weights) + op.kv
        return self.computed(op, 2 * padded * op.tokens), Quotient(nbytes, "B", path, key)

    def token_budget(self, precisions: tuple[str, str]) -> int | None:
        """Return None: a large chunk of a prompt would delay every micro-batch behind it.

        Stages serve first come, first served.
        """
        return None


COMPUTE_KINDS: dict[str, type[Compute]] = {
    "roofline": Roofline,
    "tensor-streaming": TensorStreaming,
}


class Chip(Sourced):
    """One accelerator: memory, computing, links to other chips, power and price."""

    vendor: str = Field(default="", description="Maker of the chip.")
    generation: str = Field(default="", description=_GENERATION)
    memory: dict[str, Memory] = Field(description="Memories by name, fastest first.")
    compute: Annotated[Compute, OfKind(COMPUTE_KINDS, Compute)] = Field(
        description="How fast the chip multiplies: peak rates by precision; sparse headline rates "
        "are halved."
    )
    topology: TopologyField = Field(default_factory=Unlinked, description=_JOINED)
    power: Power | None = Field(
        default=None,
        description="Power of the chip and its parts; default: unknown, without J per token.",
    )
    price: Dollars | None = Field(
        default=None, description="Price of one chip [USD]; default: unknown, without $ per token."
    )
    server: Server | None = Field(
        default=None,
        description="Surroundings of the chip, such as hosts; default: the chip is counted alone.",
    )
    host_link: BytesPerSecond | None = Field(
        default=None,
        description="Bandwidth of one direction from the host, for weights [B/s]; unset: unknown.",
    )
    claimed_bandwidth: BytesPerSecond | None = Field(
        default=None,
        description="Number that the vendor calls memory bandwidth [B/s]; default: that of the "
        "weights' memory.",
    )

    @model_validator(mode="after")
    def _some_memory(self) -> "Chip":
        if not any({"weights", "kv"} <= set(memory.holds) for memory in self.memory.values()):
            reason = "got no memory that holds both weights and KV cache; expected one or more"
            raise ValueError(f"{reason}; try leaving `holds` of a memory out")
        return self

    @model_validator(mode="after")
    def _linear_times(self) -> "Chip":
        """Probe what the simulator relies on when it makes many steps in one event."""
        for name in self.homes:
            if problem := self.compute.nonlinearity(self.memory[name]):
                raise error_at_path(("compute",), self.compute, problem)
        return self

    def weight_bandwidth(self, memory: Memory, precision: str) -> BytesPerSecond:
        """Return the weight bytes of a large matrix-vector multiply divided by its time [B/s].

        Raises: ValueError if the chip does not compute in this precision.
        """
        side = 32_000  # whole tiles of any usual size
        nbytes = side * side * Precision(precision).bytes
        op = Op(1, 2.0 * side * side, nbytes, 0.0, 0.0, (precision, precision), ((side, side),))
        return nbytes / max(self.compute.times(op, memory))

    @property
    def homes(self) -> tuple[str, ...]:
        """The memories that weights and KV cache may share, in the file's order: fastest first."""
        return tuple(
            name for name, memory in self.memory.items() if {"weights", "kv"} <= set(memory.holds)
        )


ChipField = Annotated[Chip, FromCatalogue("chips", Chip)]


class Cluster(Sourced):
    """A number of chips of one kind, joined as they are sold."""

    chip: ChipField = Field(description="Kind of chip.")
    chips: Count = Field(description="Number of chips.")
    topology: TopologyField | None = Field(
        default=None, description="How the chips are joined; default: the topology of the chip."
    )


ClusterField = Annotated[Cluster, FromCatalogue("clusters", Cluster)]
