"""A drafter on other chips: the sum of both systems, and two groups of sequences that take turns."""

from dataclasses import replace

import pytest
import simpy
from hypothesis import example, given
from hypothesis import strategies as st

from sim.cost.draft_link import DraftExchange, DraftLink
from sim.cost.energy import Tally, usage
from sim.cost.plan import Plan
from sim.cost.remote_draft import RemoteDraftCosts, StepParts, drafts_of, pass_paths, paths
from sim.cost.step import Costs
from sim.cost.system_costs import step_terms
from sim.cost.terms import TIME, weighted_sum
from sim.cost.work import Work, decodes_at
from sim.hardware.engine import Launch
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.planning.remote_draft import deploy_with_drafter
from sim.planning.single_request import time_single_request
from sim.serving.step_draws import StepDraws

WINDOW = 24
NO_LINK = DraftLink(bandwidth=1e40)
SLOW = DraftLink(bandwidth=1e6, latency=3e-5, sends="logits")


@pytest.fixture(scope="module")
def drafted(make_model, make_chip, lossy, speculate):
    """The small model and a drafter of two layers on other chips, with what a test changes."""

    def make(link=NO_LINK, groups=1, windowed=False, tokens=3, chips=2, **drafter):
        types = ("sliding_attention", "full_attention") * 2
        window = {"sliding_window": WINDOW}
        model = make_model(**window, layer_types=types) if windowed else make_model()
        small = {"num_hidden_layers": 2} | drafter.pop("small", {})
        small |= (window | {"layer_types": types[:2]}) if windowed else {}
        engine = lossy.model_copy(update={"draft_sequence_overhead": 1e-5})
        of = speculate(tokens, method="draft", drafter=make_model(**small))
        chip, on = make_chip(fp16=1e10), drafter.pop("chips_of", 2)
        plan = drafter.pop("plan", Plan(tensor=chips))
        own = DeploymentParts(model, chip, chips, engine, plan, None, replace(of, apart=True))
        other = DeploymentParts(
            of.model,
            drafter.pop("chip", chip),
            on,
            drafter.pop("engine", engine),
            drafter.pop("draft_plan", Plan(tensor=on)),
        )
        limits = LimitOverrides(token_budget=drafter.pop("budget", 64), **drafter)
        lengths, exchange = (64, 32), DraftExchange(link, groups)
        return deploy_with_drafter(
            (own, LimitOverrides(token_budget=64)), (other, limits), exchange, lengths
        )

    return make


def works():
    return [decodes_at(n, context, WINDOW, 4) for n, context in ((1, 9.0), (5, 20.0), (8, 60.0))]


@pytest.mark.parametrize("windowed", [False, True])
def test_on_equal_chips_without_a_link_a_step_is_that_of_a_local_drafter(drafted, windowed):
    """The drafter's engine has a step of its own, whose overhead comes on top."""
    apart = drafted(windowed=windowed).costs
    local = Costs(replace(apart.layout, speculation=replace(apart.layout.speculation, apart=False)))
    assert local.drafter
    overhead = apart.layout.engine.step_overhead
    assert overhead > 0
    for work in works():
        time, growth, _ = apart.line(work)
        assert time == pytest.approx(local.line(work)[0] + overhead, rel=1e-12)
        assert growth == pytest.approx(local.line(work)[1], rel=1e-12)


def test_both_compute_prompts_at_the_same_time(drafted):
    prompt = Work(0, 0.0, 16, 1, 16 * 20.0, 28.0, 1)
    for budget in (64, 4):  # the drafter is the slower one if it takes four tokens at a time
        costs = drafted(SLOW, 2, budget=budget).costs
        alone = Costs(replace(costs.layout, speculation=None)).line(prompt)[0]
        reading = costs.remote.time(replace(prompt, logits=0))[0]
        spread = costs.remote.prompts_of(replace(prompt, rank_prompt=4))  # on ranks of the model
        assert costs.remote.time(spread)[0] == reading
        assert costs.line(prompt)[0] == pytest.approx(max(alone, reading), rel=1e-12)
        assert (reading > alone) == (budget == 4)
    ranks = drafted(draft_plan=Plan(attention_data=2)).costs.remote
    dealt = (replace(prompt, rank_prompt=tokens) for tokens in (8, 16))
    half, whole = (ranks.time(ranks.prompts_of(work))[0] for work in dealt)
    assert half < whole  # two ranks share the prompts, or one has all of them


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": 8},
        {"draft_plan": Plan(pipeline=2), "budget": 8},
        {"windowed": True, "draft_plan": Plan(pipeline=2)},
        {"plan": Plan(pipeline=2)},
        {"plan": Plan(pipeline=4), "chips": 4, "windowed": True},
    ],
)
def test_the_rows_add_up_to_the_step(drafted, groups, changes):
    costs = drafted(SLOW, groups, **changes).costs
    mixed = Work(3, 90.0, 5, 1, 5 * 20, 22, 4 * 3 + 1, 60.0, 90, 20, width=4)
    prompt = Work(0, 0.0, 8, 1, 8 * 30, 34, 1, windowed_attended=160, windowed_cached=24)
    for work in (*works(), mixed, prompt):
        rows = sum(float(row.seconds * row.repeats.sum()) for row in costs.rows(work))
        assert rows == pytest.approx(costs.line(work)[0], rel=1e-12)
        assert step_terms(costs, work)[:, TIME].sum() == pytest.approx(rows, rel=1e-12)
        causes = sum(
            float(row.repeats.sum()) * cause.seconds
            for row in costs.rows(work)
            for cause in row.causes()
        )
        assert causes == pytest.approx(rows, rel=1e-9)


