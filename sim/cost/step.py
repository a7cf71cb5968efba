"""The time of one step on each stage: the one place where model, chip and engine meet.

`StepRows.rows` is the spelling of a step: its contributions, with their causes. All else adds these
rows up: `step` for the serving loop, `line` for a single stage, `terms` by cause.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from sim.cost.attention import FOREVER, AttentionCore, DecodeLine
from sim.cost.experts import DrawnLoad, load_spacing
from sim.cost.layout import Layout
from sim.cost.rows import IS_COLLECTIVE, StepRows
from sim.cost.terms import HOPS, OVERHEAD, TIME, Array, RowSums, by_term
from sim.cost.work import Work
from sim.model.blocks import Block, Mixer
from sim.units import Seconds

# Numbers of tokens whose times are computed together. Pipelines have many times for each.
TOGETHER, TOGETHER_IN_PIPELINES = 512, 64


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
    """The parts of a step in addition to its `body`, which depends on the number of tokens alone.

    sampling: what the last stage adds for the head and the sequences [s].
    attention, growth: by kind of attention, one layer's time, and what each further step adds [s].
    """

    sampling: Seconds
    attention: list[Seconds]
    growth: list[Seconds]
    holds: int


class Costs(StepRows):
    """The cost of steps on one layout. Times that depend on token counts alone are kept."""

    def __init__(
        self,
        layout: Layout,
        expert_seed: Sequence[int] | None = None,
        widths: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(layout, expert_seed, widths)
        self.back, self.launch = self.collectives.back, layout.engine.layer_launch
        self.layers: list[Array] = [kind.layers for kind in self.kinds]
        # Layers that a host launches, each with its mixers, in each pass of a step.
        self.launched: Array = self._mixing()
        self._first_layers = [float(layers[0]) for layers in self.layers]
        self._no_growth = [0.0] * len(self.kinds)
        overlaps = layout.engine.overlap and layout.plan.attention_data > 1
        self.hides = bool(overlaps and self.has_experts)
        self.together = 1
        if self.takes_arrays:
            self.together = TOGETHER if self.stages == 1 else TOGETHER_IN_PIPELINES
        summed = partial(RowSums, self.stages)
        self._bodies, self._dense = summed(self.body_rows), summed(partial(self.body_rows, None))
        self._experts, self._heads, self._drafts = map(
            summed, (self.expert_rows, self.head_rows, self.draft_rows)
        )
        # For each kind of attention: its layers on the first stage, and the time of one of them.
        self._prompt_cores: dict[tuple[int, int], list[tuple[float, AttentionCore]]] = {}
        self._lines: dict[int, list[tuple[float, DecodeLine]]] = {}
        self._fixed: dict[tuple[int | None, ...], Seconds] = {}  # of `line`: all but attention

    def with_drawn_experts(self, seed: Sequence[int]) -> "Costs":
        """Return the costs of steps whose experts are drawn. seed: of their random stream."""
        return Costs(self.layout, seed)

    def without_drafts(self, widths: tuple[int, ...] | None = None) -> "Costs":
        """Return the costs without a drafter.

        widths: tokens of a decoding sequence in each pass of a step; None: one pass of one token.
        """
        return Costs(replace(self.layout, speculation=None), widths=widths)

    def step(self, work: Work) -> Step:
        """Return the next step on each stage.

        A step with decodes alone grows linearly until the other side of attention's roofline binds
        (`holds`), or until a window fills. The caller watches the windows.
        """
        parts = self.parts(work)
        time, growth = self.body(*self.size(work)).copy(), np.zeros(self.stages)
        time[-1] += parts.sampling
        for layers, now, more in zip(self.layers, parts.attention, parts.growth, strict=True):
            time += layers * now
            growth += layers * more
        if self.launch:  # the step at which each stage outgrows its launch is not computed
            return Step(np.maximum(time, self.launching(work)), 0.0, 1)
        return Step(time, growth, 1 if self.sampled else parts.holds)

    def pass_times(self, work: Work) -> tuple[Seconds, Seconds]:
        """Return the time of a step on the slowest stage, and of one pass through all stages.

        The pass ends when the sampled tokens are back at the first stage.
        """
        stages = self.step(work).time
        hops = self.hops(self.ranked(work)).sum()
        return float(stages.max()), float(stages.sum() + hops) + self.back

    def seconds(self, work: Work) -> Seconds:
        """Return the seconds that all stages work on a step, with expected loads of experts."""
        if not self.sampled:  # `step` would take draws
            return float(self.step(work).time.sum())
        parts = self.parts(work)
        seconds = float(self.body_with(*self.size(work), ()).sum()) + parts.sampling
        for layers, now in zip(self.layers, parts.attention, strict=True):
            seconds += float(layers.sum()) * now
        return seconds

    def line(self, work: Work) -> tuple[Seconds, Seconds, int]:
        """Return time, growth and holds of `step` for a layout of one stage, in plain floats.

        Plain floats are ten times as fast as arrays of one number.
        """
        decodes, prompt_tokens = work.decodes, work.prompt_tokens
        key = decodes, work.width, prompt_tokens, work.rank_prompt, work.logits, work.chunks
        fixed = self._fixed.get(key)
        if fixed is None or self.sampled:
            drafting = decodes if self.drafter else 0
            sampling = self.sampling(work.logits, decodes + work.chunks, drafting)
            fixed = self._fixed[key] = self.body(work.tokens, self.ranked(work)).item() + sampling
        time, growth, holds = fixed, 0.0, 1 if self.sampled else FOREVER
        if decodes:
            for layers, line in self._lines.get(decodes) or self._decode_lines(decodes):
                now, more, steps = line.at(work)
                time += layers * now
                growth += layers * more
                if steps < holds:
                    holds = steps
        if prompt_tokens:
            for layers, core in self._prompts(work):
                time += layers * core.prompt_seconds(work)
            growth, holds = 0.0, 1
        if self.launch and time < (launch := self.launching(work).item()):
            return launch, 0.0, min(holds, 1 + int((launch - time) / growth)) if growth else holds
        return time, growth, holds

    def parts(self, work: Work) -> Parts:
        """Return what is added to the body of a step."""
        drafting = work.decodes if self.drafter else 0
        sampling = self.sampling(work.logits, work.decodes + work.chunks, drafting)
        return Parts(sampling, *self._attention(work))

    def drawn_steps(self, work: Work, steps: int) -> Array:
        """Return float[step]: the seconds of coming steps whose experts are drawn.

        They are at most `steps` steps on one stage, and fewer if the growth does not hold for so
        many or fewer are drawn. Their draws do not count as taken yet (`ExpertDraws.take`).
        """
        assert self.sampled
        parts, size = self.parts(work), self.size(work)
        draws = islice(self.sampled.coming(size), min(steps, parts.holds))
        bodies = np.array([self.body_with(*size, load).item() for load in draws])
        times, growing = bodies + parts.sampling, np.arange(len(bodies))
        for layers, now, more in zip(
            self._first_layers, parts.attention, parts.growth, strict=True
        ):
            times += layers * (now + growing * more)
        return np.maximum(times, self.launching(work)) if self.launch else times

    def terms(self, work: Work) -> Array:
        """Return float[stage, time or fitted, term]: the step by cause [s].

        Hops stand with the stage that they lead to.
        """
        table = by_term(self.rows(work), self.stages)
        if self.launch:
            wait = self.launching(work) - table[:, TIME].sum(axis=1)
            table[:, :, OVERHEAD] += np.maximum(0.0, wait)[:, None]
        table[:, TIME, HOPS] += self.hops(self.ranked(work))
        return table

    def computing(self, work: Work) -> dict[Block, Seconds]:
        """Return the seconds that each block takes every chip of its stage, without messages.

        The head has all passes of a drafter, with their messages.
        """
        parts: dict[Block | Mixer | None, Seconds] = defaultdict(float)
        for row in self.rows(work):
            if row.part is self.head:
                parts[row.part] += row.seconds * float(row.repeats[-1])
            elif row.shares is not IS_COLLECTIVE:
                parts[row.part] += row.seconds
        return {b: parts[b] + sum(parts[mixer] for mixer in b.mixers) for b in self.blocks}

    def body(self, tokens: int, ranked: int) -> Array:
        """Return float[stage]: the seconds that depend on the number of tokens alone.

        ranked: tokens of the fullest rank.
        """
        load = self.sampled.take((tokens, ranked)) if self.sampled else ()
        return self.body_with(tokens, ranked, load)

    def body_with(self, tokens: int, ranked: int, load: DrawnLoad) -> Array:
        """Return `body` with a drawn load of the experts; () for the expected one.

        The time of experts depends on all tokens, and the rest on those of the fullest rank. So
        both sums are kept apart, unless the time of experts decides what collectives they hide.
        """
        if self.hides:
            return self._bodies.at(tokens, 1, ranked, load)
        body = self._dense.at(ranked, self.together)
        if self.has_experts:
            body = body + self._experts.at(tokens, 1 if load else self._near(tokens), load)
        return body

    def sampling(self, logits: int, sequences: int, drafting: int) -> Seconds:
        """Return the seconds that the head, the sequences and drafts add to the last stage.

        drafting: sequences for which drafts are made.
        """
        seconds = self.sequence_overhead(sequences)
        if logits:
            seconds += self._heads.at(logits, self.together).item(-1)
        if self.drafter and drafting:
            seconds += self._drafts.at(drafting, self._near(drafting)).item(-1)
        return seconds

    def _near(self, tokens: int) -> int:
        """Return how many numbers of tokens near this one are computed together with it.

        Loads of several shards are linear between the few numbers for which they are drawn.
        """
        shards = self.layout.plan.expert
        return min(self.together, load_spacing(tokens - 1)) if shards > 1 else self.together

    def hops(self, ranked: int) -> Array:
        """Return float[stage]: seconds from each stage's predecessor to it; 0 for the first.

        ranked: tokens of the fullest rank.
        """
        return self.collectives.hops(ranked)

    def launching(self, work: Work) -> Array:
        """Return float[stage]: the seconds in which the host launches the layers."""
        assert self.launch
        if work.tokens <= self.launch.graphs:
            return np.zeros(self.stages)
        return self.launched * (self.launch.prefill if work.prompt_tokens else self.launch.decode)

    def chunk_lines(self, tokens: int) -> Array:
        """Return float[kind, 7]: a chunk's `LinearTime` to compute, and to read, and the window.

        The chunk is on one rank.
        """
        cores = [(kind, kind.of_chunks(tokens, tokens)) for kind in self.kinds]
        rows = [[*core.compute, *core.memory, kind.shape.window or FOREVER] for kind, core in cores]
        return np.array(rows).reshape(-1, 7)

    def _attention(self, work: Work) -> tuple[list[Seconds], list[Seconds], int]:
        """Return one layer's time and growth by kind of attention, and for how many steps."""
        times, growth, holds = [], [], FOREVER
        if work.decodes:
            for _, line in self._decode_lines(work.decodes):
                now, more, steps = line.at(work)
                times.append(now)
                growth.append(more)
                if steps < holds:
                    holds = steps
        if work.prompt_tokens:
            prompts = [core.prompt_seconds(work) for _, core in self._prompts(work)]
            times = [a + b for a, b in zip(times, prompts, strict=True)] if times else prompts
            return times, self._no_growth, 1
        return times, growth, holds

    def _prompts(self, work: Work) -> list[tuple[float, AttentionCore]]:
        key = work.ranked_prompt, work.prompt_tokens
        if key not in self._prompt_cores:
            cores = [kind.of_chunks(*key) for kind in self.kinds]
            self._prompt_cores[key] = list(zip(self._first_layers, cores, strict=True))
        return self._prompt_cores[key]

    def _decode_lines(self, decodes: int) -> list[tuple[float, DecodeLine]]:
        if decodes not in self._lines:
            first = decodes - (decodes - 1) % self.together
            numbers = range(first, first + self.together)
            lines = [kind.lines(numbers) for kind in self.kinds]
            for place, number in enumerate(numbers):
                of_number = [of_kind[place] for of_kind in lines]
                self._lines[number] = list(zip(self._first_layers, of_number, strict=True))
        return self._lines[decodes]
