"""Trials of one system at a load: how many requests meet the SLO, and what limits them.

series.run_trial(2.0).attainment  # share of the requests that meet the SLO at 2 request/s
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.inputs.errors import UserError
from sim.results.capacity_summary import TrialSummary
from sim.results.metrics import (
    SLO,
    Measure,
    all_limits_met,
    latencies,
    limits_met,
    output_between,
)
from sim.results.rows import Rows
from sim.results.summary import TokenCosts
from sim.results.verdict import KEEPS_UP, Verdict, judge, offered_requests
from sim.scenario.replicas import Member, serve_requests
from sim.scenario.scenario import Scenario
from sim.studies.accounts import availability_metrics, token_costs
from sim.units import Seconds
from sim.workload.requests import RequestBatch

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


@dataclass(frozen=True)
class LoadTrial:
    """A run of one system at one load.

    load: request/s, or users of a closed loop.
    attainment: share of the requests that met the SLO.
    kept: output tokens that came out over those offered, in the counted part.
    missed: share of the requests that missed each limit, or were refused.
    counted: start and end of the counted part [s].
    pool: the pool whose requests wait more at the end; '' without pools.
    """

    load: float
    attainment: float
    verdict: Verdict
    output_throughput: float
    kept: float
    missed: dict[str, float]
    counted: tuple[Seconds, Seconds]
    closed: bool = False
    pool: str = ""

    @property
    def summary(self) -> TrialSummary:
        """The trial as a result has it."""
        return TrialSummary(
            load=self.load,
            attainment=self.attainment,
            verdict=self.verdict,
            output_throughput=self.output_throughput,
            kept=self.kept,
            missed=self.missed,
            closed=self.closed,
        )

    @property
    def keeps_up(self) -> bool:
        """Whether the system serves as much as is offered.

        A closed loop always keeps up, because its users wait for answers.
        """
        return self.closed or (self.kept >= KEEPS_UP and self.verdict != "OVERLOADED")

    @property
    def goodput(self) -> float:
        """The load, but never more requests per second than are served."""
        return self.load if self.closed else self.load * min(1.0, self.kept)

    def met(self, share: float) -> bool:
        """Return whether a share of the requests met the SLO and the system kept up."""
        return self.attainment >= share and self.keeps_up

    def binds(self, share: float) -> str:
        """Return why the load is not met: the limit that most requests miss, or 'refused'.

        'overload' if the share is met, because the SLO allows long waits. With pools, it names the
        one that binds, as 'ttft (prefill)'.
        """
        limit = "overload"
        if self.attainment < share:
            limit = max(self.missed, key=lambda limit: self.missed[limit])
        pool = {"ttft": "prefill", "tpot": "decode"}.get(limit, self.pool) if self.pool else ""
        return f"{limit} ({pool})" if pool else limit


@dataclass(eq=False)
class TrialSeries:
    """A series of trials of one system at different loads, with the same requests.

    share: share of the requests that must meet the SLO.
    fixed_requests: requests of every trial; None lets the load decide.
    trials, most_requests: trials so far, and the most requests of one.
    """

    scenario: Scenario
    slo: SLO
    name: str
    members: dict[str, Member]
    share: float
    fixed_requests: int | None
    progress: Callable[[str, LoadTrial], None]
    trials: int = 0
    most_requests: int = 0

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
        n = self.fixed_requests or max(workload.size, MIN_REQUESTS, FILLS * self.max_concurrent)
        if workload.load_kind == "users":
            return workload.scaled(load, max(n, FILLS * round(load))).draw(seed)
        wait = min(
            (limit for limit in (self.slo.ttft, self.slo.e2el) if limit is not None), default=0.0
        )
        # The next power of two: then all loads of a bisection have one number of requests, or two.
        top = 2.0 ** math.ceil(math.log2(load))
        n = self.fixed_requests or max(n, min(MAX_REQUESTS, math.ceil(WAITS * wait * top)))
        batch = workload.scaled(load, n).draw(seed)
        return replace(batch, arrival=batch.arrival * (measured_rate(batch, n // WARM_UP) / load))

    def run_trial(self, load: float) -> LoadTrial:
        """Return the result of a run at a load, and report it."""
        rows = self._serve(self.requests_at(load))
        n = len(rows.arrival)
        self.most_requests = max(self.most_requests, n)
        counted = np.arange(n) >= n // WARM_UP
        start, end = float(rows.arrival[n // WARM_UP]), float(rows.arrival[-1])
        tokens, done = output_between(rows, start, end, None)[2], rows.finished
        offered = rows.requests.output[1:][
            (offered_requests(rows) & counted)[1:] & counted[:-1]
        ].sum()
        throughput = tokens / (end - start) if end > start else 0.0
        limits = limits_met(rows, self.slo)
        missed = {"refused": float((~done)[counted].mean())}
        missed |= {limit: float((done & ~ok)[counted].mean()) for limit, ok in limits.items()}
        trial = LoadTrial(
            load=load,
            attainment=float(all_limits_met(rows, limits)[counted].mean()),
            verdict=judge(rows),
            output_throughput=throughput,
            kept=tokens / float(offered or 1),
            missed=missed,
            counted=(start, end),
            closed=rows.requests.users is not None,
            pool=busier_pool(rows, end),
        )
        self.progress(self.name, trial)
        return trial

    def unloaded_miss(self, requests: RequestBatch) -> str:
        """Return why too few requests meet the SLO even one at a time; '' if enough do.

        In a fleet, each request goes where the router sends it while the fleet is empty.
        """
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
        head = f"even alone, {share:.0%} of the requests meet the SLO; expected {self.share:.0%}: "
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

        The trial is served once more.
        """
        begin, end = trial.counted
        if end <= begin:
            return TokenCosts()
        scenario = self.scenario.model_copy(update={"measure": Measure(window=trial.counted)})
        rows = serve_requests(scenario, self.name, self.members, self.requests_at(trial.load))
        available = availability_metrics(scenario, self.name, self.members, rows)
        works = available.availability if available else 1.0
        return token_costs(scenario, self.members, rows, works)

    def _serve(self, requests: RequestBatch) -> Rows:
        """Return the rows of one more trial."""
        self.trials += 1
        return serve_requests(self.scenario, self.name, self.members, requests)


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
    ids = requests.hash_ids[:n] if requests.hash_ids else None
    part = replace(
        requests,
        arrival=requests.arrival[:n],
        prompt=requests.prompt[:n],
        output=requests.output[:n],
        hash_ids=ids,
    )
    if part.arrival[-1] <= part.arrival[0]:
        raise UserError(
            "capacity: workload: got a trace whose requests all arrive together;"
            " expected a rate to vary; try a longer trace"
        )
    return part


def measured_rate(requests: RequestBatch, begin: int = 0) -> float:
    """Return the request/s from request `begin` on."""
    arrival = requests.arrival
    return (len(arrival) - 1 - begin) / float(arrival[-1] - arrival[begin])


def _repeated_latencies(rows: Rows, limit: str, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the latencies of a limit: float[request], s, repeated as often as requests occur.

    times: int[row], how many requests a row stands for.
    """
    finished = rows.finished & (rows.requests.output > 1) if limit == "tpot" else rows.finished
    order = np.flatnonzero(finished)
    order = order[np.argsort(rows.arrival[order], kind="stable")]
    return np.repeat(latencies(rows)[limit], times[order])
