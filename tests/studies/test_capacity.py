"""Capacities: against queueing theory, with more chips or tighter limits, and errors."""

import math
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import sim
from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.hardware.chip import Memory
from sim.hardware.power import Power
from sim.inputs.errors import UserError
from sim.scenario.layout import check
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.studies.bound import load_bound
from sim.studies.capacity import capacity
from sim.studies.capacity_search import BRACKET_RATIO, Guess
from sim.studies.processes import results_of
from sim.studies.run import run
from sim.studies.trials import TrialSeries
from sim.units import YEAR
from sim.workload.arrivals import ClosedLoop, Gamma, Listed, ListedRequest, Poisson
from sim.workload.lengths import Length
from sim.workload.slo import SLO
from sim.workload.traces import Trace

SEEDS = range(10)
PROMPT, ANSWER = (
    Length(fixed=16),
    Length(fixed=1),
)  # a prompt fills a step of 16 tokens: one server, one time


def poisson(requests: int = 100) -> Poisson:
    return Poisson(rate=1.0, requests=requests, prompt=PROMPT, output=ANSWER)


@pytest.fixture(scope="module")
def service(make_deployment) -> float:
    """Seconds of a request on one chip of the small kind."""
    work = Work(prompt_tokens=16, chunks=1, attended=16 * 17 / 2, cached=16, logits=1)
    return float(make_deployment(token_budget=16).costs.step(work).time.sum())


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, make_engine):
    """One system of small chips that takes a prompt a step."""

    def make(
        slo: SLO | None,
        workload: object = None,
        seed: int = 0,
        replicas: int = 1,
        **options: object,
    ) -> Scenario:
        parts = {
            "chip": make_chip(),
            "chips": replicas,
            "engine": make_engine(),
            "plan": Plan(replicas=replicas),
            "token_budget": 16,
        }
        workload = workload or poisson()
        return Scenario(
            model=make_model(),
            seed=seed,
            workload=workload,
            slo=slo,
            systems={"one": System(**(parts | options))},
        )

    return make


def waits_at_most(load: float, services: float) -> float:
    """Return the share of requests that wait at most some service times in M/D/1 (Erlang 1909)."""
    terms = (
        (load * (k - services)) ** k / math.factorial(k) * math.exp(-load * (k - services))
        for k in range(int(services) + 1)
    )
    return (1 - load) * sum(terms)


