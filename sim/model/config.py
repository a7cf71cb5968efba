"""A transformer as its Hugging Face `config.json` describes it: parameters, FLOPs and KV cache, block by block.

Keys keep their Hugging Face names.  What is not covered is refused by naming the key, never computed wrongly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sim.inputs.fields import FromCatalogue
from sim.inputs.values import Entry
from sim.units import Count


class Family(NamedTuple):
    """What a model_type does that its config does not say."""

    gated: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2  # of a layer
    tied: bool = False  # where the config has no tie_word_embeddings
    shared_expert: bool = False  # one beside the routed ones, of their size (Llama 4)


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
# The same number under the names that families give it.
SPELLINGS = {
    "num_key_value_heads": ("num_kv_heads",),
    "num_local_experts": ("num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token", "top_k_experts"),
    "hidden_act": ("hidden_activation",),
    "torch_dtype": ("dtype",),
    "max_position_embeddings": ("model_max_length",),
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # theirs and our short words
QUANTIZED = {"fp8": "fp8", "mxfp4": "fp4", "awq": "int4", "gptq": "int4", "nvfp4": "fp4"}


class Dim(NamedTuple):
    """One side of a matrix: `parts` (heads, columns) of `size` each, which tensor parallelism deals out whole, or not at all."""

    parts: int
    size: int = 1
    split: bool = False

    def share(self, tensor: int) -> int:
        """Its length on the fullest of `tensor` chips."""
        return (math.ceil(self.parts / tensor) if self.split else self.parts) * self.size


class Matrix(NamedTuple):
    """A weight matrix, its sides put together from parts that split each for itself (q, k and v heads)."""

    rows: tuple[Dim, ...]
    columns: tuple[Dim, ...]

    def share(self, tensor: int) -> tuple[int, int]:
        """Rows and columns on the fullest of `tensor` chips."""
        return sum(d.share(tensor) for d in self.rows), sum(d.share(tensor) for d in self.columns)


class Latent(NamedTuple):
    """Multi-head latent attention: the cache keeps `rank` numbers and a rotary key for all heads together."""

    rank: int
    rope: int
    nope: int
    value: int


@dataclass(frozen=True, slots=True)
class Attention:
    """How a layer attends: what a token leaves in the KV cache, and what it costs to look back at a position."""

    heads: int
    kv_heads: int
    head_size: int
    window: int | None = None  # positions it sees; all where None
    shared: bool = False  # V is K, and is kept once
    latent: Latent | None = None

    def kv_width(self, tensor: int = 1) -> int:
        """Numbers that one token adds to the cache, on the fullest of `tensor` chips.

        Fewer KV heads than chips: heads are held several times.  A latent is held by every chip.
        """
        if self.latent:
            return self.latent.rank + self.latent.rope
        return (1 if self.shared else 2) * math.ceil(self.kv_heads / tensor) * self.head_size

    def flops(self, tensor: int = 1, decode: bool = True) -> float:
        """FLOPs for each position that a new token attends to, on the fullest chip: q times k, weights times v.

        A latent is attended to directly in decode (absorbed: 2H(2*rank + rope)), and unpacked to heads in prefill.
        """
        heads = math.ceil(self.heads / tensor)
        if self.latent is None:
            return 4.0 * heads * self.head_size
        latent = self.latent
        each = 2 * latent.rank + latent.rope if decode else latent.nope + latent.rope + latent.value
        return 2.0 * heads * each

    def seen(self, positions: float) -> float:
        """How many of so many positions it sees, and keeps."""
        return min(positions, self.window) if self.window else positions


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts of a layer: `per_token` of `count`, each an MLP of the same matrices.

    With node-limited routing a token takes all of them from `groups_per_token` of `groups` groups of consecutive experts.
    """

    count: int
    per_token: int
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    groups: int = 1
    groups_per_token: int = 1

    def parameters(self, tensor: int = 1) -> int:
        """Of one expert, on the fullest of `tensor` chips."""
        return sum(math.prod(matrix.share(tensor)) for matrix in self.matrices) + self.vectors

    def reached(self, blocks: int) -> float:
        """Return on how many of `blocks` blocks of chips a token's experts lie, in expectation.

        Experts are dealt out in order, and each choice is as likely as any other.  A block is missed where all `per_token`
        experts are others of the chosen groups.  Left out: skew.
        """
        size, open_to = self.count // self.groups, self.count // self.groups * self.groups_per_token
        expected = 0.0
        for block in range(blocks):
            first, end = (-(-self.count * each // blocks) for each in (block, block + 1))
            parts = [
                min(end, (g + 1) * size) - max(first, g * size)
                for g in range(first // size, -(-end // size))
            ]
            ways = {
                (0, 0): 1
            }  # of choosing among the groups that the block has a part of: groups and experts there
            for part in parts:
                taken = {(n + 1, held + part): count for (n, held), count in ways.items()}
                ways = {key: ways.get(key, 0) + taken.get(key, 0) for key in ways | taken}
            missed = sum(
                count
                * math.comb(self.groups - len(parts), self.groups_per_token - n)
                * math.comb(open_to - held, self.per_token)
                for (n, held), count in ways.items()
                if n <= self.groups_per_token
            )
            expected += 1 - missed / (
                math.comb(self.groups, self.groups_per_token) * math.comb(open_to, self.per_token)
            )
        return expected

    def chances(self, skew: float = 0.0) -> NDArray[np.float64]:
        """How likely a token takes each expert: per_token/count, or by i^-skew, each at most 1."""
        weight: NDArray[np.float64] = np.arange(1, self.count + 1, dtype=np.float64) ** -skew
        chance: NDArray[np.float64] = np.minimum(1.0, self.per_token * weight / weight.sum())
        for _ in range(self.count):  # what certain experts cannot take goes to the others
            rest = chance < 1
            missing = self.per_token - chance.sum()
            if missing <= 1e-12 or not rest.any():
                break
            chance[rest] = np.minimum(1.0, chance[rest] * (1 + missing / chance[rest].sum()))
        return chance

    def draw(
        self, tokens: int, chance: NDArray[np.float64], stream: np.random.Generator, times: int
    ) -> NDArray[np.int64]:
        """How many of `tokens` tokens take each expert, drawn `times` times: shape (times, count).

        Few tokens take exactly per_token experts each; of many, each expert's count is binomial.
        """
        if tokens > 64:
            return stream.binomial(tokens, chance, (times, self.count))
        with np.errstate(divide="ignore"):
            keys = (
                np.log(stream.random((times, tokens, self.count))) / chance
            )  # Efraimidis and Spirakis
        taken = np.argpartition(-keys, self.per_token - 1, axis=2)[:, :, : self.per_token]
        drawn = np.zeros((times, self.count), np.int64)
        for place in range(times):
            np.add.at(drawn[place], taken[place].ravel(), 1)
        return drawn


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the model that lies on one stage as a whole: what a plan cuts between.

    `vectors` are norms and biases, which every chip of a group holds.
    """

    kind: Literal["embedding", "attention", "mlp", "head"]
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    attention: Attention | None = None
    experts: Experts | None = None

    def parameters(self, tensor: int = 1, expert: int = 1, expert_tensor: int = 1) -> int:
        """On the fullest chip of `tensor`; routed experts are dealt to `expert` shards, each split `expert_tensor` ways."""
        dense = sum(math.prod(matrix.share(tensor)) for matrix in self.matrices) + self.vectors
        return dense + (
            math.ceil(self.experts.count / expert) * self.experts.parameters(expert_tensor)
            if self.experts
            else 0
        )

    @property
    def active(self) -> int:
        """Parameters that one token meets."""
        dense = sum(math.prod(matrix.share(1)) for matrix in self.matrices) + self.vectors
        return dense + (self.experts.per_token * self.experts.parameters() if self.experts else 0)


class Model(Entry):
    """A decoder as its config.json says: grouped-query or latent attention, dense MLPs or experts, layer by layer.

    Left out: vision and audio towers, multi-token-prediction layers, element-wise work (softmax, soft-capping of logits).
    A chunk of chunked attention counts as a window.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    aliases: tuple[str, ...] = ()
    model_type: str
    hidden_size: Count
    intermediate_size: Count | None = None
    num_hidden_layers: Annotated[
        Count, Field(le=1000)
    ]  # a bound, for a slip of the keyboard would take all memory
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
    # Which layers see how far.
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
        """Gives families' spellings one name, refuses what is not covered by naming the key."""
        if not isinstance(data, Mapping):
            return data
        flat = unnested(data)
        for key in ("torch_dtype", "dtype"):
            if (dtype := flat.get(key)) is not None and dtype not in tuple(DTYPES):
                raise refused(
                    key, f"{key} '{dtype}' is not covered; covered are {', '.join(DTYPES)}"
                )
        flat = cls.spelled(flat)
        for key, what in NOT_COVERED.items():
            if flat.get(key):
                raise refused(key, f"'{key}': {what} is not covered")
        family = flat.get("model_type")
        if isinstance(family, str) and family not in FAMILIES:
            raise refused(
                "model_type",
                f"model_type '{family}' is not covered; covered are {', '.join(FAMILIES)}",
            )
        if family == "falcon":
            flat.setdefault(
                "max_position_embeddings", 2048
            )  # what it was trained on; its configs do not say
        return flat

    @classmethod
    def unknown(cls, key: object) -> PydanticCustomError:
        field = next((field for field, spellings in SPELLINGS.items() if key in spellings), None)
        return (
            refused(str(key), f"a change of {key!r} is written as '{field}'")
            if field
            else super().unknown(key)
        )

    @classmethod
    def spelled(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config without text_config in it, and with each number under the name of its field."""
        flat = unnested(data)
        for key, spellings in SPELLINGS.items():
            given = [
                flat.pop(spelling)
                for spelling in (key, *spellings)
                if flat.get(spelling) is not None
            ]
            if given:
                flat[key] = given[0]
        return flat

    @model_validator(mode="after")
    def _consistent(self) -> "Model":
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.kv_heads
        if self.head_dim is None and hidden % heads and not self.kv_lora_rank:
            raise ValueError(
                f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim"
            )
        if heads % kv:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv}"
            )
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is {self.num_hidden_layers}"
            )
        if self.num_local_experts and self.n_group:
            groups, chosen, experts = (
                self.n_group,
                self.topk_group or self.n_group,
                self.num_local_experts,
            )
            if experts % groups:
                raise refused("n_group", f"n_group {groups} does not divide the {experts} experts")
            if not chosen <= groups or experts // groups * chosen < self.num_experts_per_tok:
                reason = f"topk_group {chosen} of n_group {groups}: {self.num_experts_per_tok} experts cannot be taken from so many"
                raise refused("topk_group", reason)
        known = {"full_attention", "sliding_attention", "chunked_attention"}
        if odd := set(self.layer_types or ()) - known:
            raise refused(
                "layer_types",
                f"layer_types: '{min(odd)}' is not covered; covered are {', '.join(sorted(known))}",
            )
        if self.kv_lora_rank and not (
            self.qk_rope_head_dim and self.qk_nope_head_dim and self.v_head_dim
        ):
            raise ValueError("kv_lora_rank needs qk_rope_head_dim, qk_nope_head_dim and v_head_dim")
        if not (
            self.intermediate_size or self.moe_intermediate_size or self.model_type == "falcon"
        ):
            raise ValueError("'intermediate_size' is missing")
        _ = self.quantization
        return self

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def kv_heads(self) -> int:
        if self.model_type == "falcon" and self.multi_query and not self.new_decoder_architecture:
            return 1
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def tied(self) -> bool:
        return self.family.tied if self.tie_word_embeddings is None else self.tie_word_embeddings

    @property
    def precision(self) -> str:
        """The precision that the config names, in our short words; bf16 where it names none."""
        return DTYPES[self.torch_dtype or "bfloat16"]

    @property
    def quantization(self) -> tuple[str, bool]:
        """Precision of the weights that quantization_config names, and whether attention's are kept at the config's dtype."""
        config = self.quantization_config
        if not config:
            return self.precision, False
        method = config.get("quant_method")
        precision = QUANTIZED.get(str(config.get("quant_algo", method)).lower())
        if method == "compressed-tensors":
            groups = config.get("config_groups") or {}
            first: dict[str, Any] = next(iter(groups.values()), {})
            weights = first.get("weights") or {}
            bits = {
                ("float", 8): "fp8",
                ("int", 8): "int8",
                ("int", 4): "int4",
                ("float", 4): "fp4",
            }
            precision = bits.get((str(weights.get("type")), int(weights.get("num_bits") or 0)))
        elif method in ("gptq", "awq") and config.get("bits", 4) == 8:
            precision = "int8"
        if precision is None:
            raise refused(
                "quantization_config",
                f"quantization_config: quant_method '{method}' is not covered",
            )
        kept = config.get("modules_to_not_convert") or config.get("ignore") or ()
        return precision, any("self_attn" in str(name) for name in kept)

    def windowed(self, layer: int) -> int | None:
        """The window of a layer, None where it sees all.

        Without layer_types: every layer where the config has a window, but for the families that alternate.
        """
        window = self.sliding_window if self.use_sliding_window is not False else None
        if self.layer_types:
            return {
                "full_attention": None,
                "sliding_attention": window,
                "chunked_attention": self.attention_chunk_size,
            }[self.layer_types[layer]]
        if self.attention_chunk_size:  # Llama 4: each fourth layer sees all
            return self.attention_chunk_size if (layer + 1) % 4 else None
        if self.model_type == "gemma2":
            return window if layer % 2 == 0 else None
        if self.model_type == "gpt_oss":
            return window if layer % 2 == 0 else None
        if self.model_type == "gemma3_text":
            return window if (layer + 1) % (self.sliding_window_pattern or 6) else None
        if self.model_type.startswith("qwen"):
            return window if self.use_sliding_window and layer >= self.max_window_layers else None
        return window

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
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

    def _attention(self, layer: int) -> Block:
        d, heads = self.hidden_size, self.num_attention_heads
        hidden = Dim(d)
        if self.kv_lora_rank:
            assert self.qk_rope_head_dim
            assert self.qk_nope_head_dim
            assert self.v_head_dim
            latent = Latent(
                self.kv_lora_rank, self.qk_rope_head_dim, self.qk_nope_head_dim, self.v_head_dim
            )
            query = Dim(heads, latent.nope + latent.rope, split=True)
            matrices = [Matrix((hidden,), (query,))]
            if self.q_lora_rank:
                matrices = [
                    Matrix((hidden,), (Dim(self.q_lora_rank),)),
                    Matrix((Dim(self.q_lora_rank),), (query,)),
                ]
            unpacked = Dim(heads, latent.nope + latent.value, split=True)
            matrices += [
                Matrix((hidden,), (Dim(latent.rank + latent.rope),)),
                Matrix((Dim(latent.rank),), (unpacked,)),
                Matrix((Dim(heads, latent.value, split=True),), (hidden,)),
            ]
            norms = self.family.norms // 2 * d + (self.q_lora_rank or 0) + latent.rank
            return Block(
                "attention", tuple(matrices), norms, Attention(heads, heads, 0, latent=latent)
            )
        window = self.windowed(layer)
        whole = window is None
        size = (self.global_head_dim if whole else None) or self.head_dim or d // heads
        kv = (self.num_global_key_value_heads if whole else None) or self.kv_heads
        shared = self.attention_k_eq_v and whole
        query, key = Dim(heads, size, split=True), Dim(kv, size, split=True)
        bias = (heads + 2 * kv) * size if self.attention_bias or self.family.qkv_bias else 0
        vectors = (
            self.family.norms // 2 * d
            + bias
            + (d if self.attention_bias else 0)
            + (2 * size if self.family.qk_norm else 0)
        )
        matrices = [
            Matrix((hidden,), (query, key) if shared else (query, key, key)),
            Matrix((query,), (hidden,)),
        ]
        return Block(
            "attention", tuple(matrices), vectors, Attention(heads, kv, size, window, shared)
        )

    def _mlp(self, size: int) -> tuple[Matrix, ...]:
        """Gate and up beside each other, then down; without a gate, up and down."""
        hidden, inner = Dim(self.hidden_size), Dim(size, split=True)
        return (
            Matrix((hidden,), (inner, inner) if self.family.gated else (inner,)),
            Matrix((inner,), (hidden,)),
        )

    def _feed_forward(self, layer: int) -> Block:
        d, norms = self.hidden_size, (self.family.norms + 1) // 2 * self.hidden_size
        dense = self.intermediate_size or 4 * d
        if not self.has_experts(layer):
            dense = self.intermediate_size_mlp or dense
            return Block(
                "mlp",
                self._mlp(dense),
                norms + ((1 + self.family.gated) * dense + d if self.mlp_bias else 0),
            )
        count, size = self.num_local_experts or 0, self.moe_intermediate_size or dense
        beside = size * (self.n_shared_experts or 0) + (self.shared_expert_intermediate_size or 0)
        beside += size if self.family.shared_expert else 0
        matrices = [Matrix((Dim(d),), (Dim(count),))]  # the router
        matrices += self._mlp(beside) if beside else ()
        matrices += self._mlp(dense) if self.enable_moe_block else ()
        bias = 2 * size + d if self.model_type == "gpt_oss" else 0
        groups = self.n_group or 1, self.topk_group or self.n_group or 1
        experts = Experts(count, self.num_experts_per_tok, self._mlp(size), bias, *groups)
        return Block("mlp", tuple(matrices), norms, experts=experts)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Embedding, then attention and MLP of each layer, then the head with the last norm.  Equal layers share their blocks."""
        vocabulary, hidden = Dim(self.vocab_size, split=True), Dim(self.hidden_size)
        layers = [
            block
            for i in range(self.num_hidden_layers)
            for block in (self._attention(i), self._feed_forward(i))
        ]
        known: dict[Block, Block] = {}
        layers = [known.setdefault(block, block) for block in layers]
        head = Block("head", (Matrix((hidden,), (vocabulary,)),), self.hidden_size)
        return (Block("embedding", (Matrix((vocabulary,), (hidden,)),)), *layers, head)

    @property
    def parameters(self) -> int:
        """All parameters, the shared table of a tied embedding counted once."""
        total = sum(block.parameters() for block in self.blocks)
        return total - (self.vocab_size * self.hidden_size if self.tied else 0)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: its experts only, the head, not the embedding's table."""
        return sum(block.active for block in self.blocks[1:])

    @cached_property
    def window(self) -> int | None:
        """The one window that some layers have.  Raises: ValueError where there are several."""
        windows = {
            block.attention.window
            for block in self.blocks
            if block.attention and block.attention.window
        }
        if len(windows) > 1:
            raise ValueError(
                f"{self.id} has windows of {sorted(windows)} positions; one is covered"
            )
        return next(iter(windows), None)

    def kv_per_token(self) -> int:
        """Numbers that a token adds to the KV cache over all layers, before any window is full."""
        return sum(block.attention.kv_width() for block in self.blocks if block.attention)

    def flops_per_token(self) -> float:
        """FLOPs of the matrix multiplies for one token: twice the active parameters, without norms and biases."""
        return 2.0 * sum(block.active - block.vectors for block in self.blocks[1:])


def unnested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the text model alone, where others stand beside it."""
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


def refused(key: str, reason: str) -> PydanticCustomError:
    """The error that `files` reports at the line of the key."""
    return PydanticCustomError("key", "{reason}", {"key": (key,), "reason": reason})


ModelField = Annotated[Model, FromCatalogue("models", Model)]
