"""A single layer that drafts tokens from the hidden states of its model."""

from collections.abc import Sequence

from sim.model.blocks import Block, Dim, Matrix
from sim.model.transformer import Model

# Covered letters of Nemotron-H's mtp_hybrid_override_pattern: attention, then experts or an MLP.
COVERED_PATTERNS = (None, "*E", "*-")


class MultiTokenLayer(Model):
    """A layer for multi-token prediction: the model's last attention and MLP, with a projection.

    The projection takes the hidden state and the embedding of a token, 2 x hidden, to hidden. Every
    chip holds it whole. Embedding and head are those of the model.
    A hybrid model's last layers may have recurrences, but this layer has attention.
    Source: DeepSeek-V3, arXiv 2412.19437, section 2.2.
    """

    def _blocks(self) -> tuple[Block, ...]:
        """Return embedding, the attention with the projection, the MLP, and the head."""
        embedding, *layers, head = super()._blocks()
        attention = next(b for b in reversed(layers) if b.kind == "attention" and b.mixers)
        sides = (Dim(2 * self.hidden_size),), (Dim(self.hidden_size),)
        projection = Matrix(*sides, "attention", attention.matrices[0].stored)
        drafting = Block(
            "attention",
            (projection, *attention.matrices),
            attention.vectors,
            attention.mixers,
        )
        return embedding, drafting, self._draft_mlp(layers), head

    def _draft_mlp(self, layers: Sequence[Block]) -> Block:
        """Return the MLP of the layer. layers: the blocks of the model's layers."""
        return last_mlp(layers, self.mtp_hybrid_override_pattern)


class EagleLayer(MultiTokenLayer):
    """A layer as of EAGLE: the same, but its MLP is always dense.

    Left out: the projection of three hidden states, once a step, and the smaller vocabulary of
    EAGLE-3.  Source: EAGLE, arXiv 2401.15077, section 3.
    """

    def _draft_mlp(self, layers: Sequence[Block]) -> Block:
        size = self.intermediate_size or 4 * self.hidden_size
        matrices = self._mlp("mlp", size, self.num_hidden_layers - 1)
        return Block("mlp", matrices, last_mlp(layers, None).vectors)


DRAFT_LAYERS: dict[str, type[MultiTokenLayer]] = {"mtp": MultiTokenLayer, "eagle": EagleLayer}


def last_mlp(blocks: Sequence[Block], pattern: str | None) -> Block:
    """Return the last MLP; with a pattern of Nemotron-H the last one with experts, or without.

    Raises: ValueError if there is none.
    """
    for block in reversed(blocks):
        if block.kind == "mlp" and (not pattern or bool(block.experts) == (pattern[-1] == "E")):
            return block
    wanted = "an MLP" if not pattern else "experts" if pattern[-1] == "E" else "a dense MLP"
    reason = f"got a model of layers without {wanted}; expected some, as in the layer that drafts"
    raise ValueError(f"{reason}; try method: draft")


def draft_layer(model: Model, method: str) -> Model:
    """Return the layer that drafts for a model. method: `mtp` or `eagle`.

    Raises: ValueError if the model's drafting layer is not covered, or it has no such layer.
    """
    pattern = model.mtp_hybrid_override_pattern if method == "mtp" else None
    if pattern not in COVERED_PATTERNS:
        expected = " or ".join(repr(letters) for letters in COVERED_PATTERNS if letters)
        raise ValueError(
            f"{model.id} has mtp_hybrid_override_pattern {pattern!r}; expected {expected};"
            " try method: draft"
        )
    last_mlp(model.blocks, pattern)
    return DRAFT_LAYERS[method].model_validate(
        model.model_dump() | {"id": f"{model.id} with {method}"}
    )
