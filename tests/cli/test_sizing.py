"""`sramsim size`: one truth with `search: chips`, a scenario that runs, and errors on one line."""

import json

import pytest

import sim
from sim.cli.sizing import precision_plan, read_tokens, read_tpot
from sim.cost.plan import Plan, WeightFormat
from sim.planning.loaded_speed import loaded_tpot


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_size_and_a_scenarios_search_find_the_same_plan(sramsim):
    """324 chips = tensor 12 x pipeline 27, fewer than powers of two need."""
    words = [
        "size",
        "llama-2-70b",
        "groq-lpu-v1",
        "--weights",
        "int8",
        "--activations",
        "int8",
        "--json",
    ]
    status, out, err = sramsim(*words)
    found = json.loads(out)
    plan = "{search: chips, weights: int8, activations: int8, kv: fp16, head: int8}"
    scenario = sim.read("llama2-70b-lpu-vs-h100", [f"systems.lpu.plan={plan}"])
    searched = scenario.deploy("lpu")
    resolved = searched.layout.plan
    assert (status, found["chips"], searched.chips) == (0, 324, 324)
    assert (found["plan"]["tensor"], found["plan"]["pipeline"]) == (12, 27)
    assert (resolved.tensor, resolved.pipeline) == (12, 27)
    assert found["binds"] == "capacity"
    assert "tensor 12 does not divide 64 attention heads: GPU engines such as vLLM refuse it" in err


def test_lines_fit_80_columns_and_name_what_binds(sramsim):
    words = [
        "size",
        "llama-2-70b",
        "h100",
        "--weights",
        "fp8",
        "--context",
        "4k",
        "--users",
        "64",
        "--tpot",
        "10ms",
    ]
    status, out, _ = sramsim(*words)
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for start in (
        "chips",
        "plan",
        "KV room",
        "one user",
        "64 users",
        "binds       TPOT of 10.0 ms",
    ):
        assert f"\n{start}" in f"\n{out}"


def test_the_written_scenario_is_the_system_that_was_printed(sramsim, tmp_path):
    words = [
        "size",
        "mixtral-8x7b",
        "sambanova-sn40l",
        "--users",
        "40",
        "--tpot",
        "40ms",
        "--out",
        "new/mine.yaml",
    ]
    status, out, err = sramsim(*words, "--json")
    found = json.loads(out)
    assert (status, err.splitlines()[0]) == (
        0,
        "new/mine.yaml: written; try `sramsim run new/mine.yaml`",
    )
    scenario = sim.read(tmp_path / "new" / "mine.yaml")
    deployment = scenario.deploy("sambanova-sn40l")
    assert scenario.request_tokens == found["demand"]["context"]
    assert deployment.chips == found["chips"]
    assert deployment.sequences(640)[0] * found["plan"]["replicas"] == found["kv_room"]["sequences"]
    users = -(-40 // found["plan"]["replicas"])
    assert 1000 * loaded_tpot(deployment, users, 640) == found["loaded"]["tpot_ms"]
    result = sim.run(scenario).systems["sambanova-sn40l"]
    assert result.metrics.verdict == "STABLE"


def test_a_path_is_written_relative_to_the_scenario(sramsim, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config = sim.read("llama3-8b-lpu-vs-h100").model.model_dump(exclude_none=True)
    keys = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers")
    keys += ("num_attention_heads", "num_key_value_heads", "vocab_size", "max_position_embeddings")
    (model / "config.json").write_text(
        json.dumps({key: config[key] for key in keys} | {"torch_dtype": "bfloat16"})
    )
    assert sramsim("size", "model", "h100", "--out", "sub/mine.yaml")[0] == 0
    assert "model: ../model/config.json" in (tmp_path / "sub" / "mine.yaml").read_text()
    assert sim.read("sub/mine.yaml").deploy("h100-sxm").fit.fits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "size lama-2-70b h100",
            "got 'lama-2-70b'; expected one of the catalogue's models; did you mean",
        ),
        (
            "size llama-2-70b h10",
            "got 'h10'; expected one of the catalogue's chips; did you mean 'h100'",
        ),
        ("size llama-2-70b h100 --context x", "--context: got 'x'; expected a number of tokens"),
        (
            "size llama-2-70b h100 --context 32k",
            "context: got 32,768 tokens; expected at most 4,096",
        ),
        (
            "size llama-2-70b h100 --tpot 0ms",
            "--tpot: got '0ms'; expected a time above 0; try 10ms",
        ),
        ("size llama-2-70b h100 --tpot 1ms", "tpot: got 1 ms; expected at least "),
        ("size llama-2-70b h100 --kv int9", "--kv: got 'int9'; expected fp32, bf16,"),
        ("size llama-2-70b h100 --kv nvfp4", "--kv: got 'nvfp4'; expected fp32, bf16,"),
        (
            "size llama-2-70b groq-lpu-v1 --engine groq-compiler --weights nvfp4",
            "llama-2-70b on groq-lpu-v1: engine groq-compiler: got 4-bit weights (nvfp4); expected"
            " 8 or 16, as in its",
        ),
        (
            "size llama-3.1-405b h100",
            "llama-3.1-405b on h100-sxm: topology switch joins at most 8 chips; expected 11, which",
        ),
        ("size llama-2-70b h100 --out mine.yml", "--out: got mine.yml, which exists; expected"),
        ("size llama-2-70b h100 --out mine.txt", "--out: got mine.txt; expected a name that ends"),
    ],
)
def test_wrong_inputs_are_one_line(sramsim, tmp_path, words, message):
    (tmp_path / "mine.yml").write_text("mine")
    status, out, err = sramsim(*words.split())
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yml"]


