"""The cost of a model's MLPs on an FFN pool, for micro-batches from an attention pool."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from sim.cost.causes import overlapped_causes
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.layout import Layout
from sim.cost.rows import StepRows
from sim.cost.shard_collectives import ShardCollectives
from sim.cost.terms import IS_COLLECTIVE, Row
from sim.model.blocks import Block
from sim.units import Seconds

NO_OVERHEAD = {"step_overhead": 0.0, "sequence_overhead": 0.0}  # the attention pool has it


class FfnPool:
    """The cost of the FFN part of a model on its pool.

    rows: of the pool's layout, whose engine has no time for steps and sequences.
    The engine's `overlap` is the share of the collectives that runs while the chips compute another
    micro-batch. A micro-batch itself waits for all of its collectives.
    """

    def __init__(self, layout: Layout, transfer: LayerTransfer) -> None:
        engine = layout.engine.model_copy(update=NO_OVERHEAD)
        self.layout = replace(layout, engine=engine)
        self.rows = StepRows(self.layout, collectives=ShardCollectives(self.layout, transfer))
        alone = replace(self.layout, engine=engine.model_copy(update={"overlap": 0.0}))
        self._alone = FfnPool(alone, transfer) if engine.overlap else self
        # Kept by block and tokens of a pass: few numbers with `tokens_per_beat`.
        self._pass_seconds: dict[tuple[Block, int], tuple[Seconds, Seconds]] = {}

    def passes(self, tokens: int) -> tuple[int, int]:
        """Return how often the pool works for a micro-batch, and for how many tokens."""
        beat = self.layout.engine.tokens_per_beat or tokens
        return -(-tokens // beat), min(tokens, beat)

    def layer_rows(self, block: Block, tokens: int) -> Iterator[Row]:
        """Yield the rows of a layer's MLP for one pass.

        Stages with this MLP may have unlike collectives. The slowest of them counts.
        """
        rows = self._pass_rows(block, tokens)
        yield from (row for row in rows if row.shares is not IS_COLLECTIVE)
        yield _slowest_collective(rows)

    def layer_seconds(self, block: Block, tokens: int) -> tuple[Seconds, Seconds]:
        """Return the time of a layer's MLP for a micro-batch, and that of `overlapped_row`."""
        passes, taken = self.passes(tokens)
        if (block, taken) not in self._pass_seconds:
            busy = sum(row.seconds for row in self.layer_rows(block, taken))
            self._pass_seconds[block, taken] = busy, self.overlapped_row(block, taken).seconds
        busy, overlapped = self._pass_seconds[block, taken]
        return passes * busy, passes * overlapped

    def overlapped_row(self, block: Block, tokens: int) -> Row:
        """Return the row of the exchanges of a pass while the chips compute another micro-batch."""
        alone, exposed = (
            _slowest_collective(pool._pass_rows(block, tokens)) for pool in (self._alone, self)
        )
        seconds, ideal = alone.seconds - exposed.seconds, alone.ideal - exposed.ideal
        causes = partial(overlapped_causes, seconds)
        return alone._replace(seconds=seconds, ideal=ideal, causes=causes)

    def _pass_rows(self, block: Block, tokens: int) -> list[Row]:
        taken = self.passes(tokens)[1]
        return [row for row in self.rows.body_rows(taken, taken) if row.part == block]


def _slowest_collective(rows: Iterable[Row]) -> Row:
    return max((row for row in rows if row.shares is IS_COLLECTIVE), key=lambda row: row.seconds)
