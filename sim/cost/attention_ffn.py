"""The cost of steps whose attention and MLPs are on two pools of chips.

A step is cut into micro-batches. In every layer each micro-batch passes the attention pool, the
link out, the FFN pool and the link back. It reads the weights again.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from operator import mul

import numpy as np

from sim.cost.attention import FOREVER
from sim.cost.causes import ffn_causes, transfer_causes
from sim.cost.energy import Tally, cut_steps
from sim.cost.ffn_pool import FfnPool
from sim.cost.layer_cycle import (
    BETWEEN_STAGES,
    Critical,
    LayerTimes,
    critical_times,
    steps_until_other,
)
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.layout import Layout
from sim.cost.rows import StepRows, mixer_rows
from sim.cost.step import Costs
from sim.cost.system_costs import Step
from sim.cost.terms import IS_HOP, Array, Row, weighted_sum
from sim.cost.work import Work
from sim.model.blocks import Block, Mixer
from sim.units import Bytes, Seconds


class AttentionFfnCosts:
    """The cost of steps on an attention pool and an FFN pool, whose micro-batches take turns.

    Embedding, head, drafter and the engine's time for a step and its sequences are on the attention
    pool. They count once a step, before and after all layers. With drafts, a step is cut between
    sequences: all tokens of a sequence are in one micro-batch.
    The collectives of the FFN pool are between its chips' computing for one micro-batch. Its
    engine's `overlap` is the share of them that runs while the chips compute another one.
    attention: the costs of the attention part of the model on its pool, which is one stage.
    ffn: those of the FFN part.

    Left out: overlap of a layer with a neighbour of another kind, and of a step with the next one.
    Left out: cached positions that several micro-batches read for one prompt.
    """

    def __init__(
        self,
        layout: Layout,
        ffn: Layout,
        transfer: LayerTransfer,
        micro_batches: int,
    ) -> None:
        self.layout, self.stages = layout, 1
        self.attention, self.ffn = Costs(layout), FfnPool(ffn, transfer)
        self.back = self.attention.back
        self.transfer, self.micro_batches = transfer, micro_batches
        pairs = list(zip(layout.model.blocks[1:-1], ffn.model.blocks, strict=True))
        self.layer_kinds, self.last_layer = Counter(pairs), pairs[-1]
        # Layers whose next one is on another FFN stage.
        self.before_stages = Counter(pairs[first - 1] for first in ffn.bounds[1:])
        # Attention of each block, and of the drafter, as pairs: place in `kinds`, and layers.
        kinds, head = list(enumerate(self.attention.kinds)), self.attention.head
        places = {kind.shape: place for place, kind in kinds if kind.part != head}
        self._mixers = {
            block: [(places[mixer], 1.0) for mixer in block.mixers] for block, _ in self.layer_kinds
        }
        self._draft_mixers = [
            (place, kind.layers.item()) for place, kind in kinds if kind.part == head
        ]
        self._times: dict[tuple[int, int], dict[Block | Mixer | None, Seconds]] = {}
        self._layer: dict[tuple[Block, Block, int, int], LayerTimes] = {}

    @property
    def model(self) -> "AttentionFfnCosts":
        return self

    def on(self, layout: Layout) -> "AttentionFfnCosts":
        return AttentionFfnCosts(layout, self.ffn.layout, self.transfer, self.micro_batches)

    def with_micro_batches(self, micro_batches: int) -> "AttentionFfnCosts":
        """Return the costs with another number of micro-batches, which shares all times."""
        other = copy(self)
        other.micro_batches = micro_batches
        return other

    def step(self, work: Work) -> Step:
        time, growth, holds = self.line(work)
        return Step(np.array([time]), np.array([growth]), holds)

    def hops(self, ranked: int) -> Array:
        return np.zeros(1)

    def line(self, work: Work) -> tuple[Seconds, Seconds, int]:
        m, part = self.micro_batch(work)
        seconds, growth, holds = self._with_attention(0.0, self._draft_mixers, work)
        seconds += self._once(work)
        if work.prompt_tokens:
            growth, holds = 0.0, 1
        for pair in self.layer_kinds:
            times, more, steps = self.layer_times(pair, part)
            parts = self._cycles(pair, times, m)
            for count, once in parts:
                seconds += count * weighted_sum(times, once)
            if more and not work.prompt_tokens:
                growth += more * sum(count * once.attention for count, once in parts)
                holds = min(holds, steps, steps_until_other(times, more, m))
                if self.before_stages[pair]:
                    holds = min(holds, steps_until_other(times, more, m, BETWEEN_STAGES))
        return seconds, growth, holds

    def _cycles(
        self, pair: tuple[Block, Block], times: LayerTimes, m: int
    ) -> list[tuple[int, LayerTimes]]:
        """Return the cycles of a kind of layer in a step, and the fill, each with its number."""
        critical, before = critical_times(times, m), self.before_stages[pair]
        cycles = [(self.layer_kinds[pair] - before, critical.cycle)]
        if before:
            cycles.append((before, critical_times(times, m, BETWEEN_STAGES).cycle))
        if pair == self.last_layer:
            cycles.append((1, critical.fill))
        return cycles

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield the contributions to a step, each as often as it is on the critical path."""
        yield from self.rows_once(work)
        m, part = self.micro_batch(work)
        for pair in self.layer_kinds:
            times = self.layer_times(pair, part)[0]
            numbers, cycles = zip(*self._cycles(pair, times, m), strict=True)
            counts = LayerTimes(*(sum(map(mul, numbers, own)) for own in zip(*cycles, strict=True)))
            for row in self.attention_rows(pair[0], part):
                yield row._replace(repeats=np.array([counts.attention]))
            passes = self.ffn.passes(part.tokens)[0]
            for row in self.ffn.layer_rows(pair[1], part.tokens):
                causes = partial(ffn_causes, row)
                yield row._replace(repeats=np.array([counts.ffn * passes]), causes=causes)
            if times.overlapped:
                row = self.ffn.overlapped_row(pair[1], part.tokens)
                yield row._replace(repeats=np.array([counts.overlapped * passes]))
            yield from _link_rows(self.transfer, times, counts)

    def micro_batch(self, work: Work) -> tuple[int, Work]:
        """Return the number of micro-batches of a step, and the work of the largest one."""
        parts = max(1, min(self.micro_batches, work.decodes + work.prompt_tokens))
        return parts, work.part(parts)

    def layer_times(self, pair: tuple[Block, Block], work: Work) -> tuple[LayerTimes, Seconds, int]:
        """Return the times of a micro-batch in a layer, what each further step adds, and holds.

        pair: the layer's blocks in the attention pool and in the FFN pool.
        """
        attention, ffn = pair
        key = attention, ffn, *self.layout.step_size(work)
        if key not in self._layer:
            self._layer[key] = self._layer_without_mixers(*key)
        times = self._layer[key]
        seconds, growth, holds = self._with_attention(
            times.attention, self._mixers[attention], work
        )
        return times._replace(attention=seconds), growth, holds

    def _with_attention(
        self, seconds: Seconds, mixers: list[tuple[int, float]], work: Work
    ) -> tuple[Seconds, Seconds, int]:
        """Add the times of mixers to seconds. Return the sum, its growth, and `holds` of `Step`.

        mixers: the place of each in `kinds`, and its number of layers.
        """
        growth, holds = 0.0, FOREVER
        for place, layers in mixers:
            if work.decodes:
                now, more, steps = self.attention.decode_lines(work.decodes)[place].at(work)
                seconds, growth = seconds + layers * now, growth + layers * more
                holds = min(holds, steps)
            if work.prompt_tokens:
                seconds += layers * self.attention.prompt_cores(work)[place].prompt_seconds(work)
        return seconds, growth, holds

    def step_layers(self, work: Work) -> dict[tuple[Block, Block], tuple[LayerTimes, Critical]]:
        """Return the times of a micro-batch and the critical path, for each kind of layer."""
        m, part = self.micro_batch(work)
        times = {pair: self.layer_times(pair, part)[0] for pair in self.layer_kinds}
        return {pair: (own, critical_times(own, m)) for pair, own in times.items()}

    def ffn_seconds(self, tokens: int) -> Seconds:
        """Return the time for which the FFN pool works on one micro-batch in all layers."""
        return sum(
            layers * self.ffn.layer_seconds(ffn, tokens)[0]
            for (_, ffn), layers in self.layer_kinds.items()
        )

    def sent(self, tally: Tally) -> Bytes:
        """Return the bytes between the pools for the steps of a tally, in both directions."""
        a_token = sum(
            layers * sum(self.transfer.token_bytes(self.ffn.layout, ffn))
            for (_, ffn), layers in self.layer_kinds.items()
        )
        return a_token * sum(tokens * steps for tokens, steps in tally.batch_steps.items())

    def link_bytes(self, tokens: int) -> Bytes:
        """Return the bytes of a step on links. Those between the pools cross one cable."""
        step = Tally()
        step.batch_steps[tokens] = 1
        return self.sent(step) + sum(
            count * rows.link_bytes(part)
            for rows, tally in self.spread(step)
            for part, count in tally.batch_steps.items()
        )

    def spread(self, tally: Tally) -> list[tuple[StepRows, Tally]]:
        """Return the rows and the tallies of both pools, with a step for each micro-batch."""
        beat = self.ffn.layout.engine.tokens_per_beat
        width = self.layout.width
        cut = cut_steps(tally, lambda tokens: min(self.micro_batches, -(-tokens // width)))
        attention = replace(cut, between=tally.between + self.sent(tally))
        ffn = cut_steps(cut, lambda tokens: -(-tokens // beat)) if beat else cut
        return [(self.attention, attention), (self.ffn.rows, ffn)]

    def _layer_without_mixers(
        self, attention: Block, ffn: Block, tokens: int, ranked: int
    ) -> LayerTimes:
        ways = self.transfer.busy(self.layout, self.ffn.layout, ffn, tokens, ranked)
        out, back = (self.transfer.latency + busy for busy in ways)
        busy, overlapped = self.ffn.layer_seconds(ffn, tokens)
        seconds = self._by_part(tokens, ranked)[attention]
        return LayerTimes(seconds, out, busy, back, *ways, overlapped=overlapped)

    def attention_rows(self, block: Block, work: Work) -> Iterator[Row]:
        """Yield the rows of a layer's block in the attention pool, with its mixers."""
        rows = self.attention.body_rows(*self.layout.step_size(work))
        yield from (row for row in rows if row.part == block)
        yield from mixer_rows((self.attention.kinds[n] for n, _ in self._mixers[block]), work)

    def rows_once(self, work: Work) -> Iterator[Row]:
        """Yield the rows of a step outside of its layers."""
        layers = {attention for attention, _ in self.layer_kinds}
        own = self.attention
        rows = own.body_rows(*self.layout.step_size(work))
        yield from (row for row in rows if row.part not in layers)
        yield from own.sampling_rows(work.logits, work.decodes + work.chunks, work.decodes)
        yield from mixer_rows((own.kinds[n] for n, _ in self._draft_mixers), work)

    def _once(self, work: Work) -> Seconds:
        """Return the seconds of a step outside of its layers."""
        parts = self._by_part(*self.layout.step_size(work))
        outside = parts[self.layout.model.blocks[0]] + parts[self.attention.head] + parts[None]
        return outside + self.attention.sampling(work)

    def _by_part(self, tokens: int, ranked: int) -> dict[Block | Mixer | None, Seconds]:
        """Return the seconds of a part's rows that depend on tokens alone, for one layer of it.

        The rows of the head include all layers and passes of a drafter.
        """
        key = tokens, ranked
        if key not in self._times:
            seconds: defaultdict[Block | Mixer | None, Seconds] = defaultdict(float)
            for row in self.attention.body_rows(*key):
                repeats = row.repeats.item() if row.part is self.attention.head else 1.0
                seconds[row.part] += repeats * row.seconds
            self._times[key] = seconds
        return self._times[key]


def _link_rows(transfer: LayerTransfer, times: LayerTimes, counts: LayerTimes) -> Iterator[Row]:
    """Yield the rows of a layer's messages. The busy time of a link leaves the latency out."""
    for name in ("out", "back", "out_busy", "back_busy"):
        way, seconds = name.removesuffix("_busy"), getattr(times, name)
        latency = transfer.latency if name == way else 0.0
        busy, repeats = seconds - latency, np.array([getattr(counts, name)])
        causes = partial(transfer_causes, way, latency, busy, transfer.bandwidth)
        yield Row(None, repeats, seconds, seconds, IS_HOP, causes)
