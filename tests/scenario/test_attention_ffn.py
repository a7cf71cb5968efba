"""Attention and FFN pools in a scenario: what is refused, by name and in one line."""

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
REFUSED = {
    "attention.speculate={method: mtp, tokens: 1, acceptance: 0.5}": "attention.speculate: got a mapping; ex",
    "attention.faults={like: gpus}": "attention.faults",
    "attention.outages=[{at: 1 s, lasts: 1 s, replica: 0}]": "attention.outages: got a list; expected none",
    "attention.fidelity=chip": "attention.fidelity: got chip; expected stage",
    "attention.routing=sampled": "attention.routing: got sampled; expected expected",
    "attention.plan={tensor: 4, replicas: 2}": "attention.plan.replicas: got 2; expected 1",
    "attention.plan={tensor: 3}": "attention.plan: got tensor 3 x attention_data 1; expected 4",
    "attention.engine=groq-compiler": "attention.engine: got groq-compiler, which has tokens_per",
    "ffn.plan={attention_data: 4}": "ffn.plan.attention_data: got 4; expected 1 in the ffn pool",
    "ffn.max_sequences=4": "ffn.max_sequences: got 4; expected none",
    "ffn.plan={expert: 4, weights: fp8, search: speed}": "ffn.plan.search: got a search for speed; ",
    "ffn.plan=auto": "ffn.plan: got a search for speed; expected a plan for the ffn pool; try plan:",
    "ffn.chip=l40s": "on 4 l40s of the ffn pool does not fit: the fullest chip needs",
    "micro_batches=0": "micro_batches: got 0; expected at least 1",
    "transfer.copies=expert": "transfer.copies: got 'expert'; expected 'token' or 'rank'",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_simulated_is_refused_by_name(sramsim, tmp_path, key):
    path = tmp_path / "mine.yaml"
    path.write_text(POOLS)
    status, _, err = sramsim("check", str(path), "--set", f"systems.afd.{key}")
    assert status == 2
    assert REFUSED[key] in err
    assert err.count("\n") == 1


def test_the_turns_of_a_layer_are_drawn(sramsim, tmp_path):
    path, figure = tmp_path / "mine.yaml", tmp_path / "turns.svg"
    path.write_text(POOLS)
    status, _, err = sramsim("trace", str(path), "--figure", str(figure))
    assert (status, figure.read_bytes()[:5]) == (0, b"<?xml")
    assert "written" in err


@pytest.mark.parametrize(
    ("more", "words", "expected"),
    [
        ("fidelity: chip\n", ("check",), "afd: got fidelity chip for attention and FFN pools"),
        ("", ("trace", "--system", "afd", "-o", "t.json"), "got attention and FFN pools, whose"),
        ("", ("explain",), "explain: systems.afd: got attention and FFN pools"),
        (
            f"  pd: {{prefill: {ALONE}, decode: afd, transfer: {{bandwidth: 1 GB/s}}}}\n",
            ("check",),
            "'afd' is one of attention and FFN pools, which are no prefill or decode pool",
        ),
    ],
)
def test_commands_refuse_what_needs_single_chips(sramsim, tmp_path, more, words, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(POOLS + more)
    command, *options = words
    status, _, err = sramsim(command, str(path), *options)
    assert (status, err.count("\n")) == (2, 1)
    assert expected in err
