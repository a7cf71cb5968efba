"""Published latencies and bandwidths between chips, compared: `sramsim validate network`.

medians(network_rows())["tested"]  # median absolute error, number of rows
"""

from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

from sim.catalogue.measurements import MessagePoint, NetworkMeasurements
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names
from sim.results.validation_summary import (
    ErrorStatistics,
    MessageRow,
    PointRow,
    ValidationSummary,
)

FAR = 0.15  # a larger relative error is printed with its reason
# Bytes that cross a chip's cables for each byte of a collective: (n-1)/n times this.
# Source: NVIDIA/nccl-tests, doc/PERFORMANCE.md, "bus bandwidth".
CROSSING = {"all_reduce": 2.0, "all_gather": 1.0, "all_to_all": 1.0}
# The status of a figure in the words of the other sets. None: nothing simulates it.
STATUSES: dict[str | None, str] = {
    "free": "tested",
    "fitted": "fitted",
    "given": "given",
    None: "not expressed",
}


@dataclass(frozen=True, kw_only=True)
class MessageComparison(MessageRow):
    """A published figure beside the simulated one, with what statistics need of them."""

    @property
    def far(self) -> bool:
        """Whether the error exceeds 15 %."""
        return self.error is not None and abs(self.error) > FAR

    @property
    def is_scored(self) -> bool:
        """Whether the row counts in statistics: figures that were inputs (`given`) do not."""
        return self.simulated is not None and self.status in ("free", "fitted")

    @property
    def metric(self) -> Literal["latency", "bandwidth"]:
        """The published metric."""
        return "latency" if self.unit == "us" else "bandwidth"

    @property
    def time_error(self) -> float | None:
        """simulated / measured - 1 of the time; None if nothing was simulated."""
        if self.simulated is None:
            return None
        return self._milliseconds(self.simulated) / self._milliseconds(self.measured) - 1

    def _milliseconds(self, value: float) -> float:
        """Return a figure as a time in ms; a bandwidth as the time of 1 GB."""
        return value / 1000 if self.unit == "us" else 1000 / value

    @property
    def point_row(self) -> PointRow:
        """The comparison as a point of a set, with times in ms."""
        error = self.time_error
        return PointRow(
            point_id=self.id,
            metric=self.metric,
            measured=self._milliseconds(self.measured),
            simulated=None if self.simulated is None else self._milliseconds(self.simulated),
            error_pct=None if error is None else 100 * error,
            status=STATUSES[self.status],
            reason=self.reason,
            chip=self.system,
            engine=self.software or "",
        )


def network_rows() -> list[MessageComparison]:
    """Return the comparison of every published figure of the catalogue about messages."""
    return message_rows(read_value(catalogue_names("measurements")["network"], NetworkMeasurements))


def message_rows(table: NetworkMeasurements) -> list[MessageComparison]:
    """Return the comparison of every figure of a table.

    Raises: ScenarioError if a row needs more chips than its system has.
    """
    return [_compared(table, point) for point in table.points]


def _compared(table: NetworkMeasurements, point: MessagePoint) -> MessageComparison:
    measured = point.latency_us or point.bandwidth_GBps or 0.0
    simulated = simulated_message(table, point)
    return MessageComparison(
        id=point.id,
        system=point.system,
        operation=point.operation,
        devices=point.n_devices,
        bytes=point.message_bytes,
        software=point.software,
        status=point.status,
        unit="us" if point.latency_us else "GB/s",
        measured=measured,
        simulated=simulated,
        reason=point.reason,
        error=None if simulated is None else simulated / measured - 1,
    )


def simulated_message(table: NetworkMeasurements, point: MessagePoint) -> float | None:
    """Return the simulated figure of a row: us, or GB/s if no latency was published.

    Return None if nothing simulates it.
    Raises: ScenarioError if the row needs more chips than its system has.
    """
    if (
        not (point.simulates and point.on and point.software and point.chips and point.group)
        or point.bytes is None
    ):
        return None
    software, group, nbytes = table.software[point.software], range(point.group), point.bytes
    latency = software.latency + len(group) * software.latency_per_chip
    try:
        topology = table.systems[point.on].joined(point.chips)
    except ValueError as error:
        raise ScenarioError(f"{point.id}: {error}") from None
    if group[-1] >= point.chips:
        raise ScenarioError(
            f"{point.id}: got a group of {len(group)}; expected at most {point.chips}, the chips"
        )
    match point.simulates:
        case "send":
            time = (
                topology.channel(group[0], group[-1])
                .with_software(latency, software.efficiency)
                .time(nbytes)
            )
        case "farthest":
            middle = group[len(group) // 2]
            time = max(
                topology.channel(middle, chip)
                .with_software(latency, software.efficiency)
                .time(nbytes)
                for chip in group
            )
        case collective:
            time = getattr(topology, collective)(group, nbytes, latency, software.efficiency)
    time = max(time, software.launch)
    if point.latency_us:
        return time * 1e6
    crossing = (
        CROSSING[point.simulates] * (len(group) - 1) / len(group)
        if point.simulates in CROSSING
        else 1.0
    )
    return crossing * nbytes / time / 1e9


def medians(compared: list[MessageComparison]) -> dict[str, tuple[float, int]]:
    """Return the median absolute error and the number of rows, by status.

    `tested` has the rows of `free` and `fitted`.
    """
    kinds = {
        "tested": ("free", "fitted"),
        "free": ("free",),
        "fitted": ("fitted",),
        "given": ("given",),
    }
    errors = {
        kind: [
            abs(row.error) for row in compared if row.error is not None and row.status in statuses
        ]
        for kind, statuses in kinds.items()
    }
    return {kind: (median(sizes), len(sizes)) for kind, sizes in errors.items() if sizes}


def network_summary(compared: list[MessageComparison]) -> ValidationSummary:
    """Return the set `network` in the form of the other sets.

    Left out of the statistics: figures that were inputs (`given`).
    """
    counted = [
        (row.metric, abs(100 * row.time_error))
        for row in compared
        if row.is_scored and row.time_error is not None
    ]
    sizes = [size for _, size in counted]
    metrics = {
        name: ErrorStatistics(median_ape=median(errors), mape=mean(errors), n=len(errors))
        for name in ("latency", "bandwidth")
        if (errors := [size for metric, size in counted if metric == name])
    }
    return ValidationSummary(
        points=tuple(row.point_row for row in compared),
        metrics=metrics,
        median_ape=median(sizes) if sizes else None,
        mape=mean(sizes) if sizes else None,
        expressed=sum(row.simulated is not None for row in compared),
        total=len(compared),
    )
