"""Joules of an output token against load, by system and by cause: idle power is what a token pays where load is low."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from plots import style

if TYPE_CHECKING:
    import polars

CAUSES = ("idle", "server", "pue", "compute", "memory", "links")  # from below


def draw(points: "polars.DataFrame | Iterable[Mapping[str, Any]]", load: str = "request/s") -> Figure:
    """Left the sum of all causes, right each cause's share of it, a panel for each system.

    `points` have `system`, `load`, and a column for each cause, as in `joules_per_token_by_cause` of a run's JSON.
    """
    rows = [dict(row) for row in (points.iter_rows(named=True) if hasattr(points, "iter_rows") else points)]
    systems = list(dict.fromkeys(row["system"] for row in rows))
    colours = style.colours(systems)
    figure = style.figure(4.2 + 2.4 * len(systems), 4.2)
    axes = figure.subplots(1, 1 + len(systems), squeeze=False, gridspec_kw={"width_ratios": [1.7] + [1] * len(systems)})[0]
    for panel, name in zip(axes[1:], systems, strict=True):
        own = sorted((row for row in rows if row["system"] == name), key=lambda row: row["load"])
        loads, totals = [row["load"] for row in own], [joules(row) for row in own]
        axes[0].plot(loads, totals, "o-", color=colours[name], ms=4, label=name)
        for place in (0, -1):
            where = (loads[place], totals[place])
            axes[0].annotate(f"{style.number(totals[place])} J", where, (0, 6), textcoords="offset points", ha="center", fontsize=8)
        below = [0.0] * len(own)
        for cause, colour in zip(CAUSES, style.PALETTE, strict=False):
            above = [low + 100 * row[cause] / total for low, row, total in zip(below, own, totals, strict=True)]
            panel.fill_between(loads, below, above, color=colour, lw=0, label=cause)
            below = above
        panel.set(xscale="log", xlabel=f"load, {load}", ylim=(0, 100), xlim=(loads[0], loads[-1]))
        panel.set_title(f"{name}, % by cause", fontsize=9, loc="left")
    axes[0].set(xscale="log", yscale="log", xlabel=f"load, {load}", ylabel="J for an output token")
    axes[0].margins(0.12)
    axes[0].legend(fontsize=9)
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].legend(handles[::-1], labels[::-1], fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.title(figure, finding(rows, systems))
    return figure


def joules(row: Mapping[str, Any]) -> float:
    return float(sum(row[cause] for cause in CAUSES))


def finding(rows: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> str:
    """What a token takes at the least and at the highest load."""
    parts = []
    for name in systems:
        own = sorted((row for row in rows if row["system"] == name), key=lambda row: row["load"])
        low, high = (style.number(joules(row)) for row in (own[0], own[-1]))
        parts.append(f"{name} from {low} to {high} J")
    return f"A token takes less the more there are at a time: {', '.join(parts)}"