def load_at(services: float, share: float) -> float:
    """The load of M/D/1 at which that share waits at most so many service times."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if waits_at_most(middle, services) >= share else (low, middle)
    return low


@pytest.mark.slow
def test_the_capacity_of_one_server_is_that_of_queueing_theory(make_scenario, service):
    """Service and a wait of 2.5 times that, for nine of ten: M/D/1 bears a load of 0.74."""
    found = []
    for seed in SEEDS:
        system = capacity(make_scenario(SLO(ttft=3.5 * service), seed=seed), requests=600).systems[
            "one"
        ]
        found.append(math.sqrt(system.best.load * system.above.load) * service)
        assert system.above.binds(0.9) == "ttft"
    assert abs(np.mean(found) - load_at(2.5, 0.9)) < 3 * np.std(found, ddof=1) / math.sqrt(
        len(found)
    )


def test_each_limit_can_bind(make_scenario, service):
    """A request of one token has its last with its first; of more, the last is later."""
    ttft, e2el = (
        capacity(make_scenario(SLO(**{limit: 3.5 * service})), requests=300).systems["one"]
        for limit in ("ttft", "e2el")
    )
    assert (ttft.best.load, ttft.above.binds(0.9)) == (e2el.best.load, "ttft")
    assert e2el.above.binds(0.9) == "e2el"
    talk = Poisson(rate=1.0, requests=100, prompt=PROMPT, output=Length(fixed=8))
    alone = make_scenario(SLO(tpot=1.0), talk)
    tpot = alone.unloaded(alone.deploy("one")).tpot
    assert (
        capacity(make_scenario(SLO(tpot=1.02 * tpot, ttft=1.0), talk), requests=300)
        .systems["one"]
        .above.binds(0.9)
        == "tpot"
    )


def test_at_what_is_found_enough_meet_it_and_a_tenth_above_not(make_scenario, service):
    scenario = make_scenario(SLO(ttft=3.5 * service))
    found = capacity(scenario).systems["one"]
    assert found.best.attainment >= 0.9 > found.above.attainment
    assert found.best.load < found.above.load <= BRACKET_RATIO * found.best.load
    again = capacity(scenario, attainment=found.best.attainment).systems["one"]
    assert again.best.load == found.best.load


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_run_at_the_rate_found_agrees(make_scenario, service, factor):
    """`request_goodput` over the rate is the attainment, except for the uncounted first tenth."""
    slo = SLO(ttft=3.5 * service)
    found = capacity(make_scenario(slo)).systems["one"]
    workload = poisson(found.requests).model_copy(update={"rate": factor * found.best.load})
    metrics = run(make_scenario(slo, workload)).systems["one"].metrics
    share = metrics.request_goodput / metrics.request_throughput
    assert abs(share - found.best.attainment) < 0.01 if factor == 1 else share < 0.89


def test_twice_the_replicas_take_twice_as_much_and_a_little_more(make_scenario, service):
    """With the shorter of two queues: more than twice one server, less than twice its maximum."""
    one, two = (
        capacity(make_scenario(SLO(ttft=3.5 * service), replicas=n)).as_json()["systems"]["one"]
        for n in (1, 2)
    )
    assert 2 * one["max_goodput_rate"] / BRACKET_RATIO < two["max_goodput_rate"] < 2 / service
    assert two["max_goodput_rate_per_chip"] == two["max_goodput_rate"] / 2


def test_a_tighter_limit_never_takes_more(make_scenario, service):
    found = [
        capacity(make_scenario(SLO(ttft=x * service)), requests=500).systems["one"].best.load
        for x in (8, 4, 2, 1.2)
    ]
    assert all(tighter <= looser * BRACKET_RATIO for looser, tighter in pairwise(found))
    assert found[-1] < found[0] / 2
    shares = [
        capacity(make_scenario(SLO(ttft=4 * service)), attainment=x, requests=500)
        .systems["one"]
        .best.load
        for x in (0.5, 0.9, 0.99)
    ]
    assert shares[0] > shares[1] > shares[2]


def test_a_limit_that_bears_any_wait_leaves_what_the_chip_can_serve(make_scenario, service):
    """Only what is served binds."""
    found = capacity(make_scenario(SLO(ttft=1e4 * service)), requests=2000).systems["one"]
    assert 0.97 / service < found.best.goodput < 1.001 / service
    assert found.best.load < 1.04 / service
    assert (found.above.keeps_up, found.above.binds(0.9)) == (False, "overload")


@pytest.mark.parametrize(
    ("slo", "answer", "requests", "options"),
    [
        (
            SLO(tpot=1.0),
            Length(fixed=200),
            500,
            {"max_sequences": 8},
        ),  # the others wait for ever, and no limit is missed for that
        (SLO(tpot=1.0), Length(uniform=(1, 100)), 2000, {}),
        (SLO(ttft=0.05, tpot=1.0), ANSWER, 1000, {}),  # one token has no TPOT
    ],
)
def test_no_more_is_reported_than_is_served(make_scenario, slo, answer, requests, options):
    """Also without a limit of waiting.  Just above, less is served than is offered."""
    workload = Poisson(rate=1.0, requests=100, prompt=PROMPT, output=answer)
    found = capacity(make_scenario(slo, workload, **options), requests=requests)
    told = found.as_json()["systems"]["one"]
    assert found.systems["one"].best.kept >= 0.97
    served = told["output_throughput"] / answer.mean
    assert (
        0.9 * served < told["max_goodput_rate"] < 1.001 * served * (1.02 if answer.uniform else 1)
    )  # lengths are drawn
    assert told["binds"] == "overload" or told["above"]["kept"] < 1


def test_the_reason_says_by_how_much_a_single_request_misses_a_limit(make_scenario, service):
    found = capacity(make_scenario(SLO(ttft=service / 2, e2el=10 * service))).as_json()["systems"][
        "one"
    ]
    assert (found["max_goodput_rate"], found["trials"], found["binds"]) == (0, 2, None)
    allowed = f"{1000 * (service / 2):g} ms allowed"
    assert found["reason"].startswith(
        "even alone, 0 % of the requests meet the SLO; expected 90 %: ttft is "
    )
    assert found["reason"].endswith(f", 2 times the {allowed}")


def test_refused_requests_meet_nothing(make_scenario):
    """Answers from 1 to 60 tokens, and room for 36: three in five never fit."""
    workload = Poisson(rate=1.0, requests=100, prompt=PROMPT, output=Length(uniform=(1, 60)))
    found = capacity(make_scenario(SLO(ttft=1e3), workload, kv_tokens=36)).systems["one"]
    assert found.best is None
    assert "refused, " in found.reason
    assert "exceed the KV room of 36" in found.reason
    most = capacity(
        make_scenario(SLO(ttft=1e3), workload, kv_tokens=36), attainment=0.25, requests=200
    ).systems["one"]
    assert most.best.missed["refused"] == pytest.approx(0.66, abs=0.1)


def test_users_of_a_closed_loop_are_counted(make_scenario, service):
    """With n users, an answer takes n service times, as all wait for all.  Seven fit in 7.5."""
    closed = ClosedLoop(users=1, requests=200, prompt=PROMPT, output=ANSWER)
    found = capacity(make_scenario(SLO(e2el=7.5 * service), closed), requests=200).as_json()[
        "systems"
    ]["one"]
    assert (found["max_goodput_users"], found["above"]["load"], found["binds"]) == (7, 8, "e2el")
    assert found["output_throughput"] == pytest.approx(1 / service, rel=0.01)


def test_users_that_only_wait_without_a_limit_of_waiting_are_reported(make_scenario):
    closed = ClosedLoop(users=1, requests=100, prompt=PROMPT, output=Length(fixed=2))
    found = capacity(make_scenario(SLO(tpot=1e3), closed, max_sequences=4), requests=100).systems[
        "one"
    ]
    assert (found.best.load, found.above) == (1024, None)
    assert "1,024 users are met too" in found.reason


def trace_of(folder: Path, arrivals: np.ndarray, longer: int = 0) -> Path:
    """Requests of 16 tokens with answers of 1 token, each `longer` by so much than the last one."""
    lines = [
        "arrived_at,num_prefill_tokens,num_decode_tokens",
        *(f"{at!r},16,{1 + longer * i}" for i, at in enumerate(arrivals.tolist())),
    ]
    (folder / "trace.csv").write_text("\n".join(lines) + "\n")
    return folder / "trace.csv"


def test_a_trace_is_stretched(make_scenario, service, tmp_path):
    """A recorded trace has the capacity of the same drawn requests, whatever its time_scale."""
    slo = SLO(ttft=3.5 * service)
    drawn = poisson(600).draw(0)
    path = trace_of(tmp_path, drawn.arrival)
    asked = capacity(make_scenario(slo), requests=600).systems["one"]
    for given in (1.0, 0.25):
        found = capacity(make_scenario(slo, Trace(path=path, time_scale=given))).systems["one"]
        assert found.requests == 600
        assert found.best.load == pytest.approx(
            asked.best.load, rel=0.05
        )  # the rate drawn is not quite the rate measured
        span = (drawn.arrival[-1] - drawn.arrival[0]) * found.time_scale
        assert 599 / span == pytest.approx(found.best.goodput)
    assert (
        capacity(make_scenario(slo, Trace(path=path)), requests=300).systems["one"].requests == 300
    )
    synthetic = capacity(make_scenario(slo, Trace(synthetic=poisson(600)))).systems["one"]
    assert synthetic.best.load == pytest.approx(asked.best.load, rel=0.05)


@pytest.mark.parametrize(
    ("longer", "told"), [(1, "can tell no rate"), (0, "request/s or more; at")]
)
def test_a_trace_that_is_too_short_says_what_it_can_tell(make_scenario, tmp_path, longer, told):
    """Eight answers that grow: the last one has more than 3 % of all tokens, at any rate."""
    path = trace_of(tmp_path, 1.0 + np.arange(8), longer)
    found = capacity(make_scenario(SLO(e2el=1e3), Trace(path=path))).systems["one"]
    assert found.above.binds(0.9) == "trace too short"
    assert found.above.kept < 0.97
    assert found.reason.startswith("got a trace of 8 requests, which can tell")
    assert told in found.reason
    assert (found.best is None) == bool(longer)
    assert found.trials < 20


@pytest.mark.parametrize(("together", "met"), [(10, True), (13, False)])
def test_the_first_tenth_is_not_counted(make_scenario, service, tmp_path, together, met):
    """Some of a hundred arrive together and miss the SLO at any rate; all must meet it."""
    path = trace_of(tmp_path, np.concatenate([np.zeros(together), 1.0 + np.arange(100 - together)]))
    found = capacity(
        make_scenario(SLO(ttft=2.5 * service), Trace(path=path)), attainment=1.0
    ).systems["one"]
    assert (found.best is not None) == met
    assert ("they come in bursts" in found.reason) != met


def test_tokens_that_a_deadline_takes_at_any_rate_are_the_reason(make_scenario, service):
    """Answers from 1 to 60 tokens, and time for 54: one in ten, with more tokens, is cancelled."""
    workload = Poisson(rate=1.0, requests=100, prompt=PROMPT, output=Length(uniform=(1, 60)))
    scenario = make_scenario(SLO(ttft=1e3 * service), workload)
    single = scenario.unloaded(scenario.deploy("one"))
    scenario = make_scenario(scenario.slo, workload, deadline=single.ttft + 53.5 * single.tpot)
    found = capacity(scenario, attainment=0.8, requests=500).systems["one"]
    assert found.best is None
    assert found.above.attainment == pytest.approx(0.9, abs=0.05)
    assert (
        f"only {100 * found.above.kept:.1f} % of the offered output tokens come out" in found.reason
    )
    assert (
        f"{100 * found.above.missed['refused']:.1f} % of the requests are refused" in found.reason
    )


def test_bursts_take_less(make_scenario, service):
    gamma = Gamma(rate=1.0, requests=100, prompt=PROMPT, output=ANSWER, burstiness=0.25)
    slo = SLO(ttft=3.5 * service)
    bursts, even = (
        capacity(make_scenario(slo, each), requests=1000).systems["one"].best.load
        for each in (gamma, poisson())
    )
    assert bursts < 0.8 * even


def test_joules_and_dollars_are_those_of_the_load_that_is_found(make_scenario, make_chip, service):
    """A chip of 2 W idle and $8,760 over four years: more tokens in the time cost less each."""
    memory = {"sram": Memory(capacity=1e6, bandwidth=1e9, energy=1e-9)}
    chip = make_chip(
        memory=memory, power=Power(maximum=20.0, idle=2.0, flop=3e-12, link=5e-9), price=8760.0
    )
    scenario = make_scenario(SLO(ttft=3.5 * service), chip=chip)
    found = capacity(scenario)
    told, rate = found.as_json()["systems"]["one"], found.systems["one"].best.load
    assert told["output_throughput"] == pytest.approx(rate, rel=0.02)  # one token each
    assert told["busy_share"] == pytest.approx(rate * service, rel=0.02)
    assert told["energy"]["joules_per_token_by_cause"]["idle"] == pytest.approx(
        2.0 / told["output_throughput"], rel=1e-6
    )
    assert told["energy"]["mean_power_w"] < 20.0 * told["energy"]["pue"]
    assert told["economics"]["usd_per_mtok_by_cause"]["chips"] == pytest.approx(
        1e6 * 2190 / YEAR / told["output_throughput"]
    )
    alone = make_scenario(
        SLO(ttft=3.5 * service), poisson().model_copy(update={"rate": 0.01 / service}), chip=chip
    )
    at_rest = run(alone).as_json()["systems"]["one"]
    assert set(at_rest["energy"]) == set(told["energy"])
    assert set(at_rest["economics"]) == set(told["economics"])
    assert at_rest["energy"]["joules_per_token"] > 20 * told["energy"]["joules_per_token"]
    assert at_rest["busy_share"] == pytest.approx(0.01, rel=0.3)


def test_a_closed_loop_of_many_users_keeps_a_chip_busy(make_scenario, service):
    closed = ClosedLoop(users=1, requests=100, prompt=PROMPT, output=ANSWER)
    told = capacity(make_scenario(SLO(e2el=7.5 * service), closed), requests=200).as_json()[
        "systems"
    ]["one"]
    assert told["busy_share"] == pytest.approx(1.0, abs=0.02)
    assert "energy" not in told  # this chip's power is not known


def test_the_same_seed_finds_the_same(make_scenario, service):
    found = [
        capacity(make_scenario(SLO(ttft=3.5 * service), seed=seed), requests=500).as_json()
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
def test_a_trial_is_long_enough_for_waits_and_for_what_the_system_holds(
    make_scenario, make_chip, service
):
    deadlines = SLO(ttft=3.5 * service)
    assert capacity(make_scenario(deadlines)).systems["one"].requests == 2000
    assert capacity(make_scenario(deadlines, poisson(2500))).systems["one"].requests == 2500
    long = capacity(make_scenario(SLO(ttft=60 * service))).systems["one"]
    assert long.requests >= 50 * 60 * service * long.best.load
    holds_many = make_scenario(
        deadlines, token_budget=256, kv_tokens=255 * 17, chip=make_chip(capacity=1e8)
    )
    assert capacity(holds_many).systems["one"].requests == 2550


ONE_BY_ONE = Listed(requests=(ListedRequest(arrival=0.0, prompt=16, output=1),))


@pytest.mark.parametrize(
    ("slo", "workload", "attainment", "message"),
    [
        (None, None, 0.9, "slo: got none; expected a limit to meet"),
        (SLO(), None, 0.9, "slo: got none; expected a limit to meet"),
        (
            SLO(ttft=1.0),
            ONE_BY_ONE,
            0.9,
            "workload: got listed; its requests are listed one by one",
        ),
        (SLO(ttft=1.0), None, 0.0, "attainment: got 0; expected a share above 0"),
        (SLO(ttft=1.0), None, 1.5, "attainment: got 1.5; expected a share above 0"),
        (SLO(ttft=1.0), None, math.nan, "attainment: got nan; expected a share above 0"),
    ],
)
def test_a_scenario_without_a_capacity_is_an_error(
    make_scenario, slo, workload, attainment, message
):
    with pytest.raises(UserError, match=message):
        capacity(make_scenario(slo, workload), attainment=attainment)


def test_a_trace_whose_requests_come_at_once_has_no_rate(make_scenario, tmp_path):
    path = trace_of(tmp_path, np.zeros(5))
    with pytest.raises(UserError, match="got a trace whose requests all arrive together"):
        capacity(make_scenario(SLO(ttft=1.0), Trace(path=path)))


def test_an_estimate_of_capacity_costs_what_the_search_finds():
    """J and $ of a token at the bound, over those of a simulated trial near it, for 576 LPUs."""
    systems = [
        "systems={lpu: {cluster: groq-576, engine: groq-compiler, plan: {tensor: 8, weights: int8}}}"
    ]
    scenario = sim.read("llama2-70b-lpu-vs-h100", systems)
    estimate = sim.run(scenario).summary.systems["lpu"].at_capacity
    series = TrialSeries(
        scenario, scenario.slo, "lpu", check(scenario)["lpu"], 0.9, None, lambda *_: None
    )
    trial = series.run_trial(0.98 * estimate.load)
    assert trial.attainment > 0.9
    costs, full = series.costs(trial), estimate.costs
    assert full.energy.joules_per_token == pytest.approx(costs.energy.joules_per_token, rel=0.03)
    assert full.economics.usd_per_mtok == pytest.approx(costs.economics.usd_per_mtok, rel=0.03)
    for cause in ("compute", "memory", "links"):
        assert full.energy.joules_per_token_by_cause[cause] == pytest.approx(
            costs.energy.joules_per_token_by_cause[cause], rel=0.03
        )
    assert estimate.output_throughput == pytest.approx(estimate.load * 128)


def test_an_estimate_of_capacity_knows_what_is_in_the_cache():
    """1,024 of 1,536 prompt tokens: the load and the work of a token are those of a trial near it."""
    scenario = sim.read("shared-prefix")
    name = "h100x8-cached"
    kept = {name: scenario.systems[name], "h100x8": scenario.systems["h100x8"]}
    scenario = scenario.model_copy(update={"systems": kept})
    summary = sim.run(scenario).summary.systems
    estimate, members = summary[name].at_capacity, check(scenario)[name]
    assert estimate.load == load_bound(scenario, members)
    assert estimate.load > 1.5 * summary["h100x8"].at_capacity.load
    series = TrialSeries(scenario, scenario.slo, name, members, 0.9, 600, lambda *_: None)
    costs = series.costs(series.run_trial(0.9 * estimate.load))
    assert estimate.costs.energy.joules_per_token_by_cause["compute"] == pytest.approx(
        costs.energy.joules_per_token_by_cause["compute"], rel=0.1
    )


@pytest.mark.parametrize("change", ["slo={ttft: 1 ms}", "slo={tpot: 1 us}", "slo={e2el: 10 ms}"])
def test_a_capacity_without_a_load_is_not_estimated(change):
    scenario = sim.read("llama2-70b-lpu-vs-h100", [change, "workload.requests=2"])
    assert sim.run(scenario).summary.systems["h100"].at_capacity is None


def test_a_capacity_meets_the_percentile_of_the_slo():
    slo = "slo={ttft: 1 s, percentile: 98}"
    scenario = sim.read("llama3-8b-lpu-vs-h100", [slo])
    scenario = scenario.model_copy(update={"systems": {"h100": scenario.systems["h100"]}})
    result = capacity(scenario, requests=100)
    assert result.attainment == 0.98
    assert result.systems["h100"].best.attainment >= 0.98
    assert capacity(scenario, 0.5, requests=100).attainment == 0.5


def test_the_capacity_is_the_same_for_any_number_of_processes(make_scenario, service):
    """Also the costs, which the processes compute, and the trials."""
    slo = SLO(ttft=3.5 * service)
    scenario = make_scenario(slo)
    both = {"two": make_scenario(slo, replicas=2).systems["one"], "one": scenario.systems["one"]}
    scenario = scenario.model_copy(update={"systems": both})
    alone, beside = (capacity(scenario, requests=300, jobs=jobs) for jobs in (1, 2))
    assert beside.as_json() == alone.as_json()
    assert list(beside.systems) == ["two", "one"]
    for name, system in alone.systems.items():
        assert beside.systems[name].series.tried == system.series.tried
        assert beside.systems[name].series is not system.series


def test_a_search_of_code_that_cannot_be_pickled_is_made_here(capsys):
    """A line on stderr says so, but not if one process was asked for."""
    reported = []
    found = results_of(lambda n: reported.append(n) or n + 1, {"b": 1, "a": 2}, jobs=2)
    assert (found, reported) == ({"b": 2, "a": 3}, [1, 2])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "jobs 2: one process does all work, since others cannot be sent a value: "
    )
    results_of(lambda n: n, {"b": 1, "a": 2}, jobs=1)
    assert not capsys.readouterr().err


def test_the_costs_of_the_best_trial_need_no_other_trial(make_scenario, service):
    found = capacity(make_scenario(SLO(ttft=3.5 * service)), requests=300).systems["one"]
    kept = found.costs
    found.series.last_met = None
    assert found.series.costs(found.best) == kept


def test_single_requests_of_many_lengths_are_tried_only_where_no_load_is_met(
    make_scenario, service, monkeypatch
):
    """They take longer than a trial. If a guess is a little too high, the next load is met."""
    made = []
    real = TrialSeries.unloaded_miss
    monkeypatch.setattr(
        TrialSeries, "unloaded_miss", lambda *of: made.append(of) or real(*of), raising=True
    )
    lengths = {"prompt": Length(uniform=(1, 16)), "output": Length(uniform=(1, 40))}
    workload = Poisson(rate=1.0, requests=200, **lengths)
    scenario = make_scenario(SLO(ttft=3 * service, tpot=1e3), workload)
    first = capacity(scenario, requests=200).systems["one"].best.load
    made.clear()
    high = capacity(scenario, requests=200, guess=Guess(1.2 * first)).systems["one"]
    assert high.series.tried[0].met(0.9) is False
    assert high.best.load == pytest.approx(first, rel=0.04)
    assert not made
    hopeless = scenario.model_copy(update={"slo": SLO(ttft=0.1 * service)})
    found = capacity(hopeless, requests=200, guess=Guess(first)).systems["one"]
    assert "even alone" in found.reason
    assert len(made) == 1


def test_a_closed_loop_has_ten_requests_of_each_user_whatever_the_system_holds(
    make_scenario, monkeypatch
):
    monkeypatch.setattr(TrialSeries, "max_concurrent", 1000)
    closed = ClosedLoop(users=1, requests=10, prompt=PROMPT, output=ANSWER)
    scenario = make_scenario(SLO(ttft=1.0), closed)
    series = TrialSeries(scenario, scenario.slo, "one", check(scenario)["one"], 0.9, None)
    assert [len(series.requests_at(users).prompt) for users in (1, 200, 300)] == [2000, 2000, 3000]


@pytest.mark.parametrize("system", ["lpu", "h100"])
def test_other_processes_can_get_a_system(system):
    # A search whose systems cannot be pickled would run in one process without a word.
    costs = sim.read("llama2-70b-lpu-vs-h100").deploy(system).costs
    assert pickle.loads(pickle.dumps(costs)).stages == costs.stages
