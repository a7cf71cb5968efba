"""Joules of an output token over load, by system and by cause.

At low load a token pays mostly for idle power.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from plots import series, style
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

ENERGY_CAUSES = ("idle", "server", "pue", "compute", "memory", "links")  # from below


@dataclass(frozen=True)
class TokenEnergy:
    """The energy of an output token at one load of a system. joules: by cause."""

    system: str
    load: float
    joules: Mapping[str, float]

    @property
    def total(self) -> float:
        """The energy, summed over the causes [J]."""
        return float(sum(self.joules[cause] for cause in ENERGY_CAUSES))


def draw(points: Sequence[TokenEnergy], load: str = "requests per second") -> Figure:
    """Draw the sum of all causes on the left, and on the right each cause's share, by system."""
    systems = list(dict.fromkeys(point.system for point in points))
    colours = style.colours(systems)
    figure = style.figure(4.2 + 2.4 * len(systems), 5.0)
    axes = figure.subplots(
        1, 1 + len(systems), squeeze=False, gridspec_kw={"width_ratios": [1.7] + [1] * len(systems)}
    )[0]
    labelled: list[tuple[float, float]] = []
    for panel, name in zip(axes[1:], systems, strict=True):
        own = points_by_load(points, name)
        loads, totals = [point.load for point in own], [point.total for point in own]
        axes[0].plot(loads, totals, "o-", color=colours[name], ms=4, label=name)
        for place in (0, -1):
            where = (loads[place], totals[place])
            crowded = any(
                load == where[0] and 0.75 < joules / where[1] < 1.33 for load, joules in labelled
            )
            offset = (4, -11) if crowded else (4, 4)
            axes[0].annotate(
                f"{trimmed_number(totals[place])} J",
                where,
                offset,
                textcoords="offset points",
                fontsize=8,
            )
            labelled.append(where)
        below = [0.0] * len(own)
        for cause, colour in zip(ENERGY_CAUSES, style.PALETTE, strict=False):
            above = [
                low + 100 * point.joules[cause] / total
                for low, point, total in zip(below, own, totals, strict=True)
            ]
            panel.fill_between(loads, below, above, color=colour, lw=0, label=cause)
            below = above
        panel.set(xscale="log", xlabel=load, ylim=(0, 100), xlim=(loads[0], loads[-1]))
        style.plain_log(panel.xaxis)
        panel.xaxis.set_major_locator(LogLocator(numticks=4))
        panel.set_ylabel("\n".join(textwrap.wrap(f"{name}: % by cause", 36)))
    axes[0].set(xscale="log", yscale="log", xlabel=load, ylabel="J for an output token")
    axes[0].margins(0.12)
    if systems:
        style.plain_log(axes[0].xaxis)
        style.plain_log(axes[0].yaxis)
    handles: list[Artist] = [
        Line2D([], [], color=colours[name], marker="o", ms=4, label=name) for name in systems
    ]
    handles += [
        Patch(color=colour, label=cause)
        for cause, colour in zip(ENERGY_CAUSES, style.PALETTE, strict=False)
    ]
    keyed = style.keyed(figure, handles)
    # Rows of a key are higher than lines of a title.
    style.title(figure, finding(points, systems), keyed + keyed // 5)
    return figure


def draw_sweep(swept: Swept) -> Figure:
    """Draw the figure for a sweep over users or the request rate. Empty without energies."""
    load = series.load(swept)
    table = swept.table
    causes = {cause: f"energy.joules_per_token_by_cause.{cause}" for cause in ENERGY_CAUSES}
    if not set(causes.values()) <= set(table.columns):
        return draw([])
    rows = table.drop_nulls([load, *causes.values()]).unique(["system", load], maintain_order=True)
    points = [
        TokenEnergy(row["system"], row[load], {cause: row[key] for cause, key in causes.items()})
        for row in rows.iter_rows(named=True)
    ]
    figure = draw(points, "users" if load == "users" else "requests per second")
    series.sweep_footnote(figure, swept)
    return figure


def points_by_load(points: Iterable[TokenEnergy], system: str) -> list[TokenEnergy]:
    """Return the points of a system, by rising load."""
    own = (point for point in points if point.system == system)
    return sorted(own, key=lambda point: point.load)


def finding(points: Sequence[TokenEnergy], systems: Sequence[str]) -> str:
    """Return the title: the energy of a token at the lowest and at the highest load."""
    parts = []
    if not systems:
        return "What a token takes is not known of these systems"
    for name in systems:
        own = points_by_load(points, name)
        low, high = (trimmed_number(point.total) for point in (own[0], own[-1]))
        parts.append(f"{name} from {low} to {high} J")
    return f"A token takes less under load: {', '.join(parts)}"
