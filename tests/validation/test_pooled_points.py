"""Measured prefill and decode pools as points: served requests, and transfers of KV caches."""

import csv
from collections import defaultdict
from dataclasses import replace
from statistics import median

import pytest

from sim.inputs.errors import ScenarioError
from sim.units import parse_quantity
from sim.validation.agreement import ValidationReport
from sim.validation.points import HYBRID, POOLED
from sim.validation.pooled_points import LABELS, pooled_points
from sim.validation.simulate import simulate
from sim.validation.validate import (
    compare_metric,
    shipped_table,
    validate_own_file,
    validate_set,
)

SERVED = {
    "point_id": "D1",
    "model": "Qwen3-8B",
    "system": "h100_sxm",
    "backend": "vllm",
    "backend_version": "0.18",
    "precision": "fp8",
    "isl": "512",
    "osl": "64",
    "concurrency": "4",
    "decode_batch": "2",
    "mean_ttft_ms": "300",
    "mean_tpot_ms": "10",
    "label": "without",
}
ONES = {key: "1" for key in POOLED if key.startswith(("prefill_", "decode_"))}


@pytest.fixture
def table(tmp_path):
    def write(columns, *rows):
        path = tmp_path / "own.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def test_transfers_of_published_caches_take_as_long_as_measured():
    report = validate_set("kv-transfer")
    times = [row for row in report.headline if row.metric == "kv_transfer"]
    assert len(times) == 9
    assert all(abs(row.error) < 0.10 for row in times)
    assert {row.status for row in times} == {"fitted"}  # the link is fitted to them


def test_a_link_of_another_peak_is_predicted(table):
    row = {
        "point_id": "H1",
        "topic": "kv-transfer",
        "system": "vLLM + Mooncake, 4 RoCE ~100 GB/s peak",
        "chips_prefill": "8x H800 TP8",
        "chips_decode": "8x H800 TP8",
        "model": "Qwen3-8B",
        "precision": "bf16",
        "isl": "16384",
        "osl": "",
        "concurrency": "1",
        "metric": "kv_transfer_ms",
        "value": "33",
        "unit": "ms",
    }
    (found,) = validate_own_file(table(HYBRID, row)).rows
    assert found.simulated == pytest.approx(0.374e-3 + 16384 * 36 * 2 * 1024 * 2 / 73.55e9)
    assert found.status != "fitted"


def test_a_first_token_comes_from_the_decode_pool_after_the_hand_over(table):
    """One pool alone: prefill, transfer, hand-over, and a step; the TPOT is that of the decode pool."""
    row = SERVED | ONES | {"concurrency": "1", "prefill_workers": "2"}
    (point,) = pooled_points(table(POOLED, row))
    assert point.pools.prefill.chips == 2
    times = simulate(point)
    engine = point.system.engine
    assert times["ttft"] > engine.handover + times["kv_transfer"] + times["tpot"]
    assert 0.3e-3 < times["kv_transfer"] < 10e-3
    assert times["tpot"] < 20e-3


def test_hand_overs_are_what_is_missing_from_rows_of_few_users():
    """Their medians, and as ranges the least and the most of rows with less than 0.6 s."""
    missing = defaultdict(list)
    for point in pooled_points(shipped_table("pd-silicon")):
        if "ttft" in point.known:
            engine = point.system.engine
            rest = point.measured["ttft"] - simulate(point)["ttft"] + engine.handover
            missing[engine.id].append((rest, engine))
    assert {name: len(rows) for name, rows in missing.items()} == {
        "tensorrt-llm-kernels": 8,
        "sglang": 7,
    }
    for rows in missing.values():
        rests, engine = [rest for rest, _ in rows], rows[0][1]
        assert engine.handover == pytest.approx(median(rests), abs=2e-3)
        short = [rest for rest in rests if rest < 0.6]
        ends = [parse_quantity(end, "s") for end in engine.range["handover"]]
        assert ends == pytest.approx([min(short), max(short)], abs=2e-3)


def test_rows_that_may_have_drafted_are_left_out_with_the_reason():
    points = pooled_points(shipped_table("pd-silicon"))
    reasons = {point.reason for point in points if point.system is None}
    assert set(LABELS.values()) <= reasons
    compared = [point for point in points if point.system and not point.system.speculate]
    assert len(compared) > 100
    # Only hand-overs are fitted, and only to rows of few users and short prompts.
    fitted = [point for point in compared if "ttft" in point.known]
    assert all(point.users <= 32 and point.prompt <= 1024 for point in fitted)
    assert len(fitted) == 15
    assert all("tpot" not in point.known for point in compared)


