"""A warning names each key that has no effect on its system, and no other key."""

from copy import deepcopy

import pytest

import sim
from sim.scenario.layout import system_warnings
from sim.scenario.sources import as_scenario
from sim.scenario.unused_keys import unused_keys

BASE = {
    "model": "mixtral-8x7b",
    "workload": {
        "kind": "poisson",
        "requests": 12,
        "rate": "50 request/s",
        "prompt": "64 token",
        "output": "4 token",
    },
    "systems": {
        "one": {"chip": "h200-sxm", "chips": 8, "engine": "vllm", "plan": {"tensor": 8}},
    },
}
PREFIX = {"workload.shared_prefix": "64 token"}
ROUTES = {"plan.tensor": 2, "plan.replicas": 4}
RANKS = {"plan.tensor": 1, "plan.attention_data": 8}
STAGES = {"plan.tensor": 2, "plan.pipeline": 4}
LISTED = {
    "workload": {
        "kind": "listed",
        "requests": [
            {"arrival": "0 s", "prompt": "64 token", "output": "4 token", "priority": -number}
            for number in range(12)
        ],
    },
    "max_sequences": 1,
}
# By key: a value, and the other keys with which it has an effect.
KEYS = {
    "plan.dispatch": ("fp8", RANKS),
    "plan.balance": ("memory", STAGES),
    "plan.kv_split": ("sequence", {"plan.tensor": 16, "chips": 16, "chip": "gb200"}),
    "order": ("priority", LISTED),
    "prefix_caching": (True, PREFIX),
    "router": ("round-robin", ROUTES),
}


def with_keys(keys):
    scenario = deepcopy(BASE)
    system = scenario["systems"]["one"]
    for key, value in keys.items():
        first, _, last = key.partition(".")
        owner = scenario if first in ("workload", "model") else system
        if last:
            owner[first][last] = value
        else:
            owner[first] = value
    return sim.run(scenario)


@pytest.mark.parametrize("key", KEYS)
def test_a_warning_names_a_key_exactly_if_it_has_no_effect(key):
    value, other = KEYS[key]
    for keys, unused in (({}, True), (other, False)):
        without, having = with_keys(keys), with_keys(keys | {key: value})
        same = without.requests.equals(having.requests)
        deployment = having.systems["one"].members["one"].deployment
        lines = unused_keys(having.scenario, "one", deployment)
        assert [line.startswith(f"{key} has no effect: ") for line in lines] == [True] * unused
        assert same == unused
        assert set(lines) <= set(system_warnings(having.scenario, "one", deployment))


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_has_an_effect_somewhere_in_a_sweep_is_not_named(key):
    """Also if its point comes last, and points before it cannot be run."""
    value, other = KEYS[key]
    swept = {k if k.startswith("workload") else f"systems.one.{k}": v for k, v in other.items()}
    others = [{"systems.one.plan.pipeline": 3}, {"seed": 1}]
    for points, unused in ((others, True), ([*others, swept], False)):
        scenario = as_scenario({**BASE, "sweep": points}, {f"systems.one.{key}": value})
        lines = unused_keys(scenario, "one", scenario.deploy("one"))
        assert [line.startswith(f"{key} has no effect: ") for line in lines] == [True] * unused


# By number of the engine: a value, keys with which it has no effect, and others with which it has.
SMALL = {"below": "100 GB", "max_sequences": 2, "token_budget": "24 token"}
SWITCH = {"kind": "switch", "link": {"latency": "1 us", "bandwidth": "1 GB/s"}}
NUMBERS = {
    "memory_efficiency.8": (0.05, {}, {"plan.weights": "fp8"}),
    "moe_skew": (0.9, {"model": "llama-3.1-8b"}, {}),
    "collective_latency": ("1 ms", {"plan.tensor": 1, "chips": 1}, {}),
    "collective_efficiency": (0.01, {}, {"topology": SWITCH}),
    "kv_block": ("48 token", {}, {"prefix_caching": True, **PREFIX}),
    "max_sequences": (2, {"max_sequences": 4}, {}),
    "token_budget": ("24 token", {"token_budget": "512 token"}, {}),
    "small_chip": (SMALL, {}, {"chip": "h100-sxm"}),
    "draft_sequence_overhead": (
        "1 ms",
        {},
        {"speculate": {"method": "mtp", "tokens": 2, "acceptance": 0.5}},
    ),
    "policy": ("static", {"policy": "continuous"}, {}),
    "hosts": ({"a": {"request": "1 s"}}, {}, None),
}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_changed_number_of_an_engine_is_named_exactly_if_it_has_no_effect(key):
    value, without, having = NUMBERS[key]
    for keys, unused in ((without, True), (having, False)):
        if keys is None:
            continue
        base = with_keys(keys)
        changed = with_keys(keys | {"engine": {"like": "vllm", key: value}})
        deployment = changed.systems["one"].members["one"].deployment
        lines = unused_keys(changed.scenario, "one", deployment)
        assert all(line.startswith(f"engine.{key}") for line in lines)
        assert bool(lines) == unused
        assert base.requests.equals(changed.requests) == unused


def test_only_the_chips_with_the_scheduler_use_its_limits():
    """Of a drafter `max_sequences` counts, and of an FFN pool not even that."""
    engine = {"like": "vllm", "max_sequences": 9, "kv_block": "4 token"}
    pool = {"chip": "h200-sxm", "chips": 8}
    link = {"bandwidth": "50 GB/s", "latency": "5 us"}
    drafter = {"model": "llama-2-7b", "system": {**pool, "engine": engine}, "transfer": link}
    speculate = {"method": "draft", "tokens": 2, "acceptance": 0.5, "draft": drafter}
    one = {**pool, "engine": "vllm", "plan": {"tensor": 8}, "speculate": speculate}
    two = {"attention": {**pool, "engine": "vllm"}, "ffn": {**pool, "engine": engine}}
    systems = {"one": one, "two": {**two, "transfer": link}}
    scenario = as_scenario({**BASE, "systems": systems})
    own, pools = (unused_keys(scenario, name, scenario.deploy(name)) for name in systems)
    assert [line.split()[0] for line in own] == ["speculate.draft.system.engine.kv_block"]
    assert [line.split()[0] for line in pools] == [
        "ffn.engine.max_sequences",
        "ffn.engine.kv_block",
    ]


def test_run_and_check_print_unused_keys(sramsim):
    for command in ("run", "check"):
        words = ("--set", "systems.h100.router=round-robin")
        status, _, err = sramsim(command, "llama3-8b-lpu-vs-h100", *words)
        assert status == 0
        line = "systems.h100: warning: router has no effect: there is one replica"
        assert err.count(line) == 1
