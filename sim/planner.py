"""Lays a model on chips: cuts blocks into stages, finds the fewest chips that would do, times a request that is alone."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from sim.chip import Chip
from sim.cost import FITTED, HOPS, TERMS, TIME, Costs, Work
from sim.engine import Engine
from sim.model import Model
from sim.plan import Fit, Layout, Plan, PlanError, fit
from sim.serve import Limits, serve
from sim.topology import Topology
from sim.units import Bytes, Seconds, show
from sim.workload import Requests

BALANCE_CONTEXT = 1024.0  # positions at which stages are balanced; assumed: a usual conversation
MAX_SEQUENCES = 256  # of a micro-batch.  Source: the default of vLLM's max_num_seqs


@dataclass(frozen=True, slots=True)
class Lone:
    """A request that has the system for itself: its times, and a mean token's time by cause (seconds, and the fitted part)."""

    ttft: Seconds
    tpot: Seconds
    terms: dict[str, Seconds]
    fitted: dict[str, Seconds]

    @property
    def fitted_share(self) -> float:
        """The part of a token's time that engine `ideal` would not need."""
        return sum(self.fitted.values()) / sum(self.terms.values())


@dataclass(frozen=True)
class Deployment:
    """A system ready to serve: its layout with stages, whether it fits, and what its scheduler may do."""

    layout: Layout
    fit: Fit
    limits: Limits
    costs: Costs

    @property
    def chips(self) -> int:
        plan = self.layout.plan
        return plan.tensor * plan.depth * plan.replicas

    @property
    def warnings(self) -> list[str]:
        """What tensor parallelism loses because its degree does not divide what it deals out: the fullest chip decides."""
        model, tensor = self.layout.model, self.layout.plan.tensor
        lines = []
        for parts, what in (
            (model.num_attention_heads, "attention heads"),
            (model.kv_heads, "KV heads"),
            (model.intermediate_size, "columns of the MLP"),
            (model.vocab_size, "tokens of the vocabulary"),
        ):
            loss = math.ceil(parts / tensor) * tensor / parts - 1
            if loss > 0:
                held = f"each is held {tensor / parts:g} times" if tensor > parts else "the fullest chip decides"
                lines.append(f"tensor {tensor} does not divide {parts} {what}: {held}, {loss:.1%} more than an even share")
        return lines

    @property
    def bytes_per_token(self) -> Bytes:
        """KV cache that one token takes, over all chips of a replica."""
        return self.layout.plan.tensor * sum(stage.kv_per_token for stage in self.layout.stages)


