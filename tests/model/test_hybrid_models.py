"""Models with states of fixed size: published totals, states by hand, and the kinds of layers."""

import re

import pytest
from pydantic import ValidationError

from sim.inputs.document import read_value
from sim.inputs.names import find_entry
from sim.model.draft_layer import draft_layer
from sim.model.transformer import Model

NEMOTRON_H_8B = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
}
NEMOTRON_3_NANO = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "hidden_size": 2688,
    "num_key_value_heads": 2,
    "mamba_num_heads": 64,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
}
QWEN35_397B = {
    "model_type": "qwen3_5_moe",
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "linear_num_value_heads": 64,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 1024,
        "shared_expert_intermediate_size": 1024,
    },
    "vision_config": {},
}
KIMI_LINEAR = {
    "model_type": "kimi_linear",
    "hidden_size": 2304,
    "num_hidden_layers": 27,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
}
GRANITE4 = {
    "model_type": "granitemoehybrid",
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    "num_hidden_layers": 40,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "vocab_size": 100352,
    "tie_word_embeddings": True,
}
GRANITE4_SMALL = GRANITE4 | {
    "num_key_value_heads": 8,
    "intermediate_size": 768,
    "shared_intermediate_size": 1536,
    "num_local_experts": 72,
    "num_experts_per_tok": 10,
}
GRANITE4_TINY = GRANITE4 | {
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "shared_intermediate_size": 1024,
    "num_local_experts": 64,
    "num_experts_per_tok": 6,
    "mamba_n_heads": 48,
}
FALCON_H1_7B = {
    "model_type": "falcon_h1",
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 44,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_d_ssm": 3072,
    "mamba_n_heads": 24,
    "mamba_d_head": 128,
    "vocab_size": 130048,
}
# Billions of parameters, K and V numbers of a token, and bytes of a sequence's states by hand: layers times states at 4 B and
# kept inputs at 2 B.  Without vision towers and layers for multi-token prediction.
PUBLISHED = {
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        {"model_type": "qwen3_next"},
        80,
        12 * 2 * 2 * 256,
        36 * (32 * 128 * 128 * 4 + 3 * (2 * 2048 + 4096) * 2),
    ),
    "Qwen/Qwen3.5-35B-A3B": (
        {"model_type": "qwen3_5_moe_text"},
        35,
        10 * 2 * 2 * 256,
        30 * (32 * 128 * 128 * 4 + 3 * 8192 * 2),
    ),
    "Qwen/Qwen3.5-397B-A17B": (
        QWEN35_397B,
        397,
        15 * 2 * 2 * 256,
        45 * (64 * 128 * 128 * 4 + 3 * 12288 * 2),
    ),
    # The name says 48 B; the page of the checkpoint counts 49.1 B.
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": (
        KIMI_LINEAR,
        49.1,
        7 * (512 + 64),
        20 * (32 * 128 * 128 * 4 + 3 * 3 * 4096 * 2),
    ),
    "nvidia/Nemotron-H-8B-Base-8K": (
        NEMOTRON_H_8B,
        8.1,
        4 * 2 * 8 * 128,
        24 * (128 * 64 * 128 * 4 + 3 * (8192 + 2 * 8 * 128) * 2),
    ),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (
        NEMOTRON_3_NANO,
        31.6,
        6 * 2 * 2 * 128,
        23 * (64 * 64 * 128 * 4 + 3 * (4096 + 2 * 8 * 128) * 2),
    ),
    "ai21labs/Jamba-v0.1": (
        {"model_type": "jamba"},
        51.6,
        4 * 2 * 8 * 128,
        28 * (8192 * 16 * 4 + 3 * 8192 * 2),
    ),
    "ibm-granite/granite-4.0-h-small": (
        GRANITE4_SMALL,
        32.2,
        4 * 2 * 8 * 128,
        36 * (128 * 64 * 128 * 4 + 3 * (8192 + 2 * 128) * 2),
    ),
    "ibm-granite/granite-4.0-h-tiny": (
        GRANITE4_TINY,
        6.94,
        4 * 2 * 4 * 128,
        36 * (48 * 64 * 128 * 4 + 3 * (3072 + 2 * 128) * 2),
    ),
    "tiiuae/Falcon-H1-7B-Base": (
        FALCON_H1_7B,
        7.59,
        44 * 2 * 2 * 128,
        44 * (24 * 128 * 256 * 4 + 3 * (3072 + 2 * 256) * 2),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_published_and_states_are_as_by_hand(name):
    config, billions, kv, state = PUBLISHED[name]
    model = Model.model_validate(config)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert model.kv_per_token() == kv
    assert model.state_bytes() == state


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (NEMOTRON_H_8B, ["recurrent", "mlp"] * 3 + ["recurrent", "attention", "mlp"]),
        (NEMOTRON_3_NANO, ["recurrent", "mlp", "recurrent", "mlp", "recurrent", "attention"]),
        ({"model_type": "qwen3_next"}, ["recurrent", "mlp"] * 3 + ["attention", "mlp"]),
        (KIMI_LINEAR, ["recurrent", "mlp"] * 3 + ["attention", "mlp"]),
        ({"model_type": "jamba"}, ["recurrent", "mlp"] * 4 + ["attention", "mlp"]),
        (GRANITE4_TINY, ["recurrent", "mlp"] * 5 + ["attention", "mlp"]),
        (FALCON_H1_7B, ["attention", "mlp"] * 2),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_layers_are_of_the_kinds_that_the_file_or_its_class_says(config, start):
    blocks = Model.model_validate(config).blocks[1:]
    assert [block.kind for block in blocks[: len(start)]] == start


@pytest.mark.parametrize("config", [NEMOTRON_H_8B, KIMI_LINEAR], ids=lambda c: c["model_type"])
def test_classes_without_tied_weights_have_both_tables_whatever_the_file_says(config):
    """As Nemotron-H's and Kimi-Linear's classes in transformers, which have no tied weights."""
    tied, own = (
        Model.model_validate(config | {"tie_word_embeddings": tie}) for tie in (True, False)
    )
    assert tied.parameters == own.parameters
    assert tied.weight_map == own.weight_map
    assert [block.kind for block in tied.blocks[:: len(tied.blocks) - 1]] == ["embedding", "head"]


@pytest.mark.parametrize("method", ["mtp", "eagle"])
@pytest.mark.parametrize(
    "config",
    [NEMOTRON_H_8B, NEMOTRON_3_NANO, GRANITE4_TINY, {"model_type": "qwen3_next"}],
    ids=["nemotron_h", "nemotron 3", "granite 4", "qwen3_next"],
)
def test_a_drafting_layer_has_attention_and_an_mlp(config, method):
    """Whatever the last layers are: Nemotron-H ends with a recurrence and an MLP."""
    model = Model.model_validate(config)
    _, attention, mlp, _ = draft_layer(model, method).blocks
    assert [mixer.name for mixer in attention.mixers] == ["attention"]
    assert mlp.kind == "mlp"
    assert bool(mlp.experts) == (method == "mtp" and bool(model.blocks[-2].experts))
    last = next(block for block in reversed(model.blocks) if "attention" in block.kind)
    assert attention.parameters() - last.parameters() == 2 * model.hidden_size**2


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (
            {"mtp_hybrid_override_pattern": "M*E"},
            "mtp_hybrid_override_pattern 'M*E'; expected '*E'",
        ),
        ({"mtp_layers_block_type": ["mamba", "moe"]}, "mtp_hybrid_override_pattern 'ME'"),
        ({"mtp_layers_block_type": ["attention", "mlp"]}, "layers without a dense MLP"),
    ],
)
def test_a_drafting_layer_of_other_parts_is_refused(pattern, reason):
    model = Model.model_validate(NEMOTRON_3_NANO | pattern)
    with pytest.raises(ValueError, match=re.escape(reason)):
        draft_layer(model, "mtp")
    assert draft_layer(
        Model.model_validate(NEMOTRON_3_NANO | {"mtp_hybrid_override_pattern": "*E"}), "mtp"
    )


