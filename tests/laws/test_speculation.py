"""Speculation: what drafts cost and yield, on one stage and on pipelines, in leaps and step by step."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.energy import Tally, usage
from sim.cost.plan import Plan
from sim.cost.program import computing_seconds
from sim.cost.speculation import DraftPlan
from sim.cost.system_costs import step_terms
from sim.cost.terms import HOPS, TIME
from sim.cost.work import Work, decodes_at
from sim.planning.single_request import time_single_request
from sim.serving.micro_batch import MicroBatch
from sim.serving.policy import Policies, least_loaded, prefill_first
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.request import Request
from sim.serving.service import Service, serve_fleet
from sim.serving.step_draws import StepDraws
from sim.studies.bound import goodput_bound
from sim.studies.typical_request import equal_requests
from sim.workload.requests import RequestBatch
from sim.workload.slo import SLO

WINDOW = 24
LAYOUTS = {
    "one chip": (1, Plan(), {}),
    "one chip, layers with windows": (1, Plan(), {"windowed": True}),
    "three stages": (3, Plan(pipeline=3), {}),
    "three stages of two ranks, layers with windows": (
        6,
        Plan(attention_data=2, pipeline=3),
        {"windowed": True},
    ),
    "two chips that wait for their host": (2, Plan(tensor=2), {"launched": True}),
}


@pytest.fixture(scope="module")
def deployments(make_deployment, make_model, lossy, eager, speculate):
    """(layout, drafts) -> deployment."""

    def make(chips, plan, drafts, windowed=False, launched=False):
        types = ("sliding_attention", "full_attention") * 2
        model = make_model(sliding_window=WINDOW, layer_types=types) if windowed else make_model()
        engine = eager if launched else lossy
        engine = engine.model_copy(update={"draft_sequence_overhead": 1e-5})
        of = speculate(drafts, model=model) if drafts else None
        return make_deployment(chips, plan=plan, model=model, engine=engine, speculation=of)

    return {
        (name, drafts): make(chips, plan, drafts, **kind)
        for name, (chips, plan, kind) in LAYOUTS.items()
        for drafts in (0, 1, 3)
    }


KEYS = st.tuples(st.sampled_from(sorted(LAYOUTS)), st.sampled_from([1, 3]))


@given(KEYS, st.integers(1, 4), st.integers(1, 500), st.booleans())
def test_the_terms_of_a_verify_step_are_its_time(deployments, key, sequences, context, prompt):
    costs = deployments[key].costs
    work = decodes_at(sequences, context, costs.layout.model.window, costs.layout.width)
    if prompt:
        work.prompt_tokens, work.chunks, work.attended, work.cached = 4, 1, 50.0, 14.0
        work.windowed_attended, work.windowed_cached = 50.0, 14.0
    terms = step_terms(costs, work)[:, TIME]
    step = costs.step(work).time
    hops = costs.hops(costs.layout.ranked(work))
    assert terms.sum(axis=1) - hops == pytest.approx(step)
    assert terms[:, HOPS] == pytest.approx(hops)
    parts = costs.parts(work)
    layers = zip(costs.layers, parts.attention, strict=True)
    whole = costs.body(*costs.layout.step_size(work)) + sum(layer * time for layer, time in layers)
    whole[-1] += parts.sampling
    assert (step >= whole * (1 - 1e-12)).all()
    if costs.stages == 1:
        assert costs.line(work)[0] == pytest.approx(step.item())


@given(KEYS, st.integers(1, 4), st.integers(30, 500), st.floats(1.0, 4.0))
def test_further_verify_steps_grow_by_the_positions_that_are_added(
    deployments, key, sequences, context, rate
):
    costs = deployments[key].costs
    work = decodes_at(sequences, context, costs.layout.model.window, costs.layout.width)
    work.added = rate * sequences
    time, growth, holds = costs.step(work)
    later = min(holds, 1000) - 1
    grown = replace(work, context=work.context + later * work.added)
    assert time + later * np.asarray(growth) == pytest.approx(costs.step(grown).time, rel=1e-9)


def test_a_verify_step_reads_weights_and_cache_once(make_deployment, make_chip, speculate):
    """On a chip that only reads, a step with three drafts reads three positions more, and drafts."""
    chip = make_chip(fp16=1e30)
    plain = make_deployment(chip=chip).costs
    costs = make_deployment(chip=chip, speculation=speculate(3)).costs
    work = decodes_at(1, 100.0, None, width=4)
    drafts = [row for row in costs.rows(work) if row.part == costs.layout.model.blocks[-1]]
    kv = costs.layout.stages[0].kv_per_token - costs.layout.draft_stage.kv_per_token
    target = costs.step(work).time - sum(row.repeats * row.seconds for row in drafts)
    head = computing_seconds(plain, Work(1, 100.0, logits=1))[plain.layout.model.blocks[-1]]
    activations = 3 * sum(m.activations for c in plain.blocks.values() for m in c.dense)
    assert target < plain.step(decodes_at(1, 103.0, None)).time - head + 4 * activations / 1e9
    assert target > plain.step(decodes_at(1, 103.0, None)).time - head
    assert kv == plain.layout.stages[0].kv_per_token


# What a run yields.


def one_request(serve_on, deployment, output, draws, **options):
    return serve_on(deployment, [(0.0, 8, output)], draws=draws, **options)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_rejected_drafts_cost_a_step_for_each_token_and_accepted_ones_save_them(
    deployments, serve_on, layout
):
    deployment = deployments[layout, 3]
    none, every = (
        one_request(serve_on, deployment, 30, StepDraws((chance,) * 3, seed=1))
        for chance in (0.0, 1.0)
    )
    assert none.steps.tolist() == [29]
    assert every.steps.tolist() == [math.ceil(29 / 4)]  # the last one yields one token of four
    for rows in (none, every):
        assert rows.gaps.count == rows.steps[0]  # ITL counts bursts
    assert none.last_token[0] > every.last_token[0]
    contexts = [9 + number for number in range(29)]
    window, costs = deployment.limits.window, deployment.costs
    steps = [decodes_at(1, context, window, width=4) for context in contexts]
    seconds = [costs.step(step).time.sum() + costs.hops(4).sum() + costs.back for step in steps]
    assert none.gaps.total == pytest.approx(sum(seconds))


def test_constant_costs_give_leviathans_speedup(
    make_deployment, make_chip, make_engine, make_model, serve_on, speculate
):
    """A layer of target and drafter takes 1 ms, a draft of a sequence 0.5 ms, and all else nothing."""
    chip = make_chip(bandwidth=1e30, fp16=1e40)
    drafter = make_model(num_hidden_layers=1)
    engine = make_engine(layer_overhead=1e-3, draft_sequence_overhead=5e-4)
    chance, drafts, relative_cost = 0.5, 2, 1.5 / 4
    of = speculate(drafts, chance, "draft", drafter)
    parts = {"chip": chip, "engine": engine}
    plain, faster = make_deployment(**parts), make_deployment(**parts, speculation=of)
    output = 1 + 7 * 100  # 1.75 tokens a step
    base = one_request(serve_on, plain, output, None)
    rows = one_request(serve_on, faster, output, StepDraws(of.acceptance, seed=None))
    tpots = [(r.last_token[0] - r.first_token[0]) / (output - 1) for r in (base, rows)]
    expected = (1 - chance ** (drafts + 1)) / (1 - chance) / (drafts * relative_cost + 1)
    assert tpots[0] / tpots[1] == pytest.approx(expected, rel=1e-9)
    single = time_single_request(faster, 8, output)
    assert single.tpot == pytest.approx(tpots[1], rel=1e-9)
    assert sum(single.terms.values()) == pytest.approx(tpots[1], rel=1e-9)


@pytest.mark.parametrize("layout", ["one chip, layers with windows", "three stages"])
@pytest.mark.parametrize("output", [3, 20])
def test_the_parts_of_an_unloaded_token_add_up_to_its_time(deployments, layout, output):
    """Contexts grow by the tokens of a step, up to the last one."""
    single = time_single_request(deployments[layout, 3], 8, output)
    assert sum(single.terms.values()) == pytest.approx(single.tpot, rel=1e-9)


def test_drawn_steps_have_the_mean_of_their_acceptance():
    acceptance = (0.92, 0.66, 0.24)
    chances = np.array([1 - 0.92, 0.92 - 0.66, 0.66 - 0.24, 0.24])
    mean = float(chances @ [1, 2, 3, 4])
    deviation = math.sqrt(float(chances @ np.array([1, 2, 3, 4]) ** 2) - mean**2)
    draws = StepDraws(acceptance, seed=5)
    counts = np.array([draws.steps(number, 1000) for number in range(200)])
    steps = 1000 / mean
    error = deviation * math.sqrt(steps) / mean / math.sqrt(200)
    assert counts.mean() == pytest.approx(steps, abs=3 * error + 0.5)  # the last step is cut
    assert counts.std() == pytest.approx(error * math.sqrt(200), rel=0.2)
    assert draws.steps(3, 1000) == counts[3]
    better = StepDraws((0.95, 0.7, 0.24), seed=5)  # the same luck
    assert all(better.steps(number, 50) <= draws.steps(number, 50) for number in range(50))


@st.composite
def runs(draw):
    gaps = st.sampled_from([0.0, 1e-3]) | st.floats(0, 0.05, allow_subnormal=False)
    drawn = draw(
        st.lists(st.tuples(gaps, st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=12)
    )
    arrivals = np.cumsum([gap for gap, _, _ in drawn])
    lengths = [pair[1:] for pair in drawn]
    return {
        "requests": [(at, *pair) for at, pair in zip(arrivals, lengths, strict=True)],
        "users": draw(st.none() | st.integers(1, 5)),
        "budget": draw(st.integers(4, 30)),
        "kv_tokens": draw(st.integers(2, 400)),
        "batching": draw(st.sampled_from([None, prefill_first])),
        "reserve": draw(st.booleans()),
        "seed": draw(st.none() | st.integers(0, 3)),
    }


@settings(max_examples=40)
@given(KEYS, runs())
def test_a_leap_is_its_steps_on_the_same_draws(deployments, serve_on, key, drawn):
    deployment = deployments[key]
    width, budget = deployment.limits.width, drawn["budget"]
    limits = replace(
        deployment.limits,
        token_budget=budget,
        sequences=deployment.limits.micro_batches * (budget // width),
        kv_tokens=drawn["kv_tokens"],
        context=130,
    )
    batching = {"batching": drawn["batching"]} if drawn["batching"] else {}
    policies = Policies(reserve=drawn["reserve"], **batching)
    options = {"limits": limits, "policies": policies}
    options["draws"] = StepDraws((0.8, 0.5, 0.3)[: width - 1], drawn["seed"])
    leap, step = (
        serve_on(deployment, drawn["requests"], drawn["users"], leap=leap, **options)
        for leap in (True, False)
    )
    assert leap.reason == step.reason
    assert leap.kv_peak == step.kv_peak <= [limits.kv_tokens]
    assert (leap.steps == step.steps).all()
    clock = 4 * np.spacing(np.nanmax(step.last_token, initial=1.0))
    for column in ("arrival", "admitted", "first_token", "last_token"):
        assert getattr(leap, column) == pytest.approx(
            getattr(step, column), rel=1e-11, abs=clock, nan_ok=True
        )
    assert leap.gaps.count == step.gaps.count == step.steps[step.finished].sum()
    assert leap.gaps.total == pytest.approx(step.gaps.total, rel=1e-11)
    assert leap.busy[0] == pytest.approx(step.busy[0], rel=1e-11)
    assert max(step.tallies[0].batch_steps, default=0) <= budget
    used = [usage(deployment.costs, rows.tallies[0]) for rows in (leap, step)]
    assert used[0].nbytes == pytest.approx(used[1].nbytes, rel=1e-9)
    assert used[0].flops == pytest.approx(used[1].flops, rel=1e-9)


@pytest.mark.parametrize("leap", [True, False])
def test_the_only_sequence_is_admitted_again_after_its_preemption(deployments, serve_on, leap):
    """Its windows save room that decodes take at first, so it gives way to itself."""
    deployment = deployments["one chip, layers with windows", 1]
    limits = replace(deployment.limits, token_budget=4, sequences=2, kv_tokens=28, context=130)
    options = {"policies": Policies(reserve=False), "draws": StepDraws((0.8,), None)}
    rows = serve_on(deployment, [(0.0, 15, 13)], limits=limits, leap=leap, **options)
    assert rows.finished.all()
    assert rows.preemptions.tolist() == [1]


@pytest.mark.parametrize("layout", ["one chip", "three stages"])
def test_preempted_drafts_free_their_room_and_keep_their_pace(deployments, layout):
    """Six requests that do not fit together, of which some are computed again."""
    deployment, n, output = deployments[layout, 3], 6, 40
    limits = replace(deployment.limits, kv_tokens=150, sequences=6)
    config = ReplicaConfig(deployment.costs, limits, Policies(reserve=False))
    config = replace(config, draws=StepDraws((0.8, 0.5, 0.3), seed=2))
    asked = RequestBatch(np.zeros(n), np.full(n, 12), np.full(n, output))
    runs = [Service(asked, [config], least_loaded, leap=leap) for leap in (True, False)]
    leap, step = (service.run() for service in runs)
    cache = runs[0].fleet.replicas[0].kv_cache
    assert (cache.kv_used, cache.sequences_used) == (0, 0)
    assert leap.kv_peak == step.kv_peak <= [150]
    assert leap.preemptions.tolist() == step.preemptions.tolist()
    assert leap.preemptions.sum() > 1
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)
    assert leap.gaps.count == step.gaps.count == leap.steps.sum()
    drawn = [config.draws.steps(number, output - 1) for number in range(n)]
    # A preempted request has one step without drafts, and one that it cuts short.
    assert (np.abs(leap.steps - drawn) <= 2 * leap.preemptions).all()


# Energy and memory.


def test_the_flops_and_bytes_of_a_run_are_those_of_its_steps(
    make_deployment, make_model, make_engine, serve_on, speculate
):
    """Two drafts, all rejected: of a prompt of 8 and 5 tokens, four steps verify three tokens."""
    of = speculate(2)
    deployment = make_deployment(speculation=of)
    rows = one_request(serve_on, deployment, 5, StepDraws((0.0, 0.0), seed=0))
    model, drafter, head = make_model(), of.model, 64 * 256
    contexts = [9, 10, 11, 12]
    prompt = 8 * 9 / 2
    verified = sum(3 * context + 1 + 2 for context in contexts)
    target = (8 + 4 * 3) * (model.flops_per_token() - 2 * head) + (1 + 4 * 3) * 2 * head
    target += 4 * 4.0 * 4 * 16 * (prompt + verified)  # four layers, four heads of 16
    layer = drafter.flops_per_token() - 2 * head
    drafts = (8 + 4 * 3 + 4) * layer + 4 * 2 * 2 * head
    drafts += 4.0 * 4 * 16 * (prompt + verified + sum(contexts))
    used = usage(deployment.costs, rows.tallies[0])
    assert sum(used.flops.values()) == pytest.approx(target + drafts)
    assert rows.tallies[0].decode_steps == rows.tallies[0].decodes == 4


def test_the_last_stage_holds_the_drafter(make_deployment, speculate, make_model):
    plain = make_deployment(3, plan=Plan(pipeline=3))
    for drafter, shares in ((None, True), (make_model(num_hidden_layers=2), False)):
        of = speculate(3, method="draft" if drafter else "eagle", drafter=drafter)
        layout = replace(plain.layout, speculation=of)
        before, after = plain.layout.stages, layout.stages
        assert after[:-1] == before[:-1]
        weights = 2.0 * (of.model.parameters - (2 * 64 * 256 + 64 if shares else 0))
        assert after[-1].weights - before[-1].weights == weights
        held = after[-1].kv_per_token - before[-1].kv_per_token
        assert held == 2.0 * of.model.kv_per_token()


@pytest.mark.parametrize("of_target", [None, "bf16"])
def test_the_drafters_own_precisions_decide_its_bytes(
    make_deployment, make_model, speculate, of_target
):
    """Eight bits halve the drafter's layers, an own head of 8 bits its tables; the target stays."""
    of = speculate(3, method="draft", drafter=make_model(num_hidden_layers=2))
    plan = Plan(weights=of_target, head=of_target)

    def held(**own):
        options = replace(of, plan=DraftPlan(**own))
        layout = make_deployment(1, plan=plan, speculation=options).layout
        drafter = layout.drafter
        middle = sum(drafter.weights(block) for block in drafter.model.blocks[1:-1])
        whole = sum(drafter.weights(block) for block in drafter.model.blocks)
        return middle, whole - middle, layout.stages[0].weights - whole

    layers, tables, target = held(weights="bf16", head="bf16")
    norms = 2 * 2 * 2 * 64  # two norms of 64 numbers in each of two layers keep 16 bits
    assert held() == (layers, tables, target)
    assert held(weights="fp8", head="bf16")[1:] == (tables, target)
    assert held(weights="fp8", head="bf16")[0] <= layers / 2 + norms
    assert held(weights="bf16", head="fp8")[0] == layers
    assert held(weights="bf16", head="fp8")[1] < 0.6 * tables


