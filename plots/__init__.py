"""Figures of a result: one module each, `draw(saved) -> Figure`.  No simulation and no file reading inside."""

from collections.abc import Callable

from matplotlib.figure import Figure

from plots import (
    breakdown,
    cdf,
    crossover,
    day,
    energy,
    load,
    occupancy,
    pareto,
    price,
    request,
    scaling,
    series,
    speed,
    users,
)
from sim.economics.break_even import priced_card_systems
from sim.results.saving import Saved
from sim.studies.sweep import Swept

FIGURES: dict[str, Callable[[Saved], Figure]] = {
    "token-latency": request.draw,
    "latency-cdf": cdf.draw,
    "token-time": breakdown.draw,
    "speed": speed.draw,
    "occupancy": occupancy.draw,
    "crossover": crossover.draw,
}
OUTAGES = {"day": day.draw}  # where a replica fails
# Of a sweep: what must vary (a column of its table), and the figure over it.
SWEPT: dict[str, tuple[tuple[str, ...], Callable[[Swept], Figure]]] = {
    "latency-vs-load": (("rate",), load.draw),
    "pareto": (("rate", "users"), pareto.draw),
    "strong-scaling": (("chips",), scaling.draw),
    "users": (("users",), users.draw),
    "energy": (("rate", "users"), energy.draw_swept),
    "card-price": (("rate", "users"), price.draw),
}


def draw_all(saved: Saved) -> dict[str, Figure]:
    """Every figure, by the name its file gets; without prices there is no crossover."""
    failing = any(system.outages for system in saved.summary.systems.values())
    named = FIGURES | (OUTAGES if failing else {})
    if not priced_card_systems(saved.summary.priced_systems):
        named = {name: draw for name, draw in named.items() if name != "crossover"}
    return {name: draw(saved) for name, draw in named.items()}


def draw_swept(swept: Swept) -> dict[str, Figure]:
    """Every figure that a sweep has the points for; without prices there is none of cards'."""
    named = {
        name: draw
        for name, (over, draw) in SWEPT.items()
        if any(series.varies(swept, x) for x in over)
    }
    if not price.against(swept):
        named = {name: draw for name, draw in named.items() if name != "card-price"}
    return {name: draw(swept) for name, draw in named.items()}
