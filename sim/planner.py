"""Lays a model on chips: cuts blocks into stages, finds the fewest chips that would do, times a request that is alone."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sim.chip import Chip
from sim.cost import FITTED, HOPS, TERMS, TIME, Costs, Work
from sim.engine import Engine
from sim.model import Model
from sim.plan import Fit, Layout, Plan, PlanError, fit
from sim.policy import Limits
from sim.serve import serve
from sim.stages import Cutter
from sim.topology import Topology
from sim.units import Seconds, show
from sim.workload import Requests

MAX_SEQUENCES = 256  # of a micro-batch, or of all where they need not fit one.  Source: the default of vLLM's max_num_seqs
# Pieces of a prompt that are compared where no budget is given: powers of the square root of 2.
PIECES = tuple(dict.fromkeys(round(2 ** (n / 2)) for n in range(25)))


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


class Trial(NamedTuple):
    """A plan that was looked at: its degrees, and a lone token's time where it fits."""

    chips: int
    tensor: int
    attention_data: int
    expert: int
    pipeline: int
    replicas: int
    fits: bool
    tpot: Seconds | None


@dataclass(frozen=True)
class Deployment:
    """A system ready to serve: its layout with stages, whether it fits, and what its scheduler may do."""

    layout: Layout
    fit: Fit
    limits: Limits
    costs: Costs
    beat: Seconds | None = None  # of the slowest stage, for what enters at once, where the engine has tokens_per_beat
    tried: tuple[Trial, ...] = ()  # where the plan was searched for: what else was looked at, the best first

    @property
    def chips(self) -> int:
        plan = self.layout.plan
        return plan.group * plan.depth * plan.replicas

    @property
    def load(self) -> Seconds | None:
        """Loading a chip's weights from its host: bytes / bandwidth; all load at once, so that of the fullest is the system's.

        None where the chip's file does not give the link.  Left out: reading them from disk or network into the host, chips that
        share a host's memory, the program.
        """
        link = self.layout.chip.host_link
        return self.fit.weights / link if link else None

    @property
    def contended(self) -> str:
        """Which collectives' messages meet on cables in ways that their closed forms only estimate; nothing where none do."""
        costs, topology, found = self.costs, self.layout.topology, set()
        for stage in set(costs.like):
            exchanges = [*costs.gathered(1, stage)]
            for block, counts in costs.counts.items():
                exchanges += costs.exchanges(block, 1, stage) if counts[stage] else ()
            found |= {e.operation for e in exchanges for group in e.groups if e.operation not in topology.uncontended(group)}
        if not found:
            return ""
        *others, last = sorted(operation.replace("_", "-") for operation in found)
        names = f"{', '.join(others)} and {last}" if others else last
        return f"the messages of {names} meet on the cables of a group: times by stage are estimates (fidelity: chip has all)"

    @property
    def warnings(self) -> list[str]:
        """What tensor parallelism loses because its degree does not divide what it deals out: the fullest chip decides.

        And the collectives whose times are estimates.
        """
        model, tensor = self.layout.model, self.layout.plan.tensor
        lines = []
        for parts, what in (
            (model.num_attention_heads, "attention heads"),
            (model.kv_heads, "KV heads"),
            (model.intermediate_size or 0, "columns of the MLP"),
            (model.vocab_size, "tokens of the vocabulary"),
        ):
            loss = math.ceil(parts / tensor) * tensor / parts - 1 if parts else 0.0
            if loss > 0:
                held = f"each is held {tensor / parts:g} times" if tensor > parts else "the fullest chip decides"
                lines.append(f"tensor {tensor} does not divide {parts} {what}: {held}, {loss:.1%} more than an even share")
        if self.contended:
            lines.append(self.contended)
        return lines


