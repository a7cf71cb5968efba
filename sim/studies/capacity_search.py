"""A search for the capacity of systems whose plans are given: trials at some loads.

`studies.capacity` finds open plans first. The searches for plans and pools in `studies.design`
search each of their candidates with `given_capacity`.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.inputs.errors import ArgumentError, UserError
from sim.results.labels import percent_text
from sim.results.verdict import KEEPS_UP
from sim.scenario.layout import check
from sim.scenario.outages import outage_times, outages_by_path
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.sources import require_whole
from sim.studies.bound import load_bound
from sim.studies.capacity_result import CapacityResult, SystemCapacity
from sim.studies.load_trial import LoadTrial
from sim.studies.pool_bound import pools_point
from sim.studies.processes import results_of
from sim.studies.trials import (
    MIN_REQUESTS,
    TrialProgress,
    TrialSeries,
    first_requests,
    many_lengths,
    measured_rate,
)
from sim.workload.slo import SLO

# The bisection ends at this ratio of the lowest load that is not met to the highest that is.
BRACKET_RATIO = 1.02
DOUBLINGS = 20  # and halvings of the rate, before the search ends
# First step from a guess, up or down. The next steps are its square, then 2. It is small, because a
# guess is rarely farther off.
GUESS_STEP = 1.15
SEARCH_FROM = 0.9  # of a bound: the first load that is tried
WORTH_JOBS = 1000  # requests of a trial; fewer take less time than the start of processes
MOST_FILLS = 4  # users beyond this many times what the system can hold only wait


@dataclass(frozen=True, slots=True)
class Guess:
    """A load to begin a search with, and the least load of interest: lower ones are not tried."""

    start: float
    least: float = 0.0


# A search on a scenario with one system.
CapacitySearch = Callable[[Scenario, Guess | None], SystemCapacity]


def given_capacity(
    scenario: Scenario,
    attainment: float | None,
    requests: int | None,
    progress: TrialProgress,
    guess: Guess | None,
    jobs: int = 1,
) -> CapacityResult:
    """Return the capacities of systems whose plans are given. Arguments: as in `capacity`.

    Raises: UserError if there is no SLO, or no load to vary; PlanError if a system does not fit.
    """
    share, slo = required_share(scenario, attainment, requests), scenario.slo or SLO()
    searches = {
        name: (
            TrialSeries(scenario, slo, name, members, share, requests, progress),
            guess or _guess_from_bound(scenario, members),
        )
        for name, members in check(scenario).items()
    }
    systems = results_of(_costed_capacity if jobs > 1 else _system_capacity, searches, jobs)
    return CapacityResult(scenario, share, systems)


def processes_for(jobs: int | None, requests: int | None) -> int:
    """Return the number of processes of a search; None means one for each core for long trials.

    requests: of a trial; None lets the system decide.
    Raises: UserError if it is not a whole number.
    """
    if jobs is not None:
        require_whole("jobs", jobs, 1)
        return jobs
    return (os.cpu_count() or 1) if (requests or MIN_REQUESTS) >= WORTH_JOBS else 1


def required_share(scenario: Scenario, attainment: float | None, requests: int | None) -> float:
    """Return the share of the requests that must meet the SLO.

    Raises: UserError if the scenario has no capacity, or `requests` is not a whole number.
    """
    share = (scenario.slo or SLO()).share if attainment is None else attainment
    if requests is not None:
        require_whole("requests", requests, 1)
    workload, slo = scenario.workload, scenario.tightest_slo
    if slo is None or not slo.limits:
        raise UserError(
            f"{scenario.where_key('slo')}: got none; expected a limit to meet;"
            " try slo: {ttft: 2 s, tpot: 100 ms}"
        )
    if not 0 < share <= 1:
        raise ArgumentError(
            "attainment",
            f"got {share:g}; expected a share above 0 and at most 1; try 0.9",
        )
    if workload.load_kind is None:
        raise UserError(
            f"{scenario.where_key('workload')}: got {workload.noun()}; {workload.no_load};"
            " expected a rate of requests or users to vary; try poisson, gamma, trace, sessions or "
            "closed"
        )
    for name in scenario.systems:
        if outage_times(scenario, name):
            drop = " and ".join(
                f"systems.{'.'.join(path)}.outages=[]" for path in outages_by_path(scenario, name)
            )
            raise UserError(
                f"{scenario.where(name)}: got outages;"
                f" expected none, because a capacity is of a working system; try {drop}"
            )
    return share


def load_to_beat(trial: LoadTrial) -> float:
    """Return the load that another system must meet to be better than that of a trial."""
    more = BRACKET_RATIO * trial.load
    return float(max(math.ceil(more), round(trial.load) + 1)) if trial.closed else more


def _guess_from_bound(scenario: Scenario, members: Mapping[str, Member]) -> Guess | None:
    """Return the load to begin with; None if the bound is 0, because no step meets the SLO."""
    if any(member.pool for member in members.values()):
        point = pools_point(scenario, members)
        bound = point.load if point else 0.0
    else:
        bound = load_bound(scenario, members)
    return Guess(SEARCH_FROM * bound) if bound else None


def _costed_capacity(search: tuple[TrialSeries, Guess | None]) -> SystemCapacity:
    """Return the capacity of one system, with its costs."""
    result = _system_capacity(search)
    _ = result.costs  # kept, so that the calling process does not serve the trial again
    result.series.last_met = None  # its rows are large, and no longer needed
    return result


def _system_capacity(search: tuple[TrialSeries, Guess | None]) -> SystemCapacity:
    """Return the capacity of one system."""
    series, guess = search
    workload = series.scenario.workload
    closed = workload.load_kind == "users"
    best, above, reason = _first_bracket(series, guess)
    if not reason:
        if best and above:
            best, above = _bisect(series, best, above, whole=closed)
            if workload.in_step:
                best, above = _equal_shares(series, best, above)
                reason = _why_more_may_meet_slo(series, best)
        elif best:
            reason = f"{best.load:,.0f} {'users' if closed else 'request/s'} are met too, "
            reason += "and no more were tried"
            if closed:
                reason += "; they would only wait, and no limit is missed for that"
        elif guess and guess.least:
            reason = f"it does not take {guess.least:.4g}"
        elif above:
            reason = _why_no_rate(above, series.share)
    if above and above.undecided(series.share):
        reason = _why_too_short(above, best, series.most_requests)
    scale = None
    if best and workload.is_recorded:
        batch = first_requests(workload.draw(series.scenario.seed), series.fixed_requests)
        scale = getattr(workload, "time_scale", 1.0) * measured_rate(batch) / best.goodput
    return SystemCapacity(series, best, above, reason, scale)


def _first_bracket(
    series: TrialSeries, guess: Guess | None
) -> tuple[LoadTrial | None, LoadTrial | None, str]:
    """Return a trial that is met, one at a higher load that is not, and why there is no capacity.

    Single requests must meet the SLO. Without a guess they are tried first, and with one only if
    the guess is not met. Single requests of many lengths may take longer than several trials, so
    they are tried only if no load down to half of the guess is met. With a least load they are not
    tried at all, because another plan meets that load.
    """
    start, least, most = _search_span(series, guess)
    requests = series.requests_at(start)
    if guess is None:
        if reason := series.unloaded_miss(requests):
            return None, None, reason
        return *_bracket(series, series.run_trial(start), (least, most), 2.0), ""
    low = start
    if guess.least:
        low = least
    elif many_lengths(requests):
        low = max(least, start // 2 if requests.users else start / 2)
    best, above = _bracket(series, series.run_trial(start), (low, most), GUESS_STEP)
    if best or above is None or guess.least:
        return best, above, ""
    if reason := series.unloaded_miss(requests):
        return None, None, reason
    return *_bracket(series, above, (least, most), 2.0), ""


def _why_no_rate(lowest: LoadTrial, share: float) -> str:
    """Return why no rate is met, though enough single requests meet the SLO."""
    if lowest.attained(share):
        return (
            f"enough requests meet the SLO at {lowest.load:.4g} "
            f"{'users' if lowest.closed else 'request/s'}, but only "
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
    series: TrialSeries, trial: LoadTrial, span: tuple[float, float], step: float
) -> tuple[LoadTrial | None, LoadTrial | None]:
    """Return a trial whose load is met, and one at a higher load that is not.

    trial: the first one.
    The load is multiplied (or divided) by `step`, then by its square, and then by 2.
    None if no load of the span, from its least to its most, is met, or is not. A trace too short to
    tell ends the search at the load of single requests.
    """
    best = above = None
    load, (least, most), whole = trial.load, span, trial.closed
    while (best is None or above is None) and least <= load <= most:
        trial = trial if load == trial.load else series.run_trial(load)
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


def _equal_shares(
    series: TrialSeries, best: LoadTrial, above: LoadTrial
) -> tuple[LoadTrial, LoadTrial | None]:
    """Return a higher bracket if more users meet the SLO with equal numbers on all replicas.

    Users with equal requests come in step. Unequal numbers on the replicas bring them out of step,
    so 8 users on four replicas may meet an SLO that 6 users miss.
    The higher trial is None if no number of users is too high.
    """
    members = series.members.values()
    replicas = [member.replicas for member in members]
    # Each request passes both pools, so the larger pool decides which numbers are equal.
    unit = max(replicas) if any(member.pool for member in members) else sum(replicas)
    if unit == 1:
        return best, above
    users_each, step, most = int(best.load // unit), 1, _search_span(series, None)[2]
    met: LoadTrial | None = None
    missed: LoadTrial | None = None
    while missed is None and unit * (users_each + step) <= most:
        trial = _trial_at(series, unit * (users_each + step))
        if trial.met(series.share):
            met, users_each, step = trial, users_each + step, 2 * step
        else:
            missed = trial
    while met and missed and missed.load - met.load > unit:
        trial = _trial_at(series, unit * round((met.load + missed.load) / 2 / unit))
        if trial.met(series.share):
            met = trial
        else:
            missed = trial
    if met is None:
        return best, above
    return _bisect(series, met, missed, whole=True) if missed else (met, None)


def _trial_at(series: TrialSeries, users: int) -> LoadTrial:
    """Return the trial of a number of users, which may have been made before."""
    made = [trial for trial in series.tried if trial.load == users]
    return made[0] if made else series.run_trial(float(users))


def _why_more_may_meet_slo(series: TrialSeries, best: LoadTrial) -> str:
    """Return why more users than those found may meet the SLO; '' if no fewer users missed it."""
    missed = [trial.load for trial in series.tried if not trial.met(series.share)]
    fewer = max((load for load in missed if load < best.load), default=None)
    if fewer is None:
        return ""
    return (
        f"{best.load:,.0f} users meet the SLO and {fewer:,.0f} do not, so more may meet it, too:"
        " users with equal requests come in step, unless replicas have unequal numbers of them"
    )


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