def test_a_layer_may_have_both():
    """Falcon-H1 adds the results of attention and of a state-space layer behind one norm."""
    model = Model.model_validate(FALCON_H1_7B)
    assert [mixer.name for mixer in model.blocks[1].mixers] == ["attention", "recurrence"]


def test_a_checkpoint_names_the_matrices_of_its_states():
    """GPTQ with one list of modules: only the state-space layers' matrices have 4 bits."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    config["modules_in_block_to_quantize"] = [["mixer.in_proj", "mixer.out_proj"]]
    model = Model.model_validate(NEMOTRON_H_8B | {"quantization_config": config})
    stored = {row.part: row.stored.precision for row in model.weight_map}
    assert (stored["recurrent"], stored["mlp"], stored["attention"]) == ("int4", "bf16", "bf16")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "nemotron_h"}, "layer_types: got nothing; expected the kind"),
        (
            NEMOTRON_H_8B | {"hybrid_override_pattern": "M?*"},
            "hybrid_override_pattern: got '?'; expected M",
        ),
        (NEMOTRON_H_8B | {"hybrid_override_pattern": "M-M-"}, "got no layer with attention"),
        (NEMOTRON_H_8B | {"num_hidden_layers": 3}, "layer_types: got 52 layers; expected 3"),
        (
            NEMOTRON_3_NANO | {"moe_latent_size": 1024},
            "moe_latent_size: got 1024; expected none: experts of another",
        ),
        (GRANITE4_TINY | {"layer_types": ["conv"] * 40}, "layer_types: got 'conv'; expected"),
        (GRANITE4_TINY | {"layer_types": None}, "layer_types: got nothing; expected the kind"),
        (
            KIMI_LINEAR | {"linear_attn_config": {"full_attn_layers": [4]}},
            "linear_num_key_heads: got nothing",
        ),
        ({"model_type": "jamba", "attn_layer_period": 0}, "attn_layer_period"),
        ({"model_type": "qwen3_next", "mamba_ssm_dtype": "fp8"}, "mamba_ssm_dtype: got 'fp8'"),
    ],
)
def test_a_file_without_a_meaning_is_refused_by_its_key(config, reason):
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(config)
    assert reason in str(caught.value)


def test_the_width_of_a_state_is_the_files():
    """Jamba: half of 4 B for the states, and as many inputs."""
    wide, narrow = (
        Model.model_validate({"model_type": "jamba", "mamba_ssm_dtype": dtype}).state_bytes()
        for dtype in ("float32", "bfloat16")
    )
    assert wide - narrow == 28 * 8192 * 16 * 2


def test_states_of_the_catalogue():
    model = read_value(find_entry("nemotron-nano-9b-v2", "models"), Model)
    assert model.state_bytes() == 27 * (128 * 80 * 128 * 4 + 3 * (128 * 80 + 2 * 8 * 128) * 2)