def deploy(
    model: Model,
    chip: Chip,
    chips: int,
    engine: Engine,
    plan: Plan,
    request_tokens: float,
    prompt_tokens: float | None = None,
    topology: Topology | None = None,
    token_budget: int | None = None,
    max_sequences: int | None = None,
    kv_tokens: int | None = None,
    memory_fraction: float | None = None,
    sampled: np.random.Generator | None = None,
) -> Deployment:
    """Lay the model on the chips and compute whether it fits; what is None takes its default.

    A step has at most `token_budget` tokens, the engine's `tokens_per_beat`, or what the chip's kind of compute advises; else
    as many as end a prompt of `prompt_tokens` soonest (`best_piece`).

    Raises: ValueError if the degrees, the topology, the precisions or the limits contradict each other.
    """

    def lay(plan: Plan) -> Layout:
        chips = plan.group * plan.depth * plan.replicas
        advised = None if beat else chip.compute.token_budget((plan.given("weights"), plan.given("activations")))
        a_step = token_budget or engine.token_budget or advised
        budget = min((n for n in (a_step and a_step * ranks(engine, plan), beat) if n), default=0)
        fabric = (topology or chip.topology).sized(chips // plan.replicas)
        layout = Layout(model, chip, fabric, engine, plan, budget, memory_fraction or engine.memory_fraction)
        return housed(layout, request_tokens)

    beat = engine.tokens_per_beat

    tried: tuple[Trial, ...] = ()
    if plan.search:
        plan, tried = search(plan, chips, model, request_tokens, lay)
    else:
        plan = plan.resolved(chips, model)
    layout = cut(lay(plan), request_tokens)
    if not layout.token_budget:
        layout = cut(replace(layout, token_budget=best_piece(layout, request_tokens, prompt_tokens)), request_tokens)
    budget = layout.token_budget
    fitted = fit(layout, request_tokens)
    room = kv_tokens or fitted.kv_tokens
    seconds = None
    if beat:
        seconds, fill = pipeline_beat(Costs(layout), budget, request_tokens)
        most = max_sequences or max(MAX_SEQUENCES, fill * budget)
        slots = plan.slots or max(fill, math.ceil(most / budget))
        most = min(most, slots * budget)
    else:
        fill, slots = None, plan.slots or plan.depth
        most = slots * min(budget, MAX_SEQUENCES)
        if limit := max_sequences or engine.max_sequences:
            most = limit * ranks(engine, plan)
            if max_sequences is None:
                most = min(most, slots * budget)
    if max_sequences and most > slots * budget:
        raise ValueError(
            f"max_sequences {max_sequences}: {slots} micro-batches of {budget} tokens carry {slots * budget} at most, "
            "and prompts would starve"
        )
    shares = [stage.windowed_per_token / stage.kv(1, None) for stage in layout.stages if stage.kv(1, None)]
    context = model.max_position_embeddings
    limits = Limits(slots, budget, most, room, context, model.window, min(shares), fill)
    return Deployment(layout, fitted, limits, Costs(layout, sampled), seconds, tried)


def ranks(engine: Engine, plan: Plan) -> int:
    """Return for how many ranks of attention data parallelism the limits of an engine hold, each by itself."""
    return plan.attention_data if engine.limits_per == "rank" else 1


def cut(layout: Layout, request_tokens: float) -> Layout:
    """Return the layout with its blocks cut into stages."""
    return replace(layout, bounds=Cutter(layout, request_tokens).bounds(layout.plan.depth))


def best_piece(layout: Layout, request_tokens: float, prompt_tokens: float | None) -> int:
    """Return the tokens of a step that end an unloaded prompt soonest, of `PIECES`.

    A prompt of n tokens in pieces of c takes ceil(n / c) - 1 steps of the slowest stage, and one pass through all stages.
    More compute shortens both for every c, so it never makes a chip slower.  Left out: decodes that wait behind a piece.
    """
    costs, prompt = Costs(layout), prompt_tokens or request_tokens

    def first_token(tokens: int) -> Seconds:
        cached, window = prompt / 2, layout.model.window or prompt
        windowed = min(cached, window)
        work = Work(0, 0.0, tokens, 1, tokens * cached, cached, windowed_attended=tokens * windowed, windowed_cached=windowed)
        stages = costs.step(work).time
        return float((math.ceil(prompt / tokens) - 1) * stages.max() + stages.sum() + costs.hops(tokens).sum())

    fitting = [n for n in PIECES if fit(replace(layout, token_budget=n), request_tokens).fits]
    return min(fitting or PIECES[:1], key=first_token)


def pipeline_beat(costs: Costs, tokens: int, request_tokens: float) -> tuple[Seconds, int]:
    """Return the time of the slowest stage for `tokens`, and how many micro-batches of them keep that stage busy.

    The number is an unloaded pass over the beat.  Both are the most of decodes and pieces of prompts (without the output
    head), the number also of short contexts and those of `request_tokens`.
    """
    most, beat = 1, 0.0
    for context in (1.0, max(1.0, request_tokens)):
        windowed = min(context, costs.layout.model.window or context)
        decode = Work(tokens, tokens * context, logits=tokens, windowed_context=tokens * windowed)
        piece = replace(decode, decodes=0, logits=0, prompt_tokens=tokens, chunks=1, attended=tokens * context, cached=context)
        piece.windowed_attended, piece.windowed_cached = tokens * windowed, windowed
        for work in (decode, piece):
            stages = costs.step(work).time
            unloaded = stages.sum() + costs.hops(tokens).sum() + costs.back
            most = max(most, math.ceil(unloaded / stages.max() - 1e-9))
            beat = max(beat, float(stages.max()))
    return beat, most


def housed(layout: Layout, request_tokens: float) -> Layout:
    """The layout with the memories named: as the plan says, else the first that holds weights and KV cache with room for both.

    Raises: ValueError where the plan names a memory that the chip does not have.
    """
    plan, chip = layout.plan, layout.chip
    for name in (plan.weights_in, plan.kv_in):
        if name and name not in chip.memory:
            raise ValueError(f"{chip.id} has no memory '{name}'; it has {', '.join(chip.memory)}")
    houses = [
        replace(layout, plan=plan.model_copy(update={"weights_in": plan.weights_in or home, "kv_in": plan.kv_in or home}))
        for home in chip.homes
    ]
    for house in houses[:-1]:
        if Cutter(house, request_tokens).stages(math.inf, request_tokens) <= plan.depth:
            return house
    return houses[-1]


def shapes(model: Model, most: int) -> Iterator[tuple[int, int, int]]:
    """Degrees that a stage may have: tensor, attention_data, expert, of `most` chips at most, in powers of two and divisors.

    Dense: tensor up to the number of heads.  With experts also: whole experts on chips, and attention data parallelism up to
    one chip for each expert.
    """
    experts = max((block.experts.count for block in model.blocks if block.experts), default=0)
    degrees = [n for n in range(1, most + 1) if n & (n - 1) == 0 or most % n == 0]
    for tensor in (n for n in degrees if n <= model.num_attention_heads):
        yield tensor, 1, 1
        if 1 < tensor <= experts:
            yield tensor, 1, tensor
        for data in (n for n in degrees if n > 1 and tensor * n <= min(experts, most)):
            yield tensor, data, tensor * data


def search(
    plan: Plan, chips: int, model: Model, request_tokens: float, lay: Callable[[Plan], Layout]
) -> tuple[Plan, tuple[Trial, ...]]:
    """The fastest plan for a lone token on all the chips (search: speed), or the one with the fewest chips (search: chips).

    Every way to deal the chips out that `shapes` knows is tried; times are those of blocks cut evenly, by number.  Where none
    fits, the first is given, so that what is missing can be said.

    Raises: ValueError where the plan gives degrees itself, or nothing can be laid out at all.
    """
    given = plan.model_fields_set & {"tensor", "attention_data", "expert", "pipeline", "replicas"}
    if given:
        raise ValueError(f"search: {plan.search} finds the degrees; leave {', '.join(sorted(given))} out")
    trials: dict[Trial, Plan] = {}
    refusal = ValueError(f"no plan deals {model.id} out to {chips} chips")
    for tensor, data, expert in shapes(model, chips):
        group = tensor * data
        copies = [1] if plan.search == "chips" else [n for n in range(1, chips // group + 1) if chips % (group * n) == 0]
        for replicas in copies:
            depth = chips // (group * replicas)
            degrees = {"tensor": tensor, "attention_data": data, "expert": expert, "replicas": replicas, "search": None}
            depth = min(depth, len(model.blocks)) if plan.search == "chips" else depth
            if depth > len(model.blocks):
                continue
            candidate = plan.model_copy(update=degrees | {"pipeline": depth}).resolved(group * depth * replicas, model)
            try:
                layout = lay(candidate)
            except ValueError as error:  # mostly: the topology joins fewer chips than a replica would have
                refusal = error
                continue
            least = Cutter(layout, request_tokens).stages(math.inf, request_tokens)
            fits = least <= depth
            if plan.search == "chips" and fits:
                candidate = candidate.model_copy(update={"pipeline": least})
                layout, depth = lay(candidate), least
            tpot = _estimate(layout, request_tokens) if fits else None
            trials[Trial(group * depth * replicas, tensor, data, expert, depth, replicas, fits, tpot)] = candidate
    if not trials:
        raise refusal
    by_speed = plan.search == "speed"
    copies_of = {t: -t.replicas if t.fits else t.replicas for t in trials}  # what misses least is told of
    order = sorted(trials, key=lambda t: (not t.fits, 0 if by_speed else t.chips, t.tpot or math.inf, copies_of[t]))
    return trials[order[0]], tuple(order)


def _estimate(layout: Layout, request_tokens: float) -> Seconds:
    """A lone token's time with the blocks dealt to stages by number."""
    blocks, depth = len(layout.model.blocks), layout.plan.depth
    costs = Costs(replace(layout, bounds=tuple(blocks * s // depth for s in range(depth))))
    context = max(1.0, request_tokens)
    window = layout.model.window or context
    return float(costs.terms(Work(1, context, logits=1, windowed_context=min(context, window)))[:, TIME].sum()) + costs.back


def minimum_chips(deployment: Deployment, request_tokens: float) -> tuple[int, int, int] | None:
    """The fewest chips that hold the model and one request: chips, tensor (times attention_data), pipeline.

    Of equals the smallest stages.  Degrees are powers of two.  None where no such plan fits.
    """
    layout = deployment.layout
    model, blocks = layout.model, layout.model.blocks
    experts = max((block.experts.count for block in blocks if block.experts), default=1)
    most = 1 << (max(model.num_attention_heads, experts).bit_length() - 1)
    found: list[tuple[int, int, int]] = []
    for tensor, data, expert in shapes(model, most):
        degrees = {"tensor": tensor, "attention_data": data, "expert": expert, "pipeline": None}
        plan = layout.plan.model_copy(update=degrees)
        pipeline = Cutter(replace(layout, plan=plan), request_tokens).stages(math.inf, request_tokens)
        if pipeline <= len(blocks):
            try:
                (layout.topology.model_copy(update={"chips": None})).sized(plan.group * pipeline)
                found.append((plan.group * pipeline * plan.replicas, plan.group, pipeline))
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
    needs = f"needs {show(fit.needed, 'B')} ({show(fit.weights, 'B')} weights) and has {show(fit.capacity, 'B')}"
    if layout.apart and fit.weights > layout.weights_memory.capacity:
        home, has = layout.plan.weights_in, show(layout.weights_memory.capacity, "B")
        needs = f"needs {show(fit.weights, 'B')} for weights in its {home} and has {has}"
    raise PlanError(f"{layout.model.id} on {deployment.chips} {layout.chip.id} does not fit: the fullest chip {needs}; {hint}")


def lone_request(deployment: Deployment, prompt: int, output: int) -> Lone:
    """TTFT and TPOT of a request that meets nobody, served as any other; its mean decode step split by cause."""
    costs, output = deployment.costs, max(2, output)  # a single token has no TPOT
    limits = replace(deployment.limits, kv_tokens=prompt + output, context=prompt + output)
    rows = serve(Requests(np.zeros(1), np.array([prompt]), np.array([output])), costs, limits, leap=costs.stages == 1)
    contexts = range(prompt + 1, prompt + output)
    window = deployment.limits.window
    mean, windowed = (sum(min(c, w) for c in contexts) / len(contexts) for w in (math.inf, window or math.inf))
    table = costs.terms(Work(decodes=1, context=mean, logits=1, windowed_context=windowed)).sum(axis=0)
    table[TIME, HOPS] += costs.back
    return Lone(
        ttft=float(rows.first_token[0]),
        tpot=float(rows.last_token[0] - rows.first_token[0]) / (output - 1),
        terms=dict(zip(TERMS, table[TIME].tolist(), strict=True)),
        fitted=dict(zip(TERMS, table[FITTED].tolist(), strict=True)),
    )
