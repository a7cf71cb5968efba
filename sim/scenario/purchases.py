"""The chips that a system's owner buys, and what they cost."""

from typing import TYPE_CHECKING

from sim.economics.owner_costs import Capex, OwnerCosts, system_capex
from sim.hardware.chip import Chip
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.pools import key_path, member_system

if TYPE_CHECKING:
    from sim.scenario.scenario import Scenario


def owned_chips(scenario: "Scenario", name: str) -> dict[str, tuple[Chip, int]]:
    """Return the kind and number of chips of a plain system, by the key of their owner costs.

    A system of attention and FFN pools has two keys, such as 'afd.attention' and 'afd.ffn'. The
    chips of a drafter have the key 'spec.draft', or the name of their system.
    """
    system, key = member_system(scenario.systems, name), ".".join(key_path(scenario.systems, name))
    if isinstance(system, AttentionFfn):
        return {f"{key}.{pool}": own.hardware[:2] for pool, own in system.pools.items()}
    plain = scenario.plain(name)
    chips = {key: plain.hardware[:2]}
    if drafter := plain.drafter:
        chips[drafter.name or f"{key}.draft"] = drafter.hardware[:2]
    return chips


def purchase(scenario: "Scenario", name: str, copies: int = 1) -> Capex | None:
    """Return the cost to buy copies of a plain system, with spares; None if a price is unknown."""
    parts: list[Capex] = []
    for key, (chip, chips) in owned_chips(scenario, name).items():
        own = scenario.money.systems.get(key, OwnerCosts())
        spares = scenario.spare_chips(name, other=bool(parts))
        if (part := system_capex(chip, chips + spares, own)) is None:
            return None
        parts.append(part)
    return Capex(*map(sum, zip(*parts, strict=True))).times(copies)
