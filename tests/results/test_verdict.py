"""The verdict on runs whose right one is known, the hints beside it, and the reasons of requests that were not finished."""

import numpy as np
import pytest

from sim.inputs.errors import ScenarioError
from sim.report.findings import judgement, verdict_text
from sim.results.metrics import Measure, summarize
from sim.results.rows import Rows
from sim.results.statistics import Unfinished
from sim.results.verdict import UNSTEADY, grows, hints, judge, judge_share, measure_flow, unevenness
from sim.scenario.layout import check
from sim.scenario.replicas import serve_requests
from sim.scenario.scenario import read
from sim.serving.policy import Policies
from sim.workload.requests import RequestBatch


def made(arrival, admitted, first, last, output, users=None):
    """Rows of finished requests."""
    rows = Rows(
        RequestBatch(np.array(arrival, float), np.ones(len(arrival), int), np.array(output), users)
    )
    rows.admitted[:], rows.first_token[:], rows.last_token[:] = admitted, first, last
    rows.ended[:] = last
    return rows


def shared(rate, requests, output, capacity):
    """Rows of a processor that is shared: every request has its first token immediately, and all decode at `capacity` together."""
    arrival = np.arange(requests) / rate
    left, ends, now, done = {}, np.zeros(requests), 0.0, 0
    while done < requests:
        upcoming = arrival[done + len(left)] if done + len(left) < requests else np.inf
        soonest = min(left, key=lambda number: left[number], default=None)
        over = now + left[soonest] * len(left) / capacity if left else np.inf
        step = min(upcoming, over) - now
        left = {number: tokens - step * capacity / len(left) for number, tokens in left.items()}
        now += step
        if over <= upcoming:
            del left[soonest]
            ends[soonest], done = now, done + 1
        else:
            left[done + len(left)] = float(output)
    return made(arrival, arrival, arrival, ends, np.full(requests, output))


@pytest.mark.parametrize("excess", [1.31, 1.72])
@pytest.mark.parametrize("requests", [300, 600])
def test_long_answers_that_slow_down_are_an_overload(excess, requests):
    """Nobody waits for a first token; what grows is the number of tokens still to come."""
    rows = shared(rate=3.0, requests=requests, output=2000, capacity=3.0 * 2000 / excess)
    told = judge(rows)
    assert told == "OVERLOADED" if requests == 600 else told in ("OVERLOADED", "TOO SHORT")
    assert measure_flow(rows).share < 0.85


def test_below_what_it_serves_the_same_is_stable():
    rows = shared(rate=3.0, requests=600, output=2000, capacity=3.0 * 2000 * 1.2)
    assert judge(rows) == "STABLE"
    assert measure_flow(rows).share == pytest.approx(1.0, abs=0.01)


def test_a_system_that_fills_up_until_it_is_full_is_not_stable():
    """Eight H100 take 41 request/s.  A minute at 50 fills their 2,048 sequences: more are served by the second until then."""
    scenario = read("latency-vs-load")
    deployed = check(scenario)["h100x8"]

    def told(rate: float, requests: int) -> str:
        workload = scenario.workload.model_copy(update={"rate": rate, "requests": requests})
        return judge(serve_requests(scenario, "h100x8", deployed, workload.draw(0)))

    assert told(50.0, 3000) == "OVERLOADED"
    assert told(46.0, 3000) == "TOO SHORT"
    assert told(46.0, 12000) == "OVERLOADED"
    assert [told(rate, 3000) for rate in (20.0, 34.0, 38.0)] == ["STABLE"] * 3


def queue(load, seed, requests=2000):
    """Rows of a single server, M/M/1: one token each, waits by Lindley's recurrence."""
    random = np.random.default_rng(seed)
    arrival, service = (
        np.cumsum(random.exponential(1.0, requests)),
        random.exponential(load, requests),
    )
    before = np.cumsum(np.concatenate([[0.0], service[:-1] - np.diff(arrival)]))
    begun = arrival + before - np.minimum.accumulate(before)
    return made(arrival, begun, begun + service, begun + service, np.ones(requests, int))


@pytest.mark.parametrize(
    ("load", "requests", "most"), [(0.5, 2000, 0), (0.8, 600, 0), (0.95, 2000, 0), (0.95, 600, 4)]
)
def test_a_busy_server_is_rarely_said_not_to_keep_up(load, requests, most):
    """Its queue varies slowly near saturation: at 0.95 it is about 20 long, and forgets its length in 1,500 requests."""
    assert sum(judge(queue(load, seed, requests)) in UNSTEADY for seed in range(40)) <= most


