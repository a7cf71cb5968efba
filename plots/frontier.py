"""Token/s per MW over the speed of one user, and which system is best at which speed."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from plots import cost, series, style
from plots.series import Series
from sim.results.labels import trimmed_number
from sim.studies.sweep import Swept

SEGMENTS = 3  # of a title
SPEED_TOLERANCE = 0.97  # speeds that differ by less are equal


def draws(swept: Swept) -> bool:
    """Return whether a sweep over the load has pools that are compared with other systems."""
    load = series.load(swept)
    return "ffn.chips" in swept.table.columns and series.varies(swept, load)


def draw(swept: Swept) -> Figure:
    """Draw one line for each system under rising load.

    Power is the mean of the run, with idle chips, servers and PUE.
    Left out: systems without a known power.
    """
    lines = [line for line in series.series(swept, series.load(swept)) if line.knows(cost.JOULES)]
    figure = style.figure(8.4, 4.4)
    axis = figure.subplots()
    for line in lines:
        series.plot(axis, line, line.speeds, per_megawatt(line), line.hollow)
    axis.set(xlabel="output tokens per second of one user", yscale="log")
    axis.set_ylabel("output tokens per second, per MW")
    axis.set_xlim(0, None)
    style.plain_log(axis.yaxis)
    handles = series.marked_key(lines)
    style.title(figure, finding(lines), style.keyed(figure, handles))
    series.sweep_footnote(figure, swept, "power: mean of the run, with idle chips, servers and PUE")
    return figure


def per_megawatt(line: Series) -> list[float]:
    """Return output tokens per second of all users and MW, which is per MJ, at each point."""
    return [1e6 / joules for joules in line.values(cost.JOULES)]


def finding(lines: Sequence[Series]) -> str:
    """Return the title: the best system up to each speed of a user."""
    parts = best_by_speed(lines)
    if not parts:
        return "No system keeps up with any of these loads"
    if len(parts) == 1:
        return f"Most tokens per MW: {parts[0][1]}, at every speed of a user"
    *lower, (_, last) = parts
    texts = [f"{label} up to {trimmed_number(speed)}" for speed, label in lower[: SEGMENTS - 1]]
    text = f"Most tokens per MW: {texts[0]} token/s for a user"
    above = "" if len(texts) == len(lower) else f" {trimmed_number(lower[-1][0])}"
    return "; ".join([text, *texts[1:], f"{last} beyond{above}"])


def best_by_speed(lines: Sequence[Series]) -> list[tuple[float, str]]:
    """Return the speeds up to which one system makes most tokens per MW, and its label.

    A point with a faster user also serves slower ones. Left out: points that do not keep up.
    """
    points = [
        (speed, tokens, line.label)
        for line in lines
        for speed, tokens, steady in zip(line.speeds, per_megawatt(line), line.steady, strict=True)
        if steady
    ]
    parts: list[tuple[float, str]] = []
    for speed in sorted({point[0] for point in points}):
        _, _, label = max(
            (p for p in points if p[0] >= SPEED_TOLERANCE * speed), key=lambda p: p[1]
        )
        if parts and parts[-1][1] == label:
            parts.pop()
        parts.append((speed, label))
    return parts