def test_a_request_needs_room_for_its_drafts(make_deployment, serve_on, speculate):
    deployment = make_deployment(speculation=speculate(3))
    for kv_tokens, reason in ((8 + 5 + 3, ""), (8 + 5 + 2, "16 tokens exceed the KV room of 15")):
        limits = replace(deployment.limits, kv_tokens=kv_tokens)
        rows = one_request(serve_on, deployment, 5, StepDraws((0.5,) * 3, 0), limits=limits)
        assert rows.reason == [reason]


def test_no_tally_of_drafts_without_decodes(make_deployment, speculate):
    costs = make_deployment(speculation=speculate(2)).costs
    tally = Tally()
    tally.add(Work(prompt_tokens=4, chunks=1, attended=10.0, cached=4.0, logits=1), 1)
    drafter = costs.drafter.layout
    blocks = [drafter.weights(block) for block in drafter.model.blocks[1:-1]]
    plain = replace(costs.layout, speculation=None)
    more = usage(costs, tally).nbytes["sram"] - usage(type(costs)(plain), tally).nbytes["sram"]
    assert more > sum(blocks) - 2.0 * (64 * 4)  # its layer's matrices, without norms


@pytest.mark.parametrize("layout", ["one chip", "three stages"])
@pytest.mark.parametrize("at", [0.0031, 0.0074, 0.0123])
def test_a_failure_amid_drafts_leaves_the_tally_of_its_steps(deployments, layout, at):
    """Sequences are lost amid a leap; their work up to then counts, the last step in part."""
    deployment = deployments[layout, 3]
    outages = (Outage(at=at, lasts=0.01),)
    requests = RequestBatch(np.array([0.0, 0.001]), np.array([20, 9]), np.array([30, 40]))
    draws = StepDraws((0.8, 0.5, 0.3), seed=0)
    config = ReplicaConfig(deployment.costs, deployment.limits, outages=outages, draws=draws)
    leap, step = (
        serve_fleet(requests, [config], least_loaded, leap=leap) for leap in (True, False)
    )
    assert leap.retries.tolist() == step.retries.tolist() == [1, 1]
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)
    for name in ("decode_steps", "decodes", "context", "logits"):
        assert getattr(leap.tallies[0], name) == pytest.approx(
            getattr(step.tallies[0], name), rel=1e-9
        )
    assert leap.tallies[0].decode_steps >= step.steps.max()


