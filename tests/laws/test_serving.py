"""What holds for every run: requests, room, gaps, ties.  Sizes are small, so that ties and full queues are common."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.limits import SchedulerLimits
from sim.workload.arrivals import ClosedLoop, Poisson
from sim.workload.lengths import Length

LAYOUTS = {
    "one chip": (1, Plan()),
    "three stages": (3, Plan(pipeline=3)),
    "tensor 2, two stages, four slots": (4, Plan(tensor=2, slots=4)),
    "two replicas of two stages, one slot": (4, Plan(replicas=2, slots=1)),
}


@pytest.fixture(scope="module")
def deployments(make_deployment):
    return {name: make_deployment(chips, plan=plan) for name, (chips, plan) in LAYOUTS.items()}


@st.composite
def runs(draw):
    """A layout's name, its requests, its users (None: arrivals are given), its limits and its delays."""
    gaps = st.sampled_from([0.0, 1e-4, 1e-3, 0.1]) | st.floats(0, 0.01, allow_subnormal=False)
    drawn = draw(
        st.lists(st.tuples(gaps, st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=15)
    )
    arrivals = np.cumsum([gap for gap, _, _ in drawn]).tolist()
    budget = draw(st.integers(1, 24))
    return {
        "layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "requests": [
            (arrival, prompt, output)
            for arrival, (_, prompt, output) in zip(arrivals, drawn, strict=True)
        ],
        "users": draw(st.none() | st.integers(1, 4)),
        "budget": budget,
        "sequences": draw(st.integers(1, budget)),
        "kv_tokens": draw(st.integers(2, 120)),
        "overhead": draw(st.sampled_from([0.0, 1e-3])),
        "think": draw(st.sampled_from([0.0, 1e-4])),
    }


@pytest.fixture(scope="module")
def serve_drawn(deployments, serve_on):
    """(deployment, limits, rows) of a drawn run."""

    def run(drawn, costs=lambda costs: costs, leap=True):
        deployment = deployments[drawn["layout"]]
        deployment = replace(deployment, costs=costs(deployment.costs))
        limits = SchedulerLimits(
            deployment.limits.micro_batches,
            drawn["budget"],
            drawn["sequences"],
            drawn["kv_tokens"],
            context=48,
        )
        options = {key: drawn[key] for key in ("overhead", "think")} | {
            "replicas": deployment.layout.plan.replicas,
            "leap": leap,
        }
        return (
            deployment,
            limits,
            serve_on(deployment, drawn["requests"], drawn["users"], limits=limits, **options),
        )

    return run


@settings(max_examples=30)
@given(runs())
def test_every_request_ends_once_and_in_order(serve_drawn, drawn):
    """Finished, or refused with a reason where prompt and output exceed the room or the context."""
    _, limits, rows = serve_drawn(drawn)
    total = rows.requests.prompt + rows.requests.output
    too_long = total > min(limits.kv_tokens, limits.context)
    assert (rows.finished == ~too_long).all()
    assert [bool(reason) for reason in rows.reason] == too_long.tolist()
    assert ((rows.replica >= 0) == rows.finished).all()
    arrival, admitted, first, last = (
        x[rows.finished] for x in (rows.arrival, rows.admitted, rows.first_token, rows.last_token)
    )
    assert (arrival + drawn["overhead"] <= admitted).all()
    assert (admitted < first).all()
    assert (first <= last).all()
    assert ((first == last) == (rows.requests.output[rows.finished] == 1)).all()


@settings(max_examples=30)
@given(runs())
def test_what_is_reserved_has_room(serve_drawn, drawn):
    """Each request holds its prompt and output from its admission to its last token, on its replica."""
    deployment, limits, rows = serve_drawn(drawn)
    assert max(rows.kv_peak) <= limits.kv_tokens
    assert set(rows.kv_tokens) == {limits.kv_tokens}
    tokens = rows.requests.prompt + rows.requests.output
    for replica in range(deployment.layout.plan.replicas):
        here = np.flatnonzero(rows.replica == replica)
        for moment in rows.admitted[here]:
            held = here[(rows.admitted[here] <= moment) & (moment < rows.last_token[here])]
            assert tokens[held].sum() <= rows.kv_peak[replica]
            assert len(held) <= limits.sequences


