"""The collectives of an FFN pool, whose shards of experts receive their own tokens."""

from dataclasses import replace
from functools import cached_property

from sim.cost.collectives import Collectives, Exchange
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.layout import Layout
from sim.model.blocks import Block


class ShardCollectives(Collectives):
    """The collectives of an FFN pool.

    With a copy for each shard, a token comes to one chip of the shard, and the chips gather all
    tokens. Then they sum the results in a reduce-scatter, and one chip sends each result back. The
    gather ends the dispatch, and the sum begins the combine, so the engine's `overlap` hides a
    share of both. With one copy of a token this is an all-reduce over the stage, as without pools.
    """

    def __init__(self, layout: Layout, transfer: LayerTransfer) -> None:
        self.shards, plan = transfer.shards(layout), layout.plan
        alone = replace(plan, tensor=plan.tensor // self.shards, attention_data=self.shards)
        super().__init__(replace(layout, plan=alone))
        self.transfer, self.pool = transfer, layout

    def of_block(self, block: Block, tokens: int, stage: int) -> tuple[Exchange, ...]:
        if self.transfer.copies == "token":
            return self._exchange("all_reduce", stage, self._hidden_bytes(tokens))
        out, back = self.transfer.token_bytes(self.pool, block)
        return (
            *self._exchange("all_gather", stage, tokens / self.shards * out),
            *self._exchange("all_gather", stage, tokens / self.shards * back, adds=True),
        )

    def routes(self, exchange: Exchange) -> bool:
        return self.transfer.copies != "token"

    def gather(self, tokens: int, stage: int) -> tuple[Exchange, ...]:
        return ()  # the attention pool sends the input of each layer

    @cached_property
    def _onward_cables(self) -> int:
        return 0  # each layer's output returns to the attention pool
