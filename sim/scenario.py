"""A scenario: systems under one workload.  `run(scenario)` gives a Result, `planned(scenario)` what each system holds."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PrivateAttr, field_validator, model_validator

from sim import __version__
from sim.chip import Chip, ChipField, ClusterField
from sim.engine import EngineField, NetworkMode, Sigma
from sim.files import Document, Value, find
from sim.irregular import Exceptional, irregular
from sim.machine import Machines, machines
from sim.measurements import published
from sim.metrics import Measure, SLOField, summary
from sim.model import ModelField
from sim.plan import Plan, PlanError, PlanField, sequences, weights_only_chips
from sim.planner import Deployment, Lone, deploy, lone_request, minimum_chips, require_fit
from sim.policy import BatchingField, OrderField, Policies, RouterField
from sim.records import Rows, Saved
from sim.serve import serve
from sim.topology import Topology, TopologyField
from sim.units import Count, Fraction, Seconds, Tokens
from sim.workload import Closed, Requests, WorkloadField


class System(Value):
    """Chips, the software on them, and how the model is laid on them; serving options default to the engine's and the chip's.

    The chips are `chips` of a `chip`, or a `cluster`, of which `chips` may take a part.

    How it schedules: `policy` is what a micro-batch does next (`micro_batch`: of how many sequences at most), `order` who is next,
    `admission` whether room in the KV cache is reserved for the whole output, or only the prompt's is asked for and the youngest
    sequence preempted where the room runs out; `prefix_caching` keeps the blocks of prompts.  Beyond `max_waiting` waiting
    requests others are refused; one not finished `deadline` after it was sent is cancelled; `router` says which replica gets it.

    `fidelity` may differ from the scenario's.  At chip fidelity, `network` and `jitter` stand for the engine's where they are
    given, and `exceptions` are the chips and links that are not as the others.
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
    policy: BatchingField = Field(default="continuous", validate_default=True)
    micro_batch: Count | None = None
    order: OrderField = Field(default="first-come-first-served", validate_default=True)
    admission: Literal["reserve", "prompt"] = "reserve"
    prefix_caching: bool = False
    max_waiting: Annotated[int, Field(ge=0)] | None = None
    deadline: Annotated[Seconds, Field(gt=0)] | None = None
    router: RouterField = Field(default="least-loaded", validate_default=True)
    fidelity: Literal["stage", "chip"] | None = None
    network: NetworkMode | None = None
    jitter: Sigma | None = None
    exceptions: tuple[Exceptional, ...] = ()

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
            batching=self.policy,
            order=self.order,
            router=self.router,
            reserve=self.admission == "reserve",
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


