"""Hidden states that the kernels of routed experts move beside their multiplies."""

from collections.abc import Iterator
from functools import partial

from sim.cost.layout import Layout
from sim.cost.multiplies import Multiply
from sim.cost.terms import IS_ACTIVATIONS, Array, Cause, Row
from sim.model.blocks import Block


def moved_rows(
    layout: Layout, block: Block, repeats: Array, multiply: Multiply, tokens: float, own: float
) -> Iterator[Row]:
    """Yield the row of hidden states that are moved beside a multiply of experts, if any are.

    own: pairs of a token and an expert on the fullest chip.
    Without attention ranks each chip has all tokens of a step, also those for experts elsewhere.
    With them, chips receive only tokens for their own experts.
    Left out: that an FFN pool receives only those, too.
    """
    assert block.experts
    every = tokens * block.experts.per_token if layout.plan.attention_data == 1 else own
    pairs = own, every
    causes = tuple(_causes(layout, multiply, pairs))
    if causes:
        seconds = sum(cause.seconds for cause in causes)
        yield Row(block, repeats, seconds, 0.0, IS_ACTIVATIONS, partial(tuple, causes))


def _causes(layout: Layout, multiply: Multiply, pairs: tuple[float, float]) -> Iterator[Cause]:
    """Yield the causes. pairs: of a token and an expert: on the fullest chip, and all it has."""
    rate, chips = layout.weights_memory.bandwidth, multiply.chips
    bandwidth = f"chip.memory.{layout.plan.weights_in}.bandwidth"
    whats = "hidden states by expert", "hidden states of all experts"
    for what, number, moved, key in zip(
        whats, pairs, multiply.moved, multiply.moved_keys, strict=True
    ):
        if moved:
            nbytes = chips * number * moved
            yield Cause(what, "memory", nbytes, "B", chips, rate, keys=(bandwidth, key))
