"""Whatever the policies: nothing is lost, no more is held than there is, leaps are their steps; each does what its name says."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.inputs.errors import UserError
from sim.serving.batch_wait import BatchWait
from sim.serving.policy import (
    BATCHINGS,
    ORDERS,
    ROUTERS,
    BatchDecision,
    Policies,
    continuous,
    prefill_first,
    ring,
    steady,
)
from sim.serving.scheduler import Scheduler
from sim.serving.service import serve
from sim.workload.requests import HASH_BLOCK, RequestBatch

policies = st.builds(
    Policies,
    batching=st.sampled_from([policy for policy in BATCHINGS.values() if policy is not ring]),
    order=st.sampled_from(list(ORDERS.values())),
    router=st.sampled_from(list(ROUTERS.values())),
    reserve=st.booleans(),
    prefix_caching=st.booleans(),
    max_waiting=st.sampled_from([None, None, 0, 3]),
    deadline=st.sampled_from([None, None, 0.004, 0.02]),
    size=st.sampled_from([None, 1, 3]),
    wait=st.sampled_from([None, None, BatchWait(share=0.5, steps=3), BatchWait(share=1, steps=40)]),
    receive_every=st.sampled_from([1, 1, 7]),
    ahead=st.booleans(),
)
plans = st.sampled_from([Plan(), Plan(replicas=2), Plan(pipeline=3), Plan(pipeline=3, slots=2)])
windowed = {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2}


@st.composite
def drawn(draw):
    """Requests that come within some steps of each other; some begin alike, some have priority; two blocks at most."""
    n = draw(st.integers(1, 25))
    prompts = draw(st.lists(st.integers(1, 60) | st.just(2 * HASH_BLOCK), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 30), min_size=n, max_size=n))
    gaps = draw(st.lists(st.floats(0, 0.003), min_size=n, max_size=n))
    ids = [
        tuple(draw(st.integers(0, 2)) for _ in range(-(-prompt // HASH_BLOCK)))
        for prompt in prompts
    ]
    priority = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    return RequestBatch(
        np.cumsum(gaps), np.array(prompts), np.array(outputs), priority=priority, hash_ids=ids
    )


@pytest.fixture(scope="module")
def deployments(make_deployment, make_model, make_chip, lossy):
    made, chip = {}, make_chip(capacity=2e6)  # has room for the tokens below

    def get(plan, windows=False):
        key = (plan, windows)
        if key not in made:
            chips = (plan.pipeline or 1) * plan.replicas
            model = make_model(**(windowed if windows else {}))
            made[key] = make_deployment(
                chips,
                plan=plan,
                model=model,
                chip=chip,
                engine=lossy,
                kv_tokens=1300,
                max_sequences=12,
            )
        return made[key]

    return get


def run(deployment, requests, policies, **options):
    return serve(
        requests,
        deployment.costs,
        deployment.limits,
        replicas=deployment.layout.plan.replicas,
        policies=policies,
        **options,
    )


@given(drawn(), policies, plans, st.booleans())
@settings(max_examples=50)
def test_every_request_ends_once_and_leaps_are_their_steps(
    deployments, requests, policies, plan, windows
):
    """Finished, refused or cancelled; the rows and the histogram are those of one step at a time."""
    deployment = deployments(plan, windows)
    rows = run(deployment, requests, policies)
    for i, reason in enumerate(rows.reason):
        assert np.isfinite(rows.last_token[i]) == (not reason)
        assert rows.cancelled[i] == reason.startswith("not finished")
        if not reason:
            assert rows.arrival[i] <= rows.admitted[i] < rows.first_token[i] <= rows.last_token[i]
    done = rows.finished
    if policies.deadline is None:
        assert rows.gaps.count == (requests.output[done] - 1).sum()
        assert rows.gaps.total == pytest.approx(
            (rows.last_token - rows.first_token)[done].sum(), rel=1e-9, abs=1e-12
        )
    assert max(rows.kv_peak) <= deployment.limits.kv_tokens
    assert (rows.cached < requests.prompt).all()
    steps = run(deployment, requests, policies, leap=False)
    assert steps.reason == rows.reason
    for name in ("admitted", "first_token", "last_token"):
        np.testing.assert_allclose(
            getattr(rows, name)[done], getattr(steps, name)[done], rtol=1e-9, atol=1e-12
        )
    assert rows.gaps.bins == steps.gaps.bins
    assert (rows.preemptions == steps.preemptions).all()
    assert rows.kv_peak == steps.kv_peak


def pressed(seed):
    """Return requests that fill the KV cache of a pipeline, and policies that react to it."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 30))
    requests = RequestBatch(
        np.cumsum(rng.uniform(0, 2e-3, n)), rng.integers(1, 60, n), rng.integers(1, 60, n)
    )
    policies = Policies(
        batching=[continuous, prefill_first, undeclared][seed % 3],
        order=ORDERS["shortest-first" if seed % 2 else "first-come-first-served"],
        reserve=seed % 4 == 0,
        deadline=[None, 0.02, 0.05][seed % 5 % 3],
        size=[None, None, 3][seed % 7 % 3],
    )
    return requests, policies


