"""Bytes of a small model by hand, degrees, and what fits."""

from dataclasses import replace

import numpy as np
import pytest

from sim.cost.layout import fit, sequences
from sim.cost.plan import Plan
from sim.cost.step import Costs
from sim.cost.system_costs import step_terms
from sim.cost.terms import COLLECTIVES, HOPS, WEIGHTS
from sim.cost.work import Work
from sim.hardware.chip import Memory
from sim.hardware.engine import Engine
from sim.hardware.topology import FullyConnected, Link
from sim.inputs.document import read_value
from sim.inputs.names import catalogue_names
from sim.planning.deployment import DeploymentParts, LimitOverrides, deploy

# The small model: hidden 64, MLP 128, 4 heads and 2 KV heads of 16, 4 layers, vocabulary 256.
ATTENTION = 64 * 64 + 2 * 64 * 32 + 64 * 64
MLP = 3 * 64 * 128
TABLE = 256 * 64
NORM = 64


def held(deployment):
    """Bytes of weights on the fullest chip of each stage."""
    return [stage.weights for stage in deployment.layout.stages]


def test_one_chip_holds_every_parameter_in_its_width(make_deployment):
    blocks = 4 * (ATTENTION + MLP + 2 * NORM)
    assert held(make_deployment()) == [2 * (blocks + 2 * TABLE + NORM)]
    assert held(make_deployment(plan=Plan(weights="int8", head="fp16"))) == [
        blocks + 2 * (2 * TABLE + NORM)
    ]
    assert held(make_deployment(plan=Plan(weights="int4", head="int8"))) == [
        blocks / 2 + 2 * TABLE + NORM
    ]


