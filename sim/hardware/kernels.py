"""Matrix multiplies of an engine as they were timed alone: scenarios/kernels.

    >>> kernel = MultiplyKernel(fixed="3 us", memory_efficiency=0.8, compute_efficiency=0.7)
    >>> kernel.compute_efficiency
    0.7

Chips of one generation run the same kernels, so a file has numbers by generation and precision.
"""

from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from sim.inputs.fields import FromCatalogue
from sim.inputs.values import Sourced, Value
from sim.units import Fraction, Seconds

SIXTEEN = "bf16"  # every generation has this kernel
# A kernel that a generation lacks, and the kernel that stands in for it.  Assumed.
STAND_INS = {"fp8_block": "fp8", "fp8": SIXTEEN, "int8": SIXTEEN, "fp4": "fp8"}


class MultiplyKernel(Value):
    """The losses of one kind of multiply.

    Time: fixed + max(bytes / (memory_efficiency x bandwidth), FLOPs / (compute_efficiency x peak),
    inputs x per_input).

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
        description="Whether both shares are those of whole steps; the engine's factors then do "
        "not count.",
    )


class NamedKernel(NamedTuple):
    """A kernel, and its key in the file, such as 'multiplies.hopper.fp8'.

    fixed: its fixed time, or that of the 16-bit kernel; fixed_key: of the kernel that has it.
    """

    key: str
    kernel: MultiplyKernel
    fixed: Seconds
    fixed_key: str


class Kernels(Sourced):
    """The multiplies of one engine, by generation of the chip, and by precision."""

    otherwise: str = Field(
        description="Generation whose numbers count on a chip of any other one; assumed there."
    )
    multiplies: dict[str, dict[str, MultiplyKernel]] = Field(
        description="Kernels by generation and precision: bf16, fp8, fp8_block (with block "
        "scales), int8, fp4."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.otherwise not in self.multiplies:
            raise ValueError(
                f"otherwise: got {self.otherwise}; expected one of {', '.join(self.multiplies)}"
            )
        for generation, kernels in self.multiplies.items():
            if SIXTEEN not in kernels:
                raise ValueError(
                    f"multiplies.{generation}: got {', '.join(kernels) or 'nothing'};"
                    f" expected at least {SIXTEEN}"
                )
        return self

    def multiply(self, generation: str, precision: str, fused: bool = False) -> NamedKernel:
        """Return the kernel for a generation and a precision, or the one that stands in for it.

        fused: another kernel quantizes the inputs, so the fixed time is that of 16 bits.
        """
        generation = generation if generation in self.multiplies else self.otherwise
        known = self.multiplies[generation]
        while precision not in known:
            precision = STAND_INS.get(precision, SIXTEEN)
        timed = SIXTEEN if fused else precision
        keys = [f"multiplies.{generation}.{name}" for name in (precision, timed)]
        return NamedKernel(keys[0], known[precision], known[timed].fixed, keys[1])


def kernel_precision(weights: str, bits: float, activations: str) -> str:
    """Return the precision by which a file has the kernel of a multiply.

    bits: of a weight with its scales. With 16-bit activations the weights are widened first.
    """
    if activations in ("fp32", "bf16", "fp16"):
        return SIXTEEN
    if weights == "fp8" and bits > 8:
        return "fp8_block"
    return {"int4": "int8"}.get(weights, weights)


KernelsField = Annotated[Kernels, FromCatalogue("kernels", Kernels)]
