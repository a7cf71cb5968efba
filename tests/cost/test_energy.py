"""FLOPs, bytes and joules of runs against what is counted step by step, and against each other."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.chipsim.exceptions import Irregularities
from sim.chipsim.machine import machine_factory
from sim.cost.energy import EnergyPart, Tally, Usage, energy, spent, summed, usage
from sim.cost.plan import Plan
from sim.cost.step import Costs
from sim.cost.work import Work
from sim.hardware.chip import Chip, Memory, Precision
from sim.hardware.power import Power, Server
from sim.hardware.topology import Link, Switch
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.serving.policy import Policies
from sim.serving.service import serve
from sim.workload.requests import RequestBatch

POWERED = {
    "memory": {"sram": Memory(capacity=1e6, bandwidth=1e9, energy=1e-9)},
    "power": Power(maximum=20.0, idle=2.0, flop=3e-12, link=5e-9),
    "server": Server(chips=4, power=8.0, price=0.0),
}
CHIPS = {name: read_value(path, Chip) for name, path in catalogue_names("chips").items()}


def counted(work, times=1):
    """A tally of so many steps alike, from their Work alone."""
    tally = Tally(
        logits=times * work.logits,
        context=times * work.context,
        attended=times * work.attended,
        cached=times * work.cached,
        windowed_context=times * work.windowed_context,
        windowed_attended=times * work.windowed_attended,
        windowed_cached=times * work.windowed_cached,
        prompt_tokens=times * work.prompt_tokens,
        prompt_steps=times if work.prompt_tokens else 0,
        steps_without_sampling=0 if work.logits else times,
    )
    tally.batch_steps[work.tokens] += times
    return tally


# FLOPs and bytes.


def test_a_token_on_one_chip(make_deployment):
    """Four layers of 12,288 + 24,576 parameters and a head of 16,384, at 16 bits; 10 positions of 2 x 2 x 16 numbers a layer."""
    used = usage(make_deployment().costs, counted(Work(decodes=1, context=10, logits=1)))
    parameters, kv = 4 * 36_864 + 16_384, 4 * 10 * 64
    activations = 4 * ((64 + 128) + (64 + 64) + 2 * (64 + 128) + (128 + 64)) + 64 + 256
    assert used.flops[("fp16", "fp16")] == 2 * parameters + 4 * 10 * 4 * 4 * 16
    weights = used.nbytes["sram"] - 2 * kv - 64 * 2
    assert weights == pytest.approx(2 * parameters + 2 * activations, rel=0.02)
    assert used.link_bytes == 0


def test_weights_are_read_once_a_step_and_computed_with_for_each_token(make_deployment):
    costs = make_deployment().costs
    one, four = (usage(costs, counted(Work(decodes=n, context=10 * n, logits=n))) for n in (1, 4))
    assert four.flops[("fp16", "fp16")] == pytest.approx(4 * one.flops[("fp16", "fp16")])
    assert four.nbytes["sram"] < 1.5 * one.nbytes["sram"]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_an_engine_that_reads_for_each_query_head_moves_the_cache_as_often(
    make_deployment, make_model, make_engine, heads
):
    """And only in decoding: bytes, not FLOPs."""
    model = make_model(num_key_value_heads=heads)
    shared, each = (
        make_deployment(model=model, engine=make_engine(kv_reads=kind)).costs
        for kind in ("kv-heads", "query-heads")
    )
    decode, prompt = (
        counted(Work(decodes=1, context=10, logits=1)),
        counted(Work(prompt_tokens=4, chunks=1, attended=10, cached=4)),
    )
    more = usage(each, decode).nbytes["sram"] - usage(shared, decode).nbytes["sram"]
    assert (
        more == (4 // heads - 1) * 4 * 10 * 2 * heads * 16 * 2
    )  # layers, positions, K and V, numbers, bytes
    assert usage(each, decode).flops == usage(shared, decode).flops
    assert usage(each, prompt) == usage(shared, prompt)


def test_flops_are_additive_over_requests(make_deployment, serve_on):
    """Served together or each alone: the same FLOPs, and fewer bytes, for weights are shared."""
    deployment = make_deployment()
    requests = [(0.0, 20, 7), (0.0, 33, 12), (1e-4, 5, 30)]
    together = usage(deployment.costs, serve_on(deployment, requests).tallies[0])
    alone = [usage(deployment.costs, serve_on(deployment, [each]).tallies[0]) for each in requests]
    assert together.flops[("fp16", "fp16")] == pytest.approx(
        sum(each.flops[("fp16", "fp16")] for each in alone)
    )
    assert together.nbytes["sram"] < sum(each.nbytes["sram"] for each in alone)


def test_more_bandwidth_moves_no_more_bytes(make_deployment, make_chip, serve_on):
    used = []
    for bandwidth in (1e9, 2e9):
        deployment = make_deployment(4, plan=Plan(tensor=2), chip=make_chip(bandwidth=bandwidth))
        used.append(usage(deployment.costs, serve_on(deployment, [(0.0, 40, 20)]).tallies[0]))
    assert used[0] == used[1]


def test_tensor_parallel_chips_share_the_work_and_talk(make_deployment):
    """Two chips: as many FLOPs, and two all-reduces a layer and one of the embedding, of 64 numbers: each of both sends all."""
    one, two = (
        usage(
            make_deployment(n, plan=Plan(tensor=n)).costs,
            counted(Work(decodes=1, context=10, logits=1)),
        )
        for n in (1, 2)
    )
    assert two.flops == one.flops
    assert two.link_bytes == (4 * 2 + 1) * 2 * 128


def test_a_switch_is_two_cables(make_deployment, make_chip):
    link = Link(latency=1e-6, bandwidth=1e9)
    work = counted(Work(decodes=1, context=10, logits=1))
    direct = make_deployment(2, plan=Plan(tensor=2))
    switched = make_deployment(2, plan=Plan(tensor=2), chip=make_chip(topology=Switch(link=link)))
    assert usage(switched.costs, work).link_bytes == 2 * usage(direct.costs, work).link_bytes


def test_stages_send_hidden_states_on_and_a_token_back(make_deployment):
    """Three stages in line, 64 numbers of 16 bits twice, and a token's four bytes over one cable of a full mesh."""
    costs = make_deployment(3, plan=Plan(pipeline=3)).costs
    assert costs.collectives.link_bytes(1) == 2 * 128 + 4
    assert usage(costs, Tally(defaultdict(int, {1: 5, 3: 2}))).link_bytes == 5 * (
        2 * 128 + 4
    ) + 2 * (2 * 3 * 128 + 4)


