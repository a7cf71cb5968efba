"""Work -> Cost: how long one step takes on each stage, term by term.  The one place where model, chip and engine meet.

`Costs.step` is the contract with the serving loop: the time of the next step, what each further identical step adds (the KV
cache grows), and for how many steps that holds.  `Costs.terms` tells the same time by cause, from the same pieces.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.chip import WIDTH, Op
from sim.model import Block
from sim.plan import Layout

TERMS = ("weights", "kv", "activations", "compute", "collectives", "hops", "overhead")
WEIGHTS, KV, ACTIVATIONS, COMPUTE, COLLECTIVES, HOPS, OVERHEAD = range(len(TERMS))
TIME, FITTED = 0, 1  # rows of a table of terms: seconds, and those of them that engine `ideal` would not need
FOREVER = 1 << 62
POSITIONS = 2.0**20  # at which a chip's linear answers are probed
TOKEN_BYTES = 4.0  # a sampled token's number, on its way back to the first stage

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """What one step advances: `decodes` sequences by a token each, and chunks of prompts.

    `context` is the sum over decoding sequences of the positions that the new token attends to, itself included.  For chunks,
    `attended` sums that over their tokens (C new after S old: C*S + C*(C+1)/2) and `cached` the positions whose K and V are
    read (S + C).  `logits` counts the positions that a token is sampled from.
    """

    decodes: int = 0
    context: float = 0.0
    prompt_tokens: int = 0
    chunks: int = 0
    attended: float = 0.0
    cached: float = 0.0
    logits: int = 0

    @property
    def tokens(self) -> int:
        return self.decodes + self.prompt_tokens


class Step(NamedTuple):
    """The next step on each stage: `time` of it, `growth` that each further one adds, and how many steps that `holds`."""

    time: Array
    growth: Array | float
    holds: int


class Attention(NamedTuple):
    """One layer's attention core on the fullest chip, in seconds: the two sides of the roofline, without and with the engine."""

    compute: float
    memory: float
    slowed_compute: float
    slowed_memory: float

    @property
    def time(self) -> float:
        return max(self.slowed_compute, self.slowed_memory)


class Core(NamedTuple):
    """The attention core of some new tokens, as linear as chips promise: fixed seconds, seconds for each position attended,
    seconds for each position read from the cache.  Made once for each number of tokens."""

    compute: tuple[float, float, float]
    memory: tuple[float, float, float]
    compute_efficiency: float
    memory_efficiency: float

    def at(self, attended: float, cached: float) -> Attention:
        compute = self.compute[0] + self.compute[1] * attended + self.compute[2] * cached
        memory = self.memory[0] + self.memory[1] * attended + self.memory[2] * cached
        return Attention(compute, memory, compute / self.compute_efficiency, memory / self.memory_efficiency)


