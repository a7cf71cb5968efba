"""Measured and simulated times: the simulation of a point, its errors and its status."""

import json
import math
from collections import defaultdict
from dataclasses import asdict, replace

import numpy as np
import pytest

import sim
from sim.catalogue.measurements import Rule
from sim.cost.plan import Plan, PlanError
from sim.hardware.engine import Engine, Host
from sim.hardware.kernels import Kernels
from sim.inputs.document import read_value
from sim.inputs.errors import UserError
from sim.inputs.names import catalogue_names
from sim.results.metrics import latencies
from sim.results.validation_summary import ErrorStatistics
from sim.scenario.layout import deploy_fitting
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.system import System
from sim.validation import systems
from sim.validation import validate as module
from sim.validation.agreement import PointComparison, ValidationReport, error_statistics
from sim.validation.points import MeasuredPoint
from sim.validation.simulate import point_scenario, simulate
from sim.validation.systems import catalogue_entry
from sim.validation.validate import (
    SETS,
    compare_metric,
    points_of,
    shipped_table,
    unfitted_numbers,
    validate_file,
    validate_set,
)


@pytest.fixture
def make_point(make_model, make_chip, make_engine):
    """Return a point of 16 tokens after 32 on one small chip, with some changes."""

    def make(engine=None, model=None, system=None, **changes) -> MeasuredPoint:
        parts = {
            "chip": make_chip(1e7),
            "chips": 1,
            "engine": make_engine(**engine or {}),
            "model": make_model(**model or {}),
        }
        about = {"model": "small", "chip": "round", "engine": "mine"}
        given = {
            "measured": {"tpot": 1e-3},
            "prompt": 32,
            "output": 16,
            "system": System(**parts | (system or {})),
        }
        return MeasuredPoint("P", about, **given | changes)

    return make


@pytest.fixture
def fitted(monkeypatch):
    """Says which ids may be fitted to; none where a test says none."""

    def say(*ids: str) -> None:
        monkeypatch.setattr(module, "fitted_ids", lambda: frozenset(ids))

    say()
    return say


def served(point: MeasuredPoint, users: int, rounds: int | None = None):
    """The rows of a point's requests, served outside of `validate`."""
    scenario = point_scenario(point, users, rounds)
    return serve_requests(
        scenario,
        "measured",
        {"measured": Member(deploy_fitting(scenario, "measured"))},
        scenario.workload.draw(0),
    )


# What is simulated.


def test_alone_is_a_single_request_and_the_overhead_of_its_host(make_point):
    point = make_point()
    told, late = (
        simulate(point),
        simulate(make_point(engine={"hosts": {"here": {"request": 0.5}}}, host="here")),
    )
    rows = served(point, 1)
    assert told["ttft"] == pytest.approx(rows.first_token[0])
    assert (
        told["tpot"]
        == told["itl"]
        == pytest.approx((rows.last_token[0] - rows.first_token[0]) / 15)
    )
    assert late == pytest.approx(told | {"ttft": told["ttft"] + 0.5})


def test_users_are_a_closed_loop_of_ten_rounds_and_means_count(make_point):
    point = make_point(
        pattern="users", users=3, engine={"hosts": {"here": {"request": 0.5}}}, host="here"
    )
    rows = served(replace(point, measured={}), 3)
    assert len(rows.arrival) == 30
    times = latencies(rows)
    told = simulate(point)
    assert told["ttft"] == pytest.approx(times["ttft"].mean() + 0.5)
    assert told["tpot"] == told["itl"] == pytest.approx(times["tpot"].mean())


def test_lengths_may_be_spread_over_the_upper_fifth(make_point):
    requests = point_scenario(
        make_point(pattern="users", spread=True, prompt=100, output=51), 50
    ).workload.draw(0)
    assert (requests.prompt.min(), requests.prompt.max()) == (80, 100)
    assert (requests.output.min(), requests.output.max()) == (41, 51)


def test_the_last_of_a_batch_counts(make_point):
    point = make_point(
        pattern="batch", users=4, engine={"hosts": {"here": {"request": 0.5}}}, host="here"
    )
    rows, told = served(point, 4), simulate(point)
    assert len(rows.arrival) == 4
    assert told["ttft"] == pytest.approx(rows.first_token.max() + 0.5)
    assert told["e2el"] == pytest.approx(rows.last_token.max())


