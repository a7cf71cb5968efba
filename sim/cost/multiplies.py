"""Weight matrices as they lie on a chip: FLOPs, bytes and times of their multiplications."""

from typing import NamedTuple

from sim.cost.layout import Layout
from sim.cost.terms import ACTIVATIONS, COMPUTE, WEIGHTS, Sides
from sim.hardware.chip import Op, Precision
from sim.model.blocks import Block, Matrix
from sim.units import Bytes, Flop


class Multiply(NamedTuple):
    """A weight matrix on the fullest chip: what its multiplication needs.

    flops, activations: for each token.
    efficiencies: the engine's, of computing and of reading; efficiency_keys: of its file.
    chips: chips over which the matrix is split.
    """

    flops: Flop
    weights: Bytes
    activations: Bytes
    precisions: tuple[str, str]
    shape: tuple[int, int]
    efficiencies: tuple[float, float]
    chips: int
    efficiency_keys: tuple[str, str]


def dense_multiplies(layout: Layout, block: Block) -> tuple[Multiply, ...]:
    """Return the multiplies of a block that every token passes."""
    tensor = layout.plan.tensor
    return tuple(_multiply(layout, block, matrix, tensor) for matrix in block.matrices)


def expert_multiplies(layout: Layout, block: Block) -> tuple[Multiply, ...]:
    """Return the multiplies of one routed expert of a block; none without experts."""
    chips, reading = layout.plan.expert_tensor, layout.engine.moe_memory_efficiency
    matrices = block.experts.matrices if block.experts else ()
    return tuple(_multiply(layout, block, matrix, chips, reading) for matrix in matrices)


def _multiply(
    layout: Layout, block: Block, matrix: Matrix, chips: int, reading: float | None = None
) -> Multiply:
    plan, stored, shape = layout.plan, layout.plan.stored(block, matrix), matrix.share(chips)
    precision = stored.precision
    efficiencies, bits = (
        layout.engine.efficiencies(precision),
        f"{8 * Precision(precision).bytes:.0f}",
    )
    read_key = "moe_memory_efficiency" if reading else f"memory_efficiency.{bits}"
    return Multiply(
        2.0 * shape[0] * shape[1],
        shape[0] * shape[1] * stored.bytes,
        sum(shape) * plan.activations.bytes,
        (stored.precision, plan.activations),
        shape,
        (efficiencies[0], reading or efficiencies[1]),
        chips,
        (f"compute_efficiency.{bits}", read_key),
    )


def multiply_op(layout: Layout, multiply: Multiply, tokens: float) -> Op:
    """Return the operation of one multiply of `tokens` tokens on the fullest chip.

    Weights that stream from a memory of their own hide the reading of activations.
    """
    read = 0.0 if layout.apart else multiply.activations * tokens
    flops = multiply.flops * tokens
    return Op(tokens, flops, multiply.weights, 0.0, read, multiply.precisions, (multiply.shape,))


def multiply_sides(layout: Layout, multiply: Multiply, tokens: float) -> Sides:
    """Return the time to compute, and the time to read, for one multiply of `tokens` tokens."""
    op, (computing, reading) = multiply_op(layout, multiply, tokens), multiply.efficiencies
    compute, memory = layout.chip.compute.times(op, layout.weights_memory)
    return Sides(compute / computing, memory / reading, compute, memory)


def multiply_shares(
    layout: Layout, multiply: Multiply, tokens: float, sides: Sides
) -> tuple[tuple[int, float], ...]:
    """Return the terms of a multiply: computing, or weights and activations by their bytes."""
    if sides.compute >= sides.memory:
        return ((COMPUTE, 1.0),)
    read = 0.0 if layout.apart else multiply.activations * tokens
    share = multiply.weights / (multiply.weights + read)
    return ((WEIGHTS, share), (ACTIVATIONS, 1 - share))
