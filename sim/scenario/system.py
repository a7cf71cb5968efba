"""A system of a scenario: chips, engine, plan and scheduling; or a fleet of systems."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sim.chipsim.exceptions import ExceptionField
from sim.cost.plan import MOST_REPLICAS, Plan, PlanField
from sim.hardware.chip import Chip, ChipField, ClusterField
from sim.hardware.engine import EngineField, NetworkMode, Sigma
from sim.hardware.topology import Topology, TopologyField
from sim.inputs.errors import error_at_path
from sim.inputs.values import Change, Entry, Value
from sim.model.transformer import ModelField
from sim.reliability.failures import Faults
from sim.reliability.link_errors import LinkErrors
from sim.serving.policy import BATCHINGS, BatchingField, OrderField, Policies, RouterField
from sim.serving.replica import Outage
from sim.units import Count, Fraction, Seconds, Tokens

MOST_CHIPS = 1_000_000  # of a system; a hundred times the largest system on the market


def too_many_replicas(replicas: int) -> str:
    """Return the error text for too many replicas of a system."""
    return (
        f"got {replicas:,} replicas; expected at most {MOST_REPLICAS:,}, since each is simulated "
        "by itself; try a part of them under a part of the load"
    )


class System(Value):
    """Chips, their engine, the plan of the model on them, and the options of the scheduler.

    The options default to those of the engine and the chip.

    Hardware: `chips` of a `chip`, or a `cluster`.  With a cluster, `chips` may be a part of it.

    Scheduling:
    `policy`: the next work of a micro-batch, of at most `micro_batch` sequences.
    `order`: the next request.
    `admission`: reserve KV cache for the whole output, or for the prompt.  With the latter the
    youngest sequence is preempted when the KV cache is full.
    `prefix_caching`: keep the blocks of prompts.
    `max_waiting`: waiting requests, above which new ones are refused.
    `deadline`: time after which an unfinished request is cancelled.
    `router`: the replica of a request.
    `max_sequences`: sequences in all micro-batches of a replica.
    `token_budget`: tokens of a step of one micro-batch.
    The last two are for each attention rank if the engine has `limits_per: rank`.

    `fidelity` may differ from that of the scenario.  At chip fidelity `network` and `jitter`
    replace those of the engine, and `exceptions` are chips and links that differ.

    `faults`: parts that fail over months; the availability is simulated as well.
    Requests are served while the system works, except for `outages` and `link_errors`.
    `outages`: times at which replicas fail.  `link_errors`: steps that are repeated.
    """

    chip: ChipField | None = None
    chips: Count | None = None
    cluster: ClusterField | None = None
    engine: EngineField
    plan: PlanField = Plan()
    model: ModelField | None = None
    topology: TopologyField | None = None
    token_budget: Tokens | None = None
    max_sequences: Count | None = None
    kv_tokens: Tokens | None = None
    memory_fraction: Fraction | None = None
    request_overhead: Seconds = 0.0
    # Tokens to experts: by expected loads, or sampled in each step.
    routing: Literal["expected", "sampled"] = "expected"
    policy: BatchingField | None = None
    micro_batch: Count | None = None
    order: OrderField = Field(default="first-come-first-served", validate_default=True)
    admission: Literal["reserve", "prompt"] | None = None
    prefix_caching: bool = False
    max_waiting: Annotated[int, Field(ge=0)] | None = None
    deadline: Annotated[Seconds, Field(gt=0)] | None = None
    router: RouterField = Field(default="least-loaded", validate_default=True)
    fidelity: Literal["stage", "chip"] | None = None
    network: NetworkMode | None = None
    jitter: Sigma | None = None
    exceptions: tuple[ExceptionField, ...] = ()
    faults: Faults | None = None
    outages: tuple[Outage, ...] = ()
    link_errors: LinkErrors | None = None

    @model_validator(mode="after")
    def _hardware(self) -> "System":
        if self.cluster is None and (self.chip is None or self.chips is None):
            raise ValueError("name a chip and how many chips, or a cluster")
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
    def changed(self) -> dict[str, Change]:
        """The changes of the entries that its parts are like, by dotted key.

        A key is 'chip.memory.sram.capacity'.
        """
        parts: dict[str, Entry | None] = {
            "model": self.model,
            "chip": self.chip,
            "cluster": self.cluster,
            "engine": self.engine,
        }
        parts |= {"cluster.chip": self.cluster.chip} if self.cluster else {}
        parts |= {
            f"exceptions.{number}.like": each.like for number, each in enumerate(self.exceptions)
        }
        return {
            f"{name}.{key}": change
            for name, part in parts.items()
            if part
            for key, change in part.changed.items()
        }

    @property
    def policies(self) -> Policies:
        """The policies of its scheduler."""
        return Policies(
            batching=self.policy or BATCHINGS[self.engine.policy],
            order=self.order,
            router=self.router,
            reserve=(self.admission or self.engine.admission) == "reserve",
            prefix_caching=self.prefix_caching,
            max_waiting=self.max_waiting,
            deadline=self.deadline,
            size=self.micro_batch,
        )

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


class Fleet(Value):
    """Replicas of different systems behind one router.

    `fleet`: other systems of the scenario, and the number of copies of each.
    Each copy has all options of its system except `router`.  The router of the fleet distributes
    requests over the replicas of all copies, in the order of the systems' names in `fleet`.
    All members serve the same model.
    """

    fleet: dict[str, Count]
    router: RouterField = Field(default="least-loaded", validate_default=True)

    @field_validator("fleet")
    @classmethod
    def _some(cls, fleet: dict[str, int]) -> dict[str, int]:
        if not fleet:
            raise ValueError("name at least one system, and how many copies of it")
        return fleet
