"""Keys of a `config.json` under one name each, and the config of the text model inside a wrapper.

>>> spelled_keys({"model_type": "falcon", "num_kv_heads": 8})
{'model_type': 'falcon', 'num_key_value_heads': 8}
"""

from collections.abc import Mapping

from sim.inputs.errors import error_at_key, quoted_value
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.model.class_defaults import class_defaults
from sim.model.config_keys import MOST_LAYERS

# Other names of the same number, in some families.
SPELLINGS = {
    "num_hidden_layers": ("num_layers",),
    "num_key_value_heads": ("num_kv_heads", "num_attention_groups"),
    "num_local_experts": ("num_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        "num_experts_per_token",
        "experts_per_token",
        "top_k_experts",
        "moe_k",
        "moe_topk",
        "moe_top_k",
    ),
    "n_shared_experts": ("moe_num_shared_experts", "num_shared_experts"),
    "n_group": ("num_expert_group",),
    "shared_expert_intermediate_size": (
        "moe_shared_expert_intermediate_size",
        "share_expert_dim",
    ),
    "moe_layers": ("moe_layers_enum",),
    "first_k_dense_replace": ("moe_layer_start_index",),
    "decoder_sparse_step": ("moe_layer_interval",),
    "intermediate_size": ("ffn_dim", "ffn_hidden_size"),
    "hidden_act": ("hidden_activation",),
    "torch_dtype": ("dtype",),
    "max_position_embeddings": ("model_max_length", "max_position_embedding", "max_seq_len"),
    "use_bias": ("bias", "enable_bias"),
    "conv_kernel": ("linear_conv_kernel_dim", "mamba_d_conv"),
    "mamba_num_heads": ("mamba_n_heads",),
    "mamba_head_dim": ("mamba_d_head",),
    "ssm_state_size": ("mamba_d_state",),
    "mamba_n_groups": ("n_groups",),
    "mamba_expand": ("expand",),
    "mamba_chunk_size": ("chunk_size",),
    "mamba_ssm_dtype": ("mamba_ssm_cache_dtype",),
    "quantization_config": ("compression_config", "quantization"),
}
# Wrappers of a language model with vision or audio, and the language model's own type.
TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "step3_vl": "step3_text",
}
# Where wrappers keep the language model: of transformers, InternVL and DeepSeek-VL.
TEXT_PARTS = ("text_config", "llm_config", "language_config")
# Kinds of layers without a rotary embedding, and with one.
ROTARY_KINDS = {
    "llama4_text": ("full_attention", "chunked_attention"),
    "smollm3": ("sliding_attention", "full_attention"),
}
# Keys that Hunyuan writes as a list with a number for each layer. Equal numbers are covered.
EXPERT_LISTS = ("num_local_experts", "num_experts_per_tok", "moe_intermediate_size")
# Keys outside text_config that describe the language model too.
OUTER_KEYS = (
    "id",
    "aliases",
    "architectures",
    "torch_dtype",
    "dtype",
    "tie_word_embeddings",
    *("quantization_config", "compression_config", "quantization"),
)


def spelled_keys(data: Mapping[str, JsonValue]) -> JsonObject:
    """Return the config with text_config unnested and each number under its field's name.

    The first spelling that is not null counts.

    Raises: PydanticCustomError if a list of MiMo-V2 holds anything but 0 and 1.
    """
    flat = unnested(data)
    for key, spellings in SPELLINGS.items():
        present = [flat.pop(name) for name in (key, *spellings) if name in flat]
        if present:
            flat[key] = next((value for value in present if value is not None), None)
    if isinstance(text := flat.get("moe_layers"), str):  # Step-3: "4,5,6"
        names = [name.strip() for name in text.split(",")]
        flat["moe_layers"] = tuple(int(name) if name.isdecimal() else name for name in names)
    if not flat.get("layer_types") and (kinds := _listed_kinds(flat)):
        flat["layer_types"] = kinds
    if pattern := _zeros_and_ones(flat, "moe_layer_freq"):
        del flat["moe_layer_freq"]
        flat["mlp_layer_types"] = tuple(("dense", "sparse")[digit] for digit in pattern)
    if isinstance(size := flat.get("sliding_window_size"), int):
        flat["sliding_window"] = size + 1  # MiMo-V2 counts earlier tokens only
    defaults = class_defaults(str(flat.get("model_type")))
    layers = flat.get("num_hidden_layers", defaults.get("num_hidden_layers"))
    for key in EXPERT_LISTS:
        value = flat.get(key)
        if isinstance(value, list | tuple) and len(value) == layers and len(set(value)) == 1:
            flat[key] = value[0]
    return flat


def _listed_kinds(flat: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return the kinds of layers, if another key than `layer_types` has them; empty otherwise.

    `no_rope_layers` has 1 for layers with a rotary embedding, despite its name.
    """
    if pattern := _zeros_and_ones(flat, "hybrid_layer_pattern"):
        return tuple(("full_attention", "sliding_attention")[digit] for digit in pattern)
    kinds = ROTARY_KINDS.get(str(flat.get("model_type")))
    if kinds is None:
        return ()
    digits = _zeros_and_ones(flat, "no_rope_layers")
    layers, every = flat.get("num_hidden_layers"), flat.get("no_rope_layer_interval")
    if not digits and isinstance(every, int) and every > 0 and isinstance(layers, int):
        digits = [int((layer + 1) % every != 0) for layer in range(min(layers, MOST_LAYERS))]
    return tuple(kinds[digit] for digit in digits)


def _zeros_and_ones(flat: Mapping[str, JsonValue], key: str) -> list[int]:
    """Return the list under a key, a digit for each layer; empty if there is no list.

    Raises: PydanticCustomError if it holds anything but 0 and 1.
    """
    digits = flat.get(key)
    if not isinstance(digits, list | tuple):
        return []
    if odd := [digit for digit in digits if digit not in (0, 1)]:
        raise error_at_key((key,), f"{key}: got {quoted_value(odd[0])}; expected 0 or 1")
    return [int(str(digit)) for digit in digits]


def text_part(config: Mapping[str, JsonValue]) -> Mapping[str, JsonValue] | None:
    """Return the config of the text model within that of a wrapper; None without one.

    Raises: PydanticCustomError if it is no mapping.
    """
    for key in TEXT_PARTS:
        part = config.get(key)
        if isinstance(part, Mapping):
            return part
        if part is not None:
            raise error_at_key((key,), f"{key}: got {quoted_value(part)}; expected a mapping")
    return None


def unnested(config: Mapping[str, JsonValue]) -> JsonObject:
    """Return the config of the text model alone, without vision and audio models."""
    inner = text_part(config)
    flat = dict(config)
    outer_type = config.get("model_type")
    if inner is not None:
        flat = {**{key: config[key] for key in OUTER_KEYS if key in config}, **inner}
        flat.setdefault("model_type", outer_type)
    if isinstance(model_type := flat.get("model_type"), str) and model_type in TEXT_TYPES:
        flat["model_type"] = TEXT_TYPES[model_type]
    return flat
