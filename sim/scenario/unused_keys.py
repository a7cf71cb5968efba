"""Keys that a scenario sets without any effect on their system, and why.

    unused_keys(scenario, "h100", deployment)  # ['router has no effect: there is one replica']

Keys that a kind of system never simulates are errors instead (`checks`).
Left out: limits that only a higher load reaches, such as `max_waiting`; keys in files of the
catalogue, such as those of an engine.
"""

from collections.abc import Iterator

from sim.cost.layout import Layout
from sim.cost.plan import Plan
from sim.planning.deployment import Deployment
from sim.scenario.pools import Pools, parts_with_chips
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.serving.policy import by_priority


def unused_keys(scenario: Scenario, name: str, deployment: Deployment) -> list[str]:
    """Return a line for each key of a plain system that is set and has no effect."""
    parts = parts_with_chips(scenario.systems, name)
    layouts = deployment.layout, *(other.layout for other in deployment.others)
    unused = {
        ".".join((*path, "plan", key)): why
        for (path, part), layout in zip(parts.items(), layouts, strict=True)
        for key, why in _unused_of_plan(part.plan, layout)
    }
    system = scenario.plain(name)
    of_system = _unused_of_requests(scenario, system)
    if "router" in system.model_fields_set and not _has_choice(scenario, name, deployment):
        of_system["router"] = "there is one replica"
    own_path = next(iter(parts))  # ("attention",) with an FFN pool, else ()
    unused |= {".".join((*own_path, key)): why for key, why in of_system.items()}
    return [f"{key} has no effect: {why}" for key, why in unused.items()]


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
