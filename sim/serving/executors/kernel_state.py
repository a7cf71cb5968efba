"""The arrays that the compiled pipeline works on, and the calls of its functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.cost.attention import FOREVER
from sim.cost.energy import Tally
from sim.cost.step import Costs, Parts
from sim.cost.work import Work
from sim.reliability.link_errors import LinkErrorSampler
from sim.results.histogram import Gaps
from sim.serving import kernel
from sim.serving.executors.executor import BatchStep
from sim.serving.executors.kernel_rows import KernelRows
from sim.serving.executors.waiting_stages import waiting_stages
from sim.serving.limits import SchedulerLimits
from sim.serving.prompt_chunks import add_chunk
from sim.serving.step_draws import KV_PARTS
from sim.units import Seconds


class Head(NamedTuple):
    """The micro-batch that returns first.

    back, leave: when it returns, and when it left the last stage [s].
    slot, steps: its place in the arrays, and the steps that it made.
    last: whether it has no steps left.
    clock_error: exact time minus the clock, at its return [s].
    prefilled: tokens of the waiting prompt that are computed.
    in_flight: micro-batches on their way; 0 means that the other fields have no meaning.
    """

    back: Seconds
    slot: int
    steps: int
    last: bool
    leave: Seconds
    clock_error: Seconds
    prefilled: int
    in_flight: int


class KernelState:
    """The state of a compiled pipeline, as arrays. `kernel` names the places in them.

    A slot is the place of one micro-batch in the arrays. If each step has one token, the compiled
    code visits only `waiting_stages`. Replicas that can fail need the times at all stages.

    table: the rows of `rows` and `made`, one for each size of steps.
    kv_parts: the parts of a token in which it counts KV cache.
    lines: by tokens of a chunk, its attention time. known: which are set.
    """

    def __init__(
        self,
        costs: Costs,
        slots: int,
        limits: SchedulerLimits,
        interruptible: bool,
        errors: LinkErrorSampler | None,
    ) -> None:
        token_budget = limits.token_budget
        self.costs, self.budget = costs, token_budget
        kinds, visited = len(costs.layers), list(range(costs.stages))
        one_token = token_budget == limits.width == 1 and limits.sequences <= slots
        if one_token and not (interruptible or costs.sampled):
            visited = waiting_stages(costs, limits)
        self.stages = np.zeros((kernel.LAYERS + 2 * kinds, len(visited)))
        for kind, layers in enumerate(costs.layers):
            through, place = np.cumsum(layers), kernel.LAYERS + 2 * kind
            self.stages[place : place + 2] = (through - layers)[visited], through[visited]
        self.table = KernelRows(costs, visited, slots, token_budget, errors)
        self.lines: NDArray[np.float64] = np.zeros((token_budget + 1, kinds, 7))
        self.known = bytearray(token_budget + 1)
        self.read = np.zeros((kinds, 5))
        self.batches = np.zeros((slots, kernel.SECONDS + 2 * kinds))
        self.counts = np.zeros((slots, 8), np.int64)
        self.integers, self.floats = np.zeros(kernel.FIRST_BIN + kernel.BINS, np.int64), np.zeros(7)
        self.integers[kernel.BUDGET] = token_budget
        self.integers[kernel.ROOM] = FOREVER
        self.integers[kernel.WIDTH] = self.width = limits.width
        self.kv_parts = KV_PARTS if limits.width > 1 else 1
        self.floats[kernel.WAY_BACK], self.floats[kernel.SEQUENCE_OVERHEAD] = (
            costs.back,
            costs.layout.engine.sequence_overhead,
        )
        tracked = slots if interruptible else 0
        self.tracks = np.zeros((tracked, kernel.STAGE_TIMES + 2 * costs.stages))
        numbers = self.lines, self.read, self.batches, self.counts, self.integers, self.floats
        self._kept = (*numbers, self.tracks)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays of `kernel.Arrays`, in its order.

        They are listed anew for each call, because `table` replaces its arrays when it grows.
        """
        return (self.stages, self.table.rows, self.table.made, *self._kept)

    def add_chunk(self, tokens: int) -> None:
        """Set the attention time of prompt chunks of this many tokens, unless it is set."""
        if tokens > 0 and not self.known[tokens]:
            self.known[tokens] = True
            for kind, line in zip(self.costs.kinds, self.lines[tokens], strict=True):
                core = kind.of_chunks(tokens, tokens)  # on one rank
                line[:] = *core.compute, *core.memory, kind.shape.window or FOREVER

    def join(
        self,
        slot: int,
        now: Seconds,
        clock_error: Seconds,
        numbers: tuple[int, int, int, int],
        parts: Parts,
    ) -> None:
        """Add a micro-batch to the queue of the first stage.

        numbers: its steps, its decodes whose gaps are counted, whether it has no output, its row.
        """
        row = numbers[-1]
        self.table.good_steps(row)  # draws experts where none are left
        times = parts.sampling, tuple(parts.attention), tuple(parts.growth)
        kernel.join(slot, now, clock_error, numbers, *times, *self.arrays)
        self.table.good_steps(row)  # draws again if this step is the last good one

    def fails(self, head: Head, chunk: int) -> bool:
        """Return whether the next step of a micro-batch that returns fails from link errors.

        chunk: tokens of the waiting prompt that it computes.
        """
        if not self.table.random:
            return False
        row = kernel.FULL if chunk > 0 else int(self.counts[head.slot, kernel.ROW])
        return (chunk > 0 or not head.last) and not self.table.good_steps(row)

    def assign_chunks(self, now: Seconds, slots: list[int]) -> None:
        """Add micro-batches, each with a full chunk of the waiting prompt."""
        kernel.assign_prefill_chunks(now, np.array(slots), *self.arrays)

    def head(self) -> Head:
        """Return the micro-batch that returns first."""
        return Head(*kernel.head(self.batches, self.counts, self.integers))

    def advance(self, now: Seconds, until: Seconds) -> Head:
        """Make the steps that begin before `until` [s]; return the first that needs a decision."""
        return Head(*kernel.advance(now, until, *self.arrays))

    def pop_head(self) -> None:
        """Remove the micro-batch that returns first."""
        self.integers[kernel.HEAD] = (self.integers[kernel.HEAD] + 1) % len(self.counts)
        self.integers[kernel.LENGTH] -= 1

    def set_prompt(self, left: int, prefilled: int = 0) -> None:
        """Set the waiting prompt: its tokens left and those computed.

        left: 0 without a prompt; -1 if the next micro-batch to return needs a decision in any case.
        """
        self.integers[kernel.PROMPT_LEFT], self.integers[kernel.PROMPT_DONE] = left, prefilled

    def set_room(self, kv_tokens: float) -> None:
        """Set the tokens of KV cache that further decodes may take."""
        self.integers[kernel.ROOM] = int(kv_tokens * self.kv_parts)

    @property
    def room(self) -> float:
        """The tokens of KV cache that further decodes may take."""
        room = int(self.integers[kernel.ROOM])
        return room if self.kv_parts == 1 else room / self.kv_parts

    def set_kv_growth(self, slot: int, kv_tokens: float) -> None:
        """Set the tokens of KV cache that each further step of a slot takes."""
        self.counts[slot, kernel.KV_GROWTH] = int(kv_tokens * self.kv_parts)

    def end_after_this(self, slot: int) -> None:
        """Make a slot's step under way its last one."""
        self.counts[slot, kernel.DUE] = self.counts[slot, kernel.DONE]

    def take_silent(self) -> list[int]:
        """Return the slots that returned without an event, and forget them."""
        count = int(self.integers[kernel.SILENT_COUNT])
        self.integers[kernel.SILENT_COUNT] = 0
        return self.counts[:count, kernel.SILENT_SLOTS].tolist() if count else []

    def slots_under_way(self) -> list[int]:
        """Return the slots under way, the first to return first."""
        order = np.roll(self.counts[:, kernel.ORDER], -self.integers[kernel.HEAD])
        slots: list[int] = order[: self.integers[kernel.LENGTH]].tolist()
        return slots

    def work_of(self, slot: int, batch_step: BatchStep | None) -> Work:
        """Return the work of a slot's step under way. Its decodes are tallied by the scheduler.

        batch_step: that of the slot; None for a micro-batch with a chunk of a prompt alone.
        """
        tokens, old = self.tracks[slot, :2].tolist()
        if batch_step and not tokens:
            return batch_step.work
        decodes, width = batch_step.work.decodes if batch_step else 0, self.width
        work = Work(decodes, logits=decodes * width, width=width)
        add_chunk(work, int(old), int(tokens), self.costs.layout.model.window)
        return work

    def take_back_gap(self, slot: int) -> None:
        """Remove the gap before the tokens of a slot's step under way."""
        if decodes := int(self.counts[slot, kernel.DECODES]):
            gap, place = self.tracks[slot, [kernel.GAP, kernel.GAP_BIN]].tolist()
            self.integers[kernel.FIRST_BIN + int(place)] -= decodes
            self.floats[[kernel.COUNT, kernel.TOTAL, kernel.SQUARES]] -= (
                decodes,
                decodes * gap,
                decodes * gap * gap,
            )

    def add_to(self, tally: Tally) -> None:
        """Add the steps and prompt chunks that the compiled code counted to a tally."""
        self.table.add_to(tally)
        read = {
            kind.shape.window is not None: sums
            for kind, sums in zip(self.costs.kinds, self.read.tolist(), strict=True)
        }
        tally.prompt_tokens += self.read[0, kernel.TOKENS].item()
        tally.prompt_steps += self.read[0, kernel.CHUNKS].item()
        for windowed, (attended, cached, *_) in read.items():
            if windowed:
                tally.windowed_attended += attended
                tally.windowed_cached += cached
            else:
                tally.attended += attended
                tally.cached += cached
        tally.steps_without_sampling += int(self.integers[kernel.STEPS_WITHOUT_SAMPLING])

    def add_gaps_to(self, gaps: Gaps) -> None:
        """Add the gaps that the compiled code counted to a histogram."""
        bins = self.integers[kernel.FIRST_BIN :]
        used = np.flatnonzero(bins)
        places = (used + kernel.LOWEST_BIN).tolist()
        counts = dict(zip(places, bins[used].tolist(), strict=True))
        gaps.join(counts, *self.floats[[kernel.TOTAL, kernel.SQUARES]].tolist())

    @property
    def free_at(self) -> Seconds:
        """The time at which the last stage in use is free [s]."""
        return float(self.floats[kernel.CLOCK] + self.stages[kernel.FREE].max())

    @property
    def busy(self) -> NDArray[np.float64]:
        """The working time of each stage. float[stage], s."""
        busy = self.table.busy
        for layers, seconds in zip(self.costs.layers, self.read[:, kernel.WORKED], strict=True):
            busy += layers * seconds
        busy[-1] += self.floats[kernel.SAMPLED]
        return busy
