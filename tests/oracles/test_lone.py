"""A request that is alone: served by the event loop, and written out by hand, chunk by chunk and token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.cost.plan import Plan
from sim.cost.work import Work
from sim.planning.single_request import time_single_request


def by_hand(deployment, prompt, output):
    """Seconds from the scheduler's first sight of a request to its first and to its last token.

    Its chunks follow one another through the stages, as many at once as there are slots; a slot is free again when the
    passage's token has travelled back.  Then each token goes round alone.
    """
    costs, limits = deployment.costs, deployment.limits
    free = [0.0] * costs.stages

    def through(leave, work):
        hops, times = costs.hops(work.tokens), costs.step(work).time
        for s in range(costs.stages):
            leave = free[s] = max(leave + hops[s], free[s]) + times[s]
        return leave

    returns, done = [0.0] * limits.micro_batches, 0
    while done < prompt:
        new = min(limits.token_budget, prompt - done)
        last = done + new == prompt
        leave = through(
            returns.pop(0),
            Work(
                prompt_tokens=new,
                chunks=1,
                attended=sum(range(done + 1, done + new + 1)),
                cached=done + new,
                logits=1 if last else 0,
            ),
        )
        returns.append(leave + costs.back)
        done += new
    first = leave
    for position in range(prompt + 1, prompt + output):
        leave = through(leave + costs.back, Work(decodes=1, context=position, logits=1))
    return first, leave


@pytest.fixture(
    scope="module", params=["one chip", "four stages, two slots", "tensor 8 GPU", "flagship LPU"]
)
def deployment(request, make_deployment, lossy):
    """One stage; a pipeline whose chunks are more than its slots; the flagship's systems: 8 GPUs in lock step, 72 stages of 8."""
    match request.param:
        case "one chip":
            return make_deployment(engine=lossy)
        case "four stages, two slots":
            return make_deployment(4, engine=lossy, plan=Plan(slots=2))
    return sim.read("llama2-70b-lpu-vs-h100").deploy("lpu" if "LPU" in request.param else "h100x8")


@pytest.mark.parametrize(("prompt", "output"), [(1, 2), (40, 30), (512, 128)])
def test_a_lone_request_takes_the_sum_of_its_passages(deployment, serve_on, prompt, output):
    first, last = by_hand(deployment, prompt, output)
    rows = serve_on(deployment, [(0.0, prompt, output)])
    assert rows.first_token[0] == pytest.approx(first, abs=1e-9)
    assert rows.last_token[0] == pytest.approx(last, abs=1e-9)
    lone = time_single_request(deployment, prompt, output)
    assert lone.ttft == pytest.approx(first, abs=1e-9)
    assert lone.tpot == pytest.approx((last - first) / (output - 1), abs=1e-9)


def test_a_lone_tokens_terms_are_its_time(deployment):
    lone = time_single_request(deployment, 512, 128)
    assert sum(lone.terms.values()) == pytest.approx(lone.tpot)


@pytest.mark.parametrize(("think", "overhead"), [(0.0, 0.0), (0.25, 0.01)])
def test_a_user_alone_in_a_closed_loop_is_lone_each_time(deployment, serve_on, think, overhead):
    """The next request leaves `think` after the answer; the scheduler sees none before the last token has come back to it."""
    first, last = by_hand(deployment, 40, 30)
    rows = serve_on(deployment, [(0.0, 40, 30)] * 3, users=1, think=think, overhead=overhead)
    sent = back = 0.0
    for number in range(3):
        seen = max(sent + overhead, back)
        assert rows.arrival[number] == pytest.approx(sent, abs=1e-9)
        assert rows.first_token[number] == pytest.approx(seen + first, abs=1e-9)
        assert rows.last_token[number] == pytest.approx(seen + last, abs=1e-9)
        sent, back = seen + last + think, seen + last + deployment.costs.back


