"""Memory of the chips of each stage: weights, activations, reserve, room for KV cache."""

from collections.abc import Mapping

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from plots import style
from plots.causes import MEMORY_PARTS
from sim.results.labels import system_label
from sim.results.plan_summary import PlannedSystem, PlanSummary

ACROSS = 3  # panels in a row


def draw(planned: PlanSummary) -> Figure:
    """Draw a panel for each system of `plan --json`, and a bar for each stage.

    The black line is the usable memory of the fullest chip.
    """
    systems = {name: plain for name, system in planned.systems.items() if (plain := system.plain)}
    columns = min(ACROSS, len(systems))
    rows = -(-len(systems) // columns)
    figure = style.figure(max(5.0, 1.0 + 3.0 * columns), 1.9 + 2.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (name, system), axis in zip(systems.items(), axes, strict=False):
        held = parts(system)
        unit, letters = (1e9, "GB") if system.bytes_per_chip.capacity > 1e9 else (1e6, "MB")
        # Stairs, not bars: hundreds of bars with a thin gap give a moiré pattern.
        edges, base = np.arange(len(system.stages) + 1) - 0.5, np.zeros(len(system.stages))
        for part, cause in MEMORY_PARTS.items():
            top = base + held[part]
            axis.stairs(top / unit, edges, baseline=base / unit, fill=True, **cause.filled)
            base = top
        stages = range(len(system.stages))
        axis.axhline(system.bytes_per_chip.capacity / unit, color="black", lw=1)
        axis.set(xlabel="stage", ylabel=f"on each chip, {letters}", ylim=(0, None))
        axis.set_xlim(-0.8, max(len(stages) - 0.2, 0.8))
        axis.set_title(
            f"{system_label(name, system.identity)}\n{_hardware_line(system)}",
            fontsize=8,
            loc="left",
        )
        axis.xaxis.set_major_locator(
            MaxNLocator(integer=True, nbins=6) if len(stages) > 12 else FixedLocator(list(stages))
        )
        axis.grid(axis="x", visible=False)
    for axis in list(axes):
        axis.remove()
    used: list[Artist] = [part.entry for part in MEMORY_PARTS.values()]
    used.append(Line2D([], [], color="black", lw=1, label="usable memory"))
    figure.legend(handles=used, loc="outside lower left", ncols=3, fontsize=9)
    style.title(figure, finding(systems))
    return figure


def _hardware_line(system: PlannedSystem) -> str:
    """Return the chips and the engine, short enough for the title of a panel."""
    return style.short(style.hardware_text(system.identity), 40)


def parts(system: PlannedSystem) -> dict[str, NDArray[np.float64]]:
    """Return the bytes on a chip of each stage, by part: `float[stage]`.

    Left out: weights that are in another memory than the KV cache.
    """
    chip, memory = system.bytes_per_chip, system.identity.memory
    weights = np.array([stage.weights for stage in system.stages], float)
    if memory.weights != memory.kv:
        weights = np.zeros_like(weights)
    activations = np.full(len(weights), float(chip.activations))
    reserve = np.full(len(weights), float(chip.reserve))
    room = np.maximum(chip.capacity - weights - activations - reserve, 0.0)
    return {"weights": weights, "activations": activations, "reserve": reserve, "room": room}


def finding(systems: Mapping[str, PlannedSystem]) -> str:
    """Return the title: the shares of weights and of free memory on the fullest chip."""
    clauses = []
    for name, system in systems.items():
        held, capacity = parts(system), system.bytes_per_chip.capacity
        weights, left = (
            float(held["weights"].max()) / capacity,
            float(held["room"].min()) / capacity,
        )
        room = f"{style.share_text(left)} left for KV cache" if system.fits else "does not fit"
        label = system_label(name, system.identity)
        clauses.append(f"{label} {style.share_text(weights)} weights, {room}")
    return (
        f"The fullest chip's memory: {'; '.join(clauses)}"
        if clauses
        else "No system has chips of its own"
    )