def deploy(
    model: Model,
    chip: Chip,
    chips: int,
    engine: Engine,
    plan: Plan,
    request_tokens: float,
    topology: Topology | None = None,
    token_budget: int | None = None,
    max_sequences: int | None = None,
    kv_tokens: int | None = None,
    memory_fraction: float | None = None,
) -> Deployment:
    """Lays the model on the chips and says whether it fits; what is None takes its default.

    Raises: ValueError where the degrees, the topology, the precisions or the limits contradict each other.
    """
    plan = plan.resolved(chips, model)
    budget = token_budget or chip.compute.token_budget((plan.given("weights"), plan.given("activations")))
    layout = Layout(
        model=model,
        chip=chip,
        topology=(topology or chip.topology).sized(chips // plan.replicas),
        engine=engine,
        plan=plan,
        token_budget=budget,
        memory_fraction=memory_fraction or engine.memory_fraction,
    )
    layout = replace(layout, bounds=Cutter(layout, request_tokens).bounds(plan.depth))
    fitted = fit(layout, request_tokens)
    room = kv_tokens or fitted.kv_tokens
    slots = plan.slots or plan.depth
    most = slots * min(budget, MAX_SEQUENCES)
    if max_sequences and max_sequences > slots * budget:
        raise ValueError(
            f"max_sequences {max_sequences}: {slots} micro-batches of {budget} tokens carry {slots * budget} at most, "
            "and prompts would starve"
        )
    limits = Limits(slots, budget, max_sequences or most, room, model.max_position_embeddings)
    return Deployment(layout, fitted, limits, Costs(layout))


class Cutter:
    """Cuts the blocks of a layout into contiguous stages.

    What is cut for is a limit on a stage's time, and on its bytes beside the KV cache of a number of tokens.  With both limits
    given, filling stages greedily needs the fewest of them, so limits are found by bisection; within them the cut with the
    least sum of squared times is taken, the evenest.
    """

    def __init__(self, layout: Layout, request_tokens: float) -> None:
        blocks = layout.model.blocks
        costs = Costs(replace(layout, bounds=(0,)))  # for the times of single blocks only
        work = Work(decodes=1, context=BALANCE_CONTEXT, logits=1)
        by_kind = {block.kind: costs.block_time(block, work) for block in blocks}
        alone = [layout.stage(i, i) for i in range(len(blocks))]
        self.layout = layout
        self.times = [0.0, *accumulate(by_kind[block.kind] for block in blocks)]
        self.weights = [0.0, *accumulate(stage.weights for stage in alone)]
        self.shared = self.weights[-1] - layout.stage(0, len(blocks) - 1).weights  # a table that serves both ends of one stage
        self.kv = [0.0, *accumulate(stage.kv_per_token for stage in alone)]
        self.room = layout.usable - layout.engine.reserve - layout.activations
        self.request_tokens = request_tokens

    def bounds(self, pipeline: int) -> tuple[int, ...]:
        """The first block of each of `pipeline` stages."""
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

        if self.stages(math.inf, need) > pipeline:  # it will not fit: show the evenest bytes
            weights = sorted({self._weights(i, j) for i, j in pairs})
            self.room = _least(weights, lambda limit: self._fewest(lambda i, j: self._weights(i, j) <= limit) <= pipeline)
            return self._even(pipeline, math.inf, 0.0)
        if self.layout.plan.balance == "time":
            time = fastest(need)
            tokens = roomiest(time)
        else:
            tokens = roomiest(math.inf)
            time = fastest(tokens)
        return self._even(pipeline, time, tokens)

    def stages(self, time: float, tokens: float) -> int:
        """The fewest stages within both limits; more than there are blocks where one block alone breaks them."""
        return self._fewest(lambda i, j: self._within(i, j, time, tokens))

    def _weights(self, i: int, j: int) -> float:
        """Bytes of the weights of blocks i..j-1 on one stage."""
        return self.weights[j] - self.weights[i] - (self.shared if j - i == len(self.weights) - 1 else 0.0)

    def _tokens(self, i: int, j: int) -> float:
        """Tokens of KV cache that blocks i..j-1 have room for on their stage."""
        return (self.room - self._weights(i, j)) / (self.kv[j] - self.kv[i])

    def _within(self, i: int, j: int, time: float, tokens: float) -> bool:
        nbytes = self._weights(i, j) + tokens * (self.kv[j] - self.kv[i])
        return nbytes <= self.room * (1 + 1e-12) and self.times[j] - self.times[i] <= time * (1 + 1e-12)

    def _fewest(self, within: Callable[[int, int], bool]) -> int:
        n, count, first = len(self.times) - 1, 0, 0
        while first < n:
            end = first
            while end < n and within(first, end + 1):
                end += 1
            if end == first:
                return n + 1
            count, first = count + 1, end
        return count

    def _even(self, pipeline: int, time: float, tokens: float) -> tuple[int, ...]:
        """Dynamic programming over (stages, blocks): the least sum of squared stage times within the limits."""
        n = len(self.times) - 1
        best = [0.0] + [math.inf] * n
        cuts: list[list[int]] = []
        for stage in range(1, pipeline + 1):
            row, cut = [math.inf] * (n + 1), [0] * (n + 1)
            for end in range(stage, n - (pipeline - stage) + 1):
                for first in range(end - 1, stage - 2, -1):
                    if not self._within(first, end, time, tokens):
                        break
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
    """The least of ascending candidates that is feasible, where every larger one is; the largest if none is."""
    return candidates[min(bisect_left(candidates, True, key=feasible), len(candidates) - 1)]


def minimum_chips(deployment: Deployment, request_tokens: float) -> tuple[int, int, int] | None:
    """The fewest chips that hold the model and one request: chips, tensor, pipeline; of equals the smallest tensor degree.

    Tensor degrees are tried in powers of two up to the number of attention heads.  None where no such plan fits.
    """
    layout = deployment.layout
    found: list[tuple[int, int, int]] = []
    for tensor in (1 << power for power in range(layout.model.num_attention_heads.bit_length())):
        plan = layout.plan.model_copy(update={"tensor": tensor, "pipeline": None, "slots": None})
        pipeline = Cutter(replace(layout, plan=plan), request_tokens).stages(math.inf, request_tokens)
        if pipeline <= len(layout.model.blocks):
            try:
                (layout.topology.model_copy(update={"chips": None})).sized(tensor * pipeline)
                found.append((tensor * pipeline * plan.replicas, tensor, pipeline))
            except ValueError:
                continue  # more chips than the topology joins: not a plan
    return min(found, default=None)


def require_fit(deployment: Deployment, request_tokens: float) -> None:
    """Raises: PlanError with what would do, where the model does not fit."""
    fit, layout = deployment.fit, deployment.layout
    if fit.fits:
        return
    fewest = minimum_chips(deployment, request_tokens)
    if fewest is None:
        hint = f"no number of them would do as the {layout.chip.id} is joined"
    else:
        hint = f"{fewest[0]} chips would do (tensor {fewest[1]}, pipeline {fewest[2]})"
    raise PlanError(
        f"{layout.model.id} on {deployment.chips} {layout.chip.id} does not fit: the fullest chip needs {show(fit.needed, 'B')} "
        f"({show(fit.weights, 'B')} weights) and has {show(fit.capacity, 'B')}; {hint}"
    )


def lone_request(deployment: Deployment, prompt: int, output: int) -> Lone:
    """TTFT and TPOT of a request that meets nobody, served as any other; its mean decode step split by cause."""
    costs, output = deployment.costs, max(2, output)  # a single token has no TPOT
    limits = replace(deployment.limits, kv_tokens=prompt + output, context=prompt + output)
    rows = serve(Requests(np.zeros(1), np.array([prompt]), np.array([output])), costs, limits)
    mean_context = prompt + 1 + (output - 2) / 2
    table = costs.terms(Work(decodes=1, context=mean_context, logits=1)).sum(axis=0)
    table[TIME, HOPS] += costs.back
    return Lone(
        ttft=float(rows.first_token[0]),
        tpot=float(rows.last_token[0] - rows.first_token[0]) / (output - 1),
        terms=dict(zip(TERMS, table[TIME].tolist(), strict=True)),
        fitted=dict(zip(TERMS, table[FITTED].tolist(), strict=True)),
    )
