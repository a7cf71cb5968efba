"""How much a lone request's TPOT and TTFT, its tokens' joules and dollars depend on each uncertain number: `sramsim sensitivity`.

A number is uncertain where its file gives a `range` beside it: a datasheet that leaves it open, or two standard errors of a fit.
Each is moved to the two ends of its range while the others stay.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter

from sim.cost.energy import EnergyPart, Tally, energy
from sim.cost.plan import PlanError
from sim.economics.owner_costs import OwnerCosts, ServedTokens, host_power, token_price
from sim.inputs.files import ScenarioError, Sourced, Value
from sim.planning.deployment import Deployment
from sim.scenario.scenario import Scenario
from sim.scenario.system import System
from sim.units import Seconds

TIMES = {"tpot": "tpot_ms", "ttft": "ttft_ms"}
SENSITIVITY_METRICS = TIMES | {
    "joules": "joules_per_token",
    "usd": "usd_per_mtok",
}  # the last two where they are known


@dataclass(frozen=True, slots=True)
class Swing:
    """A number at the two ends of its range, and what becomes of the metrics; None where the model then does not fit."""

    key: str  # 'engine.layer_overhead'
    value: str
    ends: tuple[str, str]
    low: dict[str, float] | None
    high: dict[str, float] | None
    source: str

    def width(self, metric: str, base: Mapping[str, float]) -> float:
        """From the least to the most that the metric becomes."""
        told = [each[metric] for each in (self.low, self.high) if each] + [base[metric]]
        return max(told) - min(told)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One system: its metrics as they are, and how each uncertain number moves them, the widest swing of TPOT first."""

    base: dict[str, float]
    swings: tuple[Swing, ...]

    def band(self, metric: str) -> tuple[float, float]:
        """The least and the most of a metric, if the numbers are uncertain independently of each other: deviations are added
        in squares, those that lower it and those that raise it apart."""
        base = self.base[metric]
        moves = [
            [0.0, *(each[metric] - base for each in (swing.low, swing.high) if each)]
            for swing in self.swings
        ]
        down = math.sqrt(sum(min(each) ** 2 for each in moves))
        up = math.sqrt(sum(max(each) ** 2 for each in moves))
        return base - down, base + up

    def as_json(self) -> dict[str, Any]:
        """Times in ms."""

        def told(metrics: Mapping[str, float] | None) -> dict[str, float] | None:
            if metrics is None:
                return None
            return {
                key: metrics[name] * (1000 if name in TIMES else 1)
                for name, key in SENSITIVITY_METRICS.items()
                if name in metrics
            }

        bands = {f"{name}_band_ms": [1000 * end for end in self.band(name)] for name in TIMES}
        bands |= {
            f"{SENSITIVITY_METRICS[name]}_band": list(self.band(name))
            for name in self.base
            if name not in TIMES
        }
        swings = [
            {
                "key": s.key,
                "value": s.value,
                "range": s.ends,
                "low": told(s.low),
                "high": told(s.high),
                "source": s.source,
            }
            for s in self.swings
        ]
        return {**(told(self.base) or {}), **bands, "swings": swings}


def sensitivity(
    scenario: Scenario, progress: Callable[[str, int, int], None] = lambda system, done, total: None
) -> dict[str, Sensitivity]:
    """Every system of a scenario; of a fleet, its members.

    Raises: PlanError where one does not fit as it is, ScenarioError where no number is uncertain.
    """
    found = {}
    for name, system in scenario.systems.items():
        if not isinstance(system, System):
            continue
        moved = list(uncertain(system))
        base = lone(scenario, name, system)
        assert base is not None
        swings = []
        for done, (key, source, value, ends, at) in enumerate(moved):
            progress(name, done, len(moved))
            low, high = (lone(scenario, name, at(end)) for end in ends)
            swings.append(Swing(key, value, ends, low, high, source))
        progress(name, len(moved), len(moved))
        swings.sort(key=lambda swing: -swing.width("tpot", base))
        found[name] = Sensitivity(base, tuple(swings))
    if not any(each.swings for each in found.values()):
        raise ScenarioError(
            f"{scenario.id}: no file of its chips and engines gives a range for a number"
        )
    return found


