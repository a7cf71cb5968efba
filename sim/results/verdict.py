"""Whether a system keeps up with what it is offered: the verdict of a run, and hints on how to read its numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.results.rows import Rows
from sim.units import Seconds

Verdict = Literal["STABLE", "BACKLOGGED", "OVERLOADED", "REFUSED", "TOO SHORT"]
UNSTEADY: tuple[Verdict, ...] = (
    "OVERLOADED",
    "REFUSED",
    "TOO SHORT",
)  # no steady state whose mean could be given

KEEPS_UP = 0.97  # of the tokens that are offered are served
TOLD = 0.9  # less than that is too little, however short the run is
CERTAIN = 3.0  # standard deviations of what is offered by chance
# Times as many tokens a second in the last quarter as in the one before: the system still fills up.  Where nobody waits and no
# request has ended it is 1.4, 7/5.  Where chips are shared by more and more requests it is up to 1.3, though they serve no faster:
# tokens are spread evenly over an answer that slows down.
RISING = 1.33
DRAINED = 0.25  # of its growth: a backlog that has been down there since is a burst
SLICES, UNEVEN = (
    20,
    2.5,
)  # arrivals in so many slices of the time vary so many times as much as Poisson's
QUEUE, PEAK = 10, 3  # a burst queues where so many wait at its peak, and so many times the mean
STARTING, SLOWER = (
    0.1,
    1.5,
)  # users who begin together: their share of what is counted, and their mean TTFT over the others'


class Flow(NamedTuple):
    """Output tokens that are offered and served in the second half of the arrivals, and how they change.

    offered: tokens of requests that arrive in it, but for those that could never fit or whose replica failed.
    served: tokens that come out in it.
    chance: the standard deviation of what is offered, as of a compound Poisson process.
    seconds: how long it lasts.
    rising: the speed of serving in the last quarter over that in the quarter before; inf where no time passes.
    last: served over offered in the last quarter alone.
    drained: the least backlog in the last quarter, over that at the end; both counted from the middle.
    waiting: requests that wait for their first token become more, by 3 % of what arrives and three standard deviations of it.
    present: requests that the system holds, waiting or served, become more: see `grows`.
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
        """Served over offered."""
        return self.served / self.offered