@settings(max_examples=30)
@given(runs())
def test_the_queue_keeps_its_order(serve_drawn, drawn):
    """Who comes first is admitted first and has the first token first, on one replica.

    Of equal arrivals in a closed loop rows do not show which was sent first.
    """
    deployment, _, rows = serve_drawn(drawn)
    for replica in range(deployment.layout.plan.replicas):
        here = np.flatnonzero(rows.replica == replica)
        here = here[np.lexsort((rows.first_token[here], rows.admitted[here], rows.arrival[here]))]
        assert (np.diff(rows.admitted[here]) >= 0).all()
        assert (np.diff(rows.first_token[here]) >= 0).all()


class Recorded:
    """Costs that remember what they were asked."""

    def __init__(self, costs):
        self.costs, self.works = costs, []

    def step(self, work):
        self.works.append(work)
        return self.costs.step(work)

    def __getattr__(self, name):
        return getattr(self.costs, name)


@settings(max_examples=30)
@given(runs())
def test_steps_carry_every_token_once_at_its_context(serve_drawn, drawn):
    """Within the token budget: a prompt's tokens attend to those before them, an answer's to the prompt and its own beginning."""
    deployment, limits, rows = serve_drawn(drawn, Recorded, leap=False)
    done = [
        (prompt, output)
        for (_, prompt, output), end in zip(drawn["requests"], rows.finished, strict=True)
        if end
    ]
    works = deployment.costs.works
    assert all(0 < work.tokens <= limits.token_budget for work in works)
    assert sum(work.prompt_tokens for work in works) == sum(prompt for prompt, _ in done)
    assert sum(work.attended for work in works) == sum(
        prompt * (prompt + 1) // 2 for prompt, _ in done
    )
    assert sum(work.decodes for work in works) == sum(output - 1 for _, output in done)
    assert sum(work.context for work in works) == sum(
        sum(range(prompt + 1, prompt + output)) for prompt, output in done
    )
    assert sum(work.logits for work in works) == sum(output for _, output in done)


@settings(max_examples=30)
@given(runs())
def test_the_gaps_are_those_between_the_tokens(serve_drawn, drawn):
    _, _, rows = serve_drawn(drawn)
    done = rows.finished
    assert rows.gaps.count == sum(rows.gaps.bins.values()) == (rows.requests.output[done] - 1).sum()
    assert rows.gaps.total == pytest.approx(
        (rows.last_token - rows.first_token)[done].sum(), abs=1e-9
    )


@settings(max_examples=30)
@given(runs())
def test_a_stage_is_busy_for_its_steps_and_no_longer_than_time_passes(serve_drawn, drawn):
    deployment, _, rows = serve_drawn(drawn)
    end = np.nanmax(rows.last_token, initial=0.0)
    assert len(rows.busy) == deployment.layout.plan.replicas
    for busy in rows.busy:
        assert (busy <= end * (1 + 1e-12)).all()
    assert (sum(rows.busy) > 0).all() == rows.finished.any()


def scenario(make_model, make_chip, make_engine, **workload):
    """Two systems, one of them much slower, under one workload."""
    lengths = {"prompt": Length(uniform=(1, 40)), "output": Length(uniform=(1, 12))}
    kind = ClosedLoop if "users" in workload else Poisson
    systems = {
        "quick": System(chip=make_chip(), chips=2, engine=make_engine(), token_budget=16),
        "slow": System(
            chip=make_chip(bandwidth=1e8),
            chips=1,
            engine=make_engine(),
            token_budget=16,
            kv_tokens=40,
        ),
    }
    return Scenario(
        model=make_model(), workload=kind(requests=12, **lengths, **workload), systems=systems
    )


