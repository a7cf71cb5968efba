"""What the chips of a stage send each other, counted by hand: how often, how many bytes, how long."""

import pytest

from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.cost.plan import Plan
from sim.cost.system_costs import step_terms
from sim.cost.terms import COLLECTIVES, TIME
from sim.cost.work import Work
from sim.hardware.topology import FullyConnected, Link, Ring

LAYERS, HIDDEN = 4, 64  # of the small model
LATENT = {
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("model", "tensor", "kv_split", "each_attention"),
    [
        ({}, 4, "heads", 1),
        ({}, 4, "sequence", 2),  # two KV heads, the sequence of each over two chips
        ({}, 2, "sequence", 1),  # a KV head on each chip, whose sequence is whole
        ({"num_key_value_heads": 1}, 2, "sequence", 2),
        ({"num_key_value_heads": 1}, 2, "heads", 1),
        (LATENT, 2, "sequence", 2),  # one latent for all heads
    ],
)
def test_all_reduces_are_counted(
    make_deployment, make_model, make_chip, serve_on, model, tensor, kv_split, each_attention
):
    """One after the embedding, one after each MLP, one or two after each attention.

    Latency is all that an all-reduce takes here, and each is one-shot: a message to each other chip.
    """
    second = FullyConnected(link=Link(latency=1.0, bandwidth=1e15))
    deployment = make_deployment(
        tensor,
        model=make_model(**model),
        chip=make_chip(capacity=1e9, topology=second),
        plan=Plan(tensor=tensor, kv_split=kv_split),
    )
    expected = 1 + LAYERS * (1 + each_attention)
    terms = step_terms(deployment.costs, Work(decodes=1, context=9, logits=1))
    assert terms[:, TIME, COLLECTIVES].sum() == pytest.approx(expected, rel=1e-6)
    machine = machine_factory(deployment.costs, [Irregularities()], [0])
    rows = serve_on(deployment, [(0.0, 5, 1)], machine=machine)
    assert rows.traffic[0].messages == expected * tensor * (tensor - 1)


@pytest.mark.parametrize(("dispatch", "out"), [("fp8", 1), ("fp16", 2), (None, None)])
@pytest.mark.parametrize(("hidden", "back"), [("fp16", 2), ("fp32", 4)])
@pytest.mark.parametrize(
    ("shards", "copies"),
    [
        # A shard of 2 of 8 experts has neither of a token's 2 in 15 of 28 cases.
        (4, 4 * 13 / 28),
        # A shard of 4 has neither in 6 of 28, and each of its experts lies on two chips.
        (2, 2 * 2 * 22 / 28),
        (1, 4),  # each chip has a quarter of each expert
    ],
)
def test_dispatch_and_combine_carry_a_copy_for_each_shard_that_a_token_reaches(
    make_deployment, make_model, make_chip, dispatch, out, hidden, back, shards, copies
):
    """Dispatch in its own precision, combine in that of hidden states; a quarter stays on the chip."""
    link = Link(latency=1e-6, bandwidth=1e6)
    deployment = make_deployment(
        4,
        model=make_model(**EXPERTS),
        chip=make_chip(capacity=1e9, topology=FullyConnected(link=link)),
        plan=Plan(attention_data=4, expert=shards, dispatch=dispatch, hidden=hidden),
    )
    tokens = 8  # two in each of the four ranks
    each_chip = 2 * HIDDEN * copies * ((out or back) + back)
    sent = 4 * each_chip * 3 / 4
    assert deployment.costs.collectives.link_bytes(tokens) == pytest.approx(LAYERS * sent)
    # A quarter goes over each cable; the two exchanges have a latency each.
    seconds = LAYERS * (2 * link.latency + each_chip / 4 / link.bandwidth)
    terms = step_terms(deployment.costs, Work(decodes=tokens, context=80, logits=tokens))
    assert terms[:, TIME, COLLECTIVES].sum() == pytest.approx(seconds)


def test_dispatch_and_combine_may_have_the_latency_of_other_kernels(
    make_deployment, make_model, make_chip, make_engine
):
    """NCCL's latency on a chip without a generation is Hopper's; all-reduces keep the engine's own."""
    engine = make_engine(collective_latency=1.0, dispatch_kernels="nccl")
    own = engine.dispatch_kernels.collectives["hopper"]
    link = Link(latency=1e-12, bandwidth=1e18)
    deployment = make_deployment(
        4,
        model=make_model(**EXPERTS),
        chip=make_chip(capacity=1e9, topology=FullyConnected(link=link)),
        engine=engine,
        plan=Plan(tensor=2, attention_data=2),
    )
    terms = step_terms(deployment.costs, Work(decodes=2, context=20, logits=2))
    all_reduces, routed = 1 + 2 * LAYERS, 2 * LAYERS * (own.latency + 4 * own.latency_per_chip)
    assert terms[:, TIME, COLLECTIVES].sum() - all_reduces == pytest.approx(routed, rel=1e-5)


def test_kernels_without_collectives_route_no_tokens(make_engine):
    with pytest.raises(ValueError, match="expected kernels with collectives; try nccl"):
        make_engine(dispatch_kernels="marlin")


@pytest.mark.parametrize("chips", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("tokens", [1, 16])
def test_large_messages_on_a_ring_take_the_closed_form_chip_by_chip(
    make_deployment, make_chip, serve_on, chips, tokens
):
    """An all-reduce sums what the others hold, (n - 1) / n of the bytes, and gathers as much.

    Half of each goes either way round, but for two chips, which have one link between them.
    Latency is next to nothing.
    """
    link = Link(latency=1e-12, bandwidth=1e5)
    deployment = make_deployment(
        chips,
        chip=make_chip(capacity=1e9, bandwidth=1e15, fp16=1e21, topology=Ring(link=link)),
        plan=Plan(tensor=chips),
    )
    machine = machine_factory(deployment.costs, [Irregularities()], [0])
    requests = [(0.0, tokens, 1)]
    by_chip, by_stage = (
        serve_on(deployment, requests, machine=made).last_token[0] for made in (machine, None)
    )
    all_reduces = 1 + 2 * LAYERS
    share = (chips - 1) / chips * (2 if chips == 2 else 1)
    nbytes = all_reduces * tokens * HIDDEN * 2
    assert by_chip == pytest.approx(share * nbytes / link.bandwidth, rel=1e-6)
    assert by_chip == pytest.approx(by_stage, rel=1e-12)
