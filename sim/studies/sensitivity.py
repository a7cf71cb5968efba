"""How much uncertain numbers change TPOT, TTFT, joules and dollars: of a single request, or loaded.

    sensitivity(sim.read("llama2-70b-lpu-vs-h100"))["lpu"].band("tpot")  # least and most [s]

A number is uncertain if its file has a `range` for it.  The range is what a datasheet leaves open,
or two standard errors of a fit.  Each number is moved to the two ends of its range, and the others
stay.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sim.cost.energy import Tally, energy
from sim.cost.plan import PlanError
from sim.economics.token_price import ServedTokens, token_price
from sim.inputs.errors import ScenarioError
from sim.planning.deployment import Deployment
from sim.results.sensitivity_summary import (
    MetricBands,
    RequestMetrics,
    SwingSummary,
    SystemSensitivity,
)
from sim.scenario.attention_ffn import AttentionFfn
from sim.scenario.pools import both_pools, plain_systems
from sim.scenario.scenario import Scenario
from sim.studies.accounts import energy_parts, total_capex
from sim.studies.run import run
from sim.studies.uncertain_numbers import Studied, uncertain_numbers
from sim.units import Seconds

# Fields of a result, by metric. Joules and dollars are missing if they are unknown.
SENSITIVITY_METRICS = {
    "tpot": "tpot_ms",
    "ttft": "ttft_ms",
    "joules": "joules_per_token",
    "usd": "usd_per_mtok",
}
UNITS = {"tpot": 1000, "ttft": 1000}  # of a result in the unit of the metric


@dataclass(frozen=True, slots=True)
class Swing:
    """An uncertain number, and the metrics at the two ends of its range.

    low, high: by metric; None if the model does not fit there.
    """

    key: str  # such as 'engine.layer_overhead'
    value: str
    ends: tuple[str, str]
    low: dict[str, float] | None
    high: dict[str, float] | None
    source: str

    def width(self, metric: str, base: Mapping[str, float]) -> float:
        """Return the difference between the most and the least of a metric."""
        values = [end[metric] for end in (self.low, self.high) if end] + [base[metric]]
        return max(values) - min(values)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A system, its metrics, and their swings; the widest swing of TPOT is first."""

    base: dict[str, float]
    swings: tuple[Swing, ...]
    system: Studied

    def band(self, metric: str) -> tuple[float, float]:
        """Return the least and the most of a metric if the numbers are independent.

        Deviations are added in squares; those that lower the metric and those that raise it apart.
        """
        base = self.base[metric]
        moves = [
            [0.0, *(end[metric] - base for end in (swing.low, swing.high) if end)]
            for swing in self.swings
        ]
        down = math.sqrt(sum(min(move) ** 2 for move in moves))
        up = math.sqrt(sum(max(move) ** 2 for move in moves))
        return base - down, base + up

    @property
    def summary(self) -> SystemSensitivity:
        """The sensitivity as a result has it, with times in ms."""
        bands = {}
        for name, key in SENSITIVITY_METRICS.items():
            if name in self.base:
                low, high = self.band(name)
                bands[key] = (UNITS.get(name, 1) * low, UNITS.get(name, 1) * high)
        system = self.system.attention if isinstance(self.system, AttentionFfn) else self.system
        chip = system.hardware[0]
        return SystemSensitivity(
            label=self.system.full_label,
            colour=self.system.colour,
            vendor=chip.vendor or None,
            chip=chip.id,
            base=_request_metrics(self.base),
            bands=MetricBands(**bands),
            swings=tuple(
                SwingSummary(
                    key=swing.key,
                    value=swing.value,
                    ends=swing.ends,
                    low=_request_metrics(swing.low) if swing.low else None,
                    high=_request_metrics(swing.high) if swing.high else None,
                    source=swing.source,
                )
                for swing in self.swings
            ),
        )


def _request_metrics(metrics: Mapping[str, float]) -> RequestMetrics:
    """Return metrics by name as a result has them, with times in ms."""
    return RequestMetrics(
        **{
            key: metrics[name] * UNITS.get(name, 1)
            for name, key in SENSITIVITY_METRICS.items()
            if name in metrics
        }
    )


