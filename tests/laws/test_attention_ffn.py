"""Attention and FFN pools: two resources that take turns, and the undivided system that they are without links."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.energy import Tally, energy, usage
from sim.cost.ffn_pool import FfnPool
from sim.cost.layer_cycle import POOLS_AND_LINKS, LayerTimes, critical_times
from sim.cost.layer_transfer import LayerTransfer
from sim.cost.plan import Plan
from sim.cost.shard_collectives import ShardCollectives
from sim.cost.system_costs import step_terms
from sim.cost.terms import TIME, weighted_sum
from sim.cost.work import Work, decodes_at
from sim.economics.owner_costs import Economics
from sim.hardware.chip import Memory
from sim.hardware.power import Power
from sim.hardware.topology import Hierarchical, Link, Switch
from sim.model.pool_parts import model_part
from sim.planning.attention_ffn import PoolSharing, deploy_with_ffn
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.planning.draft_gain import draft_gain
from sim.reliability.failures import Failures, Faults
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.scenario import Scenario
from sim.scenario.speculate import Draft, Speculate
from sim.scenario.system import Fleet, System
from sim.serving.policy import Policies
from sim.serving.service import serve
from sim.serving.step_draws import StepDraws
from sim.studies.accounts import energy_parts, total_capex
from sim.studies.explaining import explain
from sim.studies.file_numbers import file_numbers, with_change
from sim.studies.run import plan, run
from sim.studies.visits import first_visits
from sim.workload.arrivals import Listed, ListedRequest
from sim.workload.requests import RequestBatch

NOTHING = LayerTransfer(bandwidth=1e40)
SLOW = LayerTransfer(bandwidth=1e8, latency=2e-6, copies="rank", back="fp16", out="fp8")
FAST = LayerTransfer(bandwidth=1e12, latency=5e-5)
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
WINDOWS = {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2}
MODELS = {"dense": {}, "experts": EXPERTS, "windows": WINDOWS}
times = st.floats(1e-6, 1e-3)


@pytest.fixture(scope="module")
def pools(make_model, make_chip, lossy, speculate):
    """The small model on two pools, with what a test changes. drafts: of each step."""

    def make(
        changes=EXPERTS,
        micro_batches=2,
        transfer=SLOW,
        attention=4,
        ffn=4,
        expert=None,
        chip=None,
        drafts=0,
        pipeline=1,
        drafter=None,
        engine=None,
    ):
        changed = lossy.model_copy(update=engine or {})
        model, chip = make_model(**changes), chip or make_chip(fp16=1e10)
        plans = (
            Plan(tensor=attention),
            Plan(tensor=ffn // pipeline, expert=expert, pipeline=pipeline),
        )
        parts = [
            DeploymentParts(model, chip, chips, changed, plan, chip.topology)
            for chips, plan in zip((attention, ffn), plans, strict=True)
        ]
        if drafts:
            of = speculate(drafts, model=model, drafter=drafter)
            parts[0] = replace(parts[0], speculation=of)
        overrides = (LimitOverrides(token_budget=16), LimitOverrides())
        return deploy_with_ffn(*parts, PoolSharing(micro_batches, transfer), (64, 32), overrides)

    return make


def works(width=1):
    """Steps with decodes, with a chunk of a prompt, and with both. width: tokens of a sequence."""
    return (
        decodes_at(7, 40.0, 24, width),
        Work(0, 0.0, 8, 1, 8 * 30, 34, 1, windowed_attended=160, windowed_cached=24, width=width),
        Work(3, 90.0, 5, 1, 5 * 20, 22, 1 + 3 * width, 60.0, 90, 20, width=width),
    )


@pytest.mark.parametrize(("drafts", "draft_layers"), [(0, 0), (3, 0), (3, 3)])
@pytest.mark.parametrize(
    ("changes", "expert"), [({}, None), (WINDOWS, None), (EXPERTS, None), (EXPERTS, 4)]
)
def test_without_links_and_turns_two_pools_are_the_undivided_system(
    pools,
    make_deployment,
    make_model,
    make_chip,
    lossy,
    speculate,
    changes,
    expert,
    drafts,
    draft_layers,
):
    """Also with drafts, whose drafter is on the attention pool and verified through both."""
    model = make_model(**changes)
    drafter = make_model(num_hidden_layers=draft_layers) if draft_layers else None
    undivided = make_deployment(
        4,
        plan=Plan(tensor=4, expert=expert),
        model=model,
        chip=make_chip(fp16=1e10),
        engine=lossy,
        speculation=speculate(drafts, model=model, drafter=drafter) if drafts else None,
    )
    divided = pools(changes, 1, NOTHING, expert=expert, drafts=drafts, drafter=drafter)
    gains = [draft_gain(system, 50.0) for system in (divided, undivided)]
    assert (gains[0] is None) == (not drafts)
    if drafts:
        assert gains[0].step == pytest.approx(gains[1].step, rel=1e-12)
    for work in works(1 + drafts):
        one, two = undivided.costs.step(work), divided.costs.step(work)
        assert two.time == pytest.approx(one.time, rel=1e-12)
        assert two.growth == pytest.approx(one.growth, rel=1e-9, abs=1e-18)


@given(st.builds(LayerTimes, *[times] * 7), st.integers(1, 5), st.integers(1, 6))
def test_the_closed_form_is_a_flow_shop_that_jobs_pass_once_a_layer(given_times, jobs, layers):
    busy = min(given_times.out, given_times.out_busy), min(given_times.back, given_times.back_busy)
    own = given_times._replace(out_busy=busy[0], back_busy=busy[1])
    critical = critical_times(own, jobs)
    closed = layers * weighted_sum(own, critical.cycle) + weighted_sum(own, critical.fill)
    assert closed == pytest.approx(flow_shop(own, jobs, layers), rel=1e-9)
    drawn = first_visits(own, jobs, layers)[-1].end + own.back - own.back_busy
    assert drawn == pytest.approx(closed, rel=1e-9)


def flow_shop(own: LayerTimes, jobs: int, layers: int) -> float:
    """Each resource takes one job at a time, first come, first served; latencies only delay."""
    env = simpy.Environment()
    resources = {name: simpy.Resource(env) for name in POOLS_AND_LINKS}
    way = (
        ("attention", 0.0),
        ("out_busy", own.out - own.out_busy),
        ("ffn", own.overlapped),
        ("back_busy", own.back - own.back_busy),
    )

    def job():
        for _ in range(layers):
            for name, latency in way:
                with resources[name].request() as turn:
                    yield turn
                    yield env.timeout(getattr(own, name))
                yield env.timeout(latency)

    ends = [env.process(job()) for _ in range(jobs)]
    env.run(simpy.AllOf(env, ends))
    return env.now


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5])
def test_a_step_is_the_flow_shop_of_its_layers(pools, micro_batches, drafts):
    deployment = pools(micro_batches=micro_batches, drafts=drafts)
    costs, work = deployment.costs, decodes_at(15, 40.0, None, 1 + drafts)
    ((own, _),) = costs.step_layers(work).values()
    parts = costs.micro_batch(work)[0]
    assert parts == micro_batches
    assert costs.micro_batch(decodes_at(1, 40.0, None, 1 + drafts))[0] == 1  # one sequence
    outside = sum(float(row.repeats[0]) * row.seconds for row in costs.rows_once(work))
    shop = flow_shop(own, parts, deployment.layout.model.num_hidden_layers)
    assert costs.step(work).time[0] == pytest.approx(outside + shop, rel=1e-9)


@pytest.mark.parametrize(("drafts", "pipeline"), [(0, 1), (3, 1), (0, 2)])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_rows_add_up_to_the_step_and_growth_holds(pools, changes, drafts, pipeline):
    costs = pools(changes, micro_batches=3, drafts=drafts, pipeline=pipeline).costs
    for work in works(1 + drafts):
        time, growth, holds = costs.line(work)
        assert step_terms(costs, work)[:, TIME].sum() == pytest.approx(time, rel=1e-12)
        if work.prompt_tokens:
            continue
        steps = min(holds, 9)
        later = replace(work, context=work.context + (steps - 1) * work.decodes)
        assert costs.line(later)[0] == pytest.approx(time + (steps - 1) * growth, rel=1e-9)


@pytest.mark.parametrize(
    ("micro_batches", "pipeline", "binds"),
    [
        (2, 1, ["ffn", "latency", "latency", "attention"]),
        (3, 1, ["ffn", "attention"]),
        (3, 2, ["ffn", "ffn", "attention"]),
    ],
)
def test_a_step_grows_on_a_line_until_something_else_binds(pools, micro_batches, pipeline, binds):
    """Attention grows: first another pool binds, then nothing, where the fill also changes, then attention.

    Between two FFN stages attention binds earlier.
    """
    costs = pools(
        micro_batches=micro_batches, transfer=FAST, attention=1, ffn=pipeline, pipeline=pipeline
    ).costs
    start, found, passed = decodes_at(16, 1.0, None), [], 0
    while passed < 10_000:
        work = replace(start, context=start.context + 16 * passed)
        time, growth, holds = costs.line(work)
        found.append(costs.step_layers(work).popitem()[1][1].binds)
        for steps in (holds // 2, holds - 1):
            later = replace(work, context=work.context + 16 * min(steps, 10_000))
            assert costs.line(later)[0] == pytest.approx(
                time + min(steps, 10_000) * growth, rel=1e-9
            )
        passed += holds
    assert found == binds


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("kv_tokens", [72, 300])
def test_leaps_are_steps_also_with_preemption(pools, kv_tokens, drafts):
    deployment = pools(micro_batches=3, drafts=drafts)
    draws = StepDraws((0.7, 0.4), seed=1) if drafts else None
    limits = replace(deployment.limits, kv_tokens=kv_tokens)
    requests = RequestBatch(
        np.array([0.0, 0.0, 0.001, 0.02]), np.array([20, 5, 9, 30]), np.array([40, 9, 25, 3])
    )
    leapt, stepped = (
        serve(
            requests,
            deployment.costs,
            limits,
            policies=Policies(reserve=False),
            leap=leap,
            draws=draws,
        )
        for leap in (True, False)
    )
    assert (int(leapt.preemptions.sum()) > 0) == (kv_tokens == 72)
    assert leapt.last_token == pytest.approx(stepped.last_token, rel=1e-9)
    assert leapt.first_token == pytest.approx(stepped.first_token, rel=1e-9)


def test_faster_links_and_more_chips_of_the_slow_pool_never_slow_a_step(pools):
    work = decodes_at(16, 30.0, None)

    def step(**changes):
        return pools(**changes).costs.step(work).time[0]

    bandwidths = [
        step(transfer=SLOW.model_copy(update={"bandwidth": b})) for b in (1e5, 1e7, 1e8, 1e12)
    ]
    assert bandwidths == sorted(bandwidths, reverse=True)
    assert bandwidths[0] > 2 * bandwidths[-1]
    fast = {"transfer": NOTHING, "micro_batches": 3}
    ffn = [step(ffn=n, attention=4, **fast) for n in (1, 2, 4)]
    assert pools(ffn=1, **fast).costs.step_layers(work).popitem()[1][1].binds == "ffn"
    assert ffn == sorted(ffn, reverse=True)


def test_copies_are_those_of_the_ranks_with_a_token_of_its_experts(pools):
    """Of 8 experts on 4 ranks, 2 for each token: a rank is missed with 6 choose 2 of 8 choose 2."""
    costs = pools(expert=4).costs
    ((_, block),) = costs.layer_kinds
    ffn = costs.ffn.layout
    assert SLOW.copies_of(ffn, block) == pytest.approx(
        4 * (1 - math.comb(6, 2) / math.comb(8, 2)), rel=1e-12
    )
    assert NOTHING.copies_of(ffn, block) == 1.0
    every = [SLOW.model_copy(update={"copies": copies}) for copies in ("shard", "expert")]
    assert [transfer.copies_of(ffn, block) for transfer in every] == [4.0, 2.0]
    sent = [transfer.busy(costs.layout, ffn, block, 8, 8) for transfer in (SLOW, *every)]
    assert sent[1][0] == pytest.approx(4 / SLOW.copies_of(ffn, block) * sent[0][0], rel=1e-12)
    assert sent[2][1] == pytest.approx(sent[1][1] / 2, rel=1e-12)


def test_the_ffn_pool_takes_as_long_as_its_shard_with_most_experts(pools, make_chip, make_engine):
    """Three tokens take 2 of 8 experts each: all 28^3 choices are equally likely."""
    pairs = list(itertools.combinations(range(8), 2))
    most = [
        max(Counter(expert % 4 for expert in {*chain.from_iterable(chosen)}).values())
        for chosen in itertools.product(pairs, repeat=3)
    ]
    made = pools(
        EXPERTS, 1, NOTHING, expert=4, chip=make_chip(fp16=1e20), engine=vars(make_engine())
    )
    ((times, _),) = made.costs.step_layers(decodes_at(3, 40.0, 24, 1)).values()
    assert times.ffn == pytest.approx(np.mean(most) * 3 * 64 * 128 * 2 / 1e9, rel=0.05)


def test_the_ffn_pool_takes_as_long_as_its_shard_with_the_most_popular_experts(
    pools, make_chip, make_engine
):
    """So many tokens that each shard has its expected share, and that computing takes longest."""
    engine = vars(make_engine(moe_skew=1))
    made = pools(EXPERTS, 1, NOTHING, expert=4, chip=make_chip(fp16=1e6), engine=engine)
    (((_, block), (times, _)),) = made.costs.step_layers(decodes_at(4000, 40.0, 24, 1)).items()
    popular = max(block.experts.chances(1.0)[shard::4].sum() for shard in range(4))
    assert popular > 1.5 * 2 / 4
    assert times.ffn == pytest.approx(4000 * popular * 2 * 3 * 64 * 128 / 1e6, rel=0.02)


def test_weights_that_leave_the_attention_pool_make_room_for_the_kv_cache(
    pools, make_deployment, make_chip, lossy
):
    """A quarter of the MLPs of four layers leaves each chip, which holds one head of K and V."""
    chip = make_chip(fp16=1e10)
    undivided = make_deployment(4, plan=Plan(tensor=4), chip=chip, engine=lossy)
    room = pools({}).limits.kv_tokens - undivided.limits.kv_tokens
    assert room * 4 * 2 * 16 * 2 == pytest.approx(4 * 24576 * 2 / 4, rel=0.05)


def test_the_parts_of_a_model_are_the_model(make_model):
    model = make_model(**EXPERTS)
    parts = [model_part(model, pool) for pool in ("attention", "ffn")]
    assert sum(part.parameters for part in parts) == model.parameters
    assert sum(part.kv_per_token() for part in parts) == model.kv_per_token()


def test_flops_and_bytes_are_those_of_the_undivided_system_and_turns_read_weights_again(
    pools, make_deployment, make_model, make_chip, lossy
):
    undivided = make_deployment(
        4,
        plan=Plan(tensor=4),
        model=make_model(**EXPERTS),
        chip=make_chip(fp16=1e10),
        engine=lossy,
    )
    tally = Tally(logits=80, context=4000, decode_steps=10, decodes=80)
    tally.batch_steps[8] = 10
    whole = usage(undivided.costs, tally)

    def both(micro_batches):
        return [usage(*part) for part in pools(micro_batches=micro_batches).costs.spread(tally)]

    once, thrice = both(1), both(3)
    for parts in (once, thrice):
        flops = [sum(part.flops.values()) for part in parts]
        assert sum(flops) == pytest.approx(sum(whole.flops.values()), rel=1e-12)
    read = [sum(part.nbytes["sram"] for part in parts) for parts in (once, thrice)]
    assert read[0] == pytest.approx(whole.nbytes["sram"], rel=1e-12)
    assert read[1] > 1.5 * read[0]


def test_links_carry_the_bytes_of_the_undivided_system_and_all_tokens_in_each_layer(
    pools, make_deployment, make_model, make_chip, lossy
):
    """Two collectives of two micro-batches have the bytes of one of all tokens."""
    undivided = make_deployment(
        4, plan=Plan(tensor=4), model=make_model(), chip=make_chip(fp16=1e10), engine=lossy
    )
    for micro_batches in (1, 2):
        costs = pools({}, micro_batches, LayerTransfer(bandwidth=1e9, out="fp8")).costs
        hidden, layers = costs.layout.model.hidden_size, sum(costs.layer_kinds.values())
        between = 12 * layers * hidden * (1 + 2)  # B a number out, and back
        assert costs.link_bytes(12) == pytest.approx(undivided.costs.link_bytes(12) + between)


@pytest.fixture(scope="module")
def scenario(make_model, make_chip, make_engine):
    """Four requests on both pools, whose chips draw 2 W idle, and on a fleet of two copies."""
    powered = {
        "memory": {"sram": Memory(capacity=1e6, bandwidth=1e9, energy=1e-9)},
        "power": Power(maximum=21.0, idle=2.0, flop=3e-12, link=5e-9),
        "price": 100.0,
    }

    def pool(chips, plan, **options):
        chip = make_chip(**powered)
        return System(chip=chip, chips=chips, engine=make_engine(), plan=plan, **options)

    attention = pool(2, Plan(attention_data=2), token_budget=16)
    afd = AttentionFfn(attention=attention, ffn=pool(4, Plan(expert=4)), transfer=SLOW)
    asked = tuple(ListedRequest(arrival=0.001 * n, prompt=20, output=30) for n in range(4))
    fleet = {"fleet": {"afd": 2}}
    return Scenario(
        model=make_model(**EXPERTS),
        workload=Listed(requests=asked),
        economics=Economics(pue=1.0),
        systems={"afd": afd, "two": fleet},
    )


def test_energy_and_money_are_those_of_both_pools(scenario):
    """All six chips idle while they wait; the bytes between the pools are on links."""
    served = run(scenario).systems["afd"]
    rows, member = served.rows, served.members["afd"]
    joules = served.costs.energy.joules_per_token_by_cause
    tokens = float(rows.requests.output.sum())
    assert served.costs.busy_share is None
    assert joules["idle"] * tokens == pytest.approx(6 * 2.0 * rows.elapsed, rel=1e-9)
    costs, (tally,) = member.deployment.costs, rows.tallies
    used = [usage(*part) for part in costs.spread(tally)]
    between = 5e-9 * (sum(own.link_bytes for own in used) + costs.sent(tally))
    assert joules["links"] * tokens == pytest.approx(between, rel=1e-9)
    read = 1e-9 * sum(own.nbytes["sram"] for own in used)
    assert joules["memory"] * tokens == pytest.approx(read, rel=1e-9)
    # 50 tokens of each request, in each of 4 layers: 64 numbers, copies of 1 B and of 2 B
    copies = 4 * (1 - math.comb(6, 2) / math.comb(8, 2))
    assert costs.sent(tally) == pytest.approx(4 * (20 + 29) * 4 * 64 * copies * (1 + 2))
    capex = total_capex(scenario, {"afd": 1})
    assert (capex.cards, capex.chips, capex.power) == (6, 600.0, 126.0)


def test_a_beat_of_the_ffn_pool_takes_as_long_as_its_tokens(pools):
    """Ten tokens are three beats of at most four tokens, each as long as the MLP of four."""
    plain = pools().costs.ffn
    engine = plain.layout.engine.model_copy(update={"tokens_per_beat": 4})
    beats = FfnPool(replace(plain.layout, engine=engine), SLOW)
    assert beats.passes(10) == (3, 4)
    block = plain.layout.model.blocks[0]

    def seconds(costs, tokens):
        return sum(row.seconds for row in costs.layer_rows(block, tokens))

    assert seconds(beats, 10) == pytest.approx(seconds(plain, 4), rel=1e-12)
    assert seconds(plain, 10) > 1.01 * seconds(plain, 4), "else beats make no difference"
    costs, tally = pools(micro_batches=1).costs, Tally()
    costs.ffn, tally.batch_steps[10] = beats, 5
    assert costs.spread(tally)[1][1].batch_steps == {3: 10, 4: 5}, "15 beats read all weights"


def test_a_sequence_with_its_drafts_is_in_one_micro_batch(pools):
    """Two sequences make two micro-batches of four tokens, although four may take turns."""
    tally = Tally()
    tally.batch_steps[8] = 5
    for _, own in pools(drafts=3, micro_batches=4).costs.spread(tally):
        assert own.batch_steps == {4: 10}


def test_a_drafter_reads_its_weights_once_a_step(scenario, make_model):
    """Its first pass takes the tokens of all micro-batches, as in the time of a step."""
    draft = Draft(model=make_model(num_hidden_layers=1))
    speculate = Speculate(method="draft", tokens=3, acceptance=0.5, draft=draft)
    tally = Tally(logits=80, context=4000, decode_steps=10, decodes=80)
    tally.batch_steps[8 * 4] = 10
    read = []
    for micro_batches in (1, 3):
        afd = scenario.systems["afd"]
        drafting = afd.attention.model_copy(update={"speculate": speculate})
        afd = afd.model_copy(update={"attention": drafting, "micro_batches": micro_batches})
        changed = scenario.model_copy(update={"systems": {"afd": afd}})
        part = energy_parts(changed, "afd", changed.deploy("afd"), tally)[0][1]
        layout = part.costs.layout
        verifying = replace(layout, speculation=replace(layout.speculation, apart=True))
        alone = part._replace(costs=part.costs.on(verifying))
        memory = [energy([of], 1.0, 1.0)["memory"] for of in (part, alone)]
        read.append(memory[0] - memory[1])
    assert read[1] == pytest.approx(read[0], rel=1e-9)
    assert read[0] > 0


def test_ranks_work_without_each_other_and_all_need_the_ffn_pool(scenario):
    """Availability: of one rank, times that of all FFN chips. Without spares each has a closed form."""
    rate = 1e-6
    faults = Faults(
        chip=Failures(rate=rate), repair=5e4, detection=0.0, horizon=1e8, samples=20, source={}
    )

    def available(attention, ffn):
        afd = scenario.systems["afd"]
        parts = {
            pool: getattr(afd, pool).model_copy(update={"faults": own})
            for pool, own in (("attention", attention), ("ffn", ffn))
        }
        systems = {"afd": afd.model_copy(update=parts)}
        served = run(scenario.model_copy(update={"systems": systems})).systems["afd"]
        return served.metrics.works

    of_rank, of_ffn = available(faults, None), available(None, faults)
    assert of_rank == pytest.approx(1 / (1 + rate * 5e4), abs=0.01)
    assert of_ffn == pytest.approx((1 / (1 + rate * 5e4)) ** 4, abs=0.02)
    assert available(faults, faults) == pytest.approx(of_rank * of_ffn, abs=0.01)


def test_a_fleet_of_pools_serves_all_requests(scenario):
    served = run(scenario).systems["two"]
    assert served.rows.finished.all()
    assert sum(member.chips for member in served.members.values()) == 12


def test_a_fleet_of_one_pair_of_pools_is_the_pair(scenario):
    systems = {**scenario.systems, "one": Fleet(fleet={"afd": 1})}
    served = run(scenario.model_copy(update={"systems": systems})).systems
    for column in ("admitted", "first_token", "last_token"):
        alone, fleet = (getattr(served[name].rows, column) for name in ("afd", "one"))
        assert alone.tobytes() == fleet.tobytes()


def test_an_explanation_adds_up_with_the_numbers_of_both_pools(scenario):
    """Where one micro-batch waits for nothing, the latency of the links is a share of the time."""
    explained = explain(scenario, ["afd"]).systems["afd"]
    for time in (explained.token, explained.first_token):
        assert time.ms == pytest.approx(time.simulated_ms, rel=1e-9)
        assert sum(line.ms for line in time.lines) == pytest.approx(time.ms, rel=1e-12)
    keys = {key for line in explained.token.lines for key in line.keys}
    assert {"chip.memory.sram.bandwidth", "ffn.chip.memory.sram.bandwidth"} <= keys
    of_latency = sum(
        line.share for line in explained.token.lines if line.keys == ("transfer.latency",)
    )
    costs = scenario.deploy("afd").costs
    assert of_latency * explained.token.ms == pytest.approx(4 * 2 * 1000 * SLOW.latency, rel=1e-9)
    number = file_numbers(scenario, "afd", costs, ())["transfer.latency"]
    work = decodes_at(1, 30.0, None)
    slower = with_change(costs, number).step(work).time[0] - costs.step(work).time[0]
    assert slower == pytest.approx(0.1 * 4 * 2 * SLOW.latency, rel=1e-9)
    for pool in ("", "ffn."):
        number = file_numbers(scenario, "afd", costs, keys)[f"{pool}chip.memory.sram.bandwidth"]
        read = [line for line in explained.token.lines if line.keys[:1] == (number.key,)]
        faster = costs.step(work).time[0] - with_change(costs, number).step(work).time[0]
        assert 1000 * faster == pytest.approx(
            sum(line.ms for line in read) * (1 - 1 / 1.1), rel=0.02
        )


def test_a_plan_says_what_binds_a_full_step(scenario):
    """A layer takes the closed form of the times that stand beside it."""
    cycle = plan(scenario).summary([64]).systems["afd"].layer_cycle
    parts = cycle.attention_us, cycle.out_us, cycle.ffn_us, cycle.back_us
    assert cycle.micro_batches == 2
    assert cycle.cycle_us == pytest.approx(max(2 * max(parts[0], parts[2]), sum(parts)), rel=1e-9)
    assert (cycle.binds == "latency") == (cycle.cycle_us == pytest.approx(sum(parts)))


@pytest.mark.parametrize(("attention", "ffn"), [(2, 4), (4, 2)])
def test_the_pool_with_fewer_chips_is_the_busier_end_of_a_link(pools, attention, ffn):
    """Of 8 tokens, each chip of the smaller pool carries a half. A number takes 1 B out, 2 B back."""
    costs = pools({}, attention=attention, ffn=ffn).costs
    ((_, block),) = costs.layer_kinds
    link = SLOW.model_copy(update={"copies": "token"})
    numbers = 8 / 2 * costs.layout.model.hidden_size
    busy = link.busy(costs.layout, costs.ffn.layout, block, 8, costs.layout.plan.ranked(8))
    assert busy == pytest.approx((numbers / link.bandwidth, 2 * numbers / link.bandwidth))


def test_the_chips_of_a_shard_gather_its_tokens_and_its_results(pools):
    """Two shards of two chips each: half of the tokens, times the copies of each, out and back."""
    costs = pools(expert=2).costs.ffn
    (block,) = costs.layout.model.distinct
    copies = SLOW.copies_of(costs.layout, block)
    gathers = costs.rows.collectives.of_block(block, 8, 0)
    assert [gather.name for gather in gathers] == ["all_gather", "reduce_scatter"]
    numbers = copies * 8 / 2 * costs.layout.model.hidden_size
    assert [gather.nbytes for gather in gathers] == pytest.approx([numbers, 2 * numbers])
    assert {group for gather in gathers for group in gather.groups} == {range(2), range(2, 4)}


def test_computing_hides_a_share_of_what_the_chips_of_a_shard_exchange(pools):
    """With one copy of a token for all shards nothing is dispatched, and nothing is hidden."""
    for transfer, shards in ((SLOW, 2), (SLOW.model_copy(update={"copies": "token"}), 1)):
        costs = pools(expert=2, transfer=transfer).costs.ffn
        (block,) = costs.layout.model.distinct
        times = []
        for overlap in (0.0, 0.5, 1.0):
            engine = costs.layout.engine.model_copy(update={"overlap": overlap})
            layout = replace(costs.layout, engine=engine)
            collectives = ShardCollectives(layout, transfer)
            exchanges = collectives.of_block(block, 8, 0)
            times.append(collectives.exposed(exchanges, 8, 1e-4, 1e-4)[0])
        whole = sum(exchange.time for exchange in exchanges)
        hides = shards > 1
        assert times[0] == pytest.approx(whole)
        assert times[1] == pytest.approx(whole - hides * min(1e-4, 0.5 * whole))
        assert times[2] == pytest.approx(whole - hides * min(1e-4, whole))


@pytest.mark.parametrize("beat", [None, 4])
def test_a_micro_batch_waits_for_its_own_exchanges_and_computing_hides_others(pools, beat):
    """What `overlap` hides leaves the pool to other micro-batches, and no micro-batch is faster."""
    transfer = LayerTransfer(bandwidth=1e12, copies="shard")

    def layer(overlap, micro_batches):
        engine = {"overlap": overlap}
        costs = pools(EXPERTS, micro_batches, transfer, expert=2, engine=engine).costs
        layout = costs.ffn.layout
        engine = layout.engine.model_copy(update={"tokens_per_beat": beat})
        costs.ffn = FfnPool(replace(layout, engine=engine), transfer)
        work = decodes_at(24, 40.0, None)
        assert step_terms(costs, work)[:, TIME].sum() == pytest.approx(
            costs.line(work)[0], rel=1e-12
        )
        ((times, critical),) = costs.step_layers(work).values()
        return times, weighted_sum(times, critical.cycle)

    for micro_batches in (1, 3):
        (none, hidden), cycles = zip(*(layer(o, micro_batches) for o in (0.0, 1.0)), strict=True)
        assert none.overlapped == 0 < hidden.overlapped < hidden.ffn < none.ffn
        assert hidden.serial == pytest.approx(none.serial, rel=1e-12)
        assert (cycles[1] < 0.99 * cycles[0]) == (micro_batches > 1)


def test_the_stage_whose_chips_are_on_two_nodes_sets_the_pace(make_model, make_chip, lossy):
    """Stages of three chips on nodes of four: chips 3 to 5 sum their results over the network."""
    near = Link(latency=1e-6, bandwidth=1e9)
    network = Switch(link=Link(latency=5e-5, bandwidth=1e9))
    nodes = Hierarchical(levels=(Switch(chips=4, link=near), network))
    model = make_model()

    def step(topology):
        chip = make_chip(topology=topology)
        attention, ffn = (
            DeploymentParts(model, chip, plan.stage_size * (plan.pipeline or 1), lossy, plan, None)
            for plan in (Plan(tensor=1, attention_data=1), Plan(tensor=3, pipeline=2))
        )
        return deploy_with_ffn(attention, ffn, PoolSharing(1, NOTHING), (64, 32)).costs

    one, far = step(Switch(link=near)), step(nodes)
    work = decodes_at(4, 40.0, None)
    reduces = [
        far.ffn.rows.collectives.of_block(far.last_layer[1], 4, stage)[0].time for stage in (0, 1)
    ]
    assert reduces[1] > 2 * reduces[0]
    layers = model.num_hidden_layers
    slower = far.step(work).time[0] - one.step(work).time[0]
    assert slower == pytest.approx(layers * (reduces[1] - reduces[0]), rel=1e-9)
