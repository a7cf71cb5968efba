"""The plan with the highest goodput: every way to lay a model on a system's chips, bounded first, the best few simulated.

    from sim.studies.design import search_plans
    search_plans(sim.read("mine.yaml")).systems["h100x8"].plan  # where the file says plan: {search: capacity}

A bound takes a fraction of a second and a capacity many seconds, so bounds decide which plans are simulated.  A bound is an
estimate, no proof: it assumes steps without gaps, requests of mean length, and no waiting.  A plan is simulated at a little more
than the highest load so far.  Only where it takes that, its own capacity is searched.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sim.cost.plan import DEGREES, MOST_REPLICAS, Plan, PlanError, PlanSearch
from sim.cost.step import Work
from sim.planning.deployment import Deployment
from sim.planning.search import minimum_chips, stage_shapes
from sim.results.metrics import SLO
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.studies.capacity import BRACKET_RATIO as BETTER
from sim.studies.capacity import Guess, LoadTrial, SystemCapacity, capacity
from sim.units import Seconds
from sim.workload.arrivals import ClosedLoop

SIMULATED = 5  # plans with the highest bounds
NEAR = 0.75  # of the highest bound: plans below are not simulated, for bounds are no farther off than that
SEARCH_FROM = 0.9  # of a plan's bound: the first load that is tried

Progress = Callable[[str, LoadTrial], None]
Find = Callable[[Scenario, Guess | None], SystemCapacity]  # of the only system of a scenario


def silent(system: str, trial: LoadTrial) -> None:
    """Report no progress."""


def search_plans(
    scenario: Scenario,
    attainment: float = 0.9,
    requests: int | None = None,
    progress: Progress = silent,
    systems: Iterable[str] | None = None,
) -> Scenario:
    """Return the scenario with the plans that `search: capacity` leaves open; the scenario itself where there are none.

    Each plan is searched once: the scenario that is returned has degrees in its place, and `searches` says how they were found.
    `systems` are the plain systems to search in, by default all.

    Raises: PlanError where no plan of a system fits or meets the SLO.
    """
    for name in open_plans(scenario, systems):
        best = best_plan(alone(scenario, name), name, finder(name, attainment, requests, progress))
        if best.capacity.best is None:
            raise PlanError(
                f"{scenario.where(name)}.plan.search: got capacity, and the SLO is met by none of {best.search.simulated} plans: "
                f"{best.capacity.reason}; expected one that meets it; try a looser slo, or search: speed"
            )
        scenario = scenario.with_plan(name, best.plan, best.search)
    return scenario


def bound_plans(scenario: Scenario) -> Scenario:
    """Return the scenario with the plans of the highest bounds in place of `search: capacity`: nothing is simulated.

    Raises: PlanError where no plan of a system fits.
    """
    for name in open_plans(scenario, None):
        (most, first), *others = ranked(alone(scenario, name), name)
        scenario = scenario.with_plan(
            name, first.plain(name).plan, PlanSearch(1 + len(others), 0, most)
        )
    return scenario


def open_plans(scenario: Scenario, systems: Iterable[str] | None) -> list[str]:
    """Return the systems, of all or of these, whose plans are still to be searched by capacity."""
    named = scenario.systems if systems is None else systems
    plain = {name: system for name in named if isinstance(system := scenario.systems[name], System)}
    return [name for name, system in plain.items() if system.plan.search == "capacity"]


def alone(scenario: Scenario, name: str) -> Scenario:
    """Return the scenario with one system only."""
    return scenario.model_copy(update={"systems": {name: scenario.plain(name)}})


def finder(name: str, attainment: float, requests: int | None, progress: Progress) -> Find:
    """Return what searches the capacity of a scenario's only system, from a guess on."""
    return lambda scenario, guess: capacity(
        scenario, attainment, requests, progress, guess
    ).systems[name]


@dataclass(frozen=True, eq=False)
class BestPlan:
    """The plan of a system that takes the highest load, what it takes, and what was looked at to find it."""

    plan: Plan
    capacity: SystemCapacity
    search: PlanSearch
    closed: bool

    def as_json(self) -> dict[str, Any]:
        """What `capacity --plans --json` tells of it."""
        best = self.capacity.best
        most = (
            {"max_goodput_users": round(self.search.load)}
            if self.closed
            else {"max_goodput_rate": self.search.load}
        )
        found = {**most, "attainment": best.attainment if best else None}
        return {
            "plan": self.degrees,
            **found,
            "considered": self.search.considered,
            "simulated": self.search.simulated,
        }

    @property
    def degrees(self) -> dict[str, int | str | None]:
        """The degrees of the plan, as a scenario writes them, and the precision of its KV cache."""
        resolved = next(iter(self.capacity.members.values())).deployment.layout.plan
        return {key: getattr(resolved, key) for key in (*DEGREES, "kv")}


