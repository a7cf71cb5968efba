"""The rows of a step: what each block, collective and overhead contributes, on every stage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from sim.cost.attention import AttentionKind, attention_losses
from sim.cost.causes import (
    attention_causes,
    elementwise_cause,
    embedding_causes,
    exchange_causes,
    fixed_causes,
    multiply_causes,
    overhead_causes,
    unhidden_causes,
)
from sim.cost.collectives import Collectives, Exchange
from sim.cost.expert_moves import moved_rows
from sim.cost.experts import DrawnLoad, ExpertDraws, expected_shard
from sim.cost.layout import Layout
from sim.cost.multiplies import (
    Multiply,
    dense_multiplies,
    elementwise_bytes,
    expert_multiplies,
    multiply_shares,
    multiply_sides,
)
from sim.cost.terms import (
    COMPUTE,
    IS_ACTIVATIONS,
    IS_COLLECTIVE,
    IS_OVERHEAD,
    KV,
    OVERHEAD,
    Array,
    Row,
    Shares,
    Sides,
)
from sim.cost.work import Work
from sim.hardware.engine import Engine
from sim.model.blocks import Block, Mixer
from sim.units import Bytes, Seconds


@dataclass(frozen=True, slots=True)
class BlockCost:
    """How often stages have a block, its matrices, and its fixed times. No step changes these.

    by_group: `repeats` in each group of stages with equal collectives, by its first stage.
    moved: `elementwise_bytes` of a token; 0 if the engine does not count them.
    """

    repeats: Array
    by_group: dict[int, Array]
    dense: tuple[Multiply, ...]
    routed: tuple[Multiply, ...]
    fixed: tuple[Row, ...]
    moved: Bytes


class StepRows:
    """The contributions to a step on one layout.

    sampled: draws the experts of each step's tokens; None: expectations.
    widths: tokens of a decoding sequence in each pass of a step; None: one pass of the layout's.
    collectives: None: those of the layout, over all chips of a stage.
    head: the last block. last: float[stage], 1 for the last stage and 0 for the others.
    drafter: the rows of the drafter on the last stage; None without speculation. In a step it
    takes all tokens once, as its target does, and then a token of each sequence for each further
    draft. Source: vLLM v1, spec_decode/eagle.py.
    """

    def __init__(
        self,
        layout: Layout,
        widths: tuple[int, ...] | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        self.layout, self.widths = layout, widths or (layout.width,)
        self.stages = len(layout.stages)
        self.collectives = collectives or Collectives(layout)
        # Groups of stages with equal collectives: 1 for each member, by the group's first stage.
        first = np.array(self.collectives.representatives)
        self.stage_groups = {s: (first == s).astype(float) for s in dict.fromkeys(first.tolist())}
        self.last = np.array([*[0.0] * (self.stages - 1), 1.0])
        self.head = layout.model.blocks[-1]
        self.blocks = {b: _block_cost(layout, b, self.stage_groups) for b in layout.model.distinct}
        self._body = [block for block in self.blocks if block.kind != "head"]
        self.skew = layout.engine.moe_skew or 0.0
        self.routed = [block for block in self.blocks if block.experts]
        self.sampled: ExpertDraws | None = None
        if layout.expert_seed is not None and self.routed:
            experts = [block.experts for block in self.routed if block.experts]
            self.sampled = ExpertDraws(layout.expert_seed, experts, self.skew, layout.plan.expert)
        self.drafter: StepRows | None = None
        if layout.drafter:
            widths = (layout.width, *[1] * (layout.width - 2))
            self.drafter = StepRows(layout.drafter, widths=widths)
        self.kinds = [*self._own_kinds(), *self._draft_kinds()]

    def _own_kinds(self) -> Iterator[AttentionKind]:
        """Yield the kinds of attention of the layout's model."""
        for shape in dict.fromkeys(mixer for b in self.blocks for mixer in b.mixers):
            repeats = [c.repeats for b, c in self.blocks.items() if shape in b.mixers]
            layers, (first, *further) = np.sum(repeats, axis=0), self.widths
            yield AttentionKind(self.layout, shape, layers, shape, first)
            if further:
                layers = len(further) * layers
                yield AttentionKind(self.layout, shape, layers, shape, further[0], prompts=False)

    def _draft_kinds(self) -> Iterator[AttentionKind]:
        """Yield the kinds of the drafter's attention, as parts of the last stage's head."""
        for kind in self.drafter.kinds if self.drafter else ():
            layers = kind.layers.item() * self.last
            yield AttentionKind(
                kind.layout, kind.shape, layers, self.head, kind.width, kind.prompts
            )

    @property
    def has_experts(self) -> bool:
        """Whether the model or its drafter has routed experts."""
        return bool(self.routed or (self.drafter and self.drafter.routed))

    def link_bytes(self, tokens: int) -> Bytes:
        """Return the bytes of a step, each counted on every cable that it crosses."""
        return self.collectives.link_bytes(tokens)

    def _mixing(self) -> Array:
        """Return float[stage]: the layers with mixers, over all passes of a step."""
        own = [c.repeats for b, c in self.blocks.items() if b.mixers]
        layers: Array = len(self.widths) * np.sum(own, axis=0)
        if self.drafter:
            layers = layers + self.drafter._mixing().item() * self.last
        return layers

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield all contributions to a step except the hops from stage to stage."""
        size = self.layout.step_size(work)
        yield from self.body_rows(*size, self.sampled.take(size) if self.sampled else ())
        yield from self.sampling_rows(work.logits, work.decodes + work.chunks, work.decodes)
        yield from mixer_rows(self.kinds, work)

    def body_rows(self, tokens: int, ranked: int, load: DrawnLoad = ()) -> Iterator[Row]:
        """Yield the rows that depend on tokens alone: blocks, collectives, the overhead of a step.

        ranked: tokens of the fullest rank. Both may be arrays; then the times are, too.
        load: the drawn load of the experts in this step; () for the expected one.
        Left out: the head, and attention.
        """
        for block in self._body:
            yield from self._block_rows(block, ranked, self._expert_rows(block, tokens, load))
        yield from self._stage_rows(ranked)
        if self.drafter:
            yield from self._drafting(self.drafter.body_rows(tokens, ranked), 1)

    def dense_rows(self, ranked: int) -> Iterator[Row]:
        """Yield the rows of `body_rows` without those of experts, which then hide no collective."""
        for block in self._body:
            yield from self._block_rows(block, ranked, ())
        yield from self._stage_rows(ranked)
        if self.drafter:
            yield from self._drafting(self.drafter.dense_rows(ranked), 1)

    def expert_rows(self, tokens: int, load: DrawnLoad = ()) -> Iterator[Row]:
        """Yield the rows of experts, which `dense_rows` leaves out."""
        for block in self.routed:
            yield from self._expert_rows(block, tokens, load)
        if self.drafter:
            yield from self._drafting(self.drafter.expert_rows(tokens), 1)

    def _block_rows(self, block: Block, ranked: int, experts: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows of a block: its multiplies, and the collectives that these do not hide."""
        rows = [*self._token_rows(block, ranked), *experts]
        yield from rows
        alone = sum(row.seconds for row in rows), sum(row.ideal for row in rows)
        for stage, repeats in self.blocks[block].by_group.items():
            exchanges = self.collectives.of_block(block, ranked, stage)
            yield self._exchange_row(block, repeats, exchanges, ranked, alone)

    def _stage_rows(self, ranked: int) -> Iterator[Row]:
        """Yield the collectives with which stages begin, and the overhead of a step."""
        for stage, members in self.stage_groups.items():
            if gather := self.collectives.gather(ranked, stage):
                yield self._exchange_row(None, members, gather, ranked, (0.0, 0.0))
        yield _overhead_row(self.head, self.last, "step_overhead", self.layout.engine.step_overhead)

    def _exchange_row(
        self,
        part: Block | None,
        repeats: Array,
        exchanges: tuple[Exchange, ...],
        ranked: int,
        computing: tuple[Seconds, Seconds],
    ) -> Row:
        """Return the row of collectives. computing: what may hide them, with losses and without."""
        times = self.collectives.exposed(exchanges, ranked, *computing)
        causes = partial(exchange_causes, self.collectives, exchanges, times[0])
        return Row(part, repeats, *times, IS_COLLECTIVE, causes)

    def _drafting(self, rows: Iterator[Row], passes: int) -> Iterator[Row]:
        """Yield rows of the drafter for some passes, as rows of the last stage's head."""
        for row in rows if passes else ():
            repeats = passes * row.repeats.item() * self.last
            yield row._replace(part=self.head, repeats=repeats)

    def _token_rows(self, block: Block, ranked: int) -> Iterator[Row]:
        """Yield a block's fixed times, and what every token passes: multiplies, and norms.

        An embedding reads a row for each token.
        """
        layout, cost = self.layout, self.blocks[block]
        if block.kind == "embedding":
            width = layout.plan.stored(block, block.matrices[0]).bytes
            time = ranked * layout.model.hidden_size * width / layout.weights_memory.bandwidth
            causes = partial(embedding_causes, layout, time * layout.weights_memory.bandwidth)
            yield Row(block, cost.repeats, time, time, IS_ACTIVATIONS, causes)
            return
        yield from cost.fixed
        for multiply in cost.dense:
            yield from _multiply_rows(layout, block, cost.repeats, multiply, ranked)
        if cost.moved:
            cause = elementwise_cause(layout, ranked * cost.moved)
            causes = partial(tuple, (cause,))
            yield Row(block, cost.repeats, cause.seconds, 0.0, IS_ACTIVATIONS, causes)

    def _expert_rows(self, block: Block, tokens: int, load: DrawnLoad) -> Iterator[Row]:
        """Yield the multiplies of a block's experts, if it has any."""
        if not block.experts:
            return
        if load:
            drawn, most = load[self.routed.index(block)]
            reached, share = float(drawn), most / drawn
        else:
            shards = self.layout.plan.expert
            reached, share = expected_shard(block.experts, self.skew, tokens, shards)
        cost = self.blocks[block]
        own = share * reached
        for multiply in cost.routed:
            yield from _multiply_rows(self.layout, block, cost.repeats, multiply, share, reached)
            yield from moved_rows(self.layout, block, cost.repeats, multiply, tokens, own)

    def sampling_rows(self, logits: int, sequences: int, drafting: int) -> Iterator[Row]:
        """Yield the head for the positions that are sampled, and the engine's time for sequences.

        With speculation, also the further passes of the drafter for the `drafting` sequences.
        Left out: gathering the logits.
        """
        if np.any(logits):
            yield from self.head_rows(logits)
        overhead = self.sequence_overhead(sequences)
        yield _overhead_row(self.head, self.last, "sequence_overhead", overhead)
        if drafting:
            yield from self.draft_rows(drafting)

    def head_rows(self, logits: int) -> Iterator[Row]:
        """Yield the head for the positions that are sampled. logits: may be an array."""
        (head,) = self.blocks[self.head].dense
        yield from _start_rows(self.head, self.last, (head,))
        ranked = self.layout.plan.ranked(logits)
        yield from _multiply_rows(self.layout, self.head, self.last, head, ranked)

    def sequence_overhead(self, sequences: int) -> Seconds:
        """Return the engine's time for the sequences of a step."""
        return self.layout.engine.sequence_overhead * self.layout.plan.ranked(sequences)

    def draft_rows(self, drafting: int) -> Iterator[Row]:
        """Yield what each pass of the drafter adds for some sequences; nothing without a drafter.

        drafting: may be an array.
        """
        if self.drafter:
            passes = len(self.drafter.widths)
            yield from self._drafting(self.drafter.sampling_rows(drafting, drafting, 0), passes)
            body = self.drafter.body_rows(drafting, self.layout.plan.ranked(drafting))
            yield from self._drafting(body, passes - 1)


