"""How well simulated points agree with measured ones: the error of each metric, and statistics.

ValidationReport("mine", comparisons).as_json()["median_ape"]  # in %
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

from sim.inputs.key_paths import JsonObject
from sim.results.encoding import json_object
from sim.results.validation_summary import (
    ErrorStatistics,
    PointBound,
    PointRow,
    ValidationSummary,
)
from sim.scenario.system import System
from sim.units import Seconds
from sim.validation.own_points import OwnPoints
from sim.validation.points import MeasuredPoint
from sim.validation.replies import fitted_numbers

# fitted: an engine may have been fitted to this point.
# tested: it was not, but the engine was fitted to others of its kind.
# assumed: a number that the metric depends on was taken from a neighbour.
# listed: measured, but not scored.
Status = Literal["fitted", "tested", "assumed", "listed", "not expressed"]
# The time of a throttled or loaded service is an upper bound of the hardware's time.
# kept: the simulated time is not longer.
Bound = Literal["kept", "broken"]
WORST_SHOWN = 10  # rows with the largest errors


@dataclass(frozen=True, slots=True)
class PointComparison:
    """One metric of a point, measured and simulated.

    measured: seconds; nan if the simulator has no such metric.
    simulated: seconds; None if the point cannot be simulated.
    near_saturation: whether the simulated prefill pool computes almost all the time. Then a few
    percent of its speed move the TTFT several times as far.
    """

    point: MeasuredPoint
    metric: str
    measured: Seconds
    simulated: Seconds | None
    status: Status
    reason: str
    near_saturation: bool = False

    @property
    def error(self) -> float | None:
        """simulated / measured - 1 of the time, at least 0 for a bound; None without both."""
        if not self.simulated or not self.measured > 0:
            return None
        return self.point.error(self.metric, self.simulated, self.measured)

    @property
    def bound(self) -> Bound | None:
        """Whether the simulated time keeps an upper bound; None for a measurement."""
        if self.error is None or self.status == "listed" or not self.point.is_bound(self.metric):
            return None
        return "broken" if self.error else "kept"

    @property
    def moe(self) -> bool:
        """Whether the model is a mixture of experts."""
        return self.point.system is not None and is_routed(self.point.system)

    @property
    def group(self) -> str:
        """The name of the group in which it counts, such as 'tested, dense'."""
        words = [self.status, "mixture of experts" if self.moe else "dense"]
        words += ["drafts"] if self.drafts else []
        words += ["near saturation"] if self.near_saturation else []
        return ", ".join(words)

    @property
    def drafts(self) -> bool:
        """Whether it is about sequences with drafts, whose acceptance is assumed."""
        return bool(self.point.system and self.point.system.speculate)

    @property
    def measured_ms(self) -> float | None:
        """The measured time, ms; for a throughput, that of one token; None if there is none."""
        return None if math.isnan(self.measured) else 1000 * self.measured

    @property
    def simulated_ms(self) -> float | None:
        """The simulated time, ms; None if the point cannot be simulated."""
        return 1000 * self.simulated if self.simulated else None

    @property
    def error_pct(self) -> float | None:
        """The error in %; None without both times."""
        return None if self.error is None else 100 * self.error

    @property
    def model(self) -> str:
        """The model as the table names it."""
        return self.point.about["model"]

    @property
    def chip(self) -> str:
        """The simulated chip; as the table names it if none is simulated."""
        chip = self.point.system.chip if self.point.system else None
        return chip.id if chip else self.point.about["chip"]

    @property
    def engine(self) -> str:
        """The simulated engine; as the table names it if none is simulated."""
        return self.point.system.engine.id if self.point.system else self.point.about["engine"]

    @property
    def summary(self) -> PointRow:
        """The comparison as a result has it."""
        return PointRow(
            point_id=self.point.id,
            metric=self.metric,
            measured=self.measured_ms,
            simulated=self.simulated_ms,
            error_pct=self.error_pct,
            status=self.status,
            bounds=PointBound(bound=self.bound, bound_reason=self.point.bound, moe=self.moe),
            reason=self.reason,
            model=self.model,
            chip=self.chip,
            vendor=(self.point.system and self.point.system.hardware[0].vendor) or None,
            engine=self.engine,
        )


def is_routed(system: System) -> bool:
    """Return whether the model of a point's system has experts."""
    assert system.model is not None
    return any(block.experts for block in system.model.blocks)


