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
from sim.serving.service import serve

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
    ("system", "rate", "requests"),
    [  # 8xH100 serves 47.6 requests a second at most, 576 LPUs 154
        pytest.param("h100x8", 1, 1_000, id="8xH100, 1 request/s, a thousand"),
        pytest.param("h100x8", 1, 10_000, id="(a) 8xH100, 1 request/s"),
        pytest.param("h100x8", 38, 10_000, id="(b) 8xH100, 38 request/s"),
        pytest.param("lpu", 77, 10_000, id="(c) 576 LPUs at 50 %"),
        pytest.param("lpu", 139, 10_000, id="(c) 576 LPUs at 90 %"),
        pytest.param("h100x8", 1, 1_000_000, id="(d) 8xH100, 1 request/s, a million"),
    ],
)
def test_serving(benchmark, system, rate, requests):
    """Drawing the requests, serving them, and the summary, on costs that remember nothing yet."""
    overrides = [f"workload.rate={rate} request/s", f"workload.requests={requests}"]
    scenario = sim.read("llama2-70b-lpu-vs-h100", overrides)
    serve(
        scenario.workload.model_copy(update={"requests": 2}).draw(0),
        (warm := scenario.deploy(system)).costs,
        warm.limits,
    )

    def deploy():
        return (scenario.deploy(system),), {}

    def run(deployment):
        rows = serve(scenario.workload.draw(0), deployment.costs, deployment.limits)
        summarize(rows)
        return rows

    rows = benchmark.pedantic(run, setup=deploy, rounds=1 if requests > 100_000 else 3)
    tokens = int(rows.requests.output[np.isfinite(rows.last_token)].sum())
    benchmark.extra_info["output_tokens_per_second"] = tokens / benchmark.stats.stats.median
    benchmark.extra_info["bare_timeouts_per_second"] = bare()
    benchmark.extra_info["peak_memory_MB"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    )
