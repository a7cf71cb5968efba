"""States of fixed size: they take room for each sequence and time for each step, whatever the context."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sim
from sim.cost.energy import Tally, usage
from sim.cost.layout import state_room
from sim.cost.plan import Plan
from sim.cost.work import Work, decodes_at

STATE = 4 * 8 * 8 * 4 + 3 * (2 * 16 + 32) * 2  # B of a layer: states at 4 B, inputs at 2 B
KV = 2 * 2 * 16 * 2  # B of a token in a layer
KINDS = st.lists(
    st.sampled_from(["linear_attention", "full_attention"]), min_size=6, max_size=6
).filter(lambda kinds: "full_attention" in kinds)


def room(deployment):
    """Bytes that each stage has for KV cache and states."""
    layout = deployment.layout
    return np.array([layout.usable - layout.activations - s.weights for s in layout.stages])


def test_a_state_does_not_grow_with_the_context(make_hybrid):
    model = make_hybrid()
    assert model.state_bytes() == 2 * STATE
    assert model.kv_per_token() == 2 * KV / 2
    assert make_hybrid(layer_types=("full_attention",) * 4).state_bytes() == 0


@pytest.mark.parametrize("tokens", [1, 10, 100])
def test_a_sequence_takes_its_tokens_and_its_state(make_deployment, make_hybrid, tokens):
    deployment = make_deployment(model=make_hybrid(), request_tokens=tokens)
    each = 2 * KV * tokens + 2 * STATE
    assert deployment.fit.kv == each
    assert deployment.layout.stages[0].kv(tokens, None) == each
    fitting = int(room(deployment)[0] // each)
    assert fitting - 1 <= deployment.sequences(tokens)[0] <= fitting  # states count as whole tokens


def test_as_many_sequences_run_together_as_have_room(make_deployment, make_hybrid, serve_on):
    deployment = make_deployment(model=make_hybrid(), request_tokens=2)
    rows = serve_on(deployment, [(0.0, 1, 1)] * 500)
    most = deployment.sequences(2)[0]
    assert most < 500
    assert np.count_nonzero(rows.admitted == 0.0) == min(most, deployment.limits.sequences)


@settings(max_examples=30)
@example(["linear_attention"] * 2 + ["full_attention"] * 3 + ["linear_attention"], 2, 6e5, 1)
@given(KINDS, st.sampled_from([1, 2, 3, 14]), st.sampled_from([6e5, 7e5]), st.integers(1, 30))
def test_no_stage_overflows_within_the_limits(
    make_deployment, make_hybrid, make_chip, kinds, stages, capacity, tokens
):
    """Also where stages have unequal numbers of layers of both kinds, or of one kind alone."""
    model = make_hybrid(num_hidden_layers=6, layer_types=tuple(kinds))
    chip = make_chip(capacity=capacity)
    deployment = make_deployment(
        stages, model=model, chip=chip, plan=Plan(pipeline=stages), request_tokens=2
    )
    limits, alone = deployment.limits, deployment.fit.state_sequences
    held = limits.kv_tokens // limits.kv_tokens_needed(tokens)
    held = held if alone is None else min(held, alone)
    for stage, free in zip(deployment.layout.stages, room(deployment), strict=True):
        assert held * stage.kv(tokens, None) <= free


def test_stages_with_states_alone_limit_the_sequences(make_deployment, make_hybrid, make_chip):
    """A stage for each block: the first recurrence has room for eight states beside its weights."""
    plan, model = Plan(pipeline=10), make_hybrid()
    large = make_deployment(10, model=model, plan=plan, request_tokens=2)
    (stage, *_) = (stage for stage in large.layout.stages if stage.state)
    assert stage.first_token == 0
    capacity = stage.weights + large.layout.activations + 8.5 * STATE
    tight = make_deployment(
        10, model=model, plan=plan, request_tokens=2, chip=make_chip(capacity=capacity)
    )
    assert tight.fit.state_sequences == tight.limits.sequences == 8
    assert tight.sequences(2)[0] <= 8


def test_the_tokens_of_a_state_are_exact_on_one_stage(make_deployment, make_hybrid):
    layout = make_deployment(model=make_hybrid()).layout
    free = int(room(make_deployment(model=make_hybrid()))[0] // (2 * KV))
    tokens, alone = state_room(layout, free)
    assert 2 * STATE <= tokens * 2 * KV < 2 * STATE + 2 * KV
    assert alone is None


def test_a_decode_reads_and_writes_the_state_of_each_sequence(make_deployment, make_hybrid):
    """At 1 GB/s, whatever the context; the K and V of a position are read once."""
    costs = make_deployment(model=make_hybrid()).costs

    def seconds(sequences, context):
        work = decodes_at(sequences, context, None)
        rows = {row.part: row.seconds for row in costs.rows(work)}
        return [rows[kind.part] for kind in costs.kinds]

    (state, kv), (same, more) = seconds(3, 100.0), seconds(3, 1000.0)
    assert state == same == pytest.approx(3 * 2 * STATE / 1e9)
    assert (kv, more) == pytest.approx((3 * 100 * KV / 1e9, 3 * 1000 * KV / 1e9))


def test_prompts_take_time_in_proportion_to_their_tokens(make_deployment, make_hybrid):
    """A chunk of 64 tokens reads and writes a state, and so does the beginning of each step."""
    costs = make_deployment(model=make_hybrid(), token_budget=4096).costs
    state = costs.kinds[0].part

    def seconds(tokens, old):
        work = Work(prompt_tokens=tokens, chunks=1, attended=tokens * old, cached=old + tokens)
        return next(row.seconds for row in costs.rows(work) if row.part is state)

    assert seconds(64, 0) == seconds(64, 4000) == pytest.approx(2 * 2 * STATE / 1e9)
    assert seconds(4096, 0) == pytest.approx(65 * 2 * STATE / 1e9)


def test_flops_of_a_state_by_hand(make_hybrid):
    """Three products with it, and within a chunk three as long as a key and two as long as a value."""
    state = make_hybrid().blocks[1].mixers[0]
    assert state.token_flops() == 2 * 4 * (3 * 64 + 3 * 8 + 2 * 8)
    assert state.token_flops(chunk=1000) == 2 * 4 * (3 * 64 + 64 * (3 * 8 + 2 * 8))
    assert state.token_flops(tensor=4) == state.token_flops() / 4


@pytest.mark.parametrize("tensor", [2, 4])
def test_chips_share_the_state(make_hybrid, tensor):
    state = make_hybrid().blocks[1].mixers[0]
    assert state.state_bytes() / tensor <= state.state_bytes(tensor) < state.state_bytes()


def test_energy_counts_the_bytes_that_the_time_counts(make_deployment, make_hybrid):
    """20 tokens in two steps read 2 + 20/64 states as chunks of prompts, and 20 as decodes; weights are the same."""
    costs = make_deployment(model=make_hybrid()).costs
    steps = defaultdict(int, {10: 2})
    prompts, decodes = (
        usage(costs, Tally(steps, **counts))
        for counts in ({"prompt_tokens": 20, "prompt_steps": 2}, {})
    )
    more = prompts.nbytes["sram"] - decodes.nbytes["sram"]
    assert more == pytest.approx((2 + 20 / 64 - 20) * 2 * 2 * STATE)
    together = 3 * 8 + 2 * 8  # products of a head with each token of a chunk of 10, or with itself
    more = prompts.flops["fp16", "fp16"] - decodes.flops["fp16", "fp16"]
    assert more == 2 * 20 * (10 - 1) * 2 * 4 * together


@pytest.mark.parametrize("chips", [1, 3])
def test_runs_tally_the_tokens_and_steps_of_prompts(make_deployment, make_hybrid, serve_on, chips):
    """A prompt of 20 tokens in steps of 16 and 4."""
    deployment = make_deployment(chips, model=make_hybrid(), plan=Plan(pipeline=chips))
    (tally,) = serve_on(deployment, [(0.0, 20, 8)]).tallies
    assert (tally.prompt_tokens, tally.prompt_steps) == (20, 2)


def test_prefixes_of_a_model_with_states_are_refused():
    overrides = ["model=nemotron-nano-9b-v2", "systems.h100.prefix_caching=true"]
    with pytest.raises(
        sim.ScenarioError, match=r"systems\.h100\.prefix_caching: got true; expected"
    ):
        sim.read("llama2-70b-lpu-vs-h100", overrides)
