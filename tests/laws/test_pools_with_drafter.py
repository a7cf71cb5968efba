"""Attention and FFN pools whose drafter is on a third kind of chips: the sum of what each law has."""

from dataclasses import replace

import pytest

from sim.cost.attention_ffn import AttentionFfnCosts
from sim.cost.draft_link import DraftExchange, DraftLink
from sim.cost.energy import usage
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.cost.remote_draft import drafts_of
from sim.cost.system_costs import step_latency, step_terms
from sim.cost.terms import TIME
from sim.cost.work import Work, decodes_at
from sim.planning.attention_ffn import PoolSharing, deploy_with_ffn
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.planning.draft_gain import draft_gain
from sim.planning.remote_draft import add_drafter, deploy_with_drafter
from sim.serving.step_draws import StepDraws

EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
NO_TRANSFER, TRANSFER = LayerTransfer(bandwidth=1e40), LayerTransfer(bandwidth=1e8, latency=2e-6)
NO_LINK = DraftLink(bandwidth=1e40)
SLOW = DraftLink(bandwidth=1e6, latency=3e-5, sends="logits")
LENGTHS, LIMITS = (64, 32), LimitOverrides(token_budget=64)


@pytest.fixture(scope="module")
def parts(make_model, make_chip, lossy, speculate):
    """The parts of a model, of its FFN pool, and of a drafter of two layers."""
    engine = lossy.model_copy(update={"draft_sequence_overhead": 1e-5})
    model, chip = make_model(**EXPERTS), make_chip(fp16=1e10)
    of = speculate(3, method="draft", drafter=make_model(num_hidden_layers=2))
    drafts, tensor = replace(of, apart=True), Plan(tensor=2)
    own = DeploymentParts(model, chip, 2, engine, tensor, chip.topology, drafts)
    return own, replace(own, speculation=None), replace(own, model=of.model, speculation=None)


@pytest.fixture(scope="module")
def drafted(parts):
    """Both pools with the drafter."""

    def make(link=SLOW, groups=1, micro_batches=2, transfer=TRANSFER, drafter=None, **limits):
        sharing, own = PoolSharing(micro_batches, transfer), (LIMITS, LimitOverrides())
        pools = deploy_with_ffn(parts[0], parts[1], sharing, LENGTHS, own)
        other = (drafter or parts[2], replace(LIMITS, **limits))
        return add_drafter(pools, other, DraftExchange(link, groups), LENGTHS, LimitOverrides())

    return make


def works():
    mixed = Work(3, 90.0, 5, 1, 5 * 20, 22, 4 * 3 + 1, 60.0, 90, 20, width=4)
    prompt = Work(0, 0.0, 8, 1, 8 * 30, 34, 1)
    return [
        *(decodes_at(n, c, None, 4) for n, c in ((1, 9.0), (5, 20.0), (8, 60.0))),
        mixed,
        prompt,
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_without_transfers_and_turns_two_pools_are_the_undivided_system(drafted, parts, groups):
    pools = drafted(groups=groups, micro_batches=1, transfer=NO_TRANSFER)
    undivided = deploy_with_drafter(
        (parts[0], LIMITS), (parts[2], LIMITS), DraftExchange(SLOW, groups), LENGTHS
    )
    for work in works():
        time, growth, _ = pools.costs.line(work)
        assert time == pytest.approx(undivided.costs.line(work)[0], rel=1e-12)
        assert growth == pytest.approx(undivided.costs.line(work)[1], rel=1e-12, abs=1e-18)
    assert draft_gain(pools, 50.0).speedup == pytest.approx(draft_gain(undivided, 50.0).speedup)


def test_drawn_experts_of_a_model_are_those_of_the_model_alone(parts, serve_on):
    """The drafter and the link add the same time to each step. A leap has the same draws."""
    whole = (parts[0], LIMITS), (parts[2], LIMITS), DraftExchange(SLOW), LENGTHS
    deployment, work = deploy_with_drafter(*whole), decodes_at(3, 30.0, None, 4)
    layout = replace(deployment.layout, expert_seed=(7,))
    drawn, alone = (costs.on(layout) for costs in (deployment.costs, deployment.costs.model))
    times = [(drawn.line(work), alone.line(work)[0]) for _ in range(20)]
    more = deployment.costs.line(work)[0] - deployment.costs.model.line(work)[0]
    assert [line[0] for line, _ in times] == pytest.approx([time + more for _, time in times])
    assert len({time for _, time in times}) > 1
    again = [costs.on(layout) for costs in (drawn, alone)]
    steps = [step_latency(costs, work) for costs in again for _ in range(20)]
    assert steps == pytest.approx([line[0] for line, _ in times] + [time for _, time in times])
    assert {holds for (_, _, holds), _ in times} == {1}
    requests = [(0.001 * n, 5 + n % 7, 20 + 9 * (n % 5)) for n in range(12)]
    leap, step = (
        serve_on(
            replace(deployment, costs=deployment.costs.on(layout)),
            requests,
            leap=leap,
            draws=StepDraws((0.8, 0.5, 0.3), seed=3),
            limits=replace(deployment.limits, kv_tokens=300),
        )
        for leap in (True, False)
    )
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)


def test_costs_on_their_own_layout_take_the_same_steps(drafted, parts):
    """Pools, turns, link and drafter stay as they are. The terms of each kind's step add up to its time."""
    exchange = DraftExchange(SLOW, 2)
    whole = deploy_with_drafter((parts[0], LIMITS), (parts[2], LIMITS), exchange, LENGTHS).costs
    pools = drafted(groups=2, micro_batches=3).costs
    for costs in (whole, whole.model, pools, pools.model):
        same = costs.on(costs.layout)
        for work in works():
            assert same.line(work) == costs.line(work)
            assert step_latency(same, work) == pytest.approx(costs.line(work)[0], rel=1e-12)