def test_of_experts_those_that_are_reached_are_read(make_deployment, make_model):
    """Two of four for one token; for very many all four."""
    moe = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    costs = make_deployment(model=make_model(**moe), token_budget=1000).costs
    dense = make_deployment().costs
    expert = 4 * 2 * 3 * 64 * 128  # of four layers
    extra = [
        usage(costs, counted(Work(decodes=n, logits=n))).nbytes["sram"]
        - usage(dense, counted(Work(decodes=n, logits=n))).nbytes["sram"]
        for n in (1, 500)
    ]
    through = 2 * 4 * (2 * (64 + 128) + 192)  # activations of a token through one expert
    assert extra[0] == pytest.approx((2 - 1) * expert + through, rel=0.02)
    assert extra[1] == pytest.approx((4 - 1) * expert + 500 * through, rel=0.02)


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.01), st.integers(1, 40), st.integers(1, 40)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([(1, Plan()), (3, Plan(pipeline=3))]),
    st.sampled_from(
        [{}, {"reserve": False}, {"deadline": 0.01}, {"reserve": False, "deadline": 0.02}]
    ),
    st.booleans(),
    st.booleans(),
)
def test_the_tally_is_the_sum_of_all_steps(
    make_deployment, make_model, drawn, plan, policies, windowed, leap
):
    """Preempted, cancelled, with windows and without: what ends and passages tell is what each step's Work says."""
    window = (
        {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2}
        if windowed
        else {}
    )
    deployment = make_deployment(plan[0], plan=plan[1], model=make_model(**window), kv_tokens=90)
    arrival, prompt, output = (np.array(column) for column in zip(*sorted(drawn), strict=True))
    requests = RequestBatch(arrival, prompt, output)
    options = {"policies": Policies(**policies)}
    tally = serve(requests, deployment.costs, deployment.limits, leap=leap, **options).tallies[0]
    works, costs = (
        [],
        make_deployment(plan[0], plan=plan[1], model=make_model(**window), kv_tokens=90).costs,
    )
    step = costs.step
    costs.step = lambda work: works.append(replace(work)) or step(work)
    serve(requests, costs, deployment.limits, leap=False, **options)
    one, other = usage(costs, tally), usage(costs, summed(map(counted, works)))
    assert one.flops == pytest.approx(other.flops, rel=1e-12)
    assert one.nbytes == pytest.approx(other.nbytes, rel=1e-12)
    assert one.link_bytes == pytest.approx(other.link_bytes, rel=1e-12)


def test_chips_as_processes_do_the_same_work(make_deployment, serve_on):
    deployment = make_deployment(6, plan=Plan(tensor=2, pipeline=3))
    requests = [(0.0, 40, 5), (1e-4, 7, 9)]
    made = machine_factory(deployment.costs, [Irregularities()], [0])
    used = [
        usage(deployment.costs, serve_on(deployment, requests, machine=machine).tallies[0])
        for machine in (None, made)
    ]
    assert used[0] == used[1]


