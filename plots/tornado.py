"""Tornado: the effect of each uncertain number on unloaded TPOT, by system, the widest on top."""

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from plots import style
from plots.looks import Appearance, looks
from sim.results.labels import percent_text, trimmed_number
from sim.results.sensitivity_summary import (
    SensitivitySummary,
    SwingSummary,
    SystemSensitivity,
)

MOST = 8  # bars for each system


def draw(summary: SensitivitySummary) -> Figure:
    """Draw bars from the TPOT at the low end of a number's range to that at its high end.

    The line is the TPOT with the numbers of the files. The band is the effect of all numbers
    together, if they are independent.
    """
    systems = summary.systems
    widest = {
        name: [s for s in system.swings if swing_width(s, system)][:MOST]
        for name, system in systems.items()
    }
    shown = {name: swings for name, swings in widest.items() if swings}
    looked = looks(
        {
            name: Appearance(system.label or name, system.colour, system.vendor, system.chip)
            for name, system in systems.items()
        }
    )
    figure = style.figure(8.0, 1.4 + sum(0.8 + 0.33 * len(swings) for swings in shown.values()))
    axes = figure.subplots(
        max(1, len(shown)),
        1,
        squeeze=False,
        gridspec_kw={"height_ratios": [0.8 + len(s) for s in shown.values()] or [1]},
    )[:, 0]
    for axis, (name, swings) in zip(axes, shown.items(), strict=False):
        system = systems[name]
        low, high = system.bands.tpot_ms
        base = system.base.tpot_ms
        axis.axvspan(low, high, color="#eeeeee", lw=0)
        axis.axvline(base, color="black", lw=0.9)
        for place, swing in enumerate(reversed(swings)):
            ends = zip((swing.low, swing.high), swing.ends, ("", "////"), strict=True)
            for metrics, text, hatch in ends:
                if metrics is None:
                    continue
                at = metrics.tpot_ms
                axis.barh(
                    place,
                    at - base,
                    left=base,
                    height=0.6,
                    fc=looked[name].colour,
                    ec="white",
                    hatch=hatch,
                    lw=0,
                )
                if abs(at - base) > 1e-9:
                    left = at < base
                    where = {"ha": "right" if left else "left", "va": "center", "fontsize": 7}
                    axis.annotate(
                        text,
                        (at, place),
                        (-3 if left else 3, 0),
                        textcoords="offset points",
                        **where,
                    )
        axis.set_yticks(range(len(swings)), [s.key for s in reversed(swings)], fontsize=8)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.18)
        band = f"{trimmed_number(low)} to {trimmed_number(high)} ms"
        heading = f"{looked[name].label}: {trimmed_number(base)} ms, {band}"
        axis.set_title(heading, fontsize=9, loc="left")
    axes[-1].set_xlabel(f"TPOT of {summary.requests}, ms")
    figure.supxlabel(
        "plain: low end of a number's range; hatched: high end; grey: all together",
        fontsize=7,
        color="#555555",
        x=0.01,
        ha="left",
    )
    style.title(figure, finding(summary, shown))
    return figure


def swing_width(swing: SwingSummary, system: SystemSensitivity) -> float:
    """Return how far a number moves TPOT over its range [ms]."""
    ends = [end.tpot_ms for end in (swing.low, swing.high, system.base) if end]
    # Rounded times differ by less than the tolerance, and such a number moves nothing.
    return 0.0 if math.isclose(min(ends), max(ends)) else max(ends) - min(ends)


def finding(summary: SensitivitySummary, shown: Mapping[str, list[SwingSummary]]) -> str:
    """Return the title: the number that moves TPOT most, for each system."""
    if not shown:
        return f"{summary.scenario}: no uncertain number moves TPOT"
    parts = []
    for name, swings in shown.items():
        system, widest = summary.systems[name], swings[0]
        part = swing_width(widest, system) / system.base.tpot_ms
        parts.append(f"{system.label or name} on {name_of(widest.key)} ({percent_text(part)})")
    return f"TPOT depends most: {'; '.join(parts)}"


def name_of(key: str) -> str:
    """Return 'memory efficiency (8 bits)' for 'engine.memory_efficiency.8'."""
    first, _, bits = key.partition(".")[2].partition("_efficiency.")
    return (
        f"{first} efficiency ({bits} bits)".replace("_", " ")
        if bits
        else first.rpartition(".")[2].replace("_", " ")
    )
