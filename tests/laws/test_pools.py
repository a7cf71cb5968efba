"""Prefill and decode pools: queues, links and rooms obey closed forms."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.reliability.link_errors import LinkErrors, LinkErrorSampler
from sim.serving.policy import DEFAULT, Policies, least_loaded
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.service import Service, serve
from sim.serving.step_draws import StepDraws
from sim.serving.transfer import PoolConfig, Transfer
from sim.workload.requests import RequestBatch

INSTANT = Transfer(bandwidth=1e30)


@pytest.fixture(scope="module")
def deployments(make_deployment, make_chip, lossy, speculate):
    """A replica of one stage, of three, and of two attention ranks; each also with two drafts."""
    plans = {
        "one": (1, Plan()),
        "piped": (3, Plan(pipeline=3)),
        "ranks": (2, Plan(attention_data=2)),
    }
    return {
        f"{kind}{drafting}": make_deployment(
            chips, plan=plan, engine=lossy, speculation=speculate(2) if drafting else None
        )
        for kind, (chips, plan) in plans.items()
        for drafting in ("", " drafting")
    }


def pool(deployment, replicas=1, policies=DEFAULT, outages=(), **limits):
    """The configurations of equal replicas. Outages name their replica."""
    config = ReplicaConfig(deployment.costs, replace(deployment.limits, **limits), policies)
    if deployment.layout.speculation:
        config = replace(config, draws=StepDraws((0.7, 0.4), seed=1))
    return [
        replace(config, number=n, outages=tuple(o for o in outages if o.replica == n))
        for n in range(replicas)
    ]


def serve_pools(asked, prefill, decode, transfer=INSTANT, leap=True, sent=None):
    """The rows.  At the end no replica holds room, and nothing is on its way.

    sent: to which each transfer adds when it was planned, and since when there was room for it, its
    ends, and its times of use.
    """
    pools = PoolConfig(len(prefill), transfer)
    service = Service(asked, [*prefill, *decode], least_loaded, pools=pools, leap=leap)
    if sent is not None:
        fleet = service.fleet
        start = fleet.start

        def recorded(journey):
            start(journey)
            sent.append((service.env.now, journey.reserved_at, journey.ends, list(journey.sent)))

        fleet.start = recorded
    rows = service.run()
    for replica in service.fleet.replicas:
        kv_cache = replica.kv_cache
        assert (kv_cache.kv_used, kv_cache.sequences_used) == (0, 0)
        assert not any(kv_cache.rank_sequences)
        assert len(kv_cache.rank_prompts) == 1 or not any(kv_cache.rank_prompts)
    fleet = service.fleet
    assert (fleet.journeys, list(fleet.stranded)) == ({}, [])
    assert not any(replica.admission.withdrawn for replica in fleet.prefill)
    return rows


def apart(n, prompt, output, gap=10.0):
    """Requests that never meet."""
    return RequestBatch(gap * np.arange(n), np.full(n, prompt), np.full(n, output))


@pytest.mark.parametrize("kind", ["one", "piped", "one drafting", "piped drafting"])
def test_an_instant_link_and_no_queue_leave_both_phases_as_they_are(deployments, kind):
    one = deployments[kind]
    asked = apart(3, 40, 12)
    together = serve(asked, one.costs, one.limits, draws=pool(one)[0].draws)
    rows = serve_pools(asked, pool(one), pool(one))
    assert rows.first_token == pytest.approx(together.first_token, rel=1e-12)
    assert rows.last_token == pytest.approx(together.last_token, rel=1e-12)
    assert rows.gaps.mean == pytest.approx(together.gaps.mean, rel=1e-9)


policies = st.builds(
    Policies,
    reserve=st.booleans(),
    prefix_caching=st.booleans(),
    size=st.sampled_from([None, None, 1, 2]),
)


@st.composite
def runs(draw):
    """Requests, both pools' kinds, rooms and policies, and the links."""
    n = draw(st.integers(1, 25))
    prompts, outputs = (
        np.array(draw(st.lists(st.integers(1, most), min_size=n, max_size=n))) for most in (60, 30)
    )
    if users := draw(st.none() | st.integers(1, 5)):
        asked = RequestBatch(np.full(n, np.nan), prompts, outputs, users)
    else:
        gaps = draw(st.lists(st.floats(0, 0.003, allow_subnormal=False), min_size=n, max_size=n))
        asked = RequestBatch(np.cumsum(gaps), prompts, outputs)
    drafting = draw(st.sampled_from(["", "", " drafting"]))
    pools = [
        (
            draw(st.sampled_from(["one", "piped", "ranks"])) + drafting,
            draw(st.integers(1, 3)),
            draw(policies),
            {"kv_tokens": draw(st.integers(20, 300)), "sequences": draw(st.integers(1, 8))},
        )
        for _ in range(2)
    ]
    transfer = Transfer(
        bandwidth=draw(st.sampled_from([1e6, 1e7, 1e30])),
        latency=draw(st.sampled_from([0.0, 1e-3])),
        handover=draw(st.sampled_from([0.0, 2e-3])),
        overlap=draw(st.sampled_from(["none", "layers", "chunks"])),
        per=draw(st.sampled_from(["flow", "replica", "chip"])),
    )
    return asked, pools, transfer


