"""Parameters, FLOPs and KV bytes of a transformer: counted by hand on a tiny one, held to published totals on the shipped ones."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names, find_entry
from sim.model.blocks import Attention, Experts
from sim.model.transformer import Model

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 100,
}
# A layer: q 8x8, k and v 8x4 each, output 8x8; up and gate 8x16 each, down 16x8; two norms.  Beside: two tables and a norm.
LAYER = (64 + 2 * 32 + 64) + 3 * 128 + 2 * 8
WHOLE = 3 * LAYER + 2 * 80 + 8


def tiny(**changes) -> Model:
    return Model(**(TINY | changes))


def shape(model: Model, layer: int = 0) -> Attention:
    """How a layer attends."""
    (attention,) = model.blocks[1 + 2 * layer].mixers
    assert isinstance(attention, Attention)
    return attention


def from_file(tmp_path, **changes) -> Model:
    """Read as users do it, so that an error names file and line."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | changes, indent=1), encoding="utf-8")
    return read_value(path, Model)


# Parameters.


def test_parameters_are_counted_as_by_hand():
    assert tiny().parameters == WHOLE


def test_without_key_value_heads_every_head_has_its_own():
    assert tiny(num_key_value_heads=None).parameters == WHOLE + 3 * 2 * 32


def test_a_head_size_that_is_given_is_honoured():
    assert tiny(head_dim=4).parameters == WHOLE + 3 * (
        64 + 2 * 32 + 64
    )  # twice the two that 8 / 4 would be
    assert shape(tiny(head_dim=4)).kv_width() == 2 * 2 * 4


def test_a_tied_table_is_counted_once_and_multiplied_all_the_same():
    tied, untied = tiny(tie_word_embeddings=True), tiny()
    assert tied.parameters == untied.parameters - 80
    assert tied.flops_per_token() == untied.flops_per_token()


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"attention_bias": True}, 8 + 4 + 4 + 8),  # on q, k, v and the output
        ({"mlp_bias": True}, 16 + 16 + 8),
        ({"model_type": "qwen2"}, 8 + 4 + 4),  # on q, k and v, whatever the config says
        ({"model_type": "qwen3", "head_dim": 2}, 2 + 2),  # norms of a head's size on q and k
        ({"model_type": "mistral"}, 0),
    ],
)
def test_biases_and_norms_are_counted_in_each_layer(changes, more):
    assert tiny(**changes).parameters == WHOLE + 3 * more


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-2-7b", 6.74), ("llama-2-70b", 68.98), ("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.6)],
)
def test_shipped_models_have_their_published_parameters(name, billions):
    assert read_value(catalogue_names("models")[name], Model).parameters == pytest.approx(
        billions * 1e9, rel=0.01
    )


# FLOPs and KV cache.


def test_a_token_takes_two_flops_for_each_parameter_it_is_multiplied_by():
    assert tiny().flops_per_token() == 2 * (
        WHOLE - 80 - 3 * 2 * 8 - 8
    )  # neither the table that is looked up in, nor norms


def test_attention_multiplies_each_position_twice_for_each_head():
    assert shape(tiny()).flops() == 2 * 2 * (4 * 2)


@pytest.mark.parametrize(
    ("name", "kib"),
    [("llama-2-7b", 512), ("llama-2-70b", 320), ("llama-3.1-8b", 128), ("llama-3.1-70b", 320)],
)
def test_a_token_leaves_keys_and_values_of_its_key_value_heads_in_each_layer(name, kib):
    model = read_value(catalogue_names("models")[name], Model)
    assert 2 * model.kv_per_token() == kib * 1024  # at 16 bits


# Dealt out to chips: the fullest one decides.


def test_a_degree_that_divides_deals_everything_out_evenly():
    attention = tiny().blocks[1]
    assert attention.parameters(2) == (64 + 2 * 32 + 64) / 2 + 8  # norms are held by all
    assert shape(tiny()).kv_width(2) == shape(tiny()).kv_width() / 2
    assert shape(tiny()).flops(2) == shape(tiny()).flops() / 2