def best_plans(
    scenario: Scenario,
    attainment: float,
    requests: int | None = None,
    progress: Progress = silent,
    own: Mapping[str, SystemCapacity] | None = None,
) -> dict[str, BestPlan]:
    """Return for each plain system the plan of its chips with the highest goodput under the scenario's SLO.

    Degrees, replicas and attention data parallelism vary; precisions, the engine and the number of chips are the system's own.
    `own` is what the systems take in their own plans, where that is known: these are not simulated again.

    Left out: fleets, whose members are searched alone, systems whose plan was searched already, and chips that a plan leaves
    unused.

    Raises: UserError where there is no SLO or no load that could be varied, as `capacity` does; PlanError if no plan of a system
    fits.
    """
    found = {}
    for name, system in scenario.systems.items():
        if isinstance(system, System) and name not in scenario.searches:
            find = finder(name, attainment, requests, progress)
            found[name] = best_plan(alone(scenario, name), name, find, own[name] if own else None)
    return found


def best_plan(
    scenario: Scenario, name: str, find: Find, own: SystemCapacity | None = None
) -> BestPlan:
    """Return the best plan of the only system of a scenario.  Raises: PlanError if none fits."""
    ordered = ranked(scenario, name)
    near = [
        (most, changed) for most, changed in ordered[:SIMULATED] if most >= NEAR * ordered[0][0]
    ]
    plan, best, refusal = scenario.plain(name).plan, own, PlanError("")
    for most, changed in near:
        other = changed.plain(name).plan
        if own and other is scenario.plain(name).plan:
            continue
        least = better(best.best) if best and best.best else 0.0
        start = least or SEARCH_FROM * most
        try:
            found = find(changed, Guess(start, least) if start else None)
        except PlanError as error:  # of what else the system has: its exceptions or outages name chips of another plan
            refusal = error
            continue
        if best is None or found.best:
            plan, best = other, found
    if best is None:
        raise refusal
    search = PlanSearch(len(ordered), len(near), best.best.load if best.best else 0.0)
    return BestPlan(plan, best, search, isinstance(scenario.workload, ClosedLoop))


def better(trial: LoadTrial) -> float:
    """Return the load that another plan must take to be better than one that takes a trial's."""
    more = BETTER * trial.load
    return float(max(math.ceil(more), round(trial.load) + 1)) if trial.closed else more


def ranked(scenario: Scenario, name: str) -> list[tuple[float, Scenario]]:
    """Return the bound of each plan that fits the only system of a scenario, and the scenario with it; the highest bound first.

    Raises: PlanError where none fits.
    """
    workload, slo = scenario.workload, scenario.slo or SLO()
    think = workload.think if isinstance(workload, ClosedLoop) else None
    bounds: dict[
        tuple[object, ...], tuple[float, Scenario]
    ] = {}  # by degrees: the system's own plan is among the others again
    first, refusal = None, None
    for plan in plans(scenario, name):
        system = scenario.plain(name).model_copy(update={"plan": plan})
        changed = scenario.model_copy(update={"systems": {name: system}})
        try:
            deployment = changed.deploy(name)
        except PlanError as error:
            refusal = error
            continue  # the topology joins fewer chips than a replica would have
        first = first or deployment
        degrees = tuple(getattr(deployment.layout.plan, key) for key in (*DEGREES, "kv"))
        if deployment.fit.fits and degrees not in bounds:
            bounds[degrees] = (
                bound(deployment, workload.mean_prompt, workload.mean_output, slo, think),
                changed,
            )
    if refusal and not first:
        raise refusal
    if not bounds:
        chips, model = (
            scenario.plain(name).hardware[1],
            (scenario.plain(name).model or scenario.model).id,
        )
        fewest = minimum_chips(first.bare, scenario.request_tokens) if first else None
        hint = (
            f"try {fewest[0]} chips"
            if fewest
            else "try another chip, as no number of these would do"
        )
        raise PlanError(
            f"{scenario.where(name)}.plan: got no plan of {chips} chips that holds {model}; expected one; {hint}"
        )
    return sorted(bounds.values(), key=lambda each: -each[0])


