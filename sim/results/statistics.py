"""The metrics of one system, typed. Names and definitions are those of vLLM's benchmark.

    >>> LATENCIES["tpot"].statistics
    ('mean', 'median', 'std', 'p90', 'p95', 'p99')

One entry of `LATENCIES` decides which statistics a latency has in JSON, tables, page, compare and
sweep. To add p99.9 of TPOT: `"tpot": Latency("TPOT", ("median", "p99", "p99.9"))`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from sim.inputs.key_paths import JsonValue
from sim.results.encoding import OMIT_NONE, SPLICED, Key, SplicedField
from sim.results.verdict import Hint, Verdict

STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")


@dataclass(frozen=True)
class Latency:
    """A latency as tables name it, and the statistics that tables and `compare` show.

    A statistic is mean, median, std, or a percentile such as p99 or p99.9.
    """

    label: str
    shown: tuple[str, ...] = ("median", "p99")

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics of a result: the usual ones, then others that are shown."""
        return tuple(dict.fromkeys((*STATISTICS, *self.shown)))


LATENCIES = {
    "ttft": Latency("TTFT"),
    "tpot": Latency("TPOT"),
    "itl": Latency("ITL"),
    "e2el": Latency("E2E latency"),
}


@dataclass(frozen=True)
class Statistics:
    """Statistics of one latency by name [ms]. None, or a missing one: nothing was measured."""

    values: Mapping[str, float | None]

    def __getitem__(self, statistic: str) -> float | None:
        return self.values.get(statistic)

    @property
    def mean(self) -> float | None:
        """The mean, ms."""
        return self["mean"]

    @property
    def median(self) -> float | None:
        """The median, ms."""
        return self["median"]

    @property
    def p99(self) -> float | None:
        """The 99th percentile, ms."""
        return self["p99"]


def statistic_key(statistic: str, latency: str) -> str:
    """Return the key of a statistic in JSON: 'median_ttft_ms'."""
    return f"{statistic}_{latency}_ms"


def _encode_statistics(latency: str, statistics: Statistics) -> Mapping[str, float | None]:
    return {statistic_key(name, latency): value for name, value in statistics.values.items()}


def _decode_statistics(latency: str, data: Mapping[str, JsonValue]) -> Statistics:
    pattern = re.compile(rf"(mean|median|std|p[\d.]+)_{latency}_ms")
    values: dict[str, float | None] = {}
    for key, value in data.items():
        match = pattern.fullmatch(key)
        if match and isinstance(value, int | float | None):
            values[match[1]] = value
    return Statistics(values)


LatencyField = Annotated[Statistics, SplicedField(_encode_statistics, _decode_statistics)]


@dataclass(frozen=True)
class Unfinished:
    """The number of requests that did not finish for one reason."""

    reason: str
    requests: int


@dataclass(frozen=True)
class MeasuredSpan:
    """The part of a run that is counted [s]."""

    start: Annotated[float, Key("from")]
    end: Annotated[float, Key("to")]


@dataclass(frozen=True)
class Goodput:
    """Requests per second that meet every limit of the SLO. None: the run took no time."""

    request_goodput: float | None


@dataclass(frozen=True, kw_only=True)
class FaultMetrics:
    """The availability of a plain system whose parts fail.

    p5_availability: one sample in twenty is below it.
    closed_form_availability: None where no closed form holds; the next field leaves swaps out.
    series_availability: without spares, MTBF / (MTBF + MTTR).
    mtbf_h: of the parts at work, h. swap_s: of one part, s.
    lost_to_model_swaps: share of the time.
    """

    p5_availability: float
    closed_form_availability: float | None = None
    closed_form_availability_without_swaps: float | None = None
    series_availability: float | None = None
    mtbf_h: float
    swap_s: float | None = None
    lost_to_model_swaps: float = 0.0
    outages_per_year: float | None = None


@dataclass(frozen=True, kw_only=True)
class AvailabilityMetrics:
    """The share of time that a system works, and the half width of its 95 % interval.

    faults: None of a fleet.
    """

    availability: float
    ci95_availability: float = 0.0
    faults: Annotated[FaultMetrics | None, SPLICED] = None


@dataclass(frozen=True)
class ReplayMetrics:
    """Steps that were repeated after a link error.

    expected_replays: of as many steps. replayed_share: of all steps.
    """

    replays: int
    expected_replays: float
    replayed_share: float
    replays_per_day: float


