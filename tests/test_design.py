"""The plan with the highest goodput: against the capacity of every plan, and what cannot be searched."""

import json

import pytest

from sim.capacity import capacity
from sim.design import DEGREES, best_plans, bound, plans
from sim.files import UserError
from sim.metrics import SLO
from sim.plan import Plan, PlanError
from sim.scenario import Scenario, System
from sim.workload import Closed, Length, Poisson

PROMPT, ANSWER = Length(fixed=40), Length(fixed=20)


@pytest.fixture(scope="module")
def scenario(make_model, make_chip, lossy):
    """Four small chips in one tensor group, which is the plan of lowest latency."""

    def make(**options: object) -> Scenario:
        system = {"chip": make_chip(), "chips": 4, "engine": lossy, "plan": Plan(tensor=4), "token_budget": 64} | options
        workload = Poisson(rate=1.0, requests=300, prompt=PROMPT, output=ANSWER)
        return Scenario(model=make_model(), workload=workload, slo=SLO(ttft=0.05, tpot=0.01), systems={"four": System(**system)})

    return make


def changed(scenario, plan):
    return scenario.model_copy(update={"systems": {"four": scenario.plain("four").model_copy(update={"plan": plan})}})


@pytest.mark.slow
def test_no_plan_takes_more_than_the_best_one(scenario):
    """Every plan of four chips is searched here, and bounds order them well enough."""
    asked = scenario()
    best = best_plans(asked, 0.9, requests=300)["four"]
    loads = {}
    for plan in plans(asked, "four"):
        other = changed(asked, plan)
        found = capacity(other, 0.9, requests=300).systems["four"]
        loads[tuple(getattr(plan, key) for key in DEGREES)] = found.best.load if found.best else 0.0
    assert best.capacity.best.load >= 0.97 * max(loads.values())
    assert best.capacity.best.load > 1.2 * loads[4, 1, None, None, 1], "else there is nothing to search for"


def test_the_own_plan_comes_first_and_all_deal_out_all_chips(scenario):
    first, *others = plans(scenario(), "four")
    assert first == Plan(tensor=4)
    assert {plan.tensor * plan.pipeline * plan.replicas for plan in others} == {4}
    assert {plan.replicas for plan in others} == {1, 2, 4}


@pytest.mark.parametrize("plan", [Plan(tensor=4), Plan(tensor=2, replicas=2), Plan(replicas=4), Plan(pipeline=4)])
def test_a_bound_is_near_what_is_found(scenario, plan):
    asked = changed(scenario(), plan)
    most = bound(asked.deploy("four"), 40, 20, asked.slo)
    found = capacity(asked, 0.9, requests=1000).systems["four"].best.load
    assert 0.6 * most < found < 1.3 * most


def test_a_bound_knows_the_tpot_of_the_slo(scenario):
    deployment = scenario().deploy("four")
    tight, loose = (bound(deployment, 40, 20, SLO(tpot=limit)) for limit in (0.001, 1.0))
    assert tight < loose
    assert bound(deployment, 40, 20, SLO(tpot=1e-9)) == 0


def test_the_command_prints_both_plans(sramsim, tmp_path):
    lines = [
        "model: llama-3.2-1b",
        "workload: {kind: poisson, rate: 1 request/s, requests: 100, prompt: 200 token, output: 20 token}",
        "slo: {ttft: 2 s, tpot: 100 ms}",
        "systems: {two: {chip: h100-sxm, chips: 2, engine: vllm, plan: {tensor: 2}}}",
    ]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines))
    status, out, _ = sramsim("capacity", str(path), "--plans", "--requests", "200", "--json")
    system = json.loads(out)["systems"]["two"]
    assert status == 0
    assert {"plan", "max_goodput_rate", "attainment"} <= system["best"].keys()
    assert system["best"]["max_goodput_rate"] >= 0.97 * system["max_goodput_rate"]
    status, out, _ = sramsim("capacity", str(path), "--plans", "--requests", "200")
    assert status == 0
    assert "best plan, tensor x pipeline x replicas" in out


def test_what_has_no_rate_is_refused(scenario):
    closed = scenario().model_copy(update={"workload": Closed(users=2, requests=4, prompt=PROMPT, output=ANSWER)})
    with pytest.raises(UserError, match="--plans: got no rate of requests and slo; expected both; try a poisson workload"):
        best_plans(closed, 0.9)


def test_where_no_plan_fits_it_says_so(scenario, make_chip):
    with pytest.raises(PlanError, match=r"systems\.four: no plan of its chips holds in-place"):
        best_plans(scenario(chip=make_chip(1e4)), 0.9)