def test_tensor_parallelism_splits_matrices_and_repeats_norms(make_deployment):
    halves = 4 * ((ATTENTION + MLP) // 2 + 2 * NORM) + 2 * TABLE // 2 + NORM
    assert held(make_deployment(2, plan=Plan(tensor=2))) == [2 * halves]


def test_fewer_kv_heads_than_chips_are_held_more_than_once(make_deployment):
    """4 chips: one query head each, and one of the two KV heads, which two chips hold."""
    deployment = make_deployment(4, plan=Plan(tensor=4))
    attention = 64 * 16 + 2 * 64 * 16 + 16 * 64
    assert held(deployment) == [2 * (4 * (attention + MLP // 4 + 2 * NORM) + 2 * TABLE // 4 + NORM)]
    assert (
        deployment.layout.stages[0].kv_per_token == 4 * 2 * 16 * 2
    )  # layers, K and V, one head, 2 bytes
    assert (
        4 * deployment.layout.stages[0].kv_per_token
        == 2 * make_deployment().layout.stages[0].kv_per_token
    )


def test_heads_that_do_not_divide_make_the_fullest_chip_decide(make_deployment):
    """3 chips: 2 of 4 query heads, 1 of 2 KV heads, 43 of 128 columns, 86 of 256 tokens on the fullest."""
    deployment = make_deployment(3, plan=Plan(tensor=3))
    attention = 64 * 32 + 2 * 64 * 16 + 32 * 64
    assert held(deployment) == [2 * (4 * (attention + 3 * 64 * 43 + 2 * NORM) + 2 * 86 * 64 + NORM)]
    assert any("attention heads" in line for line in deployment.warnings)


def test_every_stage_holds_its_own_blocks(make_deployment):
    """One block a stage: the table, then attention and MLP in turn, then the head."""
    deployment = make_deployment(10)
    blocks = [TABLE, *[ATTENTION + NORM, MLP + NORM] * 4, TABLE + NORM]
    assert held(deployment) == [2 * block for block in blocks]
    assert [stage.kv_per_token for stage in deployment.layout.stages] == [
        0,
        *[2 * 2 * 16 * 2, 0] * 4,
        0,
    ]


def test_a_shared_table_is_held_once_where_one_stage_has_both_ends(make_deployment, make_model):
    tied = make_model(tie_word_embeddings=True)
    assert held(make_deployment())[0] - held(make_deployment(model=tied))[0] == 2 * TABLE
    assert sum(held(make_deployment(2))) == sum(held(make_deployment(2, model=tied)))


def test_it_fits_to_the_byte(make_deployment, make_chip, make_engine):
    """Weights, a step's activations through the widest matrix, the engine's reserve, and K and V of one request."""
    engine = make_engine(reserve=1000.0, memory_fraction=0.5)
    weights = held(make_deployment())[0]
    needed = weights + 16 * (64 + 256) * 2 + 1000 + 64 * 512
    exact, short = (
        make_deployment(engine=engine, chip=make_chip(2 * room)).fit
        for room in (needed, needed - 1)
    )
    assert exact.needed == exact.capacity == needed
    assert exact.fits
    assert exact.kv_tokens == 64
    assert not short.fits
    assert short.kv_tokens == 63


def test_room_is_that_of_the_fullest_stage(make_deployment, make_chip):
    """Of two stages the one with less room for each token decides; all memory together would hold more."""
    layout = replace(make_deployment(2, chip=make_chip(3e5)).layout, bounds=(0, 7))
    rooms = [3e5 - 16 * 320 * 2 - stage.weights for stage in layout.stages]
    assert [stage.kv_per_token for stage in layout.stages] == [3 * 128, 128]
    fitted = fit(layout, 64)
    assert fitted.kv_tokens == min(rooms[0] // (3 * 128), rooms[1] // 128)
    assert sequences(layout, 100) == (fitted.kv_tokens // 100, sum(rooms) // (100 * 512))


@pytest.mark.parametrize(
    ("chips", "plan", "message"),
    [
        (
            8,
            Plan(tensor=2, pipeline=3),
            "= 6 chips; expected 8; leave pipeline out for 4",
        ),
        (8, Plan(tensor=3), "got tensor 3 x pipeline 2 = 6 chips; expected 8; try chips: 6"),
        (8, Plan(tensor=2, replicas=3), "x replicas 3 = 6 chips; expected 8"),
        (11, Plan(), "got pipeline 11; expected at most 10, since in-place has only 10 blocks"),
    ],
)
def test_degrees_that_do_not_make_the_chips_are_refused(make_model, chips, plan, message):
    with pytest.raises(ValueError, match=message):
        plan.resolved(chips, make_model())


def test_a_plans_defaults_are_all_the_chips_and_the_configs_precision(make_model):
    plan = Plan(tensor=2, replicas=2, weights="int8").resolved(12, make_model())
    assert plan.pipeline == 3
    assert [plan.weights, plan.activations, plan.kv, plan.head] == [
        "int8",
        "fp16",
        "fp16",
        "fp16",
    ]


# Experts, ranks, windows, memories.

MOE = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


def test_experts_are_dealt_to_shards_whole_or_split(make_model, make_deployment):
    """4 chips: each expert in four parts on every chip, or two whole experts on each; the router on all."""
    model = make_model(**MOE)
    router, expert = 64 * 8, MLP
    for expert_degree, share in ((1, 8 * expert // 4), (2, 4 * expert // 2), (4, 2 * expert)):
        layout = make_deployment(4, model=model, plan=Plan(tensor=4, expert=expert_degree)).layout
        block = model.blocks[2]
        assert layout.weights(block) == 2 * (share + router + NORM)


def test_each_rank_of_attention_data_parallelism_holds_attention_whole(make_model, make_deployment):
    model = make_model(**MOE)
    ranks = make_deployment(4, model=model, plan=Plan(attention_data=4)).layout
    alone = make_deployment(1, model=model, plan=Plan()).layout
    assert ranks.plan.expert == 4  # an expert is on one chip only
    assert ranks.weights(model.blocks[1]) == alone.weights(model.blocks[1])
    assert (
        fit(ranks, 10).kv_tokens > 4 * fit(alone, 10).kv_tokens
    )  # four caches, and experts leave more room


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(tensor=4, expert=3), "got 3; expected a divisor of the 4 chips of a stage; try 4"),
        (Plan(tensor=4, expert=8), "got 8; expected a divisor"),
    ],
)
def test_expert_degrees_that_do_not_divide_a_stage_are_refused(
    make_model, make_deployment, plan, message
):
    with pytest.raises(ValueError, match=message):
        make_deployment(4, model=make_model(**MOE), plan=plan)


def test_a_model_without_experts_has_no_expert_degree(make_deployment):
    with pytest.raises(ValueError, match=r"got 2; expected 1, since .* has no experts"):
        make_deployment(4, plan=Plan(tensor=4, expert=2))


def test_a_window_keeps_its_positions_and_no_more(make_model, make_deployment):
    """Half of the layers see 50 positions: 100 tokens take what 75 take where all see all."""
    types = ("sliding_attention", "full_attention") * 2
    windowed = make_deployment(model=make_model(sliding_window=50, layer_types=types)).layout
    whole = make_deployment().layout
    assert windowed.stages[0].kv(100, 50) == whole.stages[0].kv(75, None)
    assert windowed.stages[0].kv(50, 50) == whole.stages[0].kv(50, None)


def test_weights_and_cache_live_where_the_plan_says_or_first_fit(make_chip, make_deployment):
    small, large = Memory(capacity=3e5, bandwidth=1e12), Memory(capacity=3e8, bandwidth=1e9)
    chip = make_chip(1e6).model_copy(update={"memory": {"sram": small, "dram": large}})

    def homes(**named):
        return make_deployment(chip=chip, plan=Plan(**named)).layout.plan

    first = homes()
    assert (first.weights_in, first.kv_in) == ("dram", "dram")  # the model is larger than the SRAM
    apart = homes(weights_in="dram", kv_in="sram")
    assert (apart.weights_in, apart.kv_in) == ("dram", "sram")
    with pytest.raises(ValueError, match=r"got nvme; expected a memory of .*; try sram, dram"):
        homes(weights_in="nvme")


def test_weights_stream_at_the_pace_of_their_memory(make_chip, make_deployment):
    fast, slow = Memory(capacity=1e9, bandwidth=1e12), Memory(capacity=1e9, bandwidth=1e9, holds=())
    chip = make_chip(1e9).model_copy(update={"memory": {"hbm": fast, "host": slow}})
    near, far = (make_deployment(chip=chip, plan=Plan(weights_in=home)) for home in (None, "host"))
    weights = near.layout.stages[0].weights
    work = Work(decodes=1, context=1, logits=1)
    times = [step_terms(deployment.costs, work)[0, 0, WEIGHTS] for deployment in (near, far)]
    assert times[1] / times[0] == pytest.approx(1000, rel=0.01)
    assert times[1] == pytest.approx(weights / 1e9, rel=0.1)


def test_a_sequence_may_be_split_where_heads_would_be_held_twice(make_deployment):
    """4 chips, 2 KV heads: two chips hold a head, or each the half of its sequence, for one more all-reduce a layer."""
    twice, split = (
        make_deployment(4, plan=Plan(tensor=4, kv_split=kind)) for kind in ("heads", "sequence")
    )
    assert split.layout.stages[0].kv_per_token == twice.layout.stages[0].kv_per_token / 2
    work = Work(decodes=1, context=1000, logits=1)
    more = [step_terms(d.costs, work)[0, 0, COLLECTIVES] for d in (split, twice)]
    assert more[0] > more[1]


def test_drawn_routing_is_the_seeds_and_near_what_is_expected(make_model, make_chip):
    model = make_model(num_local_experts=16, num_experts_per_tok=2, model_type="mixtral")

    def times(seed):
        parts = {
            "chip": make_chip(1e9),
            "engine": read_value(catalogue_names("engines")["ideal"], Engine),
            "plan": Plan(),
        }
        parts = DeploymentParts(model, chips=1, **parts)
        layout = deploy(parts, 64, overrides=LimitOverrides(16)).layout
        costs = Costs(layout if seed is None else replace(layout, expert_seed=(seed,)))
        return [
            float(costs.step(Work(decodes=8, context=80, logits=8)).time.sum()) for _ in range(40)
        ]

    assert times(1) == times(1) != times(2)
    means = [np.mean(times(seed)) for seed in range(20)]
    assert (
        abs(np.mean(means) - times(None)[0]) < 3 * np.std(means) / 20**0.5 + 0.01 * times(None)[0]
    )


# What chips send each other.


@pytest.mark.parametrize(
    ("given", "hidden"),
    [
        ({}, "fp16"),
        ({"activations": "fp32"}, "fp32"),
        ({"activations": "bf16"}, "bf16"),
        (
            {"activations": "int8"},
            "fp16",
        ),  # the config's: INT8, FP8 and FP4 are formats of a multiply's operands
        ({"activations": "fp8"}, "fp16"),
        ({"activations": "fp4"}, "fp16"),
        ({"activations": "fp8", "hidden": "fp8"}, "fp8"),
        ({"hidden": "fp32"}, "fp32"),
    ],
)
def test_hidden_states_are_as_activations_but_for_formats_of_operands(make_model, given, hidden):
    assert Plan(**given).resolved(1, make_model()).hidden == hidden


def test_what_chips_send_each_other_has_the_width_of_hidden_states(make_deployment, make_chip):
    """Twice the bytes take twice the time on links without latency; nothing else of a step changes."""
    link = Link(latency=0.0, bandwidth=1e9)
    chip = make_chip(topology=FullyConnected(link=link))
    work = Work(decodes=3, context=30, logits=3)

    def terms(hidden):
        plan = Plan(tensor=2, pipeline=2, activations="fp16", hidden=hidden)
        return step_terms(make_deployment(4, chip=chip, plan=plan).costs, work)[:, 0]

    half, whole = terms("fp16"), terms("fp32")
    for term in (COLLECTIVES, HOPS):
        assert half[:, term].sum() > 0
        assert whole[:, term] == pytest.approx(2 * half[:, term])
    others = [term for term in range(half.shape[1]) if term not in (COLLECTIVES, HOPS)]
    assert (whole[:, others] == half[:, others]).all()


# Checkpoints that store parts in formats of their own.

GROUPS_OF_32 = {"num_bits": 4, "type": "int", "group_size": 32}  # 4.5 bits a weight


@pytest.fixture
def mixed(make_model):
    """Attention in groups of INT4, MLPs kept at 16 bits; activations and cache in FP8."""
    eight = {"num_bits": 8, "type": "float"}
    group = {"targets": ["Linear"], "weights": GROUPS_OF_32, "input_activations": eight}
    return make_model(
        quantization_config={
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": group},
            "kv_cache_scheme": eight,
            "ignore": ["lm_head", "re:.*mlp.*"],
        }
    )


def test_what_a_chip_holds_and_reads_follows_the_checkpoints_formats(mixed, make_deployment):
    deployment = make_deployment(model=mixed)
    norms = 4 * NORM * (0.5 + 2) + 2 * NORM  # at their block's width
    matrices = 4 * (4.5 / 8 * ATTENTION + 2 * MLP) + 2 * 2 * TABLE
    assert held(deployment) == [matrices + norms]
    read = sum(
        cost.repeats.item() * multiply.weights
        for block, cost in deployment.costs.blocks.items()
        for multiply in cost.dense
        if block.kind != "embedding"  # only rows are read of it
    )
    assert read == matrices - 2 * TABLE


def test_a_plan_takes_what_it_does_not_say_from_the_checkpoint(mixed):
    def precisions(**keys):
        plan = Plan(**keys).resolved(1, mixed)
        return [plan.weights, plan.attention, plan.activations, plan.kv, plan.head]

    assert precisions() == ["fp16", "int4", "fp8", "fp8", "fp16"]
    assert precisions(weights="fp8") == ["fp8", "fp8", "fp8", "fp8", "fp16"]
    assert precisions(attention="int8", kv="fp16") == ["fp16", "int8", "fp8", "fp16", "fp16"]


def test_a_precision_that_the_plan_names_has_no_block_scales(mixed, make_deployment):
    plain = 4 * (ATTENTION + MLP + 2 * NORM) / 2 + 2 * (2 * TABLE + NORM)
    assert held(make_deployment(model=mixed, plan=Plan(weights="int4"))) == [plain]


@pytest.mark.parametrize(
    ("name", "bare", "scale"),
    [("mxfp4", "fp4", 1 / 32), ("nvfp4", "fp4", 1 / 16), ("fp8-block", "fp8", 4 / 128**2)],
)
def test_a_format_with_block_scales_adds_a_scale_for_each_block(
    make_model, make_deployment, name, bare, scale
):
    """Weights take their bits and a share of the scale; they are multiplied like those without scales."""
    plain, scaled = (
        make_deployment(model=make_model(), plan=Plan(weights=chosen)) for chosen in (bare, name)
    )
    more = scaled.layout.stages[0].weights - plain.layout.stages[0].weights
    numbers = 4 * (ATTENTION + MLP)
    assert more == pytest.approx(numbers * scale)
    assert scaled.layout.plan.weights == plain.layout.plan.weights == bare
    parts = [d.layout.plan.format_names for d in (plain, scaled)]
    assert [(names["weights"], names["attention"]) for names in parts] == [
        (bare, bare),
        (name, name),
    ]


def test_fp8_blocks_of_a_plan_take_what_those_of_a_checkpoint_take(make_model, make_deployment):
    """As Qwen and DeepSeek publish them: 128 x 128 weights have an FP32 scale."""
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    published = make_deployment(model=make_model(quantization_config=config))
    chosen = make_deployment(model=make_model(), plan=Plan(weights="fp8-block"))
    assert held(chosen) == held(published)


def test_a_file_of_32_bits_is_served_at_16_where_the_plan_says_so(make_model, make_deployment):
    wide = make_model(torch_dtype="float32")
    plan = Plan(weights="bf16")
    served = plan.resolved(1, wide)
    assert {served.activations, served.kv, served.head} == {"bf16"}
    assert Plan().resolved(1, wide).head == "fp32"
    assert held(make_deployment(model=wide, plan=plan)) == held(make_deployment())
