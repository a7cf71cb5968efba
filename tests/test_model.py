"""Parameters, FLOPs and KV bytes of a transformer: counted by hand on a tiny one, held to published totals on the shipped ones."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.files import ScenarioError, names, read
from sim.model import Model

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


def from_file(tmp_path, **changes) -> Model:
    """Read as users do it, so that an error names file and line."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | changes, indent=1), encoding="utf-8")
    return read(path, Model)


# Parameters.


def test_parameters_are_counted_as_by_hand():
    assert tiny().parameters == WHOLE


def test_without_key_value_heads_every_head_has_its_own():
    assert tiny(num_key_value_heads=None).parameters == WHOLE + 3 * 2 * 32


def test_a_head_size_that_is_given_is_honoured():
    assert tiny(head_dim=4).parameters == WHOLE + 3 * (64 + 2 * 32 + 64)  # twice the two that 8 / 4 would be
    assert tiny(head_dim=4).kv_width() == 2 * 2 * 4


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
        ({"model_type": "qwen3"}, 2 + 2),  # norms of a head's size on q and k
        ({"model_type": "mistral"}, 0),
    ],
)
def test_biases_and_norms_are_counted_in_each_layer(changes, more):
    assert tiny(**changes).parameters == WHOLE + 3 * more


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-2-7b", 6.74), ("llama-2-70b", 68.98), ("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.6)]
)
def test_shipped_models_have_their_published_parameters(name, billions):
    assert read(names("models")[name], Model).parameters == pytest.approx(billions * 1e9, rel=0.01)


# FLOPs and KV cache.


def test_a_token_takes_two_flops_for_each_parameter_it_is_multiplied_by():
    assert tiny().flops_per_token() == 2 * (WHOLE - 80 - 3 * 2 * 8 - 8)  # neither the table that is looked up in, nor norms


def test_attention_multiplies_each_position_twice_for_each_head():
    assert tiny().attention_flops(10) == 2 * 2 * (4 * 2) * 10


@pytest.mark.parametrize(
    ("name", "kib"), [("llama-2-7b", 512), ("llama-2-70b", 320), ("llama-3.1-8b", 128), ("llama-3.1-70b", 320)]
)
def test_a_token_leaves_keys_and_values_of_its_key_value_heads_in_each_layer(name, kib):
    model = read(names("models")[name], Model)
    assert 2 * model.kv_width() * model.num_hidden_layers == kib * 1024  # at 16 bits


# Dealt out to chips: the fullest one decides.


def test_a_degree_that_divides_deals_everything_out_evenly():
    attention = tiny().blocks[1]
    assert attention.parameters(2) == (64 + 2 * 32 + 64) / 2 + 8  # norms are held by all
    assert tiny().kv_width(2) == tiny().kv_width() / 2
    assert tiny().attention_flops(10, 2) == tiny().attention_flops(10) / 2


def test_heads_are_dealt_out_whole():
    attention = tiny().blocks[1]
    assert attention.parameters(3) == 2 * (8 * 2) * 2 + 2 * (8 * 2) + 8  # two query heads and one key-value head
    assert tiny().attention_flops(10, 3) == tiny().attention_flops(10, 2)


def test_fewer_key_value_heads_than_chips_are_held_more_than_once():
    assert tiny().kv_width(4) == tiny().kv_width(2) == 2 * 1 * 2


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 50), st.integers(1, 50), st.integers(1, 40))
@settings(deadline=None)
def test_the_fullest_chip_holds_an_even_share_at_least_and_the_whole_at_most(kv, group, inner, vocabulary, tensor):
    model = tiny(num_key_value_heads=kv, num_attention_heads=kv * group, head_dim=2, intermediate_size=inner, vocab_size=vocabulary)
    for block in model.blocks:
        assert block.parameters() / tensor <= block.parameters(tensor) <= block.parameters()
    assert model.kv_width() / tensor <= model.kv_width(tensor) <= model.kv_width()
    assert model.attention_flops(7) / tensor <= model.attention_flops(7, tensor) <= model.attention_flops(7)


def test_blocks_are_what_a_plan_cuts_between():
    kinds = [block.kind for block in tiny().blocks]
    assert kinds == ["embedding", *["attention", "mlp"] * 3, "head"]
    assert sum(math.prod(matrix.share(1)) for block in tiny().blocks for matrix in block.matrices) == WHOLE - 3 * 2 * 8 - 8


# What is not covered is refused by name, on its line.


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("num_local_experts", 8, "mixture of experts"),
        ("num_experts", 128, "mixture of experts"),
        ("n_routed_experts", 256, "mixture of experts"),
        ("kv_lora_rank", 512, "latent attention"),
        ("sliding_window", 4096, "sliding-window attention"),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"], "layers of several types"),
        ("attention_chunk_size", 8192, "chunked attention"),
        ("state_size", 16, "state-space layers"),
        ("text_config", {"hidden_size": 8}, "multimodal wrappers"),
        ("model_type", "deepseek_v3", "covered are llama, mistral, qwen2, qwen3"),
        ("torch_dtype", "float8_e4m3fn", "covered are float32, bfloat16, float16"),
        ("dtype", "int8", "covered are float32, bfloat16, float16"),
    ],
)
def test_what_is_not_covered_is_refused_by_naming_the_key(tmp_path, key, value, what):
    with pytest.raises(ScenarioError) as caught:
        from_file(tmp_path, **{key: value})
    line = next(n for n, text in enumerate((tmp_path / "config.json").read_text().splitlines(), 1) if f'"{key}"' in text)
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
    ],
)
def test_what_a_config_names_and_does_not_use_is_no_obstacle(tmp_path, unused):
    assert from_file(tmp_path, **unused).parameters == WHOLE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size 8 is no multiple of num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    ],
)
def test_heads_that_do_not_divide_are_refused(tmp_path, changes, reason):
    with pytest.raises(ScenarioError, match=reason):
        from_file(tmp_path, **changes)


@pytest.mark.parametrize("key", sorted(TINY.keys() - {"num_key_value_heads"}))
def test_a_key_without_which_nothing_can_be_computed_is_missed(tmp_path, key):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in TINY.items() if k != key}), encoding="utf-8")
    with pytest.raises(ScenarioError, match=f"'{key}' is missing"):
        read(path, Model)


@pytest.mark.parametrize(
    ("config", "precision"),
    [({"torch_dtype": "bfloat16"}, "bf16"), ({"dtype": "float16"}, "fp16"), ({"torch_dtype": "float32"}, "fp32"), ({}, "bf16")],
)
def test_the_precision_is_the_configs(config, precision):
    assert tiny(**config).precision == precision
