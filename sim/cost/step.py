"""The time of one step on each stage: the one place where model, chip and engine meet.

`Costs.rows` is the spelling of a step: its contributions, with their causes. All else adds these
rows up: `step` for the serving loop, `line` for a single stage, `terms` by cause.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sim.cost.attention import FOREVER, AttentionCore, AttentionKind, DecodeLine
from sim.cost.collectives import Collectives
from sim.cost.experts import expected_shard, slowest_shard
from sim.cost.layout import Layout
from sim.cost.multiplies import (
    Multiply,
    dense_multiplies,
    expert_multiplies,
    multiply_shares,
    multiply_sides,
)
from sim.cost.terms import (
    ACTIVATIONS,
    COLLECTIVES,
    HOPS,
    OVERHEAD,
    TIME,
    Array,
    Row,
    by_term,
)
from sim.cost.work import Work
from sim.model.blocks import Attention, Block, Experts
from sim.units import Seconds

_IS_OVERHEAD, _IS_COLLECTIVE = ((OVERHEAD, 1.0),), ((COLLECTIVES, 1.0),)


class Step(NamedTuple):
    """The next step on each stage.

    time: float[stage] [s].
    growth: float[stage], what each further identical step adds as the KV cache grows [s].
    holds: identical steps for which this growth holds.
    """

    time: Array
    growth: Array | float
    holds: int


class Parts(NamedTuple):
    """A step as the compiled pipeline adds it up.

    body: float[stage], the part that depends on the number of tokens alone [s].
    sampling: what the last stage adds for the head and the sequences [s].
    attention, growth: by kind of attention, one layer's time, and what each further step adds [s].
    """

    body: Array
    sampling: Seconds
    attention: list[Seconds]
    growth: list[Seconds]
    holds: int


@dataclass(frozen=True, slots=True)
class BlockCost:
    """How often stages have a block, and its matrices. No step changes these.

    by_group: `repeats` in each group of stages with equal collectives, by its first stage.
    """

    repeats: Array
    by_group: dict[int, Array]
    dense: tuple[Multiply, ...]
    routed: tuple[Multiply, ...]


class Costs:
    """The cost of steps on one layout. Times that depend on token counts alone are kept.

    sampled: a random stream that routes the tokens of each step to experts; None: expectations.
    widths: tokens of a decoding sequence in each pass of a step; None: one pass of the layout's.
    drafter: the cost of the drafter on the last stage; None without speculation. In a step it
    takes all tokens once, as its target does, and then a token of each sequence for each further
    draft. Source: vLLM v1, spec_decode/eagle.py.
    """

    def __init__(
        self,
        layout: Layout,
        sampled: np.random.Generator | None = None,
        widths: tuple[int, ...] | None = None,
    ) -> None:
        self.layout, self.sampled, self.widths = layout, sampled, widths or (layout.width,)
        self.stages = len(layout.stages)
        self.collectives = Collectives(layout)
        self.back, self.launch = self.collectives.back, layout.engine.layer_launch
        # Groups of stages with equal collectives: 1 for each member, by the group's first stage.
        first = np.array(self.collectives.representatives)
        self.stage_groups = {s: (first == s).astype(float) for s in dict.fromkeys(first.tolist())}
        self._last = np.array([*[0.0] * (self.stages - 1), 1.0])
        self._head = layout.model.blocks[-1]
        self.blocks = {b: _block_cost(layout, b, self.stage_groups) for b in layout.model.distinct}
        self.drafter: Costs | None = None
        if layout.drafter:
            self.drafter = Costs(layout.drafter, widths=(layout.width, *[1] * (layout.width - 2)))
        self.kinds = [*self._own_kinds(), *self._draft_kinds()]
        self.layers: list[Array] = [kind.layers for kind in self.kinds]
        self._first_layers = [float(layers[0]) for layers in self.layers]
        self._no_growth = [0.0] * len(self.kinds)
        self._body: dict[int, Array] = {}
        self._sampling: dict[tuple[int, int, int], Seconds] = {}
        self._prompt_cores: dict[int, list[AttentionCore]] = {}
        self._lines: dict[int, list[DecodeLine]] = {}
        self._fixed: dict[tuple[int, int, int, int], Seconds] = {}  # of `line`: all but attention

    def _own_kinds(self) -> Iterator[AttentionKind]:
        """Yield the kinds of attention of the layout's model."""
        for shape in dict.fromkeys(b.attention for b in self.blocks if b.attention):
            repeats = [c.repeats for b, c in self.blocks.items() if b.attention == shape]
            layers, (first, *further) = np.sum(repeats, axis=0), self.widths
            yield AttentionKind(self.layout, shape, layers, shape, first)
            if further:
                layers = len(further) * layers
                yield AttentionKind(self.layout, shape, layers, shape, further[0], prompts=False)

    def _draft_kinds(self) -> Iterator[AttentionKind]:
        """Yield the kinds of the drafter's attention, as parts of the last stage's head."""
        for kind in self.drafter.kinds if self.drafter else ():
            layers, others = kind.layers.item() * self._last, (kind.width, kind.prompts)
            yield AttentionKind(kind.layout, kind.shape, layers, self._head, *others)

    # The contributions to a step.

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield all contributions to a step except the hops from stage to stage."""
        yield from self._body_rows(work.tokens)
        yield from self._sampling_rows(work.logits, work.decodes + work.chunks, work.decodes)
        for kind in self.kinds:
            if work.decodes:
                sides = kind.of_decodes(work.decodes).decode_sides(work, kind.width)
                yield kind.row(sides)
            if work.prompt_tokens and kind.prompts:
                yield kind.row(kind.of_chunks(work.prompt_tokens).prompt_sides(work))

    def _body_rows(self, tokens: int) -> Iterator[Row]:
        """Yield the rows that depend on tokens alone: blocks, collectives, the overhead of a step.

        Left out: the head, and attention.
        """
        for block, cost in self.blocks.items():
            if block.kind != "head":
                rows = [*self._block_rows(block, cost, tokens)]
                yield from rows
                alone = sum(row.seconds for row in rows), sum(row.ideal for row in rows)
                for stage, repeats in cost.by_group.items():
                    exchanges = self.collectives.of_block(block, tokens, stage)
                    time = self.collectives.exposed(exchanges, tokens, *alone)
                    yield Row(block, repeats, *time, _IS_COLLECTIVE)
        for stage, members in self.stage_groups.items():
            if gather := self.collectives.gather(tokens, stage):
                time = self.collectives.exposed(gather, tokens, 0.0, 0.0)
                yield Row(None, members, *time, _IS_COLLECTIVE)
        overhead = self.layout.engine.step_overhead
        yield Row(self._head, self._last, overhead, 0.0, _IS_OVERHEAD)
        if self.drafter:
            yield from self._drafting(self.drafter._body_rows(tokens), 1)

    def _drafting(self, rows: Iterator[Row], passes: int) -> Iterator[Row]:
        """Yield rows of the drafter for some passes, as rows of the last stage's head."""
        for row in rows if passes else ():
            repeats = passes * row.repeats.item() * self._last
            yield row._replace(part=self._head, repeats=repeats)

    def _block_rows(self, block: Block, cost: BlockCost, tokens: int) -> Iterator[Row]:
        """Yield a block's multiplies and its half of the layer's overhead, but not its attention.

        An embedding reads a row for each token.
        """
        layout, ranked = self.layout, self.layout.plan.ranked(tokens)
        if block.kind == "embedding":
            width = layout.plan.precision(block).bytes
            time = ranked * layout.model.hidden_size * width / layout.weights_memory.bandwidth
            yield Row(block, cost.repeats, time, time, ((ACTIVATIONS, 1.0),))
            return
        overhead = layout.engine.layer_overhead / 2
        yield Row(block, cost.repeats, overhead, 0.0, _IS_OVERHEAD)
        for multiply in cost.dense:
            yield self._multiply_row(block, cost.repeats, multiply, ranked)
        if block.experts:
            reached, share = self._reached(block.experts, tokens)
            for multiply in cost.routed:
                row = self._multiply_row(block, cost.repeats, multiply, share)
                yield row._replace(seconds=reached * row.seconds, ideal=reached * row.ideal)
            overhead = layout.engine.moe_layer_overhead or 0.0
            yield Row(block, cost.repeats, overhead, 0.0, _IS_OVERHEAD)

    def _sampling_rows(self, logits: int, sequences: int, drafting: int) -> Iterator[Row]:
        """Yield the head for the positions that are sampled, and the engine's time for sequences.

        With speculation, also what each pass of the drafter adds for the `drafting` sequences.
        Left out: gathering the logits.
        """
        ranked = self.layout.plan.ranked
        if logits:
            (head,) = self.blocks[self._head].dense
            yield self._multiply_row(self._head, self._last, head, ranked(logits))
        overhead = self.layout.engine.sequence_overhead * ranked(sequences)
        yield Row(self._head, self._last, overhead, 0.0, _IS_OVERHEAD)
        if self.drafter and drafting:
            passes, heads = (
                len(self.drafter.widths),
                self.drafter._sampling_rows(drafting, drafting, 0),
            )
            yield from self._drafting(heads, passes)
            yield from self._drafting(self.drafter._body_rows(drafting), passes - 1)

    def _multiply_row(self, block: Block, repeats: Array, multiply: Multiply, tokens: float) -> Row:
        sides = multiply_sides(self.layout, multiply, tokens)
        shares = multiply_shares(self.layout, multiply, tokens, sides)
        return Row(block, repeats, sides.seconds, sides.ideal, shares)

    def _reached(self, experts: Experts, tokens: int) -> tuple[float, float]:
        """Return the experts that the slowest shard reaches, and the tokens of each of them."""
        skew, shards = self.layout.engine.moe_skew or 0.0, self.layout.plan.expert
        if self.sampled:
            return slowest_shard(experts, skew, tokens, shards, self.sampled, 1)
        return expected_shard(experts, skew, tokens, shards)

    # Sums of the contributions.

    def step(self, work: Work) -> Step:
        """Return the next step on each stage.

        A step with decodes alone grows linearly until the other side of attention's roofline binds
        (`holds`), or until a window fills. The caller watches the windows.
        """
        parts = self.parts(work)
        time, growth = parts.body.copy(), np.zeros(self.stages)
        time[-1] += parts.sampling
        for layers, now, more in zip(self.layers, parts.attention, parts.growth, strict=True):
            time += layers * now
            growth += layers * more
        if self.launch:  # the step at which each stage outgrows its launch is not computed
            return Step(np.maximum(time, self.launching(work)), 0.0, 1)
        return Step(time, growth, parts.holds)

    def line(self, work: Work) -> tuple[Seconds, Seconds, int]:
        """Return time, growth and holds of `step` for a layout of one stage, in plain floats.

        Plain floats are ten times as fast as arrays of one number.
        """
        decodes = work.decodes
        tokens = decodes * work.width + work.prompt_tokens
        drafting = decodes if self.drafter else 0
        key = tokens, work.logits, decodes + work.chunks, drafting
        if key not in self._fixed or self.sampled:
            self._fixed[key] = self.body(key[0]).item() + self.sampling(*key[1:])
        time, growth, holds = self._fixed[key], 0.0, 1 if self.sampled else FOREVER
        layers = self._first_layers
        if decodes:
            for kind, line in enumerate(self._decode_lines(decodes)):
                now, more, steps = line.at(work)
                time += layers[kind] * now
                growth += layers[kind] * more
                if steps < holds:
                    holds = steps
        if work.prompt_tokens:
            for kind, core in enumerate(self._prompts(work.prompt_tokens)):
                time += layers[kind] * core.prompt_seconds(work)
            growth, holds = 0.0, 1
        if self.launch and time < (launch := self.launching(work).item()):
            return launch, 0.0, min(holds, 1 + int((launch - time) / growth)) if growth else holds
        return time, growth, holds

    def parts(self, work: Work) -> Parts:
        """Return the step in the parts that the compiled pipeline adds up."""
        drafting = work.decodes if self.drafter else 0
        sampling = self.sampling(work.logits, work.decodes + work.chunks, drafting)
        return Parts(self.body(work.tokens), sampling, *self._attention(work))

    def terms(self, work: Work) -> Array:
        """Return float[stage, time or fitted, term]: the step by cause [s].

        Hops stand with the stage that they lead to.
        """
        table = by_term(self.rows(work), self.stages)
        if self.launch:
            wait = self.launching(work) - table[:, TIME].sum(axis=1)
            table[:, :, OVERHEAD] += np.maximum(0.0, wait)[:, None]
        table[:, TIME, HOPS] += self.hops(work.tokens)
        return table

    def computing(self, work: Work) -> dict[Block, Seconds]:
        """Return the seconds that each block takes every chip of its stage, without messages."""
        parts: dict[Block | Attention | None, Seconds] = defaultdict(float)
        for row in self.rows(work):
            if row.shares is not _IS_COLLECTIVE:
                parts[row.part] += row.seconds
        return {b: parts[b] + (parts[b.attention] if b.attention else 0.0) for b in self.blocks}

    def body(self, tokens: int) -> Array:
        """Return float[stage]: the seconds that depend on the number of tokens alone."""
        if tokens not in self._body or self.sampled:
            self._body[tokens] = _total(self._body_rows(tokens), self.stages)
        return self._body[tokens]

    def sampling(self, logits: int, sequences: int, drafting: int) -> Seconds:
        """Return the seconds that the head, the sequences and drafts add to the last stage.

        drafting: sequences for which drafts are made.
        """
        key = logits, sequences, drafting
        if key not in self._sampling:
            self._sampling[key] = float(_total(self._sampling_rows(*key), self.stages)[-1])
        return self._sampling[key]

    def hops(self, tokens: int) -> Array:
        """Return float[stage]: seconds from each stage's predecessor to it; 0 for the first."""
        return self.collectives.hops(tokens)

    def launching(self, work: Work) -> Array:
        """Return float[stage]: the seconds in which the host launches the layers."""
        assert self.launch
        layers: Array = np.sum(self.layers, axis=0)
        return layers * (self.launch.prefill if work.prompt_tokens else self.launch.decode)

    def chunk_lines(self, tokens: int) -> Array:
        """Return float[kind, 7]: a chunk's `LinearTime` to compute, and to read, and the window."""
        cores = zip(self.kinds, self._prompts(tokens), strict=True)
        rows = [[*core.compute, *core.memory, kind.shape.window or FOREVER] for kind, core in cores]
        return np.array(rows).reshape(-1, 7)

    def _attention(self, work: Work) -> tuple[list[Seconds], list[Seconds], int]:
        """Return one layer's time and growth by kind of attention, and for how many steps."""
        times, growth, holds = [], [], 1 if self.sampled else FOREVER
        if work.decodes:
            for line in self._decode_lines(work.decodes):
                now, more, steps = line.at(work)
                times.append(now)
                growth.append(more)
                if steps < holds:
                    holds = steps
        if work.prompt_tokens:
            prompts = [core.prompt_seconds(work) for core in self._prompts(work.prompt_tokens)]
            times = [a + b for a, b in zip(times, prompts, strict=True)] if times else prompts
            return times, self._no_growth, 1
        return times, growth, holds

    def _prompts(self, tokens: int) -> list[AttentionCore]:
        if tokens not in self._prompt_cores:
            self._prompt_cores[tokens] = [kind.of_chunks(tokens) for kind in self.kinds]
        return self._prompt_cores[tokens]

    def _decode_lines(self, decodes: int) -> list[DecodeLine]:
        if decodes not in self._lines:
            self._lines[decodes] = [kind.line(decodes) for kind in self.kinds]
        return self._lines[decodes]