def rank_chips(config):
    return config.costs.stages * config.costs.layout.plan.tensor


@settings(max_examples=25)
@given(runs())
def test_rooms_hold_links_carry_every_prompt_and_leaps_are_their_steps(deployments, drawn):
    asked, drawn_pools, transfer = drawn
    prefill, decode = (
        pool(deployments[kind], replicas, policy, **limits)
        for kind, replicas, policy, limits in drawn_pools
    )
    rows, steps = (serve_pools(asked, prefill, decode, transfer, leap) for leap in (True, False))
    moved, done, sent = rows.transfers, rows.finished, rows.requests.output > 1
    assert all(bool(reason) != ok for reason, ok in zip(rows.reason, done, strict=True))
    assert all(peak <= room for peak, room in zip(rows.kv_peak, rows.kv_tokens, strict=True))
    travelled = done & sent
    assert (np.isfinite(moved.end) == travelled).all()
    assert (moved.end >= moved.start + transfer.latency - 1e-12)[travelled].all()
    assert (moved.start >= rows.first_token)[travelled].all()
    assert (rows.last_token > moved.end + transfer.handover)[travelled].all()
    assert (rows.replica[done] >= np.where(sent, len(prefill), 0)[done]).all()
    layout = prefill[0].costs.layout
    nbytes = sum(prompt_kv_bytes(layout, int(n)) for n in rows.requests.prompt[travelled])
    assert moved.nbytes == pytest.approx(nbytes)
    if transfer.overlap == "none":
        rate = transfer.bandwidth * (
            min(rank_chips(r) for r in (prefill[0], decode[0])) if transfer.per == "chip" else 1
        )
        links = [
            r.costs.layout.plan.attention_data if transfer.per == "chip" else 1
            for r in (*prefill, *decode)
        ]
        in_use = sum(n * busy for n, busy in zip(links, moved.busy, strict=True))
        assert in_use == pytest.approx(2 * nbytes / rate)
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(rows, column) == pytest.approx(
            getattr(steps, column), rel=1e-12, abs=1e-15, nan_ok=True
        )
    assert rows.gaps.bins == steps.gaps.bins
    gaps = rows.requests.output - 1 if rows.steps is None else rows.steps
    assert rows.gaps.count == gaps[done].sum()


outages = st.lists(
    st.builds(
        Outage,
        at=st.floats(0, 0.03),
        lasts=st.sampled_from([1e-3, 0.01, 0.1]),
        replica=st.integers(0, 2),
        requests=st.sampled_from(["retry", "retry", "fail"]),
    ),
    max_size=2,
    unique_by=lambda outage: outage.replica,
)
deadlines = st.sampled_from([None, None, 5e-3, 0.02])


def test_the_only_prompt_of_a_step_may_be_preempted(deployments):
    """It leaves no prompt in its place. A prompt and its drafts just fit into room for 59 tokens."""
    prompts = [*[1] * 14, 16, 56, 57, 56, *[1] * 6]
    outputs = [*[1] * 13, 3, 17, 10, 1, 2, *[1] * 6]
    asked = RequestBatch(np.zeros(24), np.array(prompts), np.array(outputs))
    policies = Policies(reserve=False)
    prefill = pool(deployments["one drafting"], 1, policies, kv_tokens=59, sequences=1)
    decode = pool(deployments["piped drafting"], 1, policies, kv_tokens=160, sequences=3)
    transfer = Transfer(bandwidth=1e30, latency=0.0, handover=0.0, overlap="layers", per="flow")
    rows, steps = (serve_pools(asked, prefill, decode, transfer, leap) for leap in (True, False))
    assert all(bool(reason) != ok for reason, ok in zip(rows.reason, rows.finished, strict=True))
    assert rows.last_token == pytest.approx(steps.last_token, rel=1e-9, nan_ok=True)