def sensitivity(
    scenario: Scenario,
    progress: Callable[[str, int, int], None] = lambda system, done, total: None,
    loaded: bool = False,
) -> dict[str, Sensitivity]:
    """Return the sensitivity of every plain system of a scenario, also of members of fleets.

    loaded: whether each system serves the scenario's requests, instead of a single one.
    Raises: PlanError if one does not fit as it is; ScenarioError if no number is uncertain.
    """
    result, metrics_of = {}, loaded_metrics if loaded else single_request_metrics
    studied: dict[str, Studied] = {
        **plain_systems(scenario.systems),
        **both_pools(scenario.systems),
    }
    for name, system in studied.items():
        numbers = list(uncertain_numbers(system))
        base = metrics_of(scenario, name, system)
        assert base is not None
        swings = []
        for done, number in enumerate(numbers):
            progress(name, done, len(numbers))
            low, high = (metrics_of(scenario, name, number.moved_to(end)) for end in number.ends)
            swings.append(Swing(number.key, number.value, number.ends, low, high, number.source))
        progress(name, len(numbers), len(numbers))
        swings.sort(key=lambda swing: -swing.width("tpot", base))
        result[name] = Sensitivity(base, tuple(swings), system)
    if not any(system.swings for system in result.values()):
        raise ScenarioError(
            f"{scenario.id}: got no number with a range in the files of its chips and engines;"
            " expected one; try to add range: to an engine's file"
        )
    return result


def single_request_metrics(
    scenario: Scenario, name: str, system: Studied
) -> dict[str, float] | None:
    """Return TPOT and TTFT of an unloaded mean request, and joules and dollars of its tokens.

    Joules and dollars are those of a system that always serves one such request.
    Return None if the model does not fit with a moved number.
    Raises: PlanError if it does not fit as it is.
    """
    changed = scenario.model_copy(update={"systems": {name: system}})
    deployment = _fitting(scenario, name, changed)
    if deployment is None:
        return None
    single = changed.unloaded(deployment)
    per_token = _costs_per_token(changed, name, deployment, single.tpot)
    return {"tpot": single.tpot, "ttft": single.ttft} | per_token


def loaded_metrics(scenario: Scenario, name: str, system: Studied) -> dict[str, float] | None:
    """Return median TPOT and TTFT of the scenario's requests, and joules and dollars of a token.

    Return None if the model does not fit with a moved number.
    Raises: PlanError if it does not fit as it is; ScenarioError if no request gets two tokens.
    """
    changed = scenario.model_copy(update={"systems": {name: system}})
    if _fitting(scenario, name, changed) is None:
        return None
    served = run(changed).summary.systems[name]
    medians = served.metrics.tpot.median, served.metrics.ttft.median
    if None in medians:
        raise ScenarioError(
            f"{scenario.id}: systems.{name}: got no finished request with two tokens; expected "
            "one; try leaving --loaded out"
        )
    metrics = {key: ms / 1000 for key, ms in zip(("tpot", "ttft"), medians, strict=True) if ms}
    if energy_use := served.costs.energy:
        metrics["joules"] = energy_use.joules_per_token
    if price := served.costs.economics:
        metrics["usd"] = price.usd_per_mtok
    return metrics


def _fitting(scenario: Scenario, name: str, changed: Scenario) -> Deployment | None:
    """Return the deployment of a changed scenario's only system; None if the model does not fit.

    Raises: PlanError if the system is as in the scenario.
    """
    deployment = changed.deploy(name)
    if deployment.fit.fits:
        return deployment
    if changed.systems[name] == scenario.shown(name):
        raise PlanError(
            f"systems.{name}: {deployment.layout.model.id} does not fit;"
            " try sramsim check for what would do"
        )
    return None


def _costs_per_token(
    scenario: Scenario, name: str, deployment: Deployment, tpot: Seconds
) -> dict[str, float]:
    """Return joules of a decoded token with PUE, and dollars per million, for a single request.

    Left out of the result: what is not known.
    """
    workload, window, money = scenario.workload, deployment.limits.window, scenario.money
    context = workload.mean_prompt + workload.mean_output / 2
    width, share = deployment.limits.width, 1 / deployment.layout.mean_tokens  # of a step
    step = Tally(logits=1, context=context, windowed_context=min(context, window or context))
    step.batch_steps[width] = 1
    if width > 1:
        step.decode_steps = step.decodes = 1
    tally, replicas = step.scaled(share), deployment.layout.plan.replicas
    parts = energy_parts(scenario, name, deployment, tally)
    alone = (part._replace(chips=part.chips / replicas) for _, part in parts)
    used = energy(alone, tpot, money.pue)
    metrics = {"joules": sum(used.values())} if used else {}
    if has := total_capex(scenario, {name: 1}):
        drawn = replicas * (sum(used.values()) - used["pue"]) / tpot if used else None
        if price := token_price(money, has, drawn, ServedTokens(replicas, replicas, tpot)):
            metrics["usd"] = price.usd_per_mtok
    return metrics
