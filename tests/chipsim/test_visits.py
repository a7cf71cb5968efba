"""Attention and FFN pools chip by chip: micro-batches take turns, as jobs in a flow shop."""

from dataclasses import replace

import numpy as np
import pytest
import simpy

from sim.chipsim.exceptions import NO_IRREGULARITIES, ChipException, Irregularities
from sim.chipsim.visits import AttentionFfnMachine, visit_factory
from sim.cost.energy import Tally
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.cost.work import Work, decodes_at
from sim.hardware.topology import FullyConnected, Link, Ring
from sim.planning.attention_ffn import PoolSharing, deploy_with_ffn
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

SLOW = LayerTransfer(bandwidth=1e8, latency=2e-6, copies="rank", back="fp16", out="fp8")
FAST = LayerTransfer(bandwidth=1e12, latency=5e-5)
SHARED = LayerTransfer(bandwidth=1e9, latency=1e-6, per="system")
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
MIXED = {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "mlp_only_layers": (0,),
}
WINDOWS = {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2}
TWO_RANKS = Plan(tensor=2, attention_data=2)
DECODES = decodes_at(24, 40.0, 24)


@pytest.fixture(scope="module")
def pools(make_model, make_chip, lossy, speculate):
    """The costs of the small model on two pools of four chips."""

    def make(
        transfer=SLOW, micro_batches=2, attention=TWO_RANKS, ffn=None, changes=EXPERTS, **others
    ):
        model, chip = make_model(**changes), make_chip(fp16=1e10)
        plans = attention, ffn or Plan(tensor=4)
        engine = lossy.model_copy(update={"overlap": others.get("overlap", 0.0)})
        topology = others.get("topology", chip.topology)
        parts = [DeploymentParts(model, chip, 4, engine, plan, topology) for plan in plans]
        if drafter := others.get("drafter"):
            parts[0] = replace(parts[0], speculation=speculate(3, drafter=drafter))
        overrides = (LimitOverrides(token_budget=48), LimitOverrides())
        sharing = PoolSharing(micro_batches, transfer)
        return deploy_with_ffn(*parts, sharing, (64, 32), overrides)

    return make


def machine_step(costs, work=DECODES, attention=NO_IRREGULARITIES, ffn=NO_IRREGULARITIES):
    """The time of a step, and the machine that made it."""
    env = simpy.Environment()
    machine = AttentionFfnMachine(env, costs, (attention, ffn))
    machine.start(work)
    env.run()
    return machine.left[0], machine


@pytest.mark.parametrize("transfer", [SLOW, FAST, SHARED])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_visits_take_the_closed_form(pools, transfer, micro_batches):
    """Attention, FFN or nothing binds; with shards of experts that receive their own copies, too."""
    plans = (Plan(tensor=4), 0.0), (Plan(tensor=4, expert=4), 0.0), (Plan(tensor=4, expert=2), 0.6)
    for ffn, overlap in plans:
        costs = pools(transfer, micro_batches, ffn=ffn, overlap=overlap).costs
        ((own, _),) = costs.step_layers(DECODES).values()
        assert (own.overlapped > 0) == (overlap > 0 and transfer is SLOW)
        for work in (DECODES, Work(3, 90.0, 5, 1, 100, 22, 4)):
            closed = costs.step(work).time[0]
            assert machine_step(costs, work)[0] == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize(("kind", "adding"), [(FullyConnected, 1), (Ring, 2)])
@pytest.mark.parametrize("copies", ["shard", "token"])
def test_chips_that_sum_add_what_they_receive(pools, kind, adding, copies):
    """A reduce-scatter adds in all of its phases, and an all-reduce in the first half of them.

    A ring of four sends both ways, so a gather takes two phases.
    """
    link, reduction = Link(latency=1e-6, bandwidth=1e9), 3e-6
    none, some = (
        pools(
            FAST.model_copy(update={"copies": copies}),
            ffn=Plan(tensor=4),
            topology=kind(link=link, reduction=added),
        ).costs
        for added in (0.0, reduction)
    )
    (_, block), _ = next(iter(none.layer_kinds.items()))
    without, time = (costs.ffn.layer_seconds(block, 6)[0] for costs in (none, some))
    assert time - without == pytest.approx(adding * reduction, rel=1e-9)
    assert machine_step(some)[0] == pytest.approx(some.step(DECODES).time[0], rel=1e-9)


@pytest.mark.parametrize("transfer", [SLOW, FAST])
def test_dense_layers_exchange_beside_other_micro_batches_too(pools, transfer):
    costs = pools(
        transfer.model_copy(update={"copies": "shard"}),
        3,
        ffn=Plan(tensor=4, expert=2),
        overlap=1.0,
        changes=MIXED,
    ).costs
    layers = {bool(ffn.experts): own for (_, ffn), (own, _) in costs.step_layers(DECODES).items()}
    assert layers[False].overlapped > 0 < layers[True].overlapped
    assert machine_step(costs)[0] == pytest.approx(flow_shop(costs, DECODES), rel=1e-9)


