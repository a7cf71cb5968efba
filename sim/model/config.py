"""The keys of a Hugging Face `config.json`, and what they mean for each layer.

Keys keep their Hugging Face names. A model that is not covered is refused by naming the key, and
never computed wrongly.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sim.inputs.errors import error_at_key
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


class ModelConfig(Entry):
    """A config.json: its keys under one name each, checked, and their meaning for each layer."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    aliases: tuple[str, ...] = ()
    model_type: str
    hidden_size: Count
    intermediate_size: Count | None = None
    # The bound stops a mistyped number from taking all memory.
    num_hidden_layers: Annotated[Count, Field(le=1000)]
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    vocab_size: Count
    max_position_embeddings: Count
    tie_word_embeddings: bool | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None
    # Windows of attention, by layer.
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int = 0
    sliding_window_pattern: Count | None = None
    attention_chunk_size: Count | None = None
    layer_types: tuple[str, ...] | None = None
    global_head_dim: Count | None = None
    num_global_key_value_heads: Count | None = None
    attention_k_eq_v: bool = False
    # Latent attention.
    q_lora_rank: Count | None = None
    kv_lora_rank: Count | None = None
    qk_rope_head_dim: Count | None = None
    qk_nope_head_dim: Count | None = None
    v_head_dim: Count | None = None
    # Mixture of experts.
    num_local_experts: int | None = None
    num_experts_per_tok: Count = 1
    moe_intermediate_size: Count | None = None
    n_shared_experts: int | None = None
    shared_expert_intermediate_size: int | None = None
    intermediate_size_mlp: Count | None = None
    first_k_dense_replace: int = 0
    moe_layer_freq: Count = 1
    n_group: Count | None = None
    topk_group: Count | None = None
    decoder_sparse_step: Count = 1
    interleave_moe_layer_step: Count = 1
    mlp_only_layers: tuple[int, ...] = ()
    enable_moe_block: bool = False
    # Falcon.
    multi_query: bool = False
    new_decoder_architecture: bool = False

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
    def spelled(cls, data: Mapping[str, Any]) -> dict[str, Any]:
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


def unnested(config: Mapping[str, Any]) -> dict[str, Any]:
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
