"""Sets of measured points, simulated and compared: `sramsim validate`.

validate_set("serving").headline  # tested metrics of dense models, with their errors
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from sim.catalogue.measurements import read_csv_table
from sim.cost.plan import PlanError
from sim.inputs.errors import UserError
from sim.inputs.files import shorten
from sim.inputs.names import catalogue_names
from sim.inputs.suggestions import unknown_name
from sim.scenario.scenario import read
from sim.scenario.system import System
from sim.studies.processes import on_processes
from sim.studies.run import run
from sim.validation.afd import attention_ffn_report
from sim.validation.agreement import PointComparison, Status, ValidationReport, is_routed
from sim.validation.own_points import OwnPoints, is_own_table, read_own_points
from sim.validation.points import MeasuredPoint, Pattern, fitting_half, measured_points
from sim.validation.pooled_points import is_pooled, pooled_points
from sim.validation.replies import floors, is_replies
from sim.validation.simulate import PREFILL_BUSY, simulate
from sim.validation.speculation import speculation_report

# Sets of points that are no rows of a table, by name.
REPORTS = {"speculation": speculation_report, "afd": attention_ffn_report}
SETS = ("calibration", "validation", "serving", "steps-2023", "sram-replies")
POOL_SETS = ("kv-transfer", "pd-silicon")  # no engine is fitted to them, but `handover`
ALL_SETS = (*SETS, *REPORTS, *POOL_SETS, "replay")
BITS = {"fp4": "4", "int4": "4", "fp8": "8", "int8": "8"}  # by precision of weights; others: 16
# Numbers of an engine that each metric depends on; a throughput depends on both.
DECODE_KEYS, PREFILL_KEYS = ("memory_efficiency",), ("compute_efficiency",)
KEYS_BY_METRIC = {
    "ttft": PREFILL_KEYS,
    "tpot": DECODE_KEYS,
    "itl": DECODE_KEYS,
    "e2el": DECODE_KEYS,
}
# Seconds by metric, with the share `PREFILL_BUSY` of pools; or why there are none.
SimulatedTimes = dict[str, float] | str
NEAR_SATURATION = 0.95  # `PREFILL_BUSY` beyond which a row is near saturation
WORTH_PROCESSES = 200  # points; fewer take less time than the start of processes
WORTH_PROCESSES_OF_POOLS = 20
SetProgress = Callable[[str, int, int], None]  # name of the set, points done, points in all


def _no_progress(name: str, done: int, total: int) -> None:
    """Report no progress."""


def validate_set(
    name: str, progress: SetProgress = _no_progress, jobs: int = 1
) -> ValidationReport:
    """Return the report of one of the catalogue's sets, computed by `jobs` processes.

    Raises: UserError if there is no set of that name.
    """
    (report,) = validate_sets([name], progress, jobs)
    return report


def validate_sets(
    names: Sequence[str], progress: SetProgress = _no_progress, jobs: int = 1
) -> list[ValidationReport]:
    """Return the reports of some of the catalogue's sets; `jobs` processes simulate all tables.

    Raises: UserError if there is no set of one of the names.
    """
    for name in names:
        if name not in ALL_SETS:
            raise unknown_name("validate", name, (*ALL_SETS, "kernels", "network"))
    paths = [shipped_table(name) for name in names if name in (*SETS, *POOL_SETS)]
    reports = {report.name: report for report in _validate_tables(paths, progress, jobs)}
    for name in names:
        if name in REPORTS:
            reports[name] = REPORTS[name]()
        elif name == "replay":
            reports[name] = validate_replay()
    return [reports[name] for name in names]


def validate_own_file(
    path: Path, progress: SetProgress = _no_progress, jobs: int = 1
) -> ValidationReport:
    """Return the report of a user's CSV file: own measurements, or the columns of one of the sets.

    Raises: ScenarioError if the header is unknown, or a cell of a set is malformed.
    Raises: UserError if no row can be compared.
    """
    report = validate_file(path, progress, jobs)
    if not report.expressed:
        left_out = report.own.left_out if report.own else ()
        reasons = [*left_out, *(f"{row.point.id}: {row.reason}" for row in report.rows)]
        raise UserError(
            f"{shorten(path)}: got no row that can be compared; expected at least one;"
            f" the first: {reasons[0] if reasons else 'the table has no rows'}"
        )
    return report


def validate_file(
    path: Path, progress: SetProgress = _no_progress, jobs: int = 1
) -> ValidationReport:
    """Return the report of a CSV file with the columns of one of the sets, or a user's columns.

    Points with equal keys are simulated once.

    Raises: ScenarioError if the header is unknown or a cell of a set is malformed.
    """
    (report,) = _validate_tables([path], progress, jobs)
    return report


def _validate_tables(
    paths: Sequence[Path], progress: SetProgress, jobs: int
) -> Iterator[ValidationReport]:
    """Yield the report of each table, after the points of all tables are simulated."""
    tables = {path: _read_table(path) for path in paths}
    distinct = {path: _distinct(points) for path, (points, _) in tables.items()}
    worth = sum(
        len(points) / (WORTH_PROCESSES_OF_POOLS if is_pooled(path) else WORTH_PROCESSES)
        for path, points in distinct.items()
    )
    simulated: dict[Path, dict[str, SimulatedTimes]] = {path: {} for path in paths}
    of_groups = on_processes(simulate_alike, _alike(distinct), jobs if worth >= 1 else 1)
    for (path, *_), times in of_groups:
        for key, of_point in times.items():
            simulated[path][key] = of_point
            progress(path.stem, len(simulated[path]), len(distinct[path]))
    for path, (points, own) in tables.items():
        rows = tuple(
            compare_metric(point, metric, measured, simulated[path].get(point.key, point.reason))
            for point in points
            for metric, measured in (point.measured or {"none": math.nan}).items()
        )
        yield ValidationReport(path.stem, rows, own)


def _read_table(path: Path) -> tuple[Sequence[MeasuredPoint], OwnPoints | None]:
    """Return the points of a table, and the table itself if it is a user's own."""
    own = read_own_points(path) if is_own_table(path) else None
    return own.points if own else points_of(path), own


