"""Replicas that fail while they serve: nothing is lost, nothing is served by who is down, leaps are their steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.cost.energy import Tally, usage
from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.results.metrics import summarize
from sim.serving.policy import BATCHINGS, ORDERS, Policies, least_loaded, ring, round_robin
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.service import serve_fleet
from sim.workload.requests import RequestBatch

WINDOW = 24
KINDS = {"single": (1, Plan()), "piped": (3, Plan(pipeline=3)), "windowed": (3, Plan(pipeline=3))}
OUTCOMES = {"finished", "refused", "cancelled", "failed"}
moments = st.one_of(
    st.floats(0, 0.05), st.integers(0, 5).map(lambda n: n / 100)
)  # some at the same instant
requests = st.lists(
    st.tuples(moments, st.integers(1, 120), st.integers(1, 30)), min_size=1, max_size=25
)
policies = st.builds(
    Policies,
    batching=st.sampled_from([policy for policy in BATCHINGS.values() if policy is not ring]),
    order=st.sampled_from(list(ORDERS.values())),
    reserve=st.booleans(),
    max_waiting=st.sampled_from([None, None, 3]),
    deadline=st.sampled_from([None, None, 0.02]),
)
outage = st.builds(
    Outage,
    at=moments,
    lasts=st.floats(0.001, 0.05),
    requests=st.sampled_from(["retry", "retry", "fail"]),
)


@pytest.fixture(scope="module")
def replicas(make_deployment, make_model):
    """So many replicas of a kind, of which some fail once."""
    windows = {"sliding_window": WINDOW, "layer_types": ("sliding_attention", "full_attention") * 2}
    models = {kind: make_model(**(windows if kind == "windowed" else {})) for kind in KINDS}
    deployments = {
        kind: make_deployment(chips, plan=plan, model=models[kind])
        for kind, (chips, plan) in KINDS.items()
    }

    def build(kind, failures, policy=None, **limits):
        deployment = deployments[kind]
        limited = replace(deployment.limits, **limits)
        return [
            ReplicaConfig(
                deployment.costs,
                limited,
                policy or Policies(),
                number=number,
                outages=(each,) if each else (),
            )
            for number, each in enumerate(failures)
        ]

    return build


def asked(rows, users=None):
    arrival, prompt, output = map(np.array, zip(*sorted(rows), strict=True))
    return RequestBatch(np.full(len(arrival), np.nan) if users else arrival, prompt, output, users)


@settings(max_examples=60)
@given(
    requests,
    st.lists(st.one_of(st.none(), outage), min_size=1, max_size=3),
    policies,
    st.sampled_from([None, None, 4]),
    st.sampled_from(list(KINDS)),
    st.sampled_from([least_loaded, round_robin]),
)
def test_every_request_ends_once_and_not_while_its_replica_is_down(
    replicas, sent, failures, policy, users, kind, router
):
    rows = serve_fleet(asked(sent, users), replicas(kind, failures, policy, kv_tokens=300), router)
    table = rows.table("any")
    assert len(table) == len(sent)
    assert set(table["outcome"]) <= OUTCOMES
    assert (rows.finished.astype(int) + rows.cancelled + rows.failed <= 1).all()
    for row in table.iter_rows(named=True):
        assert (row["outcome"] == "finished") == (row["reason"] == "")
        assert row["retries"] >= row["moved"]
        if row["outcome"] == "finished":
            assert row["arrival"] <= row["admitted"] <= row["first_token"] <= row["last_token"]
            if each := failures[row["replica"]]:
                begun, ended = row["admitted"], row["last_token"]
                assert ended <= each.at * (1 + 1e-9) or begun >= each.at + each.lasts - 1e-12
    told = summarize(rows)
    assert told.completed + told.refused + told.cancelled + told.failed == len(sent)
    assert told.moved <= told.retried
    if all(each is None or each.requests == "retry" for each in failures):
        assert not rows.failed.any()


@settings(max_examples=50)
@given(
    requests,
    st.lists(st.one_of(st.none(), outage), min_size=1, max_size=3),
    policies,
    st.sampled_from(list(KINDS)),
)
def test_leaps_are_their_steps_where_replicas_fail(replicas, sent, failures, policy, kind):
    leapt, stepped = (
        serve_fleet(asked(sent), replicas(kind, failures, policy), least_loaded, leap=leap)
        for leap in (True, False)
    )
    for column in ("admitted", "first_token", "last_token"):
        np.testing.assert_allclose(
            getattr(leapt, column), getattr(stepped, column), rtol=1e-9, atol=1e-9
        )
    for column in ("replica", "retries", "moved", "failed", "cancelled"):
        assert (getattr(leapt, column) == getattr(stepped, column)).all()
    for one, other in zip(leapt.tallies, stepped.tallies, strict=True):
        assert counts(one) == pytest.approx(
            counts(other), rel=1e-9, abs=1e-6
        )  # a clock rounds where a step is interrupted
    for one, other in zip(leapt.busy, stepped.busy, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert leapt.gaps.count == stepped.gaps.count
    sums, others = ((rows.gaps.total, rows.gaps.squares) for rows in (leapt, stepped))
    assert sums == pytest.approx(others, rel=1e-9)


@pytest.mark.parametrize("leap", [True, False])
def test_the_kv_peak_counts_the_steps_before_a_failure(replicas, leap):
    lost = Outage(at=0.03, lasts=1.0, requests="fail")
    setups = replicas("single", [lost], Policies(reserve=False))
    rows = serve_fleet(asked([(0.0, 8, 1000)]), setups, least_loaded, leap=leap)
    decoded = rows.tallies[0].logits - 1
    assert 10 < decoded < 990
    assert rows.kv_peak == [8 + math.ceil(decoded)]


def counts(tally):
    """What a tally holds, by name; steps by their tokens."""
    sums = {name: getattr(tally, name) for name in tally.__slots__ if name != "batch_steps"}
    return sums | {
        f"steps of {tokens} tokens": steps
        for tokens, steps in tally.batch_steps.items()
        if abs(steps) > 1e-6
    }


@settings(max_examples=60)
@given(
    requests,
    st.lists(outage, min_size=1, max_size=2),
    policies.map(lambda policy: replace(policy, deadline=None, max_waiting=None)),
    st.sampled_from([*KINDS, "chips"]),
    st.booleans(),
)
def test_no_stage_is_busy_for_longer_than_its_replica_is_up(
    replicas, sent, failures, policy, kind, leap
):
    """Every request is tried again until it is served, so that no work follows the last token."""
    failures = [each.model_copy(update={"requests": "retry"}) for each in failures]
    setups = replicas("piped" if kind == "chips" else kind, failures, policy)
    if kind == "chips":
        made = machine_factory(setups[0].costs, [Irregularities()] * len(setups), [0])
        setups = [replace(setup, machine=made) for setup in setups]
    rows = serve_fleet(asked(sent), setups, least_loaded, leap=leap)
    begun, ended = rows.arrival.min(), np.nanmax(rows.last_token)
    for each, busy in zip(failures, rows.busy, strict=True):
        down = max(0.0, min(each.at + each.lasts, ended) - max(each.at, begun))
        assert (busy <= (ended - begun - down) * (1 + 1e-9) + 1e-12).all()
        assert (busy >= -1e-12).all()
    assert rows.elapsed >= max(busy.max() for busy in rows.busy) * (1 - 1e-9)


@settings(max_examples=25)
@given(
    requests,
    st.lists(st.one_of(st.none(), outage), min_size=1, max_size=2),
    policies,
    st.sampled_from(list(KINDS)),
)
def test_chips_as_processes_fail_as_stages_do(replicas, sent, failures, policy, kind):
    """Where nothing contends, and no step ends as somebody comes (clocks round differently); links carried what all lives sent."""
    setups = replicas(kind, failures, policy)
    requests = asked(
        [
            (at + 1e-6 * math.pi * (1 + i), prompt, output)
            for i, (at, prompt, output) in enumerate(sent)
        ]
    )
    stages = serve_fleet(requests, setups, least_loaded, leap=False)
    made = machine_factory(setups[0].costs, [Irregularities()] * len(setups), [0])
    chips = serve_fleet(requests, [replace(setup, machine=made) for setup in setups], least_loaded)
    for column in ("admitted", "first_token", "last_token"):
        np.testing.assert_allclose(
            getattr(chips, column), getattr(stages, column), rtol=1e-9, atol=1e-9
        )
    for column in ("replica", "retries", "moved", "failed", "cancelled"):
        assert (getattr(chips, column) == getattr(stages, column)).all()
    for one, other in zip(chips.tallies, stages.tallies, strict=True):
        assert counts(one) == pytest.approx(counts(other), rel=1e-7, abs=1e-6)
    for one, other in zip(chips.busy, stages.busy, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    if kind != "single":
        for number, tally in enumerate(stages.tallies):
            assert chips.traffic[number].messages <= 3 * sum(
                map(math.ceil, tally.batch_steps.values())
            )
        if stages.finished.any():
            assert sum(traffic.messages for traffic in chips.traffic.values()) > 0


@pytest.mark.parametrize("way", ["leap", "steps", "chips"])
@pytest.mark.parametrize("kind", ["single", "piped"])
def test_an_interrupted_step_counts_as_far_as_it_came(replicas, kind, way):
    """A prompt's only step fails after a quarter of the first stage's time and is made again: 1 + 1/4 of that time."""
    (setup,) = replicas(kind, [None])
    costs = setup.costs
    work = Work(prompt_tokens=8, chunks=1, attended=36, cached=8, logits=1)
    times = costs.step(work).time
    failure = Outage(at=times[0] / 4, lasts=1e-6)
    made = machine_factory(costs, [Irregularities()], [0]) if way == "chips" else None
    rows = serve_fleet(
        asked([(0.0, 8, 1)]),
        [replace(setup, outages=(failure,), machine=made)],
        least_loaded,
        leap=way != "steps",
    )
    part = times[0] / 4 / times.sum()
    assert rows.busy[0] == pytest.approx([1.25 * times[0], *times[1:]])
    assert rows.tallies[0].batch_steps == pytest.approx({8: 1 + part})
    assert (rows.tallies[0].logits, rows.tallies[0].attended) == pytest.approx(
        (1 + part, 36 * (1 + part))
    )
    assert rows.elapsed >= rows.busy[0].sum()
    whole = Tally()
    whole.add(work, 1)
    used, once = usage(costs, rows.tallies[0]), usage(costs, whole)
    assert used.nbytes == pytest.approx(
        {memory: (1 + part) * nbytes for memory, nbytes in once.nbytes.items()}
    )


@pytest.mark.parametrize("way", ["leap", "steps", "chips"])
@pytest.mark.parametrize("kind", ["single", "piped"])
def test_a_token_that_does_not_come_has_no_gap(replicas, kind, way):
    """Failed in the middle of its third decode step: two gaps, and half a step more of tokens and positions."""
    (setup,) = replicas(kind, [None])
    costs = setup.costs
    works = [Work(prompt_tokens=8, chunks=1, attended=36, cached=8, logits=1)]
    works += [Work(decodes=1, context=context, logits=1) for context in (9, 10, 11)]
    whole = [
        costs.step(work).time.sum() + costs.hops(work.tokens).sum() + costs.back for work in works
    ]
    times, hops = costs.step(works[3]).time, costs.hops(1)
    into = hops[0] + times[0] / 2
    failure = Outage(at=sum(whole[:3]) + into, lasts=1e-6, requests="fail")
    made = machine_factory(costs, [Irregularities()], [0]) if way == "chips" else None
    rows = serve_fleet(
        asked([(0.0, 8, 20)]),
        [replace(setup, outages=(failure,), machine=made)],
        least_loaded,
        leap=way != "steps",
    )
    part = times[0] / 2 / times.sum()
    tally = rows.tallies[0]
    assert rows.gaps.count == 2
    assert sum(rows.gaps.bins.values()) == 2
    assert rows.gaps.total == pytest.approx(sum(whole[1:3]))
    assert tally.batch_steps == pytest.approx({8: 1, 1: 2 + part})
    assert (tally.logits, tally.context) == pytest.approx((3 + part, 9 + 10 + 11 * part))
    assert rows.busy[0].sum() == pytest.approx(
        sum(costs.step(work).time.sum() for work in works[:3]) + times[0] / 2
    )


def test_who_is_moved_begins_anew_at_once_and_who_cannot_be_waits(replicas):
    alone = serve_fleet(asked([(0.0, 8, 20)]), replicas("single", [None]), least_loaded)
    whole, half = alone.last_token[0], alone.last_token[0] / 2
    failure = Outage(at=half, lasts=1.0)
    moved = serve_fleet(asked([(0.0, 8, 20)]), replicas("single", [failure, None]), least_loaded)
    assert (moved.retries[0], moved.moved[0], moved.replica[0]) == (1, True, 1)
    assert moved.last_token[0] == pytest.approx(half + whole)
    retried = serve_fleet(asked([(0.0, 8, 20)]), replicas("single", [failure]), least_loaded)
    assert (retried.retries[0], retried.moved[0], retried.replica[0]) == (1, False, 0)
    assert retried.last_token[0] == pytest.approx(half + 1 + whole)
    failed = serve_fleet(
        asked([(0.0, 8, 20)]),
        replicas("single", [failure.model_copy(update={"requests": "fail"})]),
        least_loaded,
    )
    assert failed.table("any")["outcome"].to_list() == ["failed"]
    assert np.isnan(failed.first_token[0])


def test_who_fails_as_it_comes_back_may_be_listed_first(replicas):
    pair = [Outage(at=0.002, lasts=0.002), Outage(at=0.004, lasts=0.002)]
    sent = asked([(0.0, 8, 40), (0.001, 8, 40)])
    (setup,) = replicas("single", [None])
    rows = [
        serve_fleet(sent, [replace(setup, outages=tuple(each))], least_loaded)
        for each in (pair, pair[::-1])
    ]
    assert (rows[0].last_token == rows[1].last_token).all()
    assert (rows[0].retries == 1).all()
    assert (rows[0].admitted >= 0.006).all()


def test_who_is_refused_when_it_begins_anew_is_refused_then(replicas):
    """And its user does not ask again in the past."""
    down = [Outage(at=0.01, lasts=1.0), None]
    setups = replicas("single", down, Policies(max_waiting=1), sequences=1)
    rows = serve_fleet(asked([(0.0, 8, 60)] * 8, users=4), setups, round_robin)
    assert (rows.arrival[:4] == 0).all()
    assert rows.table("any").filter(retries=1)["outcome"].to_list() == ["refused", "refused"]
    assert (rows.arrival[4:] >= 0.01).all()


@pytest.mark.parametrize("lasts", [0.05, 10.0])
def test_a_deadline_passes_while_nobody_is_up(replicas, lasts):
    failure = Outage(at=0.001, lasts=lasts)
    rows = serve_fleet(
        asked([(0.0, 8, 400)] * 2, users=1),
        replicas("single", [failure], Policies(deadline=0.02)),
        least_loaded,
    )
    assert rows.cancelled.all()
    assert rows.arrival[1] == pytest.approx(0.02)
    assert np.isnan(rows.admitted).all()


def test_who_comes_while_all_are_down_is_served_in_order_when_one_is_up(replicas):
    both = [Outage(at=0.001, lasts=1.0), Outage(at=0.001, lasts=2.0)]
    rows = serve_fleet(asked([(0.5, 8, 4), (0.6, 8, 4)]), replicas("single", both), least_loaded)
    assert (rows.replica == 0).all()
    assert (rows.retries == 0).all()
    assert rows.admitted[0] <= rows.admitted[1]
    assert rows.admitted[0] == pytest.approx(1.001)
