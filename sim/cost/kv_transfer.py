"""The KV cache of a prompt as it travels from one replica to another, in bytes."""

from sim.cost.layout import Layout
from sim.model.blocks import Attention, Mixer
from sim.units import Bytes


def stored_width(layout: Layout, mixer: Mixer) -> float:
    """Return the numbers that a token adds to one layer's cache, over all chips of a stage.

    Chips that hold copies of one KV head count each. A latent, or a key of an indexer, counts once.
    """
    width = mixer.kv_width()
    if not isinstance(mixer, Attention) or mixer.latent:
        return width
    heads = mixer.kv_heads * layout.kv_parts(mixer)
    return width * max(1.0, layout.plan.tensor / heads)


def prompt_kv_bytes(layout: Layout, tokens: int) -> Bytes:
    """Return the KV cache of `tokens` consecutive tokens of a prompt, over all layers [B].

    tokens: those that the receiver lacks. A layer with a window has no more than the window, and a
    state of fixed size travels whole. So do the keys and values of a drafter.
    Copies of KV heads travel, because each chip sends what it holds. One copy of a latent travels.
    Left out: a change of precision or of layout on the way.
    Assumed: copies travel. No source found says that ranks leave out what others hold too.
    """
    model, numbers, states = layout.model, 0.0, 0.0
    for kind, block in enumerate(model.distinct):
        layers = model.kinds.count(kind)
        for mixer in block.mixers:
            kept = min(tokens, mixer.window or tokens) if mixer.forgets else tokens
            numbers += layers * kept * stored_width(layout, mixer)
            states += layers * mixer.state_bytes()
    own = numbers * layout.plan.kv.bytes + states
    return own + (prompt_kv_bytes(layout.drafter, tokens) if layout.drafter else 0.0)


def kv_layers(layout: Layout) -> int:
    """Return the number of layers that keep a KV cache or a state, those of a drafter included."""
    drafter = kv_layers(layout.drafter) if layout.drafter else 0
    return drafter + sum(bool(block.mixers) for block in layout.model.blocks)
