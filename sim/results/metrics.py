"""Metrics from rows: TTFT, TPOT, ITL, E2E latency, throughput, goodput and the verdict.

    >>> in_ms(0.25)
    250.0

Names and definitions are those of vLLM's benchmark.
"""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.inputs.errors import ScenarioError
from sim.inputs.values import Value
from sim.results.attainment import count_good, has_limits, meets_slo
from sim.results.rows import Rows
from sim.results.statistics import (
    LATENCIES,
    Goodput,
    KindMetrics,
    MeasuredSpan,
    MemberMetrics,
    Metrics,
    Statistics,
    TraceMetrics,
    Unfinished,
)
from sim.results.verdict import UNSTEADY, hints, judge_share
from sim.units import Seconds
from sim.workload.slo import SLO

Column = NDArray[np.float64]
BATCHES, OF_BATCH = 20, 10  # batch means: how many batches, and the fewest requests of each
STUDENT = 2.093024  # the 97.5 % point of Student's t with BATCHES - 1 degrees of freedom


class Measure(Value):
    """The part of a run that is counted, by its clock.

    Times are those of the run's clock [s]. Latencies and counts are of requests that arrive in it.
    Throughputs and goodput are of the output in it. The tokens of an answer are spread evenly from
    its first to its last. J and $ are of the work in that time.
    Left out: ITL and the verdict are of the whole run, because the ITL histogram has no times.
    `sramsim capacity` chooses the part of its runs itself.
    """

    warmup: Seconds | None = Field(
        default=None, description="Time after which counting begins, until the last arrival [s]."
    )
    window: tuple[Seconds, Seconds] | None = Field(
        default=None, description="Start and end of the counted time [s], instead of `warmup`."
    )

    @property
    def bounds(self) -> tuple[Seconds, Seconds | None]:
        """Start and end of the part that counts [s]; an end of None is the last arrival."""
        return self.window or (self.warmup or 0.0, None)

    @model_validator(mode="after")
    def _one(self) -> "Measure":
        if (self.warmup is None) == (self.window is None):
            got = "neither warmup nor window" if self.warmup is None else "warmup and window"
            expected = "expected one of them; try warmup: 10 s, or window: [10 s, 60 s]"
            raise ValueError(f"got {got}; {expected}")
        if self.window and self.window[0] >= self.window[1]:
            start, end = self.window
            got = f"window: got {start:g} s to {end:g} s; expected a later end"
            raise ValueError(f"{got}; try [{end:g} s, {start:g} s]" if start > end else got)
        return self

    def span(self, rows: Rows) -> tuple[Seconds, Seconds]:
        """Return start and end of the part of a run that counts [s].

        Raises: ScenarioError if no request arrives in it.
        """
        arrivals = rows.arrival[~np.isnan(rows.arrival)]
        last = float(arrivals.max())
        start, end = self.window or (self.bounds[0], last)
        if not ((rows.arrival >= start) & (rows.arrival <= end)).any():
            until = f" to {end:g} s" if self.window else ""
            nearest = float(arrivals[np.abs(arrivals - start).argmin()])
            raise ScenarioError(
                f"measure: got no request from {start:g} s{until}; expected one or more; "
                f"try {nearest:g} s, when the nearest request arrives"
            )
        return start, end


