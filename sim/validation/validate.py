"""Measured points beside simulated ones: what is simulated for a point, how far off it is, and what that says of a table."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import numpy as np

from sim.catalogue.measurements import csv_table
from sim.cost.plan import PlanError
from sim.hardware.engine import Engine
from sim.inputs.files import UserError, catalogue_names
from sim.planning.deployment import Deployment, time_single_request
from sim.results.metrics import came_out, latencies
from sim.scenario.scenario import Member, Scenario, System, fitting
from sim.scenario.scenario import read as read_scenario
from sim.studies.run import run
from sim.validation.points import MeasuredPoint, Pattern, halves, measured_points
from sim.validation.replies import fitted_numbers, floors, is_replies
from sim.workload.arrivals import ClosedLoop, Length, LengthField

# fitted: an engine may have been fitted to this point.  tested: it was not, and the engine was fitted to others of its kind.
# assumed: what counts for it was taken over from a neighbour.  listed: measured, but not scored.
Status = Literal["fitted", "tested", "assumed", "listed", "not expressed"]
# The time of a throttled or loaded service is an upper bound of the hardware's: kept where the simulated time is no longer.
Bound = Literal["kept", "broken"]
BITS = {"fp4": "4", "int4": "4", "fp8": "8", "int8": "8"}
# Which of an engine's numbers a metric hangs on; a throughput on both.
DECODE, PREFILL = ("memory_efficiency",), ("compute_efficiency",)
COUNTS = {"ttft": PREFILL, "tpot": DECODE, "itl": DECODE, "e2el": DECODE}
SETS = ("calibration", "validation", "serving", "steps-2023", "sram-replies")
ROUNDS = 10  # requests of a closed loop for each user, as the serving measurements had
FULL_ROUNDS = 5  # of one that is measured from its second round on
REPLY_PROMPT, REPLY_OUTPUT = (
    512,
    64,
)  # tokens of a reply that are simulated at most: its beat and TPOT hardly depend on more


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of a point, measured and simulated, in seconds; NaN where the table's metric is none of ours."""

    point: MeasuredPoint
    metric: str
    measured: float
    simulated: float | None
    status: Status
    reason: str

    @property
    def error(self) -> float | None:
        """ln(simulated / measured) of the time, at least 0 for a bound; None where nothing was simulated or measured."""
        times = self.simulated and self.measured > 0
        return (
            self.point.error(self.metric, self.simulated, self.measured)
            if times and self.simulated
            else None
        )

    @property
    def bound(self) -> Bound | None:
        """Whether the simulated time keeps or breaks an upper bound; None for a measurement."""
        if self.error is None or self.status == "listed" or not self.point.is_bound(self.metric):
            return None
        return "broken" if self.error else "kept"

    @property
    def moe(self) -> bool:
        return self.point.system is not None and routed(self.point.system)

    def as_json(self) -> dict[str, Any]:
        """Times in ms; of a throughput, the time of a token of all."""
        chip = self.point.system.chip if self.point.system else None
        return {
            "point_id": self.point.id,
            "metric": self.metric,
            "measured": None if math.isnan(self.measured) else 1000 * self.measured,
            "simulated": 1000 * self.simulated if self.simulated else None,
            "error_pct": None if self.error is None else 100 * self.error,
            "status": self.status,
            "bound": self.bound,
            "bound_reason": self.point.bound,
            "moe": self.moe,
            "reason": self.reason,
            "model": self.point.about["model"],
            "chip": chip.id if chip else self.point.about["chip"],
            "engine": self.point.system.engine.id
            if self.point.system
            else self.point.about["engine"],
        }


def routed(system: System) -> bool:
    assert system.model is not None
    return any(block.experts for block in system.model.blocks)


# What is simulated for a point.


def simulate(point: MeasuredPoint) -> dict[str, float]:
    """The metrics of a point as it was measured: with what client, HTTP and tokenizer of its host add to a TTFT.

    Raises: PlanError where the system does not fit, or is not one.
    """
    assert point.system is not None
    times = served(point)
    return (
        times | {"ttft": times["ttft"] + hosted(point.system.engine, point.host)}
        if "ttft" in times
        else times
    )


