"""Ranks of attention data parallelism that share nothing are copies of the model in lock step."""

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.plan import Plan
from sim.cost.system_costs import step_terms
from sim.cost.terms import TIME
from sim.cost.work import Work
from sim.serving.kv_cache import KVCache
from sim.serving.limits import SchedulerLimits
from sim.serving.policy import Policies, round_robin
from sim.serving.prompt_chunks import take_chunks
from sim.serving.request import Request

RANKS = st.integers(2, 4)
# Time since the request before, prompt, output.
DRAWN = st.lists(
    st.tuples(st.floats(0, 0.003), st.integers(1, 60), st.integers(1, 200)), min_size=1, max_size=30
)


@pytest.fixture(scope="module")
def lay(make_deployment, make_chip, lossy):
    """The small dense model, whole on each chip: as ranks or as replicas, with a budget a chip."""
    found = {}

    def build(ranks=1, replicas=1, budget=16, capacity=5e5):
        key = ranks, replicas, budget, capacity
        if key not in found:
            found[key] = make_deployment(
                ranks * replicas,
                chip=make_chip(capacity=capacity),
                engine=lossy,
                plan=Plan(attention_data=ranks, replicas=replicas),
                token_budget=budget,
            )
        return found[key]

    return build


@given(RANKS)
def test_ranks_have_the_limits_of_as_many_replicas(lay, n):
    one, ranks = lay(), lay(ranks=n)
    assert ranks.limits.kv_tokens == n * one.limits.kv_tokens > 0
    assert ranks.limits.sequences == n * one.limits.sequences
    assert ranks.limits.token_budget == n * one.limits.token_budget
    assert ranks.sequences(64)[0] == n * one.sequences(64)[0]


@settings(max_examples=40)
@given(RANKS, DRAWN)
def test_ranks_under_n_times_the_load_serve_as_n_replicas(lay, serve_on, n, drawn):
    """Requests come n at once, so that each rank has one of them, and all of a step are alike.

    There is room for all: KV cache is one sum over ranks, where a replica could have a rest.
    """
    times = np.cumsum([gap for gap, *_ in drawn])
    requests = [(at, *own) for at, (_, *own) in zip(times, drawn, strict=True) for _ in range(n)]
    apart = serve_on(
        lay(replicas=n, capacity=1e8),
        requests,
        replicas=n,
        policies=Policies(router=round_robin),
    )
    together = serve_on(lay(ranks=n, capacity=1e8), requests)
    for name in ("admitted", "first_token", "last_token"):
        assert getattr(together, name) == pytest.approx(getattr(apart, name), rel=1e-9)
    assert together.kv_peak == [sum(apart.kv_peak)]


@given(RANKS, st.integers(1, 100))
def test_a_single_prompt_takes_n_ranks_as_long_as_one(lay, serve_on, n, prompt):
    """One rank computes it, in chunks of its own budget, while the others have nothing to do."""
    one, ranks = (serve_on(deployment, [(0.0, prompt, 1)]) for deployment in (lay(), lay(ranks=n)))
    assert ranks.first_token == pytest.approx(one.first_token, rel=1e-9)


def test_a_rank_computes_its_own_prompts_within_its_share():
    """Two ranks of 10 tokens each: prompts 0 and 2 are of one rank, so 2 has no tokens yet."""
    lengths = [(25, 0), (4, 1), (3, 0), (9, 1)]
    prompts = deque(Request(n, 0.0, k, 2, k, rank=rank) for n, (k, rank) in enumerate(lengths))
    work, limits = Work(), SchedulerLimits(1, 20, 8, 1000, 1000, ranks=2)
    ended = take_chunks(prompts, work, 20, 8, limits)
    assert ([r.id for r in ended], [r.id for r in prompts]) == ([1], [0, 2, 3])
    assert [r.prefilled for r in prompts] == [10, 0, 6]
    assert (work.prompt_tokens, work.rank_prompt, work.chunks, work.logits) == (20, 10, 3, 1)


def test_a_request_joins_the_rank_with_the_fewest_sequences():
    requests = [Request(n, 0.0, 1, 1, 2) for n in range(5)]
    cache = KVCache(SchedulerLimits(1, 20, 8, 1000, 1000, ranks=3))
    for request in requests[:4]:
        cache.take(request)
    cache.give_back(requests[1])
    cache.take(requests[4])
    assert [request.rank for request in requests] == [0, 1, 2, 0, 1]
    assert cache.rank_sequences == [2, 1, 1]


def test_ranks_count_sequences_whose_prompts_are_on_their_way():
    """They will decode there. A prompt that another replica computes is no work of its rank."""
    requests = [Request(n, 0.0, 9 - n, 2, 11 - n) for n in range(4)]
    cache = KVCache(SchedulerLimits(1, 20, 8, 1000, 1000, ranks=2))
    for request in requests:
        cache.take(request)
        cache.await_prompt(request)
    assert [request.rank for request in requests] == [0, 1, 0, 1]
    assert (cache.rank_sequences, cache.rank_prompts) == ([2, 2], [0, 0])


