"""Typed results and their JSON are the same thing twice, and a metric is one entry of a registry."""

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
from rich.console import Console

import sim
from sim.report import page
from sim.report.compare_tables import change_tables
from sim.report.tables import comparison
from sim.results.encoding import decode_summary, encode_summary
from sim.results.plan_summary import PlanSummary
from sim.results.saving import load_result, save_result
from sim.results.statistics import LATENCIES, Latency, LatencyField, Statistics
from sim.results.summary import RunSummary
from sim.studies.compare import compare_runs
from sim.studies.sweep import sweep

FEW = "workload.requests=20"
RUNS = {
    "llama3-8b-lpu-vs-h100": [FEW, "measure={warmup: 1 s}", "systems.lpu.max_sequences=64"],
    "fleet": [FEW],  # members, an SLO, energy and money
    "jia-2024": ["workload.requests=8", "workload.users=2"],  # an estimate, a searched plan
    "day-in-the-life": [FEW],  # outages
    "link-errors": ["workload.requests=4"],
    "spares": [  # availability
        "workload.requests=4",
        *(f"systems.{name}.faults.samples=20" for name in ("no-spare", "pooled", "one-per-rack")),
    ],
    "straggler": ["workload.prompt=2 token", "workload.output=3 token"],  # chip fidelity
    "replay-vllm-rtx4090": [],  # a trace with answers
}


def text_of(data):
    return json.dumps(data, indent=2, allow_nan=False)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_read_from_json_and_written_again_has_the_same_bytes(name):
    result = sim.run(sim.read(name, RUNS[name]))
    text = text_of(result.as_json())
    summary = decode_summary(RunSummary, json.loads(text))
    assert text_of(encode_summary(summary)) == text
    assert summary == result.summary


@pytest.mark.parametrize("name", ["fleet", "jia-2024", "does-not-fit"])
def test_a_plan_read_from_json_and_written_again_has_the_same_bytes(name):
    planned = sim.plan(sim.read(name))
    text = text_of(planned.as_json([1024, 4096]))
    summary = decode_summary(PlanSummary, json.loads(text))
    assert text_of(encode_summary(summary)) == text
    assert summary == planned.summary([1024, 4096])


def test_a_result_without_the_keys_of_later_versions_is_read(tmp_path):
    later = {"measured", "hints", "unfinished", "served_share", "published", "load_s", "beat"}
    save_result(sim.run(sim.read("fleet", [FEW])).saved(), tmp_path)
    file = tmp_path / "result.json"
    data = json.loads(file.read_text())
    for system in data["systems"].values():
        for part in (system, *system.get("members", {}).values()):
            for key in later & part.keys():
                del part[key]
    file.write_text(json.dumps(data))
    system = load_result(tmp_path).summary.systems["lpus"]
    assert (system.metrics.hints, system.identity.published, system.identity.beat) == ((), (), None)


@pytest.mark.parametrize("systems", [[], {"lpu": []}, {"lpu": {}}, {"lpu": None}])
def test_a_result_that_is_none_is_an_error_of_the_user(tmp_path, systems):
    data = {"scenario": "a", "seed": 0, "systems": systems}
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(sim.UserError, match=r"holds no result|got no requests\.parquet"):
        load_result(tmp_path)


def test_one_entry_adds_a_statistic_to_json_tables_page_compare_and_sweep(tmp_path, monkeypatch):
    """The drill: p99.9 of TPOT."""
    monkeypatch.setitem(LATENCIES, "tpot", Latency("TPOT", ("median", "p99", "p99.9")))
    scenario = sim.read("llama3-8b-lpu-vs-h100", [FEW])
    result = sim.run(scenario)
    folder = tmp_path / "run"
    folder.mkdir()
    save_result(result.saved(), folder)
    key = "p99.9_tpot_ms"
    assert result.as_json()["systems"]["lpu"][key] > 0
    assert load_result(folder).summary.systems["lpu"].metrics.tpot["p99.9"] > 0
    assert "TPOT median / p99 / p99.9, ms" in printed(comparison(result.summary))
    assert key in page.html_page(folder)
    other = tmp_path / "other"
    other.mkdir()
    save_result(sim.run(scenario, seed=1).saved(), other)
    assert f"lpu: {key}" in printed(change_tables(compare_runs([folder, other])))
    over = {"workload.rate": ["1 request/s"]}
    swept = sweep("llama3-8b-lpu-vs-h100", tmp_path / "swept", over, workload__requests=20)
    assert swept.table[key].null_count() == 0


def printed(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@dataclass(frozen=True)
class Gaps:
    rate: float
    itl: LatencyField


def test_numbers_of_numpy_become_numbers_of_python():
    """The table of a sweep would take them for texts, and a figure could not add them."""
    data = encode_summary(Gaps(np.float64(2), Statistics({"mean": np.float64(1)})))
    assert {key: type(value) for key, value in data.items()} == {
        "rate": float,
        "mean_itl_ms": float,
    }
