"""The time of one step on each stage: the one place where model, chip and engine meet.

`Costs.rows` is the spelling of a step: its contributions, with their causes. All else adds these
rows up: `step` for the serving loop, `line` for a single stage.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from sim.cost.attention import FOREVER, AttentionCore, DecodeLine
from sim.cost.energy import Tally
from sim.cost.experts import DrawnLoad, load_spacing
from sim.cost.layout import Layout
from sim.cost.rows import StepRows
from sim.cost.system_costs import Step
from sim.cost.terms import IS_OVERHEAD, TIME, Array, Cause, Row, RowSums, by_term
from sim.cost.work import Work
from sim.hardware.engine import Launch
from sim.units import Seconds

# Numbers of tokens whose times are computed together. Pipelines have many times for each.
TOGETHER, TOGETHER_IN_PIPELINES = 512, 64


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
    """The cost of steps on one layout, with a cache of times that depend on token counts alone.

    back: time of a sampled token from the last stage to the first [s].
    launch: the host's times; None if nothing waits for the host.
    layers: by kind of attention, float[stage], how many layers each stage has.
    launched: float[stage], layers with mixers that a host launches in all passes of a step.
    hides: whether the computing of experts decides what collectives take.
    together: numbers of tokens whose times are computed together; 1 if a user's own chip or
    topology takes no arrays.
    """

    def __init__(self, layout: Layout, widths: tuple[int, ...] | None = None) -> None:
        super().__init__(layout, widths)
        self.back, self.launch = self.collectives.back, layout.engine.layer_launch
        self.layers: list[Array] = [kind.layers for kind in self.kinds]
        self.launched: Array = self._mixing()
        self._first_layers = [float(layers[0]) for layers in self.layers]
        self._no_growth = [0.0] * len(self.kinds)
        overlaps = layout.engine.overlap and layout.plan.attention_data > 1
        self.hides = bool(overlaps and self.has_experts)
        self.together = 1
        if layout.chip.compute.takes_arrays and layout.topology.takes_arrays:
            self.together = TOGETHER if self.stages == 1 else TOGETHER_IN_PIPELINES
        self._bodies = RowSums(self.stages, self.body_rows)
        self._dense = RowSums(self.stages, self.dense_rows)
        self._experts = RowSums(self.stages, self.expert_rows)
        self._heads = RowSums(self.stages, self.head_rows)
        self._drafts = RowSums(self.stages, self.draft_rows)
        # The time of a layer, by kind of attention.
        self._chunks: dict[tuple[int, int], list[AttentionCore]] = {}
        self._lines: dict[int, list[DecodeLine]] = {}
        self._fixed: dict[tuple[int | None, ...], Seconds] = {}  # of `line`: all but attention

    @property
    def model(self) -> "Costs":
        return self

    def on(self, layout: Layout) -> "Costs":
        return Costs(layout)

    def spread(self, tally: Tally) -> list[tuple[StepRows, Tally]]:
        return [(self, tally)]

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield all contributions to a step except the hops from stage to stage.

        They include the time for which chips wait for the host.
        """
        rows = list(super().rows(work))
        yield from rows
        if self.launch:
            wait = self.launching(work) - by_term(rows, self.stages)[:, TIME].sum(axis=1)
            for stage in np.flatnonzero(wait > 0):
                waiting = np.eye(self.stages)[stage]
                seconds = float(wait[stage])
                yield launch_row(self.launch, waiting, seconds, prompts=work.prompt_tokens > 0)

    def step(self, work: Work) -> Step:
        """Return the next step on each stage.

        A step with decodes alone grows linearly until the other side of attention's roofline binds
        (`holds`), or until a window fills. The caller watches the windows.
        """
        parts = self.parts(work)
        time, growth = self.with_parts(self.body(*self.layout.step_size(work)), parts)
        if self.launch:  # the step at which each stage outgrows its launch is not computed
            return Step(np.maximum(time, self.launching(work)), 0.0, 1)
        return Step(time, growth, 1 if self.sampled else parts.holds)

    def with_parts(self, body: Array, parts: Parts, passes: int = 1) -> tuple[Array, Array]:
        """Return time and growth of a step, float[stage] each [s].

        body: float[stage], its time without sampling and attention [s].
        passes: how often the step samples.
        """
        time, growth = body.copy(), np.zeros(self.stages)
        time[-1] += passes * parts.sampling
        for layers, now, more in zip(self.layers, parts.attention, parts.growth, strict=True):
            time += layers * now
            growth += layers * more
        return time, growth

    def line(self, work: Work) -> tuple[Seconds, Seconds, int]:
        """Return time, growth and holds of `step` for a layout of one stage, in plain floats.

        Plain floats are ten times as fast as arrays of one number.
        """
        decodes, prompt_tokens = work.decodes, work.prompt_tokens
        key = decodes, work.width, prompt_tokens, work.rank_prompt, work.logits, work.chunks
        fixed = self._fixed.get(key)
        if fixed is None or self.sampled:
            fixed = self.body(*self.layout.step_size(work)).item() + self.sampling(work)
            self._fixed[key] = fixed
        time, growth, holds = fixed, 0.0, 1 if self.sampled else FOREVER
        if decodes:
            lines = self._lines.get(decodes) or self.decode_lines(decodes)
            for layers, line in zip(self._first_layers, lines, strict=True):
                now, more, steps = line.at(work)
                time += layers * now
                growth += layers * more
                if steps < holds:
                    holds = steps
        if prompt_tokens:
            for layers, core in zip(self._first_layers, self.prompt_cores(work), strict=True):
                time += layers * core.prompt_seconds(work)
            growth, holds = 0.0, 1
        if self.launch and time < (launch := self.launching(work).item()):
            return launch, 0.0, min(holds, 1 + int((launch - time) / growth)) if growth else holds
        return time, growth, holds

    def parts(self, work: Work) -> Parts:
        """Return what is added to the body of a step."""
        return Parts(self.sampling(work), *self._attention(work))

    def drawn_steps(self, work: Work, steps: int) -> Array:
        """Return float[step]: the seconds of coming steps whose experts are drawn.

        They are at most `steps` steps on one stage, and fewer if the growth does not hold for so
        many or fewer are drawn. Their draws do not count as taken yet (`ExpertDraws.take`).
        """
        assert self.sampled
        parts, size = self.parts(work), self.layout.step_size(work)
        draws = islice(self.sampled.coming(size), min(steps, parts.holds))
        bodies = np.array([self.body_with(*size, load).item() for load in draws])
        times, growing = bodies + parts.sampling, np.arange(len(bodies))
        for layers, now, more in zip(
            self._first_layers, parts.attention, parts.growth, strict=True
        ):
            times += layers * (now + growing * more)
        return np.maximum(times, self.launching(work)) if self.launch else times

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

    def sampling(self, work: Work) -> Seconds:
        """Return the seconds that the head, the sequences and drafts add to the last stage."""
        seconds = self.sequence_overhead(work.decodes + work.chunks)
        if work.logits:
            seconds += self._heads.at(work.logits, self.together).item(-1)
        if self.drafter and work.decodes:
            seconds += self._drafts.at(work.decodes, self._near(work.decodes)).item(-1)
        return seconds

    def _near(self, tokens: int) -> int:
        """Return how many numbers of tokens near this one are computed together with it.

        Loads of several shards are linear between the few numbers for which they are drawn.
        """
        shards = self.layout.plan.expert
        return min(self.together, load_spacing(tokens - 1)) if shards > 1 else self.together

    def hops(self, ranked: int) -> Array:
        return self.collectives.hops(ranked)

    def launching(self, work: Work) -> Array:
        """Return float[stage]: the seconds in which the host prepares and launches the step."""
        assert self.launch
        if work.tokens <= self.launch.graphs:
            return np.zeros(self.stages)
        layer = self.launch.prefill if work.prompt_tokens else self.launch.decode
        sequences = self.layout.plan.ranked(work.decodes)  # each attention rank has its own host
        return self.launched * layer + self.launch.sequence * sequences

    def _attention(self, work: Work) -> tuple[list[Seconds], list[Seconds], int]:
        """Return one layer's time and growth by kind of attention, and for how many steps."""
        times, growth, holds = [], [], FOREVER
        if work.decodes:
            for line in self.decode_lines(work.decodes):
                now, more, steps = line.at(work)
                times.append(now)
                growth.append(more)
                if steps < holds:
                    holds = steps
        if work.prompt_tokens:
            prompts = [core.prompt_seconds(work) for core in self.prompt_cores(work)]
            times = [a + b for a, b in zip(times, prompts, strict=True)] if times else prompts
            return times, self._no_growth, 1
        return times, growth, holds

    def prompt_cores(self, work: Work) -> list[AttentionCore]:
        """Return the attention of one layer for the prompt chunks of a step, for each kind."""
        key = work.ranked_prompt, work.prompt_tokens
        if key not in self._chunks:
            self._chunks[key] = [kind.of_chunks(*key) for kind in self.kinds]
        return self._chunks[key]

    def decode_lines(self, decodes: int) -> list[DecodeLine]:
        """Return the attention of one layer for a number of sequences, for each kind."""
        if decodes not in self._lines:
            self._lines[decodes] = [kind.line(decodes, self.together) for kind in self.kinds]
        return self._lines[decodes]


def launch_row(launch: Launch, stages: Array, seconds: Seconds, prompts: bool) -> Row:
    """Return the row of the time for which stages wait until the host has launched their layers.

    stages: float[stage], 1 for those that wait. seconds: the wait of each.
    """
    names = ["prefill" if prompts else "decode", *(["sequence"] if launch.sequence else [])]
    keys = tuple(f"engine.layer_launch.{name}" for name in names)
    cause = Cause("launching layers", "host", seconds, "s", keys=keys)
    return Row(None, stages, seconds, 0.0, IS_OVERHEAD, partial(tuple, (cause,)))
