"""The numbers behind each contribution to a step: amount / (chips x rate x efficiency).

`Costs.rows` attaches to each row a function that returns its causes. They add up to the row.
"""

from collections.abc import Callable
from typing import Literal

from sim.cost.attention import (
    SIXTEEN_BITS,
    attention_losses,
    cache_reads,
    mixer_flops,
    position_bytes,
    state_traffic,
)
from sim.cost.collectives import Collectives, Exchange
from sim.cost.layout import Layout
from sim.cost.multiplies import Multiply, in_whole_tiles, is_walk, multiply_op
from sim.cost.terms import Cause, Row, Sides
from sim.hardware.chip import Op, Quotient
from sim.model.blocks import Mixer
from sim.units import Bytes, Seconds

DRAFTER = "drafter"  # begins what its causes are for, and the keys of their numbers


def of_drafter(causes: Callable[[], tuple[Cause, ...]]) -> tuple[Cause, ...]:
    """Return the causes of a row as those of a drafter on other chips."""
    return tuple(
        cause._replace(
            what=f"{DRAFTER}: {cause.what}", keys=tuple(f"{DRAFTER}.{key}" for key in cause.keys)
        )
        for cause in causes()
    )


def overhead_causes(key: str, seconds: Seconds) -> tuple[Cause, ...]:
    """Return the cause of a time that the engine's file states, under its key.

    Attention and the MLP have half of the overhead of a layer each.
    """
    what = f"half of {key}" if key == "layer_overhead" else key
    return (Cause(what, "software", seconds, "s", keys=(f"engine.{key}",)),)


def fixed_causes(multiplies: tuple[Multiply, ...]) -> tuple[Cause, ...]:
    """Return the causes of the fixed times of multiplies."""
    return tuple(
        Cause("start of a multiply", "software", multiply.fixed, "s", keys=multiply.time_keys[:1])
        for multiply in multiplies
    )


def multiply_causes(
    layout: Layout, multiply: Multiply, tokens: float, sides: Sides, times: float = 1.0
) -> tuple[Cause, ...]:
    """Return the cause of a multiply: the longer side of its roofline, or a tile's walk.

    times: how often it runs, such as the number of experts that are reached.
    """
    computing = sides.compute >= sides.memory
    cause = _side_cause(layout, multiply, tokens, sides, computing)
    return (cause._replace(amount=times * cause.amount),)


def unhidden_causes(
    layout: Layout, multiply: Multiply, tokens: float, sides: Sides
) -> tuple[Cause, ...]:
    """Return the cause of the part of a multiply's shorter side that is not hidden."""
    cause = _side_cause(layout, multiply, tokens, sides, sides.compute < sides.memory)
    return (
        cause._replace(
            what=f"{cause.what}, not hidden",
            amount=multiply.exposed * cause.amount,
            keys=(*cause.keys, multiply.exposed_key),
        ),
    )


def _side_cause(
    layout: Layout, multiply: Multiply, tokens: float, sides: Sides, computing: bool
) -> Cause:
    """Return the cause of one side of a multiply: computing, or reading, or a tile's walk."""
    if not computing and is_walk(multiply, sides):
        key = multiply.time_keys[1]
        return Cause("inputs walked by a tile", "software", multiply.walk, "s", keys=(key,))
    padded = tokens + multiply.more_tokens if computing else tokens
    op = multiply_op(in_whole_tiles(multiply), padded, layout.apart)
    quotients = layout.chip.compute.quotients(op, layout.weights_memory)
    efficiency = multiply.efficiencies[0 if computing else 1]
    seconds = sides.compute if computing else sides.memory
    quotient = _binding(quotients, op, (computing, seconds), efficiency, layout.plan.weights_in)
    keys = multiply.efficiency_keys[0 if computing else 1]
    return Cause(
        what="multiplies" if computing else "weights read",
        resource="compute" if computing else "memory",
        amount=multiply.chips * quotient.amount,
        unit=quotient.unit,
        chips=multiply.chips,
        rate=quotient.rate,
        efficiency=efficiency,
        keys=(f"chip.{quotient.key}", *keys),
    )


