"""One look for all figures: sizes, fonts, and a colour for each system that is the same in every figure."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.  Source: https://jfly.uni-koeln.de/color/
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LINES = ("-", "--", "-.", ":")

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
    """An empty figure, legible at half a page; without pyplot, which would keep it and open windows."""
    matplotlib.rcParams.update(STYLE)  # also for saving
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the format is the path's suffix, and the same figure gives the same bytes."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def colours(systems: Iterable[str]) -> dict[str, str]:
    """A colour for each system, by its place in the scenario."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(systems)}


def lines(systems: Iterable[str]) -> dict[str, str]:
    """A line style for each system: a second way to tell them apart."""
    return {name: LINES[i % len(LINES)] for i, name in enumerate(systems)}


def title(figure: Figure, finding: str, key_rows: int = 0) -> None:
    """The finding, over the whole width, in as many lines as it needs, and room for a key of so many rows below it."""
    width = int(figure.get_figwidth() * 11)  # letters that go on a line
    figure.suptitle("\n".join(textwrap.wrap(finding, width)) + "\n" * key_rows, ha="left", x=0.01)


def number(value: float) -> str:
    """Three digits as a person writes them, without exponents."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    """'6.9 times', '1.04 times'."""
    return f"{ratio:.2f} times" if ratio < 1.15 else f"{ratio:.1f} times" if ratio < 100 else f"{ratio:.0f} times"


def legend(axis: Axes, handles: Sequence[Artist] | None = None, columns: int = 5) -> None:
    """The key in rows above the axes, where it hides nothing; the title leaves room for it."""
    entries = {"handles": handles} if handles else {}
    key = axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=9, borderaxespad=0.3, columnspacing=1.2, **entries
    )
    key.set_in_layout(False)  # else a key wider than its panel would push the others away


def hardware(system: Mapping[str, Any], below: bool = False) -> str:
    """'576 x groq-lpu-v1, groq-compiler', of a fleet '1 lpu, 4 h100x8': side by side or one below the other."""
    copies = [f"{member['copies']} {name}" for name, member in system.get("members", {}).items()]
    return ("\n" if below else ", ").join(copies or [f"{system['chips']} x {system['chip']}", system["engine"]])


def footnote(figure: Figure, summary: Mapping[str, Any]) -> None:
    """Under the figure: the models, the scenario, its seed, and what each system is."""
    models = ", ".join(dict.fromkeys(s["model"] for s in summary["systems"].values()))
    parts = [f"{models}; scenario {summary['scenario']}, seed {summary['seed']}"]
    for name, s in summary["systems"].items():
        weights = "" if "members" in s else f", {s['precision']['weights']} weights"
        parts.append(f"{name}: {hardware(s)}{weights}")
    lines, width = [""], int(figure.get_figwidth() * 19)
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + part
    figure.supxlabel("\n".join(lines), fontsize=7, color="#555555", ha="left", x=0.01)
