"""Token/s of a GPU over the ratio of attention GPUs to FFN GPUs: measured, and simulated."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from plots import style
from sim.scenario.system import COLOUR_CODES
from sim.validation.afd import RatioPanel, RatioPoint

LOOKS: dict[str, dict[str, Any]] = {
    "measured": {"color": "black", "ls": "", "marker": "o", "mfc": "white", "ms": 5},
    "speed of light": {"color": COLOUR_CODES["blue"], "ls": "-"},
    "experts' kernels as timed alone": {"color": COLOUR_CODES["vermilion"], "ls": "--"},
    "best wide expert parallelism, measured": {"color": COLOUR_CODES["black"], "ls": ":"},
}


def draw(panels: Sequence[RatioPanel]) -> Figure:
    """Draw a panel for each length of context.

    Left out: contexts at which only one or two ratios were measured.
    """
    shown = [panel for panel in panels if len({point.ratio for point in panel.kernels}) > 2]
    figure = style.figure(1.2 + 3.0 * len(shown), 4.0)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, panel in zip(axes, shown, strict=True):
        _draw_panel(axis, panel)
    axes[0].set_ylabel("output token/s per GPU of both pools")
    handles = [Line2D([], [], lw=1.8, label=label, **look) for label, look in LOOKS.items()]
    style.title(figure, finding(shown), style.keyed(figure, handles))
    models = ", ".join(dict.fromkeys(panel.model for panel in shown))
    text = f"{models}; nothing is fitted to the measured points; single decode steps"
    figure.supxlabel(text, fontsize=7, color="#555555", ha="left", x=0.01)
    return figure


def _draw_panel(axis: Axes, panel: RatioPanel) -> None:
    """Draw the measured points and the lines of one length of context."""
    names = iter(LOOKS)
    known = panel.kernels
    measured = [point.measured for point in known]
    axis.plot([point.ratio for point in known], measured, **LOOKS[next(names)], zorder=3)
    for points in (panel.light, known):
        ratios = [point.ratio for point in points]
        axis.plot(ratios, [point.simulated for point in points], lw=1.8, **LOOKS[next(names)])
    if panel.ordinary:
        best = max(point.measured for point in panel.ordinary)
        axis.axhline(best, lw=1.6, **LOOKS[next(names)])
    axis.set(xlabel=f"attention GPUs for one FFN GPU\n{panel.context:,} tokens of context")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])


def finding(panels: Sequence[RatioPanel]) -> str:
    """Return the title: the best ratios, of the first context with a speed of light."""
    panel = next((panel for panel in panels if panel.light), None)
    if panel is None:
        return "Attention and FFN pools: measured and simulated speeds"
    measured, simulated = (best_ratio(panel.kernels, of) for of in ("measured", "simulated"))
    light = best_ratio(panel.light, "simulated")
    return (
        f"At {panel.context:,} tokens {measured:g} to 1 was measured as the best ratio; experts' "
        f"kernels as timed alone give {simulated:g} to 1, the speed of light {light:g} to 1"
    )


def best_ratio(points: Sequence[RatioPoint], key: str) -> float:
    """Return the ratio with the highest speed; key: 'measured' or 'simulated'."""
    return max(points, key=lambda point: float(getattr(point, key))).ratio
