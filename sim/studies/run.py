"""Run a scenario: `run` simulates it, and `plan` only computes how each system holds the model.

>>> run("llama3-8b-lpu-vs-h100").systems["lpu"].metrics.verdict  # doctest: +SKIP
'STABLE'
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sim.cost.layout import weights_only_chips
from sim.inputs.key_paths import JsonObject, JsonValue, scalar_values
from sim.planning.deployment import Deployment
from sim.planning.draft_gain import draft_gain
from sim.planning.search import smallest_plan
from sim.planning.single_request import SingleRequest
from sim.results.encoding import json_object
from sim.results.frames import metric_frame
from sim.results.labels import format_number
from sim.results.metrics import metrics_by_member, summarize, trace_metrics
from sim.results.ordering import Ordering
from sim.results.plan_summary import (
    ChipMemory,
    PlannedFleet,
    PlannedMember,
    PlannedSystem,
    PlanSummary,
    SequenceCounts,
    SpeculationGain,
    StageWeights,
    TriedPlan,
)
from sim.results.rows import Rows, rows_of_answers
from sim.results.saving import Saved
from sim.results.statistics import MemberMetrics, Metrics, TraceMetrics
from sim.results.summary import (
    LinkUse,
    NetworkUse,
    RunSummary,
    SystemSummary,
    TokenCosts,
)
from sim.results.system_identity import FleetIdentity, UnloadedRequest
from sim.scenario.layout import check
from sim.scenario.outages import outage_times
from sim.scenario.pools import pool_of
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.scenario import Scenario
from sim.scenario.sources import ScenarioSource, as_scenario, require_whole
from sim.studies.accounts import (
    availability_metrics,
    capacity_estimate,
    lifetime_estimates,
    replay_metrics,
    token_costs,
    why_no_load,
)
from sim.studies.design import search_plans
from sim.studies.identity import plain_identity, system_identity
from sim.studies.offered import offered_load
from sim.studies.ordering import order_of
from sim.studies.visits import full_layer
from sim.workload.requests import RequestBatch

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class SystemResult:
    """The result of one system: its rows, metrics and costs.

    members: itself, or the members of a fleet, by name. unloaded: a single request on each member.
    served: the metrics of each member.
    """

    members: dict[str, Member]
    unloaded: dict[str, SingleRequest]
    served: dict[str, MemberMetrics]
    rows: Rows
    metrics: Metrics
    costs: TokenCosts

    @property
    def network(self) -> NetworkUse | None:
        """The use of the links at chip fidelity, with the longest waits; None at stage fidelity."""
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
    """The results of all systems of a scenario for equal requests.

    measured: the latencies of a trace that records its answers; else None.
    order: the order of the systems; None unless the scenario has `order_by`.
    """

    scenario: Scenario
    seed: int
    systems: dict[str, SystemResult]
    measured: TraceMetrics | None = None
    order: Ordering | None = None

    def as_json(self) -> JsonObject:
        """Return the data of `run --json`. Left out: wall time, paths and the commit."""
        return json_object(self.summary)

    @property
    def summary(self) -> RunSummary:
        """The result without its rows, typed."""
        scenario = self.scenario
        estimate = lifetime_estimates(scenario) if scenario.economics else {}
        requests = next(iter(self.systems.values())).rows.requests
        return RunSummary(
            scenario=scenario.id,
            seed=self.seed,
            workload=scenario.workload.noun(),
            load=offered_load(scenario.workload, requests),
            note=requests.note or None,
            measured=self.measured,
            slo=scenario.slo.limits if scenario.slo else None,
            slo_percentile=scenario.slo.percentile if scenario.slo else None,
            economics=scenario.money.terms if scenario.economics else None,
            estimate=estimate or None,
            systems={name: self.system_summary(name) for name in self.systems},
            order=self.order,
        )

    def system_summary(self, name: str) -> SystemSummary:
        """Return the typed summary of one system."""
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
            at_capacity=capacity_estimate(
                scenario, system.members, system.unloaded, system.metrics.works
            ),
            no_capacity=why_no_load(scenario, system.members) or None,
            outages=tuple(outage_times(scenario, name)) or None,
            unloaded=unloaded_request(system.unloaded[name]) if identity.plain else None,
        )

    def saved(self) -> Saved:
        """Return the result as a folder keeps it: the summary with its sources, and the rows."""
        return Saved(replace(self.summary, origin=self.scenario.origin), self.requests)

    @property
    def requests(self) -> "polars.DataFrame":
        """A row for each request and system, with the columns of requests.parquet."""
        import polars

        # Only systems of pools have the columns of transfers, and only drafts those of steps.
        tables = [s.rows.table(name) for name, s in self.systems.items()]
        return polars.concat(tables, how="diagonal")

    @property
    def metrics(self) -> "polars.DataFrame":
        """A row for each system, with the columns of `METRIC_COLUMNS`; frames concatenate."""
        return metric_frame(list(map(self._metric_row, self.systems)))

    def _metric_row(self, name: str) -> Mapping[str, JsonValue]:
        """Return the values of one system by column."""
        load = offered_load(self.scenario.workload, self.systems[name].rows.requests)
        row: JsonObject = {"scenario": self.scenario.id, "seed": self.seed, "system": name}
        row |= {"error": "", "rate": load.rate, "users": load.users}
        return row | scalar_values(json_object(self.system_summary(name)))

    def __repr__(self) -> str:
        """Return the scenario, and each system's verdict and speed."""
        systems = ", ".join(
            f"{name} {s.metrics.verdict} {format_number(s.metrics.user_speed)} tokens/s of a user"
            for name, s in self.systems.items()
        )
        return f"<Result of {self.scenario.id}, seed {self.seed}: {systems}>"

    def _repr_html_(self) -> str:
        """Return the first screen as HTML, for a notebook."""
        from sim.report.first_screen import first_screen_html

        return first_screen_html(self.summary, self.scenario.question)