class Scenario(Value):
    """One question: the same requests through each system.

    `fidelity: stage` computes the chips of a stage in lock step; `chip` makes every chip a process and every link a resource.
    """

    id: str = "scenario"
    model: ModelField
    seed: Annotated[int, Field(ge=0)] = 0
    fidelity: Literal["stage", "chip"] = "stage"
    workload: WorkloadField
    slo: SLOField | None = None
    measure: Measure | None = None
    systems: dict[str, System]

    @field_validator("systems")
    @classmethod
    def _some(cls, systems: dict[str, System]) -> dict[str, System]:
        if not systems:
            raise ValueError("name at least one system")
        return systems

    @model_validator(mode="after")
    def _what_only_chips_have(self) -> "Scenario":
        for name, system in self.systems.items():
            given = [key for key in ("network", "jitter", "exceptions") if getattr(system, key) not in (None, ())]
            if given and not self.by_chip(name):
                raise ValueError(f"systems.{name}: {given[0]} needs fidelity: chip")
        return self

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    _where: dict[str, str] = PrivateAttr(default_factory=dict)  # system -> 'file:line: ', for errors

    @property
    def given(self) -> dict[str, Any]:
        """What the file said, with the assignments of the command line; empty for a scenario made in code."""
        return self._given

    def by_chip(self, name: str) -> bool:
        """Whether every chip of a system is a process."""
        return (self.systems[name].fidelity or self.fidelity) == "chip"

    def machines(self, name: str, deployment: Deployment, recording: bool = False) -> Machines:
        """What makes the chips of a system's replicas.  Raises: PlanError where its exceptions name what it does not have."""
        system, layout = self.systems[name], deployment.layout
        scheduled = (system.network or layout.engine.network) == "scheduled"
        jitter = (layout.engine.jitter or 0.0) if system.jitter is None else system.jitter
        try:
            parts = [
                irregular(layout, system.exceptions, replica, scheduled, jitter, self.request_tokens, deployment.limits.kv_tokens)
                for replica in range(layout.plan.replicas)
            ]
        except (ValueError, PlanError) as error:
            raise PlanError(f"{self._where.get(name, '')}systems.{name}: {error}") from error
        return machines(deployment.costs, parts, [self.seed, *name.encode()], recording)

    @property
    def request_tokens(self) -> float:
        """Prompt and output of a mean request: what a plan must have room for, to fit."""
        return self.workload.mean_prompt + self.workload.mean_output

    def deploy(self, name: str) -> Deployment:
        """One system laid out.  Raises: PlanError where its parts contradict each other (not where it does not fit)."""
        system = self.systems[name]
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
        deployment: Deployment,
        requests: Requests,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Rows:
        """Requests through one system."""
        return serve(
            requests,
            deployment.costs,
            deployment.limits,
            replicas=deployment.layout.plan.replicas,
            overhead=self.systems[name].request_overhead,
            think=self.workload.think if isinstance(self.workload, Closed) else 0.0,
            policies=self.systems[name].policies,
            machine=self.machines(name, deployment) if self.by_chip(name) else None,
            progress=progress,
        )

    def lone(self, deployment: Deployment) -> Lone:
        """A mean request that has the system for itself."""
        return lone_request(deployment, round(self.workload.mean_prompt), round(self.workload.mean_output))


@dataclass(frozen=True, eq=False)
class SystemResult:
    """What one system did, and what it is."""

    deployment: Deployment
    lone: Lone
    rows: Rows
    metrics: dict[str, Any]

    @property
    def network(self) -> dict[str, Any]:
        """The fidelity; at chip fidelity also what the links carried, and those that messages waited for longest."""
        if not self.rows.traffic:
            return {"fidelity": "stage"}
        several = len(self.rows.traffic) > 1
        waited: list[dict[str, Any]] = [
            {"link": f"replica {i}: {link}" if several else link, "messages": n, "busy_ms": 1000 * busy, "waited_ms": 1000 * waited}
            for i, traffic in enumerate(self.rows.traffic)
            for link, n, busy, waited in traffic.most_waited()
        ]
        return {
            "fidelity": "chip",
            "network": {
                "messages": sum(traffic.messages for traffic in self.rows.traffic),
                "waited_ms": 1000 * sum(traffic.waited for traffic in self.rows.traffic),
                "links_waited_for": sorted(waited, key=lambda link: -link["waited_ms"])[:5],
            },
        }


@dataclass(frozen=True, eq=False)
class Result:
    """What every system of a scenario did under the same requests."""

    scenario: Scenario
    seed: int
    systems: dict[str, SystemResult]

    def as_json(self) -> dict[str, Any]:
        """The contract of `run --json`: no wall time, no path, no commit in it."""
        systems = {
            name: describe(s.deployment) | s.network | s.metrics | {"lone_request": lone_json(s.lone)}
            for name, s in self.systems.items()
        }
        note = next(iter(self.systems.values())).rows.requests.note
        noted = {"note": note} if note else {}  # what of a trace was left out or cut
        return {"scenario": self.scenario.id, "seed": self.seed, **noted, "systems": systems}

    def saved(self) -> Saved:
        """The result as it is kept in a folder: the summary with version and inputs, and the requests' rows."""
        import polars

        tables = [s.rows.table(name) for name, s in self.systems.items()]
        inputs = {"version": __version__, "inputs": self.scenario.given}
        return Saved(self.as_json() | inputs, polars.concat(tables))


