"""Dispatch and combine of DeepSeek-V3's experts over nodes, beside what DeepEP published."""

import pytest

import sim
from sim.cost.program import program
from sim.cost.work import Work

TOKENS = 8192  # a chip sends
ROW = """
model: deepseek-v3
workload: {kind: closed, users: 1, requests: 1, prompt: 8 token, output: 8 token}
systems:
  wide:
    chip: h100-sxm
    chips: %d
    topology:
      kind: hierarchical
      levels:
        - {kind: switch, chips: 8, link: {latency: 0.5 us, bandwidth: 450 GB/s}}
        - {kind: switch, link: {latency: 1 us, bandwidth: 50 GB/s}}
    engine: %s
    plan: {attention_data: %d, weights: fp8, activations: fp8, kv: fp16, dispatch: fp8}
"""


@pytest.fixture
def wide(tmp_path):
    """H100 in nodes of 8 with a 400 Gbit/s card each, attention data parallel, the experts one shard to a chip."""

    def build(chips, engine="ideal"):
        path = tmp_path / "wide.yaml"
        path.write_text(ROW % (chips, engine, chips), encoding="utf-8")
        return sim.read(path).deploy("wide").costs

    return build


def routed(costs, tokens):
    """The exchanges of a layer's experts, for so many tokens of each chip."""
    (block,) = (block for block in costs.blocks if block.experts)
    return block, [
        each
        for each in costs.collectives.of_block(block, tokens, 0)
        if each.operation == "all_to_all"
    ]


@pytest.mark.parametrize(("nodes", "out", "back"), [(2, 90e9, 81e9), (4, 61e9, 61e9)])
def test_dispatch_and_combine_are_near_the_measured_bandwidth(wide, nodes, out, back):
    """DeepEP 2 on H100 with 400 Gbit/s cards, 8,192 tokens a chip: 8 of 256 experts, FP8 out, BF16 back.

    Their bandwidth counts a copy of each token for each node that it reaches, its own included.  The cables alone are 10 to 25 %
    faster.  Source: https://github.com/deepseek-ai/DeepEP, README, "Performance".
    """
    costs = wide(8 * nodes)
    block, exchanges = routed(costs, TOKENS)
    copies = block.experts.reached(nodes)
    for exchange, width, measured in zip(exchanges, (1, 2), (out, back), strict=True):
        simulated = TOKENS * copies * 7168 * width / exchange.time
        assert 1.0 <= simulated / measured <= 1.25


def test_a_wide_deployment_no_longer_pays_for_eight_copies(wide):
    """32 chips in four nodes, 128 tokens each: 40 ms a step with 8 copies at 16 bits both ways, about 9.6 ms as it is done."""
    costs = wide(32, "tensorrt-llm-1.0")
    _, exchanges = routed(costs, 128)
    time = 58 * sum(exchange.time for exchange in exchanges)
    latencies = 58 * sum(2 * exchange.latency for exchange in exchanges)
    assert 8e-3 < time - latencies < 10e-3
    assert time < 14e-3


def test_a_second_micro_batch_hides_what_the_experts_take(wide):
    """With all of it hidden, a step takes as long as its computing, or as its messages."""
    whole, hidden = wide(32, "tensorrt-llm-1.0"), wide(32, "{like: tensorrt-llm-1.0, overlap: 1}")
    work = Work(decodes=32 * 128, context=32 * 128 * 1000.0, logits=32 * 128)
    _, exchanges = routed(whole, whole.layout.ranked(work))
    talking = sum(exchange.time for exchange in exchanges)
    ops = program(whole, work).stages[0]
    computing = next(op.seconds for op in ops if op.label == "layer 60 mlp")
    saved = whole.step(work).time[0] - hidden.step(work).time[0]
    assert saved == pytest.approx(58 * min(computing, talking))
    single = Work(decodes=1, context=1000.0, logits=1)
    assert whole.step(single).time == pytest.approx(hidden.step(single).time)  # nothing to split


def test_experts_split_over_all_chips_need_all_tokens(tmp_path):
    """With one shard of experts each chip holds a part of each expert: dispatch is then an all-gather of the tokens."""
    text = (ROW % (8, "ideal", 8)).replace("attention_data: 8", "attention_data: 8, expert: 1")
    (tmp_path / "whole.yaml").write_text(text, encoding="utf-8")
    costs = sim.read(tmp_path / "whole.yaml").deploy("wide").costs
    _, (dispatch, _) = routed(costs, TOKENS)
    gathered = costs.layout.topology.all_gather(range(8), 8 * TOKENS * 7168)
    assert dispatch.time == pytest.approx(gathered, rel=1e-12)
