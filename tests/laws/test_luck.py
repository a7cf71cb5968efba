"""Equal systems meet equal luck, whatever their names, and a request is the same in every system."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.cost.plan import Plan
from sim.hardware.chip import Chip
from sim.reliability.failures import Faults
from sim.reliability.link_errors import LinkErrors
from sim.scenario.layout import check
from sim.scenario.replicas import serve_requests
from sim.scenario.scenario import Scenario
from sim.scenario.system import Fleet, System
from sim.serving.policy import round_robin
from sim.workload.arrivals import ClosedLoop, Poisson
from sim.workload.lengths import Length
from sim.workload.request_kinds import RequestKind
from sim.workload.sessions import Sessions, Turns
from sim.workload.slo import SLO
from sim.workload.think import Pauses, Think

LENGTHS = {"prompt": Length(uniform=(1, 40)), "output": Length(uniform=(2, 12))}
WORKLOADS = {
    "open": Poisson(rate=2000.0, requests=20, **LENGTHS),
    "closed": ClosedLoop(users=3, requests=20, think=1e-4, **LENGTHS),
    "thinking": ClosedLoop(users=3, requests=20, think=Think(exponential=1e-4), **LENGTHS),
    "kinds": Poisson(
        rate=2000.0,
        requests=20,
        max_concurrent=4,
        kinds={name: RequestKind(share=0.5, **LENGTHS) for name in ("one", "other")},
    ),
    "sessions": Sessions(
        sessions=6,
        rate=2000.0,
        turns=Turns(uniform=(1, 4)),
        think=Think(lognormal=Pauses(mean=1e-3, sigma=0.5)),
        **LENGTHS,
    ),
}
LUCK = {
    "none": {},
    "sampled experts": {"routing": "sampled"},
    "jitter": {"fidelity": "chip", "jitter": 0.3},
    "sampled experts by chip": {"routing": "sampled", "fidelity": "chip"},
    "link errors": {"link_errors": LinkErrors(bit_error_rate=1e-6)},
}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def make_scenario(make_model, make_chip, make_engine):
    """Systems of a model with experts, each of two chips a replica, and what a test changes."""
    chip: Chip = make_chip(capacity=1e8)

    def make(workload="open", fleets=None, **systems) -> Scenario:
        parts = {"chip": chip, "engine": make_engine(), "token_budget": 16, "router": round_robin}
        plain = {
            name: System(
                **parts
                | {"chips": 2 * options.get("replicas", 1)}
                | {"plan": Plan(tensor=2, expert=2, replicas=options.pop("replicas", 1))}
                | options
            )
            for name, options in systems.items()
        }
        return Scenario(
            model=make_model(**EXPERTS),
            workload=WORKLOADS[workload],
            systems=plain | (fleets or {}),
        )

    return make


@pytest.mark.parametrize("workload", list(WORKLOADS))
@pytest.mark.parametrize("luck", list(LUCK))
def test_systems_that_differ_in_name_only_have_equal_rows(make_scenario, luck, workload):
    scenario = make_scenario(workload, a=dict(LUCK[luck]), another=dict(LUCK[luck]))
    one, other = sim.run(scenario).systems.values()
    assert one.rows.table("x").drop("member").equals(other.rows.table("x").drop("member"))
    assert one.metrics == other.metrics
    assert one.unloaded["a"].tpot == other.unloaded["another"].tpot


@pytest.mark.parametrize("luck", list(LUCK))
def test_a_fleet_of_systems_that_differ_in_name_only_is_one_system(make_scenario, luck):
    """Streams are numbered through the whole fleet, so no two of its replicas share their luck."""
    options = LUCK[luck]
    apart = Fleet(fleet={"a": 2, "another": 1}, router=round_robin)
    fleet = sim.run(make_scenario(fleets={"apart": apart}, a=dict(options), another=dict(options)))
    together = sim.run(make_scenario(a={"replicas": 3, **options}))
    rows = fleet.systems["apart"].rows.table("x").drop("member")
    assert rows.equals(together.systems["a"].rows.table("x").drop("member"))


@pytest.mark.parametrize("luck", [name for name in LUCK if name != "none"])
def test_each_replica_of_a_fleet_has_luck_of_its_own(make_scenario, luck):
    """Three replicas that get the same request at the same instant answer at three instants."""
    options = LUCK[luck]
    alike = {"prompt": Length(fixed=30), "output": Length(fixed=40)}
    fleet = Fleet(fleet={"a": 2, "another": 1}, router=round_robin)
    scenario = make_scenario(fleets={"fleet": fleet}, a=dict(options), another=dict(options))
    workload = ClosedLoop(users=3, requests=3, **alike)
    rows = sim.run(scenario.model_copy(update={"workload": workload})).systems["fleet"].rows
    assert rows.replica.tolist() == [0, 1, 2]
    assert len(set(rows.last_token)) == 3


@pytest.mark.parametrize("luck", list(LUCK))
def test_a_run_does_not_depend_on_the_runs_before_it(make_scenario, luck):
    """The trials of a search have equal luck, in whatever order they are made."""
    scenario = make_scenario(a=dict(LUCK[luck]))
    members, requests = check(scenario)["a"], scenario.workload.draw(scenario.seed)
    first, second = (serve_requests(scenario, "a", members, requests) for _ in range(2))
    assert first.table("x").equals(second.table("x"))


def test_a_result_is_told_twice_alike(make_scenario):
    """Estimates without a load, such as the bound of the capacity, have expected loads of experts."""
    plain, drawn = LUCK["none"], LUCK["sampled experts"]
    scenario = make_scenario(plain=dict(plain), drawn=dict(drawn))
    scenario = scenario.model_copy(update={"slo": SLO(ttft=0.5, tpot=0.05)})
    result = sim.run(scenario)
    told = result.as_json()
    assert told == result.as_json()
    one, other = (told["systems"][name]["at_capacity"] for name in ("plain", "drawn"))
    assert one == other
    assert result.systems["plain"].metrics != result.systems["drawn"].metrics


def test_availability_does_not_depend_on_the_name(make_scenario):
    faults = Faults.model_validate(
        {
            "chip": {"rate": "1e-3 failure/h"},
            "chips_per_node": 1,
            "repair": "24 h",
            "detection": "10 min",
            "spares": 1,
            "samples": 3,
            "horizon": "2000 h",
        }
    )
    result = sim.run(make_scenario(a={"faults": faults}, another={"faults": faults}))
    one, other = (system.metrics.availability for system in result.systems.values())
    assert one.availability == other.availability
    assert one.ci95_availability == other.ci95_availability > 0


# Requests.


@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=20),
    st.sampled_from([0.0, 1e-4, 1e-2]),
    st.sampled_from([{}, {"kv_tokens": 40}, {"max_sequences": 1}]),
)
def test_a_user_sends_its_own_requests_in_order(
    make_deployment, serve_on, users, sizes, think, slow
):
    """Request i + users follows request i, however fast the system; so both have the same lengths.

    Until a user has sent all of its own: then it sends those of others.
    """
    deployment = make_deployment(**slow)
    requests = [(0.0, prompt, output) for prompt, output in sizes]
    rows = serve_on(deployment, requests, users, think=think)
    n, own = len(requests), range(users, len(requests))
    last_own = [max(range(user, n, users)) for user in range(min(users, n))]
    first_done = min(rows.ended[number] for number in last_own) + think
    for number in own:
        expected = rows.ended[number - users] + think
        if min(expected, rows.arrival[number]) < first_done:
            assert rows.arrival[number] == expected
    assert (rows.arrival[:users] == 0).all()


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_a_faster_system_gets_the_same_requests(make_scenario, make_chip, workload):
    """Row i has the same lengths and the same pause before it in both, whenever it is sent."""
    slow = make_chip(capacity=1e8, bandwidth=1e8)
    result = sim.run(make_scenario(workload, fast={}, slow={"chip": slow}))
    fast, slow = (system.rows for system in result.systems.values())
    assert fast.last_token.max() < slow.last_token.max()
    assert (fast.requests.prompt == slow.requests.prompt).all()
    assert (fast.requests.output == slow.requests.output).all()
    if workload in (
        "closed",
        "thinking",
    ):  # the first rounds, in which no user has sent all of its own
        pauses = [rows.arrival[3:12] - rows.ended[:9] for rows in (fast, slow)]
    elif workload == "sessions":
        before = fast.requests.after
        turns = np.flatnonzero(before >= 0)
        pauses = [rows.arrival[turns] - rows.ended[before[turns]] for rows in (fast, slow)]
        assert len(set(pauses[0])) > 1
    elif workload == "kinds":  # a request waits until fewer are in flight
        pauses = [rows.requests.arrival for rows in (fast, slow)]
    else:
        pauses = [rows.arrival for rows in (fast, slow)]
    assert pauses[0] == pytest.approx(pauses[1], abs=1e-12)


def test_no_user_waits_while_requests_are_unsent(make_deployment, serve_on):
    """User 0 has long answers, user 1 short ones: user 1 sends the last request of user 0."""
    requests = [(0.0, 1, output) for output in (60, 2, 3, 2, 5, 2)]
    rows = serve_on(make_deployment(), requests, 2)
    sent = np.argsort(rows.arrival, kind="stable").tolist()
    assert sent == [0, 1, 3, 5, 2, 4]
    assert all(rows.arrival[b] == rows.ended[a] for a, b in pairwise([1, 3, 5, 2, 4]))
    assert rows.ended[4] < rows.ended[0]