def test_heads_are_dealt_out_whole():
    attention = tiny().blocks[1]
    assert (
        attention.parameters(3) == 2 * (8 * 2) * 2 + 2 * (8 * 2) + 8
    )  # two query heads and one key-value head
    assert shape(tiny()).flops(3) == shape(tiny()).flops(2)


def test_fewer_key_value_heads_than_chips_are_held_more_than_once():
    assert shape(tiny()).kv_width(4) == shape(tiny()).kv_width(2) == 2 * 1 * 2


@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 50), st.integers(1, 50), st.integers(1, 40)
)
@settings(deadline=None)
def test_the_fullest_chip_holds_an_even_share_at_least_and_the_whole_at_most(
    kv, group, inner, vocabulary, tensor
):
    model = tiny(
        num_key_value_heads=kv,
        num_attention_heads=kv * group,
        head_dim=2,
        intermediate_size=inner,
        vocab_size=vocabulary,
    )
    for block in model.blocks:
        assert block.parameters() / tensor <= block.parameters(tensor) <= block.parameters()
    attention = shape(model)
    assert attention.kv_width() / tensor <= attention.kv_width(tensor) <= attention.kv_width()
    assert attention.flops() / tensor <= attention.flops(tensor) <= attention.flops()


def test_blocks_are_what_a_plan_cuts_between():
    kinds = [block.kind for block in tiny().blocks]
    assert kinds == ["embedding", *["attention", "mlp"] * 3, "head"]
    assert (
        sum(math.prod(matrix.share(1)) for block in tiny().blocks for matrix in block.matrices)
        == WHOLE - 3 * 2 * 8 - 8
    )


# What is not covered is refused by name, on its line.


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        (
            "layer_types",
            ["full_attention", "linear_attention", "full_attention"],
            "got 'linear_attention'; expected chunked_attention",
        ),
        ("state_size", 16, "state-space layers"),
        ("mamba_d_state", 16, "state-space layers"),
        ("linear_num_value_heads", 4, "linear attention"),
        ("index_topk", 2048, "sparse attention"),
        ("index_topk_pattern", "FSSS", "indexers by a pattern"),
        (
            "model_type",
            "lama",
            "expected a family that `sramsim catalog families` lists; did you mean 'llama'",
        ),
        (
            "quantization_config",
            {"quant_method": "nobody"},
            "quant_method: got 'nobody'; expected awq",
        ),
        ("torch_dtype", "float8_e4m3fn", "expected one of float32, bfloat16, float16"),
        ("dtype", "int8", "expected one of float32, bfloat16, float16"),
    ],
)
def test_what_is_not_covered_is_refused_by_naming_the_key(tmp_path, key, value, what):
    with pytest.raises(ScenarioError) as caught:
        from_file(tmp_path, **{key: value})
    line = next(
        n
        for n, text in enumerate((tmp_path / "config.json").read_text().splitlines(), 1)
        if f'"{key}"' in text
    )
    assert f"config.json:{line}: " in str(caught.value)
    assert key in str(caught.value).partition(": ")[2]
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "unused",
    [
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 3},
        {"num_experts": 0},
        {"rope_theta": 500000.0, "rms_norm_eps": 1e-05},
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 256,
        },
    ],
)
def test_what_a_config_names_and_does_not_use_is_no_obstacle(tmp_path, unused):
    assert from_file(tmp_path, **unused).parameters == WHOLE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            "hidden_size: got 8; expected a multiple of num_attention_heads 3",
        ),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads: got 3; expected a divisor of num_attention_heads 4",
        ),
        (
            {"swa_num_key_value_heads": 3},
            "swa_num_key_value_heads: got 3; expected a divisor of 4 heads",
        ),
        # The output projection of Helium's class has hidden_size rows.
        (
            {"model_type": "helium", "head_dim": 4},
            "head_dim: got 4; expected hidden_size 8 divided by num_attention_heads 4",
        ),
    ],
)
def test_heads_that_do_not_divide_are_refused(tmp_path, changes, reason):
    with pytest.raises(ScenarioError, match=reason):
        from_file(tmp_path, **changes)


