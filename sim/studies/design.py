"""The plan with the highest goodput: every plan of a system's chips is bounded, the best simulated.

    from sim.studies.design import search_plans
    search_plans(sim.read("mine.yaml")).systems["h100x8"].plan  # for plan: {search: capacity}

Bounds (`studies.bound`) decide which plans are simulated.  A plan is simulated at a little more
than the highest load so far.  Its own capacity is searched only if it meets that load.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sim.cost.plan import DEGREES, MOST_REPLICAS, Plan, PlanError
from sim.inputs.suggestions import unknown_name
from sim.planning.deployment import Deployment
from sim.planning.search import smallest_plan, stage_shapes
from sim.results.capacity_summary import BestDegrees, BestPlanSummary
from sim.results.system_identity import max_goodput
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.plan_search import PlanSearch, RivalPlan
from sim.scenario.pools import key_path, plain_systems, why_plan_is_kept
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.sources import ScenarioSource, as_scenario
from sim.studies.bound import load_bound, near_best
from sim.studies.capacity_result import SystemCapacity
from sim.studies.capacity_search import (
    SEARCH_FROM,
    CapacitySearch,
    Guess,
    given_capacity,
    load_to_beat,
    processes_for,
)
from sim.studies.identity import ffn_pool
from sim.studies.pool_budget import alone_with, ordinary_system
from sim.studies.pool_sizes import best_sizes, highest_goodput, open_sizes, sizes_by_bound
from sim.studies.pool_split import Splits, best_split, open_splits, opened
from sim.studies.processes import results_of
from sim.studies.trials import TrialProgress, no_progress


def search_plans(
    scenario: ScenarioSource,
    attainment: float | None = None,
    requests: int | None = None,
    progress: TrialProgress = no_progress,
    systems: Iterable[str] | None = None,
    jobs: int | None = 1,
    **changes: object,
) -> Scenario:
    """Return the scenario with degrees and copies of pools in place of every `search: capacity`.

    scenario: a path, a name of the catalogue, a mapping or a scenario. changes: values by key, as
    in `sim.run`.
    `searches` of the result says how they were found.  Without open plans, the result is the
    scenario itself.
    attainment, jobs: as in `capacity`. Sizes of pools are searched here, whatever the jobs.
    systems: systems to search in, and those of pools; None means all.
    Raises: PlanError if no plan of a system fits or meets the SLO; UserError for an unknown system;
    otherwise as `read`.
    """
    scenario = as_scenario(scenario, changes)
    if systems is not None:
        systems = list(systems)
        known = [
            *scenario.systems,
            *(m for name in scenario.systems for m in scenario.members(name)),
        ]
        for name in systems:
            if name not in known:
                raise unknown_name("systems", name, dict.fromkeys(known))
    plan_of = partial(_searched_plan, scenario, attainment, requests, progress)
    names = {name: name for name in _open_plans(scenario, systems)}
    searched = results_of(plan_of, names, processes_for(jobs, requests))
    for name, (plan, how) in searched.items():
        scenario = scenario.with_searched(name, {"plan": plan}, how)
    for name in open_sizes(scenario, None if systems is None else set(systems)):
        search = _capacity_search(name, attainment, requests, progress)
        copies, how = best_sizes(scenario, name, search)
        scenario = scenario.with_searched(name, {"copies": copies}, how)
    for name in open_splits(scenario, None if systems is None else set(systems)):
        search = _capacity_search(name, attainment, requests, progress)
        split, how, _ = best_split(scenario, name, search)
        how = replace(how, rival=_rival(scenario, name, search))
        scenario = scenario.with_searched(name, _pools_of(split), how)
    return scenario


def _searched_plan(
    scenario: Scenario,
    attainment: float | None,
    requests: int | None,
    progress: TrialProgress,
    name: str,
) -> tuple[Plan, PlanSearch]:
    """Return the plan of the highest goodput of a system, and how it was found.

    Raises: PlanError if no plan fits or meets the SLO.
    """
    search = _capacity_search(name, attainment, requests, progress)
    best = best_plan(_single_system(scenario, name), name, search)
    if best.capacity.best is None:
        raise PlanError(
            f"{scenario.where(name)}.plan.search: got capacity, and the SLO is met by none of"
            f" {best.search.simulated} plans: {best.capacity.reason};"
            " expected one that meets it; try a looser slo, or search: speed"
        )
    return best.plan, best.search


def bound_plans(scenario: Scenario) -> Scenario:
    """Return the scenario with the plan of the highest bound in place of `search: capacity`.

    Nothing is simulated.
    Raises: PlanError if no plan of a system fits.
    """
    for name in _open_plans(scenario, None):
        (most, first), *others = plans_by_bound(_single_system(scenario, name), name)
        search = PlanSearch(1 + len(others), 0, most)
        scenario = scenario.with_searched(name, {"plan": first.plain(name).plan}, search)
    for name in open_sizes(scenario, None):
        (most, copies), *smaller = sizes_by_bound(scenario, name)
        search = PlanSearch(1 + len(smaller), 0, most)
        scenario = scenario.with_searched(name, {"copies": copies}, search)
    for name in open_splits(scenario, None):
        considered, ((most, split), *_) = Splits(scenario, name).by_bound()
        scenario = scenario.with_searched(
            name, _pools_of(split), PlanSearch(considered, 0, most, _rival(scenario, name, None))
        )
    return scenario


def _pools_of(split: AttentionFfn) -> dict[str, Any]:
    """Return the values that a search of both pools finds."""
    return {key: getattr(split, key) for key in ("attention", "ffn", "micro_batches", "plan")}


def _rival(scenario: Scenario, name: str, search: CapacitySearch | None) -> RivalPlan | None:
    """Return the best plan of one system within the limits of two pools; None if it fits nowhere.

    search: None if plans are only bounded.
    """
    alone = alone_with(scenario, name, ordinary_system(scenario, name))
    try:
        if search is None:
            load, laid = plans_by_bound(alone, name)[0]
            plan = laid.deploy(name).layout.plan
        else:
            best = best_plan(alone, name, search)
            load = best.search.load
            plan = next(iter(best.capacity.members.values())).deployment.layout.plan
    except PlanError:
        return None
    chip, chips, _ = alone.plain(name).hardware
    return RivalPlan(chip.id, chips, plan, load)


def _open_plans(scenario: Scenario, systems: Iterable[str] | None) -> list[str]:
    """Return the systems with `search: capacity`, among those named; None means all."""
    plain = plain_systems(scenario.systems)
    paths = (
        [(name,) for name in plain]
        if systems is None
        else (key_path(scenario.systems, name) for name in systems)
    )
    named = {".".join(path) for path in paths}
    return [name for name, own in plain.items() if name in named and own.plan.search == "capacity"]


def _single_system(scenario: Scenario, name: str) -> Scenario:
    """Return the scenario with one system only."""
    return scenario.model_copy(update={"systems": {name: scenario.plain(name)}})


def _capacity_search(
    name: str, attainment: float | None, requests: int | None, progress: TrialProgress
) -> CapacitySearch:
    """Return the function that searches the capacity of a scenario's only system from a guess."""
    return lambda scenario, guess: given_capacity(
        scenario, attainment, requests, progress, guess
    ).systems[name]


