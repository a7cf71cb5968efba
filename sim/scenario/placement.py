"""Chips, their engine, and the plan of a model on them: of a system, or of its drafter."""

from pydantic import Field, model_validator

from sim.cost.plan import MOST_REPLICAS, Plan, PlanField
from sim.cost.speculation import Speculation
from sim.hardware.chip import Chip, ChipField, ClusterField
from sim.hardware.engine import EngineField
from sim.hardware.topology import Topology, TopologyField
from sim.inputs.errors import error_at_path
from sim.inputs.values import Entry, Value
from sim.model.transformer import Model
from sim.planning.deployment import DeploymentParts, LimitOverrides
from sim.units import Count, Fraction, Tokens

MOST_CHIPS = 1_000_000  # of a system; a hundred times the largest system on the market


def too_many_replicas(replicas: int) -> str:
    """Return the error text for too many replicas of a system."""
    return (
        f"got {replicas:,} replicas; expected at most {MOST_REPLICAS:,}, since each is simulated "
        "by itself; try a part of them under a part of the load"
    )


class Placement(Value):
    """Chips, their engine, and the plan of a model on them."""

    chip: ChipField | None = Field(
        default=None, description="Kind of chip; left out with `cluster`, which has its own."
    )
    chips: Count | None = Field(
        default=None,
        description="Number of chips, over all replicas; default: all chips of the cluster.",
    )
    cluster: ClusterField | None = Field(
        default=None,
        description="Chips as they are sold, instead of `chip`; `chips` may be a part of it.",
    )
    engine: EngineField = Field(
        description="Inference engine: the losses and limits of the software."
    )
    plan: PlanField = Field(
        default=Plan(),
        description="Layout of the model on the chips; `auto` is short for `{search: speed}`.",
    )
    topology: TopologyField | None = Field(
        default=None,
        description="How the chips are joined; default: the topology of the cluster, or of the "
        "chip.",
    )
    token_budget: Tokens | None = Field(
        default=None,
        description="Most tokens of a step of one micro-batch, or of each rank (`limits_per`); "
        "default: the engine's.",
    )
    kv_tokens: Tokens | None = Field(
        default=None, description="KV cache of a replica [token]; default: what fits into memory."
    )
    memory_fraction: Fraction | None = Field(
        default=None,
        description="Share of a chip's memory that the engine may use, 0 to 1; default: the "
        "engine's.",
    )

    @model_validator(mode="after")
    def _hardware(self) -> "Placement":
        if self.cluster is None and (self.chip is None or self.chips is None):
            got = (
                "no chips" if self.chip else "no chip" if self.chips else "neither chip nor cluster"
            )
            expected = "expected chip and chips, or a cluster; try chip: h100-sxm and chips: 8"
            raise ValueError(f"got {got}; {expected}")
        if self.cluster and self.chip:
            own = self.cluster.chip.id
            reason = f"got {self.chip.id} with cluster {self.cluster.id}, whose chip is {own}"
            reason += "; expected a chip or a cluster; try leaving chip out"
            raise error_at_path(("chip",), self.chip.id, reason)
        if self.cluster and self.chips and self.chips > self.cluster.chips:
            most = self.cluster.chips
            reason = f"got {self.chips}; expected at most the {most} chips of {self.cluster.id}"
            raise error_at_path(("chips",), self.chips, f"{reason}; try {most}")
        if (replicas := self.plan.replicas) > MOST_REPLICAS:
            raise error_at_path(("plan", "replicas"), replicas, too_many_replicas(replicas))
        if (chips := self.hardware[1]) > MOST_CHIPS:
            reason = f"got {chips:,}; expected at most {MOST_CHIPS:,}, since each is listed"
            raise error_at_path(("chips",), chips, f"{reason}; try a part of them")
        return self

    @property
    def entries(self) -> dict[str, Entry | None]:
        """The entries that its parts are, by key; None for those it does not have."""
        parts: dict[str, Entry | None] = {
            "chip": self.chip,
            "cluster": self.cluster,
            "engine": self.engine,
        }
        return parts | ({"cluster.chip": self.cluster.chip} if self.cluster else {})

    @property
    def limits(self) -> LimitOverrides:
        """The limits that replace the engine's."""
        return LimitOverrides(self.token_budget, None, self.kv_tokens, self.memory_fraction)

    def parts(self, model: Model, speculation: Speculation | None = None) -> DeploymentParts:
        """Return a model on these chips, ready to be laid out."""
        chip, chips, topology = self.hardware
        plan = self.plan
        return DeploymentParts(model, chip, chips, self.engine, plan, topology, speculation)

    @property
    def hardware(self) -> tuple[Chip, int, Topology | None]:
        """The chip, the number of chips, and the topology; None for that of the chip."""
        if self.cluster:
            return (
                self.cluster.chip,
                self.chips or self.cluster.chips,
                self.topology or self.cluster.topology,
            )
        assert self.chip
        assert self.chips
        return self.chip, self.chips, self.topology
