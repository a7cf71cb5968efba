"""The capacity of a system: the highest load at which enough requests meet the SLO.

capacity(sim.read("llama2-70b-lpu-vs-h100")).systems["lpu"].best.goodput  # request/s
"""

from sim.scenario.sources import ScenarioSource, as_scenario
from sim.studies.capacity_result import CapacityResult
from sim.studies.capacity_search import Guess, given_capacity, processes_for, required_share
from sim.studies.design import search_plans
from sim.studies.trials import TrialProgress, no_progress


def capacity(
    scenario: ScenarioSource,
    attainment: float | None = None,
    requests: int | None = None,
    progress: TrialProgress = no_progress,
    guess: Guess | None = None,
    jobs: int | None = 1,
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
    users are added.  Users with equal requests come in step, so more users may meet the SLO than a
    number that misses it.  Then equal numbers on all replicas are tried, too, and `reason` warns
    that still more users may meet it.

    The first tenth of a trial's requests is not counted, because the system fills up.  The rate of
    sessions is that of their requests.  A trial of sessions starts at least ten times as many as
    are in flight.  With kinds of requests, each kind must meet its SLO.

    scenario: a path, a name of the catalogue, a mapping, or a scenario. changes: values by key, as
    in `sim.run`.
    attainment: None means that of the SLO's `percentile`, or else 0.9.
    requests: number of requests of a trial; None means the largest of these numbers:

    * the scenario's
    * 2,000
    * ten times what the system can hold concurrently; in a closed loop, ten times its users
    * what arrives in 50 times the limit of TTFT (or of E2EL, if that is less)

    A trace has all its requests in a trial.
    guess: where to begin.  None means 0.9 of the bound (`studies.bound`).
    progress: called with a system and each of its trials, in the process that makes the trial.
    jobs: processes, each of which searches one system after another. The result is the same for any
    number.  None means one for each core if a trial has 1,000 requests or more, and else one.  With
    several processes, a script must start its work under `if __name__ == "__main__":`.
    Joules and dollars are those of the counted part of the best trial: see
    `sim.studies.accounts.token_costs`.

    Left out: `measure` of the scenario.
    Raises: UserError if there is no SLO, or no load to vary; PlanError if a system does not fit,
    or no plan of a `search: capacity` meets the SLO.
    """
    scenario = as_scenario(scenario, changes)
    required_share(scenario, attainment, requests)  # an error, before plans are searched
    jobs = processes_for(jobs, requests)
    scenario = search_plans(scenario, attainment, requests, progress, jobs=jobs)
    return given_capacity(scenario, attainment, requests, progress, guess, jobs)
