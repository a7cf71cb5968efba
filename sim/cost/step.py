"""Work -> Cost: how long one step takes on each stage, term by term.  The one place where model, chip and engine meet.

`Costs.step` is the contract with the serving loop: the time of the next step, what each further identical step adds (the KV
cache grows), and for how many steps that holds.  `Costs.terms` tells the same time by cause, from the same pieces.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.cost.plan import Layout
from sim.hardware.chip import Op, Precision
from sim.hardware.topology import Algorithm, Copies, Operation
from sim.model.blocks import Attention, Block, Experts

TERMS = ("weights", "kv", "activations", "compute", "collectives", "hops", "overhead")
WEIGHTS, KV, ACTIVATIONS, COMPUTE, COLLECTIVES, HOPS, OVERHEAD = range(len(TERMS))
TIME, FITTED = (
    0,
    1,
)  # rows of a table of terms: seconds, and those of them that engine `ideal` would not need
FOREVER = 1 << 62
DRAWINGS = 64  # of tokens to experts, where the expectation of a maximum has no closed form
POSITIONS = 2.0**20  # at which a chip's linear answers are probed
TOKEN_BYTES = 4.0  # a sampled token's number, on its way back to the first stage

Array = NDArray[np.float64]
Plane = tuple[
    float, float, float
]  # fixed seconds, seconds for each position attended, for each read from the cache


@dataclass(
    slots=True
)  # frozen, it would take three times as long to make, and one is made for each passage
class Work:
    """What one step advances: `decodes` sequences by a token each, and chunks of prompts.

    `context` is the sum over decoding sequences of the positions that the new token attends to, itself included.  For chunks,
    `attended` sums that over their tokens (C new after S old: C*S + C*(C+1)/2) and `cached` the positions whose K and V are
    read (S + C).  `logits` counts the positions that a token is sampled from.  What begins with `windowed` is the same as the
    layers with a window see it; without such layers it is not looked at.
    """

    decodes: int = 0
    context: float = 0.0
    prompt_tokens: int = 0
    chunks: int = 0
    attended: float = 0.0
    cached: float = 0.0
    logits: int = 0
    windowed_context: float = 0.0
    windowed_attended: float = 0.0
    windowed_cached: float = 0.0
    growing: int = 0  # sequences whose windowed context still grows

    @property
    def tokens(self) -> int:
        return self.decodes + self.prompt_tokens


class Step(NamedTuple):
    """The next step on each stage: `time` of it, `growth` that each further one adds, and how many steps that `holds`."""

    time: Array
    growth: Array | float
    holds: int


class Parts(NamedTuple):
    """What a step is made of: its body on each stage, the head and the sampling on the last one, and for each kind of attention
    the seconds of one layer, and what each further step adds to them."""

    body: Array
    sampling: float
    attention: list[float]
    growth: list[float]
    holds: int


class Exchange(NamedTuple):
    """A collective that the ranks of a stage run side by side: `nbytes` in each of them, as the engine runs it."""

    operation: Operation
    groups: tuple[range, ...]
    nbytes: float
    ways: tuple[
        Algorithm | Copies, ...
    ]  # of each group's all-reduce; of an all-to-all the copies at each level
    latency: float  # s, software's, before each phase
    efficiency: float  # of the bandwidth
    time: float  # s, of the slowest rank, in closed form


class Multiply(NamedTuple):
    """A weight matrix as it lies on a chip: what its multiplication needs, whatever the tokens."""

    flops: float  # for each token
    weights: float  # B
    activations: float  # B for each token
    precisions: tuple[str, str]
    shapes: tuple[tuple[int, int]]
    efficiencies: tuple[float, float]  # the engine's, of computing and of reading


class AttentionTime(NamedTuple):
    """One layer's attention core on the fullest chip, in seconds: the two sides of the roofline, without and with the engine."""

    compute: float
    memory: float
    slowed_compute: float
    slowed_memory: float

    @property
    def time(self) -> float:
        return max(self.slowed_compute, self.slowed_memory)

    def booked(self) -> Array:
        """By term: computing, or reading the KV cache."""
        table = np.zeros((2, len(TERMS)))
        time, ideal = self.time, max(self.compute, self.memory)
        table[:, COMPUTE if self.slowed_compute >= self.slowed_memory else KV] = time, time - ideal
        return table


