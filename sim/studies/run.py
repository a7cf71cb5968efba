"""What a scenario comes to: `run(scenario)` gives a Result, `plan(scenario)` what each system holds."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cost.plan import weights_only_chips
from sim.economics.owner_costs import lifetime_costs
from sim.planning.deployment import Deployment
from sim.planning.search import minimum_chips
from sim.planning.single_request import SingleRequest
from sim.results.encoding import decode_summary, encode_summary
from sim.results.metrics import by_member, summarize, trace_metrics
from sim.results.plan_summary import (
    ChipMemory,
    PlannedFleet,
    PlannedMember,
    PlannedSystem,
    PlanSummary,
    SequenceCounts,
    StageWeights,
    TriedPlan,
)
from sim.results.rows import Rows, answered
from sim.results.saving import Saved
from sim.results.statistics import MemberMetrics, Metrics, TraceMetrics
from sim.results.summary import (
    CostEstimate,
    EconomicTerms,
    LinkUse,
    NetworkUse,
    RunOrigin,
    RunSummary,
    SystemSummary,
    TokenCosts,
)
from sim.results.system_identity import FleetIdentity, UnloadedRequest
from sim.scenario.layout import check
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.scenario import Scenario, read
from sim.studies.accounts import costs, reliability, replays, total_owned
from sim.studies.design import search_plans
from sim.studies.identity import describe, system_identity
from sim.workload.requests import RequestBatch

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class SystemResult:
    """What one system did, and what it is.

    unloaded: a single request on each member. served: what each member served.
    """

    members: dict[str, Member]
    unloaded: dict[str, SingleRequest]
    served: dict[str, MemberMetrics]
    rows: Rows
    metrics: Metrics
    costs: TokenCosts

    @property
    def network(self) -> NetworkUse | None:
        """What the links carried at chip fidelity, and the links with the longest waits."""
        if not self.rows.traffic:
            return None
        several = len(self.rows.systems) > 1
        waited = [
            LinkUse(
                link=f"replica {i}: {link}" if several else link,
                messages=messages,
                busy_ms=1000 * busy,
                waited_ms=1000 * waited,
            )
            for i, traffic in self.rows.traffic.items()
            for link, messages, busy, waited in traffic.most_waited()
        ]
        return NetworkUse(
            messages=sum(traffic.messages for traffic in self.rows.traffic.values()),
            waited_ms=1000 * sum(traffic.waited for traffic in self.rows.traffic.values()),
            links_waited_for=tuple(sorted(waited, key=lambda link: -link.waited_ms)[:5]),
        )


@dataclass(frozen=True, eq=False)
class Result:
    """What every system of a scenario did under the same requests.

    measured: the latencies of a trace that says when its requests were answered; else None.
    """

    scenario: Scenario
    seed: int
    systems: dict[str, SystemResult]
    measured: TraceMetrics | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the contract of `run --json`: no wall time, no path, no commit in it."""
        data: dict[str, Any] = encode_summary(self.summary)
        return data

    @property
    def summary(self) -> RunSummary:
        """The result without its rows, typed."""
        scenario = self.scenario
        estimate = priced(scenario) if scenario.economics else {}
        return RunSummary(
            scenario=scenario.id,
            seed=self.seed,
            workload=scenario.workload.noun(),
            note=next(iter(self.systems.values())).rows.requests.note or None,
            measured=self.measured,
            slo=scenario.slo.model_dump(exclude_none=True) if scenario.slo else None,
            economics=economic_terms(scenario) if scenario.economics else None,
            estimate=estimate or None,
            systems={name: self.system_summary(name) for name in self.systems},
        )

    def system_summary(self, name: str) -> SystemSummary:
        """Return what one system is and did, typed."""
        system, scenario = self.systems[name], self.scenario
        identity = system_identity(scenario, name, system.members)
        if isinstance(identity, FleetIdentity):
            members = {
                member: replace(
                    of,
                    fidelity="chip" if scenario.by_chip(member) else "stage",
                    served=system.served[member],
                    unloaded=unloaded_request(system.unloaded[member]),
                )
                for member, of in identity.members.items()
            }
            identity = replace(identity, members=members)
        return SystemSummary(
            identity=identity,
            fidelity="chip" if system.rows.traffic else "stage",
            network=system.network,
            metrics=system.metrics,
            costs=system.costs,
            outages=tuple(scenario.outages(name)) or None,
            unloaded=unloaded_request(system.unloaded[name]) if identity.plain else None,
        )

    def saved(self) -> Saved:
        """Return the result as it is kept in a folder: its summary with its sources, and its rows."""
        origin = decode_summary(RunOrigin, self.scenario.origin)
        return Saved(replace(self.summary, origin=origin), self.requests)

    @property
    def requests(self) -> "polars.DataFrame":
        """A row for each request and system, with the columns of requests.parquet."""
        import polars

        return polars.concat([s.rows.table(name) for name, s in self.systems.items()])

    @property
    def metrics(self) -> "polars.DataFrame":
        """A row for each system, with the metrics of `run --json`."""
        import polars

        rows = [
            {"system": name}
            | {
                key: value
                for key, value in encode_summary(s.metrics).items()
                if not isinstance(value, dict | list)
            }
            for name, s in self.systems.items()
        ]
        return polars.DataFrame(rows)

    def _repr_html_(self) -> str:
        """The comparison, for a notebook."""
        from sim.report.tables import comparison_html

        return comparison_html(self.summary)


