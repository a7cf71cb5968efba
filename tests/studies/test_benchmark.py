"""A run beside a measured benchmark: plain errors of what both have."""

import json
from pathlib import Path

import pytest

import sim
from sim.inputs.errors import UserError
from sim.results.saving import save_result
from sim.studies.benchmark import MeasuredMetric, compare_benchmark

SCENARIO = """\
model: llama-2-7b
workload: {kind: poisson, rate: 1 request/s, requests: 3, prompt: 64 token, output: 8 token}
systems:
  card: {chip: h100-sxm, chips: 1, engine: ideal, plan: {tensor: 1}}
"""


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    """Write a run into out, and return the metrics of its system."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(SCENARIO)
    Path("out").mkdir()
    save_result(sim.run("mine.yaml").saved(), Path("out"))
    return json.loads(Path("out/result.json").read_text())["systems"]["card"]


def benchmark(metrics, **changes: object) -> Path:
    keys = ("duration", "completed", "request_throughput", "total_input_tokens", "median_tpot_ms")
    own = {"backend": "vllm", "max_concurrency": None, "input_lens": [64, 64, 64]}
    result = own | {key: metrics[key] for key in keys} | changes
    Path("bench.json").write_text(json.dumps(result))
    return Path("bench.json")


def test_the_error_of_a_run_is_relative_to_what_was_measured(metrics):
    path = benchmark(metrics, median_tpot_ms=metrics["median_tpot_ms"] / 2, mean_ttft_ms=0.0)
    for order in ([path, Path("out")], [Path("out"), path]):
        compared = compare_benchmark(order)
        card = compared.systems["card"]
        assert card["median_tpot_ms"].error_pct == pytest.approx(100)
        assert card["completed"] == MeasuredMetric(3, 3, 0.0)
        assert card["mean_ttft_ms"].error_pct is None
        assert compared.settings == {"backend": "vllm"}
        assert compared.unlike == {}


def test_the_command_says_when_the_requests_are_not_the_same(metrics, sramsim):
    path = benchmark(metrics, total_input_tokens=1000, p99_itl_ms=float("nan"), completed=3)
    status, out, err = sramsim("compare", "out", str(path))
    assert (status, err) == (0, "")
    assert "bench.json: backend vllm" in out
    assert "card: not the same requests (total_input_tokens differ)" in out
    data = json.loads(sramsim("compare", "out", str(path), "--json")[1])
    assert data["unlike"] == {"card": ["total_input_tokens"]}
    assert data["systems"]["card"]["total_input_tokens"]["error_pct"] == pytest.approx(-80.8)


@pytest.mark.parametrize(
    ("text", "paths", "message"),
    [
        ("{}", ["out", "bench.json"], "bench.json: got no duration; expected a result of vLLM's"),
        ("[1]", ["out", "bench.json"], "bench.json: got no duration; "),
        ('{"a": 1}\n{"a": 2}', ["out", "bench.json"], "bench.json: got no JSON document: Extra"),
        (
            "{}",
            ["bench.json", "bench.json"],
            "compare: got bench.json, bench.json; expected one folder and",
        ),
        (
            "{}",
            ["bench.json", "out", "out"],
            "compare: got bench.json, out, out; expected one folder and",
        ),
    ],
)
def test_what_is_no_benchmark_is_one_line(metrics, text, paths, message):
    Path("bench.json").write_text(text)
    with pytest.raises(UserError) as error:
        compare_benchmark([Path(path) for path in paths])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
