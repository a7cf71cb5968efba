"""Trials of one system at a load: how many requests meet the SLO, and what limits them.

series.run_trial(2.0).attainment  # share of the requests that meet the SLO at 2 request/s
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim.inputs.errors import UserError
from sim.results.attainment import all_limits_met, limits_met
from sim.results.labels import percent_text
from sim.results.metrics import Measure, latencies, output_between
from sim.results.rows import Rows
from sim.results.summary import TokenCosts
from sim.results.verdict import judge, offered_requests
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.scenario import Scenario
from sim.studies.accounts import availability_metrics, token_costs
from sim.studies.load_trial import KindTrial, LoadTrial
from sim.units import Seconds
from sim.workload.requests import RequestBatch
from sim.workload.slo import SLO

# Requests of a trial: an attainment of 0.9 has a standard error of 0.7 % if requests are
# independent.
MIN_REQUESTS = 2000
# A trial has this many times what the system can hold concurrently. The system then fills up in
# the tenth that is not counted.
FILLS = 10
# A trial lasts this many times the shorter limit that includes waiting. With 2 % too much load, a
# wait of that length has built up by the end.
WAITS = 50
MAX_REQUESTS = 200_000  # of a trial, if only `WAITS` needs more
WARM_UP = 10  # the first one in this many requests is not counted


TrialProgress = Callable[[str, LoadTrial], None]  # system, trial


def no_progress(system: str, trial: LoadTrial) -> None:
    """Report no progress."""


@dataclass(eq=False)
class TrialSeries:
    """A series of trials of one system at different loads, with the same requests.

    share: share of the requests that must meet the SLO.
    fixed_requests: requests of every trial; None lets the load decide.
    trials, most_requests: trials so far, and the most requests of one.
    tried: the trials at a load, in their order.
    last_met: the last trial whose load was met, with its rows; None if it counts no part.
    """

    scenario: Scenario
    slo: SLO
    name: str
    members: dict[str, Member]
    share: float
    fixed_requests: int | None
    progress: TrialProgress = no_progress
    trials: int = 0
    most_requests: int = 0
    tried: list[LoadTrial] = field(default_factory=list)
    last_met: tuple[LoadTrial, Rows] | None = None

    @property
    def max_concurrent(self) -> int:
        """Number of mean requests that the system can hold concurrently."""
        tokens = math.ceil(self.scenario.request_tokens)
        return sum(
            max(1, member.deployment.limits.max_concurrent(tokens)) * member.replicas
            for member in self.members.values()
        )

    def single_request_rate(self) -> float:
        """Return the request/s if each replica serves mean requests one after another."""
        output, rate = self.scenario.workload.mean_output, 0.0
        for member in self.members.values():
            single = self.scenario.unloaded(member.deployment)
            rate += member.replicas / (single.ttft + (output - 1) * single.tpot)
        return rate

    def requests_at(self, load: float) -> RequestBatch:
        """Return the requests of a trial: always the same ones, at another rate.

        In a closed loop: with another number of users.
        """
        workload, seed = self.scenario.workload, self.scenario.seed
        if workload.is_recorded:
            batch = first_requests(workload.draw(seed), self.fixed_requests)
            return replace(batch, arrival=batch.arrival * (measured_rate(batch) / load))
        least = max(workload.size, MIN_REQUESTS)
        if workload.load_kind == "users":  # the system holds no more requests than there are users
            n = max(self.fixed_requests or least, FILLS * round(load))
            return workload.scaled(load, n).draw(seed)
        n = self.fixed_requests or max(least, FILLS * self.max_concurrent)
        slos = [own or self.slo for own in workload.slos.values()] or [self.slo]
        wait = max(
            min((limit for limit in (slo.ttft, slo.e2el) if limit is not None), default=0.0)
            for slo in slos
        )
        # The next power of two: then all loads of a bisection have one number of requests, or two.
        top = 2.0 ** math.ceil(math.log2(load))
        lasting = max(WAITS * wait, FILLS * workload.lifetime)
        n = self.fixed_requests or max(n, min(MAX_REQUESTS, math.ceil(lasting * top)))
        batch = workload.scaled(load, n).draw(seed)
        begin = len(batch.arrival) // WARM_UP
        return replace(batch, arrival=batch.arrival * (measured_rate(batch, begin) / load))

    def share_of(self, kind: SLO | None) -> float:
        """Return the share of a kind's requests that must meet its SLO: by its own percentile."""
        return kind.share if kind and kind.percentile is not None else self.share

    def run_trial(self, load: float) -> LoadTrial:
        """Return the result of a run at a load, and report it."""
        requests = self.requests_at(load)
        rows = self._serve(requests, counted_arrivals(requests))
        n = len(rows.arrival)
        self.most_requests = max(self.most_requests, n)
        start, end = counted_span(rows)
        counted, counts = counted_in(rows, start, end)
        tokens, done = output_between(rows, start, end, None)[2], rows.finished
        offered = rows.requests.output[offered_requests(rows) & counts].sum()
        throughput = tokens / (end - start) if end > start else 0.0
        limits = limits_met(rows, self.slo)
        good = all_limits_met(rows, limits)

        def missed_of(requests: NDArray[np.bool_]) -> dict[str, float]:
            missed = {"refused": float((~done)[requests].mean())}
            return missed | {
                key: float((done & ~ok)[requests].mean()) for key, ok in limits.items()
            }

        kinds = {}
        for number, (name, own) in enumerate(rows.requests.kinds.items()):
            of_kind = counted & (rows.requests.kind == number)
            if (own or self.slo).limits and of_kind.any():
                attained = float(good[of_kind].mean())
                kinds[name] = KindTrial(self.share_of(own), attained, missed_of(of_kind))
        trial = LoadTrial(
            load=load,
            attainment=float(good[counted].mean()),
            verdict=judge(rows),
            output_throughput=throughput,
            kept=tokens / float(offered or 1) * sent_share(rows),
            missed=missed_of(counted),
            counted=(start, end),
            closed=rows.requests.users is not None,
            pool=busier_pool(rows, end),
            kinds=kinds,
            recorded=self.scenario.workload.is_recorded,
        )
        self.tried.append(trial)
        if trial.met(self.share):  # `costs` may need its rows
            self.last_met = (trial, rows) if rows.span else None
        self.progress(self.name, trial)
        return trial

    def unloaded_miss(self, requests: RequestBatch) -> str:
        """Return why too few requests meet the SLO even one at a time; '' if enough do.

        In a fleet, each request goes where the router sends it while the fleet is empty.
        With kinds of requests, enough of each kind must meet their SLO.
        """
        for number, (name, own) in enumerate(requests.kinds.items()):
            of_kind = np.flatnonzero(requests.kind == number)
            slo = own or self.slo
            if not (slo.limits and len(of_kind)):
                continue
            prompt, output = requests.prompt[of_kind], requests.output[of_kind]
            part = RequestBatch(requests.arrival[of_kind], prompt, output)
            if reason := replace(self, slo=slo, share=self.share_of(own)).unloaded_miss(part):
                return f"{name}: {reason}"
        if requests.kinds:
            return ""
        times = np.ones(len(requests.prompt), np.int64)
        if not requests.has_prefixes:
            # Requests of one length take the same time, so serve one of them.
            pairs, times = np.unique(
                np.stack([requests.prompt, requests.output]), axis=1, return_counts=True
            )
            requests = RequestBatch(np.zeros(len(times)), pairs[0], pairs[1])
        n = len(times)
        rows = self._serve(
            replace(requests, arrival=np.full(n, np.nan), users=1, after=None, think=None)
        )
        limits = limits_met(rows, self.slo)
        share = float(np.average(all_limits_met(rows, limits), weights=times))
        if share >= self.share:
            return ""
        missed = {
            limit: float(np.average(rows.finished & ~ok, weights=times))
            for limit, ok in limits.items()
        }
        worst = max(missed, key=lambda limit: missed[limit])
        head = f"even alone, {percent_text(share)} of the requests meet the SLO; "
        head += f"expected {percent_text(self.share)}: "
        refused = ~rows.finished
        if np.average(refused, weights=times) > missed[worst]:
            return f"{head}refused, {rows.reason[int(np.flatnonzero(refused)[0])]}"
        sample = _repeated_latencies(rows, worst, times)
        latency: Seconds = float(np.percentile(sample, 100 * self.share, method="inverted_cdf"))
        limit: Seconds = getattr(self.slo, worst)
        percentile = f" at percentile {100 * self.share:g}" if n > 1 else ""
        return (
            f"{head}{worst} is {1000 * latency:.4g} ms{percentile},"
            f" {latency / limit:.3g} times the {1000 * limit:g} ms allowed"
        )

    def costs(self, trial: LoadTrial) -> TokenCosts:
        """Return the joules and dollars of the counted part of a trial, as `run` has them.

        The trial is served once more, unless it was the last one that was met.
        """
        begin, end = trial.counted
        if end <= begin:
            return TokenCosts()
        scenario = self._counting(trial.counted)
        if self.last_met and self.last_met[0] is trial:
            rows = self.last_met[1]
        else:
            rows = serve_requests(scenario, self.name, self.members, self.requests_at(trial.load))
        available = availability_metrics(scenario, self.name, self.members, rows)
        works = available.availability if available else 1.0
        return token_costs(scenario, self.members, rows, works)

    def _counting(self, window: tuple[Seconds, Seconds] | None) -> Scenario:
        """Return the scenario that counts the work of a part of the run; None counts none."""
        measure = Measure(window=window) if window else None
        return self.scenario.model_copy(update={"measure": measure})

    def _serve(
        self, requests: RequestBatch, counted: tuple[Seconds, Seconds] | None = None
    ) -> Rows:
        """Return the rows of one more trial.

        counted: start and end of the part whose work counts [s]; None for no part.
        """
        self.trials += 1
        return serve_requests(self._counting(counted), self.name, self.members, requests)


