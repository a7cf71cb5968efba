"""Replicas of different kinds in one system: nothing is lost, leaps are their steps, copies are replicas, results tell of each."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.cost.plan import Plan, PlanError
from sim.cost.work import Work
from sim.scenario.scenario import Scenario
from sim.scenario.system import Fleet, System
from sim.serving.policy import BATCHINGS, ORDERS, ROUTERS, Policies, least_loaded, ring, round_robin
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.service import serve, serve_fleet
from sim.studies.capacity import capacity
from sim.workload.arrivals import ClosedLoop, Listed, ListedRequest, Poisson
from sim.workload.lengths import Length
from sim.workload.requests import RequestBatch
from sim.workload.slo import SLO

KINDS = {"quick": (1, Plan(), 1e9), "slow": (1, Plan(), 1e8), "piped": (3, Plan(pipeline=3), 1e9)}
policies = st.builds(
    Policies,
    batching=st.sampled_from([policy for policy in BATCHINGS.values() if policy is not ring]),
    order=st.sampled_from(list(ORDERS.values())),
    reserve=st.booleans(),
    max_waiting=st.sampled_from([None, None, 0, 3]),
    deadline=st.sampled_from([None, None, 0.02]),
)


@pytest.fixture(scope="module")
def deployments(make_deployment, make_chip, lossy):
    return {
        name: make_deployment(chips, plan=plan, chip=make_chip(bandwidth=bandwidth), engine=lossy)
        for name, (chips, plan, bandwidth) in KINDS.items()
    }


@st.composite
def fleets(draw):
    """For each replica: its kind, its KV room and sequences, its policies, its overhead."""
    replica = st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.integers(20, 300),
        st.integers(1, 8),
        policies,
        st.sampled_from([0.0, 0.0, 1e-3, 2e-3]),
    )
    return draw(st.lists(replica, min_size=1, max_size=4))


@st.composite
def requests(draw):
    n = draw(st.integers(1, 25))
    prompts, outputs = (
        np.array(draw(st.lists(st.integers(1, most), min_size=n, max_size=n))) for most in (60, 30)
    )
    if users := draw(st.none() | st.integers(1, 5)):
        return RequestBatch(np.full(n, np.nan), prompts, outputs, users)
    gaps = draw(st.lists(st.floats(0, 0.003, allow_subnormal=False), min_size=n, max_size=n))
    return RequestBatch(np.cumsum(gaps), prompts, outputs)


def setups(deployments, drawn):
    made = []
    for kind, kv_tokens, sequences, policy, overhead in drawn:
        deployment = deployments[kind]
        limits = replace(deployment.limits, kv_tokens=kv_tokens, sequences=sequences)
        made.append(ReplicaConfig(deployment.costs, limits, policy, overhead, system=kind))
    return made


@settings(max_examples=60)
@given(fleets(), requests(), st.sampled_from(list(ROUTERS.values())))
def test_every_request_ends_once_and_leaps_are_their_steps(deployments, drawn, asked, router):
    """On its replica it comes after that one's overhead and holds no more than that one has; the rows are those step by step."""
    made = setups(deployments, drawn)
    rows, steps = (serve_fleet(asked, made, router, leap=leap) for leap in (True, False))
    for i, reason in enumerate(rows.reason):
        assert np.isfinite(rows.last_token[i]) == (not reason)
        if not reason:
            overhead = made[rows.replica[i]].overhead
            assert rows.arrival[i] + overhead <= rows.admitted[i] * (1 + 1e-12) + 1e-15
            assert rows.admitted[i] < rows.first_token[i] <= rows.last_token[i]
    assert all(peak <= room for peak, room in zip(rows.kv_peak, rows.kv_tokens, strict=True))
    assert rows.kv_tokens == [each.limits.kv_tokens for each in made]
    assert rows.systems == [each.system for each in made]
    assert (rows.replica == steps.replica).all()
    assert (rows.reason, rows.kv_peak) == (steps.reason, steps.kv_peak)
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(rows, column) == pytest.approx(
            getattr(steps, column), rel=1e-12, abs=1e-15, nan_ok=True
        )
    assert rows.gaps.bins == steps.gaps.bins
    for one, other in zip(rows.busy, steps.busy, strict=True):
        assert one == pytest.approx(other, rel=1e-11)


