"""`policy: ring` in a scenario: its beats, its errors and its warning."""

import re

import numpy as np
import pytest

import sim
from sim.scenario.layout import check, deploy_fitting, deploy_members, system_warnings
from sim.scenario.replicas import serve_requests
from sim.serving.policy import ring

FLAGSHIP = "llama2-70b-lpu-vs-h100"
RING = "systems.lpu.policy=ring"


def read_ring(*overrides):
    return sim.read(FLAGSHIP, [RING, *overrides])


def test_a_user_gets_a_token_each_lap_of_the_ring():
    """The rounding to whole beats is the only difference from an unloaded pass: less than a beat."""
    scenario = read_ring("workload.requests=20", "workload.rate=10 request/s")
    members = deploy_members(scenario, "lpu")
    rows = serve_requests(scenario, "lpu", members, scenario.workload.draw(0))
    tpot = (rows.last_token - rows.first_token) / (rows.requests.output - 1)
    unloaded = scenario.unloaded(members["lpu"].deployment).tpot
    assert np.ptp(tpot) < 1e-12
    assert unloaded < tpot[0] < unloaded + members["lpu"].deployment.beat.seconds


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("systems.lpu.admission=prompt", "admission: prompt; expected a system without it"),
        ("systems.lpu.async_scheduling=true", "async_scheduling; expected"),
        ("systems.lpu.deadline=1 s", "deadline; expected"),
        ("systems.lpu.fidelity=chip", "fidelity: chip; expected"),
        ("systems.lpu.micro_batch=1", "micro_batch; expected"),
        ("systems.lpu.outages=[{at: 1 s, lasts: 1 s}]", "outages; expected"),
        ("systems.lpu.plan.slots=60", "plan.slots; expected"),
        ("systems.lpu.prefix_caching=true", "prefix_caching; expected"),
        ("systems.lpu.token_budget=1 token", "token_budget; expected"),
        ("systems.lpu.routing=sampled", "routing: sampled; expected"),
        ("systems.lpu.link_errors={bit_error_rate: 1e-15}", "link_errors; expected"),
        ("systems.lpu.engine=ideal", "engine ideal, which has no tokens_per_beat; expected one"),
        (
            "systems.lpu.engine={like: groq-compiler, tokens_per_beat: 2 token}",
            "engine groq-compiler, which has 2 tokens per beat; expected one token per beat",
        ),
    ],
)
def test_what_a_ring_cannot_simulate_is_an_error_at_its_key(override, problem):
    expected = f"systems.lpu.policy: got policy ring with {problem}"
    with pytest.raises(sim.ScenarioError, match=f"{re.escape(expected)}.*; try policy: continuous"):
        read_ring(override)


DRAFTS = """systems.h100.speculate={method: draft, tokens: 3, acceptance: 0.7, draft: {model: llama-2-7b,
  transfer: {bandwidth: 25 GB/s}, system: {cluster: groq-576, chips: 72, engine: groq-compiler,
  plan: {tensor: 8}, token_budget: 4 token}}}"""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("systems.lpu.token_budget=2 token", "got 2 token; expected at most 1 token, since"),
        (DRAFTS, "draft.system.token_budget: got 4 token; expected none, since"),
    ],
)
def test_a_token_budget_that_a_beat_makes_useless_is_an_error(override, expected):
    with pytest.raises(sim.ScenarioError, match=re.escape(expected)):
        sim.read(FLAGSHIP, [override])
    sim.read(
        FLAGSHIP, [override.replace(", token_budget: 4 token", "").replace("2 token", "1 token")]
    )


def test_a_ring_as_an_engines_default_is_an_error_at_the_engine():
    with pytest.raises(sim.ScenarioError, match=r"systems\.h100\.engine: got policy ring"):
        sim.read(FLAGSHIP, ["systems.h100.engine={like: tensorrt-llm, policy: ring}"])


def test_no_more_sequences_than_beats():
    with pytest.raises(
        sim.PlanError, match="max_sequences: got 54; expected at most 53, one a beat"
    ):
        check(read_ring("systems.lpu.max_sequences=54"))
    check(read_ring("systems.lpu.max_sequences=53"))


def test_beats_that_contexts_lengthen_are_a_warning(sramsim):
    """Of 4,096 positions the beat hardly changes; of 65,656 it is 9 % longer."""
    short, long = read_ring(), read_ring("model=llama-3.1-70b")
    assert system_warnings(short, "lpu", deploy_fitting(short, "lpu")) == []
    (warning,) = system_warnings(long, "lpu", deploy_fitting(long, "lpu"))
    assert re.search(r"for 640 tokens; for 6\d{4} tokens they would take 8\.\d % more", warning)
    _, _, printed = sramsim("check", FLAGSHIP, "--set", RING, "--set", "model=llama-3.1-70b")
    assert warning in printed


def test_a_ring_may_be_an_engines_default():
    scenario = sim.read(FLAGSHIP, ["systems.lpu.engine={like: groq-compiler, policy: ring}"])
    assert scenario.plain("lpu").policies.batching is ring