def test_a_latency_without_the_prefill_is_that_of_as_many_decode_steps(make_point):
    point = make_point(pattern="batch", users=4)
    with_it, without = simulate(point)["e2el"], simulate(replace(point, prefill=False))["e2el"]
    rows = served(point, 4)
    assert without == pytest.approx((rows.last_token.max() - rows.first_token.max()) / 15 * 16)
    assert without < with_it


def test_a_full_server_keeps_littles_law(make_point):
    """Users without pauses: request/s = users / mean time of a request."""
    point = make_point(pattern="full", users=12, output=40, system={"token_budget": 16})
    mean = latencies(served(point, 12, 40))["e2el"].mean()
    assert simulate(point)["throughput"] == pytest.approx(mean / (12 * 40), rel=0.02)


def test_a_server_is_full_when_no_other_sequence_has_room(make_point):
    """1,280 tokens of room for 48 of each: 26."""
    system = {"kv_tokens": 1280}
    as_many = simulate(make_point(pattern="full", users=0, system=system))
    assert as_many == simulate(make_point(pattern="full", users=26, system=system))
    assert as_many != simulate(make_point(pattern="full", users=25, system=system))


def test_more_at_once_give_more_tokens_a_second(make_point):
    times = [
        simulate(make_point(pattern="full", users=users))["throughput"] for users in (1, 4, 16)
    ]
    assert times == sorted(times, reverse=True)


def test_what_has_no_room_is_not_expressed(make_point):
    with pytest.raises(PlanError, match="48 tokens exceed the KV room of 40"):
        simulate(make_point(pattern="users", system={"kv_tokens": 40}))
    with pytest.raises(PlanError, match="does not fit"):
        simulate(make_point(model={"vocab_size": 10**5}))


def test_a_point_beyond_the_trained_context_is_simulated(make_point):
    short = {"max_position_embeddings": 20}
    for pattern in ("users", "batch", "full"):
        told = simulate(make_point(pattern=pattern, users=2, model=short))
        assert told == simulate(make_point(pattern=pattern, users=2))
        assert all(math.isfinite(seconds) for seconds in told.values())


# Errors.


@pytest.mark.parametrize(("simulated", "error"), [(2.0, 1.0), (0.5, -0.5), (1.0, 0.0)])
def test_an_error_is_that_of_the_time(make_point, fitted, simulated, error):
    assert compare_metric(make_point(), "tpot", 1.0, {"tpot": simulated}).error == pytest.approx(
        error
    )


def test_a_rate_and_a_time_of_the_same_have_the_same_error(make_table, fitted):
    """50 tokens a second are 20 ms a token; 640 tokens of prompt a second are 100 ms for 64."""
    rows = [
        ("decode_tok_s_user", 50),
        ("TPOT_ms", 20),
        ("ITL_ms", 20),
        ("prefill_tok_s", 640),
        ("TTFT_ms", 100),
    ]
    path = make_table(
        "published",
        *({"point_id": metric, "metric": metric, "value": value} for metric, value in rows),
    )
    rate, tpot, itl, prefill, ttft = (row.error for row in validate_file(path).rows)
    assert rate == pytest.approx(tpot) == pytest.approx(itl)
    assert prefill == pytest.approx(ttft)
    assert rate != pytest.approx(prefill)


def test_twice_the_rate_is_twice_the_time_over_the_measured(make_table, fitted):
    path = make_table("published", {"point_id": "a", "value": 50}, {"point_id": "b", "value": 100})
    once, twice = (row.error for row in validate_file(path).rows)
    assert (1 + twice) / (1 + once) == pytest.approx(2)


def test_statistics_by_hand(make_point):
    def row(percent: float | None) -> PointComparison:
        return PointComparison(
            make_point(),
            "tpot",
            1.0,
            None if percent is None else 1 + percent / 100,
            "tested",
            "",
        )

    statistics = error_statistics([row(10), row(-30), row(None), row(2), row(-4)])
    assert asdict(statistics) == pytest.approx(
        {"median_ape": 7, "mape": 46 / 4, "bias": -22 / 4, "n": 4}
    )
    assert error_statistics([row(None)]) == ErrorStatistics(n=0)


# Which rows count for what.


