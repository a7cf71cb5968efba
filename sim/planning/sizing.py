"""The fewest chips for a number of users: the search of `sramsim size`.

    size_deployment(parts, Demand(context=4096, users=64)).deployment.chips

`search.smallest_plans` finds the plans that hold the users' sequences. The search takes the one
with the fewest chips on which each user reaches the TPOT.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

from sim.cost.layout import weights_only_chips
from sim.cost.plan import MOST_REPLICAS, Plan, PlanError
from sim.cost.step import Costs
from sim.cost.work import decodes_at
from sim.planning.deployment import (
    Deployment,
    DeploymentParts,
    LimitOverrides,
    deploy,
    limited_ranks,
    uncut_layout,
)
from sim.planning.loaded_speed import loaded_tpot
from sim.planning.memories import StageCounter, memory_choices
from sim.planning.search import (
    PlanSpace,
    SmallPlan,
    any_plan,
    plans_by_chips,
    sized_layout,
    smallest_plans,
)
from sim.units import Seconds, format_quantity

Binding = Literal["capacity", "KV", "TPOT", "topology"]


@dataclass(frozen=True, slots=True)
class Demand:
    """Users with one sequence each.

    context: tokens of a sequence.  prompt: those of its prompt.
    tpot: the longest time of an output token that each user accepts [s]; None: any.
    """

    context: int
    prompt: int
    users: int = 1
    tpot: Seconds | None = None


@dataclass(frozen=True)
class SizedDeployment:
    """The deployment with the fewest chips for a demand.

    plan, max_sequences: as a scenario writes them; None: the engine's default.
    users: of the fullest replica.
    tpot, unloaded: TPOT at the end of the context, with all users and with a single one [s].
    binds: the demand that needs this many chips.
    otherwise: the fewest chips without this demand.
    """

    deployment: Deployment
    plan: Plan
    max_sequences: int | None
    users: int
    tpot: Seconds
    unloaded: Seconds
    binds: Binding = "capacity"
    otherwise: int = 0


class JoinError(PlanError):
    """A topology that joins too few chips for one sequence."""


def size_deployment(parts: DeploymentParts, demand: Demand) -> SizedDeployment:
    """Return the deployment with the fewest chips that meets a demand.

    parts: its plan has precisions and no degrees; its number of chips does not count.
    The fastest for all users wins among equal numbers of chips.

    Raises: PlanError if no number of chips meets the demand; it names what binds.
    Raises: ValueError if the parts contradict each other.
    """
    lay = partial(uncut_layout, parts, LimitOverrides())
    space = PlanSpace(parts.model, any_plan(parts.plan, parts.model), lay, demand.context)
    search = _SizeSearch(parts, demand, space)
    if demand.tpot is not None:
        search.require_speed(demand.tpot)
    best = search.best()
    chips = best.deployment.chips
    relaxed: dict[Binding, int] = {"topology": search.unjoined(), "KV": search.at_any_speed(1)}
    if demand.tpot:
        relaxed = {"TPOT": search.at_any_speed(demand.users), **relaxed}
    for binds, otherwise in relaxed.items():
        if otherwise < chips:
            return replace(best, binds=binds, otherwise=otherwise)
    return replace(best, otherwise=weights_only_chips(best.deployment.layout))


class _SizeSearch:
    """The search for the fewest chips of one demand.

    space: plans that hold sequences of the demand's context.
    """

    def __init__(self, parts: DeploymentParts, demand: Demand, space: PlanSpace) -> None:
        self.parts, self.demand, self.space = parts, demand, space
        self.fabric = parts.topology or parts.chip.topology
        self.joined = self.fabric.most_chips or math.inf
        self.passes: dict[tuple[int, int], Seconds] = {}  # by shape (its id) and sequences

    def at_any_speed(self, users: int) -> int:
        """Return the fewest chips that hold the sequences of some users."""
        demand = replace(self.demand, users=users, tpot=None)
        return _SizeSearch(self.parts, demand, self.space).best().deployment.chips

    def unjoined(self) -> int:
        """Return the fewest chips of one replica for all users, if the topology had no limit."""
        return min(
            (plan.chips for plan in smallest_plans(self.space, self.demand.users)), default=0
        )

    @cached_property
    def of_one(self) -> list[SmallPlan]:
        """The smallest plan of each shape that holds one sequence, the fewest chips first.

        Raises: PlanError if there is none, or the topology joins too few chips.
        """
        plans = sorted(smallest_plans(self.space), key=lambda plan: plan.chips)
        model, chip, context = self.parts.model.id, self.parts.chip.id, self.demand.context
        if not plans:
            raise PlanError(
                f"{model} on {chip}: got no plan that holds one sequence of {context:,} tokens, "
                "on any number of chips; expected one; try narrower weights, a shorter context, "
                "or a chip with more memory"
            )
        if plans[0].chips > self.joined:
            raise JoinError(
                f"{model} on {chip}: topology {self.fabric.noun()} joins at most {self.joined:,} "
                f"chips; expected {plans[0].chips:,}, which hold the weights and one sequence of "
                f"{context:,} tokens; try narrower weights"
            )
        return [plan for plan in plans if plan.chips <= self.joined]

    def require_speed(self, tpot: Seconds) -> None:
        """Raise PlanError if no plan gives a single user this TPOT; it names the best one."""
        best = math.inf
        for small in sorted(self.of_one, key=lambda plan: self.least_pass(plan, 1)):
            if best <= tpot or self.least_pass(small, 1) >= best:
                break
            sized = self.laid_out(small, 1, 1)
            best = min(best, sized.tpot if sized else math.inf)
        if best > tpot:
            raise PlanError(
                f"tpot: got {format_quantity(tpot, 's')}; expected at least "
                f"{format_quantity(best, 's')}, the best for one user on any number of "
                f"{self.parts.chip.id} at {self.demand.context:,} tokens; "
                f"try '{_rounded_up(1000 * best):g} ms'"
            )

    def best(self) -> SizedDeployment:
        """Return the plan with the fewest chips that meets the demand, the fastest of equals.

        Raises: PlanError if it needs more replicas than can be simulated.
        """
        all_users, smallest = self.demand.users, self.of_one[0].chips
        # A replica for each user meets every demand, so that the search ends.
        best = self.fewest(all_users, 1, None) if self.demand.tpot else None
        replicas = 1
        while replicas <= min(all_users, MOST_REPLICAS):
            if best and replicas * smallest > best.deployment.chips:
                break
            users = math.ceil(all_users / replicas)
            best = self.fewest(replicas, users, best)
            if users == 1:
                break
            replicas = math.ceil(all_users / (users - 1))  # the next number that helps
        if best is None:
            raise PlanError(
                f"users: got {all_users:,}; expected at most {MOST_REPLICAS:,} replicas for "
                f"{self.parts.model.id} on {self.parts.chip.id}; try fewer users"
            )
        return best

    def fewest(
        self, replicas: int, users: int, best: SizedDeployment | None
    ) -> SizedDeployment | None:
        """Return the better one of `best` and the fewest chips with this number of replicas."""
        for small in plans_by_chips(self.space, users):
            chips = replicas * small.chips
            if small.chips > self.joined or (best and chips > best.deployment.chips):
                break
            if self.is_too_slow(small, users):
                continue
            sized = self.laid_out(small, replicas, users)
            if sized is None or sized.tpot > (self.demand.tpot or math.inf):
                continue
            if best is None or (chips, sized.tpot) < (best.deployment.chips, best.tpot):
                best = sized
        return best

    def is_too_slow(self, small: SmallPlan, users: int) -> bool:
        """Return whether even stages without hops are slower than the demand allows."""
        if self.demand.tpot is None:
            return False
        batches = users if self.parts.engine.tokens_per_beat else min(users, small.pipeline)
        one_pass = self.least_pass(small, math.ceil(users / batches))
        return one_pass * max(1.0, batches / small.pipeline) > self.demand.tpot

    def least_pass(self, small: SmallPlan, sequences: int) -> Seconds:
        """Return the time of one decode step without hops, in the fastest memory."""
        key = id(small.single), sequences
        if key not in self.passes:
            layout = memory_choices(sized_layout(small.single))[0]
            work = decodes_at(sequences, self.demand.context, self.parts.model.window)
            step = Costs(replace(layout, bounds=(0,))).step(work)
            self.passes[key] = float(step.time.sum())
        return self.passes[key]

    def laid_out(self, small: SmallPlan, replicas: int, users: int) -> SizedDeployment | None:
        """Return the deployment of a plan; None if it does not hold or run these users.

        Stages are balanced for memory if those balanced for time have too little room.
        """
        for balance in ("time", "memory"):
            plan = self.plan_of(small, replicas, users).model_copy(update={"balance": balance})
            deployment, limit = self.deployed(plan, replicas * small.chips, users)
            if deployment.sequences(self.demand.context)[0] < users:
                continue
            if users > deployment.limits.sequences:
                return None
            context = self.demand.context
            return SizedDeployment(
                deployment,
                plan,
                limit,
                users,
                loaded_tpot(deployment, users, context),
                loaded_tpot(deployment, 1, context),
            )
        return None

    def plan_of(self, small: SmallPlan, replicas: int, users: int) -> Plan:
        """Return a plan as a scenario writes it, in the first memory that holds the users."""
        degrees = small.single.plan
        plan = {key: getattr(degrees, key) for key in ("tensor", "attention_data", "expert")}
        plan |= {"pipeline": small.pipeline, "replicas": replicas, "search": None}
        choices = memory_choices(small.single)
        if len(choices) > 1:
            counter = StageCounter(small.single, self.demand.context)
            depths = [counter.fewest_in(place, users) for place in range(len(choices))]
            home = next(n for n, depth in enumerate(depths) if depth <= small.pipeline)
            plan |= {key: getattr(choices[home].plan, key) for key in ("weights_in", "kv_in")}
        return self.parts.plan.model_copy(update=plan)

    def deployed(self, plan: Plan, chips: int, users: int) -> tuple[Deployment, int | None]:
        """Return a deployment, and `max_sequences` if the default of the simulator is too small."""
        parts, demand = replace(self.parts, chips=chips, plan=plan), self.demand
        deployment = deploy(parts, demand.context, demand.prompt)
        if users <= deployment.limits.sequences or parts.engine.max_sequences:
            return deployment, None
        ranks = limited_ranks(parts.engine, deployment.layout.plan)
        limit = math.ceil(users / ranks)
        overrides = LimitOverrides(max_sequences=limit)
        return deploy(parts, demand.context, demand.prompt, overrides), limit


def _rounded_up(value: float) -> float:
    """Return a positive number rounded up to three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / unit) * unit
