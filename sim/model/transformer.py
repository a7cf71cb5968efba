"""A transformer made of blocks: its parameters, FLOPs and KV cache."""

import math
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import model_validator

from sim.inputs.fields import FromCatalogue
from sim.model.blocks import (
    Attention,
    Block,
    Dim,
    Dims,
    Experts,
    Matrix,
    MatrixMaker,
    Mixer,
    NumberFormat,
    Part,
)
from sim.model.config import ModelConfig
from sim.model.config_checks import check_targets
from sim.model.grouped_attention import grouped_attention
from sim.model.latent_attention import latent_attention
from sim.model.layer_kinds import MLP_TYPES, RECURRENT, SIDE_BY_SIDE
from sim.model.modules import Modules, family_modules
from sim.model.quantization import mean_format
from sim.model.recurrent_layers import recurrent_layer


def parallel_mixers(attention: Block, recurrent: Block, norm: int) -> Block:
    """Return a block with attention and a recurrence, which share a norm of `norm` numbers."""
    return Block(
        "attention",
        attention.matrices + recurrent.matrices,
        attention.vectors + recurrent.vectors - norm,
        attention.mixers + recurrent.mixers,
    )


class StoredPart(NamedTuple):
    """The weights of a part that have the same number format.

    kind: kind of the blocks that hold them.
    parameters: how many there are, without norms and biases.
    """

    kind: str
    part: Part
    stored: NumberFormat
    parameters: int

    @property
    def nbytes(self) -> float:
        """The bytes of these weights."""
        return self.parameters * self.stored.bytes


