"""Energy, costs, busy share and availability of a run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.cost.energy import EnergyPart, Tally, energy, summed
from sim.economics.owner_costs import (
    Capex,
    CostEstimate,
    OwnerCosts,
    host_power,
    joules_per_token,
    lifetime_costs,
    system_capex,
)
from sim.economics.token_price import ServedTokens, token_price
from sim.planning.deployment import Deployment
from sim.planning.single_request import SingleRequest
from sim.reliability.availability import simulate_availability
from sim.reliability.link_errors import expected_retries
from sim.results.labels import percent_text
from sim.results.metrics import output_between
from sim.results.rows import Rows
from sim.results.statistics import AvailabilityMetrics, ReplayMetrics
from sim.results.summary import CapacityEstimate, EnergyUse, TokenCosts
from sim.scenario.outages import failing_units
from sim.scenario.pools import link_energy, owned_chips
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.studies.bound import cached_prefix, load_point
from sim.studies.late_requests import LateRequests, first_tokens
from sim.studies.paces import Paces, first_token, loop_of
from sim.studies.pool_bound import pools_point
from sim.studies.typical_request import typical_request
from sim.units import DAY, Seconds, Watts
from sim.workload.requests import stream_seed


def availability_metrics(
    scenario: Scenario, name: str, members: Mapping[str, Member], rows: Rows
) -> AvailabilityMetrics | None:
    """Return the availability of a system whose parts fail; None if no parts fail.

    The availability of a fleet is the mean over its members, weighted by their output tokens. It is
    None if the fleet gave no token. That of pools is the product, because a request needs both.
    """
    parts: dict[str, AvailabilityMetrics] = {}
    first = 0  # number of the member's first replica, which tells the members' streams apart
    for member, of in members.items():
        seed = stream_seed(scenario.seed, "faults", first)
        first += of.replicas
        units = failing_units(scenario, member, of.deployment)
        samples = [
            simulate_availability(
                unit.faults, unit.chips, unit.load or 0.0, [*seed, *[n] * (n > 0)]
            )
            for n, unit in enumerate(units)
        ]
        if samples:
            parts[member] = of_all([sample.metrics for sample in samples])
    if name in parts:
        return parts[name]
    if parts and rows.transfers:
        return of_all([*parts.values()])
    done = rows.finished
    tokens = dict.fromkeys(members, 0)
    for replica, output in zip(
        rows.replica[done].tolist(), rows.requests.output[done].tolist(), strict=True
    ):
        tokens[rows.systems[replica]] += output
    total = sum(tokens.values())
    if not parts or not total:
        return None
    shares = {member: own / total for member, own in tokens.items()}
    widths = [shares[member] * part.ci95_availability for member, part in parts.items()]
    lost = sum(shares[member] * (1 - part.availability) for member, part in parts.items())
    return AvailabilityMetrics(availability=1 - lost, ci95_availability=math.hypot(*widths))


def of_all(parts: Sequence[AvailabilityMetrics]) -> AvailabilityMetrics:
    """Return the availability of parts all of which a request needs. A single part is itself."""
    if len(parts) == 1:
        return parts[0]
    both, width = 1.0, 0.0
    for part in parts:
        width = math.hypot(width * part.availability, both * part.ci95_availability)
        both *= part.availability
    return AvailabilityMetrics(availability=both, ci95_availability=width)


def token_costs(
    scenario: Scenario, members: Mapping[str, Member], rows: Rows, availability: float
) -> TokenCosts:
    """Return the energy and cost of a system's output tokens in the time that counts.

    This time is the whole run, or the span of `measure`. Unknown numbers are None. All are None
    if the system gave no token.
    availability: share of the time that the system works, 1 without faults.
    Raises: ScenarioError if no request arrives in the span of `measure`.
    """
    if scenario.measure:
        start, end = scenario.measure.span(rows)
        finished, _, tokens, _ = output_between(rows, start, end, None)
        elapsed, span = end - start, rows.span
        tallies, busy, worked = (
            (span.tallies, span.busy, span.end - span.start) if span else ([], [], 0.0)
        )
    else:
        done = rows.finished
        finished, elapsed = int(done.sum()), rows.elapsed
        tokens = float(rows.requests.output[done].sum())
        tallies, busy, worked = rows.tallies, rows.busy, elapsed
    if not tokens or elapsed <= 0 or worked <= 0:
        return TokenCosts()
    replicas = list(zip(rows.systems, tallies, strict=True))
    own = {name: summed(tally for system, tally in replicas if system == name) for name in members}
    served = ServedTokens(tokens, finished, elapsed)
    costs = costs_of_work(scenario, members, own, worked, served, availability)
    return replace(costs, busy_share=busy_share(members, rows.systems, busy, worked))


def costs_of_work(
    scenario: Scenario,
    members: Mapping[str, Member],
    tallies: Mapping[str, Tally],
    worked: Seconds,
    served: ServedTokens,
    availability: float,
) -> TokenCosts:
    """Return the energy and cost of served tokens. Left out: the busy share.

    tallies: the work of all replicas in `worked`, by member.
    """
    money, parts = scenario.money, []
    for name, of in members.items():
        parts += energy_parts(scenario, name, of.deployment, tallies[name], of.copies)
    owned = total_capex(scenario, {name: of.copies for name, of in members.items()})
    price = None
    if owned:
        drawn = _metered_power(scenario, parts, worked)
        price = token_price(money, owned, drawn, served, availability)
    return TokenCosts(
        energy=_energy_use(
            scenario, [part for _, part in parts], worked, served.tokens / served.elapsed
        ),
        economics=price,
    )


def energy_parts(
    scenario: Scenario, name: str, deployment: Deployment, tally: Tally, copies: float = 1
) -> list[tuple[OwnerCosts, EnergyPart]]:
    """Return the parts of a plain system that take energy, each with its owner's costs.

    An FFN pool is a part of its own, and so is a drafter on other chips.
    tally: the work of all copies.
    """
    keys = owned_chips(scenario.systems, name)
    owners = [scenario.money.systems.get(key, OwnerCosts()) for key in keys]
    (rows, own), *others = deployment.costs.spread(tally)
    link = link_energy(scenario.systems, name)
    chips = copies * (deployment.own_chips + scenario.spare_chips(name))
    around = host_power(deployment.layout.chip, owners[0])
    parts = [(owners[0], EnergyPart(rows, chips, own, around, link, tally))]
    pools = zip(deployment.others, others, owners[1:], strict=True)
    for place, (pool, (other, work), owner) in enumerate(pools, 1):
        spared = copies * (pool.chips + scenario.spare_chips(name, place))
        server = host_power(pool.layout.chip, owner)
        parts.append((owner, EnergyPart(other, spared, work, server)))
    return parts


def capacity_estimate(
    scenario: Scenario,
    members: Mapping[str, Member],
    unloaded: Mapping[str, SingleRequest],
    availability: float,
) -> CapacityEstimate | None:
    """Return an estimate of the highest load within the SLO, and of a token's costs there.

    The load is that of `sim.studies.bound`, which finds it without a simulation.
    unloaded: a single request on each member.  availability: as in `token_costs`.
    With `prefix_caching` a shared prefix is in the cache.
    None without an SLO, without a load to vary, of sessions, with a limit of requests in flight, or
    if a mean request misses a limit unloaded. None also in a closed loop in which any number of
    users misses no limit, because they only wait.
    """
    workload, slo = scenario.workload, scenario.tightest_slo
    if slo is None or workload.load_kind is None:
        return None
    if workload.chained or workload.most_in_flight is not None:
        return None
    request = typical_request(scenario)
    load, rate, tallies = 0.0, 0.0, {}
    if any(of.pool for of in members.values()):
        return _estimate_of_pools(scenario, members, availability)
    for name, of in members.items():
        alone, cached = unloaded[name], cached_prefix(scenario, name, of)
        ttft = first_token(of.deployment, request.prompt, cached) if cached else alone.ttft
        times = {"ttft": ttft, "e2el": ttft + max(0.0, request.late_output - 1) * alone.tpot}
        point = load_point(of.deployment, request, slo, loop_of(workload), cached)
        if (
            point is None
            or point.endless
            or any(time > (getattr(slo, key) or time) for key, time in times.items())
        ):
            return None
        load, rate = load + of.copies * point.load, rate + of.copies * point.rate
        tallies[name] = point.tally.scaled(of.copies)
    return _estimate(scenario, members, (load, rate), tallies, availability)


def why_no_load(scenario: Scenario, members: Mapping[str, Member]) -> str:
    """Return why no load meets the SLO: too few requests do even alone, on any member; or ''.

    The prefill pool of two pools decides. Left out: equal requests, and requests of sessions.
    """
    workload, slo = scenario.workload, scenario.tightest_slo
    if slo is None or workload.load_kind is None or workload.chained:
        return ""
    request, pools = typical_request(scenario), any(member.pool for member in members.values())
    if request.sample is None:
        return ""
    sample = first_tokens(request.sample) if pools else request.sample
    best = 0.0, 1.0
    for name, member in list(members.items())[: 1 if pools else None]:
        cached = cached_prefix(scenario, name, member)
        paces = Paces(member.deployment, request, cached, slo, None)
        shares = LateRequests(paces, sample).at(0.0).shares
        best = max(best, shares, key=lambda pair: pair[0] / pair[1])
    share, expected = best
    if share >= expected:
        return ""
    return (
        f"even alone, about {percent_text(share)} of the requests meet the SLO;"
        f" expected {percent_text(expected)}"
    )


def _estimate_of_pools(
    scenario: Scenario, members: Mapping[str, Member], availability: float
) -> CapacityEstimate | None:
    """Return the estimate of `capacity_estimate` for pools; None if no load meets the SLO."""
    point = pools_point(scenario, members)
    if point is None or point.endless:
        return None
    return _estimate(scenario, members, (point.load, point.rate), point.tallies, availability)


def _estimate(
    scenario: Scenario,
    members: Mapping[str, Member],
    load: tuple[float, float],
    tallies: Mapping[str, Tally],
    availability: float,
) -> CapacityEstimate:
    """Return the estimate at a load, given also as request/s. tallies: the work of a second."""
    served = ServedTokens(load[1] * scenario.workload.mean_output, round(load[1]), 1.0)
    return CapacityEstimate(
        load=load[0],
        output_throughput=served.tokens,
        costs=costs_of_work(scenario, members, tallies, 1.0, served, availability),
    )


def _energy_use(
    scenario: Scenario, parts: Iterable[EnergyPart], worked: Seconds, throughput: float
) -> EnergyUse | None:
    """Return the energy of a system, None if it is not known. throughput: tokens/s."""
    pue = scenario.money.pue
    joules = energy(parts, worked, pue)
    if not joules:
        return None
    by_cause = {
        cause: joules_per_token(amount / worked, throughput) for cause, amount in joules.items()
    }
    return EnergyUse(
        joules_per_token=sum(by_cause.values()),
        joules_per_token_by_cause=by_cause,
        mean_power_w=sum(joules.values()) / worked,
        pue=pue,
    )


def _metered_power(
    scenario: Scenario, parts: Iterable[tuple[OwnerCosts, EnergyPart]], worked: Seconds
) -> Watts | None:
    """Return the mean power of the parts that are not rented [W].

    The result is None if the owner does not pay by the kWh, or the power is not known.
    """
    money = scenario.money
    if money.electricity is None:
        return None
    bought = [part for own, part in parts if own.rent is None]
    joules = energy(bought, worked, 1.0)
    return sum(joules.values()) / worked if joules else None


def busy_share(
    members: Mapping[str, Member],
    systems: list[str],
    busy: list[NDArray[np.float64]],
    elapsed: Seconds,
) -> float | None:
    """Return the share of the time that a chip works, the mean over chips of all replicas.

    A chip works while its stage works. None with an FFN pool, or with a drafter on other chips,
    because both kinds of chips wait for each other.
    systems: by replica. busy: by replica, float[stage] [s]. elapsed: s.
    """
    if any(member.deployment.others for member in members.values()):
        return None
    chips = [members[name].chips / members[name].replicas for name in systems]
    return sum(n * float(seconds.mean()) for n, seconds in zip(chips, busy, strict=True)) / (
        sum(chips) * elapsed
    )


def replay_metrics(
    scenario: Scenario, members: Mapping[str, Member], rows: Rows
) -> ReplayMetrics | None:
    """Return the steps repeated after link errors; None if links make no errors."""
    expected, steps, errors_occur = 0.0, 0.0, False
    for name, tally in zip(rows.systems, rows.tallies, strict=True):
        if errors := scenario.plain(name).link_errors:
            errors_occur = True
            expected += expected_retries(errors, members[name].deployment.costs, tally)
            steps += sum(tally.batch_steps.values())
    if not errors_occur or not rows.elapsed:
        return None
    return ReplayMetrics(
        replays=sum(rows.replays),
        expected_replays=expected,
        replayed_share=expected / steps if steps else 0.0,  # a member may serve nothing
        replays_per_day=expected / rows.elapsed * DAY,
    )


def _purchase(scenario: Scenario, name: str, copies: int) -> Capex | None:
    """Return the cost to buy copies of a plain system, with spares; None if a price is unknown."""
    parts: list[Capex] = []
    for key, (chip, chips) in owned_chips(scenario.systems, name).items():
        own = scenario.money.systems.get(key, OwnerCosts())
        spares = scenario.spare_chips(name, part=len(parts))
        if (part := system_capex(chip, chips + spares, own)) is None:
            return None
        parts.append(part)
    return Capex(*map(sum, zip(*parts, strict=True))).times(copies)


def total_capex(scenario: Scenario, copies: Mapping[str, int]) -> Capex | None:
    """Return the capital cost of copies of plain systems; None if a price is not known."""
    known = [capex for name, n in copies.items() if (capex := _purchase(scenario, name, n))]
    return Capex(*map(sum, zip(*known, strict=True))) if len(known) == len(copies) else None


def lifetime_estimates(scenario: Scenario) -> dict[str, CostEstimate]:
    """Return the costs over the years of systems with known prices, whatever they serve."""
    capex = {name: total_capex(scenario, scenario.members(name)) for name in scenario.systems}
    return {name: lifetime_costs(scenario.money, owned) for name, owned in capex.items() if owned}
