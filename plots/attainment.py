"""Share of the requests that meet the SLO over the load, and dollars per million tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots import claims, style
from plots.looks import system_looks
from plots.price import USD
from sim.results.capacity_summary import CapacityOfSystem, CapacitySummary
from sim.results.labels import percent_text, system_label, trimmed_number
from sim.results.verdict import KEEPS_UP

if TYPE_CHECKING:
    import polars


def draw(summary: CapacitySummary, trials: "polars.DataFrame") -> Figure:
    """Draw the trials of each system, and a dotted line at its capacity.

    trials: the table of `sim.studies.capacity_table`. Hollow: the system does not keep up.
    Left out: the panel of dollars if no price is known.
    """
    priced = USD in trials.columns and trials[USD].is_not_null().any()
    figure = style.figure(9.5 if priced else 6.5, 4.4)
    first, *rest = figure.subplots(1, 2 if priced else 1, squeeze=False)[0]
    unit = unit_of(summary.systems)
    looked = system_looks(summary.identities)
    for name, look in looked.items():
        own = trials.filter(trials["system"] == name)
        loads = own["load"].to_list()
        panels = [(first, [100 * share for share in own["attainment"]])]
        panels += [(axis, own[USD].to_list()) for axis in rest]
        hollow = [_late(row, unit) for row in own.iter_rows(named=True)]
        for axis, values in panels:
            axis.plot(loads, values, color=look.colour, ls=look.dashes, lw=1.6)
            for x, y, late in zip(loads, values, hollow, strict=True):
                face = "white" if late else look.colour
                axis.plot(x, y, marker=look.marker, ms=4.5, mfc=face, mec=look.colour, ls="")
            if load := summary.systems[name].most.load:
                axis.axvline(load, color=look.colour, ls=":", lw=1.2)
    first.axhline(100 * summary.attainment, color="#555555", lw=1.0)
    first.set(ylabel="requests that meet the SLO, %", ylim=(0, 103))
    for axis in rest:
        axis.set(ylabel="$ per million output tokens", yscale="log")
        style.plain_log(axis.yaxis)
    for axis in (first, *rest):
        axis.set(xlabel="users" if unit == "users" else "requests per second", xscale="log")
        style.plain_log(axis.xaxis)
    handles: list[Artist] = [look.entry() for look in looked.values()]
    handles.append(Line2D([], [], color="#555555", ls=":", lw=1.2, label="dotted: capacity"))
    style.title(figure, finding(summary), style.keyed(figure, handles))
    limits = ", ".join(f"{key.upper()} {value:g}" for key, value in summary.slo.items())
    systems = [
        style.FootnoteSystem(look.label, identity.model, style.hardware_text(identity))
        for look, identity in zip(looked.values(), summary.identities.values(), strict=True)
    ]
    scenario = f"scenario {summary.scenario}, seed {summary.seed}; SLO: {limits}".replace("_MS", "")
    style.write_footnote(figure, f"{scenario} (ms)", systems, ["hollow: does not keep up"])
    return figure


def _late(trial: Mapping[str, Any], unit: str) -> bool:
    """Return whether the system did not keep up in a trial. Closed loops wait for answers."""
    return trial["verdict"] in claims.BEHIND or (unit != "users" and trial["kept"] < KEEPS_UP)


def unit_of(systems: Mapping[str, CapacityOfSystem]) -> str:
    """Return 'users' or 'request/s'."""
    return next((system.most.unit for system in systems.values()), "request/s")


def finding(summary: CapacitySummary) -> str:
    """Return the title: the capacity of each system, the highest first."""
    loads = {
        system_label(name, system.identity): system.most.load or 0.0
        for name, system in summary.systems.items()
    }
    unit = unit_of(summary.systems)
    parts = [
        f"{label} up to {trimmed_number(load)} {unit}" if load else f"{label} at no load"
        for label, load in sorted(loads.items(), key=lambda pair: -pair[1])
    ]
    return f"{percent_text(summary.attainment)} of the requests meet the SLO: {'; '.join(parts)}"