def test_pipelines_leap_over_steps_under_preemption_and_deadlines(deployments):
    """Sixty pipelines with little KV, some of whose requests are preempted or cancelled."""
    preempted = cancelled = 0
    for seed in range(60):
        requests, policies = pressed(seed)
        deployment = deployments(Plan(pipeline=3, slots=[None, 2, 5][seed % 3]), seed % 2 == 0)
        limits = replace(
            deployment.limits, kv_tokens=[120, 200, 400][seed % 3], fill=seed % 4 or None
        )
        leap, step = (
            serve(requests, deployment.costs, limits, policies=policies, leap=leap)
            for leap in (True, False)
        )
        assert leap.reason == step.reason
        assert leap.gaps.bins == step.gaps.bins
        assert leap.kv_peak == step.kv_peak
        assert leap.preemptions.tolist() == step.preemptions.tolist()
        for name in ("admitted", "last_token"):
            np.testing.assert_allclose(getattr(leap, name), getattr(step, name), rtol=1e-9)
        preempted += leap.preemptions.sum()
        cancelled += leap.cancelled.sum()
    assert preempted > 10
    assert cancelled > 10


@pytest.mark.parametrize("policies", [Policies(reserve=False), Policies(deadline=100.0)])
def test_a_pipeline_takes_few_decisions_under_preemption_and_deadlines(deployments, policies):
    """A prompt of 20 chunks and 500 tokens: two sends, as with plain policies."""
    deployment, sent = deployments(Plan(pipeline=3)), []
    parts = deployment.costs.parts
    deployment.costs.parts = lambda work: (sent.append(work), parts(work))[1]
    try:
        run(deployment, listed([(0.0, 20 * deployment.limits.token_budget, 500)]), policies)
    finally:
        deployment.costs.parts = parts
    assert len(sent) == 2


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 0, 1, None]), st.sampled_from([1, 2, 5]),
    st.sampled_from([Plan(), Plan(pipeline=3, slots=1)]),
)  # fmt: skip
@settings(max_examples=40)
def test_a_queue_is_full_as_if_every_step_were_chosen_by_itself(
    deployments, seed, most, every, plan
):
    """Requests of a replica with little KV, on whose admission without a queue its free KV decides."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    requests = RequestBatch(
        np.cumsum(rng.uniform(0, 3e-3, n)), rng.integers(1, 40, n), rng.integers(1, 60, n)
    )
    deployment = deployments(plan)
    limits = replace(deployment.limits, kv_tokens=int(rng.integers(60, 200)))
    policies = Policies(reserve=False, max_waiting=most, receive_every=every)

    def served(leap=True):
        return serve(requests, deployment.costs, limits, policies=policies, leap=leap)

    leap, step = served(), served(leap=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "steps_until_change", lambda scheduler, batch: 1)
        single = served()
    for rows in (leap, step):
        assert rows.reason == single.reason
        assert rows.kv_peak == single.kv_peak
        np.testing.assert_allclose(rows.last_token, single.last_token, rtol=1e-9)


@pytest.mark.parametrize("step", [2, 20, 40])
def test_a_request_that_fits_now_is_not_refused_for_tokens_to_come(deployments, step):
    """In its step k a prompt of 10 tokens holds 10 + k. Another one of 30 fits up to k = 20 of 60 tokens."""
    deployment = deployments(Plan())
    limits = replace(deployment.limits, kv_tokens=60)
    alone = serve(listed([(0.0, 10, 50)]), deployment.costs, limits)
    length = (alone.last_token[0] - alone.first_token[0]) / 49
    requests = listed([(0.0, 10, 50), (alone.first_token[0] + (step - 0.5) * length, 30, 1)])
    rows = serve(
        requests, deployment.costs, limits, policies=Policies(reserve=False, max_waiting=0)
    )
    assert (rows.reason[1] == "the queue of 0 is full") == (step > 20)


def undeclared(state):
    """Decide as `continuous` does, as a user's function that declares nothing."""
    return BatchDecision(True, state.budget - state.running, state.budget)


