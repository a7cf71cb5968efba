"""The limits of attention and FFN pools that are searched for, and one system within them.

>>> Budget(8, 8, ((10.0, 1.0, 1.0),)).attention_chips(4)
6
"""

import math
from dataclasses import dataclass

from sim.cost.plan import PlanError
from sim.economics.owner_costs import OwnerCosts, card_and_server, maximum_power
from sim.hardware.chip import Chip
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.scenario import Scenario
from sim.scenario.system import System


@dataclass(frozen=True)
class Budget:
    """The most chips of each pool, and the limits of both together.

    limits: the limit, and the use of one chip of the attention pool and of the FFN pool.
    """

    attention: int
    ffn: int
    limits: tuple[tuple[float, float, float], ...]

    def attention_chips(self, ffn: int) -> int:
        """Return the chips that an attention pool may have beside `ffn` chips; 0 or less: none."""
        return min(self.attention, self.ordinary_chips(ffn))

    def ordinary_chips(self, ffn: int = 0) -> int:
        """Return the chips of the attention pool's kind within the limits of both pools."""
        # The sum of rounded numbers may exceed a limit that it equals.
        left = ((limit - ffn * of_ffn) / own for limit, own, of_ffn in self.limits)
        return math.floor(min(left) * (1 + 1e-12))


def budget_of(scenario: Scenario, name: str) -> Budget:
    """Return the limits of a system's pools.

    Raises: PlanError if the power or the price of a chip is limited, and not known.
    """
    system = scenario.systems[name]
    assert isinstance(system, AttentionFfn)
    assert system.plan
    limits = [(float(system.plan.chips), 1.0, 1.0)] if system.plan.chips else []
    for key, use in (("power", maximum_power), ("price", _price)):
        if (limit := getattr(system.plan, key)) is None:
            continue
        uses = []
        for pool, own in system.pools.items():
            chip = own.hardware[0]
            used = use(chip, scenario.money.systems.get(f"{name}.{pool}", OwnerCosts()))
            if not used:
                reason = f"got a limit, and the {key} of {chip.id} is not known; expected it in "
                reason += f"the chip's file; try {pool}.chip: {{like: {chip.id}, ...}}, or chips"
                raise PlanError(f"{scenario.where(name, 'plan', key)}: {reason}")
            uses.append(used)
        limits.append((limit, uses[0], uses[1]))
    most = [own.hardware[1] for own in system.pools.values()]
    return Budget(most[0], most[1], tuple(limits))


def _price(chip: Chip, own: OwnerCosts) -> float | None:
    prices = card_and_server(chip, own)
    return sum(prices) if prices else None


def ordinary_system(scenario: Scenario, name: str) -> System:
    """Return one system within the limits of both pools, whose plan is still to be searched for.

    It has the chips and the options of the attention pool, and the precisions of both pools.
    """
    system = scenario.systems[name]
    assert isinstance(system, AttentionFfn)
    attention, experts = system.attention, system.ffn.plan
    chip, _, topology = attention.hardware
    plan = attention.plan.model_copy(
        update={
            "weights": experts.weights,
            "attention": attention.plan.attention or attention.plan.weights,
            "dispatch": attention.plan.dispatch or system.transfer.out,
            "search": "capacity",
        }
    )
    alone = {"chip": chip, "cluster": None, "topology": topology, "plan": plan, "label": None}
    chips = budget_of(scenario, name).ordinary_chips()
    return attention.model_copy(update=alone | {"chips": max(1, chips)})


def alone_with(scenario: Scenario, name: str, system: AttentionFfn | System) -> Scenario:
    """Return the scenario with one system only."""
    return scenario.model_copy(update={"systems": {name: system}})