@pytest.mark.parametrize("workload", [{"rate": 500.0}, {"users": 3}])
def test_the_same_seed_gives_the_same_rows_and_all_systems_the_same_requests(
    make_model, make_chip, make_engine, workload
):
    one = scenario(make_model, make_chip, make_engine, **workload)
    first, again, other = (sim.run(one, seed=seed) for seed in (1, 1, 2))
    for name, system in first.systems.items():
        rows = system.rows.table(name)
        assert rows.equals(again.systems[name].rows.table(name))
        assert not rows.equals(other.systems[name].rows.table(name))
    quick, slow = (system.rows for system in first.systems.values())
    assert (quick.requests.prompt == slow.requests.prompt).all()
    assert (quick.requests.output == slow.requests.output).all()
    if "rate" in workload:
        assert (quick.arrival == slow.arrival).all()


def step(deployment, **work):
    """Seconds of a step on one stage."""
    return float(deployment.costs.step(Work(**work)).time.sum())


def test_an_arrival_comes_before_a_passage_that_returns_at_the_same_instant(deployments, serve_on):
    """It rides with the very next passage, as one does that came earlier; a moment later it would wait for that to return."""
    one = deployments["one chip"]
    returns = serve_on(one, [(0.0, 5, 9)]).first_token[0]
    mixed = step(
        one, decodes=1, context=6, prompt_tokens=8, chunks=2, attended=1 + 28, cached=8, logits=3
    )
    rows = serve_on(one, [(0.0, 5, 9), (returns / 2, 1, 3), (returns, 7, 3)])
    assert rows.first_token[2] - returns == pytest.approx(mixed)
    late = serve_on(one, [(0.0, 5, 9), (returns / 2, 1, 3), (math.nextafter(returns, 1.0), 7, 3)])
    assert late.first_token[2] - returns > 1.5 * mixed


def test_a_users_next_request_comes_before_the_passage_that_answered_returns(deployments, serve_on):
    """Two users at once: who has a short answer asks again, and rides with the other's next token."""
    one = deployments["one chip"]
    rows = serve_on(one, [(0.0, 5, 2), (0.0, 5, 9), (0.0, 7, 2)], users=2)
    mixed = step(
        one, decodes=1, context=7, prompt_tokens=7, chunks=1, attended=28, cached=7, logits=2
    )
    assert rows.arrival[2] == rows.last_token[0]
    assert rows.first_token[2] - rows.arrival[2] == pytest.approx(mixed)


def test_who_returns_picks_before_those_it_made_room_for(deployments, serve_on):
    """Two sequences decode, each in a micro-batch of its own, and one ends; its micro-batch takes the prompt that waited."""
    deployment = deployments["tensor 2, two stages, four slots"]
    costs, limits = deployment.costs, replace(deployment.limits, sequences=2)
    rows = serve_on(deployment, [(0.0, 5, 2), (0.0, 5, 9), (0.0, 7, 2)], limits=limits)
    work = Work(prompt_tokens=7, chunks=1, attended=28, cached=7, logits=1)
    alone = costs.step(work).time.sum() + costs.hops(work.tokens).sum()
    assert rows.admitted[2] == pytest.approx(rows.last_token[0] + costs.back, abs=1e-12)
    assert rows.first_token[2] - rows.admitted[2] == pytest.approx(alone)


def test_no_request_is_seen_before_it_was_sent(deployments, serve_on):
    """The clock's sums round: 0.3124427257643002 s + the wait to the second arrival is a rounding short of it."""
    arrivals = [0.3124427257643002, 1.466471861772505]
    rows = serve_on(deployments["one chip"], [(arrival, 10, 2) for arrival in arrivals])
    assert (rows.admitted == rows.arrival).all()


def test_a_request_goes_to_the_replica_with_the_fewest_unfinished_ones(deployments, serve_on):
    """Of equals to the first; a replica that has answered is as free as one that was never asked."""
    two = deployments["two replicas of two stages, one slot"]
    rows = serve_on(
        two,
        [(0.0, 5, 2), (0.0, 5, 200), (0.0, 5, 2), (1e-4, 5, 2), (0.05, 5, 2), (0.05, 5, 2)],
        replicas=2,
    )
    assert rows.last_token[[0, 2, 3]].max() < 0.05 < rows.last_token[1]
    assert rows.replica.tolist() == [0, 1, 0, 1, 0, 0]
