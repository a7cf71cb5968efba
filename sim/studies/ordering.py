"""The order of a scenario's systems by joules, dollars or time of a token, with bands.

    order_of(sim.read("claims/lpx"), "joules").depends_on

All users of a closed loop decode at the mean context. This is a closed form, because simulations
of both ends of each uncertain number would take too long. A number of one file moves together in
all systems that use the file.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from sim.cost.energy import Tally, summed
from sim.cost.plan import PlanError
from sim.cost.system_costs import pass_times
from sim.cost.work import Work
from sim.economics.token_price import ServedTokens
from sim.planning.deployment import Deployment
from sim.results.ordering import Hinge, OrderedSystem, Ordering, OrderKey
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.layout import deploy_members
from sim.scenario.pools import Pools
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.studies.accounts import costs_of_work
from sim.studies.bound import work_of_a_second
from sim.studies.paces import mean_step
from sim.studies.uncertain_numbers import UncertainNumber, moved_system, uncertain_numbers
from sim.units import Seconds

PerToken = dict[str, float]  # joules, dollars or seconds of a token, by system


@dataclass(frozen=True)
class SharedNumber:
    """An uncertain number, and its keys in each system that has it."""

    number: UncertainNumber
    keys: dict[str, list[str]]

    @property
    def text(self) -> str:
        """Its file and its key there, such as 'rubin-r200: power.idle'."""
        return ": ".join(self.number.of)


def order_of(scenario: Scenario, by: OrderKey) -> Ordering:
    """Return the order of the systems of a closed loop, its bands, and what it depends on.

    Ratios are to the first system of the scenario whose cost is known. A band is the root of the
    sum of squares of the numbers' effects on the logarithm of a ratio, up and down separately.
    A system that does not fit with a number at an end keeps its cost without the change.
    Left out: prompts, pauses, waiting, and the losses of engines that have no range.
    """
    base = _costs(scenario, by, scenario.systems)
    names = sorted(base, key=lambda name: base[name])
    reference = next((name for name in scenario.systems if name in base), "")
    moves = [
        (shared, end, base | _costs(changed, by, touched))
        for shared in shared_numbers(scenario)
        for end in shared.number.ends
        for changed, touched in [_moved(scenario, shared, end)]
    ]
    neighbours = list(pairwise(names))
    ahead = {pair: _band(base, moves, *pair) for pair in neighbours}
    return Ordering(
        by=by,
        systems={
            name: OrderedSystem(
                ratio=base[reference] / base[name], band=_band(base, moves, name, reference)
            )
            for name in names
        },
        swappable=tuple(pair for pair in neighbours if ahead[pair][0] < 1),
        depends_on=tuple(
            _hinge(shared, end, pair)
            for pair in neighbours
            for shared, end, costs in moves
            if costs[pair[0]] > costs[pair[1]]
        ),
        left_out=tuple(name for name in scenario.systems if name not in base),
    )


def _hinge(shared: SharedNumber, end: str, pair: tuple[str, str]) -> Hinge:
    number = shared.number
    basis = number.source.partition(":")[0]
    return Hinge(
        key=shared.text,
        value=number.value,
        ends=number.ends,
        at=end,
        pair=pair,
        basis=basis if basis in ("assumed", "fitted") else "",
    )


def _band(
    base: PerToken, moves: list[tuple[SharedNumber, str, PerToken]], name: str, other: str
) -> tuple[float, float]:
    """Return the band of a ratio, lowest and highest: tokens of one system over another's."""
    now = math.log(base[other] / base[name])
    down, up = dict[str, float](), dict[str, float]()
    for shared, _, costs in moves:
        move = math.log(costs[other] / costs[name]) - now
        key = f"{shared.text} {shared.number.ends}"
        down[key] = min(down.get(key, 0.0), move)
        up[key] = max(up.get(key, 0.0), move)
    less, more = (math.hypot(*side.values()) for side in (down, up))
    return math.exp(now - less), math.exp(now + more)


def shared_numbers(scenario: Scenario) -> list[SharedNumber]:
    """Return the uncertain numbers of all systems; a number of a shared file is there once."""
    shared: dict[tuple[object, ...], SharedNumber] = {}
    for name, system in _with_chips(scenario):
        for number in uncertain_numbers(system):
            same = shared.setdefault(
                (number.of, number.value, number.ends), SharedNumber(number, {})
            )
            same.keys.setdefault(name, []).append(number.key)
    return list(shared.values())


