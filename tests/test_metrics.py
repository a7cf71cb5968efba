"""Metrics of rows made by hand, and the verdict on clear cases."""

import math

import numpy as np
import pytest

from sim.cost import Work
from sim.metrics import PRESETS, SLO, good, latencies, summary, verdict
from sim.records import BINS_PER_DECADE, Gaps, Rows
from sim.workload import Requests

SEEDS = range(20)


@pytest.fixture
def rows():
    """Four requests: three tokens, one token, five tokens, and one refused."""
    made = Rows(Requests(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10, 20, 30, 40]), np.array([3, 1, 5, 9])))
    made.admitted[:] = [1.0, 2.0, 3.5, np.nan]
    made.first_token[:] = [1.5, 4.0, 5.0, np.nan]
    made.last_token[:] = [2.5, 4.0, 11.0, np.nan]
    made.reason[3] = "too long"
    made.gaps.add(0.5, 2)
    made.gaps.add(1.5, 4)
    return made


def test_latencies_are_vllms(rows):
    times = latencies(rows)
    assert times["ttft"].tolist() == [0.5, 2.0, 2.0]
    assert times["e2el"].tolist() == [1.5, 2.0, 8.0]
    assert times["tpot"].tolist() == [0.5, 1.5]  # of two tokens or more


def test_the_summary_counts_what_finished(rows):
    """From the first arrival at 1 s to the last token at 11 s: 3 requests, 60 tokens in, 9 out."""
    metrics = summary(rows, SLO(ttft=1.0))
    expected = {
        "completed": 3,
        "refused": 1,
        "duration": 10.0,
        "total_input_tokens": 60,
        "total_output_tokens": 9,
        "request_throughput": 0.3,
        "output_throughput": 0.9,
        "total_token_throughput": 6.9,
        "request_goodput": 0.1,
        "mean_ttft_ms": 1500.0,
        "median_ttft_ms": 2000.0,
        "std_tpot_ms": 500.0,
        "p90_e2el_ms": 1000 * np.percentile([1.5, 2.0, 8.0], 90),
        "mean_itl_ms": 1000 * (2 * 0.5 + 4 * 1.5) / 6,
        "std_itl_ms": 1000 * np.std([0.5] * 2 + [1.5] * 4),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["median_itl_ms"] == pytest.approx(1500, rel=0.005)


def test_goodput_is_named_only_where_limits_are_given(rows):
    assert "request_goodput" not in summary(rows)


@pytest.mark.parametrize(
    ("slo", "count"),
    [
        (SLO(), 3),
        (SLO(ttft=0.5), 1),
        (SLO(tpot=0.5), 2),  # a single token has no gaps to be slow in
        (SLO(e2el=2.0), 2),
        (SLO(ttft=2.0, tpot=1.5, e2el=8.0), 3),
        (SLO(ttft=2.0, tpot=1.0, e2el=8.0), 2),
        (SLO(ttft=0.4), 0),
    ],
)
def test_a_good_request_meets_all_limits(rows, slo, count):
    assert good(rows, slo) == count


def test_nothing_finished_is_nothing_measured():
    rows = Rows(Requests(np.array([1.0]), np.array([10]), np.array([3])))
    metrics = summary(rows, SLO(ttft=1.0))
    assert (metrics["completed"], metrics["refused"], metrics["duration"], metrics["verdict"]) == (0, 1, 0.0, "STABLE")
    assert metrics["request_throughput"] is metrics["request_goodput"] is metrics["mean_ttft_ms"] is metrics["p99_itl_ms"] is None


@pytest.mark.parametrize(
    ("name", "ttft", "tpot"),
    [
        ("llama2-70b", 2000, 200),
        ("llama2-70b-interactive", 450, 40),
        ("mixtral-8x7b", 2000, 200),
        ("llama3.1-405b", 6000, 175),
        ("llama3.1-405b-interactive", 4500, 80),
        ("llama3.1-8b", 2000, 100),
        ("llama3.1-8b-interactive", 500, 30),
        ("deepseek-r1", 2000, 80),
        ("deepseek-r1-interactive", 1500, 15),
    ],
)
def test_presets_are_mlperfs_in_ms(name, ttft, tpot):
    assert (PRESETS[name].ttft, PRESETS[name].tpot, PRESETS[name].e2el) == (ttft / 1000, tpot / 1000, None)


@pytest.mark.parametrize("q", [1, 50, 90, 95, 99, 100])
def test_percentiles_of_gaps_lie_within_a_bin_of_the_exact_ones(q):
    stream = np.random.default_rng(0)
    sizes, times = stream.lognormal(-5, 2, 500), stream.integers(1, 50, 500)
    gaps = Gaps()
    for size, count in zip(sizes.tolist(), times.tolist(), strict=True):
        gaps.add(size, count)
    exact = np.percentile(np.repeat(sizes, times), q, method="inverted_cdf")
    assert abs(math.log10(gaps.percentile(q) / exact)) <= 1 / BINS_PER_DECADE
    assert gaps.count == times.sum()
    assert gaps.mean == pytest.approx(np.average(sizes, weights=times))
    assert gaps.std == pytest.approx(np.repeat(sizes, times).std())


def test_gaps_of_nothing_and_of_no_time():
    gaps = Gaps()
    assert math.isnan(gaps.mean)
    assert math.isnan(gaps.std)
    assert math.isnan(gaps.percentile(50))
    gaps.add(0.0, 3)
    assert gaps.percentile(50) == gaps.mean == gaps.std == 0.0


@pytest.fixture(scope="module")
def loaded(make_deployment, serve_on):
    """Rows of Poisson arrivals at a part of the most that one chip serves: 16 tokens of prompt a step, one of answer."""
    deployment = make_deployment(token_budget=16)
    work = Work(prompt_tokens=16, chunks=1, attended=16 * 17 / 2, cached=16, logits=1)
    service = float(deployment.costs.step(work).time.sum())

    def run(seed, load, requests):
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(service / load, requests))
        return serve_on(deployment, [(arrival, 16, 1) for arrival in arrivals])

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_at_half_load_it_is_never_overloaded_and_beyond_what_it_serves_always(loaded, seed):
    assert verdict(loaded(seed, 0.5, 600)) == "STABLE"
    assert verdict(loaded(seed, 1.5, 600)) == "OVERLOADED"


