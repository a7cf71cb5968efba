"""Lays a model on chips: cuts blocks into stages, finds the fewest chips that would do, times a request that is alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sim.cost.plan import (
    MOST_REPLICAS,
    Layout,
    MemoryFit,
    Plan,
    PlanError,
    fit,
    most_kv_tokens,
    sequences,
)
from sim.cost.step import FITTED, HOPS, TERMS, TIME, Costs, Work
from sim.hardware.chip import Chip
from sim.hardware.engine import Engine
from sim.hardware.topology import Topology
from sim.model.transformer import Model
from sim.planning.partition import Cutter
from sim.serving.policy import SchedulerLimits
from sim.serving.service import serve
from sim.units import Seconds, format_quantity
from sim.workload.requests import RequestBatch

MAX_SEQUENCES = 256  # of a micro-batch, or of all where they need not fit one.  Source: the default of vLLM's max_num_seqs
MOST_SLOTS = 100_000  # of a replica
# Pieces of a prompt that are compared where no budget is given: powers of the square root of 2.
PIECES = tuple(dict.fromkeys(round(2 ** (n / 2)) for n in range(25)))


@dataclass(frozen=True, slots=True)
class SingleRequest:
    """A request that has the system for itself: its times, and a mean token's time by cause (seconds, and the fitted part)."""

    ttft: Seconds
    tpot: Seconds
    terms: dict[str, Seconds]
    fitted: dict[str, Seconds]

    @property
    def fitted_share(self) -> float:
        """The part of a token's time that engine `ideal` would not need."""
        return sum(self.fitted.values()) / sum(self.terms.values())