@pytest.mark.parametrize("key", sorted(TINY.keys() - {"num_key_value_heads"}))
def test_a_key_without_which_nothing_can_be_computed_may_not_be_null(tmp_path, key):
    with pytest.raises(ScenarioError, match=f"config.json:.*{key}"):
        from_file(tmp_path, **{key: None})


def test_other_keys_that_are_null_mean_nothing_of_the_kind():
    """Also where the class has a default: Mistral's is 8 KV heads and a window of 4,096."""
    nulls = dict.fromkeys(("num_key_value_heads", "sliding_window", "tie_word_embeddings"))
    model = tiny(model_type="mistral", attention_bias=None, mlp_only_layers=None, **nulls)
    assert model.kv_heads == 4
    assert model.window is None
    assert model.parameters == WHOLE + 3 * 2 * 32


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"peft_type": "LORA", "base_model_name_or_path": "x/y"}, "an adapter of the model 'x/y'"),
        ({"quantization": {"quant_algo": "FP8"}}, "got hf_quant_config.json"),
        ({"dim": 4096, "n_layers": 32}, "got params.json"),
        (TINY | {"architectures": ["LlamaForSequenceClassification"]}, "generates no tokens"),
        (TINY | {"architectures": ["LlamaModel"]}, "generates no tokens"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path, content, reason):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ScenarioError, match=reason):
        read_value(path, Model)


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"dtype": "float16"}, "fp16"),
        ({"torch_dtype": "float32"}, "fp32"),
        ({}, "bf16"),
    ],
)
def test_the_precision_is_the_configs(config, precision):
    assert tiny(**config).precision == precision


def test_what_stands_in_text_config_is_the_model(tmp_path):
    nested = {
        "model_type": "llama",
        "text_config": TINY,
        "vision_config": {"hidden_size": 99},
        "tie_word_embeddings": True,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(nested), encoding="utf-8")
    assert read_value(path, Model).parameters == WHOLE - 80


# Mixture of experts, latent attention, windows: small ones by hand.

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "mixtral"}


def test_experts_are_counted_all_and_those_that_a_token_meets():
    model = tiny(**MOE)
    expert, router = 3 * 128, 8 * 4
    assert model.parameters == WHOLE + 3 * (3 * expert + router)
    assert model.active_parameters == WHOLE - 80 + 3 * (1 * expert + router)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        (
            {
                "model_type": "deepseek_v3",
                "n_routed_experts": 8,
                "num_experts_per_tok": 1,
                "first_k_dense_replace": 1,
            },
            [1, 2],
        ),
        ({"model_type": "llama4_text", "num_local_experts": 4, "moe_layers": (2,)}, [2]),
        ({"model_type": "qwen3_moe", "num_experts": 8, "decoder_sparse_step": 2}, [1]),
        ({"model_type": "qwen3_moe", "num_experts": 8, "mlp_only_layers": (0,)}, [1, 2]),
        (
            {"model_type": "llama4_text", "num_local_experts": 4, "interleave_moe_layer_step": 2},
            [1],
        ),
        (MOE, [0, 1, 2]),
        ({}, []),
    ],
)
def test_which_layers_have_experts(changes, layers):
    assert [i for i in range(3) if tiny(**changes).blocks[2 + 2 * i].experts] == layers


def test_a_shared_expert_is_met_by_every_token():
    plain = {
        "model_type": "deepseek_v3",
        "n_routed_experts": 8,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 5,
        "first_k_dense_replace": 0,
    }
    none = tiny(**plain, n_shared_experts=0)
    assert (
        tiny(**plain, n_shared_experts=2).active_parameters - none.active_parameters
        == 3 * 2 * 3 * 8 * 5
    )