def test_a_status_is_fitted_only_where_the_id_may_be_fitted_to(make_point, fitted):
    told = {
        "memory_efficiency.16": "fitted: to points",
        "compute_efficiency.16": "assumed: a neighbour's",
    }
    point = make_point(engine={"source": told})

    def status(metric: str, point: MeasuredPoint = point) -> tuple[str, str]:
        row = compare_metric(point, metric, 1.0, {metric: 1.0})
        return row.status, row.reason

    assert status("tpot") == ("tested", "")
    assert status("ttft") == ("assumed", "in-place: no points for compute_efficiency.16")
    assert status("throughput") == ("assumed", "in-place: no points for compute_efficiency.16")
    assert status("tpot", replace(point, reason="a neighbour's engine")) == (
        "assumed",
        "a neighbour's engine",
    )
    assert status("tpot", replace(point, remark="known to be odd")) == ("tested", "known to be odd")
    fitted("P")
    assert status("ttft") == status("tpot") == ("fitted", "")
    fitted("Q")
    assert status("tpot") == ("tested", "")


@pytest.mark.parametrize(
    ("weights", "bits"),
    [("fp8", "8"), ("int8", "8"), ("int4", "4"), ("fp4", "4"), ("bf16", "16"), (None, "16")],
)
def test_fitted_numbers_depend_on_the_bits_of_the_weights(make_point, weights, bits):
    source = {f"memory_efficiency.{bits}": "fitted: to points"}
    system = make_point(engine={"source": source}, system={"plan": Plan(weights=weights)}).system
    assert unfitted_numbers(system, "tpot") == ""
    for other in {"4", "8", "16"} - {bits}:
        source = {f"memory_efficiency.{other}": "fitted: to points"}
        system = make_point(
            engine={"source": source}, system={"plan": Plan(weights=weights)}
        ).system
        assert (
            unfitted_numbers(system, "tpot") == f"in-place: no points for memory_efficiency.{bits}"
        )


def test_experts_have_a_number_of_their_own(make_point):
    moe = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    source = {"memory_efficiency": "fitted: to points"}
    assert (
        unfitted_numbers(make_point(engine={"source": source}, model=moe).system, "tpot")
        == "in-place: no points for moe_layer_overhead"
    )
    assert not unfitted_numbers(
        make_point(
            engine={"source": source | {"moe_layer_overhead": "fitted: to them"}}, model=moe
        ).system,
        "tpot",
    )


def test_the_headline_is_of_dense_models_that_were_not_fitted_to(make_point):
    moe = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    dense, experts = make_point(), make_point(model=moe)
    far = dict(zip(("fitted", "tested", "assumed"), (0.1, 0.2, 0.4), strict=True))
    rows = [
        PointComparison(point, "tpot", 1.0, 1 + error, status, "")
        for status, error in far.items()
        for point in (dense, experts)
    ]
    missing = PointComparison(dense, "tpot", 1.0, None, "not expressed", "too large")
    every = ValidationReport("mine", (*rows, missing))
    assert [row.error for row in every.headline] == [pytest.approx(0.2)]
    only_fitted = ValidationReport("mine", tuple(row for row in rows if row.status != "tested"))
    assert [row.error for row in only_fitted.headline] == [pytest.approx(0.1)]
    assert ValidationReport("mine", (missing,)).headline == []
    kinds = [
        f"{status}, {kind}"
        for status in ("tested", "fitted", "assumed")
        for kind in ("dense", "mixture of experts")
    ]
    assert list(every.groups) == kinds
    assert all(len(group) == 1 for group in every.groups.values())
    told = every.as_json()
    assert (told["median_ape"], told["mape"]) == (pytest.approx(20), pytest.approx(20))
    assert told["groups"]["assumed, dense"]["tpot"]["mape"] == pytest.approx(40)


def test_the_ten_farthest_come_first(make_point):
    rows = [
        PointComparison(make_point(), "tpot", 1.0, 1 + (-1) ** n * n / 100, "tested", str(n))
        for n in range(14)
    ]
    assert [row.reason for row in ValidationReport("mine", tuple(rows)).worst] == [
        str(n) for n in range(13, 3, -1)
    ]


# Bounds.


