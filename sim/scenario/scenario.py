"""A scenario: one question, as its file asks it.  `read(path)` gives it, `check(scenario)` lays every system of it out."""

import math
import os
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
from pydantic_core import PydanticCustomError

from sim import __version__
from sim.catalogue.entries import sources
from sim.chipsim.exceptions import ExceptionField, Irregularities, replica_irregularities
from sim.chipsim.machine import MachineFactory, machine_factory
from sim.cost.plan import MOST_REPLICAS, Plan, PlanError, PlanField, PlanSearch
from sim.economics.owner_costs import Capex, Economics, OwnerCosts, system_capex
from sim.hardware.chip import Chip, ChipField, ClusterField
from sim.hardware.engine import EngineField, NetworkMode, Sigma
from sim.hardware.topology import Topology, TopologyField
from sim.inputs.document import Document
from sim.inputs.errors import error_at_path, nearest_name
from sim.inputs.names import find_entry
from sim.inputs.values import Change, Entry, Value
from sim.model.transformer import ModelField
from sim.planning.deployment import Deployment, DeploymentParts, LimitOverrides, deploy, require_fit
from sim.planning.single_request import SingleRequest, time_single_request
from sim.reliability.availability import require_simulable
from sim.reliability.failures import Faults, spare_chips
from sim.reliability.link_errors import LinkErrors, LinkErrorSampler
from sim.results.metrics import LIMITS, Measure, SLOField
from sim.results.rows import Rows
from sim.serving.policy import BATCHINGS, BatchingField, OrderField, Policies, RouterField
from sim.serving.replica import Outage, ReplicaConfig
from sim.serving.service import serve_fleet
from sim.units import Count, Fraction, Seconds, Tokens, brief
from sim.workload.kinds import WorkloadField
from sim.workload.requests import RequestBatch


