"""The time of one step on each stage: the one place where model, chip and engine meet.

`Costs.rows` is the spelling of a step: its contributions, with their causes. All else adds these
rows up: `step` for the serving loop, `line` for a single stage, `terms` by cause.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from sim.cost.attention import (
    FOREVER,
    AttentionCore,
    DecodeLine,
    attention_core,
    decode_line,
)
from sim.cost.causes import (
    attention_causes,
    embedding_causes,
    exchange_causes,
    fixed_rows,
    multiply_causes,
    overhead_causes,
)
from sim.cost.collectives import Collectives, Exchange
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
    COMPUTE,
    HOPS,
    KV,
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
    """

    def __init__(self, layout: Layout, sampled: np.random.Generator | None = None) -> None:
        self.layout, self.sampled = layout, sampled
        self.stages = len(layout.stages)
        self.collectives = Collectives(layout)
        self.back, self.launch = self.collectives.back, layout.engine.layer_launch
        # Groups of stages with equal collectives: 1 for each member, by the group's first stage.
        first = np.array(self.collectives.representatives)
        self.stage_groups = {s: (first == s).astype(float) for s in dict.fromkeys(first.tolist())}
        self._last = np.array([*[0.0] * (self.stages - 1), 1.0])
        self._head = layout.model.blocks[-1]
        self.blocks = {b: _block_cost(layout, b, self.stage_groups) for b in layout.model.distinct}
        self.shapes = list(dict.fromkeys(b.attention for b in self.blocks if b.attention))
        self.layers: list[Array] = [
            np.sum([c.repeats for b, c in self.blocks.items() if b.attention == shape], axis=0)
            for shape in self.shapes
        ]
        self._first_layers = [float(layers[0]) for layers in self.layers]
        self._no_growth = [0.0] * len(self.shapes)
        self._body: dict[int, Array] = {}
        self._sampling: dict[tuple[int, int], Seconds] = {}
        self._cores: dict[tuple[Attention, int, bool], AttentionCore] = {}
        self._prompt_cores: dict[int, list[AttentionCore]] = {}
        self._lines: dict[int, list[DecodeLine]] = {}
        self._fixed: dict[tuple[int, int, int], Seconds] = {}  # of `line`: all but attention

    # The contributions to a step.

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield all contributions to a step except the hops from stage to stage."""
        yield from self._body_rows(work.tokens)
        yield from self._sampling_rows(work.logits, work.decodes + work.chunks)
        for shape, layers in zip(self.shapes, self.layers, strict=True):
            if work.decodes:
                core = self._core(shape, work.decodes, True)
                yield _attention_row(self.layout, shape, layers, core, work, True)
            if work.prompt_tokens:
                core = self._core(shape, work.prompt_tokens, False)
                yield _attention_row(self.layout, shape, layers, core, work, False)

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
                    yield _exchange_row(self.collectives, block, repeats, exchanges, time)
        for stage, members in self.stage_groups.items():
            if gather := self.collectives.gather(tokens, stage):
                time = self.collectives.exposed(gather, tokens, 0.0, 0.0)
                yield _exchange_row(self.collectives, None, members, gather, time)
        yield _overhead(self._head, self._last, "step_overhead", self.layout.engine.step_overhead)

    def _block_rows(self, block: Block, cost: BlockCost, tokens: int) -> Iterator[Row]:
        """Yield a block's multiplies and its half of the layer's overhead, but not its attention.

        An embedding reads a row for each token.
        """
        layout, ranked = self.layout, self.layout.plan.ranked(tokens)
        if block.kind == "embedding":
            width = layout.plan.stored(block, block.matrices[0]).bytes
            time = ranked * layout.model.hidden_size * width / layout.weights_memory.bandwidth
            causes = partial(embedding_causes, layout, time * layout.weights_memory.bandwidth)
            yield Row(block, cost.repeats, time, time, ((ACTIVATIONS, 1.0),), causes)
            return
        yield _overhead(block, cost.repeats, "layer_overhead", layout.engine.layer_overhead / 2)
        yield from fixed_rows(block, cost.repeats, cost.dense)
        for multiply in cost.dense:
            yield _multiply_row(layout, block, cost.repeats, multiply, ranked, 1.0)
        if block.experts:
            reached, share = self._reached(block.experts, tokens)
            for multiply in cost.routed:
                yield _multiply_row(layout, block, cost.repeats, multiply, share, reached)
            overhead = layout.engine.moe_layer_overhead or 0.0
            yield _overhead(block, cost.repeats, "moe_layer_overhead", overhead)

    def _sampling_rows(self, logits: int, sequences: int) -> Iterator[Row]:
        """Yield the head for the positions that are sampled, and the engine's time for sequences.

        Left out: gathering the logits.
        """
        ranked = self.layout.plan.ranked
        if logits:
            (head,) = self.blocks[self._head].dense
            yield from fixed_rows(self._head, self._last, (head,))
            yield _multiply_row(self.layout, self._head, self._last, head, ranked(logits), 1.0)
        overhead = self.layout.engine.sequence_overhead * ranked(sequences)
        yield _overhead(self._head, self._last, "sequence_overhead", overhead)

    def _reached(self, experts: Experts, tokens: int) -> tuple[float, float]:
        """Return the experts that the slowest shard reaches, and the tokens of each of them."""
        skew, shards = self.layout.engine.moe_skew or 0.0, self.layout.plan.expert
        if self.sampled:
            return slowest_shard(experts, skew, tokens, shards, self.sampled, 1)
        return expected_shard(experts, skew, tokens, shards)

    def _core(self, shape: Attention, tokens: int, decode: bool) -> AttentionCore:
        key = shape, tokens, decode
        if key not in self._cores:
            self._cores[key] = attention_core(self.layout, shape, tokens, decode)
        return self._cores[key]

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
        key = decodes + work.prompt_tokens, work.logits, decodes + work.chunks
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
        sampling = self.sampling(work.logits, work.decodes + work.chunks)
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

    def sampling(self, logits: int, sequences: int) -> Seconds:
        """Return the seconds that the head and the sequences add to the last stage."""
        key = logits, sequences
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
        cores = zip(self.shapes, self._prompts(tokens), strict=True)
        rows = [[*core.compute, *core.memory, shape.window or FOREVER] for shape, core in cores]
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
            cores = [self._core(shape, tokens, False) for shape in self.shapes]
            self._prompt_cores[tokens] = cores
        return self._prompt_cores[tokens]

    def _decode_lines(self, decodes: int) -> list[DecodeLine]:
        if decodes not in self._lines:
            cores = (self._core(shape, decodes, True) for shape in self.shapes)
            self._lines[decodes] = [decode_line(core) for core in cores]
        return self._lines[decodes]


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


def _multiply_row(
    layout: Layout, block: Block, repeats: Array, multiply: Multiply, tokens: float, times: float
) -> Row:
    """Return the row of a multiply that runs `times` times, such as once for each expert."""
    sides = multiply_sides(layout, multiply, tokens)
    shares = multiply_shares(layout, multiply, tokens, sides)
    causes = partial(multiply_causes, layout, multiply, tokens, sides, times)
    return Row(block, repeats, times * sides.seconds, times * sides.ideal, shares, causes)


def _attention_row(
    layout: Layout, shape: Attention, layers: Array, core: AttentionCore, work: Work, decode: bool
) -> Row:
    tokens = work.decodes if decode else work.prompt_tokens
    sides = core.decode_sides(work) if decode else core.prompt_sides(work)
    positions = core.decode_positions(work) if decode else core.prompt_positions(work)
    ranked = layout.plan.ranked(tokens), tokens
    causes = partial(attention_causes, layout, shape, positions, ranked, decode, sides)
    term = COMPUTE if sides.compute >= sides.memory else KV
    return Row(shape, layers, sides.seconds, sides.ideal, ((term, 1.0),), causes)


def _exchange_row(
    collectives: Collectives,
    part: Block | None,
    repeats: Array,
    exchanges: tuple[Exchange, ...],
    times: tuple[Seconds, Seconds],
) -> Row:
    """Return the row of collectives. times: not hidden, with losses and without."""
    causes = partial(exchange_causes, collectives, exchanges, times[0])
    return Row(part, repeats, *times, _IS_COLLECTIVE, causes)


def _overhead(block: Block, repeats: Array, key: str, seconds: Seconds) -> Row:
    causes = partial(overhead_causes, key, seconds)
    return Row(block, repeats, seconds, 0.0, _IS_OVERHEAD, causes)


def _total(rows: Iterator[Row], stages: int) -> Array:
    if stages == 1:  # plain floats are ten times as fast as arrays of one number
        return np.array([sum(row.repeats.item() * row.seconds for row in rows)])
    total = np.zeros(stages)
    for row in rows:
        total += row.repeats * row.seconds
    return total
