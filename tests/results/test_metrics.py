"""Metrics of rows made by hand, and the verdict on clear cases."""

import math

import numpy as np
import pytest

from sim.cost.work import Work
from sim.inputs.errors import ScenarioError
from sim.results.attainment import count_good
from sim.results.encoding import encode_summary
from sim.results.histogram import BINS_PER_DECADE, Gaps
from sim.results.metrics import Measure, half_width, latencies, output_between, summarize
from sim.results.rows import Rows
from sim.results.statistics import MeasuredSpan
from sim.results.verdict import judge
from sim.workload.requests import RequestBatch
from sim.workload.slo import PRESETS, SLO

SEEDS = range(10)


@pytest.fixture
def rows():
    """Four requests: three tokens, one token, five tokens, and one refused."""
    made = Rows(
        RequestBatch(
            np.array([1.0, 2.0, 3.0, 4.0]), np.array([10, 20, 30, 40]), np.array([3, 1, 5, 9])
        )
    )
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
    metrics = summarize(rows, SLO(ttft=1.0))
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
    assert {name: encode_summary(metrics)[name] for name in expected} == pytest.approx(expected)
    assert metrics.itl.median == pytest.approx(1500, rel=0.005)


def test_goodput_is_named_only_where_limits_are_given(rows):
    assert summarize(rows).goodput is None


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
    assert count_good(rows, slo) == count


def test_nothing_finished_is_nothing_measured():
    rows = Rows(RequestBatch(np.array([1.0]), np.array([10]), np.array([3])))
    metrics = summarize(rows, SLO(ttft=1.0))
    assert (metrics.completed, metrics.refused, metrics.duration, metrics.verdict) == (
        0,
        1,
        0.0,
        "REFUSED",
    )
    assert (
        metrics.request_throughput
        is metrics.request_goodput
        is metrics.ttft.mean
        is metrics.itl.p99
        is None
    )


def test_a_window_counts_the_requests_that_arrive_in_it(rows):
    """From 2 s to 8 s: the second and third request, and the refused one."""
    whole, part = (
        summarize(rows, SLO(ttft=1.0), measure) for measure in (None, Measure(window=(2.0, 8.0)))
    )
    assert (part.completed, part.refused, part.duration) == (2, 1, 6.0)
    assert (part.total_input_tokens, part.total_output_tokens, part.ttft.mean) == (
        50,
        6,
        2000.0,
    )
    assert part.measured == MeasuredSpan(2.0, 8.0)
    assert part.itl == whole.itl
    assert encode_summary(part).keys() - encode_summary(whole).keys() == {"measured"}


def test_throughput_of_a_window_is_what_came_out_in_it(rows):
    """The first request's last half second of gaps holds one of two tokens; the third's first three seconds of six two of four."""
    metrics = summarize(rows, SLO(ttft=1.0), Measure(window=(2.0, 8.0)))
    assert output_between(rows, 2.0, 8.0, SLO(ttft=1.0)) == pytest.approx(
        (2, 20 + 30, 1 + 1 + 1 + 2, 1)
    )
    assert metrics.request_throughput == pytest.approx(2 / 6)
    assert metrics.output_throughput == pytest.approx(5 / 6)
    assert metrics.total_token_throughput == pytest.approx(55 / 6)
    assert metrics.request_goodput == pytest.approx(1 / 6)
    assert output_between(rows, 0.0, 11.0, None) == pytest.approx((3, 60, 9, 0))


def test_a_warm_up_counts_until_the_last_arrival(rows):
    metrics = summarize(rows, None, Measure(warmup=2.5))
    assert (metrics.completed, metrics.refused, metrics.measured) == (
        1,
        1,
        MeasuredSpan(2.5, 4.0),
    )


def test_a_window_without_a_request_is_an_error(rows):
    with pytest.raises(
        ScenarioError,
        match=r"measure: got no request from 20 s to 30 s; .* try 4 s, when the nearest request",
    ):
        summarize(rows, None, Measure(window=(20.0, 30.0)))
    with pytest.raises(
        ScenarioError, match=r"measure: got no request from 20 s; .* try 4 s, when the nearest"
    ):
        summarize(rows, None, Measure(warmup=20.0))


def test_a_steady_window_has_the_throughput_that_is_offered(loaded):
    """Filling and draining left out, what comes out is what comes in: 0.7 for each service time."""
    ratios = []
    for seed in SEEDS:
        rows = loaded(seed, 0.7, 600)
        service = (rows.last_token - rows.arrival).min()
        window = Measure(window=(100 / 0.7 * service, 500 / 0.7 * service))
        ratios.append(summarize(rows, None, window).request_throughput * service / 0.7)
    assert abs(np.mean(ratios) - 1) < 3 * np.std(ratios, ddof=1) / math.sqrt(len(ratios))


def covered(series, mean):
    """How many of the series' intervals hold the true mean."""
    return sum(abs(each.mean() - mean) <= half_width(each) for each in series)


def test_the_interval_of_independent_values_holds_the_mean_95_times_in_100():
    stream, runs = np.random.default_rng(0), 6_000
    share = covered((stream.normal(1.0, 1.0, 200) for _ in range(runs)), 1.0) / runs
    assert abs(share - 0.95) < 3 * math.sqrt(0.95 * 0.05 / runs)


