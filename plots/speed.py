"""Tokens per second for one user, by system: the median and the middle 80 % of the requests.

Marks are published figures.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from plots import style
from plots.cdf import user_latencies
from sim.results.labels import published_speed, speed_label, trimmed_number
from sim.results.saving import Saved
from sim.results.summary import SystemSummary


def draw(saved: Saved) -> Figure:
    """Draw medians over the run's requests as bars, and the middle 80 % as whiskers.

    Open marks are published figures, with their sources.
    """
    systems = saved.summary.systems
    colours = style.colours(systems)
    figure = style.figure(7.0, 4.2)
    axis = figure.subplots()
    marked = False
    top = 0.0
    for place, (name, system) in enumerate(systems.items()):
        tpot = user_latencies(saved, name)["tpot"]
        if not len(tpot):
            continue
        low, middle, high = np.percentile(1000 / tpot, [10, 50, 90])
        axis.bar(place, middle, width=0.55, color=colours[name])
        axis.errorbar(
            place, middle, [[middle - low], [high - middle]], color="black", capsize=4, lw=1
        )
        axis.annotate(
            trimmed_number(middle),
            (place - 0.27, middle),
            (3, 3),
            textcoords="offset points",
            fontweight="bold",
        )
        top = max(top, high)
        published = system.identity.plain.published if system.identity.plain else ()
        for point in sorted(published, key=lambda point: point.tokens_per_second):
            speed = point.tokens_per_second
            axis.plot(
                place + 0.34,
                speed,
                marker="D",
                ms=6,
                mfc="white",
                mec="black",
                ls="",
                label=None if marked else "published",
            )
            text = f"{published_speed(point)}\n{point.engine},\n{point.weights}, {point.date[:4]}"
            axis.annotate(
                text,
                (place + 0.34, speed),
                (7, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
            )
            marked, top = True, max(top, speed)
    axis.set(
        xticks=range(len(systems)),
        ylabel="output tokens per second of one user",
        ylim=(0, 1.12 * top if top else 1),
    )
    labels = [
        (name, *identity.hardware, speed_label(identity))
        for name, identity in saved.summary.identities.items()
    ]
    axis.set_xticklabels(["\n".join(filter(None, parts)) for parts in labels])
    axis.set_xlim(-0.5, len(systems) - 0.1)
    axis.grid(axis="x", visible=False)
    if marked:
        axis.legend(loc="upper right")
    style.title(figure, finding(systems))
    style.run_footnote(figure, saved.summary)
    return figure


def finding(systems: Mapping[str, SystemSummary]) -> str:
    """Return the title: the fastest system for a user, against the others."""
    speeds = {name: speed for name, s in systems.items() if (speed := s.metrics.user_speed)}
    if not speeds:
        return "No request had two tokens"
    best = max(speeds, key=lambda name: speeds[name])
    others = ", ".join(
        f"{style.times(speeds[best] / v)} {name}" for name, v in speeds.items() if name != best
    )
    return f"{best}: {trimmed_number(speeds[best])} tokens per second for a user" + (
        f", {others}" if others else ""
    )
