"""A model laid on chips by a plan: stages, bytes, and whether they fit. Arithmetic only."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from sim.cost.plan import ResolvedPlan
from sim.cost.speculation import Speculation
from sim.cost.work import Work
from sim.hardware.chip import Chip, Memory
from sim.hardware.engine import Engine
from sim.hardware.topology import Topology
from sim.model.blocks import Block, Mixer
from sim.model.transformer import Model
from sim.units import Bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive blocks, from `first` to `last`, and what the fullest chip holds of them.

    kv_per_token: KV cache of a token in layers without a window [B].
    windowed_per_token: KV cache of a token in layers with one, until the window has passed it [B].
    state: states of fixed size of a sequence [B].
    """

    first: int
    last: int
    weights: Bytes
    kv_per_token: Bytes
    windowed_per_token: Bytes
    state: Bytes = 0.0

    @property
    def first_token(self) -> Bytes:
        """The KV cache of a token before any window is full."""
        return self.kv_per_token + self.windowed_per_token

    def kv(self, tokens: float, window: int | None) -> Bytes:
        """Return the KV cache and the states of one sequence."""
        windowed = min(tokens, window or tokens) * self.windowed_per_token
        return tokens * self.kv_per_token + windowed + self.state

    def beside(self, drafter: "Stage | None") -> "Stage":
        """Return the stage with what it holds of the drafter, if there is one."""
        if drafter is None:
            return self
        return replace(
            self,
            weights=self.weights + drafter.weights,
            kv_per_token=self.kv_per_token + drafter.kv_per_token,
            windowed_per_token=self.windowed_per_token + drafter.windowed_per_token,
        )