@dataclass(frozen=True, eq=False)
class Planned:
    """The plans of all plain systems of a scenario. Fleets are made from them.

    deployments: by system. unloaded: a single request on each system that the model fits.
    minimum: the fewest chips of each system; None if no number of chips is enough.
    """

    scenario: Scenario
    deployments: dict[str, Deployment]
    unloaded: dict[str, SingleRequest]
    minimum: dict[str, int | None]

    def __repr__(self) -> str:
        """Return the scenario, and the chips of each system, or that the model does not fit."""
        systems = ", ".join(
            f"{name} on {d.chips} chips{'' if d.fit.fits else ' (does not fit)'}"
            for name, d in self.deployments.items()
        )
        return f"<Planned {self.scenario.id}: {systems}>"

    def as_json(self, lengths: list[int]) -> JsonObject:
        """Return the data of `plan --json`. lengths: of the sequences to count [tokens]."""
        return json_object(self.summary(lengths))

    def summary(self, lengths: list[int]) -> PlanSummary:
        """Return the typed plans of all systems. lengths: of the sequences to count [tokens]."""
        plain = {name: self.planned_system(name, lengths) for name in self.deployments}
        systems: dict[str, PlannedSystem | PlannedFleet] = {}
        for name in self.scenario.systems:
            if name in plain:
                systems[name] = plain[name]
                continue
            members = {
                member: PlannedMember(
                    copies=copies, pool=pool_of(self.scenario.systems, member), system=plain[member]
                )
                for member, copies in self.scenario.members(name).items()
            }
            fleet = self.scenario.systems[name]
            systems[name] = PlannedFleet(
                label=fleet.full_label,
                colour=fleet.colour,
                model=next(iter(members.values())).system.identity.model,
                chips=sum(of.copies * of.system.identity.chips for of in members.values()),
                members=members,
                fits=all(of.system.fits for of in members.values()),
            )
        return PlanSummary(self.scenario.id, systems)

    def planned_system(self, name: str, lengths: list[int]) -> PlannedSystem:
        """Return the plan of a plain system. lengths: of the sequences to count [tokens]."""
        deployment, minimum = self.deployments[name], self.minimum[name]
        fit = deployment.fit
        layer = full_layer(self.scenario, deployment) if fit.fits else None
        return PlannedSystem(
            identity=plain_identity(self.scenario, name, deployment),
            fits=fit.fits,
            weights_only_chips=weights_only_chips(deployment.layout)
            + sum(weights_only_chips(other.layout) for other in deployment.others),
            minimum_chips=minimum,
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
            draft_gain=self._draft_gain(deployment) if fit.fits else None,
            layer_cycle=layer[1] if layer else None,
        )

    def _draft_gain(self, deployment: Deployment) -> SpeculationGain | None:
        """Return what drafts gain for a mean request, in the middle of its output."""
        workload = self.scenario.workload
        gain = draft_gain(deployment, workload.mean_prompt + workload.mean_output / 2)
        if gain is None:
            return None
        return SpeculationGain(
            tokens_per_step=gain.tokens,
            verify=gain.verify,
            draft=gain.draft,
            speedup=gain.speedup,
            break_even=gain.break_even,
        )


