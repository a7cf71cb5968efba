"""Weight matrices as they lie on a chip: FLOPs, bytes and times of their multiplications."""

from collections.abc import Sequence
from typing import NamedTuple

from sim.cost.layout import Layout
from sim.cost.plan import format_name
from sim.cost.terms import ACTIVATIONS, COMPUTE, WEIGHTS, Shares, Sides
from sim.hardware.chip import Chip, Memory, Op, Precision
from sim.hardware.engine import Engine
from sim.hardware.kernels import expert_precision
from sim.model.blocks import Block, NumberFormat
from sim.units import Bytes, Flop, Seconds, longest


class Multiply(NamedTuple):
    """A weight matrix on the fullest chip: what its multiplication needs.

    flops, activations: for each token.
    efficiencies: the software's, of computing and of reading; efficiency_keys: of its files.
    fixed: time of the multiply whatever its size; walk: the least time beyond that, in which a
    tile passes all inputs; time_keys: of both.
    exposed: share of the shorter side of the roofline that the longer one does not hide;
    exposed_key: of the file that has it.
    chips: chips over which the matrix is split.
    more_tokens: tokens that partly filled tiles compute in addition to the multiply's own.
    padding: how many times the matrix grows to whole tiles.
    moved: bytes that kernels beside it move for each token and expert on the chip, and for each
    one in the step; moved_keys: of the numbers behind them.
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
    more_tokens: float = 0.0
    padding: float = 1.0
    exposed: float = 0.0
    exposed_key: str = "engine.exposed"
    moved: tuple[Bytes, Bytes] = (0.0, 0.0)
    moved_keys: tuple[str, str] = ("", "")


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

    One kernel multiplies all experts of a layer. Without a kernel in the engine's file, its fixed
    time is in the `moe_layer_overhead`.
    """
    if not block.experts:
        return ()
    plan = layout.plan
    return routed_multiplies(
        layout.engine,
        layout.chip,
        [(m.share(plan.expert_tensor), plan.stored(block, m)) for m in block.experts.matrices],
        plan.activations,
        plan.expert_tensor,
    )


def routed_multiplies(
    engine: Engine,
    chip: Chip,
    matrices: Sequence[tuple[tuple[int, int], NumberFormat]],
    activations: Precision,
    chips: int,
) -> tuple[Multiply, ...]:
    """Return the multiplies of an expert with these matrices, each split over `chips`.

    The last matrix has the inner columns as inputs, and the hidden size as outputs. It has the
    bytes of the layer's kernel that move hidden states, and the first one has its fixed time.
    The `moe_memory_efficiency` of an engine counts in place of the kernel's numbers.
    Left out: `exposed`. The times of experts do not identify it together with `more_tokens`.
    """
    multiplies: list[Multiply] = []
    own = engine.moe_memory_efficiency
    for shape, stored in matrices:
        multiply = shaped_multiply(engine, chip, shape, stored, activations)
        multiply = multiply._replace(chips=chips, fixed=0.0, walk=0.0, exposed=0.0)
        named = None
        kernels_key, kernels = engine.kernels_of("experts")
        if kernels and own is None:
            precision = expert_precision(stored.precision, stored.bits, activations)
            named = kernels.expert(chip.generation, precision)
        if own is not None:
            multiply = multiply._replace(
                efficiencies=(multiply.efficiencies[0], own),
                efficiency_keys=(multiply.efficiency_keys[0], ("engine.moe_memory_efficiency",)),
            )
        elif named:
            key, kernel = f"engine.{kernels_key}.{named[0]}", named[1]
            multiply = multiply._replace(
                efficiencies=(kernel.compute_efficiency, kernel.memory_efficiency),
                efficiency_keys=((f"{key}.compute_efficiency",), (f"{key}.memory_efficiency",)),
                more_tokens=kernel.more_tokens,
                padding=kernel.padding(*matrices[-1][0]),
                fixed=0.0 if multiplies else kernel.fixed,
                time_keys=(f"{key}.fixed", ""),
            )
            if len(multiplies) == len(matrices) - 1:
                state = shape[1] * Precision.BF16.bytes
                multiply = multiply._replace(
                    moved=(kernel.passes * state, kernel.passes_of_all * state),
                    moved_keys=(f"{key}.passes", f"{key}.passes_of_all"),
                )
        multiplies.append(multiply)
    return tuple(multiplies)


