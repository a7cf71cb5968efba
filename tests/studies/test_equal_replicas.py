"""One of equal replicas stands for all: the same rows as if all of them were simulated."""

import numpy as np
import pytest

from sim.cost.plan import Plan
from sim.results.metrics import Measure
from sim.scenario.layout import check
from sim.scenario.replicas import serve_requests
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.policy import round_robin
from sim.studies.accounts import token_costs
from sim.studies.equal_replicas import alike, served
from sim.studies.trials import TrialSeries
from sim.workload.arrivals import ClosedLoop, Poisson
from sim.workload.lengths import Length
from sim.workload.slo import SLO
from sim.workload.think import Think

LENGTHS = {"prompt": Length(fixed=24), "output": Length(fixed=8)}
COLUMNS = ("arrival", "admitted", "first_token", "last_token", "ended", "preemptions", "cached")
REPLICAS = 3


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, make_engine):
    """Equal replicas of one chip each."""

    def make(workload: object = None, **options: object) -> Scenario:
        parts = {
            "chip": make_chip(),
            "chips": REPLICAS,
            "engine": make_engine(),
            "plan": Plan(replicas=REPLICAS),
            "token_budget": 32,
        }
        return Scenario(
            model=make_model(),
            workload=workload or ClosedLoop(users=30, requests=600, **LENGTHS),
            slo=SLO(tpot=1.0),
            systems={"one": System(**(parts | options))},
        )

    return make


@pytest.mark.parametrize("think", [0.0, 0.01])
@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("room", [None, 200])
def test_one_replica_makes_the_steps_of_all(make_scenario, think, prefix, room):
    """The last requests may differ: no others follow them, so replicas get unlike numbers."""
    users, n = 30, 600
    workload = ClosedLoop(
        users=users, requests=n, think=Think(fixed=think), shared_prefix=prefix, **LENGTHS
    )
    options = {"prefix_caching": prefix > 0, "kv_tokens": room, "admission": "prompt"}
    scenario = make_scenario(workload, **options)
    members = check(scenario)["one"]
    assert alike(scenario, "one", members) == REPLICAS
    requests = workload.draw(0)
    rows, all_rows = (
        serve(scenario, "one", members, requests) for serve in (served, serve_requests)
    )
    assert (all_rows.preemptions.sum() > 0) == (room is not None)  # else the case does not occur
    last = n - (2 * users if room else 0)
    for column in COLUMNS:
        one, every = (np.sort(getattr(of, column))[:last] for of in (rows, all_rows))
        assert one == pytest.approx(every, rel=1e-9), column
    of_replicas = [rows.last_token[rows.replica == number] for number in range(REPLICAS)]
    assert len(of_replicas[0]) == n // REPLICAS
    for other in of_replicas:
        assert np.array_equal(other, of_replicas[0])
    assert rows.kv_peak == all_rows.kv_peak
    assert rows.systems == all_rows.systems


def test_all_replicas_use_energy(make_scenario):
    """Work, tokens and time are those of all replicas, in the whole run and in a part of it."""
    scenario = make_scenario()
    members, requests = check(scenario)["one"], scenario.workload.draw(0)
    for measure in (None, Measure(window=(0.02, 0.08))):
        part = scenario.model_copy(update={"measure": measure})
        rows, all_rows = (
            serve(part, "one", members, requests) for serve in (served, serve_requests)
        )
        tallies, all_tallies = (
            of.span.tallies if of.span else of.tallies for of in (rows, all_rows)
        )
        assert [tally.logits for tally in tallies] == pytest.approx(
            [tally.logits for tally in all_tallies]
        )
        assert tallies[0].logits > 0
        costs, all_costs = (token_costs(part, members, of, 1.0) for of in (rows, all_rows))
        assert costs.busy_share == pytest.approx(all_costs.busy_share)


@pytest.mark.parametrize(
    ("workload", "options"),
    [
        (Poisson(rate=1.0, requests=60, **LENGTHS), {}),
        (
            ClosedLoop(users=9, requests=60, prompt=Length(fixed=9), output=Length(uniform=(4, 8))),
            {},
        ),
        (ClosedLoop(users=9, requests=60, think=Think(exponential=1.0), **LENGTHS), {}),
        (None, {"router": round_robin}),
        (ClosedLoop(users=9, requests=60, think=Think(fixed=1.0), **LENGTHS), {"max_waiting": 1}),
        (None, {"deadline": 1.0}),
        (None, {"fidelity": "chip"}),
    ],
)
def test_replicas_that_may_differ_are_all_simulated(make_scenario, workload, options):
    scenario = make_scenario(workload, **options)
    assert alike(scenario, "one", check(scenario)["one"]) == 1


@pytest.mark.parametrize("load", [7, 149, 150, 151, 152, 500])
def test_the_users_of_a_trial_are_rounded_up_where_one_more_is_two_percent(make_scenario, load):
    scenario = make_scenario()
    series = TrialSeries(scenario, scenario.slo, "one", check(scenario)["one"], 0.9, None)
    requests = series.requests_at(load)
    users = REPLICAS * -(-load // REPLICAS) if load >= 50 * REPLICAS else load
    assert requests.users == users <= max(load, 1.02 * load)
    assert len(requests.prompt) % (REPLICAS if load >= 50 * REPLICAS else 1) == 0
    fixed = TrialSeries(scenario, scenario.slo, "one", check(scenario)["one"], 0.9, 70)
    assert fixed.requests_at(load).users == load
