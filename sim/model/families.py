"""Facts of each model_type that its config.json does not state."""

from typing import Literal, NamedTuple

from sim.model.windows import WindowLayers

# Kinds of layers in place of attention. Papers: arXiv 2412.06464 (gated delta), 2510.26692 (Kimi
# delta), 2312.00752 (mamba), 2405.21060 (mamba2).
RecurrenceKind = Literal["gated delta", "kimi delta", "mamba", "mamba2"]


class Family(NamedTuple):
    """Facts of a model_type that its config does not state."""

    gated: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False  # for one head
    whole_qk_norm: bool = False  # for all heads together
    norms: int = 2  # in a layer
    norm_biases: bool = False  # layer norms have biases, root-mean-square norms have none
    shared_expert: bool = False  # one of the same size as the routed experts
    learned_positions: bool = False  # a table of positions, with two more than the longest
    windows: WindowLayers = "all"
    pattern: int = 0  # of `windows`, if the config has no sliding_window_pattern
    recurrence: RecurrenceKind | None = None  # of some layers; None: all have attention
    gated_query: bool = False  # a gate for the result of each query head
    sliding_kv: int = 1  # KV heads of layers with a window, for each of other layers
    chosen: bool = False  # block_configs say what each layer has
    sparse: bool = False  # latent attention to positions that an indexer chooses
    can_tie: bool = True  # False: the class has no tied weights, whatever tie_word_embeddings says


FAMILIES = {
    "apertus": Family(gated=False, qk_norm=True),
    "arcee": Family(gated=False),
    "bamba": Family(recurrence="mamba2"),
    "cohere": Family(norms=1),
    "cohere2": Family(norms=1, windows="pattern", pattern=4),
    "cwm": Family(windows="pattern from 0", pattern=4),
    "deci": Family(chosen=True),
    "deepseek": Family(),
    "deepseek_v2": Family(),
    "deepseek_v3": Family(),
    "deepseek_v32": Family(sparse=True),
    "dots1": Family(qk_norm=True, windows="late"),
    "ernie4_5": Family(),
    "ernie4_5_moe": Family(),
    "exaone": Family(),
    "exaone4": Family(qk_norm=True, windows="pattern", pattern=4),
    "exaone_moe": Family(qk_norm=True, windows="pattern", pattern=4),
    "falcon": Family(gated=False, norm_biases=True),
    "falcon_h1": Family(recurrence="mamba2"),
    "flex_olmo": Family(whole_qk_norm=True),
    "gemma": Family(),
    "gemma2": Family(norms=4, windows="pattern", pattern=2),
    "gemma3_text": Family(norms=4, qk_norm=True, windows="pattern", pattern=6),
    "gemma4_text": Family(norms=7, qk_norm=True, windows="pattern, not last", pattern=6),
    "glm": Family(),
    "glm4": Family(norms=4),
    "glm4_moe": Family(),
    "glm4_moe_lite": Family(),
    "glm_moe_dsa": Family(sparse=True),
    "gpt_neox": Family(gated=False, norm_biases=True),
    "gpt_oss": Family(windows="pattern", pattern=2),
    "granite": Family(),
    "granite_swa": Family(windows="pattern from 0", pattern=4),
    "granitemoe": Family(),
    "granitemoehybrid": Family(recurrence="mamba2"),
    "granitemoeshared": Family(),
    "helium": Family(),
    "hunyuan_v1_dense": Family(qk_norm=True),
    "hunyuan_v1_moe": Family(qk_norm=True, shared_expert=True),
    "hy_v3": Family(qk_norm=True),
    "hyperclovax": Family(norms=4),
    "internlm2": Family(),
    "internlm3": Family(),
    "iquestcoder": Family(),
    "jais2": Family(gated=False, norm_biases=True),
    "jamba": Family(recurrence="mamba"),
    "kimi_k2": Family(),
    "kimi_linear": Family(recurrence="kimi delta", can_tie=False),
    "llama": Family(),
    "llama4_text": Family(shared_expert=True),
    "mellum": Family(qk_norm=True, windows="named"),
    "mimo": Family(qkv_bias=True, windows="late"),
    "mimo_v2_flash": Family(windows="pattern, not first", pattern=6, sliding_kv=2),
    "minicpm3": Family(),
    "minimax_m2": Family(whole_qk_norm=True),
    "ministral": Family(),
    "ministral3": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "nemotron": Family(gated=False),
    "nemotron-nas": Family(chosen=True),
    "nemotron_h": Family(gated=False, recurrence="mamba2", can_tie=False),
    "olmo": Family(norms=0),
    "olmo2": Family(whole_qk_norm=True),
    "olmo3": Family(whole_qk_norm=True, windows="pattern", pattern=4),
    "olmoe": Family(whole_qk_norm=True),
    "opt": Family(gated=False, norm_biases=True, learned_positions=True),
    "phi": Family(gated=False),
    "phi3": Family(),
    "phimoe": Family(norm_biases=True),
    "qwen2": Family(qkv_bias=True, windows="late"),
    "qwen2_5_vl_text": Family(qkv_bias=True, windows="late"),
    "qwen2_moe": Family(qkv_bias=True, windows="early, every second"),
    "qwen2_vl_text": Family(qkv_bias=True, windows="late"),
    "qwen3": Family(qk_norm=True, windows="late"),
    "qwen3_5_moe_text": Family(qk_norm=True, recurrence="gated delta", gated_query=True),
    "qwen3_5_text": Family(qk_norm=True, recurrence="gated delta", gated_query=True),
    "qwen3_moe": Family(qk_norm=True),
    "qwen3_next": Family(qk_norm=True, recurrence="gated delta", gated_query=True),
    "qwen3_vl_moe_text": Family(qk_norm=True),
    "qwen3_vl_text": Family(qk_norm=True),
    "sarvam_mla": Family(),
    "sarvam_moe": Family(qk_norm=True),
    "seed_oss": Family(),
    "smollm3": Family(windows="without rotary", pattern=4),
    "solar_open": Family(),
    "stablelm": Family(),
    "starcoder2": Family(gated=False, norm_biases=True),
    "step3_text": Family(),
    "vaultgemma": Family(windows="pattern", pattern=2),
    "youtu": Family(),
}
