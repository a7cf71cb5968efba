"""Sequences spread over the micro-batches of a pipeline, whatever the order or the instant in which their requests came."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.plan import Plan
from sim.serving.policy import Policies, prefill_first, static
from sim.serving.scheduler import Scheduler
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

STAGES = 4


@pytest.fixture(scope="module")
def pipeline(make_deployment, make_chip, lossy):
    return make_deployment(
        STAGES, chip=make_chip(1e9), engine=lossy, plan=Plan(pipeline=STAGES), token_budget=64
    )


def throughput(deployment, arrival, prompt, output, **options):
    """Output tokens a second, from the first arrival to the last token."""
    n = len(arrival)
    requests = RequestBatch(np.array(arrival, float), np.full(n, prompt), np.full(n, output))
    rows = serve(requests, deployment.costs, deployment.limits, **options)
    return n * output / (rows.last_token.max() - rows.arrival.min())


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 40))
def test_requests_at_one_instant_are_served_as_those_a_little_apart(pipeline, users, prompt):
    """Else all of them would pack into one micro-batch, and the other stages would be idle."""
    n = users * STAGES
    together, apart = (throughput(pipeline, np.arange(n) * gap, prompt, 600) for gap in (0.0, 1e-4))
    assert together == pytest.approx(apart, rel=0.05)


@pytest.mark.parametrize("leap", [True, False])
@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.02), st.integers(1, 150), st.integers(1, 30)),
        min_size=1,
        max_size=24,
    ),
    st.none() | st.integers(1, 3),
)
def test_no_micro_batch_takes_more_than_its_share(pipeline, serve_on, leap, drawn, size):
    """At most ceil(admitted / micro-batches) sequences when it takes one, and never more than `micro_batch`."""
    taken = []
    join = Scheduler.join

    def seen(scheduler, batch, job, leave):
        join(scheduler, batch, job, leave)
        taken.append((batch.running, -(-24 // STAGES), size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "join", seen)
        serve_on(pipeline, sorted(drawn), leap=leap, policies=Policies(size=size))
    assert all(running <= min(share, size or share) for running, share, _ in taken)


@pytest.mark.parametrize("batching", [prefill_first, static])
def test_a_micro_batch_is_bounded_under_every_policy(pipeline, batching):
    """Of one sequence at a time in each of four micro-batches, four are served as fast as one alone, and no faster."""
    options = {"policies": Policies(batching=batching, size=1)}
    one, four, eight = (throughput(pipeline, np.zeros(n), 1, 400, **options) for n in (1, 4, 8))
    assert four > 2 * one
    assert eight == pytest.approx(four, rel=0.05)


@given(st.permutations(range(12)))
@settings(max_examples=20)
def test_the_order_of_equal_arrivals_changes_no_throughput(pipeline, order):
    """Requests of two lengths that come at one instant, in any order."""
    output = np.where(np.array(order) % 2, 200, 400)
    requests = RequestBatch(np.zeros(12), np.full(12, 5), output)
    rows = serve(requests, pipeline.costs, pipeline.limits)
    halves = RequestBatch(np.zeros(12), np.full(12, 5), np.repeat([200, 400], 6))
    assert rows.last_token.max() == pytest.approx(
        serve(halves, pipeline.costs, pipeline.limits).last_token.max(), rel=0.1
    )