class Core(NamedTuple):
    """The attention core of some new tokens, as linear as chips promise: fixed seconds, seconds for each position attended,
    seconds for each position read from the cache.  Made once for each number of tokens."""

    compute: Plane
    memory: Plane
    slowed_compute: Plane  # with the engine
    slowed_memory: Plane

    def at(self, attended: float, cached: float) -> AttentionTime:
        compute = self.compute[0] + self.compute[1] * attended + self.compute[2] * cached
        memory = self.memory[0] + self.memory[1] * attended + self.memory[2] * cached
        (c, c_attended, c_cached), (m, m_attended, m_cached) = (
            self.slowed_compute,
            self.slowed_memory,
        )
        slowed = (
            c + c_attended * attended + c_cached * cached,
            m + m_attended * attended + m_cached * cached,
        )
        return AttentionTime(compute, memory, *slowed)


@dataclass(frozen=True, slots=True)
class DecodeLine:
    """One layer's decode attention for a number of sequences, with the engine: both sides of the roofline as lines over the sum of
    their contexts, (windowed) as layers with a window see it."""

    windowed: bool
    compute: float
    compute_slope: float
    memory: float
    memory_slope: float

    def at(self, work: Work) -> tuple[float, float, int]:
        """Seconds now, growth a step, and the steps until the other side of the roofline binds."""
        context, more = (
            (work.windowed_context, work.growing) if self.windowed else (work.context, work.decodes)
        )
        compute = self.compute + self.compute_slope * context
        memory = self.memory + self.memory_slope * context
        lead, gain = memory - compute, more * (self.memory_slope - self.compute_slope)
        holds = FOREVER if lead * gain >= 0 else 1 + int(abs(lead / gain))
        if lead > 0 or (lead == 0 and gain >= 0):
            return memory, more * self.memory_slope, holds
        return compute, more * self.compute_slope, holds


@dataclass(frozen=True, slots=True)
class PromptPlanes:
    """One layer's attention core for a number of prompt tokens, with the engine: both sides of the roofline as planes over the
    positions attended and those read, (windowed) as layers with a window see them: fixed seconds, and seconds for each."""

    windowed: bool
    compute: tuple[float, float, float]
    memory: tuple[float, float, float]

    def at(self, work: Work) -> float:
        attended, cached = (
            (work.windowed_attended, work.windowed_cached)
            if self.windowed
            else (work.attended, work.cached)
        )
        (c, c_attended, c_cached), (m, m_attended, m_cached) = self.compute, self.memory
        return max(
            c + c_attended * attended + c_cached * cached,
            m + m_attended * attended + m_cached * cached,
        )


def slowed(line: Plane, efficiency: float) -> Plane:
    return line[0] / efficiency, line[1] / efficiency, line[2] / efficiency


@lru_cache(maxsize=1 << 16)
def expected_shard(experts: Experts, skew: float, tokens: int, shards: int) -> tuple[float, float]:
    """Of the slowest of some shards, in expectation: how many experts are reached, and how many tokens each of these serves.

    Kept beyond one `Costs`, as other engines and chips ask the same.
    """
    if shards == 1:
        reached = float(np.sum(1 - (1 - experts.chances(skew)) ** tokens))
        return reached, tokens * experts.per_token / reached
    return slowest_shard(experts, skew, tokens, shards, np.random.default_rng(0), DRAWINGS)