def test_without_its_drafts_the_pools_are_those_that_have_none(drafted, parts):
    own = replace(parts[0], speculation=None)
    plain = deploy_with_ffn(
        own, parts[1], PoolSharing(2, TRANSFER), LENGTHS, (LIMITS, LimitOverrides())
    )
    for sequences in (1, 5, 8):
        work = decodes_at(sequences, 30.0, None)
        costs = drafted(groups=2).costs
        time, _, _ = costs.model.on(replace(costs.layout, speculation=None)).line(work)
        assert time == pytest.approx(plain.costs.line(work)[0], rel=1e-12)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_drafter_and_a_link_that_take_no_time_leave_the_verification(
    drafted, parts, make_chip, make_engine, micro_batches
):
    """So would a drafter without cost on the attention pool."""
    fast = replace(parts[2], chip=make_chip(bandwidth=1e30, fp16=1e40), engine=make_engine())
    free = replace(fast, chips=1, plan=Plan(), topology=None)
    costs = drafted(NO_LINK, 1, micro_batches, drafter=free).costs
    for work in works():
        verified = costs.model.line(work)[0]
        assert costs.line(work)[0] == pytest.approx(verified, rel=1e-12)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_groups_take_turns_on_the_pools_and_the_drafter(drafted, micro_batches):
    """T: all layers of the visits' cycles. Two groups: max(2 T, 2 drafts, T + drafts + trip, 2 sent)."""
    for link in (NO_LINK, SLOW, DraftLink(bandwidth=1e40, latency=1.0)):
        one, two = (drafted(link, groups, micro_batches).costs for groups in (1, 2))
        assert isinstance(one.model, AttentionFfnCosts)
        for sequences in (1, 2, 7):
            work = decodes_at(sequences, 40.0, None, 4)
            groups, half = two.micro_batch(work)
            closed = []
            for costs, own, turns in ((one, work, 1), (two, half, groups)):
                cycles, drafts = costs.model.line(own)[0], costs.remote.time(drafts_of(own))[0]
                whole = cycles + drafts + costs.trip(own.decodes)
                sent = own.decodes * costs.bytes_out / link.bandwidth
                closed.append(max(turns * cycles, turns * drafts, turns * sent, whole))
            for costs, seconds in zip((one, two), closed, strict=True):
                assert costs.line(work)[0] == pytest.approx(seconds, rel=1e-12)
            assert closed[0] / 2 <= closed[1] * (1 + 1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_rows_add_up_and_times_grow_evenly(drafted, groups, micro_batches):
    costs = drafted(SLOW, groups, micro_batches).costs
    for work in works():
        time, growth, holds = costs.line(work)
        rows = list(costs.rows(work))
        assert sum(float(row.seconds * row.repeats.sum()) for row in rows) == pytest.approx(time)
        assert step_terms(costs, work)[:, TIME].sum() == pytest.approx(time, rel=1e-12)
        causes = sum(row.repeats.sum() * cause.seconds for row in rows for cause in row.causes())
        assert causes == pytest.approx(time, rel=1e-9)
        if not work.prompt_tokens:
            further = min(holds, 200) - 1
            context = work.context / work.decodes + further
            later = costs.line(decodes_at(work.decodes, context, None, 4))[0]
            assert later == pytest.approx(time + further * growth, rel=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_leap_is_its_steps(drafted, serve_on, groups):
    deployment = drafted(SLOW, groups)
    requests = [(0.001 * n, 5 + n % 7, 20 + 9 * (n % 5)) for n in range(12)]
    draws = StepDraws((0.8, 0.5, 0.3), seed=3)
    leap, step = (serve_on(deployment, requests, leap=leap, draws=draws) for leap in (True, False))
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)
    assert leap.tallies[0].batch_steps == step.tallies[0].batch_steps


def test_pools_and_drafter_work_as_much_as_the_undivided_system(drafted, parts, serve_on):
    """With one micro-batch, the weights are read as often. Bytes on links are others."""
    pools = drafted(micro_batches=1)
    exchange = DraftExchange(SLOW)
    undivided = deploy_with_drafter((parts[0], LIMITS), (parts[2], LIMITS), exchange, LENGTHS)
    rows = serve_on(pools, [(0.0, 8, 20)], draws=StepDraws((0.5,) * 3, 0))
    *halves, drafter = (usage(*part) for part in pools.costs.spread(rows.tallies[0]))
    whole, of_drafter = (usage(*part) for part in undivided.costs.spread(rows.tallies[0]))
    for operands, flop in whole.flops.items():
        assert sum(half.flops.get(operands, 0.0) for half in halves) == pytest.approx(flop)
    read = sum(half.nbytes["sram"] for half in halves)
    assert read == pytest.approx(whole.nbytes["sram"], rel=1e-9)
    assert drafter == of_drafter


def test_the_drafter_limits_the_sequences_and_each_chip_counts_once(drafted):
    roomy, tight = drafted(), drafted(kv_tokens=100)
    assert roomy.chips == 2 + 2 + 2
    assert [other.layout.model.id for other in roomy.others] == [
        roomy.ffn.layout.model.id,
        roomy.drafter.layout.model.id,
    ]
    assert tight.limits.kv_tokens == 100 < roomy.limits.kv_tokens
