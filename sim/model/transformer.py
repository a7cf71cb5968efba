"""A transformer made of blocks: its parameters, FLOPs and KV cache."""

from functools import cached_property
from typing import Annotated

from sim.inputs.fields import FromCatalogue
from sim.model.blocks import Attention, Block, Dim, Experts, Latent, Matrix
from sim.model.config import ModelConfig


class Model(ModelConfig):
    """A decoder as its config.json describes it, layer by layer.

    Covered: grouped-query and latent attention, dense MLPs and mixtures of experts.
    A chunk of chunked attention counts as a window.
    Left out: vision and audio towers, and multi-token-prediction layers.
    Left out: element-wise work, such as softmax and soft-capping of logits.
    """

    def _attention(self, layer: int) -> Block:
        """Return the attention block of a layer."""
        return self._latent_attention() if self.kv_lora_rank else self._grouped_attention(layer)

    def _latent_attention(self) -> Block:
        """Return a block of multi-head latent attention, which is the same in each layer."""
        d, heads = self.hidden_size, self.num_attention_heads
        hidden = Dim(d)
        assert self.kv_lora_rank
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
        return Block("attention", tuple(matrices), norms, Attention(heads, heads, 0, latent=latent))

    def _grouped_attention(self, layer: int) -> Block:
        """Return a block of multi-head, grouped-query or multi-query attention."""
        d, heads = self.hidden_size, self.num_attention_heads
        hidden = Dim(d)
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
        """Return the matrices of an MLP: gate and up as one (or up without a gate), then down."""
        hidden, inner = Dim(self.hidden_size), Dim(size, split=True)
        return (
            Matrix((hidden,), (inner, inner) if self.family.gated else (inner,)),
            Matrix((inner,), (hidden,)),
        )

    def _feed_forward(self, layer: int) -> Block:
        """Return the MLP block of a layer, dense or with experts."""
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
        """Embedding, attention and MLP of each layer, and the head with the last norm.

        Equal layers share their blocks.
        """
        return self._blocks()

    def _blocks(self) -> tuple[Block, ...]:
        """Return all blocks, in order."""
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

    @cached_property
    def distinct(self) -> tuple[Block, ...]:
        """The distinct blocks, in their order."""
        return tuple(dict.fromkeys(self.blocks))

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """The place of each block among the distinct ones.

        It spares planners to compare blocks, which takes a hundred times as long.
        """
        places = {block: place for place, block in enumerate(self.distinct)}
        return tuple(places[block] for block in self.blocks)

    @property
    def parameters(self) -> int:
        """All parameters, with the shared table of a tied embedding counted once."""
        total = sum(block.parameters() for block in self.blocks)
        return total - (self.vocab_size * self.hidden_size if self.tied else 0)

    @property
    def active_parameters(self) -> int:
        """The parameters that one token uses: its experts only, the head, no embedding table."""
        return sum(block.active for block in self.blocks[1:])

    @cached_property
    def window(self) -> int | None:
        """The one window that some layers have; None without one.

        Raises: ValueError if there are several.
        """
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
        """Return the numbers that a token adds to the KV cache before any window is full."""
        return sum(block.attention.kv_width() for block in self.blocks if block.attention)

    def flops_per_token(self) -> float:
        """Return the FLOPs of the matrix multiplies for one token.

        They are twice the active parameters, without norms and biases.
        """
        return 2.0 * sum(block.active - block.vectors for block in self.blocks[1:])


ModelField = Annotated[Model, FromCatalogue("models", Model)]