def shaped_multiply(
    engine: Engine,
    chip: Chip,
    shape: tuple[int, int],
    stored: NumberFormat,
    activations: Precision,
) -> Multiply:
    """Return the multiply of a matrix of `shape`, inputs by outputs, that lies on one chip."""
    computing, reading = engine.efficiencies(stored.precision, format_name(stored))
    bits = f"{8 * Precision(stored.precision).bytes:.0f}"
    compute_keys: tuple[str, ...] = (f"engine.compute_efficiency.{bits}",)
    memory_keys: tuple[str, ...] = (f"engine.memory_efficiency.{bits}",)
    fixed = walk = 0.0
    fixed_key = walk_key = ""
    exposed, exposed_key = engine.exposed or 0.0, "engine.exposed"
    if named := engine.kernel(chip, (stored.precision, stored.bits), activations):
        key, kernel = f"engine.kernels.{named.key}", named.kernel
        if kernel.in_steps:
            computing = reading = 1.0
            compute_keys = memory_keys = ()
        computing = min(1.0, computing * kernel.compute_efficiency)
        reading = min(1.0, reading * kernel.memory_efficiency)
        fixed, walk = named.fixed, shape[0] * kernel.per_input
        if engine.exposed is None:
            exposed, exposed_key = named.exposed, "engine.kernels.exposed"
        fixed_key, walk_key = f"engine.kernels.{named.fixed_key}.fixed", f"{key}.per_input"
        compute_keys += (f"{key}.compute_efficiency",)
        memory_keys += (f"{key}.memory_efficiency",)
    return Multiply(
        flops=2.0 * shape[0] * shape[1],
        weights=shape[0] * shape[1] * stored.bytes,
        activations=sum(shape) * activations.bytes,
        precisions=(stored.precision, activations),
        shape=shape,
        efficiencies=(computing, reading),
        fixed=fixed,
        walk=walk,
        chips=1,
        efficiency_keys=(compute_keys, memory_keys),
        time_keys=(fixed_key, walk_key),
        exposed=exposed,
        exposed_key=exposed_key,
    )


def elementwise_bytes(layout: Layout, block: Block, dense: Sequence[Multiply]) -> Bytes:
    """Return the bytes that a chip moves for a token between the multiplies of a block.

    Norms, rotations and activation functions write the inputs of dense multiplies, and read their
    outputs. Each chip of a tensor group also reads and writes the whole residual.
    Routed experts: only their output is read, because their kernel was timed with its activation
    functions.
    Left out: writing K and V; an all-reduce fused with the norm after it.
    """
    width = layout.plan.hidden.bytes
    whole = (3 if block.experts else 2) * layout.model.hidden_size * width
    inputs = sum(multiply.shape[0] for multiply in dense) * layout.plan.activations.bytes
    return whole + inputs + sum(multiply.shape[1] for multiply in dense) * width


def in_whole_tiles(multiply: Multiply) -> Multiply:
    """Return the multiply with its matrix padded to whole tiles. Left out: padded activations."""
    grown = multiply.padding
    return multiply._replace(flops=grown * multiply.flops, weights=grown * multiply.weights)


def multiply_op(multiply: Multiply, tokens: float, apart: bool) -> Op:
    """Return the operation of one multiply of `tokens` tokens on the fullest chip.

    apart: whether the weights stream from a memory of their own. Activations then take no time,
    because they are read from another memory meanwhile.
    """
    flops, read = multiply.flops * tokens, 0.0 if apart else multiply.activations * tokens
    return Op(tokens, flops, multiply.weights, 0.0, read, multiply.precisions, (multiply.shape,))


def multiply_sides(layout: Layout, multiply: Multiply, tokens: float) -> Sides:
    """Return the time to compute, and the time to read, for one multiply of `tokens` tokens.

    tokens: may be an array; then the times are, too.
    Left out: its fixed time, which comes before both.
    """
    return _sides(layout.chip, layout.weights_memory, multiply, tokens, layout.apart)


def multiply_alone(chip: Chip, multiply: Multiply, tokens: float) -> Sides:
    """Return both sides of a multiply that a chip runs alone, from its fastest memory."""
    return _sides(chip, chip.memory[chip.homes[0]], multiply, tokens)


def _sides(
    chip: Chip, memory: Memory, multiply: Multiply, tokens: float, apart: bool = False
) -> Sides:
    """Return the sides of a multiply, with its losses and without."""

    def times(padded: Multiply) -> tuple[Seconds, Seconds]:
        return chip.compute.times(multiply_op(padded, tokens, apart), memory)

    ideal = times(multiply)
    compute, read = times(in_whole_tiles(multiply)) if multiply.padding > 1 else ideal
    computing, reading = multiply.efficiencies
    compute = compute * (1 + multiply.more_tokens / tokens) / computing
    return Sides(compute, longest((read / reading, multiply.walk)), *ideal, multiply.exposed)


def multiply_shares(
    layout: Layout, multiply: Multiply, tokens: float, sides: Sides, shorter: bool = False
) -> Shares:
    """Return the terms of the longer side: computing, or weights and activations by their bytes.

    shorter: of the shorter side instead.
    """
    if (sides.compute >= sides.memory) != shorter:
        return ((COMPUTE, 1.0),)
    if is_walk(multiply, sides):
        return ((WEIGHTS, 1.0),)
    op = multiply_op(multiply, tokens, layout.apart)
    share = op.weights / (op.weights + op.activations)
    return ((WEIGHTS, share), (ACTIVATIONS, 1 - share))


def is_walk(multiply: Multiply, sides: Sides) -> bool:
    """Return whether a tile's walk over the inputs takes longer than reading."""
    return 0 < multiply.walk == sides.memory
