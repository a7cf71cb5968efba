"""Replies of services: floors by hand, throttles as bounds, floors that are only listed."""

import csv
import json
import math
from dataclasses import replace

import pytest

from sim.scenario.system import System
from sim.validation.agreement import PointComparison, ValidationReport
from sim.validation.points import MeasuredPoint
from sim.validation.replies import fitted_numbers, floors
from sim.validation.simulate import simulate
from sim.validation.systems import measurement_rules
from sim.validation.validate import compare_metric, points_of, shipped_table, validate_file

TEN = [{}] * 10


@pytest.fixture
def deployments(make_table):
    """The points of a table of replies, by name."""

    def make(*rows: dict[str, object]) -> dict[str, MeasuredPoint]:
        return {point.id: point for point in floors(make_table("replies", *rows))}

    return make


@pytest.fixture
def one(deployments):
    """The only point of a table of replies."""

    def make(*rows: dict[str, object]) -> MeasuredPoint:
        (point,) = deployments(*rows).values()
        return point

    return make


@pytest.fixture(scope="module")
def ours() -> dict[str, MeasuredPoint]:
    return {point.id: point for point in floors(shipped_table("sram-replies"))}


# Floors by hand.


def test_a_floor_is_the_second_fastest_of_eleven(one):
    """The 10 % quantile of 11 sorted values is the second one.

    200 tokens in 10, 11, ... 20 ms; 100 tokens in 100, 110, ... ms.
    """
    point = one(
        *(
            {"prompt_time_s": 0.020 - n / 1000, "completion_time_s": 0.1 + n / 100}
            for n in range(11)
        )
    )
    assert point.measured == pytest.approx({"beat": 0.011 / 200, "tpot": 0.11 / 100})


def test_a_floor_of_ten_lies_between_the_two_fastest(one):
    """Nine tenths of the way from the first to the second."""
    point = one(*({"prompt_time_s": 0.010 + n / 1000} for n in range(10)))
    assert point.measured["beat"] == pytest.approx(0.0109 / 200)


def test_cached_tokens_are_not_new(one):
    point = one(*({"prompt_tokens": 300, "cached_tokens": 150} for _ in range(10)))
    assert point.measured["beat"] == pytest.approx(0.012 / 150)
    assert point.prompt == 150
    short = one(*({"prompt_tokens": 300, "cached_tokens": 201} for _ in range(10)))
    assert math.isnan(short.measured["beat"])


@pytest.mark.parametrize(
    ("change", "beat", "tpot"),
    [
        ({"prompt_tokens": 99, "flags": "short-prompt"}, False, True),
        ({"prompt_tokens": 100}, True, True),
        ({"completion_tokens": 49}, True, False),
        ({"completion_tokens": 50}, True, True),
        ({"completion_tokens": 19, "flags": "short-output"}, True, False),
        ({"flags": "image"}, False, True),
        ({"flags": "prefill-waits"}, False, True),
        ({"flags": "decode-loaded"}, True, False),
        ({"flags": "1ms"}, False, False),
        ({"flags": "fixture"}, False, False),
        ({"flags": "not-fitted"}, False, False),
        ({"flags": "decode-loaded;prefill-waits"}, False, False),
        ({"speculative": "yes"}, True, False),
        ({"acceptance_rate": "1.1"}, True, False),
        ({"acceptance_rate": "1"}, True, True),
        ({"prompt_time_s": "", "completion_time_s": ""}, False, False),  # its TTFT would count
    ],
)
def test_a_reply_counts_for_the_metrics_that_its_flags_do_not_concern(one, change, beat, tpot):
    point = one(*([change] * 10))
    assert (point.measured.get("beat", math.nan) > 0) == beat
    assert (point.measured["tpot"] > 0) == tpot
    assert ("tpot" in point.known) == (not tpot)


