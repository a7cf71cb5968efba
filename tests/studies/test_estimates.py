"""Estimates of the users of closed loops, against the users that a search finds."""

import pytest

import sim
from sim.cost.plan import Plan
from sim.scenario.layout import check
from sim.scenario.pools import Pools
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.transfer import Transfer
from sim.studies.bound import load_bound, load_point
from sim.studies.capacity import capacity
from sim.studies.paces import loop_of
from sim.studies.pool_bound import pools_point
from sim.workload.arrivals import ClosedLoop
from sim.workload.lengths import Length
from sim.workload.slo import SLO
from sim.workload.think import Think

REQUESTS = 400


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, lossy):
    """A small chip, alone or in two pools, and users that all send equal requests."""

    def make(slo, prompt=40, output=20, think=0.0, transfer=None, **options) -> Scenario:
        own = {"chip": make_chip(capacity=1e7), "chips": 1, "engine": lossy, "plan": Plan()}
        one = System(**(own | {"token_budget": 1024} | options))
        systems = {"one": one}
        if transfer:
            systems["pd"] = Pools(prefill="one", decode="one", transfer=transfer)
        lengths = {"prompt": Length(fixed=prompt), "output": Length(fixed=output)}
        workload = ClosedLoop(users=1, requests=REQUESTS, think=Think(fixed=think), **lengths)
        return Scenario(model=make_model(), workload=workload, slo=slo, systems=systems)

    return make


@pytest.mark.parametrize(
    ("slo", "changes"),
    [
        (SLO(e2el=0.03), {}),
        (SLO(e2el=0.02), {"output": 10}),
        (SLO(e2el=0.06), {}),
        (SLO(e2el=0.06), {"think": 0.05}),
        (SLO(e2el=0.1, tpot=0.003), {"output": 40}),
        (SLO(ttft=0.02), {"prompt": 8, "output": 100, "think": 0.5, "token_budget": 64}),
        (SLO(ttft=0.02), {"output": 100, "think": 0.5}),
        (SLO(ttft=0.05), {"prompt": 200}),
        (SLO(ttft=0.05), {"kv_tokens": 400}),
    ],
)
def test_users_are_estimated_from_the_limits_that_bind(make_scenario, slo, changes):
    """Limits of E2EL alone and of TTFT alone, with pauses, long prompts and a small KV cache."""
    scenario = make_scenario(slo, **changes)
    estimate = load_bound(scenario, check(scenario)["one"])
    found = capacity(scenario, requests=REQUESTS).systems["one"].best.load
    assert 0.6 * estimate <= found <= 1.3 * estimate + 1


@pytest.mark.parametrize(
    ("slo", "bandwidth", "changes"),
    [
        (SLO(ttft=0.05, tpot=0.01), 5e5, {}),  # the links bind
        (SLO(e2el=0.3), 5e5, {}),
        (SLO(ttft=0.05, tpot=0.1), 1e9, {"prompt": 400, "output": 9}),  # the prefill pool binds
        # The decode pool's KV cache is full, and then that of the prefill pool.
        (SLO(ttft=0.05, tpot=0.1), 1e9, {"prompt": 200, "think": 0.01}),
        (SLO(ttft=0.05, tpot=0.002), 1e9, {"prompt": 4, "output": 60}),  # the decode pool binds
    ],
)
def test_users_of_pools_are_estimated_from_the_pool_or_the_links_that_bind(
    make_scenario, slo, bandwidth, changes
):
    scenario = make_scenario(slo, transfer=Transfer(bandwidth=bandwidth, latency=1e-4), **changes)
    estimate = pools_point(scenario, check(scenario)["pd"]).load
    found = capacity(scenario, requests=REQUESTS).systems["pd"].best.load
    assert 0.6 * estimate <= found <= 1.3 * estimate + 1


def test_links_take_as_many_requests_a_second_as_their_bandwidth(make_scenario):
    """Half the bandwidth halves the rate, unless each transfer has a link of its own."""

    def rate(bandwidth, per="replica"):
        transfer = Transfer(bandwidth=bandwidth, per=per)
        scenario = make_scenario(SLO(ttft=0.1), transfer=transfer)
        return pools_point(scenario, check(scenario)["pd"]).rate

    assert rate(1e5) == pytest.approx(2 * rate(5e4))
    assert rate(5e4, "flow") == rate(1e12) > 2 * rate(1e5)


def test_users_without_an_end_are_not_estimated(make_scenario):
    """With a limit of TPOT alone, users beyond the KV cache wait, and miss nothing."""
    scenario = make_scenario(SLO(tpot=0.1), kv_tokens=400)
    point = load_point(scenario.deploy("one"), 40, 20, scenario.slo, loop_of(scenario.workload))
    assert point.endless
    assert sim.run(scenario).summary.systems["one"].at_capacity is None
    assert "no more were tried" in capacity(scenario, requests=100).systems["one"].reason
    bounded = make_scenario(SLO(tpot=0.1, ttft=0.1), kv_tokens=400)
    assert sim.run(bounded).summary.systems["one"].at_capacity is not None
