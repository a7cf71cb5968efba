"""The verdict of a run (does the system keep up with the load?), and hints on its numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.results.rows import Rows
from sim.units import Seconds

Verdict = Literal["STABLE", "BACKLOGGED", "OVERLOADED", "REFUSED", "TOO SHORT"]
NOT_STEADY: tuple[Verdict, ...] = ("OVERLOADED", "REFUSED")  # verdicts against the system
# Runs without a steady state, so that a mean over time would not converge.
UNSTEADY: tuple[Verdict, ...] = ("OVERLOADED", "REFUSED", "TOO SHORT")

KEEPS_UP = 0.97  # share of the offered tokens that a system which keeps up serves
LACKING = 0.9  # a lower share is too little, however short the run is
CERTAIN = 3.0  # standard deviations of the tokens offered by chance
# Speed of serving in the last quarter over the quarter before. A higher ratio means that the
# system still fills up: without waiting and before the first completion it is 7/5. Chips shared by
# more and more requests reach 1.3 without serving faster, because `tokens_served` spreads the
# tokens of a slowing answer evenly.
RISING = 1.33
DRAINED = 0.25  # of its growth: a backlog that was down there since is a burst
SLICES = 20  # arrivals are counted in this many slices of time
UNEVEN = 2.5  # bursts vary this many times as much as a Poisson process
QUEUE, PEAK = 10, 3  # a burst queues this many requests, and this many times the mean
# Users who begin together: their share of the counted requests, and their mean TTFT over the
# others' mean TTFT.
STARTING, SLOWER = 0.1, 1.5


class Flow(NamedTuple):
    """Output tokens offered and served in the second half of the arrivals, and their change.

    offered: tokens of the requests that arrive in it. Left out: requests that could never fit, or
    whose replica failed.
    served: tokens that leave in it.
    chance: standard deviation of `offered`, as in a compound Poisson process.
    seconds: its length [s].
    rising: speed of serving in the last quarter over the quarter before; inf if no time passes.
    last: served over offered in the last quarter.
    drained: least backlog in the last quarter over the backlog at the end, both since the middle.
    waiting: requests without a first token increase by more than 3 % of the arrivals and by more
    than three standard deviations.
    present: requests in the system increase, waiting or served: see `grows`.
    """

    offered: float
    served: float
    chance: float
    seconds: Seconds
    rising: float
    last: float
    drained: float
    waiting: bool
    present: bool

    @property
    def share(self) -> float:
        """Tokens served over tokens offered."""
        return self.served / self.offered


def judge(rows: Rows) -> Verdict:
    """Return whether the system keeps up with the offered load.

    REFUSED: at least half of the requests were refused, cancelled at their deadline, or failed.

    OVERLOADED: the system serves less than 97 % of the output tokens offered in the second half of
    the arrivals. The lack exceeds three standard deviations of the offered tokens. The first half
    does not count, because the system fills up in it. Requests that the queue or the deadline
    turns away are offered and not served. A longer run would wait longer.
    The verdict is the same if less is served than offered and requests without a first token
    increase. A system that holds more and more sequences serves more tokens until it is full, so
    tokens lack later.

    TOO SHORT: the run cannot tell. There are four cases. The lack exceeds 10 % but may be chance.
    The system still fills up: it serves faster and faster, and requests without a first token do
    not increase. The run ends in a burst that has not drained. More requests arrive than leave, so
    latencies still grow (Little's law). A run whose requests arrive at one instant has no rate.

    BACKLOGGED: the system keeps up, but more than 10 % of the requests wait longer for admission
    than they are served.

    STABLE: none of these.

    The users of a closed loop wait for answers. So a closed loop is OVERLOADED or TOO SHORT only if
    the queue or the deadline turns requests away, by the same shares of tokens (`kept_tokens`).
    """
    return judge_share(rows)[0]


def judge_share(rows: Rows) -> tuple[Verdict, float | None]:
    """Return the verdict of `judge`, and the share of the offered tokens that are served.

    None for a single request, and in a closed loop that turns no request away.
    """
    if rows.requests.users is not None:
        kept = kept_tokens(rows)
        return _verdict(rows, None, kept), kept.share if kept and kept.lack else None
    flow = measure_flow(rows)
    return _verdict(rows, flow, None), flow.share if flow else None


class Kept(NamedTuple):
    """Output tokens of the second half of the requests of a closed loop.

    offered: of all these requests. lack: of those that the queue or the deadline turned away.
    chance: standard deviation of `lack`, as in a compound Poisson process.
    """

    offered: float
    lack: float
    chance: float

    @property
    def share(self) -> float:
        """Tokens not turned away over tokens offered."""
        return 1 - self.lack / self.offered


def kept_tokens(rows: Rows) -> Kept | None:
    """Return the tokens of a closed loop that are not turned away; None for a single request."""
    order = np.flatnonzero(offered_requests(rows))
    order = order[np.argsort(rows.arrival[order], kind="stable")][len(order) // 2 :]
    if len(order) < 2:
        return None
    output = rows.requests.output[order].astype(float)
    lost = output[~rows.finished[order]]
    return Kept(float(output.sum()), float(lost.sum()), math.sqrt(float((lost**2).sum())))


def _verdict(rows: Rows, flow: Flow | None, kept: Kept | None) -> Verdict:
    if 2 * int(rows.finished.sum()) <= len(rows.arrival):
        return "REFUSED"
    if kept and kept.lack > (1 - KEEPS_UP) * kept.offered + CERTAIN * kept.chance:
        return "OVERLOADED"
    if kept and kept.share < LACKING and kept.lack > kept.chance:
        return "TOO SHORT"
    if flow:
        lack = flow.offered - flow.served
        if flow.share < KEEPS_UP and lack > CERTAIN * flow.chance and flow.last < KEEPS_UP:
            grows = flow.seconds > 0 and (flow.waiting or flow.rising < RISING)
            return "OVERLOADED" if grows and flow.drained > DRAINED else "TOO SHORT"
        if flow.share < LACKING and lack > flow.chance and flow.last < KEEPS_UP:
            return "TOO SHORT"
        if flow.present:
            return "OVERLOADED" if flow.waiting and lack > 0 else "TOO SHORT"
    done = rows.finished
    waited = rows.admitted[done] - rows.arrival[done]
    return (
        "BACKLOGGED"
        if (waited > rows.last_token[done] - rows.admitted[done]).mean() > 0.1
        else "STABLE"
    )


def measure_flow(rows: Rows) -> Flow | None:
    """Return the flow in the second half of the arrivals; None for a single request."""
    order = np.flatnonzero(offered_requests(rows))
    order = order[np.argsort(rows.arrival[order], kind="stable")]
    if len(order) < 2:
        return None
    arrival, output = rows.arrival[order], rows.requests.output[order].astype(float)
    middle, quarter, end = (len(order) - 1) // 2, 3 * (len(order) - 1) // 4, len(order) - 1
    offered = np.cumsum(output)
    served = {at: tokens_served(rows, float(arrival[at])) for at in {middle, quarter, end}}

    def grown(at: int) -> float:
        """Return the growth of the backlog since the middle."""
        return float(offered[at] - offered[middle]) - (
            tokens_served(rows, float(arrival[at])) - served[middle]
        )

    first = np.sort(rows.first_token[order])  # nan (no first token) sorts last
    came, begun = end - middle, np.searchsorted(first, arrival[[middle, end]], side="right")
    more = came - int(begun[1] - begun[0])
    later = (
        np.unique(np.linspace(quarter + 1, end, 50).astype(int))
        if quarter < end
        else np.array([end])
    )
    growth = grown(end)
    since = float(offered[end] - offered[quarter])
    return Flow(
        offered=float(offered[end] - offered[middle]),
        served=served[end] - served[middle],
        chance=math.sqrt(float((output[middle + 1 :] ** 2).sum())),
        seconds=float(arrival[end] - arrival[middle]),
        rising=speed_up(
            arrival[[middle, quarter, end]], [served[middle], served[quarter], served[end]]
        ),
        last=(served[end] - served[quarter]) / since if since else 0.0,
        drained=min(map(grown, later.tolist())) / growth if growth > 0 else 0.0,
        waiting=more > (1 - KEEPS_UP) * came and more > CERTAIN * math.sqrt(came),
        present=grows(arrival, np.fmax(rows.last_token, rows.ended)[order]),
    )


def grows(arrival: NDArray[np.float64], left: NDArray[np.float64]) -> bool:
    """Return whether the requests in a system increase in the second half of the arrivals.

    arrival: float[request], ascending [s]. left: float[request], nan without an end [s].
    More requests arrive than leave: by 3 % of the arrivals, and by three standard deviations of the
    difference. Both counts have the variance of a Poisson process, times `unevenness`. If nothing
    grows, the difference varies at most so much, because departures are earlier arrivals.
    A burst that drained at some moment of the last quarter does not count.
    """
    middle, quarter, end = ((len(arrival) - 1) * part // 4 for part in (2, 3, 4))
    present = np.searchsorted(arrival, arrival, side="right") - np.searchsorted(
        np.sort(left), arrival, side="right"
    )
    came, more = end - middle, int(present[end] - present[middle])
    chance = math.sqrt(max(1.0, unevenness(arrival)) * (2 * came - more))
    drained = int(present[quarter:].min() - present[middle]) <= DRAINED * more
    return more > (1 - KEEPS_UP) * came and more > CERTAIN * chance and not drained


def unevenness(arrival: NDArray[np.float64]) -> float:
    """Return the variability of arrivals over that of a Poisson process.

    The result is the greater of two ratios: the index of dispersion of counts in 20 slices of time,
    and the squared coefficient of variation of the gaps. It is inf if all arrive at one instant.
    arrival: float[request], ascending [s].
    """
    gaps = np.diff(arrival)
    if not gaps.any():
        return math.inf
    gaps /= gaps.max()  # else squares of tiny gaps underflow
    counts = np.histogram((arrival - arrival[0]) / (arrival[-1] - arrival[0]), SLICES)[0]
    return max(float(counts.var() / counts.mean()), float(gaps.var() / gaps.mean() ** 2))


def offered_requests(rows: Rows) -> NDArray[np.bool_]:
    """Return bool[request]: offered to the system, neither too long nor lost with a replica."""
    return rows.finished | rows.cancelled | rows.turned_away


def speed_up(times: NDArray[np.float64], tokens: list[float]) -> float:
    """Return the speed between moments 2 and 3 over the speed between moments 1 and 2."""
    before, after = np.diff(times).tolist()
    was, now = np.diff(tokens).tolist()
    if not before or not after or not was:
        return math.inf
    return float(now / after / (was / before))


def tokens_served(rows: Rows, at: Seconds) -> float:
    """Return the output tokens of finished requests up to a moment.

    Tokens after the first are spread evenly up to the last one.
    """
    done = rows.finished
    first, last, output = rows.first_token[done], rows.last_token[done], rows.requests.output[done]
    long = last > first
    share = np.where(long, (at - first) / np.where(long, last - first, 1.0), 1.0)
    return float(((1 + (output - 1) * np.clip(share, 0.0, 1.0)) * (first <= at)).sum())


@dataclass(frozen=True)
class Hint:
    """A remark that a reader of the numbers needs: a kind, and a sentence."""

    kind: Literal["bursts", "starting burst", "held back"]
    text: str


def hints(rows: Rows, verdict: Verdict, counted: NDArray[np.bool_]) -> Iterator[Hint]:
    """Yield hints on a run with this verdict. counted: bool[request]."""
    if verdict == "STABLE" and (peak := queued_in_bursts(rows)):
        yield Hint(
            "bursts",
            f"requests come in bursts: up to {peak:,} wait for their first token, "
            "and the queue drains again",
        )
    if held := held_back(rows):
        sent = (len(rows.arrival) - 1) / max(float(np.ptp(rows.arrival)), 1e-12)
        yield Hint(
            "held back",
            f"max_concurrent held {held:,} of {len(rows.arrival):,} requests back, so they were "
            f"sent at {sent:.3g}/s; latencies count from then",
        )
    if share := starting_share(rows, counted):
        advice = "use measure: {warmup: ...} or more requests"
        yield Hint(
            "starting burst",
            f"the starting burst is {100 * share:.0f} % of what is counted; {advice}",
        )


def held_back(rows: Rows) -> int:
    """Return how many requests were sent later than they came, because many were in flight."""
    if rows.requests.most_in_flight is None:
        return 0
    return int((rows.arrival > rows.requests.arrival).sum())


def queued_in_bursts(rows: Rows) -> int:
    """Return the most requests without a first token in a burst; 0 without queueing or bursts.

    Arrivals come in bursts if they vary 2.5 times as much as a Poisson process: see `unevenness`.
    """
    if rows.requests.users is not None or rows.finished.sum() < 2 * SLICES:
        return 0
    arrival = np.sort(rows.arrival[rows.finished])
    first = np.sort(rows.first_token[rows.finished])
    waiting = np.arange(1, len(arrival) + 1) - np.searchsorted(first, arrival, side="right")
    peak, lasts = int(waiting.max()), float(max(arrival[-1], first[-1]) - arrival[0])
    mean = (
        float((rows.first_token - rows.arrival)[rows.finished].sum()) / lasts if lasts else math.inf
    )  # Little's law
    return peak if unevenness(arrival) > UNEVEN and peak >= max(QUEUE, PEAK * mean) else 0


def starting_share(rows: Rows, counted: NDArray[np.bool_]) -> float:
    """Return the share of counted requests that closed-loop users send together at the start.

    The share is 0 below 10 %, or if these requests have hardly a longer TTFT than the others.
    counted: bool[request].
    """
    users = rows.requests.users
    if users is None or users < 2:
        return 0.0
    done = rows.finished & counted
    start = done & (rows.arrival <= np.nanmin(rows.arrival))
    if not start.any() or start.sum() < STARTING * done.sum():
        return 0.0
    ttft = rows.first_token - rows.arrival
    others = done & ~start
    if others.any() and ttft[start].mean() < SLOWER * ttft[others].mean():
        return 0.0
    return float(start.sum() / done.sum())