def test_half_years_and_providers_are_apart(deployments):
    found = deployments(
        {"date": "2025-06"},
        {"date": "2025-07"},
        {"date": "2025-12"},
        {"date": "2025"},
        {"date": ""},
    )
    assert {name: len(point.prompts) for name, point in found.items()} == {
        "GroqCloud llama-3.1-8b 2025-H1": 1,
        "GroqCloud llama-3.1-8b 2025-H2": 2,
        "GroqCloud llama-3.1-8b 2025": 1,
        "GroqCloud llama-3.1-8b undated": 1,
    }


def test_a_service_without_prompt_times_has_a_ttft(one):
    rows = {
        "provider": "SambaNova",
        "prompt_time_s": "",
        "completion_time_s": "",
        "ttft_s": 0.03,
        "tokens_per_s_reported": 400,
    }
    point = one(*([rows] * 10))
    assert point.measured == pytest.approx({"ttft": 0.03, "tpot": 1 / 400})


# Listed, not scored.


def test_fewer_than_ten_usable_replies_are_listed(one):
    point = one(*TEN[:9], {"flags": "image"})
    assert "tpot" not in point.known
    assert point.known == {
        "beat": ("listed", "9 usable replies, fewer than 10; not usable: 1 image")
    }
    assert point.measured["beat"] == pytest.approx(0.012 / 200)
    assert one(*TEN).known["beat"][0] == "fitted"


@pytest.mark.parametrize(("date", "shown"), [("2026", "2026"), ("", "none")])
def test_a_date_without_a_month_is_listed(one, date, shown):
    reason = f"its date ({shown}) has no half-year"
    assert one(*({"date": date} for _ in range(10))).known == {
        "beat": ("listed", reason),
        "tpot": ("listed", reason),
    }


def test_unknown_speculation_is_listed_only_for_decode(one):
    point = one(*({"model": "llama-3.3-70b"} for _ in range(10)))
    assert point.known == {
        "tpot": ("listed", "whether it decoded speculatively is not known since 2025-09")
    }
    assert (
        "tpot" not in one(*({"model": "llama-3.3-70b", "date": "2025-03"} for _ in range(10))).known
    )


def test_a_model_that_the_catalogue_lacks_has_a_reason(one):
    point = one(*({"model": "llama-9-9b"} for _ in range(10)))
    assert (point.system, point.reason) == (
        None,
        "'llama-9-9b' is not among the catalogue's models",
    )
    assert one({"model": ""}).id == "GroqCloud unknown 2026-H1"


def test_listed_floors_do_not_count(make_table):
    found = validate_file(make_table("replies", *TEN[:9], {"flags": "prefill-waits;decode-loaded"}))
    assert [row.status for row in found.rows] == ["listed", "listed"]
    assert all(row.simulated for row in found.rows)
    told = found.as_json()
    assert (told["metrics"], told["median_ape"], told["groups"]) == ({}, None, {})
    unusable = validate_file(make_table("replies", {"flags": "fixture"}))
    assert [(row.status, row.simulated) for row in unusable.rows] == [("listed", None)] * 2
    json.dumps(unusable.as_json(), allow_nan=False)


# Throttles.

PACED = {"date": "2025-03", "completion_time_s": 100 / 750, "flags": "paced-750"}


@pytest.mark.parametrize(
    ("rows", "bound"),
    [
        ([PACED] * 6 + [{"date": "2025-03"}] * 4, True),
        (
            [PACED] + [{"date": "2025-03", "completion_time_s": 0.29}] * 9,
            True,
        ),  # the fastest tenth is at the pace
        (
            [PACED] * 6
            + [{"date": "2025-03", "completion_time_s": 0.1 + n / 10} for n in range(4)],
            True,
        ),  # most are, one is faster
        (
            [PACED] * 5 + [{"date": "2025-03", "completion_time_s": 0.1}] * 5,
            False,
        ),  # faster ones are not throttled
        (
            [{"date": "2025-03", "completion_time_s": 100 / 750}] * 10,
            False,
        ),  # no pace of this model is known
        ([PACED] + [{"date": "2025-03", "completion_time_s": 1.029 * 100 / 750}] * 10, True),
        ([PACED] + [{"date": "2025-03", "completion_time_s": 0.9 * 100 / 750}] * 10, False),
        ([PACED] + [{"date": "2025-05", "completion_time_s": 0.969 * 100 / 750}] * 10, False),
        ([PACED] + [{"date": "2025-05", "completion_time_s": 0.972 * 100 / 750}] * 10, True),
    ],
)
def test_a_floor_at_a_known_pace_is_a_bound(one, rows, bound):
    assert one(*rows).is_bound("tpot") == bound
    assert not one(*rows).is_bound("beat")


