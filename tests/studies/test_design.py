"""The plan with the highest goodput: against the capacity of every plan, and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sim
from sim.cost.plan import DEGREES, Plan, PlanError
from sim.inputs.errors import UserError
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.scenario.system import Fleet, System
from sim.studies import design
from sim.studies.bound import NEAR_BOUND, SIMULATED, goodput_bound, load_bound
from sim.studies.capacity import capacity
from sim.studies.capacity_search import BRACKET_RATIO, given_capacity
from sim.studies.design import (
    _plans_to_simulate,
    best_plans,
    candidate_plans,
    search_plans,
)
from sim.studies.paces import loop_of
from sim.studies.sweep import sweep
from sim.studies.typical_request import equal_requests
from sim.workload.arrivals import ClosedLoop, Listed, Poisson
from sim.workload.lengths import Length
from sim.workload.slo import SLO
from sim.workload.think import Think
from sim.workload.traces import Trace

PROMPT, ANSWER = Length(fixed=40), Length(fixed=20)


@pytest.fixture(scope="module")
def scenario(make_model, make_chip, lossy):
    """Four small chips in one tensor group, which is the plan of lowest latency."""

    def make(**options: object) -> Scenario:
        system = {
            "chip": make_chip(),
            "chips": 4,
            "engine": lossy,
            "plan": Plan(tensor=4),
            "token_budget": 64,
        } | options
        workload = Poisson(rate=1.0, requests=300, prompt=PROMPT, output=ANSWER)
        return Scenario(
            model=make_model(),
            workload=workload,
            slo=SLO(ttft=0.05, tpot=0.01),
            systems={"four": System(**system)},
        )

    return make


def changed(scenario, plan):
    return scenario.model_copy(
        update={"systems": {"four": scenario.plain("four").model_copy(update={"plan": plan})}}
    )


@pytest.mark.slow
def test_no_plan_takes_more_than_the_best_one(scenario):
    """Every plan of four chips is searched here, and bounds order them well enough."""
    asked = scenario()
    best = best_plans(asked, 0.9, requests=300)["four"]
    loads = {}
    for plan in candidate_plans(asked, "four"):
        other = changed(asked, plan)
        found = capacity(other, 0.9, requests=300).systems["four"]
        loads[tuple(getattr(plan, key) for key in DEGREES)] = found.best.load if found.best else 0.0
    assert best.capacity.best.load >= 0.97 * max(loads.values())
    assert best.capacity.best.load > 1.2 * loads[4, 1, None, None, 1], (
        "else there is nothing to search for"
    )


def test_the_own_plan_comes_first_and_all_deal_out_all_chips(scenario):
    first, *others = candidate_plans(scenario(), "four")
    assert first == Plan(tensor=4)
    assert {plan.tensor * plan.pipeline * plan.replicas for plan in others} == {4}
    assert {plan.replicas for plan in others} == {1, 2, 4}


@pytest.mark.parametrize(
    "plan", [Plan(tensor=4), Plan(tensor=2, replicas=2), Plan(replicas=4), Plan(pipeline=4)]
)
def test_a_bound_is_near_what_is_found(scenario, plan):
    asked = changed(scenario(), plan)
    most = goodput_bound(asked.deploy("four"), equal_requests(40, 20), asked.slo)
    found = capacity(asked, 0.9, requests=1000).systems["four"].best.load
    assert 0.6 * most < found < 1.3 * most


def test_a_bound_knows_the_tpot_of_the_slo(scenario):
    deployment = scenario().deploy("four")
    tight, loose = (
        goodput_bound(deployment, equal_requests(40, 20), SLO(tpot=limit)) for limit in (0.001, 1.0)
    )
    assert tight < loose
    assert goodput_bound(deployment, equal_requests(40, 20), SLO(tpot=1e-9)) == 0


def test_a_bound_is_near_that_of_every_number_of_sequences(scenario, monkeypatch):
    """A limit of the TPOT allows any number of sequences, not a power of the root of 2 alone."""
    deployment, limits = scenario().deploy("four"), np.geomspace(1e-4, 1e-2, 40)
    found = np.array(
        [goodput_bound(deployment, equal_requests(40, 20), SLO(tpot=limit)) for limit in limits]
    )
    monkeypatch.setattr("sim.studies.paces.decode_counts", lambda most, *_: range(1, most + 1))
    every = np.array(
        [goodput_bound(deployment, equal_requests(40, 20), SLO(tpot=limit)) for limit in limits]
    )
    assert (every > 0).sum() > 10
    assert len({*every}) > 5
    assert (found <= every).all()
    assert (found >= 0.97 * every).all()


def test_the_command_prints_both_plans(sramsim, tmp_path):
    lines = [
        "model: llama-3.2-1b",
        "workload: {kind: poisson, rate: 1 request/s, requests: 100, prompt: 200 token, output: "
        "20 token}",
        "slo: {ttft: 2 s, tpot: 100 ms}",
        "systems:",
        "  two: {chip: h100-sxm, chips: 2, engine: vllm, plan: {tensor: 2}}",
        "  pair: {fleet: {two: 1}}",
    ]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines))
    status, out, notes = sramsim("capacity", str(path), "--plans", "--requests", "200", "--json")
    system = json.loads(out)["systems"]["two"]
    assert status == 0
    assert "systems.pair: --plans tries no other plan: its members have plans of" in notes
    assert "best" not in json.loads(out)["systems"]["pair"]
    assert {"plan", "max_goodput_rate", "attainment"} <= system["best"].keys()
    assert system["best"]["max_goodput_rate"] >= 0.97 * system["max_goodput_rate"]
    status, out, _ = sramsim("capacity", str(path), "--plans", "--requests", "200")
    assert status == 0
    assert "best plan, tensor x pipeline x replicas" in out


def test_a_workload_without_a_load_to_vary_is_an_error(scenario):
    listed = scenario().model_copy(
        update={"workload": Listed(requests=({"arrival": 0.0, "prompt": 40, "output": 20},))}
    )
    with pytest.raises(
        UserError, match="workload: got listed; its requests are listed one by one; "
    ):
        best_plans(listed, 0.9)


def test_an_error_says_how_many_chips_would_do(scenario, make_chip):
    asked = scenario(chip=make_chip(6e4))
    with pytest.raises(
        PlanError,
        match=r"four\.plan: got no plan of 4 chips that holds in-place; .*; try \d+ chips",
    ) as e:
        best_plans(asked, 0.9)
    more = int(str(e.value).split()[-2])
    assert (
        best_plans(scenario(chip=make_chip(6e4), chips=more, plan=Plan()), 0.9, 300)[
            "four"
        ].search.considered
        > 0
    )
    with pytest.raises(PlanError, match="try another chip"):
        best_plans(scenario(chip=make_chip(1e3)), 0.9)


# A plan that the scenario leaves to the search.

CAPACITY = Plan(search="capacity")
TRIAL = 300  # requests


@pytest.fixture
def short_trials(monkeypatch):
    """Runs search with trials as short as those of `capacity --requests`."""
    monkeypatch.setattr("sim.studies.trials.MIN_REQUESTS", TRIAL)
    monkeypatch.setattr("sim.studies.trials.WAITS", 1)


@pytest.fixture
def no_trials(monkeypatch):
    """A trial fails the test."""

    def trial(self: object, load: float) -> None:
        raise AssertionError("a capacity is searched again")

    monkeypatch.setattr("sim.studies.trials.TrialSeries.run_trial", trial)


WORKLOADS = {
    "poisson": Poisson(rate=1.0, requests=TRIAL, prompt=PROMPT, output=ANSWER),
    "trace": Trace(synthetic=Poisson(rate=1.0, requests=TRIAL, prompt=PROMPT, output=ANSWER)),
    "closed": ClosedLoop(users=1, requests=TRIAL, prompt=PROMPT, output=ANSWER),
}


@pytest.mark.parametrize("kind", WORKLOADS)
def test_a_searched_plan_takes_at_least_what_other_plans_take(scenario, kind):
    """The plan of lowest latency is among them, and takes less."""
    asked = scenario(plan=CAPACITY).model_copy(update={"workload": WORKLOADS[kind]})
    found = search_plans(asked, requests=TRIAL)
    most, own, copies = (
        capacity(changed(found, plan), requests=TRIAL).systems["four"].best.load
        for plan in (found.plain("four").plan, Plan(tensor=4), Plan(replicas=4))
    )
    assert most >= own / BRACKET_RATIO
    assert most >= copies / BRACKET_RATIO
    assert most > 1.2 * own, "else there is nothing to search for"


@pytest.mark.parametrize(
    ("plan", "think"),
    [
        (Plan(tensor=4), 0.0),
        (Plan(tensor=4), 0.02),
        (Plan(replicas=4), 0.0),
        (Plan(pipeline=4), 0.02),
    ],
)
def test_no_more_equal_users_are_found_than_the_bound_says(scenario, plan, think):
    """All users are in step, so most steps have no prompt. The bound is near what is found."""
    asked = changed(scenario(), plan).model_copy(
        update={"workload": WORKLOADS["closed"].model_copy(update={"think": Think(fixed=think)})}
    )
    most = goodput_bound(
        asked.deploy("four"), equal_requests(40, 20), asked.slo, loop_of(asked.workload)
    )
    found = capacity(asked, 0.9, requests=TRIAL).systems["four"].best.load
    assert 0.6 * most < found <= 1.001 * most


@pytest.mark.parametrize(("prompt", "near"), [(1, 0.98), (40, 0.9), (400, 0.5)])
def test_users_in_step_wait_only_for_prompts_that_do_not_fit_in_theirs(scenario, prompt, near):
    """Prompts of a token come all in one step; long ones in many, and each answer waits for others."""
    asked = changed(scenario(), Plan(tensor=4))
    users = {"prompt": prompt, "output": 100, "requests": 400}
    closed = WORKLOADS["closed"].model_copy(
        update={name: Length(fixed=n) if name != "requests" else n for name, n in users.items()}
    )
    asked = asked.model_copy(update={"workload": closed, "slo": SLO(tpot=0.0013)})
    most = load_bound(asked, {"four": Member(asked.deploy("four"))})
    found = capacity(asked, 0.9, requests=400).systems["four"].best.load
    assert near * most <= found <= 1.001 * most


def test_a_run_is_the_one_with_the_degrees_written_in(scenario, short_trials):
    searched = sim.run(scenario(plan=CAPACITY))
    plan = searched.scenario.plain("four").plan
    written = {key: getattr(plan, key) for key in DEGREES}
    assert plan.search is None
    given = sim.run(scenario(plan=Plan(**written)))
    one, other = (result.as_json()["systems"]["four"] for result in (searched, given))
    assert one.pop("search")["by"] == "capacity"
    assert json.dumps(one) == json.dumps(other)
    assert searched.requests.equals(given.requests)


def test_each_plan_is_searched_once(scenario, short_trials, monkeypatch):
    """A run and later uses of its scenario search once; a fleet's member is searched alone."""
    searched = []

    def counted(scenario: Scenario, name: str, *rest: object) -> design.BestPlan:
        searched.append(name)
        return best_plan(scenario, name, *rest)

    best_plan = design.best_plan
    monkeypatch.setattr(design, "best_plan", counted)
    asked = scenario(plan=CAPACITY)
    asked = asked.model_copy(update={"systems": asked.systems | {"both": Fleet(fleet={"four": 2})}})
    result = sim.run(asked)
    assert searched == ["four"]
    assert result.as_json()["systems"]["both"]["members"]["four"]["search"]["considered"] > 1
    sim.check(result.scenario)
    sim.plan(result.scenario)
    sim.run(result.scenario)
    assert best_plans(result.scenario, 0.9) == {}
    assert searched == ["four"]


