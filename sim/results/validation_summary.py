"""Measured and simulated times of sets of points, typed: the contract of `validate --json`.

>>> ErrorStatistics(n=0).mape is None
True

`sim.results.encoding` writes these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.results.encoding import OMIT_NONE, SPLICED


@dataclass(frozen=True, kw_only=True)
class ErrorStatistics:
    """Statistics of n errors [%]: of absolute ones the median and mean, and the mean itself.

    None: without errors. bias: None for messages too.
    """

    median_ape: Annotated[float | None, OMIT_NONE] = None
    mape: Annotated[float | None, OMIT_NONE] = None
    bias: Annotated[float | None, OMIT_NONE] = None
    n: int


@dataclass(frozen=True, kw_only=True)
class PointBound:
    """Whether a point of a system is an upper bound of the time.

    bound: 'kept' or 'broken'; None for a measurement. bound_reason: why it is a bound.
    moe: whether the model is a mixture of experts.
    """

    bound: str | None
    bound_reason: str
    moe: bool


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """One metric of a point, measured and simulated.

    measured, simulated: ms; for a throughput, that of one token; None if there is none.
    error_pct: 100 (simulated / measured - 1); None without both. bounds, model: None for messages.
    vendor: maker of the chips; None if it is not known. shape: of a kernel; None for other points.
    """

    point_id: str
    metric: str
    measured: float | None
    simulated: float | None
    error_pct: float | None
    status: str
    bounds: Annotated[PointBound | None, SPLICED] = None
    reason: str
    model: Annotated[str | None, OMIT_NONE] = None
    chip: str
    vendor: Annotated[str | None, OMIT_NONE] = None
    engine: str
    shape: Annotated[str | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class ValidationSummary:
    """A set of points with the comparison of each metric.

    metrics, median_ape, mape: statistics of the headline [%].
    groups: statistics of all counted rows. bounds: numbers of kept and broken ones.
    expressed, total: numbers of points. Fields that messages do not have are None for them.
    fitted_numbers: those that were fitted to the replies; None for other sets.
    """

    points: tuple[PointRow, ...]
    metrics: Mapping[str, ErrorStatistics]
    median_ape: float | None
    mape: float | None
    groups: Annotated[Mapping[str, Mapping[str, ErrorStatistics]] | None, OMIT_NONE] = None
    bounds: Annotated[Mapping[str, int] | None, OMIT_NONE] = None
    expressed: int
    total: int
    fitted_numbers: Annotated[tuple[str, ...] | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class MessageRow:
    """A published figure about messages, and the simulated one.

    status: free, fitted or given. measured, simulated: in `unit`, us or GB/s.
    error: simulated / measured - 1. None: nothing simulates the figure.
    """

    id: str
    system: str
    operation: str
    devices: str
    bytes: str
    software: str | None
    status: str | None
    unit: str
    measured: float
    simulated: float | None
    reason: str
    error: float | None


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """The sets that `validate` compared.

    rows, medians: figures about messages as the table has them, for `--network`.
    """

    sets: Mapping[str, ValidationSummary]
    rows: Annotated[tuple[MessageRow, ...] | None, OMIT_NONE] = None
    medians: Annotated[Mapping[str, tuple[float, int]] | None, OMIT_NONE] = None
