"""What a scenario comes to: `run(scenario)` gives a Result, `plan(scenario)` what each system holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cost.plan import weights_only_chips
from sim.economics.owner_costs import lifetime_costs
from sim.planning.deployment import Deployment
from sim.planning.search import minimum_chips
from sim.planning.single_request import SingleRequest
from sim.results.metrics import by_member, summarize
from sim.results.rows import Rows, Saved, answered
from sim.scenario.layout import check
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.scenario import Scenario, read
from sim.studies.accounts import costs, reliability, replays, total_owned
from sim.studies.design import search_plans
from sim.studies.identity import describe, identity, together
from sim.workload.requests import RequestBatch

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class SystemResult:
    """What one system did, and what it is: its members, a lone request on each, and what each served."""

    members: dict[str, Member]
    unloaded: dict[str, SingleRequest]
    served: dict[str, dict[str, Any]]
    rows: Rows
    metrics: dict[str, Any]
    costs: dict[str, Any]  # energy and economics, as far as they are known

    @property
    def network(self) -> dict[str, Any]:
        """The fidelity; at chip fidelity also what the links carried, and those that messages waited for longest."""
        if not self.rows.traffic:
            return {"fidelity": "stage"}
        several = len(self.rows.systems) > 1
        waited: list[dict[str, Any]] = [
            {
                "link": f"replica {i}: {link}" if several else link,
                "messages": n,
                "busy_ms": 1000 * busy,
                "waited_ms": 1000 * waited,
            }
            for i, traffic in self.rows.traffic.items()
            for link, n, busy, waited in traffic.most_waited()
        ]
        return {
            "fidelity": "chip",
            "network": {
                "messages": sum(traffic.messages for traffic in self.rows.traffic.values()),
                "waited_ms": 1000 * sum(traffic.waited for traffic in self.rows.traffic.values()),
                "links_waited_for": sorted(waited, key=lambda link: -link["waited_ms"])[:5],
            },
        }


@dataclass(frozen=True, eq=False)
class Result:
    """What every system of a scenario did under the same requests."""

    scenario: Scenario
    seed: int
    systems: dict[str, SystemResult]
    measured: dict[str, Any] | None = (
        None  # the same metrics of a trace that says when its requests were answered
    )

    def as_json(self) -> dict[str, Any]:
        """The contract of `run --json`: no wall time, no path, no commit in it."""
        systems = {}
        for name, s in self.systems.items():
            systems[name] = system = (
                identity(self.scenario, name, s.members) | s.network | s.metrics | s.costs
            )
            if spans := self.scenario.outages(name):
                system["outages"] = spans
            for member, told in system.get("members", {}).items():
                told |= {
                    "fidelity": "chip" if self.scenario.by_chip(member) else "stage"
                } | s.served[member]
            for member, told in system.get("members", {name: system}).items():
                told["lone_request"] = lone_json(s.unloaded[member])
        note = next(iter(self.systems.values())).rows.requests.note
        noted = {"note": note} if note else {}  # what of a trace was left out or cut
        measured = {"measured": self.measured} if self.measured else {}
        paid = priced(self.scenario) if self.scenario.economics else {}
        slo = (
            {"slo_s": self.scenario.slo.model_dump(exclude_none=True)} if self.scenario.slo else {}
        )
        head = {
            "scenario": self.scenario.id,
            "seed": self.seed,
            "workload": self.scenario.workload.noun(),
        }
        return {**head, **noted, **measured, **slo, **paid, "systems": systems}

    def saved(self) -> Saved:
        """The result as it is kept in a folder: the summary with what it came from, and the requests' rows."""
        return Saved(self.as_json() | self.scenario.origin, self.requests)

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
            | {key: value for key, value in s.metrics.items() if not isinstance(value, dict | list)}
            for name, s in self.systems.items()
        ]
        return polars.DataFrame(rows)

    def _repr_html_(self) -> str:
        """The comparison, for a notebook."""
        from sim.report import tables

        summarize = self.as_json()
        told = "".join(f"<p>{escape(note)}</p>" for note in tables.notes(summarize))
        return "".join(map(tables.as_html, tables.tables(summarize))) + told


