"""One changed key of a config.json: the model is right, or the file is refused by that key."""

import pytest
from pydantic import ValidationError

from sim.model.transformer import Model

LLAMA4 = {"model_type": "llama4_text"}
WRONG = [
    # Negative, and beyond what any model has.
    ({"model_type": "qwen2_moe"}, "num_local_experts", -1),
    ({"model_type": "qwen2_moe"}, "num_local_experts", 10**18),
    ({"model_type": "qwen2_moe"}, "shared_expert_intermediate_size", -1),
    ({"model_type": "deepseek_v3"}, "n_shared_experts", -1),
    ({"model_type": "deepseek_v3"}, "first_k_dense_replace", -1),
    ({"model_type": "jamba"}, "expert_layer_offset", -1),
    ({"model_type": "jamba"}, "num_hidden_layers", 10**18),
    ({"model_type": "falcon_h1"}, "num_hidden_layers", 10**18),
    # Null where the class has a size, and no model without it.
    ({"model_type": "jamba"}, "expert_layer_period", None),
    ({"model_type": "deepseek_v3"}, "kv_lora_rank", None),
    ({"model_type": "deepseek_v3"}, "moe_intermediate_size", None),
    ({"model_type": "deepseek_v3"}, "num_experts_per_tok", None),
    ({"model_type": "deepseek_v3"}, "intermediate_size", None),
    (LLAMA4, "interleave_moe_layer_step", None),
    # Values of another kind.
    ({"model_type": "mistral"}, "sliding_window", ()),
    ({"model_type": "mistral"}, "sliding_window", False),
    (
        {"model_type": "granitemoehybrid", "layer_types": ("attention",) * 32},
        "shared_intermediate_size",
        {},
    ),
    ({"model_type": "hunyuan_v1_moe", "num_hidden_layers": 32}, "moe_intermediate_size", (3072,)),
    ({"model_type": "gpt_oss"}, "layer_types", ()),
    ({"model_type": "gemma3"}, "text_config", 5),
    # Numbers that do not go together.
    ({"model_type": "mixtral", "num_experts_per_tok": 4}, "num_experts_per_tok", 9),
    ({"model_type": "mixtral"}, "num_local_experts", 0),
    ({"model_type": "deepseek_v3"}, "num_local_experts", 0),
    ({"model_type": "bamba", "attn_layer_indices": (3,)}, "mamba_num_heads", 48),
]


@pytest.mark.parametrize(("config", "key", "value"), WRONG)
def test_a_changed_key_is_refused_by_its_name(config, key, value):
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(config | {key: value})
    problem = caught.value.errors()[0]
    assert key in (*problem["loc"], *problem.get("ctx", {}).get("key", ()))


def test_the_configs_are_covered_without_the_change():
    for config, _, _ in WRONG:
        if config["model_type"] != "bamba":
            assert Model.model_validate(config).parameters > 0


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_no_experts_is_a_dense_model_where_its_class_has_dense_layers(family):
    dense = {"first_k_dense_replace": 61} if family == "deepseek_v3" else {}
    model = Model.model_validate({"model_type": family, "num_local_experts": 0} | dense)
    assert not any(block.experts for block in model.blocks)


@pytest.mark.parametrize(
    ("keys", "whole"),
    [
        ({}, [3, 7, 11, 15]),
        ({"no_rope_layer_interval": 8}, [7, 15]),
        ({"no_rope_layers": (1,) * 15 + (0,)}, [15]),
        ({"layer_types": ("full_attention",) * 2 + ("chunked_attention",) * 14}, [0, 1]),
    ],
)
def test_layers_of_llama_4_without_rotary_embeddings_attend_to_all_positions(keys, whole):
    model = Model.model_validate(LLAMA4 | {"num_hidden_layers": 16} | keys)
    assert [layer for layer in range(16) if model.windowed(layer) is None] == whole


def test_layers_of_smollm3_without_rotary_embeddings_have_the_window():
    base = {"model_type": "smollm3", "num_hidden_layers": 4, "sliding_window": 64}
    model = Model.model_validate(
        base | {"use_sliding_window": True, "no_rope_layers": (1, 0, 1, 1)}
    )
    assert [model.windowed(layer) for layer in range(4)] == [None, 64, None, None]


def test_keys_of_a_wrapper_are_not_those_of_its_language_model():
    """Also where the language model leaves all of its keys out."""
    plain = Model.model_validate({"model_type": "gemma3", "text_config": {}})
    wrapped = {"model_type": "gemma3", "text_config": {}, "hidden_size": 64}
    assert Model.model_validate(wrapped).hidden_size == plain.hidden_size == 2304


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_a_wrapper_may_keep_the_language_model_under_other_keys(key):
    inner = {"model_type": "qwen3", "num_hidden_layers": 7}
    wrapped = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], key: inner}
    assert Model.model_validate(wrapped).parameters == Model.model_validate(inner).parameters
