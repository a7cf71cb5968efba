"""Estimates of the users of closed loops, against the users that a search finds."""

import math

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import sim
from sim.cost.plan import Plan
from sim.scenario.layout import check
from sim.scenario.pools import Pools
from sim.scenario.scenario import Scenario
from sim.scenario.sources import as_scenario
from sim.scenario.system import System
from sim.serving.transfer import Transfer
from sim.studies.bound import load_bound, load_point
from sim.studies.capacity import capacity
from sim.studies.loop_users import served_users, waiting_users
from sim.studies.paces import loop_of
from sim.studies.pool_bound import pools_point
from sim.studies.trials import TrialSeries
from sim.studies.typical_request import equal_requests, typical_request
from sim.workload.arrivals import ClosedLoop, Poisson
from sim.workload.lengths import Length, Spread
from sim.workload.slo import SLO
from sim.workload.think import Think

REQUESTS = 400


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, lossy):
    """A small chip, alone or in two pools, and users that all send equal requests.

    spread: of lognormal lengths with the same means.
    """

    def make(
        slo, prompt=40, output=20, think=0.0, transfer=None, spread=0.0, **options
    ) -> Scenario:
        own = {"chip": make_chip(capacity=1e7), "chips": 1, "engine": lossy, "plan": Plan()}
        one = System(**(own | {"token_budget": 1024} | options))
        systems = {"one": one}
        if transfer:
            systems["pd"] = Pools(prefill="one", decode="one", transfer=transfer)
        lengths = {"prompt": Length(fixed=prompt), "output": Length(fixed=output)}
        if spread:
            lengths = {
                key: Length(lognormal=Spread(mean=length.fixed, sigma=spread))
                for key, length in lengths.items()
            }
        pause = Think(exponential=think) if spread and think else Think(fixed=think)
        workload = ClosedLoop(users=1, requests=REQUESTS, think=pause, **lengths)
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
        # One micro-batch does not fill four stages.
        (SLO(e2el=0.3), {"chips": 4, "plan": Plan(pipeline=4, slots=1)}),
    ],
)
def test_users_are_estimated_from_the_limits_that_bind(make_scenario, slo, changes):
    """Limits of E2EL alone and of TTFT alone, with pauses, long prompts, and few places."""
    scenario = make_scenario(slo, **changes)
    estimate = load_bound(scenario, check(scenario)["one"])
    found = capacity(scenario, requests=REQUESTS).systems["one"].best.load
    assert 0.6 * estimate <= found <= 1.3 * estimate + 1


def test_the_most_users_are_found_where_fewer_miss_the_slo(make_scenario):
    """On four replicas 8 and 12 users meet the SLO. 6 and 9 users miss it: numbers are unequal."""
    options = {"prompt": 4, "output": 40, "think": 0.02, "token_budget": 64, "chips": 4}
    scenario = make_scenario(SLO(ttft=0.001), plan=Plan(replicas=4), **options)
    found = capacity(scenario, requests=200).systems["one"]
    series = TrialSeries(scenario, scenario.slo, "one", found.members, 0.9, 200)
    met = [users for users in range(1, 33) if series.run_trial(users).met(0.9)]
    assert {8, 12} <= {*met}
    assert not {6, 9} & {*met}
    assert found.best.load == max(met) == found.above.load - 1
    assert "do not, so more may meet it, too" in found.reason


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


@pytest.mark.parametrize(
    ("slo", "changes"),
    [
        (SLO(e2el=0.06), {}),  # the equal requests have 2.2 times the users
        (SLO(e2el=0.06), {"think": 0.05}),
        (SLO(ttft=0.02), {"output": 100, "think": 0.5}),
        (SLO(ttft=0.05), {"kv_tokens": 400}),
        (SLO(ttft=0.1, tpot=0.003), {"output": 40, "think": 0.2}),
        (SLO(e2el=0.3), {"transfer": Transfer(bandwidth=5e5, latency=1e-4)}),
    ],
)
def test_users_whose_requests_differ_are_estimated_too(make_scenario, slo, changes):
    """Lengths of sigma 0.5, and exponential pauses."""
    scenario, pools = make_scenario(slo, spread=0.5, **changes), "transfer" in changes
    name = "pd" if pools else "one"
    members = check(scenario)[name]
    estimate = pools_point(scenario, members).load if pools else load_bound(scenario, members)
    found = capacity(scenario, requests=800).systems[name].best.load
    assert 0.8 * estimate - 1 <= found <= 1.2 * estimate + 1


