"""How fast chip fidelity is: 576 chips that say 13,500 messages for each token, and a bare SimPy loop beside them.

Run with `pytest tests/benchmarks`.  Look at ratios from one run: machines are noisy.
"""

import numpy as np
import pytest
import simpy

import sim
from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

TOKENS = 50


@pytest.mark.parametrize("processes", [1, 576])
def test_bare_simpy(benchmark, processes):
    """Processes that do nothing but wait."""
    turns = 300_000 // processes

    def wait(env):
        for _ in range(turns):
            yield env.timeout(1.0)

    def run():
        env = simpy.Environment()
        for _ in range(processes):
            env.process(wait(env))
        env.run()

    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["events_per_second"] = round(processes * turns / benchmark.stats.stats.min)


@pytest.mark.parametrize("system", ["lpu", "h100x8"])
def test_tokens_of_a_lone_user(benchmark, system):
    scenario = sim.read("llama2-70b-lpu-vs-h100")
    deployment = scenario.deploy(system)
    requests = RequestBatch(np.zeros(1), np.array([1]), np.array([TOKENS]))

    def run():
        return serve(
            requests,
            deployment.costs,
            deployment.limits,
            machine=machine_factory(deployment.costs, [Irregularities()], [0]),
        )

    rows = benchmark.pedantic(run, rounds=3)
    fastest = benchmark.stats.stats.min
    benchmark.extra_info["tokens_per_second"] = round(TOKENS / fastest, 1)
    benchmark.extra_info["messages_per_second"] = round(rows.traffic[0].messages / fastest)
