"""Leaps over steps in which nothing changes give what step by step gives: the same rows, the same histogram of gaps, the same busy
stages.  Sizes are small, so that sequences end, windows fill, rooflines cross and queues are full in the middle of leaps."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.attention import FOREVER
from sim.cost.energy import usage
from sim.cost.plan import Plan
from sim.cost.step import Step
from sim.cost.work import Work
from sim.hardware.chip import Compute
from sim.results.histogram import BINS_PER_DECADE, Gaps
from sim.serving.limits import SchedulerLimits
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

WINDOW = 24
LAYOUTS = {
    "one chip": (1, Plan(), {}),
    "one chip whose roofline crosses": (1, Plan(), {"crossing": True}),
    "one chip, layers with windows": (1, Plan(), {"windowed": True}),
    "three replicas of one chip": (3, Plan(replicas=3), {}),
    "three stages": (3, Plan(pipeline=3), {}),
    "three stages, layers with windows": (3, Plan(pipeline=3), {"windowed": True}),
    "four stages whose roofline crosses, two slots": (
        4,
        Plan(pipeline=4, slots=2),
        {"crossing": True},
    ),
    "two stages of two, five slots": (4, Plan(tensor=2, slots=5), {}),
    "three stages of two ranks, layers with windows": (
        6,
        Plan(attention_data=2, pipeline=3),
        {"windowed": True},
    ),
    "two replicas of two stages, one slot": (4, Plan(replicas=2, slots=1), {}),
    "one chip that waits for its host": (1, Plan(), {"launched": True}),
    "one chip that waits for its host, layers with windows": (
        1,
        Plan(),
        {"launched": True, "windowed": True},
    ),
    "one chip, layers with states": (1, Plan(), {"kind": "hybrid"}),
    "three stages, layers with states": (3, Plan(pipeline=3), {"kind": "hybrid"}),
    "one chip, sparse attention": (1, Plan(), {"kind": "sparse"}),
    "three stages, sparse attention": (3, Plan(pipeline=3), {"kind": "sparse"}),
    "three stages that wait for their hosts": (3, Plan(pipeline=3), {"launched": True}),
}


class Crossing(Compute):
    """An artificial chip: computing is slower at first, then reading."""

    def times(self, op, memory):
        return 2e-6 + op.flops / 1e12, op.kv / memory.bandwidth


@pytest.fixture(scope="module")
def deployments(make_deployment, make_model, make_hybrid, make_sparse, make_chip, lossy, eager):
    def make(chips, plan, crossing=False, windowed=False, launched=False, kind=None):
        types = ("sliding_attention", "full_attention") * 2
        model = make_model(sliding_window=WINDOW, layer_types=types) if windowed else make_model()
        model = {None: lambda: model, "hybrid": make_hybrid, "sparse": make_sparse}[kind]()
        chip = make_chip(**({"compute": Crossing()} if crossing else {}))
        return make_deployment(
            chips, plan=plan, model=model, chip=chip, engine=eager if launched else lossy
        )

    return {name: make(chips, plan, **kind) for name, (chips, plan, kind) in LAYOUTS.items()}


@st.composite
def runs(draw):
    gaps = st.sampled_from([0.0, 1e-3, 0.1]) | st.floats(0, 0.05, allow_subnormal=False)
    drawn = draw(
        st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 80)), min_size=1, max_size=20)
    )
    arrivals = np.cumsum([gap for gap, _, _ in drawn]) + draw(st.sampled_from([0.0, 1e3]))
    budget = draw(st.just(1) | st.integers(1, 24))
    return {
        "layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "requests": [
            (arrival, prompt, output)
            for arrival, (_, prompt, output) in zip(arrivals, drawn, strict=True)
        ],
        "users": draw(st.none() | st.integers(1, 5)),
        "sequences": draw(st.integers(1, 4 * budget)),
        "budget": budget,
        "kv_tokens": draw(st.integers(2, 400)),
        "more_slots": draw(st.sampled_from([0, 0, 5])),
        "fill": draw(st.none() | st.integers(1, 6)),
        # No round numbers: an arrival at the instant at which a step ends, but for a rounding, may come before or after it.
        "options": {
            "overhead": draw(st.sampled_from([0.0, 1.0371e-3])),
            "think": draw(st.sampled_from([0.0, 1.0839e-4])),
        },
    }


@settings(max_examples=80)
@given(runs())
def test_a_leap_is_its_steps(deployments, serve_on, drawn):
    deployment = deployments[drawn["layout"]]
    slots = deployment.limits.micro_batches + drawn["more_slots"]
    limits = replace(
        deployment.limits,
        micro_batches=slots,
        token_budget=drawn["budget"],
        sequences=min(drawn["sequences"], slots * drawn["budget"]),
        kv_tokens=drawn["kv_tokens"],
        context=130,
        fill=drawn["fill"],
    )
    options = drawn["options"] | {"limits": limits, "replicas": deployment.layout.plan.replicas}
    leap, step = (
        serve_on(deployment, drawn["requests"], drawn["users"], leap=leap, **options)
        for leap in (True, False)
    )
    assert (leap.replica == step.replica).all()
    assert leap.reason == step.reason
    assert leap.kv_peak == step.kv_peak
    clock = 4 * np.spacing(np.nanmax(step.last_token, initial=1.0))
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(leap, column) == pytest.approx(
            getattr(step, column), rel=1e-12, abs=clock, nan_ok=True
        )
    assert leap.gaps.bins == step.gaps.bins
    assert leap.gaps.count == step.gaps.count
    assert leap.gaps.total == pytest.approx(step.gaps.total, rel=1e-11)
    assert leap.gaps.squares == pytest.approx(step.gaps.squares, rel=1e-11)
    for one, other in zip(leap.busy, step.busy, strict=True):
        assert one == pytest.approx(other, rel=1e-11)
    for one, other in zip(leap.tallies, step.tallies, strict=True):
        assert usage(deployment.costs, one) == usage(deployment.costs, other)


@pytest.mark.parametrize("users", range(1, 8))
def test_a_piece_on_the_rank_with_fewer_decodes_adds_no_sequence(deployments, serve_on, users):
    """Prompts of many pieces wait while micro-batches of odd and even numbers of sequences decode on two ranks."""
    deployment = deployments["three stages of two ranks, layers with windows"]
    limits = replace(deployment.limits, token_budget=8, kv_tokens=4000, context=400, sequences=20)
    requests = [(0.001 * i, 3, 90) for i in range(users)] + [(0.0203, 95, 5), (0.0204, 61, 5)]
    leap, step = (
        serve_on(deployment, requests, limits=limits, leap=leap) for leap in (True, False)
    )
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-12)
    assert leap.busy[0] == pytest.approx(step.busy[0], rel=1e-11)


@pytest.mark.parametrize("leap", [True, False])
@pytest.mark.parametrize("layout", ["one chip", "three stages"])
def test_the_clock_does_not_drift(deployments, serve_on, layout, leap):
    """4,000 tokens long after the start, interrupted by requests that find no room: to two roundings of the clock the exact sum."""
    deployment, start, output = deployments[layout], 1e5, 4000
    costs, limits = (
        deployment.costs,
        SchedulerLimits(deployment.limits.micro_batches, 16, 1, 5000, 5000),
    )
    rows = serve_on(deployment, [(start, 10, output)], limits=limits, leap=leap)
    works = [Work(prompt_tokens=10, chunks=1, attended=55, cached=10, logits=1)]
    works += [Work(decodes=1, context=context, logits=1) for context in range(11, 10 + output)]
    exact = (
        math.fsum(
            x
            for work in works
            for x in (*costs.step(work).time, *costs.hops(work.tokens), costs.back)
        )
        - costs.back
    )
    assert rows.last_token[0] - start == pytest.approx(exact, rel=0, abs=2 * np.spacing(start))


@pytest.mark.parametrize("leap", [True, False])
@pytest.mark.parametrize("layout", ["one chip", "two replicas of two stages, one slot"])
def test_the_clock_does_not_drift_over_many_decisions(deployments, serve_on, layout, leap):
    """Three hundred leaps one after the other, each ended by the end of a sequence."""
    costs, works, start = deployments[layout].costs, [], 1e5

    class Recorded:
        def step(self, work):
            works.append(work)
            return costs.step(work)

        def __getattr__(self, name):
            return getattr(costs, name)

    requests, limits = (
        [(start, 1, 7 * i) for i in range(1, 301)],
        SchedulerLimits(1, 300, 300, 10**6, 5000),
    )
    serve_on(replace(deployments[layout], costs=Recorded()), requests, limits=limits, leap=False)
    rows = serve_on(deployments[layout], requests, limits=limits, leap=leap)
    exact = (
        math.fsum(
            x
            for work in works
            for x in (*costs.step(work).time, *costs.hops(work.tokens), costs.back)
        )
        - costs.back
    )
    assert rows.last_token.max() - start == pytest.approx(exact, rel=0, abs=2 * np.spacing(start))


def test_a_micro_batch_that_came_back_with_nothing_to_tell_is_idle(deployments, serve_on):
    """It takes the next prompt at once, though no event was made of its return."""
    two = deployments["four stages whose roofline crosses, two slots"]
    limits = SchedulerLimits(2, 16, 16, 2000, 2000)
    for later in range(60):
        requests = [(0.0, 1, 150), (0.05, 17, 150), (0.05 + later * 2e-5, 5, 2)]
        leap, step = (serve_on(two, requests, limits=limits, leap=leap) for leap in (True, False))
        assert leap.first_token == pytest.approx(step.first_token, rel=1e-12)


def test_an_answer_is_replied_to_at_once_however_the_clock_rounds(deployments, serve_on):
    """Two users without a pause: the times of the answers, with what the clock lost, are not a rounding later than the clock."""
    requests, limits = (
        [(0.0, 1, 1), (0.0, 1, 1), (0.0, 1, 1), (0.0, 1, 8), (0.0, 52, 1), (0.0, 1, 1)],
        SchedulerLimits(1, 11, 2, 62, 130),
    )
    one = deployments["one chip whose roofline crosses"]
    leap, step = (serve_on(one, requests, 2, limits=limits, leap=leap) for leap in (True, False))
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-12)


class Round:
    """Costs of one stage whose times have no rounding: prompts take a second, decodes grow by quarters."""

    stages, back, sampled = 1, 0.0, None

    @property
    def layout(self):
        return self  # which has the tokens of the fullest rank

    def line(self, work):
        return (
            (1.0, 0.0, 1)
            if work.prompt_tokens
            else (0.5 + work.context / 4, work.decodes / 4, FOREVER)
        )

    def step(self, work):
        time, growth, holds = self.line(work)
        return Step(np.array([time]), growth, holds)

    def hops(self, ranked):
        return np.zeros(1)

    def ranked(self, work):
        return work.tokens


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(1, 9)), min_size=1, max_size=6))
def test_ties_are_decided_alike(drawn):
    """Arrivals at the very end of a step, of which there are many in quarters of a second."""
    drawn = sorted(drawn)
    arrival, output = (
        np.array([quarters / 4 for quarters, _ in drawn]),
        np.array([output for _, output in drawn]),
    )
    requests, limits = (
        RequestBatch(arrival, np.ones(len(drawn), int), output),
        SchedulerLimits(1, 8, 8, 1000, 1000),
    )
    leap, step = (serve(requests, Round(), limits, leap=leap) for leap in (True, False))
    assert (leap.first_token == step.first_token).all()
    assert (leap.last_token == step.last_token).all()
    assert leap.gaps.bins == step.gaps.bins


@given(st.floats(1e-6, 1.0), st.floats(0, 1e-2), st.integers(1, 400), st.integers(1, 5))
def test_gaps_that_grow_are_counted_as_one_by_one(gap, growth, steps, times):
    together, single = Gaps(), Gaps()
    together.add_linear(gap, growth, steps, times)
    for step in range(steps):
        single.add(gap + step * growth, times)
    assert together.bins == single.bins
    assert together.count == single.count
    assert together.total == pytest.approx(single.total)
    assert together.squares == pytest.approx(single.squares)


@pytest.mark.parametrize("growth", [0.0, 1e-3, 10 ** (1 / BINS_PER_DECADE) - 1])
def test_gaps_on_an_edge_are_counted_as_one_by_one(growth):
    test_gaps_that_grow_are_counted_as_one_by_one.hypothesis.inner_test(1e-3, growth, 50, 2)


def test_a_long_answer_is_a_few_events_and_an_arrival_that_finds_no_room_cuts_none(
    deployments, serve_on
):
    """One leap for the first answer, though requests come that must wait for its end."""
    deployment = deployments["one chip"]
    asked, line = [], deployment.costs.line
    deployment.costs.line = lambda work: (asked.append(work), line(work))[1]
    limits = SchedulerLimits(1, 16, 1, 130, 130)
    serve_on(deployment, [(0.0, 10, 100), (0.01, 10, 1), (0.02, 10, 1)], limits=limits)
    deployment.costs.line = line
    assert len(asked) == 4


@pytest.mark.parametrize(
    "layout", ["one chip", "one chip, layers with windows", "three replicas of one chip"]
)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=9), st.integers(0, 3), st.integers(0, 20))
def test_a_step_in_plain_floats_is_the_step(deployments, layout, contexts, chunks, growing):
    costs = deployments[layout].costs
    work = Work(
        decodes=len(contexts),
        context=sum(contexts),
        prompt_tokens=8 * chunks,
        chunks=chunks,
        attended=36 * chunks,
        cached=8 * chunks,
        logits=len(contexts) + chunks,
        windowed_context=sum(min(context, WINDOW) for context in contexts),
        windowed_attended=36 * chunks,
        windowed_cached=8 * chunks,
        growing=min(growing, len(contexts)),
    )
    time, growth, holds = costs.step(work)
    assert costs.line(work) == (
        pytest.approx(time[0], rel=1e-14),
        pytest.approx(np.broadcast_to(growth, 1)[0], rel=1e-14),
        holds,
    )


def test_a_prompt_that_the_answered_took_is_not_dealt_again(deployments, serve_on):
    """Users who ask at once when they are answered: their prompt is taken by the micro-batch that answered, in the same instant."""
    deployment = deployments["four stages whose roofline crosses, two slots"]
    limits = SchedulerLimits(2, 6, 4, 68, 130)
    requests = [(0.0, 15, 5), (0.0, 4, 6), (0.0, 31, 3), (0.0, 1, 3), (0.0, 4, 1)]
    leap, step = (
        serve_on(deployment, requests, 4, limits=limits, leap=leap) for leap in (True, False)
    )
    for column in ("admitted", "first_token", "last_token"):
        assert getattr(leap, column) == pytest.approx(getattr(step, column), rel=1e-12)


def test_a_long_prompt_is_a_few_decisions(deployments, serve_on):
    """Sixteen pieces of a prompt: idle micro-batches take all but the last one, then those that are back."""
    deployment = deployments["three stages"]
    asked, parts = [], deployment.costs.parts
    deployment.costs.parts = lambda work: (asked.append(work), parts(work))[1]
    serve_on(deployment, [(0.0, 16 * 16, 20)], limits=SchedulerLimits(3, 16, 16, 2000, 2000))
    deployment.costs.parts = parts
    assert len(asked) == 2
