"""Power and time of whole scenarios: no more than the chips may draw, and no stage busier than the time that passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.energy import Tally
from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.economics.owner_costs import Economics
from sim.hardware.chip import Memory
from sim.hardware.power import Power, Server
from sim.results.metrics import Measure
from sim.results.summary import TokenCosts
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.fleet import Mark, between
from sim.serving.policy import Policies
from sim.serving.replica_config import Outage
from sim.serving.service import serve
from sim.studies.run import run
from sim.workload.arrivals import Listed, ListedRequest
from sim.workload.requests import RequestBatch

BUDGET, PUE = 16, 1.2
# At full load: 2 W idle, 3 W of computing, 1 W of reading, 5 W for each of the links to the other chips of a stage and onwards.
POWERED = {
    "memory": {"sram": Memory(capacity=1e6, bandwidth=1e9, energy=1e-9)},
    "power": Power(maximum=21.0, idle=2.0, flop=3e-12, link=5e-9),
    "server": Server(chips=4, power=8.0, price=0.0),
}
MOST = POWERED["power"].maximum + POWERED["server"].power / POWERED["server"].chips

moments = st.one_of(
    st.floats(0, 0.05), st.integers(0, 5).map(lambda n: n / 100)
)  # some at the same instant
asked = st.builds(
    ListedRequest, arrival=moments, prompt=st.integers(1, 60), output=st.integers(1, 30)
)
outage = st.builds(
    Outage, at=moments, lasts=st.floats(0.001, 0.05), requests=st.sampled_from(["retry", "fail"])
)
options = st.fixed_dictionaries(
    {
        "plan": st.sampled_from(
            [Plan(), Plan(pipeline=3), Plan(tensor=2, pipeline=2), Plan(replicas=2)]
        ),
        "admission": st.sampled_from(["reserve", "prompt"]),
        "kv_tokens": st.sampled_from([90, 300]),
        "deadline": st.sampled_from([None, 0.005, 0.02]),
        "max_waiting": st.sampled_from([None, 0, 3]),
    }
)


@pytest.fixture(scope="module")
def served(make_model, make_chip, make_engine):
    """A drawn scenario, and what it did."""

    def call(sent, options, outages=(), measure=None):
        plan = options["plan"]
        chips = plan.tensor * (plan.pipeline or 1) * plan.replicas
        system = System(
            chip=make_chip(**POWERED),
            chips=chips,
            engine=make_engine(),
            token_budget=BUDGET,
            outages=outages,
            **options,
        )
        scenario = Scenario(
            model=make_model(),
            workload=Listed(requests=tuple(sent)),
            measure=measure,
            economics=Economics(pue=PUE),
            systems={"one": system},
        )
        return run(scenario).systems["one"]

    return call


def longest_step(result):
    (member,) = result.members.values()
    work = Work(prompt_tokens=BUDGET, chunks=1, attended=60 * BUDGET, cached=100, logits=1)
    return float(member.deployment.costs.step(work).time.sum())


@settings(max_examples=60)
@given(
    st.lists(asked, min_size=1, max_size=20),
    options,
    st.lists(outage, max_size=1),
    st.booleans(),
    st.floats(1e-4, 0.05),
)
def test_no_more_power_than_the_chips_may_draw_and_no_stage_busier_than_the_time(
    served, sent, options, outages, part, length
):
    """Cancelled, refused, failed, in a window or not.  A step that an outage cuts short may count whole, and no more than that."""
    start = sent[0].arrival
    result = served(
        sent, options, tuple(outages), Measure(window=(start, start + length)) if part else None
    )
    (member,) = result.members.values()
    rows, chips = result.rows, member.chips
    cut = len(outages) * longest_step(result)
    for busy in rows.busy:
        assert busy.max() <= rows.elapsed * (1 + 1e-9) + cut
    told = result.costs.energy
    if told:
        assert told.mean_power_w <= chips * MOST * PUE * (1 + 1e-9)
        assert told.mean_power_w >= chips * (2.0 + 2.0) * PUE * (1 - 1e-9)
    if not part:
        assert result.metrics.duration == rows.elapsed >= np.nanmax(rows.ended) - rows.arrival.min()


@given(st.lists(asked, min_size=1, max_size=12), options)
@settings(max_examples=30)
def test_measuring_changes_nothing_of_the_run(served, sent, options):
    whole = served(sent, options)
    part = served(sent, options, measure=Measure(window=(sent[0].arrival, sent[0].arrival + 0.01)))
    for column in ("admitted", "first_token", "last_token", "ended"):
        assert np.array_equal(
            getattr(whole.rows, column), getattr(part.rows, column), equal_nan=True
        )
    assert whole.rows.tallies[0].batch_steps == part.rows.tallies[0].batch_steps


def test_a_stage_is_busy_for_all_of_a_window_at_most():
    """Of steps under way at its ends, which count whole where they enter, only a part belongs to it."""
    before, after = Tally(logits=2), Tally(logits=12)
    after.batch_steps[4] = 6
    span = between(
        Mark(1.0, [(before, np.array([1.0, 0.5]))]), Mark(3.0, [(after, np.array([5.0, 4.0]))])
    )
    assert (span.tallies[0].logits, span.tallies[0].batch_steps[4]) == (5, 3)  # busy for 4 s of 2
    span = between(
        Mark(1.0, [(before, np.array([1.0, 0.5]))]), Mark(3.0, [(after, np.array([2.0, 2.0]))])
    )
    assert (span.tallies[0].logits, span.tallies[0].batch_steps[4]) == (10, 6)


NONE = {
    "plan": Plan(),
    "admission": "reserve",
    "kv_tokens": 300,
    "deadline": None,
    "max_waiting": None,
}


def test_a_run_lasts_until_its_last_request_has_ended_however_it_ends(served):
    """One short answer, then long ones that all miss their deadline: the card works for all of the time, at its full power."""
    sent = [
        ListedRequest(arrival=at, prompt=8, output=out)
        for at, out in ((0.0, 4), (0.1, 280), (0.2, 280), (0.3, 280))
    ]
    result = served(sent, NONE | {"deadline": 0.05})
    metrics = result.metrics
    assert (metrics.completed, metrics.cancelled) == (1, 3)
    assert metrics.duration == pytest.approx(0.35, abs=longest_step(result))
    assert metrics.request_throughput == pytest.approx(1 / metrics.duration)
    assert result.costs.energy.mean_power_w < MOST * PUE


def test_a_run_lasts_until_a_replica_fails_with_its_last_request(served):
    sent = [ListedRequest(arrival=at, prompt=8, output=out) for at, out in ((0.0, 4), (0.1, 280))]
    result = served(sent, NONE, (Outage(at=0.15, lasts=0.1, requests="fail"),))
    assert result.metrics.failed == 1
    assert result.metrics.duration == pytest.approx(0.15)


@pytest.mark.parametrize("plan", [Plan(), Plan(pipeline=3)])
def test_joules_of_a_window_are_of_the_work_in_it(served, plan):
    """Two answers with a pause between: a window on the first has its power, and one on the pause has that of idle chips."""
    options = NONE | {"plan": plan}
    sent = [ListedRequest(arrival=at, prompt=8, output=250) for at in (0.0, 1.0)]
    chips = plan.pipeline or 1
    idle = chips * (2.0 + 2.0) * PUE
    whole = served(sent, options)
    busy = float(whole.rows.last_token[0])
    first = served(sent, options, measure=Measure(window=(0.0, busy)))
    late = served(
        sent, options, measure=Measure(window=(busy / 2, 1.0))
    )  # half of the first answer, and the pause
    power = {
        name: each.costs.energy.mean_power_w for name, each in (("whole", whole), ("first", first))
    }
    assert power["first"] - idle == pytest.approx(
        (power["whole"] - idle) * whole.rows.elapsed / (2 * busy), rel=0.02
    )
    joules = first.costs.energy.joules_per_token
    assert joules == pytest.approx(power["first"] * busy / 250)
    assert late.costs == TokenCosts() or late.costs.energy.mean_power_w < power["first"]
    until = served(sent, options, measure=Measure(window=(0.0, busy / 2)))
    assert until.costs.energy.mean_power_w == pytest.approx(power["first"], rel=0.05)


@pytest.mark.parametrize("leap", [True, False])
def test_a_run_lasts_until_the_steps_of_a_cancelled_prompt_are_over(make_deployment, leap):
    """Pieces of the prompt are still on their way through the stages as its request ends."""
    deployment = make_deployment(3, plan=Plan(pipeline=3))
    requests = RequestBatch(np.zeros(2), np.array([200, 90]), np.array([3, 30]))
    policies = Policies(deadline=5e-4)
    rows = serve(requests, deployment.costs, deployment.limits, policies=policies, leap=leap)
    assert rows.cancelled.all()
    assert rows.ended.max() < rows.busy[0].max() <= rows.elapsed
