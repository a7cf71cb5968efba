"""A search for the sizes of an attention pool and an FFN pool, with their plans and micro-batches.

    plan: {search: capacity, chips: 72}   # in a scenario
    best_split(scenario, "afd", search_capacity)

Every split is bounded (`studies.bound`), and the few best are simulated, as in `studies.design`.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.layout import fit
from sim.cost.plan import DEGREES, Plan, PlanError
from sim.model.transformer import Model
from sim.planning.attention_ffn import deploy_attention, ffn_layout
from sim.planning.deployment import Deployment
from sim.scenario.attention_ffn import AttentionFfn, pool_parts
from sim.scenario.plan_search import PlanSearch
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.split_search import SplitSearch
from sim.scenario.system import System
from sim.studies.bound import (
    NEAR_BOUND,
    cached_prefix,
    goodput_bound,
    load_bound,
    near_best,
)
from sim.studies.capacity_result import SystemCapacity
from sim.studies.capacity_search import CapacitySearch
from sim.studies.paces import decode_counts, loop_of
from sim.studies.pool_budget import Budget, alone_with, budget_of
from sim.studies.pool_sizes import best_near, highest_goodput
from sim.studies.typical_request import typical_request
from sim.workload.slo import SLO

MOST_MICRO_BATCHES = 4  # that a search tries; published systems use two or three
EVERY_SIZE = 64  # chips of an FFN stage up to which each number is tried


def open_splits(scenario: Scenario, names: set[str] | None) -> list[str]:
    """Return the systems whose pools are searched for, among `names`; None: all systems."""
    return [
        name
        for name, system in scenario.systems.items()
        if isinstance(system, AttentionFfn) and system.plan and (names is None or name in names)
    ]


@dataclass(frozen=True, eq=False)
class Splits:
    """All splits of the limits of a system's pools, and the bounds of their goodput.

    A stage of the FFN pool has 1 to 64 chips, or a power of two or a divisor of the experts. It
    has one shard of the experts, or 1, 2, 4 or 8 chips for each shard. The pool has the fewest
    stages that hold the MLPs, because a layer uses one stage only. The attention pool has all
    chips that are left.
    Left out: more stages, on which several micro-batches may be at work; several copies of both
    pools, which are a fleet.
    """

    scenario: Scenario
    name: str

    @cached_property
    def system(self) -> AttentionFfn:
        """The system with open pools."""
        system = self.scenario.systems[self.name]
        assert isinstance(system, AttentionFfn)
        return system

    @cached_property
    def model(self) -> Model:
        """The model that both pools serve."""
        return self.system.attention.model or self.scenario.model

    @cached_property
    def budget(self) -> Budget:
        """The limits of both pools."""
        return budget_of(self.scenario, self.name)

    @cached_property
    def micro_batches(self) -> tuple[int, ...]:
        """The numbers of micro-batches to try: that of the scenario, or all up to a few."""
        if "micro_batches" in self.system.model_fields_set:
            return (self.system.micro_batches,)
        return tuple(range(1, MOST_MICRO_BATCHES + 1))

    @cached_property
    def lengths(self) -> tuple[float, float]:
        """The tokens of a mean request, and of its prompt."""
        return self.scenario.request_tokens, self.scenario.workload.mean_prompt

    def ffn_pools(self) -> list[System]:
        """Return the FFN pools that hold the MLPs and leave chips for attention.

        Raises: PlanError if there are none.
        """
        pools, refusal = [], ""
        for tensor, expert in self._ffn_shapes():
            plan = self.system.ffn.plan.model_copy(update={"tensor": tensor, "expert": expert})
            try:
                # The tokens of a step need room as well. They depend on the attention pool.
                few, many = (self._fewest_stages(plan, tokens) for tokens in self.step_tokens)
            except ValueError as error:  # the topology joins fewer chips
                refusal = f": {error}"
                continue
            pools += [
                _sized(self.system.ffn, tensor * stages, plan, pipeline=stages)
                for stages in sorted({few, many} - {0})
                if self.budget.attention_chips(tensor * stages) > 0
            ]
        if not pools:
            chip = self.system.ffn.hardware[0].id
            raise PlanError(
                f"{self.scenario.where(self.name, 'plan', 'search')}: got no FFN pool of "
                f"{chip} that holds the MLPs of {self.model.id} and leaves chips for attention"
                f"{refusal}; expected one; try more chips"
            )
        return pools

    def _ffn_shapes(self) -> Iterator[tuple[int, int]]:
        """Yield the chips of a stage, and the shards of its experts."""
        blocks, most = self.model.blocks, self.budget.ffn
        experts = max((block.experts.count for block in blocks if block.experts), default=0)
        for tensor in range(1, min(most, max(self.model.num_attention_heads, experts)) + 1):
            if tensor > EVERY_SIZE and tensor & (tensor - 1) and (experts or tensor + 1) % tensor:
                continue
            shards = (
                {tensor // chips for chips in (1, 2, 4, 8) if tensor % chips == 0}
                if experts
                else ()
            )
            for expert in sorted({1, *(n for n in shards if n <= experts)}):
                yield tensor, expert

    @cached_property
    def step_tokens(self) -> tuple[int, int]:
        """The least and the most tokens of a micro-batch in the FFN pool."""
        # The first pool has tensor degree 1, so it has the most ranks, and takes the most tokens.
        most = next(self.attention_pools(self.budget.attention_chips(1)), None)
        if most is None:
            return 1, 1
        parts, limits = pool_parts(most, self.model)
        try:
            budget = deploy_attention(parts, self.lengths, limits).layout.token_budget
        except ValueError:
            return 1, 1
        return 1, -(-budget // min(self.micro_batches))

    def _fewest_stages(self, plan: Plan, tokens: int) -> int:
        """Return the fewest stages of an FFN pool that hold the MLPs; 0 if no number does.

        tokens: of a micro-batch.
        Raises: ValueError if the topology joins fewer chips.
        """
        parts, limits = pool_parts(self.system.ffn, self.model)
        limits = replace(limits, token_budget=tokens)

        def holds(stages: int) -> bool:
            sized = replace(parts, plan=plan, chips=plan.tensor * stages)
            return fit(ffn_layout(sized, limits), self.lengths[0]).fits

        def enough(stages: int) -> bool:
            try:
                return holds(stages)
            except ValueError:  # the topology joins as few chips for more stages
                return True

        most = min(self.model.num_hidden_layers, self.budget.ffn // plan.tensor)
        stages = 1 + bisect_left(range(1, most), True, key=enough)
        return stages if holds(stages) else 0

    def attention_pools(self, chips: int) -> Iterator[System]:
        """Yield the attention pools of at most `chips` chips: one for each tensor degree."""
        heads = self.model.num_attention_heads
        for tensor in range(1, min(chips, heads) + 1):
            if tensor & (tensor - 1) == 0 or heads % tensor == 0:
                ranks = chips // tensor
                plan = self.system.attention.plan.model_copy(update={"tensor": tensor})
                yield _sized(self.system.attention, tensor * ranks, plan, attention_data=ranks)

    def attention_bound(self, attention: System) -> float:
        """Return the bound of an attention pool beside an FFN pool that takes no time; 0: none."""
        parts, limits = pool_parts(attention, self.model)
        try:
            deployment = deploy_attention(parts, self.lengths, limits)
        except ValueError:  # the topology joins fewer chips, or the limits contradict each other
            return 0.0
        if not deployment.fit.fits:
            return 0.0
        workload, slo = self.scenario.workload, self.scenario.tightest_slo or SLO()
        cached = cached_prefix(self.scenario, self.name, Member(deployment))
        request = typical_request(self.scenario)
        return goodput_bound(deployment, request, slo, loop_of(workload), cached)

    def ffn_bound(self, attention: System, ffn: System) -> float:
        """Return the bound of an FFN pool beside an attention pool that takes no time; inf: none.

        The steps of a closed loop's request take at most the SLO's TPOT.
        """
        deployment = self.deployed(self.split(attention, ffn, 1))
        if not deployment:
            return 0.0
        costs, workload = deployment.pools, self.scenario.workload
        assert costs
        slo = self.scenario.tightest_slo or SLO()
        cached = cached_prefix(self.scenario, self.name, Member(deployment))
        steps = max(1.0, workload.mean_output - 1)
        tokens = max(1.0, workload.mean_prompt - cached) + steps  # that pass the pool
        rate = 0.0
        budget = deployment.limits.token_budget
        for count in decode_counts(budget, lambda count: slo.allows_tpot(costs.ffn_seconds(count))):
            if slo.allows_tpot(seconds := costs.ffn_seconds(count)):
                rate = max(rate, count / seconds / tokens)
        if workload.pause is None:
            return rate
        return (
            math.inf
            if slo.tpot is None
            else rate * ((slo.ttft or 0.0) + steps * slo.tpot + workload.pause)
        )

    def split(self, attention: System, ffn: System, micro_batches: int) -> AttentionFfn:
        """Return the system with both pools."""
        pools = {"attention": attention, "ffn": ffn, "micro_batches": micro_batches, "plan": None}
        return self.system.model_copy(update=pools)

    def deployed(self, split: AttentionFfn) -> Deployment | None:
        """Return the deployment of a split; None if it does not fit."""
        try:
            deployment = alone_with(self.scenario, self.name, split).deploy(self.name)
        except PlanError:
            return None
        return deployment if deployment.fit.fits else None

    def bounds(self, attention: System, ffn: System) -> Iterator[tuple[float, AttentionFfn]]:
        """Yield the bound of each number of micro-batches on two pools, unless it does not fit."""
        first: AttentionFfnCosts | None = None
        for count in self.micro_batches:
            split = self.split(attention, ffn, count)
            if not (deployment := self.deployed(split)):
                continue
            if first:
                deployment = replace(deployment, costs=first.with_micro_batches(count))
            first = first or deployment.pools
            members = {self.name: Member(deployment)}
            if load := load_bound(alone_with(self.scenario, self.name, split), members):
                yield load, split

    def by_bound(self) -> tuple[int, list[tuple[float, AttentionFfn]]]:
        """Return the number of splits, and those near the highest bound with it, the highest first.

        A pair of pools is skipped if the bound of one pool alone is not near the highest bound.
        Among equal bounds, fewer chips come first.
        Raises: PlanError if no split fits, or no load is within the SLO.
        """
        pairs = [
            (attention, ffn)
            for ffn in self.ffn_pools()
            for attention in self.attention_pools(self.budget.attention_chips(ffn.hardware[1]))
        ]
        attends = {key: self.attention_bound(own) for key, (own, _) in _by_key(pairs, 0).items()}
        computes = {key: self.ffn_bound(*pair) for key, pair in _by_key(pairs, 1).items()}
        alone = [min(attends[_key(own)], computes[_key(ffn)]) for own, ffn in pairs]
        best, bounded = 0.0, []
        for n in sorted(range(len(pairs)), key=lambda n: -alone[n]):
            if not alone[n] or alone[n] < NEAR_BOUND * best:
                break
            for load, split in self.bounds(*pairs[n]):
                best, chips = max(best, load), sum(own.hardware[1] for own in pairs[n])
                bounded.append((load, chips, split))
        if not bounded:
            raise self._none_meets(any(attends.values()))
        bounded.sort(key=lambda bound: (-bound[0], bound[1]))
        considered = len(pairs) * len(self.micro_batches)
        return considered, [(load, split) for load, _, split in bounded]

    def _none_meets(self, attends: bool) -> PlanError:
        """Return the error that no split serves a mean request within the SLO."""
        where = self.scenario.where(self.name, "plan", "search")
        what = "a mean request misses the slo, or does not fit, in every split"
        if not attends:
            what = "a mean request misses the slo, or does not fit, in every attention pool"
        return PlanError(
            f"{where}: got capacity, and {what}; expected an slo that can be met; try a looser "
            "slo, or more chips"
        )


def best_split(
    scenario: Scenario, name: str, search_capacity: CapacitySearch
) -> tuple[AttentionFfn, PlanSearch, SystemCapacity]:
    """Return the split with the highest goodput in a system's limits, its search, its capacity.

    Raises: PlanError if none meets the SLO.
    """
    considered, ordered = Splits(scenario, name).by_bound()
    near = near_best(ordered, _shape)
    where = scenario.where(name, "plan", "search")
    best, split = best_near(
        near,
        lambda split, guess: search_capacity(alone_with(scenario, name, split), guess),
        f"{where}: got capacity, and the slo is met by none of {len(near)} splits",
    )
    return split, PlanSearch(considered, len(near), highest_goodput(best)), best


def opened(system: AttentionFfn) -> AttentionFfn:
    """Return a system with the sizes of its pools open, within the chips that both have now.

    If both pools have chips of one kind and no cluster, chips may change their pool. All degrees
    and the number of micro-batches are open, too.
    """
    (first, most), (second, others) = (own.hardware[:2] for own in system.pools.values())
    clusters = any(own.cluster for own in system.pools.values())
    chips = most + others
    sizes = (chips, chips) if first == second and not clusters else (most, others)
    pools = {
        pool: own.model_copy(update={"chips": size})
        for (pool, own), size in zip(system.pools.items(), sizes, strict=True)
    }
    search = SplitSearch(search="capacity", chips=chips)
    changed = system.model_copy(update=pools | {"plan": search})
    changed.model_fields_set.discard("micro_batches")
    return changed


def _sized(pool: System, chips: int, plan: Plan, **degrees: int) -> System:
    """Return a pool with a number of chips, and a plan with these degrees."""
    own = {key: getattr(plan, key) for key in DEGREES if key != "replicas"}
    sized = plan.model_copy(update=own | degrees)
    return pool.model_copy(update={"chips": chips, "plan": sized})


def _key(pool: System) -> tuple[int | None, ...]:
    return pool.hardware[1], pool.plan.tensor, pool.plan.expert


def _by_key(
    pairs: list[tuple[System, System]], place: int
) -> dict[tuple[int | None, ...], tuple[System, System]]:
    """Return one pair with each attention pool (place 0), or with each FFN pool (place 1)."""
    return {_key(pair[place]): pair for pair in pairs}


def _shape(split: AttentionFfn) -> tuple[object, ...]:
    """Return the shape of a split. Bounds of equal shapes have similar errors."""
    return split.attention.plan.tensor, split.ffn.plan.expert == 1, split.micro_batches
