"""Time of a token of a single request, by system: stacked terms, with the fitted parts hatched."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style
from sim.results.labels import trimmed_number
from sim.results.saving import Saved
from sim.results.system_identity import UnloadedRequest

# Term: label and colour. Tol's muted palette, so that no term has the colour of a system.
# Source: https://sronpersonalpages.nl/~pault/
TERM_COLOURS = {
    "weights": ("weights read", "#332288"),
    "kv": ("KV cache read", "#88CCEE"),
    "activations": ("activations read", "#DDCC77"),
    "compute": ("computing", "#117733"),
    "collectives": ("collectives", "#CC6677"),
    "hops": ("hops between stages", "#AA4499"),
    "overhead": ("engine overhead", "#BBBBBB"),
}


def draw(saved: Saved) -> Figure:
    """Draw one bar for each system. Terms under 0.5 % of the token's time are left white.

    Left out: fleets. Their members have their own bars.
    """
    systems = {name: s.unloaded for name, s in saved.summary.systems.items() if s.unloaded}
    figure = style.figure(8.0, 2.3 + 0.62 * len(systems))
    axis = figure.subplots()
    names = list(systems)
    total = max(unloaded.tpot_ms for unloaded in systems.values())
    used = []
    for row, name in enumerate(names):
        unloaded = systems[name]
        left = 0.0
        for term, (_, colour) in TERM_COLOURS.items():
            time, fitted = unloaded.terms_ms[term], unloaded.fitted_terms_ms[term]
            if time < 0.005 * unloaded.tpot_ms:
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
            f"{trimmed_number(unloaded.tpot_ms)} ms, {unloaded.fitted_share:.0%} fitted",
            va="center",
            fontsize=9,
        )
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="time per output token of a single request, ms",
    )
    axis.set_xlim(0, 1.24 * total)
    axis.set_ylim(len(names) - 0.5, -0.5)  # the first system on top
    axis.grid(axis="y", visible=False)
    handles = [
        Patch(facecolor=colour, label=label)
        for term, (label, colour) in TERM_COLOURS.items()
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
    style.run_footnote(figure, saved.summary)
    return figure


def finding(systems: Mapping[str, UnloadedRequest]) -> str:
    """Return the title: the term that takes most of a token's time on each system."""
    parts = []
    for name, unloaded in systems.items():
        term, time = max(unloaded.terms_ms.items(), key=lambda pair: pair[1])
        parts.append(f"{name} {time / unloaded.tpot_ms:.0%} {TERM_COLOURS[term][0]}")
    return "Most of a token's time: " + ", ".join(parts)