def lone(scenario: Scenario, name: str, system: System) -> dict[str, float] | None:
    """TPOT and TTFT of a mean request that is alone, and what a token takes and costs if the system always serves such a one; None
    where the model does not fit a moved number."""
    changed = scenario.model_copy(update={"systems": {name: system}})
    deployment = changed.deploy(name)
    if not deployment.fit.fits:
        if system == scenario.systems[name]:
            raise PlanError(
                f"systems.{name}: {deployment.layout.model.id} does not fit; sramsim check says what would do"
            )
        return None
    found = changed.unloaded(deployment)
    return {"tpot": found.tpot, "ttft": found.ttft} | per_token(
        changed, name, deployment, found.tpot
    )


def per_token(
    scenario: Scenario, name: str, deployment: Deployment, tpot: Seconds
) -> dict[str, float]:
    """Joules of a lone user's decoded token, PUE included, and dollars for a million of them, where they are known."""
    workload, window, money = scenario.workload, deployment.limits.window, scenario.money
    context = workload.mean_prompt + workload.mean_output / 2
    tally = Tally(logits=1, context=context, windowed_context=min(context, window or context))
    tally.batch_steps[1] = 1
    replicas, server = (
        deployment.layout.plan.replicas,
        host_power(deployment.layout.chip, money.systems.get(name, OwnerCosts())),
    )
    chips = deployment.chips + scenario.spare_chips(name)
    used = energy([EnergyPart(deployment.costs, chips / replicas, tally, server)], tpot, money.pue)
    told = {"joules": sum(used.values())} if used else {}
    if has := scenario.capex(name):
        drawn = replicas * (sum(used.values()) - used["pue"]) / tpot if used else None
        if price := token_price(money, has, drawn, ServedTokens(replicas, replicas, tpot)):
            told["usd"] = price["usd_per_mtok"]
    return told


def uncertain(
    system: System,
) -> Iterator[tuple[str, str, str, tuple[str, str], Callable[[str], System]]]:
    """Key, source, value as written, the ends of its range, and what gives the system with the number at one of them."""
    parts: dict[str, Sourced] = {"engine": system.engine}
    if system.cluster:
        parts["cluster.chip"] = system.cluster.chip
        parts["cluster"] = system.cluster
    elif system.chip:
        parts["chip"] = system.chip
    for part, entry in parts.items():
        for key, ends in entry.range.items():
            if unused(system, key):
                continue
            texts = str(ends[0]), str(ends[1])
            yield (
                f"{part}.{key}",
                entry.source_of(key) or "",
                written(entry, key),
                texts,
                mover(system, f"{part}.{key}"),
            )


def unused(system: System, key: str) -> bool:
    """What says nothing here: a chip's cables where the system has others, and what hosts took elsewhere."""
    other = system.topology or (system.cluster and system.cluster.topology)
    return bool(key.startswith("topology") and other) or key.startswith("request_overhead")


def mover(system: System, key: str) -> Callable[[str], System]:
    def move(text: str) -> System:
        changed: System = moved(system, key.split("."), text)
        return changed

    return move


def moved(value: Any, path: list[str], text: str) -> Any:
    """A copy of a value with the number at a path read from a text, as its field reads it in a file."""
    head, rest = path[0], path[1:]
    if isinstance(value, Value):
        field = type(value).model_fields[head]
        inner = getattr(value, head)
        if rest:
            return value.model_copy(update={head: moved(inner, rest, text)})
        kind: Any = (
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        )
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        read = float(text) if isinstance(inner, float) and " " not in text else text
        return value.model_copy(update={head: adapter.validate_python(read)})
    if isinstance(value, tuple):
        place = int(head)
        return (*value[:place], moved(value[place], rest, text), *value[place + 1 :])
    return {**value, head: moved(value[head], rest, text) if rest else float(text)}


def written(entry: Sourced, key: str) -> str:
    """The number itself, in SI units, as it stands in the value."""
    value: Any = entry
    for part in key.split("."):
        value = (
            getattr(value, part)
            if isinstance(value, Value)
            else value[int(part)]
            if isinstance(value, tuple)
            else value[part]
        )
    return f"{value:.4g}"