def test_one_chip_from_its_data_sheet(make_deployment, serve_on):
    """With nothing lost and compute to spare, a step reads its weights, activations and K and V once: 2-byte numbers at 1 GB/s."""
    layer = [(64, 128), (64, 64), (64, 256), (128, 64)]  # q k v; output; gate and up; down
    matrices = [
        *layer * 4,
        (64, 256),
    ]  # four layers and the head, which sees the sampled position alone

    def step(tokens, cached):
        weights = sum(rows * columns for rows, columns in matrices)
        through = (
            tokens * 4 * sum(map(sum, layer)) + (64 + 256) + tokens * 64
        )  # in and out of each matrix; the rows of the table
        return (
            2 * (weights + through + 4 * cached * 2 * 2 * 16) / 1e9
        )  # K and V of 2 heads of 16 in 4 layers

    rows = serve_on(make_deployment(token_budget=16), [(0.0, 10, 4)])
    first = step(10, 10)
    assert rows.first_token[0] == pytest.approx(first, abs=1e-12)
    assert rows.last_token[0] == pytest.approx(
        first + step(1, 11) + step(1, 12) + step(1, 13), abs=1e-12
    )


def test_a_request_for_one_token_has_lone_times_too(make_deployment):
    lone = time_single_request(make_deployment(), 10, 1)
    assert 0 < lone.tpot < lone.ttft


WINDOW = 40


def test_a_lone_request_sees_no_farther_than_its_windows(make_model, make_deployment, serve_on):
    """Steps one by one, with the positions that windowed and other layers see written out for each token."""
    types = ("sliding_attention", "full_attention") * 2
    deployment = make_deployment(
        model=make_model(sliding_window=WINDOW, layer_types=types),
        token_budget=16,
        request_tokens=64,
    )
    prompt, output = 50, 30
    rows = serve_on(deployment, [(0.0, prompt, output)])
    costs, clock = deployment.costs, 0.0
    for first in range(0, prompt, 16):
        last = min(prompt, first + 16)
        seen = [min(position, WINDOW) for position in range(first + 1, last + 1)]
        work = Work(
            prompt_tokens=last - first,
            chunks=1,
            attended=sum(range(first + 1, last + 1)),
            cached=last,
            logits=int(last == prompt),
            windowed_attended=sum(seen),
            windowed_cached=min(last, WINDOW + last - first),
        )
        clock += float(costs.step(work).time.sum())
    assert rows.first_token[0] == pytest.approx(clock, rel=1e-9)
    for context in range(prompt + 1, prompt + output):
        clock += float(
            costs.step(Work(1, context, logits=1, windowed_context=min(context, WINDOW))).time.sum()
        )
    assert rows.last_token[0] == pytest.approx(clock, rel=1e-9)


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=12))
@settings(max_examples=40)
def test_sequences_together_see_what_each_of_them_sees(
    make_model, make_chip, make_deployment, serve_on, requests
):
    """The counters of a micro-batch against a sum over its sequences, at every step."""
    types = ("sliding_attention", "full_attention") * 2
    deployment = make_deployment(
        model=make_model(sliding_window=WINDOW, layer_types=types),
        chip=make_chip(capacity=4e6),
        request_tokens=64,
        kv_tokens=4000,
    )
    works, step = [], deployment.costs.step
    deployment.costs.step = lambda work: (works.append(work), step(work))[1]
    rows = serve_on(deployment, [(0.0, prompt, output) for prompt, output in requests], leap=False)
    deployment.costs.step = step
    assert np.isfinite(rows.last_token).all()
    total = sum(
        min(c, WINDOW) for prompt, output in requests for c in range(prompt + 1, prompt + output)
    )
    assert sum(work.windowed_context for work in works) == total
    assert all(work.windowed_context <= min(work.context, WINDOW * work.decodes) for work in works)
    assert sum(work.windowed_attended for work in works) == sum(
        min(c, WINDOW) for p, _ in requests for c in range(1, p + 1)
    )
