"""`sramsim explain`: the times of the result, their sources, and errors on one line."""

import json
from pathlib import Path

import pytest

import sim
from sim.inputs.names import find_entry

FLAGSHIP = "llama2-70b-lpu-vs-h100"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_lines_add_up_to_the_tpot_and_have_sources(sramsim):
    status, out, _ = sramsim("explain", FLAGSHIP, "--json")
    systems = json.loads(out)["systems"]
    scenario = sim.read(FLAGSHIP)
    assert (status, list(systems)) == (0, ["lpu", "h100", "h100x8"])
    for name, system in systems.items():
        single = scenario.unloaded(scenario.deploy(name))
        token, first = system["token"], system["first_token"]
        assert sum(line["ms"] for line in token["lines"]) == pytest.approx(1000 * single.tpot)
        assert sum(line["ms"] for line in first["lines"]) == pytest.approx(1000 * single.ttft)
        for term, seconds in single.terms.items():
            lines = [line["ms"] for line in token["lines"] if line["term"] == term]
            assert sum(lines) == pytest.approx(1000 * seconds)
        engine_ms = sum(line["engine_ms"] for line in token["lines"])
        assert engine_ms / token["ms"] == pytest.approx(single.fitted_share)
        for line in token["lines"]:
            assert line["keys"]
            assert set(line["keys"]) <= set(system["sources"])
    lpu = systems["lpu"]
    assert lpu["sources"]["engine.layer_overhead"]["kind"] == "fitted"
    assert lpu["sources"]["topology.global_link.latency"]["kind"] == "assumed"
    assert lpu["sources"]["chip.compute.weight_load"]["source"].startswith("ISCA 2020")
    assert lpu["fitted_share"] == pytest.approx(0.484, abs=0.001)
    assert 0.01 < lpu["assumed_share"] < 0.1
    weights = next(line for line in lpu["token"]["lines"] if line["part"] == "mlp")
    assert weights["formula"] == "59.62 GB / (8 chips x 9.2 TB/s)"
    assert weights["binds"] == "memory"


def test_effects_are_those_of_a_changed_scenario(sramsim):
    """The plan stays as it is, so a new run with the changed number agrees."""
    out = sramsim("explain", FLAGSHIP, "--system", "h100", "--json")[1]
    effects = json.loads(out)["systems"]["h100"]["effects"]
    changes = [abs(effect["tpot_pct"]) for effect in effects]
    assert changes == sorted(changes, reverse=True)
    assert len(changes) == 3
    effect = next(e for e in effects if e["key"] == "chip.memory.hbm.bandwidth")
    assert effect["change_pct"] == pytest.approx(10)
    changed = sim.read(
        FLAGSHIP, ["systems.h100.chip={like: h100-sxm, memory.hbm.bandwidth: 3.685 TB/s}"]
    )
    tpots = [s.unloaded(s.deploy("h100")).tpot for s in (sim.read(FLAGSHIP), changed)]
    assert effect["tpot_pct"] == pytest.approx(100 * (tpots[1] / tpots[0] - 1))


def test_a_share_of_one_is_a_number_without_unit_that_only_falls(sramsim):
    kernels = "systems.h100.engine={like: vllm, kernels: {like: vllm, exposed: 1}}"
    out = sramsim("explain", FLAGSHIP, "--system", "h100", "--json", "--set", kernels)[1]
    assert json.loads(out)["systems"]["h100"]["sources"]["engine.kernels.exposed"]["value"] == "1"


def test_the_text_fits_80_columns(sramsim):
    status, out, _ = sramsim("explain", FLAGSHIP)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for text in ("= 80 x 9.85 us", "after a prompt of 512 tokens", "from fitted numbers"):
        assert text in out


def test_a_saved_result_is_explained_with_the_plan_that_was_searched(sramsim):
    """The search is written into the result, because a real one takes minutes."""
    plan = "{tensor: 4, replicas: 2, weights: fp8, activations: fp8, kv: fp8}"
    words = ("--set", f"systems.h100x8.plan={plan}", "--set", "workload.requests=2")
    assert sramsim("run", FLAGSHIP, *words, "--out", "out")[0] == 0
    result = json.loads(Path("out/result.json").read_text())
    written = result["inputs"]["systems"]["h100x8"]["plan"]
    del written["tensor"], written["replicas"]
    written |= {"search": "capacity", "kv": ["fp16", "fp8"]}
    search = {"by": "capacity", "considered": 2, "simulated": 1, "max_goodput_rate": 1.0}
    result["systems"]["h100x8"]["search"] = search
    Path("out/result.json").write_text(json.dumps(result))
    status, out, _ = sramsim("explain", "out", "--json")
    assert status == 0
    for name, system in json.loads(out)["systems"].items():
        saved = result["systems"][name]["lone_request"]["tpot_ms"]
        assert system["saved_tpot_ms"] == saved
        assert system["token"]["simulated_ms"] == pytest.approx(saved)


def test_a_result_is_explained_in_any_working_folder(sramsim, monkeypatch):
    """Its own files are found: beside the scenario, and those that --set names from elsewhere."""
    for folder in ("mine", "elsewhere", "results"):
        Path(folder).mkdir()
    Path("mine/chip.yaml").write_text(find_entry("h100-sxm", "chips").read_text())
    Path("mine/model.json").write_text(find_entry("llama-3.1-8b", "models").read_text())
    Path("elsewhere/engine.yaml").write_text(find_entry("vllm", "engines").read_text())
    Path("mine/my_policies.py").write_text(
        "from sim.serving.policy import continuous\nmine = continuous\n"
    )
    Path("mine/own.yaml").write_text(
        "model: model.json\n"
        "workload: {kind: poisson, rate: 1 request/s, requests: 2, prompt: 8 token, output: 4 token}\n"
        "systems: {a: {chip: chip.yaml, chips: 1, engine: ideal, policy: 'my_policies:mine'}}\n"
    )
    words = ("--set", "systems.a.engine=elsewhere/engine.yaml", "--out", "results/out")
    assert sramsim("run", "mine/own.yaml", *words)[0] == 0
    status, here, error = sramsim("explain", "results/out", "--json")
    assert (status, error) == (0, "")
    monkeypatch.chdir("elsewhere")
    assert sramsim("explain", "../results/out", "--json")[:2] == (0, here)


def test_a_result_of_other_files_says_so(sramsim):
    assert sramsim("run", FLAGSHIP, "--set", "workload.requests=2", "--out", "out")[0] == 0
    result = json.loads(Path("out/result.json").read_text())
    tpot = 1.1 * result["systems"]["h100"]["lone_request"]["tpot_ms"]
    result["systems"]["h100"]["lone_request"]["tpot_ms"] = tpot
    Path("out/result.json").write_text(json.dumps(result))
    out = sramsim("explain", "out")[1]
    line = f"The result has TPOT {tpot:.1f} ms: a file, or sramsim, changed since."
    assert out.count(line) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "explain llama2-70b-lpu-vs-h10",
            "got 'llama2-70b-lpu-vs-h10'; expected one of the catalogue's",
        ),
        (f"explain {FLAGSHIP} --system lpus", "--system: got 'lpus'; expected lpu, h100 or h100x8"),
        ("explain fleet --system fleet", "--system: got 'fleet'; expected"),
        ("explain does-not-fit", "does-not-fit"),
        (
            "explain .",
            ".: got no result.json; expected the folder of a result of `sramsim run --out`",
        ),
        ("explain . --set seed=1", "--set: got seed=1 with ., which is a result; expected a"),
    ],
)
def test_wrong_inputs_are_one_line(sramsim, words, message):
    status, out, err = sramsim(*words.split())
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
