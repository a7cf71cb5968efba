"""Attention and FFN pools in a scenario: what is refused, by name and in one line."""

import json

import pytest

POOLS = """\
model: qwen3-235b-a22b
workload: {kind: closed, users: 8, requests: 8, prompt: 64 token, output: 8 token}
systems:
  afd:
    attention: {chip: gb200, chips: 4, engine: ideal, plan: {attention_data: 4, weights: fp8}}
    ffn: {chip: gb200, chips: 4, engine: ideal, plan: {expert: 4, weights: fp8}}
    transfer: {bandwidth: 900 GB/s}
"""
ALONE = "{chip: gb200, chips: 8, engine: ideal, plan: {tensor: 8, weights: fp8}}"
FAULTS = "chip: {rate: 1e-4 failure/h}, repair: 10 h, detection: 60 s, horizon: 8760 h, samples: 10"
DRAFTER = "{model: qwen3-8b, system: {chip: gb200, chips: 1, engine: ideal}, transfer: {bandwidth: 50 GB/s}}"
DRAFTS = f"{{method: draft, tokens: 1, acceptance: 1, draft: {DRAFTER}}}"
REFUSED = {
    "ffn.speculate={method: mtp, tokens: 1, acceptance: 0.5}": "ffn.speculate: got a mapping; expected none",
    f"attention={{chip: gb200, chips: 4, engine: ideal, speculate: {DRAFTS}}}|plan={{search: capacity, chips: 8}}": "attention.speculate.draft.system: got a drafter on other chips with a search of both",
    f"attention.speculate={DRAFTS}|attention.fidelity=chip": "attention.speculate: got fidelity: chip; expected a system without it",
    f"attention.speculate={DRAFTS[:-2]}, groups: 3}}}}": "attention.speculate.draft.groups: got 3; expected at most 2",
    f"attention.speculate={DRAFTS.replace('engine: ideal', 'engine: ideal, plan: {tensor: 1, replicas: 2}').replace('chips: 1', 'chips: 2')}": "attention.speculate.draft.system.plan.replicas: got 2; expected 1, a drafter for each",
    f"attention.speculate={DRAFTS.replace('engine: ideal', 'engine: ideal, outages: [{at: 1 s, lasts: 1 s, replica: 1}]')}": "attention.speculate.draft.system.outages.0.replica: got 1; expected 0, the only",
    f"attention.speculate={DRAFTS.replace('{chip: gb200, chips: 1, engine: ideal}', 'none')}": "attention.speculate.draft.system: got 'none'; expected another system",
    "attention.link_errors={bit_error_rate: 1e-4}": "attention.link_errors.bit_error_rate: got 0.0001",
    "ffn.link_errors={bit_error_rate: 1e-12}": "ffn.link_errors: got a mapping; expected none",
    "ffn.model=llama-3.1-8b": "ffn.model: got llama-3.1-8b; expected none, because it is not sim",
    "attention.policy=ring": "attention.policy: got ring; expected continuous, since pools have no ring",
    "attention.outages=[{at: 1 s, lasts: 1 s, replica: 4}]": "attention.outages.0.replica: got 4; expected 0 to 3; try 3",
    "ffn.outages=[{at: 1 s, lasts: 1 s, replica: 1}]": "ffn.outages.0.replica: got 1; expected 0, the only replica",
    "ffn.outages=[{at: 1 s, lasts: 1 s, requests: fail}]": "ffn.outages.0.requests: got fail; expected retry",
    f"attention.faults={{{FAULTS}, spares: 1}}": "attention.faults.spares: got 1; expected 0 in the attention",
    f"attention.faults={{{FAULTS}, chips_per_node: 8}}": "attention.faults.chips_per_node: got 8; expected a divisor of 4",
    f"ffn.faults={{{FAULTS}, chips_per_node: 3}}": "ffn.faults.chips_per_node: got 3; expected a divisor of 4",
    "attention.network=scheduled": "attention.network: got 'scheduled'; expected none, because",
    "attention.jitter=0.1": "attention.jitter: expected fidelity chip for this key; try systems.afd.attention.fid",
    "ffn.exceptions=[{chip: 9, speed: 0.5}]": "ffn.exceptions: expected fidelity chip for this key; try systems.afd.attention.fid",
    "ffn.exceptions=[{chip: 3, like: l40s}]": "ffn.exceptions.0.like: got l40s; expected a chip of the pool's",
    "ffn.fidelity=chip": "ffn.fidelity: got 'chip'; expected none, because it is not simulated",
    "attention.routing=sampled": "attention.routing: got sampled; expected mean loads of experts, since all micro-batches",
    "attention.plan={tensor: 4, replicas: 2}": "attention.plan.replicas: got 2; expected 1",
    "attention.plan={tensor: 3}": "attention.plan: got tensor 3 x attention_data 1; expected 4",
    "attention.engine=groq-compiler": "attention.engine: got groq-compiler, which has tokens_per",
    "ffn.engine=engine-2023": "ffn.engine: got engine-2023, which has layer_launch; expected an engine without",
    "ffn.plan={attention_data: 4}": "ffn.plan.attention_data: got 4; expected 1 in the ffn pool",
    "ffn.plan.kv=fp8": "ffn.plan.kv: got 'fp8'; expected none, because the ffn pool does not use it",
    "ffn.plan.balance=memory": "ffn.plan.balance: got 'memory'; expected none",
    "ffn.max_sequences=4": "ffn.max_sequences: got 4; expected none",
    "ffn.plan={expert: 4, weights: fp8, search: speed}": "ffn.plan.search: got a search for speed; ",
    "ffn.plan=auto": "ffn.plan: got a search for speed; expected a plan for the ffn pool; try plan:",
    "ffn.chip=l40s": "on 4 l40s of the ffn pool does not fit: the fullest chip needs",
    "micro_batches=0": "micro_batches: got 0; expected at least 1",
    "transfer.copies=both": "transfer.copies: got 'both'; expected 'token', 'rank', 'shard' or 'expert'",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_simulated_is_refused_by_name(sramsim, tmp_path, key):
    path = tmp_path / "mine.yaml"
    path.write_text(POOLS)
    sets = [word for own in key.split("|") for word in ("--set", f"systems.afd.{own}")]
    status, _, err = sramsim("check", str(path), *sets)
    assert status == 2
    assert REFUSED[key] in err
    assert err.count("\n") == 1


def test_links_with_a_range_move_as_with_set(sramsim, tmp_path):
    path = tmp_path / "mine.yaml"
    links = "900 GB/s, latency: 5 us, range: {latency: [2 us, 20 us], bandwidth: [1 GB/s, 1 TB/s]}"
    path.write_text(POOLS.replace("900 GB/s", links))
    _, out, _ = sramsim("sensitivity", str(path), "--json")
    swings = {swing["key"]: swing for swing in json.loads(out)["systems"]["afd"]["swings"]}
    assert swings["transfer.latency"]["range"] == ["2 us", "20 us"]
    for key, end, text in (
        ("latency", "high", "20 us"),
        ("latency", "low", "2 us"),
        ("bandwidth", "low", "1 GB/s"),
    ):
        change = f"systems.afd.transfer.{key}={text}"
        _, out, _ = sramsim("plan", str(path), "--json", "--set", change)
        alone = json.loads(out)["systems"]["afd"]["lone_request"]["tpot_ms"]
        assert swings[f"transfer.{key}"][end]["tpot_ms"] == pytest.approx(alone, rel=1e-9)


def leaves(value, path=()):
    """The numbers and words of a JSON value, by path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in leaves(inner, (*path, key)).items()}
    return {path: value}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_run_has_equal_results_at_both_fidelities(sramsim, tmp_path, micro_batches):
    """All numbers of `run`: nine users on four attention ranks with eight places, so one waits."""
    path = tmp_path / "mine.yaml"
    text = POOLS.replace("users: 8, requests: 8", "users: 9, requests: 10")
    path.write_text(text.replace("output: 8", "output: 2"))
    sets = ["attention.max_sequences=2", "ffn.engine=vllm", "transfer.latency=5 us"]
    sets.append(f"micro_batches={micro_batches}")
    keys = [word for own in sets for word in ("--set", f"systems.afd.{own}")]
    numbers, words = {}, {}
    for fidelity in ("stage", "chip"):
        _, out, _ = sramsim("run", str(path), "--json", *keys, "--set", f"fidelity={fidelity}")
        found = leaves(json.loads(out)["systems"]["afd"])
        assert found.pop(("fidelity",)) == fidelity
        numbers[fidelity] = {k: v for k, v in found.items() if isinstance(v, int | float)}
        words[fidelity] = {k: v for k, v in found.items() if k not in numbers[fidelity]}
    assert numbers["chip"].pop(("network", "messages")) > 1000
    assert numbers["chip"].pop(("network", "waited_ms")) == 0  # nothing contends
    assert words["chip"] == words["stage"]
    assert len(numbers["stage"]) > 60
    assert numbers["chip"] == pytest.approx(numbers["stage"], rel=1e-9)


def test_the_turns_of_a_layer_are_drawn(sramsim, tmp_path):
    path, figure = tmp_path / "mine.yaml", tmp_path / "turns.svg"
    path.write_text(POOLS)
    status, _, err = sramsim("trace", str(path), "--figure", str(figure))
    assert (status, figure.read_bytes()[:5]) == (0, b"<?xml")
    assert "written" in err


@pytest.mark.parametrize(
    ("more", "words", "expected"),
    [
        (
            "slo: {ttft: 2 s}\n",
            ("capacity", "--set", "systems.afd.ffn.outages=[{at: 1 s, lasts: 1 s}]"),
            "because a capacity is of a working system; try systems.afd.ffn.outages=[]",
        ),
        (
            "fidelity: chip\n",
            ("check", "--set", "systems.afd.attention.outages=[{at: 1 s, lasts: 1 s}]"),
            "attention.outages: got outages of ranks at fidelity chip; expected fidelity stage",
        ),
        (
            "    micro_batches: 3\nfidelity: chip\n",
            ("check", "--set", "systems.afd.ffn.exceptions=[{chip: 4, speed: 0.5}]"),
            "ffn.exceptions.0.chip: got 4; expected at most 3, the last chip; try 3",
        ),
        ("", ("trace", "--system", "afd", "--program"), "got attention and FFN pools; expected a"),
    ],
)
def test_commands_refuse_what_needs_single_chips(sramsim, tmp_path, more, words, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(POOLS + more)
    command, *options = words
    status, _, err = sramsim(command, str(path), *options)
    assert (status, err.count("\n")) == (2, 1)
    assert expected in err


def test_a_run_names_the_weights_of_both_pools(sramsim, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(POOLS)
    change = "systems.afd.ffn.plan={expert: 4, weights: bf16, activations: bf16}"
    _, out, _ = sramsim("run", str(path), "--set", change)
    assert "fp8 attention + bf16 FFN weights" in " ".join(out.split())