@pytest.mark.parametrize("layers", [1, 3])
def test_steps_with_drafts_take_the_closed_form(pools, make_model, layers):
    """All passes of the drafter, and their messages, follow the layers."""
    costs = pools(FAST, 2, drafter=make_model(num_hidden_layers=layers)).costs
    assert costs.attention.drafter
    for work in (decodes_at(6, 40.0, 24, 4), Work(3, 90.0, 5, 1, 100, 22, 13, width=4)):
        closed = costs.step(work).time[0]
        assert machine_step(costs, work)[0] == pytest.approx(closed, rel=1e-9)


def flow_shop(costs, work):
    """Jobs pass all layers. Each stage of the FFN pool, the attention pool and each link take one job at a time."""
    env, stages = simpy.Environment(), costs.ffn.layout.stages
    jobs, part = costs.micro_batch(work)
    names = ["attention", "out", "back", *range(len(stages))]
    resources = {name: simpy.Resource(env) for name in names}
    layers = []
    blocks = costs.layout.model.blocks[1:-1], costs.ffn.layout.model.blocks
    for layer, pair in enumerate(zip(*blocks, strict=True)):
        own = costs.layer_times(pair, part)[0]
        stage = next(n for n, stage in enumerate(stages) if stage.first <= layer <= stage.last)
        layers += [
            ("attention", own.attention, 0.0),
            ("out", own.out_busy, own.out - own.out_busy),
            (stage, own.ffn, own.overlapped),
            ("back", own.back_busy, own.back - own.back_busy),
        ]

    def job():
        for name, busy, latency in layers:
            with resources[name].request() as visit:
                yield visit
                yield env.timeout(busy)
            yield env.timeout(latency)

    ends = [env.process(job()) for _ in range(jobs)]
    env.run(simpy.AllOf(env, ends))
    outside = sum(float(row.repeats[0]) * row.seconds for row in costs.rows_once(work))
    return outside + env.now


@pytest.mark.parametrize("changes", [EXPERTS, WINDOWS], ids=["alike", "unlike"])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
def test_layers_may_differ_and_have_stages_of_their_own(pools, changes, pipeline):
    """A stage may begin before another ends. The closed form knows it for two micro-batches."""
    ffn = Plan(tensor=4 // pipeline, pipeline=pipeline)
    for transfer, micro_batches in ((SLOW, 2), (SLOW, 3), (FAST, 2), (FAST, 3)):
        costs = pools(transfer, micro_batches, ffn=ffn, changes=changes).costs
        time = machine_step(costs)[0]
        assert time == pytest.approx(flow_shop(costs, DECODES), rel=1e-9)
        closed = costs.step(DECODES).time[0]
        if changes == EXPERTS and (pipeline == 1 or micro_batches == 2):
            assert time == pytest.approx(closed, rel=1e-9)
        assert 0.75 * closed < time < 1.05 * closed  # else it is an estimate


def test_steps_in_a_run_take_the_closed_form(pools):
    deployment = pools(FAST, 3)
    requests = RequestBatch(
        np.array([0.0, 0.0, 0.001]), np.array([20, 5, 9]), np.array([12, 9, 25])
    )
    factory = visit_factory(deployment.costs, (NO_IRREGULARITIES, NO_IRREGULARITIES), [0])
    chips, stage = (
        serve(requests, deployment.costs, deployment.limits, machine=machine)
        for machine in (factory, None)
    )
    assert chips.last_token == pytest.approx(stage.last_token, rel=1e-9)
    assert chips.first_token == pytest.approx(stage.first_token, rel=1e-9)


def test_one_slow_chip_holds_up_its_pool_through_the_other(pools):
    """Ranks of attention have no collective with each other, but the FFN pool waits for all of them."""
    costs = pools(FAST, 2, attention=Plan(attention_data=4)).costs
    one = Irregularities(chips=(ChipException(2, 0.5),))
    every = Irregularities(chips=tuple(ChipException(n, 0.5) for n in range(4)))
    usual, slow = machine_step(costs)[0], machine_step(costs, attention=one)[0]
    assert slow > 1.2 * usual
    assert slow == pytest.approx(machine_step(costs, attention=every)[0], rel=1e-9)
    assert machine_step(costs, ffn=one)[0] == pytest.approx(
        machine_step(costs, ffn=every)[0], rel=1e-9
    )


def test_jitter_slows_steps_and_repeats(pools):
    costs, jitter = pools(FAST, 2).costs, Irregularities(jitter=0.2)
    slow = machine_step(costs, attention=jitter, ffn=jitter)[0]
    assert slow > machine_step(costs)[0]
    assert slow == machine_step(costs, attention=jitter, ffn=jitter)[0]


@pytest.mark.parametrize("transfer", [SLOW, SHARED])
def test_links_carry_the_bytes_of_all_tokens(pools, transfer):
    """Each end of a link that each chip has, or the one link of all, is busy for its bytes."""
    costs, tally = pools(transfer, 2, ffn=Plan(tensor=4, expert=4)).costs, Tally()
    links = machine_step(costs)[1].traffic.links
    tally.batch_steps[DECODES.tokens] = 1
    busy = sum(seconds for name, (_, seconds, _) in links.items() if " to " in name)
    ends = 1 if transfer.per == "system" else 2
    assert busy * transfer.bandwidth == pytest.approx(ends * costs.sent(tally), rel=1e-9)
