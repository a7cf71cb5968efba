"""The capacities of a scenario's systems as a result: typed, as a table, and as JSON.

capacity(sim.read("llama2-70b-lpu-vs-h100")).table  # a row for each system
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sim.inputs.key_paths import JsonObject, scalar_values
from sim.results.capacity_summary import (
    BestPlanSummary,
    CapacityOfSystem,
    CapacitySummary,
    TraceScale,
)
from sim.results.encoding import json_object
from sim.results.labels import format_number
from sim.results.summary import TokenCosts
from sim.results.system_identity import max_goodput
from sim.scenario.replicas import Member
from sim.scenario.scenario import Scenario
from sim.studies.identity import system_identity
from sim.studies.load_trial import LoadTrial
from sim.studies.trials import TrialSeries
from sim.workload.slo import SLO

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class SystemCapacity:
    """The capacity of one system: the highest load that is met, and the lowest that is not.

    best: None if no load is met; `reason` then says why.
    above: None if no load is too high; `reason` then says why.
    time_scale: of a trace, for the best load; None for other workloads.
    """

    series: TrialSeries
    best: LoadTrial | None
    above: LoadTrial | None
    reason: str = ""
    time_scale: float | None = None

    @property
    def members(self) -> dict[str, Member]:
        """The members of the system, laid out."""
        return self.series.members

    @property
    def trials(self) -> int:
        """The number of trials."""
        return self.series.trials

    @property
    def requests(self) -> int:
        """The requests of a trial; in a closed loop, of the trial with the most."""
        return self.series.most_requests

    @cached_property
    def costs(self) -> TokenCosts:
        """Joules and dollars of the best trial, and its busy share."""
        return self.series.costs(self.best) if self.best else TokenCosts()


@dataclass(frozen=True, eq=False)
class CapacityResult:
    """The capacity of every system of a scenario, for a share of requests that meet the SLO."""

    scenario: Scenario
    attainment: float
    systems: dict[str, SystemCapacity]

    def __repr__(self) -> str:
        """Return the scenario, and the highest load of each system."""
        systems = ", ".join(
            f"{name} {format_number(s.best.goodput) if s.best else 'none'}"
            for name, s in self.systems.items()
        )
        unit = "users" if self.scenario.workload.load_kind == "users" else "request/s"
        return f"<CapacityResult of {self.scenario.id} [{unit}]: {systems}>"

    @property
    def table(self) -> "polars.DataFrame":
        """A row for each system: highest load, attainment, speed, J and $ there."""
        import polars

        keys = {"max_goodput_rate": float, "max_goodput_users": int, "attainment": float}
        keys |= {"output_throughput": float, "chips": int, "binds": str, "reason": str}
        keys |= {"busy_share": float, "energy.joules_per_token": float}
        keys |= {"economics.usd_per_mtok": float}
        rows = []
        for name, system in self.summary().systems.items():
            values = scalar_values(json_object(system))
            row = {"scenario": self.scenario.id, "seed": self.scenario.seed, "system": name}
            rows.append(row | {key: values.get(key) for key in keys})
        types = {"scenario": str, "seed": int, "system": str} | keys
        return polars.DataFrame(rows, schema=types, strict=False)

    def as_json(self) -> JsonObject:
        """Return the data of `capacity --json`."""
        return json_object(self.summary())

    def summary(self, best: Mapping[str, BestPlanSummary] | None = None) -> CapacitySummary:
        """Return the typed capacities. best: the best plans by system; None without a search."""
        slo = self.scenario.slo
        kinds = {
            name: _limits_in_ms(own or slo) for name, own in self.scenario.workload.slos.items()
        }
        return CapacitySummary(
            scenario=self.scenario.id,
            seed=self.scenario.seed,
            slo=_limits_in_ms(slo),
            kinds=kinds or None,
            attainment=self.attainment,
            systems={
                name: replace(self._of_system(name), best=(best or {}).get(name))
                for name in self.systems
            },
        )

    def _of_system(self, name: str) -> CapacityOfSystem:
        """Return the typed capacity of one system."""
        workload, system = self.scenario.workload, self.systems[name]
        best, above = system.best, system.above
        return CapacityOfSystem(
            identity=system_identity(self.scenario, name, system.members),
            most=max_goodput(
                best.goodput if best else 0.0,
                workload.load_kind == "users",
                sum(member.chips for member in system.members.values()),
            ),
            trace=TraceScale(system.time_scale) if workload.is_recorded else None,
            attainment=best.attainment if best else None,
            kinds=best.summary.kinds if best else None,
            sessions=best.goodput / workload.turns_of_load if best and workload.chained else None,
            verdict=best.verdict if best else None,
            output_throughput=best.output_throughput if best else None,
            binds=above.binds(self.attainment) if above else None,
            above=above.summary if above else None,
            trials=system.trials,
            requests=system.requests,
            reason=system.reason,
            costs=system.costs,
        )


def _limits_in_ms(slo: SLO | None) -> dict[str, float]:
    """Return the limits of an SLO by name [ms]."""
    return {f"{name}_ms": 1000 * limit for name, limit in slo.limits.items()} if slo else {}
