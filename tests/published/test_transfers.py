"""Times of KV caches on their way between nodes, as published."""

import pytest

import sim

MOONCAKE = "https://github.com/kvcache-ai/Mooncake/blob/main/docs/source/performance/vllm/vllm-v1-pd-performance.md"
# ms, by the tokens of a prompt
TIMES = {
    128: 0.54,
    256: 0.61,
    512: 0.92,
    1024: 1.5,
    2048: 2.51,
    4096: 4.75,
    8192: 8.84,
    16384: 16.43,
    32768: 31.65,
}


@pytest.mark.parametrize(
    ("bandwidth", "tolerance"),
    [("147.1 GB/s", 0.10), ("200 GB/s", 0.35)],
    ids=["fitted", "nominal"],
)
def test_transfers_take_as_long_as_mooncake_measured(bandwidth, tolerance):
    scenario = sim.read("pd-mooncake", [f"systems.pools.transfer.bandwidth={bandwidth}"])
    rows = sim.run(scenario).systems["pools"].rows
    took = 1000 * (rows.transfers.end - rows.transfers.start)
    times = dict(zip(rows.requests.prompt.tolist(), took.tolist(), strict=True))
    assert times == pytest.approx(TIMES, rel=tolerance), MOONCAKE