@dataclass(frozen=True, eq=False)
class BestPlan:
    """A plan with the highest goodput of a system, its capacity, and how it was found.

    plan: that of the attention pool, if there is an FFN pool.
    """

    plan: Plan
    capacity: SystemCapacity
    search: PlanSearch
    closed: bool

    @property
    def summary(self) -> BestPlanSummary:
        """The plan as a result has it."""
        best = self.capacity.best
        return BestPlanSummary(
            plan=self.degrees,
            ffn=ffn_pool(self._deployment),
            most=max_goodput(self.search.load, self.closed),
            attainment=best.attainment if best else None,
            considered=self.search.considered,
            simulated=self.search.simulated,
        )

    @property
    def degrees(self) -> BestDegrees:
        """Degrees of the plan as a scenario writes them, and the precision of its KV cache."""
        resolved = self._deployment.layout.plan
        return BestDegrees(**{key: getattr(resolved, key) for key in (*DEGREES, "kv")})

    @property
    def _deployment(self) -> Deployment:
        return next(iter(self.capacity.members.values())).deployment


def best_plans(
    scenario: Scenario,
    attainment: float | None,
    requests: int | None = None,
    progress: TrialProgress = no_progress,
    own: Mapping[str, SystemCapacity] | None = None,
    jobs: int | None = 1,
) -> dict[str, BestPlan]:
    """Return for each plain system the plan of its chips with the highest goodput in the SLO.

    Degrees, replicas and attention data parallelism vary.  Precisions, the engine and the number
    of chips are the system's own.  Attention and FFN pools of one kind of chip may have other
    sizes, and another number of micro-batches.
    own: capacities of the systems with their own plans, which are not simulated again; or None.
    jobs: as in `capacity`.
    Left out: systems whose plan was searched already, and those of `why_plan_is_kept`; plans that
    leave chips unused.
    Raises: UserError if there is no SLO or no load to vary; PlanError if no plan of a system fits.
    """
    known = {
        name: (name, own[name] if own else None)
        for name, system in scenario.systems.items()
        if name not in scenario.searches and not why_plan_is_kept(system)
    }
    search = partial(_best_of, scenario, attainment, requests, progress)
    results = results_of(search, known, processes_for(jobs, requests))
    return {name: best for name, best in results.items() if best}


def _best_of(
    scenario: Scenario,
    attainment: float | None,
    requests: int | None,
    progress: TrialProgress,
    known: tuple[str, SystemCapacity | None],
) -> BestPlan | None:
    """Return the best plan of a system; None if no split of its pools meets the SLO.

    known: its name, and its capacity with its own plan.
    """
    name, own = known
    system = scenario.systems[name]
    search = _capacity_search(name, attainment, requests, progress)
    if isinstance(system, AttentionFfn):
        return _best_split_of(scenario, name, system, search, own)
    return best_plan(_single_system(scenario, name), name, search, own)


