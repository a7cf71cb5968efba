"""A scenario: systems under one workload.  `run(scenario)` gives a Result, `planned(scenario)` what each system holds."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from sim import __version__
from sim.catalogue import sources
from sim.chip import Chip, ChipField, ClusterField
from sim.economics import Economics, Owned, Ownership, beside, joules_per_token, over_years, owned, token_price
from sim.energy import Part, energy, summed
from sim.engine import EngineField, NetworkMode, Sigma
from sim.faults import Faults, availability, groups, load_time
from sim.files import Document, Value, find, nearest
from sim.irregular import Exceptional, irregular
from sim.machine import Machines, machines
from sim.measurements import published
from sim.metrics import Measure, SLOField, by_member, summary
from sim.model import ModelField
from sim.plan import Plan, PlanError, PlanField, sequences, weights_only_chips
from sim.planner import Deployment, Lone, deploy, lone_request, minimum_chips, require_fit
from sim.policy import BATCHINGS, BatchingField, OrderField, Policies, RouterField
from sim.records import Rows, Saved, answered
from sim.serve import Outage, Setup, serve_fleet
from sim.topology import Topology, TopologyField
from sim.units import Count, Fraction, Seconds, Tokens, brief
from sim.workload import Closed, Requests, WorkloadField

if TYPE_CHECKING:
    import polars


class System(Value):
    """Chips, the software on them, and how the model is laid on them; serving options default to the engine's and the chip's.

    The chips are `chips` of a `chip`, or a `cluster`, of which `chips` may take a part.

    How it schedules: `policy` is what a micro-batch does next (`micro_batch`: of how many sequences at most), `order` who is next,
    `admission` whether room in the KV cache is reserved for the whole output, or only the prompt's is asked for and the youngest
    sequence preempted where the room runs out; `prefix_caching` keeps the blocks of prompts.  Beyond `max_waiting` waiting
    requests others are refused; one not finished `deadline` after it was sent is cancelled; `router` says which replica gets it.

    `fidelity` may differ from the scenario's.  At chip fidelity, `network` and `jitter` stand for the engine's where they are
    given, and `exceptions` are the chips and links that are not as the others.

    `faults` is what of it fails over months: beside the requests' statistics its availability is simulated.  Requests are served by
    the system as it is while it works, but for `outages`: its replicas fail at these times.
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
    routing: Literal["expected", "sampled"] = "expected"  # to experts: by chances, or drawn step by step
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
    exceptions: tuple[Exceptional, ...] = ()
    faults: Faults | None = None
    outages: tuple[Outage, ...] = ()

    @model_validator(mode="after")
    def _hardware(self) -> "System":
        if self.cluster is None and (self.chip is None or self.chips is None):
            raise ValueError("name a chip and how many chips, or a cluster")
        if self.cluster and self.chip:
            raise ValueError(f"cluster {self.cluster.id} has its chip, {self.cluster.chip.id}; leave chip out")
        if self.cluster and self.chips and self.chips > self.cluster.chips:
            raise ValueError(f"cluster {self.cluster.id} has {self.cluster.chips} chips, and {self.chips} are asked for")
        return self

    @property
    def policies(self) -> Policies:
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
        """The chip, how many of them, and their topology where it is not the chip's own."""
        if self.cluster:
            return self.cluster.chip, self.chips or self.cluster.chips, self.topology or self.cluster.topology
        assert self.chip
        assert self.chips
        return self.chip, self.chips, self.topology


class Fleet(Value):
    """Replicas of unlike systems behind one router: `fleet` names other systems of the scenario, and how many copies of each.

    Each copy is as that system says, but for its `router`: the fleet's deals the requests out over the replicas of all copies, in
    the order in which the systems are named.  They serve the same model.
    """

    fleet: dict[str, Count]
    router: RouterField = Field(default="least-loaded", validate_default=True)

    @field_validator("fleet")
    @classmethod
    def _some(cls, fleet: dict[str, int]) -> dict[str, int]:
        if not fleet:
            raise ValueError("name at least one system, and how many copies of it")
        return fleet


