"""Figures of a result: one module for each figure, with `draw(saved) -> Figure`.

    figures = draw_all(saved)            # {"speed": Figure, …}
    style.save(figures["speed"], Path("speed.png"))

Read `speed` first, then `style`. Left out: simulation and reading of files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from plots import (
    breakdown,
    cdf,
    cost,
    crossover,
    day,
    energy,
    frontier,
    load,
    metric,
    occupancy,
    pareto,
    pools,
    price,
    request,
    scaling,
    series,
    speed,
    users,
)
from sim.economics.break_even import priced_card_systems
from sim.inputs.errors import UserError
from sim.inputs.fields import own_function
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
OUTAGES = {"day": day.draw}  # only if a replica fails
PD_POOLS = {"pools": pools.draw}  # only with prefill and decode pools
# Figures of a sweep: the columns of which one must vary, and the function that draws.
SWEPT: dict[str, tuple[tuple[str, ...], Callable[[Swept], Figure]]] = {
    "latency-vs-load": (("rate",), load.draw),
    "pareto": (("rate", "users"), pareto.draw),
    "strong-scaling": (("chips",), scaling.draw),
    "users": (("users",), users.draw),
    "energy": (("rate", "users"), energy.draw_sweep),
    "card-price": (("rate", "users"), price.draw),
    "cost": (("rate", "users"), cost.draw),
}


def draw_all(saved: Saved) -> dict[str, Figure]:
    """Return every figure by the name of its file.

    Left out: the crossover, if no card has a price.
    """
    failing = any(system.outages for system in saved.summary.systems.values())
    named = FIGURES | (OUTAGES if failing else {}) | (PD_POOLS if pools.pooled(saved) else {})
    if not priced_card_systems(saved.summary.priced_systems):
        named = {name: draw for name, draw in named.items() if name != "crossover"}
    return {name: draw(saved) for name, draw in named.items()}


def draw_own(source: Saved | Swept, names: Sequence[str]) -> dict[str, Figure]:
    """Return the figures of a user's functions by the names of their files.

    names: such as 'my.py:draw', of functions that take the result and return a Figure.
    Raises: UserError if there is no such function, or it returns something else.
    """
    figures = {}
    for name in names:
        figure = own_function(name, "a function that draws")(source)
        if not isinstance(figure, Figure):
            raise UserError(
                f"--figure {name}: got {type(figure).__name__}; expected a matplotlib Figure; "
                "try to return the figure"
            )
        module, _, function = name.replace(".py:", ":", 1).rpartition(":")
        figures[f"{Path(module).name}-{function}"] = figure
    return figures


def draw_swept(swept: Swept, metrics: Sequence[str] = ()) -> dict[str, Figure]:
    """Return the figures of a sweep by the names of their files.

    metrics: columns of the table to draw over the swept keys. Without any, the figures are those
    that the sweep has points for, or else the figures of `metric.DEFAULT_METRICS`.
    Left out: prices of cards, if no card has a price; and all figures, if no point worked.
    """
    if metrics:
        return {name.replace("/", "-"): metric.draw(swept, name) for name in metrics}
    named = {
        name: draw
        for name, (over, draw) in SWEPT.items()
        if any(series.varies(swept, x) for x in over)
    }
    if not price.against(swept):
        named = {name: draw for name, draw in named.items() if name != "card-price"}
    if frontier.draws(swept):
        named |= {"frontier": frontier.draw}
    known = {"point", "verdict", *metric.DEFAULT_METRICS} <= set(swept.table.columns)
    if not named and known and (swept.table["error"] == "").any():
        return draw_swept(swept, metric.DEFAULT_METRICS)
    return {name: draw(swept) for name, draw in named.items()}
