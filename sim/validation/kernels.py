"""Times of single kernels, measured alone and simulated: `sramsim validate kernels`.

    kernel_summary(kernel_rows(shipped_table("kernels"))).metrics["gemm"].median_ape  # in %

A row is a multiply, the experts or the attention of a layer, or a collective. The simulated time
is that of the backend's kernels (scenarios/kernels), without what an engine loses between them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sim.catalogue.engines import NO_ENGINE
from sim.catalogue.measurements import errors_at_row, read_csv_table
from sim.hardware.chip import Chip
from sim.hardware.engine import PAIRS, Engine
from sim.hardware.kernels import Kernels
from sim.inputs.document import read_value
from sim.inputs.names import aliases, catalogue_names, find_entry
from sim.results.validation_summary import PointRow, ValidationSummary
from sim.units import Seconds
from sim.validation.agreement import error_statistics, statistics_by_metric
from sim.validation.kernel_works import KernelWork, kernel_work
from sim.validation.points import cell_number
from sim.validation.systems import InexpressibleError
from sim.validation.validate import shipped_table

KERNEL_COLUMNS = ("op", "chip", "backend", "dtype", "latency_us")
# Columns that do not describe the work. Rows that agree in all others measure one kernel.
OUTCOMES = ("latency_us", "doubt", "backend_version", "kernel")


@dataclass(frozen=True, slots=True)
class TimedKernel:
    """A row about a kernel: what ran, and how long it took.

    engine: without losses but those of the backend's kernels.
    generation: whose numbers count; empty if another one's stand in.
    doubt: why the time is not one of reading from memory; empty without doubt.
    """

    chip: Chip
    backend: str
    engine: Engine
    work: KernelWork
    generation: str
    seconds: Seconds
    doubt: str

    @property
    def simulated(self) -> Seconds:
        """The simulated time."""
        return self.work.seconds(self.engine, self.chip)


def is_kernel_table(path: Path) -> bool:
    """Return whether a table has the columns of times of kernels."""
    return set(KERNEL_COLUMNS) <= set(read_csv_table(path)[0])


def kernel_set(name: str | None, points: Path | None) -> dict[str, ValidationSummary]:
    """Return the set of kernels by its name: the catalogue's, or a user's table.

    Empty if another set is named, or the table has other columns.
    """
    if points:
        return {points.stem: kernel_summary(kernel_rows(points))} if is_kernel_table(points) else {}
    if name not in (None, "kernels"):
        return {}
    return {"kernels": kernel_summary(kernel_rows(shipped_table("kernels")))}


def kernel_rows(path: Path) -> list[PointRow]:
    """Return the comparison of every row of a table of kernels, in its order.

    Raises: ScenarioError if a cell is malformed.
    """
    shipped = shipped_table("kernels")
    known = set() if path == shipped else _identities(shipped)
    rows = []
    for where, row in read_csv_table(path)[1]:
        with errors_at_row(where):
            name = f"{path.stem}:{where.rpartition(':')[2]}"
            is_fitted = path == shipped or _identity(row) in known
            rows.append(_compared(name, row, is_fitted))
    return rows


def kernel_summary(rows: Iterable[PointRow]) -> ValidationSummary:
    """Return the set `kernels` in the form of the others, grouped by chip, backend and shape.

    Left out of the statistics: rows in doubt (`listed`).
    """
    rows = list(rows)
    scored = [row for row in rows if row.status in ("fitted", "tested", "assumed")]
    groups: dict[str, list[PointRow]] = {}
    for row in scored:
        for group in (row.status, row.chip, f"{row.chip}, {row.engine}", f"shape {row.shape}"):
            groups.setdefault(group, []).append(row)
    overall = error_statistics(scored)
    return ValidationSummary(
        points=tuple(rows),
        metrics=statistics_by_metric(scored),
        median_ape=overall.median_ape,
        mape=overall.mape,
        groups={name: statistics_by_metric(groups[name]) for name in sorted(groups)},
        expressed=sum(row.simulated is not None for row in rows),
        total=len(rows),
    )


def timed_kernel(row: Mapping[str, str]) -> TimedKernel:
    """Return the kernel of a row.

    Raises: InexpressibleError if the simulator has no such kernel, ValueError for a wrong cell.
    """
    work = kernel_work(row)
    engine, chip = _engine(row["backend"]), chip_of_table(row["chip"])
    if engine is None or not getattr(engine.kernels, work.part):
        raise InexpressibleError(f"no {work.part.replace('_', ' ')} of backend {row['backend']}")
    if chip is None:
        raise InexpressibleError(f"no chip {row['chip']} in the catalogue")
    try:
        work.seconds(engine, chip)
    except ValueError as error:
        raise InexpressibleError(str(error)) from None
    return TimedKernel(
        chip,
        row["backend"],
        engine,
        work,
        chip.generation if chip.generation in getattr(engine.kernels, work.part) else "",
        cell_number(row, "latency_us") / 1e6,
        row.get("doubt", ""),
    )


def _compared(name: str, row: Mapping[str, str], is_fitted: bool) -> PointRow:
    milliseconds = cell_number(row, "latency_us") / 1000
    try:
        timed = timed_kernel(row)
    except InexpressibleError as error:
        return PointRow(
            point_id=name,
            metric=row["op"],
            measured=milliseconds,
            simulated=None,
            error_pct=None,
            status="not expressed",
            reason=str(error),
            chip=row["chip"],
            engine=row["backend"],
        )
    status, reason = "fitted" if is_fitted else "tested", ""
    if timed.doubt:
        status, reason = "listed", timed.doubt
    elif not timed.generation:
        status, reason = "assumed", f"no kernels of {timed.chip.id}'s generation"
    simulated = 1000 * timed.simulated
    return PointRow(
        point_id=name,
        metric=timed.work.metric,
        measured=milliseconds,
        simulated=simulated,
        error_pct=100 * (simulated / milliseconds - 1),
        status=status,
        reason=reason,
        chip=timed.chip.id,
        engine=timed.backend,
        shape=timed.work.form,
    )


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(value for key, value in sorted(row.items()) if value and key not in OUTCOMES)


def _identities(path: Path) -> set[tuple[str, ...]]:
    return {_identity(row) for _, row in read_csv_table(path)[1]}


@lru_cache(maxsize=64)
def _engine(backend: str) -> Engine | None:
    """Return an engine that loses what the kernels of a backend lose; None without a file."""
    path = catalogue_names("kernels").get(backend)
    return engine_of_kernels(read_value(path, Kernels)) if path else None


def engine_of_kernels(kernels: Kernels) -> Engine:
    """Return an engine that loses nothing but what its kernels lose."""
    ideal = read_value(find_entry(NO_ENGINE, "engines"), Engine)
    own = [name for part, names in PAIRS.items() if getattr(kernels, part) for name in names]
    return ideal.model_copy(update={"kernels": kernels, **dict.fromkeys(own)})


@lru_cache(maxsize=64)
def chip_of_table(name: str) -> Chip | None:
    """Return the chip that a table names in any spelling; None if the catalogue has none."""
    known = catalogue_names("chips") | aliases("chips")
    words = name.lower().split()
    spellings = ("-".join(words), "_".join(words))
    path = next((known[spelling] for spelling in spellings if spelling in known), None)
    return read_value(path, Chip) if path else None