def test_prompts_that_come_together_join_different_ranks():
    """Each round 16 of 2,059 sequences leave 72 ranks, and 16 come.

    Random ranks would be different in 15 % of the rounds: 72! / 56! / 72^16. No rank may hold more
    than its share of the sequences, because a step lasts as long as its fullest rank.
    """
    ranks, together, random = 72, 16, np.random.default_rng(0)
    cache = KVCache(SchedulerLimits(1, 10**5, 10**4, 10**7, 1000, ranks=ranks))
    held = [Request(n, 0.0, 16, 128, 144) for n in range(2059)]
    for request in held:
        cache.take(request)
    different = []
    for _ in range(100):
        cache.count_prompts([])  # all are computed
        for n in sorted(random.choice(len(held), together, replace=False))[::-1]:
            cache.give_back(held.pop(n))
        new = [Request(n, 0.0, 16, 128, 144) for n in range(together)]
        for request in new:
            cache.take(request)
        held += new
        assert max(cache.rank_sequences) <= math.ceil(len(held) / ranks)
        different.append(len({request.rank for request in new}) == together)
    assert np.mean(different) > 0.9


@pytest.mark.parametrize("other", [False, True])
def test_a_prompt_waits_for_the_other_rank_or_for_the_timeout(lay, serve_on, other):
    """Each of two ranks decodes a sequence. A prompt comes in step 2, and with `other` in step 5.

    The timeout of 12 steps counts from the last prompts, so the prompt alone starts in step 12.
    """
    deployment = lay(ranks=2, capacity=1e8)
    decoding = [(0.0, 10, 80), (0.0, 10, 80)]
    alone = serve_on(deployment, [(0.0, 10, 12)] * 2)
    start, step = alone.first_token[0], (alone.last_token[0] - alone.first_token[0]) / 11
    requests = [*decoding, (start + 1.5 * step, 10, 2)]
    requests += [(start + 4.5 * step, 10, 2)] * other
    first = {
        wait: serve_on(deployment, requests, policies=Policies(rank_wait=wait)).first_token
        for wait in (None, 12)
    }
    wait = (first[12] - first[None])[2] / step
    assert wait == pytest.approx(3 if other else 9, abs=0.1)
    assert first[12][2] == first[12][-1]


@pytest.mark.parametrize(
    ("pipeline", "every", "outputs"),
    [(1, 1, [900] * 4), (1, 4, [900] * 4), (1, 20, [900] * 4), (2, 1, [900, 900, 5, 5])],
)
def test_no_prompt_waits_beyond_the_timeout(
    make_deployment, make_chip, lossy, serve_on, pipeline, every, outputs
):
    """Also if the scheduler rarely sees requests, or only a micro-batch without sequences has a place."""
    own = {"chip": make_chip(capacity=1e8), "engine": lossy, "token_budget": 64}
    plan = Plan(attention_data=2, pipeline=pipeline)
    deployment = make_deployment(2 * pipeline, plan=plan, **own)
    alone = serve_on(deployment, [(0.0, 10, output) for output in outputs])
    step = (max(alone.last_token) - alone.first_token[0]) / 899
    requests = [*((0.0, 10, output) for output in outputs), (200 * step, 10, 5)]
    policies = Policies(rank_wait=12, receive_every=every)
    wait = serve_on(deployment, requests, policies=policies).first_token[-1] / step - 200
    assert wait < max(12, every) + 2


@settings(max_examples=30)
@given(RANKS, DRAWN, st.sampled_from([1, 3, 40]))
def test_waiting_for_ranks_fast_forwards_as_step_by_step(lay, serve_on, n, drawn, wait):
    times = np.cumsum([gap for gap, *_ in drawn])
    requests = [(at, *own) for at, (_, *own) in zip(times, drawn, strict=True)]
    fast, stepwise = (
        serve_on(lay(ranks=n), requests, policies=Policies(rank_wait=wait), leap=leap)
        for leap in (True, False)
    )
    for name in ("admitted", "first_token", "last_token"):
        assert getattr(fast, name) == pytest.approx(getattr(stepwise, name), rel=1e-9)


@given(DRAWN)
def test_a_single_rank_waits_for_no_other(lay, serve_on, drawn):
    requests = [(0.0, *own) for _, *own in drawn]
    rows = [
        serve_on(lay(capacity=1e8), requests, policies=Policies(rank_wait=wait))
        for wait in (None, 40)
    ]
    assert rows[1].first_token == pytest.approx(rows[0].first_token, rel=1e-12)


@given(
    RANKS,
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(0, 16),
    st.integers(0, 40),
)
def test_every_term_of_n_ranks_is_that_of_one_with_its_share(lay, n, contexts, new, old):
    """n times the sequences and prompts in n ranks: bytes of activations are divided as tokens are."""

    def work(copies):
        return Work(
            decodes=copies * len(contexts),
            context=copies * sum(contexts),
            prompt_tokens=copies * new,
            chunks=copies * bool(new),
            attended=copies * (new * old + new * (new + 1) // 2),
            cached=copies * (new + old) * bool(new),
            logits=copies * len(contexts),
            rank_prompt=new,
        )

    one, ranks = step_terms(lay().costs, work(1)), step_terms(lay(ranks=n).costs, work(n))
    assert ranks[:, TIME] == pytest.approx(one[:, TIME], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("budget", "ranks", "tokens"), [(16, 1, 16), (16, 4, 16), (5, 3, 5)])
def test_activations_hold_the_tokens_of_a_rank(lay, budget, ranks, tokens):
    """The widest multiply has 64 rows and 256 columns (gate and up together), at 2 B each."""
    assert lay(ranks=ranks, budget=budget).fit.activations == tokens * (64 + 256) * 2


def test_activations_of_a_limit_of_all_ranks_are_divided(make_deployment, make_engine):
    """Of 18 tokens in 4 ranks the fullest has 5."""
    engine = make_engine(limits_per="replica")
    four = make_deployment(4, engine=engine, plan=Plan(attention_data=4), token_budget=18)
    assert four.fit.activations == 5 * (64 + 256) * 2