class Costs:
    """What steps cost on one layout.  Made once for a system; remembers what depends on the number of tokens alone."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.stages = len(layout.stages)
        self.layers = np.array([stage.layers for stage in layout.stages], dtype=float)
        self._body: dict[int, Array] = {}
        self._hops: dict[int, Array] = {}
        self._heads: dict[int, float] = {}
        self._cores: dict[int, Core] = {}
        last = (self.stages - 1) * layout.plan.tensor
        self.back = layout.topology.send(last, 0, TOKEN_BYTES) if last else 0.0

    def step(self, work: Work) -> Step:
        """The contract: a decode-only step grows linearly until the other side of attention's roofline binds."""
        engine = self.layout.engine
        time = self._body_time(work.tokens).copy()
        time[-1] += self._head_time(work.logits) + engine.sequence_overhead * (work.decodes + work.chunks)
        if work.prompt_tokens:
            attention = sum(side.time for side in self._attention(work))
            return Step(time + self.layers * attention, 0.0, 1)
        now, growth, holds = self._decode_line(work)
        return Step(time + self.layers * now, self.layers * growth, holds)

    def _decode_line(self, work: Work) -> tuple[float, float, int]:
        """One layer's decode attention: seconds now, growth a step, and the steps until the other side of the roofline binds."""
        core = self._core(work.decodes)
        now = core.at(work.context, work.context)
        compute, memory = now.slowed_compute, now.slowed_memory
        more_compute = work.decodes * (core.compute[1] + core.compute[2]) / core.compute_efficiency
        more_memory = work.decodes * (core.memory[1] + core.memory[2]) / core.memory_efficiency
        lead, gain = memory - compute, more_memory - more_compute
        growth = more_memory if (lead, gain) >= (0.0, 0.0) else more_compute
        holds = FOREVER if lead * gain >= 0 else 1 + int(abs(lead / gain))
        return now.time, growth, holds

    def hops(self, tokens: int) -> Array:
        """Seconds from each stage's predecessor to it; 0 for the first."""
        if tokens not in self._hops:
            layout = self.layout
            n, hidden = layout.plan.tensor, layout.model.hidden_size
            slice_bytes = tokens * hidden * layout.plan.width("activations") / n
            send = layout.topology.send
            slowest = [max(send((s - 1) * n + i, s * n + i, slice_bytes) for i in range(n)) for s in range(1, self.stages)]
            self._hops[tokens] = np.array([0.0, *slowest])
        return self._hops[tokens]

    def terms(self, work: Work) -> Array:
        """The same step by cause: seconds by [stage][time, fitted][term].  Hops stand with the stage they lead to."""
        table = self._body_terms(work.tokens)
        table[-1] += self._head_terms(work.logits)
        table[-1, :, OVERHEAD] += self.layout.engine.sequence_overhead * (work.decodes + work.chunks)
        table += self.layers[:, None, None] * sum(self._book_attention(side) for side in self._attention(work))
        table[:, TIME, HOPS] += self.hops(work.tokens)
        return table

    def block_time(self, block: Block, work: Work) -> float:
        """Seconds that a block adds to its stage, what stands beside it included: what the planner balances stages by.

        Left out: the gather with which every stage but the first begins.
        """
        if block.kind == "head":
            engine = self.layout.engine
            return self._head_time(work.logits) + engine.step_overhead + engine.sequence_overhead * (work.decodes + work.chunks)
        time = float(self._block_terms(block, work.tokens)[TIME].sum() + self._collective("all_reduce", work.tokens, 0)[TIME])
        if block.kind == "attention":
            time += sum(side.time for side in self._attention(work))
        return time

    # The pieces: what depends on tokens alone, what on sampled positions, what on contexts.

    def _body_time(self, tokens: int) -> Array:
        if tokens not in self._body:
            self._body[tokens] = self._body_terms(tokens)[:, TIME].sum(axis=1)
        return self._body[tokens]

    def _head_time(self, logits: int) -> float:
        if logits not in self._heads:
            self._heads[logits] = float(self._head_terms(logits)[TIME].sum())
        return self._heads[logits]

    def _body_terms(self, tokens: int) -> Array:
        """All blocks but the head, without attention's core; the collectives; the overheads."""
        layout = self.layout
        by_kind = {block.kind: block for block in layout.model.blocks[:-1]}
        tables = {kind: self._block_terms(block, tokens) for kind, block in by_kind.items()}
        body = np.zeros((self.stages, 2, len(TERMS)))
        for s, stage in enumerate(layout.stages):
            kinds = [block.kind for block in layout.model.blocks[stage.first : stage.last + 1]]
            for kind, table in tables.items():
                body[s] += kinds.count(kind) * table
            reduces = len(kinds) - kinds.count("head")  # after the embedding's look-up, after attention, after each MLP
            body[s, :, COLLECTIVES] += reduces * self._collective("all_reduce", tokens, s)
            if s > 0:
                body[s, :, COLLECTIVES] += self._collective("all_gather", tokens, s)
        body[-1, :, OVERHEAD] += layout.engine.step_overhead
        return body

    def _block_terms(self, block: Block, tokens: int) -> Array:
        """A block's matrix multiplies and its half of the layer's overhead; an embedding reads a row for each token."""
        layout = self.layout
        table = np.zeros((2, len(TERMS)))
        if block.kind == "embedding":
            nbytes = tokens * layout.model.hidden_size * WIDTH[layout.plan.precision(block)]
            table[TIME, ACTIVATIONS] = nbytes / layout.chip.main.bandwidth
            return table
        for matrix in block.matrices:
            table += self._multiply(block, matrix.share(layout.plan.tensor), tokens)
        table[:, OVERHEAD] += layout.engine.layer_overhead / 2
        return table

    def _head_terms(self, logits: int) -> Array:
        """The output head for the positions that a token is sampled from.  Left out: gathering the logits."""
        block = self.layout.model.blocks[-1]
        if not logits:
            return np.zeros((2, len(TERMS)))
        return self._multiply(block, block.matrices[0].share(self.layout.plan.tensor), logits)

    def _multiply(self, block: Block, shape: tuple[int, int], tokens: int) -> Array:
        """One weight matrix: the longer of computing and reading, booked to the side that binds."""
        layout = self.layout
        precision, activation = layout.plan.precision(block), layout.plan.given("activations")
        weights = shape[0] * shape[1] * WIDTH[precision]
        op = Op(
            tokens=tokens,
            flops=2.0 * shape[0] * shape[1] * tokens,
            weights=weights,
            kv=0.0,
            activations=tokens * sum(shape) * WIDTH[activation],
            precisions=(precision, activation),
            matrices=(shape,),
        )
        compute, memory = layout.chip.compute.times(op, layout.chip.main)
        compute_efficiency, memory_efficiency = layout.engine.efficiencies(precision)
        slowed = compute / compute_efficiency, memory / memory_efficiency
        table = np.zeros((2, len(TERMS)))
        ideal = max(compute, memory)
        if slowed[0] >= slowed[1]:
            table[:, COMPUTE] = slowed[0], slowed[0] - ideal
        else:
            share = op.weights / (op.weights + op.activations)
            table[:, WEIGHTS] = share * slowed[1], share * (slowed[1] - ideal)
            table[:, ACTIVATIONS] = (1 - share) * slowed[1], (1 - share) * (slowed[1] - ideal)
        return table

    def _collective(self, operation: Literal["all_reduce", "all_gather"], tokens: int, stage: int) -> Array:
        """Seconds and the fitted part: the sum of a block's results, or the gather of what came from the stage before."""
        layout, engine = self.layout, self.layout.engine
        n = layout.plan.tensor
        if n == 1:
            return np.zeros(2)
        group = range(stage * n, (stage + 1) * n)
        nbytes = tokens * layout.model.hidden_size * layout.plan.width("activations")
        run = getattr(layout.topology, operation)
        latency = engine.collective_latency + n * engine.collective_latency_per_chip
        time = run(group, nbytes, latency, engine.collective_efficiency)
        return np.array([time, time - run(group, nbytes)])

    def _attention(self, work: Work) -> list[Attention]:
        """One layer's attention core: the decodes, and the prompt chunks where there are any.

        It computes at 16 bits whatever K and V are stored in.  Left out: FP8 attention.
        """
        sides = []
        if work.decodes:
            sides.append(self._core(work.decodes).at(work.context, work.context))
        if work.prompt_tokens:
            sides.append(self._core(work.prompt_tokens).at(work.attended, work.cached))
        return sides

    def _core(self, tokens: int) -> Core:
        """The planes of the attention core, from three questions to the chip: nothing, only FLOPs, only bytes."""
        if tokens not in self._cores:
            engine = self.layout.engine
            (compute, memory), (compute_f, memory_f), (compute_b, memory_b) = (
                self._attention_times(tokens, attended, cached)
                for attended, cached in ((0.0, 0.0), (POSITIONS, 0.0), (0.0, POSITIONS))
            )
            self._cores[tokens] = Core(
                (compute, (compute_f - compute) / POSITIONS, (compute_b - compute) / POSITIONS),
                (memory, (memory_f - memory) / POSITIONS, (memory_b - memory) / POSITIONS),
                engine.attention_compute_efficiency,
                engine.attention_memory_efficiency,
            )
        return self._cores[tokens]

    def _attention_times(self, tokens: int, attended: float, cached: float) -> tuple[float, float]:
        layout, plan, model = self.layout, self.layout.plan, self.layout.model
        op = Op(
            tokens=tokens,
            flops=model.attention_flops(attended, plan.tensor),
            weights=0.0,
            kv=cached * model.kv_width(plan.tensor) * plan.width("kv"),
            activations=0.0,
            precisions=("fp16", "fp16"),
        )
        return layout.chip.compute.times(op, layout.chip.main)

    def _book_attention(self, side: Attention) -> Array:
        table = np.zeros((2, len(TERMS)))
        time, ideal = side.time, max(side.compute, side.memory)
        table[:, COMPUTE if side.slowed_compute >= side.slowed_memory else KV] = time, time - ideal
        return table