def test_a_bound_that_holds_is_left_out_of_the_statistics_and_a_broken_one_counts(make_point):
    """Errors of 10 %, 30 % (a broken bound) and kept bounds: a median of 20, not of 10."""
    plain, paced = make_point(), make_point(bound="throttled")
    points = [(plain, 10), (paced, 30), (paced, -50), (paced, 0), (plain, None)]
    rows = tuple(
        PointComparison(
            point, "tpot", 1.0, None if percent is None else 1 + percent / 100, "tested", ""
        )
        for point, percent in points
    )
    told = ValidationReport("mine", rows)
    assert [row.bound for row in rows] == [None, "broken", "kept", "kept", None]
    assert [row.error for row in rows] == [pytest.approx(0.1), pytest.approx(0.3), 0.0, 0.0, None]
    assert told.headline == told.groups["tested, dense"] == [rows[0], rows[1]]
    assert told.worst == [rows[1], rows[0]]
    found = told.as_json()
    assert (found["median_ape"], found["mape"]) == (pytest.approx(20), pytest.approx(20))
    assert found["groups"]["tested, dense"]["tpot"]["n"] == 2
    assert found["bounds"] == {"kept": 2, "broken": 1}
    assert [each["bound"] for each in found["points"]] == [None, "broken", "kept", "kept", None]
    assert found["points"][1]["bound_reason"] == "throttled"


def test_the_command_counts_kept_and_broken_bounds(sramsim, make_table, fitted, monkeypatch):
    """One of twice the speed that comes out, one of a thousandth of it."""
    rules = (*systems.measurement_rules(), Rule(when={}, bound="throttled", source="here"))
    monkeypatch.setattr(systems, "measurement_rules", lambda: rules)
    path = make_table(
        "published", {"point_id": "slow", "value": 0.1}, {"point_id": "fast", "value": 1e5}
    )
    status, out, err = sramsim("validate", "--points", str(path))
    assert (status, err) == (0, "")
    assert (
        "bounds: 1 kept, 1 broken; a broken bound counts as an error above, a kept one does not count"
        in out
    )
    assert "1 kept: throttled (slow)" in out
    assert "1 broken: throttled (fast)" in out


# A user's file.


@pytest.fixture
def mixed(make_table):
    """Two of four rows cannot be simulated: an unknown metric, and a model that is too large."""
    large = {"point_id": "large", "model": "Llama-3.1-70B"}
    return make_table(
        "published",
        {"point_id": "one"},
        {"point_id": "odd", "metric": "watts"},
        large,
        {"point_id": "two", "value": 50},
    )


def test_every_row_of_a_users_file_is_counted(mixed, fitted):
    told = validate_file(mixed).as_json()
    assert [
        (point["point_id"], point["status"] != "not expressed") for point in told["points"]
    ] == [
        ("one", True),
        ("odd", False),
        ("large", False),
        ("two", True),
    ]
    assert (told["expressed"], told["total"]) == (2, 4)
    reasons = [point["reason"] for point in told["points"] if point["status"] == "not expressed"]
    assert reasons[0].startswith("metric watts: nothing simulates it")
    assert "does not fit" in reasons[1]
    for point in told["points"]:
        assert (
            (point["error_pct"] is None)
            == (point["simulated"] is None)
            == (point["status"] == "not expressed")
        )


def test_the_number_of_processes_changes_nothing(mixed, fitted, monkeypatch):
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    calls = []
    alone = validate_file(mixed)
    several = validate_file(mixed, lambda *call: calls.append(call), jobs=2)
    assert several.summary == alone.summary
    done = [count for _, count, _ in calls]
    assert done == list(range(1, len(done) + 1))


def test_json_has_the_keys_that_were_promised(mixed, fitted):
    path = mixed
    told = json.loads(json.dumps(validate_file(path).as_json(), allow_nan=False))
    assert {"points", "metrics", "median_ape", "mape", "expressed", "total"} <= told.keys()
    for point in told["points"]:
        assert {
            "point_id",
            "metric",
            "measured",
            "simulated",
            "error_pct",
            "status",
            "reason",
        } <= point.keys()
    fitted("one", "two")
    told = validate_file(path).as_json()
    assert {"median_ape", "mape", "n"} <= told["metrics"]["tpot"].keys()
    assert told["metrics"]["tpot"]["n"] == 2
    one = told["points"][0]
    assert one["measured"] == pytest.approx(10)
    assert one["error_pct"] == pytest.approx(100 * (one["simulated"] / one["measured"] - 1))


