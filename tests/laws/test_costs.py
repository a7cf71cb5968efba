"""What holds for the cost of any step, on any layout: terms, growth, the engine that loses nothing, faster chips."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.attention import FOREVER
from sim.cost.plan import Plan
from sim.cost.program import program
from sim.cost.step import Costs
from sim.cost.system_costs import step_terms
from sim.cost.terms import COLLECTIVES, FITTED, HOPS, KV, TIME, by_term
from sim.cost.work import Work
from sim.hardware.chip import Compute, TensorStreaming
from sim.hardware.engine import PAIRS, Engine, Launch
from sim.hardware.kernels import (
    AttentionKernels,
    CollectiveKernel,
    DecodeKernel,
    Kernels,
    MultiplyKernel,
    PrefillKernel,
)
from sim.hardware.topology import Hierarchical, Link, Switch
from sim.inputs.document import read_value
from sim.inputs.names import find_entry
from sim.planning.single_request import time_single_request


class Crossing(Compute):
    """An artificial chip: both sides of its roofline are lines with an offset, so that they cross as the context grows."""

    compute_offset: float
    memory_offset: float
    flops_per_second: float

    def times(self, op, memory):
        return (
            self.compute_offset + op.flops / self.flops_per_second,
            self.memory_offset + op.kv / memory.bandwidth,
        )


COMPUTES = {
    "roofline": {},
    "few flops": {"fp16": 2e9},
    "tensor streaming": {
        "compute": TensorStreaming(
            clock=1e9, planes=4, tile=32, weight_load=1e9, fp16=2.0 * 4 * 32**2 * 1e9
        ),
    },
    "memory binds later": {
        "compute": Crossing(compute_offset=1e-5, memory_offset=0.0, flops_per_second=1e13)
    },
    "compute binds later": {
        "compute": Crossing(compute_offset=0.0, memory_offset=1e-5, flops_per_second=1e9)
    },
}
PLANS = {
    "one chip": (1, Plan()),
    "tensor 2, two stages": (4, Plan(tensor=2)),
    "five stages": (5, Plan()),
}


@pytest.fixture(scope="module")
def deployments(make_deployment, make_chip, make_engine, lossy, eager):
    """(compute, plan, engine) -> deployment."""
    kernel = MultiplyKernel(
        fixed=2e-6, memory_efficiency=0.7, compute_efficiency=0.6, per_input=1e-8
    )
    attention = AttentionKernels(
        decode={"bf16": DecodeKernel(fixed=3e-6, memory_efficiency=0.6)},
        prefill={"bf16": PrefillKernel(fixed=4e-6, compute_efficiency=0.5, more_positions=7.0)},
    )
    latency = CollectiveKernel(latency=1e-6, latency_per_chip=1e-7)
    kernels = Kernels(
        otherwise="own",
        exposed=0.3,
        multiplies={"own": {"bf16": kernel}},
        attention={"own": attention},
        collectives={"own": latency},
    )
    own = dict.fromkeys(name for names in PAIRS.values() for name in names)
    timed = lossy.model_copy(update={"kernels": kernels, **own})
    engines = {"ideal": make_engine(), "lossy": lossy, "eager": eager, "timed kernels": timed}
    return {
        (compute, plan, name): make_deployment(
            chips, plan=laid, chip=make_chip(**kind), engine=engine
        )
        for compute, kind in COMPUTES.items()
        for plan, (chips, laid) in PLANS.items()
        for name, engine in engines.items()
    }


KEYS = st.tuples(
    st.sampled_from(sorted(COMPUTES)),
    st.sampled_from(sorted(PLANS)),
    st.sampled_from(["ideal", "lossy", "eager", "timed kernels"]),
)


@st.composite
def works(draw, prompts=True):
    """Decodes of some contexts, and chunks (new tokens after old ones) with them."""
    contexts = draw(st.lists(st.integers(1, 500), min_size=0 if prompts else 1, max_size=8))
    chunks = draw(
        st.lists(
            st.tuples(st.integers(1, 16), st.integers(0, 200)),
            max_size=3,
            min_size=0 if contexts else 1,
        )
    )
    chunks = chunks if prompts else []
    return Work(
        decodes=len(contexts),
        context=sum(contexts),
        prompt_tokens=sum(new for new, _ in chunks),
        chunks=len(chunks),
        attended=sum(new * old + new * (new + 1) // 2 for new, old in chunks),
        cached=sum(new + old for new, old in chunks),
        logits=len(contexts) + draw(st.integers(0, len(chunks))),
    )


@given(KEYS, works())
def test_the_terms_of_a_step_are_its_time(deployments, key, work):
    costs = deployments[key].costs
    terms = step_terms(costs, work)
    assert terms[:, TIME].sum(axis=1) - costs.hops(work.tokens) == pytest.approx(
        costs.step(work).time
    )
    assert terms[:, TIME, HOPS] == pytest.approx(costs.hops(work.tokens))


@given(KEYS, st.integers(1, 300), st.integers(0, 300), st.integers(1, 3))
def test_times_that_are_computed_together_are_those_of_each_number_of_tokens(
    deployments, key, decodes, prompt, width
):
    layout = deployments[key].layout
    together, alone = (Costs(layout, widths=(width,)) for _ in range(2))
    assert (together.together > 1) == (not key[0].endswith("binds later"))
    alone.together = 1
    chunks = Work(0, 0, prompt, min(prompt, 3), prompt * (prompt + 1) // 2, prompt)
    logits = width * decodes + min(prompt, 2)
    work = replace(chunks, decodes=decodes, context=90 * decodes, logits=logits, width=width)
    step, other = (costs.step(work) for costs in (together, alone))
    assert step.time.tolist() == other.time.tolist()
    assert np.array_equal(step.growth, other.growth)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_body_with_experts_is_the_sum_of_its_rows(
    make_deployment, make_model, lossy, overlap, stages
):
    """Two ranks of two chips hold the shards of the experts. Draws are as far apart as 16 tokens."""
    model = make_model(model_type="mixtral", num_local_experts=16, num_experts_per_tok=2)
    engine = lossy.model_copy(update={"overlap": overlap})
    plan = Plan(tensor=2, attention_data=2, expert=4, pipeline=stages)
    slow = Switch(link=Link(latency=1e-5, bandwidth=1e6))  # computing hides less than all
    costs = make_deployment(4 * stages, model=model, engine=engine, plan=plan, topology=slow).costs
    for tokens in (2, 3, 64, 128, 129, 254, 256, 512, 513, 1025, 2047):
        for ranked in (-(-tokens // 2), tokens - 1):
            rows = costs.body_rows(tokens, ranked)
            whole = sum(row.repeats * row.seconds for row in rows)
            assert costs.body(tokens, ranked) == pytest.approx(whole, rel=1e-12)


@given(KEYS, works())
def test_the_fitted_part_lies_within_each_term_and_is_nothing_for_an_ideal_engine(
    deployments, key, work
):
    terms = step_terms(deployments[key].costs, work)
    assert (terms[:, FITTED] >= -1e-15).all()
    assert (terms[:, FITTED] <= terms[:, TIME] + 1e-15).all()
    assert (terms[:, FITTED].sum() > 0) == (key[2] != "ideal")


@given(KEYS, works())
def test_a_step_without_the_fitted_part_is_the_ideal_engines(deployments, key, work):
    compute, plan, _ = key
    lossy = deployments[key]
    lossless = Costs(
        replace(lossy.layout, engine=deployments[compute, plan, "ideal"].layout.engine)
    )
    terms = step_terms(lossy.costs, work)
    assert (terms[:, TIME] - terms[:, FITTED]).sum(axis=1) == pytest.approx(
        step_terms(lossless, work)[:, TIME].sum(axis=1)
    )
    assert (lossless.step(work).time <= lossy.costs.step(work).time).all()


@given(KEYS, works(prompts=False), st.data())
def test_further_steps_grow_as_the_contract_says(deployments, key, work, data):
    """The k-th identical decode step takes time + k * growth, as asked at its own context."""
    costs = deployments[key].costs
    time, growth, holds = costs.step(work)
    assert holds >= 1
    k = data.draw(st.integers(0, min(holds, 10_000) - 1))
    for later in (k, min(holds, 10_000) - 1):
        asked = costs.step(replace(work, context=work.context + later * work.decodes)).time
        assert time + later * np.asarray(growth) == pytest.approx(asked, rel=1e-9, abs=0)


@given(
    st.sampled_from(sorted(COMPUTES)),
    st.sampled_from(["ideal", "lossy", "eager"]),
    works(prompts=False),
    st.data(),
)
def test_a_single_stages_line_holds_as_long_as_it_says(deployments, compute, engine, work, data):
    costs = deployments[compute, "one chip", engine].costs
    time, growth, holds = costs.line(work)
    k = data.draw(st.integers(0, min(holds, 10_000) - 1))
    for later in (k, min(holds, 10_000) - 1):
        (asked,) = costs.step(replace(work, context=work.context + later * work.decodes)).time
        assert time + later * growth == pytest.approx(asked, rel=1e-9, abs=0)


def test_a_host_is_waited_for_until_the_contexts_take_longer(deployments):
    costs = deployments["roofline", "one chip", "eager"].costs
    launch = 4 * 2.5e-4 + 2 * 2e-5
    work = Work(decodes=2, context=20, logits=2)
    time, growth, holds = costs.line(work)
    assert (time, growth) == (pytest.approx(launch), 0.0)
    assert 10 < holds < 1000
    at_the_end, beyond = (
        costs.line(replace(work, context=work.context + 2 * steps)) for steps in (holds - 1, holds)
    )
    assert at_the_end[:2] == (pytest.approx(launch), 0.0)
    assert beyond[0] > launch
    assert beyond[1] > 0


@given(KEYS.filter(lambda key: key[2] == "eager"), works())
def test_each_stage_takes_as_long_as_its_chips_or_its_host(deployments, key, work):
    """The slower of the two: chips as without a host, and the host with its layers and decoding sequences."""
    deployment = deployments[key]
    layout = deployment.layout
    unlaunched = Costs(
        replace(layout, engine=layout.engine.model_copy(update={"layer_launch": None}))
    )
    each = 3e-4 if work.prompt_tokens else 2.5e-4
    attentions = [
        sum(b.kind == "attention" for b in layout.model.blocks[s.first : s.last + 1])
        for s in layout.stages
    ]
    assert sum(attentions) == layout.model.num_hidden_layers
    host = each * np.array(attentions) + 2e-5 * work.decodes
    assert deployment.costs.step(work).time == pytest.approx(
        np.maximum(unlaunched.step(work).time, host)
    )


def test_a_stage_without_attention_waits_for_the_hosts_sequences(make_deployment, eager):
    """Each block is a stage, and the host launches nothing for those of MLPs."""
    costs = make_deployment(8, plan=Plan(pipeline=8), engine=eager).costs
    assert 0.0 in costs.launched
    work = Work(decodes=50, context=50, logits=50)
    times = by_term(list(costs.rows(work)), costs.stages)[:, TIME].sum(axis=1)
    assert times == pytest.approx(costs.step(work).time)


@pytest.mark.parametrize(("graphs", "launched"), [(0, True), (9, True), (10, False)])
def test_a_step_from_a_graph_does_not_wait_for_its_launches(deployments, graphs, launched):
    """Ten tokens: two sequences and eight tokens of a prompt."""
    layout = deployments["roofline", "one chip", "eager"].layout
    own = layout.engine.layer_launch.model_copy(update={"graphs": graphs})
    costs, plain = (
        Costs(replace(layout, engine=layout.engine.model_copy(update={"layer_launch": launch})))
        for launch in (own, None)
    )
    work = Work(2, 20, 8, 1, 36, 8, 3)
    chips = plain.line(work)[0]
    assert chips < 4 * 3e-4
    assert costs.line(work)[0] == pytest.approx(4 * 3e-4 + 2 * 2e-5 if launched else chips)
    assert step_terms(costs, work)[:, TIME].sum() == pytest.approx(costs.line(work)[0])


@pytest.mark.parametrize(("tensor", "times"), [(1, 2), (2, 2), (4, 1)])
def test_the_cache_is_read_once_for_each_query_head(make_deployment, make_engine, tensor, times):
    """Four query heads share two KV heads: decodes read twice the bytes, until each chip has one of both; prompts do not, and the
    cache is no larger."""
    shared, apart = (
        make_deployment(tensor, plan=Plan(tensor=tensor), engine=make_engine(kv_reads=kind))
        for kind in ("kv-heads", "query-heads")
    )
    decode = Work(decodes=3, context=300, logits=3)
    of_one, of_each = (
        step_terms(deployment.costs, decode)[0, TIME, KV] for deployment in (shared, apart)
    )
    assert of_one == pytest.approx(300 * shared.layout.stages[0].kv_per_token / 1e9)
    assert of_each == pytest.approx(times * of_one)
    prompt = Work(prompt_tokens=9, chunks=1, attended=45, cached=9)
    assert apart.costs.step(prompt).time == pytest.approx(shared.costs.step(prompt).time, rel=1e-15)
    assert apart.fit == shared.fit


@pytest.mark.parametrize("tensor", [1, 2])
def test_each_query_head_reads_the_latent_again(make_deployment, make_model, make_engine, tensor):
    """Every chip has the one latent, and reads it for each of its heads. The config has KV heads all the same."""
    latent = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    family = {"model_type": "deepseek_v3", "first_k_dense_replace": 99, "q_lora_rank": 16}
    model = make_model(num_key_value_heads=4, **family, **latent)
    of_one, of_each = (
        step_terms(
            make_deployment(
                tensor, plan=Plan(tensor=tensor), model=model, engine=make_engine(kv_reads=kind)
            ).costs,
            Work(decodes=3, context=300, logits=3),
        )[0, TIME, KV]
        for kind in ("kv-heads", "query-heads")
    )
    assert of_each == pytest.approx(4 / tensor * of_one)


@pytest.mark.parametrize("compute", ["memory binds later", "compute binds later"])
def test_the_contract_ends_where_the_other_side_binds(deployments, compute):
    costs = deployments[compute, "one chip", "ideal"].costs
    work = Work(decodes=2, context=20, logits=2)
    time, growth, holds = costs.step(work)
    assert 1 < holds < FOREVER
    beyond = costs.step(replace(work, context=work.context + holds * work.decodes)).time
    assert (beyond > time + holds * growth).all()


def test_a_prompts_step_is_like_no_other(deployments):
    assert (
        deployments["roofline", "one chip", "lossy"]
        .costs.step(Work(prompt_tokens=3, chunks=1, attended=6, cached=3))
        .holds
        == 1
    )


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("plan", PLANS)
def test_the_ideal_engine_of_the_catalogue_is_never_slower(deployments, compute, plan):
    lossy = deployments[compute, plan, "lossy"]
    layout = replace(lossy.layout, engine=read_value(find_entry("ideal", "engines"), Engine))
    ideal, slowed = (
        time_single_request(deployment, 40, 20)
        for deployment in (replace(lossy, layout=layout, costs=Costs(layout)), lossy)
    )
    assert ideal.ttft < slowed.ttft
    assert ideal.tpot < slowed.tpot
    assert ideal.fitted_share == 0 < slowed.fitted_share < 1


@given(
    st.sampled_from(sorted(PLANS)),
    st.floats(1e8, 1e12),
    st.floats(1e8, 1e12),
    st.floats(1, 10),
    st.floats(1, 10),
    st.integers(1, 60),
)
def test_a_faster_chip_never_makes_a_lone_request_slower(
    deployments, make_chip, plan, bandwidth, fp16, wider, faster, prompt
):
    """Under the same plan, its stages and its token budget included."""
    times = []
    for chip in (
        make_chip(bandwidth=bandwidth, fp16=fp16),
        make_chip(bandwidth=bandwidth * wider, fp16=fp16 * faster),
    ):
        deployment = deployments["roofline", plan, "lossy"]
        layout = replace(deployment.layout, chip=chip)
        times.append(
            time_single_request(replace(deployment, layout=layout, costs=Costs(layout)), prompt, 5)
        )
    slow, fast = times
    assert fast.ttft <= slow.ttft * (1 + 1e-12)
    assert fast.tpot <= slow.tpot * (1 + 1e-12)


@pytest.fixture(scope="module")
def with_overheads(make_deployment, lossy):
    """(attention ranks, stages) -> costs without and with a `sequence_overhead`."""
    engines = [lossy.model_copy(update={"sequence_overhead": each}) for each in (0.0, 2e-5)]
    costs = {}
    for data, pipeline in product(range(1, 5), (1, 2)):
        plan = Plan(attention_data=data, pipeline=pipeline)
        layout = make_deployment(data * pipeline, plan=plan, engine=lossy).layout
        costs[data, pipeline] = [Costs(replace(layout, engine=engine)) for engine in engines]
    return costs


def test_a_host_of_a_stage_without_attention_prepares_its_sequences(make_deployment, eager):
    """Four stages have an MLP alone."""
    costs = make_deployment(8, plan=Plan(pipeline=8), engine=eager).costs
    assert 0.0 in costs.launched
    terms = step_terms(costs, work := Work(decodes=20, context=200, logits=20))
    times = terms[:, TIME].sum(axis=1) - costs.hops(work.tokens)
    assert times == pytest.approx(costs.step(work).time)


@pytest.mark.parametrize("data", [1, 3])
def test_a_host_prepares_the_sequences_of_its_attention_rank(with_overheads, data):
    """7 sequences on 3 ranks: the fullest one has 3."""
    layout = with_overheads[data, 1][0].layout
    launch = Launch(decode=0.0, prefill=0.0, sequence=1.0)
    engine = layout.engine.model_copy(update={"layer_launch": launch})
    work = Work(decodes=7, context=70, logits=7)
    costs = Costs(replace(layout, engine=engine))
    assert costs.line(work)[0] == costs.step(work).time[0] == math.ceil(7 / data)


@given(st.integers(1, 4), st.sampled_from([1, 2]), works())
def test_ranks_handle_their_sequences_at_the_same_time(with_overheads, data, pipeline, work):
    """`sequence_overhead` is paid for the sequences of the fullest rank, in every spelling of a step's time."""
    none, some = with_overheads[data, pipeline]
    expected = 2e-5 * math.ceil((work.decodes + work.chunks) / data)
    for more in (
        some.step(work).time[-1] - none.step(work).time[-1],
        (step_terms(some, work) - step_terms(none, work))[-1, TIME].sum(),
        (step_terms(some, work) - step_terms(none, work))[-1, FITTED].sum(),
        program(some, work).stages[-1][-1].seconds - program(none, work).stages[-1][-1].seconds,
        some.line(work)[0] - none.line(work)[0] if pipeline == 1 else expected,
    ):
        assert more == pytest.approx(expected, rel=1e-6)


