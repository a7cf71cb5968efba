"""The program of a step on an attention pool and an FFN pool, for chip fidelity.

It has the times of `AttentionFfnCosts` for each layer. Chips, links and their queues then decide
how the micro-batches take turns.
"""

from typing import NamedTuple

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.program import CollectiveOp, ComputeOp
from sim.cost.terms import IS_COLLECTIVE, Row
from sim.cost.work import Work
from sim.model.blocks import Block
from sim.units import Seconds

PoolOps = tuple[ComputeOp | CollectiveOp, ...]  # what each chip of a stage executes in one visit


class LinkTimes(NamedTuple):
    """The times for which a micro-batch keeps a link of each pool busy, out and back [s]."""

    attention_out: Seconds
    ffn_out: Seconds
    ffn_back: Seconds
    attention_back: Seconds


class LayerOps(NamedTuple):
    """A layer for one micro-batch: the visits on both pools, and the messages between them.

    stage: stage of the FFN pool that has the layer.
    overlapped: time of exchanges after the FFN visit, while the chips compute other visits [s].
    """

    attention: PoolOps
    ffn: PoolOps
    stage: int
    links: LinkTimes
    overlapped: Seconds


class VisitProgram(NamedTuple):
    """A step on both pools. All micro-batches are as the largest one.

    opening, closing: on the attention pool, for the whole step, before and after all layers.
    """

    opening: PoolOps
    layers: tuple[LayerOps, ...]
    closing: PoolOps
    micro_batches: int


def visit_program(costs: AttentionFfnCosts, work: Work) -> VisitProgram:
    """Return the program of a step on both pools."""
    micro_batches, part = costs.micro_batch(work)
    blocks, ffn = costs.layout.model.blocks, costs.ffn.layout
    stages = [n for n, stage in enumerate(ffn.stages) for _ in range(stage.first, stage.last + 1)]
    known: dict[tuple[Block, Block, int], LayerOps] = {}
    layers = []
    for key in zip(blocks[1:-1], ffn.model.blocks, stages, strict=True):
        if key not in known:
            known[key] = _layer(costs, key, part)
        layers.append(known[key])
    outside = [*costs.rows_once(work)]
    opening = _computing("embedding", [row for row in outside if row.part == blocks[0]])
    exchanges = costs.attention.collectives.of_block(blocks[0], costs.layout.ranked(work), 0)
    # All passes of a drafter, with their messages, are part of the head.
    head = sum(row.seconds * row.repeats.item() for row in outside if row.part == blocks[-1])
    return VisitProgram(
        (opening, *(CollectiveOp("embedding: all_reduce", e) for e in exchanges)),
        tuple(layers),
        (ComputeOp("head", float(head)),),
        micro_batches,
    )


def _layer(costs: AttentionFfnCosts, key: tuple[Block, Block, int], part: Work) -> LayerOps:
    """Return a layer for a micro-batch. key: its blocks in both pools, and its FFN stage."""
    attention, ffn, stage = key
    label = "experts" if ffn.experts else "MLP"
    ranked, (passes, tokens) = costs.layout.ranked(part), costs.ffn.passes(part.tokens)
    exchanges = costs.attention.collectives.of_block(attention, ranked, 0)
    summed = costs.ffn.rows.collectives.of_block(ffn, tokens, stage)
    layout, of_ffn, transfer = costs.layout, costs.ffn.layout, costs.transfer
    own, other = transfer.tokens_of_link(layout, of_ffn, part.tokens, ranked)
    out, back = (n / transfer.bandwidth for n in transfer.token_bytes(of_ffn, ffn))
    compute = _computing(label, [*costs.ffn.layer_rows(ffn, part.tokens)])
    hidden = costs.ffn.rows.collectives.hidden(summed, tokens, compute.seconds)
    compute = compute._replace(seconds=float(compute.seconds - hidden))
    a_pass: PoolOps = (compute, *(CollectiveOp(f"{label}: {e.name}", e) for e in summed))
    return LayerOps(
        (
            _computing("attention", [*costs.attention_rows(attention, part)]),
            *(CollectiveOp("attention: all_reduce", exchange) for exchange in exchanges),
        ),
        passes * a_pass,
        stage,
        LinkTimes(own * out, other * out, other * back, own * back),
        passes * hidden,
    )


def _computing(label: str, rows: list[Row]) -> ComputeOp:
    seconds = sum(row.seconds for row in rows if row.shares is not IS_COLLECTIVE)
    return ComputeOp(label, float(seconds))