def agents(slo: dict[str, str], think: str = "", systems: dict | None = None) -> Scenario:
    """Prompts of agents (a tenth have 17,200 tokens or more, twice the mean) to Llama-3.1-8B on H100."""
    workload = {"requests": 800, "lengths": "agent"} | (
        {"kind": "closed", "users": 1, "think": think} if think else RATE
    )
    content = {"model": "llama-3.1-8b", "workload": workload, "slo": slo}
    return as_scenario(content | {"systems": systems or {"one": H100}}, {})


RATE = {"kind": "poisson", "rate": "1 request/s"}
H100 = {
    "chip": "h100-sxm",
    "chips": 1,
    "engine": "vllm",
    "plan": {"weights": "fp8", "activations": "fp8", "kv": "fp16"},
}
POOLS = {"pd": {"prefill": H100, "decode": H100, "transfer": {"bandwidth": "50 GB/s"}}}


@pytest.mark.parametrize(
    ("slo", "think", "systems"),
    [
        ({"ttft": "2 s", "tpot": "50 ms"}, "", None),  # for mean requests: 2.0 times as many
        ({"ttft": "1 s", "tpot": "50 ms"}, "0 s", None),  # 2.0
        ({"ttft": "3 s", "tpot": "50 ms"}, "1 s", None),  # 2.3
        ({"ttft": "1 s", "tpot": "50 ms"}, "", POOLS),  # 4.0
    ],
)
def test_long_prompts_delay_others_in_estimates(slo, think, systems):
    """Prompts wait for longer ones, and answers are delayed by them."""
    scenario = agents(slo, think, systems)
    ((name, members),) = check(scenario).items()
    estimate = pools_point(scenario, members).load if systems else load_bound(scenario, members)
    found = capacity(scenario, requests=800).systems[name].best.load
    assert 0.7 * estimate <= found <= 1.4 * estimate


@pytest.mark.parametrize("systems", [None, POOLS])
def test_no_load_is_estimated_if_too_few_requests_meet_the_slo_alone(systems):
    """13 % of the prompts alone take longer than 0.4 s, though a mean one takes half of it."""
    scenario = agents({"ttft": "0.4 s"}, systems=systems)
    summary = next(iter(sim.run(scenario, workload__requests=50).summary.systems.values()))
    assert summary.at_capacity is None
    assert "about 87 % of the requests meet the SLO; expected 90 %" in summary.no_capacity
    met = sim.run(agents({"ttft": "0.6 s"}, systems=systems), workload__requests=50).summary
    assert all(of.at_capacity and not of.no_capacity for of in met.systems.values())


def test_steps_have_more_long_answers_than_short_ones(make_scenario):
    """The inspection paradox: E[O^2]/E[O] instead of E[O], which is exp(sigma^2) times as much."""
    scenario = make_scenario(SLO(ttft=1.0), prompt=1000, output=1000, spread=0.5)
    typical = typical_request(scenario)
    seen = 1000 * math.exp(0.5**2)
    assert typical.held == pytest.approx(1000 + seen, rel=0.03)
    assert typical.context == pytest.approx(1000 + seen / 2, rel=0.03)
    assert typical.late_output == pytest.approx(1000 * math.exp(1.2816 * 0.5 - 0.125), rel=0.05)
    assert typical_request(make_scenario(SLO(ttft=1.0))) == equal_requests(40, 20)


@pytest.mark.parametrize(("most", "pausing"), [(10, 30), (30, 30), (60, 5), (20, 200)])
def test_a_share_of_the_answers_has_no_more_users_beside_it(most, pausing):
    """Users that pause and are served in turn, each for an exponential time: means over answers."""
    users = round(most + pausing)
    service, step = 1.0, 0.02
    random = np.random.default_rng(0)
    ends_answer, ends_pause = 1 - np.exp(-step / np.array([service, service * pausing / most]))
    serving = random.random(users) < most / users
    counts = []
    for _ in range(40_000):
        counts.append(serving.sum())
        changes = random.random(users) < np.where(serving, ends_answer, ends_pause)
        serving ^= changes
    answers = sliding_window_view(counts, round(service / step)).mean(axis=1)
    late = float(np.quantile(answers, 0.9))
    assert served_users(late, late * pausing / most, 0.9) == pytest.approx(most, rel=0.03)
    assert served_users(most, pausing, 0.5) == pytest.approx(most)
    assert served_users(most, 0.0, 0.9) == most


