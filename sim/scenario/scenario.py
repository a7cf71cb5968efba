"""A scenario: one question, and the systems that it compares.

`read(path)` returns the scenario of a file, and `layout.check(scenario)` lays out its systems.
"""

import os
from collections.abc import Mapping
from copy import copy
from pathlib import Path

from pydantic import (
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from sim import __version__
from sim.catalogue.entries import scenario_sources
from sim.cost.plan import MOST_REPLICAS, PlanError
from sim.inputs.document import Document, is_assigned_place
from sim.inputs.errors import UserError, errors_below
from sim.inputs.key_paths import JsonObject
from sim.inputs.names import find_entry
from sim.inputs.values import Value
from sim.planning.deployment import Deployment, deploy
from sim.planning.remote_draft import deploy_with_drafter
from sim.planning.single_request import SingleRequest, time_single_request
from sim.reliability.failures import spare_chips
from sim.results.summary import RunOrigin
from sim.scenario.assignments import assign_all
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.checks import check_members, check_scenario
from sim.scenario.keys import ScenarioKeys
from sim.scenario.placement import too_many_replicas
from sim.scenario.plan_search import PlanSearch
from sim.scenario.pools import (
    POOLS,
    AnySystem,
    Pools,
    key_path,
    member_system,
    parts_with_chips,
)
from sim.scenario.system import System


class _Places:
    """The places of a scenario's keys, for errors.  Equal to all others: a place is no content."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, document: Document | None) -> None:
        self.document = document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Places)

    def where(self, *path: str) -> str:
        """Return the place of a key, as 'mine.yaml:7'; empty for a scenario made in code."""
        return self.document.where(*path) if self.document else ""


class Scenario(ScenarioKeys):
    """One question: the same requests, served by each system."""

    @field_validator("systems")
    @classmethod
    def _some(cls, systems: dict[str, AnySystem]) -> dict[str, AnySystem]:
        check_members(systems)
        return systems

    @model_validator(mode="after")
    def _consistent(self) -> "Scenario":
        check_scenario(self)
        return self

    _given: JsonObject = PrivateAttr(default_factory=dict)
    _question: str = PrivateAttr(default="")
    _places: _Places = PrivateAttr(default_factory=lambda: _Places(None))
    _searches: dict[str, PlanSearch] = PrivateAttr(default_factory=dict)

    @property
    def given(self) -> JsonObject:
        """The data of the file with the command line's assignments; empty if made in code."""
        return self._given

    @property
    def document(self) -> Document | None:
        """The document that it was read from; None if made in code."""
        return self._places.document

    @property
    def question(self) -> str:
        """The opening comment of the file; empty if made in code."""
        return self._question

    @property
    def searches(self) -> dict[str, PlanSearch]:
        """The searches of plans with `search: capacity`, by system."""
        return self._searches

    def with_searched(
        self, name: str, values: Mapping[str, Value], search: PlanSearch
    ) -> "Scenario":
        """Return the scenario with the values that a search found, by key of a system."""
        system = self.systems[name].model_copy(update=dict(values))
        changed = self.model_copy(update={"systems": self.systems | {name: system}})
        changed._searches = self.searches | {name: search}
        return changed

    @property
    def origin(self) -> RunOrigin:
        """The origin for a result: version, the file's opening comment, inputs, all sources."""
        return RunOrigin(
            version=__version__,
            question=self.question,
            inputs=self.given,
            sources=scenario_sources(self.given),
        )

    def spare_chips(self, name: str, part: int = 0) -> int:
        """Return the chips of a plain system's spare nodes.

        part: place of the part that has them: first its own chips or those of an attention pool,
        then those of an FFN pool, and last those of a drafter.
        Raises: PlanError if they cannot be counted.
        """
        path, system = [*parts_with_chips(self.systems, name).items()][part]
        if not system.faults or not system.faults.spares:
            return 0
        replicas, chips = system.plan.replicas, system.hardware[1]
        if system.plan.search:  # only the deployment has the replicas that the search found
            deployment = self.deploy(name)
            replicas, chips = deployment.layout.plan.replicas, deployment.own_chips
        try:
            with errors_below(*path):
                return replicas * spare_chips(system.faults, chips // replicas)
        except ValueError as error:
            raise self.plan_error(name, error) from None

    def where(self, name: str, *keys: int | str) -> str:
        """Return the place of a key of a system for errors: 'mine.yaml:7: systems.lpu.plan'."""
        return self.where_key("systems", *key_path(self.systems, name), *map(str, keys))

    def where_key(self, *path: str) -> str:
        """Return the place of a key for errors: 'mine.yaml:7: slo'; made in code the key alone."""
        dotted = ".".join(path)
        place = self._places.where(*path)
        if not place or is_assigned_place(place, dotted):
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

    def shown(self, name: str) -> System | AttentionFfn:
        """Return the system with the label and the colour of a plain one."""
        system = member_system(self.systems, name)
        return system if isinstance(system, AttentionFfn) else self.plain(name)

    def members(self, name: str) -> dict[str, int]:
        """Return the plain systems of a system, and the copies of each.

        A plain system has only itself. The pools of 'pd' are 'pd.prefill' and 'pd.decode'.
        Raises: PlanError if they serve several models.
        """
        system = self.systems.get(name)
        if system is None or isinstance(system, System | AttentionFfn):
            return {name: 1}
        copies = (
            {f"{name}.{pool}": getattr(system.copies, pool) for pool in POOLS}
            if isinstance(system, Pools)
            else system.fleet
        )
        models = {member: self.plain(member).model or self.model for member in copies}
        first = next(iter(models))
        for member, model in models.items():
            if model != models[first]:
                parts = "both pools" if isinstance(system, Pools) else "all members"
                raise PlanError(
                    f"{self.where(name)}: got {models[first].id} for {first} and {model.id} for"
                    f" {member}; expected one model for {parts}; try one `model` for them"
                )
        return copies

    def require_few(self, name: str, deployments: Mapping[str, Deployment]) -> None:
        """Raise PlanError if a system has too many replicas to simulate, over all copies."""
        replicas = sum(
            n * deployments[member].layout.plan.replicas for member, n in self.members(name).items()
        )
        if replicas > MOST_REPLICAS:
            raise PlanError(f"{self.where(name)}: {too_many_replicas(replicas)}")

    @property
    def request_tokens(self) -> float:
        """The tokens of a mean request, prompt and output, for which a plan needs room."""
        return self.workload.mean_prompt + self.workload.mean_output

    def deploy(self, name: str) -> Deployment:
        """Return the deployment of a plain system, also if it does not fit.

        Raises: PlanError if its parts contradict each other.
        """
        system, pools = self.plain(name), member_system(self.systems, name)
        model, of = system.model or self.model, system.speculate
        try:
            if isinstance(pools, AttentionFfn):
                lengths = self.request_tokens, self.workload.mean_prompt
                # A prefill pool has the drafts of its decode pool.
                return pools.model_copy(update={"attention": system}).deploy(model, lengths)
            speculation = of.speculation(model) if of else None
            parts, limits = system.parts(model, speculation), system.limits
            if of and speculation and (drafter := system.drafter):
                lengths = self.request_tokens, self.workload.mean_prompt
                drafting = drafter.parts(speculation.model), drafter.limits
                return deploy_with_drafter((parts, limits), drafting, of.draft.exchange, lengths)
            return deploy(
                parts,
                self.request_tokens,
                self.workload.mean_prompt,
                limits,
            )
        except ValueError as error:
            raise self.plan_error(name, error) from error

    def whole(self, name: str) -> System:
        """Return a plain system with the model that it serves."""
        system = self.plain(name)
        return system.model_copy(update={"model": system.model or self.model})

    def unloaded(self, deployment: Deployment) -> SingleRequest:
        """Return the times of a mean request on an otherwise idle system."""
        return time_single_request(
            deployment, round(self.workload.mean_prompt), round(self.workload.mean_output)
        )


def read(path: Path | str, overrides: list[str] | None = None) -> Scenario:
    """Return the scenario of a file or a catalogue name, with `a.b.c=value` assignments.

    Raises: ScenarioError, with file and line, if there is no such file or a value is wrong.
    Raises: UserError for what is neither.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            f"path: got {type(path).__name__}; expected a path or a name of the catalogue; try "
            "sim.run, which also takes a mapping"
        )
    return scenario_from(open_document(path, overrides))


def open_document(path: Path | str, overrides: list[str] | None = None) -> Document:
    """Return the document of a file or a catalogue name with assignments, not yet validated.

    Raises: ScenarioError if there is no such file, or an assignment is wrong.
    """
    document = Document(Path(path) if os.path.isfile(path) else find_entry(str(path), "scenarios"))
    assign_all(document, overrides or [])
    return document


def scenario_from(document: Document) -> Scenario:
    """Return the scenario of a document.  Raises: ScenarioError with file and line."""
    scenario = document.value(Scenario)
    scenario._given = document.data
    scenario._question = document.comment
    places = copy(document)  # a sweep sets other values in the document
    places.lines = dict(document.lines)
    scenario._places = _Places(places)
    return scenario