# Joules.


def test_joules_by_cause(make_deployment, make_chip):
    """Two chips for ten seconds: idle 2 W each, their half of a server of four with 8 W, a tenth more for cooling."""
    deployment = make_deployment(2, plan=Plan(tensor=2), chip=make_chip(**POWERED))
    tally = counted(Work(decodes=1, context=10, logits=1), 1000)
    used, told = (
        usage(deployment.costs, tally),
        energy([EnergyPart(deployment.costs, 2, tally, 2.0)], 10.0, 1.1),
    )
    assert told["idle"] == 40
    assert told["server"] == 40
    assert told["compute"] == pytest.approx(used.flops[("fp16", "fp16")] * 3e-12)
    assert told["memory"] == pytest.approx(used.nbytes["sram"] * 1e-9)
    assert told["links"] == pytest.approx(used.link_bytes * 5e-9)
    assert told["pue"] == pytest.approx(0.1 * sum(told[cause] for cause in told if cause != "pue"))


def test_a_slower_precision_takes_more_for_a_flop():
    chip = CHIPS["groq-lpu-v1"]
    fast, slow = (
        spent(chip, Usage({(name, name): 1e12}, {}, 0.0))["compute"] for name in ("int8", "fp16")
    )
    assert slow / fast == pytest.approx(737 / 184)


def test_nothing_is_told_where_a_number_is_not_known(make_deployment, make_chip):
    tally = counted(Work(decodes=1, context=10, logits=1))
    for lacking in (
        {"memory": {"sram": Memory(capacity=1e6, bandwidth=1e9)}},
        {"power": Power(maximum=20.0)},
        {"power": None},
    ):
        costs = make_deployment(chip=make_chip(**(POWERED | lacking))).costs
        assert energy([EnergyPart(costs, 1, tally, 0.0)], 1.0, 1.0) is None


@pytest.fixture(scope="module")
def powered(make_deployment, make_chip):
    """Three stages of chips with powers."""
    return make_deployment(3, plan=Plan(pipeline=3), chip=make_chip(**POWERED))


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.01), st.integers(1, 40), st.integers(1, 40)),
        min_size=1,
        max_size=12,
    )
)
def test_energy_is_at_least_idle_power_times_time(powered, drawn):
    deployment = powered
    arrival, prompt, output = (np.array(column) for column in zip(*sorted(drawn), strict=True))
    rows = serve(RequestBatch(arrival, prompt, output), deployment.costs, deployment.limits)
    elapsed = float(rows.last_token.max() - rows.arrival.min())
    told = energy([EnergyPart(deployment.costs, 3, rows.tallies[0], 0.0)], elapsed, 1.0)
    assert sum(told.values()) > 3 * 2.0 * elapsed
    again = serve(
        RequestBatch(arrival, prompt, output),
        Costs(deployment.layout),
        deployment.limits,
        leap=False,
    )
    assert energy([EnergyPart(deployment.costs, 3, again.tallies[0], 0.0)], elapsed, 1.0) == told


def full_load(chip, memory):
    """Multiplying at the fastest rate, and reading a memory as fast as a multiply can."""
    precision = max(Precision, key=lambda name: getattr(chip.compute, name) or 0.0)
    read_value = chip.weight_bandwidth(memory, precision) * memory.energy
    return chip.power.idle + chip.power.flop * chip.compute.fastest + read_value


@pytest.mark.parametrize(
    "name", [name for name, chip in CHIPS.items() if chip.power and chip.power.idle]
)
def test_at_full_load_a_chip_draws_between_its_typical_and_its_maximum_power(name):
    chip = CHIPS[name]
    memory = next(memory for memory in chip.memory.values() if memory.holds)
    assert (chip.power.typical or chip.power.idle) <= full_load(chip, memory) <= chip.power.maximum


def test_at_full_load_a_server_of_eight_h100_draws_what_was_measured():
    """Newkirk et al. (arXiv 2506.14551): hard-working servers draw 76 % of their name plate's 10.2 kW; within 10 %, for how hard
    is not said."""
    chip = CHIPS["h100-sxm"]
    assert 8 * full_load(chip, chip.memory["hbm"]) + chip.server.power == pytest.approx(
        0.76 * 10.2e3, rel=0.1
    )


def test_every_chip_whose_power_is_known_has_what_energy_needs():
    for chip in CHIPS.values():
        if chip.power:
            assert None not in (chip.power.idle, chip.power.flop, chip.power.link)
            assert all(memory.energy for memory in chip.memory.values())
