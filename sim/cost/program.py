"""The program of each chip in one step: computing, collectives, and messages to the next stage.

A program has the times of `Costs.rows` block by block, and its collectives are messages. Chip
fidelity executes it, and `sramsim trace --program` prints it.
"""

from collections import defaultdict
from typing import NamedTuple

from sim.cost.collectives import TOKEN_BYTES, Exchange
from sim.cost.step import Costs
from sim.cost.terms import IS_COLLECTIVE
from sim.cost.work import Work
from sim.model.blocks import Block, Mixer
from sim.units import Bytes, Seconds


class ComputeOp(NamedTuple):
    """A block on one chip: its multiplies, its attention, and the engine's overhead."""

    label: str
    seconds: Seconds


class CollectiveOp(NamedTuple):
    """A collective over the chips of each rank."""

    label: str
    exchange: Exchange


class WaitOp(NamedTuple):
    """A wait until the host has launched the stage's layers, counted from the chips' start."""

    label: str
    seconds: Seconds


Instruction = ComputeOp | CollectiveOp | WaitOp


class Program(NamedTuple):
    """The instructions of each stage's chips in one step, and the bytes that they then send on.

    slice_bytes: from every chip to its place in the next stage.
    token_bytes: from the last stage's first chip back to the first chip, a sampled token.
    """

    stages: tuple[tuple[Instruction, ...], ...]
    slice_bytes: Bytes
    token_bytes: Bytes = TOKEN_BYTES


def computing_seconds(costs: Costs, work: Work) -> dict[Block, Seconds]:
    """Return the time of each block on each chip of its stage.

    The head includes all passes of a drafter, with their collectives.
    Left out: collectives of the model.
    """
    parts: defaultdict[Block | Mixer | None, Seconds] = defaultdict(float)
    for row in costs.rows(work):
        if row.part is costs.head:
            parts[row.part] += row.seconds * float(row.repeats[-1])
        elif row.shares is not IS_COLLECTIVE:
            parts[row.part] += row.seconds
    return {
        block: parts[block] + sum(parts[mixer] for mixer in block.mixers) for block in costs.blocks
    }


def program(costs: Costs, work: Work) -> Program:
    """Return the program of a step.

    Blocks of one shape take the same time, also where tokens are routed to experts at random.
    """
    seconds, ranked = computing_seconds(costs, work), costs.layout.ranked(work)
    names = costs.layout.block_labels
    stages = []
    for number, stage in enumerate(costs.layout.stages):
        gather = costs.collectives.gather(ranked, number)
        instructions: list[Instruction] = [
            CollectiveOp("gather the input", exchange) for exchange in gather
        ]
        for place in range(stage.first, stage.last + 1):
            block = costs.layout.model.blocks[place]
            exchanges = costs.collectives.of_block(block, ranked, number)
            time = seconds[block]
            time -= costs.collectives.hidden(exchanges, ranked, time)
            # A NumPy float here would turn SimPy's clock into one, which is slower.
            instructions += _of_block(names[place], float(time), exchanges)
        if costs.launch:
            instructions.append(WaitOp("launch", float(costs.launching(work)[number])))
        stages.append(tuple(instructions))
    return Program(tuple(stages), costs.collectives.slice_bytes(ranked))


def _of_block(
    label: str, seconds: Seconds, exchanges: tuple[Exchange, ...]
) -> tuple[Instruction, ...]:
    """Return the instructions of one block; tokens are sent to their experts first."""
    routed = len(exchanges) > 0 and exchanges[0].operation == "all_to_all"
    before, after = exchanges[:routed], exchanges[routed:]
    return (
        *(CollectiveOp(f"{label}: dispatch", exchange) for exchange in before),
        ComputeOp(label, seconds),
        *(
            CollectiveOp(f"{label}: {'combine' if e.operation == 'all_to_all' else e.operation}", e)
            for e in after
        ),
    )
