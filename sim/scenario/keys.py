"""The keys of a scenario."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from sim.economics.owner_costs import Economics
from sim.inputs.values import Value
from sim.model.transformer import ModelField
from sim.results.metrics import Measure
from sim.results.ordering import OrderKey
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.pools import POOLS, AnySystem, Pools, plain_system
from sim.scenario.sweep_field import SweepField
from sim.scenario.system import Fleet, System
from sim.workload.kinds import WorkloadField
from sim.workload.slo import SLO, SLOField, shortest_limits


def _system_of_kind(value: object, info: ValidationInfo) -> object:
    """Return a fleet if a mapping has the key `fleet`, pools if it has some, else a system.

    Without this choice an error would list the problems of all classes.
    """
    if not isinstance(value, Mapping):
        return value
    kind: type[AnySystem] = Fleet if "fleet" in value else System
    if any(pool in value for pool in POOLS):
        kind = Pools
    elif "attention" in value or "ffn" in value:
        kind = AttentionFfn
    return kind.model_validate(value, context=info.context)


class ScenarioKeys(Value):
    """The keys of a scenario, not yet checked against each other."""

    id: str = Field(
        default="scenario",
        description="Name of the scenario in results; by default the file's name.",
    )
    model: ModelField = Field(
        description="Model that all systems serve, unless a system names its own."
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Seed of all random draws; the same seed gives the same requests."
    )
    fidelity: Literal["stage", "chip"] = Field(
        default="stage",
        description="`stage`: the chips of a stage in lock step; `chip`: every chip a process, "
        "every link a resource.",
    )
    workload: WorkloadField = Field(
        description="Requests that every system serves: arrivals and lengths."
    )
    slo: SLOField | None = Field(
        default=None,
        description="Latency limits that a good request meets, or the name of an MLPerf preset; "
        "default: none.",
    )
    measure: Measure | None = Field(
        default=None, description="Part of the run that is counted; default: the whole run."
    )
    economics: Economics | None = Field(
        default=None,
        description="Rules and prices for $ per token; default: the assumptions of Economics.",
    )
    systems: dict[str, Annotated[AnySystem, BeforeValidator(_system_of_kind)]] = Field(
        description="Systems to compare, by name."
    )
    order_by: OrderKey | None = Field(
        default=None,
        description="Cost or time of a token, by which `run` orders the systems of a closed loop, "
        "with bands.",
    )
    sweep: SweepField = Field(
        default=None,
        description="Keys that `sramsim sweep` varies; all other commands leave it out.",
    )

    @property
    def money(self) -> Economics:
        """The scenario's economics; by default the assumptions of `Economics`."""
        return self.economics or Economics()

    def plain(self, name: str) -> System:
        """Return a system with chips of its own; 'pd.prefill' is the one of that pool.

        With an attention pool and an FFN pool it is the first, which has the scheduler.
        """
        return plain_system(self.systems, name)

    def by_chip(self, name: str) -> bool:
        """Return whether every chip of a plain system is a process."""
        return (self.plain(name).fidelity or self.fidelity) == "chip"

    @property
    def tightest_slo(self) -> SLO | None:
        """The SLO for estimates: see `shortest_limits`. None without an SLO."""
        return shortest_limits(self.workload.slos, self.slo)
