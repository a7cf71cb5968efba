"""The keys of a Hugging Face `config.json`, by their Hugging Face names."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from sim.inputs.values import Entry
from sim.units import MAX_COUNT, Count

Whole = Annotated[int, Field(ge=0, le=MAX_COUNT)]
WindowLetters = Annotated[str, Field(pattern="^[LG]+$")]
LayerLetters = Annotated[str, Field(pattern="^[ME*-]+$")]
MOST_LAYERS = 1000  # the bound stops a mistyped number from taking all memory
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # and our short words


class DecoderKeys(Entry):
    """The keys that most decoders have."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    aliases: tuple[str, ...] = Field(
        default=(), description="Other names that tables and people use; each means one entry."
    )
    model_type: str = Field(description="Family of the architecture, such as `llama`.")
    hidden_size: Count = Field(description="Width of the hidden state.")
    intermediate_size: Count | None = Field(
        default=None,
        description="Inner width of a dense MLP; Falcon's default: 4 times the hidden size.",
    )
    num_hidden_layers: Annotated[Count, Field(le=MOST_LAYERS)] = Field(
        description="Number of layers."
    )
    num_attention_heads: Count = Field(description="Query heads of a layer.")
    num_key_value_heads: Count | None = Field(
        default=None, description="KV heads of a layer; default: one for each query head."
    )
    head_dim: Count | None = Field(
        default=None, description="Width of a head; default: hidden size divided by query heads."
    )
    vocab_size: Count = Field(description="Number of tokens of the vocabulary.")
    max_position_embeddings: Count = Field(description="Longest sequence [token].")
    tie_word_embeddings: bool = Field(
        default=False, description="Whether embedding and head share one table."
    )
    hidden_act: str = Field(
        default="silu", description="Activation function of the MLPs; it costs nothing here."
    )
    attention_bias: bool = Field(
        default=False, description="Whether attention's projections have biases."
    )
    mlp_bias: bool = Field(default=False, description="Whether the MLPs have biases.")
    use_bias: bool = Field(
        default=False, description="Whether attention and MLPs have biases, in some families."
    )
    torch_dtype: str | None = Field(
        default=None,
        description="Number format of the checkpoint, such as `bfloat16`; default: `bfloat16`.",
    )
    quantization_config: dict[str, object] | None = Field(
        default=None,
        description="How the checkpoint's weights are quantized; default: not quantized.",
    )


class MixerKeys(DecoderKeys):
    """The keys that say how each layer sees earlier tokens."""

    # Windows of attention.
    sliding_window: Count | None = Field(
        default=None, description="Window of layers with sliding attention [token]; default: none."
    )
    use_sliding_window: bool | None = Field(
        default=None, description="Whether `sliding_window` holds; default: it does."
    )
    max_window_layers: Whole = Field(
        default=0, description="First layer with a sliding window, in Qwen."
    )
    sliding_window_pattern: Count | WindowLetters | None = Field(
        default=None,
        description="One layer in this many attends to all positions, or letters L and G; "
        "default: that of the family.",
    )
    attention_chunk_size: Count | None = Field(
        default=None, description="Chunk of layers with chunked attention [token]; default: none."
    )
    layer_types: tuple[str, ...] | None = Field(
        default=None, description="Kind of each layer; default: that of the family."
    )
    full_attention_interval: Count = Field(
        default=4, description="One layer in this many has attention, in Qwen3-Next."
    )
    attn_layer_period: Count = Field(
        default=8, description="One layer in this many has attention, in Jamba."
    )
    attn_layer_offset: Whole = Field(
        default=4, description="The first layer with attention, in Jamba."
    )
    hybrid_override_pattern: LayerLetters | None = Field(
        default=None,
        description="Layers of Nemotron-H: M recurrent, * attention, - MLP, E experts.",
    )
    mtp_hybrid_override_pattern: LayerLetters | None = Field(
        default=None,
        description="Layer for multi-token prediction of Nemotron-H, in the same letters; default: "
        "the last attention and the last MLP.",
    )
    linear_attn_config: dict[str, object] | None = Field(
        default=None, description="Layers and sizes of Kimi's linear attention."
    )
    global_head_dim: Count | None = Field(
        default=None,
        description="Width of a head in layers that attend to all positions; default: `head_dim`.",
    )
    num_global_key_value_heads: Count | None = Field(
        default=None,
        description="KV heads of layers that attend to all positions; default: those of the other "
        "layers.",
    )
    swa_num_attention_heads: Count | None = Field(
        default=None,
        description="Query heads of layers with a window; default: those of the other layers.",
    )
    swa_num_key_value_heads: Count | None = Field(
        default=None,
        description="KV heads of layers with a window; default: by the other layers.",
    )
    swa_head_dim: Count | None = Field(
        default=None, description="Width of a key in layers with a window; default: `head_dim`."
    )
    swa_v_head_dim: Count | None = Field(
        default=None, description="Width of a value in layers with a window; default: `v_head_dim`."
    )
    attention_k_eq_v: bool = Field(
        default=False,
        description="Whether keys also serve as values in layers that attend to all positions.",
    )
    share_q_dim: Count | None = Field(
        default=None,
        description="Width of the low-rank query that all heads share, in Step-3; default: none.",
    )
    # Latent attention.
    q_lora_rank: Count | None = Field(
        default=None,
        description="Rank of the compressed query in latent attention; default: not compressed.",
    )
    kv_lora_rank: Count | None = Field(
        default=None,
        description="Width of the latent that is cached in latent attention; default: no latent "
        "attention.",
    )
    qk_rope_head_dim: Count | None = Field(
        default=None, description="Width of the rotary part of a key in latent attention."
    )
    qk_nope_head_dim: Count | None = Field(
        default=None, description="Width of the other part of a key in latent attention."
    )
    v_head_dim: Count | None = Field(
        default=None,
        description="Width of a value in latent attention, and in MiMo-V2; default: that of a key.",
    )
    index_topk: Count | None = Field(
        default=None,
        description="Positions that sparse attention attends to [token]; default: all.",
    )
    index_n_heads: Count = Field(default=64, description="Heads of the indexer of a layer.")
    index_head_dim: Count = Field(default=128, description="Width of a key of the indexer.")
    index_topk_freq: Count = Field(
        default=1, description="One layer in this many has an indexer, in GLM-5."
    )
    index_skip_topk_offset: Whole = Field(
        default=2, description="First layers that all have an indexer, in GLM-5."
    )
    indexer_types: tuple[Literal["full", "shared"], ...] | None = Field(
        default=None,
        description="Whether each layer has an indexer, or uses an earlier one; default: by "
        "`index_topk_freq`.",
    )
    # Linear attention and state-space layers.
    linear_num_key_heads: Count | None = Field(
        default=None, description="Key heads of linear attention."
    )
    linear_num_value_heads: Count | None = Field(
        default=None, description="Value heads of linear attention; each has a state."
    )
    linear_key_head_dim: Count | None = Field(
        default=None, description="Width of a key in linear attention."
    )
    linear_value_head_dim: Count | None = Field(
        default=None, description="Width of a value in linear attention."
    )
    conv_kernel: Count = Field(
        default=4, description="Inputs of the short convolution before a recurrence [token]."
    )
    mamba_num_heads: Count | None = Field(
        default=None, description="Heads of a Mamba-2 layer; each has a state."
    )
    mamba_head_dim: Count | None = Field(
        default=None,
        description="Width of a head of a Mamba-2 layer; default: the layer's width divided by "
        "its heads.",
    )
    ssm_state_size: Count | None = Field(
        default=None, description="Numbers of the state of each channel of a Mamba layer."
    )
    mamba_n_groups: Count = Field(
        default=1, description="Groups of heads of a Mamba-2 layer that share B and C."
    )
    mamba_expand: Count = Field(
        default=2, description="Width of a Mamba layer divided by the hidden size."
    )
    mamba_d_ssm: Count | None = Field(
        default=None, description="Width of a Mamba layer; default: by `mamba_expand`."
    )
    mamba_dt_rank: Count | None = Field(
        default=None,
        description="Rank of the time steps of a Mamba layer; default: hidden size divided by 16.",
    )
    mamba_chunk_size: Count | None = Field(
        default=None, description="Chunk of a prompt in a Mamba-2 layer [token]; default: 256."
    )
    mamba_ssm_dtype: str = Field(
        default="float32", description="Number format of the states, such as `float32`."
    )


