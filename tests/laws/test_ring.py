"""The ring of beats in closed form is a plain loop over beats, and does the work of any other policy."""

import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from sim.cost.plan import Plan
from sim.serving.policy import Policies, continuous, least_loaded, ring
from sim.serving.replica_config import ReplicaConfig
from sim.serving.ring import beat_schedule
from sim.serving.service import Service, serve_fleet
from sim.serving.transfer import PoolConfig, Transfer
from sim.workload.requests import RequestBatch

PLANS = {
    "one stage": (1, Plan()),
    "three uneven stages": (3, Plan(pipeline=3)),
    "four stages": (4, Plan(pipeline=4)),
    "two stages of two": (4, Plan(tensor=2, pipeline=2)),
}
TOKENS = 40  # of a mean request
windowed = {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2}


@pytest.fixture(scope="module")
def compiled(make_deployment, make_model, make_chip, lossy):
    """A plan of `PLANS` under an engine that takes a token a beat."""
    engine = lossy.model_copy(update={"tokens_per_beat": 1})

    def make(plan, model=None, **limits):
        chips, degrees = PLANS[plan]
        deployment = make_deployment(
            chips,
            TOKENS,
            plan=degrees,
            chip=make_chip(capacity=2e6),
            model=make_model(**(model or {})),
            engine=engine,
            token_budget=None,
        )
        return replace(deployment, limits=replace(deployment.limits, **limits))

    return make


def serve(deployment, requests, replicas=1, policy=ring, think=0.0, counted=None, **options):
    policies = Policies(batching=policy, **options)
    configs = [
        ReplicaConfig(
            deployment.costs, deployment.limits, policies, number=n, request_tokens=TOKENS
        )
        for n in range(replicas)
    ]
    return serve_fleet(requests, configs, policies.router, think=think, counted=counted)


def drawn(schedule, load, count=300, seed=0):
    """Requests of varied lengths at a share of the beats; some arrive exactly with a beat."""
    random = np.random.default_rng(seed)
    prompt, output = random.integers(1, 60, count), random.integers(1, 30, count)
    output[::7] = 1
    beats = np.cumsum(random.exponential((prompt + output).mean() / load, count))
    beats[::5] = np.floor(beats[::5])
    beats.sort()  # a request that comes earlier is first in the queue
    return RequestBatch(beats * schedule.beat, prompt, output)


def loop_over_beats(schedule, limits, requests):
    """Return first and last token times of requests, one beat after the other."""
    beat, unloaded, lap = schedule
    arrivals, prompts, outputs = (
        x.tolist() for x in (requests.arrival, requests.prompt, requests.output)
    )
    coming, waiting, prefilling = deque(range(len(arrivals))), deque(), deque()
    first, last = [math.nan] * len(arrivals), [math.nan] * len(arrivals)
    places, left, leaving = [None] * lap, {}, []  # who decodes where, and what is left to do
    free, seats, number = limits.kv_tokens, min(limits.sequences, lap), 0
    while coming or waiting or prefilling or any(x is not None for x in places) or leaving:
        now = (number + 1e-6) * beat  # clocks round
        while coming and arrivals[coming[0]] <= now:
            waiting.append(coming.popleft())
        for who in [who for who in leaving if last[who] <= now]:
            leaving.remove(who)
            free, seats = free + prompts[who] + outputs[who], seats + 1
        while waiting and seats and prompts[waiting[0]] + outputs[waiting[0]] <= free:
            who = waiting.popleft()
            free, seats, left[who] = free - prompts[who] - outputs[who], seats - 1, prompts[who]
            prefilling.append(who)
        who, leave = places[number % lap], number * beat + unloaded
        if who is not None:
            left[who] -= 1
        elif prefilling:
            who = prefilling[0]
            left[who] -= 1
            if not left[who]:
                prefilling.popleft()
                first[who], left[who], places[number % lap] = leave, outputs[who] - 1, who
        if who is not None and places[number % lap] == who and not left[who]:
            last[who], places[number % lap] = leave, None
            leaving.append(who)
        number += 1
    return np.array(first), np.array(last)


@pytest.mark.parametrize(("kv_tokens", "sequences"), [(10_000, 256), (130, 256), (10_000, 2)])
@pytest.mark.parametrize("load", [0.3, 0.9, 3.0])
@pytest.mark.parametrize("plan", sorted(PLANS))
def test_the_closed_form_is_a_loop_over_beats(compiled, plan, load, kv_tokens, sequences):
    """With room for all and with room for few, below and above what the beats allow."""
    deployment = compiled(plan, kv_tokens=kv_tokens, sequences=sequences)
    schedule = beat_schedule(deployment.costs, TOKENS)
    requests = drawn(schedule, load)
    rows = serve(deployment, requests)
    first, last = loop_over_beats(schedule, deployment.limits, requests)
    np.testing.assert_allclose(rows.first_token, first, rtol=1e-9, atol=0)
    np.testing.assert_allclose(rows.last_token, last, rtol=1e-9, atol=0)
    places = min(sequences, schedule.lap)
    for moment in rows.admitted:
        assert ((rows.admitted <= moment) & (moment < rows.last_token - 1e-9)).sum() <= places