class System(Value):
    """Chips, the software on them, and how the model is laid on them; serving options default to the engine's and the chip's.

    The chips are `chips` of a `chip`, or a `cluster`, of which `chips` may take a part.

    How it schedules: `policy` is what a micro-batch does next (`micro_batch`: of how many sequences at most), `order` who is next,
    `admission` whether room in the KV cache is reserved for the whole output, or only the prompt's is asked for and the youngest
    sequence preempted where the room runs out; `prefix_caching` keeps the blocks of prompts.  Beyond `max_waiting` waiting
    requests others are refused; one not finished `deadline` after it was sent is cancelled; `router` says which replica gets it.
    `max_sequences` bounds the sequences that run in all micro-batches of a replica, `token_budget` the tokens of a step of one
    micro-batch; both are of each rank of attention data parallelism where the engine has `limits_per: rank`.

    `fidelity` may differ from the scenario's.  At chip fidelity, `network` and `jitter` stand for the engine's where they are
    given, and `exceptions` are the chips and links that are not as the others.

    `faults` is what of it fails over months: beside the requests' statistics its availability is simulated.  Requests are served by
    the system as it is while it works, but for `outages`: its replicas fail at these times; and for `link_errors`: steps that a
    link spoils are made again.
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
    routing: Literal["expected", "sampled"] = (
        "expected"  # to experts: by chances, or drawn step by step
    )
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
            raise ValueError(
                f"cluster {self.cluster.id} has its chip, {self.cluster.chip.id}; leave chip out"
            )
        if self.cluster and self.chips and self.chips > self.cluster.chips:
            raise ValueError(
                f"cluster {self.cluster.id} has {self.cluster.chips} chips, and {self.chips} are asked for"
            )
        if self.plan.replicas > MOST_REPLICAS:
            raise ValueError(f"plan.replicas: {too_many(self.plan.replicas)}")
        if (chips := self.hardware[1]) > MOST_CHIPS:
            raise ValueError(
                f"chips: got {chips:,}; expected at most {MOST_CHIPS:,}, since each is listed; try a part of them"
            )
        return self

    @property
    def changed(self) -> dict[str, Change]:
        """What the system changes of the entries that its parts are like, by dotted key: 'chip.memory.sram.capacity'."""
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
            return (
                self.cluster.chip,
                self.chips or self.cluster.chips,
                self.topology or self.cluster.topology,
            )
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
MOST_CHIPS = 1_000_000  # of a system; a hundred times as many as any that is sold


def too_many(replicas: int) -> str:
    """Return what is wrong with so many replicas of a system."""
    hint = "try a part of them under a part of the load"
    return f"got {replicas:,} replicas; expected at most {MOST_REPLICAS:,}, since each is simulated by itself; {hint}"


def _swept(given: object) -> object:
    """Raises: PydanticCustomError where it is neither a grid nor a list of points."""
    points = given if isinstance(given, tuple) else (given,)
    reason = ""
    if not points or not all(isinstance(point, Mapping) and point for point in points):
        reason = "a sweep is a mapping of keys to lists, {workload.rate: [1 request/s, 2 request/s]}, or a list of mappings"
    for key in () if reason else dict.fromkeys(key for point in points for key in point):
        if not all(key.split(".")) or key.split(".")[0] in ("id", "sweep"):
            reason = (
                reason
                or f"sweep: {brief(key)!r} is no key to vary; write it as --set does, such as workload.rate"
            )
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
Sweep = Annotated[
    dict[str, tuple[Any, ...]] | tuple[dict[str, Any], ...] | None,
    BeforeValidator(_swept),
    WithJsonSchema(_SWEEP),
]


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
                near = nearest_name(member, plain)
                hint = (
                    f"did you mean {near}?" if near else f"there are {', '.join(plain) or 'none'}"
                )
                what = "a fleet itself" if member in systems else "no system"
                reason = (
                    f"{brief(member)!r} is {what}; a fleet is made of systems with chips: {hint}"
                )
                raise error_at_path((name, "fleet", member), member, reason)
        return systems

    @model_validator(mode="after")
    def _owned_systems(self) -> "Scenario":
        plain = [name for name, system in self.systems.items() if isinstance(system, System)]
        for name, own in self.money.systems.items():
            if name not in plain:
                hint = (
                    f"did you mean {near}?"
                    if (near := nearest_name(name, plain))
                    else f"there are {', '.join(plain) or 'none'}"
                )
                raise ValueError(
                    f"economics.systems: {brief(name)!r} is no system with chips; {hint}"
                )
            serve = self.plain(name).hardware[1]
            if own.chips and own.chips < serve:
                raise ValueError(
                    f"economics.systems.{name}.chips: {own.chips} are bought, and {serve} serve"
                )
        return self

    @model_validator(mode="after")
    def _what_only_chips_have(self) -> "Scenario":
        for name, system in self.systems.items():
            if isinstance(system, Fleet):
                continue
            given = [
                key
                for key in ("network", "jitter", "exceptions")
                if getattr(system, key) not in (None, ())
            ]
            if given and not self.by_chip(name):
                raise ValueError(f"systems.{name}: {given[0]} needs fidelity: chip")
        return self

    @model_validator(mode="after")
    def _refused_users_pause(self) -> "Scenario":
        """A user whose request is refused would ask again at the same instant, until no request is left."""
        workload = self.workload
        if workload.pause != 0:
            return self
        users = getattr(workload, "users", 0)
        for name, system in self.systems.items():
            most = system.max_waiting if isinstance(system, System) else None
            if most is not None and most < users:
                reason = (
                    f"got {most} with {users} users who do not pause; expected a pause, as a refused user asks again "
                    "at the same instant; try workload.think: 1 s, or leave max_waiting out"
                )
                raise error_at_path(("systems", name, "max_waiting"), most, reason)
        return self

    @model_validator(mode="after")
    def _searched_within_limits(self) -> "Scenario":
        for name, system in self.systems.items():
            if isinstance(system, Fleet) or system.plan.search != "capacity":
                continue
            reason = ""
            if self.slo is None or all(getattr(self.slo, limit) is None for limit in LIMITS):
                reason = "got capacity without an slo; expected limits to meet; try slo: {ttft: 2 s, tpot: 100 ms}"
            elif self.workload.load_kind is None:
                kind = self.workload.noun()
                reason = f"got capacity with workload {kind}; expected poisson, gamma, trace or closed, whose load varies"
            elif system.outages:
                reason = "got capacity with outages; expected a system that works"
            if reason:
                hint = "" if "try" in reason else "; try search: speed"
                raise error_at_path(("systems", name, "plan", "search"), "capacity", reason + hint)
        return self

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    _question: str = PrivateAttr(default="")
    _document: Document | None = PrivateAttr(default=None)  # for the lines in errors
    _searches: dict[str, PlanSearch] = PrivateAttr(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """What the file said, with the assignments of the command line; empty for a scenario made in code."""
        return self._given

    @property
    def searches(self) -> dict[str, PlanSearch]:
        """By system, how its plan was found where `search: capacity` left it open."""
        return self._searches

    def with_plan(self, name: str, plan: Plan, search: PlanSearch) -> "Scenario":
        """Return the scenario with the plan that a search found for a plain system."""
        changed = self.model_copy(
            update={
                "systems": self.systems | {name: self.plain(name).model_copy(update={"plan": plan})}
            }
        )
        changed._searches = self.searches | {name: search}
        return changed

    @property
    def origin(self) -> dict[str, Any]:
        """What a result keeps of where it came from: version, the file's opening comment, inputs, every number's source."""
        inputs = {"inputs": self.given, "sources": sources(self.given)}
        return {"version": __version__, "question": self._question, **inputs}

    @property
    def money(self) -> Economics:
        """How systems are paid for: what the scenario says, else what `Economics` assumes."""
        return self.economics or Economics()

    def capex(self, name: str, copies: int = 1) -> Capex | None:
        """What copies of a plain system cost to buy, spare nodes counted; None where that is not known."""
        chip, chips, _ = self.plain(name).hardware
        one = system_capex(
            chip, chips + self.spare_chips(name), self.money.systems.get(name, OwnerCosts())
        )
        return one.times(copies) if one else None

    def spare_chips(self, name: str) -> int:
        """Chips of a plain system's spare nodes.  Raises: PlanError where they cannot be counted."""
        system = self.plain(name)
        replicas = system.plan.replicas
        try:
            return replicas * spare_chips(system.faults, system.hardware[1] // replicas)
        except ValueError as error:
            raise self.plan_error(name, error) from None

    def where(self, name: str, *keys: int | str) -> str:
        """Return the place of a key of a system for errors: 'mine.yaml:7: systems.lpu.plan'."""
        path = ("systems", name, *map(str, keys))
        dotted = ".".join(path)
        place = self._document.where(*path) if self._document else ""
        if not place or place == f"--set {dotted}":
            return place or dotted
        return f"{place}: {dotted}"

    def plan_error(self, name: str, error: ValueError | PlanError) -> PlanError:
        """Return the error of a system with the place of its key.

        The key is that of an error made by `error_at_path`, else the system itself.
        """
        if not isinstance(error, ValidationError):
            return PlanError(f"{self.where(name)}: {error}")
        problem = error.errors(include_url=False)[0]
        return PlanError(f"{self.where(name, *problem['loc'])}: {problem['msg']}")

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
                raise PlanError(
                    f"{self.where(name)}: {served}; the members of a fleet serve one model"
                )
        return system.fleet

    def require_few(self, name: str, deployments: Mapping[str, Deployment]) -> None:
        """Raises: PlanError where all copies of a system's members are too many replicas to simulate."""
        replicas = sum(
            n * deployments[member].layout.plan.replicas for member, n in self.members(name).items()
        )
        if replicas > MOST_REPLICAS:
            raise PlanError(f"{self.where(name)}: {too_many(replicas)}")

    def outages(self, name: str) -> list[tuple[float, float]]:
        """From when to when a replica of a system is down, s."""
        return [
            (each.at, each.at + each.lasts)
            for member in self.members(name)
            for each in self.plain(member).outages
        ]

    def by_chip(self, name: str) -> bool:
        """Whether every chip of a plain system is a process."""
        return (self.plain(name).fidelity or self.fidelity) == "chip"

    def machine_factory(
        self, name: str, deployment: Deployment, recording: bool = False, copies: int = 1
    ) -> MachineFactory:
        """What makes the chips of a plain system's replicas, of all copies; what is irregular in it is so in each copy.

        Raises: PlanError where its exceptions name what it does not have.
        """
        system, layout = self.plain(name), deployment.layout
        scheduled = (system.network or layout.engine.network) == "scheduled"
        jitter = (layout.engine.jitter or 0.0) if system.jitter is None else system.jitter
        usual = Irregularities(scheduled=scheduled, jitter=jitter)
        try:
            parts = [
                replica_irregularities(
                    layout,
                    system.exceptions,
                    replica,
                    usual,
                    self.request_tokens,
                    deployment.limits.kv_tokens,
                )
                for replica in range(layout.plan.replicas)
            ]
        except ValueError as error:
            raise self.plan_error(name, error) from error
        return machine_factory(
            deployment.costs, copies * parts, [self.seed, *name.encode()], recording
        )

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
                DeploymentParts(
                    system.model or self.model, chip, chips, system.engine, system.plan, topology
                ),
                self.request_tokens,
                self.workload.mean_prompt,
                LimitOverrides(
                    system.token_budget,
                    system.max_sequences,
                    system.kv_tokens,
                    system.memory_fraction,
                ),
                np.random.default_rng([self.seed, *name.encode()])
                if system.routing == "sampled"
                else None,
            )
        except ValueError as error:
            raise self.plan_error(name, error) from error

    def serve(
        self,
        name: str,
        members: Mapping[str, Member],
        requests: RequestBatch,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Rows:
        """Requests through one system."""
        setups = [setup for member, of in members.items() for setup in self.setups(member, of)]
        think = self.workload.pause or 0.0
        counted = self.measure.asked if self.measure else None
        return serve_fleet(
            requests, setups, self.systems[name].router, think, progress=progress, counted=counted
        )

    def setups(self, name: str, member: Member) -> list[ReplicaConfig]:
        """What each replica of the copies of a plain system is."""
        system, deployment = self.plain(name), member.deployment
        machine = (
            self.machine_factory(name, deployment, copies=member.copies)
            if self.by_chip(name)
            else None
        )
        shared = (
            deployment.costs,
            deployment.limits,
            system.policies,
            system.request_overhead,
            machine,
            name,
        )
        of_each = member.deployment.layout.plan.replicas  # of each copy the same ones fail
        outages = [
            tuple(o for o in system.outages if o.replica == number) for number in range(of_each)
        ]
        error_sampler: list[LinkErrorSampler | None] = [None] * member.replicas
        if errors := system.link_errors:
            streams = np.random.default_rng([self.seed, *f"link errors of {name}".encode()]).spawn(
                member.replicas
            )
            error_sampler = [
                LinkErrorSampler(errors, deployment.costs, stream) for stream in streams
            ]
        return [
            ReplicaConfig(*shared, number, outages[number % of_each], error_sampler[number])
            for number in range(member.replicas)
        ]

    def whole(self, name: str) -> System:
        """A system with the model that it serves."""
        system = self.plain(name)
        return system.model_copy(update={"model": system.model or self.model})

    def unloaded(self, deployment: Deployment) -> SingleRequest:
        """A mean request that has the system for itself."""
        return time_single_request(
            deployment, round(self.workload.mean_prompt), round(self.workload.mean_output)
        )


def read(path: Path | str, overrides: list[str] | None = None) -> Scenario:
    """The scenario of a file, or of a catalogue name, with `a.b.c=value` assignments put in.

    Raises: ScenarioError, which says the file and line.
    """
    return of(document(path, overrides))


def document(path: Path | str, overrides: list[str] | None = None) -> Document:
    """The file of a scenario, or of a catalogue name, with assignments put in, not yet understood."""
    found = Document(Path(path) if os.path.isfile(path) else find_entry(str(path), "scenarios"))
    for assignment in overrides or []:
        found.set(assignment)
    return found


def of(document: Document) -> Scenario:
    """The scenario that a document describes.  Raises: ScenarioError, which says the file and line."""
    scenario = document.value(Scenario)
    scenario._given = document.data
    scenario._question = document.comment
    scenario._document = copy(document)  # a sweep sets other values in the document
    scenario._document.lines = dict(document.lines)
    return scenario


def fitting(scenario: Scenario, name: str) -> Deployment:
    """A plain system laid out.  Raises: PlanError where it does not fit."""
    deployment = scenario.deploy(name)
    try:
        require_fit(deployment, scenario.request_tokens)
    except PlanError as error:
        raise PlanError(f"{scenario.where(name)}: {error}") from None
    if scenario.by_chip(name):
        scenario.machine_factory(name, deployment)  # its exceptions are looked at
    try:
        if faults := scenario.plain(name).faults:
            require_simulable(
                faults, deployment.chips // deployment.layout.plan.replicas, deployment.load
            )
        replicas_fail(scenario, name, deployment.layout.plan.replicas)
        if errors := scenario.plain(name).link_errors:
            errors.require_finite_retries(deployment.costs)
    except ValueError as error:
        raise scenario.plan_error(name, error) from None
    return deployment


def replicas_fail(scenario: Scenario, name: str, replicas: int) -> None:
    """Check the outages of a system with `replicas` replicas.

    Raises: ValueError if a replica does not exist, or an outage begins during another one.
    """
    free = dict.fromkeys(range(replicas), 0.0)
    outages = sorted(enumerate(scenario.plain(name).outages), key=lambda pair: pair[1].at)
    for number, outage in outages:
        if outage.replica not in free:
            allowed = f"0 to {replicas - 1}" if replicas > 1 else "0, the only replica"
            reason = f"got {outage.replica}; expected {allowed}; try {replicas - 1}"
            raise error_at_path(("outages", number, "replica"), outage.replica, reason)
        if outage.at < free[outage.replica] * (1 - 1e-12):  # sums of floats have rounding errors
            end = f"{free[outage.replica]:g} s"
            reason = (
                f"got {outage.at:g} s; expected at least {end}, since replica {outage.replica} "
                f"is down until then; try {end}"
            )
            raise error_at_path(("outages", number, "at"), outage.at, reason)
        free[outage.replica] = outage.at + outage.lasts


def check(scenario: Scenario) -> dict[str, dict[str, Member]]:
    """Every system laid out, by its members.  Raises: PlanError at the first one that does not fit, or serves several models.

    A fleet's members are laid out anew: where experts are drawn, each system draws for itself.
    """
    return {name: laid_out(scenario, name) for name in scenario.systems}


def laid_out(scenario: Scenario, name: str) -> dict[str, Member]:
    """One system laid out, by its members.

    Raises: PlanError where one does not fit, they serve several models, or have too many replicas together.
    """
    copies = scenario.members(name)
    deployments = {member: fitting(scenario, member) for member in copies}
    scenario.require_few(name, deployments)
    return {
        member: Member(deployment, copies[member]) for member, deployment in deployments.items()
    }
