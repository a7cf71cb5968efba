"""KV cache and queue over time, by system, computed from the rows of a run."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plots import style
from plots.looks import system_looks
from sim.results.saving import Saved

# Points of a line. More cannot be seen. With fewer requests than this, every change is a point too.
MOMENTS = 600


def draw(saved: Saved) -> Figure:
    """Draw the filled share of the KV cache above, and the requests that wait for room below.

    Tokens fill the cache. Room that is reserved but empty does not count. The share is at most 1,
    because the rows do not have the KV that preempted requests gave back.
    """
    systems = saved.summary.systems
    looks = system_looks(saved.summary.identities)
    rooms = {name: system.identity.kv_room() or 1 for name, system in systems.items()}
    figure = style.figure(7.5, 4.8)
    full, queue = figure.subplots(2, 1, sharex=True)
    seen = {name: occupancy_over_time(saved, name) for name in systems}
    seen = {name: curve for name, curve in seen.items() if len(curve[0])}
    size, unit = style.time_axis(max((curve[0][-1] for curve in seen.values()), default=0.0))
    for name, (times, held, waiting) in seen.items():
        drawn = looks[name].stroke | {"lw": 1.4}
        full.plot(times / size, 100 * np.minimum(held / rooms[name], 1), **drawn)
        queue.plot(times / size, waiting, drawstyle="steps-post", **drawn)
    full.set(ylabel="KV cache filled, %", ylim=(0, None))
    queue.set(ylabel="requests waiting", ylim=(0, None))
    queue.set_xlabel(f"time since the first request, {unit}")
    queue.set_ylim(0, max(1.0, queue.get_ylim()[1]))
    keys = [looks[name].line_entry() for name in seen]
    peaks = {
        looks[name].label: (min(1.0, float(max(held)) / rooms[name]), int(max(waiting)))
        for name, (_, held, waiting) in seen.items()
    }
    style.title(figure, finding(peaks), style.keyed(figure, keys))
    style.run_footnote(figure, saved.summary)
    return figure


def occupancy_over_time(
    saved: Saved, system: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return three arrays over moments: times [s], tokens in the KV cache, and waiting requests.

    A prompt counts from its admission. The tokens of an answer are evenly spread from the first to
    the last.
    Left out: refused and cancelled requests, because their rows do not have the time when they
    left; and KV that preempted requests gave back for a while.
    """
    rows = saved.requests
    rows = rows.filter((rows["system"] == system) & (rows["outcome"] == "finished"))
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
    return times - times[0], np.maximum(held, 0.0), waiting


def finding(peaks: dict[str, tuple[float, int]]) -> str:
    """Return the title: the fullest KV cache, the emptiest one, and the longest queue."""
    if not peaks:
        return "No request was finished"
    order = sorted(peaks, key=lambda label: -peaks[label][0])
    shown = order if len(order) <= 2 else [order[0], order[-1]]
    full = ", ".join(f"{label} {style.share_text(peaks[label][0])}" for label in shown)
    longest = max(peaks, key=lambda label: peaks[label][1])
    waiting = peaks[longest][1]
    queue = f"longest queue: {longest} {waiting:,}" if waiting else "no request waits"
    return f"KV cache filled at most: {full}; {queue}"