@pytest.mark.parametrize("users", [1, 3, 5])
def test_chunks_beside_verified_drafts_leave_them_their_tokens(deployments, serve_on, users):
    """Prompts of many chunks wait while sequences decode four tokens in each step."""
    deployment = deployments["three stages", 3]
    limits = replace(deployment.limits, token_budget=16, kv_tokens=4000, context=400, sequences=12)
    requests = [(0.001 * i, 3, 90) for i in range(users)] + [(0.0103, 195, 5), (0.0104, 161, 5)]
    draws = StepDraws((0.5, 0.3, 0.1), seed=1)
    leap, step = (
        serve_on(deployment, requests, limits=limits, leap=leap, draws=draws)
        for leap in (True, False)
    )
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)
    assert leap.busy[0] == pytest.approx(step.busy[0], rel=1e-11)
    assert leap.tallies[0].batch_steps == step.tallies[0].batch_steps
    assert step.tallies[0].batch_steps[16] > 20  # else the case does not occur


def test_a_micro_batch_grows_by_mean_tokens_until_the_window():
    """What steps attend to adds up to what a sequence is tallied with, also where it overshoots."""
    batch, tally = MicroBatch(lambda step, at: None, window=WINDOW, width=4), Tally()
    requests = [
        Request(number, 0.0, prompt, output, 0, steps=steps, rate=(output - 1) / steps)
        for number, (prompt, output, steps) in enumerate([(10, 41, 16), (30, 12, 5), (3, 9, 3)])
    ]
    for request in requests:
        batch.join(request, 0.0)
    context = windowed = 0.0
    while batch.running:
        context, windowed = context + batch.context, windowed + batch.windowed
        batch.steps = 1
        for request in batch.advance(tally):
            batch.add_decoded(tally, request, request.steps)
    assert tally.context == pytest.approx(context)
    assert tally.windowed_context == pytest.approx(windowed)
    assert (tally.decode_steps, tally.decodes) == (16, 16 + 5 + 3)
    assert batch.context == batch.windowed == batch.added == batch.growing == 0
    assert not batch.window_full_steps


def test_the_bound_counts_the_tokens_of_drafts_and_the_output_of_a_step(
    make_deployment, make_chip, make_engine, make_model, speculate
):
    """Steps take 7 ms. A request has 10 of them for 40 tokens. Three have 168 tokens in 10 steps, 5 % more than the budget.

    Steps that are full of prompts, without drafts, take the rest.
    """
    of = speculate(3, 1.0, "draft", make_model(num_hidden_layers=1))
    deployment = make_deployment(
        chip=make_chip(capacity=1e9, bandwidth=1e30, fp16=1e40),
        engine=make_engine(layer_overhead=1e-3),
        speculation=of,
    )
    step, prompts = 4e-3 + 3 * 1e-3, 4e-3 + 1e-3
    more = 3 * (16 + 4 * 10) / (10 * 16) - 1
    slo = SLO(tpot=0.9 * step)  # a quarter of a step is a token
    assert goodput_bound(deployment, equal_requests(16, 41), slo) == pytest.approx(
        3 / 10 / (step + more * prompts), rel=1e-6
    )
