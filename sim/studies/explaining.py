"""Why a token takes its time: each term with its formula, its resource and its sources.

    explain(sim.read("llama2-70b-lpu-vs-h100"), ["lpu"]).systems["lpu"].token.lines[0].formula

The lines are those of the step itself (`sim.cost.contributions`).  Here they get their sources.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from pydantic import ValidationError

from sim.cost.contributions import Contribution, contributions, merged, way_back
from sim.cost.layout import Layout
from sim.cost.step import Costs
from sim.cost.terms import TERMS, TIME, Array
from sim.inputs.errors import UserError
from sim.inputs.suggestions import unknown_name
from sim.inputs.values import Sourced, Value
from sim.planning.deployment import Deployment
from sim.planning.single_request import first_token_path, mean_decode
from sim.results.explanation_summary import (
    ChangeEffect,
    ExplainedLine,
    ExplainedSystem,
    ExplainedTime,
    ExplanationSummary,
    NumberSource,
)
from sim.results.saving import Saved
from sim.scenario.layout import deploy_fitting
from sim.scenario.pools import both_pools, plain_systems
from sim.scenario.scenario import Scenario
from sim.studies.identity import plain_identity
from sim.studies.sensitivity import moved
from sim.units import Seconds, format_quantity

STEP = 0.1  # relative change of each number, whose effects are compared
TOP = 3  # effects that are shown
# Numbers of the engine that collectives depend on.
COLLECTIVE_KEYS = ("collective_latency", "collective_latency_per_chip", "collective_efficiency")
LINK_NUMBERS = (
    "latency",
    "bandwidth",
    "reduction",
    "collective_efficiency",
)  # ends of their names in a topology


def explain(
    scenario: Scenario, names: Iterable[str] | None = None, saved: Saved | None = None
) -> ExplanationSummary:
    """Return why the tokens of plain systems take their time.

    names: None takes all plain systems.  saved: a result of the same scenario, to compare with.
    Left out: attention and FFN pools; exceptions, jitter and contention of chip fidelity.
    Raises: UserError for an unknown system or a fleet; PlanError if a model does not fit.
    """
    plain, both = list(plain_systems(scenario.systems)), both_pools(scenario.systems)
    for name in names or (() if plain else both):
        if name in both:
            raise UserError(
                f"explain: systems.{name}: got attention and FFN pools, which are not explained; "
                "expected a system of one pool; try sramsim plan"
            )
        if name not in plain:
            raise unknown_name("--system", name, plain)
    systems = {}
    for name in names or plain:
        unloaded = saved.summary.unloaded_of(name) if saved else None
        system = _SystemExplainer(scenario, name).explained()
        systems[name] = replace(system, saved_tpot_ms=unloaded.tpot_ms if unloaded else None)
    return ExplanationSummary(scenario.id, systems)


def scenario_of_result(saved: Saved, where: str) -> Scenario:
    """Return the scenario of a saved result, with the plans that searches found.

    where: the folder, for errors.  Paths in it are relative to the working folder.
    Raises: UserError if the result has no inputs, or they are no scenario any more.
    """
    origin = saved.summary.origin
    if origin is None or not origin.inputs:
        raise UserError(f"{where}: got a result without inputs; expected those of `sramsim run`")
    data = _frozen({"id": saved.summary.scenario, **origin.inputs})
    try:
        scenario = Scenario.model_validate(data, context={"file": where})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(f"{where}: {key}: {problem['msg']}; try the scenario itself") from None
    systems = dict(scenario.systems)
    for name, summary in saved.summary.systems.items():
        for member, identity in summary.identity.parts(name).items():
            if identity.search:
                degrees = ("tensor", "attention_data", "expert", "pipeline", "replicas")
                plan = {key: getattr(identity.plan, key) for key in degrees}
                plan |= {"search": None, "kv": identity.precision.kv}
                own = scenario.plain(member)
                systems[member] = own.model_copy(update={"plan": own.plan.model_copy(update=plan)})
    return scenario.model_copy(update={"systems": systems})


def _frozen(value: object) -> object:
    """Return JSON data with tuples in place of lists, as scenarios have them."""
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class _Number:
    """A number of a system's files, and the layout with another value of it."""

    key: str
    value: float
    entry: Sourced | None
    path: str  # in the entry, whose `source` has it

    @property
    def source(self) -> NumberSource:
        text = self.entry.source_of(self.path) if self.entry else "set by the scenario"
        text = text or "no source given"
        kind = next((kind for kind in ("fitted", "assumed") if text.startswith(kind)), "sourced")
        return NumberSource(value=_number_text(self.path, self.value), kind=kind, source=text)


