"""One style for all figures: sizes, fonts, titles, keys and footnotes."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from sim.results.labels import percent_text, system_label, trimmed_number
from sim.results.summary import RunSummary
from sim.results.system_identity import Identity

LONGEST = 60  # letters of an entry in a key
MOST_LINES = 2  # of a title

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.hashsalt": "sramsim",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a dollar in a name of a system is a dollar
}


def figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """Return an empty figure that is legible at half a page.

    Left out: pyplot, which would keep the figure and open windows.
    """
    matplotlib.rcParams.update(STYLE)  # also used by savefig
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix. Equal figures give equal bytes."""
    dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
    figure.savefig(path, metadata={dated: None} if dated else None)


def title(figure: Figure, finding: str, key_rows: int = 0) -> None:
    """Write the finding over the whole width, and leave room for a key of `key_rows` rows below.

    A title has at most two lines. Clauses, separated by '; ', are left out from the end if they do
    not fit. With many rows in the key the figure grows, so that the axes keep their height.
    A figure gets its title last, so the ticks of its linear axes get commas here, too.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if type(axis.get_major_formatter()) is ScalarFormatter:  # of a linear axis by default
                plain_ticks(axis)
    width = int(figure.get_figwidth() * 10.5)  # letters that go on a line
    clauses = finding.split("; ")
    kept = len(clauses)
    while kept > 1 and len(title_lines("; ".join(clauses[:kept]), width)) > MOST_LINES:
        kept -= 1
    lines = title_lines("; ".join(clauses[:kept]), width, MOST_LINES)
    figure.suptitle("\n".join(lines) + "\n" * key_rows, ha="left", x=0.01)
    grow(figure, 0.19 * max(0, len(lines) + key_rows - 3))


def title_lines(text: str, width: int, most: int | None = None) -> list[str]:
    """Return a text in lines of at most `width` letters; beyond `most` lines it is cut.

    No line begins with a percent sign.
    """
    kept = text.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(kept, width, break_on_hyphens=False, max_lines=most, placeholder=" …")
    return [line.replace("\N{NO-BREAK SPACE}%", " %") for line in lines]


def grow(figure: Figure, inches: float) -> None:
    """Increase the height of a figure."""
    figure.set_figheight(figure.get_figheight() + inches)


def times(ratio: float) -> str:
    """Return '6.9 times' or '1.04 times'."""
    return (
        f"{ratio:.2f} times"
        if ratio < 1.15
        else f"{ratio:.1f} times"
        if ratio < 100
        else f"{ratio:.0f} times"
    )


def duration(milliseconds: float) -> str:
    """Return '34.8 ms', '9.69 s' or '10 min'."""
    for unit, size in (("h", 3.6e6), ("min", 6e4), ("s", 1e3)):
        if milliseconds >= 2 * size:
            return f"{trimmed_number(milliseconds / size)} {unit}"
    return f"{trimmed_number(milliseconds)} ms"


def time_axis(seconds: float) -> tuple[float, str]:
    """Return the size in seconds and the name of the unit for an axis of this length."""
    return (3600.0, "h") if seconds > 3 * 3600 else (60.0, "min") if seconds > 300 else (1.0, "s")


def legend(axis: Axes, handles: Sequence[Artist] | None = None, columns: int = 5) -> None:
    """Draw the key in rows above the axes, where it hides nothing.

    The title leaves room for it: `title(…, key_rows)`.
    """
    entries = {"handles": handles} if handles else {}
    if not handles and not axis.get_legend_handles_labels()[0]:
        return
    key = axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        fontsize=9,
        borderaxespad=0.3,
        columnspacing=1.2,
        handlelength=2.8,
        **entries,
    )
    key.set_in_layout(False)  # else a key wider than its panel would push the others away


def keyed(figure: Figure, handles: Sequence[Artist]) -> int:
    """Draw the key of a whole figure above its first axes, and return its number of rows."""
    for handle in handles:
        handle.set_label(short(str(handle.get_label()), LONGEST))
    letters = [len(str(handle.get_label())) + 7 for handle in handles]  # with the mark before them
    room = (figure.get_figwidth() - 0.7) * 13
    for columns in range(len(handles), 0, -1):  # columns are filled one after the other
        if columns == 1 or sum(map(max, np.array_split(letters, columns))) <= room:
            legend(figure.axes[0], handles, columns)
            return math.ceil(len(handles) / columns)
    return 0


def short(text: str, most: int) -> str:
    """Return a text of at most `most` letters, cut in the middle.

    Similar names often differ only at the end.
    """
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def share_text(share: float) -> str:
    """Return '12 %' or '0.3 %'."""
    return percent_text(share) if share >= 0.01 or not share else f"{100 * share:.1g} %"


def plain_ticks(axis: Axis) -> None:
    """Label the ticks of an axis '2,500' and '0.3', without rounding errors as in 0.30000000004."""
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "\N{MINUS SIGN}"))
    )


def plain_log(axis: Axis, dense: float = 1000) -> None:
    """Label a logarithmic axis with plain numbers.

    Up to the ratio `dense` of its ends, the steps 2 and 5 have labels too. A span below a factor of
    four has equal steps, because powers of ten may miss it.
    """
    low, high = sorted(axis.get_view_interval())
    steps = (1, 2, 5) if high / low < dense else (1,)
    narrow = high / low < 4
    axis.set_major_locator(MaxNLocator(3) if narrow else LogLocator(subs=steps, numticks=12))
    axis.set_minor_locator(NullLocator())
    plain_ticks(axis)


def hardware_text(system: Identity) -> str:
    """Return '576 x groq-lpu-v1, groq-compiler', or for a fleet '1 x lpu, 4 x h100x8'."""
    return ", ".join(system.hardware)


@dataclass(frozen=True)
class FootnoteSystem:
    """A system in a footnote: its label, its model, and its hardware with its plan."""

    label: str
    model: str
    hardware: str


def run_footnote(figure: Figure, summary: RunSummary, *more: str) -> None:
    """Put under a figure the models, the scenario, its seed, each system and its plan, and more."""
    systems = []
    for name, identity in summary.identities.items():
        plain = identity.plain
        about = f", {plain.weights}, plan {plain.degrees}" if plain else ""
        label = system_label(name, identity)
        systems.append(FootnoteSystem(label, identity.model, hardware_text(identity) + about))
    write_footnote(figure, f"scenario {summary.scenario}, seed {summary.seed}", systems, more)


def write_footnote(
    figure: Figure, scenario: str, systems: Sequence[FootnoteSystem], more: Sequence[str] = ()
) -> None:
    """Put under a figure the models, the scenario with its seed, what each system is, and more."""
    models = ", ".join(dict.fromkeys(system.model for system in systems))
    parts = [f"{models}; {scenario}"]
    parts += [f"{system.label}: {system.hardware}" for system in systems]
    parts += more
    lines, width = [""], int(figure.get_figwidth() * 19)
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + part
    figure.supxlabel("\n".join(lines), fontsize=7, color="#555555", ha="left", x=0.01)
    grow(figure, 0.12 * max(0, len(lines) - 2))