class PlanTrial(NamedTuple):
    """A plan that was looked at: its degrees, and a lone token's time where it fits (of the fewest chips: where none has fewer)."""

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
    fit: MemoryFit
    limits: SchedulerLimits
    costs: Costs
    bare: Layout  # the same as it was asked for: memories that the plan does not name are open, and the least token budget
    beat: Seconds | None = (
        None  # of the slowest stage, for what enters at once, where the engine has tokens_per_beat
    )
    tried: tuple[
        PlanTrial, ...
    ] = ()  # where the plan was searched for: what else was looked at, the best first

    @property
    def chips(self) -> int:
        plan = self.layout.plan
        return plan.stage_size * plan.pipeline_depth * plan.replicas

    def sequences(self, tokens: int) -> tuple[int, int]:
        """How many sequences of `tokens` fit: by the fullest stage or the KV room that is given, and if all memory were one."""
        fullest, together = sequences(self.layout, tokens)
        given = self.limits.kv_tokens != self.fit.kv_tokens
        return (
            self.limits.kv_tokens // max(1, self.limits.kv_tokens_needed(tokens))
            if given
            else fullest
        ), together

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
            found |= {
                e.operation
                for e in exchanges
                for group in e.groups
                if e.operation not in topology.uncontended(group)
            }
        if not found:
            return ""
        *others, last = sorted(operation.replace("_", "-") for operation in found)
        names = f"{', '.join(others)} and {last}" if others else last
        return f"the messages of {names} meet on the cables of a group: times by stage are estimates (fidelity: chip has all)"

    @property
    def warnings(self) -> list[str]:
        """What tensor parallelism loses because its degree does not divide what it deals out: the fullest chip decides.

        And the collectives whose times are estimates, and KV room that is given beyond what the engine would take.
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
                held = (
                    f"each is held {tensor / parts:g} times"
                    if tensor > parts
                    else "the fullest chip decides"
                )
                lines.append(
                    f"tensor {tensor} does not divide {parts} {what}: {held}, {loss:.1%} more than an even share"
                )
        if self.contended:
            lines.append(self.contended)
        if self.limits.kv_tokens > self.fit.kv_tokens:
            lines.append(
                f"kv_tokens {self.limits.kv_tokens}: the engine's memory_fraction and reserve leave {self.fit.kv_tokens}"
            )
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

    def budget_of(plan: Plan) -> int | None:
        advised = (
            None
            if beat
            else chip.compute.token_budget((plan.given("weights"), plan.given("activations")))
        )
        a_step = token_budget or engine.token_budget or advised
        return min((n for n in (a_step and a_step * ranks(engine, plan), beat) if n), default=None)

    def lay(plan: Plan) -> Layout:
        fabric = (topology or chip.topology).sized(plan.stage_size * plan.pipeline_depth)
        budget = budget_of(plan) or PIECES[0]
        return Layout(
            model, chip, fabric, engine, plan, budget, memory_fraction or engine.memory_fraction
        )

    beat = engine.tokens_per_beat

    tried: tuple[PlanTrial, ...] = ()
    if plan.search == "capacity":
        raise ValueError(
            "plan.search: got capacity; expected degrees here; try sim.search_plans(scenario), which finds them"
        )
    if plan.search:
        plan, tried = search(plan, chips, model, request_tokens, lay)
    else:
        plan = plan.resolved(chips, model)
    bare = lay(plan)
    layout = cut(housed(bare, request_tokens), request_tokens)
    if not budget_of(plan):
        layout = cut(
            replace(layout, token_budget=best_piece(layout, request_tokens, prompt_tokens)),
            request_tokens,
        )
    budget = layout.token_budget
    fitted = fit(layout, request_tokens)
    if kv_tokens and fitted.fits and kv_tokens > (held := most_kv_tokens(layout)):
        raise ValueError(
            f"kv_tokens: got {kv_tokens} token; expected at most {held} token, which fill the fullest chip's {layout.plan.kv_in}; "
            f"try leaving kv_tokens out, for {fitted.kv_tokens} token"
        )
    room = kv_tokens or fitted.kv_tokens
    seconds = None
    if beat:
        seconds, fill = pipeline_beat(Costs(layout), budget, request_tokens)
        most = max_sequences or max(MAX_SEQUENCES, fill * budget)
        slots = plan.slots or max(fill, math.ceil(most / budget))
        most = min(most, slots * budget)
    else:
        fill, slots = None, plan.slots or plan.pipeline_depth
        most = slots * min(budget, MAX_SEQUENCES)
        if limit := max_sequences or engine.max_sequences:
            most = limit * ranks(engine, plan)
            if max_sequences is None:
                most = min(most, slots * budget)
    if slots > MOST_SLOTS:
        raise ValueError(
            f"plan.slots: got {slots:,} micro-batches; expected at most {MOST_SLOTS:,}, since each is simulated by itself; "
            "try fewer slots, or a smaller max_sequences"
        )
    if max_sequences and most > slots * budget:
        raise ValueError(
            f"max_sequences {max_sequences}: {slots} micro-batches of {budget} tokens carry {slots * budget} at most, "
            "and prompts would starve"
        )
    shares = [
        stage.windowed_per_token / stage.kv(1, None) for stage in layout.stages if stage.kv(1, None)
    ]
    context = model.max_position_embeddings
    limits = SchedulerLimits(slots, budget, most, room, context, model.window, min(shares), fill)
    return Deployment(layout, fitted, limits, Costs(layout, sampled), bare, seconds, tried)


def ranks(engine: Engine, plan: Plan) -> int:
    """Return for how many ranks of attention data parallelism the limits of an engine hold, each by itself."""
    return plan.attention_data if engine.limits_per == "rank" else 1


def cut(layout: Layout, request_tokens: float) -> Layout:
    """Return the layout with its blocks cut into stages."""
    return replace(layout, bounds=Cutter(layout, request_tokens).bounds(layout.plan.pipeline_depth))


def best_piece(layout: Layout, request_tokens: float, prompt_tokens: float | None) -> int:
    """Return the tokens of a step that end an unloaded prompt soonest, of `PIECES`.

    A prompt of n tokens in pieces of c takes ceil(n / c) - 1 steps of the slowest stage, and one pass through all stages.
    More compute shortens both for every c, so it never makes a chip slower.  Left out: decodes that wait behind a piece.
    """
    costs, prompt = Costs(layout), prompt_tokens or request_tokens

    def first_token(tokens: int) -> Seconds:
        cached, window = prompt / 2, layout.model.window or prompt
        windowed = min(cached, window)
        work = Work(
            0,
            0.0,
            tokens,
            1,
            tokens * cached,
            cached,
            windowed_attended=tokens * windowed,
            windowed_cached=windowed,
        )
        stages = costs.step(work).time
        return float(
            (math.ceil(prompt / tokens) - 1) * stages.max()
            + stages.sum()
            + costs.hops(tokens).sum()
        )

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
        piece = replace(
            decode,
            decodes=0,
            logits=0,
            prompt_tokens=tokens,
            chunks=1,
            attended=tokens * context,
            cached=context,
        )
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
    *faster, last = houses(layout)
    for house in faster:
        if (
            Cutter(house, request_tokens).stages(math.inf, request_tokens)
            <= layout.plan.pipeline_depth
        ):
            return house
    return last


def houses(layout: Layout) -> list[Layout]:
    """Return the layout in each memory that the plan leaves open, the fastest memory first.

    Raises: ValueError where the plan names a memory that the chip does not have.
    """
    plan, chip = layout.plan, layout.chip
    for name in (plan.weights_in, plan.kv_in):
        if name and name not in chip.memory:
            raise ValueError(f"{chip.id} has no memory '{name}'; it has {', '.join(chip.memory)}")
    return [
        replace(
            layout,
            plan=plan.model_copy(
                update={"weights_in": plan.weights_in or home, "kv_in": plan.kv_in or home}
            ),
        )
        for home in chip.homes
    ]


def shapes(model: Model, chips: int | None) -> Iterator[tuple[int, int, int]]:
    """Degrees that a stage may have: tensor, attention_data, expert; powers of two and divisors of `chips`, those at most.

    Dense: tensor up to the number of heads.  With experts also: whole experts on chips, and attention data parallelism up to
    one chip for each expert.  Without `chips` every tensor, and for data powers of two and divisors of the experts.
    """
    heads = model.num_attention_heads
    experts = max((block.experts.count for block in model.blocks if block.experts), default=0)
    most = min(chips or math.inf, max(heads, experts))
    degrees = [
        n for n in range(1, int(most) + 1) if n & (n - 1) == 0 or (chips or experts or n) % n == 0
    ]
    for tensor in degrees if chips else range(1, heads + 1):
        if tensor > heads:
            return
        yield tensor, 1, 1
        if 1 < tensor <= experts:
            yield tensor, 1, tensor
        for data in (n for n in degrees if n > 1 and tensor * n <= min(experts, most)):
            yield tensor, data, tensor * data


def search(
    plan: Plan, chips: int, model: Model, request_tokens: float, lay: Callable[[Plan], Layout]
) -> tuple[Plan, tuple[PlanTrial, ...]]:
    """The fastest plan for a lone token on all the chips (search: speed), or the one with the fewest chips (search: chips).

    Every way to deal the chips out that `shapes` knows is tried; times are those of blocks cut evenly, by number.  Where none
    fits, the first is given, so that what is missing can be said.  The fewest chips are those of `minimum_chips`, where there
    are as many.

    Raises: ValueError where the plan gives degrees itself, or nothing can be laid out at all.
    """
    given = plan.model_fields_set & {"tensor", "attention_data", "expert", "pipeline", "replicas"}
    if given:
        raise ValueError(
            f"search: {plan.search} finds the degrees; leave {', '.join(sorted(given))} out"
        )
    trials: dict[PlanTrial, Layout] = {}
    refusal = ValueError(f"no plan deals {model.id} out to {chips} chips")
    by_speed = plan.search == "speed"
    for tensor, data, expert in shapes(model, chips if by_speed else None):
        group = tensor * data
        for replicas in range(1, (min(chips, MOST_REPLICAS) if by_speed else 1) + 1):
            depth, rest = divmod(chips, group * replicas)
            if not depth:
                break
            if by_speed and (rest or depth > len(model.blocks)):
                continue
            depth = min(depth, len(model.blocks))
            degrees = {
                "tensor": tensor,
                "attention_data": data,
                "expert": expert,
                "replicas": replicas,
                "search": None,
            }
            candidate = plan.model_copy(update=degrees)
            try:
                single = lay(
                    candidate.model_copy(update={"pipeline": 1}).resolved(group * replicas, model)
                )
                least = fewest_stages(single, request_tokens)
                fits = least <= depth
                depth = least if fits and not by_speed else depth
                layout = lay(single.plan.model_copy(update={"pipeline": depth}))
            except (
                ValueError
            ) as error:  # mostly: the topology joins fewer chips than a replica would have
                refusal = error
                continue
            trials[
                PlanTrial(
                    group * depth * replicas, tensor, data, expert, depth, replicas, fits, None
                )
            ] = layout
    if not trials:
        raise refusal
    fewest = min((t.chips for t in trials if t.fits), default=0)
    timed = {
        t._replace(tpot=_estimate(housed(layout, request_tokens), request_tokens))
        if t.fits
        and (by_speed or t.chips == fewest)  # an estimate on hundreds of chips takes a second
        else t: layout.plan
        for t, layout in trials.items()
    }
    copies_of = {
        t: -t.replicas if t.fits else t.replicas for t in timed
    }  # what misses least is told of
    order = sorted(
        timed,
        key=lambda t: (not t.fits, 0 if by_speed else t.chips, t.tpot or math.inf, copies_of[t]),
    )
    return timed[order[0]], tuple(order)


def _estimate(layout: Layout, request_tokens: float) -> Seconds:
    """A lone token's time with the blocks dealt to stages by number, in memories that the plan names."""
    blocks, depth = len(layout.model.blocks), layout.plan.pipeline_depth
    costs = Costs(replace(layout, bounds=tuple(blocks * s // depth for s in range(depth))))
    context = max(1.0, request_tokens)
    window = layout.model.window or context
    return (
        float(
            costs.terms(Work(1, context, logits=1, windowed_context=min(context, window)))[
                :, TIME
            ].sum()
        )
        + costs.back
    )


def minimum_chips(deployment: Deployment, request_tokens: float) -> tuple[int, int, int] | None:
    """The fewest chips that hold the model and one request: chips, tensor (times attention_data), pipeline.

    Of equals the fastest for a lone token, as `search` has it.  None where no plan fits.
    """
    bare, found = deployment.bare, list[Layout]()
    fabric = bare.topology.model_copy(update={"chips": None})
    for tensor, data, expert in shapes(bare.model, None):
        degrees = {"tensor": tensor, "attention_data": data, "expert": expert, "pipeline": None}
        plan = bare.plan.model_copy(update=degrees)
        pipeline = fewest_stages(replace(bare, plan=plan), request_tokens)
        if pipeline <= len(bare.model.blocks):
            with suppress(ValueError):  # more chips than the topology joins: not a plan
                sized = fabric.sized(plan.stage_size * pipeline)
                found.append(
                    replace(
                        bare, plan=plan.model_copy(update={"pipeline": pipeline}), topology=sized
                    )
                )
    fewest = min(
        (layout.plan.stage_size * layout.plan.pipeline_depth for layout in found), default=0
    )
    found = [
        layout for layout in found if layout.plan.stage_size * layout.plan.pipeline_depth == fewest
    ]
    if not found:
        return None
    if len(found) > 1:
        found.sort(key=lambda layout: _estimate(housed(layout, request_tokens), request_tokens))
    plan = found[0].plan
    return fewest * plan.replicas, plan.stage_size, plan.pipeline_depth


def fewest_stages(layout: Layout, request_tokens: float) -> int:
    """Return the fewest stages that hold the model, whatever the memory; more than there are blocks where none do."""
    return min(
        Cutter(house, request_tokens).stages(math.inf, request_tokens) for house in houses(layout)
    )


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
    needs = (
        f"needs {format_quantity(fit.needed, 'B')} ({format_quantity(fit.weights, 'B')} weights) "
        f"and has {format_quantity(fit.capacity, 'B')}"
    )
    if layout.apart and fit.weights > layout.weights_memory.capacity:
        home, has = layout.plan.weights_in, format_quantity(layout.weights_memory.capacity, "B")
        needs = f"needs {format_quantity(fit.weights, 'B')} for weights in its {home} and has {has}"
    raise PlanError(
        f"{layout.model.id} on {deployment.chips} {layout.chip.id} does not fit: the fullest chip {needs}; {hint}"
    )


def time_single_request(deployment: Deployment, prompt: int, output: int) -> SingleRequest:
    """TTFT and TPOT of a request that meets nobody, served as any other; its mean decode step split by cause."""
    costs, output = deployment.costs, max(2, output)  # a single token has no TPOT
    limits = replace(deployment.limits, kv_tokens=prompt + output, context=prompt + output)
    rows = serve(
        RequestBatch(np.zeros(1), np.array([prompt]), np.array([output])),
        costs,
        limits,
        leap=costs.stages == 1,
    )
    contexts = range(prompt + 1, prompt + output)
    window = deployment.limits.window
    mean, windowed = (
        sum(min(c, w) for c in contexts) / len(contexts) for w in (math.inf, window or math.inf)
    )
    table = costs.terms(Work(decodes=1, context=mean, logits=1, windowed_context=windowed)).sum(
        axis=0
    )
    table[TIME, HOPS] += costs.back
    return SingleRequest(
        ttft=float(rows.first_token[0]),
        tpot=float(rows.last_token[0] - rows.first_token[0]) / (output - 1),
        terms=dict(zip(TERMS, table[TIME].tolist(), strict=True)),
        fitted=dict(zip(TERMS, table[FITTED].tolist(), strict=True)),
    )
