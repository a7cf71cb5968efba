"""An FFN pool that fails stops all; an attention rank that fails stops only its own sequences."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.chipsim.exceptions import NO_IRREGULARITIES
from sim.chipsim.visits import visit_factory
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.planning.attention_ffn import PoolSharing, deploy_with_ffn
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.serving.policy import Policies, least_loaded
from sim.serving.replica_config import Outage, PoolOutages, ReplicaConfig
from sim.serving.service import serve_fleet
from sim.workload.requests import RequestBatch

RANKS = 4
LINKS = LayerTransfer(bandwidth=1e9, latency=2e-6)


@pytest.fixture(scope="module")
def deployment(make_model, make_chip, lossy):
    model, chip = make_model(), make_chip(fp16=1e10)
    parts = [
        DeploymentParts(model, chip, 4, lossy, plan, chip.topology)
        for plan in (Plan(attention_data=RANKS), Plan(tensor=4))
    ]
    overrides = (LimitOverrides(token_budget=64), LimitOverrides())
    return deploy_with_ffn(*parts, PoolSharing(2, LINKS), (64, 32), overrides)


@pytest.fixture(scope="module")
def serve(deployment):
    """Serve requests with outages of the pools: 16 at once, unless a test changes it."""

    def run(pool_outages, arrival=(0.0,) * 16, sizes=None, options=None, **changes):
        usual = ReplicaConfig(deployment.costs, deployment.limits, pool_outages=pool_outages)
        count = len(arrival)
        sizes = sizes or (np.full(count, 8), np.full(count, 30))
        requests = RequestBatch(np.array(arrival), *sizes)
        return serve_fleet(requests, [replace(usual, **changes)], least_loaded, **(options or {}))

    run.limits = deployment.limits
    return run


def middle(rows):
    """A moment within the step in the middle of the run, not at its start."""
    first, last = rows.first_token.max(), rows.last_token.max()
    return float(first + 14.4 * (last - first) / 29)


@pytest.mark.parametrize("chips", [False, True])
def test_an_ffn_outage_delays_all_by_its_length_and_the_lost_part_of_a_step(
    serve, deployment, chips
):
    """The attention pool keeps its KV cache: no request is retried, and no prompt computed again."""
    factory = visit_factory(deployment.costs, (NO_IRREGULARITIES,) * 2, [0]) if chips else None
    usual = serve(None)
    at = middle(usual)
    down = PoolOutages(other=(Outage(at=at, lasts=0.5),))
    failing = serve(down, machine=factory)
    late = failing.last_token - usual.last_token
    assert not failing.retries.any()
    assert late == pytest.approx(np.full(16, late[0]), rel=1e-9)
    step = (usual.last_token.max() - usual.first_token.max()) / 29
    assert 0.5 + 0.2 * step < late[0] < 0.5 + step
    assert failing.first_token == pytest.approx(usual.first_token, rel=1e-9)
    made = [sum(rows.tallies[0].batch_steps.values()) for rows in (usual, failing)]
    assert 0.2 < made[1] - made[0] < 1  # the lost part of a step took energy
    waited = float((failing.last_token - failing.first_token).sum())
    assert failing.gaps.total == pytest.approx(waited)  # the outage is a part of a gap
    assert failing.busy[0] == pytest.approx(failing.elapsed - 0.5)  # it works all the other time


def test_chips_send_nothing_more_of_a_step_that_an_outage_has_ended(serve, deployment):
    factory = visit_factory(deployment.costs, (NO_IRREGULARITIES,) * 2, [0])
    usual = serve(None, machine=factory)
    step = (usual.last_token.max() - usual.first_token.max()) / 29
    down = Outage(at=float(usual.first_token.max() + 0.2 * step), lasts=0.5)
    failing = serve(PoolOutages(other=(down,)), machine=factory)
    usually, sent = (rows.traffic[0].messages for rows in (usual, failing))
    assert 0 < sent - usually < 0.5 * usually / 30


def test_no_work_is_made_in_a_part_of_the_run_in_which_the_ffn_pool_is_down(serve):
    """All is made before, also the lost part of a step, whether steps leap or not."""
    usual = serve(None)
    at = middle(usual)
    down = PoolOutages(other=(Outage(at=at, lasts=0.5),))
    until = {
        (end, leap): serve(down, options={"counted": (0.0, at + end), "leap": leap}).span
        for end in (0.1, 0.4)
        for leap in (True, False)
    }
    half = serve(down, options={"counted": (0.0, at / 2)}).span  # ends within a leap
    assert half.busy[0] == pytest.approx(at / 2)
    first = until[0.1, True]
    assert first.busy[0] == pytest.approx(at)
    assert first.tallies[0].logits == 16 * 15  # those of the lost part are made later
    for span in until.values():
        assert span.busy[0] == pytest.approx(first.busy[0])
        assert span.tallies[0].logits == first.tallies[0].logits
        assert span.tallies[0].batch_steps == pytest.approx(first.tallies[0].batch_steps)


def test_a_dead_rank_stops_only_its_own_sequences(serve):
    usual = serve(None)
    for requests in ("retry", "fail"):
        outage = Outage(at=middle(usual), lasts=1.0, replica=1, requests=requests)
        rows = serve(PoolOutages(attention=(outage,)))
        hit = rows.failed | (rows.retries > 0)
        assert np.flatnonzero(hit).tolist() == [1, 5, 9, 13]  # requests are on the ranks in turn
        others = rows.last_token[~hit]
        assert (others < outage.at + outage.lasts).all()
        if requests == "fail":
            # Each rank has as many sequences as before, and the FFN pool has fewer tokens.
            assert (others <= usual.last_token[~hit] * (1 + 1e-9)).all()
        else:
            assert rows.finished.all()
            assert (rows.last_token[hit] > others.max()).all()


def test_a_rank_that_works_again_holds_only_later_sequences(serve):
    """12 requests are on three ranks while one is down. So four later ones go to that one, and its next failure hits only these."""
    time = middle(serve(None))
    down = [Outage(at=at, lasts=time / 4, replica=1) for at in (0.0, time)]
    rows = serve(PoolOutages(attention=tuple(down)), (0.0,) * 12 + (time / 2,) * 4)
    assert np.flatnonzero(rows.retries).tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize("room", [{"kv_tokens": 16 * 38}, {"sequences": 16}])
def test_less_room_is_left_while_a_rank_is_down(serve, room):
    """The ranks hold 16 requests of 38 tokens. Without one of them, 12 run at a time."""
    limits = replace(serve.limits, **room)
    down = PoolOutages(attention=(Outage(at=0.0, lasts=100.0, replica=3),))
    rows = serve(down, limits=limits)
    assert (rows.admitted == 0.0).sum() == 12
    assert rows.finished.all()
    back = serve(PoolOutages(attention=(Outage(at=0.0, lasts=1e-4, replica=3),)), limits=limits)
    assert sorted(back.admitted)[12:] == pytest.approx([1e-4] * 4)


def test_the_other_ranks_are_a_smaller_pool(serve, deployment):
    """From the start to the end of the run: as 12 requests on three ranks."""
    down = PoolOutages(attention=(Outage(at=0.0, lasts=100.0),))
    rows = serve(down, (0.0,) * 12)
    layout = deployment.layout
    three = replace(layout, plan=replace(layout.plan, attention_data=3))
    limits = replace(serve.limits, ranks=3, token_budget=3 * serve.limits.token_budget // 4)
    smaller = serve(None, (0.0,) * 12, costs=deployment.costs.on(three), limits=limits)
    assert rows.last_token == pytest.approx(smaller.last_token, rel=1e-9)
    assert rows.last_token.max() > 1.02 * serve(None, (0.0,) * 12).last_token.max()


def test_without_any_rank_the_replica_is_down(serve):
    usual = serve(None)
    outage = Outage(at=middle(usual), lasts=0.2)
    every = tuple(outage.model_copy(update={"replica": rank}) for rank in range(RANKS))
    ranks, whole = serve(PoolOutages(attention=every)), serve(None, outages=(outage,))
    assert ranks.last_token == pytest.approx(whole.last_token, rel=1e-9)
    assert (ranks.retries == whole.retries).all()
    assert ranks.retries.all()
    longer = outage.model_copy(update={"lasts": 0.3})
    both, whole = serve(PoolOutages(every, (longer,))), serve(None, outages=(longer,))
    assert both.last_token == pytest.approx(whole.last_token, rel=1e-9)


moments = st.floats(0.0, 0.02)
outages_of_ranks = st.dictionaries(
    st.integers(0, RANKS - 1), st.tuples(moments, st.floats(1e-4, 0.01)), max_size=RANKS
)
requests_sent = st.lists(
    st.tuples(moments, st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12
)
spans = st.tuples(moments, st.floats(1e-4, 0.01))


@settings(max_examples=40)
@given(
    st.one_of(st.none(), spans),
    outages_of_ranks,
    requests_sent,
    st.booleans(),
    st.sampled_from([None, 0.02]),
)
def test_every_request_ends_once_and_not_while_the_ffn_pool_is_down(
    serve, down, ranks, sent, reserve, deadline
):
    ffn = (Outage(at=down[0], lasts=down[1]),) if down else ()
    failures = [Outage(at=at, lasts=t, replica=rank) for rank, (at, t) in ranks.items()]
    arrival, prompt, output = zip(*sorted(sent), strict=True)
    rows = serve(
        PoolOutages(tuple(failures), ffn),
        sizes=(np.array(prompt), np.array(output)),
        arrival=arrival,
        limits=replace(serve.limits, kv_tokens=150),
        policies=Policies(reserve=reserve, deadline=deadline),
    )
    assert (rows.finished.astype(int) + rows.cancelled == 1).all()
    assert not np.isnan(rows.last_token[rows.finished]).any()
    assert (rows.admitted <= rows.first_token)[rows.finished].all()
    assert (rows.first_token <= rows.last_token)[rows.finished].all()
    if down:
        start, end = down[0] * (1 + 1e-9), sum(down) * (1 - 1e-9)
        assert not ((rows.last_token > start) & (rows.last_token < end)).any()
        assert not ((rows.first_token > start) & (rows.first_token < end)).any()


@settings(max_examples=40)
@given(st.lists(spans, max_size=2), outages_of_ranks, requests_sent, st.sampled_from([None, 0.02]))
def test_a_leap_between_failures_is_its_steps(serve, down, ranks, sent, deadline):
    """Rows, work, busy time and gaps are those of single steps, also in a part of the run."""
    ffn = tuple(Outage(at=at, lasts=lasts) for at, lasts in down)
    failures = [Outage(at=at, lasts=t, replica=rank) for rank, (at, t) in ranks.items()]
    arrival, prompt, output = zip(*sorted(sent), strict=True)
    leaping, single = (
        serve(
            PoolOutages(tuple(failures), ffn),
            sizes=(np.array(prompt), np.array(output)),
            arrival=arrival,
            options={"leap": leap},
            policies=Policies(deadline=deadline),
        )
        for leap in (True, False)
    )
    for column in ("admitted", "first_token", "last_token", "ended"):
        expected = getattr(single, column)
        assert getattr(leaping, column) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert (leaping.retries == single.retries).all()
    for rows, other in ((leaping, single), (single, leaping)):
        work, others = rows.tallies[0].batch_steps, other.tallies[0].batch_steps
        assert all(steps == pytest.approx(others[size]) for size, steps in work.items())
    assert leaping.busy[0] == pytest.approx(single.busy[0], rel=1e-9)
    assert leaping.gaps.count == single.gaps.count
    assert leaping.gaps.total == pytest.approx(single.gaps.total, rel=1e-9)


def test_outages_that_overlap_end_with_the_last_one(serve):
    """Also if all ranks are down meanwhile. The run did not end before."""
    ffn = (Outage(at=0.0, lasts=0.01), Outage(at=0.0, lasts=0.02))
    ranks = tuple(Outage(at=0.0, lasts=0.001 * (rank + 4), replica=rank) for rank in range(RANKS))
    rows = serve(PoolOutages(ranks, ffn))
    assert rows.finished.all()
    assert rows.first_token.min() > 0.02
