"""Names of weight matrices in checkpoints, by which a config.json says how they are stored."""

import re
from typing import NamedTuple


class NamePatterns(NamedTuple):
    """Names, globs and regular expressions (`re:...`) of modules.

    A name also stands for the modules in it. Names may start with `language_model`.
    texts: the names as they stand in the file.
    """

    patterns: tuple[re.Pattern[str], ...] = ()
    texts: tuple[str, ...] = ()

    def match(self, name: str) -> bool:
        """Return whether a pattern matches the name of a matrix of the language model."""
        bare = name.removeprefix("model.")
        spellings = (name, f"language_model.{name}", f"model.language_model.{bare}", bare)
        text = "\n".join(spellings)
        return any(pattern.search(text) for pattern in self.patterns)


class Modules(NamedTuple):
    """The names of a family's matrices.

    layers: name of the list of layers. Names of other matrices follow it and the layer's number.
    A tuple has a name for each matrix that the simulator counts as one (q, k and v).
    """

    layers: str = "model.layers"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    expand: str = "self_attn.wq"  # the second matrix of a query that is factorized
    output: str = "self_attn.o_proj"
    recurrent: str = "mamba"  # holds the matrices of a recurrence
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    experts_up: tuple[str, ...] = ("mlp.experts.0.gate_proj", "mlp.experts.0.up_proj")
    experts_down: str = "mlp.experts.0.down_proj"
    shared_up: tuple[str, ...] = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")
    shared_down: str = "mlp.shared_experts.down_proj"
    head: str = "lm_head"
    embedding: str = "model.embed_tokens"

    def in_layer(self, layer: int, *names: str) -> tuple[str, ...]:
        """Return the whole names of matrices of a layer."""
        return tuple(f"{self.layers}.{layer}.{name}" for name in names)


_SHARED_EXPERT = Modules(
    shared_up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    shared_down="mlp.shared_expert.down_proj",
)
_MIXTRAL = Modules(
    experts_up=("block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.0.w3"),
    experts_down="block_sparse_moe.experts.0.w2",
)
_UNGATED = Modules(up=("mlp.up_proj",))
_FEED_FORWARD = Modules(
    up=("feed_forward.gate_proj", "feed_forward.up_proj"), down="feed_forward.down_proj"
)
_PHI3 = Modules(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))
_GRANITE_MOE = Modules(
    experts_up=("block_sparse_moe.input_linear",),
    experts_down="block_sparse_moe.output_linear",
    up=("shared_mlp.input_linear",),
    down="shared_mlp.output_linear",
)
_LINEAR_QWEN = _SHARED_EXPERT._replace(recurrent="linear_attn")
MODULES = {
    "arcee": _UNGATED,
    "apertus": _UNGATED,
    "bamba": _FEED_FORWARD,
    "falcon": Modules(
        layers="transformer.h",
        qkv=("self_attention.query_key_value",),
        output="self_attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        embedding="transformer.word_embeddings",
    ),
    "falcon_h1": _FEED_FORWARD,
    "gemma4_text": Modules(
        experts_up=("experts.0.gate_proj", "experts.0.up_proj"), experts_down="experts.0.down_proj"
    ),
    "glm": Modules(up=("mlp.gate_up_proj",)),
    "glm4": Modules(up=("mlp.gate_up_proj",)),
    "gpt_neox": Modules(
        layers="gpt_neox.layers",
        qkv=("attention.query_key_value",),
        output="attention.dense",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        head="embed_out",
        embedding="gpt_neox.embed_in",
    ),
    "gpt_oss": Modules(
        experts_up=("mlp.experts.gate_up_proj",), experts_down="mlp.experts.down_proj"
    ),
    "granitemoe": _GRANITE_MOE,
    "granitemoehybrid": _GRANITE_MOE,
    "granitemoeshared": _GRANITE_MOE,
    "hunyuan_v1_moe": Modules(
        shared_up=("mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj"),
        shared_down="mlp.shared_mlp.down_proj",
    ),
    "internlm2": Modules(
        qkv=("attention.wqkv",),
        output="attention.wo",
        up=("feed_forward.w1", "feed_forward.w3"),
        down="feed_forward.w2",
        head="output",
        embedding="model.tok_embeddings",
    ),
    "jamba": Modules(
        up=("feed_forward.gate_proj", "feed_forward.up_proj"),
        down="feed_forward.down_proj",
        experts_up=("feed_forward.experts.0.gate_proj", "feed_forward.experts.0.up_proj"),
        experts_down="feed_forward.experts.0.down_proj",
    ),
    "jais2": _UNGATED,
    "kimi_linear": _MIXTRAL._replace(
        recurrent="self_attn",
        shared_up=(
            "block_sparse_moe.shared_experts.gate_proj",
            "block_sparse_moe.shared_experts.up_proj",
        ),
        shared_down="block_sparse_moe.shared_experts.down_proj",
    ),
    "llama4_text": Modules(
        up=("feed_forward.gate_proj", "feed_forward.up_proj"),
        down="feed_forward.down_proj",
        experts_up=("feed_forward.experts.0.gate_proj", "feed_forward.experts.0.up_proj"),
        experts_down="feed_forward.experts.0.down_proj",
        shared_up=("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
        shared_down="feed_forward.shared_expert.down_proj",
    ),
    "minimax_m2": _MIXTRAL,
    "mixtral": _MIXTRAL,
    "nemotron": _UNGATED,
    "nemotron_h": Modules(
        layers="backbone.layers",
        qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        output="mixer.o_proj",
        recurrent="mixer",
        up=("mixer.up_proj",),
        down="mixer.down_proj",
        experts_up=("mixer.experts.0.up_proj",),
        experts_down="mixer.experts.0.down_proj",
        shared_up=("mixer.shared_experts.up_proj",),
        shared_down="mixer.shared_experts.down_proj",
        embedding="backbone.embeddings",
    ),
    "opt": Modules(
        layers="model.decoder.layers",
        output="self_attn.out_proj",
        up=("fc1",),
        down="fc2",
        embedding="model.decoder.embed_tokens",
    ),
    "phi": Modules(output="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2"),
    "phi3": _PHI3,
    "phimoe": _MIXTRAL,
    "qwen2_moe": _SHARED_EXPERT,
    "qwen3_5_moe_text": _LINEAR_QWEN,
    "qwen3_5_text": _LINEAR_QWEN,
    "qwen3_next": _LINEAR_QWEN,
    "starcoder2": Modules(up=("mlp.c_fc",), down="mlp.c_proj"),
    "step3_text": Modules(
        experts_up=("moe.gate_proj", "moe.up_proj"),
        experts_down="moe.down_proj",
        shared_up=("share_expert.gate_proj", "share_expert.up_proj"),
        shared_down="share_expert.down_proj",
    ),
}
_STANDARD = Modules()


def family_modules(model_type: str) -> Modules:
    """Return the names of a family's matrices; most families have Llama's."""
    return MODULES.get(model_type, _STANDARD)