def _kind(given: object, info: ValidationInfo) -> object:
    """A mapping is of the class that its keys ask for, so that what is wrong is told of that class alone."""
    if not isinstance(given, Mapping):
        return given
    return (Fleet if "fleet" in given else System).model_validate(given, context=info.context)


@dataclass(frozen=True, eq=False)
class Member:
    """Copies of a system, laid out.  A system that is no fleet is its own only member."""

    deployment: Deployment
    copies: int = 1

    @property
    def chips(self) -> int:
        return self.copies * self.deployment.chips

    @property
    def replicas(self) -> int:
        return self.copies * self.deployment.layout.plan.replicas


MOST_POINTS = 100_000  # of a sweep


def _swept(given: object) -> object:
    """Raises: PydanticCustomError where it is neither a grid nor a list of points."""
    points = given if isinstance(given, tuple) else (given,)
    reason = ""
    if not points or not all(isinstance(point, Mapping) and point for point in points):
        reason = "a sweep is a mapping of keys to lists, {workload.rate: [1 request/s, 2 request/s]}, or a list of mappings"
    for key in () if reason else dict.fromkeys(key for point in points for key in point):
        if not all(key.split(".")) or key.split(".")[0] in ("id", "sweep"):
            reason = reason or f"sweep: {brief(key)!r} is no key to vary; write it as --set does, such as workload.rate"
    if isinstance(given, Mapping) and not reason:
        lists = [key for key, values in given.items() if not (isinstance(values, tuple) and values)]
        if lists:
            reason = f"sweep: {lists[0]}: {brief(str(given[lists[0]]))!r} is not a list of values, such as [1, 2]"
        elif (count := math.prod(map(len, given.values()))) > MOST_POINTS:
            reason = f"sweep: {count:,} points, and {MOST_POINTS:,} are the most"
    if reason:
        raise PydanticCustomError("quantity", "{reason}", {"reason": reason})
    return given


_POINT = {"type": "object", "minProperties": 1}
_GRID = {**_POINT, "additionalProperties": {"type": "array", "minItems": 1}}
_SWEEP = {
    "anyOf": [_GRID, {"type": "array", "minItems": 1, "items": _POINT}, {"type": "null"}],
    "description": "a mapping of dotted keys to lists of values (all combinations), or a list of mappings of dotted keys to values",
}
Sweep = Annotated[dict[str, tuple[Any, ...]] | tuple[dict[str, Any], ...] | None, BeforeValidator(_swept), WithJsonSchema(_SWEEP)]