@settings(max_examples=25)
@given(runs(), outages, outages, deadlines, deadlines)
def test_no_request_and_no_room_is_lost_where_replicas_fail_and_deadlines_pass(
    deployments, drawn, failures, decode_failures, deadline, decode_deadline
):
    asked, drawn_pools, transfer = drawn
    prefill, decode = (
        pool(deployments[kind], n, replace(policy, deadline=limit), failed, **limits)
        for (kind, n, policy, limits), failed, limit in zip(
            drawn_pools,
            (failures, decode_failures),
            (deadline, decode_deadline),
            strict=True,
        )
    )
    rows, steps = (serve_pools(asked, prefill, decode, transfer, leap) for leap in (True, False))
    done, moved = rows.finished, rows.transfers
    assert (done.astype(int) + rows.cancelled + rows.failed <= 1).all()
    assert all(bool(reason) != ok for reason, ok in zip(rows.reason, done, strict=True))
    assert all(peak <= room for peak, room in zip(rows.kv_peak, rows.kv_tokens, strict=True))
    assert rows.failed.any() <= any(o.requests == "fail" for o in failures + decode_failures)
    assert rows.cancelled.any() <= bool(deadline or decode_deadline)
    assert (rows.retries >= rows.moved).all()
    assert (rows.arrival <= rows.admitted)[done].all()
    assert (rows.admitted <= rows.first_token)[done].all()
    for number in np.flatnonzero(done & (asked.output > 1)):
        assert rows.first_token[number] <= moved.start[number] <= moved.end[number]
        assert moved.end[number] + transfer.handover < rows.last_token[number]
        for config, begun, ended in (
            (prefill[moved.prefill_replica[number]], rows.admitted, moved.end),
            (decode[rows.replica[number] - len(prefill)], moved.start, rows.last_token),
        ):
            for o in config.outages:  # no replica serves while it is down
                assert ended[number] <= o.at * (1 + 1e-9) or begun[number] >= o.at + o.lasts - 1e-9
    if asked.users:  # answers that come together may be ordered by a rounding error
        return
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(rows, column) == pytest.approx(
            getattr(steps, column), rel=1e-9, abs=1e-12, nan_ok=True
        )
    for column in ("replica", "retries", "moved", "failed", "cancelled"):
        assert (getattr(rows, column) == getattr(steps, column)).all()


@settings(max_examples=15)
@given(runs(), outages, outages, st.sampled_from([0.0, 1e-3]), st.sampled_from([1e-6, 1e-5]))
def test_early_parts_leave_while_both_replicas_hold_the_request(
    deployments, drawn, failures, decode_failures, restart, rate
):
    """Replicas fail, and steps fail from link errors. Times of links are free, and not of a failure."""
    asked, drawn_pools, transfer = drawn
    transfer = transfer.model_copy(update={"overlap": "chunks" if restart else "layers"})
    errors = LinkErrors(bit_error_rate=rate, restart=restart)
    results = []
    for leap in (True, False):
        pools, sent = [], []
        for (kind, n, policy, limits), failed in zip(
            drawn_pools, (failures, decode_failures), strict=True
        ):
            deployment = deployments["piped drafting" if "drafting" in kind else "piped"]
            configs = pool(deployment, n, policy, failed, **limits)
            samplers = (
                LinkErrorSampler(errors, deployment.costs, [len(pools), i]) for i in range(n)
            )
            pools.append(
                [replace(c, error_sampler=e) for c, e in zip(configs, samplers, strict=True)]
            )
        rows = serve_pools(asked, *pools, transfer, leap, sent)
        results.append(rows)
    rows, steps = results
    configs = [*pools[0], *pools[1]]
    assert all(bool(reason) != ok for reason, ok in zip(rows.reason, rows.finished, strict=True))
    used = [[] for _ in configs]
    for now, reserved, ends, intervals in sent:
        assert intervals[0][0] >= reserved - 1e-9
        for number in ends:
            for o in configs[number].outages:
                # A replica that fails breaks off its transfers, also those that wait for a link.
                assert now <= o.at or now >= o.at + o.lasts - 1e-9
            used[number] += intervals
    whole = not (failures or decode_failures)
    for number, link in enumerate(used if whole and transfer.per != "flow" else []):
        assert all(one[1] <= other[0] + 1e-9 for one, other in pairwise(sorted(link)))
        assert rows.transfers.busy[number] == pytest.approx(sum(end - at for at, end in link))
    if asked.users:
        return
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(rows, column) == pytest.approx(
            getattr(steps, column), rel=1e-9, abs=1e-12, nan_ok=True
        )
    assert rows.transfers.end == pytest.approx(steps.transfers.end, rel=1e-9, nan_ok=True)