def test_a_throttle_that_ended_paces_no_later_reply(deployments):
    near = {"completion_time_s": 1.01 * 100 / 750}
    found = deployments(
        PACED, *([near | {"date": "2025-09"}] * 10), *([near | {"date": "2026-02"}] * 10)
    )
    assert found["GroqCloud llama-3.1-8b 2025-H2"].is_bound("tpot")
    assert not found["GroqCloud llama-3.1-8b 2026-H1"].is_bound("tpot")


def test_a_pace_of_one_model_is_none_of_another(deployments):
    found = deployments(PACED, *([PACED | {"model": "llama-3-8b", "flags": ""}] * 10))
    assert not found["GroqCloud llama-3-8b 2025-H1"].is_bound("tpot")


def test_a_bound_is_one_sided(one):
    """Faster than the throttle is no error, and slower is one: only that counts."""
    point = one(*([PACED] * 10))
    pace = 1 / 750
    rows = {
        simulated: compare_metric(point, "tpot", pace, {"tpot": simulated})
        for simulated in (0.5 * pace, pace, 1.1 * pace)
    }
    assert [row.bound for row in rows.values()] == ["kept", "kept", "broken"]
    for simulated, row in rows.items():
        told = ValidationReport("mine", (row,)).as_json()
        if simulated > pace:
            assert told["metrics"]["tpot"] == pytest.approx(
                {
                    "median_ape": pytest.approx(10),
                    "mape": pytest.approx(10),
                    "bias": pytest.approx(10),
                    "n": 1,
                }
            )
            assert told["bounds"] == {"kept": 0, "broken": 1}
        else:
            assert (told["metrics"], told["groups"]) == ({}, {})
            assert told["bounds"] == {"kept": 1, "broken": 0}


# What is simulated.


def test_a_beat_is_the_time_of_a_step_where_a_step_takes_one_token(
    make_model, make_chip, make_engine
):
    """One stage that takes one token a step prefills as fast as it decodes."""
    parts = {
        "chip": make_chip(1e7),
        "chips": 1,
        "engine": make_engine(),
        "model": make_model(),
        "token_budget": 1,
    }
    about = {"model": "small", "chip": "round", "engine": "mine"}
    point = MeasuredPoint(
        "P",
        about,
        {"beat": 1.0, "tpot": 1.0},
        "reply",
        prompt=64,
        output=64,
        system=System(**parts),
    )
    told = simulate(point)
    assert told["beat"] == pytest.approx(
        told["tpot"], rel=0.2
    )  # whose steps have logits, and more context
    assert "ttft" not in told
    assert simulate(replace(point, measured={"ttft": 1.0}))["ttft"] == pytest.approx(
        64 * told["beat"], rel=0.05
    )
    assert (
        told["beat"]
        > 3 * simulate(replace(point, system=System(**parts | {"token_budget": 64})))["beat"]
    )


def test_the_numbers_of_chips_are_data(ours):
    """Rules give LPUs of 8 to a node, and a number of chips that the model fits on."""
    for name, chips, tensor in (
        ("GroqCloud llama-3-70b 2024-H1", 648, 8),
        ("GroqCloud r1-distill-llama-70b 2025-H1", 576, 8),
        ("GroqCloud gpt-oss-120b 2026-H2", 880, 16),
        ("Cerebras llama-3.3-70b 2025-H2", 4, 1),
        ("SambaNova llama-3.1-405b 2024-H2", 16, 16),
    ):
        system = ours[name].system
        assert (system.chips, system.plan.tensor) == (chips, tensor)
    assert ours["GroqCloud llama-3-70b 2024-H1"].system.chip.id == "groq-lpu-v1"
    plan = ours["GroqCloud llama-3-70b 2024-H1"].system.plan
    assert (plan.weights, plan.activations, plan.kv) == ("int8", "int8", "fp16")