def test_latent_attention_keeps_its_rank_and_a_rotary_key():
    model = tiny(
        model_type="deepseek_v3",
        q_lora_rank=6,
        kv_lora_rank=5,
        qk_rope_head_dim=2,
        qk_nope_head_dim=3,
        v_head_dim=4,
    )
    attention = shape(model)
    assert (
        attention.kv_width() == attention.kv_width(4) == 5 + 2
    )  # every chip of a group keeps it whole
    assert attention.flops(decode=True) == 2 * 4 * (2 * 5 + 2)
    assert attention.flops(decode=False) == 2 * 4 * (3 + 2 + 4)
    matrices = 8 * 6 + 6 * 4 * 5 + 8 * 7 + 5 * 4 * 7 + 4 * 4 * 8
    assert model.blocks[1].parameters() == matrices + 8 + 6 + 5
    # Engines compress queries, keys and values in one multiply.
    assert model.blocks[1].matrices[0].share(4) == (8, 6 + 7)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 7}, [7, 7, 7]),
        (
            {
                "sliding_window": 7,
                "layer_types": ("full_attention", "sliding_attention", "full_attention"),
            },
            [None, 7, None],
        ),
        ({"sliding_window": 7, "model_type": "gemma2"}, [7, None, 7]),
        (
            {"sliding_window": 7, "model_type": "gemma3_text", "sliding_window_pattern": 3},
            [7, 7, None],
        ),
        (
            {"sliding_window": 7, "model_type": "exaone4", "sliding_window_pattern": "LGL"},
            [7, None, None],  # the last layer of letters attends to all
        ),
        (
            {
                "sliding_window": 7,
                "model_type": "qwen3",
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            [None, None, 7],
        ),
        (
            {"sliding_window": 7, "model_type": "qwen3", "use_sliding_window": False},
            [None, None, None],
        ),
        ({"attention_chunk_size": 9, "model_type": "llama4_text"}, [9, 9, 9]),
    ],
)
def test_which_layers_see_how_far(changes, windows):
    model = tiny(**changes)
    assert [shape(model, i).window for i in range(3)] == windows
    assert model.window == max((w for w in windows if w), default=None)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("gemma-2-9b", [4096, None] * 21),
        ("gpt-oss-20b", [128, None] * 12),
        ("llama-4-scout", [8192, 8192, 8192, None] * 12),
        ("qwen2.5-32b", [None] * 64),
    ],
)
def test_windows_of_shipped_models_alternate_as_published(name, windows):
    model = read_value(catalogue_names("models")[name], Model)
    assert [shape(model, i).window for i in range(model.num_hidden_layers)] == windows


def test_layers_of_nemotron_nas_differ():
    """Attention with a KV head for 2 or 4 query heads, one matrix in its place, or none."""

    def entry(attention: dict, ffn: dict) -> dict:
        return {"attention": attention, "ffn": ffn}

    linear, none = {"replace_with_linear": True}, {"no_op": True}
    model = tiny(
        model_type="nemotron-nas",
        hidden_size=512,
        num_attention_heads=4,
        num_key_value_heads=None,
        num_hidden_layers=4,
        block_configs=(
            entry({"n_heads_in_group": 2}, {"ffn_mult": 2.0}),  # 2 x 2 x 512/3, up to 768
            entry({"n_heads_in_group": 4}, linear),
            entry(linear, none),
            entry(none, {"ffn_mult": 0.5}),  # up to 256
        ),
    )
    assert model.kv_per_token() == 2 * 128 * (2 + 1)
    square, norm = 512 * 512, 512
    layers = (
        2 * square + 512 * 2 * 256 + 3 * 512 * 768 + 2 * norm,
        2 * square + 512 * 2 * 128 + square + 2 * norm,
        square + norm,
        3 * 512 * 256 + norm,
    )
    assert sum(block.parameters() for block in model.blocks[1:-1]) == sum(layers)
    with pytest.raises(ValidationError, match=r"block_configs.0.ffn.sparsify: got 'half'"):
        tiny(
            model_type="nemotron-nas",
            num_hidden_layers=1,
            block_configs=(entry(none, {"ffn_mult": 1.0, "sparsify": "half"}),),
        )