times = st.sampled_from([0.0, 1e-6, 3e-6, 1e-5, 1e-4, 2e-4])


@example([1e-6], 1e-6, 0.0, 1e-4, 2)
@given(st.lists(times, min_size=1, max_size=4), times, times, times, st.integers(1, 2))
def test_the_closed_form_is_groups_that_pass_a_drafter_a_link_and_the_stages_of_the_model(
    stages, drafts, latency, busy, groups
):
    """Each group drafts, sends, is verified and returns. The way back carries no bytes here."""
    own = StepParts(sum(stages), max(stages), 0.0, drafts, 2 * latency + busy, busy)
    closed = max(weighted_sum(own, path) for path in paths(groups, groups))
    steps = 24
    machines = [(drafts, 0.0), (busy, latency), *((seconds, 0.0) for seconds in stages)]
    machines[-1] = (stages[-1], latency)
    ends = _turns(machines, groups, steps)
    period = (ends[steps - 1] - ends[steps // 2 - 1]) / (steps - steps // 2)
    assert period == pytest.approx(closed, rel=1e-9, abs=1e-15)
    serial = weighted_sum(own, paths(1, 1)[0])
    assert serial * (1 - 1e-12) <= closed <= groups * serial * (1 + 1e-12)


def _turns(machines: list[tuple[float, float]], groups: int, steps: int) -> list[float]:
    """Return when the first group ends each of its steps. machines: seconds, and what follows."""
    env, ends = simpy.Environment(), []
    places = [(simpy.Resource(env), *own) for own in machines]

    def group(first):
        for _ in range(steps):
            for machine, seconds, later in places:
                with machine.request() as turn:
                    yield turn
                    yield env.timeout(seconds)
                yield env.timeout(later)
            if first:
                ends.append(env.now)

    for number in range(groups):
        env.process(group(number == 0))
    env.run()
    return ends


@given(st.lists(times, min_size=1, max_size=4), times, st.integers(1, 5), st.integers(1, 4))
def test_drafts_are_pieces_that_pass_all_stages_once_for_each_draft(stages, hop, pieces, passes):
    counts, of_hops = pass_paths(len(stages), pieces, passes)
    closed = max(passes * (counts @ stages + of_hops * hop * len(stages)))
    assert closed == pytest.approx(_last_end(stages, hop, pieces, passes), rel=1e-9, abs=1e-15)


def _last_end(stages: list[float], hop: float, pieces: int, passes: int) -> float:
    """Return when the last piece ends its passes. Stages serve one piece, first come, first served."""
    env = simpy.Environment()
    machines = [simpy.Resource(env) for _ in stages]

    def piece():
        for _ in range(passes):
            for machine, seconds in zip(machines, stages, strict=True):
                with machine.request() as turn:
                    yield turn
                    yield env.timeout(seconds)
                yield env.timeout(hop)

    for _ in range(pieces):
        env.process(piece())
    env.run()
    return env.now


def test_a_second_sequence_delays_the_drafts_by_one_turn_of_the_slowest_stage(drafted):
    """Three passes on three stages, a sequence at a time. Many sequences queue in each pass."""
    drafter = drafted(
        small={"num_hidden_layers": 6}, chips_of=3, draft_plan=Plan(pipeline=3), budget=4
    ).costs.remote
    time = {n: drafter.time(decodes_at(n, 20.0, None, 4))[0] for n in (1, 2, 60, 61)}
    turn = (time[61] - time[60]) / 3
    assert turn > time[1] / 9
    assert time[2] - time[1] == pytest.approx(turn, rel=1e-9)


def test_two_groups_are_never_twice_as_fast_as_one(drafted):
    one, two = (drafted(SLOW, groups).costs for groups in (1, 2))
    for work in works():
        groups, half = two.micro_batch(work)
        serial, turns = one.line(work)[0], two.line(work)[0]
        assert groups == min(2, work.decodes)
        assert serial / 2 <= turns <= groups * one.line(half)[0] * (1 + 1e-12)


def test_a_drafter_and_a_link_that_take_no_time_leave_the_verification(
    drafted, make_chip, make_engine
):
    fast = make_chip(bandwidth=1e30, fp16=1e40)
    costs = drafted(engine=make_engine(), chip=fast, chips_of=1).costs
    plain = replace(costs.layout, speculation=None)
    for work in works():
        assert costs.line(work)[0] == pytest.approx(Costs(plain, widths=(4,)).line(work)[0])


def test_a_pass_goes_through_all_stages_and_back(drafted):
    """One draft for each sequence is one pass, of two tokens: that of a model on two stages."""
    costs = drafted(tokens=1, draft_plan=Plan(pipeline=2)).costs
    drafter = Costs(costs.remote.layout, widths=(2,))
    work = Work(5, 100.0, logits=5, width=2)
    stages = drafter.step(work).time.sum() + drafter.hops(10).sum() + drafter.back
    engine = costs.layout.engine
    more = 5 * (engine.draft_sequence_overhead - engine.sequence_overhead)
    assert drafter.back > 0
    assert costs.remote.time(work)[0] == pytest.approx(stages + more, rel=1e-12)


def test_a_model_on_stages_verifies_on_one_after_the_other(drafted):
    """One group takes the time of a single micro-batch on all stages. Two groups share them."""
    one, two = (drafted(SLOW, groups, plan=Plan(pipeline=2)).costs for groups in (1, 2))
    plain = Costs(replace(one.layout, speculation=None), widths=(4,))
    for work in works():
        stages = plain.step(work).time
        whole = float(stages.sum() + plain.hops(work.tokens).sum())
        drafts = one.remote.time(drafts_of(work))
        assert one.line(work)[0] == pytest.approx(
            whole + drafts[0] + one.trip(work.decodes), rel=1e-12
        )
        micro_batches, half = two.micro_batch(work)
        assert two.line(work)[0] >= micro_batches * max(plain.step(half).time) * (1 - 1e-12)
    assert one.layout.stages[0].weights < drafted(chips=1).layout.stages[0].weights


def test_times_grow_evenly_until_another_part_is_the_longest(drafted, make_model):
    """2 drafts overtake model + drafter + link at 60 positions, by the latency that is chosen."""
    plain = drafted(budget=8, small={"num_hidden_layers": 3}, draft_plan=Plan(pipeline=2)).costs
    half = plain.parts_of(decodes_at(4, 60.0, None, 4))[0]
    assert half.drafts > half.verify
    link = DraftLink(bandwidth=1e40, latency=(half.drafts - half.verify) / 2)
    costs = RemoteDraftCosts(plain.model, plain.remote.layout, DraftExchange(link, 2))
    ends = set()
    for context in range(1, 120):
        time, growth, holds = costs.line(decodes_at(8, context, None, 4))
        ends.add(context + holds if holds < 1e6 else None)
        for step in {min(holds, 300) - 1, min(holds, 300) // 2}:
            later = costs.line(decodes_at(8, context + step, None, 4))[0]
            assert later == pytest.approx(time + step * growth, rel=1e-9)
    assert 61 in ends


@pytest.mark.parametrize("bound", ["stage", "drafter", "link"])
def test_two_groups_take_twice_the_time_of_what_is_slowest(drafted, make_chip, make_engine, bound):
    """The drafter has the prompts of both groups, too. The last stage has the head."""
    chips = {"stage": make_chip(bandwidth=1e30, fp16=1e40), "drafter": make_chip(fp16=1e6)}
    link = DraftLink(bandwidth=1.0) if bound == "link" else NO_LINK
    chip, engine = chips.get(bound, make_chip()), make_engine()
    costs = drafted(link, 2, plan=Plan(pipeline=2), chip=chip, engine=engine, chips_of=1).costs
    for work in (*works()[1:], Work(6, 90.0, 16, 2, 16 * 20.0, 56.0, 26, width=4)):
        part = work.part(2)
        own = {
            "stage": max(costs.model.step(part).time),
            "drafter": sum(
                costs.remote.time(of(part))[0] for of in (drafts_of, costs.remote.prompts_of)
            ),
            "link": part.decodes * max(costs.bytes_out, costs.bytes_back),
        }
        assert costs.line(work)[0] == pytest.approx(2 * own[bound], rel=1e-12)
        rows = sum(float(row.seconds * row.repeats.sum()) for row in costs.rows(work))
        assert rows == pytest.approx(2 * own[bound], rel=1e-12)


def test_the_longer_message_keeps_the_link_busy(drafted):
    """One draft of a sequence is shorter than what returns."""
    costs = drafted(DraftLink(bandwidth=1.0), 2, tokens=1).costs
    assert costs.bytes_back > costs.bytes_out
    assert costs.line(decodes_at(8, 20.0, None, 2))[0] == 2 * 4 * costs.bytes_back


def test_a_stage_that_grows_faster_becomes_the_slowest(drafted, make_chip, make_engine):
    """That of two layers overtakes the one with the head."""
    fast, engine = make_chip(bandwidth=1e30, fp16=1e40), make_engine()
    costs = drafted(
        NO_LINK, 2, plan=Plan(pipeline=3), chips=3, chip=fast, engine=engine, chips_of=1
    ).costs
    slowest = [int(costs.model.step(decodes_at(4, n, None, 4)).time.argmax()) for n in (1, 2000)]
    assert slowest[0] != slowest[1]
    context = 1
    while context < 2000:
        now, more, holds = costs.parts_of(decodes_at(4, context, None, 4))
        further = min(holds, 2000) - 1
        later = costs.parts_of(decodes_at(4, context + further, None, 4))[0]
        assert later.stage == pytest.approx(now.stage + further * more.stage, rel=1e-9)
        context += holds


@pytest.mark.parametrize("acceptance", [0.0, 1.0])
def test_without_acceptance_a_token_takes_a_whole_step(drafted, serve_on, acceptance):
    deployment = drafted(SLOW)
    draws = StepDraws((acceptance,) * 3, seed=1)
    rows = serve_on(deployment, [(0.0, 8, 13)], draws=draws)
    steps = 12 if not acceptance else 3
    contexts = [8 + 1 + (1 if not acceptance else 4) * step for step in range(steps)]
    seconds = sum(deployment.costs.line(decodes_at(1, c, WINDOW, 4))[0] for c in contexts)
    assert rows.steps.tolist() == [steps]
    assert rows.last_token[0] - rows.first_token[0] == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"windowed": True},
        {"draft_plan": Plan(pipeline=2), "budget": 8},
        {"plan": Plan(pipeline=2)},
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_leap_is_its_steps(drafted, serve_on, groups, changes):
    deployment = drafted(SLOW, groups, **changes)
    requests = [(0.001 * n, 5 + n % 7, 20 + 9 * (n % 5)) for n in range(12)]
    draws = StepDraws((0.8, 0.5, 0.3), seed=3)
    leap, step = (serve_on(deployment, requests, leap=leap, draws=draws) for leap in (True, False))
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)
    assert leap.tallies[0].batch_steps == step.tallies[0].batch_steps


def test_the_chips_that_draft_hold_the_drafter_and_limit_the_sequences(drafted, serve_on):
    roomy, tight = drafted(), drafted(kv_tokens=100)
    model = replace(roomy.layout, speculation=None)
    assert roomy.layout.stages[0].weights == model.stages[0].weights
    assert roomy.layout.stages[0].first_token == model.stages[0].first_token
    assert roomy.drafter.layout.stages[0].weights == roomy.drafter.fit.weights > 0
    assert roomy.chips == roomy.own_chips + roomy.drafter.chips == 4
    assert roomy.limits.kv_tokens == min(roomy.fit.kv_tokens, roomy.drafter.fit.kv_tokens)
    assert tight.limits.kv_tokens == 100
    peak = serve_on(tight, [(0.0, 20, 20)] * 6, draws=StepDraws((0.5,) * 3, 0)).kv_peak
    assert 43 <= peak[0] <= 100


def test_the_engine_of_the_drafter_limits_the_sequences_too(drafted, lossy):
    """Both run all sequences. With limits for each rank, as many as all ranks run."""
    few = lossy.model_copy(update={"max_sequences": 3})
    assert drafted().limits.sequences > 6
    assert drafted(engine=few).limits.sequences == 3
    ranks = Plan(tensor=1, attention_data=2)
    assert drafted(engine=few, draft_plan=ranks).limits.sequences == 6


def test_both_parts_work_as_much_as_a_local_drafter(drafted, serve_on):
    """Without prompts beside decodes, FLOPs and bytes add up to those on equal chips."""
    deployment = drafted()
    costs, of = deployment.costs, deployment.layout.speculation
    rows = serve_on(deployment, [(0.0, 8, 20)], draws=StepDraws((0.5,) * 3, 0))
    local = Costs(replace(costs.layout, speculation=replace(of, apart=False)))
    whole = usage(local, rows.tallies[0])
    parts = [usage(*part) for part in costs.spread(rows.tallies[0])]
    for kind in ("flops", "nbytes"):
        one, two = (getattr(part, kind) for part in parts)
        for key, amount in getattr(whole, kind).items():
            assert one[key] + two.get(key, 0.0) == pytest.approx(amount, rel=1e-12)
    assert parts[0].link_bytes + parts[1].link_bytes == pytest.approx(whole.link_bytes, rel=1e-12)
    assert costs.sent(rows.tallies[0]) == rows.steps[0] * (3 * 4 + 2 * 4)


@pytest.mark.parametrize("sequences", [2, 8])
def test_two_groups_read_their_weights_twice(drafted, sequences):
    one, two = (drafted(groups=groups).costs for groups in (1, 2))
    decodes = 5 * sequences
    tally = Tally(decode_steps=5, decodes=decodes, context=decodes * 9.0, logits=decodes)
    tally.batch_steps[sequences * 4] = 5
    used = [[usage(*part).nbytes["sram"] for part in costs.spread(tally)] for costs in (one, two)]
    reads, drafts = zip(*used, strict=True)
    weights = sum(one.layout.weights(block) for block in one.layout.model.blocks[1:])
    assert reads[1] - reads[0] == pytest.approx(5 * 2 * weights, rel=0.02)  # without norms
    small = one.remote.layout
    weights = sum(small.weights(block) for block in small.model.blocks[1:])
    assert drafts[1] - drafts[0] == pytest.approx(3 * 5 * 2 * weights, rel=0.02)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_search_finds_the_fastest_of_all_plans_with_a_replica_for_each_drafter(
    drafted, replicas, groups
):
    """Every plan of four chips is deployed on its own. The drafter is the same for all."""
    of_drafter = Plan(tensor=1, replicas=replicas)
    parts = {"chips": 4, "chips_of": replicas, "draft_plan": of_drafter}
    found = drafted(SLOW, groups, plan=Plan(search="speed"), **parts)
    times = {}
    for tensor in (1, 2, 4):
        depth, rest = divmod(4 // tensor, replicas)
        if rest or not depth:
            continue
        plan = Plan(tensor=tensor, pipeline=depth, replicas=replicas)
        other = drafted(SLOW, groups, plan=plan, **parts)
        times[tensor, depth, replicas] = time_single_request(other, 32, 32).tpot
    plan, best = found.layout.plan, found.tried[0]
    fastest = min(times, key=times.get)
    assert (plan.tensor, plan.pipeline, plan.replicas) == fastest
    assert {trial[1:2] + trial[4:6] for trial in found.tried} == set(times)
    assert best.tpot == pytest.approx(times[fastest], rel=0.02)  # at 64 tokens, and even cuts
    assert time_single_request(found, 32, 32).tpot == times[fastest]


def test_the_fewest_chips_are_those_of_each_drafter_together(drafted, make_chip):
    one, two = (
        drafted(
            plan=Plan(search="chips"),
            chips=8,
            chip=make_chip(fp16=1e10),
            chips_of=n,
            draft_plan=Plan(replicas=n),
        )
        for n in (1, 2)
    )
    assert two.own_chips == 2 * one.own_chips <= 8
    assert two.drafter.chips == 2


@pytest.fixture(scope="module")
def launched(drafted):
    """A deployment whose hosts launch layers: 4 of the model, 2 of the drafter in 3 passes."""

    def make(decode, prefill=0.0, graphs=0, link=SLOW, groups=1, **changes):
        deployment = drafted(link, groups, **changes)
        launch = {"layer_launch": Launch(decode=decode, prefill=prefill, graphs=graphs)}
        layouts = deployment.layout, deployment.drafter.layout
        own, other = (replace(of, engine=of.engine.model_copy(update=launch)) for of in layouts)
        costs = RemoteDraftCosts(Costs(own), other, DraftExchange(link, groups))
        return replace(deployment, costs=costs)

    return make


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_slow_hosts_launch_the_layers_of_all_passes(launched, groups, stages):
    """L seconds a layer: 4 L to verify, 6 L to draft. A prompt of both takes the longer launch."""
    plan = Plan(tensor=2 // stages, pipeline=stages)
    costs = launched(1.0, 2.0, link=NO_LINK, groups=groups, plan=plan).costs
    overhead = costs.layout.engine.step_overhead
    assert costs.line(decodes_at(1, 9.0, None, 4))[0] == pytest.approx(10 + overhead, rel=1e-6)
    many = 10 + overhead if groups == 1 else 2 * (6 + overhead)
    assert costs.line(decodes_at(8, 9.0, None, 4))[0] == pytest.approx(many, rel=1e-6)
    assert costs.line(Work(0, 0.0, 8, 1, 8 * 30, 34, 1))[0] == pytest.approx(8, rel=1e-6)


def test_slow_hosts_of_both_take_as_long_as_that_of_a_local_drafter(launched):
    apart = launched(1e-2, link=NO_LINK).costs
    layout = apart.model.layout
    local = Costs(replace(layout, speculation=replace(layout.speculation, apart=False)))
    for work in works():
        whole = local.line(work)[0] + layout.engine.step_overhead
        assert apart.line(work)[0] == pytest.approx(whole, rel=1e-12)


def test_graphs_need_no_launches_of_passes_with_few_tokens(launched, drafted):
    """Five sequences: 20 tokens to verify and in the first pass, 5 in each further pass."""
    work, plain = decodes_at(5, 20.0, None, 4), drafted(NO_LINK).costs
    verify, drafts = plain.model.line(work)[0], plain.remote.time(drafts_of(work))[0]
    times = {n: launched(1.0, graphs=n, link=NO_LINK).costs.line(work)[0] for n in (4, 5, 19, 20)}
    overhead = plain.layout.engine.step_overhead
    assert times[4] == pytest.approx(10 + overhead, rel=1e-6)
    assert times[5] == times[19] == pytest.approx(6 + overhead, rel=1e-6)
    assert times[20] == pytest.approx(verify + drafts, rel=1e-6)
    prompt = Work(0, 0.0, 8, 1, 8 * 30, 34)
    reading = [launched(1.0, 2.0, n, NO_LINK).costs.remote.time(prompt)[0] for n in (7, 8)]
    assert reading[0] == pytest.approx(2 * 2.0 + overhead)
    assert reading[1] == pytest.approx(plain.remote.time(prompt)[0])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"plan": Plan(pipeline=2)}, {"draft_plan": Plan(pipeline=2), "budget": 8}]
)
def test_chips_outgrow_their_hosts(launched, serve_on, groups, changes):
    """Rows add up, growth holds, and leaps are steps, before and after chips are the slower ones."""
    link = DraftLink(bandwidth=1e9, latency=3e-5)
    deployment = launched(2.5e-4, 3e-4, link=link, groups=groups, **changes)
    costs, waits = deployment.costs, set()
    mixed = Work(3, 90.0, 5, 1, 5 * 20, 22, 4 * 3 + 1, 60.0, 90, 20, width=4)
    for work in (*(decodes_at(8, n, WINDOW, 4) for n in (5, 60, 200, 700)), mixed):
        time, growth, holds = costs.line(work)
        rows = list(costs.rows(work))
        assert sum(float(row.seconds * row.repeats.sum()) for row in rows) == pytest.approx(time)
        assert step_terms(costs, work)[:, TIME].sum() == pytest.approx(time, rel=1e-9)
        hosts = [row for row in rows if row.part is None and not row.ideal and row.seconds]
        waits.add(any("launching" in cause.what for row in hosts for cause in row.causes()))
        if not work.prompt_tokens:
            context = work.context / 8 + min(holds, 500) - 1
            later = costs.line(decodes_at(8, context, WINDOW, 4))[0]
            assert later == pytest.approx(time + (min(holds, 500) - 1) * growth, rel=1e-9)
    assert True in waits
    requests = [(0.001 * n, 5 + n % 7, 20 + 9 * (n % 5)) for n in range(6)]
    draws = StepDraws((0.8, 0.5, 0.3), seed=3)
    leap, step = (serve_on(deployment, requests, leap=leap, draws=draws) for leap in (True, False))
    assert leap.last_token == pytest.approx(step.last_token, rel=1e-11)
