"""Published latencies and bandwidths between chips beside simulated ones: `sramsim validate network`.  Pure functions."""

from dataclasses import dataclass
from math import log
from statistics import mean, median
from typing import Any, Literal

from sim.catalogue.measurements import MessagePoint, NetworkMeasurements
from sim.inputs.document import read_value
from sim.inputs.errors import ScenarioError
from sim.inputs.names import catalogue_names

FAR = 0.15  # beyond, a deviation is told with its reason
# A collective's bandwidth counts what crosses a chip's cables: (n-1)/n times this, for each byte of the operation.
# Source: NVIDIA/nccl-tests, doc/PERFORMANCE.md, "bus bandwidth".
CROSSING = {"all_reduce": 2.0, "all_gather": 1.0, "all_to_all": 1.0}


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure and its simulated counterpart, where there is one."""

    id: str
    system: str
    operation: str
    devices: str
    bytes: str
    software: str | None
    status: Literal["free", "fitted", "given"] | None
    unit: Literal["us", "GB/s"]
    measured: float
    simulated: float | None
    reason: str

    @property
    def error(self) -> float | None:
        """Relative to what was measured."""
        return None if self.simulated is None else self.simulated / self.measured - 1

    @property
    def far(self) -> bool:
        return self.error is not None and abs(self.error) > FAR

    @property
    def point(self) -> dict[str, Any]:
        """As `validate --json` tells any point: times in ms (a bandwidth's inverted, of a GB), ln(simulated / measured) of them."""

        def shown(value: float) -> float:
            return value / 1000 if self.unit == "us" else 1000 / value

        measured, simulated = (
            shown(self.measured),
            None if self.simulated is None else shown(self.simulated),
        )
        return {
            "point_id": self.id,
            "metric": "latency" if self.unit == "us" else "bandwidth",
            "measured": measured,
            "simulated": simulated,
            "error_pct": None if simulated is None else 100 * log(simulated / measured),
            "status": {"free": "tested", None: "not expressed"}.get(self.status, self.status),
            "reason": self.reason,
            "chip": self.system,
            "engine": self.software or "",
        }

    def as_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in (*self.__slots__, "error")}


def network() -> list[Row]:
    """Every published figure of the catalogue about messages between chips."""
    return rows(read_value(catalogue_names("measurements")["network"], NetworkMeasurements))


def rows(table: NetworkMeasurements) -> list[Row]:
    """Raises: ScenarioError where a row asks for what its system cannot do."""
    return [
        Row(
            id=point.id,
            system=point.system,
            operation=point.operation,
            devices=point.n_devices,
            bytes=point.message_bytes,
            software=point.software,
            status=point.status,
            unit="us" if point.latency_us else "GB/s",
            measured=point.latency_us or point.bandwidth_GBps or 0.0,
            simulated=simulated(table, point),
            reason=point.reason,
        )
        for point in table.points
    ]


def simulated(table: NetworkMeasurements, point: MessagePoint) -> float | None:
    """What the simulator says to one row: microseconds, or GB/s where no latency was published."""
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
            f"{point.id}: a group of {len(group)} does not fit on {point.chips} chips"
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


def medians(compared: list[Row]) -> dict[str, tuple[float, int]]:
    """Median absolute error and number of rows: of all that test something, and by status."""
    kinds = {
        "tested": ("free", "fitted"),
        "free": ("free",),
        "fitted": ("fitted",),
        "given": ("given",),
    }
    errors = {
        kind: [abs(r.error) for r in compared if r.error is not None and r.status in of]
        for kind, of in kinds.items()
    }
    return {kind: (median(each), len(each)) for kind, each in errors.items() if each}


def as_json(compared: list[Row]) -> dict[str, Any]:
    """As the other sets of `validate --json`; what was given is not counted."""
    told = [row.point for row in compared]
    counted = [
        abs(each["error_pct"])
        for each in told
        if each["error_pct"] is not None and each["status"] in ("tested", "fitted")
    ]
    overall = (
        {"median_ape": median(counted), "mape": mean(counted)}
        if counted
        else {"median_ape": None, "mape": None}
    )
    by_metric = {
        name: {"median_ape": median(errors), "mape": mean(errors), "n": len(errors)}
        for name in ("latency", "bandwidth")
        if (
            errors := [
                abs(e["error_pct"])
                for e in told
                if e["metric"] == name and e["status"] in ("tested", "fitted")
            ]
        )
    }
    expressed = sum(each["error_pct"] is not None for each in told)
    return {
        "points": told,
        "metrics": by_metric,
        **overall,
        "expressed": expressed,
        "total": len(told),
    }
