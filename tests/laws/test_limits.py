"""Engines have limits of their own, for each attention-data rank or for the replica."""

from dataclasses import replace

import numpy as np
import pytest

from sim.cost.plan import Plan
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine, default_limits
from sim.hardware.topology import FullyConnected, Link
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names

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


def test_in_a_pipeline_sequences_are_limited_together_and_tokens_by_micro_batch(
    make_deployment, make_chip, serve_on
):
    """vLLM has one scheduler for all stages: max_num_seqs bounds what runs, max_num_batched_tokens each of four micro-batches."""
    deployment = make_deployment(
        4,
        engine=read_value(catalogue_names("engines")["vllm"], Engine),
        chip=make_chip(capacity=1e11),
        plan=Plan(pipeline=4),
        max_sequences=256,
        token_budget=512,
    )
    limits, costs = deployment.limits, deployment.costs
    assert (limits.micro_batches, limits.sequences, limits.token_budget) == (4, 256, 512)
    works, step = [], costs.step
    costs.step = lambda work: works.append(replace(work)) or step(work)
    rows = serve_on(deployment, [(0.0, 40, 300)] * 400, leap=False)
    assert rows.finished.all()
    running = [
        int(((rows.admitted <= at) & (rows.last_token > at)).sum())
        for at in np.unique(rows.admitted)
    ]
    assert max(running) == 256
    assert max(work.decodes for work in works) == 64
    assert max(work.tokens for work in works) == 512


def test_a_pipeline_of_ranks_has_the_limits_of_each_rank(make_deployment, make_engine, make_model):
    """Two ranks in each of two stages: twice the sequences in all, and twice the tokens in each micro-batch."""
    engine = make_engine(max_sequences=8, token_budget=64)
    options = {"engine": engine, "model": make_model(**MOE), "token_budget": None}
    limits = make_deployment(4, plan=Plan(attention_data=2, pipeline=2), **options).limits
    assert (limits.micro_batches, limits.sequences, limits.token_budget) == (2, 16, 128)


def test_without_an_engines_limits_those_of_before_hold(deployed):
    limits = deployed({})
    assert (limits.sequences, limits.token_budget) == (256, 4096)


@pytest.mark.parametrize(
    ("engine", "chip", "limits"),
    [
        ("tensorrt-llm", "h100-sxm", (2048, 8192)),
        ("vllm", "h100-sxm", (1024, 8192)),
        ("vllm", "rtx-4090", (256, 2048)),
        ("sglang", "h100-sxm", (2048, 8192)),
    ],
)
def test_engines_of_the_catalogue_have_their_own_defaults(engine, chip, limits):
    found = read_value(catalogue_names("engines")[engine], Engine)
    on = read_value(catalogue_names("chips")[chip], Chip)
    assert default_limits(found, on) == limits


@pytest.mark.parametrize(
    ("chips", "plan", "budget", "micro_batches", "sequences"),
    [
        (1, Plan(), 16, 1, 16),  # each takes a token of the budget
        (1, Plan(), 4096, 1, 256),
        (4, Plan(pipeline=4), 16, 4, 64),
        (4, Plan(pipeline=4), 512, 4, 1024),  # 256 in each of four micro-batches
        (2, Plan(pipeline=2, slots=5), 300, 5, 1280),
        (4, Plan(pipeline=2, replicas=2), 512, 2, 512),  # each replica
        (2, Plan(attention_data=2), 400, 1, 256),  # the default is not one of each rank
    ],
)
def test_without_limits_a_micro_batch_has_256_sequences(
    make_deployment, make_chip, chips, plan, budget, micro_batches, sequences
):
    deployment = make_deployment(
        chips, chip=make_chip(capacity=1e9), plan=plan, token_budget=budget
    )
    limits = deployment.limits
    assert (limits.micro_batches, limits.sequences) == (micro_batches, sequences)


@pytest.mark.parametrize(
    ("beat", "stages", "micro_batches", "sequences"),
    [
        (2, 2, 128, 256),  # 256 sequences, two in each micro-batch
        (50, 2, 6, 256),  # the last one is not full
        (200, 2, 3, 600),  # 3 fill the pipeline, with 200 in each
    ],
)
def test_without_limits_a_compiled_pipeline_has_256_sequences_or_what_fills_it(
    make_deployment, make_chip, make_engine, beat, stages, micro_batches, sequences
):
    """A pass through two stages and a hop between takes 2 to 3 times as long as the slower stage.

    A hop of 0.4 ms is longer than the faster stage falls short of the slower one.
    """
    slow = FullyConnected(link=Link(latency=4e-4, bandwidth=1e15))
    deployment = make_deployment(
        stages,
        chip=make_chip(capacity=1e9, topology=slow),
        engine=make_engine(tokens_per_beat=beat, layer_overhead=5e-3),
        plan=Plan(pipeline=stages),
        token_budget=None,
    )
    limits = deployment.limits
    assert (limits.micro_batches, limits.sequences) == (micro_batches, sequences)