def latencies(
    rows: Rows, counted: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return the latencies of finished requests in order of arrival.

    ttft, e2el: float[request] [s]. tpot: float[request with two tokens or more] [s].
    counted: bool[request]; None counts all.
    """
    done = np.flatnonzero(rows.finished if counted is None else rows.finished & counted)
    done = done[np.argsort(rows.arrival[done], kind="stable")]
    ttft = (rows.first_token - rows.arrival)[done]
    e2el = (rows.last_token - rows.arrival)[done]
    output = rows.requests.output[done]
    tpot = ((e2el - ttft)[output > 1]) / (output[output > 1] - 1)
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def summarize(rows: Rows, slo: SLO | None = None, measure: Measure | None = None) -> Metrics:
    """Return the metrics of one system.

    The verdict, ITL, and hints other than on the counted part are of the whole run.
    Raises: ScenarioError if no request arrives in the part that `measure` counts.
    """
    span, counted = measured_requests(rows, measure)
    done, limited = rows.finished & counted, has_limits(rows.requests, slo)
    prompt, output = int(rows.requests.prompt[done].sum()), int(rows.requests.output[done].sum())
    if span:
        duration = span[1] - span[0]
        completed, read, written, within_slo = output_between(rows, *span, slo)
    else:
        duration = rows.elapsed
        completed, read, written = int(done.sum()), prompt, float(output)
        within_slo = count_good(rows, slo) if limited else 0

    def rate(amount: float) -> float | None:
        return amount / duration if duration > 0 else None

    verdict, share = judge_share(rows)
    samples = latencies(rows, counted)
    widths = {
        name: None if verdict in UNSTEADY else in_ms(half_width(sample))
        for name, sample in samples.items()
    }
    return Metrics(
        verdict=verdict,
        served_share=share,
        unfinished=tuple(Unfinished(*pair) for pair in rows.unfinished.items()),
        hints=tuple(hints(rows, verdict, counted)),
        completed=int(done.sum()),
        refused=int((counted & ~done & ~rows.cancelled & ~rows.failed).sum()),
        cancelled=int((counted & rows.cancelled).sum()),
        preemptions=int(rows.preemptions[counted].sum()),
        failed=int((counted & rows.failed).sum()),
        retried=int((counted & (rows.retries > 0)).sum()),
        moved=int((counted & rows.moved).sum()),
        cached_tokens=int(rows.cached[counted].sum()),
        duration=duration,
        total_input_tokens=prompt,
        total_output_tokens=output,
        request_throughput=rate(completed),
        output_throughput=rate(written),
        total_token_throughput=rate(read + written),
        goodput=Goodput(rate(within_slo)) if limited else None,
        attainment=float(meets_slo(rows, slo)[counted].mean()) if limited else None,
        ttft=latency_statistics("ttft", samples["ttft"]),
        tpot=latency_statistics("tpot", samples["tpot"]),
        itl=Statistics(
            {name: in_ms(gap_statistic(rows, name)) for name in LATENCIES["itl"].statistics}
        ),
        e2el=latency_statistics("e2el", samples["e2el"]),
        ci95_mean_ttft_ms=widths["ttft"],
        ci95_mean_tpot_ms=widths["tpot"],
        ci95_mean_e2el_ms=widths["e2el"],
        measured=MeasuredSpan(*span) if span else None,
        tokens_per_step=tokens_per_step(rows, done),
        kinds=metrics_by_kind(rows, slo, counted) or None,
    )


def metrics_by_kind(
    rows: Rows, slo: SLO | None, counted: NDArray[np.bool_]
) -> dict[str, KindMetrics]:
    """Return the metrics of each kind of requests; empty without kinds.

    A kind without a limit has no attainment, and its finished requests count as good.
    """
    kinds: dict[str, KindMetrics] = {}
    good = meets_slo(rows, slo) if rows.requests.kinds else rows.finished
    for number, (name, own) in enumerate(rows.requests.kinds.items()):
        of_kind = counted & (rows.requests.kind == number)
        shown = {
            latency: latency_statistics(latency, sample)
            for latency, sample in latencies(rows, of_kind).items()
        }
        limited, n = own or slo, int(of_kind.sum())
        kinds[name] = KindMetrics(
            requests=n,
            completed=int((of_kind & rows.finished).sum()),
            slo=limited.limits if limited else None,
            slo_percentile=own.percentile if own else None,
            attainment=float(good[of_kind].mean()) if limited and n else None,
            **shown,
        )
    return kinds


def tokens_per_step(rows: Rows, counted: NDArray[np.bool_]) -> float | None:
    """Return the mean output of a decode step for a sequence; None without speculation."""
    if rows.steps is None or not (steps := int(rows.steps[counted].sum())):
        return None
    return float((rows.requests.output[counted] - 1).sum()) / steps


def latency_statistics(latency: str, sample: Column) -> Statistics:
    """Return the statistics of a latency in a result [ms], from a sample [s]."""
    names = LATENCIES[latency].statistics
    return Statistics({name: in_ms(sample_statistic(sample, name)) for name in names})


def in_ms(seconds: float | None) -> float | None:
    """Return milliseconds; None for None or nan."""
    return None if seconds is None or math.isnan(seconds) else 1000 * seconds


def trace_metrics(rows: Rows, measure: Measure | None = None) -> TraceMetrics:
    """Return the latencies of a trace's own server.

    Left out: statistics that the trace does not have.
    Raises: ScenarioError if no request arrives in the part that `measure` counts.
    """
    metrics = summarize(rows, None, measure)

    def known(statistics: Statistics) -> Statistics:
        values = statistics.values.items()
        return Statistics({name: value for name, value in values if value is not None})

    return TraceMetrics(
        ttft=known(metrics.ttft),
        tpot=known(metrics.tpot),
        e2el=known(metrics.e2el),
        ci95_mean_ttft_ms=metrics.ci95_mean_ttft_ms,
        ci95_mean_tpot_ms=metrics.ci95_mean_tpot_ms,
        ci95_mean_e2el_ms=metrics.ci95_mean_e2el_ms,
    )


def measured_requests(
    rows: Rows, measure: Measure | None
) -> tuple[tuple[Seconds, Seconds] | None, NDArray[np.bool_]]:
    """Return start and end of the part that counts [s], and bool[request] that arrive in it.

    The first is None if the whole run counts.
    Raises: ScenarioError if no request arrives in that part.
    """
    if measure is None:
        return None, np.ones(len(rows.arrival), dtype=bool)
    start, end = measure.span(rows)
    return (start, end), (rows.arrival >= start) & (rows.arrival <= end)


def metrics_by_member(rows: Rows, measure: Measure | None = None) -> dict[str, MemberMetrics]:
    """Return the metrics of each member of a fleet, by the member's name.

    Latencies have only the statistics that tables show.
    """
    _, counted = measured_requests(rows, measure)
    members: dict[str, MemberMetrics] = {}
    for system in dict.fromkeys(rows.systems):
        replicas = [number for number, name in enumerate(rows.systems) if name == system]
        own = counted & rows.served_by(replicas)
        done = own & rows.finished
        shown = {
            name: Statistics(
                {key: in_ms(sample_statistic(sample, key)) for key in LATENCIES[name].shown}
            )
            for name, sample in latencies(rows, own).items()
        }
        members[system] = MemberMetrics(
            replicas=tuple(replicas),
            completed=int(done.sum()),
            cancelled=int((own & rows.cancelled).sum()),
            total_input_tokens=int(rows.requests.prompt[done].sum()),
            total_output_tokens=int(rows.requests.output[done].sum()),
            **shown,
        )
    return members


def output_between(
    rows: Rows, start: Seconds, end: Seconds, slo: SLO | None
) -> tuple[int, int, float, int]:
    """Return the output from start to end: requests, prompt tokens, output tokens, good requests.

    A request counts at its last token, and a prompt at the first. Tokens after the first are spread
    evenly up to the last, because rows do not have the time of each token.
    Good requests are 0 without an SLO.
    """
    first, last = rows.first_token, rows.last_token
    begun, ended = (first >= start) & (first <= end), (last >= start) & (last <= end)
    inside = np.clip(np.minimum(last, end) - np.maximum(first, start), 0.0, None)
    several = rows.finished & (last > first)
    rest = (inside[several] / (last - first)[several]) @ (rows.requests.output[several] - 1)
    prompt = int(rows.requests.prompt[begun].sum())
    return (
        int(ended.sum()),
        prompt,
        float(begun.sum() + rest),
        int((ended & meets_slo(rows, slo)).sum()) if has_limits(rows.requests, slo) else 0,
    )


def half_width(sample: NDArray[np.float64]) -> float | None:
    """Return half the width of the 95 % confidence interval of a mean, by batch means.

    Formula: t * s / sqrt(20). s is the standard deviation of the means of 20 batches of successive
    values, t is Student's. The result is None for fewer than 10 values in a batch.
    sample: float[value], a series in order of time.
    Assumed: the series is stationary (without the warm-up), and batches are so long that their
    means are about normal and independent. In short runs near saturation they are not, and the
    interval is too narrow.
    Source: Law, Simulation Modeling and Analysis, section 9.5.3 (Law & Kelton in earlier editions).
    """
    if len(sample) < BATCHES * OF_BATCH:
        return None
    means = np.array([batch.mean() for batch in np.array_split(sample, BATCHES)])
    return STUDENT * float(means.std(ddof=1)) / math.sqrt(BATCHES)


def sample_statistic(sample: NDArray[np.float64], statistic: str) -> Seconds:
    """Return mean, median, std or a percentile of a sample; nan for an empty one."""
    if not len(sample):
        return math.nan
    match statistic:
        case "mean":
            return float(sample.mean())
        case "std":
            return float(sample.std())
        case "median":
            return float(np.median(sample))
    return float(np.percentile(sample, float(statistic[1:])))


def gap_statistic(rows: Rows, statistic: str) -> Seconds:
    """Return a statistic of the gaps between tokens [s]; percentiles to the width of a bin."""
    match statistic:
        case "mean":
            return rows.gaps.mean
        case "std":
            return rows.gaps.std
        case "median":
            return rows.gaps.percentile(50)
    return rows.gaps.percentile(float(statistic[1:]))