@pytest.mark.parametrize("most", [5, 50, 500])
def test_users_that_wait_are_a_poisson_number(most):
    """With this mean, at most `most` users wait for 90 % of the time."""
    mean = waiting_users(most, 0.9)
    within = sum(math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(most + 1))
    assert within == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    ("beat", "changes"),
    [
        (2, {}),
        (3, {}),
        (2, {"prompt": 1}),
        (None, {"prompt": 400, "output": 2, "token_budget": 64}),  # a prompt takes seven steps
        (None, {"micro_batch": 2}),
        (3, {"micro_batch": 1}),  # the other two tokens are of prompts
        (2, {"max_sequences": 3, "prompt": 1}),  # too few for the stages
        (1, {"max_sequences": 2, "prompt": 10}),  # the other stages compute prompts
        (3, {"max_sequences": 7, "prompt": 1}),  # 1.75 for each of four micro-batches
    ],
)
def test_as_many_requests_a_second_are_estimated_as_full_steps_serve(
    make_scenario, lossy, beat, changes, closed
):
    """A sequence and its prompt need 2.05 tokens a step, and yet steps of two or three tokens are full."""
    engine = lossy.model_copy(update={"tokens_per_beat": beat})
    if beat:
        changes = changes | {"chips": 4, "plan": Plan(pipeline=4), "token_budget": None}
    scenario = make_scenario(SLO(ttft=1e3), **{"output": 40, "engine": engine} | changes)
    workload = scenario.workload.model_copy(update={"users": 60})
    if not closed:
        lengths = {key: getattr(workload, key) for key in ("prompt", "output")}
        workload = Poisson(rate=1e5, requests=REQUESTS, **lengths)
    scenario = scenario.model_copy(update={"workload": workload})
    request = equal_requests(scenario.workload.prompt.mean, scenario.workload.output.mean)
    point = load_point(scenario.deploy("one"), request, scenario.slo, loop_of(scenario.workload))
    served = sim.run(scenario).summary.systems["one"].metrics.request_throughput
    assert 0.93 * point.rate <= served <= 1.06 * point.rate


@pytest.mark.parametrize("most", [1, 6])
def test_few_sequences_of_a_decode_pool_take_turns_on_its_stages(make_scenario, make_chip, most):
    """One sequence waits for a pass of four stages. Of six, two stages have two."""
    decode = System(
        chip=make_chip(capacity=1e7),
        chips=4,
        engine=make_scenario(SLO()).systems["one"].engine,
        plan=Plan(pipeline=4),
        max_sequences=most,
    )
    scenario = make_scenario(SLO(ttft=1e3), prompt=4, output=60)
    transfer = Transfer(bandwidth=1e9)
    pools = Pools(prefill="one", decode="few", transfer=transfer)
    systems = scenario.systems | {"few": decode, "pd": pools}
    lengths = {key: getattr(scenario.workload, key) for key in ("prompt", "output")}
    workload = Poisson(rate=1e5, requests=200, **lengths)
    scenario = scenario.model_copy(update={"systems": systems, "workload": workload})
    rate = pools_point(scenario, check(scenario)["pd"]).rate
    served = sim.run(scenario).summary.systems["pd"].metrics.request_throughput
    assert served == pytest.approx(rate, rel=0.04)


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
    point = load_point(
        scenario.deploy("one"), equal_requests(40, 20), scenario.slo, loop_of(scenario.workload)
    )
    assert point.endless
    assert sim.run(scenario).summary.systems["one"].at_capacity is None
    assert "no more were tried" in capacity(scenario, requests=100).systems["one"].reason
    bounded = make_scenario(SLO(tpot=0.1, ttft=0.1), kv_tokens=400)
    assert sim.run(bounded).summary.systems["one"].at_capacity is not None
