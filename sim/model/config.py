"""The keys of a Hugging Face `config.json`, and what they mean for each layer.

Keys keep their Hugging Face names. A model that is not covered is refused by naming the key, and
never computed wrongly.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sim.inputs.errors import error_at_key
from sim.inputs.key_paths import JsonObject, JsonValue
from sim.inputs.values import Entry
from sim.model.families import FAMILIES, Family
from sim.model.quantization import quantized_weights
from sim.units import Count

NOT_COVERED = {
    "ssm_cfg": "state-space layers",
    "ssm_state_size": "state-space layers",
    "state_size": "state-space layers",
    "mamba_d_state": "state-space layers",
    "hybrid_override_pattern": "state-space layers",
    "linear_num_value_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "index_topk": "sparse attention",
    "encoder_layers": "encoders",
    "is_encoder_decoder": "encoders",
    "num_kv_shared_layers": "KV cache shared between layers",
    "hidden_size_per_layer_input": "embeddings for each layer",
}
# Other names of the same number, in some families.
SPELLINGS = {
    "num_key_value_heads": ("num_kv_heads",),
    "num_local_experts": ("num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token", "top_k_experts"),
    "hidden_act": ("hidden_activation",),
    "torch_dtype": ("dtype",),
    "max_position_embeddings": ("model_max_length",),
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # and our short words


class ConfigKeys(Entry):
    """The keys of a config.json, under one name each."""

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
    # The bound stops a mistyped number from taking all memory.
    num_hidden_layers: Annotated[Count, Field(le=1000)] = Field(description="Number of layers.")
    num_attention_heads: Count = Field(description="Query heads of a layer.")
    num_key_value_heads: Count | None = Field(
        default=None, description="KV heads of a layer; default: one for each query head."
    )
    head_dim: Count | None = Field(
        default=None, description="Width of a head; default: hidden size divided by query heads."
    )
    vocab_size: Count = Field(description="Number of tokens of the vocabulary.")
    max_position_embeddings: Count = Field(description="Longest sequence [token].")
    tie_word_embeddings: bool | None = Field(
        default=None,
        description="Whether embedding and head share one table; default: that of the family.",
    )
    hidden_act: str = Field(
        default="silu", description="Activation function of the MLPs; it costs nothing here."
    )
    attention_bias: bool = Field(
        default=False, description="Whether attention's projections have biases."
    )
    mlp_bias: bool = Field(default=False, description="Whether the MLPs have biases.")
    torch_dtype: str | None = Field(
        default=None,
        description="Number format of the checkpoint, such as `bfloat16`; default: `bfloat16`.",
    )
    quantization_config: dict[str, object] | None = Field(
        default=None,
        description="How the checkpoint's weights are quantized; default: not quantized.",
    )
    # Windows of attention, by layer.
    sliding_window: Count | None = Field(
        default=None, description="Window of layers with sliding attention [token]; default: none."
    )
    use_sliding_window: bool | None = Field(
        default=None, description="Whether `sliding_window` holds; default: that of the family."
    )
    max_window_layers: int = Field(
        default=0, description="First layer with a sliding window, in Qwen."
    )
    sliding_window_pattern: Count | None = Field(
        default=None,
        description="Every so many layers one attends to all positions, in Gemma 3; default: 6.",
    )
    attention_chunk_size: Count | None = Field(
        default=None, description="Chunk of layers with chunked attention [token]; default: none."
    )
    layer_types: tuple[str, ...] | None = Field(
        default=None, description="Kind of attention of each layer; default: that of the family."
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
    attention_k_eq_v: bool = Field(
        default=False,
        description="Whether keys also serve as values in layers that attend to all positions.",
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
        default=None, description="Width of a value in latent attention."
    )
    # Mixture of experts.
    num_local_experts: int | None = Field(
        default=None, description="Routed experts of a layer; default: no experts."
    )
    num_experts_per_tok: Count = Field(
        default=1, description="Routed experts that each token uses."
    )
    moe_intermediate_size: Count | None = Field(
        default=None, description="Inner width of an expert; default: `intermediate_size`."
    )
    n_shared_experts: int | None = Field(
        default=None, description="Experts of a layer that every token uses; default: none."
    )
    shared_expert_intermediate_size: int | None = Field(
        default=None, description="Inner width of the shared expert; default: no such expert."
    )
    intermediate_size_mlp: Count | None = Field(
        default=None,
        description="Inner width of the MLP in layers without experts; default: "
        "`intermediate_size`.",
    )
    first_k_dense_replace: int = Field(
        default=0, description="Number of first layers without experts."
    )
    moe_layer_freq: Count = Field(
        default=1, description="Every so many layers one has experts, from layer 0."
    )
    n_group: Count | None = Field(
        default=None, description="Groups of routed experts; default: one."
    )
    topk_group: Count | None = Field(
        default=None, description="Groups among which a token's experts are chosen; default: all."
    )
    decoder_sparse_step: Count = Field(
        default=1, description="Every so many layers one has experts, in Qwen."
    )
    interleave_moe_layer_step: Count = Field(
        default=1, description="Every so many layers one has experts, in Llama 4."
    )
    mlp_only_layers: tuple[int, ...] = Field(
        default=(), description="Layers without experts, numbered from 0."
    )
    enable_moe_block: bool = Field(
        default=False,
        description="Whether layers with experts have a dense MLP as well, in Gemma 4.",
    )
    # Falcon.
    multi_query: bool = Field(
        default=False, description="Whether all query heads share one KV head, in Falcon."
    )
    new_decoder_architecture: bool = Field(
        default=False,
        description="Whether Falcon's KV heads are those of the config, despite `multi_query`.",
    )


class ModelConfig(ConfigKeys):
    """A config.json, checked, and the meaning of its keys for each layer."""

    @model_validator(mode="before")
    @classmethod
    def _covered(cls, data: object) -> object:
        """Give each number its one name, and refuse a model that is not covered."""
        if not isinstance(data, Mapping):
            return data
        flat = unnested(data)
        for key in ("torch_dtype", "dtype"):
            if (dtype := flat.get(key)) is not None and dtype not in tuple(DTYPES):
                raise error_at_key(
                    (key,), f"{key} '{dtype}' is not covered; covered are {', '.join(DTYPES)}"
                )
        flat = cls.spelled(flat)
        for key, what in NOT_COVERED.items():
            if flat.get(key):
                raise error_at_key((key,), f"'{key}': {what} is not covered")
        family = flat.get("model_type")
        if isinstance(family, str) and family not in FAMILIES:
            raise error_at_key(
                ("model_type",),
                f"model_type '{family}' is not covered; covered are {', '.join(FAMILIES)}",
            )
        if family == "falcon":
            # The length that it was trained on; its configs have no such key.
            flat.setdefault("max_position_embeddings", 2048)
        return flat

    @classmethod
    def unknown(cls, key: object) -> PydanticCustomError:
        field = next((field for field, spellings in SPELLINGS.items() if key in spellings), None)
        return (
            error_at_key((str(key),), f"a change of {key!r} is written as '{field}'")
            if field
            else super().unknown(key)
        )

    @classmethod
    def spelled(cls, data: Mapping[str, JsonValue]) -> JsonObject:
        """Return the config with text_config unnested and each number under its field's name."""
        flat = unnested(data)
        for key, spellings in SPELLINGS.items():
            numbers = [
                flat.pop(spelling)
                for spelling in (key, *spellings)
                if flat.get(spelling) is not None
            ]
            if numbers:
                flat[key] = numbers[0]
        return flat

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.kv_heads
        if self.head_dim is None and hidden % heads and not self.kv_lora_rank:
            raise ValueError(
                f"hidden_size {hidden} is no multiple of num_attention_heads {heads},"
                " and there is no head_dim"
            )
        if heads % kv:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv}"
            )
        latent = self.qk_rope_head_dim and self.qk_nope_head_dim and self.v_head_dim
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers,"
                f" num_hidden_layers is {self.num_hidden_layers}"
            )
        self._check_expert_groups()
        known = {"full_attention", "sliding_attention", "chunked_attention"}
        if odd := set(self.layer_types or ()) - known:
            covered = ", ".join(sorted(known))
            reason = f"layer_types: '{min(odd)}' is not covered; covered are {covered}"
            raise error_at_key(("layer_types",), reason)
        if self.kv_lora_rank and not latent:
            raise ValueError("kv_lora_rank needs qk_rope_head_dim, qk_nope_head_dim and v_head_dim")
        if not (
            self.intermediate_size or self.moe_intermediate_size or self.model_type == "falcon"
        ):
            raise ValueError("'intermediate_size' is missing")
        _ = self.quantization  # raises if it is not covered
        return self

    def _check_expert_groups(self) -> None:
        """Raise the error of groups that the experts do not fill, or that are too few."""
        if not (self.num_local_experts and self.n_group):
            return
        groups, experts = self.n_group, self.num_local_experts
        chosen = self.topk_group or groups
        if experts % groups:
            reason = f"n_group {groups} does not divide the {experts} experts"
            raise error_at_key(("n_group",), reason)
        if not chosen <= groups or experts // groups * chosen < self.num_experts_per_tok:
            taken = f"{self.num_experts_per_tok} experts cannot be taken from so many"
            raise error_at_key(("topk_group",), f"topk_group {chosen} of n_group {groups}: {taken}")

    @property
    def family(self) -> Family:
        """Facts of the model_type that the config does not state."""
        return FAMILIES[self.model_type]

    @property
    def kv_heads(self) -> int:
        """The KV heads of a layer, unless it has its own number (num_global_key_value_heads)."""
        if self.model_type == "falcon" and self.multi_query and not self.new_decoder_architecture:
            return 1
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def tied(self) -> bool:
        """Whether embedding and head share one table."""
        return self.family.tied if self.tie_word_embeddings is None else self.tie_word_embeddings

    @property
    def precision(self) -> str:
        """The precision of the config, as a short word; bf16 if it has none."""
        return DTYPES[self.torch_dtype or "bfloat16"]

    @property
    def quantization(self) -> tuple[str, bool]:
        """The precision of the weights, and whether attention's weights keep the config's own."""
        return quantized_weights(self.quantization_config, self.precision)

    def windowed(self, layer: int) -> int | None:
        """Return the window of a layer; None if it attends to all positions.

        Without layer_types, a window of the config holds for every layer, except in families that
        alternate.
        """
        window = self.sliding_window if self.use_sliding_window is not False else None
        if self.layer_types:
            return {
                "full_attention": None,
                "sliding_attention": window,
                "chunked_attention": self.attention_chunk_size,
            }[self.layer_types[layer]]
        if self.attention_chunk_size:  # Llama 4: every fourth layer attends to all positions
            return self.attention_chunk_size if (layer + 1) % 4 else None
        if self.model_type in ("gemma2", "gpt_oss"):
            return window if layer % 2 == 0 else None
        if self.model_type == "gemma3_text":
            return window if (layer + 1) % (self.sliding_window_pattern or 6) else None
        if self.model_type.startswith("qwen"):
            return window if self.use_sliding_window and layer >= self.max_window_layers else None
        return window

    def has_experts(self, layer: int) -> bool:
        """Return whether a layer's MLP is a mixture of experts."""
        if (
            not self.num_local_experts
            or layer in self.mlp_only_layers
            or layer < self.first_k_dense_replace
        ):
            return False
        return (
            layer % self.moe_layer_freq == 0
            and (layer + 1) % self.decoder_sparse_step == 0
            and (layer + 1) % self.interleave_moe_layer_step == 0
        )


def unnested(config: Mapping[str, JsonValue]) -> JsonObject:
    """Return the config of the text model alone, without vision and audio models."""
    inner = config.get("text_config")
    outside = (
        "id",
        "aliases",
        "torch_dtype",
        "dtype",
        "tie_word_embeddings",
        "quantization_config",
    )
    return (
        {**{key: config[key] for key in outside if key in config}, **inner}
        if isinstance(inner, Mapping)
        else dict(config)
    )
