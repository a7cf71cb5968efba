"""One token's way through the stages, and what the chips of one group do meanwhile.

Stages are the rows above, so that hundreds of chips stay readable; below, the slowest group chip by chip.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style
from sim.chipsim.machine import TimelineSlice
from sim.studies.timeline import Timeline

# The colours of computing and collectives in the figure of a token's time.
KINDS = {
    "compute": ("computing", "#117733"),
    "exchange": ("collectives, waiting for others included", "#CC6677"),
}
MOST_ROWS = 16  # chips of the group that are shown


def draw(timeline: Timeline) -> Figure:
    """The first token of the timeline."""
    begin, end = _first_token(timeline)
    slices = [each for each in timeline.chips if begin <= each.start < end]
    stages = len(timeline.stages)
    slowest, spans = _stages(timeline, slices)
    rows = min(timeline.group, MOST_ROWS)
    tall = min(5.0, 0.9 + 0.06 * stages) if stages > 1 else 0.0
    figure = style.figure(8.0, 1.9 + tall + 0.9 + 0.22 * rows)
    if stages > 1:
        above, below = figure.subplots(2, 1, height_ratios=[tall, 0.9 + 0.22 * rows])
        _bars(
            above,
            [
                (each.chip // timeline.group, each)
                for each in slices
                if _shown(each, timeline, spans)
            ],
            begin,
        )
        above.set(ylabel="stage", xlabel="time since the token's step began, us")
        above.set_ylim(stages - 0.5, -0.5)
        above.set_xlim(0, 1e6 * (end - begin))
        style.legend(
            above, [Patch(facecolor=colour, label=label) for label, colour in KINDS.values()]
        )
    else:
        below = figure.subplots()
        style.legend(
            below, [Patch(facecolor=colour, label=label) for label, colour in KINDS.values()]
        )
    first = slowest * timeline.group
    inside = [each for each in slices if first <= each.chip < first + rows]
    _bars(below, [(each.chip - first, each) for each in inside], begin)
    left, right = spans[slowest]
    below.set_xlim(1e6 * (left - begin), 1e6 * (right - begin))
    below.set_ylim(rows - 0.5, -0.5)
    below.set(yticks=range(rows), yticklabels=[str(first + row) for row in range(rows)])
    below.tick_params(axis="y", labelsize=8)
    of = f" ({rows} of {timeline.group} shown)" if rows < timeline.group else ""
    below.set(
        xlabel=f"the same, us: the chips of stage {slowest}{of}"
        if stages > 1
        else "time since the step began, us"
    )
    below.set(ylabel="chip")
    style.title(figure, finding(timeline, slices, spans, begin, end), key_rows=1)
    figure.supxlabel(
        f"{timeline.identity}; fidelity: chip", fontsize=7, color="#555555", ha="left", x=0.01
    )
    return figure


def _first_token(timeline: Timeline) -> tuple[float, float]:
    """From when a token's first chip begins until it has left the last stage: the first one after the prompt."""
    before, after = timeline.tokens[:2]
    return min(each.start for each in timeline.chips if each.start >= before), after


def _stages(
    timeline: Timeline, slices: Sequence[TimelineSlice]
) -> tuple[int, dict[int, tuple[float, float]]]:
    """Each stage's first start and last end; the stage that takes longest."""
    spans: dict[int, tuple[float, float]] = {}
    for each in slices:
        stage = each.chip // timeline.group
        first, last = spans.get(stage, (each.start, each.end))
        spans[stage] = min(first, each.start), max(last, each.end)
    return max(spans, key=lambda stage: (spans[stage][1] - spans[stage][0], -stage)), spans


def _shown(each: TimelineSlice, timeline: Timeline, spans: dict[int, tuple[float, float]]) -> bool:
    """Each stage is drawn by its first chip."""
    return each.chip % timeline.group == 0 and each.chip // timeline.group in spans


def _bars(axis: Axes, rows: Sequence[tuple[int, TimelineSlice]], begin: float) -> None:
    for kind, (_, colour) in KINDS.items():
        for row, each in rows:
            if each.kind == kind:
                axis.broken_barh(
                    [(1e6 * (each.start - begin), 1e6 * (each.end - each.start))],
                    (row - 0.4, 0.8),
                    color=colour,
                    lw=0,
                )
    axis.grid(axis="y", visible=False)


def finding(
    timeline: Timeline,
    slices: Sequence[TimelineSlice],
    spans: dict[int, tuple[float, float]],
    begin: float,
    end: float,
) -> str:
    """How long the token took, and on what."""
    whole = end - begin
    inside = sum(last - first for first, last in spans.values())
    chips = len({each.chip for each in slices})
    computing = (
        sum(each.end - each.start for each in slices if each.kind == "compute") / timeline.group
    )
    stages = f"{len(spans)} stages one after the other" if len(spans) > 1 else "one stage"
    parts = f"{computing / whole:.0%} computing, {(inside - computing) / whole:.0%} collectives"
    hops = f", {1 - inside / whole:.0%} between stages" if len(spans) > 1 else ""
    return f"{timeline.system}: a token passes {chips} chips in {style.number(1e3 * whole)} ms, {stages}: {parts}{hops}"