def test_a_small_topology_names_clusters_that_join_more(sramsim):
    assert sramsim("size", "llama-3.1-405b", "h100")[2].rstrip().endswith("or dgx-h100-x4")
    status, out, _ = sramsim("size", "llama-3.1-405b", "dgx-h100-x4", "--json")
    assert (status, json.loads(out)["chips"]) == (0, 11)


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_tensor_degree_that_engines_refuse_is_warned_of(sramsim, command):
    words = ("--set", "systems.h100x8.chips=7", "--set", "systems.h100x8.plan.tensor=7")
    status, _, err = sramsim(command, "llama2-70b-lpu-vs-h100", *words)
    assert status == 0
    assert "h100x8: warning: tensor 7 does not divide 64 attention heads: GPU engines such" in err


@pytest.mark.parametrize("name", list(WeightFormat))
def test_size_takes_every_format_that_a_plan_takes(name):
    assert precision_plan(name, None, None) == Plan(weights=name, head=name)


def test_block_scales_need_chips(sramsim, tmp_path):
    """4.5 bits instead of 4: an eighth more weights, in the scenario that is written as well."""
    words = ("size", "llama-2-70b", "groq-lpu-v1", "--engine", "ideal", "--json", "--weights")
    chips = {}
    for name in ("fp4", "nvfp4"):
        status, out, _ = sramsim(*words, name, "--out", f"{name}.yaml")
        chips[name] = json.loads(out)["chips"]
        assert status == 0
        assert f"weights: {name}, head: {name}" in (tmp_path / f"{name}.yaml").read_text()
    assert chips["nvfp4"] / chips["fp4"] == pytest.approx(4.5 / 4, rel=0.03)


def test_size_in_code_takes_names():
    sized = sim.size("llama-2-70b", "groq-lpu-v1", precisions=Plan(weights="int8", head="int8"))
    assert sized.summary.identity.chips == 324


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("gpt-oss-120b", {}),  # its file has several precisions of weights
        ("llama-2-70b", {"attention": "fp8", "hidden": "fp32", "kv_split": "sequence", "slots": 3}),
    ],
)
def test_a_written_plan_is_that_of_the_result(model, own, tmp_path):
    sized = sim.size(model, "h100-sxm", engine="vllm", precisions=Plan(**own))
    (tmp_path / "mine.yaml").write_text(sized.scenario_text(tmp_path), encoding="utf-8")
    deployment = sim.read(tmp_path / "mine.yaml").deploy("h100-sxm")
    assert deployment.layout.plan == sized.result.deployment.layout.plan
    assert deployment.fit.weights == sized.result.deployment.fit.weights


@pytest.mark.parametrize("key", ["tensor", "replicas", "balance", "search"])
def test_a_plan_with_what_size_finds_is_refused(key):
    plan = Plan(**{key: {"balance": "memory", "search": "speed"}.get(key, 8)})
    with pytest.raises(sim.UserError, match=f"precisions: got {key} .*; try leaving {key} out"):
        sim.size("llama-2-70b", "h100-sxm", engine="vllm", precisions=plan)


def test_tokens_and_times_have_short_forms():
    assert [read_tokens(text) for text in ("32k", "32768", "32768 token")] == [32768] * 3
    assert [read_tpot(text) for text in ("10ms", "10 ms", "0.01 s")] == [0.01] * 3