def test_a_serving_row_is_one_point_of_two_metrics(make_table, fitted):
    told = validate_file(
        make_table("serving", {"point_id": "a"}, {"point_id": "b", "osl": 1})
    ).as_json()
    assert [(point["point_id"], point["metric"]) for point in told["points"]] == [
        (name, metric) for name in "ab" for metric in ("ttft", "tpot")
    ]
    assert (told["expressed"], told["total"]) == (2, 2)
    assert told["points"][3]["reason"] == "an answer of 1 token has no TPOT"


def test_rows_of_one_name_are_simulated_each_for_itself(make_table, fitted):
    """One point_id for several metrics or systems of it."""
    rows = [
        {"metric": "TTFT_ms"},
        {"metric": "e2e_latency_s"},
        {"accelerator_chip_id": "nv_a100_80g_sxm", "metric": "TTFT_ms"},
    ]
    ttft, whole, other = (
        row.simulated for row in validate_file(make_table("published", *rows)).rows
    )
    assert ttft < whole
    assert ttft < other


def test_a_users_steps_are_not_taken_for_the_catalogues(make_table):
    """Rows of such tables have no names of their own."""
    (row, _) = validate_file(make_table("steps", name="mine.csv")).rows
    assert row.point.id == "mine:2"
    assert row.status != "fitted"


def test_an_empty_table_is_no_row(make_table, fitted):
    path = make_table("published")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert validate_file(path).as_json() | {"groups": {}} == {
        "points": [],
        "metrics": {},
        "median_ape": None,
        "mape": None,
        "groups": {},
        "bounds": {"kept": 0, "broken": 0},
        "expressed": 0,
        "total": 0,
    }


# The catalogue's.


def test_engines_may_be_fitted_to_calibration_steps_and_a_half_of_serving():
    ids = module.fitted_ids()
    assert {"P001", "steps-2023:2"} <= ids
    assert not any(
        point.id in ids for point in module.measured_points(module.shipped_table("validation"))
    )
    serving = [
        point.id in ids
        for point in module.measured_points(module.shipped_table("serving"))
        if point.system
    ]
    assert 0.4 < np.mean(serving) < 0.52


def test_a_set_that_is_not_there_is_refused():
    with pytest.raises(
        UserError,
        match="validate: got 'steps'; expected calibration, validation, serving",
    ):
        validate_set("steps")


def test_the_replay_compares_each_statistic_of_what_was_measured():
    told = validate_set("replay").as_json()
    assert [(point["point_id"], point["metric"]) for point in told["points"]] == [
        (f"{statistic} of 300 requests", metric)
        for statistic in ("mean", "median", "p90")
        for metric in ("ttft", "tpot")
    ]
    assert {point["status"] for point in told["points"]} == {"tested"}
    assert (told["expressed"], told["total"]) == (3, 3)


# The command.


