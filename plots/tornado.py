"""Tornado: how far each uncertain number moves a lone user's TPOT, by system, the widest on top."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from plots import style

MOST = 8  # bars of a system


def draw(scenario: str, systems: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Bars from the TPOT at the low end of a number's range to that at its high end; the line is the TPOT as the files say, the
    band what all of them together make of it, if they are independent."""
    shown = {
        name: [s for s in system["swings"] if width(s, system)][:MOST]
        for name, system in systems.items()
    }
    shown = {name: swings for name, swings in shown.items() if swings}
    colours = style.colours(systems)
    figure = style.figure(8.0, 1.4 + sum(0.8 + 0.33 * len(swings) for swings in shown.values()))
    axes = figure.subplots(
        max(1, len(shown)),
        1,
        squeeze=False,
        gridspec_kw={"height_ratios": [0.8 + len(s) for s in shown.values()] or [1]},
    )[:, 0]
    for axis, (name, swings) in zip(axes, shown.items(), strict=False):
        system = systems[name]
        low, high = system["tpot_band_ms"]
        axis.axvspan(low, high, color="#eeeeee", lw=0)
        axis.axvline(system["tpot_ms"], color="black", lw=0.9)
        for place, swing in enumerate(reversed(swings)):
            for end, text in (("low", swing["range"][0]), ("high", swing["range"][1])):
                if swing[end] is None:
                    continue
                at = swing[end]["tpot_ms"]
                hatch = "" if end == "low" else "////"
                base = system["tpot_ms"]
                axis.barh(
                    place,
                    at - base,
                    left=base,
                    height=0.6,
                    fc=colours[name],
                    ec="white",
                    hatch=hatch,
                    lw=0,
                )
                if abs(at - base) > 1e-9:
                    left = at < base
                    where = {"ha": "right" if left else "left", "va": "center", "fontsize": 7}
                    axis.annotate(
                        str(text),
                        (at, place),
                        (-3 if left else 3, 0),
                        textcoords="offset points",
                        **where,
                    )
        axis.set_yticks(range(len(swings)), [s["key"] for s in reversed(swings)], fontsize=8)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.18)
        told = f"{name}: {style.number(system['tpot_ms'])} ms, {style.number(low)} to {style.number(high)} ms"
        axis.set_title(told, fontsize=9, loc="left")
    axes[-1].set_xlabel("TPOT of a lone request, ms")
    figure.supxlabel(
        "plain: low end of a number's range; hatched: high end; grey: all together",
        fontsize=7,
        color="#555555",
        x=0.01,
        ha="left",
    )
    style.title(figure, finding(scenario, shown, systems))
    return figure


def width(swing: Mapping[str, Any], system: Mapping[str, Any]) -> float:
    ends = [swing[end]["tpot_ms"] for end in ("low", "high") if swing[end]] + [system["tpot_ms"]]
    return (
        0.0 if math.isclose(min(ends), max(ends)) else float(max(ends) - min(ends))
    )  # times round


def finding(
    scenario: str,
    shown: Mapping[str, list[Mapping[str, Any]]],
    systems: Mapping[str, Mapping[str, Any]],
) -> str:
    """What matters most for each system."""
    if not shown:
        return f"{scenario}: no uncertain number moves TPOT"
    parts = []
    for name, swings in shown.items():
        part = width(swings[0], systems[name]) / systems[name]["tpot_ms"]
        parts.append(f"{name}'s TPOT hangs most on {name_of(swings[0]['key'])} ({part:.0%})")
    return "; ".join(parts)


def name_of(key: str) -> str:
    """'engine.memory_efficiency.8' as a person says it: 'memory efficiency (8 bits)'."""
    first, _, bits = key.partition(".")[2].partition("_efficiency.")
    return (
        f"{first} efficiency ({bits} bits)".replace("_", " ")
        if bits
        else first.rpartition(".")[2].replace("_", " ")
    )
