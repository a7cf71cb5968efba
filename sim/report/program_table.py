"""The table of `sramsim trace --program`: the instructions of each stage in one decode step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from sim.cost.program import CollectiveOp
from sim.inputs.errors import UserError
from sim.report.titled_tables import left_titled_table
from sim.results.labels import format_number

if TYPE_CHECKING:
    from sim.cost.program import Instruction, Program
    from sim.hardware.topology import Topology
    from sim.planning.deployment import Deployment


def program_table(
    system: str, deployment: "Deployment", steps: "Program", chip: int | None
) -> RenderableType:
    """Return the table of `sramsim trace --program`: the instructions of each stage.

    Equal stages share their rows.
    chip: show only its stage, with its messages; None shows all stages.
    Raises: UserError if the replica has no such chip.
    """
    plan, topology = deployment.layout.plan, deployment.layout.topology
    if chip is not None and chip >= plan.replica_size:
        raise UserError(
            f"--chip: got {chip}; expected at most {plan.replica_size - 1}, "
            "because the chips of a replica count from 0; try --chip 0"
        )
    title = f"{system}: one decode step on {plan.pipeline} stages of {plan.stage_size} chips"
    table = left_titled_table(title)
    for column, right in (
        ("stages", False),
        ("each chip", False),
        ("us", True),
        ("bytes", True),
        ("messages", True),
        ("how", False),
    ):
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "how")
    shown: dict[tuple[object, ...], list[int]] = {}
    for stage, instructions in enumerate(steps.stages):
        if chip is None or chip // plan.stage_size == stage:
            alike = tuple(_instruction(instruction, topology)[1:] for instruction in instructions)
            shown.setdefault(alike, []).append(stage)
    for stages in shown.values():
        table.add_section()
        where = _ranges(stages)
        for instruction in steps.stages[stages[0]]:
            table.add_row(where, *_instruction(instruction, topology))
            where = ""
        if stages[0] < plan.pipeline - 1:
            time = format_number(1e6 * deployment.costs.hops(1)[stages[0] + 1])
            sent, what = format_number(steps.slice_bytes), "send a slice to the next stage"
            table.add_row("", what, time, sent, "1", "own place")
        elif plan.pipeline > 1:
            time = format_number(1e6 * deployment.costs.back)
            sent, what = format_number(steps.token_bytes), "send the sampled token back"
            table.add_row("", what, time, sent, "1", "from the first chip")
    parts: list[RenderableType] = [table]
    if chip is not None:
        parts += [
            Text(),
            *(Text(line) for line in _sent(chip, steps.stages[chip // plan.stage_size], topology)),
        ]
    note = (
        "Times are those of the closed forms. Layers have the names of the first of equal stages."
    )
    return Group(*parts, Text(), Text(note, style="dim"))


def _instruction(
    instruction: "Instruction", topology: "Topology"
) -> tuple[str, str, str, str, str]:
    """Return label, microseconds, bytes of the collective, messages of the group, and algorithm."""
    if not isinstance(instruction, CollectiveOp):
        return instruction.label, format_number(1e6 * instruction.seconds), "", "", ""
    exchange = instruction.exchange
    group = exchange.groups[0]
    messages = sum(map(len, topology.messages(exchange.operation, group, exchange.algorithms[0])))
    how = (
        " ".join(word for word in exchange.algorithms[0] if isinstance(word, str))
        or exchange.operation
    )
    if exchange.operation not in topology.uncontended(group):
        how += ", in its own way"
    several = f"{len(exchange.groups)} x " if len(exchange.groups) > 1 else ""
    return (
        instruction.label,
        format_number(1e6 * exchange.time),
        format_number(exchange.nbytes),
        f"{several}{messages:,}",
        how,
    )


def _sent(chip: int, instructions: "Sequence[Instruction]", topology: "Topology") -> list[str]:
    """Return the messages of one chip in each of its collectives, phase by phase."""
    lines = []
    for instruction in instructions:
        if not isinstance(instruction, CollectiveOp):
            continue
        exchange = instruction.exchange
        group, way = next(
            pair
            for pair in zip(exchange.groups, exchange.algorithms, strict=True)
            if chip in pair[0]
        )
        for phase, messages in enumerate(topology.messages(exchange.operation, group, way), 1):
            sent = [message for message in messages if message.source == chip]
            receivers = (
                ", ".join(
                    f"{m.target} ({format_number(m.share * exchange.nbytes)} B)" for m in sent[:8]
                )
                or "nothing"
            )
            more = f" and {len(sent) - 8} more" if len(sent) > 8 else ""
            lines.append(
                f"{instruction.label}, phase {phase}: chip {chip} sends to {receivers}{more}"
            )
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as ranges: '0, 2-5, 7'."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))