def _block_cost(layout: Layout, block: Block, groups: dict[int, Array]) -> BlockCost:
    stages = [layout.model.blocks[stage.first : stage.last + 1] for stage in layout.stages]
    repeats = np.array([float(blocks.count(block)) for blocks in stages])
    by_group = {stage: repeats * members for stage, members in groups.items()}
    dense, routed = dense_multiplies(layout, block), expert_multiplies(layout, block)
    counts_moves = layout.engine.elementwise_efficiency is not None
    return BlockCost(
        repeats,
        {stage: counts for stage, counts in by_group.items() if counts.any()},
        dense,
        routed,
        tuple(_fixed_rows(layout.engine, block, repeats, dense, routed)),
        elementwise_bytes(layout, block, dense) if counts_moves else 0.0,
    )


def _fixed_rows(
    engine: Engine,
    block: Block,
    repeats: Array,
    dense: tuple[Multiply, ...],
    routed: tuple[Multiply, ...],
) -> Iterator[Row]:
    """Yield the times of a block that no step changes: overheads, and the starts of multiplies.

    A block has half of the layer's overhead. Experts whose kernel was timed have
    `moe_layer_overhead` in place of that half: the other losses of their block are in the start of
    the kernel.
    """
    if not any(multiply.time_keys[0] for multiply in routed):
        yield _overhead_row(block, repeats, "layer_overhead", engine.layer_overhead / 2)
    yield from _start_rows(block, repeats, dense)
    yield from _start_rows(block, repeats, routed)
    if block.experts:
        overhead = engine.moe_layer_overhead or 0.0
        yield _overhead_row(block, repeats, "moe_layer_overhead", overhead)


