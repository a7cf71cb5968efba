"""The outages of a system in a run, and the parts whose failures over months are simulated.

A plain system is one unit. An FFN pool is a unit, because no step is made without it, and so is a
drafter on other chips. The nodes that hold whole attention ranks are units, because a dead rank
stops only its own sequences.
"""

import math
from typing import NamedTuple

from sim.inputs.errors import errors_below
from sim.planning.deployment import Deployment
from sim.reliability.failures import Faults, part_groups
from sim.scenario.pools import attention_ffn, key_path
from sim.scenario.scenario import Scenario
from sim.scenario.speculate import DRAFTER_PATH, DraftSystem
from sim.scenario.system import System
from sim.serving.replica_config import Outage
from sim.units import Seconds


class FailingUnit(NamedTuple):
    """Chips that work or fail together, of which a system may have several.

    path: keys of its pool or its drafter below the system; empty for a plain system.
    load: time to load the weights [s]; None if the chip's file has no host link.
    """

    path: tuple[str, ...]
    faults: Faults
    chips: int
    load: Seconds | None


def failing_units(scenario: Scenario, name: str, deployment: Deployment) -> list[FailingUnit]:
    """Return a unit of each kind that fails; a request needs one of each.

    Raises: ValueError if the nodes of an attention pool are not full.
    """
    system, plan = attention_ffn(scenario.systems, name), deployment.layout.plan
    if system is None or deployment.ffn is None:
        plain, drafting = scenario.plain(name), deployment.drafter
        parts: list[tuple[tuple[str, ...], Faults | None, int, Seconds | None]] = [
            ((), plain.faults, deployment.own_chips, deployment.load)
        ]
        if drafting and plain.drafter:
            parts.append((DRAFTER_PATH, plain.drafter.faults, drafting.chips, drafting.load))
        return [
            FailingUnit(path, faults, chips // plan.replicas, load)
            for path, faults, chips, load in parts
            if faults
        ]
    units = []
    if faults := system.attention.faults:
        with errors_below("attention"):
            part_groups(faults, deployment.own_chips)
        rank = math.lcm(plan.tensor, faults.chips_per_node)
        units.append(FailingUnit(("attention",), faults, rank, deployment.load))
    if faults := system.ffn.faults:
        ffn = deployment.ffn
        units.append(FailingUnit(("ffn",), faults, ffn.chips, ffn.load))
    return units


def outages_by_path(scenario: Scenario, name: str) -> dict[tuple[str, ...], tuple[Outage, ...]]:
    """Return the outages of a system, by the path of the keys of the system that has them."""
    failing: dict[tuple[str, ...], System | DraftSystem] = {}
    for member in scenario.members(name):
        path, both = key_path(scenario.systems, member), attention_ffn(scenario.systems, member)
        if both:
            failing |= {(*path, pool): system for pool, system in both.pools.items()}
        else:
            failing[path] = plain = scenario.plain(member)
            if plain.drafter:
                failing[(*path, *DRAFTER_PATH)] = plain.drafter
    return {path: system.outages for path, system in failing.items() if system.outages}


def outage_times(scenario: Scenario, name: str) -> list[tuple[Seconds, Seconds]]:
    """Return start and end of the outages of a system's replicas or pools [s]."""
    outages = outages_by_path(scenario, name).values()
    return [(outage.at, outage.at + outage.lasts) for some in outages for outage in some]
