"""Keys that a scenario sets without any effect on their system, and why.

    unused_keys(scenario, "h100", deployment)  # ['router has no effect: there is one replica']

Keys that a kind of system never simulates are errors instead (`checks`).
Left out: limits that only a higher load reaches, such as `max_waiting`; keys in files of the
catalogue, if the scenario does not change them; keys that only the sweep sets.
"""

import json
from collections.abc import Iterator, KeysView, Set
from contextlib import suppress

from sim.cost.layout import Layout
from sim.cost.plan import Plan, PlanError
from sim.inputs.errors import ScenarioError
from sim.planning.deployment import Deployment
from sim.scenario.pools import Pools, parts_with_chips
from sim.scenario.scenario import Scenario, scenario_from
from sim.scenario.sweep_field import point_document, point_sources
from sim.scenario.system import System
from sim.scenario.unused_numbers import unused_of_engine
from sim.serving.policy import by_priority

WHAT_MATTERS = ("systems", "model", "workload")  # first parts of keys that a note depends on


def unused_keys(scenario: Scenario, name: str, deployment: Deployment) -> list[str]:
    """Return a line for each key of a plain system that is set and has no effect.

    A key that has an effect at a point of the scenario's sweep is not one of them.
    """
    unused = _unused_here(scenario, name, deployment)
    points = _points_of_sweep(scenario)
    while unused and (point := next(points, None)):
        used = _used_at_point(point, name, unused.keys())
        unused = {key: why for key, why in unused.items() if key not in used}
    return [f"{key} has no effect: {why}" for key, why in unused.items()]


def _unused_here(scenario: Scenario, name: str, deployment: Deployment) -> dict[str, str]:
    """Return the keys of a plain system that have no effect without the sweep, and why."""
    parts = parts_with_chips(scenario.systems, name)
    layouts = deployment.layout, *(other.layout for other in deployment.others)
    unused = {
        ".".join((*path, "plan", key)): why
        for (path, part), layout in zip(parts.items(), layouts, strict=True)
        for key, why in _unused_of_plan(part.plan, layout)
    } | {
        ".".join((*path, "engine", key)): why
        for (path, part), layout in zip(parts.items(), layouts, strict=True)
        for key, why in unused_of_engine(path, part, layout)
    }
    system = scenario.plain(name)
    of_system = _unused_of_requests(scenario, system)
    if "router" in system.model_fields_set and not _has_choice(scenario, name, deployment):
        of_system["router"] = "there is one replica"
    own_path = next(iter(parts))  # ("attention",) with an FFN pool, else ()
    return unused | {".".join((*own_path, key)): why for key, why in of_system.items()}


def _points_of_sweep(scenario: Scenario) -> Iterator[Scenario]:
    """Yield the points of a sweep whose systems or requests differ, and that can be read."""
    if scenario.sweep is None or scenario.document is None:
        return
    seen = set[str]()
    for sources in point_sources(scenario.sweep):
        kept = {key: of for key, of in sources.items() if key.split(".")[0] in WHAT_MATTERS}
        document, values, error = point_document(scenario.document, kept)
        if error or (digest := json.dumps(values, sort_keys=True)) in seen:
            continue
        seen.add(digest)
        with suppress(ScenarioError):
            yield scenario_from(document)


def _used_at_point(point: Scenario, name: str, keys: KeysView[str]) -> Set[str]:
    """Return which of the keys have an effect at a point of a sweep; none if it cannot be run.

    A plan that is searched at each point may give all of them an effect.
    """
    try:
        if point.plain(name).plan.search == "capacity":
            return keys
        return keys - _unused_here(point, name, point.deploy(name)).keys()
    except (KeyError, PlanError):
        return set()


def _unused_of_plan(plan: Plan, layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield the keys of a plan that have no effect on a layout, and why."""
    resolved, blocks = layout.plan, layout.model.blocks
    has_experts = any(block.experts for block in blocks)
    splits_cache = any(layout.kv_parts(mixer) > 1 for block in blocks for mixer in block.mixers)
    if plan.dispatch and resolved.attention_data == 1:
        yield "dispatch", "there is one attention rank"
    elif plan.dispatch and not has_experts:
        yield "dispatch", "no layer on these chips has experts"
    if plan.balance != "time" and resolved.pipeline == 1:
        yield "balance", "there is one stage"
    if plan.kv_split != "heads" and not splits_cache:
        yield "kv_split", f"tensor {resolved.tensor} does not exceed the KV heads"


def _unused_of_requests(scenario: Scenario, system: System) -> dict[str, str]:
    """Return the keys that have no effect on the requests of the workload, and why."""
    sorts = system.order is by_priority
    if not (sorts or system.prefix_caching):
        return {}  # drawing the requests takes time
    requests, unused = scenario.workload.draw(scenario.seed), {}
    if sorts and requests.priority is None:
        unused["order"] = "all requests have equal priority"
    if system.prefix_caching and not requests.has_prefixes:
        unused["prefix_caching"] = "no two prompts begin alike"
    return unused


def _has_choice(scenario: Scenario, name: str, deployment: Deployment) -> bool:
    """Return whether the router of a plain system has several replicas to choose from.

    Left out: how many copies pools have of a system that they name. They may be several.
    """
    pools = [system for system in scenario.systems.values() if isinstance(system, Pools)]
    if name in scenario.systems and any(name in of.named.values() for of in pools):
        return True
    owner = name if name in scenario.systems else name.rsplit(".", 1)[0]
    return scenario.members(owner)[name] * deployment.layout.plan.replicas > 1