class Scenario(Value):
    """One question: the same requests through each system.

    `fidelity: stage` computes the chips of a stage in lock step; `chip` makes every chip a process and every link a resource.
    `sweep` is what `sramsim sweep` varies; everything else takes the values that stand beside it.
    """

    id: str = "scenario"
    model: ModelField
    seed: Annotated[int, Field(ge=0)] = 0
    fidelity: Literal["stage", "chip"] = "stage"
    workload: WorkloadField
    slo: SLOField | None = None
    measure: Measure | None = None
    economics: Economics | None = None
    systems: dict[str, Annotated[System | Fleet, BeforeValidator(_kind)]]
    sweep: Sweep = None

    @field_validator("systems")
    @classmethod
    def _some(cls, systems: dict[str, System | Fleet]) -> dict[str, System | Fleet]:
        if not systems:
            raise ValueError("name at least one system")
        plain = [name for name, system in systems.items() if isinstance(system, System)]
        for name, system in systems.items():
            for member in system.fleet if isinstance(system, Fleet) else ():
                if member in plain:
                    continue
                near = nearest(member, plain)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(plain) or 'none'}"
                what = "a fleet itself" if member in systems else "no system"
                reason = {"error": f"{brief(member)!r} is {what}; a fleet is made of systems with chips: {hint}"}
                problem = PydanticCustomError("value_error", "{error}", reason)
                where: InitErrorDetails = {"type": problem, "loc": (name, "fleet", member), "input": member}
                raise ValidationError.from_exception_data("fleet", [where])
        return systems

    @model_validator(mode="after")
    def _owned_systems(self) -> "Scenario":
        plain = [name for name, system in self.systems.items() if isinstance(system, System)]
        for name in self.money.systems:
            if name not in plain:
                hint = f"did you mean {near}?" if (near := nearest(name, plain)) else f"there are {', '.join(plain) or 'none'}"
                raise ValueError(f"economics.systems: {brief(name)!r} is no system with chips; {hint}")
        return self

    @model_validator(mode="after")
    def _what_only_chips_have(self) -> "Scenario":
        for name, system in self.systems.items():
            if isinstance(system, Fleet):
                continue
            given = [key for key in ("network", "jitter", "exceptions") if getattr(system, key) not in (None, ())]
            if given and not self.by_chip(name):
                raise ValueError(f"systems.{name}: {given[0]} needs fidelity: chip")
        return self

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    _question: str = PrivateAttr(default="")
    _where: dict[str, str] = PrivateAttr(default_factory=dict)  # system -> 'file:line: ', for errors

    @property
    def given(self) -> dict[str, Any]:
        """What the file said, with the assignments of the command line; empty for a scenario made in code."""
        return self._given

    @property
    def origin(self) -> dict[str, Any]:
        """What a result keeps of where it came from: version, the file's opening comment, inputs, every number's source."""
        inputs = {"inputs": self.given, "sources": sources(self.given)}
        return {"version": __version__, "question": self._question, **inputs}

    @property
    def money(self) -> Economics:
        """How systems are paid for: what the scenario says, else what `Economics` assumes."""
        return self.economics or Economics()

    def owned(self, name: str, copies: int = 1) -> Owned | None:
        """What copies of a plain system cost to buy; None where that is not known."""
        chip, chips, _ = self.plain(name).hardware
        one = owned(chip, chips, self.money.systems.get(name, Ownership()))
        return one.times(copies) if one else None

    def plain(self, name: str) -> System:
        """A system that is no fleet."""
        system = self.systems[name]
        assert isinstance(system, System)
        return system

    def members(self, name: str) -> dict[str, int]:
        """The plain systems that a system consists of, and how many copies of each: of a plain one, itself.

        Raises: PlanError where they serve several models.
        """
        system = self.systems[name]
        if isinstance(system, System):
            return {name: 1}
        models = {member: self.plain(member).model or self.model for member in system.fleet}
        first = next(iter(models))
        for member, model in models.items():
            if model != models[first]:
                served = f"{first} serves {models[first].id}, and {member} {model.id}"
                raise PlanError(f"{self._where.get(name, '')}systems.{name}: {served}; the members of a fleet serve one model")
        return system.fleet

    def outages(self, name: str) -> list[tuple[float, float]]:
        """From when to when a replica of a system is down, s."""
        return [(each.at, each.at + each.lasts) for member in self.members(name) for each in self.plain(member).outages]

    def by_chip(self, name: str) -> bool:
        """Whether every chip of a plain system is a process."""
        return (self.plain(name).fidelity or self.fidelity) == "chip"

    def machines(self, name: str, deployment: Deployment, recording: bool = False, copies: int = 1) -> Machines:
        """What makes the chips of a plain system's replicas, of all copies; what is irregular in it is so in each copy.

        Raises: PlanError where its exceptions name what it does not have.
        """
        system, layout = self.plain(name), deployment.layout
        scheduled = (system.network or layout.engine.network) == "scheduled"
        jitter = (layout.engine.jitter or 0.0) if system.jitter is None else system.jitter
        try:
            parts = [
                irregular(layout, system.exceptions, replica, scheduled, jitter, self.request_tokens, deployment.limits.kv_tokens)
                for replica in range(layout.plan.replicas)
            ]
        except (ValueError, PlanError) as error:
            raise PlanError(f"{self._where.get(name, '')}systems.{name}: {error}") from error
        return machines(deployment.costs, copies * parts, [self.seed, *name.encode()], recording)

    @property
    def request_tokens(self) -> float:
        """Prompt and output of a mean request: what a plan must have room for, to fit."""
        return self.workload.mean_prompt + self.workload.mean_output

    def deploy(self, name: str) -> Deployment:
        """A plain system laid out.  Raises: PlanError where its parts contradict each other (not where it does not fit)."""
        system = self.plain(name)
        chip, chips, topology = system.hardware
        try:
            return deploy(
                system.model or self.model,
                chip,
                chips,
                system.engine,
                system.plan,
                self.request_tokens,
                topology=topology,
                token_budget=system.token_budget,
                max_sequences=system.max_sequences,
                kv_tokens=system.kv_tokens,
                memory_fraction=system.memory_fraction,
                sampled=np.random.default_rng([self.seed, *name.encode()]) if system.routing == "sampled" else None,
            )
        except ValueError as error:
            raise PlanError(f"{self._where.get(name, '')}systems.{name}: {error}") from error

    def serve(
        self,
        name: str,
        members: Mapping[str, Member],
        requests: Requests,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Rows:
        """Requests through one system."""
        setups = [setup for member, of in members.items() for setup in self.setups(member, of)]
        think = self.workload.think if isinstance(self.workload, Closed) else 0.0
        return serve_fleet(requests, setups, self.systems[name].router, think, progress=progress)

    def setups(self, name: str, member: Member) -> list[Setup]:
        """What each replica of the copies of a plain system is."""
        system, deployment = self.plain(name), member.deployment
        machine = self.machines(name, deployment, copies=member.copies) if self.by_chip(name) else None
        shared = (deployment.costs, deployment.limits, system.policies, system.request_overhead, machine, name)
        of_each = member.deployment.layout.plan.replicas  # of each copy the same ones fail
        outages = [tuple(o for o in system.outages if o.replica == number) for number in range(of_each)]
        return [Setup(*shared, number, outages[number % of_each]) for number in range(member.replicas)]

    def whole(self, name: str) -> System:
        """A system with the model that it serves."""
        system = self.plain(name)
        return system.model_copy(update={"model": system.model or self.model})

    def lone(self, deployment: Deployment) -> Lone:
        """A mean request that has the system for itself."""
        return lone_request(deployment, round(self.workload.mean_prompt), round(self.workload.mean_output))


@dataclass(frozen=True, eq=False)
class SystemResult:
    """What one system did, and what it is: its members, a lone request on each, and what each served."""

    members: dict[str, Member]
    lone: dict[str, Lone]
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
            {"link": f"replica {i}: {link}" if several else link, "messages": n, "busy_ms": 1000 * busy, "waited_ms": 1000 * waited}
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
    measured: dict[str, Any] | None = None  # the same metrics of a trace that says when its requests were answered

    def as_json(self) -> dict[str, Any]:
        """The contract of `run --json`: no wall time, no path, no commit in it."""
        systems = {}
        for name, s in self.systems.items():
            systems[name] = system = identity(self.scenario, name, s.members) | s.network | s.metrics | s.costs
            if spans := self.scenario.outages(name):
                system["outages"] = spans
            for member, told in system.get("members", {}).items():
                told |= {"fidelity": "chip" if self.scenario.by_chip(member) else "stage"} | s.served[member]
            for member, told in system.get("members", {name: system}).items():
                told["lone_request"] = lone_json(s.lone[member])
        note = next(iter(self.systems.values())).rows.requests.note
        noted = {"note": note} if note else {}  # what of a trace was left out or cut
        measured = {"measured": self.measured} if self.measured else {}
        paid = priced(self.scenario) if self.scenario.economics else {}
        slo = {"slo_s": self.scenario.slo.model_dump(exclude_none=True)} if self.scenario.slo else {}
        return {"scenario": self.scenario.id, "seed": self.seed, **noted, **measured, **slo, **paid, "systems": systems}

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
            {"system": name} | {key: value for key, value in s.metrics.items() if not isinstance(value, dict | list)}
            for name, s in self.systems.items()
        ]
        return polars.DataFrame(rows)

    def _repr_html_(self) -> str:
        """The comparison, for a notebook."""
        from sim import tables

        summary = self.as_json()
        told = "".join(f"<p>{escape(note)}</p>" for note in tables.notes(summary))
        return "".join(map(tables.as_html, tables.tables(summary))) + told