@pytest.mark.parametrize(("users", "most"), [(None, None), (12, None), (None, 6)])
def test_a_pipeline_leaps_beyond_the_returns_of_others_only_where_these_change_nothing(
    deployments, users, most
):
    """An answer at one replica sends a user's next request to the other one.

    So it does with a request that waits because `most` are in flight.
    """
    made = setups(deployments, [("piped", 4000, 32, Policies(), 0.0)] * 2)
    n, stream = 120, np.random.default_rng(0)
    prompt, output = stream.integers(1, 60, n), stream.integers(1, 40, n)
    arrival = np.full(n, np.nan) if users else np.cumsum(stream.exponential(2e-4, n))
    asked = RequestBatch(arrival, prompt, output, users, most_in_flight=most)
    rows, steps = (serve_fleet(asked, made, round_robin, leap=leap) for leap in (True, False))
    assert (rows.replica == steps.replica).all()
    for column in ("admitted", "first_token", "last_token"):
        assert getattr(rows, column) == pytest.approx(getattr(steps, column), rel=1e-12)


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, make_engine):
    """A quick and a slow system of small chips and what a test adds; a quarter of the quick one's KV room in the slow one."""

    def make(systems=None, workload=None, **options) -> Scenario:
        parts = {"engine": make_engine(), "token_budget": 16, "max_sequences": 8}
        plain = {
            "quick": System(chip=make_chip(), chips=1, kv_tokens=400, **parts),
            "slow": System(chip=make_chip(bandwidth=1e8), chips=1, kv_tokens=100, **parts),
        }
        lengths = {"prompt": Length(uniform=(1, 40)), "output": Length(uniform=(2, 12))}
        workload = workload or Poisson(rate=2000.0, requests=60, **lengths)
        return Scenario(
            model=make_model(), workload=workload, systems=plain | (systems or {}), **options
        )

    return make


@pytest.mark.parametrize("router", [least_loaded, round_robin])
@pytest.mark.parametrize("chips", [{}, {"fidelity": "chip", "jitter": 0.3}])
def test_copies_of_a_system_are_its_replicas(make_scenario, make_chip, make_engine, router, chips):
    """Bit for bit, at chip fidelity with what is drawn for each."""

    def one(replicas):
        parts = {
            "chips": 2 * replicas,
            "plan": Plan(tensor=2, replicas=replicas),
            "token_budget": 16,
            "kv_tokens": 200,
        }
        return System(chip=make_chip(), engine=make_engine(), router=router, **parts, **chips)

    together = sim.run(
        make_scenario({"one": one(1), "three": Fleet(fleet={"one": 3}, router=router)})
    ).systems["three"]
    apart = sim.run(make_scenario({"one": one(3)})).systems["one"]
    assert together.rows.table("x").equals(apart.rows.table("x"))
    assert all((a == b).all() for a, b in zip(together.rows.busy, apart.rows.busy, strict=True))
    assert together.metrics == replace(apart.metrics, fitted_share=None)


def test_each_copy_draws_for_itself(make_scenario, make_chip, make_engine):
    """Three users who ask alike, each on a copy of its own, meet three jitters."""
    parts = {"fidelity": "chip", "jitter": 0.3, "token_budget": 16}
    one = System(chip=make_chip(), chips=1, engine=make_engine(), **parts)
    alike = ClosedLoop(users=3, requests=3, prompt=Length(fixed=9), output=Length(fixed=3))
    rows = (
        sim.run(make_scenario({"one": one, "three": Fleet(fleet={"one": 3})}, alike))
        .systems["three"]
        .rows
    )
    assert rows.replica.tolist() == [0, 1, 2]
    assert len(set(rows.first_token)) == 3