def test_a_number_of_chips_is_fitted_to_one_beat_and_others_test_it(ours):
    """Every deployment that a rule names is one of the set, and its beat is scored as fitted."""
    named = [rule.chips_fitted_to for rule in measurement_rules() if rule.chips_fitted_to]
    assert len(named) == len(set(named)) > 3
    for name in named:
        assert ours[name].known["beat"][0] == "fitted"
    assert "beat" not in ours["GroqCloud llama-3.3-70b 2026-H2"].known
    assert "beat" not in ours["GroqCloud llama-3.1-8b 2025-H2"].known


def test_fitted_numbers_are_named(ours, make_engine):
    point = ours["GroqCloud llama-3.3-70b 2026-H2"]
    assert fitted_numbers([point, point]) == [
        "chips of GroqCloud llama-3-70b 2024-H1",
        "groq-compiler.layer_overhead",
    ]
    source = {
        "layer_overhead": "fitted: 29 us, to points of sram-replies",
        "step_overhead": "assumed: as sram-replies",
    }
    system = point.system.model_copy(update={"engine": make_engine(source=source)})
    assert fitted_numbers([replace(point, system=system)])[1:] == ["in-place.layer_overhead"]
    assert fitted_numbers([]) == []


# The shipped set.


def test_floors_of_the_shipped_set(ours):
    """In us and ms, by another program; throttles of 350 and 275 token/s are bounds."""
    floors_of = {
        "GroqCloud llama-3-70b 2024-H1": (48.9, 2.857),
        "GroqCloud llama-3.3-70b 2026-H2": (50.6, 1.733),
        "GroqCloud r1-distill-llama-70b 2025-H1": (63.5, 3.636),
        "GroqCloud llama-3.1-8b 2026-H1": (55.9, 1.330),
        "GroqCloud gpt-oss-120b 2026-H2": (41.3, 2.079),
    }
    for name, (beat, tpot) in floors_of.items():
        assert 1e6 * ours[name].measured["beat"] == pytest.approx(beat, rel=2e-3)
        assert 1e3 * ours[name].measured["tpot"] == pytest.approx(tpot, rel=1e-3)
    bounds = [
        name for name, point in ours.items() if point.is_bound("tpot") and "tpot" not in point.known
    ]
    assert bounds == ["GroqCloud llama-3-70b 2024-H1", "GroqCloud r1-distill-llama-70b 2025-H1"]


def test_the_shipped_set_has_every_reply_and_names_no_file(ours):
    with shipped_table("sram-replies").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == len({row["reply_id"] for row in rows}) == 771
    assert not any("source" in key for key in rows[0])
    deployments = {(row["provider"], row["model"] or "unknown") for row in rows}
    assert {tuple(name.rsplit(" ", 1)[0].split(" ", 1)) for name in ours} == deployments
    for point in ours.values():
        for metric in point.measured:
            assert (
                point.system is None
                or metric not in point.known
                or len(point.known[metric][1]) > 15
            )


# The command.


