"""The way of one token through the stages, and the work of the chips of the slowest stage.

The rows above are stages, so that hundreds of chips stay readable. The rows below are chips.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style
from plots.causes import CHIP_CAUSES
from sim.chipsim.machine import TimelineSlice
from sim.results.labels import percent_text, trimmed_number
from sim.studies.timeline import Timeline

MOST_ROWS = 16  # chips of the slowest stage that are drawn


def draw(timeline: Timeline) -> Figure:
    """Draw the first token after the prompt."""
    begin, end = _first_token(timeline)
    slices = [piece for piece in timeline.chips if begin <= piece.start < end]
    stages = len(timeline.stages)
    slowest, spans = _stages(timeline, slices)
    # Without hatches, as the pieces: most are too short for one.
    keys = [Patch(label=cause.label, facecolor=cause.colour) for cause in CHIP_CAUSES.values()]
    rows = min(timeline.stage_size, MOST_ROWS)
    tall = min(5.0, 0.9 + 0.06 * stages) if stages > 1 else 0.0
    figure = style.figure(8.0, 1.9 + tall + 0.9 + 0.22 * rows)
    if stages > 1:
        above, below = figure.subplots(2, 1, height_ratios=[tall, 0.9 + 0.22 * rows])
        _bars(
            above,
            [
                (piece.chip // timeline.stage_size, piece)
                for piece in slices
                if _shown(piece, timeline, spans)
            ],
            begin,
        )
        above.set(ylabel="stage", xlabel="time since the token's step began, us")
        above.set_ylim(stages - 0.5, -0.5)
        above.set_xlim(0, 1e6 * (end - begin))
        style.legend(above, keys)
    else:
        below = figure.subplots()
        style.legend(below, keys)
    first = slowest * timeline.stage_size
    inside = [piece for piece in slices if first <= piece.chip < first + rows]
    _bars(below, [(piece.chip - first, piece) for piece in inside], begin)
    left, right = spans[slowest]
    below.set_xlim(1e6 * (left - begin), 1e6 * (right - begin))
    below.set_ylim(rows - 0.5, -0.5)
    below.set(yticks=range(rows), yticklabels=[str(first + row) for row in range(rows)])
    below.tick_params(axis="y", labelsize=8)
    of = f" ({rows} of {timeline.stage_size} shown)" if rows < timeline.stage_size else ""
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
    """Return the start and the end of the first token after the prompt [s].

    It starts with the work of its first chip, and ends as it leaves the last stage.
    """
    before, after = timeline.tokens[:2]
    return min(piece.start for piece in timeline.chips if piece.start >= before), after


def _stages(
    timeline: Timeline, slices: Sequence[TimelineSlice]
) -> tuple[int, dict[int, tuple[float, float]]]:
    """Return the stage that takes longest, and the first start and last end of each stage [s]."""
    spans: dict[int, tuple[float, float]] = {}
    for piece in slices:
        stage = piece.chip // timeline.stage_size
        first, last = spans.get(stage, (piece.start, piece.end))
        spans[stage] = min(first, piece.start), max(last, piece.end)
    return max(spans, key=lambda stage: (spans[stage][1] - spans[stage][0], -stage)), spans


def _shown(piece: TimelineSlice, timeline: Timeline, spans: dict[int, tuple[float, float]]) -> bool:
    """Return whether the row of a stage shows this slice: the first chip stands for its stage."""
    return piece.chip % timeline.stage_size == 0 and piece.chip // timeline.stage_size in spans


def _bars(axis: Axes, rows: Sequence[tuple[int, TimelineSlice]], begin: float) -> None:
    """Draw slices as bars, each in its row, in us since `begin` [s]."""
    for kind, cause in CHIP_CAUSES.items():
        for row, piece in rows:
            if piece.kind == kind:
                axis.broken_barh(
                    [(1e6 * (piece.start - begin), 1e6 * (piece.end - piece.start))],
                    (row - 0.4, 0.8),
                    color=cause.colour,
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
    """Return the title: the time of the token, and the shares of its causes."""
    whole = end - begin
    inside = sum(last - first for first, last in spans.values())
    chips = len({piece.chip for piece in slices})
    computing = (
        sum(piece.end - piece.start for piece in slices if piece.kind == "compute")
        / timeline.stage_size
    )
    stages = f"{len(spans)} stages one after the other" if len(spans) > 1 else "one stage"
    parts = f"{percent_text(computing / whole)} computing"
    parts += f", {percent_text((inside - computing) / whole)} collectives"
    hops = f", {percent_text(1 - inside / whole)} between stages" if len(spans) > 1 else ""
    time = f"{trimmed_number(1e3 * whole)} ms"
    return f"{timeline.system}: a token passes {chips} chips in {time}, {stages}: {parts}{hops}"
