"""Engines have limits of their own, for each attention-data rank or for the replica."""

import pytest

from sim.cost.plan import Plan
from sim.hardware.engine import Engine
from sim.inputs.files import catalogue_names, read_value

MOE = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def deployed(make_deployment, make_engine, make_model):
    """Two attention-data ranks on two chips, with what an engine and a system limit."""

    def make(engine, **system):
        plan = Plan(attention_data=2)
        return make_deployment(
            2,
            engine=make_engine(**engine),
            plan=plan,
            model=make_model(**MOE),
            **({"token_budget": None} | system),
        ).limits

    return make


def test_an_engines_limits_hold_for_each_rank_or_for_the_replica(deployed):
    limits = {"max_sequences": 8, "token_budget": 64}
    per_rank, per_replica = deployed(limits), deployed(limits | {"limits_per": "replica"})
    assert (per_rank.sequences, per_rank.token_budget) == (16, 128)
    assert (per_replica.sequences, per_replica.token_budget) == (8, 64)


def test_a_systems_limits_are_counted_as_its_engine_counts(deployed):
    """vLLM's settings taken literally: max_num_seqs and max_num_batched_tokens are of a rank."""
    own = {"max_sequences": 3, "token_budget": 10}
    assert deployed({"max_sequences": 8, "token_budget": 64}, **own).sequences == 6
    assert deployed({"max_sequences": 8, "token_budget": 64}, **own).token_budget == 20
    replica = deployed({"limits_per": "replica"}, **own)
    assert (replica.sequences, replica.token_budget) == (3, 10)


def test_without_an_engines_limits_those_of_before_hold(deployed):
    limits = deployed({})
    assert (limits.sequences, limits.token_budget) == (256, 4096)


@pytest.mark.parametrize(
    ("engine", "sequences", "tokens"),
    [
        ("tensorrt-llm", 2048, 8192),
        ("vllm", 1024, 8192),
        ("vllm-geforce", 256, 2048),
        ("sglang", 2048, 8192),
    ],
)
def test_engines_of_the_catalogue_have_their_own_defaults(engine, sequences, tokens):
    found = read_value(catalogue_names("engines")[engine], Engine)
    assert (found.max_sequences, found.token_budget) == (sequences, tokens)