@dataclass(frozen=True, eq=False)
class Planned:
    """What each plain system holds, and how fast a lone request would be where it fits; fleets are put together from them."""

    scenario: Scenario
    deployments: dict[str, Deployment]
    unloaded: dict[str, SingleRequest]
    minimum: dict[str, tuple[int, int, int] | None]

    def as_json(self, lengths: list[int]) -> dict[str, Any]:
        """Return the contract of `plan --json`, with how many sequences of each length fit."""
        data: dict[str, Any] = encode_summary(self.summary(lengths))
        return data

    def summary(self, lengths: list[int]) -> PlanSummary:
        """Return what each system holds, and how many sequences of each length [tokens] fit."""
        plain = {name: self.planned_system(name, lengths) for name in self.deployments}
        systems: dict[str, PlannedSystem | PlannedFleet] = {}
        for name in self.scenario.systems:
            if name in plain:
                systems[name] = plain[name]
                continue
            members = {
                member: PlannedMember(copies=copies, system=plain[member])
                for member, copies in self.scenario.members(name).items()
            }
            systems[name] = PlannedFleet(
                model=next(iter(members.values())).system.identity.model,
                chips=sum(of.copies * of.system.identity.chips for of in members.values()),
                members=members,
                fits=all(of.system.fits for of in members.values()),
            )
        return PlanSummary(self.scenario.id, systems)

    def planned_system(self, name: str, lengths: list[int]) -> PlannedSystem:
        """Return what a plain system holds, and how many sequences of each length [tokens] fit."""
        deployment, minimum = self.deployments[name], self.minimum[name]
        fit = deployment.fit
        return PlannedSystem(
            identity=describe(self.scenario, name, deployment),
            fits=fit.fits,
            weights_only_chips=weights_only_chips(deployment.layout),
            minimum_chips=minimum[0] if minimum else None,
            bytes_per_chip=ChipMemory(
                weights=fit.weights,
                kv=fit.kv,
                activations=fit.activations,
                reserve=fit.reserve,
                capacity=fit.capacity,
            ),
            stages=tuple(
                StageWeights(s.first, s.last, s.weights) for s in deployment.layout.stages
            ),
            max_sequences={str(n): SequenceCounts(*deployment.sequences(n)) for n in lengths},
            unloaded=unloaded_request(self.unloaded[name]) if name in self.unloaded else None,
            tried=tuple(TriedPlan(**trial._asdict()) for trial in deployment.tried) or None,
        )


def plan(scenario: Scenario) -> Planned:
    """What each system of a scenario holds; a system that does not fit is shown so.

    Raises: PlanError where no plan fits or meets the SLO that `search: capacity` would find.
    """
    scenario = search_plans(scenario)
    plain = dict.fromkeys(member for name in scenario.systems for member in scenario.members(name))
    deployments = {name: scenario.deploy(name) for name in plain}
    for name in scenario.systems:
        scenario.require_few(name, deployments)
    lone = {name: scenario.unloaded(d) for name, d in deployments.items() if d.fit.fits}
    minimum = {
        name: minimum_chips(d.bare, scenario.request_tokens) for name, d in deployments.items()
    }
    return Planned(scenario, deployments, lone, minimum)


def run(
    scenario: Scenario | Path | str,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] = lambda system, done, total: None,
) -> Result:
    """Serves the scenario's requests on each of its systems.

    Raises: ScenarioError where a file is wrong, PlanError where a model does not fit.
    """
    scenario = scenario if isinstance(scenario, Scenario) else read(scenario)
    seed = scenario.seed if seed is None else seed
    scenario = search_plans(scenario.model_copy(update={"seed": seed}))
    systems = check(scenario)
    requests = scenario.workload.draw(seed)
    results = {
        name: served(scenario, name, members, requests, partial(progress, name))
        for name, members in systems.items()
    }
    measured = trace_metrics(answered(requests), scenario.measure) if requests.answered else None
    return Result(scenario, seed, results, measured)


def served(
    scenario: Scenario,
    name: str,
    members: dict[str, Member],
    requests: RequestBatch,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SystemResult:
    """What one system does with the requests."""
    rows = serve_requests(scenario, name, members, requests, progress)
    lone = {member: scenario.unloaded(each.deployment) for member, each in members.items()}
    metrics = replace(
        summarize(rows, scenario.slo, scenario.measure),
        fitted_share=lone[name].fitted_share if name in lone else None,
        availability=reliability(scenario, name, members, rows),
        link_errors=replays(scenario, members, rows),
    )
    works = metrics.availability.availability if metrics.availability else 1.0
    return SystemResult(
        members,
        lone,
        by_member(rows, scenario.measure),
        rows,
        metrics,
        costs(scenario, members, rows, works),
    )


def priced(scenario: Scenario) -> dict[str, CostEstimate]:
    """Return what systems cost over the years, whatever they serve, of those with known prices."""
    capex = {name: total_owned(scenario, scenario.members(name)) for name in scenario.systems}
    return {
        name: CostEstimate(**lifetime_costs(scenario.money, owned))
        for name, owned in capex.items()
        if owned
    }


def economic_terms(scenario: Scenario) -> EconomicTerms:
    """Return how the systems of a scenario are paid for."""
    return decode_summary(EconomicTerms, scenario.money.as_json())


def unloaded_request(request: SingleRequest) -> UnloadedRequest:
    """Return the times of a single request as results have them, in ms."""
    return UnloadedRequest(
        ttft_ms=1000 * request.ttft,
        tpot_ms=1000 * request.tpot,
        terms_ms={term: 1000 * seconds for term, seconds in request.terms.items()},
        fitted_terms_ms={term: 1000 * seconds for term, seconds in request.fitted.items()},
        fitted_share=request.fitted_share,
    )