class _SystemExplainer:
    """The explanation of one plain system."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        self.scenario, self.name = scenario, name
        self.deployment: Deployment = deploy_fitting(scenario, name)
        self.layout: Layout = self.deployment.layout
        workload = scenario.workload
        self.prompt = max(1, round(workload.mean_prompt))
        output = max(2, round(workload.mean_output))
        self.work = mean_decode(self.deployment, self.prompt, output)

    def explained(self) -> ExplainedSystem:
        """Return the explanation."""
        costs, unloaded = self.deployment.costs, self.scenario.unloaded(self.deployment)
        whole = np.ones((2, costs.stages))
        token = merged([*contributions(costs, self.work, *whole), way_back(costs)])
        path = first_token_path(self.deployment, self.prompt)
        first = merged(line for step in path for line in contributions(costs, *step))
        tpot = sum(line.seconds for line in token)
        fitted, assumed = self.uncertain_seconds(token)
        identity = plain_identity(self.scenario, self.name, self.deployment)
        formats = identity.precision
        used = dict.fromkeys(key for line in (*token, *first) for key in self.keys_of(line))
        return ExplainedSystem(
            hardware=", ".join(identity.hardware),
            plan=identity.plan.text,
            precision="/".join((formats.weights, formats.activations, formats.kv, formats.head)),
            speed_label=identity.speed_label,
            context=self.work.context,
            prompt=self.prompt,
            token=self.time_of(token, unloaded.tpot),
            first_token=self.time_of(first, unloaded.ttft),
            fitted_share=fitted / tpot,
            assumed_share=assumed / tpot,
            effects=self.effects(),
            sources={key: self.numbers[key].source for key in used if key in self.numbers},
        )

    def time_of(self, lines: list[Contribution], simulated: Seconds) -> ExplainedTime:
        """Return a time with its lines."""
        total = sum(line.seconds for line in lines)
        sums = dict.fromkeys(TERMS, 0.0)
        for line in lines:
            sums[line.term] += 1000 * line.seconds
        return ExplainedTime(
            ms=1000 * total,
            simulated_ms=1000 * simulated,
            terms_ms=sums,
            lines=tuple(
                ExplainedLine(
                    term=line.term,
                    part=line.part,
                    what=line.what,
                    formula=formula_text(line),
                    binds=line.resource,
                    ms=1000 * line.seconds,
                    share=line.seconds / total,
                    engine_ms=1000 * (line.seconds - line.ideal),
                    keys=self.keys_of(line),
                )
                for line in lines
            ),
        )

    def keys_of(self, line: Contribution) -> tuple[str, ...]:
        """Return the keys of a line's numbers; for links, those that change its term."""
        if line.resource != "link":
            return line.keys
        term = TERMS.index(line.term)
        sending = "bandwidth" if line.unit == "B" else "latency"
        link_keys = [
            key
            for key, change in self.changes.items()
            if key.startswith(("topology.", "engine.collective_")) and change[term]
        ]
        own = [key for key in link_keys if _belongs(key, sending)]
        return (*line.keys, *(own or link_keys))

    def uncertain_seconds(self, lines: list[Contribution]) -> tuple[Seconds, Seconds]:
        """Return the seconds from fitted and from assumed numbers.

        The time that engine `ideal` would not need comes from the engine's numbers, the rest from
        those of chips and links.
        """
        sums = {"fitted": 0.0, "assumed": 0.0, "sourced": 0.0}
        for line in lines:
            kinds: dict[bool, set[str]] = {True: set(), False: set()}
            for key in self.keys_of(line):
                if key in self.numbers:
                    kinds[key.startswith("engine.")].add(self.numbers[key].source.kind)
            for of_engine, seconds in ((True, line.seconds - line.ideal), (False, line.ideal)):
                sums[_worst(kinds[of_engine])] += seconds
        return sums["fitted"], sums["assumed"]

    def effects(self) -> tuple[ChangeEffect, ...]:
        """Return the numbers whose change by a tenth changes the token's time most."""
        tpot = float(self.times.sum())
        ranked = sorted(self.changes.items(), key=lambda pair: -abs(pair[1].sum()))
        return tuple(
            ChangeEffect(
                key=key,
                change_pct=100 * _step(self.numbers[key]),
                tpot_pct=100 * float(change.sum()) / tpot,
            )
            for key, change in ranked[:TOP]
            if change.any()
        )

    @cached_property
    def times(self) -> Array:
        """float[term]: seconds of a token."""
        return self.times_on(self.layout)

    def times_on(self, layout: Layout) -> Array:
        """Return float[term]: seconds of a token on a layout with other numbers."""
        costs = Costs(layout)
        table: Array = costs.terms(self.work)[:, TIME].sum(axis=0)
        table[TERMS.index("hops")] += costs.back
        return table

    @cached_property
    def changes(self) -> dict[str, Array]:
        """float[term] by key: what a step of each number adds to a token's time [s]."""
        return {
            key: self.times_on(self.moved_layout(number)) - self.times
            for key, number in self.numbers.items()
            if number.value
        }

    def moved_layout(self, number: _Number) -> Layout:
        """Return the layout with one number changed by a tenth."""
        part, _, path = number.key.partition(".")
        text = repr(number.value * (1 + _step(number)))
        entry = moved(getattr(self.layout, part), path.split("."), text)
        return replace(self.layout, **{part: entry})

    @cached_property
    def numbers(self) -> dict[str, _Number]:
        """The numbers that a token's time may depend on, by key."""
        layout, system = self.layout, self.scenario.plain(self.name)
        costs, path = self.deployment.costs, first_token_path(self.deployment, self.prompt)
        keys = {
            key
            for step in [(self.work, *np.ones((2, costs.stages))), *path]
            for line in contributions(costs, *step)
            for key in line.keys
        }
        keys |= {f"engine.{key}" for key in COLLECTIVE_KEYS}
        keys |= {f"topology.{path}" for path in _link_paths(layout.topology)}
        owner: Sourced | None = layout.chip
        if system.topology:
            owner = None
        elif system.cluster and system.cluster.topology:
            owner = system.cluster
        numbers = {}
        for key in sorted(keys):
            part, _, rest = key.partition(".")
            value = _value_at(getattr(layout, part), rest)
            if isinstance(value, float | int):
                entry = owner if part == "topology" else getattr(layout, part)
                path_there = key if part == "topology" else rest
                numbers[key] = _Number(key, float(value), entry, path_there)
        return numbers


