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
from sim.scenario.pools import key_path, parts_with_chips
from sim.scenario.scenario import Scenario
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
    plan, units = deployment.layout.plan, []
    deployed = [(deployment.own_chips, deployment.load)]
    deployed += [(other.chips, other.load) for other in deployment.others]
    parts = parts_with_chips(scenario.systems, name)
    for (path, system), (own, load) in zip(parts.items(), deployed, strict=True):
        if not (faults := system.faults):
            continue
        together = own // plan.replicas
        if path == ("attention",):
            with errors_below("attention"):
                part_groups(faults, own)
            together = math.lcm(plan.tensor, faults.chips_per_node)
        units.append(FailingUnit(path, faults, together, load))
    return units


def outages_by_path(scenario: Scenario, name: str) -> dict[tuple[str, ...], tuple[Outage, ...]]:
    """Return the outages of a system, by the path of the keys of the system that has them."""
    return {
        (*key_path(scenario.systems, member), *path): system.outages
        for member in scenario.members(name)
        for path, system in parts_with_chips(scenario.systems, member).items()
        if system.outages
    }


def outage_times(scenario: Scenario, name: str) -> list[tuple[Seconds, Seconds]]:
    """Return start and end of the outages of a system's replicas or pools [s]."""
    outages = outages_by_path(scenario, name).values()
    return [(outage.at, outage.at + outage.lasts) for some in outages for outage in some]