def test_of_many_at_once_each_replica_gets_what_it_holds(deployments):
    """Room for 7 sequences and for 2: of 9 requests that come at once, the first gets 7; of 18, 14."""
    one = deployments["quick"]
    made = [
        ReplicaConfig(one.costs, replace(one.limits, kv_tokens=52 * held + 1, sequences=8))
        for held in (7, 2)
    ]
    assert [each.limits.max_concurrent(52) for each in made] == [7, 2]
    for times in (1, 2):
        n = 9 * times
        rows = serve_fleet(
            RequestBatch(np.zeros(n), np.full(n, 40), np.full(n, 12)), made, least_loaded
        )
        assert np.bincount(rows.replica).tolist() == [7 * times, 2 * times]


def test_a_request_goes_where_it_fits(make_scenario):
    """150 tokens are more than the slow replica ever has; a router that does not look at that has them refused."""
    workload = Listed(
        requests=tuple(ListedRequest(arrival=0.001 * i, prompt=140, output=10) for i in range(6))
    )
    fleets = {
        name: Fleet(fleet={"slow": 1, "quick": 1}, router=router)
        for name, router in (("looks", least_loaded), ("turns", round_robin))
    }
    result = sim.run(make_scenario(fleets, workload))
    assert result.systems["looks"].rows.replica.tolist() == [1] * 6
    assert result.systems["turns"].rows.replica.tolist() == [-1, 1] * 3
    table = result.systems["turns"].rows.table("turns")
    assert table["member"].to_list() == ["", "quick"] * 3
    assert table["reason"][0] == "150 tokens exceed the KV room of 100"


def test_what_is_on_its_way_counts_as_dealt(deployments):
    """Two at once: the second goes to the other replica, although the first has not come through its replica's overhead yet."""
    one = deployments["quick"]
    far, near = (
        ReplicaConfig(one.costs, one.limits, overhead=overhead) for overhead in (1e-3, 0.0)
    )
    asked = RequestBatch(np.zeros(2), np.array([5, 5]), np.array([3, 3]))
    rows = serve_fleet(asked, [far, near], least_loaded)
    assert rows.replica.tolist() == [0, 1]
    alone = serve(RequestBatch(np.zeros(1), np.array([5]), np.array([3])), one.costs, one.limits)
    assert rows.first_token - alone.first_token[0] == pytest.approx([1e-3, 0.0])


def test_the_result_tells_of_each_member(make_scenario):
    scenario = make_scenario({"both": Fleet(fleet={"quick": 2, "slow": 1})}, slo=SLO(ttft=0.01))
    result = sim.run(scenario)
    told = result.as_json()["systems"]["both"]
    table = result.systems["both"].rows.table("both")
    quick, slow = told["members"]["quick"], told["members"]["slow"]
    assert (told["chips"], quick["copies"], slow["copies"]) == (3, 2, 1)
    assert (quick["replicas"], slow["replicas"]) == ([0, 1], [2])
    assert quick["completed"] + slow["completed"] == told["completed"] == 60
    assert quick["total_output_tokens"] + slow["total_output_tokens"] == told["total_output_tokens"]
    for name, member in told["members"].items():
        rows = table.filter(table["member"] == name)
        assert len(rows) == member["completed"] > 0
        assert member["median_ttft_ms"] == pytest.approx(
            1000 * (rows["first_token"] - rows["arrival"]).median()
        )
        assert member["lone_request"] == result.as_json()["systems"][name]["lone_request"]
    assert slow["median_tpot_ms"] > told["median_tpot_ms"] > 0


