"""Tokens per second for one user, by system: the median and the middle 80 % of the requests.

Marks are published figures.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from plots import claims, style
from plots.cdf import user_latencies
from plots.looks import system_looks
from sim.results.labels import published_speed, speed_label, trimmed_number
from sim.results.saving import Saved
from sim.results.summary import SystemSummary
from sim.results.system_identity import SpeedPoint

MOST_BARS = 3  # beyond, the labels under the bars are smaller
TICK_LETTERS = 18  # of a line under a bar
TEXT_HEIGHT = 0.13  # of the text of a published speed, over that of the axes


def draw(saved: Saved) -> Figure:
    """Draw medians over the run's requests as bars, and the middle 80 % as whiskers.

    Open marks are published figures, with their sources. Hollow bars do not keep up with the load.
    """
    systems, looks = saved.summary.systems, system_looks(saved.summary.identities)
    figure = style.figure(max(7.0, 2.2 + 1.3 * len(systems)), 4.2)
    axis = figure.subplots()
    tops, late = [0.0], False
    marked: dict[int, Sequence[SpeedPoint]] = {}
    for place, (name, system) in enumerate(systems.items()):
        tpot = user_latencies(saved, name)["tpot"]
        if not len(tpot):
            continue
        behind = system.metrics.verdict in claims.BEHIND
        tops.append(_bar(axis, place, 1000 / tpot, looks[name].colour, behind))
        published = system.identity.plain.published if system.identity.plain else ()
        tops += [point.tokens_per_second for point in published]
        marked[place], late = published, late or behind
    axis.set(ylabel="output tokens per second of one user", ylim=(0, 1.12 * max(tops) or 1))
    for place, points in marked.items():
        _published_marks(axis, place, points)
    texts = [
        (looks[name].label, *identity.hardware, speed_label(identity))
        for name, identity in saved.summary.identities.items()
    ]
    axis.set_xticks(
        range(len(systems)),
        ["\n".join(_wrapped(part) for part in parts if part) for parts in texts],
        fontsize=9 if len(systems) <= MOST_BARS else 8,
    )
    axis.set_xlim(-0.5, len(systems) - 0.1)
    axis.grid(axis="x", visible=False)
    style.title(figure, finding(systems))
    note = "bars: median request; whiskers: the middle 80 % of the requests"
    note += "; open marks: published" if any(marked.values()) else ""
    note += "; hollow: does not keep up with the load" if late else ""
    style.run_footnote(figure, saved.summary, note)
    return figure


def _bar(axis: Axes, place: int, speeds: NDArray[np.float64], colour: str, hollow: bool) -> float:
    """Draw the median speed as a bar with whiskers, and return the top of the whiskers."""
    low, middle, high = np.percentile(speeds, [10, 50, 90])
    face = "white" if hollow else colour
    axis.bar(place, middle, width=0.55, facecolor=face, edgecolor=colour, lw=1.5)
    axis.errorbar(place, middle, [[middle - low], [high - middle]], color="black", capsize=4, lw=1)
    axis.annotate(
        trimmed_number(middle),
        (place, middle),
        (-6, 3),  # left of the whisker
        textcoords="offset points",
        fontweight="bold",
        ha="right",
    )
    return float(high)


def _published_marks(axis: Axes, place: int, points: Sequence[SpeedPoint]) -> None:
    """Draw published speeds beside a bar with their sources. Texts keep a distance."""
    lowest, apart = -math.inf, TEXT_HEIGHT * axis.get_ylim()[1]
    for point in sorted(points, key=lambda point: point.tokens_per_second):
        at = (place + 0.34, point.tokens_per_second)
        lowest = max(point.tokens_per_second, lowest + apart)
        axis.plot(*at, marker="D", ms=6, mfc="white", mec="black", ls="")
        text = f"{published_speed(point)}\n{point.engine},\n{point.weights}, {point.date[:4]}"
        axis.annotate(text, (place + 0.43, lowest), fontsize=7, va="center")


def _wrapped(text: str) -> str:
    """Return a text in lines that fit under a bar."""
    return "\n".join(textwrap.wrap(text, TICK_LETTERS, break_on_hyphens=False))


def finding(systems: Mapping[str, SystemSummary]) -> str:
    """Return the title: the fastest system for a user, and the first token.

    Only systems that keep up are compared.
    """
    speeds, first, last = {}, {}, {}
    for label, system in claims.keeping_up(systems).items():
        metrics = system.metrics
        if metrics.user_speed and metrics.ttft.median and metrics.e2el.median:
            speeds[label] = metrics.user_speed
            first[label], last[label] = metrics.ttft.median, metrics.e2el.median
    late = claims.behind(systems)
    if not speeds:
        return f"No system keeps up with the load; {late}" if late else "No request had two tokens"
    return claims.joined(claims.Race(speeds, first, last).finding, late)