@dataclass(frozen=True, eq=False)
class Planned:
    """What each system holds, and how fast a lone request would be where it fits."""

    scenario: Scenario
    deployments: dict[str, Deployment]
    lone: dict[str, Lone]
    minimum: dict[str, tuple[int, int, int] | None]

    def as_json(self, lengths: list[int]) -> dict[str, Any]:
        """The contract of `plan --json`, with how many sequences of each length fit."""
        systems = {}
        for name, deployment in self.deployments.items():
            fit, minimum = deployment.fit, self.minimum[name]
            fitting = {str(n): sequences(deployment.layout, n) for n in lengths}
            parts = ("weights", "kv", "activations", "reserve", "capacity")
            systems[name] = {
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
        "precision": {key: getattr(plan, key) for key in ("weights", "attention", "activations", "kv", "head")},
        "memory": {"weights": plan.weights_in, "kv": plan.kv_in},
        "memories": list(layout.chip.memory),
        "weight_bandwidth": {
            "claimed": layout.chip.claimed_bandwidth or layout.weights_memory.bandwidth,
            "chip": layout.chip.weight_bandwidth(layout.weights_memory, plan.given("weights")),
        },
        "token_budget": layout.token_budget,
        "kv_tokens": deployment.limits.kv_tokens,
        "published": [
            {"id": p.id, "tokens_per_second": p.speed, "engine": p.engine, "weights": p.weights, "date": p.date, "source": p.source}
            for p in published(layout.model.id, layout.chip.id, deployment.chips // plan.replicas)
        ],
    }


def read(path: Path | str, overrides: list[str] | None = None) -> Scenario:
    """The scenario of a file, or of a catalogue name, with `a.b.c=value` assignments put in.

    Raises: ScenarioError, which says the file and line.
    """
    document = Document(Path(path) if os.path.isfile(path) else find(str(path), "scenarios"))
    for assignment in overrides or []:
        document.set(assignment)
    scenario = document.value(Scenario)
    scenario._given = document.data
    scenario._where = {name: f"{document.where('systems', name)}: " for name in scenario.systems}
    return scenario


def planned(scenario: Scenario) -> Planned:
    """What each system of a scenario holds; a system that does not fit is shown so."""
    deployments = {name: scenario.deploy(name) for name in scenario.systems}
    lone = {name: scenario.lone(d) for name, d in deployments.items() if d.fit.fits}
    minimum = {name: minimum_chips(d, scenario.request_tokens) for name, d in deployments.items()}
    return Planned(scenario, deployments, lone, minimum)


def fitting(scenario: Scenario, name: str) -> Deployment:
    """One system laid out.  Raises: PlanError where it does not fit."""
    deployment = scenario.deploy(name)
    try:
        require_fit(deployment, scenario.request_tokens)
    except PlanError as error:
        raise PlanError(f"{scenario._where.get(name, '')}systems.{name}: {error}") from None
    if scenario.by_chip(name):
        scenario.machines(name, deployment)  # its exceptions are looked at
    return deployment


def check(scenario: Scenario) -> dict[str, Deployment]:
    """Every system laid out.  Raises: PlanError at the first one that does not fit."""
    return {name: fitting(scenario, name) for name in scenario.systems}


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
    deployments = check(scenario)
    requests = scenario.workload.draw(seed)
    results = {}
    for name, deployment in deployments.items():
        rows = scenario.serve(name, deployment, requests, partial(progress, name))
        lone = scenario.lone(deployment)
        metrics = summary(rows, scenario.slo, scenario.measure) | {"fitted_share": lone.fitted_share}
        results[name] = SystemResult(deployment, lone, rows, metrics)
    return Result(scenario, seed, results)
