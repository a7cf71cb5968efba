"""Published figures of prefill and decode pools, and what bounds them."""

import numpy as np
import pytest

import sim
from sim.scenario.layout import check
from sim.studies.capacity import capacity

EXO = "https://blog.exolabs.net/nvidia-dgx-spark"
DISTSERVE = "https://hao-ai-lab.github.io/blogs/distserve/"
SGLANG = "https://github.com/kvcache-ai/Mooncake/blob/main/docs/source/performance/sglang/sglang-benchmark-results-v1.md"


def test_two_unlike_boxes_answer_together_as_fast_as_measured():
    """Two efficiencies of each box are fitted to its own phases; the time together is predicted."""
    ends = {
        name: system.rows.last_token[0]
        for name, system in sim.run(sim.read("pd-spark-mac")).systems.items()
    }
    assert (ends["spark"], ends["mac"]) == pytest.approx((4.34, 6.42), rel=0.01), EXO
    assert ends["pools"] == pytest.approx(2.32, rel=0.15), EXO


def test_goodput_of_a_gpu_is_as_distserve_measured_apart_and_together():
    """OPT-13B there, Llama-2-13B here; nothing is fitted to these figures."""
    found = capacity(sim.read("pd-goodput"), requests=400)
    rates = {name: system.best.goodput for name, system in found.systems.items()}
    assert rates["apart"] / 3 == pytest.approx(3.3, rel=0.25), DISTSERVE
    assert rates["together"] == pytest.approx(1.6, rel=0.25), DISTSERVE
    assert found.as_json()["systems"]["apart"]["binds"].endswith("(decode)")


def test_pools_have_steadier_tokens_than_as_many_replicas_and_a_later_first_token():
    found = {n: s.metrics for n, s in sim.run(sim.read("pd-vs-two-replicas")).systems.items()}
    apart, together = found["apart"], found["together"]
    assert apart.output_throughput == pytest.approx(together.output_throughput, rel=0.05), SGLANG
    # measured: 10.76 and 12.73 ms
    assert 0.6 < apart.itl["p99"] / together.itl["p99"] < 0.95, SGLANG
    # measured: 3.41 and 4.59 s
    assert 0.6 < apart.e2el["mean"] / together.e2el["mean"] < 0.95, SGLANG
    assert apart.ttft["mean"] > 1.2 * together.ttft["mean"]


@pytest.mark.parametrize(("handover", "binds"), [(0.031, False), (0.168, True), (0.5, True)])
def test_no_more_requests_come_out_than_room_over_hand_over(handover, binds):
    changes = [f"systems.pools.transfer.handover={handover} s", "workload.requests=800"]
    scenario = sim.read("pd-headroom", changes)
    limits = check(scenario)["pools"]["pools.decode"].deployment.limits
    tokens = round(scenario.workload.mean_prompt + scenario.workload.mean_output)
    bound = limits.max_concurrent(tokens) / handover
    rows = sim.run(scenario).systems["pools"].rows
    ended = np.sort(rows.last_token)[len(rows.last_token) // 5 : 4 * len(rows.last_token) // 5]
    rate = (len(ended) - 1) / (ended[-1] - ended[0])
    assert rate < bound
    assert (rate > 0.75 * bound) == binds