def slowest_shard(
    experts: Experts, skew: float, tokens: int, shards: int, stream: np.random.Generator, times: int
) -> tuple[float, float]:
    """The same as the mean of so many drawings."""
    dealt = np.zeros((times, -(-experts.count // shards) * shards))
    dealt[:, : experts.count] = experts.draw(tokens, experts.chances(skew), stream, times)
    by_shard = dealt.reshape(
        times, -1, shards
    )  # expert i lies on shard i modulo shards: popular ones are spread
    reached = float((by_shard > 0).sum(axis=1).max(axis=1).mean())
    return reached, float(by_shard.sum(axis=1).max(axis=1).mean()) / reached


def seconds(exchanges: tuple[Exchange, ...]) -> float:
    """One after the other."""
    time = 0.0
    for exchange in exchanges:
        time += exchange.time
    return time


class Costs:
    """What steps cost on one layout.  Made once for a system; remembers what depends on the number of tokens alone."""

    def __init__(self, layout: Layout, sampled: np.random.Generator | None = None) -> None:
        self.layout = layout
        self.sampled = sampled  # where tokens are routed to experts by drawing, step by step
        self.stages = len(layout.stages)
        blocks = list(dict.fromkeys(layout.model.blocks))
        members = [layout.model.blocks[stage.first : stage.last + 1] for stage in layout.stages]
        self.counts = {
            block: np.array([float(m.count(block)) for m in members]) for block in blocks
        }
        self.shapes = list(dict.fromkeys(block.attention for block in blocks if block.attention))
        self.layers = [
            np.sum([n for block, n in self.counts.items() if block.attention == shape], axis=0)
            for shape in self.shapes
        ]
        self._kinds = range(len(self.shapes))
        self.launch = layout.engine.layer_launch  # where there is one, `parts` leaves it out
        self._windowed = [shape.window is not None for shape in self.shapes]
        self._first_layers = [float(layers[0]) for layers in self.layers]
        self.sequence_overhead = layout.engine.sequence_overhead
        self._no_growth = [0.0] * len(self.shapes)
        alike: dict[object, int] = {}  # the first stage of those whose collectives take as long
        self.like = [alike.setdefault(self._likeness(stage), stage) for stage in range(self.stages)]
        self._body: dict[int, Array] = {}
        self._multiplies: dict[Block, tuple[list[Multiply], list[Multiply]]] = {}
        self._hops: dict[int, Array] = {}
        self._heads: dict[int, float] = {}
        self._cores: dict[tuple[int, int, bool], Core] = {}
        self._positions: dict[tuple[Attention, bool], tuple[float, float]] = {}
        self._lines = {0: [DecodeLine(False, 0.0, 0.0, 0.0, 0.0)] * len(self.shapes)}
        self._planes: dict[int, list[PromptPlanes]] = {}
        self._fixed: dict[
            tuple[int, int, int], float
        ] = {}  # of a step on a single stage, but for attention's core
        self._copied: dict[tuple[Experts, tuple[int, ...]], tuple[float, Copies]] = {}
        self._reached: dict[tuple[Experts, int], tuple[float, float]] = {}
        self.link_bytes: dict[int, float] = {}  # of a step, times the cables that they cross
        self.cables: dict[
            tuple[Operation, range, Algorithm | Copies], float
        ] = {}  # that a byte of a collective crosses, over all messages
        self._exchanges: dict[tuple[Operation, int, float, Copies], tuple[Exchange, ...]] = {}
        self.last = (self.stages - 1) * layout.plan.stage_size  # the chip that samples
        self.back = layout.topology.send(self.last, 0, TOKEN_BYTES) if self.last else 0.0

    def step(self, work: Work) -> Step:
        """The contract: a decode-only step grows linearly until the other side of an attention's roofline binds, or a window
        fills (which the caller knows)."""
        parts = self.parts(work)
        time, growth = parts.body.copy(), np.zeros(self.stages)
        time[-1] += parts.sampling
        for layers, now, more in zip(self.layers, parts.attention, parts.growth, strict=True):
            time += layers * now
            growth += layers * more
        if self.launch:
            return Step(
                np.maximum(time, self.launching(work)), 0.0, 1
            )  # when which stage crosses is not worked out
        return Step(time, growth, parts.holds)

    def line(self, work: Work) -> tuple[float, float, int]:
        """The same of a single stage in plain floats: arrays of one number would take ten times as long."""
        decodes, prompt_tokens = work.decodes, work.prompt_tokens
        key = decodes + prompt_tokens, work.logits, decodes + work.chunks
        if key not in self._fixed or self.sampled:
            self._fixed[key] = self.body(key[0]).item() + self._sampling_time(work)
        time, growth, holds = self._fixed[key], 0.0, 1 if self.sampled else FOREVER
        if decodes:
            for kind, line in enumerate(self._decode_lines(decodes)):
                now, more, steps = line.at(work)
                time += self._first_layers[kind] * now
                growth += self._first_layers[kind] * more
                if steps < holds:
                    holds = steps
        if prompt_tokens:
            for kind, planes in enumerate(self._prompt_planes(prompt_tokens)):
                time += self._first_layers[kind] * planes.at(work)
            growth, holds = 0.0, 1
        return self._launched(work, time, growth, holds) if self.launch else (time, growth, holds)

    def _launched(
        self, work: Work, time: float, growth: float, holds: int
    ) -> tuple[float, float, int]:
        """A single stage's step, or its launch where the host takes longer, until what grows takes as long."""
        launch = self.launching(work).item()
        if time >= launch:
            return time, growth, holds
        return launch, 0.0, min(holds, 1 + int((launch - time) / growth)) if growth else holds

    def launching(self, work: Work) -> Array:
        """Seconds that the host takes on each stage to launch its layers."""
        assert self.launch
        layers: Array = np.sum(self.layers, axis=0)
        return layers * (self.launch.prefill if work.prompt_tokens else self.launch.decode)

    def parts(self, work: Work) -> Parts:
        """What both are made of."""
        sampling, body = self._sampling_time(work), self.body(work.tokens)
        attention, growth, holds = [], [], 1 if self.sampled else FOREVER
        for line in self._decode_lines(work.decodes):
            now, more, steps = line.at(work)
            attention.append(now)
            growth.append(more)
            if steps < holds:
                holds = steps
        if work.prompt_tokens:
            for kind, planes in enumerate(self._prompt_planes(work.prompt_tokens)):
                attention[kind] += planes.at(work)
            growth, holds = self._no_growth, 1
        return Parts(body, sampling, attention, growth, holds)

    def _sampling_time(self, work: Work) -> float:
        """The head, and what the engine does for each sequence."""
        return self._head_time(work.logits) + self._sequences_time(work)

    def _sequences_time(self, work: Work) -> float:
        """What the engine does for each sequence; the ranks of attention data parallelism each for their own, at the same time."""
        return self.sequence_overhead * self._ranked(work.decodes + work.chunks)

    def _decode_lines(self, decodes: int) -> list[DecodeLine]:
        """By kind, one layer's decode attention as a line over the sum of contexts, of which the fullest rank has its share."""
        if decodes not in self._lines:
            lines = self._lines[decodes] = []
            for kind in self._kinds:
                core, share = (
                    self._core(kind, self._ranked(decodes), True),
                    self._ranked(decodes) / decodes,
                )
                (c, c_attended, c_cached), (m, m_attended, m_cached) = (
                    core.slowed_compute,
                    core.slowed_memory,
                )
                sides = c, share * (c_attended + c_cached), m, share * (m_attended + m_cached)
                lines.append(DecodeLine(self._windowed[kind], *sides))
        return self._lines[decodes]

    def _prompt_planes(self, tokens: int) -> list[PromptPlanes]:
        """By kind, one layer's attention core for so many tokens of prompts, of which the fullest rank has its share."""
        if tokens not in self._planes:
            planes = self._planes[tokens] = []
            for kind in self._kinds:
                core, share = (
                    self._core(kind, self._ranked(tokens), False),
                    self._ranked(tokens) / tokens,
                )
                (c, c_attended, c_cached), (m, m_attended, m_cached) = (
                    core.slowed_compute,
                    core.slowed_memory,
                )
                sides = (
                    (c, share * c_attended, share * c_cached),
                    (m, share * m_attended, share * m_cached),
                )
                planes.append(PromptPlanes(self._windowed[kind], *sides))
        return self._planes[tokens]

    def piece_lines(self, tokens: int) -> Array:
        """The same as numbers for the kernel; and the window."""
        windows = [shape.window or FOREVER for shape in self.shapes]
        planes = zip(self._prompt_planes(tokens), windows, strict=True)
        return np.array([[*each.compute, *each.memory, window] for each, window in planes]).reshape(
            -1, 7
        )

    def _ranked(self, tokens: int) -> int:
        """Tokens, or sequences, of the fullest rank of attention data parallelism."""
        return -(-tokens // self.layout.plan.attention_data)

    def hops(self, tokens: int) -> Array:
        """Seconds from each stage's predecessor to it; 0 for the first."""
        if tokens not in self._hops:
            n, shift, nbytes = (
                self.layout.plan.stage_size,
                self.layout.topology.shift,
                self.slice_bytes(tokens),
            )
            self._hops[tokens] = np.array(
                [0.0, *(shift(range((s - 1) * n, s * n), nbytes) for s in range(1, self.stages))]
            )
        return self._hops[tokens]

    def slice_bytes(self, tokens: int) -> float:
        """What each chip of a stage sends to its place in the next one."""
        return (
            tokens
            * self.layout.model.hidden_size
            * self.layout.plan.width("hidden")
            / self.layout.plan.stage_size
        )

    def terms(self, work: Work) -> Array:
        """The same step by cause: seconds by [stage][time, fitted][term].  Hops stand with the stage they lead to."""
        table = self._body_terms(work.tokens)
        table[-1] += self._head_terms(work.logits)
        table[-1, :, OVERHEAD] += self._sequences_time(work)
        for kind, layers in enumerate(self.layers):
            table += layers[:, None, None] * sum(side.booked() for side in self._attend(kind, work))
        if self.launch:
            table[:, :, OVERHEAD] += np.maximum(
                0.0, self.launching(work) - table[:, TIME].sum(axis=1)
            )[:, None]
        table[:, TIME, HOPS] += self.hops(work.tokens)
        return table

    def computing(self, block: Block, work: Work) -> float:
        """Seconds that a block takes each chip of its stage, what these say to each other left out."""
        if block.kind == "head":
            return self._sampling_time(work) + self.layout.engine.step_overhead
        time = self._block_time(block, work.tokens)
        if block.attention:
            time += sum(
                side.time for side in self._attend(self.shapes.index(block.attention), work)
            )
        return time

    def exchanges(self, block: Block, tokens: int, stage: int) -> tuple[Exchange, ...]:
        """How a block's results come together: summed over the rank's chips, and with attention data parallelism sent to the
        experts' chips and back."""
        plan = self.layout.plan
        if block.kind == "head":
            return ()
        hidden = self._ranked(tokens) * self.layout.model.hidden_size * plan.width("hidden")
        joined = self._collective("all_reduce", stage, hidden)
        if block.attention and self.layout.kv_parts(block.attention) > 1:
            joined *= 2  # the parts' results are summed before the output projection
        if block.experts and plan.attention_data > 1:
            to_chips, copies = self._copies(block.experts, stage)
            back = hidden * to_chips / plan.tensor  # each chip of a rank sends its share
            out = back * plan.width("dispatch") / plan.width("hidden")
            both = (self._collective("all_to_all", stage, nbytes, copies) for nbytes in (out, back))
            joined = (*next(both), *next(both), *joined)
        return joined

    def _copies(self, experts: Experts, stage: int) -> tuple[float, Copies]:
        """Return to how many chips a token goes, and over those the copies that each level of the topology carries.

        A node, or a rack, is sent one copy of a token, however many of its chips need it.
        """
        plan = self.layout.plan
        shards = plan.expert or 1
        blocks = self.layout.topology.blocks(
            range(stage * plan.stage_size, (stage + 1) * plan.stage_size)
        )
        if (experts, blocks) not in self._copied:
            reached = [experts.reached(min(n, shards)) * max(1.0, n / shards) for n in blocks]
            self._copied[experts, blocks] = reached[0], tuple(each / reached[0] for each in reached)
        return self._copied[experts, blocks]

    def hidden(self, exchanges: tuple[Exchange, ...], tokens: int, computing: float) -> float:
        """Return the seconds of dispatch and combine that a second micro-batch hides behind the computing of its block."""
        return self._hidden(
            self.layout.engine.overlap,
            [e.time for e in exchanges if e.operation == "all_to_all"],
            tokens,
            computing,
        )

    def _hidden(self, overlap: float, times: list[float], tokens: int, computing: float) -> float:
        return min(overlap * sum(times), computing) if self._ranked(tokens) > 1 else 0.0

    def gathered(self, tokens: int, stage: int) -> tuple[Exchange, ...]:
        """With what a stage begins: each chip was sent a slice of the hidden states, and needs them all."""
        nbytes = (
            self._ranked(tokens) * self.layout.model.hidden_size * self.layout.plan.width("hidden")
        )
        return self._collective("all_gather", stage, nbytes) if stage else ()

    def block_time(self, block: Block, work: Work) -> float:
        """Seconds that a block adds to its stage, what stands beside it included: what the planner balances stages by.

        Left out: the gather with which every stage but the first begins.
        """
        exchanges, alone = self.exchanges(block, work.tokens, 0), self.computing(block, work)
        return alone + seconds(exchanges) - self.hidden(exchanges, work.tokens, alone)

    # The pieces: what depends on tokens alone, what on sampled positions, what on contexts.

    def body(self, tokens: int) -> Array:
        """Seconds on each stage that depend on tokens alone: blocks but the head, less attention's core; collectives; overheads."""
        if tokens not in self._body or self.sampled:
            times = {stage: seconds(self.gathered(tokens, stage)) for stage in set(self.like)}
            body = np.array([times[stage] for stage in self.like])
            for block, counts in self.counts.items():
                if block.kind != "head":
                    alone = self._block_time(block, tokens)
                    joined = {stage: self.exchanges(block, tokens, stage) for stage in times}
                    times = {
                        stage: alone + seconds(e) - self.hidden(e, tokens, alone)
                        for stage, e in joined.items()
                    }
                    body += counts * [times[stage] for stage in self.like]
            body[-1] += self.layout.engine.step_overhead
            self._body[tokens] = body
        return self._body[tokens]

    def _likeness(self, stage: int) -> object:
        """What a stage's collectives depend on; only the first stage does not begin with a gather."""
        n, tensor, equivalence_key = (
            self.layout.plan.stage_size,
            self.layout.plan.tensor,
            self.layout.topology.equivalence_key,
        )
        ranks = (
            range(start, start + tensor) for start in range(stage * n, (stage + 1) * n, tensor)
        )
        return (
            stage == 0,
            equivalence_key(range(stage * n, (stage + 1) * n)),
            *map(equivalence_key, ranks),
        )

    def _head_time(self, logits: int) -> float:
        if logits not in self._heads:
            (head,), _ = self._of_block(self.layout.model.blocks[-1])
            self._heads[logits] = (
                max(self._multiplied(head, self._ranked(logits))[1]) if logits else 0.0
            )
        return self._heads[logits]

    def _block_time(self, block: Block, tokens: int) -> float:
        """What `_block_terms` tells by cause."""
        engine = self.layout.engine
        if block.kind == "embedding":
            return self._embedding_time(block, tokens)
        time, (dense, routed) = engine.layer_overhead / 2, self._of_block(block)
        for multiply in dense:
            time += max(self._multiplied(multiply, self._ranked(tokens))[1])
        if block.experts:
            reached, each = self._routed(block.experts, tokens)
            for multiply in routed:
                time += reached * max(self._multiplied(multiply, each)[1])
            time += engine.moe_layer_overhead or 0.0
        return time

    def _embedding_time(self, block: Block, tokens: int) -> float:
        nbytes = (
            self._ranked(tokens)
            * self.layout.model.hidden_size
            * Precision(self.layout.plan.precision(block)).bytes
        )
        return nbytes / self.layout.weights_memory.bandwidth

    def _body_terms(self, tokens: int) -> Array:
        """All blocks but the head, without attention's core; the collectives; the overheads."""
        body = np.zeros((self.stages, 2, len(TERMS)))
        for block, counts in self.counts.items():
            if block.kind == "head":
                continue
            table = self._block_terms(block, tokens)
            body += counts[:, None, None] * table
            alone, fitted = table.sum(axis=1).tolist()
            for stage in np.flatnonzero(counts).tolist():
                joined = self._collective_terms(
                    self.exchanges(block, tokens, stage), tokens, alone, alone - fitted
                )
                body[stage, :, COLLECTIVES] += counts[stage] * joined
        for stage in range(self.stages):
            body[stage, :, COLLECTIVES] += self._collective_terms(
                self.gathered(tokens, stage), tokens, 0.0, 0.0
            )
        body[-1, :, OVERHEAD] += self.layout.engine.step_overhead
        return body

    def _block_terms(self, block: Block, tokens: int) -> Array:
        """A block's matrix multiplies and its half of the layer's overhead; an embedding reads a row for each token."""
        engine = self.layout.engine
        table = np.zeros((2, len(TERMS)))
        if block.kind == "embedding":
            table[TIME, ACTIVATIONS] = self._embedding_time(block, tokens)
            return table
        dense, routed = self._of_block(block)
        for multiply in dense:
            table += self._multiply(multiply, self._ranked(tokens))
        table[:, OVERHEAD] += engine.layer_overhead / 2
        if block.experts:
            reached, each = self._routed(block.experts, tokens)
            for multiply in routed:
                table += reached * self._multiply(multiply, each)
            table[:, OVERHEAD] += engine.moe_layer_overhead or 0.0
        return table

    def _routed(self, experts: Experts, tokens: int) -> tuple[float, float]:
        """Of the slowest shard: how many experts `tokens` tokens reach, and how many of them each of these serves.

        One shard: expected, E - sum of (1 - q_i)^T with q_i the chance that a token takes expert i.  Several: the mean over
        64 drawings of the shard that reaches most, for an expectation of a maximum has no closed form.
        """
        skew, shards = self.layout.engine.moe_skew or 0.0, self.layout.plan.expert or 1
        if self.sampled:
            return slowest_shard(experts, skew, tokens, shards, self.sampled, 1)
        key = experts, tokens
        if key not in self._reached:
            self._reached[key] = expected_shard(experts, skew, tokens, shards)
        return self._reached[key]

    def _head_terms(self, logits: int) -> Array:
        """The output head for the positions that a token is sampled from.  Left out: gathering the logits."""
        block = self.layout.model.blocks[-1]
        if not logits:
            return np.zeros((2, len(TERMS)))
        return self._multiply(self._of_block(block)[0][0], self._ranked(logits))

    def _of_block(self, block: Block) -> tuple[list[Multiply], list[Multiply]]:
        """A block's weight matrices on a chip, and those of an expert."""
        if block not in self._multiplies:
            layout, experts = self.layout, block.experts.matrices if block.experts else ()
            dense = [
                self._lain(block, matrix.share(layout.plan.tensor)) for matrix in block.matrices
            ]
            efficiency = layout.engine.moe_memory_efficiency
            routed = [
                self._lain(block, matrix.share(layout.plan.expert_tensor), efficiency)
                for matrix in experts
            ]
            self._multiplies[block] = dense, routed
        return self._multiplies[block]

    def _lain(
        self, block: Block, shape: tuple[int, int], efficiency: float | None = None
    ) -> Multiply:
        """One weight matrix; `efficiency` is that of reading, where it is not the engine's for the precision."""
        layout, plan = self.layout, self.layout.plan
        precision = plan.precision(block)
        weights = shape[0] * shape[1] * Precision(precision).bytes
        # Behind weights that stream from another memory, activations are read in their shadow.
        activations = 0.0 if layout.apart else sum(shape) * plan.width("activations")
        computing, reading = layout.engine.efficiencies(precision)
        efficiencies = computing, efficiency or reading
        return Multiply(
            2.0 * shape[0] * shape[1],
            weights,
            activations,
            (precision, plan.given("activations")),
            (shape,),
            efficiencies,
        )

    def _multiplied(
        self, multiply: Multiply, tokens: float
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Seconds of computing and of reading, without and with the engine."""
        flops, weights, activations, precisions, shapes, (computing, reading) = multiply
        op = Op(tokens, flops * tokens, weights, 0.0, activations * tokens, precisions, shapes)
        compute, memory = self.layout.chip.compute.times(op, self.layout.weights_memory)
        return (compute, memory), (compute / computing, memory / reading)

    def _multiply(self, multiply: Multiply, tokens: float) -> Array:
        """The longer of the two, booked to the side that binds."""
        (compute, memory), slowed = self._multiplied(multiply, tokens)
        share = multiply.weights / (multiply.weights + tokens * multiply.activations)
        table = np.zeros((2, len(TERMS)))
        ideal = max(compute, memory)
        if slowed[0] >= slowed[1]:
            table[:, COMPUTE] = slowed[0], slowed[0] - ideal
        else:
            table[:, WEIGHTS] = share * slowed[1], share * (slowed[1] - ideal)
            table[:, ACTIVATIONS] = (1 - share) * slowed[1], (1 - share) * (slowed[1] - ideal)
        return table

    def _collective(
        self, operation: Operation, stage: int, nbytes: float, copies: Copies = ()
    ) -> tuple[Exchange, ...]:
        """One collective of so many bytes, in each rank of a stage; all to all in the whole stage."""
        key = (operation, stage, nbytes, copies)
        if key not in self._exchanges:
            plan, engine, topology = self.layout.plan, self.layout.engine, self.layout.topology
            first, n = (
                stage * plan.stage_size,
                plan.stage_size if operation == "all_to_all" else plan.tensor,
            )
            groups = tuple(
                range(start, start + n) for start in range(first, first + plan.stage_size, n)
            )
            latency, efficiency = (
                engine.collective_latency + n * engine.collective_latency_per_chip,
                engine.collective_efficiency,
            )
            ways: tuple[Algorithm | Copies, ...] = (copies,) * len(groups)
            if n == 1:
                return ()
            if operation == "all_reduce":
                fastest = [
                    topology.fastest(group, nbytes, latency, efficiency, engine.collectives)
                    for group in groups
                ]
                times, ways = [time for time, _ in fastest], tuple(way for _, way in fastest)
            elif operation == "all_to_all":
                times = [
                    topology.all_to_all(group, nbytes, latency, efficiency, copies)
                    for group in groups
                ]
            else:
                times = [
                    topology.all_gather(group, nbytes, latency, efficiency) for group in groups
                ]
            self._exchanges[key] = (
                Exchange(operation, groups, nbytes, ways, latency, efficiency, max(times)),
            )
        return self._exchanges[key]

    def _collective_terms(
        self, exchanges: tuple[Exchange, ...], tokens: int, alone: float, ideal_alone: float
    ) -> Array:
        """Return the seconds of a block's exchanges that are not hidden, and those of them that engine `ideal` would not need.

        The latter may be negative: slower computing hides more.
        """
        ideal = [self._ideal(exchange) for exchange in exchanges]
        routed = [
            time
            for time, exchange in zip(ideal, exchanges, strict=True)
            if exchange.operation == "all_to_all"
        ]
        time = seconds(exchanges) - self.hidden(exchanges, tokens, alone)
        return np.array(
            [time, time - (sum(ideal) - self._hidden(1.0, routed, tokens, ideal_alone))]
        )

    def _ideal(self, exchange: Exchange) -> float:
        """Return the seconds that an exchange takes with engine `ideal`."""
        topology, groups, nbytes = self.layout.topology, exchange.groups, exchange.nbytes
        match exchange.operation:
            case "all_reduce":
                return max(
                    topology.all_reduce(group, nbytes, allowed=self.layout.engine.collectives)
                    for group in groups
                )
            case "all_to_all":
                copies = tuple(float(each) for each in exchange.ways[0])
                return max(topology.all_to_all(group, nbytes, copies=copies) for group in groups)
            case "all_gather":
                return max(topology.all_gather(group, nbytes) for group in groups)

    def _attend(self, kind: int, work: Work) -> list[AttentionTime]:
        """One layer's attention core on the fullest rank: the decodes, and the prompt chunks where there are any.

        It computes at 16 bits whatever K and V are stored in.  Left out: FP8 attention.
        """
        sides = []
        windowed = self.shapes[kind].window is not None
        if work.decodes:
            tokens = self._ranked(work.decodes)
            context = (work.windowed_context if windowed else work.context) * tokens / work.decodes
            sides.append(self._core(kind, tokens, True).at(context, context))
        if work.prompt_tokens:
            tokens = self._ranked(work.prompt_tokens)
            attended, cached = (
                (work.windowed_attended, work.windowed_cached)
                if windowed
                else (work.attended, work.cached)
            )
            share = tokens / work.prompt_tokens
            sides.append(self._core(kind, tokens, False).at(attended * share, cached * share))
        return sides

    def _core(self, kind: int, tokens: int, decode: bool) -> Core:
        """The planes of the attention core, from three questions to the chip: nothing, only FLOPs, only bytes."""
        key = (kind, tokens, decode)
        if key not in self._cores:
            engine, shape = self.layout.engine, self.shapes[kind]
            computes, memories = self._sides(shape, tokens, decode)
            read = (
                self._sides(shape, tokens, decode, times)
                if (times := self.reads(shape, decode)) > 1
                else (computes, memories)
            )
            efficiencies = engine.attention_compute_efficiency, engine.attention_memory_efficiency
            self._cores[key] = Core(
                computes,
                memories,
                slowed(read[0], efficiencies[0]),
                slowed(read[1], efficiencies[1]),
            )
        return self._cores[key]

    def reads(self, shape: Attention, decode: bool) -> float:
        """How often the engine reads what is cached; a latent has a head of its own for each query."""
        if not decode or self.layout.engine.kv_reads == "kv-heads":
            return 1.0
        tensor = self.layout.plan.tensor
        return ceil(shape.heads / tensor) / ceil(shape.kv_heads / tensor)

    def _sides(
        self, shape: Attention, tokens: int, decode: bool, times: float = 1.0
    ) -> tuple[Plane, Plane]:
        """Computing, and reading what is cached so many times."""
        (compute, memory), (compute_f, memory_f), (compute_b, memory_b) = (
            self._attention_times(shape, tokens, decode, attended, times * cached)
            for attended, cached in ((0.0, 0.0), (POSITIONS, 0.0), (0.0, POSITIONS))
        )
        return (
            (compute, (compute_f - compute) / POSITIONS, (compute_b - compute) / POSITIONS),
            (memory, (memory_f - memory) / POSITIONS, (memory_b - memory) / POSITIONS),
        )

    def position(self, shape: Attention, decode: bool) -> tuple[float, float]:
        """Of one layer on the fullest chip: FLOPs of a position that is attended to, bytes of one that is read."""
        layout, plan = self.layout, self.layout.plan
        if (shape, decode) not in self._positions:
            self._positions[shape, decode] = (
                shape.flops(plan.tensor, decode),
                layout.kv_width(shape) * plan.width("kv"),
            )
        return self._positions[shape, decode]

    def _attention_times(
        self, shape: Attention, tokens: int, decode: bool, attended: float, cached: float
    ) -> tuple[float, float]:
        flops, nbytes = self.position(shape, decode)
        op = Op(tokens, attended * flops, 0.0, cached * nbytes, 0.0, ("fp16", "fp16"))
        return self.layout.chip.compute.times(op, self.layout.kv_memory)
