"""The search for a plan: the fastest one, or the one with the fewest chips."""

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

from sim.cost.layout import Layout
from sim.cost.plan import DEGREES, MOST_REPLICAS, Plan, ResolvedPlan
from sim.cost.step import Costs
from sim.cost.system_costs import SystemCosts, step_latency
from sim.cost.work import decodes_at
from sim.inputs.errors import error_at_path
from sim.model.transformer import Model
from sim.planning.memories import StageCounter, with_memories
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


@dataclass(frozen=True)
class PlanSpace:
    """All plans of a model on one kind of chip.

    plan: its precisions and memories hold for all; its degrees are replaced.
    lay: returns the layout of a plan, without stages.  Its topology may join fewer chips.
    request_tokens: tokens of each sequence that a plan holds.
    """

    model: Model
    plan: ResolvedPlan
    lay: Callable[[ResolvedPlan], Layout]
    request_tokens: float

    def single(self, tensor: int, data: int, expert: int) -> Layout:
        """Return the layout of a single stage."""
        return self.lay(
            replace(self.plan, tensor=tensor, attention_data=data, expert=expert, pipeline=1)
        )

    @cached_property
    def counters(self) -> list[tuple[Layout, StageCounter]]:
        """The single stage of each shape, and how few stages hold the model."""
        singles = [self.single(*shape) for shape in stage_shapes(self.model, None)]
        return [(single, StageCounter(single, self.request_tokens)) for single in singles]


@dataclass(frozen=True)
class PlanSteps:
    """The steps of the plans that a search compares.

    costs_of: returns the costs of a layout. replicas: of each plan; None: as many as fit best.
    """

    costs_of: Callable[[Layout], SystemCosts] = Costs
    replicas: int | None = None


PLAIN_STEPS = PlanSteps()


class SmallPlan(NamedTuple):
    """A plan with the fewest stages of its shape that hold some sequences, in one replica.

    single: the layout with one stage, whose topology is not sized.
    """

    chips: int
    pipeline: int
    single: Layout

    def deepened(self) -> "SmallPlan":
        """Return the plan with one more stage."""
        more = self.pipeline + 1
        return self._replace(chips=self.single.plan.stage_size * more, pipeline=more)

    def layout(self) -> Layout:
        """Return its layout.  Raises: ValueError if the topology joins fewer chips."""
        plan = replace(self.single.plan, pipeline=self.pipeline)
        return sized_layout(replace(self.single, plan=plan))


def sized_layout(layout: Layout) -> Layout:
    """Return the layout with its topology sized.  Raises: ValueError if that joins too few."""
    chips = layout.plan.replica_size
    return replace(layout, topology=layout.topology.sized(chips))


def smallest_plans(space: PlanSpace, sequences: int = 1) -> Iterator[SmallPlan]:
    """Yield the plan of each stage shape with the fewest stages that hold the sequences.

    This is the one search for the fewest chips: of `search: chips`, of the hint for a model that
    does not fit, and of `sramsim size`.
    sequences: held at the same time.
    Left out: shapes that hold the sequences on no number of stages.
    """
    for single, counter in space.counters:
        pipeline = counter.fewest(sequences)
        if pipeline <= len(space.model.blocks):
            yield SmallPlan(single.plan.stage_size * pipeline, pipeline, single)


def plans_by_chips(space: PlanSpace, sequences: int = 1) -> Iterator[SmallPlan]:
    """Yield every plan that holds the sequences, with the fewest chips first.

    After the fewest stages of a shape come plans with more of them.
    """
    queue = [
        (plan.chips, number, plan) for number, plan in enumerate(smallest_plans(space, sequences))
    ]
    heapq.heapify(queue)
    while queue:
        _, number, plan = heapq.heappop(queue)
        yield plan
        if plan.pipeline < len(space.model.blocks):
            deeper = plan.deepened()
            heapq.heappush(queue, (deeper.chips, number, deeper))


