"""The memory of the chip in which weights and KV cache live."""

import math
from dataclasses import replace

from sim.cost.layout import Layout
from sim.inputs.errors import error_at_path
from sim.planning.partition import Cutter


def with_memories(layout: Layout, request_tokens: float) -> Layout:
    """Return the layout with the memories of weights and KV cache named.

    The plan's memories, or the first memory of the chip that has room for both.
    Raises: ValueError if the plan names a memory that the chip does not have.
    """
    *faster, last = memory_choices(layout)
    for choice in faster:
        stages = Cutter(choice, request_tokens).stages(math.inf, request_tokens)
        if stages <= layout.plan.pipeline:
            return choice
    return last


def memory_choices(layout: Layout) -> list[Layout]:
    """Return the layout in each memory that the plan leaves open, the fastest memory first.

    Raises: ValueError if the plan names a memory that the chip does not have.
    """
    plan, chip = layout.plan, layout.chip
    for key, name in (("weights_in", plan.weights_in), ("kv_in", plan.kv_in)):
        if name and name not in chip.memory:
            memories = ", ".join(chip.memory)
            reason = f"got {name}; expected a memory of {chip.id}; try {memories}"
            raise error_at_path(("plan", key), name, reason)
    return [
        replace(
            layout,
            plan=replace(plan, weights_in=plan.weights_in or home, kv_in=plan.kv_in or home),
        )
        for home in chip.homes
    ]


class StageCounter:
    """How few stages of one shape hold the model, in any memory, with some sequences.

    request_tokens: tokens of each sequence.
    """

    def __init__(self, layout: Layout, request_tokens: float) -> None:
        self.plan, self.request_tokens = layout.plan, request_tokens
        self.cutters = [Cutter(choice, request_tokens) for choice in memory_choices(layout)]

    def fewest(self, sequences: int = 1) -> int:
        """Return the fewest stages that hold the model and the sequences.

        More than there are blocks if no number of stages holds them.
        """
        return min(self.fewest_in(place, sequences) for place in range(len(self.cutters)))

    def fewest_in(self, place: int, sequences: int) -> int:
        """Return the same for one memory, by its place among `memory_choices`."""
        tokens = self.plan.ranked(sequences) * self.request_tokens
        return self.cutters[place].stages(math.inf, tokens)