@dataclass(frozen=True)
class Layout:
    """One replica: a model laid on chips by a resolved plan.

    bounds: the first block of each stage; the planner cuts the stages.
    speculation: None if each step yields one token of a sequence.
    expert_seed: of the random stream that draws the experts of each step's tokens; None: expected
    loads of experts.
    """

    model: Model
    chip: Chip
    topology: Topology
    engine: Engine
    plan: ResolvedPlan
    token_budget: int
    memory_fraction: float
    bounds: tuple[int, ...] = ()
    speculation: Speculation | None = None
    expert_seed: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        """The tokens of each decoding sequence in a step: one, and the drafts."""
        return 1 + self.speculation.tokens if self.speculation else 1

    @property
    def mean_tokens(self) -> float:
        """The mean tokens of a sequence that a step yields."""
        return self.speculation.mean_tokens if self.speculation else 1.0

    @cached_property
    def drafter(self) -> "Layout | None":
        """The layout of the drafter, on the chips of the last stage; None without one there."""
        of = self.speculation
        if of is None or of.apart:
            return None
        return replace(
            self,
            model=of.model,
            engine=of.engine(self.engine),
            plan=of.plan.on(self.plan, of.model),
            bounds=(0,),
            speculation=None,
            expert_seed=None,
        )

    def ranked(self, work: Work) -> int:
        """Return the tokens of the fullest attention rank in a step, which the others wait for.

        Sequences are spread evenly over the ranks. A prompt is on one rank.
        """
        return work.width * self.plan.ranked(work.decodes) + work.ranked_prompt

    def step_size(self, work: Work) -> tuple[int, int]:
        """Return the tokens of a step, and those of its fullest rank."""
        return work.tokens, self.ranked(work)

    @property
    def draft_stage(self) -> "Stage | None":
        """The blocks of the drafter that the last stage holds as well as its own."""
        if not (self.drafter and self.speculation):
            return None
        last = len(self.drafter.model.blocks) - 1
        return self.drafter.stage(1, last - 1) if self.speculation.layer else self.drafter.stages[0]

    def stage(self, first: int, last: int) -> Stage:
        """Return the stage that blocks first..last make."""
        plan, blocks = self.plan, self.model.blocks[first : last + 1]
        weights = sum(self._kind_weights[kind] for kind in self.model.kinds[first : last + 1])
        if self.model.tie_word_embeddings and len(blocks) == len(self.model.blocks):
            # Embedding and head share one table. It lies on this stage once.
            positions = blocks[0].vectors * plan.vector_bytes(blocks[0])
            weights -= self._kind_weights[0] - positions
        mixers = [mixer for block in blocks for mixer in block.mixers]
        windowed = sum(self.kv_width(mixer) for mixer in mixers if mixer.forgets)
        whole = sum(self.kv_width(mixer) for mixer in mixers) - windowed
        state = sum(mixer.state_bytes(plan.tensor) for mixer in mixers)
        kv = whole * plan.kv.bytes, windowed * plan.kv.bytes
        stage = Stage(first, last, weights, *kv, state)
        ends = last == len(self.model.blocks) - 1
        return stage.beside(self.draft_stage) if ends else stage

    def kv_width(self, mixer: Mixer) -> float:
        """Return the numbers that a token adds to one layer's cache on the fullest chip."""
        return mixer.kv_width(self.plan.tensor) / self.kv_parts(mixer)

    def kv_parts(self, mixer: Mixer) -> int:
        """Return the chips over which the sequence of one KV head, or of a latent, is split."""
        if self.plan.kv_split == "heads" or not mixer.cached_heads:
            return 1
        return max(1, self.plan.tensor // mixer.cached_heads)

    @cached_property
    def _kind_weights(self) -> tuple[Bytes, ...]:
        """The bytes of each distinct block on the fullest chip of its stage."""
        return tuple(self.weights(block) for block in self.model.distinct)

    def weights(self, block: Block) -> Bytes:
        """Return the bytes of a block on the fullest chip of its stage."""
        plan = self.plan
        routed = block.experts.count if block.experts else 0
        return block_bytes(
            plan, block, math.ceil(routed / plan.expert), plan.tensor, plan.expert_tensor
        )

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order."""
        ends = (*self.bounds[1:], len(self.model.blocks))
        return tuple(
            self.stage(first, end - 1) for first, end in zip(self.bounds, ends, strict=True)
        )

    @cached_property
    def block_labels(self) -> tuple[str, ...]:
        """The label of each block, such as 'layer 3 attention'; each step needs all of them."""
        layers = [
            f"layer {layer} {block.kind}"
            for layer in range(self.model.num_hidden_layers)
            for block in self.model.layer(layer)
        ]
        return "embedding", *layers, "head"

    @property
    def weights_memory(self) -> Memory:
        """The memory of the weights. Memories must have been chosen: `plan.weights_in`."""
        assert self.plan.weights_in
        return self.chip.memory[self.plan.weights_in]

    @property
    def kv_memory(self) -> Memory:
        """The memory of the KV cache and the activations, once `plan.kv_in` is chosen."""
        assert self.plan.kv_in
        return self.chip.memory[self.plan.kv_in]

    @property
    def apart(self) -> bool:
        """Whether weights and KV cache live in different memories."""
        return self.plan.weights_in != self.plan.kv_in

    @property
    def usable(self) -> Bytes:
        """Bytes of the KV cache's memory that the engine may fill."""
        return self.kv_memory.capacity * self.memory_fraction

    @cached_property
    def activations(self) -> Bytes:
        """Activations of the largest step on a chip [B].

        They are a rank's share of `token_budget` through the widest matrix multiply, in and out.
        """
        plan = self.plan
        widths = [
            sum(matrix.share(plan.tensor))
            for block in self.model.distinct
            for matrix in block.matrices
        ] or [
            sum(matrix.share(plan.expert_tensor))
            for block in self.model.distinct
            if block.experts
            for matrix in block.experts.matrices
        ]
        widest = max(widths)
        own = math.ceil(self.token_budget / plan.attention_data) * widest * plan.activations.bytes
        return max(own, self.drafter.activations) if self.drafter else own

    def room(self, stage: Stage) -> Bytes:
        """Return the bytes that a chip of the stage has left for KV cache.

        Negative: its weights do not fit.
        """
        if self.apart and stage.weights > self.weights_memory.capacity:
            return self.weights_memory.capacity - stage.weights
        return (
            self.usable
            - self.engine.reserve
            - self.activations
            - (0.0 if self.apart else stage.weights)
        )


def block_bytes(
    plan: ResolvedPlan, block: Block, experts: int, tensor: int = 1, expert_tensor: int = 1
) -> Bytes:
    """Return the bytes of a block with `experts` routed experts, on the fullest chip.

    tensor, expert_tensor: chips that share the block, and each of its experts.
    Norms and biases have the width of the block's first matrix, without its block scales.
    """
    vector = plan.vector_bytes(block)
    nbytes = block.vectors * vector
    for matrix in block.matrices:
        nbytes += math.prod(matrix.share(tensor)) * plan.stored(block, matrix).bytes
    if block.experts:
        routed = block.experts.vectors * vector
        for matrix in block.experts.matrices:
            routed += math.prod(matrix.share(expert_tensor)) * plan.stored(block, matrix).bytes
        nbytes += experts * routed
    return nbytes


def read_bytes(plan: ResolvedPlan, block: Block) -> Bytes:
    """Return the bytes of a block that one token needs, over all chips."""
    return block_bytes(plan, block, block.experts.per_token if block.experts else 0)


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Whether a layout fits, and what its fullest chip holds with one request [B].

    kv_tokens: tokens of KV cache, over all sequences, for which the fullest stage has room
    before any window is full.
    state_tokens: tokens that a sequence's states count as. With them, no stage overflows.
    state_sequences: sequences for which stages without KV cache have room; None without any.
    apart: whether weights have a memory of their own. The capacity is then that of the other one.
    """

    fits: bool
    weights: Bytes
    kv: Bytes
    activations: Bytes
    reserve: Bytes
    capacity: Bytes
    kv_tokens: int
    state_tokens: int = 0
    state_sequences: int | None = None
    apart: bool = False

    @property
    def needed(self) -> Bytes:
        """The bytes that must fit in the capacity."""
        return (0.0 if self.apart else self.weights) + self.kv + self.activations + self.reserve


def _fit_everywhere(rooms: Iterable[tuple[Bytes, Bytes]]) -> int:
    """Return how many sequences, or tokens, fit in the fullest stage; 0 if no stage keeps any.

    rooms: the free bytes of each stage, and the bytes there of one sequence or token.
    """
    counts = (math.floor(room / nbytes) for room, nbytes in rooms if nbytes)
    return max(0, min(counts, default=0))


def sequences(layout: Layout, tokens: int) -> tuple[int, int]:
    """Return the sequences of `tokens` that fit: in the fullest stage, and in shared memory."""
    plan, window = layout.plan, layout.model.window
    rooms = [(layout.room(stage), stage.kv(tokens, window)) for stage in layout.stages]
    together = sum(room for room, _ in rooms) / sum(kv for _, kv in rooms)
    fullest = plan.attention_data * _fit_everywhere(rooms)
    return fullest, max(0, math.floor(plan.attention_data * together))


def weights_only_chips(layout: Layout) -> int:
    """Return the chips that the weights alone fill, split by the byte; no plan needs fewer."""
    plan = layout.plan
    nbytes = sum(
        block_bytes(plan, block, block.experts.count if block.experts else 0)
        for block in layout.model.blocks
    )
    if stage := layout.draft_stage:
        nbytes += stage.weights * layout.plan.stage_size
    return math.ceil(nbytes / layout.weights_memory.capacity)


def most_kv_tokens(layout: Layout) -> int:
    """Return the tokens of KV cache that fill the fullest chip without what the engine keeps.

    No server holds more. It may hold more than `MemoryFit.kv_tokens`, because `memory_fraction`
    and `reserve` are estimates.
    """
    capacity = layout.kv_memory.capacity
    return layout.plan.attention_data * _fit_everywhere(
        (capacity - (0.0 if layout.apart else stage.weights), stage.first_token)
        for stage in layout.stages
    )


def state_room(layout: Layout, kv_tokens: int) -> tuple[int, int | None]:
    """Return the tokens that a sequence's states count as, and how many fit without KV cache.

    kv_tokens: tokens for which the fullest stage of a rank has room.
    n sequences with T tokens fit in a stage if T kv + n state <= room. One budget stands for all
    stages with KV cache: T + n s <= K, where K = min(room / kv) and s = K max(state / room). It is
    exact if the same stage is the fullest in both ways, and else too careful.
    """
    with_kv = [stage for stage in layout.stages if stage.first_token and stage.state]
    shares = [stage.state / max(layout.room(stage), stage.state) for stage in with_kv]
    others = [stage for stage in layout.stages if not stage.first_token and stage.state]
    alone = (max(0, math.floor(layout.room(stage) / stage.state)) for stage in others)
    tokens = math.ceil(kv_tokens * max(shares, default=0.0))
    return tokens, layout.plan.attention_data * min(alone) if others else None


def fit(layout: Layout, request_tokens: float) -> MemoryFit:
    """Return whether every chip holds its weights, activations, reserve and one request's cache."""
    stages, window = layout.stages, layout.model.window
    fullest = min(stages, key=lambda stage: layout.room(stage) - stage.kv(request_tokens, window))
    tokens = _fit_everywhere((layout.room(stage), stage.first_token) for stage in stages)
    state_tokens, state_sequences = state_room(layout, tokens)
    return MemoryFit(
        fits=all(layout.room(stage) >= stage.kv(request_tokens, window) for stage in stages),
        weights=fullest.weights,
        kv=fullest.kv(request_tokens, window),
        activations=layout.activations,
        reserve=layout.engine.reserve,
        capacity=layout.usable,
        kv_tokens=tokens * layout.plan.attention_data,
        state_tokens=state_tokens,
        state_sequences=state_sequences,
        apart=layout.apart,
    )