def test_a_lap_is_an_unloaded_pass_in_whole_beats(compiled):
    for plan in PLANS:
        costs = compiled(plan).costs
        beat, unloaded, lap = schedule = beat_schedule(costs, TOKENS)
        assert (lap - 1) * beat < unloaded + costs.back <= lap * beat * (1 + 1e-9)
        rows = serve(compiled(plan), RequestBatch(np.zeros(1), np.array([5]), np.array([9])))
        assert rows.first_token[0] == pytest.approx(4 * beat + unloaded, rel=1e-12)
        assert rows.last_token[0] - rows.first_token[0] == pytest.approx(8 * schedule.tpot)


def test_a_ring_keeps_a_sequences_pace_whatever_comes(compiled):
    """At a load of three times the beats, each gap is a lap."""
    deployment = compiled("four stages")
    schedule = beat_schedule(deployment.costs, TOKENS)
    requests = drawn(schedule, load=3.0)
    rows = serve(deployment, requests)
    np.testing.assert_allclose(
        rows.last_token - rows.first_token, (requests.output - 1) * schedule.tpot, rtol=1e-9
    )
    assert rows.gaps.count == (requests.output - 1).sum()
    assert len(rows.gaps.bins) == 1
    assert rows.gaps.mean == pytest.approx(schedule.tpot)


@pytest.mark.parametrize("model", [None, windowed], ids=["full attention", "windows"])
@pytest.mark.parametrize("plan", ["one stage", "three uneven stages"])
def test_its_work_is_that_of_micro_batches(compiled, plan, model):
    """Tokens, positions and busy seconds of requests that come one by one do not depend on the policy."""
    deployment = compiled(plan, model)
    schedule = beat_schedule(deployment.costs, TOKENS)
    requests = drawn(schedule, load=0.01, count=40)
    rows, others = (serve(deployment, requests, policy=policy) for policy in (ring, continuous))
    (tally,), (other,) = rows.tallies, others.tallies
    for name in type(tally).__slots__:
        assert getattr(tally, name) == getattr(other, name), name
    np.testing.assert_allclose(rows.busy[0], others.busy[0], rtol=1e-9)


@pytest.mark.parametrize("users", [None, 7])
def test_every_request_ends_once_on_replicas_behind_a_router(compiled, users):
    deployment = compiled("four stages", kv_tokens=85)
    schedule = beat_schedule(deployment.costs, TOKENS)
    requests = drawn(schedule, load=2.0)
    if users:
        requests = replace(requests, arrival=np.full(300, np.nan), users=users)
    rows = serve(deployment, requests, replicas=2, think=1e-4, max_waiting=20)
    tokens = requests.prompt + requests.output
    too_long, done = tokens > 85, rows.finished
    assert 0 < too_long.sum() < 300
    assert (np.array([bool(reason) for reason in rows.reason]) == ~done).all()
    assert (too_long | rows.turned_away == ~done).all()
    assert bool(rows.turned_away.any()) == (users is None)
    assert np.isfinite(rows.ended).all()
    assert (rows.arrival[done] <= rows.admitted[done]).all()
    assert (rows.admitted[done] < rows.first_token[done]).all()
    assert max(rows.kv_peak) <= 85
    for number, tally in enumerate(rows.tallies):
        here = rows.replica == number
        assert here.any()
        steps = (requests.prompt + requests.output - 1)[here & done].sum()
        assert tally.batch_steps == {1: steps}
        assert tally.logits == requests.output[here & done].sum()


def test_a_part_of_a_run_counts_the_tokens_that_enter_in_it(compiled):
    """By hand: of a prompt of 4 and 10 tokens after it, those of the beats from 2.5 to 3 + 5.5 laps."""
    deployment = compiled("four stages")
    beat, _, lap = beat_schedule(deployment.costs, TOKENS)
    requests = RequestBatch(np.zeros(1), np.array([4]), np.array([11]))
    until = (3 + 5.5 * lap) * beat
    span = serve(deployment, requests, counted=(2.5 * beat, until)).span
    (tally,) = span.tallies
    assert tally.batch_steps[1] == 1 + 5
    assert tally.attended == 4
    assert tally.context == sum(range(5, 10))
    assert tally.logits == 1 + 5


def test_beats_are_no_longer_than_those_of_the_longest_request_that_is_served(compiled):
    """A mean request of 40 tokens is refused where the context has 30, and needs no beats."""
    deployment = compiled("four stages", context=30)
    expected, mean = (beat_schedule(deployment.costs, n).tpot for n in (30, TOKENS))
    requests = RequestBatch(np.zeros(2), np.array([20, 30]), np.array([10, 10]))
    rows = serve(deployment, requests)
    assert rows.finished.tolist() == [True, False]
    assert (rows.last_token - rows.first_token)[0] == pytest.approx(9 * expected)
    assert expected < mean