def judge(rows: Rows) -> Verdict:
    """Return whether the system keeps up with what it is offered.

    REFUSED: half of the requests or more were refused, cancelled at their deadline, or failed with their replica.

    OVERLOADED: the system serves less than it is offered.  Counted are output tokens, in the second half of the arrivals, so that
    a system that fills up at the beginning is not blamed.  Tokens of answers that grow longer than the system keeps up with
    count as much as those of requests that wait.  Requests that the queue or the deadline turns away are offered and not served.
    Served is less than 97 % of offered, by more than three standard deviations of what is offered by chance.
    A longer run would wait longer.  A closed loop is never overloaded: its users wait for answers before they ask again.

    OVERLOADED, too: less is served than offered, and more and more requests wait for their first token.  This is found before
    tokens lack: a system that holds more and more sequences serves more tokens, until it is full.

    TOO SHORT: the run cannot say.  Either less is served than offered, and the lack is more than a tenth but may be chance;
    or the system still fills up (it serves faster and faster, and no more requests wait for their first token); or the run ends
    in a burst that has not drained; or more requests arrive than leave, so that latencies still grow (Little's law).  A run
    whose requests come all at one instant has no rate.

    BACKLOGGED: the system keeps up, but more than a tenth of the requests waited for admission longer than they were then served.

    STABLE: none of these.
    """
    if 2 * int(rows.finished.sum()) <= len(rows.arrival):
        return "REFUSED"
    if rows.requests.users is None and (flow := measure_flow(rows)):
        lack = flow.offered - flow.served
        if flow.share < KEEPS_UP and lack > CERTAIN * flow.chance and flow.last < KEEPS_UP:
            grows = flow.seconds > 0 and (flow.waiting or flow.rising < RISING)
            return "OVERLOADED" if grows and flow.drained > DRAINED else "TOO SHORT"
        if flow.share < TOLD and lack > flow.chance and flow.last < KEEPS_UP:
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
    """Return what is offered and served in the second half of the arrivals; None of a single request."""
    order = np.flatnonzero(offered_requests(rows))
    order = order[np.argsort(rows.arrival[order], kind="stable")]
    if len(order) < 2:
        return None
    arrival, output = rows.arrival[order], rows.requests.output[order].astype(float)
    middle, quarter, end = (len(order) - 1) // 2, 3 * (len(order) - 1) // 4, len(order) - 1
    offered = np.cumsum(output)
    served = {at: tokens_served(rows, float(arrival[at])) for at in {middle, quarter, end}}

    def grown(at: int) -> float:
        """The backlog that has grown since the middle."""
        return float(offered[at] - offered[middle]) - (
            tokens_served(rows, float(arrival[at])) - served[middle]
        )

    first = np.sort(rows.first_token[order])  # nan, of those without one, at the end
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
    """Return whether the requests in a system become more in the second half of the arrivals.

    They arrive at `arrival`, in order, and leave at `left`, nan where they never do.  More of them arrive than leave, by 3 % of
    what arrives and three standard deviations of the difference.  Both are counts whose variance is their mean, as of a Poisson
    process, or as many times that as arrivals vary.  A burst that drained for a moment of the last quarter does not count.
    Where nothing grows, the difference is at most this random: departures are earlier arrivals.
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
    """Return how many times as much arrivals, in order, vary as those of a Poisson process.

    That is the greater of two: counts of twenty slices of the time (index of dispersion), and the gaps between arrivals
    (squared coefficient of variation); inf where all arrive at one instant.
    """
    gaps = np.diff(arrival)
    if not gaps.any():
        return math.inf
    gaps /= gaps.max()  # their squares could be too small for a float
    counts = np.histogram((arrival - arrival[0]) / (arrival[-1] - arrival[0]), SLICES)[0]
    return max(float(counts.var() / counts.mean()), float(gaps.var() / gaps.mean() ** 2))


def offered_requests(rows: Rows) -> NDArray[np.bool_]:
    """Return which requests the system is offered: all but those that could never fit or whose replica failed."""
    return rows.finished | rows.cancelled | rows.turned_away


def speed_up(times: NDArray[np.float64], tokens: list[float]) -> float:
    """Return the speed from the second moment to the third, over that from the first to the second."""
    before, after = np.diff(times).tolist()
    was, now = np.diff(tokens).tolist()
    if not before or not after or not was:
        return math.inf
    return float(now / after / (was / before))


def tokens_served(rows: Rows, at: Seconds) -> float:
    """Return the output tokens of finished requests up to a moment; those after the first are spread evenly up to the last."""
    done = rows.finished
    first, last, output = rows.first_token[done], rows.last_token[done], rows.requests.output[done]
    long = last > first
    share = np.where(long, (at - first) / np.where(long, last - first, 1.0), 1.0)
    return float(((1 + (output - 1) * np.clip(share, 0.0, 1.0)) * (first <= at)).sum())


@dataclass(frozen=True)
class Hint:
    """What a reader of the numbers should know: a kind, and a sentence."""

    kind: Literal["bursts", "starting burst"]
    text: str


def hints(rows: Rows, told: Verdict, counted: NDArray[np.bool_]) -> Iterator[Hint]:
    """Give hints on a run with that verdict, of which these requests are counted."""
    if told == "STABLE" and (peak := queued_in_bursts(rows)):
        yield Hint(
            "bursts",
            f"requests come in bursts: up to {peak:,} wait for their first token, and the queue drains again",
        )
    if share := starting_share(rows, counted):
        advice = "use measure: {warmup: ...} or more requests"
        yield Hint(
            "starting burst",
            f"the starting burst is {100 * share:.0f} % of what is counted; {advice}",
        )


def queued_in_bursts(rows: Rows) -> int:
    """Return how many requests wait for their first token at the peak of a burst; 0 where none queue, or none come in bursts.

    Bursts are arrivals that vary 2.5 times as much as those of a Poisson process: see `unevenness`.
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
    """Return the share of the counted requests that the users of a closed loop send together at its start.

    0 where that is less than a tenth, or where these requests wait hardly longer for their first token than the others.
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
