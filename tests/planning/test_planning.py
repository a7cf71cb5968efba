"""Cuts into stages against all cuts there are; the fewest chips; limits and defaults."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim.cost.plan import DEGREES, Plan, PlanError
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.hardware.chip import Memory
from sim.hardware.topology import FullyConnected, Hierarchical, Link, Switch
from sim.inputs.errors import ScenarioError
from sim.planning.deployment import DeploymentParts, LimitOverrides, deploy
from sim.planning.fit_error import require_fit
from sim.planning.partition import BALANCE_CONTEXT, block_times
from sim.planning.search import smallest_plan
from sim.planning.single_request import time_single_request
from sim.scenario.scenario import read

WORK = Work(decodes=1, context=BALANCE_CONTEXT, logits=1)


def degrees(plan):
    return tuple(getattr(plan, degree) for degree in DEGREES)


def all_cuts(layout):
    """The layout under every cut into as many stages."""
    n, pipeline = len(layout.model.blocks), layout.plan.pipeline
    return [replace(layout, bounds=(0, *cuts)) for cuts in combinations(range(1, n), pipeline - 1)]


def room(layout):
    """Return the KV tokens for which the fullest stage has room; negative if weights do not fit."""
    return min(
        layout.room(s) / s.kv_per_token
        if s.kv_per_token
        else math.copysign(math.inf, layout.room(s))
        for s in layout.stages
    )


def slowest(layout):
    return Costs(layout).step(WORK).time.max()


def unevenness(layout):
    return (Costs(layout).step(WORK).time ** 2).sum()


def least(layouts, *keys):
    """Return the cuts that are least by the first key, of those by the second key, and so on."""
    for key in keys:
        values = [key(layout) for layout in layouts]
        limit = min(values) + 1e-9 * abs(min(values))
        layouts = [layout for layout, value in zip(layouts, values, strict=True) if value <= limit]
    return [layout.bounds for layout in layouts]


@pytest.fixture(scope="module")
def draw_deployment(make_model, make_chip, make_engine, make_deployment):
    """Return a deployment of a random model on chips of random size, both tight and roomy."""

    def make(draw, balance, tensor=1, pipeline=None):
        model = make_model(
            num_hidden_layers=draw(st.integers(1, 4)),
            intermediate_size=draw(st.sampled_from([64, 128, 512])),
            vocab_size=draw(st.sampled_from([64, 256, 2048])),
            tie_word_embeddings=draw(st.booleans()),
        )
        pipeline = pipeline or draw(st.integers(2, min(5, len(model.blocks))))
        tokens = draw(st.sampled_from([8, 500.5]))
        share = 2 * model.parameters / (pipeline * tensor)
        chip = make_chip(capacity=draw(st.sampled_from([0.9, 1.3, 1.6, 2, 3, 20])) * share + 2e4)
        engine = make_engine(
            step_overhead=draw(st.sampled_from([0.0, 2e-4, 1e-3])),
            memory_fraction=0.9,
            reserve=1000.0,
        )
        plan = Plan(tensor=tensor, pipeline=pipeline, balance=balance)
        return make_deployment(
            tensor * pipeline, tokens, plan, model=model, chip=chip, engine=engine
        ), tokens

    return make


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["time", "memory"]))
def test_stages_are_contiguous_and_hold_every_block_once(draw_deployment, data, balance):
    deployment, _ = draw_deployment(data.draw, balance)
    stages = deployment.layout.stages
    held = [block for stage in stages for block in range(stage.first, stage.last + 1)]
    assert len(stages) == deployment.layout.plan.pipeline
    assert held == list(range(len(deployment.layout.model.blocks)))
    assert all(stage.first <= stage.last for stage in stages)


@settings(max_examples=40)
@given(st.data())
def test_balanced_for_time_the_slowest_stage_comes_first_then_room_then_evenness(
    draw_deployment, data
):
    deployment, tokens = draw_deployment(data.draw, "time")
    fitting = [cut for cut in all_cuts(deployment.layout) if room(cut) >= tokens]
    assert deployment.fit.fits == bool(fitting)
    if fitting:
        assert deployment.layout.bounds in least(
            fitting, slowest, lambda cut: -room(cut), unevenness
        )


@settings(max_examples=40)
@given(st.data())
def test_balanced_for_memory_room_comes_first_then_the_slowest_stage_then_evenness(
    draw_deployment, data
):
    deployment, tokens = draw_deployment(data.draw, "memory")
    cuts = all_cuts(deployment.layout)
    assert deployment.fit.fits == (max(map(room, cuts)) >= tokens)
    if deployment.fit.fits:
        assert deployment.layout.bounds in least(cuts, lambda cut: -room(cut), slowest, unevenness)


def test_of_equally_fast_cuts_the_evenest_is_taken(make_deployment, make_model):
    """One stage has attention and an MLP in every cut.

    A second such stage would be no slower, but less even.
    """
    small = make_model(num_hidden_layers=3, intermediate_size=64, vocab_size=64)
    assert make_deployment(5, model=small).layout.bounds == (0, 2, 4, 5, 6)


def test_a_stages_time_is_that_of_its_blocks_and_of_the_gather_before_them(make_deployment, lossy):
    """The times of blocks balance stages, without the gather that opens each but the first."""
    deployment = make_deployment(6, plan=Plan(tensor=2), engine=lossy)
    layout, costs = deployment.layout, deployment.costs
    latency = lossy.collective_latency + 2 * lossy.collective_latency_per_chip
    gather = layout.topology.all_gather(range(2), 64 * 2, latency, lossy.collective_efficiency)
    times = block_times(Costs(replace(layout, bounds=(0,))), WORK)
    for stage, time in zip(layout.stages, costs.step(WORK).time, strict=True):
        blocks = sum(times[b] for b in layout.model.blocks[stage.first : stage.last + 1])
        assert blocks + (gather if stage.first else 0) == pytest.approx(time)


@settings(max_examples=40)
@given(st.data())
def test_the_fewest_chips_hold_the_model_and_one_stage_fewer_does_not(
    draw_deployment, make_deployment, data
):
    deployment, tokens = draw_deployment(data.draw, "time", pipeline=1)
    layout = deployment.layout

    def fits(tensor, pipeline):
        parts = {"model": layout.model, "chip": layout.chip, "engine": layout.engine}
        return make_deployment(tensor * pipeline, tokens, Plan(tensor=tensor), **parts).fit.fits

    fewest = smallest_plan(deployment.space)
    plans = [
        (t * p, t, p)
        for t in (1, 2, 3, 4)
        for p in range(1, len(layout.model.blocks) + 1)
        if (fewest is None or t * p <= fewest.chips) and fits(t, p)
    ]
    if plans:
        assert fewest.chips == min(plans)[0]
        assert (fewest.chips, fewest.tensor, fewest.pipeline) in plans
    else:
        assert fewest is None


def test_seventy_billion_parameters_take_324_chips_whoever_asks():
    """Tensor 12 x pipeline 27: fewer than the 328 of powers of two."""
    parts = ["systems.lpu.plan={tensor: 8, weights: int8, activations: int8, kv: fp16, head: int8}"]
    parts += [
        "workload={kind: closed, users: 1, requests: 1, prompt: 500 token, output: 100 token}"
    ]
    scenario = read("llama2-70b-lpu-vs-h100", parts)
    hint = smallest_plan(scenario.deploy("lpu").space)
    assert (hint.chips, hint.tensor, hint.pipeline) == (324, 12, 27)
    searched = read(
        "llama2-70b-lpu-vs-h100", [parts[0].replace("tensor: 8", "search: chips"), parts[1]]
    ).deploy("lpu")
    assert searched.fit.fits
    assert degrees(searched.layout.plan) == degrees(hint) == degrees(smallest_plan(searched.space))


@settings(max_examples=30)
@given(
    capacity=st.floats(3e4, 4e5),
    chips=st.integers(1, 30),
    tensor=st.sampled_from([1, 2, 4]),
    limit=st.none() | st.integers(4, 30),
    host=st.booleans(),
    routed=st.booleans(),
)
@example(capacity=80096.0, chips=24, tensor=1, limit=None, host=False, routed=True)
def test_the_search_for_the_fewest_chips_and_the_hint_agree(
    make_model, make_chip, make_deployment, tensor, **drawn
):
    """The hint is the same for every plan.

    If the search finds nothing, the system needs more chips than it has.
    """
    link = Link(latency=1e-6, bandwidth=1e9)
    topology = Switch(link=link, **({"limit": drawn["limit"]} if drawn["limit"] else {}))
    chip = make_chip(drawn["capacity"], topology=topology)
    if drawn["host"]:
        slow = Memory(capacity=4 * drawn["capacity"], bandwidth=1e6)
        chip = chip.model_copy(update={"memory": chip.memory | {"host": slow}})
    routed = (
        {"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2}
        if drawn["routed"]
        else {}
    )
    parts = {"model": make_model(**routed), "chip": chip}
    hint = smallest_plan(make_deployment(tensor, plan=Plan(tensor=tensor), **parts).space)
    try:
        found = make_deployment(drawn["chips"], plan=Plan(search="chips"), **parts)
    except ValueError:
        assert hint is None or hint.chips > min(drawn["chips"], drawn["limit"] or math.inf)
        return
    if found.fit.fits:
        assert degrees(hint) == degrees(found.layout.plan)
    else:
        assert hint is None or hint.chips > drawn["chips"]


def test_the_fewest_chips_are_those_that_the_topology_joins(make_deployment, make_chip):
    """Five chips hold: table and attention, three times MLP and attention, MLP and head.

    Tensor 2 would need six chips, tensor 4 eight.
    """
    link = Link(latency=1e-6, bandwidth=1e9)
    free, joined = (
        make_deployment(chip=make_chip(capacity=1e5, topology=Switch(link=link, **limit)))
        for limit in ({}, {"limit": 4})
    )
    assert degrees(smallest_plan(free.space)) == (1, 1, 1, 5, 1)
    assert smallest_plan(joined.space) is None


def test_what_does_not_fit_is_refused_with_what_would_do(make_deployment, make_chip):
    deployment = make_deployment(chip=make_chip(capacity=2e5))
    hint = smallest_plan(deployment.space)
    chips, tensor, pipeline = hint.chips, hint.tensor, hint.pipeline
    with pytest.raises(
        PlanError,
        match=rf"needs 404.\d kB .* has 200 kB; {chips} chips would do "
        rf"\(tensor {tensor}, pipeline {pipeline}\)",
    ):
        require_fit(deployment)
    require_fit(make_deployment(chips, plan=Plan(tensor=tensor), chip=make_chip(capacity=2e5)))


def test_where_nothing_would_do_it_says_so(make_deployment, make_chip):
    with pytest.raises(PlanError, match="no number of them would do"):
        require_fit(make_deployment(chip=make_chip(capacity=1e4)))


def test_limits_default_to_what_fits_and_what_the_slots_carry(make_deployment):
    deployment = make_deployment(4, plan=Plan(slots=2), token_budget=16)
    limits = deployment.limits
    assert (limits.micro_batches, limits.token_budget, limits.sequences, limits.context) == (
        2,
        16,
        32,
        4096,
    )
    assert limits.kv_tokens == deployment.fit.kv_tokens
    given_outright = make_deployment(kv_tokens=99, max_sequences=3).limits
    assert (given_outright.kv_tokens, given_outright.sequences) == (99, 3)


def test_more_sequences_than_the_slots_carry_would_starve_prompts(make_deployment):
    with pytest.raises(
        ValueError, match="got 17; expected at most 16, which 1 micro-batches of 16 tokens carry"
    ):
        make_deployment(max_sequences=17)


def test_more_kv_room_than_the_memory_holds_is_refused(make_deployment, make_engine):
    """1 MB less 361,600 B of weights, at 512 B a token.

    An engine with a reserve may still be given all of it.
    """
    engine = make_engine(memory_fraction=0.9, reserve=1e5)
    free = make_deployment(engine=engine)
    weights, each = free.layout.stages[0].weights, free.layout.stages[0].kv_per_token
    brim = int((1e6 - weights) // each)
    assert free.limits.kv_tokens < brim
    full = make_deployment(engine=engine, kv_tokens=brim)
    assert full.limits.kv_tokens == brim
    assert (
        f"kv_tokens {brim}: the engine's memory_fraction and reserve leave {free.limits.kv_tokens}"
        in full.warnings
    )
    with pytest.raises(
        ValueError,
        match=rf"got {brim + 1} token; expected at most {brim} token, .*; try leaving",
    ):
        make_deployment(engine=engine, kv_tokens=brim + 1)


def test_of_a_model_that_does_not_fit_that_is_said_whatever_kv_room_is_given(
    make_deployment, make_chip
):
    with pytest.raises(PlanError, match="does not fit"):
        require_fit(make_deployment(chip=make_chip(capacity=2e5), kv_tokens=10**9))


@pytest.mark.parametrize("kv_tokens", [1000, 130, 99])
def test_a_plan_counts_the_sequences_that_the_given_kv_room_holds(make_deployment, kv_tokens):
    deployment = make_deployment(kv_tokens=kv_tokens)
    assert (
        deployment.sequences(100)[0]
        == kv_tokens // 100
        == deployment.limits.kv_tokens // deployment.limits.kv_tokens_needed(100)
    )
    assert deployment.sequences(100)[1] == make_deployment().sequences(100)[1]


def test_lone_times_do_not_ask_for_room_or_context(make_deployment):
    """What one request of any length would take, whatever the limits on many."""
    tight = make_deployment(kv_tokens=10)
    assert time_single_request(tight, 5000, 20) == time_single_request(make_deployment(), 5000, 20)


# Searching for a plan.


def test_the_fastest_plan_is_no_slower_than_any_other_that_was_tried(make_deployment):
    found = make_deployment(8, plan=Plan(search="speed"))
    best, *others = [trial for trial in found.tried if trial.fits]
    assert all(best.tpot <= other.tpot for other in others)
    assert {trial.tensor * trial.pipeline * trial.replicas for trial in found.tried} == {8}
    plan = found.layout.plan
    assert (plan.tensor, plan.pipeline, plan.replicas) == (
        best.tensor,
        best.pipeline,
        best.replicas,
    )
    for tensor in (1, 2, 4):
        other = make_deployment(8, plan=Plan(tensor=tensor))
        assert (
            time_single_request(found, 16, 8).tpot <= time_single_request(other, 16, 8).tpot * 1.02
        )  # trials are estimated, by even cuts


def test_the_fewest_chips_of_those_there_are(make_deployment, make_chip):
    found = make_deployment(8, chip=make_chip(1.2e5), plan=Plan(search="chips"))
    assert found.fit.fits
    assert found.chips == min(trial.chips for trial in found.tried if trial.fits) < 8


def test_where_no_plan_fits_the_fullest_chip_is_shown(make_deployment, make_chip):
    found = make_deployment(2, chip=make_chip(5e4), plan=Plan(search="speed"))
    assert not found.fit.fits
    assert not any(trial.fits for trial in found.tried)
    with pytest.raises(PlanError, match="does not fit"):
        require_fit(found)


@pytest.mark.parametrize("given", [{"tensor": 2}, {"pipeline": 1, "replicas": 2}])
def test_degrees_are_given_or_searched_not_both(make_deployment, given):
    with pytest.raises(ValueError, match=f"which finds them; try leaving {', '.join(given)} out"):
        make_deployment(2, plan=Plan(search="speed", **given))


def test_a_search_says_what_stops_it(make_deployment):
    with pytest.raises(ValueError, match="got nvme; expected a memory of"):
        make_deployment(2, plan=Plan(search="speed", weights_in="nvme"))


def test_weights_that_overflow_a_memory_of_their_own_are_named_with_it(make_deployment, make_chip):
    memories = {
        "hbm": Memory(capacity=1e9, bandwidth=1e9),
        "host": Memory(capacity=1e4, bandwidth=1e6, holds=()),
    }
    chip = make_chip().model_copy(update={"memory": memories})
    with pytest.raises(PlanError, match=r"needs 361\.6 kB for weights in its host and has 10 kB"):
        require_fit(make_deployment(chip=chip, plan=Plan(weights_in="host")))


def test_auto_is_short_for_the_fastest():
    scenario = read("llama3-8b-lpu-vs-h100", ["systems.lpu.plan=auto", "workload.requests=2"])
    assert scenario.systems["lpu"].plan.search == "speed"
    with pytest.raises(ScenarioError, match="got 'autoo'; expected auto or a mapping; try plan"):
        read("llama3-8b-lpu-vs-h100", ["systems.lpu.plan=autoo"])


def test_ranks_that_lie_differently_each_go_their_own_way(make_model, make_chip, make_engine):
    """Three chips per rank on nodes of four: the first rank is in one node, the second in two."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 16}
    model = make_model(model_type="mixtral", num_local_experts=6, num_experts_per_tok=2, **heads)
    inside, outside = Link(latency=1e-6, bandwidth=1e9), Link(latency=1e-5, bandwidth=1e9)
    nodes = Hierarchical(levels=(FullyConnected(link=inside, chips=4), Switch(link=outside)))
    plan = Plan(tensor=3, attention_data=2)
    chip = make_chip(capacity=1e9, topology=nodes)
    parts = DeploymentParts(model, chip, 6, make_engine(), plan)
    deployment = deploy(parts, 64, overrides=LimitOverrides(token_budget=16))
    (exchange,) = deployment.costs.collectives.of_block(deployment.layout.model.blocks[1], 1, 0)
    assert [way[0] for way in exchange.algorithms] == ["one-shot", "hierarchical"]
    assert exchange.time == deployment.layout.topology.all_reduce(
        exchange.groups[1], exchange.nbytes
    )


def test_weights_come_over_the_host_link(make_deployment, make_chip):
    """All chips load at once, so the fullest decides."""
    loaded = make_deployment(3, plan=Plan(pipeline=3), chip=make_chip(host_link=1e6))
    assert (
        loaded.load
        == loaded.fit.weights / 1e6
        == max(stage.weights for stage in loaded.layout.stages) / 1e6
    )
    assert make_deployment().load is None