def test_a_decode_replica_that_fails_costs_a_transfer_or_a_prefill(deployments):
    """Before its prompt has come it travels again, to the other replica; after that it is computed again."""
    one = deployments["one"]
    asked = apart(1, 10, 12)
    transfer = Transfer(bandwidth=prompt_kv_bytes(one.layout, 10) / 0.01)
    usual = serve_pools(asked, pool(one), pool(one, 2), transfer)
    first, last = usual.first_token[0], usual.last_token[0]
    for at, begins in ((first + 0.004, 0.004), (last - 1e-4, last - 1e-4)):
        failed = pool(one, 2, outages=[Outage(at=at, lasts=1.0)])
        rows = serve_pools(asked, pool(one), failed, transfer)
        assert rows.last_token[0] == pytest.approx(last + begins)
        assert (rows.replica[0], rows.retries[0], rows.moved[0]) == (2, 1, True)
        assert (rows.first_token[0] > first) == (at > first + 0.01)


def test_a_prefill_replica_that_fails_takes_the_prompts_that_it_holds(deployments):
    one = deployments["one"]
    asked = apart(1, 10, 12)
    transfer = Transfer(bandwidth=prompt_kv_bytes(one.layout, 10) / 0.01)
    usual = serve_pools(asked, pool(one), pool(one), transfer)
    for after, lost in ((0.004, True), (0.011, False)):
        at = usual.first_token[0] + after
        failed = pool(one, outages=[Outage(at=at, lasts=1e-6)])
        rows = serve_pools(asked, failed, pool(one), transfer)
        again = at + 1e-6 if lost else 0.0
        assert rows.last_token[0] == pytest.approx(usual.last_token[0] + again)
        assert rows.retries[0] == lost


@pytest.mark.parametrize("leap", [True, False])
def test_a_prompt_whose_request_has_ended_is_work_of_the_run_and_does_not_begin_again(
    deployments, leap
):
    """The decode pool's deadline passes in the first step of the prompt, which goes on; then the prefill replica fails."""
    one = deployments["one"]
    asked, second = apart(1, 16, 12), prompt_seconds(one, 16)
    late = pool(one, policies=Policies(deadline=second / 4))
    overlapped = INSTANT.model_copy(update={"overlap": "layers"})
    rows = serve_pools(asked, pool(one), late, overlapped, leap)
    assert rows.cancelled[0]
    assert rows.ended[0] == pytest.approx(second / 4)
    assert rows.elapsed == pytest.approx(second)
    assert rows.busy[0][0] == pytest.approx(second)
    failed = pool(one, outages=[Outage(at=second / 2, lasts=1.0)])
    rows = serve_pools(asked, failed, late, overlapped, leap)
    assert (rows.cancelled[0], rows.retries[0]) == (True, 0)
    assert rows.elapsed == pytest.approx(second / 2)


def test_the_deadlines_of_the_pools_are_of_the_first_and_of_the_last_token(deployments):
    one = deployments["one"]
    asked = RequestBatch(np.zeros(2), np.full(2, 10), np.array([1, 400]))
    early, late = Policies(deadline=0.01), Policies(deadline=0.05)
    rows = serve_pools(asked, pool(one, policies=early), pool(one, policies=late))
    assert rows.cancelled.tolist() == [False, True]
    assert rows.ended[1] == pytest.approx(0.05, rel=0.1)
    rows = serve_pools(asked, pool(one, policies=late), pool(one))
    assert rows.finished.all()


def prompt_seconds(deployment, prompt):
    """The time of a prompt of one chunk on a replica of one stage."""
    seen = prompt * (prompt + 1) / 2
    return deployment.costs.line(Work(0, 0, prompt, 1, seen, prompt, logits=1))[0]


def test_prompts_of_one_length_queue_as_in_md1(deployments):
    """One prompt at a time on the only prefill replica, 70 % of the time."""
    one, prompt, n = deployments["one"], 12, 12_000
    service = prompt_seconds(one, prompt)
    gaps = np.random.default_rng(1).exponential(service / 0.7, n)
    asked = RequestBatch(np.cumsum(gaps), np.full(n, prompt), np.full(n, 2))
    rows = serve_pools(asked, pool(one, sequences=1), pool(one, 4))
    waits = rows.first_token - rows.arrival - service
    assert waits.mean() == pytest.approx(service * 0.7 / (2 * 0.3), rel=0.08)


