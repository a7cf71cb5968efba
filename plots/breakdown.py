"""Time of a token of a single request, by system: stacked causes, with the fitted parts white."""

from collections.abc import Mapping

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plots import style
from plots.causes import TOKEN_CAUSES
from sim.results.labels import percent_text, system_label, trimmed_number
from sim.results.saving import Saved
from sim.results.system_identity import UnloadedRequest


def draw(saved: Saved) -> Figure:
    """Draw one bar for each system. Terms under 0.5 % of the token's time are left white.

    Left out: fleets. Their members have their own bars.
    """
    systems = {
        system_label(name, s.identity): s.unloaded
        for name, s in saved.summary.systems.items()
        if s.unloaded
    }
    figure = style.figure(8.0, 2.3 + 0.62 * len(systems))
    axis = figure.subplots()
    names = list(systems)
    total = max(unloaded.tpot_ms for unloaded in systems.values())
    used = set()
    for row, name in enumerate(names):
        unloaded = systems[name]
        left = 0.0
        for term, cause in TOKEN_CAUSES.items():
            time, fitted = unloaded.terms_ms[term], unloaded.fitted_terms_ms[term]
            if time >= 0.005 * unloaded.tpot_ms:
                used.add(term)
                axis.barh(row, time - fitted, left=left, height=0.62, **cause.filled)
                axis.barh(row, fitted, left=left + time - fitted, height=0.62, **cause.open)
            left += time
        axis.text(
            left + 0.01 * total,
            row,
            f"{trimmed_number(unloaded.tpot_ms)} ms{_fitted(unloaded.fitted_share)}",
            va="center",
            fontsize=9,
        )
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="time per output token of a single request, unloaded, ms",
    )
    axis.set_xlim(0, 1.24 * total)
    axis.set_ylim(len(names) - 0.5, -0.5)  # the first system on top
    axis.grid(axis="y", visible=False)
    handles: list[Artist] = [cause.entry for term, cause in TOKEN_CAUSES.items() if term in used]
    fitted = any(unloaded.fitted_share for unloaded in systems.values())
    if fitted:
        handles.append(Patch(facecolor="white", edgecolor="#555555", label="white: fitted part"))
    style.title(figure, finding(systems), style.keyed(figure, handles))
    note = "white: fitted to measured speeds; filled: from data sheets"
    style.run_footnote(figure, saved.summary, *([note] if fitted else []))
    return figure


def _fitted(share: float) -> str:
    """Return ', 48 % fitted', or '' if nothing is."""
    return f", {percent_text(share)} fitted" if share else ""


def finding(systems: Mapping[str, UnloadedRequest]) -> str:
    """Return the title: the term that takes most of a token's time on each system."""
    parts: dict[str, str] = {}
    for name, unloaded in systems.items():
        term, time = max(unloaded.terms_ms.items(), key=lambda pair: pair[1])
        parts[name] = f"{percent_text(time / unloaded.tpot_ms)} {TOKEN_CAUSES[term].label}"
    head = "Most of an unloaded token's time"
    if len(parts) > 1 and len(set(parts.values())) == 1:
        return f"{head} on every system: {next(iter(parts.values()))}"
    return f"{head}: " + "; ".join(f"{name} {part}" for name, part in parts.items())
