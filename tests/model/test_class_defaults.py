"""A key that is absent means what the model's own class says; published files leave keys out."""

from importlib.metadata import version
from importlib.util import find_spec

import pytest
import yaml

from sim.model.class_defaults import DEFAULTS_FILE, class_defaults
from sim.model.families import FAMILIES
from sim.model.layer_kinds import ATTENTION_TYPES
from sim.model.transformer import Model

DEFAULTS = yaml.safe_load(DEFAULTS_FILE.read_text(encoding="utf-8"))
MISTRAL_12B = {  # the text_config of Pixtral 12B
    "model_type": "mistral",
    "hidden_size": 5120,
    "intermediate_size": 14336,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "vocab_size": 131072,
    "sliding_window": None,
}
GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {"num_hidden_layers": 27},
}
QWEN2_VL_2B = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "vision_config": {},
}
GRANITE4_MICRO = {
    "model_type": "granitemoehybrid",
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "shared_intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "layer_types": ["attention"] * 40,
    "mamba_d_state": 256,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "vocab_size": 100352,
    "tie_word_embeddings": True,
}
STARCODER2_3B = {"model_type": "starcoder2", "max_position_embeddings": 16384}
ERNIE_03B = {"model_type": "ernie4_5"}
OPT_6_7B = {
    "model_type": "opt",
    "hidden_size": 4096,
    "ffn_dim": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
COMMAND_R7B = {
    "model_type": "cohere2",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
OLMO3_7B = {"model_type": "olmo3", "vocab_size": 100278}
GLM4_9B = {"model_type": "glm"}
DOTS1 = {
    "model_type": "dots1",
    "hidden_size": 4096,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
HUNYUAN_A13B = {
    "model_type": "hunyuan_v1_moe",
    "intermediate_size": 3072,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128167,
    "num_experts": 64,
    "moe_topk": [8] * 32,
    "moe_intermediate_size": [3072] * 32,
    "tie_word_embeddings": True,
}
ERNIE_21B = {"model_type": "ernie4_5_moe", "moe_layer_end_index": 27}
PHI35_MOE = {"model_type": "phimoe", "attention_bias": True}
MIMO_7B = {
    "model_type": "mimo",
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "vocab_size": 151680,
}
KIMI_OF_TRANSFORMERS_5 = {
    "model_type": "kimi_linear",
    "linear_num_heads": 32,
    "linear_head_dim": 128,
}
EXAONE4_1B = {
    "model_type": "exaone4",
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": None,
    "tie_word_embeddings": True,
}


def test_every_family_has_the_defaults_of_its_class():
    assert [name for name in FAMILIES if "hidden_size" not in class_defaults(name)] == []


@pytest.mark.parametrize(
    ("config", "billions", "kv_per_token"),
    [
        (MISTRAL_12B, 12.25, 2 * 40 * 8 * 128),
        (GEMMA3_4B, 3.88, 2 * 34 * 4 * 256),
        (QWEN2_VL_2B, 1.54, 2 * 28 * 2 * 128),
        (GRANITE4_MICRO, 3.40, 2 * 40 * 8 * 64),
        (STARCODER2_3B, 3.0304, 2 * 30 * 2 * 128),
        (ERNIE_03B, 0.3607, 2 * 18 * 2 * 128),
        (EXAONE4_1B, 1.28, 2 * 30 * 8 * 64),
        (COMMAND_R7B, 8.03, 2 * 32 * 8 * 128),
        (OLMO3_7B, 7.30, 2 * 32 * 32 * 128),
        (GLM4_9B, 9.40, 2 * 40 * 2 * 128),
        (OPT_6_7B, 6.66, 2 * 32 * 32 * 128),
        (DOTS1, 142.8, 2 * 62 * 32 * 128),
        (HUNYUAN_A13B, 80.4, 2 * 32 * 8 * 128),
        (ERNIE_21B, 21.8, 2 * 28 * 4 * 128),
        (PHI35_MOE, 41.9, 2 * 32 * 8 * 128),
        ({"model_type": "minimax_m2"}, 229, 2 * 62 * 8 * 128),
        # 7.83 B with a layer for multi-token prediction: a layer's 0.177 B and a matrix of 2 x 4,096^2.
        (MIMO_7B, 7.83 - 0.211, 2 * 36 * 8 * 128),
        ({"model_type": "ministral3"}, 8.49, 2 * 34 * 8 * 128),
        # The language model of Step-3 has 316 B parameters, arXiv 2507.19427, table 1.
        ({"model_type": "step3_vl", "text_config": {}}, 316, 2 * 61 * 256),
        # Per layer: 4,544 x 4,672 (Q, one K and V), 4,544^2, and an MLP of 2 x 4,544 x 9,088.
        ({"model_type": "falcon", "ffn_hidden_size": 9088}, 4.278, 2 * 32 * 64),
        ({"model_type": "cwm"}, 32.58, 2 * 64 * 8 * 128),
        ({"model_type": "exaone", "num_layers": 32}, 7.82, 2 * 32 * 8 * 128),
        ({"model_type": "glm4_moe_lite"}, 29.94, 47 * (512 + 64)),
        (
            {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 32},
            37.44,
            2 * 32 * 4096,
        ),
        (KIMI_OF_TRANSFORMERS_5, 49.13, 6 * (512 + 64)),
        ({"model_type": "hy_v3"}, 295, 2 * 80 * 8 * 128),
        ({"model_type": "solar_open"}, 102.7, 2 * 48 * 8 * 128),
        ({"model_type": "mimo_v2_flash"}, 309, (9 * 4 + 39 * 8) * (192 + 128)),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_files_without_keys_have_the_published_parameters(config, billions, kv_per_token):
    """As the models' cards say, or transformers 5.24 builds them; without vision towers."""
    model = Model.model_validate(config)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.003)
    assert model.kv_per_token() == kv_per_token


@pytest.mark.parametrize(
    ("config", "windowed"),
    [
        ({"model_type": "gpt_oss"}, [128, None] * 18),
        ({"model_type": "exaone4"}, [4096, 4096, 4096, None] * 8),
        ({"model_type": "gemma3_text"}, ([4096] * 5 + [None]) * 4 + [4096] * 2),
        ({"model_type": "mistral"}, [4096] * 32),
        (COMMAND_R7B, [4096, 4096, 4096, None] * 8),
        (DOTS1, [None] * 62),
        ({"model_type": "qwen3", "use_sliding_window": True}, [None] * 28 + [4096] * 4),
        ({"model_type": "qwen2"}, [None] * 32),
        ({"model_type": "cwm"}, [None, 8192, 8192, 8192] * 16),
        ({"model_type": "qwen2_moe", "use_sliding_window": True}, [4096, None] * 12),
        ({"model_type": "qwen2_moe", "sliding_window": 0}, [None] * 24),
        ({"model_type": "mimo_v2_flash"}, [None, *[129] * 4, None, *([129] * 5 + [None]) * 7]),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_windows_that_a_file_leaves_out_are_those_of_the_class(config, windowed):
    blocks = Model.model_validate(config).blocks
    assert [mixer.window for block in blocks for mixer in block.mixers] == windowed


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("model_type", sorted(DEFAULTS["classes"]))
def test_the_file_of_defaults_agrees_with_the_installed_transformers(model_type):
    from sim.model.installed_classes import installed_class, installed_defaults

    if not version("transformers").startswith(DEFAULTS["transformers"]):
        pytest.skip("another version of transformers is installed")
    assert class_defaults(model_type) == installed_defaults(model_type)
    installed = installed_class(model_type)()
    kinds = getattr(installed, "layer_types", None)
    if kinds and set(kinds) <= set(ATTENTION_TYPES):
        sizes = (getattr(installed, key, 0) for key in ("sliding_window", "attention_chunk_size"))
        window = any(sizes)
        model = Model.model_validate({"model_type": model_type, "hidden_size_per_layer_input": 0})
        whole = [model.windowed(layer) is None for layer in range(model.num_hidden_layers)]
        assert [kind == "full_attention" or not window for kind in kinds] == whole
