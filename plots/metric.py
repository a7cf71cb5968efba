"""Any numeric column of a sweep's table over the keys that the sweep changes.

One key: a line for each system. Two keys: a heat map for each system, or several lines if one of
the keys has few values.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from plots import series, style
from plots.series import Series
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept
from sim.studies.sweep_table import axis_column, swept_key

DEFAULT_METRICS = ("median_tpot_ms", "output_throughput")  # of sweeps without a figure of their own
FEW = 4  # values of a key that become lines
MOST_CELLS = 100  # of a heat map; values in more cells would overlap
WIDE = 20.0  # ratio of the ends of a logarithmic axis
PREFIXED = 1e5  # from here on, ticks have prefixes: '200 M'


def draw(swept: Swept, metric: str) -> Figure:
    """Draw a column of the table over the keys that the sweep changes."""
    keys = varied_keys(swept)
    if swept.summary.grid and len(keys) == 2:
        fewest = min(len(swept.table[key].unique()) for key in keys)
        if fewest > FEW:
            return _heat_maps(swept, metric, keys)
    # Lines are the keys with fewer values.
    x = max(keys, key=lambda key: len(swept.table[key].unique()), default="point")
    return _lines(swept, metric, x if swept.summary.grid else _list_axis(swept))


def varied_keys(swept: Swept) -> list[str]:
    """Return the columns of the keys that have several values, in SI units where they have them."""
    columns = [axis_column(swept.table, key) for key in swept.summary.keys]
    return [column for column in columns if len(swept.table[column].drop_nulls().unique()) > 1]


def _list_axis(swept: Swept) -> str:
    """Return the first column that differs at every point of a list; else the point's number.

    Numbers come before texts.
    """
    points = swept.table.unique("point")
    free = [key for key in varied_keys(swept) if points[key].n_unique() == len(points)]
    return next((key for key in free if points[key].dtype.is_numeric()), (*free, "point")[0])


def _lines(swept: Swept, metric: str, x: str) -> Figure:
    """Draw a line for each system, and for each combination of the other keys of a grid."""
    lines = [line for line in series.series(swept, x) if line.knows(metric)]
    numeric = swept.table[x].dtype.is_numeric()
    places = {
        value: place for place, value in enumerate(swept.table[x].unique(maintain_order=True))
    }
    figure = style.figure(7.5, 4.6)
    axis = figure.subplots()
    for line in lines:
        values = line.values(x)
        at = sorted((value if numeric else places[value], i) for i, value in enumerate(values))
        y, hollow = line.values(metric), line.hollow
        order = [i for _, i in at]
        series.plot(
            axis,
            line,
            [value for value, _ in at],
            [y[i] for i in order],
            [hollow[i] for i in order],
        )
    axis.set(xlabel=x, ylabel=metric)
    if not numeric:
        names = [style.short(str(value), 24) for value in places]
        axis.set_xticks(range(len(places)), names, rotation=30, ha="right", fontsize=8)
    elif lines:
        _scale(axis, "x", [value for line in lines for value in line.values(x)])
    if lines:
        _scale(axis, "y", [value for line in lines for value in line.values(metric)])
    handles = series.marked_key(lines)
    style.title(figure, finding(lines, metric, x), style.keyed(figure, handles))
    series.sweep_footnote(figure, swept)
    return figure


def _scale(axis: Axes, which: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic if its values are positive and far apart; shorten large ticks."""
    ticks = axis.xaxis if which == "x" else axis.yaxis
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axis.set(**{f"{which}scale": "log"})
        style.plain_log(ticks)
    if max(values) >= PREFIXED:
        ticks.set_major_formatter(EngFormatter())


def _heat_maps(swept: Swept, metric: str, keys: Sequence[str]) -> Figure:
    """Draw a heat map for each system; the first key goes up, the second one to the right."""
    rows, columns = ([*swept.table[key].unique(maintain_order=True)] for key in keys)
    looked = series.swept_looks(swept)
    grids = {name: _grid(swept, name, metric, keys) for name in swept.summary.systems}
    shown = [value for grid, _ in grids.values() for value in grid.ravel() if not math.isnan(value)]
    figure = style.figure(1.6 + 4.2 * len(grids), 4.6)
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    for axis, (name, (grid, hollow)) in zip(axes, grids.items(), strict=True):
        image = axis.imshow(grid, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="Greys")
        for (row, column), value in np.ndenumerate(grid):
            if hollow[row, column]:
                cell = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="//", lw=0)
                axis.add_patch(cell)
            if grid.size <= MOST_CELLS and not math.isnan(value):
                dark = value > low + 0.55 * (high - low)
                axis.text(
                    column,
                    row,
                    trimmed_number(value),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "black",
                )
        axis.set_title(looked[name].label, fontsize=9, loc="left")
        axis.set_xticks(range(len(columns)), map(_tick, columns), rotation=45, fontsize=8)
        axis.set_yticks(range(len(rows)), map(_tick, rows), fontsize=8)
        axis.set(xlabel=keys[1], ylabel=keys[0])
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, label=metric)
    labels = {look.label: grids[name][0] for name, look in looked.items()}
    style.title(figure, _extremes(metric, labels))
    note = "hatched: users wait for room, or too short to tell"
    unsteady = any(hollow.any() for _, hollow in grids.values())
    series.sweep_footnote(figure, swept, *([note] if unsteady else []))
    return figure


def _grid(
    swept: Swept, system: str, metric: str, keys: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the metric of a system by the values of two keys, and whether users wait there."""
    places = [
        {value: i for i, value in enumerate(swept.table[key].unique(maintain_order=True))}
        for key in keys
    ]
    shape = (len(places[0]), len(places[1]))
    grid, hollow = np.full(shape, math.nan), np.zeros(shape, np.bool_)
    for row in swept.table.filter(swept.table["system"] == system).iter_rows(named=True):
        if row[metric] is not None:
            at = (places[0][row[keys[0]]], places[1][row[keys[1]]])
            grid[at], hollow[at] = row[metric], row["verdict"] != "STABLE"
    return grid, hollow


def _tick(value: object) -> str:
    """Return the text of a tick."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return trimmed_number(value)
    return style.short(str(value), 18)


def _extremes(metric: str, grids: Mapping[str, NDArray[np.float64]]) -> str:
    """Return the title of heat maps: the least and the most of each system."""
    parts = []
    for label, grid in grids.items():
        if not np.isnan(grid).all():
            least, most = float(np.nanmin(grid)), float(np.nanmax(grid))
            parts.append(f"{label} {trimmed_number(least)} to {trimmed_number(most)}")
    return f"{metric}: {'; '.join(parts)}" if parts else f"{metric}: not known of these systems"


def finding(lines: Sequence[Series], metric: str, x: str) -> str:
    """Return the title: the values of each line at the ends of the axis."""
    if not lines:
        return f"{metric}: not known of these systems"
    parts = []
    for line in lines:
        first, last = (trimmed_number(line.values(metric)[end]) for end in (0, -1))
        parts.append(f"{line.label} {first}" + (f" to {last}" if last != first else ""))
    return f"{metric} over {series.short_key(swept_key(x))}: {'; '.join(parts)}"
