"""What a system can take: the highest rate of arrivals, or the most users, of whose requests enough meet the SLO."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sim.inputs.files import UserError
from sim.results.encoding import encode_summary
from sim.results.metrics import LIMITS, SLO, Measure, came_out, latencies, meets, within
from sim.results.rows import Rows
from sim.results.summary import TokenCosts
from sim.results.verdict import KEEPS_UP, Verdict, judge, offered_requests
from sim.scenario.scenario import Member, Scenario, check
from sim.studies.accounts import costs, reliability
from sim.studies.identity import system_identity
from sim.units import Seconds
from sim.workload.arrivals import VARIED, ClosedLoop, Gamma, Poisson, RequestBatch, Trace

BRACKET_RATIO = (
    1.02  # the bisection ends when what is not met is at most this many times what is met
)
MIN_REQUESTS = 2000  # requests of a trial: an attainment of 0.9 is then known to 0.7 % if requests are independent
FILLS = 10  # and so many times what the system can hold at once, for it to fill up in the tenth that is not counted
WAITS = 50  # and lasts so many times the shorter limit that counts waiting: at 2 % too much, that wait has built up by its end
MAX_REQUESTS = 200_000  # but not longer, for that, than so many requests
DOUBLINGS = 20  # and halvings of the rate, before the search ends
STEP = 1.25  # from a guess up or down, then its square, and then 2: a bound is seldom farther off
WARM_UP = 10  # of a trial's requests the first one in so many is not counted
MOST_FILLS = 4  # users beyond so many times what it can hold at once only wait


@dataclass(frozen=True)
class LoadTrial:
    """One run: its load (request/s, or users), the share of requests that met the SLO, and the share that missed each limit.

    kept: output tokens that come out over those that are offered, in the counted part.
    counted: from when to when is counted [s].
    """

    load: float
    attainment: float
    verdict: Verdict
    output_throughput: float
    kept: float
    missed: dict[str, float]
    counted: tuple[Seconds, Seconds]
    closed: bool = False

    @property
    def keeps_up(self) -> bool:
        """Whether as much is served as is offered.  Users of a closed loop wait for answers, and offer no more than is served."""
        return self.closed or (self.kept >= KEEPS_UP and self.verdict != "OVERLOADED")

    @property
    def goodput(self) -> float:
        """The load, but never more requests a second than are served."""
        return self.load if self.closed else self.load * min(1.0, self.kept)

    def met(self, share: float) -> bool:
        return self.attainment >= share and self.keeps_up

    def binds(self, share: float) -> str:
        """What keeps it from being met: the limit that most requests miss, refused, or (the SLO bears long waits) overload."""
        return (
            "overload"
            if self.attainment >= share
            else max(self.missed, key=lambda limit: self.missed[limit])
        )


@dataclass(frozen=True, slots=True)
class Guess:
    """Where a search begins, and the least load that is of interest: lower loads are not tried."""

    start: float
    least: float = 0.0


@dataclass(frozen=True, eq=False)
class SystemCapacity:
    """What one system can take: the highest load that is met, and the lowest found that is not.

    `best` is None where no load is met, `above` where none is too much; `reason` then says why.  `costs` are the joules and
    dollars of the best trial, and the share of its time for which chips are busy.
    """

    members: dict[str, Member]
    best: LoadTrial | None
    above: LoadTrial | None
    trials: int
    requests: int  # of a trial; the most of them, where users decide
    reason: str = ""
    time_scale: float | None = None  # of a trace, for the best load
    costs: TokenCosts = field(default_factory=TokenCosts)


@dataclass(frozen=True, eq=False)
class Capacity:
    """What every system of a scenario can take."""

    scenario: Scenario
    attainment: float
    systems: dict[str, SystemCapacity]

    def as_json(self) -> dict[str, Any]:
        """The contract of `capacity --json`: as `run --json`, with what was found instead of the metrics."""
        slo = self.scenario.slo
        limits = {
            f"{name}_ms": 1000 * getattr(slo, name)
            for name in LIMITS
            if getattr(slo, name) is not None
        }
        systems = {
            name: encode_summary(system_identity(self.scenario, name, each.members))
            | self._found(each)
            for name, each in self.systems.items()
        }
        target = {"slo": limits, "attainment": self.attainment}
        return {
            "scenario": self.scenario.id,
            "seed": self.scenario.seed,
            **target,
            "systems": systems,
        }

    def _found(self, system: SystemCapacity) -> dict[str, Any]:
        workload, best, above = self.scenario.workload, system.best, system.above
        load = best.goodput if best else 0.0
        chips = sum(member.chips for member in system.members.values())
        found: dict[str, Any]
        if isinstance(workload, ClosedLoop):
            found = {"max_goodput_users": round(load), "max_goodput_users_per_chip": load / chips}
        else:
            found = {"max_goodput_rate": load, "max_goodput_rate_per_chip": load / chips}
        if isinstance(workload, Trace):
            found["time_scale"] = system.time_scale
        return found | {
            "attainment": best.attainment if best else None,
            "verdict": best.verdict if best else None,
            "output_throughput": best.output_throughput if best else None,
            "binds": above.binds(self.attainment) if above else None,
            "above": {key: value for key, value in vars(above).items() if key != "counted"}
            if above
            else None,
            "trials": system.trials,
            "requests": system.requests,
            "reason": system.reason,
            **encode_summary(system.costs),
        }


def capacity(
    scenario: Scenario,
    attainment: float = 0.9,
    requests: int | None = None,
    progress: Callable[[str, LoadTrial], None] = lambda system, trial: None,
    guess: Guess | None = None,
) -> Capacity:
    """The highest load that each system meets, to 2 %: at least a share `attainment` of the requests within all limits.

    This is what DistServe (OSDI 2024) calls goodput.  A rate is not met where less than 97 % of the output tokens that are
    offered come out, or where the verdict is OVERLOADED; a refused request meets no limit.  The rate that is reported is never
    more than what is served.  Doubled (or halved) from a lone request's rate until it is bracketed, then bisected.  Every trial
    meets the same requests, their arrivals stretched so that the counted ones come at the rate, so attainment falls nearly
    monotonely with it; in a closed loop users are added.  The first tenth of a trial's requests, while the system fills up, is not
    counted.

    A trial has `requests`; where that is not given, the most of the scenario's, 2,000, ten times what the system can hold at
    once, and what comes in 50 times the limit of TTFT (or of E2EL, if that is less); of a trace all that it has.

    J and $ are of the best trial, of the part that is counted: see `sim.studies.accounts.costs`.

    Left out: `measure` of the scenario.

    Raises: UserError where there is no SLO, or no load that could be varied; PlanError where a system does not fit.
    """
    workload, slo = scenario.workload, scenario.slo
    if slo is None or all(getattr(slo, limit) is None for limit in LIMITS):
        raise UserError(
            f"capacity {scenario.id}: the scenario has no slo to meet; add one, such as slo: {{ttft: 2 s, tpot: 100 ms}}"
        )
    if not 0 < attainment <= 1:
        raise UserError(
            f"--attainment {attainment:g}: is no share of requests; it is more than 0, and 1 at most"
        )
    if not isinstance(workload, VARIED):
        why = {
            "listed": "its requests are given one by one",
            "sessions": "its rate is one of sessions, whose turns wait for answers",
        }.get(workload.noun(), "it has none that is known")
        hint = "choose of poisson, gamma, trace or closed"
        raise UserError(
            f"capacity {scenario.id}: workload {workload.noun()} has no rate of requests to vary: {why}; {hint}"
        )
    for name in scenario.systems:
        if scenario.outages(name):
            drop = " ".join(
                f"--set systems.{member}.outages=[]"
                for member in scenario.members(name)
                if scenario.plain(member).outages
            )
            raise UserError(
                f"capacity {scenario.id}: {name} has outages, and a capacity is of a system that works: {drop}"
            )
    systems = {}
    for name, members in check(scenario).items():
        systems[name] = _System(
            scenario, slo, name, members, attainment, requests, progress, guess
        ).search()
    return Capacity(scenario, attainment, systems)


@dataclass(eq=False)
class _System:
    """The search in one system: it counts the trials."""

    scenario: Scenario
    slo: SLO
    name: str
    members: dict[str, Member]
    share: float
    most: int | None
    progress: Callable[[str, LoadTrial], None]
    guess: Guess | None = (
        None  # None: begin with one user, or with the rate that single requests in turn make
    )
    trials: int = 0
    requests: int = 0

    def search(self) -> SystemCapacity:
        workload, guess = self.scenario.workload, self.guess
        closed = isinstance(workload, ClosedLoop)
        if closed:
            most = max(1024.0, MOST_FILLS * self.held)
            start = float(min(max(1, round(guess.start)), most)) if guess else 1.0
            least = 1.0
        else:
            start = guess.start if guess else self.lone_rate()
            least, most = start / 2**DOUBLINGS, start * 2**DOUBLINGS
        known = (
            guess is not None and guess.least > 0
        )  # what another plan takes: a single trial shows that this one takes less
        least = max(least, guess.least if guess else 0.0)
        best = above = None
        if known or not (reason := self.alone(self.requests_at(start))):
            reason = ""
            best, above = bracket(
                self.trial, self.share, start, (least, most), STEP if guess else 2.0, whole=closed
            )
            if best and above:
                best, above = bisect(self.trial, self.share, best, above, whole=closed)
            elif best:
                reason = f"{best.load:,.0f} {'users' if closed else 'request/s'} are met too, and no more were tried"
                reason += (
                    "; they would only wait, and no limit is missed for that" if closed else ""
                )
            elif known:
                reason = f"it does not take {least:.4g}"
            else:
                reason = "alone enough requests meet the SLO, but at no rate that was tried: they come in bursts"
        scale = None
        if best and isinstance(workload, Trace):
            scale = (
                workload.time_scale
                * measured_rate(first(workload.draw(self.scenario.seed), self.most))
                / best.goodput
            )
        paid = self.costs(best) if best else TokenCosts()
        return SystemCapacity(
            self.members, best, above, self.trials, self.requests, reason, scale, paid
        )

    def costs(self, trial: LoadTrial) -> TokenCosts:
        """Return the joules and dollars of a trial as `run` tells them, of the part that is counted: it is served once more."""
        begin, end = trial.counted
        if end <= begin:
            return TokenCosts()
        scenario = self.scenario.model_copy(update={"measure": Measure(window=trial.counted)})
        rows = scenario.serve(self.name, self.members, self.requests_at(trial.load))
        available = reliability(scenario, self.name, self.members, rows)
        works = available.availability if available else 1.0
        return costs(scenario, self.members, rows, works)

    def lone_rate(self) -> float:
        """Return the rate at which each replica serves mean requests one after another."""
        output, rate = self.scenario.workload.mean_output, 0.0
        for member in self.members.values():
            lone = self.scenario.unloaded(member.deployment)
            rate += member.replicas / (lone.ttft + (output - 1) * lone.tpot)
        return rate

    @property
    def held(self) -> int:
        """Mean requests that the system can hold at once."""
        tokens = math.ceil(self.scenario.request_tokens)
        return sum(
            max(1, member.deployment.limits.max_concurrent(tokens)) * member.replicas
            for member in self.members.values()
        )

    def requests_at(self, load: float) -> RequestBatch:
        """The requests of a trial: the first of always the same ones, at another rate or by so many users."""
        workload, seed = self.scenario.workload, self.scenario.seed
        if isinstance(workload, Trace):
            drawn = first(workload.draw(seed), self.most)
            return replace(drawn, arrival=drawn.arrival * (measured_rate(drawn) / load))
        assert isinstance(workload, Poisson | Gamma | ClosedLoop)
        n = self.most or max(workload.requests, MIN_REQUESTS, FILLS * self.held)
        if isinstance(workload, ClosedLoop):
            return workload.model_copy(
                update={"users": round(load), "requests": max(n, FILLS * round(load))}
            ).draw(seed)
        waits = min(
            (limit for limit in (self.slo.ttft, self.slo.e2el) if limit is not None), default=0.0
        )
        top = 2.0 ** math.ceil(
            math.log2(load)
        )  # the same number of requests for all loads of a bisection, or one of two
        n = self.most or max(n, min(MAX_REQUESTS, math.ceil(WAITS * waits * top)))
        drawn = workload.model_copy(update={"rate": load, "requests": n}).draw(seed)
        return replace(drawn, arrival=drawn.arrival * (measured_rate(drawn, n // WARM_UP) / load))

    def serve(self, requests: RequestBatch) -> Rows:
        self.trials += 1
        return self.scenario.serve(self.name, self.members, requests)

    def trial(self, load: float) -> LoadTrial:
        rows = self.serve(self.requests_at(load))
        n = len(rows.arrival)
        self.requests = max(self.requests, n)
        counted = np.arange(n) >= n // WARM_UP
        start, end = float(rows.arrival[n // WARM_UP]), float(rows.arrival[-1])
        tokens, done = came_out(rows, start, end, None)[2], rows.finished
        offered = rows.requests.output[1:][
            (offered_requests(rows) & counted)[1:] & counted[:-1]
        ].sum()
        throughput = tokens / (end - start) if end > start else 0.0
        missed = {"refused": float((~done)[counted].mean())}
        missed |= {
            limit: float((done & ~ok)[counted].mean())
            for limit, ok in within(rows, self.slo).items()
        }
        share = float(meets(rows, self.slo)[counted].mean())
        closed = rows.requests.users is not None
        result = LoadTrial(
            load,
            share,
            judge(rows),
            throughput,
            tokens / float(offered or 1),
            missed,
            (start, end),
            closed,
        )
        self.progress(self.name, result)
        return result

    def alone(self, requests: RequestBatch) -> str:
        """Why too few requests meet the SLO even if each has the system for itself; '' where enough do.

        In a fleet, each goes where the router sends it while nobody else is there.
        """
        times = np.ones(len(requests.prompt), np.int64)
        if (
            requests.hash_ids is None
        ):  # requests as long as one another take the same, so one of them does
            pairs, times = np.unique(
                np.stack([requests.prompt, requests.output]), axis=1, return_counts=True
            )
            requests = RequestBatch(np.zeros(len(times)), pairs[0], pairs[1])
        n = len(times)
        rows = self.serve(
            replace(requests, arrival=np.full(n, np.nan), users=1, after=None, think=None)
        )
        share = float(np.average(meets(rows, self.slo), weights=times))
        if share >= self.share:
            return ""
        missed = {
            limit: float(np.average(rows.finished & ~ok, weights=times))
            for limit, ok in within(rows, self.slo).items()
        }
        worst = max(missed, key=lambda limit: missed[limit])
        told = (
            f"even alone, {share:.0%} of the requests meet the SLO, and {self.share:.0%} are due: "
        )
        refused = ~rows.finished
        if np.average(refused, weights=times) > missed[worst]:
            return f"{told}refused, {rows.reason[int(np.flatnonzero(refused)[0])]}"
        sample = _each(rows, worst, times)
        has: Seconds = float(np.percentile(sample, 100 * self.share, method="inverted_cdf"))
        limit: Seconds = getattr(self.slo, worst)
        percentile = f" at percentile {100 * self.share:g}" if n > 1 else ""
        return f"{told}{worst} is {1000 * has:.4g} ms{percentile}, {has / limit:.3g} times the {1000 * limit:g} ms allowed"


def bracket(
    trial: Callable[[float], LoadTrial],
    share: float,
    start: float,
    span: tuple[float, float],
    step: float,
    whole: bool,
) -> tuple[LoadTrial | None, LoadTrial | None]:
    """Return a load that is met, and one `step` times as high that is not; each further step is the last one squared, or 2.

    None where no load of the span, from its least to its most, is met, or is not.
    """
    best = above = None
    load, (least, most) = start, span
    while (best is None or above is None) and least <= load <= most:
        each = trial(load)
        if each.met(share):
            best, load = each, max(load + 1, float(round(load * step))) if whole else load * step
        else:
            lower = min(load - 1, float(round(load / step))) if whole else load / step
            above, load = each, max(lower, least) if load > least else lower
        step = min(2.0, step**2)
    return best, above


def bisect(
    trial: Callable[[float], LoadTrial],
    share: float,
    best: LoadTrial,
    above: LoadTrial,
    whole: bool,
) -> tuple[LoadTrial, LoadTrial]:
    """The two drawn together in equal ratios, to 2 %; or, of whole numbers, to neighbours."""
    while above.load > BRACKET_RATIO * best.load and not (whole and above.load - best.load <= 1):
        load = math.sqrt(best.load * above.load)
        if whole:
            load = float(min(max(round(load), best.load + 1), above.load - 1))
        each = trial(load)
        best, above = (each, above) if each.met(share) else (best, each)
    return best, above


def first(requests: RequestBatch, n: int | None) -> RequestBatch:
    """The first n requests of a trace, or all.  Raises: UserError where they have no rate."""
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
            "capacity: all requests of the trace come at once, and have no rate to vary"
        )
    return part


def measured_rate(requests: RequestBatch, begin: int = 0) -> float:
    """Return the requests per second from request `begin` on."""
    arrival = requests.arrival
    return (len(arrival) - 1 - begin) / float(arrival[-1] - arrival[begin])


def _each(rows: Rows, limit: str, times: np.ndarray) -> np.ndarray:
    """The latencies of one kind, as often as each kind of request occurs."""
    finished = rows.finished & (rows.requests.output > 1) if limit == "tpot" else rows.finished
    order = np.flatnonzero(finished)
    order = order[np.argsort(rows.arrival[order], kind="stable")]
    return np.repeat(latencies(rows)[limit], times[order])