def plan(scenario: ScenarioSource, **changes: object) -> Planned:
    """Return how each system of a scenario holds the model, also a system that it does not fit.

    scenario: a path, a name of the catalogue, a mapping, or a scenario. changes: as in `run`.
    Raises: PlanError if `search: capacity` finds no plan that fits and meets the SLO.
    """
    scenario = search_plans(as_scenario(scenario, changes))
    plain = dict.fromkeys(member for name in scenario.systems for member in scenario.members(name))
    deployments = {name: scenario.deploy(name) for name in plain}
    for name in scenario.systems:
        scenario.require_few(name, deployments)
    unloaded = {name: scenario.unloaded(d) for name, d in deployments.items() if d.fit.fits}
    fewest = {n: None if d.others else smallest_plan(d.space) for n, d in deployments.items()}
    minimum = {name: plan.chips if plan else None for name, plan in fewest.items()}
    return Planned(scenario, deployments, unloaded, minimum)


def run(
    scenario: ScenarioSource,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] = lambda system, done, total: None,
    **changes: object,
) -> Result:
    """Simulate the requests of a scenario on each of its systems.

    scenario: a path, a name of the catalogue, a mapping as a file has it, or a scenario.
    seed: None takes the scenario's.
    progress: called with a system, its finished requests, and all requests.
    changes: values by key, as `--set` takes them: `workload__rate="2 request/s"`.
    Raises: ScenarioError if a file is wrong, PlanError if a model does not fit, UserError if the
    seed is wrong.
    """
    scenario = as_scenario(scenario, changes)
    seed = scenario.seed if seed is None else seed
    require_whole("seed", seed, 0)
    scenario = search_plans(scenario.model_copy(update={"seed": seed}))
    systems = check(scenario)
    requests = scenario.workload.draw(seed)
    results = {
        name: serve_system(scenario, name, members, requests, partial(progress, name))
        for name, members in systems.items()
    }
    measured = (
        trace_metrics(rows_of_answers(requests), scenario.measure) if requests.answered else None
    )
    order = order_of(scenario, scenario.order_by) if scenario.order_by else None
    return Result(scenario, seed, results, measured, order)


def serve_system(
    scenario: Scenario,
    name: str,
    members: dict[str, Member],
    requests: RequestBatch,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SystemResult:
    """Simulate the requests on one system."""
    rows = serve_requests(scenario, name, members, requests, progress)
    unloaded = {member: scenario.unloaded(of.deployment) for member, of in members.items()}
    metrics = replace(
        summarize(rows, scenario.slo, scenario.measure),
        fitted_share=unloaded[name].fitted_share if name in unloaded else None,
        availability=availability_metrics(scenario, name, members, rows),
        link_errors=replay_metrics(scenario, members, rows),
    )
    return SystemResult(
        members,
        unloaded,
        metrics_by_member(rows, scenario.measure),
        rows,
        metrics,
        token_costs(scenario, members, rows, metrics.works),
    )


def unloaded_request(request: SingleRequest) -> UnloadedRequest:
    """Return the times of a single request in a result [ms]."""
    return UnloadedRequest(
        ttft_ms=1000 * request.ttft,
        tpot_ms=1000 * request.tpot,
        terms_ms={term: 1000 * seconds for term, seconds in request.terms.items()},
        fitted_terms_ms={term: 1000 * seconds for term, seconds in request.fitted.items()},
        fitted_share=request.fitted_share,
    )