@pytest.mark.parametrize("deadline", [None, 0.004])
def test_a_ring_prefills_for_a_decode_pool_as_it_answers_alone(compiled, make_deployment, deadline):
    """Prompts of one token each take the same beats; and rooms are empty in the end, deadline or not."""
    deployment = compiled("three uneven stages", kv_tokens=150)
    decode = make_deployment(1, TOKENS)
    random = np.random.default_rng(3)
    prompts = random.integers(1, 60, 30)
    arrivals = np.cumsum(random.exponential(0.002, 30))
    asked = RequestBatch(arrivals, prompts, np.full(30, 9))
    configs = [
        ReplicaConfig(
            deployment.costs,
            deployment.limits,
            Policies(batching=ring),
            request_tokens=TOKENS,
        ),
        ReplicaConfig(decode.costs, decode.limits, Policies(deadline=deadline)),
    ]
    pools = PoolConfig(1, Transfer(bandwidth=1e30, overlap="layers"))
    service = Service(asked, configs, least_loaded, pools=pools)
    rows = service.run()
    for replica in service.fleet.replicas:
        assert (replica.kv_cache.kv_used, replica.kv_cache.sequences_used) == (0, 0)
    if deadline:
        assert rows.cancelled.any()
        return
    alone = serve(deployment, replace(asked, output=np.ones(30, int)))
    assert rows.finished.all()
    assert rows.first_token == pytest.approx(alone.first_token, rel=1e-9)


def test_a_ring_decodes_for_a_prefill_pool_at_its_own_pace(compiled, make_deployment):
    """A received sequence takes the first free beat, and then one in each lap. No beat has two."""
    deployment = compiled("three uneven stages", kv_tokens=600)
    prefill, random = make_deployment(1, TOKENS), np.random.default_rng(4)
    arrivals = np.cumsum(random.exponential(6 * beat_schedule(deployment.costs, TOKENS).beat, 300))
    outputs = random.integers(1, 9, 300)
    asked = RequestBatch(arrivals, random.integers(1, 20, 300), outputs)
    configs = [
        *[ReplicaConfig(prefill.costs, prefill.limits, Policies())] * 3,
        ReplicaConfig(
            deployment.costs, deployment.limits, Policies(batching=ring), request_tokens=TOKENS
        ),
    ]
    pools = PoolConfig(3, Transfer(bandwidth=1e8, latency=1e-5))
    service = Service(asked, configs, least_loaded, pools=pools)
    rows = service.run()
    target = service.fleet.replicas[-1]
    beat, unloaded, lap = target.schedule
    assert rows.finished.all()
    assert (target.kv_cache.kv_used, target.kv_cache.sequences_used, target.beats) == (0, 0, {})
    decoding = outputs > 1
    start = (rows.last_token - unloaded)[decoding] / beat - (outputs[decoding] - 2) * lap
    first = np.round(start).astype(int)
    assert start == pytest.approx(first, abs=1e-6)  # of a whole beat
    assert (start * beat >= rows.transfers.handed_over[decoding] - 1e-9).all()
    decodes = list(zip(first, outputs[decoding] - 1, strict=True))
    taken = {begin + n * lap for begin, own in decodes for n in range(own)}
    assert len(taken) == (outputs - 1).sum()
    tally = rows.tallies[-1]
    assert (tally.batch_steps[1], tally.logits, rows.gaps.count) == (len(taken),) * 3
    positions = zip(asked.prompt, outputs, strict=True)
    assert tally.context == sum(p + 1 + n for p, own in positions for n in range(own - 1))


def test_rings_in_both_pools_are_two_loops_over_beats(compiled):
    """The first loop has the prompts. The second has a token for each that arrives, and its decodes."""
    prefill, decode = compiled("four stages"), compiled("three uneven stages")
    schedule = beat_schedule(prefill.costs, TOKENS)
    asked = drawn(schedule, 0.3)
    asked = replace(asked, output=np.maximum(asked.output, 2))
    configs = [
        ReplicaConfig(of.costs, of.limits, Policies(batching=ring), request_tokens=TOKENS)
        for of in (prefill, decode)
    ]
    pools = PoolConfig(1, Transfer(bandwidth=1e8, latency=1.3e-5))
    rows = Service(asked, configs, least_loaded, pools=pools).run()
    assert rows.finished.all()
    prompts = replace(asked, output=np.ones_like(asked.output))
    first, _ = loop_over_beats(schedule, prefill.limits, prompts)
    assert rows.first_token == pytest.approx(first, rel=1e-9)
    arrived = rows.transfers.handed_over
    order = np.argsort(arrived, kind="stable")
    received = RequestBatch(arrived[order], np.ones_like(order), (asked.output - 1)[order])
    _, last = loop_over_beats(beat_schedule(decode.costs, TOKENS), decode.limits, received)
    assert rows.last_token[order] == pytest.approx(last, rel=1e-9)
