"""The cost of steps whose drafts are made on other chips, in closed form.

The drafter makes the drafts of a micro-batch. The drafts cross a link, the model verifies them, and
the number of accepted ones crosses back. Two micro-batches take turns: the drafter works for one of
them while the model works for the other one. A scenario calls their number `groups`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from sim.cost.attention import FOREVER
from sim.cost.causes import DRAFTER, of_drafter, overhead_causes
from sim.cost.draft_link import DraftExchange
from sim.cost.energy import Tally, cut_steps, draft_tally
from sim.cost.layout import Layout
from sim.cost.rows import StepRows, mixer_rows
from sim.cost.speculation import Speculation
from sim.cost.step import Costs, launch_row
from sim.cost.system_costs import Step, SystemCosts
from sim.cost.terms import IS_HOP, IS_OVERHEAD, TIME, Array, Cause, Row, by_term, weighted_sum
from sim.cost.work import Work
from sim.units import Bytes, Seconds


class StepParts(NamedTuple):
    """The times of a micro-batch in a step [s], or how often each of them counts.

    verify: of the model, with its prompts, through all its stages. stage: of the slowest of them.
    prompts, drafts: of the drafter.
    trip: of both messages. busy: time for which the longer message keeps the link busy.
    """

    verify: float = 0.0
    stage: float = 0.0
    prompts: float = 0.0
    drafts: float = 0.0
    trip: float = 0.0
    busy: float = 0.0


# The paths through a step. Its time is that of the longest one. Prompts wait for no drafts.
PROMPTS_ALONE = (StepParts(verify=1), StepParts(prompts=1))
IN_TURN = (StepParts(verify=1, drafts=1, trip=1), StepParts(prompts=1, drafts=1, trip=1))


def paths(micro_batches: int, decodes: int) -> tuple[StepParts, ...]:
    """Return the paths through a step, each as the number of times that its parts count.

    Prompts alone: max(verify, prompts). One micro-batch: max(verify, prompts) + drafts + trip.
    Two: the longest of that, twice a stage, twice prompts and drafts, and twice the link.
    """
    if not decodes:
        return PROMPTS_ALONE
    if micro_batches == 1:
        return IN_TURN
    stage, link = StepParts(stage=micro_batches), StepParts(busy=micro_batches)
    drafter = StepParts(prompts=micro_batches, drafts=micro_batches)
    return (*IN_TURN, stage, drafter, link)


@cache
def pass_paths(stages: int, pieces: int, passes: int) -> tuple[Array, Array]:
    """Return the paths through the passes of a drafter, the longest of which is their time.

    float[path, stage], float[path]: how often the time of a stage counts, and that of all hops.
    These times are sums over the passes of one piece.
    n pieces with P equal passes take (P - 1) max(n b, S) + S + (n - 1) b. S: a pass with its hops.
    b: its slowest stage. A piece begins a pass when it has ended the one before.
    Assumed: the first pass takes as long as the others, although it has more tokens.
    """
    own, behind = np.eye(stages), (pieces - 1) / passes
    waiting = np.ones((stages, stages)) + behind * own  # for the piece's own pass to end
    queued = np.full((stages, stages), 1 / passes) + (behind + (passes - 1) / passes * pieces) * own
    counts = np.concatenate([waiting, queued])
    return counts, np.repeat([1.0, 1 / passes], stages)


class RemoteDrafter:
    """The passes of a drafter on chips of its own, for one replica of the model.

    In a step, the first pass takes as many tokens as the model verifies, and each further pass
    takes a token of each sequence. A prompt has a pass of its own.
    Tokens beyond `token_budget` of the drafter's layout enter its stages in pieces, one after the
    other (`pass_paths`). The engine's time for a step counts once for drafts, and once for prompts.
    A host that launches layers does so for all passes of a piece, while the chips compute them.
    """

    def __init__(self, layout: Layout, speculation: Speculation) -> None:
        self.layout, self.width = layout, 1 + speculation.tokens
        self.passes = speculation.tokens
        widths = (self.width, *[1] * (self.passes - 1))
        engine = speculation.engine(layout.engine)
        self.costs = Costs(replace(layout, engine=engine), widths=widths)

    def prompts_of(self, work: Work) -> Work:
        """Return the prompts of a step, without positions to sample from.

        The attention ranks of the drafter have as many prompt tokens as those of the model.
        """
        ranked = work.rank_prompt if self.layout.plan.attention_data > 1 else None
        prompts = replace(work, decodes=0, logits=0, context=0.0, windowed_context=0.0)
        return replace(prompts, growing=0.0, added=None, rank_prompt=ranked)

    def time(self, work: Work) -> tuple[Seconds, Seconds, int]:
        """Return the time of drafts or prompts, what each further step adds, and for how many."""
        if not work.tokens:
            return 0.0, 0.0, FOREVER
        pieces, part = self._piece(work)
        costs, parts = self.costs, self.costs.parts(part)
        body, passes = costs.body(*costs.layout.step_size(part)), 0
        if part.decodes:
            passes = self.passes
            body = body + (passes - 1) * costs.body(part.decodes, self._ranked(part))
        stages, growth = costs.with_parts(body, parts, passes)
        holds = parts.holds
        if costs.launch:
            launching = self._launching(part)
            behind = launching - stages
            outgrown = [late / more for late, more in zip(behind, growth, strict=True) if more > 0]
            holds = min([holds, *(1 + int(steps) for steps in outgrown if steps > 0)])
            stages, growth = np.maximum(stages, launching), np.where(behind > 0, 0.0, growth)
        counts, of_hops = self._pass_paths(pieces, part)
        times, slopes = counts @ stages + of_hops * self._hops(part), counts @ growth
        longest = int(np.argmax(times))
        holds = min(holds, _steps_ahead(times, slopes, longest))
        seconds = float(times[longest]) + self.layout.engine.step_overhead
        return seconds, float(slopes[longest]), holds

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield the contributions to `time`, with the drafter's stages added up."""
        if not work.tokens:
            return
        pieces, part = self._piece(work)
        rows = list(self._rows(part))
        busy = sum(times * row.seconds * row.repeats for row, times in rows)
        stages = np.maximum(busy, self._launching(part)) if self.costs.launch else busy
        counts, of_hops = self._pass_paths(pieces, part)
        longest = np.argmax(counts @ stages + of_hops * self._hops(part))
        if self.costs.launch:
            seconds = float(counts[longest] @ (stages - busy))
            wait = launch_row(self.costs.launch, np.ones(1), seconds, prompts=not part.decodes)
            yield wait._replace(causes=partial(of_drafter, wait.causes))
        for row, times in rows:
            repeats = np.array([times * float(row.repeats @ counts[longest])])
            yield row._replace(repeats=repeats, causes=partial(of_drafter, row.causes))
        overhead = self.layout.engine.step_overhead
        causes = partial(of_drafter, partial(overhead_causes, "step_overhead", overhead))
        yield Row(self.costs.head, np.ones(1), overhead, 0.0, IS_OVERHEAD, causes)
        yield _link_row(f"{DRAFTER}: hops between stages", self._hops(part), of_hops[longest])

    def tally(self, tally: Tally) -> Tally:
        """Return the tally of the drafter's passes for the steps of the model.

        Left out: the separate pass of a prompt in a step with decodes.
        """
        most = self.layout.token_budget
        return draft_tally(_cut_decodes(tally, lambda tokens: -(-tokens // most)), self.passes)

    def _piece(self, work: Work) -> tuple[int, Work]:
        """Return the number of pieces of drafts or prompts, and the work of the largest one."""
        pieces = -(-work.tokens // self.layout.token_budget)
        return pieces, work.part(pieces)

    def _launching(self, part: Work) -> Array:
        """Return float[stage]: the seconds in which the host launches all passes of a piece.

        The host prepares each decoding sequence once, for all passes.
        """
        launch, layers = self.costs.launch, self.costs.launched / self.passes
        assert launch
        if not part.decodes:
            return layers * launch.prefill * (part.tokens > launch.graphs)
        first = part.tokens > launch.graphs
        later = (self.passes - 1) * (part.decodes > launch.graphs)
        sequences = launch.sequence * self._ranked(part) * first
        return layers * launch.decode * (first + later) + sequences

    def _pass_paths(self, pieces: int, part: Work) -> tuple[Array, Array]:
        """Return `pass_paths` for drafts or prompts."""
        return pass_paths(self.costs.stages, pieces, self.passes if part.decodes else 1)

    def _ranked(self, part: Work) -> int:
        """Return the sequences of the fullest attention rank, each of which drafts a token."""
        return self.costs.layout.plan.ranked(part.decodes)

    def _hops(self, part: Work) -> Seconds:
        """Return the seconds from stage to stage, and back to the first one for the next draft."""
        costs = self.costs
        seconds = float(costs.hops(costs.layout.ranked(part)).sum())
        if part.decodes:
            seconds += (self.passes - 1) * float(costs.hops(self._ranked(part)).sum())
            seconds += self.passes * costs.back
        return seconds

    def _rows(self, part: Work) -> Iterator[tuple[Row, int]]:
        """Yield the rows of a piece on the drafter's stages, and how often each of them counts."""
        costs = self.costs
        yield from ((row, 1) for row in costs.body_rows(*costs.layout.step_size(part)))
        if part.decodes:
            for row in costs.sampling_rows(part.decodes, part.decodes, 0):
                yield row, self.passes
            for row in costs.body_rows(part.decodes, self._ranked(part)):
                yield row, self.passes - 1
        yield from ((row, 1) for row in mixer_rows(costs.kinds, part))


class RemoteDraftCosts:
    """The cost of steps that verify drafts from other chips.

    micro_batches: 1 if the drafter waits for the model, and the model for the drafter; 2 if the
    sequences are in two micro-batches that take turns.
    A step takes as long as the longest of its `paths`. The drafter computes the prompts while the
    model computes them. The scheduler sees the model and its drafter as one stage.
    model: the costs of verification: on stages, or on an attention pool and an FFN pool. There a
    micro-batch of drafts is cut again, into the parts that take turns on the pools.

    Left out: two micro-batches of drafts that share these pools, or the stages of a drafter; the
    overlap of a step with the next one when prompts join. A single sequence is one micro-batch.
    """

    def __init__(self, model: SystemCosts, drafter: Layout, exchange: DraftExchange) -> None:
        self.model, self.layout = model, model.layout
        self.stages, self.back = 1, 0.0  # the last stage sends what it samples to the drafter
        layout = self.layout
        assert layout.speculation
        self.remote = RemoteDrafter(drafter, layout.speculation)
        self.exchange, self.link = exchange, exchange.link
        self.micro_batches = exchange.micro_batches
        vocabulary = layout.model.vocab_size
        self.bytes_out, self.bytes_back = self.link.sequence_bytes(layout.width - 1, vocabulary)

    def on(self, layout: Layout) -> "RemoteDraftCosts":
        """Return the costs with another layout of the model.

        A step with drawn experts must be one micro-batch.
        """
        return RemoteDraftCosts(self.model.on(layout), self.remote.layout, self.exchange)

    def link_bytes(self, tokens: int) -> Bytes:
        return self.model.link_bytes(tokens)

    def step(self, work: Work) -> Step:
        time, growth, holds = self.line(work)
        return Step(np.array([time]), np.array([growth]), holds)

    def line(self, work: Work) -> tuple[Seconds, Seconds, int]:
        micro_batches, part = self.micro_batch(work)
        times, growth, holds = self.parts_of(part)
        choices = paths(micro_batches, work.decodes)
        totals, slopes = ([weighted_sum(of, path) for path in choices] for of in (times, growth))
        longest = totals.index(max(totals))
        return totals[longest], slopes[longest], min(holds, _steps_ahead(totals, slopes, longest))

    def rows(self, work: Work) -> Iterator[Row]:
        """Yield the contributions to a step, each as often as it is on the longest path."""
        micro_batches, part = self.micro_batch(work)
        own, verifying = self.model.stages, list(self.model.rows(part))  # experts are drawn once
        stages = by_term(verifying, own)[:, TIME].sum(axis=1)
        hops = float(self.model.hops(self.layout.ranked(part)).sum())
        verified = float(stages.sum()) + hops, float(stages.max())
        times = self._parts(part, verified, self.remote.time(drafts_of(part))[0])
        counts = max(paths(micro_batches, work.decodes), key=partial(weighted_sum, times))
        of_stages = np.full(own, float(counts.verify))
        of_stages[np.argmax(stages)] += counts.stage
        one = np.ones(1)
        parts = (
            (of_stages, iter(verifying)),
            (counts.prompts * one, self.remote.rows(self.remote.prompts_of(part))),
            (counts.drafts * one, self.remote.rows(drafts_of(part))),
        )
        for often, rows in parts:
            if often.any():
                for row in rows:
                    yield row._replace(repeats=np.array([row.repeats @ often]))
        if own > 1:
            yield _link_row("hops between stages", hops, counts.verify)
        yield _link_row("drafts, and what is accepted", times.trip, counts.trip)
        yield _link_row("drafts sent", times.busy, counts.busy)

    def micro_batch(self, work: Work) -> tuple[int, Work]:
        """Return the number of micro-batches of a step, and the work of the larger one."""
        micro_batches = self.micro_batches if work.decodes >= self.micro_batches else 1
        return micro_batches, work.part(micro_batches)

    def parts_of(self, part: Work) -> tuple[StepParts, StepParts, int]:
        """Return the times of a micro-batch, what a further step adds to them, and for how many."""
        (verify, stage), (growth, slope), holds = self._verified(part)
        drafts, more, steps = self.remote.time(drafts_of(part))
        times = self._parts(part, (verify, stage), drafts)
        if part.prompt_tokens:
            return times, StepParts(), 1
        return times, StepParts(verify=growth, stage=slope, drafts=more), min(holds, steps)

    def _parts(self, part: Work, model: tuple[Seconds, Seconds], drafts: Seconds) -> StepParts:
        """Return the times of a micro-batch. model: `verify` and `stage` of `StepParts`."""
        prompts = self.remote.time(self.remote.prompts_of(part))[0]
        busy = part.decodes * max(self.bytes_out, self.bytes_back) / self.link.bandwidth
        return StepParts(*model, prompts, drafts, self.trip(part.decodes), busy)

    def _verified(self, part: Work) -> tuple[tuple[Seconds, Seconds], tuple[Seconds, Seconds], int]:
        """Return the times of all stages and of the slowest, what a step adds, and for how many."""
        if self.model.stages == 1:
            time, growth, holds = self.model.line(part)
            return (time, time), (growth, growth), holds
        times, slopes, holds = self.model.step(part)
        slopes = slopes + np.zeros(self.model.stages)
        longest = int(np.argmax(times))
        holds = min(holds, _steps_ahead(times, slopes, longest))
        hops = float(self.model.hops(self.layout.ranked(part)).sum())
        both = float(times.sum()) + hops, float(times[longest])
        return both, (float(slopes.sum()), float(slopes[longest])), holds

    def hops(self, ranked: int) -> Array:
        return np.zeros(1)  # those of the model are in its time

    def trip(self, sequences: int) -> Seconds:
        """Return the time of both messages: drafts, and how many are accepted."""
        nbytes = sequences * (self.bytes_out + self.bytes_back)
        return 2 * self.link.latency + nbytes / self.link.bandwidth

    def sent(self, tally: Tally) -> Bytes:
        """Return the bytes between the model and its drafter for the steps of a tally."""
        return tally.decodes * (self.bytes_out + self.bytes_back)

    def spread(self, tally: Tally) -> list[tuple[StepRows, Tally]]:
        """Return the rows and tallies of the model and of the drafter, a step per micro-batch.

        Assumed: all steps with at least the tokens of two sequences are cut, also prompts alone.
        """
        fewest = self.micro_batches * self.layout.width
        cut = _cut_decodes(tally, lambda tokens: self.micro_batches if tokens >= fewest else 1)
        (rows, own), *others = self.model.spread(cut)
        own = replace(own, between=own.between + self.sent(tally))
        return [(rows, own), *others, (self.remote.costs, self.remote.tally(cut))]


def drafts_of(work: Work) -> Work:
    """Return the drafting of a step's sequences."""
    return Work(
        work.decodes,
        work.context,
        logits=work.decodes,
        windowed_context=work.windowed_context,
        growing=work.growing,
        width=work.width,
        added=work.added,
    )


def _steps_ahead(times: Array | list[Seconds], slopes: Array | list[Seconds], longest: int) -> int:
    """Return for how many steps the longest time stays the longest, while all grow evenly."""
    most, slope = times[longest], slopes[longest]
    faster = [(most - time, more - slope) for time, more in zip(times, slopes, strict=True)]
    return min((1 + int(ahead / more) for ahead, more in faster if more > 0), default=FOREVER)


def _cut_decodes(tally: Tally, parts_of: Callable[[int], int]) -> Tally:
    """Return a tally whose steps are cut into parts, each of which samples its own outputs."""
    cut = cut_steps(tally, parts_of)
    more = sum(cut.batch_steps.values()) - sum(tally.batch_steps.values())
    return replace(
        cut,
        decode_steps=min(tally.decodes, tally.decode_steps + more),
        steps_without_sampling=tally.steps_without_sampling,
    )


def _link_row(what: str, seconds: Seconds, count: float) -> Row:
    cause = Cause(what, "link", seconds, "s")
    return Row(None, np.array([count]), seconds, seconds, IS_HOP, lambda: (cause,))
