"""The chips that a system's owner buys, and what they cost."""

from typing import TYPE_CHECKING

from sim.economics.owner_costs import Capex, OwnerCosts, system_capex
from sim.hardware.chip import Chip
from sim.scenario.pools import key_path, parts_with_chips
from sim.scenario.speculate import DraftSystem

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario


def owned_chips(scenario: "Scenario", name: str) -> dict[str, tuple[Chip, int]]:
    """Return the kind and number of chips of a plain system, by the key of their owner costs.

    A system of attention and FFN pools has two keys, such as 'afd.attention' and 'afd.ffn'. The
    chips of a drafter have the key 'spec.draft', or the name of their system.
    """
    key, chips = ".".join(key_path(scenario.systems, name)), {}
    for path, part in parts_with_chips(scenario.systems, name).items():
        own = ".".join((key, *path))
        if isinstance(part, DraftSystem):
            own = part.name or f"{key}.draft"
        chips[own] = part.hardware[:2]
    return chips


def purchase(scenario: "Scenario", name: str, copies: int = 1) -> Capex | None:
    """Return the cost to buy copies of a plain system, with spares; None if a price is unknown."""
    parts: list[Capex] = []
    for key, (chip, chips) in owned_chips(scenario, name).items():
        own = scenario.money.systems.get(key, OwnerCosts())
        spares = scenario.spare_chips(name, part=len(parts))
        if (part := system_capex(chip, chips + spares, own)) is None:
            return None
        parts.append(part)
    return Capex(*map(sum, zip(*parts, strict=True))).times(copies)
