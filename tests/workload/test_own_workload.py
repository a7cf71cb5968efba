"""A user's own kind of workload, in one class beside the scenario."""

import json

import pytest

from sim.cli.app import main
from sim.scenario.scenario import read
from sim.studies.sweep import load_sweep
from sim.studies.trials import measured_rate

MODULE = """
import numpy as np

from sim.units import RequestsPerSecond
from sim.workload.arrivals import RandomWorkload


class Regular(RandomWorkload):
    load_kind = "rate"
    rate: RequestsPerSecond

    def arrivals(self, stream):
        return np.arange(1, self.requests + 1) / self.rate

    def scaled(self, load, requests):
        return self.model_copy(update={"rate": load, "requests": requests})
"""
SCENARIO = """
model: llama-2-7b
workload: {kind: "own_arrivals:Regular", requests: 20, rate: 2 request/s,
           prompt: 64 token, output: 4 token}
slo: {ttft: 2 s, tpot: 100 ms}
systems:
  card: {chip: h100-sxm, chips: 1, engine: ideal, plan: {weights: fp16, activations: fp16}}
"""


@pytest.fixture
def scenario(tmp_path, monkeypatch):
    (tmp_path / "own_arrivals.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(SCENARIO, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "mine.yaml"


def printed(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["sramsim", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_it_runs(scenario, monkeypatch, capsys):
    result = json.loads(printed(monkeypatch, capsys, "run", scenario, "--json"))
    assert result["systems"]["card"]["completed"] == 20


def test_its_capacity_is_found(scenario, monkeypatch, capsys, tmp_path):
    words = ("capacity", scenario, "--requests", "100", "--json")
    result = json.loads(printed(monkeypatch, capsys, *words))
    builtin = SCENARIO.replace("own_arrivals:Regular", "poisson")
    (tmp_path / "poisson.yaml").write_text(builtin, encoding="utf-8")
    poisson = json.loads(printed(monkeypatch, capsys, "capacity", "poisson.yaml", *words[2:]))
    loads = [each["systems"]["card"]["max_goodput_rate"] for each in (result, poisson)]
    assert loads[0] == pytest.approx(loads[1], rel=0.2)


def test_scaled_has_the_load(scenario):
    drawn = read(scenario).workload.scaled(4.0, 30).draw(0)
    assert len(drawn.arrival) == 30
    assert measured_rate(drawn) == pytest.approx(4.0)


def test_it_is_swept(scenario, monkeypatch, capsys, tmp_path):
    with open(scenario, "a", encoding="utf-8") as file:
        file.write("sweep: {workload.rate: [1 request/s, 2 request/s]}\n")
    printed(monkeypatch, capsys, "sweep", scenario, "--jobs", "1", "--out", "out")
    table = load_sweep(tmp_path / "out").table
    assert set(table["error"]) == {""}
    assert table["completed"].to_list() == [20, 20]
