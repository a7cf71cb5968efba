"""A transformer as its Hugging Face `config.json` describes it: parameters, FLOPs and KV bytes, block by block.

Keys keep their Hugging Face names.  What is not covered is refused by naming the key, never computed wrongly.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sim.files import Value, from_catalogue
from sim.units import Count

# Families whose layers are grouped-query attention and one gated MLP; qwen2 has biases on q, k and v, qwen3 norms on q and k.
COVERED = ("llama", "mistral", "qwen2", "qwen3")
NOT_COVERED = {
    "text_config": "multimodal wrappers",
    "num_local_experts": "mixture of experts",
    "num_experts": "mixture of experts",
    "n_routed_experts": "mixture of experts",
    "kv_lora_rank": "latent attention",
    "sliding_window": "sliding-window attention",
    "layer_types": "layers of several types",
    "attention_chunk_size": "chunked attention",
    "ssm_cfg": "state-space layers",
    "state_size": "state-space layers",
    "mamba_d_state": "state-space layers",
    "linear_num_value_heads": "linear attention",
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # theirs and our short words


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


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the model that lies on one stage as a whole: what a plan cuts between.

    `vectors` are norms and biases, which every chip of a group holds.
    """

    kind: Literal["embedding", "attention", "mlp", "head"]
    matrices: tuple[Matrix, ...]
    vectors: int = 0

    def parameters(self, tensor: int = 1) -> int:
        """Parameters on the fullest of `tensor` chips; on one chip, all of them."""
        return sum(math.prod(matrix.share(tensor)) for matrix in self.matrices) + self.vectors


class Model(Value):
    """A dense decoder with grouped-query attention (multi-head where the config gives no key-value heads)."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    id: str = "in-place"
    model_type: str
    architectures: tuple[str, ...] = ()
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[Count, Field(le=1000)]  # the largest published models have 126; the cut into stages is quadratic
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    vocab_size: Count
    max_position_embeddings: Count
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _covered(cls, data: object) -> object:
        if isinstance(data, dict):
            for key, what in NOT_COVERED.items():
                given = data.get(key)
                inactive = key == "sliding_window" and data.get("use_sliding_window") is False
                same = key == "layer_types" and isinstance(given, tuple | list) and all(kind == "full_attention" for kind in given)
                if given and not inactive and not same:
                    raise PydanticCustomError("key", "{reason}", {"key": key, "reason": f"'{key}': {what} is not covered"})
            if (family := data.get("model_type")) is not None and family not in COVERED:
                reason = f"model_type '{family}' is not covered; covered are {', '.join(COVERED)}"
                raise PydanticCustomError("key", "{reason}", {"key": "model_type", "reason": reason})
            for key in ("torch_dtype", "dtype"):
                if (given := data.get(key)) is not None and given not in tuple(DTYPES):
                    reason = f"{key} '{given}' is not covered; covered are {', '.join(DTYPES)}"
                    raise PydanticCustomError("key", "{reason}", {"key": key, "reason": reason})
        return data

    @model_validator(mode="after")
    def _whole_heads(self) -> "Model":
        hidden, heads, kv = self.hidden_size, self.num_attention_heads, self.kv_heads
        if self.head_dim is None and hidden % heads:
            raise ValueError(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim")
        if heads % kv:
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def precision(self) -> str:
        """The precision that the config names, in our short words; bf16 where it names none."""
        return DTYPES[self.torch_dtype or self.dtype or "bfloat16"]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Embedding, then attention and MLP of each layer, then the head with the last norm."""
        d, h, heads, kv = self.hidden_size, self.head_size, self.num_attention_heads, self.kv_heads
        hidden, query, key = Dim(d), Dim(heads, h, split=True), Dim(kv, h, split=True)
        inner = Dim(self.intermediate_size, split=True)
        vocabulary = Dim(self.vocab_size, split=True)
        qkv_bias = (heads + 2 * kv) * h if self.attention_bias or self.model_type == "qwen2" else 0
        norms = d + (2 * h if self.model_type == "qwen3" else 0)
        attention = Block(
            "attention",
            (Matrix((hidden,), (query, key, key)), Matrix((query,), (hidden,))),
            norms + qkv_bias + (d if self.attention_bias else 0),
        )
        mlp = Block(
            "mlp",
            (Matrix((hidden,), (inner, inner)), Matrix((inner,), (hidden,))),
            d + (2 * self.intermediate_size + d if self.mlp_bias else 0),
        )
        table = Matrix((vocabulary,), (hidden,))
        head = Block("head", (Matrix((hidden,), (vocabulary,)),), d)
        return (Block("embedding", (table,)), *(attention, mlp) * self.num_hidden_layers, head)

    @property
    def parameters(self) -> int:
        """All parameters, the shared table of a tied embedding counted once."""
        total = sum(block.parameters() for block in self.blocks)
        return total - (self.vocab_size * self.hidden_size if self.tie_word_embeddings else 0)

    def kv_width(self, tensor: int = 1) -> int:
        """Numbers that one token adds to the KV cache in one layer, on the fullest of `tensor` chips: K and V of its heads.

        Fewer KV heads than chips: heads are held twice.
        """
        return 2 * math.ceil(self.kv_heads / tensor) * self.head_size

    def attention_flops(self, attended: float, tensor: int = 1) -> float:
        """FLOPs of one layer's attention core on the fullest chip: q times k and weights times v, for each position attended."""
        return 4.0 * math.ceil(self.num_attention_heads / tensor) * self.head_size * attended

    def flops_per_token(self) -> float:
        """FLOPs of the matrix multiplies for one token: twice the parameters, without the embedding's table."""
        return 2.0 * sum(block.parameters() - block.vectors for block in self.blocks[1:])


ModelField = Annotated[Model, from_catalogue("models", Model)]