@dataclass(frozen=True, eq=False)
class Planned:
    """What each plain system holds, and how fast a lone request would be where it fits; fleets are put together from them."""

    scenario: Scenario
    deployments: dict[str, Deployment]
    lone: dict[str, Lone]
    minimum: dict[str, tuple[int, int, int] | None]

    def as_json(self, lengths: list[int]) -> dict[str, Any]:
        """The contract of `plan --json`, with how many sequences of each length fit."""
        plain: dict[str, dict[str, Any]] = {}
        for name, deployment in self.deployments.items():
            fit, minimum = deployment.fit, self.minimum[name]
            fitting = {str(n): sequences(deployment.layout, n) for n in lengths}
            parts = ("weights", "kv", "activations", "reserve", "capacity")
            plain[name] = {
                **describe(deployment),
                "fits": fit.fits,
                "weights_only_chips": weights_only_chips(deployment.layout),
                "minimum_chips": minimum[0] if minimum else None,
                "bytes_per_chip": {part: getattr(fit, part) for part in parts},
                "stages": [[s.first, s.last, s.weights] for s in deployment.layout.stages],
                "max_sequences": {n: {"fullest_stage": a, "all_memory": b} for n, (a, b) in fitting.items()},
                "lone_request": lone_json(self.lone[name]) if name in self.lone else None,
                **({"tried": [trial._asdict() for trial in deployment.tried]} if deployment.tried else {}),
            }
        systems = {}
        for name in self.scenario.systems:
            members = {member: {"copies": n} | plain[member] for member, n in self.scenario.members(name).items()}
            systems[name] = plain.get(name) or together(members) | {"fits": all(told["fits"] for told in members.values())}
        return {"scenario": self.scenario.id, "systems": systems}


