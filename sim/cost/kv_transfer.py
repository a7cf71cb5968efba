"""The KV cache of a prompt as it travels from one replica to another, in bytes."""

from sim.cost.layout import Layout
from sim.model.blocks import Attention
from sim.units import Bytes


def stored_width(layout: Layout, attention: Attention) -> float:
    """Return the numbers that a token adds to one layer's cache, over all chips of a stage.

    Chips that hold copies of one KV head count each. A latent counts once.
    """
    width = attention.kv_width()
    if attention.latent:
        return width
    heads = attention.kv_heads * layout.kv_parts(attention)
    return width * max(1.0, layout.plan.tensor / heads)


def prompt_kv_bytes(layout: Layout, tokens: int) -> Bytes:
    """Return the KV cache of `tokens` consecutive tokens of a prompt, over all layers [B].

    tokens: those that the receiver lacks. A layer with a window has no more than the window.
    Copies of KV heads travel, because each chip sends what it holds. One copy of a latent travels.
    Left out: a change of precision or of layout on the way.
    Source: vLLM, docs/features/disagg_prefill.md, for ranks that send what they hold.
    """
    attentions = (block.attention for block in layout.model.blocks if block.attention)
    numbers = sum(a.seen(tokens) * stored_width(layout, a) for a in attentions)
    return numbers * layout.plan.kv.bytes


def kv_layers(layout: Layout) -> int:
    """Return the number of layers that keep a KV cache."""
    return sum(block.attention is not None for block in layout.model.blocks)
