"""Requests get on: a preempted one between preemptions, and a user after a refusal."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.serving.policy import BATCHINGS, ORDERS, Policies
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

SIZES = st.tuples(st.floats(0, 0.002), st.integers(1, 30), st.integers(1, 30))


@settings(max_examples=30)
@given(
    st.lists(SIZES, min_size=2, max_size=12),
    st.integers(60, 90),
    st.sampled_from(["continuous", "prefill-first"]),
)
def test_a_preempted_request_gets_a_token_before_it_is_preempted_again(
    make_deployment, serve_on, drawn, kv_tokens, batching
):
    """So it is preempted fewer times than it has tokens, and every request ends."""
    deployment = make_deployment()
    times = np.cumsum([gap for gap, _, _ in drawn])
    requests = [(at, prompt, out) for at, (_, prompt, out) in zip(times, drawn, strict=True)]
    rows = serve_on(
        deployment,
        requests,
        limits=replace(deployment.limits, kv_tokens=kv_tokens),
        policies=Policies(batching=BATCHINGS[batching], reserve=False),
    )
    assert rows.finished.all()
    assert (rows.preemptions <= rows.requests.output - 1).all()
    assert rows.gaps.count == (rows.requests.output - 1).sum()  # no token is given twice


@pytest.mark.parametrize("leap", [True, False])
def test_a_preempted_request_waits_until_it_fits_to_its_end(make_deployment, serve_on, leap):
    """Of 100 tokens the third holds 26 when they are full, and 53 at its end.

    Beside the first, there is room for 26 soon, and for 53 only when that has ended.
    """
    deployment = make_deployment()
    requests = [(0.0, 39, 47), (0.0, 7, 20), (0.0, 13, 40)]
    rows = serve_on(
        deployment,
        requests,
        limits=replace(deployment.limits, kv_tokens=100),
        policies=Policies(reserve=False),
        leap=leap,
    )
    assert rows.preemptions.tolist() == [0, 0, 1]
    assert rows.last_token[2] > rows.last_token[0] > rows.last_token[1]


@pytest.mark.parametrize("think", [0.0, 0.01])
@pytest.mark.parametrize("overhead", [0.0, 0.002])
def test_a_user_pauses_after_a_refusal_as_after_an_answer(
    make_deployment, serve_on, think, overhead
):
    """A refusal is known at once to the user; a request that is too long is refused."""
    requests = [(0.0, 5, 9), (0.0, 5000, 9), (0.0, 5000, 1), (0.0, 5, 9)]
    rows = serve_on(make_deployment(), requests, 1, think=think, overhead=overhead)
    assert rows.finished.tolist() == [True, False, False, True]
    answered, *refused = rows.arrival[1:]
    assert answered == rows.last_token[0] + think
    assert refused[0] == answered + think
    assert refused[1] == answered + think + think
    assert rows.admitted[3] == pytest.approx(max(refused[1], answered) + overhead)


def test_a_user_pauses_after_a_full_queue(make_deployment, serve_on):
    """One is served for about 35 ms; until then the other is turned away every 3 ms."""
    deployment = make_deployment()
    think, long = 0.003, (0.0, 5, 100)
    rows = serve_on(
        deployment,
        [long, *[(0.0, 5, 2)] * 30],
        2,
        think=think,
        limits=replace(deployment.limits, sequences=1),
        policies=Policies(max_waiting=0),
    )
    served = rows.last_token[0]
    sent = np.sort(rows.arrival[rows.turned_away & (rows.arrival < served)])
    assert len(sent) > 5
    assert sent == pytest.approx(think * np.arange(len(sent)))
    assert sent[-1] < served <= sent[-1] + think


@pytest.mark.parametrize("order", list(ORDERS))
def test_of_equals_the_first_to_come_is_admitted_first(make_deployment, order):
    """Not the one with the smaller number: turn 1 of the first session comes after the second."""
    deployment, nan = make_deployment(), np.nan
    requests = RequestBatch(
        np.array([0.0, nan, 0.001, 0.002]),
        np.full(4, 5),
        np.array([20, 9, 9, 9]),
        after=np.array([-1, 0, -1, -1]),
        think=np.zeros(4),
    )
    limits = replace(deployment.limits, sequences=1)
    rows = serve(requests, deployment.costs, limits, policies=Policies(order=ORDERS[order]))
    assert rows.arrival[1] > rows.arrival[3]
    assert np.argsort(rows.admitted).tolist() == [0, 2, 3, 1]
