"""Failures of replicas, and of an attention pool, an FFN pool and a drafter while they serve.

A replica fails as a whole. An FFN pool works for all ranks of the attention pool, and a drafter on
other chips for all sequences of a replica. So steps stop while they are down. An attention rank
holds the KV cache of its own sequences. While it is down, the other ranks go on.
"""

from dataclasses import replace
from functools import partial

from sim.serving.event_order import schedule_outages
from sim.serving.executors.pausing import PausingExecutor
from sim.serving.fleet import ServingFleet
from sim.serving.replica import Replica
from sim.serving.replica_config import Outage


def schedule_failures(fleet: ServingFleet) -> None:
    """Schedule the failures and repairs of all replicas and of their pools."""
    for number, config in enumerate(fleet.configs):
        if outages := config.pool_outages:
            stops = StepStops(fleet, number)
            schedule_outages(fleet.env, outages.other, stops.down, stops.up_again)
            fleet.after_repair[number] = stops.stop
            if outages.attention:
                ranks = RankFailures(fleet, number)
                schedule_outages(fleet.env, outages.attention, ranks.rank_down, ranks.rank_up)
        down, up_again = partial(fleet.down, number), partial(fleet.up_again, number)
        schedule_outages(fleet.env, config.outages, down, up_again)


class StepStops:
    """The failures and repairs of an FFN pool or a drafter, without which no step is made.

    A step under way begins again with the repair. The replica keeps its sequences.
    under_way: number of outages under way, which may overlap.
    Left out: the KV cache of a drafter, which is computed again; `lasts` may include that.
    """

    def __init__(self, fleet: ServingFleet, number: int) -> None:
        self.fleet, self.number = fleet, number
        self.under_way = 0

    def down(self, _: Outage) -> None:
        """Stop all steps."""
        self.under_way += 1
        if self.under_way == 1:
            self.stop()

    def stop(self) -> None:
        """Stop the steps of the replica if an outage is under way; a failure replaces replicas."""
        if self.under_way and (replica := self.fleet.replicas[self.number]).up:
            _pausing(replica).pause()

    def up_again(self, _: Outage) -> None:
        """Begin the step under way again, if no other outage is under way."""
        self.under_way -= 1
        if not self.under_way and (replica := self.fleet.replicas[self.number]).up:
            _pausing(replica).resume()


def _pausing(replica: Replica) -> PausingExecutor:
    assert isinstance(replica.executor, PausingExecutor)
    return replica.executor


class RankFailures:
    """The failures and repairs of the ranks of one attention pool.

    Without a rank that works the replica fails as a whole, and begins again with the first repair.
    Sequences of a dead rank leave after the step under way.
    dead: ranks that are down.
    Left out: prefixes that only a dead rank has cached, and routers that avoid a replica whose FFN
    pool is down.
    """

    def __init__(self, fleet: ServingFleet, number: int) -> None:
        self.fleet, self.number = fleet, number
        costs = fleet.configs[number].costs
        self.ranks = costs.layout.plan.attention_data
        self.costs = {self.ranks: costs}  # by number of ranks
        self.dead: set[int] = set()

    @property
    def replica(self) -> Replica:
        """The replica. A failure of all ranks replaces it by another object."""
        return self.fleet.replicas[self.number]

    def rank_down(self, outage: Outage) -> None:
        """Lose the sequences of a rank. Those of the other ranks go on."""
        alive = [rank for rank in range(self.ranks) if rank not in self.dead]
        self.dead.add(outage.replica)
        if len(alive) == 1:
            self.fleet.down(self.number, outage)
            return
        admission = self.replica.admission
        for request in admission.admitted():
            if request.rank == outage.replica:
                admission.lose(request, partial(self.fleet.lose, outage=outage))
        self.use_ranks()

    def rank_up(self, outage: Outage) -> None:
        """Let a rank serve again, which holds no sequences."""
        self.dead.remove(outage.replica)
        if not self.replica.up:
            self.fleet.up_again(self.number, outage)
        self.use_ranks()
        self.replica.on_submit()

    def use_ranks(self) -> None:
        """Give the replica the costs and the room of the ranks that work."""
        alive, limits = self.ranks - len(self.dead), self.replica.limits
        if alive not in self.costs:
            whole = self.costs[self.ranks]
            plan = replace(whole.layout.plan, attention_data=alive)
            self.costs[alive] = whole.on(replace(whole.layout, plan=plan))
        if (executor := _pausing(self.replica)).costs is not self.costs[alive]:
            executor.use(self.costs[alive])
        self.replica.kv_cache.resize(
            limits.kv_tokens * alive // self.ranks,
            limits.sequences * alive // self.ranks,
            frozenset(self.dead),
        )
