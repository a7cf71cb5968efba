"""Work -> Cost: how long one step takes on each stage, term by term.  The one place where model, chip and engine meet.

`Costs.step` is the contract with the serving loop: the time of the next step, what each further identical step adds (the KV
cache grows), and for how many steps that holds.  `Costs.terms` tells the same time by cause, from the same pieces.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.chip import WIDTH, Op
from sim.model import Attention, Block, Experts
from sim.plan import Layout
from sim.topology import Operation, Way

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


class Exchange(NamedTuple):
    """A collective that the ranks of a stage run side by side: `nbytes` in each of them, as the engine runs it."""

    operation: Operation
    groups: tuple[range, ...]
    nbytes: float
    way: Way
    latency: float  # s, software's, before each phase
    efficiency: float  # of the bandwidth
    time: float  # s, of the slowest rank, in closed form
    fitted: float  # s of it that engine `ideal` would not need


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

    compute: tuple[float, float, float]
    memory: tuple[float, float, float]
    compute_efficiency: float
    memory_efficiency: float

    def at(self, attended: float, cached: float) -> AttentionTime:
        compute = self.compute[0] + self.compute[1] * attended + self.compute[2] * cached
        memory = self.memory[0] + self.memory[1] * attended + self.memory[2] * cached
        return AttentionTime(compute, memory, compute / self.compute_efficiency, memory / self.memory_efficiency)


class Costs:
    """What steps cost on one layout.  Made once for a system; remembers what depends on the number of tokens alone."""

    def __init__(self, layout: Layout, sampled: np.random.Generator | None = None) -> None:
        self.layout = layout
        self.sampled = sampled  # where tokens are routed to experts by drawing, step by step
        self.stages = len(layout.stages)
        blocks = list(dict.fromkeys(layout.model.blocks))
        members = [layout.model.blocks[stage.first : stage.last + 1] for stage in layout.stages]
        self.counts = {block: np.array([float(m.count(block)) for m in members]) for block in blocks}
        self.shapes = list(dict.fromkeys(block.attention for block in blocks if block.attention))
        self.layers = [np.sum([n for block, n in self.counts.items() if block.attention == shape], axis=0) for shape in self.shapes]
        self._body: dict[int, Array] = {}
        self._hops: dict[int, Array] = {}
        self._heads: dict[int, float] = {}
        self._cores: dict[tuple[int, int, bool], Core] = {}
        self._reached: dict[tuple[Experts, int], tuple[float, float]] = {}
        self._exchanges: dict[tuple[Operation, int, float], tuple[Exchange, ...]] = {}
        self.last = (self.stages - 1) * layout.plan.group  # the chip that samples
        self.back = layout.topology.send(self.last, 0, TOKEN_BYTES) if self.last else 0.0

    def step(self, work: Work) -> Step:
        """The contract: a decode-only step grows linearly until the other side of an attention's roofline binds, or a window
        fills (which the caller knows)."""
        engine = self.layout.engine
        time = self._body_time(work.tokens).copy()
        time[-1] += self._head_time(work.logits) + engine.sequence_overhead * (work.decodes + work.chunks)
        if work.prompt_tokens:
            for kind, layers in enumerate(self.layers):
                time += layers * sum(side.time for side in self._attend(kind, work))
            return Step(time, 0.0, 1)
        growth, holds = np.zeros(self.stages), FOREVER
        for kind, layers in enumerate(self.layers):
            now, more, steps = self._decode_line(kind, work)
            time += layers * now
            growth += layers * more
            holds = min(holds, steps)
        return Step(time, growth, 1 if self.sampled else holds)

    def _decode_line(self, kind: int, work: Work) -> tuple[float, float, int]:
        """One layer's decode attention: seconds now, growth a step, and the steps until the other side of the roofline binds."""
        core = self._core(kind, self._ranked(work.decodes), True)
        (now,) = self._attend(kind, work)
        compute, memory = now.slowed_compute, now.slowed_memory
        more = (work.growing if self.shapes[kind].window else work.decodes) * self._ranked(work.decodes) / work.decodes
        more_compute = more * (core.compute[1] + core.compute[2]) / core.compute_efficiency
        more_memory = more * (core.memory[1] + core.memory[2]) / core.memory_efficiency
        lead, gain = memory - compute, more_memory - more_compute
        growth = more_memory if (lead, gain) >= (0.0, 0.0) else more_compute
        holds = FOREVER if lead * gain >= 0 else 1 + int(abs(lead / gain))
        return now.time, growth, holds

    def _ranked(self, tokens: int) -> int:
        """Tokens of the fullest rank of attention data parallelism."""
        return -(-tokens // self.layout.plan.attention_data)

    def hops(self, tokens: int) -> Array:
        """Seconds from each stage's predecessor to it; 0 for the first."""
        if tokens not in self._hops:
            n, shift, nbytes = self.layout.plan.group, self.layout.topology.shift, self.slice_bytes(tokens)
            self._hops[tokens] = np.array([0.0, *(shift(range((s - 1) * n, s * n), nbytes) for s in range(1, self.stages))])
        return self._hops[tokens]

    def slice_bytes(self, tokens: int) -> float:
        """What each chip of a stage sends to its place in the next one."""
        return tokens * self.layout.model.hidden_size * self.layout.plan.width("activations") / self.layout.plan.group

    def terms(self, work: Work) -> Array:
        """The same step by cause: seconds by [stage][time, fitted][term].  Hops stand with the stage they lead to."""
        table = self._body_terms(work.tokens)
        table[-1] += self._head_terms(work.logits)
        table[-1, :, OVERHEAD] += self.layout.engine.sequence_overhead * (work.decodes + work.chunks)
        for kind, layers in enumerate(self.layers):
            table += layers[:, None, None] * sum(side.booked() for side in self._attend(kind, work))
        table[:, TIME, HOPS] += self.hops(work.tokens)
        return table

    def computing(self, block: Block, work: Work) -> float:
        """Seconds that a block takes each chip of its stage, what these say to each other left out."""
        if block.kind == "head":
            engine = self.layout.engine
            return self._head_time(work.logits) + engine.step_overhead + engine.sequence_overhead * (work.decodes + work.chunks)
        time = float(self._block_terms(block, work.tokens)[TIME].sum())
        if block.attention:
            time += sum(side.time for side in self._attend(self.shapes.index(block.attention), work))
        return time

    def exchanges(self, block: Block, tokens: int, stage: int) -> tuple[Exchange, ...]:
        """How a block's results come together: summed over the rank's chips, and with attention data parallelism sent to the
        experts' chips and back."""
        plan = self.layout.plan
        if block.kind == "head":
            return ()
        joined = self._collective("all_reduce", stage, self._ranked(tokens))
        if block.attention and self.layout.kv_parts(block.attention) > 1:
            joined *= 2  # the parts' results are summed before the output projection
        if block.experts and plan.attention_data > 1:
            copies = min(block.experts.per_token, plan.expert or 1) / plan.tensor  # each chip of a rank sends its share
            joined = 2 * self._collective("all_to_all", stage, self._ranked(tokens) * copies) + joined
        return joined

    def gathered(self, tokens: int, stage: int) -> tuple[Exchange, ...]:
        """With what a stage begins: each chip was sent a slice of the hidden states, and needs them all."""
        return self._collective("all_gather", stage, self._ranked(tokens)) if stage else ()

    def block_time(self, block: Block, work: Work) -> float:
        """Seconds that a block adds to its stage, what stands beside it included: what the planner balances stages by.

        Left out: the gather with which every stage but the first begins.
        """
        return self.computing(block, work) + sum(exchange.time for exchange in self.exchanges(block, work.tokens, 0))

    # The pieces: what depends on tokens alone, what on sampled positions, what on contexts.

    def _body_time(self, tokens: int) -> Array:
        if tokens not in self._body or self.sampled:
            self._body[tokens] = self._body_terms(tokens)[:, TIME].sum(axis=1)
        return self._body[tokens]

    def _head_time(self, logits: int) -> float:
        if logits not in self._heads:
            self._heads[logits] = float(self._head_terms(logits)[TIME].sum())
        return self._heads[logits]

    def _body_terms(self, tokens: int) -> Array:
        """All blocks but the head, without attention's core; the collectives; the overheads."""
        body = np.zeros((self.stages, 2, len(TERMS)))
        for block, counts in self.counts.items():
            if block.kind == "head":
                continue
            body += counts[:, None, None] * self._block_terms(block, tokens)
            for stage in np.flatnonzero(counts).tolist():
                for exchange in self.exchanges(block, tokens, stage):
                    body[stage, :, COLLECTIVES] += counts[stage] * exchange.time, counts[stage] * exchange.fitted
        for stage in range(self.stages):
            for exchange in self.gathered(tokens, stage):
                body[stage, :, COLLECTIVES] += exchange.time, exchange.fitted
        body[-1, :, OVERHEAD] += self.layout.engine.step_overhead
        return body

    def _block_terms(self, block: Block, tokens: int) -> Array:
        """A block's matrix multiplies and its half of the layer's overhead; an embedding reads a row for each token."""
        layout, engine = self.layout, self.layout.engine
        table = np.zeros((2, len(TERMS)))
        if block.kind == "embedding":
            nbytes = self._ranked(tokens) * layout.model.hidden_size * WIDTH[layout.plan.precision(block)]
            table[TIME, ACTIVATIONS] = nbytes / layout.weights_memory.bandwidth
            return table
        for matrix in block.matrices:
            table += self._multiply(block, matrix.share(layout.plan.tensor), self._ranked(tokens))
        table[:, OVERHEAD] += engine.layer_overhead / 2
        if block.experts:
            reached, each = self._routed(block.experts, tokens)
            for matrix in block.experts.matrices:
                shape = matrix.share(layout.plan.expert_tensor)
                table += reached * self._multiply(block, shape, each, engine.moe_memory_efficiency)
            table[:, OVERHEAD] += engine.moe_layer_overhead or 0.0
        return table

    def _routed(self, experts: Experts, tokens: int) -> tuple[float, float]:
        """Of the slowest shard: how many experts `tokens` tokens reach, and how many of them each of these serves.

        One shard: expected, E - sum of (1 - q_i)^T with q_i the chance that a token takes expert i.  Several: the mean over
        64 drawings of the shard that reaches most, for an expectation of a maximum has no closed form.
        """
        key, shards = (experts, tokens), self.layout.plan.expert or 1
        if key in self._reached and not self.sampled:
            return self._reached[key]
        chance = experts.chances(self.layout.engine.moe_skew or 0.0)
        if shards == 1 and not self.sampled:
            reached = float(np.sum(1 - (1 - chance) ** tokens))
            self._reached[key] = reached, tokens * experts.per_token / reached
            return self._reached[key]
        stream, times = (self.sampled, 1) if self.sampled else (np.random.default_rng(0), 64)
        drawn = experts.draw(tokens, chance, stream, times)
        dealt = np.zeros((times, -(-experts.count // shards) * shards))
        dealt[:, : experts.count] = drawn
        by_shard = dealt.reshape(times, -1, shards)  # expert i lies on shard i modulo shards: popular ones are spread
        reached = float((by_shard > 0).sum(axis=1).max(axis=1).mean())
        self._reached[key] = reached, float(by_shard.sum(axis=1).max(axis=1).mean()) / reached
        return self._reached[key]

    def _head_terms(self, logits: int) -> Array:
        """The output head for the positions that a token is sampled from.  Left out: gathering the logits."""
        block = self.layout.model.blocks[-1]
        if not logits:
            return np.zeros((2, len(TERMS)))
        return self._multiply(block, block.matrices[0].share(self.layout.plan.tensor), self._ranked(logits))

    def _multiply(self, block: Block, shape: tuple[int, int], tokens: float, efficiency: float | None = None) -> Array:
        """One weight matrix: the longer of computing and reading (at `efficiency`, where not the engine's for the precision),
        booked to the side that binds."""
        layout = self.layout
        precision, activation = layout.plan.precision(block), layout.plan.given("activations")
        weights = shape[0] * shape[1] * WIDTH[precision]
        op = Op(
            tokens=tokens,
            flops=2.0 * shape[0] * shape[1] * tokens,
            weights=weights,
            kv=0.0,
            # Behind weights that stream from another memory, activations are read in their shadow.
            activations=0.0 if layout.apart else tokens * sum(shape) * layout.plan.width("activations"),
            precisions=(precision, activation),
            matrices=(shape,),
        )
        compute, memory = layout.chip.compute.times(op, layout.weights_memory)
        compute_efficiency, memory_efficiency = layout.engine.efficiencies(precision)
        slowed = compute / compute_efficiency, memory / (efficiency or memory_efficiency)
        table = np.zeros((2, len(TERMS)))
        ideal = max(compute, memory)
        if slowed[0] >= slowed[1]:
            table[:, COMPUTE] = slowed[0], slowed[0] - ideal
        else:
            share = op.weights / (op.weights + op.activations)
            table[:, WEIGHTS] = share * slowed[1], share * (slowed[1] - ideal)
            table[:, ACTIVATIONS] = (1 - share) * slowed[1], (1 - share) * (slowed[1] - ideal)
        return table

    def _collective(self, operation: Operation, stage: int, tokens: float) -> tuple[Exchange, ...]:
        """One collective over the hidden states of so many tokens, in each rank of a stage; all to all in the whole stage."""
        key = (operation, stage, tokens)
        if key not in self._exchanges:
            plan, engine, topology = self.layout.plan, self.layout.engine, self.layout.topology
            first, n = stage * plan.group, plan.group if operation == "all_to_all" else plan.tensor
            groups = tuple(range(start, start + n) for start in range(first, first + plan.group, n))
            nbytes = tokens * self.layout.model.hidden_size * plan.width("activations")
            latency, efficiency = engine.collective_latency + n * engine.collective_latency_per_chip, engine.collective_efficiency
            way: Way = ()
            if n == 1:
                return ()
            if operation == "all_reduce":
                # One way for all: which one is fastest, the first rank decides.
                _, way = topology.fastest(groups[0], nbytes, latency, efficiency, engine.collectives)
                times = [topology.all_reduces(group, nbytes, latency, efficiency)[way] for group in groups]
                plain = [topology.all_reduce(group, nbytes, allowed=engine.collectives) for group in groups]
            else:
                run = getattr(topology, operation)
                times = [run(group, nbytes, latency, efficiency) for group in groups]
                plain = [run(group, nbytes) for group in groups]
            time = max(times)
            exchange = Exchange(operation, groups, nbytes, way, latency, efficiency, time, time - max(plain))
            self._exchanges[key] = (exchange,)
        return self._exchanges[key]

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
            attended, cached = (work.windowed_attended, work.windowed_cached) if windowed else (work.attended, work.cached)
            share = tokens / work.prompt_tokens
            sides.append(self._core(kind, tokens, False).at(attended * share, cached * share))
        return sides

    def _core(self, kind: int, tokens: int, decode: bool) -> Core:
        """The planes of the attention core, from three questions to the chip: nothing, only FLOPs, only bytes."""
        key = (kind, tokens, decode)
        if key not in self._cores:
            engine = self.layout.engine
            (compute, memory), (compute_f, memory_f), (compute_b, memory_b) = (
                self._attention_times(self.shapes[kind], tokens, decode, attended, cached)
                for attended, cached in ((0.0, 0.0), (POSITIONS, 0.0), (0.0, POSITIONS))
            )
            self._cores[key] = Core(
                (compute, (compute_f - compute) / POSITIONS, (compute_b - compute) / POSITIONS),
                (memory, (memory_f - memory) / POSITIONS, (memory_b - memory) / POSITIONS),
                engine.attention_compute_efficiency,
                engine.attention_memory_efficiency,
            )
        return self._cores[key]

    def _attention_times(self, shape: Attention, tokens: int, decode: bool, attended: float, cached: float) -> tuple[float, float]:
        layout, plan = self.layout, self.layout.plan
        op = Op(
            tokens=tokens,
            flops=attended * shape.flops(plan.tensor, decode),
            weights=0.0,
            kv=cached * layout.kv_width(shape) * plan.width("kv"),
            activations=0.0,
            precisions=("fp16", "fp16"),
        )
        return layout.chip.compute.times(op, layout.kv_memory)