def error_statistics(rows: Iterable[PointComparison | PointRow]) -> ErrorStatistics:
    """Return the statistics of the rows that have an error."""
    errors = [row.error_pct for row in rows if row.error_pct is not None]
    sizes = [abs(error) for error in errors]
    if not errors:
        return ErrorStatistics(n=0)
    return ErrorStatistics(
        median_ape=median(sizes), mape=mean(sizes), bias=mean(errors), n=len(errors)
    )


def statistics_by_metric(rows: Iterable[PointComparison | PointRow]) -> dict[str, ErrorStatistics]:
    """Return the statistics of each metric of the rows, in order of their names."""
    rows = list(rows)
    return {
        name: error_statistics(row for row in rows if row.metric == name)
        for name in sorted({row.metric for row in rows})
    }


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """A set of measured points with the comparison of each metric, or the reason for none.

    own: the user's table, with the rows and columns that are not used; None for other tables.
    """

    name: str
    rows: tuple[PointComparison, ...]
    own: OwnPoints | None = None

    @property
    def expressed(self) -> list[PointComparison]:
        """Rows with an error."""
        return [row for row in self.rows if row.error is not None]

    @property
    def counted(self) -> list[PointComparison]:
        """Rows of the statistics.

        Left out: kept bounds, because an error of 0 would flatter.
        """
        return [row for row in self.expressed if row.bound != "kept"]

    @property
    def bounds(self) -> dict[Bound, list[PointComparison]]:
        """Rows whose times are upper bounds, by whether the simulated time keeps the bound."""
        kinds: tuple[Bound, ...] = ("kept", "broken")
        return {kind: [row for row in self.rows if row.bound == kind] for kind in kinds}

    @property
    def of_replies(self) -> bool:
        """Whether the points are floors of a service's replies."""
        return any(row.point.pattern == "reply" for row in self.rows)

    @property
    def headline(self) -> list[PointComparison]:
        """Rows that make the headline: tested ones of dense models; without any, fitted ones.

        In a set without dense models, those with experts take their place.
        For replies: all floors that are scored, also of experts and fitted ones.
        For pools: all that are scored and not fitted; without any, fitted ones. Rows with drafts
        are left out, because their acceptance is assumed.
        """
        if self.of_replies:
            return [row for row in self.counted if row.status in ("tested", "fitted")]
        if any(row.point.pools for row in self.rows):
            kinds = ("tested", "assumed")
            scored = [row for row in self.counted if row.status in kinds and not row.drafts]
            return scored or [row for row in self.counted if row.status == "fitted"]
        dense = [row for row in self.counted if not row.moe] or self.counted
        return [row for row in dense if row.status == "tested"] or [
            row for row in dense if row.status == "fitted"
        ]

    @property
    def groups(self) -> dict[str, list[PointComparison]]:
        """Counted rows by group: tested, fitted and assumed ones, in order of their names."""
        groups: dict[str, list[PointComparison]] = {}
        for status in ("tested", "fitted", "assumed"):
            rows = [row for row in self.counted if row.status == status]
            for row in sorted(rows, key=lambda row: row.group):
                groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def worst(self) -> list[PointComparison]:
        """Rows of the headline with the largest errors."""
        return sorted(self.headline, key=lambda row: -abs(row.error or 0.0))[:WORST_SHOWN]

    @property
    def fitted_numbers(self) -> list[str]:
        """Names of the numbers that were fitted to the replies that are scored."""
        return fitted_numbers(row.point for row in self.headline)

    @property
    def summary(self) -> ValidationSummary:
        """The report as a result has it."""
        overall = error_statistics(self.headline)
        return ValidationSummary(
            points=tuple(row.summary for row in self.rows),
            metrics=statistics_by_metric(self.headline),
            median_ape=overall.median_ape,
            mape=overall.mape,
            groups={name: statistics_by_metric(rows) for name, rows in self.groups.items()},
            bounds={kind: len(rows) for kind, rows in self.bounds.items()},
            expressed=len({row.point.id for row in self.expressed}),
            total=len({row.point.id for row in self.rows}),
            fitted_numbers=tuple(self.fitted_numbers) if self.of_replies else None,
        )

    def as_json(self) -> JsonObject:
        """Return the report as an object of `validate --json`."""
        return json_object(self.summary)