def block_times(costs: Costs, work: Work) -> dict[Block, Seconds]:
    """Return the seconds that each block adds to the first stage, if the block is there.

    Stages are balanced by them.
    Left out: the gather with which every stage but the first begins.
    """
    times = {}
    for block, time in costs.computing(work).items():
        exchanges = costs.collectives.of_block(block, work.tokens, 0)
        times[block] = time + costs.collectives.exposed(exchanges, work.tokens, time, 0.0)[0]
    return times


def _block_cost(layout: Layout, block: Block, groups: dict[int, Array]) -> BlockCost:
    stages = [layout.model.blocks[stage.first : stage.last + 1] for stage in layout.stages]
    repeats = np.array([float(blocks.count(block)) for blocks in stages])
    by_group = {stage: repeats * members for stage, members in groups.items()}
    return BlockCost(
        repeats,
        {stage: counts for stage, counts in by_group.items() if counts.any()},
        dense_multiplies(layout, block),
        expert_multiplies(layout, block),
    )


def _total(rows: Iterator[Row], stages: int) -> Array:
    if stages == 1:  # plain floats are ten times as fast as arrays of one number
        return np.array([sum(row.repeats.item() * row.seconds for row in rows)])
    total = np.zeros(stages)
    for row in rows:
        total += row.repeats * row.seconds
    return total
