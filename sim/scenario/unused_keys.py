"""Keys that a scenario sets and that change nothing in their system, with the reason.

    unused_keys(scenario, "h100", deployment)  # ['router has no effect: there is one replica']

Keys that a kind of system never simulates are refused instead (`checks`).
Left out: numbers that only bind under another load, such as `max_waiting`, and values of files.
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
    of_scheduler = _unused_of_requests(scenario, system)
    if "router" in system.model_fields_set and not _routes(scenario, name, deployment):
        of_scheduler["router"] = "there is one replica"
    own = next(iter(parts))  # of an attention pool: its name
    unused |= {".".join((*own, key)): why for key, why in of_scheduler.items()}
    return [f"{key} has no effect: {why}" for key, why in unused.items()]


def _unused_of_plan(plan: Plan, layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield the keys of a plan that have no effect on a layout, and why."""
    of, blocks = layout.plan, layout.model.blocks
    if plan.dispatch and not (of.attention_data > 1 and any(block.experts for block in blocks)):
        yield "dispatch", "no attention rank sends tokens to experts of its pool"
    if plan.balance != "time" and of.pipeline == 1:
        yield "balance", "there is one stage"
    if plan.kv_split != "heads" and not any(
        layout.kv_parts(mixer) > 1 for block in blocks for mixer in block.mixers
    ):
        yield "kv_split", f"tensor {of.tensor} does not exceed the KV heads"


def _unused_of_requests(scenario: Scenario, system: System) -> dict[str, str]:
    """Return the keys that need requests of a kind that the workload does not have, and why."""
    wanted = {"order": system.order is by_priority, "prefix_caching": system.prefix_caching}
    if not any(wanted.values()):
        return {}
    requests = scenario.workload.draw(scenario.seed)
    lacks = {
        "order": requests.priority is None and "all requests have equal priority",
        "prefix_caching": not requests.has_prefixes and "no two prompts begin alike",
    }
    return {key: why for key, why in lacks.items() if wanted[key] and why}


def _routes(scenario: Scenario, name: str, deployment: Deployment) -> bool:
    """Return whether the router of a plain system has several replicas to choose from."""
    pools = [system for system in scenario.systems.values() if isinstance(system, Pools)]
    if name in scenario.systems and any(name in of.named.values() for of in pools):
        return True  # its router is that of the pool, which may have copies
    owner = name if name in scenario.systems else name.rsplit(".", 1)[0]
    return scenario.members(owner)[name] * deployment.layout.plan.replicas > 1