def test_what_is_not_searched_yet_is_not_laid_out(scenario):
    with pytest.raises(
        PlanError,
        match=r"systems\.four\.plan\.search: got capacity; expected degrees here; try sim\.search_plans",
    ):
        sim.check(scenario(plan=CAPACITY))


def test_a_search_takes_what_run_takes():
    """So the scenario that an error of `sim.capacity` is about can be passed as it is."""
    name = "llama2-70b-lpu-vs-h100"
    assert search_plans(name) == sim.read(name)


@pytest.mark.parametrize("order", [("fp32", "fp8"), ("fp8", "fp32")])
def test_the_precision_of_the_cache_that_takes_more_is_found(scenario, make_chip, order):
    """On chips with room for few sequences beside the weights."""
    asked = scenario(chip=make_chip(2.5e5), plan=Plan(search="capacity", kv=order))
    found = search_plans(asked, requests=TRIAL).plain("four").plan
    most = {}
    for kv in order:
        other = changed(asked, found.model_copy(update={"kv": kv}))
        most[kv] = capacity(other, requests=TRIAL).systems["four"].best.load
    assert most["fp8"] > 1.2 * most["fp32"], "else there is nothing to choose"
    assert found.kv == "fp8"


def test_a_plan_that_meets_no_slo_is_an_error(scenario):
    asked = scenario(plan=CAPACITY).model_copy(update={"slo": SLO(ttft=1e-9)})
    with pytest.raises(
        PlanError,
        match=r"the SLO is met by none of \d plans: even alone, 0 % .*; try a looser slo",
    ):
        search_plans(asked)


