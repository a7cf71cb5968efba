"""Several kinds of requests in one workload, presets of lengths, pauses, and a limit in flight."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from sim.report.answer import condition_lines
from sim.report.first_screen import remarks
from sim.results.attainment import meets_slo
from sim.results.metrics import summarize
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.service import serve
from sim.studies.capacity import capacity
from sim.studies.run import run
from sim.studies.trials import counted_span, measured_rate
from sim.workload.arrivals import ClosedLoop, Gamma, Poisson
from sim.workload.lengths import Length
from sim.workload.request_kinds import LENGTH_PRESETS, RequestKind
from sim.workload.requests import RequestBatch
from sim.workload.sessions import Sessions, Turns
from sim.workload.slo import SLO
from sim.workload.think import Think

N, SEEDS = 2000, range(8)
SHORT = {"prompt": Length(fixed=4), "output": Length(fixed=2)}
WIDE = {"prompt": Length(uniform=(20, 60)), "output": Length(fixed=6)}


def kinds(share: float = 0.7, **slos: SLO) -> dict[str, RequestKind]:
    return {
        "short": RequestKind(share=share, slo=slos.get("short"), **SHORT),
        "wide": RequestKind(share=1 - share, slo=slos.get("wide"), **WIDE),
    }


def mixed(share: float = 0.7, rate: float = 5.0, n: int = N, **slos: SLO) -> Poisson:
    return Poisson(requests=n, rate=rate, kinds=kinds(share, **slos))


def test_kinds_have_their_shares_and_lengths():
    draws = [mixed().draw(seed) for seed in SEEDS]
    kind = np.concatenate([draw.kind for draw in draws])
    prompt = np.concatenate([draw.prompt for draw in draws])
    n = len(kind)
    assert (kind == 0).mean() == pytest.approx(0.7, abs=3 * math.sqrt(0.21 / n))
    assert set(prompt[kind == 0]) == {4}
    assert prompt[kind == 1].mean() == pytest.approx(40, abs=3 * 12 / math.sqrt(0.3 * n))
    assert (mixed().mean_prompt, mixed().mean_output) == pytest.approx((14.8, 3.2))


def test_another_share_changes_only_requests_of_another_kind():
    before, after = mixed(0.7).draw(3), mixed(0.6).draw(3)
    moved = before.kind != after.kind
    assert moved.mean() == pytest.approx(0.1, abs=0.03)
    assert set(before.kind[moved]) == {0}
    assert np.array_equal(before.prompt[~moved], after.prompt[~moved])
    assert np.array_equal(before.arrival, after.arrival)


def test_other_lengths_of_one_kind_leave_the_others():
    before = mixed().draw(3)
    longer = {
        **kinds(),
        "short": RequestKind(share=0.7, prompt=Length(uniform=(1, 9)), output=SHORT["output"]),
    }
    after = Poisson(requests=N, rate=5.0, kinds=longer).draw(3)
    wide = before.kind == 1
    assert np.array_equal(before.kind, after.kind)
    assert np.array_equal(before.prompt[wide], after.prompt[wide])
    assert len(set(after.prompt[~wide])) == 9


def test_one_kind_alone_has_the_lengths_of_the_preset():
    kind = {"chat": RequestKind(share=1.0, lengths=LENGTH_PRESETS["chat"])}
    draw = Poisson(requests=20_000, rate=1.0, kinds=kind).draw(0)
    assert draw.prompt.mean() == pytest.approx(1155, rel=0.03)
    assert draw.output.mean() == pytest.approx(211, rel=0.03)


@pytest.mark.parametrize("name", LENGTH_PRESETS)
def test_a_preset_stands_for_its_lengths(name):
    lengths = LENGTH_PRESETS[name]
    named = Poisson(requests=50, rate=1.0, lengths=lengths)
    plain = Poisson(requests=50, rate=1.0, prompt=lengths.prompt, output=lengths.output)
    assert named.draw(1).prompt.tolist() == plain.draw(1).prompt.tolist()
    assert (named.mean_prompt, named.mean_output) == (plain.mean_prompt, plain.mean_output)


@pytest.mark.parametrize(
    ("name", "key", "median"),
    [("agent", "prompt", 6346), ("reasoning", "prompt", 3680), ("reasoning", "output", 1665)],
)
def test_a_preset_has_the_median_of_its_trace(name, key, median):
    """Only its mean is written down; sigma must give the median of the trace as well."""
    draw = getattr(LENGTH_PRESETS[name], key).draw(np.random.default_rng(0), 40_000)
    assert np.median(draw) == pytest.approx(median, rel=0.02)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "got no prompt; expected prompt and output, or a preset"),
        ({"prompt": 4}, "got no output"),
        ({"lengths": LENGTH_PRESETS["chat"], **SHORT}, "got lengths with both prompt and output"),
        ({"kinds": kinds(), "prompt": 4}, "got prompt and kinds"),
        ({"kinds": {"a": RequestKind(share=0.5, **SHORT)}}, "got shares 0.5 = 0.5; expected a sum"),
        ({"kinds": {}}, "at least 1 item"),
    ],
)
def test_requests_without_one_description_are_refused(parts, reason):
    with pytest.raises(ValidationError, match=reason):
        Poisson(requests=1, rate=1.0, **parts)


# What kinds attain.


@pytest.fixture(scope="module")
def served(make_deployment):
    deployment = make_deployment()
    workload = mixed(rate=2500.0, n=400, short=SLO(ttft=4e-4), wide=SLO(tpot=1e-3, ttft=2e-3))
    return serve(workload.draw(0), deployment.costs, deployment.limits)


def test_attainments_of_kinds_add_up(served):
    metrics = summarize(served)
    assert metrics.kinds
    parts = [(kind.requests, kind.attainment) for kind in metrics.kinds.values()]
    assert all(0 < attained < 1 for _, attained in parts)
    assert sum(n * attained for n, attained in parts) == pytest.approx(400 * metrics.attainment)
    assert sum(n for n, _ in parts) == 400


def test_a_kind_without_an_slo_has_that_of_the_scenario(served):
    slo = SLO(ttft=4e-4)
    own = replace(served.requests, kinds={"short": slo, "wide": slo})
    none = replace(served.requests, kinds={"short": None, "wide": None})
    good = []
    for requests in (own, none):
        served.requests, before = requests, served.requests
        good.append(meets_slo(served, slo))
        served.requests = before
    assert (good[0] == good[1]).all()
    assert (good[0] != meets_slo(served, None)).any()


def test_rows_name_the_kind_of_each_request(served):
    table = served.table("one")
    shares = table["kind"].value_counts().sort("kind")
    assert shares["kind"].to_list() == ["short", "wide"]
    assert set(table.filter(table["kind"] == "short")["prompt_tokens"]) == {4}


# At most so many in flight.


def test_a_limit_in_flight_is_a_closed_loop_where_requests_come_at_once(make_deployment):
    deployment = make_deployment()
    prompt, output = np.full(60, 20), np.full(60, 8)
    closed = RequestBatch(np.full(60, np.nan), prompt, output, users=4)
    capped = RequestBatch(np.zeros(60), prompt, output, most_in_flight=4)
    rows = [serve(batch, deployment.costs, deployment.limits) for batch in (closed, capped)]
    for column in ("arrival", "first_token", "last_token"):
        first, second = (np.sort(getattr(of, column)) for of in rows)
        assert first == pytest.approx(second, rel=1e-12)


def test_no_more_are_in_flight_and_none_is_held_under_a_low_load(make_deployment):
    deployment = make_deployment()
    for rate, cap, held in ((1e5, 3, True), (1.0, 3, False)):
        batch = mixed(rate=rate, n=100).model_copy(update={"max_concurrent": cap}).draw(0)
        rows = serve(batch, deployment.costs, deployment.limits, overhead=1e-4)
        times = np.concatenate([rows.arrival, rows.last_token])
        steps = np.repeat([1, -1], 100)[np.lexsort((np.repeat([1, 0], 100), times))]
        assert np.cumsum(steps).max() == (cap if held else 1)
        assert (rows.arrival > batch.arrival).any() == held
        kinds_of_hints = [hint.kind for hint in summarize(rows).hints]
        assert ("held back" in kinds_of_hints) == held


# Pauses.


@pytest.mark.parametrize("think", [Think(exponential=2.0), Think(fixed=2.0)])
def test_pauses_have_their_mean_and_belong_to_requests(think):
    draw = ClosedLoop(requests=20_000, users=3, think=think, **SHORT).draw(0)
    pauses = think.draw(np.random.default_rng(0), 1) if draw.think is None else draw.think
    assert pauses.mean() == pytest.approx(2.0, rel=0.03)
    if draw.think is not None:
        more = ClosedLoop(requests=20_000, users=9, think=think, **SHORT).draw(0)
        assert np.array_equal(draw.think, more.think)


def test_a_user_pauses_after_the_answer_to_a_request_as_long_as_that_request_says(make_deployment):
    deployment = make_deployment()
    draw = ClosedLoop(requests=30, users=1, think=Think(exponential=0.01), **SHORT).draw(0)
    rows = serve(draw, deployment.costs, deployment.limits)
    assert rows.arrival[1:] - rows.last_token[:-1] == pytest.approx(draw.think[:-1])


# Capacity.


@pytest.fixture(scope="module")
def scenario_of(make_model, make_chip, make_engine):
    system = System(
        chip=make_chip(), chips=1, engine=make_engine(), token_budget=16, kv_tokens=1024
    )

    def make(workload, slo=None):
        return Scenario(model=make_model(), workload=workload, slo=slo, systems={"one": system})

    return make


def test_the_capacity_of_kinds_is_that_of_the_kind_that_misses_first(scenario_of):
    loose, tight = SLO(ttft=1.0), SLO(ttft=8e-4)
    rates = {}
    for name, slos in (
        ("loose", {"short": loose, "wide": loose}),
        ("tight", {"short": tight, "wide": loose}),
    ):
        found = capacity(scenario_of(mixed(**slos)), requests=300).systems["one"]
        rates[name] = found.best.load
        assert all(kind.met for kind in found.best.kinds.values())
    assert rates["tight"] < 0.98 * rates["loose"]
    assert found.above.binds(0.9) == "ttft of short"


def test_a_kind_that_misses_its_slo_alone_has_a_capacity_by_its_own_percentile(scenario_of):
    """About half of the wide requests are too long for the limit, however low the load."""
    alone = run(scenario_of(mixed(rate=1.0, n=200))).systems["one"].metrics.kinds["wide"].ttft
    capacities = {}
    for percentile in (None, 30):
        wide = SLO(ttft=1.01 * alone.median / 1000, percentile=percentile)
        found = capacity(scenario_of(mixed(short=SLO(ttft=1.0), wide=wide)), requests=300)
        capacities[percentile] = found.systems["one"]
    assert capacities[None].reason.startswith("wide: even alone, ")
    assert capacities[30].best.kinds["wide"].attainment >= 0.3


def test_a_run_judges_a_kind_by_its_own_percentile(scenario_of):
    wide = SLO(ttft=1e-6, percentile=30)
    summary = run(scenario_of(mixed(n=20, short=SLO(ttft=1.0), wide=wide))).summary
    assert (
        remarks(summary)[-1] == "one: 0 % of the wide requests are within the SLO; expected 30 %."
    )
    assert condition_lines(summary)[-1].endswith("wide 20 % (TTFT 1 us for 30 % of the requests).")


def test_a_limit_in_flight_bounds_the_capacity(scenario_of):
    def highest(cap):
        workload = Gamma(requests=400, rate=5.0, burstiness=1.0, max_concurrent=cap, **SHORT)
        return capacity(scenario_of(workload, SLO(ttft=1.0)), requests=400).systems["one"]

    one, free = highest(1), highest(None)
    alone = one.series.single_request_rate()
    assert 0.8 * alone < one.best.goodput < 1.02 * alone
    assert free.best.goodput > 1.5 * one.best.goodput


def talks(turns: int, think: float = 0.002) -> Sessions:
    return Sessions(
        sessions=50, rate=1.0, turns=Turns(fixed=turns), think=Think(exponential=think), **SHORT
    )


def test_sessions_of_one_turn_have_the_capacity_of_a_poisson_stream(scenario_of):
    slo = SLO(ttft=1e-3)
    rates = [
        capacity(scenario_of(workload, slo), requests=500).systems["one"].best.goodput
        for workload in (talks(1), Poisson(requests=50, rate=1.0, **SHORT))
    ]
    assert rates[0] == pytest.approx(rates[1], rel=0.06)


def test_a_trial_of_sessions_has_the_rate_of_their_requests(scenario_of):
    found = capacity(scenario_of(talks(4), SLO(ttft=1e-3)), requests=400)
    one = found.systems["one"]
    scaled = talks(4).scaled(8.0, 400)
    assert (scaled.rate, scaled.sessions) == (2.0, 100)
    batch = one.series.requests_at(one.best.load)
    begin = len(batch.arrival) // 10
    assert measured_rate(batch, begin) == pytest.approx(one.best.load)
    summary = found.summary().systems["one"]
    assert summary.sessions == pytest.approx(one.best.goodput / 4)
    rows = one.series._serve(batch)
    start, end = counted_span(rows)
    inside = (rows.arrival >= start) & (rows.arrival <= end)
    assert inside.sum() / (end - start) == pytest.approx(one.best.load, rel=0.1)
