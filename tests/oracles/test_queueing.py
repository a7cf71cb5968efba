"""One stage, one micro-batch in flight, a prompt of one chunk and an answer of one token: an M/D/1 queue, whose theory is known."""

import numpy as np
import pytest

from sim.cost.work import Work

PROMPT = 16  # the token budget, so that a passage carries one request
REQUESTS, SEEDS = 1500, range(20)


@pytest.fixture(scope="module", params=[0.3, 0.7])
def runs(request, make_deployment, serve_on):
    """Load, service time and the rows of 20 seeds."""
    load, deployment = request.param, make_deployment(token_budget=PROMPT)
    work = Work(
        prompt_tokens=PROMPT, chunks=1, attended=PROMPT * (PROMPT + 1) / 2, cached=PROMPT, logits=1
    )
    service = float(deployment.costs.step(work).time.sum())
    rows = []
    for seed in SEEDS:
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(service / load, REQUESTS))
        rows.append(serve_on(deployment, [(arrival, PROMPT, 1) for arrival in arrivals]))
    return load, service, rows


def agrees(samples, theory):
    """Whether the mean lies within three standard errors of the theory."""
    return abs(np.mean(samples) - theory) < 3 * np.std(samples, ddof=1) / np.sqrt(len(samples))


def number_in_system(rows):
    """Its mean over time, counted event by event."""
    events = sorted([(t, 1) for t in rows.arrival] + [(t, -1) for t in rows.last_token])
    times, changes = np.array(events).T
    return np.sum(np.cumsum(changes)[:-1] * np.diff(times)) / (times[-1] - times[0])


def test_waiting_is_that_of_m_d_1(runs):
    load, service, rows = runs
    waits = [np.mean(r.first_token - r.arrival) - service for r in rows]
    assert agrees(waits, load * service / (2 * (1 - load)))


def test_the_stage_is_busy_as_much_as_is_offered(runs):
    load, _, rows = runs
    assert agrees([r.busy[0][0] / (r.last_token.max() - r.arrival.min()) for r in rows], load)


def test_littles_law(runs):
    load, service, rows = runs
    assert agrees(
        [number_in_system(r) - load / service * np.mean(r.last_token - r.arrival) for r in rows],
        0.0,
    )
