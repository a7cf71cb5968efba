"""What each chip executes in one step: computing, collectives, and what goes to the next stage.

A program is a value: the same times and bytes as the closed forms of `cost`, one thing after the other.  Chip fidelity executes
it; `sramsim trace --program` prints it.
"""

from typing import NamedTuple

from sim.cost.step import TOKEN_BYTES, Costs, Exchange, Work
from sim.model.blocks import Block
from sim.model.transformer import Model


class ComputeOp(NamedTuple):
    """A block on one chip: its multiplies, its attention, and the engine's overhead."""

    label: str
    seconds: float


class CollectiveOp(NamedTuple):
    """A collective over the chips of each rank."""

    label: str
    exchange: Exchange


class WaitOp(NamedTuple):
    """Until the host has launched the stage's layers, so long after the chips began."""

    label: str
    seconds: float


Instruction = ComputeOp | CollectiveOp | WaitOp


class Program(NamedTuple):
    """One step: the instructions of each stage's chips, and what every chip then sends to its place in the next stage.

    From the last stage's first chip the sampled token goes back to the first chip.
    """

    stages: tuple[tuple[Instruction, ...], ...]
    slice_bytes: float
    token_bytes: float = TOKEN_BYTES


def program(costs: Costs, work: Work) -> Program:
    """The program of a step.  Blocks of one shape take the same time, also where tokens are routed to experts by drawing."""
    seconds: dict[Block, float] = {block: costs.computing(block, work) for block in costs.counts}
    names = labels(costs.layout.model)
    stages = []
    for number, stage in enumerate(costs.layout.stages):
        instructions: list[Instruction] = [
            CollectiveOp("gather the input", each) for each in costs.gathered(work.tokens, number)
        ]
        for place in range(stage.first, stage.last + 1):
            block, label = costs.layout.model.blocks[place], names[place]
            exchanges = costs.exchanges(block, work.tokens, number)
            alone = seconds[block] - costs.hidden(exchanges, work.tokens, seconds[block])
            if (
                exchanges and exchanges[0].operation == "all_to_all"
            ):  # tokens to their experts first
                instructions.append(CollectiveOp(f"{label}: dispatch", exchanges[0]))
                exchanges = exchanges[1:]
            instructions.append(ComputeOp(label, alone))
            instructions += [
                CollectiveOp(
                    f"{label}: {'combine' if e.operation == 'all_to_all' else e.operation}", e
                )
                for e in exchanges
            ]
        if costs.launch:
            instructions.append(WaitOp("launch", float(costs.launching(work)[number])))
        stages.append(tuple(instructions))
    return Program(tuple(stages), costs.slice_bytes(work.tokens))


def labels(model: Model) -> list[str]:
    """What each block is called: 'layer 3 attention'."""
    names, layer = [], -1
    for block in model.blocks:
        layer += block.kind == "attention"
        names.append(
            f"layer {layer} {block.kind}" if block.kind in ("attention", "mlp") else block.kind
        )
    return names
