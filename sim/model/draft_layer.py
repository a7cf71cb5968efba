"""A single layer that drafts tokens from the hidden states of its model."""

from sim.model.blocks import Block, Dim, Matrix
from sim.model.transformer import Model


class MultiTokenLayer(Model):
    """A layer for multi-token prediction: like the model's last layer, with a projection.

    The projection takes the hidden state and the embedding of a token, 2 x hidden, to hidden. Every
    chip holds it whole. Embedding and head are those of the model.
    Source: DeepSeek-V3, arXiv 2412.19437, section 2.2.
    """

    def _blocks(self) -> tuple[Block, ...]:
        """Return embedding, the attention with the projection, the MLP, and the head."""
        embedding, *_, attention, mlp, head = super()._blocks()
        sides = (Dim(2 * self.hidden_size),), (Dim(self.hidden_size),)
        projection = Matrix(*sides, "attention", attention.matrices[0].stored)
        drafting = Block(
            "attention",
            (projection, *attention.matrices),
            attention.vectors,
            attention.mixers,
        )
        return embedding, drafting, self._draft_mlp(mlp), head

    def _draft_mlp(self, last: Block) -> Block:
        """Return the MLP of the layer. last: that of the model's last layer."""
        return last


class EagleLayer(MultiTokenLayer):
    """A layer as of EAGLE: the same, but its MLP is always dense.

    Left out: the projection of three hidden states, once a step, and the smaller vocabulary of
    EAGLE-3.  Source: EAGLE, arXiv 2401.15077, section 3.
    """

    def _draft_mlp(self, last: Block) -> Block:
        size = self.intermediate_size or 4 * self.hidden_size
        return Block("mlp", self._mlp("mlp", size, self.num_hidden_layers - 1), last.vectors)


DRAFT_LAYERS: dict[str, type[MultiTokenLayer]] = {"mtp": MultiTokenLayer, "eagle": EagleLayer}


def draft_layer(model: Model, method: str) -> Model:
    """Return the layer that drafts for a model. method: `mtp` or `eagle`."""
    return DRAFT_LAYERS[method].model_validate(
        model.model_dump() | {"id": f"{model.id} with {method}"}
    )