def _start_rows(block: Block, repeats: Array, multiplies: tuple[Multiply, ...]) -> Iterator[Row]:
    """Yield the row of the starts of multiplies, if these take any time."""
    if seconds := sum(multiply.fixed for multiply in multiplies):
        causes = partial(fixed_causes, multiplies)
        yield Row(block, repeats, seconds, 0.0, IS_OVERHEAD, causes)


def _multiply_rows(
    layout: Layout,
    block: Block,
    repeats: Array,
    multiply: Multiply,
    tokens: float,
    times: float = 1.0,
) -> Iterator[Row]:
    """Yield the row of a multiply's longer side, and of the unhidden part of the other one.

    times: how often it runs, such as once for each expert.
    """
    sides = multiply_sides(layout, multiply, tokens)
    shares = partial(multiply_shares, layout, multiply, tokens, sides)
    causes = partial(multiply_causes, layout, multiply, tokens, sides, times)
    yield Row(block, repeats, times * sides.longer, times * sides.ideal, shares, causes)
    if multiply.exposed:
        shares = partial(multiply_shares, layout, multiply, tokens, sides, shorter=True)
        causes = partial(unhidden_causes, layout, multiply, tokens, sides)
        yield Row(block, repeats, times * sides.unhidden, 0.0, shares, causes)