def served(point: MeasuredPoint) -> dict[str, float]:
    """The metrics of a point's requests, served by its system.

    `alone`: one request.  `batch`: all at once, and the last of them counts.  `users`: a closed loop, means over its requests.
    `full`: a closed loop of as many as there is room for, and the time of a token from its second round to its last arrival
    (Little's law; the makespan of a short run would count its end).  `reply`: single requests.

    Raises: PlanError where the system does not fit, or is not one.
    """
    assert point.system is not None
    scenario = asked(point, max(1, point.users))
    deployment = fitting(scenario, "measured")
    limits = deployment.limits
    tokens = point.prompt + point.output
    if limits.kv_tokens_needed(tokens) > limits.kv_tokens:
        raise PlanError(f"{tokens} tokens exceed the KV room of {limits.kv_tokens}")
    # Whoever measured it did run it, also beyond the context that the model was trained for.
    deployment = replace(deployment, limits=replace(limits, context=max(limits.context, tokens)))
    if point.pattern == "alone":
        lone = scenario.unloaded(deployment)
        return {"tpot": lone.tpot, "itl": lone.tpot, "ttft": lone.ttft}
    if point.pattern == "full":
        return full(point, deployment)
    if point.pattern == "reply":
        return reply_times(point, deployment)
    rows = scenario.serve("measured", {"measured": Member(deployment)}, scenario.workload.draw(0))
    times = {name: float(values.mean()) for name, values in latencies(rows).items() if len(values)}
    if point.pattern == "users":
        return times | ({"itl": times["tpot"]} if "tpot" in times else {})
    first, last = float(np.nanmax(rows.first_token)), float(np.nanmax(rows.last_token))
    whole = last if point.prefill else (last - first) * point.output / (point.output - 1)
    return times | {"ttft": first, "e2el": whole}


def hosted(engine: Engine, host: str) -> float:
    """What client, HTTP and tokenizer add to a TTFT: nothing where an engine alone was timed, elsewhere the known hosts' mean."""
    known = engine.request_overhead
    return known.get(host, mean(known.values()) if known else 0.0) if host else 0.0


def full(point: MeasuredPoint, deployment: Deployment) -> dict[str, float]:
    """A token's time where as many as have room ask again and again."""
    limits = deployment.limits
    users = point.users or min(
        limits.kv_tokens // limits.kv_tokens_needed(point.prompt + point.output), limits.sequences
    )
    scenario = asked(point, users, FULL_ROUNDS)
    rows = scenario.serve("measured", {"measured": Member(deployment)}, scenario.workload.draw(0))
    begin, end = float(np.sort(rows.last_token)[users]), float(np.nanmax(rows.arrival))
    return {"throughput": (end - begin) / came_out(rows, begin, end, None)[2]}


def reply_times(point: MeasuredPoint, deployment: Deployment) -> dict[str, float]:
    """The times of a service's reply, unloaded: of its floors, and no other.

    `beat`: what each prompt token but the first adds to the TTFT.  In a pipeline that takes a token a
    beat, that is the beat.
    """
    prompt, output = min(point.prompt, REPLY_PROMPT), min(point.output, REPLY_OUTPUT)
    unloaded = time_single_request(deployment, prompt, output)
    times = {"tpot": unloaded.tpot, "beat": prompt_time(deployment, prompt) / (prompt - 1)}
    return times | (
        {"ttft": time_single_request(deployment, point.prompt, 2).ttft}
        if "ttft" in point.measured
        else {}
    )


def prompt_time(deployment: Deployment, prompt: int) -> float:
    """How much later the first token of a prompt comes than that of a prompt of one token [s]."""
    return (
        time_single_request(deployment, prompt, 2).ttft - time_single_request(deployment, 1, 2).ttft
    )


def asked(point: MeasuredPoint, users: int, rounds: int | None = None) -> Scenario:
    """The scenario of a point: users in a closed loop, each for some rounds."""
    assert point.system is not None
    assert point.system.model is not None
    rounds = rounds or (ROUNDS if point.pattern == "users" else 1)
    prompt, output = length(point.prompt, point.spread), length(point.output, point.spread)
    workload = ClosedLoop(users=users, requests=users * rounds, prompt=prompt, output=output)
    return Scenario(
        id=point.id, model=point.system.model, workload=workload, systems={"measured": point.system}
    )


@lru_cache(maxsize=1024)
def length(tokens: int, spread: bool) -> LengthField:
    """So many tokens, or drawn evenly from 80 to 100 % of them."""
    return Length(uniform=(math.ceil(0.8 * tokens), tokens)) if spread else Length(fixed=tokens)


