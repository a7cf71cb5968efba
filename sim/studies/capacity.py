"""The capacity of a system: the highest load at which enough requests meet the SLO.

capacity(sim.read("llama2-70b-lpu-vs-h100")).systems["lpu"].best.goodput  # request/s
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sim.inputs.errors import UserError
from sim.inputs.key_paths import JsonObject, scalar_values
from sim.results.capacity_summary import (
    BestPlanSummary,
    CapacityOfSystem,
    CapacitySummary,
    TraceScale,
)
from sim.results.encoding import json_object
from sim.results.labels import format_number, percent_text
from sim.results.summary import TokenCosts
from sim.results.system_identity import max_goodput
from sim.results.verdict import KEEPS_UP
from sim.scenario.layout import check
from sim.scenario.outages import outage_times, outages_by_path
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.sources import ScenarioSource, as_scenario, require_whole
from sim.studies.bound import load_bound
from sim.studies.identity import system_identity
from sim.studies.load_trial import LoadTrial
from sim.studies.pool_bound import pools_point
from sim.studies.trials import TrialSeries, first_requests, measured_rate
from sim.workload.slo import SLO

if TYPE_CHECKING:
    import polars

# The bisection ends at this ratio of the lowest load that is not met to the highest that is.
BRACKET_RATIO = 1.02
DOUBLINGS = 20  # and halvings of the rate, before the search ends
# First step from a guess, up or down. The next steps are its square, then 2. It is small, because a
# guess is rarely farther off.
GUESS_STEP = 1.15
SEARCH_FROM = 0.9  # of a bound: the first load that is tried
MOST_FILLS = 4  # users beyond this many times what the system can hold only wait


@dataclass(frozen=True, slots=True)
class Guess:
    """A load to begin a search with, and the least load of interest: lower ones are not tried."""

    start: float
    least: float = 0.0


@dataclass(frozen=True, eq=False)
class SystemCapacity:
    """The capacity of one system: the highest load that is met, and the lowest that is not.

    best: None if no load is met; `reason` then says why.
    above: None if no load is too high; `reason` then says why.
    time_scale: of a trace, for the best load; None for other workloads.
    """

    series: TrialSeries
    best: LoadTrial | None
    above: LoadTrial | None
    reason: str = ""
    time_scale: float | None = None

    @property
    def members(self) -> dict[str, Member]:
        """The members of the system, laid out."""
        return self.series.members

    @property
    def trials(self) -> int:
        """The number of trials."""
        return self.series.trials

    @property
    def requests(self) -> int:
        """The requests of a trial; in a closed loop, of the trial with the most."""
        return self.series.most_requests

    @cached_property
    def costs(self) -> TokenCosts:
        """Joules and dollars of the best trial, and its busy share. The trial is served again."""
        return self.series.costs(self.best) if self.best else TokenCosts()


@dataclass(frozen=True, eq=False)
class CapacityResult:
    """The capacity of every system of a scenario, for a share of requests that meet the SLO."""

    scenario: Scenario
    attainment: float
    systems: dict[str, SystemCapacity]

    def __repr__(self) -> str:
        """Return the scenario, and the highest load of each system."""
        systems = ", ".join(
            f"{name} {format_number(s.best.goodput) if s.best else 'none'}"
            for name, s in self.systems.items()
        )
        unit = "users" if self.scenario.workload.load_kind == "users" else "request/s"
        return f"<CapacityResult of {self.scenario.id} [{unit}]: {systems}>"

    @property
    def table(self) -> "polars.DataFrame":
        """A row for each system: highest load, attainment, speed, J and $ there."""
        import polars

        keys = {"max_goodput_rate": float, "max_goodput_users": int, "attainment": float}
        keys |= {"output_throughput": float, "chips": int, "binds": str, "reason": str}
        keys |= {"busy_share": float, "energy.joules_per_token": float}
        keys |= {"economics.usd_per_mtok": float}
        rows = []
        for name, system in self.summary().systems.items():
            values = scalar_values(json_object(system))
            row = {"scenario": self.scenario.id, "seed": self.scenario.seed, "system": name}
            rows.append(row | {key: values.get(key) for key in keys})
        types = {"scenario": str, "seed": int, "system": str} | keys
        return polars.DataFrame(rows, schema=types, strict=False)

    def as_json(self) -> JsonObject:
        """Return the data of `capacity --json`."""
        return json_object(self.summary())

    def summary(self, best: Mapping[str, BestPlanSummary] | None = None) -> CapacitySummary:
        """Return the typed capacities. best: the best plans by system; None without a search."""
        slo = self.scenario.slo
        kinds = {
            name: _limits_in_ms(own or slo) for name, own in self.scenario.workload.slos.items()
        }
        return CapacitySummary(
            scenario=self.scenario.id,
            seed=self.scenario.seed,
            slo=_limits_in_ms(slo),
            kinds=kinds or None,
            attainment=self.attainment,
            systems={
                name: replace(self._of_system(name), best=(best or {}).get(name))
                for name in self.systems
            },
        )

    def _of_system(self, name: str) -> CapacityOfSystem:
        """Return the typed capacity of one system."""
        workload, system = self.scenario.workload, self.systems[name]
        best, above = system.best, system.above
        return CapacityOfSystem(
            identity=system_identity(self.scenario, name, system.members),
            most=max_goodput(
                best.goodput if best else 0.0,
                workload.load_kind == "users",
                sum(member.chips for member in system.members.values()),
            ),
            trace=TraceScale(system.time_scale) if workload.is_recorded else None,
            attainment=best.attainment if best else None,
            kinds=best.summary.kinds if best else None,
            sessions=best.goodput / workload.turns_of_load if best and workload.chained else None,
            verdict=best.verdict if best else None,
            output_throughput=best.output_throughput if best else None,
            binds=above.binds(self.attainment) if above else None,
            above=above.summary if above else None,
            trials=system.trials,
            requests=system.requests,
            reason=system.reason,
            costs=system.costs,
        )


def _limits_in_ms(slo: SLO | None) -> dict[str, float]:
    """Return the limits of an SLO by name [ms]."""
    return {f"{name}_ms": 1000 * limit for name, limit in slo.limits.items()} if slo else {}


def capacity(
    scenario: ScenarioSource,
    attainment: float | None = None,
    requests: int | None = None,
    progress: Callable[[str, LoadTrial], None] = lambda system, trial: None,
    guess: Guess | None = None,
    **changes: object,
) -> CapacityResult:
    """Return the highest load that each system meets, to 2 %.

    A load is met if a share `attainment` of the requests is within all limits of the SLO.
    DistServe (OSDI 2024) calls this goodput.  A rate is not met if the verdict is OVERLOADED.  It
    is not met either if less than 97 % of the offered output tokens come out.  A refused request
    meets no limit.
    The reported rate is never more than what is served.

    The load is raised (or lowered) in steps until the capacity is bracketed, and then bisected.
    Every trial has the same requests.  Their arrivals are stretched so that the counted ones come
    at the rate.  Attainment then falls nearly monotonically with the rate.  In a closed loop,
    users are added.  The first tenth of a trial's requests is not counted, because the system
    fills up.  The rate of sessions is that of their requests.  A trial of sessions starts at least
    ten times as many as run at once.  With kinds of requests, each kind must meet its SLO.

    scenario: a path, a name of the catalogue, a mapping, or a scenario. changes: values by key, as
    in `sim.run`.
    attainment: None means that of the SLO's `percentile`, or else 0.9.
    requests: number of requests of a trial; None means the largest of these numbers:

    * the scenario's
    * 2,000
    * ten times what the system can hold concurrently
    * what arrives in 50 times the limit of TTFT (or of E2EL, if that is less)

    A trace has all its requests in a trial.
    guess: where to begin.  None means 0.9 of the bound (`studies.bound`).
    Joules and dollars are those of the counted part of the best trial: see
    `sim.studies.accounts.token_costs`.

    Left out: `measure` of the scenario.
    Raises: UserError if there is no SLO, or no load to vary; PlanError if a system does not fit,
    or no plan of a `search: capacity` meets the SLO.
    """
    from sim.studies.design import search_plans  # which imports this module

    scenario = as_scenario(scenario, changes)
    share = (scenario.slo or SLO()).share if attainment is None else attainment
    if requests is not None:
        require_whole("requests", requests, 1)
    _check_capacity(scenario, share)
    scenario = search_plans(scenario, attainment, requests, progress)
    slo = scenario.slo or SLO()  # each kind of requests may have its own
    systems = {}
    for name, members in check(scenario).items():
        series = TrialSeries(scenario, slo, name, members, share, requests, progress)
        start = guess or _guess_from_bound(scenario, members)
        systems[name] = _system_capacity(series, start)
    return CapacityResult(scenario, share, systems)


def load_to_beat(trial: LoadTrial) -> float:
    """Return the load that another system must meet to be better than that of a trial."""
    more = BRACKET_RATIO * trial.load
    return float(max(math.ceil(more), round(trial.load) + 1)) if trial.closed else more


def _check_capacity(scenario: Scenario, attainment: float) -> None:
    """Check that a scenario has a capacity.  Raises: UserError if it has none."""
    workload, slo = scenario.workload, scenario.tightest_slo
    if slo is None or not slo.limits:
        raise UserError(
            f"{scenario.where_key('slo')}: got none; expected a limit to meet;"
            " try slo: {ttft: 2 s, tpot: 100 ms}"
        )
    if not 0 < attainment <= 1:
        raise UserError(
            f"--attainment: got {attainment:g}; expected a share above 0 and at most 1; try 0.9"
        )
    if workload.load_kind is None:
        raise UserError(
            f"{scenario.where_key('workload')}: got {workload.noun()}; {workload.no_load};"
            " expected a rate of requests or users to vary; try poisson, gamma, trace, sessions or "
            "closed"
        )
    for name in scenario.systems:
        if outage_times(scenario, name):
            drop = " ".join(
                f"--set systems.{'.'.join(path)}.outages=[]"
                for path in outages_by_path(scenario, name)
            )
            raise UserError(
                f"{scenario.where(name)}: got outages;"
                f" expected none, because a capacity is of a working system; try {drop}"
            )


def _guess_from_bound(scenario: Scenario, members: Mapping[str, Member]) -> Guess | None:
    """Return the load to begin with; None if the bound is 0, because no step meets the SLO."""
    if any(member.pool for member in members.values()):
        point = pools_point(scenario, members)
        bound = point.load if point else 0.0
    else:
        bound = load_bound(scenario, members)
    return Guess(SEARCH_FROM * bound) if bound else None


def _system_capacity(series: TrialSeries, guess: Guess | None) -> SystemCapacity:
    """Return the capacity of one system."""
    workload = series.scenario.workload
    closed = workload.load_kind == "users"
    start, least, most = _search_span(series, guess)
    # With a least load, another plan is known to meet it. One trial shows that this plan meets
    # less, so single requests need no trial.
    known = guess is not None and guess.least > 0
    best = above = None
    reason = "" if known else series.unloaded_miss(series.requests_at(start))
    if not reason:
        step = GUESS_STEP if guess else 2.0
        best, above = _bracket(series, start, (least, most), step, whole=closed)
        if best and above:
            best, above = _bisect(series, best, above, whole=closed)
        elif best:
            reason = f"{best.load:,.0f} {'users' if closed else 'request/s'} are met too, "
            reason += "and no more were tried"
            if closed:
                reason += "; they would only wait, and no limit is missed for that"
        elif known:
            reason = f"it does not take {least:.4g}"
        elif above:
            reason = _why_no_rate(above, series.share)
    if above and above.undecided(series.share):
        reason = _why_too_short(above, best, series.most_requests)
    scale = None
    if best and workload.is_recorded:
        batch = first_requests(workload.draw(series.scenario.seed), series.fixed_requests)
        scale = getattr(workload, "time_scale", 1.0) * measured_rate(batch) / best.goodput
    return SystemCapacity(series, best, above, reason, scale)


def _why_no_rate(lowest: LoadTrial, share: float) -> str:
    """Return why no rate is met, though enough single requests meet the SLO."""
    if lowest.attained(share):
        return (
            f"enough requests meet the SLO at {lowest.load:.4g} request/s, but only "
            f"{percent_text(lowest.kept, 1)} of the offered output tokens come out;"
            f" expected {percent_text(KEEPS_UP)}:"
            f" {percent_text(lowest.missed['refused'], 1)} of the requests are refused or cancelled"
        )
    return "enough single requests meet the SLO, but no tried rate does: they come in bursts"


def _why_too_short(above: LoadTrial, best: LoadTrial | None, requests: int) -> str:
    """Return why a trace cannot tell the capacity, and what it can tell."""
    known = f"{best.goodput:.4g} request/s or more" if best else "no rate"
    return (
        f"got a trace of {requests:,} requests, which can tell {known}; at {above.load:.4g}"
        f" request/s only {percent_text(above.kept, 1)} of the output tokens come out before the"
        f" last request comes; expected {percent_text(KEEPS_UP)}; try a longer trace, or a workload"
        " of the same lengths"
    )


def _search_span(series: TrialSeries, guess: Guess | None) -> tuple[float, float, float]:
    """Return the first load of a search, and the least and the most that it may try."""
    if series.scenario.workload.load_kind == "users":
        most = max(1024.0, MOST_FILLS * series.max_concurrent)
        start = float(min(max(1, round(guess.start)), most)) if guess else 1.0
        least = 1.0
    else:
        start = guess.start if guess else series.single_request_rate()
        least, most = start / 2**DOUBLINGS, start * 2**DOUBLINGS
    return start, max(least, guess.least if guess else 0.0), most


def _bracket(
    series: TrialSeries, start: float, span: tuple[float, float], step: float, whole: bool
) -> tuple[LoadTrial | None, LoadTrial | None]:
    """Return a trial whose load is met, and one at a higher load that is not.

    The load is multiplied (or divided) by `step`, then by its square, and then by 2.
    None if no load of the span, from its least to its most, is met, or is not. A trace too short to
    tell ends the search at the load of single requests.
    whole: whether loads are whole numbers.
    """
    best = above = None
    load, (least, most) = start, span
    while (best is None or above is None) and least <= load <= most:
        trial = series.run_trial(load)
        if trial.met(series.share):
            higher = max(load + 1, float(round(load * step))) if whole else load * step
            best, load = trial, min(higher, most) if load < most else higher
        else:
            lower = min(load - 1, float(round(load / step))) if whole else load / step
            above, load = trial, max(lower, least) if load > least else lower
            if trial.undecided(series.share) and trial.load <= series.single_request_rate():
                break  # requests no longer overlap, so a lower load tells nothing more
        step = min(2.0, step**2)
    return best, above


def _bisect(
    series: TrialSeries, best: LoadTrial, above: LoadTrial, whole: bool
) -> tuple[LoadTrial, LoadTrial]:
    """Return a closer bracket, to 2 % in equal ratios; for whole numbers, two neighbours."""
    while above.load > BRACKET_RATIO * best.load and not (whole and above.load - best.load <= 1):
        load = math.sqrt(best.load * above.load)
        if whole:
            load = float(min(max(round(load), best.load + 1), above.load - 1))
        trial = series.run_trial(load)
        best, above = (trial, above) if trial.met(series.share) else (best, trial)
    return best, above
