"""The arrays that the compiled pipeline works on, and the calls of its functions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.cost.attention import FOREVER
from sim.cost.energy import Tally
from sim.cost.step import Costs, Parts
from sim.results.histogram import Gaps
from sim.serving import kernel
from sim.units import Seconds


class Head(NamedTuple):
    """The micro-batch that returns first.

    back, leave: when it returns, and when it left the last stage [s].
    slot, steps: its slot, and the steps that it made.
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
    """The state of a compiled pipeline. `kernel` names the places in its arrays.

    A row holds the body and the hops of a number of tokens. Rows are added as numbers of tokens
    come up. Where tokens are routed to experts step by step, a slot has a row of its own.
    """

    def __init__(self, costs: Costs, slots: int, token_budget: int, interruptible: bool) -> None:
        self.costs, self.budget = costs, token_budget
        stages, kinds = costs.stages, len(costs.layers)
        self.stages = np.zeros((kernel.LAYERS + kinds, stages))
        self.stages[kernel.LAYERS :] = np.array(costs.layers).reshape(-1, stages)
        self.rows = np.zeros((1 + slots, 2, stages))
        self.made = np.zeros(1 + slots, np.int64)
        self.row_of: dict[int, int] = {}
        self.lines: NDArray[np.float64] = np.zeros((token_budget + 1, kinds, 7))
        self.known = bytearray(token_budget + 1)
        self.read = np.zeros((kinds, 2))
        self.batches = np.zeros((slots, kernel.SECONDS + 2 * kinds))
        self.counts = np.zeros((slots, 7), np.int64)
        self.ring, self.sums = np.zeros(kernel.FIRST_BIN + kernel.BINS, np.int64), np.zeros(6)
        self.ring[kernel.BUDGET] = token_budget
        self.ring[kernel.RANKS] = costs.layout.plan.attention_data
        self.ring[kernel.ROOM] = FOREVER
        self.sums[kernel.RETURN], self.sums[kernel.PIECE] = (
            costs.back,
            costs.layout.engine.sequence_overhead,
        )
        self.tracks = np.zeros((slots if interruptible else 0, kernel.PLACE + 1 + 2 * stages))
        self.state = (
            self.lines,
            self.read,
            self.batches,
            self.counts,
            self.ring,
            self.sums,
            self.tracks,
        )

    def row(self, tokens: int) -> int:
        """Return the row of a number of tokens, added if it is new."""
        if tokens not in self.row_of:
            row = kernel.FULL if tokens == self.budget else 1 + len(self.row_of)
            self.row_of[tokens] = row
            if row >= len(self.rows):
                self.rows = np.concatenate((self.rows, np.zeros_like(self.rows)))
                self.made = np.concatenate((self.made, np.zeros_like(self.made)))
            self.rows[row] = self.costs.body(tokens), self.costs.hops(tokens)
        return self.row_of[tokens]

    def sampled_row(self, slot: int, tokens: int, body: NDArray[np.float64]) -> int:
        """Return the row of a slot whose step has a body of its own. body: float[stage], s."""
        self.rows[1 + slot] = body, self.costs.hops(tokens)
        return 1 + slot

    def add_piece(self, tokens: int) -> None:
        """Add the attention time of prompt chunks of so many tokens, unless it is there."""
        if tokens > 0 and not self.known[tokens]:
            self.known[tokens] = True
            self.lines[tokens] = self.costs.piece_lines(tokens)

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
        sampling, seconds, growth = parts.sampling, tuple(parts.attention), tuple(parts.growth)
        times = sampling, seconds, growth, self.stages, self.rows, self.made
        kernel.join(slot, now, clock_error, numbers, *times, *self.state)

    def assign_chunks(self, now: Seconds, slots: list[int]) -> None:
        """Add micro-batches, each with a full chunk of the waiting prompt."""
        kernel.assign_prefill_chunks(
            now, np.array(slots), self.stages, self.rows, self.made, *self.state
        )

    def head(self) -> Head:
        """Return the micro-batch that returns first."""
        return Head(*kernel.head(self.batches, self.counts, self.ring))

    def advance(self, now: Seconds, until: Seconds) -> Head:
        """Make the steps that begin before `until` [s]; return the first that needs a decision."""
        return Head(*kernel.advance(now, until, self.stages, self.rows, self.made, *self.state))

    def pop_head(self) -> None:
        """Remove the micro-batch that returns first."""
        self.ring[kernel.HEAD] = (self.ring[kernel.HEAD] + 1) % len(self.counts)
        self.ring[kernel.LENGTH] -= 1

    def set_prompt(self, left: int, prefilled: int = 0) -> None:
        """Set the waiting prompt: its tokens left and those computed.

        left: 0 without a prompt; -1 if the next micro-batch to return is over in any case.
        """
        self.ring[kernel.LEFT], self.ring[kernel.OLD] = left, prefilled

    def set_room(self, kv_tokens: int) -> None:
        """Set the tokens of KV cache that further decodes may take."""
        self.ring[kernel.ROOM] = kv_tokens

    @property
    def room(self) -> int:
        """The tokens of KV cache that further decodes may take."""
        return int(self.ring[kernel.ROOM])

    def end_after_this(self, slot: int) -> None:
        """Make a slot's step under way its last one."""
        self.counts[slot, kernel.DUE] = self.counts[slot, kernel.DONE]

    def take_silent(self) -> list[int]:
        """Return the slots that returned without an event, and forget them."""
        gone = int(self.ring[kernel.GONES])
        self.ring[kernel.GONES] = 0
        return self.counts[:gone, kernel.GONE].tolist() if gone else []

    def slots_under_way(self) -> list[int]:
        """Return the slots under way, the first to return first."""
        order = np.roll(self.counts[:, kernel.ORDER], -self.ring[kernel.HEAD])
        slots: list[int] = order[: self.ring[kernel.LENGTH]].tolist()
        return slots

    def take_back_gap(self, slot: int) -> None:
        """Remove the gap before the tokens of a slot's step under way."""
        if decodes := int(self.counts[slot, kernel.DECODES]):
            gap, place = self.tracks[slot, [kernel.GAP, kernel.PLACE]].tolist()
            self.ring[kernel.FIRST_BIN + int(place)] -= decodes
            self.sums[[kernel.COUNT, kernel.TOTAL, kernel.SQUARES]] -= (
                decodes,
                decodes * gap,
                decodes * gap * gap,
            )

    def add_to(self, tally: Tally) -> None:
        """Add the steps and prompt chunks that the compiled code counted to a tally."""
        for tokens, row in self.row_of.items():
            tally.batch_steps[tokens] += int(self.made[row])
        read = {
            shape.window is not None: sums
            for shape, sums in zip(self.costs.shapes, self.read.tolist(), strict=True)
        }
        for windowed, (attended, cached) in read.items():
            if windowed:
                tally.windowed_attended += attended
                tally.windowed_cached += cached
            else:
                tally.attended += attended
                tally.cached += cached
        tally.steps_without_sampling += int(self.ring[kernel.STEPS_WITHOUT_SAMPLING])

    def add_gaps_to(self, gaps: Gaps) -> None:
        """Add the gaps that the compiled code counted to a histogram."""
        bins = self.ring[kernel.FIRST_BIN :]
        used = np.flatnonzero(bins)
        places = (used + kernel.LOWEST_BIN).tolist()
        counts = dict(zip(places, bins[used].tolist(), strict=True))
        gaps.join(counts, *self.sums[[kernel.TOTAL, kernel.SQUARES]].tolist())

    @property
    def free_at(self) -> Seconds:
        """The time at which the last stage in use is free [s]."""
        return float(self.sums[kernel.CLOCK] + self.stages[kernel.FREE].max())

    @property
    def busy(self) -> NDArray[np.float64]:
        """The working time of each stage. float[stage], s; a view."""
        busy: NDArray[np.float64] = self.stages[kernel.BUSY]
        return busy