@pytest.mark.parametrize(("prefills", "decodes"), [(1, 3), (4, 1)])
def test_the_slower_pool_sets_the_pace_of_a_full_closed_loop(deployments, prefills, decodes):
    one, prompt, output, places = deployments["one"], 12, 9, 2
    contexts = range(prompt + 1, prompt + output)
    turns = (one.costs.line(Work(places, places * at, logits=places))[0] for at in contexts)
    rates = prefills / prompt_seconds(one, prompt), decodes * places / sum(turns)
    n = 3000
    asked = RequestBatch(np.full(n, np.nan), np.full(n, prompt), np.full(n, output), 40)
    rows = serve_pools(
        asked, pool(one, prefills, sequences=1), pool(one, decodes, sequences=places)
    )
    ended = np.sort(rows.last_token)[n // 5 : 4 * n // 5]
    assert (len(ended) - 1) / (ended[-1] - ended[0]) == pytest.approx(min(rates), rel=0.02)


def test_transfers_of_one_replica_share_its_link(deployments):
    """Three prompts at once, one step: the first transfer takes 1/bandwidth, the last one three times that."""
    one, n = deployments["one"], 3
    nbytes = prompt_kv_bytes(one.layout, 5)
    asked = RequestBatch(np.zeros(n), np.full(n, 5), np.full(n, 4))
    for per, waits in (("replica", [1, 2, 3]), ("flow", [1, 1, 1])):
        transfer = Transfer(bandwidth=nbytes / 0.01, latency=0.003, per=per)
        rows = serve_pools(asked, pool(one), pool(one), transfer)
        took = rows.transfers.end - rows.first_token
        assert sorted(took) == pytest.approx([0.003 + 0.01 * times for times in waits])


def test_each_attention_rank_sends_over_the_links_of_its_own_chips(deployments):
    """Each of two ranks sends over one chip. So two of three transfers take 10 ms together, and the third waits for a rank."""
    ranks, n = deployments["ranks"], 3
    nbytes = prompt_kv_bytes(ranks.layout, 5)
    requests = RequestBatch(np.zeros(n), np.full(n, 5), np.full(n, 4))
    transfer = Transfer(bandwidth=nbytes / 0.01, latency=0.003, per="chip")
    rows = serve_pools(requests, pool(ranks), pool(ranks), transfer)
    took = rows.transfers.end - rows.first_token.min()
    assert sorted(took) == pytest.approx([0.013, 0.013, 0.023], abs=0.001)


@pytest.mark.parametrize("overlap", ["layers", "chunks"])
@pytest.mark.parametrize("share", [0.1, 3.0])
def test_parts_that_leave_early_leave_less_for_the_end(deployments, overlap, share):
    """A transfer that takes a tenth of the prefill ends a part after it; one of three prefills ends (n - 1)/n sooner."""
    one, prompt = deployments["one"], 48
    plain = serve(apart(1, prompt, 2), one.costs, one.limits).first_token[0]
    parts = {"layers": 4, "chunks": 3}[overlap]
    whole = share * plain
    transfer = Transfer(bandwidth=prompt_kv_bytes(one.layout, prompt) / whole, overlap=overlap)
    rows = serve_pools(apart(1, prompt, 3), pool(one), pool(one), transfer)
    left = max(whole / parts, whole - (parts - 1) / parts * plain)
    assert (rows.transfers.end - rows.first_token)[0] == pytest.approx(left, rel=0.02)


def test_a_full_decode_pool_holds_room_in_the_prefill_pool(deployments):
    """The decode replica has room for one request, so the next prompt waits where it is, and a third has no room there."""
    one = deployments["one"]
    asked = RequestBatch(np.zeros(3), np.full(3, 10), np.full(3, 30))
    rows = serve_pools(asked, pool(one, kv_tokens=11), pool(one, kv_tokens=40))
    first, second, third = (int(i) for i in np.argsort(rows.first_token))
    assert rows.transfers.start[second] >= rows.last_token[first]
    assert rows.admitted[third] >= rows.transfers.end[second]


def test_a_request_that_no_decode_replica_can_hold_is_refused_before_its_prefill(deployments):
    one = deployments["one"]
    asked = RequestBatch(np.zeros(2), np.full(2, 10), np.array([30, 1]))
    rows = serve_pools(asked, pool(one, kv_tokens=20), pool(one, kv_tokens=39))
    assert rows.reason == ["40 tokens exceed the KV room of 39", ""]
    assert rows.transfers.prefill_replica.tolist() == [-1, 0]
    assert rows.replica.tolist() == [-1, 0]