def test_rows_with_drafts_have_a_published_acceptance_and_count_apart():
    points = [point for point in pooled_points(shipped_table("pd-silicon")) if point.system]
    drafting = [point for point in points if point.system.speculate]
    assert len(drafting) == 14
    assert {(p.system.speculate.tokens, p.pools.prefill.speculate) for p in drafting} == {(3, None)}
    assert all("deepseek-r1-mtp" in point.reason for point in drafting)
    simulated = {"tpot": 0.01}
    rows = [compare_metric(p, "tpot", p.measured["tpot"], simulated) for p in points]
    report = ValidationReport("pd-silicon", tuple(rows))
    assert not any(row.point.system.speculate for row in report.headline)
    assert len(report.headline) == len(points) - 14
    assert len(report.groups["assumed, mixture of experts, drafts"]) == 14


def test_pools_of_deepseek_have_the_kernels_that_such_servers_set():
    """FP8 as the checkpoint has it, by DeepGEMM where each rank has whole experts and attention."""
    points = [p for p in pooled_points(shipped_table("pd-silicon")) if p.system]
    pools = [(p, pool) for p in points for pool in (p.system, p.pools.prefill)]
    eight = [
        pool
        for point, pool in pools
        if (point.about["model"], point.about["precision"]) == ("DeepSeek-V3", "fp8")
    ]
    assert len(eight) == 92
    assert {pool.plan.weights for pool in eight} == {None}
    ranked = [pool for pool in eight if pool.plan.attention_data > 1]
    assert {pool.engine.block_kernels.id for pool in ranked} == {"deepgemm"}
    others = [pool for pool in eight if pool not in ranked]
    assert {pool.engine.block_kernels for pool in others} == {None}
    assert {pool.engine.id for _, pool in pools} == {"tensorrt-llm-kernels", "sglang", "vllm"}


def test_drafts_shorten_the_time_of_a_token_and_not_the_first_step():
    """Four tokens in each step, or one: the client waits for the first step as long."""
    point = next(p for p in pooled_points(shipped_table("pd-silicon")) if p.id == "D242")

    def times(accepted):
        of = point.system.speculate.model_copy(update={"acceptance": (accepted,) * 3})
        system = point.system.model_copy(update={"speculate": of})
        return simulate(replace(point, users=1, system=system))

    all_, none = times(1.0), times(0.0)
    assert all_["tpot"] == pytest.approx(none["tpot"] / 4, rel=0.01)
    assert all_["ttft"] == pytest.approx(none["ttft"], rel=0.01)


def test_rows_whose_prefill_pool_never_rests_count_apart(table):
    """One user leaves it idle during every decode; with answers of two tokens 32 users do not."""
    long = SERVED | ONES | {"isl": "4096"}
    rows = [
        long | {"point_id": "D1", "concurrency": "1", "osl": "512"},
        long | {"point_id": "D2", "concurrency": "32", "osl": "2", "decode_batch": "32"},
    ]
    report = validate_own_file(table(POOLED, *rows))
    busy = {row.point.id: row.near_saturation for row in report.rows}
    assert busy == {"D1": False, "D2": True}
    assert {len(rows) for rows in report.groups.values()} == {2}
    assert sum(name.endswith(", near saturation") for name in report.groups) == 1
    assert {row.point.id for row in report.headline} == {"D1", "D2"}


def test_rows_of_a_user_are_not_fitted_to(table):
    (point,) = pooled_points(table(POOLED, SERVED | ONES | {"backend": "sglang"}))
    assert point.system.engine.id == "sglang"
    assert point.known == {}


@pytest.mark.slow
def test_few_users_of_pools_wait_as_long_for_a_token_as_measured():
    """A sample of the set, which takes minutes: TPOT within 45 %, half of the rows within 25 %."""
    ids = ("D029", "D036", "D058", "D072", "D147", "D256")
    points = [p for p in pooled_points(shipped_table("pd-silicon")) if p.id in ids]
    errors = [abs(simulate(p)["tpot"] / p.measured["tpot"] - 1) for p in points]
    assert len(errors) == len(ids)
    assert max(errors) < 0.45
    assert sorted(errors)[len(ids) // 2] < 0.25


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decode_tp": "0"}, "decode_tp: got '0'; expected a whole number above 0"),
        ({"mean_ttft_ms": "-"}, "mean_ttft_ms: got '-'; expected a finite number above 0"),
    ],
)
def test_a_wrong_cell_is_told(table, changes, error):
    with pytest.raises(ScenarioError, match=error):
        pooled_points(table(POOLED, SERVED | ONES | changes))
