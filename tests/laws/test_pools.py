"""Prefill and decode pools: queues, links and rooms obey closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.plan import Plan
from sim.serving.policy import DEFAULT, Policies, least_loaded
from sim.serving.replica_config import ReplicaConfig
from sim.serving.service import serve, serve_fleet
from sim.serving.transfer import PoolConfig, Transfer
from sim.workload.requests import RequestBatch

INSTANT = Transfer(bandwidth=1e30)


@pytest.fixture(scope="module")
def deployments(make_deployment, make_chip, lossy):
    """A replica of one stage, and one of three."""
    return {
        "one": make_deployment(1, engine=lossy),
        "piped": make_deployment(3, plan=Plan(pipeline=3), engine=lossy),
    }


def pool(deployment, replicas=1, policies=DEFAULT, **limits):
    """The configurations of equal replicas."""
    config = ReplicaConfig(deployment.costs, replace(deployment.limits, **limits), policies)
    return [replace(config, number=number) for number in range(replicas)]


def serve_pools(asked, prefill, decode, transfer=INSTANT, leap=True):
    pools = PoolConfig(len(prefill), transfer)
    return serve_fleet(asked, [*prefill, *decode], least_loaded, pools=pools, leap=leap)


def apart(n, prompt, output, gap=10.0):
    """Requests that never meet."""
    return RequestBatch(gap * np.arange(n), np.full(n, prompt), np.full(n, output))


@pytest.mark.parametrize("kind", ["one", "piped"])
def test_an_instant_link_and_no_queue_leave_both_phases_as_they_are(deployments, kind):
    one = deployments[kind]
    asked = apart(3, 40, 12)
    together = serve(asked, one.costs, one.limits)
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
    pools = [
        (
            draw(st.sampled_from(["one", "piped"])),
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


@settings(max_examples=80)
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
            min(r.costs.stages for r in (prefill[0], decode[0])) if transfer.per == "chip" else 1
        )
        assert sum(moved.busy) == pytest.approx(2 * nbytes / rate)
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(rows, column) == pytest.approx(
            getattr(steps, column), rel=1e-12, abs=1e-15, nan_ok=True
        )
    assert rows.gaps.bins == steps.gaps.bins
    tokens = rows.requests.output[done].sum()
    assert rows.gaps.count == tokens - done.sum()