def test_the_interval_of_a_queue_holds_its_mean_wait_about_as_often():
    """M/M/1 at half load waits a service time in the mean; waits are correlated, batches of 500 hardly.

    Lindley's recurrence: w' = max(0, w + service - gap).  An interval as for independent values holds it half as often.
    """
    stream = np.random.default_rng(1)
    n, runs = 10_000, 400
    steps = stream.exponential(1.0, (runs, n)) - stream.exponential(2.0, (runs, n))
    before = np.cumsum(steps, axis=1)
    waits = before - np.minimum(np.minimum.accumulate(before, axis=1), 0.0)
    share = covered(waits, 1.0) / runs
    assert 0.90 < share < 0.98
    naive = 1.96 * waits.std(axis=1) / math.sqrt(n)
    assert (abs(waits.mean(axis=1) - 1.0) <= naive).mean() < 0.75


def test_intervals_are_of_the_means_given_and_only_where_runs_are_long_and_steady(loaded):
    metrics = summarize(loaded(0, 0.5, 600))
    for name in ("ttft", "e2el"):
        assert 0 < metrics.ci95_mean(name) < metrics.latency(name).mean
    assert metrics.ci95_mean_tpot_ms is None  # answers of one token have none
    assert summarize(loaded(0, 0.5, 199)).ci95_mean_ttft_ms is None
    overloaded = summarize(loaded(0, 1.5, 600))
    assert (overloaded.verdict, overloaded.ci95_mean_ttft_ms) == ("OVERLOADED", None)
    assert half_width(np.ones(199)) is None
    assert half_width(np.ones(200)) == 0


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
def test_presets_are_mlperfs_in_ms_at_its_percentile(name, ttft, tpot):
    """p99 of each; `capacity` takes the share of the preset, not its own default."""
    slo = PRESETS[name]
    assert (slo.ttft, slo.tpot, slo.e2el) == (ttft / 1000, tpot / 1000, None)
    assert slo.share == 0.99


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
    assert judge(loaded(seed, 0.5, 600)) == "STABLE"
    assert judge(loaded(seed, 1.5, 600)) == "OVERLOADED"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("requests", "load", "overloaded"),
    [(200_000, 1.05, True), (20_000, 1.1, True), (20_000, 0.95, False), (4000, 0.9, False)],
)
def test_in_long_runs_a_twentieth_too_much_is_told(seed, requests, load, overloaded):
    """M/M/1, its waits by Lindley's recurrence."""
    stream = np.random.default_rng(seed)
    arrival, service = (
        np.cumsum(stream.exponential(1 / load, requests)),
        stream.exponential(1.0, requests),
    )
    steps = np.concatenate([[0.0], service[:-1] - np.diff(arrival)])
    before = np.cumsum(steps)
    rows = Rows(RequestBatch(arrival, np.ones(requests, int), np.ones(requests, int)))
    rows.admitted[:] = arrival + before - np.minimum.accumulate(before)
    rows.first_token[:] = rows.last_token[:] = rows.admitted + service
    assert (judge(rows) == "OVERLOADED") == overloaded


def test_a_run_shorter_than_its_requests_is_too_short_to_tell(make_deployment, make_chip, serve_on):
    """All are served at once, and none ends before the last comes: the number in the system grows, and nobody waits."""
    rows = serve_on(
        make_deployment(chip=make_chip(capacity=1e8), token_budget=64),
        [(0.001 * number, 1, 400) for number in range(40)],
    )
    assert rows.last_token.min() > rows.arrival.max()
    assert judge(rows) == "TOO SHORT"


def test_it_is_overloaded_when_the_room_is_full_and_more_come(make_deployment, serve_on):
    """Answers are what is slow: the first requests fill the room, later ones wait for it ever longer."""
    deployment = make_deployment(kv_tokens=200)
    alone = serve_on(deployment, [(0.0, 10, 40)]).last_token[0]
    rows = serve_on(deployment, [(alone / 8 * number, 10, 40) for number in range(200)])
    assert judge(rows) == "OVERLOADED"


def test_users_in_a_closed_loop_that_wait_for_room_are_a_backlog(make_deployment, serve_on):
    """Sixteen users, room for four of them: it serves all it is asked, but three quarters of a request's time is waiting."""
    requests = [(0.0, 10, 40)] * 100
    assert judge(serve_on(make_deployment(kv_tokens=200), requests, users=16)) == "BACKLOGGED"
    assert judge(serve_on(make_deployment(kv_tokens=200), requests, users=4)) == "STABLE"


def test_a_backlog_needs_more_than_a_tenth_of_the_requests():
    """Those that waited for admission longer than they were then served: one in ten is borne, two are not."""

    def waited(number):
        rows = Rows(RequestBatch(np.arange(10.0), np.ones(10, int), np.ones(10, int)))
        rows.admitted[:] = rows.arrival
        rows.admitted[:number] += 0.6
        rows.first_token[:] = rows.last_token[:] = rows.admitted + 0.5
        return rows

    assert judge(waited(1)) == "STABLE"
    assert judge(waited(2)) == "BACKLOGGED"
