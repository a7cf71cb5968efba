"""Why a token takes its time: each term with its formula, its resource and its sources.

    explain(sim.read("llama2-70b-lpu-vs-h100"), ["lpu"]).systems["lpu"].token.lines[0].formula

The lines are those of the step itself (`sim.cost.contributions`).  Here they get their sources.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from sim.cost.causes import DRAFTER
from sim.cost.contributions import Contribution, contributions, merged, way_back
from sim.cost.system_costs import SystemCosts, token_terms
from sim.cost.terms import TERMS, TIME, Array
from sim.inputs.errors import UserError
from sim.inputs.suggestions import unknown_name
from sim.planning.deployment import Deployment
from sim.planning.single_request import first_token_path, mean_decode
from sim.results.explanation_summary import (
    ChangeEffect,
    ExplainedLine,
    ExplainedSystem,
    ExplainedTime,
    ExplanationSummary,
)
from sim.results.saving import Saved, inputs_of_result
from sim.scenario.layout import deploy_fitting
from sim.scenario.pools import both_pools, plain_systems
from sim.scenario.scenario import Scenario
from sim.studies.file_numbers import DRAFTS, FileNumber, file_numbers, with_change
from sim.studies.identity import plain_identity
from sim.units import Seconds, format_quantity

TOP = 3  # effects that are shown
TRANSFER_KEYS = (("transfer.bandwidth",), ("transfer.latency",))


def explain(
    scenario: Scenario, names: Iterable[str] | None = None, saved: Saved | None = None
) -> ExplanationSummary:
    """Return why the tokens of plain systems take their time.

    names: None takes all of them. An attention pool and its FFN pool are one system.
    saved: a result of the same scenario, to compare with.
    Left out: exceptions, jitter and contention of chip fidelity.
    Raises: UserError for an unknown system or a fleet; PlanError if a model does not fit.
    """
    plain = [*plain_systems(scenario.systems), *both_pools(scenario.systems)]
    for name in names or ():
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

    where: the folder.
    Raises: UserError if the result has no inputs, or they are no scenario any more.
    """
    origin = saved.summary.origin
    if origin is None or not origin.inputs:
        raise UserError(f"{where}: got a result without inputs; expected those of `sramsim run`")
    data = {"id": saved.summary.scenario, **inputs_of_result(origin, Path(where))}
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


class _SystemExplainer:
    """The explanation of one plain system."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        self.scenario, self.name = scenario, name
        self.deployment: Deployment = deploy_fitting(scenario, name)
        self.costs: SystemCosts = self.deployment.costs
        workload = scenario.workload
        self.prompt = max(1, round(workload.mean_prompt))
        output = max(2, round(workload.mean_output))
        self.work = mean_decode(self.deployment, self.prompt, output)

    def explained(self) -> ExplainedSystem:
        """Return the explanation."""
        costs, unloaded = self.costs, self.scenario.unloaded(self.deployment)
        share = 1 / self.deployment.layout.mean_tokens  # of a step, which yields as many tokens
        whole = np.full((2, costs.stages), share)
        token = merged([*contributions(costs, self.work, *whole), way_back(costs, share)])
        path = first_token_path(self.deployment, self.prompt)
        first = merged(line for step in path for line in contributions(costs, *step))
        tpot = sum(line.seconds for line in token)
        fitted, assumed = self.uncertain_seconds(token)
        identity = plain_identity(self.scenario, self.name, self.deployment)
        formats = identity.precision
        used = dict.fromkeys(key for line in (*token, *first) for key in self.keys_of(line))
        return ExplainedSystem(
            hardware=", ".join(identity.hardware),
            plan=f"FFN pool {ffn.text}; attention {identity.plan.text}"
            if (ffn := identity.ffn)
            else identity.plan.text,
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
        if line.resource != "link" or line.keys[:1] in TRANSFER_KEYS:
            return line.keys
        term = TERMS.index(line.term)
        sending = "bandwidth" if line.unit == "B" else "latency"
        link_keys = [
            key
            for key, change in self.changes.items()
            if self.numbers[key].is_of_links
            and key.startswith(DRAFTS) == line.what.startswith(DRAFTER)
            and change[term]
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
                    number = self.numbers[key]
                    kinds[number.is_of_engine].add(number.source.kind)
            for of_engine, seconds in ((True, line.seconds - line.ideal), (False, line.ideal)):
                sums[_worst(kinds[of_engine])] += seconds
        return sums["fitted"], sums["assumed"]

    def effects(self) -> tuple[ChangeEffect, ...]:
        """Return the numbers whose change by a tenth changes the token's time most."""
        tpot = float(self.times.sum())
        largest = sorted(self.changes.items(), key=lambda pair: -abs(pair[1].sum()))
        return tuple(
            ChangeEffect(
                key=key,
                change_pct=100 * self.numbers[key].change,
                tpot_pct=100 * float(change.sum()) / tpot,
            )
            for key, change in largest[:TOP]
            if change.any()
        )

    @cached_property
    def times(self) -> Array:
        """float[term]: seconds of a step."""
        times: Array = token_terms(self.costs, self.work)[TIME]
        return times

    @cached_property
    def changes(self) -> dict[str, Array]:
        """float[term] by key: what a step of each number adds to a token's time [s]."""
        return {
            key: token_terms(with_change(self.costs, number), self.work)[TIME] - self.times
            for key, number in self.numbers.items()
            if number.value
        }

    @cached_property
    def numbers(self) -> dict[str, FileNumber]:
        """The numbers that a token's time may depend on, by key."""
        path = first_token_path(self.deployment, self.prompt)
        steps = [(self.work, *np.ones((2, self.costs.stages))), *path]
        lines = (line for step in steps for line in contributions(self.costs, *step))
        keys = [key for line in lines for key in line.keys]
        return file_numbers(self.scenario, self.name, self.costs, keys)


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


def _worst(kinds: set[str]) -> str:
    return next((kind for kind in ("fitted", "assumed") if kind in kinds), "sourced")


def _belongs(key: str, sending: str) -> bool:
    """Return whether a number of links is one of bandwidth, or of latency."""
    of_bytes = key.endswith("bandwidth") or "efficiency" in key
    return of_bytes == (sending == "bandwidth")