def plans(scenario: Scenario, name: str) -> Iterator[Plan]:
    """Yield every way to deal the chips of a system out, and its own plan first where it has degrees."""
    system = scenario.plain(name)
    model, chips, own = system.model or scenario.model, system.hardware[1], system.plan
    if own.search is None:
        yield own
    for tensor, data, expert in stage_shapes(model, chips):
        group = tensor * data
        for replicas in (
            n for n in range(1, min(chips // group, MOST_REPLICAS) + 1) if chips % (group * n) == 0
        ):
            pipeline = chips // (group * replicas)
            if pipeline > len(model.blocks):
                continue
            degrees = dict(zip(DEGREES, (tensor, data, expert, pipeline, replicas), strict=True))
            for kv in own.kv if isinstance(own.kv, tuple) else (own.kv,):
                yield own.model_copy(update=degrees | {"kv": kv, "search": None, "slots": None})


def bound(
    deployment: Deployment, prompt: float, output: float, slo: SLO, think: Seconds | None = None
) -> float:
    """Return about how many requests a second all replicas can take: a step without gaps at the slowest stage.

    With a pause `think`, the users of a closed loop instead.  By Little's law they are that rate times what passes between two
    requests of a user: the first token, the answer, and the pause.  Where all room is taken, the first token comes as late as
    the SLO allows; else no request waits, and more users slow the steps down.

    With k sequences and their part of prompts, c = k prompt / (output - 1) tokens, in each of M micro-batches, a step takes the
    slowest stage t and k / (output - 1) requests end with it: k / (output - 1) / t, for the best k that the KV cache, the
    engine's limits and the SLO's TPOT allow.  Where a step has room for less than a sequence and its part of prompts, each token
    takes its share of a step.
    """
    limits, replicas = deployment.limits, deployment.layout.plan.replicas
    steps, context = max(1.0, output - 1), prompt + output / 2
    held = limits.max_concurrent(math.ceil(prompt + output))
    if not held:
        return 0.0
    in_flight = limits.fill or limits.micro_batches
    most = max(1, min(held // in_flight, int(limits.token_budget * steps / (prompt + steps))))
    best = 0.0
    for k in sorted({min(most, round(2 ** (n / 2))) for n in range(2 * most.bit_length() + 2)}):
        tokens = k * (prompt + steps) / steps  # of a step
        shares = max(1.0, tokens / limits.token_budget)  # steps that they take
        piece = 0 if shares > 1 and k == 1 else round(k * prompt / steps)
        time, unloaded = _times(deployment, k, context, piece, prompt)
        tpot = max(in_flight * time, unloaded)
        if slo.tpot is None or tpot <= slo.tpot:
            rate = k / steps / (time * shares)
            if think is not None:
                answer = steps * tpot
                waits = [slo.ttft, slo.e2el and max(0.0, slo.e2el - answer)]
                wait = (
                    min((limit for limit in waits if limit is not None), default=0.0)
                    if k == most
                    else 0.0
                )
                wait = max(wait, _first_token(deployment, prompt))
                rate *= wait + answer + think
            best = max(best, rate)
    return replicas * best


def _first_token(deployment: Deployment, prompt: float) -> Seconds:
    """Return about the TTFT of an unloaded request: its pieces enter one after another, and the last passes all stages."""
    piece = min(deployment.limits.token_budget, max(1, round(prompt)))
    time, unloaded = _times(deployment, 0, 0.0, piece, prompt)
    return (math.ceil(prompt / piece) - 1) * time + unloaded


def _times(
    deployment: Deployment, decodes: int, context: float, piece: int, prompt: float
) -> tuple[Seconds, Seconds]:
    """Return the time of a step on the slowest stage, and through all stages."""
    costs, window = deployment.costs, deployment.limits.window or math.inf
    work = Work(
        decodes, decodes * context, logits=decodes, windowed_context=decodes * min(context, window)
    )
    if piece:
        work.prompt_tokens, work.chunks, work.cached = (
            piece,
            max(1, round(piece / prompt)),
            piece + prompt / 2,
        )
        work.attended, work.windowed_attended = piece * prompt / 2, piece * min(prompt / 2, window)
        work.windowed_cached = min(work.cached, piece + window)
    stages = costs.step(work).time
    return float(stages.max()), float(stages.sum() + costs.hops(work.tokens).sum()) + costs.back