@steady
def declared(state):
    return undeclared(state)


@given(drawn(), plans, st.booleans(), st.sampled_from([None, 1, 3]))
@settings(max_examples=30)
def test_a_declaration_changes_the_speed_and_no_row(deployments, requests, plan, windows, size):
    """A user's copy of `continuous` that declares itself steady gives its very bytes.

    One that declares nothing gives the same rows step by step.
    """
    deployment = deployments(plan, windows)
    columns = ("admitted", "first_token", "last_token")
    ours, steady_copy, stepwise, copy_stepwise, copy = (
        run(deployment, requests, Policies(batching=batching, size=size), leap=leap)
        for batching, leap in (
            (continuous, True),
            (declared, True),
            (continuous, False),
            (undeclared, False),
            (undeclared, True),
        )
    )
    for name in columns:
        assert getattr(ours, name).tobytes() == getattr(steady_copy, name).tobytes()
        assert getattr(stepwise, name).tobytes() == getattr(copy_stepwise, name).tobytes()
        for one in (ours, copy):
            np.testing.assert_allclose(getattr(one, name), getattr(stepwise, name), rtol=1e-9)
    assert ours.gaps.bins == steady_copy.gaps.bins == copy_stepwise.gaps.bins == copy.gaps.bins


@pytest.mark.parametrize(("is_declared", "least", "most"), [(True, 1, 3), (False, 16, 40)])
def test_a_declared_policy_takes_the_compiled_path(deployments, is_declared, least, most):
    """A prompt of 20 chunks: the executor computes all but the last one without the policy."""
    states = []

    def watched(state):
        states.append(state)
        return undeclared(state)

    policy = steady(watched) if is_declared else watched
    deployment = deployments(Plan(pipeline=3))
    requests = listed([(0.0, 20 * deployment.limits.token_budget, 2)])
    run(deployment, requests, Policies(batching=policy))
    assert least <= len(states) <= most


