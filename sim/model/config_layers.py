"""The meaning of a config.json's keys for each layer."""

from functools import cached_property
from typing import NamedTuple

from sim.model.block_configs import LayerChoice, layer_choices
from sim.model.config_keys import DTYPES, ConfigKeys
from sim.model.families import FAMILIES, Family
from sim.model.layer_kinds import MLP_TYPES
from sim.model.quantization import Quantization, read_quantization
from sim.model.windows import WINDOW_RULES, LayerPlace


class HeadSizes(NamedTuple):
    """The heads of an attention layer: query heads, KV heads, width of a key, and of a value."""

    heads: int
    kv_heads: int
    key: int
    value: int


class ConfigLayers(ConfigKeys):
    """The keys of a config.json, and their meaning for each layer."""

    def has_indexer(self, layer: int) -> bool:
        """Return whether a layer of sparse attention chooses its positions by itself."""
        if self.indexer_types:
            return self.indexer_types[layer] == "full"
        return max(0, layer + 1 - self.index_skip_topk_offset) % self.index_topk_freq == 0

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

    def head_sizes(self, layer: int) -> HeadSizes:
        """Return the heads of a layer, which may depend on whether it has a window."""
        whole, heads, kv = self.windowed(layer) is None, self.num_attention_heads, self.kv_heads
        kv = self.layer_choices[layer].kv_heads or kv if self.layer_choices else kv
        size = self.head_dim or self.hidden_size // heads
        value = self.v_head_dim
        if whole:
            kv, size = self.num_global_key_value_heads or kv, self.global_head_dim or size
        else:
            heads = self.swa_num_attention_heads or heads
            kv = self.swa_num_key_value_heads or kv * self.family.sliding_kv
            size, value = self.swa_head_dim or size, self.swa_v_head_dim or value
        return HeadSizes(heads, kv, size, value or size)

    @property
    def precision(self) -> str:
        """The precision of the config, as a short word; bf16 if it has none."""
        return DTYPES[self.torch_dtype or "bfloat16"]

    @cached_property
    def quantization(self) -> Quantization:
        """The number formats of the checkpoint."""
        return read_quantization(self.quantization_config, self.precision)

    @cached_property
    def layer_choices(self) -> tuple[LayerChoice, ...]:
        """The parts of each layer, if `block_configs` lists them; empty without."""
        entries = self.block_configs if self.family.chosen else None
        return layer_choices(entries or (), self.num_attention_heads, self.hidden_size)

    def windowed(self, layer: int) -> int | None:
        """Return the window of a layer; None if it attends to all positions."""
        window = self.sliding_window if self.use_sliding_window is not False else None
        if self.layer_types:
            windows = {"sliding_attention": window, "chunked_attention": self.attention_chunk_size}
            return windows.get(self.layer_types[layer])
        if self.attention_chunk_size:  # Llama 4: every fourth layer attends to all positions
            return self.attention_chunk_size if (layer + 1) % 4 else None
        layers, period = self.num_hidden_layers, self.sliding_window_pattern
        if self.family.windows == "pattern" and isinstance(period, str):
            slides = period[layer % len(period)] == "L" and layer + 1 < layers
        else:
            length = period if self.family.windows == "pattern" and isinstance(period, int) else 0
            place = LayerPlace(layer, layers, length or self.family.pattern, self.max_window_layers)
            slides = WINDOW_RULES[self.family.windows](place)
        return window if slides else None

    def has_experts(self, layer: int) -> bool:
        """Return whether a layer's MLP is a mixture of experts."""
        if self.mlp_layer_types and self.num_local_experts:
            return self.mlp_layer_types[layer] == "sparse"
        if (
            not self.num_local_experts
            or layer in self.mlp_only_layers
            or layer < self.first_k_dense_replace
        ):
            return False
        if self.layer_types and self.layer_types[layer] in MLP_TYPES:
            return self.layer_types[layer] == "moe"
        if self.moe_layers is not None:
            return layer in self.moe_layers
        return (
            layer % self.moe_layer_freq == 0
            and (layer + 1) % self.decoder_sparse_step == 0
            and (layer + 1) % self.interleave_moe_layer_step == 0
            and (layer - self.expert_layer_offset) % self.expert_layer_period == 0
        )
