"""The search for a plan: the fastest one, or the one with the fewest chips."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from sim.cost.layout import Layout
from sim.cost.plan import DEGREES, MOST_REPLICAS, Plan, ResolvedPlan
from sim.cost.step import Costs
from sim.cost.terms import TIME
from sim.cost.work import decodes_at
from sim.inputs.errors import error_at_path
from sim.model.transformer import Model
from sim.planning.memories import fewest_stages, with_memories
from sim.units import Seconds


class PlanTrial(NamedTuple):
    """A plan that the search tried: its degrees, and the estimated unloaded TPOT.

    tpot: None if the plan does not fit.  In a search for the fewest chips, also None if another
    plan needs fewer.
    """

    chips: int
    tensor: int
    attention_data: int
    expert: int
    pipeline: int
    replicas: int
    fits: bool
    tpot: Seconds | None


def stage_shapes(model: Model, chips: int | None) -> Iterator[tuple[int, int, int]]:
    """Yield the degrees that a stage may have: tensor, attention_data, expert.

    The degrees are powers of two and divisors of `chips`, at most `chips`.
    Dense models: tensor up to the number of heads.
    Models with experts also have whole experts on chips, and attention data parallelism of up
    to one chip for each expert.
    Without `chips` tensor takes every number.  attention_data then takes powers of two and
    divisors of the number of experts.
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


def search_degrees(
    plan: Plan,
    chips: int,
    model: Model,
    request_tokens: float,
    lay: Callable[[ResolvedPlan], Layout],
) -> tuple[ResolvedPlan, tuple[PlanTrial, ...]]:
    """Return the best plan, and all trials with the best first.

    search: speed: the lowest unloaded TPOT on all the chips.
    search: chips: the fewest chips.  They are those of `minimum_chips` if there are as many.
    The search tries every stage of `stage_shapes`.  Times are for blocks cut evenly by number.
    lay: returns the layout of a plan, without stages.
    If no plan fits, the first trial is returned, so that an error can name what is missing.

    Raises: ValueError if the plan has degrees of its own, or no plan can be laid out at all.
    """
    extra = sorted(plan.model_fields_set & set(DEGREES))
    if extra:
        value = getattr(plan, extra[0])
        reason = (
            f"got {value}; expected no degrees with search: {plan.search}, which finds them; "
            f"try leaving {', '.join(extra)} out"
        )
        raise error_at_path(("plan", extra[0]), value, reason)
    trials: dict[PlanTrial, Layout] = {}
    refusal = ValueError(
        f"got {chips} chips, over which no plan splits {model.id}; expected a number of chips "
        "that a plan fills; try another number of chips"
    )
    by_speed = plan.search == "speed"
    for tensor, data, expert in stage_shapes(model, chips if by_speed else None):
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
                layout = lay(replace(single.plan, pipeline=depth))
            except ValueError as error:  # mostly a topology that joins fewer chips than a replica
                refusal = error
                continue
            total = group * depth * replicas
            trial = PlanTrial(total, tensor, data, expert, depth, replicas, fits, None)
            trials[trial] = layout
    if not trials:
        raise refusal
    return _ranked(trials, request_tokens, by_speed)


def _ranked(
    trials: dict[PlanTrial, Layout], request_tokens: float, by_speed: bool
) -> tuple[ResolvedPlan, tuple[PlanTrial, ...]]:
    """Return the best plan, and the trials with estimated times, the best first."""
    fewest = min((t.chips for t in trials if t.fits), default=0)
    timed = {
        t._replace(tpot=estimate_tpot(with_memories(layout, request_tokens), request_tokens))
        if t.fits
        and (by_speed or t.chips == fewest)  # an estimate on hundreds of chips takes a second
        else t: layout.plan
        for t, layout in trials.items()
    }
    # An error names the first plan: if none fits, the plan that misses least.
    copies_of = {t: -t.replicas if t.fits else t.replicas for t in timed}
    order = sorted(
        timed,
        key=lambda t: (not t.fits, 0 if by_speed else t.chips, t.tpot or math.inf, copies_of[t]),
    )
    return timed[order[0]], tuple(order)


def estimate_tpot(layout: Layout, request_tokens: float) -> Seconds:
    """Return the unloaded TPOT with blocks cut evenly by number, in the plan's memories."""
    blocks, depth = len(layout.model.blocks), layout.plan.pipeline
    costs = Costs(replace(layout, bounds=tuple(blocks * s // depth for s in range(depth))))
    work = decodes_at(1, max(1.0, request_tokens), layout.model.window, layout.width)
    return (float(costs.terms(work)[:, TIME].sum()) + costs.back) / layout.mean_tokens


def minimum_chips(bare: Layout, request_tokens: float) -> tuple[int, int, int] | None:
    """Return the fewest chips that hold the model and one request: chips, stage size, pipeline.

    bare: the layout as in `Deployment.bare`.
    The fastest for a single request wins among equal plans, as in `search_degrees`.
    None if no plan fits.
    """
    layouts = list[Layout]()
    fabric = bare.topology.model_copy(update={"chips": None})
    for tensor, data, expert in stage_shapes(bare.model, None):
        plan = replace(bare.plan, tensor=tensor, attention_data=data, expert=expert, pipeline=1)
        pipeline = fewest_stages(replace(bare, plan=plan), request_tokens)
        if pipeline <= len(bare.model.blocks):
            with suppress(ValueError):  # more chips than the topology joins: not a plan
                sized = fabric.sized(plan.stage_size * pipeline)
                plan = replace(plan, pipeline=pipeline)
                layouts.append(replace(bare, plan=plan, topology=sized))

    def chips_of(layout: Layout) -> int:
        return layout.plan.stage_size * layout.plan.pipeline

    fewest = min(map(chips_of, layouts), default=0)
    layouts = [layout for layout in layouts if chips_of(layout) == fewest]
    if not layouts:
        return None
    if len(layouts) > 1:
        layouts.sort(
            key=lambda layout: estimate_tpot(with_memories(layout, request_tokens), request_tokens)
        )
    plan = layouts[0].plan
    return fewest * plan.replicas, plan.stage_size, plan.pipeline
