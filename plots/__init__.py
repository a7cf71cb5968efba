"""Figures of a result: one module each, `draw(saved) -> Figure`.  No simulation and no file reading inside."""

from collections.abc import Callable

from matplotlib.figure import Figure

from plots import breakdown, cdf, speed
from sim.records import Saved

FIGURES: dict[str, Callable[[Saved], Figure]] = {
    "latency-cdf": cdf.draw,
    "token-time": breakdown.draw,
    "speed": speed.draw,
}


def draw_all(saved: Saved) -> dict[str, Figure]:
    """Every figure, by the name its file gets."""
    return {name: draw(saved) for name, draw in FIGURES.items()}