def _distinct(points: Sequence[MeasuredPoint]) -> dict[str, MeasuredPoint]:
    """Return the points to simulate, by key."""
    return {
        point.key: point
        for point in reversed(points)
        if point.system is not None and not all(map(math.isnan, point.measured.values()))
    }


def _alike(
    tables: Mapping[Path, Mapping[str, MeasuredPoint]],
) -> dict[tuple[Path, str, str, str], dict[str, MeasuredPoint]]:
    """Return the points in groups of one table, model, chip and engine, the longest group first.

    One process simulates a group, because its costs have much in common (`sharing_costs`). The
    group with the most users begins first, so that no process waits long for the last one.
    """
    groups: dict[tuple[Path, str, str, str], dict[str, MeasuredPoint]] = {}
    for path, points in tables.items():
        for key, point in points.items():
            about = point.about
            group = path, about["model"], about["chip"], about["engine"]
            groups.setdefault(group, {})[key] = point
    users = {group: sum(p.users for p in points.values()) for group, points in groups.items()}
    return {group: groups[group] for group in sorted(groups, key=users.__getitem__, reverse=True)}


def simulate_alike(points: Mapping[str, MeasuredPoint]) -> dict[str, SimulatedTimes]:
    """Return the simulated times of some points by key."""
    return {key: try_simulate(point) for key, point in points.items()}


def try_simulate(point: MeasuredPoint) -> SimulatedTimes:
    """Return the simulated time of each metric [s], or the reason why there is none."""
    try:
        return simulate(point)
    except PlanError as error:
        return str(error)


def validate_replay() -> ValidationReport:
    """Return statistics of the times of 300 real requests, replayed.

    Source: scenario `replay-vllm-rtx4090`.
    """
    scenario = read("replay-vllm-rtx4090")
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
    requests = len(result.systems[name].rows.arrival)
    rows = []
    for statistic in ("mean", "median", "p90"):
        point = MeasuredPoint(
            f"{statistic} of {requests} requests", about, {}, system=scenario.whole(name)
        )
        for metric, was, now in (
            ("ttft", measured.ttft[statistic], simulated.ttft[statistic]),
            ("tpot", measured.tpot[statistic], simulated.tpot[statistic]),
        ):
            assert was is not None
            assert now is not None
            rows.append(PointComparison(point, metric, was / 1000, now / 1000, "tested", ""))
    return ValidationReport("replay", tuple(rows))


