"""The visits of micro-batches on two pools and their links, over the first layers of a step."""

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style
from sim.results.labels import trimmed_number
from sim.scenario.system import COLOUR_CODES
from sim.studies.visits import SHOWN_LAYERS, LayerVisits

ROWS = {"attention": "attention", "out_busy": "link out", "ffn": "FFN", "back_busy": "link back"}
BATCH_COLOURS = (
    "blue",
    "orange",
    "green",
    "pink",
    "sky",
    "vermilion",
    "yellow",
)  # of micro-batches
NUMBERED_SHARE = 0.015  # share of the width above which a bar shows the number of its micro-batch
THIN_SHARE = 0.003  # share of the width below which a bar has no light edge
LIGHT = 0.5  # brightness from which text on a colour is black
BINDS = {"attention": "attention never waits", "ffn": "the FFN pool never waits"}


def draw(visits: LayerVisits) -> Figure:
    """Draw a row for each pool and link, and a colour and a number for each micro-batch."""
    figure = style.figure(8.0, 3.2)
    axis = figure.subplots()
    whole = max(visit.end for visit in visits.visits)
    count, (unit, scale) = visits.cycle.micro_batches, _unit(whole)
    whole *= scale
    for row, resource in enumerate(ROWS):
        for visit in visits.visits:
            if visit.resource == resource:
                start, end = scale * visit.start, scale * visit.end
                colour = COLOUR_CODES[BATCH_COLOURS[visit.micro_batch % len(BATCH_COLOURS)]]
                # Without a light edge, two visits without a gap between them look like one. A
                # thin bar would vanish behind its edge.
                edge = "w" if end - start > THIN_SHARE * whole else colour
                axis.broken_barh(
                    [(start, end - start)], (row - 0.4, 0.8), fc=colour, ec=edge, lw=0.4
                )
                if count > 1 and end - start > NUMBERED_SHARE * whole:
                    middle, number = (start + end) / 2, f"{visit.micro_batch + 1}"
                    axis.text(middle, row, number, color=_ink(colour), ha="center", va="center")
    axis.set(yticks=range(len(ROWS)), yticklabels=list(ROWS.values()))
    axis.set_ylim(len(ROWS) - 0.5, -0.5)
    axis.set_xlim(0, whole)
    axis.set(xlabel=f"time since the step began, {unit}: {SHOWN_LAYERS} layers")
    axis.grid(axis="y", visible=False)
    entries = [
        Patch(color=COLOUR_CODES[BATCH_COLOURS[n]], label=f"micro-batch {n + 1}")
        for n in range(min(count, len(BATCH_COLOURS)))
    ]
    if count > 1:
        style.legend(axis, entries)
    style.title(figure, finding(visits), key_rows=int(count > 1))
    text = visits.identity
    if visits.cycle.overlapped_us:
        text += (
            "; gaps between FFN and link back: collectives, while the FFN chips compute another "
            "micro-batch"
        )
    figure.supxlabel(text, fontsize=7, color="#555555", ha="left", x=0.01)
    return figure


def finding(visits: LayerVisits) -> str:
    """Return the title: the time of a layer, and what binds it."""
    cycle = visits.cycle
    binds = BINDS.get(cycle.binds, "a link never waits")
    if cycle.binds == "latency":
        binds = (
            "both pools wait at times" if cycle.micro_batches > 1 else "one pool works at a time"
        )
    unit, scale = _unit(cycle.cycle_us / 1e6)
    time = f"{trimmed_number(cycle.cycle_us / 1e6 * scale)} {unit}"
    return f"{visits.system}: a layer takes {time} for {cycle.sequences:,} sequences, and {binds}"


def _unit(seconds: float) -> tuple[str, float]:
    """Return the name of the unit for a time, and how many of them a second has."""
    return ("us", 1e6) if seconds < 1e-2 else ("ms", 1e3)


def _ink(colour: str) -> str:
    """Return the colour of text that is legible on a colour: white, or black on light ones."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > LIGHT else "white"