def _best_split_of(
    scenario: Scenario,
    name: str,
    system: AttentionFfn,
    search_capacity: CapacitySearch,
    own: SystemCapacity | None,
) -> BestPlan | None:
    """Return the best split of the chips of two pools; None if none meets the SLO.

    own: the capacity with the pools as they are; None if it is not known.
    """
    best, split, how = own, system, PlanSearch(0, 0, 0.0)
    with suppress(PlanError):  # no other split meets the SLO
        split, how, best = best_split(
            alone_with(scenario, name, opened(system)), name, search_capacity
        )
    if own and highest_goodput(own) >= how.load:
        split, how, best = system, replace(how, load=highest_goodput(own)), own
    if best is None or best.best is None:
        return None
    users = scenario.workload.load_kind == "users"
    return BestPlan(split.attention.plan, best, how, users)


def best_plan(
    scenario: Scenario,
    name: str,
    search_capacity: CapacitySearch,
    own: SystemCapacity | None = None,
) -> BestPlan:
    """Return the best plan of the only system of a scenario.

    own: capacity with the system's own plan, if that is known.
    Raises: PlanError if no plan fits.
    """
    ordered = plans_by_bound(scenario, name)
    near = _plans_to_simulate(ordered, name)
    plan, best, refusal = scenario.plain(name).plan, own, PlanError("")
    for most, changed in near:
        other = changed.plain(name).plan
        if own and other is scenario.plain(name).plan:
            continue
        least = load_to_beat(best.best) if best and best.best else 0.0
        start = least or SEARCH_FROM * most
        try:
            result = search_capacity(changed, Guess(start, least) if start else None)
        except PlanError as error:
            # The system's exceptions or outages name chips of another plan.
            refusal = error
            continue
        if best is None or result.best:
            plan, best = other, result
    if best is None:
        raise refusal
    search = PlanSearch(len(ordered), len(near), highest_goodput(best))
    return BestPlan(plan, best, search, scenario.workload.load_kind == "users")


def _plans_to_simulate(
    ordered: list[tuple[float, Scenario]], name: str
) -> list[tuple[float, Scenario]]:
    """Return the plans near the highest bound, by the shape of a stage and the KV precision."""

    def shape(changed: Scenario) -> tuple[object, ...]:
        plan = changed.plain(name).plan
        return plan.tensor, plan.attention_data, plan.expert, plan.kv

    return near_best(ordered, shape)


def plans_by_bound(scenario: Scenario, name: str) -> list[tuple[float, Scenario]]:
    """Return the bound of each plan that fits the only system, and the scenario with the plan.

    The highest bound is first.
    Raises: PlanError if no plan fits.
    """
    # The key is the degrees, because the system's own plan is among the candidates twice.
    bounds: dict[tuple[object, ...], tuple[float, Scenario]] = {}
    first, refusal = None, None
    for plan in candidate_plans(scenario, name):
        system = scenario.plain(name).model_copy(update={"plan": plan})
        changed = scenario.model_copy(update={"systems": {name: system}})
        try:
            deployment = changed.deploy(name)
        except PlanError as error:
            refusal = error
            continue  # the topology joins fewer chips than a replica would have
        first = first or deployment
        degrees = tuple(getattr(deployment.layout.plan, key) for key in (*DEGREES, "kv"))
        if deployment.fit.fits and degrees not in bounds:
            bounds[degrees] = load_bound(changed, {name: Member(deployment)}), changed
    if refusal and not first:
        raise refusal
    if not bounds:
        raise _no_plan_fits(scenario, name, first)
    return sorted(bounds.values(), key=lambda pair: -pair[0])


def _no_plan_fits(scenario: Scenario, name: str, first: Deployment | None) -> PlanError:
    """Return the error that no plan fits, with the number of chips that would do."""
    system = scenario.plain(name)
    fewest = smallest_plan(first.space) if first else None
    hint = (
        f"try {fewest.chips} chips"
        if fewest
        else "try another chip, as no number of these would do"
    )
    return PlanError(
        f"{scenario.where(name)}.plan: got no plan of {system.hardware[1]} chips that holds"
        f" {(system.model or scenario.model).id}; expected one; {hint}"
    )


def candidate_plans(scenario: Scenario, name: str) -> Iterator[Plan]:
    """Yield every plan that uses all chips of a system, after its own plan if that has degrees."""
    system = scenario.plain(name)
    model, chips, own = system.model or scenario.model, system.hardware[1], system.plan
    if own.search is None:
        yield own
    for tensor, data, expert in stage_shapes(model, chips):
        group = tensor * data
        counts = range(1, min(chips // group, MOST_REPLICAS) + 1)
        for replicas in (n for n in counts if chips % (group * n) == 0):
            pipeline = chips // (group * replicas)
            if pipeline > len(model.blocks):
                continue
            degrees = dict(zip(DEGREES, (tensor, data, expert, pipeline, replicas), strict=True))
            for kv in own.kv if isinstance(own.kv, tuple) else (own.kv,):
                yield own.model_copy(update=degrees | {"kv": kv, "search": None, "slots": None})
