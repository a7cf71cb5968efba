"""Failures of an attention pool and an FFN pool while they serve.

The FFN pool works for all ranks of the attention pool, so steps stop while it is down. An attention
rank holds the KV cache of its own sequences. While it is down, the other ranks go on.
"""

from functools import partial
from typing import TYPE_CHECKING

import simpy

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.serving.event_order import CallUrgently
from sim.serving.executors.pausing import PausingExecutor
from sim.serving.replica import Replica
from sim.serving.replica_config import Outage, PoolOutages

if TYPE_CHECKING:
    from sim.serving.fleet import ServingFleet


class PoolFailures:
    """The failures and repairs of the pools of one replica.

    Without a rank that works the replica fails as a whole, and begins again with the first repair.
    Sequences of a dead rank leave after the step under way.
    The admitted requests are dealt to the ranks in turn, in the order of their numbers.
    dead: ranks that are down. ffn_is_down: whether the FFN pool is.
    Left out: prefixes that only a dead rank has cached, and routers that avoid a replica whose FFN
    pool is down.
    """

    def __init__(
        self, env: simpy.Environment, number: int, pools: PoolOutages, fleet: "ServingFleet"
    ) -> None:
        self.env, self.number, self.pools, self.fleet = env, number, pools, fleet
        costs = fleet.configs[number].costs
        assert isinstance(costs, AttentionFfnCosts)
        self.ranks = costs.layout.plan.attention_data
        self.costs = {self.ranks: costs}  # by number of ranks
        self.dead: set[int] = set()
        self.ffn_is_down = False

    @property
    def replica(self) -> Replica:
        """The replica. A failure of all ranks replaces it by another object."""
        return self.fleet.replicas[self.number]

    @property
    def executor(self) -> PausingExecutor:
        """The replica's executor."""
        executor = self.replica.executor
        assert isinstance(executor, PausingExecutor)
        return executor

    def schedule(self) -> None:
        """Schedule all failures and repairs; at one instant a repair comes first."""
        for outages, down, up in (
            (self.pools.ffn, self.ffn_down, self.ffn_up),
            (self.pools.attention, self.rank_down, self.rank_up),
        ):
            for outage in sorted(outages, key=lambda outage: outage.at):
                CallUrgently(self.env, outage.at, partial(down, outage))
                CallUrgently(self.env, outage.at + outage.lasts, partial(up, outage))

    def ffn_down(self, _: Outage, __: simpy.Event) -> None:
        """Stop all steps. The attention pool keeps its sequences."""
        self.ffn_is_down = True
        if self.replica.up:
            self.executor.pause()

    def ffn_up(self, _: Outage, __: simpy.Event) -> None:
        """Begin the step under way again."""
        self.ffn_is_down = False
        if self.replica.up:
            self.executor.resume()

    def rank_down(self, outage: Outage, event: simpy.Event) -> None:
        """Lose the sequences of a rank. Those of the other ranks go on."""
        alive = [rank for rank in range(self.ranks) if rank not in self.dead]
        self.dead.add(outage.replica)
        if len(alive) == 1:
            self.fleet.down(self.number, outage, event)
            return
        admission, place = self.replica.admission, alive.index(outage.replica)
        for request in admission.admitted()[place :: len(alive)]:
            admission.lose(request, partial(self.fleet.lose, outage=outage))
        self.use_ranks()

    def rank_up(self, outage: Outage, event: simpy.Event) -> None:
        """Let a rank serve again, which holds no sequences."""
        self.dead.remove(outage.replica)
        if not self.replica.up:
            self.fleet.up_again(self.number, event)
            if self.ffn_is_down:
                self.executor.pause()
        self.use_ranks()
        self.replica.on_submit()

    def use_ranks(self) -> None:
        """Give the replica the costs and the room of the ranks that work."""
        alive, limits = self.ranks - len(self.dead), self.replica.limits
        if alive not in self.costs:
            self.costs[alive] = self.costs[self.ranks].on_ranks(alive)
        if self.executor.costs is not self.costs[alive]:
            self.executor.use(self.costs[alive])
        self.replica.kv_cache.resize(
            limits.kv_tokens * alive // self.ranks, limits.sequences * alive // self.ranks
        )