def points_of(path: Path) -> list[MeasuredPoint]:
    """Return the points of a table of any kind, also of replies.

    Raises: ScenarioError if the header is unknown or a cell is malformed.
    """
    if is_pooled(path):
        return pooled_points(path)
    return floors(path) if is_replies(read_csv_table(path)[0]) else measured_points(path)


def shipped_table(name: str) -> Path:
    """Return the path of a table of the catalogue."""
    return catalogue_names("measurements")["rules"].parent / f"{name}.csv"


@lru_cache(maxsize=1)
def fitted_ids() -> frozenset[str]:
    """Return the ids of points that engines may be fitted to.

    They are those of calibration and steps-2023, and half of the serving measurements.
    """
    whole = (
        point.id
        for name in ("calibration", "steps-2023")
        for point in measured_points(shipped_table(name))
    )
    return frozenset({*whole, *fitting_half(measured_points(shipped_table("serving")))})


def compare_metric(
    point: MeasuredPoint, metric: str, measured: float, simulated: SimulatedTimes
) -> PointComparison:
    """Return the comparison of one metric of a point.

    measured: seconds; nan if there is no measurement.
    simulated: seconds by metric, or the reason why nothing is simulated.
    """
    if math.isnan(measured) and point.system is not None:  # no reply of the deployment is usable
        return PointComparison(point, metric, measured, None, "listed", point.known[metric][1])
    if isinstance(simulated, str):
        return PointComparison(point, metric, measured, None, "not expressed", simulated)
    if metric not in simulated:
        reason = f"an answer of {point.output} token has no {metric.upper()}"
        return PointComparison(point, metric, measured, None, "not expressed", reason)
    time = simulated[metric]
    near = point.pattern == "users" and simulated.get(PREFILL_BUSY, 0.0) > NEAR_SATURATION
    if metric in point.known:
        return PointComparison(point, metric, measured, time, *point.known[metric], near)
    assert point.system is not None
    lacking = point.reason or unfitted_numbers(point.system, metric, point.pattern)
    status: Status = "fitted" if _is_fitted(point, metric) else "assumed" if lacking else "tested"
    reason = point.remark or (lacking if status == "assumed" else "")
    return PointComparison(point, metric, measured, time, status, reason, near)


def _is_fitted(point: MeasuredPoint, metric: str) -> bool:
    """Return whether an engine may have been fitted to a metric of a point."""
    if point.pattern == "reply":
        # Engines are fitted to the floors of whole models, which include those of half-years.
        assert point.system is not None
        source = point.system.engine.source_of("layer_overhead") or ""
        return metric == "tpot" and "sram-replies" in source
    if point.about.get("table") == "own":
        assert point.system is not None
        fit = f"--points {point.about['file']}"
        return any(
            text.startswith("fitted") and text.endswith(fit)
            for text in point.system.engine.source.values()
        )
    return point.id in fitted_ids()


def unfitted_numbers(system: System, metric: str, pattern: Pattern = "alone") -> str:
    """Return which numbers of the engine, needed for a metric, were taken from a neighbour.

    Return nothing if all were fitted to points.
    """
    engine, plan = system.engine, system.plan
    bits = BITS.get(plan.weights.stored.precision if plan.weights else "", "16")
    needed = [f"{key}.{bits}" for key in KEYS_BY_METRIC.get(metric, (*DECODE_KEYS, *PREFILL_KEYS))]
    if pattern == "reply":  # losses of engines of SRAM chips are in their overheads
        needed = ["layer_overhead"]
    if is_routed(system):
        needed.append("moe_layer_overhead")
    lacking = [key for key in needed if not (engine.source_of(key) or "").startswith("fitted")]
    return f"{engine.id}: no points for {', '.join(lacking)}" if lacking else ""
