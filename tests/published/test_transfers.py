"""Times of KV caches on their way between nodes, as published."""

import pytest

import sim
from sim.cost.kv_transfer import prompt_kv_bytes
from sim.cost.plan import Plan
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names, find_entry
from sim.model.transformer import Model
from sim.planning.deployment import DeploymentParts, deploy

MOONCAKE = "https://github.com/kvcache-ai/Mooncake/blob/main/docs/source/performance/vllm/vllm-v1-pd-performance.md"
TIMES = {128: 0.54, 2048: 2.51, 32768: 31.65}  # ms, by the tokens of a prompt


@pytest.mark.parametrize(
    ("bandwidth", "tolerance"),
    [("147.1 GB/s", 0.10), ("200 GB/s", 0.35)],
    ids=["fitted", "nominal"],
)
@pytest.mark.parametrize("prompt", TIMES)
def test_transfers_take_as_long_as_mooncake_measured(prompt, bandwidth, tolerance):
    link = f"systems.pools.transfer.bandwidth={bandwidth}"
    scenario = sim.read("pd-mooncake", [link, f"workload.prompt={prompt} token"])
    moved = sim.run(scenario).systems["pools"].rows.transfers
    took = 1000 * (moved.end - moved.start)
    assert took == pytest.approx(len(took) * [TIMES[prompt]], rel=tolerance), MOONCAKE


def test_pools_of_chips_take_as_long_as_pools_of_stages():
    rows = {}
    for fidelity in ("chip", "stage"):
        changes = [f"fidelity={fidelity}", "workload.requests=1", "workload.prompt=512 token"]
        rows[fidelity] = sim.run(sim.read("pd-mooncake", changes)).systems["pools"].rows
    for column in ("first_token", "last_token"):
        chip, stage = (getattr(rows[fidelity], column) for fidelity in ("chip", "stage"))
        assert chip == pytest.approx(stage, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "kv", "tokens", "nbytes", "source"),
    [
        ("deepseek-v3", "bf16", 4096, 274.5 * 2**20, "vllm-project/vllm-ascend #2470"),
        ("deepseek-v3", "bf16", 131072, 8.6 * 2**30, "vllm-project/vllm-ascend #2470"),
        ("kimi-k2", "fp8", 8150, 286e6, "ai-dynamo/aiconfigurator pull request 1380"),
    ],
)
def test_a_latent_cache_has_its_published_bytes(model, kv, tokens, nbytes, source):
    parts = DeploymentParts(
        read_value(catalogue_names("models")[model], Model),
        read_value(find_entry("b200-sxm", "chips"), Chip),
        8,
        read_value(find_entry("ideal", "engines"), Engine),
        Plan(tensor=8, weights="fp4", kv=kv),
        None,
        None,
    )
    assert prompt_kv_bytes(deploy(parts, tokens).layout, tokens) == pytest.approx(
        nbytes, rel=0.01
    ), source