class ConfigKeys(MixerKeys):
    """The keys of a config.json, under one name each."""

    # Mixture of experts.
    num_local_experts: Whole | None = Field(
        default=None, description="Routed experts of a layer; default: no experts."
    )
    num_experts_per_tok: Count = Field(
        default=1, description="Routed experts that each token uses."
    )
    moe_intermediate_size: Count | None = Field(
        default=None, description="Inner width of an expert; default: `intermediate_size`."
    )
    n_shared_experts: Whole | None = Field(
        default=None, description="Experts of a layer that every token uses; default: none."
    )
    shared_expert_intermediate_size: Whole | None = Field(
        default=None, description="Inner width of the shared expert; default: no such expert."
    )
    intermediate_size_mlp: Count | None = Field(
        default=None,
        description="Inner width of the MLP in layers without experts; default: "
        "`intermediate_size`.",
    )
    first_k_dense_replace: Whole = Field(
        default=0, description="Number of first layers without experts."
    )
    moe_layer_freq: Count = Field(
        default=1, description="One layer in this many has experts, from layer 0."
    )
    n_group: Count | None = Field(
        default=None, description="Groups of routed experts; default: one."
    )
    topk_group: Count | None = Field(
        default=None, description="Groups among which a token's experts are chosen; default: all."
    )
    decoder_sparse_step: Count = Field(
        default=1, description="One layer in this many has experts, in Qwen."
    )
    interleave_moe_layer_step: Count = Field(
        default=1, description="One layer in this many has experts, in Llama 4."
    )
    expert_layer_period: Count = Field(
        default=1, description="One layer in this many has experts, in Jamba."
    )
    expert_layer_offset: Whole = Field(
        default=0, description="The first layer with experts, in Jamba."
    )
    mlp_only_layers: tuple[int, ...] = Field(
        default=(), description="Layers without experts, numbered from 0."
    )
    moe_layers: tuple[int, ...] | None = Field(
        default=None,
        description="Layers with experts, in Llama 4 and Step-3; default: by the keys above.",
    )
    mlp_layer_types: tuple[Literal["dense", "sparse"], ...] | None = Field(
        default=None, description="Whether each layer has experts; default: by the keys above."
    )
    shared_intermediate_size: Count | None = Field(
        default=None, description="Inner width of the MLP next to the experts, in Granite 4."
    )
    enable_moe_block: bool = Field(
        default=False,
        description="Whether layers with experts have a dense MLP as well, in Gemma 4.",
    )
    block_configs: tuple[dict[str, object], ...] | None = Field(
        default=None, description="Attention and MLP of each layer, in Nemotron-NAS."
    )
    # Falcon.
    multi_query: bool = Field(
        default=False, description="Whether all query heads share one KV head, in Falcon."
    )
    new_decoder_architecture: bool = Field(
        default=False,
        description="Whether Falcon's KV heads are those of the config, despite `multi_query`.",
    )