def _attention_shares(layout: Layout, shape: Mixer, decode: bool, sides: Sides) -> Shares:
    """Return the terms of attention: computing or reading, and the start of its kernel."""
    term = COMPUTE if sides.compute >= sides.memory else KV
    fixed = attention_losses(layout, shape, decode).fixed
    if not fixed:  # without it a mixer may take no time
        return ((term, 1.0),)
    fixed /= sides.seconds
    return ((term, 1 - fixed), (OVERHEAD, fixed))


def mixer_rows(kinds: Iterable[AttentionKind], work: Work) -> Iterator[Row]:
    """Yield the rows of a step's decodes, and of its prompt chunks, by kind of attention."""
    for kind in kinds:
        if work.decodes:
            yield _attention_row(kind, work, decode=True)
        if work.prompt_tokens and kind.prompts:
            yield _attention_row(kind, work, decode=False)


def _attention_row(kind: AttentionKind, work: Work, decode: bool) -> Row:
    """Return the row of the decodes of a step, or of its prompt chunks."""
    plan, width = kind.layout.plan, kind.width
    if decode:
        core = kind.of_decodes(work.decodes)
        positions = core.decode_positions(work, width)
        ranked = width * plan.ranked(work.decodes), width * work.decodes
    else:
        ranked = work.ranked_prompt, work.prompt_tokens
        core = kind.of_chunks(*ranked)
        positions = core.prompt_positions(work)
    sides = core.sides(*positions)
    causes = partial(attention_causes, kind.layout, kind.shape, positions, ranked, decode, sides)
    shares = partial(_attention_shares, kind.layout, kind.shape, decode, sides)
    return Row(kind.part, kind.layers, sides.seconds, sides.ideal, shares, causes)


def _overhead_row(block: Block, repeats: Array, key: str, seconds: Seconds) -> Row:
    return Row(block, repeats, seconds, 0.0, IS_OVERHEAD, partial(overhead_causes, key, seconds))