def lone_json(lone: Lone) -> dict[str, Any]:
    """TTFT and TPOT of a lone request, and a token's time by term; `fitted_terms_ms` is the calibrated part of each."""
    return {
        "ttft_ms": 1000 * lone.ttft,
        "tpot_ms": 1000 * lone.tpot,
        "terms_ms": {term: 1000 * seconds for term, seconds in lone.terms.items()},
        "fitted_terms_ms": {term: 1000 * seconds for term, seconds in lone.fitted.items()},
        "fitted_share": lone.fitted_share,
    }


def identity(scenario: Scenario, name: str, members: Mapping[str, Member]) -> dict[str, Any]:
    """What a result names beside a system's numbers; where it is a fleet, for each member."""
    if isinstance(scenario.systems[name], System):
        return describe(members[name].deployment)
    return together({member: {"copies": of.copies} | describe(of.deployment) for member, of in members.items()})


def together(members: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a fleet is, from what its members are."""
    model = next(iter(members.values()))["model"]
    return {"model": model, "chips": sum(told["copies"] * told["chips"] for told in members.values()), "members": members}


def cold_start(deployment: Deployment) -> float | None:
    """Seconds to load the weights from the hosts; None where the chip's file does not give the link."""
    link = deployment.layout.chip.host_link
    return load_time(deployment.fit.weights, link) if link else None


def describe(deployment: Deployment) -> dict[str, Any]:
    """What a result names beside its numbers: model, chip, engine, plan, precisions; published speeds of the same."""
    layout = deployment.layout
    plan = layout.plan
    return {
        "model": layout.model.id,
        "chip": layout.chip.id,
        "chips": deployment.chips,
        "engine": layout.engine.id,
        "plan": {
            key: getattr(plan, key) for key in ("tensor", "attention_data", "expert", "pipeline", "replicas", "balance", "slots")
        },
        "precision": {key: getattr(plan, key) for key in ("weights", "attention", "activations", "hidden", "kv", "head")},
        "memory": {"weights": plan.weights_in, "kv": plan.kv_in},
        "memories": list(layout.chip.memory),
        "weight_bandwidth": {
            "claimed": layout.chip.claimed_bandwidth or layout.weights_memory.bandwidth,
            "chip": layout.chip.weight_bandwidth(layout.weights_memory, plan.given("weights")),
        },
        "token_budget": layout.token_budget,
        "kv_tokens": deployment.limits.kv_tokens,
        "load_s": cold_start(deployment),
        "published": [
            {"id": p.id, "tokens_per_second": p.speed, "engine": p.engine, "weights": p.weights, "date": p.date, "source": p.source}
            for p in published(layout.model.id, layout.chip.id, deployment.chips // plan.replicas)
        ],
    }


def read(path: Path | str, overrides: list[str] | None = None) -> Scenario:
    """The scenario of a file, or of a catalogue name, with `a.b.c=value` assignments put in.

    Raises: ScenarioError, which says the file and line.
    """
    return of(document(path, overrides))


def document(path: Path | str, overrides: list[str] | None = None) -> Document:
    """The file of a scenario, or of a catalogue name, with assignments put in, not yet understood."""
    found = Document(Path(path) if os.path.isfile(path) else find(str(path), "scenarios"))
    for assignment in overrides or []:
        found.set(assignment)
    return found


def of(document: Document) -> Scenario:
    """The scenario that a document describes.  Raises: ScenarioError, which says the file and line."""
    scenario = document.value(Scenario)
    scenario._given = document.data
    scenario._question = document.comment
    scenario._where = {name: f"{document.where('systems', name)}: " for name in scenario.systems}
    return scenario


def planned(scenario: Scenario) -> Planned:
    """What each system of a scenario holds; a system that does not fit is shown so."""
    plain = dict.fromkeys(member for name in scenario.systems for member in scenario.members(name))
    deployments = {name: scenario.deploy(name) for name in plain}
    lone = {name: scenario.lone(d) for name, d in deployments.items() if d.fit.fits}
    minimum = {name: minimum_chips(d, scenario.request_tokens) for name, d in deployments.items()}
    return Planned(scenario, deployments, lone, minimum)


def fitting(scenario: Scenario, name: str) -> Deployment:
    """A plain system laid out.  Raises: PlanError where it does not fit."""
    deployment = scenario.deploy(name)
    try:
        require_fit(deployment, scenario.request_tokens)
    except PlanError as error:
        raise PlanError(f"{scenario._where.get(name, '')}systems.{name}: {error}") from None
    if scenario.by_chip(name):
        scenario.machines(name, deployment)  # its exceptions are looked at
    try:
        if faults := scenario.plain(name).faults:
            groups(faults, deployment.chips)
        replicas_fail(scenario, name, deployment.layout.plan.replicas)
    except ValueError as error:
        raise PlanError(f"{scenario._where.get(name, '')}systems.{name}: {error}") from None
    return deployment


def replicas_fail(scenario: Scenario, name: str, replicas: int) -> None:
    """Raises: ValueError where outages are of a replica that is not there or is down already, or every chip is a process."""
    free = dict.fromkeys(range(replicas), 0.0)
    outages = sorted(scenario.plain(name).outages, key=lambda outage: outage.at)
    if outages and scenario.by_chip(name):
        raise ValueError("outages: need fidelity: stage")
    for outage in outages:
        if outage.replica not in free:
            raise ValueError(f"outages: replica {outage.replica}: there are {replicas}, from 0")
        if outage.at < free[outage.replica]:
            raise ValueError(f"outages: replica {outage.replica} is down already at {outage.at:g} s")
        free[outage.replica] = outage.at + outage.lasts


def check(scenario: Scenario) -> dict[str, dict[str, Member]]:
    """Every system laid out, by its members.  Raises: PlanError at the first one that does not fit, or serves several models.

    A fleet's members are laid out anew: where experts are drawn, each system draws for itself.
    """
    return {name: laid_out(scenario, name) for name in scenario.systems}


def laid_out(scenario: Scenario, name: str) -> dict[str, Member]:
    """One system laid out, by its members.  Raises: PlanError where one does not fit, or they serve several models."""
    return {member: Member(fitting(scenario, member), copies) for member, copies in scenario.members(name).items()}


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
    scenario = scenario.model_copy(update={"seed": seed})
    systems = check(scenario)
    requests = scenario.workload.draw(seed)
    results = {name: served(scenario, name, members, requests, partial(progress, name)) for name, members in systems.items()}
    measured = answered_metrics(requests, scenario) if requests.answered else None
    return Result(scenario, seed, results, measured)


def served(
    scenario: Scenario,
    name: str,
    members: dict[str, Member],
    requests: Requests,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SystemResult:
    """What one system does with the requests."""
    rows = scenario.serve(name, members, requests, progress)
    lone = {member: scenario.lone(each.deployment) for member, each in members.items()}
    metrics = summary(rows, scenario.slo, scenario.measure)
    if name in lone:  # a fleet has no token's time of its own
        metrics["fitted_share"] = lone[name].fitted_share
        if faults := scenario.plain(name).faults:
            deployment = members[name].deployment
            seed = [scenario.seed, *f"faults of {name}".encode()]
            found = availability(faults, deployment.chips, cold_start(deployment) or 0.0, seed)
            metrics |= found.metrics()
    return SystemResult(members, lone, by_member(rows, scenario.measure), rows, metrics, costs(scenario, members, rows))


def costs(scenario: Scenario, members: Mapping[str, Member], rows: Rows) -> dict[str, Any]:
    """Joules and dollars of a system and of each of its output tokens, by cause, from the first arrival to the last token of the
    run, whatever `measure` counts.  What is not known is left out, and so is all of it where no token came.
    """
    done = rows.finished
    tokens = int(rows.requests.output[done].sum())
    elapsed = float(np.nanmax(rows.last_token) - np.nanmin(rows.arrival)) if tokens else 0.0
    if not elapsed:
        return {}
    told: dict[str, Any] = {}
    money, replicas = scenario.money, list(zip(rows.systems, rows.tallies, strict=True))
    parts = []
    for name, of in members.items():
        around = beside(of.deployment.layout.chip, money.systems.get(name, Ownership()))
        parts.append(Part(of.deployment.costs, of.chips, summed(tally for each, tally in replicas if each == name), around))
    used = energy(parts, elapsed, money.pue)
    if used:
        by_cause = {cause: joules_per_token(joules / elapsed, tokens / elapsed) for cause, joules in used.items()}
        power = sum(used.values()) / elapsed
        told["energy"] = {
            "joules_per_token": sum(by_cause.values()),
            "joules_per_token_by_cause": by_cause,
            "mean_power_w": power,
            "pue": money.pue,
        }
    if has := total_owned(scenario, {name: of.copies for name, of in members.items()}):
        drawn = sum(used[cause] for cause in used if cause != "pue") / elapsed if used else None
        if price := token_price(money, has, drawn, tokens, int(done.sum()), elapsed):
            told["economics"] = price
    return told


def total_owned(scenario: Scenario, copies: Mapping[str, int]) -> Owned | None:
    """What copies of plain systems cost together; None where one's prices are not known."""
    each = [one for name, n in copies.items() if (one := scenario.owned(name, n))]
    return Owned(*map(sum, zip(*each, strict=True))) if len(each) == len(copies) else None


def priced(scenario: Scenario) -> dict[str, Any]:
    """How the systems are paid for, and what each costs over the years, whatever it serves, where its prices are known."""
    owned = {name: total_owned(scenario, scenario.members(name)) for name in scenario.systems}
    told = {name: over_years(scenario.money, has) for name, has in owned.items() if has}
    return {"scenario": scenario.id, "economics": scenario.money.as_json()} | ({"estimate": told} if told else {})


def answered_metrics(requests: Requests, scenario: Scenario) -> dict[str, Any]:
    """TTFT, TPOT and E2E latency as the trace's own server had them."""
    metrics, told = summary(answered(requests), None, scenario.measure), ("_ttft_ms", "_tpot_ms", "_e2el_ms")
    return {key: value for key, value in metrics.items() if key.endswith(told) and value is not None}