def test_a_server_that_gets_too_much_is_overloaded():
    assert all(judge(queue(1.3, seed)) == "OVERLOADED" for seed in range(40))


@pytest.mark.parametrize(("seconds", "steady"), [(1.0, True), (100.0, True), (2000.0, False)])
def test_a_run_has_to_last_longer_than_its_requests(seconds, steady):
    """Requests of which each takes the same time, whatever the load: their number grows only in the first so many seconds."""
    arrival = np.cumsum(np.random.default_rng(0).exponential(1.0, 2000))
    rows = made(arrival, arrival, arrival + 0.01, arrival + seconds, np.full(2000, 100))
    assert grows(rows.arrival, rows.last_token) is not steady
    assert judge(rows) == ("STABLE" if steady else "TOO SHORT")


@pytest.mark.parametrize("last", [2e-313, 1e-200, 1.0, 1e12])
def test_how_uneven_arrivals_are_does_not_depend_on_the_unit_of_time(last):
    assert unevenness(np.array([0.0, last])) == unevenness(np.array([0.0, 1.0]))
    assert unevenness(np.array([last, last])) == np.inf
    assert not grows(np.array([0.0, last]), np.array([last, last]))


def test_a_run_of_requests_at_one_instant_has_no_rate():
    rows = made([0.0] * 64, [0.0] * 64, [1.0] * 64, [2.0] * 64, [100] * 64)
    assert judge(rows) == "TOO SHORT"
    assert judge(made([0.0], [0.0], [1.0], [2.0], [100])) == "STABLE"


def test_a_closed_loop_that_turns_no_request_away_is_never_overloaded(make_deployment, serve_on):
    rows = serve_on(make_deployment(kv_tokens=200), [(0.0, 10, 40)] * 64, users=64)
    assert judge(rows) == "BACKLOGGED"
    assert judge(serve_on(make_deployment(), [(0.0, 10, 40)], users=1)) == "STABLE"


def test_requests_that_are_turned_away_are_offered_and_not_served(make_deployment, serve_on):
    """A queue of four: at 1.4 times what it serves three requests in ten are turned away, and the verdict is not STABLE."""
    deployment = make_deployment(kv_tokens=100)
    alone = serve_on(deployment, [(0.0, 10, 40)]).last_token[0]
    rows = serve_on(
        deployment,
        [(alone / 2.8 * n, 10, 40) for n in range(400)],
        policies=Policies(max_waiting=4),
    )
    assert 0.1 < rows.turned_away.mean() < 0.5
    assert judge(rows) == "OVERLOADED"
    assert rows.unfinished == {"the queue of 4 is full": rows.turned_away.sum()}


@pytest.mark.parametrize(("users", "verdict"), [(2, "STABLE"), (16, "OVERLOADED")])
def test_users_that_are_turned_away_are_an_overload(make_deployment, serve_on, users, verdict):
    """Two requests fit and two wait. A user that is refused asks again after a pause."""
    deployment = make_deployment(kv_tokens=100)
    alone = serve_on(deployment, [(0.0, 10, 40)]).last_token[0]
    policies = Policies(max_waiting=2)
    asked = [(0.0, 10, 40)] * 600
    rows = serve_on(deployment, asked, users, think=5 * alone, policies=policies)
    assert 0.1 < rows.turned_away.mean() < 0.5 if users > 2 else not rows.turned_away.any()
    assert judge(rows) == verdict
    half = rows.turned_away[np.argsort(rows.arrival, kind="stable")][300:]  # equal outputs
    share = judge_share(rows)[1]
    assert share is None if users == 2 else share == pytest.approx(1 - half.mean())


@pytest.mark.parametrize(("lost", "verdict"), [(3, "STABLE"), (20, "OVERLOADED")])
def test_a_few_refusals_of_a_closed_loop_are_no_overload(lost, verdict):
    """Of the last 200 requests. Three percent are 6, and three deviations are 3 sqrt(lost)."""
    rows = made(*([np.arange(400.0)] * 4), [10] * 400, users=8)
    away = np.arange(400) >= 400 - lost
    rows.turned_away[away], rows.last_token[away] = True, np.nan
    assert judge(rows) == verdict


