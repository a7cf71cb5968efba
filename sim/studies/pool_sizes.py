"""A search for the sizes of both pools with the highest goodput on a number of chips.

    copies: {search: capacity, chips: 64}   # in a scenario
    best_sizes(scenario, "pd", search_capacity)

Bounds (`studies.pool_bound`) decide which sizes are simulated, as with plans in `studies.design`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from sim.cost.plan import MOST_REPLICAS, PlanError
from sim.scenario.layout import deploy_members
from sim.scenario.plan_search import PlanSearch
from sim.scenario.pools import POOLS, PoolCopies, Pools
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.studies.capacity_result import SystemCapacity
from sim.studies.capacity_search import SEARCH_FROM, CapacitySearch, Guess, load_to_beat
from sim.studies.pool_bound import pools_point

MOST_SIZES = 5  # that are simulated: those with the highest bounds
NEAR_SIZES = 0.75  # sizes below this share of the highest bound are not simulated

Candidate = TypeVar("Candidate")


def open_sizes(scenario: Scenario, names: set[str] | None) -> list[str]:
    """Return the systems whose pool sizes are searched for, among `names`; None: all systems."""
    return [
        name
        for name, system in scenario.systems.items()
        if isinstance(system, Pools) and system.copies.search and (names is None or name in names)
    ]


def sizes_by_bound(scenario: Scenario, name: str) -> list[tuple[float, PoolCopies]]:
    """Return a bound of the goodput for each size of the prefill pool, the highest first.

    The decode pool has the chips that are left. Among equal bounds, fewer chips come first.
    Raises: PlanError if the chips hold no copy of each system, or no load meets the SLO.
    """
    system = scenario.systems[name]
    assert isinstance(system, Pools)
    members, chips = deploy_members(scenario, name), system.copies.chips
    assert chips
    (first, prefill), (second, decode) = members.items()
    sizes = []
    for copies in range(1, MOST_REPLICAS):
        left = (chips - copies * prefill.chips) // decode.chips
        if left < 1:
            break
        sizes.append(PoolCopies(prefill=copies, decode=min(left, MOST_REPLICAS)))
    if not sizes:
        needed = prefill.chips + decode.chips
        reason = f"got {chips}; expected at least {needed}, for a copy of each; try {needed}"
        raise PlanError(f"{scenario.where(name, 'copies', 'chips')}: {reason}")
    bounds = []
    for size in sizes:
        sized = {
            first: replace(prefill, copies=size.prefill),
            second: replace(decode, copies=size.decode),
        }
        if point := pools_point(scenario, sized):
            bounds.append((point.load, used_chips(sized), size))
    if not bounds:
        raise PlanError(
            f"{scenario.where(name, 'copies', 'search')}: got capacity, and a mean request misses "
            "the slo in every pool; expected an slo that can be met; try a looser slo"
        )
    bounds.sort(key=lambda bound: (-bound[0], bound[1]))
    return [(load, size) for load, _, size in bounds]


def used_chips(members: Mapping[str, Member]) -> int:
    """Return the chips of all members."""
    return sum(member.chips for member in members.values())


def with_sizes(scenario: Scenario, name: str, copies: PoolCopies) -> Scenario:
    """Return the scenario with one system only, whose pools have these sizes.

    The pools hold their systems themselves, not the names of other systems.
    """
    system = scenario.systems[name]
    assert isinstance(system, Pools)
    prefill, decode = (scenario.shown(f"{name}.{pool}") for pool in POOLS)
    sized = {"prefill": prefill, "decode": decode, "copies": copies}
    return scenario.model_copy(update={"systems": {name: system.model_copy(update=sized)}})


def best_sizes(
    scenario: Scenario, name: str, search_capacity: CapacitySearch
) -> tuple[PoolCopies, PlanSearch]:
    """Return the sizes of both pools with the highest goodput, and how they were found.

    Raises: PlanError if none of them meets the SLO.
    """
    ordered = sizes_by_bound(scenario, name)
    near = [pair for pair in ordered if pair[0] >= NEAR_SIZES * ordered[0][0]][:MOST_SIZES]
    where = scenario.where(name, "copies", "search")
    best, copies = best_near(
        near,
        lambda copies, guess: search_capacity(with_sizes(scenario, name, copies), guess),
        f"{where}: got capacity, and the slo is met by none of {len(near)} sizes",
    )
    return copies, PlanSearch(len(ordered), len(near), highest_goodput(best))


def highest_goodput(system: SystemCapacity) -> float:
    """Return the highest goodput of a system; 0 if no load meets the SLO."""
    return system.best.goodput if system.best else 0.0


def best_near(
    near: Sequence[tuple[float, Candidate]],
    search_capacity: Callable[[Candidate, Guess], SystemCapacity],
    refusal: str,
) -> tuple[SystemCapacity, Candidate]:
    """Return the highest capacity of some candidates, and the candidate that has it.

    near: candidates with the bounds from which their searches start, the highest first.
    refusal: the beginning of the error if no load of any candidate is within the SLO.
    Raises: PlanError in that case.
    """
    best: tuple[SystemCapacity, Candidate] | None = None
    least, reason = 0.0, ""
    for bound, candidate in near:
        result = search_capacity(candidate, Guess(least or SEARCH_FROM * bound, least))
        if result.best:
            best, least = (result, candidate), load_to_beat(result.best)
        reason = reason or result.reason
    if best is None:
        raise PlanError(f"{refusal}: {reason}; expected an slo that can be met; try a looser slo")
    return best
