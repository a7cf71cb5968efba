"""Weight matrices as they lie on a chip: FLOPs, bytes and times of their multiplications."""

from typing import NamedTuple

from sim.cost.layout import Layout
from sim.cost.terms import ACTIVATIONS, COMPUTE, WEIGHTS, Sides
from sim.hardware.chip import Chip, Op, Precision
from sim.hardware.engine import Engine
from sim.model.blocks import Block, NumberFormat
from sim.units import Bytes, Flop, Seconds


class Multiply(NamedTuple):
    """A weight matrix on the fullest chip: what its multiplication needs.

    flops, activations: for each token.
    efficiencies: the software's, of computing and of reading; efficiency_keys: of its files.
    fixed: time of the multiply whatever its size; walk: the least time beyond that, in which a
    tile passes all inputs; time_keys: of both.
    chips: chips over which the matrix is split.
    """

    flops: Flop
    weights: Bytes
    activations: Bytes
    precisions: tuple[str, str]
    shape: tuple[int, int]
    efficiencies: tuple[float, float]
    fixed: Seconds
    walk: Seconds
    chips: int
    efficiency_keys: tuple[tuple[str, ...], tuple[str, ...]]
    time_keys: tuple[str, str]


def dense_multiplies(layout: Layout, block: Block) -> tuple[Multiply, ...]:
    """Return the multiplies of a block that every token passes."""
    plan = layout.plan
    return tuple(
        shaped_multiply(
            layout.engine,
            layout.chip,
            matrix.share(plan.tensor),
            plan.stored(block, matrix),
            plan.activations,
        )._replace(chips=plan.tensor)
        for matrix in block.matrices
    )


def expert_multiplies(layout: Layout, block: Block) -> tuple[Multiply, ...]:
    """Return the multiplies of one routed expert of a block; none without experts.

    One kernel multiplies all experts of a layer. Its fixed time is the `moe_layer_overhead`.
    """
    plan, reading = layout.plan, layout.engine.moe_memory_efficiency
    multiplies = (
        shaped_multiply(
            layout.engine,
            layout.chip,
            matrix.share(plan.expert_tensor),
            plan.stored(block, matrix),
            plan.activations,
        )._replace(chips=plan.expert_tensor, fixed=0.0, walk=0.0)
        for matrix in (block.experts.matrices if block.experts else ())
    )
    if not reading:
        return tuple(multiplies)
    return tuple(
        multiply._replace(
            efficiencies=(multiply.efficiencies[0], reading),
            efficiency_keys=(multiply.efficiency_keys[0], ("engine.moe_memory_efficiency",)),
        )
        for multiply in multiplies
    )


def shaped_multiply(
    engine: Engine,
    chip: Chip,
    shape: tuple[int, int],
    stored: NumberFormat,
    activations: Precision,
) -> Multiply:
    """Return the multiply of a matrix of `shape`, inputs by outputs, that lies on one chip."""
    computing, reading = engine.efficiencies(stored.precision)
    bits = f"{8 * Precision(stored.precision).bytes:.0f}"
    compute_keys: tuple[str, ...] = (f"engine.compute_efficiency.{bits}",)
    memory_keys: tuple[str, ...] = (f"engine.memory_efficiency.{bits}",)
    fixed = walk = 0.0
    fixed_key = walk_key = ""
    if named := engine.kernel(chip, (stored.precision, stored.bits), activations):
        key, kernel = f"engine.kernels.{named.key}", named.kernel
        if kernel.in_steps:
            computing = reading = 1.0
            compute_keys = memory_keys = ()
        computing *= kernel.compute_efficiency
        reading *= kernel.memory_efficiency
        fixed, walk = named.fixed, shape[0] * kernel.per_input
        fixed_key, walk_key = f"engine.kernels.{named.fixed_key}.fixed", f"{key}.per_input"
        compute_keys += (f"{key}.compute_efficiency",)
        memory_keys += (f"{key}.memory_efficiency",)
    return Multiply(
        2.0 * shape[0] * shape[1],
        shape[0] * shape[1] * stored.bytes,
        sum(shape) * activations.bytes,
        (stored.precision, activations),
        shape,
        (computing, reading),
        fixed,
        walk,
        1,
        (compute_keys, memory_keys),
        (fixed_key, walk_key),
    )


def multiply_op(layout: Layout, multiply: Multiply, tokens: float) -> Op:
    """Return the operation of one multiply of `tokens` tokens on the fullest chip.

    Weights that stream from a memory of their own hide the reading of activations.
    """
    read = 0.0 if layout.apart else multiply.activations * tokens
    return _op(multiply, tokens, read)


def _op(multiply: Multiply, tokens: float, read: Bytes) -> Op:
    flops = multiply.flops * tokens
    return Op(tokens, flops, multiply.weights, 0.0, read, multiply.precisions, (multiply.shape,))


def multiply_sides(layout: Layout, multiply: Multiply, tokens: float) -> Sides:
    """Return the time to compute, and the time to read, for one multiply of `tokens` tokens.

    Left out: its fixed time, `Multiply.fixed`.
    """
    op = multiply_op(layout, multiply, tokens)
    return _sides(multiply, *layout.chip.compute.times(op, layout.weights_memory))


def multiply_alone(chip: Chip, multiply: Multiply, tokens: float) -> Sides:
    """Return both sides of a multiply that a chip runs alone, from its fastest memory."""
    op = _op(multiply, tokens, multiply.activations * tokens)
    return _sides(multiply, *chip.compute.times(op, chip.memory[chip.homes[0]]))


def _sides(multiply: Multiply, compute: Seconds, memory: Seconds) -> Sides:
    """Return the sides of a multiply with its losses, from its times without them.

    Left out: the fixed time, which comes before both.
    """
    computing, reading = multiply.efficiencies
    read = memory / reading
    return Sides(compute / computing, max(read, multiply.walk), compute, memory)


def multiply_shares(
    layout: Layout, multiply: Multiply, tokens: float, sides: Sides
) -> tuple[tuple[int, float], ...]:
    """Return the terms of a multiply: computing, or weights and activations by their bytes."""
    if sides.compute >= sides.memory:
        return ((COMPUTE, 1.0),)
    if is_walk(multiply, sides):
        return ((WEIGHTS, 1.0),)
    read = 0.0 if layout.apart else multiply.activations * tokens
    share = multiply.weights / (multiply.weights + read)
    return ((WEIGHTS, share), (ACTIVATIONS, 1 - share))


def is_walk(multiply: Multiply, sides: Sides) -> bool:
    """Return whether a tile's walk over the inputs takes longest."""
    return sides.memory > sides.compute and sides.memory == multiply.walk
