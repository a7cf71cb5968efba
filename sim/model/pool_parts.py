"""The two parts of a model whose attention and MLPs are on different chips."""

from dataclasses import replace
from typing import Literal

from sim.model.blocks import Block
from sim.model.transformer import Model


class AttentionPart(Model):
    """Embedding, attention, routers, norms and head of a model, without its MLPs.

    The biases of a dense MLP count here, since a block has them together with its norms.
    """

    def _blocks(self) -> tuple[Block, ...]:
        first, *layers, last = super()._blocks()
        pairs = zip(layers[::2], layers[1::2], strict=True)
        return first, *(_with_router(mixers, mlp) for mixers, mlp in pairs), last


class FfnPart(Model):
    """The MLPs and experts of a model, without routers and norms."""

    def _blocks(self) -> tuple[Block, ...]:
        _, *layers, _ = super()._blocks()
        return tuple(_without_router(mlp) for mlp in layers[1::2])


def _with_router(mixers: Block, mlp: Block) -> Block:
    """Return the block of a layer's mixers with the router and the norms of its MLP."""
    routers = tuple(matrix for matrix in mlp.matrices if matrix.part == "router")
    return replace(mixers, matrices=mixers.matrices + routers, vectors=mixers.vectors + mlp.vectors)


def _without_router(mlp: Block) -> Block:
    matrices = tuple(matrix for matrix in mlp.matrices if matrix.part != "router")
    return replace(mlp, matrices=matrices, vectors=0)


PART_CLASSES: dict[str, type[Model]] = {"attention": AttentionPart, "ffn": FfnPart}


def model_part(model: Model, pool: Literal["attention", "ffn"]) -> Model:
    """Return the part of a model that is on the chips of a pool.

    The model keeps its parts, because a search for the sizes of pools asks thousands of times.

    Raises: ValueError if a layer lacks a mixer or an MLP.
    """
    if pool not in model.parts:
        model.parts[pool] = _make_part(model, pool)
    return model.parts[pool]


def _make_part(model: Model, pool: Literal["attention", "ffn"]) -> Model:
    if any(len(model.layer(number)) != 2 for number in range(model.num_hidden_layers)):
        raise ValueError(
            f"got {model.id}, whose layers have either a mixer or an MLP; expected both in each "
            "layer; try another model"
        )
    shared = model.tie_word_embeddings and pool == "attention"
    return PART_CLASSES[pool].model_validate(model.model_dump() | {"tie_word_embeddings": shared})