@pytest.mark.parametrize(
    ("policies", "reason"),
    [
        (Policies(max_waiting=0), "the queue of 0 is full"),
        (Policies(deadline=1e-6), "not finished 1e-06 s after it was sent"),
    ],
)
def test_where_most_requests_are_refused_the_verdict_and_the_reasons_say_so(
    make_deployment, serve_on, policies, reason
):
    deployment = make_deployment(kv_tokens=60)
    rows = serve_on(deployment, [(1e-5 * n, 10, 40) for n in range(200)], policies=policies)
    told = summarize(rows)
    assert told.verdict == "REFUSED"
    assert told.unfinished == (Unfinished(reason, 200 - told.completed),)
    assert told.ci95_mean_ttft_ms is None
    lines = judgement("one", told)
    assert f"one: {200 - told.completed} requests unanswered: {reason}." in lines
    assert sum("requests unanswered" in line for line in lines) == 1


def test_requests_that_never_fit_are_counted_by_one_reason_whatever_their_length(
    make_deployment, serve_on
):
    rows = serve_on(make_deployment(kv_tokens=60), [(0.1 * n, 10 + 10 * n, 10) for n in range(10)])
    assert rows.unfinished == {"more tokens than the KV room of 60": 5}
    assert judge(rows) == "REFUSED"


def in_bursts(of, length=10.0):
    """Bursts of so many requests, each of which is served one after the other within its ten seconds."""
    arrival = np.repeat(np.arange(20) * length, of)
    first = arrival + np.tile(0.1 * (1 + np.arange(of)), 20)
    return made(arrival, arrival, first, first, np.ones(20 * of, int))


def test_bursts_that_queue_and_drain_are_named_beside_stable():
    rows = in_bursts(50)
    told = summarize(rows)
    assert told.verdict == "STABLE"
    assert [hint.kind for hint in told.hints] == ["bursts"]
    assert "up to 50 wait" in told.hints[0].text
    assert verdict_text(told) == "STABLE, with bursts"
    assert list(hints(in_bursts(3), "STABLE", np.ones(60, bool))) == []  # no queue to speak of


def test_poisson_arrivals_are_no_bursts():
    """Though they queue at times, at a server of load 0.8: waits by Lindley's recurrence."""
    arrival = np.cumsum(np.random.default_rng(0).exponential(1.0, 2000))
    before = np.cumsum(np.concatenate([[0.0], 0.8 - np.diff(arrival)]))
    first = arrival + before - np.minimum.accumulate(before) + 0.8
    assert (first - arrival).max() > 10 * 0.8
    rows = made(arrival, arrival, first, first, np.ones(2000, int))
    assert summarize(rows).verdict == "STABLE"
    assert not summarize(rows).hints


def test_the_starting_burst_of_a_closed_loop_is_named_until_it_is_a_small_part(
    make_deployment, make_chip, serve_on
):
    """Fifty prompts at one instant wait for each other; in ten rounds they are a tenth, and a warm-up leaves them out."""
    deployment = make_deployment(chip=make_chip(capacity=1e8), token_budget=128)
    two, many = (serve_on(deployment, [(0.0, 64, 40)] * n, users=50) for n in (100, 600))
    (hint,) = summarize(two).hints
    assert hint.kind == "starting burst"
    assert (
        hint.text
        == "the starting burst is 50 % of what is counted; use measure: {warmup: ...} or more requests"
    )
    assert not summarize(many).hints
    assert not summarize(two, None, Measure(warmup=float(np.nanmax(two.arrival)) / 2)).hints
    assert not summarize(serve_on(deployment, [(0.0, 64, 40)], users=1)).hints


CLOSED = """model: llama-3.1-8b
workload: {kind: closed, users: 30, requests: 60, prompt: 64 token, output: 8 token%s}
systems:
  card: {chip: h100-sxm, chips: 1, engine: vllm,
    max_waiting: %s}
"""


def test_users_who_are_refused_have_to_pause(tmp_path):
    """A refused user would ask again at the same instant, and use all requests up."""
    path = tmp_path / "mine.yaml"
    path.write_text(CLOSED % ("", 8))
    with pytest.raises(ScenarioError) as error:
        read(path)
    assert str(error.value).endswith(
        "mine.yaml:5: systems.card.max_waiting: got 8 with 30 users who do not pause; expected a pause, as a refused user sends "
        "again at the same instant; try workload.think: 1 s, or leave max_waiting out"
    )
    for think, most in ((", think: 1 s", 8), ("", 30)):  # a queue for all users refuses none
        path.write_text(CLOSED % (think, most))
        read(path)