# What it says.


@dataclass(frozen=True, slots=True)
class Table:
    """A set of points, every row of it compared or told why not."""

    name: str
    rows: tuple[Compared, ...]

    @property
    def expressed(self) -> list[Compared]:
        return [row for row in self.rows if row.error is not None]

    @property
    def counted(self) -> list[Compared]:
        """The rows of the statistics.  A kept bound is left out: as an error of 0 it would flatter."""
        return [row for row in self.expressed if row.bound != "kept"]

    @property
    def bounds(self) -> dict[Bound, list[Compared]]:
        """The rows whose times are upper bounds, by whether the simulated time keeps the bound."""
        kinds: tuple[Bound, ...] = ("kept", "broken")
        return {kind: [row for row in self.rows if row.bound == kind] for kind in kinds}

    @property
    def of_replies(self) -> bool:
        return any(row.point.pattern == "reply" for row in self.rows)

    @property
    def headline(self) -> list[Compared]:
        """The dense models' points that test something; of a set that engines were fitted to, those that were fitted.

        Of replies: all floors that are scored, also of experts and fitted ones.
        """
        if self.of_replies:
            return [row for row in self.counted if row.status in ("tested", "fitted")]
        dense = [row for row in self.counted if not row.moe]
        return [row for row in dense if row.status == "tested"] or [
            row for row in dense if row.status == "fitted"
        ]

    @property
    def groups(self) -> dict[str, list[Compared]]:
        """The counted rows by status and kind of model."""
        found: dict[str, list[Compared]] = {}
        for status in ("tested", "fitted", "assumed"):
            for moe in (False, True):
                rows = [row for row in self.counted if (row.status, row.moe) == (status, moe)]
                if rows:
                    found[f"{status}, {'mixture of experts' if moe else 'dense'}"] = rows
        return found

    @property
    def worst(self) -> list[Compared]:
        return sorted(self.headline, key=lambda row: -abs(row.error or 0.0))[:10]

    def as_json(self) -> dict[str, Any]:
        """`metrics`, `median_ape` and `mape` are of the headline; `groups` has all counted rows; `bounds` counts the others too."""
        overall = statistics(self.headline)
        return {
            "points": [row.as_json() for row in self.rows],
            "metrics": by_metric(self.headline),
            "median_ape": overall.get("median_ape"),
            "mape": overall.get("mape"),
            "groups": {name: by_metric(rows) for name, rows in self.groups.items()},
            "bounds": {kind: len(rows) for kind, rows in self.bounds.items()},
            "expressed": len({row.point.id for row in self.expressed}),
            "total": len({row.point.id for row in self.rows}),
            **({"fitted_numbers": self.fitted_numbers} if self.of_replies else {}),
        }

    @property
    def fitted_numbers(self) -> list[str]:
        """The names of the numbers that were fitted to the replies that are scored."""
        return fitted_numbers(row.point for row in self.headline)


def by_metric(rows: Iterable[Compared]) -> dict[str, dict[str, float | int]]:
    rows = list(rows)
    return {
        name: statistics(row for row in rows if row.metric == name)
        for name in sorted({row.metric for row in rows})
    }


def statistics(rows: Iterable[Compared]) -> dict[str, float | int]:
    """Median and mean of the absolute errors, and their mean, in %."""
    errors = [100 * row.error for row in rows if row.error is not None]
    sizes = [abs(error) for error in errors]
    return (
        {"median_ape": median(sizes), "mape": mean(sizes), "bias": mean(errors), "n": len(errors)}
        if errors
        else {"n": 0}
    )


def table(
    name: str, progress: Callable[[str, int, int], None] = lambda name, done, total: None
) -> Table:
    """One of the catalogue's sets.  Raises: UserError where there is none of that name."""
    if name == "replay":
        return replay()
    if name not in SETS:
        raise UserError(
            f"validate {name}: there is no such set; choose of {', '.join([*SETS, 'replay', 'network'])}"
        )
    return of_file(shipped(name), progress)


def of_file(
    path: Path, progress: Callable[[str, int, int], None] = lambda name, done, total: None
) -> Table:
    """A CSV file with the columns of one of them."""
    rows = points_of(path)
    known: dict[str, dict[str, float] | str] = {}
    found: list[Compared] = []
    for done, point in enumerate(rows):
        progress(path.stem, done, len(rows))
        if (
            point.system is not None
            and point.key not in known
            and not all(map(math.isnan, point.measured.values()))
        ):
            try:
                known[point.key] = simulate(point)
            except PlanError as error:
                known[point.key] = str(error)
        for metric, measured in (point.measured or {"none": math.nan}).items():
            found.append(beside(point, metric, measured, known.get(point.key, point.reason)))
    progress(path.stem, len(rows), len(rows))
    return Table(path.stem, tuple(found))


