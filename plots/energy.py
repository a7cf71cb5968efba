"""Joules of an output token over load, by system and by cause.

At low load a token pays mostly for idle power.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from plots import series, style
from plots.causes import ENERGY_CAUSES
from plots.looks import Look
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

PANELS = 3  # of causes in a row
MOST_LABELLED = 3  # systems; the ends of more lines would overlap


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


def draw(
    points: Sequence[TokenEnergy],
    looked: Mapping[str, Look],
    load: str = "requests per second",
) -> Figure:
    """Draw the sum of all causes on the left, and on the right each cause's share, by system.

    looked: the look of each system.
    """
    systems = list(dict.fromkeys(point.system for point in points))
    columns = min(PANELS, max(1, len(systems)))
    rows = max(1, math.ceil(len(systems) / columns))
    figure = style.figure(4.2 + 2.4 * columns, 2.4 + 2.6 * rows)
    grid = figure.add_gridspec(rows, 1 + columns, width_ratios=[1.7] + [1] * columns)
    total = figure.add_subplot(grid[:, 0])
    labelled: list[tuple[float, float]] = []
    for place, name in enumerate(systems):
        own = points_by_load(points, name)
        loads, totals = [point.load for point in own], [point.total for point in own]
        look = looked[name]
        total.plot(loads, totals, color=look.colour, ls=look.dashes, marker=look.marker, ms=4)
        if len(systems) <= MOST_LABELLED:
            for end in (0, -1):
                _label_total(total, (loads[end], totals[end]), labelled)
        panel = figure.add_subplot(grid[place // columns, 1 + place % columns])
        _shares(panel, own)
        panel.set(xlabel=load if place + columns >= len(systems) else "")
        named = [*textwrap.wrap(f"{look.label}:", 24), "% by cause"]
        panel.set_ylabel("\n".join(named), fontsize=9)
    total.set(xscale="log", yscale="log", xlabel=load, ylabel="J for an output token")
    total.margins(0.14)
    if systems:
        style.plain_log(total.xaxis)
        style.plain_log(total.yaxis)
    handles: list[Artist] = [looked[name].entry() for name in systems]
    handles += [cause.entry for cause in ENERGY_CAUSES.values()]
    keyed = style.keyed(figure, handles)
    labels = {name: looked[name].label for name in systems}
    # Rows of a key are higher than lines of a title.
    style.title(figure, finding(points, labels), keyed + keyed // 5)
    return figure


def _label_total(axis: Axes, at: tuple[float, float], labelled: list[tuple[float, float]]) -> None:
    """Write the joules of a point beside it, below where a label stands above, or leave it out."""
    near = sum(load == at[0] and 0.7 < joules / at[1] < 1.43 for load, joules in labelled)
    if near < 2:
        offset = (0, 6) if not near else (0, -13)
        text = f"{trimmed_number(at[1])} J"
        axis.annotate(text, at, offset, textcoords="offset points", fontsize=8, ha="center")
    labelled.append(at)


def _shares(panel: Axes, own: Sequence[TokenEnergy]) -> None:
    """Draw the share of each cause over the load."""
    loads = [point.load for point in own]
    below = [0.0] * len(own)
    for key, cause in ENERGY_CAUSES.items():
        above = [
            low + 100 * point.joules[key] / point.total
            for low, point in zip(below, own, strict=True)
        ]
        panel.fill_between(loads, below, above, **cause.filled)
        below = above
    panel.set(xscale="log", ylim=(0, 100), xlim=(loads[0], loads[-1]))
    style.plain_log(panel.xaxis)
    panel.xaxis.set_major_locator(LogLocator(numticks=4))


def draw_sweep(swept: Swept) -> Figure:
    """Draw the figure for a sweep over users or the request rate. Empty without energies."""
    load = series.load(swept)
    table = swept.table
    causes = {cause: f"energy.joules_per_token_by_cause.{cause}" for cause in ENERGY_CAUSES}
    if not set(causes.values()) <= set(table.columns):
        return draw([], {})
    rows = table.drop_nulls([load, *causes.values()]).unique(["system", load], maintain_order=True)
    points = [
        TokenEnergy(row["system"], row[load], {cause: row[key] for cause, key in causes.items()})
        for row in rows.iter_rows(named=True)
    ]
    unit = "users" if load == "users" else "requests per second"
    figure = draw(points, series.swept_looks(swept), unit)
    series.sweep_footnote(figure, swept)
    return figure


def points_by_load(points: Iterable[TokenEnergy], system: str) -> list[TokenEnergy]:
    """Return the points of a system, by rising load."""
    own = (point for point in points if point.system == system)
    return sorted(own, key=lambda point: point.load)


def finding(points: Sequence[TokenEnergy], labels: Mapping[str, str]) -> str:
    """Return the title: the energy of a token at the lowest and at the highest load.

    labels: of the systems, by name.
    """
    if not labels:
        return "What a token takes is not known of these systems"
    parts, falls = [], True
    for name, label in labels.items():
        own = points_by_load(points, name)
        falls = falls and own[-1].total < own[0].total
        low, high = (trimmed_number(point.total) for point in (own[0], own[-1]))
        parts.append(f"{label} from {low} to {high} J")
    head = "A token takes less under load" if falls else "Energy of a token, lowest to highest load"
    return f"{head}: {'; '.join(parts)}"
