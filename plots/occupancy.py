"""KV cache and queue over time, by system, computed from the rows of a run."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plots import style
from plots.looks import system_looks
from plots.pools import pooled, rooms_over_time
from sim.results.labels import system_label
from sim.results.saving import Saved
from sim.results.system_identity import SystemIdentity

# Points of a line. More cannot be seen. With fewer requests than this, every change is a point too.
MOMENTS = 600
PART_WIDTHS = (2.2, 1.1, 0.6)  # of the lines of a system with several KV caches


def draw(saved: Saved) -> Figure:
    """Draw the filled share of each KV cache above, and the requests that wait for room below.

    Pools and the members of a fleet have a line each, the first one the thickest.
    Tokens fill the cache. Room that is reserved but empty does not count. The share is at most 1,
    because the rows do not have the KV that preempted requests gave back.
    """
    looks = system_looks(saved.summary.identities)
    figure = style.figure(7.5, 4.8)
    full, queue = figure.subplots(2, 1, sharex=True)
    seen = {name: occupancy_over_time(saved, name) for name in saved.summary.systems}
    seen = {name: curve for name, curve in seen.items() if len(curve[0])}
    size, unit = style.time_axis(max((curve[0][-1] for curve in seen.values()), default=0.0))
    keys, peaks = [], dict[str, float]()
    for name, (times, _, waiting) in seen.items():
        fullest = dict[str, float]()
        curves = filled_over_time(saved, name)
        widths = PART_WIDTHS if len(curves) > 1 else (1.4,)
        for place, (part, (moments, share)) in enumerate(curves.items()):
            label = ": ".join(filter(None, (looks[name].label, part)))
            stroke = looks[name].stroke | {"lw": widths[min(place, len(widths) - 1)]}
            keys += full.plot(moments / size, 100 * share, label=label, **stroke)
            fullest[label] = float(share.max())
        if fullest:
            label = max(fullest, key=lambda label: fullest[label])
            peaks[label] = fullest[label]
        queue.plot(times / size, waiting, drawstyle="steps-post", **looks[name].stroke, lw=1.4)
    full.set(ylabel="KV cache filled, %", ylim=(0, None))
    queue.set(ylabel="requests waiting", ylim=(0, None))
    queue.set_xlabel(f"time since the first request, {unit}")
    queue.set_ylim(0, max(1.0, queue.get_ylim()[1]))
    queue.yaxis.set_major_locator(MaxNLocator(integer=True))
    queues = {looks[name].label: int(max(waiting)) for name, (_, _, waiting) in seen.items()}
    style.title(figure, finding(peaks, queues), style.keyed(figure, keys))
    style.run_footnote(figure, saved.summary)
    return figure


def filled_over_time(
    saved: Saved, system: str
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return times [s] and the filled share of the KV cache, by pool or by member of a fleet.

    A system without pools or members has the name ''. A share of all caches together would hide a
    full cache behind an empty one.
    """
    identity = saved.summary.systems[system].identity
    if system in pooled(saved):
        filled = rooms_over_time(saved, system, pooled(saved)[system])
        return {pool: (times, np.minimum(share, 1)) for pool, (times, share) in filled.items()}
    rooms = (
        {"": ("", identity.kv_room())}
        if isinstance(identity, SystemIdentity)
        else {
            name: (system_label(name, of.identity), of.copies * of.identity.kv_room())
            for name, of in identity.members.items()
        }
    )
    curves = {}
    for member, (label, room) in rooms.items():
        times, held, _ = occupancy_over_time(saved, system, member)
        if len(times):
            curves[label] = times, np.minimum(held / (room or 1), 1)
    return curves


def occupancy_over_time(
    saved: Saved, system: str, member: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return three arrays over moments: times [s], tokens in the KV cache, and waiting requests.

    A prompt counts from its admission. The tokens of an answer are evenly spread from the first to
    the last.
    member: the requests of one member of a fleet; '' for all.
    Left out: refused and cancelled requests, because their rows do not have the time when they
    left; and KV that preempted requests gave back for a while.
    """
    rows = saved.requests
    rows = rows.filter((rows["system"] == system) & (rows["outcome"] == "finished"))
    begin = rows["arrival"].min()
    if member:
        rows = rows.filter(rows["member"] == member)
    arrival, admitted, first, last = (
        rows[key].to_numpy() for key in ("arrival", "admitted", "first_token", "last_token")
    )
    if not len(rows):
        return np.empty(0), np.empty(0), np.empty(0, np.int64)
    prompt = rows["prompt_tokens"].to_numpy()
    answer = np.where(last > first, rows["output_tokens"].to_numpy(), 0)
    speed = answer / np.where(last > first, last - first, 1.0)
    times = np.linspace(arrival.min(), last.max(), MOMENTS)
    if len(rows) <= MOMENTS:  # add every moment at which a line bends
        turns = np.concatenate([arrival, admitted, first, last])
        times = np.unique(np.concatenate([times, turns, np.nextafter(turns, times[0])]))

    def until(when: NDArray[np.float64], what: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of `what` over the requests with `when` up to each moment."""
        order = np.argsort(when, kind="stable")
        sums = np.concatenate([[0.0], np.cumsum(what[order])])
        return sums[np.searchsorted(when[order], times, side="right")]

    grown = times * until(first, speed) - until(first, speed * first)
    gone = (
        times * until(last, speed)
        - until(last, speed * last)
        + until(last, (prompt + answer).astype(float))
    )
    held = until(admitted, prompt.astype(float)) + grown - gone
    ones = np.ones(len(rows))
    waiting = np.rint(until(arrival, ones) - until(admitted, ones)).astype(np.int64)
    return times - begin, np.maximum(held, 0.0), waiting


def finding(peaks: dict[str, float], queues: dict[str, int]) -> str:
    """Return the title: the fullest KV cache, the emptiest one, and the longest queue.

    peaks: by label, the highest filled share of each system's fullest KV cache.
    queues: by label of a system, the most requests that wait.
    """
    if not peaks:
        return "No request was finished"
    order = sorted(peaks, key=lambda label: -peaks[label])
    shown = order if len(order) <= 2 else [order[0], order[-1]]
    full = ", ".join(f"{label} {style.share_text(peaks[label])}" for label in shown)
    longest = max(queues, key=lambda label: queues[label])
    waiting = queues[longest]
    queue = f"longest queue: {longest} {waiting:,}" if waiting else "no request waits"
    return f"KV cache filled at most: {full}; {queue}"