def test_a_policy_that_breaks_its_declaration_is_a_user_error(deployments):
    @steady
    def half(state):
        return BatchDecision(True, (state.budget - state.running) // 2, state.budget)

    message = r"policy half: got .* expected BatchDecision\(.*\), as it is declared steady"
    with pytest.raises(UserError, match=message):
        run(deployments(Plan()), listed([(0.0, 5, 9)]), Policies(batching=half))


def listed(requests, **columns):
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    return RequestBatch(arrival.astype(float), prompt, output, **columns)


def test_prompts_go_first_where_they_are_to(deployments):
    """Between a prompt's arrival and its first token nobody decodes: the running request's gap holds the whole prefill."""
    requests = listed([(0.0, 10, 30), (0.004, 60, 2)])
    deployment = deployments(Plan())
    rows = {
        name: run(deployment, requests, Policies(batching=batching))
        for name, batching in BATCHINGS.items()
        if batching is not ring
    }
    longest = {name: max(each.gaps.bins) for name, each in rows.items()}
    assert longest["prefill-first"] > longest["continuous"]
    assert rows["prefill-first"].first_token[1] <= rows["continuous"].first_token[1]
    assert rows["prefill-first"].last_token[0] > rows["continuous"].first_token[1]


def test_a_prompt_waits_for_others_or_for_so_many_steps(deployments):
    """The prompt of request 1 comes first in step 2. Another one that fills the budget ends the wait."""
    one, more = [(0.0, 10, 60), (1e-9, 20, 2)], (2e-9, 60, 2)
    deployment = deployments(Plan())
    limits = replace(deployment.limits, token_budget=80)
    first = {
        (steps, len(requests)): serve(
            listed(requests),
            deployment.costs,
            limits,
            policies=Policies(wait=BatchWait(share=1, steps=steps) if steps else None),
        )
        for steps in (0, 1, 7)
        for requests in (one, [*one, more])
    }
    start = first[0, 2].first_token[1]
    waits = [first[steps, 2].first_token[1] - start for steps in (1, 7)]
    decode = (first[7, 2].last_token[0] - first[7, 2].first_token[0]) / 59
    assert waits == pytest.approx([decode, 7 * decode], rel=0.25)
    assert first[7, 3].first_token[1] < start + decode


@pytest.mark.parametrize("steps", [1, 3, 7, 9])
def test_prompts_wait_for_others_only_where_the_scheduler_sees_requests(deployments, steps):
    """A prompt that waits is looked at after 7 steps and after 14, not when its wait is over in between."""
    wait = BatchWait(share=0.5, steps=steps)
    policies = Policies(wait=wait, receive_every=7)
    requests = RequestBatch(
        np.zeros(6), np.array([1, 1, 1, 1, 13, 1]), np.array([1, 1, 1, 9, 1, 40])
    )
    leap, step = (run(deployments(Plan()), requests, policies, leap=leap) for leap in (True, False))
    np.testing.assert_allclose(leap.first_token, step.first_token, rtol=1e-12)


def test_the_scheduler_sees_requests_after_each_so_many_steps(deployments):
    """Request 1 comes in step 3 of request 0, so its prompt begins after step 4 or 12. Request 2 follows it at once."""
    deployment = deployments(Plan())
    alone = run(deployment, listed([(0.0, 10, 60)]), Policies())
    step = (alone.last_token[0] - alone.first_token[0]) / 59
    arrival = alone.first_token[0] + 2.5 * step
    requests = listed([(0.0, 10, 60), (arrival, 20, 2), (arrival + 1e-9, 30, 9)])
    for batching in ("continuous", "prefill-first"):
        first = {
            every: run(
                deployment, requests, Policies(batching=BATCHINGS[batching], receive_every=every)
            ).first_token
            for every in (1, 4, 12)
        }
        seen = [first[every][1] - first[1][1] for every in (4, 12)]
        assert seen == pytest.approx([step, 9 * step], rel=0.1)
        assert first[12][2] - first[12][1] < 4 * step


def test_a_step_that_is_chosen_ahead_does_not_see_later_requests(deployments):
    """Request 1 comes in step 3 of request 0. Its prompt begins after step 3, or after step 4 if that was chosen."""
    deployment = deployments(Plan())
    alone = run(deployment, listed([(0.0, 10, 60)]), Policies())
    step = (alone.last_token[0] - alone.first_token[0]) / 59
    requests = listed([(0.0, 10, 60), (alone.first_token[0] + 2.5 * step, 10, 9)])
    for reserve in (True, False):
        seen, ahead = (
            run(deployment, requests, Policies(reserve=reserve, ahead=ahead)).first_token
            for ahead in (False, True)
        )
        assert ahead[1] - seen[1] == pytest.approx(step, rel=0.05)
        assert ahead[0] == seen[0] == alone.first_token[0]


def test_a_static_micro_batch_takes_nobody_before_all_have_ended(deployments):
    requests = listed([(0.0, 5, 20), (0.0, 5, 4), (0.0001, 5, 4), (0.0002, 5, 4)])
    rows = run(deployments(Plan()), requests, Policies(batching=BATCHINGS["static"], size=2))
    assert rows.first_token[1] < rows.last_token[0] < rows.first_token[2]
    alone = run(deployments(Plan()), requests, Policies())
    assert alone.first_token[2] < alone.last_token[0]


@pytest.mark.parametrize(
    ("order", "served"),
    [
        ("first-come-first-served", [1, 2, 3]),
        ("shortest-first", [3, 1, 2]),
        ("priority", [2, 1, 3]),
    ],
)
def test_the_order_decides_who_is_next(deployments, order, served):
    """One at a time: the first occupies the system, the others wait."""
    deployment = deployments(Plan())
    requests = listed(
        [(0.0, 5, 30), (0.001, 20, 9), (0.002, 30, 9), (0.003, 5, 9)],
        priority=np.array([0, 1, -1, 2]),
    )
    limits = replace(deployment.limits, sequences=1)
    rows = serve(requests, deployment.costs, limits, policies=Policies(order=ORDERS[order]))
    assert sorted((1, 2, 3), key=lambda i: rows.admitted[i]) == served


def test_without_reservation_the_youngest_gives_its_room_back(deployments):
    """Two requests whose prompts fit together and whose outputs do not: the later one is computed again, and both end."""
    deployment = deployments(Plan())
    requests = listed([(0.0, 40, 30), (0.0001, 40, 30)])
    limits = replace(deployment.limits, kv_tokens=100)
    rows = serve(requests, deployment.costs, limits, policies=Policies(reserve=False))
    assert rows.preemptions.tolist() == [0, 1]
    assert rows.last_token[0] < rows.last_token[1]
    assert max(rows.kv_peak) <= 100
    reserved = serve(requests, deployment.costs, limits)
    assert rows.first_token[1] < reserved.first_token[1]
    roomy = replace(limits, kv_tokens=1000)
    one, other = (
        serve(requests, deployment.costs, roomy, policies=Policies(reserve=each))
        for each in (True, False)
    )
    assert (one.last_token == other.last_token).all()


def test_a_prompt_that_is_known_need_not_be_computed(deployments):
    """The second of two equal prompts finds all blocks but its last one, and is nearly as quick as a prompt of one token there."""
    requests = listed(
        [(0.0, 2 * HASH_BLOCK, 3), (10.0, 2 * HASH_BLOCK, 3), (20.0, 2 * HASH_BLOCK, 3)],
        hash_ids=[(1, 2), (1, 2), (1, 3)],
    )
    rows = run(deployments(Plan()), requests, Policies(prefix_caching=True))
    assert rows.cached.tolist() == [0, 2 * HASH_BLOCK - 16, HASH_BLOCK]
    first, second, third = rows.first_token - rows.arrival
    assert second < 0.1 * first
    assert 0.4 * first < third < 0.7 * first
    assert not run(deployments(Plan()), requests, Policies()).cached.any()


def test_a_full_queue_refuses(deployments):
    deployment = deployments(Plan())
    limits = replace(deployment.limits, sequences=1)
    requests = listed([(0.0, 9, 30)] + [(0.001, 9, 9)] * 4)
    for most, finished in ((0, 1), (2, 3)):
        rows = serve(requests, deployment.costs, limits, policies=Policies(max_waiting=most))
        assert rows.finished.sum() == finished
        assert set(rows.reason[finished:]) == {f"the queue of {most} is full"}


@pytest.mark.parametrize("plan", [Plan(), Plan(pipeline=3)])
def test_who_waits_too_long_is_cancelled_and_makes_room(deployments, plan):
    """A long request is stopped at its deadline, within a step of it; one that waits, exactly then."""
    deployment = deployments(plan)
    limits = replace(deployment.limits, sequences=1)
    requests = listed([(0.0, 9, 300), (0.001, 9, 300), (0.001, 9, 1)])
    rows = serve(requests, deployment.costs, limits, policies=Policies(deadline=0.03))
    assert (
        rows.cancelled.all()
    )  # the second has 1 ms from the first one's deadline to its own, and the third waits behind it
    assert rows.reason[0] == "not finished 0.03 s after it was sent"
    step = deployment.costs.step(Work(1, 300, logits=1)).time.sum()
    assert (
        0.03 <= rows.admitted[1] < 0.03 + 1.01 * step
    )  # the first made room when the step under way was over
    short = serve(
        requests, deployment.costs, replace(limits, sequences=3), policies=Policies(deadline=0.03)
    )
    assert short.cancelled.tolist() == [True, True, False]
    assert short.last_token[2] < 0.031


def test_turns_follow_the_answers_before_them(deployments):
    requests = listed(
        [(0.0, 5, 9), (np.nan, 20, 9), (np.nan, 40, 9), (0.002, 5, 3)],
        after=np.array([-1, 0, 1, -1]), think=np.array([0.0, 0.5, 0.25, 0.0]),
    )  # fmt: skip
    rows = run(deployments(Plan()), requests, Policies())
    assert rows.arrival[1] == pytest.approx(rows.last_token[0] + 0.5)
    assert rows.arrival[2] == pytest.approx(rows.last_token[1] + 0.25)
    assert rows.finished.all()


def test_after_an_answer_that_never_came_there_is_no_turn(deployments):
    requests = listed(
        [(0.0, 5, 9), (np.nan, 2000, 9), (np.nan, 2100, 9)],
        after=np.array([-1, 0, 1]),
        think=np.full(3, 0.1),
    )
    rows = run(deployments(Plan()), requests, Policies())
    assert rows.finished.tolist() == [True, False, False]
    assert rows.reason[1].endswith("exceed the KV room of 1300")
    assert rows.reason[2] == "the turn before it was not answered"


@pytest.mark.parametrize("plan", [Plan(), Plan(pipeline=3)])
def test_a_user_who_asks_again_at_once_is_admitted_though_nothing_is_reserved(deployments, plan):
    requests = RequestBatch(np.full(3, np.nan), np.full(3, 9), np.full(3, 2), users=1)
    assert run(deployments(plan), requests, Policies(reserve=False)).finished.all()


def test_a_leap_stops_for_whom_a_preemption_gives_room(deployments):
    """A long sequence is preempted after a short one, which then fits, although nobody has ended."""
    deployment = deployments(Plan())
    limits = replace(deployment.limits, kv_tokens=73, sequences=4)
    prompts, outputs = np.array([40, 1, 1, 29, 39]), np.array([11, 8, 11, 5, 3])
    asked, policies = (
        RequestBatch(np.full(5, np.nan), prompts, outputs, users=4),
        Policies(batching=prefill_first, reserve=False),
    )
    leap, step = (
        serve(asked, deployment.costs, limits, policies=policies, leap=leap)
        for leap in (True, False)
    )
    assert leap.preemptions.tolist() == [0, 0, 1, 1, 0]
    assert leap.admitted == pytest.approx(step.admitted)
    assert leap.last_token == pytest.approx(step.last_token)
    assert leap.kv_peak == step.kv_peak


def test_routers(deployments):
    deployment = deployments(Plan(replicas=2))
    requests = listed(
        [(0.5 * i, HASH_BLOCK, 20) for i in range(6)], hash_ids=[(i % 3 // 2,) for i in range(6)]
    )
    rows = {
        name: run(deployment, requests, Policies(router=router, prefix_caching=True))
        for name, router in ROUTERS.items()
    }
    assert rows["round-robin"].replica.tolist() == [0, 1, 0, 1, 0, 1]
    same = rows["prefix-aware"].replica
    assert len({same[i] for i in (0, 1, 3, 4)}) == 1
    assert rows["prefix-aware"].cached.sum() > rows["round-robin"].cached.sum() >= 0


def test_one_system_prompt_does_not_fill_one_replica(deployments):
    """Of 200 requests at one instant with one prefix, each of two replicas takes a half.

    The first has it in its cache, and gets requests alone until it has 65 more than the other.
    Then both have it, and the load decides.
    """
    deployment = deployments(Plan(replicas=2))
    requests = listed([(0.0, HASH_BLOCK, 20)] * 200, hash_ids=[(0,)] * 200)
    policies = Policies(router=ROUTERS["prefix-aware"], prefix_caching=True)
    replica = run(deployment, requests, policies).replica
    assert set(replica[:65]) == {replica[0]}
    assert (replica == replica[0]).sum() == 100


def test_a_policy_that_starves_a_batch_is_told(deployments):
    with pytest.raises(Exception, match=r"got no work for .*; expected decodes or prompt tokens"):
        run(
            deployments(Plan()),
            listed([(0.0, 5, 9)]),
            Policies(batching=lambda load: BatchDecision(False, 8, 8)),
        )


def test_a_policy_is_asked_at_decisions_only(deployments):
    """Not at every step: a request alone is three decisions, whatever its length."""
    asked = []

    def watched(load):
        asked.append(load)
        return continuous(load)

    run(deployments(Plan()), listed([(0.0, 9, 500)]), Policies(batching=watched))
    assert 0 < len(asked) <= 3
    assert all(a != b for a, b in pairwise(asked))


def test_a_prompt_given_up_makes_room_at_once(deployments):
    """Its deadline passes while another decodes: who waits for its room has it with the next step, in leaps as step by step."""
    short = [(0.0, 1, 1)] * 9
    requests = listed(
        [
            *short,
            (0.0, 1024, 1),
            (0.00195, 1024, 1),
            (0.0039, 1, 1),
            (0.0039, 1, 5),
            (0.0039, 1024, 1),
        ]
    )
    waiting = Policies(order=ORDERS["shortest-first"], reserve=False, deadline=0.004)
    rows, steps = (run(deployments(Plan()), requests, waiting, leap=leap) for leap in (True, False))
    assert rows.reason == steps.reason
    assert rows.gaps.bins == steps.gaps.bins
    assert rows.admitted[-1] == pytest.approx(steps.admitted[-1])
    assert rows.admitted[-1] < rows.arrival[-1] + 0.004  # not when the decoding ends


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"batching": lambda state: None}, "got None for BatchState"),
        ({"batching": lambda state: (True, -1, 4)}, r"got \(True, -1, 4\)"),
        ({"batching": lambda state: (True, 2.5, 4)}, r"got \(True, 2.5, 4\)"),
        ({"batching": lambda state: ("yes", 2, 4)}, "expected a BatchDecision"),
        ({"order": lambda request: math.nan}, "got nan for request 0"),
        ({"order": lambda request: "first"}, "expected a number, the smallest first"),
        ({"router": lambda replicas, request: 2}, "got 2 for request 0; expected the place"),
        ({"router": lambda replicas, request: None}, "got None for request 0"),
    ],
)
def test_nonsense_of_a_users_policy_is_a_user_error(deployments, policies, message):
    with pytest.raises(UserError, match=message):
        run(deployments(Plan(replicas=2)), listed([(0.0, 5, 9), (0.0, 5, 9)]), Policies(**policies))