def points_of(path: Path) -> list[MeasuredPoint]:
    """The points of a table of any kind.  Raises: ScenarioError where its header is not known or a cell is malformed."""
    return floors(path) if is_replies(csv_table(path)[0]) else measured_points(path)


def shipped(name: str) -> Path:
    return catalogue_names("measurements")["rules"].parent / f"{name}.csv"


@lru_cache(maxsize=1)
def fitted_ids() -> frozenset[str]:
    """The points that engines may be fitted to: calibration, steps, and a half of the serving measurements."""
    whole = (
        point.id
        for name in ("calibration", "steps-2023")
        for point in measured_points(shipped(name))
    )
    return frozenset({*whole, *halves(measured_points(shipped("serving")))})


def beside(
    point: MeasuredPoint, metric: str, measured: float, simulated: dict[str, float] | str
) -> Compared:
    if math.isnan(measured) and point.system is not None:  # no reply of the deployment is usable
        return Compared(point, metric, measured, None, "listed", point.known[metric][1])
    if isinstance(simulated, str):
        return Compared(point, metric, measured, None, "not expressed", simulated)
    if metric not in simulated:
        return Compared(
            point,
            metric,
            measured,
            None,
            "not expressed",
            f"an answer of {point.output} token has no {metric.upper()}",
        )
    if metric in point.known:
        return Compared(point, metric, measured, simulated[metric], *point.known[metric])
    assert point.system is not None
    lacking = point.reason or unfitted(point.system, metric, point.pattern)
    status: Status = "fitted" if is_fitted(point, metric) else "assumed" if lacking else "tested"
    return Compared(
        point,
        metric,
        measured,
        simulated[metric],
        status,
        point.remark or (lacking if status == "assumed" else ""),
    )


def is_fitted(point: MeasuredPoint, metric: str) -> bool:
    """Whether an engine may have been fitted to a metric of a point."""
    if (
        point.pattern == "reply"
    ):  # engines are fitted to the floors of whole models, which hold those of their half-years
        assert point.system is not None
        return metric == "tpot" and "sram-replies" in (
            point.system.engine.source_of("layer_overhead") or ""
        )
    return point.id in fitted_ids()


def replay() -> Table:
    """Three hundred real requests, and the statistics of their times."""
    scenario = read_scenario("replay-vllm-rtx4090")
    result = run(scenario)
    ((name, _),) = scenario.systems.items()
    system = scenario.plain(name)
    about = {
        "model": scenario.model.id,
        "chip": system.chip.id if system.chip else "",
        "engine": system.engine.id,
    }
    measured, simulated = result.measured, result.systems[name].metrics
    assert measured  # the trace has answers
    rows = []
    for statistic in ("mean", "median", "p90"):
        point = MeasuredPoint(
            f"{statistic} of {len(result.systems[name].rows.arrival)} requests",
            about,
            {},
            system=scenario.whole(name),
        )
        for metric, was, now in (
            ("ttft", measured.ttft[statistic], simulated.ttft[statistic]),
            ("tpot", measured.tpot[statistic], simulated.tpot[statistic]),
        ):
            assert was is not None
            assert now is not None
            rows.append(Compared(point, metric, was / 1000, now / 1000, "tested", ""))
    return Table("replay", tuple(rows))


def unfitted(system: System, metric: str, pattern: Pattern = "alone") -> str:
    """Which number that counts for a metric the engine took over from a neighbour; nothing where all were fitted to points."""
    engine, plan = system.engine, system.plan
    bits = BITS.get(plan.weights or "", "16")
    due = [f"{key}.{bits}" for key in COUNTS.get(metric, (*DECODE, *PREFILL))]
    if pattern == "reply":  # what engines of SRAM chips lose is in their overheads
        due = ["layer_overhead"]
    if routed(system):
        due.append("moe_layer_overhead")
    lacking = [key for key in due if not (engine.source_of(key) or "").startswith("fitted")]
    return f"{engine.id}: no points for {', '.join(lacking)}" if lacking else ""