def test_a_run_shorter_than_its_requests_is_not_overloaded(make_deployment, make_chip, serve_on):
    """All are served at once, and none ends before the last comes: the number in the system grows, and nobody waits."""
    rows = serve_on(
        make_deployment(chip=make_chip(capacity=1e8), token_budget=64), [(0.001 * number, 1, 400) for number in range(40)]
    )
    assert rows.last_token.min() > rows.arrival.max()
    assert verdict(rows) == "STABLE"


def test_it_is_overloaded_when_the_room_is_full_and_more_come(make_deployment, serve_on):
    """Answers are what is slow: the first requests fill the room, later ones wait for it ever longer."""
    deployment = make_deployment(kv_tokens=200)
    alone = serve_on(deployment, [(0.0, 10, 40)]).last_token[0]
    rows = serve_on(deployment, [(alone / 8 * number, 10, 40) for number in range(200)])
    assert verdict(rows) == "OVERLOADED"


def test_users_in_a_closed_loop_that_wait_for_room_are_a_backlog(make_deployment, serve_on):
    """Sixteen users, room for four of them: it serves all it is asked, but three quarters of a request's time is waiting."""
    requests = [(0.0, 10, 40)] * 100
    assert verdict(serve_on(make_deployment(kv_tokens=200), requests, users=16)) == "BACKLOGGED"
    assert verdict(serve_on(make_deployment(kv_tokens=200), requests, users=4)) == "STABLE"


def test_a_backlog_needs_more_than_a_tenth_of_the_requests():
    """Those that waited for admission longer than they were then served: one in ten is borne, two are not."""

    def waited(number):
        rows = Rows(Requests(np.arange(10.0), np.ones(10, int), np.ones(10, int)))
        rows.admitted[:] = rows.arrival
        rows.admitted[:number] += 0.6
        rows.first_token[:] = rows.last_token[:] = rows.admitted + 0.5
        return rows

    assert verdict(waited(1)) == "STABLE"
    assert verdict(waited(2)) == "BACKLOGGED"