@dataclass(frozen=True, kw_only=True)
class KindMetrics:
    """The metrics of one kind of requests.

    slo: its limits by name [s]; None without an SLO. attainment: share of its requests that meet
        them; None without an SLO, or if no request of the kind is counted.
    slo_percentile: percent of its requests that must meet its own SLO; None without a percentile
        of its own.
    """

    requests: int
    completed: int
    slo: Annotated[Mapping[str, float] | None, OMIT_NONE, Key("slo_s")] = None
    slo_percentile: Annotated[float | None, OMIT_NONE] = None
    attainment: Annotated[float | None, OMIT_NONE] = None
    ttft: LatencyField
    tpot: LatencyField
    e2el: LatencyField


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of one system's users. None: nothing was measured.

    served_share: output tokens served over those offered, in the second half of the arrivals;
        None in a closed loop.
    duration: from the first arrival to the end of the last request, however it ends, or the
        span of `measure` [s].
    moved: requests that began again on another replica, of those that are `retried`.
    request_throughput: requests/s. output_throughput, total_token_throughput: tokens/s.
    goodput, attainment: None without an SLO. attainment: share of the requests that meet it; a
        refused request does not.
    ci95_mean_…_ms: half width of the mean's 95 % confidence interval, by batch means, ms; None
        where there is no steady state, or there are too few requests.
    measured: None where the whole run is counted.
    fitted_share: of the time of a token of a single request; None of a fleet.
    tokens_per_step: output of a sequence, without its first token; None without speculation.
    kinds: by name; None without kinds of requests. Their attainments, weighted by requests, add up
        to `attainment` if all have an SLO.
    """

    verdict: Verdict
    served_share: float | None = None
    unfinished: tuple[Unfinished, ...] = ()
    hints: tuple[Hint, ...] = ()
    completed: int
    refused: int
    cancelled: int = 0
    preemptions: int = 0
    failed: int = 0
    retried: int = 0
    moved: int = 0
    cached_tokens: int = 0
    duration: float
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float | None
    output_throughput: float | None
    total_token_throughput: float | None
    goodput: Annotated[Goodput | None, SPLICED] = None
    attainment: Annotated[float | None, OMIT_NONE] = None
    ttft: LatencyField
    tpot: LatencyField
    itl: LatencyField
    e2el: LatencyField
    ci95_mean_ttft_ms: float | None = None
    ci95_mean_tpot_ms: float | None = None
    ci95_mean_e2el_ms: float | None = None
    measured: Annotated[MeasuredSpan | None, OMIT_NONE] = None
    fitted_share: Annotated[float | None, OMIT_NONE] = None
    tokens_per_step: Annotated[float | None, OMIT_NONE] = None
    kinds: Annotated[Mapping[str, KindMetrics] | None, OMIT_NONE] = None
    availability: Annotated[AvailabilityMetrics | None, SPLICED] = None
    link_errors: Annotated[ReplayMetrics | None, SPLICED] = None

    @property
    def request_goodput(self) -> float | None:
        """Requests per second that meet the SLO; None without one."""
        return self.goodput.request_goodput if self.goodput else None

    @property
    def user_speed(self) -> float | None:
        """Output tokens per second of the median user, 1/TPOT."""
        return 1000 / self.tpot.median if self.tpot.median else None

    @property
    def works(self) -> float:
        """The share of time that the system works; 1 if no parts fail."""
        return self.availability.availability if self.availability else 1.0

    def latency(self, name: str) -> Statistics:
        """Return the statistics of a latency of `LATENCIES`."""
        statistics: Statistics = getattr(self, name)
        return statistics

    def ci95_mean(self, name: str) -> float | None:
        """Return the half width of a mean's 95 % interval, ms; None of ITL, which has none."""
        width: float | None = getattr(self, f"ci95_mean_{name}_ms", None)
        return width


@dataclass(frozen=True, kw_only=True)
class TraceMetrics:
    """Latencies of a trace's own server. Left out: statistics that the trace does not have."""

    ttft: LatencyField
    tpot: LatencyField
    e2el: LatencyField
    ci95_mean_ttft_ms: Annotated[float | None, OMIT_NONE] = None
    ci95_mean_tpot_ms: Annotated[float | None, OMIT_NONE] = None
    ci95_mean_e2el_ms: Annotated[float | None, OMIT_NONE] = None


@dataclass(frozen=True, kw_only=True)
class MemberMetrics:
    """The metrics of one member of a fleet. replicas: by number."""

    replicas: tuple[int, ...]
    completed: int
    cancelled: int = 0
    total_input_tokens: int
    total_output_tokens: int
    ttft: LatencyField
    tpot: LatencyField
    e2el: LatencyField