def formula_text(line: Contribution) -> str:
    """Return a line's formula with its values: '68.7 GB / (8 chips x 3.35 TB/s x 0.78)'."""
    if line.rate is None:
        count = f"{line.count:,.5g}"
        return f"{count} x {format_quantity(line.amount / line.count, 's')}"
    factors = [f"{line.chips} chips"] if line.chips > 1 else []
    factors.append(format_quantity(line.rate, f"{line.unit}/s"))
    factors += [f"{line.efficiency:.3g}"] if line.efficiency != 1 else []
    below = " x ".join(factors)
    below = f"({below})" if len(factors) > 1 else below
    return f"{format_quantity(line.amount, line.unit)} / {below}"


def _step(number: _Number) -> float:
    """Return the relative change of a number; a share of at most 1 can only fall."""
    return -STEP if "efficiency" in number.key or number.key.endswith("overlap") else STEP


def _worst(kinds: set[str]) -> str:
    return next((kind for kind in ("fitted", "assumed") if kind in kinds), "sourced")


def _belongs(key: str, sending: str) -> bool:
    """Return whether a number of links is one of bandwidth, or of latency."""
    of_bytes = key.endswith("bandwidth") or "efficiency" in key
    return of_bytes == (sending == "bandwidth")


def _link_paths(value: object, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of a topology's numbers of links."""
    if isinstance(value, Value):
        pairs = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, tuple):
        pairs = [(str(number), item) for number, item in enumerate(value)]
    elif isinstance(value, Mapping):
        pairs = [*value.items()]
    else:
        names = path.split(".")[-2:]  # a share by chips is one level below its name
        if isinstance(value, float) and not {*names}.isdisjoint(LINK_NUMBERS):
            yield path
        return
    for name, item in pairs:
        yield from _link_paths(item, f"{path}.{name}" if path else name)


def _value_at(value: object, path: str) -> object:
    """Return the number at a dotted path; None if there is none."""
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, tuple):
            value = value[int(part)]
        else:
            value = getattr(value, part, None)
    return value


def _number_text(path: str, value: float) -> str:
    """Return a number with the unit of its key."""
    last = path.rpartition(".")[2]
    if last.endswith("bandwidth") or last == "weight_load":
        return format_quantity(value, "B/s")
    if path.startswith("compute."):
        return format_quantity(value, "FLOP/s")
    if "efficiency" in path or last == "overlap":
        return f"{value:g}"
    return format_quantity(value, "s")