class Model(ModelConfig):
    """A decoder as its config.json describes it, layer by layer.

    A key that is absent has the default of transformers' class for its `model_type`. A key that is
    null means that the model has no such thing.
    Covered: grouped-query and latent attention, linear attention and state spaces, dense MLPs and
    mixtures of experts.
    A chunk of chunked attention counts as a window.
    Left out: vision and audio towers, and multi-token-prediction layers.
    Left out: element-wise work, such as softmax and soft-capping of logits.
    """

    @cached_property
    def _modules(self) -> Modules:
        """The names of the matrices in the checkpoint."""
        return family_modules(self.model_type)

    @cached_property
    def _matrix_names(self) -> dict[str, None]:
        """The names of the matrices made so far, in order."""
        return {}

    @model_validator(mode="after")
    def _targets_exist(self) -> "Model":
        if self.quantization.targets:
            _ = self.blocks  # makes all matrices
            check_targets(self.quantization, self._matrix_names)
        return self

    @property
    def _norm(self) -> int:
        """The numbers of one norm."""
        return self.hidden_size * (2 if self.family.norm_biases else 1)

    def _matrix(
        self, part: Part, rows: tuple[Dim, ...], columns: tuple[Dim, ...], names: tuple[str, ...]
    ) -> Matrix:
        """Return a matrix with its number format: `names` has one for all columns, or for each."""
        self._matrix_names.update(dict.fromkeys(names))
        formats = [self.quantization.stored(part, name) for name in names]
        sizes = [1] if len(names) < len(columns) else [column.share(1) for column in columns]
        return Matrix(rows, columns, part, mean_format(zip(formats, sizes, strict=False)))

    def layer(self, number: int) -> tuple[Block, ...]:
        """Return the blocks of a layer: usually its mixers, and its MLP.

        In Nemotron-H a layer has one of them.
        """
        if self.layer_choices:
            return self._chosen_layer(number)
        kind = self.layer_types[number] if self.layer_types else ""
        if kind in MLP_TYPES:
            return (self._feed_forward(number),)
        attention = None if kind == RECURRENT else self._attention(number)
        mixers = attention or self._recurrent(number)
        if attention and kind == SIDE_BY_SIDE:
            mixers = parallel_mixers(attention, self._recurrent(number), self._norm)
        alone = set(MLP_TYPES) & set(self.layer_types or ())
        return (mixers,) if alone else (mixers, self._feed_forward(number))

    def _chosen_layer(self, number: int) -> tuple[Block, ...]:
        """Return the blocks of a layer of Nemotron-NAS, where parts are left out or one matrix."""
        choice, hidden = self.layer_choices[number], (Dim(self.hidden_size),)
        columns, blocks = (Dim(self.hidden_size, split=True),), []
        if choice.kv_heads:
            blocks.append(self._attention(number))
        elif choice.attention_matrix:
            name = self._modules.in_layer(number, "self_attn.linear_attn")
            matrix = self._matrix("attention", hidden, columns, name)
            blocks.append(Block("attention", (matrix,), self._norm))
        if choice.width:
            blocks.append(Block("mlp", self._mlp("mlp", choice.width, number), self._norm))
        elif choice.mlp_matrix:
            name = self._modules.in_layer(number, "mlp.linear_mlp")
            blocks.append(Block("mlp", (self._matrix("mlp", hidden, columns, name),), self._norm))
        return tuple(blocks)

    def _attention(self, layer: int) -> Block:
        """Return the attention block of a layer."""
        if self.kv_lora_rank:
            norms = self.family.norms // 2 * self._norm
            return latent_attention(
                self, layer, norms, self._maker("attention", layer, "self_attn")
            )
        return self._grouped_attention(layer)

    def _recurrent(self, layer: int) -> Block:
        """Return the block of a layer that has a recurrence in place of attention."""
        made = recurrent_layer(self, self._maker("recurrent", layer, self._modules.recurrent))
        norms = self.family.norms // 2 * self._norm
        return Block("recurrent", made.matrices, norms + made.vectors, (made.recurrence,))

    def _maker(self, part: Part, layer: int, module: str) -> MatrixMaker:
        """Return the maker of a layer's matrices, whose names follow that of a module."""

        def matrix(rows: Dims, columns: Dims, names: tuple[str, ...]) -> Matrix:
            named = self._modules.in_layer(layer, *(f"{module}.{name}" for name in names))
            return self._matrix(part, rows, columns, named)

        return matrix

    def _grouped_attention(self, layer: int) -> Block:
        """Return a block of multi-head, grouped-query or multi-query attention."""

        def matrix(rows: Dims, columns: Dims, names: tuple[str, ...]) -> Matrix:
            named = self._modules.in_layer(layer, *names)
            return self._matrix("attention", rows, columns, named)

        norms = self.family.norms // 2 * self._norm
        return grouped_attention(self, layer, norms, self._modules, matrix)

    def _mlp(self, part: Part, size: int, layer: int) -> tuple[Matrix, ...]:
        """Return the matrices of an MLP: gate and up as one (or up without a gate), then down."""
        modules, hidden, inner = self._modules, Dim(self.hidden_size), Dim(size, split=True)
        up, down = {
            "experts": (modules.experts_up, modules.experts_down),
            "shared experts": (modules.shared_up, modules.shared_down),
        }.get(part, (modules.up, modules.down))
        columns = (inner, inner) if self.family.gated else (inner,)
        return (
            self._matrix(part, (hidden,), columns, modules.in_layer(layer, *up)),
            self._matrix(part, (inner,), (hidden,), modules.in_layer(layer, down)),
        )

    def _feed_forward(self, layer: int) -> Block:
        """Return the MLP block of a layer, dense or with experts."""
        d, norms = self.hidden_size, (self.family.norms + 1) // 2 * self._norm
        dense = self.intermediate_size or 4 * d
        if not self.has_experts(layer):
            dense = self.shared_intermediate_size or self.intermediate_size_mlp or dense
            biases = (1 + self.family.gated) * dense + d if self.mlp_bias or self.use_bias else 0
            return Block("mlp", self._mlp("mlp", dense, layer), norms + biases)
        count, size = self.num_local_experts or 0, self.moe_intermediate_size or dense
        beside = size * (self.n_shared_experts or 0) + (self.shared_expert_intermediate_size or 0)
        beside += size if self.family.shared_expert else self.shared_intermediate_size or 0
        matrices = [self._matrix("router", (Dim(d),), (Dim(count),), ("router",))]
        matrices += self._mlp("shared experts", beside, layer) if beside else ()
        matrices += self._mlp("mlp", dense, layer) if self.enable_moe_block else ()
        bias = 2 * size + d if self.model_type == "gpt_oss" else 0
        groups = self.n_group or 1, self.topk_group or self.n_group or 1
        routed = self._mlp("experts", size, layer)
        experts = Experts(count, self.num_experts_per_tok, routed, bias, *groups)
        return Block("mlp", tuple(matrices), norms, experts=experts)

    @cached_property
    def parts(self) -> dict[str, "Model"]:
        """The parts of the model on pools of chips, by pool; `model_part` fills it."""
        return {}

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Embedding, attention and MLP of each layer, and the head with the last norm.

        Equal layers share their blocks.
        """
        return self._blocks()

    def _blocks(self) -> tuple[Block, ...]:
        """Return all blocks, in order."""
        vocabulary, hidden = Dim(self.vocab_size, split=True), Dim(self.hidden_size)
        layers = [block for i in range(self.num_hidden_layers) for block in self.layer(i)]
        known: dict[Block, Block] = {}
        layers = [known.setdefault(block, block) for block in layers]
        modules = self._modules
        table = self._matrix("embedding", (vocabulary,), (hidden,), (modules.embedding,))
        head = self._matrix("head", (hidden,), (vocabulary,), (modules.head,))
        if self.tie_word_embeddings:
            head = head._replace(stored=table.stored)
        last = Block("head", (head,), self._norm)
        places = self.max_position_embeddings + 2 if self.family.learned_positions else 0
        first = Block("embedding", (table,), places * self.hidden_size)
        return (first, *layers, last)

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

    def main_format(self, kind: str) -> NumberFormat:
        """Return the number format of most weights in the blocks of a kind, or of all blocks."""
        rows = [row for row in self.weight_map if row.kind == kind] or self.weight_map
        return max(rows, key=lambda row: row.parameters).stored

    @cached_property
    def weight_map(self) -> tuple[StoredPart, ...]:
        """The parts of the model by number format, as the checkpoint has them."""
        counts: Counter[tuple[str, Part, NumberFormat]] = Counter()
        for block in self.blocks:
            for matrix, count in block.weights:
                size = math.prod(matrix.share(1))
                counts[block.kind, matrix.part, matrix.stored] += count * size
        return tuple(StoredPart(*key, count) for key, count in counts.items())

    @property
    def parameters(self) -> int:
        """All parameters, with the shared table of a tied embedding counted once."""
        total = sum(block.parameters() for block in self.blocks)
        return total - (self.vocab_size * self.hidden_size if self.tie_word_embeddings else 0)

    @property
    def active_parameters(self) -> int:
        """The parameters that one token uses: its experts only, the head, no embedding table."""
        return sum(block.active for block in self.blocks[1:])

    @cached_property
    def window(self) -> int | None:
        """The one window that some layers have; None without one.

        Raises: ValueError if there are several.
        """
        windows = {mixer.window for mixer in self._mixers if mixer.window}
        if len(windows) > 1:
            raise ValueError(f"{self.id}: got windows of {sorted(windows)} positions; expected one")
        return next(iter(windows), None)

    @property
    def fewest_kv_heads(self) -> int:
        """The KV heads of the layer with fewest; 0 if no layer has them."""
        return min((m.kv_heads for m in self._mixers if isinstance(m, Attention)), default=0)

    def kv_per_token(self) -> int:
        """Return the numbers that a token adds to the KV cache before any window is full."""
        return sum(mixer.kv_width() for mixer in self._mixers)

    def state_bytes(self) -> float:
        """Return the bytes of the states of a sequence, which do not grow."""
        return sum(mixer.state_bytes() for mixer in self._mixers)

    @property
    def _mixers(self) -> Iterator[Mixer]:
        """The mixers of all blocks."""
        return (mixer for block in self.blocks for mixer in block.mixers)

    def flops_per_token(self) -> float:
        """Return the FLOPs of the matrix multiplies for one token.

        They are twice the active parameters, without norms and biases.
        """
        return 2.0 * sum(block.active - block.vectors for block in self.blocks[1:])


ModelField = Annotated[Model, FromCatalogue("models", Model)]
