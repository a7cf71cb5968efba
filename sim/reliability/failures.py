"""Failures of a system over months: chips, nodes, racks and links, with rates and spares."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sim.inputs.errors import error_at_path
from sim.inputs.values import Sourced, Value
from sim.units import Count, FailuresPerSecond, Seconds


class Failures(Value):
    """The failure rate of a part at work, and the Weibull shape of its life."""

    rate: FailuresPerSecond = Field(description="Failure rate of one part at work [failure/s].")
    shape: Annotated[float, Field(ge=0.1, le=100)] = Field(
        default=1.0,
        description="Weibull shape of its life; 1: exponential (memoryless), below 1: infant "
        "mortality.",
    )

    @property
    def scale(self) -> Seconds:
        """The Weibull scale for a mean life of 1/rate: 1 / (rate Γ(1 + 1/shape))."""
        return 1 / (self.rate * math.gamma(1 + 1 / self.shape))

    def life(self, rng: np.random.Generator) -> Seconds:
        """Return a random life of a new part."""
        return float(self.scale * rng.weibull(self.shape))

    def rest(self, rng: np.random.Generator) -> Seconds:
        """Return a random residual life of a part that was installed long ago.

        A moment falls into a life with a probability in proportion to its length.
        It falls anywhere in that life.  The result is U x, and x has the density x f(x).
        Therefore (x/scale)^shape is Gamma(1 + 1/shape).
        Source: Feller, "An Introduction to Probability Theory", II, XI.4.
        """
        return float(self.scale * rng.gamma(1 + 1 / self.shape) ** (1 / self.shape) * rng.random())


class Faults(Sourced):
    """The parts of a system that fail, each independently of the others, and its spares.

    A node is out from its own failure, or that of one of its chips, until its repair.
    The system needs every rack and link, and all nodes that its chips fill.
    A swap takes `detection` plus the time to load the weights.
    Each replica of a system has its own spares, crews, racks and links.  The availability is
    that of one replica: the share of replicas that work.

    With `age: new` there is no closed form.

    Left out: work without a rack or around a dead link; failures during a repair; common causes.
    """

    chip: Failures | None = Field(
        default=None, description="Failures of one chip, which take its node down; default: none."
    )
    node: Failures | None = Field(
        default=None, description="Failures of one node, besides those of its chips; default: none."
    )
    rack: Failures | None = Field(default=None, description="Failures of one rack; default: none.")
    link: Failures | None = Field(default=None, description="Failures of one link; default: none.")
    chips_per_node: Count = Field(default=1, description="Chips of a node.")
    nodes_per_rack: Count | None = Field(
        default=None,
        description="Nodes at work in a rack, without spares; required with `rack`.",
    )
    links: Count | None = Field(
        default=None,
        description="Number of links, all of which the system needs; required with `link`.",
    )
    spares: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="Standby nodes, which cost and fail as other nodes do."
    )
    spares_per: Literal["system", "rack"] = Field(
        default="system",
        description="Whether `spares` is the number for the system, or for each rack.",
    )
    crews: Count | None = Field(
        default=None,
        description="Parts that are repaired at the same time; default: no part waits.",
    )
    repair: Annotated[Seconds, Field(gt=0)] = Field(
        description="Mean of the exponential repair time [s]."
    )
    detection: Seconds = Field(
        description="Time until a failure is noticed and the spare in place, without loading the "
        "weights [s]."
    )
    age: Literal["settled", "new"] = Field(
        default="settled",
        description="Ages of parts at the start: as after long one-by-one replacement, or all new.",
    )
    model_swap_every: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Interval at which another model of equal size is loaded, as downtime [s]; "
        "default: never.",
    )
    horizon: Annotated[Seconds, Field(gt=0)] = Field(
        description="Simulated time of one system, after a warm-up [s]."
    )
    samples: Annotated[int, Field(ge=2, le=100_000)] = Field(
        description="Number of simulated systems."
    )


@dataclass(frozen=True)
class PartGroup:
    """Parts that can replace each other: the number needed, and the number of spares.

    causes: one for each thing in a part that fails on its own, as a node and each of its chips.
    """

    needed: int
    spares: int
    causes: tuple[Failures, ...]

    @property
    def parts(self) -> int:
        """The number of parts, spares included."""
        return self.needed + self.spares

    @property
    def rate(self) -> FailuresPerSecond:
        """The failure rate of one part."""
        return sum(cause.rate for cause in self.causes)


def part_groups(faults: Faults, chips: int) -> list[PartGroup]:
    """Return the parts of a system whose model needs `chips` chips.

    Raises: ValueError if the chips do not fill nodes, or a key is missing that another one needs.
    """
    _require_countable(faults, chips)
    nodes = chips // faults.chips_per_node
    full, rest = divmod(nodes, faults.nodes_per_rack or nodes)
    racks = [faults.nodes_per_rack or nodes] * full + [rest] * (rest > 0)
    causes = ((faults.node,) if faults.node else ()) + (
        (faults.chip,) * faults.chips_per_node if faults.chip else ()
    )
    groups = [
        PartGroup(needed, faults.spares, causes)
        for needed in (racks if faults.spares_per == "rack" else [nodes])
    ]
    groups += [PartGroup(len(racks), 0, (faults.rack,))] if faults.rack else []
    groups += [PartGroup(faults.links, 0, (faults.link,))] if faults.link and faults.links else []
    if faults.spares and not causes:
        reason = f"got {faults.spares} without a failure rate of nodes; expected chip or node"
        raise error_at_path(
            ("faults", "spares"), faults.spares, f"{reason}; try node: {{rate: 1e-5 failure/h}}"
        )
    return [group for group in groups if group.causes]


def _require_countable(faults: Faults, chips: int) -> None:
    """Raise ValueError if the chips do not fill nodes, or a needed key is missing."""
    size = faults.chips_per_node
    if chips % size:
        near = min((n for n in range(1, chips + 1) if chips % n == 0), key=lambda n: abs(n - size))
        reason = f"got {size}; expected a divisor of {chips}; try {near}"
        raise error_at_path(("faults", "chips_per_node"), size, reason)
    if not (faults.chip or faults.node or faults.rack or faults.link):
        reason = "got no failure rate; expected chip, node, rack or link"
        raise error_at_path(("faults",), None, f"{reason}; try chip: {{rate: 1e-5 failure/h}}")
    if faults.nodes_per_rack is None and (faults.rack or faults.spares_per == "rack"):
        key = "rack" if faults.rack else "spares_per"
        reason = f"got {key} without nodes_per_rack; expected both; try nodes_per_rack: 8"
        raise error_at_path(("faults", key), None, reason)
    if bool(faults.link) != bool(faults.links):
        key, other = ("link", "links") if faults.link else ("links", "link")
        hint = "links: 100" if faults.link else "link: {rate: 1e-7 failure/h}"
        reason = f"got {key} without {other}; expected the rate of a link and the number of links"
        raise error_at_path(("faults", key), None, f"{reason}; try {hint}")


def spare_chips(faults: Faults | None, chips: int) -> int:
    """Return the chips of the spare nodes of a system whose model needs `chips` chips.

    Raises: ValueError as `part_groups` does.
    """
    if not faults or not faults.spares:
        return 0
    return sum(group.spares for group in part_groups(faults, chips)) * faults.chips_per_node