def test_the_command_prints_a_users_file_as_json_and_as_tables(sramsim, mixed, fitted):
    status, out, err = sramsim("validate", "--points", str(mixed), "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"sets": {"mine": validate_file(mixed).as_json()}}
    status, out, err = sramsim("validate", "--points", str(mixed))
    assert (status, err) == (0, "")
    assert "mine: error of the time, simulated / measured - 1" in out
    assert "1: metric watts: nothing simulates it" in out
    assert "(large)" in out


def test_the_command_draws_a_users_file(sramsim, mixed, fitted, tmp_path):
    status, _, err = sramsim(
        "validate", "--points", str(mixed), "--figure", str(tmp_path / "agreement.svg")
    )
    assert (status, err) == (0, f"{tmp_path / 'agreement.svg'}: written\n")
    assert "simulated, ms" in (tmp_path / "agreement.svg").read_text()


ONE_SET = (
    "validate: got more than one of NAME, --points and --network; expected one;"
    " try sramsim validate serving"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serving --network", ONE_SET),
        ("serving --points mine.csv", ONE_SET),
        (
            "network --figure a.txt",
            "--figure: got a.txt; expected a name that ends with .png, .svg or .pdf; try a.png",
        ),
        (
            "servin",
            "validate: got 'servin'; expected calibration, validation, serving, steps-2023, "
            "sram-replies, speculation, afd, kv-transfer, pd-silicon, replay, kernels or network; did you mean "
            "'serving'?",
        ),
        ("--points gone.csv", "gone.csv: no such file"),
        (
            "mine.csv",
            "validate: got mine.csv; expected the name of a set; try sramsim validate --points mine.csv",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(sramsim, words, message):
    assert sramsim("validate", *words.split()) == (2, "", f"{message}\n")


def test_a_host_that_the_engine_does_not_know_adds_the_mean_of_those_it_knows(make_point):
    known = {"hosts": {"here": {"request": 0.5}, "there": {"request": 0.1}}}
    bare = simulate(make_point())["ttft"]
    assert simulate(make_point(engine=known, host="elsewhere"))["ttft"] == pytest.approx(bare + 0.3)
    assert simulate(make_point(engine=known))["ttft"] == pytest.approx(bare)


def test_a_host_adds_time_for_each_prompt_token_and_launches_layers(make_point):
    bare = simulate(make_point(prompt=10))
    host = {"request": 0.5, "prompt_token": 0.01, "layer_launch": {"decode": 0, "prefill": 1}}
    slow = simulate(make_point(prompt=10, engine={"hosts": {"here": host}}, host="here"))
    layers = sum(bool(block.mixers) for block in make_point().system.model.blocks)
    assert slow["ttft"] == pytest.approx(layers + 0.6)
    assert slow["tpot"] == pytest.approx(bare["tpot"])


def test_the_kernels_of_a_host_replace_those_of_the_engine(make_point):
    engine, chip, model = (
        catalogue_entry(name, kind)
        for name, kind in (("vllm", "engines"), ("h100-sxm", "chips"), ("gpt-oss-20b", "models"))
    )
    marlin = read_value(catalogue_names("kernels")["marlin"], Kernels)
    hosts = {"triton": Host(), "marlin": Host(block_kernels=marlin)}
    parts = {"chip": chip, "model": model, "plan": Plan(activations="bf16")}

    def token_time(host: str, **changes) -> float:
        system = parts | {"engine": engine.model_copy(update={"hosts": hosts, **changes})}
        return simulate(make_point(system=system, host=host))["tpot"]

    assert token_time("marlin") == token_time("triton", block_kernels=marlin)
    assert token_time("triton") == token_time("")
    # Triton's kernel starts 14.5 us later in each of the 24 layers.
    assert token_time("triton") - token_time("marlin") > 24 * 14e-6


def test_a_busy_front_end_bounds_the_requests_that_are_served(make_point):
    """Four users wait for each other: one request each second, so a round takes four seconds."""
    busy = {"hosts": {"here": {"busy_request": 1.0}}}
    point = make_point(pattern="users", users=4, engine=busy, host="here")
    times = simulate(point)
    free = simulate(replace(point, host=""))
    answer = free["ttft"] + (point.output - 1) * free["tpot"]
    assert answer < 0.01
    # In the first round the users wait 1, 2, 3 and 4 s, and then 4 s less an answer.
    assert times["ttft"] == pytest.approx((2.5 + 9 * 4) / 10, rel=0.01)
    # A single request waits for its own second.
    single, unhosted = (simulate(make_point(engine=busy, host=at)) for at in ("here", ""))
    assert single["ttft"] - unhosted["ttft"] == pytest.approx(1.0)
    # The 64 tokens of a round keep it busy for 6.4 s. Nothing is made before the first round.
    busy = {"hosts": {"here": {"busy_token": 0.1}}}
    times = simulate(make_point(pattern="users", users=4, engine=busy, host="here"))
    assert times["ttft"] == pytest.approx(9 * 6.4 / 10, rel=0.01)


# Which engines were measured on which chips, and what a speed is elsewhere.


def test_an_engine_names_the_chips_that_tables_have_it_on():
    """Rows whose engine was taken over from a neighbour are no points of it."""
    on = defaultdict(set)
    for name in SETS:
        for point in points_of(shipped_table(name)):
            if point.system and point.system.chip and point.measured and not point.reason:
                on[point.system.engine.id].add(point.system.chip.id)
    replayed = sim.read("replay-vllm-rtx4090").whole("rtx4090")
    on[replayed.engine.id].add(replayed.chip.id)
    for name, path in catalogue_names("engines").items():
        assert set(read_value(path, Engine).points) == on[name], (
            f"{name}: points: [{', '.join(sorted(on[name]))}]"
        )