@dataclass(frozen=True, eq=False)
class Planned:
    """What each plain system holds, and how fast a lone request would be where it fits; fleets are put together from them."""

    scenario: Scenario
    deployments: dict[str, Deployment]
    unloaded: dict[str, SingleRequest]
    minimum: dict[str, tuple[int, int, int] | None]

    def as_json(self, lengths: list[int]) -> dict[str, Any]:
        """The contract of `plan --json`, with how many sequences of each length fit."""
        plain: dict[str, dict[str, Any]] = {}
        for name, deployment in self.deployments.items():
            fit, minimum = deployment.fit, self.minimum[name]
            fitting = {str(n): deployment.sequences(n) for n in lengths}
            parts = ("weights", "kv", "activations", "reserve", "capacity")
            plain[name] = {
                **describe(self.scenario, name, deployment),
                "fits": fit.fits,
                "weights_only_chips": weights_only_chips(deployment.layout),
                "minimum_chips": minimum[0] if minimum else None,
                "bytes_per_chip": {part: getattr(fit, part) for part in parts},
                "stages": [[s.first, s.last, s.weights] for s in deployment.layout.stages],
                "max_sequences": {
                    n: {"fullest_stage": a, "all_memory": b} for n, (a, b) in fitting.items()
                },
                "lone_request": lone_json(self.unloaded[name]) if name in self.unloaded else None,
                **(
                    {"tried": [trial._asdict() for trial in deployment.tried]}
                    if deployment.tried
                    else {}
                ),
            }
        systems = {}
        for name in self.scenario.systems:
            members = {
                member: {"copies": n} | plain[member]
                for member, n in self.scenario.members(name).items()
            }
            systems[name] = plain.get(name) or together(members) | {
                "fits": all(told["fits"] for told in members.values())
            }
        return {"scenario": self.scenario.id, "systems": systems}


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
    measured = answered_metrics(requests, scenario) if requests.answered else None
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
    metrics = summarize(rows, scenario.slo, scenario.measure)
    if name in lone:  # a fleet has no token's time of its own
        metrics["fitted_share"] = lone[name].fitted_share
    metrics |= reliability(scenario, name, members, rows) | replays(scenario, members, rows)
    paid = costs(scenario, members, rows, metrics.get("availability", 1.0))
    return SystemResult(members, lone, by_member(rows, scenario.measure), rows, metrics, paid)


def priced(scenario: Scenario) -> dict[str, Any]:
    """How the systems are paid for, and what each costs over the years, whatever it serves, where its prices are known."""
    owned = {name: total_owned(scenario, scenario.members(name)) for name in scenario.systems}
    told = {name: lifetime_costs(scenario.money, has) for name, has in owned.items() if has}
    return {"scenario": scenario.id, "economics": scenario.money.as_json()} | (
        {"estimate": told} if told else {}
    )


def answered_metrics(requests: RequestBatch, scenario: Scenario) -> dict[str, Any]:
    """TTFT, TPOT and E2E latency as the trace's own server had them."""
    metrics, told = (
        summarize(answered(requests), None, scenario.measure),
        ("_ttft_ms", "_tpot_ms", "_e2el_ms"),
    )
    return {
        key: value for key, value in metrics.items() if key.endswith(told) and value is not None
    }


def lone_json(lone: SingleRequest) -> dict[str, Any]:
    """TTFT and TPOT of a lone request, and a token's time by term; `fitted_terms_ms` is the calibrated part of each."""
    return {
        "ttft_ms": 1000 * lone.ttft,
        "tpot_ms": 1000 * lone.tpot,
        "terms_ms": {term: 1000 * seconds for term, seconds in lone.terms.items()},
        "fitted_terms_ms": {term: 1000 * seconds for term, seconds in lone.fitted.items()},
        "fitted_share": lone.fitted_share,
    }
