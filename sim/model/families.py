"""Facts of each model_type that its config.json does not state."""

from typing import NamedTuple


class Family(NamedTuple):
    """Facts of a model_type that its config does not state."""

    gated: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2  # in a layer
    tied: bool = False  # if the config has no tie_word_embeddings
    shared_expert: bool = False  # one of the same size as the routed experts (Llama 4)


FAMILIES = {
    "arcee": Family(gated=False),
    "cohere": Family(tied=True, norms=1),
    "deepseek": Family(),
    "deepseek_v2": Family(),
    "deepseek_v3": Family(),
    "ernie4_5": Family(),
    "exaone4": Family(qk_norm=True),
    "falcon": Family(gated=False),
    "gemma": Family(tied=True),
    "gemma2": Family(tied=True, norms=4),
    "gemma3_text": Family(tied=True, norms=4, qk_norm=True),
    "gemma4_text": Family(tied=True, norms=7, qk_norm=True),
    "glm4": Family(norms=4),
    "glm4_moe": Family(),
    "gpt_neox": Family(gated=False),
    "gpt_oss": Family(),
    "granite": Family(),
    "granitemoe": Family(),
    "internlm2": Family(),
    "kimi_k2": Family(),
    "llama": Family(),
    "llama4_text": Family(shared_expert=True),
    "mistral": Family(),
    "mixtral": Family(),
    "nemotron": Family(gated=False),
    "olmo": Family(norms=0),
    "olmo2": Family(qk_norm=True),
    "olmoe": Family(qk_norm=True),
    "phi": Family(gated=False),
    "phi3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen2_5_vl_text": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_moe": Family(qk_norm=True),
    "qwen3_vl_moe_text": Family(qk_norm=True),
    "qwen3_vl_text": Family(qk_norm=True),
    "seed_oss": Family(),
    "smollm3": Family(),
    "stablelm": Family(),
    "starcoder2": Family(gated=False),
}
