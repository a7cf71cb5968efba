"""KV cache and queue over time, by system, worked out from the rows of a run."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from plots import style
from sim.results.saving import Saved

MOMENTS = 600  # at which it is looked, and where few requests come also whenever something changes: more are not seen


def draw(saved: Saved) -> Figure:
    """Above the share of the KV cache that tokens fill (its room may be reserved before), below the requests that wait for room."""
    systems = saved.summary.systems
    colours, dashes = style.colours(systems), style.lines(systems)
    rooms = {name: system.identity.kv_room() or 1 for name, system in systems.items()}
    figure = style.figure(7.5, 4.8)
    full, queue = figure.subplots(2, 1, sharex=True)
    seen = {name: over_time(saved, name) for name in systems}
    seen = {name: each for name, each in seen.items() if len(each[0])}
    for name, (times, held, waiting) in seen.items():
        looks = {"color": colours[name], "ls": dashes[name], "lw": 1.4}
        full.plot(times, 100 * held / rooms[name], **looks)
        queue.plot(times, waiting, drawstyle="steps-post", **looks)
    full.set(ylabel="KV cache filled, %", ylim=(0, None))
    queue.set(ylabel="requests waiting", xlabel="time since the first request, s", ylim=(0, None))
    queue.set_ylim(0, max(1.0, queue.get_ylim()[1]))
    keys = [Line2D([], [], color=colours[name], ls=dashes[name], label=name) for name in seen]
    peaks = {
        name: (float(max(held)) / rooms[name], int(max(waiting)))
        for name, (_, held, waiting) in seen.items()
    }
    style.title(figure, finding(peaks), style.keyed(figure, keys))
    style.footnote(figure, saved.summary)
    return figure


def over_time(
    saved: Saved, system: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Moments, tokens in the KV cache, and requests that wait to be admitted, of those that finish.

    A prompt is counted from admission, an answer's tokens as evenly spread from the first to the last.  Left out: requests that
    were refused or cancelled, whose rows do not say when they left, and what preempted ones gave back meanwhile.
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
    if len(rows) <= MOMENTS:  # each turn of the line
        turns = np.concatenate([arrival, admitted, first, last])
        times = np.unique(np.concatenate([times, turns, np.nextafter(turns, times[0])]))

    def until(when: NDArray[np.float64], what: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of `what` over the requests whose `when` has come, at each moment."""
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
    """How full each KV cache gets, and how long the queue."""
    if not peaks:
        return "No request was finished"
    full = ", ".join(f"{name} {style.percent(share)}" for name, (share, _) in peaks.items())
    queues = ", ".join(f"{waiting:,} for {name}" for name, (_, waiting) in peaks.items() if waiting)
    return f"KV cache filled at most: {full}; {f'requests that wait at most: {queues}' if queues else 'nobody waits'}"