def search_degrees(
    plan: Plan,
    chips: int,
    model: Model,
    request_tokens: float,
    lay: Callable[[ResolvedPlan], Layout],
    steps: PlanSteps = PLAIN_STEPS,
) -> tuple[ResolvedPlan, tuple[PlanTrial, ...]]:
    """Return the best plan, and all trials with the best first.

    search: speed: the lowest unloaded TPOT on all the chips.
    search: chips: the fewest chips, as `smallest_plans` finds them, if there are as many.
    The search tries every stage of `stage_shapes`.  Times are for blocks cut evenly by number.
    lay: returns the layout of a plan, without stages and with a topology that is not sized.
    steps: by which unloaded times are compared.
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
    space = PlanSpace(model, any_plan(plan, model), lay, request_tokens)
    by_speed = plan.search == "speed"
    wanted = steps.replicas
    tried = _plans_on(space, chips) if by_speed else _shapes_within(space, chips, wanted or 1)
    trials: dict[PlanTrial, Layout] = {}
    into = f" into {wanted} replicas" if wanted else ""
    refusal = ValueError(
        f"got {chips} chips, over which no plan splits {model.id}{into}; expected a number of "
        "chips that a plan fills; try another number of chips"
    )
    for candidate, replicas in tried:
        if wanted not in (None, replicas):
            continue
        single = replace(candidate.single, plan=replace(candidate.single.plan, replicas=replicas))
        try:
            single.topology.sized(single.plan.stage_size)
            fits = StageCounter(single, request_tokens).fewest() <= candidate.pipeline
            layout = candidate._replace(single=single).layout()
        except ValueError as error:  # mostly a topology that joins fewer chips than a replica
            refusal = error
            continue
        shape = single.plan
        degrees = shape.tensor, shape.attention_data, shape.expert, candidate.pipeline
        trials[PlanTrial(candidate.chips * replicas, *degrees, replicas, fits, None)] = layout
    if not trials:
        raise refusal
    return _best_first(trials, partial(_estimate, request_tokens, steps.costs_of), by_speed)


def any_plan(plan: Plan, model: Model) -> ResolvedPlan:
    """Return a resolved plan of one chip, from which a search takes all but the degrees."""
    one_chip = dict.fromkeys(DEGREES, 1) | {"search": None}
    return plan.model_copy(update=one_chip).resolved(1, model)


def _plans_on(space: PlanSpace, chips: int) -> Iterator[tuple[SmallPlan, int]]:
    """Yield every plan of one replica that uses all chips, with the number of replicas."""
    for shape in stage_shapes(space.model, chips):
        single = space.single(*shape)
        for replicas in range(1, min(chips, MOST_REPLICAS) + 1):
            depth, rest = divmod(chips, single.plan.stage_size * replicas)
            if not depth:
                break
            if not rest and depth <= len(space.model.blocks):
                yield SmallPlan(chips // replicas, depth, single), replicas


def _shapes_within(space: PlanSpace, chips: int, replicas: int) -> Iterator[tuple[SmallPlan, int]]:
    """Yield the smallest plan of each shape; if it needs more chips, one that fills them."""
    chips //= replicas
    small = {id(plan.single): plan for plan in smallest_plans(space)}
    for single, _ in space.counters:
        plan = small.get(id(single))
        if plan is None or plan.chips > chips:
            depth = min(chips // single.plan.stage_size, len(space.model.blocks))
            plan = SmallPlan(single.plan.stage_size * depth, depth, single)
        if plan.pipeline:
            yield plan, replicas


def _best_first(
    trials: dict[PlanTrial, Layout], tpot: Callable[[Layout], Seconds], by_speed: bool
) -> tuple[ResolvedPlan, tuple[PlanTrial, ...]]:
    """Return the best plan, and the trials with estimated times, the best first."""
    fewest = min((trial.chips for trial in trials if trial.fits), default=0)
    plans: dict[PlanTrial, ResolvedPlan] = {}
    for trial, layout in trials.items():
        # An estimate on hundreds of chips takes a second.
        is_timed = trial.fits and (by_speed or trial.chips == fewest)
        plans[trial._replace(tpot=tpot(layout)) if is_timed else trial] = layout.plan

    def order_key(trial: PlanTrial) -> tuple[bool, int, float, int]:
        # If no plan fits, an error names the first one: that with the fewest replicas, which
        # misses least. Plans that fit are better with more replicas.
        replicas = -trial.replicas if trial.fits else trial.replicas
        chips = 0 if by_speed else trial.chips
        return not trial.fits, chips, trial.tpot or math.inf, replicas

    order = sorted(plans, key=order_key)
    return plans[order[0]], tuple(order)


def _estimate(
    request_tokens: float, costs_of: Callable[[Layout], SystemCosts], layout: Layout
) -> Seconds:
    """Return the unloaded TPOT with blocks cut evenly by number, in memories of its choice."""
    layout = with_memories(layout, request_tokens)
    blocks, depth = len(layout.model.blocks), layout.plan.pipeline
    costs = costs_of(replace(layout, bounds=tuple(blocks * s // depth for s in range(depth))))
    work = decodes_at(1, max(1.0, request_tokens), layout.model.window, layout.width)
    return step_latency(costs, work) / layout.mean_tokens


def smallest_plan(space: PlanSpace) -> ResolvedPlan | None:
    """Return the plan with the fewest chips that hold the model and one request.

    The fastest for a single request wins among equal plans, as in `search_degrees`.
    None if no plan fits.
    """

    def lay(plan: ResolvedPlan) -> Layout:
        layout = space.lay(plan)
        return replace(layout, topology=layout.topology.model_copy(update={"chips": None}))

    fewest, layouts = 0, list[Layout]()
    for small in sorted(smallest_plans(replace(space, lay=lay)), key=lambda plan: plan.chips):
        if layouts and small.chips > fewest:
            break
        try:
            layouts.append(small.layout())
        except ValueError:  # more chips than the topology joins: not a plan
            continue
        fewest = small.chips
    if not layouts:
        return None
    if len(layouts) > 1:
        layouts.sort(key=partial(_estimate, space.request_tokens, Costs))
    return layouts[0].plan