def test_chips_of_one_member_may_be_processes(make_scenario, make_chip, make_engine):
    parts = {"engine": make_engine(), "token_budget": 16, "plan": Plan(tensor=2)}
    chips = System(chip=make_chip(), chips=2, fidelity="chip", **parts)
    result = sim.run(make_scenario({"chips": chips, "both": Fleet(fleet={"quick": 1, "chips": 1})}))
    assert list(result.systems["both"].rows.traffic) == [1]
    told = result.as_json()["systems"]["both"]
    assert [told["fidelity"], *(member["fidelity"] for member in told["members"].values())] == [
        "chip",
        "stage",
        "chip",
    ]
    assert told["network"]["messages"] > 0


def test_the_capacity_of_copies_is_that_of_replicas(make_scenario):
    one = make_scenario().systems["quick"]
    two = one.model_copy(update={"chips": 2, "plan": Plan(replicas=2)})
    systems = {"two": two, "copies": Fleet(fleet={"quick": 2})}
    workload = Poisson(rate=1.0, requests=100, prompt=Length(fixed=16), output=Length(fixed=4))
    found = capacity(make_scenario(systems, workload, slo=SLO(ttft=0.005)), requests=300)
    assert found.systems["two"].best.load == pytest.approx(found.systems["copies"].best.load)
    told = found.as_json()["systems"]
    assert told["two"]["max_goodput_rate_per_chip"] == pytest.approx(
        told["copies"]["max_goodput_rate_per_chip"]
    )


def test_the_members_of_a_fleet_serve_one_model(make_scenario, make_model):
    slow = (
        make_scenario()
        .systems["slow"]
        .model_copy(update={"model": make_model(num_hidden_layers=2)})
    )
    scenario = make_scenario({"slow": slow, "both": Fleet(fleet={"quick": 1, "slow": 1})})
    for ask in (sim.run, sim.check, sim.plan):
        with pytest.raises(
            PlanError,
            match=r"systems\.both: got in-place for quick and in-place for slow; expected one model for all members",
        ):
            ask(scenario)


@pytest.mark.parametrize("leap", [True, False])
def test_each_member_cancels_at_its_own_deadline(deployments, leap):
    """Equal requests, in turn to replicas of three deadlines; each needs more than 0.1 s.

    A deadline counts from when the user sent the request, 4 ms before the scheduler sees it.
    """
    one, deadlines = deployments["quick"], (0.02, 0.05, None)
    limits = replace(one.limits, kv_tokens=1000)
    made = [
        ReplicaConfig(one.costs, limits, Policies(deadline=deadline), 0.004, system=str(deadline))
        for deadline in deadlines
    ]
    arrival = np.repeat([0.0, 0.001], 3)
    asked = RequestBatch(arrival, np.full(6, 5), np.full(6, 300))
    rows = serve_fleet(asked, made, round_robin, leap=leap)
    assert rows.cancelled.tolist() == [True, True, False] * 2
    step = one.costs.step(Work(2, 600, logits=2)).time.sum()
    for number in (0, 1, 3, 4):
        deadline = deadlines[number % 3]
        assert rows.reason[number] == f"not finished {deadline:g} s after it was sent"
        waited = rows.ended[number] - rows.arrival[number]
        assert deadline <= waited <= deadline + 1.01 * step
    assert rows.last_token[[2, 5]].min() > 0.1


def test_while_no_member_is_up_the_longest_deadline_counts(deployments):
    """A request that is held may still go to the replica with the most patience."""
    one, down = deployments["quick"], Outage(at=0.0, lasts=1.0)
    made = [
        ReplicaConfig(
            one.costs,
            one.limits,
            Policies(deadline=deadline),
            system=str(deadline),
            outages=(down,),
        )
        for deadline in (0.02, 0.05)
    ]
    asked = RequestBatch(np.array([0.001, 0.96]), np.full(2, 5), np.full(2, 1))
    rows = serve_fleet(asked, made, least_loaded)
    assert rows.cancelled.tolist() == [True, True]
    assert rows.ended[0] == pytest.approx(0.051)
    assert rows.ended[1] == pytest.approx(1.0)  # back up, it goes to the member with 20 ms
