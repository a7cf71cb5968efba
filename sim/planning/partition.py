"""The cut of a model's blocks into the stages of a pipeline.

Stages are contiguous, none is too slow or too full, and they are as even as possible.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

from sim.cost.layout import Layout
from sim.cost.program import computing_seconds
from sim.cost.step import Costs
from sim.cost.work import Work, decodes_at
from sim.model.blocks import Block
from sim.units import Seconds

BALANCE_CONTEXT = 1024.0  # positions for which stages are balanced; assumed: a conversation


def block_times(costs: Costs, work: Work) -> dict[Block, Seconds]:
    """Return the seconds that each block adds to the first stage, if the block is there.

    Stages are balanced by them.
    Left out: the gather with which every stage but the first begins.
    """
    times, ranked = {}, costs.layout.ranked(work)
    for block, time in computing_seconds(costs, work).items():
        exchanges = costs.collectives.of_block(block, ranked, 0)
        times[block] = time + costs.collectives.exposed(exchanges, ranked, time, 0.0)[0]
    return times


class Cutter:
    """A partitioner of the blocks of a layout into contiguous stages.

    Two limits hold for a stage: its time, and the tokens of KV cache that must fit in it.
    For fixed limits a greedy fill needs the fewest stages.  Bisection finds the best limits.
    Within them the cut with the least sum of squared times is the evenest.
    """

    def __init__(self, layout: Layout, request_tokens: float) -> None:
        blocks, window = layout.model.blocks, layout.model.window
        kinds = layout.model.kinds  # equal blocks fill equal stages
        firsts = [kinds.index(kind) for kind in range(len(layout.model.distinct))]
        of_kind = [layout.stage(first, first) for first in firsts]
        alone = [of_kind[kind] for kind in kinds]
        self.layout = layout
        self.weights = [0.0, *accumulate(stage.weights for stage in alone)]
        # Bytes that a stage with both ends saves, if they use one table.
        self.shared = (
            self.weights[-1] - layout.stage(0, len(blocks) - 1).weights
            if layout.model.tie_word_embeddings
            else 0.0
        )
        self.kv = [
            0.0,
            *accumulate(stage.kv(request_tokens, window) / request_tokens for stage in alone),
        ]
        self.room = layout.usable - layout.engine.reserve - layout.activations
        self.apart = layout.apart  # kept, because it is computed at each call
        # Bytes for weights in a memory of their own.
        self.weights_room = layout.weights_memory.capacity if self.apart else math.inf
        self.request_tokens = request_tokens

    @cached_property
    def times(self) -> list[float]:
        """Cumulative times of the blocks [s].

        Computed on first use, because whether a layout fits does not depend on them.
        """
        model = self.layout.model
        costs = Costs(replace(self.layout, bounds=(0,)))  # for the times of single blocks only
        work = decodes_at(1, BALANCE_CONTEXT, model.window, self.layout.width)
        times = block_times(costs, work)
        return [0.0, *accumulate(times[block] for block in model.blocks)]

    def bounds(self, pipeline: int) -> tuple[int, ...]:
        """Return the first block of each of `pipeline` stages."""
        if pipeline == 1:
            return (0,)
        n = len(self.times) - 1
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n + 1)]
        times = sorted({self.times[j] - self.times[i] for i, j in pairs})
        need = self.request_tokens

        def fastest(tokens: float) -> float:
            return _least(times, lambda limit: self.stages(limit, tokens) <= pipeline)

        def roomiest(time: float) -> float:
            tokens = sorted({-self._tokens(i, j) for i, j in pairs if self.kv[j] > self.kv[i]})
            return -_least(tokens, lambda limit: self.stages(time, -limit) <= pipeline)

        if self.stages(math.inf, need) > pipeline:  # it does not fit: show the evenest bytes
            weights = sorted({self._weights(i, j) for i, j in pairs})
            evenest = _least(
                weights,
                lambda limit: self._fewest(lambda i, j: self._weights(i, j) <= limit) <= pipeline,
            )
            self.room = self.weights_room = evenest
            return self._even(pipeline, math.inf, 0.0)
        if self.layout.plan.balance == "time":
            time = fastest(need)
            tokens = roomiest(time)
        else:
            tokens = roomiest(math.inf)
            time = fastest(tokens)
        return self._even(pipeline, time, tokens)

    def stages(self, time: float, tokens: float) -> int:
        """Return the fewest stages within both limits.

        More than there are blocks if a single block exceeds a limit.
        """
        return self._fewest(lambda i, j: self._within(i, j, time, tokens))

    def _weights(self, i: int, j: int) -> float:
        """Return the bytes of the weights of blocks i..j-1 on one stage."""
        return (
            self.weights[j]
            - self.weights[i]
            - (self.shared if j - i == len(self.weights) - 1 else 0.0)
        )

    def _tokens(self, i: int, j: int) -> float:
        """Return the tokens of KV cache for which a stage of blocks i..j-1 has room."""
        return (self.room - (0.0 if self.apart else self._weights(i, j))) / (
            self.kv[j] - self.kv[i]
        )

    def _within(self, i: int, j: int, time: float, tokens: float) -> bool:
        weights, kv = self._weights(i, j), tokens * (self.kv[j] - self.kv[i])
        fits = (
            weights <= self.weights_room and kv <= self.room
            if self.apart
            else weights + kv <= self.room * (1 + 1e-12)
        )
        return fits and (time == math.inf or self.times[j] - self.times[i] <= time * (1 + 1e-12))

    def _fewest(self, within: Callable[[int, int], bool]) -> int:
        n, count, first = len(self.weights) - 1, 0, 0
        while first < n:
            end = first
            while end < n and within(first, end + 1):
                end += 1
            if end == first:
                return n + 1
            count, first = count + 1, end
        return count

    def _even(self, pipeline: int, time: float, tokens: float) -> tuple[int, ...]:
        """Return the cut with the least sum of squared stage times within the limits.

        Dynamic programming over (stages, blocks).
        """
        n = len(self.times) - 1
        lowest = []  # by end of a stage: the first block of the longest one within the limits
        for end in range(n + 1):
            first = end
            while first > 0 and self._within(first - 1, end, time, tokens):
                first -= 1
            lowest.append(first)
        best = [0.0] + [math.inf] * n
        cuts: list[list[int]] = []
        for stage in range(1, pipeline + 1):
            row, cut = [math.inf] * (n + 1), [0] * (n + 1)
            for end in range(stage, n - (pipeline - stage) + 1):
                for first in range(end - 1, max(stage - 1, lowest[end]) - 1, -1):
                    value = best[first] + (self.times[end] - self.times[first]) ** 2
                    if value < row[end]:
                        row[end], cut[end] = value, first
            best = row
            cuts.append(cut)
        bounds, end = [], n
        for cut in reversed(cuts):
            end = cut[end]
            bounds.append(end)
        return tuple(reversed(bounds))


def _least(candidates: Sequence[float], feasible: Callable[[float], bool]) -> float:
    """Return the least feasible candidate, or the largest one if none is feasible.

    Candidates ascend, and every candidate above a feasible one is feasible.
    """
    return candidates[min(bisect_left(candidates, True, key=feasible), len(candidates) - 1)]