def test_json_has_the_keys_of_other_sets_and_what_was_fitted(sramsim, make_table):
    path = make_table("replies", *TEN, *([PACED] * 10))
    status, out, err = sramsim("validate", "--points", str(path), "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)["sets"]["mine"]
    assert {"points", "metrics", "median_ape", "mape", "expressed", "total"} <= told.keys()
    for metric in ("beat", "tpot"):
        assert {"median_ape", "mape", "n"} <= told["metrics"][metric].keys()
    assert told["metrics"]["beat"]["n"] == 2  # of which one was fitted to
    assert told["fitted_numbers"] == [
        "chips of GroqCloud llama-3.1-8b 2026-H1",
        "groq-compiler.layer_overhead",
    ]
    assert told["bounds"]["kept"] + told["bounds"]["broken"] == 1
    statuses = {(point["point_id"], point["metric"]): point["status"] for point in told["points"]}
    assert statuses["GroqCloud llama-3.1-8b 2026-H1", "beat"] == "fitted"
    assert statuses["GroqCloud llama-3.1-8b 2025-H1", "beat"] == "tested"
    first = told["points"][0]
    assert first["error_pct"] == pytest.approx(100 * (first["simulated"] / first["measured"] - 1))


def test_the_table_has_fitted_numbers_and_bounds(sramsim, make_table):
    slow = [PACED | {"date": "2024-03", "flags": "paced-100", "completion_time_s": 1}] * 10
    status, out, _ = sramsim(
        "validate", "--points", str(make_table("replies", *TEN, *slow, {"date": "2023-03"}))
    )
    text = " ".join(out.split())
    assert status == 0
    fitted = "chips of GroqCloud llama-3.1-8b 2026-H1, groq-compiler.layer_overhead"
    assert f"3 floors are scored; 2 numbers were fitted to them: {fitted}." in text
    assert (
        "bounds: 1 kept, 0 broken; a broken bound counts as an error above, a kept one does not count"
        in text
    )
    assert "1 usable replies, fewer than 10" in text


def test_another_column_does_not_matter(make_table):
    assert len(floors(make_table("replies", {"source_id": "x"}))) == 1


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"prompt_tokens": "many"}, "prompt_tokens: got 'many'; expected a whole number of tokens"),
        (
            {"completion_tokens": "1.5"},
            "completion_tokens: got '1.5'; expected a whole number of tokens",
        ),
        ({"cached_tokens": "-1"}, "cached_tokens: got '-1'; expected a whole number of tokens"),
        ({"cached_tokens": "201"}, "cached_tokens: got 201; expected at most prompt_tokens, 200"),
        (
            {"prompt_time_s": "fast"},
            "prompt_time_s: got 'fast'; expected a number above 0, or nothing",
        ),
        ({"prompt_time_s": "0"}, "prompt_time_s: got '0'; expected a number above 0, or nothing"),
        (
            {"completion_time_s": "nan"},
            "completion_time_s: got 'nan'; expected a number above 0, or nothing",
        ),
        ({"ttft_s": "inf"}, "ttft_s: got 'inf'; expected a number above 0, or nothing"),
        (
            {"tokens_per_s_reported": "-3"},
            "tokens_per_s_reported: got '-3'; expected a number above 0, or nothing",
        ),
        (
            {"acceptance_rate": "x"},
            "acceptance_rate: got 'x'; expected a number above 0, or nothing",
        ),
        ({"date": "March 2026"}, "date: got 'March 2026'; expected YYYY-MM, or YYYY, or nothing"),
        ({"date": "2026-13"}, "date: got '2026-13'; expected YYYY-MM, or YYYY, or nothing"),
        ({"speculative": "maybe"}, "speculative: got 'maybe'; expected 0, yes or unknown"),
        (
            {"flags": "paced-"},
            "flags: got 'paced-'; expected paced-N, 1ms, decode-loaded, fixture, image, "
            "not-fitted, ",
        ),
        ({"flags": "short-output;imagined"}, "flags: got 'imagined'; expected paced-N, 1ms, "),
    ],
)
def test_a_malformed_cell_is_one_line_and_status_2(sramsim, make_table, cells, message):
    status, out, err = sramsim("validate", "--points", str(make_table("replies", {}, cells)))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"mine.csv:3: {message}" in err


# Engines without points.


def test_a_floor_that_an_engine_was_not_fitted_for_is_assumed(one):
    """SambaFlow's numbers are all assumed."""
    rows = {"provider": "SambaNova", "prompt_time_s": "", "ttft_s": 0.03}
    row = compare_metric(one(*([rows] * 10)), "ttft", 0.03, {"ttft": 0.02})
    assert (row.status, row.reason) == ("assumed", "sambaflow: no points for layer_overhead")
    assert ValidationReport("mine", (row,)).headline == []


def test_other_tables_say_nothing_of_replies(make_table):
    row = PointComparison(points_of(make_table("published"))[0], "tpot", 1.0, 2.0, "fitted", "")
    assert "fitted_numbers" not in ValidationReport("mine", (row,)).as_json()