def many_lengths(requests: RequestBatch) -> bool:
    """Return whether more than a tenth of the requests differ in length, or share prefixes."""
    pairs = np.unique(np.stack([requests.prompt, requests.output]), axis=1)
    return requests.has_prefixes or 10 * pairs.shape[1] > len(requests.prompt)


def counted_arrivals(requests: RequestBatch) -> tuple[Seconds, Seconds] | None:
    """Return start and end of the counted part of a trial before it is served [s].

    None if arrivals depend on answers, or if all requests come together.
    """
    depends = requests.users is not None or requests.after is not None
    if depends or requests.most_in_flight is not None:
        return None
    arrival = requests.arrival
    start, end = float(arrival[len(arrival) // WARM_UP]), float(arrival[-1])
    return (start, end) if end > start else None


def counted_span(rows: Rows) -> tuple[Seconds, Seconds]:
    """Return start and end of the counted part of a trial [s].

    It begins with a tenth of the requests, and ends with the last. Sessions have starts, and what
    follows depends on answers, so their part is from a session's start to another's.
    """
    n = len(rows.arrival)
    begin, last = n // WARM_UP, n - 1
    if rows.requests.after is not None:
        starts = np.flatnonzero(rows.requests.after < 0)
        begin, last = int(starts[np.searchsorted(starts, begin)]), int(starts[-1])
    return float(rows.arrival[begin]), float(rows.arrival[last])


def counted_in(
    rows: Rows, start: Seconds, end: Seconds
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return bool[request] twice: in the counted part of a trial, and those without the first.

    Requests are numbered by arrival, except for those of sessions.
    """
    n = len(rows.arrival)
    if rows.requests.after is not None:
        counted = (rows.arrival >= start) & (rows.arrival <= end)
        return counted, counted & (rows.arrival > start)
    counted = np.arange(n) >= n // WARM_UP
    return counted, counted & np.append(False, counted[:-1])


def sent_share(rows: Rows) -> float:
    """Return the rate at which requests were sent over that at which they came.

    It is 1 unless requests wait unsent, because too many are in flight.
    """
    if rows.requests.most_in_flight is None:
        return 1.0
    begin = len(rows.arrival) // WARM_UP
    sent = float(rows.arrival[-1] - rows.arrival[begin])
    came = float(rows.requests.arrival[-1] - rows.requests.arrival[begin])
    return min(1.0, came / sent) if sent > 0 else 1.0


def busier_pool(rows: Rows, at: Seconds) -> str:
    """Return the pool that has more requests waiting at a time; '' without pools.

    In the prefill pool they wait for their first token, and in the decode pool for room and for
    the transfer.
    """
    if rows.transfers is None:
        return ""
    come = rows.arrival <= at
    before = come & ~(rows.first_token <= at)
    between = come & (rows.first_token <= at) & ~(rows.transfers.end <= at)
    between &= rows.requests.output > 1
    return "prefill" if before.sum() > between.sum() else "decode"


def first_requests(requests: RequestBatch, n: int | None) -> RequestBatch:
    """Return the first n requests of a trace, or all if n is None.

    Raises: UserError if they arrive together, so that they have no rate.
    """
    part = requests if n is None else requests.first(n)
    if np.nanmax(part.arrival) <= np.nanmin(part.arrival):
        raise UserError(
            "capacity: workload: got a trace whose requests all arrive together;"
            " expected a rate to vary; try a longer trace"
        )
    return part


def measured_rate(requests: RequestBatch, begin: int = 0) -> float:
    """Return the request/s from request `begin` on; of sessions, by the starts of sessions."""
    arrival, last = requests.arrival, len(requests.arrival) - 1
    if requests.after is not None:
        starts = np.flatnonzero(requests.after < 0)
        begin, last = int(starts[np.searchsorted(starts, begin)]), int(starts[-1])
    return (last - begin) / float(arrival[last] - arrival[begin])


def _repeated_latencies(rows: Rows, limit: str, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the latencies of a limit: float[request], s, repeated as often as requests occur.

    times: int[row], how many requests a row stands for.
    """
    finished = rows.finished & (rows.requests.output > 1) if limit == "tpot" else rows.finished
    order = np.flatnonzero(finished)
    order = order[np.argsort(rows.arrival[order], kind="stable")]
    return np.repeat(latencies(rows)[limit], times[order])