WIDE = {
    "model_type": "deepseek_v3",
    "num_local_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
}
NODES = Hierarchical(
    levels=(
        Switch(link=Link(latency=1e-6, bandwidth=4e9), chips=2),
        Switch(link=Link(latency=2e-6, bandwidth=1e9)),
    )
)


@pytest.fixture(scope="module")
def wide(make_deployment, make_model, make_chip, lossy):
    """(overlap, dispatch, expert) -> costs of 8 ranks in four nodes, and of engine `ideal`."""
    chip, found = make_chip(topology=NODES, capacity=1e9), {}

    def build(overlap, dispatch, expert):
        if (overlap, dispatch, expert) not in found:
            plan = Plan(attention_data=8, expert=expert, dispatch=dispatch)
            engine = lossy.model_copy(update={"overlap": overlap})
            layout = make_deployment(
                8, model=make_model(**WIDE), chip=chip, plan=plan, engine=engine
            ).layout
            ideal = read_value(find_entry("ideal", "engines"), Engine)
            found[overlap, dispatch, expert] = Costs(layout), Costs(replace(layout, engine=ideal))
        return found[overlap, dispatch, expert]

    return build


@given(
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([None, "fp8"]),
    st.sampled_from([1, 4, 8]),
    works(),
)
def test_experts_over_nodes_keep_the_laws(wide, overlap, dispatch, expert, work):
    """The terms are the step, they less their fitted part the step of engine `ideal`, and hiding never makes a step slower."""
    costs, ideal = wide(overlap, dispatch, expert)
    terms = step_terms(costs, work)
    assert terms[:, TIME].sum() == pytest.approx(costs.step(work).time.sum())
    assert costs.line(work)[0] == pytest.approx(costs.step(work).time.sum())
    assert (terms[:, TIME] - terms[:, FITTED]).sum() == pytest.approx(ideal.step(work).time.sum())
    assert terms[:, TIME, COLLECTIVES].min() >= 0
    assert costs.step(work).time.sum() <= wide(0.0, None, expert)[0].step(work).time.sum() * (
        1 + 1e-12
    )
