"""Times of single kernels, measured alone and simulated: `sramsim validate kernels`.

    kernel_summary(kernel_rows(shipped_table("kernels"))).metrics["gemm"].median_ape  # in %

A row is one multiply. The simulated time is that of the backend's kernels (scenarios/kernels),
without what an engine loses between them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean, median

from sim.catalogue.engines import NO_ENGINE
from sim.catalogue.measurements import errors_at_row, read_csv_table
from sim.cost.multiplies import Multiply, multiply_alone, shaped_multiply
from sim.hardware.chip import Chip, Precision
from sim.hardware.engine import Engine
from sim.hardware.kernels import Kernels
from sim.inputs.document import read_value
from sim.inputs.names import aliases, catalogue_names, find_entry
from sim.model.blocks import NumberFormat
from sim.results.validation_summary import ErrorStatistics, PointRow, ValidationSummary
from sim.units import Seconds
from sim.validation.points import cell_number
from sim.validation.systems import InexpressibleError
from sim.validation.validate import shipped_table

KERNEL_COLUMNS = ("op", "chip", "backend", "dtype", "m", "n", "k", "latency_us")
# How weights are stored, and what they are multiplied by, for each dtype of a table.
# nvfp4: a scale of 8 bits for 16 numbers.  fp8_block: one of 32 bits for 128 x 128.
FORMATS = {
    "bf16": (NumberFormat("bf16", 16), Precision.BF16),
    "fp8": (NumberFormat("fp8", 8), Precision.FP8),
    "fp8_block": (NumberFormat("fp8", 8 + 32 / 128**2), Precision.FP8),
    "sq": (NumberFormat("int8", 8), Precision.INT8),
    "nvfp4": (NumberFormat("fp4", 4.5), Precision.FP4),
}
FEW_TOKENS = 64  # a multiply of more tokens is one of prompts: metric `gemm_prefill`
IDENTITY = ("op", "chip", "backend", "dtype", "m", "n", "k")  # what makes two rows the same one


@dataclass(frozen=True, slots=True)
class TimedMultiply:
    """A row about a multiply: what ran, and how long it took.

    multiply: with the losses of the backend's kernel.
    doubt: why the time is not one of reading the weights from memory; empty without doubt.
    """

    chip: Chip
    backend: str
    generation: str
    multiply: Multiply
    tokens: int
    seconds: Seconds
    doubt: str

    @property
    def simulated(self) -> Seconds:
        """The simulated time."""
        sides = multiply_alone(self.chip, self.multiply, self.tokens)
        return self.multiply.fixed + sides.seconds

    @property
    def metric(self) -> str:
        """`gemm` up to 64 tokens, else `gemm_prefill`."""
        return "gemm" if self.tokens <= FEW_TOKENS else "gemm_prefill"


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
    """Return the set `kernels` in the form of the other sets, with groups by chip and backend.

    Left out of the statistics: rows in doubt (`listed`).
    """
    rows = list(rows)
    scored = [row for row in rows if row.status in ("fitted", "tested", "assumed")]
    groups: dict[str, list[PointRow]] = {}
    for row in scored:
        for group in (row.status, row.chip, f"{row.chip}, {row.engine}"):
            groups.setdefault(group, []).append(row)
    overall = _statistics(scored)
    return ValidationSummary(
        points=tuple(rows),
        metrics=_by_metric(scored),
        median_ape=overall.median_ape,
        mape=overall.mape,
        groups={name: _by_metric(groups[name]) for name in sorted(groups)},
        expressed=sum(row.simulated is not None for row in rows),
        total=len(rows),
    )


def timed_multiply(row: Mapping[str, str]) -> TimedMultiply:
    """Return the multiply of a row.

    Raises: InexpressibleError if the simulator has no such kernel, ValueError for a wrong cell.
    """
    if row["op"] != "gemm":
        raise InexpressibleError(f"no model of single kernels of {row['op']}")
    if row["dtype"] not in FORMATS:
        raise InexpressibleError(f"no number format {row['dtype']}")
    kernels = _kernels(row["backend"])
    if kernels is None:
        raise InexpressibleError(f"no kernels of backend {row['backend']}")
    chip = _chip(row["chip"])
    if chip is None:
        raise InexpressibleError(f"no chip {row['chip']} in the catalogue")
    shape = cell_number(row, "k", int), cell_number(row, "n", int)
    ideal = read_value(find_entry(NO_ENGINE, "engines"), Engine)
    engine = ideal.model_copy(update={"kernels": kernels})
    try:
        multiply = shaped_multiply(engine, chip, shape, *FORMATS[row["dtype"]])
        multiply_alone(chip, multiply, 1)
    except ValueError as error:
        raise InexpressibleError(str(error)) from None
    return TimedMultiply(
        chip,
        row["backend"],
        chip.generation if chip.generation in kernels.multiplies else "",
        multiply,
        cell_number(row, "m", int),
        cell_number(row, "latency_us") / 1e6,
        row.get("doubt", ""),
    )


def _compared(name: str, row: Mapping[str, str], is_fitted: bool) -> PointRow:
    milliseconds = cell_number(row, "latency_us") / 1000
    try:
        timed = timed_multiply(row)
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
        metric=timed.metric,
        measured=milliseconds,
        simulated=simulated,
        error_pct=100 * (simulated / milliseconds - 1),
        status=status,
        reason=reason,
        chip=timed.chip.id,
        engine=timed.backend,
    )


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in IDENTITY)


def _identities(path: Path) -> set[tuple[str, ...]]:
    return {_identity(row) for _, row in read_csv_table(path)[1]}


@lru_cache(maxsize=64)
def _kernels(backend: str) -> Kernels | None:
    """Return the kernels of a backend; None if the catalogue has none."""
    path = catalogue_names("kernels").get(backend)
    return read_value(path, Kernels) if path else None


@lru_cache(maxsize=64)
def _chip(name: str) -> Chip | None:
    """Return the chip that a table names in any spelling; None if the catalogue has none."""
    known = catalogue_names("chips") | aliases("chips")
    words = name.lower().split()
    spellings = ("-".join(words), "_".join(words))
    path = next((known[spelling] for spelling in spellings if spelling in known), None)
    return read_value(path, Chip) if path else None


def _statistics(rows: Iterable[PointRow]) -> ErrorStatistics:
    errors = [row.error_pct for row in rows if row.error_pct is not None]
    if not errors:
        return ErrorStatistics(n=0)
    sizes = [abs(error) for error in errors]
    return ErrorStatistics(
        median_ape=median(sizes), mape=mean(sizes), bias=mean(errors), n=len(errors)
    )


def _by_metric(rows: Iterable[PointRow]) -> dict[str, ErrorStatistics]:
    rows = list(rows)
    return {
        name: _statistics(row for row in rows if row.metric == name)
        for name in sorted({row.metric for row in rows})
    }
