"""Where a lone request's token spends its time, by system: stacked terms, the fitted part of each hatched."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style
from sim.results.saving import Saved
from sim.results.system_identity import UnloadedRequest

# Term: label and colour.  Tol's muted palette, so that no term has the colour of a system.  Source: https://sronpersonalpages.nl/~pault/
TERMS = {
    "weights": ("weights read", "#332288"),
    "kv": ("KV cache read", "#88CCEE"),
    "activations": ("activations read", "#DDCC77"),
    "compute": ("computing", "#117733"),
    "collectives": ("collectives", "#CC6677"),
    "hops": ("hops between stages", "#AA4499"),
    "overhead": ("engine overhead", "#BBBBBB"),
}


def draw(saved: Saved) -> Figure:
    """One bar a system, but for fleets: their members have theirs.  Terms too narrow to be seen are left white."""
    systems = {name: s.unloaded for name, s in saved.summary.systems.items() if s.unloaded}
    figure = style.figure(8.0, 2.3 + 0.62 * len(systems))
    axis = figure.subplots()
    names = list(systems)
    total = max(lone.tpot_ms for lone in systems.values())
    used = []
    for row, name in enumerate(names):
        lone = systems[name]
        left = 0.0
        for term, (_, colour) in TERMS.items():
            time, fitted = lone.terms_ms[term], lone.fitted_terms_ms[term]
            if time < 0.005 * lone.tpot_ms:
                left += time
                continue
            used.append(term)
            axis.barh(
                row, time - fitted, left=left, color=colour, edgecolor="white", lw=0.6, height=0.62
            )
            axis.barh(
                row,
                fitted,
                left=left + time - fitted,
                color=colour,
                edgecolor="white",
                lw=0.6,
                height=0.62,
                hatch="////",
            )
            left += time
        axis.text(
            left + 0.01 * total,
            row,
            f"{style.number(lone.tpot_ms)} ms, {lone.fitted_share:.0%} fitted",
            va="center",
            fontsize=9,
        )
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="time per output token of a lone request, ms",
    )
    axis.set_xlim(0, 1.24 * total)
    axis.set_ylim(
        len(names) - 0.5, -0.5
    )  # the first on top, and room for a bar too thin to be seen
    axis.grid(axis="y", visible=False)
    handles = [
        Patch(facecolor=colour, label=label)
        for term, (label, colour) in TERMS.items()
        if term in used
    ]
    handles.append(
        Patch(
            facecolor="white",
            edgecolor="#555555",
            hatch="////",
            label="fitted, not from data sheets",
        )
    )
    style.legend(axis, handles, columns=4)
    style.title(figure, finding(systems), key_rows=1 + (len(handles) > 4))
    style.footnote(figure, saved.summary)
    return figure


def finding(systems: Mapping[str, UnloadedRequest]) -> str:
    """What takes most of a token's time on each system."""
    parts = []
    for name, lone in systems.items():
        term, time = max(lone.terms_ms.items(), key=lambda pair: pair[1])
        parts.append(f"{name} {time / lone.tpot_ms:.0%} {TERMS[term][0]}")
    return "Most of a token's time: " + ", ".join(parts)