def test_a_users_policy_sees_ages_free_kv_and_deadlines(deployments):
    """Two requests, the second 4 ms after the first: age and slack are counted from the older."""
    states = []

    def watched(state):
        queue = state.queue
        states.append((state.prompts, queue.kv_free, queue.age, queue.slack))
        return continuous(state)

    deployment, deadline = deployments(Plan()), 0.5
    requests = listed([(0.001, 60, 30), (0.005, 60, 30)])
    run(deployment, requests, Policies(batching=watched, deadline=deadline))
    prompts, kv_free, age, slack = zip(*states, strict=True)
    assert (age[0], slack[0]) == (pytest.approx(0), pytest.approx(deadline))
    assert kv_free[0] == deployment.limits.kv_tokens - 90
    assert prompts[0] == 1
    assert age[0] + slack[0] == pytest.approx(deadline)
    assert max(age) > 0
    assert min(slack) < deadline - 0.004
    assert age[-1] == 0.0


@pytest.mark.parametrize("steps", range(2, 9))
def test_prompts_that_find_no_place_wait_again(make_deployment, serve_on, steps):
    """The micro-batch is full when they have waited long enough; a leap is its steps there, too."""
    requests = [(0.0, 8, 20), (0.0, 8, 60), (1e-4, 8, 20)]
    policies = Policies(wait=BatchWait(share=1, steps=steps), size=2)
    leap, step = (
        serve_on(make_deployment(), requests, policies=policies, leap=leap)
        for leap in (True, False)
    )
    assert leap.first_token == pytest.approx(step.first_token, rel=1e-12)
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-12)


def test_a_wait_is_over_when_another_micro_batch_takes_the_prompt(make_deployment, serve_on):
    """Both micro-batches wait with prompt 2, and one takes it. The other one then waits with prompt 3 for a full time."""
    deployment = make_deployment(2, plan=Plan(pipeline=2))
    requests = [(3e-4, 3, 10), (4.4e-3, 3, 30), (5.6e-3, 20, 10), (6.4e-3, 20, 10)]
    policies = Policies(wait=BatchWait(share=0.5, steps=8))
    leap, step = (
        serve_on(deployment, requests, policies=policies, leap=leap) for leap in (True, False)
    )
    assert leap.first_token == pytest.approx(step.first_token, rel=1e-12)
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-12)