def _with_chips(scenario: Scenario) -> Iterator[tuple[str, System | AttentionFfn]]:
    """Yield the systems with chips by name. A pool in place has a name such as 'pd.prefill'."""
    for name, system in scenario.systems.items():
        if isinstance(system, Pools):
            for pool in system.in_place:
                yield f"{name}.{pool}", scenario.shown(f"{name}.{pool}")
        elif isinstance(system, System | AttentionFfn):
            yield name, scenario.shown(name)


def _moved(scenario: Scenario, shared: SharedNumber, end: str) -> tuple[Scenario, list[str]]:
    """Return the scenario with a number at an end of its range, and the systems that change."""
    systems = dict(scenario.systems)
    for name, keys in shared.keys.items():
        system = scenario.shown(name)
        for key in keys:
            system = moved_system(system, key, end)
        if name in systems:
            systems[name] = system
            continue
        owner, pool = name.rsplit(".", 1)
        systems[owner] = systems[owner].model_copy(update={pool: system})
    touched = [
        name
        for name in systems
        if {member for part in scenario.members(name) for member in _own_names(scenario, part)}
        & shared.keys.keys()
    ]
    return scenario.model_copy(update={"systems": systems}), touched


def _own_names(scenario: Scenario, member: str) -> tuple[str, ...]:
    """Return the names that `_with_chips` gives a member: its own, and its pool's named system."""
    if member in scenario.systems:
        return (member,)
    owner, pool = member.rsplit(".", 1)
    pools = scenario.systems[owner]
    assert isinstance(pools, Pools)
    return (member, pools.named.get(pool, member))


def _costs(scenario: Scenario, by: OrderKey, names: Iterable[str]) -> PerToken:
    """Return the cost of a token on each system that fits and whose cost is known."""
    costs = {}
    for name in names:
        try:
            cost = token_costs_of(scenario, name)[by]
        except PlanError:
            continue
        if cost:
            costs[name] = cost
    return costs


def token_costs_of(scenario: Scenario, name: str) -> dict[OrderKey, float | None]:
    """Return joules, dollars and seconds of a token while all users decode.

    Users are spread evenly over the replicas that decode. All other replicas idle.
    Raises: PlanError if a model does not fit.
    """
    members = deploy_members(scenario, name)
    decoding = {key: member for key, member in members.items() if member.pool != "prefill"}
    users = getattr(scenario.workload, "users", 0)
    fewest, more = divmod(users, sum(member.replicas for member in decoding.values()))
    tallies, rate = {key: Tally() for key in members}, 0.0
    for key, member in decoding.items():
        counts = [fewest + (n < more) for n in range(member.replicas)]
        more = max(0, more - member.replicas)
        busy = [count for count in counts if count]
        works = {count: _decoding(scenario, member.deployment, count) for count in set(busy)}
        for count in busy:
            tpot, tally = works[count]
            rate += count / tpot
            tallies[key] = summed([tallies[key], tally])
    served = ServedTokens(rate, round(rate / scenario.workload.mean_output), 1.0)
    costs = costs_of_work(scenario, members, tallies, 1.0, served, 1.0)
    return {
        "joules": costs.energy.joules_per_token if costs.energy else None,
        "usd": costs.economics.usd_per_mtok if costs.economics else None,
        "tpot": users / rate,
    }


def _decoding(scenario: Scenario, deployment: Deployment, count: int) -> tuple[Seconds, Tally]:
    """Return the TPOT of a replica on which `count` sequences decode, and its work in a second.

    Micro-batches take turns on the slowest stage. Their sizes differ by one sequence at most.
    Left out: sequences that wait because they do not fit.
    """
    prompt, output = scenario.workload.mean_prompt, scenario.workload.mean_output
    mean, batches = deployment.layout.mean_tokens, deployment.limits.micro_batches
    size, larger = divmod(count, batches)

    def step(sequences: int) -> Work:
        return mean_step(deployment, sequences, prompt + output / 2, 0, prompt)

    work = step(size + (larger > 0))
    time, unloaded = pass_times(deployment.costs, work)
    turns = (larger or batches) * time
    if size and larger:
        turns += (batches - larger) * pass_times(deployment.costs, step(size))[0]
    tpot = max(turns, unloaded) / mean
    return tpot, work_of_a_second(deployment, work, count / (tpot * mean), 0.0, (prompt, 0.0))
