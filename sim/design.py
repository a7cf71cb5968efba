"""The plan with the highest goodput: every way to lay a model on a system's chips, bounded first, the best few simulated.

    from sim.design import best_plans
    best_plans(sim.read("llama2-70b-lpu-vs-h100"), 0.9)["h100x8"].plan

A bound takes a fraction of a second and a capacity many seconds, so bounds decide which plans are simulated.  A bound is an
estimate, no proof: it assumes steps without gaps, requests of mean length, and no waiting.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sim.capacity import SystemCapacity, Trial, capacity
from sim.cost import Work
from sim.files import UserError
from sim.metrics import SLO
from sim.plan import Plan, PlanError
from sim.planner import Deployment, shapes
from sim.scenario import Scenario, System
from sim.units import Seconds
from sim.workload import Closed

SIMULATED = 5  # plans with the highest bounds
NEAR = 0.75  # of the highest bound: plans below are not simulated, for bounds are no farther off than that
SEARCH_FROM = 0.9  # of a plan's bound: the first load that is tried
DEGREES = ("tensor", "attention_data", "expert", "pipeline", "replicas")


@dataclass(frozen=True, eq=False)
class BestPlan:
    """The plan of a system that takes the highest load, and what was looked at to find it.

    `considered` counts the plans that fit, `simulated` those whose capacity was searched.
    """

    plan: Plan
    capacity: SystemCapacity
    considered: int
    simulated: int

    def as_json(self) -> dict[str, Any]:
        """What `capacity --plans --json` tells of it."""
        best = self.capacity.best
        told = {"max_goodput_rate": best.load if best else 0.0, "attainment": best.attainment if best else None}
        return {"plan": self.degrees, **told, "considered": self.considered, "simulated": self.simulated}

    @property
    def degrees(self) -> dict[str, int | str | None]:
        """The degrees of the plan, as a scenario writes them, and the precision of its KV cache."""
        resolved = next(iter(self.capacity.members.values())).deployment.layout.plan
        return {key: getattr(resolved, key) for key in (*DEGREES, "kv")}


def best_plans(
    scenario: Scenario,
    attainment: float,
    requests: int | None = None,
    progress: Callable[[str, Trial], None] = lambda system, trial: None,
) -> dict[str, BestPlan]:
    """Return for each plain system the plan of its chips with the highest goodput under the scenario's SLO.

    Degrees, replicas and attention data parallelism vary; precisions, the engine and the number of chips are the system's own.
    Left out: fleets, whose members are searched alone, and chips that a plan leaves unused.

    Raises: UserError for a closed loop, or as `capacity` does; PlanError if no plan of a system fits.
    """
    if isinstance(scenario.workload, Closed) or scenario.slo is None:
        raise UserError(f"capacity {scenario.id} --plans: got no rate of requests and slo; expected both; try a poisson workload")
    plain = (name for name, system in scenario.systems.items() if isinstance(system, System))
    return {name: best_plan(scenario, scenario.slo, name, attainment, requests, progress) for name in plain}


def best_plan(
    scenario: Scenario,
    slo: SLO,
    name: str,
    attainment: float,
    requests: int | None,
    progress: Callable[[str, Trial], None],
) -> BestPlan:
    """Return the best plan of one system.  Raises: PlanError if none fits."""
    prompt, output = scenario.workload.mean_prompt, scenario.workload.mean_output
    bounds: dict[tuple[object, ...], tuple[float, Scenario]] = {}  # by degrees: the system's own plan is among the others again
    for plan in plans(scenario, name):
        changed = scenario.model_copy(update={"systems": {name: scenario.plain(name).model_copy(update={"plan": plan})}})
        try:
            deployment = changed.deploy(name)
        except PlanError:
            continue  # the topology joins fewer chips than a replica would have
        degrees = tuple(getattr(deployment.layout.plan, key) for key in DEGREES)
        if deployment.fit.fits and degrees not in bounds:
            bounds[degrees] = bound(deployment, prompt, output, slo), changed
    if not bounds:
        raise PlanError(f"systems.{name}: no plan of its chips holds {(scenario.plain(name).model or scenario.model).id}")
    ordered = sorted(bounds.values(), key=lambda each: -each[0])
    tried = [each for each in ordered[:SIMULATED] if each[0] >= NEAR * ordered[0][0]]
    found: list[tuple[float, SystemCapacity, Plan]] = []
    for most, changed in tried:
        result = capacity(changed, attainment, requests, progress, start=SEARCH_FROM * most or None).systems[name]
        found.append((result.best.load if result.best else 0.0, result, changed.plain(name).plan))
    _, best, plan = max(found, key=lambda each: each[0])
    return BestPlan(plan, best, len(bounds), len(tried))


def plans(scenario: Scenario, name: str) -> Iterator[Plan]:
    """Yield every way to deal the chips of a system out, and its own plan first."""
    system = scenario.plain(name)
    model, chips, own = system.model or scenario.model, system.hardware[1], system.plan
    if own.search is None:
        yield own
    for tensor, data, expert in shapes(model, chips):
        group = tensor * data
        for replicas in (n for n in range(1, chips // group + 1) if chips % (group * n) == 0):
            pipeline = chips // (group * replicas)
            if pipeline <= len(model.blocks):
                degrees = dict(zip(DEGREES, (tensor, data, expert, pipeline, replicas), strict=True))
                yield own.model_copy(update=degrees | {"search": None, "slots": None})


def bound(deployment: Deployment, prompt: float, output: float, slo: SLO) -> float:
    """Return about how many requests a second all replicas can take: a step without gaps at the slowest stage.

    With k sequences and their part of prompts, c = k prompt / (output - 1) tokens, in each of M micro-batches, a step takes the
    slowest stage t and k / (output - 1) requests end with it: k / (output - 1) / t, for the best k that the KV cache, the
    engine's limits and the SLO's TPOT allow.  Where a step has room for less than a sequence and its part of prompts, each token
    takes its share of a step.
    """
    limits, replicas = deployment.limits, deployment.layout.plan.replicas
    steps, context = max(1.0, output - 1), prompt + output / 2
    held = limits.held(math.ceil(prompt + output))
    if not held:
        return 0.0
    in_flight = limits.fill or limits.slots
    most = max(1, min(held // in_flight, int(limits.token_budget * steps / (prompt + steps))))
    best = 0.0
    for k in sorted({min(most, round(2 ** (n / 2))) for n in range(2 * most.bit_length() + 2)}):
        tokens = k * (prompt + steps) / steps  # of a step
        shares = max(1.0, tokens / limits.token_budget)  # steps that they take
        piece = 0 if shares > 1 and k == 1 else round(k * prompt / steps)
        time, unloaded = _times(deployment, k, context, piece, prompt)
        tpot = max(in_flight * time, unloaded)
        if slo.tpot is None or tpot <= slo.tpot:
            best = max(best, k / steps / (time * shares))
    return replicas * best


def _times(deployment: Deployment, decodes: int, context: float, piece: int, prompt: float) -> tuple[Seconds, Seconds]:
    """Return the time of a step on the slowest stage, and through all stages."""
    costs, window = deployment.costs, deployment.limits.window or math.inf
    work = Work(decodes, decodes * context, logits=decodes, windowed_context=decodes * min(context, window))
    if piece:
        work.prompt_tokens, work.chunks, work.cached = piece, max(1, round(piece / prompt)), piece + prompt / 2
        work.attended, work.windowed_attended = piece * prompt / 2, piece * min(prompt / 2, window)
        work.windowed_cached = min(work.cached, piece + window)
    stages = costs.step(work).time
    return float(stages.max()), float(stages.sum() + costs.hops(work.tokens).sum()) + costs.back
