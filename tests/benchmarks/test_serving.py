"""How fast serving runs: simulated output tokens per second of the machine, beside a bare SimPy loop of timeouts.

Run with `pytest tests/benchmarks`; the figures stand under `extra_info`, times do not depend on a constant.
"""

import resource
import time

import numpy as np
import pytest
import simpy

import sim
from sim.results.metrics import summarize
from sim.serving.policy import BATCHINGS, Policies
from sim.serving.replica_config import ReplicaConfig
from sim.serving.service import serve_fleet

TIMEOUTS = 200_000


def bare():
    """Timeouts a second of an otherwise empty run."""
    env = simpy.Environment()

    def loop():
        for _ in range(TIMEOUTS):
            yield env.timeout(1.0)

    env.process(loop())
    start = time.perf_counter()
    env.run()
    return TIMEOUTS / (time.perf_counter() - start)


def test_bare_loop(benchmark):
    benchmark.extra_info["timeouts_per_second"] = bare()
    benchmark.pedantic(bare, rounds=3)


@pytest.mark.parametrize(
    ("system", "rate", "requests", "policy"),
    [  # 8xH100 take 39 requests a second within the SLO, 576 LPUs 25 (`sramsim capacity`)
        pytest.param("h100x8", 1, 1_000, "continuous", id="8xH100, 1 request/s, a thousand"),
        pytest.param("h100x8", 1, 10_000, "continuous", id="(a) 8xH100, 1 request/s"),
        pytest.param("h100x8", 38, 10_000, "continuous", id="(b) 8xH100, 38 request/s"),
        pytest.param("lpu", 12.6, 10_000, "continuous", id="(c) 576 LPUs at 50 %"),
        pytest.param("lpu", 22.8, 10_000, "continuous", id="(c) 576 LPUs at 90 %"),
        pytest.param("lpu", 12.6, 10_000, "ring", id="(c) a ring of 576 LPUs at 50 %"),
        pytest.param("lpu", 22.8, 10_000, "ring", id="(c) a ring of 576 LPUs at 90 %"),
        pytest.param("h100x8", 1, 1_000_000, "continuous", id="(d) 8xH100, 1 request/s, a million"),
    ],
)
def test_serving(benchmark, system, rate, requests, policy):
    """Drawing the requests, serving them, and the summary, on costs that remember nothing yet."""
    overrides = [f"workload.rate={rate} request/s", f"workload.requests={requests}"]
    scenario = sim.read("llama2-70b-lpu-vs-h100", overrides)
    policies = Policies(batching=BATCHINGS[policy])

    def config():
        deployment = scenario.deploy(system)
        tokens = scenario.request_tokens
        return ReplicaConfig(deployment.costs, deployment.limits, policies, request_tokens=tokens)

    def deploy():
        return (config(),), {}

    def run(config):
        rows = serve_fleet(scenario.workload.draw(0), [config], policies.router)
        summarize(rows)
        return rows

    warm_up = scenario.workload.model_copy(update={"requests": 2}).draw(0)
    serve_fleet(warm_up, [config()], policies.router)

    rows = benchmark.pedantic(run, setup=deploy, rounds=1 if requests > 100_000 else 3)
    tokens = int(rows.requests.output[np.isfinite(rows.last_token)].sum())
    benchmark.extra_info["output_tokens_per_second"] = tokens / benchmark.stats.stats.median
    benchmark.extra_info["bare_timeouts_per_second"] = bare()
    benchmark.extra_info["peak_memory_MB"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    )