def test_the_seed_and_the_attainment_are_those_of_the_search(scenario, monkeypatch):
    """A run uses the seed of its caller."""
    asked = []

    def noted(scenario: Scenario, attainment: float | None, *rest: object) -> object:
        asked.append((scenario.seed, attainment))
        return given_capacity(scenario, attainment, TRIAL, *rest[1:])

    monkeypatch.setattr(design, "given_capacity", noted)
    sim.run(scenario(plan=CAPACITY), seed=3)
    search_plans(scenario(plan=CAPACITY), attainment=0.5)
    assert set(asked) == {(3, None), (0, 0.5)}  # None: that of the scenario


FILE = """\
model: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, num_attention_heads: 4,
  num_key_value_heads: 2, vocab_size: 256, max_position_embeddings: 4096, torch_dtype: float16}
workload: {kind: poisson, rate: 1 request/s, requests: 100, prompt: 40 token, output: 20 token}
slo: {ttft: 50 ms, tpot: 10 ms}
systems:
  two:
    chip: {memory: {sram: {capacity: 1 MB, bandwidth: 1 GB/s}}, compute: {kind: roofline, fp16: 1 TFLOP/s},
      topology: {kind: fully-connected, link: {latency: 1 us, bandwidth: 1 GB/s}}}
    chips: 2
    engine: {like: ideal, layer_overhead: 30 us, sequence_overhead: 20 us}
    token_budget: 64 token
    plan: {search: capacity, kv: [fp16, fp8]}
sweep: {workload.prompt: [40 token, 20 token]}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, short_trials):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(FILE)


def test_every_command_finds_the_plan(sramsim, mine):
    plans = []
    for words in (("plan", "--json"), ("capacity", "--plans", "--json")):
        status, out, progress = sramsim(words[0], "mine.yaml", *words[1:])
        system = json.loads(out)["systems"]["two"]
        plans.append(system["plan"])
        assert status == 0
        assert "best" not in system, "it was searched already"
        assert "two: at " in progress
    plan, same = plans
    assert plan == same
    assert sramsim("trace", "mine.yaml", "--program")[0] == 0
    _, out, _ = sramsim("run", "--all", "mine.yaml")
    assert f"{plan['tensor']} x {plan['pipeline']} x {plan['replicas']}" in out
    assert "found by search" in out
    assert "simulated" in out


def test_each_point_of_a_sweep_searches(mine):
    table = sweep("mine.yaml", Path("swept"), jobs=1).table
    assert list(table["error"]) == ["", ""]
    assert list(table["search.by"]) == ["capacity", "capacity"]
    assert table["search.max_goodput_rate"][0] != table["search.max_goodput_rate"][1]


def test_check_simulates_nothing(sramsim, mine, no_trials):
    status, out, notes = sramsim("check", "mine.yaml")
    assert (status, out) == (0, "mine.yaml: ok (two on 2 chips)\n")
    assert "mine.yaml: systems.two: search: capacity: 6 plans fit" in notes


def test_what_is_saved_is_not_searched_again(sramsim, mine, monkeypatch):
    assert sramsim("run", "mine.yaml", "--out", "a")[0] == 0
    shutil.copytree("a", "b")
    monkeypatch.setattr(design, "search_plans", None)
    monkeypatch.setattr(design, "plans_by_bound", None)
    assert sramsim("report", "a", "-o", "a.html")[0] == 0
    assert "capacity: " in Path("a.html").read_text()
    assert json.loads(sramsim("compare", "a", "b", "--json")[1])["runs"][0]["systems"] == {
        "two": {}
    }


PLACE = "12: systems.two.plan"
WRONG = [
    (
        "kv: [fp16, fp8]",
        "tensor: 2",
        f"{PLACE}.tensor: got 2; expected no degrees with search: capacity, which finds them; "
        "try leaving ",
    ),
    (
        "search: capacity, ",
        "",
        f"{PLACE}.kv: got [fp16, fp8]; expected one precision; try kv: fp16, or search: capacity",
    ),
    (
        "fp8]",
        "fp9]",
        f"{PLACE}.kv: got [fp16, fp9]; expected precisions of fp32, bf16, fp16, fp8, int8, fp4, "
        "int4; try [",
    ),
    ("[fp16, fp8]", "[]", f"{PLACE}.kv: got []; expected precisions of "),
    ("[fp16, fp8]", "fp9", f"{PLACE}.kv: got 'fp9'; expected 'fp32', "),
    (
        "ttft: 50 ms, tpot: 10 ms",
        "",
        f"{PLACE}.search: got capacity without an slo; expected limits to meet; try slo: {{",
    ),
    (
        "{ttft: 50 ms, tpot: 10 ms}",
        "null",
        f"{PLACE}.search: got capacity without an slo; expected limits to meet; try slo: {{",
    ),
    (
        "kind: poisson, rate: 1 request/s, requests: 100, prompt: 40 token, output: 20 token",
        "kind: listed, requests: [{arrival: 0 s, prompt: 8 token, output: 8 token}]",
        f"{PLACE}.search: got capacity with workload listed; expected poisson, gamma, trace, "
        "sessions or closed, whose load varies; try ",
    ),
    (
        "token_budget: 64 token",
        "outages: [{replica: 0, at: 1 s, lasts: 1 s}]",
        f"{PLACE}.search: got capacity with outages; expected a system that works; try search: "
        "speed",
    ),
    (
        "capacity: 1 MB",
        "capacity: 60 kB",
        "6: systems.two.plan: got no plan of 2 chips that holds in-place; expected one; try 15 "
        "chips",
    ),
    (
        "capacity: 1 MB",
        "capacity: 1 kB",
        "6: systems.two.plan: got no plan of 2 chips that holds in-place; expected one; try "
        "another",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_wrong_search_is_one_line(sramsim, mine, command, old, new, message):
    Path("mine.yaml").write_text(FILE.replace(old, new))
    status, out, error = sramsim(command, "mine.yaml")
    assert (status, out) == (2, "")
    assert error.startswith(f"mine.yaml:{message}")
    assert error.count("\n") == 1


def test_each_shape_of_a_stage_near_the_highest_bound_is_simulated(scenario):
    """More plans with tensor 1 than are simulated have higher bounds than those with tensor 2 and 4."""
    plans = [Plan(pipeline=stages) for stages in range(1, SIMULATED + 2)]
    plans += [Plan(tensor=2), Plan(tensor=4), Plan(tensor=8)]
    bounds = [100.0] * (SIMULATED + 1) + [90.0, 100 * NEAR_BOUND, 99 * NEAR_BOUND]
    asked = scenario()
    ordered = [(most, changed(asked, plan)) for most, plan in zip(bounds, plans, strict=True)]
    chosen = [other.plain("four").plan for _, other in _plans_to_simulate(ordered, "four")]
    assert chosen == [*plans[: SIMULATED - 2], Plan(tensor=2), Plan(tensor=4)]