def test_global_layers_may_have_heads_of_their_own():
    """As Gemma 4: other heads in the layers that see all, whose V is their K."""
    model = tiny(
        model_type="gemma4_text",
        head_dim=2,
        sliding_window=7,
        layer_types=("sliding_attention", "sliding_attention", "full_attention"),
        global_head_dim=4,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
    )
    assert (shape(model, 0).kv_width(), shape(model, 2).kv_width()) == (2 * 2 * 2, 1 * 4)


# Routing.


@given(st.integers(2, 40), st.integers(1, 40), st.floats(0, 3), st.integers(1, 200))
@settings(deadline=None)
def test_each_token_takes_its_number_of_experts(count, per_token, skew, tokens):
    experts = Experts(count, min(count, per_token), ())
    chances = experts.chances(skew)
    assert chances.sum() == pytest.approx(experts.per_token)
    assert (chances <= 1).all()
    assert (np.diff(chances) <= 1e-12).all()  # the popular first
    drawn = experts.draw(tokens, chances, np.random.default_rng(0), 3)
    assert drawn.shape == (3, count)
    if tokens <= 64:
        assert (drawn.sum(axis=1) == tokens * experts.per_token).all()
    assert (drawn <= tokens).all()


def test_drawn_experts_are_taken_as_often_as_their_chances_say():
    experts = Experts(16, 4, ())
    chances = experts.chances(0.0)
    means = [experts.draw(8, chances, np.random.default_rng(seed), 50).mean() for seed in range(20)]
    assert np.mean(means) == pytest.approx(8 * 4 / 16)
    reached = np.array(
        [
            (experts.draw(8, chances, np.random.default_rng(seed), 50) > 0).sum(axis=1).mean()
            for seed in range(20)
        ]
    )
    assert abs(reached.mean() - 16 * (1 - (1 - 4 / 16) ** 8)) < 3 * reached.std() / 20**0.5


# On how many chips and nodes a token's experts lie.


def drawn(experts, blocks, times=1000):
    """The mean over drawings: groups first, then experts of these."""
    stream, size = np.random.default_rng(1), experts.count // experts.groups
    reached = 0
    for _ in range(times):
        groups = stream.choice(experts.groups, experts.groups_per_token, replace=False)
        open_to = np.concatenate([np.arange(g * size, (g + 1) * size) for g in groups])
        taken = stream.choice(open_to, experts.per_token, replace=False)
        reached += len(set((taken * blocks // experts.count).tolist()))
    return reached / times


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 8, 10, 32, 64])
@pytest.mark.parametrize("groups", [(1, 1), (8, 4), (8, 8), (4, 1)])
def test_a_token_reaches_as_many_blocks_as_drawings_say(blocks, groups):
    experts = Experts(64, 8, (), 0, *groups)
    assert experts.reached(blocks) == pytest.approx(drawn(experts, blocks), rel=0.02)
    assert experts.reached(blocks) <= min(blocks, 8) * (1 + 1e-12)


def test_node_limited_routing_bounds_the_nodes():
    """DeepSeek-V3: groups of 32 experts, at most four of eight; with a group on each node at most four nodes."""
    v3 = next(
        block.experts
        for block in read_value(find_entry("deepseek-v3", "models"), Model).blocks
        if block.experts
    )
    assert (v3.groups, v3.groups_per_token) == (8, 4)
    assert 3.5 < v3.reached(8) < 4
    assert replace(v3, groups=1, groups_per_token=1).reached(8) > 5
    assert v3.reached(256) == pytest.approx(8)
    assert v3.reached(1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"n_group": 3}, "n_group: got 3; expected a divisor of the 8 experts"),
        ({"n_group": 8, "topk_group": 1}, "topk_group: got 1 of 8 groups"),
    ],
)
def test_groups_that_cannot_be_are_refused(make_model, groups, reason):
    with pytest.raises(ValidationError, match=reason):
        make_model(model_type="deepseek_v3", num_local_experts=8, num_experts_per_tok=2, **groups)