def attention_causes(
    layout: Layout,
    shape: Mixer,
    positions: tuple[float, float],
    ranked: tuple[int, int],
    decode: bool,
    sides: Sides,
) -> tuple[Cause, ...]:
    """Return the causes of one layer's mixer: its start, and the longer side of its roofline.

    positions: attended and cached, over all ranks.  ranked: tokens of the fullest rank, and of all.
    """
    share, chips = ranked[0] / ranked[1], layout.plan.tensor
    attended, cached = share * positions[0], share * positions[1]
    losses, computing = attention_losses(layout, shape, decode), sides.compute >= sides.memory
    more = losses.more_positions * ranked[0] if computing else 0.0
    flops = mixer_flops(layout, shape, ranked[0], decode)
    op = Op(
        tokens=ranked[0],
        flops=flops.total(attended + more, cached - ranked[0]),
        weights=0.0,
        kv=cached * position_bytes(layout, shape) * cache_reads(layout, shape, decode)
        + state_traffic(layout, shape, ranked[0], decode),
        activations=0.0,
        precisions=SIXTEEN_BITS,
    )
    quotients = layout.chip.compute.quotients(op, layout.kv_memory)
    efficiency, key = losses.memory, losses.memory_key
    if computing:
        efficiency, key = losses.compute, losses.compute_key
    lasting = sides.seconds - losses.fixed
    quotient = _binding(quotients, op, (computing, lasting), efficiency, layout.plan.kv_in)
    start = Cause("start of attention", "software", losses.fixed, "s", keys=(losses.fixed_key,))
    main = Cause(
        what=shape.computing if computing else shape.reading,
        resource="compute" if computing else "memory",
        amount=chips * quotient.amount,
        unit=quotient.unit,
        chips=chips,
        rate=quotient.rate,
        efficiency=efficiency,
        keys=(f"chip.{quotient.key}", key),
    )
    return (start, main) if losses.fixed else (main,)


def elementwise_cause(layout: Layout, nbytes: Bytes) -> Cause:
    """Return the cause of norms and activation functions. nbytes: moved by each chip."""
    memory, efficiency = layout.weights_memory, layout.engine.elementwise_efficiency
    assert efficiency is not None
    keys = f"chip.memory.{layout.plan.weights_in}.bandwidth", "engine.elementwise_efficiency"
    what, chips = "norms and activations", layout.plan.tensor
    return Cause(what, "memory", chips * nbytes, "B", chips, memory.bandwidth, efficiency, keys)


def embedding_causes(layout: Layout, nbytes: Bytes) -> tuple[Cause, ...]:
    """Return the cause of reading the rows of an embedding."""
    key = f"chip.memory.{layout.plan.weights_in}.bandwidth"
    rate = layout.weights_memory.bandwidth
    return (Cause("row of a token read", "memory", nbytes, "B", rate=rate, keys=(key,)),)


def exchange_causes(
    collectives: Collectives, exchanges: tuple[Exchange, ...], exposed: Seconds
) -> tuple[Cause, ...]:
    """Return the causes of collectives: latency, bytes, and what computing hides.

    exposed: seconds that are not hidden.
    """
    causes: list[Cause] = []
    for exchange in exchanges:
        name = exchange.name.replace("_", "-")
        chips = len(exchange.groups[0])
        latency = min(collectives.latency(exchange), exchange.time)
        causes.append(Cause(f"{name} over {chips} chips: latency", "link", latency, "s"))
        if sending := exchange.time - latency:
            rate = exchange.nbytes / sending
            causes.append(
                Cause(f"{name} over {chips} chips: bytes", "link", exchange.nbytes, "B", 1, rate)
            )
    if hidden := sum(cause.seconds for cause in causes) - exposed:
        causes.append(
            Cause("hidden behind computing", "link", -hidden, "s", keys=("engine.overlap",))
        )
    return tuple(causes)


def ffn_causes(row: Row) -> tuple[Cause, ...]:
    """Return the causes of a row, whose numbers are those of the FFN pool."""
    return tuple(
        cause._replace(keys=tuple(f"ffn.{key}" for key in cause.keys)) for cause in row.causes()
    )


def overlapped_causes(seconds: Seconds) -> tuple[Cause, ...]:
    """Return the cause of collectives that run while the chips compute another micro-batch."""
    keys = ("ffn.engine.overlap",)
    return (
        Cause("collectives while another micro-batch is computed", "link", seconds, "s", keys=keys),
    )


def transfer_causes(way: str, latency: Seconds, busy: Seconds, rate: float) -> tuple[Cause, ...]:
    """Return the causes of a message between pools. rate: bandwidth of its link [B/s]."""
    sent = Cause(
        f"hidden states {way}: bytes",
        "link",
        busy * rate,
        "B",
        rate=rate,
        keys=("transfer.bandwidth",),
    )
    if not latency:
        return (sent,)
    key = ("transfer.latency",)
    return Cause(f"hidden states {way}: latency", "link", latency, "s", keys=key), sent


def _binding(
    quotients: tuple[Quotient, Quotient] | None,
    op: Op,
    side: tuple[bool, Seconds],
    efficiency: float,
    home: str | None,
) -> Quotient:
    """Return the amount and the rate of a side. A user's own kind has the rate of its time.

    side: whether it computes, and its time.  home: the memory that is read.
    """
    computing, seconds = side
    if quotients:
        quotient = quotients[0 if computing else 1]
        key = f"memory.{home}.bandwidth"
        return quotient._replace(key=key) if quotient.key == "memory.bandwidth" else quotient
    unit: Literal["FLOP", "B"] = "FLOP" if computing else "B"
    amount = op.flops if computing else op.weights + op.kv + op.activations
    seconds *= efficiency
    return Quotient(amount, unit, amount / seconds if seconds else 1.0, "compute")
